"""Digits in tasks, learned by an energy for each class and by its rivals, under four protocols.

Source: the protocols [van de Ven 2022]; networks that start anew from stored images [Prabhu 2020].
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import plotly.graph_objects as go
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.neural_network import MLPClassifier

from thalweg.data.images import Images
from thalweg.estimators.incremental import IncrementalClassifier
from thalweg.recipes.base import Figure, Settings

N_TASKS = 5


class Task(NamedTuple):
    """What comes at one time ``[n, pixels]``, ``[n]``, and the test images of that kind."""

    X: np.ndarray
    y: np.ndarray
    test_X: np.ndarray
    test_y: np.ndarray


class Learner(Protocol):
    """What learns from tasks one after another."""

    def partial_fit(self, X: np.ndarray, y: np.ndarray) -> Any: ...
    def answer(self, X: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
        """The labels of images ``[n, pixels]``, among some of all labels where these are given."""
        ...


class Stored:
    """A model of scikit-learn that is fitted to stored rows when it is asked.

    Of means, covariances and variances nothing else would come out if they were updated on the way, without rows.

    Args:
        model: the model.
        budget: keeps that many rows, as many of each label; None keeps all.
        seed: of which rows are kept.
    """

    def __init__(self, model: Any, budget: int | None = None, seed: int = 0):
        self.model, self.budget, self.seed = model, budget, seed
        self.parts: list[tuple[np.ndarray, np.ndarray]] = []

    def partial_fit(self, X: np.ndarray, y: np.ndarray) -> None:
        self.parts.append((X, y))

    def answer(self, X: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
        rows, labels = (np.concatenate(part) for part in zip(*self.parts, strict=True))
        order = np.random.RandomState(self.seed).permutation(len(labels))
        if self.budget is not None:
            kinds = np.unique(labels)
            share = self.budget // len(kinds)
            order = np.concatenate([order[labels[order] == k][:share] for k in kinds])
        if among is not None:
            order = order[np.isin(labels[order], among)]
        with warnings.catch_warnings():
            # Networks stop at their number of epochs; covariances of few rows, or constant pixels, are singular.
            warnings.simplefilter("ignore")
            return np.asarray(clone(self.model).fit(rows[order], labels[order]).predict(X))


class FineTuned:
    """A softmax network that goes on with each task and keeps nothing of those before."""

    def __init__(self, n_epochs: int, seed: int, labels: np.ndarray):
        self.network = MLPClassifier((256, 256), random_state=seed)
        self.n_epochs, self.labels = n_epochs, labels

    def partial_fit(self, X: np.ndarray, y: np.ndarray) -> None:
        for _ in range(self.n_epochs):
            self.network.partial_fit(X, y, classes=self.labels)

    def answer(self, X: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
        return likeliest(self.network.predict_proba(X), self.labels, among)


class Growing:
    """An energy for each class, added when it comes."""

    def __init__(self, **settings: Any):
        self.model = IncrementalClassifier(**settings)

    def partial_fit(self, X: np.ndarray, y: np.ndarray) -> None:
        self.model.partial_fit(X, y)

    def answer(self, X: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
        return likeliest(self.model.predict_log_proba(X), self.model.classes_, among)


def likeliest(scores: np.ndarray, labels: np.ndarray, among: np.ndarray | None) -> np.ndarray:
    """The label of the largest of the scores ``[n, labels]``, among some of them where these are given."""
    if among is not None:
        scores = np.where(np.isin(labels, among), scores, -np.inf)
    return np.asarray(labels[scores.argmax(1)])


def learners(settings: Settings, seed: int, tasks: list[Task]) -> dict[str, Callable[[], Learner]]:
    """All that is compared, by name. What is chosen of them was chosen on a fifth of the 8 x 8 training images."""
    labels, counts = np.unique(np.concatenate([task.y for task in tasks]), return_counts=True)
    dumb = MLPClassifier((256, 256), max_iter=5 if settings.quick else 100, random_state=seed)
    found: dict[str, Callable[[], Learner]] = {
        "growing": lambda: Growing(),
        "growing, separate": lambda: Growing(parts="separate"),
        "growing, mixtures": lambda: Growing(n_components=5, random_state=seed),
        "LDA": lambda: Stored(LinearDiscriminantAnalysis()),
        "LDA, shrunk": lambda: Stored(LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1)),
        "streaming LDA": lambda: Stored(LinearDiscriminantAnalysis(solver="lsqr", shrinkage=1e-4)),
        "Gaussian naive Bayes": lambda: Stored(GaussianNB(var_smoothing=0.1)),
        "nearest mean": lambda: Stored(NearestCentroid()),
        "nearest neighbour": lambda: Stored(KNeighborsClassifier(1)),
        "softmax network": lambda: FineTuned(3, seed, labels),
        "network, 200 stored": lambda: Stored(dumb, 200, seed),
        "network, 500 stored": lambda: Stored(dumb, 500, seed),
    }
    # scikit-learn refuses it for fewer rows.
    if counts.min() > tasks[0].X.shape[1]:
        found["QDA, shrunk"] = lambda: Stored(QuadraticDiscriminantAnalysis(reg_param=0.03))
    return found


# -- protocols ----------------------------------------------------------------------------------------------


def compare(settings: Settings, train: Images, test: Images) -> tuple[list[Figure], dict[str, go.Figure]]:
    """The accuracy of all learners under all protocols, for every seed, and a picture of it."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in PROTOCOLS}
    for seed in settings.seeds:
        for protocol, (tasks_of, task_is_given) in PROTOCOLS.items():
            tasks = tasks_of(_task(train, test), np.random.RandomState(seed))
            for name, make in learners(settings, seed, tasks).items():
                share = _accuracy(make(), tasks, task_is_given)
                found[protocol].setdefault(name, []).append(share)
            settings.tell(f"seed {seed}, {protocol}: " + _told(found[protocol]))
    target = None if settings.quick else 0.90 if train.pixels[0].size > 256 else 0.956
    figures = [
        Figure(
            f"{protocol}: {name} (share)",
            values,
            target if (protocol, name) == ("class", "growing") else None,
            False,
        )
        for protocol, rows in found.items()
        for name, values in rows.items()
    ]
    return figures, {"Accuracy under four protocols": _picture(found)}


