"""PyTorch's global settings neither reach into the library nor are changed by it, in threads too."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch

from make_saved_models import MODELS
from thalweg import EnergyDensity, EnergyRegressor
from thalweg.energies import Dropout

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 4))
Y = X[:, 0] + 0.1 * RNG.normal(size=120)
SMALL = {"n_members": 2, "hidden": (16,), "max_epochs": 4, "random_state": 0}
every_model = pytest.mark.parametrize("name", MODELS)


def asked(name: str) -> np.ndarray:
    build, ask = MODELS[name]
    return np.asarray(ask(build()))


@pytest.fixture
def restored():
    """Every global setting as it was, whatever a test does to it."""
    dtype, grad, threads = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    yield
    torch.set_default_dtype(dtype)
    torch.set_default_device(None)
    torch.set_grad_enabled(grad)
    torch.set_num_threads(threads)


@every_model
def test_settings_of_the_caller_change_no_answer_and_stay_as_they_were(name, restored):
    """Other numbers by default, no gradients, and another place for tensors, where nothing could be computed."""
    wanted = asked(name)
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_default_device("meta")
    found = asked(name)
    assert torch.get_default_dtype() == torch.float64
    assert torch.get_default_device().type == "meta"
    assert not torch.is_grad_enabled()
    torch.set_default_device(None)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("make", [EnergyRegressor, EnergyDensity])
def test_a_seed_means_the_same_in_threads(make, restored):
    def fit(_):
        model = make(**SMALL)
        if make is EnergyRegressor:
            return model.fit(X, Y).predict(X[:5])
        return model.fit(X[:, :2]).score_samples(X[:5, :2])

    alone = fit(0)
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fit, range(8)))
    for other in found:
        np.testing.assert_allclose(other, alone, rtol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_two_columns_of_one_name_are_refused():
    table = pd.DataFrame(X[:, :3], columns=["a", "b", "a"])
    for fit in (lambda: EnergyDensity(**SMALL).fit(table), lambda: EnergyRegressor(**SMALL).fit(table, Y)):
        with pytest.raises(ValueError, match="2 columns are named 'a'"):
            fit()


def test_dropout_is_that_of_pytorch_by_numbers_of_its_own():
    """A share p is dropped and the rest scaled by 1 / (1 - p): mean 1, standard error from the binomial."""
    layer, n = Dropout(0.3), 40_000
    layer.generator = torch.Generator().manual_seed(0)
    state = torch.get_rng_state()
    out = layer(torch.ones(n))
    assert torch.equal(torch.get_rng_state(), state)
    assert abs(float((out == 0).float().mean()) - 0.3) < 4 * (0.3 * 0.7 / n) ** 0.5
    torch.testing.assert_close(out[out > 0], torch.full((int((out > 0).sum()),), 1 / 0.7))
    assert torch.equal(layer.eval()(out), out)
    assert copy.deepcopy(layer).generator is None
    assert pickle.loads(pickle.dumps(layer)).probability == 0.3
