"""Scores of likeness to the training data against formulas written out here and truths in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from thalweg.energies.labelled import LabelledEnergy
from thalweg.evaluation.detection import (
    auroc,
    boundary_distance,
    detection_scores,
    energy,
    energy_score,
    false_positive_rate,
    generalised_entropy,
    max_softmax,
    neighbour_distance,
    virtual_logit,
)


def layer(seed: int = 0, n_classes: int = 5, n_features: int = 8) -> tuple[np.ndarray, ...]:
    """Training features round a mean for each class, weight and bias of a last layer, and other features."""
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(size=(n_classes, n_features)), rng.normal(size=n_classes)
    train = 2 * weight[rng.integers(n_classes, size=200)] + rng.normal(size=(200, n_features))
    return train, weight, bias, 2 * rng.normal(size=(30, n_features))


# -- from logits -------------------------------------------------------------------------------------------


def test_scores_of_logits_by_their_formulas():
    f = np.random.default_rng(0).normal(size=(20, 6)) * 3
    e = np.exp(f)
    p = e / e.sum(1, keepdims=True)
    np.testing.assert_allclose(energy(f), np.log(e.sum(1)), rtol=1e-12)
    np.testing.assert_allclose(energy(f, 2.5), 2.5 * np.log(np.exp(f / 2.5).sum(1)), rtol=1e-12)
    np.testing.assert_allclose(max_softmax(f), p.max(1), rtol=1e-12)
    terms = (p * (1 - p)) ** 0.1
    np.testing.assert_allclose(generalised_entropy(f), -terms.sum(1), rtol=1e-9)
    top = np.sort(p, axis=1)[:, -3:]
    np.testing.assert_allclose(generalised_entropy(f, 0.5, 3), -((top * (1 - top)) ** 0.5).sum(1), rtol=1e-9)
    np.testing.assert_allclose(energy(torch.tensor(f, requires_grad=True)), energy(f), rtol=1e-12)
    assert energy(torch.tensor(f).bfloat16()).shape == (20,)


def test_the_energy_rises_with_the_logits_and_becomes_the_largest():
    f = np.random.default_rng(0).normal(size=(20, 6))
    np.testing.assert_allclose(energy(f + 300), energy(f) + 300, rtol=1e-12)
    np.testing.assert_allclose(energy(f, 1e-4), f.max(1), atol=1e-3)
    # A shift is no change of the probabilities.
    np.testing.assert_allclose(max_softmax(f + 300), max_softmax(f), rtol=1e-9)
    np.testing.assert_allclose(generalised_entropy(f + 300), generalised_entropy(f), rtol=1e-9)


def test_the_entropy_tells_apart_what_is_certain_to_all_digits():
    gaps = np.array([20.0, 40.0, 60.0, 100.0])
    scores = generalised_entropy(np.stack([gaps, np.zeros(4)], 1))
    # Two classes with 1 - p = exp(-gap), nearly.
    np.testing.assert_allclose(scores, -2 * np.exp(-0.1 * gaps), rtol=1e-6)


class Noisy(nn.Module):
    """Logits that dropout and batch statistics would change in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))
        self.layers[2].eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_the_energy_score_of_networks_and_labelled_energies_leaves_them_as_they_were():
    torch.manual_seed(0)
    network = Noisy()
    x = torch.randn(10, 3)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    modes = [m.training for m in network.modules()]
    scores = energy_score(network, [x[:6], x[6:]], 2.0)
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    with torch.no_grad():
        expected = 2 * torch.logsumexp(network.eval()(x).double() / 2, 1).numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    pairs = DataLoader(TensorDataset(x, torch.zeros(10)), batch_size=4)
    np.testing.assert_allclose(energy_score(network, pairs, 2.0), expected, rtol=1e-5)
    labelled = LabelledEnergy(network)
    np.testing.assert_allclose(energy_score(labelled, [x], 2.0), expected, rtol=1e-5)
    # Higher for lower energies.
    np.testing.assert_allclose(
        energy_score(labelled, [x]), -labelled.marginal()(x).detach().numpy(), rtol=1e-4, atol=1e-5
    )


# -- from features -----------------------------------------------------------------------------------------


