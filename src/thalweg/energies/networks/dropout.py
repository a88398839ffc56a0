"""Dropout by random numbers of one's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """In training each number is set to 0 with this probability, and the others are scaled up.

    As ``torch.nn.Dropout``, but a training gives it its own generator, so that the same seed gives the same model
    whatever else draws random numbers, in other threads too.

    Args:
        probability: of dropping a number, in [0, 1).

    Attributes:
        generator: where the random numbers come from; None is PyTorch's global generator.

    Source: [Srivastava 2014].
    """

    generator: torch.Generator | None = None

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.probability:
            return x
        kept = 1 - self.probability
        return x * torch.empty_like(x).bernoulli_(kept, generator=self.generator).div_(kept)

    def __getstate__(self) -> dict[str, object]:
        # A generator can be neither copied nor pickled, and belongs to the training, not to the network.
        return {name: value for name, value in self.__dict__.items() if name != "generator"}
