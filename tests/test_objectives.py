"""Objectives: what each is known to equal in closed form (the contract of all: test_objective_contract.py)."""

import math

import pytest
import torch
from torch import nn

from parts import batch, ensemble, mixture, network, seeded, tilted
from thalweg.energies import (
    ConditionalEnergy,
    ConditionalModuleEnergy,
    Energy,
    MixtureDensity,
    TiltedMixtureEnsemble,
)
from thalweg.objectives.base import Batch
from thalweg.objectives.catalogue import conditional_objective
from thalweg.objectives.contrastive_divergence import (
    ContrastiveDivergence,
    LangevinML,
)
from thalweg.objectives.energy_discrepancy import EnergyDiscrepancy
from thalweg.objectives.importance_sampling import ImportanceSampling, KLDivergenceImportanceSampling
from thalweg.objectives.likelihood import MaximumLikelihood, dequantise
from thalweg.objectives.noise import TargetNoise
from thalweg.objectives.noise_contrastive import (
    ConditionalNCE,
    JointProposalNCE,
    RankingNCE,
    TiltNCE,
    _rank,
)
from thalweg.objectives.score_matching import DenoisingScoreMatching, ScoreMatching
from thalweg.sampling.buffer import FromData
from thalweg.sampling.chain import run_chain
from thalweg.sampling.random_walk import RandomWalk

# -- against closed forms ---------------------------------------------------------------------------------


class GaussianRows(ConditionalEnergy):
    """E = sum (y - mean)^2 / (2 variance), with a mean and a variance of its own for each row: the gradient
    of the summed loss is then every row's gradient, and its standard error is at hand."""

    def __init__(self, mean: float, variance: float, n_rows: int):
        super().__init__()
        self.mean = nn.Parameter(torch.full((n_rows, 1), mean, dtype=torch.float64))
        self.variance = nn.Parameter(torch.full((n_rows, 1), variance, dtype=torch.float64))

    def features(self, x):
        return self.mean, self.variance

    def head(self, features, y):
        mean, variance = (f.reshape(-1, *([1] * (y.dim() - 2)), 1) for f in features)
        return ((y - mean).square() / (2 * variance)).sum(-1)


def gaussian_data(n_rows: int, mean: float = 0.3, std: float = 0.7) -> Batch:
    y = mean + std * torch.randn(n_rows, 1, generator=seeded(8), dtype=torch.float64)
    return Batch(torch.zeros(n_rows, 1, dtype=torch.float64), y)


def assert_stationary(objective, energy: GaussianRows, data: Batch) -> None:
    """The mean gradient is within 4 of its standard errors of zero, and not because it is always zero."""
    objective.per_row(energy, data, seeded(9)).sum().backward()
    for weight in energy.parameters():
        error = weight.grad.std() / math.sqrt(len(data.y))
        assert float(error) > 0
        assert abs(float(weight.grad.mean())) < 4 * float(error)


def assert_not_stationary(objective, energy: GaussianRows, data: Batch) -> None:
    objective.per_row(energy, data, seeded(9)).sum().backward()
    ratios = [abs(float(w.grad.mean() / w.grad.std())) * math.sqrt(len(data.y)) for w in energy.parameters()]
    assert max(ratios) > 8


def test_score_matching_of_a_gaussian_is_its_closed_form():
    data = gaussian_data(50)
    loss = ScoreMatching().per_row(GaussianRows(0.1, 0.6, 50), data, None)
    expected = 0.5 * ((data.y - 0.1) / 0.6).square().squeeze(-1) - 1 / 0.6
    torch.testing.assert_close(loss, expected)


def test_score_matching_is_least_at_the_true_gaussian():
    data = gaussian_data(20_000)
    assert_stationary(ScoreMatching(), GaussianRows(0.3, 0.49, 20_000), data)
    assert_not_stationary(ScoreMatching(), GaussianRows(0.3, 0.6, 20_000), data)


def test_denoising_score_matching_is_least_at_the_blurred_gaussian():
    """Score -(y - mean) / (s^2 + sigma^2)."""
    data = gaussian_data(20_000)
    objective = DenoisingScoreMatching(noise_std=0.4, n_samples=2)
    assert_stationary(objective, GaussianRows(0.3, 0.49 + 0.16, 20_000), data)
    assert_not_stationary(objective, GaussianRows(0.3, 0.49, 20_000), data)


