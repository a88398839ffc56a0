"""Chains against distributions known in closed form; tolerances from the chains' own spread."""

import math

import pytest
import torch
from torch import nn

from thalweg.energies import (
    ConditionalModuleEnergy,
    Energy,
    GaussianEnergy,
    GaussianMixtureEnergy,
    NetworkEnergy,
    PerceptronEnergy,
    UniformEnergy,
    mlp,
)
from thalweg.sampling.adaptation import TARGETS, adapt_step_size
from thalweg.sampling.buffer import FromData, FromNoise, ReplayBuffer
from thalweg.sampling.chain import Place, accept, initial_state, run_chain, sample_chain
from thalweg.sampling.diagnostics import diagnose
from thalweg.sampling.hmc import HMC
from thalweg.sampling.langevin import MALA, ColdLangevin, Langevin
from thalweg.sampling.random_walk import RandomWalk
from thalweg.sampling.tempering import ParallelTempering, geometric_temperatures

KERNELS = [
    Langevin(0.1),
    MALA(0.1),
    ColdLangevin(0.1, 0.01, clip_grad=0.5, low=-3.0, high=3.0),
    HMC(0.3, 4),
    RandomWalk(0.5),
]
kernels = pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: type(k).__name__)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perturbed(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=seeded(3)))
    return module


def unit_gaussian(k: int = 1) -> GaussianEnergy:
    return GaussianEnergy(torch.zeros(k), torch.ones(k))


def final_positions(kernel, energy, n_chains: int, n_steps: int, start_std: float = 1.0) -> torch.Tensor:
    """Independent chains, so the spread of any figure over them gives its standard error."""
    start = start_std * torch.randn(n_chains, energy.mean.shape[-1], generator=seeded(1))
    return run_chain(kernel, energy, start, n_steps, seeded(2)).position


def assert_variance(draws: torch.Tensor, expected: float) -> None:
    """Independent Gaussian draws: a variance has standard error v sqrt(2 / n); four are allowed."""
    n = len(draws)
    assert abs(float(draws.mean())) < 4 * math.sqrt(expected / n)
    assert abs(float(draws.var()) - expected) < 4 * expected * math.sqrt(2 / n)


@pytest.mark.parametrize("step_size", [0.5, 0.1, 0.02])
def test_langevin_on_a_unit_gaussian_has_the_variance_of_its_recursion(step_size):
    """x' = (1 - e) x + sqrt(2 e) noise: variance 2 e / (1 - (1 - e)^2) = 1 / (1 - e / 2)."""
    draws = final_positions(Langevin(step_size), unit_gaussian(), 20_000, int(8 / step_size))
    assert_variance(draws, 1 / (1 - step_size / 2))


def test_langevin_with_noise_of_its_own_has_the_variance_of_its_recursion():
    """Cold noise of 0.01 at step 0.1, as some papers use: 1e-4 / (1 - 0.9^2), not 1."""
    draws = final_positions(Langevin(0.1, noise_scale=0.01), unit_gaussian(), 20_000, 200)
    assert_variance(draws, 1e-4 / (1 - 0.81))


def test_the_step_of_langevin_is_the_formula():
    energy = NetworkEnergy(mlp([2, 4]), 4, 2, hidden=8).given(torch.randn(3, 2))
    start = torch.randn(3, 5, 2)
    state = initial_state(energy, start)
    stepped = Langevin(0.03).step(energy, state, seeded(7))
    noise = torch.randn(3, 5, 2, generator=seeded(7))
    value, grad = energy.value_and_gradient(start)
    torch.testing.assert_close(stepped.position, start - 0.03 * grad + math.sqrt(0.06) * noise)
    # A gradient that is known is not computed again, and none is that nobody asked for.
    known = Langevin(0.03).step(energy, state._replace(energy=value, grad=2 * grad), seeded(7))
    torch.testing.assert_close(known.position, start - 0.06 * grad + math.sqrt(0.06) * noise)
    assert stepped.energy is None
    assert stepped.grad is None


def test_sampling_leaves_buffers_as_they_were():
    class Normed(Energy):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x):
            return self.norm(x).square().sum(-1)

    energy = Normed().eval()
    before = [b.clone() for b in energy.buffers()]
    run_chain(MALA(0.1), energy, torch.randn(20, 2), 5, seeded())
    assert all(torch.equal(a, b) for a, b in zip(before, energy.buffers(), strict=True))


@pytest.mark.parametrize("step_size", [0.1, 0.8, 1.9])
def test_mala_leaves_a_gaussian_invariant_at_any_step(step_size):
    """From the stationary distribution mean and variance stay, where plain Langevin's would not."""
    energy = GaussianEnergy(torch.tensor([0.0]), torch.tensor([1.0]))
    assert_variance(final_positions(MALA(step_size), energy, 20_000, 30), 1.0)


def test_mala_reaches_a_gaussian_it_did_not_start_in():
    energy = GaussianEnergy(torch.tensor([0.0]), torch.tensor([1.0]))
    assert_variance(final_positions(MALA(0.5), energy, 20_000, 60, start_std=4.0), 1.0)


