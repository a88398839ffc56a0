"""The charts of the report: Plotly figures in one style."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy.stats import binom

from thalweg.report.theme import ATOM, COLOURS, DATA, INK, LINE, MODEL, POINTS, SOFT, TRUTH, WATER


def styled(figure: go.Figure, height: int, **layout: Any) -> go.Figure:
    """The look that all charts share."""
    figure.update_layout(
        height=height,
        template="plotly_white",
        font={"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 13, "color": INK},
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "xanchor": "left", "x": 0},
        hoverlabel={"bgcolor": "white"},
        bargap=0.06,
        **layout,
    )
    figure.update_xaxes(gridcolor=LINE, zeroline=False, automargin=True, linecolor=LINE)
    figure.update_yaxes(gridcolor=LINE, zeroline=False, automargin=True, linecolor=LINE)
    return figure


def panelled(figure: go.Figure, count: int, n_columns: int, narrow: int = 2) -> go.Figure:
    """Say that a figure is of panels, which the page puts in fewer columns where it is narrow.

    Args:
        narrow: the number of columns there.
    """
    return figure.update_layout(
        meta={"panels": {"count": count, "columns": n_columns, "narrow": min(narrow, n_columns)}},
        margin={"l": 10, "r": 10, "t": 64, "b": 10},
        legend={"yref": "container", "y": 1, "yanchor": "top"},
    )


def histogram(values: dict[str, np.ndarray], axis: str, resolution: float = 0.0) -> go.Figure:
    """Histograms on the same bins, each as a share of its own rows; bins hold whole rounding cells."""
    everything = np.concatenate(list(values.values()))
    low, high = span(everything)
    cut = low > everything.min() or high < everything.max()
    # As many bins as the smallest set can fill.
    most = int(np.clip(2 * np.sqrt(min(len(v) for v in values.values())), 8, 50))
    edges = bin_edges(everything.clip(low, high), resolution, most)
    figure = go.Figure()
    for (name, part), colour in zip(values.items(), [MODEL, DATA], strict=False):
        counts = np.histogram(part.clip(low, high), edges)[0] / max(1, len(part))
        figure.add_bar(
            x=(edges[1:] + edges[:-1]) / 2, y=counts, name=name, marker_color=colour,
            hovertemplate="%{x:.4g}: %{y:.1%}<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.update_xaxes(title=plain(axis) + (" (the outermost bars hold all values beyond)" if cut else ""))
    figure.update_yaxes(title="share of the rows", tickformat=".0%")
    return styled(figure, 300, barmode="group", showlegend=len(values) > 1)


def span(values: np.ndarray) -> tuple[float, float]:
    """The range of values; without far ends that would leave no room for the rest."""
    low, high = float(values.min()), float(values.max())
    bottom, top = (float(q) for q in np.quantile(values, [0.05, 0.95]))
    near = (max(low, bottom - 1.5 * (top - bottom)), min(high, top + 1.5 * (top - bottom)))
    return near if top > bottom and high - low > 1.5 * (near[1] - near[0]) else (low, high)


def bin_edges(values: np.ndarray, resolution: float, most: int = 50) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if resolution and (high - low) / resolution < 10_000:
        cells = round((high - low) / resolution) + 1
        width = resolution * max(1, int(np.ceil(cells / most)))
        return np.arange(low - resolution / 2, high + width, width)
    return np.linspace(low, high, int(np.clip(np.sqrt(len(values)), 10, most)) + 1)


def curves(
    x: Sequence[float], lines: dict[str, Sequence[float]], axes: tuple[str, str], marked: tuple[float, str] | None
) -> go.Figure:
    """Lines over one axis, with one place of the axis marked."""
    figure = go.Figure()
    for (name, values), colour in zip(lines.items(), ["#8d99ae", MODEL, DATA], strict=False):
        line = {"color": colour, "width": 2.2}
        figure.add_scatter(x=list(x), y=list(values), name=name, mode="lines", line=line)
    if marked is not None:
        figure.add_vline(
            x=marked[0], line={"color": TRUTH, "dash": "dot", "width": 1.5}, annotation_text=marked[1],
            annotation_font_color=TRUTH,
            annotation_position="top left" if marked[0] > (x[0] + x[-1]) / 2 else "top right",
        )  # fmt: skip
    figure.update_xaxes(title=axes[0])
    figure.update_yaxes(title=axes[1])
    return styled(figure, 320)


def density_grid(
    y: np.ndarray,
    density: np.ndarray,
    truth: np.ndarray,
    intervals: np.ndarray,
    titles: Sequence[str],
    axis: str,
    bars: bool,
    atoms: dict[float, np.ndarray] | None = None,
) -> go.Figure:
    """p(y|x) of some rows, each in a panel of its own, with the truth marked.

    Args:
        y: ``[m]``.
        density: ``[rows, m]``; probabilities if ``bars``.
        truth: ``[rows]``.
        intervals: ``[rows, 2]``, shaded.
        bars: draw bars, for a target that takes few values.
        atoms: probability ``[rows]`` of each single value that has one, drawn as a pin: full height is 100 %.
    """
    n_columns = min(3, len(truth))
    n_rows = -(-len(truth) // n_columns)
    figure = make_subplots(
        n_rows, n_columns, subplot_titles=list(titles), vertical_spacing=0.32 / n_rows, horizontal_spacing=0.05,
        shared_xaxes="all",
    )  # fmt: skip
    step = float(y[1] - y[0])
    for i in range(len(truth)):
        row, column = divmod(i, n_columns)
        place = {"row": row + 1, "col": column + 1}
        top = float(density[i].max())
        if bars:
            hit = np.abs(y - truth[i]) < step / 2
            figure.add_bar(
                x=y, y=density[i], marker_color=np.where(hit, TRUTH, MODEL).tolist(), width=0.85 * step,
                hovertemplate="%{x:.4g}: %{y:.1%}<extra></extra>", showlegend=False, **place,
            )  # fmt: skip
        else:
            inside = (y >= intervals[i, 0]) & (y <= intervals[i, 1])
            figure.add_scatter(
                x=y[inside], y=density[i][inside], fill="tozeroy", fillcolor="rgba(31,122,156,.22)", mode="none",
                name="90 % interval", showlegend=i == 0, hoverinfo="skip", **place,
            )  # fmt: skip
            figure.add_scatter(
                x=y, y=density[i], mode="lines", line={"color": MODEL, "width": 2}, name="density",
                showlegend=i == 0, hovertemplate="%{x:.4g}: %{y:.3g}<extra></extra>", **place,
            )  # fmt: skip
            figure.add_scatter(
                x=[truth[i], truth[i]], y=[0, 1.05 * top], mode="lines", line={"color": TRUTH, "width": 2},
                name="truth", showlegend=i == 0, hovertemplate="truth %{x:.6g}<extra></extra>", **place,
            )  # fmt: skip
        for value, mass in (atoms or {}).items():
            if mass[i] < 0.005:
                continue
            # Towards the middle of the panel, or its edge would cut the label off.
            side = "left" if value > (y[0] + y[-1]) / 2 else "right"
            figure.add_scatter(
                x=[value, value], y=[0, top * mass[i]], mode="lines+markers+text", text=["", f"{mass[i]:.0%}"],
                textposition=f"top {side}", textfont={"color": ATOM, "size": 12}, showlegend=False,
                line={"color": ATOM, "width": 3}, marker={"color": ATOM, "size": [0, 9]},
                hovertemplate=f"{value:.6g} itself: {mass[i]:.1%}<extra></extra>", **place,
            )  # fmt: skip
        figure.update_yaxes(range=[0, 1.12 * top], showticklabels=bars, showgrid=bars, **place)
        if bars:
            figure.update_yaxes(tickformat=".0%", **place)
    figure.update_annotations(font_size=13, font_color=SOFT)
    for column in range(1, n_columns + 1):
        figure.update_xaxes(title=plain(axis), row=n_rows, col=column)
    styled(figure, 60 + 190 * n_rows)
    figure.update_xaxes(showticklabels=True)
    return panelled(figure, len(truth), n_columns)


def density_map(
    x: Sequence[Any],
    y: np.ndarray,
    density: np.ndarray,
    lines: dict[str, np.ndarray],
    points: tuple[Sequence[Any], np.ndarray],
    axes: tuple[str, str],
    unit: str,
    others: tuple[Sequence[Any], np.ndarray] | None = None,
) -> go.Figure:
    """p(y|x) as a map: colour over an input and the target, with the data and some quantiles.

    Args:
        x: values of the input ``[n]``: numbers, dates or texts.
        y: ``[m]``.
        density: ``[m, n]``.
        lines: quantiles ``[n]`` by name.
        points: data to lay over it.
        unit: what the colour means.
        others: places ``[m]`` and medians ``[rows, m]`` to draw as thin lines.
    """
    figure = go.Figure()
    # A spike (a censoring limit, say) would leave all the rest white.
    top = float(np.quantile(density.max(0), 0.9))
    figure.add_heatmap(
        x=list(x), y=y, z=density, colorscale=WATER, zmin=0, zmax=top, zsmooth="best"
        if np.issubdtype(np.asarray(x).dtype, np.number) and len(y) > 60 else False,
        hovertemplate="%{x}, %{y:.4g}: %{z:.3g}<extra></extra>",
        colorbar={"title": {"text": unit, "side": "right"}, "tickvals": [0, top / 4, top / 2, top],
                  "ticktext": ["0", f"{top / 4:.2g}", f"{top / 2:.2g}", f"≥ {top:.2g}"], "thickness": 12,
                  "outlinewidth": 0},
    )  # fmt: skip
    figure.add_scatter(
        x=list(points[0]), y=points[1], mode="markers", name="data", hoverinfo="skip",
        marker={"size": 4.5, "color": POINTS, "line": {"width": 0}},
    )  # fmt: skip
    if others is not None:
        # One trace: a gap parts the lines.
        places, medians = others
        apart = np.pad(medians, ((0, 0), (0, 1)), constant_values=np.nan).ravel()
        mode = "markers" if isinstance(x[0], str) else "lines"
        figure.add_scatter(
            x=[*places, None] * len(medians), y=apart, mode=mode, hoverinfo="skip",
            name="medians, others as in training rows", line={"color": INK, "width": 0.7}, opacity=0.55,
            marker={"color": INK, "size": 4, "symbol": "line-ew-open"},
        )  # fmt: skip
    for i, (name, values) in enumerate(lines.items()):
        figure.add_scatter(
            x=list(x), y=values, name=name, mode="lines", hoverinfo="skip", showlegend=name != "95 %",
            line={"color": "#e0843e", "width": 2.4 if i == 0 else 1.4, "dash": "solid" if i == 0 else "dot"},
        )  # fmt: skip
    step = float(y[1] - y[0])
    figure.update_xaxes(title=plain(axes[0]), showgrid=False)
    if np.issubdtype(np.asarray(x).dtype, np.number):
        figure.update_xaxes(range=[x[0], x[-1]])
    figure.update_yaxes(title=plain(axes[1]), showgrid=False, range=[y[0] - step / 2, y[-1] + step / 2])
    return styled(figure, 470)


def pit_histogram(counts: Sequence[int]) -> go.Figure:
    """The PIT histogram, with the band where 90 % of a calibrated model's bars lie."""
    n = int(np.sum(counts))
    if n < 400:
        # Few rows: wider bars, which say more than they jitter.
        counts = np.asarray(counts).reshape(-1, 2).sum(1).tolist()
    k = len(counts)
    low, high = binom.ppf(0.05, n, 1 / k) * k / n, binom.ppf(0.95, n, 1 / k) * k / n
    figure = go.Figure()
    figure.add_hrect(y0=low, y1=high, fillcolor="#8d99ae", opacity=0.25, line_width=0, layer="below")
    figure.add_bar(
        x=(np.arange(k) + 0.5) / k, y=np.asarray(counts) * k / n, marker_color=MODEL, showlegend=False,
        hovertemplate="%{x:.3f}: %{y:.2f}<extra></extra>",
    )  # fmt: skip
    figure.add_hline(y=1, line={"color": INK, "dash": "dot", "width": 1.5})
    figure.update_xaxes(title="PIT value: the model's distribution function at the truth", range=[0, 1])
    figure.update_yaxes(title="frequency, 1 = uniform", rangemode="tozero")
    return styled(figure, 320)


