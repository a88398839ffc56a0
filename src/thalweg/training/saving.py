"""Saved models: a folder with ``config.json`` and ``model.safetensors``. Loading never runs code from it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from thalweg._sealed import file_sum, read_json, sealed, unsealed

FORMAT = "thalweg-model"
VERSION = 1


def save_model(folder: Path, kind: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a model. Files are written aside and renamed, the config last: a folder with one is whole.

    The config has a checksum of its own, and one of the tensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    document = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "sha256": hashlib.sha256(data).hexdigest(),
        "config": config,
    }
    text = sealed(document)
    _replace(folder / "model.safetensors", data)
    _replace(folder / "config.json", text.encode())


def load_model(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a model's config and tensors.

    Raises:
        ValueError: if the folder is missing, damaged, foreign, of another kind or of a newer version, if it was
            changed since it was saved, or if a number in it is NaN.
    """
    config_path, tensor_path = folder / "config.json", folder / "model.safetensors"
    if not config_path.is_file() or not tensor_path.is_file():
        raise ValueError(f"{folder} holds no model: config.json and model.safetensors are expected there")
    document = read_json(config_path)
    if document.get("format") != FORMAT:
        raise ValueError(f"{config_path} was not written by thalweg")
    if not isinstance(document.get("version"), int) or document["version"] > VERSION:
        raise ValueError(
            f"{folder} was written by a newer thalweg (model version {document.get('version')}, this one reads "
            f"{VERSION}): upgrade thalweg"
        )
    document = unsealed(document, config_path)  # a newer version may have other checksums
    if document.get("kind") != kind:
        raise ValueError(f"{folder} holds a {document.get('kind')}, not a {kind}")
    if file_sum(tensor_path) != document.get("sha256"):
        raise ValueError(f"{tensor_path} is damaged, or does not belong to the config beside it")
    try:
        tensors = load_file(tensor_path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{tensor_path} is damaged: {error}") from error
    if not isinstance(document.get("config"), dict):
        raise ValueError(f"{config_path} is damaged: it holds no config")
    for name, tensor in tensors.items():
        if torch.isnan(tensor).any():
            raise ValueError(f"{tensor_path} is damaged: {name!r} has NaN")
    return document["config"], tensors


@contextmanager
def rebuilding(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Within it a model is rebuilt from what was read: what fails there is the folder's fault.

    Raises:
        ValueError: if the config and the tensors do not fit each other.
    """
    try:
        yield
    except (LookupError, TypeError, RuntimeError, ValueError, AttributeError, StopIteration) as error:
        raise ValueError(f"{folder} is damaged: its config and its tensors do not fit ({error})") from error


def refuse_infinite(folder: str | os.PathLike[str], modules: Iterable[nn.Module]) -> None:
    """Refuse a model with an infinite weight; a buffer may hold one, as the log of a share of 0.

    Raises:
        ValueError: naming the weight.
    """
    for module in modules:
        for name, weight in module.named_parameters():
            if not torch.isfinite(weight).all():
                raise ValueError(f"{folder} is damaged: the weight {name!r} is infinite")


def tensors_of(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of one module among the tensors of a model: those named ``name.…``, without the prefix."""
    return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}


def _replace(path: Path, data: bytes) -> None:
    aside = path.with_name(path.name + ".part")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OSError(f"could not write {path} ({error}): free some space and save again") from error
