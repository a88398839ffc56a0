"""``IncrementalClassifier``: a classifier to which classes are added one after another, and that forgets none."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from thalweg.energies.densities.running import RunningGaussian
from thalweg.energies.growing import GrowingEnergy
from thalweg.estimators._base import (
    Estimator,
    RandomState,
    check_count,
    check_counts,
    draw_seed,
    generator_of,
)
from thalweg.estimators._labels import checked_labels
from thalweg.estimators._whole_rows import table_of_numbers
from thalweg.evaluation.verdict import Check, Verdict, check_classes, check_normaliser, check_rows
from thalweg.training.history import History

PARTS = ("pooled", "separate")
# A part of a class is not cut into Gaussians of fewer rows, on average.
_ROWS_OF_A_COMPONENT = 20
_ROWS_AT_ONCE = 4096
_KINDS = {"U": "texts", "O": "texts", "b": "truth values", "i": "numbers", "u": "numbers", "f": "numbers"}


class IncrementalClassifier(ClassifierMixin, Estimator):
    """Classes that arrive one after another, in any order: an energy for each, and no row kept.

    Each class y has an energy of its own, E_y(x) = -log p(x|y), normalised by itself. So energies that were
    learned at different times can be compared, p(y|x) follows from them and from how often each class came, and
    **nothing can be forgotten**: :meth:`partial_fit` adds or updates the energies of the classes in its rows, and
    those of the others stay the same bit for bit. The order of the classes makes no difference.

    By default the energy of a class is one Gaussian: its mean, and its covariance plus that of noise of known
    size. **That is quadratic discriminant analysis with a fixed ridge**, in a form that is updated exactly; rows
    of a class that come in several parts give the same as all of them at once, up to rounding. With more than one
    of ``n_components`` it is a mixture of Gaussians, more accurate where a class has hundreds of rows.

    Columns must be numbers, in units in which ``noise_std`` makes sense: pixels in [0, 1], or columns divided by
    a typical spread of theirs that is known beforehand. A scaler that is refitted on the way moves the ground
    under the energies that are there. With hundreds of columns probabilities are far too sure. Constant columns
    are taken, and classes of one row. The label -1 is one like others.

    Args:
        noise_std: standard deviation of the noise, in the units of the columns; one number, or one for each
            column. With much of it the nearest mean decides.
        n_components: Gaussians of a class. Its first part decides where they are, by k-means, and fewer if it has
            fewer than 20 rows for each.
        parts: what becomes of later rows of a class. "pooled": they join the Gaussian that fits each best; with
            one component that is exact, with several the order of the parts of a class matters a little.
            "separate": each call adds Gaussians of its own, weighted by their rows, for classes whose parts differ
            in kind (another domain, another writer). The order does not matter; the model grows with the calls.
        random_state: seed, or a ``RandomState``, of k-means.

    Attributes:
        classes_: the labels so far, in order.
        class_count_: rows seen of each.
        energy_: the :class:`~thalweg.energies.GrowingEnergy`.
        history_: one record for each call: rows, classes, and Gaussians afterwards.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> X, y = load_digits(return_X_y=True)
        >>> model = IncrementalClassifier()
        >>> for digit in (3, 1, 4):
        ...     model = model.partial_fit(X[y == digit] / 16, y[y == digit])
        >>> model.classes_
        array([1, 3, 4])
        >>> model.predict_proba(X[:2] / 16).shape
        (2, 3)

    Source: one generative model a class [van de Ven 2021]; [Hayes 2020] is its linear counterpart.
    """

    # The checks of saved models ask for it: there is none of the user's own.
    energy = None
    energy_: GrowingEnergy
    classes_: np.ndarray

    def __init__(
        self,
        *,
        noise_std: float | Sequence[float] = 0.17,
        n_components: int = 1,
        parts: str = "pooled",
        random_state: RandomState = None,
    ):
        self._keep(locals())

    # -- learning ------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any) -> IncrementalClassifier:
        """Forget everything, and learn from these rows.

        Args:
            X: rows of numbers ``[n, columns]``.
            y: labels ``[n]``, numbers or texts.

        Raises:
            ValueError: for settings or data that can't be used, in words.
        """
        self._learn(X, y, None, first=True)
        self._conclude(self._checks())
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> IncrementalClassifier:
        """Learn from further rows, which may be of classes that were seen before and of new ones.

        Args:
            X: rows of numbers ``[n, columns]``.
            y: labels ``[n]``, of the kind of those before.
            classes: every label that may be there by now. It need not be given; where it is, others are refused.

        Raises:
            ValueError: for settings or data that can't be used, in words; the model is then as it was.
        """
        self._learn(X, y, classes, first=not hasattr(self, "energy_"))
        # A stream begins with few rows: the verdict says so, without a warning at every call.
        self.verdict_ = Verdict(self._checks())
        return self

    def _learn(self, X: Any, y: Any, classes: Any, *, first: bool) -> None:
        self._check_settings()
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        rows = validate_data(self, table_of_numbers(X), reset=first, dtype=np.float64)
        labels = checked_labels(y, len(rows))
        present = np.unique(labels)
        known = present[:0] if first else self.classes_
        _check_same_kind(known, present)
        together = np.union1d(known, present)
        _check_named(together, classes)
        noise_std = self._noise(rows.shape[1])
        if first:
            self._seed = draw_seed(check_random_state(self.random_state))
            self.history_ = History(stopped="learned in closed form")
        before = {} if first else dict(zip(known.tolist(), self.energy_.components, strict=True))
        components = []
        for label in together.tolist():
            own, new = list(before.get(label, [])), torch.from_numpy(rows[labels == label])
            components.append(self._with_rows(own, new, noise_std) if len(new) else own)
        self.classes_, self.energy_ = together, GrowingEnergy(components)
        record = {"rows": len(rows), "classes": len(together), "Gaussians": sum(map(len, components))}
        self.history_.epochs.append({"epoch": len(self.history_.epochs) + 1, **record})

    def _with_rows(self, own: list[RunningGaussian], rows: Tensor, noise_std: Tensor) -> list[RunningGaussian]:
        """The Gaussians of a class after further rows of it ``[n, D]``."""
        if own and self.parts == "pooled":
            which = torch.stack([g.log_prob(rows) + g.count.log() for g in own]).argmax(0)
            return [g.updated(rows[which == c]) if bool((which == c).any()) else g for c, g in enumerate(own)]
        which = self._clusters(rows)
        return own + [RunningGaussian(noise_std).updated(rows[which == c]) for c in which.unique()]

    def _clusters(self, rows: Tensor) -> Tensor:
        """The Gaussian ``[n]`` to which each of these rows belongs."""
        n = min(self.n_components, len(rows) // _ROWS_OF_A_COMPONENT)
        if n < 2:
            return torch.zeros(len(rows), dtype=torch.long)
        with warnings.catch_warnings():
            # There may be fewer different rows than clusters.
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = KMeans(n, n_init=3, random_state=self._seed).fit_predict(rows.numpy())
        return torch.from_numpy(found).long()

    def _check_settings(self) -> None:
        check_counts(self, "n_components")
        if self.parts not in PARTS:
            raise ValueError(f"parts must be one of {', '.join(PARTS)}; got {self.parts!r}")

    def _noise(self, n_columns: int) -> Tensor:
        """The standard deviation of the noise of each column."""
        try:
            found = np.asarray(self.noise_std, dtype=np.float64)
        except (TypeError, ValueError):
            found = np.array(np.nan)
        if not (np.isfinite(found).all() and (found > 0).all()):
            raise ValueError(f"noise_std must be positive, one number or one a column; got {self.noise_std!r}")
        if found.shape not in ((), (n_columns,)):
            raise ValueError(f"noise_std has the shape {found.shape}, and X has {n_columns} columns")
        return torch.from_numpy(np.broadcast_to(found, n_columns).copy())

    def _checks(self) -> list[Check]:
        counts = self.class_count_
        return [
            check_rows(int(counts.sum())),
            check_classes(self.classes_.tolist(), counts.tolist()),
            check_normaliser(0.0, None),
        ]

    @property
    def class_count_(self) -> np.ndarray:
        """Rows seen of each class ``[classes]``."""
        return self.energy_.counts.numpy()

    # -- use -----------------------------------------------------------------------------------------

    def energies(self, X: Any) -> np.ndarray:
        """E_y(x) = -log p(x|y) in nats ``[n, classes]``, in the order of ``classes_``; log Z_y is 0."""
        rows = self._rows(X)
        return _in_parts(self.energy_.energies_given_labels, rows)

    def score_samples(self, X: Any) -> np.ndarray:
        """log p(x) ``[n]`` in nats, of all classes together as they came; normalised exactly."""
        return np.asarray(np.logaddexp.reduce(self._log_joint(X), axis=1))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """log p(y|x) ``[n, classes]``, in the order of ``classes_``."""
        joint = self._log_joint(X)
        return joint - np.logaddexp.reduce(joint, axis=1, keepdims=True)

    def predict_proba(self, X: Any) -> np.ndarray:
        """p(y|x) ``[n, classes]``, in the order of ``classes_``."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest label of each row ``[n]``."""
        best = self._log_joint(X).argmax(1)
        return self.classes_[best]

    def score(self, X: Any, y: Any, *, sample_weight: Any = None) -> float:
        """The share of rows whose label is predicted.

        Warns:
            UserWarning: if there are labels that the model has not seen yet: their rows count as wrong.
        """
        check_is_fitted(self, "energy_")
        found = np.unique(checked_labels(y, len(y)))
        _check_same_kind(self.classes_, found)
        if len(new := np.setdiff1d(found, self.classes_)):
            warnings.warn(
                f"{_listed(new)} is no label that the model has seen: such rows count as wrong", stacklevel=2
            )
        return float(super().score(X, y, sample_weight))

    def sample(self, n_samples: int = 1, *, labels: Any = None, random_state: RandomState = None) -> np.ndarray:
        """Independent draws ``[n_samples, columns]``.

        Args:
            labels: the class of each draw, one label or ``[n_samples]``; None draws classes as often as they came.
            random_state: seed, or a ``RandomState``.

        Raises:
            ValueError: for a label that the model has not seen.
        """
        check_is_fitted(self, "energy_")
        check_count("n_samples", n_samples)
        generator = generator_of(random_state)
        if labels is None:
            counts = self.energy_.counts.double()
            places = torch.multinomial(counts, n_samples, replacement=True, generator=generator)
        else:
            asked = np.broadcast_to(np.asarray(labels), n_samples)
            if len(new := np.setdiff1d(asked, self.classes_)):
                raise ValueError(f"{_listed(new)} is no label that the model has seen: {_listed(self.classes_)}")
            places = torch.from_numpy(np.searchsorted(self.classes_, asked))
        return self.energy_.draw(places, generator).numpy()

    def _log_joint(self, X: Any) -> np.ndarray:
        """log p(x, y) ``[n, classes]``."""
        rows = self._rows(X)
        return -_in_parts(self.energy_.energies, rows)

    def _rows(self, X: Any) -> Tensor:
        check_is_fitted(self, "energy_")
        return torch.from_numpy(validate_data(self, table_of_numbers(X), reset=False, dtype=np.float64))

    # -- saving --------------------------------------------------------------------------------------

    def _config(self) -> dict[str, Any]:
        return {
            "seed": self._seed,
            "classes": self.classes_.tolist(),
            "classes_dtype": "object" if self.classes_.dtype == object else self.classes_.dtype.str,
            "n_components": [len(own) for own in self.energy_.components],
        }

    def _rebuild(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self._seed = config["seed"]
        self.classes_ = np.array(config["classes"], dtype=np.dtype(config["classes_dtype"]))
        noise_std = self._noise(self.n_features_in_)
        self.energy_ = GrowingEnergy(
            [[RunningGaussian(noise_std) for _ in range(n)] for n in config["n_components"]]
        )


def _in_parts(energies: Callable[[Tensor], Tensor], rows: Tensor) -> np.ndarray:
    """Energies of many rows ``[n, classes]``, some at a time."""
    with torch.no_grad():
        return torch.cat([energies(x) for x in rows.split(_ROWS_AT_ONCE)]).numpy()


def _check_same_kind(known: np.ndarray, found: np.ndarray) -> None:
    """Refuse labels of another type than those before."""
    if len(known) and _KINDS.get(known.dtype.kind) != _KINDS.get(found.dtype.kind):
        kinds = [_KINDS.get(labels.dtype.kind, str(labels.dtype)) for labels in (known, found)]
        raise ValueError(
            f"the labels so far are {kinds[0]}, such as {_listed(known[:1])}, and these are {kinds[1]}, such as "
            f"{_listed(found[:1])}: write all labels in one way"
        )


def _check_named(labels: np.ndarray, classes: Any) -> None:
    """Refuse labels that ``classes`` does not name."""
    if classes is None:
        return
    named = np.unique(np.asarray(classes))
    _check_same_kind(labels, named)
    if len(missed := np.setdiff1d(labels, named)):
        raise ValueError(f"classes does not name {_listed(missed)}: give every label that may occur, or none")


def _listed(labels: np.ndarray) -> str:
    shown = ", ".join(repr(label) for label in labels[:5].tolist())
    return shown + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")
