"""Noisy generators and variational autoencoders, against probabilistic PCA, whose density is known."""

import copy
import math

import pytest
import torch
from torch import nn

from parts import ORTHOGONAL, SHIFT, linear_generator, marginal_of, posterior_precision, seeded
from thalweg.energies import (
    FromBothNoises,
    NoisyGenerator,
    PerceptronEnergy,
    VariationalAutoencoder,
    generating_network,
    variational_autoencoder,
)
from thalweg.energies.networks import variational
from thalweg.objectives import Batch, EvidenceBound
from thalweg.training import Plan, Trainer

STD = 0.5


def exact(n_draws: int = 4, weight: torch.Tensor = ORTHOGONAL) -> VariationalAutoencoder:
    """Probabilistic PCA, with the posterior for an encoder."""
    decoder = linear_generator(weight, SHIFT, STD)
    precision, n = posterior_precision(decoder), weight.shape[1]
    encoder = nn.Linear(3, 2 * n).double()
    with torch.no_grad():
        encoder.weight[:n] = torch.linalg.solve(precision, weight.T) / STD**2
        encoder.weight[n:] = 0.0
        encoder.bias[:n] = -encoder.weight[:n] @ SHIFT
        encoder.bias[n:] = -0.5 * precision.diagonal().log()
    return VariationalAutoencoder(encoder, decoder, n_draws=n_draws).double()


def wrong(n_draws: int) -> VariationalAutoencoder:
    """The same with a posterior that is too wide, and beside where it should be."""
    energy = exact(n_draws)
    with torch.no_grad():
        energy.encoder.bias += torch.tensor([0.3, -0.2, 0.3, 0.3])
    return energy


def rows(n: int, seed: int = 1) -> torch.Tensor:
    return linear_generator(ORTHOGONAL, SHIFT, STD).draw(n, seeded(seed)).detach()


# -- noisy generators -------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [0.011, 0.1, 0.9])
def test_the_noise_starts_as_asked_and_stays_between_its_bounds(std):
    generator = NoisyGenerator(nn.Linear(2, 3), 2, std, least=0.01, most=1.0)
    assert float(generator.log_std.detach().exp()) == pytest.approx(std, rel=1e-4)
    found = []
    for place in (-1e4, -30.0, -1.0, 0.0, 1.0, 30.0, 1e4):
        generator.place.data.fill_(place)
        found.append(float(generator.log_std.detach().exp()))
    assert found == sorted(found)
    assert found[0] == pytest.approx(0.01, rel=1e-5)
    assert found[3] == pytest.approx(0.1, rel=1e-5)
    assert found[-1] == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("std", [0.0, 0.01, 1.0, -0.5, math.nan])
def test_a_std_that_is_not_between_its_bounds_is_refused(std):
    with pytest.raises(ValueError, match="std must be between least and most"):
        NoisyGenerator(nn.Linear(2, 3), 2, std)


@pytest.mark.parametrize("event", [(3,), (2, 4, 4)], ids=str)
def test_the_density_given_z_is_the_normal_one(event):
    generator = NoisyGenerator(generating_network(event, 2, (6,)), 2, 0.3).double()
    means = generator(torch.randn(5, 2, generator=seeded(), dtype=torch.float64))
    x = torch.rand(5, *event, generator=seeded(1), dtype=torch.float64)
    wanted = torch.distributions.Normal(means, generator.log_std.exp()).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(generator.log_prob_given(x, means), wanted)


def test_draws_of_a_linear_generator_have_the_moments_of_probabilistic_pca():
    generator, n = linear_generator(ORTHOGONAL, SHIFT, STD), 40_000
    drawn = generator.draw(n, seeded(2)).detach()
    wanted = marginal_of(generator).covariance_matrix.detach()
    variances = wanted.diagonal()
    assert ((drawn.mean(0) - SHIFT).abs() < 4 * (variances / n).sqrt()).all()
    errors = ((wanted.square() + torch.outer(variances, variances)) / n).sqrt()
    assert ((torch.cov(drawn.T) - wanted).abs() < 4 * errors).all()


@pytest.mark.parametrize("event", [(3,), (2, 4, 4)], ids=str)
def test_draws_are_a_map_of_both_their_noises(event):
    generator = NoisyGenerator(generating_network(event, 2, (6,), normalise=False), 2, 0.3)
    size = math.prod(event)
    z, own = torch.randn(5, 2, generator=seeded()), torch.randn(5, size, generator=seeded(1))
    made = FromBothNoises(generator)(torch.cat([z, own], 1))
    torch.testing.assert_close(made, generator(z) + 0.3 * own.reshape(5, *event))
    # The generator draws z first, and then the noise.
    numbers = seeded(4)
    z = torch.randn(5, 2, generator=numbers)
    own = torch.randn(5, *event, generator=numbers).flatten(1)
    torch.testing.assert_close(generator.draw(5, seeded(4)), FromBothNoises(generator)(torch.cat([z, own], 1)))


