"""Discrete energies against sums over all their configurations; tolerances from standard errors."""

import math

import pytest
import torch
from torch import nn

from asymptotics import flat, influence, minimise
from thalweg.energies import (
    BINARY,
    BernoulliEnergy,
    BoltzmannMachine,
    CategoricalEnergy,
    Energy,
    GaussianEnergy,
    OneHotGroups,
    all_states,
)
from thalweg.energies.conditioning import ClampedEnergy
from thalweg.energies.discrete import Sites
from thalweg.objectives.base import Batch
from thalweg.objectives.contrastive_divergence import BoltzmannLearning, ContrastiveDivergence
from thalweg.objectives.energy_discrepancy import EnergyDiscrepancy
from thalweg.objectives.noise_contrastive import ConditionalNCE
from thalweg.objectives.pseudo_likelihood import PseudoLikelihood, RatioMatching
from thalweg.objectives.score_matching import DenoisingScoreMatching, ScoreMatching, SlicedScoreMatching
from thalweg.objectives.stein import SteinDiscrepancy
from thalweg.sampling.annealing import annealed_importance_sampling
from thalweg.sampling.buffer import ReplayBuffer
from thalweg.sampling.chain import initial_state, run_chain
from thalweg.sampling.gibbs import GibbsWithGradients, SingleSiteGibbs, draw
from thalweg.sampling.tempering import ParallelTempering, geometric_temperatures
from thalweg.training.loop import Plan, Trainer


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def double(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def machine(n_visible: int, n_hidden: int = 0, scale: float = 1.0) -> BoltzmannMachine:
    made = BoltzmannMachine(n_visible, n_hidden).double()
    with torch.no_grad():
        made.bias.copy_(0.5 * scale * double(len(made.bias)))
        made.couplings.copy_(scale * double(len(made.couplings), seed=6))
    return made


class Network(Energy):
    """Of a perceptron: no closed form, and far from linear between the values."""

    def __init__(self, n_inputs: int, support=BINARY):
        super().__init__()
        self.support = support
        generator = torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(n_inputs, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        with torch.no_grad():
            for weight in self.net.parameters():
                weight.copy_(1.2 * torch.randn(weight.shape, generator=generator))

    def forward(self, x):
        return self.net(x).squeeze(-1)


BITS, TRIPLES = all_states(4).double(), all_states(3, 3).double()
ENERGIES = {
    "machine": (lambda: machine(4), BITS),
    "network of bits": (lambda: Network(4), BITS),
    "network of triples": (lambda: Network(9, OneHotGroups(3)), TRIPLES),
}
energies = pytest.mark.parametrize(("make", "states"), ENERGIES.values(), ids=ENERGIES)
KERNELS = [SingleSiteGibbs(), SingleSiteGibbs(n_random=3), GibbsWithGradients()]
kernels = pytest.mark.parametrize("kernel", KERNELS, ids=["sweep", "random sites", "gradients"])


def distribution(energy: Energy, states: torch.Tensor) -> torch.Tensor:
    return torch.softmax(-energy(states).detach(), 0)


def counts(x: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    return (x.unsqueeze(-2) == states).all(-1).double().flatten(0, -2).sum(0)


def draws(energy: Energy, states: torch.Tensor, n: int, seed: int = 1) -> torch.Tensor:
    return states[torch.multinomial(distribution(energy, states), n, replacement=True, generator=seeded(seed))]


def assert_distribution(x: torch.Tensor, states: torch.Tensor, expected: torch.Tensor) -> None:
    """Independent draws: Pearson's statistic has the mean and variance of chi^2; four deviations are allowed."""
    n, degrees = len(x), len(states) - 1
    found = counts(x, states)
    assert float(found.sum()) == n
    statistic = float(((found - n * expected).square() / (n * expected)).sum())
    assert statistic < degrees + 4 * math.sqrt(2 * degrees)


# -- chains -----------------------------------------------------------------------------------------------


@kernels
@energies
def test_chains_reach_the_exact_distribution(make, states, kernel):
    energy = make()
    start = states[torch.zeros(4000, dtype=torch.long)]
    state = run_chain(kernel, energy, start, 60, seeded(2))
    assert_distribution(state.position, states, distribution(energy, states))
    if state.energy is not None:
        torch.testing.assert_close(state.energy, energy(state.position).detach())


@energies
def test_gibbs_with_gradients_keeps_detailed_balance_exactly(make, states, monkeypatch):
    """The matrix of transitions: every change is proposed in turn, and the kernel says how likely it takes it."""
    energy, kernel, p = make(), GibbsWithGradients(), distribution(make(), states)
    made_of, start = Sites(energy), initial_state(energy, states)
    proposals = kernel._log_proposal(made_of, states, energy.value_and_gradient(states)[1]).exp()
    n, n_shifts = len(states), made_of.n_values - 1
    moves = torch.zeros(n, n, dtype=torch.float64)
    for change in range(proposals.shape[1]):
        monkeypatch.setattr("thalweg.sampling.gibbs.draw", lambda log_q, _, c=change: torch.full((n,), c))
        accepted = kernel.step(energy, start, seeded()).acceptance
        site, shift = torch.full((n,), change // n_shifts), torch.full((n,), change % n_shifts + 1)
        there = made_of.changed(states, site, shift)
        index = (there.unsqueeze(1) == states).all(-1).double().argmax(1)
        moves[torch.arange(n), index] += proposals[:, change] * accepted
    assert int((moves > 0).sum()) == n * proposals.shape[1]
    assert (moves.sum(1) <= 1 + 1e-12).all()
    flow = p[:, None] * moves
    torch.testing.assert_close(flow, flow.t(), rtol=1e-12, atol=0)


@kernels
@energies
def test_one_step_from_the_exact_distribution_stays_in_it(make, states, kernel):
    energy = make()
    state = run_chain(kernel, energy, draws(energy, states, 20_000), 1, seeded(3))
    assert_distribution(state.position, states, distribution(energy, states))


def test_closed_forms_of_the_machine_are_those_of_its_energy():
    energy, x = machine(3, 2), all_states(5).double()
    generic = Network(5)
    generic.forward = energy.forward
    for sites in (torch.arange(5), torch.tensor([2]), torch.randint(5, (32, 3))):
        closed = Sites(energy).differences(energy, x, sites)
        torch.testing.assert_close(closed, Sites(energy).differences(generic, x, sites))
    value, grad = energy.value_and_gradient(x)
    value_, grad_ = generic.value_and_gradient(x)
    torch.testing.assert_close(value, value_)
    torch.testing.assert_close(grad, grad_)
    torch.testing.assert_close(energy.fixed()(x), value)
    torch.testing.assert_close(energy.weights, energy.weights.t())
    assert not energy.weights.diagonal().any()
    torch.testing.assert_close(energy.log_odds(x), -grad)


@pytest.mark.parametrize("kernel", [SingleSiteGibbs(), GibbsWithGradients()], ids=["gibbs", "gradients"])
@energies
def test_tempering_gives_each_level_its_own_distribution(make, states, kernel):
    energy, temperatures = make(), geometric_temperatures(3, 4.0)
    tempering = ParallelTempering(kernel, temperatures)
    start = tempering.start(states[torch.zeros(3000, dtype=torch.long)])
    position = run_chain(tempering, energy, start, 60, seeded(4)).position
    for level, temperature in zip(position, temperatures, strict=True):
        assert_distribution(level, states, distribution(energy / temperature, states))


def test_tempering_crosses_where_single_flips_do_not():
    """Two wells of four spins that all point one way, 16 nats apart from what is between."""
    couplings = 4.0 * (1 - torch.eye(4))
    energy = BoltzmannMachine.from_ising(couplings, torch.zeros(4))
    tempering = ParallelTempering(GibbsWithGradients(), geometric_temperatures(8, 20.0))
    start = tempering.start(torch.zeros(500, 4))
    up = run_chain(tempering, energy, start, 300, seeded()).position[0].mean(-1)
    assert abs(float((up > 0.5).float().mean()) - 0.5) < 4 * 0.5 / math.sqrt(500)
    stuck = run_chain(GibbsWithGradients(), energy, torch.zeros(500, 4), 300, seeded()).position
    assert float(stuck.mean()) < 0.1


@pytest.mark.parametrize("kernel", [SingleSiteGibbs(), GibbsWithGradients()], ids=["gibbs", "gradients"])
def test_annealed_importance_sampling_finds_log_z(kernel):
    energy = machine(6, 2)
    base = BernoulliEnergy(torch.full((8,), 0.5).double())
    found = annealed_importance_sampling(energy, base, 400, 100, lambda beta: kernel, seeded())
    assert abs(found.estimate - float(energy.log_normaliser().detach())) < 4 * found.standard_error < 0.4


def test_known_coordinates_stay_and_the_others_follow_their_conditional_distribution():
    energy, known = machine(4), torch.tensor([1.0, 0.0, 0.0, 1.0]).double()
    mask = torch.tensor([True, False, False, True])
    for kernel in (SingleSiteGibbs(), GibbsWithGradients()):
        start = known.expand(4000, 4)
        clamped = ClampedEnergy(energy, start, mask)
        x = clamped.complete(run_chain(kernel, clamped, start, 60, seeded()).position)
        allowed = (BITS[:, mask] == known[mask]).all(1)
        p = distribution(energy, BITS)[allowed]
        assert_distribution(x, BITS[allowed], p / p.sum())


def test_only_the_sites_that_are_asked_for_move():
    energy, start = machine(5), all_states(5).double()
    for n_random in (None, 20):
        x = run_chain(SingleSiteGibbs(n_random, sites=[1, 3]), energy, start, 3, seeded()).position
        assert torch.equal(x[:, [0, 2, 4]], start[:, [0, 2, 4]])
        assert not torch.equal(x[:, [1, 3]], start[:, [1, 3]])


def test_bits_of_images_are_sites_too():
    class Image(Network):
        event_ndim = 3

        def forward(self, x):
            return super().forward(x.flatten(-3))

    energy = Image(4)
    for kernel in KERNELS:
        x = run_chain(kernel, energy, BITS[torch.zeros(4000, dtype=torch.long)].reshape(-1, 1, 2, 2), 60, seeded())
        assert_distribution(x.position.flatten(1), BITS, distribution(Network(4), BITS))
    loss = PseudoLikelihood()(energy, Batch(None, BITS.reshape(-1, 1, 2, 2))).value
    torch.testing.assert_close(loss, PseudoLikelihood()(Network(4), Batch(None, BITS)).value)


def test_draws_of_one_of_many_follow_their_weights():
    log_weights = torch.tensor([0.3, -1.0, 2.0, -torch.inf])
    found = draw(log_weights.expand(20_000, 4), seeded())
    expected = torch.softmax(log_weights, 0)[:3].double()
    assert_distribution(found.unsqueeze(-1), torch.arange(3).unsqueeze(-1), expected)


def test_independent_sites_are_normalised_and_drawn_from():
    bits = BernoulliEnergy(torch.tensor([0.2, 0.5, 0.9]).double())
    triples = CategoricalEnergy(torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]]).double())
    for density, states in ((bits, all_states(3).double()), (triples, TRIPLES)):
        torch.testing.assert_close(density.log_prob(states).exp().sum(), torch.ones(()).double())
        assert_distribution(density.sample(5000, seeded()), states, density.log_prob(states).exp())
        value, grad = density.value_and_gradient(states)
        expected = Energy.value_and_gradient(density, states)
        torch.testing.assert_close(value, expected[0])
        torch.testing.assert_close(grad, expected[1])
    sites, x = torch.arange(3), all_states(3).double()
    flipped = Network(3)
    flipped.forward = bits.forward
    torch.testing.assert_close(bits.differences(x, sites), Sites(bits).differences(flipped, x, sites))
    # A sum of closed forms is one.
    both = bits + machine(3)
    flipped.forward = both.forward
    torch.testing.assert_close(both.differences(x, sites), Sites(bits).differences(flipped, x, sites))
    assert (flipped + bits).differences(x, sites) is None


# -- sums over all configurations -------------------------------------------------------------------------


@pytest.mark.parametrize(("n_visible", "n_hidden"), [(1, 0), (4, 0), (3, 2), (2, 4), (4, 12)])
def test_sums_over_configurations_are_those_of_the_energy(n_visible, n_hidden):
    energy = machine(n_visible, n_hidden)
    x = all_states(n_visible + n_hidden).double()
    torch.testing.assert_close(energy.log_normaliser(), torch.logsumexp(-energy(x), 0))
    v = all_states(n_visible).double()
    expected = -torch.logsumexp(-energy(x).reshape(len(v), -1), 1)
    torch.testing.assert_close(energy.marginal_energy(v), expected)
    torch.testing.assert_close(energy.marginal()(v.unsqueeze(0))[0], expected)
    torch.testing.assert_close(energy.log_prob(v).exp().sum(), torch.ones(()).double())


def test_the_gradient_of_log_z_is_the_mean_of_the_statistics():
    energy, x = machine(3, 2), all_states(5).double()
    (found,) = torch.autograd.grad(energy.log_normaliser(), energy.bias)
    torch.testing.assert_close(found, distribution(energy, x) @ x)


def test_an_ising_model_is_a_machine_up_to_a_constant():
    couplings = double(4, 4)
    couplings = couplings.triu(1) + couplings.triu(1).t()
    field, spins = double(4, seed=8), 2 * BITS - 1
    energy = BoltzmannMachine.from_ising(couplings, field)
    expected = -spins @ field - 0.5 * ((spins @ couplings) * spins).sum(1)
    gap = (energy(BITS) - expected).detach()
    torch.testing.assert_close(gap, gap[:1].expand(16))


# -- learning from single changes -------------------------------------------------------------------------

OBJECTIVES = [PseudoLikelihood(), RatioMatching(), PseudoLikelihood(2), RatioMatching(2)]
objectives = pytest.mark.parametrize(
    "objective", OBJECTIVES, ids=lambda o: type(o).__name__ + ("" if o.n_sites is None else " of some sites")
)


def test_the_objectives_are_their_formulas():
    """Of two bits, by the probabilities themselves; and of triples, by going through all values of each site."""
    energy, states = machine(2), all_states(2).double()
    p = distribution(energy, states).reshape(2, 2)
    for i, (a, b) in enumerate(states.long().tolist()):
        row = Batch(None, states[i : i + 1])
        conditionals = p[a, b] / p[:, b].sum(), p[a, b] / p[a].sum()
        expected = -sum(q.log() for q in conditionals)
        torch.testing.assert_close(PseudoLikelihood().per_row(energy, row, None)[0], expected)
        # g(u) = 1 / (1 + u) at the ratios to both neighbours.
        ratios = p[a, b] / p[1 - a, b], p[a, b] / p[a, 1 - b]
        expected = sum((1 / (1 + u)) ** 2 for u in ratios)
        torch.testing.assert_close(RatioMatching().per_row(energy, row, None)[0], expected)
    energy = Network(9, OneHotGroups(3))
    p = distribution(energy, TRIPLES).reshape(3, 3, 3)
    pseudo, ratio = 0.0, 0.0
    values = TRIPLES.unflatten(-1, (3, 3)).argmax(-1)
    place = tuple(values.t())
    for d in range(3):
        across = p.movedim(d, -1)[tuple(v for k, v in enumerate(place) if k != d)]
        here = across.gather(1, values[:, d : d + 1])
        pseudo = pseudo - (here[:, 0] / across.sum(1)).log()
        # The value itself is no change: g(1)^2 = 1/4 of it is taken off.
        ratio = ratio + (across / (across + here)).square().sum(1) - 0.25
    batch = Batch(None, TRIPLES)
    torch.testing.assert_close(PseudoLikelihood().per_row(energy, batch, None), pseudo)
    torch.testing.assert_close(RatioMatching().per_row(energy, batch, None), ratio)


@objectives
def test_bits_are_sites_of_two_categories(objective):
    """Each bit written as a group of two gives the same, with the same sites picked."""

    class Twofold(Network):
        def forward(self, x):
            return super().forward(x.unflatten(-1, (-1, 2))[..., 1])

    twofold = Twofold(4)
    twofold.support = OneHotGroups(2)
    pairs = torch.stack([1 - BITS, BITS], -1).flatten(1)
    found = objective.per_row(twofold, Batch(None, pairs), seeded())
    torch.testing.assert_close(found, objective.per_row(Network(4), Batch(None, BITS), seeded()))


@pytest.mark.parametrize("objective", [PseudoLikelihood, RatioMatching])
def test_some_sites_stand_for_all_on_average(objective):
    energy, rows = machine(5), all_states(5).double()
    batch = Batch(None, rows.repeat(400, 1))
    some = objective(2).per_row(energy, batch, seeded()).detach().reshape(400, -1).mean(1)
    every = objective().per_row(energy, Batch(None, rows), None).detach().mean()
    assert abs(float(some.mean() - every)) < 4 * float(some.std()) / math.sqrt(400)


@pytest.mark.parametrize("objective", [PseudoLikelihood(), RatioMatching()], ids=lambda o: type(o).__name__)
@energies
def test_the_objectives_are_least_at_the_truth(make, states, objective):
    """Exactly, as every state counts by its probability: no gradient there, and a higher mean elsewhere."""
    p, batch = distribution(make(), states), Batch(None, states)

    def mean(energy):
        return objective.per_row(energy, batch, None) @ p

    energy = make()
    for grad in torch.autograd.grad(
        mean(energy), list(energy.parameters()), materialize_grads=True, allow_unused=True
    ):
        assert float(grad.abs().max()) < 1e-12
    best = float(mean(energy).detach())
    for seed in range(5):
        other = make()
        with torch.no_grad():
            for i, w in enumerate(other.parameters()):
                w.add_(0.3 * double(*w.shape, seed=40 * seed + i))
        assert float(mean(other).detach()) > best


# -- learning machines ------------------------------------------------------------------------------------


def likelihood(rows: torch.Tensor):
    return lambda energy: -energy.log_prob(rows)


def exact_solution(rows: torch.Tensor) -> BoltzmannMachine:
    found = BoltzmannMachine(rows.shape[1]).double()
    minimise(likelihood(rows), found)
    return found


@pytest.mark.parametrize("objective", [PseudoLikelihood(), RatioMatching()], ids=lambda o: type(o).__name__)
def test_a_visible_machine_is_learned_as_well_as_by_exact_likelihood(objective):
    """The two estimates differ by no more than four standard errors of the difference, and neither from the
    truth by more than four of its own."""
    truth, states = machine(5), all_states(5).double()
    rows = draws(truth, states, 5000)
    exact, found = exact_solution(rows), BoltzmannMachine(5).double()

    def loss(energy):
        return objective.per_row(energy, Batch(None, rows), None)

    minimise(loss, found)
    ours, theirs = influence(loss, truth), influence(likelihood(rows), truth)
    for gap, parts in (
        (flat(found) - flat(truth), ours),
        (flat(exact) - flat(truth), theirs),
        (flat(found) - flat(exact), ours - theirs),
    ):
        assert (gap.abs() < 4 * parts.std(0) / math.sqrt(len(rows)) + 1e-6).all()
    assert float(ours.std(0).max()) / math.sqrt(len(rows)) < 0.25


@pytest.mark.parametrize("kernel", [SingleSiteGibbs(), GibbsWithGradients()], ids=["gibbs", "gradients"])
def test_persistent_chains_reach_the_solution_of_exact_likelihood(kernel):
    """The mean of the last weights is nearer to it than half a standard error."""
    truth, states = machine(5), all_states(5).double()
    rows = draws(truth, states, 2000)
    exact, found = exact_solution(rows), BoltzmannMachine(5).double()
    error = influence(likelihood(rows), exact).std(0) / math.sqrt(len(rows))
    start = ReplayBuffer(BernoulliEnergy(torch.full((5,), 0.5).double()), 2000, 2000, restart=0.0)
    objective, generator = ContrastiveDivergence(kernel, 1, start), seeded()
    optimiser, trained = torch.optim.Adam(found.parameters(), 0.03), []
    for step in range(500):
        optimiser.zero_grad()
        objective(found, Batch(None, rows), generator).value.backward()
        optimiser.step()
        if step >= 250:
            trained.append(flat(found))
    gap = (torch.stack(trained).mean(0) - flat(exact)).abs()
    assert (gap < 0.5 * error).all()


def test_clamped_and_free_chains_give_the_gradient_of_the_likelihood():
    energy = machine(3, 2)
    rows = draws(energy, all_states(5).double(), 50)[:, :3]
    (-energy.log_prob(rows).mean()).backward()
    expected = torch.cat([w.grad.flatten() for w in energy.parameters()])
    objective, found = BoltzmannLearning(SingleSiteGibbs(), 40, n_clamped=40), []
    for seed in range(60):
        energy.zero_grad()
        objective(energy, Batch(None, rows), seeded(seed)).value.backward()
        found.append(torch.cat([w.grad.flatten() for w in energy.parameters()]))
    found = torch.stack(found)
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - expected).abs() < 4.5 * error).all()
    assert float(error.norm()) < 0.3 * float(expected.norm())


