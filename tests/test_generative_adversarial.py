"""Generators and autoencoders: the published identities of GAN, EBGAN, BEGAN, MAGAN and KALE."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from parts import perturbed, seeded
from thalweg.energies import (
    AutoencoderEnergy,
    Energy,
    GaussianEnergy,
    Generator,
    ModuleEnergy,
    NetworkEnergy,
    NoisyGenerator,
    PerceptronEnergy,
    autoencoder_energy,
    encoding_network,
    generating_network,
    mlp,
)
from thalweg.evaluation.row_checks import check_variety
from thalweg.objectives import BEGAN, EBGAN, GAN, KALE, MAGAN, VERA, Batch, pulling_away_term
from thalweg.objectives.base import turn
from thalweg.objectives.generative_adversarial import gradient_penalty, linearised_exp
from thalweg.sampling import LatentSampler
from thalweg.training import Plan, Trainer
from thalweg.training.loop import _Run


class Norm(Energy):
    """E(x) = weight |x|^2, whose value at any row is known by hand."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x):
        return self.weight * x.square().sum(-1)


class Fixed(Generator):
    """Makes these rows, whatever z is; they are its parameters."""

    def __init__(self, rows: torch.Tensor):
        super().__init__(nn.Identity(), 1)
        self.rows = nn.Parameter(rows)

    def draw(self, n, generator=None):
        return self.rows[:n]


def rows_of(*energies: float) -> torch.Tensor:
    """Rows whose energy under ``Norm()`` is this."""
    return torch.tensor(energies).sqrt().unsqueeze(1) * torch.tensor([1.0, 0.0])


def data_of(*energies: float) -> Batch:
    return Batch(None, rows_of(*energies))


def plain_generator(width: int = 8) -> Generator:
    return perturbed(Generator(generating_network((2,), 2, (width,)), 2))


def gradients(loss: torch.Tensor, module: nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(module.parameters()), allow_unused=True))


OBJECTIVES = {
    "GAN": (lambda g: GAN(g), lambda: PerceptronEnergy(2, (6,))),
    "EBGAN": (lambda g: EBGAN(g, 5.0, 0.3), lambda: autoencoder_energy((2,), 2, (6,))),
    "BEGAN": (lambda g: BEGAN(g, 0.7, 0.1), lambda: autoencoder_energy((2,), 2, (6,), distance="absolute")),
    "MAGAN": (lambda g: MAGAN(g, 3, 4), lambda: autoencoder_energy((2,), 2, (6,), distance="euclidean")),
    "KALE": (lambda g: KALE(g, 0.5), lambda: PerceptronEnergy(2, (6,))),
    "VERA": (lambda g: VERA(NoisyGenerator(g.network, 2), n_draws=4), lambda: PerceptronEnergy(2, (6,))),
}
every_objective = pytest.mark.parametrize("name", OBJECTIVES)
# The generator of VERA follows a gradient that is not that of its loss's value.
with_a_loss_that_is_followed = pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "VERA"])


# -- autoencoders and generators --------------------------------------------------------------------------


def test_the_energy_is_the_distance_of_the_reconstruction():
    x = torch.randn(5, 3, generator=seeded())
    squared, euclidean, absolute = (
        autoencoder_energy((3,), 2, (4,), distance=distance) for distance in ("squared", "euclidean", "absolute")
    )
    for other in (euclidean, absolute):
        other.load_state_dict(squared.state_dict())
    apart = squared.decoder(squared.encoder(x)) - x
    torch.testing.assert_close(squared(x), apart.square().sum(1))
    torch.testing.assert_close(euclidean(x), apart.square().sum(1).sqrt())
    torch.testing.assert_close(absolute(x), apart.abs().mean(1))
    torch.testing.assert_close(squared.reconstruct(x) - x, apart)
    torch.testing.assert_close(squared.codes(x), squared.encoder(x))
    energies, codes = squared.energies_and_codes(x)
    torch.testing.assert_close(energies, squared(x))
    torch.testing.assert_close(codes, squared.codes(x))


