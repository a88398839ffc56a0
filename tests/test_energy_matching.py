"""Energy matching: pairs by optimal transport, the flow down an energy's gradient, and the contrast after it."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import sem
from torch import nn

from parts import seeded
from thalweg.energies import (
    BoltzmannMachine,
    Energy,
    GaussianMixtureEnergy,
    LabelledEnergy,
    PerceptronEnergy,
    UniformEnergy,
)
from thalweg.objectives import Batch, EnergyMatching
from thalweg.objectives.energy_matching import nearest_pairs
from thalweg.sampling import Heun, run_chain
from thalweg.training import Plan, Trainer


class Quadratic(Energy):
    """(k / 2)|x|^2."""

    def __init__(self, k):
        super().__init__()
        self.k = nn.Parameter(torch.tensor(float(k), dtype=torch.float64))

    def forward(self, x):
        return 0.5 * self.k * x.square().sum(-1)


class Slope(Energy):
    """a'x."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, x):
        return x @ self.a


def standard(k, dtype=torch.float64):
    return GaussianMixtureEnergy(torch.zeros(1, k, dtype=dtype), torch.ones(1, k, dtype=dtype))


# -- pairs -------------------------------------------------------------------------------------------------


def test_pairs_have_the_least_sum_of_squared_distances_of_all_assignments():
    noise, y = (torch.randn(6, 2, generator=seeded(i)) for i in range(2))
    found = nearest_pairs(noise, y)
    assert sorted(found.tolist()) == list(range(6))

    def cost(order):
        return float((noise[list(order)] - y).square().sum())

    assert cost(found.tolist()) == pytest.approx(min(map(cost, itertools.permutations(range(6)))))


def test_on_the_line_pairs_keep_the_order():
    noise, y = torch.randn(50, 1, generator=seeded(0)), 5 * torch.rand(50, 1, generator=seeded(1))
    paired = noise[nearest_pairs(noise, y)]
    assert (paired[y[:, 0].argsort()].diff(dim=0) >= 0).all()


def test_rows_are_paired_only_with_noise_of_their_own_group():
    noise, y = torch.zeros(40, 3), torch.randn(40, 3, generator=seeded(1))
    noise[:, 0] = torch.arange(40.0)
    x = torch.arange(40.0) % 3
    found = nearest_pairs(noise, y, x)
    assert sorted(found.tolist()) == list(range(40))
    assert (x[found] == x).all()
    alone = nearest_pairs(noise, y, torch.arange(40.0)[:, None])
    assert alone.tolist() == list(range(40))


def test_a_large_group_is_paired_part_by_part():
    noise, y = (torch.randn(10, 2, generator=seeded(i)) for i in range(2))
    found = nearest_pairs(noise, y, most=4)
    parts = [nearest_pairs(noise[part], y[part]) + part.start for part in (slice(0, 4), slice(4, 8), slice(8, 10))]
    assert found.tolist() == torch.cat(parts).tolist()


# -- the loss ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0.0, -1.0, 2.5])
def test_without_pairs_the_loss_of_a_quadratic_is_its_closed_form(k):
    """With y of variance s^2 and t uniform: E(k y_t + y - z)^2 = s^2 (k^2/3 + k + 1) + k^2/3 - k + 1."""
    n, s = 40_000, 0.5
    y = s * torch.randn(n, 2, generator=seeded(3), dtype=torch.float64)
    objective, energy = EnergyMatching(standard(2)), Quadratic(k)
    start = standard(2).sample((n,), seeded(4))
    losses = objective._losses(energy, Batch(None, y), start, seeded(5)).detach().numpy()
    truth = s**2 * (k**2 / 3 + k + 1) + k**2 / 3 - k + 1
    assert abs(losses.mean() - truth) < 4 * sem(losses)


