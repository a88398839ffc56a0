"""The report of a run of a generator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from thalweg.data.images import outliers
from thalweg.evaluation.generation import nearest_neighbours
from thalweg.objectives.names import RECONSTRUCTING, VARIATIONAL
from thalweg.report import charts, density_charts
from thalweg.report.images import evenly, wall
from thalweg.report.page import Card, Tile, checks_of, footer_of, render_page
from thalweg.report.words import duration
from thalweg.runs.generator import NAMES, GeneratorRun, scores_of

_MAX_MARGINALS, _MAX_PAIRED, _N_DRAWS, _N_NEIGHBOURS = 12, 4, 2000, 8


def report(run: GeneratorRun) -> str:
    """The report of a finished run as one HTML page."""
    training, test = run.rows
    drawn = run.model.sample(_N_DRAWS if run.shape is None else 60, random_state=run.settings.seed)
    if run.shape is None:
        cards = [*_table_cards(run, training, drawn), _neighbouring_rows(run, training, drawn)]
    else:
        cards = [_generated(training, drawn), _neighbours(training, drawn)]
        cards += [_reconstructed(run, test)] if run.settings.kind in RECONSTRUCTING else []
    cards += [_energies(run, training, test), *_training(run), _scores(run)]
    what = "images" if run.shape else "rows"
    return render_page(
        f"{what.capitalize()} like those of {run.figures['data']}",
        "A variational autoencoder" + (", corrected by an energy" if run.settings.kind == "vaebm" else "")
        if run.settings.kind in VARIATIONAL
        else "A generator and the energy that it was trained against",
        _tiles(run),
        cards,
        footer_of(run),
        checks_of(run),
    )


def _tiles(run: GeneratorRun) -> list[Tile]:
    figures, scores = run.figures, run.figures["scores"]
    what, size = "rows", f"{len(run.columns)} columns"
    if run.shape is not None:
        channels, height, width = run.shape
        what, size = "images", f"{height} x {width} in {'grey' if channels == 1 else 'colour'}"
    of_test = scores.get("Frechet distance, held out")
    return [
        Tile(what, f"{figures['training_rows']:,}", f"of {size}; {figures['test_rows']:,} held out"),
        Tile("kind", run.settings.kind.upper(), NAMES[run.settings.kind].partition(": ")[2]),
        Tile("Frechet distance", f"{scores['Frechet distance, draws']:.3g}",
             "" if of_test is None else f"held out: {of_test:.3g}"),
        Tile("training", duration(figures["seconds"]["training"]), f"{run.model.n_weights_:,} weights"),
    ]  # fmt: skip


def _generated(training: np.ndarray, drawn: np.ndarray) -> Card:
    text = "Images that the generator drew, and training images below."
    return Card("Generated", text, [wall(drawn, 12), wall(training[evenly(len(training), 36)], 12)])


def _neighbours(training: np.ndarray, drawn: np.ndarray) -> Card:
    nearest = nearest_neighbours(drawn[:16], training)
    return Card(
        "Is it copying?",
        "Generated images (above) and the training image nearest to each (below).",
        [wall(np.concatenate([drawn[:16], training[nearest.row]]), 16)],
    )


def _reconstructed(run: GeneratorRun, test: np.ndarray) -> Card:
    shown = test[evenly(len(test), 16)]
    strange = outliers(test, 16, np.random.RandomState(0))["interpolated"][: len(shown)]
    rows = [shown, run.model.reconstruct(shown), strange, run.model.reconstruct(strange)]
    text = (
        "Held-out images and what the autoencoder makes of them; below, midpoints of two images, and what it "
        "makes of those."
    )
    if run.settings.kind not in VARIATIONAL:
        text += " The energy is the distance between the two."
    return Card(
        "Reconstructed",
        text,
        [wall(np.concatenate(rows).clip(0, 1), len(shown))],
    )


def _table_cards(run: GeneratorRun, training: np.ndarray, drawn: np.ndarray) -> list[Card]:
    names, resolution = run.columns, run.model.resolution_.tolist()
    n = min(len(names), _MAX_MARGINALS)
    picture = density_charts.marginals(training[:, :n], drawn[:, :n], names[:n], resolution[:n])
    text = f"The distribution of each column in the training rows and in {_N_DRAWS:,} draws."
    if n < len(names):
        text += f" The first {n} of {len(names)} columns are shown."
    cards = [Card("The data and the draws", text, [picture])]
    if len(names) > 1:
        n = min(len(names), _MAX_PAIRED)
        picture = density_charts.pairs(training[:, :n], drawn[:, :n], names[:n], resolution[:n])
        text = (
            "Scatter plots of pairs of columns: the data above the diagonal, draws below it. They should be "
            "mirror images."
        )
        if n < len(names):
            text += f" The first {n} of {len(names)} columns are shown."
        cards.append(Card("Pairs", text, [picture]))
    return cards


def _neighbouring_rows(run: GeneratorRun, training: np.ndarray, drawn: np.ndarray) -> Card:
    scale = training.std(0)
    nearest = nearest_neighbours(drawn[:_N_NEIGHBOURS] / scale, training / scale)
    rows = []
    for made, place, distance in zip(drawn, nearest.row, nearest.distance, strict=False):
        pairs = [f"{a:.5g} / {b:.5g}" for a, b in zip(made, training[place], strict=True)]
        rows.append([*pairs, f"{distance:.2f}"])
    return Card(
        "Is it copying?",
        "Draws, each beside the training row nearest to it, with their distance in standard deviations.",
        head=[*run.columns, "distance"],
        rows=rows,
    )


def _energies(run: GeneratorRun, training: np.ndarray, test: np.ndarray) -> Card:
    drawn = run.model.sample(500, random_state=run.settings.seed + 2)
    kinds = {"training": training[evenly(len(training), 500)], "held out": test[:500], "drawn": drawn}
    if run.shape is not None:
        kinds |= outliers(test, len(test[:500]), np.random.RandomState(0))
    energies = {name: -scores_of(run.model, rows) for name, rows in kinds.items()}
    others = ", and of images of other kinds" if run.shape is not None else ""
    text = f"The energy of training data, of held-out data, of draws{others}. A low energy means likely."
    # Densities give some outsiders energies so high that nothing else could be told apart beside them.
    known = np.concatenate([energies[name] for name in ("training", "held out", "drawn")])
    highest = known.max() + 2 * np.ptp(known)
    if max(values.max() for values in energies.values()) > highest + 10 * np.ptp(known):
        energies = {name: values.clip(None, highest) for name, values in energies.items()}
        text += f" Energies above {highest:.4g} are shown as that."
    figure = go.Figure()
    for name, values in energies.items():
        figure.add_violin(y=values, name=name, points=False, showlegend=False)
    figure.update_yaxes(title="energy")
    return Card("Likely and unlikely", text, [charts.styled(figure, 360)])


def _training(run: GeneratorRun) -> list[Card]:
    texts = {
        ("loss", "generator loss"): (
            "The loss of each player. Neither need fall: the players pull against each other."
        ),
        ("energy of data", "energy of draws", "margin"): (
            "The energies of data and of draws in the last batch of each epoch, and the margin above which draws "
            "are left alone, where it moves."
        ),
        ("loss", "validation"): (
            "The loss of the autoencoder, a bound on -log p in nats, on training data and on data held out of the "
            "training; the weights that were best there are kept."
        ),
        ("energy gap", "loss"): (
            "The energy on top of it: energies of the data minus those of the chains. They should stay near 0, as "
            "they do where chains lie where the data do."
        ),
        ("convergence", "k"): (
            "BEGAN's measure of convergence, which should fall, and the weight of the draws, k, which should come "
            "to rest between 0 and 1."
        ),
    }
    figures, shown = [], []
    for part in run.model.history_.parts.values() or [run.model.history_]:
        for names, text in texts.items():
            present = [e for e in part.epochs if all(name in e for name in names[:2])]
            if not present:
                continue
            lines: dict[str, Sequence[float]] = {
                name: [e[name] for e in present] for name in names if all(name in e for e in present)
            }
            figures.append(charts.curves([e["epoch"] for e in present], lines, ("epoch", ""), None))
            shown.append(text)
    return [Card("Training", " ".join(shown), figures, notes=run.figures["remarks"])] if figures else []


def _scores(run: GeneratorRun) -> Card:
    rows = [[name, f"{value:.4g}"] for name, value in run.figures["scores"].items()]
    space = "20 principal components at most" + ("" if run.shape else " of the standardised columns")
    return Card(
        "Figures", f"The Frechet distance is computed in the space of {space}.", head=["figure", ""], rows=rows
    )
