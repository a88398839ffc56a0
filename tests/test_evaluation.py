"""The figures against truths known in closed form."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.stats import norm

from thalweg.evaluation.baselines import (
    BoostedQuantiles,
    GaussianPredictive,
    LeastSquaresGaussian,
    PredictiveWithAtoms,
    QuantilePredictive,
)
from thalweg.evaluation.class_baselines import Logistic
from thalweg.evaluation.density_baselines import KernelBaseline
from thalweg.evaluation.regression import joint_log_prob, score, score_rows, score_targets
from thalweg.runs.density import held_out_log_prob

LEVELS = BoostedQuantiles.levels


def gaussian_rows(n: int = 4000, std: float = 2.0) -> tuple[np.ndarray, GaussianPredictive]:
    rng = np.random.default_rng(0)
    mean = rng.normal(size=n)
    return mean + std * rng.normal(size=n), GaussianPredictive(mean, std)


def test_figures_of_the_true_gaussian() -> None:
    y, truth = gaussian_rows()
    s = score(y, truth)
    # Entropy of N(0, 2²); its expected CRPS is std / sqrt(pi).
    assert s.nll == pytest.approx(0.5 * np.log(2 * np.pi * np.e * 4), abs=4 * s.nll_error)
    assert s.crps == pytest.approx(2 / np.sqrt(np.pi), abs=4 * s.crps_error)
    assert s.rmse == pytest.approx(2.0, rel=0.05)
    assert s.mae == pytest.approx(2 * np.sqrt(2 / np.pi), rel=0.05)
    assert s.width == pytest.approx(2 * 2 * stats.norm.ppf(0.95), rel=1e-6)
    assert s.coverage == pytest.approx(0.9, abs=4 * np.sqrt(0.09 / len(y)))
    assert stats.kstest(s.pit, "uniform").pvalue > 1e-3
    assert np.abs(s.covered - s.nominal).max() < 0.04
    assert sum(s.summary()["pit_histogram"]) == len(y)


def test_crps_equals_the_closed_form_row_by_row() -> None:
    y, truth = gaussian_rows(200)
    z = (y - truth.mean()) / 2
    exact = 2 * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
    assert score(y, truth).crps == pytest.approx(exact.mean(), rel=0.01)


def test_a_rounded_target_is_scored_by_its_cell() -> None:
    y, truth = gaussian_rows()
    rounded = np.round(y)
    s = score(rounded, truth, resolution=1.0)
    cells = stats.norm.cdf(rounded + 0.5, truth.mean(), 2) - stats.norm.cdf(rounded - 0.5, truth.mean(), 2)
    assert s.nll == pytest.approx(-np.log(cells).mean(), rel=1e-9)
    # The probability of the cell over its width can't be inflated: the figure is never below 0 here.
    assert s.log_score.max() <= 0
    assert stats.kstest(s.pit, "uniform").pvalue > 1e-3


def test_scoring_refuses_what_it_can_not_score() -> None:
    with pytest.raises(ValueError, match="NaN"):
        score(np.array([1.0, np.nan]), GaussianPredictive(np.zeros(2), 1.0))
    with pytest.raises(ValueError, match="at least one row"):
        score(np.zeros(0), GaussianPredictive(np.zeros(0), 1.0))


def test_gaussian_mass_keeps_its_digits_in_the_tails() -> None:
    d = GaussianPredictive(np.zeros(2), 1.0)
    exact = np.log(stats.norm.sf(9.5) - stats.norm.sf(10.5))
    assert d.log_mass(np.array([10.0, -10.0]), 1.0) == pytest.approx([exact, exact], rel=1e-9)
    assert d.log_mass(np.array([0.0, 1.0]), 0.0) == pytest.approx(stats.norm.logpdf([0, 1]))


def quantile_rows() -> QuantilePredictive:
    mean, std = np.array([0.0, 3.0]), np.array([1.0, 0.5])
    return QuantilePredictive(mean[:, None] + std[:, None] * stats.norm.ppf(LEVELS), LEVELS)


def test_quantile_distribution_is_one_distribution() -> None:
    d = quantile_rows()
    grid = np.linspace(-25, 25, 100_001)
    asked = np.stack([grid, grid])
    density, cdf = np.exp(d.log_prob(asked)), d.cdf(asked)
    assert np.trapezoid(density, grid) == pytest.approx([1, 1], abs=2e-3)
    assert (np.diff(cdf, axis=1) >= 0).all()
    running = np.cumsum((density[:, 1:] + density[:, :-1]) / 2, axis=1) * (grid[1] - grid[0])
    assert np.abs(running - cdf[:, 1:]).max() < 2e-3
    for p in (0.01, 0.05, 0.33, 0.5, 0.95, 0.999):
        assert d.cdf(d.quantile(p)) == pytest.approx([p, p], abs=1e-9)
    assert np.allclose(d.mean(), [0, 3], atol=1e-9)
    assert d.quantile(np.array([0.2, 0.7])).shape == (2, 2)


@pytest.mark.parametrize("y", [-8.0, -0.3, 0.0, 1.6, 9.0, 400.0])
def test_quantile_mass_agrees_with_the_density(y: float) -> None:
    d = quantile_rows()
    values = np.array([y, y])
    assert d.log_mass(values, 1e-4) == pytest.approx(d.log_prob(values) + np.log(1e-4), rel=1e-3, abs=0.1)
    assert np.isfinite(d.log_mass(values, 1.0)).all()


def test_crossing_and_equal_quantiles_still_make_a_distribution() -> None:
    crossed = np.array([[3.0, 1.0, 2.0, 2.0, 2.0]])
    d = QuantilePredictive(crossed, np.array([0.1, 0.3, 0.5, 0.7, 0.9]), min_gap=1e-3)
    q = d.quantile(np.array([0.1, 0.3, 0.5, 0.7, 0.9]))[0]
    assert (np.diff(q) >= 1e-3 - 1e-12).all()
    assert np.abs(q - np.sort(crossed[0])).max() <= 2e-3
    assert np.isfinite(d.log_prob(np.array([2.0]))).all()


def table(n: int = 400) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.normal(size=n), "b": rng.choice(["u", "v", "w"], n), "c": rng.normal(size=n)})
    y = 2 * X["a"].to_numpy() + 3.0 * (X["b"] == "v").to_numpy() + 0.5 * rng.normal(size=n)
    X.loc[rng.random(n) < 0.1, "c"] = np.nan
    return X, y


def test_least_squares_finds_the_line() -> None:
    X, y = table()
    d = LeastSquaresGaussian().fit(X, y).predict_distribution(X)
    s = score(y, d)
    assert s.rmse == pytest.approx(0.5, rel=0.1)
    assert s.coverage == pytest.approx(0.9, abs=0.06)


def test_least_squares_with_more_columns_than_rows() -> None:
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(12, 30)))
    y = rng.normal(size=12)
    assert np.isfinite(score(y, LeastSquaresGaussian().fit(X, y).predict_distribution(X)).nll)


def test_boosting_learns_the_quantiles() -> None:
    X, y = table(600)
    d = BoostedQuantiles(max_iter=40).fit(X.iloc[:400], y[:400]).predict_distribution(X.iloc[400:])
    s = score(y[400:], d)
    assert s.rmse < 1.3
    assert 0.7 < s.coverage <= 1
    assert s.nll < score(y[400:], GaussianPredictive(np.full(200, y.mean()), y.std())).nll


def test_a_distribution_with_atoms_is_what_it_says_by_hand() -> None:
    """Masses of 0.2 at 0 and 0.3 at 5, and half of N(2, 1) or of N(9, 1)."""
    masses = np.array([[0.2, 0.3], [0.2, 0.3]])
    found = PredictiveWithAtoms(GaussianPredictive(np.array([2.0, 9.0]), 1.0), np.array([0.0, 5.0]), masses)
    at, low, high = np.array([5.0, 5.0]), norm.cdf(5.0, [2, 9], 1), np.log(0.3)
    assert found.mean() == pytest.approx([0.3 * 5 + 0.5 * 2, 0.3 * 5 + 0.5 * 9])
    assert found.cdf(at) == pytest.approx(0.5 + 0.5 * low)
    assert found.cdf_before(at) == pytest.approx(0.2 + 0.5 * low)
    assert found.log_prob(at) == pytest.approx([high, high])
    assert found.log_prob(at - 1) == pytest.approx(np.log(0.5) + norm.logpdf(4.0, [2, 9], 1))
    cell = norm.cdf(5.5, [2, 9], 1) - norm.cdf(4.5, [2, 9], 1)
    assert found.log_mass(at, 1.0) == pytest.approx(np.log(0.3 + 0.5 * cell))
    # Below the upper atom lie 0.2 + 0.5 F: a level within its mass lands on it, the others beside it.
    assert found.quantile(np.array([0.71, 0.99]))[0].tolist() == [5.0, 5.0]
    below = norm.ppf((0.5 - 0.2) / 0.5, 2, 1)
    assert found.quantile(0.5)[0] == pytest.approx(below, abs=1e-3)


def test_the_bandwidth_of_many_rows_is_that_of_some_made_narrower_by_their_number() -> None:
    """As n^(-1 / (D + 4)), in two dimensions."""
    X = np.random.default_rng(0).normal(size=(160, 2))

    class Some(KernelBaseline):
        max_rows_chosen_on = 40

    class Few(Some):
        max_rows = 40

    wide, narrow = Few().fit(X).model.bandwidth, Some().fit(X).model.bandwidth
    assert narrow == pytest.approx(wide * (40 / 160) ** (1 / 6))


def test_boosted_tails_are_as_heavy_as_the_rows_beyond_the_outermost_quantiles() -> None:
    """Rows that far values make heavy above: the density falls there by the mean excess over the 95 % quantile."""
    rng = np.random.default_rng(0)
    X, y = pd.DataFrame({"a": rng.normal(size=200)}), np.exp(3 * rng.normal(size=200))
    found = BoostedQuantiles(max_iter=2).fit(X, y).predict_distribution(X)
    top = found.quantile(0.95)
    excess = (y - top)[y > top].mean()
    fall = found.log_prob(top + 1) - found.log_prob(top + 1 + excess)
    np.testing.assert_allclose(fall, 1.0, rtol=1e-6)


def test_several_targets() -> None:
    class Independent:
        """Two standard normals."""

        def __init__(self, n: int):
            self.n = n

        def log_prob(self, y: np.ndarray) -> np.ndarray:
            return stats.norm.logpdf(y).sum(1)

        def quantile(self, p: np.ndarray) -> np.ndarray:
            return np.tile(stats.norm.ppf(p)[None, :, None], (self.n, 1, 2))

        def mean(self) -> np.ndarray:
            return np.zeros((self.n, 2))

    y = np.random.default_rng(0).normal(size=(3000, 2))
    figures = score_targets(y, Independent(3000), ["u", "v"])
    assert figures["nll"] == pytest.approx(np.log(2 * np.pi * np.e), abs=4 * figures["nll_error"])
    assert figures["targets"]["v"]["coverage"] == pytest.approx(0.9, abs=0.03)
    assert figures["targets"]["u"]["crps"] == pytest.approx(1 / np.sqrt(np.pi), rel=0.05)


class Gaussians:
    """Independent Gaussians, the same for all rows.

    Args:
        mean, std: of each target.
    """

    def __init__(self, n: int, mean: list[float], std: list[float]):
        self.n, self._mean, self._std = n, np.array(mean), np.array(std)

    def log_prob(self, y: np.ndarray) -> np.ndarray:
        return norm.logpdf(y, self._mean, self._std).sum(-1)

    def quantile(self, p: np.ndarray) -> np.ndarray:
        return np.tile(self._mean + self._std * norm.ppf(p)[:, None], (self.n, 1, 1))

    def mean(self) -> np.ndarray:
        return np.tile(self._mean, (self.n, 1))


def test_each_target_is_scored_by_its_own_distribution() -> None:
    """Predictions that are biased and too wide; the CRPS of a Gaussian is known at each truth."""
    n, mean, std = 500, [0.0, 30.0, -5.0], [1.0, 4.0, 0.2]
    rng = np.random.default_rng(0)
    y = np.array(mean) + np.array([0.5, -3.0, 0.1]) + np.array([0.5, 3.0, 0.1]) * rng.normal(size=(n, 3))
    figures = score_targets(y, Gaussians(n, mean, std), ["u", "v", "w"])
    for k, name in enumerate("uvw"):
        found, error = figures["targets"][name], y[:, k] - mean[k]
        z = error / std[k]
        crps = std[k] * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
        # The midpoint rule over 200 levels leaves less than a thousandth of the standard deviation.
        assert found["crps"] == pytest.approx(crps.mean(), abs=2e-3 * std[k])
        assert found["mae"] == pytest.approx(np.abs(error).mean())
        assert found["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
        assert found["coverage"] == pytest.approx(np.mean(np.abs(z) < norm.ppf(0.95)))
    log_prob = norm.logpdf(y, mean, std).sum(1)
    assert figures["nll"] == pytest.approx(-log_prob.mean())
    assert figures["nll_error"] == pytest.approx(np.sqrt(((log_prob - log_prob.mean()) ** 2).sum() / (n - 1) / n))


@pytest.mark.parametrize("resolution", [0.0, 8.0])
def test_standard_errors_are_those_of_means(resolution: float) -> None:
    y, truth = gaussian_rows(300)
    y = np.round(y / resolution) * resolution if resolution else y
    found = score(y, truth, resolution)
    rows = score_rows(y, truth, resolution)
    assert found.nll == pytest.approx(-rows.mean())
    assert found.nll_error == pytest.approx(stats.sem(rows))
    z = (y - truth.mean()) / 2
    crps = 2 * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    assert found.crps_error == pytest.approx(stats.sem(crps), rel=0.02)


def test_the_pit_of_a_rounded_target_is_drawn_within_its_own_cell() -> None:
    """Cells four times as wide as the distribution: each value between the probabilities of the cell's ends."""
    # Another seed than that of the places within the cells, or these would go with the means.
    rng = np.random.default_rng(1)
    mean = rng.uniform(-20, 20, 3000)
    y = np.round((mean + 2 * rng.normal(size=3000)) / 8) * 8
    found = score(y, GaussianPredictive(mean, 2.0), resolution=8.0)
    low, high = norm.cdf(y - 4, mean, 2), norm.cdf(y + 4, mean, 2)
    assert ((found.pit >= low) & (found.pit <= high)).all()
    assert stats.kstest((found.pit - low) / (high - low), "uniform").pvalue > 1e-3
    assert stats.kstest(found.pit, "uniform").pvalue > 1e-3


