"""Chains in a generator's latent space: what they leave alone, and what they correct."""

import math

import pytest
import torch
from torch import nn

from parts import seeded
from thalweg.energies import (
    Energy,
    LatentCompletion,
    LatentSpaceEnergy,
    NoisyGenerator,
    VariationalAutoencoder,
)
from thalweg.inference import complete_draws
from thalweg.sampling import HMC, LatentSampler, run_chain


class Level(Energy):
    """The same energy everywhere."""

    def forward(self, x):
        return 3.0 + 0.0 * x.sum(-1)


class Ratio(Energy):
    """log N(x; 0, 1) - log N(x; m, s^2): what the best critic of a generator of N(0, 1) says against N(m, s^2)."""

    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x):
        return (0.5 * ((x - self.mean) / self.std).square() - 0.5 * x.square() + math.log(self.std)).sum(-1)


def test_the_energy_is_the_normal_ones_and_the_weighted_one_of_the_draw():
    generator = nn.Linear(3, 2).double()
    inner = Ratio(0.5, 2.0)
    z = torch.randn(4, 5, 3, generator=seeded(0), dtype=torch.float64)
    energy = LatentSpaceEnergy(generator, inner, 0.7)
    torch.testing.assert_close(energy(z), 0.5 * z.square().sum(-1) + 0.7 * inner(generator(z)))
    torch.testing.assert_close(energy.made(z), generator(z).detach())


def test_a_constant_energy_leaves_the_latent_numbers_normal():
    sampler = LatentSampler(nn.Identity(), Level(), 3, n_steps=200)
    z = sampler.chains(4000, seeded(0)).position
    assert (z.mean(0).abs() < 4 / math.sqrt(4000)).all()
    assert ((z.var(0) - 1).abs() < 4 * math.sqrt(2 / 4000)).all()


@pytest.mark.parametrize("kernel", [None, HMC(0.2, 5)])
def test_the_best_critic_of_a_generator_turns_its_draws_into_the_data(kernel):
    mean, std, n = 1.0, 0.5, 4000
    sampler = LatentSampler(nn.Identity(), Ratio(mean, std), 2, n_steps=300, kernel=kernel)
    x = sampler.draw(n, seeded(1))
    assert ((x.mean(0) - mean).abs() < 4 * std / math.sqrt(n)).all()
    assert ((x.var(0) / std**2 - 1).abs() < 4 * math.sqrt(2 / n)).all()


def test_the_weight_of_the_energy_is_that_asked_for():
    """At half the weight the draws have the density N(0, 1)^(1/2) N(m, s^2)^(1/2), normalised."""
    mean, std, n = 1.0, 0.5, 4000
    x = LatentSampler(nn.Identity(), Ratio(mean, std), 2, weight=0.5, n_steps=300).draw(n, seeded(1))
    precision = 0.5 * (1 + 1 / std**2)
    wanted = 0.5 * mean / std**2 / precision
    assert ((x.mean(0) - wanted).abs() < 4 / math.sqrt(precision * n)).all()
    assert ((x.var(0) * precision - 1).abs() < 4 * math.sqrt(2 / n)).all()


def test_batch_normalisation_neither_learns_from_chains_nor_couples_them():
    generator = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    generator.train()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    sampler = LatentSampler(generator, Ratio(0.0, 1.0), 2, n_steps=3)
    sampler.energy.train()
    z = torch.randn(6, 2, generator=seeded(2))
    torch.testing.assert_close(sampler.energy(z)[:1], sampler.energy(z[:1]))
    sampler.draw(8, seeded(3))
    for name, value in generator.state_dict().items():
        assert torch.equal(value, before[name]), name


# -- a part of a draw is known ----------------------------------------------------------------------------


def linear_generator(weight: torch.Tensor, shift: torch.Tensor, std: float) -> NoisyGenerator:
    network = nn.Linear(weight.shape[1], weight.shape[0]).double()
    with torch.no_grad():
        network.weight.copy_(weight)
        network.bias.copy_(shift)
    return NoisyGenerator(network, weight.shape[1], std).double()


