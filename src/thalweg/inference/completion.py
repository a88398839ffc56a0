"""Filling in what was not seen, and cleaning what was seen with noise: weighted candidates.

Candidates come from a Gaussian mixture that was fitted to the data, of which conditionals and posteriors are known
in closed form, and are weighed by the energy. The energy decides, the mixture only says where to look.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from thalweg.energies.base import Energy
from thalweg.energies.densities import GaussianMixtureEnergy


class Candidates(NamedTuple):
    """Weighted draws for each row: of p(missing | known), or of p(clean | seen).

    Attributes:
        x: ``[rows, n, D]``.
        weights: ``[rows, n]``, each row sums to 1.
    """

    x: Tensor
    weights: Tensor

    @property
    def effective_sample_size(self) -> Tensor:
        """``[rows]``, between 1 and n: how many draws of the exact distribution they are worth."""
        return 1 / self.weights.square().sum(1)

    def mean(self) -> Tensor:
        """``[rows, D]``."""
        return (self.weights.unsqueeze(-1) * self.x).sum(1)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``[n, rows, D]`` by systematic resampling, in random order.

        Source: [Kitagawa 1996, appendix].
        """
        rows = len(self.x)
        start = torch.rand((rows, 1), generator=generator, dtype=torch.float64)
        places = (torch.arange(n, dtype=torch.float64) + start) / n
        places = places.gather(1, torch.rand((rows, n), generator=generator).argsort(1))
        index = torch.searchsorted(self.weights.double().cumsum(1), places).clamp(max=self.x.shape[1] - 1)
        return self.x.gather(1, index.unsqueeze(-1).expand(-1, -1, self.x.shape[-1])).movedim(1, 0)


class Posterior(NamedTuple):
    """A Gaussian mixture for each row, over some of the coordinates.

    Attributes:
        log_weights: ``[rows, C]``.
        means: ``[rows, C, F]``.
        factors: lower Cholesky factors ``[C, F, F]``, the same for all rows.
    """

    log_weights: Tensor
    means: Tensor
    factors: Tensor

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``[rows, n, F]``."""
        which = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        noise = torch.randn((*which.shape, self.means.shape[-1]), generator=generator, dtype=self.means.dtype)
        means = self.means.gather(1, which.unsqueeze(-1).expand_as(noise))
        return means + torch.einsum("bnfg,bng->bnf", self.factors[which], noise)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p of the coordinates ``[rows, n, F]``: ``[rows, n]``."""
        log_prob = torch.full(x.shape[:2], -torch.inf, dtype=x.dtype)
        for c, factor in enumerate(self.factors):
            centred = (x - self.means[:, c].unsqueeze(1)).flatten(0, 1)
            z = torch.linalg.solve_triangular(factor, centred.T, upper=False)
            log_normal = -0.5 * z.square().sum(0) - factor.diagonal().log().sum()
            log_normal = log_normal - 0.5 * len(factor) * math.log(2 * math.pi)
            log_prob = torch.logaddexp(log_prob, log_normal.reshape(log_prob.shape) + self.log_weights[:, c, None])
        return log_prob


def posterior(
    mixture: GaussianMixtureEnergy, seen: Tensor, observed: Tensor, noise_variance: Tensor, free: Tensor
) -> Posterior:
    """The distribution of the coordinates ``free`` under a mixture, given others or the same with Gaussian noise.

    Args:
        mixture: with full covariances.
        seen: values of the coordinates ``observed`` ``[rows, K]``.
        observed: their indices ``[K]``.
        noise_variance: of what was seen ``[K]``, 0 where it is exact.
        free: indices of the coordinates that are asked for ``[F]``.
    """
    means, factors = mixture.means.double(), mixture.scales.double()
    covariances = factors @ factors.mT
    log_weights = mixture.log_weights.double().expand(len(seen), -1)
    inner = covariances[:, free][:, :, free]
    centres = means[:, free].expand(len(seen), -1, -1)
    if len(observed):
        cross = covariances[:, free][:, :, observed]
        outer = torch.linalg.cholesky(covariances[:, observed][:, :, observed] + noise_variance.double().diag())
        gain = torch.cholesky_solve(cross.mT, outer).mT
        off = seen.double().unsqueeze(1) - means[:, observed]
        z = torch.linalg.solve_triangular(outer, off.movedim(0, 2), upper=False).movedim(2, 0)
        likelihood = -0.5 * z.square().sum(-1) - outer.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_weights = log_weights + likelihood
        centres = centres + torch.einsum("cfk,bck->bcf", gain, off)
        inner = inner - gain @ cross.mT
    ridge = 1e-9 * covariances.diagonal(dim1=-2, dim2=-1)[:, free].diag_embed()
    return Posterior(torch.log_softmax(log_weights, -1), centres, torch.linalg.cholesky(inner + ridge))


def complete(
    energy: Energy,
    mixture: GaussianMixtureEnergy,
    known: Tensor,
    mask: Tensor,
    n_candidates: int = 256,
    generator: torch.Generator | None = None,
) -> Candidates:
    """Weighted draws of p(missing | known).

    Args:
        known: ``[rows, D]``; what is missing may be anything finite.
        mask: True where known ``[rows, D]``.
    """
    with torch.no_grad():
        x = known.unsqueeze(1).repeat(1, n_candidates, 1)
        patterns, which = torch.unique(mask, dim=0, return_inverse=True)
        log_guess = torch.empty(x.shape[:2], dtype=torch.float64)
        for p, pattern in enumerate(patterns):
            rows = torch.nonzero(which == p)[:, 0]
            observed, free = torch.nonzero(pattern)[:, 0], torch.nonzero(~pattern)[:, 0]
            guess = posterior(mixture, known[rows][:, observed], observed, torch.zeros(len(observed)), free)
            drawn = guess.draw(n_candidates, generator).to(x.dtype)
            x[rows[:, None, None], torch.arange(n_candidates)[:, None], free] = drawn
            log_guess[rows] = guess.log_prob(drawn.double())
        return Candidates(x, torch.softmax(-energy(x).double() - log_guess, 1).to(x.dtype))


def denoise(
    energy: Energy,
    mixture: GaussianMixtureEnergy,
    seen: Tensor,
    std: Tensor,
    n_candidates: int = 512,
    generator: torch.Generator | None = None,
) -> Candidates:
    """Weighted draws of p(x | seen), seen = x + std * noise: half from the mixture's posterior, half round seen.

    Args:
        seen: ``[rows, D]``.
        std: standard deviations of the noise ``[D]``.
    """
    with torch.no_grad():
        everything = torch.arange(seen.shape[1])
        guess = posterior(mixture, seen, everything, std.square(), everything)
        n_round = n_candidates // 2
        noise = torch.randn((len(seen), n_round, seen.shape[1]), generator=generator)
        round_seen = seen.unsqueeze(1) + std * noise
        x = torch.cat([round_seen, guess.draw(n_candidates - n_round, generator).to(seen.dtype)], 1)
        z = (x - seen.unsqueeze(1)).double() / std.double()
        log_noise = -0.5 * z.square().sum(-1)
        constant = std.double().log().sum() + 0.5 * seen.shape[1] * math.log(2 * math.pi)
        log_proposal = torch.logaddexp(log_noise - constant, guess.log_prob(x.double()))
        log_p = -torch.cat([energy(piece) for piece in x.flatten(0, 1).split(8192)]).double()
        log_weights = log_p.reshape(x.shape[:2]) + log_noise - log_proposal
        return Candidates(x, torch.softmax(log_weights, 1).to(x.dtype))