@pytest.mark.parametrize(("distance", "pushes"), [("squared", False), ("euclidean", True), ("absolute", True)])
def test_only_the_squared_distance_has_no_gradient_in_the_weights_near_a_perfect_reconstruction(distance, pushes):
    """The decoder gives back all but a thousandth of the input."""
    decoder = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        decoder.weight.copy_(0.999 * torch.eye(2))
    energy = AutoencoderEnergy(nn.Identity(), decoder, distance=distance)
    (grad,) = gradients(energy(torch.tensor([[1.0, 2.0]])).sum(), energy)
    assert (float(grad.norm()) > 0.5) == pushes
    exact = AutoencoderEnergy(nn.Identity(), nn.Linear(2, 2, bias=False), distance=distance)
    nn.init.eye_(exact.decoder.weight)
    (grad,) = gradients(exact(torch.tensor([[1.0, 2.0]])).sum(), exact)
    assert bool(torch.isfinite(grad).all())


def test_an_autoencoder_that_gives_back_its_input_has_no_energy():
    energy = AutoencoderEnergy(nn.Identity(), nn.Identity())
    assert not energy(torch.randn(4, 3)).any()
    with pytest.raises(ValueError, match="distance must be one of squared, euclidean, absolute"):
        AutoencoderEnergy(nn.Identity(), nn.Identity(), distance="cosine")


@pytest.mark.parametrize(
    ("event", "width"), [((3,), None), ((1, 8, 8), None), ((1, 28, 28), 4), ((3, 16, 16), 4)], ids=str
)
def test_generators_and_autoencoders_have_the_shape_of_the_data(event, width):
    generator = Generator(generating_network(event, 5, (7,), width), 5)
    drawn = generator.draw(6, seeded())
    assert drawn.shape == (6, *event)
    energy = autoencoder_energy(event, 4, (7,), width)
    assert energy.codes(drawn).shape == (6, 4)
    assert energy.reconstruct(drawn.unflatten(0, (2, 3))).shape == (2, 3, *event)
    if len(event) == 3:
        assert bool(((drawn >= 0) & (drawn <= 1)).all())
    assert encoding_network(event, 1, (7,), width)(drawn).shape == (6, 1)


def test_draws_are_those_of_the_generator_of_random_numbers_and_of_no_other():
    generator = plain_generator()
    state = torch.get_rng_state()
    drawn = generator.draw(5, seeded(3))
    torch.testing.assert_close(drawn, generator.draw(5, seeded(3)))
    assert torch.equal(torch.get_rng_state(), state)
    z = torch.randn(5, 2, generator=seeded(3))
    torch.testing.assert_close(drawn, generator(z))
    torch.testing.assert_close(generator(z.reshape(5, 1, 2))[:, 0], drawn)


def test_convolutions_refuse_sides_that_can_not_be_halved_twice():
    with pytest.raises(ValueError, match="multiples of 4"):
        generating_network((1, 30, 28), 5, width=4)
    with pytest.raises(ValueError, match="multiples of 4"):
        encoding_network((7,), 5, width=4)


# -- the rules of the game --------------------------------------------------------------------------------


@every_objective
def test_each_players_loss_reaches_its_own_parameters_alone(name):
    make_objective, make_energy = OBJECTIVES[name]
    energy, objective = perturbed(make_energy()), make_objective(plain_generator())
    players = {player.name: player.parameters for player in objective.players(energy)}
    assert set(players) == {"energy", "generator"} | ({"posterior"} if name == "VERA" else set())
    batch = Batch(None, torch.randn(8, 2, generator=seeded(1)))
    constant = energy.out.bias if name == "VERA" else None
    for mover, weights in players.items():
        loss = objective.player_loss(mover, energy, batch, seeded())
        assert loss.shape == (8,)
        loss.mean().backward()
        assert all(w.grad is not None and (w is constant or w.grad.abs().sum() > 0) for w in weights)
        assert all(w.grad is None for rival in players if rival != mover for w in players[rival])
        for weight in weights:
            weight.grad = None
    owned = {id(w) for weights in players.values() for w in weights}
    assert owned == {id(w) for w in [*energy.parameters(), *objective.parameters()]}
    assert all(w.requires_grad for weights in players.values() for w in weights)


