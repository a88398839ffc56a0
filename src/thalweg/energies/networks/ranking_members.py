"""An ensemble of energies of items that are compared with one another, trained as one batched product."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.distributions import constraints

from thalweg.energies.base import Energy
from thalweg.energies.networks.labelled_members import LabelledMembers


class RankingMembers(Energy):
    """E(x), the mean of the energies of members that share no weights: the lower, the better an item.

    Only differences of the energies of items that compete mean something, and those of the members are
    averaged: that is the geometric mean of their distributions over the items of a list.

    Args:
        n_inputs: D, the width of x.
        n_members: M.
        hidden: widths of the hidden layers; a linear part stands beside them.
        dropout: probability of dropping a hidden unit in training.
    """

    event_ndim = 1
    support = constraints.real_vector

    def __init__(
        self, n_inputs: int, n_members: int = 8, hidden: Sequence[int] = (128, 128), dropout: float = 0.1
    ):
        super().__init__()
        self.members = LabelledMembers(n_inputs, 1, n_members, hidden, dropout)

    @property
    def n_members(self) -> int:
        """How many members there are."""
        return self.members.n_members

    def member_energies(self, x: Tensor) -> Tensor:
        """The energies of every member ``[M, N]``.

        Args:
            x: ``[N, D]``, or ``[M, N, D]`` where every member has rows of its own.
        """
        return -self.members.member_scores(x)[..., 0]

    def forward(self, x: Tensor) -> Tensor:
        return self.member_energies(x.reshape(-1, x.shape[-1])).mean(0).reshape(x.shape[:-1])
