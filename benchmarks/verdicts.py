"""Whether verdicts are right: default fits on data whose source is known, judged by fresh rows.

    .venv/bin/python benchmarks/verdicts.py --seeds 3 --out verdicts.json

Every data set is a source that fresh rows can be drawn from. A model has failed in fact if 2,000 fresh rows are
less likely under it than under the plainest baseline of its task, fitted to the same rows, by more than 0.1
nats (and 3 standard errors); or if its draws are told from fresh rows by their nearest neighbours in more than
80 % of cases. A classifier's gain is over logistic regression, its penalty cross-validated, and its draws, which
lie near training rows, do not count; of images only the draws do. Labels of sequences are compared with the same
logistic regression of each element. A ranker fails if its NDCG at 10 is below a ridge regression's by more than
0.02 and 3 standard errors. Counted are failed models without a failed
verdict, and sound models with one: the latter on 15 rows, where a verdict fails for want of rows alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from thalweg.evaluation.baselines import LeastSquaresGaussian
from thalweg.evaluation.class_baselines import Logistic
from thalweg.evaluation.density_baselines import BernoulliMixture, GaussianBaseline
from thalweg.evaluation.ranking import ndcg_of_groups
from thalweg.evaluation.ranking_baselines import RidgeRelevance
from thalweg.evaluation.regression import score_rows
from thalweg.runs import settings_of
from thalweg.runs.base import fit_run

N_FRESH = 2000
# What is lost below this is of no consequence: nats, but for rankers.
SMALL_LOSS = {"ranker": 0.02}
Draw = Callable[[int, np.random.RandomState], pd.DataFrame]


def columns(*values: np.ndarray, names: str = "abcdefgh") -> pd.DataFrame:
    return pd.DataFrame(dict(zip(names, values, strict=False)))


def line(n: int, rng: np.random.RandomState) -> pd.DataFrame:
    x = rng.standard_normal((3, n))
    return columns(*x).assign(y=x[0] - x[1] + rng.standard_normal(n))


def wave(n: int, rng: np.random.RandomState) -> pd.DataFrame:
    x = rng.uniform(-3, 3, n)
    return columns(x).assign(y=np.sin(2 * x) + 0.1 * (1 + np.abs(x)) * rng.standard_normal(n))


def nothing(n: int, rng: np.random.RandomState) -> pd.DataFrame:
    return columns(*rng.standard_normal((2, n))).assign(y=rng.standard_normal(n))


def heavy(n: int, rng: np.random.RandomState) -> pd.DataFrame:
    x = rng.standard_normal(n)
    return columns(x).assign(y=x + rng.standard_t(2, n))


def many(n: int, rng: np.random.RandomState) -> pd.DataFrame:
    x = rng.standard_normal((40, n))
    return pd.DataFrame(x.T, columns=[f"x{i}" for i in range(40)]).assign(y=x[0] + 0.5 * rng.standard_normal(n))


def gaussian(n: int, rng: np.random.RandomState) -> pd.DataFrame:
    x = rng.standard_normal((3, n))
    return columns(x[0], x[0] + 0.5 * x[1], x[2] - x[0])


def ring(n: int, rng: np.random.RandomState) -> pd.DataFrame:
    angle = rng.uniform(0, 2 * np.pi, n)
    return columns(*((1 + 0.1 * rng.standard_normal(n)) * np.stack([np.cos(angle), np.sin(angle)])))


def groups(n: int, rng: np.random.RandomState) -> pd.DataFrame:
    centre = np.random.RandomState(5).uniform(-5, 5, (6, 5))
    return pd.DataFrame(centre[rng.randint(6, size=n)] + 0.4 * rng.standard_normal((n, 5)), columns=list("abcde"))


def cauchy(n: int, rng: np.random.RandomState) -> pd.DataFrame:
    x = rng.standard_cauchy(n)
    return columns(x, x + rng.standard_normal(n))


def bits(n: int, rng: np.random.RandomState) -> pd.DataFrame:
    return pd.DataFrame((rng.uniform(size=(n, 12)) < 0.4).astype(int)).rename(columns="b{}".format)


def one_hot(n: int, rng: np.random.RandomState) -> pd.DataFrame:
    fixed = np.random.RandomState(0)
    tables = [fixed.dirichlet(np.full(k, 0.05), size=20) for k in fixed.randint(3, 8, size=22)]
    kinds = rng.randint(20, size=n)
    rows = np.hstack([[rng.multinomial(1, t[k]) for k in kinds] for t in tables])
    return pd.DataFrame(rows).rename(columns="b{}".format)


def digits(n: int, rng: np.random.RandomState) -> pd.DataFrame:
    pixels = (load_digits().data > 8).astype(int)
    return pd.DataFrame(pixels[rng.randint(len(pixels), size=n)]).rename(columns="b{}".format)


def labelled(n: int, rng: np.random.RandomState, wrong: float = 0.0) -> pd.DataFrame:
    label = rng.randint(3, size=n)
    centre = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    x = centre[label] + rng.standard_normal((n, 2))
    return columns(*x.T).assign(
        y=label_names(np.where(rng.uniform(size=n) < wrong, rng.randint(3, size=n), label))
    )


def wrong_labels(n: int, rng: np.random.RandomState) -> pd.DataFrame:
    return labelled(n, rng, wrong=0.4)


def noise_labels(n: int, rng: np.random.RandomState) -> pd.DataFrame:
    return labelled(n, rng, wrong=1.0)


def many_labelled(n: int, rng: np.random.RandomState) -> pd.DataFrame:
    table = many(n, rng)
    return table.assign(y=label_names((table["y"] > 0).astype(int).to_numpy()))


def states(n: int, rng: np.random.RandomState, n_inputs: int = 2, seen: float = 1.0) -> pd.DataFrame:
    """Sequences of ten states that mostly stay; the first input tells of them if it is seen."""
    state = rng.randint(3, size=n)
    stays = rng.uniform(size=n) < 0.9
    for t in range(n):
        if t % 10 and stays[t]:
            state[t] = state[t - 1]
    x = rng.standard_normal((n_inputs, n))
    x[0] += seen * 1.5 * state
    table = pd.DataFrame(x.T).rename(columns="x{}".format)
    return table.assign(y=label_names(state), s=[f"s{i // 10}" for i in range(n)])


def many_states(n: int, rng: np.random.RandomState) -> pd.DataFrame:
    return states(n, rng, n_inputs=40)


def hidden_states(n: int, rng: np.random.RandomState) -> pd.DataFrame:
    return states(n, rng, seen=0.0)


def answers(n: int, rng: np.random.RandomState, n_inputs: int = 4, weight: float = 1.0) -> pd.DataFrame:
    """Groups of ten rows with a relevance from 0 to 4, linear in two inputs with noise."""
    x = rng.standard_normal((n_inputs, n))
    relevance = np.clip(np.rint(1 + weight * (x[0] - x[1]) + rng.standard_normal(n)), 0, 4)
    table = pd.DataFrame(x.T).rename(columns="x{}".format)
    return table.assign(y=relevance.astype(int), s=[f"s{i // 10}" for i in range(n)])


def many_answers(n: int, rng: np.random.RandomState) -> pd.DataFrame:
    return answers(n, rng, n_inputs=40)


def noise_answers(n: int, rng: np.random.RandomState) -> pd.DataFrame:
    return answers(n, rng, weight=0.0)


def label_names(labels: np.ndarray) -> np.ndarray:
    return np.array(["red", "green", "blue"])[labels]


def images(n: int, rng: np.random.RandomState) -> pd.DataFrame:
    """Digits, of which the first 1000 of an order are the training images and all others are fresh."""
    pixels = load_digits().data[np.random.RandomState(0).permutation(1797)]
    part = pixels[1000:] if n == N_FRESH else pixels[:1000]
    return pd.DataFrame(part[rng.permutation(len(part))[:n]])


CASES: list[tuple[str, str, Draw, int]] = [
    ("regression", "line", line, 300), ("regression", "wave", wave, 300),
    ("regression", "pure noise", nothing, 200),
    ("regression", "heavy tails", heavy, 300), ("regression", "40 inputs", many, 100),
    ("regression", "line", line, 15),
    ("density", "Gaussian", gaussian, 300), ("density", "ring", ring, 500), ("density", "groups", groups, 300),
    ("density", "Cauchy", cauchy, 300), ("density", "groups", groups, 15),
    ("boltzmann", "bits", bits, 300), ("boltzmann", "one-hot groups", one_hot, 600),
    ("boltzmann", "one-hot groups", one_hot, 3000), ("boltzmann", "digits", digits, 1000),
    ("boltzmann", "digits", digits, 60),
    ("classifier", "three groups", labelled, 300), ("classifier", "40 % wrong labels", wrong_labels, 300),
    ("classifier", "labels by chance", noise_labels, 300), ("classifier", "40 inputs", many_labelled, 100),
    ("classifier", "three groups", labelled, 20),
    ("sequence", "states", states, 600), ("sequence", "hidden states", hidden_states, 600),
    ("sequence", "40 inputs", many_states, 200), ("sequence", "states", states, 60),
    ("ranker", "linear", answers, 600), ("ranker", "relevance by chance", noise_answers, 600),
    ("ranker", "40 inputs", many_answers, 200), ("ranker", "linear", answers, 40),
    ("images", "digits", images, 1000), ("images", "digits", images, 60),
]  # fmt: skip
CRIPPLED = {"regression": {"epochs": 1}, "density": {"epochs": 1}, "boltzmann": {"learning_rate": 5.0}}
CRIPPLED |= {"classifier": {"epochs": 1}, "images": {"steps": 5}}
CRIPPLED |= {"sequence": {"epochs": 1}, "ranker": {"epochs": 1}}
COLUMNS: dict[str, dict[str, list[str]]] = {
    "regression": {"targets": ["y"]},
    "classifier": {"target": ["y"]},
    "sequence": {"target": ["y"], "sequence": ["s"]},
    "ranker": {"target": ["y"], "group": ["s"]},
}


def gain_and_draws(
    task: str, run: Any, training: pd.DataFrame, fresh: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray | None]:
    """The model's gain over the plainest baseline on each fresh row, and as many rows drawn from it.

    Of sequences and groups there is one gain for each, and no draws.
    """
    if task == "regression":
        X, y = training.drop(columns="y"), training["y"].to_numpy()
        baseline = LeastSquaresGaussian().fit(X, y, 0.0).predict_distribution(fresh.drop(columns="y"))
        ours = run.model.predict_distribution(fresh.drop(columns="y"))
        truth = fresh["y"].to_numpy()
        drawn = fresh.assign(y=ours.sample(1, 0)[:, 0]).to_numpy()
        return score_rows(truth, ours, 0.0) - score_rows(truth, baseline, 0.0), drawn
    if task == "images":
        drawn = run.sample(len(fresh), 1).reshape(len(fresh), -1)
        drawn = (drawn - drawn.min()) / (drawn.max() - drawn.min()) * 16
        components = PCA(20).fit(training)
        return np.zeros(len(fresh)), components.transform(drawn)
    if task == "ranker":
        inputs = [name for name in training.columns if name not in ("y", "s")]
        groups = [np.unique(table["s"], return_inverse=True)[1] for table in (training, fresh)]
        ridge = RidgeRelevance().fit(training[inputs], training["y"].to_numpy(), groups[0])
        scores = run.model.predict(fresh[inputs]), ridge.predict(fresh[inputs])
        ndcg = [ndcg_of_groups(fresh["y"].to_numpy(float), own, groups[1], 10) for own in scores]
        gain = ndcg[0] - ndcg[1]
        return gain[np.isfinite(gain)], None
    if task in ("classifier", "sequence"):
        inputs = [name for name in training.columns if name not in ("y", "s")]
        place = {name: k for k, name in enumerate(run.classes)}
        labels = training["y"].map(place).to_numpy(np.int64)
        baseline = Logistic().fit(training[inputs], labels, len(place)).log_prob(fresh[inputs])
        # A label that no training row has is not asked for.
        seen = fresh["y"].isin(list(place)).to_numpy()
        truth, rows = fresh["y"].map(place).fillna(0).to_numpy(np.int64), np.arange(len(fresh))
        if task == "sequence":
            frames = [part[inputs] for _, part in fresh.groupby("s", sort=False)]
            p = np.concatenate(run.model.predict_marginals(frames))[:, np.argsort(run.model.classes_)]
            p = p[:, [sorted(run.classes).index(name) for name in run.classes]]
            of_elements = (np.log(np.maximum(p, 1e-12)) - baseline)[rows, truth]
            of_sequences = np.where(seen, of_elements, np.nan).reshape(-1, 10)
            return np.nanmean(of_sequences[~np.isnan(of_sequences).all(1)], 1), None
        ours = np.log(run.model.predict_proba(fresh[inputs]))
        return (ours - baseline)[rows, truth][seen], run.sample(N_FRESH, 1)[inputs].to_numpy(np.float64)
    drawn = run.sample(N_FRESH, 1)[list(training.columns)].to_numpy(np.float64)
    log_prob = run.model.score_samples(fresh[run.columns].astype(float))
    rows = training[run.columns].to_numpy(np.float64)
    kind = GaussianBaseline() if task == "density" else BernoulliMixture(1)
    return log_prob - kind.fit(rows).log_prob(fresh[run.columns].to_numpy(np.float64)), drawn


def told_apart(drawn: np.ndarray, fresh: np.ndarray) -> float:
    """Share of rows, drawn and fresh, whose nearest neighbour is of their own kind: .5 if they are alike."""
    scale = np.maximum(fresh.std(0), 1e-9)
    rows = np.concatenate([drawn, fresh]) / scale
    # Equal rows would all be nearest neighbours: a little noise parts them.
    rows += 1e-3 * np.random.RandomState(0).standard_normal(rows.shape)
    nearest = NearestNeighbors(n_neighbors=2).fit(rows).kneighbors(return_distance=False, n_neighbors=1)[:, 0]
    kind = np.arange(len(rows)) < len(drawn)
    return float((kind == kind[nearest]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--tasks", default=",".join(CRIPPLED))
    parser.add_argument("--crippled", action="store_true", help="train by settings that must fail")
    parser.add_argument("--out", type=Path, default=Path("verdicts.json"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    found = []
    for task, name, draw, n in CASES:
        if task not in arguments.tasks.split(","):
            continue
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            found.append(judged(task, name, draw, n, seed, arguments.crippled))
            print(json.dumps(found[-1]), flush=True)
            arguments.out.write_text(json.dumps(found, indent=1))
    show(found)


def judged(task: str, name: str, draw: Draw, n: int, seed: int, crippled: bool) -> dict[str, Any]:
    rng, start = np.random.RandomState(1000 + seed), time.process_time()
    training, fresh = draw(n, rng), draw(N_FRESH, rng)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("images.npz" if task == "images" else "table.csv")
        if task == "images":
            np.savez(path, X=np.rint(training.to_numpy() * 255 / 16).astype(np.uint8).reshape(-1, 8, 8))
        else:
            training.to_csv(path, index=False)
        how: dict[str, Any] = {**COLUMNS.get(task, {}), **(CRIPPLED[task] if crippled else {})}
        settings = settings_of(task)(data=str(path), seed=seed, threads=1, **how)
        entry = {"task": task, "data": name, "rows": n, "seed": seed}
        try:
            run = fit_run(Path(folder) / "run", settings, verbose=False)
        except ValueError as error:
            return {**entry, "refused": str(error)}
        gain, drawn = gain_and_draws(task, run, training, fresh)
    gain = np.maximum(gain, -1e6)
    error = gain.std() / np.sqrt(len(gain))
    if task == "images":
        fresh = pd.DataFrame(PCA(20).fit(training).transform(fresh))
    inputs = fresh.drop(columns="y") if task == "classifier" else fresh
    apart = 0.5 if drawn is None else told_apart(drawn, inputs.to_numpy(np.float64))
    return {
        **entry,
        "gain": float(gain.mean()),
        "told_apart": apart,
        "failed_in_fact": bool(
            gain.mean() < -(SMALL_LOSS.get(task, 0.1) + 3 * error)
            or not np.isfinite(gain).all()
            or (apart > 0.8 and task != "classifier")
        ),
        "verdict": run.verdict.state,
        "checks": [f"{c.name}: {c.state}" for c in run.verdict if c.state != "passed"],
        "cpu_seconds": time.process_time() - start,
    }


def show(found: list[dict[str, Any]]) -> None:
    table = Table("task", "data", "rows", "fits", "failed in fact", "missed", "failed verdicts", "of sound ones")
    cases = {(e["task"], e["data"], e["rows"]) for e in found}
    for case in sorted(cases):
        own = [e for e in found if (e["task"], e["data"], e["rows"]) == case and "refused" not in e]
        bad = [e for e in own if e["failed_in_fact"]]
        missed = [e for e in bad if e["verdict"] != "failed"]
        wrong = [e for e in own if e["verdict"] == "failed" and not e["failed_in_fact"]]
        counts = [len(own), len(bad), len(missed), sum(e["verdict"] == "failed" for e in own), len(wrong)]
        table.add_row(case[0], case[1], str(case[2]), *map(str, counts))
    Console().print(table)


if __name__ == "__main__":
    main()
