"""Attacks against classifiers whose distance to the decision boundary is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from thalweg.energies.labelled import LabelledEnergy
from thalweg.evaluation.robustness import (
    Refined,
    RobustAccuracy,
    projected_gradient,
    robust_accuracy,
    square_attack,
)
from thalweg.sampling.gibbs import SingleSiteGibbs
from thalweg.sampling.langevin import MALA, ColdLangevin, Langevin

ATTACKS = [projected_gradient, square_attack]
NORMS = ["inf", "2"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(
    n_classes: int, n: int = 300, n_features: int = 12, scale: float = 1.0
) -> tuple[nn.Linear, Tensor, Tensor]:
    """A linear classifier, inputs in [0, 1] and labels of which it gets most right."""
    generator = seeded(n_classes)
    network = nn.Linear(n_features, n_classes)
    weight = torch.randn(n_classes, n_features, generator=generator)
    network.weight.data = scale * weight
    network.bias.data = -scale * weight.sum(1) / 2
    x = torch.rand(n, n_features, generator=generator)
    with torch.no_grad():
        labels = (network(x) / scale + 0.2 * torch.randn(n, n_classes, generator=generator)).argmax(1)
    return network, x, labels


def distances(network: nn.Linear, x: Tensor, labels: Tensor, norm: str) -> np.ndarray:
    """Distance to the nearest place that is wrong: the margin over the dual norm of its gradient; 0 if wrong."""
    w, f = network.weight.detach(), network(x).detach()
    rows = torch.arange(len(x))
    lengths = (w[labels][:, None] - w).norm(p=1 if norm == "inf" else 2, dim=2)
    margin = (f[rows, labels][:, None] - f) / lengths
    margin[rows, labels] = torch.inf
    return margin.amin(1).clamp(min=0).numpy()


def lengths(delta: Tensor, norm: str) -> Tensor:
    return delta.flatten(1).norm(p=math.inf if norm == "inf" else 2, dim=1)


# -- closed forms ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n_classes", [2, 5])
def test_the_accuracy_of_a_linear_classifier_is_the_share_beyond_the_radius(n_classes, norm):
    network, x, labels = linear(n_classes, n=100)
    exact = distances(network, x, labels, norm)
    radii = np.quantile(exact[exact > 0], [0.2, 0.5, 0.8])
    found = robust_accuracy(
        network, x, labels, radii, norm, bounds=None, n_queries=300, batch_size=64, generator=seeded()
    )
    assert found.n_rows == 100
    assert found.clean == pytest.approx((exact > 0).mean())
    # No attack may find what is not there, and these find all but what is at the edge of the ball.
    for accuracy, share in ((found.gradient, 0.9), (found.gradient_free, 0.7), (found.worst, 0.9)):
        for radius, value in zip(radii, accuracy, strict=True):
            assert (exact > 1.0001 * radius).mean() <= value + 1e-9 <= (exact > share * radius).mean() + 2e-9
    assert found.transfer is None
    assert found.doubts() == []


def test_a_network_that_is_sure_hides_nothing():
    # The cross-entropy of logits this large has gradients of exactly 0 in single precision.
    network, x, labels = linear(4, scale=1e4)
    with torch.enable_grad():
        y = x.clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(network(y), labels, reduction="sum"), y)
    assert (grad == 0).all(1).float().mean() > 0.5
    exact = distances(network, x, labels, "inf")
    adversarial = projected_gradient(network, x, labels, 0.1, bounds=None, generator=seeded())
    right = (network(adversarial).argmax(1) == labels).numpy()
    assert (exact > 0.1001).mean() <= right.mean() <= (exact > 0.095).mean()


# -- what every attack keeps to ----------------------------------------------------------------------------


class Convolutional(nn.Module):
    """A network with parts that training mode would change."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.SiLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(4 * 5 * 4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("norm", NORMS)