def _task(train: Images, test: Images) -> Task:
    """All images as one task."""
    assert train.labels is not None
    assert test.labels is not None
    X, test_X = (images.pixels.reshape(len(images.pixels), -1) for images in (train, test))
    return Task(X, train.labels, test_X, test.labels)


def two_digits_each(whole: Task, rng: np.random.RandomState) -> list[Task]:
    """Five tasks of two digits, in random order."""
    tasks = []
    for pair in rng.permutation(10).reshape(N_TASKS, 2):
        own, new = np.isin(whole.y, pair), np.isin(whole.test_y, pair)
        tasks.append(Task(whole.X[own], whole.y[own], whole.test_X[new], whole.test_y[new]))
    return tasks


def odd_or_even(whole: Task, rng: np.random.RandomState) -> list[Task]:
    """The same tasks, and the label is whether the digit is odd: an even and an odd one in each."""
    evens, odds = (2 * rng.permutation(N_TASKS) + k for k in range(2))
    tasks = []
    for pair in zip(evens, odds, strict=True):
        own, new = np.isin(whole.y, pair), np.isin(whole.test_y, pair)
        tasks.append(Task(whole.X[own], whole.y[own] % 2, whole.test_X[new], whole.test_y[new] % 2))
    return tasks


def permuted(whole: Task, rng: np.random.RandomState) -> list[Task]:
    """Five tasks of all digits, the pixels of each task in an order of their own; the first as they are."""
    n_pixels = whole.X.shape[1]
    orders = [np.arange(n_pixels), *(rng.permutation(n_pixels) for _ in range(N_TASKS - 1))]
    return [Task(whole.X[:, order], whole.y, whole.test_X[:, order], whole.test_y) for order in orders]


# Each: the tasks, and whether a test image says of which task it is.
PROTOCOLS: dict[str, tuple[Callable[[Task, np.random.RandomState], list[Task]], bool]] = {
    "class": (two_digits_each, False),
    "task": (two_digits_each, True),
    "domain": (odd_or_even, False),
    "permuted": (permuted, False),
}


def _accuracy(learner: Learner, tasks: list[Task], task_is_given: bool) -> float:
    """The share of right answers to the test images of all tasks, after the last."""
    for task in tasks:
        learner.partial_fit(task.X, task.y)
    truth = np.concatenate([task.test_y for task in tasks])
    if task_is_given:
        found = np.concatenate([learner.answer(task.test_X, np.unique(task.y)) for task in tasks])
    else:
        found = learner.answer(np.concatenate([task.test_X for task in tasks]))
    return float((found == truth).mean())


def _told(rows: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {values[-1]:.3f}" for name, values in rows.items())


def _picture(found: dict[str, dict[str, list[float]]]) -> go.Figure:
    figure = go.Figure()
    for protocol, rows in found.items():
        figure.add_bar(x=list(rows), y=[float(np.mean(values)) for values in rows.values()], name=protocol)
    figure.update_layout(
        height=400,
        margin={"l": 50, "r": 10, "t": 20, "b": 45},
        yaxis={"title": "accuracy on all tasks", "range": [0, 1]},
    )
    return figure
