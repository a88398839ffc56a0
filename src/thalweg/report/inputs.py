"""What the inputs of a regression do to its prediction: maps of p(y|x), and which inputs matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from thalweg.data.encoding import is_number
from thalweg.estimators.distribution import PredictiveDistribution
from thalweg.report import charts
from thalweg.report.grids import MAX_POINTS, on_grid, plain_columns, target_grid, typical
from thalweg.report.page import Card
from thalweg.runs.regression import RegressionRun

_MAX_MAPS = 6
_N_OTHERS = 12
_N_SHUFFLES = 4
_LEVELS = np.array([0.05, 0.5, 0.95])


def input_cards(run: RegressionRun) -> tuple[list[Card], list[str]]:
    """The cards, and the inputs, the one that matters most first."""
    X = plain_columns(run.inputs(run.training_rows))
    moved = input_effects(run, X)
    ranked = sorted(moved, key=lambda name: -moved[name][0])
    if not ranked:
        return [], []  # every input is constant
    # The first map is of numbers, where there are any: it shows most.
    first = next((n for n in ranked if _is_continuous(X[n])), ranked[0])
    names = [first, *(n for n in ranked if n != first)][:_MAX_MAPS]
    target = run.targets[0]
    alone = X.shape[1] == 1
    text = f"How p({target} | x) changes along " + (f"{names[0]!r}." if alone else "an input; choose which one.")
    if not alone:
        text += (
            " The other inputs are held at their median or most frequent value. Each of the thin lines is the "
            f"predicted median when they are those of a training row instead, for {_N_OTHERS} rows: lines far "
            "apart mean that the others matter too. The points are training rows, whose other inputs differ."
        )
    cards = [
        Card(
            "A map of p(y|x)", text, [_map(run, X, name) for name in names],
            choices=[charts.shortened(n) for n in names], choice="input",
        )
    ]  # fmt: skip
    if not alone:
        top = ranked[:15]
        text = (
            "How much the 5 %, 50 % and 95 % quantiles change on average when an input is shuffled between the "
            f"rows, ± one standard error over {_N_SHUFFLES} shuffles. Inputs that carry the same information "
            "share their effect."
        )
        if len(ranked) > len(top):
            text += f" The first {len(top)} of {len(ranked)} are shown."
        means, errors = zip(*(moved[n] for n in top), strict=True)
        picture = charts.effects(top, means, f"mean change of the quantiles of {target}", errors)
        cards.append(Card("Which inputs matter", text, [picture]))
    return cards, ranked


def _is_continuous(column: pd.Series) -> bool:
    return is_number(column) and column.nunique() > 2


def _map(run: RegressionRun, X: pd.DataFrame, name: str) -> go.Figure:
    """p(y|x) along one input, the others typical; and the median with the others of some training rows."""
    column, target = X[name], run.targets[0]
    grid: list[Any] = _grid(column)
    # Every other input at its median or its most frequent value.
    asked = pd.DataFrame({c: grid if c == name else [typical(X[c])] * len(grid) for c in X.columns})
    distribution = run.model.predict_distribution(asked)
    assert isinstance(distribution, PredictiveDistribution)
    quantiles = distribution.quantile(_LEVELS)
    truth = np.asarray(run.truth(run.training_rows))
    low, high = charts.span(truth)
    low, high = max(low, np.quantile(truth, 0.002)), min(high, np.quantile(truth, 0.998))
    pad = 0.08 * (high - low)
    y, bars = target_grid(run, min(low - pad, quantiles[:, 0].min()), max(high + pad, quantiles[:, 2].max()), 110)
    density = on_grid(run, distribution, y, bars).T
    chosen = np.random.RandomState(0).permutation(np.flatnonzero(column.notna()))[: MAX_POINTS // 2]
    values = truth[chosen]
    if bars:
        # Points of a rounded target would lie on top of each other.
        values = values + np.random.RandomState(1).uniform(-0.3, 0.3, len(values)) * run.model.resolution_
    places, points = grid, column.iloc[chosen].tolist()
    if not is_number(column):
        # A text that reads as a number or a date would make an axis of that kind.
        places = [f"{charts.plain(str(g))}\u200b" for g in grid]
        points = [f"{charts.plain(str(g))}\u200b" for g in column.iloc[chosen]]
    lines = {"median": quantiles[:, 1], "5 % and 95 %": quantiles[:, 0], "95 %": quantiles[:, 2]}
    unit = "probability" if bars else "density"
    others = None
    if X.shape[1] > 1:
        # Half of the places do for lines.
        step = 2 if _is_continuous(column) else 1
        others = (places[::step], other_medians(run, X, name, grid[::step]))
    return charts.density_map(places, y, density, lines, (points, values), (name, target), unit, others)


def _grid(column: pd.Series) -> list[Any]:
    """The values of an input that a map shows."""
    if not _is_continuous(column):
        return list(column.value_counts().index[:12])
    low, high = column.dropna().quantile(0.005), column.dropna().quantile(0.995)
    if pd.api.types.is_datetime64_any_dtype(column):
        return list(pd.date_range(low, high, 81))
    return list(np.linspace(low, high, 81))


def other_medians(run: RegressionRun, X: pd.DataFrame, name: str, grid: list[Any]) -> np.ndarray:
    """The predicted median along one input ``[rows, len(grid)]``, the other inputs those of some training rows."""
    rows = X.iloc[np.random.RandomState(2).permutation(len(X))[:_N_OTHERS]]
    asked = rows.loc[rows.index.repeat(len(grid))].reset_index(drop=True)
    asked[name] = pd.Series(list(grid) * len(rows)).astype(X[name].dtype)
    return run.model.predict_distribution(asked).quantile(0.5).reshape(len(rows), len(grid))


def input_effects(
    run: RegressionRun, X: pd.DataFrame, max_rows: int = 320, max_columns: int = 40
) -> dict[str, tuple[float, float]]:
    """How much predicted quantiles change when an input is shuffled between rows, in units of the target.

    Args:
        X: the inputs ``[rows, columns]``.
        max_rows: how many rows are used, over all shuffles.
        max_columns: how many columns are tried: the first ones by rank correlation with the prediction.

    Returns:
        of each input the mean change over the shuffles, each of rows of its own, and its standard error.
    """
    rng = np.random.RandomState(0)
    X = X.iloc[rng.permutation(len(X))[:max_rows]].reset_index(drop=True)
    before = run.model.predict_distribution(X).quantile(_LEVELS)
    names = [c for c in X.columns if c not in run.figures["ignored"]]
    if len(names) > max_columns:
        median = pd.Series(before[:, 1])
        codes = {c: X[c] if is_number(X[c]) else pd.Series(pd.factorize(X[c])[0]) for c in names}
        rank = {c: abs(v.rank().corr(median.rank())) if v.nunique() > 1 else 0.0 for c, v in codes.items()}
        names = sorted(names, key=lambda c: -np.nan_to_num(rank[c]))[:max_columns]
    parts = np.array_split(np.arange(len(X)), _N_SHUFFLES)
    moved = {}
    for name in names:
        shuffled = X.copy()
        order = np.concatenate([rng.permutation(part) for part in parts])
        shuffled[name] = pd.Series(X[name].to_numpy()[order]).astype(X[name].dtype)
        change = np.abs(run.model.predict_distribution(shuffled).quantile(_LEVELS) - before).mean(1)
        means = np.array([change[part].mean() for part in parts])
        moved[name] = float(change.mean()), float(means.std(ddof=1) / np.sqrt(len(parts)))
    return moved
