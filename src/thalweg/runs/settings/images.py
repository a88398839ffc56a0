"""``thalweg fit images``: its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thalweg.objectives.names import IMAGES
from thalweg.runs.settings.base import RunSettings, Verb, option


@dataclass(frozen=True, kw_only=True)
class ImageSettings(RunSettings):
    """Fit an energy of images that generates, completes and detects outliers, and measure it on held-out images.

    The subfolders of a folder are labels, and so are the numbers in an .npz. After Ctrl-C,
    `thalweg fit images --resume --out RUN` continues the run.
    """

    task = "images"
    title = "energy of images"
    help = "Fit an energy of images, with labels or without."
    example = "thalweg fit images pictures/ --out runs/pictures"
    data_help = "Folder of pictures, or an .npz."
    data_name = "IMAGES"
    run = "thalweg.runs.images:ImageRun"
    report = "thalweg.report.images"
    verbs: ClassVar = {
        "sample": Verb(("n", "seed"), "{run} -n 100 --out new.npz"),
        "score": Verb((), "{run} IMAGES --out scores.csv"),
    }
    needs_test_rows = True

    labels: bool = option(True, "Whether to use the labels, if there are any.", flags=("--labels/--no-labels",))
    objective: str = option(
        "matching",
        "How the energy learns: matching (its gradient carries noise to the images), chains (contrastive "
        "divergence), or improved-chains (with the term that this leaves out).",
        choices=IMAGES,
    )
    steps: int = option(3000, "Number of updates.", least=1)
    snapshots: int = option(
        1, "Number of snapshots of the weights, taken along the training, whose energies are averaged.", least=1
    )
