"""What can be done with a finished run: predict, sample, score, impute, report, info."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from thalweg.cli.console import err, out, show_figures, show_pairs, write_result
from thalweg.cli.options import OutFile, RunFolder, Seed, was_written
from thalweg.runs import settings_of

TableFile = Annotated[
    Path, typer.Argument(metavar="TABLE", help="CSV, TSV or Parquet file with the same columns.")
]
DataFile = Annotated[
    Path,
    typer.Argument(
        metavar="DATA", help="CSV, TSV or Parquet file with the same columns; images for a run on images."
    ),
]


Keep = Annotated[
    list[str] | None,
    typer.Option(
        help="Column of TABLE to copy unchanged beside the results, such as a name; repeat the option for several."
    ),
]

Horizon = Annotated[
    int | None,
    typer.Option(min=1, help="Number of steps to forecast. [default: those that are forecast at once]"),
]


def add_verbs(app: typer.Typer) -> None:
    """Give the command its verbs."""
    app.command(epilog="Example: thalweg predict runs/wine new.csv --out predictions.parquet")(predict)
    app.command(epilog="Example: thalweg sample runs/iris -n 1000 --out new.csv")(sample)
    app.command(epilog="Example: thalweg score runs/iris new.csv --out scores.csv")(score)
    app.command(epilog="Example: thalweg impute runs/iris gaps.csv --draws 5 --out filled.csv")(impute)
    app.command(epilog="Example: thalweg report runs/wine")(report)
    app.command(epilog="Example: thalweg info runs/wine")(info)


def predict(
    context: typer.Context,
    run_folder: RunFolder,
    table: DataFile,
    out_file: OutFile = None,
    quantiles: Annotated[
        str, typer.Option(help="Probabilities of the quantiles, separated by commas.")
    ] = "0.05,0.95",
    coverage: Annotated[
        float | None, typer.Option(help="Coverage of a central interval, in columns lower_... and upper_...")
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Number of draws from p(y|x) for each row.")] = 0,
    seed: Seed = 0,
    keep: Keep = None,
    horizon: Horizon = None,
    draws: Annotated[
        int | None,
        typer.Option(
            min=2, help="Number of paths behind the mean and the quantiles of a forecast. [default: 1000]"
        ),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Columns to predict by a density, separated by commas.")
    ] = None,
) -> None:
    """Predict the target of each row: mean, median, mode, spread, quantiles, an interval; or its class or rank.

    The first column, `row`, counts the rows of the table from 1. Where the table holds the target too, the
    log-likelihood (higher is better) and the PIT value of each row are added. A classifier gives the prediction,
    the probability of each class, and how typical the row is; where the table holds the labels, whether it is
    right, and its log loss (lower is better). A model of sequences gives the label of each row and the
    probability of each label there. A ranker gives the score of each row (higher is better) and its rank in its
    group, 1 the best, which rows of equal score share.

    Of forecasts the table holds the past of each series, and may go on with rows whose targets are empty, which
    give the inputs that are known ahead. The result goes on with its times: the mean and five quantiles of each
    target at each step.
    """
    options = {
        "quantiles": quantiles,
        "coverage": coverage,
        "samples": samples,
        "seed": seed,
        "keep": keep or [],
        "horizon": horizon,
        "draws": draws or 1000,
        "columns": columns,
    }
    _ask(context, "predict", run_folder, out_file, "predictions", options, table)


def sample(
    context: typer.Context,
    run_folder: RunFolder,
    table: Annotated[
        Path | None,
        typer.Argument(
            metavar="[TABLE]", help="Of forecasts: CSV, TSV or Parquet file with the past of each series."
        ),
    ] = None,
    n: Annotated[
        int, typer.Option("-n", min=1, help="Number of rows or images, or of paths of each series.")
    ] = 100,
    out_file: OutFile = None,
    seed: Seed = 0,
    label: Annotated[str | None, typer.Option(help="Class of the draws, for a classifier.")] = None,
    horizon: Horizon = None,
    given: Annotated[
        list[str] | None,
        typer.Option(help="Of a density: COLUMN=VALUE that all draws have; repeat the option for several."),
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="Of a density: a relation that all draws meet, as 'width < length'.")
    ] = None,
) -> None:
    """Draw new rows or new images; columns that were rounded in the data are rounded.

    Images are written to an .npz, or as PNG files into a folder. Of forecasts, paths that go on from the past that
    TABLE holds are drawn, a row for each step of each path.
    """
    options: dict[str, Any] = {"table": table, "n": n, "seed": seed, "label": label, "horizon": horizon}
    options |= {"given": given or [], "where": where}
    _ask(context, "sample", run_folder, out_file, "rows", options)


def score(
    context: typer.Context,
    run_folder: RunFolder,
    data: DataFile,
    out_file: OutFile = None,
    keep: Keep = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Of a density: name the odd cells of each row, with their nats.")
    ] = False,
) -> None:
    """Score each row: log_prob in nats, and outlier_score, the share of held-out rows that are likelier.

    A higher outlier_score is odder, from 0 to 1; a higher log_prob is likelier. The first column is `row`, counted
    from 1, or the `file` of a picture. For a deep Boltzmann machine or a belief network log_prob is a lower bound.
    Of forecasts each series gets the mean log p of a step given all before. A run of `thalweg fit images` has a
    `score` that is not normalised, of which a lower one is odder. A classifier
    of a table names the oddest column of each row. A row with
    gaps gets no score, and its `note` says so; fill them with `thalweg impute` first.
    """
    _ask(context, "score", run_folder, out_file, "scores", {"keep": keep or [], "explain": explain}, data)


def impute(
    context: typer.Context,
    run_folder: RunFolder,
    table: TableFile,
    out_file: OutFile = None,
    draws: Annotated[
        int, typer.Option(min=1, help="Number of filled tables, one below the other; a column counts them.")
    ] = 1,
    candidates: Annotated[
        int,
        typer.Option(
            min=2, help="Number of weighted draws for each row, from which a density chooses the values."
        ),
    ] = 256,
    seed: Seed = 0,
) -> None:
    """Fill the gaps of each row with draws from their conditional distribution given the known values.

    A single filled table hides how uncertain the filled values are: several show how much they vary.
    """
    options = {"draws": draws, "candidates": candidates, "seed": seed}
    _ask(context, "impute", run_folder, out_file, "rows", options, table)


def report(
    run_folder: RunFolder,
    out_file: Annotated[
        Path | None, typer.Option("--out", "-o", help="HTML file. [default: RUN/report.html]")
    ] = None,
) -> None:
    """Write the report of a run: one HTML page that opens offline."""
    _check(run_folder)
    from thalweg.report import write_report

    path = write_report(_shown_run(run_folder), out_file)
    out.print(f"Report written to {escape(str(path))}", soft_wrap=True)


def info(run_folder: RunFolder) -> None:
    """Show what a run holds: the model, its columns, its figures and how long it took."""
    _check(run_folder)
    run = _shown_run(run_folder)
    made = {"made with": ", ".join(f"{k} {v}" for k, v in run.figures["made_with"].items())}
    show_pairs({"task": f"{run.settings.task}: {run.settings.title}", **run.summary(), **made})
    show_figures(run)


def _shown_run(run_folder: Path) -> Any:
    """A run whose checks are about to be shown, so that nothing has to be warned of."""
    from thalweg.runs.base import load_run

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return load_run(run_folder)


def _check(run_folder: Path) -> Any:
    """The settings of a finished run, read without loading its model.

    Raises:
        ValueError: if there is no finished run.
    """
    from thalweg.runs.folder import read_figures, task_of
    from thalweg.runs.kinds import RunFigures

    settings = settings_of(task_of(run_folder))
    read_figures(run_folder, settings.task, RunFigures)
    return settings


def _ask(
    context: typer.Context,
    verb: str,
    run_folder: Path,
    out_file: Path | None,
    what: str,
    options: dict[str, Any],
    data: Path | None = None,
) -> None:
    """Let a run do something, and write the result.

    Raises:
        ValueError: if the run's task lacks the verb, or an option that was given.
    """
    settings = _check(run_folder)
    if verb not in settings.verbs:
        able = ", ".join(settings.verbs) or "nothing"
        raise ValueError(
            f"{run_folder} holds a run of `thalweg fit {settings.task}` ({settings.title}), which can't {verb}: "
            f"it can {able}"
        )
    taken = settings.verbs[verb].options
    for name in options:
        if name not in taken and was_written(context, name):
            flag = "TABLE" if name == "table" else f"--{name}"
            raise ValueError(f"{flag} does not apply to a run of `thalweg fit {settings.task}`: leave it out")
    for path in (data, options.get("table")):
        if path is not None and not path.exists():
            raise ValueError(f"there is no file {path}")
    from thalweg.data.tables import check_writable
    from thalweg.runs.base import load_run

    given = {name: value for name, value in options.items() if name in taken}
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always", UserWarning)
        run = load_run(run_folder)
        if out_file is not None and not run.makes_images(verb):
            check_writable(out_file)
        if run.makes_images(verb) and out_file is None:
            raise ValueError("name an .npz or a folder for the images with --out")
        result = getattr(run, verb)(*([] if data is None else [data]), **given)
    for warning in raised:
        if issubclass(warning.category, UserWarning):
            err.print(escape(str(warning.message)), soft_wrap=True)
    # What was drawn or filled is data, and stays as it is.
    columns = result.columns if verb in ("predict", "score") else ()
    write_result(result, out_file, what, [c for c in columns if c not in given.get("keep", ())])
    if verb == "score":
        has_share = "outlier_score" in result
        err.print("A higher outlier_score is odder." if has_share else "A lower score is odder.")
    if verb == "score" and "log_prob" in result:
        gaps = int(result["log_prob"].isna().sum())
        if gaps:
            err.print(f"{gaps} of {len(result)} rows have gaps and got no score")
