"""The command ``thalweg``: reads arguments, calls the library, tells what came of it."""

from __future__ import annotations

import contextlib
import errno
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

if TYPE_CHECKING:
    from pandas import DataFrame

    from thalweg.runs.boltzmann import FinishedMachine
    from thalweg.runs.density import DensitySettings, FinishedDensity
    from thalweg.runs.images import FinishedImageRun, ImageSettings
    from thalweg.runs.regression import FinishedRun, RunSettings

# What needs torch is imported inside the commands, so that help and errors come at once.

app = typer.Typer(
    help="Energy-based models: p(y|x) or p(x) from a table, in one command.",
    epilog="Example: thalweg fit regression wine.csv --target quality --out runs/wine",
    add_completion=False,
    rich_markup_mode="markdown",  # in Rich's own markup [default: ...] would be a tag, and vanish
    pretty_exceptions_enable=False,
)
fit_app = typer.Typer(
    help="Fit a model to a table.",
    epilog="Example: thalweg fit regression wine.csv --target quality --out runs/wine",
)
app.add_typer(fit_app, name="fit")
compare_app = typer.Typer(
    help="Fit a model by every training method and compare.",
    epilog="Example: thalweg compare density iris.csv --drop species --seconds 20",
)
app.add_typer(compare_app, name="compare")

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


@compare_app.callback(invoke_without_command=True)
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
    from thalweg.runs.regression import RunSettings, read_settings

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
        settings = replace(read_settings(out_folder), **_given(context, options))
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


def _given(context: typer.Context, options: dict[str, str]) -> dict[str, Any]:
    """What was written on the command line, under the names of the settings."""
    return {
        field: context.params[option]
        for option, field in options.items()
        if (source := context.get_parameter_source(option)) is not None and source.name == "COMMANDLINE"
    }


def _fit_and_tell(
    folder: Path,
    settings: RunSettings,
    *,
    resume: bool = False,
    overwrite: bool = False,
    report: bool = True,
    quiet: bool = False,
) -> None:
    from thalweg.runs.regression import fit_run

    tell = _teller(quiet)
    with _resumable(folder, "regression"):
        run = fit_run(folder, settings, resume=resume, overwrite=overwrite, verbose=not quiet, tell=tell)
    if report:
        from thalweg.report import write_regression_report

        tell("Drawing the report.")
        write_regression_report(run)
    if not quiet:
        _tell_run(run)


def _teller(quiet: bool) -> Callable[[str], None]:
    def tell(line: str) -> None:
        if not quiet:
            err.print(escape(line))

    return tell


@contextlib.contextmanager
def _resumable(folder: Path, task: str) -> Iterator[None]:
    """Say how to go on after an interruption."""
    try:
        yield
    except (KeyboardInterrupt, OSError) as error:
        if not _is_interrupt(error):
            raise
        known = (folder / "fit.json").exists()
        _say_error(f"interrupted; continue with `thalweg fit {task} --resume --out {folder}`" if known else
                   "interrupted before anything was written")  # fmt: skip
        raise typer.Exit(130) from None


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


