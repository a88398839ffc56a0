"""The page of a recipe: its figures against their targets, and its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from thalweg.recipes.base import Recipe, Result, Settings
from thalweg.report.page import Card, Tile, render_page, write_page


def write_recipe_page(recipe: Recipe, settings: Settings, result: Result, path: Path) -> Path:
    """Write what a recipe measured and drew."""
    bound = [f for f in result.figures if f.reached is not None]
    reached = sum(bool(f.reached) for f in bound)
    tiles = [
        Tile("targets reached", "—" if settings.quick or not bound else f"{reached} of {len(bound)}",
             "a quick run: they do not apply" if settings.quick else "" if bound else "there are none"),
        Tile("seeds", str(len(settings.seeds)), ", ".join(map(str, settings.seeds))),
        Tile("time", f"{result.seconds:.0f} s"),
    ]  # fmt: skip
    most = max((len(f.values) for f in result.figures), default=0)
    rows = []
    for figure in result.figures:
        target = "" if figure.target is None else f"{'≤' if figure.at_most else '≥'} {figure.target:.4g}"
        verdict = "" if figure.reached is None or settings.quick else "reached" if figure.reached else "missed"
        seeds = [f"{v:.4g}" for v in figure.values] + [""] * (most - len(figure.values))
        rows.append([figure.name, f"{figure.mean:.4g}", *seeds, target, verdict])
    head = ["figure", "mean", *(f"run {i + 1}" for i in range(most)), "target", ""]
    cards = [
        Card(
            "The figures",
            "The measured figures of every seed, and the target that their mean must reach.",
            head=head,
            rows=rows,
            notes=result.notes,
        )
    ]
    cards += [_card(title, figure) for title, figure in result.pictures.items()]
    return write_page(render_page(recipe.title, recipe.source, tiles, cards, "Made with thalweg."), path)


def _card(title: str, figure: go.Figure) -> Card:
    """A picture in a card; what is drawn as a table is a table of the page."""
    if len(figure.data) == 1 and figure.data[0].type == "table":
        (table,) = figure.data
        rows = [[str(cell) for cell in row] for row in zip(*table.cells["values"], strict=True)]
        return Card(title, "", head=[str(cell) for cell in table.header["values"]], rows=rows)
    return Card(title, "", [in_panels(figure)])


def in_panels(figure: go.Figure) -> go.Figure:
    """Say of a figure of panels, each with a title, how many there are, so that a narrow page can stack them."""
    axes: list[Any] = list(figure.select_xaxes())
    columns = len({round(axis.domain[0], 3) for axis in axes if axis.domain})
    count = len(figure.layout.annotations)
    if columns > 1 and 0 <= len(axes) - count < columns:
        figure.update_annotations(font_size=12)
        figure.update_layout(meta={"panels": {"count": count, "columns": columns, "narrow": 2}})
    return figure
