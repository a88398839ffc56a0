"""A classifier's run, on a table or on images: read, hold some out, train, compare with baselines, save."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits
from torch import nn

from thalweg.data.images import Images, outliers, read_images
from thalweg.data.tables import read_cells
from thalweg.energies.labelled import FactoredEnergy
from thalweg.estimators.classifier import EnergyClassifier
from thalweg.evaluation.calibration import brier_score, expected_calibration_error
from thalweg.evaluation.class_baselines import BASELINES, Logistic
from thalweg.evaluation.robustness import robust_accuracy
from thalweg.evaluation.row_checks import check_calibration
from thalweg.evaluation.verdict import Check, check_baselines, check_classes, check_doubts, check_held_out
from thalweg.runs.base import Run, Tell, TextTable
from thalweg.runs.folder import listed
from thalweg.runs.kinds import ClassifierFigures
from thalweg.runs.labels import as_written, beside_truth, in_order, refuse_measured
from thalweg.runs.settings.classifier import ClassifierSettings
from thalweg.runs.tables import (
    MODEL_NAME,
    beside,
    doubts_of_columns,
    few_held_out,
    fingerprint_of,
    gains_of,
    model_settings,
    outlier_scores,
    places_of,
    read_typed,
    rows_of,
    scored,
    thinned,
    with_error,
)

_MOST_CLASSES = 200
_MOST_ATTACKED = 200
_MANY_CELLS = 1_000_000
MOST_SHOWN = 2000
_RADII = (0.02, 0.05, 0.1, 0.2)


@dataclass
class Rows:
    """The inputs, a table or images ``[n, C, H, W]``, and the place of each one's label, -1 where it has none."""

    X: Any
    labels: np.ndarray
    classes: list[str]
    training: np.ndarray
    test: np.ndarray
    fingerprint: str
    kinds: dict[str, str] = field(default_factory=dict)
    target_kind: str = "text"
    remarks: list[str] = field(default_factory=list)
    images: Images | None = None

    @property
    def width(self) -> int:
        """Numbers or cells in an input."""
        return int(np.prod(self.X.shape[1:]))

    def inputs(self, rows: np.ndarray) -> Any:
        return self.X.iloc[rows] if self.images is None else self.X[rows]


