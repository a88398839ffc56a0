"""The folder of a run: what is written there, whole or not at all.

The folder of a run::

    fit.json               the task, its settings and a fingerprint of the data: enough to continue after Ctrl-C
    training/              the checkpoint, until the run is finished
    model/                 the model: config.json and model.safetensors
    training_rows.parquet  training rows of a table (a sample of a large one), for the report
    test_rows.parquet      the rows of a table that were held out
    figures.json           what was measured; written last, so a folder with one is finished
    report.html            the page of pictures
    .lock                  held by the process that trains, and removed when it ends

Every document of JSON has a checksum, and ``figures.json`` those of the files beside it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from thalweg._sealed import file_sum, read_sealed, sealed
from thalweg.runs import TASKS, settings_of
from thalweg.runs.kinds import misfit
from thalweg.runs.settings import RunSettings

_LOCK = ".lock"
# What a process that was killed can leave before there is a run.
_LEFT_BEHIND = (_LOCK, "fit.json.part")
# Files whose checksums are kept with the figures.
_SUMMED = ("training_rows.parquet", "test_rows.parquet", "model/config.json")
_FIT: dict[str, Any] = {"task": str, "settings": dict[str, Any], "fingerprint": str}


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
    if not (folder / "fit.json").exists():
        raise ValueError(f"{folder} holds no run: make one with `thalweg fit`")
    return str(_read_fit(folder)["task"])


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
    settings = _read_fit(folder)["settings"]
    try:
        return settings_of(found)(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'fit.json'} is damaged, or of another version ({error})") from error


def _read_fit(folder: Path) -> dict[str, Any]:
    """``fit.json``, whose entries are of the right types."""
    path = folder / "fit.json"
    document = read_sealed(path)
    for name, kind in _FIT.items():
        if wrong := misfit(document.get(name), kind, repr(name)):
            raise ValueError(f"{path} is damaged: {wrong}")
    if document["task"] not in TASKS:
        raise ValueError(f"{path} is damaged, or of another version: there is no task {document['task']!r}")
    return document


def read_figures(folder: Path, task: str, kind: Any) -> dict[str, Any]:
    """The figures of a run.

    Args:
        kind: the ``TypedDict`` that says what they are.

    Raises:
        ValueError: if the run is not finished, or a figure is missing or is not what it must be.
    """
    if not is_finished(folder):
        raise ValueError(f"the run in {folder} is not finished: {_resume(folder, task)}")
    path = folder / "figures.json"
    figures = read_sealed(path)
    if wrong := misfit(figures, kind, "what it holds"):
        raise ValueError(f"{path} is damaged: {wrong}")
    if "training" not in figures["seconds"]:
        raise ValueError(f"{path} is damaged: 'seconds' lacks 'training'")
    return figures


def check_files(folder: Path, figures: dict[str, Any], *names: str) -> None:
    """Refuse files of a run that are not those which its figures belong to.

    Raises:
        ValueError: if one is missing, or was changed; in words.
    """
    for name, stated in figures.get("files", {}).items():
        path = folder / name
        if name not in names:
            continue
        if not path.is_file():
            raise ValueError(f"{path} is missing: it was there when the run ended")
        if file_sum(path) != stated:
            raise ValueError(f"{path} was changed or damaged since the run ended")


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
    if (
        not known
        and not overwrite
        and folder.exists()
        and any(p.name not in _LEFT_BEHIND for p in folder.iterdir())
    ):
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


@contextlib.contextmanager
def writing_alone(folder: Path) -> Iterator[None]:
    """Within it no other process writes in the folder of a run; an empty folder is removed at the end.

    The lock is one of the system on an open file, which vanishes with the process however that ends. Where the
    file system has no locks nothing is locked.

    Raises:
        ValueError: if another process is within it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LOCK
    try:
        with path.open("ab") as file:
            # A file that was removed meanwhile is locked by its last holder only.
            if not (_locked(file) and path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
                raise ValueError(
                    f"another process is writing the run in {folder}: wait until it ends, or choose another --out"
                )
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    path.unlink()
    finally:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _locked(file: IO[bytes]) -> bool:
    """Whether the file is ours alone; True where the system or the file system can't say."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


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
    if _read_fit(folder)["fingerprint"] != fingerprint:
        raise ValueError(f"{data} has changed since the run in {folder} was started: start a new run")


def finish_run(folder: Path, figures: dict[str, Any]) -> None:
    """Write the figures of a run whose model and rows are written, which makes it a finished one."""
    figures["files"] = {name: file_sum(folder / name) for name in _SUMMED if (folder / name).exists()}
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


def versions() -> dict[str, str]:
    """The versions and the machine that a run is made with."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    ours, torchs = (importlib.metadata.version(name) for name in ("thalweg", "torch"))
    return {"thalweg": ours, "torch": torchs, "python": platform.python_version(), "on": machine}


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document with a checksum, whole or not at all.

    Raises:
        ValueError: for NaN or infinity.
        OSError: if it can't be written.
    """
    aside, text = path.with_name(path.name + ".part"), sealed(document)
    try:
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
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
