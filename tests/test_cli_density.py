"""The command on densities, as a user meets it."""

import io
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from command import are_refused, stop_in_training
from thalweg.runs.tables import completed_tables

SMALL = ("--epochs", 3, "--members", 2)


def make_table(folder: Path, n: int = 120, name: str = "flowers.csv", gaps: bool = True) -> Path:
    """Numbers, one column rounded, one constant, one of texts, and gaps."""
    rng = np.random.default_rng(0)
    length = rng.normal(5, 1, n)
    table = pd.DataFrame(
        {
            "length": length,
            "width": 0.5 * length + rng.normal(0, 0.2, n),
            "petals": np.round(length + rng.normal(0, 1, n)),
            "always": 7.0,
            "species": rng.choice(["a", "b"], n),
        }
    )
    if gaps:
        table.loc[::17, "width"] = np.nan
    path = folder / name
    table.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A table and the folder of a finished run on it."""
    from thalweg.runs.base import fit_run
    from thalweg.runs.settings.density import DensitySettings

    folder = tmp_path_factory.mktemp("fitted")
    table = make_table(folder)
    settings = DensitySettings(data=str(table), drop=["species"], epochs=3, members=2)
    fit_run(folder / "run", settings, verbose=False)
    return table, folder / "run"


def test_every_command_has_help_with_an_example(call) -> None:
    for command in (
        ("fit", "density"),
        ("compare",),
        ("compare", "density"),
        ("sample",),
        ("score",),
        ("impute",),
    ):
        shown = call(*command, "--help")
        assert shown.code == 0
        assert "Example" in shown.out, command


def test_fit_writes_a_run_and_tells_of_it(call, tmp_path: Path) -> None:
    table, run = make_table(tmp_path, gaps=False), tmp_path / "run"
    done = call("fit", "density", table, "--drop", "species", "--out", run, *SMALL)
    assert done.code == 0, done.err
    for words in ("one Gaussian", "Gaussian mixture", "kernel density", "log Z exact", "'always'", "'petals' to 1",
                  f"thalweg sample {run}"):  # fmt: skip
        assert words in done.out, words
    assert {p.name for p in run.iterdir()} == {
        "fit.json", "figures.json", "model", "test_rows.parquet", "training_rows.parquet", "report.html",
    }  # fmt: skip
    figures = json.loads((run / "figures.json").read_text())
    assert figures["columns"] == ["length", "width", "petals"]
    assert figures["constant"] == {"always": 7.0}
    assert (figures["training_rows"], figures["test_rows"], figures["rows"]) == (108, 12, 120)
    assert json.loads((run / "fit.json").read_text())["task"] == "density"

    assert "--overwrite" in call("fit", "density", table, "--drop", "species", "--out", run, *SMALL).err
    assert "finished already" in call("fit", "density", "--resume", "--out", run).err
    assert "another epochs" in call("fit", "density", "--resume", "--out", run, "--epochs", 99).err
    replaced = call(
        "fit", "density", table, "--drop", "species", "--drop", "always", "--out", run, "--overwrite", "--quiet",
        "--no-report", "--objective", "nce", "--test-fraction", 0, *SMALL,
    )  # fmt: skip
    assert (replaced.code, replaced.out, replaced.err) == (0, "", "")
    assert not (run / "report.html").exists()
    assert not (run / "test_rows.parquet").exists()
    assert "log Z" in call("info", run).out


def test_figures_of_the_baselines_are_their_likelihoods(tmp_path: Path) -> None:
    """The Gaussian's figure, worked out by hand."""
    from scipy.stats import multivariate_normal

    from thalweg.runs.base import fit_run, load_run
    from thalweg.runs.settings.density import DensitySettings

    settings = DensitySettings(data=str(make_table(tmp_path, gaps=False)), drop=["species"], epochs=3, members=2)
    fit_run(tmp_path / "run", settings, verbose=False)
    run = load_run(tmp_path / "run")
    training, test = (t.to_numpy() for t in (run.training_rows, run.test_rows))
    resolution = run.model.resolution_
    assert resolution.tolist() == [0.0, 0.0, 1.0]
    spread = training + resolution * (np.random.RandomState(0).uniform(size=training.shape) - 0.5)
    distribution = multivariate_normal(spread.mean(0), np.cov(spread.T, ddof=0))
    rng = np.random.RandomState(0)
    places = [test + resolution * (rng.uniform(size=test.shape) - 0.5) for _ in range(8)]
    nll = -np.mean([distribution.logpdf(p) for p in places])
    assert abs(run.figures["scores"]["one Gaussian"]["nll"] - nll) < 1e-3
    gain = run.figures["scores"]["one Gaussian"]["nll_gain"]
    assert abs(gain - (nll - run.figures["scores"]["thalweg"]["nll"])) < 1e-3


