"""What ``predict_distribution`` returns: p(y|x) of every row as an object to ask."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from thalweg.energies.base import ConditionalEnergy, Conditioned, map_features
from thalweg.energies.densities.tilted import MixtureDensity
from thalweg.inference.ascent import gradient_ascent
from thalweg.inference.importance import WeightedSamples, importance_sample
from thalweg.inference.quadrature import PiecewiseDensity, normalise
from thalweg.sampling.chain import initial_state
from thalweg.sampling.langevin import MALA


class PredictiveDistribution:
    """p(y|x) of B rows for one-dimensional y, normalised by adaptive quadrature.

    Everything is in the units of the target. Rows are worked through in chunks, so that memory does not
    grow with their number.

    Attributes:
        resolution: spacing of the grid that the targets were rounded to in training, 0 if none.
        tolerance: bound on the error of the normaliser, as a part of it.
    """

    chunk_size = 4096
    cache_rows = 20_000

    def __init__(
        self,
        energy: ConditionalEnergy,
        x: Tensor,
        location: float,
        scale: float,
        bounds: tuple[float, float],
        resolution: float = 0.0,
        tolerance: float = 1e-4,
    ):
        self._energy = energy
        self._x = x
        self._location, self._scale = location, scale
        self._bounds = bounds
        self.resolution = resolution
        self.tolerance = tolerance
        self._cache: dict[int, PiecewiseDensity] = {}
        self._precise = copy.deepcopy(energy).double() if x.device.type == "cpu" else energy

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
            self._energy, picked, self._location, self._scale, self._bounds, self.resolution, self.tolerance
        )

    def log_prob(self, y: np.ndarray) -> np.ndarray:
        """Log density, nats per unit of the target: y ``[B]`` -> ``[B]``, or ``[B, m]`` -> ``[B, m]``.

        A model that is normalised by integrating between two bounds has no density beyond them.
        """

        def chunk(rows: slice, values: Tensor) -> Tensor:
            density = self._density(rows)
            with torch.no_grad():
                given = self._given(rows)
                energy = given(values.to(self._x.device).float().unsqueeze(-1)).double().cpu()
            log_prob = (-energy - density.log_normaliser[:, None]).masked_fill(values.isinf(), -torch.inf)
            if given.landmarks() is None:
                outside = (values < density.lower[:, None]) | (values > density.upper[:, None])
                log_prob = log_prob.masked_fill(outside, -torch.inf)
            return log_prob

        return self._per_value(y, chunk) - np.log(self._scale)

    def cdf(self, y: np.ndarray) -> np.ndarray:
        """P(Y <= y), of the same shape as y, which is ``[B]`` or ``[B, m]``."""
        return self._per_value(y, lambda rows, values: self._density(rows).cdf(values))

    def log_mass(self, y: np.ndarray, width: float | None = None) -> np.ndarray:
        """log P(y - width/2 < Y < y + width/2): the score of a rounded target, bounded by 0.

        Args:
            width: the target's ``resolution`` by default. With 0 this is ``log_prob``.
        """
        width = self.resolution if width is None else width
        if not width:
            return self.log_prob(y)
        y = np.asarray(y, np.float64)
        # Gauss-Legendre over the cell: keeps its accuracy in the tails, where cdf differences lose it.
        nodes, weights = np.polynomial.legendre.leggauss(9)
        logs = [
            self.log_prob(y + width / 2 * node) + np.log(w / 2) for node, w in zip(nodes, weights, strict=True)
        ]
        fine = np.logaddexp.reduce(logs, axis=0) + np.log(width)
        mass = self.cdf(y + width / 2) - self.cdf(y - width / 2)
        # Where the cell holds real mass the distribution function is the better integral.
        return np.where(mass > 1e-3, np.log(np.maximum(mass, 1e-300)), np.minimum(fine, 0.0))

    def quantile(self, probability: float | np.ndarray) -> np.ndarray:
        """Quantiles: a number gives ``[B]``, m probabilities give ``[B, m]``.

        Raises:
            ValueError: for a probability outside (0, 1).
        """
        p = np.asarray(probability, np.float64)
        if not ((p > 0) & (p < 1)).all():
            raise ValueError(f"a probability must lie strictly between 0 and 1, got {probability}")
        flat = torch.as_tensor(np.atleast_1d(p))
        out = self._per_row(lambda d: d.quantile(flat.expand(d.n_rows, -1)))
        return out[:, 0] if p.ndim == 0 else out

    def interval(self, coverage: float = 0.9) -> np.ndarray:
        """Central interval ``[B, 2]`` that holds this share of the probability."""
        if not 0 < coverage < 1:
            raise ValueError(f"coverage must lie strictly between 0 and 1, got {coverage}")
        return self.quantile(np.array([(1 - coverage) / 2, (1 + coverage) / 2]))

    def mean(self) -> np.ndarray:
        return self._per_row(lambda d: d.mean())

    def median(self) -> np.ndarray:
        return self.quantile(0.5)

    def std(self) -> np.ndarray:
        return self._per_row(lambda d: d.variance().clamp(min=0).sqrt(), shift=False)

    def mode(self) -> np.ndarray:
        """The most likely value ``[B]``."""
        return self._per_row(lambda d: d.mode())

    def modes(self) -> list[np.ndarray]:
        """All local maxima of each row's density, the highest first."""
        found: list[np.ndarray] = []
        for rows in self._chunks():
            found += [m.numpy() * self._scale + self._location for m in self._density(rows).modes()]
        return found

    def sample(self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None) -> np.ndarray:
        """Independent draws ``[B, n_samples]``, by inverting the distribution function."""
        rng = np.random.RandomState(random_state) if not isinstance(random_state, np.random.RandomState) else (
            random_state
        )  # fmt: skip
        uniform = torch.as_tensor(rng.uniform(1e-9, 1 - 1e-9, (len(self), n_samples)))
        parts = [self._density(rows).quantile(uniform[rows]) for rows in self._chunks()]
        return torch.cat(parts).numpy() * self._scale + self._location

    def relative_error(self) -> np.ndarray:
        """Estimated relative error of each row's normaliser ``[B]``."""
        return torch.cat([self._density(rows).relative_error for rows in self._chunks()]).numpy()

    # -- chunks --------------------------------------------------------------------------------------

    def _chunks(self) -> Iterator[slice]:
        for start in range(0, len(self._x), self.chunk_size):
            yield slice(start, min(start + self.chunk_size, len(self._x)))

    def _given(self, rows: slice) -> Conditioned:
        """Features in double precision, so that a row's answer does not depend on the rows beside it."""
        x = self._x[rows]
        features = self._precise.features(x.double() if self._precise is not self._energy else x)
        return Conditioned(self._energy, map_features(features, lambda f: f.to(x.dtype)))

    def _density(self, rows: slice) -> PiecewiseDensity:
        kept = self._cache.get(rows.start)
        if kept is not None:
            return kept
        with torch.no_grad():
            density = normalise(self._given(rows), *self._bounds, self.tolerance)
        if len(self._x) <= self.cache_rows:
            self._cache[rows.start] = density
        return density

    def _per_row(self, function: Callable[[PiecewiseDensity], Tensor], shift: bool = True) -> np.ndarray:
        out = torch.cat([function(self._density(rows)) for rows in self._chunks()]).numpy() * self._scale
        return out + self._location if shift else out

    def _per_value(self, y: np.ndarray, function: Callable[[slice, Tensor], Tensor]) -> np.ndarray:
        y = np.asarray(y, np.float64)
        if y.ndim not in (1, 2) or len(y) != len(self):
            raise ValueError(f"y must be [{len(self)}] or [{len(self)}, m], one line for each row, got {y.shape}")
        values = torch.as_tensor((y.reshape(len(y), -1) - self._location) / self._scale)
        out = torch.cat([function(rows, values[rows]) for rows in self._chunks()]).numpy()
        return out.reshape(y.shape)