class Spiked:
    """Two independent standard normals, nine tenths of whose mass sits in needles at whole numbers."""

    def __init__(self, share: float, width: float = 1e-9):
        self.share, self.width = share, width

    def log_prob(self, y):
        log_normal = norm.logpdf(y)
        # Needles that hold the probability of their cells.
        cell = norm.cdf(np.round(y) + 0.5) - norm.cdf(np.round(y) - 0.5)
        needle = np.where(np.abs(y - np.round(y)) < self.width / 2, cell / self.width, 0.0)
        return np.log((1 - self.share) * np.exp(log_normal) + self.share * needle).sum(-1)


def test_spikes_on_the_grid_do_not_inflate_the_joint_score_of_rounded_targets():
    rng = np.random.default_rng(0)
    y = np.round(rng.normal(size=(500, 2)))
    spiked, plain = (joint_log_prob(y, Spiked(share), [1.0, 1.0]).mean() for share in (0.9, 0.0))
    assert Spiked(0.9).log_prob(y).mean() > 30
    assert spiked == pytest.approx(plain + 2 * np.log(0.1))
    tables = [held_out_log_prob(Spiked(share), y, np.ones(2), 0).mean() for share in (0.9, 0.0)]
    assert tables[0] == pytest.approx(tables[1] + 2 * np.log(0.1))
    # At most the log mass of the cell, and at least what a quadratic says: the second derivative of log p is -1.
    exact = np.log(norm.cdf(y + 0.5) - norm.cdf(y - 0.5)).sum(1).mean()
    assert exact - 2 / 24 - 4 * 0.3 / np.sqrt(8 * 500) < plain < exact + 4 * 0.3 / np.sqrt(8 * 500)


@pytest.mark.parametrize("n_labels", [2, 3])
def test_a_logistic_regression_is_the_same_as_a_network(n_labels):
    rng = np.random.default_rng(0)
    labels = np.arange(90) % n_labels
    images = (rng.normal(size=(90, 1, 3, 2)) + labels[:, None, None, None]).astype(np.float32)
    # One label more than the rows have.
    baseline = Logistic().fit(images, labels, n_labels + 1)
    with torch.no_grad():
        scores = baseline.network()(torch.from_numpy(images))
    np.testing.assert_allclose(torch.softmax(scores, 1).numpy(), np.exp(baseline.log_prob(images)), atol=1e-5)
    assert (scores.argmax(1) < n_labels).all()