def test_sample(call, fitted, tmp_path: Path) -> None:
    shown = call("sample", fitted[1], "-n", 40)
    assert shown.code == 0, shown.err
    rows = pd.read_csv(io.StringIO(shown.out))
    assert list(rows.columns) == ["length", "width", "petals", "always"]
    assert len(rows) == 40
    assert (rows["petals"] % 1 == 0).all()
    assert (rows["always"] == 7).all()
    assert call("sample", fitted[1], "-n", 40).out == shown.out
    assert call("sample", fitted[1], "-n", 40, "--seed", 1).out != shown.out
    assert "written" in call("sample", fitted[1], "--out", tmp_path / "s.parquet").err
    assert len(pd.read_parquet(tmp_path / "s.parquet")) == 100


def test_score(call, fitted, tmp_path: Path) -> None:
    table, run = fitted
    shown = call("score", run, table)
    assert shown.code == 0, shown.err
    scores = pd.read_csv(io.StringIO(shown.out))
    assert list(scores.columns) == ["row", "log_prob", "outlier_score"]
    assert scores["row"].tolist() == list(range(1, 121))
    assert scores["log_prob"].notna().all()
    assert "A higher outlier_score is odder." in shown.err
    assert scores["outlier_score"].dropna().between(0, 1).all()
    whole = pd.read_csv(table)["width"].notna()
    ranks = scores[whole].sort_values("log_prob")["outlier_score"]
    assert ranks.is_monotonic_decreasing
    # A row from another world, with columns in another order.
    odd = pd.DataFrame({"petals": [5.0, 90.0], "length": [5.0, 5.0], "width": [2.5, 2.5]})
    odd.to_csv(tmp_path / "odd.csv", index=False)
    assert call("score", run, tmp_path / "odd.csv", "--out", tmp_path / "scores.csv").code == 0
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert scores["outlier_score"][1] == 1.0
    assert scores["log_prob"][1] < scores["log_prob"][0] - 5


def test_impute(call, fitted, tmp_path: Path) -> None:
    table, run = fitted
    rows = pd.read_csv(table, float_precision="round_trip")
    rows.loc[3, ["length", "petals", "always", "species"]] = np.nan
    rows.to_csv(tmp_path / "gaps.csv", index=False)
    done = call("impute", run, tmp_path / "gaps.csv", "--out", tmp_path / "filled.csv")
    assert done.code == 0, done.err
    filled = pd.read_csv(tmp_path / "filled.csv", float_precision="round_trip")
    assert list(filled.columns) == list(rows.columns)
    numbers = ["length", "width", "petals", "always"]
    assert filled[numbers].notna().all(axis=None)
    known = rows[numbers].notna()
    assert (filled[numbers].where(known) == rows[numbers]).where(known, True).all(axis=None)
    assert filled.loc[3, "always"] == 7
    assert filled.loc[3, "petals"] % 1 == 0
    assert filled["species"].isna().tolist() == rows["species"].isna().tolist()
    several = pd.read_csv(io.StringIO(call("impute", run, tmp_path / "gaps.csv", "--draws", 3).out))
    assert several["imputation"].value_counts().to_dict() == {1: 120, 2: 120, 3: 120}
    assert several.query("imputation == 1")["width"].iloc[0] != several.query("imputation == 2")["width"].iloc[0]
    # Several where the column is there already.
    several.to_csv(tmp_path / "again.csv", index=False)
    assert "rename it" in call("impute", run, tmp_path / "again.csv", "--draws", 2).err


