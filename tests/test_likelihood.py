"""Likelihood on the unit box against log Z and bits that are known in closed form."""

import math

import numpy as np
import pytest
import torch

from thalweg.energies.base import Energy
from thalweg.energies.densities import UniformEnergy
from thalweg.energies.networks.labelled_perceptron import LabelledPerceptron
from thalweg.energies.unbounded import LogisticEnergy, LogitEnergy
from thalweg.evaluation.likelihood import annealed_likelihood


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(z: torch.Tensor) -> torch.Tensor:
    return 0.5 * torch.erfc(-z / math.sqrt(2))


class Bowls(Energy):
    """Images of independent pixels, each a Gaussian of its own cut off at 0 and 1; not normalised."""

    event_ndim = 3

    def __init__(self, height: int = 3, width: int = 4):
        super().__init__()
        generator = seeded(5)
        self.mean = 1.2 * torch.rand(1, height, width, generator=generator, dtype=torch.float64) - 0.1
        self.std = 0.2 + 0.3 * torch.rand(1, height, width, generator=generator, dtype=torch.float64)

    def forward(self, x):
        return 0.5 * ((x - self.mean) / self.std).square().sum((-3, -2, -1))

    def cells(self, edges: torch.Tensor, temperature: float) -> torch.Tensor:
        """Integrals of exp(-E / T) of one pixel between edges ``[n + 1]`` -> ``[1, H, W, n]``."""
        std = (math.sqrt(temperature) * self.std).unsqueeze(-1)
        below = normal((edges - self.mean.unsqueeze(-1)) / std)
        return below.diff() * std * math.sqrt(2 * math.pi)

    def log_normaliser(self, temperature: float) -> float:
        return float(self.cells(torch.tensor([0.0, 1.0], dtype=torch.float64), temperature).log().sum())

    def draw(self, n: int, temperature: float, n_levels: int) -> np.ndarray:
        """Grey levels by their exact probabilities."""
        cells = self.cells(torch.linspace(0, 1, n_levels + 1, dtype=torch.float64), temperature)
        levels = torch.multinomial(cells.flatten(0, -2), n, replacement=True, generator=seeded(6)).t()
        return levels.reshape(n, *self.mean.shape).numpy() / (n_levels - 1)


@pytest.mark.parametrize("temperature", [pytest.param(1.0, marks=pytest.mark.slow), 0.2])
@pytest.mark.parametrize("from_images", [False, True])
def test_log_z_of_cut_off_gaussians_is_bracketed_at_any_temperature(temperature, from_images):
    """Each way within four of its standard errors, and the two within a fifth of a nat."""
    energy, images = Bowls(), Bowls().draw(400, temperature, 17)
    start = images if from_images else None
    found = annealed_likelihood(energy, images, temperature, 17, start, 200, 100, seeded(1))
    truth = energy.log_normaliser(temperature)
    for side in (found.log_normaliser.lower, found.log_normaliser.upper):
        assert abs(side.estimate - truth) < 4 * side.standard_error + 1e-3
    assert abs(found.log_normaliser.width) < 0.2
    assert found.bits_width < 0.2 / 12 / math.log(2)
    # No density takes fewer bits than the true one, but for what the images differ by.
    assert found.base_bits > found.bits if from_images else found.base_bits == pytest.approx(math.log2(17))


@pytest.mark.parametrize("n_levels", [pytest.param(17, marks=pytest.mark.slow), 256])
def test_bits_per_dimension_are_those_of_the_levels_and_a_little_more(n_levels):
    """The expectation of -log2 p(x) over x = (level + u) / n_levels is an integral of one dimension. It is above
    the entropy of the levels, by less than 0.02 bits at 17 levels of a Gaussian this wide."""
    temperature = 1.0
    energy, images = Bowls(), Bowls().draw(2000, temperature, n_levels)
    found = annealed_likelihood(energy, images, temperature, n_levels, None, 200, 100, seeded(1))
    edges = torch.linspace(0, 1, n_levels + 1, dtype=torch.float64)
    mass = energy.cells(edges, temperature)
    mass = mass / mass.sum(-1, keepdim=True)
    entropy = -(mass * mass.log2()).sum(-1).mean()
    fine = (torch.arange(20 * n_levels, dtype=torch.float64) + 0.5) / (20 * n_levels)
    values = 0.5 * ((fine - energy.mean.unsqueeze(-1)) / energy.std.unsqueeze(-1)).square()
    by_cell = values.unflatten(-1, (n_levels, 20)).mean(-1)
    nats = (mass * by_cell).sum() + energy.log_normaliser(temperature)
    expected = float(nats) / 12 / math.log(2) + math.log2(n_levels)
    assert found.base_bits == pytest.approx(math.log2(n_levels), abs=1e-4)
    error = found.standard_error + found.log_normaliser.lower.standard_error
    assert abs(found.bits - expected) < 4 * error / 12 / math.log(2)
    assert 0 < expected - float(entropy) < 0.02
    assert found.mean == pytest.approx(float(found.log_prob.mean()))


