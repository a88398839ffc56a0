"""EnergyRegressor: scikit-learn's manners, densities that are right, bad input refused in words."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.datasets import load_diabetes
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from thalweg import EnergyRegressor
from thalweg.data.synthetic import BRANCHES, mean_kl
from thalweg.energies import MixtureDensity, NetworkEnergy, mlp
from thalweg.estimators.regressor import OBJECTIVES

SMALL = {"n_members": 2, "hidden": (32,), "max_epochs": 15, "random_state": 0}

# Rows are assigned to folds and batches, so a weight of two is not the same as a row twice.
LIMITS = {
    "check_sample_weight_equivalence_on_dense_data": "folds and batches are drawn by row, not by weight",
}


@parametrize_with_checks(
    [EnergyRegressor(n_members=3, hidden=(64,), max_epochs=150, max_steps=None, random_state=0)],
    expected_failed_checks=lambda estimator: LIMITS,
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def diabetes():
    return load_diabetes(return_X_y=True, as_frame=True, scaled=False)


@pytest.fixture(scope="module")
def fitted(diabetes):
    X, y = diabetes
    return EnergyRegressor(**SMALL).fit(X, y)


def linear_data(n=400, seed=0):
    rng = np.random.RandomState(seed)
    X = rng.standard_normal((n, 2))
    return X, 3.0 + 2.0 * X[:, 0] + (0.5 + 0.4 * (X[:, 1] > 0)) * rng.standard_normal(n)


# -- the density is right -------------------------------------------------------------------------------


def test_density_of_a_known_problem_is_near_the_truth():
    x, y = BRANCHES.sample(2000, np.random.RandomState(0))
    model = EnergyRegressor(n_members=4, hidden=(64, 64), random_state=0).fit(x[:, None], y)

    def log_density(x, y):
        return model.predict_distribution(x[:, None]).log_prob(np.broadcast_to(y, (len(x), len(y))))

    # A Gaussian of the right mean and spread for each x is more than 1 nat away here.
    assert mean_kl(BRANCHES, log_density, n_grid=512) < 0.06


def test_density_integrates_to_one_and_agrees_with_cdf_quantile_and_sample(fitted, diabetes):
    X = diabetes[0][:20]
    d = fitted.predict_distribution(X)
    grid = np.linspace(-400, 900, 6001)
    density = np.exp(d.log_prob(np.broadcast_to(grid, (20, 6001))))
    np.testing.assert_allclose(np.trapezoid(density, grid), 1.0, atol=1e-3)
    cdf = d.cdf(np.broadcast_to(grid, (20, 6001)))
    assert (np.diff(cdf) >= -1e-9).all()
    by_trapezoid = np.concatenate([np.zeros((20, 1)), np.cumsum((density[:, 1:] + density[:, :-1]) / 2, 1)], 1)
    np.testing.assert_allclose(cdf, by_trapezoid * (grid[1] - grid[0]), atol=2e-3)
    p = np.array([0.01, 0.3, 0.5, 0.99])
    np.testing.assert_allclose(d.cdf(d.quantile(p)), np.broadcast_to(p, (20, 4)), atol=1e-6)
    np.testing.assert_allclose(d.mean(), np.trapezoid(density * grid, grid), rtol=1e-3)
    draws = d.sample(4000, random_state=0)
    assert draws.shape == (20, 4000)
    assert (np.abs(draws.mean(1) - d.mean()) < 5 * d.std() / np.sqrt(4000)).all()
    assert (np.abs((draws < d.median()[:, None]).mean(1) - 0.5) < 5 * 0.5 / np.sqrt(4000)).all()
    assert d.relative_error().max() < 1e-4
    modes = d.modes()
    assert len(modes) == 20
    np.testing.assert_allclose([m[0] for m in modes], d.mode())


def test_intervals_cover_what_they_say():
    X, y = linear_data(1500)
    X_new, y_new = linear_data(2000, seed=1)
    model = EnergyRegressor(n_members=4, hidden=(64,), max_epochs=60, random_state=0).fit(X, y)
    for coverage in (0.5, 0.9):
        interval = model.predict_interval(X_new, coverage=coverage)
        covered = ((y_new >= interval[:, 0]) & (y_new <= interval[:, 1])).mean()
        # Three standard errors of the share, and 3 points for the model's own error.
        assert abs(covered - coverage) < 3 * np.sqrt(coverage * (1 - coverage) / 2000) + 0.03


def test_likelihood_is_near_the_truths_on_known_noise():
    X, y = linear_data(1500)
    X_new, y_new = linear_data(2000, seed=1)
    model = EnergyRegressor(n_members=4, hidden=(64,), max_epochs=60, random_state=0).fit(X, y)
    std = 0.5 + 0.4 * (X_new[:, 1] > 0)
    truth = stats.norm.logpdf(y_new, 3 + 2 * X_new[:, 0], std)
    loss = truth - model.predict_distribution(X_new).log_prob(y_new)
    assert -3 * loss.std() / np.sqrt(2000) < loss.mean() < 0.1
    # The held-out figure is the same quantity, measured on the training rows' folds.
    assert abs(model.validation_nll_ + truth.mean()) < 0.15


def test_prediction_does_not_depend_on_the_other_rows(fitted, diabetes):
    X = diabetes[0]
    whole = fitted.predict_distribution(X[:50])
    part = fitted.predict_distribution(X[10:12])
    np.testing.assert_allclose(whole.mean()[10:12], part.mean(), rtol=1e-5)
    np.testing.assert_allclose(whole[10:12].quantile(0.9), part.quantile(0.9), rtol=1e-5)


def test_chunks_change_nothing(fitted, diabetes, monkeypatch):
    X, y = diabetes
    whole = fitted.predict_distribution(X).log_prob(y.to_numpy())
    monkeypatch.setattr("thalweg.estimators.distribution.PredictiveDistribution.chunk_size", 100)
    monkeypatch.setattr("thalweg.estimators.distribution.PredictiveDistribution.cache_rows", 0)
    np.testing.assert_allclose(fitted.predict_distribution(X).log_prob(y.to_numpy()), whole, atol=2e-4)


@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if o != "auto"])
def test_every_objective_fits_a_density_that_integrates_to_one(objective):
    X, y = linear_data(300)
    if objective == "sm":
        model = EnergyRegressor(objective, n_samples=16, learning_rate=3e-4, **SMALL)
    else:
        model = EnergyRegressor(objective, n_samples=16, **SMALL)
    d = model.fit(X, y).predict_distribution(X[:5])
    grid = np.linspace(y.min() - 60, y.max() + 60, 20_001)
    density = np.exp(d.log_prob(np.broadcast_to(grid, (5, len(grid)))))
    np.testing.assert_allclose(np.trapezoid(density, grid), 1.0, atol=5e-3)
    assert np.isfinite(model.validation_nll_)


@pytest.mark.parametrize("objective", ["auto", "proposal-nce", pytest.param("nce", marks=pytest.mark.slow)])
def test_several_targets(objective):
    X, y = linear_data(400)
    rng = np.random.RandomState(1)
    Y = np.stack([y, -y + 0.3 * rng.standard_normal(400)], 1)
    model = EnergyRegressor(objective, n_samples=32, hidden=(64,), max_epochs=40, random_state=0).fit(X, Y)
    d = model.predict_distribution(X[:30])
    assert model.predict(X[:30]).shape == (30, 2)
    assert d.interval(0.9).shape == (30, 2, 2)
    assert d.log_prob(Y[:30]).shape == (30,)
    assert ((d.effective_sample_size >= 1) & (d.effective_sample_size <= d.n_importance + 1e-6)).all()
    draws = model.sample(X[:30], n_samples=50, random_state=0)
    assert draws.shape == (30, 50, 2)
    assert np.corrcoef((draws - draws.mean(1, keepdims=True)).reshape(-1, 2).T)[0, 1] < (
        -0.3 if objective == "auto" else 0.2
    )
    assert model.score(X, Y) > 0.5


# -- rounded and censored targets ------------------------------------------------------------------------


def test_rounded_target_is_recognised_and_its_likelihood_stays_bounded():
    X, y = linear_data(800)
    model = EnergyRegressor(**SMALL).fit(X, np.round(y))
    assert model.resolution_ == 1.0
    log_mass = model.predict_distribution(X).log_mass(np.round(y))
    assert (log_mass <= 0).all()
    # The probabilities of all cells add up to one.
    cells = np.arange(-20, 30)
    total = np.exp(model.predict_distribution(X[:3]).log_mass(np.broadcast_to(cells, (3, 50)))).sum(1)
    np.testing.assert_allclose(total, 1.0, atol=1e-3)
    assert EnergyRegressor(**SMALL).fit(X, y).resolution_ == 0.0


def test_censored_target_gets_a_spike_at_its_limit():
    X, y = linear_data(1500)
    limit = 5.0
    model = EnergyRegressor(n_members=2, hidden=(64,), max_epochs=60, random_state=0).fit(X, np.minimum(y, limit))
    d = model.predict_distribution(X)
    at_limit = d.atom_masses()[:, 0]
    assert model.atoms_ == [limit]
    assert d.cdf(np.full(len(X), limit)).min() > 1 - 1e-9
    np.testing.assert_allclose(d.cdf(np.full(len(X), limit)) - d.cdf_before(np.full(len(X), limit)), at_limit)
    np.testing.assert_allclose(d.log_prob(np.full(len(X), limit)), np.log(at_limit))
    share = (y >= limit).mean()
    assert abs(at_limit.mean() - share) < 3 * np.sqrt(share * (1 - share) / len(y)) + 0.02
    assert np.corrcoef(at_limit, y >= limit)[0, 1] > 0.5


def test_one_far_value_does_not_spoil_the_others():
    X, y = linear_data(400)
    X_new, y_new = linear_data(400, seed=1)
    clean = EnergyRegressor(random_state=0).fit(X, y).predict_distribution(X_new).log_prob(y_new)
    spoiled = EnergyRegressor(random_state=0).fit(X, _with(y, 5, 1e4)).predict_distribution(X_new)
    loss = clean - spoiled.log_prob(y_new)
    # Standardised by mean and deviation it costs twice this bound.
    assert loss.mean() < 0.1 + 3 * loss.std() / np.sqrt(400)
    assert np.median(np.diff(spoiled.interval(0.9))) < 5


# -- tables as they come ---------------------------------------------------------------------------------


def mixed_table(n=300):
    rng = np.random.RandomState(0)
    table = pd.DataFrame(
        {
            "number": rng.standard_normal(n),
            "kind": rng.choice(["a", "b", "c"], n),
            "flag": rng.uniform(size=n) < 0.5,
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.randint(0, 365, n), unit="D"),
            "constant": 1.0,
        }
    )
    y = table["number"] + 3 * (table["kind"] == "a") + 0.3 * rng.standard_normal(n)
    table.loc[::7, "number"] = np.nan
    table.loc[::11, "kind"] = None
    return table, y.to_numpy()


def test_mixed_columns_with_gaps_and_categories_never_seen():
    table, y = mixed_table()
    model = EnergyRegressor(n_members=2, hidden=(64,), max_epochs=60, random_state=0).fit(table, y)
    assert model.encoder_.ignored == ["constant"]
    assert model.score(table, y) > 0.7
    new = table[:3].assign(kind="never seen")
    with pytest.warns(UserWarning, match="'kind' has 'never seen' in row 1, which no training row had"):
        assert np.isfinite(model.predict(new)).all()
    shuffled = table[list(reversed(table.columns))]
    np.testing.assert_array_equal(model.predict(shuffled), model.predict(table))


def test_nullable_columns_and_spans_of_time():
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 50, 80)
    table = pd.DataFrame(
        {
            "whole": pd.array(numbers, dtype="Int64"),
            "flag": pd.array(numbers > 25, dtype="boolean"),
            "text": pd.array(np.where(numbers > 9, "a", "b"), dtype="string"),
            "span": pd.to_timedelta(numbers, unit="h"),
        }
    )
    table.iloc[::9] = pd.NA
    model = EnergyRegressor(**{**SMALL, "max_epochs": 1}).fit(table, pd.Series(numbers, dtype="Int64"))
    assert [c["kind"] for c in model.encoder_.columns] == ["number", "number", "category", "number"]
    assert np.isfinite(model.predict(table)).all()


def test_same_seed_same_model_and_the_users_generators_untouched(diabetes):
    X, y = diabetes
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = EnergyRegressor(**SMALL).fit(X, y).predict(X[:10])
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    np.testing.assert_array_equal(EnergyRegressor(**SMALL).fit(X, y).predict(X[:10]), first)


def test_works_in_pipelines_and_searches(diabetes):
    X, y = diabetes
    pipeline = make_pipeline(StandardScaler(), EnergyRegressor(**{**SMALL, "max_epochs": 3}))
    search = GridSearchCV(pipeline, {"energyregressor__n_components": [1, 3]}, cv=2).fit(X, y)
    assert search.best_estimator_.predict(X[:3]).shape == (3,)
    assert clone(EnergyRegressor(**SMALL)).get_params() == EnergyRegressor(**SMALL).get_params()


def test_energy_of_ones_own_is_copied_and_trained():
    X, y = linear_data(300)
    energy = NetworkEnergy(mlp([2, 32]), 32, 1, hidden=32)
    before = {k: v.clone() for k, v in energy.state_dict().items()}
    model = EnergyRegressor(energy=energy, n_samples=32, **SMALL).fit(X, y)
    assert all(torch.equal(v, before[k]) for k, v in energy.state_dict().items())
    assert model.score(X, y) > 0.3
    mixture = EnergyRegressor(energy=MixtureDensity(mlp([2, 32]), 32), **SMALL).fit(X, y)
    assert mixture.score(X, y) > 0.3


# -- saved models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["auto", "nce", "proposal-nce"])
def test_saved_model_gives_the_same_predictions(tmp_path, objective):
    table, y = mixed_table()
    model = EnergyRegressor(objective, n_samples=16, **{**SMALL, "max_epochs": 2}).fit(table, y)
    model.save(tmp_path / "model", extra={"target": "y"})
    loaded = EnergyRegressor.load(tmp_path / "model")
    assert loaded.extra_ == {"target": "y"}
    np.testing.assert_array_equal(loaded.predict(table), model.predict(table))


def test_several_rounded_targets_are_spread_over_their_cells(tmp_path):
    """Two targets rounded to one standard deviation and one that is not: no spikes, and the score says so."""
    rng = np.random.RandomState(0)
    X = rng.standard_normal((400, 2))
    y = np.c_[np.round(X[:, 0] + 0.7 * rng.standard_normal(400)), np.round(X[:, 1] + rng.standard_normal(400), 0),
              X.sum(1) + rng.standard_normal(400)]  # fmt: skip
    model = EnergyRegressor(hidden=(32,), max_epochs=30, random_state=0).fit(X[:300], y[:300])
    np.testing.assert_array_equal(model.resolution_, [1.0, 1.0, 0.0])
    rows, shift = X[300:], np.array([0.5, 0.5, 0.0])
    distribution = model.predict_distribution(rows)
    # Between two grid points, as near to the truth as on it, it is nearly as likely as there.
    places = np.stack([y[300:], y[300:] + shift, y[300:] - shift], 1)
    on, above, below = distribution.log_prob(places).mean(0)
    assert on - max(above, below) < 1.0
    np.testing.assert_allclose(distribution.log_prob(y[300:]), distribution.log_prob(places)[:, 0], rtol=1e-5)
    model.save(tmp_path / "m")
    np.testing.assert_array_equal(EnergyRegressor.load(tmp_path / "m").resolution_, model.resolution_)


def test_saved_model_with_an_atom_and_several_targets(tmp_path):
    X, y = linear_data(400)
    censored = EnergyRegressor(**SMALL).fit(X, np.minimum(y, 4.0))
    assert len(censored.architecture_["atoms"]) == 1
    censored.save(tmp_path / "one")
    np.testing.assert_array_equal(EnergyRegressor.load(tmp_path / "one").predict(X), censored.predict(X))
    both = EnergyRegressor(**{**SMALL, "max_epochs": 2}).fit(X, np.stack([y, -y], 1))
    both.save(tmp_path / "two")
    np.testing.assert_array_equal(EnergyRegressor.load(tmp_path / "two").predict(X), both.predict(X))


def test_interrupted_fit_resumes_to_the_same_model(tmp_path, diabetes, monkeypatch):
    X, y = diabetes
    whole = EnergyRegressor(**SMALL).fit(X, y)
    from thalweg.training.progress import SilentProgress

    def interrupt(self, record):
        if record["epoch"] == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SilentProgress, "update", interrupt)
        with pytest.raises(KeyboardInterrupt):
            EnergyRegressor(**SMALL).fit(X, y, run_dir=tmp_path)
    resumed = EnergyRegressor(**SMALL).fit(X, y, run_dir=tmp_path, resume=True)
    for a, b in zip(whole.energy_.parameters(), resumed.energy_.parameters(), strict=True):
        assert torch.equal(a, b)


# -- bad input -------------------------------------------------------------------------------------------

GOOD_X, GOOD_Y = linear_data(30)


def _with(array, row, value):
    out = array.copy()
    out[row] = value
    return out


@pytest.mark.parametrize(
    ("X", "y", "words"),
    [
        (GOOD_X, _with(GOOD_Y, 3, np.nan), "target contains NaN.*row 3"),
        (GOOD_X, _with(GOOD_Y, 3, np.inf), "target contains infinity.*row 3"),
        (GOOD_X, np.ones(30), "target is constant"),
        (GOOD_X, GOOD_Y[:20], "inconsistent"),
        (GOOD_X[:1], GOOD_Y[:1], "at least 2 rows"),
        (_with(GOOD_X, (3, 1), np.inf), GOOD_Y, "infinity"),
        (_with(GOOD_X, (slice(None), 1), np.nan), GOOD_Y, "column '1' has no value"),
        (GOOD_X[:, 0], GOOD_Y, "Reshape your data"),
        (np.empty((0, 2)), np.empty(0), "0 sample"),
        (np.empty((30, 0)), GOOD_Y, "0 feature"),
        (GOOD_X, np.array(["a", "b", "c"] * 10), "must be numbers"),
        (GOOD_X, np.zeros((30, 2, 2)), r"y must be \[rows\]"),
        (pd.DataFrame({"a": [[1, 2]] * 30, "b": GOOD_Y}), GOOD_Y, "holds a list"),
    ],
)
def test_bad_data_is_refused_in_words(X, y, words):
    with pytest.raises(ValueError, match=words):
        EnergyRegressor(**SMALL).fit(X, y)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "magic"}, "objective must be one of"),
        ({"point": "middle"}, "point must be one of"),
        ({"n_members": 0}, "n_members must be"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"roughness": -1.0}, "roughness must be"),
        ({"resolution": "fine"}, "resolution must be"),
        ({"hidden": ()}, "hidden must be"),
        ({"hidden": (64, 0)}, "hidden must be"),
        ({"n_tilts": -1}, "n_tilts must be"),
        ({"n_threads": 0}, "n_threads must be"),
        ({"batch_size": "large"}, "batch_size must be"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        ({"validation_fraction": 0.0}, "validation_fraction must be"),
    ],
)
def test_bad_settings_are_refused_in_words(settings, words):
    with pytest.raises(ValueError, match=words):
        EnergyRegressor(**settings).fit(GOOD_X, GOOD_Y)


def test_bad_new_rows_are_refused_in_words():
    table, y = mixed_table()
    model = EnergyRegressor(**{**SMALL, "max_epochs": 1}).fit(table, y)
    with pytest.raises(ValueError, match="held numbers in training, but has 'high' in row"):
        model.predict(table[:3].assign(number=["high", 1.0, 2.0]))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(table.rename(columns={"kind": "sort"}))
    with pytest.raises(ValueError, match="one line for each row"):
        model.predict_distribution(table[:3]).log_prob(np.zeros(4))
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        model.predict_distribution(table[:3]).quantile(1.5)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        model.predict_interval(table[:3], coverage=90)


def test_model_that_gives_one_energy_too_many_is_refused():
    class Wide(NetworkEnergy):
        def head(self, features, y):
            return super().head(features, y).unsqueeze(-1)

    with pytest.raises(ValueError, match="drop the trailing dimension"):
        EnergyRegressor(energy=Wide(mlp([2, 8]), 8, 1, hidden=8), **SMALL).fit(GOOD_X, GOOD_Y)
