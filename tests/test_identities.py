"""Identities of the field: what one objective is known to equal, or to tend to, in terms of another."""

import copy
import functools
import math

import pytest
import torch
import zuko
from torch import nn

from thalweg.energies import (
    ConditionalModuleEnergy,
    Energy,
    FlowEnergy,
    GaussianEnergy,
    GaussianMixtureEnergy,
    NetworkEnergy,
    PerceptronEnergy,
    mlp,
)
from thalweg.objectives.base import Batch, turn
from thalweg.objectives.contrastive_divergence import ContrastiveDivergence, ImprovedContrastiveDivergence
from thalweg.objectives.energy_discrepancy import EnergyDiscrepancy
from thalweg.objectives.likelihood import GridLikelihood
from thalweg.objectives.noise_contrastive import (
    ConditionalNCE,
    FlowContrastiveEstimation,
    NoiseContrastiveEstimation,
)
from thalweg.objectives.score_matching import DenoisingScoreMatching, ScoreMatching, SlicedScoreMatching
from thalweg.objectives.stein import SteinDiscrepancy
from thalweg.sampling.buffer import FromData, ReplayBuffer
from thalweg.sampling.chain import run_chain
from thalweg.sampling.hmc import HMC
from thalweg.sampling.langevin import MALA, Langevin


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def double(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def perturbed(module: nn.Module, scale: float = 0.3) -> nn.Module:
    """In double precision, with no parameter at zero."""
    generator = seeded(3)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(scale * torch.randn(weight.shape, generator=generator))
    return module.double()


class Quadratic(Energy):
    """E(x) = (x - mean)' L (x - mean) / 2 - lift, with mean and precision L learned."""

    def __init__(self, mean: torch.Tensor, precision: torch.Tensor, lift: float = 0.0):
        super().__init__()
        self.mean = nn.Parameter(mean.clone())
        self.precision = nn.Parameter(precision.clone())
        self.lift = lift

    def symmetric(self) -> torch.Tensor:
        return 0.5 * (self.precision + self.precision.t())

    def forward(self, x):
        centred = x - self.mean
        return 0.5 * ((centred @ self.symmetric()) * centred).sum(-1) - self.lift

    @property
    def log_normaliser(self) -> float:
        d = len(self.mean)
        return 0.5 * (d * math.log(2 * math.pi) - float(torch.logdet(self.symmetric()).detach())) + self.lift


def line(mean: float, precision: float, lift: float = 0.0) -> Quadratic:
    """On the line."""
    return Quadratic(torch.tensor([mean]).double(), torch.tensor([[precision]]).double(), lift)


def bowl(d: int = 2, hidden: int = 8) -> Energy:
    """Of a perceptron and a quadratic: smooth, curved, and rising on all sides."""
    floor = GaussianEnergy(torch.zeros(d).double(), torch.ones(d).double())
    return perturbed(PerceptronEnergy(d, (hidden,))) + floor


def gradient(value: torch.Tensor, *modules: nn.Module) -> torch.Tensor:
    """Of a loss with respect to all parameters, as one vector; zero where it does not reach."""
    weights = [w for module in modules for w in module.parameters()]
    grads = torch.autograd.grad(value, weights, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(w) if g is None else g).flatten() for w, g in zip(weights, grads, strict=True)]
    )


def directional_difference(module: nn.Module, function, step: float = 1e-6) -> tuple[torch.Tensor, float]:
    """A random direction in the parameters, and the central difference of ``function()`` along it."""
    weights = list(module.parameters())
    directions = [double(*w.shape, seed=20 + i) for i, w in enumerate(weights)]
    values = []
    for size in (step, -2 * step, step):
        with torch.no_grad():
            for w, d in zip(weights, directions, strict=True):
                w += size * d
        values.append(float(function().detach()))
    return torch.cat([d.flatten() for d in directions]), (values[0] - values[1]) / (2 * step)


def assert_mean(replicates: list[torch.Tensor], expected: torch.Tensor, slack: torch.Tensor | float = 0.0) -> None:
    """Within 4.5 standard errors in every coordinate, and not because these are large."""
    stacked = torch.stack(replicates)
    error = stacked.std(0) / math.sqrt(len(stacked))
    assert ((stacked.mean(0) - expected).abs() <= 4.5 * error + slack).all()
    assert float(error.norm()) < 0.2 * float(expected.norm()) + 0.05


# -- contrastive divergence -------------------------------------------------------------------------------


class ReversibleNCE(ConditionalNCE):
    """Conditional NCE whose noise is a step of a kernel that is reversible for the model itself."""

    def perturb(self, given, y, generator):
        start = y.unsqueeze(1).expand(-1, self.n_noise, *y.shape[1:])
        moved = run_chain(MALA(0.3), given, start, 1, generator).position
        # p(y) q(y~|y) = p(y~) q(y|y~).
        log_ratio = given(y.unsqueeze(1)) - given(moved)
        return moved, log_ratio.detach()


