"""The density of a stretch of a series given its past: a linear forecast, and energies of what that misses."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from thalweg.energies.base import Features
from thalweg.energies.densities.basic import ConditionalDensity
from thalweg.energies.densities.tilted import TiltedMixtureEnsemble

# Standardised inputs, and numbers that later ones are given, are cut off here: no network is asked far outside.
_FARTHEST = 4.0
# A direction that hardly varies counts as varying by this share of the one that varies most.
_NARROWEST = 1e-4
# Of the ridge, in shares of the rows. As noise of its root on the inputs; with less, small errors of a draw grow
# without bound where the past of the next stretch is a draw itself.
_STRENGTHS = 10.0 ** np.arange(-3, 2)
_ROWS_AT_ONCE = 8192
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class StretchDensity(ConditionalDensity):
    """p(y|x) of many correlated numbers y, such as the next 20 states of a system, log Z(x) = 0, with exact draws.

    A ridge regression forecasts y, and the principal directions of its errors turn what it misses into numbers
    e_1, e_2, ... of unit variance, the largest part first. The first of them, the links, have an energy each,
    given x and the numbers before it::

        E(x, y) = sum_{k <= n_links} E_k(e_k | x, e_1..e_{k-1}) + sum_{k > n_links} e_k^2 / 2 + constant

    where E_k is a :class:`TiltedMixtureEnsemble`'s. The links of all members run as one batched product. The
    ensemble is the mixture of its members, each of which is a density of the whole of y.

    Args:
        n_inputs: width of x.
        n_numbers: K, the dimension of y.
        n_links: how many numbers have an energy of their own; the others are Gaussian given x.
        n_members: members of the ensemble.
        hidden, n_components, n_tilts, dropout: of each link's network; see :class:`TiltedMixtureEnsemble`.

    Source: the chain rule, as in [Uria 2013]; exactly normalised conditional energies of one number each.
    """

    input_mean: Tensor
    input_scale: Tensor
    regression: Tensor
    mean: Tensor
    directions: Tensor
    spread: Tensor

    def __init__(
        self,
        n_inputs: int,
        n_numbers: int,
        n_links: int = 8,
        n_members: int = 4,
        hidden: Sequence[int] = (128, 128),
        n_components: int = 3,
        n_tilts: int = 4,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.n_links, self.n_members = min(n_links, n_numbers), n_members
        self.links = TiltedMixtureEnsemble(
            n_inputs + self.n_links, n_members * self.n_links, hidden, n_components, n_tilts, dropout
        )
        self.register_buffer("input_mean", torch.zeros(n_inputs))
        self.register_buffer("input_scale", torch.ones(n_inputs))
        self.register_buffer("regression", torch.zeros(n_inputs, n_numbers))
        self.register_buffer("mean", torch.zeros(n_numbers))
        self.register_buffer("directions", torch.eye(n_numbers))
        self.register_buffer("spread", torch.ones(n_numbers))
        self.register_buffer("earlier", torch.ones(self.n_links, self.n_links).tril(-1), persistent=False)

    earlier: Tensor

    def fit_linear_part(self, x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> None:
        """Set the ridge regression and the directions of its errors.

        Args:
            x: ``[n, n_inputs]``; columns that do not vary are left out of everything.
            y: ``[n, n_numbers]``.
            fold: which fold each row is of ``[n]``: the strength of the ridge is the best for rows of other folds,
                and their errors give the variances.
        """
        mean, scale = x.mean(0), x.std(0)
        varies = scale > 1e-6 * np.abs(x).max(0)
        f = np.where(varies, (x - mean) / np.where(varies, scale, 1.0), 0.0).clip(-_FARTHEST, _FARTHEST)
        centre = y.mean(0)
        ridge, errors = _best_ridge(f, y - centre, fold)
        _, _, directions = np.linalg.svd(errors.T @ errors / len(errors), hermitian=True)
        spread = np.sqrt(np.mean(np.square(errors @ directions.T), 0))
        spread = np.maximum(spread, max(_NARROWEST * spread.max(), 1e-12))
        self._set("input_mean", mean)
        self._set("input_scale", np.where(varies, scale, np.inf))
        self._set("regression", _ridge(f, y - centre, ridge))
        self._set("mean", centre)
        self._set("directions", directions)
        self._set("spread", spread)

    def _set(self, name: str, value: np.ndarray) -> None:
        buffer = getattr(self, name)
        buffer.copy_(torch.from_numpy(np.ascontiguousarray(value)))

    def features(self, x: Tensor) -> Tensor:
        """Standardised and cut off ``[B, n_inputs]``."""
        return ((x - self.input_mean) / self.input_scale).clamp(-_FARTHEST, _FARTHEST)

    def head(self, features: Features, y: Tensor) -> Tensor:
        return math.log(self.n_members) - torch.logsumexp(self.member_log_prob(features, y), -1)

    def member_log_prob(self, features: Features, y: Tensor) -> Tensor:
        """log p_m(y|x) of every member ``[B, *candidates, n_members]`` of y ``[B, *candidates, K]``."""
        assert isinstance(features, Tensor)
        shape = y.shape[1:-1]
        f = features.repeat_interleave(math.prod(shape), 0) if shape else features
        found = []
        for rows, own in zip(f.split(_ROWS_AT_ONCE), y.reshape(-1, y.shape[-1]).split(_ROWS_AT_ONCE), strict=True):
            e = self.errors(rows, own)
            links = self.link_log_prob(rows, e).reshape(len(rows), self.n_members, self.n_links).sum(-1)
            rest = e[:, self.n_links :]
            gaussian = -0.5 * rest.square().sum(-1) - rest.shape[1] * _HALF_LOG_2PI
            found.append(links + (gaussian - self.spread.log().sum()).unsqueeze(-1))
        return torch.cat(found).reshape(len(features), *shape, self.n_members)

    def errors(self, features: Tensor, y: Tensor) -> Tensor:
        """What the linear forecast misses of y ``[B, K]``, in numbers of unit variance ``[B, K]``."""
        return (y - self.mean - features @ self.regression) @ self.directions.mT / self.spread

    def link_log_prob(self, features: Tensor, e: Tensor) -> Tensor:
        """log p of each link's number given x and those before it ``[B, n_members * n_links]``, member by member.

        Args:
            e: ``[B, K]``, of :meth:`errors`.
        """
        return self.links.member_log_prob(*self.link_inputs(features, e))

    def link_inputs(self, features: Tensor, e: Tensor) -> tuple[Features, Tensor]:
        """What the ensemble of all links is given, and the value of each ``[B, n_members * n_links]``."""
        links = e[:, : self.n_links]
        before = links.clamp(-_FARTHEST, _FARTHEST) * self.earlier[:, None]  # [n_links, B, n_links]
        x = torch.cat([features.expand(self.n_links, -1, -1), before], -1)
        return self.links.features(x.repeat(self.n_members, 1, 1)), links.repeat(1, self.n_members)

    def alone(self, member: int) -> StretchDensity:
        """A copy with this member alone."""
        n = self.n_links
        part = copy.copy(self)
        part._modules = {"links": self.links.of_members(range(member * n, (member + 1) * n))}
        part.n_members = 1
        return part

    def draws(self, features: Features, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws of y for each row ``[B, n, K]``: an equal share, give or take one, from each member."""
        assert isinstance(features, Tensor)
        with torch.no_grad():
            repeated, n_all = features.repeat_interleave(n, 0), self.n_members * self.n_links
            links = [self.links.of_members(range(k, n_all, self.n_links)) for k in range(self.n_links)]
            pieces = [self._drawn(rows, links, generator) for rows in repeated.split(_ROWS_AT_ONCE)]
        return torch.cat(pieces).reshape(len(features), n, -1)

    def _drawn(
        self, f: Tensor, links: Sequence[TiltedMixtureEnsemble], generator: torch.Generator | None
    ) -> Tensor:
        """A draw for each row ``[N, K]``, number by number; each of the links has that number of all members."""
        n, m = len(f), self.n_members
        # Rows in a random order, dealt out to the members in turn; a few are drawn twice to fill the last deal.
        order = torch.randperm(n, generator=generator, device=f.device)
        n_each = -(-n // m)
        dealt = order.repeat(m)[: n_each * m].reshape(-1, m).T  # [members, rows of each]
        e = torch.randn((*dealt.shape, len(self.mean)), generator=generator, device=f.device)
        e[..., : self.n_links] = 0.0
        single = self.links.of_members([0])
        for k, link in enumerate(links):
            before = e[..., : self.n_links].clamp(-_FARTHEST, _FARTHEST)
            found = link.features(torch.cat([f[dealt], before], -1))
            # Each member's rows as rows of one member.
            own = tuple(part.flatten(0, 1).unsqueeze(1) for part in found)
            e[..., k] = single.sample(own, generator).reshape(-1, m).T
        drawn = torch.empty((n, len(self.mean)), device=f.device)
        drawn[dealt.flatten()] = e.flatten(0, 1)
        return (drawn * self.spread) @ self.directions + self.mean + f @ self.regression


def _ridge(x: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    """Coefficients ``[columns of x, columns of y]``; the strength is a share of the rows."""
    return np.linalg.solve(x.T @ x + strength * len(x) * np.eye(x.shape[1]), x.T @ y)


def _best_ridge(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> tuple[float, np.ndarray]:
    """The strength of a ridge whose errors on rows of other folds are least, and these errors."""
    found = []
    for strength in _STRENGTHS:
        errors = y.copy()
        for k in np.unique(fold):
            own = fold == k
            if not own.all():
                errors[own] -= x[own] @ _ridge(x[~own], y[~own], strength)
        found.append((float(np.square(errors).mean()), strength, errors))
    _, strength, errors = min(found, key=lambda one: one[0])
    return strength, errors
