"""Classifiers that are energies of their inputs: what each term says, which rows it is of, and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
import zuko
from torch import nn

from parts import perturbed, seeded
from thalweg.energies import (
    FlowEnergy,
    GaussianMixtureEnergy,
    LabelledEnergy,
    LabelledPerceptron,
    NoisyGenerator,
    UniformEnergy,
    gaussian_of_classes,
    generating_network,
    mlp,
)
from thalweg.energies.discrete import BINARY
from thalweg.objectives import (
    EBGAN,
    GAN,
    KALE,
    MAGAN,
    VERA,
    Batch,
    ContrastiveDivergence,
    DenoisingScoreMatching,
    DualAdversarialTraining,
    EnergyMargin,
    FlowContrastiveEstimation,
    JointGame,
    JointLikelihood,
    NoiseContrastiveEstimation,
    Player,
    QueueContrast,
    jem,
)
from thalweg.objectives.classifier_contrast import descend
from thalweg.sampling import FromNoise, Langevin
from thalweg.training import Plan, Trainer

D, C = 3, 4
NOISE = GaussianMixtureEnergy(torch.zeros(1, D), torch.full((1, D), 2.0))


def classifier() -> LabelledEnergy:
    return perturbed(LabelledEnergy(nn.Sequential(mlp([D, 8]), nn.Linear(8, C))))


def rows(n: int = 12, unlabelled: int = 5) -> Batch:
    labels = torch.arange(n) % C
    labels[:unlabelled] = -1
    return Batch(torch.randn(n, D, generator=seeded(1)), labels)


def flow() -> FlowEnergy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FlowEnergy(zuko.flows.NSF(D, bins=4, transforms=1, hidden_features=(6,)), 0.0, 2.0)


def chains(n_steps: int = 3) -> ContrastiveDivergence:
    return ContrastiveDivergence(Langevin(0.1), n_steps, FromNoise(NOISE))


def flow_game(warm_up: int = 0) -> FlowContrastiveEstimation:
    return FlowContrastiveEstimation(flow(), warm_up)


def generator(n: int = D) -> NoisyGenerator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return perturbed(NoisyGenerator(generating_network((n,), 2, (6,), normalise=False), 2))


def vera(n: int = D) -> VERA:
    return VERA(generator(n), 0.5, n_draws=4)


OBJECTIVES = {
    "JEM": lambda: JointLikelihood(chains(), 0.5, input_noise=0.1),
    "NCE": lambda: JointLikelihood(NoiseContrastiveEstimation(NOISE)),
    "queue": lambda: QueueContrast(C, queue_size=10),
    "margin": lambda: EnergyMargin(3 * torch.randn(9, D, generator=seeded(4))),
    "dual": lambda: DualAdversarialTraining(NOISE, 1.0, 3, attack_radius=0.1),
    "game with a flow": lambda: JointGame(flow_game()),
    "game of VERA": lambda: JointGame(vera(), 0.5),
    "game of KALE": lambda: JointGame(KALE(generator(), energy_steps=1, warm_up=0), 0.5),
    "game of a GAN": lambda: JointGame(GAN(generator())),
}
every = pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)


def cross_entropy(energy: LabelledEnergy, batch: Batch) -> torch.Tensor:
    known = batch.y >= 0
    return F.cross_entropy(-energy.energies(batch.x[known]), batch.y[known].long())


# -- labels ---------------------------------------------------------------------------------------------------


@every
def test_a_step_without_labels_has_a_finite_loss_and_gradient(make):
    energy, objective = classifier(), make()
    loss = objective(energy, rows(6, 6), seeded())
    loss.value.backward()
    assert torch.isfinite(loss.value)
    assert all(torch.isfinite(w.grad).all() for w in energy.parameters() if w.grad is not None)
    assert "cross-entropy" not in loss.metrics


@every
def test_labels_may_be_floating_point_numbers(make):
    energy, data = classifier(), rows()
    of_numbers = make()(energy, data, seeded()).value
    as_floats = data._replace(y=data.y.float())
    objective = make()
    objective.check(energy, as_floats)
    torch.testing.assert_close(make()(energy, as_floats, seeded()).value, of_numbers)


@every
def test_it_trains_with_few_labels_and_reports_accuracy(make):
    energy, objective = classifier(), make()
    history = Trainer(Plan(max_steps=30, max_epochs=30, batch_size=12, learning_rate=0.01)).fit(
        energy, objective, rows()
    )
    assert not history.events
    # (In the first update of a game the flow moves, and knows of no labels.)
    records = [record for record in history.epochs if "cross-entropy" in record]
    assert 0 <= records[-1]["accuracy"] <= 1
    assert records[-1]["cross-entropy"] < records[0]["cross-entropy"]


@every
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"y": torch.full((12,), -1)}, "no row has a label"),
        ({"y": torch.full((12,), C)}, f"more than {C}"),
        ({"y": torch.full((12,), 0.5)}, "whole numbers"),
        ({"y": torch.full((12,), math.nan)}, "whole numbers"),
        ({"y": torch.full((12,), -2)}, "whole numbers"),
        ({"y": torch.zeros(12, 1)}, "whole numbers"),
        ({"y": torch.zeros(7)}, "7 rows of y"),
        ({"x": None}, "got none"),
        ({"x": torch.zeros(12, 1, D)}, "1 dimensions"),
    ],
)
def test_rows_that_do_not_fit_are_refused(make, change, match):
    with pytest.raises(ValueError, match=match):
        make().check(classifier(), rows()._replace(**change))


@every
def test_another_energy_is_refused(make):
    with pytest.raises(TypeError, match="LabelledEnergy"):
        make().check(NOISE, rows())


# -- joint likelihood -----------------------------------------------------------------------------------------


def test_the_joint_loss_is_the_sum_of_its_terms():
    energy, data, density = classifier(), rows(), DenoisingScoreMatching(0.3)
    objective = JointLikelihood(DenoisingScoreMatching(0.3), weight=0.7)
    expected = cross_entropy(energy, data) + 0.7 * density(energy.marginal(), Batch(None, data.x), seeded()).value
    torch.testing.assert_close(objective(energy, data, seeded()).value, expected)


def test_augmentation_is_for_the_classification_term_alone_and_noise_for_both_in_training_alone():
    energy, data = classifier(), rows()
    seen: list[torch.Tensor] = []

    class Watching(DenoisingScoreMatching):
        def per_row(self, energy, batch, generator):
            seen.append(batch.y)
            return batch.y.sum(1)

    def shifted(x, generator):
        return x + torch.ones((), dtype=x.dtype)

    plain = JointLikelihood(Watching(), 0.0, augment=shifted)
    moved = data._replace(x=data.x + 1)
    torch.testing.assert_close(plain(energy, data, seeded()).value, cross_entropy(energy, moved))
    assert torch.equal(seen[-1], data.x)
    noisy = JointLikelihood(Watching(), 0.0, input_noise=0.1)
    noisy(energy, data, seeded())
    assert 0.03 < float((seen[-1] - data.x).std()) < 0.3
    exact = cross_entropy(energy, data).detach()
    assert float(noisy(energy, data, seeded()).value.detach()) != pytest.approx(float(exact))
    torch.testing.assert_close(noisy.eval()(energy, data, seeded()).value, cross_entropy(energy, data))
    assert torch.equal(seen[-1], data.x)


def test_a_generative_term_with_players_is_refused():
    with pytest.raises(TypeError, match="FlowContrastiveEstimation has: give it to JointGame"):
        JointLikelihood(FlowContrastiveEstimation(flow()))


def test_constants_shift_the_marginal_energy_and_leave_the_classifier_as_it_is():
    energy, data = classifier(), rows(unlabelled=0)
    before, marginal = cross_entropy(energy, data), energy.marginal()(data.x)
    with torch.no_grad():
        energy.network[-1].bias += 2.5
    torch.testing.assert_close(cross_entropy(energy, data), before)
    torch.testing.assert_close(energy.marginal()(data.x), marginal - 2.5)


class Stretched(LabelledEnergy):
    """The energies of another, of inputs in [0, 1] where those are in [-1, 1]."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def energies(self, x):
        return self.other.energies(2 * x - 1)


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_the_marginal_of_a_perceptron_laid_out_for_chains_is_the_same(activation, temperature):
    energy = perturbed(LabelledPerceptron((1, 4, 4), C, (8, 6), activation)).marginal(temperature)
    images = torch.rand(5, 1, 4, 4, generator=seeded())
    value, gradient = energy.value_and_gradient(images)
    fixed = energy.fixed()
    assert type(fixed) is not type(energy)
    torch.testing.assert_close(fixed(images), value)
    torch.testing.assert_close(fixed.gradient(images), gradient)


