"""Parts of a classifier: labels checked and numbered, folds by label, the held-out figure of its members."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d
from torch import Tensor, nn

from thalweg.energies.labelled import LabelledEnergy
from thalweg.energies.networks.labelled_members import LabelledMembers
from thalweg.estimators._held_out import NestedFigure, judging_rows

UNLABELLED = -1


def numbered(y: Any, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The classes, in order, and each row's place among them ``[n]``, -1 where a row has no label.

    A row whose label is the number -1 has none, as in scikit-learn, unless all other labels are one.

    Raises:
        ValueError: for labels that are missing, not one for each row, no classes, or all the same.
    """
    labels = checked_labels(y, n_rows)
    classes, places = np.unique(labels, return_inverse=True)
    if len(classes) > 2 and classes.dtype.kind in "if" and classes[0] == UNLABELLED:
        classes, places = classes[1:], places - 1
    if len(classes) < 2:
        raise ValueError(
            f"all rows have the label {classes[0]!r}: a classifier can't learn from one class, give rows of "
            "another too"
        )
    return classes, places


def checked_labels(y: Any, n_rows: int) -> np.ndarray:
    """Labels ``[n]``, one for each row.

    Raises:
        ValueError: for labels that are missing, not one for each row, or no classes.
    """
    labels = column_or_1d(y, warn=True)
    if len(labels) != n_rows:
        raise ValueError(
            f"X has {n_rows} rows, y has {len(labels)}: Found input variables with inconsistent numbers of samples"
        )
    gaps = pd.isna(labels)
    if gaps.any():
        row = int(np.flatnonzero(gaps)[0]) + 1
        raise ValueError(
            f"Input y contains NaN: the label of row {row} is missing ({int(gaps.sum())} in all); leave such rows "
            "out, or number the labels and give -1 where there is none"
        )
    if labels.dtype.kind == "f" and np.isinf(labels).any():
        raise ValueError("Input y contains infinity: labels are classes, such as 0, 1 and 2")
    check_kind_of_labels(labels)
    return labels


def check_kind_of_labels(labels: np.ndarray) -> None:
    """Refuse labels ``[n]`` that are no classes: bytes, texts beside numbers, measured numbers.

    Raises:
        ValueError: in words.
    """
    if len(labels) and isinstance(labels[0], bytes):
        raise ValueError(
            f"Unknown label type: y holds bytes, such as {bytes(labels[0])!r}: write the labels as texts"
        )
    if labels.dtype == object and len({isinstance(v, str) for v in labels}) > 1:
        raise ValueError("Unknown label type: y mixes texts and numbers: write all labels in one way")
    check_classification_targets(labels)


def folds_by_label(labels: np.ndarray, n_members: int, rng: np.random.RandomState) -> np.ndarray:
    """Which rows each member does not learn from ``[n, members]``: folds with each label as often as elsewhere.

    A single member holds out a tenth.
    """
    n = len(labels)
    order = np.lexsort((rng.uniform(size=n), labels))
    n_folds = max(2, min(n_members if n_members > 1 else 10, n))
    fold = np.empty(n, dtype=int)
    # Rows in order of their labels take the folds in turn.
    fold[order] = np.arange(n) % n_folds
    return fold[:, None] == np.arange(n_members) % n_folds


class HeldOutLogLoss(NestedFigure):
    """Minus the mean log probability of the labels of rows that a member did not learn from.

    Args:
        x: inputs of all rows ``[n, *event]``.
        labels: of all rows ``[n]``.
        held_out: which rows judge each member ``[n, members]``.
        weight: of the rows ``[n]``, or None.
        seed: of the order of the rows.
    """

    def __init__(
        self, x: Tensor, labels: Tensor, held_out: np.ndarray, weight: np.ndarray | None = None, seed: int = 0
    ):
        self.rows, self.weights = judging_rows(held_out, weight, seed)
        self.x, self.labels = x, labels.long()

    def _of_rows(self, energy: nn.Module) -> tuple[Tensor, Tensor]:
        scores = self.scores(energy)
        labels = self.labels[self.rows]
        loss = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
        return loss.T, self.weights.T

    def gain_of_all(self, energy: nn.Module, temperature: float) -> float:
        """What the members together gain over one alone, in nats a row, on all rows that have a label.

        Rows that they have learned from say it well enough: there they differ a little less than on new ones.
        """
        if not isinstance(energy, LabelledMembers) or energy.n_members == 1:
            return 0.0
        device, gains = next(energy.parameters()).device, []
        for rows in torch.nonzero(self.labels >= 0)[:, 0].split(2048):
            scores = energy.member_scores(self.x[rows].to(device)).cpu()
            log_probs = torch.log_softmax(scores / temperature, -1)
            own = log_probs.gather(-1, self.labels[rows].expand(len(log_probs), -1)[..., None])[..., 0].double()
            gains.append(torch.logsumexp(own, 0) - math.log(len(own)) - own.mean(0))
        return float(torch.cat(gains).mean())

    def scores(self, energy: nn.Module) -> Tensor:
        """Scores of the rows that judge each member ``[members, rows, labels]``."""
        device, parts = next(energy.parameters()).device, []
        for rows in self.rows.split(2048, 1):
            if isinstance(energy, LabelledMembers):
                parts.append(energy.member_scores(self.x[rows].to(device)).cpu())
            else:
                assert isinstance(energy, LabelledEnergy)
                parts.append(-energy.energies(self.x[rows[0]].to(device))[None].cpu())
        return torch.cat(parts, 1)
