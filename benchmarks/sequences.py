"""Labelled sequences beside python-crfsuite and pytorch-crf: accuracy, time of a fit, time of inference.

    .venv/bin/python benchmarks/sequences.py --data DIR

Three parts. *letters*: handwritten words, letter by letter, from ``ocr_letters.npz`` in DIR, trained on nine of
its folds and tested on the tenth; skipped with a word where it is missing. *news*: a made-up language in which a
name is of a person, a place or a firm by its surroundings alone; a third of the sentences are in lower case, and
half of the names of the test were never seen. *speed*: Viterbi, and the likelihood with its gradient, on the same
unary terms.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycrfsuite
import torch
from rich.console import Console
from rich.table import Table
from torchcrf import CRF

from thalweg import EnergySequenceTagger
from thalweg.data.sequences import ElementEncoder, features_of
from thalweg.energies import LabelChain
from thalweg.evaluation.sequences import ElementLogistic, LogisticWithTransitions, span_f1
from thalweg.inference import chains, viterbi

Labels = Sequence[Any]
Figures = dict[str, float]


# -- data --------------------------------------------------------------------------------------------------


def letters(path: Path) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Words as arrays ``[letters, 128]`` and their letters, to learn from and to test."""
    found = []
    with np.load(path) as data:
        for part in ("train", "test"):
            cut = np.flatnonzero(np.diff(data[f"word_{part}"])) + 1
            pixels = data[f"X_{part}"].reshape(len(data[f"X_{part}"]), -1)
            found += [np.split(pixels, cut), np.split(data[f"y_{part}"].astype(int), cut)]
    return found[0], found[1], found[2], found[3]


_PARTS = (
    "ba", "ke", "lor", "mi", "tan", "ve", "sur", "do", "nel", "ri", "gar", "ho", "win", "ster", "pa", "lu", "den",
    "ma", "co", "shi",
)  # fmt: skip
_TEMPLATES = (
    "P said on D that O would open an office in L .",
    "O shares fell {n} percent on D .",
    "P of O flew from L to L .",
    "In L , P may march with {n} others .",
    "O named P as its head in L .",
    "On D , L beat L {n} - {n} .",
    "The storm hit L and L on D .",
    "He will sell O to P .",
    "P , {n} , left O .",
    "P met P in L .",
    "O bought O for {n} million on D .",
    "Talks between L and L may end on D .",
    "P and O agreed .",
    "L and P agreed .",
    "O , L and P were named .",
    "Asked by P , O said nothing on D .",
)


def news(n: int, seed: int, unseen: float = 0.0) -> tuple[list[list[str]], list[list[str]]]:
    """Sentences with names of persons, places, firms and dates, and their tags.

    Args:
        unseen: share of the names that come from another stock than that of a call without it.
    """
    fixed, rng = np.random.RandomState(0), np.random.RandomState(seed)

    def made(count: int) -> list[str]:
        return ["".join(fixed.choice(_PARTS, fixed.randint(2, 4))).capitalize() for _ in range(count)]

    known, first, new = made(500), made(80), made(500)

    def pick(names: Sequence[str]) -> str:
        return str(names[rng.randint(len(names))])

    def name() -> str:
        return pick(new if rng.uniform() < unseen else known)

    def person() -> list[str]:
        return [pick(first), name()] if rng.uniform() < 0.5 else [name()]

    def place() -> list[str]:
        return [pick(["New", "Old", "Port"]), name()] if rng.uniform() < 0.15 else [name()]

    def firm() -> list[str]:
        chance = rng.uniform()
        if chance < 0.2:
            return [name(), pick(["Bank", "University", "United"])]
        return [name(), "&", name()] if chance < 0.35 else [name()]

    def date() -> list[str]:
        months = ["May", "March", "June", "April"]
        return [str(rng.randint(1, 29)), pick(months)] if rng.uniform() < 0.5 else [pick(["Monday", *months])]

    kinds = {"P": (person, "PER"), "L": (place, "LOC"), "O": (firm, "ORG"), "D": (date, "DATE")}
    sentences, tags = [], []
    for _ in range(n):
        words: list[str] = []
        own: list[str] = []
        for token in _TEMPLATES[rng.randint(len(_TEMPLATES))].split():
            make, kind = kinds.get(token, (None, ""))
            found = make() if make else [str(rng.randint(1, 99)) if token == "{n}" else token]
            words += found
            own += [f"B-{kind}", *[f"I-{kind}"] * (len(found) - 1)] if make else ["O"]
        sentences.append([word.lower() for word in words] if rng.uniform() < 0.35 else words)
        tags.append(own)
    return sentences, tags


