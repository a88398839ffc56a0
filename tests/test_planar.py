"""Planar problems: each density is one, its draws are its own, and figures on a grid are the closed form's."""

import math

import numpy as np
import pytest
import torch

from thalweg.data.planar import EIGHT_GAUSSIANS, TWO_MOONS
from thalweg.energies import Energy, GaussianEnergy, GaussianMixtureEnergy, WeightedSum
from thalweg.evaluation.density import grid, grid_energies, grid_figures

problems = pytest.mark.parametrize("problem", [EIGHT_GAUSSIANS, TWO_MOONS], ids=lambda p: p.name)


class Truth(Energy):
    """The problem's own density as an energy, less a constant, in single precision like any network."""

    def __init__(self, problem, lowered: float = 0.0):
        super().__init__()
        self.problem, self.lowered = problem, lowered

    def forward(self, x):
        log_density = self.problem.log_density(x.double().numpy())
        return torch.as_tensor(-log_density - self.lowered, dtype=x.dtype)


@problems
def test_a_problem_holds_its_mass_within_its_bounds(problem):
    points, area = grid(problem, 401)
    assert float(np.exp(problem.log_density(points)).sum()) * area == pytest.approx(1.0, abs=1e-6)
    draws = problem.sample(100_000, np.random.RandomState(0))
    assert draws.min() > problem.bounds[0]
    assert draws.max() < problem.bounds[1]


@problems
def test_the_draws_of_a_problem_are_those_of_its_density(problem):
    """Moments and entropy, by draws and on a grid: four standard errors."""
    points, area = grid(problem, 401)
    log_p = problem.log_density(points)
    mass = np.exp(log_p) * area
    draws = problem.sample(50_000, np.random.RandomState(1))

    def figures(x, log_density):
        return np.column_stack([x, x**2, x[:, 0] * x[:, 1], x**3, np.abs(x), log_density])

    expected = mass @ figures(points, np.maximum(log_p, -1e3))
    found = figures(draws, problem.log_density(draws))
    error = found.std(0) / math.sqrt(len(found))
    assert (np.abs(found.mean(0) - expected) < 4 * error).all()


@problems
def test_draws_follow_their_random_state(problem):
    a, b, c = (problem.sample(50, np.random.RandomState(seed)) for seed in (3, 3, 4))
    assert a.shape == (50, 2)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_the_eight_gaussians_are_the_mixture_that_they_say():
    radius, std = 4 / 1.414, 0.5 / 1.414
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = radius * torch.stack([angle.cos(), angle.sin()], 1)
    mixture = GaussianMixtureEnergy(means, torch.full((8, 2), std, dtype=torch.float64))
    x = EIGHT_GAUSSIANS.sample(500, np.random.RandomState(0))
    expected = mixture.log_prob(torch.as_tensor(x)).numpy()
    np.testing.assert_allclose(EIGHT_GAUSSIANS.log_density(x), expected, rtol=1e-9)
    np.testing.assert_allclose(EIGHT_GAUSSIANS.modes, means.numpy(), atol=1e-12)


def test_the_moons_are_as_far_from_their_arcs_as_their_noise():
    """Two half circles of radius 2, about (-1, -0.5) and (1, 0.5). Across an arc the noise is 0.2, but where it
    bends outwards: all but 4e-4 of the draws lie within 3.5 deviations of an arc."""
    draws = TWO_MOONS.sample(20_000, np.random.RandomState(0))
    upper, lower = draws - [-1.0, -0.5], draws - [1.0, 0.5]
    angle = np.linspace(0, np.pi, 400)
    half = 2 * np.stack([np.cos(angle), np.sin(angle)], 1)
    distance = np.minimum(
        np.linalg.norm(upper[:, None] - half, axis=-1).min(1),
        np.linalg.norm(lower[:, None] + half, axis=-1).min(1),
    )
    assert (distance < 0.7).mean() > 1 - 2e-3
    near_upper = np.linalg.norm(upper[:, None] - half, axis=-1).min(1) < 0.4
    near_lower = np.linalg.norm(lower[:, None] + half, axis=-1).min(1) < 0.4
    for near in (near_upper, near_lower):
        assert near.mean() > 0.45
    # Along the top of an arc, away from its ends, the distance from the centre is 2 with a deviation of 0.2.
    top = upper[near_upper & (upper[:, 1] > 1.0) & ~near_lower]
    radius = np.linalg.norm(top, axis=1)
    assert radius.mean() == pytest.approx(2.0, abs=0.02)