@with_a_loss_that_is_followed
def test_the_generators_gradient_flows_through_both_places_of_its_draw(name):
    """Its draw is what is reconstructed and what the reconstruction is compared with: finite differences agree."""
    make_objective, make_energy = OBJECTIVES[name]
    drawn = torch.randn(6, 2, generator=seeded(4), dtype=torch.float64)
    objective = make_objective(Fixed(drawn.clone())).double()
    energy = perturbed(make_energy()).double()
    batch, rows = Batch(None, torch.zeros(6, 2, dtype=torch.float64)), objective.generator.rows

    def value() -> torch.Tensor:
        return objective.player_loss("generator", energy, batch, None).mean()

    (found,) = torch.autograd.grad(value(), rows)
    step, wanted = 1e-6, torch.zeros_like(found)
    with torch.no_grad():
        for place in range(rows.numel()):
            ends = []
            for sign in (1, -1):
                rows.view(-1)[place] += sign * step
                ends.append(float(value()))
                rows.view(-1)[place] -= sign * step
            wanted.view(-1)[place] = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


def test_gan_losses_are_those_of_logistic_regression_with_minus_the_energy_as_logit():
    objective, batch = GAN(Fixed(rows_of(1.0, 3.0))), data_of(0.5, 2.0)
    logit_of_data, logit_of_draws = -torch.tensor([0.5, 2.0]), -torch.tensor([1.0, 3.0])
    wanted = -logit_of_data.sigmoid().log() - (1 - logit_of_draws.sigmoid()).log()
    torch.testing.assert_close(objective.per_row(Norm(), batch, None).detach(), wanted)
    found = objective.player_loss("generator", Norm(), batch, None).detach()
    torch.testing.assert_close(found, -logit_of_draws.sigmoid().log())


# -- EBGAN ------------------------------------------------------------------------------------------------


def test_draws_above_the_margin_have_no_gradient_and_the_hinge_is_of_each_draw():
    """The mean energy of the draws, 5, is above the margin: a hinge of the mean would leave the low draw alone."""
    energy, objective = Norm(), EBGAN(Fixed(rows_of(1.0, 9.0)), 4.0, 0.0)
    loss = objective.per_row(energy, data_of(0.5, 2.0), None)
    torch.testing.assert_close(loss.detach(), torch.tensor([0.5 + 3.0, 2.0 + 0.0]))
    # d/dw of w |x|^2 at each row, where w is 1.
    (grad,) = gradients(loss.sum(), energy)
    torch.testing.assert_close(grad, torch.tensor(0.5 + 2.0 - 1.0))
    assert objective.metrics["draws above the margin"] == 0.5
    above = EBGAN(Fixed(rows_of(5.0, 9.0)), 4.0, 0.0)
    (grad,) = gradients(above.per_row(energy, data_of(0.5, 2.0), None).sum(), energy)
    torch.testing.assert_close(grad, torch.tensor(2.5))
    assert above.metrics["draws above the margin"] == 1.0


def test_the_pulling_away_term_is_1_of_equal_directions_and_0_of_orthogonal_ones():
    alike = torch.tensor([[1.0, 2.0], [2.0, 4.0], [-0.5, -1.0]])
    torch.testing.assert_close(pulling_away_term(alike), torch.ones(3))
    torch.testing.assert_close(pulling_away_term(torch.diag(torch.tensor([1.0, 3.0, 0.2]))), torch.zeros(3))
    assert float(pulling_away_term(torch.randn(1, 3))) == 0


def test_the_pulling_away_term_is_the_double_sum_of_squared_cosines():
    codes = torch.randn(5, 3, generator=seeded(2), dtype=torch.float64)
    total = 0.0
    for i in range(5):
        for j in range(5):
            if i != j:
                total += float(codes[i] @ codes[j] / (codes[i].norm() * codes[j].norm())) ** 2
    assert float(pulling_away_term(codes).mean()) == pytest.approx(total / (5 * 4), rel=1e-9)
    energy = perturbed(autoencoder_energy((2,), 3, (6,)))
    drawn = torch.randn(5, 2, generator=seeded(4))
    with_term, without = (EBGAN(Fixed(drawn), 1.0, weight) for weight in (0.3, 0.0))
    batch = Batch(None, torch.zeros(5, 2))
    change = with_term.player_loss("generator", energy, batch, None) - without.player_loss(
        "generator", energy, batch, None
    )
    torch.testing.assert_close(change, 0.3 * pulling_away_term(energy.codes(drawn)))


# -- BEGAN ------------------------------------------------------------------------------------------------


