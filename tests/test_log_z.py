"""The stated error of log Z: how often it holds, and whether a warning comes where a mode is missed."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from thalweg import DeepBoltzmannMachine, RestrictedBoltzmannMachine
from thalweg.energies import GaussianMixtureEnergy
from thalweg.energies.machines.layered import DBMEnergy, LayeredMachine, RBMEnergy
from thalweg.estimators._normaliser import Normaliser
from thalweg.estimators._whole_rows import estimate_normaliser
from thalweg.inference.importance import log_normaliser
from thalweg.sampling.annealing import Bracket, bracket_log_normaliser, summarised
from thalweg.sampling.diagnostics import LARGEST_PARETO_K, pareto_k
from thalweg.sampling.layered_annealing import bracket_machine


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def machine_of(hidden: list[int], n_visible: int = 12) -> LayeredMachine:
    machine = RBMEnergy(n_visible, hidden[0]) if len(hidden) == 1 else DBMEnergy(n_visible, hidden)
    return machine.double()


def random_machine(hidden: list[int], seed: int) -> LayeredMachine:
    machine = machine_of(hidden)
    with torch.no_grad():
        for p in machine.parameters():
            p.copy_(torch.randn(p.shape, generator=seeded(seed)))
    return machine


def polar_machine(hidden: list[int], lean: float = 0.3) -> LayeredMachine:
    """All units on or all off, and nothing between: the former has more of the mass, and the visible biases alone
    lead to the latter."""
    machine, coupling = machine_of(hidden), 0.9
    widths = [len(b) for b in machine.biases]
    with torch.no_grad():
        for weight in machine.weights:
            weight.fill_(coupling)
        for k, bias in enumerate(machine.biases):
            neighbours = sum(widths[j] for j in (k - 1, k + 1) if 0 <= j < len(widths))
            bias.fill_(lean - 0.5 * coupling * neighbours)
    return machine


def poles(n: int, n_units: int, share: float, seed: int) -> torch.Tensor:
    """States of the first hidden layer, that share of them on."""
    on = torch.rand(n, 1, generator=seeded(seed), dtype=torch.float64) < share
    return on.double().expand(n, n_units)


def holds(found: Bracket, truth: float) -> bool:
    return abs(found.estimate - truth) <= found.error


def is_often(successes: list[bool], share: float = 0.95) -> bool:
    """At least as often as stated, four binomial standard errors allowed."""
    n = len(successes)
    return sum(successes) >= n * share - 4 * math.sqrt(n * share * (1 - share))


FEW_AND_MANY = pytest.mark.parametrize("n", [8, pytest.param(100, marks=pytest.mark.slow)])
HIDDEN = pytest.mark.parametrize("hidden", [[10], [10, 8]], ids=["restricted", "deep"])


# -- machines -----------------------------------------------------------------------------------------------


@HIDDEN
def test_a_missed_mode_is_missing_on_both_sides_unless_the_way_back_knows_of_it(hidden):
    """The bracket from the chains' own ends is narrow and off by nine nats: it must say what it rests on."""
    machine = polar_machine(hidden)
    exact = float(machine.log_normaliser())
    own = bracket_machine(machine, None, 100, 300, generator=seeded(0))
    assert own.width < 0.5
    assert own.upper.estimate + 3 * own.upper.standard_error < exact - 5
    assert own.from_ends
    assert "missing on both sides" in own.warning
    known = bracket_machine(machine, None, 100, 300, 100, poles(64, hidden[0], 1.0, 1), seeded(0))
    assert not known.from_ends
    assert holds(known, exact)
    assert known.lower.estimate - known.lower.uncertainty < exact < known.upper.estimate + known.upper.uncertainty
    assert known.width > 1
    mixed = bracket_machine(machine, None, 100, 300, 100, poles(64, hidden[0], 0.5, 1), seeded(0))
    assert holds(mixed, exact) or "contradict" in mixed.warning


@pytest.mark.slow
@FEW_AND_MANY
@HIDDEN
def test_the_stated_error_holds_on_machines_that_mix(hidden, n):
    """Nineteen times in twenty, without a warning as often."""
    held, silent = [], []
    for seed in range(n):
        machine = random_machine(hidden, seed)
        starts = torch.randint(0, 2, (64, hidden[0]), generator=seeded(seed)).double()
        found = bracket_machine(machine, None, 100, 200, 50, starts, seeded(1000 + seed))
        held.append(holds(found, float(machine.log_normaliser())))
        silent.append(found.warning is None)
    assert is_often(held)
    assert is_often(silent)


