"""``EnergyClassifier``: scikit-learn's checks, labels of all kinds, tables with gaps, images, and what is odd."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.utils.estimator_checks import parametrize_with_checks

from thalweg import EnergyClassifier
from thalweg.energies import LabelledMembers
from thalweg.estimators._counterfactual import changed_rows

SMALL = {"n_members": 2, "hidden": (16,), "max_epochs": 10, "random_state": 0}

# Rows are assigned to folds and batches, so a weight of two is not the same as a row twice.
LIMITS = {
    "check_sample_weight_equivalence_on_dense_data": "folds and batches are drawn by row, not by weight",
}


@parametrize_with_checks(
    [EnergyClassifier(n_members=2, hidden=(32,), max_epochs=60, random_state=0)],
    expected_failed_checks=lambda estimator: LIMITS,
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def mixed(n=300, seed=0):
    """A table with numbers, a category and gaps, and its labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    colour = rng.choice(["red", "green", "blue"], n)
    count = rng.poisson(20, n)
    p = 1 / (1 + np.exp(-(2 * x + 2 * (colour == "red") - 1)))
    y = np.where(rng.uniform(size=n) < p, "yes", "no")
    table = pd.DataFrame({"x": x, "colour": colour, "count": count, "constant": 3})
    table.loc[rng.uniform(size=n) < 0.1, "x"] = np.nan
    table.loc[rng.uniform(size=n) < 0.1, "colour"] = None
    return table, y, p


@pytest.fixture(scope="module")
def of_mixed():
    table, y, _ = mixed()
    return EnergyClassifier(n_members=4, hidden=(32,), random_state=0).fit(table, y)


def test_probabilities_are_those_of_the_source(of_mixed):
    table, y, p = mixed(2000, seed=1)
    whole = table[["x", "colour"]].notna().all(axis=1)
    found = of_mixed.predict_proba(table)[:, 1]
    np.testing.assert_allclose(of_mixed.predict_proba(table).sum(1), 1)
    truth = np.where(y == "yes", p, 1 - p)
    given = np.where(y == "yes", found, 1 - found)
    gap = (np.log(truth) - np.log(given))[whole]
    assert gap.mean() < 0.06 + 3 * gap.std() / np.sqrt(len(gap))
    assert of_mixed.verdict_.state != "failed"


def test_energies_are_the_joint_density(of_mixed):
    table, _, _ = mixed(20, seed=2)
    inputs = of_mixed._inputs(table)
    energies = of_mixed.energy_.energies(inputs).detach().double().numpy()
    log_p = -np.log(np.exp(-energies).sum(1) ** -1)
    scale = of_mixed.rows_.log_scale(of_mixed.rows_.encode(table))
    np.testing.assert_allclose(log_p + scale, of_mixed.score_samples(table), atol=1e-3)
    odds = energies[:, 0] - energies[:, 1]
    np.testing.assert_allclose(odds, of_mixed.decision_function(table), atol=1e-3)


def test_the_score_is_a_density_per_unit_of_the_columns():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 2000)
    X = 100 + 10 * (rng.normal(size=2000) + 3 * y)[:, None]
    model = EnergyClassifier(**SMALL).fit(X, y)
    assert model.normalised_
    grid = np.linspace(20, 220, 4001)
    assert np.trapezoid(np.exp(model.score_samples(grid[:, None])), grid) == pytest.approx(1, abs=1e-3)
    truth = np.log((stats.norm(100, 10).pdf(X) + stats.norm(130, 10).pdf(X)) / 2)[:, 0]
    assert abs((model.score_samples(X) - truth).mean()) < 0.05


def test_odd_rows_and_the_cells_that_make_them_so(of_mixed):
    table, _, _ = mixed(200, seed=3)
    odd = table.copy()
    odd["count"] = 90
    scores = np.r_[of_mixed.score_samples(table), of_mixed.score_samples(odd)]
    assert roc_auc_score(np.repeat([1, 0], 200), scores) > 0.99
    cells = of_mixed.explain_typicality(odd)
    assert (cells.idxmin(axis=1) == "count").all()
    assert list(cells.columns) == list(table.columns)
    assert (cells["constant"] == 0).all()
    nothing = pd.DataFrame({"x": [np.nan], "colour": [None], "count": [np.nan], "constant": [3]})
    assert of_mixed.score_samples(nothing) == pytest.approx(0, abs=1e-6)


