"""The ten losses of the tutorial on energy-based learning, on digits: which collapse, which tell them apart."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from thalweg.data.images import digits
from thalweg.energies.labelled import LabelledEnergy
from thalweg.energies.networks.features import mlp
from thalweg.inference.answers import energy_of, lowest_other, spread
from thalweg.objectives.base import Batch, Objective
from thalweg.objectives.energy_loss import EnergyLoss
from thalweg.objectives.margin import (
    LVQ2,
    AnswerLikelihood,
    Hinge,
    MarginLoss,
    MinimumEmpiricalError,
    SquareExponential,
    SquareSquare,
    logarithmic,
    minimum_classification_error,
    perceptron,
)
from thalweg.recipes.base import Figure, Recipe, Result, Settings
from thalweg.training.guard import COLLAPSED
from thalweg.training.history import History
from thalweg.training.loop import Plan, Trainer

N_LABELS, N_HIDDEN, N_UPDATES, BATCH_SIZE = 10, 64, 1500, 64
# Of the training digits, the share by which the learning rate and a loss's own constant are chosen.
VALIDATION = 0.25
RATES = (1e-3, 3e-3, 1e-2)


@dataclass(frozen=True)
class Loss:
    """A loss of the table, and the energies that it makes sense of.

    Attributes:
        variants: makes the objective, by the constant that is chosen.
        squared: whether energies are squared outputs, from 0, or outputs of either sign.
        warm_up: the first updates, which are the likelihood's.
        target: what the accuracy must reach, if anything.
    """

    variants: Mapping[str, Callable[[], Objective]]
    squared: bool = False
    warm_up: int = 0
    target: float | None = 0.95


LOSSES: dict[str, Loss] = {
    "energy": Loss({"": EnergyLoss}, squared=True, target=None),
    "perceptron": Loss({"": lambda: MarginLoss(perceptron)}, target=0.92),
    "hinge": Loss({f"margin {m:g}": lambda m=m: MarginLoss(Hinge(m)) for m in (1.0, 5.0)}),  # type: ignore[misc]
    "log": Loss({"": lambda: MarginLoss(logarithmic)}),
    "lvq2": Loss(
        {f"delta {d:g}": lambda d=d: MarginLoss(LVQ2(d)) for d in (0.2, 1.0)},  # type: ignore[misc]
        squared=True,
        warm_up=100,
    ),
    "mce": Loss({"": lambda: MarginLoss(minimum_classification_error)}),
    "square-square": Loss(
        {f"margin {m:g}": lambda m=m: MarginLoss(SquareSquare(m)) for m in (1.0, 5.0)},  # type: ignore[misc]
        squared=True,
    ),
    "square-exponential": Loss(
        {f"gamma {g:g}": lambda g=g: MarginLoss(SquareExponential(g)) for g in (1.0, 10.0)},  # type: ignore[misc]
        squared=True,
    ),
    "likelihood": Loss({f"T {t:g}": lambda t=t: AnswerLikelihood(t) for t in (1.0, 5.0)}),  # type: ignore[misc]
    "mee": Loss({f"T {t:g}": lambda t=t: MinimumEmpiricalError(t) for t in (1.0, 5.0)}),  # type: ignore[misc]
}
NOTES = [
    f"A perceptron 64-{N_HIDDEN}-{N_LABELS} on scikit-learn's 8 x 8 digits, {N_UPDATES} updates of {BATCH_SIZE} "
    f"rows. Energies are minus the outputs; for the energy loss, LVQ2 and the two square losses they are squared "
    "outputs, for these want energies from 0. The spread is the highest energy over labels less the lowest, mean "
    "over the test digits.",
    f"Learning rate ({', '.join(f'{r:g}' for r in RATES)}) and constants are chosen by the accuracy on "
    f"{VALIDATION:.0%} of the training digits, then a fresh network learns from all of them; for the energy loss "
    "they are chosen by the loss itself, which is all that it lowers. The test digits are looked at once.",
    f"LVQ2 goes on from {LOSSES['lvq2'].warm_up} updates of the likelihood, as the tutorial advises; its own rows "
    "show what it makes of a fresh network, and what the likelihood had reached when it took over. "
    "It learns from a fresh network nearly as well: squared outputs of such a one are close together, and so the "
    "loss is not flat there.",
    "The guard watches the losses that push no energy up, which of these is the energy loss alone; the spread of "
    "all others is measured here.",
]


class Rows(NamedTuple):
    """Pixels ``[n, 64]`` in [0, 1] and digits ``[n]``."""

    x: Tensor
    y: Tensor


class Fitted(NamedTuple):
    energy: LabelledEnergy
    history: History


def run(settings: Settings) -> Result:
    started = time.monotonic()
    figures: dict[str, list[float]] = {}
    rows_of_table: dict[str, list[str]] = {}
    picture: go.Figure | None = None
    for seed in settings.seeds:
        learn, validation, train, test = _data(settings, seed)
        found: dict[str, float] = {}
        energies: dict[str, LabelledEnergy] = {}
        objectives: dict[str, Objective] = {}
        for name, loss in LOSSES.items():
            rate, constant = _choose(settings, loss, learn, validation, seed)
            energy, history = fit(settings, loss, loss.variants[constant](), train, rate, seed)
            energies[name], objectives[name] = energy, loss.variants[constant]()
            found[f"{name}: accuracy"] = accuracy(energy, test)
            found[f"{name}: spread"] = _spread(energy, test)
            if name == "energy":
                found["energy: collapses reported"] = float(_collapses(history))
            rows_of_table.setdefault(name, []).append(f"{constant + ', ' if constant else ''}rate {rate:g}")
            if loss.warm_up:
                found[f"{name}, fresh network: accuracy"] = accuracy(
                    fit(settings, loss, loss.variants[constant](), train, rate, seed, warm_up=0)[0], test
                )
                found[f"{name}, before it takes over: accuracy"] = accuracy(
                    _warmed_up(settings, loss, train, loss.warm_up, seed), test
                )
        found |= _baselines(learn, validation, train, test)
        for key, value in found.items():
            figures.setdefault(key, []).append(value)
        picture = picture or _planes(energies, objectives, test)
        settings.tell(f"seed {seed}: " + ", ".join(f"{n} {found[f'{n}: accuracy']:.3f}" for n in LOSSES))
    assert picture is not None
    bound = {} if settings.quick else _targets()
    result = [Figure(k, v, *bound.get(k, (None, True))) for k, v in figures.items()]
    pictures = {
        "The ten losses": _table(figures, rows_of_table),
        "Each loss on the plane of two energies, and where the test digits lie": picture,
    }
    return Result(result, pictures, NOTES, time.monotonic() - started)


def _targets() -> dict[str, tuple[float, bool]]:
    """Figure: (target, whether it is an upper bound)."""
    bound = {f"{n}: accuracy": (loss.target, False) for n, loss in LOSSES.items() if loss.target is not None}
    return {**bound, "energy: spread": (COLLAPSED, True), "energy: collapses reported": (1.0, False)}


def _data(settings: Settings, seed: int) -> tuple[Rows, Rows, Rows, Rows]:
    """Digits to learn from while constants are chosen, to choose by, all of these together, and to test with."""
    parts = []
    for images in digits(seed):
        assert images.labels is not None
        parts.append(Rows(torch.from_numpy(images.pixels).flatten(1), torch.from_numpy(images.labels)))
    train, test = parts
    if settings.quick:
        train, test = Rows(train.x[:300], train.y[:300]), Rows(test.x[:100], test.y[:100])
    n = round((1 - VALIDATION) * len(train.y))
    return Rows(train.x[:n], train.y[:n]), Rows(train.x[n:], train.y[n:]), train, test


# -- learning -------------------------------------------------------------------------------------------------


class SquaredOutputs(nn.Module):
    """Minus the squares of a network's outputs, so that energies are from 0."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return -self.network(x).square()


