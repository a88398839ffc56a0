"""The command on series: fit, predict, sample, score, report, resume, and what it refuses."""

import json
import signal
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from command import are_refused, stop_in_training, thalweg
from pages import figures_of
from pages import table as table_of
from thalweg.data.timegrid import TimeGrid
from thalweg.runs.base import load_run
from thalweg.runs.forecast import ForecastRun
from thalweg.runs.settings.forecast import ForecastSettings
from thalweg.runs.split_series import read_split

SMALL = ("--steps", 12, "--members", 2, "--threads", 1)


def passengers(n=96, seed=0):
    """Months with a trend and a season."""
    t, rng = np.arange(n), np.random.RandomState(seed)
    level = (110 + 2.6 * t) * (1 + 0.2 * np.sin(2 * np.pi * t / 12)) + 3 * rng.normal(size=n)
    months = pd.period_range("1949-01", periods=n, freq="M").strftime("%Y-%m")
    return pd.DataFrame({"month": months, "passengers": level.round(1)})


def regions(n=120, seed=0):
    """Hours of two regions, whose load follows a temperature that is known ahead; two targets."""
    rng, parts = np.random.RandomState(seed), []
    for name in ("north", "south"):
        hour = pd.date_range("2024-01-01", periods=n, freq="h")
        temperature = 15 + 8 * np.sin(2 * np.pi * np.arange(n) / 24) + rng.normal(size=n)
        load = 50 + 2 * temperature + rng.normal(size=n)
        price = 20 + 0.3 * load + rng.normal(size=n)
        parts.append(
            pd.DataFrame({"region": name, "hour": hour, "load": load, "price": price, "temperature": temperature})
        )
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def months(tmp_path_factory):
    folder = tmp_path_factory.mktemp("months")
    passengers().to_csv(folder / "air.csv", index=False)
    options = ("--time", "month", "--target", "passengers", "--out", folder / "run", *SMALL)
    return folder, thalweg("fit", "forecast", folder / "air.csv", *options)


