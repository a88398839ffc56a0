"""The charts of forecasts: fans of quantiles, paths, and figures step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thalweg.report import charts
from thalweg.report.theme import COLOURS, DATA, INK, MODEL, SOFT, TRUTH


@dataclass(frozen=True)
class Panel:
    """One target of one forecast.

    Attributes:
        title: which series, from when on, which target.
        past, ahead: times ``[t]`` and ``[horizon]``.
        values: the past ``[t]``.
        truth: ``[horizon]``.
        paths: ``[m, horizon]``.
    """

    title: str
    past: np.ndarray
    ahead: np.ndarray
    values: np.ndarray
    truth: np.ndarray
    paths: np.ndarray


def fans(panels: Sequence[Panel], n_columns: int) -> go.Figure:
    """Bands of 50 and 90 % and the median, with the past and the truth."""
    figure = _figure(panels, n_columns)
    for i, panel in enumerate(panels):
        place = _place(i, n_columns)
        x = _around(panel.past[-1:], panel.ahead)
        levels = np.quantile(panel.paths, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
        # All start at the last known state.
        levels = np.concatenate([np.repeat(panel.values[-1:][None], 5, 0), levels], 1)
        for low, high, name, opacity in ((0, 4, "90 % interval", 0.22), (1, 3, "50 % interval", 0.45)):
            figure.add_scatter(
                x=[*x, *x[::-1]], y=np.concatenate([levels[high], levels[low][::-1]]), fill="toself",
                fillcolor=MODEL, opacity=opacity, mode="none", name=name, showlegend=i == 0, hoverinfo="skip",
                **place,
            )  # fmt: skip
        figure.add_scatter(
            x=x, y=levels[2], mode="lines", line={"color": MODEL, "width": 2}, name="median",
            showlegend=i == 0, hovertemplate="%{x}: median %{y:.4g}<extra></extra>", **place,
        )  # fmt: skip
        _past_and_truth(figure, panel, place, i == 0)
    return _finished(figure, panels, n_columns)


def paths(panels: Sequence[Panel], n_columns: int, n: int = 8) -> go.Figure:
    """Some draws of whole paths, with the past and the truth."""
    figure = _figure(panels, n_columns)
    for i, panel in enumerate(panels):
        place = _place(i, n_columns)
        x = _around(panel.past[-1:], panel.ahead)
        drawn = panel.paths[:n]
        drawn = np.concatenate([np.repeat(panel.values[-1:][None], len(drawn), 0), drawn], 1)
        # One trace: a gap parts the paths.
        figure.add_scatter(
            x=[*x, None] * len(drawn), y=np.pad(drawn, ((0, 0), (0, 1)), constant_values=np.nan).ravel(),
            mode="lines", line={"color": MODEL, "width": 1}, opacity=0.6, name="draws", showlegend=i == 0,
            hoverinfo="skip", **place,
        )  # fmt: skip
        _past_and_truth(figure, panel, place, i == 0)
    return _finished(figure, panels, n_columns)


def _figure(panels: Sequence[Panel], n_columns: int) -> go.Figure:
    n_rows = -(-len(panels) // n_columns)
    return make_subplots(
        n_rows, n_columns, subplot_titles=[charts.plain(panel.title) for panel in panels],
        vertical_spacing=0.38 / n_rows, horizontal_spacing=0.07,
    )  # fmt: skip


def _place(i: int, n_columns: int) -> dict[str, int]:
    row, column = divmod(i, n_columns)
    return {"row": row + 1, "col": column + 1}


def _past_and_truth(figure: go.Figure, panel: Panel, place: dict[str, int], first: bool) -> None:
    figure.add_scatter(
        x=_around(panel.past), y=panel.values, mode="lines", line={"color": INK, "width": 1.5}, name="past",
        showlegend=first, hovertemplate="%{x}: %{y:.4g}<extra></extra>", **place,
    )  # fmt: skip
    figure.add_scatter(
        x=_around(panel.past[-1:], panel.ahead), y=np.concatenate([panel.values[-1:], panel.truth]), mode="lines",
        line={"color": TRUTH, "width": 2}, name="truth", showlegend=first,
        hovertemplate="%{x}: truth %{y:.4g}<extra></extra>", **place,
    )  # fmt: skip


def _finished(figure: go.Figure, panels: Sequence[Panel], n_columns: int) -> go.Figure:
    figure.update_annotations(font_size=13, font_color=SOFT)
    n_rows = -(-len(panels) // n_columns)
    charts.styled(figure, 70 + 240 * n_rows)
    return charts.panelled(figure, len(panels), n_columns, narrow=1)


def _around(*times: np.ndarray) -> list[Any]:
    """Times one after the other, as Plotly takes them."""
    whole = np.concatenate(times)
    return whole.astype("datetime64[s]").astype(str).tolist() if whole.dtype.kind == "M" else whole.tolist()


def by_step(figures: Mapping[str, Sequence[float]], axis: str) -> go.Figure:
    """A figure of each model over the steps ahead."""
    figure = go.Figure()
    for (name, values), colour in zip(figures.items(), [MODEL, "#8d99ae", DATA], strict=False):
        figure.add_scatter(
            x=list(range(1, len(values) + 1)), y=list(values), name=name, mode=_mode(values),
            line={"color": colour, "width": 2.4 if colour == MODEL else 1.8}, marker={"size": 6},
            hovertemplate="step %{x}: %{y:.4g}<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.update_xaxes(title="step ahead")
    figure.update_yaxes(title=axis, rangemode="tozero")
    return charts.styled(figure, 320)


def coverage_by_step(covered: Mapping[float, Sequence[float]]) -> go.Figure:
    """The share of truths inside intervals of some levels, over the steps ahead."""
    figure = go.Figure()
    for (level, values), colour in zip(covered.items(), (MODEL, COLOURS[3]), strict=False):
        figure.add_hline(y=level, line={"color": colour, "dash": "dot", "width": 1.5})
        figure.add_scatter(
            x=list(range(1, len(values) + 1)), y=list(values), name=f"{level:.0%} interval", mode=_mode(values),
            line={"color": colour, "width": 2.2}, marker={"size": 6},
            hovertemplate="step %{x}: the " + f"{level:.0%}" + " interval holds %{y:.1%}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title="step ahead")
    figure.update_yaxes(title="truths inside", tickformat=".0%", range=[0, 1.02])
    return charts.styled(figure, 320)


def _mode(values: Sequence[float]) -> str:
    """A single point needs a marker."""
    return "lines+markers" if len(values) <= 30 else "lines"
