"""A page: cards under a heading, in one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined

from thalweg.report.compact import compact_figure, embedded
from thalweg.report.theme import NIGHT, TEMPLATE
from thalweg.runs.base import Run

# The marks of the states of a check, in the order in which the page lists them.
STATES = {"failed": "✕", "doubtful": "?", "passed": "✓"}


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
        choices: a name for each figure; the reader then chooses the one that is shown.
        choice: what the reader chooses, such as "input".
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
    choices: Sequence[str] = ()
    choice: str = ""


def render_page(
    title: str,
    subtitle: str,
    tiles: Sequence[Tile],
    cards: Sequence[Card],
    footer: str,
    checks: Sequence[Mapping[str, str]] = (),
) -> str:
    """The page as HTML. Text is escaped, and the library that draws the charts is part of the page.

    Args:
        checks: what was checked of a model: ``name``, ``state`` (passed, doubtful or failed) and ``text`` of each.
            They are listed below the tiles, the failed ones first.

    Raises:
        ValueError: if a figure has a kind of trace that the page cannot draw.
    """
    environment = Environment(
        loader=PackageLoader("thalweg.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    figures: list[dict[str, Any]] = []
    drawn = []
    for card in cards:
        first = len(figures)
        figures += [compact_figure(figure) for figure in card.figures]
        drawn.append({"card": card, "figures": range(first, len(figures))})
    by_state = [(state, mark, [c for c in checks if c["state"] == state]) for state, mark in STATES.items()]
    return environment.get_template("page.html.j2").render(
        title=title,
        subtitle=subtitle,
        tiles=tiles,
        cards=drawn,
        checks=[entry for entry in by_state if entry[2]],
        footer=footer,
        heights=[figure["layout"].get("height", 450) for figure in figures],
        data=embedded({"figures": figures, "template": TEMPLATE, "night": NIGHT}),
        plotly=_plotly(),
    )


def _plotly() -> str:
    """The part of plotly.js that draws charts with two axes: compressed, or every page would have 1.5 MB of it."""
    packed = files("thalweg.report").joinpath("plotly/plotly-cartesian.min.js.gz").read_bytes()
    return base64.b64encode(packed).decode("ascii")


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


def checks_of(run: Run) -> list[dict[str, str]]:
    """The checks of a run; none for a run made before there were any."""
    return list(run.figures.get("verdict", []))
