"""How good an order is: NDCG, average precision and reciprocal rank of groups of rows, with ties averaged."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import gammaln

# The rank at which the figures of rankers are cut, where no other is said.
CUTOFF = 10
# A gain is a power of two of the relevance; those of higher grades would drown all others.
MOST_RELEVANT = 30


class MeanFigure(NamedTuple):
    """A mean over groups.

    Attributes:
        value: the mean; NaN if no group has the figure.
        standard_error: of the mean, over groups; None for fewer than two of them.
        n_groups: groups that have it.
    """

    value: float
    standard_error: float | None
    n_groups: int


def relevance_gains(relevance: np.ndarray) -> np.ndarray:
    """2^relevance - 1, what a relevant item adds to the cumulative gain."""
    return np.exp2(np.asarray(relevance, np.float64)) - 1


def ndcg_of_groups(
    relevance: np.ndarray, scores: np.ndarray, groups: np.ndarray, k: int | None = None
) -> np.ndarray:
    """Normalised discounted cumulative gain of each group ``[n_groups]``.

    The gain of a row is 2^relevance - 1, divided by the log to base 2 of one plus its rank, and the sum is divided
    by that of the best order. Rows of equal score share the mean of their gains, which is the expectation over the
    orders among them, as in ``sklearn.metrics.ndcg_score``. So equal scores for all rows give the expected figure
    of a random order.

    Args:
        relevance: ``[n]``, not negative.
        scores: ``[n]``, the higher the better.
        groups: number of each row's group ``[n]``, from 0; the highest one says how many groups there are.
        k: rows below this rank add nothing; None counts all.

    Returns:
        of each group, from 0 to 1; **NaN for a group without any relevant row**, which no order can serve better
        than another. scikit-learn says 0 there, others 1; :func:`mean_over_groups` leaves such groups out.

    Source: [Järvelin 2002]; the gain [Burges 2005]; ties [McSherry 2008].
    """
    gain = relevance_gains(relevance)
    found = _Ordered(relevance, scores, groups)
    best = _Ordered(relevance, gain, groups)
    n_groups = found.n_groups
    dcg = np.bincount(found.group, found.mean_in_block(gain) * _discounts(found.rank, k), n_groups)
    ideal = np.bincount(best.group, gain[best.order] * _discounts(best.rank, k), n_groups)
    with np.errstate(invalid="ignore"):
        return np.where(ideal > 0, dcg / ideal, np.nan)


def average_precision_of_groups(relevance: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Average precision of each group ``[n_groups]``, a row being relevant if its relevance is above 0.

    The mean over relevant rows of the share of relevant ones among those that are ranked no lower; the expectation
    over the orders of rows with equal scores. NaN for a group without any relevant row. Arguments are those of
    :func:`ndcg_of_groups`.

    Source: [Voorhees 2005]; ties [McSherry 2008].
    """
    ordered = _Ordered(relevance, scores, groups)
    size, relevant, before = ordered.size, ordered.relevant, ordered.relevant_before
    # A row of a block is relevant with this chance, and then so many of those above it in the block are.
    others = np.where(size > 1, (ordered.place - 1) * (relevant - 1) / np.maximum(size - 1, 1), 0.0)
    precision = relevant / size * (before + 1 + others) / ordered.rank
    total = np.bincount(ordered.group, ordered.is_relevant, ordered.n_groups)
    with np.errstate(invalid="ignore"):
        return np.where(total > 0, np.bincount(ordered.group, precision, ordered.n_groups) / total, np.nan)


def reciprocal_rank_of_groups(relevance: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """One over the rank of the first relevant row of each group ``[n_groups]``.

    The expectation over the orders of rows with equal scores. NaN for a group without any relevant row. Arguments
    are those of :func:`ndcg_of_groups`.

    Source: [Voorhees 2005]; ties [McSherry 2008].
    """
    ordered = _Ordered(relevance, scores, groups)
    size, relevant, place = ordered.size, ordered.relevant, ordered.place
    possible = (relevant > 0) & (ordered.relevant_before == 0) & (place <= size - relevant + 1)
    # The chance that the first relevant row of the block is this one: all others are below it.
    below = np.where(possible, size - place, 0.0)
    chosen = np.where(possible, relevant - 1, 0.0)
    log_chance = _log_choose(below, chosen) - _log_choose(
        np.where(possible, size, 0.0), np.where(possible, relevant, 0.0)
    )
    found = np.bincount(
        ordered.group, np.where(possible, np.exp(log_chance) / ordered.rank, 0.0), ordered.n_groups
    )
    total = np.bincount(ordered.group, ordered.is_relevant, ordered.n_groups)
    return np.where(total > 0, found, np.nan)


def mean_over_groups(values: np.ndarray) -> MeanFigure:
    """The mean of a figure over the groups that have it, with its standard error.

    Args:
        values: of each group ``[n_groups]``; NaN where a group has none.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return MeanFigure(float("nan"), None, 0)
    error = float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else None
    return MeanFigure(float(known.mean()), error, len(known))


class _Ordered:
    """Rows by group and falling score; rows of one group with equal scores are a block.

    All attributes but ``order`` and ``n_groups`` are of the rows in that order ``[n]``.

    Attributes:
        order: numbers of the rows.
        n_groups: how many groups there are.
        group: number of the group.
        rank: in the group, from 1.
        place: in the block, from 1.
        size: rows in the block.
        is_relevant: 1 for a relevance above 0.
        relevant: relevant rows in the block.
        relevant_before: relevant rows of the group that are above the block.
    """

    def __init__(self, relevance: np.ndarray, scores: np.ndarray, groups: np.ndarray):
        groups, scores = np.asarray(groups, np.int64), np.asarray(scores, np.float64)
        self.order = np.lexsort((-scores, groups))
        self.group, scores = groups[self.order], scores[self.order]
        self.n_groups = int(groups.max()) + 1 if len(groups) else 0
        n = len(groups)
        new_group = np.ones(n, bool)
        new_group[1:] = self.group[1:] != self.group[:-1]
        new_block = new_group.copy()
        new_block[1:] |= scores[1:] != scores[:-1]
        self._starts, self._block = np.flatnonzero(new_block), np.cumsum(new_block) - 1
        at = np.arange(n)
        self.rank = at - np.maximum.accumulate(np.where(new_group, at, 0)) + 1
        self.place = at - self._starts[self._block] + 1 if n else at
        self.size = np.bincount(self._block)[self._block] if n else at
        self.is_relevant = (np.asarray(relevance, np.float64)[self.order] > 0).astype(np.float64)
        so_far = np.cumsum(self.is_relevant) - self.is_relevant
        self.relevant = self._in_block(self.is_relevant)
        of_group = np.maximum.accumulate(np.where(new_group, so_far, 0.0))
        self.relevant_before = so_far[self._starts][self._block] - of_group if n else so_far

    def mean_in_block(self, values: np.ndarray) -> np.ndarray:
        """The mean over its block ``[n]``, for values of the rows as they came."""
        return self._in_block(values[self.order]) / self.size

    def _in_block(self, values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values, self._starts)[self._block] if len(values) else values


def _discounts(rank: np.ndarray, k: int | None) -> np.ndarray:
    found = 1 / np.log2(rank + 1)
    return found if k is None else np.where(rank <= k, found, 0.0)


def _log_choose(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
