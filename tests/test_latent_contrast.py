"""Energies that correct a generator by chains behind it: what the chains do, and what stays as it is."""

import copy
import math

import pytest
import torch
from torch import nn

from parts import ORTHOGONAL, SHIFT, linear_generator, marginal_of, perturbed, seeded
from thalweg.energies import (
    BernoulliEnergy,
    Energy,
    FromBothNoises,
    GaussianEnergy,
    GaussianMixtureEnergy,
    Generator,
    PerceptronEnergy,
    generating_network,
)
from thalweg.objectives import Batch, LatentContrastiveDivergence
from thalweg.sampling import HMC, MALA, Langevin, ReplayBuffer, run_chain
from thalweg.training import Plan, Trainer


class Level(Energy):
    """The same energy everywhere."""

    def forward(self, x):
        return 3.0 + 0.0 * x.sum(-1)


class Parabola(Energy):
    """E(x) = a x^2 + b x + c, in each coordinate."""

    def __init__(self, a: float = 0.0, b: float = 0.0, c: float = 0.0):
        super().__init__()
        self.a, self.b, self.c = nn.Parameter(torch.tensor(a)), nn.Parameter(torch.tensor(b)), c

    def forward(self, x):
        return (self.a * x.square() + self.b * x).sum(-1) + self.c


def buffer(n_latent: int, size: int, n_chains: int | None = None, restart: float = 0.0) -> ReplayBuffer:
    noise = GaussianMixtureEnergy(torch.zeros(1, n_latent), torch.ones(1, n_latent))
    return ReplayBuffer(noise, size, n_chains or size, restart)


def small(energy_l2: float = 0.0, restart: float = 0.0) -> LatentContrastiveDivergence:
    """Of rows of 2 numbers, all chains in every update."""
    torch.manual_seed(7)
    generator = perturbed(Generator(generating_network((2,), 3, (6,)), 3))
    return LatentContrastiveDivergence(generator, MALA(0.1), 3, buffer(3, 12, restart=restart), energy_l2)


def data(n: int = 8) -> Batch:
    return Batch(None, torch.randn(n, 2, generator=seeded(1)))


def perceptron() -> PerceptronEnergy:
    torch.manual_seed(9)
    return perturbed(PerceptronEnergy(2, (6,)))


# -- the loss ---------------------------------------------------------------------------------------------


def test_the_loss_is_the_energy_of_the_data_less_that_of_what_is_made_of_the_chains():
    objective, energy = small(), perceptron()
    before = objective.start.positions.clone()
    loss = objective.per_row(energy, data(), seeded(2))
    z = objective.start.positions
    assert bool((z != before).any())
    negative = energy(objective.generator(z)).mean()
    torch.testing.assert_close(loss, energy(data().y) - negative)
    assert objective.metrics["energy gap"] == pytest.approx(float(loss.detach().mean()), rel=1e-4)
    assert objective.metrics["size of latent numbers"] == pytest.approx(float(z.square().mean().sqrt()), rel=1e-4)
    assert 0 < objective.metrics["acceptance"] <= 1


def test_the_chains_are_those_of_the_normal_energy_of_z_and_the_energy_of_what_is_made():
    objective, energy = small(), perceptron()

    class Behind(Energy):
        def forward(self, z):
            return 0.5 * z.square().sum(-1) + energy(objective.generator(z))

    numbers = seeded(2)
    started = copy.deepcopy(objective.start).draw(None, data().y, numbers)
    ended = run_chain(objective.kernel, Behind(), started.position, objective.n_steps, numbers).position
    objective.per_row(energy, data(), seeded(2))
    torch.testing.assert_close(objective.start.positions[started.places], ended)


def test_no_gradient_flows_through_the_chains_or_into_the_generator():
    objective, energy = small(), perceptron()
    weights = [w for name, w in energy.named_parameters() if name != "out.bias"]
    found = torch.autograd.grad(objective(energy, data(), seeded(2)).value, weights)
    made = objective.generator(objective.start.positions).detach()
    wanted = torch.autograd.grad(energy(data().y).mean() - energy(made).mean(), weights)
    torch.testing.assert_close(found, wanted)
    objective(energy, data(), seeded(2)).value.backward()
    assert all(w.grad is None and w.requires_grad for w in objective.generator.parameters())
    assert not objective.start.positions.requires_grad


