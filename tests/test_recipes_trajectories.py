"""Trajectories: the pendulum with two futures, the Gaussian recurrent network, and a quick run of the recipe."""

import numpy as np
import pytest
import torch
from scipy import stats

from thalweg.data.systems import pendulum
from thalweg.energies.base import check_energy
from thalweg.energies.densities.recurrent import RecurrentGaussian
from thalweg.recipes import RECIPES, trajectories
from thalweg.recipes.base import Settings


def test_pendulums_fall_to_either_side_as_often_and_come_to_rest_hanging():
    paths = pendulum(2000, 60, np.random.RandomState(0))
    assert paths.shape == (2000, 60, 2)
    assert (paths[:, 0] == 0).all()
    ends = paths[:, -1, 0]
    assert abs((ends > 0).mean() - 0.5) < 4 * 0.5 / 2000**0.5
    assert (np.abs(np.abs(ends) - np.pi) < trajectories.ASTRAY).all()
    # The push decides.
    assert (np.sign(ends) == np.sign(paths[:, 2, 0])).all()


@pytest.fixture(scope="module")
def network() -> RecurrentGaussian:
    torch.manual_seed(0)
    return RecurrentGaussian(torch.randn(30, 20, 2).cumsum(1), width=6).eval()


def test_the_energy_of_the_recurrent_network_is_minus_the_log_of_its_gaussians(network):
    paths = torch.randn(3, 6, 2).cumsum(1)
    check_energy(network.given(paths[:, 0]), paths[:, 1:])
    with torch.no_grad():
        found = network(paths[:, 0], paths[:, 1:])
        wanted = torch.zeros(3, dtype=torch.float64)
        for t in range(1, 6):
            before = paths[:, :t]
            mean, log_std, _ = network._next(before, before.diff(dim=1, prepend=before[:, :1]))
            centre = before[:, -1] + mean[:, -1] * network.step
            spread = log_std[:, -1].exp() * network.step
            wanted -= torch.from_numpy(stats.norm.logpdf(paths[:, t], centre, spread).sum(1))
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_draws_of_the_recurrent_network_have_the_moments_of_its_first_step(network):
    past = torch.randn(2, 4, 2).cumsum(1)
    drawn = network.draws_after(past, 3, 4000, torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 4000, 3, 2)
    with torch.no_grad():
        mean, log_std, _ = network._next(past, past.diff(dim=1, prepend=past[:, :1]))
    spread = log_std[:, -1].exp() * network.step
    first = drawn[:, :, 0]
    assert ((first.mean(1) - past[:, -1] - mean[:, -1] * network.step).abs() < 5 * spread / 4000**0.5).all()
    assert ((first.std(1) / spread - 1).abs() < 0.06).all()


def test_a_quick_run_of_the_recipe(tmp_path):
    assert RECIPES["trajectories"] is trajectories.RECIPE
    hands = np.random.RandomState(0).normal(size=(40, 70)).cumsum(1)
    np.savez(tmp_path / "motions.npz", hand_train=hands[:20], hand_test=hands[20:])
    result = trajectories.RECIPE.run(Settings(seeds=(0,), quick=True, data=tmp_path))
    found = {figure.name: figure.mean for figure in result.figures}
    assert all(np.isfinite(value) for value in found.values())
    assert found["pendulum: distance, truth"] < found["pendulum: distance, energy"]
    assert "hands: distance, training gestures" in found
    assert not any(figure.target for figure in result.figures)
    assert len(result.pictures) == 1
    with pytest.raises(ValueError, match=r"holds no motions\.npz"):
        trajectories.RECIPE.run(Settings(seeds=(0,), quick=True, data=tmp_path / "none"))
