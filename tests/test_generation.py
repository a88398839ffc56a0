"""The figures of samples against truths in closed form; tolerances are standard errors of the estimate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import nn

from thalweg.evaluation import generation
from thalweg.evaluation.generation import (
    bits_per_dimension,
    copying_ratio,
    frechet_distance,
    maximum_mean_discrepancy,
    mmd_test,
    nearest_neighbours,
    pca_features,
    precision_recall,
)


def standard_error(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def exactly_gaussian(rng: np.random.Generator, n: int, mean: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Rows whose mean is exactly this one and whose covariance is exactly root' root."""
    rows = rng.normal(size=(n, len(mean)))
    rows -= rows.mean(0)
    orthogonal = np.linalg.qr(rows)[0] * math.sqrt(n - 1)
    return mean + orthogonal @ root


# -- maximum mean discrepancy ------------------------------------------------------------------------------


def gaussian_discrepancy(shift: np.ndarray, std: float, bandwidth: float) -> float:
    """Squared MMD of N(shift, std^2) and N(0, 1): the kernel's mean is a Gaussian integral."""

    def mean_kernel(variance: float, squared: float) -> float:
        total = bandwidth**2 + variance
        return (bandwidth**2 / total) ** (len(shift) / 2) * math.exp(-squared / (2 * total))

    return mean_kernel(2 * std**2, 0.0) + mean_kernel(2.0, 0.0) - 2 * mean_kernel(1 + std**2, float(shift @ shift))


@pytest.mark.parametrize(("shift", "std"), [(0.0, 1.0), (0.5, 1.0), (0.3, 1.6)])
def test_mmd_is_unbiased_for_the_closed_form_of_gaussians(shift, std):
    rng = np.random.default_rng(0)
    bandwidths = (0.7, 2.0)
    values = np.array(
        [
            maximum_mean_discrepancy(shift + std * rng.normal(size=(20, 3)), rng.normal(size=(30, 3)), bandwidths)
            for _ in range(300)
        ]
    )
    exact = np.mean([gaussian_discrepancy(np.full(3, shift), std, b) for b in bandwidths])
    assert values.mean() == pytest.approx(exact, abs=4 * standard_error(values))
    # The tolerance tells these cases apart.
    assert shift == 0 or exact > 20 * standard_error(values)


