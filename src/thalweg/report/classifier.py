"""The report of a classifier's run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from thalweg.evaluation.calibration import reliability
from thalweg.report import charts
from thalweg.report.grids import in_words, input_rows, plain_columns
from thalweg.report.images import in_columns, wall
from thalweg.report.labels import add_reliability, class_counts, confusion_card, ideal_reliability
from thalweg.report.page import Card, Tile, checks_of, footer_of, render_page
from thalweg.report.theme import DATA, MODEL, TRUTH
from thalweg.report.words import duration, figure, gain_in_words, place_of_least
from thalweg.runs.base import MODEL_NAME
from thalweg.runs.classifier import MOST_SHOWN, ClassifierRun, others_of
from thalweg.runs.labels import as_written

_N_WORST = 10
_MOST_COLUMNS = 3


def report(run: ClassifierRun) -> str:
    """The report of a finished run as one HTML page."""
    shown = _Shown(run)
    cards = [
        _data_card(run),
        _training_card(run),
        confusion_card(shown.truth, shown.best, run.classes, "rows"),
        _calibration_card(shown),
    ]
    cards += [_typicality_card(shown), _least_typical_card(shown), _mistakes_card(shown), _samples_card(run)]
    if run.figures["robustness"]:
        cards.append(_robustness_card(run))
    cards += [_scores_card(run), _making_card(run)]
    name = run.settings.target[0] if run.settings.target else "Classes"
    title = f"{name} from {run.figures['data']}"
    subtitle = "Classes and how typical an input is, by an energy-based model"
    return render_page(title, subtitle, _tiles(run), cards, footer_of(run), checks_of(run))


class _Shown:
    """The held-out rows that the page shows, and what the model says of them."""

    def __init__(self, run: ClassifierRun):
        self.run = run
        if run.is_of_images:
            test = run.data.test[:MOST_SHOWN]
            self.X, self.truth = run.data.X[test], run.data.labels[test]
            files = run.data.images.files
            self.names = [str(i + 1) if files is None else files[i] for i in test]
        else:
            assert run.test_rows is not None
            rows = run.test_rows.iloc[:MOST_SHOWN].reset_index(drop=True)
            target = run.settings.target[0]
            place = {name: k for k, name in enumerate(run.classes)}
            self.truth = as_written(rows[target]).map(place).to_numpy()
            self.X = rows.drop(columns=target)
            self.names = [str(i + 1) for i in run.figures["test_places"]]
        self.probabilities = run.model.predict_proba(self.X)
        self.typicality = run.model.typicality(self.X)

    @property
    def best(self) -> np.ndarray:
        return self.probabilities.argmax(1)


def _tiles(run: ClassifierRun) -> list[Tile]:
    figures, ours = run.figures, run.figures["scores"][MODEL_NAME]
    what = "images" if run.is_of_images else "rows"
    unlabelled = f", {figures['unlabelled_rows']:,} without a label" if figures["unlabelled_rows"] else ""
    return [
        Tile(what, f"{figures['rows']:,}", f"of which {figures['test_rows']:,} for testing{unlabelled}"),
        Tile("classes", str(len(run.classes)), f"{min(figures['class_counts']):,} rows at least"),
        Tile("accuracy", f"{100 * ours['accuracy']:.1f} %", f"± {100 * ours['accuracy_error']:.1f} points"),
        Tile("log loss", figure(ours["nll"], "log loss", ".3f"), f"± {ours['nll_error'] or 0:.3f} nats"),
        Tile("calibration error", f"{ours['ece']:.3f}", "expected, 10 bins"),
        Tile("training", duration(figures["seconds"]["training"]), f"{len(run.model.history_.epochs)} epochs"),
    ]


def _data_card(run: ClassifierRun) -> Card:
    names = run.classes
    bars, text = class_counts(names, run.figures["class_counts"], "training rows")
    pictures = [bars]
    if run.is_of_images:
        images = run.data
        some = in_columns(images.X[images.training], images.labels[images.training], min(len(names), 12), 3)
        pictures.append(wall(some, min(len(names), 12)))
        text += " Below are training images, a column for each class."
        return Card("The data", text, pictures)
    kinds = {name: run.figures["kinds"][name] for name in run.figures["inputs"]}
    rows = input_rows(run.training_rows, kinds)
    return Card("The data", text, pictures, ["input", "kind", "gaps", "range"], rows, folded=len(rows) > 20)


def _training_card(run: ClassifierRun) -> Card:
    history = run.model.history_
    epochs = [e["epoch"] for e in history.epochs]
    lines: dict[str, Any] = {}
    if run.model.objective_name == "cross-entropy":
        # The loss of an ensemble is the sum over its members.
        lines["training rows"] = [e["loss"] / run.model.n_networks_ for e in history.epochs]
    marked = None
    if history.epochs and "validation" in history.epochs[0]:
        lines["held-out rows"] = [e.get("validation", np.nan) for e in history.epochs]
        marked = (epochs[int(np.nanargmin(lines["held-out rows"]))], "best")
    text = (
        "The log loss after each epoch, on the rows that the networks learn from and on held-out rows. Each "
        f"network keeps the weights of its own best epoch. The training ended: {history.stopped}."
    )
    return Card(
        "Training", text, [charts.curves(epochs, lines, ("epoch", "log loss, nats"), marked)], notes=history.events
    )


def _calibration_card(shown: _Shown) -> Card:
    run = shown.run
    value = run.figures["temperature"]
    picture = ideal_reliability()
    if value != 1:
        raw = _without_temperature(run, shown.X)
        add_reliability(picture, reliability(raw, shown.truth), "before scaling", DATA)
    add_reliability(
        picture, reliability(shown.probabilities, shown.truth),
        "model" if value == 1 else f"after scaling by {value:.3g}", MODEL,
    )  # fmt: skip
    text = (
        "Whether the probabilities mean what they say: of predictions made with 80 %, 80 % should be right. The "
        "bars are one standard error; held-out rows."
    )
    gain = run.figures["temperature_gain"]
    if gain is not None and value == 1:
        text += " No temperature is applied: it did not lower the loss of held-out folds."
    elif gain is not None:
        text += f" The temperature lowered the loss of held-out folds by {gain:.4f} nats."
    return Card("Calibration", text, [charts.styled(picture, 400)])


def _without_temperature(run: ClassifierRun, X: Any) -> np.ndarray:
    """The probabilities that the model would give at temperature 1."""
    return run.model.at_temperature(value=1.0).predict_proba(X)


def _typicality_card(shown: _Shown) -> Card:
    run = shown.run
    others = others_of(shown.X, np.random.RandomState(run.settings.seed))
    kinds = {"held out": shown.typicality, **{k: run.model.typicality(rows) for k, rows in others.items()}}
    picture = go.Figure()
    edges = _edges(np.concatenate(list(kinds.values())))
    colours = [MODEL, TRUTH, DATA, "#8d99ae", "#6a9f58", "#b07aa1"]
    for (name, values), colour in zip(kinds.items(), colours, strict=False):
        shares = np.histogram(values.clip(edges[0], edges[-1]), edges)[0] / len(values)
        picture.add_bar(
            x=(edges[1:] + edges[:-1]) / 2, y=shares, name=name, marker_color=colour, opacity=0.7,
            hovertemplate="%{x:.4g}: %{y:.1%}<extra>" + name + "</extra>",
        )  # fmt: skip
    unit = "log p(x), nats" if run.figures["normalised"] else "log p(x), up to a constant"
    picture.update_xaxes(title=f"{unit} (the outermost bars hold all values beyond)")
    picture.update_yaxes(title="share of the rows", tickformat=".0%")
    text = (
        "How typical held-out inputs are for the model, and inputs of other kinds; the farther to the left, the "
        "odder. The table has the AUROC: the chance that a held-out input is more typical than another."
    )
    rows = [[kind, f"{value:.3f}"] for kind, value in run.figures["detection"].items()]
    return Card(
        "Inside and outside", text, [charts.styled(picture, 340, barmode="overlay")], ["inputs", "AUROC"], rows
    )


def _edges(values: np.ndarray) -> np.ndarray:
    low, high = np.quantile(values, [0.02, 0.995])
    return np.linspace(low, max(high, low + 1e-6), 41)


def _least_typical_card(shown: _Shown) -> Card:
    run = shown.run
    worst = np.argsort(shown.typicality, kind="stable")[:_N_WORST]
    unit = "log p(x)"
    if run.is_of_images:
        text = "The held-out images that are least typical, the oddest first."
        rows = [_line(shown, i, unit) for i in worst]
        head = ["image", unit, "truth", "predicted", "probability"]
        return Card("Least typical images", text, [wall(shown.X[worst], _N_WORST)], head, rows)
    cells = run.model.explain_typicality(shown.X.iloc[worst].reset_index(drop=True))
    table = plain_columns(shown.X)
    rows = []
    for place, i in enumerate(worst):
        odd = cells.iloc[place].sort_values()
        named = [
            f"{name} = {charts.shortened(in_words(table[name].iloc[i]), 18)} ({value:.1f})"
            for name, value in odd.items()
            if value < -1 and not pd.isna(table[name].iloc[i])
        ][:_MOST_COLUMNS]
        rows.append([*_line(shown, i, unit), "; ".join(named) or "no single cell"])
    text = (
        "The held-out rows that are least typical, with the cells that make them so: in brackets the log "
        "probability of the cell given the others of its row. Rows are counted from 1 at the top of the table."
    )
    head = ["row", unit, "truth", "predicted", "probability", "odd cells"]
    return Card("Least typical rows", text, head=head, rows=rows)


def _line(shown: _Shown, i: int, unit: str) -> list[str]:
    names = shown.run.classes
    best = int(shown.best[i])
    return [
        shown.names[i],
        f"{shown.typicality[i]:.1f}",
        charts.shortened(names[shown.truth[i]], 18),
        charts.shortened(names[best], 18),
        f"{100 * shown.probabilities[i, best]:.1f} %",
    ]


def _mistakes_card(shown: _Shown) -> Card:
    own = shown.probabilities[np.arange(len(shown.truth)), shown.truth]
    wrong = np.flatnonzero(shown.best != shown.truth)
    worst = wrong[np.argsort(own[wrong], kind="stable")][:_N_WORST]
    text = (
        "The held-out rows whose true class the model found least probable: wrong labels, or cases that it does "
        "not understand."
    )
    if not len(worst):
        return Card("Mistakes", "There is none: all held-out rows are classified right.")
    head = ["image" if shown.run.is_of_images else "row", "log p(x)", "truth", "predicted", "probability"]
    rows = [_line(shown, i, "log p(x)") for i in worst]
    pictures = [wall(shown.X[worst], _N_WORST)] if shown.run.is_of_images else []
    return Card("Mistakes", text, pictures, head, rows)


def _samples_card(run: ClassifierRun) -> Card:
    names = run.classes[:12]
    if run.is_of_images:
        drawn = [run.sample(3, seed=run.settings.seed, label=name) for name in names]
        text = "Images that the model draws, a column for each class."
        if run.figures["normalised"]:
            text += " They come from the kernel density, and so lie near training images."
        return Card("Samples", text, [wall(np.stack(drawn, 1).reshape(-1, *drawn[0].shape[1:]), len(names))])
    columns = run.figures["inputs"][:8]
    rows = []
    for name in names:
        drawn = run.sample(2, seed=run.settings.seed, label=name)
        table = plain_columns(drawn)
        rows += [
            [name, *(charts.shortened(in_words(table[c].iloc[i]), 18) for c in columns)] for i in range(len(table))
        ]
    text = "Two rows that the model draws for each class. They come from the kernel density, near training rows."
    if len(columns) < len(run.figures["inputs"]):
        text += f" The first {len(columns)} inputs are shown."
    return Card("Samples", text, head=["class", *columns], rows=rows)


def _robustness_card(run: ClassifierRun) -> Card:
    found = run.figures["robustness"]
    picture = go.Figure()
    names = {
        "worst": "all attacks",
        "gradient": "gradient",
        "gradient_free": "gradient-free",
        "transfer": "transfer",
    }
    for (key, name), colour in zip(names.items(), [TRUTH, MODEL, DATA, "#8d99ae"], strict=True):
        picture.add_scatter(
            x=found["radii"], y=found[key], mode="lines+markers", name=name,
            line={"color": colour, "width": 2.6 if key == "worst" else 1.6},
            hovertemplate="%{x:g}: %{y:.1%}<extra>" + name + "</extra>",
        )  # fmt: skip
    picture.update_xaxes(title="largest change of a pixel, of the range from black to white")
    picture.update_yaxes(title="accuracy", tickformat=".0%", range=[0, 1.02])
    text = (
        f"Accuracy on {found['n_rows']} held-out images that were changed to mislead the model: along its "
        "gradient, by a search without gradients, and by changes that mislead a logistic regression."
    )
    return Card("Under attack", text, [charts.styled(picture, 360)], notes=found["doubts"])


def _scores_card(run: ClassifierRun) -> Card:
    scores = run.figures["scores"]
    columns = {"nll": "log loss, nats", "accuracy": "accuracy", "ece": "calibration error", "brier": "Brier score"}
    rows, best = [], set()
    for name, entry in scores.items():
        error = "" if entry["nll_error"] is None else f" ± {entry['nll_error']:.3f}"
        cells = [
            f"{figure(entry['nll'], 'log loss', '.4f')}{error}",
            f"{100 * entry['accuracy']:.1f} % ± {100 * entry['accuracy_error']:.1f}",
            f"{entry['ece']:.3f}",
            f"{entry['brier']:.3f}",
        ]
        rows.append([name, *cells])
    for column, key in enumerate(columns):
        values = [-entry[key] if key == "accuracy" else entry[key] for entry in scores.values()]
        best.add((place_of_least(values), column + 1))
    notes = [gain_in_words("the labels are", name, entry) for name, entry in scores.items() if "nll_gain" in entry]
    text = "The model and two baselines on the held-out rows; lower is better in all columns but the accuracy."
    return Card("Figures", text, head=["model", *columns.values()], rows=rows, best=best, notes=notes)


def _making_card(run: ClassifierRun) -> Card:
    rows = [[name, value] for name, value in run.summary().items()]
    return Card("How it was made", "The model and its training.", head=["", ""], rows=rows, notes=run.remarks())
