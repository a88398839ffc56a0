"""Losses that order answers: their shapes on the plane of two energies, and the wrong answers that they find."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from parts import seeded
from thalweg.energies import ChainEnergy, ConditionalModuleEnergy, FactorEnergy, LabelledEnergy
from thalweg.energies.factors.chain import LabelChain
from thalweg.inference.answers import (
    OutsideBall,
    energy_of,
    free_energy,
    lowest,
    lowest_other,
    lowest_outside,
    spread,
)
from thalweg.inference.exhaustive import all_configurations
from thalweg.objectives import (
    ANSWER_LOSSES,
    LVQ2,
    AnswerLikelihood,
    Batch,
    Hinge,
    MarginLoss,
    MinimumEmpiricalError,
    SquareExponential,
    SquareSquare,
    logarithmic,
    minimum_classification_error,
    perceptron,
)
from thalweg.objectives.names import ANSWERS
from thalweg.training import Plan, Trainer

# Name: the shape, and its value at (E_c, E_i) by the formula of the table.
SHAPES = {
    "perceptron": (perceptron, lambda c, i: c - min(c, i)),
    "hinge": (Hinge(0.7), lambda c, i: max(0.0, 0.7 + c - i)),
    "log": (logarithmic, lambda c, i: math.log(1 + math.exp(c - i))),
    "LVQ2": (LVQ2(2.0), lambda c, i: min(1.0, max(0.0, c - i) / (2 * i))),
    "MCE": (minimum_classification_error, lambda c, i: 1 / (1 + math.exp(i - c))),
    "square-square": (SquareSquare(1.5), lambda c, i: c**2 + max(0.0, 1.5 - i) ** 2),
    "square-exponential": (SquareExponential(0.6), lambda c, i: c**2 + 0.6 * math.exp(-i)),
}
PLANE = torch.cartesian_prod(torch.linspace(0.1, 4, 14), torch.linspace(0.15, 4.05, 14)).double()
shapes = pytest.mark.parametrize("name", SHAPES)


@shapes
def test_a_shape_has_the_values_of_its_formula(name: str):
    shape, formula = SHAPES[name]
    values = shape(*PLANE.T)
    expected = [formula(c, i) for c, i in PLANE.tolist()]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))


@shapes
def test_a_loss_rises_with_the_right_energy_and_falls_with_the_wrong_one(name: str):
    correct, incorrect = (e.clone().requires_grad_() for e in PLANE.T)
    SHAPES[name][0](correct, incorrect).sum().backward()
    assert (correct.grad >= 0).all()
    assert (incorrect.grad <= 0).all()
    violated = (correct > incorrect + 0.05).detach()
    if name == "LVQ2":
        violated &= (SHAPES[name][0](*PLANE.T) < 1).detach()
    assert (correct.grad[violated] > 0).all()
    # What lies beyond its margin, a squared loss leaves alone.
    inside = violated & (incorrect < 1.5).detach() if name == "square-square" else violated
    assert (incorrect.grad[inside] < 0).all()


def test_a_hinge_is_zero_just_where_the_margin_is_kept():
    correct, incorrect = PLANE.T
    assert torch.equal(Hinge(0.7)(correct, incorrect) == 0, correct + 0.7 <= incorrect)
    assert torch.equal(perceptron(correct, incorrect) == 0, correct <= incorrect)


def test_every_loss_has_a_name():
    assert tuple(ANSWER_LOSSES) == ANSWERS
    assert len(ANSWERS) == 10


# -- the wrong answers ---------------------------------------------------------------------------------------


def labelled() -> LabelledEnergy:
    torch.manual_seed(0)
    return LabelledEnergy(nn.Linear(3, 4)).double()


class Unaries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.layer(x.nan_to_num(0.0))


def chain() -> ChainEnergy:
    torch.manual_seed(1)
    energy = ChainEnergy(Unaries(), 3).double()
    with torch.no_grad():
        for table in (energy.transitions, energy.start, energy.end):
            table.normal_()
    return energy


def graph() -> FactorEnergy:
    torch.manual_seed(2)
    return FactorEnergy(nn.Linear(2, 2 * 3 + 3 * 2), [2, 3, 2], [(0, 1), (1, 2)], shared=[(2, 0)]).double()


def rows_of(kind: str) -> Batch:
    generator = seeded(3)
    if kind == "labelled":
        return Batch(torch.randn(6, 3, generator=generator).double(), torch.tensor([0, 1, 2, 3, 0, 1]))
    if kind == "chain":
        x = torch.randn(4, 5, 2, generator=generator).double()
        x[1, 3:], x[2, 1:] = torch.nan, torch.nan
        y = torch.randint(3, (4, 5), generator=generator)
        return Batch(x, torch.where(x[..., 0].isnan(), -1, y))
    x = torch.randn(5, 2, generator=generator).double()
    return Batch(x, torch.stack([torch.randint(k, (5,), generator=generator) for k in (2, 3, 2)], -1))


MAKERS = {"labelled": labelled, "chain": chain, "graph": graph}
kinds = pytest.mark.parametrize("kind", MAKERS)


def all_answers(energy: nn.Module, data: Batch, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every answer of a row ``[N, *event]`` and its energy ``[N]``."""
    x = data.x[row : row + 1]
    if isinstance(energy, LabelledEnergy):
        return torch.arange(4), energy.energies(x)[0]
    if isinstance(energy, ChainEnergy):
        n = int((~x[0, :, 0].isnan()).sum())
        y = torch.cartesian_prod(*[torch.arange(3)] * n).reshape(-1, n)
        y = torch.nn.functional.pad(y, (0, data.y.shape[1] - n), value=-1)
        return y, energy(x, y[None])[0]
    found = all_configurations(energy.given(x))
    return found.values, found.energy[0]


