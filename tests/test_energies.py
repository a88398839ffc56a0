"""The contract of an energy, over all of them; operators and mixtures against closed forms."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from thalweg.energies import (
    ConditionalEnergy,
    Disjunction,
    Energy,
    GaussianEnergy,
    GaussianMixtureEnergy,
    MixtureDensity,
    ModuleEnergy,
    NetworkEnergy,
    PointNet,
    TiltedEnergy,
    TiltedMixtureEnsemble,
    WeightedSum,
    check_energy,
    convnet,
    mlp,
    source_network,
)


def perturbed(module: nn.Module, scale: float = 0.2, seed: int = 0) -> nn.Module:
    """No parameter stays at zero, where a gradient or an error could hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(scale * torch.randn(weight.shape, generator=generator))
    return module.eval()


def gaussian(k: int = 2, seed: int = 0) -> GaussianEnergy:
    generator = torch.Generator().manual_seed(seed)
    return GaussianEnergy(torch.randn(k, generator=generator), 0.5 + torch.rand(k, generator=generator))


def gaussian_mixture() -> GaussianMixtureEnergy:
    return GaussianMixtureEnergy(
        torch.tensor([[-1.0, 0.0], [2.0, 1.0]]), torch.tensor([[0.5, 1.0], [1.0, 0.3]]), torch.tensor([1.0, 3.0])
    )