def test_k_follows_the_balance_computed_by_hand_and_stays_between_0_and_1():
    objective = BEGAN(Fixed(rows_of(1.0, 0.5)), gamma=0.5, k_rate=0.2)
    k = 0.0
    for real in ([1.0, 5.0], [0.2, 0.4], [3.0, 1.0], [0.1, 0.1], [8.0, 9.0], [30.0, 40.0], [0.0, 0.1]):
        batch = data_of(*real)
        loss = objective.per_row(Norm(), batch, None).detach()
        # This update's loss has the k from before it.
        torch.testing.assert_close(loss, torch.tensor(real) - k * torch.tensor([1.0, 0.5]))
        of_data = sum(real) / 2
        off = 0.5 * of_data - 0.75
        k = min(1.0, max(0.0, k + 0.2 * off))
        assert float(objective.k) == pytest.approx(k, abs=1e-6)
        assert objective.metrics["convergence"] == pytest.approx(of_data + abs(off), rel=1e-5)
        assert objective.metrics["balance"] == pytest.approx(off / of_data, rel=1e-4)


def test_k_rests_in_evaluation_and_follows_weighted_means():
    objective = BEGAN(Fixed(rows_of(1.0, 0.5)), gamma=0.5, k_rate=0.2).eval()
    objective.per_row(Norm(), data_of(1.0, 5.0), None)
    assert float(objective.k) == 0
    objective.train().per_row(Norm(), data_of(1.0, 5.0)._replace(weight=torch.tensor([0.5, 1.5])), None)
    assert float(objective.k) == pytest.approx(0.2 * (0.5 * (0.25 + 3.75) - (0.25 + 0.375)))


