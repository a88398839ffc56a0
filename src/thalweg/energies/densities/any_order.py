"""A joint density of mixed columns with gaps: the conditional of each column given any of the others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.energies.base import Features, align, map_features
from thalweg.energies.densities.basic import ConditionalDensity, Density, GaussianMixtureEnergy
from thalweg.energies.densities.tilted import TiltedMixtures
from thalweg.energies.networks.batched import BatchedLinear
from thalweg.energies.networks.dropout import Dropout

# Rows that go through the networks of a column at a time, so that memory does not grow with the rows.
_ROWS_AT_ONCE = 4096
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_NO_LEVEL = -1e9
# Features of tilted mixtures.
_N_FEATURES = 8


class Column(NamedTuple):
    """What a column of the rows is; everything is fit for JSON.

    Attributes:
        n_levels: how many levels it takes, coded 0, 1, ...; 0 is a column of numbers.
        cell: spacing of the grid that the numbers are rounded to, 0 if none. Of levels it is what the log mass is
            spread over: 0 leaves it a log mass.
        curved: whether the conditional is over asinh x, as suits numbers of which a few lie far out.
        atoms: numbers that have positive probability, in the coordinate of the conditional.
        limits: the least and the largest number, in that coordinate, where they are atoms; None is no limit.
        log_unseen: log of the probability that is kept for a level that training did not show.
        edges: of the pieces by which networks follow a number closely.
        mean, std: of the numbers.
    """

    n_levels: int = 0
    cell: float = 0.0
    curved: bool = False
    atoms: tuple[float, ...] = ()
    limits: tuple[float | None, float | None] = (None, None)
    log_unseen: float = -math.inf
    edges: tuple[float, ...] = ()
    mean: float = 0.0
    std: float = 1.0


class RowEncoding(nn.Module):
    """What networks see of a row: numbers, also piecewise linearly on their quantiles, and levels as indicators.

    What is unknown is zero everywhere, and every column has an indicator that it is known.

    Args:
        columns: of the rows.
        max_indicators: levels of a column with an indicator of their own; the others have none.

    Attributes:
        owner: which column each feature tells of ``[width]``.

    Source: pieces [Gorishniy 2022, sec. 3.1]; values times mask beside the mask [Strauss 2021].
    """

    owner: Tensor

    def __init__(self, columns: Sequence[Column], max_indicators: int = 32):
        super().__init__()
        self.n_columns = len(columns)
        numbers = [d for d, c in enumerate(columns) if not c.n_levels]
        pieces = [
            (d, left, right, -2.0 if j == 0 else 0.0, 3.0 if j == len(columns[d].edges) - 2 else 1.0)
            for d in numbers
            for j, (left, right) in enumerate(itertools.pairwise(columns[d].edges))
        ]
        levels = [(d, k) for d, c in enumerate(columns) for k in range(min(c.n_levels, max_indicators))]

        def kept(name: str, values: Sequence[float], dtype: torch.dtype = torch.float32) -> None:
            self.register_buffer(name, torch.tensor(values, dtype=dtype), persistent=False)

        kept("numbers", numbers, torch.long)
        kept("means", [columns[d].mean for d in numbers])
        kept("stds", [columns[d].std for d in numbers])
        kept("piece_of", [p[0] for p in pieces], torch.long)
        for i, name in enumerate(("left", "right", "lowest", "highest"), 1):
            kept(name, [p[i] for p in pieces])
        kept("level_of", [d for d, _ in levels], torch.long)
        kept("level", [float(k) for _, k in levels])
        owner = [*numbers, *(p[0] for p in pieces), *(d for d, _ in levels), *range(len(columns))]
        kept("owner", owner, torch.long)

    def forward(self, x: Tensor) -> Tensor:
        """Rows ``[N, D]``, NaN where unknown -> ``[N, width]``."""
        known = ~x.isnan()
        numbers = ((x[:, self.numbers] - self.means) / self.stds).clamp(-5, 5)  # type: ignore[index,operator]
        pieces = (x[:, self.piece_of] - self.left) / (self.right - self.left)  # type: ignore[index,operator]
        pieces = 2 * torch.minimum(torch.maximum(pieces, self.lowest), self.highest) - 1  # type: ignore[arg-type]
        levels = (x[:, self.level_of] == self.level).to(x.dtype)  # type: ignore[index,attr-defined]
        found = torch.cat([numbers, pieces, levels, known.to(x.dtype)], 1)
        return torch.where(known[:, self.owner], found, 0.0)


class Levels(ConditionalDensity):
    """A categorical distribution for each member, whose logits are given; the energy is minus its log mass.

    Args:
        n_members: members of the mixture.
        n_levels: of y, which is coded 0, 1, ...
    """

    def __init__(self, n_members: int, n_levels: int):
        super().__init__()
        self.n_members, self.n_parameters = n_members, n_levels

    def first_parameters(self) -> Tensor:
        return torch.zeros(self.n_parameters)

    def features(self, x: Tensor) -> Features:
        return F.log_softmax(x, -1)

    def member_log_prob(self, features: Features, y: Tensor) -> Tensor:
        """log mass by each member ``[B, *candidates, n_members]`` of y ``[B, *candidates, 1 or n_members]``."""
        assert isinstance(features, Tensor)
        logs = align(features, y)
        shape = (*y.shape[:-1], self.n_members)
        index = y.long().clamp(0, self.n_parameters - 1).expand(shape).unsqueeze(-1)
        return logs.expand(*shape, -1).gather(-1, index).squeeze(-1)

    def head(self, features: Features, y: Tensor) -> Tensor:
        return math.log(self.n_members) - torch.logsumexp(self.member_log_prob(features, y), -1)

    def masses(self, features: Features) -> Tensor:
        """The probability of each level ``[B, n_levels]``."""
        assert isinstance(features, Tensor)
        return features.exp().mean(1)

    def sample(self, features: Features, generator: torch.Generator | None = None) -> Tensor:
        """One draw for each row ``[B]``."""
        with torch.no_grad():
            return torch.multinomial(self.masses(features), 1, generator=generator)[:, 0].float()

    def draws(self, features: Features, n: int, generator: torch.Generator | None = None) -> Tensor:
        drawn = torch.multinomial(self.masses(features), n, replacement=True, generator=generator)
        return drawn.unsqueeze(-1).float()


class ConditionalBlock(nn.Module):
    """Conditionals of a few columns of one kind, each given any of the other columns, as one batched product.

    Each column has ``n_members`` networks, which share no weights.

    Args:
        which: numbers of the columns, K of them.
        columns: of the rows.
        encoding: what the networks see.
        n_members: networks for each column.
        hidden: widths of their hidden layers.
        dropout: probability of dropping a hidden unit in training.
        n_components, n_tilts: of the tilted mixture of a number.
    """

    hidden_from: Tensor

    def __init__(
        self,
        which: Sequence[int],
        columns: Sequence[Column],
        encoding: RowEncoding,
        n_members: int,
        hidden: Sequence[int] = (128, 128),
        dropout: float = 0.1,
        n_components: int = 5,
        n_tilts: int = 8,
    ):
        super().__init__()
        self.which, self.columns, self.n_members = list(which), [columns[d] for d in which], n_members
        self.encoding = encoding
        first = self.columns[0]
        self.distribution: Any = (
            Levels(n_members, max(c.n_levels for c in self.columns))
            if first.n_levels
            else TiltedMixtures(n_members, n_components, n_tilts, atoms=first.atoms, limits=first.limits)
        )
        n = len(self.which) * n_members
        sizes = [len(encoding.owner), *hidden]
        self.layers: Any = nn.ModuleList(BatchedLinear(n, a, b, gain=1.4) for a, b in itertools.pairwise(sizes))
        self.dropout = Dropout(dropout)
        self.out = BatchedLinear(n, sizes[-1], self.distribution.n_parameters, gain=0.1)
        own = torch.tensor(self.which)
        self.register_buffer("others", (encoding.owner != own[:, None]).float(), persistent=False)
        beyond = torch.arange(self.distribution.n_parameters) >= torch.tensor(
            [[c.n_levels or self.distribution.n_parameters] for c in self.columns]
        )
        self.register_buffer("beyond", beyond, persistent=False)
        with torch.no_grad():
            self.out.bias.copy_(self.distribution.first_parameters().expand_as(self.out.bias))

    others: Tensor
    beyond: Tensor

    @property
    def hidden(self) -> list[int]:
        """Widths of the hidden layers."""
        return [layer.weight.shape[2] for layer in self.layers]

    def outputs(self, features: Tensor) -> Tensor:
        """What the distributions are given ``[K, B, n_members, n_parameters]``.

        Args:
            features: of the rows, with the unknown at zero, ``[K or 1, n_members or 1, B, width]``.
        """
        k, m = len(self.which), self.n_members
        h = features * self.others[:, None, None]
        h = h.expand(k, m, -1, -1).flatten(0, 1)
        for layer in self.layers:
            h = F.silu(layer(h))
            if self.training and self.dropout.probability:
                # One mask for all networks: far fewer random numbers, and they train as well.
                h = h * self.dropout(torch.ones_like(h[0]))
        return self._cut(self.out(h).unflatten(0, (k, m)).transpose(1, 2), slice(None))

    def output_of(self, k: int, features: Tensor) -> Tensor:
        """The same for its k-th column alone ``[1, B, n_members, n_parameters]``, of features ``[B, width]``."""
        own = slice(k * self.n_members, (k + 1) * self.n_members)
        h = (features * self.others[k]).expand(self.n_members, -1, -1)
        for layer in self.layers:
            h = F.silu(torch.baddbmm(layer.bias[own], h, layer.weight[own]))
        out = torch.baddbmm(self.out.bias[own], h, self.out.weight[own])
        return self._cut(out.transpose(0, 1)[None], slice(k, k + 1))

    def _cut(self, out: Tensor, which: slice) -> Tensor:
        """Parameters ``[K, B, n_members, n]``; those of levels that a column has not are very low logits."""
        beyond = self.beyond[which, None, None]
        return out.masked_fill(beyond, _NO_LEVEL) if beyond.any() else out

    def member_log_prob(
        self, found: Features, x: Tensor, columns: Sequence[Column], place: Tensor | None = None
    ) -> Tensor:
        """log p of every network ``[K, B, n_members]``.

        Args:
            found: the distribution's features of ``[K * B, n_members, n_parameters]``.
            x: values ``[K, B, 1 or n_members]``; none may be unknown.
            columns: what these K columns are.
            place: where in their cells rounded numbers are taken to lie, of x's shape; None is at their middle.
        """
        shape = (len(columns), x.shape[1], self.n_members)
        if isinstance(self.distribution, Levels):
            return self.distribution.member_log_prob(found, x.flatten(0, 1)).reshape(shape)
        place = x if place is None else place
        curved = torch.tensor([c.curved for c in columns], device=x.device)[:, None, None]
        y = torch.where(curved, torch.asinh(place), place).expand(shape).flatten(0, 1)
        log_prob = self.distribution.member_log_density(found, y).reshape(shape)
        log_prob = log_prob - torch.where(curved, 0.5 * torch.log1p(place.square()), 0.0)
        # A column with atoms is the only one of its block.
        column = columns[0]
        if not column.atoms:
            return log_prob
        at = self.at_atoms(x[0], column)
        if not at.any():
            return log_prob
        centre = (torch.asinh(x[0]) if column.curved else x[0]).expand(shape[1:])
        log_mass = self.distribution.member_log_mass(found, centre, at.expand(*shape[1:], -1))
        if column.cell:
            return torch.logaddexp(log_prob, log_mass - math.log(column.cell))
        return torch.where(at.any(-1), log_mass, log_prob)

    def at_atoms(self, x: Tensor, column: Column) -> Tensor:
        """Which atom of a column x ``[...]`` is, or in the cell of which it lies if rounded ``[..., n_atoms]``."""
        if not column.cell:
            return self.distribution.at_atoms(torch.asinh(x) if column.curved else x)
        atoms = self.distribution.atoms.to(x.device)
        atoms = torch.sinh(atoms) if column.curved else atoms
        return (x.double().unsqueeze(-1) - atoms).abs() <= 0.5 * column.cell * (1 + 1e-6)


class AnyOrderDensity(Density):
    """p(x) of rows of numbers and levels, unknown where NaN, from p(x_d | any of the other columns).

    The joint density is the chain of these in the order of the columns, p(x_1) p(x_2|x_1) ..., each normalised
    exactly: log Z = 0. An unknown cell is no factor of the chain, and nobody is given it: a row with all cells
    unknown has log p = 0. Given any columns any others are drawn, one after the other; where two orders are asked
    for the same joint probability their answers agree as far as the networks have learned to.

    Each conditional is the mixture of its networks' distributions and, of a number, of that of a Gaussian mixture
    of all numbers, whose conditionals given any of them are known.

    Args:
        columns: what each column is.
        blocks: networks, so that every column is in one of them.
        numbers: which columns the Gaussian mixture is over.
        mixture: it, in double precision; None for none.
        shares: how much of each conditional is the mixture's, in [0, 1] ``[3, D]``: where no later column is
            known, as in the chain; where one is, but no level, of which the mixture knows nothing; where both are.

    Source: one conditional for all sets of columns [Uria 2014], as an energy [Strauss 2021]; densities of two
    kinds mixed by held-out rows [Smyth 1999].
    """

    shares: Tensor

    def __init__(
        self,
        columns: Sequence[Column],
        blocks: Sequence[ConditionalBlock],
        numbers: Sequence[int] = (),
        mixture: GaussianMixtureEnergy | None = None,
        shares: Tensor | None = None,
    ):
        super().__init__()
        self.columns, self.numbers = list(columns), list(numbers)
        self.blocks: Any = nn.ModuleList(blocks)
        self.place = {d: (block, k) for block in blocks for k, d in enumerate(block.which)}
        self.mixture = mixture
        shares = torch.zeros(3, len(columns)) if shares is None else shares
        self.register_buffer("shares", torch.as_tensor(shares, dtype=torch.float32))

    @property
    def n_dims(self) -> int:
        return len(self.columns)

    @property
    def encoding(self) -> RowEncoding:
        return self.blocks[0].encoding

    # -- densities -----------------------------------------------------------------------------------

    def log_prob(self, x: Tensor) -> Tensor:
        return self.column_log_prob(x).sum(-1)

    def column_log_prob(self, x: Tensor) -> Tensor:
        """The factors of the chain, log p(x_d | what is known of x_1..x_{d-1}) ``[..., D]``; 0 where unknown."""
        flat = x.reshape(-1, self.n_dims)
        earlier = torch.ones(self.n_dims, self.n_dims, dtype=torch.bool, device=x.device).tril(-1)
        found = [
            torch.stack([self._conditional(rows, features, d, earlier[d]) for d in range(self.n_dims)], -1)
            for rows, features in self._pieces(flat)
        ]
        return torch.cat(found).reshape(x.shape) if found else torch.zeros_like(x)

    def conditional_log_prob(self, x: Tensor, d: int, given: Tensor) -> Tensor:
        """log p(x_d | those of the other columns that are given and known) ``[N]``; 0 where x_d is unknown.

        Args:
            x: ``[N, D]``.
            given: bool ``[D]``.
        """
        parts = [self._conditional(rows, features, d, given) for rows, features in self._pieces(x)]
        return torch.cat(parts) if parts else x.new_zeros(0)

    def _pieces(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in x.split(_ROWS_AT_ONCE):
            if len(rows):
                yield rows, self.encoding(rows)

    def _conditional(self, x: Tensor, features: Tensor, d: int, given: Tensor) -> Tensor:
        block, k = self.place[d]
        column, known = self.columns[d], ~x[:, d].isnan()
        value = torch.nan_to_num(x[:, d], nan=0.0)
        found = block.distribution.features(block.output_of(k, features * given[self.encoding.owner])[0])
        log_prob = block.member_log_prob(found, value[None, :, None], [column])[0]
        log_prob = torch.logsumexp(log_prob, -1) - math.log(block.n_members)
        if column.n_levels:
            seen = (value >= 0) & (value < column.n_levels) & (value == value.round())
            kept = math.log1p(-math.exp(column.log_unseen))
            log_prob = torch.where(seen, log_prob + kept, column.log_unseen)
            return torch.where(known, log_prob - (math.log(column.cell) if column.cell else 0.0), 0.0)
        if self._has_share(d):
            share = self._share(x, d, given)
            other = self._mixture_log_prob(x, d, given).to(log_prob.dtype)
            if column.atoms and not column.cell:
                # The mixture has a density, and no mass on atoms.
                other = other.masked_fill(block.at_atoms(value, column).any(-1), -torch.inf)
            log_prob = torch.logaddexp(log_prob + torch.log1p(-share), other + share.log())
        return torch.where(known, log_prob, 0.0)

    def masses(self, x: Tensor, d: int, given: Tensor) -> Tensor:
        """The probability of each level of column d ``[N, n_levels]``, given those that are given and known."""
        block, k = self.place[d]
        parts = []
        for _, features in self._pieces(x):
            out = block.output_of(k, features * given[self.encoding.owner])[0]
            masses = block.distribution.masses(block.distribution.features(out))
            parts.append(masses[:, : self.columns[d].n_levels])
        return torch.cat(parts)

    def is_mass(self, x: Tensor) -> Tensor:
        """Which cells of x ``[..., D]`` count with a log mass rather than a log density per unit of length."""
        found = []
        for d, column in enumerate(self.columns):
            value = x[..., d]
            if column.n_levels or not column.atoms:
                found.append(torch.full_like(value, bool(column.n_levels and not column.cell), dtype=torch.bool))
                continue
            found.append(self.place[d][0].at_atoms(value, column).any(-1) & (not column.cell))
        return torch.stack(found, -1)

    def log_volume(self, x: Tensor, log_scale: Tensor) -> Tensor:
        """What log p of x ``[*batch, D]`` loses where each column is stretched by its scale ``[D]``.

        A log mass loses nothing, nor does an unknown cell.
        """
        return self.column_log_volume(x, log_scale).sum(-1)

    def column_log_volume(self, x: Tensor, log_scale: Tensor) -> Tensor:
        """The same of each column ``[*batch, D]``."""
        return torch.where(self.is_mass(x) | x.isnan(), 0.0, log_scale.to(x.device))

    # -- draws ---------------------------------------------------------------------------------------

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.complete(self.shares.new_full((n, self.n_dims), torch.nan), generator)

    def complete(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """x ``[N, D]`` with what is unknown drawn: each column given the known ones and those drawn before it."""
        out = x.clone()
        with torch.no_grad():
            for rows in out.split(_ROWS_AT_ONCE):
                for d in range(self.n_dims):
                    missing = rows[:, d].isnan()
                    if missing.any():
                        rows[missing, d] = self.conditional_draw(rows[missing], d, generator)
        return out

    def conditional_draw(self, x: Tensor, d: int, generator: torch.Generator | None = None) -> Tensor:
        """A draw of x_d for each row ``[N]``, given what is known of the others."""
        block, k = self.place[d]
        column, distribution = self.columns[d], block.distribution
        given = torch.ones(self.n_dims, dtype=torch.bool, device=x.device)
        parts = []
        for _, features in self._pieces(x):
            found = distribution.features(block.output_of(k, features * given[self.encoding.owner])[0])
            parts.append(distribution.sample(found, generator))
        drawn = torch.cat(parts)
        if column.n_levels:
            return drawn
        drawn = torch.sinh(drawn) if column.curved else drawn
        if not self._has_share(d):
            return drawn
        others = _draw_of_mixture(*self._mixture_conditional(x, d, given), generator)
        chosen = torch.rand(len(x), generator=generator, device=x.device) < self._share(x, d, given)
        return torch.where(chosen, others.to(drawn.dtype), drawn)

    def cell(self, x: Tensor, d: int, given: Tensor) -> tuple[CellConditional | TiltedMixtures, Tensor]:
        """p(x_d | those of the other columns that are given and known), of a column of numbers.

        Returns:
            the conditional density, and what it is given of each row ``[N, ...]``: of a column with atoms the
            networks' outputs alone.

        Raises:
            ValueError: if the mixture has a share in a column with atoms.
        """
        block, k = self.place[d]
        outs = [block.output_of(k, f * given[self.encoding.owner])[0] for _, f in self._pieces(x)]
        if self.columns[d].atoms:
            if self._has_share(d):
                raise ValueError(
                    f"column {d} has atoms, and the mixture a share in it: their sum is not known here"
                )
            return block.distribution, torch.cat(outs)
        found = torch.cat(outs).flatten(1)
        if self._has_share(d):
            parts = self._share(x, d, given)[:, None], *self._mixture_conditional(x, d, given)
            found = torch.cat([found, *(part.to(found.dtype) for part in parts)], 1)
        return CellConditional(block.distribution, self.columns[d].curved, self._has_share(d)), found

    # -- the Gaussian mixture ------------------------------------------------------------------------

    def _has_share(self, d: int) -> bool:
        """Whether the Gaussian mixture has a part in the conditional of a column."""
        return self.mixture is not None and bool((self.shares[:, d] > 0).any())

    def _share(self, x: Tensor, d: int, given: Tensor) -> Tensor:
        """Its share in each row ``[N]``."""
        known = ~x.isnan() & given
        later = known[:, d + 1 :].any(1)
        levels = torch.tensor([bool(c.n_levels) for c in self.columns], device=x.device)
        context = torch.where(later, 1 + (known & levels).any(1).long(), 0)
        return self.shares[:, d][context]

    def _mixture_log_prob(self, x: Tensor, d: int, given: Tensor) -> Tensor:
        log_weights, means, stds = self._mixture_conditional(x, d, given)
        z = (x[:, d, None].to(means.dtype) - means) / stds
        return torch.logsumexp(log_weights - 0.5 * z.square() - stds.log(), 1) - _HALF_LOG_2PI

    def _mixture_conditional(self, x: Tensor, d: int, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What x_d follows by the mixture, given those numbers that are given and known.

        Returns:
            log weights, means and standard deviations, each ``[N, C]``.
        """
        assert self.mixture is not None
        own = self.numbers.index(d)
        values = x[:, self.numbers].to(self.mixture.means.dtype)
        known = ~values.isnan() & given[self.numbers]
        known[:, own] = False
        return mixture_conditional(self.mixture, torch.nan_to_num(values), own, known)


