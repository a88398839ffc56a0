"""Options of the command, made from the settings of a task, where each is declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from thalweg.runs.settings import RunSettings, Settings

OutFolder = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the result. [default: runs/NAME]")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")]
Report = Annotated[bool, typer.Option("--report/--no-report", help="Whether to write report.html.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no figures.")]

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]
OutFile = Annotated[
    Path | None, typer.Option("--out", "-o", help="CSV, TSV or Parquet file. [default: CSV to stdout]")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the draws.")]


def with_settings(settings: type[Settings], body: Callable[..., None]) -> Callable[..., None]:
    """A command whose options are those of the settings, followed by those of its body.

    The body is called with ``given``, the settings that were written on the command line by name, ``data``, and
    its own options.

    Args:
        settings: they say which options there are, with their defaults, bounds and help.
        body: the parameters after ``given`` and ``data`` are options of its own.
    """
    hints = get_type_hints(settings)
    argument = typer.Argument(metavar=settings.data_name, help=settings.data_help, show_default=False)
    parameters = [_parameter("data", Annotated[Path | None, argument], None)]
    shared = [entry.name for entry in fields(RunSettings)]
    # Options of the task come before those that all tasks share.
    entries = sorted((e for e in fields(settings) if e.metadata), key=lambda e: e.name in shared)
    names = [entry.name for entry in entries]
    for entry in entries:
        annotation: Any = Annotated.__class_getitem__((hints[entry.name], _option(entry.name, entry.metadata)))  # type: ignore[attr-defined]
        parameters.append(_parameter(entry.name, annotation, settings.defaults()[entry.name]))
    signature = inspect.signature(body, eval_str=True)
    own = [p for name, p in signature.parameters.items() if name not in ("given", "data", "settings")]

    def command(**values: Any) -> None:
        context = values.pop("context")
        given = {name: values[name] for name in names if was_written(context, name)}
        body(given=given, data=values["data"], **{p.name: values[p.name] for p in own})

    parameters = [_parameter("context", typer.Context), *parameters, *own]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = settings.__doc__
    command.__name__ = settings.task
    return command


def settings_from(settings: type[Settings], data: Path | None, given: dict[str, Any], kept: Any = None) -> Any:
    """The settings of a new run on these data, or those of a kept one, changed by what is given."""
    return replace(kept, **given) if data is None else settings(data=str(data.resolve()), **given)


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _option(name: str, about: Any) -> Any:
    flags = about["flags"] or ("--" + name.replace("_", "-"),)
    choices, text = about["choices"], about["help"]
    how: dict[str, Any] = {"help": text, "hidden": about["hidden"], "min": about["least"]}
    if choices:
        how["help"] = f"{text} One of {', '.join(choices)}."
        how["autocompletion"] = lambda incomplete="": [c for c in choices if c.startswith(incomplete)]
    return typer.Option(*flags, **how)


def was_written(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
