"""A Gaussian for each label with a few directions: its density, its draws, and how it is fitted."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from parts import seeded
from thalweg.energies import AnchoredEnergy, LabelledEnergy, mlp
from thalweg.energies.densities import ClassGaussians


def made() -> ClassGaussians:
    """Two labels, arrays of 2 x 3, two directions."""
    shapes = (2, 2, 3), (2, 2, 2, 3), (2, 2, 3)
    parts = [torch.randn(shape, generator=seeded(i), dtype=torch.float64) for i, shape in enumerate(shapes)]
    return ClassGaussians(parts[0], parts[1], 0.1 + parts[2].square())


def covariances(gaussians: ClassGaussians) -> torch.Tensor:
    directions = gaussians.directions.flatten(2)
    return directions.mT @ directions + torch.diag_embed(gaussians.variances.flatten(1))


def test_the_density_is_that_of_the_full_covariance():
    gaussians, labels = made(), torch.tensor([1, 0, 1])
    y = torch.randn(3, 4, 2, 3, generator=seeded(3), dtype=torch.float64)
    given = gaussians.given(labels)
    full = MultivariateNormal(gaussians.means.flatten(1), covariances(gaussians))
    wanted = torch.stack(
        [full.log_prob(y[:, j].flatten(1)[:, None])[torch.arange(3), labels] for j in range(4)], 1
    )
    torch.testing.assert_close(given.log_prob(y), wanted)
    torch.testing.assert_close(given.log_prob(y[:, 0]), wanted[:, 0])


def test_draws_have_the_mean_and_the_covariance_of_their_label():
    gaussians, n = made(), 40_000
    drawn = gaussians.draws(torch.tensor([1, 0]), n, seeded(4)).flatten(2)
    for row, label in enumerate((1, 0)):
        truth = covariances(gaussians)[label]
        error = (truth.diagonal() / n).sqrt()
        assert ((drawn[row].mean(0) - gaussians.means[label].flatten()).abs() < 4.5 * error).all()
        # Of a sample covariance, for Gaussians: var = (c_ij^2 + c_ii c_jj) / n.
        spread = ((truth.square() + truth.diagonal()[:, None] * truth.diagonal()) / n).sqrt()
        assert ((torch.cov(drawn[row].T) - truth).abs() < 4.5 * spread).all()


def test_draws_given_some_numbers_have_the_conditional_distribution_of_the_others():
    gaussians, n = made(), 40_000
    x = torch.randn(2, 2, 3, generator=seeded(8), dtype=torch.float64)
    known = torch.tensor([[[True, True, False], [False, True, False]], [[False] * 3, [True, False, True]]])
    labels = torch.tensor([1, 0])
    drawn = gaussians.draws_given(labels, x, known, n, seeded(9)).flatten(2)
    for row, label in enumerate(labels.tolist()):
        seen, cov = known[row].flatten(), covariances(gaussians)[label]
        mean = gaussians.means[label].flatten()
        gain = cov[~seen][:, seen] @ torch.linalg.inv(cov[seen][:, seen])
        wanted = mean[~seen] + gain @ (x[row].flatten() - mean)[seen]
        spread = cov[~seen][:, ~seen] - gain @ cov[seen][:, ~seen]
        found = drawn[row][:, ~seen]
        assert ((found.mean(0) - wanted).abs() < 4.5 * (spread.diagonal() / n).sqrt()).all()
        error = ((spread.square() + spread.diagonal()[:, None] * spread.diagonal()) / n).sqrt()
        assert ((torch.cov(found.T) - spread).abs() < 4.5 * error).all()


@pytest.mark.parametrize("n", [4, 200])
def test_it_keeps_the_variances_of_every_number_and_the_leading_covariances(n):
    """Of few rows and of many, which are decomposed differently."""
    x = (
        torch.randn(n, 6, generator=seeded(0), dtype=torch.float64)
        @ torch.randn(6, 6, generator=seeded(1)).double()
    )
    fitted = ClassGaussians.fit(x, n_directions=3, least_std=0.2)
    torch.testing.assert_close(fitted.means[0], x.mean(0))
    found, truth = covariances(fitted)[0], torch.cov(x.T)
    torch.testing.assert_close(found.diagonal(), truth.diagonal() + 0.04)
    values, basis = torch.linalg.eigh(truth)
    leading = basis[:, -3:] @ torch.diag(values[-3:]) @ basis[:, -3:].T
    directions = fitted.directions[0]
    torch.testing.assert_close(directions.T @ directions, leading)


def test_every_label_has_its_own_even_of_one_row():
    x = torch.randn(21, 2, 3, generator=seeded(0))
    labels = torch.cat([torch.zeros(20), torch.ones(1)])
    fitted = ClassGaussians.fit(x, labels, least_std=0.1)
    torch.testing.assert_close(fitted.means[1], x[20])
    torch.testing.assert_close(fitted.variances[1], torch.full((2, 3), 0.01))
    assert fitted.directions.shape == (2, 6, 2, 3)
    assert math.isclose(float(fitted.directions[1].abs().max()), 0.0)
    torch.testing.assert_close(fitted.means[0], x[:20].mean(0))


# -- an energy anchored at them ----------------------------------------------------------------------------


def anchored() -> AnchoredEnergy:
    gaussians = ClassGaussians(
        *(torch.randn(s, generator=seeded(4)) for s in ((3, 2), (3, 1, 2))), torch.ones(3, 2)
    )
    torch.manual_seed(0)
    return AnchoredEnergy(LabelledEnergy(mlp([2, 8, 3])), gaussians, 0.3).double()


def test_the_energy_of_a_label_is_the_networks_and_the_weighted_gaussians():
    energy, x = anchored(), torch.randn(6, 4, 2, generator=seeded(5), dtype=torch.float64)
    labels = torch.tensor([2, 0, 1, 1, 0, 2])
    every = energy.energies(x)
    logs = torch.stack([energy.gaussians.given(torch.full((6,), k)).log_prob(x) for k in range(3)], -1)
    torch.testing.assert_close(every, energy.learned.energies(x) - 0.3 * logs)
    given = energy.of_inputs().given(labels)
    torch.testing.assert_close(given(x), every[torch.arange(6), :, labels])
    torch.testing.assert_close(given.fixed().gradient(x), -given.score(x).detach())


def test_far_away_the_gaussians_decide():
    """Whatever the network says there, which grows no faster than a straight line."""
    energy = anchored()
    far = 1e4 * torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    logs = torch.stack([energy.gaussians.given(torch.full((2,), k)).log_prob(far) for k in range(3)], -1)
    torch.testing.assert_close(energy.energies(far), -0.3 * logs, rtol=1e-2, atol=0)


def test_loaded_gaussians_have_the_density_of_those_that_were_saved():
    source, other = made(), made()
    other.load_state_dict({name: 2 * value for name, value in source.state_dict().items()})
    y = torch.randn(2, 2, 3, generator=seeded(7), dtype=torch.float64)
    labels = torch.tensor([0, 1])
    wanted = ClassGaussians(2 * source.means, 2 * source.directions, 2 * source.variances)
    torch.testing.assert_close(other.given(labels)(y), wanted.given(labels)(y))
