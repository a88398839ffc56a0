"""Runs with damaged files: one line that says what is wrong, or the right answer; and no code is run."""

import json
import math
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from command import call, thalweg
from thalweg._sealed import read_sealed

TASKS = (
    "regression",
    "density",
    "detector",
    "classifier",
    "sequence",
    "ranker",
    "boltzmann",
    "images",
    "generator",
    "forecast",
)
PREDICTING = ("regression", "classifier", "sequence", "ranker", "forecast")
OPTIONS: dict[str, tuple[Any, ...]] = {
    "regression": ("-t", "y", "--epochs", 1, "--members", 1),
    "density": ("--epochs", 1, "--members", 1),
    "detector": (),
    "classifier": ("-t", "y", "--drop", "group", "--epochs", 1, "--members", 1),
    "sequence": ("-t", "y", "-s", "group", "--epochs", 1),
    "ranker": ("-t", "y", "-g", "group", "--epochs", 1, "--members", 2),
    "boltzmann": ("--epochs", 1, "--hidden", 2),
    "images": ("--steps", 1, "--threads", 1),
    "generator": ("--steps", 2, "--threads", 1),
    "forecast": ("--time", "t", "-t", "y", "--horizon", 2, "--steps", 2, "--members", 2, "--threads", 1),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny finished run of each task, and one that was stopped before its figures; with the data of each."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(40, 2)), columns=["a", "b"])
    table.assign(y=table["a"] + rng.normal(size=40)).to_csv(folder / "t.csv", index=False)
    table.assign(y=table["a"], t=range(40)).to_csv(folder / "series.csv", index=False)
    labels = np.where(table["a"] > 0, 1, 0)
    groups = np.repeat([f"g{i}" for i in range(8)], 5)
    table.assign(y=labels, group=groups).to_csv(folder / "grouped.csv", index=False)
    np.savez(folder / "p.npz", X=rng.uniform(size=(20, 4, 4)))
    for task in TASKS:
        thalweg("fit", task, data_of(folder, task), "--out", folder / task, *OPTIONS[task], "-q", "--no-report")
    return folder


def data_of(folder: Path, task: str) -> Path:
    names = {"images": "p.npz", "classifier": "grouped.csv", "sequence": "grouped.csv", "ranker": "grouped.csv"}
    names["forecast"] = "series.csv"
    return folder / names.get(task, "t.csv")


def asked(runs: Path, task: str, run: Path, tables: bool) -> Iterator[tuple[Any, ...]]:
    """Every command that reads a run; the page, which is slow to draw, if it is the tables that are asked for."""
    yield "info", run
    if tables:
        yield "report", run, "--out", run.parent / "page.html"
        return
    if task in PREDICTING:
        yield "predict", run, data_of(runs, task)
    else:
        yield "score", run, data_of(runs, task)
    if task not in (*PREDICTING, "detector"):
        yield "sample", run, "-n", 2, "--out", run.parent / ("new.npz" if task == "images" else "new.csv")
    if task in ("density", "boltzmann"):
        yield "impute", run, runs / "t.csv"
    yield "fit", task, "--resume", "--out", run, "-q", "--no-report"


def files_of(run: Path) -> list[str]:
    return sorted(p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file())


def is_right(runs: Path, task: str, run: Path, words: str = "", tables: bool = False) -> None:
    """Each command ends with one line of an error, or with what it says of the run that is whole."""
    n_refused = 0
    for command in asked(runs, task, run, tables):
        done = call(*command)
        if done.code:
            n_refused += 1
            assert (done.code, done.err.count("\n"), done.out) == (1, 1, ""), (command, done)
            assert done.err.startswith("error: ")
            assert "Error(" not in done.err, done.err
            assert words in done.err, done.err
        else:
            whole = call(*(runs / task if part == run else part for part in command))
            assert done.out.replace(str(run), "RUN") == whole.out.replace(str(runs / task), "RUN"), command
    assert n_refused or not words


# -- bytes ------------------------------------------------------------------------------------------------


def cut(share: float) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flip(share: float) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[min(int(share * len(data)), len(data) - 1)] ^= 1
        path.write_bytes(data)

    return change


def replace(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


class Bomb:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": replace(b""),
    "cut near its end": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "cut in half": cut(0.5),
    "flipped at the begin": flip(0.02),
    "flipped in the middle": flip(0.5),
    "flipped near its end": flip(0.97),
    "a folder": folder_instead,
    "missing": Path.unlink,
    "foreign JSON": replace(b'{"model_type": "bert", "layers": [1, 2]}'),
    "another kind of JSON": replace(b"[[null]]"),
    "garbage": replace(bytes(random.Random(0).randbytes(3000))),
    "a pickle": replace(pickle.dumps(Bomb())),
}
NAMES = {
    task: ["fit.json", "figures.json", "model/config.json", "model/model.safetensors"]
    + ([] if task in ("boltzmann", "images", "forecast") else ["training_rows.parquet"])
    + ([] if task in ("boltzmann", "images") else ["test_rows.parquet"])
    for task in TASKS
}
# Two tasks have all kinds of files between them; the others are slow and alike.
CASES = [
    pytest.param(task, name, damage, marks=[] if task in ("density", "images") else [pytest.mark.slow])
    for task in TASKS
    for name in NAMES[task]
    for damage in DAMAGES
]


@pytest.mark.parametrize("task", TASKS)
def test_every_file_of_a_run_is_damaged_below(runs, task):
    assert files_of(runs / task) == sorted(NAMES[task])


@pytest.mark.parametrize(("task", "name", "damage"), CASES, ids=lambda part: str(part).replace(" ", "-"))
def test_a_damaged_file_is_told_in_one_line(runs, tmp_path, monkeypatch, task, name, damage):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    shutil.copytree(runs / task, run)
    DAMAGES[damage](run / name)
    is_right(runs, task, run, tables=name.endswith("parquet"))
    assert not Path("exploded").exists()


# -- values -----------------------------------------------------------------------------------------------


def changed(document: Any, rng: random.Random) -> Any:
    """The document with one value somewhere in it changed to one of another type, or beyond its bounds."""
    document = json.loads(json.dumps(document))
    place = document
    while True:
        key = rng.choice(sorted(place) if isinstance(place, dict) else range(len(place)))
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
            place = place[key]
            continue
        others = [None, 3, -1, 10**30, "text", [], {}, [[{}]], {"a": [None]}, True, math.nan, -math.inf]
        place[key] = rng.choice([o for o in others if type(o) is not type(place[key]) or o != place[key]])
        return document


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["fit.json", "figures.json", "model/config.json"])
def test_a_changed_value_is_told_in_one_line(runs, tmp_path, task, name, seed):
    """The checksum is there, and does not fit."""
    run = tmp_path / "run"
    shutil.copytree(runs / task, run)
    document = json.loads((run / name).read_text(encoding="utf-8"))
    (run / name).write_text(json.dumps(changed(document, random.Random(seed))))
    assert (run / name).read_text() != (runs / task / name).read_text()
    is_right(runs, task, run, "damaged" if name != "fit.json" else "")


