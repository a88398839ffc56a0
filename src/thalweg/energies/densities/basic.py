"""Energies that are normalised and can be drawn from: noise, proposals, starts of chains, known targets."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from thalweg.energies.base import ConditionalEnergy, Conditioned, Energy, Features, standard_normal
from thalweg.energies.discrete import BINARY, OneHotGroups


class Density(Energy):
    """An energy with log Z = 0, so that E(x) = -log p(x), and with independent draws.

    A subclass writes ``log_prob`` and ``draw``.
    """

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) ``[*batch]``, normalised."""
        raise NotImplementedError

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n independent draws ``[n, *event]``, with no graph."""
        raise NotImplementedError

    def sample(self, shape: int | Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Independent draws ``[*shape, *event]``, with no graph."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        with torch.no_grad():
            drawn = self.draw(math.prod(shape), generator)
        return drawn.reshape(*shape, *drawn.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        return -self.log_prob(x)


class ConditionalDensity(ConditionalEnergy):
    """A conditional energy with log Z(x) = 0 for every x, so that E(x, y) = -log p(y|x).

    ``given(x)`` is a :class:`GivenDensity`, with ``log_prob`` and ``sample``. A subclass writes ``draws``.
    """

    def given(self, x: Tensor) -> GivenDensity:
        """p(y|x) for these x, with the features of x computed once."""
        return GivenDensity(self, self.features(x))

    def draws(self, features: Features, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws of y for each row ``[B, n, K]``, with no graph."""
        raise NotImplementedError


class GivenDensity(Conditioned, Density):
    """p(y|x) at fixed x, normalised: made by :meth:`ConditionalDensity.given`."""

    parent: ConditionalDensity

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(y|x) ``[B, *candidates]`` of y ``[B, *candidates, K]``."""
        return -self(x)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws ``[n, B, K]``, n for each row."""
        return self.parent.draws(self.features, n, generator).movedim(1, 0)


