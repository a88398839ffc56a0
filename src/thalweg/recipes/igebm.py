"""Implicit generation with an energy of images: one model that generates, completes, denoises and detects."""

from __future__ import annotations

import copy
import time
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from thalweg.data.images import Images, cifar10, digits, outliers, read_split, tile
from thalweg.data.rendered import render_heads
from thalweg.energies.labelled import LabelledEnsemble
from thalweg.estimators.images import ImageEBM
from thalweg.evaluation.generation import copying_ratio, frechet_distance, pca_features, precision_recall
from thalweg.evaluation.likelihood import annealed_likelihood
from thalweg.recipes.base import Figure, Recipe, Result, Settings, archive_in

N_SAMPLES = 1500
N_SNAPSHOTS = 5
# Of the likelihood of digits: the best of 0.02 to 0.06 for 200 training images held out of a training of its own.
TEMPERATURE = 0.03


def run(settings: Settings) -> Result:
    started = time.monotonic()
    train, test, others, name = images_for(settings)
    figures: dict[str, list[float]] = {}
    pictures: dict[str, Any] = {}
    notes = [
        f"Images: {name}, {len(train.pixels)} to train on, {len(test.pixels)} to test with.",
        "An AUROC of training against test images above 1/2 says that the former have the lower energy: the "
        "network knows some of them by heart.",
        "The energy is that of the last weights; where snapshots are named it is the mean of theirs.",
    ]
    for seed in settings.seeds:
        model = _model(settings, train, seed).fit(train.pixels, train.labels, resolution=train.resolution)
        found, shown = _measure(model, train, test, others, seed, settings)
        if name == "digits":
            found |= _likelihood(_last(model), train, test, seed, settings)
        for key, value in found.items():
            figures.setdefault(key, []).append(value)
        notes += [f"seed {seed}: {event}" for event in model.history_.events]
        settings.tell(f"seed {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()))
        pictures = pictures or shown | {"Training": _curve(model)}
    bound = TARGETS if name == "digits" and not settings.quick else {}
    rows = [Figure(k, v, *bound.get(k, (None, True))) for k, v in figures.items()]
    return Result(rows, pictures, notes, time.monotonic() - started)


# Figure: (target, whether it is an upper bound); for the digits.
TARGETS: dict[str, tuple[float, bool]] = {
    "Frechet distance, chains of the buffer": (0.1, True),
    "Frechet distance, fresh chains": (0.3, True),
    "fresh chains of the right class (share)": (0.9, False),
    "classes among fresh chains": (10.0, False),
    "completion of the lower half, squared error": (0.045, True),
    "denoising, squared error over the noisy image's (ratio)": (0.85, True),
    "start in one class, sample another (share)": (0.7, False),
    "AUROC, uniform noise": (0.99, False),
    "AUROC, shuffled": (0.99, False),
    "AUROC, constant": (0.99, False),
    "updates that diverged": (0.0, True),
}


def images_for(settings: Settings) -> tuple[Images, Images, dict[str, np.ndarray], str]:
    """The images, images of other things, and what the former are called."""
    others: dict[str, np.ndarray] = {}
    n_train: int | None
    if settings.data is not None:
        path = archive_in(settings.data)
        (train, test), name, n_train = read_split(path), path.name, 10_000
    elif settings.paper_scale:
        (train, test), name, n_train = cifar10(), "CIFAR-10", None
    else:
        (train, test), name, n_train = digits(), "digits", None
        heads = render_heads(200, 0, size=32).images.reshape(200, 1, 8, 4, 8, 4).mean((3, 5)).clip(0, 1)
        others["other images: heads"] = heads.astype(np.float32)
    if train.labels is None or test.labels is None:
        raise ValueError(f"the images of {name} have no labels (y_train, y_test)")
    train = train.rows(slice(0, 300 if settings.quick else n_train))
    test = test.rows(slice(0, 60 if settings.quick else 500))

    shape = train.pixels.shape[1:]
    others["textures: photographs"] = _patches(shape, 200, np.random.RandomState(0))
    for label, file in (("other images: clothes", "fashion_mnist_8k"), ("textures: brick", "textures_28")):
        if settings.data is not None and (path := settings.data / f"{file}.npz").exists():
            found = read_split(path)[1].pixels[:300]
            if found.shape[1:] == shape:
                others[label] = found
    return train, test, others, name


def _patches(shape: tuple[int, ...], n: int, rng: np.random.RandomState) -> np.ndarray:
    """Patches of the two photographs that scikit-learn ships, at a quarter of their size, grey or in colour."""
    from sklearn.datasets import load_sample_images

    channels, height, width = shape
    out = []
    for photo in load_sample_images().images:
        pixels = photo.transpose(2, 0, 1) / 255
        pixels = pixels.mean(0, keepdims=True) if channels == 1 else pixels
        for _ in range(n // 2):
            i, j = rng.randint(pixels.shape[1] - 4 * height), rng.randint(pixels.shape[2] - 4 * width)
            patch = pixels[:, i : i + 4 * height, j : j + 4 * width]
            out.append(patch.reshape(channels, height, 4, width, 4).mean((2, 4)))
    return np.stack(out).astype(np.float32)


SMALL: dict[str, Any] = {"objective": "chains", "hidden": (256, 256), "n_snapshots": N_SNAPSHOTS}
# For more than 256 numbers in an image.
LARGE: dict[str, Any] = {"hidden": (512, 512), "energy_l2": 0.03, "max_steps": 1500}
# The published chains, buffer and rate for colour images, on three residual blocks; for a GPU.
PAPER_SCALE: dict[str, Any] = {
    "network": "residual", "width": 128, "n_blocks": 3, "n_steps": 60, "step_size": 10.0, "noise_scale": 0.005,
    "clip_grad": 0.01, "energy_l2": 1.0, "restart": 0.05, "buffer_size": 10_000, "batch_size": 128,
    "learning_rate": 3e-4, "max_steps": 100_000, "ema_decay": 0.999, "n_snapshots": 10, "device": "auto",
}  # fmt: skip
QUICK: dict[str, Any] = {
    "max_steps": 20, "hidden": (32,), "width": 4, "n_steps": 5, "buffer_size": 200, "n_snapshots": 2,
}  # fmt: skip


def _model(settings: Settings, train: Images, seed: int) -> ImageEBM:
    chosen: dict[str, Any] = {}
    if settings.paper_scale:
        chosen = PAPER_SCALE
    elif train.pixels[0].size > 256:
        chosen = LARGE
    chosen = SMALL | chosen | (QUICK if settings.quick else {})
    return ImageEBM(**chosen, random_state=seed)


def _last(model: ImageEBM) -> ImageEBM:
    """The model with the energy of the last weights alone."""
    assert isinstance(model.energy_, LabelledEnsemble)
    alone = copy.copy(model)
    alone.energy_ = model.energy_.members[-1]
    return alone


def _measure(
    ensemble: ImageEBM, train: Images, test: Images, others: dict[str, np.ndarray], seed: int, settings: Settings
) -> tuple[dict[str, float], dict[str, Any]]:
    assert test.labels is not None
    model = _last(ensemble)
    rng = np.random.RandomState(seed)
    train = train.rows(slice(0, 10_000))
    assert train.labels is not None
    n = 60 if settings.quick else N_SAMPLES
    n_steps = 20 if settings.quick else 500
    features = pca_features(train.pixels, 20)
    judge = LogisticRegression(max_iter=2000).fit(train.pixels.reshape(len(train.pixels), -1), train.labels)

    def judged(images: np.ndarray) -> np.ndarray:
        return judge.predict(images.reshape(len(images), -1))

    out: dict[str, float] = {}
    labels = np.arange(n) % model.n_labels_
    fresh = model.sample(n, random_state=seed, labels=labels, n_steps=n_steps)
    buffer = model.buffer_[0].numpy()
    out["Frechet distance, test images"] = frechet_distance(test.pixels, train.pixels, features)
    out["Frechet distance, chains of the buffer"] = frechet_distance(buffer, train.pixels, features)
    out["Frechet distance, fresh chains"] = frechet_distance(fresh, train.pixels, features)
    averaged = ensemble.sample(n, random_state=seed, labels=labels, n_steps=n_steps)
    out[f"Frechet distance, fresh chains, {ensemble.n_snapshots} snapshots"] = frechet_distance(
        averaged, train.pixels, features
    )
    out["fresh chains of the right class (share)"] = float((judged(fresh) == labels).mean())
    out["test images that the judge gets right (share)"] = float((judged(test.pixels) == test.labels).mean())
    out["classes among fresh chains"] = float(len(np.unique(judged(fresh))))
    quality = precision_recall(fresh, train.pixels)
    out["precision of fresh chains"], out["recall of fresh chains"] = quality.precision, quality.recall
    out["nearest training image, fresh over test (ratio of distances)"] = copying_ratio(
        fresh, train.pixels, test.pixels
    )

    # The lower half of the image, with 16 chains whose mean is the answer.
    height = test.pixels.shape[2]
    known = np.zeros((1, height, test.pixels.shape[3]), bool)
    known[:, : height // 2] = True
    n_filling = 200 if not settings.quick else 5
    completed = model.impute(
        test.pixels, known=known, labels=test.labels, n_draws=16, n_steps=n_filling, random_state=seed
    )
    assert (completed[:, :, :, : height // 2] == test.pixels[:, :, : height // 2]).all()
    error = (completed.mean(0) - test.pixels)[:, :, height // 2 :]
    means = np.stack([train.pixels[train.labels == k].mean(0) for k in range(model.n_labels_)])
    out["completion of the lower half, squared error"] = float((error**2).mean())
    out["the same by the mean of the class"] = float(
        ((means[test.labels] - test.pixels)[:, :, height // 2 :] ** 2).mean()
    )

    noisy = test.pixels.copy()
    hit = rng.uniform(size=noisy.shape)
    noisy[hit < 0.05], noisy[hit > 0.95] = 0.1, 0.9
    clean = model.denoise(noisy, labels=test.labels, random_state=seed)
    before = float(((noisy - test.pixels) ** 2).mean())
    out["denoising, squared error over the noisy image's (ratio)"] = (
        float(((clean - test.pixels) ** 2).mean()) / before
    )

    goal = (test.labels + rng.randint(1, model.n_labels_, len(test.labels))) % model.n_labels_
    n_crossing = 300 if not settings.quick else 5
    crossed = model.sample(len(goal), random_state=seed, labels=goal, n_steps=n_crossing, start=test.pixels)
    out["start in one class, sample another (share)"] = float((judged(crossed) == goal).mean())

    inside = model.score_samples(test.pixels)
    for kind, images in {**outliers(test.pixels, len(test.pixels), rng), **others}.items():
        truth = np.r_[np.ones(len(inside)), np.zeros(len(images))]
        score = np.r_[inside, model.score_samples(images)]
        out[f"AUROC, {kind}"] = float(roc_auc_score(truth, score))
    seen = model.score_samples(train.pixels)
    truth = np.r_[np.ones(len(seen)), np.zeros(len(inside))]
    out["AUROC, training against test images"] = float(roc_auc_score(truth, np.r_[seen, inside]))
    out["test images of lowest energy under their own label (share)"] = float(
        (model.energies(test.pixels).argmin(1) == test.labels).mean()
    )
    out["updates that diverged"] = float(model.history_.rollbacks)

    pictures = {
        "Fresh chains: one class in each column": wall(fresh[: 10 * model.n_labels_], model.n_labels_),
        "Training images, for comparison": wall(in_columns(train, 10), model.n_labels_),
        "Completion: truth, what is known, four completions": wall(
            np.concatenate([test.pixels[:16], np.where(known, test.pixels[:16], 0.5), *completed[:4, :16]]),
            16,
        ),
        "Denoising: truth, noisy, cleaned": wall(np.concatenate([test.pixels[:16], noisy[:16], clean[:16]]), 16),
        "From one class to another": wall(np.concatenate([test.pixels[:16], crossed[:16]]), 16),
    }
    return out, pictures


def _likelihood(model: ImageEBM, train: Images, test: Images, seed: int, settings: Settings) -> dict[str, float]:
    """Likelihood of test images at the temperature that was best for others; chains start near training images."""
    n_chains, n_steps = (8, 5) if settings.quick else (64, 500)
    found = annealed_likelihood(
        model.energy_.marginal(TEMPERATURE),
        test.pixels,
        TEMPERATURE,
        round(1 / test.resolution) + 1,
        train.pixels,
        n_chains,
        n_steps,
        torch.Generator().manual_seed(seed),
    )
    if found.warning is not None:
        settings.tell(f"log Z may be off by more than its error: {found.warning}")
    return {
        f"log-likelihood at T = {TEMPERATURE}, nats": found.mean,
        "the same, bits per dimension": found.bits,
        "width of its bracket, bits per dimension": found.bits_width,
        "bits per dimension of one Gaussian of the logits": found.base_bits,
    }


def in_columns(images: Images, n_rows: int) -> np.ndarray:
    """n_rows images of each label, a label in each column."""
    assert images.labels is not None
    columns = [images.pixels[images.labels == k][:n_rows] for k in np.unique(images.labels)]
    shortest = min(map(len, columns))
    return np.stack([c[:shortest] for c in columns], 1).reshape(-1, *images.pixels.shape[1:])


def wall(images: np.ndarray, n_columns: int) -> go.Figure:
    """Images side by side, grey or in colour."""
    pixels = tile(images, n_columns)
    figure = go.Figure(go.Image(z=pixels))
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    shown = 1000 * pixels.shape[0] / pixels.shape[1]
    figure.update_layout(height=int(min(1000, shown)) + 20, margin={"l": 0, "r": 0, "t": 10, "b": 10})
    return figure


def _curve(model: ImageEBM) -> go.Figure:
    epochs = model.history_.epochs
    figure = go.Figure()
    for name in ("energy gap", "energy of data"):
        figure.add_scatter(x=[e["epoch"] for e in epochs], y=[e[name] for e in epochs], name=name)
    figure.update_layout(height=300, margin={"l": 40, "r": 10, "t": 20, "b": 40}, xaxis_title="epoch")
    return figure


RECIPE = Recipe(
    name="igebm",
    title="An energy of images: generate, complete, denoise, cross over, and know outsiders",
    source="Du and Mordatch, Implicit Generation and Modeling with Energy-Based Models (2019)",
    run=run,
    minutes=6,
)
