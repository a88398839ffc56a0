"""The command on restricted Boltzmann machines: tables of every kind, images, interruptions, what it refuses."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from command import are_refused, stop_in_training, thalweg
from pages import figures_of
from thalweg.runs.base import load_run
from thalweg.runs.settings.boltzmann import BoltzmannSettings
from thalweg.runs.states import read_rows
from thalweg.runs.tables import split_rows


def bits(n: int = 300) -> pd.DataFrame:
    rng = np.random.RandomState(0)
    likely = np.where(rng.uniform(size=(n, 1)) < 0.4, 0.9, 0.1)
    table = pd.DataFrame((rng.uniform(size=(n, 6)) < likely).astype(int), columns=list("abcdef"))
    return table.assign(always=1)


def fruits(n: int = 300) -> pd.DataFrame:
    rng = np.random.RandomState(0)
    colour = rng.choice(["red", "green", "blue"], n)
    kind = np.where(colour == "red", "cherry", np.where(colour == "green", "pear", "plum"))
    table = pd.DataFrame({"colour": colour, "fruit": kind, "ripe": rng.choice(["yes", "no"], n)})
    table.loc[::30, "fruit"] = None
    return table


def numbers(n: int = 300) -> pd.DataFrame:
    rng = np.random.RandomState(0)
    length = rng.normal(5, 1, n)
    return pd.DataFrame({"length": length, "width": 100 - 10 * length + rng.normal(0, 2, n)})


def market(n: int = 300) -> pd.DataFrame:
    """Texts, bits, truth values, whole and rounded numbers, and columns that never change."""
    rng = np.random.RandomState(1)
    table = fruits(n).drop(columns="ripe")
    red = table["colour"] == "red"
    weight = np.where(red, 8.0, 150.0) + np.where(red, 1.0, 20.0) * rng.randn(n)
    return table.assign(
        weight=weight.round(1),
        seeds=np.where(red, 1, rng.poisson(9, n)),
        stone=red.astype(int),
        organic=rng.uniform(size=n) < 0.3,
        year=2024,
        place="here",
    )


TABLES = {"binary": bits, "categorical": fruits, "gaussian": numbers, "mixed": market}
EPOCHS = {"binary": 60, "categorical": 60, "gaussian": 60, "mixed": 200}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A run on a table of each kind, and one on images."""
    folder = tmp_path_factory.mktemp("machines")
    for kind, make in TABLES.items():
        table = make()
        table.to_csv(folder / f"{kind}.csv", index=False)
        done = thalweg(
            "fit", "boltzmann", folder / f"{kind}.csv", "--out", folder / kind, "--epochs", EPOCHS[kind]
        )
        (folder / f"{kind}.txt").write_text(done.out)
    raw = load_digits()
    np.savez(folder / "digits.npz", X=(15 * raw.images[:300]).astype(np.uint8), y=raw.target[:300])
    done = thalweg("fit", "boltzmann", folder / "digits.npz", "--out", folder / "images", "--epochs", 15)
    (folder / "images.txt").write_text(done.out)
    return {kind: folder / kind for kind in (*TABLES, "images")}


def printed(run: Path) -> str:
    return run.with_suffix(".txt").read_text()


@pytest.mark.parametrize("kind", [*TABLES, "images"])
def test_a_run_is_told_beside_independent_columns_and_drawn(runs, kind):
    run = runs[kind]
    figures = json.loads((run / "figures.json").read_text())
    assert figures["visible"] == ("binary" if kind == "images" else kind)
    ours, alone = figures["scores"]["thalweg"], figures["scores"]["independent columns"]
    assert ours["log_likelihood"] > alone["log_likelihood"]
    assert ours["reconstruction"] < alone["reconstruction"]
    assert alone["nll_gain"] == pytest.approx(ours["log_likelihood"] - alone["log_likelihood"], abs=1e-6)
    rivals = {name: entry["nll_gain"] for name, entry in figures["scores"].items() if name != "thalweg"}
    text = next(check["text"] for check in figures["verdict"] if check["name"] == "baselines")
    assert repr(min(rivals, key=lambda name: rivals[name])) in text
    for words in ("independent columns", "exact" if kind != "images" else "±", "thalweg sample"):
        assert words in printed(run)
    page = (run / "report.html").read_text()
    for heading in ("Filters" if kind == "images" else "Weights", "Reconstructions", "Training", "Figures"):
        assert heading in page
    assert ("thalweg impute" in printed(run)) == (kind != "images")
    assert ("Fantasies" if kind == "images" else "The data and the draws") in page
    info = thalweg("info", run).out
    assert "restricted Boltzmann machine" in info
    assert "independent columns" in info
    assert not (run / "training").exists()
    thalweg("report", run, "--out", run.parent / "again.html")
    assert (run.parent / "again.html").exists()


