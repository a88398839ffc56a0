"""The recipes of the applications run, and hand back figures and pictures; full size reaches the targets."""

import json

import numpy as np
import pytest
import torch

from thalweg.data.tanks import Series
from thalweg.energies.networks import DirectRegression, mlp
from thalweg.objectives.base import Batch
from thalweg.objectives.energy_loss import EnergyLoss
from thalweg.recipes import age, boxes_2d, boxes_3d, head_pose, tanks
from thalweg.recipes.base import Settings

RECIPES = [module.RECIPE for module in (age, head_pose, boxes_2d, boxes_3d, tanks)]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.name)
def test_quick_run(recipe):
    messages = []
    result = recipe.run(Settings(seeds=(0, 1), quick=True, tell=messages.append))
    names = [f.name for f in result.figures]
    assert len(set(names)) == len(names)
    assert all(len(f.values) == 2 and np.isfinite(f.values).all() for f in result.figures)
    assert any(f.target is not None for f in result.figures)
    assert result.pictures
    for picture in result.pictures.values():
        assert json.loads(picture.to_json())["data"]
    assert len(messages) == 2
    assert result.notes


def test_same_seed_same_figures():
    first, second = (boxes_3d.RECIPE.run(Settings(seeds=(3,), quick=True)) for _ in range(2))
    assert [f.values for f in first.figures] == [f.values for f in second.figures]


def test_tanks_run_on_measured_series(tmp_path):
    rng = np.random.default_rng(0)
    names = ("X_train", "y_train", "X_test", "y_test")
    np.savez(tmp_path / "cascaded_tanks.npz", **{k: rng.uniform(2, 8, 200).astype(np.float32) for k in names})
    result = tanks.RECIPE.run(Settings(seeds=(0,), data=tmp_path, quick=True))
    assert "measured Cascaded Tanks" in result.notes[0]


def test_free_run_of_a_known_system_is_that_system():
    rng = np.random.default_rng(0)
    u, y = rng.uniform(0, 1, 80), np.zeros(80)
    for t in range(1, 80):
        y[t] = 0.8 * y[t - 1] + u[t - 1]
    n = tanks.N_LAGS
    level = tanks.free_run(lambda x: 0.8 * x[:, 0] + x[:, n], Series(u, y))
    np.testing.assert_allclose(level, y[n:])


def test_direct_regression_is_least_squares():
    torch.manual_seed(0)
    network = DirectRegression(mlp([3, 8]), 8, 2)
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    answer = network.features(x)
    loss = EnergyLoss()(network, Batch(x, y)).value
    torch.testing.assert_close(loss, 0.5 * (y - answer).square().sum(1).mean())
    torch.testing.assert_close(network(x, answer), torch.zeros(5))
    assert network.given(x)(torch.randn(5, 7, 2)).shape == (5, 7)
