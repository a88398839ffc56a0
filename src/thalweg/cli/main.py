"""The command ``thalweg``: its parts put together, its errors and exit codes."""

from __future__ import annotations

import errno
import sys
from typing import Annotated, Any

import typer

from thalweg.cli.compare import add_comparisons
from thalweg.cli.console import say_error, write_any_text
from thalweg.cli.demo import demo
from thalweg.cli.fit import add_tasks
from thalweg.cli.reproduce import reproduce
from thalweg.cli.verbs import add_verbs

# What needs NumPy, pandas or PyTorch is imported inside the commands, so that help and errors come at once.

_EXAMPLE = "Example: thalweg fit regression wine.csv --target quality --out runs/wine"
# In Rich's own markup [default: ...] would be a tag, and vanish.
_MARKUP: Any = "markdown"


def build() -> typer.Typer:
    """The command with all its parts, including a ``fit`` for every registered task."""
    app = typer.Typer(
        help="Energy-based models: p(y|x) or p(x) from a table or from images, in one command.",
        epilog=_EXAMPLE,
        rich_markup_mode=_MARKUP,
        pretty_exceptions_enable=False,
    )
    app.callback(invoke_without_command=True)(_thalweg)
    fit = typer.Typer(help="Fit a model to data.", epilog=_EXAMPLE, rich_markup_mode=_MARKUP)
    fit.callback(invoke_without_command=True)(_show_help)
    add_tasks(fit)
    compare = typer.Typer(
        help="Fit a model by every training method and compare them.",
        epilog="Example: thalweg compare density iris.csv --drop species --seconds 20",
        rich_markup_mode=_MARKUP,
    )
    compare.callback(invoke_without_command=True)(_show_help)
    add_comparisons(compare)
    app.add_typer(fit, name="fit")
    app.add_typer(compare, name="compare")
    add_verbs(app)
    app.command(epilog="Example: thalweg demo --out demo")(demo)
    app.command(epilog="Example: thalweg reproduce (lists the recipes); thalweg reproduce NAME --quick")(reproduce)
    return app


def main() -> None:
    """Run the command and exit: 0 only on success; an error is one line that says what to do."""
    write_any_text()
    usage_error: Any = typer.BadParameter.__base__
    try:
        code = build()(standalone_mode=False, prog_name="thalweg") or 0
    except usage_error as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "thalweg"
        say_error(f"{error.format_message()} (see `{path} --help`)")
        code = 2
    except (ValueError, OSError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        say_error(f"{error}: free some space and run again" if full else str(error))
        code = 1
    except RuntimeError as error:
        from thalweg.training.guard import DivergenceError

        if not isinstance(error, DivergenceError):
            raise
        say_error(str(error))
        code = 1
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    sys.exit(int(code))


def _thalweg(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        print(f"thalweg {version_of('thalweg')}")
        raise typer.Exit
    _show_help(context)


def _show_help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
