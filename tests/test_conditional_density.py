"""``given(x)`` of what is normalised: a density with draws; and the classifier that a labelled energy is."""

import math

import pytest
import torch
from torch import nn

from thalweg.energies import (
    GaussianEnergy,
    LabelledEnergy,
    MixtureDensity,
    ModuleEnergy,
    TiltedMixtureEnsemble,
    mlp,
)
from thalweg.energies.densities import Density


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


X = torch.tensor([[0.3, -1.0], [1.5, 0.2]])
MAKERS = {
    "mixture": lambda: MixtureDensity(mlp([2, 8]), 8, n_components=3),
    "ensemble": lambda: TiltedMixtureEnsemble(2, n_members=3, hidden=(8,), n_components=2, n_tilts=4),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_given_x_it_is_a_density_whose_draws_are_its_own(make):
    torch.manual_seed(2)
    given = make().eval().given(X)
    assert isinstance(given, Density)
    grid = torch.linspace(-12, 12, 4001)
    p = given.log_prob(grid.reshape(1, -1, 1).expand(2, -1, 1)).exp()
    step = float(grid[1] - grid[0])
    torch.testing.assert_close(p.sum(1) * step, torch.ones(2), rtol=0, atol=1e-3)
    n = 40_000
    draws = given.sample(n, seeded())
    assert draws.shape == (n, 2, 1)
    assert not draws.requires_grad
    mean = (p * grid).sum(1) * step
    std = ((p * grid.square()).sum(1) * step - mean.square()).sqrt()
    off = (draws.mean(0)[:, 0] - mean) / (std / math.sqrt(n))
    assert (off.abs() < 4).all()
    torch.testing.assert_close(given.log_prob(draws[:5].movedim(0, 1)), -given(draws[:5].movedim(0, 1)))
    second = given.rows(slice(1, 2))
    assert isinstance(second, Density)
    torch.testing.assert_close(second.log_prob(draws[0, 1:]), given.log_prob(draws[0])[1:])


def test_a_labelled_energy_is_a_classifier_and_three_energies():
    torch.manual_seed(0)
    network = nn.Linear(2, 4)
    labelled = LabelledEnergy(network)
    scores = network(X)
    given = labelled.given(X)
    labels = torch.tensor([2, 0])
    wanted = torch.log_softmax(scores, -1)
    torch.testing.assert_close(given.log_prob(labels), wanted[[0, 1], labels])
    torch.testing.assert_close(given.log_prob(torch.arange(4).expand(2, 4)), wanted)
    torch.testing.assert_close(given(labels), -given.log_prob(labels))
    torch.testing.assert_close(labelled(X, labels), -scores[[0, 1], labels])
    n = 20_000
    draws = given.sample(n, seeded())
    shares = torch.stack([(draws == k).float().mean(0) for k in range(4)], 1)
    p = wanted.exp().detach()
    assert ((shares - p).abs() < 4 * (p * (1 - p) / n).sqrt()).all()
    torch.testing.assert_close(labelled.given_label(3)(X), -scores[:, 3])
    torch.testing.assert_close(labelled.given_label(3)(X[0]), -scores[0, 3])
    torch.testing.assert_close(labelled.marginal()(X), -torch.logsumexp(scores, 1))
    torch.testing.assert_close(labelled.lowest()(X), -scores.amax(1))
    both = X.unsqueeze(1).expand(2, 5, 2)
    torch.testing.assert_close(
        labelled.of_inputs().given(labels)(both), -scores[[0, 1], labels, None].expand(2, 5)
    )
    with pytest.raises(ValueError, match="temperature must be positive"):
        labelled.marginal(0.0)


def test_any_module_is_an_energy_without_an_x():
    bell = GaussianEnergy(torch.zeros(2), torch.ones(2))
    energy = ModuleEnergy(bell, sign=-1.0)
    x = torch.randn(3, 4, 2, generator=seeded())
    torch.testing.assert_close(energy(x), -bell(x))
    image = ModuleEnergy(nn.Sequential(nn.Flatten(), nn.Linear(12, 1), nn.Flatten(0)), event_ndim=3)
    assert image(torch.zeros(5, 2, 3, 2, 2)).shape == (5, 2)
    torch.testing.assert_close(energy.score(x).detach(), x)
