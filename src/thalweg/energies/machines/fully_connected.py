"""The general Boltzmann machine: binary units, each coupled to every other, some of them hidden."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thalweg.energies.base import Energy
from thalweg.energies.discrete import BINARY, all_states

_MOST_UNITS = 25


class BoltzmannMachine(Energy):
    """E(x) = -b'x - x'Wx / 2 of bits x = (v, h), with W symmetric and zero on the diagonal.

    The visible units v come first. The energy is that of visible and hidden units together; ``marginal`` is
    that of the visible ones alone. What is learned is W above the diagonal, so that it stays as it must be.

    Args:
        n_visible: D.
        n_hidden: H; hidden units are coupled to the visible ones and among each other.

    Raises:
        ValueError: if there is no visible unit, or x has another width.

    Source: [Ackley 1985].
    """

    support = BINARY

    def __init__(self, n_visible: int, n_hidden: int = 0):
        super().__init__()
        if n_visible < 1 or n_hidden < 0:
            raise ValueError(f"a machine needs at least one visible unit, got {n_visible} and {n_hidden} hidden")
        self.n_visible, self.n_hidden = n_visible, n_hidden
        n = n_visible + n_hidden
        self.bias = nn.Parameter(torch.zeros(n))
        # Not zero: hidden units that are all alike get the same gradient for ever.
        self.couplings = nn.Parameter(0.01 * torch.randn(n * (n - 1) // 2))
        self.register_buffer("pairs", torch.triu_indices(n, n, 1), persistent=False)

    pairs: Tensor

    @classmethod
    def from_ising(cls, couplings: Tensor, field: Tensor) -> BoltzmannMachine:
        """The machine of spins s = 2 x - 1 with E = -field's - s'Js / 2, up to a constant.

        Args:
            couplings: J ``[D, D]``, symmetric with zero diagonal.
            field: ``[D]``.
        """
        if not torch.equal(couplings, couplings.t()) or couplings.diagonal().any():
            raise ValueError("couplings must be symmetric, with zeros on the diagonal")
        machine = cls(len(field)).to(couplings)
        with torch.no_grad():
            machine.bias.copy_(2 * field - 2 * couplings.sum(1))
            machine.couplings.copy_(4 * couplings[tuple(machine.pairs)])
        return machine

    @property
    def weights(self) -> Tensor:
        """W ``[D + H, D + H]``, with a graph."""
        n = len(self.bias)
        upper = self.couplings.new_zeros(n, n).index_put(tuple(self.pairs), self.couplings)
        return upper + upper.t()

    def _pairwise(self) -> PairwiseEnergy:
        return PairwiseEnergy(self.bias, self.weights)

    def forward(self, x: Tensor) -> Tensor:
        return self._pairwise()(x)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._pairwise().value_and_gradient(x)

    def fixed(self) -> PairwiseEnergy:
        return PairwiseEnergy(self.bias.detach(), self.weights.detach())

    def differences(self, x: Tensor, sites: Tensor) -> Tensor:
        return self._pairwise().differences(x, sites)

    def log_odds(self, x: Tensor) -> Tensor:
        """log p(x_i = 1 | the others) - log p(x_i = 0 | the others) ``[*batch, D + H]``: b + Wx."""
        return self._pairwise().log_odds(x)

    def marginal_energy(self, v: Tensor) -> Tensor:
        """-log sum_h exp(-E(v, h)) ``[*batch]`` of v ``[*batch, D]``, by going through all h.

        Raises:
            ValueError: if there are more than 25 hidden units.
        """
        if not self.n_hidden:
            return self(v)
        return self._pairwise().summed_over_rest(v, self.n_visible)

    def marginal(self) -> Energy:
        """The energy of the visible units alone."""
        return VisibleEnergy(self) if self.n_hidden else self

    def log_normaliser(self) -> Tensor:
        """log Z, exact, with a graph, by going through all configurations.

        Raises:
            ValueError: if there are more than 25 units.
        """
        n = len(self.bias)
        _check_size(n)
        half = all_states(n // 2).to(self.bias)
        return torch.logsumexp(-self._pairwise().summed_over_rest(half, n // 2), 0)

    def log_prob(self, v: Tensor) -> Tensor:
        """log p(v) ``[*batch]`` of the visible units, normalised, by going through all configurations."""
        return -self.marginal_energy(v) - self.log_normaliser()


class VisibleEnergy(Energy):
    """The energy of a machine's visible units, its hidden ones summed out."""

    support = BINARY

    def __init__(self, machine: BoltzmannMachine):
        super().__init__()
        self.machine = machine

    def forward(self, v: Tensor) -> Tensor:
        return self.machine.marginal_energy(v)


class PairwiseEnergy(Energy):
    """-b'x - x'Wx / 2 of bits, for a given bias ``[n]`` and symmetric weights ``[n, n]``."""

    support = BINARY

    def __init__(self, bias: Tensor, weights: Tensor):
        super().__init__()
        # Not registered: this is a view of a machine, not a second owner.
        self.__dict__["bias"], self.__dict__["weights"] = bias, weights

    bias: Tensor
    weights: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self._check(x, len(self.bias))
        return -(x * (self.bias + 0.5 * (x @ self.weights))).sum(-1)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            log_odds = self.log_odds(x)
            return -0.5 * (x * (self.bias + log_odds)).sum(-1), -log_odds

    def log_odds(self, x: Tensor) -> Tensor:
        self._check(x, len(self.bias))
        return self.bias + x @ self.weights

    def differences(self, x: Tensor, sites: Tensor) -> Tensor:
        """(2 x_i - 1) (b + Wx)_i ``[*batch, n, 1]``."""
        self._check(x, len(self.bias))
        if sites.dim() == 1:
            log_odds, values = self.bias[sites] + x @ self.weights[:, sites], x[..., sites]
        else:
            log_odds, values = self.log_odds(x).gather(-1, sites), x.gather(-1, sites)
        return ((2 * values - 1) * log_odds).unsqueeze(-1)

    def summed_over_rest(self, first: Tensor, m: int) -> Tensor:
        """-log sum exp(-E) over all values of the other units, given the first m ``[*batch, m]``."""
        self._check(first, m)
        _check_size(len(self.bias) - m)
        w, log_sums = self.weights, []
        own = -PairwiseEnergy(self.bias[:m], w[:m, :m])(first)
        rest = PairwiseEnergy(self.bias[m:], w[m:, m:])
        for states in all_states(len(self.bias) - m).to(w).split(1024):
            # The first units act on the others as a bias.
            log_sums.append(torch.logsumexp((first @ w[:m, m:]) @ states.t() - rest(states), -1))
        return -own - torch.logsumexp(torch.stack(log_sums), 0)

    def _check(self, x: Tensor, n: int) -> None:
        if x.shape[-1] != n:
            hint = ""
            if x.shape[-1] < n:
                hint = "; hidden units are summed out by marginal(), or drawn by BoltzmannLearning"
            raise ValueError(f"the machine has {n} units, got x of width {x.shape[-1]}{hint}")


def _check_size(n: int) -> None:
    if n > _MOST_UNITS:
        raise ValueError(f"2^{n} configurations are too many to go through: at most {_MOST_UNITS} units")