def test_the_published_chains_are_the_same_whatever_the_range_of_the_inputs():
    energy, data = classifier(), rows()
    wide = jem(UniformEnergy(-torch.ones(D), torch.ones(D)), buffer_size=100, n_chains=8)
    unit = jem(UniformEnergy(torch.zeros(D), torch.ones(D)), 0.5, buffer_size=100, n_chains=8)
    losses = [
        wide(energy, data, seeded()).value,
        unit(Stretched(energy), data._replace(x=(data.x + 1) / 2), seeded()).value,
    ]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
    ends = [objective.generative.start.positions for objective in (wide, unit)]
    torch.testing.assert_close(ends[0], 2 * ends[1] - 1, rtol=1e-4, atol=1e-4)
    bounded = jem(UniformEnergy(-torch.ones(D), torch.ones(D)), bounds=(-0.5, 0.5), buffer_size=8, n_chains=8)
    bounded(energy, data, seeded())
    assert float(bounded.generative.start.positions.abs().max()) <= 0.5


def test_chains_of_images_start_from_a_gaussian_of_each_class():
    labels = torch.arange(400) % 2
    images = 0.3 + 0.4 * labels.reshape(-1, 1, 1, 1) + 0.05 * torch.randn(400, 1, 4, 4, generator=seeded())
    labels[::10] = -1
    start = gaussian_of_classes(images, labels)
    drawn = start.sample(500, seeded(1))
    assert drawn.shape == (500, 1, 4, 4)
    means = drawn.mean((1, 2, 3))
    assert torch.isclose(means, torch.tensor(0.3), atol=0.15).logical_or(means > 0.55).all()
    # Of 360 labelled rows 160 are of the first class; the standard error is 0.022.
    assert float((means < 0.5).float().mean()) == pytest.approx(160 / 360, abs=0.1)
    assert (start.log_prob(images) > start.log_prob(images + 1)).all()
    energy = LabelledPerceptron((1, 4, 4), 2, (8,))
    objective = jem(start, 0.5, buffer_size=50, n_chains=10)
    Trainer(Plan(max_steps=5, batch_size=20)).fit(energy, objective, Batch(images, labels))
    assert int(objective.generative.start.alive.sum()) > 10
    with pytest.raises(ValueError, match="no row has a label"):
        gaussian_of_classes(images, torch.full((400,), -1))
    assert gaussian_of_classes(images.flatten(1)).sample(2).shape == (2, 16)


