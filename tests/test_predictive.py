"""Predictive distributions on nasty targets: the density, the distribution function, quantiles and draws agree."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.stats import norm
from torch import nn

from thalweg import EnergyDensity, EnergyRegressor
from thalweg.data.target import TargetScale, find_atoms, find_resolution
from thalweg.energies import (
    ConditionalEnergy,
    TiltedMixtureEnsemble,
)
from thalweg.energies.base import align
from thalweg.estimators._conditional import BroadProposal
from thalweg.estimators.distribution import MultivariateDistribution, PredictiveDistribution
from thalweg.evaluation.baselines import GaussianPredictive, PredictiveWithAtoms, WithAtoms
from thalweg.evaluation.density_baselines import BesideAtoms, GaussianBaseline
from thalweg.evaluation.regression import pit_values, score
from thalweg.objectives.likelihood import dequantise, rounded_log_prob
from thalweg.runs.density import held_out_log_prob

N = 350


def inputs(seed: int = 0) -> tuple[np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (N, 2)), rng


def with_far(value: float, n: int = 5):
    def make(x, rng):
        y = x[:, 0] + 0.3 * rng.normal(size=N)
        y[:n] = value * (1 + 0.1 * rng.uniform(size=n))
        return y

    return make


def mixed(share: float, atom: float, make):
    """A share of the rows at one value, and the others as they are made."""
    return lambda x, rng: np.where(rng.uniform(size=N) < share, atom, make(x, rng))


def linear(x, rng):
    return x[:, 0] + 0.3 * rng.normal(size=N)


def skewed(x, rng):
    return rng.lognormal(1 + x[:, 0], 0.5)


TARGETS = {
    "far by 1e3": with_far(1e3),
    "far by 1e6": with_far(1e6),
    "far by 1e9": with_far(1e9),
    "far by -1e9, one row": with_far(-1e9, 1),
    "Cauchy": lambda x, rng: x[:, 0] + rng.standard_cauchy(N),
    "Student t, 2 degrees of freedom": lambda x, rng: x[:, 0] + rng.standard_t(2, N),
    "Pareto": lambda x, rng: rng.pareto(1.1, N),
    "log-normal 2": lambda x, rng: rng.lognormal(x[:, 0], 2.0),
    "zero-inflated": mixed(0.6, 0.0, skewed),
    "censored from above": lambda x, rng: np.minimum(linear(x, rng), 0.5),
    "censored from below": lambda x, rng: np.maximum(linear(x, rng), 0.0),
    "censored from both sides": lambda x, rng: np.clip(linear(x, rng), -0.6, 0.6),
    "an atom within": mixed(0.3, 0.2, linear),
    "a far atom": mixed(0.05, 0.0, lambda x, rng: 1013 + 0.1 * linear(x, rng)),
    "a far atom at 1e6": mixed(0.06, 1e6, linear),
    "tiny scale": lambda x, rng: 1e-9 * linear(x, rng),
    "tiny scale far from zero": lambda x, rng: 1e6 + 1e-3 * linear(x, rng),
    "huge scale": lambda x, rng: 1e12 * linear(x, rng),
    "nearly constant": lambda x, rng: np.where(np.arange(N) < 4, rng.normal(size=N), 1e-4 * rng.normal(size=N)),
    "two narrow modes": lambda x, rng: rng.choice([-1.0, 1.0], N) + 1e-3 * rng.normal(size=N),
    "limit and a far row": lambda x, rng: np.r_[np.maximum(linear(x, rng), 0.0)[:-1], 1e5],
}
_FITTED: dict[str, tuple] = {}
# Others of their kind are always tested.
SLOW = (
    "far by 1e3", "far by 1e6", "far by -1e9, one row", "Student t, 2 degrees of freedom", "Pareto",
    "log-normal 2", "censored from below", "an atom within", "a far atom", "tiny scale",
    "tiny scale far from zero", "huge scale", "nearly constant", "two narrow modes", "limit and a far row",
)  # fmt: skip


@pytest.fixture(params=[pytest.param(t, marks=pytest.mark.slow) if t in SLOW else t for t in TARGETS])
def fitted(request):
    """The target's name, inputs, values, and a model's distributions of them."""
    if request.param not in _FITTED:
        x, rng = inputs()
        y = TARGETS[request.param](x, rng)
        model = EnergyRegressor(n_members=2, hidden=(24,), max_epochs=40, random_state=0).fit(x, y)
        _FITTED[request.param] = request.param, x, y, model.predict_distribution(x)
    return _FITTED[request.param]


def test_density_and_masses_add_up_to_the_distribution_function(fitted):
    """The integral of the density between two quantiles, plus the atoms there, is the difference of the levels."""
    _, _, _, whole = fitted
    distribution = whole[:6]
    levels = np.array([0.001, 0.02, 0.2, 0.5, 0.8, 0.98, 0.999])
    edges = distribution.quantile(levels)
    target = distribution._target
    nodes, weights = np.polynomial.legendre.leggauss(8)
    # Fine panels in the coordinate in which the model is smooth.
    for a in range(len(levels) - 1):
        # An atom may lie far from all else: the density is zero in between.
        support = distribution._parts(slice(0, 6))[0]
        lower, upper = support.lower.numpy(), support.upper.numpy()
        low, high = (np.clip(target.forth(e), lower, upper) for e in edges[:, a : a + 2].T)
        cuts = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, 1601)
        half = np.diff(cuts, axis=1) / 2
        z = (cuts[:, :-1] + half)[..., None] + half[..., None] * nodes
        y = target.back(z).reshape(len(z), -1)
        density = np.exp(distribution.log_prob(y) - target.log_slope(y)).reshape(z.shape)
        mass = (density * weights * half[..., None]).sum((1, 2))
        inside = (distribution.atoms > edges[:, a, None]) & (distribution.atoms <= edges[:, a + 1, None])
        mass += (inside * distribution.atom_masses()).sum(1)
        wanted = distribution.cdf(edges[:, a + 1]) - distribution.cdf(edges[:, a])
        np.testing.assert_allclose(mass, wanted, atol=2e-4)


def test_quantiles_invert_the_distribution_function(fitted):
    _, _, _, distribution = fitted
    levels = np.array([1e-4, 0.03, 0.4, 0.5, 0.77, 0.999])
    y = distribution.quantile(levels)
    assert (np.diff(y, axis=1) >= 0).all()
    before, after = distribution.cdf_before(y), distribution.cdf(y)
    assert (before <= levels + 1e-6).all()
    assert (after >= levels - 1e-6).all()
    assert distribution.relative_error().max() < 1e-3


def test_draws_follow_the_distribution_function(fitted):
    """PIT values of draws, randomised over the jumps, are uniform; as many land on an atom as its mass says."""
    name, _, _, distribution = fitted
    draws = distribution.sample(20, 0)
    pit = np.concatenate([pit_values(d, distribution, seed=k) for k, d in enumerate(draws.T)])
    assert stats.kstest(pit, "uniform").pvalue > 1e-3
    for k, atom in enumerate(distribution.atoms):
        p = distribution.atom_masses()[:, k]
        error = np.sqrt((p * (1 - p)).sum() * 20)
        assert abs((draws == atom).sum() - 20 * p.sum()) < 4 * error + 1e-9
    if name in ("zero-inflated", "censored from below", "limit and a far row"):
        assert draws.min() >= 0
        assert distribution.cdf_before(np.zeros(N)).max() == 0


def test_cells_have_the_mass_that_the_distribution_function_says(fitted):
    _, _, y, distribution = fitted
    width = float(np.ptp(np.quantile(y, [0.2, 0.8]))) / 7 or 0.1
    centres = y[:, None] + width * np.array([-1.0, 0.0, 1.0])
    mass = np.exp(distribution.log_mass(centres, width))
    wanted = distribution.cdf_before(centres + width / 2) - distribution.cdf(centres - width / 2)
    np.testing.assert_allclose(mass, wanted, atol=2e-4)
    # Light cells far out lose no digits: halves add up to the whole.
    far = np.quantile(y, 0.9) + 3 * width * np.ones((N, 1))
    halves = [distribution.log_mass(far + s * width / 4, width / 2) for s in (-1, 1)]
    np.testing.assert_allclose(np.logaddexp(*halves), distribution.log_mass(far, width), rtol=1e-6, atol=1e-6)


def test_the_share_at_an_atom_is_the_targets(fitted):
    """The mean of the mass over the training rows is the share, up to what stopping early leaves."""
    _, _, y, distribution = fitted
    for k, atom in enumerate(distribution.atoms):
        share = np.mean(y == atom)
        found = distribution.atom_masses()[:, k].mean()
        assert abs(found - share) < 3 * np.sqrt(share * (1 - share) / N) + 0.03


@pytest.mark.slow
def test_the_mean_of_draws_is_the_mean():
    for name in ("zero-inflated", "censored from both sides", "a far atom", "huge scale"):
        x, rng = inputs()
        y = TARGETS[name](x, rng)
        model = EnergyRegressor(n_members=2, hidden=(24,), max_epochs=40, random_state=0).fit(x, y)
        distribution = model.predict_distribution(x[:40])
        draws = distribution.sample(4000, 0)
        error = distribution.std() / np.sqrt(4000)
        assert (np.abs(draws.mean(1) - distribution.mean()) < 4.5 * error).all()


# -- what no score gives for a spike ----------------------------------------------------------------------


def test_no_spike_inflates_a_score():
    """A model with a spike of width 1e-9 on what recurs is no better than one that has the probability right."""
    rng = np.random.default_rng(3)
    y = np.where(rng.uniform(size=4000) < 0.3, 0.0, rng.normal(size=4000))
    honest = PredictiveWithAtoms(GaussianPredictive(np.zeros(4000), 1.0), np.zeros(1), np.full((4000, 1), 0.3))
    truth = -(0.3 * np.log(0.3) + 0.7 * np.log(0.7)) + 0.7 * 0.5 * np.log(2 * np.pi * np.e)
    found = score(y, honest)
    assert found.nll == pytest.approx(truth, abs=4 * found.nll_error)
    assert stats.kstest(found.pit, "uniform").pvalue > 1e-3
    # A wrong share is worse, whichever way.
    for share in (0.1, 0.6):
        other = PredictiveWithAtoms(honest.continuous, np.zeros(1), np.full((4000, 1), share))
        assert score(y, other).nll > found.nll + 0.02
    # A rounded target: spikes on the grid, within the cells, change nothing of the cells' probabilities.
    grid = np.round(rng.normal(size=4000), 1)
    plain = score(grid, GaussianPredictive(np.zeros(4000), 1.0), 0.1)
    cells = np.arange(-60, 61) / 10
    masses = np.diff(stats.norm.cdf(np.r_[cells - 0.05, cells[-1] + 0.05]))
    spiked = PredictiveWithAtoms(
        GaussianPredictive(np.zeros(4000), 1.0), cells, np.tile(0.999 * masses, (4000, 1))
    )
    assert score(grid, spiked, 0.1).nll == pytest.approx(plain.nll, abs=1e-3)


def test_a_spike_in_a_light_cell_is_no_gain():
    """All of a model's density within a cell gathered on the grid's value: the cell's probability stays."""
    x, rng = inputs()
    y = np.round(linear(x, rng), 1)
    model = EnergyRegressor(n_members=2, hidden=(24,), max_epochs=40, random_state=0).fit(x, y)
    assert model.resolution_ == pytest.approx(0.1)
    distribution = model.predict_distribution(x)
    far = np.full((N, 1), 4.0)
    nodes = np.linspace(3.95, 4.05, 2001)
    density = np.exp(distribution.log_prob(np.broadcast_to(nodes, (N, 2001))))
    wanted = np.log(np.trapezoid(density, nodes, axis=1))
    np.testing.assert_allclose(distribution.log_mass(far)[:, 0], wanted, rtol=1e-4)


