"""Held-out figures of a training that do not flatter: rows neither learned from nor chosen by."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def judging_rows(held_out: np.ndarray, weight: np.ndarray | None, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers of the rows that judge each member ``[members, rows]``, and how much each counts there.

    Folds may differ by one row, so short ones repeat a row at weight 0. The order is random: where only some rows
    are asked, they must not be those at the top of a sorted table.

    Args:
        held_out: which rows judge each member ``[n, members]``.
        weight: of the rows ``[n]``, or None.
        seed: of the order.
    """
    shuffle = np.random.RandomState(seed % 2**32).permutation
    index = [shuffle(np.flatnonzero(h)) for h in held_out.T]
    longest = max(len(i) for i in index)
    weights = np.ones(len(held_out)) if weight is None else weight
    counted = np.stack([np.where(np.arange(longest) < len(i), weights[np.resize(i, longest)], 0.0) for i in index])
    rows = torch.from_numpy(np.stack([np.resize(i, longest) for i in index]))
    return rows, torch.from_numpy(counted / counted.sum(1, keepdims=True)).float()


class NestedFigure:
    """The held-out figure of an energy: one number, or one for each member of an ensemble.

    The best of many figures on the same rows, by which a training stops, flatters the model. So each fifth of the
    rows is also judged by the weights that are best on the others: :meth:`nested` is the figure of rows that were
    neither learned from nor chosen by.

    Attributes:
        rows: numbers of the rows that judge each member ``[members, rows]``.
    """

    n_parts = 5
    rows: Tensor
    best: Tensor | None = None

    def __call__(self, energy: nn.Module) -> Tensor:
        values, weights = self._of_rows(energy)
        self._judge(values, weights)
        return (values * weights).sum(0)

    def _of_rows(self, energy: nn.Module) -> tuple[Tensor, Tensor]:
        """The figure of each row, and how much it counts, each ``[rows, members]``."""
        raise NotImplementedError

    def _judge(self, values: Tensor, weights: Tensor) -> None:
        """Where these weights are the best so far on all rows but those of one part, they judge that part."""
        values, weights = values.detach().double().cpu(), weights.double().cpu()
        n_parts = min(self.n_parts, len(values))
        if self.best is None:
            self.best = torch.full((n_parts, values.shape[1]), torch.inf, dtype=torch.float64)
            self.judged = values.clone()
        part = (self._order(len(values)) % n_parts)[:, None]
        for k in range(n_parts):
            # A single row has no others to be judged by.
            judges = weights * (part != k) if n_parts > 1 else weights
            figure = (judges * values).sum(0) / judges.sum(0)
            better = figure < self.best[k]
            self.best[k] = torch.where(better, figure, self.best[k])
            self.judged = torch.where(better & (part == k), values, self.judged)
        self.row_weights = weights

    def _order(self, n: int) -> Tensor:
        """Numbers by which rows fall to parts ``[n]``; a row that judges more than once has one number."""
        return torch.arange(n)

    def nested(self) -> Tensor:
        """The figure of each member ``[members]``, each part of the rows by the weights best on the others."""
        return (self.judged * self.row_weights).sum(0)

    def nested_rows(self, n_rows: int) -> Tensor:
        """The same of each training row ``[n_rows, members]``; NaN where a member has learned from it."""
        found = torch.full((n_rows, self.judged.shape[1]), torch.nan, dtype=torch.float64)
        for member, rows in enumerate(self.rows[: self.judged.shape[1]]):
            found[rows[: len(self.judged)], member] = self.judged[:, member]
        return found

    def state(self) -> dict[str, Tensor]:
        """What a training that is resumed needs of it."""
        return {} if self.best is None else {"best": self.best, "judged": self.judged, "weights": self.row_weights}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.best = state["best"].clone() if state else None
        if state:
            self.judged, self.row_weights = state["judged"].clone(), state["weights"].clone()
