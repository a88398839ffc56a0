"""The report of a density: one page that holds what it promises."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from thalweg.report import write_report
from thalweg.report.density import _training_card, density_on_plane, imputation_errors, report
from thalweg.report.density_charts import pairs
from thalweg.runs.base import fit_run
from thalweg.runs.density import DensityRun
from thalweg.runs.settings.density import DensitySettings


def fit(folder: Path, table: pd.DataFrame, **settings) -> DensityRun:
    path = folder / "table.parquet"
    table.to_parquet(path)
    return fit_run(
        folder / "run", DensitySettings(data=str(path), **{"epochs": 2, "members": 2} | settings), verbose=False
    )


def rows(n: int = 120, n_columns: int = 3) -> pd.DataFrame:
    """Correlated columns, one rounded, with names that look like HTML."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=n)
    table = pd.DataFrame({f"<b>c{k}</b>": base + 0.3 * rng.normal(size=n) for k in range(n_columns)})
    if n_columns > 1:
        table["<b>c1</b>"] = table["<b>c1</b>"].round(1)
    return table


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> DensityRun:
    table = rows()
    table.loc[7, "<b>c2</b>"] = 25.0
    return fit(tmp_path_factory.mktemp("three"), table, epochs=30)


def headings(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


def test_the_page_is_whole_and_needs_nothing_else(run: DensityRun) -> None:
    html = report(run)
    assert headings(html) == [
        "Checks", "The data and the draws", "Pairs", "Correlations", "Training", "Unlikely rows", "Filling gaps",
        "Beside three baselines", "How it was made",
    ]  # fmt: skip
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="', html)
    assert html.count('id="plotly-packed"') == 1
    assert "<b>c1" not in html
    assert "&lt;b&gt;c1" in html
    assert "the density integrates to one" in html
    assert "kernel density estimate" in html


def test_written_beside_the_run_and_the_same_every_time(run: DensityRun, tmp_path: Path) -> None:
    path = write_report(run)
    assert path == run.folder / "report.html"
    assert path.read_bytes() == write_report(run, tmp_path / "elsewhere" / "page.html").read_bytes()


def test_the_row_that_is_out_of_place_is_found(run: DensityRun) -> None:
    assert run.figures["outliers"][0]["row"] == 8
    assert run.figures["outliers"][0]["values"][2] == 25.0
    unlikely = report(run).split("Unlikely rows</h2>")[1].split("</section>")[0]
    assert ">8</td>" in unlikely.replace(" ", "").replace("\n", "")


def test_gaps_are_filled_better_than_by_the_mean(tmp_path: Path) -> None:
    run = fit(tmp_path, rows(300), epochs=25)
    names, errors, spreads = imputation_errors(run, run.test_rows)
    assert names == run.columns
    assert len(spreads) == 3
    # The other columns leave about a third of the spread.
    assert max(errors["thalweg"]) < 0.6 < 0.8 < min(errors["the mean"])


def test_two_columns_have_a_map(tmp_path: Path) -> None:
    run = fit(tmp_path, rows(n_columns=2), objective="nce", epochs=20)
    html = report(run)
    assert "A map of p(x)" in headings(html)
    assert "nats: an error that all log p share" in html
    x, y, density = density_on_plane(run.model, run.training_rows.to_numpy())
    place = pd.DataFrame([[x[3], y[5]]], columns=run.columns)
    assert abs(np.log(density[5, 3]) - run.model.score_samples(place)[0]) < 1e-3


def test_one_column_and_no_test_rows(tmp_path: Path) -> None:
    html = report(fit(tmp_path, rows(n_columns=1), test_fraction=0.0))
    assert headings(html) == ["Checks", "The data and the draws", "Training", "Unlikely rows", "How it was made"]
    assert "held-out NLL" in html


@pytest.mark.slow
def test_many_columns_are_cut_short_and_say_so(tmp_path: Path) -> None:
    html = report(fit(tmp_path, rows(60, n_columns=14), objective="nce"))
    assert "The first 12 of 14 columns are shown" in html
    assert "4 most correlated of 14 columns" in html
    assert "8 of 14 columns are shown." in html


def test_columns_that_stopped_early_stay_at_their_best_in_the_sum() -> None:
    def history(validation: list[float]) -> SimpleNamespace:
        best = np.minimum.accumulate(validation).tolist()
        epochs = [{"validation": v, "best": b} for v, b in zip(validation, best, strict=True)]
        return SimpleNamespace(epochs=epochs, seconds=1.0, stopped="by itself")

    histories = {"column 1": history([3.0, 1.0, 2.5]), "column 2": history([5.0, 4.0, 4.5, 2.0, 1.0])}
    model = SimpleNamespace(validation_nll_=np.nan, history_=SimpleNamespace(events=[]))
    card = _training_card(SimpleNamespace(histories=histories, model=model, columns=["a", "b"]))
    held_out, best = card.figures[0].data
    assert list(held_out.y) == pytest.approx([8, 5, 7, 3, 2])
    assert list(best.y) == pytest.approx([8, 5, 5, 3, 2])
    assert [row[:2] for row in card.rows] == [["a", "3"], ["b", "5"]]
    # What the figures of the model are shifted by, the curves are too.
    model.validation_nll_ = -4.0
    shifted = _training_card(SimpleNamespace(histories=histories, model=model, columns=["a", "b"])).figures[0].data
    assert shifted[1].y[-1] == pytest.approx(-4.0)


def test_pairs_of_the_data_lie_above_the_diagonal_and_those_of_draws_below_it() -> None:
    rng = np.random.default_rng(0)
    data, draws = rng.normal(size=(50, 2)), rng.normal(size=(60, 2))
    # By rows of the picture: on the diagonal a line each for data and draws.
    _, _, above, below, _, _ = pairs(data, draws, ["a", "b"], [0.0, 0.0]).data
    for points, name, values, (x, y) in (
        (above, "data", data, (1, 0)),
        (below, "draws from the model", draws, (0, 1)),
    ):
        assert points.name == name
        shown, expected = np.c_[points.x, points.y], values[:, [x, y]]
        np.testing.assert_allclose(shown[np.argsort(shown[:, 0])], expected[np.argsort(expected[:, 0])])
