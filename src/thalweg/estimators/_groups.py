"""Parts of a ranker: relevance and groups checked, lists to learn from, the held-out figure of its members."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.utils.validation import column_or_1d
from torch import Tensor, nn

from thalweg.energies.networks.ranking_members import RankingMembers
from thalweg.estimators._held_out import NestedFigure, judging_rows
from thalweg.evaluation.ranking import CUTOFF, MOST_RELEVANT, ndcg_of_groups

# Pairs grow with the square of a list's length, and this is as many as are compared at once.
_LONGEST_LIST = 128
# So many padded numbers are no burden, whatever share of the table they are.
_FEW_NUMBERS = 16_000_000
_SHORTEST_CUT = 16


def checked_relevance(y: Any, n_rows: int) -> np.ndarray:
    """Relevance as float64 ``[n]``.

    Raises:
        ValueError: for what is no whole number from 0 to 30 for each row.
    """
    values = column_or_1d(y, warn=True)
    if len(values) != n_rows:
        raise ValueError(
            f"X has {n_rows} rows, y has {len(values)}: Found input variables with inconsistent numbers of samples"
        )
    gaps = pd.isna(values)
    if gaps.any():
        raise ValueError(
            f"Input y contains NaN: the relevance of row {_first(gaps)} is missing ({int(gaps.sum())} in all); "
            "leave such rows out, or write 0 where nobody found the row relevant"
        )
    try:
        found = np.asarray(values).astype(np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"Unknown label type: relevance must be numbers, such as 0, 1 and 2, got {values[0]!r}"
        ) from error
    if np.asarray(values).dtype.kind in "mM":
        raise ValueError("relevance must be numbers, such as 0, 1 and 2, and not dates or spans of time")
    if np.isinf(found).any():
        raise ValueError(f"Input y contains infinity in row {_first(np.isinf(found))}: relevance must be finite")
    for wrong, words in (
        (found < 0, "negative: the least relevant rows have 0"),
        (found != np.round(found), "no whole number: give grades, such as 0 to 4"),
        (found > MOST_RELEVANT, f"above {MOST_RELEVANT}: gains are 2^relevance - 1, give grades such as 0 to 4"),
    ):
        if wrong.any():
            raise ValueError(f"the relevance of row {_first(wrong)} is {found[wrong][0]:g}, which is {words}")
    return found


def numbered_groups(groups: Any, n_rows: int) -> np.ndarray:
    """The number of each row's group ``[n]``, from 0, in the order in which the groups come.

    Raises:
        ValueError: if there are no groups, not one for each row, or one is missing.
    """
    if groups is None:
        raise ValueError("give the groups: for each row the query, session or race whose rows are compared")
    if isinstance(groups, np.ndarray | pd.DataFrame) and groups.ndim != 1:
        raise ValueError(f"groups must be one column, one group for each row; got shape {np.shape(groups)}")
    ids = groups if isinstance(groups, pd.Series) else pd.Series(list(groups), dtype=object)
    if len(ids) != n_rows:
        raise ValueError(f"there are {n_rows} rows and {len(ids)} groups: give the group of each row")
    gaps = ids.isna().to_numpy()
    if gaps.any():
        raise ValueError(f"the group of row {_first(gaps)} is missing ({int(gaps.sum())} in all)")
    try:
        return pd.factorize(ids)[0]
    except TypeError as error:
        raise ValueError("a group must be named by a number, a text or another hashable value") from error


def teaching_groups(relevance: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Whether the rows of each group differ in relevance ``[n_groups]``: there is nothing to rank in others."""
    by_group = pd.Series(relevance).groupby(numbers)
    return (by_group.max() > by_group.min()).to_numpy()


def _first(where: np.ndarray) -> int:
    return int(np.flatnonzero(where)[0]) + 1


def lists_of(numbers: np.ndarray, width: int, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Groups as lists of rows, padded to one length.

    A group that is longer than the longest list is dealt into several, at random: a few long groups among many
    short ones would otherwise take the memory of as many long ones.

    Args:
        numbers: of each row's group ``[n]``.
        width: numbers in a row.

    Returns:
        numbers of the rows ``[lists, length]``, -1 where padded; and the group of each list ``[lists]``.
    """
    groups, sizes = np.unique(numbers, return_counts=True)
    length = min(int(sizes.max()), _LONGEST_LIST)
    most = max(4 * len(numbers) * width, _FEW_NUMBERS)
    while length > _SHORTEST_CUT and int((-(-sizes // length)).sum()) * length * width > most:
        length = max(length // 2, _SHORTEST_CUT)
    n_parts = -(-sizes // length)
    order = np.lexsort((rng.uniform(size=len(numbers)), numbers))
    group = np.repeat(np.arange(len(groups)), sizes)
    place = np.arange(len(numbers)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    offset = np.cumsum(n_parts) - n_parts
    rows = np.full((int(n_parts.sum()), length), -1)
    rows[offset[group] + place % n_parts[group], place // n_parts[group]] = order
    return rows, np.repeat(groups, n_parts)


class HeldOutNDCG(NestedFigure):
    """One minus the mean NDCG at 10 of groups that a member did not learn from, the whole groups.

    Args:
        x: inputs of all rows ``[n, D]``.
        relevance: ``[n]``.
        numbers: of each row's group ``[n]``, from 0.
        held_out: which groups judge each member ``[n_groups, members]``.
        seed: of the order of the groups.

    Attributes:
        rows: numbers of the groups that judge each member ``[members, groups]``.
    """

    def __init__(self, x: Tensor, relevance: np.ndarray, numbers: np.ndarray, held_out: np.ndarray, seed: int):
        self.rows, self.weights = judging_rows(held_out, None, seed)
        self.x = x
        order = np.argsort(numbers, kind="stable")
        sizes = np.bincount(numbers, minlength=len(held_out))
        starts = np.cumsum(sizes) - sizes
        parts, slots = [], []
        for member, judges in enumerate(self.rows.numpy()):
            parts.append(np.concatenate([order[starts[g] : starts[g] + sizes[g]] for g in judges]))
            slots.append(np.repeat(member * len(judges) + np.arange(len(judges)), sizes[judges]))
        longest = max(map(len, parts))
        # Every member is asked of as many rows as the others: short ones repeat theirs, which are not counted.
        self._asked = torch.from_numpy(np.stack([np.resize(part, longest) for part in parts]))
        self._counted = np.stack([np.arange(longest) < len(part) for part in parts])
        self._slots, self._relevance = np.concatenate(slots), relevance[np.concatenate(parts)]

    def _of_rows(self, energy: nn.Module) -> tuple[Tensor, Tensor]:
        assert isinstance(energy, RankingMembers)
        device = next(energy.parameters()).device
        parts = [energy.member_energies(self.x[rows].to(device)) for rows in self._asked.split(2048, 1)]
        scores = -torch.cat(parts, 1).double().cpu().numpy()
        ndcg = ndcg_of_groups(self._relevance, scores[self._counted], self._slots, CUTOFF)
        return 1 - torch.from_numpy(ndcg).view(self.rows.shape).T, self.weights.T
