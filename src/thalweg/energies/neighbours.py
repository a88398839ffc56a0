"""An energy that is low where rows of a table lie close together: logarithms of distances to neighbours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from thalweg.energies.base import Energy

# Distances that are held at once: of some rows to all.
_BLOCK = 2**20
# A view in which a row is more usual than others counts by this much only, and not beyond so many deviations.
_BELOW, _LEAST = 0.3, -3.0
METRICS = ("standard", "robust", "curved")


class View(NamedTuple):
    """One way to see how far off a row is.

    Attributes:
        metric: "standard", of rows as they are; "robust", with the weights; "curved", after the curves.
        k: of which neighbour the distance counts; below 1 it is a share of the rows.
    """

    metric: str
    k: float


VIEWS = (View("standard", 1), View("curved", 1), View("standard", 0.1), View("robust", 0.1))


class NeighbourEnergy(Energy):
    """How far a row is from its k-th nearest of known rows, on a logarithmic scale, in several views.

    Up to a factor and a constant, log r_k, r_k the distance to the k-th neighbour, is minus the logarithm of the
    k-th nearest neighbour's density: log p(x) = -D log r_k + constant. With k = 1 the energy follows every detail
    of the data; with k = a tenth of the rows, a few rows that are odd together do not vouch for one another. Each
    view is standardised by what it is for rows that were held out, and counts by 0.3 only below that average, down
    to three standard deviations: what one view finds odd is not excused by another that finds nothing. The energy
    is the mean of the views.

    The rows are in K folds, and there is one energy for each: that of the rows of all the other folds. The energy
    of a row is their mean. A gap (NaN) is a cell that is not known: distances are over the cells that both rows
    have, scaled up to all columns.

    Args:
        rows: known rows ``[n, D]``, NaN where a cell is missing, numbers standardised, categories whole numbers.
        folds: fold of each row ``[n]``, from 0; at least two.
        costs: for each column ``[D]`` the squared distance of two categories, or 0 where it is one of numbers.
        weights: for each column ``[D]`` the factor of squared distances in the "robust" metric; None is 1.
        curves: places and values of a curve of each column, ``[D, Q]`` each, linear in between and of slope 1
            beyond: what the "curved" metric is of. None is no curve.
        views: what the energy is the mean of.

    Source: nearest-neighbour density [Loftsgaarden 1965]; distances as scores of outliers [Ramaswamy 2000].
    """

    rows: Tensor
    curved: Tensor
    known: Tensor
    costs: Tensor
    weights: Tensor
    places: Tensor
    values: Tensor
    floors: Tensor
    centers: Tensor
    scales: Tensor

    def __init__(
        self,
        rows: Tensor,
        folds: Tensor,
        costs: Tensor,
        weights: Tensor | None = None,
        curves: tuple[Tensor, Tensor] | None = None,
        views: Sequence[View] = VIEWS,
    ) -> None:
        super().__init__()
        rows = rows[torch.argsort(folds, stable=True)]
        n_columns = rows.shape[1]
        straight = torch.tensor([0.0, 1.0]).to(rows).expand(n_columns, 2)
        places, values = (straight, straight) if curves is None else curves
        self.views = list(views)
        self.sizes = [int(n) for n in torch.bincount(folds)]
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        self._bounds = [(end - size, end) for end, size in zip(ends, self.sizes, strict=True)]
        self.register_buffer("known", ~rows.isnan())
        self.register_buffer("rows", rows.nan_to_num(0.0))
        self.register_buffer("costs", costs.to(rows))
        self.register_buffer("weights", torch.ones(n_columns).to(rows) if weights is None else weights.to(rows))
        self.register_buffer("places", places.to(rows).clone())
        self.register_buffer("values", values.to(rows).clone())
        self.register_buffer("curved", self._bent(self.rows))
        self.register_buffer("floors", rows.new_full((len(views),), 1e-6))
        self.register_buffer("centers", rows.new_zeros(len(views)))
        self.register_buffer("scales", rows.new_ones(len(views)))

    def standardise(self) -> Tensor:
        """Learn what each view is for rows that were held out; their energies, in the order of ``rows``.

        Every row is held out once, with its fold.
        """
        rows = torch.where(self.known, self.rows, math.nan)
        squares = rows.new_empty(len(rows), len(self.views))
        for fold, (first, last) in enumerate(self._bounds):
            for x, place in _pieces(rows[first:last], _BLOCK // len(rows)):
                squares[first + place.start : first + place.stop] = self._nearest(self._squares(x), fold)
        for view, found in enumerate(squares.unbind(1)):
            known = found[found.isfinite()]
            positive = known[known > 0]
            # Equal rows are at distance 0, whose logarithm is cut off at a hundredth of a usual distance.
            self.floors[view] = 1e-4 * positive.median() if len(positive) else 1.0
            logs = 0.5 * (known + self.floors[view]).log()
            spread = float(logs.std(correction=0)) if len(logs) else 0.0
            self.centers[view] = logs.mean() if len(logs) else 0.0
            self.scales[view] = spread if spread > 1e-6 else 1.0
        return self._combined(squares)

    def forward(self, x: Tensor) -> Tensor:
        return self.by_fold(x).mean(-1)

    def by_fold(self, x: Tensor) -> Tensor:
        """The energy of each row by the rows of all folds but one: ``[*batch, D]`` -> ``[*batch, folds]``."""
        flat = x.reshape(-1, x.shape[-1])
        found = [self._energies(piece) for piece, _ in _pieces(flat, _BLOCK // len(self.rows))]
        energies = torch.cat(found) if found else flat.new_zeros(0, len(self.sizes))
        return energies.reshape(*x.shape[:-1], len(self.sizes))

    def by_cell(self, x: Tensor) -> Tensor:
        """How much lower each of these energies were if a cell was not known: ``[n, D]`` -> ``[n, folds, D]``."""
        with_all = self.by_fold(x)
        lower = torch.zeros_like(with_all)[..., None].repeat(1, 1, x.shape[1])
        for d in range(x.shape[1]):
            # A row without this cell is as it is.
            there = ~x[:, d].isnan()
            without = x[there]
            without[:, d] = math.nan
            lower[there, :, d] = with_all[there] - self.by_fold(without)
        return lower

    # -- distances -----------------------------------------------------------------------------------

    def _bent(self, x: Tensor) -> Tensor:
        """Rows ``[b, D]`` after the curves of the columns."""
        last = self.places.shape[1] - 1
        right = torch.searchsorted(self.places, x.detach().T.contiguous()).clamp(1, last).T
        column = torch.arange(x.shape[1], device=x.device)
        x0, x1 = self.places[column, right - 1], self.places[column, right]
        y0, y1 = self.values[column, right - 1], self.values[column, right]
        inside = x.clamp(self.places[:, 0], self.places[:, -1])
        share = (inside - x0) / torch.where(x1 > x0, x1 - x0, 1.0)
        return y0 + share * (y1 - y0) + (x - inside)

    def _squares(self, x: Tensor) -> dict[str, Tensor]:
        """Squared distances ``[b, n]`` in each metric over the cells that both have, infinite if they share none.

        Column by column and not by a product of matrices: equal rows are at distance 0 exactly, and a distance
        does not depend on the rows beside it.
        """
        missing = x.isnan()
        # Squares of far larger numbers would overflow.
        x = x.nan_to_num(0.0).clamp(-1e15, 1e15)
        bent = self._bent(x)
        sums = {view.metric: x.new_zeros(len(x), len(self.rows)) for view in self.views}
        shared = x.new_full((1, 1), float(x.shape[1]))
        whole = not bool(missing.any()) and bool(self.known.all())
        for d in range(x.shape[1]):
            both = None
            if not whole and (bool(missing[:, d].any()) or not bool(self.known[:, d].all())):
                both = ~missing[:, d, None] & self.known[None, :, d]
                shared = shared - (~both).to(x.dtype)
            differ = (x[:, d, None] - self.rows[None, :, d]).square()
            parts = {"standard": differ, "robust": differ * self.weights[d]}
            if bool(self.costs[d] > 0):
                parts = dict.fromkeys(METRICS, torch.where(differ == 0, 0.0, self.costs[d]))
            elif "curved" in sums:
                parts["curved"] = (bent[:, d, None] - self.curved[None, :, d]).square()
            for metric in sums:
                part = parts[metric]
                sums[metric] = sums[metric] + (part if both is None else torch.where(both, part, 0.0))
        if whole:
            return sums
        factor = x.shape[1] / shared.clamp(min=1.0)
        return {m: torch.where(shared > 0, total * factor, math.inf) for m, total in sums.items()}

    def _nearest(self, squares: dict[str, Tensor], fold: int) -> Tensor:
        """Squared distances to the neighbours in all other folds ``[b, views]``."""
        first, last = self._bounds[fold]
        n = len(self.rows) - (last - first)
        others = {m: torch.cat([s[:, :first], s[:, last:]], 1) for m, s in squares.items()}
        counts = [max(1, min(n, round(view.k * n) if view.k < 1 else int(view.k))) for view in self.views]
        found = [
            others[view.metric].amin(1) if k == 1 else others[view.metric].kthvalue(k, 1).values
            for view, k in zip(self.views, counts, strict=True)
        ]
        return torch.stack(found, 1)

    def _energies(self, x: Tensor) -> Tensor:
        """``[b, D]`` -> ``[b, folds]``."""
        squares = self._squares(x)
        return self._combined(torch.stack([self._nearest(squares, f) for f in range(len(self.sizes))], 1))

    def _combined(self, squares: Tensor) -> Tensor:
        """``[*, views]`` -> ``[*]``; a row that shares no cell with so many others is as usual as any."""
        finite = squares.isfinite()
        logs = 0.5 * (torch.where(finite, squares, 1.0) + self.floors).log()
        z = torch.where(finite, (logs - self.centers) / self.scales, 0.0)
        return torch.where(z > 0, z, _BELOW * z.clamp(min=_LEAST)).mean(-1)


def _pieces(x: Tensor, size: int) -> Iterator[tuple[Tensor, slice]]:
    """Some rows at a time, and where they are."""
    size = max(1, size)
    for first in range(0, len(x), size):
        yield x[first : first + size], slice(first, min(first + size, len(x)))