def labelled_energy(squared: bool, seed: int) -> LabelledEnergy:
    """A fresh perceptron, whose outputs or their squares are the energies of the labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(mlp([64, N_HIDDEN], nn.ReLU), nn.Linear(N_HIDDEN, N_LABELS))
    return LabelledEnergy(SquaredOutputs(network) if squared else network)


def fit(
    settings: Settings,
    loss: Loss,
    objective: Objective,
    rows: Rows,
    rate: float,
    seed: int,
    warm_up: int | None = None,
) -> Fitted:
    """A network trained by a loss, after as many updates of the likelihood as the loss wants."""
    warm_up = loss.warm_up if warm_up is None else warm_up
    energy = _warmed_up(settings, loss, rows, warm_up, seed)
    return Fitted(energy, _train(settings, energy, objective, rows, rate, N_UPDATES - warm_up, seed))


def _warmed_up(settings: Settings, loss: Loss, rows: Rows, n_updates: int, seed: int) -> LabelledEnergy:
    energy = labelled_energy(loss.squared, seed)
    if n_updates:
        _train(settings, energy, AnswerLikelihood(), rows, RATES[0], n_updates, seed)
    return energy


def _train(
    settings: Settings,
    energy: LabelledEnergy,
    objective: Objective,
    rows: Rows,
    rate: float,
    n_updates: int,
    seed: int,
) -> History:
    n_updates = min(n_updates, 20) if settings.quick else n_updates
    plan = Plan(10**6, max_steps=n_updates, batch_size=BATCH_SIZE, learning_rate=rate, seed=seed)
    return Trainer(plan).fit(energy, objective, Batch(rows.x, rows.y))


def _choose(settings: Settings, loss: Loss, learn: Rows, validation: Rows, seed: int) -> tuple[float, str]:
    """The learning rate and the constant that are best on the validation digits."""
    best, chosen = -math.inf, (RATES[0], next(iter(loss.variants)))
    for constant, build in loss.variants.items():
        for rate in RATES:
            energy, _ = fit(settings, loss, build(), learn, rate, seed)
            with torch.no_grad():
                own = -float(build()(energy, Batch(validation.x, validation.y)).value)
            figure = own if loss.target is None else accuracy(energy, validation)
            if figure > best:
                best, chosen = figure, (rate, constant)
    return chosen


# -- what is measured -----------------------------------------------------------------------------------------


def accuracy(energy: LabelledEnergy, rows: Rows) -> float:
    """The share of rows whose label has the lowest energy."""
    with torch.no_grad():
        return float((energy.energies(rows.x).argmin(1) == rows.y).float().mean())


def _spread(energy: LabelledEnergy, rows: Rows) -> float:
    with torch.no_grad():
        apart = spread(energy.given(rows.x))
    assert apart is not None
    return float(apart.mean())


def _collapses(history: History) -> int:
    return sum("collapsed" in event for event in history.events)


def _baselines(learn: Rows, validation: Rows, train: Rows, test: Rows) -> dict[str, float]:
    """Logistic regression, its penalty chosen by the same digits as the constants, and the nearest digit."""

    def regression(rows: Rows, strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=2000).fit(rows.x.numpy(), rows.y.numpy())

    def right(model: LogisticRegression | KNeighborsClassifier, rows: Rows) -> float:
        return float(model.score(rows.x.numpy(), rows.y.numpy()))

    strength = max((0.1, 1.0, 10.0), key=lambda c: right(regression(learn, c), validation))
    nearest = KNeighborsClassifier(1).fit(train.x.numpy(), train.y.numpy())
    return {
        "logistic regression: accuracy": right(regression(train, strength), test),
        "nearest neighbour: accuracy": right(nearest, test),
    }


# -- pictures -------------------------------------------------------------------------------------------------


class TwoAnswers(LabelledEnergy):
    """Two answers whose energies are the input ``[N, 2]``: an objective of the first of them is its plane."""

    def energies(self, x: Tensor) -> Tensor:
        return x


def on_plane(objective: Objective, correct: Tensor, incorrect: Tensor) -> Tensor:
    """The loss ``[n]`` where the right answer has the one energy ``[n]``, and the only wrong one the other."""
    x = torch.stack([correct, incorrect], 1)
    with torch.no_grad():
        return objective.per_row(TwoAnswers(), Batch(x, torch.zeros(len(x), dtype=torch.long)), None)


def _planes(energies: dict[str, LabelledEnergy], objectives: dict[str, Objective], test: Rows) -> go.Figure:
    columns, n = 5, 60
    figure = make_subplots(2, columns, subplot_titles=list(energies), vertical_spacing=0.16)
    for i, (name, energy) in enumerate(energies.items()):
        with torch.no_grad():
            given = energy.given(test.x)
            correct, incorrect = energy_of(given, test.y), energy_of(given, lowest_other(given, test.y).y)
        both = torch.cat([correct, incorrect])
        low, high = float(both.quantile(0.01)), float(both.quantile(0.99))
        pad = 0.1 * (high - low)
        axis = torch.linspace(low - pad if LOSSES[name].squared is False else 0.0, high + pad, n)
        wrong, right = torch.meshgrid(axis, axis, indexing="ij")
        height = on_plane(objectives[name], right.flatten(), wrong.flatten()).reshape(n, n)
        where = {"row": i // columns + 1, "col": i % columns + 1}
        figure.add_heatmap(
            x=axis.tolist(), y=axis.tolist(), z=height.tolist(), zmin=float(height.min()),
            zmax=float(height.quantile(0.95)) + 1e-12, colorscale="Viridis", showscale=False,
            hoverinfo="skip", **where,
        )  # fmt: skip
        figure.add_scatter(
            x=correct.tolist(), y=incorrect.tolist(), mode="markers", showlegend=False,
            marker={"size": 3, "color": "white", "opacity": 0.7}, **where,
        )  # fmt: skip
        ends = axis[[0, -1]].tolist()
        figure.add_scatter(
            x=ends, y=ends, mode="lines", showlegend=False, hoverinfo="skip", **where,
            line={"color": "#ff5a4f", "dash": "dash", "width": 1},
        )  # fmt: skip
        figure.update_xaxes(range=ends, nticks=4, **where)
        figure.update_yaxes(range=ends, nticks=4, **where)
    figure.update_xaxes(title="right", row=2)
    figure.update_yaxes(title="lowest wrong", col=1)
    figure.update_layout(height=560, margin={"l": 50, "r": 10, "t": 30, "b": 45})
    return figure


def _table(figures: dict[str, list[float]], chosen: dict[str, list[str]]) -> go.Figure:
    """Loss, energies, what was chosen, accuracy and spread: mean and standard error over the seeds."""

    def cell(name: str, digits_: int) -> str:
        values = np.array(figures[name])
        error = f" ± {values.std(ddof=1) / math.sqrt(len(values)):.{digits_}f}" if len(values) > 1 else ""
        return f"{values.mean():.{digits_}f}{error}"

    rows = [
        [
            name,
            "squared outputs" if loss.squared else "minus the outputs",
            cell(f"{name}: accuracy", 3),
            cell(f"{name}: spread", 5 if name == "energy" else 2),
            "; ".join(chosen[name]),
        ]
        for name, loss in LOSSES.items()
    ]
    head = ["loss", "energies", "accuracy", "spread of energies", "chosen, for each seed"]
    return go.Figure(go.Table(header={"values": head}, cells={"values": list(zip(*rows, strict=True))}))


RECIPE = Recipe(
    name="losses",
    title="Ten losses on one network: which collapse, and which need what of the energies",
    source="LeCun et al., A Tutorial on Energy-Based Learning (2006), table 1",
    run=run,
    minutes=6,
)