def test_mala_with_a_step_for_each_coordinate_leaves_both_scales_invariant():
    energy = GaussianEnergy(torch.zeros(2), torch.tensor([0.1, 10.0]))
    start = torch.randn(20_000, 2, generator=seeded(1)) * energy.std
    state = run_chain(MALA(0.5 * energy.std**2), energy, start, 30, seeded(2))
    for k in range(2):
        assert_variance(state.position[:, k] / energy.std[k], 1.0)
    assert 0.5 < float(state.acceptance.mean()) < 1.0


exact = pytest.mark.parametrize(
    "kernel", [MALA(0.3), HMC(0.4, 4), HMC(0.7, 3, jitter=0.0), RandomWalk(0.9)], ids=str
)


@exact
def test_exact_kernels_leave_a_mixture_invariant_and_keep_the_split_of_its_mass(kernel):
    """30 % left, 70 % right, with crossings: each chain's side is one draw, error sqrt(p (1 - p) / n); the
    errors of both moments come from the draws themselves."""
    energy = GaussianMixtureEnergy(
        torch.tensor([[-1.0], [1.0]]), torch.tensor([[0.4], [0.6]]), torch.tensor([0.3, 0.7])
    )
    n = 20_000
    start = energy.sample(n, seeded(3))
    end = run_chain(kernel, energy, start, 60, seeded(5)).position
    crossed = (start < -0.2) != (end < -0.2)
    assert float(crossed.float().mean()) > 0.1

    def cdf(y, mean, std):
        return 0.5 * (1 + math.erf((y - mean) / std / math.sqrt(2)))

    expected = 0.3 * cdf(-0.2, -1, 0.4) + 0.7 * cdf(-0.2, 1, 0.6)
    error = math.sqrt(expected * (1 - expected) / n)
    assert abs(float((end < -0.2).float().mean()) - expected) < 4 * error
    second = 0.3 * (1 + 0.16) + 0.7 * (1 + 0.36)
    for draws, moment in [(end, 0.4), (end.square(), second)]:
        assert abs(float(draws.mean()) - moment) < 4 * float(draws.std()) / math.sqrt(n)


@exact
def test_exact_kernels_reach_a_distribution_they_did_not_start_in(kernel):
    energy = GaussianEnergy(torch.tensor([0.0]), torch.tensor([1.0]))
    assert_variance(final_positions(kernel, energy, 20_000, 80, start_std=3.0), 1.0)


@pytest.mark.parametrize("step_size", [0.3, 1.0, 1.9])
def test_hamiltonian_trajectories_leave_a_gaussian_invariant_at_any_step(step_size):
    state = run_chain(
        HMC(step_size, 5), unit_gaussian(), torch.randn(20_000, 1, generator=seeded(1)), 20, seeded(2)
    )
    assert_variance(state.position, 1.0)
    assert 0.2 < float(state.acceptance.mean()) <= 1.0


def test_a_trajectory_of_small_steps_is_a_turn_of_phase_space():
    """Of a unit Gaussian: after time t the place is x cos t + p sin t, up to the step's square."""
    start = torch.randn(50, 3, generator=seeded(1), dtype=torch.float64)
    energy = unit_gaussian(3).double()
    for n_leapfrog in (100, 200):
        kernel = HMC(1.0 / n_leapfrog, n_leapfrog, jitter=0.0)
        momentum = torch.randn(50, 3, generator=seeded(7), dtype=torch.float64)
        end = kernel.step(energy, initial_state(energy, start), seeded(7))
        exact_end = math.cos(1.0) * start + math.sin(1.0) * momentum
        assert float(end.acceptance.min()) > 0.999
        torch.testing.assert_close(end.position, exact_end, rtol=0, atol=0.5 / n_leapfrog**2)


def test_jitter_ends_the_resonance_of_half_a_turn():
    """Of a unit Gaussian: without jitter a trajectory of half a turn ends in the mirror image of its start."""
    energy, start = unit_gaussian(), torch.randn(4000, 1, generator=seeded(1))
    half_turn = 2 * math.sin(math.pi / 20)  # ten leapfrog steps turn by pi exactly, whatever their error
    stuck = run_chain(HMC(half_turn, 10, jitter=0.0), energy, start, 40, seeded(2)).position
    torch.testing.assert_close(stuck, start, rtol=0, atol=1e-3)
    moved = run_chain(HMC(half_turn, 10), energy, start, 40, seeded(2)).position
    assert_variance(moved, 1.0)
    # Squares, which a mirror image leaves as they are; the correlation of independent ones has error 1 / sqrt(n).
    correlation = float(torch.corrcoef(torch.stack([start[:, 0], moved[:, 0]]).square())[0, 1])
    assert abs(correlation) < 4 / math.sqrt(len(start))


@pytest.mark.parametrize("make", [lambda size: HMC(size, 4), lambda size: RandomWalk(2.0 * size)])
def test_a_step_for_each_coordinate_leaves_both_scales_invariant(make):
    energy = GaussianEnergy(torch.zeros(2), torch.tensor([0.1, 10.0]))
    start = torch.randn(20_000, 2, generator=seeded(1)) * energy.std
    state = run_chain(make(0.4 * energy.std), energy, start, 30, seeded(2))
    for k in range(2):
        assert_variance(state.position[:, k] / energy.std[k], 1.0)
    assert 0.3 < float(state.acceptance.mean()) < 1.0


