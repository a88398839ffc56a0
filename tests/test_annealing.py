"""Annealed importance sampling against log Z that is known, from both sides."""

import math

import pytest
import torch

from thalweg.energies import (
    Energy,
    GaussianEnergy,
    GaussianMixtureEnergy,
    MixtureDensity,
    NetworkEnergy,
    PerceptronEnergy,
    UniformEnergy,
    mlp,
)
from thalweg.sampling.annealing import (
    Bracket,
    annealed_importance_sampling,
    bracket_log_normaliser,
    resampled_ends,
    reverse_annealed_importance_sampling,
    step_sizes,
    summarised,
)
from thalweg.sampling.hmc import HMC


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Lowered(Energy):
    """A normalised energy less a constant: log Z is that constant."""

    def __init__(self, energy: Energy, by: float):
        super().__init__()
        self.energy, self.by = energy, by
        self.event_ndim = energy.event_ndim

    def forward(self, x):
        return self.energy(x) - self.by

    def value_and_gradient(self, x):
        value, grad = self.energy.value_and_gradient(x)
        return value - self.by, grad


def mixture(d: int) -> GaussianMixtureEnergy:
    """Three Gaussians of their own widths, some four deviations apart in any dimension."""
    generator = seeded(d)
    means = 4 * torch.randn(3, d, generator=generator) / math.sqrt(d)
    return GaussianMixtureEnergy(means, 0.5 + 0.5 * torch.rand(3, d, generator=generator))


def long_trajectories(beta: float) -> HMC:
    return HMC(0.4, 3)


@pytest.mark.parametrize(
    ("d", "n_chains", "n_steps", "from_data"),
    [
        (2, 400, 100, True),
        (10, 400, 200, False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((10, 400, 200, True), (50, 400, 300, True))),
    ],
)
def test_both_sides_bracket_the_log_normaliser_of_a_mixture(d, n_chains, n_steps, from_data):
    """To 0.05 nats, and each bound to three of its standard errors. Without draws of the energy itself the
    way back starts where the way there ended."""
    target, truth = mixture(d), 3.0
    base = GaussianMixtureEnergy.from_moments(target.sample(2000, seeded(1)))
    samples = target.sample(n_chains, seeded(2)) if from_data else None
    found = bracket_log_normaliser(Lowered(target, truth), base, samples, n_chains, n_steps, generator=seeded(3))
    assert abs(found.estimate - truth) < 0.05
    assert found.lower.estimate - 3 * found.lower.standard_error < truth
    assert found.upper.estimate + 3 * found.upper.standard_error > truth
    assert found.width == found.upper.estimate - found.lower.estimate
    for side in (found.lower, found.upper):
        assert abs(side.estimate - truth) < 0.1
        assert side.standard_error < 0.05
        assert n_chains / 3 < side.effective_sample_size <= n_chains
        assert side.log_weights.shape == (n_chains,)
        assert side.position.shape == (n_chains, d)


@pytest.mark.parametrize("by", [0.0, 2.5])
def test_from_a_density_to_itself_is_exact_and_has_no_variance(by):
    base = mixture(3)
    energy = Lowered(base, by)
    forward = annealed_importance_sampling(energy, base, 20, 10, long_trajectories, seeded())
    back = reverse_annealed_importance_sampling(energy, base, base.sample(20, seeded()), 10, long_trajectories)
    for found in (forward, back):
        assert found.estimate == pytest.approx(by, abs=1e-5)
        assert found.standard_error < 1e-6
        assert found.effective_sample_size == pytest.approx(20)


def narrow_gaussian() -> tuple[GaussianEnergy, GaussianMixtureEnergy, float]:
    """Of a deviation of 0.4, not normalised, a base twice and a half as wide, and log Z."""
    energy = GaussianEnergy(torch.full((2,), 0.5), torch.full((2,), 0.4))
    return energy, GaussianMixtureEnergy(torch.zeros(1, 2), torch.ones(1, 2)), float(energy.log_normaliser)


