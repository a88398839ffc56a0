"""Chains against laws known in closed form; tolerances from the chains' own spread."""

import math

import pytest
import torch
from torch import nn

from thalweg.energies import Energy, GaussianEnergy, GaussianMixtureEnergy, NetworkEnergy, mlp
from thalweg.sampling.chain import State, accept, initial_state, run_chain
from thalweg.sampling.langevin import MALA, Langevin


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
    torch.testing.assert_close(stepped.position, start - 0.03 * state.grad + math.sqrt(0.06) * noise)
    value, grad = energy.value_and_grad(stepped.position)
    assert torch.equal(stepped.energy, value)
    assert torch.equal(stepped.grad, grad)


@pytest.mark.parametrize("kernel", [Langevin(0.1), MALA(0.1)])
def test_a_step_changes_nothing_of_the_state_that_comes_in(kernel):
    energy = unit_gaussian(2)
    state = initial_state(energy, torch.randn(10, 2))
    before = [t.clone() for t in state]
    kernel.step(energy, state, seeded())
    for tensor, copy in zip(state, before, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("kernel", [Langevin(0.1), MALA(0.1)])
def test_chains_leave_no_gradient_and_no_graph_and_follow_their_generator(kernel):
    energy = NetworkEnergy(mlp([2, 4]), 4, 2, hidden=8)
    given = energy.given(torch.randn(3, 2))
    start = torch.randn(3, 5, 2, requires_grad=True)
    global_state = torch.get_rng_state()
    first = run_chain(kernel, given, start, 5, seeded())
    assert torch.equal(torch.get_rng_state(), global_state)
    assert not any(t.requires_grad for t in first)
    assert start.grad is None
    assert all(w.grad is None for w in energy.parameters())
    assert torch.equal(first.position, run_chain(kernel, given, start, 5, seeded()).position)


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
    """Started in the stationary law and run on: mean and variance stay, where plain Langevin's would not."""
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


def test_mala_keeps_the_split_of_mass_between_modes():
    """30 % left, 70 % right, with crossings: each chain's side is one draw, error sqrt(p (1 - p) / n)."""
    energy = GaussianMixtureEnergy(
        torch.tensor([[-1.0], [1.0]]), torch.tensor([[0.4], [0.6]]), torch.tensor([0.3, 0.7])
    )
    n = 20_000
    side = torch.rand(n, 1, generator=seeded(3)) < 0.3
    noise = torch.randn(n, 1, generator=seeded(4))
    start = torch.where(side, -1.0 + 0.4 * noise, 1.0 + 0.6 * noise)
    end = run_chain(MALA(0.3), energy, start, 60, seeded(5)).position
    crossed = (start < -0.2) != (end < -0.2)
    assert float(crossed.float().mean()) > 0.1

    def cdf(y, mean, std):
        return 0.5 * (1 + math.erf((y - mean) / std / math.sqrt(2)))

    expected = 0.3 * cdf(-0.2, -1, 0.4) + 0.7 * cdf(-0.2, 1, 0.6)
    error = math.sqrt(expected * (1 - expected) / n)
    assert abs(float((end < -0.2).float().mean()) - expected) < 4 * error


def test_mala_satisfies_detailed_balance():
    """exp(-E(a)) q(a -> b) accept(a -> b) is symmetric, for random pairs.

    The noise that leads from a to b is handed to the kernel in place of a draw.
    """
    torch.manual_seed(3)
    energy = NetworkEnergy(mlp([1, 4]), 4, 2, hidden=8).double().given(torch.zeros(1, 1).double())
    size = 0.3

    def flow(a, b, monkeypatch):
        state = initial_state(energy, a)
        noise = (b - a + size * state.grad) / math.sqrt(2 * size)
        monkeypatch.setattr(torch, "randn", lambda *_, **__: noise)
        stepped = MALA(size).step(energy, state)
        monkeypatch.undo()
        return -state.energy - 0.5 * noise.square().sum(-1) + stepped.acceptance.log()

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
    here = State(torch.zeros(n, 1), torch.zeros(n), torch.zeros(n, 1), torch.ones(n))
    there = State(torch.ones(n, 1), torch.ones(n), torch.ones(n, 1), torch.ones(n))
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
    here = State(torch.zeros(100, 2), torch.zeros(100), torch.zeros(100, 2), torch.ones(100))
    there = State(torch.ones(100, 2), torch.full((100,), energy), torch.ones(100, 2), torch.ones(100))
    state = accept(here, there, torch.full((100,), ratio), seeded())
    assert torch.equal(state.position, here.position)
    assert torch.equal(state.energy, here.energy)
    assert torch.equal(state.acceptance, torch.zeros(100))


def test_a_chain_that_starts_outside_the_support_may_enter_it():
    outside = State(torch.zeros(100, 1), torch.full((100,), torch.inf), torch.zeros(100, 1), torch.ones(100))
    inside = State(torch.ones(100, 1), torch.zeros(100), torch.zeros(100, 1), torch.ones(100))
    assert (accept(outside, inside, torch.full((100,), torch.inf), seeded()).position == 1).all()


def test_mala_stays_out_of_where_the_energy_is_not_a_number():
    class Half(GaussianEnergy):
        def value_and_grad(self, x):
            value, grad = super().value_and_grad(x)
            bad = x[..., 0] < 0
            return torch.where(bad, torch.nan, value), torch.where(bad.unsqueeze(-1), torch.nan, grad)

    energy = Half(torch.zeros(1), torch.ones(1))
    start = torch.randn(20_000, 1, generator=seeded(1)).abs()
    state = run_chain(MALA(0.3), energy, start, 40, seeded(2))
    assert (state.position >= 0).all()
    assert torch.isfinite(state.energy).all()
    # The half-normal law is left invariant: mean sqrt(2 / pi), variance 1 - 2 / pi.
    error = math.sqrt((1 - 2 / math.pi) / 20_000)
    assert abs(float(state.position.mean()) - math.sqrt(2 / math.pi)) < 4 * error


def test_events_of_more_dimensions_are_accepted_whole():
    class Image(Energy):
        event_ndim = 3

        def forward(self, x):
            return 0.5 * x.square().sum((-3, -2, -1))

    start = torch.randn(500, 1, 4, 4, generator=seeded())
    state = MALA(0.4).step(Image(), initial_state(Image(), start), seeded(1))
    assert state.acceptance.shape == (500,)
    moved = (state.position != start).flatten(1)
    assert (moved.all(1) | ~moved.any(1)).all()
    assert 0.05 < float(moved.all(1).float().mean()) < 0.999


def test_an_energy_that_breaks_its_contract_is_refused_before_the_first_step():
    class Wrong(Energy):
        def forward(self, x):
            return x.square()

    with pytest.raises(ValueError, match="one energy for each configuration"):
        run_chain(Langevin(0.1), Wrong(), torch.ones(4, 2), 10, check=True)