def test_textbook_langevin_at_a_step_of_0_05_has_variance_one():
    """eta^2 / 2 times the gradient and eta times the noise; the recursion adds 0.06 % to the variance."""
    draws = final_positions(Langevin(0.05**2 / 2), unit_gaussian(), 10_000, 2000)
    assert_variance(draws, 1.0)


def test_cold_langevin_has_the_variance_of_its_recursion_far_below_one():
    """x' = 0.9 (x + 0.01 noise): 0.81e-4 / (1 - 0.81), and not 1."""
    draws = final_positions(ColdLangevin(0.1, 0.01), unit_gaussian(), 20_000, 200)
    assert_variance(draws, 0.81e-4 / (1 - 0.81))


def test_the_step_of_cold_langevin_is_noise_then_clipped_gradient_then_bounds():
    energy = 10.0 * perturbed(PerceptronEnergy(2, (8,)))
    start = torch.rand(200, 2, generator=seeded())
    kernel = ColdLangevin(10.0, 0.005, clip_grad=0.02, low=0.0, high=1.0)
    stepped = kernel.step(energy, initial_state(energy, start), seeded(7))
    noised = start + 0.005 * torch.randn(200, 2, generator=seeded(7))
    grad = energy.gradient(noised)
    assert float(grad.abs().max()) > 0.02
    torch.testing.assert_close(stepped.position, (noised - 10.0 * grad.clamp(-0.02, 0.02)).clamp(0, 1))
    moved = (stepped.position - noised).abs()
    assert float(moved.max()) <= 0.2 + 1e-6
    assert ((stepped.position == 0) | (stepped.position == 1)).any()
    end = run_chain(kernel, energy, start, 50, seeded()).position
    assert float(end.min()) >= 0
    assert float(end.max()) <= 1


def test_mala_satisfies_detailed_balance():
    """exp(-E(a)) q(a -> b) accept(a -> b) is symmetric, for random pairs.

    The noise that leads from a to b is handed to the kernel in place of a draw.
    """
    torch.manual_seed(3)
    energy = NetworkEnergy(mlp([1, 4]), 4, 2, hidden=8).double().given(torch.zeros(1, 1).double())
    size = 0.3

    def flow(a, b, monkeypatch):
        state = initial_state(energy, a)
        value, grad = energy.value_and_gradient(a)
        noise = (b - a + size * grad) / math.sqrt(2 * size)
        monkeypatch.setattr(torch, "randn", lambda *_, **__: noise)
        stepped = MALA(size).step(energy, state)
        monkeypatch.undo()
        return -value - 0.5 * noise.square().sum(-1) + stepped.acceptance.log()

    a, b = torch.randn(1, 200, 2).double(), torch.randn(1, 200, 2).double()
    with pytest.MonkeyPatch.context() as monkeypatch:
        there, back = flow(a, b, monkeypatch), flow(b, a, monkeypatch)
    torch.testing.assert_close(there, back, rtol=0, atol=1e-10)


def test_mala_accepts_nearly_all_small_steps_and_few_huge_ones():
    start = torch.randn(2000, 3, generator=seeded())
    small = run_chain(MALA(1e-4), unit_gaussian(3), start, 1, seeded())
    huge = run_chain(MALA(100.0), unit_gaussian(3), start, 1, seeded())
    assert float(small.acceptance.mean()) > 0.99
    assert float(huge.acceptance.mean()) < 0.01


def test_metropolis_takes_a_proposal_as_often_as_its_ratio_says():
    """Bernoulli: standard error sqrt(p (1 - p) / n)."""
    n = 40_000
    here = Place(torch.zeros(n, 1), torch.zeros(n), torch.zeros(n, 1))
    there = Place(torch.ones(n, 1), torch.ones(n), torch.ones(n, 1))
    for p in (0.2, 0.9, 1.0):
        state = accept(here, there, torch.full((n,), math.log(p)), seeded())
        taken = state.position.squeeze(-1)
        assert abs(float(taken.mean()) - p) <= 4 * math.sqrt(p * (1 - p) / n)
        assert torch.equal(state.energy, taken)
        assert torch.equal(state.grad, state.position)


@pytest.mark.parametrize(
    ("energy", "ratio"),
    [(torch.nan, torch.nan), (-torch.inf, torch.inf), (torch.inf, -torch.inf), (0.0, torch.nan)],
)
def test_a_proposal_that_is_not_a_number_is_refused(energy, ratio):
    here = Place(torch.zeros(100, 2), torch.zeros(100), torch.zeros(100, 2))
    there = Place(torch.ones(100, 2), torch.full((100,), energy), torch.ones(100, 2))
    state = accept(here, there, torch.full((100,), ratio), seeded())
    assert torch.equal(state.position, here.position)
    assert torch.equal(state.energy, here.energy)
    assert torch.equal(state.acceptance, torch.zeros(100))


def test_a_chain_that_starts_outside_the_support_may_enter_it():
    outside = Place(torch.zeros(100, 1), torch.full((100,), torch.inf), torch.zeros(100, 1))
    inside = Place(torch.ones(100, 1), torch.zeros(100), torch.zeros(100, 1))
    assert (accept(outside, inside, torch.full((100,), torch.inf), seeded()).position == 1).all()


