"""All generators of images of the library, at their defaults, under the same judges.

    .venv/bin/python benchmarks/generators.py --seeds 3
    .venv/bin/python benchmarks/generators.py --seeds 1 --data mnist_12k.npz

Judged are 500 new images of each: Frechet distances in 20 principal components and in the features of a small
classifier, precision and recall, the distance to the nearest training image over that of held-out images (well
below 1 is copying), and how many classes the classifier finds. Beside them stand the held-out images and draws
from a Gaussian of each class. Without --data the images are scikit-learn's digits.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from thalweg import EnergyGAN, ImageEBM, RestrictedBoltzmannMachine
from thalweg.data.images import Images, digits, read_split
from thalweg.evaluation.image_judges import ImageJudges

N_JUDGED = 500
# Of a generator: its model, fitted, and what draws n images from it.
Fitted = tuple[Any, Callable[[int], np.ndarray]]


def of_energy(objective: str) -> Callable[[Images, int], Fitted]:
    def fit(images: Images, seed: int) -> Fitted:
        model = ImageEBM(objective=objective, n_threads=1, random_state=seed)
        model.fit(images.pixels, images.labels, resolution=images.resolution)
        return model, lambda n: model.sample(n, random_state=seed)

    return fit


def of_gan(kind: str, n_steps: int = 0, **how: Any) -> Callable[[Images, int], Fitted]:
    def fit(images: Images, seed: int) -> Fitted:
        model = EnergyGAN(kind, n_threads=1, random_state=seed, **how).fit(images.pixels)
        return model, lambda n: model.sample(n, random_state=seed, n_steps=n_steps)

    return fit


def of_machine(images: Images, seed: int) -> Fitted:
    """Shown are the means of the pixels given the hidden units of a draw, not black and white draws."""
    flat = images.pixels.reshape(len(images.pixels), -1).astype(np.float64)
    model = RestrictedBoltzmannMachine(256, n_threads=1, random_state=seed).fit(flat)

    def draw(n: int) -> np.ndarray:
        means = model.reconstruct(model.sample(n, random_state=seed))
        return means.reshape(n, *images.pixels.shape[1:]).astype(np.float32)

    return model, draw


GENERATORS: dict[str, Callable[[Images, int], Fitted]] = {
    "energy matching": of_energy("matching"),
    "chains (IGEBM)": of_energy("chains"),
    "EBGAN": of_gan("ebgan"),
    "EBGAN without pulling away": of_gan("ebgan", pulling_away=0.0),
    "MAGAN": of_gan("magan"),
    "BEGAN": of_gan("began"),
    "GAN": of_gan("gan"),
    "GAN, 100 steps in latent space (DDLS)": of_gan("gan", n_steps=100),
    "restricted Boltzmann machine": of_machine,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, help=".npz with X_train, y_train, X_test, y_test")
    parser.add_argument("--kinds", default=",".join(GENERATORS))
    parser.add_argument("--out", type=Path, default=Path("generators.json"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    train, test = digits() if arguments.data is None else read_split(arguments.data)
    train, test = train.rows(slice(0, 10_000)), test.rows(slice(0, N_JUDGED))
    judges = ImageJudges(train.pixels, train.labels, test.pixels)
    found = [{"generator": "held-out images", "seed": 0} | judges.judge(test.pixels)]
    for seed in range(arguments.seeds):
        for name in arguments.kinds.split(","):
            start = time.process_time()
            try:
                model, draw = GENERATORS[name](train, seed)
            except ValueError as error:
                found.append({"generator": name, "seed": seed, "failed": str(error)})
                continue
            trained = time.process_time()
            images = draw(N_JUDGED)
            entry = {"generator": name, "seed": seed} | judges.judge(images)
            entry |= {"training": trained - start, "drawing": time.process_time() - trained}
            found.append(entry | {"verdict": model.verdict_.state})
            if name == "energy matching":
                starts = model.starts(N_JUDGED, random_state=seed)
                found.append({"generator": "Gaussians of the classes", "seed": seed} | judges.judge(starts))
            print(json.dumps(found[-1]), flush=True)
            arguments.out.write_text(json.dumps(found, indent=1))
    show(found)


def show(found: list[dict[str, Any]]) -> None:
    figures = [key for key in found[0] if key not in ("generator", "seed")]
    table = Table("generator", *figures, "training, CPU s", "drawing, CPU s", "verdicts")
    for name in dict.fromkeys(entry["generator"] for entry in found):
        own = [entry for entry in found if entry["generator"] == name]
        cells = [
            " ".join(f"{entry[key]:.3g}" if key in entry else "failed" for entry in own)
            for key in (*figures, "training", "drawing")
            if any(key in entry for entry in own)
        ]
        verdicts = " ".join(entry.get("verdict", "") for entry in own)
        table.add_row(name, *cells, *([""] * (len(figures) + 2 - len(cells))), verdicts)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