def test_the_options_of_imputing_reach_the_model(call, fitted, tmp_path: Path, monkeypatch) -> None:
    from thalweg import EnergyDensity

    asked = []

    def impute(self, X, **options):
        asked.append(options)
        return np.zeros((options["n_draws"], *X.shape))

    monkeypatch.setattr(EnergyDensity, "impute", impute)
    assert call("impute", fitted[1], fitted[0]).code == 0
    options = ("--draws", 3, "--seed", 5, "--candidates", 40, "--out", tmp_path / "filled.csv")
    assert call("impute", fitted[1], fitted[0], *options).code == 0
    assert asked == [
        {"n_draws": 1, "random_state": 0, "n_candidates": 256},
        {"n_draws": 3, "random_state": 5, "n_candidates": 40},
    ]


def test_compare(call, tmp_path: Path) -> None:
    table = make_table(tmp_path)
    options = ("--drop", "species", "--drop", "petals", "--seeds", 2, "--members", 2)
    done = call("compare", "density", table, *options, "--steps", 5, "--out", tmp_path / "c", "--objectives",
                "auto,nce,dsm")  # fmt: skip
    assert done.code == 0, done.err
    assert "noise density" in done.out
    page = (tmp_path / "c" / "report.html").read_text()
    assert "<h2>Maps</h2>" in page
    document = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert {c["objective"] for c in document["contenders"]} == {"auto", "nce", "dsm"}
    means = [c["nll_mean"] for c in document["contenders"]]
    assert means == sorted(means)
    assert all(len(c["nll"]) == 2 and c["steps"] == 5 for c in document["contenders"])
    # Five updates are beaten by a plain mixture: it stands first, and the verdict says so.
    assert min(document["baselines"].values()) < means[0]
    assert next(c["state"] for c in document["verdict"] if c["name"] == "baselines") != "passed"
    assert "(baselines)" in done.out
    lines = [line for line in done.out.splitlines() if "│" in line]
    assert "(baseline)" in lines[0]
    # With the updates fixed it is the same every time.
    call("compare", "density", table, *options, "--steps", 5, "--out", tmp_path / "d", "--objectives", "nce", "-q")
    again = json.loads((tmp_path / "d" / "comparison.json").read_text())["contenders"][0]
    assert again["nll"] == next(c["nll"] for c in document["contenders"] if c["objective"] == "nce")
    timed = call("compare", "density", table, "--drop", "species", "--seconds", 0.3, "--seeds", 1, "--objectives",
                 "nce", "--out", tmp_path / "t")  # fmt: skip
    assert timed.code == 0, timed.err
    found = json.loads((tmp_path / "t" / "comparison.json").read_text())["contenders"][0]
    assert found["steps"] >= 1
    assert "<h2>Maps</h2>" not in (tmp_path / "t" / "report.html").read_text()


@pytest.mark.parametrize(("shift", "state"), [(1.0, "passed"), (-1.0, "failed")])
def test_the_verdict_of_a_comparison_is_on_the_best_method_beside_the_best_baseline(shift, state) -> None:
    from types import SimpleNamespace

    from thalweg.runs.compare import Comparison, Contender

    rival = np.random.default_rng(0).normal(size=40)
    contenders = [
        Contender("nce", "", "", 5, [-shift], log_prob=rival + shift, cpu_seconds=[9.0]),
        Contender("sm", "", "", 5, [9.0], log_prob=rival - 9, cpu_seconds=[2.0]),
    ]
    data = SimpleNamespace(n_rows=240, training=pd.DataFrame(np.zeros((200, 2))), test=range(40), doubts=[])
    found = Comparison(SimpleNamespace(steps=None), data, contenders, {"mixture": rival, "kernel": rival - 5}, 1.0)
    checks = {check.name: check for check in found.verdict}
    assert checks["baselines"].state == state
    assert "'mixture'" in checks["baselines"].text
    assert "4.5 times as many CPU seconds" in checks["budgets"].text
    assert checks["budgets"].state == "doubtful"