def test_a_row_with_gaps_is_no_more_typical_for_it(of_mixed):
    table, _, _ = mixed(300, seed=7)
    table = table[table.notna().all(axis=1)]
    gappy = table.assign(count=np.nan)
    whole, filled = of_mixed.typicality(table), of_mixed.typicality(gappy)
    np.testing.assert_allclose(of_mixed.typicality(table), of_mixed.score_samples(table))
    spread = whole.std() / np.sqrt(len(table))
    assert filled.mean() == pytest.approx(whole.mean(), abs=4 * spread)
    assert (of_mixed.score_samples(gappy) > of_mixed.score_samples(table)).mean() > 0.9


def test_draws_are_rows_of_the_table_and_of_the_class(of_mixed):
    table, _, _ = mixed()
    drawn = of_mixed.sample(400, label="yes", random_state=0)
    assert list(drawn.columns) == list(table.columns)
    assert set(drawn["colour"]) <= {"red", "green", "blue"}
    assert drawn["count"].dtype.kind == "i"
    assert drawn["count"].between(table["count"].min(), table["count"].max()).all()
    assert (drawn["constant"] == 3).all()
    share = of_mixed.predict_proba(drawn)[:, 1].mean()
    assert share > of_mixed.predict_proba(of_mixed.sample(400, random_state=0))[:, 1].mean() + 0.1
    pd.testing.assert_frame_equal(drawn, of_mixed.sample(400, label="yes", random_state=0))
    with pytest.raises(ValueError, match="no class is 'maybe'"):
        of_mixed.sample(2, label="maybe")


def test_counterfactuals_change_few_cells_and_the_class(of_mixed):
    table, _, _ = mixed(30, seed=4)
    found = of_mixed.counterfactual(table, "yes")
    reached = of_mixed.predict(found) == "yes"
    assert reached.mean() > 0.9
    same = (found == table) | (found.isna() & table.isna())
    already = of_mixed.predict(table) == "yes"
    assert same[already].all(axis=None)
    assert (~same[~already]).sum(axis=1).mean() < 2
    assert set(found["colour"].dropna()) <= {"red", "green", "blue"}


def test_a_counterfactual_takes_the_shortest_way_that_does():
    """Two columns either of which may bring the label: one step of a, or four of b."""
    known = pd.DataFrame({"a": np.linspace(-3, 3, 61), "b": np.linspace(-3, 3, 61)})

    def energies(rows):
        there = (rows["a"] > 0.4) | (rows["b"] > 2.0)
        return np.column_stack([there, ~there]).astype(float)

    start = pd.DataFrame({"a": [0.0], "b": [0.0]})
    found = changed_rows(start, np.array([1]), energies, known, 5)
    assert found["b"].item() == 0
    # Quantiles are nine: the nearest beyond 0.4.
    levels = np.quantile(known["a"], np.linspace(0.02, 0.98, 9), method="nearest")
    assert found["a"].item() == pytest.approx(levels[levels > 0.4].min())
    pd.testing.assert_frame_equal(changed_rows(start, np.array([0]), energies, known, 5), start)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_counterfactual_changes_no_more_cells_than_it_may(most):
    """Each cell off 0 lowers the energy of the label, and five of them would bring it."""
    names = list("abcde")
    known = pd.DataFrame({name: np.linspace(-3, 3, 61) for name in names})

    def energies(rows):
        return np.column_stack([np.zeros(len(rows)), 4.5 - (rows[names] != 0).sum(axis=1)])

    start = pd.DataFrame({name: [0.0] for name in names})
    found = changed_rows(start, np.array([1]), energies, known, most)
    assert int((found != start).sum(axis=1).item()) == most
    assert (energies(changed_rows(start, np.array([1]), energies, known, 5)).argmin(1) == 1).all()


def test_members_are_averaged_by_their_probabilities_at_their_temperature():
    energy = LabelledMembers(3, 4, n_members=3, hidden=(5,)).eval()
    energy.temperature.fill_(2.0)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = torch.softmax(energy.member_scores(x) / 2, -1).mean(0)
        torch.testing.assert_close((-energy.energies(x)).exp(), wanted)
        torch.testing.assert_close(energy.marginal()(x), torch.zeros(6), atol=1e-5, rtol=0)


def test_a_saved_model_answers_the_same(of_mixed, tmp_path):
    table, _, _ = mixed(50, seed=5)
    of_mixed.save(tmp_path / "m")
    again = EnergyClassifier.load(tmp_path / "m")
    np.testing.assert_allclose(again.predict_proba(table), of_mixed.predict_proba(table), rtol=1e-6)
    np.testing.assert_allclose(again.score_samples(table), of_mixed.score_samples(table), rtol=1e-5)
    assert again.classes_.tolist() == ["no", "yes"]
    assert again.temperature_ == of_mixed.temperature_ or np.isnan(of_mixed.temperature_.nll_before)
    assert again.validation_log_loss_ == of_mixed.validation_log_loss_


