"""The page of pictures: one file a task, found by the task's name."""

from __future__ import annotations

from pathlib import Path

from thalweg.report.page import Card, Tile, render_page, write_page
from thalweg.runs import found
from thalweg.runs.base import Run

__all__ = ["Card", "Tile", "render_page", "write_page", "write_report"]


def write_report(run: Run, path: Path | None = None) -> Path:
    """Write the page of a finished run; beside the run by default.

    Raises:
        ValueError: if the path is a folder, or the data that the page needs are gone.
    """
    return write_page(found(run.settings.report).report(run), path or run.folder / "report.html")
