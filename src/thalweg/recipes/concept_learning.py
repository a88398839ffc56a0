"""Spatial concepts from demonstrations: one energy finds who fulfils a concept, and makes others fulfil it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
import torch
import torch.nn.functional as F
from plotly.subplots import make_subplots
from torch import Tensor, nn

from thalweg.data.concept_worlds import CONCEPTS, N_ENTITIES, Concept, Worlds
from thalweg.energies.base import ConditionalEnergy, Energy, align, standard_normal
from thalweg.energies.networks import mlp
from thalweg.objectives.base import AnyEnergy, Batch, Objective
from thalweg.objectives.contrastive_divergence import TetheredContrastiveDivergence
from thalweg.objectives.energy_loss import EnergyLoss
from thalweg.recipes.base import Figure, Recipe, Result, Settings
from thalweg.sampling.buffer import Chains, Start
from thalweg.sampling.chain import run_chain
from thalweg.sampling.langevin import ColdLangevin
from thalweg.training.loop import Plan, Trainer

N_DEMONSTRATIONS, CODE, WIDTH = 5, 16, 48
MOST_ATTENDED = 3
N_EPISODES, N_TEST, BATCH = 800, 200, 64  # episodes are of each concept
SIZES = N_EPISODES, N_TEST, 700, 2000  # and updates of an energy, of a supervised network
# Steps of descent over a code, and over places or attention in training and in tests.
CODE_STEPS, TRAIN_STEPS, TEST_STEPS, N_STARTS = 3, 10, 30, 4
CODE_KERNEL = ColdLangevin(4.0, 0.0, low=-3.0, high=3.0)
PLACE_KERNEL = ColdLangevin(0.3, 0.01, low=-1.0, high=1.0)
ATTENTION_KERNEL = ColdLangevin(0.5, 0.01, low=-1.0, high=1.0)
SLOPE = 4.0  # attention is sigmoid(SLOPE * a), a in [-1, 1]


# -- episodes ----------------------------------------------------------------------------------------------------


class Episodes(NamedTuple):
    """Demonstrations of a concept, and one more world of it, each a row.

    Attributes:
        places: of the demonstrations ``[n, N_DEMONSTRATIONS, N_ENTITIES, 2]``.
        attention: of the demonstrations ``[n, N_DEMONSTRATIONS, N_ENTITIES]``, 0 or 1.
        world: places in the other world ``[n, N_ENTITIES, 2]``.
        attended: attention there ``[n, N_ENTITIES]``.
        moved: the same world, the attended entities moved some way, or in half of the rows anywhere.
        thrown: the same world, the attended entities anywhere.
        generates: ``[n]``, 1 where the concept says where entities are.
    """

    places: Tensor
    attention: Tensor
    world: Tensor
    attended: Tensor
    moved: Tensor
    thrown: Tensor
    generates: Tensor

    def row(self) -> Tensor:
        """All of it ``[n, X]``, as a batch holds it."""
        return torch.cat([part.flatten(1) for part in self[:-1]] + [self.generates[:, None]], 1)

    @classmethod
    def of_row(cls, row: Tensor) -> Episodes:
        one, two = (N_ENTITIES,), (N_ENTITIES, 2)  # a number or a place for each entity
        demonstrated = [(N_DEMONSTRATIONS, *shape) for shape in (two, one)]
        shapes: list[tuple[int, ...]] = [*demonstrated, two, one, two, two, (1,)]
        parts = row.split([int(np.prod(shape)) for shape in shapes], 1)
        places, attention, world, attended, moved, thrown, generates = (
            part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)
        )
        return cls(places, attention, world, attended, moved, thrown, generates.squeeze(1))


def episodes(concept: Concept, variant: np.ndarray, rng: np.random.Generator) -> Episodes:
    """An episode of each variant ``[n, 2]`` of a concept."""
    n, n_worlds = len(variant), N_DEMONSTRATIONS + 1
    worlds = concept.draw(np.repeat(variant, n_worlds, 0), rng)
    places = worlds.places.reshape(n, n_worlds, N_ENTITIES, 2)
    attention = worlds.attention.reshape(n, n_worlds, N_ENTITIES)
    world, attended = places[:, -1], attention[:, -1]
    shift = rng.uniform(0.05, 0.7, (n, 1, 1)) * rng.normal(size=world.shape)
    thrown = np.where(attended[..., None], rng.uniform(-1, 1, world.shape), world)
    moved = np.where(attended[..., None], np.clip(world + shift, -1, 1), world)
    moved = np.where(rng.random((n, 1, 1)) < 0.5, thrown, moved)
    parts = (places[:, :-1], attention[:, :-1], world, attended, moved, thrown, np.full(n, concept.generates))
    return Episodes(*(torch.as_tensor(part, dtype=torch.float32) for part in parts))


# -- the energy --------------------------------------------------------------------------------------------------


def entities(places: Tensor) -> Tensor:
    """Places ``[*batch, N_ENTITIES, 2]`` with marks, red, blue or grey: ``[*batch, N_ENTITIES, 5]``."""
    marks = F.one_hot(torch.arange(N_ENTITIES).clamp(max=2), 3).to(places.dtype)
    return torch.cat([places, marks.expand(*places.shape[:-1], 3)], -1)


def most_attended(these: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
    """The MOST_ATTENDED most attended: where attention is 0 or 1, the other entities add nothing to the energy."""
    which = attention.topk(MOST_ATTENDED).indices
    return these.gather(-2, which.unsqueeze(-1).expand(*which.shape, these.shape[-1])), attention.gather(-1, which)


class RelationalEnergy(nn.Module):
    """E(x, a, w) = log(1 + |f(sum_ij a_i a_j g(x_i, x_j, w), w)|^2), of entities, attention and a concept's code.

    Every pair counts as much as both its entities are attended to. The source has the square alone, whose slope
    grows without bound, and descents down it diverge while it is learned.

    Source: [Mordatch 2018, sec. 3].
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, WIDTH), nn.Linear(5, WIDTH, bias=False)
        self.code = nn.Linear(CODE, WIDTH, bias=False)
        self.pair = nn.Linear(WIDTH, WIDTH)
        self.hidden, self.out = nn.Linear(WIDTH + CODE, WIDTH), nn.Linear(WIDTH, 16)
        nn.init.normal_(self.out.weight, std=0.5)  # so that descents move from the first update

    def forward(self, x: Tensor, attention: Tensor, code: Tensor) -> Tensor:
        """Energies ``[*batch]`` of entities ``[*batch, M, 5]``, their attention, and codes ``[*batch, CODE]``."""
        pairs = self.first(x).unsqueeze(-2) + self.second(x).unsqueeze(-3) + self.code(code)[..., None, None, :]
        related = F.silu(self.pair(F.silu(pairs)))
        weight = attention.unsqueeze(-1) * attention.unsqueeze(-2)
        total = (weight.unsqueeze(-1) * related).sum((-2, -3))
        out = self.out(F.silu(self.hidden(torch.cat([total, code.expand(*total.shape[:-1], CODE)], -1))))
        return out.square().sum(-1).log1p()