@pytest.mark.parametrize("conditional", [False, True])
def test_conditional_nce_by_a_reversible_kernel_of_the_model_is_contrastive_divergence(conditional):
    """The loss is 2 log 2 whatever the energy, and its gradient CD-1's [Yair 2021, sec. 3]."""
    y = double(7, 2)
    if conditional:
        energy, x = perturbed(NetworkEnergy(mlp([3, 6]), 6, 2, hidden=8)), double(7, 3, seed=6)
    else:
        energy, x = bowl(), None
    batch = Batch(x, y)
    loss = ReversibleNCE(noise_std=1.0, n_noise=5).per_row(energy, batch, seeded())
    torch.testing.assert_close(
        loss.detach(), torch.full((7,), 2 * math.log(2), dtype=torch.float64), rtol=0, atol=1e-12
    )
    divergence = ContrastiveDivergence(MALA(0.3), 1, FromData(5)).per_row(energy, batch, seeded())
    expected = gradient(divergence.mean(), energy)
    assert float(expected.norm()) > 0.05
    torch.testing.assert_close(gradient(loss.mean(), energy), expected)


def test_one_short_langevin_step_of_contrastive_divergence_is_score_matching():
    """The gradient over the step size [Hyvärinen 2007]; the rest is of the order of the step."""
    energy, step = bowl(), 2e-3
    batch = Batch(None, double(5, 2))
    expected = gradient(ScoreMatching()(energy, batch).value, energy)
    objective = ContrastiveDivergence(Langevin(step), 1, FromData(20_000))
    found = [gradient(objective(energy, batch, seeded(i)).value, energy) / step for i in range(20)]
    assert_mean(found, expected, slack=5 * step * expected.abs() + 1e-9)


def test_persistent_chains_that_have_mixed_give_the_gradient_of_the_likelihood():
    """Of E = L (y - mean)^2 / 2: the data's moments against the model's, in closed form.

    A trajectory is a quarter of a turn, so each forgets the last, and where the chains started afresh.
    """
    energy, data = line(0.4, 2.0), 0.5 + 1.2 * double(200, 1)
    noise = GaussianMixtureEnergy(torch.zeros(1, 1).double(), torch.full((1, 1), 2.0).double())
    objective = ContrastiveDivergence(HMC(0.22, 5), 4, ReplayBuffer(noise, 2000, 1000, restart=0.02))
    generator, batch = seeded(), Batch(None, data)
    for _ in range(20):
        objective(energy, batch, generator)
    assert objective.start.alive.all()
    found = [gradient(objective(energy, batch, generator).value, energy) for _ in range(60)]
    centred = data - 0.4
    expected = torch.stack([-2.0 * centred.mean(), 0.5 * centred.square().mean() - 0.5 / 2.0])
    assert_mean(found, expected)
    likelihood = gradient(GridLikelihood(-8.0, 8.0, 400, 1)(energy, batch).value, energy)
    torch.testing.assert_close(likelihood, expected, rtol=1e-5, atol=1e-6)


def test_a_fit_by_persistent_chains_finds_the_mean_and_the_precision_of_the_data():
    """The likelihood's answer is the data's own moments. The steps leave a wandering of one or two per cent,
    which the mean of the last ones reduces."""
    data = 0.5 + 1.2 * double(500, 1)
    energy = line(-1.0, 3.0)
    noise = GaussianMixtureEnergy(torch.zeros(1, 1).double(), torch.full((1, 1), 2.0).double())
    objective = ContrastiveDivergence(MALA(0.5), 8, ReplayBuffer(noise, 1000, 400))
    optimiser, generator, path = torch.optim.Adam(energy.parameters(), 0.05), seeded(), []
    for step in range(250):
        optimiser.zero_grad()
        objective(energy, Batch(None, data), generator).value.backward()
        optimiser.step()
        if step >= 150:
            path.append([float(energy.mean.detach()), float(energy.precision.detach())])
    mean, precision = torch.tensor(path).mean(0)
    assert float(mean) == pytest.approx(float(data.mean()), abs=0.03)
    assert float(precision) == pytest.approx(1 / float(data.var(correction=0)), rel=0.03)


def test_an_input_that_is_missing_or_not_asked_for_is_refused_in_words():
    conditional = NetworkEnergy(mlp([3, 6]), 6, 2)
    with pytest.raises(TypeError, match="NetworkEnergy is conditional: the batch needs an x"):
        ContrastiveDivergence(MALA(0.1))(conditional, Batch(None, torch.zeros(4, 2)))
    with pytest.raises(TypeError, match="Quadratic is not conditional: the batch must have no x"):
        ScoreMatching()(line(0.0, 1.0), Batch(torch.zeros(4, 3), torch.zeros(4, 1)))


def test_out_of_training_the_chains_are_not_stored():
    buffer = ReplayBuffer(GaussianMixtureEnergy(torch.zeros(1, 1).double(), torch.ones(1, 1).double()), 50, 20)
    objective = ContrastiveDivergence(MALA(0.1), 3, buffer).eval()
    objective(line(0.0, 1.0), Batch(None, double(4, 1)), seeded())
    assert not buffer.alive.any()
    objective.train()(line(0.0, 1.0), Batch(None, double(4, 1)), seeded())
    assert int(buffer.alive.sum()) == 20