# -- variational autoencoders -----------------------------------------------------------------------------


def test_with_the_exact_posterior_the_energy_is_the_negative_log_likelihood_whatever_the_noise():
    x = 3 * rows(20)
    for n_draws in (1, 7):
        energy = exact(n_draws)
        torch.testing.assert_close(energy(x), -marginal_of(energy.decoder).log_prob(x))
        energy.noise.normal_(generator=seeded(2))
        torch.testing.assert_close(energy(x), -marginal_of(energy.decoder).log_prob(x))


def test_with_the_exact_posterior_the_bound_is_the_negative_log_likelihood_on_average():
    energy, n = exact(), 4000
    x = 2 * rows(5)
    found = energy.negative_bound(x.repeat(n, 1), seeded(3)).detach().reshape(n, 5)
    wanted = -marginal_of(energy.decoder).log_prob(x).detach()
    assert ((found.mean(0) - wanted).abs() < 4 * found.std(0) / math.sqrt(n)).all()


def test_the_bound_is_above_by_the_divergence_of_the_posterior():
    """E over the noise of the negative bound is -log p(x) + KL(q(z|x) || p(z|x)), here the same for every x."""
    energy, other = exact(), wrong(4)
    x = rows(1, 3).expand(20_000, 3)
    apart = (other.negative_bound(x, seeded(5)) - energy.negative_bound(x, seeded(5))).detach()
    found, right = (
        torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
        for mean, log_std in (other.posterior(x[:1]), energy.posterior(x[:1]))
    )
    wanted = float(torch.distributions.kl_divergence(found, right).detach())
    assert float(apart.mean()) == pytest.approx(wanted, abs=4 * float(apart.std()) / math.sqrt(len(x)))


def test_the_energy_of_a_wrong_posterior_is_too_high_and_falls_with_more_draws():
    """The mean over groups of draws is at least what all of them give; with single draws it is too high."""
    x, noise = rows(50, 3), torch.randn(2048, 2, generator=seeded(8), dtype=torch.float64)
    right, before = exact()(x).detach(), None
    for n_draws in (1, 8, 64):
        energy, above = wrong(n_draws), []
        for part in noise.split(n_draws):
            energy.noise.copy_(part)
            above.append(energy(x).detach() - right)
        found = torch.stack(above)
        assert before is None or bool((found.mean(0) < before).all())
        before = found.mean(0)
        of_all = found.mean(1)
        assert float(of_all.mean()) > -4 * float(of_all.std()) / math.sqrt(len(of_all))
        if n_draws == 1:
            assert float(of_all.mean()) > 4 * float(of_all.std()) / math.sqrt(len(of_all))
    assert float(before.abs().mean()) < 0.05


def test_the_mean_of_the_weights_is_the_density_whatever_the_posterior():
    x = rows(6, 3)
    energy, right = wrong(5), exact()(x).detach()
    ratios = []
    for seed in range(400):
        energy.noise.copy_(torch.randn(5, 2, generator=seeded(seed), dtype=torch.float64))
        ratios.append((right - energy(x).detach()).exp())
    found = torch.stack(ratios)
    assert ((found.mean(0) - 1).abs() < 4 * found.std(0) / math.sqrt(400)).all()


def test_the_same_configuration_has_the_same_energy_every_time_and_in_every_batch(monkeypatch):
    energy = variational_autoencoder((1, 4, 4), 3, (8,), n_draws=6)
    x = torch.rand(2, 5, 1, 4, 4, generator=seeded())
    torch.manual_seed(1)
    first = energy(x)
    torch.manual_seed(2)
    assert torch.equal(energy(x), first)
    assert first.shape == (2, 5)
    torch.testing.assert_close(energy(x[1, 3]), first[1, 3])
    torch.testing.assert_close(copy.deepcopy(energy)(x), first)
    torch.testing.assert_close(variational_autoencoder((1, 4, 4), 3, (8,), n_draws=6).noise, energy.noise)
    # Two rows at a time, and one.
    monkeypatch.setattr(variational, "_ROWS_AT_ONCE", 12)
    torch.testing.assert_close(energy(x), first)
    monkeypatch.setattr(variational, "_NUMBERS_AT_ONCE", 100)
    torch.testing.assert_close(energy(x), first)
    assert energy(x[:0]).shape == (0, 5)


