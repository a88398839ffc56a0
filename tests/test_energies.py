"""Operators, mixtures and networks against closed forms (the contract of all: test_energy_contract.py)."""

import math

import numpy as np
import pytest
import torch
import zuko
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from parts import (
    VECTORS,
    PairNetwork,
    correlated_mixture,
    gaussian,
    gaussian_mixture,
    mixture,
    network,
    perturbed,
    seeded,
    targets,
)
from thalweg.energies import (
    ConditionalEnergy,
    ConditionalModuleEnergy,
    Disjunction,
    Energy,
    FactoredEnergy,
    FlowEnergy,
    GaussianEnergy,
    GaussianMixtureEnergy,
    LabelledEnergy,
    MixtureDensity,
    NetworkEnergy,
    PerceptronEnergy,
    RBMEnergy,
    TiltedEnergy,
    TiltedMixtureEnsemble,
    UniformEnergy,
    WeightedSum,
    check_energy,
    mlp,
    residual_network,
)
from thalweg.energies.densities import choose_gaussian_mixture, fit_gaussian_mixture
from thalweg.energies.networks.labelled_perceptron import LabelledPerceptron
from thalweg.energies.products import multiply, product

# -- the check at the entry ---------------------------------------------------------------------------------


def test_an_energy_with_a_trailing_dimension_is_refused_in_words():
    class Trailing(nn.Module):
        def forward(self, x, y):
            return y[:, :1]

    given = ConditionalModuleEnergy(Trailing()).given(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"trailing dimension of 1.*squeeze\(-1\)"):
        check_energy(given, torch.zeros(4, 2))


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (lambda x: x.sum(), "one energy for each configuration"),
        (lambda x: x, "one energy for each configuration"),
        (lambda x: 1.0, "must return a tensor"),
        (lambda x: x.sum(-1) * torch.nan, "5 energies of 5 that are not finite"),
    ],
)
def test_what_is_not_an_energy_is_refused_in_words(output, words):
    class Wrong(Energy):
        def forward(self, x):
            return output(x)

    with pytest.raises(ValueError, match=f"Wrong.*{words}"):
        check_energy(Wrong(), torch.ones(5, 2))


# -- operators --------------------------------------------------------------------------------------------


def test_a_sum_of_gaussian_energies_is_the_product_of_the_densities():
    """Precisions add, and the mean is weighted by them."""
    a = GaussianEnergy(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.5]))
    b = GaussianEnergy(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 1.0]))
    product = GaussianEnergy(torch.tensor([0.2, 0.2]), torch.tensor([0.2, 0.2]).sqrt())
    x = targets(3, 4, 2)
    difference = (a + b)(x) - product(x)
    torch.testing.assert_close(difference, difference[:1, :1].expand(3, 4))


def test_a_weight_and_a_temperature_scale_the_variance():
    a = gaussian()
    x = targets(3, 4, 2)
    for energy, factor in [(2.0 * a, 0.5), (a * 2.0, 0.5), (a / 4.0, 4.0)]:
        torch.testing.assert_close(energy(x), GaussianEnergy(a.mean, a.std * math.sqrt(factor))(x))


def test_a_negation_takes_the_precision_away():
    """N(0, 1)^1 / N(0, 2)^0.5 has precision 1 - 0.5 / 2."""
    one, two = (GaussianEnergy(torch.zeros(1), torch.tensor([s])) for s in (1.0, math.sqrt(2)))
    x = torch.linspace(-3, 3, 7).unsqueeze(-1)
    torch.testing.assert_close((one - 0.5 * two)(x), 0.5 * 0.75 * x.squeeze(-1).square())


def test_a_disjunction_of_normalised_energies_is_their_even_mixture():
    a = GaussianMixtureEnergy(torch.tensor([[-1.0, 0.0]]), torch.tensor([[0.5, 1.0]]), torch.ones(1))
    b = GaussianMixtureEnergy(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 0.3]]), torch.ones(1))
    even = GaussianMixtureEnergy(
        torch.cat([a.means, b.means]), torch.cat([a.scales, b.scales]), torch.tensor([0.5, 0.5])
    )
    x = targets(3, 4, 2)
    torch.testing.assert_close((a | b)(x) + math.log(2), even(x))


def test_a_disjunction_far_from_all_its_parts_does_not_underflow():
    x = torch.full((1, 2), 1e4)
    assert torch.isfinite((gaussian() | gaussian(seed=1))(x)).all()


def test_energies_of_y_at_fixed_inputs_combine():
    given = network(2).given(VECTORS)
    y = targets(4, 3, 2)
    torch.testing.assert_close((given + gaussian())(y), given(y) + gaussian()(y))


