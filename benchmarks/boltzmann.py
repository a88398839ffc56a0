"""Restricted Boltzmann machines against scikit-learn, ebmkit, learnergy, rbms and eight lines of torch.

    make bench-boltzmann DATA=...

Part "digits": scikit-learn's digits, binarised, 64 x 16 units, 100 epochs in batches of 64: exact log-likelihood
of the test rows and CPU seconds. Part "mnist" (needs --data with mnist_12k.npz): 784 x 500 units in batches of
100: CPU seconds an epoch, and log-likelihood by annealed importance sampling. Part "tables" (needs --data with
debd_nltcs.npz and debd_plants.npz): the machine that is best on the validation rows, on the test rows. Part
"groups": rows in groups far apart, and how large the groups are under machines trained by chains of every
kind. Part "numbers": scikit-learn's tables of numbers, by chains at one and at several temperatures.

Everything is trained by chains that persist where the library has them, else from the data. Learning rates are
the best of a few for each rival, by held-out rows of the training part on seed 10, which is not reported. Runs
alternate on one thread; times are CPU seconds of the training alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ebm
import numpy as np
import torch
from learnergy.models.bernoulli import RBM as LearnergyRBM
from rbms.bernoulli_bernoulli.classes import BBRBM
from rbms.training.pcd import fit_batch_pcd
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from sklearn.neural_network import BernoulliRBM
from torch import Tensor

from thalweg import RestrictedBoltzmannMachine
from thalweg.energies import RBMEnergy
from thalweg.energies.discrete import binary_states
from thalweg.objectives.base import Batch
from thalweg.sampling.layered_annealing import bracket_machine
from thalweg.training.loop import Trainer
from thalweg.training.moments import Moments, MomentStep, machine_plan

EXACT_TARGET = -20.0
SPEED_TARGET = {"digits": 1.0, "mnist": 3.0}


class Problem(NamedTuple):
    name: str
    train: Tensor
    test: Tensor
    n_hidden: int
    batch_size: int
    n_epochs: int


Train = Callable[[Problem, float, int], RBMEnergy]
"""(problem, learning rate, seed) -> the trained machine."""


def machine(weight: Any, visible: Any, hidden: Any) -> RBMEnergy:
    """Foreign parameters, weight ``[visible, hidden]``, as our machine, which knows its likelihood."""
    energy = RBMEnergy(len(visible), len(hidden))
    with torch.no_grad():
        for own, theirs in zip((energy.weights[0], *energy.biases), (weight, visible, hidden), strict=True):
            own.copy_(torch.as_tensor(theirs, dtype=torch.float32))
    return energy


def by_thalweg(problem: Problem, rate: float, seed: int) -> RBMEnergy:
    energy = RBMEnergy(problem.train.shape[1], problem.n_hidden)
    with torch.no_grad():
        energy.biases[0].copy_(energy.visible.bias_of(problem.train))
    size = problem.batch_size
    fit(energy, problem.train, max_epochs=problem.n_epochs, batch_size=size, learning_rate=rate, seed=seed)
    return energy


def fit(energy: RBMEnergy, rows: Tensor, **settings: Any) -> None:
    """Train in place; the settings are those of a plan and of :class:`Moments`."""
    moments = {k: settings.pop(k) for k in list(settings) if k in Moments.__dataclass_fields__}
    Trainer(machine_plan(**settings)).run(MomentStep(energy, Moments(**moments)), Batch(None, rows))


def by_sklearn(problem: Problem, rate: float, seed: int) -> RBMEnergy:
    model = BernoulliRBM(
        problem.n_hidden,
        learning_rate=rate,
        batch_size=problem.batch_size,
        n_iter=problem.n_epochs,
        random_state=seed,
    ).fit(problem.train.numpy())
    return machine(model.components_.T, model.intercept_visible_, model.intercept_hidden_)


def by_ebmkit(problem: Problem, rate: float, seed: int) -> RBMEnergy:
    energy = ebm.nets.RBM(problem.train.shape[1], problem.n_hidden)
    rows = problem.train

    def from_data(shape: tuple[int, ...]) -> Tensor:
        return rows[torch.randint(len(rows), (shape[0],))]

    # Its persistent chains start in Gaussian noise: from the data it does better.
    loss = ebm.ContrastiveDivergence(ebm.GibbsSampler(steps=1), init_fn=from_data)
    trainer = ebm.Trainer(energy, loss, lr=rate, device="cpu")
    steps = problem.n_epochs * (len(problem.train) // problem.batch_size)
    trainer.fit(problem.train, steps=steps, batch_size=problem.batch_size, verbose=False)
    return machine(energy.W.detach().t(), energy.b.detach(), energy.c.detach())


def by_learnergy(problem: Problem, rate: float, seed: int) -> RBMEnergy:
    model = LearnergyRBM(problem.train.shape[1], problem.n_hidden, steps=1, learning_rate=rate)
    rows = torch.utils.data.TensorDataset(problem.train, torch.zeros(len(problem.train)))
    model.fit(rows, batch_size=problem.batch_size, epochs=problem.n_epochs)
    return machine(model.W.detach(), model.a.detach(), model.b.detach())


def by_rbms(problem: Problem, rate: float, seed: int) -> RBMEnergy:
    class Rows(NamedTuple):
        data: np.ndarray

    device, dtype = torch.device("cpu"), torch.float32
    data, size = problem.train, problem.batch_size
    model = BBRBM.init_parameters(problem.n_hidden, Rows(data.numpy()), device, dtype)
    for weights in model.parameters():
        weights.grad = torch.zeros_like(weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, maximize=True)
    chains = model.init_chains(size)
    ones = torch.ones(size, 1)
    with torch.no_grad():
        for _ in range(problem.n_epochs):
            order = torch.randperm(len(data))
            for k in range(len(data) // size):
                optimizer.zero_grad(set_to_none=False)
                rows = data[order[k * size : (k + 1) * size]]
                chains, _ = fit_batch_pcd((rows, ones), chains, model, gibbs_steps=1, beta=1.0)
                optimizer.step()
    return machine(model.weight_matrix, model.vbias, model.hbias)


def by_plain_torch(problem: Problem, rate: float, seed: int) -> RBMEnergy:
    data, size = problem.train, problem.batch_size
    mean = data.mean(0).clamp(0.01, 0.99)
    W, b, c = 0.01 * torch.randn(data.shape[1], problem.n_hidden), torch.logit(mean), torch.zeros(problem.n_hidden)
    chains = torch.bernoulli(mean.expand(size, -1))
    for _ in range(problem.n_epochs):
        for rows in data[torch.randperm(len(data))].split(size):
            up = torch.sigmoid(rows @ W + c)
            chains = torch.bernoulli(torch.sigmoid(torch.bernoulli(torch.sigmoid(chains @ W + c)) @ W.t() + b))
            down = torch.sigmoid(chains @ W + c)
            W += rate * (rows.t() @ up / len(rows) - chains.t() @ down / size)
            b += rate * (rows.mean(0) - chains.mean(0))
            c += rate * (up.mean(0) - down.mean(0))
    return machine(W, b, c)


LIBRARIES: dict[str, Train] = {
    "thalweg": by_thalweg,
    "scikit-learn": by_sklearn,
    "ebmkit": by_ebmkit,
    "learnergy": by_learnergy,
    "rbms": by_rbms,
    "plain torch": by_plain_torch,
}
# Adam's for ebmkit; of a normalised gradient for rbms.
RATES = {"ebmkit": (0.003, 0.01, 0.03, 0.1), "rbms": (0.01, 0.03, 0.1, 0.3)}
OTHER_RATES = (0.02, 0.05, 0.1, 0.2, 0.5)


def digits() -> Problem:
    rows = torch.as_tensor((load_digits().data > 7).astype(np.float32))
    order = torch.as_tensor(np.random.RandomState(0).permutation(len(rows)))
    return Problem("digits", rows[order[:1400]], rows[order[1400:]], 16, 64, 100)


def mnist(folder: Path, n_epochs: int) -> Problem:
    raw = np.load(folder / "mnist_12k.npz")
    train, test = (
        torch.as_tensor((raw[name].reshape(len(raw[name]), -1) > 127).astype(np.float32))
        for name in ("X_train", "X_test")
    )
    return Problem("mnist", train, test, 500, 100, n_epochs)


def log_likelihood(energy: RBMEnergy, problem: Problem) -> tuple[float, float]:
    """Mean over the test rows, and the width of the bracket of log Z (0 where it is exact)."""
    with torch.no_grad():
        value = float(-energy(problem.test).mean())
        if problem.n_hidden <= 20:
            return value - float(energy.log_normaliser()), 0.0
    base = energy.visible.bias_of(problem.train)
    bracket = bracket_machine(energy, base, 100, 5000, generator=torch.Generator().manual_seed(0))
    return value - bracket.estimate, bracket.width


def compare(problem: Problem, seeds: list[int], rates: dict[str, float]) -> dict[str, list[dict[str, float]]]:
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in LIBRARIES}
    short = problem._replace(n_epochs=1)
    for name, train in LIBRARIES.items():
        train(short, rates[name], 0)
    for seed in seeds:
        for name, train in LIBRARIES.items():
            torch.manual_seed(seed)
            start = time.process_time()
            energy = train(problem, rates[name], seed)
            seconds = (time.process_time() - start) / problem.n_epochs
            value, width = log_likelihood(energy, problem)
            runs[name].append({"seed": seed, "log-likelihood": value, "bracket": width, "seconds": seconds})
            print(f"{problem.name}, {name}, seed {seed}: {value:.2f}, {1e3 * seconds:.2f} ms an epoch", flush=True)
    return runs


def best_rates(problem: Problem) -> dict[str, float]:
    """Ours is fixed; each rival's is the one with the best likelihood on seed 10."""
    rates = {"thalweg": machine_plan().learning_rate if problem.name == "digits" else 0.1}
    held_out = problem._replace(train=problem.train[:-200], test=problem.train[-200:])
    for name, train in LIBRARIES.items():
        if name not in rates:
            found = []
            for rate in RATES.get(name, OTHER_RATES):
                torch.manual_seed(10)
                value, _ = log_likelihood(train(held_out, rate, 10), held_out)
                found.append((value, rate))
            rates[name] = max(found)[1]
    return rates


