"""A run on series: read, hold a part out, train, forecast it beside two baselines, save."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from thalweg.data.tables import write_table
from thalweg.data.timegrid import TimeGrid
from thalweg.data.windows import stretches_after
from thalweg.estimators.forecaster import EnergyForecaster
from thalweg.evaluation.forecast_baselines import NaiveForecast
from thalweg.evaluation.forecasts import check_intervals, check_rivals, forecast_figures
from thalweg.evaluation.verdict import Check, check_doubts, check_held_out
from thalweg.runs.base import Run, Tell, TextTable
from thalweg.runs.folder import listed
from thalweg.runs.kinds import ForecastFigures
from thalweg.runs.series import OneSeries, Roles, on_grid, read_long, written
from thalweg.runs.settings.forecast import ForecastSettings
from thalweg.runs.split_series import N_DRAWS, HeldOut, SplitSeries, given, read_split
from thalweg.runs.tables import MODEL_NAME, with_error

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_NUMBERS_AT_ONCE = 5_000_000
# What the page may show: of so many series the last steps.
_MOST_SHOWN, _FEWEST_STEPS = 8, 500


class ForecastRun(Run):
    """Forecasts of series, beside two baselines on a part that is held out."""

    settings_class = ForecastSettings
    figures_class = ForecastFigures

    @property
    def roles(self) -> Roles:
        figures = self.figures
        return Roles(figures["time"], figures["targets"], figures["series"], figures["known"])

    @property
    def grid(self) -> TimeGrid:
        return TimeGrid(**self.figures["grid"])

    # -- making --------------------------------------------------------------------------------------

    @classmethod
    def read(cls, settings: ForecastSettings) -> SplitSeries:
        return read_split(settings)

    @classmethod
    def build(cls, settings: ForecastSettings, data: SplitSeries, verbose: bool) -> EnergyForecaster:
        how: dict[str, Any] = {} if settings.steps is None else {"max_steps": settings.steps}
        return EnergyForecaster(
            stretch=data.horizon,
            window=settings.window,
            season=data.season or None,
            n_members=settings.members,
            device=settings.device,
            n_threads=settings.threads,
            random_state=settings.seed,
            verbose=verbose,
            **how,
        )

    @classmethod
    def train(cls, model: EnergyForecaster, data: SplitSeries, settings: ForecastSettings, **how: Any) -> None:
        model.fit([one.values for one in data.training], **data.given(data.training), **how)

    @classmethod
    def measure(
        cls, model: EnergyForecaster, data: SplitSeries, settings: ForecastSettings, tell: Tell
    ) -> dict[str, Any]:
        tell("Forecasting what was held out, by the model and by the baselines.")
        apart = len(np.unique(data.blocks))
        scores, scale, seconds = _scores(model, data, settings.seed)
        return {
            "table": Path(settings.data).name,
            "time": data.roles.time,
            "targets": data.roles.targets,
            "series": data.roles.series,
            "known": data.roles.known,
            "kinds": data.long.kinds,
            "style": data.long.style,
            "grid": data.grid.to_dict(),
            "cycles": data.cycles,
            "horizon": data.horizon,
            "season": data.season,
            "remarks": data.remarks + model.history_.events,
            "rows": len(data.long.times),
            "n_series": data.n_series,
            "training_rows": sum(len(one.values) for one in data.training),
            "test_series": len(data.test),
            "test_rows": sum(len(own.series.values) - own.begins for own in data.test),
            "whole_series": data.whole_series,
            "forecasts": sum(len(own.moments) for own in data.test),
            "apart": apart,
            "scale": scale,
            "scores": scores,
            "seconds": seconds,
        }

    @classmethod
    def judge(
        cls, model: EnergyForecaster, data: SplitSeries, figures: dict[str, Any], settings: ForecastSettings
    ) -> list[Check]:
        scores, apart = figures["scores"], figures["apart"]
        ours = scores[MODEL_NAME]
        coverage = check_intervals(ours["coverage"], apart, "forecasts that do not overlap")
        gains = {name: (entry["crps_gain"], entry["crps_gain_error"]) for name, entry in scores.items()
                 if name != MODEL_NAME}  # fmt: skip
        rivals = check_rivals(ours["crps"], gains, apart)
        return [check_held_out(apart, what="forecast"), check_doubts(data.doubts), rivals, coverage]

    @classmethod
    def keep(
        cls, folder: Path, model: Any, data: SplitSeries, figures: dict[str, Any], settings: ForecastSettings
    ) -> None:
        shown = data.test[:_MOST_SHOWN]
        seen = max(_FEWEST_STEPS, model.windows_.reach + 4 * data.horizon)
        test = _as_rows([own.series for own in shown], seen)
        test["held_out"] = np.concatenate(
            [np.arange(len(own.series.values))[-seen:] >= own.begins for own in shown]
        )
        write_table(test, folder / "test_rows.parquet")
        origin = ("table", "time", "targets", "series", "known", "grid", "horizon", "season", "scores")
        cls.keep_model(folder, model, {name: figures[name] for name in origin}, settings)

    @classmethod
    def load_model(cls, folder: Path, settings: ForecastSettings) -> EnergyForecaster:
        return EnergyForecaster.load(folder)

    # -- verbs ---------------------------------------------------------------------------------------

    def predict(self, path: Path, horizon: int | None = None, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
        """The mean and quantiles of each target at each step after the past that a file holds.

        Args:
            path: of a table with the past of each series, which may go on with rows whose targets are empty.
            horizon: how many steps; None for as many as are forecast at once.
            draws: paths behind the figures.
        """
        horizon = horizon or self.figures["horizon"]
        series = self._read(path, horizon)
        mean, quantiles = [], []
        for paths in self._drawn(series, horizon, draws, seed):
            mean.append(paths.mean(1))
            quantiles.append(np.quantile(paths, QUANTILES, axis=1).transpose(1, 2, 3, 0))
        middle, levels = (np.concatenate(part).reshape(-1, *part[0].shape[2:]) for part in (mean, quantiles))
        steps = np.arange(1, horizon + 1)
        columns = self._places(series, horizon, 1)
        columns |= {_free("step", columns): np.tile(steps, len(series))}
        for d, target in enumerate(self.roles.targets):
            columns[f"{target}_mean"] = middle[:, d]
            columns |= {f"{target}_{q:g}": levels[:, d, k] for k, q in enumerate(QUANTILES)}
        return pd.DataFrame(columns)

    def sample(
        self, n: int = 100, seed: int = 0, table: Path | None = None, horizon: int | None = None
    ) -> pd.DataFrame:
        """n paths of each series, which go on from the past that a file holds; a row for each step."""
        if table is None:
            raise ValueError(f"name the table that holds the past: thalweg sample {self.folder} TABLE")
        horizon = horizon or self.figures["horizon"]
        series = self._read(table, horizon)
        paths = np.concatenate(list(self._drawn(series, horizon, n, seed)))
        columns = self._places(series, horizon, n)
        columns |= {_free("path", columns): np.tile(np.repeat(np.arange(1, n + 1), horizon), len(series))}
        # The path stands before the time, whose steps it counts.
        time = columns.pop(self.roles.time)
        columns |= {self.roles.time: time}
        flat = paths.reshape(-1, len(self.roles.targets))
        return pd.DataFrame(columns | {name: flat[:, d] for d, name in enumerate(self.roles.targets)})

    def score(self, path: Path) -> pd.DataFrame:
        """``log_prob``, mean log p of a step of each series in nats; ``steps``; ``note``, why it has none."""
        series = self._read(path, 0)
        whole = [one.cut(len(one.values)) for one in series]
        log_prob = self.model.score_samples([one.values for one in whole], **given(whole, self.grid))
        columns: dict[str, Any] = {}
        if self.roles.series:
            columns[self.roles.series] = [one.name for one in whole]
        columns[_free("steps", columns)] = [len(one.values) for one in whole]
        columns["log_prob"] = log_prob
        if np.isnan(log_prob).any():
            text = f"no {self.figures['horizon']} steps without a gap"
            columns["note"] = [text if np.isnan(value) else None for value in log_prob]
        return pd.DataFrame(columns)

    def _read(self, path: Path, horizon: int) -> list[OneSeries]:
        long = read_long(path, self.roles, self.settings.missing, self.figures["kinds"])
        stretch = self.figures["horizon"]
        beyond = -(-horizon // stretch) * stretch
        series, _ = on_grid(long, self.roles, self.grid, self.figures["cycles"], horizon, beyond)
        if not series:
            raise ValueError(f"{path.name} has no value of {listed(self.roles.targets)}")
        return series

    def _drawn(self, series: list[OneSeries], horizon: int, n: int, seed: int) -> Any:
        """Paths ``[series, n, horizon, D]``, some series at a time."""
        size = max(1, _NUMBERS_AT_ONCE // (n * horizon * len(self.roles.targets)))
        rng = np.random.RandomState(seed)
        for k in range(0, len(series), size):
            some = series[k : k + size]
            pasts = [one.values for one in some]
            yield self.model.sample(pasts, horizon, n, random_state=rng, **given(some, self.grid))

    def _places(self, series: list[OneSeries], horizon: int, n: int) -> dict[str, Any]:
        """The name of its series and the time of each step of n paths of each series."""
        times = [np.tile(one.times[len(one.values) : len(one.values) + horizon], n) for one in series]
        columns: dict[str, Any] = {}
        if self.roles.series:
            columns[self.roles.series] = np.repeat([one.name for one in series], n * horizon)
        return columns | {self.roles.time: written(np.concatenate(times), self.figures["style"])}

    # -- what is shown of it -------------------------------------------------------------------------

    def summary(self) -> dict[str, str]:
        figures, model = self.figures, self.model
        n_weights = sum(p.numel() for p in model.energy_.parameters())
        season = f", season {figures['season']}" if figures["season"] else ""
        inputs = [*map(repr, figures["known"]), *figures["cycles"]]
        what = "whole series" if figures["whole_series"] else "the last part of each series"
        return {
            "forecasts of": ", ".join(figures["targets"]),
            "known ahead": ", ".join(inputs) or "nothing",
            "steps": f"{self.grid.in_words()}; {figures['horizon']} at once, {model.windows_.window} seen back"
            + season,
            "model": f"{model.n_members} members, {n_weights:,} weights",
            "table": f"{figures['table']}: {figures['n_series']} series, {figures['training_rows']} steps to "
            f"learn from; held out: {what}, {figures['test_rows']} steps",
            "log p": f"{figures['scores'][MODEL_NAME]['log_prob']:.3f} nats a step, held out",
            "training": f"{figures['seconds']['training']:.1f} s, {len(model.history_.epochs)} epochs, "
            f"ended: {model.history_.stopped}",
        }

    def tables(self) -> list[TextTable]:
        figures = self.figures
        rows = []
        for name, entry in figures["scores"].items():
            gain = entry.get("crps_gain")
            rows.append(
                [
                    name,
                    f"{entry['crps']:.4g}",
                    "" if gain is None else with_error(gain, entry["crps_gain_error"], "+"),
                    f"{entry['energy_score']:.4g}",
                    f"{entry['mae']:.4g}",
                    f"{100 * entry['coverage']:.1f} %",
                    f"{entry['log_prob']:.3f}" if "log_prob" in entry else "",
                ]
            )
        n = figures["forecasts"]
        title = f"{figures['table']}: {n} held-out forecast{'s' * (n != 1)} of {figures['horizon']} steps" + (
            "" if len(figures["targets"]) == 1 else ", each target in spreads of its changes"
        )
        head = [
            "model",
            "CRPS",
            "gain of ours",
            "energy score",
            "MAE of the median",
            "90 % interval",
            "log p a step",
        ]
        return [TextTable(title, head, rows)]


def _free(name: str, columns: Any) -> str:
    """A name that no column has yet."""
    while name in columns:
        name += "_"
    return name


def _as_rows(series: Sequence[OneSeries], most: int) -> pd.DataFrame:
    """The last steps of series as rows, whose columns are named by what they are."""
    rows = [slice(max(0, len(one.values) - most), len(one.values)) for one in series]
    values = np.concatenate([one.values[own] for one, own in zip(series, rows, strict=True)])
    lengths = [own.stop - own.start for own in rows]
    found: dict[str, Any] = {
        "place": np.repeat(np.arange(len(series)), lengths),
        "name": np.repeat([one.name for one in series], lengths),
    }
    found["time"] = np.concatenate([one.times[own] for one, own in zip(series, rows, strict=True)])
    found |= {f"target {d}": values[:, d] for d in range(values.shape[1])}
    inputs = [one.known[own] for one, own in zip(series, rows, strict=True) if one.known is not None]
    if inputs:
        known = np.concatenate(inputs)
        found |= {f"known {u}": known[:, u] for u in range(known.shape[1])}
    return pd.DataFrame(found)


# -- measuring -----------------------------------------------------------------------------------------


def forecasts_of(
    model: EnergyForecaster, own: HeldOut, grid: TimeGrid, horizon: int, n: int, rng: np.random.RandomState
) -> np.ndarray:
    """Paths ``[moments, n, horizon, D]`` from each moment of a held-out series."""
    pasts = [own.series.cut(int(t) + 1, horizon) for t in own.moments]
    return model.sample([one.values for one in pasts], horizon, n, random_state=rng, **given(pasts, grid))


def _scores(
    model: EnergyForecaster, data: SplitSeries, seed: int
) -> tuple[dict[str, Any], list[float], dict[str, float]]:
    """Figures of the model and of the baselines on the same moments; the unit of each target; seconds."""
    horizon, rng = data.horizon, np.random.RandomState(seed)
    truth = np.concatenate([stretches_after(own.series.values, own.moments, horizon) for own in data.test])
    training = [one.values for one in data.training]
    kinds = [NaiveForecast(horizon), *([NaiveForecast(horizon, data.season)] if data.season else [])]
    baselines = [kind.fit(training, seed) for kind in kinds]
    # Several targets are weighed in their own units, so that none outweighs the others.
    n_targets = len(data.roles.targets)
    scale = baselines[0].errors_.std((0, 1)) if n_targets > 1 else np.ones(1)
    start = time.monotonic()
    draws = np.concatenate([forecasts_of(model, own, data.grid, horizon, N_DRAWS, rng) for own in data.test])
    names, blocks = data.roles.targets, data.blocks
    ours = forecast_figures(draws, truth, scale, names, blocks)
    series = [own.series.cut(len(own.series.values)) for own in data.test]
    log_prob = np.concatenate(
        model.score_moments(
            [one.values for one in series], [own.moments for own in data.test], **data.given(series)
        )
    )
    ours.figures["log_prob"] = float(log_prob.mean())
    seconds = {"forecasting": time.monotonic() - start}
    scores = {MODEL_NAME: {**ours.figures, "detail": "draws of whole paths"}}
    for baseline in baselines:
        start = time.monotonic()
        draws = np.concatenate([baseline.draws(o.series.values, o.moments, N_DRAWS, rng) for o in data.test])
        theirs = forecast_figures(draws, truth, scale, names, blocks)
        gain = theirs.blocks - ours.blocks
        error = float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else None
        scores[baseline.name] = {
            **theirs.figures,
            "detail": baseline.detail,
            # Both forecast the same moments, so the difference is more precise than either figure.
            "crps_gain": theirs.figures["crps"] - ours.figures["crps"],
            "crps_gain_error": error,
        }
        seconds[baseline.name] = time.monotonic() - start
    return scores, [float(unit) for unit in scale], seconds
