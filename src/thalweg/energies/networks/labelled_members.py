"""An ensemble of classifiers, trained as one batched product: perceptrons with a linear part beside them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import constraints

from thalweg.energies.labelled import LabelledEnergy
from thalweg.energies.networks.batched import BatchedLinear
from thalweg.energies.networks.dropout import Dropout
from thalweg.energies.networks.image import UNIT_IMAGES


class LabelledMembers(LabelledEnergy):
    """E(x, k) = -log of the mean over members of p_m(k|x), p_m(k|x) a softmax at a temperature.

    The members are perceptrons that share no weights, each with a linear part beside its hidden layers. Since
    their probabilities are averaged, exp(-E) sums to one over the labels of every x: the marginal over labels
    says nothing of x. The temperature is 1 until it is set; it is no parameter of the training.

    Args:
        n_inputs: D, the width of x.
        n_labels: C.
        n_members: M.
        hidden: widths of the hidden layers.
        dropout: probability of dropping a hidden unit in training.
        shares: how frequent each label is ``[C]``, positive, from which the members start; None for equal ones.
        input_ndim: 1 for vectors; 3 for images in [0, 1], which are flattened and taken from -1 to 1.
    """

    temperature: Tensor

    def __init__(
        self,
        n_inputs: int,
        n_labels: int,
        n_members: int = 8,
        hidden: Sequence[int] = (128, 128),
        dropout: float = 0.1,
        shares: Sequence[float] | None = None,
        input_ndim: int = 1,
    ):
        super().__init__(
            input_ndim=input_ndim, input_support=UNIT_IMAGES if input_ndim == 3 else constraints.real_vector
        )
        self.n_members = n_members
        sizes = [n_inputs, *hidden]
        self.hidden: Any = nn.ModuleList(BatchedLinear(n_members, a, b, 1.0) for a, b in itertools.pairwise(sizes))
        self.dropout = Dropout(dropout)
        self.out = BatchedLinear(n_members, sizes[-1], n_labels, 0.1)
        self.linear = nn.Parameter(torch.zeros(n_members, n_inputs, n_labels))
        if shares is not None:
            log_shares = torch.as_tensor(shares, dtype=torch.float32).log()
            with torch.no_grad():
                self.out.bias.copy_((log_shares - log_shares.mean()).expand_as(self.out.bias))
        self.register_buffer("temperature", torch.ones(()))

    def member_scores(self, x: Tensor) -> Tensor:
        """The scores of every member ``[M, N, C]``, at temperature 1.

        Args:
            x: ``[N, *event]``, or ``[M, N, *event]`` where every member has rows of its own.
        """
        has_members = x.dim() == self.input_ndim + 2
        if self.input_ndim > 1:
            x = 2 * x.flatten(-self.input_ndim) - 1
        x = x if has_members else x.unsqueeze(0).expand(self.n_members, -1, -1)
        h = x
        for layer in self.hidden:
            h = F.silu(layer(h))
            if self.training and self.dropout.probability:
                # One mask for all members: an eighth of the random numbers, and they train as well.
                h = h * self.dropout(torch.ones_like(h[0]))
        return self.out(h) + torch.bmm(x, self.linear)

    def energies(self, x: Tensor) -> Tensor:
        batch, event = x.shape[: x.dim() - self.input_ndim], x.shape[x.dim() - self.input_ndim :]
        log_probs = torch.log_softmax(self.member_scores(x.reshape(-1, *event)) / self.temperature, -1)
        return (math.log(self.n_members) - torch.logsumexp(log_probs, 0)).reshape(*batch, -1)
