"""The recipes of classifiers run and hand back figures and pictures, and their parts do what they say."""

import json

import numpy as np
import pytest
import torch

from thalweg.recipes import RECIPES, classifying, hdge, jem, semi_supervised
from thalweg.recipes.base import Settings
from thalweg.recipes.classifying import Rows, few_labels, images, wrong_labels


@pytest.mark.parametrize("module", [jem, hdge, semi_supervised])
def test_quick_run(module):
    messages = []
    result = module.RECIPE.run(Settings(seeds=(0, 1), quick=True, tell=messages.append))
    figures = {f.name: f for f in result.figures}
    assert len(figures) == len(result.figures)
    assert all(len(f.values) == 2 and np.isfinite(f.values).all() for f in result.figures)
    assert set(module.TARGETS) <= set(figures)
    assert all(f.target is None for f in result.figures)  # a quick run is not judged
    assert max(map(len, figures)) <= 44  # the terminal's table is narrow
    for picture in result.pictures.values():
        assert json.loads(picture.to_json())["data"]
    assert result.pictures
    assert len(messages) == 2
    assert result.notes
    assert RECIPES[module.RECIPE.name] is module.RECIPE


def test_same_seed_same_figures():
    first, second = (hdge.RECIPE.run(Settings(seeds=(3,), quick=True)) for _ in range(2))
    timed = "HDGE: seconds over CE's (ratio)"
    assert [f.values for f in first.figures if f.name != timed] == [
        f.values for f in second.figures if f.name != timed
    ]


def test_images_of_another_set_are_read_and_must_have_ten_labels(tmp_path):
    rng = np.random.RandomState(0)
    pixels = rng.randint(0, 256, (40, 6, 6)).astype(np.uint8)
    arrays = {"X_train": pixels, "X_test": pixels[:10], "y_train": np.arange(40) % 10, "y_test": np.arange(10)}
    np.savez(tmp_path / "mnist_12k.npz", **arrays)
    train, test, name = images(Settings(data=tmp_path), 0)
    assert train.x.shape == (40, 1, 6, 6)
    assert len(test.y) == 10
    assert name == "mnist_12k.npz"
    np.savez(tmp_path / "mnist_12k.npz", **{**arrays, "y_train": np.arange(40) % 9})
    with pytest.raises(ValueError, match="labels 0 to 9"):
        images(Settings(data=tmp_path), 0)
    with pytest.raises(ValueError, match=r"holds no mnist_12k\.npz"):
        images(Settings(data=tmp_path / "nothing"), 0)


def test_few_and_wrong_labels_are_as_many_as_asked_for():
    rows = Rows(torch.zeros(1000, 1, 2, 2), torch.arange(1000) % 10)
    few = few_labels(rows, 7, 0).y
    assert torch.bincount(few[few >= 0]).tolist() == [7] * 10
    assert torch.equal(few[few >= 0], rows.y[few >= 0])
    wrong = wrong_labels(rows, 0.3, 0).y
    # The standard error of the share is 0.014.
    assert float((wrong != rows.y).float().mean()) == pytest.approx(0.3, abs=0.06)
    assert set(wrong.tolist()) == set(range(10))


def test_at_paper_scale_the_network_is_of_residual_blocks():
    energy = classifying.network(Settings(paper_scale=True), torch.Size((3, 8, 8)), 0)
    assert energy.energies(torch.rand(2, 3, 8, 8)).shape == (2, 10)
    for variant in jem.VARIANTS.values():
        rows = Rows(torch.rand(20, 3, 8, 8), torch.arange(20) % 10)
        variant.build(rows, True)


def test_labels_of_the_spirals_lie_evenly_along_the_arms():
    points, arm, place = semi_supervised.two_spirals(1000, np.random.RandomState(0))
    labels = semi_supervised.spread_labels(arm, place, 7)
    for k in (0, 1):
        chosen = labels == k
        assert chosen.sum() == 7
        assert (arm[chosen] == k).all()
        assert np.diff(np.sort(place[chosen])).max() < 0.3
    # Points of one arm are nearer to a point of their own arm than to any of the other.
    gaps = np.linalg.norm(points[:, None] - points, axis=2) + 9 * np.eye(1000)
    assert (arm[gaps.argmin(1)] == arm).mean() > 0.99
