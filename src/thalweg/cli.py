"""The command ``thalweg``: reads arguments, calls the library, tells what came of it."""

from __future__ import annotations

import errno
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from thalweg.estimators.run import FinishedRun, RunSettings

# What needs torch is imported inside the commands, so that help and errors come at once.

app = typer.Typer(
    help="Energy-based models: p(y|x) from a table, in one command.",
    epilog="Example: thalweg fit regression wine.csv --target quality --out runs/wine",
    add_completion=False,
    pretty_exceptions_enable=False,
)
fit_app = typer.Typer(
    help="Fit a model to a table.",
    epilog="Example: thalweg fit regression wine.csv --target quality --out runs/wine",
)
app.add_typer(fit_app, name="fit")

# Tables, figures and predictions go to stdout; progress and errors to stderr.
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def main() -> None:
    """Run the command and exit: 0 only on success; an error is one line that says what to do."""
    usage_error: Any = typer.BadParameter.__base__
    try:
        code = app(standalone_mode=False) or 0
    except usage_error as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "thalweg"
        _say_error(f"{error.format_message()} (see `{path} --help`)")
        code = 2
    except (ValueError, OSError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        _say_error(f"{error}: free some space and run again" if full else str(error))
        code = 1
    except RuntimeError as error:
        from thalweg.training.loop import DivergenceError

        if not isinstance(error, DivergenceError):
            raise
        _say_error(str(error))
        code = 1
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    sys.exit(int(code))


def _say_error(message: str) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr)