def test_mmd_equals_its_definition_and_does_not_depend_on_blocks_units_or_types(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 2, 3)), 1 + rng.normal(size=(5, 2, 3))

    def kernel(a, b):
        return math.exp(-np.square(a - b).sum() / (2 * 1.5**2))

    within_x = np.mean([kernel(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
    within_y = np.mean([kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    across = np.mean([kernel(a, b) for a in x for b in y])
    assert maximum_mean_discrepancy(x, y, 1.5) == pytest.approx(within_x + within_y - 2 * across, rel=1e-10)
    whole = maximum_mean_discrepancy(x, y)
    assert maximum_mean_discrepancy(1e3 * x + 5e4, 1e3 * y + 5e4) == pytest.approx(whole, rel=1e-6)
    as_tensors = torch.tensor(x, requires_grad=True), torch.tensor(y)
    assert maximum_mean_discrepancy(*as_tensors) == pytest.approx(whole, rel=1e-10)
    monkeypatch.setattr(generation, "BLOCK_ENTRIES", 30)
    assert maximum_mean_discrepancy(x, y) == pytest.approx(whole, rel=1e-10)


def test_mmd_test_keeps_its_level_and_finds_a_difference():
    rng = np.random.default_rng(0)
    repetitions = 400
    p_values = np.array(
        [
            mmd_test(rng.standard_t(3, (15, 2)), rng.standard_t(3, (20, 2)), 99, seed).p_value
            for seed in range(repetitions)
        ]
    )
    for level in (0.05, 0.5):
        error = math.sqrt(level * (1 - level) / repetitions)
        assert np.mean(p_values <= level) == pytest.approx(level, abs=4 * error)
    # The same mean and another spread.
    found = [
        mmd_test(2 * rng.normal(size=(60, 2)), rng.normal(size=(60, 2)), 99, seed).p_value for seed in range(20)
    ]
    assert np.mean(np.array(found) <= 0.05) >= 0.9
    assert min(found) == 0.01


@pytest.mark.parametrize(
    ("n", "repetitions"),
    [(50, 200), (200, 60), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((50, 2000), (1000, 100)))],
)
def test_mmd_test_keeps_its_level_at_its_defaults(n, repetitions):
    rng = np.random.default_rng([n, repetitions])
    pairs = rng.normal(size=(repetitions, 2, n, 2))
    p_values = np.array([mmd_test(*pair, random_state=i).p_value for i, pair in enumerate(pairs)])
    for level in (0.05, 0.2, 0.5):
        error = math.sqrt(level * (1 - level) / repetitions)
        assert np.mean(p_values <= level) <= level + 3 * error


def test_mmd_test_of_equal_sets_and_of_one_seed():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (40, 5)).astype(float)
    same = mmd_test(x, x)
    assert same.statistic < 0
    assert same.p_value > 0.9
    y = rng.normal(size=(30, 5))
    assert mmd_test(x, y, random_state=3) == mmd_test(x, y, random_state=3)
    assert mmd_test(x, y).statistic == pytest.approx(maximum_mean_discrepancy(x, y), rel=1e-12)


# -- Fréchet distance --------------------------------------------------------------------------------------


def test_frechet_distance_of_gaussians():
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(2, 4))
    std = rng.uniform(0.5, 2, (2, 4))
    x, y = (exactly_gaussian(rng, n, m, np.diag(s)) for n, m, s in zip((50, 80), mean, std, strict=True))
    # Of independent coordinates it is the distance of the means and of the standard deviations.
    exact = np.square(mean[0] - mean[1]).sum() + np.square(std[0] - std[1]).sum()
    assert frechet_distance(x, y) == pytest.approx(exact, rel=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-9)

    roots = rng.normal(size=(2, 4, 4))
    x, y = (exactly_gaussian(rng, 50, m, r) for m, r in zip(mean, roots, strict=True))
    c1, c2 = (r.T @ r for r in roots)
    exact = np.square(mean[0] - mean[1]).sum() + np.trace(c1 + c2 - 2 * linalg.sqrtm(c1 @ c2).real)
    assert frechet_distance(x, y) == pytest.approx(exact, rel=1e-6)
    assert frechet_distance(torch.tensor(x), torch.tensor(y)) == pytest.approx(exact, rel=1e-6)


def test_frechet_distance_of_fewer_rows_than_dimensions():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 30))
    assert frechet_distance(x, x + 0.5) == pytest.approx(30 * 0.25, rel=1e-9)


def test_frechet_distance_of_features():
    rng = np.random.default_rng(0)
    images, others = rng.normal(size=(2, 60, 1, 4, 4)).astype(np.float32)
    features = pca_features(images, 3)
    assert features(images).shape == (60, 3)
    # The components of the data are uncorrelated, with the largest variances there are.
    variances = np.linalg.eigvalsh(np.cov(images.reshape(60, -1).T))[::-1][:3]
    np.testing.assert_allclose(np.cov(features(images).T), np.diag(variances), atol=1e-5)
    by_hand = frechet_distance(features(others), features(images))
    assert frechet_distance(others, images, features) == pytest.approx(by_hand, rel=1e-9)

    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    tensors = torch.tensor(others), torch.tensor(images)
    weight = network[1].weight.detach().double().numpy()
    by_hand = frechet_distance(others.reshape(60, -1) @ weight.T, images.reshape(60, -1) @ weight.T)
    assert frechet_distance(*tensors, network) == pytest.approx(by_hand, rel=1e-4)


# -- precision, recall, density, coverage ------------------------------------------------------------------


def test_precision_and_recall_of_equal_disjoint_and_partial_sets():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 2))
    # Each ball of an equal set holds its centre and k neighbours.
    assert precision_recall(x, x, k=4) == pytest.approx((1, 1, 5 / 4, 1))
    assert precision_recall(x, x + 100) == (0, 0, 0, 0)
    # Samples of one of two modes: all of them good, half of the data missing.
    both = np.concatenate([x, x + 100])
    assert precision_recall(x, both, k=4) == pytest.approx((1, 0.5, 5 / 4, 0.5))
    assert precision_recall(both, x, k=4) == pytest.approx((0.5, 1, 5 / 8, 1))