def test_an_attack_stays_inside_ball_and_bounds_and_leaves_the_network_as_it_was(attack, norm):
    torch.manual_seed(0)
    network = Convolutional()
    x = torch.rand(40, 2, 7, 6)
    with torch.no_grad():
        labels = network.eval()(x).argmax(1)
    network.train()
    state = {k: v.clone() for k, v in network.state_dict().items()}
    radius = 0.3 if norm == "inf" else 1.5
    budget = {"n_steps": 20} if attack is projected_gradient else {"n_queries": 100}
    adversarial = attack(network, x, labels, radius, norm, generator=seeded(), **budget)
    assert adversarial.shape == x.shape
    assert not adversarial.requires_grad
    assert lengths(adversarial - x, norm).max() <= radius * (1 + 1e-5)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert all(module.training for module in network.modules())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    right = (network.eval()(adversarial).argmax(1) == labels).float().mean()
    assert right < 0.6
    # The same seed gives the same inputs, a radius of 0 the inputs themselves.
    again = attack(network, x, labels, radius, norm, generator=seeded(), **budget)
    torch.testing.assert_close(again, adversarial)
    torch.testing.assert_close(attack(network, x, labels, 0.0, norm, **budget), x)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_constant_network_changes_nothing(attack, norm):
    x, labels = torch.rand(6, 3), torch.tensor([0, 1, 0, 1, 1, 1])
    for network in (
        lambda x: torch.tensor([1.0, 0.0]).expand(len(x), 2),
        lambda x: torch.tensor([1.0, 0.0]) + 0 * x[:, :2],
    ):
        budget = {} if attack is projected_gradient else {"n_queries": 100}
        assert torch.equal(attack(network, x, labels, 0.3, norm, **budget), x)
    found = robust_accuracy(network, x, labels, [0.1, 0.3], norm, n_queries=5, n_steps=3)
    assert found.clean == pytest.approx(1 / 3)
    for accuracy in (found.gradient, found.gradient_free, found.worst):
        np.testing.assert_allclose(accuracy, 1 / 3)


@pytest.mark.parametrize("norm", NORMS)
def test_more_restarts_find_no_less(norm):
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 3))
    network[0].weight.data *= 6
    x = torch.rand(100, 5)
    labels = network(x).argmax(1)

    def share_right(n_restarts: int) -> float:
        y = projected_gradient(
            network, x, labels, 0.12, norm, n_steps=8, n_restarts=n_restarts, generator=seeded()
        )
        return float((network(y).argmax(1) == labels).float().mean())

    # The first restart of several is the only one of one.
    assert share_right(6) <= share_right(1)


# -- masked gradients and transfer -------------------------------------------------------------------------


class Rounding(nn.Module):
    """A linear classifier of rounded inputs: its gradient is 0 everywhere."""

    def __init__(self, n: int):
        super().__init__()
        self.weight = nn.Parameter(torch.stack([torch.ones(n), -torch.ones(n)]))

    def forward(self, x: Tensor) -> Tensor:
        return (x.round() - 0.5) @ self.weight.T


@pytest.mark.parametrize("norm", NORMS)
def test_search_and_transfer_find_what_masked_gradients_hide(norm):
    n = 16
    network = Rounding(n)
    labels = torch.arange(60) % 2
    x = (0.7 - 0.4 * labels[:, None].float()).repeat(1, n)
    # Nine coordinates must pass .5, each .2 away.
    radii = [0.1, 0.25] if norm == "inf" else [0.4, 1.0]
    surrogate = nn.Linear(n, 2)
    surrogate.weight.data, surrogate.bias.data = network.weight.data, torch.tensor([-n / 2, n / 2])
    found = robust_accuracy(
        network, x, labels, radii, norm, surrogate=surrogate, n_queries=400, generator=seeded()
    )
    assert found.clean == pytest.approx(1)
    np.testing.assert_allclose(found.gradient, [1, 1])
    np.testing.assert_allclose(found.gradient_free, [1, 0], atol=0.1 if norm == "inf" else 0.3)
    np.testing.assert_allclose(found.transfer, [1, 0])
    np.testing.assert_allclose(found.worst, [1, 0])
    doubts = found.doubts()
    assert len(doubts) == 2
    assert "gradient-free" in doubts[0]
    assert "transfer" in doubts[1]
    assert all("masked" in doubt for doubt in doubts)


