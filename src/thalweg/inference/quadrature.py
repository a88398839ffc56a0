"""Normalising p(y|x) over one-dimensional y: adaptive Gauss-Kronrod quadrature, many rows at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from thalweg.energies.base import Conditioned, check_energy

# Nodes and weights of the 15-point Kronrod rule and its 7-point Gauss rule on [-1, 1] [Piessens 1983].
_POSITIVE_NODES = [
    0.991455371120812639206854697526329, 0.949107912342758524526189684047851,
    0.864864423359769072789712788640926, 0.741531185599394439863864773280788,
    0.586087235467691130294144691693013, 0.405845151377397166906606412076961,
    0.207784955007898467600689403773245, 0.0,
]  # fmt: skip
_KRONROD = [
    0.022935322010529224963732008058970, 0.063092092629978553290700663189204,
    0.104790010322250183839876322541518, 0.140653259715525918745189590510238,
    0.169004726639267902826583426598550, 0.190350578064785409913256402421014,
    0.204432940075298892414161999234649, 0.209482141084727828012999174891714,
]  # fmt: skip
_GAUSS = [
    0.129484966168869693270611432679082, 0.279705391489276667901467771423780,
    0.381830050505118944950369775488975, 0.417959183673469387755102040816327,
]  # fmt: skip
_N = 15


def _tables() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    half = np.array(_POSITIVE_NODES)
    nodes = np.concatenate([-half, half[-2::-1]])
    kronrod = np.array(_KRONROD + _KRONROD[-2::-1])
    gauss = np.zeros(_N)
    gauss[1::2] = _GAUSS + _GAUSS[-2::-1]
    legendre = np.polynomial.legendre
    # Values at the nodes -> Legendre coefficients of the antiderivative that is 0 at -1.
    to_coefficients = np.linalg.inv(legendre.legvander(nodes, _N - 1))
    antiderivative = legendre.legint(to_coefficients, lbnd=-1)
    return (
        torch.tensor(nodes),
        torch.tensor(kronrod),
        torch.tensor(gauss),
        torch.tensor(antiderivative),
        torch.tensor(to_coefficients),
    )


_NODES, _KRONROD_WEIGHTS, _GAUSS_WEIGHTS, _ANTIDERIVATIVE, _COEFFICIENTS = _tables()


class PiecewiseDensity:
    """Normalised densities of B rows, each a polynomial of degree 14 on each of its panels.

    Made by :func:`normalise`. All arrays are float64 and on the CPU.

    Attributes:
        log_normaliser: log Z(x) ``[B]``.
        relative_error: estimated error of Z(x), as a part of it ``[B]``.
    """

    def __init__(self, row: Tensor, left: Tensor, right: Tensor, log_values: Tensor, errors: Tensor, n_rows: int):
        order = np.lexsort((left.numpy(), row.numpy()))
        order_ = torch.from_numpy(order)
        row, left, right = row[order_], left[order_], right[order_]
        log_values, errors = log_values[order_], errors[order_]
        self.n_rows = n_rows
        self.row = row
        self.left = left
        self.half_width = (right - left) / 2
        mass = self.half_width * (log_values.exp() @ _KRONROD_WEIGHTS)
        total = torch.zeros(n_rows, dtype=torch.float64).index_add_(0, row, mass)
        self.log_normaliser = total.log()
        self.relative_error = torch.zeros(n_rows, dtype=torch.float64).index_add_(0, row, errors) / total
        self.log_density = log_values - self.log_normaliser[row, None]
        self.density = self.log_density.exp()
        mass = mass / total[row]
        counts = torch.bincount(row, minlength=n_rows)
        self.first = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
        # Panels of a row side by side, padded on the right, so that one search serves all rows.
        n_panels = int(counts.max())
        column = torch.arange(len(row)) - self.first[row]
        self._edges = torch.full((n_rows, n_panels), torch.inf, dtype=torch.float64)
        self._edges[row, column] = left
        padded = torch.zeros(n_rows, n_panels, dtype=torch.float64)
        padded[row, column] = mass
        cumulative = padded.cumsum(1)
        self._mass_before = cumulative - padded
        self._total = cumulative[:, -1:]
        self._counts = counts
        self._antiderivative = self.density @ _ANTIDERIVATIVE.T * self.half_width[:, None]
        self.lower = self._edges[:, 0]
        self.upper = torch.zeros(n_rows, dtype=torch.float64).scatter_reduce_(
            0, row, right, "amax", include_self=False
        )

    def cdf(self, y: Tensor) -> Tensor:
        """P(Y <= y) ``[B, m]`` for y ``[B, m]``."""
        y = y.double().contiguous()
        column = (torch.searchsorted(self._edges, y, right=True) - 1).clamp(min=0)
        column = torch.minimum(column, self._counts[:, None] - 1)
        panel = self.first[:-1, None] + column
        t = ((y - self.left[panel]) / self.half_width[panel] - 1).clamp(-1.0, 1.0)
        inside = _legendre_series(self._antiderivative[panel], t)
        inside = torch.where(y > self.lower[:, None], inside, 0.0)
        return (self._mass_before.gather(1, column) + inside).clamp(0.0, 1.0)

    def quantile(self, probability: Tensor) -> Tensor:
        """The y ``[B, m]`` with P(Y <= y) = probability ``[B, m]``."""
        target = probability.double().contiguous() * self._total
        column = (torch.searchsorted(self._mass_before, target, right=True) - 1).clamp(min=0)
        column = torch.minimum(column, self._counts[:, None] - 1)
        panel = self.first[:-1, None] + column
        rest = target - self._mass_before.gather(1, column)
        coefficients = self._antiderivative[panel]
        values = self.density[panel] @ _COEFFICIENTS.T
        slope = self.half_width[panel]
        low, high = torch.full_like(rest, -1.0), torch.ones_like(rest)
        t = torch.zeros_like(rest)
        for _ in range(40):
            excess = _legendre_series(coefficients, t) - rest
            high = torch.where(excess > 0, t, high)
            low = torch.where(excess > 0, low, t)
            derivative = _legendre_series(values, t) * slope
            newton = t - excess / derivative.clamp(min=1e-300)
            sound = (newton > low) & (newton < high)
            step = torch.where(sound, newton, (low + high) / 2)
            if float((step - t).abs().max()) < 1e-9:
                t = step
                break
            t = step
        return self.left[panel] + (t + 1) * slope

    def moment(self, function: Tensor) -> Tensor:
        """The mean ``[B]`` of a function given at the nodes ``[panels, 15]``."""
        part = (self.density * function) @ _KRONROD_WEIGHTS * self.half_width
        return torch.zeros(self.n_rows, dtype=torch.float64).index_add_(0, self.row, part)

    @property
    def nodes(self) -> Tensor:
        """``[panels, 15]``: where the density is known."""
        return self.left[:, None] + (_NODES + 1) * self.half_width[:, None]

    def mean(self) -> Tensor:
        return self.moment(self.nodes)

    def variance(self) -> Tensor:
        return self.moment((self.nodes - self.mean()[self.row, None]).square())

    def modes(self, log_slope: Tensor | None = None) -> list[Tensor]:
        """Local maxima of each row's density, the highest first, refined by a parabola through log p.

        Args:
            log_slope: added to log p at the :attr:`nodes`, for maxima of the density of a function of y.

        A maximum that stands out by less than the energy's rounding errors, or by less than a thousandth, is
        none.
        """
        nodes = self.nodes
        log_density = self.log_density if log_slope is None else self.log_density + log_slope
        found = []
        for i in range(self.n_rows):
            panels = slice(int(self.first[i]), int(self.first[i + 1]))
            y, f = nodes[panels].flatten(), log_density[panels].flatten()
            inner = torch.nonzero((f[1:-1] >= f[:-2]) & (f[1:-1] > f[2:])).flatten() + 1
            # Energies come in float32, so log p is known to a part in 10^7 of their size.
            inner = _prominent(f, inner, 1e-3 + 5e-7 * (f.abs() + self.log_normaliser[i].abs()))
            if not len(inner):
                inner = f.argmax().reshape(1).clamp(1, len(f) - 2)
            inner = inner[f[inner].argsort(descending=True)]
            found.append(_parabola_top(y, f, inner))
        return found


def normalise(
    energy: Conditioned,
    lower: float,
    upper: float,
    tolerance: float = 1e-4,
    max_rounds: int = 16,
    max_evaluations: int = 16_384,
) -> PiecewiseDensity:
    """Integrate exp(-E(x, y)) over y for every row, halving panels until each row is within tolerance.

    A panel is also halved while it is wide against a landmark's scale beside it, so that no spike which the
    energy knows of falls between the nodes. Without landmarks, a spike narrower than about a two-thousandth
    of the range may do so.

    Args:
        energy: ``E(x, .)`` of B rows with y one-dimensional, made by ``given``.
        lower, upper: where to integrate if the energy knows no landmarks; else the landmarks' range (ten
            scales to either side) is used.
        tolerance: bound on the estimated error of Z(x), as a part of it.
        max_rounds: how often a panel is halved at most.
        max_evaluations: energies computed in one call, few enough to stay in the cache.

    Raises:
        ValueError: if the energy's shape is wrong, a value is NaN or -infinity, or all values of a row are
            +infinity (which elsewhere is a density of zero).
    """
    n_rows = energy.n_rows
    landmarks = energy.landmarks()
    if landmarks is not None:
        landmarks = (landmarks[0].detach().double().cpu(), landmarks[1].detach().double().cpu())
    limits = getattr(getattr(energy, "parent", None), "limits", (None, None))
    edges = _first_edges(landmarks, lower, upper, n_rows, limits)
    middle = edges[:, edges.shape[1] // 2]
    if limits != (None, None):
        middle = middle.clamp(*limits)
    check_energy(energy, _like_features(energy, middle).reshape(-1, 1, 1).expand(-1, 2, -1))
    row = torch.arange(n_rows).repeat_interleave(edges.shape[1] - 1)
    left, right = edges[:, :-1].flatten(), edges[:, 1:].flatten()
    done: list[tuple[Tensor, ...]] = []
    shift = torch.full((n_rows,), -torch.inf, dtype=torch.float64)
    settled = torch.zeros(n_rows, dtype=torch.float64)
    for round_ in range(max_rounds + 1):
        half = (right - left) / 2
        y = left[:, None] + (_NODES + 1) * half[:, None]
        log_values = -_evaluate(energy, row, y, max_evaluations)
        top = torch.full((n_rows,), -torch.inf, dtype=torch.float64).scatter_reduce_(
            0, row, log_values.amax(1), "amax"
        )
        new_shift = torch.maximum(shift, top)
        if torch.isneginf(new_shift).any():
            raise ValueError("the energy is +infinity for all y of a row: there is no density to normalise")
        settled = settled * (shift - new_shift).exp().nan_to_num(0.0)
        shift = new_shift
        values = (log_values - shift[row, None]).exp()
        kronrod = values @ _KRONROD_WEIGHTS * half
        gauss = values @ _GAUSS_WEIGHTS * half
        spread = (values - (kronrod / (2 * half))[:, None]).abs() @ _KRONROD_WEIGHTS * half
        ratio = 200 * (kronrod - gauss).abs() / spread.clamp(min=1e-300)
        error = torch.where(spread > 0, spread * ratio.pow(1.5).clamp(max=1.0), 0.0)
        # Within the panel the distribution function errs by what the last Legendre coefficients add to it.
        within = (values @ _COEFFICIENTS.T)[:, -2:].abs().sum(1) / _N * half
        error = torch.maximum(error, within)
        total = settled.index_add(0, row, kronrod)
        fine = error <= tolerance * total[row] / 16
        if landmarks is not None:
            fine &= ~_too_wide(*landmarks, row, left, right)
        if round_ == max_rounds:
            fine = torch.ones_like(fine)
        # Kept with the shift they were measured at, so that all is brought to one scale at the end.
        done.append((row[fine], left[fine], right[fine], log_values[fine], error[fine].log() + shift[row[fine]]))
        settled = settled.index_add(0, row[fine], kronrod[fine])
        if bool(fine.all()):
            break
        rest = ~fine
        middle = (left[rest] + right[rest]) / 2
        row = row[rest].repeat(2)
        left, right = torch.cat([left[rest], middle]), torch.cat([middle, right[rest]])
    row, left, right, log_values, log_error = (torch.cat(part) for part in zip(*done, strict=True))
    density = PiecewiseDensity(
        row, left, right, log_values - shift[row, None], (log_error - shift[row]).exp(), n_rows
    )
    density.log_normaliser = density.log_normaliser + shift
    return density


def _first_edges(
    landmarks: tuple[Tensor, Tensor] | None,
    lower: float,
    upper: float,
    n_rows: int,
    limits: tuple[float | None, float | None],
    n_panels: int = 10,
) -> Tensor:
    """Edges ``[B, n + 1]`` of the first panels: between landmarks where there are any, else uniform."""
    if landmarks is None:
        return torch.linspace(lower, upper, 33, dtype=torch.float64).repeat(n_rows, 1)
    where, scale = landmarks
    limited = limits != (None, None)
    if limited:
        # What lies beyond a limit leaves the tail within it.
        where = where.clamp(*limits)
    points = torch.cat([where - 3 * scale, where, where + 3 * scale], 1).sort(1).values
    pick = torch.linspace(0, points.shape[1] - 1, min(n_panels - 1, points.shape[1])).round().long()
    ends = (where - 10 * scale).amin(1, keepdim=True), (where + 10 * scale).amax(1, keepdim=True)
    edges = torch.cat([ends[0], points[:, pick], ends[1]], 1)
    if limited:
        edges = edges.clamp(*limits)
    # Landmarks that coincide would make panels of no width.
    spaced = torch.arange(edges.shape[1], dtype=torch.float64) * 1e-9 * (ends[1] - ends[0])
    return edges + spaced


def _too_wide(where: Tensor, scale: Tensor, row: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Panels ``[panels]`` whose nodes lie too far apart to see a landmark that they meet."""
    width = right - left
    suspect = torch.nonzero(width > 30 * scale.amin(1)[row]).flatten()
    c, s = where[row[suspect]], scale[row[suspect]]
    meets = (c + 6 * s > left[suspect, None]) & (c - 6 * s < right[suspect, None])
    found = torch.zeros(len(row), dtype=torch.bool)
    found[suspect] = (meets & (width[suspect, None] > 30 * s)).any(1)
    return found