class OfCode(Energy):
    """The energy of codes ``[B, CODE]``: the mean over the demonstrations of the concept."""

    def __init__(self, relational: RelationalEnergy, demonstrations: Episodes):
        super().__init__()
        object.__setattr__(self, "relational", relational)
        self.seen = most_attended(entities(demonstrations.places), demonstrations.attention)

    relational: RelationalEnergy

    def forward(self, x: Tensor) -> Tensor:
        return self.relational(*self.seen, x.unsqueeze(-2)).mean(-1)


class OfAttention(ConditionalEnergy):
    """The energy of attention ``[B, *candidates, N_ENTITIES]``, in [-1, 1], given places and a code as one row."""

    def __init__(self, relational: RelationalEnergy):
        super().__init__()
        self.relational = relational

    def head(self, features: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        places, code = align(features, y).split([2 * N_ENTITIES, CODE], -1)
        x = entities(places.unflatten(-1, (N_ENTITIES, 2)))
        return self.relational(x, torch.sigmoid(SLOPE * y), code)


class OfPlaces(ConditionalEnergy):
    """The energy of places ``[B, *candidates, 2 * N_ENTITIES]`` given attention, 0 or 1, a code and a start."""

    def __init__(self, relational: RelationalEnergy):
        super().__init__()
        self.relational = relational

    def head(self, features: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        attention, code, _ = align(features, y).split([N_ENTITIES, CODE, 2 * N_ENTITIES], -1)
        x = entities(y.unflatten(-1, (N_ENTITIES, 2)))
        return self.relational(*most_attended(x, attention.expand(x.shape[:-1])), code)


class FromUndecided(Start):
    """Attention that is undecided, but for a little noise."""

    def draw(self, x: Tensor | None, y: Tensor, generator: torch.Generator | None = None) -> Chains:
        return Chains(x, 0.25 * standard_normal(y.shape, y, generator))


class FromGiven(Start):
    """Where the last columns of what is given say."""

    def draw(self, x: Tensor | None, y: Tensor, generator: torch.Generator | None = None) -> Chains:
        assert x is not None
        return Chains(x, x[:, -y.shape[1] :].detach())


def infer_code(relational: RelationalEnergy, shown: Episodes, with_graph: bool = False) -> Tensor:
    """Codes ``[n, CODE]`` of what is demonstrated: a few steps down the energy, from 0."""
    start = shown.world.new_zeros(len(shown.world), CODE)
    n_with_graph = CODE_STEPS if with_graph else 0
    energy = OfCode(relational, shown)
    return run_chain(
        CODE_KERNEL, energy, start, CODE_STEPS, check=False, differentiable_steps=n_with_graph
    ).position


class LearnFromDemonstrations(Objective):
    """Contrastive divergence of attention, of places, or of both, under codes inferred from the demonstrations.

    The gradient flows through the descents over attention and places, and through that over codes.

    Args:
        identifies: whether attention is learned.
        generates: whether places are.

    Source: [Mordatch 2018, sec. 3.2].
    """

    def __init__(self, identifies: bool, generates: bool):
        super().__init__()
        self.identifies, self.generates = identifies, generates
        self.of_attention = TetheredContrastiveDivergence(
            ATTENTION_KERNEL, TRAIN_STEPS, FromUndecided(), 0.02, TRAIN_STEPS, 10.0
        )
        self.of_places = TetheredContrastiveDivergence(
            PLACE_KERNEL, TRAIN_STEPS, FromGiven(), 0.02, TRAIN_STEPS, 10.0
        )

    def check(self, energy: AnyEnergy, batch: Batch) -> None:
        """The episodes are the recipe's own."""

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        assert isinstance(energy, RelationalEnergy)
        shown = Episodes.of_row(batch.y)
        code = infer_code(energy, shown, with_graph=True)
        loss = code.new_zeros(len(code))
        self.metrics = {}
        if self.identifies:
            given = torch.cat([shown.world.flatten(1), code], 1)
            rows = Batch(given, 2 * shown.attended - 1)
            loss = loss + self.of_attention.per_row(OfAttention(energy), rows, generator)
            self.metrics |= {f"attention, {name}": value for name, value in self.of_attention.metrics.items()}
        if self.generates:
            given = torch.cat([shown.attended, code, shown.moved.flatten(1)], 1)
            rows = Batch(given, shown.world.flatten(1))
            loss = loss + shown.generates * self.of_places.per_row(OfPlaces(energy), rows, generator)
            self.metrics |= {f"places, {name}": value for name, value in self.of_places.metrics.items()}
        return loss


# -- what a model answers ----------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """In the other world: attention ``[n, N_ENTITIES]``, True or False, and places ``[n, N_ENTITIES, 2]``."""

    attention: Tensor
    places: Tensor


def by_descent(relational: RelationalEnergy, seed: int, shown: Episodes) -> Answers:
    """Attention and places by descent from a few starts, of which the lowest end counts."""
    generator = torch.Generator().manual_seed(seed)
    n, code = len(shown.world), infer_code(relational, shown)
    of_attention = OfAttention(relational).given(torch.cat([shown.world.flatten(1), code], 1)).detach()
    start = 0.25 * torch.randn((n, N_STARTS, N_ENTITIES), generator=generator)
    found = _lowest(of_attention, start, ATTENTION_KERNEL, generator)
    given = torch.cat([shown.attended, code, shown.thrown.flatten(1)], 1)
    anywhere = 2 * torch.rand((n, N_STARTS - 1, N_ENTITIES, 2), generator=generator) - 1
    attended = shown.attended[:, None, :, None] > 0
    starts = torch.cat([shown.thrown[:, None], torch.where(attended, anywhere, shown.world[:, None])], 1)
    places = _lowest(OfPlaces(relational).given(given).detach(), starts.flatten(2), PLACE_KERNEL, generator)
    return Answers(found > 0, places.unflatten(1, (N_ENTITIES, 2)))


def _lowest(energy: Energy, starts: Tensor, kernel: ColdLangevin, generator: torch.Generator) -> Tensor:
    ends = run_chain(kernel, energy, starts, TEST_STEPS, generator).position
    with torch.no_grad():
        return ends[torch.arange(len(ends)), energy(ends).argmin(1)]


# -- supervised networks -----------------------------------------------------------------------------------------


class _Related(nn.Module):
    """Features of each of a few entities ``[*batch, M, n_out]``: the sum over its pairs, and itself."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.pair, self.out = mlp([2 * n_in, 64, 64]), nn.Sequential(mlp([64 + n_in, 64]), nn.Linear(64, n_out))

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], *x.shape[-2:])
        both = torch.cat([x.unsqueeze(-2).expand(shape), x.unsqueeze(-3).expand(shape)], -1)
        return self.out(torch.cat([self.pair(both).sum(-2), x], -1))


class SupervisedNetwork(ConditionalEnergy):
    """A network of pairs that reads the demonstrations into a code, and from world and code gives the answer.

    The cross-entropy of attention or the squared error of places, as an energy that is lowest at the answer.
    """

    def __init__(self, generates: bool):
        super().__init__()
        self.generates = generates
        self.reader = _Related(6, 32)
        self.answerer = _Related(5 + 32 + generates, 2 if generates else 1)

    def answer(self, x: Tensor) -> Tensor:
        """Places ``[B, 2 * N_ENTITIES]``, or log odds of attention ``[B, N_ENTITIES]``."""
        shown = Episodes.of_row(x)
        seen, attention = most_attended(entities(shown.places), shown.attention)
        read = self.reader(torch.cat([seen, attention.unsqueeze(-1)], -1))
        code = (attention.unsqueeze(-1) * read).sum(2).mean(1).unsqueeze(1).expand(-1, N_ENTITIES, -1)
        if not self.generates:
            return self.answerer(torch.cat([entities(shown.world), code], -1)).squeeze(-1)
        attended = shown.attended.unsqueeze(-1)
        shift = self.answerer(torch.cat([entities(shown.thrown), attended, code], -1))
        return (shown.thrown + attended * shift).flatten(1)

    def features(self, x: Tensor) -> Tensor:
        return torch.cat([self.answer(x), Episodes.of_row(x).generates[:, None]], 1)

    def head(self, features: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        if self.generates:
            return features[:, -1] * (y - features[:, :-1]).square().sum(-1)
        return F.softplus(-y * features[:, :-1]).sum(-1)


def supervised_answers(finder: SupervisedNetwork, mover: SupervisedNetwork, shown: Episodes) -> Answers:
    with torch.no_grad():
        places = mover.answer(shown.row()).unflatten(1, (N_ENTITIES, 2))
        return Answers(finder.answer(shown.row()) > 0, places)


# -- the recipe --------------------------------------------------------------------------------------------------

Model = Callable[[Episodes], Answers]
# What each energy learns: to identify, to generate.
TRAINED = {"both": (True, True), "identified": (True, False), "generated": (False, True)}
NOTES = [
    f"Worlds of {N_ENTITIES} entities in the plane, one red, one blue, the others grey; of each concept there are "
    f"{N_DEMONSTRATIONS} demonstrations, worlds with attention to the entities that fulfil it, and another world. "
    "Identified: attention in the other world is right, entity for entity. Generated: the entities attended to "
    "are thrown anywhere, and moved until they fulfil the concept. Both are checked by programme.",
    f"{N_EPISODES} episodes of each concept to learn from, {N_TEST} others to test with. 'both' learned to "
    "identify and to generate; 'identified' learned only to identify, and 'generated' only to generate. A code is "
    f"inferred by {CODE_STEPS} steps down the energy of the demonstrations, all else by {TRAIN_STEPS} steps in "
    f"training and {TEST_STEPS} in the test, where of {N_STARTS} starts the lowest end counts.",
    "'new': places of regions, directions of lines and sides of triangles that no episode of the training had. "
    "'network': two supervised networks, one for each task, that read the same demonstrations into a code.",
    "Chance, identified: a set that may fulfil the concept, drawn at random; of a quantity, any attention. "
    "Chance, generated: entities thrown anywhere. A quantity says nothing about places. The settings were chosen "
    "on seed 0.",
]


def run(settings: Settings) -> Result:
    started = time.monotonic()
    figures: dict[str, list[float]] = {}
    pictures: dict[str, Any] = {}
    n_episodes, n_test, n_updates, n_network = (10, 5, 2, 2) if settings.quick else SIZES
    for seed in settings.seeds:
        rng = np.random.default_rng(seed)
        rows = torch.cat([episodes(c, c.variants(n_episodes, rng), rng).row() for c in CONCEPTS])
        tests = [Unseen(c, new, n_test, rng) for c in CONCEPTS for new in (False, True) if c.has_new or not new]
        models: dict[str, Model] = {}
        for name, tasks in TRAINED.items():
            begun = time.process_time()
            energy = trained_energy(rows, *tasks, seed, n_updates)
            models[name] = partial(by_descent, energy, seed)
            figures.setdefault(f"{name}: training, CPU seconds", []).append(time.process_time() - begun)
        begun, shown = time.process_time(), Episodes.of_row(rows)
        finder, mover = (trained_network(shown, generates, seed, n_network) for generates in (False, True))
        models["network"] = partial(supervised_answers, finder, mover)
        figures.setdefault("network: training, CPU seconds", []).append(time.process_time() - begun)

        found = {name: [test.judge(model(test.shown)) for test in tests] for name, model in models.items()}
        found["chance"] = [test.chance() for test in tests]
        for name, scores in found.items():
            for key, value in _named(tests, scores).items():
                figures.setdefault(f"{name}: {key}", []).append(value)
        for name in ("identified", "generated"):
            task = "generated" if name == "identified" else "identified"
            above = [figures[f"{who}: mean, {task}"][-1] for who in (name, "chance")]
            figures.setdefault(f"{name}: mean, {task}, above chance", []).append(above[0] - above[1])
        line = ", ".join(f"{name} {figures[f'{name}: mean, identified'][-1]:.2f}" for name in found)
        line += "; generated: " + ", ".join(
            f"{name} {figures[f'{name}: mean, generated'][-1]:.2f}" for name in found
        )
        settings.tell(f"seed {seed}, identified: {line}")
        if not pictures:
            for name in ("both", "network"):
                pictures[f"Demonstrated, identified and generated: {name}"] = _picture(tests, models[name])
    return Result(_with_targets(figures, settings.quick), pictures, NOTES, time.monotonic() - started)


class Unseen:
    """Episodes of one concept that nothing was trained on.

    Args:
        new: whether its variants are those that are kept apart.
    """

    def __init__(self, concept: Concept, new: bool, n: int, rng: np.random.Generator):
        self.concept, self.new = concept, new
        self.variant = concept.variants(n, rng, new)
        self.shown = episodes(concept, self.variant, rng)

    def judge(self, given: Answers) -> tuple[float, float]:
        """How often the right entities are identified, and what is generated fulfils the concept."""
        # One set alone fulfils the concept in each world; but of a quantity any so large.
        identified = self._fulfilled(self.shown.world, given.attention)
        return identified, self._fulfilled(given.places, self.shown.attended > 0)

    def chance(self) -> tuple[float, float]:
        thrown = self._fulfilled(self.shown.thrown, self.shown.attended > 0)
        if self.concept.name == "quantity":
            sizes = self.concept.sets.sum(1) == self.variant[:, :1]
            return float(sizes.sum(1).mean() / 2**N_ENTITIES), thrown
        return 1 / len(self.concept.sets), thrown

    def _fulfilled(self, places: Tensor, attention: Tensor) -> float:
        worlds = Worlds(places.double().numpy(), attention.numpy())
        return float(self.concept.fulfilled(self.variant, worlds).mean())


def _named(tests: list[Unseen], scores: list[tuple[float, float]]) -> dict[str, float]:
    """Figures of one model by name: of each concept, and the means over those that were learned, not new."""
    out, means = {}, {"identified": [], "generated": []}  # type: ignore[var-annotated]
    for test, pair in zip(tests, scores, strict=True):
        for task, value in zip(means, pair, strict=True):
            if task == "identified" or test.concept.generates:
                out[f"{'new ' * test.new}{test.concept.name}, {task}"] = value
                if not test.new:
                    means[task].append(value)
    return out | {f"mean, {task}": float(np.mean(values)) for task, values in means.items()}


def _with_targets(figures: dict[str, list[float]], quick: bool) -> list[Figure]:
    """What was learned in one way and used in the other must be above chance by more than the seeds differ."""
    rows = []
    for name, values in sorted(figures.items()):
        spread = float(np.ptp(values)) if name.endswith("above chance") and not quick else None
        rows.append(Figure(name, values, spread, at_most=spread is None))
    return rows


def _picture(tests: list[Unseen], model: Model) -> go.Figure:
    """A row for each concept: two demonstrations, what is identified, what is generated and from where."""
    shown = [test for test in tests if not test.new]
    titles = ["demonstrated", "demonstrated", "identified", "thrown", "generated"]
    figure = make_subplots(len(shown), 5, column_titles=titles, row_titles=[test.concept.name for test in shown])
    for row, test in enumerate(shown, 1):
        given, own = model(test.shown), test.shown
        panels = [(own.places[0, k], own.attention[0, k]) for k in range(2)]
        panels += [(own.world[0], given.attention[0]), (own.thrown[0], own.attended[0])]
        panels.append((given.places[0], own.attended[0]))
        for column, (places, attention) in enumerate(panels, 1):
            widths = [3 if attended else 0 for attended in attention.tolist()]
            colours = ["#c0392b", "#2a6fbb", *["#b0b0b0"] * (N_ENTITIES - 2)]
            figure.add_scatter(
                x=places[:, 0].tolist(), y=places[:, 1].tolist(), mode="markers", showlegend=False, row=row,
                col=column, marker={"size": 12, "color": colours, "line": {"width": widths, "color": "black"}},
            )  # fmt: skip
    figure.update_xaxes(range=[-1.15, 1.15], showticklabels=False)
    figure.update_yaxes(range=[-1.15, 1.15], showticklabels=False)
    figure.update_layout(height=150 * len(shown) + 60, margin={"l": 10, "r": 30, "t": 40, "b": 10})
    return figure


def trained_energy(rows: Tensor, identifies: bool, generates: bool, seed: int, n_updates: int) -> RelationalEnergy:
    torch.manual_seed(seed)
    energy = RelationalEnergy()
    plan = Plan(
        max_epochs=n_updates, max_steps=n_updates, batch_size=BATCH, learning_rate=4e-3, warmup_steps=50,
        clip_norm=5.0, ema_decay=0.98, seed=seed,
    )  # fmt: skip
    Trainer(plan).fit(energy, LearnFromDemonstrations(identifies, generates), Batch(None, rows))
    return energy


def trained_network(shown: Episodes, generates: bool, seed: int, n_updates: int) -> SupervisedNetwork:
    torch.manual_seed(seed)
    network = SupervisedNetwork(generates)
    y = shown.world.flatten(1) if generates else 2 * shown.attended - 1
    plan = Plan(
        max_epochs=n_updates, max_steps=n_updates, batch_size=BATCH, learning_rate=5e-3, warmup_steps=50,
        clip_norm=5.0, ema_decay=0.98, seed=seed,
    )  # fmt: skip
    Trainer(plan).fit(network, EnergyLoss(), Batch(shown.row(), y))
    return network


RECIPE = Recipe(
    name="concept-learning",
    title="Spatial concepts from five demonstrations: identified and generated by descent down one energy",
    source="Mordatch, Concept Learning with Energy-Based Models (2018)",
    run=run,
    minutes=10,
)