def test_began_is_balanced_after_a_short_training():
    """k adds up what the balance is off by: while it is between 0 and 1, that is 0 on average."""
    energy, objective = fresh("BEGAN")
    plan = Plan(max_epochs=1000, max_steps=800, batch_size=64, learning_rate=2e-3, seed=0)
    history = Trainer(plan).fit(energy, objective, Batch(None, two_blobs()))
    later = [record["balance"] for record in history.epochs[len(history.epochs) // 2 :]]
    assert abs(sum(later) / len(later)) < 0.1
    assert 0 < float(objective.k) < 1


# -- MAGAN ------------------------------------------------------------------------------------------------


def played(objective: MAGAN, *pairs: tuple[float, float]) -> list[float]:
    """The margin after each update, on data of one energy and draws of another."""
    margins = []
    for real, made in pairs:
        objective.generator.rows.data = rows_of(made, made)
        objective.per_row(Norm(), data_of(real, real), None)
        margins.append(round(float(objective.margin), 5))
    return margins


def test_the_margin_falls_only_under_its_three_conditions():
    """One update is one look. What was seen before the first look is nothing that draws could have risen from."""
    objective = MAGAN(Fixed(rows_of(1.0, 1.0)), margin_every=1, margin=4.0)
    found = played(
        objective,
        (3.0, 5.0),  # no look before
        (3.0, 4.0),  # the draws fell
        (3.0, 2.5),  # and fell
        (3.0, 2.9),  # the draws rose, but are below the data
        (5.0, 6.0),  # the data are above the margin
        (3.5, 6.0),  # the draws have not risen
        (3.5, 7.0),  # all three
        (3.5, 8.0),  # the data are at the margin
        (1.0, 9.0),  # all three
        (2.0, 10.0),  # it never rises
    )
    assert found == [4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 3.5, 3.5, 1.0, 1.0]


def test_a_look_at_the_margin_is_at_means_over_its_rounds():
    objective = MAGAN(Fixed(rows_of(1.0, 1.0)), margin_every=2, margin=4.0)
    pairs = [(2.0, 5.0), (4.0, 6.0), (1.0, 9.0), (2.0, 3.0), (1.0, 3.0), (4.0, 17.0)]
    # Means of data and of draws: (3, 5.5), (1.5, 6), (2.5, 10).
    assert played(objective, *pairs) == [4.0, 4.0, 4.0, 1.5, 1.5, 1.5]


def test_the_first_margin_is_the_energy_of_the_data_at_the_end_of_the_warm_up():
    objective = MAGAN(Fixed(rows_of(50.0, 50.0)), margin_every=2, warm_up=4)
    energy = Norm()
    assert objective.players(energy)[0].warm_up == 4
    for real in (9.0, 7.0, 4.0, 2.0):
        loss = objective.warm_up_loss("energy", energy, data_of(real, real), None)
        torch.testing.assert_close(loss.detach(), torch.tensor([real, real]))
    assert torch.isinf(objective.margin)
    loss = objective.per_row(energy, data_of(1.0, 1.0), None)
    assert float(objective.margin) == pytest.approx(3.0)
    torch.testing.assert_close(loss.detach(), torch.ones(2))
    without = MAGAN(Fixed(rows_of(1.0, 1.0)), margin_every=5)
    loss = without.per_row(energy, data_of(2.0, 4.0), None)
    assert float(without.margin) == pytest.approx(3.0)
    torch.testing.assert_close(loss.detach(), torch.tensor([2.0 + 2.0, 4.0 + 2.0]))


def test_the_margin_of_a_training_never_rises():
    data = two_blobs()
    torch.manual_seed(0)
    energy = autoencoder_energy((2,), 1, (16,))
    objective = MAGAN(Generator(generating_network((2,), 2, (16,)), 2), 4, 8, learning_rate=3e-3)
    plan = Plan(max_epochs=100, max_steps=300, batch_size=64, seed=0)
    history = Trainer(plan).fit(energy, objective, Batch(None, data))
    margins = [record["margin"] for record in history.epochs if "margin" in record]
    assert all(later <= earlier for earlier, later in itertools.pairwise(margins))
    assert margins[-1] < margins[0]


# -- KALE -------------------------------------------------------------------------------------------------


def test_at_the_best_constant_the_loss_is_the_negative_log_likelihood_of_the_tilt():
    """The draws' distribution N(0, 1), tilted by E(x) = a x^2 + b x, is N(-b v, v) with v = 1 / (1 + 2 a)."""
    n, a, b = 4000, 0.4, -0.7
    places = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    x = torch.linspace(-2, 3, n, dtype=torch.float64).unsqueeze(1)

    class Tilt(Energy):
        def forward(self, x):
            return (a * x.square() + b * x).sum(-1)

    objective = KALE(Fixed(normal.icdf(places).unsqueeze(1)), penalty=0.0).double()
    variance = 1 / (1 + 2 * a)
    log_z = 0.5 * math.log(variance) + 0.5 * b**2 * variance
    objective.log_normaliser.data.fill_(log_z)
    tilted = torch.distributions.Normal(-b * variance, math.sqrt(variance))
    wanted = normal.log_prob(x) - tilted.log_prob(x)
    found = objective.per_row(Tilt(), Batch(None, x), None)
    assert float((found.mean() - wanted.mean()).detach()) == pytest.approx(0.0, abs=1e-3)
    found = objective.player_loss("generator", Tilt(), Batch(None, x), None)
    torch.testing.assert_close(found.detach(), torch.full((n,), -log_z, dtype=torch.float64), rtol=0, atol=1e-3)


def test_the_best_constant_is_the_logarithm_of_the_mean_weight_of_the_draws():
    of_draws = torch.tensor([1.0, 3.0, 0.2])
    objective, data = KALE(Fixed(rows_of(1.0, 3.0, 0.2)), penalty=0.0), data_of(0.5, 2.0, 1.0)
    best = float(torch.logsumexp(-of_draws, 0) - math.log(3))

    def value_and_gradient(constant: float) -> tuple[float, float]:
        objective.log_normaliser.data.fill_(constant)
        loss = objective(Norm(), data, None).value
        (gradient,) = torch.autograd.grad(loss, objective.log_normaliser)
        return float(loss.detach()), float(gradient)

    value, gradient = value_and_gradient(best)
    assert value == pytest.approx(3.5 / 3 + best, abs=1e-5)
    assert gradient == pytest.approx(0.0, abs=1e-5)
    for by in (-0.5, 0.5):
        other, gradient = value_and_gradient(best + by)
        assert other == pytest.approx(value + by + math.exp(-by) - 1, abs=1e-5)
        assert gradient == pytest.approx(1 - math.exp(-by), abs=1e-5)
    assert objective.metrics["log normaliser"] == pytest.approx(best + 0.5)
    assert objective.metrics["energy of draws"] == pytest.approx(1.4 + best + 0.5, abs=1e-5)


def test_at_the_best_constant_the_energys_gradient_is_that_of_the_likelihood():
    """E_data[dE] - sum_m softmax(-E)_m dE_m, where dE is |x|^2."""
    of_draws = torch.tensor([1.0, 3.0, 0.2])
    energy, objective = Norm(), KALE(Fixed(rows_of(1.0, 3.0, 0.2)), penalty=0.0)
    objective.log_normaliser.data = torch.logsumexp(-of_draws, 0) - math.log(3)
    (found,) = gradients(objective(energy, data_of(0.5, 2.0, 1.0), None).value, energy)
    torch.testing.assert_close(found, 3.5 / 3 - (torch.softmax(-of_draws, 0) * of_draws).sum())


def test_the_generator_minimises_minus_the_log_mean_weight_and_each_draw_counts_by_its_own():
    of_draws = torch.tensor([1.0, 3.0, 0.2, 8.0])
    objective = KALE(Fixed(rows_of(1.0, 3.0, 0.2, 8.0)))
    loss = objective.player_loss("generator", Norm(), data_of(1.0, 1.0, 1.0, 1.0), None)
    wanted = math.log(4) - torch.logsumexp(-of_draws, 0)
    torch.testing.assert_close(loss.detach(), wanted.expand(4))
    (found,) = torch.autograd.grad(loss.mean(), objective.generator.rows)
    weights = torch.softmax(-of_draws, 0).unsqueeze(1)
    torch.testing.assert_close(found, weights * 2 * objective.generator.rows.detach())


def test_the_exponential_goes_on_as_its_tangent():
    t = torch.linspace(-20, 3, 301, dtype=torch.float64)
    torch.testing.assert_close(linearised_exp(t), t.exp())
    far = torch.tensor([3.0, 3.001, 4.0, 1e3, 1e6], dtype=torch.float64)
    torch.testing.assert_close(linearised_exp(far), math.exp(3) * (far - 2))
    for places in (torch.linspace(-5, 2.9, 50), torch.linspace(3.1, 1e4, 50)):
        places = places.requires_grad_(True)
        (slopes,) = torch.autograd.grad(linearised_exp(places).sum(), places)
        torch.testing.assert_close(slopes, places.detach().clamp(max=3).exp())
    low = torch.linspace(-4, 4, 50)
    torch.testing.assert_close(linearised_exp(low, 1.0), torch.where(low < 1, low.exp(), math.e * low))


def test_draws_that_are_far_too_low_leave_the_loss_and_its_gradient_finite():
    objective, energy = KALE(Fixed(rows_of(900.0, 1.0)), penalty=0.0), Norm(-1.0)
    loss = objective(energy, data_of(0.5, 2.0), None).value
    (found,) = gradients(loss, energy)
    # Raised, and by no more than the slope of the tangent.
    assert bool(torch.isfinite(loss))
    assert -0.5 * math.exp(3) * 901 < float(found) < -0.49 * math.exp(3) * 900


def test_the_penalty_is_half_the_squared_gradient():
    rows = torch.randn(5, 3, generator=seeded())
    energy = Norm(0.7)
    torch.testing.assert_close(gradient_penalty(energy, rows), 2 * 0.7**2 * rows.square().sum(1))
    (found,) = gradients(gradient_penalty(energy, rows).sum(), energy)
    torch.testing.assert_close(found, 4 * 0.7 * rows.square().sum())

    class OfImages(Energy):
        event_ndim = 3

        def forward(self, x):
            return 0.7 * x.square().flatten(-3).sum(-1)

    images = rows.reshape(5, 3, 1, 1)
    torch.testing.assert_close(gradient_penalty(OfImages(), images), 2 * 0.7**2 * rows.square().sum(1))


def test_the_gradient_is_penalised_at_places_between_data_and_draws():
    n, energy = 4000, Norm()
    plain, penalised = (KALE(Fixed(torch.zeros(n, 2)), penalty=penalty) for penalty in (0.0, 0.3))
    batch = Batch(None, torch.tensor([[3.0, 4.0]]).expand(n, 2))
    apart = penalised.per_row(energy, batch, seeded(1)) - plain.per_row(energy, batch, seeded(1))
    # Of a place at a share u of the way the gradient is 2 u (3, 4).
    share = (apart.detach() / (0.3 * 0.5 * 4 * 25)).clamp(min=0).sqrt()
    assert float(share.max()) < 1.001
    assert float(share.mean()) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / n))
    assert float(share.var()) == pytest.approx(1 / 12, rel=0.1)


