"""Shapes are checked once, at the entry, in words: for every objective, and for chains."""

import pytest
import torch
from torch import nn

from thalweg.energies import ConditionalEnergy, Energy, GaussianEnergy, LabelledEnergy, NetworkEnergy, mlp
from thalweg.objectives import METHODS, Batch, CrossEntropy, RankingNCE
from thalweg.objectives.catalogue import conditional_objective
from thalweg.objectives.names import CONDITIONAL, DENSITY
from thalweg.sampling import MALA, run_chain, sample_chain
from thalweg.training import Plan, Trainer

ROWS = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
PLAN = Plan(max_steps=1, batch_size=8)


class Trailing(Energy):
    """Its forward forgets to drop the last dimension."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2, 4), nn.SiLU(), nn.Linear(4, 1))

    def forward(self, x):
        return self.network(x)


class ConditionalTrailing(ConditionalEnergy):
    def __init__(self):
        super().__init__()
        self.network = nn.Linear(4, 1)

    def head(self, features, y):
        x = features.reshape(len(features), *([1] * (y.dim() - 2)), -1).expand(*y.shape[:-1], features.shape[-1])
        return self.network(torch.cat([x, y], -1))


@pytest.mark.parametrize("name", DENSITY)
def test_a_trailing_dimension_is_refused_by_every_objective_of_a_density(name):
    objective = METHODS[name].build(ROWS)
    with pytest.raises(ValueError, match=r"one energy for each y.*got \[2, 1\]; drop the trailing dimension"):
        Trainer(PLAN).fit(Trailing(), objective, Batch(None, ROWS))


@pytest.mark.parametrize("name", [n for n in CONDITIONAL if n not in ("proposal-nce", "tilt-nce", "likelihood")])
def test_a_trailing_dimension_is_refused_by_every_conditional_objective(name):
    objective = conditional_objective(name, (0.1, 0.8), 4)
    with pytest.raises(ValueError, match="drop the trailing dimension"):
        Trainer(PLAN).fit(ConditionalTrailing(), objective, Batch(ROWS, ROWS))


def test_rows_that_do_not_line_up_are_refused_in_words():
    energy = NetworkEnergy(mlp([3, 8]), 8, 1)
    x, y = torch.zeros(2, 5, 3), torch.zeros(2, 5, 1)
    for batch, words in (
        (Batch(x, y), r"y must be \[rows, \*event\].*shape \[2, 5, 1\]"),
        (Batch(torch.zeros(4, 3), torch.zeros(5, 1)), "5 rows of y and 4 of x"),
        (Batch(torch.zeros(4, 3), torch.zeros(4)), r"y must be \[rows, \*event\]"),
        (Batch(torch.zeros(4, 3), torch.zeros(4, 1), torch.ones(3)), "3 of the weights"),
        (Batch(torch.zeros(4, 2, 3), torch.zeros(4, 1)), "one energy for each y"),
    ):
        with pytest.raises(ValueError, match=words):
            Trainer(PLAN).fit(energy, RankingNCE(n_samples=4), batch)
    with pytest.raises(TypeError, match="the batch needs an x"):
        Trainer(PLAN).fit(energy, RankingNCE(n_samples=4), Batch(None, torch.zeros(4, 1)))
    bell = GaussianEnergy(torch.zeros(2), torch.ones(2))
    with pytest.raises(TypeError, match="must have no x"):
        Trainer(PLAN).fit(bell, METHODS["sm"].build(ROWS), Batch(ROWS, ROWS))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.tensor([0, 1, 3]), "more than 3"),
        (torch.tensor([0.5, 1, 2]), "whole numbers"),
        (torch.tensor([-1, 1, 2]), "whole numbers"),
        (torch.tensor([[0], [1], [2]]), "one for each row"),
        (torch.tensor([0, 1]), "2 rows of y and 3 of x"),
    ],
)
@pytest.mark.parametrize("wrap", [nn.Identity, LabelledEnergy])
def test_labels_that_no_classifier_has_are_refused(labels, words, wrap):
    network = nn.Linear(2, 3)
    energy = network if wrap is nn.Identity else wrap(network)
    with pytest.raises(ValueError, match=words):
        Trainer(PLAN).fit(energy, CrossEntropy(), Batch(ROWS[:3], labels))


@pytest.mark.parametrize("run", [run_chain, sample_chain])
def test_a_chain_refuses_an_energy_with_a_trailing_dimension(run):
    with pytest.raises(ValueError, match="drop the trailing dimension"):
        run(MALA(0.1), Trailing(), ROWS, 3)


def test_what_is_no_energy_is_refused_by_name():
    with pytest.raises(TypeError, match="Linear is no energy: wrap a module in ModuleEnergy"):
        Trainer(PLAN).fit(nn.Linear(2, 1), METHODS["nce"].build(ROWS), Batch(None, ROWS))