def test_the_temperature_mends_what_overconfidence_costs():
    """Labels with noise and networks without a stop: scaling lowers the held-out loss and is reported."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 10))
    y = (X[:, 0] + rng.normal(size=400) > 0).astype(int)
    how = {
        "n_members": 2,
        "hidden": (64, 64),
        "dropout": 0.0,
        "weight_decay": 0.0,
        "patience": None,
        "max_epochs": 60,
    }
    fresh = rng.normal(size=(2000, 10))
    truth = (fresh[:, 0] + rng.normal(size=2000) > 0).astype(int)
    raw = EnergyClassifier(calibrate=False, random_state=0, **how).fit(X, y)
    assert raw.temperature_.value == 1
    scaled = EnergyClassifier(random_state=0, **how).fit(X, y)
    if scaled.temperature_.applied:
        assert scaled.temperature_.nll_after < scaled.temperature_.nll_before
    losses = [log_loss(truth, model.predict_proba(fresh)) for model in (scaled, raw)]
    assert losses[0] < losses[1] + 0.01


# -- labels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [np.array(["a", "b", "c"]), np.array([3, 7, 9]), np.array([0.0, 1.0, 2.0]), np.array(["x", "y", "z"], object)],
    ids=["texts", "numbers", "floats", "objects"],
)
def test_labels_of_every_kind_come_back(labels):
    X, y = load_iris(return_X_y=True)
    model = EnergyClassifier(**SMALL).fit(X, labels[y])
    assert set(model.predict(X)) <= set(labels)
    assert model.classes_.tolist() == labels.tolist()


def test_two_classes_and_fifty_and_one_row_of_a_class():
    rng = np.random.default_rng(0)
    y = np.r_[np.repeat(np.arange(49), 6), 49]
    X = rng.normal(size=(len(y), 3)) + y[:, None]
    model = EnergyClassifier(**SMALL).fit(X, y)
    assert model.predict_proba(X).shape == (len(y), 50)
    two = EnergyClassifier(**SMALL).fit(X[:12], y[:12])
    assert two.decision_function(X[:5]).shape == (5,)


def test_a_label_of_minus_one_is_none():
    X, y = load_wine(return_X_y=True)
    hidden = np.random.default_rng(0).uniform(size=len(y)) < 0.5
    model = EnergyClassifier(**SMALL).fit(X, np.where(hidden, -1, y))
    assert model.classes_.tolist() == [0, 1, 2]
    assert len(model.density_.rows) == len(X)
    assert f"{hidden.sum()} rows have the label -1" in str(model.verdict_)
    signs = EnergyClassifier(**SMALL).fit(X[y < 2], 2 * y[y < 2] - 1)
    assert signs.classes_.tolist() == [-1, 1]


def test_a_few_labels_among_many_rows_still_judge_the_training():
    rng = np.random.default_rng(0)
    y = np.full(60, -1)
    y[:5] = [0, 1, 0, 2, 1]
    model = EnergyClassifier("hdge", hidden=(8,), max_steps=20, random_state=0).fit(
        rng.uniform(size=(60, 4, 4)), y
    )
    assert model.validation_log_loss_ > 0.1


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (np.zeros(20, int), "all rows have the label"),
        (np.r_[np.zeros(19), np.nan], "label of row 20 is missing"),
        (np.linspace(0, 1, 20), "Unknown label type"),
        (np.array([b"a", b"b"] * 10), "y holds bytes, such as b'a'"),
        (np.array([b"a", b"b"] * 10, dtype=object), "y holds bytes, such as b'a'"),
        (np.array(["a", None] * 10, object), "label of row 2 is missing"),
        (np.array(["a", 1] * 10, object), "mixes texts and numbers"),
        (np.arange(19) % 2, "X has 20 rows, y has 19"),
        (np.full(20, np.inf), "infinity"),
        (np.r_[np.zeros(10, int), np.full(10, -1)], None),
    ],
)
def test_labels_that_can_not_be_used_are_refused(y, words):
    X = np.random.default_rng(0).normal(size=(20, 2))
    if words is None:
        assert EnergyClassifier(**SMALL).fit(X, y).classes_.tolist() == [-1, 0]
        return
    with pytest.raises(ValueError, match=words):
        EnergyClassifier(**SMALL).fit(X, y)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"objective": "svm"}, "objective must be one of"),
        ({"objective": "jem"}, "is for images"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"hidden": ()}, "hidden must be"),
        ({"n_members": 0}, "n_members must be"),
    ],
)
def test_settings_that_can_not_be_used_are_refused(params, words):
    X, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match=words):
        EnergyClassifier(**{**SMALL, **params}).fit(X, y)


def test_what_is_asked_of_a_model_that_is_not_fitted_or_of_other_inputs():
    X, y = load_iris(return_X_y=True)
    for ask in ("predict", "predict_proba", "decision_function", "score_samples"):
        with pytest.raises(NotFittedError):
            getattr(EnergyClassifier(), ask)(X)
    model = EnergyClassifier(**SMALL).fit(X, y)
    with pytest.raises(ValueError, match="features"):
        model.predict(X[:, :2])


def test_a_category_that_no_training_row_had_is_warned_of(of_mixed):
    table, _, _ = mixed(5, seed=6)
    table["colour"] = "mauve"
    with pytest.warns(UserWarning, match="mauve"):
        odd = of_mixed.score_samples(table)
    table["colour"] = "red"
    assert (odd < of_mixed.score_samples(table)).all()


def test_the_held_out_loss_of_labels_that_are_noise_is_not_below_their_entropy():
    """Networks that had learned from the rows that judge them would know them by heart."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(200, 10)), np.arange(200) % 2
    model = EnergyClassifier(n_members=2, hidden=(32,), max_epochs=40, random_state=0).fit(X, y)
    # The entropy is log 2; a loss near it has a standard error of a few hundredths at most.
    assert model.validation_log_loss_ > np.log(2) - 0.05


