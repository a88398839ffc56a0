"""How likely an input is one of the training distribution, by a trained classifier's logits and features.

Every score is HIGHER for inputs that are more like the training data, whatever the sign in its paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax, logsumexp
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from thalweg.energies.labelled import LabelledEnergy
from thalweg.evaluation.calibration import Estimate, Values, as_array, binomial_error, check_logits
from thalweg.objectives.base import evaluating

# A direction whose variance is below this share of the largest has none but of rounding.
RANK_TOLERANCE = 1e-10


def energy_score(module: nn.Module, batches: Iterable[Any], temperature: float = 1.0) -> np.ndarray:
    """T logsumexp(f(x) / T) of a network's logits f: minus the energy of x, summed over labels [Liu 2020, sec. 3].

    The module runs in evaluation mode without gradients, and its modes are as before afterwards.

    Args:
        module: maps inputs ``[B, *event]`` to logits ``[B, C]``, or is a LabelledEnergy, whose logits are minus
            its energies.
        batches: inputs, or tuples that begin with inputs, as a DataLoader gives them.
        temperature: T, positive.

    Returns:
        scores ``[n]``, higher for inputs more like the training data.

    Raises:
        ValueError: for a temperature that is not positive, no inputs, or logits that are not ``[B, C]``.
    """
    network = as_network(module)
    device = next((p.device for p in module.parameters()), None)
    scores = []
    with torch.no_grad(), evaluating(module):
        for batch in batches:
            x = batch[0] if isinstance(batch, tuple | list) else batch
            scores.append(energy(network(x if device is None else x.to(device)), temperature))
    if not scores:
        raise ValueError("there are no inputs to score")
    return np.concatenate(scores)


def energy(logits: Values, temperature: float = 1.0) -> np.ndarray:
    """T logsumexp(f / T) of logits f [Liu 2020, sec. 3]; as T falls to 0, the largest logit.

    Args:
        logits: ``[n, C]``.
        temperature: T, positive.

    Returns:
        scores ``[n]``, higher for inputs more like the training data.

    Raises:
        ValueError: for NaN or infinities, wrong shapes, no rows, or a temperature that is not positive.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    f, _ = check_logits(logits)
    return np.asarray(temperature * logsumexp(f / temperature, axis=1))


def max_softmax(logits: Values) -> np.ndarray:
    """The largest probability [Hendrycks 2017, sec. 2].

    Args:
        logits: ``[n, C]``.

    Returns:
        scores ``[n]``, higher for inputs more like the training data.

    Raises:
        ValueError: for NaN or infinities, wrong shapes, or no rows.
    """
    f, _ = check_logits(logits)
    return np.exp(log_softmax(f, axis=1).max(1))


def generalised_entropy(logits: Values, gamma: float = 0.1, n_top: int = 100) -> np.ndarray:
    """Minus the generalised entropy of the largest probabilities, -sum_j (p_j (1 - p_j))^gamma [Liu 2023, sec. 3].

    Args:
        logits: ``[n, C]``.
        gamma: the exponent, in (0, 1); the smaller it is, the more small probabilities count.
        n_top: over how many of the largest probabilities the sum runs, or all if there are fewer.

    Returns:
        scores ``[n]``, higher for inputs more like the training data.

    Raises:
        ValueError: for NaN or infinities, wrong shapes, no rows, gamma outside (0, 1), or n_top < 1.
    """
    if not 0 < gamma < 1 or n_top < 1:
        raise ValueError(f"gamma must be in (0, 1) and n_top at least 1, got {gamma} and {n_top}")
    f, _ = check_logits(logits)
    f = -np.sort(-f, axis=1)
    log_p = log_softmax(f, axis=1)
    log_rest = np.log1p(-np.exp(np.minimum(log_p, math.log(0.5))))
    # Of a network that is sure 1 - p rounds to 0, and what is left of it is what tells two inputs apart.
    log_rest[:, 0] = logsumexp(log_p[:, 1:], axis=1)
    return np.asarray(-np.exp(gamma * (log_p + log_rest))[:, :n_top].sum(1))


def neighbour_distance(training_features: Values, features: Values, k: int = 50) -> np.ndarray:
    """Minus the distance to the k-th nearest training row, features scaled to length 1 [Sun 2022, sec. 3].

    Args:
        training_features: ``[m, D]``, m >= k.
        features: ``[n, D]``.
        k: which neighbour.

    Returns:
        scores ``[n]``, between -2 and 0, higher for inputs more like the training data.

    Raises:
        ValueError: for NaN or infinities, wrong shapes, no rows, or k outside 1 .. m.
    """
    z_train, z = _feature_pair(training_features, features)
    if not 1 <= k <= len(z_train):
        raise ValueError(f"k must be between 1 and the {len(z_train)} training rows, got {k}")
    search = NearestNeighbors(n_neighbors=k).fit(_unit(z_train))
    return -search.kneighbors(_unit(z))[0][:, -1]