def test_what_does_not_combine_is_refused_in_words():
    image = gaussian()
    image.event_ndim = 3
    with pytest.raises(ValueError, match="different spaces"):
        gaussian() + image
    with pytest.raises(TypeError, match="only energies combine"):
        gaussian() | 3
    with pytest.raises(ValueError, match="temperature must be positive"):
        gaussian() / 0.0


def test_the_parameters_of_the_parts_are_those_of_the_whole():
    class Learned(Energy):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.scale * x.square().sum(-1)

    for whole in (WeightedSum([Learned(), Learned()], [1.0, 2.0]), Disjunction([Learned(), Learned()])):
        assert len(list(whole.parameters())) == 2


# -- closed forms -----------------------------------------------------------------------------------------


def test_the_gaussian_energy_and_its_normaliser_are_those_of_the_distribution():
    energy = gaussian(3)
    x = targets(2, 5, 3)
    expected = MultivariateNormal(energy.mean, torch.diag(energy.std**2)).log_prob(x)
    torch.testing.assert_close(-energy(x) - energy.log_normaliser, expected)


def test_the_gaussian_mixture_energy_is_that_of_the_distribution():
    energy = gaussian_mixture()
    x = targets(2, 5, 2)
    expected = MixtureSameFamily(
        Categorical(logits=energy.log_weights), Independent(Normal(energy.means, energy.scales), 1)
    ).log_prob(x)
    torch.testing.assert_close(-energy(x), expected)


@pytest.mark.parametrize("k", [1, 3])
def test_the_mixture_density_network_is_the_mixture_distribution(k):
    energy = perturbed(MixtureDensity(mlp([3, 6]), 6, n_targets=k, n_components=4))
    log_weights, means, log_stds = energy.features(VECTORS)
    y = targets(4, 5, k)
    distribution = MixtureSameFamily(
        Categorical(logits=log_weights), Independent(Normal(means, log_stds.exp()), 1)
    )
    expected = distribution.log_prob(y.transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(-energy(VECTORS, y), expected)


def test_draws_of_the_mixture_density_network_have_its_mean_and_variance():
    """Tolerance: 4 standard errors, from the draws' own second and fourth moments."""
    energy = perturbed(MixtureDensity(mlp([3, 6]), 6, n_targets=2, n_components=3), scale=0.4)
    features = energy.features(VECTORS)
    n = 40_000
    draws = energy.sample(features, n, torch.Generator().manual_seed(1))
    assert not draws.requires_grad
    weights, means, stds = features[0].exp().unsqueeze(-1), features[1], features[2].exp()
    mean = (weights * means).sum(1)
    variance = (weights * (stds**2 + means**2)).sum(1) - mean**2
    centred = (draws - mean.unsqueeze(1)).detach()
    assert ((draws.mean(1) - mean).abs() < 4 * (variance / n).sqrt()).all()
    error = (centred**4).mean(1).sub(variance**2).div(n).sqrt()
    assert ((centred.square().mean(1) - variance).abs() < 4 * error).all()


def test_no_component_gets_narrower_than_its_floor():
    energy = MixtureDensity(mlp([3, 6]), 6, log_std_floor=-3.0)
    with torch.no_grad():
        energy.log_stds[-1].bias.fill_(-100.0)
    assert float(energy.features(VECTORS)[2].detach().min()) >= -3.0


def test_a_tilted_energy_starts_as_its_proposal():
    mixture = MixtureDensity(mlp([3, 6]), 6, n_targets=2)
    energy = TiltedEnergy(mixture, NetworkEnergy(nn.Identity(), 6, 2, hidden=8))
    x, y = VECTORS, targets(4, 5, 2)
    torch.testing.assert_close(energy(x, y), energy.proposal(x, y))


def mass(energy: ConditionalEnergy, x: torch.Tensor) -> np.ndarray:
    """Integral of exp(-E) over y by Gauss-Legendre on panels that end at every component's bounds."""
    where, scale = (t.double() for t in energy.given(x.double()).landmarks())
    nodes, weights = (torch.tensor(a) for a in np.polynomial.legendre.leggauss(20))
    totals = []
    for i in range(len(x)):
        steps = torch.arange(-12.0, 12.5, 0.5, dtype=torch.float64)
        edges = (where[i, :, None] + scale[i, :, None] * steps).flatten().sort().values
        half = (edges[1:] - edges[:-1]) / 2
        y = (edges[:-1] + half)[:, None] + half[:, None] * nodes
        density = (-energy(x[i : i + 1].double(), y.reshape(1, -1, 1))).exp().reshape(y.shape)
        totals.append(float((density * weights * half[:, None]).sum()))
    return np.array(totals)


@pytest.mark.parametrize("atoms", [(), (0.0,), (-1.0, 0.7)])
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_the_tilted_ensemble_integrates_to_one(atoms, seed):
    """Random parameters, tilts of several nats: the density and the masses of the atoms."""
    torch.manual_seed(seed)
    energy = TiltedMixtureEnsemble(3, n_members=3, hidden=(16,), n_components=3, n_tilts=8, atoms=atoms)
    perturbed(energy, 0.3, seed).double()
    assert float(energy.features(VECTORS.double())[3].abs().amax()) > 1.0
    masses = energy.masses(energy.features(VECTORS.double())).detach().numpy()
    assert masses.shape == (len(VECTORS), len(atoms))
    np.testing.assert_allclose(mass(energy, VECTORS) + masses.sum(1), 1.0, atol=1e-7)
    for a, probability in zip(atoms, masses.T, strict=True):
        at = torch.full((len(VECTORS), 1), a, dtype=torch.float64)
        np.testing.assert_allclose((-energy(VECTORS.double(), at)).exp().detach().numpy(), probability, rtol=1e-9)


def three_members() -> TiltedMixtureEnsemble:
    return perturbed(TiltedMixtureEnsemble(3, 3, (8,), n_components=2, n_tilts=3, atoms=(0.5,)))


def test_the_roughness_of_a_tilt_weighs_each_cosine_by_the_square_of_its_number():
    """It is the mean square of the tilt's slope over [0, 1], but for pi^2."""
    energy = TiltedMixtureEnsemble(3, n_members=2, hidden=(8,), n_components=2, n_tilts=3)
    tilts = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.5, -2.0]], [[0.3, -0.7, 0.2], [0.0, 0.0, 0.0]]]).double()
    features = (None, None, None, tilts)
    u = (torch.arange(4000).double() + 0.5) / 4000
    j = torch.arange(1, 4).double()
    slope = -(tilts[..., None, :] * math.sqrt(2) * j * torch.sin(math.pi * u[:, None] * j)).sum(-1)
    torch.testing.assert_close(energy.roughness(features), slope.square().mean(-1), rtol=1e-5, atol=1e-8)
    assert energy.roughness(features)[0].tolist() == pytest.approx([1.0, 4 * 0.25 + 9 * 4.0])


