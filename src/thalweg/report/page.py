"""A page: cards under a heading, in one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from thalweg.runs.base import Run


@dataclass(frozen=True)
class Tile:
    """One number at the head of the page."""

    label: str
    value: str
    detail: str = ""


@dataclass
class Card:
    """A heading, a sentence that says what one sees, and the thing to see.

    Attributes:
        title: the heading.
        text: one or two sentences that say what is shown.
        figures: Plotly figures, one below the other.
        head, rows: a table, the first column to the left, the others to the right.
        best: cells ``(row, column)`` to show in bold.
        notes: sentences below.
        folded: whether the table is shown only when asked for.
    """

    title: str
    text: str
    figures: Sequence[go.Figure] = ()
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    best: set[tuple[int, int]] = field(default_factory=set)
    notes: Sequence[str] = ()
    folded: bool = False


def render_page(title: str, subtitle: str, tiles: Sequence[Tile], cards: Sequence[Card], footer: str) -> str:
    """The page as HTML. Text is escaped, and Plotly is part of the page."""
    environment = Environment(
        loader=PackageLoader("thalweg.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    number = 0
    drawn: list[dict[str, Any]] = []
    for card in cards:
        divs = []
        for figure in card.figures:
            number += 1
            divs.append(
                figure.to_html(
                    full_html=False,
                    include_plotlyjs=False,
                    div_id=f"figure-{number}",
                    config={"displayModeBar": False, "responsive": True},
                )
            )
        drawn.append({"card": card, "divs": divs})
    return environment.get_template("page.html.j2").render(
        title=title, subtitle=subtitle, tiles=tiles, cards=drawn, footer=footer, plotly=get_plotlyjs()
    )


def write_page(html: str, path: Path) -> Path:
    """Write the page; an old one is replaced whole or not at all."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name an HTML file")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    try:
        aside.write_text(html, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def footer_of(run: Run) -> str:
    """What a run was made with, for the foot of its page."""
    made = run.figures["made_with"]
    return f"thalweg {made['thalweg']} · torch {made['torch']} · Python {made['python']} · {made['on']}"