def _like_features(energy: Conditioned, y: Tensor) -> Tensor:
    """y on the device and in the precision that the energy computes in."""
    features = energy.features if isinstance(energy.features, Tensor) else energy.features[0]
    dtype = features.dtype if features.is_floating_point() else torch.get_default_dtype()
    return y.to(features.device, dtype)


def _evaluate(energy: Conditioned, row: Tensor, y: Tensor, max_evaluations: int) -> Tensor:
    size = max(1, max_evaluations // _N)
    parts = []
    with torch.no_grad():
        for start in range(0, len(row), size):
            piece = slice(start, start + size)
            value = energy.rows(row[piece])(_like_features(energy, y[piece]).unsqueeze(-1))
            parts.append(value.double().cpu())
    energies = torch.cat(parts)
    if torch.isnan(energies).any() or torch.isneginf(energies).any():
        raise ValueError("the energy is NaN or -infinity for some y: the model is damaged or has diverged")
    return energies


def _legendre_series(coefficients: Tensor, t: Tensor) -> Tensor:
    """sum_j c_j P_j(t) for coefficients ``[..., n]`` and t ``[...]``, by Clenshaw's recurrence."""
    n = coefficients.shape[-1]
    b1, b2 = torch.zeros_like(t), torch.zeros_like(t)
    for j in range(n - 1, 0, -1):
        b1, b2 = coefficients[..., j] + (2 * j + 1) / (j + 1) * t * b1 - (j + 1) / (j + 2) * b2, b1
    return coefficients[..., 0] + t * b1 - 0.5 * b2


def _prominent(f: Tensor, peaks: Tensor, least: Tensor) -> Tensor:
    """The peaks of f that rise by ``least`` above the valleys that part them from higher ones."""
    kept: list[int] = []
    valleys: list[float] = []  # before each kept peak
    for peak in peaks.tolist():
        valley = float(f[kept[-1] : peak].min()) if kept else -float("inf")
        while kept and float(f[kept[-1]]) - valley < float(least[kept[-1]]) and f[kept[-1]] < f[peak]:
            kept.pop()
            valley = min(valley, valleys.pop())
        if not kept or float(f[peak]) - valley >= float(least[peak]):
            kept.append(peak)
            valleys.append(valley)
    return torch.tensor(kept, dtype=torch.long)


def _parabola_top(y: Tensor, f: Tensor, index: Tensor) -> Tensor:
    """Where the parabola through three neighbouring points is highest."""
    y0, y1, y2 = y[index - 1], y[index], y[index + 1]
    d1, d2 = (f[index] - f[index - 1]) / (y1 - y0), (f[index + 1] - f[index]) / (y2 - y1)
    curvature = (d2 - d1) / (y2 - y0)
    top = (y0 + y1) / 2 - d1 / (2 * curvature.clamp(max=-1e-12))
    return torch.where(curvature < -1e-12, torch.minimum(torch.maximum(top, y0), y2), y1)
