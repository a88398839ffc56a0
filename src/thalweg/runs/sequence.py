"""A run on labelled sequences: read, hold whole sequences out, train, compare with baselines, save."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from thalweg.data import conll
from thalweg.data.tables import column_names, read_cells
from thalweg.energies.factors.chain import UNKNOWN
from thalweg.estimators.sequence import EnergySequenceTagger
from thalweg.evaluation.calibration import expected_calibration_error
from thalweg.evaluation.row_checks import check_calibration
from thalweg.evaluation.sequences import BASELINES, are_spans, mean_over_elements, span_f1
from thalweg.evaluation.verdict import Check, check_baselines, check_classes, check_doubts, check_held_out
from thalweg.runs.base import Run, Tell, TextTable
from thalweg.runs.kinds import SequenceFigures
from thalweg.runs.labels import as_written, beside_truth, in_order, refuse_measured
from thalweg.runs.settings.sequence import SequenceSettings
from thalweg.runs.tables import (
    MODEL_NAME,
    beside,
    doubts_of_columns,
    fingerprint_of,
    gains_of,
    model_settings,
    read_typed,
    rows_by_name,
    rows_of,
    with_error,
)

_MOST_CLASSES = 300
_FEWEST_SEQUENCES = 5


@dataclass
class Elements:
    """The elements of all sequences.

    Attributes:
        X: the inputs, a row for each element.
        labels: the place of each one's label, -1 where it has none.
        classes: the labels.
        sequences: the numbers of the rows of each sequence, in its order.
        names: of the sequences, as they are written.
        training, test: numbers of sequences.
    """

    X: pd.DataFrame
    labels: np.ndarray
    classes: list[str]
    sequences: list[np.ndarray]
    names: list[str]
    training: np.ndarray
    test: np.ndarray
    fingerprint: str
    kinds: dict[str, str]
    target: str
    target_kind: str
    sequence: str
    remarks: list[str]

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """The rows of these sequences."""
        return np.concatenate([self.sequences[i] for i in numbers])

    def frames(self, numbers: np.ndarray) -> list[pd.DataFrame]:
        return [self.X.iloc[self.sequences[i]] for i in numbers]

    def places(self, numbers: np.ndarray) -> list[np.ndarray]:
        return [self.labels[self.sequences[i]] for i in numbers]


class SequenceRun(Run):
    """Labels of the elements of sequences, beside baselines on sequences held out."""

    settings_class = SequenceSettings
    figures_class = SequenceFigures

    @cached_property
    def classes(self) -> list[str]:
        """The labels, as they are written."""
        return [str(name) for name in self.figures["classes"]]

    # -- making --------------------------------------------------------------------------------------

    @classmethod
    def read(cls, settings: SequenceSettings) -> Elements:
        return _read(settings)

    @classmethod
    def build(cls, settings: SequenceSettings, data: Elements, verbose: bool) -> EnergySequenceTagger:
        forbidden = "bio" if settings.bio else None
        return EnergySequenceTagger(
            settings.objective,
            order=settings.order,
            forbidden=forbidden,
            max_epochs=settings.epochs,
            verbose=verbose,
            **model_settings(settings),
        )

    @classmethod
    def train(cls, model: EnergySequenceTagger, data: Elements, settings: SequenceSettings, **how: Any) -> None:
        names = np.array([*data.classes, None], dtype=object)
        model.fit(data.frames(data.training), [names[own] for own in data.places(data.training)], **how)

    @classmethod
    def measure(
        cls, model: EnergySequenceTagger, data: Elements, settings: SequenceSettings, tell: Tell
    ) -> dict[str, Any]:
        tell("Scoring the model and two baselines on the held-out sequences.")
        scores, seconds = _scores(model, data)
        counts = np.bincount(data.labels[data.rows(data.training)] + 1, minlength=len(data.classes) + 1)
        temperature = model.temperature_
        return {
            "data": Path(settings.data).name,
            "inputs": list(data.X.columns),
            "kinds": data.kinds,
            "target": data.target,
            "target_kind": data.target_kind,
            "sequence": data.sequence,
            "remarks": data.remarks + model.history_.events,
            "rows": len(data.labels),
            "training_rows": len(data.rows(data.training)),
            "test_rows": len(data.rows(data.test)),
            "sequences": len(data.sequences),
            "training_sequences": len(data.training),
            "test_sequences": len(data.test),
            "unlabelled_rows": int((data.labels == UNKNOWN).sum()),
            "classes": data.classes,
            "class_counts": counts[1:].tolist(),
            "temperature": float(temperature.value),
            "temperature_gain": None
            if np.isnan(temperature.nll_before)
            else float(temperature.nll_before - temperature.nll_after),
            "spans": are_spans(data.classes),
            "scores": scores,
            "seconds": seconds,
        }

    @classmethod
    def judge(
        cls, model: EnergySequenceTagger, data: Elements, figures: dict[str, Any], settings: SequenceSettings
    ) -> list[Check]:
        found = [
            check_held_out(len(data.test), what="sequence"),
            check_classes(data.classes, figures["class_counts"]),
        ]
        if n := figures["unlabelled_rows"]:
            text = f"{n} of {len(data.labels)} elements have no label; their sequences are learned from in part."
            found.append(Check("unlabelled", "doubtful" if 2 * n > len(data.labels) else "passed", text))
        found.append(check_doubts(doubts_of_columns(data.X)))
        found.append(check_baselines(gains_of(figures["scores"]), figures["test_rows"], "elements"))
        places = np.concatenate(data.places(data.test))
        p = np.concatenate(model.predict_marginals(data.frames(data.test)))
        known = places != UNKNOWN
        found.append(check_calibration(in_order_of(model, data.classes, p[known]), places[known]))
        return found

    @classmethod
    def keep(
        cls, folder: Path, model: Any, data: Elements, figures: dict[str, Any], settings: SequenceSettings
    ) -> None:
        names = np.array([*data.classes, None], dtype=object)
        of_rows = np.empty(len(data.labels), dtype=object)
        for name, rows in zip(data.names, data.sequences, strict=True):
            of_rows[rows] = name
        everything = data.X.assign(**{data.sequence: of_rows, data.target: names[data.labels]})
        parts = [everything.iloc[data.rows(numbers)] for numbers in (data.training, data.test)]
        cls.keep_rows(folder, parts[0], parts[1], settings.seed)
        origin = ("data", "inputs", "kinds", "training_rows", "test_rows", "scores", "classes")
        cls.keep_model(folder, model, {name: figures[name] for name in origin}, settings)

    @classmethod
    def load_model(cls, folder: Path, settings: SequenceSettings) -> EnergySequenceTagger:
        return EnergySequenceTagger.load(folder)

    # -- verbs ---------------------------------------------------------------------------------------

    def predict(self, path: Path, keep: Sequence[str] = ()) -> pd.DataFrame:
        """``sequence`` and ``prediction`` of each row, and the probability of each label there.

        Where the file holds the labels too, ``correct`` says whether the prediction is right, and ``log_loss`` is
        minus the log of the probability of the label; ``note`` says why a row has neither, if any has.
        """
        cells = read_cells(path)
        kinds = {name: self.figures["kinds"][name] for name in self.figures["inputs"]}
        name = self.figures["sequence"]
        if name not in cells.table.columns:
            raise ValueError(f"the table lacks {name!r}, which says to which sequence a row belongs")
        columns = self.model.encoder_.table
        X = cells.again(kinds, self.settings.missing, None if columns is None else columns.texts)
        names, sequences = rows_by_name(
            cells.again({name: "text"}, self.settings.missing)[name], path.name, "sequence"
        )
        frames = [X.iloc[rows] for rows in sequences]
        probabilities = np.empty((len(X), len(self.classes)))
        prediction = np.empty(len(X), dtype=object)
        of_rows = np.empty(len(X), dtype=object)
        found = self.model.predict(frames), self.model.predict_marginals(frames)
        for label, rows, own, p in zip(names, sequences, *found, strict=True):
            of_rows[rows], prediction[rows] = label, own
            probabilities[rows] = in_order_of(self.model, self.classes, p)
        result: dict[str, Any] = {} if name in keep else {name: of_rows}
        result["prediction"] = prediction
        result |= {f"p_{label}": probabilities[:, k] for k, label in enumerate(self.classes)}
        target = self.figures["target"]
        if target in cells.table.columns:
            again = cells.again({target: self.figures["target_kind"]}, self.settings.missing)
            result |= beside_truth(as_written(again[target]), prediction, probabilities, self.classes)
        return beside(rows_of(cells.table, keep), pd.DataFrame(result))

    # -- what is shown of it -------------------------------------------------------------------------

    def summary(self) -> dict[str, str]:
        figures, model = self.figures, self.model
        counts = [f"{name} ({n})" for name, n in zip(self.classes, figures["class_counts"], strict=True)]
        more = f" and {len(counts) - 20} more" if len(counts) > 20 else ""
        return {
            "labels": ", ".join(counts[:20]) + more,
            "model": f"chain of order {model.order}, objective {model.objective}",
            "data": f"{figures['data']}: {figures['training_sequences']} sequences of {figures['training_rows']} "
            f"elements to learn from, {figures['test_sequences']} of {figures['test_rows']} held out "
            f"(seed {self.settings.seed})",
            "temperature": f"{figures['temperature']:.3g}" if figures["temperature"] != 1 else "1 (none)",
            "training": f"{figures['seconds']['training']:.1f} s, {len(model.history_.epochs)} epochs, "
            f"ended: {model.history_.stopped}",
        }

    def tables(self) -> list[TextTable]:
        rows = []
        for name, entry in self.figures["scores"].items():
            gain = entry.get("nll_gain")
            rows.append(
                [
                    name,
                    with_error(entry["accuracy"], entry["accuracy_error"]),
                    f"{entry['sequence_accuracy']:.3f}",
                    *([f"{entry['span_f1']:.3f}"] if self.figures["spans"] else []),
                    with_error(entry["nll"], entry["nll_error"]),
                    "" if gain is None else with_error(gain, entry.get("nll_gain_error"), "+"),
                    f"{entry['ece']:.3f}",
                ]
            )
        title = f"{self.figures['data']}: {self.figures['test_sequences']} held-out sequences"
        spans = ["spans, F1"] if self.figures["spans"] else []
        head = ["model", "labels right", "sequences right", *spans, "log loss, nats", "gain of ours", "ECE"]
        return [TextTable(title, head, rows)]


# -- reading -----------------------------------------------------------------------------------------------


def _read(settings: SequenceSettings) -> Elements:
    name = Path(settings.data).name
    sequence, target = conll.SEQUENCE, ""
    if settings.is_conll:
        names = [column for column in column_names(Path(settings.data)) if column != conll.SEQUENCE]
        if len(names) < 2:
            raise ValueError(f"{name} has {len(names)} columns: a token and its label are needed on each line")
        target = settings.target[0] if settings.target else names[-1]
        if target not in names:
            raise ValueError(f"{name} has no column {target!r}; it has: {', '.join(names)}")
        typed = read_typed(settings, [target, sequence], text=[*names, sequence])
    else:
        sequence, target = settings.sequence[0], settings.target[0]
        typed = read_typed(settings, [target, sequence], text=[*settings.text, sequence])
    X = typed.table.drop(columns=[target, sequence])
    if X.shape[1] == 0:
        raise ValueError(f"{name} has no column left to predict from")
    column, kind = typed.table[target], typed.kinds[target]
    refuse_measured(column, kind)
    written = as_written(column)
    if not written.notna().any():
        raise ValueError(f"the target {target!r} has no value at all")
    classes = in_order(written.dropna().unique().tolist())
    if len(classes) > _MOST_CLASSES:
        raise ValueError(
            f"the target {target!r} has {len(classes)} different values, such as {classes[0]!r} and "
            f"{classes[1]!r}: at most {_MOST_CLASSES} labels are learned"
        )
    places = {label: k for k, label in enumerate(classes)}
    labels = np.array([places.get(label, UNKNOWN) for label in written])
    names_of, sequences = rows_by_name(typed.table[sequence], name, "sequence")
    if settings.bio:
        _refuse_loose_tags(written.to_numpy(), sequences, name)
    training, test = _split(labels, sequences, settings, name)
    remarks = [r for r in typed.remarks if sequence not in r]
    if (labels == UNKNOWN).any():
        n = int((labels == UNKNOWN).sum())
        remarks.append(f"{n} of {len(labels)} elements have no label, and any label may stand there.")
    kinds = {column: typed.kinds[column] for column in X.columns}
    return Elements(
        X, labels, classes, sequences, names_of, training, test, fingerprint_of(typed.table), kinds, target, kind,
        sequence, remarks,
    )  # fmt: skip


def _refuse_loose_tags(labels: np.ndarray, sequences: Sequence[np.ndarray], file: str) -> None:
    """Refuse an I-X that goes on nothing, by its row."""
    for rows in sequences:
        before: Any = "O"
        for row in rows:
            label = labels[row]
            loose = isinstance(label, str) and label.startswith("I-") and isinstance(before, str)
            if loose and before not in (f"B-{label[2:]}", label):
                raise ValueError(
                    f"row {row + 1} of {file} has {label!r} after {before!r}, which --bio forbids: mend them, "
                    "or leave --bio out"
                )
            before = label


def _split(
    labels: np.ndarray, sequences: Sequence[np.ndarray], settings: SequenceSettings, file: str
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the sequences that are learned from, and of those held out, which have labels."""
    if len(sequences) < _FEWEST_SEQUENCES:
        raise ValueError(
            f"{file} has {len(sequences)} sequence{'s' * (len(sequences) != 1)}: at least {_FEWEST_SEQUENCES} are "
            "needed, for whole sequences are held out; cut long ones into parts, each with a name of its own"
        )
    rng = np.random.RandomState(settings.seed)
    labelled = np.array([i for i, rows in enumerate(sequences) if (labels[rows] != UNKNOWN).any()])
    n_test = int(np.clip(round(settings.test_fraction * len(labelled)), 1, len(labelled) - 2))
    if len(labelled) < 3:
        raise ValueError(f"{len(labelled)} sequences of {file} have a label: at least 3 are needed")
    test = np.sort(rng.permutation(labelled)[:n_test])
    training = np.setdiff1d(np.arange(len(sequences)), test)
    return training, test


