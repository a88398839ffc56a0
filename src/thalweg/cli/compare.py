"""``thalweg compare density``: every training method on one table."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from thalweg.cli.console import out, show_lines, show_table, show_verdict, teller
from thalweg.cli.options import OutFolder, Quiet, settings_from, with_settings
from thalweg.runs.settings.compare import CompareSettings


def add_comparisons(app: typer.Typer) -> None:
    """Give the command ``compare`` its commands."""
    command = with_settings(CompareSettings, _compare)
    app.command("density", short_help=CompareSettings.help, epilog=f"Example: {CompareSettings.example}")(command)


def _compare(
    *, given: dict[str, Any], data: Path | None, out_folder: OutFolder = None, quiet: Quiet = False
) -> None:
    if data is None:
        raise ValueError("name the table: thalweg compare density TABLE")
    if not data.exists():
        raise ValueError(f"there is no file {data}")
    settings = settings_from(CompareSettings, data, given)
    folder = out_folder or settings.default_folder
    if (folder / "fit.json").exists() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"{folder} holds something else: choose another --out")
    from thalweg.runs.tables import check_columns

    check_columns(settings)
    from thalweg.report.compare import HEAD, table_rows, write_comparison_page
    from thalweg.runs.base import TextTable
    from thalweg.runs.compare import compare_densities
    from thalweg.runs.folder import write_json

    comparison = compare_densities(settings, teller(quiet))
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "settings": asdict(settings),
        "contenders": [c.summary() for c in comparison.contenders],
        "baselines": comparison.baselines,
        "verdict": comparison.verdict.to_list(),
        "seconds": comparison.seconds,
    }
    write_json(folder / "comparison.json", document)
    path = write_comparison_page(comparison, folder / "report.html")
    if quiet:
        return
    rows = table_rows(comparison)
    title = f"{data.name}: {comparison.data.training.shape[1]} columns, {len(comparison.data.test)} test rows"
    show_table(TextTable(title, HEAD, rows))
    show_lines(comparison.remarks)
    show_verdict(comparison.verdict)
    out.print(f"{comparison.seconds:.0f} s. The page is in {escape(str(path))}", soft_wrap=True)