def test_the_spread_of_fits_is_their_standard_deviation_and_a_single_fit_has_none() -> None:
    from thalweg.runs.compare import Contender

    found = Contender("nce", "", "", 5, [1.0, 2.0, 6.0]).summary()
    assert found["nll_mean"] == pytest.approx(3.0)
    assert found["nll_spread"] == pytest.approx(np.sqrt((4 + 1 + 9) / 2))
    alone, none = Contender("nce", "", "", 5, [1.0]).summary(), Contender("nce", "", "", 5).summary()
    assert (alone["nll_mean"], alone["nll_spread"]) == (1.0, None)
    assert (none["nll_mean"], none["nll_spread"]) == (None, None)


def test_a_method_that_diverges_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from thalweg.report.compare import write_comparison_page
    from thalweg.runs import compare
    from thalweg.runs.settings.compare import CompareSettings
    from thalweg.training.loop import DivergenceError

    def diverge(*arguments: object) -> None:
        raise DivergenceError("away")

    monkeypatch.setattr(compare, "_fit", diverge)
    table = make_table(tmp_path)
    settings = CompareSettings(data=str(table), drop=["species"], objectives="sm", fits=2, seconds=0.1)
    comparison = compare.compare_densities(settings)
    assert comparison.contenders[0].diverged == 2
    assert comparison.verdict.state == "failed"
    assert "2 of 2" in write_comparison_page(comparison, tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: t.assign(length=np.nan), "no value at all"),
        (lambda t: t.assign(length=np.inf), "infinite value (row 1)"),
        (lambda t: t.assign(length=1e200 * t["length"]), "too large"),
        (lambda t: t[["always"]], "no column that changes"),
        (lambda t: t.iloc[:9], "at least 10"),
    ],
)
def test_bad_tables_are_refused_in_one_line(call, tmp_path: Path, spoil, words: str) -> None:
    table = pd.read_csv(make_table(tmp_path)).drop(columns="species")
    spoil(table).to_csv(tmp_path / "bad.csv", index=False)
    done = call("fit", "density", tmp_path / "bad.csv", "--out", tmp_path / "run", "-q", *SMALL)
    assert done.code == 1
    assert words in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


