"""Latent variables: eliminated as enumeration and closed forms say, and trained by what trains any energy."""

import math

import pytest
import torch
from torch import nn

from parts import perturbed, seeded
from thalweg.energies import (
    ConditionalWithoutLatent,
    Energy,
    LabelledEnergy,
    LatentDescent,
    LatentLabels,
    LatentNetwork,
    LatentSampling,
    MixtureOfExperts,
    ModuleEnergy,
    NetworkEnergy,
    PerceptronEnergy,
    WithoutLatent,
    mlp,
)
from thalweg.inference import OutsideBall, lowest
from thalweg.objectives import (
    ANSWER_LOSSES,
    Batch,
    ConditionalNCE,
    EnergyLoss,
    Hinge,
    LangevinML,
    MarginLoss,
    RankingNCE,
    ScoreMatching,
    SquareExponential,
    logarithmic,
)
from thalweg.sampling import MALA, sample_chain
from thalweg.training import Plan, Trainer

X = torch.linspace(-1, 1, 12).reshape(4, 3).double()
Y = torch.randn(4, 5, 2, generator=seeded(1)).double()


def network() -> LatentNetwork:
    torch.manual_seed(0)
    return perturbed(LatentNetwork(mlp([3, 6]), 6, 2, 3, hidden=8)).double()


