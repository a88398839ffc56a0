"""Student-t experts against autograd and sources known in closed form; tolerances from standard errors."""

import math

import pytest
import torch

from asymptotics import flat, influence, minimise
from thalweg.energies import Energy, StudentExperts
from thalweg.energies.densities import GaussianMixtureEnergy
from thalweg.objectives.base import Batch
from thalweg.objectives.contrastive_divergence import ContrastiveDivergence
from thalweg.objectives.likelihood import GridLikelihood
from thalweg.objectives.score_matching import ScoreMatching, SlicedScoreMatching
from thalweg.sampling.buffer import ReplayBuffer
from thalweg.sampling.hmc import HMC


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def double(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def experts(d: int = 3, m: int = 5) -> StudentExperts:
    made = StudentExperts(d, m).double()
    with torch.no_grad():
        for i, weight in enumerate(made.parameters()):
            weight.copy_(double(*weight.shape, seed=i) * (0.3 if weight is made.log_alpha else 1.0))
    return made


class Plain(Energy):
    """The formula, and all derivatives by autograd."""

    def __init__(self, experts: StudentExperts):
        super().__init__()
        self.experts = experts

    def forward(self, x):
        s = x @ self.experts.filters.weight.t() + self.experts.filters.bias
        return (self.experts.log_alpha.exp() * (1 + s.square() / 2).log()).sum(-1)


@pytest.mark.parametrize("batch", [(7,), (2, 3), ()])
def test_energy_and_derivatives_are_those_of_the_formula(batch):
    energy, x, v = experts(), double(*batch, 3), double(*batch, 4, 3, seed=9)
    plain = Plain(energy)
    torch.testing.assert_close(energy(x), plain(x))
    torch.testing.assert_close(energy.value_and_gradient(x), plain.value_and_gradient(x))
    torch.testing.assert_close(energy.gradient(x), plain.gradient(x))
    weights = list(energy.parameters())
    for ours, theirs in (
        ((energy.score(x),), (plain.score(x),)),
        (energy.score_and_curvature(x, v), plain.score_and_curvature(x, v)),
        (energy.score_and_divergence(x), plain.score_and_divergence(x)),
    ):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)
            found, expected = (
                torch.autograd.grad(t.sin().sum(), weights, allow_unused=True, retain_graph=True) for t in (a, b)
            )
            for f, e, w in zip(found, expected, weights, strict=True):
                torch.testing.assert_close(*(torch.zeros_like(w) if t is None else t for t in (f, e)))


def test_second_derivatives_in_x_flow_through_the_gradient():
    energy, x = experts(), double(6, 3).requires_grad_(True)
    direction = double(6, 3, seed=8)
    (product,) = torch.autograd.grad((energy.score(x) * direction).sum(), x)
    curvature = (product * direction).sum(-1)
    expected = energy.score_and_curvature(x, direction.unsqueeze(1))[1].squeeze(1)
    torch.testing.assert_close(curvature, expected)


def test_what_has_no_density_is_refused():
    with pytest.raises(ValueError, match="at least as many experts as dimensions"):
        StudentExperts(3, 2)
    with pytest.raises(ValueError, match="alpha must be positive, got 0"):
        StudentExperts(3, 3, alpha=0.0)


# -- independent sources ----------------------------------------------------------------------------------

ALPHA = torch.tensor([3.0, 4.5]).double()
UNMIXING = torch.tensor([[1.0, 0.4], [-0.6, 1.2]]).double()
SHIFT = torch.tensor([0.3, -0.2]).double()


def truth() -> StudentExperts:
    energy = StudentExperts(2, 2).double()
    with torch.no_grad():
        energy.filters.weight.copy_(UNMIXING)
        energy.filters.bias.copy_(SHIFT)
        energy.log_alpha.copy_(ALPHA.log())
    return energy


def sources(n: int, seed: int = 1) -> torch.Tensor:
    """x with Wx + b independent: (1 + s^2 / 2)^-alpha is Student's t with 2 alpha - 1 degrees, times a scale."""
    degrees = 2 * ALPHA - 1
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        s = torch.distributions.StudentT(degrees).sample((n,)) * (2 / degrees).sqrt()
    return torch.linalg.solve(UNMIXING, (s - SHIFT).t()).t()


def log_normaliser(energy: StudentExperts) -> torch.Tensor:
    """Of as many experts as dimensions."""
    alpha = energy.alpha
    each = 0.5 * math.log(2 * math.pi) + torch.lgamma(alpha - 0.5) - torch.lgamma(alpha)
    return each.sum() - torch.linalg.slogdet(energy.filters.weight)[1]


def test_the_normaliser_of_independent_sources_is_the_closed_form():
    energy, x = truth(), sources(50)
    found = GridLikelihood(-60.0, 60.0, 1500).per_row(energy, Batch(None, x), None)
    torch.testing.assert_close(found, energy(x) + log_normaliser(energy), rtol=0, atol=1e-3)


@pytest.mark.parametrize("objective", [ScoreMatching(), SlicedScoreMatching()], ids=["exact", "sliced"])
def test_score_matching_recovers_the_sources(objective):
    """From a start elsewhere, to within four standard errors of every parameter."""
    x = sources(10_000)

    def loss(energy):
        return objective.per_row(energy, Batch(None, x), seeded(3))

    error = influence(loss, truth()).std(0) / math.sqrt(len(x))
    found = truth()
    with torch.no_grad():
        for i, weight in enumerate(found.parameters()):
            weight.add_(0.2 * double(*weight.shape, seed=30 + i))
    minimise(loss, found)
    gap = (flat(found) - flat(truth())).abs()
    assert (gap < 4 * error).all()
    assert (error < 0.2).all()


def test_maximum_likelihood_by_contrastive_divergence_reaches_the_same_sources():
    """With persistent chains: the mean of the last weights is within a standard error of the exact solution."""
    x = sources(2000)

    def loss(energy):
        return energy(x) + log_normaliser(energy)

    exact = truth()
    minimise(loss, exact)
    error = influence(loss, exact).std(0) / math.sqrt(len(x))
    assert ((flat(exact) - flat(truth())).abs() < 4 * error).all()
    found = truth()
    with torch.no_grad():
        for i, weight in enumerate(found.parameters()):
            weight.add_(0.2 * double(*weight.shape, seed=30 + i))
    start = ReplayBuffer(GaussianMixtureEnergy.from_moments(x), 2000, 2000, restart=0.0)
    objective = ContrastiveDivergence(HMC(0.5, 3), 1, start)
    trained = []
    optimiser = torch.optim.Adam(found.parameters(), 0.02)
    generator = seeded(4)
    for step in range(1000):
        optimiser.zero_grad()
        objective(found, Batch(None, x), generator).value.backward()
        optimiser.step()
        if step >= 500:
            trained.append(flat(found))
    gap = (torch.stack(trained).mean(0) - flat(exact)).abs()
    assert (gap < error).all()