def show(problem: Problem, runs: dict[str, list[dict[str, float]]], rates: dict[str, float]) -> None:
    console = Console(width=120)
    title = f"{problem.name}: {problem.train.shape[1]} x {problem.n_hidden}, {problem.n_epochs} epochs"
    table = Table("library", "rate", "log-likelihood", "mean", "ms an epoch", "rival / ours", title=title)
    own = statistics.median(run["seconds"] for run in runs["thalweg"])
    mean = {name: statistics.fmean(run["log-likelihood"] for run in of) for name, of in runs.items()}
    ratios = {name: statistics.median(run["seconds"] for run in of) / own for name, of in runs.items()}
    for name, of in runs.items():
        values = " ".join(f"{run['log-likelihood']:.2f}" for run in of)
        milliseconds = f"{1e3 * own * ratios[name]:.2f}"
        ratio = "" if name == "thalweg" else f"{ratios[name]:.2f}"
        table.add_row(name, f"{rates[name]:g}", values, f"{mean[name]:.2f}", milliseconds, ratio)
    console.print(table)
    targets = Table("target", "figure", "")
    if problem.name == "digits":
        reached = mean["thalweg"] >= EXACT_TARGET
        targets.add_row(
            f"likelihood at least {EXACT_TARGET}", f"{mean['thalweg']:.2f}", "reached" if reached else "missed"
        )
        aims = ["scikit-learn"]
    else:
        # Those that reach the likelihood of ours, but for a nat.
        aims = [name for name in runs if name != "thalweg" and mean[name] >= mean["thalweg"] - 1]
        if not aims:
            targets.add_row("no rival reaches the likelihood within a nat", f"{mean['thalweg']:.2f}", "")
    for name in aims:
        aim = SPEED_TARGET[problem.name]
        word = "reached" if ratios[name] >= aim else "missed"
        targets.add_row(f"{aim:g} times faster than {name}", f"{ratios[name]:.2f}", word)
    console.print(targets)