def test_mala_stays_out_of_where_the_energy_is_not_a_number():
    class Half(GaussianEnergy):
        def value_and_gradient(self, x):
            value, grad = super().value_and_gradient(x)
            bad = x[..., 0] < 0
            return torch.where(bad, torch.nan, value), torch.where(bad.unsqueeze(-1), torch.nan, grad)

    energy = Half(torch.zeros(1), torch.ones(1))
    start = torch.randn(20_000, 1, generator=seeded(1)).abs()
    state = run_chain(MALA(0.3), energy, start, 40, seeded(2))
    assert (state.position >= 0).all()
    assert torch.isfinite(state.energy).all()
    # The half-normal distribution is left invariant: mean sqrt(2 / pi), variance 1 - 2 / pi.
    error = math.sqrt((1 - 2 / math.pi) / 20_000)
    assert abs(float(state.position.mean()) - math.sqrt(2 / math.pi)) < 4 * error


class Image(Energy):
    event_ndim = 3

    def forward(self, x):
        return 0.5 * x.square().sum((-3, -2, -1))


@pytest.mark.parametrize("kernel", [MALA(0.4), HMC(0.9, 3), RandomWalk(0.4)], ids=str)
def test_events_of_more_dimensions_are_accepted_whole(kernel):
    start = torch.randn(500, 1, 4, 4, generator=seeded())
    state = kernel.step(Image(), initial_state(Image(), start), seeded(1))
    assert state.acceptance.shape == (500,)
    moved = (state.position != start).flatten(1)
    assert (moved.all(1) | ~moved.any(1)).all()
    assert 0.05 < float(moved.all(1).float().mean()) < 0.999
    # 500 x 16 unit Gaussians, run on: exact kernels leave them so.
    assert_variance(run_chain(kernel, Image(), start, 10, seeded(2)).position.flatten(), 1.0)


class Located(nn.Module):
    """A unit Gaussian of y round x."""

    def forward(self, x, y):
        return 0.5 * (y - x).square().sum(-1)


@pytest.mark.parametrize("kernel", [Langevin(0.02), MALA(0.4), HMC(0.6, 4), RandomWalk(0.9)], ids=str)
def test_chains_given_x_have_each_row_its_own_distribution(kernel):
    """Rows far apart, 4000 chains each, started one standard deviation off."""
    x = torch.tensor([[-20.0], [0.0], [30.0]])
    given = ConditionalModuleEnergy(Located()).given(x)
    start = x.unsqueeze(1) + 1.0 + torch.randn(3, 4000, 1, generator=seeded(1))
    end = run_chain(kernel, given, start, 300, seeded(2)).position
    for row in end - x.unsqueeze(1):
        assert_variance(row, 1.0)


def test_an_energy_that_breaks_its_contract_is_refused_before_the_first_step():
    class Wrong(Energy):
        def forward(self, x):
            return x.square()

    with pytest.raises(ValueError, match="one energy for each configuration"):
        run_chain(Langevin(0.1), Wrong(), torch.ones(4, 2), 10, check=True)


# -- step sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [MALA(1e-3), HMC(5.0, 5), RandomWalk(100.0)], ids=str)
def test_the_step_size_that_is_found_is_accepted_as_often_as_wished(kernel):
    """From far too small or far too large; what is left is the wandering of the last iterations. (Trajectories
    near the edge of stability are accepted now more, now less often as the step grows: no rate to aim at.)"""
    energy = GaussianEnergy(torch.zeros(10), torch.linspace(0.5, 2.0, 10))
    start = torch.randn(500, 10, generator=seeded()) * energy.std
    for target in (None, 0.9):
        found = adapt_step_size(kernel, energy, start, 300, target, seeded(1))
        assert type(found.kernel) is type(kernel)
        draws = sample_chain(found.kernel, energy, found.state.position, 50, generator=seeded(2))
        wanted = TARGETS[type(kernel).__name__] if target is None else target
        assert draws.acceptance == pytest.approx(wanted, abs=0.05)


def test_the_steps_of_the_coordinates_keep_their_proportions():
    energy = GaussianEnergy(torch.zeros(2), torch.tensor([0.1, 10.0]))
    start = torch.randn(200, 2, generator=seeded()) * energy.std
    kernel = HMC(energy.std.clone(), 5)
    found = adapt_step_size(kernel, energy, start, 100, generator=seeded(1)).kernel
    torch.testing.assert_close(found.step_size[1] / found.step_size[0], torch.tensor(100.0))
    assert torch.equal(kernel.step_size, energy.std)
    assert found.n_leapfrog == 5


@pytest.mark.parametrize(
    "kernel", [Langevin(0.1), ColdLangevin(0.1, 0.1), ParallelTempering(MALA(0.1), [1.0, 2.0])], ids=str
)
def test_a_kernel_without_a_rate_to_adapt_to_is_refused_by_name(kernel):
    with pytest.raises(ValueError, match=f"{type(kernel).__name__} has no rate.*RandomWalk, MALA, HMC"):
        adapt_step_size(kernel, unit_gaussian(), torch.zeros(3, 1))


# -- draws and diagnostics --------------------------------------------------------------------------------