@app.callback(invoke_without_command=True)
def _thalweg(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        print(f"thalweg {version_of('thalweg')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@fit_app.callback(invoke_without_command=True)
def _fit(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@fit_app.command(
    epilog="Example: thalweg fit regression wine.csv --target quality --out runs/wine",
    short_help="Fit the density of a target, given all other columns.",
)
def regression(
    context: typer.Context,
    table: Annotated[Path | None, typer.Argument(help="CSV, TSV or Parquet file.", show_default=False)] = None,
    target: Annotated[
        list[str] | None, typer.Option("--target", "-t", help="Column to predict; repeat it for several.")
    ] = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run. [default: runs/TABLE-TARGET]")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option("--drop", help="Column to leave out; repeatable.")] = None,
    test_fraction: Annotated[float, typer.Option(help="Part of the rows held out for the figures.")] = 0.1,
    objective: Annotated[str, typer.Option(help="How the energy learns; 'auto' picks the best.")] = "auto",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data, at most.")] = 200,
    members: Annotated[int, typer.Option(min=1, help="Networks in the ensemble.")] = 8,
    point: Annotated[str, typer.Option(help="What the model predicts: mean, median or mode.")] = "mean",
    seed: Annotated[int, typer.Option(min=0, help="Of the split and the training.")] = 0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of PyTorch. [default: by the size of the work]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no figures.")] = False,
    checkpoint_seconds: Annotated[float, typer.Option(hidden=True, min=0.0)] = 5.0,
) -> None:
    """Fit p(target | all other columns) and score it on rows held out, beside two baselines.

    Columns may be numbers, categories and dates (2024-05-31), with gaps. Ctrl-C leaves a run that
    `thalweg fit regression --resume --out RUN` continues.
    """
    from thalweg.estimators.run import RunSettings, read_settings

    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other: give one of them")
    if resume and table is None:
        if out_folder is None:
            raise ValueError("name the run to resume with --out RUN")
        # Options that are given must be those of the run; fit_run compares.
        options = {"target": "targets"} | {
            name: name
            for name in ("drop", "test_fraction", "objective", "epochs", "members", "point", "seed", "threads")
        }
        given = {
            field: context.params[option]
            for option, field in options.items()
            if (source := context.get_parameter_source(option)) is not None and source.name == "COMMANDLINE"
        }
        settings = replace(read_settings(out_folder), **given)
    else:
        if table is None:
            raise ValueError("name the table: thalweg fit regression TABLE --target COLUMN")
        settings = RunSettings(
            str(table.resolve()),
            target or [],
            drop or [],
            test_fraction,
            seed,
            objective,
            epochs,
            members,
            point,
            threads,
            checkpoint_seconds,
        )
    folder = out_folder or Path("runs") / f"{Path(settings.table).name.split('.')[0]}-{'-'.join(settings.targets)}"
    _fit_and_tell(folder, settings, resume=resume, overwrite=overwrite, report=report, quiet=quiet)


def _fit_and_tell(
    folder: Path,
    settings: RunSettings,
    *,
    resume: bool = False,
    overwrite: bool = False,
    report: bool = True,
    quiet: bool = False,
) -> None:
    from thalweg.estimators.run import fit_run

    def tell(line: str) -> None:
        if not quiet:
            err.print(escape(line))

    try:
        run = fit_run(folder, settings, resume=resume, overwrite=overwrite, verbose=not quiet, tell=tell)
    except (KeyboardInterrupt, OSError) as error:
        if not _is_interrupt(error):
            raise
        known = (folder / "fit.json").exists()
        _say_error(f"interrupted; continue with `thalweg fit regression --resume --out {folder}`" if known else
                   "interrupted before anything was written")  # fmt: skip
        raise typer.Exit(130) from None
    if report:
        from thalweg.report import write_regression_report

        tell("Drawing the report.")
        write_regression_report(run)
    if not quiet:
        _tell_run(run)


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is at the root of an error: in the middle of writing a file it comes out as another one."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _tell_run(run: FinishedRun) -> None:
    figures = run.figures
    if figures["scores"]:
        out.print(_score_table(run))
    if figures["validation_nll"] is not None:
        out.print(f"Held-out folds of the training rows: NLL {figures['validation_nll']:.4f} nats.")
    for remark in figures["remarks"]:
        out.print(escape(remark), soft_wrap=True)
    folder = escape(str(run.folder))
    out.print(
        f"Trained in {figures['seconds']['training']:.1f} s. The run lies in [bold]{folder}[/]", soft_wrap=True
    )
    if (run.folder / "report.html").exists():
        out.print(f"Look at [bold]{folder}/report.html[/], and predict with", soft_wrap=True)
    else:
        out.print(f"See it with `thalweg report {folder}`, and predict with", soft_wrap=True)
    out.print(f"  thalweg predict {folder} NEW_TABLE --out predictions.csv", soft_wrap=True)


def _score_table(run: FinishedRun) -> Table:
    scores = run.figures["scores"]
    several = len(run.targets) > 1
    title = f"{', '.join(run.targets)}: {run.figures['test_rows']} test rows"
    table = Table("figure" if several else "model", title=escape(title), title_justify="left")
    first = next(iter(scores.values()))
    if several:
        # Many figures and three models: a line for each figure.
        for model in scores:
            table.add_column(model, justify="right")
        table.add_row("joint NLL", *(_cell(entry["nll"], "nll") for entry in scores.values()))
        for target in run.targets:
            for name, label in (("crps", "CRPS"), ("rmse", "RMSE"), ("coverage", "90 % coverage")):
                row = [_cell(entry["targets"][target][name], name) for entry in scores.values()]
                table.add_row(escape(f"{target}: {label}"), *row)
        return table
    columns = {"nll": "NLL", "crps": "CRPS", "rmse": "RMSE", "mae": "MAE", "coverage": "90 % coverage"}
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for model, entry in scores.items():
        cells = [_cell(entry[name], name) for name in columns]
        table.add_row(model, *cells, style="bold" if entry is first else None)
    return table


def _cell(value: float, name: str) -> str:
    return f"{100 * value:.1f} %" if name == "coverage" else f"{value:.4g}" if name != "nll" else f"{value:.4f}"


@app.command(epilog="Example: thalweg predict runs/wine new.csv --out predictions.parquet")
def predict(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    table: Annotated[Path, typer.Argument(help="CSV, TSV or Parquet file with the same columns.")],
    out_file: Annotated[
        Path | None, typer.Option("--out", "-o", help="CSV, TSV or Parquet file. [default: CSV to stdout]")
    ] = None,
    quantiles: Annotated[str, typer.Option(help="Probabilities, separated by commas.")] = "0.05,0.5,0.95",
    coverage: Annotated[float, typer.Option(help="Of the central interval.")] = 0.9,
    samples: Annotated[int, typer.Option(min=0, help="Draws from p(y|x) for each row.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
) -> None:
    """Predict the rows of a table: mean, median, mode, spread, quantiles and an interval.

    Where the table holds the target too, the log-likelihood and the PIT value of each row are added.
    """
    try:
        levels = [float(p) for p in quantiles.split(",") if p.strip()]
    except ValueError:
        raise ValueError(f"--quantiles takes numbers separated by commas, got {quantiles!r}") from None
    from thalweg.data.tables import read_table, write_table
    from thalweg.estimators.run import load_run, predict_table

    run = load_run(run_folder)
    predictions = predict_table(
        run, read_table(table), quantiles=levels, coverage=coverage, n_samples=samples, seed=seed
    )
    if out_file is None:
        predictions.to_csv(sys.stdout, index=False)
        sys.stdout.flush()
    else:
        write_table(predictions, out_file)
        err.print(f"{len(predictions)} predictions written to {escape(str(out_file))}")


@app.command(epilog="Example: thalweg report runs/wine")
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    out_file: Annotated[
        Path | None, typer.Option("--out", "-o", help="HTML file. [default: RUN/report.html]")
    ] = None,
) -> None:
    """Write the report of a run: one HTML page that opens offline."""
    from thalweg.estimators.run import load_run
    from thalweg.report import write_regression_report

    path = write_regression_report(load_run(run_folder), out_file)
    out.print(f"Report written to {escape(str(path))}", soft_wrap=True)


@app.command(epilog="Example: thalweg info runs/wine")
def info(run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]) -> None:
    """Say what a run holds: the model, its columns, its figures, how long it took."""
    from thalweg.estimators.run import load_run

    run = load_run(run_folder)
    figures, model, settings = run.figures, run.model, run.settings
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    assert model.encoder_ is not None
    kinds = [f"{c['name']} ({c['kind']})" for c in model.encoder_.columns]
    n_weights = sum(p.numel() for p in model.energy_.parameters())
    rows = {
        "target": ", ".join(run.targets),
        "model": f"{type(model.energy_).__name__}, objective {model._objective_name()}, "
        f"{n_weights:,} weights, predicts the {model.point}",
        "table": f"{figures['table']}: {figures['training_rows']} training rows, {figures['test_rows']} test rows "
        f"(seed {settings.seed})",
        "inputs": ", ".join(kinds),
        "rounded to": f"{model.resolution_:g}" if model.resolution_ else "not rounded",
        "training": f"{figures['seconds']['training']:.1f} s, {len(model.history_.epochs)} epochs, "
        f"ended: {model.history_.stopped}",
        "made with": ", ".join(f"{k} {v}" for k, v in figures["made_with"].items()),
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    out.print(table)
    if figures["scores"]:
        out.print(_score_table(run))
    for remark in figures["remarks"]:
        out.print(escape(remark), soft_wrap=True)


@app.command(epilog="Example: thalweg demo --out demo")
def demo(
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")] = Path("demo"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data, at most.")] = 200,
    members: Annotated[int, typer.Option(min=1, help="Networks in the ensemble.")] = 8,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no figures.")] = False,
) -> None:
    """Fit the progress of diabetes in 442 patients, print the figures and write the report."""
    from sklearn.datasets import load_diabetes

    from thalweg.data.tables import write_table
    from thalweg.estimators.run import RunSettings, read_settings

    names = {"s1": "cholesterol", "s2": "ldl", "s3": "hdl", "s4": "cholesterol_hdl_ratio",
             "s5": "log_triglycerides", "s6": "glucose", "bp": "blood_pressure"}  # fmt: skip
    table = load_diabetes(as_frame=True, scaled=False).frame.rename(columns={**names, "target": "progression"})
    path = (out_folder / "diabetes.csv").resolve()
    if (out_folder / "fit.json").exists() and read_settings(out_folder).table != str(path):
        raise ValueError(f"{out_folder} holds a run of yours: choose another --out")
    write_table(table, path)
    settings = RunSettings(str(path), ["progression"], epochs=epochs, members=members)
    _fit_and_tell(out_folder, settings, overwrite=True, quiet=quiet)


@app.command(epilog="Example: thalweg reproduce (lists the recipes); thalweg reproduce NAME --quick")
def reproduce(
    recipe: Annotated[str | None, typer.Argument(help="Name of a recipe; without it they are listed.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs, each with a seed of its own.")] = 3,
    data: Annotated[Path | None, typer.Option(help="Folder with real data, where a recipe can use it.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small run, whose targets do not apply.")] = False,
    paper_scale: Annotated[
        bool, typer.Option("--paper-scale", help="The source's own numbers of samples: hours.")
    ] = False,
    out_folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the page. [default: runs/RECIPE]")
    ] = None,
) -> None:
    """Run a published system and compare its figures with what they must reach."""
    from thalweg.recipes import RECIPES, Settings

    if recipe is None:
        listing = Table("recipe", "what it shows", "source", "minutes")
        for entry in RECIPES.values():
            listing.add_row(entry.name, escape(entry.title), escape(entry.source), f"{entry.minutes:g}")
        out.print(listing)
        return
    if recipe not in RECIPES:
        known = ", ".join(RECIPES) or "none"
        raise ValueError(f"there is no recipe {recipe!r}; there are: {known}")
    if data is not None and not data.is_dir():
        raise ValueError(f"there is no folder {data}")
    chosen = RECIPES[recipe]
    if quick and paper_scale:
        raise ValueError("--quick and --paper-scale exclude each other: give one of them")
    settings = Settings(
        seeds=tuple(range(seeds)),
        data=data,
        quick=quick,
        paper_scale=paper_scale,
        tell=lambda line: err.print(escape(line)),
    )
    result = chosen.run(settings)

    table = Table("figure", title=escape(chosen.title), title_justify="left")
    for heading in ("mean", *(f"seed {s}" for s in settings.seeds[: max(map(len, _values(result)), default=0)])):
        table.add_column(heading, justify="right")
    table.add_column("target", justify="right")
    table.add_column("reached")
    for figure in result.figures:
        target = "" if figure.target is None else f"{'≤' if figure.at_most else '≥'} {figure.target:.4g}"
        reached = "" if figure.reached is None or quick else "[green]yes[/]" if figure.reached else "[red]no[/]"
        pad = [""] * (len(table.columns) - 4 - len(figure.values))
        cells = [f"{v:.4g}" for v in (figure.mean, *figure.values)]
        table.add_row(escape(figure.name), *cells, *pad, target, reached)
    out.print(table)
    for note in result.notes:
        out.print(escape(note))

    from thalweg.report import write_recipe_page

    folder = out_folder or Path("runs") / recipe
    path = write_recipe_page(chosen, settings, result, folder / "report.html")
    out.print(f"{result.seconds:.0f} s. The page lies in {escape(str(path))}", soft_wrap=True)
    if not quick and any(f.reached is False for f in result.figures):
        _say_error("a target was not reached")
        raise typer.Exit(1)


def _values(result: Any) -> list[Any]:
    return [f.values for f in result.figures]


if __name__ == "__main__":
    main()