def test_the_exact_trace_is_the_trace_of_the_hessian_in_three_dimensions():
    energy, data = network(3).double(), batch(3, 4)
    x, y = data.x.double(), data.y.double()
    loss = ScoreMatching().per_row(energy, Batch(x, y), None)
    for i in range(4):
        given = energy.given(x[i : i + 1])

        def energy_of(v, given=given):
            return given(v.unsqueeze(0)).squeeze(0)

        grad = torch.autograd.functional.jacobian(energy_of, y[i])
        hessian = torch.autograd.functional.hessian(energy_of, y[i])
        torch.testing.assert_close(loss[i].detach(), 0.5 * grad.square().sum() - hessian.trace())


def test_importance_sampling_tends_to_the_exact_likelihood():
    data = gaussian_data(6)
    loss = ImportanceSampling(n_samples=100_000).per_row(GaussianRows(0.1, 0.6, 6), data, seeded())
    normal = torch.distributions.Normal(0.1, math.sqrt(0.6))
    expected = -normal.log_prob(data.y).squeeze(-1)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-2)


def test_the_importance_sampled_divergence_tends_to_the_cross_entropy():
    """Of N(y_i, s^2) under N(mean, v): log(2 pi v) / 2 + ((y_i - mean)^2 + s^2) / (2 v)."""
    data = gaussian_data(6)
    objective = KLDivergenceImportanceSampling(0.2, n_samples=100_000)
    loss = objective.per_row(GaussianRows(0.1, 0.6, 6), data, seeded())
    square = (data.y.squeeze(-1) - 0.1).square() + 0.04
    expected = 0.5 * math.log(2 * math.pi * 0.6) + square / 1.2
    # Standard error of the importance-weighted mean: below 1 / sqrt(1e5) per unit of energy, 3e-3 here.
    torch.testing.assert_close(loss, expected, rtol=0, atol=2e-2)


def test_noise_contrast_without_label_noise_is_plain_bit_for_bit():
    energy, data = network(2), batch(2)
    plain = RankingNCE([0.1, 0.8], n_samples=32).per_row(energy, data, seeded())
    plus = RankingNCE([0.1, 0.8], n_samples=32, label_noise=0.0).per_row(energy, data, seeded())
    assert torch.equal(plain, plus)


def test_noise_contrast_of_equal_candidates_is_the_logarithm_of_their_number():
    """If -E = log q up to a constant, nothing tells the target from the noise."""
    proposal = mixture(1)
    objective = JointProposalNCE(proposal, n_samples=31)
    loss = objective.per_row(proposal, batch(1), seeded())
    torch.testing.assert_close(loss, torch.full((8,), math.log(32)))  # and the proposal covers: KL = 0


@pytest.mark.parametrize("make", [RankingNCE, ImportanceSampling])
def test_contrast_and_importance_sampling_are_least_at_the_true_gaussian(make):
    """Ranking at any number of candidates; the likelihood up to the bias of log Z, small at this M."""
    data = gaussian_data(5000)
    assert_stationary(make([0.2, 0.8], n_samples=128), GaussianRows(0.3, 0.49, 5000), data)
    assert_not_stationary(make([0.2, 0.8], n_samples=128), GaussianRows(0.3, 0.7, 5000), data)


def test_noise_contrast_with_the_true_density_is_calibrated():
    """Among exchangeable candidates, a calibrated posterior has E[p_target] = E[sum_k p_k^2]."""
    n, m = 4000, 7
    normal = torch.distributions.Normal(torch.tensor(0.3).double(), torch.tensor(0.7).double())
    noise = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(1.5).double())
    target = gaussian_data(n).y
    draws = 1.5 * torch.randn(n, m, generator=seeded(4), dtype=torch.float64)
    candidates = torch.cat([target, draws], 1)
    logits = normal.log_prob(candidates) - noise.log_prob(candidates)
    posterior = torch.stack([(-_rank(logits.roll(-k, 1))).exp() for k in range(m + 1)], 1)
    torch.testing.assert_close(posterior.sum(1), torch.ones(n).double())
    difference = posterior[:, 0] - posterior.square().sum(1)
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / math.sqrt(n)