def test_the_energy_warms_up_and_then_moves_several_times_for_each_move_of_the_generator():
    energy, objective = PerceptronEnergy(2, (4,)), KALE(plain_generator(), energy_steps=3, warm_up=2)
    players = objective.players(energy)
    order = [(players[place].name[0], warming_up) for place, warming_up in (turn(players, n) for n in range(11))]
    assert order == [("e", True)] * 2 + ([("e", False)] * 3 + [("g", False)]) * 2 + [("e", False)]
    assert any(w is objective.log_normaliser for w in players[0].parameters)
    assert not any(w is objective.log_normaliser for w in players[1].parameters)


def test_a_generator_that_stays_as_it_is_is_corrected_by_the_energy():
    """N(0, 1) against data of N(1, 0.6^2): corrected draws have these moments, and A is the best constant."""
    data = 1.0 + 0.6 * torch.randn(2000, 1, generator=seeded(8))
    torch.manual_seed(0)
    generator = Generator(nn.Linear(1, 1), 1)
    nn.init.ones_(generator.network.weight)
    nn.init.zeros_(generator.network.bias)
    energy = ModuleEnergy(nn.Sequential(nn.Linear(1, 16), nn.Softplus(), nn.Linear(16, 1), nn.Flatten(0)))
    objective = KALE(generator, penalty=0.0, warm_up=10_000, learning_rate=1e-2)
    plan = Plan(max_epochs=1000, max_steps=600, batch_size=250, seed=0)
    history = Trainer(plan).fit(energy, objective, Batch(None, data))
    assert not history.events
    z = torch.randn(20_000, 1, generator=seeded(1))
    with torch.no_grad():
        log_z = float(torch.logsumexp(-energy(z), 0)) - math.log(len(z))
        assert float(objective.log_normaliser) == pytest.approx(log_z, abs=0.1)
    drawn = LatentSampler(generator, energy, 1, n_steps=300).draw(4000, seeded(2))
    assert float(drawn.mean()) == pytest.approx(float(data.mean()), abs=0.1)
    assert float(drawn.std()) == pytest.approx(float(data.std()), abs=0.1)