class GaussianMixtureEnergy(Density):
    """E(x) = -log sum_k w_k N(x; mean_k, S_k), normalised; with one component a Gaussian.

    Args:
        means: ``[C, D]``.
        scales: standard deviations of independent coordinates ``[C, D]``, positive, or lower Cholesky
            factors of the covariances ``[C, D, D]``.
        weights: ``[C]``, positive; normalised here. None for equal ones.

    Raises:
        ValueError: if the shapes do not fit, or a scale or a weight is not positive.
    """

    means: Tensor
    scales: Tensor
    log_weights: Tensor
    inverse: Tensor
    constants: Tensor

    def __init__(self, means: Tensor, scales: Tensor, weights: Tensor | None = None):
        super().__init__()
        means, scales = torch.as_tensor(means), torch.as_tensor(scales)
        if means.dim() != 2 or scales.shape not in (means.shape, (*means.shape, means.shape[1])):
            raise ValueError(
                "means must be [components, D] and scales [components, D] or [components, D, D], got "
                f"{tuple(means.shape)} and {tuple(scales.shape)}"
            )
        diagonal = scales if scales.dim() == 2 else scales.diagonal(dim1=-2, dim2=-1)
        if not (diagonal > 0).all():
            raise ValueError(f"scales must be positive, got {float(diagonal.min())}")
        weights = torch.ones_like(means[:, 0]) if weights is None else torch.as_tensor(weights).to(means)
        if not (weights > 0).all():
            raise ValueError(f"weights must be positive, got {float(weights.min())}")
        self.register_buffer("means", means)
        self.register_buffer("scales", scales)
        self.register_buffer("log_weights", (weights / weights.sum()).log())
        if scales.dim() == 2:
            inverse = 1 / scales
        else:
            eye = torch.eye(means.shape[1], dtype=scales.dtype, device=scales.device).expand_as(scales)
            inverse = torch.linalg.solve_triangular(scales, eye, upper=False)
        self.register_buffer("inverse", inverse)
        constant = -diagonal.log().sum(-1) - 0.5 * means.shape[1] * math.log(2 * math.pi)
        self.register_buffer("constants", constant + self.log_weights)

    @classmethod
    def from_moments(cls, data: Tensor, widen: float = 1.0) -> GaussianMixtureEnergy:
        """One Gaussian with the data's mean and covariance ``[n, D]``, its standard deviations times ``widen``.

        The covariances, not the variances, are shrunk by the part D / n, so that data which do not span all
        directions give a density all the same.
        """
        mean = data.mean(0)
        centred = (data - mean).double()
        covariance = centred.t() @ centred / max(1, len(data) - 1)
        variances = covariance.diagonal().clamp_min(1e-12)
        shrink = min(1.0, data.shape[1] / max(1, len(data)))
        covariance = (1 - shrink) * covariance + shrink * variances.diag()
        covariance = covariance + (1e-6 * variances).diag()
        factor = widen * torch.linalg.cholesky(covariance).to(data.dtype)
        return cls(mean[None], factor[None])

    def _standardised(self, x: Tensor) -> Tensor:
        """Each component's whitened distance ``[*batch, C, D]``."""
        centred = x.unsqueeze(-2) - self.means
        if self.inverse.dim() == 2:
            return centred * self.inverse
        return torch.einsum("...cd,ced->...ce", centred, self.inverse)

    def log_prob(self, x: Tensor) -> Tensor:
        log_normal = self.constants - 0.5 * self._standardised(x).square().sum(-1)
        return log_normal.squeeze(-1) if len(self.constants) == 1 else torch.logsumexp(log_normal, -1)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            z = self._standardised(x)
            log_normal = self.constants - 0.5 * z.square().sum(-1)
            value = torch.logsumexp(log_normal, -1)
            weighted = z * (log_normal - value.unsqueeze(-1)).exp().unsqueeze(-1)
            if self.inverse.dim() == 2:
                return -value, (weighted * self.inverse).sum(-2)
            return -value, torch.einsum("...ce,ced->...d", weighted, self.inverse)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        means = self.means
        noise_shape = (n, means.shape[1])
        if len(means) == 1:
            noise, scale = standard_normal(noise_shape, means, generator), self.scales[0]
            return means + (noise * scale if scale.dim() == 1 else noise @ scale.t())
        which = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        noise, scales = standard_normal(noise_shape, means, generator), self.scales[which]
        moved = noise * scales if scales.dim() == 2 else torch.einsum("nde,ne->nd", scales, noise)
        return means[which] + moved

    def conditional_log_prob(self, x: Tensor, d: int) -> Tensor:
        """log p(x_d | x_1..x_{d-1}) ``[N]`` for x ``[N, >d]``."""
        log_weights, means, stds = self._conditional(x, d)
        z = (x[:, d, None] - means) / stds
        return torch.logsumexp(log_weights - 0.5 * z.square() - stds.log(), 1) - 0.5 * math.log(2 * math.pi)

    def conditional_draw(self, x: Tensor, d: int, generator: torch.Generator | None = None) -> Tensor:
        """A draw of x_d for each row ``[N]``, given the coordinates before it."""
        log_weights, means, stds = self._conditional(x, d)
        which = torch.multinomial(log_weights.exp(), 1, generator=generator)
        noise = standard_normal((len(x),), means, generator)
        return means.gather(1, which)[:, 0] + stds[which[:, 0]] * noise

    def _conditional(self, x: Tensor, d: int) -> tuple[Tensor, Tensor, Tensor]:
        """The mixture that x_d follows given those before it: log weights and means ``[N, C]``, stds ``[C]``.

        A lower Cholesky factor has the conditionals in its rows.
        """
        factors, inverse = self.scales, self.inverse
        if factors.dim() == 2:
            factors, inverse = factors.diag_embed(), inverse.diag_embed()
        z = torch.einsum("ncd,ced->nce", x[:, None, :d] - self.means[:, :d], inverse[:, :d, :d])
        diagonal = factors.diagonal(dim1=1, dim2=2)
        log_weights = self.log_weights - 0.5 * z.square().sum(-1) - diagonal[:, :d].log().sum(1)
        means = self.means[:, d] + torch.einsum("nce,ce->nc", z, factors[:, d, :d])
        return torch.log_softmax(log_weights, 1), means, diagonal[:, d]