def parity() -> tuple[torch.Tensor, torch.Tensor]:
    """Three bits that add up to an even number nine times in ten: all pairs of them are independent."""
    states = all_states(3)
    even = states.sum(1) % 2 == 0
    return states, torch.where(even, 0.9, 0.1) / 4


def divergence(energy: BoltzmannMachine, states: torch.Tensor, p: torch.Tensor) -> float:
    return float((p * (p.log() - energy.log_prob(states).detach())).sum())


def test_hidden_units_learn_what_pairs_do_not_show():
    """The best machine of the three bits alone is the uniform distribution, 0.368 nats from the truth. With hidden
    units at least half of that goes (of six seeds none was left with more than 0.17)."""
    states, p = parity()
    rows = states.repeat_interleave((40 * p).round().long(), 0).repeat(10, 1)
    assert divergence(exact_solution(rows.double()), states.double(), p.double()) == pytest.approx(0.368, abs=1e-3)
    energy = BoltzmannMachine(3, 3)
    with torch.no_grad():
        # At zero the gradient is zero too: parity is far from what pairs can tell.
        energy.couplings.normal_(0, 1.5)
    start = ReplayBuffer(BernoulliEnergy(torch.full((6,), 0.5)), 400, 400, restart=0.0)
    objective = BoltzmannLearning(SingleSiteGibbs(), 1, start, n_clamped=3)
    Trainer(Plan(max_epochs=500, batch_size=400, learning_rate=0.1)).fit(energy, objective, Batch(None, rows))
    assert divergence(energy, states, p) < 0.5 * 0.368