# -- training ---------------------------------------------------------------------------------------------


def two_blobs(n: int = 512) -> torch.Tensor:
    """Half the rows near (-1, 0), half near (1, 0)."""
    sides = torch.where(torch.rand(n, generator=seeded(8)) < 0.5, -1.0, 1.0)
    return torch.stack([sides, torch.zeros(n)], 1) + 0.2 * torch.randn(n, 2, generator=seeded(9))


def fresh(name: str) -> tuple[Energy, nn.Module]:
    torch.manual_seed(0)
    generator = Generator(generating_network((2,), 2, (32,)), 2)
    if name == "BEGAN":
        energy = autoencoder_energy((2,), 1, (32,), distance="absolute")
        return energy, BEGAN(generator, gamma=0.5, k_rate=0.5)
    if name == "GAN":
        return ModuleEnergy(nn.Sequential(mlp([2, 32]), nn.Linear(32, 1), nn.Flatten(0))), GAN(generator)
    if name == "KALE":
        return PerceptronEnergy(2, (16,)), KALE(generator, energy_steps=2, warm_up=3)
    if name == "VERA":
        return PerceptronEnergy(2, (16,)), VERA(NoisyGenerator(generator.network, 2), n_draws=4)
    return autoencoder_energy((2,), 1, (32,)), MAGAN(generator, 8, 16)


def trained(name: str, n_steps: int = 800) -> tuple[Energy, nn.Module]:
    energy, objective = fresh(name)
    plan = Plan(max_epochs=1000, max_steps=n_steps, batch_size=64, learning_rate=2e-3, seed=0)
    history = Trainer(plan).fit(energy, objective, Batch(None, two_blobs()))
    assert not history.events
    return energy, objective


class Stopped(Exception):
    pass


