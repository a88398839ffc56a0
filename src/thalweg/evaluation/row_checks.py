"""Checks that compute from rows: of held-out likelihoods, of weights, and of samples beside the data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from scipy.stats import multivariate_normal, norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from thalweg.evaluation.calibration import expected_calibration_error
from thalweg.evaluation.generation import Rows, as_rows, median_distance, nearest_neighbours, precision_recall
from thalweg.evaluation.verdict import FEWEST_COMPARED, Check, check_baselines

_MOST_COMPARED, _MOST_FITTED = 500, 1000
_NEIGHBOURS = 5
# What is likelier than that may be chance.
_BY_CHANCE = 0.01
# Beyond so many times the spread of half of a column's values its tails are heavy.
_FAR = 15.0


def check_folds(log_prob: np.ndarray, rows: np.ndarray, inputs: np.ndarray | None = None) -> Check:
    """Whether rows are likelier under the model than under plain models fitted to other rows.

    These are a Gaussian, and where there are inputs a ridge regression with one spread for all rows.

    Args:
        log_prob: log p of rows that the model did not learn from ``[n]``; NaN where there is none.
        rows: the rows, or the targets ``[n, D]``.
        inputs: what the targets are predicted from, as numbers ``[n, F]``.
    """
    plain = {"one Gaussian": lambda: _gaussian_log_prob(rows)}
    if inputs is not None:
        plain["ridge regression"] = lambda: _ridge_log_prob(rows, inputs)
    return _beside(log_prob, plain)


def check_label_folds(log_prob: np.ndarray, labels: np.ndarray, inputs: np.ndarray) -> Check:
    """Whether labels are more probable under the model than under plain classifiers fitted to other rows.

    These are the shares of the labels, and a logistic regression.

    Args:
        log_prob: log p(label|x) of rows that the model did not learn from ``[n]``; NaN where there is none.
        labels: ``[n]``, whole numbers from 0.
        inputs: as numbers ``[n, F]``.
    """
    return _beside(log_prob, {name: partial(ask, labels, inputs) for name, ask in _PLAIN_CLASSIFIERS.items()})


def _beside(log_prob: np.ndarray, plain: Mapping[str, Callable[[], np.ndarray]]) -> Check:
    """The model's log p of rows ``[n]`` beside that of plain models, NaN where either was not asked."""
    name = "baselines on folds"
    known = np.flatnonzero(~np.isnan(log_prob))
    if not len(known):
        return Check(name, "doubtful", "No row was held out in training to compare the model with a baseline.")
    gains, n_compared = {}, 0
    for kind, ask in plain.items():
        gain = (log_prob - ask())[known]
        gain = gain[~np.isnan(gain)]
        n_compared = max(n_compared, len(gain))
        if len(gain):
            error = float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else 0.0
            gains[kind] = (float(gain.mean()), error)
    return replace(check_baselines(gains, n_compared, "rows of the training's folds"), name=name)


def check_calibration(probabilities: np.ndarray, labels: np.ndarray, n_draws: int = 200) -> Check:
    """Whether the probabilities of the predicted labels are the shares of them that are right.

    The expected calibration error is compared with those of labels drawn from the probabilities themselves.

    Args:
        probabilities: of held-out rows ``[n, C]``.
        labels: ``[n]``, whole numbers from 0.
    """
    name = "calibration"
    if len(labels) < FEWEST_COMPARED:
        return Check(name, "passed", "There are too few held-out rows to judge the probabilities.")
    found = expected_calibration_error(probabilities, labels, n_bins=10)
    best, rng = probabilities.max(1), np.random.RandomState(0)
    # Whether each prediction is right is all that counts: a draw of that is enough.
    place = np.minimum((best * 10).astype(int), 9)
    errors = []
    for _ in range(n_draws):
        gap = np.bincount(place, (rng.uniform(size=len(best)) < best) - best, minlength=10)
        errors.append(np.abs(gap).sum() / len(best))
    usual = float(np.quantile(errors, 0.99))
    text = f"The expected calibration error is {found:.3f}; of exact probabilities it is below {usual:.3f}"
    if found <= usual:
        return Check(name, "passed", f"{text} in 99 cases of 100.")
    advice = "Do not take the probabilities at their word"
    return Check(name, "failed" if found > usual + 0.1 else "doubtful", f"{text} in 99 cases of 100. {advice}.")