def test_each_member_may_see_rows_of_its_own():
    energy = three_members()
    x = torch.randn(3, 4, 3)
    own = energy.member_log_prob(energy.features(x), targets(4, 1, 1)[:, 0])
    for member in range(3):
        shared = energy.member_log_prob(energy.features(x[member]), targets(4, 1, 1)[:, 0])
        torch.testing.assert_close(own[:, member], shared[:, member])


def test_members_share_no_weights():
    energy = three_members()
    energy.member_log_prob(energy.features(VECTORS), targets(4, 1, 1)[:, 0])[:, 1].sum().backward()
    for weight in energy.parameters():
        assert weight.grad[1].abs().sum() > 0
        assert weight.grad[[0, 2]].abs().sum() == 0


@torch.no_grad()
def test_a_classifier_beside_a_density_is_the_softmax_at_its_temperature():
    """Each part sees columns of its own; summed over the labels, the energy is that of the inputs."""
    classifier = perturbed(LabelledEnergy(nn.Linear(2, 3)))
    inputs, x = gaussian_mixture(), torch.randn(5, 4, generator=seeded())
    both = FactoredEnergy(classifier, inputs, (slice(0, 2), slice(2, 4)), temperature=2.5)
    scores = -classifier.energies(x[:, :2])
    assert float(scores.std(1).min()) > 0.1
    expected = (scores / 2.5).exp() / (scores / 2.5).exp().sum(1, keepdim=True)
    torch.testing.assert_close(both.given(x).log_probs.exp(), expected)
    torch.testing.assert_close(both.marginal()(x), inputs(x[:, 2:]))