def test_an_attack_that_fails_at_a_larger_radius_is_seen_and_the_worst_case_does_not_rise():
    # Rings: what is .1 to .2 off is wrong, what is farther is right again.
    def network(x: Tensor) -> Tensor:
        off = (x - 0.5).abs().amax(1)
        wrong = ((off > 0.1) & (off < 0.2)).float()
        return torch.stack([1 - 2 * wrong, wrong], 1) + 0 * x[:, :2]

    x, labels = torch.full((50, 2), 0.5), torch.zeros(50, dtype=torch.long)
    found = robust_accuracy(network, x, labels, [0.15, 0.49], n_steps=1, n_queries=1, generator=seeded())
    assert found.gradient_free[0] < 0.1
    assert found.gradient_free[1] > 0.9
    assert (np.diff(found.worst) <= 0).all()
    assert found.worst[1] < 0.1
    assert any("gradient-free attack the accuracy rises" in doubt for doubt in found.doubts())


def test_doubts_are_those_beyond_two_standard_errors():
    def figures(gradient: list[float], gradient_free: list[float]) -> RobustAccuracy:
        accuracies = np.array(gradient), np.array(gradient_free)
        return RobustAccuracy(np.array([0.1, 0.2]), 100, 0.9, *accuracies, None, np.minimum(*accuracies))

    assert figures([0.6, 0.3], [0.7, 0.4]).doubts() == []
    assert figures([0.6, 0.6], [0.55, 0.55]).doubts() == []
    (masked,) = figures([0.6, 0.6], [0.6, 0.3]).doubts()
    assert "gradient-free" in masked
    (failing,) = figures([0.4, 0.6], [0.7, 0.7]).doubts()
    assert "rises to 0.600 at radius 0.2 from 0.400" in failing
    found = figures([0.6, 0.3], [0.7, 0.4])
    # The usual error with one row right and one wrong added, which the definition adds.
    np.testing.assert_allclose(found.standard_error(found.gradient), [0.049, 0.046], rtol=0.03)


# -- refinement --------------------------------------------------------------------------------------------


def labelled_energy(n_features: int = 4, dtype: torch.dtype = torch.float64) -> LabelledEnergy:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(n_features, 16), nn.SiLU(), nn.Linear(16, 3)).to(dtype)
    for layer in network[::2]:
        layer.weight.data *= 3
    return LabelledEnergy(network)


@pytest.mark.parametrize(
    "kernel",
    [Langevin(0.3, 0.05), ColdLangevin(0.3, 0.05, low=-2.0, high=2.0), MALA(0.2)],
    ids=["plain", "cold", "mala"],
)
def test_the_gradient_of_the_refined_logits_is_that_of_steps_and_network_together(kernel):
    energy = labelled_energy()
    x = torch.rand(2, 4, dtype=torch.float64)

    def logits(x: Tensor) -> Tensor:
        return Refined(energy, kernel, 4, 3, noise_scale=0.1, generator=seeded(3))(x)

    y = x.clone().requires_grad_(True)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (grad,) = torch.autograd.grad((logits(y) @ weights).sum(), y)
    h = 1e-5
    with torch.no_grad():
        torch.testing.assert_close(logits(x), logits(y))
        for i in range(2):
            for j in range(4):
                shift = torch.zeros_like(x)
                shift[i, j] = h
                slope = ((logits(x + shift) - logits(x - shift)) @ weights).sum() / (2 * h)
                assert float(grad[i, j]) == pytest.approx(float(slope), rel=1e-5, abs=1e-7)
    # Around the refinement it would be another one.
    (around,) = torch.autograd.grad((-energy.energies(y) @ weights).sum(), y)
    assert (around - grad).norm() > 0.05 * grad.norm()


def test_refinement_without_steps_and_noise_is_the_classifier():
    energy = labelled_energy()
    x = torch.rand(5, 4, dtype=torch.float64)
    refined = Refined(energy, Langevin(0.1), 0, 2, noise_scale=0.0)
    torch.testing.assert_close(refined(x), -energy.energies(x))


def test_steps_of_a_quadratic_energy_are_those_worked_by_hand():
    class Bowls(nn.Module):
        """-|x - centre|^2 / 2 for two centres of which only one is near: its energy is one parabola."""

        def forward(self, x: Tensor) -> Tensor:
            centres = torch.tensor([[0.0, 0.0], [100.0, 100.0]], dtype=x.dtype)
            return -(x[:, None] - centres).square().sum(2) / 2

    refined = Refined(LabelledEnergy(Bowls()), Langevin(0.1, 0.0), 7, 4, noise_scale=0.0)
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    assert float(refined(x)[0, 0]) == pytest.approx(-5 / 2 * 0.9**14)


