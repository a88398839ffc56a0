"""Noise-contrastive estimation by ranking: which of the candidates is the real target?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg.energies.base import ConditionalEnergy
from thalweg.energies.mixture import MixtureDensity, TiltedEnergy
from thalweg.objectives.base import Batch, ConditionalObjective
from thalweg.objectives.noise import TargetNoise


class RankingNCE(ConditionalObjective):
    """-log softmax_0[-E(y_k) - log q(y_k)] over the target (k = 0) and M draws from the noise q.

    With ``label_noise`` above 0 this is NCE+: the target is moved by a draw from the noise with every
    standard deviation scaled by that factor, and log q is taken where it lands.

    Args:
        noise_stds: standard deviations of the noise's components, centred on the true target.
        n_samples: M.
        label_noise: the factor beta; 0 is plain NCE.

    Source: [Gustafsson 2020b, eq. 8 and 12].
    """

    def __init__(self, noise_stds: Sequence = (0.1, 0.8), n_samples: int = 1024, label_noise: float = 0.0):
        super().__init__()
        self.noise = TargetNoise(noise_stds)
        self.n_samples = n_samples
        self.label_noise = label_noise

    def per_row(self, energy: ConditionalEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        samples = self.noise.sample(batch.y, self.n_samples, generator)
        target = batch.y.unsqueeze(1)
        if self.label_noise:
            target = target + self.label_noise * self.noise.offsets(batch.y, 1, generator)
        candidates = torch.cat([target, samples], 1)
        return _rank(-energy.given(batch.x)(candidates) - self.noise.log_prob(candidates, batch.y))


class JointProposalNCE(ConditionalObjective):
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

    def per_row(self, energy: ConditionalEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        mixture = self.proposal_features(energy, batch.x)
        samples = self.proposal.sample(mixture, self.n_samples, generator)
        candidates = torch.cat([batch.y.unsqueeze(1), samples], 1)
        values = energy.given(batch.x)(candidates)
        log_noise = self.proposal.log_prob(mixture, candidates)
        ranking = _rank(-values - log_noise.detach())
        if self.training and self.warm_up:
            self.n_updates += 1
            if self.n_updates <= self.warm_up:
                return ranking - log_noise[:, 0]
        log_weights = -values[:, 1:].detach() - log_noise[:, 1:]
        cover = torch.logsumexp(log_weights, 1) - math.log(self.n_samples)
        return ranking + cover


class TiltNCE(ConditionalObjective):
    """Trains a :class:`TiltedEnergy` and its own proposal together: -log q(y_i|x) + ranking of the tilt.

    With E = -log q + r and q as the noise, q cancels in the ranking and leaves -log softmax_0(-r). The
    mixture learns by its own likelihood and stays a sound proposal; r learns what it misses.

    Args:
        n_samples: draws from q for each row.
    """

    def __init__(self, n_samples: int = 64):
        super().__init__()
        self.n_samples = n_samples

    def per_row(self, energy: ConditionalEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        if not isinstance(energy, TiltedEnergy):
            raise TypeError(f"TiltNCE trains a TiltedEnergy, got {type(energy).__name__}")
        features = energy.features(batch.x)
        samples = energy.proposal.sample(features[:3], self.n_samples, generator)
        candidates = torch.cat([batch.y.unsqueeze(1), samples], 1)
        log_q = energy.proposal.log_prob(features[:3], batch.y)
        return _rank(-energy.tilt(features, candidates)) - log_q


def _rank(logits: Tensor) -> Tensor:
    """-log softmax of the first of ``[B, 1 + M]``."""
    return torch.logsumexp(logits, 1) - logits[:, 0]