class ClassifierRun(Run):
    """p(label|x) and how typical x is, beside baselines on rows held out."""

    settings_class = ClassifierSettings
    figures_class = ClassifierFigures

    @property
    def is_of_images(self) -> bool:
        return self.figures["shape"] is not None

    @cached_property
    def classes(self) -> list[str]:
        """The labels, as they are written."""
        return [str(name) for name in self.figures["classes"]]

    # -- making --------------------------------------------------------------------------------------

    @classmethod
    def read(cls, settings: ClassifierSettings) -> Rows:
        return _read_images(settings) if settings.is_of_images else _read_table(settings)

    @classmethod
    def build(cls, settings: ClassifierSettings, data: Rows, verbose: bool) -> EnergyClassifier:
        return EnergyClassifier(
            settings.objective,
            n_members=settings.members,
            max_epochs=settings.epochs,
            verbose=verbose,
            **model_settings(settings),
        )

    @classmethod
    def train(cls, model: EnergyClassifier, data: Rows, settings: ClassifierSettings, **how: Any) -> None:
        model.fit(data.inputs(data.training), data.labels[data.training], **how)

    @classmethod
    def measure(
        cls, model: EnergyClassifier, data: Rows, settings: ClassifierSettings, tell: Tell
    ) -> dict[str, Any]:
        tell("Scoring the model and two baselines on the held-out rows.")
        baselines = _fitted_baselines(data, settings.seed)
        scores, seconds = _scores(model, data, baselines)
        start = time.monotonic()
        held_out = model.typicality(data.inputs(data.test))
        seconds["typicality"] = time.monotonic() - start
        counts = np.bincount(data.labels[data.training] + 1, minlength=len(data.classes) + 1)
        temperature = model.temperature_
        figures: dict[str, Any] = {
            "data": Path(settings.data).name,
            "shape": None if model.image_shape_ is None else list(model.image_shape_),
            "inputs": [] if data.images is not None else list(data.X.columns),
            "kinds": data.kinds,
            "target_kind": data.target_kind,
            "remarks": data.remarks + _remarks(model) + model.history_.events,
            "rows": len(data.labels),
            "training_rows": len(data.training),
            "test_rows": len(data.test),
            "test_places": data.test[:MOST_SHOWN].tolist(),
            "unlabelled_rows": int(counts[0]),
            "classes": data.classes,
            "class_counts": counts[1:].tolist(),
            "temperature": float(temperature.value),
            "temperature_gain": None
            if np.isnan(temperature.nll_before)
            else float(temperature.nll_before - temperature.nll_after),
            "normalised": model.normalised_,
            "held_out_log_prob": thinned(held_out),
            "scores": scores,
            "detection": _detection(model, data, held_out, settings.seed),
            "robustness": None,
            "seconds": seconds,
        }
        if data.images is not None:
            tell("Attacking the model on held-out images.")
            start = time.monotonic()
            figures["robustness"] = _robustness(model, data, baselines, settings.seed)
            seconds["attacks"] = time.monotonic() - start
        return figures

    @classmethod
    def judge(
        cls, model: EnergyClassifier, data: Rows, figures: dict[str, Any], settings: ClassifierSettings
    ) -> list[Check]:
        found = [check_held_out(len(data.test)), check_classes(data.classes, figures["class_counts"])]
        if n := figures["unlabelled_rows"]:
            text = f"{n} of {len(data.labels)} rows have no label; they only tell how inputs are distributed."
            found.append(Check("labels", "doubtful" if 2 * n > len(data.labels) else "passed", text))
        if data.images is None:
            found.append(check_doubts(doubts_of_columns(data.X)))
        labels = data.labels[data.test]
        probabilities = model.predict_proba(data.inputs(data.test))
        found.append(check_baselines(gains_of(figures["scores"]), len(data.test)))
        found.append(check_calibration(probabilities, labels))
        return found

    @classmethod
    def keep(
        cls, folder: Path, model: Any, data: Rows, figures: dict[str, Any], settings: ClassifierSettings
    ) -> None:
        if data.images is None:
            names = np.array([*data.classes, None], dtype=object)
            everything = data.X.assign(**{settings.target[0]: names[data.labels]})
            cls.keep_rows(folder, everything.iloc[data.training], everything.iloc[data.test], settings.seed)
        origin = ("data", "inputs", "kinds", "training_rows", "test_rows", "scores", "classes")
        cls.keep_model(folder, model, {name: figures[name] for name in origin}, settings)

    @classmethod
    def load_model(cls, folder: Path, settings: ClassifierSettings) -> EnergyClassifier:
        return EnergyClassifier.load(folder)

    # -- verbs ---------------------------------------------------------------------------------------

    def predict(self, path: Path, keep: Sequence[str] = ()) -> pd.DataFrame:
        """``prediction``, the probability of each class, and how typical each row is (see :meth:`score`).

        Where the file holds the labels too, ``correct`` says whether the prediction is right, and ``log_loss`` is
        minus the log of the probability of the label; ``note`` says why a row has neither, if any has.
        """
        places, X, truth = self._asked(path, keep)
        probabilities = self.model.predict_proba(X)
        names = np.array(self.classes, dtype=object)
        found: dict[str, Any] = {"prediction": names[probabilities.argmax(1)]}
        found |= {f"p_{name}": probabilities[:, k] for k, name in enumerate(self.classes)}
        found |= self._typicality(X)
        if truth is not None:
            found |= beside_truth(truth, found["prediction"], probabilities, self.classes)
        return beside(places, pd.DataFrame(found))

    def score(self, path: Path, keep: Sequence[str] = ()) -> pd.DataFrame:
        """``log_prob`` (or a ``score`` without a scale), ``outlier_score`` and the oddest column of each row."""
        places, X, _ = self._asked(path, keep)
        found: dict[str, Any] = self._typicality(X)
        if not self.is_of_images and len(X):
            cells = self.model.explain_typicality(X)
            found["oddest_column"] = cells.idxmin(axis=1).to_numpy()
        return beside(places, pd.DataFrame(found))

    def sample(self, n: int, seed: int = 0, label: str | None = None) -> Any:
        """n new rows with their labels, or images ``[n, C, H, W]``; of one class if a label is given.

        Raises:
            ValueError: for a label that is no class.
        """
        if label is not None and label not in self.classes:
            raise ValueError(f"no class is {label!r}: they are {listed(self.classes)}")
        place = None if label is None else self.classes.index(label)
        drawn = self.model.sample(n, label=place, random_state=seed)
        if self.is_of_images:
            return drawn
        if label is not None:
            return drawn.assign(**{self.settings.target[0]: label})
        # Each row's label is drawn as the model says.
        probabilities = self.model.predict_proba(drawn)
        chance = np.random.RandomState(seed).uniform(size=(len(drawn), 1))
        places = (probabilities.cumsum(1) < chance).sum(1).clip(max=len(self.classes) - 1)
        return drawn.assign(**{self.settings.target[0]: np.array(self.classes, dtype=object)[places]})

    def _typicality(self, X: Any) -> dict[str, np.ndarray]:
        """``log_prob``, or a ``score`` known up to a constant; and the share of likelier held-out rows."""
        found = self.model.score_samples(X)
        # Of rows without gaps both are the same.
        has_gaps = not self.is_of_images and X.isna().any(axis=None)
        typicality = self.model.typicality(X) if has_gaps else found
        name = "log_prob" if self.figures["normalised"] else "score"
        return {name: found, "outlier_score": outlier_scores(typicality, self.figures["held_out_log_prob"])}

    def _asked(self, path: Path, keep: Sequence[str]) -> tuple[pd.DataFrame, Any, pd.Series | None]:
        """What names the rows of a file, the inputs, and the labels, as they are written, if the file has them."""
        if self.is_of_images:
            if keep:
                raise ValueError("--keep names a column of a table, and these are images: leave it out")
            images = read_images(path)
            return places_of(images), images.pixels, None
        cells = read_cells(path)
        target, truth = self.settings.target[0], None
        if target in cells.table.columns:
            again = cells.again({target: self.figures["target_kind"]}, self.settings.missing)
            truth = as_written(again[target])
        X = cells.again(self.figures["kinds"], self.settings.missing, self.model.encoder_.texts)
        return rows_of(cells.table, keep), X, truth

    # -- what is shown of it -------------------------------------------------------------------------

    def summary(self) -> dict[str, str]:
        figures, model = self.figures, self.model
        counts = [f"{name} ({n})" for name, n in zip(self.classes, figures["class_counts"], strict=True)]
        data = f"{figures['data']}: {figures['training_rows']} training rows, {figures['test_rows']} test rows"
        temperature = f"{figures['temperature']:.3g}" if figures["temperature"] != 1 else "1 (none)"
        typical = "log p(x), normalised" if figures["normalised"] else "log p(x) up to a constant"
        return {
            "classes": ", ".join(counts[:20]) + (f" and {len(counts) - 20} more" if len(counts) > 20 else ""),
            "model": f"{type(model.energy_).__name__}, objective {model.objective_name}",
            "data": f"{data} (seed {self.settings.seed})",
            "temperature": temperature,
            "how typical": typical,
            "training": f"{figures['seconds']['training']:.1f} s, {len(model.history_.epochs)} epochs, "
            f"ended: {model.history_.stopped}",
        }

    def tables(self) -> list[TextTable]:
        rows = []
        for name, entry in self.figures["scores"].items():
            gain = entry.get("nll_gain")
            shown = "" if gain is None else with_error(gain, entry.get("nll_gain_error"), "+")
            accuracy = with_error(entry["accuracy"], entry["accuracy_error"])
            rows.append([name, with_error(entry["nll"], entry["nll_error"]), shown, accuracy,
                         f"{entry['ece']:.3f}", f"{entry['brier']:.3f}"])  # fmt: skip
        title = f"{self.figures['data']}: {self.figures['test_rows']} held-out rows"
        head = ["model", "log loss, nats", "gain of ours", "accuracy", "ECE", "Brier score"]
        tables = [TextTable(title, head, rows)]
        detection = [[kind, f"{value:.3f}"] for kind, value in self.figures["detection"].items()]
        tables.append(
            TextTable("AUROC of held-out rows against others", ["others", "AUROC"], detection, best=False)
        )
        if attacked := self.figures["robustness"]:
            head = ["change of a pixel, at most", "gradient", "gradient-free", "transfer", "worst"]
            lines = [
                [
                    f"{r:g}",
                    *(f"{attacked[key][i]:.3f}" for key in ("gradient", "gradient_free", "transfer", "worst")),
                ]
                for i, r in enumerate(attacked["radii"])
            ]
            title = f"Accuracy under attack, {attacked['n_rows']} held-out images"
            tables.append(TextTable(title, head, lines, best=False))
        return tables

    def remarks(self) -> list[str]:
        return few_held_out(self.figures["test_rows"]) + super().remarks()


