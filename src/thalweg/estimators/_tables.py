"""What a model of tables takes as inputs and targets: frames and arrays, checked at the entry."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.validation import (
    _check_feature_names,
    _check_n_features,
    check_array,
    column_or_1d,
    validate_data,
)

from thalweg.data.target import check_target
from thalweg.estimators._base import check_names


class TableInputs:
    """The checks of an estimator whose X is a table, unless it has an energy of the user's own."""

    energy: Any
    n_features_in_: int

    def _check_data(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        if self.energy is not None:
            X = check_array(X, allow_nd=True, dtype=np.float32)
            self.n_features_in_ = int(np.prod(X.shape[1:]))
        else:
            X = self._check_table(X, reset=True)
        if y is None:
            raise ValueError("This EnergyRegressor estimator requires y to be passed, but the target y is None")
        y = np.asarray(y)
        if y.dtype.kind in "mM" or (y.dtype == object and _holds_times(y)):
            raise ValueError(
                "the target holds dates or spans of time: turn it into numbers, such as days since a date"
            )
        if y.dtype == object or y.dtype.kind in "US":
            try:
                y = y.astype(np.float64)
            except (ValueError, TypeError) as error:
                raise ValueError(f"Unknown label type: the target must be numbers ({error})") from error
        y = check_array(
            y, ensure_2d=False, allow_nd=True, dtype=np.float64, ensure_all_finite=False, input_name="y"
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if y.ndim > 2:
            raise ValueError(f"y must be [rows] or [rows, K], got {y.shape}")
        if len(y) != len(X):
            raise ValueError(f"X has {len(X)} rows, y has {len(y)}: Found input variables with inconsistent "
                             "numbers of samples")  # fmt: skip
        if np.isnan(y).any() or np.isinf(y).any():
            check_target(y.reshape(len(y), -1))
        return X, y

    def _check_table(self, X: Any, reset: bool) -> pd.DataFrame:
        """X as a table whose columns are those of the training table."""
        if isinstance(X, pd.DataFrame):
            if X.shape[1] == 0 or len(X) == 0:
                raise ValueError(f"X has shape {X.shape}: it needs rows and columns")
            check_names(X)
            if not reset and hasattr(self, "feature_names_in_"):
                missing = [c for c in self.feature_names_in_ if c not in X.columns]
                if not missing and set(X.columns) >= set(self.feature_names_in_):
                    X = X[list(self.feature_names_in_)]
            _check_feature_names(self, X, reset=reset)
            _check_n_features(self, X, reset=reset)
            return X.reset_index(drop=True)
        if _has_text(X):
            # Categories in an object array: columns become numbers where all their values are.
            array = np.asarray(X, dtype=object)
            if array.ndim != 2:
                raise ValueError(f"Expected 2D array, got {array.ndim}D array: Reshape your data")
            _check_n_features(self, array, reset=reset)
            return pd.DataFrame(array).infer_objects()
        array = validate_data(self, X, reset=reset, dtype=np.float64, ensure_all_finite=False)
        if np.isinf(array).any():
            raise ValueError("Input X contains infinity or a value too large for dtype('float64').")
        return pd.DataFrame(array)


def _holds_times(y: np.ndarray) -> bool:
    return any(
        isinstance(v, datetime.date | datetime.timedelta | np.datetime64 | np.timedelta64) for v in y.ravel()
    )


def _has_text(X: Any) -> bool:
    dtype = getattr(X, "dtype", None)
    return dtype is not None and getattr(dtype, "kind", "") in "OUS" and not hasattr(X, "toarray")
