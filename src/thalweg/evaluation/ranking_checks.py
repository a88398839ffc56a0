"""Checks of a ranker: whether there are groups enough, and whether it orders them better than plain models do."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold

from thalweg.evaluation.ranking import CUTOFF, ndcg_of_groups
from thalweg.evaluation.verdict import FEWEST_COMPARED, Check

_FEWEST_GROUPS, _FEW_GROUPS = 5, 30
_MOST_FITTED = 2000
# What is lost below this is of no consequence.
_SMALL_LOSS = 0.01


def check_groups(n_groups: int, n_idle: int) -> Check:
    """Whether there are enough groups to learn from.

    Args:
        n_groups: groups of training rows.
        n_idle: how many of them have one row, or rows of one relevance.
    """
    used = n_groups - n_idle
    found = f"The model learned from {used} groups."
    if n_idle:
        teach = "teaches" if n_idle == 1 else "teach"
        found += f" {n_idle} more {teach} nothing: a single row, or rows of one relevance."
    if used < _FEWEST_GROUPS:
        return Check("groups", "failed", f"{found} That is too few to rank other groups: collect more.")
    if used < _FEW_GROUPS:
        text = (
            f"{found} That is few, however many rows they have: other groups may give another model. Collect more."
        )
        return Check("groups", "doubtful", text)
    if 2 * n_idle > n_groups:
        return Check("groups", "doubtful", f"{found} See whether the column of the groups is the right one.")
    return Check("groups", "passed", found)


def check_order(gains: Mapping[str, tuple[float, float | None]], n_groups: int, name: str = "baselines") -> Check:
    """Whether held-out groups are ordered better than by every baseline, beyond the error.

    Args:
        gains: by name of a baseline the mean gain in NDCG at 10, and its standard error over groups.
        n_groups: number of groups behind them.
        name: of the check.
    """
    known = {baseline: (gain, error or 0.0) for baseline, (gain, error) in gains.items() if np.isfinite(gain)}
    if not known:
        return Check(name, "doubtful", "No held-out group has a relevant row to compare the model by.")
    rival = min(known, key=lambda baseline: known[baseline][0])
    gain, error = known[rival]
    shown = f"{abs(gain):.3f}" + (f" ± {error:.3f}" if error else "")
    order = "better" if gain > 0 else "worse"
    if n_groups < FEWEST_COMPARED:
        text = (
            f"On {n_groups} held-out groups its NDCG is {shown} {order} than that of {rival!r}; so few say little."
        )
        return Check(name, "doubtful", text)
    if gain > 2 * error:
        text = f"NDCG at 10 of held-out groups is {shown} above that of the best baseline, {rival!r}."
        return Check(name, "passed", text)
    if gain < -(2 * error + _SMALL_LOSS):
        text = f"Its NDCG at 10 is {shown} below that of the baseline {rival!r}: use that, or train longer."
        return Check(name, "failed", text)
    text = f"It is level with the baseline {rival!r} (NDCG at 10 {shown} {order}): that does as well here."
    return Check(name, "doubtful", text)


def check_group_folds(ndcg: np.ndarray, relevance: np.ndarray, inputs: np.ndarray, groups: np.ndarray) -> Check:
    """Whether groups are ordered better than at random, and than by a ridge regression fitted to other groups.

    Args:
        ndcg: at 10, of groups that the model did not learn from ``[n_groups]``; NaN where it was not judged.
        relevance: of the rows ``[n]``.
        inputs: as numbers ``[n, F]``.
        groups: number of each row's group ``[n]``.
    """
    scores = np.full(len(groups), np.nan)
    order = np.random.RandomState(0).permutation(len(ndcg))
    sizes = np.bincount(groups, minlength=len(ndcg))
    # Whole groups, as many as a quick regression takes.
    chosen = order[: max(2, int((np.cumsum(sizes[order]) <= _MOST_FITTED).sum()))]
    rows = np.flatnonzero(np.isin(groups, chosen))
    for fitted, judged in GroupKFold(min(5, len(chosen))).split(rows, groups=groups[rows]):
        model = RidgeCV(np.logspace(-2, 5, 8)).fit(inputs[rows[fitted]], relevance[rows[fitted]])
        scores[rows[judged]] = model.predict(inputs[rows[judged]])
    asked = np.isin(np.arange(len(ndcg)), chosen)
    ridge = np.where(asked, ndcg_of_groups(relevance, np.nan_to_num(scores), groups, CUTOFF), np.nan)
    others = {
        "random order": ndcg_of_groups(relevance, np.zeros(len(groups)), groups, CUTOFF),
        "ridge regression": ridge,
    }
    gains = {name: gain_over(ndcg, figures) for name, figures in others.items()}
    n_compared = int((~np.isnan(ndcg)).sum())
    return check_order(gains, n_compared, "baselines on folds")


def gain_over(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float | None]:
    """The mean gain over groups that both have a figure of, and its standard error."""
    gain = ours - theirs
    gain = gain[~np.isnan(gain)]
    if not len(gain):
        return float("nan"), None
    error = float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else None
    return float(gain.mean()), error