# -- the queue ------------------------------------------------------------------------------------------------


class Constant(LabelledEnergy):
    """Energies that are the same for every input."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def energies(self, x):
        return self.values.expand(len(x), -1)


def contrast(objective: QueueContrast, energy: LabelledEnergy, batch: Batch) -> float:
    return objective(energy, batch, seeded()).metrics["contrast"]


@pytest.mark.parametrize("normalise", [True, False])
def test_equal_scores_cost_the_logarithm_of_one_more_than_the_queue(normalise):
    objective = QueueContrast(C, queue_size=30, normalise=normalise)
    equal = torch.full((C,), 0.5)
    objective.queue.copy_(objective._compared(equal[None]).expand(30, -1))
    assert contrast(objective, Constant(-equal), rows()) == pytest.approx(math.log(31), abs=1e-5)


def test_the_contrast_is_its_formula_and_the_order_of_the_queue_plays_no_part():
    energy, data, tau = classifier(), rows(), 0.5
    objective = QueueContrast(C, queue_size=7, temperature=tau, weight=0.3).eval()
    scores, queue = F.normalize(-energy.energies(data.x), dim=1), objective.queue
    terms = []
    for row, label in zip(scores, data.y.tolist(), strict=True):
        if label >= 0:
            others = [math.exp(float(q[label]) / tau) for q in queue]
            own = math.exp(float(row[label].detach()) / tau)
            terms.append(-math.log(own / (own + sum(others))))
    mean = sum(terms) / len(terms)
    assert contrast(objective, energy, data) == pytest.approx(mean, rel=1e-4)
    value = objective(energy, data, seeded()).value
    torch.testing.assert_close(value, cross_entropy(energy, data) + 0.3 * mean)
    queue.copy_(queue[torch.randperm(7, generator=seeded())])
    torch.testing.assert_close(objective(energy, data, seeded()).value, value)


@pytest.mark.parametrize("size", [5, 7, 12, 30])
def test_the_queue_holds_the_last_rows_and_wraps(size):
    energy, objective = classifier(), QueueContrast(C, queue_size=size)
    data, seen = rows(60), []
    for start in range(0, 60, 12):
        batch = data.rows(slice(start, start + 12))
        before = objective.queue.clone()
        fresh = QueueContrast(C, queue_size=size).eval()
        fresh.queue.copy_(before)
        # A row is not among its own negatives: the loss is that of the queue before it entered.
        torch.testing.assert_close(objective(energy, batch, seeded()).value, fresh(energy, batch, seeded()).value)
        seen.append(F.normalize(-energy.energies(batch.x), dim=1).detach())
    last = torch.cat(seen)[-size:]
    found = objective.queue
    assert int(objective.place) == 60 % size
    torch.testing.assert_close(found.roll(-int(objective.place), 0), last)
    assert not torch.equal(objective.queue, before)


def test_a_queue_of_other_labels_is_refused():
    with pytest.raises(ValueError, match="3 labels, and the energy has 4"):
        QueueContrast(3).check(classifier(), rows())
    with pytest.raises(ValueError, match="positive"):
        QueueContrast(3, temperature=0.0)


# -- margins --------------------------------------------------------------------------------------------------


def test_the_hinge_is_the_square_of_what_is_beyond_the_margins():
    energy, data = classifier(), rows()
    outliers = torch.randn(1, D, generator=seeded(4))
    objective = EnergyMargin(outliers, -1.0, 2.0, weight=0.1)
    inside, outside = energy.marginal()(data.x), energy.marginal()(outliers)
    expected = (inside + 1).clamp_min(0).square().mean() + (2 - outside).clamp_min(0).square().mean()
    found = objective(energy, data, seeded()).value
    torch.testing.assert_close(found, cross_entropy(energy, data) + 0.1 * expected)


@pytest.mark.parametrize("given", [(None, None), (-3.0, None), (None, -50.0)])
def test_margins_are_chosen_once_from_the_energies_and_kept(given):
    energy, data = classifier(), rows()
    objective = EnergyMargin(3 * torch.randn(50, D, generator=seeded(4)), *given)
    objective.check(energy, data)
    low, high = objective.margins.tolist()
    assert high - low >= 10 - 1e-4
    for own, chosen in zip(given, (low, high), strict=True):
        assert own is None or own == pytest.approx(chosen)
    if given == (None, None):
        assert low == pytest.approx(float(energy.marginal()(data.x).detach().quantile(0.25)), abs=1e-5)
    kept = objective.margins.clone()
    Trainer(Plan(max_steps=5, batch_size=12)).fit(energy, objective, data)
    assert torch.equal(objective.margins, kept)
    assert set(objective.state_dict()) == {"margins"}


def test_margins_part_data_from_outliers():
    energy, data = classifier(), rows(64, 0)
    outliers = 4 + torch.randn(64, D, generator=seeded(4))
    objective = EnergyMargin(outliers)
    history = Trainer(Plan(max_steps=300, max_epochs=300, batch_size=64, learning_rate=0.01)).fit(
        energy, objective, data
    )
    assert history.epochs[-1]["energy gap"] < -5
    with torch.no_grad():
        assert float(energy.marginal()(data.x).mean() - energy.marginal()(outliers).mean()) < -5


def test_outliers_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="like the data"):
        EnergyMargin(torch.zeros(4, D + 1)).check(classifier(), rows())
    with pytest.raises(ValueError, match="at least one"):
        EnergyMargin(torch.zeros(0, D))
    with pytest.raises(ValueError, match="like the data"):
        DualAdversarialTraining(torch.zeros(4, D + 1), 1.0).check(classifier(), rows())
    with pytest.raises(ValueError, match="positive"):
        DualAdversarialTraining(NOISE, 0.0)
    with pytest.raises(ValueError, match="below outside_margin"):
        EnergyMargin(torch.zeros(4, D), 1.0, -1.0)


# -- dual adversarial training --------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["euclidean", "maximum"])
def test_projected_steps_end_where_a_linear_function_is_lowest_in_the_ball(norm):
    slope, centre = torch.tensor([3.0, 4.0, 0.0]), torch.randn(5, 3, generator=seeded())
    found = descend(lambda x: x @ slope, centre, 0.5, 8, norm) - centre
    expected = torch.tensor([-0.3, -0.4, 0.0]) if norm == "euclidean" else torch.tensor([-0.5, -0.5, 0.0])
    torch.testing.assert_close(found, expected.expand(5, 3))
    bounded = descend(lambda x: x @ slope, centre, 9.0, 8, norm, bounds=(-1.0, 1.0))
    assert float(bounded.abs().max()) <= 1
    inside = descend(lambda x: x.square().sum(1), 0.1 * centre, 1.0, 40, norm)
    assert float(inside.norm(dim=1).max()) < 0.15  # a step is 0.06 long


def test_the_adversaries_stay_in_their_balls_and_do_harm():
    energy, data = classifier(), rows()
    plain = DualAdversarialTraining(NOISE, 1.0, 5, weight=0.0)(energy, data, seeded()).value
    torch.testing.assert_close(plain, cross_entropy(energy, data))
    objective = DualAdversarialTraining(NOISE, 1.0, 5, weight=0.0, attack_radius=0.3)
    assert float(objective(energy, data, seeded()).value.detach()) > float(plain.detach())
    moved = objective._attacked(energy, data.x, data.y, seeded()) - data.x
    assert float(moved.abs().max()) <= 0.3 + 1e-6
    assert torch.equal(moved[:5], torch.zeros(5, D))  # these have no label
    assert all(w.grad is None for w in energy.parameters())


def test_the_second_term_is_a_logistic_regression_on_the_energy():
    energy, data = classifier(), rows()
    starts = torch.randn(1, D, generator=seeded(4))
    objective = DualAdversarialTraining(starts, 0.5, 5, weight=2.0)
    with torch.no_grad():
        objective.offset.fill_(0.7)
    negative = descend(energy.marginal(), starts, 0.5, 5, "euclidean")
    assert bool((energy.marginal()(negative) < energy.marginal()(starts)).all())
    logit = 0.7 - energy.marginal()(torch.cat([data.x, negative]))
    told = F.binary_cross_entropy_with_logits
    expected = told(logit[:-1], torch.ones(len(data.x))) + told(logit[-1:], torch.zeros(1))
    found = objective(energy, data, seeded()).value
    torch.testing.assert_close(found, cross_entropy(energy, data) + 2.0 * expected)


# -- games ----------------------------------------------------------------------------------------------------


GAMES = {
    "flow": lambda: flow_game(warm_up=5),
    "VERA": vera,
    "KALE": lambda: KALE(generator()),
    "GAN": lambda: GAN(generator()),
    "MAGAN": lambda: MAGAN(generator(), 3, 2, margin=5.0),
}
every_game = pytest.mark.parametrize("make_game", GAMES.values(), ids=GAMES)


def turns(players: list[Player]) -> list[tuple[str, str]]:
    """The name of each player with the loss of its rounds, and with that of its warm-up where it has one."""
    return [(p.name, "player_loss") for p in players] + [(p.name, "warm_up_loss") for p in players if p.warm_up]


@every_game
def test_the_energy_plays_with_its_marginal_and_classifies_and_the_others_play_alone(make_game):
    energy, data, objective = classifier(), rows(), JointGame(make_game(), weight=0.6)
    game, marginal, inputs = make_game(), energy.marginal(), Batch(None, data.x)
    players = objective.players(energy)
    assert [p._replace(parameters=[]) for p in players] == [
        p._replace(parameters=[]) for p in game.players(marginal)
    ]
    weights = {p.name: {id(w) for w in p.parameters} for p in players}
    assert weights["energy"] >= {id(w) for w in energy.parameters()}
    for name, which in turns(players):
        expected = getattr(game, which)(name, marginal, inputs, seeded()).mean()
        found = getattr(objective, which)(name, energy, data, seeded()).mean()
        if name == "energy":
            assert objective.metrics["loss of the game"] == pytest.approx(float(expected.detach()), rel=1e-5)
            expected = cross_entropy(energy, data) + 0.6 * expected
        torch.testing.assert_close(found, expected)


def test_a_game_of_vera_has_the_loss_that_is_written_out():
    """The energy's loss is E(x) less that of a draw, with half the squared gradient at the data."""
    energy, data, game = classifier(), rows(), vera()
    drawn = game.generator.draw(len(data.x), seeded()).detach()
    x = data.x.clone().requires_grad_(True)
    of_data = -torch.logsumexp(-energy.energies(x), 1)
    of_drawn = -torch.logsumexp(-energy.energies(drawn), 1)
    (slope,) = torch.autograd.grad(of_data.sum(), x, create_graph=True)
    expected = (of_data - of_drawn + 0.1 * 0.5 * slope.square().sum(1)).mean()
    found = JointGame(game, 0.01).player_loss("energy", energy, data, seeded()).mean()
    torch.testing.assert_close(found, cross_entropy(energy, data) + 0.01 * expected)


