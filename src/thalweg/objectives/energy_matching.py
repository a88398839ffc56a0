"""Energy matching: an energy whose gradient carries noise to the data, finished by a little contrast."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from thalweg.energies.base import event_sum
from thalweg.energies.densities import ConditionalDensity, Density
from thalweg.energies.labelled import InputsGivenLabels
from thalweg.objectives.base import AnyEnergy, Batch, Loss, Objective, condition, continuous, evaluating, mean_loss
from thalweg.objectives.likelihood import dequantise
from thalweg.sampling.chain import run_chain
from thalweg.sampling.langevin import Langevin


class EnergyMatching(Objective):
    """|grad E(y_t) + y_i - z_i|^2 / D on the lines y_t = (1 - t) z_i + t y_i from noise z_i to the data y_i.

    Down the gradient of the energy the noise then flows to the data in unit time, as in flow matching, but the
    velocity is that of one energy without a time. The noise is paired with the data of the batch by optimal
    transport, that is, with the least sum of squared distances, and with rows of equal x only; lines then cross
    less, and one gradient can fit them all.

    After a warm-up by this alone, contrast * (E(y_i) - mean E(chains)) is added. The chains are Langevin dynamics
    of time step ``step_size``: half of them start from noise, without temperature until they have arrived (t = 1)
    and at the temperature afterwards, half of them at the data. Where the flow ends, the energy then has a valley,
    of which exp(-E / temperature) is the density, and chains can go on for as long as they like.

    Args:
        noise: where lines start: a density with draws, or one given x.
        n_rows: how many rows of a batch the loss is taken over, of which all are paired; None takes them all. The
            more are paired, the less the lines cross, and pairs are cheap beside gradients.
        contrast: weight of the difference of energies after the warm-up; 0 leaves it out.
        warm_up: updates before it.
        temperature: of the chains.
        n_steps, step_size: number and time of the chains' steps; those from noise need 1 / step_size steps to
            arrive.
        n_chains: number of chains; None is half of ``n_rows``.
        resolution: spacing of the grid that the data are rounded to (grey levels): uniform noise of that width is
            added afresh to the data at every step.
        label_weight: weight of -log p(x|y), the softmax over labels x of -E(y), for the energy of inputs y given
            labels. Gradients alone do not say under which label an input has the lowest energy.

    Source: [Balcerak 2025, alg. 1 and 2]; pairs within a batch [Tong 2024].
    """

    n_updates: Tensor

    def __init__(
        self,
        noise: Density | ConditionalDensity,
        *,
        n_rows: int | None = None,
        contrast: float = 0.0,
        warm_up: int = 0,
        temperature: float = 0.01,
        n_steps: int = 40,
        step_size: float = 0.05,
        n_chains: int | None = None,
        resolution: float = 0.0,
        label_weight: float = 0.0,
    ):
        super().__init__()
        if n_rows is not None and n_rows < 1:
            raise ValueError(f"n_rows must be at least 1, got {n_rows}")
        self.noise = noise
        self.n_rows, self.n_chains = n_rows, n_chains
        self.contrast, self.warm_up, self.temperature = contrast, warm_up, temperature
        self.n_steps, self.step_size = n_steps, step_size
        self.resolution, self.label_weight = resolution, label_weight
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.long))

    def forward(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None = None) -> Loss:
        batch, start = self._paired(batch, generator)
        kept = slice(0, self.n_rows)
        batch, start = batch.rows(kept), start[kept]
        return Loss(mean_loss(self._losses(energy, batch, start, generator), batch), self.metrics)

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        batch, start = self._paired(batch, generator)
        return self._losses(energy, batch, start, generator)

    def _paired(self, batch: Batch, generator: torch.Generator | None) -> tuple[Batch, Tensor]:
        """The batch, with noise of the grid's width, and where the line to each of its rows starts."""
        if self.resolution:
            batch = batch._replace(y=dequantise(batch.y, self.resolution, generator))
        with torch.no_grad():
            noise = self._drawn(batch, generator)
            return batch, noise[nearest_pairs(noise, batch.y, batch.x)]

    def _drawn(self, rows: Batch, generator: torch.Generator | None) -> Tensor:
        """Noise for these rows, not paired yet ``[B, *event]``."""
        if isinstance(self.noise, ConditionalDensity):
            return self.noise.draws(self.noise.features(rows.x), 1, generator)[:, 0]
        return self.noise.sample((len(rows.y),), generator)

    def _losses(self, energy: AnyEnergy, batch: Batch, start: Tensor, generator: torch.Generator | None) -> Tensor:
        given, y = continuous(self, energy, batch), batch.y
        t = torch.rand((len(y), *([1] * given.event_ndim)), generator=generator, device=y.device, dtype=y.dtype)
        score = given.score(torch.lerp(start, y, t))
        mismatch = event_sum((y - start - score).square(), given.event_ndim) / math.prod(y.shape[1:])
        self.metrics = {"velocity error": float(mismatch.detach().mean())}
        if self.label_weight:
            mismatch = mismatch + self.label_weight * self._of_labels(energy, batch)
        warm = int(self.n_updates) < self.warm_up
        if self.training:
            self.n_updates += 1
        if warm or not self.contrast:
            return mismatch
        rows, ends = self._chains(energy, batch, start, generator)
        negative = condition(energy, rows.x)(ends).mean()
        gap = batch.given(energy)(y) - negative
        self.metrics["energy gap"] = float(gap.detach().mean())
        return mismatch + self.contrast * gap

    def check(self, energy: AnyEnergy, batch: Batch) -> None:
        super().check(energy, batch)
        if self.label_weight and not isinstance(energy, InputsGivenLabels):
            raise TypeError(
                f"label_weight is for an energy of inputs given labels (LabelledEnergy.of_inputs()), got "
                f"{type(energy).__name__}"
            )

    def _of_labels(self, energy: AnyEnergy, batch: Batch) -> Tensor:
        """-log p(x|y) of each row's label ``[B]``."""
        assert isinstance(energy, InputsGivenLabels)
        value = F.cross_entropy(-energy.labelled.energies(batch.y), batch.x.long(), reduction="none")
        self.metrics["log loss of labels"] = float(value.detach().mean())
        return value

    def _chains(
        self, energy: AnyEnergy, batch: Batch, start: Tensor, generator: torch.Generator | None
    ) -> tuple[Batch, Tensor]:
        """The rows whose x the chains have, and where these end."""
        n = min(len(batch.y), self.n_chains or max(2, len(batch.y) // 2))
        rows = batch.rows(slice(0, n))
        # Noise that is not paired with these rows: chains must arrive from anywhere.
        position = self._drawn(rows, generator)
        cold = Langevin(self.step_size, 0.0)
        hot = Langevin(self.step_size, math.sqrt(2 * self.temperature * self.step_size))
        n_cold = min(self.n_steps, math.ceil(1 / self.step_size - 1e-9) - 1)
        with evaluating(energy), torch.no_grad():
            for first, start, n_before in ((0, rows.y, 0), (1, position, n_cold)):
                own = slice(first, None, 2)
                given = condition(energy, None if rows.x is None else rows.x[own])
                end = run_chain(cold, given, start[own], n_before, generator, check=False).position
                position[own] = run_chain(
                    hot, given, end, self.n_steps - n_before, generator, check=False
                ).position
        return rows, position


def nearest_pairs(noise: Tensor, y: Tensor, x: Tensor | None = None, most: int = 256) -> Tensor:
    """Which noise goes with each row, one to one ``[B]``, so that the squared distances sum up to the least.

    Args:
        noise: ``[B, *event]``.
        y: rows ``[B, *event]``.
        x: what rows are given ``[B, *x_event]``; noise is dealt out at random to the groups of equal x.
        most: how many rows are paired together: the time grows with the cube of their number, so that larger
            groups are dealt into parts.
    """
    found = torch.arange(len(y), device=y.device)
    groups = torch.zeros(len(y), dtype=torch.long) if x is None else torch.unique(x, dim=0, return_inverse=True)[1]
    # On the CPU, where the assignment is solved, differences of large numbers are exact enough in double.
    z, rows = noise.detach().flatten(1).double().cpu(), y.detach().flatten(1).double().cpu()
    # A row without its like keeps its noise.
    for group in torch.nonzero(torch.bincount(groups.cpu()) > 1)[:, 0]:
        for own in torch.nonzero(groups == group)[:, 0].cpu().split(most):
            cost = torch.cdist(rows[own], z[own]).square().numpy()
            found[own] = own[torch.from_numpy(linear_sum_assignment(cost)[1])].to(found.device)
    return found