# -- measuring ---------------------------------------------------------------------------------------------


def in_order_of(model: EnergySequenceTagger, classes: Sequence[str], p: np.ndarray) -> np.ndarray:
    """Probabilities in the order of the run's labels; 0 for one that no training sequence has."""
    found = np.zeros((len(p), len(classes)))
    place = {label: k for k, label in enumerate(classes)}
    for k, label in enumerate(model.classes_.tolist()):
        found[:, place[label]] = p[:, k]
    return found


def _scores(model: EnergySequenceTagger, data: Elements) -> tuple[dict[str, Any], dict[str, float]]:
    frames, places = data.frames(data.test), data.places(data.test)
    start = time.monotonic()
    marginals = [in_order_of(model, data.classes, p) for p in model.predict_marginals(frames)]
    place = {label: k for k, label in enumerate(data.classes)}
    predicted = [np.array([place[label] for label in own]) for own in model.predict(frames)]
    seconds = {"scoring": time.monotonic() - start}
    log_probs = [np.log(np.maximum(p, 1e-12)) for p in marginals]
    scores = {MODEL_NAME: _figures(log_probs, predicted, places, data.classes)}
    rows = model.encoder_.transform(data.frames(data.training))
    test = model.encoder_.transform(frames)
    ours = _of_truth(log_probs, places)
    for kind in BASELINES:
        start = time.monotonic()
        baseline = kind(model.encoder_.n_numbers, model.encoder_.n_vocabulary)
        baseline.fit(rows, data.places(data.training), len(data.classes))
        theirs = baseline.log_prob(test)
        entry = _figures(theirs, baseline.labels(test), places, data.classes)
        # Both were scored on the same elements, so the difference is more precise than either figure.
        gain = mean_over_elements([a - b for a, b in zip(ours, _of_truth(theirs, places), strict=True)])
        scores[kind.name] = entry | {"nll_gain": gain.value, "nll_gain_error": gain.error}
        seconds[kind.name] = time.monotonic() - start
    return scores, seconds