# -- the term that contrastive divergence leaves out -------------------------------------------------------


def improved(**settings) -> ImprovedContrastiveDivergence:
    settings = {"kl_weight": 0.0, "entropy_weight": 0.0, "n_neighbours": 1000} | settings
    return ImprovedContrastiveDivergence(Langevin(0.1), 3, FromData(4), **settings)


@pytest.mark.parametrize("differentiable_steps", [1, 3])
def test_without_its_terms_the_improved_divergence_is_the_plain_one_bit_for_bit(differentiable_steps):
    energy = perturbed(NetworkEnergy(mlp([3, 6]), 6, 2, hidden=8))
    batch = Batch(double(6, 3), double(6, 2, seed=6))
    plain = ContrastiveDivergence(Langevin(0.1), 3, FromData(4))(energy, batch, seeded()).value
    found = improved(differentiable_steps=differentiable_steps)(energy, batch, seeded()).value
    assert torch.equal(found, plain)
    assert torch.equal(gradient(found, energy), gradient(plain, energy))


@pytest.mark.parametrize("term", ["kl", "entropy"])
def test_the_gradient_of_the_terms_left_out_is_that_of_the_chains_alone(term):
    """Against finite differences with the noise fixed, and the energy that weighs the ends (or the neighbours)
    held where it was: what the plain divergence ignores is all that is added."""
    energy, batch = bowl(), Batch(None, double(6, 2))
    objective = improved(differentiable_steps=3, **{f"{term}_weight": 1.0})
    plain = ContrastiveDivergence(Langevin(0.1), 3, FromData(4))
    added = gradient(objective(energy, batch, seeded()).value, energy)
    added -= gradient(plain(energy, batch, seeded()).value, energy)
    held = copy.deepcopy(energy)
    start = batch.y.unsqueeze(1).expand(6, 4, 2)
    neighbours = run_chain(Langevin(0.1), held, start, 3, seeded()).position.reshape(-1, 2)

    def value():
        end = run_chain(Langevin(0.1), energy, start, 3, seeded()).position
        if term == "kl":
            return held(end).mean()
        distances = (end.reshape(-1, 1, 2) - neighbours).square().sum(-1).sqrt()
        return -distances.masked_fill(torch.eye(24, dtype=torch.bool), math.inf).amin(1).log().mean()

    direction, expected = directional_difference(energy, value)
    assert abs(expected) > 1e-3
    assert float(added @ direction) == pytest.approx(expected, rel=1e-5)


def entropy(draws: torch.Tensor, n_neighbours: int = 10_000) -> float:
    """As the objective estimates it, of chains that stay where they start."""
    objective = ImprovedContrastiveDivergence(Langevin(0.0), 1, FromData(), n_neighbours=n_neighbours)
    energy = GaussianEnergy(torch.zeros(draws.shape[1]).to(draws), torch.ones(draws.shape[1]).to(draws))
    objective(energy, Batch(None, draws), seeded())
    return objective.metrics["entropy"]


def test_the_entropy_of_chains_rises_by_the_logarithm_of_their_stretch():
    draws = double(500, 3)
    for n_neighbours in (100, 10_000):
        assert entropy(5 * draws, n_neighbours) - entropy(draws, n_neighbours) == pytest.approx(math.log(5))


def test_one_chain_alone_has_no_neighbours_and_a_loss_all_the_same():
    objective = ImprovedContrastiveDivergence(Langevin(0.1), 3, FromData())
    energy = bowl()
    found = gradient(objective(energy, Batch(None, double(1, 2)), seeded()).value, energy)
    assert torch.isfinite(found).all()
    assert float(found.norm()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 2])
def test_the_entropy_of_chains_is_right_up_to_a_constant_and_the_dimension(d, dtype):
    """Of a Gaussian log(2 pi e) / 2 for each coordinate and of a unit cube 0, both over D. The logarithm of a
    nearest distance spreads by some 1.3 / D, and neighbours share it: 4 standard errors of 2 / D / sqrt(n)."""
    n = 3000
    gaussian = torch.randn(n, d, generator=seeded(1), dtype=dtype)
    cube = torch.rand(n, d, generator=seeded(2), dtype=dtype)
    found = entropy(gaussian) - entropy(cube)
    # The cube's sides and the Gaussian's tails: of the order of the distance to the neighbours, 1 / 55 in 2-D.
    assert found == pytest.approx(0.5 * math.log(2 * math.pi * math.e), abs=4 * 2.8 / d / math.sqrt(n) + 0.02)