def test_a_reconstruction_is_what_the_decoder_makes_of_the_posteriors_means():
    energy, x = exact(), rows(5)
    precision = posterior_precision(energy.decoder)
    means = torch.linalg.solve(precision, ORTHOGONAL.T @ (x - SHIFT).T / STD**2).T
    torch.testing.assert_close(energy.reconstruct(x), means @ ORTHOGONAL.T + SHIFT)


@pytest.mark.parametrize("size", [-1e4, 1e4])
def test_an_encoder_that_is_far_off_has_a_finite_bound(size):
    energy = exact()
    with torch.no_grad():
        energy.encoder.bias[2:] = size
    assert bool(torch.isfinite(energy.negative_bound(rows(5), seeded())).all())
    assert bool(torch.isfinite(energy(rows(5))).all())


# -- the bound as an objective ----------------------------------------------------------------------------


def test_training_by_the_bound_reaches_the_likelihood_of_probabilistic_pca():
    """Whose best parameters are known: the noise has the mean of the eigenvalues that are left out."""
    generator = linear_generator(torch.tensor([[1.0], [0.7], [-0.5]], dtype=torch.float64), SHIFT, 0.4)
    data = generator.draw(2000, seeded(3)).detach()
    values, vectors = torch.linalg.eigh(torch.cov(data.T, correction=0))
    noise = values[:2].mean()
    best = linear_generator((values[2] - noise).sqrt() * vectors[:, 2:], data.mean(0), float(noise.sqrt()))
    wanted = float(-marginal_of(best).log_prob(data).mean().detach())

    torch.manual_seed(0)
    energy = VariationalAutoencoder(nn.Linear(3, 2), NoisyGenerator(nn.Linear(1, 3), 1, 0.9), n_draws=32)
    plan = Plan(max_epochs=100, max_steps=400, batch_size=250, learning_rate=0.03, seed=0)
    history = Trainer(plan).fit(energy, EvidenceBound(), Batch(None, data.float()))
    assert not history.events
    with torch.no_grad():
        found = float(energy(data.float()).mean())
        std = float(energy.decoder.log_std.exp())
    assert wanted - 1e-3 < found < wanted + 0.02
    assert std == pytest.approx(float(noise.sqrt()), rel=0.05)
    assert history.epochs[-1]["standard deviation of the decoder"] == pytest.approx(std, rel=0.01)


def test_the_gradient_with_the_exact_posterior_is_that_of_the_likelihood():
    energy, x = exact(), rows(8, 7)
    weights = list(energy.decoder.parameters())
    wanted = torch.autograd.grad(-marginal_of(energy.decoder).log_prob(x).mean(), weights)
    found: list[list[torch.Tensor]] = [[] for _ in weights]
    for seed in range(400):
        value = EvidenceBound()(energy, Batch(None, x), seeded(seed)).value
        for kept, gradient in zip(found, torch.autograd.grad(value, weights), strict=True):
            kept.append(gradient)
    for kept, exactly in zip(found, wanted, strict=True):
        each = torch.stack(kept)
        assert ((each.mean(0) - exactly).abs() < 4 * each.std(0) / math.sqrt(400) + 1e-9).all()


def test_rounded_data_are_spread_over_the_cells_that_they_were_rounded_to():
    energy, x, width = exact(), rows(50), 0.5
    numbers = seeded(6)
    spread = x + width * (torch.rand(x.shape, generator=numbers) - 0.5)
    assert float((spread - x).abs().max()) <= width / 2
    wanted = energy.negative_bound(spread, numbers)
    torch.testing.assert_close(EvidenceBound(width).per_row(energy, Batch(None, x), seeded(6)), wanted)
    plain = energy.negative_bound(x, seeded(6))
    torch.testing.assert_close(EvidenceBound().per_row(energy, Batch(None, x), seeded(6)), plain)


def test_the_bound_refuses_energies_that_are_no_variational_autoencoders():
    batch = Batch(None, torch.zeros(4, 2))
    for ask in (EvidenceBound().check, lambda e, b: EvidenceBound()(e, b, seeded())):
        with pytest.raises(TypeError, match="trains a VariationalAutoencoder, got PerceptronEnergy"):
            ask(PerceptronEnergy(2, (4,)), batch)
    EvidenceBound().check(variational_autoencoder((2,), 1, (4,)), batch)
    with pytest.raises(TypeError, match="must have no x"):
        EvidenceBound().check(variational_autoencoder((2,), 1, (4,)), Batch(torch.zeros(4, 1), torch.zeros(4, 2)))