def boundary_distance(training_features: Values, weight: Values, bias: Values, features: Values) -> np.ndarray:
    """Mean distance to the decision boundaries, over the distance to the mean of the training rows (fDBD).

    The boundary between the predicted class y and a class c is |f_y - f_c| / |w_y - w_c| away, f = W z + b
    [Liu 2024, sec. 3]. Two classes of equal weights have no boundary and are left out.

    Args:
        training_features: ``[m, D]``, the inputs of the last layer.
        weight: W of the last layer ``[C, D]``.
        bias: b of the last layer ``[C]``.
        features: ``[n, D]``.

    Returns:
        scores ``[n]``, higher for inputs more like the training data.

    Raises:
        ValueError: for NaN or infinities, wrong shapes, no rows, or if all classes have equal weights.
    """
    z_train, z = _feature_pair(training_features, features)
    w, b = _last_layer(weight, bias, z.shape[1])
    logits = z @ w.T + b
    predicted = logits.argmax(1)
    between = np.linalg.norm(w[:, None] - w, axis=2)
    apart = (between > 0)[predicted]
    if not (between > 0).any(1).all():
        raise ValueError("boundary_distance needs classes of different weights, and all are equal")
    distance = (logits.max(1, keepdims=True) - logits) / np.where(apart, between[predicted], np.inf)
    from_mean = np.linalg.norm(z - z_train.mean(0), axis=1)
    return distance.sum(1) / apart.sum(1) / np.maximum(from_mean, 1e-12)