def _shares_log_prob(labels: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """log of the share of each row's label ``[n]`` among other rows, each label counting half a row more."""
    log_prob, n_labels = np.full(len(labels), np.nan), int(labels.max()) + 1
    for fitted, judged in _folds(len(labels)):
        counts = np.bincount(labels[fitted], minlength=n_labels) + 0.5
        log_prob[judged] = np.log(counts / counts.sum())[labels[judged]]
    return log_prob


def _logistic_log_prob(labels: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """log p of each row's label ``[n]`` under a logistic regression of other rows; NaN where it was not asked."""
    log_prob, n_labels = np.full(len(labels), np.nan), int(labels.max()) + 1
    for fitted, judged in _folds(len(labels)):
        if len(np.unique(labels[fitted])) < 2:
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(inputs[fitted], labels[fitted])
        # A label that none of the rows had counts as half a row.
        found = np.full((len(judged), n_labels), 0.5 / (len(fitted) + 0.5 * n_labels))
        found[:, model.classes_] = np.maximum(model.predict_proba(inputs[judged]), 1e-12)
        found /= found.sum(1, keepdims=True)
        log_prob[judged] = np.log(found[np.arange(len(judged)), labels[judged]])
    return log_prob


_PLAIN_CLASSIFIERS = {"shares of the labels": _shares_log_prob, "logistic regression": _logistic_log_prob}


def _folds(n_rows: int, n_folds: int = 5) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit and rows to judge, of at most a thousand rows."""
    chosen = np.random.RandomState(0).permutation(n_rows)[:_MOST_FITTED]
    for part in np.array_split(chosen, min(n_folds, len(chosen))):
        yield np.setdiff1d(chosen, part), part


def _ridge_log_prob(targets: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """log p of each row's targets ``[n]`` under a ridge regression of other rows; NaN where it was not asked."""
    log_prob = np.full(len(targets), np.nan)
    for fitted, judged in _folds(len(targets)):
        if len(fitted) < 3:
            continue
        total = np.zeros(len(judged))
        for y in targets.T:
            ridge = RidgeCV(np.logspace(-2, 5, 8)).fit(inputs[fitted], y[fitted])
            # Of the best penalty the error of rows left out, one at a time.
            std = max(np.sqrt(max(-ridge.best_score_, 0.0)), 1e-3 * y[fitted].std(), 1e-300)
            total += norm(ridge.predict(inputs[judged]), std).logpdf(y[judged])
        log_prob[judged] = total
    return log_prob


def _gaussian_log_prob(rows: np.ndarray) -> np.ndarray:
    """log p of each row ``[n]`` under a Gaussian with the moments of other rows; NaN where it was not asked."""
    log_prob, scale = np.full(len(rows), np.nan), rows.std(0)
    z = (rows - rows.mean(0)) / scale
    for fitted, judged in _folds(len(rows)):
        if len(fitted) > 1:
            covariance = np.atleast_2d(np.cov(z[fitted].T)) + 1e-6 * np.eye(z.shape[1])
            gaussian = multivariate_normal(z[fitted].mean(0), covariance)
            log_prob[judged] = gaussian.logpdf(z[judged]) - np.log(scale).sum()
    return log_prob


def check_units(weights: np.ndarray) -> Check:
    """Whether hidden units have learned different things.

    Args:
        weights: of the hidden units ``[hidden, width]``.
    """
    length = np.linalg.norm(weights, axis=1, keepdims=True)
    unit = weights / np.maximum(length, 1e-12)
    n = len(unit)
    alike = float((np.abs(unit @ unit.T).sum() - n) / max(n * (n - 1), 1))
    found = f"The weights of two hidden units have a cosine of {alike:.2f} on average"
    if alike > 0.8:
        text = f"{found}: they have nearly all learned the same. Lower the learning rate, or take fewer units."
        return Check("hidden units", "failed", text)
    if alike > 0.6:
        return Check("hidden units", "doubtful", f"{found}: many have learned the same. Lower the learning rate.")
    return Check("hidden units", "passed", f"{found}: they have learned different things.")


def check_samples(samples: Rows, training: Rows, held_out: Rows, what: str = "draws") -> list[Check]:
    """Whether samples are as varied as held-out rows, no copies of training rows and no noise.

    Distances are Euclidean: of rows of a table in standard deviations of the training rows' entries, with heavy
    tails taken by asinh; of images in grey levels, since all pixels have one unit, and one that is nearly always
    black would count for more than all the others.

    Args:
        samples: from the model ``[n, ...]``.
        training: what it learned from ``[m, ...]``.
        held_out: rows of the same source ``[h, ...]``; with fewer than 20 nothing can be said.
        what: what the samples are called.
    """
    if len(held_out) < FEWEST_COMPARED:
        return []
    if not np.isfinite(samples).all():
        return [Check("samples", "failed", f"Some {what} are not finite.")]
    known = as_rows(training, "the training rows", 1)
    rng = np.random.RandomState(0)
    drawn, fresh = (_some(as_rows(rows, "samples", 1), rng) for rows in (samples, held_out))
    if np.ndim(training) == 2:
        drawn, fresh, known = (_even(rows, known) for rows in (drawn, fresh, known))
    return [
        check_variety(drawn, fresh, what),
        _check_likeness(
            nearest_neighbours(drawn, known).distance, nearest_neighbours(fresh, known).distance, what
        ),
    ]


def check_variety(samples: Rows, rows: Rows, what: str = "draws") -> Check:
    """Whether samples lie as far from one another as rows of the data do.

    Args:
        samples: from the model, or the ends of chains ``[n, ...]``.
        rows: of the data ``[m, ...]``.
        what: what the samples are called.
    """
    if min(len(samples), len(rows)) < 2:
        return Check("variety", "passed", f"There are too few {what} or rows to compare.")
    rng = np.random.RandomState(0)
    drawn, real = (_some(as_rows(values, "samples", 2), rng) for values in (samples, rows))
    spread = _spread(real)
    if not spread:
        text = f"All rows of the data that were compared are equal: how much {what} should vary can't be said."
        return Check("variety", "doubtful", text)
    ratio = _spread(drawn) / spread
    if not ratio:
        # Of data that are nearly all equal, so may all draws be.
        share = np.unique(real, axis=0, return_counts=True)[1].max() / len(real)
        if share ** len(drawn) > _BY_CHANCE:
            return Check("variety", "passed", f"All {what} are equal, as nearly all rows of the data are.")
    found = f"The distance of two {what} is {ratio:.2f} of that of two rows of the data"
    if ratio < 0.5:
        return Check("variety", "failed", f"{found}: they are nearly all alike. Most of the data are lost.")
    if ratio < 0.75:
        return Check("variety", "doubtful", f"{found}: they vary too little.")
    if ratio > 2:
        return Check("variety", "failed", f"{found}: they are noise. Train longer.")
    if ratio > 1.4:
        return Check("variety", "doubtful", f"{found}: they vary too much.")
    return Check("variety", "passed", f"{found}.")


def _spread(rows: np.ndarray) -> float:
    """The median distance of two different rows, 0 where all that are compared are equal."""
    try:
        return median_distance(rows)
    except ValueError:
        return 0.0


def check_modes(samples: Rows, rows: Rows, what: str = "draws") -> Check:
    """Whether samples lie everywhere where rows of the data do, rather than in some of the regions.

    The share of the rows that have a sample nearer than their fifth neighbour: the coverage of [Naeem 2020]. A
    generator that has lost some kinds of rows may still vary much.

    Args:
        samples: from the model ``[n, ...]``.
        rows: of the data ``[m, ...]``.
        what: what the samples are called.
    """
    name, n = "modes", min(len(samples), len(rows), _MOST_COMPARED)
    if n < FEWEST_COMPARED:
        return Check(name, "passed", f"There are too few {what} or rows to compare.")
    rng = np.random.RandomState(0)
    drawn, real = (
        values[rng.permutation(len(values))[:n]] for values in (as_rows(samples, "s", 2), as_rows(rows, "r", 2))
    )
    share = precision_recall(drawn, real, _NEIGHBOURS).coverage
    usual = 1 - 0.5**_NEIGHBOURS
    found = (
        f"{100 * share:.0f} % of the rows of the data have one of the {what} nearer than their fifth neighbour, "
        f"where fresh rows would reach {100 * usual:.0f} %"
    )
    if share < 0.3:
        return Check(name, "failed", f"{found}: most kinds of rows are never drawn.")
    if share < 0.6:
        return Check(
            name, "doubtful", f"{found}: some kinds of rows are never drawn, or all {what} are a bit off."
        )
    return Check(name, "passed", f"{found}.")


def check_copies(samples: Rows, training: Rows, what: str = "draws") -> Check:
    """Whether samples are neither copies of training rows nor noise, without any row held out.

    Each training row has its nearest other one: samples that are copies lie much nearer than that.

    Args:
        samples: from the model ``[n, ...]``.
        training: what it learned from ``[m, ...]``.
        what: what the samples are called.
    """
    name = "samples"
    if not np.isfinite(samples).all():
        return Check(name, "failed", f"Some {what} are not finite.")
    if min(len(samples), len(training)) < FEWEST_COMPARED:
        return Check(name, "passed", f"There are too few {what} or rows to compare.")
    known = as_rows(training, "the training rows", 2)
    rng = np.random.RandomState(0)
    drawn, some = _some(as_rows(samples, "samples", 1), rng), rng.permutation(len(known))[:_MOST_COMPARED]
    drawn, known = _even(drawn, known), _even(known, known)
    # The nearest training row of a training row is itself.
    between = NearestNeighbors(n_neighbors=2).fit(known).kneighbors(known[some])[0][:, 1]
    return _check_likeness(nearest_neighbours(drawn, known).distance, between, what)


def check_balance(gamma: float, of_data: float, of_draws: float) -> Check:
    """Whether the game of BEGAN is balanced: the energy of draws is gamma times that of the data.

    Args:
        gamma: the ratio that the game was to be kept at.
        of_data, of_draws: mean energies.
    """
    name, off = "balance", abs(gamma * of_data - of_draws) / max(of_data, 1e-12)
    found = (
        f"The energy of draws is {of_draws / max(of_data, 1e-12):.2f} of that of the data, and was to be {gamma:g}"
    )
    if off > 0.5:
        return Check(name, "failed", f"{found}: one player has won. Take another gamma, or a lower rate.")
    if off > 0.1:
        return Check(name, "doubtful", f"{found}: train longer, or take a larger k_rate.")
    return Check(name, "passed", f"{found}.")


def _check_likeness(drawn: np.ndarray, fresh: np.ndarray, what: str) -> Check:
    """From the distances of samples and of held-out rows to their nearest training rows."""
    name = "samples"
    # No held-out row is so far from all training rows; of real ones about one in so many would be.
    far = float(np.mean(drawn > 1.25 * fresh.max()))
    error = float(np.sqrt(max(far * (1 - far), 1 / len(drawn)) / len(drawn)))
    allowed = 1 / (len(fresh) + 1)
    if far > allowed + 2 * error and far > 0.02:
        found = (
            f"{100 * far:.0f} % of the {what} are farther from all training rows than any held-out row is: noise."
        )
        return Check(name, "failed" if far > 0.1 else "doubtful", f"{found} Train longer, or otherwise.")
    middle = float(np.median(fresh))
    if middle > 0:
        ratio = float(np.median(drawn)) / middle
        if ratio < 0.5:
            found = f"The {what} lie {ratio:.2f} times as far from the nearest training rows as held-out rows do"
            return Check(name, "failed" if ratio < 0.2 else "doubtful", f"{found}: they are near copies of them.")
    return Check(name, "passed", f"The {what} are as far from the training rows as held-out rows are.")


def _some(rows: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    return rows if len(rows) <= _MOST_COMPARED else rows[rng.permutation(len(rows))[:_MOST_COMPARED]]


def _even(rows: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Rows on scales on which the columns of known rows are spread alike."""
    low, middle, high = np.quantile(known, [0.25, 0.5, 0.75], axis=0)
    width = (high - low) / 1.349
    far = (width > 0) & (np.abs(known - middle).max(0) > _FAR * width)
    std = known.std(0)
    even = rows / np.where(std > 0, std, 1.0)
    even[:, far] = np.arcsinh((rows[:, far] - middle[far]) / width[far])
    return even