def test_the_channels_of_a_residual_network_double_until_they_are_four_times_as_many():
    layers = residual_network(3, 10, width=4, n_blocks=5, spectral=False)
    convolutions = [m for m in layers.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    # The first layer, then two of each block.
    assert [m.in_channels for m in convolutions] == [3, 4, 4, 4, 8, 8, 16, 16, 16, 16, 16]
    assert [m.out_channels for m in convolutions] == [4, 4, 4, 8, 8, 16, 16, 16, 16, 16, 16]
    assert layers(torch.rand(2, 3, 32, 32)).shape == (2, 10)


# -- derivatives ------------------------------------------------------------------------------------------

perceptrons = pytest.mark.parametrize("hidden", [(7,), (9, 8, 5)])
activations = pytest.mark.parametrize("activation", ["silu", "softplus", "tanh"])
batches = pytest.mark.parametrize("batch", [(), (4,), (2, 4, 3)], ids=str)


def double(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def parameter_gradients(parts: tuple[torch.Tensor, ...], energy: Energy) -> list[torch.Tensor]:
    """Of a sum of squares, so that no part cancels another."""
    total = sum(part.square().sum() for part in parts)
    weights = list(energy.parameters())
    grads = torch.autograd.grad(total, weights, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, grads, strict=True)]


class ByAutograd(Energy):
    """The same energy, of which only the value is known."""

    def __init__(self, energy: Energy):
        super().__init__()
        self.energy = energy

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.energy(x)


def assert_same_derivatives(energy: Energy, method: str, *arguments: torch.Tensor) -> None:
    """The energy's own method and the generic one: values, and gradients with respect to the parameters."""
    own, generic = getattr(energy, method)(*arguments), getattr(ByAutograd(energy), method)(*arguments)
    own, generic = ((t,) if isinstance(t, torch.Tensor) else t for t in (own, generic))
    for a, b in zip(own, generic, strict=True):
        torch.testing.assert_close(a, b)
    if own[0].requires_grad:
        pairs = zip(parameter_gradients(own, energy), parameter_gradients(generic, energy), strict=True)
        for a, b in pairs:
            torch.testing.assert_close(a, b)


@perceptrons
@activations
@batches
def test_the_derivatives_of_a_perceptron_are_those_of_autograd(hidden, activation, batch):
    energy = perturbed(PerceptronEnergy(3, hidden, activation)).double()
    x, v = double(*batch, 3), double(*batch, 2, 3, seed=6)
    assert energy(x).shape == batch
    # Without and with a gradient in x the value takes two ways.
    values = energy(x), energy(x.clone().requires_grad_(True))
    torch.testing.assert_close(*values)
    for a, b in zip(*(parameter_gradients((v,), energy) for v in values), strict=True):
        torch.testing.assert_close(a, b)
    assert_same_derivatives(energy, "value_and_gradient", x)
    assert_same_derivatives(energy, "score", x)
    assert_same_derivatives(energy, "score_and_curvature", x, v)
    assert_same_derivatives(energy, "score_and_curvature", x, v.reshape(-1, 3)[:2])
    assert_same_derivatives(energy, "score_and_divergence", x)


@activations
def test_the_gradient_of_a_perceptron_has_a_gradient_in_x(activation):
    energy = perturbed(PerceptronEnergy(3, (5, 4), activation)).double()
    x = double(7, 3).requires_grad_(True)
    own, generic = (e.score(x).square().sum() for e in (energy, ByAutograd(energy)))
    torch.testing.assert_close(*(torch.autograd.grad(f, x)[0] for f in (own, generic)))


def test_derivatives_that_are_written_out_refuse_to_be_differentiated_twice():
    energy = PerceptronEnergy(3, (5,))
    x = torch.randn(7, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(energy.score(x).sum(), x, create_graph=True)
    (first,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
    assert torch.isfinite(torch.autograd.grad(first.square().sum(), x)[0]).all()


def test_the_fast_product_of_matrices_is_the_ordinary_one():
    """Sizes on both sides of the one from which oneDNN is used; single precision, sums of n terms."""
    for n_rows, n, m in [(3, 4, 5), (300, 128, 128), (40, 200, 784), (500, 128, 2), (2, 128, 512)]:
        x, matrix, bias = torch.randn(n_rows, n), torch.randn(m, n).t(), torch.randn(m)
        tolerance = {"rtol": 1e-5, "atol": 1e-5 * n}
        torch.testing.assert_close(product(x, matrix, bias), x @ matrix + bias, **tolerance)
        torch.testing.assert_close(product(x.t(), x), x.t() @ x, **tolerance)
        with torch.no_grad():
            torch.testing.assert_close(multiply(x.expand(2, -1, -1), matrix)[1], x @ matrix, **tolerance)
        assert multiply(x, matrix.requires_grad_()).requires_grad


def test_a_perceptron_of_an_unknown_activation_or_of_no_layers_is_refused_in_words():
    with pytest.raises(ValueError, match=r"activation must be one of silu, .*got 'step'"):
        PerceptronEnergy(2, activation="step")
    with pytest.raises(ValueError, match="at least one hidden layer"):
        PerceptronEnergy(2, ())


@perceptrons
@batches
def test_a_perceptron_of_relus_has_autograds_gradient_and_no_second_derivative(hidden, batch):
    energy = perturbed(PerceptronEnergy(3, hidden, "relu")).double()
    x = double(*batch, 3)
    assert_same_derivatives(energy, "value_and_gradient", x)
    assert_same_derivatives(energy, "score", x)
    for method, arguments in [("score_and_curvature", (x, x)), ("score_and_divergence", (x,))]:
        with pytest.raises(ValueError, match="relu has no second derivative"):
            getattr(energy, method)(*arguments)


@pytest.mark.parametrize("activation", ["relu", "silu", "softplus", "tanh"])
@pytest.mark.parametrize("candidates", [(), (4,), (2, 3)], ids=str)
def test_the_gradient_of_a_labelled_perceptron_is_that_of_autograd(activation, candidates):
    energy = perturbed(LabelledPerceptron((2, 3, 3), 5, (7, 6), activation)).double()
    given = energy.of_inputs().given(torch.tensor([3, 0, 4]))
    images = torch.rand(3, *candidates, 2, 3, 3, generator=seeded(), dtype=torch.float64)
    assert given(images).shape == (3, *candidates)
    assert_same_derivatives(given, "value_and_gradient", images)
    energies = energy.energies(images)
    for row, label in enumerate([3, 0, 4]):
        torch.testing.assert_close(given(images)[row], energies[row][..., label])


def test_the_gradient_of_a_perceptron_can_be_differentiated_in_x():
    energy, x = perturbed(PerceptronEnergy(3, (6, 5))).double(), double(4, 3).requires_grad_(True)
    own = torch.autograd.grad(energy.score(x).square().sum(), x)[0]
    generic = torch.autograd.grad(Energy.score(energy, x).square().sum(), x)[0]
    torch.testing.assert_close(own, generic)


class ImageEnergy(Energy):
    """Smooth, of images ``[2, 4, 4]``."""

    event_ndim = 3

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(48, 1))

    def forward(self, x):
        return self.layers(x.reshape(-1, 2, 4, 4)).reshape(x.shape[:-3])


class LinearEnergy(Energy):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([1.0, -2.0]))

    def forward(self, x):
        return x @ self.slope


# Name: energy, inputs of a conditional one, shape of x or y.
SMOOTH = {
    "image": (ImageEnergy, None, (3, 2, 4, 4)),
    "images in two batch dimensions": (ImageEnergy, None, (2, 3, 2, 4, 4)),
    "linear": (LinearEnergy, None, (4, 2)),
    "network given x": (lambda: network(2), VECTORS, (4, 2)),
    "network given x, candidates": (lambda: network(2), VECTORS, (4, 3, 2)),
    "module given x": (lambda: ConditionalModuleEnergy(PairNetwork(3, 2)), VECTORS, (4, 3, 2)),
    "mixture given x": (lambda: mixture(2), VECTORS, (4, 3, 2)),
    "difference": (lambda: PerceptronEnergy(2, (6, 5)) - 0.5 * gaussian_mixture(), None, (3, 4, 2)),
    "disjunction": (lambda: PerceptronEnergy(2, (6, 5)) | gaussian_mixture(), None, (4, 2)),
    "Gaussian": (gaussian, None, (4, 2)),
    "mixture": (correlated_mixture, None, (4, 2)),
}
smooth = pytest.mark.parametrize(("make", "inputs", "shape"), SMOOTH.values(), ids=SMOOTH.keys())
smooth_with_parameters = pytest.mark.parametrize(
    ("make", "inputs", "shape"), list(SMOOTH.values())[:-2], ids=list(SMOOTH)[:-2]
)


def smooth_energy(make, inputs) -> tuple[nn.Module, Energy]:
    """The energy, and the same given its inputs."""
    energy = perturbed(make()).double()
    return energy, energy if inputs is None else energy.given(inputs.double())


@smooth
def test_derivatives_equal_finite_differences(make, inputs, shape):
    """Central differences in double precision: an error of 1e-10 from the step, 1e-10 from rounding."""
    _, energy = smooth_energy(make, inputs)
    x, v = double(*shape), double(*shape, seed=6)
    step, events = 1e-5, tuple(range(-energy.event_ndim, 0))

    def along(direction, function):
        return (function(x + step * direction) - function(x - step * direction)) / (2 * step)

    value, grad = energy.value_and_gradient(x)
    torch.testing.assert_close(value, energy(x).detach())
    torch.testing.assert_close(energy.score(x).detach(), -grad)
    slope = along(v, lambda y: energy(y).detach())
    torch.testing.assert_close((grad * v).sum(events), slope, rtol=1e-6, atol=1e-7)
    same, curvature = energy.score_and_curvature(x, v.unsqueeze(-1 - energy.event_ndim))
    bend = (along(v, lambda y: energy.value_and_gradient(y)[1]) * v).sum(events)
    torch.testing.assert_close(same.detach(), -grad)
    torch.testing.assert_close(curvature.detach().squeeze(-1), -bend, rtol=1e-6, atol=1e-7)
    same, divergence = energy.score_and_divergence(x)
    torch.testing.assert_close(same.detach(), -grad)
    trace = torch.zeros_like(value)
    size = math.prod(x.shape[-energy.event_ndim :])
    for unit in torch.eye(size, dtype=torch.float64).reshape(size, *x.shape[-energy.event_ndim :]):
        trace += (along(unit, lambda y: energy.value_and_gradient(y)[1]) * unit).sum(events)
    torch.testing.assert_close(divergence.detach(), -trace, rtol=1e-6, atol=1e-7)


@smooth_with_parameters
def test_derivatives_in_x_carry_a_graph_to_every_parameter_of_theirs(make, inputs, shape):
    """The gradient of the derivatives in a random direction of the parameters, by finite differences."""
    energy, _ = smooth_energy(make, inputs)
    x, v = double(*shape), double(*shape, seed=6)
    weights = list(energy.parameters())

    def figures():
        given = energy if inputs is None else energy.given(inputs.double())
        score, divergence = given.score_and_divergence(x)
        first, second = given.score_and_curvature(x, v.unsqueeze(-1 - given.event_ndim))
        return score.square().sum() + divergence.square().sum() + first.sum() * second.sum()

    grads = torch.autograd.grad(figures(), weights, allow_unused=True)
    directions = [double(*w.shape, seed=i) for i, w in enumerate(weights)]
    expected = sum(float((g * d).sum()) for g, d in zip(grads, directions, strict=True) if g is not None)
    values = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for w, d in zip(weights, directions, strict=True):
                w += step * d
        values.append(float(figures().detach()))
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(expected, rel=1e-5)


def test_a_sum_with_a_discrete_energy_lives_on_its_values():
    bits, numbers = RBMEnergy(2, 3), GaussianEnergy(torch.zeros(2), torch.eye(2))
    assert (bits + numbers).support == (numbers - bits).support == bits.support
    assert (numbers + numbers).support == numbers.support


def test_the_derivatives_of_a_sum_are_the_sums_of_its_parts():
    """Whose own closed forms are taken: each part's own method, each to its weight."""
    parts = [perturbed(PerceptronEnergy(2, (6, 5))), gaussian(), correlated_mixture()]
    energy = WeightedSum(parts, [1.0, 2.0, -0.3]).double()
    x, v = double(3, 4, 2), double(3, 4, 5, 2, seed=6)
    assert_same_derivatives(energy, "value_and_gradient", x)
    assert_same_derivatives(energy, "score", x)
    assert_same_derivatives(energy, "score_and_curvature", x, v)
    assert_same_derivatives(energy, "score_and_divergence", x)


# -- densities --------------------------------------------------------------------------------------------


def from_moments() -> GaussianMixtureEnergy:
    return GaussianMixtureEnergy.from_moments(correlated_mixture().sample(200, seeded(3)), 1.2)


def flow() -> FlowEnergy:
    torch.manual_seed(2)
    spline = zuko.flows.NSF(2, bins=4, transforms=2, hidden_features=(8,))
    return perturbed(FlowEnergy(spline, torch.tensor([0.5, -0.5]), torch.tensor([1.5, 0.7])), 0.3)


DENSITIES = {
    "diagonal mixture": gaussian_mixture,
    "full mixture": correlated_mixture,
    "Gaussian of the moments": from_moments,
    "fitted mixture": lambda: fit_gaussian_mixture(gaussian_mixture().sample(300, seeded(4)), 2),
    "uniform": lambda: UniformEnergy(torch.tensor([-1.0, 0.5]), torch.tensor([2.0, 1.5])),
    "flow": flow,
}
densities = pytest.mark.parametrize("make", DENSITIES.values(), ids=DENSITIES.keys())


def planar_grid(width: float = 0.05, bound: float = 12.0) -> tuple[torch.Tensor, float]:
    """Centres of cells, whose edges are those of the uniform density too."""
    axis = -bound + width * (torch.arange(round(2 * bound / width), dtype=torch.float64) + 0.5)
    return torch.cartesian_prod(axis, axis), width**2


@densities
def test_a_density_gives_one_log_probability_for_each_configuration(make):
    energy = make()
    x = energy.sample((3, 4), seeded())
    log_p = energy.log_prob(x)
    assert log_p.shape == (3, 4)
    assert torch.isfinite(log_p).all()
    assert torch.equal(energy(x), -log_p)
    torch.testing.assert_close(energy.log_prob(x[0]), log_p[0])
    torch.testing.assert_close(energy.log_prob(x[1, 2]), log_p[1, 2])


@densities
def test_draws_have_the_shape_asked_carry_no_graph_and_follow_their_generator(make):
    energy = make()
    global_state = torch.get_rng_state()
    first = energy.sample((3, 4), seeded())
    assert first.shape == (3, 4, 2)
    assert energy.sample(5, seeded()).shape == (5, 2)
    assert not first.requires_grad
    assert torch.equal(torch.get_rng_state(), global_state)
    assert torch.equal(first, energy.sample((3, 4), seeded()))
    assert not torch.equal(first, energy.sample((3, 4), seeded(1)))


@densities
def test_a_density_integrates_to_one_and_its_draws_are_its_own(make):
    """Its first two moments and its entropy, by draws and on a grid: four standard errors, and 1e-3 for the
    grid, whose cells are coarse for a spline's kinks."""
    energy = make().double()
    points, area = planar_grid()
    with torch.no_grad():
        log_p = torch.cat([energy.log_prob(piece) for piece in points.split(50_000)])
        draws = energy.sample(40_000, seeded(7))
        own = energy.log_prob(draws)
    p = log_p.exp() * area
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-4)

    def figures(x, log_prob):
        return torch.stack([x[:, 0], x[:, 1], x[:, 0] ** 2, x[:, 1] ** 2, x[:, 0] * x[:, 1], log_prob], 1)

    expected = (p[:, None] * figures(points, log_p.clamp_min(-1e4))).sum(0)
    found = figures(draws, own)
    error = found.std(0) / math.sqrt(len(draws))
    assert ((found.mean(0) - expected).abs() < 4 * error + 1e-3).all()


