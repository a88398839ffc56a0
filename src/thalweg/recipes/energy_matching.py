"""Energy matching on images, beside chains and beside the Gaussians where it starts, under the same judges."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from thalweg.data.images import Images, outliers
from thalweg.estimators.images import ImageEBM
from thalweg.evaluation.image_judges import ImageJudges
from thalweg.recipes.base import Figure, Recipe, Result, Settings
from thalweg.recipes.igebm import LARGE, SMALL, images_for, in_columns, wall

N_SAMPLES = 500
QUICK: dict[str, Any] = {"max_steps": 20, "hidden": (32,), "width": 4, "n_paired": 100, "n_steps": 3}
# Wide convolutions and the published batch, rate and updates, in half precision; for a GPU.
PAPER_SCALE: dict[str, Any] = {
    "network": "convolutional", "width": 128, "batch_size": 512, "n_paired": 4096, "learning_rate": 1.2e-3,
    "max_steps": 145_000, "ema_decay": 0.9999, "device": "auto",
    "precision": "bf16-mixed",
}  # fmt: skip


def run(settings: Settings) -> Result:
    started = time.monotonic()
    train, test, others, name = images_for(settings)
    assert train.labels is not None
    assert test.labels is not None
    n = 60 if settings.quick else N_SAMPLES
    judges = ImageJudges(train.pixels, train.labels, test.pixels)
    labels = np.arange(n) % (int(train.labels.max()) + 1)
    figures: dict[str, list[float]] = {}
    pictures: dict[str, Any] = {}
    notes = [
        f"Images: {name}, {len(train.pixels)} to train on, {len(test.pixels)} to test with, {n} new ones judged.",
        "The Gaussians have the mean and the covariances of their class, blurred by noise of 0.3: where the flow "
        "starts, and what it must improve on. Chains are trained for the first seed alone.",
    ]

    def told(who: str, found: dict[str, float]) -> None:
        for key, value in found.items():
            figures.setdefault(f"{who}: {key}", []).append(value)
        settings.tell(f"seed {seed}, {who}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()))

    for seed in settings.seeds:
        told("test images", judges.judge(test.pixels[:n], test.labels[:n]))
        # Chains, which take as long again, only for comparison.
        for objective in ("matching", "chains") if seed == settings.seeds[0] else ("matching",):
            begun, clock = time.process_time(), time.monotonic()
            model = _model(settings, train, objective, seed)
            model.fit(train.pixels, train.labels, resolution=train.resolution)
            seconds, clock = time.process_time() - begun, time.monotonic() - clock
            if objective == "matching":
                starts = model.starts(n, labels=labels, random_state=seed)
                told("Gaussians", judges.judge(starts, labels))
            begun = time.process_time()
            fresh = model.sample(n, labels=labels, random_state=seed)
            found = judges.judge(fresh, labels)
            found |= {"training, CPU seconds": seconds, "sampling, CPU seconds": time.process_time() - begun}
            if settings.paper_scale:
                found |= _throughput(model, clock)
            found |= _uses(model, train, test, others, judges, seed)
            told(objective, found)
            notes += [f"seed {seed}, {objective}: {event}" for event in model.history_.events]
            if seed == settings.seeds[0]:
                pictures |= _pictures(model, train, test, fresh, objective)
    bounds = {} if settings.quick else _targets(figures, 2.0 if train.pixels.shape[1] == 3 else 1.5)
    rows = [Figure(key, values, *bounds.get(key, (None, True))) for key, values in figures.items()]
    return Result(rows, pictures, notes, time.monotonic() - started)


def _targets(figures: dict[str, list[float]], times: float) -> dict[str, tuple[float, bool]]:
    """What the new images must reach: so many times the distance of the test images, for one."""
    mean = {key: float(np.mean(values)) for key, values in figures.items()}
    distances = ("Frechet distance, components", "Frechet distance, features")
    return {
        **{f"matching: {name}": (times * mean[f"test images: {name}"], True) for name in distances},
        "matching: right class": (0.95 * mean["test images: right class"], False),
        "matching: completion, squared error": (mean["matching: the same by class means"], True),
        "matching: training, CPU seconds": (600.0, True),
    }


def _model(settings: Settings, train: Images, objective: str, seed: int) -> ImageEBM:
    chosen: dict[str, Any] = {"objective": objective, "random_state": seed}
    if objective == "chains":
        chosen |= SMALL | (LARGE if train.pixels[0].size > 256 else {}) | {"n_snapshots": 1}
    elif settings.paper_scale:
        chosen |= PAPER_SCALE
    return ImageEBM(**(chosen | (QUICK | {"buffer_size": 200} if settings.quick else {})))


def _throughput(model: ImageEBM, seconds: float) -> dict[str, float]:
    """Images that were learned from in a second, and the most memory that a GPU gave for it."""
    found = {"images a second": model.max_steps * model.batch_size / seconds}
    if torch.cuda.is_available():
        found["memory of the GPU, GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def _uses(
    model: ImageEBM, train: Images, test: Images, others: dict[str, np.ndarray], judges: ImageJudges, seed: int
) -> dict[str, float]:
    """Completing, cleaning, crossing over, classifying, and knowing outsiders."""
    assert train.labels is not None
    assert test.labels is not None
    rng, n_labels = np.random.RandomState(seed), model.n_labels_
    some = test.rows(slice(0, 200))
    assert some.labels is not None
    half = some.pixels.shape[2] // 2
    known = _upper_half(some)
    drawn = model.impute(some.pixels, known=known, labels=some.labels, n_draws=8, random_state=seed)
    means = np.stack([train.pixels[train.labels == k].mean(0) for k in range(n_labels)])[some.labels]
    lower = np.s_[..., half:, :]
    noisy, hit = some.pixels.copy(), rng.uniform(size=some.pixels.shape)
    noisy[hit < 0.05], noisy[hit > 0.95] = 0.1, 0.9
    clean = model.denoise(noisy, labels=some.labels, random_state=seed)
    goal = (some.labels + rng.randint(1, n_labels, len(some.labels))) % n_labels
    crossed = model.sample(len(goal), labels=goal, start=some.pixels, random_state=seed)
    found = {
        "completion, squared error": float(np.square(drawn.mean(0) - some.pixels)[lower].mean()),
        "the same by class means": float(np.square(means - some.pixels)[lower].mean()),
        "completion, standard deviation of a pixel": float(drawn[lower].std(0).mean()),
        "denoising, squared error over the noisy image's": float(
            np.square(clean - some.pixels).mean() / np.square(noisy - some.pixels).mean()
        ),
        "from one class to another": float((judges.classes(crossed) == goal).mean()),
        "test images of lowest energy under their own label": float(
            (model.energies(test.pixels).argmin(1) == test.labels).mean()
        ),
    }
    inside = model.score_samples(test.pixels)
    for kind, images in {**outliers(test.pixels, len(test.pixels), rng), **others}.items():
        truth = np.r_[np.ones(len(inside)), np.zeros(len(images))]
        found[f"AUROC, {kind}"] = float(roc_auc_score(truth, np.r_[inside, model.score_samples(images)]))
    return found


def _upper_half(images: Images) -> np.ndarray:
    known = np.zeros((1, *images.pixels.shape[2:]), bool)
    known[:, : images.pixels.shape[2] // 2] = True
    return known


def _pictures(model: ImageEBM, train: Images, test: Images, fresh: np.ndarray, objective: str) -> dict[str, Any]:
    some, n_labels, known = test.rows(slice(0, 16)), model.n_labels_, _upper_half(test)
    drawn = model.impute(some.pixels, known=known, labels=some.labels, n_draws=3, random_state=0)
    rows = [some.pixels, np.where(known, some.pixels, 0.5), *drawn]
    found = {
        f"New images by {objective}, one class in each column": wall(fresh[: 10 * n_labels], n_labels),
        f"Completion by {objective}: truth, what is known, three completions": wall(np.concatenate(rows), 16),
    }
    if objective == "matching":
        starts = model.starts(5 * n_labels, random_state=0)
        found["Where they start: draws from the Gaussians"] = wall(starts, n_labels)
        found["Training images"] = wall(in_columns(train, 5), n_labels)
    return found


RECIPE = Recipe(
    name="energy-matching",
    title="An energy of images whose gradient carries Gaussians to the data, beside one trained by chains",
    source="Balcerak et al., Energy Matching: Unifying Flow Matching and Energy-Based Models (2025)",
    run=run,
    minutes=8,
)