def test_row_numbers_are_told(call, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pd.DataFrame({"a": rng.normal(size=40), "b": rng.normal(size=40)}).to_csv(tmp_path / "i.csv")
    done = call("fit", "density", tmp_path / "i.csv", "-o", tmp_path / "i", "--no-report", *SMALL)
    assert "'Unnamed: 0' numbers the rows" in done.out


def test_bad_arguments_are_refused_in_one_line(fitted, tmp_path: Path) -> None:
    table, run = fitted
    rows = pd.read_csv(table)
    rows.drop(columns="petals").to_csv(tmp_path / "lacks.csv", index=False)
    rows.assign(petals="many").to_csv(tmp_path / "text.csv", index=False)
    cases = [
        (("fit", "density"), 1, "name the data"),
        (("fit", "density", table, "--objective", "nce", "-o", tmp_path / "t"), 1, "--drop 'species'"),
        (("fit", "density", table, "--drop", "colour"), 1, "no column 'colour'"),
        (
            ("fit", "density", table, "--drop", "species", "--objective", "magic", "-o", tmp_path / "m"),
            1,
            "one of",
        ),
        (("fit", "density", table, "--test-fraction", 1.5), 1, "test fraction"),
        (("fit", "density", "--resume"), 1, "name the run"),
        (("fit", "density", "--resume", "--out", tmp_path / "none"), 1, "no run"),
        (("fit", "density", table, "--resume", "--overwrite"), 1, "exclude"),
        (("sample", run, "-n", 0), 2, "-n"),
        (("sample", tmp_path), 1, "no run"),
        (("score", run, tmp_path / "lacks.csv"), 1, "lacks 'petals'"),
        (("score", run, tmp_path / "text.csv"), 1, "held numbers in training"),
        (("impute", run, tmp_path / "lacks.csv"), 1, "lacks 'petals'"),
        (("impute", run, table, "--draws", 0), 2, "--draws"),
        (("impute", run, tmp_path / "absent.csv"), 1, "no file"),
        (("sample", run, "--out", tmp_path / "s.xlsx"), 1, ".parquet"),
        (("compare", "density", table, "--objectives", "auto,magic"), 1, "no objective 'magic'"),
        (("compare", "density", table, "--objectives", "nce,nce"), 1, "once"),
        (("compare", "density", table, "--seconds", 0), 1, "positive"),
        (("compare", "density", table, "--out", run), 1, "something else"),
    ]
    are_refused(cases)


def test_runs_of_two_kinds_are_told_apart(call, fitted, tmp_path: Path) -> None:
    table, run = fitted
    assert "name the columns to predict with --columns" in call("predict", run, table).err
    assert "a run of `thalweg fit density`" in call("fit", "regression", "--resume", "--out", run).err
    other = tmp_path / "regression"
    done = call("fit", "regression", table, "-t", "length", "-o", other, "--no-report", "-q", "--epochs", 1,
                "--members", 1)  # fmt: skip
    assert done.code == 0, done.err
    for arguments in (
        ("sample", other),
        ("score", other, table),
        ("impute", other, table),
        ("fit", "density", "--resume", "--out", other),
    ):
        assert "a run of `thalweg fit regression`" in call(*arguments).err


def test_a_damaged_run_is_refused(call, fitted, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(fitted[1], copy)
    weights = copy / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    assert "damaged" in call("sample", copy).err
    (copy / "figures.json").write_text("{}")
    assert "damaged" in call("report", copy).err
    (copy / "figures.json").unlink()
    assert "not finished" in call("info", copy).err
    (copy / "fit.json").write_text("{")
    assert "damaged" in call("info", copy).err


@pytest.mark.slow
def test_an_interrupted_run_resumes_and_ends_the_same(call, tmp_path: Path) -> None:
    table, cut, whole = make_table(tmp_path), tmp_path / "cut", tmp_path / "whole"
    settings = ["fit", "density", table, "--drop", "species", "--epochs", 20, "--members", 2, "--no-report",
                "--checkpoint-seconds", 0.1, "--quiet", "--threads", 1]  # fmt: skip
    message = stop_in_training(settings, cut, signal.SIGINT)
    assert f"thalweg fit density --resume --out {cut}" in message
    assert not (cut / "model").exists()
    assert "not finished" in call("info", cut).err
    assert call("fit", "density", "--resume", "--out", cut, "-q").code == 0
    assert call(*settings, "--out", whole).code == 0
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (cut, whole)]
    assert weights[0] == weights[1]
    figures = [json.loads((run / "figures.json").read_text()) for run in (cut, whole)]
    assert figures[0]["scores"] == figures[1]["scores"]
    assert not (cut / "training").exists()
    pd.read_csv(table).iloc[:-1].to_csv(table, index=False)
    (cut / "figures.json").unlink()
    assert "has changed" in call("fit", "density", "--resume", "--out", cut).err


def test_what_log_z_may_be_off_by_is_told_kept_and_loaded(monkeypatch, tmp_path: Path) -> None:
    from thalweg import EnergyDensity
    from thalweg.estimators import density
    from thalweg.estimators._normaliser import Normaliser
    from thalweg.runs.base import fit_run, load_run
    from thalweg.runs.compare import compare_densities
    from thalweg.runs.settings.compare import CompareSettings
    from thalweg.runs.settings.density import DensitySettings

    monkeypatch.setattr(density, "estimate_normaliser", lambda *_: Normaliser(0.3, 0.2, "Few chains have it all."))
    table = make_table(tmp_path, 60)
    settings = DensitySettings(data=str(table), drop=["species"], objective="nce", epochs=2)
    fit_run(tmp_path / "run", settings, verbose=False)
    run = load_run(tmp_path / "run")
    told = "log Z may be off by more than its error: Few chains have it all."
    assert next(check.text for check in run.verdict if check.name == "log Z") == told
    assert any("held-out rows only" in remark for remark in run.figures["remarks"])
    model = EnergyDensity.load(tmp_path / "run" / "model")
    assert model.log_normaliser_warning_ == "Few chains have it all."
    assert (model.log_normaliser_, model.log_normaliser_error_) == (0.3, 0.2)
    compared = compare_densities(
        CompareSettings(data=str(table), drop=["species"], objectives="nce", steps=5, fits=1)
    )
    assert any("'nce'" in remark and "Few chains have it all." in remark for remark in compared.remarks)


def test_atoms_are_told_and_the_baselines_have_them_too(tmp_path: Path) -> None:
    from thalweg.runs.base import fit_run
    from thalweg.runs.density import atoms_scored
    from thalweg.runs.settings.density import DensitySettings

    rng, n = np.random.default_rng(0), 300
    x = rng.normal(size=n)
    rain = np.where(rng.uniform(size=n) < 0.5, 0.0, rng.lognormal(x))
    pd.DataFrame({"x": x, "rain": rain}).to_csv(tmp_path / "t.csv", index=False)
    runs = {
        name: fit_run(
            tmp_path / name,
            DensitySettings(data=str(tmp_path / "t.csv"), objective=name, epochs=30, members=2),
            verbose=False,
        )
        for name in ("auto", "nce")
    }
    assert atoms_scored(runs["auto"].model) == [[], [0.0]]
    assert atoms_scored(runs["nce"].model) == [[], []]
    for name, words in (("auto", "so are the baselines"), ("nce", "spikes can inflate")):
        told = [r for r in runs[name].figures["remarks"] if "'rain' (0)" in r]
        assert len(told) == 1
        assert words in told[0]
    # A kernel on every row would put a needle on all the zeros.
    scores = runs["auto"].figures["scores"]
    assert scores["kernel density estimate"]["nll"] > 1
    assert scores["thalweg"]["nll"] < scores["one Gaussian"]["nll"]
    assert "patterns of atoms" in scores["Gaussian mixture"]["detail"]


def test_fill_values_are_the_oddest_rows_of_all(call, fitted, tmp_path: Path) -> None:
    """1e20, 9.97e36 and -3.4e38 are gaps to climate and raster files, and numbers here."""
    far = pd.DataFrame({"length": [1e6, 1e20, 9.96921e36, -3.4028235e38], "width": 2.5, "petals": 5.0})
    far.to_csv(tmp_path / "far.csv", index=False)
    scores = pd.read_csv(io.StringIO(call("score", fitted[1], tmp_path / "far.csv").out))
    assert np.isfinite(scores["log_prob"]).all()
    assert (scores["log_prob"][1:] < scores["log_prob"][0]).all()
    assert (scores["outlier_score"] == 1).all()


def test_what_a_file_means_by_a_gap_is_decided_by_the_user(call, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"x": rng.normal(size=80), "y": rng.normal(size=80).round(1)})
    table["y"] = table["y"].astype(str).where(table.index % 20 > 0, "n. d.")
    table.to_csv(tmp_path / "t.csv", index=False)
    refused = call("fit", "density", tmp_path / "t.csv", "--out", tmp_path / "run", *SMALL)
    assert refused.code == 1
    assert "'y' holds numbers but for 'n. d.' in row 1 (4 of 80 cells)" in refused.err
    assert not (tmp_path / "run").exists()
    taken = call("fit", "density", tmp_path / "t.csv", "--missing", "n. d.", "--out", tmp_path / "run", *SMALL)
    assert taken.code == 0, taken.err
    assert "4 of 80 rows have gaps (in 'y')" in taken.out
    filled = pd.read_csv(io.StringIO(call("impute", tmp_path / "run", tmp_path / "t.csv").out), dtype=str)
    assert filled["y"][1:20].tolist() == table["y"][1:20].tolist()
    assert np.isfinite(filled["y"].astype(float)).all()


