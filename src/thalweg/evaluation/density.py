"""How far a planar energy is from a known density, with log Z by a sum over a grid."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from thalweg.data.planar import PlanarProblem
from thalweg.energies.base import Energy


class GridFigures(NamedTuple):
    """Against the truth, in nats, with everything normalised on one grid.

    Attributes:
        kl: KL(truth || model).
        log_normaliser: log Z of the energy over the grid's square.
        cell_masses: the model's mass in the Voronoi cell of each mode (empty without modes).
    """

    kl: float
    log_normaliser: float
    cell_masses: np.ndarray


def grid_figures(energy: Energy, problem: PlanarProblem, n_points: int = 401) -> GridFigures:
    """Sum over ``n_points`` x ``n_points`` cells of the problem's square, in double precision."""
    points, area = grid(problem, n_points)
    log_model = -grid_energies(energy, points)
    log_normaliser = float(np.logaddexp.reduce(log_model) + np.log(area))
    log_truth = problem.log_density(points)
    truth = np.exp(log_truth) * area
    truth = truth / truth.sum()
    kl = float((truth * (log_truth - log_model + log_normaliser)).sum())
    if problem.modes is None:
        return GridFigures(kl, log_normaliser, np.empty(0))
    nearest = ((points[:, None] - problem.modes[None]) ** 2).sum(-1).argmin(1)
    mass = np.exp(log_model - log_normaliser) * area
    return GridFigures(kl, log_normaliser, np.bincount(nearest, mass, len(problem.modes)))


def grid(problem: PlanarProblem, n_points: int) -> tuple[np.ndarray, float]:
    """Centres of the cells ``[n_points^2, 2]`` and the area of one."""
    low, high = problem.bounds
    width = (high - low) / n_points
    axis = low + width * (np.arange(n_points) + 0.5)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2), width**2


def grid_energies(energy: Energy, points: np.ndarray) -> np.ndarray:
    """E at points ``[n, 2]``, in pieces, as doubles."""
    parameter = next(iter([*energy.parameters(), *energy.buffers()]), torch.zeros(()))
    x = torch.as_tensor(points, dtype=parameter.dtype, device=parameter.device)
    with torch.no_grad():
        values: list[Tensor] = [energy(piece) for piece in x.split(20_000)]
    return torch.cat(values).double().cpu().numpy()