@kernels
def test_draws_are_every_thin_th_state_after_the_burn_in(kernel):
    energy, start = unit_gaussian(2), torch.randn(3, 4, 2, generator=seeded(1))
    counts = []
    draws = sample_chain(kernel, energy, start, 5, burn_in=7, thin=3, generator=seeded(2), on_draw=counts.append)
    assert draws.position.shape == (5, 3, 4, 2)
    assert draws.energy.shape == (5, 3, 4)
    assert counts == [1, 2, 3, 4, 5]
    generator, state, rates = seeded(2), initial_state(energy, start), []
    for t in range(1, 7 + 15 + 1):
        state = kernel.step(energy, state, generator)
        if t > 7:
            rates.append(float(state.acceptance.mean()))
            if (t - 7) % 3 == 0:
                assert torch.equal(draws.position[(t - 7) // 3 - 1], state.position)
                assert torch.equal(draws.energy[(t - 7) // 3 - 1], energy(state.position))
    assert draws.acceptance == pytest.approx(sum(rates) / 15)
    assert torch.equal(draws.state.position, state.position)


def test_draws_that_are_none_and_energies_that_break_their_contract_are_refused():
    start = torch.zeros(3, 1)
    for numbers in ({"n_draws": 0}, {"n_draws": 5, "thin": 0}, {"n_draws": 5, "burn_in": -1}):
        with pytest.raises(ValueError, match="n_draws and thin must be at least 1, burn_in 0"):
            sample_chain(MALA(0.1), unit_gaussian(), start, **numbers)
    outside = UniformEnergy(torch.tensor([1.0]), torch.tensor([2.0]))
    with pytest.raises(ValueError, match="3 energies of 3 that are not finite"):
        sample_chain(MALA(0.1), outside, start, 5)


def test_independent_draws_are_worth_their_number_and_their_chains_agree():
    """The effective size of 4000 independent draws spreads by some 5 %; the tails' by 10 %."""
    found = diagnose(torch.randn(1000, 4, 2, 2, generator=seeded()))
    assert found.r_hat.shape == found.bulk_ess.shape == found.tail_ess.shape == (4,)
    assert (found.r_hat < 1.01).all()
    assert ((found.bulk_ess > 3200) & (found.bulk_ess < 4800)).all()
    assert (found.tail_ess > 2800).all()
    assert "R-hat at most 1.0" in str(found)


def test_correlated_draws_are_worth_what_their_correlation_leaves():
    """An autoregression of coefficient 0.8: n (1 - 0.8) / (1 + 0.8), a ninth; here to a fifth of it."""
    x, draws = torch.randn(4, 1, generator=seeded()), []
    for noise in 0.6 * torch.randn(5000, 4, 1, generator=seeded(1)):
        x = 0.8 * x + noise
        draws.append(x)
    found = diagnose(torch.stack(draws))
    assert float(found.bulk_ess[0]) == pytest.approx(20_000 / 9, rel=0.2)
    assert float(found.r_hat[0]) < 1.01


def test_the_effective_size_of_the_tails_is_that_of_the_slower_one_at_five_per_cent():
    """Uniform draws, with stays in the lowest twentieth that last twenty draws on average.

    Whether a draw lies there is a chain of two states; with correlation rho from draw to draw its mean is known as
    that of N (1 - rho) / (1 + rho) draws.
    """
    share, leaving, n = 0.05, 0.05, 5000
    rho = 1 - leaving - leaving * share / (1 - share)
    uniform = torch.rand(n, 4, generator=seeded(), dtype=torch.float64)
    change = torch.rand(n, 4, generator=seeded(1), dtype=torch.float64)
    low = torch.zeros(n, 4, dtype=torch.bool)
    for t in range(1, n):
        low[t] = torch.where(low[t - 1], change[t] > leaving, change[t] < leaving * share / (1 - share))
    draws = torch.where(low, share * uniform, share + (1 - share) * uniform)
    expected = 4 * n * (1 - rho) / (1 + rho)
    found = diagnose(draws.unsqueeze(-1))
    # Some fifty such stays in each chain tell their correlation to a third or so.
    assert expected / 2 < float(found.tail_ess[0]) < 2 * expected


def test_chains_that_sit_in_different_modes_disagree():
    energy = GaussianMixtureEnergy(torch.tensor([[-10.0], [10.0]]), torch.tensor([[1.0], [1.0]]))
    start = torch.tensor([[-10.0], [-10.0], [10.0], [10.0]])
    draws = sample_chain(MALA(0.5), energy, start, 200, burn_in=20, generator=seeded())
    found = diagnose(draws.position)
    assert float(found.r_hat[0]) > 1.5
    assert float(found.bulk_ess[0]) < 20


def test_draws_that_tell_nothing_are_refused_in_words():
    with pytest.raises(ValueError, match="at least 4 draws, got \\(3, 4, 1\\)"):
        diagnose(torch.zeros(3, 4, 1))
    with pytest.raises(ValueError, match="at least 4 draws"):
        diagnose(torch.zeros(100))
    draws = torch.randn(10, 2, 1)
    draws[3, 1] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        diagnose(draws)


# -- a gradient through the chain -------------------------------------------------------------------------


@pytest.mark.parametrize("n_last", [1, 3])
@pytest.mark.parametrize(
    "kernel",
    [Langevin(0.1), MALA(0.2), HMC(0.2, 3), ColdLangevin(0.1, 0.05, clip_grad=5.0)],
    ids=lambda k: type(k).__name__,
)
@pytest.mark.parametrize("kind", ["perceptron", "given x"])
def test_the_gradient_through_the_last_steps_equals_finite_differences(kernel, n_last, kind):
    """The noise fixed, the first steps run with the parameters as they were."""
    if kind == "perceptron":
        energy = perturbed(PerceptronEnergy(2, (8, 8))).double()
        x, shape = None, (6, 2)
    else:
        energy = perturbed(NetworkEnergy(mlp([3, 6]), 6, 2, hidden=8)).double()
        x, shape = torch.randn(3, 3, generator=seeded(4), dtype=torch.float64), (3, 2, 2)
    weights = list(energy.parameters())
    start = torch.randn(shape, generator=seeded(1), dtype=torch.float64)

    def given():
        return energy if x is None else energy.given(x)

    state = run_chain(kernel, given(), start, 5, seeded(2), differentiable_steps=n_last)
    assert state.position.requires_grad
    grads = torch.autograd.grad(state.position.square().sum(), weights, allow_unused=True)
    directions = [torch.randn(w.shape, generator=seeded(9), dtype=torch.float64) for w in weights]
    expected = sum(float((g * d).sum()) for g, d in zip(grads, directions, strict=True) if g is not None)

    generator = seeded(2)
    middle = run_chain(kernel, given(), start, 5 - n_last, generator).position.detach()
    before, values = generator.get_state(), []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for w, d in zip(weights, directions, strict=True):
                w += step * d
        generator.set_state(before)
        end = run_chain(kernel, given(), middle, n_last, generator).position.detach()
        values.append(float(end.square().sum()))
    assert abs(expected) > 1e-2
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(expected, rel=1e-5)


@kernels
def test_a_chain_with_a_graph_goes_where_the_chain_without_goes(kernel):
    energy, start = perturbed(PerceptronEnergy(2, (8,))), torch.randn(20, 2, generator=seeded(1))
    plain = run_chain(kernel, energy, start, 6, seeded(2))
    graph = run_chain(kernel, energy, start, 6, seeded(2), differentiable_steps=2)
    torch.testing.assert_close(graph.position.detach(), plain.position)
    assert all(w.grad is None for w in energy.parameters())


# -- starts -----------------------------------------------------------------------------------------------


def standard_noise(k: int = 1) -> GaussianMixtureEnergy:
    return GaussianMixtureEnergy(torch.zeros(1, k), torch.ones(1, k))


def test_chains_start_at_their_rows():
    x, y = torch.randn(4, 3), torch.randn(4, 2, 2)
    chains = FromData(3).draw(x, y, seeded())
    assert chains.x is x
    assert torch.equal(chains.position, y.unsqueeze(1).expand(4, 3, 2, 2))
    y = torch.full((5000, 1), 7.0)
    moved = FromData(4, noise_std=0.5).draw(None, y, seeded()).position
    assert moved.shape == (5000, 4, 1)
    assert_variance((moved - 7.0).flatten() / 0.5, 1.0)


def test_chains_start_in_noise_afresh_for_every_batch():
    start, generator = FromNoise(standard_noise(), 5), seeded()
    first, second = (start.draw(None, torch.full((1000, 1), 7.0), generator).position for _ in range(2))
    assert first.shape == (1000, 5, 1)
    assert_variance(first.flatten(), 1.0)
    assert not torch.equal(first, second)


def test_every_lineage_lives_on_in_its_own_place():
    """A chain adds one at each visit: where it is found again tells that nobody else wrote there."""
    buffer, generator = ReplayBuffer(standard_noise(), size=20, n_chains=6, restart=0.0), seeded()
    left, visits = {}, torch.zeros(20)
    for _ in range(200):
        chains = buffer.draw(None, torch.zeros(3, 1), generator)
        places = chains.places.tolist()
        assert len(set(places)) == 6
        for place, position in zip(places, chains.position, strict=True):
            assert place not in left or torch.equal(position, left[place])
        end = chains.position + 1
        buffer.store(chains, end, torch.zeros(6))
        left.update(zip(places, end, strict=True))
        visits[places] += 1
    assert buffer.alive.all()
    assert int(buffer.n_dropped) == 0
    # Each place is visited by a batch with probability 6 / 20.
    assert ((visits - 60).abs() < 4 * math.sqrt(200 * 0.3 * 0.7)).all()
    assert torch.equal(buffer.positions, torch.stack([left[i] for i in range(20)]))


def test_chains_start_afresh_as_often_as_asked_and_all_of_them_at_first():
    buffer, generator = ReplayBuffer(standard_noise(), size=2000, n_chains=1000, restart=0.1), seeded()
    first = buffer.draw(None, torch.zeros(3, 1), generator)
    assert_variance(first.position, 1.0)
    buffer.positions.fill_(50.0)
    buffer.alive.fill_(True)
    fresh = torch.cat([buffer.draw(None, torch.zeros(3, 1), generator).position for _ in range(20)]) < 25
    assert abs(float(fresh.float().mean()) - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 20_000)


def test_chains_that_go_wrong_are_dropped_counted_and_never_stored():
    buffer = ReplayBuffer(standard_noise(2), size=8, n_chains=8, restart=0.0, bounds=(-5.0, 5.0))
    chains = buffer.draw(None, torch.zeros(3, 2), seeded())
    end, energy = torch.full((8, 2), 2.0), torch.zeros(8)
    energy[0], energy[1], energy[2] = torch.nan, torch.inf, -torch.inf
    end[3, 0], end[4, 1], end[5, 0], end[6, 1] = torch.nan, torch.inf, 5.1, -5.1
    buffer.store(chains, end, energy)
    assert int(buffer.n_dropped) == 7
    good = chains.places[7]
    assert buffer.alive.nonzero().tolist() == [[int(good)]]
    assert torch.isfinite(buffer.positions).all()
    assert buffer.positions.abs().max() <= 5
    again = buffer.draw(None, torch.zeros(3, 2), seeded(1))
    kept = again.places == good
    assert (again.position[kept] == 2.0).all()
    assert not (again.position[~kept] == buffer.positions[again.places[~kept]]).any()


def test_a_chain_that_goes_wrong_after_it_has_run_starts_afresh():
    """Where it stood before is not gone on from, and the others stay as they are."""
    buffer = ReplayBuffer(standard_noise(), size=8, n_chains=8, restart=0.0, bounds=(-50.0, 50.0))
    chains = buffer.draw(None, torch.zeros(3, 1), seeded())
    buffer.store(chains, torch.full((8, 1), 20.0), torch.zeros(8))
    assert buffer.alive.all()
    again = buffer.draw(None, torch.zeros(3, 1), seeded(1))
    end = torch.full((8, 1), 30.0)
    end[2] = 51.0
    energy = torch.zeros(8)
    energy[5] = torch.nan
    buffer.store(again, end, energy)
    wrong = again.places[[2, 5]]
    assert set((~buffer.alive).nonzero()[:, 0].tolist()) == set(wrong.tolist())
    last = buffer.draw(None, torch.zeros(3, 1), seeded(2))
    restarted = torch.isin(last.places, wrong)
    # Noise of a standard deviation of 1 never leads to 20.
    assert (last.position[restarted].abs() < 10).all()
    assert (last.position[~restarted] == 30).all()


def test_conditional_chains_keep_their_x_until_they_start_afresh():
    buffer, generator = ReplayBuffer(standard_noise(), 30, 10, restart=0.2, x_event=(2,)), seeded()
    for t in range(40):
        x = torch.full((5, 2), float(t)) + torch.arange(5.0)[:, None] / 10
        before, alive = buffer.xs.clone(), buffer.alive.clone()
        chains = buffer.draw(x, torch.zeros(5, 1), generator)
        assert chains.x.shape == (10, 2)
        resumed = (chains.position == buffer.positions[chains.places]).all(1) & alive[chains.places]
        assert torch.equal(chains.x[resumed], before[chains.places[resumed]])
        for row in chains.x[~resumed]:
            assert (row == x).all(1).any()
        buffer.store(chains, chains.position + 1, torch.zeros(10))
        assert torch.equal(buffer.xs[chains.places], chains.x)
    assert len(buffer.xs[:, 0].floor().unique()) > 5


def test_chains_are_augmented_as_they_go_on_and_not_when_they_start():
    buffer = ReplayBuffer(standard_noise(), 100, 100, restart=0.3, augment=lambda y: y + 100.0)
    first = buffer.draw(None, torch.zeros(1, 1), seeded())
    assert (first.position < 50).all()
    buffer.store(first, first.position, torch.zeros(100))
    second = buffer.draw(None, torch.zeros(1, 1), seeded(1)).position
    going_on = int((second > 50).sum())
    assert abs(going_on - 70) < 4 * math.sqrt(100 * 0.3 * 0.7)


def test_a_buffer_that_is_loaded_goes_on_as_the_one_that_was_saved():
    def make():
        return ReplayBuffer(standard_noise(), 30, 10, restart=0.2, x_event=(2,), bounds=(-1.0, 1.0))

    def go_on(buffer, generator):
        for _ in range(5):
            chains = buffer.draw(torch.randn(4, 2, generator=generator), torch.zeros(4, 1), generator)
            buffer.store(chains, 1.1 * chains.position, torch.zeros(10))
        return chains

    buffer, other = make(), make()
    go_on(buffer, seeded())
    other.load_state_dict(buffer.state_dict())
    assert int(other.n_dropped) == int(buffer.n_dropped) > 0
    for a, b in zip(go_on(buffer, seeded(1)), go_on(other, seeded(1)), strict=True):
        assert torch.equal(a, b)


def test_a_buffer_that_can_not_work_is_refused_in_words():
    with pytest.raises(ValueError, match=r"restart is a probability, got 1\.5"):
        ReplayBuffer(standard_noise(), 10, 5, restart=1.5)
    with pytest.raises(ValueError, match="a buffer of 4 chains can't give 5"):
        ReplayBuffer(standard_noise(), 4, 5)
    with pytest.raises(ValueError, match="give x_event"):
        ReplayBuffer(standard_noise(), 10, 5).draw(torch.zeros(3, 2), torch.zeros(3, 1))
    buffer = ReplayBuffer(standard_noise(), 10, 5, x_event=(2,))
    with pytest.raises(ValueError, match="has no x"):
        buffer.draw(None, torch.zeros(3, 1))


# -- tempering --------------------------------------------------------------------------------------------


def test_tempered_chains_find_both_far_modes_in_their_shares_where_plain_chains_never_cross():
    """All start on the left, which holds 30 %. The modes are 12 deviations apart: 18 nats to climb."""
    energy = GaussianMixtureEnergy(
        torch.tensor([[-6.0], [6.0]]), torch.tensor([[1.0], [1.0]]), torch.tensor([0.3, 0.7])
    )
    n = 600
    start = torch.full((n, 1), -6.0)
    plain = run_chain(MALA(0.5), energy, start, 400, seeded()).position
    assert (plain < 0).all()
    temperatures = geometric_temperatures(5, 20.0)
    sizes = 0.5 * torch.tensor(temperatures).reshape(-1, 1, 1)
    kernel = ParallelTempering(MALA(sizes), temperatures)
    end = run_chain(kernel, energy, kernel.start(start), 400, seeded()).position[0]
    left = float((end < 0).float().mean())
    assert abs(left - 0.3) < 4 * math.sqrt(0.3 * 0.7 / n)
    for side, centre in [(end < 0, -6.0), (end >= 0, 6.0)]:
        assert_variance(end[side] - centre, 1.0)


@pytest.mark.parametrize(
    "make",
    [lambda s: MALA(0.5 * s.square()), lambda s: HMC(0.7 * s, 3), lambda s: RandomWalk(s)],
    ids=["MALA", "HMC", "RandomWalk"],
)
@pytest.mark.parametrize("n_levels", [1, 2, 5])
def test_every_level_of_tempering_keeps_its_own_distribution(make, n_levels):
    """exp(-x^2 / 2T) has variance T."""
    temperatures = [1.0, 1.5, 3.0, 4.0, 9.0][:n_levels]
    stds = torch.tensor(temperatures).sqrt().reshape(-1, 1, 1)
    kernel, energy = ParallelTempering(make(stds), temperatures), unit_gaussian()
    start = stds * torch.randn(n_levels, 20_000, 1, generator=seeded(1))
    state = run_chain(kernel, energy, start, 30, seeded(2))
    for level, temperature in zip(state.position, temperatures, strict=True):
        assert_variance(level, temperature)
    value, grad = energy.value_and_gradient(state.position)
    torch.testing.assert_close(state.energy, value)
    if not isinstance(kernel.kernel, RandomWalk):
        torch.testing.assert_close(state.grad, grad)


def test_neighbours_swap_as_often_as_their_energies_say():
    """One step of no length: what moved was swapped. The pair is offered a swap by the toss of a coin."""
    n, temperatures = 20_000, [1.0, 2.0]
    kernel = ParallelTempering(RandomWalk(0.0), temperatures)
    energy = unit_gaussian()
    start = torch.tensor([[[1.0]], [[2.0]]]).expand(2, n, 1)
    rates = []
    for seed in range(40):
        end = kernel.step(energy, initial_state(energy, start), seeded(seed)).position
        swapped = end[0] == 2.0
        assert torch.equal(end[1] == 1.0, swapped)
        rates.append(float(swapped.float().mean()))
    offered = [rate for rate in rates if rate]
    assert 8 <= len(offered) <= 32  # 20 expected of 40, four standard errors of 3.2 either way
    expected = math.exp((1 - 0.5) * (0.5 - 2.0))
    error = math.sqrt(expected * (1 - expected) / n)
    assert all(abs(rate - expected) < 4.5 * error for rate in offered)


def test_ladders_that_do_not_rise_from_one_and_positions_without_levels_are_refused():
    for temperatures in ([], [2.0, 3.0], [1.0, 3.0, 3.0], [1.0, 0.5]):
        with pytest.raises(ValueError, match="must start at 1 and rise"):
            ParallelTempering(MALA(0.1), temperatures)
    kernel = ParallelTempering(MALA(0.1), [1.0, 2.0])
    with pytest.raises(ValueError, match=r"with 2 levels, got \(5, 1\).*start\(\)"):
        run_chain(kernel, unit_gaussian(), torch.zeros(5, 1), 3)
    given = ConditionalModuleEnergy(Located()).given(torch.zeros(2, 1))
    with pytest.raises(ValueError, match="one row of inputs"):
        run_chain(kernel, given, torch.zeros(2, 2, 1), 3)


def test_temperatures_by_equal_factors():
    temperatures = geometric_temperatures(4, 27.0)
    assert temperatures == pytest.approx([1.0, 3.0, 9.0, 27.0])
    assert geometric_temperatures(1, 27.0) == [1.0]


def test_a_tempered_step_changes_nothing_of_the_state_that_comes_in_and_leaves_no_gradient():
    energy = perturbed(PerceptronEnergy(2, (8,)))
    kernel = ParallelTempering(HMC(0.3, 3), [1.0, 2.0, 4.0])
    state = initial_state(energy, kernel.start(torch.randn(10, 2)))
    before = state.position.clone()
    first = run_chain(kernel, energy, state.position, 5, seeded())
    assert torch.equal(state.position, before)
    assert not any(t.requires_grad for t in first)
    assert all(w.grad is None for w in energy.parameters())
    assert torch.equal(first.position, run_chain(kernel, energy, state.position, 5, seeded()).position)
