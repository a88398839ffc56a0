"""The tests reject a wrong model and keep their level under the right one, within its standard error."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, permutations, product

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.distributions import constraints

from thalweg.energies.base import Energy
from thalweg.energies.densities.gaussian import GaussianEnergy
from thalweg.evaluation import generation, goodness_of_fit
from thalweg.evaluation.generation import mmd_test
from thalweg.evaluation.goodness_of_fit import (
    classifier_two_sample_test,
    kernel_stein_discrepancy,
    ksd_test,
    learned_stein_test,
)


def standard_error(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


class TwoModes(Energy):
    """Two Gaussians of spread 1 at -10 and 10 on the first axis, with equal weights."""

    def forward(self, x):
        centre = torch.tensor([10.0, 0.0], dtype=x.dtype)
        parts = torch.stack([(x - centre).square().sum(-1), (x + centre).square().sum(-1)])
        return -torch.logsumexp(-0.5 * parts, 0)


class NearModes(Energy):
    """Two Gaussians of spread 1 at -2 and 2 on the first axis, with equal weights."""

    def forward(self, x):
        return 0.5 * x.square().sum(-1) - torch.logaddexp(2 * x[..., 0], -2 * x[..., 0])


def right_rows(repetitions: int, n: int) -> Iterator[tuple[np.ndarray, Energy]]:
    """Rows from the model that comes with them: a Gaussian in 1 and in 5 dimensions, and two modes, in turn."""
    rng = np.random.default_rng(n)
    for repetition in range(repetitions):
        dimension = (1, 5, 2)[repetition % 3]
        x = rng.normal(size=(n, dimension))
        if dimension == 2:
            x[:, 0] += rng.choice([-2.0, 2.0], n)
            yield x, NearModes().double()
        else:
            yield x, GaussianEnergy(torch.zeros(dimension), torch.ones(dimension)).double()


def assert_level_is_kept(p_values: list[float]) -> None:
    """p-values under a right model are uniform or larger, within three standard errors."""
    for level in (0.01, 0.05, 0.2, 0.5):
        error = math.sqrt(level * (1 - level) / len(p_values))
        assert np.mean(np.array(p_values) <= level) <= level + 3 * error


# -- kernel Stein discrepancy ------------------------------------------------------------------------------


def test_stein_kernel_equals_its_definition_by_automatic_differentiation(monkeypatch):
    x = torch.randn(6, 3, dtype=torch.float64)
    score = torch.randn(6, 3, dtype=torch.float64)
    c2 = torch.tensor([float((a - b).norm()) for a, b in combinations(x, 2)]).double().median() ** 2

    def kernel(a, b):
        return (c2 + (a - b).square().sum()) ** -0.5

    total = 0.0
    for i, j in permutations(range(6), 2):
        grad_i, grad_j = torch.autograd.functional.jacobian(kernel, (x[i], x[j]))
        mixed = torch.autograd.functional.hessian(kernel, (x[i], x[j]))[0][1].trace()
        total += float(score[i] @ score[j] * kernel(x[i], x[j]) + score[i] @ grad_j + score[j] @ grad_i + mixed)
    assert kernel_stein_discrepancy(x, score) == pytest.approx(total / 30, rel=1e-6)
    # The scores of a model that moves with the samples are the same, and so is the figure.
    assert kernel_stein_discrepancy(x + 1e5, score) == pytest.approx(total / 30, rel=1e-6)
    monkeypatch.setattr(generation, "BLOCK_ENTRIES", 12)
    assert kernel_stein_discrepancy(x, score) == pytest.approx(total / 30, rel=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_ksd_of_a_shifted_gaussian(shift):
    rng = np.random.default_rng(0)
    x = shift + rng.normal(size=(200, 150, 1))
    values = np.array([kernel_stein_discrepancy(rows, -rows) for rows in x])
    # It is the mean of k(x, y) times the difference of the two scores at x and at y, here the shift; x - y is
    # a Gaussian of spread sqrt(2), whose median size is c.
    c2 = 2 * stats.norm.ppf(0.75) ** 2
    mean_kernel = integrate.quad(lambda z: stats.norm.pdf(z) * (c2 + 2 * z**2) ** -0.5, -12, 12)[0]
    assert values.mean() == pytest.approx(shift**2 * mean_kernel, abs=4 * standard_error(values))


def test_ksd_takes_an_energy_or_its_score():
    x = torch.randn(40, 3)
    energy = GaussianEnergy(torch.tensor([0.5, 0.0, 0.0]), torch.tensor([1.0, 2.0, 1.0]))
    score = -(x - energy.mean) / energy.std**2
    by_score = kernel_stein_discrepancy(x, score)
    assert kernel_stein_discrepancy(x, energy) == pytest.approx(by_score, rel=1e-5)
    assert kernel_stein_discrepancy(x.numpy(), energy) == pytest.approx(by_score, rel=1e-5)
    assert kernel_stein_discrepancy(x.double().numpy(), energy.double()) == pytest.approx(by_score, rel=1e-5)

    class Images(Energy):
        event_ndim = 3
        support = constraints.independent(constraints.real, 3)

        def forward(self, x):
            return 0.5 * x.square().sum((-3, -2, -1))

    images = torch.randn(10, 1, 4, 4)
    flat = images.flatten(1)
    assert kernel_stein_discrepancy(images, Images()) == pytest.approx(
        kernel_stein_discrepancy(flat, -flat), rel=1e-5
    )
    assert ksd_test(x, energy) == ksd_test(x, energy)
    assert ksd_test(x, energy).statistic == pytest.approx(kernel_stein_discrepancy(x, energy), rel=1e-9)


def test_ksd_test_keeps_its_level():
    rng = np.random.default_rng(0)
    repetitions = 300
    x = rng.normal(size=(repetitions, 100, 2)) * [1.0, 3.0]
    rejected = [ksd_test(rows, -rows / [1.0, 9.0], 199, i).p_value <= 0.05 for i, rows in enumerate(x)]
    assert np.mean(rejected) == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / repetitions))


@pytest.mark.parametrize(
    ("n", "repetitions"), [(50, 300), (200, 90), pytest.param(1000, 100, marks=pytest.mark.slow)]
)
def test_ksd_test_keeps_its_level_at_its_defaults(n, repetitions):
    assert_level_is_kept(
        [ksd_test(x, energy, random_state=i).p_value for i, (x, energy) in enumerate(right_rows(repetitions, n))]
    )


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: 0.5 + rng.normal(size=(100, 2)),
        lambda rng: 2 * rng.normal(size=(100, 2)),
        lambda rng: 0.5 * rng.normal(size=(100, 2)),
    ],
    ids=["shifted", "too wide", "too narrow"],
)
def test_ksd_test_rejects_a_wrong_gaussian(draw):
    rng = np.random.default_rng(0)
    rejected = []
    for seed in range(20):
        x = draw(rng)
        rejected.append(ksd_test(x, -x, 199, seed).p_value <= 0.05)
    assert np.mean(rejected) >= 0.9


def test_ksd_test_is_blind_to_the_weights_of_far_modes():
    """A known limit, and not a wish: nine of ten samples in one of two equal modes pass as the model's."""
    rng = np.random.default_rng(0)
    repetitions = 100

    def draw(weight):
        sign = np.where(rng.uniform(size=(100, 1)) < weight, 1.0, -1.0)
        return rng.normal(size=(100, 2)) + 10 * sign * [1.0, 0.0]

    ksd_rejects, mmd_rejects = [], []
    for seed in range(repetitions):
        x = draw(0.9)
        ksd_rejects.append(ksd_test(x, TwoModes(), 99, seed).p_value <= 0.05)
        if seed < 10:
            mmd_rejects.append(mmd_test(x, draw(0.5), 99, seed).p_value <= 0.05)
    # No more than by chance, while the comparison with data sees it each time.
    assert np.mean(ksd_rejects) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repetitions)
    assert all(mmd_rejects)
    # It does see a fault within the modes.
    assert ksd_test(draw(0.5) + np.array([0.7, 0.0]), TwoModes()).p_value < 0.01


