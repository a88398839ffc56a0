"""Energies whose draws come from a generator that follows them: the score and the entropy of linear generators."""

import math

import pytest
import torch
from torch import nn

from parts import (
    ORTHOGONAL,
    SHIFT,
    gaussian,
    linear_generator,
    marginal_of,
    perturbed,
    posterior_precision,
    seeded,
)
from thalweg.energies import Energy, Generator, NoisyGenerator, PerceptronEnergy, generating_network, mlp
from thalweg.objectives import VERA, Batch
from thalweg.objectives.base import turn
from thalweg.training import Plan, Trainer

STD = 0.5


class Level(Energy):
    """The same energy everywhere."""

    def forward(self, x):
        return 0.0 * x.sum(-1)


def linear(width: float = 1.0, **settings) -> VERA:
    """Behind a linear generator, whose posterior is so many times as wide as z given x.

    Posteriors are drawn from round the z that x came from, and not round the mean of such z: with a width of 1 the
    weights of these draws have heavy tails, with more they are bounded.
    """
    objective = VERA(linear_generator(ORTHOGONAL, SHIFT, STD), penalty=0.0, **settings).double()
    with torch.no_grad():
        objective.posterior_log_std.copy_(-0.5 * posterior_precision(objective.generator).diagonal().log())
        objective.posterior_log_std.add_(math.log(width))
    return objective


def nothing(n: int) -> Batch:
    return Batch(None, torch.zeros(n, 3, dtype=torch.float64))


def in_standard_errors(found: list[torch.Tensor], wanted: torch.Tensor) -> torch.Tensor:
    """How far the mean of independent estimates is from what they estimate, at most over the entries."""
    each = torch.stack(found).detach()
    errors = each.std(0) / math.sqrt(len(each))
    return ((each.mean(0) - wanted).abs() / errors).max()


# -- the gradient of the entropy --------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1.5, 2.0, 3.0])
def test_the_score_of_draws_of_a_linear_generator_is_that_of_their_density(width):
    """It is -(W W' + std^2 I)^-1 (x - b); the weights make up for where the z are drawn."""
    objective, n = linear(width, n_draws=4000), 30
    z = torch.randn(4, 2, generator=seeded(), dtype=torch.float64)
    x = objective.generator.noisy(objective.generator(z), seeded(1)).detach()
    found = objective.score(z.repeat(n, 1), x.repeat(n, 1), seeded(2))
    assert not found.requires_grad
    wanted = -(x - SHIFT) @ marginal_of(objective.generator).precision_matrix.detach()
    assert in_standard_errors(list(found.reshape(n, 4, 3)), wanted) < 5
    assert float((found.reshape(n, 4, 3).mean(0) - wanted).abs().max()) < 0.05


def test_the_score_of_images_is_that_of_the_same_numbers_in_a_row():
    network = perturbed(generating_network((8,), 2, (6,), normalise=False))
    rows = VERA(NoisyGenerator(network, 2, 0.3), n_draws=7)
    images = VERA(NoisyGenerator(nn.Sequential(network, nn.Unflatten(1, (2, 2, 2))), 2, 0.3), n_draws=7)
    z = torch.randn(5, 2, generator=seeded())
    x = rows.generator.noisy(rows.generator(z), seeded(1)).detach()
    wanted = rows.score(z, x, seeded(2))
    torch.testing.assert_close(images.score(z, x.reshape(5, 2, 2, 2), seeded(2)), wanted.reshape(5, 2, 2, 2))


