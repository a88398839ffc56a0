"""The detector of odd rows: truths, honest p-values, what must not matter, and bad input in words."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from thalweg import EnergyDetector
from thalweg.data.scaled_rows import RowScaler
from thalweg.energies import NeighbourEnergy, View
from thalweg.evaluation.verdict import FailedModelWarning

SCALE = np.array([[2.0, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.3, 0.2, 1.0]])


@parametrize_with_checks([EnergyDetector(), EnergyDetector(0.2, n_folds=3)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def gaussian_rows(n, seed):
    return np.random.default_rng(seed).normal(size=(n, 3)) @ SCALE


def log_density(X):
    return stats.multivariate_normal(np.zeros(3), SCALE.T @ SCALE).logpdf(X)


@pytest.fixture(scope="module")
def on_gaussian():
    return EnergyDetector(random_state=0).fit(gaussian_rows(1500, 0))


def mixed(n, seed, odd=0):
    """Numbers, a category that goes with them, truth values, dates, and gaps; the last rows are odd together."""
    rng = np.random.default_rng(seed)
    size = rng.gamma(4.0, 2.0, n)
    large = size + rng.normal(0, 1.0, n) > 8
    if odd:
        large[-odd:] = ~large[-odd:]
        size[-odd:] = np.where(large[-odd:], 2.0, 20.0)
    table = pd.DataFrame(
        {
            "size": size,
            "kind": np.where(large, "large", "small"),
            "sold": rng.random(n) < 0.4,
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 90, n), unit="D"),
            "weight": 3 * size + rng.normal(0, 1, n),
        }
    )
    gaps = rng.random((n, 5)) < 0.1
    if odd:
        gaps[-odd:] = False
    return table.mask(gaps)


# -- truths ---------------------------------------------------------------------------------------------------


def test_rows_of_a_gaussian_are_ranked_as_by_its_density(on_gaussian):
    """Rows of one density differ in how far their neighbours happen to be: it is the ranks that agree."""
    X = gaussian_rows(1000, 1)
    assert stats.spearmanr(on_gaussian.score_samples(X), log_density(X)).statistic > 0.85
    # Far out, where the density is by far lower, no row is mistaken.
    far = np.concatenate([X[:200], X[:200] + np.array([9.0, 0.0, 0.0])])
    assert roc_auc_score(np.repeat([0, 1], 200), -on_gaussian.score_samples(far)) > 0.99


def test_the_energy_of_one_view_is_the_distance_to_the_neighbour():
    rows = torch.tensor([[0.0], [1.0], [3.0], [7.0]], dtype=torch.float64)
    energy = NeighbourEnergy(rows, torch.tensor([0, 1, 0, 1]), torch.zeros(1), views=(View("standard", 1),))
    energy.floors[:] = 0.0
    # By the rows of the other fold: 1 and 7 at first, then 0 and 3.
    found = energy.by_fold(torch.tensor([[2.0], [8.0], [np.nan]], dtype=torch.float64))
    distances = np.array([[1.0, 1.0], [1.0, 5.0], [1.0, 1.0]])
    np.testing.assert_allclose(found, np.log(distances), atol=1e-12)


def test_p_values_of_new_rows_are_uniform(on_gaussian):
    """The largest distance to the uniform distribution is within the bound of level 0.1 % for two samples."""
    p = on_gaussian.p_values(gaussian_rows(1500, 2))
    bound = 1.95 * np.sqrt(1 / 1500 + 1 / 1500)
    assert stats.kstest(p, "uniform").statistic < bound
    for alpha in (0.01, 0.05):
        error = np.sqrt(alpha * (1 - alpha) * (1 / 1500 + 1 / 1500))
        assert abs((p <= alpha).mean() - alpha) < 3.3 * error


def test_false_alarms_in_a_mixed_table_with_gaps_are_as_many_as_were_asked_for():
    detector = EnergyDetector(random_state=0).fit(mixed(1000, 0))
    p = detector.p_values(mixed(1000, 1))
    for alpha in (0.01, 0.05, 0.2):
        error = np.sqrt(alpha * (1 - alpha) * 2 / 1000)
        assert abs((p <= alpha).mean() - alpha) < 3.3 * error + 2 / 1000
    table = mixed(300, 2, odd=60)
    odd = np.arange(300) >= 240
    assert roc_auc_score(odd, -detector.score_samples(table)) > 0.85
    assert (detector.p_values(table)[odd] <= 0.05).mean() > 0.4


def test_p_values_of_tables_of_few_values_do_not_flag_too_many():
    """Rows are equal to one another; equal scores count as at least as odd."""
    rng = np.random.default_rng(0)
    X, new = (rng.binomial(3, 0.3, (800, 4)).astype(float) for _ in range(2))
    p = EnergyDetector(random_state=0).fit(X).p_values(new)
    for alpha in (0.01, 0.05, 0.2):
        assert (p <= alpha).mean() < alpha + 3.3 * np.sqrt(alpha * (1 - alpha) * 2 / 800)


def test_held_out_p_values_are_those_of_training_rows(on_gaussian):
    X = gaussian_rows(1500, 0)
    np.testing.assert_allclose(on_gaussian.p_values(X), on_gaussian.held_out_p_values_)
    np.testing.assert_allclose(on_gaussian.score_samples(X), on_gaussian.held_out_scores_)
    # Every rank is taken once.
    np.testing.assert_allclose(np.sort(on_gaussian.held_out_p_values_), np.arange(2, 1502) / 1501)
    assert (on_gaussian.fit_predict(X) == -1).sum() == int(0.05 * 1501) - 1


@pytest.mark.parametrize(("load", "odd"), [(load_wine, 2), (load_breast_cancer, 0)])
def test_a_class_that_was_not_learned_is_odd(load, odd):
    X, y = load(return_X_y=True)
    train = np.flatnonzero(y != odd)[::2]
    rest = np.setdiff1d(np.arange(len(X)), train)
    scores = EnergyDetector(random_state=0).fit(X[train]).score_samples(X[rest])
    assert roc_auc_score(y[rest] == odd, -scores) > 0.9


def test_odd_rows_in_the_training_table_are_found():
    X = np.concatenate([gaussian_rows(400, 0), [[9.0, 9.0, 9.0]] * 8 + 0.1 * gaussian_rows(8, 1)])
    detector = EnergyDetector(random_state=0).fit(X)
    assert roc_auc_score(np.arange(408) >= 400, -detector.held_out_scores_) > 0.97


# -- cells ----------------------------------------------------------------------------------------------------


def test_a_cell_counts_by_how_far_the_score_rises_without_it(on_gaussian):
    X = gaussian_rows(30, 3)
    cells = on_gaussian.score_columns(X)
    assert cells.shape == X.shape
    for d in range(3):
        without = X.copy()
        without[:, d] = np.nan
        rise = on_gaussian.score_samples(without) - on_gaussian.score_samples(X)
        np.testing.assert_allclose(cells[:, d], rise, atol=1e-9)
        np.testing.assert_array_equal(on_gaussian.score_columns(without)[:, d], 0.0)


def test_the_cell_that_was_changed_is_the_odd_one(on_gaussian):
    X = gaussian_rows(60, 4)
    column = np.arange(60) % 3
    X[np.arange(60), column] += np.array([40.0, 20.0, 20.0])[column]
    assert (on_gaussian.score_columns(X).argmax(1) == column).mean() > 0.95


def test_a_cell_that_fits_no_other_is_named_in_a_mixed_table():
    detector = EnergyDetector(random_state=0).fit(mixed(600, 0))
    row = pd.DataFrame(
        {"size": [9.0], "kind": ["large"], "sold": [True], "day": [pd.Timestamp("2024-02-01")], "weight": [27.0]}
    )
    usual = detector.p_values(row)[0]
    assert usual > 0.1
    for column, value in (("kind", "giant"), ("weight", 270.0), ("day", pd.Timestamp("2031-01-01"))):
        odd = row.assign(**{column: [value]})
        assert detector.p_values(odd)[0] < min(0.05, usual), column
        assert row.columns[detector.score_columns(odd)[0].argmax()] == column


# -- what must not matter -------------------------------------------------------------------------------------


def test_neither_batches_nor_the_order_of_rows_and_columns_matter():
    table, new = mixed(300, 0), mixed(60, 1)
    detector = EnergyDetector(random_state=0).fit(table)
    scores, p = detector.score_samples(new), detector.p_values(new)
    one_by_one = [detector.score_samples(new.iloc[[i]])[0] for i in range(60)]
    np.testing.assert_allclose(one_by_one, scores, atol=1e-9)
    order = np.random.RandomState(0).permutation(60)
    np.testing.assert_allclose(detector.p_values(new.iloc[order]), p[order])
    columns = list(table.columns[::-1])
    np.testing.assert_allclose(detector.score_samples(new[columns]), scores, atol=1e-9)
    turned = EnergyDetector(random_state=0).fit(table[columns])
    np.testing.assert_allclose(turned.score_samples(new[columns]), scores, atol=1e-6)


def test_units_do_not_matter(on_gaussian):
    factors, shifts = np.array([1e-6, 3.0, 1e7]), np.array([5.0, -1e3, 1e9])
    moved = EnergyDetector(random_state=0).fit(gaussian_rows(1500, 0) * factors + shifts)
    X = gaussian_rows(100, 5)
    np.testing.assert_allclose(moved.score_samples(X * factors + shifts), on_gaussian.score_samples(X), atol=1e-4)
    negated = EnergyDetector(random_state=0).fit(-gaussian_rows(1500, 0))
    # The curves have their points at other rows where two are equally near to where a point should be.
    np.testing.assert_allclose(negated.score_samples(-X), on_gaussian.score_samples(X), atol=0.02)


def test_the_order_of_training_rows_matters_only_by_the_folds():
    X, new = gaussian_rows(600, 0), gaussian_rows(200, 1)
    one = EnergyDetector(random_state=0).fit(X).score_samples(new)
    other = EnergyDetector(random_state=0).fit(X[::-1]).score_samples(new)
    assert np.abs(one - other).mean() < 0.05 * one.std()


def test_names_of_categories_do_not_matter():
    table, new = mixed(200, 0), mixed(50, 1)
    names = {"large": "a", "small": "b"}
    scores = EnergyDetector(random_state=0).fit(table).score_samples(new)
    renamed = EnergyDetector(random_state=0).fit(table.assign(kind=table["kind"].map(names)))
    np.testing.assert_allclose(renamed.score_samples(new.assign(kind=new["kind"].map(names))), scores, atol=1e-9)


def test_inputs_are_not_changed():
    table = mixed(100, 0)
    before = table.copy()
    EnergyDetector(random_state=0).fit(table).score_columns(table)
    pd.testing.assert_frame_equal(table, before)


# -- bad input and corners ------------------------------------------------------------------------------------


def test_infinities_are_refused(on_gaussian):
    X = gaussian_rows(50, 0)
    X[3, 1] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        EnergyDetector().fit(X)
    with pytest.raises(ValueError, match="infinity"):
        on_gaussian.score_samples(X)
    with pytest.raises(ValueError, match="'b' has an infinite value"):
        EnergyDetector().fit(pd.DataFrame(X, columns=list("abc")))


def test_numbers_of_any_size_are_taken(on_gaussian):
    scores = on_gaussian.score_samples([[1e300, 0, 0], [1e8, 0, 0], [100.0, 0, 0], [0, 0, 0]])
    assert np.isfinite(scores).all()
    assert (np.diff(scores) > 0).all()
    with pytest.raises(ValueError, match="too large or too fine"):
        EnergyDetector().fit(np.array([[1e200], [-1e200], [0.0]] * 10))


def test_a_column_without_any_value():
    table = mixed(100, 0)
    with pytest.raises(ValueError, match="'weight' has no value at all: drop it"):
        EnergyDetector().fit(table.assign(weight=np.nan))
    # At prediction it is a gap like others.
    detector = EnergyDetector(random_state=0).fit(table)
    assert np.isfinite(detector.score_samples(table.assign(weight=np.nan))).all()
    nothing = table.iloc[:2].mask(np.ones((2, 5), bool))
    np.testing.assert_array_equal(detector.score_samples(nothing), 0.0)
    np.testing.assert_array_equal(detector.score_columns(nothing), 0.0)


def test_a_constant_column_says_nothing_until_it_changes():
    X = np.column_stack([gaussian_rows(200, 0), np.full(200, 7.3)])
    detector = EnergyDetector(random_state=0).fit(X)
    without = EnergyDetector(random_state=0).fit(X[:, :3])
    new = np.column_stack([gaussian_rows(50, 1), np.full(50, 7.3)])
    np.testing.assert_allclose(detector.p_values(new), without.p_values(new[:, :3]), atol=0.02)
    new[:, 3] = 7.4
    assert (detector.predict(new) == -1).all()
    assert (detector.score_columns(new).argmax(1) == 3).mean() > 0.9
    constant = EnergyDetector(random_state=0).fit(np.ones((50, 2)))
    np.testing.assert_array_equal(constant.predict([[1.0, 1.0], [1.0, 2.0]]), [1, -1])


def test_more_columns_than_rows():
    rng = np.random.default_rng(0)
    detector = EnergyDetector(random_state=0).fit(rng.normal(size=(40, 200)))
    new = rng.normal(size=(40, 200))
    assert (detector.predict(new + 5) == -1).all()
    assert (detector.predict(new) == -1).mean() < 0.05 + 3.3 * np.sqrt(0.05 * 0.95 * 2 / 40)


def test_few_rows_are_said_to_be_few():
    with pytest.raises(ValueError, match="at least 2 rows"):
        EnergyDetector().fit(np.ones((1, 3)))
    with pytest.warns(FailedModelWarning, match="too few"):
        detector = EnergyDetector(random_state=0).fit(gaussian_rows(10, 0))
    assert any("flags no row" in check.text for check in detector.verdict_)
    np.testing.assert_array_equal(detector.predict(np.full((2, 3), 99.0)), 1)
    assert (detector.decision_function(np.full((2, 3), 99.0)) >= 0).all()


def test_a_category_that_training_did_not_show_is_odd():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.choice(list("xyz"), 300), "b": rng.normal(size=300)})
    detector = EnergyDetector(random_state=0).fit(table)
    new = pd.DataFrame({"a": ["q"] * 20, "b": np.linspace(-1, 1, 20)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (detector.predict(new) == -1).all()
    assert (detector.score_columns(new).argmax(1) == 0).all()


def test_ten_thousand_categories():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"name": [f"n{i}" for i in range(10_000)], "b": rng.normal(size=10_000)})
    detector = EnergyDetector(max_rows=1000, random_state=0).fit(table)
    new = pd.DataFrame({"name": ["another"] * 200, "b": rng.normal(size=200)})
    # A name that was never seen is as usual as all the others, each of which was new once.
    assert (detector.predict(new) == -1).mean() < 0.05 + 3.3 * np.sqrt(0.05 * 0.95 * (1 / 200 + 1 / 1000))
    assert detector.predict(new.assign(b=50.0)).max() == -1
    assert len(detector.held_out_scores_) == 10_000
    assert np.isfinite(detector.held_out_scores_).sum() == 1000


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha": 0.0}, "alpha must be in"),
        ({"alpha": "auto"}, "alpha must be in"),
        ({"n_folds": 1}, "n_folds must be a whole number of at least 2"),
        ({"max_rows": 1.5}, "max_rows must be a whole number of at least 2"),
    ],
    ids=str,
)
def test_settings_that_can_not_be_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        EnergyDetector(**settings).fit(gaussian_rows(30, 0))


def test_columns_that_are_others_are_refused():
    table = mixed(100, 0)
    detector = EnergyDetector(random_state=0).fit(table)
    with pytest.raises(ValueError, match="feature names"):
        detector.predict(table.drop(columns="kind"))
    with pytest.raises(ValueError, match="'size' held numbers in training"):
        detector.predict(table.assign(size="much"))


def test_a_model_of_a_mixed_table_is_saved_and_loaded(tmp_path):
    table, new = mixed(200, 0), mixed(50, 1)
    detector = EnergyDetector(0.1, n_folds=4, random_state=0).fit(table)
    detector.save(tmp_path / "model")
    loaded = EnergyDetector.load(tmp_path / "model")
    for rows in (table, new):
        np.testing.assert_allclose(loaded.score_samples(rows), detector.score_samples(rows), atol=1e-12)
        np.testing.assert_array_equal(loaded.predict(rows), detector.predict(rows))
    np.testing.assert_allclose(loaded.score_columns(new), detector.score_columns(new), atol=1e-12)


def test_scaled_rows_keep_what_they_learned():
    table = mixed(100, 0)
    scaler = RowScaler().fit(table)
    again = RowScaler.from_state(scaler.state())
    np.testing.assert_array_equal(again.codes(table), scaler.codes(table))
    numbers = scaler.codes(table)[:, [0, 3, 4]]
    np.testing.assert_allclose(np.nanstd(numbers, axis=0), 1.0)
    np.testing.assert_allclose(np.nanmedian(numbers, axis=0), 0.0, atol=1e-12)
    with pytest.raises(KeyError, match="column without"):
        RowScaler.from_state({"columns": [{"name": "a", "kind": "number", "levels": None}]})
