"""The README's own code works, and its quickstart beats a Gaussian."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import multivariate_normal

from thalweg.evaluation.baselines import GaussianPredictive, LeastSquaresGaussian
from thalweg.evaluation.regression import score

README = Path(__file__).parent.parent / "README.md"


def block(word: str) -> str:
    """The one block of Python with this word in it."""
    (found,) = (
        b for b in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL) if word in b
    )
    return found


def test_quickstart_beats_the_gaussian_by_least_squares():
    names: dict = {}
    exec(block("EnergyRegressor"), names)  # the README is ours
    X_train, X_test, y_train, y_test = (names[n] for n in ("X_train", "X_test", "y_train", "y_test"))
    assert isinstance(X_test, pd.DataFrame)
    ours = score(y_test.to_numpy(), names["density"], resolution=1.0)
    assert abs(ours.nll - names["nll"]) < 1e-9
    gaussian = LeastSquaresGaussian().fit(X_train, y_train.to_numpy())
    theirs = score(y_test.to_numpy(), gaussian.predict_distribution(X_test), resolution=1.0)
    # On these 442 patients a straight line is hard to beat; ours must not lose to it on either figure by more
    # than a tenth of the standard error, and must leave a Gaussian that ignores the inputs far behind.
    assert ours.nll < theirs.nll + 0.1 * theirs.nll_error
    assert ours.crps < theirs.crps + 0.1 * theirs.crps_error
    blind = GaussianPredictive(np.full(len(y_test), y_train.mean()), y_train.std())
    assert ours.nll < score(y_test.to_numpy(), blind, resolution=1.0).nll - 0.2
    # And it says how sure it is: nine tenths of 111 rows, within three standard errors.
    assert abs(ours.coverage - 0.9) < 3 * np.sqrt(0.09 / len(y_test))


def test_the_density_beats_a_gaussian_and_fills_gaps_better_than_the_mean():
    names: dict = {}
    exec(block("EnergyDensity"), names)
    rows, new, gaps, filled = (names[n] for n in ("rows", "new", "gaps", "filled"))
    gaussian = multivariate_normal(rows.mean(), rows.cov()).logpdf(new)
    assert names["log_prob"].mean() > gaussian.mean() + 0.3
    assert names["more"].shape == (1000, 4)
    hidden = gaps.isna().to_numpy()
    assert (filled[:, ~hidden] == new.to_numpy()[~hidden]).all()
    spread = rows.std().to_numpy()
    ours, mean = (
        np.square((guess - new.to_numpy()) / spread)[hidden].mean()
        for guess in (filled.mean(0), rows.mean().to_numpy())
    )
    assert ours < 0.5 * mean


def test_the_researchers_example_runs():
    names: dict = {}
    exec(block("RankingNCE"), names)
    assert names["energy_of_y"].shape == (500,)
    assert names["gradient"].shape == (500, 1)


def test_the_ranker_orders_answers_to_queries_that_it_has_not_seen():
    names: dict = {}
    exec(block("EnergyRanker"), names)
    X, relevance, query, train = (names[n] for n in ("X", "relevance", "query", "train"))
    ranks = names["model"].rank(X[~train], query[~train])
    found = names["model"].score(X[~train], relevance[~train], query[~train])
    assert found > 0.95
    assert relevance[~train][ranks == 1].mean() > 1.5


def test_classes_that_come_one_after_another_are_all_kept():
    names: dict = {}
    exec(block("IncrementalClassifier"), names)
    X, y = names["X"], names["y"]
    known = np.isin(y, [1, 3, 4])
    assert names["model"].score(X[known] / 16, y[known]) > 0.99


def test_the_forecaster_draws_paths_whose_quantiles_are_in_order():
    names: dict = {}
    exec(block("EnergyForecaster"), names)
    model, walks = names["model"], names["walks"]
    levels = model.predict_quantiles(walks[0], 10)
    assert levels.shape == (5, 10, 1)
    assert (np.diff(levels, axis=0) > 0).all()
    # Of a random walk the spread grows with the root of the number of steps.
    assert 1.5 < (levels[-1, 9] - levels[0, 9])[0] / (levels[-1, 0] - levels[0, 0])[0] < 6
    assert model.score_samples(walks).shape == (20,)