@fit_app.command(
    epilog="Example: thalweg fit density iris.csv --drop species --out runs/iris",
    short_help="Fit the joint density of all columns.",
)
def density(
    context: typer.Context,
    table: Annotated[
        Path | None,
        typer.Argument(
            help="CSV, TSV or Parquet file; or images: a folder of pictures or an .npz.", show_default=False
        ),
    ] = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run. [default: runs/TABLE-density]")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option("--drop", help="Column to leave out; repeatable.")] = None,
    test_fraction: Annotated[float, typer.Option(help="Part of the rows held out for the figures.")] = 0.1,
    objective: Annotated[
        str, typer.Option(help="How the energy learns; 'auto' normalises exactly, `compare` shows the others.")
    ] = "auto",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data, at most.")] = 200,
    members: Annotated[int, typer.Option(min=1, help="Networks in each ensemble.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Updates, for images.")] = 3000,
    snapshots: Annotated[
        int, typer.Option(min=1, help="Weights along the training whose energies are averaged, for images.")
    ] = 1,
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
    """Fit p(row) over all columns and score it on rows held out, beside three baselines.

    Columns must hold numbers; rows with gaps are left out (`thalweg impute` fills them afterwards). Images get an
    energy that generates and tells outsiders (--steps, --snapshots, --test-fraction, --seed, --threads apply);
    subfolders are labels. Ctrl-C leaves a run that `thalweg fit density --resume --out RUN` continues.
    """
    from thalweg.runs.density import DensitySettings, read_density_settings
    from thalweg.runs.folder import task_of

    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other: give one of them")
    resumed = resume and table is None and out_folder is not None and (out_folder / "fit.json").exists()
    if (table is not None and (table.is_dir() or table.suffix.lower() == ".npz")) or (
        resumed and out_folder is not None and task_of(out_folder) == "images"
    ):
        from thalweg.runs.images import ImageSettings, read_image_settings

        if table is None:
            assert out_folder is not None
            given = _given(context, {n: n for n in ("test_fraction", "steps", "snapshots", "seed", "threads")})
            asked = replace(read_image_settings(out_folder), **given)
        else:
            asked = ImageSettings(
                str(table.resolve()), True, test_fraction, steps, seed, threads, checkpoint_seconds, snapshots
            )
        folder = out_folder or Path("runs") / f"{Path(asked.images).name.split('.')[0]}-images"
        _fit_images_and_tell(folder, asked, resume, overwrite, report, quiet)
        return
    if resume and table is None:
        if out_folder is None:
            raise ValueError("name the run to resume with --out RUN")
        names = ("drop", "test_fraction", "objective", "epochs", "members", "seed", "threads")
        settings = replace(read_density_settings(out_folder), **_given(context, {n: n for n in names}))
    else:
        if table is None:
            raise ValueError("name the table: thalweg fit density TABLE")
        settings = DensitySettings(
            str(table.resolve()), drop or [], test_fraction, seed, objective, epochs, members, threads,
            checkpoint_seconds,
        )  # fmt: skip
    folder = out_folder or Path("runs") / f"{Path(settings.table).name.split('.')[0]}-density"
    _fit_density_and_tell(folder, settings, resume, overwrite, report, quiet)


def _fit_density_and_tell(
    folder: Path, settings: DensitySettings, resume: bool, overwrite: bool, report: bool, quiet: bool
) -> None:
    from thalweg.runs.density import fit_density_run

    tell = _teller(quiet)
    with _resumable(folder, "density"):
        run = fit_density_run(folder, settings, resume=resume, overwrite=overwrite, verbose=not quiet, tell=tell)
    if report:
        from thalweg.report import write_density_report

        tell("Drawing the report.")
        write_density_report(run)
    if quiet:
        return
    figures = run.figures
    if figures["scores"]:
        out.print(_density_table(run))
    for remark in figures["remarks"]:
        out.print(escape(remark), soft_wrap=True)
    seconds, shown = figures["seconds"]["training"], escape(str(run.folder))
    out.print(f"Trained in {seconds:.1f} s. The run lies in [bold]{shown}[/]", soft_wrap=True)
    if (run.folder / "report.html").exists():
        out.print(f"Look at [bold]{shown}/report.html[/], and use it with", soft_wrap=True)
    else:
        out.print(f"See it with `thalweg report {shown}`, and use it with", soft_wrap=True)
    for line in ("sample {} -n 1000 --out new.csv", "score {} TABLE", "impute {} TABLE --out filled.csv"):
        out.print("  thalweg " + line.format(shown), soft_wrap=True)


def _fit_images_and_tell(
    folder: Path, settings: ImageSettings, resume: bool, overwrite: bool, report: bool, quiet: bool
) -> None:
    from thalweg.runs.images import fit_image_run

    tell = _teller(quiet)
    with _resumable(folder, "density"):
        run = fit_image_run(folder, settings, resume=resume, overwrite=overwrite, verbose=not quiet, tell=tell)
    if report:
        from thalweg.report import write_image_report

        tell("Drawing the report.")
        write_image_report(run)
    if quiet:
        return
    _tell_images(run)
    shown = escape(str(run.folder))
    out.print(
        f"Trained in {run.figures['seconds']:.1f} s. The run lies in [bold]{shown}[/]; use it with", soft_wrap=True
    )
    for line in ("sample {} -n 100 --out new.npz", "score {} IMAGES --out scores.csv", "report {}"):
        out.print("  thalweg " + line.format(shown), soft_wrap=True)


def _tell_images(run: FinishedImageRun) -> None:
    figures = run.figures
    shape = " x ".join(map(str, figures["shape"]))
    title = (
        f"{figures['images']}: {figures['training_images']} images of {shape}, {figures['test_images']} held out"
    )
    table = Table("figure", title=escape(title), title_justify="left")
    table.add_column("", justify="right")
    for name, value in figures["scores"].items():
        table.add_row(escape(name), f"{value:.4g}")
    out.print(table)
    if run.settings.snapshots > 1:
        out.print(f"The energy is the mean of those of {run.settings.snapshots} snapshots of the weights.")
    for event in figures["events"]:
        out.print(escape(event), soft_wrap=True)


def _density_table(run: FinishedDensity) -> Table:
    title = f"{run.figures['table']}: {len(run.columns)} columns, {run.figures['test_rows']} test rows"
    table = Table("model", title=escape(title), title_justify="left")
    table.add_column("NLL, nats", justify="right")
    table.add_column("gain of ours", justify="right")
    table.add_column("")
    for i, (name, entry) in enumerate(run.figures["scores"].items()):
        gain = entry.get("nll_gain")
        shown = "" if gain is None else _with_error(gain, entry.get("nll_gain_error"), "+")
        cells = [_with_error(entry["nll"], entry["nll_error"]), shown, escape(entry["detail"])]
        table.add_row(name, *cells, style="bold" if i == 0 else None)
    return table


@fit_app.command(
    epilog="Example: thalweg fit boltzmann pictures/ --kind deep --hidden 128 --hidden 64 --out runs/pictures",
    short_help="Fit a Boltzmann machine, restricted or deep, to a table or to images.",
)
def boltzmann(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Argument(
            help="CSV, TSV or Parquet file; or images: a folder of pictures or an .npz.", show_default=False
        ),
    ] = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; else runs/DATA-boltzmann.")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option("--drop", help="Column to leave out; repeatable.")] = None,
    visible: Annotated[
        str, typer.Option(help="What the visible units are: auto, binary, gaussian, categorical, mixed.")
    ] = "auto",
    kind: Annotated[
        str, typer.Option(help="restricted; deep: a deep Boltzmann machine; belief: a deep belief network.")
    ] = "restricted",
    hidden: Annotated[
        list[int] | None,
        typer.Option(help="Hidden units; else as many as columns, 16 to 256. Repeat it for layers, from below."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the data; else for 3000 updates, 50 at least.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of the first epoch, falls to 0; else 0.3 (Gaussian 0.1).")
    ] = None,
    gibbs: Annotated[int, typer.Option(min=1, help="Sweeps of the chains before each update.")] = 1,
    persistent: Annotated[
        bool,
        typer.Option("--persistent/--from-data", help="Chains go on from update to update, or start at the rows."),
    ] = True,
    temperatures: Annotated[
        int | None,
        typer.Option(min=1, help="Of the chains: 5 to 10 for groups far apart; else 5 with numbers, or 1."),
    ] = None,
    grey: Annotated[
        bool, typer.Option("--grey", help="Keep grey values of images as probabilities of white.")
    ] = False,
    test_fraction: Annotated[float, typer.Option(help="Part of the rows held out for the figures.")] = 0.1,
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
    """Fit a Boltzmann machine and score it on rows held out, beside independent columns.

    Columns of 0 and 1 get binary units, texts categorical ones, numbers Gaussian ones, side by side; rows with
    gaps are left out (`thalweg impute` fills them afterwards). Images are cut at the middle into black and white.
    The log-likelihood is exact with up to 20 units in one layer, else bracketed by annealing; of deep machines it
    is a lower bound. Ctrl-C leaves a run that `thalweg fit boltzmann --resume --out RUN` continues.
    """
    from thalweg.runs.boltzmann import BoltzmannSettings, fit_boltzmann_run, read_boltzmann_settings

    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other: give one of them")
    names = ("drop", "visible", "kind", "hidden", "epochs", "learning_rate", "gibbs", "persistent", "temperatures",
             "grey", "test_fraction", "seed", "threads", "checkpoint_seconds")  # fmt: skip
    given = _given(context, {n: n for n in names})
    if data is not None:
        settings = BoltzmannSettings(str(data.resolve()), **given)
    elif not resume:
        raise ValueError("name the data: thalweg fit boltzmann TABLE")
    elif out_folder is None:
        raise ValueError("name the run to resume with --out RUN")
    else:
        settings = replace(read_boltzmann_settings(out_folder), **given)
    folder = out_folder or Path("runs") / f"{Path(settings.data).name.split('.')[0]}-boltzmann"
    tell = _teller(quiet)
    with _resumable(folder, "boltzmann"):
        run = fit_boltzmann_run(folder, settings, resume=resume, overwrite=overwrite, verbose=not quiet, tell=tell)
    if report:
        from thalweg.report import write_boltzmann_report

        tell("Drawing the report.")
        write_boltzmann_report(run)
    if quiet:
        return
    _tell_machine_figures(run)
    shown = escape(str(run.folder))
    seconds = run.figures["seconds"]["training"]
    out.print(f"Trained in {seconds:.1f} s. The run lies in [bold]{shown}[/]; use it with", soft_wrap=True)
    lines = ["sample {} -n 1000 --out new.csv", "score {} TABLE", "impute {} TABLE --out filled.csv", "report {}"]
    if run.settings.kind == "belief":
        lines.remove("impute {} TABLE --out filled.csv")
    if run.shape is not None:
        lines = ["sample {} -n 100 --out new.npz", "score {} IMAGES --out scores.csv", "report {}"]
    for line in lines:
        out.print("  thalweg " + line.format(shown), soft_wrap=True)


def _tell_machine_figures(run: FinishedMachine) -> None:
    figures = run.figures
    what = "images" if run.shape else "rows"
    title = f"{figures['data']}: {figures['training_rows']} {what}, {figures['test_rows']} held out"
    table = Table("model", title=escape(title), title_justify="left")
    for heading in ("log-likelihood, nats", "log Z", "reconstruction error"):
        table.add_column(heading, justify="right")
    for i, (name, entry) in enumerate(figures["scores"].items()):
        off, back = entry["log_normaliser_error"], entry["reconstruction"]
        cells = [
            _with_error(entry["log_likelihood"], entry["error"]),
            f"± {off:.3f}" if off else "exact",
            "" if back is None else f"{back:.4f}",
        ]
        table.add_row(name, *cells, style="bold" if i == 0 else None)
    out.print(table)
    for remark in (*figures["remarks"], *figures["events"]):
        out.print(escape(remark), soft_wrap=True)


def _tell_machine(run: FinishedMachine) -> None:
    from thalweg.runs.boltzmann import NAMES

    figures, off = run.figures, run.figures["log_normaliser_error"]
    shape = " x ".join(map(str, run.shape)) if run.shape else f"{len(run.columns)} columns"
    _tell_pairs(
        {
            "model": f"{NAMES[run.settings.kind]}, {figures['visible']} visible units ({shape}), "
            f"{' + '.join(map(str, figures['hidden']))} hidden",
            "data": f"{figures['data']}: {figures['training_rows']} training rows, "
            f"{figures['test_rows']} held out (seed {run.settings.seed})",
            "log Z": f"{figures['log_normaliser']:.4f} " + (f"± {off:.2g} nats" if off else "(exact)"),
            "training": f"{figures['seconds']['training']:.1f} s, epochs: "
            + ", ".join(f"{len(h.epochs)} ({name})" for name, h in run.histories.items()),
            "made with": ", ".join(f"{k} {v}" for k, v in figures["made_with"].items()),
        }
    )
    _tell_machine_figures(run)


@compare_app.command(
    "density",
    epilog="Example: thalweg compare density iris.csv --drop species --seconds 20 --out runs/iris-compare",
    short_help="Fit a density by every training method and compare.",
)
def compare_density(
    table: Annotated[Path, typer.Argument(help="CSV, TSV or Parquet file.", show_default=False)],
    out_folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the page. [default: runs/TABLE-compare]")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option("--drop", help="Column to leave out; repeatable.")] = None,
    test_fraction: Annotated[float, typer.Option(help="Part of the rows held out for the figures.")] = 0.2,
    objectives: Annotated[
        str | None, typer.Option(help="Names separated by commas, as auto,nce,dsm. [default: all]")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Of training, for each fit.")] = 10.0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Updates for each fit, instead of --seconds: the same everywhere.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fits of each method.")] = 3,
    members: Annotated[int, typer.Option(min=1, help="Networks in each ensemble of 'auto'.")] = 8,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of PyTorch. [default: by the size of the work]")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no figures.")] = False,
) -> None:
    """Fit the density of a table by every training method, under one budget, and score each on rows held out.

    Writes report.html and comparison.json. It takes about methods x seeds x seconds.
    """
    from thalweg.report import write_comparison_page
    from thalweg.report.density_compare import HEAD, table_rows
    from thalweg.runs.compare import CompareSettings, compare_densities
    from thalweg.runs.folder import write_json

    folder = out_folder or Path("runs") / f"{table.name.split('.')[0]}-compare"
    if (folder / "fit.json").exists() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"{folder} holds something else: choose another --out")
    settings = CompareSettings(str(table.resolve()), drop or [], test_fraction, seconds=seconds, steps=steps,
                               seeds=seeds, members=members, threads=threads)  # fmt: skip
    if objectives is not None:
        settings = replace(settings, objectives=[o.strip() for o in objectives.split(",") if o.strip()])
    comparison = compare_densities(settings, _teller(quiet))
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "settings": asdict(settings),
        "contenders": [c.summary() for c in comparison.contenders],
        "baselines": comparison.baselines,
        "seconds": comparison.seconds,
    }
    write_json(folder / "comparison.json", document)
    path = write_comparison_page(comparison, folder / "report.html")
    if quiet:
        return
    data = comparison.data
    title = f"{table.name}: {data.training.shape[1]} columns, {len(data.test)} test rows"
    listing = Table(HEAD[0], title=escape(title), title_justify="left")
    for heading in HEAD[1:-1]:
        listing.add_column(heading, justify="right")
    listing.add_column(HEAD[-1])
    for row in table_rows(comparison.contenders):
        listing.add_row(*row)
    for name, nll in comparison.baselines.items():
        listing.add_row(name, f"{nll:.3f}", style="dim")
    out.print(listing)
    for remark in data.remarks:
        out.print(escape(remark), soft_wrap=True)
    out.print(f"{comparison.seconds:.0f} s. The page lies in {escape(str(path))}", soft_wrap=True)