@pytest.fixture(scope="module")
def hours(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hours")
    table = regions()
    table.drop(index=[5, 30, 31, 150]).to_csv(folder / "hours.csv", index=False)
    options = (
        "--time", "hour", "--target", "load", "--target", "price", "--series", "region", "--known", "temperature",
        "--horizon", 2, "--season", 0, "--out", folder / "run", *SMALL,
    )  # fmt: skip
    return folder, thalweg("fit", "forecast", folder / "hours.csv", *options)


def fitted(table, folder, *options):
    """Settings of a table, and what is read of it."""
    table.to_csv(folder / "t.csv", index=False)
    return read_split(ForecastSettings(data=str(folder / "t.csv"), **dict(options)))


def test_months_are_fitted_and_told(months):
    folder, done = months
    assert "are even: every month" in done.out
    assert "A season is taken to have 12 steps" in done.out
    assert "seasonal naive" in done.out
    figures = json.loads((folder / "run/figures.json").read_text())
    assert (figures["horizon"], figures["season"], figures["n_series"]) == (12, 12, 1)
    # A fifth of the time, 19 months, is held out: 8 months are followed by 12 of them.
    assert (figures["training_rows"], figures["test_rows"], figures["forecasts"]) == (77, 19, 8)
    assert set(figures["scores"]) == {"thalweg", "naive", "seasonal naive"}
    assert {check["name"] for check in figures["verdict"]} == {
        "rows", "training", "baseline", "coverage", "held-out forecasts", "columns"
    }  # fmt: skip
    shown = thalweg("info", folder / "run").out
    assert "every month; 12 at once" in shown
    assert "nats a step" in shown


def test_a_forecast_goes_on_with_the_months(months, tmp_path):
    folder, _ = months
    done = thalweg("predict", folder / "run", folder / "air.csv", "--horizon", 14, "--out", tmp_path / "f.csv")
    assert "14 predictions written" in done.err
    found = pd.read_csv(tmp_path / "f.csv")
    levels = [f"passengers_{q}" for q in (0.05, 0.25, 0.5, 0.75, 0.95)]
    assert list(found.columns) == ["month", "step", "passengers_mean", *levels]
    assert found["month"].to_list() == pd.period_range("1957-01", periods=14, freq="M").strftime("%Y-%m").to_list()
    assert found["step"].to_list() == list(range(1, 15))
    assert (np.diff(found[levels].to_numpy(), axis=1) > 0).all()
    # Without --horizon as many as are forecast at once; the same seed gives the same numbers.
    again = thalweg("predict", folder / "run", folder / "air.csv", "--draws", 50).out
    assert again == thalweg("predict", folder / "run", folder / "air.csv", "--draws", 50).out
    assert again.count("\n") == 13


def test_the_figures_are_those_of_the_model(months):
    folder, _ = months
    run = load_run(folder / "run")
    values = passengers()["passengers"].to_numpy()[:, None]
    moments = np.arange(76, 84)
    (log_prob,) = run.model.score_moments([values], [moments])
    ours = run.figures["scores"]["thalweg"]
    assert ours["log_prob"] == pytest.approx(log_prob.mean(), rel=1e-4)
    drawn = np.stack([
        run.model.predict(values[: t + 1], 12, n_draws=500, random_state=1) for t in moments
    ])  # fmt: skip
    truth = np.stack([values[t + 1 : t + 13] for t in moments])
    assert ours["mae"] == pytest.approx(np.abs(drawn - truth).mean(), rel=0.1)
    # The seasonal naive forecast is about the value of one season ago.
    off = np.abs(truth - np.stack([values[t - 11 : t + 1] for t in moments]))
    assert run.figures["scores"]["seasonal naive"]["mae"] < off.mean()


def test_several_series_and_targets_with_inputs_known_ahead(hours, tmp_path):
    folder, done = hours
    assert "4 of 240 stamps of the grid are missing: they are gaps." in done.out
    assert "Inputs from the calendar: hour of the day" in done.out
    run = folder / "run"
    past = regions().groupby("region").head(100)
    past.to_csv(tmp_path / "past.csv", index=False)
    refused = thalweg("predict", run, tmp_path / "past.csv", code=1).err
    assert "series 'north' of past.csv has 0 rows after its last known state, and 2 are forecast" in refused
    ahead = regions().groupby("region").head(110)
    late = ahead.groupby("region").cumcount() >= 100
    ahead.loc[late, ["load", "price"]] = np.nan
    # A series that was not in training is as good as any other.
    ahead["region"] = ahead["region"].replace("south", "west")
    ahead.to_csv(tmp_path / "ahead.csv", index=False)
    thalweg("predict", run, tmp_path / "ahead.csv", "--draws", 50, "--horizon", 8, "--out", tmp_path / "f.csv")
    found = pd.read_csv(tmp_path / "f.csv")
    assert list(found.columns[:4]) == ["region", "hour", "step", "load_mean"]
    assert found["region"].to_list() == ["north"] * 8 + ["west"] * 8
    assert found["hour"][8] == "2024-01-05 04:00:00"
    for target in ("load", "price"):
        levels = found[[f"{target}_{q:g}" for q in (0.05, 0.25, 0.5, 0.75, 0.95)]].to_numpy()
        assert (np.diff(levels, axis=1) >= 0).all()
        assert ((levels[:, 0] < found[f"{target}_mean"]) & (found[f"{target}_mean"] < levels[:, -1])).all()
    thalweg("sample", run, tmp_path / "ahead.csv", "-n", 3, "--out", tmp_path / "paths.csv")
    paths = pd.read_csv(tmp_path / "paths.csv")
    assert list(paths.columns) == ["region", "path", "hour", "load", "price"]
    assert paths.groupby(["region", "path"]).size().to_list() == [2] * 6
    scored = thalweg("score", run, tmp_path / "ahead.csv", "--out", tmp_path / "s.csv")
    assert "A lower score is odder." in scored.err
    scores = pd.read_csv(tmp_path / "s.csv")
    assert scores["region"].to_list() == ["north", "west"]
    assert scores["steps"].to_list() == [100, 100]
    assert np.isfinite(scores["log_prob"]).all()


def test_the_page_shows_the_forecasts(months, hours):
    for folder, several in ((months[0], False), (hours[0], True)):
        page = (folder / "run" / "report.html").read_text()
        for heading in (
            "Checks",
            "Forecasts",
            "Paths",
            "Error by step",
            "Calibration by step",
            "Training",
            "Figures",
        ):
            assert f"<h2>{heading}</h2>" in page
        assert ("Target by target" in page) == several
        scores = load_run(folder / "run").figures["scores"]
        lines = {trace["name"]: trace["y"] for trace in figures_of(page, "Error by step")[0]["data"]}
        assert set(lines) == set(scores)
        np.testing.assert_allclose(lines["naive"], scores["naive"]["crps_by_step"], rtol=1e-5)
        covered = {trace["name"]: trace["y"] for trace in figures_of(page, "Calibration by step")[0]["data"]}
        np.testing.assert_allclose(covered["90% interval"], scores["thalweg"]["covered_90_by_step"], rtol=1e-5)
        assert [row[0].removesuffix("**") for row in table_of(page, "Figures")[1:]] == list(scores)
    (fan,) = figures_of((months[0] / "run" / "report.html").read_text(), "Forecasts")
    truth = [trace for trace in fan["data"] if trace["name"] == "truth"]
    assert len(truth) == 6
    # The first of them starts at the last state that was learned from.
    np.testing.assert_allclose(truth[0]["y"], passengers()["passengers"][76:89], rtol=1e-5)
    # Every one has the values of its own months.
    of_month = dict(zip(passengers()["month"], passengers()["passengers"], strict=True))
    for trace in truth:
        own = [of_month[stamp[:7]] for stamp in trace["x"]]
        np.testing.assert_allclose(trace["y"], own, rtol=1e-5)


def test_a_killed_run_is_resumed_to_the_same_model(months, tmp_path):
    folder, _ = months
    settings = ["fit", "forecast", folder / "air.csv", "--time", "month", "--target", "passengers", "--no-report",
                "--checkpoint-seconds", 0, "--members", 2, "--threads", 1, "--steps", 40,
                "--horizon", 2, "--window", 4, "--season", 0, "--no-calendar"]  # fmt: skip
    stop_in_training(settings, tmp_path / "killed", signal.SIGKILL)
    assert "not finished" in thalweg("info", tmp_path / "killed", code=1).err
    thalweg("fit", "forecast", "--resume", "--out", tmp_path / "killed", "-q", "--no-report")
    thalweg(*settings, "-q", "--out", tmp_path / "whole")
    models = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("killed", "whole")]
    assert models[0] == models[1]