class MultivariateDistribution:
    """p(y|x) of B rows for y in R^K: expectations by self-normalised importance sampling, draws by MCMC.

    The proposal is the model's own mixture where it has one, else a Gaussian round the training targets.

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
            with torch.no_grad():
                mixture = self._proposal.features(self._x[rows])
                samples = self._proposal.sample(mixture, self.n_importance, generator)
                log_proposal = self._proposal.log_prob(mixture, samples)
                yield rows, importance_sample(self._energy.given(self._x[rows]), samples, log_proposal)

    def _units(self, y: Tensor) -> np.ndarray:
        return y.cpu().double().numpy() * self._scale + self._location

    @property
    def effective_sample_size(self) -> np.ndarray:
        return torch.cat([w.effective_sample_size for _, w in self._weighted()]).cpu().numpy()

    def log_prob(self, y: np.ndarray) -> np.ndarray:
        """Log density ``[B]`` of y ``[B, K]``, in nats; log Z estimated by importance sampling."""
        y = np.asarray(y, np.float64)
        if y.shape != (len(self), len(self._scale)):
            raise ValueError(f"y must be [{len(self)}, {len(self._scale)}], got {list(y.shape)}")
        values = torch.as_tensor((y - self._location) / self._scale, dtype=torch.float32).to(self._x.device)
        parts = []
        for rows, weighted in self._weighted():
            with torch.no_grad():
                parts.append(-self._energy.given(self._x[rows])(values[rows]) - weighted.log_normaliser)
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
