"""Figures and baselines of labelled sequences: accuracies, spans, logistic regressions element by element."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix, hstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from thalweg.data.sequences import in_batches, label_counts, padded
from thalweg.energies.factors.chain import LabelChain
from thalweg.inference import chains

_LEAST = 1e-12
# A logistic regression of more elements takes longer than the model.
_MOST_ELEMENTS = 40_000


class Mean(NamedTuple):
    """A mean over elements and its standard error, by the variation from sequence to sequence."""

    value: float
    error: float


def mean_over_elements(of_elements: Sequence[np.ndarray]) -> Mean:
    """The mean of values of elements, sequence by sequence: those of one sequence are not independent."""
    sums, counts = np.array([v.sum() for v in of_elements]), np.array([len(v) for v in of_elements])
    value = sums.sum() / counts.sum()
    n = len(sums)
    # A ratio of two sums, to first order [Cochran 1977, sec. 6.3].
    spread = np.square(sums - value * counts).sum() * n / max(1, n - 1)
    return Mean(float(value), float(np.sqrt(spread) / counts.sum()))


def are_spans(classes: Sequence[Any]) -> bool:
    """Whether labels are tags of spans: B-X at the beginning, I-X inside, O outside."""
    names = [str(name) for name in classes]
    return any(name.startswith("B-") for name in names) and all(
        name == "O" or name.startswith(("B-", "I-")) for name in names
    )


def spans_of(labels: Sequence[str]) -> set[tuple[int, int, str]]:
    """The spans that tags name: where each begins, where it ends (not included), and its kind.

    An I-X that goes on nothing begins a span, as in the evaluation of CoNLL.
    """
    found, start, kind = set(), None, ""
    for t, label in enumerate([*labels, "O"]):
        inside = label.startswith("I-") and label[2:] == kind and start is not None
        if inside:
            continue
        if start is not None:
            found.add((start, t, kind))
        start, kind = (None, "") if label == "O" else (t, label[2:])
    return found


def span_f1(truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """The harmonic mean of precision and recall of whole spans; 0 where no span is right."""
    right = n_true = n_predicted = 0
    for ours, theirs in zip(truth, predicted, strict=True):
        a, b = spans_of(ours), spans_of(theirs)
        right, n_true, n_predicted = right + len(a & b), n_true + len(a), n_predicted + len(b)
    return 2 * right / (n_true + n_predicted) if right else 0.0


class ElementLogistic:
    """A logistic regression of each element's label, blind to its neighbours' labels.

    Args:
        n_numbers: how many numbers an element has; the places of its features follow them.
        n_vocabulary: features in the vocabulary.
    """

    name = "logistic regression"

    def __init__(self, n_numbers: int, n_vocabulary: int):
        self.n_numbers, self.n_vocabulary = n_numbers, n_vocabulary

    def fit(self, rows: Sequence[np.ndarray], places: Sequence[np.ndarray], n_labels: int) -> ElementLogistic:
        """Fit to elements ``[T, numbers + features]`` of sequences and their labels ``[T]``, -1 where unknown."""
        x, y = np.concatenate(rows), np.concatenate(places)
        kept = np.flatnonzero(y >= 0)
        if len(kept) > _MOST_ELEMENTS:
            kept = np.sort(np.random.RandomState(0).permutation(kept)[:_MOST_ELEMENTS])
        self.n_labels = n_labels
        model = LogisticRegression(C=1.0, max_iter=200)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model = model.fit(self._numbers(x[kept]), y[kept])
        return self

    def log_prob(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """log p(label | element) ``[T, labels]`` of each sequence."""
        p = np.full((sum(len(r) for r in rows), self.n_labels), _LEAST)
        p[:, self._model.classes_] = np.maximum(
            self._model.predict_proba(self._numbers(np.concatenate(rows))), _LEAST
        )
        return np.split(np.log(p / p.sum(1, keepdims=True)), np.cumsum([len(r) for r in rows])[:-1])

    def labels(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The predicted labels ``[T]`` of each sequence."""
        return [found.argmax(1) for found in self.log_prob(rows)]

    def _numbers(self, x: np.ndarray) -> Any:
        numbers, places = x[:, : self.n_numbers], x[:, self.n_numbers :].astype(int)
        if not places.shape[1]:
            return numbers
        row, column = np.nonzero(places)
        ones = csr_matrix((np.ones(len(row)), (row, places[row, column] - 1)), (len(x), self.n_vocabulary))
        return hstack([csr_matrix(numbers), ones]).tocsr() if self.n_numbers else ones


class LogisticWithTransitions(ElementLogistic):
    """The same, and how often each label follows each: p(y) ~ prod p(y_t | x_t) p(y_t | y_{t-1}) / p(y_t).

    The hidden Markov model of these parts, as speech recognisers use it.

    Source: [Bourlard 1994].
    """

    name = "logistic regression with transitions"

    def fit(
        self, rows: Sequence[np.ndarray], places: Sequence[np.ndarray], n_labels: int
    ) -> LogisticWithTransitions:
        super().fit(rows, places, n_labels)
        labels, pairs, first, _ = (counts + 0.1 for counts in label_counts(places, n_labels))
        self._log_share = np.log(labels / labels.sum())
        self._transitions = -np.log(pairs / pairs.sum(1, keepdims=True))
        self._first = -np.log(first / first.sum())
        return self

    def log_prob(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        return self._ask(rows, lambda chain: chains.marginals(chain).clamp_min(_LEAST).log())

    def labels(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        return self._ask(rows, lambda chain: chains.viterbi(chain).labels)

    def _ask(self, rows: Sequence[np.ndarray], ask: Any) -> list[np.ndarray]:
        unary = [self._log_share - found for found in super().log_prob(rows)]
        found: list[Any] = [None] * len(unary)
        lengths = np.array([len(u) for u in unary])
        for part in in_batches(lengths):
            terms = padded([unary[i] for i in part], 0.0)
            chain = LabelChain(
                torch.from_numpy(terms),
                torch.from_numpy(self._transitions),
                torch.from_numpy(self._first),
                mask=torch.from_numpy(np.arange(terms.shape[1]) < lengths[part, None]),
            )
            for i, answer in zip(part, ask(chain).numpy(), strict=True):
                found[i] = answer[: len(unary[i])]
        return found


BASELINES = (ElementLogistic, LogisticWithTransitions)