def test_whole_series_are_held_out_where_there_are_ten(tmp_path):
    rng = np.random.RandomState(0)
    walks = [
        pd.DataFrame({"id": f"w{i}", "k": np.arange(30), "z": rng.normal(size=30).cumsum()}) for i in range(12)
    ]
    walks.append(pd.DataFrame({"id": "short", "k": [0, 1], "z": [0.0, 1.0]}))
    walks.append(pd.DataFrame({"id": "empty", "k": [0, 1], "z": [np.nan, np.nan]}))
    options = {"time": ["k"], "target": ["z"], "series": ["id"], "horizon": 4}
    data = fitted(pd.concat(walks), tmp_path, *options.items())
    assert data.whole_series
    assert (len(data.training), len(data.test), data.season) == (10, 2, 0)
    assert not {one.name for one in data.training} & {own.series.name for own in data.test}
    assert "Series of at most 4 steps, the horizon, were left out: 'short'." in data.remarks
    assert "Series without any value were left out: 'empty'." in data.remarks


def test_missing_stamps_are_gaps_and_uneven_times_are_passed_on(tmp_path):
    options = (("time", ["month"]), ("target", ["passengers"]))
    data = fitted(passengers().drop(index=[10, 20, 21]), tmp_path, *options)
    (one,) = data.training
    assert np.flatnonzero(np.isnan(one.values[:, 0])).tolist() == [10, 20, 21]
    assert str(one.times[20])[:7] == "1950-09"
    assert data.given([one])["times"] is None
    rng = np.random.RandomState(0)
    table = pd.DataFrame({"t": rng.gamma(2.0, size=120).cumsum(), "x": rng.normal(size=120).cumsum()})
    data = fitted(table, tmp_path, ("time", ["t"]), ("target", ["x"]), ("horizon", 5))
    assert data.grid.kind == "uneven"
    np.testing.assert_allclose(data.given(data.training)["times"][0], table["t"][:96])
    thalweg("fit", "forecast", tmp_path / "t.csv", "--time", "t", "--target", "x", "--horizon", 5, "-q",
            "--no-report", "--out", tmp_path / "run", *SMALL)  # fmt: skip
    thalweg("predict", tmp_path / "run", tmp_path / "t.csv", "--out", tmp_path / "f.csv", "--draws", 20)
    times = pd.read_csv(tmp_path / "f.csv")["t"].to_numpy()
    step = np.median(np.diff(table["t"]))
    np.testing.assert_allclose(times, table["t"].iloc[-1] + step * np.arange(1, 6), rtol=1e-6)


