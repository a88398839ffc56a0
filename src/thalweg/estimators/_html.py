"""What notebooks show of an object: small tables in HTML, with densities as lines."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np


class Svg(str):
    """A drawing, which a table takes as it is."""


def html_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """A table; texts are escaped, drawings are not."""

    def line(cells: Sequence[str], kind: str) -> str:
        shown = (cell if isinstance(cell, Svg) else escape(cell) for cell in cells)
        return "<tr>" + "".join(f'<{kind} style="text-align: left">{cell}</{kind}>' for cell in shown) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    foot = f"<div>{escape(note)}</div>" if note else ""
    headed = f"<thead>{line(head, 'th')}</thead>" if head else ""
    return f"<div><div><b>{escape(title)}</b></div><table>{headed}<tbody>{body}</tbody></table>{foot}</div>"


def line_svg(y: np.ndarray, width: int = 160, height: int = 34) -> Svg:
    """Values ``[m]`` from zero up as a filled line, in the colour of the text."""
    top = float(y.max()) or 1.0
    x = np.linspace(0, width, len(y))
    points = " ".join(f"{a:.1f},{height - b:.1f}" for a, b in zip(x, (height - 2) * y / top, strict=True))
    return Svg(
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" aria-label="density">'
        f'<polygon points="0,{height} {points} {width},{height}" fill="currentColor" opacity="0.2"/>'
        f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="1.3"/></svg>'
    )