def test_the_joint_proposal_learns_nothing_from_the_ranking_and_the_energy_nothing_from_the_cover():
    energy, data, proposal = network(2), batch(2), mixture(2)
    objective = JointProposalNCE(proposal, n_samples=16)
    objective(energy, data, seeded()).value.backward()
    mixed = proposal.features(data.x)
    samples = proposal.sample(mixed, 16, seeded())
    candidates = torch.cat([data.y.unsqueeze(1), samples], 1)
    values, log_q = energy(data.x, candidates), proposal.log_prob(mixed, candidates)
    ranking = -torch.log_softmax(-values - log_q.detach(), 1)[:, 0].mean()
    cover = (torch.logsumexp(-values.detach()[:, 1:] - log_q[:, 1:], 1) - math.log(16)).mean()
    for module, term in [(energy, ranking), (proposal, cover)]:
        weights = list(module.parameters())
        for weight, grad in zip(weights, torch.autograd.grad(term, weights), strict=True):
            torch.testing.assert_close(weight.grad, grad)


def test_a_proposal_on_shared_features_sends_no_gradient_into_them():
    energy, data = network(1), batch(1)
    objective = JointProposalNCE(MixtureDensity(nn.Identity(), 6), n_samples=16, shares_features=True)
    mixed = objective.proposal_features(energy, data.x)
    assert torch.autograd.grad(
        sum(m.sum() for m in mixed), list(energy.feature_network.parameters()), allow_unused=True
    ) == (None, None)


def test_while_it_warms_up_the_proposal_learns_by_its_own_likelihood():
    energy, data, proposal = network(1), batch(1), mixture(1)
    objective = JointProposalNCE(proposal, n_samples=16, warm_up=2)
    log_q = proposal.log_prob(proposal.features(data.x), data.y.unsqueeze(1)).mean()
    by_likelihood = torch.autograd.grad(-log_q, list(proposal.parameters()))

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(objective(energy, data, seeded()).value, list(proposal.parameters()))

    for _ in range(2):
        for found, wanted in zip(gradients(), by_likelihood, strict=True):
            torch.testing.assert_close(found, wanted)
    plain = JointProposalNCE(proposal, n_samples=16)(energy, data, seeded()).value
    torch.testing.assert_close(objective(energy, data, seeded()).value, plain)
    assert int(objective.n_updates) == 3
    objective.eval()(energy, data, seeded())
    assert int(objective.n_updates) == 3


def test_the_tilt_is_ranked_and_the_mixture_learns_by_its_likelihood():
    """-log q(y_i) + ranking by -r, which is ranking by -E - log q."""
    energy, data = tilted(2), batch(2)
    loss = TiltNCE(n_samples=16).per_row(energy, data, seeded())
    features = energy.features(data.x)
    samples = energy.proposal.sample(features[:3], 16, seeded())
    candidates = torch.cat([data.y.unsqueeze(1), samples], 1)
    log_q = energy.proposal.log_prob(features[:3], candidates)
    expected = _rank(-energy(data.x, candidates) - log_q) - log_q[:, 0]
    torch.testing.assert_close(loss, expected)


def test_negatives_from_chains_carry_no_graph_and_sampling_leaves_no_gradient():
    energy, data = network(2), batch(2)
    objective = LangevinML(n_steps=5, n_chains=6)
    start = data.y.unsqueeze(1).expand(-1, 6, -1)
    stored = run_chain(objective.kernel, energy.given(data.x).detach(), start, 5, seeded()).position
    assert not stored.requires_grad
    assert all(w.grad is None for w in energy.parameters())
    weights = [w for name, w in energy.named_parameters() if name != "out.bias"]
    expected = torch.autograd.grad((energy(data.x, data.y) - energy(data.x, stored).mean(1)).mean(), weights)
    objective(energy, data, seeded()).value.backward()
    for weight, grad in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, grad, rtol=1e-4, atol=1e-6)


def test_chains_run_in_evaluation_mode_and_leave_every_mode_and_statistic_as_it_was():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)
            self.frozen = nn.Dropout(0.5).eval()
            self.modes = []

        def forward(self, x, y):
            self.modes.append(self.training)
            return self.norm(self.frozen(torch.cat([x, y], -1))).square().sum(-1)

    module = Pair()
    energy = ConditionalModuleEnergy(module)
    module.train()
    module.frozen.eval()
    LangevinML(n_steps=4, n_chains=3).per_row(energy, Batch(torch.randn(5, 1), torch.randn(5, 1)), seeded())
    assert module.modes == [False] * 4 + [True]
    assert module.training
    assert not module.frozen.training
    assert int(module.norm.num_batches_tracked) == 1


# -- formulas, with every term at work --------------------------------------------------------------------


