"""Box regression in pictures: an energy of (picture, box), refined by gradient ascent from a rough detection."""

from __future__ import annotations

import time

import numpy as np
import plotly.graph_objects as go
import torch

from thalweg.data.rendered import Scenes, box_iou, decode_box, encode_box, render_scenes
from thalweg.energies.networks import NetworkEnergy, convnet
from thalweg.objectives.base import Batch
from thalweg.recipes.base import Figure, Recipe, Result, Settings
from thalweg.recipes.box_methods import compare
from thalweg.recipes.refinement import REFINEMENTS, BoxTask, gallery, refine_boxes

N_TRAIN, N_HELD_OUT, N_TEST = 10_000, 500, 1000
N_FEATURES, WIDTH = 128, 8
# Box codes are 0.15 to 0.2 in spread; the networks see them times this.
SCALE = np.full(4, 5.0)
TASK = BoxTask(
    lambda: convnet(1, N_FEATURES, WIDTH),
    N_FEATURES,
    noise=(0.2, 0.5, 1.2),
    spread=torch.tensor([0.75, 0.75, 1.0, 1.0]),
    scale=SCALE,
)


def run(settings: Settings) -> Result:
    started = time.monotonic()
    shrink = 40 if settings.quick else 1
    iou: dict[str, list[float]] = {name: [] for name in REFINEMENTS}
    good: dict[str, list[float]] = {name: [] for name in REFINEMENTS}
    for seed in settings.seeds:
        train, held_out, test = (
            render_scenes(n // shrink, 10 * seed + k) for k, n in enumerate((N_TRAIN, N_HELD_OUT, N_TEST))
        )
        test_batch = _batch(test)

        def quality(codes: np.ndarray, held_out: Scenes = held_out) -> float:
            return float(box_iou(decode_box(codes, held_out.proposals), held_out.boxes).mean())

        codes, energy = refine_boxes(
            TASK, _batch(train), _batch(held_out), test_batch, quality, seed, settings.quick
        )
        boxes = {name: decode_box(code, test.proposals) for name, code in codes.items()}
        for name, box in boxes.items():
            overlap = box_iou(box, test.boxes)
            iou[name].append(float(overlap.mean()))
            good[name].append(float((overlap > 0.75).mean()))
        settings.tell(f"seed {seed}, mean IoU: " + ", ".join(f"{k} {v[-1]:.3f}" for k, v in iou.items()))
    gain = [a - b for a, b in zip(iou["refined"], iou["detection"], strict=True)]
    behind = [a - b for a, b in zip(iou["starts"], iou["direct"], strict=True)]
    lead = [a - b for a, b in zip(iou["direct refined"], iou["direct"], strict=True)]
    return Result(
        [
            *(Figure(f"mean IoU: {REFINEMENTS[k]}", v) for k, v in iou.items()),
            *(Figure(f"share with IoU above 0.75: {REFINEMENTS[k]}", v) for k, v in good.items()),
            Figure("mean IoU: gain on the detection by refinement", gain, 0.2, at_most=False),
            Figure("mean IoU: lowest of 10 starts refined, less direct regression", behind, -0.02, at_most=False),
            Figure("mean IoU: gain on direct regression by refinement", lead),
        ],
        {
            "Boxes: the detection (dashed), refined (green), the truth (white)": _boxes(test, boxes),
            "Where the energy puts the right edge of a box, in sight or hidden by a post": _edges(
                energy, test, test_batch
            ),
        },
        [
            "Pictures of one object, new ones in the test; in half of them a post hides one side, and the truth "
            "is the whole object's box. Refinement is 10 steps of gradient ascent on -E; its step size is chosen "
            "on held-out scenes. Direct regression has the same convnet and data, a squared error, and "
            "as many epochs as the energy and its features together: with one clear answer in most pictures it "
            "does as well."
        ],
        time.monotonic() - started,
    )


def _batch(scenes: Scenes) -> Batch:
    code = SCALE * encode_box(scenes.boxes, scenes.proposals)
    return Batch(torch.from_numpy((scenes.crops() - 0.45) / 0.25), torch.as_tensor(code, dtype=torch.float32))


def _boxes(test: Scenes, boxes: dict[str, np.ndarray], n: int = 8, size: int = 96) -> go.Figure:
    window = np.tile([0.5, 0.5, 1.0, 1.0], (len(test), 1))
    figure = gallery(test.draw(window, size)[:n, 0], 4, height=230)
    for label, shown, colour, dash in (
        ("truth", test.boxes, "white", "solid"),
        ("detection", boxes["detection"], "#ff5a4f", "dash"),
        ("refined", boxes["refined"], "#3ddc84", "solid"),
    ):
        for i, (x, y, w, h) in enumerate(shown[:n] * size - [0.5, 0.5, 0, 0]):
            figure.add_scatter(
                x=np.array([-w, w, w, -w, -w]) / 2 + x,
                y=np.array([-h, -h, h, h, -h]) / 2 + y,
                mode="lines",
                line={"color": colour, "dash": dash, "width": 2},
                name=label,
                legendgroup=label,
                showlegend=i == 0,
                row=i // 4 + 1,
                col=i % 4 + 1,
            )
    figure.update_layout(legend={"orientation": "h", "bgcolor": "#888"})
    return figure


def _edges(energy: NetworkEnergy, test: Scenes, batch: Batch) -> go.Figure:
    """The energy along one line through code space: the right edge moves, the other three stay true."""
    hidden = np.flatnonzero(
        (np.abs(test.post[:, 0] - (test.boxes[:, 0] + test.boxes[:, 2] / 2)) < test.post[:, 1])
        & (test.post[:, 1] > 0)
    )
    open_ = np.flatnonzero(test.post[:, 1] == 0)
    figure = go.Figure()
    shift = np.linspace(-0.3, 0.3, 121)
    for label, rows in (("edge hidden", hidden[:3]), ("edge in sight", open_[:3])):
        for j, i in enumerate(rows):
            box = np.tile(test.boxes[i], (len(shift), 1))
            moved = shift * box[:, 2]
            box[:, 0] += moved / 2
            box[:, 2] += moved
            code = torch.as_tensor(SCALE * encode_box(box, test.proposals[i]), dtype=torch.float32)
            with torch.no_grad():
                value = -energy.given(batch.x[i : i + 1])(code[None])[0].double()
            density = torch.softmax(value, 0).numpy() / (shift[1] - shift[0])
            colour = "#e07a1f" if label == "edge hidden" else "#2a6fbb"
            figure.add_scatter(
                x=shift, y=density, name=label, legendgroup=label, showlegend=j == 0, line={"color": colour}
            )
    figure.update_layout(
        xaxis_title="right edge less the true one (in widths of the object)",
        yaxis_title="density along the line",
        height=360,
    )
    return figure


RECIPE = Recipe(
    name="boxes-2d",
    title="Boxes of objects in pictures (R^4), refined by gradient ascent on the energy",
    source="Gustafsson et al., Energy-Based Models for Deep Probabilistic Regression (2020)",
    run=run,
    minutes=3,
    compare=lambda settings: compare(TASK, _batch, settings),
)
