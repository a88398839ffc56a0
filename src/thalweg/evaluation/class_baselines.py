"""What a classifier has to beat: a logistic regression, and gradient boosting."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from thalweg.evaluation.baselines import plain_encoder

# From here on a single penalty serves; choosing among several would take longer than the model.
_MOST_CHOSEN = 3000
_LEAST_PROBABILITY = 1e-12
_SCORE_OF_AN_UNKNOWN_LABEL = -30.0


class Logistic:
    """A logistic regression; its penalty is chosen by cross-validation if there are at most 3000 rows.

    Args:
        seed: of the folds.
    """

    name = "logistic regression"

    def __init__(self, seed: int = 0):
        self.seed = seed

    def fit(self, X: Any, labels: np.ndarray, n_labels: int) -> Logistic:
        """Fit to a table or to images, and labels ``[n]`` from 0 to n_labels - 1."""
        self._encoder = None if isinstance(X, np.ndarray) else plain_encoder(X)
        few = len(labels) <= _MOST_CHOSEN and np.bincount(labels).min() >= 5
        if few:
            model = LogisticRegressionCV(
                Cs=8, scoring="neg_log_loss", max_iter=500, l1_ratios=(0,), use_legacy_attributes=False
            )
        else:
            model = LogisticRegression(C=0.1, max_iter=300)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model = make_pipeline(StandardScaler(), model).fit(self._numbers(X), labels)
        self.n_labels = n_labels
        return self

    def log_prob(self, X: Any) -> np.ndarray:
        """log p(label|x) ``[n, labels]``."""
        return _log_probs(self._model.predict_proba(self._numbers(X)), self._model.classes_, self.n_labels)

    def network(self) -> nn.Module:
        """The same classifier of images ``[n, C, H, W]`` as a network, whose outputs are scores of the labels."""
        scale, linear = self._model[0], self._model[-1]
        coefficients, intercept = linear.coef_, linear.intercept_
        if len(coefficients) == 1:
            # Of two labels scikit-learn keeps the difference of the scores.
            coefficients, intercept = (np.concatenate([-part, part]) / 2 for part in (coefficients, intercept))
        weight = coefficients / scale.scale_
        layer = nn.Linear(weight.shape[1], self.n_labels)
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.fill_(_SCORE_OF_AN_UNKNOWN_LABEL)
            layer.weight[linear.classes_] = torch.as_tensor(weight, dtype=torch.float32)
            layer.bias[linear.classes_] = torch.as_tensor(intercept - weight @ scale.mean_, dtype=torch.float32)
        return nn.Sequential(nn.Flatten(), layer)

    def _numbers(self, X: Any) -> np.ndarray:
        return X.reshape(len(X), -1) if self._encoder is None else self._encoder.transform(X)


class Boosted:
    """scikit-learn's histogram gradient boosting at its defaults, categories as categories.

    Args:
        seed: of the rows held out to stop early.
    """

    name = "gradient boosting"

    def __init__(self, seed: int = 0):
        self.seed = seed

    def fit(self, X: Any, labels: np.ndarray, n_labels: int) -> Boosted:
        """Fit to a table or to images, and labels ``[n]`` from 0 to n_labels - 1."""
        self._categories = {} if isinstance(X, np.ndarray) else _categories(X)
        early = bool(np.bincount(labels).min() >= 20) and "auto"
        model = HistGradientBoostingClassifier(
            random_state=self.seed, categorical_features="from_dtype", early_stopping=early
        )
        self._model = model.fit(self._table(X), labels)
        self.n_labels = n_labels
        return self

    def log_prob(self, X: Any) -> np.ndarray:
        """log p(label|x) ``[n, labels]``."""
        return _log_probs(self._model.predict_proba(self._table(X)), self._model.classes_, self.n_labels)

    def _table(self, X: Any) -> Any:
        if isinstance(X, np.ndarray):
            return X.reshape(len(X), -1)
        table = {}
        for name, column in X.items():
            if name in self._categories:
                table[str(name)] = pd.Categorical(column.astype(object), categories=self._categories[name])
            elif pd.api.types.is_datetime64_any_dtype(column):
                table[str(name)] = (column - pd.Timestamp("1970-01-01")) / pd.Timedelta(days=1)
            else:
                table[str(name)] = column.to_numpy(np.float64, na_value=np.nan)
        return pd.DataFrame(table, index=X.index)


BASELINES = (Logistic, Boosted)


def _categories(X: pd.DataFrame) -> dict[Any, list[Any]]:
    """The values of columns of texts; the most frequent 254, as many as gradient boosting takes."""
    found = {}
    for name, column in X.items():
        if not (pd.api.types.is_numeric_dtype(column) or pd.api.types.is_datetime64_any_dtype(column)):
            counts = column.astype(object).value_counts()
            found[name] = list(counts.index[:254])
    return found


def _log_probs(probabilities: np.ndarray, classes: np.ndarray, n_labels: int) -> np.ndarray:
    """log of probabilities of all labels ``[n, labels]``; of one that no training row had it is very low."""
    found = np.full((len(probabilities), n_labels), _LEAST_PROBABILITY)
    found[:, classes] = np.maximum(probabilities, _LEAST_PROBABILITY)
    return np.log(found / found.sum(1, keepdims=True))