def _with_error(value: float | None, error: float | None, sign: str = "") -> str:
    if value is None:
        return "not finite"
    return f"{value:{sign}.3f}" + ("" if error is None else f" ± {error:.3f}")


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
    from thalweg.data.tables import read_table
    from thalweg.runs.regression import load_run, predict_table

    run = load_run(run_folder)
    predictions = predict_table(
        run, read_table(table), quantiles=levels, coverage=coverage, n_samples=samples, seed=seed
    )
    _write(predictions, out_file, "predictions")


@app.command(epilog="Example: thalweg sample runs/iris -n 1000 --out new.csv")
def sample(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a finished density or Boltzmann run.")
    ],
    n: Annotated[int, typer.Option("-n", min=1, help="How many rows.")] = 100,
    out_file: Annotated[
        Path | None, typer.Option("--out", "-o", help="CSV, TSV or Parquet file. [default: CSV to stdout]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
) -> None:
    """Draw new rows, or new images; columns that are rounded come rounded.

    Images are written to an .npz, or as PNG files into a folder.
    """
    from thalweg.runs.folder import task_of

    task = task_of(run_folder)
    if task == "images":
        from thalweg.runs.images import load_image_run

        _write_images(lambda: load_image_run(run_folder).model.sample(n, n_steps=300, random_state=seed), out_file)
        return
    if task == "boltzmann":
        from thalweg.runs.boltzmann import load_boltzmann_run, sample_images, sample_rows

        machine = load_boltzmann_run(run_folder)
        if machine.shape is None:
            _write(sample_rows(machine, n, seed), out_file, "rows")
        else:
            _write_images(lambda: sample_images(machine, n, seed), out_file)
        return
    from thalweg.runs.density import load_density_run, sample_table

    _write(sample_table(load_density_run(run_folder), n, seed), out_file, "rows")


@app.command(epilog="Example: thalweg score runs/iris new.csv --out scores.csv")
def score(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a finished density or Boltzmann run.")
    ],
    table: Annotated[
        Path, typer.Argument(help="CSV, TSV or Parquet file with the same columns; images for a run on images.")
    ],
    out_file: Annotated[
        Path | None, typer.Option("--out", "-o", help="CSV, TSV or Parquet file. [default: CSV to stdout]")
    ] = None,
) -> None:
    """Say how likely each row is: log_prob in nats, and outlier_score, the part of the training rows likelier.

    Of a deep Boltzmann machine or a belief network log_prob is a lower bound.
    A row with gaps gets neither; fill them with `thalweg impute` first.
    """
    from thalweg.runs.folder import task_of

    task = task_of(run_folder)
    if task == "images":
        from thalweg.runs.images import score_images

        _write(score_images(run_folder, table), out_file, "images")
        return
    if task == "boltzmann":
        from thalweg.runs.boltzmann import load_boltzmann_run, score_rows

        scores = score_rows(load_boltzmann_run(run_folder), table)
    else:
        from thalweg.data.tables import read_table
        from thalweg.runs.density import load_density_run, score_table

        scores = score_table(load_density_run(run_folder), read_table(table))
    gaps = int(scores["log_prob"].isna().sum())
    if gaps:
        err.print(f"{gaps} of {len(scores)} rows have gaps and got no score")
    _write(scores, out_file, "scores")