def mean_and_error(log_weights: torch.Tensor) -> tuple[float, float]:
    weights = log_weights.exp()
    return float(weights.mean()), float(weights.std()) / math.sqrt(len(weights))


@pytest.mark.parametrize("n_steps", [1, 2, 3, 8])
def test_the_weights_average_to_z_for_any_number_of_bridges(n_steps):
    energy, base, log_z = narrow_gaussian()
    found = annealed_importance_sampling(energy, base, 20_000, n_steps, long_trajectories, seeded())
    mean, error = mean_and_error(found.log_weights)
    assert abs(mean - math.exp(log_z)) < 4 * error
    assert found.estimate == pytest.approx(math.log(mean), abs=1e-6)
    assert found.standard_error == pytest.approx(error / mean, rel=1e-3)


@pytest.mark.parametrize("n_steps", [2, 3, 8])
def test_the_weights_of_the_way_back_average_to_one_over_z(n_steps):
    """To a base narrower than the energy, or the weights would have no variance to speak of."""
    energy, _, log_z = narrow_gaussian()
    base = GaussianMixtureEnergy(torch.full((1, 2), 0.5), torch.full((1, 2), 0.3))
    draws = energy.mean + energy.std * torch.randn(20_000, 2, generator=seeded(1))
    found = reverse_annealed_importance_sampling(energy, base, draws, n_steps, long_trajectories, seeded())
    mean, error = mean_and_error(found.log_weights)
    assert abs(mean - math.exp(-log_z)) < 4 * error
    assert found.estimate == pytest.approx(-math.log(mean), abs=1e-6)


def test_a_single_step_is_plain_importance_sampling():
    energy, base, _ = narrow_gaussian()
    found = annealed_importance_sampling(energy, base, 50, 1, long_trajectories, seeded())
    draws = base.sample(50, seeded())
    assert torch.equal(found.position, draws)
    torch.testing.assert_close(found.log_weights, (base(draws) - energy(draws)).double())


def test_a_weight_is_taken_before_the_step_and_not_after():
    """With one bridge halfway, where the chains stand afterwards is known: weights from there are off by far."""
    energy, base, log_z = narrow_gaussian()
    found = annealed_importance_sampling(energy, base, 20_000, 2, long_trajectories, seeded())
    at_the_end = (base(found.position) - energy(found.position)).double()
    assert abs(found.estimate - log_z) < 4 * found.standard_error
    mean, error = mean_and_error(at_the_end)
    assert abs(mean - math.exp(log_z)) > 20 * error
    start = base.sample(20_000, seeded())
    at_the_start = (base(start) - energy(start)).double()
    torch.testing.assert_close(found.log_weights, 0.5 * at_the_start + 0.5 * at_the_end)


def test_the_standard_error_is_what_the_estimates_vary_by():
    """Over 80 runs the mean of (error / standard error)^2 is 1, to four times sqrt(2 / 80)."""
    energy, base, log_z = narrow_gaussian()
    scores = []
    for seed in range(80):
        found = annealed_importance_sampling(energy, base, 200, 5, long_trajectories, seeded(seed))
        scores.append((found.estimate - log_z) / found.standard_error)
    scores = torch.tensor(scores)
    assert abs(float(scores.square().mean()) - 1) < 4 * math.sqrt(2 / 80)
    assert float((scores.abs() < 2).float().mean()) > 0.95 - 4 * math.sqrt(0.95 * 0.05 / 80)


def test_more_bridges_bring_the_bounds_together():
    energy, base, _ = narrow_gaussian()
    errors = [
        annealed_importance_sampling(energy, base, 500, n, long_trajectories, seeded()).standard_error
        for n in (1, 10, 100)
    ]
    assert errors[0] > 1.5 * errors[1] > 3 * errors[2]


