"""Checkpoints that are whole or not there: written aside, flushed, then renamed into place."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

_NAME = "checkpoint.pt"
_FORMAT = "thalweg-checkpoint"
_VERSION = 2


def write_checkpoint(run_dir: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint of a run. A kill at any moment leaves the old one or the new one."""
    run_dir.mkdir(parents=True, exist_ok=True)
    aside = run_dir / (_NAME + ".part")
    try:
        with open(aside, "wb") as file:
            torch.save({**state, "format": _FORMAT, "version": _VERSION}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, run_dir / _NAME)
    except (OSError, RuntimeError) as error:
        aside.unlink(missing_ok=True)
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None  # torch's writer turns Ctrl-C into a RuntimeError
        # A full disk comes as OSError from the file and as RuntimeError from torch's writer.
        raise OSError(
            f"could not write the checkpoint to {run_dir} ({error}); the one before it is untouched: free some "
            "space and resume"
        ) from error


def read_checkpoint(run_dir: Path) -> dict[str, Any] | None:
    """The checkpoint of a run, or None if it has none. No code in the file is run.

    Raises:
        ValueError: if the file is damaged, not a checkpoint or of a newer version.
    """
    path = run_dir / _NAME
    if not path.exists():
        return None
    damaged = f"{path} is damaged or not a checkpoint: delete the run and start anew"
    try:
        # torch does not compare the sums that it writes with the tensors.
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise ValueError(damaged)
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(damaged) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ValueError(f"{path} is not a checkpoint of this library")
    if state["version"] > _VERSION:
        raise ValueError(f"{path} was written by a newer version of this library: upgrade it to resume the run")
    return state


def remove_checkpoint(run_dir: Path) -> None:
    (run_dir / _NAME).unlink(missing_ok=True)


def has_checkpoint(run_dir: Path) -> bool:
    return (run_dir / _NAME).exists()