@app.command(epilog="Example: thalweg impute runs/iris gaps.csv --imputations 5 --out filled.csv")
def impute(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a finished density or Boltzmann run.")
    ],
    table: Annotated[Path, typer.Argument(help="CSV, TSV or Parquet file with the same columns.")],
    out_file: Annotated[
        Path | None, typer.Option("--out", "-o", help="CSV, TSV or Parquet file. [default: CSV to stdout]")
    ] = None,
    imputations: Annotated[
        int, typer.Option(min=1, help="Completed tables, one beneath the other, counted by a column.")
    ] = 1,
    candidates: Annotated[
        int, typer.Option(min=2, help="Weighted draws for each row, of which a density takes its completions.")
    ] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
) -> None:
    """Fill the gaps of each row with draws given what is known of it.

    One completed table looks surer than it is: several show how far what is filled in may vary.
    """
    from thalweg.data.tables import read_table
    from thalweg.runs.density import impute_table, load_density_run
    from thalweg.runs.folder import task_of

    if task_of(run_folder) == "boltzmann":
        from thalweg.runs.boltzmann import impute_rows, load_boltzmann_run

        machine = load_boltzmann_run(run_folder)
        _write(impute_rows(machine, table, imputations, seed), out_file, "rows")
        return
    run = load_density_run(run_folder)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        completed = impute_table(run, read_table(table), imputations, seed, candidates)
    for warning in told:
        err.print(escape(str(warning.message)), soft_wrap=True)
    _write(completed, out_file, "rows")


