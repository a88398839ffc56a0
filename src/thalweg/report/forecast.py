"""The report of a run on series."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pandas as pd

from thalweg.data.windows import stretches_after, whole_moments
from thalweg.report import charts, forecast_charts
from thalweg.report.forecast_charts import Panel
from thalweg.report.page import Card, Tile, checks_of, footer_of, render_page
from thalweg.report.words import duration, place_of_least
from thalweg.runs.base import MODEL_NAME
from thalweg.runs.forecast import ForecastRun, forecasts_of
from thalweg.runs.series import OneSeries, written
from thalweg.runs.split_series import HeldOut

_MOST_PANELS, _MOST_TARGETS, _MOST_SERIES = 6, 3, 3
_N_PATHS = 200


def report(run: ForecastRun) -> str:
    """The report of a finished run as one HTML page."""
    shown = _Shown(run)
    targets = " and ".join(run.figures["targets"]) if len(run.figures["targets"]) <= 3 else "Series"
    cards = [
        _fans_card(shown),
        _paths_card(shown),
        _crps_card(run),
        _coverage_card(run),
        _training_card(run),
        _scores_card(run),
        *([_targets_card(run)] if len(run.figures["targets"]) > 1 else []),
        _making_card(run),
    ]
    return render_page(
        f"Forecasts of {targets}" if targets != "Series" else f"Forecasts of {run.figures['table']}",
        f"The density of the next {run.figures['horizon']} steps given the past, by an energy-based model",
        _tiles(run),
        cards,
        footer_of(run),
        checks_of(run),
    )


class _Shown:
    """Some held-out forecasts, one after the other."""

    def __init__(self, run: ForecastRun):
        self.run = run
        self.n_targets = min(len(run.figures["targets"]), _MOST_TARGETS)
        self.n_columns = 2 if self.n_targets == 1 else self.n_targets

    @cached_property
    def panels(self) -> list[Panel]:
        """Panels, target by target of each forecast."""
        run, horizon, found = self.run, self.run.figures["horizon"], []
        rng = np.random.RandomState(run.settings.seed)
        for own in self._chosen():
            drawn = forecasts_of(run.model, own, run.grid, horizon, _N_PATHS, rng)
            truth = stretches_after(own.series.values, own.moments, horizon)
            for k, t in enumerate(own.moments):
                past = slice(max(0, t + 1 - max(3 * horizon, 24)), t + 1)
                start = written(own.series.times[t + 1 : t + 2], run.figures["style"])[0]
                for d in range(self.n_targets):
                    what = run.figures["targets"][d] if len(run.figures["targets"]) > 1 else ""
                    title = ", ".join(filter(None, [own.series.name, what, f"from {start}"]))
                    found.append(
                        Panel(
                            charts.shortened(title, 48),
                            own.series.times[past],
                            own.series.times[t + 1 : t + 1 + horizon],
                            own.series.values[past, d],
                            truth[k, :, d],
                            drawn[k, :, :, d],
                        )
                    )
        return found

    def _chosen(self) -> list[HeldOut]:
        """Some moments of some series: of each series as many, evenly."""
        assert self.run.test_rows is not None
        horizon = self.run.figures["horizon"]
        held_out = [_as_held_out(rows, horizon) for _, rows in self.run.test_rows.groupby("place", sort=False)]
        n = max(1, _MOST_PANELS // (self.n_targets if self.n_targets > 1 else 1))
        held_out = [own for own in held_out if len(own.moments)][: min(n, _MOST_SERIES)]
        each = -(-n // len(held_out))
        found = []
        for own in held_out:
            last = len(own.moments) - 1
            places = np.unique(np.linspace(0, last, each).round().astype(int)) if each > 1 else [last // 2]
            found.append(HeldOut(own.series, own.moments[places], own.begins))
        return found


def _as_held_out(rows: pd.DataFrame, horizon: int) -> HeldOut:
    """A series of the kept rows, and all moments from which only held-out steps are forecast."""
    values = rows.filter(regex=r"^target \d+$").to_numpy(np.float64)
    known = rows.filter(regex=r"^known \d+$").to_numpy(np.float64)
    times = rows["time"].to_numpy()
    times = times.astype("datetime64[us]") if times.dtype.kind == "M" else times
    begins = int(np.argmax(rows["held_out"].to_numpy()))
    name = rows["name"].iloc[0]
    one = OneSeries("" if pd.isna(name) else str(name), times, values, known if known.shape[1] else None)
    moments = whole_moments(values, horizon)
    later = moments[moments >= max(begins - 1, min(2 * horizon, len(values) - horizon - 1))]
    return HeldOut(one, later if len(later) else moments[moments >= begins - 1][-1:], begins)


def _tiles(run: ForecastRun) -> list[Tile]:
    figures, scores = run.figures, run.figures["scores"]
    ours = scores[MODEL_NAME]
    rival = min((name for name in scores if name != MODEL_NAME), key=lambda name: scores[name]["crps"])
    n, n_forecasts = figures["n_series"], figures["forecasts"]
    season = f"; a season of {figures['season']}" if figures["season"] else ""
    return [
        Tile("series", f"{n:,}", f"of {figures['rows']:,} rows, {run.grid.in_words()}"),
        Tile("horizon", f"{figures['horizon']}", f"steps at once{season}"),
        Tile("CRPS", f"{ours['crps']:.4g}", f"{rival}: {scores[rival]['crps']:.4g}"),
        Tile("90 % intervals", f"{100 * ours['coverage']:.1f} %", "of held-out states inside"),
        Tile("log p", f"{ours['log_prob']:.3f}", f"nats a step; {n_forecasts} forecasts"),
        Tile("training", duration(figures["seconds"]["training"]), f"{len(run.model.history_.epochs)} epochs"),
    ]


def _fans_card(shown: _Shown) -> Card:
    text = (
        "What was forecast of held-out stretches: half of the truth should lie in the darker band, nine in ten "
        f"steps in both.{_of_more(shown.run)}"
    )
    return Card("Forecasts", text, [forecast_charts.fans(shown.panels, shown.n_columns)])


def _paths_card(shown: _Shown) -> Card:
    text = (
        "Eight draws of whole paths from the same pasts. Each should look like the truth: as rough, as steep, as "
        "likely to turn."
    )
    return Card("Paths", text, [forecast_charts.paths(shown.panels, shown.n_columns)])


def _of_more(run: ForecastRun) -> str:
    n = len(run.figures["targets"])
    return f" The first {_MOST_TARGETS} of {n} targets are shown." if n > _MOST_TARGETS else ""


def _crps_card(run: ForecastRun) -> Card:
    figures = {name: entry["crps_by_step"] for name, entry in run.figures["scores"].items()}
    text = (
        "The continuous ranked probability score at each step of held-out forecasts, lower is better: how far the "
        f"whole distribution is from the truth{_unit(run)}. {_of_baselines(run)}"
    )
    return Card("Error by step", text, [forecast_charts.by_step(figures, "CRPS")])


def _of_baselines(run: ForecastRun) -> str:
    details = [
        f"“{name}” is {entry['detail']}" for name, entry in run.figures["scores"].items() if name != MODEL_NAME
    ]
    return "; ".join(details) + "."


def _unit(run: ForecastRun) -> str:
    several = len(run.figures["targets"]) > 1
    return ", in standard deviations of the changes of each target" if several else ", in the target's own unit"


def _coverage_card(run: ForecastRun) -> Card:
    ours = run.figures["scores"][MODEL_NAME]
    covered = {level / 100: ours[f"covered_{level}_by_step"] for level in (90, 50)}
    n = run.figures["apart"]
    text = (
        "The share of held-out states inside the central intervals of 50 and 90 %, at each step. A calibrated "
        f"model keeps near the dotted lines. Of the forecasts {n} do{'es' * (n == 1)} not overlap: the fewer, the "
        "more the lines stray by chance."
    )
    return Card("Calibration by step", text, [forecast_charts.coverage_by_step(covered)])


def _training_card(run: ForecastRun) -> Card:
    history = run.model.history_
    judged = [epoch for epoch in history.epochs if "validation" in epoch]
    if not judged:
        return Card("Training", f"The training ended: {history.stopped}.", notes=history.events)
    epochs, values = [e["epoch"] for e in judged], [e["validation"] for e in judged]
    marked = (epochs[int(np.nanargmin(values))], "best")
    text = (
        "-log p in nats of what the linear part misses of held-out moments, in numbers of unit variance, as the "
        "training went on; a standard Gaussian gives 1.42. Each part keeps the weights that were best for it. "
        f"The training ended: {history.stopped}."
    )
    picture = charts.curves(epochs, {"held-out moments": values}, ("epoch", "-log p"), marked)
    return Card("Training", text, [picture], notes=history.events)


def _scores_card(run: ForecastRun) -> Card:
    scores = run.figures["scores"]
    columns = {"crps": "CRPS", "energy_score": "energy score", "mae": "MAE of the median"}
    rows = [
        [name, *(f"{entry[key]:.4g}" for key in columns), f"{100 * entry['coverage']:.1f} %"]
        for name, entry in scores.items()
    ]
    best = {(place_of_least([entry[key] for entry in scores.values()]), k + 1) for k, key in enumerate(columns)}
    notes = []
    for name, entry in scores.items():
        if name != MODEL_NAME:
            error = entry["crps_gain_error"]
            sure = "" if error is None else f" ± {error:.3g}"
            word = "lower" if entry["crps_gain"] >= 0 else "higher"
            notes.append(
                f"The CRPS is {abs(entry['crps_gain']):.3g}{sure} {word} than that of the {name} forecast."
            )
    text = (
        f"Means over {run.figures['forecasts']} held-out forecasts{_unit(run)}. The energy score judges whole "
        "paths: a model whose steps are right one by one but do not go together loses there."
    )
    return Card(
        "Figures", text, head=["model", *columns.values(), "90 % interval"], rows=rows, best=best, notes=notes
    )


def _targets_card(run: ForecastRun) -> Card:
    scores, names = run.figures["scores"], run.figures["targets"]
    head = ["target", *(f"{what}, {name}" for what in ("CRPS", "MAE") for name in scores)]
    rows: Sequence[Sequence[str]] = [
        [target, *(f"{entry[key][target]:.4g}" for key in ("crps_of", "mae_of") for entry in scores.values())]
        for target in names
    ]
    text = "The same for each target, in its own unit."
    return Card("Target by target", text, head=head, rows=rows, folded=len(rows) > 20)


def _making_card(run: ForecastRun) -> Card:
    rows = [[name, value] for name, value in run.summary().items()]
    return Card("How it was made", "The model and its training.", head=["", ""], rows=rows, notes=run.remarks())
