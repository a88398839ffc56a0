"""The colours of the charts, by day and by night."""

from __future__ import annotations

from typing import Any

INK, SOFT, LINE = "#1b2a3a", "#5d6b7a", "#e3e8ee"
MODEL, TRUTH, ATOM = "#1f7a9c", "#d1495b", "#c47f17"
DATA = "#e09f3e"
COLOURS = [MODEL, "#8d99ae", DATA, "#6a4c93", "#588157"]
POINTS = "rgba(27,42,58,.30)"
# Colours of a density. The places are squares, so that colour grows with the square root and tails can be seen.
WATER = [[0, "#ffffff"], [0.0225, "#dcecf3"], [0.16, "#8cc3d9"], [0.49, "#2b87a9"], [1, "#0b3a52"]]
TWO_SIDED = [[0, "#b5543f"], [0.25, "#e6b8a6"], [0.5, "#ffffff"], [0.75, "#8cc3d9"], [1, "#145a78"]]

# What the page's script puts in the place of a colour on a dark ground; it replaces these words and no others.
NIGHT = {
    INK: "#dde6ee",
    SOFT: "#9aabbb",
    LINE: "#2b3a49",
    POINTS: "rgba(221,230,238,.35)",
    MODEL: "#4db3d6",
    TRUTH: "#f0808d",
    ATOM: "#e5a94a",
    "#8d99ae": "#a3b1c6",
    "#6a4c93": "#a78bd0",
    "#588157": "#86b384",
    "white": "#22303d",
    "#ffffff": "#17222d",
    "#dcecf3": "#1b3a4b",
    "#8cc3d9": "#2a7594",
    "#2b87a9": "#5cb6d4",
    "#0b3a52": "#d9f2fb",
    "#e6b8a6": "#7d4a3c",
    "#b5543f": "#e88a70",
    "#145a78": "#7fd0ee",
    "rgba(31,122,156,.22)": "rgba(77,179,214,.28)",
}

_AXIS = {"gridcolor": LINE, "linecolor": LINE, "zeroline": False, "automargin": True}
# What plotly.js starts from in every figure.
TEMPLATE: dict[str, Any] = {
    "layout": {
        "font": {
            "family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif",
            "size": 13,
            "color": INK,
        },
        "colorway": COLOURS,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"bgcolor": "white"},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
}