# -- finding what a target is made of ---------------------------------------------------------------------


def test_plain_peaks_of_a_rounded_target_are_no_atoms():
    rng = np.random.default_rng(0)
    ages = np.r_[np.round(rng.normal(10, 2.5, 4000)) + 0.5, np.arange(3, 40) + 0.5]
    assert find_atoms(ages) == []
    assert find_atoms(np.r_[ages, np.full(6000, 20.5)]) == [20.5]


@pytest.mark.parametrize(
    ("values", "spacing"),
    [
        (np.repeat([0, 0.4, 1.0], 10), 0.2),
        (10_000 * np.random.default_rng(0).integers(2, 62, 600), 10_000),
        (np.float32(np.random.default_rng(0).normal(size=900).round(2)).astype(float), 0.01),
        (1e9 + np.random.default_rng(0).integers(0, 90, 600), 1.0),
        (np.random.default_rng(0).normal(size=600), 0.0),
        # The spacing is the greatest common divisor of the gaps, which need not be one of them.
        ([0.0, 0.4, 1.0] * 50, 0.2),
        ([6.0, 12.0, 21.0] * 50, 3.0),
        ([0.0, 10.0, 25.0] * 50, 5.0),
    ],
)
def test_the_grid_of_a_rounded_target(values, spacing):
    assert find_resolution(np.asarray(values, float)) == pytest.approx(spacing)