WRONG: dict[str, list[tuple[str, Any]]] = {
    "fit.json": [("task", 3), ("task", "other"), ("settings", []), ("settings", {"other": 1}),
                 ("fingerprint", None), ("settings.data", 5), ("settings.seed", "0"), ("settings.seed", -1),
                 ("settings.threads", 2**70),
                 ("settings.test_fraction", [0.1]), ("settings.device", None)],
    "figures.json": [("seconds", 3), ("seconds", {}), ("seconds.training", -1.0), ("seconds.training", None),
                     ("made_with", []), ("made_with.torch", 2), ("scores", 7), ("scores", [1]), ("remarks", None),
                     ("remarks", [1]), ("verdict", {}), ("verdict", [1]), ("verdict", [{"name": 3}])],
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", WRONG)
def test_wrong_types_are_told_without_a_checksum_too(runs, tmp_path, task, name):
    """As in a run from before there were checksums."""
    run = tmp_path / "run"
    shutil.copytree(runs / task, run)
    entries = read_sealed(run / name)
    (run / name).write_text(json.dumps(entries))
    assert call("info", run).code == 0
    for place, value in WRONG[name]:
        document = json.loads(json.dumps(entries))
        *parents, last = place.split(".")
        inner = document
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
        (run / name).write_text(json.dumps(document))
        done = call("info", run)
        assert (done.code, done.err.count("\n")) == (1, 1), (place, value, done)
        assert "damaged" in done.err, (place, value, done.err)


@pytest.mark.parametrize("task", ["regression", "density"])
def test_files_of_another_run_are_refused(runs, tmp_path, task):
    pd.DataFrame(np.random.default_rng(1).normal(size=(30, 2)), columns=["c", "y"]).to_csv(
        tmp_path / "u.csv", index=False
    )
    target = ("-t", "y") if task == "regression" else ()
    other, run = tmp_path / "other", tmp_path / "run"
    options = ("--epochs", 1, "--members", 1, "-q", "--no-report")
    thalweg("fit", task, tmp_path / "u.csv", "--out", other, *target, *options)
    for name in ("model", "training_rows.parquet", "test_rows.parquet", "figures.json"):
        shutil.copytree(runs / task, run)
        if name == "model":
            shutil.rmtree(run / "model")
            shutil.copytree(other / "model", run / "model")
        else:
            shutil.copy(other / name, run / name)
        is_right(runs, task, run, "was changed or damaged", tables=name.endswith("parquet"))
        shutil.rmtree(run)


# -- folders and disks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_a_folder_that_can_not_be_written_is_told_in_one_line(runs, tmp_path, task):
    """A path beneath a file: root may write in a folder that is read-only."""
    (tmp_path / "file").write_text("mine")
    beneath = tmp_path / "file" / "run"
    data = data_of(runs, task)
    commands = [
        ("fit", task, data, *OPTIONS[task], "--out", beneath, "-q"),
        ("report", runs / task, "--out", beneath / "page.html"),
        ("info", beneath),
    ]
    if task in PREDICTING:
        commands.append(("predict", runs / task, data, "--out", beneath / "p.csv"))
    else:
        commands.append(("score", runs / task, data, "--out", beneath / "p.csv"))
    if task not in (*PREDICTING, "detector"):
        commands.append(("sample", runs / task, "--out", beneath / ("s.npz" if task == "images" else "s.csv")))
    for command in commands:
        done = call(*command)
        assert (done.code, done.out) == (1, ""), (command, done)
        # Before it a warning may say that the model is not to be trusted.
        assert [line for line in done.err.splitlines() if "rror" in line] == done.err.splitlines()[-1:]
        assert done.err.splitlines()[-1].startswith("error: ")
    assert (tmp_path / "file").read_text() == "mine"
