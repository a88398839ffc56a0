"""JSON documents with a checksum: one that was changed or damaged since it was written is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

_CHECKSUM = "checksum"


def sealed(document: dict[str, Any]) -> str:
    """The text of a document, with a checksum over all its entries.

    Raises:
        ValueError: for NaN or infinity, which JSON lacks.
    """
    # As it will be read: keys are texts by then.
    entries = json.loads(json.dumps(document, allow_nan=False))
    return json.dumps({**entries, _CHECKSUM: _sum_of(entries)}, indent=1) + "\n"


def read_sealed(path: Path) -> dict[str, Any]:
    """The entries of a document.

    Raises:
        ValueError: if the file can't be read, is no JSON object, or does not have the checksum that it states.
    """
    return unsealed(read_json(path), path)


def read_json(path: Path) -> dict[str, Any]:
    """A document as it stands in a file, its checksum included and not looked at.

    Raises:
        ValueError: if the file can't be read, or is no JSON object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except OSError as error:
        raise ValueError(f"{path} can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object")
    return document


def unsealed(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """The entries of a document; one without a checksum, as they were written before there was one, is taken too.

    Raises:
        ValueError: if it does not have the checksum that it states.
    """
    entries = {name: entry for name, entry in document.items() if name != _CHECKSUM}
    if _CHECKSUM in document and document[_CHECKSUM] != _sum_of(entries):
        raise ValueError(f"{path} was changed or damaged since it was written: its checksum does not fit")
    return entries


def file_sum(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sum_of(entries: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")
