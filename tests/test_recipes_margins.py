"""The recipes of losses that order answers run, and what they draw and measure is what it should be."""

import json

import numpy as np
import pytest
import torch

from thalweg.objectives.catalogue import ANSWER_LOSSES
from thalweg.recipes import RECIPES, losses
from thalweg.recipes.base import Settings

# -- the ten losses -------------------------------------------------------------------------------------------


def test_losses_quick_run():
    messages = []
    result = losses.RECIPE.run(Settings(seeds=(0, 1), quick=True, tell=messages.append))
    figures = {f.name: f for f in result.figures}
    assert len(figures) == len(result.figures)
    assert all(len(f.values) == 2 and np.isfinite(f.values).all() for f in result.figures)
    assert all(f.target is None for f in result.figures)  # a quick run is not judged
    assert set(losses._targets()) <= set(figures)
    assert max(map(len, figures)) <= 44  # the terminal's table is narrow
    table, planes = result.pictures.values()
    assert len(table.data[0].cells["values"][0]) == len(losses.LOSSES)
    assert len(json.loads(planes.to_json())["data"]) == 3 * len(losses.LOSSES)
    assert len(messages) == 2
    assert RECIPES["losses"] is losses.RECIPE


def test_the_recipe_has_the_ten_losses_of_the_table():
    assert set(losses.LOSSES) == set(ANSWER_LOSSES)
    for name, loss in losses.LOSSES.items():
        for build in loss.variants.values():
            assert type(build()) is type(ANSWER_LOSSES[name]())


def test_a_constant_reaches_the_objective():
    margins = [build().shape.margin for build in losses.LOSSES["hinge"].variants.values()]
    assert len(set(margins)) == len(margins)
    temperatures = {build().temperature for build in losses.LOSSES["likelihood"].variants.values()}
    assert len(temperatures) == len(losses.LOSSES["likelihood"].variants)


def test_the_plane_is_the_losses_formula():
    correct, incorrect = torch.tensor([0.2, 1.0, 3.0]), torch.tensor([1.0, 0.5, 2.5])
    gap = correct - incorrect
    expected = {
        "energy": correct,
        "perceptron": gap.clamp(min=0),
        "hinge": (1 + gap).clamp(min=0),
        "mce": torch.sigmoid(gap),
        "square-square": correct**2 + (1 - incorrect).clamp(min=0) ** 2,
        "likelihood": correct + torch.logaddexp(-correct, -incorrect),
        "mee": torch.sigmoid(gap),
    }
    for name, height in expected.items():
        found = losses.on_plane(ANSWER_LOSSES[name](), correct, incorrect)
        torch.testing.assert_close(found, height, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("squared", [False, True])
def test_squared_outputs_are_energies_from_zero(squared):
    energies = losses.labelled_energy(squared, 0).energies(torch.rand(50, 64))
    assert energies.shape == (50, 10)
    assert bool((energies >= 0).all()) == squared


def test_the_energy_loss_collapses_and_the_history_says_so():
    rows, _, _, test = losses._data(Settings(), 0)
    loss = losses.LOSSES["energy"]
    energy, history = losses.fit(Settings(), loss, loss.variants[""](), rows, 1e-2, 0)
    assert losses._spread(energy, test) < 1e-3
    assert losses._collapses(history) == 1
    assert losses.accuracy(energy, test) < 0.5


def test_lvq2_refines_what_the_likelihood_began():
    rows, _, _, test = losses._data(Settings(), 0)
    loss = losses.LOSSES["lvq2"]
    began = losses._warmed_up(Settings(), loss, rows, loss.warm_up, 0)
    refined, _ = losses.fit(Settings(), loss, next(iter(loss.variants.values()))(), rows, 3e-3, 0)
    assert losses.accuracy(refined, test) > losses.accuracy(began, test)
    assert losses.accuracy(refined, test) > 0.9