def _write_images(draw: Callable[[], Any], path: Path | None) -> None:
    from thalweg.data.images import write_images

    if path is None:
        raise ValueError("name an .npz or a folder for the images with --out")
    images = draw()
    write_images(images, path)
    err.print(f"{len(images)} images written to {escape(str(path))}", soft_wrap=True)


def _write(table: DataFrame, path: Path | None, what: str) -> None:
    if path is None:
        table.to_csv(sys.stdout, index=False)
        sys.stdout.flush()
        return
    from thalweg.data.tables import write_table

    write_table(table, path)
    err.print(f"{len(table)} {what} written to {escape(str(path))}")


@app.command(epilog="Example: thalweg report runs/wine")
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    out_file: Annotated[
        Path | None, typer.Option("--out", "-o", help="HTML file. [default: RUN/report.html]")
    ] = None,
) -> None:
    """Write the report of a run: one HTML page that opens offline."""
    from thalweg.runs.folder import task_of

    if task_of(run_folder) == "density":
        from thalweg.report import write_density_report
        from thalweg.runs.density import load_density_run

        path = write_density_report(load_density_run(run_folder), out_file)
    elif task_of(run_folder) == "images":
        from thalweg.report import write_image_report
        from thalweg.runs.images import load_image_run

        path = write_image_report(load_image_run(run_folder), out_file)
    elif task_of(run_folder) == "boltzmann":
        from thalweg.report import write_boltzmann_report
        from thalweg.runs.boltzmann import load_boltzmann_run

        path = write_boltzmann_report(load_boltzmann_run(run_folder), out_file)
    else:
        from thalweg.report import write_regression_report
        from thalweg.runs.regression import load_run

        path = write_regression_report(load_run(run_folder), out_file)
    out.print(f"Report written to {escape(str(path))}", soft_wrap=True)


