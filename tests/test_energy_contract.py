"""What every energy keeps: shapes, gradients, draws, copies; over all that the room exports, none left out."""

import copy
import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import constraints

from parts import (
    VECTORS,
    PairNetwork,
    any_order_density,
    correlated_mixture,
    gaussian,
    gaussian_mixture,
    perturbed,
    seeded,
)
from thalweg import energies
from thalweg.energies import (
    AnchoredEnergy,
    AnyOrderDensity,
    AutoencoderEnergy,
    BernoulliEnergy,
    BoltzmannMachine,
    CategoricalEnergy,
    CellConditional,
    ChainEnergy,
    ClampedEnergy,
    ClassGaussians,
    Column,
    ConditionalEnergy,
    ConditionalModuleEnergy,
    ConditionalWithoutLatent,
    Conditioned,
    DBMEnergy,
    DeepBeliefNetwork,
    Density,
    DirectRegression,
    Disjunction,
    Energy,
    FactoredEnergy,
    FactorEnergy,
    FactorGraph,
    FixedPerceptron,
    FlowEnergy,
    Gaussian,
    GrowingEnergy,
    ImageEnergy,
    KernelDensity,
    LabelledEnergy,
    LabelledEnsemble,
    LabelledMembers,
    LabelledPerceptron,
    LatentCompletion,
    LatentDescent,
    LatentLabels,
    LatentNetwork,
    LatentSampling,
    LatentSpaceEnergy,
    Levels,
    LogisticEnergy,
    LogitEnergy,
    MixtureDensity,
    MixtureOfExperts,
    ModuleEnergy,
    MultiscaleEnergy,
    NeighbourEnergy,
    NetworkEnergy,
    NoisyGenerator,
    OneHotGroups,
    PairwiseEnergy,
    PerceptronEnergy,
    PointNet,
    RankingMembers,
    RBMEnergy,
    ReconstructionEnergy,
    RunningGaussian,
    ShapedDensity,
    StretchDensity,
    StudentExperts,
    TiltedEnergy,
    TiltedMixtureEnsemble,
    TiltedMixtures,
    UniformEnergy,
    WithoutLatent,
    autoencoder_energy,
    check_energy,
    convnet,
    mlp,
    residual_network,
    source_network,
    variational_autoencoder,
)
from thalweg.energies.discrete import Sites

# What only says how energies look.
ABSTRACT = {"Energy", "ConditionalEnergy", "Density", "ConditionalDensity", "LayeredMachine"}


def flow() -> FlowEnergy:
    import zuko

    return FlowEnergy(zuko.flows.NSF(2, bins=4, transforms=1, hidden_features=(6,)), 0.5, 2.0)


def any_order() -> AnyOrderDensity:
    return any_order_density([Column(edges=(-1.0, 0.0, 1.0)), Column()], n_tilts=2)


def labelled(n_inputs: int = 2) -> LabelledEnergy:
    return LabelledEnergy(mlp([n_inputs, 6, 3]))


def kernels() -> KernelDensity:
    rows = torch.randn(30, 2, generator=seeded(2)).numpy()
    return KernelDensity.of(rows, np.arange(30) % 2).float()


def neighbours() -> NeighbourEnergy:
    rows = torch.randn(30, 2, generator=seeded(2))
    curve = torch.tensor([[-1.0, 0.0, 1.0]] * 2)
    energy = NeighbourEnergy(rows, torch.arange(30) % 3, torch.zeros(2), torch.rand(2) + 0.5, (curve, curve.sin()))
    energy.standardise()
    return energy


def gaussians_of(n: int) -> ClassGaussians:
    """Of three labels."""
    return ClassGaussians(torch.randn(3, n), torch.randn(3, 1, n), torch.rand(3, n) + 0.1)


def running(seed: int = 0) -> RunningGaussian:
    return RunningGaussian(torch.tensor([0.5, 1.0])).updated(torch.randn(6, 2, generator=seeded(seed)))


class Case(NamedTuple):
    """An energy of configurations of this shape, and whether every parameter moves its values."""

    make: Callable[[], Energy]
    event: tuple[int, ...] = (2,)
    every_parameter: bool = True


