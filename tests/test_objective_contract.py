"""What every objective keeps: its loss, its gradients, its own state; over all that the room exports."""

import copy
import inspect

import pytest
import torch
import zuko
from torch import nn

from parts import batch, ensemble, mixture, network, perturbed, seeded, tilted
from thalweg import objectives
from thalweg.energies import (
    AutoencoderEnergy,
    BoltzmannMachine,
    ConditionalEnergy,
    DirectRegression,
    FlowEnergy,
    GaussianMixtureEnergy,
    Generator,
    LabelledEnergy,
    MixtureDensity,
    NoisyGenerator,
    PerceptronEnergy,
    RankingMembers,
    TiltedMixtureEnsemble,
    VariationalAutoencoder,
    autoencoder_energy,
    generating_network,
    mlp,
    variational_autoencoder,
)
from thalweg.inference import OutsideBall
from thalweg.objectives import (
    BEGAN,
    EBGAN,
    GAN,
    KALE,
    MAGAN,
    VERA,
    Adversarial,
    AnswerLikelihood,
    Batch,
    BoltzmannLearning,
    ConditionalNCE,
    ContrastiveDivergence,
    CrossEntropy,
    DenoisingScoreMatching,
    DualAdversarialTraining,
    EnergyDiscrepancy,
    EnergyLoss,
    EnergyMargin,
    EnergyMatching,
    EvidenceBound,
    FlowContrastiveEstimation,
    GridLikelihood,
    ImportanceSampling,
    ImprovedContrastiveDivergence,
    JointGame,
    JointLikelihood,
    JointProposalNCE,
    KLDivergenceImportanceSampling,
    LambdaRanking,
    LangevinML,
    LatentContrastiveDivergence,
    MarginLoss,
    MaximumLikelihood,
    MinimumEmpiricalError,
    NoiseContrastiveEstimation,
    Objective,
    PairwiseRanking,
    PlackettLuceRanking,
    PseudoLikelihood,
    QueueContrast,
    RankingNCE,
    RatioMatching,
    ScoreMatching,
    SlicedScoreMatching,
    SoftmaxRanking,
    SteinDiscrepancy,
    TetheredContrastiveDivergence,
    TiltNCE,
    logarithmic,
)
from thalweg.sampling import HMC, MALA, FromData, FromNoise, Langevin, RandomWalk, ReplayBuffer
from thalweg.training import Plan, Trainer


def noise(k: int) -> GaussianMixtureEnergy:
    return GaussianMixtureEnergy(torch.zeros(1, k), torch.full((1, k), 2.0))


def buffer(k: int) -> ReplayBuffer:
    return ReplayBuffer(noise(k), size=20, n_chains=6, restart=0.2, x_event=(3,))


def from_noise(k: int) -> ContrastiveDivergence:
    return ContrastiveDivergence(HMC(0.1, 2), 3, FromNoise(noise(k), 2))


def with_squares(k: int) -> ContrastiveDivergence:
    return ContrastiveDivergence(RandomWalk(0.1), 3, buffer(k), energy_l2=0.1)


def improved(k: int) -> ImprovedContrastiveDivergence:
    return ImprovedContrastiveDivergence(Langevin(0.1), 3, buffer(k), 0.01, differentiable_steps=2, n_neighbours=4)


def critic(k: int) -> nn.Module:
    return nn.Sequential(nn.Linear(k + 3, 6), nn.SiLU(), nn.Linear(6, k))


def flow(k: int) -> FlowEnergy:
    return FlowEnergy(zuko.flows.NSF(k, bins=4, transforms=1, hidden_features=(6,)), 0.5, 2.0)


def regression(k: int) -> DirectRegression:
    return perturbed(DirectRegression(mlp([3, 6]), 6, k))


def classifier(k: int) -> LabelledEnergy:
    return perturbed(LabelledEnergy(mlp([3, 6, k])))


def ranker(k: int) -> RankingMembers:
    return perturbed(RankingMembers(k, 2, (6,)))


def joint(k: int) -> JointLikelihood:
    """Of inputs ``[3]``."""
    return JointLikelihood(ContrastiveDivergence(Langevin(0.1), 3, ReplayBuffer(noise(3), 20, 6, 0.2)), 0.5, 0.1)


def dual(k: int) -> DualAdversarialTraining:
    return DualAdversarialTraining(noise(3), 1.0, 3, attack_radius=0.1, attack_steps=2)


def machine(k: int) -> BoltzmannMachine:
    return perturbed(BoltzmannMachine(k))


