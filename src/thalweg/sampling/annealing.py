"""Annealed importance sampling: log Z between a lower and an upper bound in expectation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from thalweg.energies.base import ConditionalEnergy, Conditioned, Energy
from thalweg.energies.composition import WeightedSum
from thalweg.energies.densities import Density
from thalweg.sampling.chain import Kernel, check_space, initial_state, run_chain
from thalweg.sampling.diagnostics import pareto_k
from thalweg.sampling.hmc import HMC

# The chains of each way are looked at in so many groups.
_N_GROUPS = 4
# Groups of a few draws of one distribution stay below it.
_LARGEST_R_HAT = 1.2
# With fewer effective draws the standard error is itself unknown.
_FEWEST_EFFECTIVE = 10.0
# In nats: weights that differ by less leave nothing to disagree about.
_NEGLIGIBLE = 0.05


class LogNormaliser(NamedTuple):
    """An estimate of log Z.

    Attributes:
        estimate: in nats.
        standard_error: standard error of the estimate, by the delta method on the weights; too small where few
            weights rule.
        effective_sample_size: (sum w)^2 / sum w^2, at most the number of chains.
        position: where the chains ended ``[n_chains, *event]``.
        log_weights: ``[n_chains]``.
    """

    estimate: float
    standard_error: float
    effective_sample_size: float
    position: Tensor
    log_weights: Tensor

    @property
    def pareto_k(self) -> float:
        """Shape of the tail of the weights: above 0.7 neither estimate nor error can be trusted.

        See :func:`~thalweg.sampling.diagnostics.pareto_k`.
        """
        return float(pareto_k(self.log_weights))

    @property
    def spread(self) -> float:
        """Standard deviation of the estimates of four groups of chains, each of consecutive rows.

        It is about two standard errors of the whole where the chains are independent, and more where groups have
        starts of their own and do not mix. 0 for fewer than 8 chains.
        """
        n = len(self.log_weights) // _N_GROUPS
        if n < 2:
            return 0.0
        return float(torch.logsumexp(self.log_weights[: n * _N_GROUPS].reshape(_N_GROUPS, n), 1).std())

    @property
    def uncertainty(self) -> float:
        """Two standard errors or the spread of the groups, whichever is more."""
        return float(np.max([2 * self.standard_error, self.spread]))


class Bracket(NamedTuple):
    """log Z from both sides: the way there is low and the way back is high, in expectation.

    By chance either estimate can be on the wrong side, and the upper one is high only if the way back starts at
    draws of exp(-E), with every mode in its proportion: chains that have not converged are none. The bracket then
    proves nothing. If the way back starts where the way there ended, both share a blindness: of a mode that the
    chains never came to neither side knows, and a narrow bracket lies around a number that is too low.

    What can be seen of this is in ``warning``. The log weights of the way back, and those of the way there counted
    by their weights, are draws of one distribution if all is well [Crooks 1999], and so have one mean. R-hat
    compares groups of consecutive chains of the way back: starts of different origin, such as data and chains of a
    training, are best put one after the other.

    Attributes:
        lower: by the way there.
        upper: by the way back.
        from_ends: whether the way back started where the way there ended.
    """

    lower: LogNormaliser
    upper: LogNormaliser
    from_ends: bool = False

    @property
    def estimate(self) -> float:
        """The middle, but never below the lower bound, which holds whatever the way back starts from."""
        return self.lower.estimate + 0.5 * max(self.width, 0.0)

    @property
    def width(self) -> float:
        return self.upper.estimate - self.lower.estimate

    @property
    def error(self) -> float:
        """How far log Z may be from ``estimate``: half the width, and two standard errors of a bound beyond it.

        For the standard error stands the spread between groups of chains where that says more.
        """
        return 0.5 * abs(self.width) + float(np.max([self.lower.uncertainty, self.upper.uncertainty]))

    @property
    def r_hat(self) -> float:
        """R-hat of the log weights between four groups of chains of the way back; NaN for fewer than 16 chains.

        Source: [Vehtari 2021].
        """
        from arviz_stats.base import array_stats

        n = len(self.upper.log_weights) // _N_GROUPS
        if n < 4:
            return math.nan
        groups = self.upper.log_weights[: n * _N_GROUPS].reshape(_N_GROUPS, n)
        if float(groups.std()) < _NEGLIGIBLE:
            return 1.0
        return float(array_stats.rhat(groups.cpu().numpy(), chain_axis=0, draw_axis=1, method="rank"))

    @property
    def _contradicted(self) -> bool:
        """Whether log weights differ in the mean, or the bounds in their order, by more than chance."""
        there, back = self.lower.log_weights, -self.upper.log_weights
        weights = torch.softmax(there, 0)
        mean = (weights * there).sum()
        variance = (weights * (there - mean)).square().sum() + back.var(correction=0) / len(back)
        gap = float((back.mean() - mean).abs() - 4 * variance.sqrt())
        chance = 1.5 * math.hypot(self.lower.uncertainty, self.upper.uncertainty)
        return gap > _NEGLIGIBLE or -self.width > chance + _NEGLIGIBLE

    @property
    def warning(self) -> str | None:
        """Why log Z may be further from ``estimate`` than ``error``, in sentences, or None."""
        found = []
        if self.from_ends:
            found.append(
                "The annealing back started where the annealing there ended, so a mode that the chains missed is "
                "missing on both sides."
            )
        fewest = min(self.lower, self.upper, key=lambda way: way.effective_sample_size)
        if fewest.effective_sample_size < min(_FEWEST_EFFECTIVE, len(fewest.log_weights) / 2):
            found.append(
                f"Few chains have nearly all the weight (they are worth {fewest.effective_sample_size:.1f}): "
                "annealing needs more steps."
            )
        if self.r_hat > _LARGEST_R_HAT:
            found.append(
                f"Groups of chains disagree (R-hat of their log weights is {self.r_hat:.2f}): some are in modes "
                "that others miss."
            )
        if self._contradicted:
            found.append(
                "The annealing there and back contradict each other: a mode is missing on one side, or the modes "
                "are not in proportion."
            )
        return " ".join(found) or None


def annealed_importance_sampling(
    energy: Energy,
    base: Density,
    n_chains: int = 100,
    n_steps: int = 1000,
    kernel_at: Callable[[float], Kernel] | None = None,
    generator: torch.Generator | None = None,
) -> LogNormaliser:
    """log Z of ``energy`` by chains that are led from ``base`` to it.

    The distribution moves along E_b = (1 - b) E_base + b E. Each chain's weight is the product of the ratios
    exp(E_b - E_b') at where it stands *before* its step at b'. The weights' mean is unbiased for Z, so their
    log is low in expectation.

    Args:
        base: normalised, covering where exp(-E) is: a Gaussian with the data's moments, say.
        n_steps: bridges, and steps.
        kernel_at: the kernel at each b in (0, 1]; None is HMC of 5 leapfrog steps, whose size is found for
            each b by a short run of its own.

    Raises:
        ValueError: if ``energy`` and ``base`` live in different spaces, if it is given more than one x, each
            of which has a log Z of its own, if the kernel does not suit their support, or if energies are not
            finite.
        TypeError: for a conditional energy that isn't given an x.

    Source: [Neal 2001, eq. 11].
    """
    kernel_at = kernel_at or step_sizes(energy, base, generator=generator)
    position = base.sample(n_chains, generator)
    return _anneal(energy, base, position, torch.linspace(0, 1, n_steps + 1).tolist(), kernel_at, generator, 1.0)


def reverse_annealed_importance_sampling(
    energy: Energy,
    base: Density,
    samples: Tensor,
    n_steps: int = 1000,
    kernel_at: Callable[[float], Kernel] | None = None,
    generator: torch.Generator | None = None,
) -> LogNormaliser:
    """log Z by the way back, from draws of exp(-E) to ``base``: high in expectation.

    Args:
        samples: ``[n, *event]``, which must be draws of exp(-E) for the bound to hold.

    Source: [Burda 2015, sec. 4]; [Grosse 2015].
    """
    kernel_at = kernel_at or step_sizes(energy, base, generator=generator)
    betas = torch.linspace(1, 0, n_steps + 1).tolist()
    return _anneal(energy, base, samples, betas, kernel_at, generator, -1.0)


def bracket_log_normaliser(
    energy: Energy,
    base: Density,
    samples: Tensor | None = None,
    n_chains: int = 100,
    n_steps: int = 1000,
    n_burn_in: int = 0,
    generator: torch.Generator | None = None,
) -> Bracket:
    """Both ways.

    Args:
        samples: where the way back starts ``[n, *event]``: draws of exp(-E), or data or chains that come near it.
            None takes the ends of the way there, drawn by their weights; the bracket then has a warning.
        n_chains: on the way there.
        n_burn_in: steps by which the samples are run on before.
    """
    kernel_at = step_sizes(energy, base, generator=generator)
    lower = annealed_importance_sampling(energy, base, n_chains, n_steps, kernel_at, generator)
    starts = resampled_ends(lower, n_chains, generator) if samples is None else samples
    if n_burn_in:
        starts = run_chain(kernel_at(1.0), energy, starts, n_burn_in, generator).position
    upper = reverse_annealed_importance_sampling(energy, base, starts, n_steps, kernel_at, generator)
    return Bracket(lower, upper, samples is None)


def resampled_ends(found: LogNormaliser, n: int, generator: torch.Generator | None = None) -> Tensor:
    """n of the places where chains ended, drawn by their weights."""
    weights = torch.softmax(found.log_weights, 0)
    return found.position[torch.multinomial(weights, n, replacement=True, generator=generator)]


def step_sizes(
    energy: Energy,
    base: Density,
    n_leapfrog: int = 5,
    n_chains: int = 64,
    n_levels: int = 20,
    target: float = 0.8,
    generator: torch.Generator | None = None,
) -> Callable[[float], Kernel]:
    """HMC with a step size for every bridge, found by a pilot run along the same path.

    The pilot's chains are others than those that are weighted, so the kernels are fixed for the latter.
    """
    _check_one_normaliser(energy)
    check_space(HMC(1.0), energy)
    position = base.sample(n_chains, generator)
    log_size, logs = math.log(0.1 * float(position.std()) + 1e-12), []
    betas = torch.linspace(0, 1, n_levels).tolist()
    for beta in betas:
        bridge = _bridge(energy, base, beta)
        state = initial_state(bridge, position)
        for t in range(15):
            state = HMC(math.exp(log_size), n_leapfrog).step(bridge, state, generator)
            log_size += (1.0 if t < 10 else 0.3) * (float(state.acceptance.mean()) - target)
        position = state.position
        logs.append(log_size)

    def kernel_at(beta: float) -> Kernel:
        place = beta * (n_levels - 1)
        low = min(int(place), n_levels - 2)
        part = place - low
        return HMC(math.exp((1 - part) * logs[low] + part * logs[low + 1]), n_leapfrog)

    return kernel_at


def _check_one_normaliser(energy: Energy) -> None:
    if isinstance(energy, ConditionalEnergy):
        raise TypeError(f"{type(energy).__name__} is conditional: anneal energy.given(x), with one row of x")
    for part in energy.modules():
        if isinstance(part, Conditioned) and part.n_rows > 1:
            raise ValueError(
                f"{type(part.parent).__name__} is given {part.n_rows} rows of x, and each has a log Z of its own: "
                "anneal one row at a time, given.rows(slice(i, i + 1))"
            )


def _bridge(energy: Energy, base: Density, beta: float) -> WeightedSum:
    return WeightedSum([base, energy], [1 - beta, beta])


def _anneal(
    energy: Energy,
    base: Density,
    position: Tensor,
    betas: list[float],
    kernel_at: Callable[[float], Kernel],
    generator: torch.Generator | None,
    sign: float,
) -> LogNormaliser:
    _check_one_normaliser(energy)
    check_space(kernel_at(1.0), energy, position)
    log_weights = torch.zeros(position.shape[: position.dim() - energy.event_ndim], dtype=torch.float64)
    log_weights = log_weights.to(position.device)
    energy = energy.fixed()
    for before, beta in itertools.pairwise(betas):
        (base_value, base_grad), (value, grad) = (
            base.value_and_gradient(position),
            energy.value_and_gradient(position),
        )
        log_weights += (beta - before) * (base_value - value).double()
        if 0 < beta < 1:
            bridge = _bridge(energy, base, beta)
            mixed = (1 - beta) * base_value + beta * value, (1 - beta) * base_grad + beta * grad
            state = initial_state(bridge, position)._replace(energy=mixed[0], grad=mixed[1])
            position = kernel_at(beta).step(bridge, state, generator).position
    if not torch.isfinite(log_weights).all():
        raise ValueError("annealing met energies that are not finite: does the base cover the energy's support?")
    return summarised(log_weights, position, sign)


def summarised(log_weights: Tensor, position: Tensor, sign: float = 1.0) -> LogNormaliser:
    """What unnormalised log weights ``[n]`` say of log Z (of -log Z with sign -1), in double precision."""
    log_weights = log_weights.double()
    n = len(log_weights)
    top = log_weights.max()
    weights = (log_weights - top).exp()
    mean = weights.mean()
    error = float(weights.std() / mean / math.sqrt(n)) if n > 1 else math.nan
    return LogNormaliser(
        sign * float(mean.log() + top),
        error,
        float(weights.sum().square() / weights.square().sum()),
        position,
        log_weights,
    )
