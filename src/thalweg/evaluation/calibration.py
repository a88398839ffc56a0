"""Whether the probabilities of a classifier mean what they say, and one temperature that mends them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from torch import Tensor

Values = np.ndarray | Tensor

# Probabilities computed in single precision add up to 1 within this, however many classes there are.
SUM_TOLERANCE = 1e-3


class Estimate(NamedTuple):
    """A figure of a sample and its standard error."""

    value: float
    standard_error: float


class Reliability(NamedTuple):
    """What a reliability diagram shows, for each bin that has rows ``[bins]``.

    Attributes:
        confidence: mean of the largest probability.
        accuracy: share of the rows whose most probable label is right.
        standard_error: of the accuracy (see :func:`binomial_error`).
        n_rows: how many there are.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    standard_error: np.ndarray
    n_rows: np.ndarray


class Temperature(NamedTuple):
    """What :func:`fit_temperature` found.

    Attributes:
        value: the temperature T to divide logits by; 1 if it was not applied.
        nll_before: mean negative log-likelihood of the labels in nats, without a temperature.
        nll_after: the same on rows that the temperature was not fitted to.
        applied: whether ``nll_after`` is below ``nll_before``.
    """

    value: float
    nll_before: float
    nll_after: float
    applied: bool


def expected_calibration_error(
    probabilities: Values, labels: Values, n_bins: int = 20, adaptive: bool = False
) -> float:
    """How far the confidence of a classifier is from its accuracy [Guo 2017, sec. 2].

    The rows are put into bins by the largest probability; the error is the mean over rows of
    |accuracy - mean confidence| of their bin. It is never negative, so that even perfect probabilities have an
    error of about sqrt(n_bins / n): compare two classifiers at equal numbers of rows and bins.

    Args:
        probabilities: ``[n, C]``, rows that add up to 1.
        labels: ``[n]``, of 0 .. C - 1.
        n_bins: number of bins.
        adaptive: False takes bins of equal width over [0, 1], the last one with its end; True takes bins of
            equal numbers of rows, where rows of equal confidence stay together.

    Raises:
        ValueError: for NaN, probabilities that are negative or do not add up to 1, labels out of range, shapes
            that do not fit, no rows, or less than one bin.
    """
    found = reliability(probabilities, labels, n_bins, adaptive)
    return float(np.average(np.abs(found.accuracy - found.confidence), weights=found.n_rows))


def reliability(probabilities: Values, labels: Values, n_bins: int = 10, adaptive: bool = False) -> Reliability:
    """Accuracy against confidence, in bins of confidence: the points of a reliability diagram.

    Args:
        probabilities: ``[n, C]``, rows that add up to 1.
        labels: ``[n]``, of 0 .. C - 1.
        n_bins: number of bins; those without rows are left out.
        adaptive: as in :func:`expected_calibration_error`.

    Raises:
        ValueError: as :func:`expected_calibration_error`.

    Source: [Guo 2017, sec. 2].
    """
    p, y = _probabilities(probabilities, labels)
    if n_bins < 1:
        raise ValueError(f"n_bins must be at least 1, got {n_bins}")
    confidence = p.max(1)
    correct = p.argmax(1) == y
    if adaptive:
        # The rank of a row counts the rows strictly below it, so that no tie is broken by the order of the rows.
        rank = np.searchsorted(np.sort(confidence), confidence, side="left")
        bins = rank * n_bins // len(rank)
    else:
        bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    count = np.bincount(bins, minlength=n_bins)
    used = count > 0
    n = count[used]
    accuracy = np.bincount(bins, weights=correct, minlength=n_bins)[used] / n
    mean = np.bincount(bins, weights=confidence, minlength=n_bins)[used] / n
    return Reliability(mean, accuracy, binomial_error(accuracy, n), n)


