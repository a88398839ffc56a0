"""The report of a ranker's run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from thalweg.estimators.ranker import ranks_in_groups
from thalweg.evaluation.ranking import CUTOFF, ndcg_of_groups
from thalweg.report import charts
from thalweg.report.grids import input_rows
from thalweg.report.page import Card, Tile, checks_of, footer_of, render_page
from thalweg.report.theme import COLOURS, DATA, MODEL, WATER
from thalweg.report.words import duration
from thalweg.runs.base import MODEL_NAME
from thalweg.runs.ranker import CUTOFFS, RankerRun
from thalweg.runs.tables import with_error

_N_EXAMPLES, _N_WORST = 15, 10
_MOST_RANKS = 20
_MOST_GRADES = 12


def report(run: RankerRun) -> str:
    """The report of a finished run as one HTML page."""
    shown = _Shown(run)
    cards = [_data_card(run), _training_card(run), _cutoffs_card(run), _groups_card(shown), _examples_card(shown)]
    cards += [_worst_card(shown), _relevance_card(shown), _scores_card(run), _making_card(run)]
    title = f"{run.settings.target[0]} from {run.figures['table']}"
    subtitle = f"The order of the rows of each {run.settings.group[0]}, by an energy-based model"
    return render_page(title, subtitle, _tiles(run), cards, footer_of(run), checks_of(run))


class _Shown:
    """The held-out groups, and how the model orders them.

    Attributes:
        table: a row for each held-out row: ``row`` of the table from 1, ``group``, ``number`` of the group,
            ``relevance``, ``score``, ``rank``.
        ids: the groups as they are written, by number.
        ndcg: at 10, of each group; NaN for one without a relevant row.
    """

    def __init__(self, run: RankerRun):
        assert run.test_rows is not None
        self.run, rows = run, run.test_rows.reset_index(drop=True)
        target, group = run.settings.target[0], run.settings.group[0]
        numbers, ids = pd.factorize(rows[group].astype(str))
        self.ids = [str(name) for name in ids]
        scores = run.model.predict(rows[run.figures["inputs"]])
        self.table = pd.DataFrame(
            {
                "row": np.array(run.figures["test_places"]) + 1,
                "group": np.array(self.ids, dtype=object)[numbers],
                "number": numbers,
                "relevance": rows[target].to_numpy(np.float64),
                "score": scores,
                "rank": ranks_in_groups(scores, numbers),
            }
        )
        self.ndcg = self.ndcg_by(scores)

    def ndcg_by(self, scores: np.ndarray) -> np.ndarray:
        """NDCG at 10 of each group under some scores of its rows."""
        return ndcg_of_groups(self.table["relevance"].to_numpy(), scores, self.table["number"].to_numpy(), CUTOFF)

    def ordered(self, number: int) -> pd.DataFrame:
        """The rows of a group, the first one best."""
        return self.table[self.table["number"] == number].sort_values("score", ascending=False, kind="stable")


def _tiles(run: RankerRun) -> list[Tile]:
    figures, ours = run.figures, run.figures["scores"][MODEL_NAME]
    least, middle, most = figures["group_rows"]
    error = "" if ours["ndcg_error"] is None else f"± {ours['ndcg_error']:.3f} over groups"
    return [
        Tile("rows", f"{figures['rows']:,}", f"of which {figures['test_rows']:,} for testing"),
        Tile("groups", f"{figures['groups']:,}", f"of which {figures['test_groups']:,} for testing"),
        Tile("rows in a group", f"{middle:,}", f"median; {least:,} to {most:,}"),
        Tile(f"NDCG at {CUTOFF}", _as_text(ours["ndcg"]), error),
        Tile("first relevant row", _as_text(ours["mrr"]), "mean reciprocal rank"),
        Tile("training", duration(figures["seconds"]["training"]), f"{len(run.model.history_.epochs)} epochs"),
    ]


def _as_text(value: float | None) -> str:
    return with_error(value, None)


def _data_card(run: RankerRun) -> Card:
    rows = run.training_rows
    counts = rows[run.settings.target[0]].value_counts().sort_index()
    bars = go.Figure(
        go.Bar(
            x=[f"{value:g}" for value in counts.index], y=counts.to_numpy(), marker_color=MODEL,
            hovertemplate="relevance %{x}: %{y} training rows<extra></extra>",
        )
    )  # fmt: skip
    bars.update_xaxes(title=charts.plain(run.settings.target[0]), type="category")
    bars.update_yaxes(title="training rows")
    described = input_rows(rows, {name: run.figures["kinds"][name] for name in run.figures["inputs"]})
    text = "How many training rows have each relevance, and the inputs."
    head = ["input", "kind", "gaps", "range"]
    return Card("The data", text, [charts.styled(bars, 300)], head, described, folded=len(described) > 20)


def _training_card(run: RankerRun) -> Card:
    history = run.model.history_
    epochs = [e["epoch"] for e in history.epochs]
    held_out = [1 - e["validation"] for e in history.epochs]
    text = (
        f"NDCG at {CUTOFF} of held-out groups after each epoch, the mean of the networks. Each network keeps the "
        f"weights of its own best epoch. The training ended: {history.stopped}."
    )
    marked = (epochs[int(np.argmax(held_out))], "best")
    picture = charts.curves(epochs, {"held-out groups": held_out}, ("epoch", f"NDCG at {CUTOFF}"), marked)
    return Card("Training", text, [picture], notes=history.events)


def _cutoffs_card(run: RankerRun) -> Card:
    picture = go.Figure()
    colours = [MODEL, DATA, *COLOURS[3:], "#8d99ae"]
    for (name, entry), colour in zip(run.figures["scores"].items(), colours, strict=True):
        picture.add_scatter(
            x=[str(k) for k in CUTOFFS], y=entry["ndcg_by_cutoff"], name=name, mode="lines+markers",
            error_y={"array": entry["ndcg_by_cutoff_error"], "color": colour, "thickness": 1.2, "width": 3},
            line={"color": colour, "width": 2.6 if name == MODEL_NAME else 1.6},
            hovertemplate="the first %{x}: %{y:.3f}<extra>" + name + "</extra>",
        )  # fmt: skip
    picture.update_xaxes(title="rows from the top that count", type="category")
    picture.update_yaxes(title="NDCG")
    text = (
        "How near the top of each list comes to the best order: 1 is the best one. The bars are one standard "
        "error over held-out groups; groups without a relevant row are left out."
    )
    return Card("NDCG by cut-off", text, [charts.styled(picture, 360)])


def _groups_card(shown: _Shown) -> Card:
    known = ~np.isnan(shown.ndcg)
    if not known.any():
        return Card("NDCG of the groups", "No held-out group has a relevant row.")
    chance = shown.ndcg_by(np.zeros(len(shown.table)))
    edges = np.linspace(0, 1, 11)
    picture = go.Figure()
    for name, values, colour in (
        (MODEL_NAME, shown.ndcg, MODEL),
        ("random order, expected", chance, DATA),
    ):
        shares = np.histogram(values[known].clip(0, 1), edges)[0] / known.sum()
        picture.add_bar(
            x=(edges[1:] + edges[:-1]) / 2, y=shares, name=name, marker_color=colour,
            hovertemplate="%{x:.2f} ± 0.05: %{y:.1%}<extra>" + name + "</extra>",
        )  # fmt: skip
    picture.update_xaxes(title=f"NDCG at {CUTOFF}", range=[0, 1])
    picture.update_yaxes(title="share of the groups", tickformat=".0%")
    text = f"How NDCG at {CUTOFF} spreads over the {int(known.sum())} held-out groups that have a relevant row."
    return Card("NDCG of the groups", text, [charts.styled(picture, 300, barmode="group")])


def _examples_card(shown: _Shown) -> Card:
    """Groups evenly from the best to the worst, their lists as strips of relevance."""
    known = np.flatnonzero(~np.isnan(shown.ndcg))
    order = known[np.argsort(-shown.ndcg[known], kind="stable")]
    places = np.linspace(0, max(len(order) - 1, 0), min(_N_EXAMPLES, len(order)))
    some = order[np.unique(places.round().astype(int))]
    z = np.full((len(some), _MOST_RANKS), np.nan)
    for line, number in enumerate(some):
        listed = shown.ordered(number)["relevance"].to_numpy()[:_MOST_RANKS]
        z[line, : len(listed)] = listed
    names = [
        f"{charts.plain(charts.shortened(shown.ids[number], 18))} ({shown.ndcg[number]:.2f})" for number in some
    ]
    top = max(float(np.nanmax(z)) if np.isfinite(z).any() else 1.0, 1.0)
    picture = go.Figure(
        go.Heatmap(
            z=z, x=np.arange(1, _MOST_RANKS + 1), y=[f"{k + 1}. {name}" for k, name in enumerate(names)],
            # An irrelevant row has a tint, which tells it from the end of a list.
            colorscale=WATER, zmin=-0.03 * top, zmax=top, xgap=2, ygap=2, hoverongaps=False,
            colorbar={"title": "relevance", "thickness": 12, "tick0": 0, "dtick": max(1, round(top / 5))},
            hovertemplate="%{y}, place %{x}: relevance %{z}<extra></extra>",
        )
    )  # fmt: skip
    picture.update_xaxes(title="place in the list of the model", showgrid=False)
    picture.update_yaxes(type="category", autorange="reversed", showgrid=False)
    text = (
        f"Held-out groups from the best ordered to the worst, with NDCG at {CUTOFF}: each cell is a row of the "
        "group, the model's first choice to the left, coloured by its relevance. In a perfect order the colour "
        "fades to the right. The table has the first five of three of them."
    )
    rows = []
    for number in some[np.unique([0, len(some) // 2, len(some) - 1])] if len(some) else []:
        for _, row in shown.ordered(number).head(5).iterrows():
            cells = [f"{row['rank']:.0f}", f"{row['row']:.0f}", f"{row['relevance']:g}", f"{row['score']:.3f}"]
            rows.append([charts.shortened(shown.ids[number], 24), *cells])
    head = [shown.run.settings.group[0], "rank", "row", "relevance", "score"]
    return Card("Example groups", text, [charts.styled(picture, 120 + 24 * len(some))], head, rows)


def _worst_card(shown: _Shown) -> Card:
    known = np.flatnonzero(~np.isnan(shown.ndcg))
    worst = known[np.argsort(shown.ndcg[known], kind="stable")][:_N_WORST]
    rows = []
    for number in worst:
        listed = shown.ordered(number)
        best = listed[listed["relevance"] == listed["relevance"].max()]
        first = listed.iloc[0]
        rows.append(
            [
                charts.shortened(shown.ids[number], 24),
                f"{shown.ndcg[number]:.3f}",
                str(len(listed)),
                str(int((listed["relevance"] > 0).sum())),
                f"row {first['row']}: {first['relevance']:g}",
                f"row {best.iloc[0]['row']}: {best.iloc[0]['relevance']:g}, ranked {best.iloc[0]['rank']}",
            ]
        )
    text = (
        "The held-out groups with the lowest NDCG: the row that the model put first, and where the most relevant "
        "row went. Rows are counted from 1 at the top of the table."
    )
    head = [shown.run.settings.group[0], f"NDCG at {CUTOFF}", "rows", "relevant", "first row: relevance",
            "most relevant row"]  # fmt: skip
    return Card("Worst ordered groups", text, head=head, rows=rows)


def _relevance_card(shown: _Shown) -> Card:
    table = shown.table
    centred = table["score"] - table.groupby("number")["score"].transform("mean")
    grades = np.sort(table["relevance"].unique())
    shown_grades = grades[-_MOST_GRADES:]
    quantiles = np.array(
        [
            np.quantile(centred[table["relevance"] == grade], [0.05, 0.25, 0.5, 0.75, 0.95])
            for grade in shown_grades
        ]
    ).T
    counts = [int((table["relevance"] == grade).sum()) for grade in shown_grades]
    low, first, middle, third, high = quantiles
    picture = go.Figure(
        go.Box(
            x=[f"{grade:g} ({n})" for grade, n in zip(shown_grades, counts, strict=True)], q1=first, median=middle,
            q3=third, lowerfence=low, upperfence=high, marker_color=MODEL, showlegend=False,
        )
    )  # fmt: skip
    picture.update_xaxes(title=f"{charts.plain(shown.run.settings.target[0])} (rows)", type="category")
    picture.update_yaxes(title="score less the mean of its group")
    text = (
        "Scores of held-out rows by their relevance: the boxes hold the middle half, the whiskers nine in ten. "
        "They rise with the relevance where the model tells its grades apart."
    )
    return Card("Score by relevance", text, [charts.styled(picture, 340)])


def _scores_card(run: RankerRun) -> Card:
    scores = run.figures["scores"]
    columns = {"ndcg": f"NDCG at {CUTOFF}", "map": "average precision", "mrr": "reciprocal rank"}
    rows, notes = [], []
    for name, entry in scores.items():
        rows.append([name, with_error(entry["ndcg"], entry["ndcg_error"]), _as_text(entry["map"]),
                     _as_text(entry["mrr"])])  # fmt: skip
        if name != MODEL_NAME and entry["ndcg_gain"] is not None:
            word = "above" if entry["ndcg_gain"] >= 0 else "below"
            gain = with_error(abs(entry["ndcg_gain"]), entry["ndcg_gain_error"])
            notes.append(
                f"On the same groups, NDCG at {CUTOFF} of {MODEL_NAME} is {gain} {word} that of “{name}”."
            )
    best = {(_place_of_most([entry[key] for entry in scores.values()]), k + 1) for k, key in enumerate(columns)}
    n_groups = scores[MODEL_NAME]["n_groups"]
    text = (
        f"The model and the baselines, means over the {n_groups} held-out groups that have a relevant row; higher "
        "is better in all columns. Rows of equal score count as the mean over their orders."
    )
    return Card("Figures", text, head=["model", *columns.values()], rows=rows, best=best, notes=notes)


def _place_of_most(values: list[float | None]) -> int:
    return int(np.argmax([-np.inf if v is None else v for v in values]))


def _making_card(run: RankerRun) -> Card:
    rows: list[Any] = [[name, value] for name, value in run.summary().items()]
    return Card("How it was made", "The model and its training.", head=["", ""], rows=rows, notes=run.remarks())
