"""Machines in layers against brute force: formulas, block Gibbs, annealing, and the loop that trains them."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from sklearn.datasets import load_digits
from torch import Tensor

from thalweg.energies import Binary, Categorical, DBMEnergy, Gaussian, Mixed, PerceptronEnergy, RBMEnergy
from thalweg.energies.machines.layered import LayeredMachine, binary_states
from thalweg.objectives.base import Batch
from thalweg.objectives.contrastive_divergence import ContrastiveDivergence
from thalweg.sampling.block_gibbs import BlockGibbs
from thalweg.sampling.chain import run_chain
from thalweg.sampling.layered_annealing import anneal_machine, bracket_machine
from thalweg.sampling.layered_tempering import TemperedChains
from thalweg.training.feed import Feed
from thalweg.training.loop import DivergenceError, Plan, Trainer
from thalweg.training.moments import Moments, MomentStep, binary_draws, machine_plan
from thalweg.training.progress import SilentProgress


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spread_out(machine: LayeredMachine, size: float = 1.0, seed: int = 0) -> LayeredMachine:
    """Weights and biases of some size, in double precision."""
    generator = seeded(seed)
    machine.double()
    for p in machine.parameters():
        p.data = size * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    for unit, _ in machine.visible.parts:
        if isinstance(unit, Gaussian):
            unit.log_std.data.mul_(0.3)
    return machine


def all_states(unit) -> Tensor:
    """All states of a layer of discrete units."""
    if isinstance(unit, Categorical):
        rows = itertools.product(range(unit.k), repeat=unit.n)
        return torch.eye(unit.k, dtype=torch.float64)[torch.tensor(list(rows))].flatten(1)
    if isinstance(unit, Mixed):
        parts = [all_states(part) for part, _ in unit.parts]
        index = torch.cartesian_prod(*(torch.arange(len(p)) for p in parts))
        return torch.cat([p[index[:, k]] for k, p in enumerate(parts)], -1)
    return next(binary_states(unit.width, torch.zeros((), dtype=torch.float64)))


def all_layers(machine: LayeredMachine, given: dict[int, Tensor] | None = None) -> list[Tensor]:
    """Every state of the whole machine, one row each; layers that are given take the rows given."""
    choices = [(given or {}).get(k, all_states(unit)) for k, unit in enumerate(machine.units)]
    index = torch.cartesian_prod(*(torch.arange(len(c)) for c in choices))
    return [c[index[:, k]] for k, c in enumerate(choices)]


RBMS = {
    "binary": lambda: spread_out(RBMEnergy(4, 3)),
    "categorical": lambda: spread_out(RBMEnergy(Categorical(2, 3), 3)),
    "gaussian": lambda: spread_out(RBMEnergy(Gaussian(3), 3)),
    "bits and categories": lambda: spread_out(RBMEnergy(Mixed([Binary(2), Categorical(1, 3)]), 3)),
    "mixed with gaussian": lambda: spread_out(
        RBMEnergy(Mixed([Binary(2), Categorical(1, 3), Gaussian(2)]), 3), 0.7
    ),
}
DBMS = {
    "two hidden layers": lambda: spread_out(DBMEnergy(4, [3, 2]), 0.7),
    "three hidden layers": lambda: spread_out(DBMEnergy(3, [3, 2, 3]), 0.7),
    "categorical": lambda: spread_out(DBMEnergy(Categorical(2, 3), [3, 2]), 0.7),
    "gaussian": lambda: spread_out(DBMEnergy(Gaussian(3), [3, 2]), 0.5),
}
rbms = pytest.mark.parametrize("make", RBMS.values(), ids=RBMS)
dbms = pytest.mark.parametrize("make", DBMS.values(), ids=DBMS)
discrete = pytest.mark.parametrize(
    "make", [m for k, m in {**RBMS, **{f"deep {k}": m for k, m in DBMS.items()}}.items() if "gauss" not in k]
)


def some_rows(machine: LayeredMachine, n: int = 5) -> Tensor:
    unit = machine.visible
    if any(isinstance(part, Gaussian) for part, _ in unit.parts):
        return unit.sample(torch.zeros(n, unit.width, dtype=torch.float64), seeded(1)).detach()
    states = all_states(unit)
    return states[torch.randperm(len(states), generator=seeded(1))[:n]]


# -- units ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [Binary(3), Categorical(2, 3), Mixed([Categorical(1, 3), Binary(2)])])
def test_discrete_units_have_the_distribution_that_their_field_says(unit):
    field = torch.randn(unit.width, generator=seeded(), dtype=torch.float64)
    states = all_states(unit)
    weights = unit.feature(states) @ field - unit.base(states)
    torch.testing.assert_close(unit.log_partition(field), torch.logsumexp(weights, 0))
    distribution = torch.softmax(weights, 0)
    torch.testing.assert_close(unit.mean(field), distribution @ states)
    drawn = unit.sample(field.expand(20_000, -1), seeded())
    unit.check(drawn)
    which = (drawn.unsqueeze(1) == states).all(-1).double()
    assert (which.sum(1) == 1).all()
    error = (distribution * (1 - distribution) / len(drawn)).sqrt()
    assert ((which.mean(0) - distribution).abs() < 4 * error).all()


def test_gaussian_units_have_the_distribution_that_their_field_says():
    unit = Gaussian(1).double()
    unit.log_std.data.fill_(-0.4)
    field = torch.tensor([0.7], dtype=torch.float64)
    x = torch.linspace(-12, 12, 20_001, dtype=torch.float64).unsqueeze(1)
    step = float(x[1] - x[0])
    weights = unit.feature(x) @ field - unit.base(x)
    torch.testing.assert_close(unit.log_partition(field), torch.logsumexp(weights, 0) + math.log(step))
    distribution = torch.softmax(weights, 0)
    torch.testing.assert_close(distribution @ x, unit.mean(field))
    torch.testing.assert_close(distribution @ (x - field).square(), unit.std.square())
    with torch.no_grad():
        drawn = unit.sample(field.expand(20_000, -1), seeded())
    std = float(unit.std.detach())
    assert abs(float(drawn.mean()) - 0.7) < 4 * std / len(drawn) ** 0.5
    assert abs(float(drawn.std()) - std) < 4 * std / (2 * len(drawn)) ** 0.5


@rbms
def test_biases_of_units_alone_give_the_means_of_the_data(make):
    machine = make()
    n = 100_000
    rows = machine.visible.sample(torch.zeros(n, machine.visible.width, dtype=torch.float64), seeded()).detach()
    alone = machine.visible.mean(machine.visible.bias_of(rows))
    torch.testing.assert_close(alone, rows.mean(0), atol=2 / n, rtol=0)


def test_units_that_never_change_have_biases_of_one_more_row_of_each_kind():
    states = torch.tensor([1.0, 0.0, 1.0]).repeat(8, 1)
    states[0, 2] = 0.0
    unit = Binary(3)
    torch.testing.assert_close(unit.mean(unit.bias_of(states)), torch.tensor([0.9, 0.1, 0.8]))
    blocks = torch.tensor([1.0, 0.0, 0.0]).repeat(7, 1)
    unit = Categorical(1, 3)
    torch.testing.assert_close(unit.mean(unit.bias_of(blocks)), torch.tensor([0.8, 0.1, 0.1]))


@pytest.mark.parametrize(
    ("unit", "states", "words"),
    [
        (Binary(2), [[0.5, 1.0]], "binary units are 0 or 1, got 0.5"),
        (Binary(2), [[math.nan, 1.0]], "not finite"),
        (Binary(2), [[0.0, 1.0, 1.0]], "has 2 numbers, got 3"),
        (Categorical(1, 2), [[1.0, 1.0]], "one 1"),
        (Gaussian(1), [[math.inf]], "not finite"),
        (Mixed([Binary(1), Gaussian(1)]), [[0.5, 0.5]], "binary units are 0 or 1, got 0.5"),
        (Mixed([Binary(1), Gaussian(1)]), [[0.0, 0.5, 1.0]], "has 2 numbers, got 3"),
    ],
)
def test_states_that_are_none_are_refused(unit, states, words):
    with pytest.raises(ValueError, match=words):
        unit.check(torch.tensor(states))


def test_machines_that_are_none_are_refused():
    for hidden in ([], [0]):
        with pytest.raises(ValueError, match="at least one hidden layer"):
            DBMEnergy(3, hidden)
    with pytest.raises(ValueError, match="at least 2 categories"):
        Categorical(3, 1)
    for kinds in ([], [Binary(2), Binary(3)]):
        with pytest.raises(ValueError, match="one part of each kind"):
            Mixed(kinds)
    with pytest.raises(ValueError, match="at least one unit, got 0"):
        RBMEnergy(0, 3)
    with pytest.raises(ValueError, match="at most 25"):
        RBMEnergy(30, 40).log_normaliser()
    for machine in (RBMEnergy(3, 2), DBMEnergy(3, [2, 2])):
        with pytest.raises(ValueError, match=r"Energy takes \[\*batch, [37]\], got \(4, 5\)"):
            machine(torch.zeros(4, 5))
    with pytest.raises(TypeError, match="SingleSiteGibbs"):
        run_chain(BlockGibbs(), PerceptronEnergy(2), torch.zeros(1, 2), 1)


# -- formulas -------------------------------------------------------------------------------------------


@rbms
def test_the_free_energy_sums_the_hidden_units_out(make):
    machine = make()
    v = some_rows(machine)
    v_all, h_all = all_layers(machine, {0: v})
    joint = machine.joint([v_all, h_all]).reshape(len(v), -1)
    torch.testing.assert_close(machine(v), -torch.logsumexp(-joint, 1))
    torch.testing.assert_close(machine(v.reshape(1, -1, v.shape[1])), machine(v).unsqueeze(0))
    x = v.clone().requires_grad_(True)
    value, grad = machine.value_and_gradient(v)
    torch.testing.assert_close(value, machine(v).detach())
    torch.testing.assert_close(grad, torch.autograd.grad(machine(x).sum(), x)[0])


@discrete
def test_conditionals_and_sums_are_those_of_the_joint_distribution(make):
    machine = make()
    layers = all_layers(machine)
    log_joint = -machine.joint(layers).detach()
    log_z = torch.logsumexp(log_joint, 0)
    torch.testing.assert_close(machine.log_normaliser(), log_z)
    for odd in (0, 1):
        kept = torch.cat([layers[k] for k in machine.parity(1 - odd)], -1)
        for row in torch.unique(kept, dim=0)[::5]:
            same = (kept == row).all(1)
            given = [x[same] for x in layers]
            distribution = torch.softmax(log_joint[same], 0)
            summed = torch.logsumexp(log_joint[same], 0)
            first = [x[:1] for x in given]
            torch.testing.assert_close(-machine.summed_out(first, odd).detach()[0], summed)
            for k in machine.parity(odd):
                mean = machine.units[k].mean(machine.field(first, k))[0]
                torch.testing.assert_close(mean.detach(), distribution @ given[k])


def test_log_z_with_gaussian_units_is_that_on_a_grid():
    machine = spread_out(RBMEnergy(Gaussian(2), 3), 0.6)
    axis = torch.linspace(-15, 15, 601, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    step = float(axis[1] - axis[0])
    wanted = torch.logsumexp(-machine(points), 0) + 2 * math.log(step)
    torch.testing.assert_close(machine.log_normaliser(), wanted.detach(), atol=1e-6, rtol=0)


def test_log_z_of_mixed_units_is_their_sum_and_integral():
    machine = spread_out(RBMEnergy(Mixed([Binary(2), Categorical(1, 3), Gaussian(1)]), 3), 0.8)
    discrete_states = all_states(Mixed([Binary(2), Categorical(1, 3)]))
    axis = torch.linspace(-15, 15, 2001, dtype=torch.float64)
    v = torch.cat([discrete_states.repeat_interleave(len(axis), 0), axis.repeat(12).unsqueeze(1)], 1)
    assert machine.support.check(v).all()
    assert not machine.support.check(v + 0.5).any()
    assert machine.support.is_discrete
    wanted = torch.logsumexp(-machine(v), 0) + math.log(float(axis[1] - axis[0]))
    torch.testing.assert_close(machine.log_normaliser(), wanted.detach(), atol=1e-8, rtol=0)


@dbms
def test_the_mean_field_bounds_the_exact_sum_over_hidden_layers(make):
    machine = make()
    v = some_rows(machine)
    layers = all_layers(machine, {0: v})
    joint = machine.joint(layers).reshape(len(v), -1)
    exact = torch.logsumexp(-joint, 1).detach()
    torch.testing.assert_close(machine.log_marginal(v), exact)
    bound = machine.evidence_bound(v)
    assert (bound <= exact + 1e-9).all()
    assert (exact - bound).max() < 1.5
    longer = machine.evidence_bound(v, 300)
    assert (longer >= bound - 1e-6).all()
    if not isinstance(machine.visible, Gaussian):
        everything = all_states(machine.visible)
        torch.testing.assert_close(torch.logsumexp(machine.log_marginal(everything), 0), machine.log_normaliser())


@dbms
def test_importance_weights_of_the_mean_field_average_to_the_exact_sum(make):
    machine = make()
    v = some_rows(machine)
    exact = machine.log_marginal(v).detach()
    n = 4000
    ratio = (machine.importance_bound(v.expand(n, -1, -1), 1, seeded()) - exact).exp()
    assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / n**0.5 + 1e-6).all()
    many = machine.importance_bound(v, 100, seeded(1)).mean()
    assert machine.evidence_bound(v).mean() < many < exact.mean() + 0.05


def test_the_mean_field_is_exact_where_the_posterior_factorises():
    machine = spread_out(DBMEnergy(4, [3, 2]))
    machine.weights[1].data.zero_()
    v = some_rows(machine)
    torch.testing.assert_close(machine.evidence_bound(v), machine.log_marginal(v))


# -- sampling -------------------------------------------------------------------------------------------


@discrete
def test_block_gibbs_leaves_the_exact_distribution_as_it_is(make):
    machine = make()
    states = all_states(machine.visible) if isinstance(machine, RBMEnergy) else torch.cat(all_layers(machine), -1)
    distribution = torch.softmax(-machine(states).detach(), 0)
    n = 40_000
    start = states[torch.multinomial(distribution, n, True, generator=seeded())]
    end = run_chain(BlockGibbs(), machine, start, 2, seeded(1)).position
    # The energy is judged by its mean, single states by their frequencies.
    energy = machine(states).detach()
    mean, std = distribution @ energy, (distribution @ (energy - distribution @ energy).square()).sqrt()
    assert abs(machine(end).detach().mean() - mean) < 4 * std / n**0.5
    often = distribution > 5e-3
    shares = (end.unsqueeze(1) == states[often]).all(-1).double().mean(0)
    assert ((shares - distribution[often]).abs() < 4.5 * (distribution[often] / n).sqrt()).all()


@pytest.mark.parametrize("visible", [Gaussian(2), Mixed([Binary(2), Categorical(1, 3), Gaussian(2)])])
def test_block_gibbs_of_gaussian_and_mixed_units_keeps_their_moments(visible):
    machine = spread_out(RBMEnergy(visible, 3), 0.6)
    h = all_states(machine.units[1])
    distribution = torch.softmax(-machine.summed_out([None, h], 0).detach(), 0)
    n = 40_000
    hidden = h[torch.multinomial(distribution, n, True, generator=seeded())]
    with torch.no_grad():
        start = machine.visible.sample(machine.field([None, hidden], 0), seeded(1))
        means = visible.mean(machine.field([None, h], 0))
    end = run_chain(BlockGibbs(), machine, start, 3, seeded(2)).position
    mean = distribution @ means
    within = means * (1 - means)
    for unit, place in visible.parts:
        if isinstance(unit, Gaussian):
            within[:, place] = unit.std.detach().square()
    variance = distribution @ ((means - mean).square() + within)
    assert ((end.mean(0) - mean).abs() < 4 * (variance / n).sqrt()).all()
    # A mixture of Gaussians has at most a few times a Gaussian's fourth moment here.
    assert ((end.var(0) - variance).abs() < 6 * variance * (2 / n) ** 0.5).all()


@pytest.mark.parametrize("make", [*RBMS.values(), *DBMS.values()], ids=[*RBMS, *(f"deep {k}" for k in DBMS)])
def test_annealing_brackets_log_z(make):
    machine = make()
    exact = float(machine.log_normaliser())
    base = torch.zeros_like(machine.biases[0].detach())
    found = bracket_machine(machine, base, 400, 300, generator=seeded())
    for side in (found.lower, found.upper):
        assert abs(side.estimate - exact) < 4 * side.standard_error + 1e-6
        assert side.standard_error < 0.2
    assert abs(found.estimate - exact) < 0.2


@pytest.mark.parametrize("make", [*RBMS.values(), *DBMS.values()], ids=[*RBMS, *(f"deep {k}" for k in DBMS)])
def test_annealing_without_weights_is_exact_and_has_no_variance(make):
    machine = make()
    for weight in machine.weights:
        weight.data.zero_()
    for bias in machine.biases[1:]:
        bias.data.zero_()
    exact = float(machine.log_normaliser())
    with pytest.raises(TypeError, match="no machine in layers"):
        anneal_machine(PerceptronEnergy(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        anneal_machine(machine, n_chains=0)
    there = anneal_machine(machine, None, 10, 20, generator=seeded())
    assert there.estimate == pytest.approx(exact, abs=1e-9)
    assert float(there.log_weights.std()) < 1e-9
    back = anneal_machine(machine, None, 10, 20, there.position, seeded())
    assert back.estimate == pytest.approx(exact, abs=1e-9)


# -- tempered chains --------------------------------------------------------------------------------------


def level_machines(chains: TemperedChains) -> list[LayeredMachine]:
    """The machine of every level, by its definition."""
    machine = chains.tempered.machine
    found = []
    for beta in chains.beta.flatten().tolist():
        level = copy.deepcopy(machine)
        for p in (*level.weights, *level.biases):
            p.data.mul_(beta)
        level.biases[0].data.add_((1 - beta) * chains.tempered.base_bias)
        found.append(level)
    return found


@pytest.mark.parametrize("make", [*RBMS.values(), *DBMS.values()], ids=[*RBMS, *(f"deep {k}" for k in DBMS)])
def test_tempered_chains_leave_the_distribution_of_every_level_as_it_is(make):
    """All levels start at exact draws, and each still has its own distribution after swaps and sweeps."""
    machine = make()
    base = 0.5 * torch.randn(machine.visible.width, generator=seeded(8), dtype=torch.float64)
    chains = TemperedChains(machine, 3, base)
    levels = level_machines(chains)
    base_log_z = float(chains.tempered.base_log_normaliser().detach())
    assert base_log_z == pytest.approx(float(levels[-1].log_normaliser()))
    n = 20_000
    odd_units = [machine.units[k] for k in machine.parity(1)]
    odd = torch.cartesian_prod(*(torch.arange(2**unit.width) for unit in odd_units)).reshape(-1, len(odd_units))
    odd = torch.cat([all_states(u)[odd[:, k]] for k, u in enumerate(odd_units)], -1)
    distributions = [torch.softmax(-level.summed_out(level.placed(odd, 1), 0).detach(), 0) for level in levels]
    generator = seeded(2)
    start = [level.placed(odd[torch.multinomial(distribution, n, True, generator=generator)], 1)
             for level, distribution in zip(levels, distributions, strict=True)]  # fmt: skip
    start = [level.resample(x, 0, generator) for level, x in zip(levels, start, strict=True)]
    states = [torch.stack(parts) for parts in zip(*start, strict=True)]
    for _ in range(5):
        states, means = chains.sweep(states, generator)
    together = torch.cat([states[k] for k in machine.parity(1)], -1)
    places = [(x.unsqueeze(1) == odd).all(-1).double().argmax(1) for x in together]
    for found, distribution in zip(places, distributions, strict=True):
        share = torch.bincount(found, minlength=len(odd)) / n
        assert ((share - distribution).abs() < 5 * (distribution * (1 - distribution) / n).sqrt()).all()
    # Levels are independent: swaps leave the product of their distributions as it is.
    pairs = torch.bincount(places[0] * len(odd) + places[1], minlength=len(odd) ** 2) / n
    wanted = torch.outer(distributions[0], distributions[1]).flatten()
    assert ((pairs - wanted).abs() < 6 * (wanted / n).sqrt() + 6 / n).all()
    assert (chains.swapped > 0.05).all()
    for k in machine.parity(0):
        assert torch.equal(means[k], states[k][0])
    for k in machine.parity(1):
        torch.testing.assert_close(means[k], torch.sigmoid(machine.field([x[0] for x in states], k)).detach())


def test_swaps_carry_chains_out_of_a_mode():
    """All ones or all zeros, each half of the distribution; chains of the machine alone stay where they are."""
    machine = RBMEnergy(10, 1)
    machine.weights[0].data.fill_(8.0)
    machine.biases[0].data.fill_(-4.0)
    machine.biases[1].data.fill_(-40.0)
    chains = TemperedChains(machine, 10, torch.zeros(10))
    states, left = [torch.ones(10, 1000, 10), torch.ones(10, 1000, 1)], torch.ones(1000, 10)
    generator = seeded()
    for _ in range(100):
        states, _ = chains.sweep(states, generator)
        left = machine.sweep(left, generator)
    assert float(left[:, 0].mean()) > 0.9
    assert float(states[0][0, :, 0].mean()) == pytest.approx(0.5, abs=5 * 0.5 / 1000**0.5)


def test_tempered_training_keeps_the_weights_of_groups_far_apart():
    """Three patterns of 24 bits: how large each is under the machine, by all states of its hidden units."""
    rng = np.random.RandomState(0)
    patterns, shares = rng.randint(0, 2, (3, 24)), [0.6, 0.3, 0.1]
    belongs = np.repeat(np.arange(3), [300, 150, 50])
    rows = torch.tensor(patterns[belongs] ^ (rng.uniform(size=(500, 24)) < 0.03)).float()
    off = []
    for n in (1, 6):
        machine, history, step = trained(rows, n_hidden=8, max_epochs=100, n_temperatures=n)
        hidden = all_states(machine.units[1]).float()
        distribution = torch.softmax(-machine.summed_out([None, hidden], 0), 0)
        means = machine.visible.mean(machine.field([None, hidden], 0))
        nearest = torch.cdist(means, torch.tensor(patterns).float()).argmin(1)
        found = torch.stack([distribution[nearest == k].sum() for k in range(3)])
        off.append(0.5 * float((found - torch.tensor(shares)).abs().sum().detach()))
    assert off[0] > 0.15
    assert off[1] < 0.1
    assert step.all_chains[0].shape == (6, 64, 24)
    assert 0 < history.epochs[-1]["swaps"] < 1


# -- training -------------------------------------------------------------------------------------------


def digits() -> tuple[Tensor, Tensor]:
    """Binarised: 1400 to learn from, 397 held out."""
    raw = load_digits().data
    rows = torch.from_numpy((raw[np.random.RandomState(0).permutation(len(raw))] > 7).astype(np.float32))
    return rows[:1400], rows[1400:]


def machine_of(rows: Tensor, n_hidden: int = 16) -> RBMEnergy:
    torch.manual_seed(0)
    machine = RBMEnergy(rows.shape[1], n_hidden)
    machine.biases[0].data.copy_(machine.visible.bias_of(rows))
    return machine


def settings_of(settings: dict) -> tuple[Plan, Moments]:
    moments = {k: v for k, v in settings.items() if k in Moments.__dataclass_fields__}
    return machine_plan(**{k: v for k, v in settings.items() if k not in moments}), Moments(**moments)


def trained(rows: Tensor, run_dir=None, resume=False, progress=None, n_hidden=16, encode=None, **settings):
    machine = machine_of(rows, n_hidden)
    plan, moments = settings_of(settings)
    step = MomentStep(machine, moments, encode=encode)
    history = Trainer(plan, None, run_dir, progress).run(step, Batch(None, rows), resume=resume)
    return machine, history, step


def begun(machine: RBMEnergy, rows: Tensor, chains: list[Tensor] | None = None, **settings) -> MomentStep:
    """A step that is ready for its first update."""
    plan, moments = settings_of(settings)
    fabric, step = Fabric(accelerator="cpu", devices=1), MomentStep(machine, moments, chains=chains)
    step.begin(plan, fabric, Feed(Batch(None, rows), plan, fabric), seeded(plan.seed))
    return step


def log_likelihood(machine: RBMEnergy, rows: Tensor) -> float:
    with torch.no_grad():
        return float(-machine(rows).mean() - machine.log_normaliser())


def exact_gradient(machine: RBMEnergy, rows: Tensor) -> list[Tensor]:
    """Of the mean log-likelihood, by autograd through the sum over all states."""
    machine.zero_grad()
    states = all_states(machine.visible).to(rows.dtype)
    (-machine(rows).mean() - torch.logsumexp(-machine(states), 0)).backward()
    return [p.grad.clone() for p in (machine.weights[0], *machine.biases)]


def updates(machine: RBMEnergy, rows: Tensor, chains: list[Tensor] | None = None, **plan) -> list[Tensor]:
    """The step that one update takes, for a rate of 1, batch and chains as many as there are rows."""
    before = [p.detach().clone() for p in (machine.weights[0], *machine.biases)]
    with torch.no_grad():
        begun(machine, rows, chains, batch_size=len(rows), **plan).learn(rows, 1.0)
    steps = [p.detach() - b for p, b in zip((machine.weights[0], *machine.biases), before, strict=True)]
    for p, b in zip((machine.weights[0], *machine.biases), before, strict=True):
        p.data.copy_(b)
    return steps


def small_problem(n: int = 100_000) -> tuple[RBMEnergy, Tensor]:
    """A machine, and rows of another distribution: those of a second machine."""
    machine, other = spread_out(RBMEnergy(5, 4), 0.8), spread_out(RBMEnergy(5, 4), 0.8, seed=1)
    states = all_states(machine.visible)
    distribution = torch.softmax(-other(states).detach(), 0)
    return machine, states[torch.multinomial(distribution, n, True, generator=seeded())]


def cosine(a: list[Tensor], b: list[Tensor]) -> float:
    flat = [torch.cat([x.flatten() for x in g]) for g in (a, b)]
    return float(torch.cosine_similarity(*flat, dim=0))


def test_contrastive_divergence_points_uphill_and_tends_to_the_exact_gradient():
    machine, rows = small_problem()
    exact = exact_gradient(machine, rows)
    errors = []
    for k in (1, 5, 30):
        found = updates(machine, rows, n_gibbs=k, persistent=False)
        if k == 1:
            agree = torch.cat([(a.sign() == b.sign()).flatten() for a, b in zip(exact, found, strict=True)])
            assert agree.double().mean() > 0.75
            assert cosine(exact, found) > 0.7
        errors.append(max(float((a - b).abs().max()) for a, b in zip(exact, found, strict=True)))
    assert errors[0] > 2 * errors[1] > 2 * errors[2]
    # Products of 0 and 1 have a standard deviation of at most a half; two means, and 29 numbers.
    assert errors[2] < 4 * 0.5 * (2 / len(rows)) ** 0.5


def test_contrastive_divergence_stands_still_where_the_data_are_the_machines_own():
    machine, _ = small_problem(1)
    states = all_states(machine.visible)
    distribution = torch.softmax(-machine(states).detach(), 0)
    rows = states[torch.multinomial(distribution, 100_000, True, generator=seeded())]
    found = updates(machine, rows, persistent=False)
    assert max(float(g.abs().max()) for g in found) < 4 * 0.5 * (2 / len(rows)) ** 0.5


def test_updates_are_the_autograd_gradients_in_expectation():
    machine, rows = small_problem()
    tolerance = 5 * 0.5 * (2 / len(rows)) ** 0.5

    def agree(found: list[Tensor], wanted: list[Tensor]) -> None:
        for a, b in zip(found, wanted, strict=True):
            assert float((a - b).abs().max()) < tolerance

    # From the data: the objective that has no loop of its own.
    machine.zero_grad()
    ContrastiveDivergence(BlockGibbs(), 1)(machine, Batch(None, rows), seeded(5)).value.backward()
    agree(updates(machine, rows, persistent=False), [-p.grad for p in (machine.weights[0], *machine.biases)])
    # From chains of the machine's own distribution: the likelihood.
    states = all_states(machine.visible)
    distribution = torch.softmax(-machine(states).detach(), 0)
    start = states[torch.multinomial(distribution, len(rows), True, generator=seeded(3))]
    agree(updates(machine, rows, machine.resample([start, None], 1, seeded(4))), exact_gradient(machine, rows))


def test_centred_updates_are_those_of_the_centred_machine():
    """Given the same chains, the centred update is the exact gradient in the centred parametrisation."""
    machine, rows = small_problem()
    weight, visible, hidden = exact_gradient(machine, rows)
    mu, lam = rows.mean(0), torch.sigmoid(machine.field([rows, None], 1)).mean(0).detach()
    centred = weight - torch.outer(mu, hidden) - torch.outer(visible, lam)
    states = all_states(machine.visible)
    distribution = torch.softmax(-machine(states).detach(), 0)
    start = states[torch.multinomial(distribution, len(rows), True, generator=seeded(3))]
    chain = machine.resample([start, None], 1, seeded(4))
    found = updates(machine, rows, chain, centred=True)
    wanted = [centred, visible - centred @ lam, hidden - mu @ centred]
    for a, b in zip(found, wanted, strict=True):
        assert float((a - b).abs().max()) < 0.02


@pytest.mark.parametrize(
    "visible", [Gaussian(3), Categorical(2, 3), Mixed([Binary(2), Categorical(1, 3), Gaussian(2)])]
)
def test_updates_of_other_units_climb_the_likelihood(visible):
    machine = spread_out(RBMEnergy(visible, 3), 0.5)
    other = spread_out(RBMEnergy(copy.deepcopy(visible), 3), 0.5, 1)
    h = all_states(machine.units[1])

    def drawn(source: RBMEnergy, n: int, seed: int) -> list[Tensor]:
        distribution = torch.softmax(-source.summed_out([None, h], 0).detach(), 0)
        hidden = h[torch.multinomial(distribution, n, True, generator=seeded(seed))]
        with torch.no_grad():
            return [source.visible.sample(source.field([None, hidden], 0), seeded(seed + 1)), hidden]

    rows, chains = drawn(other, 50_000, 5)[0], drawn(machine, 50_000, 7)
    machine.zero_grad()
    (-machine(rows).mean() - torch.logsumexp(-machine.summed_out([None, h], 0), 0)).backward()
    parameters = [machine.weights[0], *machine.biases]
    gradient = [p.grad.clone() for p in parameters]
    spreads = []
    for unit, place in visible.parts:
        if isinstance(unit, Gaussian):
            # In units of the variances.
            variance = unit.std.detach().square()
            gradient[0][place] *= variance.unsqueeze(1)
            gradient[1][place] *= variance
            spreads.append((unit, unit.log_std.grad.clone(), unit.log_std.detach().clone()))
    for a, b in zip(updates(machine, rows, chains), gradient, strict=True):
        assert float((a - b).abs().max()) < 0.05
    for unit, slope, before in spreads:
        assert float((unit.log_std.detach() - before - 0.1 * slope).abs().max()) < 0.02


SLOW = {"n_hidden": 12, "max_epochs": 400, "learning_rate": 0.1, "batch_size": 100}


@pytest.mark.parametrize(
    ("at_least", "plan"),
    [
        (-19.345, {"n_hidden": 12, "max_epochs": 400, "learning_rate": 0.1, "batch_size": 100}),
        pytest.param(
            -19.345,
            {"n_hidden": 12, "max_epochs": 400, "learning_rate": 0.1, "batch_size": 100, "persistent": False},
            marks=pytest.mark.slow,
        ),
        (-18.9, {}),
        pytest.param(-18.9, {"centred": True}, marks=pytest.mark.slow),
    ],
    ids=["persistent", "from the data", "by default", "centred"],
)
def test_digits_are_learned_as_well_as_by_the_exact_gradient(at_least, plan):
    """With 12 hidden units the exact gradient reaches -19.245; independent pixels -25.26."""
    rows, held_out = digits()
    machine, history, _ = trained(rows, **plan)
    assert log_likelihood(machine, held_out) > at_least
    assert history.stopped == "all epochs done"
    assert history.epochs[-1]["reconstruction"] < history.epochs[0]["reconstruction"]
    assert all(abs(e["free-energy gap"]) < 10 for e in history.epochs)


def test_options_do_what_they_say():
    rows = digits()[0][:640]
    common = {"max_epochs": 20, "learning_rate": 0.1, "n_hidden": 12}
    plain, _, _ = trained(rows, **common)
    weights = plain.weights[0].detach()
    decayed, _, _ = trained(rows, weight_decay=0.05, **common)
    assert decayed.weights[0].norm() < 0.8 * weights.norm()
    moved, _, _ = trained(rows, momentum=0.8, **common)
    assert moved.weights[0].norm() > 1.2 * weights.norm()
    sparse, _, _ = trained(rows, sparsity_target=0.05, sparsity_cost=1.0, **common)
    means = [torch.sigmoid(m.field([rows, None], 1)).mean() for m in (plain, sparse)]
    assert means[1] < 0.6 * means[0]
    assert trained(rows, n_particles=10, **common)[2].chains[0].shape == (10, 64)
    grey = (digits()[0][:640] * 0.9 + 0.05).clamp(0, 1)
    machine, _, _ = trained(grey, encode=binary_draws)
    # What is learned are the binary states drawn from the grey values, whose variance is p (1 - p).
    states = (torch.rand(grey.shape, generator=seeded()) < grey).float()
    alone = machine_of(states)
    alone.weights[0].data.zero_()
    assert log_likelihood(machine, states) > log_likelihood(alone, states)


def test_sparsity_counts_the_activity_under_the_data_alone():
    rows = torch.ones(64, 5)
    machine = machine_of(rows, 3)
    with torch.no_grad():
        machine.weights[0].fill_(2.0)
        machine.biases[1].fill_(-5.0)
    # Hidden units are on under the data and off under the chains, which are all zeros.
    chains = [torch.zeros(64, 5), torch.zeros(64, 3)]
    with torch.no_grad():
        machine.biases[0].fill_(-20.0)
    step = begun(machine, rows, chains, sparsity_target=0.1, sparsity_cost=0.0)
    before = step.activity[1].clone()
    step.learn(rows, 0.0)
    expected = before + 0.1 * (torch.sigmoid(torch.full((3,), 5.0)) - before)
    torch.testing.assert_close(step.activity[1], expected, rtol=1e-5, atol=1e-6)


def test_fast_weights_drive_the_chains_out_of_a_mode():
    """All ones or all zeros, each half of the data, and all chains at the ones."""
    machine = RBMEnergy(10, 1)
    machine.weights[0].data.fill_(8.0)
    machine.biases[0].data.fill_(-4.0)
    machine.biases[1].data.fill_(-40.0)
    rows = torch.cat([torch.ones(50, 10), torch.zeros(50, 10)])
    left = []
    for fast in (0.0, 0.5):
        step = begun(machine, rows, [torch.ones(100, 10), torch.ones(100, 1)], batch_size=100, fast_rate=fast)
        with torch.no_grad():
            for _ in range(40):
                step.learn(rows, 1e-9)
        left.append(float((step.chains[1] == 0).float().mean()))
    assert left[0] < 0.05
    assert left[1] > 0.2


class Interrupting(SilentProgress):
    """As Ctrl-C in an epoch."""

    def __init__(self, at: int):
        self.at = at

    def update(self, record):
        if record["epoch"] == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "plan",
    [
        {},
        {"persistent": False, "momentum": 0.5},
        {"centred": True, "fast_rate": 0.1, "sparsity_target": 0.2, "sparsity_cost": 0.1, "n_particles": 10},
        {"n_temperatures": 3, "n_particles": 10},
    ],
)
def test_an_interrupted_run_resumes_to_the_same_machine(tmp_path, plan):
    rows = digits()[0][:320]
    settings = {"max_epochs": 6, "checkpoint_seconds": 0.0, **plan}
    whole, history, _ = trained(rows, **settings)
    with pytest.raises(KeyboardInterrupt):
        trained(rows, tmp_path, progress=Interrupting(3), **settings)
    resumed, continued, _ = trained(rows, tmp_path, resume=True, **settings)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert continued.epochs == history.epochs
    # Asked once more, it has nothing left to do.
    again, _, _ = trained(rows, tmp_path, resume=True, **settings)
    assert torch.equal(again.weights[0], whole.weights[0])
    for change, words in (
        ({"learning_rate": 0.2}, "other settings"),
        ({"n_hidden": 5}, "another network"),
    ):
        with pytest.raises(ValueError, match=words):
            trained(rows, tmp_path, resume=True, **{**settings, **change})
    with pytest.raises(ValueError, match="other data"):
        trained(1 - rows, tmp_path, resume=True, **settings)


def test_divergence_is_rolled_back_and_told():
    rows, _ = digits()
    _, history, _ = trained(rows, learning_rate=2000.0, max_epochs=3)
    assert any("learning rate halved" in event for event in history.events)
    before = machine_of(rows)
    torch.manual_seed(0)
    with pytest.raises(DivergenceError, match="Lower the learning rate"):
        Trainer(machine_plan(learning_rate=1e9)).run(MomentStep(before), Batch(None, rows))
    assert all(bool(torch.isfinite(p).all()) for p in before.parameters())
    assert torch.equal(before.weights[0], machine_of(rows).weights[0])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (torch.full((4, 3), 0.5), "0 or 1, got 0.5"),
        (torch.full((4, 3), math.nan), "not finite"),
        (torch.zeros(4, 2), "has 3 numbers, got 2"),
        (torch.zeros(0, 3), "no rows"),
    ],
)
def test_rows_that_are_no_states_are_refused(rows, words):
    with pytest.raises(ValueError, match=words):
        Trainer(machine_plan()).run(MomentStep(RBMEnergy(3, 2)), Batch(None, rows))


@pytest.mark.parametrize(
    "settings",
    [
        {"max_epochs": 0},
        {"learning_rate": math.nan},
        {"final_rate": -1.0},
        {"momentum": 1.0},
        {"n_particles": 0},
        {"n_temperatures": 0},
        {"n_temperatures": 3, "persistent": False},
        {"n_temperatures": 3, "fast_rate": 0.1},
        {"sparsity_target": 2.0},
    ],
)
def test_settings_that_can_not_be_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        settings_of(settings)