def hidden_machine(k: int) -> BoltzmannMachine:
    return perturbed(BoltzmannMachine(k, 2))


def perceptron(k: int) -> PerceptronEnergy:
    return perturbed(PerceptronEnergy(k, (6,)))


def autoencoder(k: int) -> AutoencoderEnergy:
    return perturbed(autoencoder_energy((k,), 2, (6,)))


def generator(k: int) -> Generator:
    return perturbed(Generator(generating_network((k,), 2, (6,)), 2))


def noisy_generator(k: int) -> NoisyGenerator:
    return perturbed(NoisyGenerator(generating_network((k,), 2, (6,)), 2, 0.3))


def variational(k: int) -> VariationalAutoencoder:
    return perturbed(variational_autoencoder((k,), 2, (6,), std=0.5, n_draws=4))


def behind_a_generator(k: int) -> LatentContrastiveDivergence:
    """The generator is no part of the objective, nor of its state: it is the same one every time."""
    with torch.random.fork_rng():
        torch.manual_seed(6)
        made = generator(k)
    return LatentContrastiveDivergence(made, MALA(0.1), 3, ReplayBuffer(noise(2), 20, 6, 0.2), 0.1)


def rows_for(energy: nn.Module, k: int) -> Batch:
    """Eight rows that suit the energy: inputs and targets, inputs and labels, rows or bits alone, or lists."""
    if isinstance(energy, AutoencoderEnergy | PerceptronEnergy | VariationalAutoencoder):
        return batch(k)._replace(x=None)
    if isinstance(energy, BoltzmannMachine):
        return Batch(None, torch.randint(2, (8, k), generator=seeded(2)).float())
    if isinstance(energy, RankingMembers):
        generator = seeded(2)
        relevance = torch.randint(-1, 3, (8, 5), generator=generator)
        return Batch(torch.randn(8, 5, k, generator=generator), relevance.float())
    if isinstance(energy, LabelledEnergy):
        return batch(k)._replace(y=torch.arange(8) % k)
    return batch(k)