def test_what_is_refused(months, hours, tmp_path):
    def saved(name, table):
        table.to_csv(tmp_path / name, index=False)
        return tmp_path / name

    def fit(name, table, *options):
        told = ("--time", "month", "--target", "passengers", "--out", tmp_path / "run", *SMALL, *options)
        return ("fit", "forecast", saved(name, table), *told)

    air = passengers()
    swapped = air.iloc[[0, 1, 3, 2, *range(4, 96)]]
    texts = air.astype(object).replace({"passengers": {air["passengers"][3]: "many"}})
    ahead = air.assign(plan=1.0 * np.arange(96))
    run, table = months[0] / "run", months[0] / "air.csv"
    are_refused(
        [
            (("fit", "forecast", table, "--target", "passengers"), 1, "--time COLUMN"),
            (("fit", "forecast", table, "--time", "month"), 1, "--target COLUMN"),
            (("fit", "forecast", table, "--time", "month", "--target", "month"), 1, "can't be both"),
            (("fit", "forecast", table, "--time", "year", "--target", "passengers"), 1, "no column 'year'"),
            (fit("a.csv", air, "--season", 1), 1, "--season must be 0"),
            (fit("a.csv", air, "--season", 200), 1, "--season 200 is too long"),
            (fit("a.csv", air, "--devices", 2), 1, "one process"),
            (fit("swapped.csv", swapped), 1, "is not sorted: 1949-03 in row 4 comes after 1949-04"),
            (fit("twice.csv", pd.concat([air[:5], air[4:]])), 1, "has the time 1949-05 twice, again in row 6"),
            (fit("same.csv", air.assign(passengers=3)), 1, "'passengers' of same.csv never changes"),
            (fit("texts.csv", texts), 1, "'many' in row 4"),
            (fit("words.csv", air.assign(passengers="many")), 1, "holds texts ('many' in row 1)"),
            (fit("gaps.csv", air.assign(passengers=np.nan)), 1, "has no value at all"),
            (fit("one.csv", air[:1].assign(passengers=3.0)), 1, "never changes"),
            (fit("two.csv", air[:2]), 1, "nothing of two.csv can be held out"),
            (fit("few.csv", air[:12], "--horizon", 12), 1, "has 12 steps, and a forecast of 12 needs at least 13"),
            (fit("long.csv", air, "--horizon", 47), 1, "moments of what is learned from"),
            (fit("untimed.csv", air.assign(month=air["month"].where(air.index != 7))), 1, "row 8 of untimed.csv"),
            (fit("times.csv", air.assign(month="May")), 1, "holds texts ('May' in row 1)"),
            (fit("plan.csv", ahead.mask(ahead == 9.0), "--known", "plan"), 1, "'plan' is empty in row 10"),
            (fit("endless.csv", air.replace(air["passengers"][9], np.inf)), 1, "infinite value (row 10)"),
            (("predict", run, table, "--quantiles", "0.1"), 1, "--quantiles does not apply"),
            (("predict", run, saved("day.csv", air.assign(month="1949-01-03")[:1])), 1, "not on its grid"),
            (("predict", run, saved("lacks.csv", air[["passengers"]])), 1, "no column 'month'"),
            (("predict", run, saved("none.csv", air.assign(passengers=np.nan))), 1, "has no value"),
            (("sample", run), 1, "name the table that holds the past"),
            (("sample", run, tmp_path / "nothing.csv"), 1, "there is no file"),
            (("impute", run, table), 1, "can't impute"),
        ]
    )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_options_of_forecasts_are_for_forecasts(tmp_path):
    rng = np.random.RandomState(0)
    pd.DataFrame(rng.normal(size=(40, 2)), columns=["a", "b"]).to_csv(tmp_path / "t.csv", index=False)
    thalweg("fit", "density", tmp_path / "t.csv", "--epochs", 1,
            "--members", 2, "-q", "--no-report", "--out", tmp_path / "run")  # fmt: skip
    refused = thalweg("sample", tmp_path / "run", tmp_path / "t.csv", code=1).err
    assert "TABLE does not apply to a run of `thalweg fit density`" in refused
    assert "--horizon does not apply" in thalweg("sample", tmp_path / "run", "--horizon", 3, code=1).err


