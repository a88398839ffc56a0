"""Annealed importance sampling of machines in layers, half of the layers summed out in closed form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg.energies.machines.layered import LayeredMachine
from thalweg.sampling.annealing import Bracket, LogNormaliser, resampled_ends, summarised
from thalweg.sampling.layered_tempering import TemperedChains, TemperedMachine

# Temperatures at which the starts of the way back are run on.
_N_LEVELS = 10


def anneal_machine(
    machine: LayeredMachine,
    base_bias: Tensor | None = None,
    n_chains: int = 100,
    n_steps: int = 1000,
    samples: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> LogNormaliser:
    """log Z by chains from a machine without weights to the machine itself, or back.

    At b the weights and hidden biases count b-fold and the visible bias is (1 - b) base_bias + b bias. The
    chains are over the layers of odd number; the others are summed out of the weights and drawn in between. The
    way there is low in expectation, the way back, which starts at draws of the machine, high. The bridges lie at
    the sines of evenly spaced angles: densest near the machine itself, where its modes part.

    Args:
        base_bias: visible bias at b = 0, best that of the data's means; None is the machine's own.
        n_chains: on the way there.
        n_steps: bridges.
        samples: states of the odd layers ``[n, units]`` drawn from the machine: then the way is back.

    Source: [Salakhutdinov 2008, sec. 4.1]; for deep machines [Salakhutdinov 2009, sec. 2.3]; the way back
    [Burda 2015].
    """
    if not isinstance(machine, LayeredMachine):
        raise TypeError(
            f"{type(machine).__name__} is no machine in layers: annealed_importance_sampling takes any energy"
        )
    if n_chains < 1 or n_steps < 1:
        raise ValueError(f"n_chains and n_steps must be at least 1, got {n_chains} and {n_steps}")
    with torch.no_grad():
        return _anneal(machine, base_bias, n_chains, n_steps, samples, generator)


def bracket_machine(
    machine: LayeredMachine,
    base_bias: Tensor | None = None,
    n_chains: int = 100,
    n_steps: int = 1000,
    n_sweeps: int = 100,
    samples: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Bracket:
    """Both ways. The way back starts at states of the machine that are run on for n_sweeps.

    It is run twice, and the higher estimate counts. At the machine's own temperature chains hardly leave a mode:
    they keep those that they know of, but in the proportions of the starts, and too many in a mode of little mass
    make the estimate low. Chains at ten temperatures that swap places bring the modes into proportion, but may
    lose one that hotter machines have no mode for.

    Args:
        samples: such states, of the odd layers ``[n, units]``: the chains of the training, or hidden layers drawn
            upward from data, which know of modes that the way there may miss. Fewer than n_chains are repeated.
            Two sources are best put one after the other (see :class:`~thalweg.sampling.annealing.Bracket`). None
            takes the ends of the way there, drawn by the weights; the bracket then has a warning.

    Source: [Burda 2015]; tempered chains [Desjardins 2010].
    """
    lower = anneal_machine(machine, base_bias, n_chains, n_steps, generator=generator)
    starts = resampled_ends(lower, n_chains, generator) if samples is None else samples.to(machine.biases[0])
    if len(starts) < n_chains:
        # Copies stay beside each other, so that no two groups of chains come from one state.
        starts = starts.repeat_interleave(math.ceil(n_chains / len(starts)), 0)
    with torch.no_grad():
        layers = machine.placed(starts, 1)
        for _ in range(n_sweeps):
            layers = machine.resample(machine.resample(layers, 0, generator), 1, generator)
        chains = TemperedChains(machine, _N_LEVELS, base_bias)
        drawn = machine.resample(machine.placed(starts.expand(_N_LEVELS, -1, -1), 1), 0, generator)
        levels = [x for x in drawn if x is not None]
        for _ in range(n_sweeps):
            levels, _ = chains.sweep(levels, generator)
    ways = [
        anneal_machine(machine, base_bias, n_chains, n_steps, _joined(found, machine.parity(1)), generator)
        for found in (layers, [x[0] for x in levels])
    ]
    upper = max(ways, key=lambda way: way.estimate)
    return Bracket(lower, upper, samples is None)


def _anneal(
    machine: LayeredMachine,
    base_bias: Tensor | None,
    n_chains: int,
    n_steps: int,
    samples: Tensor | None,
    generator: torch.Generator | None,
) -> LogNormaliser:
    path = TemperedMachine(machine, base_bias)
    bias = machine.biases[0]
    betas = torch.linspace(0, math.pi / 2, n_steps + 1, dtype=bias.dtype, device=bias.device).sin()
    if samples is None:
        kept = path.start(n_chains, generator)
        order, sign = list(itertools.pairwise(betas)), 1.0
    else:
        kept = machine.placed(samples, 1)
        order, sign = list(itertools.pairwise(betas.flip(0))), -1.0
    n = len(next(x for x in kept if x is not None))
    log_weights = torch.zeros(n, dtype=torch.float64, device=machine.biases[0].device)
    for before, beta in order:
        inputs = path.inputs(kept)
        log_weights += (path.energy(kept, inputs, before) - path.energy(kept, inputs, beta)).double()
        if 0 < beta < 1:
            kept = path.odd_given(path.even_given(inputs, beta, generator), beta, generator)[0]
    log_weights += sign * float(path.base_log_normaliser())
    return summarised(log_weights, _joined(kept, machine.parity(1)), sign)


def _joined(layers: Sequence[Tensor | None], numbers: range) -> Tensor:
    return torch.cat([x for x in (layers[number] for number in numbers) if x is not None], -1)