SETTINGS = [
    {"n_hidden": n, "learning_rate": rate, "weight_decay": decay, "n_gibbs": 5}
    for n in (64, 128, 256)
    for rate, decay in ((0.3, 0.0), (0.6, 0.0), (0.6, 3e-4))
]
PUBLISHED = {
    # Gens 2013 (LearnSPN), Rooshenas 2014 (ID-SPN, and mixtures of trees as they measured them).
    "nltcs": {"LearnSPN": -6.11, "ID-SPN": -6.02, "mixture of trees": -6.01},
    "plants": {"LearnSPN": -12.98, "ID-SPN": -12.54, "mixture of trees": -12.93},
}


def tables(folder: Path, seeds: list[int], n_epochs: int) -> dict[str, Any]:
    """The machine that is best on the validation rows, by log Z exact or bracketed, on the test rows."""
    console, figures = Console(width=120), {}
    for name, published in PUBLISHED.items():
        raw = np.load(folder / f"debd_{name}.npz")
        train, valid, test = (torch.as_tensor(raw[k].astype(np.float32)) for k in ("X_train", "X_valid", "X_test"))
        tried = []
        for settings in SETTINGS:
            energy, seconds = fit_table(train, settings, seeds[0], n_epochs)
            value, _ = table_likelihood(energy, train, valid)
            tried.append((value, settings))
            print(f"{name}: {settings} validation {value:.3f} in {seconds:.0f} s", flush=True)
        settings = max(tried, key=lambda pair: pair[0])[1]
        results = []
        for seed in seeds:
            energy, _ = fit_table(train, settings, seed, n_epochs)
            results.append(table_likelihood(energy, train, test))
        mean = train.mean(0).clamp(1e-4, 1 - 1e-4)
        base = float((test * mean.log() + (1 - test) * (1 - mean).log()).sum(1).mean())
        table = Table("model", "test log-likelihood", "bracket of log Z", title=f"{name}: {settings}")
        table.add_row("independent columns", f"{base:.2f}", "")
        for model, value in published.items():
            table.add_row(f"{model} (published)", f"{value:.2f}", "")
        for seed, (value, width) in zip(seeds, results, strict=True):
            table.add_row(f"machine, seed {seed}", f"{value:.3f}", f"{width:.3f}" if width else "exact")
        console.print(table)
        figures[name] = {"settings": settings, "test": results}
    return figures


