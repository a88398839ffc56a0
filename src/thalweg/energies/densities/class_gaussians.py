"""A Gaussian for each label, with a few directions of large variance: where the images of a class roughly are."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from thalweg.energies.base import Features, standard_normal
from thalweg.energies.densities.basic import ConditionalDensity


class ClassGaussians(ConditionalDensity):
    """p(x|k) = N(x; mean_k, sum_r d_kr d_kr' + diag(variance_k)) of arrays x given labels k.

    Args:
        means: ``[C, *event]`` for C labels.
        directions: ``[C, R, *event]``, the principal directions times the standard deviation along them.
        variances: of every number beside them ``[C, *event]``.

    Source: [Tipping 1999], with a variance for each number.
    """

    means: Tensor
    directions: Tensor
    variances: Tensor
    _one_over_std: Tensor
    _whiten: Tensor
    _constants: Tensor

    def __init__(self, means: Tensor, directions: Tensor, variances: Tensor):
        super().__init__()
        self.register_buffer("means", means)
        self.register_buffer("directions", directions)
        self.register_buffer("variances", variances)
        self._prepare()
        self.event_ndim = means.dim() - 1
        self.support = constraints.independent(constraints.real, self.event_ndim)

    def _prepare(self) -> None:
        """What every energy needs of directions and variances."""
        forms = [_form(*parts) for parts in zip(self.directions, self.variances, strict=True)]
        for name, values in zip(("_one_over_std", "_whiten", "_constants"), zip(*forms, strict=True), strict=True):
            self.register_buffer(name, torch.stack(values).to(self.means), persistent=False)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._prepare()

    @classmethod
    def fit(
        cls, x: Tensor, labels: Tensor | None = None, n_directions: int = 100, least_std: float = 0.05
    ) -> ClassGaussians:
        """The Gaussians with the mean and the variances of each class, and its leading covariances.

        Args:
            x: ``[n, *event]``.
            labels: whole numbers from 0 ``[n]``, each of which occurs; None takes all rows as one class.
            n_directions: at most this many for each label, and fewer than it has rows.
            least_std: standard deviation of independent noise that every number has beside its own.
        """
        kinds = torch.zeros(len(x), dtype=torch.long) if labels is None else labels.long()
        n_labels, event = int(kinds.max()) + 1, x.shape[1:]
        rows = x.flatten(1).double()
        n_directions = min(n_directions, rows.shape[1])
        means, directions, variances = [], [], []
        for k in range(n_labels):
            own = rows[kinds == k]
            centred = own - own.mean(0)
            n = min(n_directions, len(own) - 1)
            found = torch.zeros(n_directions, rows.shape[1], dtype=rows.dtype)
            found[:n] = _principal(centred / max(1, len(own) - 1) ** 0.5, n)
            spread = centred.square().sum(0) / max(1, len(own) - 1)
            means.append(own.mean(0))
            directions.append(found)
            variances.append((spread - found.square().sum(0)).clamp_min(0) + least_std**2)
        stacked = (torch.stack(part).to(x.dtype) for part in (means, directions, variances))
        mean, direction, variance = stacked
        return cls(
            mean.reshape(n_labels, *event),
            direction.reshape(n_labels, n_directions, *event),
            variance.reshape(n_labels, *event),
        )

    def features(self, x: Tensor) -> Tensor:
        """The labels as whole numbers ``[B]``."""
        return x.long()

    def head(self, features: Features, y: Tensor) -> Tensor:
        assert isinstance(features, Tensor)
        found = y.new_zeros(y.shape[: y.dim() - self.event_ndim])
        # Label by label: the directions of every row side by side would be far larger than the rows.
        for k in features.unique().tolist():
            own = torch.nonzero(features == k)[:, 0]
            found = found.index_put((own,), self.of_label(k, y[own]))
        return found

    def of_label(self, label: int, x: Tensor) -> Tensor:
        """-log p(x | label) ``[*batch]`` of any arrays ``[*batch, *event]``."""
        z = (x - self.means[label]).flatten(x.dim() - self.event_ndim) * self._one_over_std[label]
        form = z.square().sum(-1) - (z @ self._whiten[label]).square().sum(-1)
        return 0.5 * form + self._constants[label]

    def draws(self, features: Features, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``[B, n, *event]``."""
        assert isinstance(features, Tensor)
        n_rows, event = len(features), self.means.shape[1:]
        found = torch.empty((n_rows, n, *event), device=self.means.device, dtype=self.means.dtype)
        along = standard_normal((n_rows, n, self.directions.shape[1]), self.means, generator)
        beside = standard_normal(found.shape, self.means, generator)
        for k in features.unique():
            own = features == k
            moved = along[own] @ self.directions[k].flatten(1)
            found[own] = self.means[k] + moved.reshape(-1, n, *event) + self.variances[k].sqrt() * beside[own]
        return found

    def draws_given(
        self, labels: Tensor, x: Tensor, known: Tensor, n: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """n draws for each label that suit what is known of x ``[B, n, *event]``.

        Unknown numbers have their distribution given the known ones. These are drawn anew, about where the
        directions that explain x are: they need not be those of x.

        Args:
            labels: ``[B]``.
            x: ``[B, *event]``; what is not known may be any number.
            known: bool ``[B, *event]``.
        """
        labels, event = labels.long(), self.means.shape[1:]
        found = torch.empty((len(labels), n, *event), device=self.means.device, dtype=self.means.dtype)
        for k in labels.unique().tolist():
            own = torch.nonzero(labels == k)[:, 0]
            directions = self.directions[k].flatten(1)
            a = directions * self._one_over_std[k]
            seen = known[own].flatten(1).to(a)
            z = seen * (x[own] - self.means[k]).flatten(1) * self._one_over_std[k]
            eye = torch.eye(len(a), dtype=a.dtype, device=a.device)
            factor = torch.linalg.cholesky(eye + (a * seen[:, None]) @ a.mT)
            mean = torch.cholesky_solve((z @ a.mT).unsqueeze(-1), factor)
            noise = standard_normal((len(own), len(a), n), self.means, generator)
            along = mean + torch.linalg.solve_triangular(factor.mT, noise, upper=True)
            beside = standard_normal((len(own), n, *event), self.means, generator)
            moved = (along.mT @ directions).reshape(len(own), n, *event)
            found[own] = self.means[k] + moved + self.variances[k].sqrt() * beside
        return found


def _form(directions: Tensor, variances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One over each standard deviation ``[D]``, a matrix W ``[D, R]``, and -log of the density's factor.

    With z = (x - mean) / std and A = directions / std the quadratic form is z'z - |z'W|^2, where
    W W' = A' (1 + A A')^-1 A, and the determinant of the covariance is that of 1 + A A' times the variances.
    """
    std = variances.flatten().double().sqrt()
    a = directions.flatten(1).double() / std
    factor = torch.linalg.cholesky(torch.eye(len(a), dtype=a.dtype, device=a.device) + a @ a.mT)
    whiten = torch.linalg.solve_triangular(factor, a, upper=False).mT
    constant = factor.diagonal().log().sum() + std.log().sum() + 0.5 * len(std) * math.log(2 * math.pi)
    return 1 / std, whiten, constant


def _principal(rows: Tensor, n: int) -> Tensor:
    """The n leading principal directions of centred rows, times the root of their sum of squares ``[n, D]``."""
    if len(rows) > rows.shape[1]:
        squares, basis = torch.linalg.eigh(rows.mT @ rows)
        return (basis * squares.clamp_min(0).sqrt()).mT.flip(0)[:n]
    _, size, basis = torch.linalg.svd(rows, full_matrices=False)
    return basis[:n] * size[:n, None]
