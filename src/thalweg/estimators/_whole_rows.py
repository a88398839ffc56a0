"""Parts of an energy of whole rows: its columns, importance samples, the held-out figure, log Z, resampling."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from thalweg.data.columns import only_numbers
from thalweg.energies.base import Energy
from thalweg.energies.densities import Density, GaussianMixtureEnergy, fit_gaussian_mixture
from thalweg.estimators._base import check_names
from thalweg.estimators._held_out import NestedFigure
from thalweg.estimators._normaliser import Normaliser
from thalweg.estimators._rescaled import Whitened
from thalweg.inference.importance import log_normaliser
from thalweg.sampling.annealing import bracket_log_normaliser
from thalweg.sampling.diagnostics import LARGEST_PARETO_K

# Of annealing, each way; and the steps that rows of data are moved by before the way back.
_N_CHAINS, _N_BURN_IN = 256, 50


class HeldOutLikelihood(NestedFigure):
    """Held-out negative log-likelihood, log Z by the same importance samples every time.

    Args:
        data: standardised rows ``[n, D]``.
        held_out: numbers of those that are held out, in random order; the first 4,096 judge.
    """

    max_rows = 4096

    def __init__(self, data: Tensor, held_out: np.ndarray, proposal: Density, seed: int, n_samples: int = 4096):
        self.rows = torch.from_numpy(held_out[None, : self.max_rows].copy())
        samples = proposal.sample(n_samples, torch.Generator().manual_seed(seed))
        self.places = torch.cat([data[self.rows[0]], samples])
        with torch.no_grad():
            self.log_proposal = proposal.log_prob(samples)

    def _of_rows(self, energy: nn.Module) -> tuple[Tensor, Tensor]:
        values, log_z = self._values(energy)
        return (values + log_z)[:, None], values.new_full((len(values), 1), 1 / len(values))

    def _values(self, energy: nn.Module) -> tuple[Tensor, Tensor]:
        """Energies of the rows ``[rows]``, and log Z."""
        device = next((p.device for p in energy.parameters()), self.places.device)
        self.places, self.log_proposal = self.places.to(device), self.log_proposal.to(device)
        values, n_rows = energy(self.places), self.rows.shape[1]
        log_weights = -values[n_rows:] - self.log_proposal
        return values[:n_rows], torch.logsumexp(log_weights, 0) - math.log(len(log_weights))

    def log_prob_of_rows(self, energy: nn.Module, log_normaliser: float, n_rows: int) -> np.ndarray:
        """log p of each training row ``[n_rows]``, nested (see :class:`NestedFigure`); NaN of rows learned from.

        Args:
            energy: as training left it.
            log_normaliser: log Z of it by better means: what the samples miss there they miss alike elsewhere.
        """
        with torch.no_grad():
            missed = log_normaliser - float(self._values(energy)[1])
        return -self.nested_rows(n_rows).squeeze(1).numpy() - missed


def mixture_proposal(data: Tensor, seed: int) -> GaussianMixtureEnergy:
    """Where importance samples come from: a mixture fitted to the data, and one wide Gaussian as a safety net."""
    n_components = max(1, min(10, len(data) // (10 * data.shape[1])))
    wide = GaussianMixtureEnergy.from_moments(data, 1.5)
    if len(data) < 2:
        return wide
    mixture = fit_gaussian_mixture(data, n_components, seed)
    weights = torch.cat([0.8 * mixture.log_weights.exp(), torch.tensor([0.2])])
    return GaussianMixtureEnergy(
        torch.cat([mixture.means, wide.means]), torch.cat([1.1 * mixture.scales, wide.scales]), weights
    )


def resampled(energy: Energy, proposal: Density, candidates: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Candidates drawn by their weights: by a power of these, if few would have nearly all the weight."""
    with torch.no_grad():
        log_weights = -energy(candidates) - proposal.log_prob(candidates)
    low, high = 0.0, 1.0
    for power in [1.0, *([None] * 12)]:
        middle = 0.5 * (low + high) if power is None else power
        weights = torch.softmax(middle * log_weights, 0)
        enough = 1 / weights.square().sum() >= min(n, 1000)
        if enough and middle == 1.0:
            break
        low, high = (middle, high) if enough else (low, middle)
    return candidates[torch.multinomial(weights, n, replacement=True, generator=generator)]


def estimate_normaliser(energy: Energy, proposal: GaussianMixtureEnergy, data: Tensor, seed: int) -> Normaliser:
    """log Z: by importance sampling, or, where its weights are poor, by annealing both ways.

    The error is two standard errors, of annealing that of its bracket. A bracket that has a warning raises it.

    Args:
        data: rows in random order ``[n, D]``; the way back starts at the first of them.
    """
    generator = torch.Generator().manual_seed(seed)
    simple = log_normaliser(energy, proposal, 100_000, generator)
    if simple.effective_sample_size >= 1000 and simple.pareto_k <= LARGEST_PARETO_K:
        return Normaliser(simple.estimate, 2 * simple.standard_error)
    # Few of the samples lie where the energy is low: the estimate and its error are not to be trusted.
    white = Whitened(energy, proposal.scales[-1])
    base, starts = white.of_mixture(proposal), white.forth(data[:_N_CHAINS])
    found = Normaliser.of(bracket_log_normaliser(white, base, starts, _N_CHAINS, 300, _N_BURN_IN, generator))
    return found._replace(estimate=found.estimate + white.log_volume)


def table_of_numbers(X: Any) -> Any:
    """X with columns as numbers, if it is a table; other things as they are.

    Raises:
        ValueError: for columns that hold no numbers, by name.
    """
    if not isinstance(X, pd.DataFrame):
        return X
    check_names(X)
    advice = "this model is of numbers; leave it out"
    return pd.DataFrame({name: only_numbers(X[name], advice) for name in X.columns}, index=X.index)


def check_columns(X: np.ndarray, names: Iterable[Any]) -> None:
    """Refuse columns that can't be standardised.

    Raises:
        ValueError: naming the column.
    """
    for k, name in enumerate(names):
        if np.ptp(X[:, k]) == 0:
            raise ValueError(
                f"column {name!r} is constant ({X[0, k]:g} in all rows): it has no density; leave it out"
            )
        with np.errstate(over="ignore", under="ignore"):
            variance = X[:, k].var()
        if not (np.isfinite(variance) and variance > 0):
            raise ValueError(f"column {name!r} is too large or too fine for double precision: rescale it")
