"""The consistency recipe runs, and its fits are the estimates that they should be."""

import json
import math

import numpy as np
import pytest
import torch

from thalweg.recipes import consistency
from thalweg.recipes.base import Settings


@pytest.mark.slow
def test_quick_run():
    messages = []
    result = consistency.RECIPE.run(Settings(seeds=(0, 1), quick=True, tell=messages.append))
    figures = {f.name: f for f in result.figures}
    assert len(figures) == len(result.figures)
    assert all(len(f.values) == 2 and np.isfinite(f.values).all() for f in result.figures)
    assert "NCE: slope off -1" in figures
    assert max(map(len, figures)) <= 50
    (picture,) = result.pictures.values()
    assert len(json.loads(picture.to_json())["data"]) == len(consistency.METHODS) + 1
    assert len(messages) == 2
    again = consistency.RECIPE.run(Settings(seeds=(0, 1), quick=True))
    assert [f.values for f in again.figures] == [f.values for f in result.figures]


@pytest.mark.parametrize("name", consistency.METHODS)
def test_every_method_finds_the_precision_and_log_z(name):
    truth, data = consistency._problem(20_000, 0)
    precision, log_z = consistency._estimate(consistency.METHODS[name], data, 0)
    # Of maximum likelihood the error has the covariance (P_ii P_jj + P_ij^2) / n; the others' squared
    # errors are about twice as large.
    error = ((torch.outer(truth.diagonal(), truth.diagonal()) + truth.square()) / len(data)).sqrt()
    assert ((precision - truth) / error).abs().max() < 4 * math.sqrt(2.2)
    assert (log_z is not None) == name.startswith("NCE")
    if log_z is not None:
        true_log_z = 0.5 * (5 * math.log(2 * math.pi) - float(truth.logdet()))
        # The deviation is .12 at 1000 rows with wide noise, and falls as the root of their number.
        assert log_z == pytest.approx(true_log_z, abs=4 * 0.12 * math.sqrt(1000 / len(data)))
