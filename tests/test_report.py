"""The report: one page that holds what it promises."""

import copy
import re
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots

from pages import figures_of, table
from thalweg.evaluation.verdict import check_baselines
from thalweg.recipes import Figure, Recipe, Result, Settings
from thalweg.report import charts, write_report
from thalweg.report.inputs import input_effects
from thalweg.report.recipe import write_recipe_page
from thalweg.report.regression import _training_card, report
from thalweg.report.words import duration
from thalweg.runs.base import fit_run
from thalweg.runs.regression import RegressionRun
from thalweg.runs.settings.regression import RegressionSettings
from thalweg.runs.tables import gains_of, without_infinities


def fit(folder: Path, table: pd.DataFrame, targets: list[str], **settings) -> RegressionRun:
    path = folder / "table.parquet"
    table.to_parquet(path)
    chosen = RegressionSettings(data=str(path), targets=targets, **{"epochs": 2, "members": 2} | settings)
    return fit_run(folder / "run", chosen, verbose=False)


def mixed(n: int = 150) -> pd.DataFrame:
    """Numbers, gaps, dates, categories, truth values, a constant, and names that look like HTML."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=n)
    table = pd.DataFrame(
        {
            "x": x,
            "weak": rng.normal(size=n),
            "<b>kind</b>": pd.Categorical(rng.choice(["<script>u", "v"], n)),
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 99, n), unit="D"),
            "flag": rng.random(n) < 0.5,
            "same": "s",
            "y": 3 * x + rng.normal(size=n),
        }
    )
    table.loc[::9, "weak"] = np.nan
    return table


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RegressionRun:
    return fit(tmp_path_factory.mktemp("mixed"), mixed(), ["y"], epochs=12)


def headings(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


def test_the_page_is_whole_and_needs_nothing_else(run: RegressionRun) -> None:
    html = report(run)
    assert headings(html) == [
        "Checks", "The data", "Training", "Predictive densities", "A map of p(y|x)", "Which inputs matter",
        "Calibration", "Coverage by group", "Truth and prediction", "Residuals", "Least expected rows",
        "Beside two baselines",
        "How it was made",
    ]  # fmt: skip
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="', html)
    assert html.count('id="plotly-packed"') == 1
    assert "gradient boosting, quantiles" in html
    assert "<script>u" not in html
    assert "<b>kind" not in html
    assert "&lt;b&gt;kind" in html


def test_written_beside_the_run_and_the_same_every_time(run: RegressionRun, tmp_path: Path) -> None:
    path = write_report(run)
    assert path == run.folder / "report.html"
    other = write_report(run, tmp_path / "elsewhere" / "page.html")
    assert path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("atom", [False, True])
def test_the_training_curve_is_in_the_units_of_the_figures(tmp_path: Path, atom: bool) -> None:
    """Of a target in thousands, half of it at one value or none: the least figure is near the held-out one."""
    table = mixed()[["x", "weak", "y"]]
    table["y"] *= 1000
    if atom:
        table.loc[::2, "y"] = -20_000.0
    run = fit(tmp_path, table, ["y"], epochs=12)
    (figure,) = _training_card(run).figures
    curve = next(np.asarray(line.y) for line in figure.data if line.name == "held-out rows")
    # Training over standardised targets is log 3000 = 8 nats below, or half of that.
    assert curve.min() == pytest.approx(run.figures["validation_nll"], abs=1.0)
    learned = next(np.asarray(line.y) for line in figure.data if line.name == "training rows")
    assert learned[curve.argmin()] == pytest.approx(curve.min(), abs=1.5)


def test_the_input_that_matters_moves_the_prediction_most(run: RegressionRun) -> None:
    moved = input_effects(run, run.inputs(run.training_rows))
    assert max(moved, key=lambda name: moved[name][0]) == "x"
    assert "same" not in moved
    few = input_effects(run, run.inputs(run.training_rows), max_columns=2)
    assert "x" in few
    assert len(few) == 2


def test_one_input_and_no_test_rows(tmp_path: Path) -> None:
    html = report(fit(tmp_path, mixed()[["x", "y"]], ["y"], test_fraction=0.0))
    assert headings(html) == [
        "Checks",
        "The data",
        "Training",
        "Predictive densities",
        "A map of p(y|x)",
        "How it was made",
    ]
    assert "held-out NLL" in html


def test_categories_only(tmp_path: Path) -> None:
    table = mixed()[["<b>kind</b>", "y"]]
    assert "A map of p(y|x)" in headings(report(fit(tmp_path, table, ["y"])))


def test_a_rounded_target_is_drawn_as_bars(tmp_path: Path) -> None:
    table = mixed()[["x", "weak", "y"]]
    table["y"] = table["y"].round()
    run = fit(tmp_path, table, ["y"])
    assert run.model.resolution_ == 1
    html = report(run)
    assert "A bar is the probability of a value" in html
    assert "to multiples of 1" in html


@pytest.mark.slow
def test_a_censored_target_shows_the_limit_as_a_pin(tmp_path: Path) -> None:
    table = mixed(400)[["x", "y"]]
    table["y"] = table["y"].clip(upper=3.0)
    run = fit(tmp_path, table, ["y"])
    assert run.model.architecture_["atoms"]
    html = report(run)
    assert "one value by itself (3)" in html


def test_several_targets(tmp_path: Path) -> None:
    data = mixed().assign(z=lambda t: t["x"] ** 2)[["x", "weak", "y", "z"]]
    html = report(fit(tmp_path, data, ["y", "z"]))
    assert {"Draws", "Truth and prediction", "Beside two baselines"} <= set(headings(html))
    _, *lines = table(html, "Beside two baselines")
    assert len(lines) == 7
    for name, *cells in lines:
        values = [float(cell.rstrip("*% ")) for cell in cells]
        best = [not name.endswith("coverage") and value == min(values) for value in values]
        assert [cell.endswith("**") for cell in cells] == best, name


def test_recipe_page(tmp_path: Path) -> None:
    recipe = Recipe("toy", "A <toy>", "nobody, 1900", lambda settings: Result([]), 1.0)
    picture = charts.histogram({"a": np.arange(20.0)}, "a")
    figures = [Figure("error", [0.1, 0.2], 0.12), Figure("time", [1.0, 2.0])]
    result = Result(figures, {"A picture": picture}, ["A note."])
    html = write_recipe_page(recipe, Settings(seeds=(0, 1)), result, tmp_path / "page.html").read_text()
    assert headings(html) == ["The figures", "A picture"]
    assert "A &lt;toy&gt;" in html
    assert "0 of 1" in html
    assert "missed" in html
    assert "A note." in html


def test_a_recipe_page_has_tables_and_panels(tmp_path: Path) -> None:
    recipe = Recipe("toy", "A toy", "nobody, 1900", lambda settings: Result([]), 1.0)
    drawn = go.Figure(go.Table(header={"values": ["a", "b"]}, cells={"values": [["1", "2"], ["<3>", "4"]]}))
    grid = make_subplots(2, 3, subplot_titles=list("pqrst"))
    for k in range(5):
        heat = go.Heatmap(z=np.full((9, 9), k), zmin=0, zmax=4, hoverinfo="skip")
        grid.add_trace(heat, k // 3 + 1, k % 3 + 1)
    result = Result([], {"A table": drawn, "Panels": grid})
    html = write_recipe_page(recipe, Settings(seeds=(0,)), result, tmp_path / "page.html").read_text()
    assert table(html, "A table") == [["a", "b"], ["1", "<3>"], ["2", "4"]]
    (figure,) = figures_of(html, "Panels")
    assert figure["layout"]["meta"]["panels"] == {"count": 5, "columns": 3, "narrow": 2}
    assert [heat["z"][4, 4] for heat in figure["data"]] == [0, 64, 128, 191, 255]
    assert {heat["z"].dtype for heat in figure["data"]} == {np.dtype("u1")}


def test_bins_hold_whole_rounding_cells() -> None:
    edges = charts.bin_edges(np.array([1.0, 2.0, 200.0]), 1.0, most=50)
    assert np.allclose((edges - 0.5) % 1, 0)
    assert edges[0] == 0.5
    assert edges[-1] >= 200.5
    assert len(edges) <= 52


@pytest.mark.parametrize(("seconds", "words"), [(4.21, "4.2 s"), (200, "3 min 20 s"), (3900, "1 h 5 min")])
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_likelihood_that_is_not_finite_is_said_in_words(run: RegressionRun) -> None:
    figures = copy.deepcopy(run.figures)
    figures["scores"]["thalweg"]["nll"] = None
    for name in list(figures["scores"])[1:]:
        figures["scores"][name]["nll_gain"] = None
    failed = RegressionRun(run.folder, run.settings, figures, run.model)
    assert failed.tables()[0].rows[0][1] == "not finite"
    html = report(failed)
    assert ">not finite<" in html
    assert "is not finite." in html
    assert check_baselines(gains_of(figures["scores"]), 50).state == "failed"


def test_figures_without_infinities_all_the_way_down() -> None:
    found = without_infinities({"a": np.inf, "b": {"c": np.nan, "d": 1.0}, "e": "x"})
    assert found == {"a": None, "b": {"c": None, "d": 1.0}, "e": "x"}


def test_the_verdict_is_that_of_the_figures(run: RegressionRun) -> None:
    scores = run.figures["scores"]
    texts = {check.name: check.text for check in run.verdict}
    assert f"cover {100 * scores['thalweg']['coverage']:.1f} %" in texts["coverage"]
    name = min(list(scores)[1:], key=lambda baseline: scores[baseline]["nll_gain"])
    assert repr(name) in texts["baselines"]
    assert f"{abs(scores[name]['nll_gain']):.3f}" in texts["baselines"]


def test_gains_are_what_the_baselines_lose() -> None:
    ours, other = {"nll": 1.0, "nll_error": 0.3}, {"nll": 3.0, "nll_error": 0.4}
    found = gains_of(
        {"thalweg": ours, "unpaired": other, "paired": other | {"nll_gain": 1.9, "nll_gain_error": 0.1}}
    )
    assert found == {"unpaired": (2.0, pytest.approx(0.5)), "paired": (1.9, 0.1)}
    assert gains_of({"thalweg": ours, "lost": {"nll": None, "nll_error": None}}) == {"lost": (None, None)}