# -- reading -----------------------------------------------------------------------------------------------


def _read_table(settings: ClassifierSettings) -> Rows:
    target, name = settings.target[0], Path(settings.data).name
    typed = read_typed(settings, settings.target)
    X = typed.table.drop(columns=target)
    if X.shape[1] == 0:
        raise ValueError(f"{name} has no column left to predict from")
    column, kind = typed.table[target], typed.kinds[target]
    refuse_measured(column, kind)
    written = as_written(column)
    known = written.notna().to_numpy()
    if not known.any():
        raise ValueError(f"the target {target!r} has no value at all")
    classes = in_order(written[known].unique().tolist())
    places = {label: k for k, label in enumerate(classes)}
    labels = np.array([places.get(label, -1) for label in written])
    if len(classes) > _MOST_CLASSES:
        raise ValueError(
            f"the target {target!r} has {len(classes)} different values, such as {classes[0]!r} and "
            f"{classes[1]!r}: at most {_MOST_CLASSES} classes are learned"
        )
    remarks = list(typed.remarks)
    if not known.all():
        remarks.append(
            f"{int((~known).sum())} of {len(known)} rows have no label; they tell how inputs are distributed, and "
            "none of them is held out."
        )
    kinds = {column: typed.kinds[column] for column in X.columns}
    parts = _split(labels, classes, settings)
    return Rows(X, labels, classes, *parts, fingerprint_of(typed.table), kinds, kind, remarks)