class Seen(Energy):
    """E = tilt'y + bend |y|^2 / 2, which keeps all places at which it was asked for its value."""

    def __init__(self, tilt: float = 0.0, bend: float = 0.0):
        super().__init__()
        self.tilt, self.bend = tilt, bend
        self.asked: list[torch.Tensor] = []

    def forward(self, x):
        self.asked.append(x.detach())
        return self.at(x)

    def at(self, x):
        return (self.tilt * x + 0.5 * self.bend * x.square()).sum(-1)


def rows(n: int = 5, k: int = 2) -> torch.Tensor:
    return torch.randn(n, k, generator=seeded(4), dtype=torch.float64)


def test_noise_contrast_with_label_noise_ranks_the_moved_target_by_its_own_density():
    """-E - log q of all candidates, the moved target first, q centred on the target as it was."""
    energy, y, stds = Seen(0.7, 1.3), rows(), [[0.2, 0.5], [0.9, 0.4]]
    loss = RankingNCE(stds, n_samples=6, label_noise=1.5).per_row(energy, Batch(None, y), seeded())
    (candidates,) = energy.asked
    assert (candidates[:, 0] != y).all()
    parts = [torch.distributions.Normal(y.unsqueeze(1), torch.tensor(s).double()) for s in stds]
    log_q = torch.stack([p.log_prob(candidates).sum(-1) for p in parts]).logsumexp(0) - math.log(2)
    logits = -energy.at(candidates) - log_q
    torch.testing.assert_close(loss, logits.logsumexp(1) - logits[:, 0], rtol=1e-5, atol=1e-5)


def test_label_noise_is_the_noise_times_its_factor():
    """Of N(0, 0.5^2) times 3 the standard deviation is 1.5, up to 5 standard errors."""
    energy, y = Seen(), torch.zeros(4000, 1)
    RankingNCE([0.5], n_samples=1, label_noise=3.0).per_row(energy, Batch(None, y), seeded())
    moved = energy.asked[0][:, 0]
    assert float(moved.std()) == pytest.approx(1.5, rel=5 / math.sqrt(2 * 4000))


def test_denoising_at_several_scales_counts_them_alike():
    """E = bend y^2 / 2: the loss is (a + b n)^2 with a = -s bend y and b = 1 - s^2 bend, at each scale s as often.

    Its mean and variance at one scale are a^2 + b^2 and 4 a^2 b^2 + 2 b^4.
    """
    bend, n, scales = 0.8, 20_000, (0.1, 0.5, 2.0)
    y = torch.tensor([[0.5], [-2.0]], dtype=torch.float64)
    loss = DenoisingScoreMatching(scales, n).per_row(Seen(bend=bend), Batch(None, y), seeded())
    for place, found in zip(y[:, 0].tolist(), loss.tolist(), strict=True):
        shift, noise = ([-s * bend * place for s in scales], [1 - s * s * bend for s in scales])
        means = [a * a + b * b for a, b in zip(shift, noise, strict=True)]
        squares = [a**4 + 6 * a * a * b * b + 3 * b**4 for a, b in zip(shift, noise, strict=True)]
        mean = sum(means) / 3
        assert found == pytest.approx(mean, abs=5 * math.sqrt((sum(squares) / 3 - mean**2) / n))


@pytest.mark.parametrize("stabiliser", [0.3, 1.0, 4.0])
def test_energy_discrepancy_is_its_formula_with_any_stabiliser(stabiliser):
    energy, y = Seen(0.7, 1.3), rows()
    loss = EnergyDiscrepancy(0.6, 4, stabiliser).per_row(energy, Batch(None, y), seeded())
    (asked,) = energy.asked
    gaps = energy.at(y).unsqueeze(1) - energy.at(asked[:, 1:])
    torch.testing.assert_close(loss, (stabiliser / 4 + gaps.exp().mean(1)).log())


def test_energy_discrepancy_blurs_by_a_noise_that_a_row_shares_and_one_of_each_copy():
    """Two blurs: a copy moves by std^2 of either, and what two copies have in common is std^2."""
    energy, n = Seen(), 20_000
    EnergyDiscrepancy(0.6, 2).per_row(energy, Batch(None, torch.zeros(n, 1)), seeded())
    first, second = energy.asked[0][:, 1, 0], energy.asked[0][:, 2, 0]
    for copy in (first, second):
        assert float(copy.var()) == pytest.approx(2 * 0.36, rel=5 * math.sqrt(2 / n))
    # The variance of a product of two normal numbers is theirs multiplied, plus the square of what they share.
    assert float((first * second).mean()) == pytest.approx(0.36, abs=5 * 0.36 * math.sqrt((4 + 1) / n))


