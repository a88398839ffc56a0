"""Boltzmann machines and belief networks on digits of 28 x 28 pixels, where log Z is annealed."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import plotly.graph_objects as go
import torch
from torch import Tensor

from thalweg.data.images import read_split, tile
from thalweg.energies.machines.belief import DeepBeliefNetwork
from thalweg.energies.machines.layered import DBMEnergy, LayeredMachine, RBMEnergy
from thalweg.energies.machines.units import Binary
from thalweg.evaluation.density_baselines import BernoulliMixture
from thalweg.objectives.base import Batch
from thalweg.recipes.base import Figure, Result, Settings
from thalweg.sampling.annealing import Bracket
from thalweg.sampling.layered_annealing import bracket_machine
from thalweg.training.loop import Trainer
from thalweg.training.moments import Moments, MomentStep, machine_plan
from thalweg.training.plan import Plan
from thalweg.training.pretraining import grow_belief_network, pretrain, up_down

SIDE = 28
DEEP, SMALL = [384, 128], [8, 8]  # hidden units of the deep ones, from below; those of a quick run
N_EPOCHS, RATE, DECAY, N_BRIDGES = 60, 0.1, 0.001, 6000
MOMENTS = Moments(n_gibbs=5)


def run(settings: Settings) -> Result:
    """Two restricted machines, a deep one and a belief network: as many units in all, or in the first layer."""
    assert settings.data is not None
    started = time.monotonic()
    path = settings.data / "mnist_12k.npz"
    if not path.exists():
        raise ValueError(f"{settings.data} holds no mnist_12k.npz (X_train, y_train, X_test, y_test)")
    train, test = ((torch.from_numpy(d.pixels).flatten(1) > 0.5).float() for d in read_split(path))
    if settings.quick:
        train, test = train[:200], test[:50]
    figures: dict[str, list[float]] = {}
    pictures: dict[str, Any] = {"Training images": wall(train[:40], SIDE, 20)}
    for seed in settings.seeds:
        found, shown = _one_run(train, test, seed, settings)
        for key, value in found.items():
            figures.setdefault(key, []).append(value)
        settings.tell(f"seed {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()))
        if seed == settings.seeds[0]:
            pictures |= shown
    notes = [
        f"Digits of 28 x 28 pixels, on where above a half; {len(train)} to train on, {len(test)} to test with. "
        f"Mean test log-likelihoods in nats. The deep ones have {DEEP} hidden units; beside them stand a "
        f"restricted machine with as many in all, {sum(DEEP)}, and one of their first layer alone, {DEEP[0]}.",
        f"Machines: persistent chains of 5 sweeps an update, weight decay {DECAY}, {N_EPOCHS} epochs at a rate "
        f"from {RATE} falling to 0; the deep one after 10 of pretraining for each pair of layers. The belief "
        f"network: 20 epochs for each pair of layers, then 150 up and down, from {RATE} too and without decay.",
        f"log Z is the middle of what the annealing there and back say ({N_BRIDGES} bridges, 100 chains). The way "
        "back starts at the chains of the training, of the belief network at what its way up makes of data. Of "
        "the deep machine and the belief network the figures are lower bounds beside that.",
    ]
    rows = [Figure(k, v, 0.0 if " less RBM " in k else None, at_most=False) for k, v in figures.items()]
    return Result(rows, pictures, notes, time.monotonic() - started)


def _plan(n_epochs: int, seed: int, quick: bool, weight_decay: float = 0.0) -> Plan:
    n = 1 if quick else n_epochs
    return machine_plan(max_epochs=n, batch_size=100, learning_rate=RATE, weight_decay=weight_decay, seed=seed)


def _fitted(machine: LayeredMachine, train: Tensor, plan: Plan) -> Tensor:
    """Train, and hand back the chains' first hidden layer, where the way back of the annealing starts."""
    step = MomentStep(machine, MOMENTS)
    Trainer(plan).run(step, Batch(None, train))
    return step.chains[1]


