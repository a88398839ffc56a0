"""The lowest answer, the lowest wrong one, and the free energy over answers: whatever energy they are of.

Exact for labels, chains of labels and factor graphs without cycles or of few configurations; by descent from many
starts for answers that are vectors of numbers.
"""

from __future__ import annotations

from functools import singledispatch
from typing import NamedTuple

import torch
from torch import Tensor

from thalweg.energies.base import Conditioned, Energy, soft_minimum
from thalweg.energies.factors.chain import UNKNOWN, LabelChain
from thalweg.energies.factors.graph import FactorGraph
from thalweg.energies.labelled import LabelDistribution
from thalweg.inference import chains
from thalweg.inference.exhaustive import MOST_CONFIGURATIONS, all_configurations
from thalweg.inference.message_passing import max_product, sum_product

# So many energies at once fit in memory, whatever their rows.
_MOST_ENERGIES = 1 << 22


class Answer(NamedTuple):
    """An answer for each row ``[B, *event]`` and whether there is one ``[B]``."""

    y: Tensor
    found: Tensor


class OutsideBall(NamedTuple):
    """How a wrong answer is searched for where answers are vectors of numbers: outside a ball round the right one.

    Attributes:
        radius: of the ball; nearer answers count as right.
        n_starts: descents for each row, half of them from the answers of other rows.
        n_steps: steps of each.
        step_size: of gradient descent, as a share of the radius, along the direction of the gradient.

    Source: [LeCun 2006, sec. 2.2.1].
    """

    radius: float
    n_starts: int = 8
    n_steps: int = 10
    step_size: float = 0.5


@singledispatch
def lowest(energy: Energy) -> Tensor:
    """The answers of lowest energy ``[B, *event]``, without a graph.

    Raises:
        TypeError: for an energy whose answers can't be gone through.
    """
    raise TypeError(
        f"the answers of {type(energy).__name__} can't be gone through, as those of labels, chains of labels and "
        "factor graphs can: use gradient_ascent from starts of your own"
    )


@singledispatch
def lowest_other(energy: Energy, y: Tensor) -> Answer:
    """The answers of lowest energy among those that differ from y, without a graph.

    Raises:
        TypeError: for an energy whose answers can't be gone through.
    """
    raise TypeError(
        f"the wrong answers of {type(energy).__name__} can't be gone through: give the objective a search, as "
        "OutsideBall(radius)"
    )


@singledispatch
def free_energy(energy: Energy, temperature: float = 1.0) -> Tensor:
    """-T log sum over answers of exp(-E / T) ``[B]``, with a graph.

    Raises:
        TypeError: for an energy whose answers can't be summed over exactly.
    """
    raise TypeError(
        f"the answers of {type(energy).__name__} can't be summed over exactly: use an objective that estimates "
        "the sum, such as ImportanceSampling or RankingNCE"
    )


@singledispatch
def energy_of(energy: Energy, y: Tensor) -> Tensor:
    """The energy of answers ``[B]``, as it is before anything is normalised; of partly unknown ones the lowest."""
    return energy(y)


@singledispatch
def free_energy_of(energy: Energy, y: Tensor, temperature: float = 1.0) -> Tensor:
    """The free energy of the answers that agree with y ``[B]``: the energy of y, if it is known whole."""
    return energy_of(energy, y)


@singledispatch
def spread(energy: Energy) -> Tensor | None:
    """How far the energies of a row's answers lie apart ``[B]``: 0 where an energy tells none from another.

    None where the answers can't be gone through.
    """
    return None


# -- labels ------------------------------------------------------------------------------------------------


def _energies(given: LabelDistribution) -> Tensor:
    assert isinstance(given.features, Tensor)
    return given.features


@lowest.register
def _(given: LabelDistribution) -> Tensor:
    return _energies(given).detach().argmin(-1)


@lowest_other.register
def _(given: LabelDistribution, y: Tensor) -> Answer:
    energies = _energies(given).detach()
    own = torch.nn.functional.one_hot(y.long(), energies.shape[-1]).bool()
    least, label = energies.masked_fill(own, torch.inf).min(-1)
    return Answer(label, least.isfinite())


@free_energy.register
def _(given: LabelDistribution, temperature: float = 1.0) -> Tensor:
    return soft_minimum(_energies(given), temperature)


@energy_of.register
def _(given: LabelDistribution, y: Tensor) -> Tensor:
    return _energies(given).gather(-1, y.long().unsqueeze(-1)).squeeze(-1)


@spread.register
def _(given: LabelDistribution) -> Tensor:
    energies = _energies(given).detach()
    return energies.amax(-1) - energies.amin(-1)


# -- chains ------------------------------------------------------------------------------------------------


@lowest.register
def _(chain: LabelChain) -> Tensor:
    return chains.viterbi(chain.detach()).labels


@lowest_other.register
def _(chain: LabelChain, y: Tensor) -> Answer:
    best = chains.lowest_other(chain.detach(), y)
    return Answer(best.labels, best.energy.isfinite())


@free_energy.register
def _(chain: LabelChain, temperature: float = 1.0) -> Tensor:
    return temperature * chains.free_energy(chain if temperature == 1 else chain.tempered(temperature))


@energy_of.register
def _(chain: LabelChain, y: Tensor) -> Tensor:
    return chain(chains.viterbi(chain.detach().restricted(y)).labels if _has_unknown(chain, y) else y)


