"""Maximum likelihood of conditionals of columns, given the columns before them or any others."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.energies.base import Features
from thalweg.energies.densities.any_order import ConditionalBlock
from thalweg.energies.densities.tilted import TiltedMixtures
from thalweg.objectives.base import AnyEnergy, Batch, Objective
from thalweg.objectives.likelihood import rounded_log_prob


class MaskedLikelihood(Objective):
    """-log p(x_d | some of the other columns), exact, for the networks of a :class:`ConditionalBlock`.

    In some of the rows of a batch a network is given a random part of all other columns, of a random size, as
    filling gaps, conditions and questions ask; in the others the columns before its own, as the chain of the joint
    density asks.

    A batch has no x; its y ``[B, D + 1]`` are rows, NaN where unknown, and the number of each row's fold. Network
    k of each column learns from the rows of all folds but k. Numbers that are rounded are spread over their cells
    afresh at every step.

    Args:
        random_part: part of the rows whose given columns are random.
        roughness: weight of the penalty on the tilts.

    Source: random sets of given columns [Uria 2014]; of random size [Strauss 2021].
    """

    def __init__(self, random_part: float = 0.5, roughness: float = 5e-3):
        super().__init__()
        self.random_part, self.roughness = random_part, roughness

    def check(self, energy: AnyEnergy, batch: Batch) -> None:
        if not isinstance(energy, ConditionalBlock):
            raise TypeError(f"MaskedLikelihood trains a ConditionalBlock, got {type(energy).__name__}")

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        """``[B, K * n_members]``, column by column; 0 where a cell is unknown or of the network's own fold."""
        assert isinstance(energy, ConditionalBlock)
        x, fold = batch.y[:, :-1], batch.y[:, -1]
        given = given_columns(energy, len(x), self.random_part, generator)
        features = energy.encoding(x) * given[..., energy.encoding.owner]
        loss, roughness = block_losses(energy, features[:, None], x[:, energy.which].T[..., None], generator)
        if self.roughness:
            loss = loss + self.roughness * roughness
        learned = fold[:, None] != torch.arange(energy.n_members, device=x.device)
        counted = learned & ~x[:, energy.which].T[..., None].isnan()
        return torch.where(counted, loss, 0.0).transpose(0, 1).flatten(1)


def given_columns(
    energy: ConditionalBlock, n_rows: int, random_part: float, generator: torch.Generator | None
) -> Tensor:
    """Which columns each column of a block is given, 0 or 1 ``[K, n_rows, D]``: at random in the first rows."""
    device, n_columns = energy.others.device, energy.encoding.n_columns
    own = torch.tensor(energy.which, device=device)
    before = (torch.arange(n_columns, device=device) < own[:, None]).float()
    given = before[:, None].repeat(1, n_rows, 1)
    n_random = round(random_part * n_rows)
    if n_random:
        size = torch.rand((n_random, 1), generator=generator, device=device)
        some = torch.rand((n_random, n_columns), generator=generator, device=device) < size
        given[:, :n_random] = some.float()
    return given


def block_losses(
    energy: ConditionalBlock, features: Tensor, x: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """-log p of each network, and how rough its tilt is, both ``[K, B, n_members]``.

    Args:
        features: ``[K, 1 or n_members, B, width]``.
        x: values ``[K, B, 1 or n_members]``, NaN where unknown, which counts as 0.
        generator: of the places of rounded numbers in their cells.
    """
    values = torch.nan_to_num(x, nan=0.0)
    cells = x.new_tensor([0.0 if c.n_levels else c.cell for c in energy.columns])[:, None, None]
    place = None
    if cells.any() and not energy.columns[0].atoms:
        place = values + cells * (torch.rand(values.shape, generator=generator, device=x.device) - 0.5)
    out = energy.outputs(features)
    found = energy.distribution.features(out.flatten(0, 1))
    if energy.columns[0].atoms:
        loss = -_beside_atoms(energy, found, values, generator)
    else:
        loss = -energy.member_log_prob(found, values, energy.columns, place)
    if not isinstance(energy.distribution, TiltedMixtures) or not energy.distribution.n_tilts:
        return loss, torch.zeros_like(loss)
    return loss, energy.distribution.roughness(found).reshape(loss.shape)


def _beside_atoms(
    energy: ConditionalBlock, found: Features, x: Tensor, generator: torch.Generator | None
) -> Tensor:
    """log p ``[1, B, n_members]`` of the one column of a block, which has atoms and may have limits."""
    column, centre = energy.columns[0], x[0].expand(-1, energy.n_members)
    y = torch.asinh(centre) if column.curved else centre
    log_prob = rounded_log_prob(energy.distribution, found, y, column.cell, generator, column.curved)
    at = energy.distribution.at_atoms(y).any(-1) & (not column.cell)
    slope = 0.5 * torch.log1p(centre.square()) if column.curved else torch.zeros_like(centre)
    return (log_prob - torch.where(at, 0.0, slope))[None]