def test_other_columns_come_back_as_they_stand(call, fitted, tmp_path: Path) -> None:
    text = (
        "zip,account,country,flag,length,width,petals,always\n"
        "05197,9007199254740995,NA,TRUE,5.50,,5,7\n"
        "80331,,DE,false,5.25,2.50,,7.0\n"
    )
    (tmp_path / "t.csv").write_text(text)
    done = call("impute", fitted[1], tmp_path / "t.csv")
    lines = done.out.splitlines()
    assert lines[0] == text.splitlines()[0]
    first, second = lines[1].split(","), lines[2].split(",")
    assert first[:5] + first[6:] == ["05197", "9007199254740995", "NA", "TRUE", "5.50", "5", "7"]
    assert second[:6] + second[7:] == ["80331", "", "DE", "false", "5.25", "2.50", "7.0"]
    assert float(first[5]) == pytest.approx(2.7, abs=3)
    # Petals are whole numbers.
    assert second[6].lstrip("-").isdigit()
    # A Parquet file has types: codes stay texts, numbers are numbers.
    assert call("impute", fitted[1], tmp_path / "t.csv", "--out", tmp_path / "t.parquet").code == 0
    typed = pd.read_parquet(tmp_path / "t.parquet")
    assert typed["zip"].tolist() == ["05197", "80331"]
    assert typed["length"].tolist() == [5.5, 5.25]
    assert typed["flag"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("cells", "written"),
    [
        (["TRUE", "false", "", ""], ["TRUE", "false", "TRUE", "false"]),
        ([True, None, None, None], [True, None, True, False]),
    ],
    ids=["texts", "truth values"],
)
def test_filled_truth_values_are_written_as_the_column_writes_them(cells, written) -> None:
    table = pd.DataFrame({"flag": pd.Series(cells, dtype=object)})
    known = pd.DataFrame({"flag": [1.0, 0.0 if cells[1] else 1.0, np.nan, np.nan]})
    filled = completed_tables(table, known, np.array([[[1.0], [0.0], [1.0], [0.0]]]), {}, {"flag": "truth"})
    assert filled["flag"].where(filled["flag"].notna(), None).tolist() == written


