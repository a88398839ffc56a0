"""The report of a run of a Boltzmann machine, restricted or deep."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from thalweg.recipes.boltzmann_images import energies_matrix
from thalweg.report import charts, density_charts
from thalweg.report.images import wall
from thalweg.report.page import Card, Tile, checks_of, footer_of, render_page
from thalweg.runs.base import MODEL_NAME
from thalweg.runs.boltzmann import INDEPENDENT, NAMES, BoltzmannRun
from thalweg.runs.states import Rows

_MOST_FILTERS = 100
_MOST_COLUMNS = 60
_MOST_MARGINALS = 12
_ADJECTIVES = {"binary": "binary", "gaussian": "Gaussian", "categorical": "categorical", "mixed": "mixed"}


def report(run: BoltzmannRun) -> str:
    """The report of a finished run as one HTML page.

    Raises:
        ValueError: if the data that the run was made with are gone, or others.
    """
    rows = run.data
    cards = [_filters(run), _reconstructions(run, rows), _draws(run, rows), _training(run)]
    cards += [_energies(run, rows), *_classes(run), _scores(run)]
    figures = run.figures
    subtitle = (
        f"A {NAMES[run.settings.kind]} with {_ADJECTIVES[figures['visible']]} visible and binary hidden units"
    )
    return render_page(
        f"A Boltzmann machine of {figures['data']}", subtitle, _tiles(run), cards, footer_of(run), checks_of(run)
    )


def _tiles(run: BoltzmannRun) -> list[Tile]:
    figures = run.figures
    ours, alone = figures["scores"][MODEL_NAME], figures["scores"][INDEPENDENT]
    off = figures["log_normaliser_error"]
    size = " x ".join(map(str, run.shape[1:])) if run.shape else str(len(run.columns))
    return [
        Tile("images" if run.shape else "rows", f"{figures['training_rows']:,}",
             f"and {figures['test_rows']:,} held out"),
        Tile("pixels" if run.shape else "columns", size, f"{_ADJECTIVES[figures['visible']]} units"),
        Tile("hidden", " + ".join(map(str, figures["hidden"])), "binary units"),
        Tile("test log-likelihood" + ("" if run.settings.kind == "restricted" else ", a bound"),
             f"{ours['log_likelihood']:.3f}",
             f"nats; independent columns {alone['log_likelihood']:.3f}"),
        Tile("normalised", f"± {off:.2g}" if off else "exactly",
             "nats: an error that all log p share" if off else "the probabilities sum to one"),
        Tile("training", f"{figures['seconds']['training']:.1f} s",
             f"{sum(len(h.epochs) for h in run.histories.values())} epochs"),
    ]  # fmt: skip


def _filters(run: BoltzmannRun) -> Card:
    weights = run.model.components_
    # The hidden units that do most, first.
    order = np.argsort(-np.abs(weights).sum(1), kind="stable")
    weights = weights[order]
    most = float(np.quantile(np.abs(weights), 0.995)) or 1.0
    if run.shape is not None:
        shown = weights[:_MOST_FILTERS]
        pictures = 0.5 + 0.5 * (shown / most).clip(-1, 1)
        picture = wall(pictures.reshape(-1, *run.shape), min(20, len(shown)))
        text = f"The weights of each hidden unit{_first(run)}, as an image: white raises a pixel, black lowers it."
        if len(shown) < len(weights):
            text += f" The {len(shown)} of {len(weights)} units with the largest weights."
        return Card("Filters", text, [picture])
    possible = ~run.model.encoder_.impossible()
    names = [n for n, shown in zip(_state_names(run), possible, strict=True) if shown][:_MOST_COLUMNS]
    weights = weights[:, possible]
    figure = go.Figure(
        go.Heatmap(
            z=weights[:_MOST_FILTERS, : len(names)].T, y=[charts.plain(n) for n in names], zmin=-most, zmax=most,
            colorscale="RdBu", hovertemplate="%{y}, hidden unit %{x}: %{z:.2f}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title="hidden unit, by the size of its weights")
    figure.update_yaxes(autorange="reversed")
    text = (
        f"The weight of every column to every hidden unit{_first(run)}: columns with large weights to the same "
        "unit are correlated."
    )
    if len(names) < weights.shape[1]:
        text += f" The first {len(names)} of {weights.shape[1]}."
    return Card("Weights", text, [charts.styled(figure, 120 + 18 * len(names))])


def _first(run: BoltzmannRun) -> str:
    return "" if run.settings.kind == "restricted" else " of the first layer"


def _state_names(run: BoltzmannRun) -> list[str]:
    """What each number of a visible state is."""
    encoder = run.model.encoder_
    names = [""] * encoder.width
    for column, place, known in zip(run.columns, encoder.places, encoder.categories, strict=True):
        if not known:
            names[place[0]] = column
        for k, value in zip(place, known, strict=False):
            names[k] = f"{column} = {value:g}" if isinstance(value, float) else f"{column} = {value}"
    return names


def _reconstructions(run: BoltzmannRun, rows: Rows) -> Card:
    if run.shape is not None:
        test = rows.test[:20]
        back = run.model.reconstruct(test).clip(0, 1)
        pictures = np.concatenate([test.to_numpy(), back]).reshape(-1, *run.shape)
        text = (
            "Held-out images (above) and their reconstructions (below), after one step up to the hidden units "
            "and one step down."
        )
        return Card("Reconstructions", text, [wall(pictures, len(test))])
    states = run.model.encoder_.encode(rows.test.to_numpy())
    training = run.model.encoder_.encode(rows.training.to_numpy())
    back = run.model.reconstruct(rows.test, encoded=True)
    places = run.model.encoder_.places[:_MOST_MARGINALS]
    spread = training.var(0)

    def by_column(guess: np.ndarray) -> list[float]:
        squared = np.square(guess - states).mean(0)
        return [float(np.sqrt(squared[place].sum() / spread[place].sum())) for place in places]

    errors = {MODEL_NAME: by_column(back), "the mean": by_column(training.mean(0))}
    text = (
        "The error of reconstructing each column of the held-out rows, after one step up to the hidden units and "
        "one step down, beside the error of always predicting its mean. Both are in standard deviations of the "
        "column. A small error does not imply a good density."
    )
    names = run.columns[:_MOST_MARGINALS]
    if len(names) < len(run.columns):
        text += f" The first {len(names)} of {len(run.columns)} columns."
    return Card("Reconstructions", text, [density_charts.errors_by_column(names, errors)])


def _draws(run: BoltzmannRun, rows: Rows) -> Card:
    if run.shape is not None:
        fantasies = run.model.sample(80, random_state=0).clip(0, 1).reshape(-1, *run.shape)
        training = rows.training.to_numpy()[:40].reshape(-1, *run.shape)
        made = "were annealed from independent pixels to the machine"
        if run.settings.kind != "restricted":
            made = "ran for 1,000 sweeps"
        text = f"Draws from the machine (above), by chains that {made}; and training images (below)."
        return Card("Fantasies", text, [wall(fantasies, 20), wall(training, 20)])
    draws = pd.DataFrame(run.model.sample(3000, random_state=0), columns=run.columns)
    text = "The distribution of each column in the training rows and in 3,000 draws from the machine."
    encoder = run.model.encoder_
    of_kind = {
        kind: [run.columns[k] for k in encoder.columns(kind)]
        for kind in ("binary", "one-hot", "categorical", "gaussian")
    }
    bits, one_hot, texts, reals = of_kind.values()
    bits = [name for name in run.columns if name in {*bits, *one_hot}]
    if len(run.columns) > _MOST_MARGINALS:
        text += f" Only the first {_MOST_MARGINALS} columns of categories, and of numbers, are shown."
    head = ["column", "value", "share of the rows", "share of the draws"] if texts else []
    table = [
        [name, str(value), f"{share:.1%}", f"{(draws[name] == value).mean():.1%}"]
        for name in texts[:_MOST_MARGINALS]
        for value, share in rows.training[name].value_counts(normalize=True).items()
    ]
    pictures = []
    if bits:
        text += " One chart compares the share of ones in each column: on the dotted line they agree."
        means = {"training rows": rows.training[bits], "draws": draws[bits]}
        shares = {k: t.to_numpy(float).mean(0) for k, t in means.items()}
        pictures.append(_dots(shares, "share of ones", [0.0, 1.0]))
    if reals:
        shown = reals[:_MOST_MARGINALS]
        data, drawn = (t[shown].to_numpy(dtype=float) for t in (rows.training, draws))
        resolution = encoder.resolution[encoder.columns("gaussian")][: len(shown)].tolist()
        pictures.append(density_charts.marginals(data, drawn, shown, resolution))
    if bits or reals:
        text += " The last chart compares the correlations of all pairs of columns."
        numbers = [rows.training[bits + reals], draws[bits + reals]]
        pictures.append(_dots(_correlated(*numbers), "correlation of pairs", [-1.0, 1.0]))
    return Card("The data and the draws", text, pictures, head=head, rows=table, folded=len(table) > 24)


def _correlated(data: pd.DataFrame, draws: pd.DataFrame) -> dict[str, np.ndarray]:
    pairs = np.triu_indices(min(data.shape[1], _MOST_COLUMNS), 1)
    found = {}
    for name, table in (("training rows", data), ("draws", draws)):
        values = table.iloc[:, :_MOST_COLUMNS].to_numpy(dtype=float)
        with np.errstate(invalid="ignore", divide="ignore"):
            found[name] = np.nan_to_num(np.atleast_2d(np.corrcoef(values.T)))[pairs]
    return found


def _dots(values: dict[str, np.ndarray], what: str, ends: list[float]) -> go.Figure:
    """One against the other, with the diagonal from end to end."""
    (x_name, x), (y_name, y) = values.items()
    figure = go.Figure()
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": charts.INK, "dash": "dot", "width": 1.5})
    figure.add_scatter(x=x, y=y, mode="markers", marker={"color": charts.MODEL, "size": 6, "opacity": 0.6})
    figure.update_xaxes(title=f"{what}: {x_name}")
    figure.update_yaxes(title=y_name)
    return charts.styled(figure, 320, showlegend=False)


def _training(run: BoltzmannRun) -> Card:
    if run.settings.kind != "restricted":
        return _stages(run)
    (history,) = run.histories.values()
    judged = [e for e in history.epochs if "validation" in e]
    likelihood = charts.curves(
        [e["epoch"] for e in judged],
        {"log-likelihood of the held-out rows": [-e["validation"] for e in judged]},
        ("epoch", "held-out log-likelihood, nats"),
        None,
    )
    gap = charts.curves(
        [e["epoch"] for e in history.epochs],
        {"free energy of the data minus that of the chains": [e["free-energy gap"] for e in history.epochs]},
        ("epoch", "gap of free energies, nats"),
        None,
    )
    text = (
        "The upper chart shows the log-likelihood of the held-out rows; log Z comes from a short annealing where "
        "it can't be summed exactly. The lower chart shows the free energy of the data minus that of the chains, "
        "which should stay near zero: a steady drift means divergence."
    )
    return Card("Training", text, [likelihood, gap], notes=history.events)


def _stages(run: BoltzmannRun) -> Card:
    """The card of a deep machine's training, which comes in parts."""
    figure = go.Figure()
    start = 0
    for name, history in run.histories.items():
        errors = [e["reconstruction"] for e in history.epochs]
        figure.add_scatter(x=list(range(start + 1, start + len(errors) + 1)), y=errors, mode="lines", name=name)
        start += len(errors)
    figure.update_xaxes(title="epochs of all stages")
    figure.update_yaxes(title="reconstruction error", rangemode="tozero")
    text = (
        "The mean squared error of reconstructing a layer's states after one step up and one step down: first for "
        "each layer in turn, then for the whole machine. It shows that something is learned, but it is not a "
        "likelihood."
    )
    return Card("Training", text, [charts.styled(figure, 320)], notes=run.model.history_.events)


