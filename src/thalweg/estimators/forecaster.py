"""Forecasts of series: the density of the next stretch of states given the past, with exact draws."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from thalweg._torch_state import seeded
from thalweg.data.windows import Rows, Series, Windows, last_known
from thalweg.energies.densities.stretch import StretchDensity
from thalweg.estimators._base import (
    Estimator,
    RandomState,
    check_count,
    check_counts,
    check_widths,
    count_weights,
    draw_seed,
    generator_of,
)
from thalweg.estimators._held_out import NestedFigure, judging_rows
from thalweg.estimators._series import as_many, check_series
from thalweg.evaluation.forecasts import check_intervals, check_skill, crps_of_draws
from thalweg.evaluation.verdict import check_rows, check_training
from thalweg.objectives.base import Batch
from thalweg.objectives.likelihood import MaximumLikelihood
from thalweg.training.loop import Plan, Trainer
from thalweg.training.progress import BarProgress

_MOST_ROWS = 50_000
# Of so few moments networks fit noise within some tens of updates.
_FEW_MOMENTS = 1000
_DEFAULT_STRETCH = 20
# Of the window, in stretches.
_STRETCHES_SEEN = 4
_MOST_JUDGED, _DRAWS_OF_JUDGED = 300, 50
_ROWS_AT_ONCE = 20_000


class EnergyForecaster(Estimator):
    """The density p(next stretch | past) of series of one or several numbers, normalised exactly.

    A stretch of ``stretch`` states is one vector: a linear forecast of it, and energies of what that misses (see
    :class:`~thalweg.energies.densities.StretchDensity`). Draws of a stretch are therefore whole paths, and exact;
    a longer horizon goes on from the draws. A single state is past enough, so that whole series can be generated
    from their first state.

    Each member of the ensemble learns without one fold, of the series or, where there are few, of the time, and
    stops where its likelihood on that fold is best.

    Args:
        stretch: how many steps are forecast at once; None is 20, at most a quarter of the longest series.
        window: how many steps back are seen; None is four stretches, at most half of the longest series.
        season: steps of a season, whose last values are seen as well; None for none.
        n_links: how many directions of a stretch, those that vary most, have an energy of their own; the others
            are Gaussian. None is 8, and 4 more for each further column up to 40.
        n_members: members of the ensemble, and folds; at least 2.
        hidden: widths of the layers of each network; None is (128, 128) for one column, (64, 64) for several.
        dropout: probability of dropping a hidden unit in training.
        batch_size, learning_rate, weight_decay, max_steps: settings of the training.
        patience: validations without a better figure before it ends. There is one every 50 updates; every 10 where
            there are fewer than 1000 moments, which networks soon know by heart.
        device, devices, num_nodes, strategy, precision: see :class:`lightning_fabric.Fabric`; ``device`` is its
            accelerator. Several processes share every batch.
        n_threads: number of PyTorch threads; None chooses by the size of the work.
        verbose: whether to show progress.
        random_state: seed, or a ``RandomState``.

    Attributes:
        energy_: the :class:`~thalweg.energies.densities.StretchDensity`, of the stretch less the last known state.
        windows_: the :class:`~thalweg.data.windows.Windows`: what is seen of a series.
        n_columns_: D, the numbers of a state.
        held_out_: figures of held-out moments: "CRPS" and "coverage" (of 90 % intervals) of the forecast, and
            "CRPS, naive", of the last value and the increments that followed others.
        history_: :class:`~thalweg.training.history.History`.

    Example:
        >>> import numpy as np
        >>> from thalweg import EnergyForecaster
        >>> walks = np.random.RandomState(0).normal(size=(20, 60, 1)).cumsum(1)
        >>> model = EnergyForecaster(stretch=5, max_steps=50, random_state=0).fit(walks)
        >>> model.sample(walks[0], 10, n_samples=3, random_state=0).shape
        (3, 10, 1)
    """

    def __init__(
        self,
        *,
        stretch: int | None = None,
        window: int | None = None,
        season: int | None = None,
        n_links: int | None = None,
        n_members: int = 4,
        hidden: Sequence[int] | None = None,
        dropout: float = 0.1,
        batch_size: int = 256,
        learning_rate: float = 2e-3,
        weight_decay: float = 1e-3,
        max_steps: int = 2000,
        patience: int = 10,
        device: str = "cpu",
        devices: int = 1,
        num_nodes: int = 1,
        strategy: str = "auto",
        precision: str = "32-true",
        n_threads: int | None = None,
        verbose: bool = False,
        random_state: RandomState = None,
    ):
        self._keep(locals())

    @property
    def n_columns_(self) -> int:
        """D, the numbers of a state."""
        return self.windows_.n_columns

    # -- training ------------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        known: Any = None,
        times: Any = None,
        run_dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
        checkpoint_seconds: float = 5.0,
    ) -> EnergyForecaster:
        """Train on series.

        Args:
            X: a list of series ``[T_i, D]`` (or ``[T_i]``), an array ``[n, T, D]`` of them, or one ``[T, D]``. NaN
                is a gap: no moment is learned from whose stretch has one.
            y: not used.
            known: inputs that are known ahead of time, such as a calendar or a plan: for each series
                ``[T_i, U]``. None for none.
            times: for each series ``[T_i]``, rising, where steps are uneven. None where they are even.
            run_dir: folder of checkpoints.
            resume: go on from the checkpoint in ``run_dir``.
            checkpoint_seconds: least time between two checkpoints.

        Raises:
            ValueError: for series that don't fit each other or are too short, infinities, times that don't rise,
                or parameters that can't be used.
        """
        self._check_parameters()
        series = check_series(X, known, times)
        rng = check_random_state(self.random_state)
        seed = draw_seed(rng)
        self.windows_ = self._windows(series)
        rows = self.windows_.rows(series, _MOST_ROWS, np.random.RandomState(seed % 2**32))
        self._check_rows(series, rows)
        fold, near = self._folds(rows, series)
        held_out = fold[:, None] == np.arange(self.n_members)
        with seeded(seed):
            self.energy_ = self._density(rows.x.shape[1])
        self.energy_.fit_linear_part(rows.x, rows.y, fold)
        x, target = (torch.from_numpy(part).float() for part in (rows.x, rows.y))
        n_links = self.energy_.n_links
        learned = torch.from_numpy(~(held_out | near)).float()
        learned = learned / learned.mean(0).clamp_min(1e-9)
        data = Batch(x, target, learned.repeat_interleave(n_links, 1))
        validate = _HeldOutLinks(x, target, held_out, n_links, seed)
        size = min(self.batch_size, len(x))
        per_epoch = max(1, len(x) // size)
        plan = Plan(
            max_epochs=max(1, math.ceil(self.max_steps / per_epoch)),
            max_steps=self.max_steps,
            batch_size=size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            warmup_steps=50,
            validate_every=max(1, round((10 if len(x) < _FEW_MOMENTS else 50) / per_epoch)),
            patience=self.patience,
            clip_norm=5.0 * math.sqrt(self.n_members * n_links),
            checkpoint_seconds=checkpoint_seconds,
            seed=seed,
        )
        with self._threads(size, count_weights(self.energy_)):
            progress = BarProgress() if self.verbose else None
            trainer = Trainer(plan, self._make_fabric(), Path(run_dir) if run_dir is not None else None, progress)
            self.history_ = trainer.fit(self.energy_, MaximumLikelihood(), data, validate, resume=resume)
            self.energy_.cpu().eval()
            checks = self._judged(rows, fold, len(series), seed)
        training = check_training({"training": self.history_})
        self._conclude([check_rows(len(rows.x), what="moment"), training, *checks])
        return self

    def _check_parameters(self) -> None:
        self._check_training()
        check_counts(self, "batch_size", "max_steps", "patience")
        check_count("n_members", self.n_members, least=2)
        if self.hidden is not None:
            check_widths(self.hidden)
        for name in ("stretch", "window", "n_links"):
            if getattr(self, name) is not None:
                check_counts(self, name)
        if self.season is not None:
            check_count("season", self.season, least=2)

    def _windows(self, series: list[Series]) -> Windows:
        longest = max(len(one.values) for one in series)
        stretch = self.stretch or max(1, min(_DEFAULT_STRETCH, longest // 4))
        window = self.window or max(2, min(_STRETCHES_SEEN * stretch, longest // 2))
        first = series[0]
        step = 0.0
        if first.times is not None:
            step = float(
                np.median(np.concatenate([np.diff(one.times) for one in series if one.times is not None]))
            )
        n_known = 0 if first.known is None else first.known.shape[1]
        return Windows(first.values.shape[1], n_known, window, stretch, self.season or 0, step)

    def _check_rows(self, series: list[Series], rows: Rows) -> None:
        stretch = self.windows_.stretch
        if len(rows.x) < 2 * self.n_members:
            longest = max(len(one.values) for one in series)
            raise ValueError(
                f"only {len(rows.x)} moments are followed by {stretch} steps without a gap, and at least "
                f"{2 * self.n_members} are needed: the longest of {len(series)} series has {longest} steps. "
                "Take a shorter stretch, or longer series"
            )
        spread = rows.y.std(0).reshape(stretch, -1).max(0)
        if not (spread > 0).all():
            k = int(np.flatnonzero(spread <= 0)[0])
            raise ValueError(f"column {k} of the series never changes: leave it out")

    def _folds(self, rows: Rows, series: list[Series]) -> tuple[np.ndarray, np.ndarray]:
        """The fold of each moment ``[n]``, and which overlap those held out from each member ``[n, members]``.

        Folds are of whole series where there are enough, else of blocks of the time.
        """
        n = self.n_members
        near = np.zeros((len(rows.x), n), dtype=bool)
        used = np.unique(rows.series)
        if len(used) >= 2 * n:
            order = np.random.RandomState(0).permutation(len(used))
            return (order % n)[np.searchsorted(used, rows.series)], near
        # Two blocks of each fold, so that each sees an early and a late part.
        lengths = np.array([len(one.values) for one in series])
        block = (2 * n * rows.moment) // np.maximum(lengths[rows.series], 1)
        fold = block % n
        for k in range(n):
            for i in used:
                own = rows.series == i
                held = np.sort(rows.moment[own & (fold == k)])
                if len(held):
                    moments = rows.moment[own]
                    place = np.searchsorted(held, moments).clip(0, len(held) - 1)
                    gap = np.minimum(
                        np.abs(held[place] - moments), np.abs(held[np.maximum(place - 1, 0)] - moments)
                    )
                    near[own, k] = gap < self.windows_.stretch
        return fold, near

    def _density(self, n_inputs: int) -> StretchDensity:
        windows = self.windows_
        hidden = self.hidden if self.hidden is not None else (128, 128) if windows.n_columns == 1 else (64, 64)
        n_links = self.n_links or min(40, 8 + 4 * (windows.n_columns - 1))
        return StretchDensity(
            n_inputs,
            windows.stretch * windows.n_columns,
            n_links,
            self.n_members,
            check_widths(hidden),
            dropout=self.dropout,
        )

    def _judged(self, rows: Rows, fold: np.ndarray, n_series: int, seed: int) -> list[Any]:
        """Checks of forecasts of held-out moments by the member that has not seen them."""
        rng, shape = np.random.RandomState(seed % 2**32), (self.windows_.stretch, self.n_columns_)
        draws, naive, truth = [], [], []
        for k in range(self.n_members):
            own = np.flatnonzero(fold == k)
            own = own[rng.permutation(len(own))[: _MOST_JUDGED // self.n_members]]
            if not len(own):
                continue
            others = np.flatnonzero(fold != k)
            alone = self.energy_.alone(k)
            generator = torch.Generator().manual_seed(seed + k)
            x = torch.from_numpy(rows.x[own]).float()
            drawn = alone.draws(alone.features(x), _DRAWS_OF_JUDGED, generator)
            draws.append(drawn.numpy())
            naive.append(rows.y[others[rng.randint(len(others), size=(len(own), _DRAWS_OF_JUDGED))]])
            truth.append(rows.y[own])
        y = np.concatenate(truth).reshape(-1, *shape)
        found, other = (np.concatenate(part).reshape(len(y), -1, *shape) for part in (draws, naive))
        low, high = np.quantile(found, [0.05, 0.95], axis=1)
        # Each column in its own units, so that none outweighs the others.
        scale = rows.y.reshape(-1, *shape).std((0, 1))
        self.held_out_ = {
            "CRPS": float((crps_of_draws(found, y) / scale).mean()),
            "CRPS, naive": float((crps_of_draws(other, y) / scale).mean()),
            "coverage": float(((low <= y) & (y <= high)).mean()),
        }
        figures = self.held_out_
        skill = check_skill(figures["CRPS"], figures["CRPS, naive"])
        return [skill, check_intervals(figures["coverage"], n_series)]

    # -- forecasts -----------------------------------------------------------------------------------

    def sample(
        self,
        past: Any,
        horizon: int,
        n_samples: int = 1,
        *,
        known: Any = None,
        times: Any = None,
        random_state: RandomState = None,
    ) -> np.ndarray:
        """Draw paths that go on from the past.

        Args:
            past: a series ``[t, D]`` (or ``[t]``), or a list of them; a single state will do.
            horizon: how many steps.
            n_samples: paths of each series.
            known: inputs ``[t + horizon, U]`` of the past and of what is ahead, of each series.
            times: ``[t + horizon]`` where steps are uneven; ``[t]`` goes on with the usual step.
            random_state: seed, or a ``RandomState``.

        Returns:
            ``[n_samples, horizon, D]``, or of a list ``[n, n_samples, horizon, D]``.

        Raises:
            ValueError: for a past that does not fit the model, or inputs that don't reach the horizon.
        """
        check_is_fitted(self, "energy_")
        check_count("horizon", horizon)
        check_count("n_samples", n_samples)
        single, series = self._pasts(past, known, times, horizon)
        generator = generator_of(random_state)
        paths = [self._paths(one, horizon, n_samples, generator) for one in self._in_groups(series, n_samples)]
        found = np.concatenate(paths)
        return found[0] if single else found

    def _in_groups(self, series: list[Series], n_samples: int) -> list[list[Series]]:
        size = max(1, _ROWS_AT_ONCE // n_samples)
        return [series[k : k + size] for k in range(0, len(series), size)]

    def _paths(self, series: list[Series], horizon: int, n: int, generator: torch.Generator) -> np.ndarray:
        """``[series, n, horizon, D]``."""
        windows, energy = self.windows_, self.energy_
        stretch, reach, n_columns = windows.stretch, windows.reach, windows.n_columns
        recent = np.concatenate([windows.recent(one.values, np.array([len(one.values) - 1])) for one in series])
        recent, done, parts = np.repeat(recent, n, 0), 0, []
        while done < horizon:
            ahead = [windows.ahead(one, np.array([len(one.values) - 1 + done])) for one in series]
            known, steps = (
                None
                if part[0] is None
                else np.repeat(np.concatenate([one for one in part if one is not None]), n, 0)
                for part in zip(*ahead, strict=True)
            )
            x = torch.from_numpy(windows.inputs(recent, known, steps)).float()
            drawn = energy.draws(energy.features(x), 1, generator)[:, 0].double().numpy()
            states = last_known(recent)[:, -1:] + drawn.reshape(-1, stretch, n_columns)
            parts.append(states)
            recent = np.concatenate([recent, states], 1)[:, -reach:]
            done += stretch
        return np.concatenate(parts, 1)[:, :horizon].reshape(len(series), n, horizon, n_columns)

    def predict(
        self,
        past: Any,
        horizon: int,
        *,
        known: Any = None,
        times: Any = None,
        n_draws: int = 200,
        random_state: RandomState = 0,
    ) -> np.ndarray:
        """The mean of n_draws paths ``[horizon, D]``, or of a list of pasts ``[n, horizon, D]``.

        All else is as in :meth:`sample`. Where the future branches, no path looks like the mean: draw some.
        """
        how: dict[str, Any] = {"known": known, "times": times, "random_state": random_state}
        return self.sample(past, horizon, n_draws, **how).mean(-3)

    def predict_quantiles(
        self,
        past: Any,
        horizon: int,
        *,
        quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
        known: Any = None,
        times: Any = None,
        n_draws: int = 1000,
        random_state: RandomState = 0,
    ) -> np.ndarray:
        """Quantiles of every state ahead ``[quantiles, horizon, D]``, or of a list ``[quantiles, n, horizon, D]``.

        They are of n_draws paths. All else is as in :meth:`sample`.

        Raises:
            ValueError: as :meth:`sample`, and for quantiles that are not between 0 and 1.
        """
        if not all(0 < q < 1 for q in quantiles):
            raise ValueError(f"quantiles must lie between 0 and 1, got {list(quantiles)}")
        how: dict[str, Any] = {"known": known, "times": times, "random_state": random_state}
        return np.quantile(self.sample(past, horizon, n_draws, **how), quantiles, axis=-3)

    def score_samples(self, X: Any, *, known: Any = None, times: Any = None) -> np.ndarray:
        """log p of each series a step, in nats ``[n]``: the mean over its whole stretches, one after the other.

        The first stretch follows the first state; steps at the end that fill no stretch don't count. NaN of a
        series that has no stretch without gaps.

        Raises:
            ValueError: for series that do not fit the model.
        """
        check_is_fitted(self, "energy_")
        stretch, found = self.windows_.stretch, []
        for one in self._like_training(check_series(X, known, times)):
            log_prob = self._log_prob_after(one, np.arange(0, len(one.values) - stretch, stretch))
            complete = log_prob[~np.isnan(log_prob)]
            found.append(float(complete.mean()) / stretch if len(complete) else np.nan)
        return np.array(found)

    def score_moments(
        self, X: Any, moments: Sequence[np.ndarray], *, known: Any = None, times: Any = None
    ) -> list[np.ndarray]:
        """log p of the stretch after moments of each series given all before it, a step, in nats.

        Args:
            X, known, times: series, as in :meth:`fit`.
            moments: of each series the places of last known states; a whole stretch follows each.

        Returns:
            of each series ``[moments]``; NaN where the stretch has a gap.

        Raises:
            ValueError: for series that do not fit the model, or moments after which a series is too short.
        """
        check_is_fitted(self, "energy_")
        series, stretch = self._like_training(check_series(X, known, times)), self.windows_.stretch
        if len(moments) != len(series):
            raise ValueError(f"there are {len(series)} series and moments of {len(moments)}")
        found = []
        for i, (one, own) in enumerate(zip(series, moments, strict=True)):
            own = np.asarray(own, dtype=int)
            last = len(one.values) - stretch - 1
            if len(own) and not (own.min() >= 0 and own.max() <= last):
                raise ValueError(f"moments of series {i} must lie between 0 and {last}: {stretch} steps follow")
            found.append(self._log_prob_after(one, own) / stretch)
        return found

    def _log_prob_after(self, one: Series, moments: np.ndarray) -> np.ndarray:
        """log p of the stretch after each moment ``[n]``; NaN where it has a gap, or nothing is known before."""
        windows, found = self.windows_, np.full(len(moments), np.nan)
        recent = windows.recent(one.values, moments)
        y = windows.after(one.values, moments, recent)
        complete = ~np.isnan(y).any((1, 2)) & ~np.isnan(recent).all((1, 2))
        if complete.any():
            x = windows.inputs(recent, *windows.ahead(one, moments))[complete]
            inputs, target = (torch.from_numpy(part).float() for part in (x, y[complete].reshape(len(x), -1)))
            with torch.no_grad():
                found[complete] = -self.energy_(inputs, target).double().numpy()
        return found

    def score(self, X: Any, y: Any = None, *, known: Any = None, times: Any = None) -> float:
        """The mean of :meth:`score_samples`: log p a step, in nats."""
        return float(np.nanmean(self.score_samples(X, known=known, times=times)))

    def _pasts(self, past: Any, known: Any, times: Any, horizon: int) -> tuple[bool, list[Series]]:
        """Whether a single past was given, and series with inputs and times to the end of the last stretch."""
        single, past, known, times = as_many(past, known, times)
        if times is None and self.windows_.step:
            raise ValueError("the model was fitted to series with times: give those of the past")
        series = self._like_training(check_series(past, known, times, ahead=horizon))
        stretch = self.windows_.stretch
        beyond = -(-horizon // stretch) * stretch
        return single, [_reaching(one, beyond, self.windows_.step) for one in series]

    def _like_training(self, series: list[Series]) -> list[Series]:
        """Raise where series are not of the kind that the model was fitted to."""
        windows, first = self.windows_, series[0]
        if first.values.shape[1] != windows.n_columns:
            raise ValueError(f"the series have {first.values.shape[1]} columns, the model's {windows.n_columns}")
        n_known = 0 if first.known is None else first.known.shape[1]
        if n_known != windows.n_known:
            raise ValueError(
                f"there are {n_known} inputs known ahead, and the model was fitted with {windows.n_known}"
            )
        if (first.times is not None) != bool(windows.step):
            given = "without times" if windows.step else "with times"
            raise ValueError(f"the series come {given}, unlike those that the model was fitted to")
        return series

    # -- saving --------------------------------------------------------------------------------------

    def _config(self) -> dict[str, Any]:
        return {
            "windows": self.windows_.to_dict(),
            "n_inputs": self.energy_.links.hidden[0].weight.shape[1] - self.energy_.n_links,
            "held_out": self.held_out_,
        }

    def _rebuild(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.windows_ = Windows(**config["windows"])
        self.held_out_ = dict(config["held_out"])
        self.energy_ = self._density(int(config["n_inputs"]))


class _HeldOutLinks(NestedFigure):
    """The negative log-likelihood of each link of each member on its held-out moments."""

    max_rows = 1000

    def __init__(self, x: Tensor, y: Tensor, held_out: np.ndarray, n_links: int, seed: int):
        rows, weights = judging_rows(held_out, None, seed)
        rows, weights = rows[:, : self.max_rows], weights[:, : self.max_rows]
        self.rows = rows.repeat_interleave(n_links, 0)
        self.weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(n_links, 0)
        self.x, self.y, self.members = x, y, rows

    def _of_rows(self, energy: nn.Module) -> tuple[Tensor, Tensor]:
        assert isinstance(energy, StretchDensity)
        device = energy.mean.device
        values = []
        for k, rows in enumerate(self.members):
            alone, features = energy.alone(k), energy.features(self.x[rows].to(device))
            values.append(-alone.link_log_prob(features, alone.errors(features, self.y[rows].to(device))))
        return torch.cat(values, 1), self.weights.T


def _reaching(one: Series, beyond: int, step: float) -> Series:
    """The series with inputs and times that reach so many steps beyond its values, the last ones held on."""
    n = len(one.values) + beyond
    known, times = one.known, one.times
    if known is not None and len(known) < n:
        known = np.concatenate([known, np.repeat(known[-1:], n - len(known), 0)])
    if times is not None and len(times) < n:
        times = np.concatenate([times, times[-1] + step * np.arange(1, n - len(times) + 1)])
    return Series(one.values, known, times)
