"""The folder of a run: what is written there, whole or not at all, and told apart."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

Settings = TypeVar("Settings")


def is_finished(folder: Path) -> bool:
    return (folder / "figures.json").exists()


def task_of(folder: Path) -> str:
    """What the run in a folder is of: "regression", "density", ...

    Raises:
        ValueError: if the folder holds no run, or a damaged one.
    """
    path = folder / "fit.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no run: make one with `thalweg fit`")
    # The first runs were all regressions and did not say so.
    return str(read_json(path).get("task", "regression"))


def read_run_settings(folder: Path, task: str, kind: type[Settings]) -> Settings:
    """The settings of a run.

    Raises:
        ValueError: if the folder holds no run, one of another kind, or a damaged one.
    """
    found = task_of(folder)
    if found != task:
        raise ValueError(f"{folder} holds a run of {_named(found)}: this is for runs of {_named(task)}")
    path = folder / "fit.json"
    try:
        return kind(**read_json(path)["settings"])
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged, or of another version ({error})") from error


def read_figures(folder: Path, task: str, expected: set[str]) -> dict[str, Any]:
    """The figures of a run.

    Raises:
        ValueError: if the run is not finished, or a figure is missing.
    """
    if not is_finished(folder):
        raise ValueError(f"the run in {folder} is not finished: {_resume(folder, task)}")
    figures = read_json(folder / "figures.json")
    lacking = expected - set(figures)
    if lacking:
        raise ValueError(f"{folder / 'figures.json'} is damaged: it lacks {listed(sorted(lacking))}")
    return figures


def check_run(folder: Path, task: str, settings: Any, *, resume: bool, overwrite: bool) -> bool:
    """Whether the run asked for is finished already.

    Raises:
        ValueError: if what lies in the folder does not fit what is asked.
    """
    known = (folder / "fit.json").exists()
    if resume and not known:
        raise ValueError(f"{folder} holds no run to resume: start one without --resume")
    if known and not resume and not overwrite:
        state = "a finished run" if is_finished(folder) else "an unfinished run"
        raise ValueError(f"{folder} holds {state}: choose another --out, or give --resume or --overwrite")
    if not known and folder.exists() and (not folder.is_dir() or (folder / "model").exists()):
        raise ValueError(f"{folder} exists and is no run: choose another --out")
    if not known and not overwrite and folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} holds other files: choose another --out, or give --overwrite, which leaves them"
        )
    if not resume:
        return False
    kept = asdict(read_run_settings(folder, task, type(settings)))
    changed = [k for k, v in asdict(settings).items() if kept[k] != v]
    if changed:
        raise ValueError(
            f"the run in {folder} was started with another {', '.join(changed)}: resume it with the same settings "
            f"({_resume(folder, task)}), or start a new run"
        )
    return is_finished(folder)


def begin_run(folder: Path, task: str, settings: Any, data: str, fingerprint: str, *, resume: bool) -> None:
    """Make the folder ready to train in; a run that is not resumed is removed.

    Raises:
        ValueError: if the data have changed since the run to resume was started.
    """
    if resume:
        check_unchanged(folder, data, fingerprint)
    elif (folder / "fit.json").exists():
        remove_run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "fit.json", {"task": task, "settings": asdict(settings), "fingerprint": fingerprint})


def check_unchanged(folder: Path, data: str, fingerprint: str) -> None:
    """Refuse data that are not those of the run."""
    # The first runs on images kept no fingerprint.
    if read_json(folder / "fit.json").get("fingerprint", fingerprint) != fingerprint:
        raise ValueError(f"{data} has changed since the run in {folder} was started: start a new run")


def finish_run(folder: Path, figures: dict[str, Any]) -> None:
    """Write the figures of a run whose model and rows are written, which makes it a finished one."""
    write_json(folder / "figures.json", figures)
    shutil.rmtree(folder / "training", ignore_errors=True)


def _named(task: str) -> str:
    return "`thalweg fit density` on images" if task == "images" else f"`thalweg fit {task}`"


def _resume(folder: Path, task: str) -> str:
    return f"`thalweg fit {'density' if task == 'images' else task} --resume --out {folder}`"


def remove_run(folder: Path) -> None:
    """Remove what a run wrote, and nothing else; ``figures.json`` first, so that the rest is no run."""
    for name in ("figures.json", "fit.json", "test_rows.parquet", "training_rows.parquet", "report.html"):
        (folder / name).unlink(missing_ok=True)
    for name in ("model", "training"):
        shutil.rmtree(folder / name, ignore_errors=True)


def fingerprint_of(table: pd.DataFrame) -> str:
    """Of the values and the names; tells whether a table is still the one that a run was started on."""
    digest = hashlib.sha256(repr([(str(c), str(t)) for c, t in table.dtypes.items()]).encode())
    digest.update(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    # Imported here: the package imports this module.
    from thalweg import __version__

    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    return {"thalweg": __version__, "torch": torch.__version__, "python": platform.python_version(), "on": machine}


def without_infinities(summary: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: a figure that can't be told becomes null."""
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in summary.items()}


def listed(names: list[str], most: int = 12) -> str:
    shown = ", ".join(repr(n) for n in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is missing or damaged") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} is damaged")
    return document


def write_json(path: Path, document: dict[str, Any]) -> None:
    aside = path.with_name(path.name + ".part")
    try:
        with open(aside, "w", encoding="utf-8") as file:
            file.write(json.dumps(document, indent=1, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OSError(f"could not write {path} ({error}): free some space and run again with --resume") from error


def split_rows(n_rows: int, test_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows, in the order of the table. The same seed gives the same split."""
    n_test = max(1, round(test_fraction * n_rows)) if test_fraction else 0
    if n_rows - n_test < 5:
        raise ValueError(f"{n_rows - n_test} rows are left to train on: lower --test-fraction")
    order = np.random.RandomState(seed).permutation(n_rows)
    return np.sort(order[n_test:]), np.sort(order[:n_test])