@every_game
def test_no_loss_of_a_player_reaches_the_parameters_of_another(make_game):
    energy, data, objective = classifier(), rows(), JointGame(make_game(), weight=0.6)
    players = objective.players(energy)
    weights = {id(w): w for w in [*energy.parameters(), *objective.parameters()]}
    own = {p.name: {id(w) for w in p.parameters} for p in players}
    assert sorted(key for keys in own.values() for key in keys) == sorted(weights)
    for name, which in turns(players):
        for w in weights.values():
            w.grad = None
        objective.turn_loss(name, which == "warm_up_loss", energy, data, seeded()).value.backward()
        moved = {key for key, w in weights.items() if w.grad is not None and bool(w.grad.any())}
        assert moved
        assert moved <= own[name]
        assert all(w.requires_grad for w in weights.values())


@every_game
def test_rows_without_labels_play_the_game_and_have_no_classification_loss(make_game):
    energy, data = classifier(), rows()
    alone = JointGame(make_game(), weight=0.0).per_row(energy, data, seeded())
    torch.testing.assert_close(alone[:5], torch.zeros(5))
    known = F.cross_entropy(-energy.energies(data.x[5:]), data.y[5:], reduction="none")
    torch.testing.assert_close(alone[5:], known * 12 / 7)
    unlabelled = data._replace(y=torch.full((12,), -1))
    game = make_game().per_row(energy.marginal(), Batch(None, data.x), seeded())
    torch.testing.assert_close(JointGame(make_game()).per_row(energy, unlabelled, seeded()), game)