def mixture_conditional(
    mixture: GaussianMixtureEnergy, x: Tensor, d: int, known: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The mixture that x_d follows given the known ones of the other coordinates.

    Args:
        x: ``[N, D]``; what is not known may be anything finite.
        known: bool ``[N, D]``, False at d.

    Returns:
        log weights, means and standard deviations, each ``[N, C]``.
    """
    scales = mixture.scales.diag_embed() if mixture.scales.dim() == 2 else mixture.scales
    covariances = scales @ scales.mT
    shape = (len(x), len(mixture.means))
    log_weights, means, stds = (x.new_empty(shape) for _ in range(3))
    patterns, which = torch.unique(known, dim=0, return_inverse=True)
    for p, pattern in enumerate(patterns):
        rows, seen = torch.nonzero(which == p)[:, 0], torch.nonzero(pattern)[:, 0]
        cross = covariances[:, seen, d]
        factor = torch.linalg.cholesky(covariances[:, seen][:, :, seen])
        centred = x[rows][:, seen] - mixture.means[:, None, seen]  # [C, n, K]
        white = torch.linalg.solve_triangular(factor, centred.mT, upper=False)
        gain = torch.linalg.solve_triangular(factor, cross.unsqueeze(-1), upper=False)
        log_likelihood = -0.5 * white.square().sum(1) - factor.diagonal(dim1=1, dim2=2).log().sum(1)[:, None]
        log_weights[rows] = torch.log_softmax(mixture.log_weights[:, None] + log_likelihood, 0).T
        means[rows] = (mixture.means[:, d, None] + (gain * white).sum(1)).T
        variance = covariances[:, d, d] - gain.square().sum((1, 2))
        stds[rows] = variance.clamp(min=1e-12 * covariances[:, d, d]).sqrt()
    return log_weights, means, stds


class CellConditional(ConditionalDensity):
    """p(y | row) of a column of numbers: the networks' tilted mixtures, and a Gaussian mixture in its share.

    What it is given are the parameters of both (see :meth:`AnyOrderDensity.cell`); y is in the coordinate of the
    conditional (see :class:`Column`).

    Args:
        tilted: what the networks' outputs mean.
        curved: whether y is the asinh of what the Gaussian mixture is over.
        shared: whether there is a Gaussian mixture: its share comes first of its parameters.
    """

    def __init__(self, tilted: TiltedMixtures, curved: bool = False, shared: bool = False):
        super().__init__()
        self.tilted, self.curved, self.shared = tilted, curved, shared
        self.limits = tilted.limits

    def features(self, x: Tensor) -> Features:
        n = self.tilted.n_members * self.tilted.n_parameters
        own = self.tilted.features(x[:, :n].unflatten(1, (self.tilted.n_members, -1)))
        assert isinstance(own, tuple)
        return (*own, x[:, n], *x[:, n + 1 :].chunk(3, 1)) if self.shared else own

    def head(self, features: Features, y: Tensor) -> Tensor:
        log_prob = self.tilted.log_density(features[:_N_FEATURES], y)
        if not self.shared:
            return -log_prob
        share = align(features[_N_FEATURES].unsqueeze(-1), y).squeeze(-1)
        log_weights, means, stds = (align(f, y) for f in features[_N_FEATURES + 1 :])
        z = ((torch.sinh(y) if self.curved else y) - means) / stds
        other = torch.logsumexp(log_weights - 0.5 * z.square() - stds.log(), -1) - _HALF_LOG_2PI
        if self.curved:
            other = other + torch.cosh(y.squeeze(-1)).log()
        return -torch.logaddexp(log_prob + torch.log1p(-share), other + share.log())

    def draws(self, features: Features, n: int, generator: torch.Generator | None = None) -> Tensor:
        repeated = map_features(features, lambda f: f.repeat_interleave(n, 0))
        y = self.tilted.sample(repeated[:_N_FEATURES], generator)
        if self.shared:
            share, log_weights, means, stds = repeated[_N_FEATURES:]
            other = _draw_of_mixture(log_weights, means, stds, generator).to(y.dtype)
            chosen = torch.rand(len(y), generator=generator, device=y.device) < share
            y = torch.where(chosen, torch.asinh(other) if self.curved else other, y)
        return y.reshape(-1, n, 1)

    def landmarks(self, features: Features) -> tuple[Tensor, Tensor] | None:
        found = self.tilted.landmarks(features[:_N_FEATURES])
        if not self.shared or found is None:
            return found
        _, _, means, stds = features[_N_FEATURES:]
        if self.curved:
            means, stds = torch.asinh(means), stds / torch.sqrt(1 + means.square())
        return torch.cat([found[0], means], 1), torch.cat([found[1], stds], 1)


def _draw_of_mixture(
    log_weights: Tensor, means: Tensor, stds: Tensor, generator: torch.Generator | None
) -> Tensor:
    """A draw for each row ``[N]`` of mixtures ``[N, C]``."""
    which = torch.multinomial(log_weights.exp(), 1, generator=generator)
    noise = torch.randn(len(means), generator=generator, device=means.device, dtype=means.dtype)
    return means.gather(1, which)[:, 0] + stds.gather(1, which)[:, 0] * noise
