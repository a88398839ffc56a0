"""The comparison of methods that train an energy of boxes: it runs, and its parts do what they say."""

import numpy as np
import pytest
import torch

from command import thalweg
from thalweg.data.rendered import render_scenes
from thalweg.objectives.base import Batch
from thalweg.recipes import boxes_2d
from thalweg.recipes.base import Settings
from thalweg.recipes.box_methods import JITTER, LABELS, METHODS, _Trial


@pytest.mark.slow
def test_quick_run():
    messages = []
    assert boxes_2d.RECIPE.compare is not None
    result = boxes_2d.RECIPE.compare(Settings(seeds=(0, 1), quick=True, tell=messages.append))
    figures = {f.name: f for f in result.figures}
    assert len(figures) == len(result.figures)
    assert all(len(f.values) == 2 and np.isfinite(f.values).all() for f in result.figures)
    for kind in LABELS:
        assert {f"{name}, {kind}: IoU" for name in (*METHODS, "direct regression")} <= set(figures)
    difference = np.subtract(figures["NCE+, jittered: IoU"].values, figures["NCE, jittered: IoU"].values)
    np.testing.assert_allclose(figures["NCE+ less NCE, jittered: IoU"].values, difference)
    assert max(map(len, figures)) <= 44  # the terminal's table is narrow
    (table,) = result.pictures.values()
    assert len(table.data[0].cells["values"][0]) == len(METHODS) + 1
    assert len(messages) == 2


@pytest.fixture(scope="module")
def trials():
    settings = Settings(quick=True)
    return [_Trial(boxes_2d.TASK, boxes_2d._batch, settings, 0, jitter) for jitter in LABELS.values()]


def test_labels_are_jittered_and_test_boxes_are_not(trials):
    clean, jittered = trials
    for which in ("train", "held_out"):
        moved = (getattr(jittered, which).y - getattr(clean, which).y) / torch.as_tensor(boxes_2d.SCALE)
        # The standard error of a standard deviation of n numbers is s / sqrt(2 n).
        assert float(moved.std()) == pytest.approx(JITTER, rel=4 / (2 * moved.numel()) ** 0.5)
    assert torch.equal(clean.test.y, jittered.test.y)
    assert torch.equal(clean.train.x, jittered.train.x)


def test_true_codes_have_an_iou_of_one(trials):
    trial = trials[0]
    assert trial.iou(trial.test.y, trial.test_scenes) == pytest.approx(1.0, abs=1e-4)
    assert trial.iou(torch.zeros_like(trial.test.y), trial.test_scenes) < 0.9


def test_energies_learn_from_the_features_of_the_first_direct_network(trials):
    trial = trials[0]
    batch = boxes_2d._batch(trial.test_scenes)
    assert trial.seen(batch).x.shape == (len(batch.y), boxes_2d.N_FEATURES)
    assert not trial.seen(batch).x.requires_grad
    assert torch.equal(trial.seen(batch).y, batch.y)
    energy = trial.trained(METHODS["NCE"](5.0))
    assert sum(p.numel() for p in energy.feature_network.parameters()) == 0


@pytest.mark.parametrize("name", METHODS)
def test_noise_grows_with_the_scale(name):
    """Standard deviations that are shares of the box become those of scaled codes."""
    batch = boxes_2d._batch(render_scenes(4, 0))
    assert isinstance(batch, Batch)
    one, two = METHODS[name](1.0), METHODS[name](2.0)
    noises = [getattr(objective, "noise", None) for objective in (one, two)]
    if noises[0] is not None:
        torch.testing.assert_close(2 * noises[0].stds, noises[1].stds)
    elif name == "DSM":
        torch.testing.assert_close(2 * one.stds, two.stds)
    else:
        # A step of Langevin dynamics is half the square of its noise.
        assert two.kernel.step_size == pytest.approx(4 * one.kernel.step_size)


def test_a_recipe_without_methods_refuses_to_compare_them():
    found = thalweg("reproduce", "narx", "--methods", code=1)
    assert "narx compares no methods of training" in " ".join(found.err.split())