@FEW_AND_MANY
@pytest.mark.parametrize("share", [None, pytest.param(0.5, marks=pytest.mark.slow), 0.9])
@HIDDEN
def test_where_the_way_there_misses_a_mode_the_error_holds_or_a_warning_comes(hidden, share, n):
    """Whatever the proportions in which the way back knows of both modes; None is not at all."""
    answered = []
    for seed in range(n):
        machine = polar_machine(hidden, (0.05, 0.3)[seed % 2])
        starts = None if share is None else poles(64, hidden[0], share, seed)
        found = bracket_machine(machine, None, 100, 100, 50, starts, seeded(1000 + seed))
        answered.append(holds(found, float(machine.log_normaliser())) or found.warning is not None)
    assert is_often(answered)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_log_z_of_a_deep_machine_trained_on_two_far_groups_is_within_its_error_or_warned_of(seed, monkeypatch):
    monkeypatch.setattr("thalweg.estimators._deep._MOST_ENUMERATED", 0)
    rng = np.random.RandomState(seed)
    on = rng.uniform(size=(600, 1)) < 0.5
    rows = (rng.uniform(size=(600, 20)) < np.where(on, 0.97, 0.03)).astype(float)
    model = DeepBoltzmannMachine((10, 8), max_epochs_pretraining=20, max_epochs=40, random_state=seed).fit(rows)
    # The way back knows of both groups, from the rows and from the chains.
    assert 0.2 < float(model._starts[:64].mean()) < 0.8
    assert len(model._starts) == 128
    exact = float(model.energy_.log_normaliser())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        error = abs(model.log_normaliser_ - exact)
    assert error <= model.log_normaliser_error_ or model.log_normaliser_warning_ is not None


# -- Gaussian mixtures ----------------------------------------------------------------------------------------


def far_mixture() -> GaussianMixtureEnergy:
    return GaussianMixtureEnergy(
        torch.tensor([[-6.0, 0.0], [6.0, 0.0]]), torch.ones(2, 2), torch.tensor([0.3, 0.7])
    )


WIDE = GaussianMixtureEnergy(torch.zeros(1, 2), torch.tensor([[6.0, 1.5]]))
# Its draws come to the mode of the lesser mass only.
NARROW = GaussianMixtureEnergy(torch.tensor([[-6.0, 0.0]]), torch.full((1, 2), 1.5))


def bracket_of(base: GaussianMixtureEnergy, samples: torch.Tensor | None, seed: int) -> Bracket:
    return bracket_log_normaliser(far_mixture(), base, samples, 64, 40, generator=seeded(seed))


@FEW_AND_MANY
def test_the_stated_error_holds_on_a_mixture_whose_modes_are_all_known(n):
    found = [bracket_of(WIDE, far_mixture().sample(64, seeded(seed)), 1000 + seed) for seed in range(n)]
    assert is_often([holds(f, 0.0) for f in found])
    assert is_often([f.warning is None for f in found])


@pytest.mark.slow
@FEW_AND_MANY
@pytest.mark.parametrize("share", [*(pytest.param(s, marks=pytest.mark.slow) for s in (None, 0.7)), 0.4])
def test_a_missed_component_widens_the_bracket_or_is_warned_of(share, n):
    """log Z without it is log 0.3."""
    answered = []
    for seed in range(n):
        samples = None
        if share is not None:
            samples = torch.randn(64, 2, generator=seeded(seed))
            samples[:, 0] += torch.where(torch.rand(64, generator=seeded(seed)) < share, 6.0, -6.0)
        found = bracket_of(NARROW, samples, 1000 + seed)
        assert found.lower.estimate < -0.5
        answered.append(holds(found, 0.0) or found.warning is not None)
    assert is_often(answered)


# -- what a warning says --------------------------------------------------------------------------------------


def made(there: torch.Tensor, back: torch.Tensor, from_ends: bool = False) -> Bracket:
    """Of log weights as they would be for log Z = 0."""
    return Bracket(summarised(there, there), summarised(-back, back, -1.0), from_ends)