def test_a_scale_and_its_way_back():
    rng = np.random.default_rng(0)
    y = rng.normal(2, 3, 500)
    plain, curved = TargetScale.of(y), TargetScale.of(np.r_[y, 1e7])
    assert not plain.curved
    assert curved.curved
    assert TargetScale.of(np.r_[y, np.full(40, 1e7)], [1e7]).curved is False
    for scale in (plain, curved):
        values = np.r_[y, 1e7, -1e3]
        np.testing.assert_allclose(scale.back(scale.forth(values)), values, rtol=1e-12, atol=1e-9)
        step = 1e-6 * (1 + np.abs(values))
        slope = (scale.forth(values + step) - scale.forth(values - step)) / (2 * step)
        np.testing.assert_allclose(np.exp(scale.log_slope(values)), slope, rtol=1e-5)


class Valley(ConditionalEnergy):
    """E = sum_k ((y_k - x_k) / std_k)^2 / 2 + 3, not normalised: a Gaussian round x."""

    def __init__(self, *std: float):
        super().__init__()
        self.std = nn.Parameter(torch.tensor(std))

    def head(self, features, y):
        z = (y - align(features, y)) / self.std
        return 0.5 * z.square().sum(-1) + 3


def test_a_gaussian_far_from_zero_has_its_moments_quantiles_and_density():
    """Standardised N(x, 0.5^2), in units of mean 100 and scale 4: N(100 + 4 x, 2^2)."""
    x = torch.tensor([[-1.0], [0.0], [1.5]])
    found = PredictiveDistribution(Valley(0.5), x, TargetScale(100.0, 4.0), (-8.0, 8.0))
    truth = norm(100 + 4 * x[:, 0].double().numpy(), 2.0)
    # Energies come in single precision, and log Z within 1e-4.
    np.testing.assert_allclose(found.mean(), truth.mean(), atol=1e-3)
    np.testing.assert_allclose(found.std(), truth.std(), rtol=1e-3)
    np.testing.assert_allclose(found.median(), truth.mean(), atol=1e-3)
    np.testing.assert_allclose(found.mode(), truth.mean(), atol=1e-2)
    np.testing.assert_allclose(found.interval(0.8), np.stack(truth.interval(0.8), 1), atol=2e-3)
    y = np.array([99.0, 103.0, 101.0])
    np.testing.assert_allclose(found.log_prob(y), truth.logpdf(y), atol=1e-3)
    np.testing.assert_allclose(found.cdf(y), truth.cdf(y), atol=1e-3)
    cell = np.log(truth.cdf(y + 0.5) - truth.cdf(y - 0.5))
    np.testing.assert_allclose(found.log_mass(y, 1.0), cell, atol=1e-3)
    draws = found.sample(4000, 0)
    assert (np.abs(draws.mean(1) - truth.mean()) < 5 * 2 / np.sqrt(4000)).all()
    assert (np.abs(draws.std(1) / 2 - 1) < 5 / np.sqrt(2 * 4000)).all()


