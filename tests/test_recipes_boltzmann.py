"""The recipes of Boltzmann machines run, and hand back figures and pictures."""

from __future__ import annotations

import numpy as np
import pytest

from thalweg.recipes import boltzmann
from thalweg.recipes.base import Settings


def test_quick_run():
    messages: list[str] = []
    result = boltzmann.RECIPE.run(Settings(seeds=(0,), quick=True, tell=messages.append))
    assert len(messages) == 1
    assert result.pictures
    assert all(np.isfinite(figure.values).all() for figure in result.figures)


@pytest.mark.slow
def test_quick_run_on_images_of_28_x_28_pixels(tmp_path):
    rng = np.random.RandomState(0)
    images, labels = rng.randint(0, 256, (300, 28, 28)).astype(np.uint8), rng.randint(0, 10, 300)
    np.savez(
        tmp_path / "mnist_12k.npz",
        X_train=images[:240],
        y_train=labels[:240],
        X_test=images[240:],
        y_test=labels[240:],
    )
    result = boltzmann.RECIPE.run(Settings(seeds=(0,), quick=True, data=tmp_path))
    assert "Fantasies of the deep machine" in result.pictures
    assert sum(figure.target is not None for figure in result.figures) == 6
    assert all(np.isfinite(figure.values).all() for figure in result.figures)


def test_a_folder_without_the_digits_is_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match=r"no mnist_12k.npz"):
        boltzmann.RECIPE.run(Settings(seeds=(0,), quick=True, data=tmp_path))
