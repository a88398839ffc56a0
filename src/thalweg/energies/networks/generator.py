"""Generators: networks that turn independent normal numbers into draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from thalweg.energies.base import standard_normal


class Generator(nn.Module):
    """A distribution that can be drawn from and has no density: x = network(z), z of independent N(0, 1) numbers.

    Args:
        network: maps ``[N, latent_dim]`` to ``[N, *event]``; see :func:`generating_network`.
        latent_dim: how many numbers z has.

    Source: [Goodfellow 2014].
    """

    def __init__(self, network: nn.Module, latent_dim: int):
        super().__init__()
        self.network = network
        self.latent_dim = latent_dim

    def forward(self, z: Tensor) -> Tensor:
        """x ``[*batch, *event]`` of latent z ``[*batch, latent_dim]``."""
        made = self.network(z.reshape(-1, self.latent_dim))
        return made.reshape((*z.shape[:-1], *made.shape[1:]))

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws ``[n, *event]``, with a graph to the weights."""
        like = next(self.parameters(), torch.empty(0))
        return self(standard_normal((n, self.latent_dim), like, generator))

    @torch.no_grad()
    def renew_statistics(
        self, batch_size: int, generator: torch.Generator | None = None, n_batches: int = 50
    ) -> None:
        """Set what batch normalisation takes for means and variances to those of fresh draws.

        For weights that were averaged along a training, to which the statistics on the way do not belong.
        """
        layers = [m for m in self.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        before, momenta = self.training, [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
        self.train()
        for _ in range(n_batches if layers else 0):
            self.draw(batch_size, generator)
        self.train(before)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


class NoisyGenerator(Generator):
    """x = network(z) + std * noise, z and the noise of independent N(0, 1) numbers: p(x|z) is a Gaussian.

    The decoder of a variational autoencoder, or a generator whose draws have a density everywhere.

    Args:
        network: maps ``[N, latent_dim]`` to ``[N, *event]``.
        latent_dim: how many numbers z has.
        std: standard deviation of the noise to begin with; it is learned.
        least, most: between which it stays.
        event: the shape of a draw, for noise with a std of its own at each place; None has one for all.

    Raises:
        ValueError: for a std that is not between these.
    """

    def __init__(
        self,
        network: nn.Module,
        latent_dim: int,
        std: float = 0.1,
        least: float = 0.01,
        most: float = 1.0,
        event: Sequence[int] | None = None,
    ):
        super().__init__(network, latent_dim)
        if not 0 < least < std < most:
            raise ValueError(f"std must be between least and most, got {std}, {least} and {most}")
        self.low, self.high = math.log(least), math.log(most)
        share = (math.log(std) - self.low) / (self.high - self.low)
        self.place = nn.Parameter(torch.full(tuple(event or ()), math.log(share / (1 - share))))

    @property
    def log_std(self) -> Tensor:
        """The logarithm of the standard deviation of the noise, one number or ``[*event]``."""
        return torch.lerp(self.place.new_tensor(self.low), self.place.new_tensor(self.high), self.place.sigmoid())

    def noisy(self, means: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws given z from the means ``forward(z)``, as these."""
        return means + self.log_std.exp() * standard_normal(means.shape, means, generator)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.noisy(super().draw(n, generator), generator)

    def means(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """What n draws are before their noise."""
        return super().draw(n, generator)

    def log_prob_given(self, x: Tensor, means: Tensor) -> Tensor:
        """log p(x|z) ``[N]`` of x ``[N, *event]`` from the means ``forward(z)``, as these."""
        apart = ((x - means) / self.log_std.exp()).square().flatten(1)
        return -0.5 * apart.sum(-1) - apart.shape[-1] * (self.log_std.mean() + 0.5 * math.log(2 * math.pi))


class FromBothNoises(nn.Module):
    """A noisy generator as a map of all that its draws are made of: ``[N, latent_dim + D]`` to ``[N, *event]``.

    Args:
        generator: whose latent numbers come first, and then the noise of its draws.
    """

    def __init__(self, generator: NoisyGenerator):
        super().__init__()
        self.generator = generator

    def forward(self, noise: Tensor) -> Tensor:
        z, own = noise.split([self.generator.latent_dim, noise.shape[-1] - self.generator.latent_dim], -1)
        means = self.generator(z)
        return means + self.generator.log_std.exp() * own.reshape(means.shape)


def generating_network(
    event: Sequence[int],
    n_inputs: int,
    hidden: Sequence[int] = (128, 128),
    width: int | None = None,
    normalise: bool = True,
) -> nn.Sequential:
    """A network from ``[N, n_inputs]`` to ``[N, *event]``: a generator, or the decoder of an autoencoder.

    Images end in a tanh and lie in [0, 1]; vectors are not bounded.

    Args:
        event: (D,) for vectors, or (C, H, W) for images.
        n_inputs: numbers that it starts from.
        hidden: widths of the layers of a perceptron.
        width: channels of the finest hidden layer of a network of convolutions, for images whose sides are
            multiples of 4; None makes a perceptron.
        normalise: whether hidden layers have batch normalisation.

    Source: [Radford 2016] for the convolutions.
    """
    bound: list[nn.Module] = [Uncentre()] if len(event) == 3 else []
    if width is not None:
        channels, height, width_of_image = check_sides(event)
        coarse = (2 * width, height // 4, width_of_image // 4)
        return nn.Sequential(
            nn.Linear(n_inputs, math.prod(coarse), bias=not normalise),
            nn.Unflatten(1, coarse),
            *_hidden(2 * width, normalise, nn.BatchNorm2d),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=not normalise),
            *_hidden(width, normalise, nn.BatchNorm2d),
            nn.ConvTranspose2d(width, channels, 4, 2, 1),
            *bound,
        )
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise([n_inputs, *hidden]):
        layers += [nn.Linear(n_in, n_out, bias=not normalise), *_hidden(n_out, normalise, nn.BatchNorm1d)]
    last = [n_inputs, *hidden][-1]
    return nn.Sequential(*layers, nn.Linear(last, math.prod(event)), *bound, nn.Unflatten(1, tuple(event)))


class Uncentre(nn.Module):
    """tanh, from [-1, 1] to [0, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 + 0.5 * torch.tanh(x)


def check_sides(event: Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width of images that can be halved twice.

    Raises:
        ValueError: for anything else.
    """
    if len(event) != 3 or event[1] % 4 or event[2] % 4:
        raise ValueError(
            f"the convolutions are for images whose height and width are multiples of 4, got {tuple(event)}: take "
            "a perceptron (width=None)"
        )
    return event[0], event[1], event[2]


def _hidden(n: int, normalise: bool, normalisation: type[nn.Module]) -> list[nn.Module]:
    """What follows a linear map to n units or channels."""
    return [normalisation(n), nn.ReLU()] if normalise else [nn.LeakyReLU(0.2)]
