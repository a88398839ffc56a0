"""Makes the saved models that the tests load: one of each kind, tiny, with what it answered when it was made.

Run it once for each released format of models, and never again for an old one: these must keep loading.
"""

import json
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits, load_iris

from thalweg import (
    DeepBeliefClassifier,
    DeepBeliefNetwork,
    DeepBoltzmannMachine,
    EnergyClassifier,
    EnergyDensity,
    EnergyDetector,
    EnergyForecaster,
    EnergyGAN,
    EnergyRanker,
    EnergyRegressor,
    EnergySequenceTagger,
    EnergyVAE,
    ImageEBM,
    IncrementalClassifier,
    RestrictedBoltzmannMachine,
)

ROWS = load_iris().data[::3]
BITS = (ROWS.mean(0) < ROWS).astype(float)
IMAGES = (load_digits().images[:40] / 16).astype(np.float32)[:, None]
WAVES = [np.sin(np.arange(30) * rate)[:, None] for rate in (0.5, 0.6, 0.7, 0.8)]
SEQUENCES = [["the", "dog", "barks"], ["a", "cat"], ["the", "cat", "sleeps"]] * 4
TAGS = [["D", "N", "V"], ["D", "N"], ["D", "N", "V"]] * 4
TINY = {"n_members": 2, "hidden": (4,), "max_epochs": 2, "random_state": 0}
MACHINE = {"max_epochs": 2, "random_state": 0}

# Of each: how it is made, and what it is asked.
MODELS = {
    "regressor": (lambda: EnergyRegressor(**TINY).fit(ROWS[:, :3], ROWS[:, 3]), lambda m: m.predict(ROWS[:5, :3])),
    "regressor-nce": (
        lambda: EnergyRegressor("nce", n_samples=8, **TINY).fit(ROWS[:, :3], ROWS[:, 3]),
        lambda m: m.predict(ROWS[:5, :3]),
    ),
    "energy-classifier": (
        lambda: EnergyClassifier(**TINY).fit(ROWS, load_iris().target[::3]), lambda m: m.predict_proba(ROWS[:5])
    ),
    "tagger": (
        lambda: EnergySequenceTagger(hidden=(4,), max_epochs=2, random_state=0).fit(SEQUENCES, TAGS),
        lambda m: np.concatenate(m.predict_marginals(SEQUENCES)),
    ),
    "ranker": (
        lambda: EnergyRanker(**TINY).fit(ROWS, load_iris().target[::3], np.arange(50) % 10),
        lambda m: m.predict(ROWS[:5]),
    ),
    "density": (lambda: EnergyDensity(**TINY).fit(ROWS), lambda m: m.score_samples(ROWS[:5])),
    "density-dsm": (lambda: EnergyDensity("dsm", **TINY).fit(ROWS), lambda m: m.score_samples(ROWS[:5])),
    "detector": (
        lambda: EnergyDetector(n_folds=3, random_state=0).fit(ROWS),
        lambda m: np.concatenate(
            [m.score_samples(ROWS[:5] + 0.1), m.p_values(ROWS[:5]), m.score_columns(ROWS[:1])[0]]
        ),
    ),
    "incremental": (
        lambda: IncrementalClassifier().fit(ROWS, load_iris().target_names[load_iris().target[::3]]),
        lambda m: np.c_[m.predict_proba(ROWS[:5]), m.energies(ROWS[:5]), m.score_samples(ROWS[:5])],
    ),
    "images": (
        lambda: ImageEBM(hidden=(8,), max_steps=2, n_steps=2, buffer_size=20, batch_size=20, random_state=0).fit(
            IMAGES, load_digits().target[:40]
        ),
        lambda m: m.score_samples(IMAGES[:5]),
    ),
    "gan-images": (
        lambda: EnergyGAN("magan", hidden=(4,), generator_hidden=(4,), max_steps=20, random_state=0).fit(IMAGES),
        lambda m: m.score_samples(IMAGES[:5]),
    ),
    "gan-table": (
        lambda: EnergyGAN(hidden=(4,), generator_hidden=(4,), max_steps=20, random_state=0).fit(ROWS),
        lambda m: np.concatenate([m.score_samples(ROWS[:5]), m.sample(2, random_state=0).ravel()]),
    ),
    "vae-images": (
        lambda: EnergyVAE(hidden=(4,), max_steps_pretraining=5, max_steps=0, random_state=0).fit(IMAGES),
        lambda m: m.score_samples(IMAGES[:5]),
    ),
    "vae-table": (
        lambda: EnergyVAE(hidden=(4,), max_steps_pretraining=5, max_steps=2, n_steps=2, random_state=0).fit(ROWS),
        lambda m: np.concatenate([m.score_samples(ROWS[:5]), m.sample(2, random_state=0).ravel()]),
    ),
    "forecaster": (
        lambda: EnergyForecaster(stretch=3, n_members=2, hidden=(4,), max_steps=5, random_state=0).fit(WAVES),
        lambda m: np.concatenate([m.score_samples(WAVES), m.sample(WAVES[0], 4, random_state=0).ravel()]),
    ),
    "restricted": (
        lambda: RestrictedBoltzmannMachine(3, **MACHINE).fit(BITS), lambda m: m.score_samples(BITS[:5])
    ),
    "deep": (
        lambda: DeepBoltzmannMachine((3, 2), max_epochs_pretraining=1, **MACHINE).fit(BITS),
        lambda m: m.score_samples(BITS[:5]),
    ),
    "belief": (
        lambda: DeepBeliefNetwork((3, 3), max_epochs_pretraining=1, **MACHINE).fit(BITS),
        lambda m: m.transform(BITS[:5]),
    ),
    "classifier": (
        lambda: DeepBeliefClassifier((3,), max_epochs_pretraining=1, **MACHINE).fit(BITS, load_iris().target[::3]),
        lambda m: m.predict_proba(BITS[:5]),
    ),
}  # fmt: skip


def make(folder: Path) -> None:
    for name, (build, ask) in MODELS.items():
        model = build()
        model.save(folder / name, extra={"class": type(model).__name__})
        (folder / name / "answers.json").write_text(json.dumps(np.asarray(ask(model)).tolist()) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
