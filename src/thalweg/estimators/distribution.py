"""What ``predict_distribution`` returns: p(y|x) of every row as an object to ask."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from thalweg._torch_state import keeping_own_settings
from thalweg.data.target import TargetScale
from thalweg.energies.base import ConditionalEnergy, Conditioned, Features, map_features
from thalweg.energies.densities.basic import ConditionalDensity
from thalweg.energies.densities.tilted import ContinuousPart, MixtureDensity, TiltedMixtures
from thalweg.estimators._html import html_table, line_svg
from thalweg.evaluation.regression import level_beside_atoms
from thalweg.inference.ascent import gradient_ascent
from thalweg.inference.importance import WeightedSamples, adaptive_importance_sample
from thalweg.inference.quadrature import PiecewiseDensity, normalise
from thalweg.sampling.chain import initial_state
from thalweg.sampling.langevin import MALA

# By a notebook.
_ROWS_SHOWN = 5


@keeping_own_settings
class PredictiveDistribution:
    """p(y|x) of B rows for one-dimensional y: point masses where the target has them, a density elsewhere.

    Everything is in the units of the target. The continuous part is one piecewise polynomial for each row, found
    by adaptive quadrature in double precision: its normaliser, distribution function, quantiles, moments and draws
    agree. Rows are worked through in chunks, so that memory does not grow with their number.

    Args:
        energy: p(y|x) over standardised y, normalised or not.
        x: encoded inputs of the rows.
        target: how y is standardised.
        bounds: standardised; where an energy without landmarks is integrated.
        resolution: spacing of the grid that the targets were rounded to in training, 0 if none.
        tolerance: bound on the error of the normaliser, as a part of it.
        atoms: values of positive probability that the energy has.

    Attributes:
        atoms: these values ``[A]``, in rising order.
    """

    chunk_size = 4096
    columns_at_once = 32
    cache_rows = 20_000

    def __init__(
        self,
        energy: ConditionalEnergy,
        x: Tensor,
        target: TargetScale,
        bounds: tuple[float, float],
        resolution: float = 0.0,
        tolerance: float = 1e-4,
        atoms: Sequence[float] = (),
    ):
        self._energy, self._x, self._target, self._bounds = energy, x, target, bounds
        self.resolution = resolution
        self.tolerance = tolerance
        # In the model's own order, which is that of their masses, and sorted.
        self._atoms = np.asarray(atoms, np.float64)
        self._order = np.argsort(self._atoms)
        self.atoms = self._atoms[self._order]
        self._cache: dict[int, tuple[PiecewiseDensity, np.ndarray]] = {}
        self._ensemble = copy.deepcopy(energy).double() if isinstance(energy, TiltedMixtures) else None
        self._precise = energy
        if self._ensemble is None and x.device.type == "cpu":
            self._precise = copy.deepcopy(energy).double()

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, index: int | slice | np.ndarray) -> PredictiveDistribution:
        """The distributions of a selection of rows."""
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(f"there are {len(self)} rows, got index {index}")
            index = slice(int(index), int(index) + 1) if index != -1 else slice(-1, None)
        picked = self._x[index if isinstance(index, slice) else torch.as_tensor(index)]
        return PredictiveDistribution(
            self._energy, picked, self._target, self._bounds, self.resolution, self.tolerance, self._atoms.tolist()
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: figures and the density of the first rows, all on one axis."""
        first = self[:_ROWS_SHOWN]
        outer = first.quantile(np.array([0.002, 0.998]))
        y = np.linspace(outer[:, 0].min(), outer[:, 1].max(), 120)
        density = np.exp(first.log_prob(np.broadcast_to(y, (len(first), len(y)))))
        density[:, np.isin(y, self.atoms)] = 0.0
        interval = first.interval(0.9)
        figures = zip(first.mean(), first.median(), interval[:, 0], interval[:, 1], strict=True)
        rows = [
            [str(i), f"{mean:.5g}", f"{median:.5g}", f"{low:.5g} to {high:.5g}", line_svg(line)]
            for i, ((mean, median, low, high), line) in enumerate(zip(figures, density, strict=True))
        ]
        head = ["row", "mean", "median", "90 % interval", f"density, from {y[0]:.4g} to {y[-1]:.4g}"]
        note = f"The first {len(first)} of {len(self):,} rows." if len(self) > len(first) else ""
        return html_table("p(y|x)", head, rows, note)

    # -- probabilities -------------------------------------------------------------------------------

    def atom_masses(self) -> np.ndarray:
        """P(Y = a) of each atom ``[B, A]``."""
        return np.concatenate([self._parts(rows)[1] for rows in self._chunks()])

    def log_prob(self, y: np.ndarray) -> np.ndarray:
        """Log density in nats per unit of the target, and log P(Y = y) where y is an atom: ``[B]`` or ``[B, m]``.

        That is the density with respect to length plus a unit of measure on each atom. A model that is normalised
        by integrating between two bounds has no density beyond them.
        """

        def chunk(rows: slice, values: np.ndarray) -> np.ndarray:
            z = torch.as_tensor(self._target.forth(values))
            with torch.no_grad():
                given = self._given(rows, precise=True)
                energy = given(_fitting(z, given).unsqueeze(-1)).double().cpu()
            log_prob = -energy
            if not isinstance(self._energy, ConditionalDensity):
                log_prob = log_prob - self._parts(rows)[0].log_normaliser[:, None]
            log_prob = log_prob.masked_fill(z.isinf(), -torch.inf)
            if given.landmarks() is None:
                density = self._parts(rows)[0]
                outside = (z < density.lower[:, None]) | (z > density.upper[:, None])
                log_prob = log_prob.masked_fill(outside, -torch.inf)
            with np.errstate(invalid="ignore"):
                out = np.nan_to_num(log_prob.numpy() + self._target.log_slope(values), nan=-np.inf, neginf=-np.inf)
            for k, atom in enumerate(self.atoms):
                at = values == atom
                if at.any():
                    with np.errstate(divide="ignore"):
                        out = np.where(at, np.log(self._parts(rows)[1][:, k, None]), out)
            return out

        return self._per_value(y, chunk)

    def cdf(self, y: np.ndarray) -> np.ndarray:
        """P(Y <= y), of the same shape as y, which is ``[B]`` or ``[B, m]``; it jumps at the atoms."""
        return self._per_value(y, lambda rows, values: self._cdf(rows, values, values[..., None] >= self.atoms))

    def cdf_before(self, y: np.ndarray) -> np.ndarray:
        """P(Y < y): less than :meth:`cdf` by the mass of the atom that y is, if it is one."""
        return self._per_value(y, lambda rows, values: self._cdf(rows, values, values[..., None] > self.atoms))

    def _cdf(self, rows: slice, values: np.ndarray, below: np.ndarray) -> np.ndarray:
        density, masses = self._parts(rows)
        z = self._target.forth(values)
        continuous = density.cdf(torch.as_tensor(z)).numpy()
        if self._ensemble is not None and self._ensemble.limits[1] is not None:
            continuous = np.where(z >= self._ensemble.limits[1], 1.0, continuous)
        total = (1 - masses.sum(1, keepdims=True)) * continuous
        return np.clip(total + (below * masses[:, None]).sum(-1), 0.0, 1.0)

    def log_mass(self, y: np.ndarray, width: float | None = None) -> np.ndarray:
        """log P(y - width/2 < Y < y + width/2): the score of a rounded target, bounded by 0.

        Args:
            width: the target's ``resolution`` by default. With 0 this is ``log_prob``.
        """
        width = self.resolution if width is None else width
        if not width:
            return self.log_prob(y)

        def chunk(rows: slice, values: np.ndarray) -> np.ndarray:
            low, high = values - width / 2, values + width / 2
            log_mass = self._log_cell(rows, low, high)
            if len(self.atoms):
                inside = (self.atoms > low[..., None]) & (self.atoms < high[..., None])
                with np.errstate(divide="ignore"):
                    atoms = np.log((inside * self._parts(rows)[1][:, None]).sum(-1))
                log_mass = np.logaddexp(log_mass, atoms)
            return np.minimum(log_mass, 0.0)

        log_mass = self._per_value(y, chunk)
        values = np.asarray(y, np.float64)
        low, high = (self._target.forth(values + side * width / 2) for side in (-1, 1))
        narrow = (high - low <= 1e-9 * np.maximum(1.0, np.abs(low))) & ~np.isin(values, self.atoms)
        if narrow.any():
            # The ends of the cell are one number in double precision, or nearly so.
            log_mass = np.where(narrow, np.minimum(self.log_prob(values) + np.log(width), 0.0), log_mass)
        return log_mass

    def _log_cell(self, rows: slice, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """log of the continuous part's probability of cells ``[B, m]``."""
        edges = [torch.as_tensor(self._target.forth(edge)) for edge in (low, high)]
        if self._ensemble is not None:
            device = self._x.device
            with torch.no_grad():
                features = self._ensemble.features(self._x[rows].double())
                return (
                    self._ensemble.log_cell(features, *(e.to(device).unsqueeze(-1) for e in edges)).cpu().numpy()
                )
        density = self._parts(rows)[0]
        mass = (density.cdf(edges[1]) - density.cdf(edges[0])).numpy()
        # A light cell is lost in the distribution function's errors: its density is integrated, piece by piece.
        nodes, weights = np.polynomial.legendre.leggauss(5)
        places = (np.arange(16)[:, None] + (nodes + 1) / 2).reshape(-1) / 16
        parts = np.tile(weights / 32, 16)
        z = edges[0][..., None] + (edges[1] - edges[0])[..., None] * torch.as_tensor(places)
        with torch.no_grad():
            given = self._given(rows)
            energy = given(_fitting(z, given).flatten(1).unsqueeze(-1)).double().cpu().reshape(z.shape)
        log_density = -energy.numpy() - density.log_normaliser.numpy()[:, None, None]
        outside = (z < density.lower[:, None, None]) | (z > density.upper[:, None, None])
        log_density = np.where(outside.numpy() & (given.landmarks() is None), -np.inf, log_density)
        with np.errstate(divide="ignore"):
            fine = np.logaddexp.reduce(log_density + np.log(parts), axis=-1)
            fine = fine + np.log((edges[1] - edges[0]).numpy())
            return np.where(mass > 1e-3, np.log(np.maximum(mass, 1e-300)), fine)

    def quantile(self, probability: float | np.ndarray) -> np.ndarray:
        """The least y with P(Y <= y) >= probability: a number gives ``[B]``, m probabilities give ``[B, m]``.

        Raises:
            ValueError: for a probability outside (0, 1).
        """
        p = np.asarray(probability, np.float64)
        if not ((p > 0) & (p < 1)).all():
            raise ValueError(f"a probability must lie strictly between 0 and 1, got {probability}")
        flat = np.atleast_1d(p)
        out = np.concatenate(
            [
                self._quantile(rows, np.broadcast_to(flat, (len(self._x[rows]), len(flat))))
                for rows in self._chunks()
            ]
        )
        return out[:, 0] if p.ndim == 0 else out

    def _quantile(self, rows: slice, p: np.ndarray) -> np.ndarray:
        density, masses = self._parts(rows)
        places = np.broadcast_to(self.atoms, masses.shape)
        before = self._cdf(rows, places, places[..., None] > self.atoms)
        landed, share = level_beside_atoms(p, self.atoms, before, masses)
        y = self._target.back(density.quantile(torch.as_tensor(share)).numpy())
        return np.where(np.isnan(landed), y, landed)

    def interval(self, coverage: float = 0.9) -> np.ndarray:
        """Central interval ``[B, 2]`` that holds at least this share of the probability."""
        if not 0 < coverage < 1:
            raise ValueError(f"coverage must lie strictly between 0 and 1, got {coverage}")
        return self.quantile(np.array([(1 - coverage) / 2, (1 + coverage) / 2]))

    def sample(self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None) -> np.ndarray:
        """Independent draws ``[B, n_samples]``, by inverting the distribution function."""
        uniform = check_random_state(random_state).uniform(1e-9, 1 - 1e-9, (len(self), n_samples))
        return np.concatenate([self._quantile(rows, uniform[rows]) for rows in self._chunks()])

    # -- moments and modes ---------------------------------------------------------------------------

    def mean(self) -> np.ndarray:
        return np.concatenate([self._moment(rows, lambda y, row: y) for rows in self._chunks()])

    def median(self) -> np.ndarray:
        return self.quantile(0.5)

    def std(self) -> np.ndarray:
        parts = []
        for rows in self._chunks():
            mean = self._moment(rows, lambda y, row: y)
            parts.append(self._moment(rows, lambda y, row, mean=mean: (y - mean[row][:, None]) ** 2))  # type: ignore[misc]
        return np.sqrt(np.maximum(np.concatenate(parts), 0.0))

    def mode(self) -> np.ndarray:
        """The most likely value ``[B]``: the first of :meth:`modes`."""
        return np.array([found[0] for found in self.modes()])

    def modes(self) -> list[np.ndarray]:
        """All local maxima of each row's density and its atoms, the most likely first.

        A mass and a density are compared by the probability of a cell as wide as the ``resolution``, or where
        there is none as a hundredth of the target's scale; atoms of less than a thousandth are left out.
        """
        found: list[np.ndarray] = []
        width = self.resolution or self._target.scale / 100
        for rows in self._chunks():
            density, masses = self._parts(rows)
            slope = None
            if self._target.curved:
                slope = torch.as_tensor(self._target.log_slope(self._target.back(density.nodes.numpy())))
            peaks = [self._target.back(m.numpy()) for m in density.modes(slope)]
            if not len(self.atoms):
                found += peaks
                continue
            padded = np.full((len(peaks), max(map(len, peaks))), np.nan)
            for line, places in zip(padded, peaks, strict=True):
                line[: len(places)] = places
            heights = np.exp(self._log_cell(rows, padded - width / 2, padded + width / 2))
            for places, height, mass in zip(peaks, heights, masses, strict=True):
                kept = mass >= 1e-3
                values = np.concatenate([places, self.atoms[kept]])
                likely = np.concatenate([height[: len(places)], mass[kept]])
                found.append(values[np.argsort(-likely, kind="stable")])
        return found

    def relative_error(self) -> np.ndarray:
        """Estimated relative error of each row's probabilities ``[B]``: of the quadrature that they come from.

        Where the normaliser is known besides, its distance from what the quadrature gives is added.
        """
        parts = []
        for rows in self._chunks():
            density, masses = self._parts(rows)
            error = density.relative_error.numpy()
            if isinstance(self._energy, ConditionalDensity):
                rest = np.maximum(1 - masses.sum(1), 1e-300)
                error = error + np.abs(np.exp(density.log_normaliser.numpy()) / rest - 1)
            parts.append(error)
        return np.concatenate(parts)

    # -- chunks --------------------------------------------------------------------------------------

    def _chunks(self) -> Iterator[slice]:
        for start in range(0, len(self._x), self.chunk_size):
            yield slice(start, min(start + self.chunk_size, len(self._x)))

    def _given(self, rows: slice, precise: bool = False) -> Conditioned:
        """The energy of the continuous part. Features are in double precision, so that a row's answer does not
        depend on the rows beside it; and all is, where the model is one that takes it."""
        x = self._x[rows]
        if self._ensemble is not None:
            features = self._features(rows)
            _, means, log_stds, *_ = features
            # Single precision is twice as fast, and enough where its steps are small against every component.
            coarse = 1e-7 * float(means.abs().max()) > 1e-4 * float(log_stds.min().exp())
            if coarse or precise:
                return Conditioned(ContinuousPart(self._ensemble), features)
            assert isinstance(self._energy, TiltedMixtures)
            return Conditioned(ContinuousPart(self._energy), map_features(features, lambda f: f.to(x.dtype)))
        features = self._precise.features(x.double() if self._precise is not self._energy else x)
        return Conditioned(self._energy, map_features(features, lambda f: f.to(x.dtype)))

    def _features(self, rows: slice) -> Features:
        assert self._ensemble is not None
        return self._ensemble.features(self._x[rows].double())

    def _parts(self, rows: slice) -> tuple[PiecewiseDensity, np.ndarray]:
        """The continuous part, normalised, and the masses of the atoms ``[B, A]``."""
        kept = self._cache.get(rows.start)
        if kept is not None:
            return kept
        with torch.no_grad():
            given = self._given(rows)
            density = normalise(given, *self._bounds, self.tolerance)
            masses = np.zeros((density.n_rows, 0))
            if len(self.atoms):
                assert self._ensemble is not None
                masses = self._ensemble.masses(self._features(rows)).cpu().numpy()[:, self._order]
        if len(self._x) <= self.cache_rows:
            self._cache[rows.start] = density, masses
        return density, masses

    def _moment(self, rows: slice, function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """The mean ``[B]`` of a function of y ``[n, m]`` and of the row ``[n]`` that each line belongs to."""
        density, masses = self._parts(rows)
        values = function(self._target.back(density.nodes.numpy()), density.row.numpy())
        continuous = (1 - masses.sum(1)) * density.moment(torch.as_tensor(values)).numpy()
        if not len(self.atoms):
            return continuous
        atoms = np.broadcast_to(self.atoms, masses.shape)
        return continuous + (masses * function(atoms, np.arange(len(masses)))).sum(1)

    def _per_value(self, y: np.ndarray, function: Callable[[slice, np.ndarray], np.ndarray]) -> np.ndarray:
        y = np.asarray(y, np.float64)
        if y.ndim not in (1, 2) or len(y) != len(self):
            raise ValueError(f"y must be [{len(self)}] or [{len(self)}, m], one line for each row, got {y.shape}")
        values = y.reshape(len(y), -1)
        columns = range(0, values.shape[1], self.columns_at_once)
        parts = [
            np.concatenate([function(rows, values[rows, c : c + self.columns_at_once]) for c in columns], 1)
            for rows in self._chunks()
        ]
        return np.concatenate(parts).reshape(y.shape)


def _fitting(z: Tensor, given: Conditioned) -> Tensor:
    """z on the device and in the precision that the energy computes in."""
    features = given.features if isinstance(given.features, Tensor) else given.features[0]
    return z.to(features.device, features.dtype if features.is_floating_point() else torch.float32)


@keeping_own_settings
class MultivariateDistribution:
    """p(y|x) of B rows for y in R^K: expectations by self-normalised importance sampling, draws by MCMC.

    The proposal is the model's own mixture where it has one, else a Gaussian round the training targets. Rows
    where few of its samples have weight are sampled anew, half of the samples by kernels fitted to the row.

    Attributes:
        effective_sample_size: effective number of the importance samples ``[B]``, out of ``n_importance``.
    """

    chunk_size = 512

    def __init__(
        self,
        energy: ConditionalEnergy,
        proposal: MixtureDensity,
        x: Tensor,
        location: np.ndarray,
        scale: np.ndarray,
        n_importance: int = 1024,
        seed: int = 0,
    ):
        self._energy, self._proposal = energy, proposal
        self._x = x
        self._location, self._scale = location, scale
        self.n_importance = n_importance
        self._seed = seed

    def __len__(self) -> int:
        return len(self._x)

    def _weighted(self) -> Iterator[tuple[slice, WeightedSamples]]:
        generator = torch.Generator(self._x.device).manual_seed(self._seed)
        for start in range(0, len(self._x), self.chunk_size):
            rows = slice(start, start + self.chunk_size)
            x = self._x[rows]
            found = self._weigh(x, 0, generator)
            poor = found.effective_sample_size < self.n_importance / 4
            if poor.any():
                better = self._weigh(x[poor], 3, generator)
                for all_rows, theirs in zip(found, better, strict=True):
                    all_rows[poor] = theirs
            yield rows, found

    def _weigh(self, x: Tensor, n_rounds: int, generator: torch.Generator) -> WeightedSamples:
        with torch.no_grad():
            mixture, proposal, given = self._proposal.features(x), self._proposal, self._energy.given(x)
            draw = partial(proposal.sample, mixture, generator=generator)
            log_density = partial(proposal.log_prob, mixture)
            return adaptive_importance_sample(given, draw, log_density, self.n_importance, generator, n_rounds)

    def _units(self, y: Tensor) -> np.ndarray:
        return y.cpu().double().numpy() * self._scale + self._location

    @property
    def effective_sample_size(self) -> np.ndarray:
        return torch.cat([w.effective_sample_size for _, w in self._weighted()]).cpu().numpy()

    @property
    def pareto_k(self) -> np.ndarray:
        """Shape of the tail of each row's importance weights ``[B]``.

        Above 0.7 the figures of a row are not to be trusted: log Z is too low then, and ``log_prob`` too high.

        Source: [Vehtari 2024].
        """
        return np.concatenate([w.pareto_k for _, w in self._weighted()])

    def log_prob(self, y: np.ndarray) -> np.ndarray:
        """Log density in nats, log Z estimated by importance sampling.

        Args:
            y: ``[B, K]``, which gives ``[B]``, or m places for each row ``[B, m, K]``, which give ``[B, m]``.
        """
        y = np.asarray(y, np.float64)
        b, k = len(self), len(self._scale)
        if y.ndim not in (2, 3) or (y.shape[0], y.shape[-1]) != (b, k):
            raise ValueError(f"y must be [{b}, {k}] or [{b}, m, {k}], got {list(y.shape)}")
        values = torch.as_tensor((y - self._location) / self._scale, dtype=torch.float32).to(self._x.device)
        parts = []
        for rows, weighted in self._weighted():
            with torch.no_grad():
                log_z = weighted.log_normaliser.reshape(-1, *[1] * (y.ndim - 2))
                parts.append(-self._energy.given(self._x[rows])(values[rows]) - log_z)
        return torch.cat(parts).cpu().double().numpy() - np.log(self._scale).sum()

    def mean(self) -> np.ndarray:
        """``[B, K]``."""
        return self._units(torch.cat([w.mean() for _, w in self._weighted()]))

    def median(self) -> np.ndarray:
        """The median of each coordinate ``[B, K]``."""
        return self.quantile(0.5)

    def quantile(self, probability: float | np.ndarray) -> np.ndarray:
        """Quantiles of each coordinate: a number gives ``[B, K]``, m probabilities give ``[B, m, K]``."""
        p = np.asarray(probability, np.float64)
        if not ((p > 0) & (p < 1)).all():
            raise ValueError(f"a probability must lie strictly between 0 and 1, got {probability}")
        flat = torch.as_tensor(np.atleast_1d(p))
        out = self._units(torch.cat([w.quantile(flat) for _, w in self._weighted()]))
        return out[:, 0] if p.ndim == 0 else out

    def interval(self, coverage: float = 0.9) -> np.ndarray:
        """Central interval of each coordinate ``[B, 2, K]``."""
        if not 0 < coverage < 1:
            raise ValueError(f"coverage must lie strictly between 0 and 1, got {coverage}")
        return self.quantile(np.array([(1 - coverage) / 2, (1 + coverage) / 2]))

    def mode(self, n_steps: int = 50) -> np.ndarray:
        """``[B, K]``: the best importance sample, refined by gradient ascent on log p."""
        parts = []
        for rows, weighted in self._weighted():
            given = self._energy.given(self._x[rows]).detach()
            with torch.no_grad():
                best = given(weighted.y).argmin(1)
            start = weighted.y[torch.arange(len(best)), best]
            spread = weighted.y.var(1).mean(-1, keepdim=True)
            parts.append(gradient_ascent(given, start, n_steps, 0.1 * spread))
        return self._units(torch.cat(parts))

    def modes(self) -> list[np.ndarray]:
        """The highest mode of each row, ``[1, K]``; further ones are not searched for in K dimensions."""
        return list(self.mode()[:, None])

    def sample(
        self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None, n_steps: int = 30
    ) -> np.ndarray:
        """Draws ``[B, n_samples, K]``: resampled importance samples, moved on by MALA."""
        rng = np.random.RandomState(random_state) if not isinstance(random_state, np.random.RandomState) else (
            random_state
        )  # fmt: skip
        generator = torch.Generator(self._x.device).manual_seed(int(rng.randint(2**31 - 1)))
        parts = []
        for rows, weighted in self._weighted():
            given = self._energy.given(self._x[rows]).detach()
            state = initial_state(given, weighted.resample(n_samples, generator))
            # A step in proportion to each coordinate's spread, then adapted towards 57 % acceptance.
            size = 0.1 * weighted.y.var(1, keepdim=True)
            for _ in range(n_steps):
                state = MALA(size).step(given, state, generator)
                rate = state.acceptance.mean(1).reshape(-1, 1, 1)
                size = size * torch.exp(0.3 * (rate - 0.57))
            parts.append(state.position)
        return self._units(torch.cat(parts))
