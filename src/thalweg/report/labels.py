"""Cards and pictures of labels that several tasks show: how many, mixed up with which, probable and right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from thalweg.evaluation.calibration import Reliability
from thalweg.report import charts
from thalweg.report.page import Card
from thalweg.report.theme import INK, MODEL, WATER

_MOST_CLASSES = 30


def class_counts(names: Sequence[str], counts: Sequence[int], what: str) -> tuple[go.Figure, str]:
    """A bar for each class, the most frequent first, and what the picture shows in words.

    Args:
        what: what is counted, such as "training rows".
    """
    order = np.argsort(counts)[::-1][:_MOST_CLASSES]
    bars = go.Figure(
        go.Bar(
            x=[charts.plain(charts.shortened(names[k])) for k in order], y=[counts[k] for k in order],
            marker_color=MODEL, hovertemplate="%{x}: %{y} " + what + "<extra></extra>",
        )
    )  # fmt: skip
    bars.update_yaxes(title=what)
    bars.update_xaxes(type="category")
    text = f"How many {what} each class has."
    if len(names) > len(order):
        text += f" The {len(order)} most frequent classes of {len(names)} are shown."
    return charts.styled(bars, 300), text


def confusion_card(truth: np.ndarray, predicted: np.ndarray, names: Sequence[str], what: str) -> Card:
    """The confusion matrix of held-out rows, or of what they are called.

    Args:
        truth, predicted: places of the classes ``[n]``.
    """
    order = np.argsort(np.bincount(truth, minlength=len(names)))[::-1][:_MOST_CLASSES]
    order = np.sort(order)
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (truth, predicted), 1)
    counts = counts[np.ix_(order, order)]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    labels = [charts.plain(charts.shortened(names[k], 16)) for k in order]
    few = len(order) <= 12
    picture = go.Figure(
        go.Heatmap(
            z=shares, x=labels, y=labels, colorscale=WATER, zmin=0, zmax=1, customdata=counts, showscale=False,
            text=np.where(counts > 0, counts.astype(str), "") if few else None,
            texttemplate="%{text}" if few else None,
            hovertemplate="truth %{y}, predicted %{x}: %{customdata} " + what + ", %{z:.1%}<extra></extra>",
        )
    )  # fmt: skip
    picture.update_xaxes(title="predicted", type="category", showgrid=False)
    picture.update_yaxes(title="truth", type="category", autorange="reversed", showgrid=False)
    text = (
        f"Held-out {what} by their true and their predicted class; the colour is the share of the {what} of the "
        "true class. What lies off the diagonal are mistakes."
    )
    return Card("Confusion matrix", text, [charts.styled(picture, int(np.clip(120 + 34 * len(order), 300, 760)))])


def ideal_reliability() -> go.Figure:
    """A picture of how often predictions are right by how probable they are said to be, so far with the ideal."""
    picture = go.Figure()
    picture.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": INK, "dash": "dot", "width": 1.5}, name="ideal",
        hoverinfo="skip",
    )  # fmt: skip
    picture.update_xaxes(title="probability of the predicted class", tickformat=".0%", range=[0, 1.02])
    picture.update_yaxes(title="share that is right", tickformat=".0%", range=[0, 1.04])
    return picture


def add_reliability(picture: go.Figure, found: Reliability, name: str, colour: str) -> None:
    """Add the line of one set of predictions."""
    picture.add_scatter(
        x=found.confidence, y=found.accuracy, mode="lines+markers", name=name,
        line={"color": colour, "width": 2.2},
        error_y={"array": found.standard_error, "color": colour, "thickness": 1.2, "width": 3},
        customdata=found.n_rows, marker={"size": 6},
        hovertemplate="said %{x:.1%}, right %{y:.1%} of %{customdata} rows<extra>" + name + "</extra>",
    )  # fmt: skip
