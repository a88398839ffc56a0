"""Every objective by name: of densities, of targets given inputs, of answers gone through, and of orders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from thalweg.energies.densities import FlowEnergy, GaussianMixtureEnergy
from thalweg.objectives.base import Objective
from thalweg.objectives.contrastive_divergence import (
    ContrastiveDivergence,
    ImprovedContrastiveDivergence,
    LangevinML,
)
from thalweg.objectives.energy_discrepancy import EnergyDiscrepancy
from thalweg.objectives.energy_loss import EnergyLoss
from thalweg.objectives.importance_sampling import ImportanceSampling, KLDivergenceImportanceSampling
from thalweg.objectives.likelihood import MaximumLikelihood
from thalweg.objectives.margin import (
    LVQ2,
    AnswerLikelihood,
    Hinge,
    MarginLoss,
    MinimumEmpiricalError,
    SquareExponential,
    SquareSquare,
    logarithmic,
    minimum_classification_error,
    perceptron,
)
from thalweg.objectives.noise_contrastive import (
    ConditionalNCE,
    FlowContrastiveEstimation,
    NoiseContrastiveEstimation,
    RankingNCE,
    TiltNCE,
)
from thalweg.objectives.ranking import (
    LambdaRanking,
    PairwiseRanking,
    PlackettLuceRanking,
    SoftmaxRanking,
)
from thalweg.objectives.score_matching import DenoisingScoreMatching, ScoreMatching, SlicedScoreMatching
from thalweg.objectives.stein import SteinDiscrepancy
from thalweg.sampling.buffer import ReplayBuffer
from thalweg.sampling.langevin import Langevin


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        title: its name in the field.
        build: makes the objective for data ``[n, D]`` of mean 0 and standard deviation 1.
        needs: what it needs beside the energy's value: "noise density", "auxiliary model", "second
            derivatives", "chains", or nothing.
    """

    title: str
    build: Callable[[Tensor], Objective]
    needs: str = ""


def _noise(data: Tensor, widen: float = 1.0) -> GaussianMixtureEnergy:
    return GaussianMixtureEnergy.from_moments(data, widen)


def _buffer(data: Tensor) -> ReplayBuffer:
    return ReplayBuffer(_noise(data), size=2000, n_chains=256, restart=0.05)


def _critic(data: Tensor) -> SteinDiscrepancy:
    width = 64
    critic = nn.Sequential(
        nn.Linear(data.shape[1], width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.SiLU(),
        nn.Linear(width, data.shape[1]),
    )
    return SteinDiscrepancy(critic)


def _flow(data: Tensor) -> FlowContrastiveEstimation:
    import zuko

    flow = zuko.flows.NSF(data.shape[1], transforms=2, passes=2, hidden_features=(64, 64))
    return FlowContrastiveEstimation(FlowEnergy(flow))


METHODS: dict[str, Method] = {
    "nce": Method(
        "noise-contrastive estimation", lambda z: NoiseContrastiveEstimation(_noise(z), 4), "noise density"
    ),
    "cnce": Method("conditional NCE", lambda z: ConditionalNCE()),
    "fce": Method("flow contrastive estimation", _flow, "auxiliary model"),
    "ml-is": Method(
        "maximum likelihood, importance sampling",
        lambda z: ImportanceSampling(_noise(z, 1.2), 1024),
        "noise density",
    ),
    "sm": Method("score matching", lambda z: ScoreMatching(), "second derivatives"),
    "ssm": Method("sliced score matching", lambda z: SlicedScoreMatching(), "second derivatives"),
    "ssm-vr": Method(
        "sliced score matching, variance reduced",
        lambda z: SlicedScoreMatching(1, variance_reduction=True),
        "second derivatives",
    ),
    "dsm": Method("denoising score matching", lambda z: DenoisingScoreMatching(0.1), "derivatives"),
    "ed": Method("energy discrepancy", lambda z: EnergyDiscrepancy(0.2, 16)),
    "lsd": Method("learned Stein discrepancy", _critic, "auxiliary model"),
    "cd": Method(
        "contrastive divergence, 20 steps", lambda z: ContrastiveDivergence(Langevin(0.005), 20), "chains"
    ),
    "pcd": Method(
        "persistent contrastive divergence, 20 steps",
        lambda z: ContrastiveDivergence(Langevin(0.005), 20, _buffer(z)),
        "chains",
    ),
    "icd": Method(
        "improved contrastive divergence, 20 steps",
        lambda z: ImprovedContrastiveDivergence(Langevin(0.005), 20, _buffer(z)),
        "chains",
    ),
}


# The ten losses of [LeCun 2006, table 1].
ANSWER_LOSSES: dict[str, Callable[[], Objective]] = {
    "likelihood": AnswerLikelihood,
    "perceptron": lambda: MarginLoss(perceptron),
    "hinge": lambda: MarginLoss(Hinge()),
    "log": lambda: MarginLoss(logarithmic),
    "mce": lambda: MarginLoss(minimum_classification_error),
    "square-square": lambda: MarginLoss(SquareSquare()),
    "square-exponential": lambda: MarginLoss(SquareExponential()),
    "lvq2": lambda: MarginLoss(LVQ2()),
    "mee": MinimumEmpiricalError,
    "energy": EnergyLoss,
}


def conditional_objective(
    name: str,
    noise_stds: Sequence[float],
    n_samples: int,
    resolution: float = 0.0,
    roughness: float = 0.0,
    curved: bool = False,
) -> Objective:
    """An objective for a density of targets given inputs, by its name.

    The names are :data:`thalweg.objectives.names.CONDITIONAL`. "proposal-nce" is not among
    them: it needs a proposal network (:class:`JointProposalNCE`).

    Args:
        noise_stds: standard deviations of the noise, in those of the target.
        n_samples: candidates for each row, for the objectives that draw them.
        resolution: spacing of the grid that the standardised target is rounded to, for the likelihood.
        roughness: weight of the penalty on tilts, for the likelihood.
        curved: whether the target is the asinh of what is rounded, for the likelihood.
    """
    stds = list(noise_stds)
    wide = [2 * s for s in stds]
    builders: dict[str, Callable[[], Objective]] = {
        "likelihood": lambda: MaximumLikelihood(resolution, roughness, curved),
        "tilt-nce": lambda: TiltNCE(n_samples),
        "nce": lambda: RankingNCE(stds, n_samples),
        "nce+": lambda: RankingNCE(stds, n_samples, label_noise=0.025),
        "ml-is": lambda: ImportanceSampling(wide, n_samples),
        "kld-is": lambda: KLDivergenceImportanceSampling(stds[0] / 4, wide, n_samples),
        "ml-mcmc": lambda: LangevinML(stds[0] / 2, 16, n_samples),
        "sm": lambda: ScoreMatching(),
        "dsm": lambda: DenoisingScoreMatching(stds[0], n_samples),
    }
    return builders[name]()


def ranking_objective(name: str) -> Objective:
    """An objective for an order of the rows of a group, by its name.

    The names are :data:`thalweg.objectives.names.RANKING`.
    """
    builders: dict[str, Callable[[], Objective]] = {
        "lambda": LambdaRanking,
        "listwise": SoftmaxRanking,
        "plackett-luce": PlackettLuceRanking,
    }
    return builders[name]() if name in builders else PairwiseRanking(name.removeprefix("pairwise-"))