def test_precision_and_recall_by_hand():
    data = np.array([[0.0], [1.0], [3.0], [7.0]])  # reach for k=1: 1, 1, 2, 4
    samples = np.array([[2.0], [11.0], [12.0]])  # reach for k=1: 9, 1, 1
    # 2 lies in the balls of 1 (on its edge) and 3, 11 on the edge of the ball of 7, 12 in none.
    assert precision_recall(samples, data, k=1) == pytest.approx((2 / 3, 1.0, 3 / 3, 3 / 4))


def test_rows_on_a_grid_lie_in_balls_of_no_extent():
    x = np.repeat(np.random.default_rng(0).integers(0, 2, (10, 30)), 4, axis=0) / 3 + 1e3
    assert precision_recall(x, x, k=3)[:2] == (1, 1)
    assert precision_recall(x + 1e-3, x, k=3)[:2] == (0, 0)


@pytest.mark.parametrize("dimension", [1, 8])
def test_density_and_coverage_of_the_true_distribution(dimension):
    rng = np.random.default_rng(0)
    n, m, k = 30, 40, 3
    figures = np.array(
        [precision_recall(rng.normal(size=(n, dimension)), rng.normal(size=(m, dimension)), k) for _ in range(300)]
    )
    # None of the n samples is among the k nearest of the n + m - 1 other rows [Naeem 2020, lemma 2].
    coverage = 1 - np.prod([(m - i) / (n + m - i) for i in range(1, k + 1)])
    assert figures[:, 2].mean() == pytest.approx(1.0, abs=4 * standard_error(figures[:, 2]))
    assert figures[:, 3].mean() == pytest.approx(coverage, abs=4 * standard_error(figures[:, 3]))


# -- nearest neighbours and copying ------------------------------------------------------------------------


def test_nearest_neighbours_are_found_and_copies_have_distance_zero(monkeypatch):
    rng = np.random.default_rng(0)
    data = 1e4 + rng.normal(size=(70, 3, 2))
    samples = np.concatenate([data[[5, 2]], 1e4 + rng.normal(size=(20, 3, 2))])
    found = nearest_neighbours(samples, data)
    exact = np.sqrt(np.square(samples[:, None] - data).sum((2, 3)))
    np.testing.assert_array_equal(found.row, exact.argmin(1))
    np.testing.assert_allclose(found.distance, exact.min(1), rtol=1e-7)
    assert (found.distance[:2] == 0).all()
    monkeypatch.setattr(generation, "BLOCK_ENTRIES", 200)
    np.testing.assert_array_equal(nearest_neighbours(samples, data).row, found.row)


def test_copying_ratio_of_fresh_rows_copies_and_far_rows():
    rng = np.random.default_rng(0)
    train, held_out, fresh = (rng.normal(size=(n, 2)) for n in (200, 2000, 2000))
    reference, sample = (nearest_neighbours(rows, train).distance for rows in (held_out, fresh))
    # Standard error of a median: 1 / (2 f sqrt(n)), the density f there from the quartiles' middle half.
    errors = [
        (np.quantile(d, 0.6) - np.quantile(d, 0.4)) / 0.2 / (2 * math.sqrt(len(d))) / np.median(d)
        for d in (reference, sample)
    ]
    assert copying_ratio(fresh, train, held_out) == pytest.approx(1.0, abs=4 * math.hypot(*errors))
    copies = train[rng.integers(200, size=500)]
    assert copying_ratio(copies, train, held_out) == 0
    assert copying_ratio(copies + 1e-3 * rng.normal(size=(500, 2)), train, held_out) < 0.05
    assert copying_ratio(fresh + 10, train, held_out) > 10


# -- bits per dimension ------------------------------------------------------------------------------------


def test_bits_per_dimension_of_histograms():
    # A uniform density over [0, 1]^D says nothing: one byte a pixel.
    assert bits_per_dimension(0.0, 784) == pytest.approx(8.0)
    assert bits_per_dimension(0.0, 5, n_levels=2) == pytest.approx(1.0)
    # A density that is constant in each cell has exactly the bits of the grey values' probabilities.
    rng = np.random.default_rng(0)
    probability = rng.dirichlet(np.ones(16))
    grey = rng.integers(16, size=(50, 6))
    x = (grey + rng.uniform(size=grey.shape)) / 16
    log_prob = np.log(16 * probability[(x * 16).astype(int)]).sum(1)
    exact = -np.log2(probability[grey]).mean(1)
    np.testing.assert_allclose(bits_per_dimension(log_prob, 6, 16), exact, rtol=1e-10)
    np.testing.assert_allclose(bits_per_dimension(torch.tensor(log_prob), 6, 16), exact, rtol=1e-10)
    assert bits_per_dimension(-np.inf, 6) == np.inf