def test_a_constant_added_to_the_energy_does_not_change_the_loss():
    wanted = small().per_row(Parabola(0.3, 0.2), data(), seeded(2))
    found = small().per_row(Parabola(0.3, 0.2, 5.0), data(), seeded(2))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_squares_of_both_energies_are_added_by_their_weight():
    energy, plain, squared = perceptron(), small(), small(0.3)
    change = squared.per_row(energy, data(), seeded(2)) - plain.per_row(energy, data(), seeded(2))
    made = energy(squared.generator(squared.start.positions))
    torch.testing.assert_close(change, 0.3 * (energy(data().y).square() + made.square().mean()))


def test_the_energy_is_left_in_the_mode_that_it_was_in():
    energy, objective = perceptron(), small()
    for mode in (True, False):
        objective.per_row(energy.train(mode), data(), seeded(2))
        assert energy.training == mode


def test_chains_rest_in_evaluation():
    objective = small().eval()
    before = objective.start.positions.clone()
    objective.per_row(perceptron(), data(), seeded(2))
    assert torch.equal(objective.start.positions, before)


# -- the chains -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [MALA(0.5), HMC(0.5, 3)])
@pytest.mark.parametrize("start", [None, 2.0], ids=["from noise", "from afar"])
def test_behind_a_constant_energy_the_latent_numbers_are_normal(kernel, start):
    n = 4000
    objective = LatentContrastiveDivergence(nn.Linear(2, 2), kernel, 10, buffer(2, n))
    if start is not None:
        objective.start.positions.fill_(start)
    for seed in range(3):
        loss = objective.per_row(Level(), data(), seeded(seed))
        torch.testing.assert_close(loss, torch.zeros(8))
    z = objective.start.positions
    assert (z.mean(0).abs() < 4 / math.sqrt(n)).all()
    assert ((z.var(0) - 1).abs() < 4 * math.sqrt(2 / n)).all()


def test_behind_both_noises_of_a_generator_are_draws_of_its_density():
    """Those of probabilistic PCA, tilted by |x|^2 / 2: a Gaussian whose precision is greater by 1."""
    noisy = linear_generator(ORTHOGONAL, SHIFT, 0.5).float()
    n = 4000
    objective = LatentContrastiveDivergence(FromBothNoises(noisy), MALA(0.2), 60, buffer(5, n))
    objective.check(Parabola(0.5), Batch(None, torch.zeros(8, 3)))
    objective.per_row(Parabola(0.5), Batch(None, torch.zeros(8, 3)), seeded(3))
    drawn = FromBothNoises(noisy)(objective.start.positions).detach().double()
    density = marginal_of(noisy.double())
    covariance = torch.linalg.inv(density.precision_matrix.detach() + torch.eye(3, dtype=torch.float64))
    mean = covariance @ density.precision_matrix.detach() @ SHIFT
    variances = covariance.diagonal()
    assert ((drawn.mean(0) - mean).abs() < 4.5 * (variances / n).sqrt()).all()
    errors = ((covariance.square() + torch.outer(variances, variances)) / n).sqrt()
    assert ((torch.cov(drawn.T) - covariance).abs() < 4.5 * errors).all()


# -- training ---------------------------------------------------------------------------------------------


