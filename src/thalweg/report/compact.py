"""Figures as small JSON: numbers in single precision, and no template, which the page has once."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from typing import Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image

# The kinds of trace that the part of plotly.js in the package draws.
TRACES = {
    "bar", "box", "contour", "heatmap", "histogram", "histogram2d", "histogram2dcontour", "image", "pie",
    "scatter", "violin",
}  # fmt: skip
_LONG = 24


def compact_figure(figure: go.Figure) -> dict[str, Any]:
    """Data and layout of a figure, ready for JSON.

    Raises:
        ValueError: if the page cannot draw one of its traces.
    """
    for trace in figure.data:
        if trace.type not in TRACES:
            raise ValueError(
                f"the page draws no trace of kind {trace.type!r}; it draws {', '.join(sorted(TRACES))}"
            )
    layout = {name: value for name, value in figure.layout.to_plotly_json().items() if name != "template"}
    return {"data": [_compact_trace(trace) for trace in figure.data], "layout": _compact(layout)}


def embedded(value: Any) -> str:
    """JSON that can stand in a script element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _compact_trace(trace: Any) -> Any:
    content = trace.to_plotly_json()
    if trace.type == "image" and trace.z is not None:
        # As a picture, pixels take a hundredth of the room that they take as numbers.
        buffer = BytesIO()
        Image.fromarray(np.asarray(content.pop("z"), np.uint8)).save(buffer, "PNG", optimize=True)
        content["source"] = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    if trace.type == "heatmap" and trace.hoverinfo == "skip" and trace.zmax is not None:
        _in_levels(content)
    return _compact(content)


def _in_levels(heatmap: dict[str, Any]) -> None:
    """Values of which only the colour is seen, as one of 256 levels."""
    z = np.asarray(heatmap["z"], np.float64)
    low, high = heatmap.get("zmin", 0.0), heatmap["zmax"]
    if np.isfinite(z).all() and high > low:
        heatmap |= {
            "z": np.round(255 * ((z - low) / (high - low)).clip(0, 1)).astype("u1"),
            "zmin": 0,
            "zmax": 255,
        }


def _compact(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _compact(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return _array(value)
    if isinstance(value, list | tuple):
        if len(value) >= _LONG and all(type(v) in (int, float) for v in value):
            return _array(np.array(value))
        if _is_matrix(value):
            # Rows that were packed one by one would be drawn as nothing.
            return _array(np.array(value))
        return [_compact(v) for v in value]
    if isinstance(value, np.generic):
        return _compact(value.item())
    if isinstance(value, float):
        return float(f"{value:.7g}") if np.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def _is_matrix(rows: Any) -> bool:
    """Whether these are long rows of numbers, all of one length."""
    if not all(isinstance(row, list | tuple) and len(row) >= _LONG for row in rows) or not rows:
        return False
    return len({len(row) for row in rows}) == 1 and all(type(v) in (int, float) for row in rows for v in row)


def _array(values: np.ndarray) -> Any:
    """An array as plotly.js reads it; few numbers, and all that are no numbers, as a list."""
    if values.dtype.kind not in "iuf" or values.size < _LONG or values.ndim > 2:
        return _compact(values.tolist())
    if values.dtype.kind == "f":
        single = values.astype("<f4")
        finite = np.isfinite(values)
        span = np.ptp(values[finite]) if finite.any() else 0.0
        # Numbers far from zero and close together, such as years with fractions, stay in double precision.
        exact = np.abs(single[finite] - values[finite]) <= 1e-5 * span
        values = single if exact.all() else values.astype("<f8")
    elif values.dtype != np.uint8:
        values = values.astype("<i4") if np.abs(values).max() < 2**31 else values.astype("<f8")
    packed = {"dtype": values.dtype.str[-2:], "bdata": base64.b64encode(values.tobytes()).decode("ascii")}
    return packed if values.ndim == 1 else packed | {"shape": f"{values.shape[0]}, {values.shape[1]}"}
