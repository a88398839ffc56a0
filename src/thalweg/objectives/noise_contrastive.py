"""Noise-contrastive estimation: which of these is data, and which is noise?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from thalweg.energies.base import ConditionalEnergy, Energy, standard_normal
from thalweg.energies.densities import Density, FlowEnergy
from thalweg.energies.densities.tilted import MixtureDensity, TiltedEnergy
from thalweg.objectives.base import (
    Adversarial,
    AnyEnergy,
    Batch,
    Objective,
    Player,
    as_conditional,
    continuous,
    frozen,
)
from thalweg.objectives.noise import FixedNoise, as_noise


class RankingNCE(Objective):
    """-log softmax_0[-E(y_k) - log q(y_k)] over the target (k = 0) and M draws from the noise q.

    With ``label_noise`` above 0 this is NCE+: the target is moved by a draw from the noise with every
    standard deviation scaled by that factor, and log q is taken where it lands.

    Args:
        noise: standard deviations of the noise's components, centred on the true target; or a density, the
            same for all rows.
        n_samples: M.
        label_noise: the factor beta; 0 is plain NCE.

    Source: [Gustafsson 2020b, eq. 8 and 12]; ranking in general [Ma 2018, eq. 7].
    """

    def __init__(
        self, noise: Density | Sequence[float] = (0.1, 0.8), n_samples: int = 1024, label_noise: float = 0.0
    ):
        super().__init__()
        self.noise = as_noise(noise)
        if label_noise and isinstance(self.noise, FixedNoise):
            raise ValueError("label_noise scales noise round the true target; a fixed density has none")
        self.n_samples = n_samples
        self.label_noise = label_noise

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        samples = self.noise.sample(batch.y, self.n_samples, generator)
        target = batch.y.unsqueeze(1)
        if self.label_noise and not isinstance(self.noise, FixedNoise):
            target = target + self.label_noise * self.noise.offsets(batch.y, 1, generator)
        candidates = torch.cat([target, samples], 1)
        return _rank(-batch.given(energy)(candidates) - self.noise.log_prob(candidates, batch.y))


class JointProposalNCE(Objective):
    """Ranking NCE whose noise is a mixture density network, trained beside the energy.

    The energy learns by ranking with the draws y_m of q as noise; q learns to cover the energy by
    minimising KL(p || q), estimated as log (1/M) sum_m e^{-E(y_m)} / q(y_m). No gradient flows through
    the draws, through q in the ranking, through E in the KL term, or from q into features that it shares
    with the energy.

    Args:
        proposal: the mixture density network; it is called on ``energy``'s own feature network when
            ``shares_features`` is set, else on x.
        n_samples: M.
        shares_features: q is a head on the features of the energy's ``feature_network``, detached.
        warm_up: updates in which q learns by its own likelihood instead, -log q(y_i|x_i). An untrained
            energy says nothing that is worth covering: one that falls without bound to the sides drags q
            after it, and the two may run away together.

    Source: [Gustafsson 2022, alg. 1]; the warm-up is ours.
    """

    n_updates: Tensor

    def __init__(
        self, proposal: MixtureDensity, n_samples: int = 1024, shares_features: bool = False, warm_up: int = 0
    ):
        super().__init__()
        self.proposal = proposal
        self.n_samples = n_samples
        self.shares_features = shares_features
        self.warm_up = warm_up
        # A buffer, so that a run that resumes knows how far it was.
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.long))

    def proposal_features(self, energy: ConditionalEnergy, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.shares_features:
            return self.proposal.mixture(energy.feature_network(x).detach())  # type: ignore[operator]
        return self.proposal.features(x)  # type: ignore[return-value]

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        mixture = self.proposal_features(as_conditional(self, energy), batch.x)
        samples = self.proposal.sample(mixture, self.n_samples, generator)
        candidates = torch.cat([batch.y.unsqueeze(1), samples], 1)
        values = batch.given(energy)(candidates)
        log_noise = self.proposal.log_prob(mixture, candidates)
        ranking = _rank(-values - log_noise.detach())
        if self.training and self.warm_up:
            self.n_updates += 1
            if self.n_updates <= self.warm_up:
                return ranking - log_noise[:, 0]
        log_weights = -values[:, 1:].detach() - log_noise[:, 1:]
        cover = torch.logsumexp(log_weights, 1) - math.log(self.n_samples)
        return ranking + cover


class TiltNCE(Objective):
    """Trains a :class:`TiltedEnergy` and its own proposal together: -log q(y_i|x) + ranking of the tilt.

    With E = -log q + r and q as the noise, q cancels in the ranking and leaves -log softmax_0(-r). The
    mixture learns by its own likelihood and stays a sound proposal; r learns what it misses.

    Args:
        n_samples: draws from q for each row.
    """

    def __init__(self, n_samples: int = 64):
        super().__init__()
        self.n_samples = n_samples

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        if not isinstance(energy, TiltedEnergy):
            raise TypeError(f"TiltNCE trains a TiltedEnergy, got {type(energy).__name__}")
        features = energy.features(batch.x)
        samples = energy.proposal.sample(features[:3], self.n_samples, generator)
        candidates = torch.cat([batch.y.unsqueeze(1), samples], 1)
        log_q = energy.proposal.log_prob(features[:3], batch.y)
        return _rank(-energy.tilt(features, candidates)) - log_q


class NoiseContrastiveEstimation(Objective):
    """Logistic regression of data against noise, log-odds -E(y) - log Z - log q(y) - log ratio, log Z learned.

    At its best E is the energy of the data and ``log_normaliser`` its log Z. For a conditional energy log Z
    is one number for all x, and what depends on x is left to the energy.

    Args:
        noise: the density q, like the data but a little wider.
        noise_ratio: draws of noise for each row of data; the more, the nearer to maximum likelihood.

    Source: [Gutmann 2012, eq. 8].
    """

    def __init__(self, noise: Density, noise_ratio: int = 1):
        super().__init__()
        self.noise = noise
        self.noise_ratio = noise_ratio
        self.log_normaliser = nn.Parameter(torch.zeros(()))

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        samples = self.noise.sample((len(batch.y), self.noise_ratio), generator).to(batch.y.dtype)
        candidates = torch.cat([batch.y.unsqueeze(1), samples], 1)
        with torch.no_grad():
            log_noise = self.noise.log_prob(candidates) + math.log(self.noise_ratio)
        return _logistic(batch.given(energy)(candidates) + self.log_normaliser + log_noise)


class ConditionalNCE(Objective):
    """Logistic regression of each row against itself moved by noise: 2 softplus(E(y) - E(y~)), y~ = y + std noise.

    The noise is symmetric, so its density drops out, and so does log Z.

    Args:
        noise_std: standard deviation of the noise, one number or one for each coordinate ``[D]``. None finds it in
            training: half the data's own to begin with, larger while the loss stays near 2 log 2, where nothing is
            to be told apart, and smaller while it is below log 2, where telling is too easy.
        n_noise: kappa, noisy copies of each row.

    Source: [Ceylan 2018, eq. 10] and its code, whose rule for the noise this is.
    """

    scale: Tensor

    def __init__(self, noise_std: float | Sequence[float] | None = None, n_noise: int = 10):
        super().__init__()
        self.adapts = noise_std is None
        std = 0.0 if noise_std is None else noise_std
        self.register_buffer("scale", torch.as_tensor(std, dtype=torch.float32))
        self.n_noise = n_noise

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        given = continuous(self, energy, batch)
        if self.adapts and not bool(self.scale):
            self.scale.fill_(0.5 * float(batch.y.std(0).mean()))
        perturbed, log_ratio = self.perturb(given, batch.y, generator)
        values = given(torch.cat([batch.y.unsqueeze(1), perturbed], 1))
        log_odds = values[:, 1:] - values[:, :1] + log_ratio
        loss = 2 * nn.functional.softplus(-log_odds).mean(1)
        if self.adapts and self.training:
            self._adapt(float(loss.detach().mean()))
        return loss

    def perturb(
        self, given: Energy, y: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | float]:
        """Noisy copies ``[B, n_noise, *event]``, and log q(y~|y) - log q(y|y~) ``[B, n_noise]``, here 0."""
        shape = (len(y), self.n_noise, *y.shape[1:])
        noise = standard_normal(shape, y, generator)
        return y.unsqueeze(1) + self.scale.to(y.dtype) * noise, 0.0

    def _adapt(self, loss: float) -> None:
        if loss > 0.9 * 2 * math.log(2):
            self.scale *= 1.02
        elif loss < math.log(2):
            self.scale /= 1.02
        self.metrics = {"noise std": float(self.scale.mean())}


class FlowContrastiveEstimation(Adversarial):
    """NCE whose noise is a flow that learns to be mistaken for the data: the two play one value function.

    The energy, with log Z learned, goes down the logistic loss of data against the flow's draws; the flow goes
    up the same loss, through its draws and its density. The players take turns. Before that the flow learns by
    likelihood.

    Args:
        flow: the noise.
        warm_up: updates in which the flow learns by its own likelihood.

    Source: [Gao 2020, eq. 5 and alg. 1].
    """

    def __init__(self, flow: FlowEnergy, warm_up: int = 200):
        super().__init__()
        self.flow = flow
        self.warm_up = warm_up
        self.log_normaliser = nn.Parameter(torch.zeros(()))

    def check(self, energy: AnyEnergy, batch: Batch) -> None:
        """As :meth:`Objective.check`; the flow must be of vectors like the data, too."""
        super().check(energy, batch)
        device = next((p.device for p in self.flow.parameters()), torch.device("cpu"))
        with torch.no_grad():
            drawn = self.flow.draw(2, torch.Generator(device).manual_seed(0))
        if drawn.shape[1:] != batch.y.shape[1:]:
            raise ValueError(
                f"the flow is of vectors of {drawn.shape[1]} numbers, and the rows of the data have shape "
                f"{list(batch.y.shape[1:])}"
            )

    def players(self, energy: AnyEnergy) -> list[Player]:
        return [
            Player("flow", list(self.flow.parameters()), warm_up=self.warm_up),
            Player("energy", [*energy.parameters(), self.log_normaliser]),
        ]

    def player_loss(
        self, player: str, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None
    ) -> Tensor:
        return (self._energy_loss if player == "energy" else self._flow_loss)(energy, batch, generator)

    def warm_up_loss(
        self, player: str, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None
    ) -> Tensor:
        return -self.flow.log_prob(batch.y)

    def _energy_loss(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        with torch.no_grad():
            candidates = torch.stack([batch.y, self.flow.draw(len(batch.y), generator)], 1)
            log_noise = self.flow.log_prob(candidates)
        self.metrics = {"log normaliser": float(self.log_normaliser.detach())}
        return _logistic(batch.given(energy)(candidates) + self.log_normaliser + log_noise)

    def _flow_loss(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        candidates = torch.stack([batch.y, self.flow.draw(len(batch.y), generator)], 1)
        with frozen(energy):
            values = batch.given(energy)(candidates)
        return -_logistic(values + self.log_normaliser.detach() + self.flow.log_prob(candidates))


def _rank(logits: Tensor) -> Tensor:
    """-log softmax of the first of ``[B, 1 + M]``."""
    return torch.logsumexp(logits, 1) - logits[:, 0]


def _logistic(log_odds: Tensor) -> Tensor:
    """-log of the chance that the first of ``[B, 1 + M]`` is data and the others noise, from log-odds of noise."""
    sign = torch.ones_like(log_odds[0])
    sign[1:] = -1
    return nn.functional.softplus(sign * log_odds).sum(1)
