"""A Gaussian's precision from n rows without its normaliser: how the error falls with n, method by method."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor, nn

from thalweg.energies.base import Energy
from thalweg.energies.densities import GaussianMixtureEnergy
from thalweg.objectives.base import Batch, Objective
from thalweg.objectives.noise_contrastive import ConditionalNCE, NoiseContrastiveEstimation
from thalweg.recipes.base import Figure, Recipe, Result, Settings

DIMENSION, N_NOISE = 5, 10
SIZES = (100, 500, 1000, 5000)
N_DATASETS = 20
# The size at which log Z is judged.
SIZE_OF_LOG_Z = 1000
ENTRIES = torch.tril_indices(DIMENSION, DIMENSION)


class QuadraticEnergy(Energy):
    """E(x) = x'Px / 2 for a symmetric matrix P, here the precision of a Gaussian of mean 0.

    Args:
        precision: where P starts ``[D, D]``; its entries on and below the diagonal are learned.
    """

    def __init__(self, precision: Tensor):
        super().__init__()
        self.entries = nn.Parameter(precision[*ENTRIES].clone())

    @property
    def precision(self) -> Tensor:
        lower = self.entries.new_zeros(DIMENSION, DIMENSION).index_put(tuple(ENTRIES), self.entries)
        return lower + lower.tril(-1).t()

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x @ self.precision * x).sum(-1)


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        build: the objective, given the data; None for maximum likelihood, the inverse of the second moments.
        target: bound on its error over that of maximum likelihood, the mean over all sizes.
    """

    build: Callable[[Tensor], Objective] | None
    target: float | None = None


METHODS = {
    "ML": Method(None),
    "NCE": Method(lambda d: NoiseContrastiveEstimation(GaussianMixtureEnergy.from_moments(d), N_NOISE), 1.5),
    "NCE, wide noise": Method(
        lambda d: NoiseContrastiveEstimation(GaussianMixtureEnergy.from_moments(d, widen=2.0), N_NOISE)
    ),
    "CNCE, noise found": Method(lambda d: ConditionalNCE(None, N_NOISE), 2.2),
    "CNCE, noise 1": Method(lambda d: ConditionalNCE(1.0, N_NOISE)),
}


def run(settings: Settings) -> Result:
    started = time.monotonic()
    n_datasets, sizes = (2, SIZES[:2]) if settings.quick else (N_DATASETS, SIZES)
    size_of_log_z = min(SIZE_OF_LOG_Z, sizes[-1])
    errors = {name: np.zeros((len(settings.seeds), len(sizes))) for name in METHODS}
    log_z_errors: dict[str, list[float]] = {}
    for i, seed in enumerate(settings.seeds):
        for j, size in enumerate(sizes):
            found: dict[str, list[float]] = {name: [] for name in METHODS}
            off: dict[str, list[float]] = {}
            for k in range(n_datasets):
                truth, data = _problem(size, 1000 * seed + k)
                for name, method in METHODS.items():
                    precision, log_z = _estimate(method, data, k)
                    found[name].append(float((precision - truth)[*ENTRIES].square().sum()))
                    if log_z is not None:
                        true_log_z = 0.5 * (DIMENSION * np.log(2 * np.pi) - float(truth.logdet()))
                        off.setdefault(name, []).append(abs(log_z - true_log_z))
            for name, values in found.items():
                errors[name][i, j] = np.median(values)
            if size == size_of_log_z:
                for name, values in off.items():
                    log_z_errors.setdefault(name, []).append(float(np.median(values)))
        settings.tell(
            f"seed {seed}: slopes " + ", ".join(f"{k} {_slope(sizes, v[i]):.2f}" for k, v in errors.items())
        )
    figures = _figures(sizes, errors)
    for name, values in log_z_errors.items():
        target = 0.05 if name == "NCE" else None
        figures.append(Figure(f"{name}: error of log Z, n = {size_of_log_z} (nats)", values, target))
    notes = [
        f"Gaussians of mean 0 in {DIMENSION} dimensions, the eigenvalues of the covariance uniform on (0.1, 1), "
        "its eigenvectors at random. The error is the sum of squares over the entries on and above the diagonal; "
        f"a figure is the median over {n_datasets} data sets, each with a precision of its own.",
        f"{N_NOISE} draws of noise for each row, drawn once; L-BFGS in double precision. Noise of NCE: a Gaussian "
        "with the moments of the data, 'wide' of twice the deviation; of conditional NCE: of deviation 1, or "
        "found by its own rule. Conditional NCE learns no log Z.",
    ]
    return Result(figures, {"Error against rows": _picture(sizes, errors)}, notes, time.monotonic() - started)