def one_by_one(latent: LatentNetwork, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """E of each value of z from a network that has this output alone."""
    values = []
    for z in range(3):
        single = NetworkEnergy(latent.network.feature_network, 6, 2, hidden=8).double()
        state = {k: v for k, v in latent.network.state_dict().items() if not k.startswith("out")}
        single.load_state_dict(state, strict=False)
        with torch.no_grad():
            single.out.weight.copy_(latent.network.out.weight[z : z + 1])
            single.out.bias.copy_(latent.network.out.bias[z : z + 1])
        values.append(single(x, y))
    return torch.stack(values)


# -- a few values, by enumeration ----------------------------------------------------------------------------


def test_lowest_free_energy_and_posterior_are_those_of_enumeration():
    latent = network()
    each = one_by_one(latent, X, Y)
    torch.testing.assert_close(latent.lowest()(X, Y), each.amin(0))
    for t in (0.3, 1.0, 4.0):
        weights = (-each / t).exp()
        torch.testing.assert_close(latent.marginal(t)(X, Y), -t * weights.sum(0).log())
        torch.testing.assert_close(latent.posterior(X, Y, t).movedim(-1, 0), weights / weights.sum(0))


def test_the_free_energy_is_below_the_lowest_and_reaches_it_as_the_temperature_falls():
    latent = network()
    lowest_energy = latent.lowest()(X, Y)
    before = torch.full_like(lowest_energy, torch.inf)
    for t in (10.0, 1.0, 0.1, 0.01, 0.001):
        gap = lowest_energy - latent.marginal(t)(X, Y)
        assert (gap >= -1e-12).all()
        assert (gap <= t * math.log(3) + 1e-12).all()
        assert (gap <= before + 1e-12).all()
        before = gap


@pytest.mark.parametrize("eliminate", [lambda e: e.lowest(), lambda e: e.marginal(0.7)])
def test_gradients_are_finite_differences(eliminate):
    energy = eliminate(network())
    _, grad = energy.given(X).value_and_gradient(Y)
    for k in range(2):
        step = 1e-5 * torch.eye(2, dtype=torch.float64)[k]
        slope = (energy(X, Y + step) - energy(X, Y - step)) / 2e-5
        torch.testing.assert_close(grad[..., k], slope, rtol=1e-5, atol=1e-7)


def test_the_gradient_of_the_likelihood_is_the_difference_of_two_means():
    """Of -log p(y|x) over a grid of y: E over p(z|x, y) of dE less E over p(y, z|x) of dE."""
    latent, x = network(), X[:1]
    grid = torch.randn(1, 40, 2, generator=seeded(2)).double()
    weight = latent.network.out.weight
    marginal = latent.marginal()
    nll = marginal(x, grid)[0, 0] + torch.logsumexp(-marginal(x, grid)[0], 0)
    (found,) = torch.autograd.grad(nll, weight)
    energies = latent.energies(latent.features(x), grid)[0]
    at_data = torch.softmax(-energies[0].detach(), 0)
    jointly = torch.softmax(-energies.detach().flatten(), 0)
    (expected,) = torch.autograd.grad((at_data * energies[0]).sum() - jointly @ energies.flatten(), weight)
    torch.testing.assert_close(found, expected)


def test_labels_with_a_latent_variable_are_enumerated():
    torch.manual_seed(0)
    net = nn.Linear(3, 8).double()
    x, labels = X, torch.tensor([0, 3, 1, 2])
    outputs = -net(x).reshape(4, 4, 2)
    torch.testing.assert_close(LatentLabels(net, 2).energies(x), outputs.amin(-1))
    soft = LatentLabels(net, 2, 0.5)
    torch.testing.assert_close(soft.energies(x), -0.5 * (-outputs / 0.5).exp().sum(-1).log())
    own = (-outputs / 0.5).exp()[torch.arange(4), labels]
    torch.testing.assert_close(soft.posterior(x, labels), own / own.sum(-1, keepdim=True))
    with pytest.raises(ValueError, match="positive"):
        LatentLabels(net, 2, 0.0)
    with pytest.raises(ValueError, match="positive"):
        network().marginal(-1.0)


def two_places() -> Batch:
    """Two classes at opposite corners each: no linear energy tells them apart, two for each class do."""
    generator = seeded(4)
    corners = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    which = torch.randint(4, (200,), generator=generator)
    return Batch(corners[which] + 0.2 * torch.randn(200, 2, generator=generator), which // 2)


@pytest.mark.parametrize("name", [n for n in ANSWER_LOSSES if n not in ("energy", "lvq2")])
@pytest.mark.parametrize("temperature", [None, 1.0])
def test_losses_over_answers_learn_labels_with_a_latent_variable(name, temperature):
    rows = two_places()
    best = 0.0
    for seed in range(3):  # what each value of z comes to stand for depends on the start
        torch.manual_seed(seed)
        energy = LatentLabels(nn.Linear(2, 8), 4, temperature)
        plan = Plan(max_epochs=40, batch_size=50, learning_rate=0.05, seed=seed)
        Trainer(plan).fit(energy, ANSWER_LOSSES[name](), rows)
        best = max(best, float((lowest(energy.given(rows.x)) == rows.y).float().mean()))
        if best > 0.97:
            return
    raise AssertionError(f"{name}: accuracy {best}")


# -- experts -------------------------------------------------------------------------------------------------


def experts() -> MixtureOfExperts:
    torch.manual_seed(0)
    return perturbed(MixtureOfExperts(mlp([3, 6]), 6, (2,), 3, std=0.7)).double()


def test_experts_are_a_normalised_mixture_of_gaussians():
    energy = experts()
    log_weights, answers = energy.features(X)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=log_weights),
        torch.distributions.Independent(torch.distributions.Normal(answers, energy.std), 1),
    )
    truth = mixture.log_prob(Y.movedim(1, 0)).movedim(0, 1)
    torch.testing.assert_close(energy.given(X).log_prob(Y), truth)
    # The free energy of z at temperature 1 is the density itself.
    torch.testing.assert_close(energy.marginal()(X, Y), energy(X, Y))
    assert (energy.lowest()(X, Y) >= energy(X, Y)).all()
    joint = (
        mixture.component_distribution.log_prob(Y.unsqueeze(-2).movedim(1, 0)).movedim(0, 1) + log_weights[:, None]
    )
    torch.testing.assert_close(energy.posterior(X, Y), torch.softmax(joint, -1))


def test_draws_of_experts_choose_an_expert_as_often_as_they_should():
    energy, n = experts(), 4000
    log_weights, answers = energy.features(X)
    drawn = energy.draw_answers((log_weights, answers), n, seeded(1))
    assert not drawn.requires_grad
    share = (drawn[:, :, None] == answers[:, None]).all(-1).double().mean(1)
    error = (log_weights.exp() * (1 - log_weights.exp()) / n).sqrt()
    assert ((share - log_weights.exp()).abs() < 4.5 * error).all()
    y = energy.given(X).sample(n, seeded(2))
    mean = (log_weights.exp().unsqueeze(-1) * answers).sum(1)
    assert ((y.mean(0) - mean).abs() < 4.5 * y.std(0) / math.sqrt(n)).all()