# -- score matching ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", ["rademacher", "gaussian"])
@pytest.mark.parametrize("variance_reduction", [False, True])
def test_sliced_score_matching_is_score_matching_in_expectation(projection, variance_reduction):
    energy, batch = bowl(3), Batch(None, double(5, 3))
    exact = ScoreMatching().per_row(energy, batch, None)
    objective = SlicedScoreMatching(400, variance_reduction, projection)
    values, grads = [], []
    for seed in range(20):
        rows = objective.per_row(energy, batch, seeded(seed))
        values.append(rows.detach())
        grads.append(gradient(rows.mean(), energy))
    assert_mean(values, exact.detach())
    assert_mean(grads, gradient(exact.mean(), energy), slack=1e-9)


@pytest.mark.parametrize("scale", [0.3, 3.0])
@pytest.mark.parametrize("projection", ["rademacher", "gaussian"])
def test_the_variance_of_sliced_score_matching_is_what_its_moments_say(projection, scale):
    """With g the gradient and H the Hessian, of v'Hv it is 2 |H|^2, of (v'g)^2 / 2 it is |g|^4 / 2 and their
    covariance is g'Hg, off the diagonals alone for signs. So the reduced form has less variance where the gradient
    is large, and not in the bottom of a valley, where both terms rise together."""
    energy, y, n = bowl(3), scale * double(1, 3), 40_000
    grad = -energy.score(y).detach()[0]
    hessian = torch.autograd.functional.hessian(energy, y[0])
    off = 1 - torch.eye(3).double() if projection == "rademacher" else torch.ones(3, 3).double()
    outer = grad[:, None] * grad
    bend, square = 2 * (hessian.square() * off).sum(), 0.5 * (outer.square() * off).sum()
    shared = (outer * hessian * off).sum()
    found = []
    for reduced, expected in [(False, bend + square - 2 * shared), (True, bend)]:
        objective = SlicedScoreMatching(1, reduced, projection)
        values = objective.per_row(energy, Batch(None, y.expand(n, 3)), seeded()).detach()
        centred = values - values.mean()
        error = float((centred**4).mean() - centred.var() ** 2) ** 0.5 / math.sqrt(n)
        assert abs(float(values.var() - expected)) < 4 * error
        found.append(float(values.var()))
    assert (found[1] < found[0]) == bool(square > 2 * shared)


def test_the_gradient_of_score_matching_is_zero_at_the_inverse_covariance_of_the_sample():
    data = double(50, 3) @ double(3, 3, seed=6) + 1.0
    covariance = torch.cov(data.t(), correction=0)
    truth = Quadratic(data.mean(0), torch.linalg.inv(covariance))
    found = gradient(ScoreMatching()(truth, Batch(None, data)).value, truth)
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-9)
    other = Quadratic(data.mean(0), torch.linalg.inv(covariance + 0.1 * torch.eye(3)))
    assert float(gradient(ScoreMatching()(other, Batch(None, data)).value, other).norm()) > 0.01


def test_denoising_score_matching_is_least_at_the_inverse_of_the_covariance_with_that_of_the_noise():
    data = double(50, 2) @ torch.tensor([[1.0, 0.0], [0.6, 0.5]]).double()
    covariance, blur = torch.cov(data.t(), correction=0), 0.16 * torch.eye(2).double()
    objective = DenoisingScoreMatching(0.4, n_samples=500)

    def gradients(precision):
        energy = Quadratic(data.mean(0), precision)
        return [gradient(objective(energy, Batch(None, data), seeded(i)).value, energy) for i in range(30)]

    assert_mean(gradients(torch.linalg.inv(covariance + blur)), torch.zeros(6).double())
    wrong = torch.stack(gradients(torch.linalg.inv(covariance)))
    assert float((wrong.mean(0).abs() / wrong.std(0)).max()) * math.sqrt(30) > 20


# -- energy discrepancy -----------------------------------------------------------------------------------


class Mirrored(Energy):
    """The same energy with every place reflected about one: noise of the other sign."""

    def __init__(self, energy: Energy, centre: torch.Tensor):
        super().__init__()
        self.energy, self.centre = energy, centre

    def forward(self, x):
        return self.energy(2 * self.centre - x)


def test_energy_discrepancy_of_small_noise_is_score_matching_times_its_variance():
    """Value and gradient, without the stabiliser. Noise of both signs takes the odd orders away; what is left
    is of the order of std^2, and of 1 / M in the first term."""
    energy, std, m = bowl(), 0.03, 128
    objective = EnergyDiscrepancy(std, m, stabiliser=0.0)
    for centre in double(2, 2, seed=8):
        exact = ScoreMatching()(energy, Batch(None, centre[None])).value
        batch, both = Batch(None, centre.expand(500, 2)), [energy, Mirrored(energy, centre)]
        values, grads = [], []
        for seed in range(12):
            value = sum(objective(e, batch, seeded(seed)).value for e in both) / 2 / std**2
            values.append(value.detach().reshape(1))
            grads.append(gradient(value, energy))
        half_square = 0.5 * float(energy.score(centre).detach().square().sum())
        assert_mean(values, exact.detach().reshape(1), slack=2 * half_square / m + 20 * std**2)
        expected = gradient(exact, energy)
        assert_mean(grads, expected, slack=0.03 * float(expected.norm()))


