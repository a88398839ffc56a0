"""Quadrature, ascent and importance sampling against densities known in closed form."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import Normal

from thalweg.energies import (
    ConditionalEnergy,
    GaussianEnergy,
    GaussianMixtureEnergy,
    MixtureDensity,
    NetworkEnergy,
    mlp,
)
from thalweg.inference.ascent import gradient_ascent
from thalweg.inference.completion import Candidates, denoise
from thalweg.inference.importance import adaptive_importance_sample, importance_sample
from thalweg.inference.quadrature import normalise
from thalweg.sampling.diagnostics import LARGEST_PARETO_K


class Formula(ConditionalEnergy):
    """E(x, y) = formula(x, y) with x ``[B, F]`` brought to y's candidates; y is one-dimensional.

    Args:
        where, scale: landmarks for every row, if given.
    """

    def __init__(self, formula, where=None, scale=None):
        super().__init__()
        self.formula, self.where, self.scale = formula, where, scale

    def head(self, features, y):
        y = y.squeeze(-1)
        return self.formula(features.reshape(len(y), *([1] * (y.dim() - 1)), -1), y)

    def landmarks(self, features):
        if self.where is None:
            return None
        n = len(features)
        return torch.tensor(self.where).expand(n, -1), torch.tensor(self.scale).expand(n, -1)


def normal(y, mean, std):
    std = torch.as_tensor(std, dtype=y.dtype)
    return -0.5 * ((y - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)


def mixture_formula(weights, means, stds, lift=0.0):
    def formula(_, y):
        parts = [math.log(w) + normal(y, m, s) for w, m, s in zip(weights, means, stds, strict=True)]
        return lift - torch.logsumexp(torch.stack(parts), 0)

    return formula


def mixture_cdf(y, weights, means, stds):
    return sum(w * stats.norm.cdf(y, m, s) for w, m, s in zip(weights, means, stds, strict=True))


def lognormal(sigma):
    def formula(_, y):
        log_y = y.clamp(min=1e-30).log()
        energy = 0.5 * (log_y / sigma).square() + log_y + math.log(sigma * math.sqrt(2 * math.pi))
        return torch.where(y > 0, energy, torch.inf)

    return formula


def one_row(formula, where=None, scale=None, dtype=torch.float32):
    return Formula(formula, where, scale).given(torch.zeros(1, 1, dtype=dtype))


SPIKE = ((0.5, 0.5), (0.317, 0.0), (1e-3, 1.0))
WEAK_SPIKE = ((0.02, 0.98), (2.2, 0.0), (1e-3, 1.0))
THREE = ((0.3, 0.5, 0.2), (-2.0, 0.5, 3.0), (0.3, 0.8, 0.1))

# Name: energy of one row, bounds, true log Z.
CASES = {
    "Gaussian": (one_row(mixture_formula((1.0,), (0.3,), (1.0,))), (-8, 8), 0.0),
    "narrow Gaussian in wide bounds": (one_row(mixture_formula((1.0,), (0.3,), (0.02,))), (-8, 8), 0.0),
    "three modes": (one_row(mixture_formula(*THREE)), (-8, 8), 0.0),
    "lifted by 1000": (one_row(mixture_formula(*THREE, lift=1e3)), (-8, 8), -1e3),
    "lowered by 1000": (one_row(mixture_formula(*THREE, lift=-1e3)), (-8, 8), 1e3),
    "spike with landmarks": (one_row(mixture_formula(*SPIKE), *SPIKE[1:]), (-8, 8), 0.0),
    "weak spike with landmarks": (one_row(mixture_formula(*WEAK_SPIKE), *WEAK_SPIKE[1:]), (-8, 8), 0.0),
    "spike among fifty landmarks": (
        one_row(
            mixture_formula(*SPIKE),
            [0.317] + [0.05 * i - 1 for i in range(50)],
            [1e-3] + [0.5 + i / 50 for i in range(50)],
        ),
        (-8, 8),
        0.0,
    ),
    "lifted spike": (one_row(mixture_formula(*SPIKE, lift=1e3), *SPIKE[1:]), (-8, 8), -1e3),
    "spike without landmarks": (
        one_row(mixture_formula((0.5, 0.5), (0.317, 0.0), (1e-3, 0.1))),
        (-1, 1),
        0.0,
    ),
    "skewed": (one_row(lognormal(1.0)), (0, 200), math.log(stats.lognorm.cdf(200, 1.0))),
    "heavily skewed": (one_row(lognormal(2.0)), (0, 1000), math.log(stats.lognorm.cdf(1000, 2.0))),
    "heavy tails": (
        one_row(lambda _, y: torch.log1p(y.square()) + math.log(math.pi)),
        (-50, 50),
        math.log(2 * math.atan(50) / math.pi),
    ),
    "a kink": (one_row(lambda _, y: (y - 0.123).abs() + math.log(2)), (-20, 20), 0.0),
    "a jump": (one_row(lambda _, y: torch.where((y - 0.123).abs() < 1, 0.0, torch.inf)), (-5, 5), math.log(2)),
    "double precision": (one_row(mixture_formula(*THREE), dtype=torch.float64), (-8, 8), 0.0),
}
cases = pytest.mark.parametrize(("energy", "bounds", "log_z"), CASES.values(), ids=CASES.keys())


# -- quadrature -------------------------------------------------------------------------------------------


@cases
@pytest.mark.parametrize("tolerance", [1e-3, 1e-4])
def test_the_normaliser_is_right_to_the_tolerance(energy, bounds, log_z, tolerance):
    density = normalise(energy, *bounds, tolerance=tolerance)
    assert abs(math.expm1(float(density.log_normaliser) - log_z)) < tolerance


@cases
@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
def test_the_stated_error_is_honest(energy, bounds, log_z, tolerance):
    """No more than ten times what is stated, or below a millionth (float32 energies of size 1000: 1e-4)."""
    density = normalise(energy, *bounds, tolerance=tolerance)
    error = abs(math.expm1(float(density.log_normaliser) - log_z))
    rounding = 1e-6 + abs(log_z) * 2**-24
    assert error < max(10 * float(density.relative_error), rounding)


def test_double_precision_is_used_where_the_energy_has_it():
    energy, bounds, _ = CASES["double precision"]
    assert abs(float(normalise(energy, *bounds, tolerance=1e-10).log_normaliser)) < 1e-11


def test_rows_of_very_different_scales_are_normalised_in_one_call():
    """E = (y - x_0)^2 / (2 x_1^2) + x_2, stds from 0.01 to 3 and lifts from -500 to 500."""
    stds = torch.tensor([0.01, 0.1, 1.0, 3.0, 0.03])
    means = torch.tensor([0.5, -3.0, 0.0, 2.0, 4.0])
    lifts = torch.tensor([0.0, 500.0, -500.0, 3.0, 100.0])
    energy = Formula(lambda x, y: 0.5 * ((y - x[..., 0]) / x[..., 1]).square() + x[..., 2])
    density = normalise(energy.given(torch.stack([means, stds, lifts], 1)), -30, 30)
    expected = stds.log() + 0.5 * math.log(2 * math.pi) - lifts
    assert (torch.expm1(density.log_normaliser - expected).abs() < 1e-4).all()
    torch.testing.assert_close(density.mean(), means.double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(density.variance().sqrt().float(), stds, rtol=1e-3, atol=0)


def test_a_row_gets_the_same_answer_alone_and_in_company():
    energy = Formula(lambda x, y: 0.5 * ((y - x[..., 0]) / x[..., 1]).square())
    x = torch.tensor([[0.5, 0.02], [0.0, 1.0], [-1.0, 0.3]])
    together = normalise(energy.given(x), -8, 8)
    grid = torch.linspace(-3, 3, 50).repeat(3, 1)
    for i in range(3):
        alone = normalise(energy.given(x[i : i + 1]), -8, 8)
        torch.testing.assert_close(together.log_normaliser[i], alone.log_normaliser[0])
        torch.testing.assert_close(together.cdf(grid)[i], alone.cdf(grid[:1])[0])


@pytest.mark.parametrize("lift", [0.0, 1e3])
def test_mean_variance_and_modes_of_a_mixture_are_its_closed_forms(lift):
    weights, means, stds = (np.array(a) for a in THREE)
    density = normalise(one_row(mixture_formula(*THREE, lift=lift)), -8, 8, tolerance=1e-6)
    mean = (weights * means).sum()
    variance = (weights * (stds**2 + means**2)).sum() - mean**2
    assert float(density.mean()) == pytest.approx(mean, abs=1e-4)
    assert float(density.variance()) == pytest.approx(variance, abs=1e-4)
    grid = np.linspace(-8, 8, 1_600_001)
    log_p = np.log(sum(w * stats.norm.pdf(grid, m, s) for w, m, s in zip(*THREE, strict=True)))
    tops = np.flatnonzero((log_p[1:-1] > log_p[:-2]) & (log_p[1:-1] > log_p[2:])) + 1
    expected = grid[tops[np.argsort(-log_p[tops])]]
    (modes,) = density.modes()
    assert len(modes) == len(expected) == 3
    # The parabola is through nodes a fraction of a std apart.
    np.testing.assert_allclose(modes, expected, atol=0.02)
    assert float(density.modes()[0][0]) == pytest.approx(float(modes[0]))


def test_a_density_without_an_inner_maximum_has_its_mode_at_its_edge():
    density = normalise(one_row(lambda _, y: y), 0, 10)
    assert float(density.modes()[0][0]) < 0.05


@pytest.mark.parametrize(
    ("spec", "where", "scale"), [(THREE, None, None), (SPIKE, *SPIKE[1:]), (WEAK_SPIKE, *WEAK_SPIKE[1:])]
)
def test_the_interpolated_distribution_function_is_the_true_one(spec, where, scale):
    density = normalise(one_row(mixture_formula(*spec), where, scale), -8, 8)
    y = np.concatenate([np.linspace(-9, 9, 2001), spec[1][0] + spec[2][0] * np.linspace(-6, 6, 501)])
    found = density.cdf(torch.from_numpy(y).unsqueeze(0))[0].numpy()
    assert np.abs(found - mixture_cdf(y, *spec)).max() < 1e-4


def test_the_distribution_function_rises_from_zero_to_one():
    density = normalise(one_row(mixture_formula(*THREE)), -8, 8)
    y = torch.linspace(-10, 10, 5001).unsqueeze(0)
    values = density.cdf(y)
    assert (values.diff() > -1e-12).all()
    # Exactly zero on some processors, 1e-40 on others.
    torch.testing.assert_close(
        density.cdf(torch.tensor([[-torch.inf, -100.0]])),
        torch.zeros(1, 2, dtype=torch.float64),
        rtol=0,
        atol=1e-30,
    )
    torch.testing.assert_close(
        density.cdf(torch.tensor([[100.0, torch.inf]])), torch.ones(1, 2, dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("spec", "where", "scale"), [(THREE, None, None), (SPIKE, *SPIKE[1:]), (WEAK_SPIKE, *WEAK_SPIKE[1:])]
)
def test_quantiles_invert_the_distribution_function(spec, where, scale):
    density = normalise(one_row(mixture_formula(*spec), where, scale), -8, 8)
    probability = torch.cat([torch.tensor([1e-6, 1e-3]), torch.linspace(0.01, 0.99, 197)]).double().unsqueeze(0)
    y = density.quantile(probability)
    assert (y.diff() >= 0).all()
    torch.testing.assert_close(density.cdf(y), probability, rtol=0, atol=1e-8)
    # And both are the truth's: bounded by the error of Z, not by that of their agreement.
    np.testing.assert_allclose(mixture_cdf(y[0].numpy(), *spec), probability[0], atol=1e-4)


def test_the_extreme_quantiles_are_the_ends_of_the_range():
    density = normalise(one_row(mixture_formula((1.0,), (0.0,), (1.0,))), -8, 8)
    low, high = density.quantile(torch.tensor([[0.0, 1.0]]))[0].tolist()
    assert low == pytest.approx(-8, abs=0.51)
    assert high == pytest.approx(8, abs=2.5)  # beyond it there is no mass in double precision


def test_answers_do_not_depend_on_what_is_added_for_each_x():
    """E + c(x): the same density, cdf, quantiles and modes, to float32 rounding of c."""
    base = Formula(lambda x, y: (y - x[..., 0]).square() * (1 + (y + x[..., 0]).square()))
    lifted = Formula(lambda x, y: base.formula(x, y) + 50 * x[..., 0])
    x = torch.tensor([[-1.0], [0.3], [2.0]])
    a, b = normalise(base.given(x), -6, 6), normalise(lifted.given(x), -6, 6)
    torch.testing.assert_close(b.log_normaliser, a.log_normaliser - 50 * x[:, 0].double(), rtol=0, atol=1e-5)
    grid = torch.linspace(-3, 3, 100).repeat(3, 1)
    torch.testing.assert_close(a.cdf(grid), b.cdf(grid), rtol=0, atol=1e-4)
    torch.testing.assert_close(a.mean(), b.mean(), rtol=0, atol=1e-4)
    for p, q in zip(a.modes(), b.modes(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-2)
    start = torch.zeros(3, 1)
    torch.testing.assert_close(
        gradient_ascent(base.given(x), start), gradient_ascent(lifted.given(x), start), rtol=0, atol=1e-3
    )


def test_a_mixture_density_network_is_found_to_be_normalised():
    energy = MixtureDensity(mlp([3, 8]), 8, n_components=4)
    with torch.no_grad():
        for weight in energy.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
        given = energy.given(torch.randn(50, 3, generator=torch.Generator().manual_seed(2)))
    density = normalise(given, -5, 5)
    assert float(density.log_normaliser.abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("formula", "words"),
    [
        (lambda _, y: torch.where(y > 1, torch.nan, 0.0), "NaN or -infinity"),
        (lambda _, y: torch.where(y > 1, -torch.inf, 0.0), "NaN or -infinity"),
        (lambda _, y: torch.where(y == 0, 0.0, torch.inf), "no density to normalise"),
        (lambda _, y: y.unsqueeze(-1), "drop the trailing dimension"),
    ],
)
def test_an_energy_that_cannot_be_normalised_is_refused_in_words(formula, words):
    with pytest.raises(ValueError, match=words):
        normalise(one_row(formula), -5, 5)


# -- ascent -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_size", [1e-3, 0.1, 10.0, 1e4])
def test_ascent_never_raises_the_energy(step_size):
    energy = NetworkEnergy(mlp([3, 8]), 8, 2, hidden=16)
    given = energy.given(torch.randn(20, 3))
    start = torch.randn(20, 5, 2)
    with torch.no_grad():
        before = given(start)
        y = gradient_ascent(given, start, n_steps=20, step_size=step_size)
        assert (given(y) <= before).all()
    assert not y.requires_grad
    assert all(w.grad is None for w in energy.parameters())


@pytest.mark.parametrize("step_size", [0.1, 0.5, 1.0, 3.0])
def test_ascent_finds_the_minimum_of_a_quadratic(step_size):
    """Also at a step that jumps to the mirror image, where the energy neither rises nor falls."""
    energy = GaussianEnergy(torch.tensor([1.0, -2.0]), torch.tensor([1.0, 0.5]))
    y = gradient_ascent(energy, torch.randn(7, 2), n_steps=200, step_size=step_size)
    torch.testing.assert_close(y, energy.mean.expand(7, 2), rtol=0, atol=1e-3)


def test_ascent_stays_where_its_steps_would_leave_the_numbers():
    class Wall(GaussianEnergy):
        def value_and_gradient(self, x):
            value, grad = super().value_and_gradient(x)
            return torch.where(x[..., 0] < 0, torch.nan, value), grad

    y = gradient_ascent(Wall(torch.tensor([-1.0]), torch.ones(1)), torch.ones(1, 1), n_steps=50, step_size=1.0)
    assert 0 <= float(y) < 0.1


def test_each_row_may_have_its_own_step():
    energy = GaussianEnergy(torch.zeros(1), torch.ones(1))
    y = gradient_ascent(energy, torch.ones(2, 1), n_steps=1, step_size=torch.tensor([[0.1], [0.5]]))
    torch.testing.assert_close(y, torch.tensor([[0.9], [0.5]]))


# -- importance sampling ----------------------------------------------------------------------------------


class DiagonalGaussian(ConditionalEnergy):
    """N(x, std^2) over K dimensions, unnormalised: log Z = K log(std sqrt(2 pi)) - lift."""

    def __init__(self, std: float, lift: float = 0.0):
        super().__init__()
        self.std, self.lift = std, lift
        self.anchor = nn.Parameter(torch.zeros(()))

    def head(self, features, y):
        x = features.reshape(len(y), *([1] * (y.dim() - 2)), -1)
        return 0.5 * ((y - x) / self.std).square().sum(-1) + self.lift


def proposal_draws(x, m, std, dtype=torch.float32):
    noise = torch.randn(len(x), m, x.shape[1], generator=torch.Generator().manual_seed(6), dtype=dtype)
    samples = x.unsqueeze(1) + std * noise
    log_q = (-0.5 * noise.square() - math.log(std * math.sqrt(2 * math.pi))).sum(-1)
    return samples, log_q


X = torch.tensor([[0.5, -1.0], [2.0, 0.0], [0.0, 0.0]])


@pytest.mark.parametrize("lift", [-1e3, 0.0, 1e3])
def test_weights_sum_to_one_and_log_z_is_within_its_standard_error(lift):
    """Wider proposal, weights w; the error of log Z is std(w) / (mean(w) sqrt(M)), four of them allowed."""
    m = 20_000
    samples, log_q = proposal_draws(X, m, 1.3)
    weighted = importance_sample(DiagonalGaussian(0.8, lift).given(X), samples, log_q)
    torch.testing.assert_close(weighted.weights.sum(1), torch.ones(3), rtol=0, atol=1e-4)
    size = weighted.effective_sample_size
    assert ((size > 1) & (size < m)).all()
    error = (m / size - 1).sqrt() / math.sqrt(m)
    truth = 2 * math.log(0.8 * math.sqrt(2 * math.pi)) - lift
    # float32 energies of size 1000 are rounded to 6e-5.
    assert ((weighted.log_normaliser - truth).abs() < 4 * error + abs(lift) * 1e-7).all()


@pytest.mark.parametrize(("std", "trusted"), [(1.3, True), (0.3, False)])
def test_pareto_k_of_every_row_tells_a_proposal_that_covers(std, trusted):
    samples, log_q = proposal_draws(X, 20_000, std)
    k = importance_sample(DiagonalGaussian(0.8).given(X), samples, log_q).pareto_k
    assert k.shape == (3,)
    assert ((k < LARGEST_PARETO_K) == trusted).all()


def test_an_exact_proposal_gives_even_weights():
    samples, log_q = proposal_draws(X, 1000, 0.8)
    weighted = importance_sample(DiagonalGaussian(0.8).given(X), samples, log_q)
    torch.testing.assert_close(
        weighted.effective_sample_size, torch.full((3,), 1000.0).double(), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(
        weighted.log_normaliser,
        torch.full((3,), 2 * math.log(0.8 * math.sqrt(2 * math.pi))).double(),
        rtol=0,
        atol=1e-5,
    )


def test_mean_and_quantiles_are_those_of_the_target():
    """Standard error of a weighted quantile: sqrt(p (1 - p) / ESS) / density."""
    m = 50_000
    samples, log_q = proposal_draws(X, m, 1.3)
    weighted = importance_sample(DiagonalGaussian(0.8).given(X), samples, log_q)
    size = float(weighted.effective_sample_size.min())
    assert ((weighted.mean() - X).abs() < 4 * 0.8 / math.sqrt(size) * 1.5).all()
    probability = torch.tensor([0.05, 0.5, 0.9])
    found = weighted.quantile(probability)
    assert found.shape == (3, 3, 2)
    for i, p in enumerate(probability.tolist()):
        z = stats.norm.ppf(p)
        error = math.sqrt(p * (1 - p) / size) / (stats.norm.pdf(z) / 0.8)
        assert ((found[:, i] - X - 0.8 * z).abs() < 5 * error).all()


def test_quantiles_at_the_ends_are_the_extreme_draws():
    samples, log_q = proposal_draws(X, 50, 0.8)
    weighted = importance_sample(DiagonalGaussian(0.8).given(X), samples, log_q)
    found = weighted.quantile(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(found[:, 0], samples.amin(1))
    torch.testing.assert_close(found[:, 1], samples.amax(1))


def test_resampled_draws_have_the_target_variance():
    """4 standard errors of a variance estimated from as many independent draws as the ESS says."""
    samples, log_q = proposal_draws(X, 20_000, 1.3)
    weighted = importance_sample(DiagonalGaussian(0.8).given(X), samples, log_q)
    draws = weighted.resample(20_000, torch.Generator().manual_seed(1))
    error = 0.64 * math.sqrt(2 / 20_000 + 2 / float(weighted.effective_sample_size.min()))
    assert ((draws.var(1) - 0.64).abs() < 4 * error).all()


def adapted(energy, x, std, n_samples, n_rounds=3):
    """From a Gaussian proposal around x."""
    generator = torch.Generator().manual_seed(1)
    proposal = Normal(x.unsqueeze(1), std)

    def draw(n):
        return x.unsqueeze(1) + std * torch.randn(len(x), n, x.shape[1], generator=generator)

    def log_density(y):
        return proposal.log_prob(y).sum(-1)

    return adaptive_importance_sample(energy.given(x), draw, log_density, n_samples, generator, n_rounds)


def test_kernels_find_what_the_proposal_hardly_covers():
    """log Z of 64 rows of a narrow Gaussian in the flank of a proposal: without bias, and closer with kernels."""
    x, shift = torch.zeros(64, 3), 0.5

    class Shifted(DiagonalGaussian):
        def head(self, features, y):
            return super().head(features, y - shift)

    energy, truth = Shifted(0.15), 3 * math.log(0.15 * math.sqrt(2 * math.pi))
    plain, found = (adapted(energy, x, 1.0, 1024, n) for n in (0, 3))
    error = found.log_normaliser - truth
    assert abs(error.mean()) < 4 * error.std() / 8
    assert error.std() < 0.3 * (plain.log_normaliser - truth).std()
    assert (found.effective_sample_size > 10 * plain.effective_sample_size).float().mean() > 0.9


def test_kernels_lose_no_mode():
    """Two modes far apart: each keeps half of the weight, in the mean over rows."""
    x = torch.zeros(64, 2)

    class Two(DiagonalGaussian):
        def head(self, features, y):
            return -torch.logaddexp(-super().head(features, y - 3.0), -super().head(features, y + 3.0))

    found = adapted(Two(0.3), x, 4.0, 800)
    right = (found.weights * (found.y[..., 0] > 0)).sum(1)
    assert abs(right.mean() - 0.5) < 4 * right.std() / 8
    truth = math.log(2) + 2 * math.log(0.3 * math.sqrt(2 * math.pi))
    error = found.log_normaliser - truth
    assert abs(error.mean()) < 4 * error.std() / 8


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_a_damaged_energy_is_refused_in_words(value):
    energy = Formula(lambda _, y: torch.where(y > 0, value, 0.0)).given(torch.zeros(2, 1))
    with pytest.raises(ValueError, match="NaN or -infinity"):
        importance_sample(energy, torch.randn(2, 50, 1), torch.zeros(2, 50))


# -- completions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 10])
def test_draws_of_candidates_have_their_weights_row_by_row(n):
    """Each is drawn as often as its weight says, but for less than one draw; every draw follows the weights."""
    weights = torch.tensor([0.1, 0.25, 0.3, 0.35])
    rows = 8000
    found = Candidates(torch.arange(4.0).expand(rows, 4).unsqueeze(-1), weights.expand(rows, 4))
    drawn = found.draw(n, torch.Generator().manual_seed(0))
    assert drawn.shape == (n, rows, 1)
    for place, weight in enumerate(weights.tolist()):
        is_drawn = (drawn[..., 0] == place).float()
        assert ((is_drawn.sum(0) - n * weight).abs() < 1).all()
        slack = 5 * math.sqrt(weight * (1 - weight) / rows)
        assert ((is_drawn.mean(1) - weight).abs() < slack).all()


def test_candidates_for_a_row_with_noise_are_weighed_as_its_posterior_whatever_the_guess():
    """Two coordinates N(0, 1) seen with noise of 0.1 and 0.7, by a mixture that takes them for N(1, 0.4^2).

    The posterior is N(seen / (1 + s^2), s^2 / (1 + s^2)). Half of the candidates come from N(seen, s^2), which
    covers it: the weights are bounded, and a fortieth of the candidates or more are effective.
    """
    std, n, seen = torch.tensor([0.1, 0.7]), 40_000, torch.tensor([[0.5, -0.5], [1.0, 1.0]])
    energy = GaussianEnergy(torch.zeros(2), torch.ones(2))
    guess = GaussianMixtureEnergy(torch.ones(1, 2), 0.4 * torch.eye(2)[None])
    found = denoise(energy, guess, seen, std, n, torch.Generator().manual_seed(0))
    assert (found.effective_sample_size > n / 40).all()
    mean, variance = seen / (1 + std**2), std**2 / (1 + std**2)
    assert ((found.mean() - mean).abs() < 5 * (variance * 40 / n).sqrt()).all()
    spread = (found.weights.unsqueeze(-1) * (found.x - mean.unsqueeze(1)).square()).sum(1)
    assert ((spread / variance - 1).abs() < 5 * math.sqrt(2 * 40 / n)).all()
