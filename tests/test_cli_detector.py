"""The command on odd rows, as a user meets it: found, explained, reported, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from command import are_refused
from pages import figures
from thalweg.evaluation.verdict import Verdict
from thalweg.runs.base import load_run
from thalweg.runs.detector import odd_cells


def make_table(folder: Path, n: int = 200) -> Path:
    """Numbers, a category that goes with them, dates, gaps; in rows 11, 42 and 173 one cell is odd."""
    rng = np.random.default_rng(0)
    length = rng.normal(5, 1, n)
    table = pd.DataFrame(
        {
            "length": length,
            "width": 0.5 * length + rng.normal(0, 0.2, n),
            "species": np.where(length > 5, "large", "small"),
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 60, n), unit="D"),
            "always": 7.0,
        }
    )
    table.loc[::17, "width"] = np.nan
    table.loc[10, "length"] = 50.0
    table.loc[41, "width"] = -30.0
    table.loc[172, "species"] = "enormous"
    path = folder / "flowers.csv"
    table.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A table and the folder of a finished run on it."""
    from thalweg.runs.base import fit_run
    from thalweg.runs.settings.detector import DetectorSettings

    folder = tmp_path_factory.mktemp("fitted")
    table = make_table(folder)
    fit_run(folder / "run", DetectorSettings(data=str(table)), verbose=False)
    return table, folder / "run"


def test_odd_rows_are_found_and_explained(call, fitted, tmp_path) -> None:
    table, run = fitted
    done = call("score", run, table, "--explain", "--keep", "species", "--out", tmp_path / "scores.csv")
    assert done.code == 0
    found = pd.read_csv(tmp_path / "scores.csv")
    assert list(found) == ["row", "species", "p_value", "score", "flagged", "odd_cells"]
    oddest = found.sort_values("p_value").head(3)
    assert set(oddest["row"]) == {11, 42, 173}
    cells = dict(zip(oddest["row"], oddest["odd_cells"], strict=True))
    assert cells[11].startswith("length +")
    assert cells[42].startswith("width +")
    assert cells[173].startswith("species +")
    assert (found["flagged"] == (found["p_value"] <= 0.05)).all()
    # Of about 180 training rows and 20 others, within three standard errors.
    assert found["flagged"].mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_a_run_says_what_it_found(call, fitted) -> None:
    _, run = fitted
    shown = call("info", run)
    assert shown.code == 0
    assert "NeighbourEnergy" in shown.out
    assert "oddest rows" in " ".join(shown.out.split())
    kept = json.loads((run / "figures.json").read_text())
    assert kept["odd_rows"][0]["row"] in (11, 42, 173)
    assert kept["constant"] == {"always": 7.0}
    assert len(kept["training_p_values"]) == kept["training_rows"] == 180
    assert isinstance(load_run(run).verdict, Verdict)


def test_the_report_shows_odd_cells_p_values_and_thresholds(call, fitted, tmp_path) -> None:
    _, run = fitted
    assert call("report", run, "--out", tmp_path / "page.html").code == 0
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    for words in ("The oddest rows", "The distribution of p-values", "What each threshold would flag", "enormous"):
        assert words in html
    assert len(figures(html)) == 1


def test_cells_are_named_only_in_rows_that_are_odd() -> None:
    cells = np.array([[2.0, 0.1, 0.7], [2.0, 0.1, 0.7], [0.1, 0.2, 0.3]])
    assert odd_cells(cells, np.array([-1.0, 0.5, -1.0]), ["a", "b", "c"]) == ["a +2.0, c +0.7", None, None]


def test_what_can_not_be_is_refused(call, fitted, tmp_path) -> None:
    table, run = fitted
    are_refused(
        [
            (("fit", "detector", table, "--alpha", 0, "-o", tmp_path / "a"), 1, "alpha"),
            (("fit", "detector", table, "--devices", 2, "-o", tmp_path / "a"), 1, "does not apply"),
            (("fit", "detector", table, "--drop", "colour", "-o", tmp_path / "a"), 1, "no column 'colour'"),
            (("sample", run, "-n", 5), 1, "sample"),
        ]
    )
