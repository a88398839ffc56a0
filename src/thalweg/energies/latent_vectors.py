"""Latent vectors: E(x, y, z) with z in R^Z, found by descent or summed out by chains and importance weights."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from thalweg.energies.base import ConditionalEnergy, Conditioned, Energy, Features, check_temperature


class _Elimination(nn.Module):
    """How z leaves an energy of pairs (y, z), vectors in which z is the last Z coordinates.

    Called with an energy and y ``[*batch, K]`` it returns the energy of y ``[*batch]``. To the energy |z|^2 / 2 is
    added, a standard normal prior, so that the lowest z is never infinitely far.
    """

    n_latent: int

    def forward(self, energy: Energy, y: Tensor) -> Tensor:
        raise NotImplementedError


class WithoutLatent(Energy):
    """The energy of y that is left of E(y, z) when z is eliminated.

    First derivatives are right, with respect to y and to the parameters: that is all that chains, contrastive and
    margin losses ask. Derivatives of the score need how z moves with y, and are refused.

    Args:
        joint: any energy of vectors ``[y, z]``, such as a perceptron of K + Z inputs; |z|^2 / 2 is added to it.
        elimination: :class:`LatentDescent` or :class:`LatentSampling`.
    """

    def __init__(self, joint: Energy, elimination: _Elimination):
        super().__init__()
        self.joint, self.elimination = joint, elimination

    def forward(self, x: Tensor) -> Tensor:
        return self.elimination(self.joint, x)

    def score(self, x: Tensor) -> Tensor:
        raise _no_second_derivatives()


class ConditionalWithoutLatent(ConditionalEnergy):
    """The conditional energy of y that is left of E(x, y, z) when z is eliminated (see :class:`WithoutLatent`).

    Args:
        joint: any conditional energy of vectors ``[y, z]`` given x.
        elimination: :class:`LatentDescent` or :class:`LatentSampling`.
    """

    def __init__(self, joint: ConditionalEnergy, elimination: _Elimination):
        super().__init__()
        self.joint, self.elimination = joint, elimination

    def features(self, x: Tensor) -> Features:
        return self.joint.features(x)

    def head(self, features: Features, y: Tensor) -> Tensor:
        return self.elimination(Conditioned(self.joint, features), y)

    def given(self, x: Tensor) -> Conditioned:
        return _GivenWithoutLatent(self, self.features(x))

    def latents(self, x: Tensor, y: Tensor) -> Tensor:
        """The lowest z ``[B, *candidates, Z]`` of a descent.

        Raises:
            TypeError: where z is summed out.
        """
        if not isinstance(self.elimination, LatentDescent):
            raise TypeError("z is summed out: ask the elimination for weighted draws of it")
        return self.elimination.lowest(self.joint.given(x), y)


class _GivenWithoutLatent(Conditioned):
    def score(self, x: Tensor) -> Tensor:
        raise _no_second_derivatives()


class LatentDescent(_Elimination):
    """E(y) = min over z of E(y, z) + |z|^2 / 2, by gradient descent from several starts.

    The lowest end counts. By the envelope theorem the gradient of the minimum is that of E at the lowest z held
    fixed. The starts are drawn once, so that the same y has the same energy every time.

    Args:
        n_latent: Z, the dimension of z.
        n_starts: descents for each y: the first from 0, the others from a normal distribution.
        n_steps: steps of each.
        step_size: of the first step, as a multiple of the gradient; it grows by half where the energy falls, and
            is halved where it does not, in which case the step is not taken.
        spread: standard deviation of the starts.
        seed: of the starts.

    Source: [LeCun 2006, sec. 1.4]; the envelope theorem [Milgrom 2002].
    """

    starts: Tensor

    def __init__(
        self,
        n_latent: int,
        n_starts: int = 4,
        n_steps: int = 30,
        step_size: float = 0.1,
        spread: float = 1.0,
        seed: int = 0,
    ):
        super().__init__()
        self.n_latent, self.n_steps, self.step_size = n_latent, n_steps, step_size
        starts = spread * torch.randn(n_starts, n_latent, generator=torch.Generator().manual_seed(seed))
        starts[0] = 0.0
        self.register_buffer("starts", starts)

    def forward(self, energy: Energy, y: Tensor) -> Tensor:
        return _energy(energy, y, self.lowest(energy, y))

    def lowest(self, energy: Energy, y: Tensor) -> Tensor:
        """The lowest z found ``[*batch, Z]``, without a graph."""
        fixed, wide, z = energy.fixed(), *_repeated(y, self.starts)
        value, grad = _at(fixed, wide, z)
        size = torch.full_like(value, self.step_size).unsqueeze(-1)
        for _ in range(self.n_steps):
            proposal = z - size * grad
            new_value, new_grad = _at(fixed, wide, proposal)
            lower = (new_value < value).unsqueeze(-1)
            z, grad = torch.where(lower, proposal, z), torch.where(lower, new_grad, grad)
            value = torch.where(lower.squeeze(-1), new_value, value)
            size = torch.where(lower, 1.5 * size, 0.5 * size)
        best = value.argmin(-1)[..., None, None].expand(*value.shape[:-1], 1, self.n_latent)
        return z.gather(-2, best).squeeze(-2)


class WeightedLatents(NamedTuple):
    """Draws of z ``[*batch, n, Z]`` and the log weights -E(y, z) / T - log q(z) ``[*batch, n]``, with a graph."""

    z: Tensor
    log_weights: Tensor


class LatentSampling(_Elimination):
    """E(y) = -T log of the integral over z of exp(-(E(y, z) + |z|^2 / 2) / T), the free energy, estimated.

    Langevin chains find where z is likely given y. Draws from Gaussians round the ends of the chains then have
    importance weights, whose mean is an unbiased estimate of the integral, wherever the chains have ended. The
    gradient is the weighted mean of that of E, an estimate of its mean over p(z|y). All noise is drawn once, so
    that the same y has the same energy every time.

    Args:
        n_latent: Z, the dimension of z; a few, since the weights get uneven as it grows.
        temperature: T, positive.
        n_chains: chains for each y, two at least, and as many Gaussians.
        n_steps: steps of each chain.
        step_size: of Langevin dynamics at temperature T.
        n_draws: from each Gaussian.
        spread: standard deviation of the starts.
        seed: of all noise.

    Raises:
        ValueError: if the temperature is not positive, or there are fewer than two chains.

    Source: [Roberts 1996, eq. 2] for the chains; weights by the mixture of all proposals [Veach 1995].
    """

    starts: Tensor
    noise: Tensor
    offsets: Tensor

    def __init__(
        self,
        n_latent: int,
        temperature: float = 1.0,
        n_chains: int = 16,
        n_steps: int = 20,
        step_size: float = 0.1,
        n_draws: int = 2,
        spread: float = 1.0,
        seed: int = 0,
    ):
        super().__init__()
        check_temperature(temperature)
        if n_chains < 2:
            raise ValueError(f"the width of the proposals comes from at least 2 chains, got {n_chains}")
        self.n_latent, self.temperature, self.step_size = n_latent, temperature, step_size
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("starts", spread * torch.randn(n_chains, n_latent, generator=generator))
        self.register_buffer("noise", torch.randn(n_steps, n_chains, n_latent, generator=generator))
        self.register_buffer("offsets", torch.randn(n_draws, n_chains, n_latent, generator=generator))

    def forward(self, energy: Energy, y: Tensor) -> Tensor:
        log_weights = self.weighted(energy, y).log_weights
        return -self.temperature * (torch.logsumexp(log_weights, -1) - math.log(log_weights.shape[-1]))

    def weighted(self, energy: Energy, y: Tensor) -> WeightedLatents:
        """Draws of z and their weights; those of the softmax of the weights follow p(z|y) about as exactly."""
        with torch.no_grad():
            ends = self._ends(energy, y)
            # Silverman's width, and never so narrow that chains which met leave the integral to one point.
            width = ends.std(-2, keepdim=True) * ends.shape[-2] ** (-1 / (self.n_latent + 4))
            width = width.clamp_min(0.1 * math.sqrt(2 * self.step_size * self.temperature))
            z = (ends.unsqueeze(-3) + width.unsqueeze(-3) * self.offsets).flatten(-3, -2)
            off = (z.unsqueeze(-2) - ends.unsqueeze(-3)) / width.unsqueeze(-3)
            constant = (width.log() + 0.5 * math.log(2 * math.pi)).sum(-1, keepdim=True)
            log_normal = -0.5 * off.square().sum(-1) - constant
            log_proposal = torch.logsumexp(log_normal, -1) - math.log(ends.shape[-2])
        wide = y.unsqueeze(-2).expand(*z.shape[:-1], y.shape[-1])
        return WeightedLatents(z, -_energy(energy, wide, z) / self.temperature - log_proposal)

    def _ends(self, energy: Energy, y: Tensor) -> Tensor:
        """Where the chains end ``[*batch, n_chains, Z]``."""
        fixed, wide, z = energy.fixed(), *_repeated(y, self.starts)
        scale = math.sqrt(2 * self.step_size * self.temperature)
        for noise in self.noise:
            z = z - self.step_size * _at(fixed, wide, z)[1] + scale * noise
        return z


def _repeated(y: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """y and the starts as pairs of vectors ``[*batch, n_starts, K]`` and ``[*batch, n_starts, Z]``."""
    y = y.detach()
    n, n_latent = starts.shape
    return y.unsqueeze(-2).expand(*y.shape[:-1], n, y.shape[-1]), starts.expand(*y.shape[:-1], n, n_latent)


def _energy(energy: Energy, y: Tensor, z: Tensor) -> Tensor:
    """E of y and z with the prior of z, with a graph."""
    return energy(torch.cat([y, z], -1)) + 0.5 * z.square().sum(-1)


def _at(energy: Energy, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The same and its gradient with respect to z, both detached."""
    value, grad = energy.value_and_gradient(torch.cat([y, z], -1))
    return value + 0.5 * z.square().sum(-1), grad[..., y.shape[-1] :] + z


def _no_second_derivatives() -> TypeError:
    return TypeError(
        "score matching and chains with a graph need how the latent z moves with y, which an energy with z found "
        "by descent or sampling does not have: use contrastive divergence, RankingNCE or a margin loss, or a "
        "latent variable of a few values (LatentEnergy)"
    )