def _read_images(settings: ClassifierSettings) -> Rows:
    images = read_images(Path(settings.data))
    if images.labels is None:
        raise ValueError(
            f"{settings.data} has no labels: put the pictures of each class into a subfolder, or y into the .npz"
        )
    names = images.classes or tuple(str(k) for k in range(int(images.labels.max()) + 1))
    if len(names) > _MOST_CLASSES:
        raise ValueError(f"{settings.data} has {len(names)} classes: at most {_MOST_CLASSES} are learned")
    parts = _split(images.labels, names, settings)
    return Rows(images.pixels, images.labels, list(names), *parts, images.fingerprint(), images=images)


def _split(
    labels: np.ndarray, classes: Sequence[str], settings: ClassifierSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows, each label as often in both as it can be; test rows have labels.

    A label of a single row is learned from.

    Raises:
        ValueError: if there is one class only, or too few rows on either side.
    """
    counts, test_fraction = np.bincount(labels[labels >= 0], minlength=len(classes)), settings.test_fraction
    if (counts > 0).sum() < 2:
        name = Path(settings.data).name
        raise ValueError(f"{name} has rows of one class only ({classes[0]!r}): a classifier needs two")
    rng = np.random.RandomState(settings.seed)
    known = np.flatnonzero(labels >= 0)
    order = known[np.lexsort((rng.uniform(size=len(known)), labels[known]))]
    n_test = round(test_fraction * len(known))
    # Evenly along the rows in order of their labels.
    places = ((np.arange(n_test) + rng.uniform()) * len(known) / max(n_test, 1)).astype(int)
    chosen = np.sort([row for row in order[places] if counts[labels[row]] > 1])
    if len(chosen) < 2:
        raise ValueError(f"{len(chosen)} rows would be held out: raise --test-fraction, or give more rows")
    training = np.setdiff1d(np.arange(len(labels)), chosen)
    if len(training) < 10:
        raise ValueError(f"{len(training)} rows are left to train on: at least 10 are needed")
    return training, chosen


# -- measuring ---------------------------------------------------------------------------------------------


def _fitted_baselines(data: Rows, seed: int) -> dict[str, tuple[Any, float]]:
    """Each baseline, fitted to the training rows that have a label, and the seconds that it took."""
    labelled = data.training[data.labels[data.training] >= 0]
    X, y = data.inputs(labelled), data.labels[labelled]
    found = {}
    for kind in BASELINES:
        start = time.monotonic()
        # Two threads on a small table wait for one another, and where others work too, most of the time.
        with threadpool_limits(1 if len(y) * data.width < _MANY_CELLS else None):
            baseline = kind(seed).fit(X, y, len(data.classes))
        found[kind.name] = baseline, time.monotonic() - start
    return found


def _scores(
    model: EnergyClassifier, data: Rows, baselines: Mapping[str, tuple[Any, float]]
) -> tuple[dict[str, Any], dict[str, float]]:
    test, truth = data.inputs(data.test), data.labels[data.test]
    start = time.monotonic()
    probabilities = model.predict_proba(test)
    seconds = {"scoring": time.monotonic() - start}
    ours = _of_truth(np.log(np.maximum(probabilities, 1e-300)), truth)
    scores = {MODEL_NAME: _figures(probabilities, truth, ours)}
    for name, (baseline, took) in baselines.items():
        log_probs = baseline.log_prob(test)
        seconds[name] = took
        theirs = _of_truth(log_probs, truth)
        gain = scored(ours - theirs)
        # Both were scored on the same rows, so the difference is more precise than either figure.
        entry = _figures(np.exp(log_probs), truth, theirs) | {"nll_gain": -gain["nll"]}
        scores[name] = entry | ({} if gain["nll_error"] is None else {"nll_gain_error": gain["nll_error"]})
    return scores, seconds


def _of_truth(log_probs: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return log_probs[np.arange(len(truth)), truth]


def _figures(probabilities: np.ndarray, truth: np.ndarray, log_prob: np.ndarray) -> dict[str, Any]:
    probabilities = probabilities / probabilities.sum(1, keepdims=True)
    right = probabilities.argmax(1) == truth
    return {
        **scored(log_prob),
        "accuracy": float(right.mean()),
        "accuracy_error": float(right.std() / np.sqrt(len(right))),
        "ece": expected_calibration_error(probabilities, truth, n_bins=10),
        "brier": float(brier_score(probabilities, truth).value),
    }


def _detection(model: EnergyClassifier, data: Rows, inside: np.ndarray, seed: int) -> dict[str, float]:
    """AUROC of the typicality of held-out rows against that of rows of other kinds."""
    rng = np.random.RandomState(seed)
    test = data.inputs(data.test)
    others = others_of(test, rng)
    found = {}
    for kind, rows in others.items():
        outside = model.typicality(rows)
        truth = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
        found[kind] = float(roc_auc_score(truth, np.r_[inside, outside]))
    return found


def others_of(test: Any, rng: np.random.RandomState) -> dict[str, Any]:
    """Inputs that are none of the data, made from held-out ones: kind -> inputs."""
    if isinstance(test, np.ndarray):
        return outliers(test, len(test), rng)
    shuffled = test.copy()
    for name in test.columns:
        shuffled[name] = test[name].to_numpy()[rng.permutation(len(test))]
    return {"cells of different rows put together": shuffled}


class _Scores(nn.Module):
    """The classifier as a network of logits, for attacks."""

    def __init__(self, model: EnergyClassifier):
        super().__init__()
        energy = model.energy_
        # The energy of the inputs is the same for all labels: it need not be computed.
        self.energy = energy.classifier if isinstance(energy, FactoredEnergy) else energy

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -self.energy.energies(x)


def _robustness(
    model: EnergyClassifier, data: Rows, baselines: Mapping[str, tuple[Any, float]], seed: int
) -> dict[str, Any]:
    """Accuracy under attacks of growing strength, on some of the held-out images."""
    rows = np.random.RandomState(seed).permutation(data.test)[:_MOST_ATTACKED]
    x, labels = torch.from_numpy(data.inputs(rows)), torch.from_numpy(data.labels[rows])
    # The mistakes of a logistic regression of the pixels are tried on the model.
    surrogate = baselines[Logistic.name][0].network()
    generator = torch.Generator().manual_seed(seed)
    found = robust_accuracy(
        _Scores(model), x, labels, _RADII, "inf", surrogate=surrogate, n_queries=300, generator=generator
    )
    keys = ("gradient", "gradient_free", "transfer", "worst")
    return {
        "radii": [0.0, *_RADII],
        "n_rows": len(rows),
        **{key: [found.clean, *(float(v) for v in getattr(found, key))] for key in keys},
        "doubts": list(found.doubts()),
    }


def _remarks(model: EnergyClassifier) -> list[str]:
    found = model.temperature_
    if np.isnan(found.nll_before):
        return []
    if found.applied:
        return [
            f"A temperature of {found.value:.3g} lowered the loss of held-out folds from {found.nll_before:.4f} "
            f"to {found.nll_after:.4f} nats and is applied."
        ]
    return [
        f"A temperature did not lower the loss of held-out folds ({found.nll_before:.4f} nats without, "
        f"{found.nll_after:.4f} with): none is applied."
    ]
