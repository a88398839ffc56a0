"""The kernel density: what it integrates and sums to, gaps, its width, and its draws."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from thalweg.energies import KernelDensity


def table(n=60, seed=0):
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 2, n)
    numbers = rng.normal(size=(n, 1)) + 2 * classes[:, None]
    return np.column_stack([numbers, rng.integers(0, 3, n), (rng.uniform(size=n) < 0.3)]), classes


def test_it_integrates_and_sums_to_one():
    rows, classes = table()
    density = KernelDensity.of(rows, classes, [0, 3, 2]).double()
    grid = torch.linspace(-12, 14, 4001, dtype=torch.float64)
    total = 0.0
    for a, b in itertools.product(range(4), range(3)):  # one value beyond those seen
        x = torch.stack([grid, torch.full_like(grid, a), torch.full_like(grid, b)], 1)
        total += float(torch.trapezoid(density.log_prob(x).exp(), grid))
    assert total == pytest.approx(1, abs=1e-6)


def test_of_numbers_it_is_the_mean_of_gaussians():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(40, 2)) @ np.array([[1.0, 0.5], [0.0, 0.3]])
    density = KernelDensity.of(rows).double()
    covariance = (density.factors[0] @ density.factors[0].T).numpy()
    x = rng.normal(size=(5, 2))
    expected = [np.mean(stats.multivariate_normal.pdf(rows, v, covariance)) for v in x]
    found = density.log_prob(torch.from_numpy(x)).exp().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_missing_cell_is_summed_out():
    rows, classes = table()
    density = KernelDensity.of(rows, classes, [0, 3, 2]).double()
    x = torch.tensor([[0.3, 1.0, 0.0]], dtype=torch.float64)
    no_category = x.clone()
    no_category[0, 1] = torch.nan
    summed = torch.logsumexp(
        torch.stack([density.log_prob(x.index_fill(1, torch.tensor([1]), v)) for v in range(4)]), 0
    )
    torch.testing.assert_close(density.log_prob(no_category), summed)
    no_number = x.clone()
    no_number[0, 0] = torch.nan
    grid = torch.linspace(-12, 14, 4001, dtype=torch.float64)
    over = x.expand(len(grid), -1).clone()
    over[:, 0] = grid
    integral = torch.trapezoid(density.log_prob(over).exp(), grid)
    torch.testing.assert_close(density.log_prob(no_number).exp(), integral[None], rtol=1e-6, atol=0)
    nothing = torch.full((1, 3), torch.nan, dtype=torch.float64)
    assert float(density.log_prob(nothing)) == pytest.approx(0, abs=1e-9)


def test_a_missing_number_of_several_is_integrated_out():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(50, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]])
    density = KernelDensity.of(rows).double()
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    over = torch.stack([torch.full_like(grid, 0.4), grid], 1)
    x = torch.tensor([[0.4, torch.nan]], dtype=torch.float64)
    integral = torch.trapezoid(density.log_prob(over).exp(), grid)
    torch.testing.assert_close(density.log_prob(x).exp(), integral[None], rtol=1e-6, atol=0)


def test_the_parts_of_the_classes_add_up():
    rows, classes = table()
    density = KernelDensity.of(rows, classes, [0, 3, 2])
    x = torch.from_numpy(rows[:7])
    torch.testing.assert_close(torch.logsumexp(density.log_parts(x), 1), density.log_prob(x), rtol=1e-5, atol=1e-5)


def test_its_width_falls_as_rows_grow_and_it_approaches_the_truth():
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.normal(size=(2000, 1))).float()
    truth = float(stats.norm.logpdf(x.numpy()).mean())
    gaps, widths = [], []
    for n in (20, 2000):
        density = KernelDensity.of(rng.normal(size=(n, 1)))
        gaps.append(truth - float(density.log_prob(x).mean()))
        widths.append(float(density.factors))
    assert widths[1] < widths[0]
    assert abs(gaps[1]) < 0.02
    assert gaps[1] < gaps[0]


def test_rows_with_gaps_are_learned_from_and_drawn_without():
    rows, classes = table(200)
    rng = np.random.default_rng(4)
    gappy = np.where(rng.uniform(size=rows.shape) < 0.2, np.nan, rows)
    density = KernelDensity.of(gappy, classes, [0, 3, 2])
    assert np.isfinite(density.log_prob(torch.from_numpy(gappy).float()).numpy()).all()
    drawn = density.sample(4000, torch.Generator().manual_seed(0))
    assert not drawn.isnan().any()
    assert set(drawn[:, 1].tolist()) <= {0.0, 1.0, 2.0}
    error = 3 * float(drawn[:, 0].std()) * (4000**-0.5 + 200**-0.5)
    assert float(drawn[:, 0].mean()) == pytest.approx(rows[:, 0].mean(), abs=error)


def test_odd_rows_of_classes():
    """A class of one row, equal rows, one column of one value: the density is finite."""
    rows = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [5.0, 1.0]])
    density = KernelDensity.of(rows, np.array([0, 0, 0, 1]))
    assert torch.isfinite(density.log_prob(torch.from_numpy(rows).float())).all()
    only = KernelDensity.of(rows[:1])
    assert torch.isfinite(only.log_prob(torch.zeros(1, 2)))
    nothing = KernelDensity.of(np.zeros((3, 0)))
    torch.testing.assert_close(nothing.log_prob(torch.zeros(2, 0)), torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="at least one row"):
        KernelDensity.of(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="infinite"):
        KernelDensity.of(np.array([[np.inf]]))


def test_missing_cells_are_filled_as_the_density_says():
    """Of two correlated numbers and a category: the filled ones have the conditional moments."""
    rng = np.random.default_rng(5)
    z = rng.normal(size=(3000, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]])
    rows = np.column_stack([z, (z[:, 0] > 0).astype(float)])
    density = KernelDensity.of(rows, None, [0, 0, 2])
    n = 4000
    x = torch.tensor([[1.0, torch.nan, torch.nan]]).expand(n, -1)
    filled = density.fill(x, torch.Generator().manual_seed(0))
    assert not filled.isnan().any()
    assert (filled[:, 0] == 1).all()
    # The kernels widen and pull a little towards the middle: a tenth of a standard deviation is allowed for it.
    assert float(filled[:, 1].mean()) == pytest.approx(0.8, abs=0.1)
    assert float(filled[:, 1].std()) == pytest.approx(0.6, abs=0.1)
    assert float(filled[:, 2].mean()) > 0.9
    whole = torch.from_numpy(rows[:5])
    torch.testing.assert_close(density.fill(whole), whole)