UNCONDITIONAL = {
    "Gaussian": Case(gaussian),
    "GaussianMixture": Case(gaussian_mixture),
    "GaussianMixture, full": Case(correlated_mixture),
    "Running Gaussian": Case(running),
    "Uniform": Case(lambda: UniformEnergy(-torch.ones(2) * 3, torch.ones(2) * 3)),
    "Shaped": Case(lambda: ShapedDensity(correlated_mixture(), (1, 2, 1)), (1, 2, 1)),
    "Kernels": Case(kernels),
    "Neighbours": Case(neighbours),
    "Ranking members": Case(lambda: RankingMembers(2, 3, (6,))),
    "Logistic": Case(lambda: LogisticEnergy(2)),
    "Flow": Case(flow),
    "Any order": Case(any_order, every_parameter=False),
    "Bernoulli": Case(lambda: BernoulliEnergy(torch.tensor([0.2, 0.7, 0.5])), (3,)),
    "Categorical": Case(lambda: CategoricalEnergy(torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.2, 0.2]])), (6,)),
    "Perceptron": Case(lambda: PerceptronEnergy(2, (6, 5))),
    "Perceptron, fixed": Case(lambda: perturbed(PerceptronEnergy(2, (6, 5))).fixed(), every_parameter=False),
    "Module": Case(
        lambda: ModuleEnergy(nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1), nn.Flatten(0)))
    ),
    "Student experts": Case(lambda: StudentExperts(2, 4)),
    "Logit": Case(lambda: LogitEnergy(PerceptronEnergy(2, (6,)), (2,))),
    "Clamped": Case(lambda: ClampedEnergy(PerceptronEnergy(2, (6,)), torch.zeros(2), torch.tensor([False, True]))),
    "sum": Case(lambda: gaussian(seed=1) + gaussian_mixture()),
    "weighted": Case(lambda: 2.0 * gaussian()),
    "tempered": Case(lambda: gaussian() / 3.0),
    "difference": Case(lambda: gaussian() - 0.5 * gaussian_mixture()),
    "disjunction": Case(lambda: Disjunction([gaussian(), gaussian_mixture(), PerceptronEnergy(2, (4,))])),
    "Latent space": Case(lambda: LatentSpaceEnergy(mlp([2, 5, 3]), PerceptronEnergy(3, (4,)), 0.5)),
    "Latent completion": Case(
        lambda: LatentCompletion(
            NoisyGenerator(mlp([2, 5, 3]), 2),
            torch.tensor([0.3, -0.2, 0.0]),
            torch.tensor([True, True, False]),
            PerceptronEnergy(3, (4,)),
        ),
        (5,),
    ),
    "Marginal over labels": Case(lambda: labelled().marginal(0.7)),
    "Marginal over labels of images": Case(
        lambda: LabelledPerceptron((1, 4, 4), 3, (6, 5), "silu").marginal(0.7), (1, 4, 4)
    ),
    "Marginal over labels, fixed": Case(
        lambda: perturbed(LabelledPerceptron((1, 4, 4), 3, (6, 5), "silu")).marginal(0.7).fixed(),
        (1, 4, 4),
        every_parameter=False,
    ),
    "Lowest over labels": Case(lambda: labelled().lowest(), every_parameter=False),
    "one label": Case(lambda: labelled().given_label(1), every_parameter=False),
    "Image": Case(lambda: ImageEnergy(residual_network(1, 1, 4, 2)), (1, 8, 8)),
    "Autoencoder": Case(lambda: autoencoder_energy((2,), 1, (6,))),
    "Autoencoder by the Euclidean distance": Case(lambda: autoencoder_energy((2,), 1, (6,), distance="euclidean")),
    "Autoencoder of images": Case(lambda: autoencoder_energy((1, 4, 4), 3, (6,), distance="absolute"), (1, 4, 4)),
    "Autoencoder of convolutions": Case(lambda: autoencoder_energy((3, 8, 8), 3, width=2), (3, 8, 8)),
    "Autoencoder with codes of two dimensions": Case(
        lambda: AutoencoderEnergy(nn.Conv2d(1, 2, 3), nn.ConvTranspose2d(2, 1, 3), event_ndim=3), (1, 5, 5)
    ),
    "Variational autoencoder": Case(lambda: variational_autoencoder((2,), 3, (6,), std=0.5, n_draws=5)),
    "Variational autoencoder of images": Case(
        lambda: variational_autoencoder((1, 4, 4), 3, (6,), std=0.5, n_draws=5), (1, 4, 4)
    ),
    "Variational autoencoder of convolutions": Case(
        lambda: variational_autoencoder((3, 8, 8), 3, width=2, std=0.5, n_draws=5), (3, 8, 8)
    ),
    "Multiscale": Case(
        lambda: MultiscaleEnergy([ImageEnergy(residual_network(1, 1, 4, 2)) for _ in range(2)]), (1, 8, 8)
    ),
    "RBM": Case(lambda: RBMEnergy(4, 3), (4,)),
    "RBM of Gaussian units": Case(lambda: RBMEnergy(Gaussian(3), 2), (3,)),
    "DBM": Case(lambda: DBMEnergy(3, (2, 2)), (7,)),
    "Boltzmann machine": Case(lambda: BoltzmannMachine(3, 2), (5,)),
    "Boltzmann machine, laid out": Case(lambda: BoltzmannMachine(3, 2).fixed(), (5,)),
    "Boltzmann machine, summed out": Case(lambda: BoltzmannMachine(3, 2).marginal(), (3,)),
    "Factor graph": Case(lambda: ring(), (4,)),
    "lowest over a latent vector": Case(
        lambda: WithoutLatent(PerceptronEnergy(3, (6,)), LatentDescent(1)), every_parameter=False
    ),
    "latent vector summed out": Case(lambda: WithoutLatent(PerceptronEnergy(3, (6,)), LatentSampling(1))),
    "Deep belief network": Case(lambda: DeepBeliefNetwork(4, (3,), n_sweeps=50), (4,), every_parameter=False),
}