def brier_score(probabilities: Values, labels: Values) -> Estimate:
    """Mean over rows of sum_k (p_k - [k is the label])^2 [Brier 1950]: from 0, perfect, to 2.

    Args:
        probabilities: ``[n, C]``, rows that add up to 1.
        labels: ``[n]``, of 0 .. C - 1.

    Raises:
        ValueError: as :func:`expected_calibration_error`.
    """
    p, y = _probabilities(probabilities, labels)
    truth = np.zeros_like(p)
    truth[np.arange(len(y)), y] = 1.0
    return mean_estimate(np.square(p - truth).sum(1))


def mean_log_loss(probabilities: Values, labels: Values) -> Estimate:
    """Mean over rows of -log p(label) in nats, lower is better; infinite if a label has the probability 0.

    Args:
        probabilities: ``[n, C]``, rows that add up to 1.
        labels: ``[n]``, of 0 .. C - 1.

    Raises:
        ValueError: as :func:`expected_calibration_error`.
    """
    p, y = _probabilities(probabilities, labels)
    of_label = p[np.arange(len(y)), y]
    if (of_label == 0).any():
        return Estimate(math.inf, math.inf)
    return mean_estimate(-np.log(of_label))


def fit_temperature(
    logits: Values, labels: Values, sample_weight: Values | None = None, random_state: int = 0
) -> Temperature:
    """The temperature T for which softmax(logits / T) predicts the labels best, if it helps [Guo 2017, sec. 4.2].

    Whether it helps is judged on rows that it was not fitted to: each half of the rows is judged at the
    temperature of the other half, and only if their negative log-likelihood falls is the temperature of all rows
    given. Logits that need none are left alone in two of three samples, and otherwise get a T within its
    standard error of 1. Where every row is predicted right no finite temperature is best, and none is applied.

    Args:
        logits: ``[n, C]`` of held-out rows, at least 2.
        labels: ``[n]``, of 0 .. C - 1; labels that do not occur are allowed.
        sample_weight: ``[n]``, not negative.
        random_state: seed of the halves.

    Raises:
        ValueError: for NaN or infinities, labels out of range, shapes that do not fit, fewer than 2 rows, or
            weights that are negative or 0 in sum.
    """
    f, y = check_logits(logits, labels)
    weight = np.ones(len(y)) if sample_weight is None else as_array(sample_weight).astype(float)
    if weight.shape != y.shape:
        raise ValueError(f"sample_weight must be one for each of {len(y)} rows, got shape {weight.shape}")
    if not (np.isfinite(weight).all() and (weight >= 0).all() and weight.sum() > 0):
        raise ValueError("sample_weight must be finite, not negative, and not 0 in sum")
    # Rows of no weight say nothing, and a half of them alone could not be fitted.
    f, y, weight = f[weight > 0], y[weight > 0], weight[weight > 0]
    if len(y) < 2:
        raise ValueError(f"a temperature needs at least 2 rows of a positive weight, got {len(y)}")
    before = float(np.average(_log_losses(f, y), weights=weight))
    order = np.random.default_rng(random_state).permutation(len(y))
    halves = order[::2], order[1::2]
    losses = np.empty(len(y))
    for fitted, judged in (halves, halves[::-1]):
        beta = _inverse_temperature(f[fitted], y[fitted], weight[fitted])
        losses[judged] = _log_losses(beta * f[judged], y[judged])
    after = float(np.average(losses, weights=weight))
    applied = after < before and bool((f.argmax(1) != y).any())
    value = 1 / _inverse_temperature(f, y, weight) if applied else 1.0
    return Temperature(value, before, after, applied)


def binomial_error(share: Any, n: Any) -> Any:
    """Standard error of a share of n rows, of the shapes given.

    It is the posterior standard deviation under a uniform prior, hence not 0 for a share of 0 or 1; for large n
    it is the usual sqrt(share (1 - share) / n).
    """
    smoothed = (share * n + 1) / (n + 2)
    return np.sqrt(smoothed * (1 - smoothed) / (n + 3))