@free_energy_of.register
def _(chain: LabelChain, y: Tensor, temperature: float = 1.0) -> Tensor:
    return free_energy(chain.restricted(y), temperature) if _has_unknown(chain, y) else chain(y)


@spread.register
def _(chain: LabelChain) -> Tensor:
    unary = chain.unary.detach()
    of_elements = unary.amax(-1) - unary.amin(-1)
    counted = torch.arange(unary.shape[1], device=unary.device) < chain.lengths[:, None]
    own = torch.where(counted, of_elements, 0.0).amax(-1)
    table = chain.transitions.detach()
    finite = table[table.isfinite()]
    return own + (finite.max() - finite.min() if len(finite) else 0.0)


def _has_unknown(chain: LabelChain, y: Tensor) -> bool:
    y = y[:, : chain.mask.shape[1]]
    return bool(((y == UNKNOWN) & chain.mask[:, : y.shape[1]]).any())


# -- factor graphs -----------------------------------------------------------------------------------------


def _is_small(graph: FactorGraph) -> bool:
    return graph.n_configurations * (graph.n_rows or 1) <= min(_MOST_ENERGIES, MOST_CONFIGURATIONS * 4)


@lowest.register
def _(graph: FactorGraph) -> Tensor:
    if graph.is_forest or not _is_small(graph):
        return max_product(graph.detach()).values
    found = all_configurations(graph.detach())
    return found.values[found.energy.argmin(-1)]


@lowest_other.register
def _(graph: FactorGraph, y: Tensor) -> Answer:
    graph, y = graph.detach(), y.long()
    if not graph.is_forest and _is_small(graph):
        found = all_configurations(graph)
        own = ((found.values == y[:, None]) | (y[:, None] == UNKNOWN)).all(-1)
        least, place = found.energy.masked_fill(own, torch.inf).min(-1)
        return Answer(found.values[place], least.isfinite())
    # The lowest of those that differ in one variable at least, whichever that is.
    forced, exists = chains.lowest_change(max_product(graph).lowest_given_each, y)
    return Answer(max_product(graph.restricted(forced)).values, exists)


@free_energy.register
def _(graph: FactorGraph, temperature: float = 1.0) -> Tensor:
    if graph.is_forest or not _is_small(graph):
        return temperature * sum_product(graph if temperature == 1 else graph.tempered(temperature)).free_energy
    return soft_minimum(all_configurations(graph).energy, temperature)


@energy_of.register
def _(graph: FactorGraph, y: Tensor) -> Tensor:
    return graph(lowest(graph.restricted(y)) if bool((y == UNKNOWN).any()) else y)


@free_energy_of.register
def _(graph: FactorGraph, y: Tensor, temperature: float = 1.0) -> Tensor:
    return free_energy(graph.restricted(y), temperature) if bool((y == UNKNOWN).any()) else graph(y)


@spread.register
def _(graph: FactorGraph) -> Tensor:
    total = torch.zeros(graph.n_rows or 1)
    for scope, table in graph.detach().factors:
        of_rows = (table if table.dim() > len(scope) else table.unsqueeze(0)).flatten(1)
        finite = of_rows.isfinite()
        high = of_rows.masked_fill(~finite, -torch.inf).amax(1)
        low = of_rows.masked_fill(~finite, torch.inf).amin(1)
        total = total.to(high) + (high - low).clamp_min(0.0)
    return total


# -- numbers -----------------------------------------------------------------------------------------------


def lowest_outside(
    energy: Conditioned, y: Tensor, search: OutsideBall, generator: torch.Generator | None = None
) -> Answer:
    """The lowest y found outside a ball around each right answer, by descent from many starts.

    Args:
        energy: of y given each row.
        y: right answers ``[B, K]``.
        search: how.

    Source: [LeCun 2006, sec. 2.2.1].
    """
    radius, n = search.radius, search.n_starts
    with torch.no_grad():
        direction = torch.randn((len(y), n, y.shape[-1]), generator=generator, dtype=y.dtype, device=y.device)
        direction = direction / direction.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        reach = 1 + 3 * torch.rand((len(y), n, 1), generator=generator, dtype=y.dtype, device=y.device)
        starts = y[:, None] + radius * reach * direction
        others = torch.randint(len(y), (len(y), n // 2), generator=generator, device=y.device)
        starts[:, : n // 2] = y[others]
        centre, fixed = y[:, None], energy.fixed()

        def outside(points: Tensor) -> Tensor:
            way = points - centre
            length = way.norm(dim=-1, keepdim=True)
            # A point at the centre has no direction of its own.
            way = torch.where(length > 1e-9, way / length.clamp_min(1e-9), direction)
            return torch.where(length < radius, centre + radius * way, points)

        points = outside(starts)
        value, gradient = fixed.value_and_gradient(points)
        for step in range(search.n_steps):
            size = search.step_size * radius * (1 - step / search.n_steps)
            way = gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            proposal = outside(points - size * way)
            new_value, new_gradient = fixed.value_and_gradient(proposal)
            better = (new_value < value).unsqueeze(-1)
            points, gradient = torch.where(better, proposal, points), torch.where(better, new_gradient, gradient)
            value = torch.minimum(new_value, value)
        best = value.argmin(-1)
        rows = torch.arange(len(y), device=y.device)
        return Answer(points[rows, best], value[rows, best].isfinite())
