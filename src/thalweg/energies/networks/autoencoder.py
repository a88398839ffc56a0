"""Autoencoders as energies: low where an input is reconstructed well."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from thalweg.energies.base import Energy
from thalweg.energies.networks.generator import check_sides, generating_network
from thalweg.energies.networks.image import UNIT_IMAGES
from thalweg.energies.networks.residual import Centre

DISTANCES = ("squared", "euclidean", "absolute")
_TINY = 1e-12


class AutoencoderEnergy(Energy):
    """E(x) = distance between x and its reconstruction, decoder(encoder(x)).

    Args:
        encoder: maps ``[N, *event]`` to codes ``[N, ...]``.
        decoder: maps codes to ``[N, *event]``.
        distance: "squared", the sum of squared differences; "euclidean", its root; or "absolute", the mean of the
            absolute differences. The squared distance of what is reconstructed perfectly has no gradient in the
            weights: where a generator has found such a place, the energy can't push it away.
        event_ndim: how many trailing dimensions make one configuration: 1 a vector, 3 an image.
        support: where x lives.

    Raises:
        ValueError: for another distance.

    Source: [Zhao 2017, sec. 2.3]; [Berthelot 2017, sec. 3.1] for the absolute distance.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        distance: str = "squared",
        event_ndim: int = 1,
        support: constraints.Constraint = constraints.real_vector,
    ):
        super().__init__()
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")
        self.encoder, self.decoder, self.distance = encoder, decoder, distance
        self.event_ndim, self.support = event_ndim, support

    def forward(self, x: Tensor) -> Tensor:
        return self.energies_and_codes(x)[0]

    def codes(self, x: Tensor) -> Tensor:
        """Codes ``[*batch, K]``; codes of several dimensions are laid out in one."""
        batch, flat = self._flat(x)
        return self.encoder(flat).flatten(1).reshape(*batch, -1)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Reconstructions ``[*batch, *event]``."""
        return self.decoder(self.encoder(self._flat(x)[1])).reshape(x.shape)

    def energies_and_codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``[*batch]`` and codes ``[*batch, K]``, in one pass."""
        batch, flat = self._flat(x)
        codes = self.encoder(flat)
        apart = (self.decoder(codes) - flat).flatten(1)
        return self._length(apart).reshape(batch), codes.flatten(1).reshape(*batch, -1)

    def _length(self, apart: Tensor) -> Tensor:
        """The distance ``[N]`` of differences ``[N, D]``."""
        if self.distance == "absolute":
            return apart.abs().mean(1)
        squared = apart.square().sum(1)
        # The root has no derivative at 0.
        return squared if self.distance == "squared" else (squared + _TINY).sqrt()

    def _flat(self, x: Tensor) -> tuple[torch.Size, Tensor]:
        """The batch shape, and x as ``[N, *event]``."""
        batch, event = x.shape[: x.dim() - self.event_ndim], x.shape[x.dim() - self.event_ndim :]
        return batch, x.reshape(-1, *event)


def autoencoder_energy(
    event: Sequence[int],
    n_codes: int = 16,
    hidden: Sequence[int] = (128,),
    width: int | None = None,
    distance: str = "squared",
) -> AutoencoderEnergy:
    """An autoencoder of vectors, or of images in [0, 1], without normalisation.

    Args:
        event: (D,) for vectors, or (C, H, W) for images.
        n_codes: numbers in a code.
        hidden: widths of the encoder's hidden layers, those of the decoder in reverse, for perceptrons.
        width: channels of the finest layer of an encoder and decoder of convolutions, for images whose sides are
            multiples of 4; None makes perceptrons.
        distance: see :class:`AutoencoderEnergy`.
    """
    return AutoencoderEnergy(
        encoding_network(event, n_codes, hidden, width),
        generating_network(event, n_codes, list(hidden)[::-1], width, normalise=False),
        distance=distance,
        event_ndim=len(event),
        support=UNIT_IMAGES if len(event) == 3 else constraints.real_vector,
    )


def encoding_network(
    event: Sequence[int], n_outputs: int, hidden: Sequence[int] = (128,), width: int | None = None
) -> nn.Sequential:
    """A network from ``[N, *event]`` to ``[N, n_outputs]``: an encoder, or with one output a discriminator.

    Args:
        event: (D,) for vectors, or (C, H, W) for images in [0, 1].
        n_outputs: numbers that it ends in.
        hidden: widths of the hidden layers of a perceptron.
        width: channels of the first of two strided convolutions, for images whose sides are multiples of 4; None
            makes a perceptron.

    Source: [Radford 2016] for the convolutions, without its batch normalisation.
    """
    centre: list[nn.Module] = [Centre()] if len(event) == 3 else []
    if width is not None:
        channels, height, width_of_image = check_sides(event)
        return nn.Sequential(
            *centre,
            nn.Conv2d(channels, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(2 * width * (height // 4) * (width_of_image // 4), n_outputs),
        )
    layers: list[nn.Module] = []
    sizes = [math.prod(event), *hidden]
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.LeakyReLU(0.2)]
    return nn.Sequential(*centre, nn.Flatten(), *layers, nn.Linear(sizes[-1], n_outputs))