def test_the_chains_weighted_are_draws_of_the_energy():
    energy, base, _ = narrow_gaussian()
    found = annealed_importance_sampling(energy, base, 5000, 20, long_trajectories, seeded())
    weights = (found.log_weights - found.log_weights.max()).exp()[:, None]
    weights = weights / weights.sum()
    mean = (weights * found.position).sum(0)
    variance = (weights * (found.position - 0.5).square()).sum(0)
    n = found.effective_sample_size
    assert ((mean - 0.5).abs() < 4 * 0.4 / math.sqrt(n)).all()
    assert ((variance - 0.16).abs() < 4 * 0.16 * math.sqrt(2 / n)).all()


def test_ends_are_drawn_by_their_weights():
    """Within 5 standard errors of each one's share, in any number of draws."""
    log_weights = torch.tensor([0.1, 0.2, 0.3, 0.4]).log() + 7.0
    found = summarised(log_weights, torch.arange(4.0)[:, None])
    drawn = resampled_ends(found, 20_000, seeded())[:, 0]
    for place, share in enumerate((0.1, 0.2, 0.3, 0.4)):
        assert float((drawn == place).float().mean()) == pytest.approx(share, abs=5 * math.sqrt(share / 20_000))


def test_what_weights_say_of_the_normaliser():
    """Weights 1, 2, 3 and 6 times e^500: their mean is 3, its standard error that of a mean, relative to it."""
    weights = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    found = summarised(weights.log() + 500, torch.zeros(4, 1))
    assert found.estimate == pytest.approx(math.log(3) + 500)
    assert found.standard_error == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3) / 2 / 3)
    assert found.effective_sample_size == pytest.approx(144 / 50)
    back = summarised(weights.log() + 500, torch.zeros(4, 1), -1.0)
    assert back.estimate == pytest.approx(-math.log(3) - 500)


def test_the_spread_is_that_of_four_groups_of_consecutive_chains():
    """Groups with starts of their own that do not mix differ, whatever the order within them."""
    levels, within = torch.tensor([0.0, 1.0, 2.0, 4.0]), torch.randn(10, generator=seeded()).double()
    groups = levels[:, None].double() + torch.stack([within[torch.randperm(10)] for _ in range(4)])
    found = summarised(groups.flatten(), torch.zeros(40, 1))
    assert found.spread == pytest.approx(float(levels.std()))
    # Those too many for groups of one size are left out; with fewer than two in a group there is none.
    longer = torch.cat([groups.flatten(), torch.tensor([50.0, -50.0])])
    assert summarised(longer, torch.zeros(42, 1)).spread == pytest.approx(float(levels.std()))
    assert summarised(longer[:7], torch.zeros(7, 1)).spread == 0


def test_a_bracket_lies_between_its_bounds_and_never_below_the_lower_one():
    low, high = (summarised(torch.full((20,), v), torch.zeros(20, 1)) for v in (2.0, 5.0))
    assert Bracket(low, high).estimate == pytest.approx(3.5)
    assert Bracket(low, high).error == pytest.approx(1.5)
    assert Bracket(high, low).estimate == pytest.approx(5.0)
    assert Bracket(high, low).error == pytest.approx(1.5)
    spread = summarised(torch.linspace(0, 1, 40), torch.zeros(40, 1))
    assert Bracket(spread, spread).error == pytest.approx(max(2 * spread.standard_error, spread.spread))


def test_images_are_led_from_a_uniform_density():
    """A unit Gaussian of four pixels; beyond five deviations lies 2e-6 of its mass."""

    class Image(Energy):
        event_ndim = 3

        def forward(self, x):
            return 0.5 * x.square().sum((-3, -2, -1))

    base = UniformEnergy(torch.full((1, 2, 2), -5.0), torch.full((1, 2, 2), 5.0))
    found = annealed_importance_sampling(Image(), base, 200, 100, generator=seeded())
    assert found.position.shape == (200, 1, 2, 2)
    assert found.standard_error < 0.1
    assert abs(found.estimate - 2 * math.log(2 * math.pi)) < 4 * found.standard_error


