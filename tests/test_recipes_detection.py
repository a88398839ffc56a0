"""The recipes of outliers and of attacks run and hand back figures and pictures, and their parts are right."""

import json

import numpy as np
import pytest
import torch

from thalweg.evaluation.detection import auroc, energy
from thalweg.recipes import RECIPES, energy_ood, robustness
from thalweg.recipes.base import Settings
from thalweg.recipes.classifying import Rows, logits, network


@pytest.mark.parametrize("module", [energy_ood, robustness])
def test_quick_run(module):
    messages = []
    result = module.RECIPE.run(Settings(seeds=(0, 1), quick=True, tell=messages.append))
    figures = {f.name: f for f in result.figures}
    assert len(figures) == len(result.figures)
    assert all(len(f.values) == 2 and np.isfinite(f.values).all() for f in result.figures)
    assert all(f.target is None for f in result.figures)  # a quick run is not judged
    assert max(map(len, figures)) <= 44  # the terminal's table is narrow
    for picture in result.pictures.values():
        assert json.loads(picture.to_json())["data"]
    assert result.pictures
    assert len(messages) == 2
    assert result.notes
    assert RECIPES[module.RECIPE.name] is module.RECIPE


def test_same_seed_same_figures():
    first, second = (energy_ood.RECIPE.run(Settings(seeds=(3,), quick=True)) for _ in range(2))
    for a, b in zip(first.figures, second.figures, strict=True):
        assert a.name == b.name
        assert a.values == pytest.approx(b.values)


def test_every_target_is_of_a_figure_and_other_images_are_read(tmp_path):
    rng = np.random.RandomState(0)
    labels = np.arange(200) % 10
    # A row of each class is a bar in a place of its own, and the strangers are noise.
    pixels = rng.randint(0, 100, (200, 6, 6)) + 150 * (np.arange(36).reshape(6, 6) // 4 == labels[:, None, None])
    arrays = {"X_train": pixels.astype(np.uint8), "y_train": labels, "X_test": pixels[:60].astype(np.uint8)}
    np.savez(tmp_path / "mnist_12k.npz", **arrays, y_test=labels[:60])
    noise = rng.randint(0, 256, (60, 6, 6)).astype(np.uint8)
    np.savez(tmp_path / energy_ood.OTHERS, X_train=noise, X_test=noise)
    result = energy_ood.RECIPE.run(Settings(seeds=(0,), quick=True, data=tmp_path))
    figures = {f.name: f.mean for f in result.figures}
    assert set(energy_ood.TARGETS) | set(energy_ood.TARGETS_OF_DIGITS) <= set(figures)
    assert figures["AUROC, Fashion-MNIST: 1-NN"] == pytest.approx(1.0, abs=0.01)
    without = energy_ood.RECIPE.run(Settings(seeds=(0,), quick=True, data=tmp_path / "mnist_12k.npz"))
    assert "AUROC, Fashion-MNIST: 1-NN" not in {f.name for f in without.figures}


@pytest.mark.parametrize("paper_scale", [False, True])
def test_features_of_the_last_layer_give_the_logits(paper_scale):
    model = network(Settings(paper_scale=paper_scale), torch.Size((1, 8, 8)), 0, 4).eval()
    x = torch.rand(5, 1, 8, 8)
    features, last = energy_ood._last_inputs(model, x)
    with torch.no_grad():
        np.testing.assert_allclose(last(features).numpy(), logits(model, x), rtol=1e-4, atol=1e-4)


def test_scores_are_standardised_on_rows_set_aside_and_summed():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(300, 1, 4, 4, generator=generator), torch.arange(300) % 3
    model = network(Settings(), torch.Size((1, 4, 4)), 0, 3)
    rows, aside = Rows(x[:200], y[:200]), Rows(x[200:], y[200:])
    scores = energy_ood.Scores(model, rows, aside, 0)
    typical = scores(aside.x)
    assert set(typical) == set(energy_ood.SCORES)
    # On the rows set aside each term has mean 0 and standard deviation 1.
    assert typical["sum"].mean() == pytest.approx(0, abs=1e-6)
    terms = ("density", "energy", "1-NN")
    standard = [(typical[t] - typical[t].mean()) / typical[t].std() for t in terms]
    np.testing.assert_allclose(typical["sum"], np.sum(standard, 0), atol=1e-6)
    np.testing.assert_allclose(
        typical["sum, half the energy"], standard[0] + 0.5 * standard[1] + standard[2], atol=1e-6
    )
    np.testing.assert_allclose(typical["energy"], energy(logits(model, aside.x)), rtol=1e-5, atol=1e-5)
    far = scores(x[:50] + 5)
    for name in ("1-NN", "density"):
        assert auroc(typical[name], far[name]).value == 1
    # A training row is its own nearest neighbour.
    assert scores(rows.x)["1-NN"] == pytest.approx(0, abs=1e-6)


def test_objectives_are_of_the_settings_that_the_notes_state():
    rows = Rows(torch.rand(20, 1, 4, 4), torch.arange(20) % 10)
    assert set(robustness.OBJECTIVES) == {"CE", "CE, noise", "HDGE", "JEM", "DAT"}
    noisy, joint = (robustness.OBJECTIVES[name](rows, False) for name in ("CE, noise", "JEM"))
    # Noise of pixels in [0, 1], the same in both, and the density in one of them.
    assert noisy.input_noise == joint.input_noise == pytest.approx(robustness.NOISE)
    assert noisy.weight == 0
    assert joint.weight == 1
    assert robustness.OBJECTIVES["JEM"](rows, True).input_noise == pytest.approx(0.015)  # as published
    assert set(robustness.TARGETS) <= {f"{name}: roll-backs" for name in robustness.OBJECTIVES} | {
        "JEM: L-inf 0.1, all, less CE's"
    }


def test_accuracy_falls_with_the_radius_and_no_attack_is_stronger_than_all():
    result = robustness.RECIPE.run(Settings(seeds=(0,), quick=True))
    found = {f.name: f.mean for f in result.figures}
    for name in robustness.OBJECTIVES:
        for norm, radii in robustness.RADII.items():
            title = robustness.NAMES[norm]
            line = [found[f"{name}: accuracy"], *(found[f"{name}: {title} {radius:g}, all"] for radius in radii)]
            assert line == sorted(line, reverse=True)
            at = f"{name}: {title} {robustness.SHOWN[norm]:g}"
            attacks = [found[f"{at}, {attack}"] for attack in ("gradient", "search", "transfer")]
            assert found[f"{at}, all"] <= min(attacks)