def test_several_targets_have_the_marginals_and_the_density_of_their_gaussian():
    """Standardised N(x, diag(0.5, 0.8)^2), by importance samples from two Gaussians of 1 and 2 round zero.

    Weights of at most some 9 (the largest ratio of the densities) leave a ninth of the samples or more.
    """
    n, std = 20_000, np.array([0.5, 0.8]) * np.array([4.0, 0.1])
    x = torch.tensor([[-0.3, 0.2], [0.4, 0.0]])
    found = MultivariateDistribution(
        Valley(0.5, 0.8), BroadProposal(2), x, np.array([100.0, -3.0]), np.array([4.0, 0.1]), n_importance=n
    )
    mean = np.array([100.0, -3.0]) + x.double().numpy() * np.array([4.0, 0.1])
    slack = 5 * std / np.sqrt(n / 9)
    assert (np.abs(found.mean() - mean) < slack).all()
    assert (np.abs(found.median() - mean) < slack * np.sqrt(np.pi / 2)).all()
    z = norm.ppf(0.9)
    # The standard error of a quantile: sqrt(p (1 - p)) over the density there.
    tails = slack * np.sqrt(0.09) / norm.pdf(z)
    interval = found.interval(0.8)
    assert (np.abs(interval[:, 0] - (mean - z * std)) < tails).all()
    assert (np.abs(interval[:, 1] - (mean + z * std)) < tails).all()
    np.testing.assert_array_equal(interval, found.quantile([0.1, 0.9]))
    y = mean + std * np.array([0.5, -1.0])
    # log Z is off by the relative error of a mean of weights: sqrt(9 / n) at most.
    truth = norm.logpdf(y, mean, std).sum(1)
    np.testing.assert_allclose(found.log_prob(y), truth, atol=5 * np.sqrt(9 / n))
    draws = found.sample(2000, 0)
    assert (np.abs(draws.std(1) / std - 1) < 0.15).all()


