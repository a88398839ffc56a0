"""A kernel density of rows with numbers, categories and gaps, its kernels shaped by the class of their row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from thalweg.energies.base import standard_normal
from thalweg.energies.densities.basic import Density

_SHRINKAGE = 0.5
_WIDTHS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4)
_SMOOTHINGS = (0.02, 0.05, 0.1, 0.2, 0.4)
_MOST_JUDGED = 1000
_BLOCK = 2**23


class KernelDensity(Density):
    """p(x) = mean over rows i of N(numbers; numbers_i, h^2 S_k(i)) times a kernel for each category, log Z = 0.

    S_k is the covariance of the numbers of i's class, shrunk halfway to a multiple of the identity, so that a row
    off the directions in which its class varies is unlikely however near it is to some other row. A category's
    kernel keeps its value with probability 1 - s and draws it evenly otherwise, from the values seen and one for
    all others. Missing cells are summed out: p is then that of the cells that are known. Numbers are best given
    standardised.

    Args:
        rows: ``[n, D]``; -1 where a cell of a category is missing.
        classes: class of each row ``[n]``, from 0.
        n_values: for each column the number of values of a category (0, 1, ...), or 0 for numbers.
        factors: lower Cholesky factors of h^2 S_k over the columns of numbers ``[C, d, d]``.
        smoothing: s.

    Source: shaped kernels as in [Wand 1994, sec. 2]; categories [Aitchison 1976].
    """

    rows: Tensor
    classes: Tensor
    factors: Tensor
    smoothing: Tensor

    def __init__(
        self, rows: Tensor, classes: Tensor, n_values: Sequence[int], factors: Tensor, smoothing: Tensor | float
    ):
        super().__init__()
        order = torch.argsort(classes, stable=True)
        self.register_buffer("rows", rows[order])
        self.register_buffer("classes", classes[order].long())
        self.register_buffer("factors", factors)
        self.register_buffer("smoothing", torch.as_tensor(smoothing, dtype=rows.dtype))
        self.n_values = [int(n) for n in n_values]
        self.numbers = [d for d, n in enumerate(self.n_values) if not n]
        self.categories = [d for d, n in enumerate(self.n_values) if n]

    @classmethod
    def of(
        cls,
        rows: np.ndarray,
        classes: np.ndarray | None = None,
        n_values: Sequence[int] | None = None,
        most_rows: int = 4000,
        seed: int = 0,
    ) -> KernelDensity:
        """The density of these rows, with the width of kernels under which each is likeliest by the others.

        Args:
            rows: ``[n, D]``; NaN where a cell is missing.
            classes: of each row ``[n]``, from 0; None is one class.
            n_values: as in the class; None takes all columns as numbers.
            most_rows: number of rows kept, drawn at random if there are more.
            seed: of that draw.

        Raises:
            ValueError: if there is no row, or one with an infinite value.
        """
        x = np.asarray(rows, np.float64)
        if not len(x) or np.isinf(x).any():
            raise ValueError("a kernel density needs at least one row, and none with an infinite value")
        counts = [0] * x.shape[1] if n_values is None else list(n_values)
        kinds = (
            np.zeros(len(x), int) if classes is None else np.unique(np.asarray(classes), return_inverse=True)[1]
        )
        if len(x) > most_rows:
            kept = np.sort(np.random.RandomState(seed).permutation(len(x))[:most_rows])
            x, kinds = x[kept], np.unique(kinds[kept], return_inverse=True)[1]
        numbers = [d for d, n in enumerate(counts) if not n]
        x = x.copy()
        x[:, numbers] = _filled(x[:, numbers], kinds)
        x = np.where(np.isnan(x), -1.0, x)
        factors = _shapes(x[:, numbers], kinds)
        density = cls(*_tensors(x, kinds), counts, torch.from_numpy(factors), 0.1)
        width, smoothing = density._likeliest(np.random.RandomState(seed))
        return cls(*_tensors(x, kinds), counts, torch.from_numpy(width * factors), smoothing)

    def _likeliest(self, rng: np.random.RandomState) -> tuple[float, float]:
        """The width and the smoothing under which rows are likeliest by the other rows of their class."""
        best, found = -math.inf, (1.0, 0.1)
        chosen = np.sort(rng.permutation(len(self.rows))[:_MOST_JUDGED])
        parts = []
        for k in range(len(self.factors)):
            place = torch.from_numpy(chosen[(self.classes[chosen] == k).numpy()])
            if len(place) > 1:
                x = self.rows[place]
                square = self._squares(x, x, k, self.numbers).fill_diagonal_(math.inf)
                parts.append((square, self._agreements(x, x), len(place)))
        smoothings = _SMOOTHINGS if self.categories else _SMOOTHINGS[:1]
        for width in _WIDTHS if parts and self.numbers else (1.0,):
            for smoothing in smoothings if parts else (0.1,):
                total = 0.0
                for square, agreements, n in parts:
                    log_kernel = -0.5 * square / width**2 - len(self.numbers) * math.log(width)
                    for d, agree in agreements.items():
                        log_kernel = log_kernel + self._log_agreement(agree, d, torch.tensor(smoothing))
                    total += float((torch.logsumexp(log_kernel, 1) - math.log(n - 1)).clamp(min=-1e4).sum())
                if total > best:
                    best, found = total, (width, smoothing)
        return found

    def log_prob(self, x: Tensor) -> Tensor:
        # Squared distances in single precision lose what is near.
        flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).to(self.rows.dtype)
        size = max(1, _BLOCK // max(1, len(self.rows)))
        parts = [self._log_prob(block) for block in flat.split(size)]
        return torch.cat(parts).reshape(x.shape[:-1]) if parts else flat.new_zeros(x.shape[:-1])

    def _log_prob(self, x: Tensor) -> Tensor:
        gaps = torch.isnan(x)
        if not gaps.any():
            return self._of_known(x, self.numbers, self.categories)
        found = x.new_zeros(len(x))
        patterns, which = torch.unique(gaps, dim=0, return_inverse=True)
        for i, pattern in enumerate(patterns):
            known = {d for d in range(x.shape[1]) if not pattern[d]}
            rows = which == i
            numbers, categories = ([d for d in part if d in known] for part in (self.numbers, self.categories))
            found[rows] = self._of_known(x[rows], numbers, categories)
        return found

    def _of_known(self, x: Tensor, numbers: list[int], categories: list[int]) -> Tensor:
        """log p of rows ``[N, D]`` in which these columns are known."""
        return torch.logsumexp(self._log_kernels(x, numbers, categories), 1) - math.log(len(self.rows))

    def log_parts(self, x: Tensor) -> Tensor:
        """log p(x, class), what the rows of each class contribute ``[N, C]``, for rows without gaps."""
        kernels = self._log_kernels(x, self.numbers, self.categories)
        parts = [
            torch.logsumexp(kernels[:, self.classes == k], 1) if (self.classes == k).any()
            else kernels.new_full((len(x),), -math.inf)
            for k in range(len(self.factors))
        ]  # fmt: skip
        return torch.stack(parts, 1) - math.log(len(self.rows))

    def _log_kernels(self, x: Tensor, numbers: list[int], categories: list[int]) -> Tensor:
        """The log kernel of every row at every x ``[N, n]``."""
        parts = []
        for k in range(len(self.factors)):
            own = self.rows[self.classes == k]
            if not len(own):
                continue
            log_kernel = x.new_zeros((len(x), len(own)))
            if numbers:
                volume = self._factor(k, numbers).diagonal().log().sum()
                constant = volume + 0.5 * len(numbers) * math.log(2 * math.pi)
                log_kernel = -0.5 * self._squares(x, own, k, numbers) - constant
            for d, agree in self._agreements(x, own, categories).items():
                log_kernel = log_kernel + self._log_agreement(agree, d, self.smoothing)
            parts.append(log_kernel)
        return torch.cat(parts, 1)

    def _factor(self, k: int, numbers: list[int]) -> Tensor:
        """The Cholesky factor of a class's kernel over some of the columns of numbers."""
        factor = self.factors[k]
        if len(numbers) == len(self.numbers):
            return factor
        place = [self.numbers.index(d) for d in numbers]
        return torch.linalg.cholesky(factor[place] @ factor[place].T)

    def _squares(self, x: Tensor, rows: Tensor, k: int, numbers: list[int]) -> Tensor:
        """Squared distances of x from rows ``[N, n]`` in units of the kernel of class k."""
        factor = self._factor(k, numbers)
        centre = rows[:, numbers].mean(0)
        a, b = (
            torch.linalg.solve_triangular(factor, (part[:, numbers] - centre).T, upper=False).T
            for part in (x, rows)
        )
        squares = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T
        return squares.clamp_min(0.0)

    def _agreements(self, x: Tensor, rows: Tensor, categories: list[int] | None = None) -> dict[int, Tensor]:
        """By column of categories: 1 where x has the value of a row, 0 where not, NaN where the row has none."""
        found = {}
        for d in self.categories if categories is None else categories:
            agree = (x[:, d, None] == rows[:, d]).to(x.dtype)
            found[d] = torch.where(rows[:, d] < 0, math.nan, agree)
        return found

    def _log_agreement(self, agree: Tensor, d: int, smoothing: Tensor) -> Tensor:
        """The log kernel of a category; even over all values where the row's own is missing."""
        n = self.n_values[d] + 1
        apart = smoothing / n
        same = (1 - smoothing + apart).log()
        even = torch.full_like(agree, -math.log(n))
        return torch.where(torch.isnan(agree), even, torch.where(agree > 0, same, apart.log()))

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        which = torch.randint(len(self.rows), (n,), generator=generator, device=self.rows.device)
        return self._moved(self.rows[which], generator, which)

    def _moved(self, x: Tensor, generator: torch.Generator | None, which: Tensor) -> Tensor:
        """Draws from the kernels of rows of these numbers."""
        x, n = x.clone(), len(x)
        if self.numbers:
            noise = standard_normal((n, len(self.numbers)), x, generator)
            x[:, self.numbers] += torch.einsum("nde,ne->nd", self.factors[self.classes[which]], noise)
        for d in self.categories:
            # The value for all others is none that a draw could have.
            even = torch.randint(self.n_values[d], (n,), generator=generator, device=x.device).to(x.dtype)
            moves = torch.rand(n, generator=generator, device=x.device) < self.smoothing
            x[:, d] = torch.where(moves | (x[:, d] < 0), even, x[:, d])
        return x

    def fill(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """x ``[N, D]`` with the missing cells of each row drawn from their distribution given its known ones."""
        out = x.to(self.rows.dtype).clone()
        gaps = torch.isnan(out)
        patterns, which = torch.unique(gaps, dim=0, return_inverse=True)
        for i, pattern in enumerate(patterns):
            if not pattern.any():
                continue
            place = (which == i).nonzero()[:, 0]
            for rows in place.split(max(1, _BLOCK // len(self.rows))):
                out[rows] = self._filled_in(out[rows], pattern, generator)
        return out

    def _filled_in(self, x: Tensor, missing: Tensor, generator: torch.Generator | None) -> Tensor:
        """The same of rows of which the same cells are missing."""
        is_missing = missing.tolist()
        known = [d for d in self.numbers if not is_missing[d]]
        lacking = [d for d in self.numbers if is_missing[d]]
        log_kernels = self._log_kernels(x, known, [d for d in self.categories if not is_missing[d]])
        which = torch.multinomial(log_kernels.softmax(1), 1, generator=generator)[:, 0]
        drawn = self._moved(self.rows[which], generator, which)
        x = x.clone()
        for d in self.categories:
            if is_missing[d]:
                x[:, d] = drawn[:, d]
        if lacking:
            # Of a Gaussian kernel: what lacks, drawn beside what is known, moves with how far that is off.
            of_known = [self.numbers.index(d) for d in known]
            of_lacking = [self.numbers.index(d) for d in lacking]
            covariance = self.factors @ self.factors.mT
            values = drawn[:, lacking]
            if known:
                square = covariance[:, of_known][:, :, of_known]
                gain = torch.linalg.solve(square, covariance[:, of_known][:, :, of_lacking])  # [C, known, lacking]
                values = values + torch.einsum(
                    "nk,nkl->nl", x[:, known] - drawn[:, known], gain[self.classes[which]]
                )
            x[:, lacking] = values
        return x


def _filled(numbers: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Numbers ``[n, d]`` with the mean of their class, or of all rows, where they are missing."""
    gaps = np.isnan(numbers)
    if not gaps.any():
        return numbers
    known = (~gaps).sum(0)
    overall = np.where(known > 0, np.where(gaps, 0.0, numbers).sum(0) / np.maximum(known, 1), 0.0)
    out = numbers.copy()
    for k in range(kinds.max() + 1):
        rows = kinds == k
        n = (~gaps[rows]).sum(0)
        mean = np.where(n > 0, np.where(gaps[rows], 0.0, numbers[rows]).sum(0) / np.maximum(n, 1), overall)
        out[rows] = np.where(gaps[rows], mean, numbers[rows])
    return out


def _shapes(numbers: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Cholesky factors of the shrunk covariance of each class ``[C, d, d]``."""
    n_columns = numbers.shape[1]
    overall = max(float(numbers.var(0).mean()) if n_columns else 1.0, 1e-12)
    factors = []
    for k in range(kinds.max() + 1):
        own = numbers[kinds == k]
        covariance = (
            np.atleast_2d(np.cov(own.T, bias=True)) if len(own) > 1 and n_columns else np.zeros((n_columns,) * 2)
        )
        # A class of few or equal rows is no sharper than a tenth of all rows' spread.
        level = max(float(np.trace(covariance)) / max(n_columns, 1), 0.1 * overall)
        shrunk = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * level * np.eye(n_columns)
        factors.append(np.linalg.cholesky(shrunk) if n_columns else np.zeros((0, 0)))
    return np.stack(factors)


def _tensors(rows: np.ndarray, kinds: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(rows), torch.from_numpy(kinds)