# -- learned Stein test ------------------------------------------------------------------------------------


def small_critic(dimension: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(dimension, 32), nn.Tanh(), nn.Linear(32, dimension))


def learned_tests(rows: np.ndarray, variances: np.ndarray) -> list[generation.SignificanceTest]:
    """Of data sets ``[repetitions, n, D]``, whether they come from a Gaussian of mean 0 with these variances."""
    return [
        learned_stein_test(x, -x / variances, small_critic(x.shape[1], seed), 40, 1e-2, seed)
        for seed, x in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("n", "repetitions"),
    [(50, 18), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((50, 240), (200, 150), (1000, 90)))],
)
def test_learned_stein_test_keeps_its_level_at_its_defaults(n, repetitions):
    assert_level_is_kept(
        [
            learned_stein_test(x, energy, random_state=i).p_value
            for i, (x, energy) in enumerate(right_rows(repetitions, n))
        ]
    )


@pytest.mark.slow
def test_learned_stein_test_keeps_its_level_with_another_critic():
    variances = np.array([1.0, 9.0, 1.0, 0.01])
    found = learned_tests(np.random.default_rng(0).normal(size=(120, 400, 4)) * np.sqrt(variances), variances)
    assert_level_is_kept([f.p_value for f in found])


def test_stein_values_of_an_unseen_region_do_not_make_a_right_model_wrong(monkeypatch):
    """Values as of an overfitted critic: 1 of 40 rows is far below 0, and often none of those tested."""
    rng = np.random.default_rng(0)

    def skewed(critic, z, s):
        return np.where(rng.uniform(size=len(z)) < 0.025, -39.0, 1.0) + 0.1 * rng.normal(size=len(z))

    monkeypatch.setattr(goodness_of_fit, "_stein_values", skewed)
    x = rng.normal(size=(50, 1))
    p_values = np.array([learned_stein_test(x, -x, nn.Linear(1, 1), n_steps=1).p_value for _ in range(100)])
    # Three rows in ten sets of 50 enter the region nowhere; only these can reject.
    unseen = 0.975**50
    assert np.mean(p_values <= 0.05) <= unseen + 3 * math.sqrt(unseen * (1 - unseen) / len(p_values))