IMAGES = torch.linspace(-1, 1, 4 * 144).reshape(4, 1, 12, 12)
CLOUDS = torch.linspace(-1, 1, 4 * 15).reshape(4, 5, 3).sin()
LABELS = torch.tensor([0, 2, 1, 2])


class ConditionalCase(NamedTuple):
    """A conditional energy at these x, of y of this shape (None: labels 0, 1, 2)."""

    make: Callable[[], ConditionalEnergy]
    x: torch.Tensor = VECTORS
    event: tuple[int, ...] | None = (2,)
    # Whether y is of whole numbers 0, 1, 2.
    discrete: bool = False


def tilted() -> TiltedEnergy:
    return TiltedEnergy(MixtureDensity(mlp([3, 6]), 6, n_targets=2), NetworkEnergy(nn.Identity(), 6, 2, hidden=8))


def latent() -> LatentNetwork:
    return LatentNetwork(mlp([3, 6]), 6, 2, 3, hidden=8)


class Unaries(nn.Module):
    """The same layer at each element of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def ring() -> FactorGraph:
    pairs = [((v, (v + 1) % 4), torch.randn(2, 2, generator=seeded(v))) for v in range(4)]
    return FactorGraph([2] * 4, [*pairs, ((0, 2, 3), torch.randn(2, 2, 2, generator=seeded(9)))])


# Of two networks for each of four rows.
OUTPUTS = torch.linspace(-1, 1, 64).reshape(4, 2, 8)
CONDITIONAL = {
    "Network": ConditionalCase(lambda: NetworkEnergy(mlp([3, 6]), 6, 2, hidden=8)),
    "Network with layers on y": ConditionalCase(
        lambda: NetworkEnergy(mlp([3, 6]), 6, 1, y_hidden=(5, 4), hidden=8, n_residual=2), event=(1,)
    ),
    "source network": ConditionalCase(lambda: source_network(3), event=(1,)),
    "Network on images": ConditionalCase(lambda: NetworkEnergy(convnet(1, 6, width=2), 6, 2, hidden=8), IMAGES),
    "Network on points": ConditionalCase(
        lambda: NetworkEnergy(PointNet(3, 6, width=4), 6, 1, hidden=8), CLOUDS, (1,)
    ),
    "Direct regression": ConditionalCase(lambda: DirectRegression(mlp([3, 6]), 6, 2)),
    "Reconstruction": ConditionalCase(lambda: ReconstructionEnergy(mlp([3, 6]), 6, 2, hidden=8, slope=2.0)),
    "Module": ConditionalCase(lambda: ConditionalModuleEnergy(PairNetwork(3, 2))),
    "Module of log p": ConditionalCase(lambda: ConditionalModuleEnergy(PairNetwork(3, 1), sign=-1.0), event=(1,)),
    "Mixture": ConditionalCase(lambda: MixtureDensity(mlp([3, 6]), 6, n_targets=2, n_components=3, hidden=(5,))),
    "Tilted": ConditionalCase(tilted),
    "Tilted ensemble": ConditionalCase(
        lambda: TiltedMixtureEnsemble(3, 3, (8,), n_components=2, n_tilts=3, atoms=(0.5,)), event=(1,)
    ),
    "Ensemble without tilts": ConditionalCase(
        lambda: TiltedMixtureEnsemble(3, 2, (8,), n_components=2, n_tilts=0), event=(1,)
    ),
    "Tilted mixtures": ConditionalCase(lambda: TiltedMixtures(2, 2, 2), OUTPUTS, (1,)),
    "Levels": ConditionalCase(lambda: Levels(2, 8), OUTPUTS, (1,), discrete=True),
    "Cell": ConditionalCase(lambda: CellConditional(TiltedMixtures(2, 2, 2)), OUTPUTS.flatten(1), (1,)),
    "Stretch": ConditionalCase(lambda: StretchDensity(3, 2, n_links=1, n_members=2, hidden=(5,))),
    "Labelled": ConditionalCase(lambda: labelled(3), event=None),
    "Labelled perceptron": ConditionalCase(lambda: LabelledPerceptron((1, 12, 12), 3, (6,)), IMAGES, None),
    "Anchored": ConditionalCase(lambda: AnchoredEnergy(labelled(3), gaussians_of(3), 0.3), event=None),
    "Growing": ConditionalCase(
        lambda: GrowingEnergy([[running()], [running(1), running(2)], [running(3)]]), VECTORS[:, :2], event=None
    ),
    "Labelled ensemble": ConditionalCase(lambda: LabelledEnsemble([labelled(3), labelled(3)]), event=None),
    "Labelled members": ConditionalCase(lambda: LabelledMembers(3, 3, 2, (6,)), event=None),
    "Classifier and density": ConditionalCase(
        lambda: FactoredEnergy(labelled(2), kernels(), (slice(0, 2), slice(1, 3))), event=None
    ),
    "Chain": ConditionalCase(lambda: ChainEnergy(Unaries(), 3), CLOUDS, (5,), True),
    "Chain of order two": ConditionalCase(lambda: ChainEnergy(Unaries(), 3, order=2), CLOUDS, (5,), True),
    "Factors": ConditionalCase(
        lambda: FactorEnergy(nn.Linear(3, 12), [3, 3], [(0,), (0, 1)], shared=[(1,)]), event=(2,), discrete=True
    ),
    "Lowest over a latent variable": ConditionalCase(lambda: latent().lowest()),
    "Marginal over a latent variable": ConditionalCase(lambda: latent().marginal(0.7)),
    "Labels with a latent variable": ConditionalCase(lambda: LatentLabels(mlp([3, 6, 6]), 2, 0.7), event=None),
    "Mixture of experts": ConditionalCase(lambda: MixtureOfExperts(mlp([3, 6]), 6, (2,), 3, hidden=5)),
    "Mixture of experts with a gate": ConditionalCase(
        lambda: MixtureOfExperts(mlp([3, 6]), 6, (2,), 3, gate=nn.Linear(3, 3))
    ),
    "Mixture of experts of images": ConditionalCase(
        lambda: MixtureOfExperts(mlp([3, 6]), 6, (1, 4, 4), 3), event=(1, 4, 4)
    ),
    "Lowest over a latent vector": ConditionalCase(
        lambda: ConditionalWithoutLatent(NetworkEnergy(mlp([3, 6]), 6, 3, hidden=8), LatentDescent(1))
    ),
    "Latent vector summed out": ConditionalCase(
        lambda: ConditionalWithoutLatent(NetworkEnergy(mlp([3, 6]), 6, 3, hidden=8), LatentSampling(1))
    ),
    "Gaussians of labels": ConditionalCase(lambda: gaussians_of(2), LABELS),
    "Inputs given labels": ConditionalCase(lambda: labelled().of_inputs(), LABELS),
    "Images given labels": ConditionalCase(
        lambda: LabelledPerceptron((1, 4, 4), 3, (6,), "silu").of_inputs(), LABELS, (1, 4, 4)
    ),
}


def over(cases, condition=lambda case: True):
    """Run a test over the cases for which the condition holds."""
    return pytest.mark.parametrize("case", [pytest.param(c, id=n) for n, c in cases.items() if condition(c)])


unconditional, conditional = over(UNCONDITIONAL), over(CONDITIONAL)
of_events = over(CONDITIONAL, lambda case: case.event is not None)
# Labels have no gradient.
of_vectors = over(CONDITIONAL, lambda case: case.event is not None and not case.discrete)
# These keep no graph, or are laid out for the precision of the energy that they are a view of.
NO_GRAPH = FixedPerceptron | DeepBeliefNetwork | FactorGraph
VIEWS = FixedPerceptron | FactorGraph | PairwiseEnergy | Conditioned | ClampedEnergy


def states(energy: Energy, batch: tuple[int, ...], event: tuple[int, ...], seed: int = 5) -> torch.Tensor:
    """Configurations ``[*batch, *event]`` of the energy's support."""
    if energy.support.is_discrete:
        if isinstance(energy.support, OneHotGroups):
            k = energy.support.n_categories
            places = torch.randint(k, (*batch, event[0] // k), generator=seeded(seed))
            return nn.functional.one_hot(places, k).float().flatten(-2)
        return torch.randint(2, (*batch, *event), generator=seeded(seed)).float()
    if energy.event_ndim == 3:
        return torch.rand(*batch, *event, generator=seeded(seed))
    return torch.randn(*batch, *event, generator=seeded(seed))


def targets(case: ConditionalCase, n_candidates: int) -> torch.Tensor:
    if case.event is None:
        return torch.randint(3, (len(case.x), n_candidates), generator=seeded(5))
    if case.discrete:
        return torch.randint(3, (len(case.x), n_candidates, *case.event), generator=seeded(5))
    return torch.randn(len(case.x), n_candidates, *case.event, generator=seeded(5))


def test_no_energy_is_left_out():
    made = [case.make() for case in UNCONDITIONAL.values()]
    for case in CONDITIONAL.values():
        made += [case.make(), case.make().given(case.x)]
    built = {type(energy).__name__ for energy in made}
    exported = {
        name
        for name in energies.__all__
        if inspect.isclass(cls := getattr(energies, name)) and issubclass(cls, Energy | ConditionalEnergy)
    }
    assert exported - built == ABSTRACT


# -- energies ---------------------------------------------------------------------------------------------


@unconditional
def test_batch_dimensions_are_free(case):
    energy = perturbed(case.make())
    x = states(energy, (3, 4), case.event)
    assert energy.event_ndim == len(case.event)
    assert isinstance(energy.support, constraints.Constraint)
    assert bool(energy.support.check(x).all())
    with torch.no_grad():
        values = energy(x)
        assert values.shape == (3, 4)
        assert torch.isfinite(values).all()
        near = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(energy(x[0]), values[0], **near)
        torch.testing.assert_close(energy(x[1, 2]), values[1, 2], **near)
        wide = x.unsqueeze(2).expand(3, 4, 5, *case.event)
        torch.testing.assert_close(energy(wide), values.unsqueeze(2).expand(3, 4, 5), **near)
        torch.testing.assert_close(check_energy(energy, x), values, **near)
        torch.testing.assert_close(energy.fixed()(x), values, **near)


@over(UNCONDITIONAL, lambda case: not isinstance(case.make(), NO_GRAPH))
def test_value_and_gradient_are_those_of_autograd_and_carry_no_graph(case):
    energy = perturbed(case.make())
    assert_value_and_gradient(energy, states(energy, (3, 4), case.event))
    assert all(w.grad is None for w in energy.parameters())


@over(UNCONDITIONAL, lambda case: case.every_parameter and list(case.make().parameters()))
def test_every_parameter_of_an_energy_has_a_gradient(case):
    energy = perturbed(case.make())
    energy(states(energy, (64,), case.event)).square().sum().backward()
    assert_every_gradient(energy)


@over(UNCONDITIONAL, lambda case: not isinstance(case.make(), VIEWS))
def test_an_energy_computes_in_double_precision_if_asked(case):
    energy = perturbed(case.make())
    x = states(energy, (6,), case.event)
    single = energy(x).detach()
    found = energy.double()(x.double())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.detach().float(), single, rtol=1e-4, atol=1e-4)


@unconditional
def test_operators_of_energies(case):
    energy = perturbed(case.make())
    x = states(energy, (6,), case.event)
    with torch.no_grad():
        value = energy(x)
        for made, wanted in (
            (energy + energy, 2 * value),
            (0.5 * energy, 0.5 * value),
            (energy / 4.0, value / 4),
            (energy - 3.0 * energy, -2 * value),
            (energy | energy, value - math.log(2)),
        ):
            assert made.event_ndim == energy.event_ndim
            torch.testing.assert_close(made(x), wanted, rtol=1e-4, atol=1e-4)


@unconditional
def test_a_copy_and_a_loaded_state_have_the_same_values(case):
    energy = perturbed(case.make())
    x = states(energy, (6,), case.event)
    other = copy.deepcopy(energy)
    with torch.no_grad():
        torch.testing.assert_close(other(x), energy(x))
        for weight in other.parameters():
            weight.zero_()
        other.load_state_dict(energy.state_dict())
        torch.testing.assert_close(other(x), energy(x))


@over(UNCONDITIONAL, lambda case: case.make().support.is_discrete)
def test_changes_of_single_sites_are_differences_of_energies(case):
    energy = perturbed(case.make())
    x = states(energy, (5,), case.event)
    sites = Sites(energy)
    places = torch.arange(sites.count(x))
    with torch.no_grad():
        found = sites.differences(energy, x, places)
        for d in range(len(places)):
            for shift in range(1, sites.n_values):
                moved = sites.changed(x, torch.full((5,), d), torch.full((5,), shift))
                torch.testing.assert_close(found[:, d, shift - 1], energy(moved) - energy(x), rtol=1e-4, atol=1e-5)


@over(UNCONDITIONAL, lambda case: isinstance(case.make(), Density))
def test_a_density_is_its_negative_energy_and_draws_from_its_support(case):
    """The mean of -log p over draws is the entropy: that of the density itself, by importance weights, agrees."""
    energy = perturbed(case.make())
    drawn = energy.sample((40, 50), seeded(1))
    assert drawn.shape == (40, 50, *case.event)
    assert not drawn.requires_grad
    assert bool(energy.support.check(drawn).all())
    assert torch.equal(energy.sample((40, 50), seeded(1)), drawn)
    assert torch.equal(energy.sample(2000, seeded(1)), drawn.reshape(2000, *case.event))
    assert not torch.equal(energy.sample((40, 50), seeded(2)), drawn)
    torch.testing.assert_close(energy.log_prob(drawn), -energy(drawn))
    assert_normalised(energy, drawn.reshape(2000, *case.event))


def assert_normalised(density: Density, drawn: torch.Tensor) -> None:
    """E_p[q / p] is 1 for any normalised q whose support is p's: an error in Z or in the draws shows."""
    if density.support.is_discrete:
        q = torch.full(drawn.shape[:1], -math.log(2) * drawn.shape[-1])
        if isinstance(density.support, OneHotGroups):
            k = density.support.n_categories
            q = torch.full(drawn.shape[:1], -math.log(k) * (drawn.shape[-1] // k))
    else:
        # A narrower one than p keeps the weights bounded.
        spread = torch.distributions.Normal(drawn.median(0).values, 0.3 * drawn.std(0))
        q = spread.log_prob(drawn).flatten(1).sum(1)
    with torch.no_grad():
        weights = (q - density.log_prob(drawn)).exp()
    error = float(weights.std()) / math.sqrt(len(weights))
    assert abs(float(weights.mean()) - 1) < 4 * error + 1e-4
    assert error < 0.2


# -- conditional energies -----------------------------------------------------------------------------------


@conditional
def test_candidate_dimensions_are_free_and_given_equals_the_full_call(case):
    energy, x = perturbed(case.make()), case.x
    y = targets(case, 6)
    values = energy(x, y)
    assert values.shape == (len(x), 6)
    given = energy.given(x)
    assert given.event_ndim == len(case.event or ())
    if case.event:
        assert torch.equal(given(y), values)
    else:  # the classifier is normalised, the labelled energy is not
        shift = (given(y) - values).detach()
        torch.testing.assert_close(shift, shift[:, :1].expand_as(shift), rtol=1e-4, atol=1e-5)
    values = given(y)
    near = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(given(y[:, 0]), values[:, 0], **near)
    folded = y.reshape(len(x), 2, 3, *y.shape[2:])
    torch.testing.assert_close(given(folded), values.reshape(len(x), 2, 3), **near)
    torch.testing.assert_close(given.fixed()(y), values, **near)
    for i in range(len(x)):
        torch.testing.assert_close(energy.given(x[i : i + 1])(y[i : i + 1]), values[i : i + 1], **near)


@of_events
def test_a_selection_of_the_rows_equals_the_energy_at_those_inputs(case):
    energy = perturbed(case.make())
    given, y = energy.given(case.x), targets(case, 3)
    index = torch.tensor([2, 0, 2])
    assert given.n_rows == len(case.x)
    assert given.rows(index).n_rows == 3
    torch.testing.assert_close(given.rows(index)(y[index]), given(y)[index], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(given.rows(slice(1, 3))(y[1:3]), given(y)[1:3], rtol=1e-5, atol=1e-5)


@conditional
def test_every_parameter_of_a_conditional_energy_has_a_gradient(case):
    energy = perturbed(case.make())
    value = energy(case.x, targets(case, 8)).square().sum()
    # Of Gaussians that are fitted by their moments nothing is trained.
    assert value.requires_grad == bool(list(energy.parameters()))
    if value.requires_grad:
        value.backward()
    assert_every_gradient(energy)


@of_vectors
def test_value_and_gradient_given_x_are_those_of_autograd_and_leave_no_gradient_on_parameters(case):
    energy = perturbed(case.make())
    assert_value_and_gradient(energy.given(case.x), targets(case, 4))
    assert all(w.grad is None for w in energy.parameters())


@conditional
def test_the_features_of_x_are_computed_once_however_many_candidates(case):
    energy = perturbed(case.make())
    name = "features" if case.event else "energies"
    calls = []
    features = getattr(energy, name)
    setattr(energy, name, lambda x: calls.append(len(x)) or features(x))
    given = energy.given(case.x)
    for n in (1, 7):
        given(targets(case, n))
    assert calls == [len(case.x)]


@conditional
def test_a_conditional_energy_computes_in_double_precision_if_asked(case):
    energy, y = perturbed(case.make()), targets(case, 3)
    single = energy(case.x, y).detach()
    x, y = (t.double() if t.is_floating_point() else t for t in (case.x, y))
    found = energy.double()(x, y)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.detach().float(), single, rtol=1e-3, atol=1e-3)


@over(CONDITIONAL, lambda case: isinstance(case.make().given(case.x), Density))
def test_a_conditional_density_has_log_probabilities_and_draws(case):
    given = perturbed(case.make()).given(case.x)
    drawn = given.sample(7, seeded(1))
    assert drawn.shape == (7, len(case.x), *(case.event or ()))
    assert bool(given.support.check(drawn).all())
    assert torch.equal(given.sample(7, seeded(1)), drawn)
    y = drawn.movedim(1, 0)
    torch.testing.assert_close(given.log_prob(y), -given(y))
    if case.event is None:
        every = torch.arange(3).expand(len(case.x), 3)
        torch.testing.assert_close(given.log_prob(every).exp().sum(1), torch.ones(len(case.x)))


# -- what both are asked ------------------------------------------------------------------------------------


def assert_every_gradient(energy: nn.Module) -> None:
    for name, weight in energy.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert weight.grad.abs().sum() > 0, name


def assert_value_and_gradient(energy: Energy, x: torch.Tensor) -> None:
    x = x.requires_grad_(True)
    expected = energy(x)
    expected_grad = torch.zeros_like(x)
    if expected.requires_grad:
        (expected_grad,) = torch.autograd.grad(expected.sum(), x)
    with torch.no_grad():
        value, grad = energy.value_and_gradient(x)
    assert not value.requires_grad
    assert not grad.requires_grad
    value, grad = energy.value_and_gradient(x)
    assert not value.requires_grad
    assert not grad.requires_grad
    torch.testing.assert_close(value, expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(energy.gradient(x), expected_grad, rtol=1e-4, atol=1e-5)
