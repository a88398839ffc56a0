"""The report of a regression run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from thalweg.data.encoding import is_number
from thalweg.estimators.distribution import PredictiveDistribution
from thalweg.report import charts
from thalweg.report.grids import (
    has_bars,
    in_words,
    on_grid,
    plain_columns,
    row_names,
    shown_rows,
    target_grid,
    typical,
)
from thalweg.report.held_out import held_out_cards
from thalweg.report.inputs import input_cards
from thalweg.report.page import Card, Tile, checks_of, footer_of, render_page
from thalweg.report.words import duration, figure, gain_in_words, place_of_least
from thalweg.runs.base import MODEL_NAME
from thalweg.runs.regression import RegressionRun, not_trusted_in_words, rounded_in_words


def report(run: RegressionRun) -> str:
    """The report of a finished run as one HTML page."""
    figures = run.figures
    several = len(run.targets) > 1
    cards = [_data_card(run), _training_card(run)]
    if several:
        cards += _several_targets(run)
    else:
        inputs, ranked = input_cards(run)
        cards += [_densities_card(run), *inputs]
        if figures["scores"]:
            cards += held_out_cards(run, ranked)
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
        sure = f"± {error:.3f} nats" if error else "nats"
        tiles.append(Tile("test NLL", figure(score["nll"], "test", ".3f"), sure))
    elif figures["validation_nll"] is not None:
        tiles.append(Tile("held-out NLL", f"{figures['validation_nll']:.3f}", "nats, on folds"))
    if score is not None and len(run.targets) == 1:
        tiles += [
            Tile("CRPS", figure(score["crps"], "crps", ".3g"), "units of the target"),
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
    table = plain_columns(run.training_rows)
    for name in run.figures["inputs"]:
        column = table[name]
        gaps = f"{100 * column.isna().mean():.1f} %" if column.isna().any() else "none"
        kind = "date" if pd.api.types.is_datetime64_any_dtype(column) else kinds[name]
        if not is_number(column):
            counts = column.astype(str).where(column.notna()).value_counts()
            middle, span = str(counts.index[0]), f"{len(counts)} values"
        else:
            middle = in_words(typical(column))
            span = f"{in_words(column.min())} to {in_words(column.max())}"
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
    rows, which = shown_rows(run)
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
    seen = on_grid(run, distribution, wide, False)
    wide = wide[(seen >= 0.01 * seen.max(1, keepdims=True)).any(0)]
    low, high = min(wide[0], truth.min()), max(wide[-1], truth.max())
    pad = 0.04 * (high - low)
    y, bars = target_grid(run, low, high) if has_bars(run, low, high) else target_grid(run, low - pad, high + pad)
    density = on_grid(run, distribution, y, bars)
    masses = distribution.atom_masses()
    atoms = {} if bars else dict(zip(distribution.atoms.tolist(), masses.T, strict=True))
    names = row_names(run)
    titles = [f"{names[i]}: truth {in_words(t)}" for i, t in zip(picked, truth, strict=True)]
    text = f"The predictive densities of six {which} rows, from a low prediction to a high one. " + (
        "A bar is the probability of a value; the red one is the truth."
        if bars
        else "The red line is the truth; the shaded area is the central 90 % interval."
    )
    if any((mass >= 0.005).any() for mass in atoms.values()):
        values = ", ".join(in_words(a) for a in atoms)
        text += f" The pin is the probability of one value by itself ({values}); full height means 100 %."
    picture = charts.density_grid(y, density, truth, intervals, titles, run.targets[0], bars, atoms)
    return Card("Predictive densities", text, [picture])


def _scores_card(run: RegressionRun) -> Card:
    scores = run.figures["scores"]
    n = run.figures["test_rows"]
    text = (
        f"Three models are scored on the same {n} test rows. Lower is better; the coverage should be 90 %. The "
        "best figures are in bold."
    )
    if len(run.targets) > 1:
        # Many figures and three models: a line for each figure.
        lines = [["joint NLL, nats", *(figure(entry["nll"], "nll") for entry in scores.values())]]
        best = {(0, 1 + place_of_least([entry["nll"] for entry in scores.values()]))}
        for target in run.targets:
            for key, label in (("crps", "CRPS"), ("rmse", "RMSE"), ("coverage", "90 % coverage")):
                values = [entry["targets"][target][key] for entry in scores.values()]
                if key != "coverage":
                    best.add((len(lines), 1 + place_of_least(values)))
                lines.append([f"{target}: {label}", *(figure(v, key) for v in values)])
        notes = not_trusted_in_words(scores)
        return Card("Beside two baselines", text, head=["figure", *scores], rows=lines, best=best, notes=notes)
    columns = {"nll": "NLL", "crps": "CRPS", "rmse": "RMSE", "mae": "MAE", "coverage": "90 % coverage", "width":
               "interval width"}  # fmt: skip
    rows, best = [], set()
    for name, entry in scores.items():
        cells = [name]
        for key in columns:
            cell = figure(entry[key], key)
            error = entry.get(f"{key}_error")
            cells.append(f"{cell} ± {error:.2g}" if error else cell)
        rows.append(cells)
    for j, key in enumerate(columns):
        if key in ("nll", "crps", "rmse", "mae"):
            best.add((place_of_least([entry[key] for entry in scores.values()]), j + 1))
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
    rows, which = shown_rows(run)
    rows = rows.iloc[:300]
    truth = np.asarray(run.truth(rows))
    distribution = run.model.predict_distribution(run.inputs(rows))
    mean = distribution.mean()
    order = np.argsort(mean[:, 0], kind="stable")
    picked = order[np.linspace(0, len(order) - 1, min(6, len(order))).round().astype(int)]
    asked = run.model.predict_distribution(run.inputs(rows.iloc[picked]))
    draws = asked.sample(300, 0)[:, :, :2]
    names = row_names(run)
    titles = [names[i] for i in picked]
    cloud = charts.clouds(draws, truth[picked][:, :2], titles, (run.targets[0], run.targets[1]))
    scatters = [charts.scatter_truth(mean[:, k], truth[:, k], t) for k, t in enumerate(run.targets)]
    return [
        Card("Draws", f"Draws from p(y|x) for six {which} rows, in the plane of the first two targets.", [cloud]),
        Card(
            "Truth and prediction", f"The true values of the {which} rows, over their predicted means.", scatters
        ),
    ]
