"""Energies of images as densities: bits per dimension of test images, at the temperature that suits.

    .venv/bin/python benchmarks/image_densities.py --seeds 3

Energies by matching and by chains are no densities as they are: exp(-E / T) is normalised over the box by
annealing both ways, and T is the best for the last 200 training images by a model of the others. Autoencoders,
alone and with an energy, have a density, whose log Z comes from their draws. Beside them stand uniform and
independent pixels. The images are scikit-learn's digits, of 17 grey levels.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from thalweg import EnergyVAE, ImageEBM
from thalweg.data.images import Images, digits
from thalweg.evaluation.likelihood import AnnealedLikelihood, annealed_likelihood

TEMPERATURES = (0.3, 0.1, 0.06, 0.03)
N_KEPT_BACK = 200
# Bits per dimension, and the width of the bracket of log Z or its error.
Found = tuple[float, float]


def annealed(model: ImageEBM, images: Images, near: Images, temperature: float) -> AnnealedLikelihood:
    return annealed_likelihood(
        model.energy_.marginal(temperature),
        images.pixels,
        temperature,
        round(1 / images.resolution) + 1,
        near.pixels,
        64,
        500,
        torch.Generator().manual_seed(0),
    )


def of_energy(objective: str) -> Callable[[Images, Images, int], tuple[Found, str]]:
    def measure(train: Images, test: Images, seed: int) -> tuple[Found, str]:
        def fitted(images: Images) -> ImageEBM:
            model = ImageEBM(objective=objective, n_threads=1, random_state=seed)
            return model.fit(images.pixels, images.labels, resolution=images.resolution)

        first, kept_back = train.rows(slice(0, -N_KEPT_BACK)), train.rows(slice(-N_KEPT_BACK, None))
        trial = fitted(first)
        best = min(TEMPERATURES, key=lambda T: annealed(trial, kept_back, first, T).bits)
        found = annealed(fitted(train), test, train, best)
        return (found.bits, found.bits_width), f"T = {best:g}"

    return measure


def of_autoencoder(with_energy: bool) -> Callable[[Images, Images, int], tuple[Found, str]]:
    def measure(train: Images, test: Images, seed: int) -> tuple[Found, str]:
        how: dict[str, Any] = {} if with_energy else {"max_steps": 0}
        model = EnergyVAE(n_threads=1, random_state=seed, **how).fit(train.pixels)
        # A grey level's probability is its density, averaged over the cell, times the width of the cell.
        log_prob = model.score(test.pixels)
        per_bit = test.pixels[0].size * math.log(2)
        bits = -log_prob / per_bit - math.log2(test.resolution)
        return (bits, model.log_normaliser_error_ / per_bit), f"{log_prob:.1f} nats"

    return measure


MODELS = {
    "energy by matching": of_energy("matching"),
    "energy by chains": of_energy("chains"),
    "energy by improved chains": of_energy("improved-chains"),
    "variational autoencoder": of_autoencoder(False),
    "variational autoencoder and an energy": of_autoencoder(True),
}


def independent(train: Images, test: Images) -> float:
    """Bits of a histogram of each pixel, with one more image of every level."""
    levels = round(1 / train.resolution) + 1
    counts = np.stack([(_levels(train) == k).sum(0) + 1 for k in range(levels)])
    share = counts / counts.sum(0)
    pixel = np.arange(share.shape[1])
    return float(-np.log2(share[_levels(test), pixel]).mean())


def _levels(images: Images) -> np.ndarray:
    return np.rint(images.pixels.reshape(len(images.pixels), -1) / images.resolution).astype(int)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", default=",".join(MODELS))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    train, test = digits()
    console = Console(width=140)
    table = Table("density", "bits per dimension", "width or error", "", "CPU s")
    table.add_row("uniform pixels", f"{math.log2(round(1 / train.resolution) + 1):.3f}")
    table.add_row("independent pixels", f"{independent(train, test):.3f}")
    for name in arguments.models.split(","):
        rows = []
        for seed in range(arguments.seeds):
            begun = time.process_time()
            (bits, off), remark = MODELS[name](train, test, seed)
            rows.append((f"{bits:.3f}", f"{off:.3f}", remark, f"{time.process_time() - begun:.0f}"))
            console.print(name, seed, *rows[-1])
        table.add_row(name, *(" ".join(column) for column in zip(*rows, strict=True)))
    console.print(table)


if __name__ == "__main__":
    main()