def test_step_sizes_follow_the_width_of_the_bridge():
    """From a deviation of 10 to one of 0.1, where a step of HMC shrinks a hundredfold with it."""
    energy = GaussianEnergy(torch.zeros(3), torch.full((3,), 0.1))
    base = GaussianMixtureEnergy(torch.zeros(1, 3), torch.full((1, 3), 10.0))
    kernel_at = step_sizes(energy, base, generator=seeded())
    wide, narrow = kernel_at(1e-9).step_size, kernel_at(1.0).step_size
    assert 30 < wide / narrow < 300
    middle = kernel_at(0.5).step_size
    assert narrow < middle < wide


def test_annealing_follows_its_generator_and_leaves_no_gradient():
    energy = PerceptronEnergy(2, (8,))
    bowl = energy + GaussianEnergy(torch.zeros(2), torch.ones(2))
    base = GaussianMixtureEnergy(torch.zeros(1, 2), torch.ones(1, 2))
    global_state = torch.get_rng_state()
    first, second = (annealed_importance_sampling(bowl, base, 20, 20, generator=seeded(4)) for _ in range(2))
    assert torch.equal(first.log_weights, second.log_weights)
    assert torch.equal(first.position, second.position)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert not first.log_weights.requires_grad
    assert all(w.grad is None for w in energy.parameters())


def test_spaces_that_differ_and_a_base_that_does_not_cover_are_refused_in_words():
    energy, base, _ = narrow_gaussian()
    images = UniformEnergy(torch.zeros(1, 2, 2), torch.ones(1, 2, 2))
    with pytest.raises(ValueError, match="different spaces"):
        annealed_importance_sampling(energy, images, 10, 10, generator=seeded())
    box = UniformEnergy(torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match="energies that are not finite"):
        annealed_importance_sampling(box, base, 10, 10, long_trajectories, seeded())
    outside = torch.full((5, 2), 3.0)
    with pytest.raises(ValueError, match="energies that are not finite"):
        reverse_annealed_importance_sampling(energy, box, outside, 10, long_trajectories, seeded())


@pytest.mark.parametrize(
    "anneal",
    [
        lambda given, base: annealed_importance_sampling(given, base, 20, 5, long_trajectories),
        lambda given, base: annealed_importance_sampling(2.0 * given, base, 20, 5),
        lambda given, base: reverse_annealed_importance_sampling(
            given, base, torch.zeros(20, 1), 5, long_trajectories
        ),
        lambda given, base: bracket_log_normaliser(given, base, None, 20, 5),
    ],
    ids=["forward", "of a sum", "back", "both"],
)
def test_more_than_one_row_of_x_is_refused_in_words(anneal):
    """As many rows as chains would pass for a batch of chains, and mix their normalisers."""
    given = MixtureDensity(mlp([2, 8]), 8, n_components=2).given(torch.randn(20, 2, generator=seeded()))
    base = GaussianMixtureEnergy(torch.zeros(1, 1), torch.ones(1, 1))
    with pytest.raises(ValueError, match=r"MixtureDensity is given 20 rows of x.*one row at a time"):
        anneal(given, base)
    with pytest.raises(TypeError, match=r"MixtureDensity is conditional.*energy.given\(x\)"):
        bracket_log_normaliser(given.parent, base)


@pytest.mark.parametrize("kind", [MixtureDensity, NetworkEnergy])
def test_one_row_of_x_at_a_time_is_annealed(kind):
    torch.manual_seed(0)
    energy = MixtureDensity(mlp([2, 8]), 8) if kind is MixtureDensity else NetworkEnergy(mlp([2, 8]), 8, 1)
    given = energy.given(torch.randn(3, 2, generator=seeded()))
    base = GaussianMixtureEnergy(torch.zeros(1, 1), 2 * torch.ones(1, 1))
    bounded = base + given.rows(slice(1, 2))
    found = annealed_importance_sampling(bounded, base, 500, 30, generator=seeded())
    y = torch.linspace(-20, 20, 4001).unsqueeze(-1)
    with torch.no_grad():
        values = bounded(y)
    truth = float(torch.logsumexp(-values, 0)) + math.log(0.01)
    assert abs(found.estimate - truth) < 4 * found.standard_error + 1e-4