@pytest.mark.parametrize("std", [0.3, 1.0])
def test_energy_discrepancy_is_least_at_the_true_gaussian(std):
    """At any noise, up to the bias of M draws, which is below the standard error here."""
    truth = line(0.3, 2.0)
    objective = EnergyDiscrepancy(std, 256)

    def gradients(energy):
        found = []
        for seed in range(20):
            data = 0.3 + double(1000, 1, seed=seed) / math.sqrt(2.0)
            found.append(gradient(objective(energy, Batch(None, data), seeded(100 + seed)).value, energy))
        return torch.stack(found)

    right, wrong = gradients(truth), gradients(line(0.5, 1.4))
    error = right.std(0) / math.sqrt(20)
    assert (right.mean(0).abs() < 4 * error).all()
    assert float((wrong.mean(0).abs() / wrong.std(0)).max()) * math.sqrt(20) > 8


# -- noise-contrastive estimation -------------------------------------------------------------------------


def wide_noise() -> GaussianMixtureEnergy:
    return GaussianMixtureEnergy(torch.zeros(1, 1).double(), torch.full((1, 1), 1.5).double())


def nce(log_normaliser: float, ratio: int) -> NoiseContrastiveEstimation:
    objective = NoiseContrastiveEstimation(wide_noise(), ratio).double()
    with torch.no_grad():
        objective.log_normaliser.fill_(log_normaliser)
    return objective


@pytest.mark.parametrize("ratio", [1, 5])
def test_the_gradient_of_nce_is_zero_at_the_truth_with_its_own_log_normaliser(ratio):
    """And at no other: neither with log Z off by log ratio, the price of forgetting it, nor off by 0.1."""
    energy = line(0.3, 2.0, lift=1.5)

    def gradients(log_normaliser):
        objective, found = nce(log_normaliser, ratio), []
        for seed in range(40):
            data = 0.3 + double(1000, 1, seed=seed) / math.sqrt(2.0)
            loss = objective(energy, Batch(None, data), seeded(100 + seed)).value
            found.append(gradient(loss, energy, objective))
        return torch.stack(found)

    right = gradients(energy.log_normaliser)
    assert (right.mean(0).abs() < 4 * right.std(0) / math.sqrt(40)).all()
    for off in (0.1, math.log(5)):
        wrong = gradients(energy.log_normaliser + off)[:, -1]
        assert float(wrong.mean().abs() / wrong.std()) * math.sqrt(40) > 8


def test_nce_learns_the_log_normaliser_of_a_lifted_gaussian():
    """Ten fits of 2000 rows to the minimum: their mean is right to four standard errors, and none is far."""
    errors = []
    for seed in range(10):
        energy, objective = line(0.0, 1.0, lift=2.0), nce(0.0, 5)
        data = Batch(None, 0.3 + double(2000, 1, seed=seed) / math.sqrt(2.0))
        weights = [*energy.parameters(), *objective.parameters()]
        optimiser = torch.optim.LBFGS(weights, max_iter=60, line_search_fn="strong_wolfe")

        def loss(optimiser=optimiser, energy=energy, objective=objective, data=data, seed=seed):
            optimiser.zero_grad()
            value = objective(energy, data, seeded(100 + seed)).value
            value.backward()
            return value

        optimiser.step(loss)
        errors.append(float(objective.log_normaliser.detach()) - (0.5 * math.log(2 * math.pi / 2.0) + 2.0))
    errors = torch.tensor(errors)
    assert abs(float(errors.mean())) < 4 * float(errors.std()) / math.sqrt(10)
    assert float(errors.abs().max()) < 0.15


def test_the_gradient_of_nce_tends_to_that_of_the_likelihood_as_noise_outnumbers_data():
    energy = line(0.1, 1.5)
    data = 0.3 + double(50, 1) / math.sqrt(2.0)
    centred = data - 0.1
    expected = torch.stack([-1.5 * centred.mean(), 0.5 * centred.square().mean() - 0.5 / 1.5])
    gaps = []
    for ratio in (1, 10, 100, 1000):
        objective = nce(energy.log_normaliser, ratio)
        found = [gradient(objective(energy, Batch(None, data), seeded(i)).value, energy) for i in range(40)]
        gaps.append(float((torch.stack(found).mean(0) - expected).norm()))
    # The gap falls as one over the ratio, down to the standard error of the noise.
    assert gaps[0] > 0.1
    assert gaps[1] < 0.5 * gaps[0]
    assert_mean(found, expected, slack=5.0 / 1000)


def test_conditional_nce_tells_nothing_apart_at_vanishing_noise_or_a_flat_energy():
    batch = Batch(None, double(20, 2))
    near = ConditionalNCE(1e-7, 4).per_row(bowl(), batch, seeded())
    torch.testing.assert_close(
        near.detach(), torch.full((20,), 2 * math.log(2), dtype=torch.float64), rtol=0, atol=1e-5
    )
    flat = Quadratic(torch.zeros(2).double(), torch.zeros(2, 2).double(), lift=3.0)
    same = ConditionalNCE(1.0, 4).per_row(flat, batch, seeded())
    torch.testing.assert_close(same.detach(), torch.full((20,), 2 * math.log(2), dtype=torch.float64))