@pytest.mark.parametrize("objective", [PseudoLikelihood(), RatioMatching(2)], ids=lambda o: type(o).__name__)
def test_the_training_loop_takes_the_objectives(objective):
    """A network of bits, whose energy knows no closed form."""
    truth, energy = Network(4), Network(4)
    rows = draws(truth, BITS, 2000)
    with torch.no_grad():
        for i, w in enumerate(energy.parameters()):
            w.add_(0.5 * double(*w.shape, seed=70 + i))
    p = distribution(truth, BITS)

    def gap():
        return float((p * (p / distribution(energy, BITS)).log()).sum())

    before = gap()
    Trainer(Plan(max_epochs=40, batch_size=200, learning_rate=0.02)).fit(energy, objective, Batch(None, rows))
    assert gap() < 0.02 < before


# -- what is refused --------------------------------------------------------------------------------------


def test_annealing_of_bits_asks_for_a_discrete_kernel():
    with pytest.raises(ValueError, match="HMC moves in continuous space"):
        annealed_importance_sampling(machine(4), BernoulliEnergy(torch.full((4,), 0.5).double()))


@pytest.mark.parametrize(
    "objective",
    [
        ScoreMatching(),
        SlicedScoreMatching(),
        DenoisingScoreMatching(),
        SteinDiscrepancy(nn.Identity()),
        EnergyDiscrepancy(),
        ConditionalNCE(),
    ],
    ids=lambda o: type(o).__name__,
)
def test_objectives_of_continuous_values_are_refused_bits(objective):
    with pytest.raises(ValueError, match="RatioMatching or PseudoLikelihood"):
        objective(machine(4), Batch(None, BITS))


