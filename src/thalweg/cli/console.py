"""What the command prints: figures to stdout, progress and errors to stderr."""

from __future__ import annotations

import codecs
import io
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    import numpy as np

    from thalweg.evaluation.verdict import Verdict
    from thalweg.runs.base import Run, TextTable

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

_ASCII = {"±": "+-", "≤": "<=", "≥": ">=", "…": "..."}


def write_any_text() -> None:
    """Have stdout and stderr write what their encoding lacks in ASCII, instead of ending the command."""
    codecs.register_error("thalweg.ascii", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="thalweg.ascii")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Handle an encoding error: a "?" would lose whether a target is a least or a greatest value."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(_ASCII.get(c, c.encode("ascii", "backslashreplace").decode()) for c in lacking), error.end


def say_error(message: str) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr)


def teller(quiet: bool) -> Callable[[str], None]:
    """A function that prints a stage of the work, or nothing if it is to be quiet."""

    def tell(line: str) -> None:
        if not quiet:
            err.print(escape(line))

    return tell


def show_table(table: TextTable) -> None:
    shown = Table(table.head[0], title=escape(table.title), title_justify="left")
    for heading in table.head[1:]:
        shown.add_column(heading, justify="right")
    for i, row in enumerate(table.rows):
        shown.add_row(*map(escape, row), style="bold" if table.best and i == 0 else None)
    out.print(shown)


def show_pairs(pairs: Mapping[str, str]) -> None:
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(name, escape(value))
    out.print(table)


def show_figures(run: Run) -> None:
    """Print the figures of a run and the remarks on them."""
    for table in run.tables():
        show_table(table)
    show_lines(run.remarks())
    show_verdict(run.verdict)


def show_verdict(verdict: Verdict) -> None:
    """Print the checks of a model: those that it did not pass, the worst first; of the others the names."""
    styles = {"failed": "bold red", "doubtful": "yellow"}
    for check in (*verdict.of("failed"), *verdict.of("doubtful")):
        style = styles[check.state]
        out.print(f"[{style}]{check.state}[/] ({escape(check.name)}) {escape(check.text)}", soft_wrap=True)
    if passed := verdict.of("passed"):
        out.print(f"[green]passed[/] {escape(', '.join(check.name for check in passed))}", soft_wrap=True)


def show_lines(lines: Iterable[str]) -> None:
    for line in lines:
        out.print(escape(line), soft_wrap=True)


def show_end(run: Run) -> None:
    """Print the figures of a run that has just ended, its folder, and what can be done with it."""
    show_figures(run)
    folder = escape(str(run.folder))
    out.print(
        f"Trained in {run.figures['seconds']['training']:.1f} s. The run is in [bold]{folder}[/]", soft_wrap=True
    )
    if (run.folder / "report.html").exists():
        out.print(f"Look at [bold]{folder}/report.html[/], and use the run with", soft_wrap=True)
    else:
        out.print(f"See it with `thalweg report {folder}`, and use it with", soft_wrap=True)
    for verb, about in run.verbs.items():
        out.print(f"  thalweg {verb} " + about.example.format(run=folder), soft_wrap=True)


def write_result(result: Any, path: Path | None, what: str, computed: Iterable[str] = ()) -> None:
    """Write a table to a file or to stdout, or images ``[n, C, H, W]`` to an .npz or a folder.

    Args:
        computed: columns of a table whose numbers come in few digits in a text file; Parquet has all digits.
    """
    import numpy as np

    if path is None or path.suffix.lower() not in (".parquet", ".pq"):
        for name in computed:
            if result[name].dtype.kind == "f":
                result[name] = in_few_digits(result[name].to_numpy())

    if isinstance(result, np.ndarray):
        from thalweg.data.images import write_images

        assert path is not None
        write_images(result, path)
        err.print(f"{len(result)} images written to {escape(str(path))}", soft_wrap=True)
    elif path is None:
        _write_csv(result)
    else:
        from thalweg.data.tables import write_table

        write_table(result, path)
        err.print(f"{len(result)} {what} written to {escape(str(path))}")


def in_few_digits(values: np.ndarray) -> np.ndarray:
    """Numbers ``[rows]`` rounded to seven significant digits, of each or of the spread of all, and three decimals.

    What is finest of the three counts: years, or amounts of millions, keep what tells one row from another.
    """
    import numpy as np

    out = np.array(values, np.float64)
    known = np.isfinite(out) & (out != 0)
    if not known.any():
        return out
    with np.errstate(over="ignore", divide="ignore"):
        spread = np.log10(np.ptp(out[known]))
        least = max(3, 6 - math.floor(spread)) if np.isfinite(spread) else 3
        places = np.maximum(6 - np.floor(np.log10(np.abs(out[known]))), least)
    out[known] = [round(v, int(n)) for v, n in zip(out[known].tolist(), places, strict=True)]
    return out


def _write_csv(table: Any) -> None:
    """Write a table to stdout, as UTF-8 whatever the encoding of stdout.

    The table is data for a file or another program: it has the bytes that a file named with --out would have,
    which can be read back, while letters that the encoding of stdout lacks would be lost.
    """
    text = table.to_csv(index=False)
    sys.stdout.flush()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.buffer.write(text.encode())
    else:  # a stream that has no bytes beneath, as of a notebook or a test
        sys.stdout.write(text)
    sys.stdout.flush()