@kinds
def test_the_lowest_wrong_answer_and_the_free_energy_are_those_of_all_answers(kind: str):
    energy, data = MAKERS[kind](), rows_of(kind)
    given = energy.given(data.x)
    wrong, best, free = lowest_other(given, data.y), lowest(given), free_energy(given, 0.7)
    for row, truth in enumerate(data.y):
        answers, energies = all_answers(energy, data, row)
        same = answers == truth if kind == "labelled" else (answers == truth).all(-1)
        answers = answers if kind == "labelled" else answers[:, : wrong.y.shape[-1]]
        others = energies.masked_fill(same, torch.inf)
        assert bool(wrong.found[row])
        assert wrong.y[row].tolist() == answers[others.argmin()].tolist()
        assert best[row].tolist() == answers[energies.argmin()].tolist()
        torch.testing.assert_close(energy_of(given, data.y)[row], energies[same][0])
        torch.testing.assert_close(free[row], -0.7 * torch.logsumexp(-energies / 0.7, 0))
    assert (spread(given) > 0).all()


@kinds
@pytest.mark.parametrize("name", ANSWERS)
def test_a_loss_is_what_all_answers_give(kind: str, name: str):
    energy, data = MAKERS[kind](), rows_of(kind)
    objective = ANSWER_LOSSES[name]()
    losses = objective.per_row(energy, data, None)
    for row, truth in enumerate(data.y):
        answers, energies = all_answers(energy, data, row)
        same = answers == truth if kind == "labelled" else (answers == truth).all(-1)
        correct = energies[same][0]
        if name == "energy":
            expected = correct
        elif name in ("likelihood", "mee"):
            nll = correct + torch.logsumexp(-energies, 0)
            expected = nll if name == "likelihood" else 1 - torch.exp(-nll)
        else:
            assert isinstance(objective, MarginLoss)
            expected = objective.shape(correct, energies[~same].min())
        torch.testing.assert_close(losses[row], expected)
    losses.mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in energy.parameters())


def test_labels_of_elements_that_are_left_out_do_not_count_as_told_apart():
    """Of chains: the widest element of a row and the width of the transitions that are allowed."""
    unary = torch.zeros(3, 4, 2)
    unary[0, :, 1] = torch.tensor([1.0, -2.0, 0.5, 100.0])
    unary[1, :, 1] = torch.tensor([100.0, 0.0, 0.0, 0.0])
    unary[2, :, 1] = torch.tensor([1.0, 3.0, 100.0, 100.0])
    mask = torch.tensor([[True, True, True, False], [False, True, True, True], [True, True, False, False]])
    flat = LabelChain(unary, torch.zeros(2, 2), mask=mask)
    assert spread(flat).tolist() == pytest.approx([2.0, 0.0, 3.0])
    told = LabelChain(unary, torch.tensor([[0.0, -0.25], [math.inf, 0.5]]), mask=mask)
    assert spread(told).tolist() == pytest.approx([2.75, 0.75, 3.75])


