"""Parts of a tagger: labels of sequences numbered, padded batches, the held-out figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from thalweg.data import sequences
from thalweg.data.sequences import in_batches
from thalweg.energies.factors.chain import UNKNOWN, ChainEnergy, LabelChain
from thalweg.estimators._held_out import NestedFigure
from thalweg.inference import chains
from thalweg.inference.answers import free_energy_of

_TEMPERATURES = (1.0, 1.4, 2.0, 3.0)


def labels_of(y: Any, lengths: Sequence[int]) -> list[np.ndarray]:
    """The labels of each sequence as an array of objects, None where one is unknown.

    Raises:
        ValueError: naming the first sequence whose labels can't be used.
    """
    if isinstance(y, str | bytes) or not hasattr(y, "__len__"):
        raise ValueError(f"y must be a list with the labels of each sequence, got {type(y).__name__}")
    if len(y) != len(lengths):
        raise ValueError(f"there are {len(lengths)} sequences and labels for {len(y)}")
    found = []
    for i, (labels, n) in enumerate(zip(y, lengths, strict=True)):
        if isinstance(labels, str | bytes) or not hasattr(labels, "__len__"):
            raise ValueError(f"the labels of sequence {i} must be a list, one for each element; got {labels!r}")
        if len(labels) != n:
            raise ValueError(f"sequence {i} has {n} elements and {len(labels)} labels")
        own = np.empty(n, dtype=object)
        for t, label in enumerate(labels):
            own[t] = _known(label, i, t)
        found.append(own)
    return found


def _known(label: Any, i: int, t: int) -> Any:
    """A label as a text or a number; None where it is unknown."""
    if label is None or label is pd.NA:
        return None
    label = label.item() if isinstance(label, np.generic) else label
    if isinstance(label, float):
        if np.isnan(label):
            return None
        if not label.is_integer():
            raise ValueError(f"label {t} of sequence {i} is {label!r}: labels are texts or whole numbers")
        label = int(label)
    if isinstance(label, bool | str):
        return label
    if not isinstance(label, int):
        raise ValueError(f"label {t} of sequence {i} is {label!r}: labels are texts or whole numbers")
    return None if label == UNKNOWN else label


def classes_of(labels: Sequence[np.ndarray]) -> np.ndarray:
    """The labels that occur, in order.

    Raises:
        ValueError: if none is known, all are the same, or texts and numbers are mixed.
    """
    known = {label for own in labels for label in own if label is not None}
    if not known:
        raise ValueError("no element has a label: at least two different ones are needed")
    if len({isinstance(label, str) for label in known}) > 1:
        raise ValueError("labels mix texts and numbers: write all in one way")
    if len(known) < 2:
        raise ValueError(f"all elements have the label {next(iter(known))!r}: there is nothing to learn")
    return np.array(sorted(known), dtype=object if isinstance(next(iter(known)), str) else None)


def places_of(labels: Sequence[np.ndarray], classes: np.ndarray, refuse_new: bool = True) -> list[np.ndarray]:
    """The place of each label among the classes, -1 where it is unknown.

    Args:
        refuse_new: whether a label that is no class is refused; else it has the place -2.

    Raises:
        ValueError: for a label that is no class.
    """
    places: dict[Any, int] = {label: k for k, label in enumerate(classes.tolist())} | {None: UNKNOWN}
    if refuse_new:
        for i, own in enumerate(labels):
            new = next((label for label in own if label not in places), None)
            if new is not None:
                shown = ", ".join(map(str, classes[:20]))
                raise ValueError(f"sequence {i} has the label {new!r}, which no training sequence had ({shown})")
    return [np.array([places.get(label, -2) for label in own]) for own in labels]


def padded(rows: Sequence[np.ndarray], fill: float) -> Tensor:
    """``[n, T, *]`` of sequences ``[T_i, *]``, with this value after their ends."""
    return torch.from_numpy(sequences.padded(rows, fill))


class HeldOutSequences(NestedFigure):
    """How badly held-out sequences fare, per element whose label is known: their -log p, or their errors.

    Args:
        x, y: padded sequences and labels, all rows.
        rows: numbers of the sequences that judge.
        weight: of all sequences.
        by_errors: whether wrong labels are counted; else it is -log p.
        scaled: whether -log p is taken at the best of a few temperatures. A network goes on to learn long after it
            has become too sure of itself, and that a temperature mends.
    """

    def __init__(
        self, x: Tensor, y: Tensor, rows: np.ndarray, weight: Tensor, by_errors: bool, scaled: bool = False
    ):
        self.temperatures = _TEMPERATURES if scaled and not by_errors else (1.0,)
        self.rows = torch.from_numpy(rows)[None]
        self.weight, weights = weight, weight[self.rows[0]]
        self.weights = (weights / weights.sum())[:, None]
        self.x, self.y, self.by_errors = x, y, by_errors
        known = (y[self.rows[0]] >= 0).sum(1)
        self.n_known = float((known * weights).sum() / weights.sum())

    def _of_rows(self, energy: ChainEnergy) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        values = torch.zeros(len(self.rows[0]), len(self.temperatures), dtype=torch.float64)
        lengths = (~self.x[self.rows[0], :, 0].isnan()).sum(1).tolist()
        for part in in_batches(lengths):
            rows = self.rows[0][torch.from_numpy(part.copy())]
            device = next(energy.parameters()).device
            chain, y = energy.given(self.x[rows].to(device)), self.y[rows].to(device)
            if self.by_errors:
                found = chains.viterbi(chain).labels
                wrong = (found != y[:, : found.shape[1]]) & (y[:, : found.shape[1]] >= 0)
                of_rows = wrong.sum(1, keepdim=True)
            else:
                of_rows = torch.stack([nll(chain.tempered(t), y) for t in self.temperatures], -1)
            values[part.copy()] = of_rows.double().cpu()
        best = (values * self.weights).sum(0).argmin()
        return (values / self.n_known)[:, best, None], self.weights


def nll(chain: LabelChain, y: Tensor) -> Tensor:
    """-log p of labels ``[B]``; where some are unknown, of those that are known."""
    return free_energy_of(chain, y) - chains.free_energy(chain)


def start_from_counts(energy: ChainEnergy, places: Sequence[np.ndarray]) -> None:
    """Set the terms of pairs to how much rarer each is than by chance, -log of the ratio, as a start of learning.

    Args:
        places: labels of sequences, -1 where unknown.
    """
    counts = sequences.label_counts(places, len(energy.start))
    pairs = counts.pairs + 0.5
    share = (counts.labels + 0.5) / (counts.labels + 0.5).sum()

    def rarity(found: np.ndarray, expected: np.ndarray) -> Tensor:
        return torch.from_numpy(-np.log(found / found.sum() / expected)).float().clamp(-3, 3)

    with torch.no_grad():
        energy.transitions.copy_(rarity(pairs, pairs.sum(1, keepdims=True) * pairs.sum(0) / pairs.sum() ** 2))
        energy.start.copy_(rarity(counts.first + 0.5, share))
        energy.end.copy_(rarity(counts.last + 0.5, share))