@pytest.mark.parametrize("kind", TABLES)
def test_reconstructions_are_off_by_shares_of_each_columns_own_spread(runs, kind):
    run = load_run(runs[kind])
    encoder, rows = run.model.encoder_, run.data
    training, test = (encoder.encode(part.to_numpy()) for part in (rows.training, rows.test))
    (figure,) = figures_of((runs[kind] / "report.html").read_text(), "Reconstructions")
    ours, mean = figure["data"]
    assert (ours["name"], mean["name"]) == ("thalweg", "the mean")
    back = run.model.reconstruct(rows.test, encoded=True)
    for k, place in enumerate(encoder.places):
        # A category is several numbers, whose variances add up.
        spread = np.sqrt(np.square(training[:, place] - training[:, place].mean(0)).sum(1).mean())
        for bars, guess in ((ours, back), (mean, training.mean(0))):
            off = np.sqrt(np.square((guess - test)[:, place]).sum(1).mean())
            assert bars["y"][k] == pytest.approx(off / spread, rel=1e-4)


@pytest.mark.slow
def test_labelled_images_are_told_apart_by_a_machine_for_each_class(tmp_path):
    raw = load_digits()
    np.savez(tmp_path / "digits.npz", X=(15 * raw.images[:900]).astype(np.uint8), y=raw.target[:900] + 3)
    settings = ("--epochs", 2, "--hidden", 8, "--quiet", "--out", tmp_path / "run")
    thalweg("fit", "boltzmann", tmp_path / "digits.npz", *settings)
    found = json.loads((tmp_path / "run" / "figures.json").read_text())["classes"]
    assert found["names"] == [str(k) for k in range(3, 13)]
    assert found["right"] > 0.8
    # Each class has the least energy under its own machine.
    assert np.array_equal(np.argmin(found["energies"], 1), np.arange(10))
    assert "under each class" in (tmp_path / "run" / "report.html").read_text()


def test_what_was_done_to_the_data_is_said(runs):
    assert "Left out, because constant: 'always'" in printed(runs["binary"])
    assert "10 of 300 rows have gaps (in 'fruit')" in printed(runs["categorical"])
    assert "rounded to black or white" in printed(runs["images"])
    assert "Gaussian units" in printed(runs["gaussian"])
    for words in ("Taken as binary (0 or 1): 'stone', 'organic'.", "Taken as categories: 'colour', 'fruit'.",
                  "as Gaussian units: 'weight', 'seeds'.", "constant: 'year', 'place'"):  # fmt: skip
        assert words in " ".join(printed(runs["mixed"]).split()), words


def test_constant_columns_do_not_decide_the_units(tmp_path):
    table = pd.DataFrame(np.random.RandomState(0).randint(0, 2, (60, 3)), columns=list("abc"))
    table.assign(year=2024, place="here").to_csv(tmp_path / "bits.csv", index=False)
    done = thalweg("fit", "boltzmann", tmp_path / "bits.csv", "--out", tmp_path / "run", "--epochs", 2)
    assert "Taken as binary (0 or 1): 'a', 'b', 'c'." in done.out
    thalweg("sample", tmp_path / "run", "-n", 2, "--out", tmp_path / "new.csv")
    drawn = (tmp_path / "new.csv").read_text().splitlines()
    assert drawn[0] == "a,b,c,year,place"
    assert drawn[1].endswith(",2024,here")