def coverage_curve(nominal: Sequence[float], covered: dict[str, Sequence[float]]) -> go.Figure:
    """The share of the truths inside central intervals, against the share that should be."""
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": INK, "dash": "dot", "width": 1.5}, name="ideal",
        hoverinfo="skip",
    )  # fmt: skip
    for (name, values), colour in reversed(list(zip(covered.items(), COLOURS, strict=False))):
        figure.add_scatter(
            x=[0, *nominal, 1], y=[0, *values, 1], mode="lines+markers", name=name,
            line={"color": colour, "width": 2.4 if colour == MODEL else 1.8}, marker={"size": 5},
            hovertemplate="%{x:.0%} interval holds %{y:.1%}<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.update_xaxes(title="nominal coverage", tickformat=".0%", range=[0, 1])
    figure.update_yaxes(title="observed coverage", tickformat=".0%", range=[0, 1.01])
    return styled(figure, 400)


def residuals(predicted: np.ndarray, truth: np.ndarray, name: str) -> go.Figure:
    """Truth minus predicted mean, over the predicted mean, and its histogram beside it."""
    error = truth - predicted
    figure = make_subplots(1, 2, column_widths=[0.76, 0.24], shared_yaxes=True, horizontal_spacing=0.05)
    figure.add_scatter(
        x=predicted, y=error, mode="markers", marker={"color": MODEL, "size": 6, "opacity": 0.5}, row=1, col=1,
        hovertemplate="predicted %{x:.4g}, off by %{y:.4g}<extra></extra>",
    )  # fmt: skip
    edges = np.linspace(error.min(), error.max(), int(np.clip(np.sqrt(len(error)), 8, 40)) + 1)
    figure.add_bar(
        y=(edges[1:] + edges[:-1]) / 2, x=np.histogram(error, edges)[0], orientation="h", marker_color=MODEL,
        row=1, col=2, hovertemplate="%{x} rows<extra></extra>",
    )  # fmt: skip
    figure.add_hline(y=0, line={"color": TRUTH, "width": 1.5})
    figure.update_xaxes(title=f"predicted mean of {plain(name)}", row=1, col=1)
    figure.update_xaxes(title="rows", row=1, col=2)
    figure.update_yaxes(title="truth − predicted", row=1, col=1)
    return styled(figure, 360, showlegend=False)


def effects(names: Sequence[str], values: Sequence[float], axis: str, errors: Sequence[float]) -> go.Figure:
    """Horizontal bars with their errors, the longest on top."""
    labels = [plain(shortened(n)) for n in names]
    figure = go.Figure(
        go.Bar(
            x=list(values)[::-1], y=labels[::-1], orientation="h", marker_color=MODEL,
            error_x={"array": list(errors)[::-1], "color": INK, "thickness": 1.2, "width": 3},
            hovertemplate="%{y}: %{x:.3g} ± %{error_x.array:.2g}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title=plain(axis), rangemode="tozero")
    return styled(figure, 80 + 26 * len(names))


def group_coverage(names: Sequence[str], shares: Sequence[float], sizes: Sequence[int], level: float) -> go.Figure:
    """The share of each group's truths inside an interval, and the bar where 90 % of a calibrated model's lie."""
    labels = [f"{plain(shortened(n, 26))} ({size})" for n, size in zip(names, sizes, strict=True)]
    counts = np.asarray(sizes)
    low, high = (binom.ppf(p, counts, level) / counts for p in (0.05, 0.95))
    figure = go.Figure()
    figure.add_bar(
        y=labels, x=high - low, base=low, orientation="h", marker_color="#8d99ae", opacity=0.25, showlegend=False,
        hoverinfo="skip", width=0.55,
    )  # fmt: skip
    figure.add_scatter(
        x=list(shares), y=labels, mode="markers", marker={"color": MODEL, "size": 10}, showlegend=False,
        hovertemplate="%{y} rows: %{x:.1%}<extra></extra>",
    )  # fmt: skip
    figure.add_vline(x=level, line={"color": INK, "dash": "dot", "width": 1.5})
    figure.update_xaxes(title=f"inside the {level:.0%} interval", tickformat=".0%")
    figure.update_yaxes(autorange="reversed")
    return styled(figure, 90 + 28 * len(names))


def scatter_truth(
    predicted: np.ndarray, truth: np.ndarray, name: str, interval: np.ndarray | None = None, most: int = 1200
) -> go.Figure:
    """Truth over predicted mean, with the diagonal.

    Args:
        predicted, truth: ``[rows]``.
        interval: ``[rows, 2]``; those of up to 80 rows, evenly by their prediction, are drawn.
        most: the largest number of points.
    """
    low, high = float(min(predicted.min(), truth.min())), float(max(predicted.max(), truth.max()))
    figure = go.Figure()
    if interval is not None:
        order = np.argsort(predicted, kind="stable")
        some = order[np.unique(np.linspace(0, len(order) - 1, min(80, len(order))).round().astype(int))]
        gap = np.full(len(some), np.nan)
        figure.add_scatter(
            x=np.repeat(predicted[some], 3), y=np.column_stack([interval[some], gap]).ravel(), mode="lines",
            line={"color": "#8d99ae", "width": 1.2}, opacity=0.7, hoverinfo="skip", name="90 % interval",
        )  # fmt: skip
    diagonal = {"color": INK, "dash": "dot", "width": 1.5}
    figure.add_scatter(x=[low, high], y=[low, high], mode="lines", line=diagonal, hoverinfo="skip", name="equal")
    figure.add_scatter(
        x=predicted[:most], y=truth[:most], mode="markers", name="rows",
        marker={"color": MODEL, "size": 6, "opacity": 0.5},
        hovertemplate="predicted %{x:.4g}, truth %{y:.4g}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title=f"predicted mean of {plain(name)}")
    figure.update_yaxes(title=f"{plain(name)}, the truth")
    return styled(figure, 380, showlegend=False)


def clouds(draws: np.ndarray, truth: np.ndarray, titles: Sequence[str], axes: tuple[str, str]) -> go.Figure:
    """Draws from p(y|x) of some rows in a plane, with the truth marked.

    Args:
        draws: ``[rows, n, 2]``.
        truth: ``[rows, 2]``.
    """
    n_columns = min(3, len(truth))
    n_rows = -(-len(truth) // n_columns)
    figure = make_subplots(
        n_rows, n_columns, subplot_titles=list(titles), vertical_spacing=0.3 / n_rows, horizontal_spacing=0.05,
        shared_xaxes="all", shared_yaxes="all",
    )  # fmt: skip
    for i in range(len(truth)):
        row, column = divmod(i, n_columns)
        place = {"row": row + 1, "col": column + 1}
        figure.add_scatter(
            x=draws[i, :, 0], y=draws[i, :, 1], mode="markers", name="draws", showlegend=i == 0, hoverinfo="skip",
            marker={"color": MODEL, "size": 4, "opacity": 0.35}, **place,
        )  # fmt: skip
        figure.add_scatter(
            x=[truth[i, 0]], y=[truth[i, 1]], mode="markers", name="truth", showlegend=i == 0,
            marker={"color": TRUTH, "size": 11, "symbol": "x"}, **place,
        )  # fmt: skip
    figure.update_annotations(font_size=13, font_color=SOFT)
    for column in range(1, n_columns + 1):
        figure.update_xaxes(title=plain(axes[0]), row=n_rows, col=column)
    figure.update_yaxes(title=plain(axes[1]), col=1)
    styled(figure, 60 + 230 * n_rows)
    return panelled(figure, len(truth), n_columns)


def shortened(text: str, most: int = 28) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def plain(text: str) -> str:
    """A user's text, without what Plotly would read as a tag."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
