"""``EnergyDetector``: which rows of a table are odd, how sure that is, and which of their cells make them so."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from sklearn.base import OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from thalweg.data.scaled_rows import RowScaler
from thalweg.energies.neighbours import NeighbourEnergy
from thalweg.estimators._base import Estimator, RandomState, check_count
from thalweg.estimators._tables import TableInputs
from thalweg.evaluation.verdict import Check, check_rows
from thalweg.training.history import History

# Energies that differ by less are equal: that of a row is off by rounding errors.
_TIE = 1e-9
# Training rows are recognised where at most this share of them equals another.
_MOST_TWINS = 0.01


class EnergyDetector(OutlierMixin, TableInputs, Estimator):
    """Odd rows of a table of numbers, categories, truth values and dates, with gaps.

    The energy of a row says how far it is from the nearest training row and from the nearest tenth of them, each
    in two metrics, on a logarithmic scale, and standardised by what it is for rows that were held out: see
    :class:`~thalweg.energies.NeighbourEnergy`. Columns are in units of their spread; two categories differ or do
    not; distances are over the cells that both rows have. A gap is not odd in itself.

    Energies become **p-values**: the share of rows like those of the training table that are at least as odd. They
    come from training rows that were held out, a fold at a time, and each is compared with the new row under the
    very model that did not learn from it [Vovk 2015]. So no share of odd rows has to be guessed: ``alpha`` is how
    many false alarms are accepted, and of rows like the training rows about that share is flagged. The training
    table may hold odd rows itself: they count among its rows, and the more there are the fewer are flagged.

    What is said of a row never depends on the rows beside it. A row that the model learned from is recognised and
    judged by the energy that did not learn from it, unless rows that are equal to one another are common in the
    table.

    Args:
        alpha: a row is flagged if its p-value is at most this.
        n_folds: number of folds that are held out in turn; fewer if there are fewer rows.
        max_rows: of more rows than this, a random part of this many is learned from.
        random_state: seed, or a ``RandomState``, of the folds.

    Attributes:
        energy_: the :class:`~thalweg.energies.NeighbourEnergy`, over rows as ``scaler_`` codes them.
        scaler_: the :class:`~thalweg.data.scaled_rows.RowScaler`.
        held_out_scores_: scores of the training rows ``[rows]``, each by a model that did not learn from it;
            NaN of rows beyond ``max_rows``. A model that was loaded has it not.
        held_out_p_values_: p-values of the training rows ``[rows]`` likewise.
        offset_: the score below which rows are flagged.
        history_: one record: how many rows were learned from.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X = load_iris().data
        >>> detector = EnergyDetector(random_state=0).fit(X[:100])
        >>> detector.predict([[5.0, 3.4, 1.5, 0.2], [5.0, 3.4, 1.5, 9.0]])
        array([ 1, -1])

    Source: nearest neighbours as a score of outliers [Ramaswamy 2000]; conformal p-values [Vovk 2005, ch. 2], of
    held-out folds [Vovk 2015].
    """

    # The checks of inputs and of saved models ask for it: there is none of the user's own.
    energy = None
    energy_: NeighbourEnergy

    def __init__(
        self,
        alpha: float = 0.05,
        *,
        n_folds: int = 10,
        max_rows: int = 5000,
        random_state: RandomState = None,
    ):
        self._keep(locals())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.categorical = tags.input_tags.string = True
        return tags

    # -- fitting -------------------------------------------------------------------------------------

    def fit(self, X: Any, y: None = None) -> EnergyDetector:
        """Learn what rows are usual.

        Args:
            X: table ``[rows, columns]`` (DataFrame or array).
            y: ignored.

        Raises:
            ValueError: for settings or data that can't be used, in words.
        """
        self._check_settings()
        table = self._check_table(X, reset=True)
        n = len(table)
        if n < 2:
            raise ValueError(f"Found array with n_samples={n}: at least 2 rows are needed to tell odd rows")
        rng = check_random_state(self.random_state)
        self.scaler_ = RowScaler().fit(table)
        codes = self.scaler_.codes(table)
        kept = rng.permutation(n)[: self.max_rows]
        folds = np.arange(len(kept)) % min(self.n_folds, len(kept))
        self.energy_ = NeighbourEnergy(
            torch.from_numpy(codes[kept]),
            torch.from_numpy(folds),
            torch.from_numpy(self.scaler_.costs),
            torch.from_numpy(self.scaler_.weights),
            (torch.from_numpy(self.scaler_.curves[0]), torch.from_numpy(self.scaler_.curves[1])),
        )
        self._calibrate(self.energy_.standardise())
        record: dict[str, float] = {"epoch": 1, "rows": len(kept), "folds": len(self.energy_.sizes)}
        self.history_ = History([record], stopped="learned in closed form")
        held_out = np.concatenate(self._calibration)
        order = kept[np.argsort(folds, kind="stable")]
        self.held_out_scores_, self.held_out_p_values_ = np.full((2, n), math.nan)
        self.held_out_scores_[order] = -held_out
        count = self._count(np.repeat(held_out[:, None], len(self.energy_.sizes), 1))
        self.held_out_p_values_[order] = (1 + count) / (1 + self._n_calibration)
        self._conclude(self._checks(n, table.shape[1]))
        return self

    def _check_settings(self) -> None:
        if isinstance(self.alpha, bool | str) or not 0 < self.alpha < 1:
            raise ValueError(f"alpha must be in (0, 1), got {self.alpha!r}")
        for name in ("n_folds", "max_rows"):
            check_count(name, getattr(self, name), 2)

    def _checks(self, n: int, n_columns: int) -> list[Check]:
        least = 1 / (1 + self._n_calibration)
        if self._cut() < 1:
            text = f"No p-value is below {least:.2g}, so that alpha={self.alpha} flags no row: raise it."
            return [check_rows(n, n_columns), Check("threshold", "doubtful", text)]
        text = f"Rows are flagged whose p-value is at most {self.alpha}; the least there can be is {least:.2g}."
        return [check_rows(n, n_columns), Check("threshold", "passed", text)]

    def _calibrate(self, energies: Tensor) -> None:
        """Keep the energies of held-out rows by folds, each in order; and which rows are recognised."""
        energies = energies.double()
        self._calibration = [part.numpy() for part in energies.split(self.energy_.sizes)]
        self._sorted = [np.sort(part) for part in self._calibration]
        self._n_calibration = len(energies)
        in_order = np.sort(energies.numpy())[::-1]
        self.offset_ = -float(in_order[self._cut() - 1] + _TIE) if self._cut() else -float(in_order[0] + 1.0)
        rows = torch.where(self.energy_.known, self.energy_.rows, torch.nan).numpy()
        keys = _keys(rows)
        places: dict[bytes, int] = {}
        twins = set()
        for place, key in enumerate(keys):
            if key in places:
                twins.add(key)
            places[key] = place
        n_twins = len(keys) - (len(places) - len(twins))
        recognised = n_twins <= _MOST_TWINS * len(keys)
        flat = energies.numpy()
        folds = np.repeat(np.arange(len(self.energy_.sizes)), self.energy_.sizes)
        self._recognised = {
            key: (float(flat[place]), int(folds[place]))
            for key, place in places.items()
            if recognised and key not in twins
        }

    # -- use -----------------------------------------------------------------------------------------

    def score_samples(self, X: Any) -> np.ndarray:
        """Minus the energy of every row ``[rows]``: higher is more usual.

        Each view of the energy is in standard deviations of what it is for held-out rows, of which 0 is the mean.
        """
        return -self._by_fold(self._codes(X)).mean(1)

    def p_values(self, X: Any) -> np.ndarray:
        """How large a share of rows like those of training is at least as odd ``[rows]``.

        It is (1 + the number of held-out training rows that are at least as odd) / (1 + the number of all), so
        1 / (n + 1) at the least.
        """
        return (1 + self._count(self._by_fold(self._codes(X)))) / (1 + self._n_calibration)

    def predict(self, X: Any) -> np.ndarray:
        """-1 for rows that are flagged, whose p-value is at most ``alpha``, and 1 for all others ``[rows]``."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def decision_function(self, X: Any) -> np.ndarray:
        """How far the score is above those that are flagged ``[rows]``; negative if the row is flagged.

        It is ``score_samples(X) - offset_``. In the rare case that the p-value, which is of one fold at a time,
        says otherwise than that mean over the folds, the p-value decides, and this is about 0.
        """
        by_fold = self._by_fold(self._codes(X))
        above = -by_fold.mean(1) - self.offset_
        flagged = 1 + self._count(by_fold) <= self._cut()
        return np.where(flagged, np.minimum(above, -_TIE), np.maximum(above, 0.0))

    def score_columns(self, X: Any) -> np.ndarray:
        """How much each cell adds to the energy of its row ``[rows, columns]``; 0 where it is a gap.

        It is by how much the score of the row would rise if the cell was not known: large where the cell makes
        the row odd, and negative where it makes it more usual. These do not add up to the score: two cells that
        are odd only together each have what the row owes to both.
        """
        codes = self._codes(X)
        cells = self.energy_.by_cell(torch.from_numpy(codes)).numpy()
        owner = [self._recognised.get(key, (0.0, -1))[1] for key in _keys(codes)]
        return np.stack([
            by_fold.mean(0) if fold < 0 else by_fold[fold] for by_fold, fold in zip(cells, owner, strict=True)
        ])  # fmt: skip

    def _codes(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "energy_")
        return self.scaler_.codes(self._check_table(X, reset=False))

    def _by_fold(self, codes: np.ndarray) -> np.ndarray:
        """The energy of every row by the models without each fold ``[rows, folds]``.

        Of a row that was learned from all are the one of the model without it.
        """
        keys = _keys(codes)
        new = np.array([key not in self._recognised for key in keys])
        found = np.empty((len(codes), len(self.energy_.sizes)))
        if new.any():
            found[new] = self.energy_.by_fold(torch.from_numpy(codes[new])).double().numpy()
        for place in np.flatnonzero(~new):
            found[place] = self._recognised[keys[place]][0]
        return found

    def _count(self, by_fold: np.ndarray) -> np.ndarray:
        """How many held-out rows are at least as odd, each under the model without it ``[rows]``."""
        count = np.zeros(len(by_fold), dtype=np.int64)
        for energies, own in zip(self._sorted, by_fold.T, strict=True):
            count += len(energies) - np.searchsorted(energies, own - _TIE, "left")
        return count

    def _cut(self) -> int:
        """A row is flagged if fewer held-out rows than this are at least as odd; 0 if none can be flagged."""
        return math.floor(self.alpha * (1 + self._n_calibration) * (1 + 1e-12))

    # -- saving --------------------------------------------------------------------------------------

    def _config(self) -> dict[str, Any]:
        return {"scaler": self.scaler_.state(), "sizes": self.energy_.sizes}

    def _tensors(self) -> dict[str, Tensor]:
        return {"calibration": torch.from_numpy(np.concatenate(self._calibration))}

    def _rebuild(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.scaler_ = RowScaler.from_state(config["scaler"])
        n, d = tensors["energy.rows"].shape
        if d != self.n_features_in_ or len(self.scaler_.columns) != d:
            raise ValueError(f"its rows have {d} columns, and the model has {self.n_features_in_}")
        folds = torch.repeat_interleave(torch.tensor(config["sizes"]))
        if len(folds) != n or len(tensors["calibration"]) != n:
            raise ValueError(f"{n} rows are there, and {len(folds)} are described")
        zeros, curves = torch.zeros(n, d, dtype=torch.float64), torch.zeros_like(tensors["energy.places"])
        self.energy_ = NeighbourEnergy(zeros, folds, torch.zeros(d), None, (curves, curves))
        self.energy_.load_state_dict({
            name.removeprefix("energy."): value for name, value in tensors.items() if name.startswith("energy.")
        })  # fmt: skip
        self._calibrate(tensors["calibration"])


def _keys(codes: np.ndarray) -> list[bytes]:
    """Each row as something that equal rows have in common."""
    plain = np.where(np.isnan(codes), np.nan, codes + 0.0)
    return [row.tobytes() for row in np.ascontiguousarray(plain)]
