"""Boltzmann machines, restricted and deep, and deep belief networks, on digits: every figure by enumeration."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from thalweg.data.images import digits
from thalweg.energies.discrete import binary_states
from thalweg.energies.machines import DBMEnergy, LayeredMachine, RBMEnergy
from thalweg.energies.machines.belief import DeepBeliefNetwork
from thalweg.evaluation.density_baselines import BernoulliMixture
from thalweg.objectives.base import Batch
from thalweg.objectives.classification import CrossEntropy
from thalweg.recipes import boltzmann_images
from thalweg.recipes.base import Figure, Recipe, Result, Settings
from thalweg.recipes.boltzmann_images import energies_matrix, new_machine, stretched, wall
from thalweg.sampling.layered_annealing import anneal_machine, bracket_machine
from thalweg.training.class_machines import class_energies, class_offsets, machines_of_classes
from thalweg.training.feed import Feed
from thalweg.training.loop import Plan, Trainer
from thalweg.training.moments import Moments, MomentStep, machine_plan
from thalweg.training.pretraining import grow_belief_network, pretrain, up_down
from thalweg.training.progress import Messages

SIDE = 8
N_DRAWS = 5  # of the labelled images, for each seed

CHAINS = {
    "CD-1": Moments(persistent=False),
    "CD-10": Moments(persistent=False, n_gibbs=10),
    "PCD-1": Moments(),
    "PCD-5": Moments(n_gibbs=5),
}

# What a part of the recipe adds to: figures, and pictures (None: only the first seed draws).
Found = dict[str, float]
Shown = dict[str, Any] | None

# Figure: (target, whether it is an upper bound).
TARGETS: dict[str, tuple[float, bool]] = {
    "divergences, all machines": (0.0, True),
    **{f"{name} less exact gradient (nats)": (-0.1, False) for name in CHAINS},
    "RBM 64x16: error of annealed log Z": (0.1, True),
    "DBM: joint less pretrained (nats)": (0.8, False),
    "DBM: exact less bound (nats)": (0.3, True),
    "DBM: exact less bound, least row": (-1e-4, False),
    "DBM: error of annealed log Z": (0.1, True),
    "DBN: tied layer less RBM, most (nats)": (1e-6, True),
    "DBN: after greedy less before (nats)": (0.02, False),
    "10 labels a class: gain less its spread": (0.0, False),
    "gaps filled: error over column means'": (1.0, True),
}


def run(settings: Settings) -> Result:
    if settings.data is not None:
        return boltzmann_images.run(settings)
    started = time.monotonic()
    data = _Digits()
    figures: dict[str, list[float]] = {}
    pictures: dict[str, Any] = {}
    for seed in settings.seeds:
        found: dict[str, float] = {}
        for part in (_baselines, _chains, _deep_machine, _belief_network, _few_labels, _fantasies, _by_class):
            part(data, seed, settings.quick, found, pictures if seed == settings.seeds[0] else None)
        found["divergences, all machines"] = float(len(data.messages.texts))
        for text in data.messages.texts:
            settings.tell(f"seed {seed}: {text}")
        data.messages.texts.clear()
        for key, value in found.items():
            figures.setdefault(key, []).append(value)
        settings.tell(f"seed {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()))
    bound = {} if settings.quick else TARGETS
    rows = [Figure(k, v, *bound.get(k, (None, True))) for k, v in figures.items()]
    notes = [
        "Digits of 8 x 8 pixels, on where above 7 of 16; 1400 to train on, 397 to test with. Figures in nats are "
        "mean test log-likelihoods or differences of them, exact by enumeration but where a figure says AIS.",
        "The ways to train are compared at a rate of 0.1 falling to 0 over 400 epochs, where the exact gradient "
        "takes the same steps; elsewhere it is persistent CD-1 from 0.3, which learns further in as many.",
        "The deep machine (64-14-10) is pretrained by 100 epochs of CD-1 from 0.1 for each part, then trained "
        "jointly for 400; without pretraining for 500. The belief network is 64-12-64.",
        "10 labels a class: a network 64-64-64-10 of sigmoid units, started from a belief network that saw all "
        f"training images without labels or at random, {N_DRAWS} draws of the labelled images for each seed.",
        "Gaps: 3 of 10 pixels of every test image are hidden; the mean of clamped chains, squared error.",
        "One machine for each digit: energies of a test image under all ten, with one offset a machine learned "
        "from the training images, since log Z is taken as unknown.",
    ]
    if settings.quick:
        notes.append("In this quick run all of these are smaller: 3 epochs at a time, and a few units.")
    return Result(rows, pictures, notes, time.monotonic() - started)


class _Digits:
    def __init__(self) -> None:
        self.messages = Messages()
        train, test = digits()
        assert train.labels is not None
        assert test.labels is not None
        self.train, self.test = ((torch.from_numpy(d.pixels).flatten(1) * 16 > 7).float() for d in (train, test))
        self.labels, self.test_labels = torch.from_numpy(train.labels), torch.from_numpy(test.labels)


# -- the machines -------------------------------------------------------------------------------------------


def _plan(seed: int, quick: bool, n_epochs: int = 400, **changes: Any) -> Plan:
    how: dict[str, Any] = {"batch_size": 100, "seed": seed, **changes}
    return machine_plan(max_epochs=3 if quick else n_epochs, **how)


def _train(
    machine: LayeredMachine, rows: Tensor, plan: Plan, messages: Messages, moments: Moments = Moments()
) -> None:
    Trainer(plan, progress=messages).run(MomentStep(machine, moments), Batch(None, rows))


def _trained(rows: Tensor, hidden: list[int], plan: Plan, messages: Messages, moments: Moments = Moments()) -> Any:
    machine = new_machine(rows, hidden, plan.seed)
    _train(machine, rows, plan, messages, moments)
    return machine


class ExactStep(MomentStep):
    """The update of a small restricted machine with its own means by enumeration instead of chains."""

    def begin(self, plan: Plan, fabric: Fabric, feed: Feed, generator: torch.Generator) -> None:
        super().begin(plan, fabric, feed, generator)
        (self.hidden_states,) = binary_states(self.machine.units[1].width, self.matrices[0])

    def phases(self, rows: Tensor) -> list[Tensor]:
        """Rows with their hidden means, and beneath them every hidden state with its visible means."""
        states = self.hidden_states
        probability = torch.softmax(-self.machine.summed_out([None, states], 0), 0)
        self.sign = torch.cat([rows.new_full((len(rows),), 1 / len(rows)), -probability])
        means = self.machine.visible.mean(self.field([states, states], 0))
        given = self.positive(rows)
        return [torch.cat([given[0], means]), torch.cat([given[1], states])]


def _log_prob(model: Any, rows: Tensor) -> Tensor:
    """log p of every row, exact."""
    with torch.no_grad():
        if isinstance(model, DeepBeliefNetwork):
            return model.log_prob(rows)
        inner = model.log_marginal(rows) if isinstance(model, DBMEnergy) else -model(rows)
        return inner - model.log_normaliser()


def _nats(model: Any, rows: Tensor) -> float:
    return float(_log_prob(model, rows).mean())


def _annealing_error(machine: Any, data: _Digits, seed: int, quick: bool) -> float:
    generator = torch.Generator().manual_seed(seed)
    bias = machine.visible.bias_of(data.train)
    found = anneal_machine(machine, bias, 100, 50 if quick else 1000, generator=generator)
    return abs(found.estimate - float(machine.log_normaliser()))


# -- the figures --------------------------------------------------------------------------------------------


def _baselines(data: _Digits, seed: int, quick: bool, found: Found, shown: Shown) -> None:
    rows, others = data.train.numpy().astype(float), data.test.numpy().astype(float)
    for n, name in ((1, "base rates (nats)"), (30, "mixture of 30 Bernoullis (nats)")):
        found[name] = float(BernoulliMixture(n).fit(rows, seed).log_prob(others).mean())


def _chains(data: _Digits, seed: int, quick: bool, found: Found, shown: Shown) -> None:
    """A restricted machine by every kind of chain, against the exact gradient."""
    n_hidden = 6 if quick else 12
    slow = _plan(seed, quick, learning_rate=0.1)
    exact = new_machine(data.train, [n_hidden], seed)
    Trainer(slow).run(ExactStep(exact), Batch(None, data.train))
    best = _nats(exact, data.test)
    found[f"RBM 64x{n_hidden}: exact gradient (nats)"] = best
    for name, moments in CHAINS.items():
        machine = _trained(data.train, [n_hidden], slow, data.messages, moments)
        found[f"{name} less exact gradient (nats)"] = _nats(machine, data.test) - best
    machine = _trained(data.train, [n_hidden], _plan(seed, quick), data.messages)
    found[f"RBM 64x{n_hidden}: PCD-1 from 0.3 (nats)"] = _nats(machine, data.test)
    n_wide = 8 if quick else 16
    wide = _trained(data.train, [n_wide], _plan(seed, quick), data.messages)
    found[f"RBM 64x{n_wide}: PCD-1 from 0.3 (nats)"] = _nats(wide, data.test)
    found[f"RBM 64x{n_wide}: error of annealed log Z"] = _annealing_error(wide, data, seed, quick)


def _deep_machine(data: _Digits, seed: int, quick: bool, found: Found, shown: Shown) -> None:
    hidden = [6, 4] if quick else [14, 10]
    machine = new_machine(data.train, hidden, seed)
    first = _plan(seed, quick, 100, learning_rate=0.1)
    pretrain(machine, data.train, first, CHAINS["CD-1"], progress=data.messages)
    before = _nats(machine, data.test)
    _train(machine, data.train, _plan(seed, quick), data.messages)
    exact = _log_prob(machine, data.test)
    gap = exact - (machine.evidence_bound(data.test) - machine.log_normaliser())
    found["DBM: pretrained (nats)"] = before
    found["DBM: joint (nats)"] = float(exact.mean())
    found["DBM: joint less pretrained (nats)"] = float(exact.mean()) - before
    found["DBM: without pretraining (nats)"] = _nats(
        _trained(data.train, hidden, _plan(seed, quick, 500), data.messages), data.test
    )
    found["DBM: exact less bound (nats)"] = float(gap.mean())
    found["DBM: exact less bound, least row"] = float(gap.min())
    found["DBM: error of annealed log Z"] = _annealing_error(machine, data, seed, quick)


def _belief_network(data: _Digits, seed: int, quick: bool, found: Found, shown: Shown) -> None:
    n_hidden = 6 if quick else 12
    torch.manual_seed(seed)
    one, _ = grow_belief_network(64, [n_hidden], data.train, _plan(seed, quick), progress=data.messages)
    one.double()
    rows = _log_prob(one, data.test.double())
    before = float(rows.mean())
    one.grow(64)
    found["DBN: tied layer less RBM, most (nats)"] = float((_log_prob(one, data.test.double()) - rows).abs().max())
    torch.manual_seed(seed)
    two, _ = grow_belief_network(64, [n_hidden, 64], data.train, _plan(seed, quick), progress=data.messages)
    greedy = _nats(two, data.test)
    found["DBN: greedy (nats)"] = greedy
    found["DBN: after greedy less before (nats)"] = greedy - before
    up_down(two, data.train, _plan(seed, quick, 200, learning_rate=0.05), progress=data.messages)
    exact = _nats(two, data.test)
    generator, log_z = torch.Generator().manual_seed(seed), float(two.top.log_normaliser())
    found["DBN: after up-down less greedy (nats)"] = exact - greedy
    for name, bound in (("bound", two.evidence_bound), ("100 weights", two.importance_bound)):
        found[f"DBN: exact less {name} (nats)"] = exact - float(bound(data.test, 100, generator).mean() - log_z)


def _few_labels(data: _Digits, seed: int, quick: bool, found: Found, shown: Shown) -> None:
    """A classifier that starts from a belief network of all images, and one that starts at random."""
    hidden = [64, 64]
    torch.manual_seed(seed)
    network, _ = grow_belief_network(64, hidden, data.train, _plan(seed, quick), progress=data.messages)
    accuracy: dict[str, list[float]] = {"pretrained": [], "random": []}
    for draw in range(2 if quick else N_DRAWS):
        rng = np.random.RandomState(N_DRAWS * seed + draw)
        chosen = torch.cat(
            [torch.from_numpy(rng.permutation(torch.nonzero(data.labels == k)[:, 0])[:10]) for k in range(10)]
        )
        torch.manual_seed(N_DRAWS * seed + draw)
        for name, start in (("pretrained", network), ("random", DeepBeliefNetwork(64, hidden))):
            model = start.classifier(10)
            if name == "random":
                for layer in list(model)[:-1]:
                    if isinstance(layer, nn.Linear):
                        nn.init.xavier_uniform_(layer.weight, gain=4.0)  # the gain of sigmoid units
            plan = Plan(3 if quick else 300, batch_size=20, learning_rate=3e-3, seed=draw)
            Trainer(plan).fit(model, CrossEntropy(), Batch(data.train[chosen], data.labels[chosen]))
            with torch.no_grad():
                right = model(data.test).argmax(1) == data.test_labels
            accuracy[name].append(float(right.float().mean()))
    gains = np.subtract(accuracy["pretrained"], accuracy["random"])
    for name, values in accuracy.items():
        found[f"10 labels a class: {name} (accuracy)"] = float(np.mean(values))
    found["10 labels a class: gain less its spread"] = float(gains.mean() - gains.std(ddof=1))


def _fantasies(data: _Digits, seed: int, quick: bool, found: Found, shown: Shown) -> None:
    """Larger machines, for gaps and for the eye."""
    n = 64
    machine = _trained(data.train, [n], _plan(seed, quick), data.messages)
    generator = torch.Generator().manual_seed(seed)
    bias = machine.visible.bias_of(data.train)
    log_z = bracket_machine(machine, bias, 100, 50 if quick else 3000, generator=generator)
    with torch.no_grad():
        found[f"RBM 64x{n}: by AIS (nats)"] = float(-machine(data.test).mean()) - log_z.estimate
    found[f"RBM 64x{n}: AIS both ways, apart"] = log_z.width

    known = torch.rand(data.test.shape, generator=generator) > 0.3
    filled = fill(machine, data.test, known, 20 if quick else 200, generator)
    means = data.train.mean(0).expand_as(data.test)
    errors = [float((guess - data.test)[~known].square().mean()) for guess in (filled, means)]
    found["gaps filled: squared error"] = errors[0]
    found["gaps filled: error over column means'"] = errors[0] / errors[1]
    wrong = [float(((guess > 0.5).float() != data.test)[~known].float().mean()) for guess in (filled, means)]
    found["gaps filled: wrong pixels (share)"], found["column means: wrong pixels (share)"] = wrong
    if shown is None:
        return
    deep = new_machine(data.train, [n, n // 2], seed)
    first = _plan(seed, quick, 100, learning_rate=0.1)
    pretrain(deep, data.train, first, CHAINS["CD-1"], progress=data.messages)
    _train(deep, data.train, _plan(seed, quick, 200), data.messages)
    belief, _ = grow_belief_network(64, [n, n], data.train, _plan(seed, quick, 200), progress=data.messages)
    up_down(belief, data.train, _plan(seed, quick, 100, learning_rate=0.05), progress=data.messages)
    belief.n_sweeps = 1000
    n_sweeps = 20 if quick else 1000
    with torch.no_grad():
        v = torch.bernoulli(means[:40], generator=generator)
        for _ in range(n_sweeps):
            v = machine.sweep(v, generator)
        state = torch.cat([torch.bernoulli(means[:40], generator=generator), torch.zeros(40, n + n // 2)], 1)
        for _ in range(n_sweeps):
            state = deep.sweep(state, generator)
        hidden = machine.units[1].mean(machine.field([data.test[:20], None], 1))
        back = machine.visible.mean(machine.field([None, hidden], 0))
    walls = {
        "Filters of the restricted machine": stretched(machine.weights[0].detach().t()),
        "Reconstructions: test images above, means after a step up and down below": torch.cat(
            [data.test[:20], back]
        ),
        "Gaps: test images, what is known (grey: hidden), what the chains fill in": torch.cat(
            [data.test[:20], torch.where(known, data.test, 0.5)[:20], filled[:20]]
        ),
        "Training images": data.train[:40],
        "Fantasies of the restricted machine": v,
        "Fantasies of the deep machine": deep.split(state)[0],
        "Fantasies of the belief network": belief.sample(40, generator),
    }
    shown |= {title: wall(images, SIDE, 16 if "Filters" in title else 20) for title, images in walls.items()}


def fill(machine: RBMEnergy, rows: Tensor, known: Tensor, n_sweeps: int, generator: torch.Generator) -> Tensor:
    """Means of what is not known given what is: chains with the known units clamped, the first half dropped."""
    with torch.no_grad():
        v = torch.where(known, rows, machine.visible.sample(machine.biases[0].expand_as(rows).clone(), generator))
        total = torch.zeros_like(rows)
        for step in range(n_sweeps):
            layers = machine.resample([v, None], 1, generator)
            field = machine.field(layers, 0)
            v = torch.where(known, rows, machine.visible.sample(field, generator))
            if step >= n_sweeps // 2:
                total += machine.visible.mean(field)
    return torch.where(known, rows, total / (n_sweeps - n_sweeps // 2))


def _by_class(data: _Digits, seed: int, quick: bool, found: Found, shown: Shown) -> None:
    """A machine for each digit, and the energies of all digits under each."""
    plan = _plan(seed, quick, 200, batch_size=20, learning_rate=0.1)
    machines = machines_of_classes(data.train, data.labels, 6 if quick else 12, plan, data.messages)
    offset = class_offsets(class_energies(machines, data.train), data.labels)
    table = class_energies(machines, data.test)
    exact = [machine.log_normaliser() for machine in machines]
    for name, log_z in (("learned offsets", offset), ("exact log Z", torch.stack(exact))):
        right = (table + log_z).argmin(1) == data.test_labels
        found[f"RBM a digit, {name} (accuracy)"] = float(right.float().mean())
    judge = LogisticRegression(max_iter=2000).fit(data.train.numpy(), data.labels.numpy())
    found["logistic regression (accuracy)"] = float(judge.score(data.test.numpy(), data.test_labels.numpy()))
    if shown is None:
        return
    means = torch.stack([(table + offset)[data.test_labels == k].mean(0) for k in range(10)])
    shown["Mean energies of each digit (row) under each digit's machine (column), less the row's lowest"] = (
        energies_matrix(means, [str(k) for k in range(10)])
    )


RECIPE = Recipe(
    name="boltzmann",
    title="Boltzmann machines and belief networks: learning, bounds and log Z against enumeration",
    source="Hinton (2002); Hinton, Osindero and Teh (2006); Salakhutdinov and Hinton (2009)",
    run=run,
    minutes=8,
)
