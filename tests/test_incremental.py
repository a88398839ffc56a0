"""Classes one after another: normalised energies, no order, nothing forgotten, streams that break and go on."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_iris
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from parts import seeded
from thalweg import IncrementalClassifier
from thalweg.data.images import digits
from thalweg.energies import RunningGaussian
from thalweg.evaluation.verdict import FailedModelWarning

MIXTURE = {"n_components": 3, "random_state": 0}
IN_PARTS = {"n_components": 2, "parts": "separate", "random_state": 0}
every_kind = pytest.mark.parametrize("settings", [{}, MIXTURE, IN_PARTS], ids=["one", "mixture", "in parts"])


@parametrize_with_checks(
    [IncrementalClassifier(), IncrementalClassifier(**MIXTURE), IncrementalClassifier(**IN_PARTS)]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def planar(n=300, seed=0):
    """Three classes of two columns, one of them in two clumps."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    X = rng.normal(size=(n, 2)) * np.array([[0.5, 1.0], [1.0, 0.3], [0.4, 0.4]])[y]
    X[:, 0] += 2 * y + 6 * (y == 2) * rng.integers(0, 2, n)
    return X, y


def arrived(X, y, order, **settings):
    """A model to which the classes came in this order."""
    model = IncrementalClassifier(**settings)
    for label in order:
        model.partial_fit(X[y == label], y[y == label])
    return model


def buffers(model, label):
    """Everything that the energy of one class holds, copied."""
    own = model.energy_.components[list(model.classes_).index(label)]
    return [value.clone() for part in own for value in part.buffers()]


# -- the Gaussian -------------------------------------------------------------------------------------------


def test_a_running_gaussian_is_scipys_with_the_moments_of_all_rows():
    rows, noise = (
        torch.randn(50, 3, generator=seeded()).double() @ torch.randn(3, 3).double(),
        torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64),
    )
    whole = RunningGaussian(noise).updated(rows)
    x = rows[:7].numpy() + 0.3
    covariance = np.cov(rows.numpy().T, bias=True) + np.diag(noise.numpy() ** 2)
    truth = stats.multivariate_normal(rows.numpy().mean(0), covariance)
    np.testing.assert_allclose(whole.log_prob(torch.from_numpy(x)), truth.logpdf(x), rtol=1e-10)
    in_parts = RunningGaussian(noise)
    for part in (rows[40:], rows[:1], rows[1:40]):
        in_parts = in_parts.updated(part)
    assert int(in_parts.count) == 50
    torch.testing.assert_close(in_parts.scatter, whole.scatter)
    torch.testing.assert_close(in_parts.mean, whole.mean)
    drawn = whole.draw(20_000, seeded(1)).numpy()
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=6 * covariance.max() / np.sqrt(20_000))


def test_updates_far_from_the_origin_lose_no_digits():
    rows = 1e6 + torch.randn(200, 2, generator=seeded()).double()
    noise = torch.full((2,), 1e-3, dtype=torch.float64)
    model = RunningGaussian(noise)
    for row in rows:
        model = model.updated(row[None])
    np.testing.assert_allclose(model.scatter / 200, np.cov(rows.numpy().T, bias=True), rtol=1e-6)


# -- densities of classes -----------------------------------------------------------------------------------


@every_kind
def test_every_energy_is_normalised_on_a_grid(settings):
    X, y = planar()
    model = arrived(X, y, (2, 0, 1), **settings)
    axes = np.linspace(-16, 30, 921), np.linspace(-8, 8, 321)
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    cell = (axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])
    np.testing.assert_allclose(np.exp(-model.energies(grid)).sum(0) * cell, 1, atol=1e-4)
    assert np.exp(model.score_samples(grid)).sum() * cell == pytest.approx(1, abs=1e-4)


@every_kind
def test_probabilities_are_bayes_rule_of_energies_and_counts(settings):
    X, y = planar()
    model = arrived(X, y, (1, 2, 0), **settings)
    joint = np.exp(-model.energies(X)) * np.bincount(y) / len(y)
    np.testing.assert_allclose(model.predict_proba(X), joint / joint.sum(1, keepdims=True), atol=1e-12)
    np.testing.assert_allclose(model.score_samples(X), np.log(joint.sum(1)))
    np.testing.assert_array_equal(model.predict(X), joint.argmax(1))
    whole = model.energy_.marginal()(torch.from_numpy(X)).detach().numpy()
    np.testing.assert_allclose(-whole, model.score_samples(X))


