"""Variational autoencoders: a noisy generator and an encoder that guesses what its numbers were."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from thalweg.energies.base import Energy, standard_normal
from thalweg.energies.networks.autoencoder import encoding_network
from thalweg.energies.networks.generator import NoisyGenerator, generating_network
from thalweg.energies.networks.image import UNIT_IMAGES

# Rows that the decoder makes at once, and numbers in them.
_ROWS_AT_ONCE, _NUMBERS_AT_ONCE = 2**15, 2**23


class VariationalAutoencoder(Energy):
    """E(x) = -log p(x), estimated: p(x) is the integral of p(x|z) N(z; 0, I), and z is drawn where it is likely.

    The encoder gives a Gaussian q(z|x). With n_draws from it, E is minus the logarithm of the mean of
    p(x|z) p(z) / q(z|x), whose expectation is at least -log p(x) and falls to it as there are more draws. Their
    noise is drawn once, so that the same x has the same energy every time, and evenly (a scrambled Sobol
    sequence), since an accident of it would be one of all x.

    Args:
        encoder: maps ``[N, *event]`` to ``[N, 2 * latent_dim]``: means and logarithms of standard deviations.
        decoder: p(x|z).
        n_draws: of z, for an energy.
        event_ndim: how many trailing dimensions make one configuration: 1 a vector, 3 an image.
        support: where x lives.

    Source: [Kingma 2014]; more draws than one [Burda 2016, eq. 8]; a learned standard deviation of the decoder
    [Rybkin 2021], here one for each place; the sequence [Owen 1998].
    """

    noise: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoder: NoisyGenerator,
        *,
        n_draws: int = 64,
        event_ndim: int = 1,
        support: constraints.Constraint = constraints.real_vector,
    ):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.event_ndim, self.support = event_ndim, support
        self.register_buffer("noise", _even_normal(n_draws, decoder.latent_dim))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log standard deviations of z given x ``[N, *event]``, each ``[N, latent_dim]``."""
        mean, log_std = self.encoder(x).chunk(2, -1)
        return mean, log_std.clamp(-7.0, 3.0)

    def reconstruct(self, x: Tensor) -> Tensor:
        """What the decoder makes of the means of z given x ``[N, *event]``."""
        return self.decoder(self.posterior(x)[0])

    def negative_bound(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """-log p(x|z) + KL(q(z|x) || N(0, I)) ``[N]`` with one draw of z: on average not below -log p(x)."""
        mean, log_std = self.posterior(x)
        z = mean + log_std.exp() * standard_normal(mean.shape, mean, generator)
        divergence = 0.5 * (mean.square() + (2 * log_std).exp() - 1).sum(-1) - log_std.sum(-1)
        return divergence - self.decoder.log_prob_given(x, self.decoder(z))

    def forward(self, x: Tensor) -> Tensor:
        batch, event = x.shape[: x.dim() - self.event_ndim], x.shape[x.dim() - self.event_ndim :]
        at_once = max(1, min(_ROWS_AT_ONCE, _NUMBERS_AT_ONCE // math.prod(event)) // len(self.noise))
        parts = [self._estimated(part) for part in x.reshape(-1, *event).split(at_once)]
        return torch.cat(parts).reshape(batch)

    def _estimated(self, x: Tensor) -> Tensor:
        mean, log_std = self.posterior(x)
        n_draws, n_latent = self.noise.shape
        z = mean + log_std.exp() * self.noise.unsqueeze(1)
        # log p(z) - log q(z|x), in which the constants of the two Gaussians cancel.
        log_ratio = (0.5 * (self.noise.square().unsqueeze(1) - z.square()) + log_std).sum(-1)
        means = self.decoder(z.reshape(-1, n_latent))
        copies = x.expand(n_draws, *x.shape).reshape(means.shape)
        log_weights = self.decoder.log_prob_given(copies, means).reshape(n_draws, -1) + log_ratio
        return math.log(n_draws) - torch.logsumexp(log_weights, 0)


def _even_normal(n: int, n_dims: int) -> Tensor:
    """n points ``[n, n_dims]`` that are normal and lie more evenly than independent draws."""
    uniform = torch.quasirandom.SobolEngine(n_dims, scramble=True, seed=0).draw(n)
    return torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))


def variational_autoencoder(
    event: Sequence[int],
    latent_dim: int,
    hidden: Sequence[int] = (128,),
    width: int | None = None,
    std: float = 0.1,
    n_draws: int = 64,
) -> VariationalAutoencoder:
    """A variational autoencoder of vectors, or of images in [0, 1], without normalisation.

    Args:
        event: (D,) for vectors, or (C, H, W) for images.
        latent_dim: how many numbers z has.
        hidden: widths of the encoder's hidden layers, those of the decoder in reverse, for perceptrons.
        width: channels of the finest layer of an encoder and decoder of convolutions, for images whose sides are
            multiples of 4; None makes perceptrons.
        std: standard deviations of the decoder's noise to begin with; each place has one of its own.
        n_draws: see :class:`VariationalAutoencoder`.
    """
    decoding = generating_network(event, latent_dim, list(hidden)[::-1], width, normalise=False)
    return VariationalAutoencoder(
        encoding_network(event, 2 * latent_dim, hidden, width),
        NoisyGenerator(decoding, latent_dim, std, 1e-3, 10.0, event),
        n_draws=n_draws,
        event_ndim=len(event),
        support=UNIT_IMAGES if len(event) == 3 else constraints.real_vector,
    )