def test_every_setting_reaches_the_model():
    settings = ForecastSettings(data="t.csv", time=["t"], target=["x"], window=9, members=3, steps=11, seed=5,
                                threads=7, device="mps")  # fmt: skip
    model = ForecastRun.build(settings, SimpleNamespace(horizon=6, season=4), verbose=False)
    expected = {"stretch": 6, "season": 4, "window": 9, "n_members": 3, "max_steps": 11, "random_state": 5,
                "n_threads": 7, "device": "mps"}  # fmt: skip
    assert {name: model.get_params()[name] for name in expected} == expected


@pytest.mark.parametrize("frequency", ["MS", "ME", "QE", "YS", "W-SUN", "D", "B", "h", "30min"])
def test_grids_of_dates_are_recognised_and_continued(frequency):
    whole = pd.date_range("2020-01-01", periods=40, freq=frequency).to_numpy().astype("datetime64[us]")
    kept = np.delete(whole[:30], [3, 17])
    grid = TimeGrid.of([kept])
    assert grid.kind != "uneven"
    assert grid.places(kept).tolist() == [k for k in range(30) if k not in (3, 17)]
    assert (grid.times(kept[0], np.arange(40)) == whole).all()


def test_grids_of_numbers_are_recognised_up_to_rounding():
    assert TimeGrid.of([np.array([0, 0.33, 0.67, 1.0, 1.33])]).kind == "step"
    grid = TimeGrid.of([np.array([1990.0, 1991, 1993, 1994, 1995]), np.array([7.0, 8, 9])])
    assert (grid.kind, grid.step, grid.in_words()) == ("step", 1.0, "a step of 1")
    assert TimeGrid.of([np.array([0.0, 1, 5, 6, 11, 30])]).kind == "uneven"


def test_the_calendar_gives_the_cycles_that_the_season_does_not_show(tmp_path):
    table = pd.DataFrame({"hour": pd.date_range("2024-01-01", periods=24 * 16, freq="h")})
    table["x"] = np.random.RandomState(0).normal(size=len(table))
    options = {"time": ["hour"], "target": ["x"]}
    assert fitted(table, tmp_path, *options.items()).cycles == ["day of the week"]
    assert fitted(table, tmp_path, *(options | {"calendar": False}).items()).cycles == []
    data = fitted(table, tmp_path, *(options | {"season": 0}).items())
    assert data.cycles == ["hour of the day", "day of the week"]
    known = data.training[0].known
    # Noon is opposite to midnight, and every Monday morning, with which the table begins, is like the first one.
    np.testing.assert_allclose(known[12, :2], -known[0, :2], atol=1e-9)
    np.testing.assert_allclose(known[24 * 7], known[0], atol=1e-9)
    np.testing.assert_allclose((known**2).sum(1), 2.0)