def test_with_one_draw_of_z_the_score_is_that_given_this_z():
    objective = linear(n_draws=1)
    z = torch.randn(5, 2, generator=seeded(), dtype=torch.float64)
    x = objective.generator.noisy(objective.generator(z), seeded(1)).detach().requires_grad_(True)
    # Drawn at 1.5 times the posterior's width.
    other = z + 1.5 * objective.posterior_log_std.detach().exp() * torch.randn(
        5, 2, generator=seeded(2), dtype=torch.float64
    )
    given = objective.generator.log_prob_given(x, objective.generator(other)).sum()
    (wanted,) = torch.autograd.grad(given, x)
    torch.testing.assert_close(objective.score(z, x.detach(), seeded(2)), wanted)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_a_generator_without_an_energy_goes_up_its_entropy(weight):
    """log det(W W' + std^2 I) / 2 in closed form, for the weights, the shift and the noise."""
    objective = linear(2.0, n_draws=200, entropy_weight=weight)
    weights = list(objective.generator.parameters())
    entropy = marginal_of(objective.generator).entropy()
    wanted = torch.autograd.grad(-weight * entropy, weights, materialize_grads=True)
    found: list[list[torch.Tensor]] = [[] for _ in weights]
    for seed in range(30):
        loss = objective.player_loss("generator", Level(), nothing(200), seeded(seed)).mean()
        for kept, gradient in zip(found, torch.autograd.grad(loss, weights), strict=True):
            kept.append(gradient)
    for kept, exact in zip(found, wanted, strict=True):
        assert in_standard_errors(kept, exact) < 5
        # Close enough for the signs to be told.
        assert float((torch.stack(kept).mean(0) - exact).abs().max()) < 0.2 * weight


def test_the_generators_other_term_is_the_energy_of_its_draws():
    objective, energy = linear(entropy_weight=0.0), gaussian(3).double()
    loss = objective.player_loss("generator", energy, nothing(6), seeded(4))
    torch.testing.assert_close(loss, energy(objective.generator.draw(6, seeded(4))))
    both = linear(n_draws=4).player_loss("generator", energy, nothing(6), seeded(4))
    alone = linear(n_draws=4).player_loss("generator", Level(), nothing(6), seeded(4))
    torch.testing.assert_close(both - alone, loss)


def test_where_the_draws_have_the_density_of_the_energy_the_generator_rests():
    """KL(q || exp(-E)) has its minimum there: the energy's gradient and that of the entropy cancel."""
    objective = linear(2.0, n_draws=200)
    density = marginal_of(objective.generator)

    class Same(Energy):
        def forward(self, x):
            apart = x - SHIFT
            return 0.5 * (apart @ density.precision_matrix.detach() * apart).sum(-1)

    weights, found = list(objective.generator.parameters()), []
    for seed in range(30):
        loss = objective.player_loss("generator", Same(), nothing(200), seeded(seed)).mean()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
    assert in_standard_errors(found, torch.zeros_like(found[0])) < 5
    assert float(torch.stack(found).mean(0).abs().max()) < 0.1


# -- the posterior ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_the_posteriors_loss_is_lowest_at_the_exact_standard_deviations(factor):
    """Its gradient in log std_i is std_i^2 M_ii - 1, where M = I + W'W / std^2 is the precision of z given x."""
    objective = linear(factor)
    found = []
    for seed in range(40):
        loss = objective.player_loss("posterior", Level(), nothing(500), seeded(seed)).mean()
        found += torch.autograd.grad(loss, objective.posterior_log_std)
    wanted = torch.full((2,), factor**2 - 1, dtype=torch.float64)
    assert in_standard_errors(found, wanted) < 4
    assert float((torch.stack(found).mean(0) - wanted).abs().max()) < 0.1


def test_the_posteriors_loss_bounds_the_negative_log_likelihood_of_its_draws():
    """At z itself, without a width, it is -log q(x, z) less the entropy, but for constants of Gaussians."""
    objective, log_std = linear(), -12.0
    objective.posterior_log_std.data.fill_(log_std)
    numbers = seeded(5)
    z = torch.randn(6, 2, generator=numbers, dtype=torch.float64)
    means = objective.generator(z)
    x = objective.generator.noisy(means, numbers)
    wanted = -objective.generator.log_prob_given(x, means) + 0.5 * z.square().sum(1) - 2 * log_std
    loss = objective.player_loss("posterior", Level(), nothing(6), seeded(5))
    torch.testing.assert_close(loss.detach(), wanted.detach(), rtol=1e-3, atol=1e-3)


# -- the game ---------------------------------------------------------------------------------------------


