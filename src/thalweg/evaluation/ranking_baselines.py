"""What a ranker has to beat: a ridge regression of relevance, boosted trees, the best single column, chance."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from thalweg.evaluation.baselines import plain_encoder
from thalweg.evaluation.ranking import CUTOFF, ndcg_of_groups


class RidgeRelevance:
    """A ridge regression of the relevance, its penalty chosen by leaving rows out.

    Args:
        seed: not used; every baseline takes one.
    """

    name = "ridge regression"

    def __init__(self, seed: int = 0):
        self.seed = seed

    def fit(self, X: pd.DataFrame, relevance: np.ndarray, groups: np.ndarray) -> RidgeRelevance:
        """Fit to rows, their relevance ``[n]`` and the numbers of their groups ``[n]``."""
        self._encoder = plain_encoder(X)
        model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 5, 8)))
        self._model = model.fit(self._encoder.transform(X).astype(np.float64), relevance)
        return self

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        """A score of each row ``[n]``, the higher the better."""
        return self._model.predict(self._encoder.transform(X).astype(np.float64))


class BoostedRelevance(RidgeRelevance):
    """scikit-learn's histogram gradient boosting of the relevance, at its defaults.

    Args:
        seed: of the rows held out to stop early.
    """

    name = "gradient boosting"

    def fit(self, X: pd.DataFrame, relevance: np.ndarray, groups: np.ndarray) -> BoostedRelevance:
        self._encoder = plain_encoder(X)
        model = HistGradientBoostingRegressor(random_state=self.seed)
        self._model = model.fit(self._encoder.transform(X), relevance)
        return self


class BestColumn(RidgeRelevance):
    """The single column, rising or falling, that ranks the training groups best.

    Of a category, whether a row has one of its values.
    """

    name = "best single column"

    def fit(self, X: pd.DataFrame, relevance: np.ndarray, groups: np.ndarray) -> BestColumn:
        self._encoder = plain_encoder(X)
        columns = self._encoder.transform(X).T
        signed = [(sign, k) for k in range(len(columns)) for sign in (1.0, -1.0)]
        figures = [np.nanmean(ndcg_of_groups(relevance, s * columns[k], groups, CUTOFF)) for s, k in signed]
        self._sign, self._place = signed[int(np.argmax(figures))]
        return self

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        return self._sign * self._encoder.transform(X)[:, self._place]


class RandomOrder(RidgeRelevance):
    """Equal scores for all rows: figures that average over ties are then those expected of a random order."""

    name = "random order"

    def fit(self, X: pd.DataFrame, relevance: np.ndarray, groups: np.ndarray) -> RandomOrder:
        return self

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        return np.zeros(len(X))


BASELINES = (RidgeRelevance, BoostedRelevance, BestColumn, RandomOrder)