# Name: energy, objective, dimensions of y, whether the loss is unchanged under E + c(x).
CASES = {
    "NCE": (network, lambda k: RankingNCE(n_samples=16), (1, 3), True),
    "NCE+": (network, lambda k: RankingNCE(n_samples=16, label_noise=0.2), (1, 3), True),
    "NCE with scales": (network, lambda k: RankingNCE([[0.1] * k, [0.5] * k], n_samples=16), (1, 3), True),
    "ML-IS": (network, lambda k: ImportanceSampling(n_samples=16), (1, 3), True),
    "KLD-IS": (network, lambda k: KLDivergenceImportanceSampling(0.2, n_samples=16), (1, 3), False),
    "ML-MCMC": (network, lambda k: LangevinML(n_steps=3, n_chains=4), (1, 3), True),
    "SM": (network, lambda k: ScoreMatching(), (1, 3), True),
    "DSM": (network, lambda k: DenoisingScoreMatching(n_samples=4), (1, 3), True),
    "sliced SM": (network, lambda k: SlicedScoreMatching(2), (1, 3), True),
    "sliced SM-VR": (network, lambda k: SlicedScoreMatching(2, True, "gaussian"), (1, 3), True),
    "DSM at many scales": (network, lambda k: DenoisingScoreMatching([0.1, 0.5], 4), (1, 3), True),
    "NCE against a density": (network, lambda k: RankingNCE(noise(k), n_samples=16), (1, 3), True),
    "ML-IS with a density": (network, lambda k: ImportanceSampling(noise(k), n_samples=16), (1, 3), True),
    "binary NCE": (network, lambda k: NoiseContrastiveEstimation(noise(k), 3), (1, 3), False),
    "conditional NCE": (network, lambda k: ConditionalNCE(0.5, 4), (1, 3), True),
    "conditional NCE, own noise": (network, lambda k: ConditionalNCE(), (1, 3), True),
    "energy discrepancy": (network, lambda k: EnergyDiscrepancy(n_samples=4), (1, 3), True),
    "energy matching": (network, lambda k: EnergyMatching(noise(k), resolution=0.1), (1, 3), True),
    "matching with contrast": (
        network,
        lambda k: EnergyMatching(noise(k), contrast=0.1, n_steps=3),
        (1, 3),
        False,
    ),
    "ML on a grid": (network, lambda k: GridLikelihood(-4.0, 4.0, 6, k), (1, 3), True),
    "CD": (network, lambda k: ContrastiveDivergence(MALA(0.1), 3), (1, 3), True),
    "CD from noise": (
        network,
        lambda k: ContrastiveDivergence(HMC(0.1, 2), 3, FromNoise(noise(k), 2)),
        (1, 3),
        True,
    ),
    "PCD": (network, lambda k: ContrastiveDivergence(Langevin(0.1), 3, buffer(k)), (1, 3), False),
    "CD with squares": (
        network,
        lambda k: ContrastiveDivergence(RandomWalk(0.1), 3, buffer(k), 0.1),
        (1, 3),
        False,
    ),
    "improved CD": (network, lambda k: improved(k), (1, 3), False),
    "tethered CD": (
        network,
        lambda k: TetheredContrastiveDivergence(Langevin(0.1), 3, FromData(2), 0.01, 2, 5.0),
        (1, 3),
        False,
    ),
    "Stein": (network, lambda k: SteinDiscrepancy(critic(k)), (1, 3), True),
    "FCE": (network, lambda k: FlowContrastiveEstimation(flow(k), warm_up=0), (1, 3), False),
    "joint NCE": (network, lambda k: JointProposalNCE(mixture(k), n_samples=16), (1, 3), False),
    "joint NCE on shared features": (
        network,
        lambda k: JointProposalNCE(
            perturbed(MixtureDensity(nn.Identity(), 6, n_targets=k)), n_samples=16, shares_features=True
        ),
        (1, 3),
        False,
    ),
    "tilt NCE": (tilted, lambda k: TiltNCE(n_samples=16), (1, 3), None),
    "ML of a mixture": (mixture, lambda k: MaximumLikelihood(), (1, 3), None),
    "ML of an ensemble": (ensemble, lambda k: MaximumLikelihood(), (1,), None),
    "energy loss": (regression, lambda k: EnergyLoss(), (1, 3), None),
    "cross-entropy": (classifier, lambda k: CrossEntropy(), (3,), None),
    "likelihood of answers": (classifier, lambda k: AnswerLikelihood(), (3,), None),
    "empirical error": (classifier, lambda k: MinimumEmpiricalError(), (3,), None),
    "margin over labels": (classifier, lambda k: MarginLoss(logarithmic), (3,), None),
    "margin outside a ball": (network, lambda k: MarginLoss(logarithmic, OutsideBall(0.5, 4, 2)), (1, 3), True),
    "joint likelihood": (classifier, joint, (3,), None),
    "joint likelihood by DSM": (classifier, lambda k: JointLikelihood(DenoisingScoreMatching()), (3,), None),
    "queue contrast": (classifier, lambda k: QueueContrast(k, queue_size=20), (3,), None),
    "energy margin": (
        classifier,
        lambda k: EnergyMargin(3 * torch.randn(10, 3, generator=seeded(7)), n_outliers=5),
        (3,),
        None,
    ),
    "dual adversarial": (classifier, dual, (3,), None),
    "joint game with a flow": (
        classifier,
        lambda k: JointGame(FlowContrastiveEstimation(flow(3), warm_up=0)),
        (3,),
        None,
    ),
    "joint game of VERA": (classifier, lambda k: JointGame(VERA(noisy_generator(3), n_draws=4), 0.5), (3,), None),
    "pairs, log": (ranker, lambda k: PairwiseRanking("log"), (3,), None),
    "pairs, hinge": (ranker, lambda k: PairwiseRanking("hinge"), (3,), None),
    "pairs, square-exponential": (ranker, lambda k: PairwiseRanking("square-exponential"), (3,), None),
    "lambda": (ranker, lambda k: LambdaRanking(), (3,), None),
    "softmax over a list": (ranker, lambda k: SoftmaxRanking(), (3,), None),
    "Plackett-Luce": (ranker, lambda k: PlackettLuceRanking(), (3,), None),
    "pseudo-likelihood": (machine, lambda k: PseudoLikelihood(), (3,), None),
    "pseudo-likelihood of some sites": (machine, lambda k: PseudoLikelihood(2), (3,), None),
    "ratio matching": (machine, lambda k: RatioMatching(), (3,), None),
    "GAN": (perceptron, lambda k: GAN(generator(k)), (2,), None),
    "EBGAN": (autoencoder, lambda k: EBGAN(generator(k), 20.0, 0.5), (1, 3), None),
    "EBGAN, any energy": (perceptron, lambda k: EBGAN(generator(k), 20.0, 0.0), (2,), None),
    "BEGAN": (autoencoder, lambda k: BEGAN(generator(k)), (1, 3), None),
    "MAGAN": (autoencoder, lambda k: MAGAN(generator(k), 3, margin=20.0), (1, 3), None),
    "KALE": (perceptron, lambda k: KALE(generator(k), warm_up=0), (1, 3), None),
    "VERA": (perceptron, lambda k: VERA(noisy_generator(k), n_draws=4), (1, 3), None),
    "evidence bound": (variational, lambda k: EvidenceBound(0.1), (1, 3), None),
    "CD behind a generator": (perceptron, behind_a_generator, (1, 3), None),
    "Boltzmann learning": (hidden_machine, lambda k: BoltzmannLearning(), (3,), None),
}
CONTRACT = [
    pytest.param(*case[:2], k, case[3], id=f"{name}, {k}-D") for name, case in CASES.items() for k in case[2]
]
CHAINS = (
    "ML-MCMC",
    "margin outside",
    "matching with contrast",
    "CD",
    "PCD",
    "improved CD",
    "tethered CD",
    "Boltzmann learning",
)
ARGUMENTS = ("make_energy", "make_objective", "k", "invariant")
contract = pytest.mark.parametrize(ARGUMENTS, CONTRACT)
unnormalised = pytest.mark.parametrize(ARGUMENTS, [p for p in CONTRACT if p.values[3] is not None])
# The others hold their samples fixed, or some of their terms: their gradient is not that of their value.
plain_gradient = pytest.mark.parametrize(
    ARGUMENTS, [p for p in CONTRACT if not p.id.startswith((*CHAINS, "joint", "tilt", "Stein", "FCE", "dual"))]
)