def test_scores_of_features_by_their_formulas():
    train, w, b, z = layer()
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train, z)]
    distances = np.sqrt(np.square(unit[1][:, None] - unit[0]).sum(2))
    np.testing.assert_allclose(neighbour_distance(train, z, 7), -np.sort(distances, axis=1)[:, 6], rtol=1e-6)

    for row, score in zip(z, boundary_distance(train, w, b, z), strict=True):
        f = w @ row + b
        y = int(f.argmax())
        to_boundaries = [(f[y] - f[c]) / np.linalg.norm(w[y] - w[c]) for c in range(5) if c != y]
        assert score == pytest.approx(np.mean(to_boundaries) / np.linalg.norm(row - train.mean(0)), rel=1e-9)

    origin = -np.linalg.pinv(w) @ b
    directions = np.linalg.svd(train - origin)[2][3:]
    residual = [np.linalg.norm((rows - origin) @ directions.T, axis=1) for rows in (train, z)]
    alpha = (train @ w.T + b).max(1).mean() / residual[0].mean()
    expected = np.log(np.exp(z @ w.T + b).sum(1)) - alpha * residual[1]
    np.testing.assert_allclose(virtual_logit(train, w, b, z, 3), expected, rtol=1e-8)


def test_the_distance_to_a_boundary_is_that_of_the_nearest_feature_on_it():
    # Two classes: the row moved by the distance along w_y - w_c has equal logits.
    train, w, b, z = layer(n_classes=2)
    distance = boundary_distance(train, w, b, z) * np.linalg.norm(z - train.mean(0), axis=1)
    towards = w[1] - w[0]
    sign = np.where((z @ w.T + b).argmax(1) == 0, 1.0, -1.0)
    f = (z + (sign * distance)[:, None] * towards / np.linalg.norm(towards)) @ w.T + b
    np.testing.assert_allclose(f[:, 0], f[:, 1], rtol=1e-9, atol=1e-9)


def test_classes_of_equal_weights_and_features_that_say_nothing():
    train, w, b, z = layer()
    twice = np.concatenate([w, w[:1]]), np.concatenate([b, b[:1]])
    scores = boundary_distance(train, *twice, z)
    assert np.isfinite(scores).all()
    # Where the doubled class is predicted, it has the other classes' boundaries only.
    first = (z @ w.T + b).argmax(1) == 0
    np.testing.assert_allclose(scores[first], boundary_distance(train, w, b, z)[first], rtol=1e-9)
    assert np.isfinite(boundary_distance(train, w, b, train.mean(0)[None])).all()
    assert np.isfinite(neighbour_distance(np.concatenate([train, np.zeros((1, 8))]), np.zeros((2, 8)))).all()
    # Features that are 0 in all training rows, as dead units are: the default leaves some rank for the residual.
    dead = np.where(np.arange(8) < 3, train, 0.0)
    zero_bias = np.zeros(5)
    assert np.isfinite(virtual_logit(dead, w, zero_bias, z)).all()
    with pytest.raises(ValueError, match="between 0 and 2"):
        virtual_logit(dead, w, zero_bias, z, 3)


def test_all_scores_together_find_what_is_far_away():
    rng = np.random.default_rng(1)
    w, b = 2 * np.eye(5, 8), np.full(5, 1.0)
    train, inside = (w[rng.integers(5, size=n)] + 0.3 * rng.normal(size=(n, 8)) for n in (200, 300))
    outside = 0.7 * rng.normal(size=(300, 8))
    scores = [detection_scores(torch.tensor(train), w, b, rows, k=10) for rows in (inside, outside)]
    assert list(scores[0]) == [
        "max_softmax",
        "energy",
        "generalised_entropy",
        "neighbour_distance",
        "boundary_distance",
        "virtual_logit",
    ]
    for name in scores[0]:
        assert auroc(scores[0][name], scores[1][name]).value > 0.7, name
    np.testing.assert_allclose(scores[0]["virtual_logit"], virtual_logit(train, w, b, inside), rtol=1e-9)


# -- figures -----------------------------------------------------------------------------------------------


def test_the_area_and_the_rate_are_those_of_scikit_learn_and_turn_with_the_sign():
    rng = np.random.default_rng(0)
    inside, outside = np.round(rng.normal(1, 1, 200), 1), np.round(rng.normal(0, 1, 150), 1)
    truth, both = np.repeat([1, 0], [200, 150]), np.concatenate([inside, outside])
    area = auroc(inside, outside)
    assert area.value == pytest.approx(roc_auc_score(truth, both))
    assert auroc(-inside, -outside) == pytest.approx((1 - area.value, area.standard_error))
    assert auroc(outside, inside).value == pytest.approx(1 - area.value)
    assert auroc(torch.tensor(inside), torch.tensor(outside)) == pytest.approx(area)
    assert auroc(inside, inside).value == pytest.approx(0.5)
    assert auroc(inside + 100, outside).value == pytest.approx(1)
    for recall in (0.5, 0.7, 0.95, 1.0):
        fpr, tpr, _ = roc_curve(truth, both, drop_intermediate=False)
        expected = fpr[np.argmax(tpr >= recall - 1e-12)]
        assert false_positive_rate(inside, outside, recall).value == pytest.approx(expected)
    assert false_positive_rate(-inside, -outside).value > 0.9
    assert false_positive_rate(inside + 100, outside).value == pytest.approx(0)


