"""All generators of images of the library under one budget of CPU time and the same judges.

    .venv/bin/python benchmarks/generators.py --seeds 3
    .venv/bin/python benchmarks/generators.py --seeds 1 --seconds 300 --data mnist_12k.npz

Each is trained at its defaults, for as many updates as one thread makes in the budget, by the speed of a short
training; the checks after a training are not of the budget. Judged are 500 new images of each: Frechet distances
in 20 principal components and in the features of a small classifier, precision and recall, the distance to the
nearest training image over that of held-out images (well below 1 is copying), and how many classes the classifier
finds. Beside them stand the held-out images and draws from a Gaussian of each class. Without --data the images are
scikit-learn's digits.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from thalweg import DeepBeliefNetwork, EnergyGAN, EnergyVAE, ImageEBM, RestrictedBoltzmannMachine
from thalweg.data.images import Images, digits, read_split
from thalweg.evaluation.image_judges import ImageJudges
from thalweg.training import DivergenceError, loop

N_JUDGED = 500
# Draws that are nearer to training images than this, over the distance of held-out ones, are copies.
_COPYING, _COPIES = "distance to the nearest training image, over that of held-out ones", 0.5
# The part of its default updates from which on the speed of a training is measured.
SHORT = 0.02
# Of a generator: an estimator that trains for a multiple of its default updates, what it is fitted to, and draws.
Make = Callable[[float, int], Any]
Draw = Callable[[Any, int, int], np.ndarray]


class Generator(NamedTuple):
    """One row of the table.

    Attributes:
        make: the estimator, from a multiple of its default updates and a seed.
        draw: n images, from the fitted estimator, n and a seed.
        by_labels: whether it learns from labels.
        flat: "grey" or "black and white" where it learns from rows of pixels.
    """

    make: Make
    draw: Draw = lambda model, n, seed: model.sample(n, random_state=seed)
    by_labels: bool = False
    flat: str = ""

    def fitted(self, images: Images, times: float, seed: int) -> Any:
        model = self.make(times, seed)
        if self.by_labels:
            return model.fit(images.pixels, images.labels, resolution=images.resolution)
        return model.fit(_flat(images, self.flat) if self.flat else images.pixels)


def of_energy(objective: str) -> Generator:
    def make(times: float, seed: int) -> ImageEBM:
        steps = max(1, round(3000 * times))
        return ImageEBM(objective=objective, max_steps=steps, n_threads=1, random_state=seed)

    return Generator(make, by_labels=True)


def of_gan(kind: str, n_steps: int | None = None, **how: Any) -> Generator:
    def make(times: float, seed: int) -> EnergyGAN:
        steps = max(1, round(12_000 * times))
        return EnergyGAN(kind, max_steps=steps, n_threads=1, random_state=seed, **how)

    return Generator(make, lambda model, n, seed: model.sample(n, random_state=seed, n_steps=n_steps))


def of_autoencoder(with_energy: bool) -> Generator:
    def make(times: float, seed: int) -> EnergyVAE:
        first, second = (max(1, round(n * times)) for n in (4000, 1500))
        return EnergyVAE(
            max_steps_pretraining=first, max_steps=second if with_energy else 0, n_threads=1, random_state=seed
        )

    return Generator(make)


def of_machine(make: Callable[[int, int], Any], default: int, flat: str) -> Generator:
    """Shown are the means of the pixels given the hidden units of a draw, not draws of every pixel."""

    def draw(model: Any, n: int, seed: int) -> np.ndarray:
        means = model.reconstruct(model.sample(n, random_state=seed))
        side = round(means.shape[1] ** 0.5)
        return means.reshape(n, 1, side, side).astype(np.float32)

    return Generator(lambda times, seed: make(max(1, round(default * times)), seed), draw, flat=flat)


def restricted(n_epochs: int, seed: int) -> RestrictedBoltzmannMachine:
    return RestrictedBoltzmannMachine(256, max_epochs=n_epochs, n_threads=1, random_state=seed)


def belief(n_epochs: int, seed: int) -> DeepBeliefNetwork:
    return DeepBeliefNetwork(
        (256, 256), max_epochs_pretraining=n_epochs, max_epochs=2 * n_epochs, n_threads=1, random_state=seed
    )


GENERATORS: dict[str, Generator] = {
    "energy matching": of_energy("matching"),
    "chains (IGEBM)": of_energy("chains"),
    "improved chains": of_energy("improved-chains"),
    "VAE": of_autoencoder(False),
    "VAE and an energy (VAEBM)": of_autoencoder(True),
    "VERA": of_gan("vera"),
    "GEBM": of_gan("gebm"),
    "EBGAN": of_gan("ebgan"),
    "EBGAN without pulling away": of_gan("ebgan", pulling_away=0.0),
    "MAGAN": of_gan("magan"),
    "BEGAN": of_gan("began"),
    "GAN": of_gan("gan"),
    "GAN with latent chains (DDLS)": of_gan("gan", n_steps=100),
    "restricted Boltzmann machine": of_machine(restricted, 100, "grey"),
    "deep belief network": of_machine(belief, 50, "black and white"),
}


def _flat(images: Images, how: str) -> np.ndarray:
    rows = images.pixels.reshape(len(images.pixels), -1).astype(np.float64)
    return rows if how == "grey" else (rows > 0.5).astype(np.float64)


def within(generator: Generator, images: Images, seconds: float) -> float:
    """How many times its default updates a generator makes in a budget of CPU time."""
    times = SHORT
    # The checks after a training are not of the budget.
    while (spent := generator.fitted(images, times, 0).history_.seconds) < seconds / 20:
        times *= 4
    return times * seconds / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds for the updates of each training")
    parser.add_argument("--data", type=Path, help=".npz with X_train, y_train, X_test, y_test")
    parser.add_argument("--kinds", default=",".join(GENERATORS))
    parser.add_argument("--out", type=Path, default=Path("generators.json"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    # Histories count CPU seconds, which other work on the machine does not change.
    loop.time = SimpleNamespace(monotonic=time.process_time)  # type: ignore[assignment]
    train, test = digits() if arguments.data is None else read_split(arguments.data)
    train, test = train.rows(slice(0, 10_000)), test.rows(slice(0, N_JUDGED))
    judges = ImageJudges(train.pixels, train.labels, test.pixels)
    found = [{"generator": "held-out images", "seed": 0} | judges.judge(test.pixels)]
    chosen = arguments.kinds.split(",")
    times = {}
    for name in chosen:
        times[name] = within(GENERATORS[name], train, arguments.seconds)
        print(f"{name}: {times[name]:.3g} of the default updates", flush=True)
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for name in chosen:
            start = time.process_time()
            try:
                model = GENERATORS[name].fitted(train, times[name], seed)
            except (ValueError, DivergenceError) as error:
                found.append({"generator": name, "seed": seed, "failed": str(error)})
                continue
            trained = time.process_time()
            images = GENERATORS[name].draw(model, N_JUDGED, seed)
            entry = {"generator": name, "seed": seed} | judges.judge(images)
            entry |= {
                "training": model.history_.seconds,
                "with checks": trained - start,
                "drawing": time.process_time() - trained,
            }
            found.append(entry | {"verdict": model.verdict_.state})
            if name == "energy matching":
                starts = model.starts(N_JUDGED, random_state=seed)
                found.append({"generator": "Gaussians of the classes", "seed": seed} | judges.judge(starts))
            print(json.dumps(found[-1]), flush=True)
            arguments.out.write_text(json.dumps(found, indent=1))
    show(found)


def show(found: list[dict[str, Any]]) -> None:
    figures = [key for key in found[0] if key not in ("generator", "seed")]
    table = Table(
        "generator", *figures, "training, CPU s", "and checks", "drawing, CPU s", "verdicts", "collapsed, and told"
    )
    for name in dict.fromkeys(entry["generator"] for entry in found):
        own = [entry for entry in found if entry["generator"] == name]
        cells = [
            " ".join(f"{entry[key]:.3g}" if key in entry else "failed" for entry in own)
            for key in (*figures, "training", "with checks", "drawing")
            if any(key in entry for entry in own)
        ]
        verdicts = " ".join(entry.get("verdict", "") for entry in own)
        table.add_row(name, *cells, *([""] * (len(figures) + 3 - len(cells))), verdicts, _told(own, found[0]))
    Console(width=200).print(table)


def _told(own: list[dict[str, Any]], held_out: dict[str, Any]) -> str:
    """How many trainings lost classes or copied, and of how many of those the verdict says something."""
    if not any("verdict" in entry for entry in own):
        return ""
    lost = [e for e in own if e["classes"] < held_out["classes"] or e[_COPYING] < _COPIES]
    return f"{len(lost)} of {len(own)}, {sum(e['verdict'] != 'passed' for e in lost)}"


if __name__ == "__main__":
    main()