@pytest.mark.parametrize("n_noise", [1, 4])
def test_the_gradient_of_conditional_nce_is_zero_at_the_truth(n_noise):
    """Whatever the lift of the energy, on which it does not depend; and at another precision it is not."""
    objective = ConditionalNCE(0.6, n_noise)

    def gradients(energy):
        found = []
        for seed in range(40):
            data = 0.3 + double(1000, 1, seed=seed) / math.sqrt(2.0)
            found.append(gradient(objective(energy, Batch(None, data), seeded(100 + seed)).value, energy))
        return torch.stack(found)

    right, wrong = gradients(line(0.3, 2.0, lift=7.0)), gradients(line(0.3, 1.4))[:, 1]
    assert (right.mean(0).abs() < 4 * right.std(0) / math.sqrt(40)).all()
    assert float(wrong.mean().abs() / wrong.std()) * math.sqrt(40) > 8


# -- a flow as the noise ----------------------------------------------------------------------------------


def flow_contrast(warm_up: int) -> FlowContrastiveEstimation:
    torch.manual_seed(1)
    flow = zuko.flows.MAF(1, transforms=1, hidden_features=(4,))
    return FlowContrastiveEstimation(FlowEnergy(flow, 0.0, 1.5), warm_up).double()


def moved(objective, energy: nn.Module, batch: Batch, n_updates: int) -> tuple[set[str], torch.Tensor]:
    """Whose parameters the loss reaches after so many updates."""
    for module in (objective, energy):
        module.zero_grad(set_to_none=True)
    players = objective.players(energy)
    place, warming_up = turn(players, n_updates)
    value = objective.turn_loss(players[place].name, warming_up, energy, batch, seeded()).value
    value.backward()
    reached = {"energy"} if any(w.grad is not None for w in energy.parameters()) else set()
    for name, weight in objective.named_parameters():
        if weight.grad is not None and float(weight.grad.abs().sum()) > 0:
            reached.add(name.split(".")[0])
    return reached, value.detach()


def test_the_flow_warms_up_by_its_likelihood_and_then_the_players_take_turns():
    objective, energy, batch = flow_contrast(2), line(0.3, 2.0), Batch(None, double(30, 1))
    for step in range(2):
        reached, value = moved(objective, energy, batch, step)
        assert reached == {"flow"}
        torch.testing.assert_close(value, -objective.flow.log_prob(batch.y).mean().detach())
    values = []
    for step in range(2, 8):
        reached, value = moved(objective, energy, batch, step)
        assert reached == ({"energy", "log_normaliser"} if step % 2 else {"flow"})
        values.append(value)
    # One value function: what the energy loses, with these draws, is what the flow wins.
    torch.testing.assert_close(values[0], -values[1])
    torch.testing.assert_close(objective(energy, batch, seeded()).value.detach(), values[1])


def test_a_fit_against_a_flow_recovers_the_log_normaliser():
    """Of a Gaussian lifted by 1.5, with an affine flow as the other player. The log Z that is learned is
    compared with that of the energy as it stands; both wander, so over the last 200 rounds."""
    objective, energy = flow_contrast(50), line(0.0, 1.0, lift=1.5)
    generator, errors, precisions = seeded(), [], []
    optimiser = torch.optim.Adam([*objective.parameters(), *energy.parameters()], 0.03)
    for step in range(700):
        data = 0.3 + torch.randn(256, 1, generator=generator, dtype=torch.float64) / math.sqrt(2.0)
        optimiser.zero_grad(set_to_none=True)
        players = objective.players(energy)
        place, warming_up = turn(players, step)
        objective.turn_loss(players[place].name, warming_up, energy, Batch(None, data), generator).value.backward()
        optimiser.step()
        if step >= 300:
            errors.append(float(objective.log_normaliser.detach()) - energy.log_normaliser)
            precisions.append(float(energy.precision.detach()))
    # 400 updates of 256 rows, with an error of some 1 / sqrt(256) each that lasts for about 30 updates.
    assert abs(sum(errors) / 400) < 4 / math.sqrt(256 * 400 / 30)
    assert sum(precisions) / 400 == pytest.approx(2.0, rel=0.1)


# -- Stein discrepancy ------------------------------------------------------------------------------------


def critic(seed: int, d: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(d, 8), nn.Tanh(), nn.Linear(8, d)).double()


def two_modes() -> GaussianMixtureEnergy:
    return GaussianMixtureEnergy(
        torch.tensor([[-1.0, 0.0], [1.5, 1.0]]).double(), torch.tensor([[0.7, 1.0], [0.5, 0.8]]).double()
    )