def test_several_targets_with_far_values_are_refused_in_words():
    x, rng = inputs()
    y = np.c_[linear(x, rng), with_far(1e9)(x, rng)]
    with pytest.raises(ValueError, match=r"target 1 has values .* times its spread away from its median"):
        EnergyRegressor(max_epochs=1).fit(x, y)


def test_a_baseline_takes_part_at_atoms():
    import pandas as pd

    from thalweg.evaluation.baselines import LeastSquaresGaussian

    x, rng = inputs()
    y = np.where(rng.uniform(size=N) < 0.2 + 0.4 * (x[:, 1] > 0), 0.0, 1 + linear(x, rng))
    X = pd.DataFrame(x)
    found = WithAtoms(LeastSquaresGaussian(), [0.0]).fit(X, y).predict_distribution(X)
    assert np.corrcoef(found.masses[:, 0], y == 0)[0, 1] > 0.3
    assert np.isfinite(score(y, found).nll)
    levels = np.array([0.05, 0.5, 0.95])
    q = found.quantile(levels)
    for k, level in enumerate(levels):
        assert (found.cdf(q[:, k]) >= level - 2e-3).all()
        assert (found.cdf_before(q[:, k]) <= level + 2e-3).all()


# -- densities of tables ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_zero_inflated_column_of_a_density_stays_what_it_is():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 400)
    y = np.where(rng.uniform(size=400) < 0.6, 0.0, rng.lognormal(1 + x, 0.5))
    model = EnergyDensity(n_members=2, hidden=(24,), max_epochs=40, random_state=0).fit(np.c_[x, y])
    assert model.atoms_ == [[], [0.0]]
    draws = model.sample(2000, random_state=0)[:, 1]
    assert abs(np.mean(draws == 0) - np.mean(y == 0)) < 4 * np.sqrt(0.24 / 2000) + 4 * np.sqrt(0.24 / 400)
    assert draws.min() >= 0
    filled = model.impute(np.c_[x, np.full(400, np.nan)], n_draws=5, random_state=0)[..., 1]
    assert abs(np.mean(filled == 0) - np.mean(y == 0)) < 4 * np.sqrt(0.24 / 400) + 0.02
    assert filled.min() >= 0
    # The score is a log mass at zero and a log density elsewhere: their total over y is 1, for every x.
    grid = np.linspace(1e-9, 60, 40_001)
    for place in (-0.5, 0.5):
        rows = np.c_[np.full(len(grid), place), grid]
        joint = np.exp(model.score_samples(rows))
        at_zero = np.exp(model.score_samples(np.array([[place, 0.0]])))[0]
        marginal = np.exp(model.score_samples([[place, np.nan]]))[0]
        assert np.trapezoid(joint, grid) + at_zero == pytest.approx(marginal, rel=5e-3)


@pytest.mark.slow
def test_a_rounded_column_with_an_atom_is_a_density_over_its_cells():
    """A column rounded to 0.01 and capped at 0.4, where a third of the rows stand: the atom's mass is all over its
    cell, for the total to be 1 and for fresh rows, spread over their cells, to score as those held out."""

    def rows(n, seed):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=n)
        return np.c_[x, np.minimum(np.round(x + 0.5 * rng.normal(size=n), 2), 0.4)]

    model = EnergyDensity(n_members=2, hidden=(24,), max_epochs=40, random_state=0).fit(rows(500, 0))
    assert model.atoms_ == [[], [0.4]]
    assert model.resolution_[1] == pytest.approx(0.01)
    grid = np.linspace(-6, 3, 180_001)
    for place in (-0.5, 0.5):
        points = np.c_[np.full(len(grid), place), grid]
        joint = np.exp(model.score_samples(points))
        alone = np.exp(model.score_samples([[place, np.nan]]))[0]
        assert np.trapezoid(joint, grid) == pytest.approx(alone, rel=0.01)
    log_prob = held_out_log_prob(model, rows(2000, 1), model.resolution_, 0)
    own = model.held_out_log_prob_
    assert -own.mean() == pytest.approx(-log_prob.mean(), abs=4 * own.std() / np.sqrt(500))