def gaussian_weights(variance: float, seed: int, n: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    """Log weights that are Gaussian there are so on the way back, with the mean of the other sign."""
    noise = math.sqrt(variance) * torch.randn(2, n, generator=seeded(seed), dtype=torch.float64)
    return noise[0] - variance / 2, noise[1] + variance / 2


@pytest.mark.parametrize("variance", [0.1, 1.0])
def test_weights_that_agree_raise_no_warning_and_the_error_is_two_standard_errors(variance):
    found = [made(*gaussian_weights(variance, seed)) for seed in range(200)]
    assert is_often([f.warning is None for f in found])
    assert is_often([holds(f, 0.0) for f in found])
    assert all(f.error >= 2 * max(f.lower.standard_error, f.upper.standard_error) for f in found)
    # The spread of the means of four groups is twice the standard error of the mean of all.
    ratio = torch.tensor([(f.upper.spread / f.upper.standard_error) ** 2 for f in found])
    assert abs(float(ratio.mean()) - 4) < 4 * float(ratio.std()) / math.sqrt(200) + 0.6 * variance


@pytest.mark.parametrize("ways", [(3.0, 5.0), (5.0, 3.0)])
def test_of_the_two_ways_back_the_higher_one_is_the_upper_bound(monkeypatch, ways):
    from thalweg.sampling import layered_annealing

    each = iter([2.0, *ways])

    def anneal(machine, base_bias, n_chains, n_steps, samples=None, generator=None):
        return summarised(torch.full((n_chains,), next(each)), torch.zeros(n_chains, 2))

    monkeypatch.setattr(layered_annealing, "anneal_machine", anneal)
    found = bracket_machine(RBMEnergy(3, 2), n_chains=8, n_steps=2, n_sweeps=1)
    assert (found.lower.estimate, found.upper.estimate) == pytest.approx((2.0, 5.0))


def test_each_fault_has_a_sentence_of_its_own():
    there, back = gaussian_weights(0.3, 0)
    assert made(there, back).warning is None
    assert "missing on both sides" in made(there, back, True).warning
    few = gaussian_weights(16.0, 0)[0]
    assert "Few chains have nearly all the weight" in made(few, back).warning
    shifted = back.clone()
    shifted[50:] += 4
    assert made(there, shifted).r_hat > 1.2
    assert "Groups of chains disagree" in made(there, shifted).warning
    assert "contradict" in made(there, back - 3).warning
    mixed = back.clone()
    mixed[::2] += 4
    assert "contradict" in made(there, mixed).warning


def test_where_the_bounds_cross_the_lower_one_is_the_estimate():
    there, back = gaussian_weights(0.3, 0)
    found = made(there, back - 3)
    assert found.width < 0
    assert found.estimate == found.lower.estimate
    assert found.error > -found.width / 2


def test_few_chains_and_even_weights_leave_nothing_to_compare():
    even = made(torch.zeros(20), torch.zeros(20))
    assert even.warning is None
    assert even.error == pytest.approx(0, abs=1e-12)
    assert even.r_hat == 1.0
    assert math.isnan(made(torch.zeros(8), torch.zeros(8)).r_hat)
    assert made(torch.zeros(4), torch.zeros(4)).upper.spread == 0
    assert math.isnan(made(torch.zeros(1), torch.zeros(1)).error)


def test_a_warning_comes_with_log_z_and_is_kept_with_a_saved_model(tmp_path, monkeypatch):
    doubtful = made(*gaussian_weights(0.3, 0), from_ends=True)
    for module in ("_deep", "boltzmann"):
        monkeypatch.setattr(f"thalweg.estimators.{module}._MOST_ENUMERATED", 0)
        monkeypatch.setattr(f"thalweg.estimators.{module}.bracket_machine", lambda *args, **how: doubtful)
    rows = (np.random.RandomState(0).uniform(size=(50, 6)) < 0.5).astype(float)
    for model in (
        RestrictedBoltzmannMachine(3, max_epochs=1, random_state=0),
        DeepBoltzmannMachine((3, 2), max_epochs_pretraining=1, max_epochs=1, random_state=0),
    ):
        model.fit(rows)
        with pytest.warns(UserWarning, match=r"log Z may be off by more than its error.*both sides"):
            assert model.log_normaliser_ == doubtful.estimate
        assert model.log_normaliser_error_ == doubtful.error
        assert model.log_normaliser_warning_ == doubtful.warning
        folder = tmp_path / type(model).__name__
        model.save(folder)
        loaded = type(model).load(folder)
        assert loaded.log_normaliser_warning_ == doubtful.warning
        if isinstance(model, RestrictedBoltzmannMachine):
            assert model.log_likelihood(rows).warning == doubtful.warning
    # Models saved before there were warnings.
    assert Normaliser.from_saved([1.0, 0.1]) == Normaliser(1.0, 0.1, None)
    assert Normaliser.from_saved(None) is None


# -- importance weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0.3, 0.7, 1.0])
def test_pareto_k_is_that_of_a_pareto_distribution(k):
    """The mean of 20 estimates, four of its standard errors and the fit's pull towards 0.5 allowed."""
    log_weights = -k * np.log(np.random.RandomState(0).uniform(size=(20, 20_000)))
    found = pareto_k(log_weights)
    assert found.shape == (20,)
    assert abs(found.mean() - k) < 4 * found.std(ddof=1) / math.sqrt(20) + 10 / 424 * abs(k - 0.5)
    np.testing.assert_allclose(pareto_k(torch.from_numpy(log_weights) + 900), found, rtol=1e-6)


def test_pareto_k_of_weights_without_a_tail():
    assert math.isnan(pareto_k(np.zeros(10)))
    assert (pareto_k(np.zeros((3, 100))) == -np.inf).all()
    lonely = np.random.RandomState(0).randn(100)
    lonely[3:] = -np.inf
    assert pareto_k(lonely) == np.inf
    lonely[3:] = -1e4
    assert pareto_k(lonely) == np.inf


@pytest.mark.parametrize(("width", "trusted"), [(1.2, True), (0.3, False)])
def test_pareto_k_tells_a_proposal_that_covers_from_one_that_is_too_narrow(width, trusted):
    """Of Gaussians in one dimension k is 1 - width^2, and below 0 for a wide one."""
    target = GaussianMixtureEnergy(torch.zeros(1, 1), torch.ones(1, 1))
    proposal = GaussianMixtureEnergy(torch.zeros(1, 1), torch.full((1, 1), width))
    found = log_normaliser(target, proposal, 50_000, seeded(0))
    assert (found.pareto_k < LARGEST_PARETO_K) == trusted
    assert found.pareto_k < 0 if trusted else found.pareto_k > 0.75
    if trusted:
        assert abs(found.estimate) < 4 * found.standard_error


def test_importance_sampling_that_cannot_be_trusted_gives_way_to_annealing():
    """In 8 dimensions a proposal of 0.6 of the width has weights of k = 0.64 in each; one that covers is kept."""
    target = GaussianMixtureEnergy(torch.zeros(1, 8), torch.ones(1, 8))
    rows = target.sample(300, seeded(1))
    wide = GaussianMixtureEnergy(torch.zeros(1, 8), 1.3 * torch.eye(8)[None])
    found = estimate_normaliser(target, wide, rows, 0)
    assert abs(found.estimate) < 2 * found.error < 0.05
    narrow = GaussianMixtureEnergy(torch.zeros(1, 8), 0.6 * torch.eye(8)[None])
    assert log_normaliser(target, narrow, 100_000, seeded(0)).pareto_k > LARGEST_PARETO_K
    found = estimate_normaliser(target, narrow, rows, 0)
    assert abs(found.estimate) < 2 * found.error
    assert found.warning is None


def test_a_mode_that_only_the_data_know_is_warned_of():
    """A proposal at one of two modes: the chains there miss the other, which the way back starts in."""
    modes = torch.tensor([[-8.0] * 4, [8.0] * 4])
    target = GaussianMixtureEnergy(modes, torch.eye(4).repeat(2, 1, 1))
    one = GaussianMixtureEnergy(modes[:1], 0.5 * torch.eye(4)[None])
    with pytest.warns(UserWarning, match="contradict"):
        found = estimate_normaliser(target, one, target.sample(300, seeded(1)), 0)
    assert "contradict" in found.warning


def test_starts_that_are_too_few_for_the_way_back_are_copied_beside_one_another():
    """Each group of chains has states of its own: without a sweep or a bridge the chains end where they start."""
    machine = random_machine([6], 0)
    states = torch.randint(2, (4, 6), generator=seeded(1)).double()
    assert len(states.unique(dim=0)) == 4
    found = bracket_machine(machine, None, n_chains=8, n_steps=1, n_sweeps=0, samples=states, generator=seeded(2))
    torch.testing.assert_close(found.upper.position, states[[0, 0, 1, 1, 2, 2, 3, 3]])