# -- tables as they are -----------------------------------------------------------------------------------


def mixed_table(n: int = 150) -> pd.DataFrame:
    """Two kinds of things, with texts, truth values, dates and gaps."""
    rng = np.random.default_rng(0)
    small = rng.uniform(size=n) < 0.5
    table = pd.DataFrame(
        {
            "size": np.where(small, 10, 20) + rng.normal(size=n),
            "kind": np.where(small, "small", "large"),
            "count": rng.poisson(np.where(small, 30, 60)),
            "new": np.where(rng.uniform(size=n) < np.where(small, 0.9, 0.2), "true", "false"),
            "day": (pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 300, n), "D")).strftime(
                "%Y-%m-%d"
            ),
            "where": "here",
        }
    )
    table = table.astype(object)
    for k, name in enumerate(["size", "kind", "count", "new", "day"]):
        table.loc[k::17, name] = None
    return table


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    from thalweg.report import write_report
    from thalweg.runs.base import fit_run, load_run
    from thalweg.runs.settings.density import DensitySettings

    folder = tmp_path_factory.mktemp("mixed")
    mixed_table().to_csv(folder / "things.csv", index=False)
    settings = DensitySettings(data=str(folder / "things.csv"), epochs=25, members=2)
    fit_run(folder / "run", settings, verbose=False)
    write_report(load_run(folder / "run"), None)
    return folder / "things.csv", folder / "run"


def test_a_mixed_table_is_compared_with_classes_of_independent_columns(mixed) -> None:
    figures = json.loads((mixed[1] / "figures.json").read_text())
    assert figures["columns"] == ["size", "kind", "count", "new", "day"]
    assert figures["constant"] == {"where": "here"}
    assert figures["kinds"]["day"] == "date"
    assert list(figures["scores"]) == ["thalweg", "independent columns", "latent classes"]
    assert figures["scores"]["independent columns"]["nll_gain"] > 0.5
    assert any("a gap is a value that is not known" in remark for remark in figures["remarks"])
    page = (mixed[1] / "report.html").read_text()
    for card in ("The data and the draws", "Categories", "Unlikely rows", "Filling gaps", "Beside two baselines"):
        assert f"<h2>{card}</h2>" in page, card


def test_draws_of_a_mixed_table_are_written_as_it_is(call, mixed) -> None:
    rows = pd.read_csv(io.StringIO(call("sample", mixed[1], "-n", 50).out))
    assert list(rows.columns) == ["size", "kind", "count", "new", "day", "where"]
    assert rows["kind"].isin(["small", "large"]).all()
    assert rows["new"].dtype == bool
    assert rows["count"].dtype == np.int64
    assert pd.to_datetime(rows["day"]).between("2023-06-01", "2025-06-01").mean() > 0.9
    assert (rows["where"] == "here").all()