def test_the_gradient_of_the_likelihood_sums_to_nothing_over_answers():
    scores = torch.randn(5, 4, generator=seeded()).double().requires_grad_()

    class Given(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return scores

    energy = LabelledEnergy(Given())
    AnswerLikelihood().per_row(
        energy, Batch(torch.zeros(5, 2), torch.tensor([0, 1, 2, 3, 1])), None
    ).sum().backward()
    torch.testing.assert_close(scores.grad.sum(-1), torch.zeros(5).double())


@kinds
def test_a_cold_likelihood_is_the_perceptrons_loss(kind: str):
    energy, data = MAKERS[kind](), rows_of(kind)
    n_answers = {"labelled": 4, "chain": 3**5, "graph": 12}[kind]
    cold = AnswerLikelihood(0.01).per_row(energy, data, None)
    limit = MarginLoss(perceptron).per_row(energy, data, None)
    assert ((cold >= limit - 1e-9) & (cold <= limit + 0.01 * math.log(n_answers) + 1e-9)).all()


@pytest.mark.parametrize("temperature", [0.4, 3.0])
def test_the_empirical_error_is_the_chance_that_a_drawn_answer_is_wrong(temperature: float):
    """One minus the softmax of -E / T at the right label."""
    energy, data = labelled(), rows_of("labelled")
    found = MinimumEmpiricalError(temperature).per_row(energy, data, None)
    p = torch.softmax(-energy.energies(data.x) / temperature, -1)
    torch.testing.assert_close(found, 1 - p[torch.arange(len(p)), data.y.long()], atol=1e-6, rtol=1e-5)


def test_an_answer_known_in_part_is_summed_over_or_completed():
    energy, data = chain(), rows_of("chain")
    y = data.y.clone()
    y[0, 2], y[3, 0] = -1, -1
    data = Batch(data.x, y)
    nll, hinge = AnswerLikelihood().per_row(energy, data, None), MarginLoss(Hinge()).per_row(energy, data, None)
    for row in (0, 3):
        answers, energies = all_answers(energy, data, row)
        known = y[row] != -1
        agrees = (answers[:, known] == y[row, known]).all(-1)
        expected = torch.logsumexp(-energies, 0) - torch.logsumexp(-energies[agrees], 0)
        torch.testing.assert_close(nll[row], expected)
        torch.testing.assert_close(hinge[row], torch.relu(1 + energies[agrees].min() - energies[~agrees].min()))


def test_a_sequence_without_a_label_teaches_nothing():
    energy, data = chain(), rows_of("chain")
    data = Batch(data.x, torch.full_like(data.y, -1))
    for name in ("likelihood", "perceptron", "hinge", "log", "mce", "mee"):
        losses = ANSWER_LOSSES[name]().per_row(energy, data, None)
        torch.testing.assert_close(losses, torch.zeros(4).double())
        losses.sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in energy.parameters())


def test_a_cost_for_each_wrong_label_finds_the_worst_of_all_answers():
    energy, data = chain(), rows_of("chain")
    losses = MarginLoss(Hinge(0.0), cost=0.8).per_row(energy, data, None)
    for row, truth in enumerate(data.y):
        answers, energies = all_answers(energy, data, row)
        wrong = (answers != truth).sum(-1)
        slack = energies[wrong == 0][0] + (0.8 * wrong - energies)
        torch.testing.assert_close(losses[row], slack.max().clamp_min(0.0))


# -- answers that are numbers --------------------------------------------------------------------------------