def test_a_mixture_finds_the_clumps_of_a_class():
    X, y = planar(2000)
    new, labels = planar(2000, seed=1)
    one, several = (arrived(X, y, (0, 1, 2), **settings) for settings in ({}, MIXTURE))
    own = np.arange(len(labels)), labels
    assert (several.energies(new)[own] - one.energies(new)[own])[labels == 2].mean() < -0.5


def test_draws_have_the_labels_and_moments_that_were_asked_for():
    X, y = planar(2000)
    model = arrived(X, y, (0, 1, 2))
    drawn = model.sample(20_000, labels=1, random_state=0)
    assert np.abs(drawn.mean(0) - X[y == 1].mean(0)).max() < 5 * 1.1 / np.sqrt(20_000)
    mixed = model.sample(4, labels=[0, 2, 2, 0], random_state=0)
    assert mixed.shape == (4, 2)
    with pytest.raises(ValueError, match="7 is no label that the model has seen"):
        model.sample(labels=7)


# -- nothing is forgotten -----------------------------------------------------------------------------------


@every_kind
def test_any_order_of_classes_gives_the_same_model(settings):
    X, y = planar()
    models = [arrived(X, y, order, **settings) for order in itertools.permutations(range(3))]
    for model in models[1:]:
        np.testing.assert_array_equal(model.classes_, models[0].classes_)
        for label in range(3):
            for a, b in zip(buffers(model, label), buffers(models[0], label), strict=True):
                torch.testing.assert_close(a, b)
        np.testing.assert_allclose(model.energies(X), models[0].energies(X))


@every_kind
def test_energies_of_other_classes_stay_bit_for_bit(settings):
    X, y = planar()
    model = arrived(X, y, (0, 2), **settings)
    before = {label: buffers(model, label) for label in (0, 2)}
    model.partial_fit(X[y == 1], y[y == 1])
    for label, kept in before.items():
        assert all(map(torch.equal, kept, buffers(model, label)))
    model.partial_fit(X[y == 2], y[y == 2])
    assert all(map(torch.equal, before[0], buffers(model, 0)))
    assert not torch.equal(model.energy_.counts[2], torch.tensor((y == 2).sum()))


def test_parts_of_a_class_give_what_all_of_its_rows_give():
    X, y = planar()
    whole, streamed = IncrementalClassifier().fit(X, y), IncrementalClassifier()
    for rows in np.array_split(np.random.default_rng(0).permutation(len(X)), 60):
        streamed.partial_fit(X[rows], y[rows])
    np.testing.assert_allclose(streamed.energies(X), whole.energies(X), rtol=1e-9)
    np.testing.assert_array_equal(streamed.class_count_, whole.class_count_)


def test_separate_parts_are_weighted_by_their_rows_in_any_order():
    X, y = planar()
    own = X[y == 0]
    models = []
    for parts in ((own[:30], own[30:]), (own[30:], own[:30])):
        model = IncrementalClassifier(parts="separate")
        for part in parts:
            model.partial_fit(part, np.zeros(len(part), int))
        models.append(model)
    first, second = (IncrementalClassifier().fit(p, np.zeros(len(p), int)) for p in (own[:30], own[30:]))
    log_odds = np.log(30), np.log(len(own) - 30)
    wanted = np.logaddexp(log_odds[0] - first.energies(X)[:, 0], log_odds[1] - second.energies(X)[:, 0])
    for model in models:
        np.testing.assert_allclose(-model.energies(X)[:, 0], wanted - np.log(len(own)))


@every_kind
def test_a_saved_model_goes_on_as_if_it_had_not_been_saved(settings, tmp_path):
    X, y = planar()
    names = np.array(["a", "bb", "ccc"])[y]
    unbroken, broken = IncrementalClassifier(**settings), IncrementalClassifier(**settings)
    for k, rows in enumerate(np.array_split(np.argsort(y), 4)):
        unbroken.partial_fit(X[rows], names[rows])
        broken.partial_fit(X[rows], names[rows])
        broken.save(tmp_path / str(k))
        broken = IncrementalClassifier.load(tmp_path / str(k))
    assert broken.classes_.tolist() == ["a", "bb", "ccc"]
    np.testing.assert_allclose(broken.energies(X), unbroken.energies(X), rtol=1e-12)
    assert broken.history_ == unbroken.history_
    assert str(broken.verdict_) == str(unbroken.verdict_)


def test_fit_begins_anew():
    X, y = planar()
    model = IncrementalClassifier().fit(X[:, :1], np.where(y == 0, "x", "y")).fit(X, y)
    np.testing.assert_allclose(model.energies(X), IncrementalClassifier().fit(X, y).energies(X))
    assert len(model.history_.epochs) == 1