def fit_table(train: Tensor, settings: dict[str, Any], seed: int, n_epochs: int) -> tuple[RBMEnergy, float]:
    torch.manual_seed(seed)
    start = time.process_time()
    settings = dict(settings)
    energy = RBMEnergy(train.shape[1], settings.pop("n_hidden"))
    with torch.no_grad():
        energy.biases[0].copy_(energy.visible.bias_of(train))
    fit(energy, train, max_epochs=n_epochs, batch_size=100, seed=seed, n_particles=500, **settings)
    return energy, time.process_time() - start


def table_likelihood(energy: RBMEnergy, train: Tensor, rows: Tensor) -> tuple[float, float]:
    with torch.no_grad():
        value = float(-energy(rows).mean())
        if min(train.shape[1], energy.units[1].width) <= 16:
            return value - float(energy.log_normaliser()), 0.0
    base = energy.visible.bias_of(train)
    bracket = bracket_machine(energy, base, 200, 2000, generator=torch.Generator().manual_seed(0))
    return value - bracket.estimate, bracket.width


SHARES = (0.4, 0.3, 0.15, 0.1, 0.05)
FLIPPED = 0.05
CHAINS: dict[str, dict[str, Any]] = {
    "persistent": {},
    "persistent, 20 sweeps": {"n_gibbs": 20},
    "persistent, fast weights 0.3": {"fast_rate": 0.3},
    "from the data": {"persistent": False},
    "from the data, 10 sweeps": {"persistent": False, "n_gibbs": 10},
    "3 temperatures": {"n_temperatures": 3},
    "5 temperatures": {"n_temperatures": 5},
    "10 temperatures": {"n_temperatures": 10},
    "20 temperatures": {"n_temperatures": 20},
}