class PairNetwork(nn.Module):
    def __init__(self, n_x: int, n_y: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(n_x + n_y, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x, y):
        return self.layers(torch.cat([x, y], -1)).squeeze(-1)


UNCONDITIONAL = {
    "Gaussian": gaussian,
    "GaussianMixture": gaussian_mixture,
    "sum": lambda: gaussian(seed=1) + gaussian_mixture(),
    "weighted": lambda: 2.0 * gaussian(),
    "tempered": lambda: gaussian() / 3.0,
    "difference": lambda: gaussian() - 0.5 * gaussian_mixture(),
    "disjunction": lambda: gaussian() | gaussian_mixture(),
}

VECTORS = torch.linspace(-1, 1, 12).reshape(4, 3)
CONDITIONAL = {
    "Network": (lambda: NetworkEnergy(mlp([3, 6]), 6, 2, hidden=8), VECTORS, 2),
    "Network with layers on y": (
        lambda: NetworkEnergy(mlp([3, 6]), 6, 1, y_hidden=(5, 4), hidden=8, n_residual=2),
        VECTORS,
        1,
    ),
    "source network": (lambda: source_network(3), VECTORS, 1),
    "Network on images": (
        lambda: NetworkEnergy(convnet(1, 6, width=2), 6, 2, hidden=8),
        torch.linspace(-1, 1, 4 * 144).reshape(4, 1, 12, 12),
        2,
    ),
    "Network on points": (
        lambda: NetworkEnergy(PointNet(3, 6, width=4), 6, 1, hidden=8),
        torch.linspace(-1, 1, 4 * 15).reshape(4, 5, 3).sin(),
        1,
    ),
    "Module": (lambda: ModuleEnergy(PairNetwork(3, 2)), VECTORS, 2),
    "Module of log p": (lambda: ModuleEnergy(PairNetwork(3, 1), sign=-1.0), VECTORS, 1),
    "Mixture": (lambda: MixtureDensity(mlp([3, 6]), 6, n_targets=2, n_components=3, hidden=(5,)), VECTORS, 2),
    "Tilted": (
        lambda: TiltedEnergy(
            MixtureDensity(mlp([3, 6]), 6, n_targets=2), NetworkEnergy(nn.Identity(), 6, 2, hidden=8)
        ),
        VECTORS,
        2,
    ),
    "Tilted ensemble": (
        lambda: TiltedMixtureEnsemble(3, n_members=3, hidden=(8,), n_components=2, n_tilts=3, atoms=(0.5,)),
        VECTORS,
        1,
    ),
    "Ensemble without tilts": (
        lambda: TiltedMixtureEnsemble(3, n_members=2, hidden=(8,), n_components=2, n_tilts=0),
        VECTORS,
        1,
    ),
}
conditional = pytest.mark.parametrize(("make", "x", "k"), CONDITIONAL.values(), ids=CONDITIONAL.keys())
unconditional = pytest.mark.parametrize("make", UNCONDITIONAL.values(), ids=UNCONDITIONAL.keys())


def targets(n_rows: int, n_candidates: int, k: int) -> torch.Tensor:
    return torch.randn(n_rows, n_candidates, k, generator=torch.Generator().manual_seed(5))


# -- the contract -----------------------------------------------------------------------------------------


@unconditional
def test_batch_dimensions_are_free(make):
    energy = make()
    x = targets(3, 4, 2)
    values = energy(x)
    assert values.shape == (3, 4)
    torch.testing.assert_close(energy(x[0]), values[0])
    torch.testing.assert_close(energy(x[1, 2]), values[1, 2])
    torch.testing.assert_close(energy(x.unsqueeze(2).expand(3, 4, 5, 2)), values.unsqueeze(2).expand(3, 4, 5))


@conditional
def test_candidate_dimensions_are_free_and_given_equals_the_full_call(make, x, k):
    energy = perturbed(make())
    y = targets(len(x), 6, k)
    values = energy(x, y)
    assert values.shape == (len(x), 6)
    given = energy.given(x)
    assert torch.equal(given(y), values)
    torch.testing.assert_close(given(y[:, 0]), values[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        given(y.reshape(len(x), 2, 3, k)), values.reshape(len(x), 2, 3), rtol=1e-5, atol=1e-5
    )
    for i in range(len(x)):
        torch.testing.assert_close(energy(x[i : i + 1], y[i : i + 1]), values[i : i + 1], rtol=1e-4, atol=1e-5)


@conditional
def test_a_selection_of_the_rows_equals_the_energy_at_those_inputs(make, x, k):
    energy = perturbed(make())
    given, y = energy.given(x), targets(len(x), 3, k)
    index = torch.tensor([2, 0, 2])
    assert given.n_rows == len(x)
    assert given.rows(index).n_rows == 3
    torch.testing.assert_close(given.rows(index)(y[index]), given(y)[index], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(given.rows(slice(1, 3))(y[1:3]), given(y)[1:3], rtol=1e-5, atol=1e-5)


@conditional
def test_every_parameter_has_a_gradient(make, x, k):
    energy = perturbed(make())
    energy(x, targets(len(x), 5, k)).square().sum().backward()
    for name, weight in energy.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert weight.grad.abs().sum() > 0, name


def assert_value_and_grad(energy: Energy, x: torch.Tensor) -> None:
    x = x.requires_grad_(True)
    expected = energy(x)
    (expected_grad,) = torch.autograd.grad(expected.sum(), x)
    with torch.no_grad():
        value, grad = energy.value_and_grad(x)
    assert not value.requires_grad
    assert not grad.requires_grad
    value, grad = energy.value_and_grad(x)
    assert not value.requires_grad
    assert not grad.requires_grad
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(grad, expected_grad)


@unconditional
def test_value_and_grad_equals_autograd_and_carries_no_graph(make):
    assert_value_and_grad(make(), targets(3, 4, 2))


@conditional
def test_value_and_grad_given_x_equals_autograd_and_leaves_no_gradient_on_parameters(make, x, k):
    energy = perturbed(make())
    assert_value_and_grad(energy.given(x), targets(len(x), 4, k))
    assert all(w.grad is None for w in energy.parameters())


@conditional
def test_the_features_of_x_are_computed_once_however_many_candidates(make, x, k):
    energy = perturbed(make())
    calls = []
    features = energy.features
    energy.features = lambda x: calls.append(len(x)) or features(x)
    given = energy.given(x)
    for n in (1, 7):
        given(targets(len(x), n, k))
    assert calls == [len(x)]


@pytest.mark.parametrize("name", ["Network", "Tilted"])
def test_a_double_precision_energy_computes_in_double_precision(name):
    make, x, k = CONDITIONAL[name]
    energy = perturbed(make()).double()
    assert energy(x.double(), targets(4, 3, k).double()).dtype == torch.float64


def test_an_energy_with_a_trailing_dimension_is_refused_in_words():
    class Trailing(nn.Module):
        def forward(self, x, y):
            return y[:, :1]

    given = ModuleEnergy(Trailing()).given(torch.zeros(4, 3))
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
        torch.cat([a.means, b.means]), torch.cat([a.stds, b.stds]), torch.tensor([0.5, 0.5])
    )
    x = targets(3, 4, 2)
    torch.testing.assert_close((a | b)(x) + math.log(2), even(x))


def test_a_disjunction_far_from_all_its_parts_does_not_underflow():
    x = torch.full((1, 2), 1e4)
    assert torch.isfinite((gaussian() | gaussian(seed=1))(x)).all()


def test_energies_of_y_at_fixed_inputs_combine():
    make, x, k = CONDITIONAL["Network"]
    given = perturbed(make()).given(x)
    y = targets(len(x), 3, k)
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
        Categorical(logits=energy.log_weights), Independent(Normal(energy.means, energy.stds), 1)
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
    make, x, k = CONDITIONAL["Tilted"]
    energy = make()
    y = targets(len(x), 5, k)
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
    """Random parameters, tilts of several nats; what is left is the error of 64 nodes for Z."""
    torch.manual_seed(seed)
    energy = TiltedMixtureEnsemble(3, n_members=3, hidden=(16,), n_components=3, n_tilts=8, atoms=atoms)
    perturbed(energy, 0.3, seed).double()
    assert float(energy.features(VECTORS.double())[3].abs().amax()) > 1.0
    np.testing.assert_allclose(mass(energy, VECTORS), 1.0, atol=1e-7)


def test_each_member_may_see_rows_of_its_own():
    energy = perturbed(CONDITIONAL["Tilted ensemble"][0]())
    x = torch.randn(3, 4, 3)
    own = energy.member_log_prob(energy.features(x), targets(4, 1, 1)[:, 0])
    for member in range(3):
        shared = energy.member_log_prob(energy.features(x[member]), targets(4, 1, 1)[:, 0])
        torch.testing.assert_close(own[:, member], shared[:, member])


def test_members_share_no_weights():
    energy = perturbed(CONDITIONAL["Tilted ensemble"][0]())
    energy.member_log_prob(energy.features(VECTORS), targets(4, 1, 1)[:, 0])[:, 1].sum().backward()
    for weight in energy.parameters():
        assert weight.grad[1].abs().sum() > 0
        assert weight.grad[[0, 2]].abs().sum() == 0