def _of_truth(log_probs: Sequence[np.ndarray], places: Sequence[np.ndarray]) -> list[np.ndarray]:
    """log p of the true labels, of the elements that have one, sequence by sequence."""
    return [p[own != UNKNOWN, own[own != UNKNOWN]] for p, own in zip(log_probs, places, strict=True)]


def _figures(
    log_probs: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
    places: Sequence[np.ndarray],
    classes: Sequence[str],
) -> dict[str, Any]:
    known = [own != UNKNOWN for own in places]
    right = [(p == own)[k] for p, own, k in zip(predicted, places, known, strict=True)]
    nll = mean_over_elements([-v for v in _of_truth(log_probs, places)])
    accuracy = mean_over_elements([r.astype(float) for r in right])
    whole = np.concatenate([p[k] for p, k in zip(log_probs, known, strict=True)])
    truth = np.concatenate([own[k] for own, k in zip(places, known, strict=True)])
    found = {
        "n_rows": len(truth),
        "nll": nll.value,
        "nll_error": nll.error,
        "accuracy": accuracy.value,
        "accuracy_error": accuracy.error,
        "sequence_accuracy": float(np.mean([r.all() for r in right])),
        "ece": expected_calibration_error(np.exp(whole), truth, n_bins=10),
    }
    if are_spans(classes):
        names = np.array([*classes, "O"], dtype=object)
        found["span_f1"] = span_f1([names[own] for own in places], [names[own] for own in predicted])
    return found
