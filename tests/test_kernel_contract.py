"""What every kernel keeps: it is pure, its generator's, without a graph, and at home in its own support."""

import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from thalweg import sampling
from thalweg.energies import (
    BoltzmannMachine,
    DBMEnergy,
    Energy,
    GaussianEnergy,
    NetworkEnergy,
    PerceptronEnergy,
    RBMEnergy,
    UniformEnergy,
    all_states,
    mlp,
)
from thalweg.objectives import Batch, ContrastiveDivergence
from thalweg.sampling import (
    HMC,
    MALA,
    BlockGibbs,
    ColdLangevin,
    GibbsWithGradients,
    Heun,
    Kernel,
    Langevin,
    ParallelTempering,
    RandomWalk,
    SingleSiteGibbs,
    adapt_step_size,
    initial_state,
    run_chain,
    sample_chain,
)


class Case(NamedTuple):
    """A kernel, and whether exp(-E) is its stationary distribution, exactly."""

    kernel: Kernel
    exact: bool = True


CONTINUOUS = {
    "Langevin": Case(Langevin(0.1), exact=False),
    "Langevin with noise of its own": Case(Langevin(0.1, 0.05), exact=False),
    "ColdLangevin": Case(ColdLangevin(0.1, 0.01, clip_grad=0.5, low=-3.0, high=3.0), exact=False),
    "Heun at a temperature": Case(Heun(0.1, 1.0), exact=False),
    "MALA": Case(MALA(0.3)),
    "MALA, a step for each coordinate": Case(MALA(torch.tensor([0.2, 0.4]))),
    "HMC": Case(HMC(0.4, 4)),
    "RandomWalk": Case(RandomWalk(0.9)),
}
DISCRETE = {
    "SingleSiteGibbs": Case(SingleSiteGibbs()),
    "SingleSiteGibbs of random sites": Case(SingleSiteGibbs(n_random=3)),
    "GibbsWithGradients": Case(GibbsWithGradients()),
}
LAYERED = {"BlockGibbs": Case(BlockGibbs())}
SIMPLE = {**CONTINUOUS, **DISCRETE, **LAYERED}
TEMPERED = {f"{name}, tempered": Case(ParallelTempering(c.kernel, [1.0, 2.0]), c.exact) for name, c in
            {**CONTINUOUS, **DISCRETE}.items()}  # fmt: skip
KERNELS = {**SIMPLE, **TEMPERED}


def over(cases: dict[str, Case], condition: Callable[[Case], bool] = lambda case: True):
    """Run a test over the cases for which the condition holds."""
    return pytest.mark.parametrize("case", [pytest.param(c, id=n) for n, c in cases.items() if condition(c)])