def test_what_is_not_made_of_sites_is_refused():
    bad = BITS.clone()
    bad[3, 2] = 0.5
    for call in (
        lambda: PseudoLikelihood()(machine(4), Batch(None, bad)),
        lambda: RatioMatching()(machine(4), Batch(None, bad)),
        lambda: run_chain(SingleSiteGibbs(), machine(4), bad, 1),
        lambda: ContrastiveDivergence(SingleSiteGibbs(), 1)(machine(4), Batch(None, bad)),
        lambda: BoltzmannLearning()(machine(4, 2), Batch(None, bad)),
    ):
        with pytest.raises(ValueError, match=r"bits must be 0 or 1, got 0\.5"):
            call()
    bad[3, 2] = math.nan
    with pytest.raises(ValueError, match="bits must be 0 or 1"):
        PseudoLikelihood()(machine(4), Batch(None, bad))
    triples = TRIPLES.clone()
    triples[0, 1] = 1.0
    for wrong in (triples, TRIPLES[:, :8]):
        with pytest.raises(ValueError, match="each group of 3 entries"):
            PseudoLikelihood()(Network(9, OneHotGroups(3)), Batch(None, wrong))
    with pytest.raises(ValueError, match="bits or OneHotGroups"):
        PseudoLikelihood()(GaussianEnergy(torch.zeros(2), torch.ones(2)), Batch(None, torch.zeros(1, 2)))