# -- peers -------------------------------------------------------------------------------------------------


class Crfsuite:
    """python-crfsuite with L-BFGS and its customary penalty, on the features given.

    Args:
        features: of a sequence, a list of texts for each element.
    """

    def __init__(self, features: Callable[[Any], list[list[str]]], path: Path):
        self.features, self.path = features, path

    def fit(self, X: Sequence[Any], y: Sequence[Labels]) -> Crfsuite:
        trainer = pycrfsuite.Trainer(verbose=False)
        trainer.set_params({"c1": 0.1, "c2": 0.1, "max_iterations": 200, "feature.possible_transitions": True})
        for own, labels in zip(X, y, strict=True):
            trainer.append(self.features(own), [str(label) for label in labels])
        trainer.train(str(self.path))
        self.tagger = pycrfsuite.Tagger()
        self.tagger.open(str(self.path))
        return self

    def predict(self, X: Sequence[Any]) -> list[list[str]]:
        return [self.tagger.tag(self.features(own)) for own in X]


class Plain:
    """A baseline of this library, from the same encoding of the elements as the tagger's."""

    def __init__(self, kind: type[ElementLogistic]):
        self.kind = kind

    def fit(self, X: Sequence[Any], y: Sequence[Labels]) -> Plain:
        self.encoder = ElementEncoder().fit([_plain(own) for own in X])
        self.classes = np.unique(np.concatenate([np.asarray(own) for own in y]))
        rows = self.encoder.transform([_plain(own) for own in X])
        places = [np.searchsorted(self.classes, own) for own in y]
        self.baseline = self.kind(self.encoder.n_numbers, self.encoder.n_vocabulary)
        self.baseline.fit(rows, places, len(self.classes))
        return self

    def predict(self, X: Sequence[Any]) -> list[np.ndarray]:
        rows = self.encoder.transform([_plain(own) for own in X])
        return [self.classes[own] for own in self.baseline.labels(rows)]


def _plain(sequence: Any) -> Any:
    return sequence.astype(float) if isinstance(sequence, np.ndarray) else sequence


def pixels(word: np.ndarray, reach: int = 0) -> list[list[str]]:
    """The inked pixels of each letter, and of those around it, as features."""
    inked = [np.flatnonzero(own) for own in word]
    found = []
    for t in range(len(word)):
        around = range(max(0, t - reach), min(len(word), t + reach + 1))
        found.append([f"{u - t}:{p}" for u in around for p in inked[u]] + [f"at{u - t}" for u in around])
    return found


# -- the parts ---------------------------------------------------------------------------------------------


def judged(
    models: dict[str, Any], train: tuple[Any, Any], test: tuple[Any, Any], spans: bool
) -> dict[str, Figures]:
    found = {}
    for name, model in models.items():
        start = time.process_time()
        model.fit(*train)
        fit = time.process_time() - start
        start = time.process_time()
        predicted = [[str(label) for label in own] for own in model.predict(test[0])]
        asked = time.process_time() - start
        truth = [[str(label) for label in own] for own in test[1]]
        right = [np.array(a) == np.array(b) for a, b in zip(predicted, truth, strict=True)]
        labels = np.concatenate(right)
        found[name] = {
            "labels": float(labels.mean()),
            "sequences": float(np.mean([own.all() for own in right])),
            "error": float(np.std([own.mean() for own in right]) / np.sqrt(len(right))),
            "fit": fit,
            "predict": 1e6 * asked / len(labels),
        }
        if spans:
            found[name]["spans"] = span_f1(truth, predicted)
        print(name, found[name], flush=True)
    return found


def show(title: str, found: dict[str, Figures]) -> None:
    heads = {"labels": "labels right", "sequences": "sequences right", "spans": "spans, F1"}
    used = [key for key in heads if key in next(iter(found.values()))]
    table = Table("model", *(heads[key] for key in used), "fit, CPU s", "predict, us a label", title=title)
    for name, entry in found.items():
        cells = [f"{entry[key]:.3f}" for key in used]
        cells[0] += f" ± {entry['error']:.3f}"
        table.add_row(name, *cells, f"{entry['fit']:.1f}", f"{entry['predict']:.0f}")
    Console(width=130).print(table)


