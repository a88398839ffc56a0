"""The folder of a run: what is written there, whole or not at all.

The folder of a run::

    fit.json               the task, its settings and a fingerprint of the data: enough to continue after Ctrl-C
    training/              the checkpoint, until the run is finished
    model/                 the model: config.json and model.safetensors
    training_rows.parquet  training rows of a table (a sample of a large one), for the report
    test_rows.parquet      the rows of a table that were held out
    figures.json           what was measured; written last, so a folder with one is finished
    report.html            the page of pictures
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from thalweg.runs import settings_of
from thalweg.runs.settings import RunSettings


def listed(names: list[str], most: int = 12) -> str:
    """Names in quotes; if there are many, the last ones are only counted."""
    shown = ", ".join(repr(n) for n in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def is_finished(folder: Path) -> bool:
    return (folder / "figures.json").exists()


def task_of(folder: Path) -> str:
    """The task of the run in a folder: "regression", "density", ...

    Raises:
        ValueError: if the folder holds no run, or a damaged one.
    """
    path = folder / "fit.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no run: make one with `thalweg fit`")
    return str(read_json(path).get("task"))


def read_run_settings(folder: Path, task: str | None = None) -> RunSettings:
    """The settings of a run.

    Args:
        task: the task that it must be of; None for any.

    Raises:
        ValueError: if the folder holds no run, one of another task, or a damaged one.
    """
    found = task_of(folder)
    if task is not None and found != task:
        raise ValueError(
            f"{folder} holds a run of `thalweg fit {found}`: this is for runs of `thalweg fit {task}`"
        )
    path = folder / "fit.json"
    try:
        return settings_of(found)(**read_json(path)["settings"])
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


def check_run(folder: Path, settings: RunSettings, *, resume: bool, overwrite: bool) -> bool:
    """Check that a run can be made in the folder; return whether it is finished already.

    Raises:
        ValueError: if the folder holds something that does not fit the request.
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
    kept = asdict(read_run_settings(folder, settings.task))
    changed = [k for k, v in asdict(settings).items() if kept[k] != v]
    if changed:
        raise ValueError(
            f"the run in {folder} was started with another {', '.join(changed)}: resume it with the same settings "
            f"({_resume(folder, settings.task)}), or start a new run"
        )
    return is_finished(folder)


def begin_run(folder: Path, settings: RunSettings, fingerprint: str, *, resume: bool) -> None:
    """Make the folder ready to train in; a run that is not resumed is removed.

    Raises:
        ValueError: if the data have changed since the run to resume was started.
    """
    if resume:
        check_unchanged(folder, settings.data, fingerprint)
    elif (folder / "fit.json").exists():
        remove_run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / "fit.json", {"task": settings.task, "settings": asdict(settings), "fingerprint": fingerprint}
    )


def check_unchanged(folder: Path, data: str, fingerprint: str) -> None:
    """Refuse data that are not those of the run."""
    if read_json(folder / "fit.json").get("fingerprint") != fingerprint:
        raise ValueError(f"{data} has changed since the run in {folder} was started: start a new run")


def finish_run(folder: Path, figures: dict[str, Any]) -> None:
    """Write the figures of a run whose model and rows are written, which makes it a finished one."""
    write_json(folder / "figures.json", figures)
    shutil.rmtree(folder / "training", ignore_errors=True)


def _resume(folder: Path, task: str) -> str:
    return f"`thalweg fit {task} --resume --out {folder}`"


def remove_run(folder: Path) -> None:
    """Remove what a run wrote, and nothing else; ``figures.json`` first, so that the rest is no finished run."""
    for name in ("figures.json", "fit.json", "test_rows.parquet", "training_rows.parquet", "report.html"):
        (folder / name).unlink(missing_ok=True)
    for name in ("model", "training"):
        shutil.rmtree(folder / name, ignore_errors=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def versions() -> dict[str, str]:
    """The versions and the machine that a run is made with."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    ours, torchs = (importlib.metadata.version(name) for name in ("thalweg", "torch"))
    return {"thalweg": ours, "torch": torchs, "python": platform.python_version(), "on": machine}


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


def process_rank() -> int:
    """0 in the first of the processes that train together, which alone writes; above 0 in the others."""
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name])
    # Lightning Fabric numbers the machines, and the processes of each.
    return int(os.environ.get("NODE_RANK", 0)) + int(os.environ.get("LOCAL_RANK", 0))