def test_a_refined_classifier_is_attacked_as_a_whole_and_left_as_it_was():
    energy = labelled_energy(dtype=torch.float32)
    x = torch.rand(30, 4)
    labels = (-energy.energies(x)).argmax(1)
    refined = Refined(energy, Langevin(0.1, 0.01), 3, 2, generator=seeded())
    found = robust_accuracy(
        refined, x, labels, [0.2, 0.5], surrogate=energy, n_steps=8, n_queries=20, generator=seeded(1)
    )
    assert found.worst[1] < found.clean
    assert (np.diff(found.worst) <= 0).all()
    assert all(p.grad is None and p.requires_grad for p in energy.parameters())
    assert refined.training


# -- what is refused ---------------------------------------------------------------------------------------

X, Y = torch.full((4, 3), 0.5), torch.tensor([0, 1, 0, 1])
NETWORK = nn.Linear(3, 2)


@pytest.mark.parametrize(
    "attack", [*ATTACKS, lambda n, x, y, r, *a, **k: robust_accuracy(n, x, y, [0.1, r], *a, **k)]
)
def test_bad_inputs_are_refused_in_words(attack):
    for network, x, labels, words in [
        (NETWORK, X * math.nan, Y, "NaN"),
        (NETWORK, X + 1, Y, "inside the bounds 0 to 1"),
        (NETWORK, X.long(), Y, "floating-point"),
        (NETWORK, X[:0], Y[:0], r"\[n, \*event\]"),
        (NETWORK, X[0], Y, r"\[n, \*event\]"),
        (NETWORK, X.numpy(), Y, "tensors"),
        (NETWORK, X, Y[:3], "one for each of 4 rows"),
        (NETWORK, X, Y.float(), "integers"),
        (NETWORK, X, Y - 1, "not be negative"),
        (NETWORK, X, Y + 1, "of 0 .. 1, got 2"),
        (lambda x: x[:, 0], X, Y, r"must give logits \[4, C\]"),
        (lambda x: x * math.nan, X, Y, "NaN or infinity at the inputs"),
    ]:
        with pytest.raises(ValueError, match=words):
            attack(network, x, labels, 0.2)
    with pytest.raises(ValueError, match="norm must be"):
        attack(NETWORK, X, Y, 0.2, "1")
    with pytest.raises(ValueError, match="bounds must be"):
        attack(NETWORK, X, Y, 0.2, bounds=(1.0, 0.0))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: projected_gradient(NETWORK, X, Y, -0.1), "radius"),
        (lambda: projected_gradient(NETWORK, X, Y, math.nan), "radius"),
        (lambda: projected_gradient(NETWORK, X, Y, 0.1, n_steps=0), "n_steps"),
        (lambda: projected_gradient(NETWORK, X, Y, 0.1, n_restarts=0), "n_restarts"),
        (lambda: projected_gradient(NETWORK, X, Y, 0.1, step=-1.0), "step must be"),
        (lambda: square_attack(NETWORK, X, Y, 0.1, n_queries=0), "n_queries"),
        (lambda: robust_accuracy(NETWORK, X, Y, []), "increasing"),
        (lambda: robust_accuracy(NETWORK, X, Y, [0.2, 0.1]), "increasing"),
        (lambda: robust_accuracy(NETWORK, X, Y, [0.0, 0.1]), "positive"),
        (lambda: robust_accuracy(NETWORK, X, Y, [0.1], batch_size=0), "batch_size"),
        (lambda: Refined(NETWORK, Langevin(0.1), 3), "LabelledEnergy"),
        (lambda: Refined(LabelledEnergy(NETWORK), Langevin(0.1), -1), "n_steps"),
        (lambda: Refined(LabelledEnergy(NETWORK), Langevin(0.1), 1, 0), "n_samples"),
        (lambda: Refined(LabelledEnergy(NETWORK), SingleSiteGibbs(), 1), "continuous"),
    ],
)
def test_bad_settings_are_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()