def test_a_step_of_langevin_likelihood_has_the_noise_it_is_named_by_at_temperature_one():
    """On a slope g, T steps lead down by T lambda^2 / 2 g, and spread by lambda sqrt(T)."""
    n, n_steps, std = 20_000, 4, 0.3
    energy = Seen(tilt=2.0)
    objective = LangevinML(std, n_steps, n)
    objective.per_row(energy, Batch(None, torch.ones(1, 1)), seeded())
    ends = energy.asked[-1][:, 1:]
    spread = std * math.sqrt(n_steps)
    assert float(ends.mean()) == pytest.approx(1 - n_steps * 0.5 * std**2 * 2.0, abs=5 * spread / math.sqrt(n))
    assert float(ends.std()) == pytest.approx(spread, rel=5 / math.sqrt(2 * n))


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_squares_in_contrastive_divergence_are_those_of_both_energies(weight):
    y = rows()
    plain, squared = Seen(0.7, 1.3), Seen(0.7, 1.3)
    without = ContrastiveDivergence(RandomWalk(0.4), 3, FromData(6)).per_row(plain, Batch(None, y), seeded())
    objective = ContrastiveDivergence(RandomWalk(0.4), 3, FromData(6), energy_l2=weight)
    loss = objective.per_row(squared, Batch(None, y), seeded()) - without
    values = squared.at(squared.asked[-1])
    torch.testing.assert_close(values[:, 0], squared.at(y))
    torch.testing.assert_close(loss, weight * (values[:, 0].square() + values[:, 1:].square().mean(1)))


def test_grey_values_are_spread_over_their_cells_and_kept_within_bounds():
    """Data at the lower bound: half of the noise of a cell would lead below it."""
    energy, n = Seen(), 4000
    objective = ContrastiveDivergence(RandomWalk(0.1), 1, FromData(), resolution=0.2, bounds=(0.0, 1.0))
    objective.per_row(energy, Batch(None, torch.zeros(n, 1)), seeded())
    data = energy.asked[-1][:, 0, 0]
    assert float(data.min()) == 0
    assert float(data.max()) <= 0.1
    # Half of the rows are at the bound, the others uniform up to half a cell: mean 0.025, variance below 0.05^2.
    assert float(data.mean()) == pytest.approx(0.025, abs=5 * 0.05 / math.sqrt(n))


@pytest.mark.parametrize(
    ("bend", "lowest", "highest", "moves"), [(0.0, 1.8, 2.0, 1), (1.0, 1.0, 1.8, 0), (100.0, 0.0, 1.0, -1)]
)
def test_the_noise_of_conditional_nce_stays_where_telling_is_neither_hopeless_nor_too_easy(
    bend, lowest, highest, moves
):
    """All rows at the bottom of a valley; losses in units of log 2. In evaluation the noise never moves."""
    batch, objective = Batch(None, torch.zeros(500, 1)), ConditionalNCE(n_noise=20)
    objective.scale.fill_(1.0)
    loss = objective.eval().per_row(Seen(bend=bend), batch, seeded()).mean()
    assert lowest * math.log(2) < float(loss) < highest * math.log(2) + 1e-5
    assert float(objective.scale) == 1
    objective.train().per_row(Seen(bend=bend), batch, seeded())
    assert math.copysign(1, float(objective.scale) - 1) * (float(objective.scale) != 1) == moves
    assert float(objective.scale) == pytest.approx(1, abs=0.05)


def test_conditional_nce_begins_with_noise_half_as_wide_as_the_data():
    y = rows(50) * torch.tensor([1.0, 3.0])
    objective = ConditionalNCE().eval()
    objective.per_row(Seen(), Batch(None, y), seeded())
    assert float(objective.scale) == pytest.approx(0.5 * float(y.std(0).mean()), rel=1e-5)