def test_energy_generator_and_posterior_move_in_turn_at_their_own_rates():
    objective = VERA(
        linear_generator(ORTHOGONAL, SHIFT, STD), learning_rate=0.1, generator_learning_rate=0.2, betas=(0.3, 0.4)
    )
    players = objective.players(perturbed(PerceptronEnergy(3, (4,))))
    assert [players[turn(players, n)[0]].name for n in range(4)] == ["energy", "generator", "posterior", "energy"]
    assert [player.learning_rate for player in players] == [0.1, 0.2, 0.1]
    assert all(player.betas == (0.3, 0.4) for player in players)
    wide = VERA(objective.generator, posterior_std=0.4).posterior_log_std.detach().exp()
    torch.testing.assert_close(wide, torch.full((2,), 0.4))


def test_the_energys_loss_is_a_difference_and_half_the_squared_gradient_at_the_data():
    energy = gaussian(3).double()
    batch = Batch(None, torch.randn(6, 3, generator=seeded(1), dtype=torch.float64))
    plain = linear().per_row(energy, batch, seeded(2))
    torch.testing.assert_close(plain, energy(batch.y) - energy(linear().generator.draw(6, seeded(2))))
    objective = linear()
    objective.penalty = 0.7
    gradient = (batch.y - energy.mean) / energy.std.square()
    penalised = objective.per_row(energy, batch, seeded(2))
    torch.testing.assert_close(penalised - plain, 0.35 * gradient.square().sum(1))


def test_noise_of_its_own_at_each_place_is_learned_too():
    network = generating_network((3,), 2, (4,), normalise=False)
    objective, energy = VERA(NoisyGenerator(network, 2, event=(3,))), Level()
    batch = Batch(None, torch.zeros(5, 3))
    objective.player_loss("generator", energy, batch, seeded()).mean().backward()
    assert objective.generator.place.grad.shape == (3,)
    assert 0.05 < objective.metrics["standard deviation of the generator"] < 0.2


def test_what_can_not_be_is_refused_in_words():
    with pytest.raises(TypeError, match="take a NoisyGenerator, got Generator"):
        VERA(Generator(nn.Linear(2, 3), 2))
    noisy = NoisyGenerator(nn.Linear(2, 3), 2)
    for settings in ({"entropy_weight": -0.1}, {"penalty": -0.1}, {"penalty": math.nan}):
        with pytest.raises(ValueError, match="must not be negative"):
            VERA(noisy, **settings)
    for settings in ({"n_draws": 0}, {"posterior_std": 0.0}):
        with pytest.raises(ValueError, match="n_draws must be at least 1 and posterior_std positive"):
            VERA(noisy, **settings)
    with pytest.raises(ValueError, match="makes rows of shape"):
        VERA(noisy).check(PerceptronEnergy(2, (4,)), Batch(None, torch.zeros(4, 2)))


def test_a_short_training_brings_the_density_of_the_energy_near_that_of_the_data():
    mean, std = 0.5, 0.8
    data = mean + std * torch.randn(2000, 1, generator=seeded(1))
    torch.manual_seed(0)
    energy = PerceptronEnergy(1, (32,))
    generator = NoisyGenerator(nn.Sequential(mlp([1, 32]), nn.Linear(32, 1)), 1, 0.3)
    objective = VERA(generator, penalty=0.02, learning_rate=2e-2)
    grid = torch.linspace(-6, 7, 1301).unsqueeze(1)
    truth = torch.distributions.Normal(mean, std).log_prob(grid[:, 0])

    def divergence() -> float:
        with torch.no_grad():
            log_p = torch.log_softmax(-energy(grid), 0) - math.log(0.01)
        return float((truth.exp() * (truth - log_p)).sum() * 0.01)

    before = divergence()
    plan = Plan(max_epochs=1000, max_steps=1200, batch_size=128, seed=0)
    history = Trainer(plan).fit(energy, objective, Batch(None, data))
    assert not history.events
    assert divergence() < 0.1 < 1.0 < before
    drawn = generator.draw(4000, seeded(1)).detach()
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.15)
    assert float(drawn.std()) == pytest.approx(std, rel=0.2)
