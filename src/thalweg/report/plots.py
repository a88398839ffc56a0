"""Single charts with matplotlib, for notebooks and papers: ``pip install thalweg[plot]``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from thalweg.evaluation.regression import NOMINAL, pit_values
from thalweg.report.theme import DATA, INK, MODEL, TRUTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from thalweg.estimators.distribution import PredictiveDistribution
    from thalweg.training.history import History


def plot_density(
    distribution: PredictiveDistribution, row: int = 0, truth: float | None = None, *, ax: Axes | None = None
) -> Axes:
    """The density p(y|x) of one row, with its central 90 % interval.

    A value of positive probability is a pin: its height is that of the density's peak times its probability.

    Args:
        distribution: what ``predict_distribution`` returns.
        row: which of its rows.
        truth: a value to mark.
        ax: axes to draw on; None for new ones.

    Raises:
        ImportError: if matplotlib is missing.
        IndexError: if there is no such row.
    """
    ax = _axes(ax)
    one = distribution[row]
    low, high = one.quantile(np.array([0.001, 0.999]))[0]
    if truth is not None:
        low, high = min(low, truth), max(high, truth)
    y = np.linspace(low, high, 401)
    density = np.exp(one.log_prob(y[None]))[0]
    density[np.isin(y, one.atoms)] = np.nan  # a log mass there, not a density
    inside = (y >= one.interval(0.9)[0, 0]) & (y <= one.interval(0.9)[0, 1])
    ax.fill_between(y, density, where=inside.tolist(), color=MODEL, alpha=0.22, linewidth=0, label="90 % interval")
    ax.plot(y, density, color=MODEL, label="density")
    peak = float(np.nanmax(density))
    for atom, mass in zip(one.atoms, one.atom_masses()[0], strict=True):
        ax.plot([atom, atom], [0, peak * mass], color=DATA, marker="o", markevery=[1], label=f"P({atom:.4g})")
    if truth is not None:
        ax.axvline(truth, color=TRUTH, label="truth")
    ax.set(xlabel="y", ylabel="density", ylim=(0, None))
    ax.legend(frameon=False)
    return ax


def plot_calibration(y: np.ndarray, distribution: PredictiveDistribution, *, ax: Axes | None = None) -> Axes:
    """The share of the truths inside central intervals, against the probability of the intervals.

    Args:
        y: the truth ``[rows]``.
        distribution: p(y|x) of the same rows.
        ax: axes to draw on; None for new ones.

    Raises:
        ImportError: if matplotlib is missing.
    """
    ax = _axes(ax)
    pit = pit_values(np.asarray(y, np.float64), distribution, distribution.resolution)
    covered = [float(np.mean(np.abs(pit - 0.5) <= level / 2 + 1e-12)) for level in NOMINAL]
    ax.plot([0, 1], [0, 1], color=INK, linestyle=":", label="ideal")
    ax.plot([0, *NOMINAL, 1], [0, *covered, 1], color=MODEL, marker="o", markersize=3, label="observed")
    ax.set(xlabel="nominal coverage", ylabel="observed coverage", xlim=(0, 1), ylim=(0, 1.01))
    ax.legend(frameon=False)
    return ax


def plot_history(history: History, *, ax: Axes | None = None) -> Axes:
    """The loss of each epoch, and that of the held-out rows where there are any, in the units of the training.

    Args:
        history: ``history_`` of a fitted model. Of several parts the parts are drawn one after the other.
        ax: axes to draw on; None for new ones.

    Raises:
        ImportError: if matplotlib is missing.
    """
    ax = _axes(ax)
    places = np.arange(1, len(history.epochs) + 1)
    for name, label, colour in (("loss", "training rows", "#8d99ae"), ("validation", "held-out rows", MODEL)):
        values = [epoch.get(name, np.nan) for epoch in history.epochs]
        if np.isfinite(values).any():
            ax.plot(places, values, color=colour, label=label)
    ax.set(xlabel="epoch", ylabel="loss")
    ax.legend(frameon=False)
    return ax


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ImportError("these charts need matplotlib: pip install thalweg[plot]") from None
    return pyplot.subplots()[1]