class TwoWells(nn.Module):
    """An energy of y with minima at x and at -x, the second a little higher."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        first, second = (y - x).square().sum(-1), (y + x).square().sum(-1) + 0.5
        return torch.minimum(first, second)


def test_the_search_outside_a_ball_finds_the_other_well():
    x = torch.tensor([[2.0, 0.0], [0.0, 3.0], [2.0, 2.0]])
    given = ConditionalModuleEnergy(TwoWells()).given(x)
    found = lowest_outside(given, x, OutsideBall(0.5, n_starts=32, n_steps=60), seeded())
    assert ((found.y - x).norm(dim=-1) >= 0.5 - 1e-5).all()
    # Its edge has the energy .25, less than the other well.
    torch.testing.assert_close(given(found.y), torch.full((3,), 0.25), atol=0.02, rtol=0)
    far = lowest_outside(given, x, OutsideBall(1.5, n_starts=32, n_steps=100), seeded())
    torch.testing.assert_close(given(far.y), torch.full((3,), 0.5), atol=0.05, rtol=0)
    torch.testing.assert_close(far.y, -x, atol=0.3, rtol=0)


def test_the_search_outside_a_ball_starts_at_the_answers_of_other_rows_too():
    """Narrow wells far beyond all other starts, which lie within four radii."""
    y = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 30.0]])

    class Narrow(nn.Module):
        def forward(self, x: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
            return -torch.exp(-(candidates.unsqueeze(-2) - y).square().sum(-1)).sum(-1)

    given = ConditionalModuleEnergy(Narrow()).given(torch.zeros(3, 1))
    found = lowest_outside(given, y, OutsideBall(1.0, n_starts=32, n_steps=5), seeded())
    torch.testing.assert_close(given(found.y), -torch.ones(3), atol=1e-3, rtol=0)
    assert ((found.y - y).norm(dim=-1) > 10).all()


def test_a_hinge_over_numbers_digs_wells_at_the_right_answers():
    generator = seeded()
    x = torch.rand(256, 1, generator=generator) * 4 - 2
    y = torch.sin(2 * x)

    class Energy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
            )

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.layers(torch.cat([x, y], -1)).squeeze(-1)

    torch.manual_seed(0)
    energy = ConditionalModuleEnergy(Energy())
    objective = MarginLoss(logarithmic, OutsideBall(0.15))
    history = Trainer(Plan(max_epochs=60, batch_size=64, learning_rate=0.02)).fit(energy, objective, Batch(x, y))
    grid = torch.linspace(-1.5, 1.5, 121)[None, :, None].expand(256, -1, -1)
    best = grid[0, energy.given(x)(grid).argmin(1), 0]
    assert (best - y[:, 0]).abs().median() < 0.15
    assert history.epochs[-1]["energy gap"] > 0


# -- what is noticed and refused -----------------------------------------------------------------------------


class Squared(nn.Module):
    """Energies from 0 of ten labels; minus them are the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -self.layers(x).square()


@pytest.mark.parametrize("name", ["energy", "square-square"])
def test_the_energy_loss_collapses_and_the_history_says_so(name: str):
    digits = load_digits()
    x, y = torch.from_numpy(digits.data / 8 - 1).float(), torch.from_numpy(digits.target)
    torch.manual_seed(0)
    energy = LabelledEnergy(Squared())
    plan = Plan(max_steps=600, batch_size=100, learning_rate=0.01)
    history = Trainer(plan).fit(energy, ANSWER_LOSSES[name](), Batch(x[:1200], y[:1200]))
    collapsed = any("energies of all answers are equal" in event for event in history.events)
    assert collapsed == (name == "energy")
    right = (energy.energies(x[1200:]).argmin(-1) == y[1200:]).float().mean()
    assert right < 0.5 if collapsed else right > 0.9


def test_a_finished_training_that_is_resumed_reports_its_collapse_once(tmp_path):
    digits = load_digits()
    data = Batch(torch.from_numpy(digits.data / 8 - 1).float(), torch.from_numpy(digits.target))
    plan = Plan(max_steps=600, batch_size=100, learning_rate=0.01)
    torch.manual_seed(0)
    energy = LabelledEnergy(Squared())
    first = Trainer(plan, run_dir=tmp_path).fit(energy, ANSWER_LOSSES["energy"](), data)
    again = Trainer(plan, run_dir=tmp_path).fit(energy, ANSWER_LOSSES["energy"](), data, resume=True)
    assert len(first.events) == 1
    assert again.events == first.events


def test_answers_that_cannot_be_gone_through_are_refused():
    energy = ConditionalModuleEnergy(TwoWells())
    data = Batch(torch.zeros(4, 2), torch.zeros(4, 2))
    with pytest.raises(TypeError, match="give the objective a search"):
        MarginLoss(perceptron).per_row(energy, data, None)
    with pytest.raises(TypeError, match="summed over exactly"):
        AnswerLikelihood().per_row(energy, data, None)
    with pytest.raises(TypeError, match="leave search out"):
        MarginLoss(perceptron, OutsideBall(0.1)).per_row(labelled(), rows_of("labelled"), None)
    with pytest.raises(TypeError, match="for chains of labels"):
        MarginLoss(Hinge(), cost=1.0).per_row(labelled(), rows_of("labelled"), None)
    with pytest.raises(ValueError, match="temperature must be positive"):
        MinimumEmpiricalError(0.0)
