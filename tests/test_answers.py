"""What predict and score write: which row is meant, what is kept beside it, how many digits, why there is none."""

import io
import re

import numpy as np
import pandas as pd
import pytest

from command import call, thalweg
from thalweg.cli.console import in_few_digits
from thalweg.data.images import read_images, write_images
from thalweg.runs.base import fit_run
from thalweg.runs.settings.boltzmann import BoltzmannSettings
from thalweg.runs.settings.density import DensitySettings
from thalweg.runs.settings.regression import RegressionSettings

NAMES = ["007", "", '"quoted", text', "größe", "1e5"]


def make_table(n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.normal(size=n), "b": rng.normal(size=n)})
    return table.assign(y=1000 * table["a"] + rng.normal(size=n))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each task on a table."""
    folder = tmp_path_factory.mktemp("runs")
    make_table().to_csv(folder / "t.csv", index=False)
    data = str(folder / "t.csv")
    for settings in (
        RegressionSettings(data=data, targets=["y"], epochs=1, members=1),
        DensitySettings(data=data, epochs=1, members=1),
        BoltzmannSettings(data=data, epochs=1),
    ):
        fit_run(folder / settings.task, settings, verbose=False)
    return folder


@pytest.fixture
def new_rows(tmp_path):
    """Rows to ask, with names that a reader of numbers would change."""
    table = make_table(5).assign(name=NAMES, mean=1.5)
    table.to_csv(tmp_path / "new.csv", index=False)
    return tmp_path / "new.csv"


@pytest.mark.parametrize(
    ("task", "verb"), [("regression", "predict"), ("density", "score"), ("boltzmann", "score")]
)
def test_rows_are_counted_and_columns_are_kept_as_they_stand(runs, new_rows, task, verb):
    done = thalweg(verb, runs / task, new_rows, "--keep", "name", "--keep", "a")
    found = pd.read_csv(io.StringIO(done.out), dtype=str, keep_default_na=False)
    asked = pd.read_csv(new_rows, dtype=str, keep_default_na=False)
    assert list(found.columns[:3]) == ["row", "name", "a"]
    assert found["row"].tolist() == ["1", "2", "3", "4", "5"]
    assert found["name"].tolist() == NAMES
    assert found["a"].tolist() == asked["a"].tolist()
    refused = {"colour": "no column 'colour'; it has", "row": "no column 'row'"}
    if verb == "predict":
        refused["mean"] = "--keep mean: the result has a column of this name"
    for name, words in refused.items():
        done = call(verb, runs / task, new_rows, "--keep", name)
        assert (done.code, done.err.count("\n"), done.out) == (1, 1, "")
        assert words in done.err
    assert "already" in call(verb, runs / task, new_rows, "--keep", "a", "--keep", "a").err


def test_no_number_comes_twice_and_what_is_asked_comes(runs, new_rows):
    plain = pd.read_csv(io.StringIO(thalweg("predict", runs / "regression", new_rows).out))
    assert list(plain.columns) == [
        "row", "mean", "median", "mode", "std", "q0.05", "q0.95", "log_prob", "pit", "note",
    ]  # fmt: skip
    asked = thalweg("predict", runs / "regression", new_rows, "--coverage", 0.9, "--quantiles", "0.05,0.5").out
    asked = pd.read_csv(io.StringIO(asked))
    assert list(asked.columns[5:9]) == ["q0.05", "q0.5", "lower_0.9", "upper_0.9"]
    np.testing.assert_allclose(asked["upper_0.9"], plain["q0.95"], rtol=1e-6)


def test_text_files_have_few_digits_and_parquet_all(runs, new_rows, tmp_path):
    for task, verb in (("regression", "predict"), ("density", "score")):
        text = thalweg(verb, runs / task, new_rows).out
        assert max(len(number) for number in re.findall(r"\d+\.\d+", text)) <= 13
        thalweg(verb, runs / task, new_rows, "--out", tmp_path / "all.parquet")
        few, exact = pd.read_csv(io.StringIO(text)), pd.read_parquet(tmp_path / "all.parquet")
        assert list(few.columns) == list(exact.columns)
        numbers = exact.select_dtypes("float").columns
        np.testing.assert_allclose(few[numbers], exact[numbers], rtol=1e-6)
        assert (few["log_prob"] != exact["log_prob"]).any()
        if task == "regression":
            assert exact["note"].isna().all()
            assert pd.api.types.is_string_dtype(exact["note"])


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([1 / 3], [0.3333333]),
        ([123456.789012345], [123456.789]),
        ([1 / 3e9, 0.0], [3.333333e-10, 0.0]),
        ([2e9 + 1 / 3, 2e9 + 4 / 3], [2000000000.333333, 2000000001.333333]),
        ([np.nan, np.inf, -np.inf, 2 / 3], [np.nan, np.inf, -np.inf, 0.6666667]),
        ([-1e308, 1e308, 1.23456789], [-1e308, 1e308, 1.234568]),
        ([], []),
    ],
)
def test_digits_that_tell_values_apart_are_kept(values, wanted):
    np.testing.assert_array_equal(in_few_digits(np.array(values)), wanted)


def test_a_row_without_a_score_says_why(runs, tmp_path):
    table = make_table(4)
    table.loc[1, ["a", "y"]] = np.nan
    table.to_csv(tmp_path / "gaps.csv", index=False)
    done = thalweg("score", runs / "boltzmann", tmp_path / "gaps.csv")
    assert "A higher outlier_score is odder." in done.err
    assert done.out.splitlines()[2] == "2,,,\"has gaps in 'a', 'y'\""
    assert all(line.endswith(",") for line in (done.out.splitlines()[k] for k in (1, 3, 4)))
    # A density scores what is known of a row.
    scored = pd.read_csv(io.StringIO(thalweg("score", runs / "density", tmp_path / "gaps.csv").out))
    assert scored["log_prob"].notna().all()
    predicted = pd.read_csv(io.StringIO(thalweg("predict", runs / "regression", tmp_path / "gaps.csv").out))
    assert predicted["mean"].notna().all()
    assert predicted["note"].tolist()[1] == "no true value to score"
    assert predicted["note"].notna().tolist() == predicted["log_prob"].isna().tolist()


def test_a_scored_picture_has_the_name_of_its_file(tmp_path):
    rng = np.random.RandomState(0)
    for name in ("a", "b/c"):
        write_images(rng.uniform(size=(12, 1, 4, 4)), tmp_path / "pictures" / name)
    images = read_images(tmp_path / "pictures")
    assert images.files is not None
    assert images.files[11:13] == ("a/00011.png", "b/c/00000.png")
    assert images.rows(np.array([12])).files == ("b/c/00000.png",)
    np.savez(tmp_path / "some.npz", X=rng.uniform(size=(3, 4, 4)))
    for task, options in (("images", ("--steps", 2, "--threads", 1)), ("boltzmann", ("--epochs", 1))):
        run = tmp_path / task
        thalweg("fit", task, tmp_path / "pictures", "--out", run, *options, "-q", "--no-report")
        done = thalweg("score", run, tmp_path / "pictures")
        found = pd.read_csv(io.StringIO(done.out))
        assert found["file"].tolist() == list(images.files)
        assert ("A lower score is odder." if task == "images" else "A higher outlier_score is odder.") in done.err
        assert pd.read_csv(io.StringIO(thalweg("score", run, tmp_path / "some.npz").out))["row"].tolist() == [
            1,
            2,
            3,
        ]
        assert "--keep" in thalweg("score", run, tmp_path / "pictures", "--keep", "file", code=1).err