every_kernel = over(KERNELS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def is_discrete(kernel: Kernel) -> bool | None:
    return getattr(kernel, "discrete", None)


def perceptron() -> Energy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PerceptronEnergy(2, (8,)) + GaussianEnergy(torch.zeros(2), torch.ones(2))


def bits() -> BoltzmannMachine:
    made = BoltzmannMachine(3)
    with torch.no_grad():
        made.bias.copy_(torch.randn(3, generator=seeded(3)))
        made.couplings.copy_(torch.randn(3, generator=seeded(4)))
    return made


def machine() -> RBMEnergy:
    made = RBMEnergy(3, 2)
    with torch.no_grad():
        for i, weight in enumerate([*made.weights, *made.biases]):
            weight.copy_(torch.randn(weight.shape, generator=seeded(i)))
    return made


def energy_for(kernel: Kernel) -> Energy:
    if isinstance(kernel, BlockGibbs):
        return machine()
    return bits() if is_discrete(kernel) else perceptron()


def start_for(kernel: Kernel, *batch: int) -> torch.Tensor:
    """Places ``[*batch, D]``, with the levels of tempered chains first."""
    levels = [len(kernel.temperatures)] if isinstance(kernel, ParallelTempering) else []
    shape = (*levels, *batch)
    if isinstance(kernel, BlockGibbs) or is_discrete(kernel):
        return torch.randint(2, (*shape, 3), generator=seeded(6)).float()
    return torch.randn(*shape, 2, generator=seeded(6))


def test_no_kernel_is_left_out():
    exported = {
        name
        for name in sampling.__all__
        if inspect.isclass(cls := getattr(sampling, name)) and hasattr(cls, "step")
    }
    assert exported - {type(case.kernel).__name__ for case in KERNELS.values()} == {"Kernel"}


@every_kernel
def test_a_step_changes_nothing_of_the_state_that_comes_in(case):
    energy, start = energy_for(case.kernel), start_for(case.kernel, 10)
    state = initial_state(energy, start)
    if not is_discrete(case.kernel) and not isinstance(case.kernel, BlockGibbs):
        value, grad = energy.value_and_gradient(state.position)
        state = state._replace(energy=value, grad=grad)
    before = [None if t is None else t.clone() for t in state]
    after = case.kernel.step(energy, state, seeded())
    for tensor, copy in zip(state, before, strict=True):
        assert (tensor is None and copy is None) or torch.equal(tensor, copy)
    assert not torch.equal(after.position, start)


@every_kernel
def test_a_chain_leaves_no_gradient_and_no_graph_and_follows_its_generator(case):
    energy = energy_for(case.kernel)
    start = start_for(case.kernel, 3, 5).requires_grad_(True)
    global_state = torch.get_rng_state()
    first = run_chain(case.kernel, energy, start, 5, seeded())
    assert torch.equal(torch.get_rng_state(), global_state)
    assert not any(t.requires_grad for t in first if t is not None)
    assert start.grad is None
    assert all(w.grad is None for w in energy.parameters())
    assert torch.equal(first.position, run_chain(case.kernel, energy, start, 5, seeded()).position)
    assert not torch.equal(first.position, run_chain(case.kernel, energy, start, 5, seeded(1)).position)


@every_kernel
def test_shapes_types_and_supports_stay_what_they_are(case):
    for batch in ((7,), (3, 4)):
        energy, start = energy_for(case.kernel).double(), start_for(case.kernel, *batch).double()
        draws = sample_chain(case.kernel, energy, start, 6, burn_in=2, generator=seeded())
        assert draws.position.shape == (6, *start.shape)
        assert draws.energy.shape == (6, *start.shape[:-1])
        assert draws.position.dtype == torch.float64
        assert bool(energy.support.check(draws.position).all())
        torch.testing.assert_close(draws.energy, energy(draws.position).detach())
        assert 0 <= float(draws.state.acceptance.min()) <= float(draws.state.acceptance.max()) <= 1


@over(KERNELS, lambda case: not isinstance(case.kernel, BlockGibbs))
def test_a_chain_of_many_steps_is_as_many_steps_of_the_kernel(case):
    energy, start = energy_for(case.kernel), start_for(case.kernel, 8)
    state, generator = initial_state(energy, start), seeded()
    for _ in range(4):
        state = case.kernel.step(energy, state, generator)
    found = run_chain(case.kernel, energy, start, 4, seeded()).position
    torch.testing.assert_close(found, state.position, rtol=1e-3, atol=1e-4)


@over(KERNELS, lambda case: case.exact)
def test_chains_that_start_in_the_distribution_stay_in_it(case):
    """Every chain starts with a draw of its own: a mean over chains has the error of independent draws.

    Continuous kernels on a Gaussian of two scales, discrete ones on three bits whose distribution is enumerated.
    """
    kernel, n = case.kernel, 20_000
    energy = energy_for(kernel)
    temperatures = kernel.temperatures if isinstance(kernel, ParallelTempering) else [1.0]
    if is_discrete(kernel) or isinstance(kernel, BlockGibbs):
        states = all_states(3)
        with torch.no_grad():
            probabilities = [torch.softmax(-energy(states) / t, 0) for t in temperatures]
        places = [p.multinomial(n, replacement=True, generator=seeded(1)) for p in probabilities]
        start = torch.stack([states[place] for place in places])
        figures, wanted = lambda x: (x.unsqueeze(-2) == states).all(-1).double(), torch.stack(probabilities)
    else:
        std = torch.tensor([0.8, 1.5])
        energy = GaussianEnergy(torch.tensor([0.5, -1.0]), std)
        scales = torch.stack([std * math.sqrt(t) for t in temperatures])
        start = energy.mean + scales[:, None] * torch.randn(len(temperatures), n, 2, generator=seeded(1))
        figures = lambda x: torch.cat([(x - energy.mean), (x - energy.mean).square()], -1).double()  # noqa: E731
        wanted = torch.cat([torch.zeros_like(scales), scales.square()], -1)
    if len(temperatures) == 1:
        start, wanted = start[0], wanted[0]
    end = run_chain(kernel, energy, start, 20, seeded(2)).position
    found = figures(end)
    error = found.std(-2) / math.sqrt(n)
    assert bool(((found.mean(-2) - wanted).abs() < 4.5 * error + 1e-9).all())
    assert not torch.equal(end, start)


@every_kernel
def test_an_energy_of_another_support_is_refused_by_name(case):
    kernel = case.kernel
    name = type(kernel).__name__
    if isinstance(kernel, BlockGibbs):
        with pytest.raises(TypeError, match=r"is no machine in layers.*SingleSiteGibbs"):
            run_chain(kernel, bits(), torch.zeros(1, 3), 1)
        return
    if is_discrete(kernel):
        other, start = GaussianEnergy(torch.zeros(2), torch.ones(2)), torch.zeros(1, 2)
        words = f"{name} moves between discrete values.*GaussianEnergy.*MALA"
    else:
        other, start = bits(), torch.zeros(1, 3)
        words = f"{name} moves in continuous space.*BoltzmannMachine.*SingleSiteGibbs"
    for run in (
        lambda: run_chain(kernel, other, start, 1),
        lambda: sample_chain(kernel, other, start, 1),
        lambda: adapt_step_size(kernel, other, start),
        lambda: ContrastiveDivergence(kernel, 1)(other, Batch(None, start)),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            run()


@over({**CONTINUOUS, **DISCRETE})
def test_the_energy_of_y_given_x_is_sampled_as_any_other(case):
    """A chain for each row and candidate, the rows with energies of their own."""
    if is_discrete(case.kernel):
        energy = bits()
        start = start_for(case.kernel, 3, 5)
    else:
        energy = NetworkEnergy(mlp([2, 4]), 4, 2, hidden=8).given(torch.randn(3, 2, generator=seeded()))
        start = torch.randn(3, 5, 2, generator=seeded())
    assert run_chain(case.kernel, energy, start, 3, seeded()).position.shape == start.shape


@over(CONTINUOUS, lambda case: case.exact)
def test_exact_kernels_do_not_leave_a_box(case):
    """Outside the energy is infinite, and a proposal there is refused."""
    box = UniformEnergy(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.5]))
    end = run_chain(case.kernel, box, box.sample(500, seeded()), 30, seeded(1)).position
    assert bool((end >= box.low).all())
    assert bool((end <= box.high).all())


def test_block_gibbs_sweeps_deep_machines_too():
    energy = DBMEnergy(3, (2, 2))
    start = torch.randint(2, (4, 7), generator=seeded()).float()
    assert run_chain(BlockGibbs(), energy, start, 3, seeded()).position.shape == (4, 7)