def test_augmentation_is_for_the_classification_of_a_game_alone_and_in_training():
    energy, data = classifier(), rows()
    objective = JointGame(vera(), 0.5, augment=lambda x, generator: x + 1)
    game = vera().per_row(energy.marginal(), Batch(None, data.x), seeded()).mean()
    moved = cross_entropy(energy, data._replace(x=data.x + 1))
    torch.testing.assert_close(objective(energy, data, seeded()).value, moved + 0.5 * game)
    torch.testing.assert_close(
        objective.eval()(energy, data, seeded()).value, cross_entropy(energy, data) + 0.5 * game
    )


def test_the_warm_up_of_a_flow_is_its_own_likelihood_and_the_trainer_gives_it_its_updates():
    energy, data, objective = classifier(), rows(), JointGame(flow_game(7))
    torch.testing.assert_close(
        objective.warm_up_loss("flow", energy, data, seeded()), -objective.game.flow.log_prob(data.x)
    )
    before = [w.detach().clone() for w in energy.parameters()]
    Trainer(Plan(max_steps=7, max_epochs=7, batch_size=12)).fit(energy, objective, data)
    assert all(torch.equal(a, b) for a, b in zip(before, energy.parameters(), strict=True))


def test_draws_of_the_generator_follow_the_data_of_a_game_and_classes_are_learned():
    """Two classes, one at -2 and one at 2 in the first column, of which 10 rows each have a label."""
    side = 2.0 * torch.arange(400).remainder(2) - 1
    x = 0.3 * torch.randn(400, D, generator=seeded(5)) + 2 * side.unsqueeze(1) * torch.eye(D)[0]
    labels = (side > 0).long()
    labels[20:] = -1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        energy = LabelledEnergy(nn.Sequential(mlp([D, 32]), nn.Linear(32, 2)))
        made = NoisyGenerator(generating_network((D,), 4, (32,), normalise=False), 4)
        game = VERA(made, 0.1, 0.1, n_draws=5, learning_rate=1e-3, generator_learning_rate=2e-3)
    history = Trainer(Plan(max_steps=600, max_epochs=600, batch_size=100)).fit(
        energy, JointGame(game, 0.3), Batch(x, labels)
    )
    assert not history.events
    with torch.no_grad():
        drawn = made.draw(500, seeded(6))
        found = energy.energies(x).argmin(1)
    # Rows are at 2 from the middle, with a spread of 0.3; an untrained generator's are near 0.
    assert float(drawn[:, 0].abs().mean()) > 1
    assert float((found == (side > 0).long()).float().mean()) > 0.95