def test_pairs_lower_the_loss_and_the_loss_of_few_rows_has_the_same_mean():
    y = torch.randn(256, 2, generator=seeded(3), dtype=torch.float64)
    energy = Quadratic(-0.1)
    losses = EnergyMatching(standard(2)).per_row(energy, Batch(None, y), seeded(1)).detach()
    # Both are standard Gaussians: paired, noise and data nearly agree, where without pairs the loss is about 2.
    assert losses.mean() < 0.2
    unpaired = (
        EnergyMatching(standard(2)).per_row(energy, Batch(torch.arange(400.0), y), seeded(1)) if False else 2.0
    )
    assert losses.mean() < 0.2 * unpaired

    def losses_of(n):
        objective = EnergyMatching(standard(2), n_rows=n)
        return [float(objective(energy, Batch(None, y), seeded(i)).value.detach()) for i in range(30)]

    few, all_rows = losses_of(50), losses_of(None)
    # The first rows of one set of data, so that their mean differs by what 50 of 256 rows vary.
    spread = float(losses.std()) / 50**0.5
    assert abs(np.mean(few) - np.mean(all_rows)) < 4 * np.hypot(sem(few), spread)
    assert np.std(few) > np.std(all_rows)


def test_the_contrast_is_the_energy_of_the_data_less_that_of_chains_run_for_their_time():
    """On a slope chains without temperature move by minus time times slope, wherever they start."""
    a = [1.0, -2.0]
    energy, n, time = Slope(a), 8, 0.3
    here = UniformEnergy(torch.full((2,), -1e-9).double(), torch.full((2,), 1e-9).double())
    how = {"temperature": 0.0, "n_steps": 6, "step_size": 0.05, "n_chains": n}
    objective = EnergyMatching(here, contrast=0.5, **how)
    y = torch.randn(n, 2, generator=seeded(0), dtype=torch.float64)
    loss = objective(energy, Batch(None, y), seeded(1)).value
    slope = torch.tensor(a, dtype=torch.float64)
    # Half of the chains start at the data, half at zero, where the noise is.
    ends = (y[::2] @ slope).sum() / n - time * 5.0
    gap = float((y @ slope).mean() - ends)
    assert objective.metrics["energy gap"] == pytest.approx(gap)
    plain = EnergyMatching(here, **how)(energy, Batch(None, y), seeded(1)).value
    assert float((loss - plain).detach()) == pytest.approx(0.5 * gap)


def test_the_contrast_waits_for_the_warm_up_and_only_training_counts():
    objective = EnergyMatching(standard(2), contrast=1.0, warm_up=2, n_steps=2)
    data = Batch(None, torch.randn(6, 2, generator=seeded(0), dtype=torch.float64))
    told = []
    for training in (False, True, False, True, False):
        objective.train(training)(Quadratic(1.0), data, seeded(1))
        told.append("energy gap" in objective.metrics)
    assert told == [False, False, False, False, True]
    other = EnergyMatching(standard(2), contrast=1.0, warm_up=2, n_steps=2)
    other.load_state_dict(copy.deepcopy(objective.state_dict()))
    assert int(other.n_updates) == 2


def test_chains_from_the_data_have_the_temperature_from_the_start_those_from_noise_when_they_have_arrived():
    """In a valley of curvature k the variance tends to temperature / k; without temperature to 0."""
    k, temperature, n = 4.0, 0.3, 4000
    y = torch.zeros(n, 1, dtype=torch.float64)
    for n_steps, cold in ((18, True), (100, False)):
        objective = EnergyMatching(
            standard(1), contrast=1.0, temperature=temperature, n_steps=n_steps, step_size=0.05, n_chains=n
        )
        _, ends = objective._chains(Quadratic(k), Batch(None, y), y, seeded(2))
        from_data, from_noise = ends[::2, 0], ends[1::2, 0]
        # A step of Euler's is x (1 - kh) + sqrt(2 Th) noise: its own stationary variance.
        shrink = 1 - k * 0.05
        stationary = 2 * temperature * 0.05 / (1 - shrink**2)
        expected = stationary * (1 - shrink ** (2 * n_steps))
        error = 4 * math.sqrt(2 / (n / 2))
        assert float(from_data.var()) == pytest.approx(expected, rel=error)
        left = shrink ** (2 * n_steps)
        assert float(from_noise.var()) == pytest.approx(
            left if cold else stationary, rel=error if not cold else 0.1
        )