@pytest.mark.parametrize(
    ("n", "shift", "scale"),
    [(50, 1.0, 1.0), *(pytest.param(200, *fault, marks=pytest.mark.slow) for fault in ((0.6, 1.0), (0.0, 1.5)))],
)
def test_learned_stein_test_has_power_at_its_defaults(n, shift, scale):
    rng = np.random.default_rng(n)
    rejected = []
    for seed in range(12):
        x = scale * rng.normal(size=(n, 2)) + [shift, 0.0]
        rejected.append(learned_stein_test(x, -x, random_state=seed).p_value <= 0.05)
    # Twelve repetitions of a test whose power is 0.8 reject this often but for two standard errors.
    assert np.mean(rejected) >= 0.8 - 2 * math.sqrt(0.8 * 0.2 / len(rejected))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x + np.array([1.0, 0.0, 0.0, 0.0]),
        lambda x: x * [1.5, 1.0, 1.0, 1.0],
        lambda x: x @ np.array([[1, 0.7, 0, 0], [0, 0.7, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    ],
    ids=["shifted", "too wide", "correlated"],
)
def test_learned_stein_test_rejects_a_wrong_gaussian(spoil):
    x = spoil(np.random.default_rng(0).normal(size=(20, 400, 4)))
    assert np.mean([f.p_value <= 0.05 for f in learned_tests(x, np.ones(4))]) >= 0.9


class Restricted(Energy):
    """A restricted Boltzmann machine of Gaussian units x and hidden units h of -1 and 1, h summed out.

    p(x, h) is exp(x'Bh / 2 + b'x + c'h - |x|^2 / 2); given h, x is Gaussian, so that a few h can be drawn
    exactly.
    """

    def __init__(self, seed: int):
        super().__init__()
        rng = np.random.default_rng(seed)
        self.coupling = torch.as_tensor(rng.choice([-1.0, 1.0], (50, 8)))
        self.b, self.c = (torch.as_tensor(rng.normal(size=n)) for n in (50, 8))

    def forward(self, x):
        to_hidden = 0.5 * x @ self.coupling + self.c
        return 0.5 * x.square().sum(-1) - x @ self.b - torch.logaddexp(to_hidden, -to_hidden).sum(-1)

    def draw(self, n: int, noise: float, rng: np.random.Generator) -> np.ndarray:
        """n rows of the machine whose couplings have this noise on them."""
        coupling = self.coupling.numpy() + noise * rng.normal(size=self.coupling.shape)
        hidden = np.array(list(product([-1.0, 1.0], repeat=8)))
        centres = self.b.numpy() + 0.5 * hidden @ coupling.T
        log_p = hidden @ self.c.numpy() + 0.5 * np.square(centres).sum(1)
        p = np.exp(log_p - log_p.max())
        return centres[rng.choice(len(p), n, p=p / p.sum())] + rng.normal(size=(n, 50))


@pytest.mark.slow
def test_learned_stein_test_of_a_boltzmann_machine():
    """With its own critic, at the noise and the number of rows of its source."""
    p_values = {noise: [] for noise in (0.0, 0.1)}
    for seed in range(2):
        machine = Restricted(seed)
        for noise, found in p_values.items():
            x = machine.draw(1000, noise, np.random.default_rng([seed, 1]))
            found.append(learned_stein_test(x, machine, n_steps=200, random_state=seed).p_value)
    # Two right machines are both called wrong at this level once in a million.
    assert max(p_values[0.0]) > 0.001
    assert max(p_values[0.1]) <= 0.05


def test_learned_stein_test_is_reproducible_and_leaves_the_global_generator_alone():
    x = torch.randn(60, 1, 2, 2)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = learned_stein_test(x, -x, n_steps=3)
    assert torch.equal(torch.rand(1), expected)
    assert first == learned_stein_test(x, -x, n_steps=3)
    assert first != learned_stein_test(x, -x, n_steps=3, random_state=1)
    # The same in other units.
    other = learned_stein_test(1e4 + 100 * x.double(), -x.double() / 100, n_steps=3)
    assert other.statistic == pytest.approx(first.statistic, abs=1e-2)


# -- classifier two-sample test ----------------------------------------------------------------------------


class NearestNeighbour:
    """Its hits in ordinary cross-validation are correlated most: of rows that are each other's nearest it is right
    about both or about neither."""

    def __init__(self, seed):
        pass

    def fit(self, x, y):
        self.x, self.y = x, y

    def predict_proba(self, x):
        label = self.y[np.square(x[:, None] - self.x).sum(2).argmin(1)]
        return np.stack([1 - label, label], 1)


def test_classifier_test_keeps_its_level(monkeypatch):
    monkeypatch.setattr(goodness_of_fit, "_classifier", NearestNeighbour)
    rng = np.random.default_rng(0)
    repetitions = 200
    figures = np.array(
        [
            classifier_two_sample_test(rng.normal(size=(44, 1)), rng.normal(size=(37, 1)), seed)
            for seed in range(repetitions)
        ]
    )
    accuracy, p_value, auroc = figures.T
    # The level is never exceeded. It is missed by up to one step of the hits, which go in twos: near the
    # middle, of 58 rows predicted, that is 0.21.
    for level, step in ((0.05, 0.05), (0.5, 0.21)):
        error = math.sqrt(level * (1 - level) / repetitions)
        assert level - step - 3 * error < np.mean(p_value <= level) <= level + 3 * error
    assert accuracy.mean() == pytest.approx(0.5, abs=4 * standard_error(accuracy))
    assert auroc.mean() == pytest.approx(0.5, abs=4 * standard_error(auroc))
    # The spread is that of independent hits; with ordinary folds this ratio is 1.6.
    ratio = accuracy.var(ddof=1) / (0.25 / 58)
    assert ratio == pytest.approx(1.0, abs=4 * math.sqrt(2 / (repetitions - 1)))


@pytest.mark.slow
@pytest.mark.parametrize(("n", "repetitions"), [(50, 60), (200, 45), (1000, 30)])
def test_classifier_test_keeps_its_level_at_its_defaults(n, repetitions):
    data = np.random.default_rng(0)
    p_values = []
    for seed, (x, _) in enumerate(right_rows(repetitions, n)):
        y = data.normal(size=x.shape)
        if x.shape[1] == 2:
            y[:, 0] += data.choice([-2.0, 2.0], n)
        p_values.append(classifier_two_sample_test(x, y, seed).p_value)
    assert_level_is_kept(p_values)


@pytest.mark.parametrize("seed", range(4))
def test_p_value_of_the_classifier_test_is_the_share_of_labellings(monkeypatch, seed):
    called = []

    class Guess(NearestNeighbour):
        def predict_proba(self, x):
            called.append(np.random.default_rng([seed, len(called)]).integers(0, 2, len(x)))
            return np.stack([1 - called[-1], called[-1]], 1)

    monkeypatch.setattr(goodness_of_fit, "_classifier", Guess)
    monkeypatch.setattr(goodness_of_fit, "N_BLOCKS", 3)
    figures = classifier_two_sample_test(GOOD[:9], GOOD[3:], seed)
    # In each of two blocks any 3 of the 6 rows are the samples, each choice as probable as the other.
    labellings = [np.isin(np.arange(6), choice) for choice in combinations(range(6), 3)]
    hits = np.array([[np.sum(block == labelling) for labelling in labellings] for block in called])
    observed = hits[:, 0].sum()  # the samples came first
    every = np.array([a + b for a, b in product(*hits)])
    assert len(called) == 2
    assert figures.accuracy == pytest.approx(observed / 12)
    by_block = [roc_auc_score([1, 1, 1, 0, 0, 0], block) for block in called]
    assert figures.auroc == pytest.approx(np.mean(by_block))
    assert figures.p_value == pytest.approx(np.mean(every >= observed), rel=1e-10)


def test_classifier_test_with_its_own_classifier():
    rng = np.random.default_rng(0)
    same = classifier_two_sample_test(*rng.normal(size=(2, 150, 5)))
    assert same.accuracy == pytest.approx(0.5, abs=3 * 0.5 / math.sqrt(240))
    assert same.p_value > 0.01
    # Correlated, with the marginals of the data: no single coordinate tells.
    samples = rng.multivariate_normal([0, 0], [[1, 0.9], [0.9, 1]], 200)
    wrong = classifier_two_sample_test(samples, rng.normal(size=(250, 2)))
    assert wrong.p_value < 0.01
    assert 0.6 < wrong.accuracy < wrong.auroc < 1
    images = torch.randn(40, 1, 4, 4)
    far = classifier_two_sample_test(images + 9, images)
    assert far[0] == far[2] == 1
    # Only one labelling of each block of 8 and 8 rows tells them all right.
    assert far.p_value == pytest.approx(math.comb(16, 8) ** -4.0)


# -- what is refused, and what is left alone ---------------------------------------------------------------

GOOD = np.random.default_rng(0).normal(size=(12, 3))
SPOILED = np.where(np.arange(36).reshape(12, 3) == 4, np.nan, GOOD)


class Box(Energy):
    support = constraints.independent(constraints.interval(0, 1), 1)

    def forward(self, x):
        return x.sum(-1)


class Units(Box):
    support = constraints.boolean


class Broken(Energy):
    def forward(self, x):
        return (x - 100).sqrt().sum(-1)


@pytest.mark.parametrize("function", [kernel_stein_discrepancy, ksd_test])
@pytest.mark.parametrize(
    ("samples", "score", "words"),
    [
        (SPOILED, -GOOD, "samples contain NaN"),
        (GOOD, -SPOILED, "scores contain NaN"),
        (GOOD, Broken(), "scores contain NaN"),
        (GOOD, -GOOD[:11], r"shape of the samples, \(12, 3\), got \(11, 3\)"),
        (GOOD, -GOOD[:, :2], "shape of the samples"),
        (GOOD[:1], -GOOD[:1], "at least 2 row"),
        (GOOD[:, 0], -GOOD[:, 0], "got shape"),
        (np.ones((5, 2)), np.ones((5, 2)), "all rows are equal"),
        (GOOD, Box(), "Box has the support .*mmd_test"),
        (GOOD, Units(), "Units has the support"),
    ],
)
def test_bad_samples_and_scores_are_refused_in_words(function, samples, score, words):
    with pytest.raises(ValueError, match=words):
        function(samples, score)


def test_bad_settings_and_rows_are_refused_in_words():
    with pytest.raises(ValueError, match="n_bootstrap"):
        ksd_test(GOOD, -GOOD, n_bootstrap=0)
    with pytest.raises(ValueError, match="at least 50 row"):
        learned_stein_test(GOOD, -GOOD)
    with pytest.raises(ValueError, match="n_steps"):
        learned_stein_test(GOOD, -GOOD, n_steps=0)
    with pytest.raises(ValueError, match="all rows are equal"):
        learned_stein_test(np.ones((50, 2)), np.ones((50, 2)))
    with pytest.raises(ValueError, match=r"contain NaN, .* in 1 of 12"):
        classifier_two_sample_test(GOOD, SPOILED)
    with pytest.raises(ValueError, match="one size, got 2 and 3"):
        classifier_two_sample_test(GOOD[:, :2], GOOD)
    with pytest.raises(ValueError, match="at least 10 row"):
        classifier_two_sample_test(GOOD[:9], GOOD)


def test_inputs_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(goodness_of_fit, "_classifier", NearestNeighbour)
    x, score = torch.tensor(GOOD), torch.tensor(-GOOD)
    energy = GaussianEnergy(torch.zeros(3), torch.ones(3))
    ksd_test(x, score, 9)
    ksd_test(x, energy, 9)
    frozen = GOOD.copy()
    frozen.setflags(write=False)
    assert classifier_two_sample_test(frozen, frozen, 1) == classifier_two_sample_test(frozen, frozen, 1)
    ksd_test(frozen, -frozen, 9)
    np.testing.assert_array_equal(x.numpy(), GOOD)
    np.testing.assert_array_equal(score.numpy(), -GOOD)
    assert not x.requires_grad