def test_the_tilt_that_is_learned_turns_the_generators_density_into_that_of_the_data():
    """N(0, 1) tilted by a x^2 + b x is N(-b v, v), v = 1 / (1 + 2 a): maximum likelihood matches the moments."""
    y = 0.5 + 0.7 * torch.randn(2000, 1, generator=seeded(1))
    generator = nn.Linear(2, 1)
    with torch.no_grad():
        generator.weight.copy_(torch.tensor([[0.6, 0.8]]))
        generator.bias.zero_()
    energy = Parabola()
    objective = LatentContrastiveDivergence(generator, MALA(0.3), 5, buffer(2, 1000, restart=0.0))
    plan = Plan(max_epochs=1000, max_steps=400, batch_size=500, learning_rate=0.03, seed=0)
    history = Trainer(plan).fit(energy, objective, Batch(None, y))
    assert not history.events
    variance = 1 / (1 + 2 * float(energy.a.detach()))
    mean = -float(energy.b.detach()) * variance
    assert mean == pytest.approx(float(y.mean()), abs=0.05)
    assert variance == pytest.approx(float(y.var()), rel=0.1)
    drawn = generator(objective.start.positions).detach()
    assert float(drawn.mean()) == pytest.approx(float(y.mean()), abs=4 * 0.7 / math.sqrt(1000))
    assert float(drawn.std()) == pytest.approx(float(y.std()), rel=0.12)


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_training_leaves_the_generator_as_it_was_and_does_not_own_it(ema_decay):
    energy, objective = perceptron(), small(restart=0.1)
    objective.generator.train()
    before = copy.deepcopy(objective.generator.state_dict())
    assert "network.1.running_mean" in before
    assert list(objective.parameters()) == []
    assert not any("generator" in name for name in objective.state_dict())
    assert not any(part is objective.generator for part in objective.modules())
    plan = Plan(max_epochs=5, batch_size=16, learning_rate=1e-2, weight_decay=0.1, ema_decay=ema_decay, seed=0)
    was = [w.detach().clone() for w in energy.parameters()]
    Trainer(plan).fit(energy, objective, data(64))
    assert any(not torch.equal(a, b) for a, b in zip(was, energy.parameters(), strict=True))
    for name, value in objective.generator.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(w.grad is None for w in objective.generator.parameters())


class Stopped(Exception):
    pass


def test_an_interrupted_training_resumes_to_the_same_weights_and_chains(tmp_path):
    plan = Plan(max_epochs=4, batch_size=16, learning_rate=1e-2, checkpoint_seconds=0.0, ema_decay=0.9, seed=0)

    def run(stop_at: int | None = None, run_dir=None, resume: bool = False):
        energy, objective = perceptron(), small(restart=0.1)
        n_calls, original = 0, objective.per_row

        def counting(*arguments):
            nonlocal n_calls
            n_calls += 1
            if n_calls == stop_at:
                raise Stopped
            return original(*arguments)

        objective.per_row = counting
        history = Trainer(plan, run_dir=run_dir).fit(energy, objective, data(64), resume=resume)
        return {**energy.state_dict(), **objective.state_dict()}, history

    whole, history = run()
    with pytest.raises(Stopped):
        run(11, tmp_path)
    resumed, again = run(None, tmp_path, True)
    assert "start.positions" in whole
    assert whole.keys() == resumed.keys()
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key
    assert history.epochs == again.epochs


# -- refusals ---------------------------------------------------------------------------------------------


def test_what_does_not_fit_the_generator_is_refused_in_words():
    with pytest.raises(ValueError, match=r"makes rows of shape \[2\], and those of the data have shape \[3\]"):
        small().check(GaussianEnergy(torch.zeros(3), torch.ones(3)), Batch(None, torch.zeros(4, 3)))
    with pytest.raises(ValueError, match="for continuous values"):
        small().check(BernoulliEnergy(torch.tensor([0.2, 0.7])), Batch(None, torch.zeros(4, 2)))
    objective = small()
    objective.generator.train()
    objective.check(perceptron(), data())
    assert objective.generator.training
    assert int(objective.generator.network[1].num_batches_tracked) == 0


def test_the_data_are_spread_over_the_grid_that_they_are_rounded_to():
    seen = []

    class Watched(Energy):
        def forward(self, x):
            seen.append(x.detach())
            return x.sum(-1)

    noise = GaussianMixtureEnergy(torch.zeros(1, 2), torch.ones(1, 2))
    objective = LatentContrastiveDivergence(
        nn.Identity(), Langevin(0.01), 1, ReplayBuffer(noise, 10, 4), resolution=0.5
    )
    objective.per_row(Watched(), Batch(None, torch.zeros(2000, 2)), torch.Generator().manual_seed(0))
    data = seen[-1][:2000]
    assert float(data.abs().max()) <= 0.25
    # Of uniform noise of width 0.5; the standard error is 0.9 of it over the root of 4000.
    assert float(data.var()) == pytest.approx(1 / 48, rel=4 * 0.9 / 4000**0.5)