def test_the_uniform_density_takes_all_bits_at_every_temperature():
    box = UniformEnergy(torch.zeros(1, 2, 2), torch.ones(1, 2, 2))
    images = np.random.RandomState(0).randint(0, 17, (5, 1, 2, 2)) / 16
    for temperature in (1.0, 0.01):
        found = annealed_likelihood(box, images, temperature, 17, n_chains=10, n_steps=5, generator=seeded())
        assert found.bits == pytest.approx(math.log2(17), abs=1e-5)
        assert found.standard_error < 1e-5
        assert found.bits_width < 1e-5


def test_a_marginal_over_labels_of_equal_energies_adds_the_log_of_their_number():
    energy = LabelledPerceptron((1, 2, 2), 5, (4,))
    for weight in energy.parameters():
        torch.nn.init.zeros_(weight)
    images = np.random.RandomState(0).randint(0, 256, (5, 1, 2, 2)) / 255
    marginal = energy.marginal(0.1)
    found = annealed_likelihood(marginal, images, 0.1, n_chains=10, n_steps=5, generator=seeded())
    assert found.log_normaliser.estimate == pytest.approx(math.log(5), abs=1e-4)
    assert found.bits == pytest.approx(8.0, abs=1e-5)


def test_the_gradient_over_logits_is_autograds_and_the_base_is_normalised_and_drawn():
    energy = LogitEnergy(Bowls(2, 2), (1, 2, 2))
    z = torch.randn(6, 3, 4, generator=seeded(), dtype=torch.float64)
    x = z.clone().requires_grad_(True)
    for made in (energy, energy.fixed()):
        value, grad = made.value_and_gradient(z)
        torch.testing.assert_close(value, energy(z))
        torch.testing.assert_close(grad, torch.autograd.grad(energy(x).sum(), x)[0])
    base = LogisticEnergy(4)
    z = z.float()
    torch.testing.assert_close(base(z), LogitEnergy(UniformEnergy(torch.zeros(4), torch.ones(4)), (4,))(z))
    value, grad = base.value_and_gradient(z)
    x = z.clone().requires_grad_(True)
    torch.testing.assert_close(grad, torch.autograd.grad(base(x).sum(), x)[0])
    uniform = torch.sigmoid(base.sample(5000, seeded()))
    assert abs(float(uniform.mean()) - 0.5) < 4 / math.sqrt(12 * 20_000)
    assert abs(float(uniform.square().mean()) - 1 / 3) < 4 * math.sqrt(4 / 45 / 20_000)
    grid = torch.linspace(-30, 30, 6001).unsqueeze(-1)
    assert float(torch.logsumexp(LogisticEnergy(1).log_prob(grid), 0)) + math.log(0.01) == pytest.approx(
        0, abs=1e-4
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": np.full((3, 1, 3, 4), 0.03)}, "whole numbers of 0 to 16, divided by 16"),
        ({"images": np.full((3, 1, 3, 4), 2.0)}, "whole numbers of 0 to 16"),
        ({"images": np.full((3, 1, 3, 4), np.nan)}, "whole numbers of 0 to 16"),
        ({"start": np.full((3, 1, 3, 4), 0.03)}, "whole numbers of 0 to 16"),
        ({"images": np.zeros((3, 4))}, "images must be at least two of 3 dimensions"),
        ({"images": np.zeros((1, 1, 3, 4))}, "images must be at least two"),
        ({"n_levels": 1}, "n_levels must be at least 2"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_words(change, words):
    settings = {"images": np.zeros((3, 1, 3, 4)), "n_levels": 17, "n_chains": 4, "n_steps": 2} | change
    with pytest.raises(ValueError, match=words):
        annealed_likelihood(Bowls(), **settings)