def test_rows_are_drawn_in_their_own_units(runs, tmp_path):
    for kind, make in TABLES.items():
        thalweg("sample", runs[kind], "-n", 200, "--out", tmp_path / "new.csv")
        drawn, table = pd.read_csv(tmp_path / "new.csv"), make()
        assert set(drawn.columns) == set(table.columns)
        if kind == "binary":
            assert set(drawn.iloc[:, 0].map(str)) == {"0", "1"}
        if kind == "gaussian":
            assert drawn.corr().iloc[0, 1] < -0.5
        elif kind == "mixed":
            rows = table.dropna()
            assert [drawn[c].dtype for c in rows.columns] == [rows[c].dtype for c in rows.columns]
            assert set(drawn["fruit"]) <= set(rows["fruit"])
            assert (drawn["weight"] == drawn["weight"].round(1)).all()
            assert (drawn["weight"] < 60)[drawn["colour"] == "red"].mean() > 0.75
            assert (drawn["weight"] > 60)[drawn["colour"] != "red"].mean() > 0.75
            assert set(drawn["year"]) == {2024}
        else:
            assert set(drawn.iloc[:, 0]) <= set(table.iloc[:, 0])
    thalweg("sample", runs["images"], "-n", 4, "--out", tmp_path / "new.npz")
    assert np.load(tmp_path / "new.npz")["X"].shape == (4, 8, 8)


