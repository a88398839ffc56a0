"""Calibration against sources whose probabilities are known; tolerances are standard errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from thalweg.evaluation.calibration import (
    binomial_error,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    mean_log_loss,
    reliability,
)


def source(n: int, n_classes: int, seed: int, scale: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their softmax: perfectly calibrated."""
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(n, n_classes))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    return logits, labels


def temperature_error(logits: np.ndarray) -> float:
    """Standard error of log T at T = 1: one over the root of the Fisher information."""
    p = softmax(logits, axis=1)
    mean = (p * logits).sum(1)
    return float(1 / math.sqrt(((p * logits**2).sum(1) - mean**2).sum()))


# -- bins --------------------------------------------------------------------------------------------------


def test_the_error_of_a_table_worked_by_hand():
    p = np.array([[0.55, 0.45], [0.55, 0.45], [0.05, 0.95], [1.0, 0.0]])
    y = np.array([0, 1, 1, 1])
    # Ten bins: two rows of .55, half of them right; one of .95 and one of exactly 1 share the last.
    assert expected_calibration_error(p, y, 10) == pytest.approx((2 * 0.05 + 2 * 0.475) / 4)
    found = reliability(p, y)
    np.testing.assert_allclose(found.confidence, [0.55, 0.975])
    np.testing.assert_allclose(found.accuracy, [0.5, 0.5])
    np.testing.assert_array_equal(found.n_rows, [2, 2])
    assert expected_calibration_error(torch.tensor(p), torch.tensor(y), 10) == pytest.approx(0.2625)


def test_bins_of_equal_counts_do_not_part_ties_nor_look_at_the_order():
    rng = np.random.default_rng(0)
    confidence = np.concatenate([np.full(30, 0.7), rng.uniform(0.8, 1, 70)])
    p, y = np.stack([confidence, 1 - confidence], 1), rng.integers(0, 2, 100)
    found = reliability(p, y, 10, adaptive=True)
    np.testing.assert_array_equal(found.n_rows, [30] + [10] * 7)
    shuffled = rng.permutation(100)
    again = expected_calibration_error(p[shuffled], y[shuffled], 10, adaptive=True)
    assert again == pytest.approx(expected_calibration_error(p, y, 10, adaptive=True))


@pytest.mark.parametrize("n_classes", [2, 10, 50])
@pytest.mark.parametrize("adaptive", [False, True])
def test_perfect_probabilities_have_the_error_of_sampling_only(n_classes, adaptive):
    n, bins = 4000, 20
    logits, y = source(n, n_classes, n_classes)
    p = softmax(logits, axis=1)
    error = expected_calibration_error(p, y, bins, adaptive)
    # Given the probabilities, n times the error is the sum over bins of |sum of independent centred draws|.
    found = reliability(p, y, bins, adaptive)
    spread = np.sqrt(found.n_rows * found.confidence * (1 - found.confidence))
    expected = math.sqrt(2 / math.pi) * spread.sum() / n
    deviation = math.sqrt((1 - 2 / math.pi) * np.square(spread).sum()) / n
    assert error == pytest.approx(expected, abs=4.5 * deviation + 0.1 * expected)
    assert error < math.sqrt(bins / n)
    # Each bin is right within its standard error.
    assert (np.abs(found.accuracy - found.confidence) < 4.5 * found.standard_error).all()


def test_a_confidence_that_is_too_high_shows():
    logits, y = source(4000, 10, 0)
    assert expected_calibration_error(softmax(3 * logits, axis=1), y) > 0.1
    found = reliability(softmax(3 * logits, axis=1), y)
    assert found.n_rows.sum() == 4000
    assert found.accuracy[-1] < found.confidence[-1] - 10 * found.standard_error[-1]


def test_the_standard_error_of_a_share():
    assert binomial_error(0.3, 10**6) == pytest.approx(math.sqrt(0.3 * 0.7 / 10**6), rel=1e-4)
    # The posterior of a share with 3 of 3 right is Beta(4, 1), whose variance is 4 / (25 * 6).
    assert binomial_error(1.0, 3) == pytest.approx(math.sqrt(4 / 150))


# -- scores ------------------------------------------------------------------------------------------------


def test_scores_of_a_table_worked_by_hand():
    p = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    y = np.array([1, 2])
    brier = brier_score(p, y)
    rows = np.array([0.25 + 0.49 + 0.04, 0.01 + 0.01 + 0.04])
    assert brier == pytest.approx((rows.mean(), rows.std(ddof=1) / math.sqrt(2)))
    losses = -np.log([0.3, 0.8])
    assert mean_log_loss(p, y) == pytest.approx((losses.mean(), losses.std(ddof=1) / math.sqrt(2)))
    assert mean_log_loss(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([1, 0])).value == math.inf
    assert brier_score(np.eye(2), np.array([1, 0])).value == pytest.approx(2)


@pytest.mark.parametrize("n_classes", [2, 50])
def test_scores_of_a_calibrated_source_are_its_entropies(n_classes):
    logits, y = source(3000, n_classes, 1)
    p = softmax(logits, axis=1)
    loss, brier = mean_log_loss(p, y), brier_score(p, y)
    entropy = -(p * log_softmax(logits, axis=1)).sum(1).mean()
    assert loss.value == pytest.approx(entropy, abs=4 * loss.standard_error)
    assert brier.value == pytest.approx((1 - np.square(p).sum(1)).mean(), abs=4 * brier.standard_error)


