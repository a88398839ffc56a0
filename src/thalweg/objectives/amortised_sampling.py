"""Maximum likelihood without chains: a generator that follows the energy gives the draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from thalweg.energies.base import event_sum, standard_normal
from thalweg.energies.networks.generator import NoisyGenerator
from thalweg.objectives.base import AnyEnergy, Batch, Player, frozen
from thalweg.objectives.generative_adversarial import AgainstGenerator, gradient_penalty

# Width of what the weighted z are drawn from, in posterior standard deviations.
_WIDER = 1.5


class VERA(AgainstGenerator):
    """E(x_i) - mean E(x_m), the x_m drawn by a generator q that lowers KL(q || exp(-E)) = mean E(x_m) - H[q].

    Three players move in turn: the energy, the generator, and a posterior. The gradient of the entropy needs grad
    log q(x), the mean of grad log q(x|z) over the z that x may have come from. These are drawn round the z that it
    did come from, at 1.5 times the posterior's standard deviations, and weighted by q(x|z) p(z) over the density
    that they are drawn from. The posterior learns by the bound on log q(x).

    Args:
        generator: q(x|z) is a Gaussian.
        entropy_weight: of H[q]. With 1 the generator follows the density exp(-E); with less the draws are sharper
            and the energies flatter, as if it were at that temperature.
        penalty: weight of half the squared gradient of the energy at the data, without which energies run away.
        n_draws: of z, for the gradient of the entropy.
        posterior_std: standard deviation of the posterior to begin with.
        learning_rate, generator_learning_rate, betas: see :class:`~thalweg.objectives.GAN`.

    Attributes:
        posterior_log_std: ``[latent_dim]``.

    Raises:
        ValueError: for negative weights, no draws, or a standard deviation that is not positive.
        TypeError: for a generator whose draws have no noise.

    Source: [Grathwohl 2021b, eq. 6 to 9 and alg. 1] and its code, which draws z as wide as the posterior.
    """

    def __init__(
        self,
        generator: NoisyGenerator,
        entropy_weight: float = 1.0,
        penalty: float = 0.1,
        n_draws: int = 20,
        posterior_std: float = 0.1,
        learning_rate: float | None = None,
        generator_learning_rate: float | None = None,
        betas: tuple[float, float] = (0.0, 0.9),
    ):
        super().__init__(generator, learning_rate, generator_learning_rate, betas)
        if not isinstance(generator, NoisyGenerator):
            raise TypeError(
                f"VERA needs draws with noise, whose density is known given z: take a NoisyGenerator, got "
                f"{type(generator).__name__}"
            )
        if not (entropy_weight >= 0 and penalty >= 0):
            raise ValueError(
                f"entropy_weight and penalty must not be negative, got {entropy_weight} and {penalty}"
            )
        if n_draws < 1 or not posterior_std > 0:
            raise ValueError(
                f"n_draws must be at least 1 and posterior_std positive, got {n_draws} and {posterior_std}"
            )
        self.entropy_weight, self.penalty, self.n_draws = entropy_weight, penalty, n_draws
        self.posterior_log_std = nn.Parameter(torch.full((generator.latent_dim,), math.log(posterior_std)))

    generator: NoisyGenerator

    def players(self, energy: AnyEnergy) -> list[Player]:
        rate = self.learning_rate
        own = Player("posterior", [self.posterior_log_std], learning_rate=rate, betas=self.betas)
        return [*super().players(energy), own]

    def player_loss(
        self, player: str, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None
    ) -> Tensor:
        if player == "energy":
            return super().player_loss(player, energy, batch, generator)
        z, x = self._drawn(len(batch.y), generator, with_graph=player == "generator")
        if player == "posterior":
            return self._negative_bound(z, x, generator)
        given = batch.given(energy)
        with frozen(energy):
            value = given(x)
        score = self.score(z, x.detach(), generator)
        # Its gradient is that of -H[q]: the part that comes from log q itself has a mean of 0.
        followed = event_sum(score * x, given.event_ndim)
        self.metrics["size of the score"] = float(score.flatten(1).norm(dim=1).mean())
        self.metrics["standard deviation of the generator"] = float(self.generator.log_std.detach().exp().mean())
        return value + self.entropy_weight * followed

    def _energy_loss(self, of_data: Tensor, of_drawn: Tensor, batch: Batch) -> Tensor:
        self.metrics = {
            "energy of data": float(of_data.detach().mean()),
            "energy gap": float((of_data - of_drawn).detach().mean()),
        }
        return of_data - of_drawn

    def _penalised(
        self, loss: Tensor, energy: AnyEnergy, batch: Batch, drawn: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        return loss + self.penalty * gradient_penalty(batch.given(energy), batch.y) if self.penalty else loss

    def _drawn(self, n: int, generator: torch.Generator | None, with_graph: bool) -> tuple[Tensor, Tensor]:
        """z ``[n, latent_dim]`` and draws x ``[n, *event]`` of it."""
        with torch.set_grad_enabled(with_graph and torch.is_grad_enabled()):
            z = standard_normal((n, self.generator.latent_dim), self.posterior_log_std, generator).detach()
            return z, self.generator.noisy(self.generator(z), generator)

    @torch.no_grad()
    def score(self, z: Tensor, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """An estimate of grad log q(x) ``[N, *event]`` of draws x ``[N, *event]`` that came from z."""
        network, log_std = self.generator, self.posterior_log_std
        own = standard_normal((self.n_draws, *z.shape), z, generator)
        # As wide as the posterior, the weights of draws far out would have no variance: too few are drawn there.
        others = z + _WIDER * log_std.exp() * own
        means = network(others.flatten(0, 1))
        copies = x.expand(self.n_draws, *x.shape).reshape(means.shape)
        log_prob = network.log_prob_given(copies, means).reshape(self.n_draws, -1)
        log_weights = log_prob + 0.5 * (own.square() - others.square()).sum(-1)
        weights = log_weights.softmax(0).reshape(self.n_draws, len(x), *([1] * (x.dim() - 1)))
        mean = (weights * means.reshape(self.n_draws, *x.shape)).sum(0)
        return (mean - x) / (2 * network.log_std).exp()

    def _negative_bound(self, z: Tensor, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """-log q(x, z') - H[N(z, std^2)] ``[N]``, z' drawn from that Gaussian; only its std has a gradient."""
        network, log_std = self.generator, self.posterior_log_std
        other = z + log_std.exp() * standard_normal(z.shape, z, generator)
        with frozen(network):
            bound = network.log_prob_given(x, network(other)) - 0.5 * other.square().sum(-1) + log_std.sum()
        self.metrics["standard deviation of the posterior"] = float(log_std.detach().exp().mean())
        return -bound