def test_rows_and_images_are_scored(runs, tmp_path):
    for kind, make in TABLES.items():
        table = make()
        table.to_csv(tmp_path / "rows.csv", index=False)
        done = thalweg("score", runs[kind], tmp_path / "rows.csv", "--out", tmp_path / "scores.csv")
        scores = pd.read_csv(tmp_path / "scores.csv")
        assert list(scores.columns) == ["row", "log_prob", "outlier_score", "note"]
        assert scores["log_prob"].isna().tolist() == table.isna().any(axis=1).tolist()
        assert ("got no score" in done.err) == (kind in ("categorical", "mixed"))
        if kind == "gaussian":
            # What new rows compare with are rows that the machine did not learn from.
            run = load_run(runs[kind])
            held_out = np.sort(run.model.score_samples(type(run).read(run.settings).test))
            np.testing.assert_allclose(run.figures["held_out_log_prob"], held_out, atol=1e-3)
    noise = np.random.RandomState(0).randint(0, 256, (300, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "noise.npz", X=noise)
    figures = []
    for path in (tmp_path / "noise.npz", runs["images"].parent / "digits.npz"):
        thalweg("score", runs["images"], path, "--out", tmp_path / "scores.csv")
        figures.append(pd.read_csv(tmp_path / "scores.csv")["log_prob"].mean())
    assert figures[0] < figures[1] - 10


def test_gaps_are_filled(runs, tmp_path):
    fruits().to_csv(tmp_path / "gaps.csv", index=False)
    thalweg("impute", runs["categorical"], tmp_path / "gaps.csv", "--out", tmp_path / "full.csv")
    filled, gaps = pd.read_csv(tmp_path / "full.csv"), fruits()
    assert filled.notna().all().all()
    assert (filled["fruit"] == gaps["fruit"])[gaps["fruit"].notna()].all()
    right = filled["colour"].map({"red": "cherry", "green": "pear", "blue": "plum"}) == filled["fruit"]
    assert right.mean() > 0.95
    table = numbers()
    table.loc[:50, "width"] = np.nan
    table.to_csv(tmp_path / "gaps.csv", index=False)
    arguments = ("impute", runs["gaussian"], tmp_path / "gaps.csv", "--draws", 3)
    thalweg(*arguments, "--out", tmp_path / "full.csv")
    filled = pd.read_csv(tmp_path / "full.csv")
    assert filled["imputation"].tolist() == [i for i in (1, 2, 3) for _ in range(300)]
    assert np.corrcoef(filled["length"], filled["width"])[0, 1] < -0.7


def test_gaps_of_every_kind_are_filled_in_the_columns_own_types(runs, tmp_path):
    table = market().astype(object)
    for k, column in enumerate(table.columns):
        table.loc[k::9, column] = None
    table.to_csv(tmp_path / "gaps.csv", index=False)
    thalweg("impute", runs["mixed"], tmp_path / "gaps.csv", "--out", tmp_path / "full.csv")
    filled, whole = pd.read_csv(tmp_path / "full.csv"), market().dropna()
    assert filled.notna().all().all()
    assert [filled[c].dtype for c in whole.columns] == [whole[c].dtype for c in whole.columns]
    known = table.notna().to_numpy()
    assert (filled.astype(str).to_numpy() == market().astype(str).to_numpy())[known].all()
    truth = market()
    for column, least in (("stone", 0.85), ("colour", 0.5), ("fruit", 0.8)):
        gaps = table[column].isna() & truth[column].notna()
        assert (filled[column] == truth[column])[gaps].mean() > least
    gaps = table["weight"].isna()
    assert np.abs(filled["weight"] - truth["weight"])[gaps].mean() < 0.6 * truth["weight"].std()


@pytest.mark.parametrize("kind", [pytest.param("deep", marks=pytest.mark.slow), "belief"])
def test_deep_machines_are_fitted_drawn_scored_and_shown(kind, tmp_path):
    market().to_csv(tmp_path / "rows.csv", index=False)
    raw = load_digits()
    np.savez(tmp_path / "digits.npz", X=(15 * raw.images[:300]).astype(np.uint8), y=raw.target[:300])
    common = ("--kind", kind, "--hidden", 12, "--hidden", 8, "--quiet")
    name = {"deep": "deep Boltzmann machine", "belief": "deep belief network"}[kind]
    for data in ("rows.csv", "digits.npz"):
        run = tmp_path / f"{data}-run"
        thalweg("fit", "boltzmann", tmp_path / data, *common, "--out", run, "--epochs", 200)
        figures = json.loads((run / "figures.json").read_text())
        assert figures["hidden"] == [12, 8]
        ours, alone = figures["scores"]["thalweg"], figures["scores"]["independent columns"]
        assert ours["log_likelihood"] > alone["log_likelihood"]
        info = " ".join(thalweg("info", run).out.split())
        for words in (name, "12 + 8", "(layer 1), 100 (layer 2), 200 (the whole)", "lower bounds"):
            assert words in info, words
        page = (run / "report.html").read_text()
        for words in (name, "Reconstructions", "of the first layer", "Training", "Figures"):
            assert words in page
        assert not (run / "training").exists()
    run = tmp_path / "rows.csv-run"
    thalweg("sample", run, "-n", 50, "--out", tmp_path / "new.csv")
    drawn, whole = pd.read_csv(tmp_path / "new.csv"), market().dropna()
    assert [drawn[c].dtype for c in whole.columns] == [whole[c].dtype for c in whole.columns]
    thalweg("score", run, tmp_path / "rows.csv", "--out", tmp_path / "scores.csv")
    assert pd.read_csv(tmp_path / "scores.csv")["log_prob"].notna().sum() == len(whole)
    if kind == "belief":
        assert "can't fill gaps" in thalweg("impute", run, tmp_path / "rows.csv", code=1).err
    else:
        thalweg("impute", run, tmp_path / "rows.csv", "--out", tmp_path / "full.csv")
        assert set(pd.read_csv(tmp_path / "full.csv")["fruit"]) == set(whole["fruit"])
    thalweg("sample", tmp_path / "digits.npz-run", "-n", 3, "--out", tmp_path / "new.npz")
    assert np.load(tmp_path / "new.npz")["X"].shape == (3, 8, 8)
    again = ("fit", "boltzmann", "--resume", "--out", run, "--no-report")
    assert "finished already" in thalweg(*again).err
    assert "another hidden" in thalweg(*again, "--hidden", 3, "--hidden", 2, code=1).err


@pytest.mark.slow
def test_an_interrupted_or_killed_run_resumes_to_the_same_model(tmp_path):
    numbers().to_csv(tmp_path / "rows.csv", index=False)
    settings = ["fit", "boltzmann", tmp_path / "rows.csv", "--epochs", 200, "--hidden", 64, "--temperatures", 2,
                "--no-report", "--quiet", "--threads", 1, "--checkpoint-seconds", 0.1]  # fmt: skip
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    for how in (signal.SIGKILL, signal.SIGINT):
        message = stop_in_training(settings, cut, how)
        assert not (cut / "model").exists()
        assert "not finished" in thalweg("info", cut, code=1).err
        settings = [*settings, *(["--resume"] if how == signal.SIGKILL else [])]
    settings.remove("--resume")
    assert f"thalweg fit boltzmann --resume --out {cut}" in message
    thalweg("fit", "boltzmann", "--resume", "--out", cut, "-q")
    thalweg(*settings, "--out", whole)
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (cut, whole)]
    assert weights[0] == weights[1]
    assert "finished already" in thalweg("fit", "boltzmann", "--resume", "--out", cut, "--no-report").err
    numbers(299).to_csv(tmp_path / "rows.csv", index=False)
    assert "has changed" in thalweg("report", cut, code=1).err