# -- what is refused, and what is left alone ---------------------------------------------------------------

GOOD = np.random.default_rng(0).normal(size=(12, 3))
SPOILED = np.where(np.arange(36).reshape(12, 3) == 4, np.nan, GOOD)


@pytest.mark.parametrize(
    "function",
    [
        maximum_mean_discrepancy,
        mmd_test,
        frechet_distance,
        precision_recall,
        nearest_neighbours,
        lambda x, y: copying_ratio(x, GOOD, y),
        lambda x, y: frechet_distance(x, y, pca_features(GOOD, 2)),
    ],
)
def test_bad_rows_are_refused_in_words(function):
    for x, y, words in [
        (SPOILED, GOOD, "contain NaN, infinity or .* in 1 of 12 rows"),
        (GOOD, torch.tensor(SPOILED), "contain NaN"),
        (GOOD, np.where(np.isnan(SPOILED), np.inf, GOOD), "contain NaN, infinity"),
        (1e200 * GOOD, GOOD, "beyond 1e100"),
        (GOOD, GOOD[:, :2], "one size, got 3 and 2"),
        (GOOD[:0], GOOD, "at least . row"),
        (GOOD[:, 0], GOOD, r"\[n, ...\], got shape \(12,\)"),
        (GOOD[:, :0], GOOD[:, :0], "got shape"),
    ]:
        with pytest.raises(ValueError, match=words):
            function(x, y)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: maximum_mean_discrepancy(GOOD, GOOD, 0.0), "bandwidth must be"),
        (lambda: maximum_mean_discrepancy(GOOD, GOOD, [1.0, math.nan]), "bandwidth must be"),
        (lambda: maximum_mean_discrepancy(GOOD, GOOD, []), "bandwidth must be"),
        (lambda: maximum_mean_discrepancy(GOOD[:1], GOOD), "at least 2 row"),
        (lambda: maximum_mean_discrepancy(np.ones((4, 2)), np.ones((3, 2))), "all rows are equal"),
        (lambda: mmd_test(GOOD, GOOD, n_permutations=0), "n_permutations"),
        (lambda: frechet_distance(GOOD[:1], GOOD), "at least 2 row"),
        (lambda: pca_features(GOOD, 4), "between 1 and 3"),
        (lambda: pca_features(GOOD, 2)(GOOD[:, :2]), "rows of 3 numbers, got 2"),
        (lambda: precision_recall(GOOD[:3], GOOD), "at least 4 row"),
        (lambda: precision_recall(GOOD, GOOD, k=0), "k must be"),
        (lambda: copying_ratio(GOOD, GOOD, GOOD), "held-out rows are among the training rows"),
        (lambda: bits_per_dimension(0.0, 0), "n_dimensions"),
        (lambda: bits_per_dimension(0.0, 3, 1), "n_levels"),
        (lambda: bits_per_dimension(np.array([0.0, np.nan]), 3), "contains 1 NaN"),
    ],
)
def test_bad_settings_are_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_inputs_are_left_as_they_are():
    rng = np.random.default_rng(0)
    x, y, log_prob = rng.normal(size=(30, 4)), rng.normal(size=(20, 4)), rng.normal(size=7)
    before = x.copy(), y.copy(), log_prob.copy()
    for array in (x, y, log_prob):
        array.setflags(write=False)
    mmd_test(x, y, 9)
    frechet_distance(x, y, pca_features(y, 2))
    precision_recall(x, y)
    copying_ratio(x, y, x)
    bits_per_dimension(log_prob, 4)
    tensors = torch.tensor(before[0]), torch.tensor(before[1])
    mmd_test(*tensors, 9)
    precision_recall(*tensors)
    for now, then in zip((x, y, log_prob, *map(torch.Tensor.numpy, tensors)), (*before, *before[:2]), strict=True):
        np.testing.assert_array_equal(now, then)
