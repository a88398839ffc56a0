"""The report of a run on labelled sequences."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from thalweg.energies.factors.chain import UNKNOWN
from thalweg.evaluation.calibration import reliability
from thalweg.report import charts
from thalweg.report.grids import input_rows
from thalweg.report.labels import add_reliability, class_counts, confusion_card, ideal_reliability
from thalweg.report.page import Card, Tile, checks_of, footer_of, render_page
from thalweg.report.theme import DATA, INK, MODEL, WATER
from thalweg.report.words import duration, figure, gain_in_words, place_of_least
from thalweg.runs.base import MODEL_NAME
from thalweg.runs.labels import as_written
from thalweg.runs.sequence import SequenceRun, in_order_of

_MOST_SHOWN = 2000
_MOST_BARS = 6
_MOST_LABELS = 40
_N_MISTAKES = 12
_CONTEXT = 3


def report(run: SequenceRun) -> str:
    """The report of a finished run as one HTML page."""
    shown = _Shown(run)
    known = shown.truth != UNKNOWN
    cards = [
        _data_card(run),
        _training_card(run),
        confusion_card(shown.truth[known], shown.predicted[known], run.classes, "elements"),
        _transitions_card(run),
        _mistakes_card(shown),
        _calibration_card(shown),
        _lengths_card(shown),
        _scores_card(run),
        _making_card(run),
    ]
    title = f"{run.figures['target']} in {run.figures['data']}"
    subtitle = "Labels of sequences, by an energy-based model of whole sequences"
    return render_page(title, subtitle, _tiles(run), cards, footer_of(run), checks_of(run))


class _Shown:
    """Held-out sequences, and what the model says of their elements, one after the other."""

    def __init__(self, run: SequenceRun):
        self.run = run
        assert run.test_rows is not None
        table = run.test_rows.reset_index(drop=True)
        names = table[run.figures["sequence"]].astype(str)
        codes, self.names = pd.factorize(names)
        rows = [np.flatnonzero(codes == i) for i in range(min(len(self.names), _MOST_SHOWN))]
        self.X = [table.iloc[own][run.figures["inputs"]].reset_index(drop=True) for own in rows]
        place = {name: k for k, name in enumerate(run.classes)}
        written = as_written(table[run.figures["target"]])
        truth = written.map(place).fillna(UNKNOWN).to_numpy(int)
        self.lengths = np.array([len(own) for own in rows])
        self.truth = np.concatenate([truth[own] for own in rows])
        self.predicted = np.array([place[label] for label in np.concatenate(run.model.predict(self.X))])
        self.probabilities = self._marginals(run.model)

    def _marginals(self, model: Any) -> np.ndarray:
        return in_order_of(model, self.run.classes, np.concatenate(model.predict_marginals(self.X)))

    def without_temperature(self) -> np.ndarray:
        """The probabilities that the model would give at temperature 1."""
        return self._marginals(self.run.model.at_temperature(value=1.0))

    @property
    def context(self) -> str | None:
        """The first input, if it holds texts, as words do: it stands for an element among its neighbours."""
        figures = self.run.figures
        first = figures["inputs"][0]
        return first if figures["kinds"][first] == "text" else None

    def cell(self, sequence: int, element: int) -> str:
        """What stands for an element among its neighbours: its text, or its true label where it has none."""
        if self.context is not None:
            return charts.shortened(str(self.X[sequence][self.context].iloc[element]), 16)
        label = self.truth[self.lengths[:sequence].sum() + element]
        return "?" if label == UNKNOWN else charts.shortened(self.run.classes[label], 16)


def _tiles(run: SequenceRun) -> list[Tile]:
    figures, ours = run.figures, run.figures["scores"][MODEL_NAME]
    spans = [Tile("spans", f"{ours['span_f1']:.3f}", "F1 of whole spans")] if figures["spans"] else []
    return [
        Tile("sequences", f"{figures['sequences']:,}", f"of which {figures['test_sequences']:,} for testing"),
        Tile("elements", f"{figures['rows']:,}", f"{figures['rows'] / figures['sequences']:.1f} in a sequence"),
        Tile("labels right", f"{100 * ours['accuracy']:.1f} %", f"± {100 * ours['accuracy_error']:.1f} points"),
        Tile("sequences right", f"{100 * ours['sequence_accuracy']:.1f} %", "with all their labels"),
        *spans,
        Tile("log loss", figure(ours["nll"], "log loss", ".3f"), f"± {ours['nll_error']:.3f} nats an element"),
        Tile("training", duration(figures["seconds"]["training"]), f"{len(run.model.history_.epochs)} epochs"),
    ]


def _data_card(run: SequenceRun) -> Card:
    bars, text = class_counts(run.classes, run.figures["class_counts"], "training elements")
    kinds = {
        name: "tokens" if name in run.model.encoder_.tokens else run.figures["kinds"][name]
        for name in run.figures["inputs"]
    }
    rows = input_rows(run.training_rows, kinds)
    return Card("The data", text, [bars], ["input", "kind", "gaps", "range"], rows, folded=len(rows) > 20)


def _training_card(run: SequenceRun) -> Card:
    history = run.model.history_
    epochs = [e["epoch"] for e in history.epochs]
    by_errors = run.settings.objective not in ("likelihood", "mee")
    figures = [e.get("validation", np.nan) for e in history.epochs]
    marked = (epochs[int(np.nanargmin(figures))], "best") if np.isfinite(figures).any() else None
    unit = "share of wrong labels" if by_errors else "-log p of an element, nats"
    text = (
        f"How the model fares after each epoch on sequences that it does not learn from: {unit}. The weights of "
        f"the best epoch are kept. The training ended: {history.stopped}."
    )
    picture = charts.curves(epochs, {"held-out sequences": figures}, ("epoch", unit), marked)
    return Card("Training", text, [picture], notes=history.events)


def _transitions_card(run: SequenceRun) -> Card:
    table = run.model.transitions_
    classes = [str(name) for name in run.model.classes_]
    counts = dict(zip(run.classes, run.figures["class_counts"], strict=True))
    order = np.argsort([-counts[name] for name in classes], kind="stable")[:_MOST_LABELS]
    order = np.sort(order)
    finite = table[np.isfinite(table)]
    shown = np.where(np.isfinite(table), table, np.nan)[np.ix_(order, order)]
    names = [charts.plain(charts.shortened(classes[k], 16)) for k in order]
    reach = float(np.abs(finite).max()) if len(finite) else 1.0
    picture = go.Figure(
        go.Heatmap(
            z=shown, x=names, y=names, colorscale=WATER, reversescale=True, zmin=-reach, zmax=reach,
            hoverongaps=False,
            colorbar={"title": "energy", "thickness": 12},
            hovertemplate="%{y}, then %{x}: energy %{z:.2f}<extra></extra>",
        )
    )  # fmt: skip
    if not np.isfinite(table).all():
        rows, columns = np.nonzero(np.isnan(shown))
        picture.add_scatter(
            x=[names[k] for k in columns], y=[names[k] for k in rows], mode="markers", showlegend=False,
            marker={"symbol": "x-thin", "size": 7, "line": {"width": 1, "color": INK}},
            hovertemplate="%{x} never follows %{y}<extra></extra>",
        )  # fmt: skip
    picture.update_xaxes(title="next label", type="category", showgrid=False)
    picture.update_yaxes(title="label", type="category", autorange="reversed", showgrid=False)
    text = (
        "The energy of each label after each: the lower (the darker), the more the model expects it, beyond what "
        "the elements themselves say."
    )
    if not np.isfinite(table).all():
        text += " Those with a cross are forbidden."
    if run.model.order == 2:
        text += " The terms of three labels in a row come on top of them."
    return Card("Transitions", text, [charts.styled(picture, int(np.clip(140 + 30 * len(order), 320, 820)))])


def _mistakes_card(shown: _Shown) -> Card:
    names = shown.run.classes
    places = np.arange(len(shown.truth))
    own = shown.probabilities[places, shown.truth]
    wrong = np.flatnonzero((shown.predicted != shown.truth) & (shown.truth != UNKNOWN))
    if not len(wrong):
        return Card("Mistakes", "There is none: all held-out labels are right.")
    worst = wrong[np.argsort(own[wrong], kind="stable")][:_N_MISTAKES]
    starts = np.concatenate([[0], np.cumsum(shown.lengths)])
    rows = []
    for i in worst:
        s = int(np.searchsorted(starts, i, side="right")) - 1
        t, n = int(i - starts[s]), int(shown.lengths[s])
        around = range(max(0, t - _CONTEXT), min(n, t + _CONTEXT + 1))
        context = " ".join(f"[{shown.cell(s, u)}]" if u == t else shown.cell(s, u) for u in around)
        left, right = "… " if around.start > 0 else "", " …" if around.stop < n else ""
        rows.append(
            [
                charts.shortened(str(shown.names[s]), 16),
                str(t + 1),
                f"{left}{context}{right}",
                charts.shortened(names[shown.truth[i]], 16),
                charts.shortened(names[shown.predicted[i]], 16),
                f"{100 * own[i]:.2g} %",
            ]
        )
    what = "the true labels" if shown.context is None else f"the input {shown.context!r}"
    text = (
        "The held-out elements whose true label the model found least probable: wrong labels, or cases that it "
        f"does not understand. An element stands in brackets among its neighbours: {what} of all of them."
    )
    head = ["sequence", "element", "in context", "truth", "predicted", "p(truth)"]
    return Card("Mistakes in context", text, head=head, rows=rows)


def _calibration_card(shown: _Shown) -> Card:
    known = shown.truth != UNKNOWN
    value = shown.run.figures["temperature"]
    picture = ideal_reliability()
    if value != 1:
        raw = shown.without_temperature()
        add_reliability(picture, reliability(raw[known], shown.truth[known]), "before scaling", DATA)
    found = reliability(shown.probabilities[known], shown.truth[known])
    add_reliability(picture, found, "model" if value == 1 else f"after scaling by {value:.3g}", MODEL)
    text = (
        "Whether the probabilities of single labels mean what they say: of labels given with 80 %, 80 % should be "
        "right. The bars are one standard error; held-out elements."
    )
    gain = shown.run.figures["temperature_gain"]
    if gain is not None and value != 1:
        text += f" The temperature lowered the loss of held-out sequences by {gain:.4f} nats an element."
    return Card("Calibration", text, [charts.styled(picture, 400)])


def _lengths_card(shown: _Shown) -> Card:
    known = shown.truth != UNKNOWN
    right = np.split((shown.predicted == shown.truth) & known, np.cumsum(shown.lengths)[:-1])
    counted = np.split(known, np.cumsum(shown.lengths)[:-1])
    edges = np.unique(shown.lengths)
    if len(edges) > _MOST_BARS:
        edges = np.unique(np.quantile(shown.lengths, np.linspace(0, 1, _MOST_BARS + 1)).round().astype(int))[:-1]
    edges = np.append(edges, shown.lengths.max() + 1)
    x, y, errors, n = [], [], [], []
    for low, high in itertools.pairwise(edges):
        chosen = np.flatnonzero((shown.lengths >= low) & (shown.lengths < high))
        total = sum(int(counted[i].sum()) for i in chosen)
        if total:
            share = sum(int(right[i].sum()) for i in chosen) / total
            x.append(str(low) if high == low + 1 else f"{low} to {high - 1}")
            y.append(share)
            errors.append(float(np.sqrt(share * (1 - share) / total)))
            n.append(len(chosen))
    picture = go.Figure(
        go.Bar(
            x=x, y=y, error_y={"array": errors}, customdata=n, marker_color=MODEL,
            hovertemplate="%{x} elements: %{y:.1%} of labels right, %{customdata} sequences<extra></extra>",
        )
    )  # fmt: skip
    picture.update_xaxes(title="elements in the sequence", type="category")
    picture.update_yaxes(title="labels right", tickformat=".0%", range=[0, 1.05])
    return Card("By length", "The share of right labels in short and in long held-out sequences.",
                [charts.styled(picture, 300)])  # fmt: skip


def _scores_card(run: SequenceRun) -> Card:
    scores = run.figures["scores"]
    columns = {"accuracy": "labels right", "sequence_accuracy": "sequences right"}
    columns |= {"span_f1": "spans, F1"} if run.figures["spans"] else {}
    columns |= {"nll": "log loss, nats", "ece": "calibration error"}
    rows, best = [], set()
    for name, entry in scores.items():
        cells = {
            "accuracy": f"{100 * entry['accuracy']:.1f} % ± {100 * entry['accuracy_error']:.1f}",
            "sequence_accuracy": f"{100 * entry['sequence_accuracy']:.1f} %",
            "span_f1": f"{entry.get('span_f1', 0):.3f}",
            "nll": f"{figure(entry['nll'], 'log loss', '.4f')} ± {entry['nll_error']:.3f}",
            "ece": f"{entry['ece']:.3f}",
        }
        rows.append([name, *(cells[key] for key in columns)])
    for place, key in enumerate(columns):
        sign = 1 if key in ("nll", "ece") else -1
        best.add((place_of_least([sign * entry[key] for entry in scores.values()]), place + 1))
    notes = [gain_in_words("the labels are", name, entry) for name, entry in scores.items() if "nll_gain" in entry]
    text = (
        "The model and two baselines on the held-out sequences. The first baseline sees each element alone; the "
        "second one also knows how often each label follows each."
    )
    return Card("Figures", text, head=["model", *columns.values()], rows=rows, best=best, notes=notes)


def _making_card(run: SequenceRun) -> Card:
    rows = [[name, value] for name, value in run.summary().items()]
    return Card("How it was made", "The model and its training.", head=["", ""], rows=rows, notes=run.remarks())