def mean_estimate(values: np.ndarray) -> Estimate:
    """The mean of independent values ``[n]`` and its standard error, infinite for a single one."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Estimate(float(np.mean(values)), error)


def as_array(values: Any) -> np.ndarray:
    """An array of what may be a tensor, with or without a graph, on any device."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # NumPy knows no bfloat16.
        return (values.double() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def check_logits(logits: Values, labels: Values | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Logits as float64 ``[n, C]`` with their labels ``[n]`` (or no labels), or a ValueError in words."""
    f = _matrix(logits, "logits")
    if not np.isfinite(f).all():
        raise ValueError(f"logits contain NaN or infinity in {int((~np.isfinite(f)).any(1).sum())} rows")
    return f, np.empty(0, int) if labels is None else _labels(labels, *f.shape)


def _probabilities(probabilities: Values, labels: Values) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities as float64 ``[n, C]`` and labels ``[n]``, or a ValueError in words."""
    p = _matrix(probabilities, "probabilities")
    if not np.isfinite(p).all():
        raise ValueError(f"probabilities contain NaN or infinity in {int((~np.isfinite(p)).any(1).sum())} rows")
    wrong = (p < 0).any(1) | (np.abs(p.sum(1) - 1) > SUM_TOLERANCE)
    if wrong.any():
        raise ValueError(
            f"probabilities must not be negative and must add up to 1 in each row, which {int(wrong.sum())} of "
            f"{len(p)} rows do not (logits need a softmax first)"
        )
    # What rounding has added would otherwise stand beyond the last bin.
    return p / p.sum(1, keepdims=True), _labels(labels, *p.shape)


def _matrix(values: Values, name: str) -> np.ndarray:
    matrix = as_array(values).astype(float)
    if matrix.ndim != 2 or matrix.shape[1] < 2:
        raise ValueError(f"{name} must be [n, C] with C of at least 2 classes, got shape {matrix.shape}")
    if len(matrix) == 0:
        raise ValueError(f"{name} must have at least one row")
    return matrix


def _labels(labels: Values, n: int, n_classes: int) -> np.ndarray:
    y = as_array(labels)
    if y.shape != (n,):
        raise ValueError(f"labels must be one for each of {n} rows, got shape {y.shape}")
    if y.dtype.kind not in "iub":
        raise ValueError(f"labels must be integers of 0 .. {n_classes - 1}, got {y.dtype}")
    y = y.astype(int)
    if y.min() < 0 or y.max() >= n_classes:
        raise ValueError(f"labels must be of 0 .. {n_classes - 1}, got {y.min()} to {y.max()}")
    return y


def _log_losses(f: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(-log_softmax(f, axis=1)[np.arange(len(y)), y])


def _inverse_temperature(f: np.ndarray, y: np.ndarray, weight: np.ndarray) -> float:
    """1 / T by scikit-learn."""
    n_classes = f.shape[1]
    # scikit-learn takes a single number x as the two logits (-x, x). Of more it would take those between 0 and 1
    # that add up to 1 for probabilities; with a largest of 0 they never do.
    f = (f[:, 1:] - f[:, :1]) / 2 if n_classes == 2 else f - f.max(1, keepdims=True)
    # One row of no weight for each class, since scikit-learn takes the classes that it sees for all there are.
    f = np.concatenate([f, np.zeros((n_classes, f.shape[1]))])
    y = np.concatenate([y, np.arange(n_classes)])
    weight = np.concatenate([weight / weight.mean(), np.zeros(n_classes)])
    everything = np.arange(len(y))
    calibrated = CalibratedClassifierCV(
        _Identity(), method="temperature", cv=[(everything, everything)], ensemble=False
    ).fit(f, y, sample_weight=weight)
    return float(calibrated.calibrated_classifiers_[0].calibrators[0].beta_)


class _Identity(ClassifierMixin, BaseEstimator):
    """The classifier whose decision values are its inputs."""

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> _Identity:
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        return X[:, 0] if X.shape[1] == 1 else X

    def predict(self, X: np.ndarray) -> np.ndarray:
        return (X[:, 0] > 0).astype(int) if X.shape[1] == 1 else X.argmax(1)
