"""``thalweg reproduce``: run a published system and compare its figures with their targets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from thalweg.cli import console


def reproduce(
    recipe: Annotated[str | None, typer.Argument(help="Name of a recipe; without it they are listed.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs, each with a seed of its own.")] = 3,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with real data, for a recipe that can use it; igebm and continual also take an .npz."
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Make a small run, to which the targets do not apply.")
    ] = False,
    paper_scale: Annotated[
        bool,
        typer.Option(
            "--paper-scale", help="Run at the size of the publication, which takes hours or needs a GPU."
        ),
    ] = False,
    methods: Annotated[
        bool,
        typer.Option(
            "--methods", help="Compare the methods of training that the source compares, where it does: boxes-2d."
        ),
    ] = False,
    out_folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the page. [default: runs/RECIPE]")
    ] = None,
) -> None:
    """Run a published system and compare its figures with their targets."""
    from thalweg.recipes import RECIPES, Settings

    if recipe is None:
        listing = Table("recipe", "what it shows", "source", "minutes")
        for entry in RECIPES.values():
            listing.add_row(entry.name, escape(entry.title), escape(entry.source), f"{entry.minutes:g}")
        console.out.print(listing)
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
        tell=lambda line: console.err.print(escape(line)),
    )
    if methods and chosen.compare is None:
        able = ", ".join(name for name, entry in RECIPES.items() if entry.compare is not None)
        raise ValueError(f"{recipe} compares no methods of training: leave --methods out, or run {able}")
    result = chosen.compare(settings) if methods and chosen.compare is not None else chosen.run(settings)

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
    console.out.print(table)
    for note in result.notes:
        console.out.print(escape(note))

    from thalweg.report.recipe import write_recipe_page

    folder = out_folder or Path("runs") / recipe
    path = write_recipe_page(chosen, settings, result, folder / "report.html")
    console.out.print(f"{result.seconds:.0f} s. The page is in {escape(str(path))}", soft_wrap=True)
    if not quick and any(f.reached is False for f in result.figures):
        console.say_error("a target was not reached")
        raise typer.Exit(1)


def _values(result: Any) -> list[Any]:
    return [f.values for f in result.figures]
