"""What every estimator keeps: parameters, seeds, one history, options by keyword, saved models, refusals."""

import copy
import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import thalweg
from make_saved_models import BITS, IMAGES, MODELS, ROWS, TINY
from thalweg import (
    EnergyClassifier,
    EnergyDensity,
    EnergyDetector,
    EnergyForecaster,
    EnergyGAN,
    EnergyRanker,
    EnergyRegressor,
    EnergySequenceTagger,
    EnergyVAE,
    ImageEBM,
    IncrementalClassifier,
    RestrictedBoltzmannMachine,
    estimators,
)
from thalweg.estimators._base import Estimator
from thalweg.training.history import History

CLASSES = [getattr(thalweg, name) for name in dir(thalweg) if inspect.isclass(getattr(thalweg, name))]
# Learned in closed form: they have no settings of a training, and no checkpoints.
TRAINED = [cls for cls in CLASSES if cls not in (EnergyDetector, IncrementalClassifier)]
SHARED = {"device": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "32-true",
          "n_threads": None, "verbose": False, "random_state": None}  # fmt: skip
every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
every_trained_class = pytest.mark.parametrize("cls", TRAINED, ids=lambda c: c.__name__)
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def fitted():
    """One fitted model of each kind, made when it is first asked for."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = MODELS[name][0]()
        return made[name]

    return get


def asked(name, model):
    return np.asarray(MODELS[name][1](model))


def test_no_estimator_is_left_out():
    assert {type(build()) for build, _ in MODELS.values()} == set(CLASSES)
    assert all(issubclass(cls, Estimator) for cls in CLASSES)


@every_class
def test_parameters_are_kept_cloned_and_named_alike(cls):
    model = cls()
    params = model.get_params()
    if cls in TRAINED:
        assert {k: params[k] for k in SHARED} == SHARED
        assert "hidden" in params
        assert "max_epochs" in params or cls in (EnergyForecaster, EnergyGAN, EnergyVAE, ImageEBM)
    assert not {"n_iter", "n_epochs", "n_components"} & set(params) or cls in (
        EnergyRegressor,
        IncrementalClassifier,
    )
    assert clone(cls(random_state=3)).get_params()["random_state"] == 3
    kinds = [p.kind for p in inspect.signature(cls.__init__).parameters.values()][2:]
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for kind in kinds), "all but the first are keyword-only"


@every_class
def test_what_follows_the_data_is_keyword_only(cls):
    data = {
        "self",
        "X",
        "y",
        "classes",
        "groups",
        "past",
        "horizon",
        "moments",
        "v",
        "label",
        "n_samples",
        "folder",
        "noise_std",
        "input_features",
        "deep",
        "columns",
    }
    for name, method in inspect.getmembers(cls, inspect.isfunction):
        if name.startswith("_") or not method.__module__.startswith("thalweg"):
            continue
        for parameter in list(inspect.signature(method).parameters.values()):
            if parameter.name not in data and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, (name, parameter.name)


@every_class
def test_methods_of_one_name_have_one_meaning(cls):
    if hasattr(cls, "sample"):
        parameters = inspect.signature(cls.sample).parameters
        assert parameters["n_samples"].default == 1
        assert parameters["random_state"].default is None
    if hasattr(cls, "impute"):
        parameters = inspect.signature(cls.impute).parameters
        assert parameters["n_draws"].default is None
        assert parameters["random_state"].default is None
    if cls in TRAINED:
        assert {"run_dir", "resume", "checkpoint_seconds"} <= set(inspect.signature(cls.fit).parameters)


@every_class
def test_an_estimator_that_is_not_fitted_says_so(cls, tmp_path):
    with pytest.raises(NotFittedError):
        cls().save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@every_trained_class
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"devices": 0}, "devices must be"),
        ({"n_threads": 0}, "n_threads must be"),
        ({"hidden": 0}, "hidden must be"),
        ({"precision": "64-true"}, "of no use here"),
    ],
    ids=str,
)
def test_settings_that_can_not_be_are_refused(cls, setting, words):
    X, y = (IMAGES[:10], None) if cls is ImageEBM else (BITS[:30], np.arange(30) % 2)
    with pytest.raises(ValueError, match=words):
        cls(**setting).fit(X, y)


@every_model
def test_the_same_seed_gives_the_same_model_and_one_history(fitted, name):
    model, again = fitted(name), MODELS[name][0]()
    np.testing.assert_array_equal(asked(name, model), asked(name, again))
    assert isinstance(model.history_, History)
    assert len(model.history_.epochs) >= 1
    assert History.from_dict(json.loads(json.dumps(model.history_.to_dict()))) == model.history_


@every_model
def test_copies_and_saved_models_answer_alike(fitted, name, tmp_path):
    model = fitted(name)
    wanted = asked(name, model)
    np.testing.assert_array_equal(asked(name, copy.deepcopy(model)), wanted)
    np.testing.assert_array_equal(asked(name, pickle.loads(pickle.dumps(model))), wanted)
    model.save(tmp_path / "model", extra={"note": [1, "a"]})
    loaded = type(model).load(tmp_path / "model")
    np.testing.assert_allclose(asked(name, loaded), wanted, rtol=1e-5, atol=1e-6)
    assert loaded.extra_ == {"note": [1, "a"]}
    assert loaded.history_ == model.history_
    loaded.save(tmp_path / "again")  # a model that was loaded can be saved
    other = next(cls for cls in CLASSES if cls is not type(model))
    with pytest.raises(ValueError, match=f"holds a {type(model).__name__}, not a {other.__name__}"):
        other.load(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    document = json.loads(config.read_text())
    config.write_text(json.dumps({**document, "version": 99}))
    with pytest.raises(ValueError, match="newer"):
        type(model).load(tmp_path / "model")
    config.write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        type(model).load(tmp_path / "model")


@every_model
def test_a_model_is_loaded_without_the_callers_random_numbers(fitted, name, tmp_path):
    model = fitted(name)
    model.save(tmp_path / "model")
    state = torch.get_rng_state()
    type(model).load(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("folder", sorted(Path(__file__).parent.glob("saved_models/*/*")), ids=lambda p: p.name)
def test_models_saved_by_earlier_versions_keep_loading(folder):
    """What it answers is computed anew, on this processor: up to single precision."""
    config = json.loads((folder / "config.json").read_text())
    model = getattr(estimators, config["config"]["extra"]["class"]).load(folder)
    wanted = np.array(json.loads((folder / "answers.json").read_text()))
    np.testing.assert_allclose(asked(folder.name, model), wanted, rtol=1e-3, atol=1e-3)


@every_model
def test_draws_and_filled_gaps_have_the_shapes_that_all_have(fitted, name):
    model = fitted(name)
    event = IMAGES.shape[1:] if name.endswith("images") else (1,) if name.startswith("regressor") else (4,)
    if name.startswith("regressor"):
        assert model.sample(ROWS[:5, :3], n_samples=3, random_state=0).shape == (5, 3)
    elif name == "forecaster":
        drawn = model.sample(np.zeros(3), 4, 6, random_state=0)
        assert drawn.shape == (6, 4, 1)
        np.testing.assert_array_equal(drawn, model.sample(np.zeros(3), 4, 6, random_state=0))
    elif hasattr(model, "sample"):
        steps = {} if name.startswith(("density", "gan", "incremental", "vae-images")) else {"n_steps": 5}
        drawn = model.sample(6, random_state=0, **steps)
        assert drawn.shape == (6, *event)
        np.testing.assert_array_equal(drawn, model.sample(6, random_state=0, **steps))
        with pytest.raises(ValueError, match="n_samples must be a whole number"):
            model.sample(0)
    if hasattr(model, "impute"):
        X = (IMAGES if name.endswith("images") else ROWS if name.startswith(("density", "vae")) else BITS)[
            :5
        ].astype(float)
        gaps = X.copy()
        gaps[..., -1] = np.nan
        steps = {} if name.startswith("density") else {"n_steps": 5}
        mean = model.impute(gaps, random_state=0, **steps)
        draws = model.impute(gaps, n_draws=1, random_state=0, **steps)
        assert mean.shape == X.shape
        assert draws.shape == (1, *X.shape)
        for filled in (mean, draws[0]):
            assert np.isfinite(filled).all()
            np.testing.assert_array_equal(filled[..., :-1], X[..., :-1])
        with pytest.raises(ValueError, match="n_draws must be a whole number"):
            model.impute(gaps, n_draws=0)


@every_class
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused(cls, bad):
    with_gaps = (EnergyClassifier, EnergyDensity, EnergyDetector, EnergyForecaster, EnergyRanker, EnergyRegressor)
    if cls in with_gaps and np.isnan(bad):
        return  # gaps are taken
    X, y = (IMAGES[:10].copy(), None) if cls is ImageEBM else (BITS[:30].copy(), np.arange(30.0) % 2)
    X[0, ..., 0] = bad
    if cls is EnergySequenceTagger:
        X, y = np.split(X, 6), np.split(y, 6)
    with pytest.raises(ValueError, match=r"NaN|infinit|finite|gaps"):
        cls().fit(X, y)


def test_machines_are_trained_by_one_process():
    with pytest.raises(ValueError, match="trained by one process"):
        RestrictedBoltzmannMachine(2, devices=2).fit(BITS)


TWO = """
import sys
import numpy as np
import torch
torch.set_num_threads(1)
from sklearn.datasets import load_iris
from thalweg import EnergyDensity
rows = load_iris().data[::3]
how = dict(n_members=2, hidden=(4,), max_epochs=3, random_state=0, devices=2)
found = [EnergyDensity(objective, **how).fit(rows) for objective in ("auto", "dsm")]
if int(torch.distributed.get_rank()) == 0:
    np.save(sys.argv[1], [m.score_samples(rows) for m in found])
"""


@pytest.mark.slow
def test_two_processes_give_nearly_the_density_of_one(tmp_path):
    """Sums are taken in another order, and denoising draws its noise in each process: both within a small part of
    how far rows lie apart."""
    script, out = tmp_path / "two.py", tmp_path / "found.npy"
    script.write_text(TWO)
    done = subprocess.run([sys.executable, script, out], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(out)
    for scores, objective in zip(found, ("auto", "dsm"), strict=True):
        alone = EnergyDensity(objective, **{**TINY, "max_epochs": 3}).fit(ROWS).score_samples(ROWS)
        assert np.abs(scores - alone).mean() < 0.05 * alone.std() + (0.2 if objective == "dsm" else 0.0)
