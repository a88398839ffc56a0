"""The report of a run on images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from thalweg.data.images import outliers, tile
from thalweg.evaluation.generation import nearest_neighbours
from thalweg.report import charts
from thalweg.report.page import Card, Tile, checks_of, footer_of, render_page
from thalweg.runs.images import ImageRun


def report(run: ImageRun) -> str:
    """The report of a finished run as one HTML page."""
    figures, scores = run.figures, run.figures["scores"]
    channels, height, width = figures["shape"]
    tiles = [
        Tile("images", f"{figures['training_images']:,}", f"and {figures['test_images']:,} held out"),
        Tile("size", f"{height} x {width}", "grey" if channels == 1 else "colour"),
        Tile("labels", str(figures["labels"]) if figures["labels"] > 1 else "none"),
        Tile("Frechet distance", f"{scores['Frechet distance, new images']:.3g}",
             f"held out: {scores['Frechet distance, images held out']:.3g}"),
        Tile("training", f"{figures['seconds']['training']:.0f} s",
             f"mean of {run.settings.snapshots} snapshots" if run.settings.snapshots > 1 else ""),
    ]  # fmt: skip
    cards = [
        _generated(run),
        _passage(run),
        _neighbours(run),
        _completed(run),
        _energies(run),
        _training(run),
        _scores(run),
    ]
    return render_page(
        f"Images of {figures['images']}",
        "An energy-based model of images",
        tiles,
        cards,
        footer_of(run),
        checks_of(run),
    )


def _generated(run: ImageRun) -> Card:
    n = run.model.n_labels_
    columns = n if n > 1 else 12
    fresh = run.model.sample(6 * columns, random_state=run.settings.seed)
    training = run.images[0]
    matched = run.model.objective == "matching"
    how = "the flow from Gaussians to the images" if matched else "fresh chains from uniform noise"
    if n > 1:
        assert training.labels is not None
        text = f"New images, made by {how}, and training images below. Each column has one label."
        shown = in_columns(training.pixels, training.labels, n, 3)
    else:
        text = f"New images, made by {how}, and training images below."
        shown = training.pixels[evenly(len(training.pixels), 3 * columns)]
    return Card("Generated", text, [wall(fresh, columns), wall(shown, columns)])


def _passage(run: ImageRun) -> Card:
    n = 16
    frames = run.model.passage(n, random_state=run.settings.seed)
    return Card(
        "On the way",
        "New images as they come about, from where they start (above) to their end (below), at six moments.",
        [wall(np.concatenate(list(frames)), n)],
    )


def in_columns(images: np.ndarray, labels: np.ndarray, n_labels: int, n_rows: int) -> np.ndarray:
    """The first images of each label, row by row, so that each label has a column; a missing one is grey."""
    shown = np.full((n_rows, n_labels, *images.shape[1:]), 0.5, np.float32)
    for k in range(n_labels):
        own = images[np.flatnonzero(labels == k)[:n_rows]]
        shown[: len(own), k] = own
    return shown.reshape(-1, *images.shape[1:])


def evenly(n_rows: int, n: int) -> np.ndarray:
    """Some of the rows, from first to last: a file may be sorted by what it shows."""
    return np.linspace(0, n_rows - 1, min(n, n_rows)).round().astype(int)


def _neighbours(run: ImageRun) -> Card:
    fresh = run.model.sample(16, random_state=run.settings.seed + 1)
    training = run.images[0].pixels
    nearest = nearest_neighbours(fresh, training)
    return Card(
        "Is it copying?",
        "Generated images (above) and the training image nearest to each (below).",
        [wall(np.concatenate([fresh, training[nearest.row]]), 16)],
    )


def _completed(run: ImageRun) -> Card:
    test = run.images[1].rows(evenly(len(run.images[1].pixels), 16))
    height = run.figures["shape"][1]
    known = np.zeros((1, *run.figures["shape"][1:]), bool)
    known[:, : height // 2] = True
    labels = test.labels if run.model.n_labels_ > 1 else None
    completed = run.model.impute(test.pixels, known=known, labels=labels, n_draws=3, random_state=0)
    rows = [test.pixels, np.where(known, test.pixels, 0.5), *completed]
    return Card(
        "Completed",
        "Held-out images, the part of each that the model is given, and three completions of the rest.",
        [wall(np.concatenate(rows), len(test.pixels))],
    )


def _energies(run: ImageRun) -> Card:
    rng = np.random.RandomState(0)
    training, test = (images.pixels[:500] for images in run.images)
    kinds = {"training": training, "held out": test, **outliers(test, len(test), rng)}
    figure = go.Figure()
    for name, images in kinds.items():
        figure.add_violin(y=-run.model.score_samples(images), name=name, points=False, showlegend=False)
    figure.update_yaxes(title="lowest energy over the labels")
    return Card(
        "Likely and unlikely images",
        "The energy of training images, of held-out images, and of images of other kinds. A low energy means "
        "likely.",
        [charts.styled(figure, 360)],
    )


def _training(run: ImageRun) -> Card:
    epochs = run.model.history_.epochs
    if run.model.objective == "matching":
        lines: dict[str, Sequence[float]] = {"velocity error": [e["velocity error"] for e in epochs]}
        title = "squared error, a pixel"
        text = (
            "How far the gradient of the energy is from the velocity that carries a draw to its image, squared. "
            "No energy gets it to zero, since lines of different pairs cross."
        )
    else:
        lines = {
            "energy gap": [e["energy gap"] for e in epochs],
            "energy of the data": [e["energy of data"] for e in epochs],
        }
        title = "energy"
        text = (
            "The energy of the data minus that of the chains should stay near zero; a steady drift means "
            "divergence."
        )
    figure = charts.curves([e["epoch"] for e in epochs], lines, ("epoch", title), None)
    return Card("Training", text, [figure], notes=run.figures["remarks"])


def _scores(run: ImageRun) -> Card:
    rows = [[name, f"{value:.4g}"] for name, value in run.figures["scores"].items()]
    return Card(
        "Figures",
        "The Frechet distance is computed in the space of 20 principal components.",
        head=["figure", ""],
        rows=rows,
    )


def wall(images: np.ndarray, n_columns: int) -> go.Figure:
    pixels = tile(images, n_columns)
    figure = go.Figure(go.Image(z=pixels))
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    styled = charts.styled(figure, int(min(900, 1000 * pixels.shape[0] / pixels.shape[1])) + 20)
    return styled.update_layout(margin={"l": 0, "r": 0, "t": 10, "b": 10})