def test_experts_learn_two_answers_and_how_often_each_is_right():
    generator = seeded(0)
    x = torch.rand(2000, 1, generator=generator)
    up = torch.rand(2000, 1, generator=generator) < 0.3
    y = torch.where(up, 1 + x, -1 - x) + 0.05 * torch.randn(2000, 1, generator=generator)
    torch.manual_seed(0)
    energy = MixtureOfExperts(mlp([1, 32]), 32, (1,), 2, std=0.5)
    Trainer(Plan(max_epochs=80, learning_rate=1e-2)).fit(energy, EnergyLoss(), Batch(x, y))
    log_weights, answers = energy.features(torch.tensor([[0.2], [0.8]]))
    order = answers.squeeze(-1).sort(-1)
    torch.testing.assert_close(order.values, torch.tensor([[-1.2, 1.2], [-1.8, 1.8]]), atol=0.05, rtol=0)
    weights = log_weights.exp().gather(1, order.indices)
    # Of 2000 rows the share has a standard error of .01, and of a straight line through it at most .03.
    torch.testing.assert_close(weights, torch.tensor([[0.7, 0.3]] * 2), atol=0.1, rtol=0)
    assert float(energy.std.detach()) == pytest.approx(0.05, abs=0.01)


# -- vectors, against closed forms -----------------------------------------------------------------------------