@pytest.mark.parametrize("roughness", [0.0, 0.4, 3.0])
def test_the_penalty_on_tilts_counts_by_its_weight_and_in_training_only(roughness):
    energy, data = TiltedMixtureEnsemble(3, 2, (8,), 2, 3, dropout=0.0), batch(1)
    objective, plain = MaximumLikelihood(roughness=roughness), MaximumLikelihood(roughness=0.0)
    penalty = energy.train().roughness(energy.features(data.x))
    assert (penalty > 0).all()
    added = objective.per_row(energy, data, None) - plain.per_row(energy, data, None)
    torch.testing.assert_close(added, roughness * penalty, rtol=1e-3, atol=1e-5)
    energy.eval()
    added = objective.per_row(energy, data, None) - plain.per_row(energy, data, None)
    torch.testing.assert_close(added, torch.zeros_like(added))


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("likelihood", MaximumLikelihood, {"resolution": 0.3, "roughness": 0.7, "curved": True}),
        ("tilt-nce", TiltNCE, {"n_samples": 50}),
        ("nce", RankingNCE, {"n_samples": 50, "noise": [0.4, 1.2], "label_noise": 0}),
        ("nce+", RankingNCE, {"n_samples": 50, "noise": [0.4, 1.2], "label_noise": 0.025}),
        ("ml-is", ImportanceSampling, {"n_samples": 50, "noise": [0.8, 2.4]}),
        ("kld-is", KLDivergenceImportanceSampling, {"n_samples": 50, "noise": [0.8, 2.4], "label": [0.1]}),
        ("ml-mcmc", LangevinML, {"n_steps": 16}),
        ("sm", ScoreMatching, {}),
        ("dsm", DenoisingScoreMatching, {"n_samples": 50}),
    ],
)
def test_an_objective_by_its_name_takes_what_it_is_given(name, kind, expected):
    objective = conditional_objective(name, (0.4, 1.2), 50, 0.3, 0.7, True)
    assert type(objective) is kind
    for attribute, value in expected.items():
        found = getattr(objective, attribute)
        found = found.stds[:, 0].tolist() if isinstance(found, TargetNoise) else found
        assert found == pytest.approx(value)
    if name == "ml-mcmc":
        assert objective.start.n_chains == 50
        assert objective.kernel.step_size == pytest.approx(0.2**2 / 2)
    if name == "dsm":
        assert objective.stds.tolist() == pytest.approx([0.4])


# -- parts ------------------------------------------------------------------------------------------------


def test_target_noise_has_the_density_it_states():
    """Tolerance: 4 standard errors of the mean of log q over draws, against the integral of q log q."""
    noise = TargetNoise([0.1, 0.8])
    centre = torch.tensor([[2.0]])
    draws = noise.sample(centre, 50_000, seeded())
    grid = torch.linspace(-8, 12, 200_001).reshape(1, -1, 1)
    log_q = noise.log_prob(grid, centre).double()
    step = 20 / 200_000
    assert float(log_q.exp().sum() * step) == pytest.approx(1.0, abs=1e-5)
    values = noise.log_prob(draws, centre)
    expected = float((log_q.exp() * log_q).sum() * step)
    assert abs(float(values.mean()) - expected) < 4 * float(values.std()) / math.sqrt(50_000)


def test_noise_of_no_width_is_refused_in_words():
    for stds in ([], [0.0, 1.0], [-1.0]):
        with pytest.raises(ValueError, match="must be positive"):
            TargetNoise(stds)
    with pytest.raises(ValueError, match="must be positive"):
        DenoisingScoreMatching(noise_std=0.0)


def test_dequantisation_adds_uniform_noise_of_the_grid_width():
    y = torch.zeros(10_000, 1)
    moved = dequantise(y, 0.5, seeded())
    assert float(moved.abs().max()) <= 0.25
    # Variance w^2 / 12; a uniform distribution's fourth moment gives the error sqrt((1/80 - 1/144) w^4 / n).
    assert float(moved.var()) == pytest.approx(0.25 / 12, abs=4 * 0.25 * math.sqrt((1 / 80 - 1 / 144) / 10_000))
    assert dequantise(y, 0.0, None) is y


def test_an_objective_that_does_not_suit_the_energy_says_so():
    with pytest.raises(TypeError, match="not normalised in closed form"):
        MaximumLikelihood()(network(1), batch(1), seeded())
    with pytest.raises(TypeError, match="trains a TiltedEnergy"):
        TiltNCE()(network(1), batch(1), seeded())


def test_members_of_an_ensemble_are_weighted_each_by_its_own_rows():
    energy, data = ensemble(1).eval(), batch(1)
    weight = torch.ones(8, 2)
    weight[3:, 0] = 0
    MaximumLikelihood()(energy, data._replace(weight=weight), seeded()).value.backward()
    expected = energy.member_log_prob(energy.features(data.x[:3]), data.y[:3])[:, 0].sum() / -8
    weights = list(energy.parameters())
    for weight_, grad in zip(weights, torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(weight_.grad[0], grad[0], rtol=1e-4, atol=1e-6)