@pytest.mark.parametrize("make", [*(lambda s=s: critic(s) for s in range(3)), nn.Identity])
def test_where_model_and_data_agree_the_discrepancy_is_zero_for_any_critic(make):
    """Within four standard errors; and of a model elsewhere it is not."""
    truth = two_modes()
    data = Batch(None, truth.sample(20_000, seeded(1)))
    objective = SteinDiscrepancy(make()).eval()
    rows = objective.per_row(truth, data, seeded(2)).detach()
    error = float(rows.std()) / math.sqrt(len(rows))
    assert abs(float(rows.mean())) < 4 * error
    other = GaussianEnergy(torch.tensor([4.0, -4.0]).double(), torch.ones(2).double())
    wrong = objective.per_row(other, data, seeded(2)).detach()
    assert abs(float(wrong.mean())) > 8 * float(wrong.std()) / math.sqrt(len(wrong))


def test_the_discrepancy_of_a_linear_critic_is_the_closed_form():
    """For f(y) = y, data of deviation s and a unit Gaussian's energy: D - D s^2."""
    data = Batch(None, 1.5 * double(40_000, 3))
    energy = GaussianEnergy(torch.zeros(3).double(), torch.ones(3).double())
    rows = SteinDiscrepancy(nn.Identity()).eval().per_row(energy, data, seeded()).detach()
    assert abs(float(rows.mean()) - 3 * (1 - 2.25)) < 4 * float(rows.std()) / math.sqrt(40_000)


class Stretch(nn.Module):
    """f(y) = a y."""

    def __init__(self, a: float):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, y):
        return self.a * y


def test_the_best_linear_critic_is_the_closed_form():
    """Of a D (1 - s^2) - l2 a^2 D s^2 the maximum is at a = (1 - s^2) / (2 l2 s^2): the loss is flat there, rises
    to both sides, and is the value with its sign turned."""
    d, s, l2 = 3, 1.5, 0.7
    best = (1 - s**2) / (2 * l2 * s**2)
    energy, losses = GaussianEnergy(torch.zeros(d).double(), torch.ones(d).double()), []
    for a in (best, best - 0.5, best + 0.5):
        network = Stretch(a)
        rows = SteinDiscrepancy(network, l2).player_loss(
            "critic", energy, Batch(None, s * double(40_000, d)), seeded()
        )
        expected = l2 * a**2 * d * s**2 - a * d * (1 - s**2)
        assert abs(float(rows.mean().detach()) - expected) < 4 * float(rows.std().detach()) / math.sqrt(40_000)
        losses.append(float(rows.mean().detach()))
    assert losses[0] < min(losses[1:])


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("player", ["critic", "energy"])
def test_each_player_moves_down_its_own_value(conditional, player):
    """Against finite differences; the other one's parameters get no gradient."""
    if conditional:
        energy, x = perturbed(NetworkEnergy(mlp([3, 6]), 6, 2, hidden=8)), double(7, 3, seed=6)
        network = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    else:
        energy, x, network = bowl(), None, critic(0)
    objective, batch = SteinDiscrepancy(network, l2=0.5), Batch(x, double(7, 2))
    loss = functools.partial(objective.player_loss, player)
    mine, other = (network, energy) if player == "critic" else (energy, network)
    value = loss(energy, batch, seeded()).mean()
    assert float(gradient(value, other).norm()) == 0
    found = gradient(loss(energy, batch, seeded()).mean(), mine)
    direction, expected = directional_difference(mine, lambda: loss(energy, batch, seeded()).mean())
    assert abs(expected) > 1e-3
    assert float(found @ direction) == pytest.approx(expected, rel=1e-5)


def test_the_critic_moves_five_times_and_then_the_energy_once():
    objective, energy, batch = SteinDiscrepancy(critic(0)), bowl(), Batch(None, double(7, 2))
    order = [moved(objective, energy, batch, step)[0] for step in range(12)]
    assert order == ([{"critic"}] * 5 + [{"energy"}]) * 2


# -- likelihood on a grid ---------------------------------------------------------------------------------