@pytest.mark.parametrize("name", ["GAN", "BEGAN", "MAGAN", "KALE", "VERA"])
def test_an_interrupted_training_resumes_to_the_same_weights(name, tmp_path):
    plan = Plan(max_epochs=8, batch_size=64, learning_rate=2e-3, checkpoint_seconds=0.0, seed=0)
    data = Batch(None, two_blobs())

    def run(stop_at: int | None, **how):
        energy, objective = fresh(name)
        n_calls, original = 0, objective.player_loss

        def counting(*arguments):
            nonlocal n_calls
            n_calls += 1
            if n_calls == stop_at:
                raise Stopped
            return original(*arguments)

        objective.player_loss = counting
        history = Trainer(plan, run_dir=tmp_path / name if how or stop_at else None).fit(
            energy, objective, data, **how
        )
        return {**energy.state_dict(), **objective.state_dict()}, history

    whole, history = run(None)
    with pytest.raises(Stopped):
        run(30)
    resumed, again = run(None, resume=True)
    assert whole.keys() == resumed.keys()
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key
    assert history.epochs == again.epochs


def test_an_interruption_after_the_last_update_of_an_epoch_loses_none_of_its_figures(tmp_path, monkeypatch):
    plan = Plan(max_epochs=2, batch_size=64, checkpoint_seconds=0.0, seed=0)
    data = Batch(None, two_blobs())
    energy, objective = fresh("BEGAN")
    whole = Trainer(plan).fit(energy, objective, data)
    energy, objective = fresh("BEGAN")
    save, n_saved = _Run.save, 0

    def stopping(self):
        nonlocal n_saved
        save(self)
        n_saved += 1
        # One checkpoint at the start, and one after each of the eight updates of an epoch.
        if n_saved == 9:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "save", stopping)
        with pytest.raises(Stopped):
            Trainer(plan, run_dir=tmp_path).fit(energy, objective, data)
    energy, objective = fresh("BEGAN")
    again = Trainer(plan, run_dir=tmp_path).fit(energy, objective, data, resume=True)
    assert "k" in whole.epochs[0]
    assert again.epochs == whole.epochs


def test_a_generator_that_has_collapsed_is_seen():
    data = two_blobs()
    collapsed = Generator(generating_network((2,), 2, (8,)), 2).eval()
    with torch.no_grad():
        collapsed.network[-2].weight.mul_(1e-3)
    drawn = collapsed.draw(200, seeded()).detach()
    assert check_variety(drawn, data).state == "failed"
    _, objective = trained("GAN")
    drawn = objective.generator.eval().draw(200, seeded()).detach()
    assert check_variety(drawn, data).state != "failed"
    sides = (drawn[:, 0] > 0).float().mean()
    assert 0.15 < float(sides) < 0.85


# -- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda g: EBGAN(g, 0.0), "margin must be positive"),
        (lambda g: EBGAN(g, 1.0, -0.1), "pulling_away must not be negative"),
        (lambda g: BEGAN(g, 1.5), "gamma must be"),
        (lambda g: BEGAN(g, 0.5, 0.0), "k_rate must be positive"),
        (lambda g: MAGAN(g, 0), "margin_every must be at least 1"),
        (lambda g: MAGAN(g, 1, margin=-1.0), "margin must be positive"),
        (lambda g: KALE(g, -0.1), "penalty must not be negative"),
        (lambda g: KALE(g, math.nan), "penalty must not be negative"),
        (lambda g: KALE(g, energy_steps=0), "energy_steps must be at least 1"),
        (lambda g: KALE(g, warm_up=-1), "warm_up at least 0"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_settings_that_can_not_be_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make(plain_generator())


def test_what_does_not_fit_a_generator_is_refused_in_words():
    rows = Batch(None, torch.zeros(4, 2))
    with pytest.raises(TypeError, match="PerceptronEnergy has none"):
        EBGAN(plain_generator(), 1.0).check(PerceptronEnergy(2, (4,)), rows)
    EBGAN(plain_generator(), 1.0, 0.0).check(PerceptronEnergy(2, (4,)), rows)
    with pytest.raises(ValueError, match="makes rows of shape"):
        GAN(plain_generator()).check(GaussianEnergy(torch.zeros(3), torch.ones(3)), Batch(None, torch.zeros(4, 3)))
    given_x = Batch(torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(TypeError, match="an energy without inputs"):
        GAN(plain_generator()).check(NetworkEnergy(mlp([3, 6]), 6, 2, hidden=8), given_x)


def test_a_copy_of_an_objective_plays_its_own_game():
    objective = BEGAN(plain_generator(), 0.5, 0.1)
    other = copy.deepcopy(objective)
    other.per_row(autoencoder_energy((2,), 1, (4,)), Batch(None, 5 * torch.ones(4, 2)), seeded())
    assert float(other.k) != float(objective.k)