def test_a_baseline_of_rows_is_a_distribution_beside_atoms():
    """Gaussian rows whose first column is censored at 0, whose second is zero-inflated: the score is that of the
    truth, as near as 4,000 rows say, and needles at the atoms would not have done better."""
    rng = np.random.default_rng(0)

    def rows(n):
        a, b = rng.normal(0.5, 1, n), rng.normal(3, 1, n)
        return np.c_[np.maximum(a, 0), np.where(rng.uniform(size=n) < 0.3, 0.0, b), a + rng.normal(size=n)]

    train, test = rows(4000), rows(4000)
    fitted = BesideAtoms(GaussianBaseline, [[0.0], [0.0], []]).fit(train)
    log_prob = fitted.log_prob(test)
    # By numeric integration over each pattern the total probability is 1.
    total = 0.0
    x = np.linspace(-12, 14, 521)
    step = x[1] - x[0]
    for pattern in ((0, 0), (0, 1), (1, 0), (1, 1)):
        free = [k for k, p in enumerate(pattern) if p] + [2]
        grids = np.meshgrid(*[x[:: 1 if len(free) < 3 else 6]] * len(free), indexing="ij")
        points = np.zeros((grids[0].size, 3))
        # Off the atom itself by a rounding error: the density is continuous there.
        points[:, free] = np.stack([g.ravel() for g in grids], 1) + 1e-7
        width = step * (1 if len(free) < 3 else 6)
        total += np.exp(fitted.log_prob(points)).sum() * width ** len(free)
    assert total == pytest.approx(1.0, abs=0.01)
    share = np.mean(test[:, 0] == 0)
    entropy = -(0.3 * np.log(0.3) + 0.7 * np.log(0.7)) - (share * np.log(share) + (1 - share) * np.log(1 - share))
    alone = GaussianBaseline().fit(train).log_prob(test)
    assert np.isfinite(log_prob).all()
    assert -log_prob.mean() > entropy
    assert log_prob.mean() > alone.mean()


@pytest.mark.parametrize("curved", [False, True])
def test_modes_are_the_tops_of_the_density_in_the_targets_own_units(curved):
    """Those of asinh y lie elsewhere: each unit of it spans more of y far out."""
    torch.manual_seed(1)
    ensemble = TiltedMixtureEnsemble(2, 2, (8,), n_components=3, n_tilts=3).eval()
    with torch.no_grad():
        ensemble.out.bias[:, :, 3:6] = torch.tensor([-2.5, 1.2, 2.6])
    distribution = PredictiveDistribution(ensemble, torch.randn(4, 2), TargetScale(3.0, 2.0, curved), (-5.0, 5.0))
    z = np.linspace(-6, 6, 6001)
    y = distribution._target.back(z)
    log_prob = distribution.log_prob(np.broadcast_to(y, (4, len(y))))
    by_z = log_prob - distribution._target.log_slope(y)
    tops = np.argmax(log_prob, 1)
    if curved:
        assert (np.abs(np.argmax(by_z, 1) - tops) > 100).all()
    step = np.gradient(y)[tops]
    assert (np.abs(distribution.mode() - y[tops]) < 0.02 * distribution.std() + step).all()
    for line, modes in zip(log_prob, distribution.modes(), strict=True):
        heights = np.interp(modes, y, line)
        assert (np.diff(heights) < 1e-3).all()
        inner = 1 + np.flatnonzero((line[1:-1] > line[:-2]) & (line[1:-1] > line[2:]))
        assert len(modes) == len(inner)


def test_an_atom_is_a_mode_in_the_place_that_its_mass_gives_it():
    """Beside tops of the density, by the probability of a cell as wide as the grid."""
    torch.manual_seed(0)
    ensemble = TiltedMixtureEnsemble(1, 2, (6,), n_components=1, n_tilts=0, atoms=[2.0]).eval()
    x, scale, bounds = torch.zeros(1, 1), TargetScale(0.0, 1.0), (-8.0, 8.0)
    with torch.no_grad():
        ensemble.out.bias[:, :, 1] = np.log(0.3 / 0.7)
    for width, expected in ((0.01, [2.0, 0.0]), (8.0, [0.0, 2.0])):
        found = PredictiveDistribution(ensemble, x, scale, bounds, resolution=width, atoms=[2.0])
        np.testing.assert_allclose(found.atom_masses(), [[0.3]], rtol=1e-6)
        # A Gaussian of 0.7 beside it has the smaller part of a narrow cell, and nearly all of a wide one.
        density = np.exp(found.log_prob(np.array([0.0])))
        assert (0.01 * density < 0.3).all()
        np.testing.assert_allclose(found.modes()[0], expected, atol=1e-3)
    with torch.no_grad():
        ensemble.out.bias[:, :, 1] = np.log(0.0005 / 0.9995)
    hardly = PredictiveDistribution(ensemble, x, scale, bounds, atoms=[2.0])
    np.testing.assert_allclose(hardly.modes()[0], [0.0], atol=1e-3)


