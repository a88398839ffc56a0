"""Charts of a joint density: data and draws beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thalweg.report.charts import bin_edges, panelled, plain, shortened, span, styled
from thalweg.report.theme import COLOURS, DATA, INK, LINE, MODEL, SOFT, TWO_SIDED, WATER


def marginals(data: np.ndarray, draws: np.ndarray, names: Sequence[str], resolution: Sequence[float]) -> go.Figure:
    """Histogram of every column: bars for the data, a line for the draws.

    Args:
        data, draws: ``[rows, columns]``.
        resolution: spacing of rounded columns, else 0; bins hold whole rounding cells.
    """
    n_columns = min(3, len(names))
    n_rows = -(-len(names) // n_columns)
    figure = make_subplots(
        n_rows, n_columns, subplot_titles=[plain(shortened(n)) for n in names],
        vertical_spacing=0.3 / n_rows, horizontal_spacing=0.07,
    )  # fmt: skip
    for k, name in enumerate(names):
        row, column = divmod(k, n_columns)
        place = {"row": row + 1, "col": column + 1}
        known, drawn = (v[~np.isnan(v[:, k]), k] for v in (data, draws))
        low, high = span(known)
        most = int(np.clip(2 * np.sqrt(len(known)), 8, 40))
        edges = bin_edges(known.clip(low, high), resolution[k], most)
        centres = (edges[1:] + edges[:-1]) / 2
        shares = [np.histogram(v.clip(edges[0], edges[-1]), edges)[0] / len(v) for v in (known, drawn)]
        hover = "%{x:.4g}: %{y:.1%}<extra>" + plain(shortened(name))
        figure.add_bar(
            x=centres, y=shares[0], name="data", marker_color=DATA, opacity=0.75, showlegend=k == 0,
            hovertemplate=hover + ", data</extra>", **place,
        )  # fmt: skip
        figure.add_scatter(
            x=centres, y=shares[1], name="draws from the model", mode="lines", showlegend=k == 0,
            line={"color": MODEL, "width": 2.4, "shape": "hvh"}, hovertemplate=hover + ", draws</extra>", **place,
        )  # fmt: skip
        figure.update_yaxes(tickformat=".0%", rangemode="tozero", nticks=4, **place)
    figure.update_annotations(font_size=13, font_color=SOFT)
    styled(figure, 70 + 190 * n_rows)
    return panelled(figure, len(names), n_columns)


def level_shares(shares: Mapping[str, Sequence[tuple[str, float, float]]]) -> go.Figure:
    """Bars of how often each level of a column occurs, in the data and in draws.

    Args:
        shares: of each column its levels with the two shares.
    """
    n_columns = min(3, len(shares))
    n_rows = -(-len(shares) // n_columns)
    figure = make_subplots(
        n_rows, n_columns, subplot_titles=[plain(shortened(n)) for n in shares],
        vertical_spacing=0.4 / n_rows, horizontal_spacing=0.07,
    )  # fmt: skip
    for k, found in enumerate(shares.values()):
        row, column = divmod(k, n_columns)
        place = {"row": row + 1, "col": column + 1}
        names = [plain(shortened(level)) for level, _, _ in found]
        ticks = [name if len(name) <= 9 else f"{name[:8]}…" for name in names]
        for which, colour, label in ((1, DATA, "data"), (2, MODEL, "draws from the model")):
            figure.add_bar(
                x=names, y=[one[which] for one in found], name=label, marker_color=colour, showlegend=k == 0,
                hovertemplate="%{x}: %{y:.1%}<extra>" + label + "</extra>", **place,
            )  # fmt: skip
        figure.update_xaxes(type="category", tickmode="array", tickvals=names, ticktext=ticks, **place)
        figure.update_yaxes(tickformat=".0%", rangemode="tozero", nticks=4, **place)
    figure.update_annotations(font_size=13, font_color=SOFT)
    styled(figure, 90 + 210 * n_rows)
    return panelled(figure, len(shares), n_columns)


def pairs(
    data: np.ndarray,
    draws: np.ndarray,
    names: Sequence[str],
    resolution: Sequence[float],
    most_points: int = 700,
) -> go.Figure:
    """Every column over every other: data above the diagonal, draws below it, in two colours.

    Args:
        data, draws: ``[rows, columns]``, of few columns.
        resolution: spacing of rounded columns, else 0. Points of these are spread, or they would hide each other.
    """
    n = len(names)
    figure = make_subplots(
        n, n, shared_xaxes="columns", vertical_spacing=0.03, horizontal_spacing=0.03,
    )  # fmt: skip
    spans = [span(data[:, k]) for k in range(n)]
    rng = np.random.RandomState(0)
    cells = np.asarray(resolution)
    shown = [values[rng.permutation(len(values))[:most_points]] for values in (data, draws)]
    shown = [values + 0.6 * cells * (rng.uniform(size=values.shape) - 0.5) for values in shown]
    for i in range(n):
        for j in range(n):
            place = {"row": i + 1, "col": j + 1}
            low, high = spans[j]
            pad = 0.05 * (high - low)
            if i == j:
                edges = bin_edges(data[:, i].clip(low, high), resolution[i], 25)
                centres = (edges[1:] + edges[:-1]) / 2
                for values, colour, name in ((data, DATA, "data"), (draws, MODEL, "draws from the model")):
                    share = np.histogram(values[:, i].clip(edges[0], edges[-1]), edges)[0] / len(values)
                    figure.add_scatter(
                        x=centres, y=share, mode="lines", line={"color": colour, "width": 2}, name=name,
                        showlegend=False, hoverinfo="skip", **place,
                    )  # fmt: skip
                figure.update_yaxes(showticklabels=False, rangemode="tozero", showgrid=False, **place)
            else:
                values, colour = (shown[1], MODEL) if i > j else (shown[0], DATA)
                figure.add_scatter(
                    x=values[:, j], y=values[:, i], mode="markers", hoverinfo="skip",
                    name="draws from the model" if i > j else "data", showlegend=(i, j) in ((1, 0), (0, 1)),
                    marker={"color": colour, "size": 4.5, "opacity": 0.45}, **place,
                )  # fmt: skip
                bottom, top = spans[i]
                edge = 0.05 * (top - bottom)
                figure.update_yaxes(range=[bottom - edge, top + edge], showticklabels=j == 0, nticks=4, **place)
            figure.update_xaxes(range=[low - pad, high + pad], nticks=4, **place)
    for k, name in enumerate(names):
        figure.update_xaxes(title=plain(shortened(name, 22)), row=n, col=k + 1)
        figure.update_yaxes(title=plain(shortened(name, 22)), row=k + 1, col=1)
    styled(figure, 90 + 190 * n)
    return figure.update_layout(margin={"l": 10, "r": 10, "t": 50, "b": 10}, legend={"itemsizing": "constant"})


def correlations(data: np.ndarray, draws: np.ndarray, names: Sequence[str]) -> go.Figure:
    """The correlation matrices of the data and of the draws, on one scale."""
    figure = make_subplots(
        1, 2, subplot_titles=["data", "draws from the model"], horizontal_spacing=0.03, shared_yaxes=True
    )
    labels = [plain(shortened(n, 18 if len(names) <= 12 else 12)) for n in names]
    places = list(range(len(names)))
    for k, values in enumerate((data, draws)):
        with np.errstate(invalid="ignore", divide="ignore"):
            matrix = np.atleast_2d(np.corrcoef(values.T))
        text = np.char.mod("%.2f", matrix) if len(names) <= 8 else None
        figure.add_heatmap(
            x=places, y=places, z=matrix, zmin=-1, zmax=1, colorscale=TWO_SIDED, showscale=k == 1,
            text=text, texttemplate="%{text}" if text is not None else None, textfont={"size": 11},
            customdata=[[f"{a} and {b}" for a in labels] for b in labels],
            hovertemplate="%{customdata}: %{z:.3f}<extra></extra>",
            colorbar={"thickness": 12, "outlinewidth": 0, "title": {"text": "correlation", "side": "right"}},
            row=1, col=k + 1,
        )  # fmt: skip
    styled(figure, 130 + int(np.clip(36 * len(names), 200, 560)))
    figure.update_xaxes(tickvals=places, ticktext=labels, showgrid=False, tickangle=-40)
    figure.update_yaxes(tickvals=places, ticktext=labels, showgrid=False, autorange="reversed")
    figure.update_annotations(font_size=13, font_color=SOFT)
    return panelled(figure, 2, 2, narrow=1).update_layout(margin={"t": 40})


def errors_by_column(
    names: Sequence[str], errors: Mapping[str, Sequence[float]], axis: str = "RMSE / standard deviation"
) -> go.Figure:
    """Bars of one error for each column and each way of filling its gaps; 1 is that of knowing nothing."""
    figure = go.Figure()
    labels = [plain(shortened(n)) for n in names]
    for (name, values), colour in zip(errors.items(), COLOURS, strict=False):
        figure.add_bar(
            x=labels, y=list(values), name=name, marker_color=colour,
            hovertemplate="%{x}: %{y:.3f}<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.add_hline(y=1, line={"color": INK, "dash": "dot", "width": 1.5})
    figure.update_yaxes(title=axis, rangemode="tozero")
    return styled(figure, 340, barmode="group")


def ranking(
    names: Sequence[str],
    means: Sequence[float],
    points: Sequence[Sequence[float]],
    axis: str,
    reference: tuple[float, str] | None = None,
) -> go.Figure:
    """A dot for each run and a bar mark at the mean, one line for each method, the best on top.

    Args:
        points: of each method, the figures of its runs.
        reference: a value to mark, and its name.
    """
    figure = go.Figure()
    labels = [plain(n) for n in names]
    for label, mean, values in zip(labels, means, points, strict=True):
        figure.add_scatter(
            x=[min(values), max(values)], y=[label, label], mode="lines", showlegend=False, hoverinfo="skip",
            line={"color": LINE, "width": 7},
        )  # fmt: skip
        figure.add_scatter(
            x=list(values), y=[label] * len(values), mode="markers", showlegend=False,
            marker={"color": MODEL, "size": 7, "opacity": 0.55}, hovertemplate="%{x:.4f}<extra>a run</extra>",
        )  # fmt: skip
        figure.add_scatter(
            x=[mean], y=[label], mode="markers", showlegend=False,
            marker={"color": INK, "size": 13, "symbol": "line-ns", "line": {"width": 2.4, "color": INK}},
            hovertemplate="%{x:.4f}<extra>mean</extra>",
        )  # fmt: skip
    if reference is not None:
        figure.add_vline(
            x=reference[0], line={"color": DATA, "dash": "dot", "width": 1.8}, annotation_text=plain(reference[1]),
            annotation_font_color=DATA, annotation_position="top",
        )  # fmt: skip
    figure.update_xaxes(title=axis)
    figure.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=labels)
    return styled(figure, 90 + 30 * len(names)).update_layout(margin={"l": 10, "r": 10, "t": 40, "b": 10})


def maps(
    x: np.ndarray, y: np.ndarray, densities: dict[str, np.ndarray], data: np.ndarray, axes: tuple[str, str]
) -> go.Figure:
    """The data, and densities ``[m, n]`` over a plane, in panels on one scale of colours.

    Args:
        x: ``[n]``.
        y: ``[m]``.
        data: ``[rows, 2]``.
    """
    n_columns = 3
    titles = ["the data", *densities]
    n_rows = -(-len(titles) // n_columns)
    figure = make_subplots(
        n_rows, n_columns, subplot_titles=[plain(t) for t in titles], shared_xaxes="all", shared_yaxes="all",
        vertical_spacing=0.16 / n_rows, horizontal_spacing=0.03,
    )  # fmt: skip
    some = data[np.random.RandomState(0).permutation(len(data))[:1500]]
    figure.add_scatter(
        x=some[:, 0], y=some[:, 1], mode="markers", showlegend=False, hoverinfo="skip",
        marker={"color": DATA, "size": 4, "opacity": 0.6}, row=1, col=1,
    )  # fmt: skip
    # One method's spike would leave the others white.
    top = float(np.median([np.quantile(d[d > 1e-3 * d.max()], 0.98) for d in densities.values()]))
    for k, density in enumerate(densities.values(), start=1):
        row, column = divmod(k, n_columns)
        figure.add_heatmap(
            x=x, y=y, z=density, colorscale=WATER, zmin=0, zmax=top, showscale=False, zsmooth="best",
            hovertemplate="%{x:.4g}, %{y:.4g}: %{z:.3g}<extra></extra>",
            row=row + 1, col=column + 1,
        )  # fmt: skip
    styled(figure, 60 + 290 * n_rows)
    figure.update_annotations(font_size=13, font_color=SOFT)
    figure.update_xaxes(range=[x[0], x[-1]], showgrid=False, showticklabels=True, nticks=5)
    figure.update_yaxes(range=[y[0], y[-1]], showgrid=False, nticks=5)
    for column in range(1, n_columns + 1):
        figure.update_xaxes(title=plain(axes[0]), row=n_rows, col=column)
    figure.update_yaxes(title=plain(axes[1]), col=1)
    return panelled(figure, len(titles), n_columns).update_layout(margin={"t": 40})
