"""Kernels between discrete values: Gibbs, site by site, and Gibbs with gradients, which picks the site."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thalweg.energies.base import Energy
from thalweg.energies.discrete import Sites
from thalweg.sampling.chain import Place, State, accept


@dataclass(frozen=True)
class SingleSiteGibbs:
    """Draws one site after the other given all the others, for bits and one-hot groups.

    A site's distribution given the others takes K - 1 evaluations of the energy, or none where the energy knows
    its differences in closed form.

    Args:
        n_random: sites in a step, each picked at random for each chain; None for a sweep over all in turn.
        sites: the only ones that are drawn; None for all. The others stay where they are.

    Source: [Geman 1984].
    """

    n_random: int | None = None
    sites: Sequence[int] | None = None
    discrete = True

    def step(self, energy: Energy, state: State, generator: torch.Generator | None = None) -> State:
        made_of, x, value = Sites(energy), state.position, state.energy
        with torch.no_grad():
            for site in self._order(made_of.count(x), state.acceptance, generator):
                which = site.squeeze(-1).expand(state.acceptance.shape)
                closed = energy.differences(x, site)
                if closed is not None:
                    # Sums of differences would gather rounding: the energy is left for who asks for it.
                    value = None
                    energies = nn.functional.pad(closed.squeeze(-2), (1, 0))
                else:
                    value = energy(x) if value is None else value
                    shifts = (torch.full_like(which, j) for j in range(1, made_of.n_values))
                    energies = torch.stack([value, *(energy(made_of.changed(x, which, j)) for j in shifts)], -1)
                shift = draw(-energies, generator)
                x = made_of.changed(x, which, shift)
                if value is not None:
                    value = energies.gather(-1, shift.unsqueeze(-1)).squeeze(-1)
        return State(x, torch.ones_like(state.acceptance), value)

    def _order(self, n_sites: int, like: Tensor, generator: torch.Generator | None) -> Iterator[Tensor]:
        """The sites, each as ``[1]``, or ``[*batch, 1]`` where the chains have their own."""
        allowed = torch.as_tensor(range(n_sites) if self.sites is None else self.sites, device=like.device)
        if self.n_random is None:
            yield from allowed.unsqueeze(1)
            return
        for _ in range(self.n_random):
            pick = torch.randint(len(allowed), (*like.shape, 1), generator=generator, device=like.device)
            yield allowed[pick]


@dataclass(frozen=True)
class GibbsWithGradients:
    """Proposes one change, picked by what the gradient says each would do, with a Metropolis-Hastings test.

    The change of site d to another value is picked with probability proportional to exp(-slope / 2), the slope
    being what it adds to the energy to first order. The energy must be defined, and have a gradient, between the
    discrete values too; exp(-E) is stationary whatever the gradient is. The state keeps energy and gradient, so
    a step costs one gradient.

    Source: [Grathwohl 2021, alg. 1].
    """

    discrete = True

    def step(self, energy: Energy, state: State, generator: torch.Generator | None = None) -> State:
        made_of, x, (value, grad) = Sites(energy), state.position, state.evaluated(energy)
        log_forward = self._log_proposal(made_of, x, grad)
        change = draw(log_forward, generator)
        n_shifts = made_of.n_values - 1
        site, shift = change // n_shifts, change % n_shifts + 1
        proposal = made_of.changed(x, site, shift)
        new_value, new_grad = energy.value_and_gradient(proposal)
        back = site * n_shifts + (made_of.n_values - shift) - 1
        log_back = self._log_proposal(made_of, proposal, new_grad)
        log_ratio = value - new_value + _at(log_back, back) - _at(log_forward, change)
        return accept(Place(x, value, grad), Place(proposal, new_value, new_grad), log_ratio, generator)

    def _log_proposal(self, made_of: Sites, x: Tensor, grad: Tensor) -> Tensor:
        """log q of every change ``[*batch, D * (K - 1)]``."""
        return torch.log_softmax(-0.5 * made_of.slopes(x, grad).flatten(-2), -1)


def draw(log_weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One of n by weights that need not be normalised: ``[*batch, n]`` -> ``[*batch]``."""
    # The first of n clocks to ring, each at the rate of its weight.
    waits = torch.empty_like(log_weights).exponential_(generator=generator)
    return (log_weights - waits.log()).argmax(-1)


def _at(t: Tensor, index: Tensor) -> Tensor:
    return t.gather(-1, index.unsqueeze(-1)).squeeze(-1)