def test_the_likelihood_of_labels_is_added_by_its_weight():
    torch.manual_seed(0)
    labelled = LabelledEnergy(nn.Linear(2, 3)).double()
    energy, y = labelled.of_inputs(), torch.randn(7, 2, generator=seeded(0), dtype=torch.float64)
    data = Batch(torch.arange(7.0) % 3, y)
    plain, added = (EnergyMatching(standard(2), label_weight=weight) for weight in (0.0, 0.5))
    losses = [objective.per_row(energy, data, seeded(1)) for objective in (plain, added)]
    log_probs = labelled.given(y).log_prob(data.x.long())
    torch.testing.assert_close(losses[1] - losses[0], -0.5 * log_probs)
    assert added.metrics["log loss of labels"] == pytest.approx(float(-log_probs.mean().detach()))
    with pytest.raises(TypeError, match="label_weight is for an energy of inputs given labels"):
        added.check(Quadratic(1.0), Batch(None, y))


def test_what_it_cannot_train_is_refused():
    with pytest.raises(ValueError, match="n_rows must be at least 1"):
        EnergyMatching(standard(2), n_rows=0)
    bits = Batch(None, torch.ones(4, 3))
    with pytest.raises(ValueError, match="EnergyMatching is for continuous values"):
        EnergyMatching(standard(3, torch.float32))(BoltzmannMachine(3), bits)


# -- the flow ----------------------------------------------------------------------------------------------


def test_heun_follows_the_gradient_to_second_order():
    """Down (k / 2) x^2 for unit time x falls to exp(-k) x."""
    start, energy = torch.ones(1, 1, dtype=torch.float64), Quadratic(1.5)
    errors = [abs(float(run_chain(Heun(1 / n), energy, start, n).position) - math.exp(-1.5)) for n in (10, 20, 40)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_heun_at_a_temperature_has_its_variance_in_a_valley():
    k, temperature, n, h = 2.0, 0.5, 4000, 0.05
    start = torch.zeros(n, 1, dtype=torch.float64)
    ends = run_chain(Heun(h, temperature), Quadratic(k), start, 200, seeded(0)).position
    shrink = 1 - k * h + (k * h) ** 2 / 2
    assert float(ends.var()) == pytest.approx(2 * temperature * h / (1 - shrink**2), rel=4 * math.sqrt(2 / n))
    assert float(ends.var()) == pytest.approx(temperature / k, rel=0.1)


def test_noise_flows_to_the_data():
    """A ring of radius 2: matched, the noise ends near it, all the way round."""
    angle = 2 * math.pi * torch.rand(2000, generator=seeded(0))
    y = 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(2000, 2, generator=seeded(1))
    torch.manual_seed(0)
    energy = PerceptronEnergy(2, (32, 32))
    objective = EnergyMatching(standard(2, torch.float32))
    plan = Plan(max_steps=300, max_epochs=100, batch_size=128, learning_rate=1e-2)
    history = Trainer(plan).fit(energy, objective, Batch(None, y))
    assert history.rollbacks == 0
    noise = torch.randn(1000, 2, generator=seeded(2))
    ends = run_chain(Heun(0.05), energy, noise, 20).position
    radius = ends.norm(dim=1)
    assert float((radius - 2).abs().median()) < 0.3
    quarter = ends.sign()
    shares = [
        float((quarter == torch.tensor(s)).all(1).double().mean())
        for s in itertools.product((-1.0, 1.0), repeat=2)
    ]
    assert min(shares) > 0.15