def test_what_is_refused(runs, tmp_path):
    fit = ("fit", "boltzmann")
    mixed = fruits().assign(weight=1.5)
    mixed["weight"] += np.arange(300)
    mixed.to_csv(tmp_path / "mixed.csv", index=False)
    odd = mixed["weight"].astype(object).where(mixed.index != 4, "heavy")
    mixed.assign(weight=odd).to_csv(tmp_path / "typo.csv", index=False)
    mixed.assign(colour=np.where(np.arange(300) == 1, "puce", mixed["colour"])).to_csv(tmp_path / "strange.csv")
    market().assign(stone=2).to_csv(tmp_path / "two.csv", index=False)
    market().assign(weight="light").to_csv(tmp_path / "none.csv", index=False)
    for arguments, words in (
        (
            (*fit, tmp_path / "typo.csv"),
            "'weight' holds numbers but for 'heavy' in row 5 (1 of 300 cells)",
        ),
        (("score", runs["mixed"], tmp_path / "two.csv"), "'stone' holds 2"),
        (
            ("score", runs["mixed"], tmp_path / "none.csv"),
            "held numbers in training, but has 'light' in row 1",
        ),
        ((*fit, tmp_path / "mixed.csv", "--visible", "categorical"), "300 different values"),
        ((*fit, tmp_path / "mixed.csv", "--visible", "huge"), "--visible must be one of"),
        ((*fit, tmp_path / "mixed.csv", "--visible", "binary"), "'colour' holds texts"),
        (
            (*fit, runs["gaussian"].with_suffix(".csv"), "--visible", "binary", "--test-fraction", 0.2),
            "binary units",
        ),
        ((*fit, runs["images"].parent / "digits.npz", "--visible", "categorical"), "pixels are all of one kind"),
        ((*fit, tmp_path / "nothing.csv"), "no file"),
        ((*fit, tmp_path / "mixed.csv", "--learning-rate", 0), "--learning-rate must be positive"),
        ((*fit, tmp_path / "mixed.csv", "--grey"), "--grey is for images"),
        ((*fit, tmp_path / "mixed.csv", "--kind", "wide"), "--kind must be one of restricted, deep, belief"),
        ((*fit, tmp_path / "mixed.csv", "--hidden", 3, "--hidden", 2), "give --kind deep"),
        ((*fit, tmp_path / "mixed.csv", "--hidden", 3, "--kind", "deep"), "--hidden twice"),
        ((*fit, tmp_path / "mixed.csv", "--learning-rate", 0), "--learning-rate must be positive"),
        ((*fit, tmp_path / "mixed.csv", "--temperatures", 3, "--from-data"), "leave out --from-data"),
        ((*fit, tmp_path / "mixed.csv", "--temperatures", 3, "--kind", "deep"), "are for restricted machines"),
        (fit, "name the data"),
        ((*fit, "--resume"), "name the run"),
        (("impute", runs["images"], tmp_path / "mixed.csv"), "gaps are filled in tables"),
        (("impute", runs["images"], runs["images"].parent / "digits.npz"), "gaps are filled in tables"),
        (("score", runs["images"], tmp_path / "mixed.csv"), "is no .npz"),
        (("score", runs["categorical"], tmp_path / "strange.csv"), "column 'colour' holds 'puce'"),
        (("score", runs["binary"], tmp_path / "mixed.csv"), "lacks 'a'"),
        (("predict", runs["binary"], tmp_path / "mixed.csv"), "boltzmann"),
        (("sample", runs["images"]), "--out"),
        (
            ("impute", runs["binary"], tmp_path / "mixed.csv", "--candidates", 9),
            "--candidates does not apply to a run of `thalweg fit boltzmann`",
        ),
    ):
        new = arguments[:2] == fit and len(arguments) > 2 and arguments[2] != "--resume"
        out = ("--out", tmp_path / "run") if new else ()
        assert words in thalweg(*arguments, *out, code=1).err, words
        assert not (tmp_path / "run" / "model").exists()
    assert (
        "holds a finished run"
        in thalweg(*fit, runs["binary"].with_suffix(".csv"), "--out", runs["binary"], code=1).err
    )
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "mine.txt").write_text("keep me")
    assert "holds other files" in thalweg(*fit, tmp_path / "mixed.csv", "--out", notes, code=1).err
    assert [path.name for path in notes.iterdir()] == ["mine.txt"]
    assert "another epochs" in thalweg(*fit, "--resume", "--out", runs["binary"], "--epochs", 9, code=1).err


