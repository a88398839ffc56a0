"""A joint density as a chain of conditionals, each normalised exactly: E(x) = sum_d E_d(x_d | x_1..x_{d-1})."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.energies.densities.basic import Density, GaussianMixtureEnergy
from thalweg.energies.densities.tilted import TiltedMixtureEnsemble


class AutoregressiveEnergy(Density):
    """p(x) = prod_d p_d(x_d | x_1..x_{d-1}), log Z = 0, with independent draws.

    Args:
        conditionals: one ensemble of tilted mixtures for each coordinate, over standardised values.
        encodings: what the d-th ensemble sees of the coordinates before it.
        location, scale: of each coordinate ``[D]``.
        curved: of which coordinates a conditional is over asinh((x - location) / scale), not over that itself.
        cells: spacing of the grid that a coordinate is rounded to, 0 if none: what an atom of it holds is spread
            over its cell, as all other values are, while any other atom counts with its log mass.
        mixture: a Gaussian mixture of the whole, whose conditionals are known; None for none.
        shares: how much of each conditional is the mixture's, in [0, 1] ``[D]``; the rest is the ensemble's.

    Source: the chain rule, as in [Uria 2013]; densities of two kinds mixed by held-out rows, [Smyth 1999].
    """

    location: Tensor
    scale: Tensor
    shares: Tensor

    def __init__(
        self,
        conditionals: Sequence[TiltedMixtureEnsemble],
        encodings: Sequence[NumericEncoding],
        location: Tensor,
        scale: Tensor,
        mixture: GaussianMixtureEnergy | None = None,
        shares: Tensor | None = None,
        curved: Sequence[bool] | None = None,
        cells: Sequence[float] | None = None,
    ):
        super().__init__()
        self.cells = [0.0] * len(conditionals) if cells is None else list(cells)
        self.curved = [False] * len(conditionals) if curved is None else list(curved)
        self.conditionals: Any = nn.ModuleList(conditionals)
        self.encodings: Any = nn.ModuleList(encodings)
        self.register_buffer("location", torch.as_tensor(location, dtype=torch.float32))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32))
        self.mixture = mixture
        shares = torch.zeros(len(conditionals)) if shares is None else shares
        self.register_buffer("shares", torch.as_tensor(shares, dtype=torch.float32))

    @property
    def n_dims(self) -> int:
        return len(self.conditionals)

    def log_prob(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, self.n_dims)
        total = torch.zeros_like(flat[:, 0])
        for d in range(self.n_dims):
            total = total + self.conditional_log_prob(flat, d)
        return total.reshape(x.shape[:-1])

    def conditional_log_prob(self, x: Tensor, d: int) -> Tensor:
        """log p_d(x_d | x_1..x_{d-1}) ``[N]`` for x ``[N, >d]``: a log mass at an atom without a cell."""
        ensemble = self.conditionals[d]
        features = ensemble.features(self.encodings[d](x[:, :d]))
        z = (x[:, d] - self.location[d]) / self.scale[d]
        log_slope = -self.scale[d].log()
        if self.curved[d]:
            log_slope, z = log_slope - 0.5 * torch.log1p(z.square()), torch.asinh(z)
        log_prob = ensemble.log_density(features, z.unsqueeze(-1)) + log_slope
        at = self._in_cells(x[:, d], d) if self.cells[d] else ensemble.at_atoms(z)
        at_atom = at.any(-1)
        if at_atom.any():
            log_mass = ensemble.log_mass(features, z.unsqueeze(-1), at.unsqueeze(-2))
            if self.cells[d]:
                log_mass = torch.logaddexp(log_prob, log_mass - math.log(self.cells[d]))
            log_prob = torch.where(at_atom, log_mass, log_prob)
        if self.mixture is None:
            return log_prob
        share, double = self.shares[d], x.to(self.mixture.means.dtype)
        other = self.mixture.conditional_log_prob(double, d).to(log_prob.dtype)
        if not self.cells[d]:
            # The mixture has a density, and no mass on atoms.
            other = other.masked_fill(at_atom, -torch.inf)
        return torch.logaddexp(log_prob + torch.log1p(-share), other + share.log())

    def _in_cells(self, x: Tensor, d: int) -> Tensor:
        """In the rounding cell of which atom values ``[N]`` of a coordinate lie, ``[N, n_atoms]``."""
        atoms = self.conditionals[d].atoms.to(x.device)
        atoms = self.location[d] + self.scale[d] * (torch.sinh(atoms) if self.curved[d] else atoms)
        return (x.double().unsqueeze(-1) - atoms).abs() <= 0.5 * self.cells[d] * (1 + 1e-6)

    def at_atoms(self, x: Tensor) -> Tensor:
        """Which coordinates of x ``[..., D]`` are atoms of their conditionals."""
        found = []
        for d in range(self.n_dims):
            z = (x[..., d] - self.location[d]) / self.scale[d]
            found.append(self.conditionals[d].at_atoms(torch.asinh(z) if self.curved[d] else z).any(-1))
        return torch.stack(found, -1)

    def log_volume(self, x: Tensor, log_scale: Tensor) -> Tensor:
        """What log p of x ``[*batch, D]`` loses where each coordinate is stretched by its scale ``[D]``.

        A log mass loses nothing.
        """
        masses = self.at_atoms(x) & torch.tensor([not cell for cell in self.cells], device=x.device)
        return torch.where(masses, 0.0, log_scale.to(x.device)).sum(-1)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        x = self.location.new_zeros((n, self.n_dims))
        for d in range(self.n_dims):
            x[:, d] = self.conditional_draw(x, d, generator)
        return x

    def conditional_draw(self, x: Tensor, d: int, generator: torch.Generator | None = None) -> Tensor:
        """A draw of x_d for each row ``[N]``, given the coordinates before it."""
        parts = []
        for piece in x.split(8192):
            features = self.conditionals[d].features(self.encodings[d](piece[:, :d]))
            parts.append(self.conditionals[d].sample(features, generator))
        z = torch.cat(parts)
        drawn = self.location[d] + self.scale[d] * (torch.sinh(z) if self.curved[d] else z)
        if self.mixture is None:
            return drawn
        others = self.mixture.conditional_draw(x.to(self.mixture.means.dtype), d, generator).to(x.dtype)
        chosen = torch.rand(len(x), generator=generator, device=x.device) < self.shares[d]
        return torch.where(chosen, others, drawn)


class NumericEncoding(nn.Module):
    """Numbers as a network learns well from them: standardised, and piecewise linear on their quantiles.

    The same encoding as :class:`~thalweg.data.encoding.TableEncoder` gives a table of numbers without gaps,
    in differentiable form.

    Args:
        columns: that encoder's columns.
    """

    def __init__(self, columns: Sequence[dict[str, Any]]):
        super().__init__()
        self.kept = [i for i, c in enumerate(columns) if c["kind"] == "number"]
        kept = [columns[i] for i in self.kept]
        self.register_buffer("means", torch.tensor([c["mean"] for c in kept], dtype=torch.float32))
        self.register_buffer("stds", torch.tensor([c["std"] for c in kept], dtype=torch.float32))
        which, left, right, lowest, highest = [], [], [], [], []
        for i, column in zip(self.kept, kept, strict=True):
            edges = column["edges"]
            last = len(edges) - 2
            for j in range(last + 1):
                which.append(i)
                left.append(edges[j])
                right.append(edges[j + 1])
                lowest.append(-2.0 if j == 0 else 0.0)
                highest.append(3.0 if j == last else 1.0)
        self.which = which
        # As the table's encoder puts them: each number, then its pieces.
        self.order = sorted(range(len(kept) + len(which)), key=lambda f: (([*self.kept, *which])[f], f))
        for name, values in (("left", left), ("right", right), ("lowest", lowest), ("highest", highest)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, D]`` -> ``[N, width]``."""
        if not self.kept:
            return x.new_zeros((len(x), 1))
        standardised = ((x[:, self.kept] - self.means) / self.stds).clamp(-5, 5)  # type: ignore[operator]
        pieces = (x[:, self.which] - self.left) / (self.right - self.left)  # type: ignore[operator]
        pieces = 2 * torch.minimum(torch.maximum(pieces, self.lowest), self.highest) - 1  # type: ignore[arg-type]
        return torch.cat([standardised, pieces], 1)[:, self.order]
