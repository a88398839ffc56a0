"""An energy against a generator: the energy is lowered at data and raised at the generator's draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from thalweg.energies.base import Energy
from thalweg.energies.networks.autoencoder import AutoencoderEnergy
from thalweg.energies.networks.generator import Generator
from thalweg.objectives.base import (
    Adversarial,
    AnyEnergy,
    Batch,
    Player,
    check_draws,
    continuous,
    evaluating,
    frozen,
    mean_loss,
)


class AgainstGenerator(Adversarial):
    """The turns of an energy and a generator; a subclass says what each minimises."""

    # Updates of the energy before the first round.
    warm_up = 0

    def __init__(
        self,
        generator: Generator,
        learning_rate: float | None,
        generator_learning_rate: float | None,
        betas: tuple[float, float],
    ):
        super().__init__()
        self.generator = generator
        self.learning_rate, self.generator_learning_rate = learning_rate, generator_learning_rate
        self.betas = betas

    def check(self, energy: AnyEnergy, batch: Batch) -> None:
        """As :meth:`Objective.check`; the generator's draws must have the shape of the data, too."""
        if batch.x is not None:
            raise TypeError(
                f"{type(self).__name__} trains an energy without inputs: the batch must have no x (None)"
            )
        super().check(energy, batch)
        continuous(self, energy, batch.rows(slice(0, 2)))
        with torch.no_grad(), evaluating(self.generator):
            made = self.generator.draw(2, torch.Generator(_device_of(self.generator)).manual_seed(0))
        check_draws(made, batch)

    def players(self, energy: AnyEnergy) -> list[Player]:
        weights, own = list(energy.parameters()), list(self.generator.parameters())
        rate = self.learning_rate if self.generator_learning_rate is None else self.generator_learning_rate
        return [
            Player("energy", weights, warm_up=self.warm_up, learning_rate=self.learning_rate, betas=self.betas),
            Player("generator", own, learning_rate=rate, betas=self.betas),
        ]

    def player_loss(
        self, player: str, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None
    ) -> Tensor:
        given = batch.given(energy)
        if player == "generator":
            drawn = self.generator.draw(len(batch.y), generator)
            with frozen(energy):
                return self._generator_loss(given, drawn)
        with torch.no_grad():
            drawn = self.generator.draw(len(batch.y), generator)
        of_data, of_drawn = given(torch.cat([batch.y, drawn])).chunk(2)
        return self._penalised(self._energy_loss(of_data, of_drawn, batch), energy, batch, drawn, generator)

    def _penalised(
        self, loss: Tensor, energy: AnyEnergy, batch: Batch, drawn: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """The energy's loss ``[B]``, with a penalty where there is one."""
        return loss

    def _energy_loss(self, of_data: Tensor, of_drawn: Tensor, batch: Batch) -> Tensor:
        """The energy's loss ``[B]``, from the energies of data and of as many draws, each ``[B]``."""
        raise NotImplementedError

    def _generator_loss(self, energy: Energy, drawn: Tensor) -> Tensor:
        """The generator's loss ``[B]``, from its draws ``[B, *event]``: their energy."""
        return energy(drawn)


class GAN(AgainstGenerator):
    """The energy is minus the logit of a classifier of data against the generator's draws.

    The energy minimises softplus(E(x)) + softplus(-E(G(z))), the generator softplus(E(G(z))), which does not
    saturate where the draws are told apart easily. The best energy is log p_G(x) - log p_data(x), the logarithm of
    the ratio of the densities: it corrects the generator rather than describing the data.

    Args:
        generator: makes the draws.
        learning_rate, generator_learning_rate: of the energy and of the generator; None is that of the plan, for
            the generator that of the energy.
        betas: the two decay rates of Adam, of both.

    Source: [Goodfellow 2014, eq. 1 and sec. 3].
    """

    def __init__(
        self,
        generator: Generator,
        learning_rate: float | None = None,
        generator_learning_rate: float | None = None,
        betas: tuple[float, float] = (0.5, 0.999),
    ):
        super().__init__(generator, learning_rate, generator_learning_rate, betas)

    def _energy_loss(self, of_data: Tensor, of_drawn: Tensor, batch: Batch) -> Tensor:
        self.metrics = {"energy of data": _mean(of_data), "energy of draws": _mean(of_drawn)}
        return softplus(of_data) + softplus(-of_drawn)

    def _generator_loss(self, energy: Energy, drawn: Tensor) -> Tensor:
        return softplus(energy(drawn))


class EBGAN(AgainstGenerator):
    """The energy minimises E(x) + max(0, margin - E(G(z))), the generator E(G(z)).

    Draws above the margin are left alone. With a pulling-away term the generator also minimises the mean squared
    cosine between the codes of its draws, which keeps these from becoming all alike.

    Args:
        generator: makes the draws.
        margin: energy beyond which draws are not raised further, in the units of the energy. It must exceed what
            the data can be brought down to; two thirds of the energy of data that are all reconstructed by their
            mean are a start, by the Euclidean distance.
        pulling_away: weight of that term; above 0 the energy must be an
            :class:`~thalweg.energies.networks.autoencoder.AutoencoderEnergy`.
        learning_rate, generator_learning_rate, betas: see :class:`GAN`.

    Raises:
        ValueError: for a margin that is not positive or a negative weight.

    Source: [Zhao 2017, eq. 1 to 3 and sec. 2.4].
    """

    def __init__(
        self,
        generator: Generator,
        margin: float,
        pulling_away: float = 0.1,
        learning_rate: float | None = None,
        generator_learning_rate: float | None = None,
        betas: tuple[float, float] = (0.5, 0.999),
    ):
        super().__init__(generator, learning_rate, generator_learning_rate, betas)
        if not margin > 0:
            raise ValueError(f"margin must be positive, got {margin}")
        if not pulling_away >= 0:
            raise ValueError(f"pulling_away must not be negative, got {pulling_away}")
        self.margin, self.pulling_away = margin, pulling_away

    def check(self, energy: AnyEnergy, batch: Batch) -> None:
        super().check(energy, batch)
        if self.pulling_away and not isinstance(energy, AutoencoderEnergy):
            raise TypeError(
                f"the pulling-away term needs codes, and {type(energy).__name__} has none: take an "
                "AutoencoderEnergy, or pulling_away=0"
            )

    def _energy_loss(self, of_data: Tensor, of_drawn: Tensor, batch: Batch) -> Tensor:
        self.metrics = {
            "energy of data": _mean(of_data),
            "energy of draws": _mean(of_drawn),
            "draws above the margin": _mean((of_drawn > self.margin).to(of_drawn.dtype)),
        }
        return of_data + (self.margin - of_drawn).relu()

    def _generator_loss(self, energy: Energy, drawn: Tensor) -> Tensor:
        if not self.pulling_away:
            return energy(drawn)
        assert isinstance(energy, AutoencoderEnergy)
        energies, codes = energy.energies_and_codes(drawn)
        return energies + self.pulling_away * pulling_away_term(codes)


class BEGAN(AgainstGenerator):
    """The energy minimises E(x) - k E(G(z)), the generator E(G(z)); k keeps E(G(z)) near gamma E(x).

    After each of the energy's updates k moves by k_rate (gamma mean E(x) - mean E(G(z))), within [0, 1].

    Args:
        generator: makes the draws.
        gamma: the ratio of the draws' energy to that of the data which the game is kept at, in (0, 1]. The lower
            it is, the sharper and the more alike are the draws.
        k_rate: how fast k moves.
        learning_rate, generator_learning_rate, betas: see :class:`GAN`.

    Attributes:
        k: weight of the draws in the energy's loss, 0 to begin with.

    Raises:
        ValueError: for a gamma outside (0, 1], or a rate that is not positive.

    Source: [Berthelot 2017, sec. 3.3 and 3.4].
    """

    k: Tensor

    def __init__(
        self,
        generator: Generator,
        gamma: float = 0.5,
        k_rate: float = 1e-3,
        learning_rate: float | None = None,
        generator_learning_rate: float | None = None,
        betas: tuple[float, float] = (0.5, 0.999),
    ):
        super().__init__(generator, learning_rate, generator_learning_rate, betas)
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must be above 0 and at most 1, got {gamma}")
        if not k_rate > 0:
            raise ValueError(f"k_rate must be positive, got {k_rate}")
        self.gamma, self.k_rate = gamma, k_rate
        self.register_buffer("k", torch.zeros(()))

    def _energy_loss(self, of_data: Tensor, of_drawn: Tensor, batch: Batch) -> Tensor:
        loss = of_data - self.k.clone() * of_drawn
        real = float(mean_loss(of_data.detach(), batch))
        off = self.gamma * real - float(mean_loss(of_drawn.detach(), batch))
        if self.training:
            self.k.add_(self.k_rate * off).clamp_(0.0, 1.0)
        self.metrics = {
            "convergence": real + abs(off),
            "balance": off / real if real else 0.0,
            "k": float(self.k),
        }
        return loss


class MAGAN(AgainstGenerator):
    """EBGAN without the pulling-away term, with a margin that falls as the energy learns.

    The energy first learns the data alone; the margin starts at their mean energy. After every ``margin_every``
    rounds it falls to the mean energy of the data in these rounds if that is lower than the margin, and lower than
    the mean energy of the draws, and the draws' energy has risen since the look before (at the first look it has
    not).

    Args:
        generator: makes the draws.
        margin_every: rounds between two looks at the margin, in the paper an epoch.
        warm_up: updates in which the energy learns the data alone, in the paper two epochs.
        margin: where the margin starts; None is the mean energy of the data in the last updates of the warm-up, or
            without a warm-up in the first batch.
        learning_rate, generator_learning_rate, betas: see :class:`GAN`.

    Attributes:
        margin: the margin now; infinite before it is first known.

    Raises:
        ValueError: for a margin that is not positive, or numbers of updates that can't be.

    Source: [Wang 2017, alg. 1].
    """

    margin: Tensor
    sums: Tensor
    n_seen: Tensor
    of_draws_before: Tensor

    def __init__(
        self,
        generator: Generator,
        margin_every: int,
        warm_up: int = 0,
        margin: float | None = None,
        learning_rate: float | None = None,
        generator_learning_rate: float | None = None,
        betas: tuple[float, float] = (0.5, 0.999),
    ):
        super().__init__(generator, learning_rate, generator_learning_rate, betas)
        if margin_every < 1 or warm_up < 0:
            raise ValueError(
                f"margin_every must be at least 1 and warm_up at least 0, got {margin_every} and {warm_up}"
            )
        self.margin_every, self.warm_up = margin_every, warm_up
        if margin is not None and not margin > 0:
            raise ValueError(f"margin must be positive, got {margin}")
        self.register_buffer("margin", torch.tensor(torch.inf if margin is None else float(margin)))
        # Mean energies of batches of data and of draws, added up since the last look.
        self.register_buffer("sums", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("n_seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("of_draws_before", torch.tensor(torch.inf, dtype=torch.float64))

    def warm_up_loss(
        self, player: str, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None
    ) -> Tensor:
        of_data = batch.given(energy)(batch.y)
        if self.training:
            if int(self.n_seen) >= self.margin_every:
                # What the energy of the data was longer ago says little of the first margin.
                self._forget()
            self._add(float(mean_loss(of_data.detach(), batch)), 0.0)
        self.metrics = {"energy of data": _mean(of_data)}
        return of_data

    def _energy_loss(self, of_data: Tensor, of_drawn: Tensor, batch: Batch) -> Tensor:
        real, made = (float(mean_loss(e.detach(), batch)) for e in (of_data, of_drawn))
        if bool(torch.isinf(self.margin)):
            n = int(self.n_seen)
            first = float(self.sums[0]) / n if n else real
            if not self.training:
                return of_data + (first - of_drawn).relu()
            self.margin.fill_(first)
            self._forget()
        loss = of_data + (self.margin.clone() - of_drawn).relu()
        if self.training:
            self._add(real, made)
            if int(self.n_seen) >= self.margin_every:
                self._look()
        self.metrics = {"energy of data": real, "energy of draws": made, "margin": float(self.margin)}
        return loss

    def _add(self, real: float, made: float) -> None:
        self.sums += torch.tensor([real, made], dtype=self.sums.dtype, device=self.sums.device)
        self.n_seen += 1

    def _forget(self) -> None:
        self.sums.zero_()
        self.n_seen.zero_()

    def _look(self) -> None:
        """Lower the margin, if it is to be lowered, and begin new sums."""
        real, made = (self.sums / self.n_seen).tolist()
        if real < float(self.margin) and real < made and made > float(self.of_draws_before):
            self.margin.fill_(real)
        self.of_draws_before.fill_(made)
        self._forget()


class KALE(AgainstGenerator):
    """The energy of a generalised EBM: it corrects a generator by likelihood, and the generator follows.

    The energy, with a learned constant A, minimises E(x) + A + exp(-E(G(z)) - A) - 1. At the best A, log mean
    exp(-E(G(z))), that is -log of exp(-E) p_G / Z at the data: the negative log-likelihood of p_G tilted by the
    energy. The generator goes the other way, and minimises -log mean exp(-E(G(z))). Both are what the model is
    afterwards: its draws are the generator's, corrected by :class:`~thalweg.sampling.LatentSampler`. Where
    exp(-E - A), a ratio of densities, is above 20, the tangent takes the place of the exponential.

    Args:
        generator: makes the draws.
        penalty: weight of half the squared gradient of the energy, at random places between data and draws.
        energy_steps: updates of the energy for one of the generator.
        warm_up: updates of the energy before the first of the generator.
        learning_rate, generator_learning_rate, betas: see :class:`GAN`.

    Attributes:
        log_normaliser: A.

    Raises:
        ValueError: for a negative penalty, or numbers of updates that can't be.

    Source: [Arbel 2021, eq. 7 to 9 and alg. 1].
    """

    def __init__(
        self,
        generator: Generator,
        penalty: float = 0.1,
        energy_steps: int = 1,
        warm_up: int = 100,
        learning_rate: float | None = None,
        generator_learning_rate: float | None = None,
        betas: tuple[float, float] = (0.0, 0.9),
    ):
        super().__init__(generator, learning_rate, generator_learning_rate, betas)
        if not penalty >= 0:
            raise ValueError(f"penalty must not be negative, got {penalty}")
        if energy_steps < 1 or warm_up < 0:
            raise ValueError(
                f"energy_steps must be at least 1 and warm_up at least 0, got {energy_steps} and {warm_up}"
            )
        self.penalty, self.energy_steps, self.warm_up = penalty, energy_steps, warm_up
        self.log_normaliser = nn.Parameter(torch.zeros(()))

    def players(self, energy: AnyEnergy) -> list[Player]:
        first, second = super().players(energy)
        weights = [*first.parameters, self.log_normaliser]
        return [first._replace(parameters=weights, n_steps=self.energy_steps), second]

    def _energy_loss(self, of_data: Tensor, of_drawn: Tensor, batch: Batch) -> Tensor:
        log_z = self.log_normaliser
        # A generator finds energies far below those of the data: one such draw would be all that is learned of.
        ratio = linearised_exp(-of_drawn - log_z)
        self.metrics = {
            "energy of data": _mean(of_data + log_z),
            "energy of draws": _mean(of_drawn + log_z),
            "log normaliser": float(log_z.detach()),
        }
        return of_data + log_z + ratio - 1

    def _penalised(
        self, loss: Tensor, energy: AnyEnergy, batch: Batch, drawn: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        if not self.penalty:
            return loss
        shape = (len(drawn), *([1] * (drawn.dim() - 1)))
        share = torch.rand(shape, generator=generator, device=drawn.device, dtype=drawn.dtype)
        return loss + self.penalty * gradient_penalty(batch.given(energy), torch.lerp(drawn, batch.y, share))

    def _generator_loss(self, energy: Energy, drawn: Tensor) -> Tensor:
        value = energy(drawn)
        return (math.log(len(drawn)) - torch.logsumexp(-value, 0)).expand(len(drawn))


def linearised_exp(t: Tensor, high: float = 3.0) -> Tensor:
    """exp(t), and beyond ``high`` its tangent there."""
    return t.clamp(max=high).exp() + math.exp(high) * (t - high).relu()


def gradient_penalty(energy: Energy, x: Tensor) -> Tensor:
    """Half the squared norm of the energy's gradient at x ``[B, *event]``, for each row ``[B]``."""
    return 0.5 * energy.score(x).flatten(1).square().sum(1)


def pulling_away_term(codes: Tensor) -> Tensor:
    """For each code of ``[B, K]`` the mean squared cosine with the others ``[B]``; 0 for a single one.

    It is 1 where all codes have one direction, and 0 where all are orthogonal.

    Source: [Zhao 2017, eq. 3], whose term is the mean of these.
    """
    directions = nn.functional.normalize(codes, dim=1)
    squares = (directions @ directions.t()).square()
    others = squares - torch.diag_embed(squares.diagonal())
    return others.sum(1) / max(1, len(codes) - 1)


def _mean(t: Tensor) -> float:
    return float(t.detach().mean())


def _device_of(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))