def test_a_density_far_out_is_no_underflow():
    far = np.array([[1e3, 0.0], [0.0, -1e3]])
    for problem in (EIGHT_GAUSSIANS, TWO_MOONS):
        assert np.isfinite(problem.log_density(far)).all()
        assert (problem.log_density(far) < -1e5).all()


def test_many_points_are_taken_in_pieces_and_none_is_lost():
    x = TWO_MOONS.sample(30_000, np.random.RandomState(0))
    whole = TWO_MOONS.log_density(x)
    np.testing.assert_allclose(whole[29_000:], TWO_MOONS.log_density(x[29_000:]), rtol=1e-12)
    assert TWO_MOONS.log_density(x[:1]).shape == (1,)


# -- figures on a grid ------------------------------------------------------------------------------------


@problems
def test_the_truth_is_no_nats_from_itself_and_its_constant_is_found(problem):
    figures = grid_figures(Truth(problem, 3.0), problem, 201)
    assert figures.kl == pytest.approx(0.0, abs=1e-6)
    assert figures.log_normaliser == pytest.approx(3.0, abs=1e-5)
    if problem.modes is not None:
        np.testing.assert_allclose(figures.cell_masses, 1 / 8, atol=1e-5)
    else:
        assert figures.cell_masses.size == 0


def test_the_divergence_of_a_gaussian_is_the_closed_form():
    """-H[p] - E_p log q = log(2 pi s^2) + E|x|^2 / (2 s^2) - H[p], with E|x|^2 = r^2 + 2 std^2."""
    std, radius, width = 0.5 / 1.414, 4 / 1.414, 1.5
    points, area = grid(EIGHT_GAUSSIANS, 401)
    log_p = EIGHT_GAUSSIANS.log_density(points)
    negative_entropy = float((np.exp(log_p) * log_p).sum() * area)
    # Z over the square: what a Gaussian of this width has beyond it is left out.
    inside = 2 * math.log(math.erf(5 / width / math.sqrt(2)))
    cross = math.log(2 * math.pi * width**2) + inside + (radius**2 + 2 * std**2) / (2 * width**2)
    figures = grid_figures(GaussianEnergy(torch.zeros(2), torch.full((2,), width)), EIGHT_GAUSSIANS, 401)
    assert figures.kl == pytest.approx(negative_entropy + cross, abs=1e-5)
    assert figures.log_normaliser == pytest.approx(math.log(2 * math.pi * width**2) + inside, abs=1e-5)
    np.testing.assert_allclose(figures.cell_masses, 1 / 8, atol=2e-3)  # cells meet the square's sides


def test_mass_that_moves_between_modes_is_seen_cell_by_cell():
    shares = torch.tensor([0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    means = torch.as_tensor(EIGHT_GAUSSIANS.modes, dtype=torch.float32)
    model = GaussianMixtureEnergy(means, torch.full((8, 2), 0.2), shares)
    figures = grid_figures(model, EIGHT_GAUSSIANS, 401)
    np.testing.assert_allclose(figures.cell_masses, shares.numpy(), atol=1e-4)


def test_a_finer_grid_changes_nothing():
    """Over half the spacing the divergence stays to 1e-3, as a figure that is the density's own must."""
    model = WeightedSum([GaussianEnergy(torch.zeros(2), torch.ones(2))], [0.7])
    coarse, fine = (grid_figures(model, EIGHT_GAUSSIANS, n).kl for n in (150, 300))
    assert abs(coarse - fine) < 1e-3


def test_energies_on_a_grid_are_taken_in_pieces_without_a_graph():
    energy = GaussianEnergy(torch.zeros(2), torch.ones(2))
    points, area = grid(EIGHT_GAUSSIANS, 160)
    assert points.shape == (25_600, 2)
    assert area == pytest.approx(100 / 25_600)
    np.testing.assert_allclose(grid_energies(energy, points), 0.5 * (points**2).sum(1), rtol=1e-5)