def speed(n_rows: int = 64, n_elements: int = 50, n_labels: int = 26, repeats: int = 31) -> None:
    """Times of one batch, in alternation, on the same terms; python-crfsuite has one feature for each label."""
    generator = torch.Generator().manual_seed(0)
    unary = torch.randn(n_rows, n_elements, n_labels, generator=generator)
    transitions = torch.randn(n_labels, n_labels, generator=generator)
    ends = torch.randn(2, n_labels, generator=generator)
    labels = torch.randint(n_labels, (n_rows, n_elements), generator=generator)
    crf = CRF(n_labels, batch_first=True)
    with torch.no_grad():
        crf.transitions.copy_(-transitions)
        crf.start_transitions.copy_(-ends[0])
        crf.end_transitions.copy_(-ends[1])
    learned, terms = transitions.clone().requires_grad_(), unary.clone().requires_grad_()
    path = Path("/tmp/speed.crfsuite")
    # Features "u0:1.3" ...: every label sees the terms of all labels, as few as a CRF of this kind can have.
    items = [[{f"u{k}": float(v) for k, v in enumerate(own)} for own in row] for row in unary.numpy()]
    trainer = pycrfsuite.Trainer(verbose=False)
    trainer.set_params({"max_iterations": 3})
    for row, own in zip(items, labels.tolist(), strict=True):
        trainer.append(row, [str(label) for label in own])
    trainer.train(str(path))
    tagger = pycrfsuite.Tagger()
    tagger.open(str(path))
    prepared = [pycrfsuite.ItemSequence(row) for row in items]

    def ours_step() -> None:
        chain = LabelChain(terms, learned, ends[0], ends[1])
        (chain(labels) - chains.free_energy(chain)).mean().backward()

    def theirs_step() -> None:
        crf(-terms, labels, reduction="mean").backward()

    tasks: dict[str, Callable[[], Any]] = {
        "Viterbi, thalweg": lambda: viterbi(LabelChain(unary, transitions, ends[0], ends[1])),
        "Viterbi, pytorch-crf": lambda: crf.decode(-unary),
        "Viterbi, python-crfsuite (items ready)": lambda: [tagger.tag(row) for row in prepared],
        "likelihood and gradient, thalweg": ours_step,
        "likelihood and gradient, pytorch-crf": theirs_step,
        "marginals, thalweg": lambda: chains.marginals(LabelChain(unary, transitions, ends[0], ends[1])),
    }
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            times[name].append(time.perf_counter() - start)
    table = Table(
        "task", "median, us a sequence", "least", title=f"{n_rows} x {n_elements} elements, {n_labels} labels"
    )
    for name, values in times.items():
        # The first calls warm caches up.
        own = [1e6 * value / n_rows for value in values[2:]]
        table.add_row(name, f"{statistics.median(own):.0f}", f"{min(own):.0f}")
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--parts", default="letters,news,speed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts, folder = arguments.parts.split(","), Path("/tmp")
    if "letters" in parts:
        path = None if arguments.data is None else arguments.data / "ocr_letters.npz"
        if path is None or not path.exists():
            print("letters: there is no ocr_letters.npz: give its folder with --data")
        else:
            X, y, V, w = letters(path)
            models = {
                "logistic regression": Plain(ElementLogistic),
                "logistic regression with transitions": Plain(LogisticWithTransitions),
                "python-crfsuite": Crfsuite(pixels, folder / "letters.crfsuite"),
                "python-crfsuite, neighbours' pixels": Crfsuite(lambda x: pixels(x, 1), folder / "near.crfsuite"),
                "thalweg, no context": EnergySequenceTagger(n_context=0, random_state=0),
                "thalweg": EnergySequenceTagger(random_state=0),
                "thalweg, order 2": EnergySequenceTagger(order=2, random_state=0),
            }
            show("letters", judged(models, (X, y), (V, w), spans=False))
    if "news" in parts:
        for n in (300, 2000):
            models = {
                "logistic regression": Plain(ElementLogistic),
                "logistic regression with transitions": Plain(LogisticWithTransitions),
                "python-crfsuite, the same features": Crfsuite(features_of, folder / "news.crfsuite"),
                "thalweg, no context": EnergySequenceTagger(n_context=0, forbidden="bio", random_state=0),
                "thalweg": EnergySequenceTagger(forbidden="bio", random_state=0),
            }
            show(f"news, {n} sentences", judged(models, news(n, 0), news(1000, 1, unseen=0.5), spans=True))
    if "speed" in parts:
        speed()


if __name__ == "__main__":
    main()
