"""What is behind the draws of an autoencoder that an energy corrects: completions of what is known in part."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.energies.base import Energy, standard_normal
from thalweg.energies.latent_space import LatentCompletion
from thalweg.energies.networks.variational import VariationalAutoencoder
from thalweg.sampling.adaptation import adapt_step_size
from thalweg.sampling.chain import run_chain
from thalweg.sampling.hmc import HMC

# Rounds of encoding and decoding before the chains.
_N_ROUNDS = 20


def complete_draws(
    autoencoder: VariationalAutoencoder,
    known: Tensor,
    mask: Tensor,
    energy: Energy | None = None,
    n_steps: int = 50,
    noisy: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws given a part of each, ``[N, *event]``; what is known comes back bit for bit.

    Encoding and decoding in turn leads near the conditional distribution, and HMC over what is behind a draw (see
    :class:`~thalweg.energies.LatentCompletion`) has it, once it has run long enough.

    Args:
        autoencoder: p_G(x).
        known: values ``[N, *event]``; those not known may be anything finite.
        mask: True where known ``[N, *event]``.
        energy: of draws, such as an energy that corrects p_G; None is none.
        n_steps: of each chain, after a warm-up of as many that chooses their size.
        noisy: whether the rest has the noise of the decoder, or is its mean.

    Source: encoding and decoding in turn [Rezende 2014, app. F]; corrected by a test of acceptance [Mattei 2018].
    """
    decoder = autoencoder.decoder
    behind = LatentCompletion(decoder, known, mask, energy)
    with torch.no_grad():
        x = known
        for _ in range(_N_ROUNDS):
            mean, log_std = autoencoder.posterior(x)
            z = mean + log_std.exp() * standard_normal(mean.shape, mean, generator)
            x = torch.where(mask, known, decoder.noisy(decoder(z), generator))
    noise = standard_normal((len(x), x[0].numel()), x, generator)
    warm = adapt_step_size(HMC(0.05, 8), behind, torch.cat([z, noise], 1), n_steps, generator=generator)
    end = run_chain(warm.kernel, behind, warm.state.position, n_steps, generator).position
    if noisy:
        return behind.made(end)
    with torch.no_grad():
        return torch.where(mask, known, decoder(end[:, : decoder.latent_dim]))