def test_help_has_an_example():
    process = subprocess.run(
        [sys.executable, "-m", "thalweg.cli", "fit", "boltzmann", "--help"], capture_output=True, check=True
    )
    assert "Example" in process.stdout.decode()


def test_rows_to_judge_may_lack_the_texts_of_the_training_table(tmp_path):
    """A column of "1", "2" and "unknown" is one of texts, also in a file where only the numbers occur."""
    table = pd.DataFrame({"grade": ["1", "2", "unknown"] * 20, "x": np.linspace(0, 1, 60)})
    table.to_csv(tmp_path / "table.csv", index=False)
    table[table.grade != "unknown"].to_csv(tmp_path / "some.csv", index=False)
    thalweg("fit", "boltzmann", tmp_path / "table.csv", "--out", tmp_path / "run", "--epochs", 2)
    thalweg("score", tmp_path / "run", tmp_path / "some.csv", "--out", tmp_path / "scores.csv")
    assert np.isfinite(pd.read_csv(tmp_path / "scores.csv").log_prob).all()


def test_a_column_of_names_is_told(tmp_path):
    table = pd.DataFrame({"name": [f"n{i}" for i in range(30)], "x": np.linspace(0, 1, 30)})
    table.to_csv(tmp_path / "table.csv", index=False)
    done = thalweg("fit", "boltzmann", tmp_path / "table.csv", "--out", tmp_path / "run", "--epochs", 2, code=1)
    assert "column 'name'" in done.err
    assert "--drop" in done.err


def test_one_hot_columns_are_told_drawn_and_filled_as_one_category(tmp_path):
    rng = np.random.default_rng(0)
    kind = rng.choice(3, size=200)
    table = pd.DataFrame(np.eye(3, dtype=int)[kind], columns=["red", "green", "blue"]).assign(bit=kind == 2)
    table.to_csv(tmp_path / "t.csv", index=False)
    run = tmp_path / "run"
    thalweg("fit", "boltzmann", tmp_path / "t.csv", "--epochs", 5, "--hidden", 4, "--out", run, "--no-report")
    remarks = json.loads((run / "figures.json").read_text())["remarks"]
    assert "One-hot groups of columns, each taken as one category: 'red' to 'blue'." in remarks
    thalweg("sample", run, "-n", 100, "--out", tmp_path / "new.csv")
    drawn = pd.read_csv(tmp_path / "new.csv")[["red", "green", "blue"]]
    assert (drawn.sum(1) == 1).all()
    broken = table.assign(red=1)
    broken.to_csv(tmp_path / "broken.csv", index=False)
    are_refused([(("score", run, tmp_path / "broken.csv"), 1, "from column 'red' to column 'blue'")])


def test_held_out_rows_that_break_a_group_are_told_and_left_out(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(np.eye(3, dtype=int)[rng.choice(3, size=200)], columns=["red", "green", "blue"])
    table["bit"] = rng.integers(2, size=200)
    # The one row that is neither is held out by this seed.
    settings = BoltzmannSettings(data=str(tmp_path / "t.csv"))
    held_out = split_rows(200, settings.test_fraction, settings.seed)[1]
    table.loc[held_out[0], "red":"blue"] = 0
    table.to_csv(tmp_path / "t.csv", index=False)
    rows = read_rows(settings)
    assert rows.encoder.groups == [[0, 1, 2]]
    assert len(rows.test) == len(held_out) - 1
    assert "1 rows held out have not one 1" in " ".join(rows.doubts)
