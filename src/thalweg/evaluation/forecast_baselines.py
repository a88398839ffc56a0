"""Baselines of forecasts: what was last, or one season ago, and the errors that such forecasts made elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thalweg.data.windows import last_known, stretches_after, whole_moments


class NaiveForecast:
    """The last value, or that of one season ago, plus whole paths of errors drawn from those of other moments.

    Where the season reaches back before the first state, the last value stands for it.

    Args:
        horizon: how many steps are forecast.
        season: steps of a season; 0 for the last value.
    """

    errors_: np.ndarray
    max_errors = 20_000

    def __init__(self, horizon: int, season: int = 0):
        self.horizon, self.season = horizon, season

    @property
    def name(self) -> str:
        return "seasonal naive" if self.season else "naive"

    @property
    def detail(self) -> str:
        """What it is, in words."""
        what = "the value of one season ago and the errors of such forecasts elsewhere"
        return what if self.season else "the last value and the increments that followed others"

    def fit(self, series: Sequence[np.ndarray], seed: int = 0) -> NaiveForecast:
        """Keep the errors at all moments that are followed by a whole horizon without gaps.

        Args:
            series: ``[T_i, D]``, NaN for gaps.
        """
        rng, found = np.random.RandomState(seed), [np.zeros((0, self.horizon, series[0].shape[1]))]
        for values in series:
            moments = whole_moments(values, self.horizon)
            found.append(stretches_after(values, moments, self.horizon) - self.middle(values, moments))
        errors = np.concatenate(found)
        if len(errors) > self.max_errors:
            errors = errors[np.sort(rng.choice(len(errors), self.max_errors, replace=False))]
        self.errors_ = errors
        return self

    def middle(self, values: np.ndarray, moments: np.ndarray) -> np.ndarray:
        """What each stretch is about, before any error ``[n, horizon, D]``."""
        filled, ahead = last_known(values[None])[0], np.arange(1, self.horizon + 1)
        if not self.season:
            return np.repeat(filled[moments][:, None], self.horizon, 1)
        places = moments[:, None] + ahead - self.season * -(-ahead // self.season)
        return filled[np.where(places >= 0, places, moments[:, None])]

    def draws(self, values: np.ndarray, moments: np.ndarray, n: int, rng: np.random.RandomState) -> np.ndarray:
        """Paths ``[moments, n, horizon, D]`` that go on from each moment of a series."""
        chosen = rng.randint(len(self.errors_), size=(len(moments), n))
        return self.middle(values, moments)[:, None] + self.errors_[chosen]