def test_no_objective_is_left_out():
    exported = {
        name
        for name in objectives.__all__
        if inspect.isclass(cls := getattr(objectives, name)) and issubclass(cls, Objective)
    }
    built = {type(case[1](case[2][-1])).__name__ for case in CASES.values()}
    # Of columns, which are no conditional energy given an x: tests/test_any_order.py.
    assert exported - built == {"Objective", "Adversarial", "MaskedLikelihood"}


@contract
def test_the_loss_is_finite_and_reaches_every_parameter(make_energy, make_objective, k, invariant):
    """But for the energy's constant, on which no density depends."""
    energy, objective = make_energy(k), make_objective(k)
    data = rows_for(energy, k)
    losses = [objective(energy, data, seeded()).value]
    if isinstance(objective, Adversarial):
        adversaries = [p.name for p in objective.players(energy) if p.name != "energy"]
        losses += [objective.player_loss(name, energy, data, seeded()).mean() for name in adversaries]
    for loss in losses:
        assert loss.shape == ()
        assert torch.isfinite(loss)
        loss.backward()
    for name, weight in [*energy.named_parameters(), *objective.named_parameters()]:
        constants = ("out.bias", "residual.out.bias", "members.out.bias")
        if name in constants and not isinstance(energy, TiltedMixtureEnsemble):
            continue
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert weight.grad.abs().sum() > 0, name


@contract
def test_the_loss_is_the_weighted_mean_over_rows_and_set_by_the_generator(
    make_energy, make_objective, k, invariant
):
    energy, objective = make_energy(k).eval(), make_objective(k).eval()
    data = rows_for(energy, k)
    torch.manual_seed(4)
    rows = objective.per_row(energy, data, seeded())
    assert rows.shape[0] == len(data.y)
    torch.manual_seed(5)  # the global generator plays no part
    weight = torch.arange(8.0) / 3.5
    loss = objective(energy, data._replace(weight=weight), seeded()).value
    shaped = weight.reshape(-1, *([1] * (rows.dim() - 1)))
    torch.testing.assert_close(loss, (rows * shaped).mean(0).sum())


@plain_gradient
def test_one_small_step_down_the_gradient_lowers_the_loss(make_energy, make_objective, k, invariant):
    """The sign and the scale of the gradient: the fall is |grad|^2 times the step, to first order."""
    energy, objective = make_energy(k).double().eval(), make_objective(k).double().eval()
    data = Batch(*(None if t is None else t.double() for t in rows_for(energy, k)))
    weights = list(energy.parameters())
    before = objective(energy, data, seeded()).value
    grads = torch.autograd.grad(before, weights, allow_unused=True)
    size = sum(float(g.square().sum()) for g in grads if g is not None)
    step = 1e-6 / size
    with torch.no_grad():
        for weight, grad in zip(weights, grads, strict=True):
            if grad is not None:
                weight -= step * grad
    after = objective(energy, data, seeded()).value
    assert float((before - after).detach()) == pytest.approx(step * size, rel=1e-2)