# -- figures ------------------------------------------------------------------------------------------------


def test_digits_that_come_class_by_class_beat_linear_discriminants():
    train, test = digits(seed=0)
    X, new = (images.pixels.reshape(len(images.pixels), -1) for images in (train, test))
    model = arrived(X, train.labels, np.random.default_rng(0).permutation(10))
    rival = LinearDiscriminantAnalysis().fit(X, train.labels).score(new, test.labels)
    assert model.score(new, test.labels) > max(0.98, rival)


# -- tables, and what is refused ----------------------------------------------------------------------------


def test_it_stands_at_the_end_of_a_pipeline_and_takes_a_table():
    table, y = load_iris(return_X_y=True, as_frame=True)
    model = make_pipeline(FunctionTransformer(lambda t: t / 2), IncrementalClassifier()).fit(table, y)
    assert model.score(table, y) > 0.95
    alone = IncrementalClassifier().partial_fit(table, y)
    with pytest.raises(ValueError, match="feature names should match"):
        alone.predict(table[table.columns[::-1]])
    with pytest.raises(ValueError, match="this model is of numbers"):
        alone.partial_fit(pd.DataFrame({name: ["a", "b"] for name in table.columns}), [0, 1])


def test_constant_columns_and_classes_of_one_row_are_taken():
    X, y = planar()
    X = np.c_[X, np.full(len(X), 3.0)]
    model = IncrementalClassifier().fit(X, y)
    model.partial_fit([[20.0, 20.0, 3.0]], [9])
    assert model.predict([[20.1, 19.9, 3.0]]) == [9]
    truth = stats.multivariate_normal([20, 20, 3], 0.17**2)
    np.testing.assert_allclose(-model.energies(X[:3])[:, 3], truth.logpdf(X[:3]))
    assert "Few training rows have the class 9 (1)" in str(model.verdict_)
    assert model.verdict_.state == "doubtful"


def test_a_label_that_the_model_has_not_seen_counts_as_wrong_and_is_warned_of():
    X, y = planar()
    model = arrived(X, y, (0, 1))
    with pytest.warns(UserWarning, match="2 is no label that the model has seen"):
        share = model.score(X, y)
    assert share <= (y < 2).mean()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda X, y: (X[:, :1], y), "X has 1 features, but IncrementalClassifier is expecting 2"),
        (lambda X, y: (np.where(X > 0, np.nan, X), y), "NaN"),
        (lambda X, y: (X, y[1:]), "inconsistent numbers of samples"),
        (lambda X, y: (X, y.astype(str)), "the labels so far are numbers, such as 0, and these are texts"),
        (lambda X, y: (X, y == 1), "these are truth values"),
        (lambda X, y: (X, y + 0.5), "Unknown label type"),
        (lambda X, y: (X, None), "requires y"),
        (lambda X, y: (X, y, [0, 1]), "classes does not name 2"),
        (lambda X, y: (X, y, ["0", "1", "2"]), "the labels so far are numbers"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_leave_the_model_as_it_was(change, words):
    X, y = planar()
    model = IncrementalClassifier().fit(X, y)
    before = model.energies(X)
    with pytest.raises(ValueError, match=words):
        model.partial_fit(*change(X, y))
    np.testing.assert_array_equal(model.energies(X), before)
    assert len(model.history_.epochs) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"noise_std": 0}, "noise_std must be positive"),
        ({"noise_std": "much"}, "noise_std must be positive"),
        ({"noise_std": [0.1, 0.1, 0.1]}, r"noise_std has the shape \(3,\), and X has 2 columns"),
        ({"n_components": 0}, "n_components must be"),
        ({"parts": "mixed"}, "parts must be one of pooled, separate"),
    ],
)
def test_settings_that_can_not_be_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        IncrementalClassifier(**settings).fit(*planar())


def test_noise_may_be_one_for_each_column():
    X, y = planar()
    wide = IncrementalClassifier(noise_std=[0.17, 170.0]).fit(X * [1, 1000], y)
    np.testing.assert_allclose(
        wide.predict_proba(X * [1, 1000]), IncrementalClassifier().fit(X, y).predict_proba(X), atol=1e-9
    )


def test_a_stream_that_begins_is_no_failure_but_says_that_rows_are_few():
    X, y = planar()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = IncrementalClassifier().partial_fit(X[:1], y[:1])
    assert model.verdict_.state == "failed"
    with pytest.warns(FailedModelWarning, match="too few"):
        IncrementalClassifier().fit(X[:5], y[:5])