def test_machines_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"4 units, got x of width 5"):
        machine(4)(torch.zeros(1, 5).double())
    with pytest.raises(ValueError, match="BoltzmannLearning"):
        PseudoLikelihood()(machine(4, 2), Batch(None, BITS))
    with pytest.raises(ValueError, match="4 visible units, got data of width 3"):
        BoltzmannLearning()(machine(4, 2), Batch(None, BITS[:, :3]))
    with pytest.raises(TypeError, match="BoltzmannMachine, got Network"):
        BoltzmannLearning()(Network(4), Batch(None, BITS))
    with pytest.raises(ValueError, match="at least one visible unit"):
        BoltzmannMachine(0)
    with pytest.raises(ValueError, match=r"2\^30 configurations"):
        BoltzmannMachine(30).log_normaliser()
    with pytest.raises(ValueError, match="symmetric"):
        BoltzmannMachine.from_ising(torch.ones(2, 2), torch.zeros(2))
    with pytest.raises(ValueError, match="at least 2 categories"):
        OneHotGroups(1)
    with pytest.raises(ValueError, match="n_sites"):
        PseudoLikelihood(0)
    with pytest.raises(ValueError, match="above 0 and below 1"):
        BernoulliEnergy(torch.tensor([0.0, 0.5]))
    with pytest.raises(ValueError, match="no gradient flows"):
        run_chain(GibbsWithGradients(), machine(4), BITS, 2, differentiable_steps=1)