class Square(nn.Module):
    """|A y + B z - c|^2 / 2."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(3, 2, generator=seeded(1)).double())
        self.b = nn.Parameter(torch.randn(3, 2, generator=seeded(2)).double())
        self.c = nn.Parameter(torch.randn(3, generator=seeded(3)).double())

    def forward(self, pairs):
        return 0.5 * (pairs[..., :2] @ self.a.T + pairs[..., 2:] @ self.b.T - self.c).square().sum(-1)

    def lowest(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """z at the minimum of the square and |z|^2 / 2, and the value there."""
        rest = y @ self.a.T - self.c
        precision = torch.eye(2, dtype=torch.float64) + self.b.T @ self.b
        z = -torch.linalg.solve(precision, (rest @ self.b).T).T
        return z, 0.5 * (rest + z @ self.b.T).square().sum(-1) + 0.5 * z.square().sum(-1)

    def free_energy(self, y: torch.Tensor, t: float) -> torch.Tensor:
        precision = torch.eye(2, dtype=torch.float64) + self.b.T @ self.b
        return self.lowest(y)[1] + t * (0.5 * torch.logdet(precision) - math.log(2 * math.pi * t))


def same_gradients(found: torch.Tensor, truth: torch.Tensor, to: list[torch.Tensor], tolerance: float) -> None:
    for a, b in zip(
        torch.autograd.grad(found, to, retain_graph=True),
        torch.autograd.grad(truth, to, retain_graph=True),
        strict=True,
    ):
        assert (a - b).abs().max() < tolerance * (1 + b.abs().max())


def test_descent_finds_the_minimum_of_a_square_and_its_gradients():
    square = Square()
    y = Y.flatten(0, 1).clone().requires_grad_()
    energy = WithoutLatent(ModuleEnergy(square), LatentDescent(2, n_steps=100)).double()
    z, truth = square.lowest(y)
    torch.testing.assert_close(energy.elimination.lowest(energy.joint, y), z.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(energy(y), truth)
    same_gradients(energy(y).sum(), truth.sum(), [y, square.a, square.b, square.c], 1e-4)


@pytest.mark.parametrize("t", [1.0, 0.2])
def test_sampling_finds_the_free_energy_of_a_square_and_its_gradients(t):
    square = Square()
    y = Y.flatten(0, 1)[:8].clone().requires_grad_()
    way = LatentSampling(2, t, n_chains=64, n_steps=60, step_size=0.05, n_draws=8)
    energy = WithoutLatent(ModuleEnergy(square), way).double()
    truth = square.free_energy(y, t)
    drawn = way.weighted(energy.joint, y)
    # The estimate's standard error, from the spread of its weights.
    weights = torch.softmax(drawn.log_weights.detach(), -1)
    error = t * (weights.square().sum(-1) - 1 / weights.shape[-1]).sqrt()
    assert ((energy(y) - truth).abs() < 5 * error + 1e-6).all()
    assert error.max() < 0.1 * t
    mean = (weights.unsqueeze(-1) * drawn.z).sum(-2)
    assert (mean - square.lowest(y)[0]).abs().max() < 0.25 * math.sqrt(t)
    same_gradients(energy(y).sum(), truth.sum(), [y, square.a, square.b, square.c], 0.2)
    assert (energy(y) <= square.lowest(y)[1] + t * math.log(2 * math.pi / t)).all()


class TwoWells(Energy):
    """Two wells along z at each y, the lower one at y."""

    def forward(self, x):
        y, z = x.unbind(-1)
        return 3 * (z.square() - 1).square() - y * z


def test_a_descent_from_one_start_begins_at_0():
    """One step of a tenth of the gradient, of |y + z - 3|^2 / 2 and the prior, which is flat there."""
    y = torch.tensor([[1.0, 0.0], [5.0, 3.0]])

    class Sum(Energy):
        def forward(self, x):
            return 0.5 * (x[..., :2] + x[..., 2:] - 3).square().sum(-1)

    found = LatentDescent(2, n_starts=1, n_steps=1, step_size=0.1).lowest(Sum(), y)
    torch.testing.assert_close(found, 0.1 * (3 - y))


def test_the_lowest_of_several_starts_is_over_the_barrier():
    energy = WithoutLatent(TwoWells(), LatentDescent(1, n_starts=8, step_size=0.02))
    y = torch.tensor([[-1.0], [1.0], [0.5]])
    grid = torch.linspace(-2, 2, 4001)
    pairs = torch.stack(torch.broadcast_tensors(y, grid), -1)
    values = TwoWells()(pairs) + 0.5 * grid.square()
    torch.testing.assert_close(energy(y), values.amin(-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        energy.elimination.lowest(energy.joint, y)[:, 0], grid[values.argmin(-1)], atol=2e-3, rtol=0
    )
    for t in (1.0, 0.3):
        summed = WithoutLatent(TwoWells(), LatentSampling(1, t, 64, n_steps=100, step_size=0.01, n_draws=8))
        truth = -t * (torch.logsumexp(-values / t, -1) + math.log(float(grid[1] - grid[0])))
        weights = torch.softmax(summed.elimination.weighted(summed.joint, y).log_weights, -1)
        error = t * (weights.square().sum(-1) - 1 / weights.shape[-1]).sqrt()
        assert ((summed(y) - truth).abs() < 4 * error).all()
        assert error.max() < 0.1 * t


def conditional(way) -> ConditionalWithoutLatent:
    torch.manual_seed(0)
    return perturbed(ConditionalWithoutLatent(NetworkEnergy(mlp([3, 6]), 6, 3, hidden=8), way)).double()


def test_the_gradient_of_a_descent_is_a_finite_difference():
    """By the envelope theorem, although z moves with y and with the weights."""
    energy = conditional(LatentDescent(1, n_steps=200))
    _, grad = energy.given(X).value_and_gradient(Y)
    for k in range(2):
        step = 1e-4 * torch.eye(2, dtype=torch.float64)[k]
        slope = (energy(X, Y + step) - energy(X, Y - step)) / 2e-4
        torch.testing.assert_close(grad[..., k], slope.detach(), rtol=1e-4, atol=1e-6)
    weight = energy.joint.out.weight
    (by_weight,) = torch.autograd.grad(energy(X, Y).sum(), weight)
    with torch.no_grad():
        weight[0, 0] += 1e-4
        above = energy(X, Y).sum()
        weight[0, 0] -= 2e-4
        below = energy(X, Y).sum()
    assert float(by_weight[0, 0]) == pytest.approx(float(above - below) / 2e-4, rel=1e-3, abs=1e-6)
    z = energy.latents(X, Y)
    assert z.shape == (4, 5, 1)
    with pytest.raises(TypeError, match="summed out"):
        conditional(LatentSampling(1)).latents(X, Y)


def test_what_needs_second_derivatives_is_refused_by_name():
    rows = Batch(X, Y[:, 0])
    for energy, batch in (
        (conditional(LatentDescent(1)), rows),
        (WithoutLatent(PerceptronEnergy(3, (4,)), LatentDescent(1)).double(), Batch(None, rows.y)),
    ):
        with pytest.raises(TypeError, match="RankingNCE or a margin loss"):
            ScoreMatching()(energy, batch)
    with pytest.raises(ValueError, match="at least 2 chains"):
        LatentSampling(1, n_chains=1)
    with pytest.raises(ValueError, match="positive"):
        LatentSampling(1, 0.0)


# -- they are energies as all others ---------------------------------------------------------------------------

WAYS = {
    "lowest of a few": lambda: network().lowest(),
    "sum of a few": lambda: network().marginal(0.5),
    "experts, hard": lambda: experts().lowest(),
    "lowest vector": lambda: conditional(LatentDescent(1, n_starts=2, n_steps=5)),
    "sum of vectors": lambda: conditional(LatentSampling(1, n_chains=4, n_steps=5)),
}
OBJECTIVES = {
    "NCE": lambda: RankingNCE(n_samples=8),
    "conditional NCE": lambda: ConditionalNCE(0.3, 4),
    "ML-MCMC": lambda: LangevinML(n_steps=3, n_chains=4),
    "hinge": lambda: MarginLoss(Hinge(), OutsideBall(0.3)),
    "log": lambda: MarginLoss(logarithmic, OutsideBall(0.3)),
    "square-exponential": lambda: MarginLoss(SquareExponential(), OutsideBall(0.3)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives_train_them(way, objective):
    energy = WAYS[way]()
    before = {k: v.clone() for k, v in energy.named_parameters()}
    history = Trainer(Plan(max_epochs=2, batch_size=4)).fit(energy, OBJECTIVES[objective](), Batch(X, Y[:, 0]))
    assert math.isfinite(history.epochs[-1]["loss"])
    assert any(not torch.equal(before[k], v) for k, v in energy.named_parameters())


def test_chains_sample_what_is_left_without_the_latent_variable():
    """A latent scale: y given z is N(0, s_z^2), z one of two; the variance of y is the mean of both."""

    class Scales(nn.Module):
        def forward(self, y):
            std = torch.tensor([0.5, 1.5], dtype=y.dtype)
            return -(0.5 * (y / std).square() + std.log())

    energy = LabelledEnergy(Scales()).marginal()  # an energy of y alone with a latent label
    start = torch.randn(500, 1, generator=seeded(0))
    draws = sample_chain(MALA(0.3), energy, start, n_draws=10, burn_in=100, thin=10, generator=seeded(1))
    variance, truth = float(draws.position.square().mean()), (0.25 + 2.25) / 2
    # Of 500 independent chains; the fourth moment is 3 times the mean of the fourth powers.
    error = math.sqrt((3 * (0.5**4 + 1.5**4) / 2 - truth**2) / 500)
    assert abs(variance - truth) < 4 * error


def test_a_density_with_a_latent_vector_is_sampled_as_its_closed_form_says():
    """E(y, z) = (y - z)^2 / 2 with z standard normal: y has variance 2."""
    joint = ModuleEnergy(nn.Sequential(nn.Linear(2, 1, bias=False), _HalfSquare()))
    with torch.no_grad():
        joint.module[0].weight.copy_(torch.tensor([[1.0, -1.0]]))
    energy = WithoutLatent(joint, LatentSampling(1, n_chains=16, n_steps=20, step_size=0.2, n_draws=4))
    draws = sample_chain(
        MALA(0.8), energy, torch.randn(300, 1, generator=seeded(0)), n_draws=5, burn_in=30, thin=10,
        generator=seeded(1),
    )  # fmt: skip
    # The free energy itself is estimated, with an error that is common to all y.
    assert float(draws.position.square().mean()) == pytest.approx(2.0, abs=4 * 2 * math.sqrt(2 / 300) + 0.2)


class _HalfSquare(nn.Module):
    def forward(self, x):
        return 0.5 * x.square().squeeze(-1)