class UniformEnergy(Density):
    """The uniform density on a box: E(x) = log of its volume inside, infinite outside.

    Args:
        low, high: bounds of each coordinate, ``[*event]``.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor):
        super().__init__()
        low, high = torch.broadcast_tensors(torch.as_tensor(low), torch.as_tensor(high))
        if not (low < high).all():
            raise ValueError("every lower bound must be below its upper bound")
        self.event_ndim = low.dim()
        self.register_buffer("low", low.contiguous())
        self.register_buffer("high", high.contiguous())
        self.support = constraints.independent(constraints.real, self.event_ndim)

    def log_prob(self, x: Tensor) -> Tensor:
        inside = ((x >= self.low) & (x <= self.high)).flatten(x.dim() - self.event_ndim).all(-1)
        volume = (self.high - self.low).log().sum()
        return torch.where(inside, -volume, -torch.inf)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self(x.detach()), torch.zeros_like(x)

    def score(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        low = self.low
        unit = torch.rand((n, *low.shape), generator=generator, device=low.device, dtype=low.dtype)
        return low + (self.high - low) * unit


class BernoulliEnergy(Density):
    """Independent bits.

    Args:
        probabilities: probability of a 1 at each site ``[D]``, above 0 and below 1.
    """

    support = BINARY
    logits: Tensor

    def __init__(self, probabilities: Tensor):
        super().__init__()
        probabilities = torch.as_tensor(probabilities)
        _check_probabilities(probabilities, 1)
        self.register_buffer("logits", probabilities.logit())

    def log_prob(self, x: Tensor) -> Tensor:
        return x @ self.logits - nn.functional.softplus(self.logits).sum()

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return -self.log_prob(x.detach()), -self.logits.expand_as(x)

    def differences(self, x: Tensor, sites: Tensor) -> Tensor:
        values = x[..., sites] if sites.dim() == 1 else x.gather(-1, sites)
        return ((2 * values - 1) * self.logits[sites]).unsqueeze(-1)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(self.logits.sigmoid().expand(n, -1), generator=generator)


class CategoricalEnergy(Density):
    """Independent sites of K categories, as one-hot groups.

    Args:
        probabilities: probabilities of the categories of each site ``[D, K]``, above 0 and below 1; normalised
            here.
    """

    log_probabilities: Tensor

    def __init__(self, probabilities: Tensor):
        super().__init__()
        probabilities = torch.as_tensor(probabilities)
        _check_probabilities(probabilities, 2)
        self.support = OneHotGroups(probabilities.shape[1])
        self.register_buffer("log_probabilities", (probabilities / probabilities.sum(1, keepdim=True)).log())

    def log_prob(self, x: Tensor) -> Tensor:
        return x @ self.log_probabilities.flatten()

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return -self.log_prob(x.detach()), -self.log_probabilities.flatten().expand_as(x)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        probabilities = self.log_probabilities.exp()
        drawn = torch.multinomial(probabilities, n, replacement=True, generator=generator).t()
        return nn.functional.one_hot(drawn, probabilities.shape[1]).flatten(1).to(probabilities)


class FlowEnergy(Density):
    """A normalising flow as an energy: E(x) = -log p(x), exact, with draws through which a gradient can flow.

    Args:
        flow: an unconditional flow of the zuko library, such as ``zuko.flows.NSF(D, passes=2)``.
        location, scale: the flow sees (x - location) / scale, each ``[D]``.
    """

    location: Tensor
    scale: Tensor

    def __init__(self, flow: nn.Module, location: Tensor | float = 0.0, scale: Tensor | float = 1.0):
        super().__init__()
        self.flow = flow
        self.register_buffer("location", torch.as_tensor(location, dtype=torch.float32))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32))

    def log_prob(self, x: Tensor) -> Tensor:
        jacobian = self.scale.expand(x.shape[-1]).log().sum()
        return self.flow().log_prob((x - self.location) / self.scale) - jacobian

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        distribution: Any = self.flow()
        parameter = next(self.flow.parameters())
        shape = (n, *distribution.base.event_shape)
        noise = standard_normal(shape, parameter, generator)
        return self.location + self.scale * distribution.transform.inv(noise)


def fit_gaussian_mixture(
    data: Tensor,
    n_components: int,
    seed: int = 0,
    covariance_type: str = "full",
    floor: float = 1e-4,
    n_init: int = 1,
) -> GaussianMixtureEnergy:
    """A mixture of Gaussians by expectation maximisation (scikit-learn's).

    Args:
        data: ``[n, D]``.
        covariance_type: "full" or "diag".
        floor: added to all variances, as a part of the data's mean variance.
        n_init: starts, the best of which counts.
    """
    from sklearn.mixture import GaussianMixture

    array = data.double().cpu().numpy()
    variance = max(float(np.var(array, 0).mean()), 1e-12)
    model = GaussianMixture(
        n_components, covariance_type=covariance_type, reg_covar=floor * variance, random_state=seed, n_init=n_init
    ).fit(array)
    full = covariance_type == "full"
    scales = np.linalg.cholesky(model.covariances_) if full else np.sqrt(model.covariances_)
    parts = [torch.as_tensor(v, dtype=data.dtype) for v in (model.means_, scales, model.weights_)]
    return GaussianMixtureEnergy(*parts)


def choose_gaussian_mixture(data: Tensor, seed: int = 0, max_rows: int = 5000) -> dict[str, Any]:
    """The settings of :func:`fit_gaussian_mixture` that held-out rows like best, in three folds.

    Args:
        data: ``[n, D]``.
        max_rows: of more rows only so many are asked.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import KFold

    some = data[np.random.RandomState(seed).permutation(len(data))[:max_rows]]
    settings: dict[str, Any]
    best, chosen = -math.inf, {"n_components": 1, "covariance_type": "full", "floor": 1e-3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for kind, floor in (("full", 1e-3), ("full", 1e-5), ("diag", 1e-3)):
            n_worse = 0
            for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32):
                if n > len(some) // 6 or n_worse == 2:
                    break  # more components overfit
                settings = {"n_components": n, "covariance_type": kind, "floor": floor}
                figures = []
                for a, b in KFold(3, shuffle=True, random_state=seed).split(some):
                    fitted = fit_gaussian_mixture(some[a], seed=seed, **settings)
                    figures.append(float(fitted.log_prob(some[b]).mean()))
                n_worse = 0 if np.mean(figures) > best else n_worse + 1
                if np.mean(figures) > best:
                    best, chosen = float(np.mean(figures)), settings
    return chosen


def _check_probabilities(probabilities: Tensor, n_dims: int) -> None:
    if probabilities.dim() != n_dims or not ((probabilities > 0) & (probabilities < 1)).all():
        raise ValueError(f"probabilities must be above 0 and below 1, with {n_dims} dimensions")