def test_sample_weights_count():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 1))
    y = rng.integers(0, 2, 400)
    weight = np.where(y == 1, 3.0, 1.0)
    model = EnergyClassifier(n_members=2, hidden=(8,), random_state=0).fit(X, y, sample_weight=weight)
    expected = weight[y == 1].sum() / weight.sum()
    assert model.predict_proba(X)[:, 1].mean() == pytest.approx(expected, abs=0.05)


# -- images ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures():
    raw = load_digits()
    few = raw.target < 4
    return train_test_split(raw.images[few] / 16, raw.target[few], test_size=0.3, random_state=0)


def test_images_are_classified_and_their_outliers_found(pictures):
    train, test, y, truth = pictures
    model = EnergyClassifier(n_members=2, hidden=(64,), max_epochs=40, random_state=0).fit(train, y)
    assert model.score(test, truth) > 0.97
    noise = np.random.default_rng(0).uniform(size=test.shape)
    inside, outside = model.score_samples(test), model.score_samples(noise)
    assert roc_auc_score(np.r_[np.ones(len(inside)), np.zeros(len(outside))], np.r_[inside, outside]) > 0.99
    drawn = model.sample(30, label=2, random_state=0)
    assert drawn.shape == (30, 1, 8, 8)
    assert (model.predict(drawn) == 2).mean() > 0.8
    moved = model.counterfactual(test[:10], 1)
    assert (model.predict(moved) == 1).mean() > 0.8
    assert np.abs(moved[:, 0] - test[:10]).mean() < 0.3
    with pytest.raises(ValueError, match="pixels"):
        model.explain_typicality(test[:2])
    with pytest.raises(ValueError, match="images must be"):
        model.predict(np.zeros((2, 9, 9)))


@pytest.mark.parametrize("objective", ["jem", "hdge", "dat"])
def test_one_network_is_both(pictures, objective, tmp_path):
    train, test, y, truth = pictures
    model = EnergyClassifier(objective, hidden=(64,), max_steps=150, random_state=0).fit(train, y)
    assert not model.normalised_
    assert model.score(test, truth) > 0.85
    assert np.isfinite(model.score_samples(test)).all()
    drawn = model.sample(4, random_state=0, n_steps=5)
    assert drawn.shape == (4, 1, 8, 8)
    model.save(tmp_path / "m")
    again = EnergyClassifier.load(tmp_path / "m")
    np.testing.assert_allclose(again.predict_proba(test), model.predict_proba(test), rtol=1e-5, atol=1e-7)


def test_large_images_get_convolutions_and_are_saved(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    X = 0.2 * rng.uniform(size=(200, 20, 20))
    X[y == 1, :10] += 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = EnergyClassifier(hidden=(32,), max_epochs=15, random_state=0).fit(X, y)
    assert model.score(X, y) > 0.9
    model.save(tmp_path / "m")
    again = EnergyClassifier.load(tmp_path / "m")
    np.testing.assert_allclose(again.predict_proba(X), model.predict_proba(X), rtol=1e-4, atol=1e-6)