@densities
def test_the_gradient_of_a_density_is_that_of_its_energy(make):
    energy = make().double()
    x = energy.sample((3, 4), seeded()).requires_grad_(True)
    value, grad = energy.value_and_gradient(x)
    torch.testing.assert_close(value, energy(x).detach())
    # Central differences; a spline's second derivative jumps at its knots, which these few points miss.
    for k in range(2):
        step = 1e-6 * torch.eye(2, dtype=torch.float64)[k]
        slope = (energy(x + step) - energy(x - step)).detach() / 2e-6
        torch.testing.assert_close(grad[..., k], slope, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(energy.score(x).detach(), -grad)


@densities
def test_what_is_loaded_into_another_density_of_its_kind_is_the_same_density(make):
    energy, other = make(), make()
    with torch.no_grad():
        for t in [*other.parameters(), *other.buffers()]:
            if t.is_floating_point():
                t.mul_(1.3)
    other.load_state_dict(energy.state_dict())
    x = energy.sample(20, seeded())
    assert torch.equal(other.log_prob(x), energy.log_prob(x))
    for a, b in zip(other.value_and_gradient(x), energy.value_and_gradient(x), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(other.sample(20, seeded()), x)


def test_a_mixture_of_full_covariances_is_that_of_the_distribution():
    energy = correlated_mixture()
    x = targets(2, 5, 2)
    expected = MixtureSameFamily(
        Categorical(logits=energy.log_weights), MultivariateNormal(energy.means, scale_tril=energy.scales)
    ).log_prob(x)
    torch.testing.assert_close(-energy(x), expected)


@pytest.mark.parametrize("make", [gaussian_mixture, correlated_mixture])
def test_the_closed_form_gradient_of_a_mixture_is_that_of_autograd(make):
    energy = make().double()
    assert_same_derivatives(energy, "value_and_gradient", double(3, 4, 2))
    far = 1e3 * double(3, 4, 2)
    assert_same_derivatives(energy, "value_and_gradient", far)


def test_a_gaussian_of_the_moments_has_the_means_and_variances_of_the_data():
    data = double(50, 3) @ double(3, 3, seed=6) + 2.0
    energy = GaussianMixtureEnergy.from_moments(data, widen=2.0)
    covariance = energy.scales[0] @ energy.scales[0].t() / 4
    torch.testing.assert_close(energy.means[0], data.mean(0))
    expected = torch.cov(data.t())
    torch.testing.assert_close(covariance.diagonal(), expected.diagonal(), rtol=1e-5, atol=0)
    # The covariances themselves are D / n nearer to zero.
    off = ~torch.eye(3, dtype=torch.bool)
    torch.testing.assert_close(covariance[off], expected[off] * (1 - 3 / 50), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "data",
    [
        double(5, 20),
        double(200, 1) * torch.tensor([1.0, -2.0, 3.0]).double(),
        torch.cat([double(50, 2), torch.ones(50, 1).double()], 1),
        double(1, 2),
    ],
    ids=["fewer rows than coordinates", "on a line", "a constant coordinate", "one row"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gaussian_of_moments_covers_data_that_do_not_span_all_directions(data, dtype):
    data = data.to(dtype)
    energy = GaussianMixtureEnergy.from_moments(data)
    assert torch.isfinite(energy.log_prob(data)).all()
    draws = energy.sample(2000, seeded())
    # Of a Gaussian the variance of n draws has the standard error v sqrt(2 / n).
    variance = data.double().var(0) if len(data) > 1 else torch.zeros(2).double()
    assert ((draws.double().var(0) - variance).abs() < 4 * variance * math.sqrt(2 / 2000) + 1e-9).all()


@pytest.mark.parametrize("make", [gaussian_mixture, correlated_mixture])
def test_the_conditionals_of_a_mixture_multiply_to_its_density_and_draw_from_it(make):
    energy = make().double()
    n = energy.means.shape[1]
    x = energy.sample(4000, seeded())
    parts = [energy.conditional_log_prob(x, d) for d in range(n)]
    torch.testing.assert_close(sum(parts), energy.log_prob(x))
    # Each integrates to one over its own coordinate.
    grid = torch.linspace(-30, 30, 20_001, dtype=torch.float64)
    line = x[:1].repeat(len(grid), 1)
    line[:, n - 1] = grid
    mass = torch.trapezoid(energy.conditional_log_prob(line, n - 1).exp(), grid)
    assert float(mass) == pytest.approx(1, abs=1e-9)
    # Coordinates drawn one after the other have the joint distribution, and so the mean of log p of its own draws.
    drawn = torch.zeros_like(x)
    for d in range(n):
        drawn[:, d] = energy.conditional_draw(drawn, d, seeded(d))
    own, other = energy.log_prob(x), energy.log_prob(drawn)
    error = math.sqrt((float(own.var()) + float(other.var())) / len(x))
    assert abs(float(own.mean() - other.mean())) < 4 * error
    spread = x.std(0) * math.sqrt(2 / len(x))
    assert ((x.mean(0) - drawn.mean(0)).abs() < 4 * spread).all()


def test_the_number_of_components_is_told_by_held_out_rows():
    truth = GaussianMixtureEnergy(torch.tensor([[-4.0, 0.0], [0.0, 4.0], [4.0, 0.0]]), torch.ones(3, 2))
    data = truth.sample(900, seeded())
    assert choose_gaussian_mixture(data)["n_components"] == 3


def test_a_mixture_is_found_again_by_expectation_maximisation():
    """Modes apart by eight deviations: each mean is found to four standard errors, std / sqrt(n w)."""
    truth = GaussianMixtureEnergy(
        torch.tensor([[-4.0, 0.0], [4.0, 1.0]]), torch.tensor([[0.5, 1.0], [1.0, 0.3]]), torch.tensor([0.3, 0.7])
    )
    data = truth.sample(4000, seeded())
    found = fit_gaussian_mixture(data, 2)
    order = found.means[:, 0].argsort()
    counts = 4000 * truth.log_weights.exp()
    error = truth.scales / counts.sqrt()[:, None]
    assert ((found.means[order] - truth.means).abs() < 4 * error).all()
    covariances = (found.scales @ found.scales.transpose(1, 2))[order].diagonal(dim1=1, dim2=2)
    spread = truth.scales.square()
    assert ((covariances - spread).abs() < 4 * spread * (2 / counts).sqrt()[:, None] + 1e-3).all()
    assert float(found.log_weights[order].exp()[0]) == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 4000))
    assert torch.equal(fit_gaussian_mixture(data, 2).means, found.means)


def test_a_uniform_density_of_images_is_one_over_its_volume_inside_and_nothing_outside():
    energy = UniformEnergy(torch.zeros(1, 2, 3), torch.full((1, 2, 3), 2.0))
    x = energy.sample((5, 4), seeded())
    assert x.shape == (5, 4, 1, 2, 3)
    torch.testing.assert_close(energy.log_prob(x), torch.full((5, 4), -6 * math.log(2.0)))
    x[0, 0, 0, 1, 2] = 2.1
    assert float(energy(x)[0, 0]) == math.inf
    assert torch.isfinite(energy(x).flatten()[1:]).all()
    assert torch.equal(energy.value_and_gradient(x)[1], torch.zeros_like(x))


def test_a_gradient_flows_through_the_draws_of_a_flow():
    """With the noise fixed the draws move with the parameters: against finite differences."""
    energy = flow().double()
    weights = list(energy.parameters())
    value = energy.draw(50, seeded()).square().mean()
    grads = torch.autograd.grad(value, weights)
    directions = [double(*w.shape, seed=i) for i, w in enumerate(weights)]
    expected = sum(float((g * d).sum()) for g, d in zip(grads, directions, strict=True))
    values = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for w, d in zip(weights, directions, strict=True):
                w += step * d
            values.append(float(energy.draw(50, seeded()).square().mean()))
    assert abs(expected) > 1e-3
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(expected, rel=1e-4)


def test_a_density_that_is_none_is_refused_in_words():
    with pytest.raises(ValueError, match=r"means must be \[components, D\].*got \(2,\)"):
        GaussianMixtureEnergy(torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match="means must be"):
        GaussianMixtureEnergy(torch.zeros(3, 2), torch.ones(1, 2))
    with pytest.raises(ValueError, match="means must be"):
        GaussianMixtureEnergy(torch.zeros(1, 2), torch.ones(1, 2, 3))
    for scales in (torch.tensor([[1.0, 0.0]]), -torch.eye(2)[None]):
        with pytest.raises(ValueError, match="scales must be positive"):
            GaussianMixtureEnergy(torch.zeros(1, 2), scales)
    with pytest.raises(ValueError, match="weights must be positive"):
        GaussianMixtureEnergy(torch.zeros(2, 1), torch.ones(2, 1), torch.tensor([1.5, -0.5]))
    with pytest.raises(ValueError, match="lower bound must be below"):
        UniformEnergy(torch.zeros(2), torch.tensor([1.0, 0.0]))