# -- temperature -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 3, 50])
@pytest.mark.parametrize("factor", [3.0, 0.25])
def test_logits_times_a_factor_have_it_as_their_temperature(n_classes, factor):
    logits, y = source(2000, n_classes, n_classes)
    found = fit_temperature(factor * logits + 7.0, y)
    assert found.applied
    assert math.log(found.value / factor) == pytest.approx(0, abs=4 * temperature_error(logits))
    assert found.nll_after < found.nll_before
    # Out of sample it is at least about what the true temperature has.
    true = mean_log_loss(softmax(logits, axis=1), y)
    assert found.nll_after == pytest.approx(true.value, abs=0.005)
    before, after = (
        expected_calibration_error(softmax(f, axis=1), y) for f in (factor * logits, factor * logits / found.value)
    )
    assert after < before / 2


def test_the_temperature_is_where_the_likelihood_is_highest():
    logits, y = source(300, 4, 5)
    logits = 2 * logits
    weight = np.random.default_rng(0).uniform(0, 3, 300)

    def loss(log_t: float) -> float:
        return float(-(weight * log_softmax(logits / math.exp(log_t), axis=1)[np.arange(300), y]).sum())

    best = math.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}).x)
    assert fit_temperature(logits, y, weight).value == pytest.approx(best, rel=1e-5)
    # A row of weight 2 is the row twice.
    doubled = np.repeat(np.arange(300), 1 + np.arange(300) % 2)
    twice = fit_temperature(logits, y, 1 + np.arange(300) % 2)
    assert fit_temperature(logits[doubled], y[doubled]).value == pytest.approx(twice.value, rel=1e-5)


def test_calibrated_logits_are_left_alone_mostly():
    repetitions = 60
    applied = []
    for seed in range(repetitions):
        logits, y = source(300, 3, 100 + seed)
        found = fit_temperature(logits, y)
        applied.append(found.applied)
        assert math.log(found.value) == pytest.approx(0, abs=4 * temperature_error(logits))
    # The halves' optima d, e are two independent errors of one scale, and the loss out of sample falls if
    # 4 d e > d^2 + e^2: their angle is within 15 to 75 degrees or opposite, a third of all.
    assert np.mean(applied) == pytest.approx(1 / 3, abs=4 * math.sqrt(2 / 9 / repetitions))


def test_logits_that_look_like_probabilities_and_labels_that_do_not_occur():
    # Between 0 and 1 and of sum 1 in each row, yet logits: scikit-learn alone would take their logarithms.
    rng = np.random.default_rng(0)
    logits = rng.dirichlet(np.ones(3), 3000)
    y = (10 * logits + rng.gumbel(size=logits.shape)).argmax(1)
    assert math.log(10 * fit_temperature(logits, y).value) == pytest.approx(
        0, abs=4 * temperature_error(10 * logits)
    )
    # The classes 1 and 3 never occur, and their logits are low.
    logits, y = source(1000, 2, 0)
    wide = np.full((1000, 4), -40.0)
    wide[:, [0, 2]] = logits
    expected = fit_temperature(3 * logits, y)
    found = fit_temperature(3 * wide, 2 * y)
    assert found.value == pytest.approx(expected.value, rel=1e-4)
    assert found.nll_after == pytest.approx(expected.nll_after, rel=1e-4)


def test_logits_that_no_temperature_mends_are_left_alone():
    y = np.arange(40) % 3
    # All right: the colder the better, without end.
    right = fit_temperature(np.eye(3)[y], y)
    assert (right.value, right.applied) == (1.0, False)
    # All labels equally likely: no temperature changes anything.
    level = fit_temperature(np.zeros((40, 3)), y)
    assert (level.value, level.applied) == (1.0, False)
    assert level.nll_after == pytest.approx(math.log(3))
    # Only wrong: at the highest temperature they say nothing.
    wrong = fit_temperature(5 * np.eye(3)[(y + 1) % 3], y)
    assert wrong.applied
    assert wrong.nll_after == pytest.approx(math.log(3), abs=1e-3)


# -- what is refused ---------------------------------------------------------------------------------------

P = np.full((4, 2), 0.5)
Y = np.array([0, 1, 0, 1])


@pytest.mark.parametrize("function", [expected_calibration_error, reliability, brier_score, mean_log_loss])
def test_bad_probabilities_and_labels_are_refused_in_words(function):
    for p, y, words in [
        (np.where(np.arange(8).reshape(4, 2) == 3, np.nan, P), Y, "NaN or infinity in 1 rows"),
        (3 * P, Y, "add up to 1 in each row, which 4 of 4"),
        (np.array([[1.5, -0.5]] * 4), Y, "must not be negative"),
        (P[:, :1], Y, "at least 2 classes"),
        (P[0], Y, "at least 2 classes"),
        (P[:0], Y[:0], "at least one row"),
        (P, Y[:3], "one for each of 4 rows"),
        (P, Y + 1, "of 0 .. 1, got 1 to 2"),
        (P, Y - 1, "of 0 .. 1, got -1"),
        (P, Y + 0.5, "integers"),
        (P, Y.astype(str), "integers"),
    ]:
        with pytest.raises(ValueError, match=words):
            function(p, y)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: expected_calibration_error(P, Y, 0), "n_bins"),
        (lambda: fit_temperature(P * np.inf, Y), "logits contain NaN or infinity in 4 rows"),
        (lambda: fit_temperature(P, Y + 1), "of 0 .. 1"),
        (lambda: fit_temperature(P[:1], Y[:1]), "at least 2 rows"),
        (lambda: fit_temperature(P, Y, np.ones(3)), "one for each of 4 rows"),
        (lambda: fit_temperature(P, Y, np.array([1, -1, 1, 1])), "not negative"),
        (lambda: fit_temperature(P, Y, np.zeros(4)), "not 0 in sum"),
        (lambda: fit_temperature(P, Y, np.array([0, 0, 1, 0])), "at least 2 rows"),
    ],
)
def test_bad_settings_are_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()