class Lifted(ConditionalEnergy):
    """Another energy plus a constant, or plus a function of x."""

    def __init__(self, energy: ConditionalEnergy, by: float, with_x: bool = False):
        super().__init__()
        self.energy, self.by, self.with_x = energy, by, with_x
        self.feature_network = getattr(energy, "feature_network", None)

    def features(self, x):
        lift = self.by * (1 + x[:, 0].abs() if self.with_x else torch.ones_like(x[:, 0]))
        return self.energy.features(x), lift

    def head(self, features, y):
        return self.energy.head(features[0], y) + features[1].reshape(-1, *([1] * (y.dim() - 2)))


@pytest.mark.parametrize("with_x", [False, True])
@unnormalised
def test_a_lift_of_the_energy_leaves_the_loss_unchanged(make_energy, make_objective, k, invariant, with_x):
    energy, objective, data = make_energy(k).double().eval(), make_objective(k).double().eval(), batch(k)
    data = Batch(data.x.double(), data.y.double())
    plain = objective.per_row(energy, data, seeded())
    lifted = objective.per_row(Lifted(energy, 3.0, with_x), data, seeded())
    if invariant:
        torch.testing.assert_close(lifted, plain, rtol=0, atol=1e-9)
    elif isinstance(objective, JointProposalNCE):
        # The ranking is unchanged; log Z, which the proposal's term estimates, falls by the lift.
        lift = 3.0 * (1 + data.x[:, 0].abs()) if with_x else torch.full((8,), 3.0, dtype=torch.float64)
        torch.testing.assert_close(lifted, plain - lift, rtol=0, atol=1e-9)


def test_a_lift_changes_the_kl_estimate_by_the_error_of_its_weights():
    """The importance weights of the label's own distribution average to 1 only in expectation."""
    energy, data = network(1).double(), batch(1, 4)
    data = Batch(data.x.double(), data.y.double())
    objective = KLDivergenceImportanceSampling(0.2, n_samples=64)
    samples = objective.noise.sample(data.y, 64, seeded())
    weights = objective.label.log_prob(samples, data.y) - objective.noise.log_prob(samples, data.y)
    change = objective.per_row(Lifted(energy, 3.0), data, seeded()) - objective.per_row(energy, data, seeded())
    torch.testing.assert_close(change, 3.0 * (weights.exp().mean(1) - 1))
    assert (change.abs() > 1e-3).all()


@pytest.mark.parametrize("by", [-1e3, 1e3])
@unnormalised
def test_the_loss_stays_finite_far_from_zero_energy(make_energy, make_objective, k, invariant, by):
    energy, objective = make_energy(k), make_objective(k)
    loss = objective(Lifted(energy, by), batch(k), seeded()).value
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(w.grad).all() for w in energy.parameters() if w.grad is not None)


@contract
def test_an_objective_goes_on_from_the_state_of_another(make_energy, make_objective, k, invariant):
    """Chains, proposals, log Z: whatever it owns is in its state, so a loaded one gives the same loss."""
    energy, objective = make_energy(k).eval(), make_objective(k)
    data = rows_for(energy, k)
    for seed in range(2):
        objective(energy, data, seeded(seed))
    other = make_objective(k)
    other.load_state_dict(copy.deepcopy(objective.state_dict()))
    found = other(energy, data, seeded(9)).value
    torch.testing.assert_close(found, objective(energy, data, seeded(9)).value)


@contract
def test_a_loss_leaves_the_energy_and_the_global_random_numbers_alone(make_energy, make_objective, k, invariant):
    energy, objective = make_energy(k).eval(), make_objective(k).eval()
    before, state = copy.deepcopy(energy.state_dict()), torch.get_rng_state()
    objective(energy, rows_for(energy, k), seeded())
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in energy.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(w.grad is None for w in energy.parameters())


@contract
def test_every_objective_trains_in_the_loop(make_energy, make_objective, k, invariant):
    """A few updates move the energy, without a roll-back."""
    energy, objective = make_energy(k), make_objective(k)
    data = rows_for(energy, k)
    before = [w.detach().clone() for w in energy.parameters()]
    plan = Plan(max_steps=12, max_epochs=12, batch_size=8, learning_rate=1e-3)
    history = Trainer(plan).fit(energy, objective, data)
    assert not history.events
    assert any(not torch.equal(a, b) for a, b in zip(before, energy.parameters(), strict=True))