@pytest.mark.parametrize("curved", [False, True])
def test_a_rounded_value_that_is_an_atom_has_its_mass_spread_over_the_cell(curved):
    torch.manual_seed(0)
    atom, cell = 0.5, 0.2
    ensemble = TiltedMixtureEnsemble(1, 3, (6,), n_components=2, n_tilts=2, atoms=[atom]).eval()
    features, y = ensemble.features(torch.zeros(2, 1)), torch.tensor([[atom], [1.2]]).expand(2, 3)
    generator = torch.Generator().manual_seed(0)
    found = rounded_log_prob(ensemble, features, y, cell, generator, curved).exp()
    moved = dequantise(y, cell, torch.Generator().manual_seed(0), curved)
    wanted = ensemble.member_log_density(features, moved).exp()
    # The cell's width in y: where y is an asinh it is narrower by the slope.
    width = cell / np.cosh(atom) if curved else cell
    wanted[0] += features[5][0, :, 0].exp() / width
    torch.testing.assert_close(found, wanted)
    back = torch.sinh if curved else (lambda z: z)
    assert float((back(moved) - back(y)).abs().max()) <= cell / 2 + 1e-6


@pytest.mark.parametrize("limits", [(0.0, None), (None, 0.0), (-0.5, 0.5)])
def test_a_mixture_far_beyond_a_limit_has_a_density_within_it_and_gradients(limits):
    """Components a hundred standard deviations out leave e^-5000 within the limits, which no number holds."""
    torch.manual_seed(0)
    ensemble = TiltedMixtureEnsemble(1, 2, (6,), n_components=3, n_tilts=4, atoms=[0.0], limits=limits)
    for away in (-100.0, 0.0, 100.0):
        for x in (torch.zeros(1, 1), torch.ones(1, 1)):
            with torch.no_grad():
                raw = ensemble.features(x)
            means, log_stds = raw[1] + away, raw[2]
            moved = ensemble._within_reach(means, log_stds)
            below, log_within = ensemble._within(raw[0], moved, log_stds)
            assert float(log_within.min()) > -8
            assert torch.isfinite(below).all()
    # Where the mean is well inside, nothing is moved.
    inside = torch.full_like(raw[1], 0.0 if limits == (-0.5, 0.5) else 30.0 if limits[1] is None else -30.0)
    near = ensemble._within_reach(inside, torch.full_like(raw[2], -3.0))
    torch.testing.assert_close(near, inside, atol=1e-4, rtol=1e-5)


@pytest.mark.slow
def test_zero_inflated_targets_train_without_a_roll_back():
    """Targets of which half are zero and the others log-normal, whose log-scale follows x."""
    for seed in (1, 3):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=300)
        y = np.where(rng.uniform(size=300) < 0.5, 0.0, rng.lognormal(x))
        model = EnergyRegressor(n_members=3, hidden=(64, 64), max_epochs=40, random_state=seed).fit(x[:, None], y)
        assert not model.history_.events
        grid = np.linspace(1e-9, 400, 400_001)
        distribution = model.predict_distribution([[0.0]])
        density = np.exp(distribution.log_prob(grid[None]))[0]
        total = np.trapezoid(density, grid) + distribution.cdf(np.zeros((1, 1)))[0, 0]
        beyond = 1 - distribution.cdf(np.full((1, 1), 400.0))[0, 0]
        assert total + beyond == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize("curved", [False, True])