def virtual_logit(
    training_features: Values, weight: Values, bias: Values, features: Values, n_principal: int | None = None
) -> np.ndarray:
    """logsumexp of the logits, minus the virtual logit of what the principal directions do not explain (ViM).

    The virtual logit is alpha |residual|: the part of z - o outside the n_principal leading directions of the
    training rows, o = -W^+ b, and alpha scales its mean over training rows to that of the largest logit
    [Wang 2022, sec. 4].

    Args:
        training_features: ``[m, D]``, the inputs of the last layer.
        weight: W of the last layer ``[C, D]``.
        bias: b of the last layer ``[C]``.
        features: ``[n, D]``.
        n_principal: number of leading directions, below the rank of the training rows; by default D // 2, or one
            less than the rank if that is smaller.

    Returns:
        scores ``[n]``, higher for inputs more like the training data.

    Raises:
        ValueError: for NaN or infinities, wrong shapes, no rows, n_principal out of range, or if the largest logit
            is not positive on average, so that no alpha exists.
    """
    z_train, z = _feature_pair(training_features, features)
    w, b = _last_layer(weight, bias, z.shape[1])
    origin = -np.linalg.pinv(w) @ b
    centred = z_train - origin
    variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    rank = int((variances > RANK_TOLERANCE * variances[-1]).sum())
    if rank == 0:
        raise ValueError("virtual_logit needs training features that are not all equal to one point")
    n_principal = min(z.shape[1] // 2, rank - 1) if n_principal is None else n_principal
    if not 0 <= n_principal < rank:
        raise ValueError(
            f"n_principal must be between 0 and {rank - 1}, below the rank of the training features, got "
            f"{n_principal}"
        )
    # The eigenvalues ascend: what is left over stands first.
    outside = directions[:, : z.shape[1] - n_principal]
    largest = float((z_train @ w.T + b).max(1).mean())
    if not largest > 0:
        raise ValueError(
            f"virtual_logit needs a largest logit that is positive on average over the training rows, got "
            f"{largest:.3g}: add a constant to the bias, which changes no probability"
        )
    alpha = largest / np.linalg.norm(centred @ outside, axis=1).mean()
    logits = z @ w.T + b
    return np.asarray(logsumexp(logits, axis=1) - alpha * np.linalg.norm((z - origin) @ outside, axis=1))


def detection_scores(
    training_features: Values,
    weight: Values,
    bias: Values,
    features: Values,
    *,
    k: int = 50,
    n_principal: int | None = None,
    temperature: float = 1.0,
) -> dict[str, np.ndarray]:
    """All scores at once, to be reported together: which one is best differs from data set to data set.

    Args:
        training_features: ``[m, D]``, the inputs of the last layer, of the rows that the network was trained on.
        weight: W of the last layer ``[C, D]``, so that the logits are W z + b.
        bias: b of the last layer ``[C]``.
        features: ``[n, D]`` of the inputs in question.
        k: of :func:`neighbour_distance`, at most m.
        n_principal: of :func:`virtual_logit`.
        temperature: of :func:`energy`.

    Returns:
        by the name of its function, each score ``[n]``: max_softmax, energy, generalised_entropy,
        neighbour_distance, boundary_distance and virtual_logit. Higher is more like the training data.

    Raises:
        ValueError: as these functions.
    """
    z_train, z = _feature_pair(training_features, features)
    w, b = _last_layer(weight, bias, z.shape[1])
    logits = z @ w.T + b
    return {
        "max_softmax": max_softmax(logits),
        "energy": energy(logits, temperature),
        "generalised_entropy": generalised_entropy(logits),
        "neighbour_distance": neighbour_distance(z_train, z, k),
        "boundary_distance": boundary_distance(z_train, w, b, z),
        "virtual_logit": virtual_logit(z_train, w, b, z, n_principal),
    }


def auroc(inside: Values, outside: Values) -> Estimate:
    """Probability that an input from inside scores higher than one from outside, ties counting a half.

    1 is perfect, 1/2 is guessing, and scores of the wrong sign give 1 minus it. The standard error is that of
    [DeLong 1988], which is 0 where the two do not overlap at all.

    Args:
        inside: scores of inputs of the training distribution ``[n]``, n >= 2.
        outside: scores of other inputs ``[m]``, m >= 2.

    Raises:
        ValueError: for NaN, wrong shapes, or fewer than 2 scores.
    """
    a, b = _scores(inside, "inside", 2), _scores(outside, "outside", 2)
    # Of each score, the share of the other set that it beats.
    of_inside, of_outside = _share_below(a, b), 1 - _share_below(b, a)
    variance = of_inside.var(ddof=1) / len(a) + of_outside.var(ddof=1) / len(b)
    return Estimate(float(of_inside.mean()), math.sqrt(variance))


def false_positive_rate(inside: Values, outside: Values, recall: float = 0.95) -> Estimate:
    """Share of the inputs from outside that pass a threshold which this share of those from inside pass.

    0 is perfect. The standard error is binomial: that of the outside scores at this threshold.

    Args:
        inside: scores of inputs of the training distribution ``[n]``.
        outside: scores of other inputs ``[m]``.
        recall: share of the inside that has to pass, in (0, 1].

    Raises:
        ValueError: for NaN, wrong shapes, no scores, or a recall outside (0, 1].
    """
    a, b = _scores(inside, "inside", 1), _scores(outside, "outside", 1)
    if not 0 < recall <= 1:
        raise ValueError(f"recall must be in (0, 1], got {recall}")
    # The product of .7 and 10 is a little above 7, and must not ask for 8.
    needed = max(1, math.ceil(recall * len(a) - 1e-9))
    threshold = np.sort(a)[len(a) - needed]
    passed = float(np.mean(b >= threshold))
    return Estimate(passed, float(binomial_error(passed, len(b))))


def as_network(network: Any) -> Callable[[Tensor], Tensor]:
    """The function from inputs ``[B, *event]`` to logits ``[B, C]`` that a network or a LabelledEnergy is."""
    if isinstance(network, LabelledEnergy):
        return lambda x: -network.energies(x)
    return network


def _share_below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Share of the others below each value, ties counting a half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return below / (2 * len(ordered))


def _scores(values: Values, name: str, at_least: int) -> np.ndarray:
    scores = as_array(values).astype(float)
    if scores.ndim != 1 or len(scores) < at_least:
        raise ValueError(f"{name} must be at least {at_least} score(s) [n], got shape {scores.shape}")
    if np.isnan(scores).any():
        raise ValueError(f"{name} contains {int(np.isnan(scores).sum())} NaN")
    return scores


def _finite(values: Values, name: str, n_dimensions: int) -> np.ndarray:
    array = as_array(values).astype(float)
    if array.ndim != n_dimensions or 0 in array.shape:
        raise ValueError(f"{name} must have {n_dimensions} dimension(s) and be not empty, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} contains NaN or infinity")
    return array


def _feature_pair(training_features: Values, features: Values) -> tuple[np.ndarray, np.ndarray]:
    train, given = _finite(training_features, "training_features", 2), _finite(features, "features", 2)
    if train.shape[1] != given.shape[1]:
        raise ValueError(f"training rows have {train.shape[1]} features and the others {given.shape[1]}")
    return train, given


def _last_layer(weight: Values, bias: Values, n_features: int) -> tuple[np.ndarray, np.ndarray]:
    w, b = _finite(weight, "weight", 2), _finite(bias, "bias", 1)
    if w.shape[1] != n_features or len(w) != len(b) or len(w) < 2:
        raise ValueError(
            f"weight must be [C, {n_features}] and bias [C] with C of at least 2 classes, got shapes {w.shape} "
            f"and {b.shape}"
        )
    return w, b


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays one."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(float).tiny)
