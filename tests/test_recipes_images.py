"""The continual recipe runs and hands back figures and a picture; its chains follow the labels of the task."""

import json

import numpy as np
import pytest
import torch

from thalweg.energies.densities import UniformEnergy
from thalweg.objectives.base import Batch
from thalweg.recipes import continual
from thalweg.recipes.base import Settings


def test_quick_run():
    told = []
    result = continual.RECIPE.run(Settings(seeds=(0, 1), quick=True, tell=told.append))
    figures = {f.name: f for f in result.figures}
    assert len(figures) == len(result.figures)
    assert all(len(f.values) == 2 and np.isfinite(f.values).all() for f in result.figures)
    for name in ("accuracy, energy (share)", "accuracy, softmax (share)", "energy's over softmax's (ratio)"):
        assert name in figures
    assert max(map(len, figures)) <= 40  # the terminal's table is narrow
    for picture in result.pictures.values():
        assert json.loads(picture.to_json())["data"]
    assert result.pictures
    assert len(told) == 2
    assert result.notes


def test_same_seed_same_figures():
    first, second = (continual.RECIPE.run(Settings(seeds=(3,), quick=True)) for _ in range(2))
    assert [f.values for f in first.figures] == [f.values for f in second.figures]


def test_kept_chains_go_on_under_the_labels_of_the_batch():
    uniform = UniformEnergy(torch.zeros(continual.SHAPE), torch.ones(continual.SHAPE))
    buffer = continual.RelabelledBuffer(uniform, size=6, n_chains=6, restart=0.0)
    images = torch.rand(6, *continual.SHAPE)
    first = buffer.draw(torch.tensor([0.0, 1, 0, 1, 0, 1]), images)
    buffer.store(first, images, torch.zeros(6))
    labels = torch.tensor([2.0, 3, 2, 3, 2, 3])
    second = buffer.draw(labels, torch.rand(6, *continual.SHAPE))
    assert torch.equal(second.x, labels)
    # The images come back, each from where it was put.
    assert torch.equal(second.position[second.places.argsort()], images[first.places.argsort()])


def test_classifier_is_cross_entropy_of_minus_the_energies():
    torch.manual_seed(0)
    energy, images = continual.network(), torch.rand(4, *continual.SHAPE)
    labels = torch.tensor([0.0, 3, 9, 3])
    rows = continual.SoftmaxClassification().per_row(energy, Batch(labels, images), None)
    probability = torch.softmax(-energy.energies(images), -1)[torch.arange(4), labels.long()]
    torch.testing.assert_close(rows, -probability.log())


@pytest.mark.slow
def test_full_size_reaches_the_targets():
    result = continual.RECIPE.run(Settings(seeds=(0, 1)))
    assert all(f.reached is not False for f in result.figures)