def _problem(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """A precision ``[D, D]``, the same at every size, and rows drawn with it; both in double precision."""
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=(DIMENSION, DIMENSION)))[0]
    variances = rng.uniform(0.1, 1.0, DIMENSION)
    rows = np.random.default_rng([seed, size]).normal(size=(size, DIMENSION)) * np.sqrt(variances) @ vectors.T
    return torch.as_tensor(vectors / variances @ vectors.T), torch.as_tensor(rows)


def _estimate(method: Method, data: Tensor, seed: int) -> tuple[Tensor, float | None]:
    """The precision, and log Z from the methods that learn it."""
    if method.build is None:
        return torch.linalg.inv(data.t() @ data / len(data)), None
    energy = QuadraticEnergy(torch.diag(1 / data.square().mean(0)))
    objective = method.build(data).double()
    batch, generator = Batch(None, data), torch.Generator()

    def loss() -> Tensor:
        # The same noise at every step: a line search needs one function.
        generator.manual_seed(seed)
        return objective(energy, batch, generator).value

    for _ in range(3 if isinstance(objective, ConditionalNCE) and objective.adapts else 1):
        if isinstance(objective, ConditionalNCE) and objective.adapts:
            _find_noise(loss, objective)
        _minimise(loss, [*energy.parameters(), *objective.parameters()])
    learned = getattr(objective, "log_normaliser", None)
    return energy.precision.detach(), None if learned is None else float(learned.detach())


def _find_noise(loss: Callable[[], Tensor], objective: ConditionalNCE) -> None:
    """Lets the rule of the objective run, at the energy as it is, until the noise stands still."""
    objective.train()
    before = None
    with torch.no_grad():
        for _ in range(500):
            loss()
            if before is not None and torch.equal(objective.scale, before):
                break
            before = objective.scale.clone()
    objective.eval()


def _minimise(loss: Callable[[], Tensor], parameters: list[nn.Parameter]) -> None:
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=200, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def _slope(sizes: tuple[int, ...], errors: np.ndarray) -> float:
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def _figures(sizes: tuple[int, ...], errors: dict[str, np.ndarray]) -> list[Figure]:
    figures = []
    for name, of_seeds in errors.items():
        for j, size in enumerate(sizes):
            figures.append(Figure(f"{name}: error, n = {size}", of_seeds[:, j].tolist()))
        slopes = [_slope(sizes, row) for row in of_seeds]
        figures.append(Figure(f"{name}: slope", slopes))
        figures.append(Figure(f"{name}: slope off -1", [abs(s + 1) for s in slopes], 0.15))
        if name != "ML":
            ratio = (of_seeds / errors["ML"]).mean(1)
            figures.append(Figure(f"{name}: error over ML's (ratio)", ratio.tolist(), METHODS[name].target))
    return figures


def _picture(sizes: tuple[int, ...], errors: dict[str, np.ndarray]) -> go.Figure:
    figure = go.Figure()
    for name, of_seeds in errors.items():
        figure.add_scatter(x=list(sizes), y=of_seeds.mean(0).tolist(), name=name, mode="lines+markers")
    start = float(errors["ML"][:, 0].mean())
    figure.add_scatter(
        x=list(sizes), y=[start * sizes[0] / n for n in sizes], name="1 / n", line={"dash": "dot", "color": "grey"}
    )
    figure.update_layout(
        height=380,
        margin={"l": 60, "r": 10, "t": 20, "b": 45},
        xaxis={"title": "rows n", "type": "log", "dtick": 1},
        yaxis={"title": "squared error of the precision", "type": "log", "dtick": 1},
    )
    return figure


RECIPE = Recipe(
    name="consistency",
    title="The error of estimates without a normaliser falls as one over the number of rows",
    source="Ceylan and Gutmann, Conditional Noise-Contrastive Estimation of Unnormalised Models (2018), section 4",
    run=run,
    minutes=2,
)