def _one_run(
    train: Tensor, test: Tensor, seed: int, settings: Settings
) -> tuple[dict[str, float], dict[str, Any]]:
    quick = settings.quick
    first, second = SMALL if quick else DEEP
    found: dict[str, float] = {}
    generator = torch.Generator().manual_seed(seed)
    mixture = BernoulliMixture(100).fit(train.numpy().astype(float), seed, 5 if quick else 50)
    found["mixture of 100 Bernoullis (nats)"] = float(mixture.log_prob(test.numpy().astype(float)).mean())

    plan = partial(_plan, seed=seed, quick=quick, weight_decay=DECAY)
    bias = Binary(SIDE**2).bias_of(train)
    wide = f"RBM {SIDE**2}-{first + second}"
    machines: dict[str, Any] = {}
    for name, n in ((wide, first + second), (f"RBM {SIDE**2}-{first}", first)):
        machines[name] = new_machine(train, [n], seed)
        chains = _fitted(machines[name], train, plan(N_EPOCHS))
        with torch.no_grad():
            value = float(-machines[name](test).mean())
        log_z = _bracket(machines[name], bias, chains, generator, settings)
        found[f"{name} (nats)"], found[f"{name}: log Z back less there"] = value - log_z.estimate, log_z.width

    dbm = new_machine(train, [first, second], seed)
    pretrain(dbm, train, plan(10), MOMENTS)
    chains = _fitted(dbm, train, plan(N_EPOCHS))
    log_z = _bracket(dbm, bias, chains, generator, settings)
    found["DBM: variational bound (nats)"] = float(dbm.evidence_bound(test).mean()) - log_z.estimate
    bound = float(dbm.importance_bound(test, 100, generator).mean())
    found["DBM: bound of 100 weights (nats)"] = bound - log_z.estimate
    found["DBM: log Z back less there"] = log_z.width

    dbn, of_dbn = _belief_network(train, test, seed, settings)
    found |= of_dbn
    for name in ("DBM: variational bound", "DBM: bound of 100 weights", "DBN: bound of 500 weights"):
        for rbm in machines:
            found[f"{name} less {rbm}"] = found[f"{name} (nats)"] - found[f"{rbm} (nats)"]

    dbn.n_sweeps = n_sweeps = 5 if quick else 1000
    with torch.no_grad():
        v = torch.bernoulli(train.mean(0).expand(40, -1), generator=generator)
        state = torch.cat([v, torch.zeros(40, first + second)], 1)
        for _ in range(n_sweeps):
            v, state = machines[wide].sweep(v, generator), dbm.sweep(state, generator)
    walls = {
        "Filters of the restricted machine": stretched(machines[wide].weights[0].detach().t())[:80],
        "Fantasies of the restricted machine": v,
        "Fantasies of the deep machine": dbm.split(state)[0],
        "Fantasies of the belief network": dbn.sample(40, generator),
    }
    return found, {title: wall(images, SIDE, 20) for title, images in walls.items()}


def _belief_network(
    train: Tensor, test: Tensor, seed: int, settings: Settings
) -> tuple[DeepBeliefNetwork, dict[str, float]]:
    quick = settings.quick
    plan = partial(_plan, seed=seed, quick=quick)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network, _ = grow_belief_network(SIDE**2, SMALL if quick else DEEP, train, plan(20), MOMENTS)
    up_down(network, train, plan(150), MOMENTS)
    top = network.top
    # What the way up makes of data knows of modes that the annealing there may miss.
    inner = network.draw_up(train[:100], generator)[0][-1]
    with torch.no_grad():
        hidden = top.units[1].sample(top.field([inner, None], 1), generator)
    log_z = _bracket(top, top.visible.bias_of(inner), hidden, generator, settings)
    bound = float(network.importance_bound(test, 500, generator).mean())
    found = {
        "DBN: bound of 500 weights (nats)": bound - log_z.estimate,
        "DBN: log Z back less there": log_z.width,
    }
    return network, found


def _bracket(
    machine: LayeredMachine,
    bias: Tensor,
    chains: Tensor,
    generator: torch.Generator,
    settings: Settings,
) -> Bracket:
    quick = settings.quick
    found = bracket_machine(machine, bias, 100, 20 if quick else N_BRIDGES, 100, chains, generator)
    if found.warning is not None:
        settings.tell(f"log Z may be off by more than its error: {found.warning}")
    return found


def new_machine(rows: Tensor, hidden: list[int], seed: int) -> Any:
    """A machine whose visible units have the means of the rows."""
    torch.manual_seed(seed)
    machine = RBMEnergy(rows.shape[1], hidden[0]) if len(hidden) == 1 else DBMEnergy(rows.shape[1], hidden)
    with torch.no_grad():
        machine.biases[0].copy_(machine.visible.bias_of(rows))
    return machine


def wall(rows: Tensor, side: int, n_columns: int) -> go.Figure:
    """Square images ``[n, side * side]`` in [0, 1], side by side."""
    pixels = tile(rows.reshape(-1, 1, side, side).numpy(), n_columns)
    figure = go.Figure(go.Image(z=pixels))
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    height = int(min(1000, 1000 * pixels.shape[0] / pixels.shape[1])) + 20
    figure.update_layout(height=height, margin={"l": 0, "r": 0, "t": 10, "b": 10})
    return figure


def stretched(filters: Tensor) -> Tensor:
    """Each filter from 0 to 1, its own zero in the middle."""
    return 0.5 + 0.5 * filters / filters.abs().amax(1, keepdim=True)


def energies_matrix(energies: Tensor, classes: list[str]) -> go.Figure:
    """Energies ``[K, K]`` of each class (row) under each class's machine (column), less the least of the row."""
    numbers = (energies - energies.min(1, keepdim=True).values).numpy()
    figure = go.Figure(
        go.Heatmap(
            z=numbers, x=classes, y=classes, colorscale="Viridis_r", texttemplate="%{z:.1f}",
            colorbar={"title": "nats"},
        )
    )  # fmt: skip
    figure.update_layout(
        height=520, margin={"l": 50, "r": 10, "t": 10, "b": 45}, xaxis_title="machine of", yaxis_title="class"
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category", autorange="reversed")
    return figure