class Located(nn.Module):
    """y round x: E = (y - x)^2 / (2 0.5^2)."""

    def forward(self, x, y):
        return 2 * (y - x).square().sum(-1)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_likelihood_on_a_grid_is_exact_for_a_gaussian(k):
    """A sum over a smooth density is exact to far beyond 1e-6 once the spacing is below its deviation."""
    mean, std = torch.linspace(-0.5, 0.5, k).double(), torch.linspace(0.6, 1.0, k).double()
    y = double(20, k)
    found = GridLikelihood(-6.0, 6.0, 36, k).per_row(GaussianEnergy(mean, std), Batch(None, y), None)
    expected = -torch.distributions.Normal(mean, std).log_prob(y).sum(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("k", [1, 2])
def test_the_likelihood_on_a_grid_given_x_is_each_rows_own(k):
    x = torch.linspace(-2, 2, 9).double().unsqueeze(1).expand(9, k)
    y = x + 0.5 * double(9, k)
    found = GridLikelihood(-6.0, 6.0, 60, k).per_row(ConditionalModuleEnergy(Located()), Batch(x, y), None)
    expected = -torch.distributions.Normal(x, 0.5).log_prob(y).sum(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_the_gradient_of_the_likelihood_on_a_grid_is_data_against_model():
    """E_data[dE] - E_model[dE]: zero at the moments of the sample."""
    data = double(40, 2) @ torch.tensor([[1.0, 0.0], [0.6, 0.5]]).double()
    energy = Quadratic(data.mean(0), torch.linalg.inv(torch.cov(data.t(), correction=0)))
    found = gradient(GridLikelihood(-8.0, 8.0, 100)(energy, Batch(None, data)).value, energy)
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-5)


# -- operators on energies are operations on densities ----------------------------------------------------


def log_density(energy: Energy, y: torch.Tensor) -> torch.Tensor:
    """Normalised on a grid."""
    return -GridLikelihood(-9.0, 9.0, 120).per_row(energy, Batch(None, y), None)


def gaussian(mean: list[float], factor: list[list[float]]) -> GaussianMixtureEnergy:
    return GaussianMixtureEnergy(torch.tensor([mean]).double(), torch.tensor([factor]).double())


def test_sum_temperature_and_negation_are_product_power_and_quotient_of_gaussians():
    """Precisions of correlated Gaussians add, each to its weight, and weigh the means."""
    a = gaussian([1.0, 0.0], [[0.8, 0.0], [0.3, 0.6]])
    b = gaussian([-0.5, 0.7], [[1.4, 0.0], [-0.5, 1.2]])
    y = double(30, 2)
    for energy, weights in [(a + b, (1.0, 1.0)), (a / 1.7, (1 / 1.7, 0.0)), (a - 0.2 * b, (1.0, -0.2))]:
        precisions = [torch.cholesky_inverse(e.scales[0]) for e in (a, b)]
        total = sum(w * p for w, p in zip(weights, precisions, strict=True))
        shift = sum(w * p @ e.means[0] for w, p, e in zip(weights, precisions, (a, b), strict=True))
        distribution = torch.distributions.MultivariateNormal(
            torch.linalg.solve(total, shift), precision_matrix=total
        )
        torch.testing.assert_close(log_density(energy, y), distribution.log_prob(y), rtol=0, atol=1e-5)


def test_a_product_of_mixtures_is_the_mixture_of_the_products_of_their_parts():
    """Each pair counts by the overlap of its two Gaussians, N(m_i; m_j, v_i + v_j)."""
    a = GaussianMixtureEnergy(torch.tensor([[-1.0], [1.0]]).double(), torch.tensor([[0.6], [0.8]]).double())
    b = GaussianMixtureEnergy(torch.tensor([[-0.5], [2.0]]).double(), torch.tensor([[1.0], [0.5]]).double())
    (m, v), (n, w) = ((e.means[:, 0], e.scales[:, 0].square()) for e in (a, b))
    precision = 1 / v[:, None] + 1 / w
    mean = (m[:, None] / v[:, None] + n / w) / precision
    overlap = torch.distributions.Normal(n, (v[:, None] + w).sqrt()).log_prob(m[:, None]).exp()
    product = GaussianMixtureEnergy(
        mean.reshape(-1, 1), precision.rsqrt().reshape(-1, 1), (overlap / overlap.sum()).flatten()
    )
    y = 1.5 * double(50, 1)
    found = -GridLikelihood(-9.0, 9.0, 400, 1).per_row(a + b, Batch(None, y), None)
    torch.testing.assert_close(found, product.log_prob(y), rtol=0, atol=1e-5)


def test_parts_of_a_disjunction_count_by_their_own_normalisers():
    a, b = (
        GaussianEnergy(torch.full((2,), m).double(), torch.full((2,), s).double()) for m, s in [(-1, 1), (2, 0.5)]
    )
    weights = torch.stack([a.log_normaliser, b.log_normaliser]).exp()
    mixture = GaussianMixtureEnergy(torch.stack([a.mean, b.mean]), torch.stack([a.std, b.std]), weights)
    y = double(30, 2)
    torch.testing.assert_close(log_density(a | b, y), mixture.log_prob(y), rtol=0, atol=1e-5)


def test_chains_of_a_composed_energy_draw_from_the_composed_density():
    """(N(0, 1) N(1, 2))^(1/3): precision (1 + 1/2) / 3 and mean 1/3, to four standard errors."""
    a, b = (GaussianEnergy(torch.tensor([m]), torch.tensor([v]).sqrt()) for m, v in [(0.0, 1.0), (1.0, 2.0)])
    start = torch.randn(10_000, 1, generator=seeded(1))
    draws = run_chain(HMC(0.8, 4), (a + b) / 3.0, start, 40, seeded(2)).position
    assert abs(float(draws.mean()) - 1 / 3) < 4 * math.sqrt(2 / 10_000)
    assert abs(float(draws.var()) - 2) < 4 * 2 * math.sqrt(2 / 10_000)