def test_a_cell_that_reaches_over_a_limit_has_its_mass_on_this_side(curved):
    """The mean over places of the cell is its probability per unit, by numeric integration up to the limit."""
    torch.manual_seed(0)
    limit, cell, n = 0.5, 0.2, 4000
    ensemble = TiltedMixtureEnsemble(
        1, 3, (6,), n_components=2, n_tilts=2, atoms=[limit], limits=(None, limit)
    ).eval()
    forth, back = (torch.asinh, torch.sinh) if curved else (lambda z: z, lambda z: z)
    for y in (limit, 0.45, 0.1):
        centre = float(back(torch.tensor(y)))
        ends = torch.tensor([centre - cell / 2, min(centre + cell / 2, float(back(torch.tensor(limit))))])
        grid = torch.linspace(*ends.tolist(), 401, dtype=torch.float64)[:-1].float()
        one = ensemble.features(torch.zeros(1, 1))
        density = ensemble.member_log_density(one, forth(grid)[None, :, None].expand(1, 400, 3)).exp()
        # Per unit of what is rounded, where y is its asinh: the loss counts densities of y.
        wanted = density.mean(1)[0] * float(ends[1] - ends[0]) / cell
        if y == limit:
            width = cell / np.cosh(y) if curved else cell
            wanted = wanted + one[5][0, :, 0].exp() / width
        many = ensemble.features(torch.zeros(n, 1))
        found = rounded_log_prob(
            ensemble, many, torch.full((n, 3), y), cell, torch.Generator().manual_seed(1), curved
        )
        assert torch.isfinite(found).all()
        error = found.exp().std(0) / np.sqrt(n)
        assert ((found.exp().mean(0) - wanted).abs() < 4 * error + 2e-3 * wanted).all()


def test_values_beside_a_limit_that_rounding_takes_over_it_are_learned():
    """A target rounded to 0.01 and capped at 0.403: the cell of 0.4 reaches over the cap."""
    x, rng = inputs()
    y = np.minimum(np.round(linear(x, rng), 2), 0.403)
    model = EnergyRegressor(n_members=2, hidden=(24,), max_epochs=20, random_state=0).fit(x, y)
    assert model.atoms_ == [0.403]
    assert model.resolution_ == pytest.approx(0.01)
    assert (y == 0.4).any()
    assert not model.history_.events
    assert np.isfinite(model.validation_nll_)


def test_weights_of_several_targets_say_when_they_are_not_to_be_trusted():
    """A proposal like the density has light-tailed weights; one of a hundredth of its width has not."""
    from thalweg.energies import NetworkEnergy, mlp
    from thalweg.estimators._conditional import BroadProposal
    from thalweg.estimators.distribution import MultivariateDistribution

    class Bell(NetworkEnergy):
        def head(self, features, y):
            return 0.5 * y.square().sum(-1)

    energy, x = Bell(mlp([2, 4]), 4, 2), torch.zeros(24, 2)
    wide, narrow = BroadProposal(2), BroadProposal(2)
    narrow.scales = torch.tensor([0.01, 0.01])
    location, scale = np.zeros(2), np.ones(2)
    good = MultivariateDistribution(energy, wide, x, location, scale)
    bad = MultivariateDistribution(energy, narrow, x, location, scale)
    assert good.pareto_k.shape == (24,)
    assert np.mean(good.pareto_k < 0.7) == 1
    assert np.median(bad.pareto_k) > 0.7
    # The normaliser is 2 pi; the bad proposal finds too little of it, and its density is too high.
    at = np.zeros((24, 2))
    np.testing.assert_allclose(good.log_prob(at), -np.log(2 * np.pi), atol=0.15)
    assert bad.log_prob(at).mean() > -np.log(2 * np.pi) + 1


def test_cells_too_narrow_for_the_precision_have_the_mass_of_their_density():
    # A whole number of 16 digits: its cell's ends are one number in units of the spread.
    rng = np.random.RandomState(0)
    y = rng.choice([6559307017372196.0, 32678, 617, 2200, 5], 60)
    X = rng.normal(size=(60, 2))
    model = EnergyRegressor(max_epochs=1, n_members=1, hidden=(4,), random_state=0).fit(X, y)
    distribution = model.predict_distribution(X)
    assert model.resolution_ == 1.0
    np.testing.assert_allclose(distribution.log_mass(y), np.minimum(distribution.log_prob(y), 0), atol=0.05)


def test_a_density_of_whole_numbers_of_sixteen_digits_has_no_gaps():
    table = pd.DataFrame({"a": [6559307017372196, 6559307017372196, 32678, 617, 2200], "b": [1, 1, 0, 1, 0]})
    model = EnergyDensity(max_epochs=1, n_members=1, hidden=(4,), random_state=0).fit(table)
    assert np.isfinite(model.score_samples(table)).all()
