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
    UniformEnergy,
    gaussian_of_classes,
    mlp,
)
from thalweg.objectives import (
    Batch,
    ContrastiveDivergence,
    DenoisingScoreMatching,
    DualAdversarialTraining,
    EnergyMargin,
    FlowContrastiveEstimation,
    JointFlowContrast,
    JointLikelihood,
    NoiseContrastiveEstimation,
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


OBJECTIVES = {
    "JEM": lambda: JointLikelihood(chains(), 0.5, input_noise=0.1),
    "NCE": lambda: JointLikelihood(NoiseContrastiveEstimation(NOISE)),
    "queue": lambda: QueueContrast(C, queue_size=10),
    "margin": lambda: EnergyMargin(3 * torch.randn(9, D, generator=seeded(4))),
    "dual": lambda: DualAdversarialTraining(NOISE, 1.0, 3, attack_radius=0.1),
    "flow": lambda: JointFlowContrast(flow(), warm_up=0),
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
    with pytest.raises(TypeError, match="JointFlowContrast"):
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


# -- the game with a flow -------------------------------------------------------------------------------------


def test_the_energy_plays_the_flows_game_and_classifies():
    energy, data, objective = classifier(), rows(), JointFlowContrast(flow(), weight=0.6)
    marginal, inputs = energy.marginal(), Batch(None, data.x)
    game = objective.contrast.player_loss("energy", marginal, inputs, seeded()).mean()
    found = objective.player_loss("energy", energy, data, seeded()).mean()
    torch.testing.assert_close(found, cross_entropy(energy, data) + 0.6 * game)
    theirs = objective.contrast.player_loss("flow", marginal, inputs, seeded())
    torch.testing.assert_close(objective.player_loss("flow", energy, data, seeded()), theirs)
    torch.testing.assert_close(
        objective.warm_up_loss("flow", energy, data, seeded()), -objective.contrast.flow.log_prob(data.x)
    )
    names = {player.name: player.parameters for player in objective.players(energy)}
    assert {id(w) for w in names["energy"]} >= {id(w) for w in energy.parameters()}
    with pytest.raises(ValueError, match="vectors"):
        objective.check(LabelledPerceptron((1, 2, 2), C, (4,)), Batch(torch.zeros(4, 1, 2, 2), torch.arange(4)))
