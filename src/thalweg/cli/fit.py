"""``thalweg fit TASK``: a command for every task that is registered."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import typer

from thalweg.cli.console import say_error, show_end, teller
from thalweg.cli.options import OutFolder, Overwrite, Quiet, Report, Resume, settings_from, with_settings
from thalweg.runs import TASKS, settings_of
from thalweg.runs.settings import RunSettings


def add_tasks(app: typer.Typer) -> None:
    """Give the command ``fit`` a command for every task."""
    for task in TASKS:
        settings = settings_of(task)
        command = with_settings(settings, partial(_fit, settings))
        app.command(task, short_help=settings.help, epilog=f"Example: {settings.example}")(command)


def _fit(
    settings: type[RunSettings],
    *,
    given: dict[str, Any],
    data: Path | None,
    out_folder: OutFolder = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    report: Report = True,
    quiet: Quiet = False,
) -> None:
    from thalweg.runs.folder import check_run, process_rank, read_run_settings

    task = settings.task
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other: give one of them")
    kept = None
    if data is None:
        if not resume:
            raise ValueError(f"name the data: thalweg fit {task} {settings.data_name}")
        if out_folder is None:
            raise ValueError("name the run to resume with --out RUN")
        kept = read_run_settings(out_folder, task)
    elif not data.exists():
        raise ValueError(f"there is no file {data}")
    asked = settings_from(settings, data, given, kept)
    folder = out_folder or asked.default_folder
    if process_rank() == 0:
        # What does not fit is refused before anything slow is loaded.
        check_run(folder, asked, resume=resume, overwrite=overwrite)
        from thalweg.runs.tables import check_columns

        check_columns(asked)
    fit_and_show(folder, asked, resume=resume, overwrite=overwrite, report=report, quiet=quiet)


def fit_and_show(
    folder: Path,
    settings: RunSettings,
    *,
    resume: bool = False,
    overwrite: bool = False,
    report: bool = True,
    quiet: bool = False,
) -> None:
    """Fit a run, write its page and print its figures."""
    from thalweg.runs.base import fit_run

    tell = teller(quiet)
    with _resumable(folder, settings.task):
        how = {"resume": resume, "overwrite": overwrite, "verbose": not quiet}
        run = fit_run(folder, settings, tell=tell, **how)
    if run is None:
        return  # another process writes and reports
    if report:
        from thalweg.report import write_report

        tell("Drawing the report.")
        write_report(run)
    if not quiet:
        show_end(run)


@contextlib.contextmanager
def _resumable(folder: Path, task: str) -> Iterator[None]:
    """Say how to go on after an interruption."""
    try:
        yield
    except (KeyboardInterrupt, OSError) as error:
        if not _is_interrupt(error):
            raise
        from thalweg.runs.folder import process_rank

        if process_rank() == 0:  # Ctrl-C reaches all processes, and one of them says so
            known = (folder / "fit.json").exists()
            resume = f"interrupted; continue with `thalweg fit {task} --resume --out {folder}`"
            say_error(resume if known else "interrupted before anything was written")
        raise typer.Exit(130) from None


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is at the root of an error: in the middle of writing a file it comes out as another one."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