def groups(seeds: list[int]) -> dict[str, list[dict[str, float]]]:
    """Five random patterns of 32 bits, one bit in twenty flipped; 1000 rows, 12 hidden units, 100 epochs."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CHAINS}
    for seed in seeds:
        rng = np.random.RandomState(seed)
        patterns = rng.randint(0, 2, (len(SHARES), 32))
        belongs = rng.choice(len(SHARES), 6000, p=SHARES)
        rows = torch.tensor(patterns[belongs] ^ (rng.uniform(size=(6000, 32)) < FLIPPED)).float()
        train, test = rows[:1000], rows[1000:]
        shares = np.bincount(belongs[:1000], minlength=len(SHARES)) / 1000
        centres = torch.tensor(patterns).float()
        flips = torch.cdist(test, centres, p=1)
        log_p = flips * np.log(FLIPPED) + (32 - flips) * np.log(1 - FLIPPED) + torch.tensor(SHARES).log()
        truth = float(torch.logsumexp(log_p, 1).mean())
        for name, settings in CHAINS.items():
            torch.manual_seed(seed)
            energy = RBMEnergy(32, 12)
            energy.biases[0].data.copy_(energy.visible.bias_of(train))
            start = time.process_time()
            fit(energy, train, seed=seed, **settings)
            seconds = time.process_time() - start
            with torch.no_grad():
                gap = float(-energy(test).mean() - energy.log_normaliser()) - truth
            nearest = torch.cdist(exact_draws(energy, 20_000), centres, p=1).argmin(1)
            drawn = np.bincount(nearest.numpy(), minlength=len(SHARES)) / len(nearest)
            off = 0.5 * float(np.abs(drawn - shares).sum())
            found[name].append({"off": off, "below the truth": gap, "seconds": seconds})
    shown = Table("chains", title=f"Groups far apart, seeds {', '.join(map(str, seeds))}", title_justify="left")
    for heading in ("share of rows in the wrong group", "log-likelihood less the truth's", "CPU s"):
        shown.add_column(heading, justify="right")
    for name, runs in found.items():
        off, gap = ([run[key] for run in runs] for key in ("off", "below the truth"))
        shown.add_row(
            name,
            f"{np.mean(off):.3f} ({min(off):.3f} to {max(off):.3f})",
            f"{np.mean(gap):.3f} ({min(gap):.3f} to {max(gap):.3f})",
            f"{np.mean([run['seconds'] for run in runs]):.2f}",
        )
    Console(width=120).print(shown)
    return found


def numbers(seeds: list[int]) -> dict[str, list[float]]:
    """scikit-learn's tables of numbers, alone and beside a column of texts; each seed with a split of its own."""
    found: dict[str, list[float]] = {}
    shown = Table("table", "chains", title=f"Tables of numbers, seeds {', '.join(map(str, seeds))}")
    shown.add_column("log-likelihood of 3 rows in 10", justify="right")
    for name, load in {
        "iris": load_iris,
        "wine": load_wine,
        "cancer": load_breast_cancer,
        "diabetes": None,
    }.items():
        if load is None:
            tables = {name: load_diabetes(as_frame=True, scaled=False).frame}
        else:
            loaded = load(as_frame=True)
            with_class = loaded.data.assign(label=loaded.target_names[loaded.target])
            tables = {name: loaded.data, f"{name} and its classes": with_class}
        for title, table in tables.items():
            for n_temperatures in (1, 5, 10):
                runs = []
                for seed in seeds:
                    order = np.random.RandomState(seed).permutation(len(table))
                    train, test = (table.iloc[part] for part in np.split(order, [int(0.7 * len(table))]))
                    max_epochs = max(50, 3000 // max(1, len(train) // 64))
                    model = RestrictedBoltzmannMachine(
                        16, max_epochs=max_epochs, n_temperatures=n_temperatures, random_state=seed
                    )
                    runs.append(model.fit(train).log_likelihood(test).mean)
                found[f"{title}, {n_temperatures}"] = runs
                shown.add_row(title, f"{n_temperatures} temperatures", " ".join(f"{run:.2f}" for run in runs))
    Console(width=120).print(shown)
    return found


def exact_draws(energy: RBMEnergy, n: int) -> Tensor:
    """Visible states by way of all states of the hidden units."""
    hidden = torch.cat(list(binary_states(energy.units[1].width, energy.biases[1])))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        distribution = torch.softmax(-energy.summed_out([None, hidden], 0), 0)
        chosen = hidden[torch.multinomial(distribution, n, True, generator=generator)]
        return energy.visible.sample(energy.field([None, chosen], 0), generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", default="digits,mnist,tables,groups,numbers", help="separated by commas")
    parser.add_argument("--data", type=Path, help="folder with mnist_12k.npz, debd_nltcs.npz and debd_plants.npz")
    parser.add_argument("--seeds", default="0,1,2", help="separated by commas")
    parser.add_argument("--mnist-epochs", type=int, default=10)
    parser.add_argument("--table-epochs", type=int, default=50)
    parser.add_argument("--out", type=Path, help="write all figures here as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    figures: dict[str, Any] = {}
    for part in arguments.parts.split(","):
        if part in ("mnist", "tables") and arguments.data is None:
            print(f"{part}: left out, it needs --data")
            continue
        if part == "tables":
            figures[part] = tables(arguments.data, seeds, arguments.table_epochs)
        elif part in ("groups", "numbers"):
            figures[part] = (groups if part == "groups" else numbers)(seeds)
        else:
            problem = digits() if part == "digits" else mnist(arguments.data, arguments.mnist_epochs)
            rates = best_rates(problem)
            figures[part] = compare(problem, seeds, rates)
            show(problem, figures[part], rates)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
