"""Series of numbers as rows to learn from: the recent past of a moment beside the stretch that follows it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

# So many of the latest steps are all seen; of older ones fewer the older they are.
_DENSE = 16


class Series(NamedTuple):
    """One series.

    Attributes:
        values: states ``[T, D]``; NaN is a gap.
        known: inputs that are known ahead of time ``[T or more, U]``: of the steps of ``values`` and, if there are
            more, of those after them. None where there are none.
        times: of the steps ``[T or more]``, rising; None where steps are evenly spaced.
    """

    values: np.ndarray
    known: np.ndarray | None = None
    times: np.ndarray | None = None


class Rows(NamedTuple):
    """Moments of series, to learn from.

    Attributes:
        x: what is known at a moment ``[n, n_inputs]``.
        y: the stretch after it, less the last state ``[n, stretch * D]``.
        series: of which series it is ``[n]``.
        moment: the place of the last known state in it ``[n]``.
    """

    x: np.ndarray
    y: np.ndarray
    series: np.ndarray
    moment: np.ndarray


@dataclass(frozen=True)
class Windows:
    """What a forecaster sees of a series at a moment, and what it is to forecast.

    It sees the last state, how earlier ones differ from it (all of the latest, fewer of older ones, and those one
    season before what is to come), which of them are known, the known inputs of the present and of the stretch
    ahead, and where steps are uneven how long they are. Gaps take the value before them.

    Attributes:
        n_columns: D.
        n_known: U.
        window: how many steps back it sees.
        stretch: how many steps it forecasts at once.
        season: steps of a season, or 0.
        step: the usual time between two steps where they are uneven, or 0.
    """

    n_columns: int
    n_known: int
    window: int
    stretch: int
    season: int = 0
    step: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def lags(self) -> np.ndarray:
        """How many steps before the last known state those are that are seen, rising from 1."""
        found, lag = set[int](), 1
        while lag < self.window:
            found.add(lag)
            lag += max(1, lag // _DENSE)
        if self.season:
            # One season before the steps to come, of which those after the last known state are not known yet.
            found |= {lag for lag in range(self.season - self.stretch, self.season) if lag >= 1}
        return np.array(sorted(found), dtype=int)

    @property
    def reach(self) -> int:
        """How many states back from the last one are looked at, that one included."""
        return int(self.lags[-1]) + 1 if len(self.lags) else 1

    def inputs(
        self, recent: np.ndarray, known: np.ndarray | None = None, steps: np.ndarray | None = None
    ) -> np.ndarray:
        """What is seen ``[B, n_inputs]``.

        Args:
            recent: the last states ``[B, reach, D]``; NaN where there are none.
            known: inputs of the present and of the stretch ahead ``[B, 1 + stretch, U]``.
            steps: times between the states seen, then between those ahead ``[B, reach - 1 + stretch]``.
        """
        there, lags = ~np.isnan(recent), self.lags
        filled = last_known(recent)
        last = filled[:, -1]
        parts = [last, there[:, -1].astype(float)]
        if len(lags):
            earlier = -1 - lags
            parts += [(filled[:, earlier] - last[:, None]).reshape(len(last), -1), there[:, earlier].mean(2)]
        if known is not None:
            parts.append(known.reshape(len(last), -1))
        if steps is not None:
            parts.append(np.log(steps / self.step))
        return np.concatenate(parts, 1)

    def rows(self, series: list[Series], most: int, rng: np.random.RandomState) -> Rows:
        """All moments that are followed by a whole stretch without gaps, or a random part of them."""
        where = [(i, t) for i, one in enumerate(series) for t in whole_moments(one.values, self.stretch)]
        if not where:
            return Rows(np.zeros((0, 0)), np.zeros((0, 0)), np.zeros(0, int), np.zeros(0, int))
        index = np.array(where)
        if len(index) > most:
            index = index[np.sort(rng.choice(len(index), most, replace=False))]
        x, y = [], []
        for i in np.unique(index[:, 0]):
            moments = index[index[:, 0] == i, 1]
            recent = self.recent(series[i].values, moments)
            x.append(self.inputs(recent, *self.ahead(series[i], moments)))
            y.append(self.after(series[i].values, moments, recent).reshape(len(moments), -1))
        return Rows(np.concatenate(x), np.concatenate(y), index[:, 0], index[:, 1])

    def after(self, values: np.ndarray, moments: np.ndarray, recent: np.ndarray) -> np.ndarray:
        """The stretch after each moment less the last state that is known there ``[n, stretch, D]``.

        Args:
            recent: of :meth:`recent`.
        """
        return stretches_after(values, moments, self.stretch) - last_known(recent)[:, -1:]

    def recent(self, values: np.ndarray, moments: np.ndarray) -> np.ndarray:
        """The states up to each moment ``[n, reach, D]``; NaN before the series begins."""
        padded = np.concatenate([np.full((self.reach - 1, self.n_columns), np.nan), values])
        return padded[moments[:, None] + np.arange(self.reach)]

    def ahead(self, one: Series, moments: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """What is known ahead at each moment, and the times between steps, as :meth:`inputs` takes them."""
        known = steps = None
        if one.known is not None:
            known = one.known[moments[:, None] + np.arange(1 + self.stretch)]
        if self.step:
            assert one.times is not None
            between = np.concatenate([np.full(self.reach - 1, self.step), np.diff(one.times)])
            steps = between[moments[:, None] + np.arange(self.reach - 1 + self.stretch)]
        return known, steps


def last_known(states: np.ndarray) -> np.ndarray:
    """States ``[B, T, D]``, each gap filled by the value before it, or by the first one after it; 0 if none."""
    there, steps = ~np.isnan(states), np.arange(states.shape[1])[None, :, None]
    before = np.maximum.accumulate(np.where(there, steps, -1), 1)
    first = np.where(there.any(1), there.argmax(1), 0)[:, None]
    found = np.take_along_axis(states, np.where(before >= 0, before, first), 1)
    return np.nan_to_num(found, nan=0.0)


def whole_moments(values: np.ndarray, horizon: int) -> np.ndarray:
    """The places in states ``[T, D]`` after which a whole horizon is known, and up to which something is."""
    complete = ~np.isnan(values).any(1)
    total = np.concatenate([[0], np.cumsum(complete)])
    moments = np.arange(max(0, len(values) - horizon))
    whole = total[moments + 1 + horizon] - total[moments + 1] == horizon
    begun = np.logical_or.accumulate(~np.isnan(values).all(1))
    return moments[whole & begun[moments]]


def stretches_after(values: np.ndarray, moments: np.ndarray, horizon: int) -> np.ndarray:
    """The states after each moment ``[n, horizon, D]``."""
    return values[moments[:, None] + 1 + np.arange(horizon)]