@pytest.mark.parametrize(
    ("game", "match"),
    [(flow_game, "vectors of 3 numbers"), (vera, r"rows of shape \[3\]"), (lambda: GAN(generator()), "shape")],
    ids=["flow", "VERA", "GAN"],
)
def test_inputs_that_the_game_is_not_of_are_refused(game, match):
    images = LabelledPerceptron((1, 2, 2), C, (4,)), Batch(torch.zeros(4, 1, 2, 2), torch.arange(4))
    wide = LabelledEnergy(nn.Linear(D + 1, C)), Batch(torch.zeros(4, D + 1), torch.arange(4))
    for energy, data in (images, wide):
        with pytest.raises(ValueError, match=match):
            JointGame(game()).check(energy, data)


def test_what_the_game_asks_of_an_energy_is_asked_of_the_marginal():
    with pytest.raises(TypeError, match="MarginalOverLabels has none"):
        JointGame(EBGAN(generator(), 1.0, 0.1)).check(classifier(), rows())
    with pytest.raises(TypeError, match="MarginalOverLabels"):
        JointGame(JointGame(vera())).check(classifier(), rows())
    bits = LabelledEnergy(nn.Linear(D, C), input_support=BINARY)
    with pytest.raises(ValueError, match="continuous"):
        JointGame(vera()).check(bits, rows())


def test_an_objective_without_players_is_no_game():
    with pytest.raises(TypeError, match="DenoisingScoreMatching has none: give it to JointLikelihood"):
        JointGame(DenoisingScoreMatching(0.3))