@app.command(epilog="Example: thalweg info runs/wine")
def info(run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]) -> None:
    """Say what a run holds: the model, its columns, its figures, how long it took."""
    from thalweg.runs.folder import task_of

    if task_of(run_folder) == "density":
        from thalweg.runs.density import load_density_run

        _tell_density(load_density_run(run_folder))
    elif task_of(run_folder) == "images":
        from thalweg.runs.images import load_image_run

        _tell_images(load_image_run(run_folder))
    elif task_of(run_folder) == "boltzmann":
        from thalweg.runs.boltzmann import load_boltzmann_run

        _tell_machine(load_boltzmann_run(run_folder))
    else:
        from thalweg.runs.regression import load_run

        _tell_regression(load_run(run_folder))


def _tell_regression(run: FinishedRun) -> None:
    figures, model, settings = run.figures, run.model, run.settings
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
    _tell_pairs(rows)
    if figures["scores"]:
        out.print(_score_table(run))
    for remark in figures["remarks"]:
        out.print(escape(remark), soft_wrap=True)


def _tell_density(run: FinishedDensity) -> None:
    figures, model, settings = run.figures, run.model, run.settings
    n_weights = sum(p.numel() for p in model.energy_.parameters())
    error = figures["log_normaliser_error"]
    columns = [f"{c} (rounded to {r:g})" if r else c for c, r in figures["resolution"].items()]
    _tell_pairs(
        {
            "density of": ", ".join(columns),
            "model": f"{type(model.energy_.inner).__name__}, objective {model.objective}, {n_weights:,} weights",
            "table": f"{figures['table']}: {figures['training_rows']} training rows, {figures['test_rows']} test "
            f"rows (seed {settings.seed})",
            "log Z": f"{figures['log_normaliser']:.4f} ± {error:.2g} nats" if error else "0, exact",
            "training": f"{figures['seconds']['training']:.1f} s, {sum(len(h.epochs) for h in model.history_)} "
            f"epochs of {len(model.history_)} network{'s' if len(model.history_) > 1 else ''}",
            "made with": ", ".join(f"{k} {v}" for k, v in figures["made_with"].items()),
        }
    )
    if figures["scores"]:
        out.print(_density_table(run))
    for remark in figures["remarks"]:
        out.print(escape(remark), soft_wrap=True)


def _tell_pairs(rows: dict[str, str]) -> None:
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, escape(value))
    out.print(table)


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
    from thalweg.runs.regression import RunSettings, read_settings

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
    data: Annotated[
        Path | None, typer.Option(help="Folder with real data, where a recipe can use it; igebm: or an .npz.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small run, whose targets do not apply.")] = False,
    paper_scale: Annotated[
        bool, typer.Option("--paper-scale", help="The source's own size: hours, or for a GPU.")
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
    if data is not None and not data.exists():
        raise ValueError(f"there is no folder or file {data}")
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

    table = Table(Column("figure", overflow="fold"), title=escape(chosen.title), title_justify="left")
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
