"""How an energy of images generates: by short cold chains, or by the flow down its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from thalweg.energies.base import Energy
from thalweg.energies.conditioning import ClampedEnergy
from thalweg.energies.densities.class_gaussians import ClassGaussians
from thalweg.sampling.chain import run_chain
from thalweg.sampling.flow import Heun
from thalweg.sampling.langevin import ColdLangevin


class Walk(Protocol):
    """From noise, or from images, to images of low energy given their labels ``[B]``.

    Attributes:
        n_fresh, n_filling, n_denoising: steps that new images, completions and cleaned images take by default.
    """

    n_fresh: int
    n_filling: int
    n_denoising: int

    def noise(self, labels: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Where new images start ``[B, *shape, C, H, W]``."""
        ...

    def part(self, energy: Energy, position: Tensor, share: float, n: int, generator: torch.Generator) -> Tensor:
        """Where n steps take what is on its way from noise to new images, if they are this share of the way."""
        ...

    def onward(self, energy: Energy, labels: Tensor, images: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Images of this energy from images of another one ``[B, *shape, C, H, W]``."""
        ...

    def completed(
        self, energy: Energy, labels: Tensor, images: Tensor, known: Tensor, n: int, generator: torch.Generator
    ) -> Tensor:
        """Images ``[B, m, C, H, W]`` whose unknown pixels go to where the known ones leave the energy low."""
        ...

    def cleaned(self, energy: Energy, images: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Images moved towards the data a little ``[B, *shape, C, H, W]``."""
        ...


class ColdChains:
    """Chains at a temperature far below 1, from uniform noise.

    Args:
        kernel: their step.
        image_shape: (C, H, W).
    """

    n_fresh, n_filling, n_denoising = 500, 200, 10

    def __init__(self, kernel: ColdLangevin, image_shape: Sequence[int]):
        self.kernel, self.image_shape = kernel, tuple(image_shape)

    def noise(self, labels: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.rand((len(labels), *shape, *self.image_shape), generator=generator, device=generator.device)

    def part(self, energy: Energy, position: Tensor, share: float, n: int, generator: torch.Generator) -> Tensor:
        return self.cleaned(energy, position, n, generator)

    def onward(self, energy: Energy, labels: Tensor, images: Tensor, n: int, generator: torch.Generator) -> Tensor:
        return self.cleaned(energy, images, n, generator)

    def completed(
        self, energy: Energy, labels: Tensor, images: Tensor, known: Tensor, n: int, generator: torch.Generator
    ) -> Tensor:
        clamped, noise = ClampedEnergy(energy, images, known), self.noise(labels, images.shape[1:2], generator)
        return clamped.complete(self.cleaned(clamped, clamped.complete(noise), n, generator))

    def cleaned(self, energy: Energy, images: Tensor, n: int, generator: torch.Generator) -> Tensor:
        return run_chain(self.kernel, energy, images, n, generator).position


class MatchedFlow:
    """Heun's steps down the gradient of an energy that was matched to lines from Gaussians to images.

    Args:
        gaussians: of each label, where the lines start.
    """

    n_fresh, n_filling, n_denoising = 25, 25, 10
    # What is kept of an image on the way to another label, and the time for which a noisy one flows.
    kept, cleaning_time = 0.4, 0.5

    def __init__(self, gaussians: ClassGaussians):
        self.gaussians = gaussians

    def noise(self, labels: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        drawn = self.gaussians.draws(labels.to(generator.device).long(), torch.Size(shape).numel(), generator)
        return drawn.reshape(len(labels), *shape, *drawn.shape[2:])

    def part(self, energy: Energy, position: Tensor, share: float, n: int, generator: torch.Generator) -> Tensor:
        return run_chain(Heun(share / n), energy, position, n, generator).position

    def onward(self, energy: Energy, labels: Tensor, images: Tensor, n: int, generator: torch.Generator) -> Tensor:
        noise = self.noise(labels, images.shape[1:-3], generator)
        start = torch.lerp(noise, images, self.kept)
        return self.part(energy, start, 1 - self.kept, n, generator).clamp(0, 1)

    def completed(
        self, energy: Energy, labels: Tensor, images: Tensor, known: Tensor, n: int, generator: torch.Generator
    ) -> Tensor:
        """From draws that suit the known pixels, which follow the lines that they would have come by."""
        seen = known.expand_as(images)[:, 0]
        labels, n_draws = labels.to(images.device), images.shape[1]
        position = noise = self.gaussians.draws_given(labels, images[:, 0], seen, n_draws, generator)
        for step in range(n):
            position = torch.where(known, torch.lerp(noise, images, step / n), position)
            position = run_chain(Heun(1 / n), energy, position, 1, generator, check=step == 0).position
        return torch.where(known, images, position.clamp(0, 1))

    def cleaned(self, energy: Energy, images: Tensor, n: int, generator: torch.Generator) -> Tensor:
        return self.part(energy, images, self.cleaning_time, n, generator).clamp(0, 1)
