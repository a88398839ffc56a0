"""The report of a regression run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from thalweg.data.encoding import is_number
from thalweg.estimators.distribution import PredictiveDistribution
from thalweg.report import charts
from thalweg.report.page import Card, Tile, checks_of, footer_of, render_page
from thalweg.report.words import duration, gain_in_words
from thalweg.runs.base import MODEL_NAME
from thalweg.runs.regression import RegressionRun, not_trusted_in_words, rounded_in_words

_MAX_BARS = 25
_MAX_POINTS = 1200


def report(run: RegressionRun) -> str:
    """The report of a finished run as one HTML page."""
    figures = run.figures
    several = len(run.targets) > 1
    cards = [_data_card(run), _training_card(run)]
    if several:
        cards += _several_targets(run)
    else:
        cards += [_densities_card(run), *_map_cards(run)]
        if figures["scores"]:
            cards += [_calibration_card(run), _residuals_card(run)]
    if figures["scores"]:
        cards.append(_scores_card(run))
    cards.append(_making_card(run))
    title = f"{', '.join(run.targets)} from {figures['table']}"
    subtitle = "The distribution of the target given the inputs, by an energy-based model"
    return render_page(title, subtitle, _tiles(run), cards, footer_of(run), checks_of(run))


def _tiles(run: RegressionRun) -> list[Tile]:
    figures = run.figures
    tiles = [
        Tile("rows", f"{figures['rows']:,}", f"of which {figures['test_rows']:,} for testing"),
        Tile("inputs", str(len(figures["inputs"])), f"{len(figures['ignored']) or 'none'} left out"),
    ]
    score = figures["scores"].get(MODEL_NAME)
    if score is not None:
        error = score["nll_error"]
        tiles.append(Tile("test NLL", f"{score['nll']:.3f}", f"± {error:.3f} nats" if error else "nats"))
    elif figures["validation_nll"] is not None:
        tiles.append(Tile("held-out NLL", f"{figures['validation_nll']:.3f}", "nats, on folds"))
    if score is not None and len(run.targets) == 1:
        tiles += [
            Tile("CRPS", f"{score['crps']:.3g}", "units of the target"),
            Tile("90 % coverage", f"{100 * score['coverage']:.1f} %", "of test rows in the interval"),
        ]
    epochs = len(run.model.history_.epochs)
    tiles.append(Tile("training", duration(figures["seconds"]["training"]), f"{epochs} epochs"))
    return tiles


def _data_card(run: RegressionRun) -> Card:
    parts = {"training": run.training_rows}
    if run.test_rows is not None:
        parts["test"] = run.test_rows
    pictures = [
        charts.histogram({k: v[t].to_numpy(float) for k, v in parts.items()}, t, run.figures["resolution"][t])
        for t in run.targets
    ]
    kinds = {c["name"]: c["kind"] for c in run.model.encoder_.columns} if run.model.encoder_ else {}
    rows = []
    table = _plain_columns(run.training_rows)
    for name in run.figures["inputs"]:
        column = table[name]
        gaps = f"{100 * column.isna().mean():.1f} %" if column.isna().any() else "none"
        kind = "date" if pd.api.types.is_datetime64_any_dtype(column) else kinds[name]
        if not is_number(column):
            counts = column.astype(str).where(column.notna()).value_counts()
            middle, span = str(counts.index[0]), f"{len(counts)} values"
        else:
            middle = _shown(_typical(column))
            span = f"{_shown(column.min())} to {_shown(column.max())}"
        rows.append([name, kind, gaps, charts.shortened(middle), span])
    text = (
        "The distribution of the target, and a summary of every input. The model learns from the training rows "
        "only."
    )
    if rounded := rounded_in_words(run.figures["resolution"]):
        text += f" Rounded: {rounded}."
    head = ["input", "kind", "gaps", "median or most frequent", "range"]
    return Card("The data", text, pictures, head, rows, folded=len(rows) > 20)


def _training_card(run: RegressionRun) -> Card:
    history = run.model.history_
    # Training works on the standardised target: a log density over the target itself is less by the slope.
    likelihood = run.figures["validation_nll"] is not None
    shift = run.model.offset_of(run.truth(run.training_rows)) if likelihood else 0.0
    epochs = [e["epoch"] for e in history.epochs]
    lines: dict[str, Any] = {}
    if not likelihood:
        lines["training loss"] = [e["loss"] for e in history.epochs]
    elif run.model.objective_name == "likelihood":
        # The ensemble's loss is the sum over its members.
        n_members = run.model.n_members if run.model.n_outputs_ == 1 else 1
        lines["training rows"] = [e["loss"] / n_members + shift for e in history.epochs]
    if history.epochs and "validation" in history.epochs[0]:
        lines["held-out rows"] = [e["validation"] + shift for e in history.epochs]
    marked = None
    if "held-out rows" in lines:
        marked = (epochs[int(np.argmin(lines["held-out rows"]))], "best")
    text = (
        "The loss after each epoch, on the rows that the networks learn from and on held-out rows. Each network "
        f"keeps the weights of its own best epoch. The training ended: {history.stopped}."
    )
    axes = ("epoch", "NLL, nats" if likelihood else "loss")
    return Card("Training", text, [charts.curves(epochs, lines, axes, marked)], notes=history.events)


def _densities_card(run: RegressionRun) -> Card:
    rows, which = _shown_rows(run)
    truth = np.asarray(run.truth(rows))
    distribution = run.model.predict_distribution(run.inputs(rows))
    assert isinstance(distribution, PredictiveDistribution)
    # From a low prediction to a high one, evenly.
    order = np.argsort(distribution.mean(), kind="stable")
    picked = order[np.linspace(0, len(order) - 1, min(6, len(order)) + 2).round().astype(int)[1:-1]]
    picked = picked if len(order) > 8 else order[:6]
    distribution, truth = distribution[picked], truth[picked]
    intervals = distribution.interval(0.9)
    outer = distribution.quantile(np.array([0.002, 0.998]))
    # Of heavy tails only what can be seen: they would leave no room for the rest.
    wide = np.linspace(outer[:, 0].min(), outer[:, 1].max(), 2000)
    seen = _on_grid(run, distribution, wide, False)
    wide = wide[(seen >= 0.01 * seen.max(1, keepdims=True)).any(0)]
    low, high = min(wide[0], truth.min()), max(wide[-1], truth.max())
    pad = 0.04 * (high - low)
    y, bars = (
        _target_grid(run, low, high) if _has_bars(run, low, high) else _target_grid(run, low - pad, high + pad)
    )
    density = _on_grid(run, distribution, y, bars)
    masses = distribution.atom_masses()
    atoms = {} if bars else dict(zip(distribution.atoms.tolist(), masses.T, strict=True))
    titles = [f"row {i + 1}: truth {_shown(t)}" for i, t in zip(picked, truth, strict=True)]
    text = f"The predictive densities of six {which} rows, from a low prediction to a high one. " + (
        "A bar is the probability of a value; the red one is the truth."
        if bars
        else "The red line is the truth; the shaded area is the central 90 % interval."
    )
    if any((mass >= 0.005).any() for mass in atoms.values()):
        values = ", ".join(_shown(a) for a in atoms)
        text += f" The pin is the probability of one value by itself ({values}); full height means 100 %."
    picture = charts.density_grid(y, density, truth, intervals, titles, run.targets[0], bars, atoms)
    return Card("Predictive densities", text, [picture])


def _map_cards(run: RegressionRun) -> list[Card]:
    X = _plain_columns(run.inputs(run.training_rows))
    moved = input_effects(run, X)
    ranked = sorted(moved, key=lambda name: -moved[name])
    if not ranked:
        return []  # every input is constant
    numeric = [n for n in ranked if is_number(X[n]) and X[n].nunique() > 2]
    name = numeric[0] if numeric else ranked[0]
    target = run.targets[0]
    column = X[name]
    grid: list[Any]
    if name in numeric:
        known = column.dropna()
        if pd.api.types.is_datetime64_any_dtype(column):
            grid = list(pd.date_range(known.quantile(0.005), known.quantile(0.995), 100))
        else:
            grid = list(np.linspace(known.quantile(0.005), known.quantile(0.995), 120))
    else:
        grid = list(column.value_counts().index[:12])
    # Every other input at its median or its most frequent value.
    asked = pd.DataFrame({c: grid if c == name else [_typical(X[c])] * len(grid) for c in X.columns})
    distribution = run.model.predict_distribution(asked)
    assert isinstance(distribution, PredictiveDistribution)
    quantiles = distribution.quantile(np.array([0.5, 0.05, 0.95]))
    truth = np.asarray(run.truth(run.training_rows))
    low, high = charts.span(truth)
    low, high = max(low, np.quantile(truth, 0.002)), min(high, np.quantile(truth, 0.998))
    pad = 0.08 * (high - low)
    y, bars = _target_grid(run, min(low - pad, quantiles[:, 1].min()), max(high + pad, quantiles[:, 2].max()), 260)
    density = _on_grid(run, distribution, y, bars).T
    chosen = np.random.RandomState(0).permutation(np.flatnonzero(column.notna()))[:_MAX_POINTS]
    values = truth[chosen]
    if bars:
        # Points of a rounded target would lie on top of each other.
        values = values + np.random.RandomState(1).uniform(-0.3, 0.3, len(values)) * run.model.resolution_
    if not is_number(column):
        # A text that reads as a number or a date would make an axis of that kind.
        grid = [f"{charts.plain(str(g))}\u200b" for g in grid]
        points = [f"{charts.plain(str(g))}\u200b" for g in column.iloc[chosen]]
    else:
        points = column.iloc[chosen].tolist()
    lines = {"median": quantiles[:, 0], "5 % and 95 %": quantiles[:, 1], "95 %": quantiles[:, 2]}
    unit = "probability" if bars else "density"
    kind = "numeric input" if numeric else "input"
    text = f"How p({target} | x) changes along {name!r}"
    text += f", the {kind} that changes it most." if X.shape[1] > 1 else "."
    if X.shape[1] > 1:
        text += (
            " The other inputs are held at their median or most frequent value; the points are training rows, "
            "whose other inputs differ."
        )
    picture = charts.density_map(grid, y, density, lines, (points, values), (name, target), unit)
    cards = [Card("A map of p(y|x)", text, [picture])]
    if X.shape[1] > 1:
        top = ranked[:15]
        text = (
            "How much the 5 %, 50 % and 95 % quantiles change on average when an input is shuffled between the "
            "rows. Inputs that carry the same information share their effect."
        )
        if len(ranked) > len(top):
            text += f" The first {len(top)} of {len(ranked)} are shown."
        picture = charts.effects(top, [moved[n] for n in top], f"mean change of the quantiles of {target}")
        cards.append(Card("Which inputs matter", text, [picture]))
    return cards


def input_effects(
    run: RegressionRun, X: pd.DataFrame, max_rows: int = 250, max_columns: int = 40
) -> dict[str, float]:
    """How much predicted quantiles change when an input is shuffled between rows, in units of the target.

    Args:
        X: the inputs ``[rows, columns]``.
        max_rows: how many rows are used.
        max_columns: how many columns are tried: the first ones by rank correlation with the prediction.
    """
    rng = np.random.RandomState(0)
    X = X.iloc[np.sort(rng.permutation(len(X))[:max_rows])].reset_index(drop=True)
    levels = np.array([0.05, 0.5, 0.95])
    before = run.model.predict_distribution(X).quantile(levels)
    names = [c for c in X.columns if c not in run.figures["ignored"]]
    if len(names) > max_columns:
        median = pd.Series(before[:, 1])
        codes = {c: X[c] if is_number(X[c]) else pd.Series(pd.factorize(X[c])[0]) for c in names}
        rank = {c: abs(v.rank().corr(median.rank())) if v.nunique() > 1 else 0.0 for c, v in codes.items()}
        names = sorted(names, key=lambda c: -np.nan_to_num(rank[c]))[:max_columns]
    moved = {}
    for name in names:
        shuffled = X.copy()
        shuffled[name] = X[name].to_numpy()[rng.permutation(len(X))]
        shuffled[name] = shuffled[name].astype(X[name].dtype)
        moved[name] = float(np.abs(run.model.predict_distribution(shuffled).quantile(levels) - before).mean())
    return moved


def _calibration_card(run: RegressionRun) -> Card:
    scores = run.figures["scores"]
    ours = scores[MODEL_NAME]
    text = (
        "Whether predicted probabilities match observed frequencies. The PIT histogram of a calibrated model is "
        "flat: nine bars in ten end in the grey band. A valley in the middle means overconfidence, a hill "
        "underconfidence. In the lower chart, central intervals should cover as many truths as their level says."
    )
    covered = {name: entry["covered"] for name, entry in scores.items()}
    pictures = [charts.pit_histogram(ours["pit_histogram"]), charts.coverage_curve(ours["nominal"], covered)]
    return Card("Calibration", text, pictures)


def _residuals_card(run: RegressionRun) -> Card:
    assert run.test_rows is not None
    rows = run.test_rows.iloc[: 2 * _MAX_POINTS]
    mean = run.model.predict_distribution(run.inputs(rows)).mean()
    text = "The truth minus the predicted mean, on the test rows. A good model leaves no pattern."
    return Card("Residuals", text, [charts.residuals(mean, np.asarray(run.truth(rows)), run.targets[0])])


def _scores_card(run: RegressionRun) -> Card:
    scores = run.figures["scores"]
    n = run.figures["test_rows"]
    text = (
        f"Three models are scored on the same {n} test rows. Lower is better; the coverage should be 90 %. The "
        "best figures are in bold."
    )
    if len(run.targets) > 1:
        # Many figures and three models: a line for each figure.
        lines = [["joint NLL, nats", *(f"{entry['nll']:.4f}" for entry in scores.values())]]
        best = {(0, 1 + int(np.argmin([entry["nll"] for entry in scores.values()])))}
        for target in run.targets:
            for key, label in (("crps", "CRPS"), ("rmse", "RMSE"), ("coverage", "90 % coverage")):
                values = [entry["targets"][target][key] for entry in scores.values()]
                if key != "coverage":
                    best.add((len(lines), 1 + int(np.argmin(values))))
                shown = [f"{100 * v:.1f} %" if key == "coverage" else f"{v:.4g}" for v in values]
                lines.append([f"{target}: {label}", *shown])
        notes = not_trusted_in_words(scores)
        return Card("Beside two baselines", text, head=["figure", *scores], rows=lines, best=best, notes=notes)
    columns = {"nll": "NLL", "crps": "CRPS", "rmse": "RMSE", "mae": "MAE", "coverage": "90 % coverage", "width":
               "interval width"}  # fmt: skip
    rows, best = [], set()
    for name, entry in scores.items():
        cells = [name]
        for key in columns:
            value = entry[key]
            cell = f"{100 * value:.1f} %" if key == "coverage" else f"{value:.{4}{'f' if key == 'nll' else 'g'}}"
            error = entry.get(f"{key}_error")
            cells.append(f"{cell} ± {error:.2g}" if error else cell)
        rows.append(cells)
    for j, key in enumerate(columns):
        if key in ("nll", "crps", "rmse", "mae"):
            best.add((int(np.argmin([entry[key] for entry in scores.values()])), j + 1))
    notes = []
    for name, entry in scores.items():
        if "nll_gain" in entry:
            notes.append(gain_in_words("the truth is", name, entry))
    notes.append(
        "± is one standard error over the test rows. The NLL is in nats, the others in units of the target."
    )
    if run.model.resolution_:
        notes.append(
            "The target is rounded: the NLL of all three is that of the rounding cell, −log P(cell) + log(width)."
        )
    return Card("Beside two baselines", text, head=["model", *columns.values()], rows=rows, best=best, notes=notes)


def _making_card(run: RegressionRun) -> Card:
    figures, settings = run.figures, run.settings
    total = sum(figures["seconds"].values())
    n_weights = sum(p.numel() for p in run.model.energy_.parameters())
    names = {"training": "training the model", "scoring": "scoring it"}
    rows = [[names.get(k, f"fitting and scoring: {k}"), duration(v)] for k, v in figures["seconds"].items()]
    rows.append(["all", duration(total)])
    text = (
        f"Objective {run.model.objective_name!r}, {type(run.model.energy_).__name__} with {n_weights:,} "
        f"weights, seed {settings.seed}. The same command on the same machine gives the same model."
    )
    return Card("How it was made", text, head=["step", "time"], rows=rows, notes=figures["remarks"])


def _several_targets(run: RegressionRun) -> list[Card]:
    rows, which = _shown_rows(run)
    rows = rows.iloc[:300]
    truth = np.asarray(run.truth(rows))
    distribution = run.model.predict_distribution(run.inputs(rows))
    mean = distribution.mean()
    order = np.argsort(mean[:, 0], kind="stable")
    picked = order[np.linspace(0, len(order) - 1, min(6, len(order))).round().astype(int)]
    asked = run.model.predict_distribution(run.inputs(rows.iloc[picked]))
    draws = asked.sample(300, 0)[:, :, :2]
    titles = [f"row {i + 1}" for i in picked]
    cloud = charts.clouds(draws, truth[picked][:, :2], titles, (run.targets[0], run.targets[1]))
    scatters = [charts.scatter_truth(mean[:, k], truth[:, k], t) for k, t in enumerate(run.targets)]
    return [
        Card("Draws", f"Draws from p(y|x) for six {which} rows, in the plane of the first two targets.", [cloud]),
        Card(
            "Truth and prediction", f"The true values of the {which} rows, over their predicted means.", scatters
        ),
    ]


# -- small things ------------------------------------------------------------------------------------


def _shown_rows(run: RegressionRun) -> tuple[pd.DataFrame, str]:
    """The rows to show predictions of, and what they are."""
    if run.test_rows is not None:
        return run.test_rows.iloc[:2000], "test"
    return run.training_rows.iloc[:2000], "training"


def _target_grid(run: RegressionRun, low: float, high: float, n: int = 500) -> tuple[np.ndarray, bool]:
    """Values of the target over a range; the rounded values themselves, if they are few."""
    if not _has_bars(run, low, high):
        return np.linspace(low, high, n), False
    resolution = run.model.resolution_
    # The grid's origin is that of the data: half-integers are a grid of spacing 1 as well.
    origin = float(np.asarray(run.truth(run.training_rows)).flat[0])
    first, last = np.floor((low - origin) / resolution + 0.5), np.ceil((high - origin) / resolution - 0.5)
    return origin + resolution * np.arange(first, max(last, first + 1) + 1), True


def _has_bars(run: RegressionRun, low: float, high: float) -> bool:
    return bool(run.model.resolution_) and (high - low) / run.model.resolution_ < _MAX_BARS


def _on_grid(run: RegressionRun, distribution: PredictiveDistribution, y: np.ndarray, bars: bool) -> np.ndarray:
    """Densities ``[rows, m]`` on a grid, or probabilities of its cells. Spikes of single values are left out."""
    asked = np.broadcast_to(y, (len(distribution), len(y)))
    if bars:
        return np.exp(distribution.log_mass(asked))
    density = np.exp(distribution.log_prob(asked))
    # At an atom log_prob is a log mass: the density beside it is shown, and the mass as a pin.
    for place in np.flatnonzero(np.isin(y, distribution.atoms)):
        density[:, place] = density[:, place - 1 if place else 1]
    return density


def _plain_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers as numbers, and categories as texts, whatever type the file gave them."""
    table = table.copy()
    for name in table.columns:
        column = table[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            table[name] = column.astype(object)
        elif is_number(column) and not pd.api.types.is_datetime64_any_dtype(column):
            table[name] = pd.to_numeric(column).astype("float64")
    return table


def _typical(column: pd.Series) -> Any:
    """The median; of categories, and of columns with two values, the most frequent one."""
    if is_number(column) and column.nunique() > 2:
        return column.median()
    counts = column.value_counts()
    return counts.index[0] if len(counts) else None


def _shown(value: Any) -> str:
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d}"
    return f"{value:.5g}" if isinstance(value, int | float | np.number) else str(value)