def _energies(run: BoltzmannRun, rows: Rows) -> Card:
    rng = np.random.RandomState(0)
    training, test = rows.training[:1000], rows.test[:1000]
    shuffled = pd.DataFrame({c: rng.permutation(test[c].to_numpy()) for c in test.columns})
    figure = go.Figure()
    kinds = {"training rows": training, "rows held out": test, "held out, columns shuffled": shuffled}
    for (name, table), colour in zip(kinds.items(), [charts.MODEL, "#8d99ae", "#e09f3e"], strict=True):
        # Without the hard span a smooth shape would show log p that no row has.
        figure.add_violin(
            y=run.model.score_samples(table), name=name, points=False, showlegend=False, spanmode="hard",
            line_color=colour,
        )  # fmt: skip
    figure.update_yaxes(title="log p, nats" if run.settings.kind == "restricted" else "bound of log p, nats")
    text = (
        "log p of training rows, of held-out rows, and of held-out rows whose columns were shuffled separately. "
        "If the first two differ clearly, the machine overfits."
    )
    return Card("Likely and unlikely rows", text, [charts.styled(figure, 340)])


def _classes(run: BoltzmannRun) -> list[Card]:
    """The card of one machine for each class; none where the data have no labels."""
    found = run.figures.get("classes")
    if not found:
        return []
    text = (
        "One small machine was trained on the rows of each class. The chart shows the mean energy of each class's "
        "held-out rows under every machine, minus the lowest of them; one offset for each machine stands for its "
        f"unknown log Z. Choosing the machine of lowest energy classifies {found['right']:.1%} of the rows "
        "correctly."
    )
    return [Card("Energies of each class under each class's machine", text,
                 [energies_matrix(torch.tensor(found["energies"]), found["names"])])]  # fmt: skip


def _scores(run: BoltzmannRun) -> Card:
    table = []
    for name, entry in run.figures["scores"].items():
        error, off, back = entry["error"], entry["log_normaliser_error"], entry["reconstruction"]
        value = "not finite" if entry["log_likelihood"] is None else f"{entry['log_likelihood']:.3f}"
        table.append(
            [
                name,
                value + (f" ± {error:.3f}" if error else ""),
                f"± {off:.2g}" if off else "exact",
                "" if back is None else f"{back:.4f}",
            ]
        )
    head = ["model", "log-likelihood", "log Z", "reconstruction error"]
    notes = [
        *run.figures["remarks"],
        "The log-likelihood is the mean over the held-out rows, ± one standard error.",
    ]
    text = (
        f"All models are scored on the same {run.figures['test_rows']} held-out rows. A higher log-likelihood is "
        "better."
    )
    return Card("Figures", text, head=head, rows=table, notes=notes)
