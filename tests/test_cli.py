"""The command, as a user meets it."""

import datetime
import io
import json
import signal
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from command import are_refused, stop_in_training
from thalweg.recipes import RECIPES, Figure, Recipe, Result, Settings


def make_table(folder: Path, n: int = 160, name: str = "homes.csv") -> Path:
    """A table with numbers, a category, dates, gaps and a constant column."""
    rng = np.random.default_rng(0)
    day = rng.integers(0, 900, n)
    table = pd.DataFrame(
        {
            "sold": (pd.Timestamp("2021-01-01") + pd.to_timedelta(day, unit="D")).strftime("%Y-%m-%d"),
            "district": rng.choice(["north", "harbour"], n),
            "area": rng.gamma(5, 20, n),
            "always": 1,
        }
    )
    table["price"] = 2 * table["area"] + 40 * (table["district"] == "harbour") + 0.1 * day + rng.normal(size=n)
    table["rent"] = 0.3 * table["price"] + rng.normal(size=n)
    table.loc[::11, "area"] = np.nan
    table.loc[::13, "district"] = None
    path = folder / name
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        table.to_csv(path, index=False)
    return path


SMALL = ("--epochs", 2, "--members", 2)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A table and the folder of a finished run on it."""
    from thalweg.runs.base import fit_run
    from thalweg.runs.settings.regression import RegressionSettings

    folder = tmp_path_factory.mktemp("fitted")
    table = make_table(folder)
    settings = RegressionSettings(data=str(table), targets=["price"], drop=["rent"], epochs=3, members=2)
    fit_run(folder / "run", settings, verbose=False)
    return table, folder / "run"


def test_help_and_version(call) -> None:
    assert call("--version").out.startswith("thalweg 0.")
    shown = call("--help")
    assert shown.code == 0
    assert "Example" in shown.out
    for command in ("predict", "report", "reproduce", "info", "demo"):
        assert command in shown.out
        assert "Example" in call(command, "--help").out
    assert "--target" in call("fit", "regression", "--help").out
    assert "[default: RUN/report.html]" in call("report", "--help").out
    assert call().code == 0


def test_fit_writes_a_run_and_tells_of_it(call, tmp_path: Path) -> None:
    table, run = make_table(tmp_path), tmp_path / "run"
    done = call("fit", "regression", table, "-t", "price", "--drop", "rent", "--out", run, *SMALL)
    assert done.code == 0, done.err
    assert "gradient boosting" in done.out
    assert "least squares" in done.out
    assert "'always'" in done.out
    assert f"thalweg predict {run}" in done.out
    present = {p.name for p in run.iterdir()}
    assert present == {
        "fit.json",
        "figures.json",
        "model",
        "test_rows.parquet",
        "training_rows.parquet",
        "report.html",
    }
    figures = json.loads((run / "figures.json").read_text())
    assert figures["test_rows"] == 16
    assert [name for name, kind in figures["kinds"].items() if kind == "date"] == ["sold"]
    assert figures["inputs"] == ["sold", "district", "area", "always"]
    assert set(figures["scores"]) == {"thalweg", "Gaussian by least squares", "gradient boosting, quantiles"}

    again = call("fit", "regression", table, "-t", "price", "--drop", "rent", "--out", run, *SMALL)
    assert again.code == 1
    assert "--overwrite" in again.err
    resumed = call("fit", "regression", "--resume", "--out", run)
    assert resumed.code == 0
    assert "finished already" in resumed.err
    other = call("fit", "regression", table, "-t", "rent", "--out", run, "--resume")
    assert other.code == 1
    assert "targets" in other.err
    longer = call("fit", "regression", "--resume", "--out", run, "--epochs", 99)
    assert longer.code == 1
    assert "another epochs" in longer.err
    replaced = call(
        "fit", "regression", table, "-t", "rent", "--out", run, "--overwrite", "--quiet", "--no-report", *SMALL
    )
    assert (replaced.code, replaced.out, replaced.err) == (0, "", "")
    assert json.loads((run / "fit.json").read_text())["settings"]["targets"] == ["rent"]
    assert not (run / "report.html").exists()


def test_a_rounded_target_is_told(call, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    table = pd.DataFrame({"x": x, "grade": np.round(2 * x + rng.normal(size=200)).astype(int)})
    table.to_parquet(tmp_path / "grades.parquet")
    done = call("fit", "regression", tmp_path / "grades.parquet", "-t", "grade", "--out", tmp_path / "run", *SMALL)
    assert done.code == 0, done.err
    assert "to multiples of 1" in done.out
    # What is predicted at the truth is the log of the cell's probability, and is what the model says.
    from thalweg.runs.base import load_run

    frame = pd.read_csv(io.StringIO(call("predict", tmp_path / "run", tmp_path / "grades.parquet").out))
    distribution = load_run(tmp_path / "run").model.predict_distribution(table[["x"]])
    np.testing.assert_allclose(frame["log_prob"], distribution.log_mass(table["grade"].to_numpy()), rtol=1e-4)


@pytest.mark.slow
def test_no_test_rows_and_several_targets(call, tmp_path: Path) -> None:
    table = make_table(tmp_path)
    options = (*SMALL, "--test-fraction", 0, "--out", tmp_path / "a")
    assert call("fit", "regression", table, "-t", "price", *options).code == 0
    assert not (tmp_path / "a" / "test_rows.parquet").exists()
    done = call("fit", "regression", table, "-t", "price", "-t", "rent", "--out", tmp_path / "b", *SMALL)
    assert done.code == 0, done.err
    assert "joint NLL" in done.out
    predicted = call("predict", tmp_path / "b", table, "--samples", 2)
    frame = pd.read_csv(io.StringIO(predicted.out))
    assert {"mean_price", "mean_rent", "q0.95_rent", "sample_2_price", "log_prob"} <= set(frame.columns)


def test_predict_writes_what_was_asked(call, fitted, tmp_path: Path) -> None:
    table, run = fitted
    out = tmp_path / "p.parquet"
    done = call("predict", run, table, "--out", out, "--quantiles", "0.1,0.5", "--coverage", 0.8, "--samples", 3)
    assert done.code == 0, done.err
    p = pd.read_parquet(out)
    assert len(p) == 160
    assert list(p.columns) == [
        "row", "mean", "median", "mode", "std", "q0.1", "q0.5", "lower_0.8", "upper_0.8", "sample_1", "sample_2",
        "sample_3", "log_prob", "pit", "note",
    ]  # fmt: skip
    assert (p["lower_0.8"] < p["median"]).all()
    assert np.allclose(p["lower_0.8"], p["q0.1"])
    assert p["pit"].between(0, 1).all()
    assert p["row"].tolist() == list(range(1, 161))
    assert p["note"].isna().all()

    # Without the target, and with one truth missing.
    plain = pd.read_csv(table)
    plain.drop(columns=["price"]).to_csv(tmp_path / "new.csv", index=False)
    shown = call("predict", run, tmp_path / "new.csv")
    frame = pd.read_csv(io.StringIO(shown.out))
    assert list(frame.columns) == ["row", "mean", "median", "mode", "std", "q0.05", "q0.95"]
    assert np.allclose(frame["mean"], p["mean"])
    plain.loc[3, "price"] = np.nan
    plain.to_csv(tmp_path / "gap.csv", index=False)
    frame = pd.read_csv(io.StringIO(call("predict", run, tmp_path / "gap.csv").out))
    assert frame["log_prob"].isna().tolist() == [i == 3 for i in range(160)]
    assert frame["note"][3] == "no true value to score"
    assert frame["note"].notna().sum() == 1


def test_each_column_of_a_prediction_is_the_answer_that_it_is_named_after(call, fitted, tmp_path: Path) -> None:
    from thalweg.runs.base import load_run

    table, run = fitted
    out = tmp_path / "p.parquet"
    call("predict", run, table, "--out", out, "--quantiles", "0.2,0.7", "--coverage", 0.6, "--samples", 1)
    found, loaded = pd.read_parquet(out), load_run(run)
    rows = pd.read_csv(table)
    model = loaded.model.predict_distribution(loaded.inputs(rows.assign(sold=pd.to_datetime(rows["sold"]))))
    y = rows["price"].to_numpy()
    answers = {
        "mean": model.mean(),
        "median": model.quantile(0.5),
        "mode": model.mode(),
        "std": model.std(),
        "q0.2": model.quantile(0.2),
        "q0.7": model.quantile(0.7),
        "lower_0.6": model.quantile(0.2),
        "upper_0.6": model.quantile(0.8),
        "log_prob": model.log_prob(y),
        "pit": model.cdf(y),
    }
    assert loaded.model.resolution_ == 0
    spread = float(model.std().mean())
    for name, values in answers.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-3, err_msg=name)
        # No two of them are so near each other that one could stand for the other.
        others = [v for n, v in answers.items() if n != name and {n, name} != {"q0.2", "lower_0.6"}]
        assert all(np.abs(values - v).max() > 1e-2 * spread for v in others), name


def test_the_gain_over_a_baseline_and_its_error_are_those_of_the_same_rows(fitted) -> None:
    from scipy.stats import sem

    from thalweg.evaluation.baselines import LeastSquaresGaussian
    from thalweg.evaluation.regression import score_rows
    from thalweg.runs.base import load_run

    run = load_run(fitted[1])
    training, test = run.training_rows, run.test_rows
    line = LeastSquaresGaussian().fit(run.inputs(training), run.truth(training))
    gain = score_rows(run.truth(test), run.model.predict_distribution(run.inputs(test)))
    gain = gain - score_rows(run.truth(test), line.predict_distribution(run.inputs(test)))
    found = run.figures["scores"][line.name]
    assert found["nll_gain"] == pytest.approx(gain.mean(), abs=1e-3)
    assert found["nll_gain_error"] == pytest.approx(sem(gain), rel=1e-3)


def test_the_seed_decides_the_draws_of_a_prediction(call, fitted, tmp_path: Path) -> None:
    pd.read_csv(fitted[0]).head(12).to_csv(tmp_path / "few.csv", index=False)
    first, again, other = (
        pd.read_csv(
            io.StringIO(call("predict", fitted[1], tmp_path / "few.csv", "--samples", 2, "--seed", seed).out)
        )
        for seed in (3, 3, 4)
    )
    pd.testing.assert_frame_equal(first, again)
    assert (first["sample_1"] != first["sample_2"]).all()
    assert (first["sample_1"] != other["sample_1"]).mean() > 0.9
    assert (first["mean"] == other["mean"]).all()


def test_training_that_diverges_ends_the_command_with_an_error(call, tmp_path: Path, monkeypatch) -> None:
    from thalweg.runs import base
    from thalweg.training.guard import DivergenceError

    def diverge(*arguments: object, **options: object) -> None:
        raise DivergenceError("training diverged 6 times and was stopped")

    monkeypatch.setattr(base, "fit_run", diverge)
    done = call("fit", "regression", make_table(tmp_path), "-t", "price", "--out", tmp_path / "run")
    assert (done.code, done.err.splitlines()[-1]) == (1, "error: training diverged 6 times and was stopped")


def test_prediction_in_chunks_is_the_same(fitted, monkeypatch) -> None:
    from thalweg.runs import regression
    from thalweg.runs.base import load_run

    table, run = fitted
    rows = pd.read_csv(table)
    asked = {"quantiles": [0.3], "coverage": 0.5, "n_samples": 1}
    whole = load_run(run).predict_table(rows, **asked)
    monkeypatch.setattr(regression, "_ROWS_AT_ONCE", 37)
    parts = load_run(run).predict_table(rows, **asked)
    pd.testing.assert_frame_equal(whole, parts, rtol=1e-4)


def test_info(call, fitted) -> None:
    shown = call("info", fitted[1])
    assert shown.code == 0
    for word in ("price", "area (number)", "district (category)", "144 training rows", "gradient boosting"):
        assert word in shown.out


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: t.assign(price=t.price.where(t.index != 5)), "contains NaN"),
        (lambda t: t.assign(price=t.price.where(t.index != 5, np.inf)), "contains infinity"),
        (lambda t: t.assign(price=3.0), "constant"),
        (lambda t: t.assign(price=1e200 * t["price"]), "rescale"),
        (lambda t: t.assign(price=["dear"] * len(t)), "must hold numbers"),
        (lambda t: t.assign(area=np.nan), "no value at all"),
        (lambda t: t.assign(area=np.inf), "infinite"),
        (lambda t: t.drop(columns="price"), "no column 'price'"),
        (lambda t: t[["price"]], "no column left"),
        (lambda t: t.iloc[:6], "at least 10"),
        (lambda t: t.iloc[:0], "no rows"),
    ],
)
def test_bad_tables_are_refused_in_one_line(call, tmp_path: Path, spoil, words: str) -> None:
    table = pd.read_csv(make_table(tmp_path))
    spoil(table).to_csv(tmp_path / "bad.csv", index=False)
    done = call("fit", "regression", tmp_path / "bad.csv", "-t", "price", "--out", tmp_path / "run", "-q", *SMALL)
    assert done.code == 1
    assert words in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


def test_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    """Semicolons, decimal commas, a gap."""
    from thalweg.data.tables import read_table

    path = tmp_path / "t.csv"
    path.write_text("größe;stadt;y\n1,5;Ulm;3\n;Bonn;4,25\n", encoding="utf-8-sig")
    table = read_table(path)
    assert list(table.columns) == ["größe", "stadt", "y"]
    assert table["y"].tolist() == [3.0, 4.25]
    assert table["größe"].isna().tolist() == [False, True]
    assert table["stadt"].tolist() == ["Ulm", "Bonn"]


def test_parquet_with_decimals_days_and_spans(tmp_path: Path) -> None:
    from thalweg.data.tables import read_table

    frame = pd.DataFrame(
        {
            "price": [Decimal("1.25"), None],
            "until": [datetime.date(9999, 12, 31), datetime.date(2020, 1, 2)],
            "took": pd.to_timedelta([12, 24], unit="h"),
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    assert table["price"].iloc[0] == 1.25
    assert table["took"].tolist() == [0.5, 1.0]
    assert (table["until"].dt.year == [9999, 2020]).all()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("twice.csv", b"a,y,y\n1,2,3\n", "'y' more than once"),
        ("latin.csv", "größe,y\n1,2\n".encode("latin-1"), "UTF-8"),
        ("wide.csv", b"a,y\n1,2,3\n3,4,5\n", "more fields"),
        ("cut.csv.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "can't be read"),
        ("zip.csv.zip", b"no archive", "can't be read"),
        ("noise.parquet", b"noise", "can't be read"),
        ("empty.csv", b"", "can't be read"),
    ],
)
def test_unreadable_files_are_refused_in_one_line(
    call, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    done = call("fit", "regression", path, "-t", "y", "--out", tmp_path / "run")
    assert (done.code, done.err.count("\n")) == (1, 1), done.err
    assert words in done.err
    assert "is a folder" in call("fit", "regression", tmp_path, "-t", "y", "--out", tmp_path / "run").err


def test_a_column_of_lists_is_refused_and_can_be_dropped(call, tmp_path: Path) -> None:
    table = pd.read_csv(make_table(tmp_path)).assign(parts=[[1, 2]] * 160)
    table.to_parquet(tmp_path / "t.parquet")
    arguments = ("fit", "regression", tmp_path / "t.parquet", "-t", "price", "-o", tmp_path / "run", "-q", *SMALL)
    assert "'parts' holds a" in call(*arguments).err
    done = call(*arguments, "--drop", "parts")
    assert done.code == 0, done.err


def test_far_values_of_the_target_are_told(call, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=80)
    pd.DataFrame({"x": x, "y": np.exp(np.append(x[:-1], 9.0))}).to_csv(tmp_path / "t.csv", index=False)
    done = call("fit", "regression", tmp_path / "t.csv", "-t", "y", "-o", tmp_path / "run", *SMALL)
    assert done.code == 0, done.err
    assert "far from all others" in done.out
    assert "logarithm" in done.out


def test_an_input_that_gives_the_target_is_told(call, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=80)
    table = pd.DataFrame({"x": x, "log_y": x + 0.5 * rng.normal(size=80)})
    table.assign(y=np.exp(table.log_y)).to_csv(tmp_path / "t.csv", index=False)
    done = call("fit", "regression", tmp_path / "t.csv", "-t", "y", *SMALL, "-o", tmp_path / "run")
    assert "Column 'log_y' alone nearly gives the target 'y' (rank correlation 1.0000)" in done.out
    assert "Column 'x'" not in done.out


def test_nothing_but_constant_inputs_and_row_numbers(call, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pd.DataFrame({"a": 1, "y": rng.normal(size=40)}).to_csv(tmp_path / "c.csv", index=False)
    done = call("fit", "regression", tmp_path / "c.csv", "-t", "y", "-o", tmp_path / "c", *SMALL)
    assert done.code == 0, done.err
    pd.DataFrame({"a": rng.normal(size=40), "y": rng.normal(size=40)}).to_csv(tmp_path / "i.csv")
    done = call("fit", "regression", tmp_path / "i.csv", "-t", "y", "-o", tmp_path / "i", *SMALL)
    assert "'Unnamed: 0' numbers the rows" in done.out


def test_bad_arguments_are_refused_in_one_line(fitted, tmp_path: Path) -> None:
    table, run = fitted
    cases = [
        (("predict", run), 2, "--help"),
        (("nothing",), 2, "--help"),
        (("fit", "regression", table), 1, "--target"),
        (("fit", "regression"), 1, "name the data"),
        (("fit", "regression", tmp_path / "absent.csv", "-t", "price"), 1, "no file"),
        (("fit", "regression", table, "-t", "price", "--epochs", 0), 2, "epochs"),
        (("fit", "regression", table, "-t", "price", "--objective", "magic", "-o", tmp_path / "m"), 1, "one of"),
        (("fit", "regression", table, "-t", "price", "--test-fraction", 1.5), 1, "test fraction"),
        (("fit", "regression", "--resume", "--out", tmp_path / "none"), 1, "no run"),
        (("predict", run, table, "--quantiles", "a,b"), 1, "numbers"),
        (("predict", run, table, "--quantiles", "0,0.5"), 1, "between 0 and 1"),
        (("predict", run, table, "--coverage", "2"), 1, "between 0 and 1"),
        (("predict", run, table, "--out", tmp_path / "p.xlsx"), 1, ".parquet"),
        (("info", tmp_path), 1, "no run"),
        (("report", tmp_path / "absent"), 1, "no run"),
        (("reproduce", "no-such-recipe"), 1, "no recipe"),
    ]
    are_refused(cases)


def test_tables_that_do_not_fit_the_model(call, fitted, tmp_path: Path) -> None:
    table, run = fitted
    rows = pd.read_csv(table)
    rows.drop(columns=["area"]).to_csv(tmp_path / "lacks.csv", index=False)
    assert "lacks 'area'" in call("predict", run, tmp_path / "lacks.csv").err
    rows.assign(sold="yesterday").to_csv(tmp_path / "dates.csv", index=False)
    assert "held dates" in call("predict", run, tmp_path / "dates.csv").err
    rows.assign(area="wide").to_csv(tmp_path / "text.csv", index=False)
    assert "held numbers" in call("predict", run, tmp_path / "text.csv").err


def test_a_damaged_run_is_refused(call, fitted, tmp_path: Path) -> None:
    import shutil

    table, run = fitted
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    weights = copy / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    done = call("predict", copy, table)
    assert done.code == 1
    assert "damaged" in done.err
    document = json.loads((copy / "model" / "config.json").read_text())
    document["config"]["encoder"]["columns"][0] = {"name": "area", "kind": "number"}
    weights.write_bytes((run / "model" / "model.safetensors").read_bytes())
    (copy / "model" / "config.json").write_text(json.dumps(document))
    assert "damaged" in call("predict", copy, table).err
    assert "is a folder" in call("report", run, "--out", copy).err
    (copy / "figures.json").write_text("{}")
    assert "damaged" in call("info", copy).err
    (copy / "figures.json").unlink()
    assert "not finished" in call("report", copy).err
    (copy / "fit.json").write_text("{")
    assert "damaged" in call("info", copy).err


def test_a_changed_table_can_not_be_resumed(call, fitted, tmp_path: Path) -> None:
    table, run = make_table(tmp_path), tmp_path / "run"
    assert call("fit", "regression", table, "-t", "price", "-o", run, "-q", "--no-report", *SMALL).code == 0
    (run / "figures.json").unlink()
    pd.read_csv(table).iloc[:-1].to_csv(table, index=False)
    assert "has changed" in call("fit", "regression", "--resume", "--out", run).err


@pytest.mark.parametrize("how", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGINT])
def test_an_interrupted_run_resumes_and_ends_the_same(call, tmp_path: Path, how: signal.Signals) -> None:
    table, cut, whole = make_table(tmp_path), tmp_path / "cut", tmp_path / "whole"
    settings = [
        "-t",
        "price",
        "--epochs",
        60,
        "--members",
        2,
        "--checkpoint-seconds",
        0.1,
        "--no-report",
        "--quiet",
    ]
    settings = ["fit", "regression", table, *settings, "--threads", 1]
    message = stop_in_training(settings, cut, how)
    if how == signal.SIGINT:
        assert f"thalweg fit regression --resume --out {cut}" in message
    assert not (cut / "model").exists()
    assert "not finished" in call("info", cut).err
    if how == signal.SIGINT:
        assert call("fit", "regression", "--resume", "--out", cut, "-q").code == 0
    else:
        assert call(*settings, "--out", cut, "--resume").code == 0
    assert call(*settings, "--out", whole).code == 0
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (cut, whole)]
    assert weights[0] == weights[1]
    figures = [json.loads((run / "figures.json").read_text()) for run in (cut, whole)]
    assert figures[0]["scores"] == figures[1]["scores"]
    assert not (cut / "training").exists()


def test_a_full_disk_is_told(call, fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *arguments: object, **options: object) -> int:
        raise OSError(28, "No space left on device", str(self))

    before = (fitted[1] / "figures.json").read_bytes()
    monkeypatch.setattr(Path, "write_text", full)
    done = call("report", fitted[1])
    assert done.code == 1
    assert "free some space" in done.err
    assert done.err.count("\n") == 1
    assert (fitted[1] / "figures.json").read_bytes() == before


def test_demo(call, tmp_path: Path) -> None:
    done = call("demo", "--out", tmp_path / "demo", *SMALL)
    assert done.code == 0, done.err
    assert (tmp_path / "demo" / "report.html").exists()
    predicted = call("predict", tmp_path / "demo", tmp_path / "demo" / "diabetes.csv")
    assert len(predicted.out.splitlines()) == 443
    assert call("demo", "--out", tmp_path / "demo", *SMALL, "-q").code == 0


def test_one_target_that_is_missed_is_enough_to_fail(
    call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def run(settings: Settings) -> Result:
        seen.append((settings.seeds, settings.quick, settings.paper_scale))
        figures = [Figure("near", [0.1, 0.2], 0.3), Figure("high", [0.1, 0.2], 0.3, at_most=False)]
        return Result(figures[: len(seen)], notes=[], seconds=1.0)

    monkeypatch.setitem(RECIPES, "toy", Recipe("toy", "A toy", "nobody, 1900", run, 0.1))
    codes = [
        call("reproduce", "toy", "--seeds", 2, "--out", tmp_path, *more).code for more in ((), (), ("--quick",))
    ]
    assert codes == [0, 1, 0]
    assert seen == [((0, 1), False, False)] * 2 + [((0, 1), True, False)]


def test_reproduce_compares_with_the_targets(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(settings: Settings) -> Result:
        settings.tell("working")
        values = [0.1 * (s + 1) for s in settings.seeds]
        return Result([Figure("error", values, 0.15), Figure("seconds", values)], notes=["A note."], seconds=1.0)

    monkeypatch.setitem(RECIPES, "toy", Recipe("toy", "A toy", "nobody, 1900", run, 0.1))
    assert "A toy" in call("reproduce").out
    missed = call("reproduce", "toy", "--seeds", 3, "--out", tmp_path)
    assert missed.code == 1
    assert "not reached" in missed.err
    assert "A note." in missed.out
    assert "missed" in (tmp_path / "report.html").read_text()
    assert call("reproduce", "toy", "--seeds", 1, "--out", tmp_path).code == 0
    assert call("reproduce", "toy", "--quick", "--out", tmp_path).code == 0
    assert "no folder" in call("reproduce", "toy", "--data", tmp_path / "absent").err
