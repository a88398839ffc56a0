"""Chains in a generator's latent space: what they leave alone, and what they correct."""

import math

import pytest
import torch
from torch import nn

from parts import seeded
from thalweg.energies import Energy, LatentSpaceEnergy
from thalweg.sampling import HMC, LatentSampler


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