@pytest.mark.parametrize("tilted", [False, True], ids=["no energy", "a slope"])
def test_completions_of_a_linear_generator_are_those_of_the_conditional_gaussian(tilted):
    """x = W z + b + noise: the entry that is not known is Gaussian given the others; a slope moves its mean."""
    weight = torch.tensor([[1.0, 0.5], [0.3, -1.0], [0.8, 0.2]], dtype=torch.float64)
    shift, std = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64), 0.4
    covariance = weight @ weight.T + std**2 * torch.eye(3, dtype=torch.float64)
    known, mask = torch.tensor([1.5, -0.2, 0.0], dtype=torch.float64), torch.tensor([True, True, False])
    gain = torch.linalg.solve(covariance[:2, :2], covariance[:2, 2])
    mean = shift[2] + gain @ (known[:2] - shift[:2])
    variance = covariance[2, 2] - gain @ covariance[:2, 2]
    slope = 0.7 if tilted else 0.0

    class Slope(Energy):
        def forward(self, x):
            return slope * x[..., 2]

    energy = LatentCompletion(
        linear_generator(weight, shift, std), known.expand(2000, 3), mask, Slope() if tilted else None
    )
    start = torch.randn(2000, 5, generator=seeded(), dtype=torch.float64)
    end = run_chain(HMC(0.25, 8), energy, start, 60, seeded(1)).position
    made = energy.made(end)
    assert torch.equal(made[:, :2], known[:2].expand(2000, 2))
    drawn, wanted = made[:, 2], mean - slope * variance
    assert abs(float(drawn.mean() - wanted)) < 4 * float((variance / 2000).sqrt())
    assert abs(float(drawn.var() / variance) - 1) < 4 * (2 / 2000) ** 0.5
    # The noise in the places of what is known means nothing and has variance 1.
    assert float(end[:, 2:4].var()) == pytest.approx(1.0, abs=0.1)


def test_a_completion_keeps_generator_and_energy_in_evaluation_mode():
    generator = NoisyGenerator(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), 2)
    energy = LatentCompletion(generator, torch.zeros(2, 3), torch.tensor([True, False, False]))
    assert not energy.train().generator.training


def test_completions_of_an_autoencoder_are_those_of_the_conditional_gaussian_however_it_encodes():
    """The encoder has not learned anything: the chains make up for it."""
    weight = torch.tensor([[1.0, 0.5], [0.3, -1.0], [0.8, 0.2]])
    shift, std = torch.tensor([0.5, -1.0, 2.0]), 0.4
    decoder = linear_generator(weight.double(), shift.double(), std).float()
    torch.manual_seed(0)
    autoencoder = VariationalAutoencoder(nn.Linear(3, 4), decoder)
    covariance = weight @ weight.T + std**2 * torch.eye(3)
    known, mask = torch.tensor([1.5, -0.2, 9.0]), torch.tensor([True, True, False])
    gain = torch.linalg.solve(covariance[:2, :2], covariance[:2, 2])
    mean = shift[2] + gain @ (known[:2] - shift[:2])
    variance = covariance[2, 2] - gain @ covariance[:2, 2]
    n = 2000
    filled = complete_draws(autoencoder, known.expand(n, 3), mask.expand(n, 3), generator=seeded(3))
    assert torch.equal(filled[:, :2], known[:2].expand(n, 2))
    assert abs(float(filled[:, 2].mean() - mean)) < 4 * float((variance / n).sqrt())
    assert abs(float(filled[:, 2].var() / variance) - 1) < 4 * (2 / n) ** 0.5
    plain = complete_draws(autoencoder, known.expand(n, 3), mask.expand(n, 3), noisy=False, generator=seeded(3))
    assert float(plain[:, 2].var()) < float(filled[:, 2].var()) - 0.5 * std**2
