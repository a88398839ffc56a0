"""Networks over sequences: layers on each element, then convolutions along the sequence."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from thalweg.energies.networks.dropout import Dropout


class SequenceNetwork(nn.Module):
    """Unary energies ``[B, T, K]`` of the labels of padded sequences ``[B, T, *]``.

    Each element passes through layers of its own; residual convolutions of three elements then let it see its
    neighbours, one more on either side with each of them.

    Args:
        element: maps elements ``[N, *]`` to features ``[N, H]``; it never sees padding.
        n_features: H.
        n_labels: K.
        n_context: convolutions along the sequence; 0 keeps every element to itself.
        dropout: probability of dropping a feature in training.
    """

    def __init__(
        self, element: nn.Module, n_features: int, n_labels: int, n_context: int = 2, dropout: float = 0.0
    ):
        super().__init__()
        self.element = element
        self.context = nn.ModuleList(
            nn.Sequential(nn.Conv1d(n_features, n_features, 3, padding=1), nn.SiLU(), Dropout(dropout))
            for _ in range(n_context)
        )
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(n_features, n_labels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        found = self.dropout(self.element(x[mask]))
        h = found.new_zeros(*mask.shape, found.shape[-1])
        h[mask] = found
        counted = mask.unsqueeze(1).to(h.dtype)
        h = h.transpose(1, 2)
        for layer in self.context:
            # Padding is 0 at every layer, as what lies beyond the sequence is.
            h = (h + layer(h)) * counted
        return self.out(h.transpose(1, 2))


class ElementFeatures(nn.Module):
    """Features of elements from numbers, and from the features that they have out of a vocabulary.

    One layer takes both: a weight for each number, and a vector of weights for each feature of the vocabulary.

    Args:
        n_numbers: numbers of an element; they come first in it.
        n_vocabulary: features in the vocabulary. An element names those that it has by their places, from 1; 0 is
            none.
        hidden: widths of the layers.
        dropout: probability of dropping a number or a unit in training.
    """

    def __init__(self, n_numbers: int, n_vocabulary: int, hidden: Sequence[int], dropout: float = 0.0):
        super().__init__()
        self.n_numbers = n_numbers
        self.numbers = nn.Linear(n_numbers, hidden[0]) if n_numbers else None
        self.bag = (
            nn.EmbeddingBag(n_vocabulary + 1, hidden[0], mode="sum", padding_idx=0) if n_vocabulary else None
        )
        if self.bag is not None:
            # A dozen features of unit variance would saturate what follows.
            nn.init.normal_(self.bag.weight, std=0.1)
            with torch.no_grad():
                self.bag.weight[0].zero_()
        layers: list[nn.Module] = [nn.SiLU()]
        for n_in, n_out in itertools.pairwise(hidden):
            layers += [Dropout(dropout), nn.Linear(n_in, n_out), nn.SiLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        if self.numbers is not None:
            parts.append(self.numbers(x[:, : self.n_numbers]))
        if self.bag is not None:
            parts.append(self.bag(x[:, self.n_numbers :].long()))
        return self.layers(parts[0] if len(parts) == 1 else parts[0] + parts[1])