def test_draws_of_a_mixed_table_have_what_is_given(call, mixed) -> None:
    options = ("-n", 30, "--given", "kind=small", "--given", "new=true", "--where", "count < size * 4")
    done = call("sample", mixed[1], *options)
    assert done.code == 0, done.err
    rows = pd.read_csv(io.StringIO(done.out))
    assert (rows["kind"] == "small").all()
    assert rows["new"].all()
    assert (rows["count"] < rows["size"] * 4).all()
    assert "COLUMN=VALUE" in call("sample", mixed[1], "--given", "kind").err
    assert "no column 'colour'" in call("sample", mixed[1], "--given", "colour=red").err


def test_odd_cells_are_explained(call, mixed, tmp_path: Path) -> None:
    rows = pd.DataFrame(
        {"size": [10.2, 10.2, ""], "kind": ["small", "large", "huge"], "count": [30, 30, ""], "new": "true",
         "day": "2024-05-01"}
    )  # fmt: skip
    rows.to_csv(tmp_path / "rows.csv", index=False)
    shown = call("score", mixed[1], tmp_path / "rows.csv", "--explain")
    assert shown.code == 0, shown.err
    assert "'huge'" in shown.err
    scores = pd.read_csv(io.StringIO(shown.out))
    assert list(scores.columns) == ["row", "log_prob", "outlier_score", "odd_cells"]
    assert scores["outlier_score"][1] > 0.9 > scores["outlier_score"][0]
    assert scores["odd_cells"].isna().tolist() == [True, False, False]
    assert scores["odd_cells"][2].startswith("kind +")
    assert "odd_cells" not in call("score", mixed[1], tmp_path / "rows.csv").out


def test_any_columns_are_predicted_from_the_others(call, mixed, tmp_path: Path) -> None:
    rows = pd.DataFrame({"size": [10.0, 20.0], "kind": ["", ""], "new": ["", ""], "day": ["", ""]})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    shown = call("predict", mixed[1], tmp_path / "rows.csv", "--columns", "kind,count")
    assert shown.code == 0, shown.err
    found = pd.read_csv(io.StringIO(shown.out))
    assert found["kind"].tolist() == ["small", "large"]
    np.testing.assert_allclose(found["p_kind_small"] + found["p_kind_large"], 1, rtol=1e-4)
    assert (found["lower_count"] < found["count"]).all()
    assert (found["count"] < found["upper_count"]).all()
    assert found["count"][0] + 10 < found["count"][1]
    assert "'colour'" in call("predict", mixed[1], tmp_path / "rows.csv", "--columns", "colour").err
    assert "--columns" in call("predict", mixed[1], tmp_path / "rows.csv").err


def test_gaps_of_a_mixed_table_are_filled(call, mixed, tmp_path: Path) -> None:
    done = call("impute", mixed[1], mixed[0], "--out", tmp_path / "filled.csv")
    assert done.code == 0, done.err
    before, after = pd.read_csv(mixed[0], dtype=str), pd.read_csv(tmp_path / "filled.csv", dtype=str)
    assert after.notna().all(axis=None)
    known = before.notna()
    assert (after[known] == before[known]).where(known, True).all(axis=None)
    assert set(after["new"]) == {"true", "false"}
    assert pd.to_datetime(after["day"], format="ISO8601").notna().all()


def test_what_a_mixed_table_can_not_be_is_told(call, tmp_path: Path) -> None:
    table = mixed_table()
    table.assign(empty=None).to_csv(tmp_path / "a.csv", index=False)
    assert (
        "column 'empty' has no value at all"
        in call("fit", "density", tmp_path / "a.csv", "--out", tmp_path / "r").err
    )
    table["size"] = [np.inf, *table["size"][1:]]
    table.to_csv(tmp_path / "b.csv", index=False)
    assert (
        "column 'size' has an infinite value (row 1)"
        in call("fit", "density", tmp_path / "b.csv", "--out", tmp_path / "r").err
    )
    nce = call(
        "fit", "density", tmp_path / "a.csv", "--drop", "empty", "--objective", "nce", "--out", tmp_path / "r"
    )
    assert "column 'kind' holds texts" in nce.err