def test_the_errors_are_those_of_repeated_samples():
    rng = np.random.default_rng(0)
    n, m, repetitions = 60, 40, 400
    found = np.array([auroc(rng.normal(1, 1, n), rng.normal(0, 1, m)) for _ in range(repetitions)])
    exact = norm.cdf(1 / math.sqrt(2))
    deviation = found[:, 0].std(ddof=1)
    assert found[:, 0].mean() == pytest.approx(exact, abs=4 * deviation / math.sqrt(repetitions))
    # The relative error of a standard deviation is 1 / sqrt(2 n).
    assert np.sqrt(np.square(found[:, 1]).mean()) == pytest.approx(deviation, rel=4 / math.sqrt(2 * repetitions))

    # With many scores from inside the threshold is fixed: 5 % of the inside are below it.
    inside = norm.ppf((np.arange(4000) + 0.5) / 4000, loc=2)
    rates = np.array([false_positive_rate(inside, rng.normal(0, 1, 100)) for _ in range(repetitions)])
    exact = norm.sf(2 + norm.ppf(0.05))
    deviation = math.sqrt(exact * (1 - exact) / 100)
    assert rates[:, 0].mean() == pytest.approx(exact, abs=4 * deviation / math.sqrt(repetitions) + 1e-3)
    assert rates[:, 1].mean() == pytest.approx(deviation, rel=0.03)


# -- what is refused ---------------------------------------------------------------------------------------

TRAIN, W, B, Z = layer()


@pytest.mark.parametrize("function", [energy, max_softmax, generalised_entropy])
def test_bad_logits_are_refused_in_words(function):
    for f, words in [
        (np.array([[1.0, np.nan]]), "NaN or infinity in 1 rows"),
        (np.array([[1.0, np.inf]]), "NaN or infinity in 1 rows"),
        (np.ones((3, 1)), "at least 2 classes"),
        (np.ones(3), "at least 2 classes"),
        (np.ones((0, 3)), "at least one row"),
    ]:
        with pytest.raises(ValueError, match=words):
            function(f)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: energy(Z, 0.0), "temperature"),
        (lambda: energy(Z, math.inf), "temperature"),
        (lambda: energy_score(nn.Linear(8, 3), []), "no inputs"),
        (lambda: energy_score(nn.Linear(8, 1), [torch.zeros(2, 8)]), "at least 2 classes"),
        (lambda: generalised_entropy(Z, 0.0), "gamma"),
        (lambda: generalised_entropy(Z, 0.1, 0), "n_top"),
        (lambda: neighbour_distance(TRAIN, Z, 0), "k must be"),
        (lambda: neighbour_distance(TRAIN, Z, 201), "200 training rows"),
        (lambda: neighbour_distance(TRAIN, Z[:, :3]), "8 features and the others 3"),
        (lambda: neighbour_distance(TRAIN * np.nan, Z), "training_features contains NaN"),
        (lambda: boundary_distance(TRAIN, W[:, :3], B, Z), r"weight must be \[C, 8\]"),
        (lambda: boundary_distance(TRAIN, W, B[:3], Z), r"bias \[C\]"),
        (lambda: boundary_distance(TRAIN, np.ones((3, 8)), B[:3], Z), "different weights"),
        (lambda: virtual_logit(TRAIN, W, B, Z, 8), "between 0 and 7"),
        (lambda: virtual_logit(TRAIN, W, B - 1000, Z), "positive on average|rank"),
        (lambda: virtual_logit(np.zeros((5, 8)), W, 0 * B, Z), "not all equal"),
        (lambda: detection_scores(TRAIN, W, B, Z[:0]), "not empty"),
        (lambda: auroc(np.ones(1), np.ones(5)), "inside must be at least 2"),
        (lambda: auroc(np.ones(5), np.ones((5, 1))), "outside must be"),
        (lambda: auroc(np.array([1.0, np.nan]), np.ones(2)), "1 NaN"),
        (lambda: false_positive_rate(np.ones(2), np.ones(0)), "outside must be at least 1"),
        (lambda: false_positive_rate(np.ones(2), np.ones(2), 0.0), "recall"),
    ],
)
def test_bad_settings_are_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()
