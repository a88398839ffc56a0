"""The pages of runs show the right numbers: figures and tables are read back from the page."""

import numpy as np
import pandas as pd
import pytest

from pages import figures_of, section, table
from thalweg.report import density, regression
from thalweg.report.images import in_columns
from thalweg.report.odd_cells import gains_of_cells, odd_cells
from thalweg.runs.base import fit_run
from thalweg.runs.density import DensityRun
from thalweg.runs.regression import RegressionRun
from thalweg.runs.settings.density import DensitySettings
from thalweg.runs.settings.regression import RegressionSettings
from thalweg.runs.tables import split_rows


@pytest.fixture(scope="module")
def source() -> pd.DataFrame:
    """y depends on x and a category, with wide errors; one row of y is a mistake."""
    rng = np.random.default_rng(0)
    n = 300
    table = pd.DataFrame(
        {"x": rng.normal(size=n), "weak": rng.normal(size=n), "kind": rng.choice(["low", "high"], n)}
    )
    table["y"] = 4 * table["x"] + 3 * (table["kind"] == "high") + rng.standard_t(4, n)
    return table


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, source: pd.DataFrame) -> RegressionRun:
    folder = tmp_path_factory.mktemp("values")
    wrong = source.copy()
    _, test = split_rows(len(source), 0.2, 0)
    wrong.loc[test[7], "y"] = 60.0
    wrong.to_parquet(folder / "table.parquet")
    settings = RegressionSettings(
        data=str(folder / "table.parquet"), targets=["y"], epochs=25, members=2, test_fraction=0.2
    )
    return fit_run(folder / "run", settings, verbose=False)


@pytest.fixture(scope="module")
def page(run: RegressionRun) -> str:
    return regression.report(run)


def test_the_pit_histogram_and_the_coverage_are_those_of_the_model(run: RegressionRun, page: str) -> None:
    pit, curves = figures_of(page, "Calibration")
    scores = run.figures["scores"]
    (bars,) = (t for t in pit["data"] if t["type"] == "bar")
    counts = {name: np.reshape(entry["pit_histogram"], (-1, 2)).sum(1) for name, entry in scores.items()}
    assert len({tuple(c) for c in counts.values()}) == 3  # else the test could not tell them apart
    np.testing.assert_allclose(bars["y"], counts["thalweg"] * 10 / 60, rtol=1e-5)
    for name, entry in scores.items():
        (line,) = (t for t in curves["data"] if t["name"] == name)
        np.testing.assert_allclose(line["y"], [0, *entry["covered"], 1], atol=1e-6)


def test_residuals_are_the_truth_minus_the_prediction(run: RegressionRun, page: str) -> None:
    (figure,) = figures_of(page, "Residuals")
    points = figure["data"][0]
    mean = run.model.predict_distribution(run.inputs(run.test_rows)).mean()
    assert figure["layout"]["yaxis"]["title"]["text"] == "truth − predicted"
    np.testing.assert_allclose(points["x"], mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(points["y"], run.truth(run.test_rows) - mean, rtol=1e-3, atol=1e-3)


def test_truth_and_prediction_with_intervals(run: RegressionRun, page: str) -> None:
    (figure,) = figures_of(page, "Truth and prediction")
    by_name = {t["name"]: t for t in figure["data"]}
    distribution = run.model.predict_distribution(run.inputs(run.test_rows))
    np.testing.assert_allclose(by_name["rows"]["x"], distribution.mean(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(by_name["rows"]["y"], run.truth(run.test_rows), rtol=1e-5)
    lines = np.reshape(by_name["90 % interval"]["y"], (-1, 3))[:, :2]
    order = np.argsort(distribution.mean(), kind="stable")
    np.testing.assert_allclose(lines, distribution.interval(0.9)[order], rtol=1e-4, atol=1e-4)


def test_the_mistake_is_the_least_expected_row_and_has_its_number(run: RegressionRun, page: str) -> None:
    head, first, *rest = table(page, "Least expected rows")
    _, test = split_rows(300, 0.2, 0)
    assert first[0] == str(test[7] + 1)
    row = run.test_rows.iloc[7]
    cells = dict(zip(head, first, strict=True))
    assert cells["truth"] == "60"
    assert (cells["x"], cells["kind"]) == (f"{row['x']:.5g}", row["kind"])
    low, high = map(float, cells["90 % interval"].split(" to "))
    assert low < float(cells["predicted mean"]) < high < 60
    scores = [float(line[1]) for line in [first, *rest]]
    assert scores == sorted(scores)
    assert len(scores) == 10


def test_the_densities_name_the_rows_of_the_table(run: RegressionRun, page: str, source: pd.DataFrame) -> None:
    (figure,) = figures_of(page, "Predictive densities")
    titles = [note["text"] for note in figure["layout"]["annotations"]]
    assert len(titles) == 6
    for title in titles:
        number, truth = title.removeprefix("row ").split(": truth ")
        assert float(truth) in (60.0, pytest.approx(source["y"][int(number) - 1], rel=1e-3))


def test_groups_cover_what_all_rows_cover(run: RegressionRun, page: str) -> None:
    (figure,) = figures_of(page, "Coverage by group")
    points = next(t for t in figure["data"] if t["type"] == "scatter")
    shares, labels = np.asarray(points["x"]), points["y"]
    sizes = np.array([int(label.rsplit("(", 1)[1][:-1]) for label in labels])
    overall = run.figures["scores"]["thalweg"]["coverage"]
    of_kind = np.array([label.startswith("kind: ") for label in labels])
    assert of_kind.sum() == 2
    for which in (of_kind, ~of_kind):
        assert sizes[which].sum() == 60
        assert (shares * sizes)[which].sum() / 60 == pytest.approx(overall, abs=1e-6)
    # The mistake, which no interval covers, lies in a group of its own kind.
    kind = run.test_rows["kind"].iloc[7]
    assert shares[labels.index(next(label for label in labels if kind in label))] < 1


def test_the_importance_of_inputs_has_errors(run: RegressionRun, page: str) -> None:
    (figure,) = figures_of(page, "Which inputs matter")
    (bars,) = figure["data"]
    assert bars["y"][-1] == "x"
    assert bars["y"][0] == "weak"
    errors = np.asarray(bars["error_x"]["array"])
    assert (errors > 0).all()
    # Shuffling x changes a prediction by 4 |x - x'| on average, 4 * 2 / sqrt(pi) of a normal x.
    assert bars["x"][-1] == pytest.approx(8 / np.sqrt(np.pi), abs=4 * errors[-1] + 0.7)


def test_maps_of_several_inputs(run: RegressionRun, page: str) -> None:
    maps = figures_of(page, "A map of p(y|x)")
    shown = section(page, "A map of p(y|x)")
    names = shown.split("<option>")[1:]
    assert [n.split("<")[0] for n in names] == ["x", "kind", "weak"]
    for figure, name in zip(maps, ["x", "kind", "weak"], strict=True):
        assert figure["layout"]["xaxis"]["title"]["text"] == name
    heat = maps[0]["data"][0]
    mass = heat["z"].sum(0) * (heat["y"][1] - heat["y"][0])
    assert (mass > 0.9).all()
    assert (mass < 1.02).all()
    lines = {t["name"]: t for t in maps[0]["data"][1:]}
    x, median = np.asarray(lines["median"]["x"]), np.asarray(lines["median"]["y"])
    assert (median[-1] - median[0]) / (x[-1] - x[0]) == pytest.approx(4, abs=1)
    others = lines["medians, others as in training rows"]
    apart = np.array(others["y"], float).reshape(12, -1)[:, :-1]
    # Half of the rows are of the other kind, three apart.
    middle = apart[:, apart.shape[1] // 2]
    assert 1.5 < middle.max() - middle.min() < 6


def test_the_best_of_each_column_is_in_bold(run: RegressionRun, page: str) -> None:
    head, *rows = table(page, "Beside two baselines")
    keys = {"NLL": "nll", "CRPS": "crps", "RMSE": "rmse", "MAE": "mae"}
    scores = run.figures["scores"]
    names = list(scores)
    for j, title in enumerate(head):
        bold = [row[0] for row in rows if row[j].endswith("**")]
        best = [names[int(np.argmin([s[keys[title]] for s in scores.values()]))]] if title in keys else []
        assert bold == best, title
        for row, entry in zip(rows, scores.values(), strict=True):
            if title in keys:
                assert float(row[j].rstrip("*").split(" ")[0]) == pytest.approx(entry[keys[title]], rel=1e-3)


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> DensityRun:
    """Three correlated columns in units of their own; in row 8, c alone contradicts the others."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=300)
    table = pd.DataFrame({"a": base, "b": 1000 * (base + 0.3 * rng.normal(size=300)), "c": rng.normal(size=300)})
    table["c"] = 50 + 5 * base + table["c"]
    table.loc[7, "c"] = 90.0
    folder = tmp_path_factory.mktemp("joint")
    table.to_parquet(folder / "table.parquet")
    settings = DensitySettings(data=str(folder / "table.parquet"), epochs=25, members=2, test_fraction=0.2)
    return fit_run(folder / "run", settings, verbose=False)


@pytest.fixture(scope="module")
def joint_page(joint: DensityRun) -> str:
    return density.report(joint)


def test_the_table_of_columns_has_the_data_beside_the_draws(joint: DensityRun, joint_page: str) -> None:
    draws = joint.model.sample(3000, random_state=0)
    for k, line in enumerate(table(joint_page, "The data and the draws")[1:]):
        data = joint.training_rows[joint.columns[k]].to_numpy()
        assert line[0] == joint.columns[k]
        for cell, of in ((line[1], np.mean), (line[2], np.std)):
            shown = [float(v) for v in cell.split(" / ")]
            np.testing.assert_allclose(shown, [of(data), of(draws[:, k])], rtol=1e-3, atol=1e-4)
            assert shown[0] != shown[1]


def test_histograms_and_pairs_have_the_data_and_the_draws(joint: DensityRun, joint_page: str) -> None:
    data = joint.training_rows.to_numpy()
    draws = joint.model.sample(3000, random_state=0)
    (picture,) = figures_of(joint_page, "The data and the draws")
    for k in range(3):
        bars, line = picture["data"][2 * k : 2 * k + 2]
        assert (bars["name"], line["name"]) == ("data", "draws from the model")
        centres = np.asarray(bars["x"])
        edges = np.append(centres - (centres[1] - centres[0]) / 2, centres[-1] + (centres[1] - centres[0]) / 2)
        for trace, values in ((bars, data), (line, draws)):
            share = np.histogram(values[:, k].clip(edges[0] + 1e-3, edges[-1] - 1e-3), edges)[0] / len(values)
            assert np.abs(share - trace["y"]).max() < 0.02
    correlations = figures_of(joint_page, "Correlations")[0]["data"]
    for heat, values in zip(correlations, (data, draws), strict=True):
        np.testing.assert_allclose(np.array(heat["z"]), np.corrcoef(values.T), atol=1e-5)


def test_the_training_curve_of_a_density_is_in_the_columns_units(joint: DensityRun, joint_page: str) -> None:
    (figure,) = figures_of(joint_page, "Training")
    best = next(t for t in figure["data"] if t["name"].startswith("best so far"))
    # Of standardised columns it would be log(1 * 1000 * 5) = 8.5 nats less.
    assert best["y"][-1] == pytest.approx(joint.figures["validation_nll"], abs=1e-3)
    assert best["y"][0] > best["y"][-1]
    held_out = next(t for t in figure["data"] if t["name"] == "held-out rows")
    assert (np.asarray(held_out["y"]) >= np.asarray(best["y"]) - 1e-4).all()
    assert held_out["y"][-1] == pytest.approx(best["y"][-1], abs=1.0)
    assert joint.figures["validation_nll"] == pytest.approx(joint.figures["scores"]["thalweg"]["nll"], abs=2.0)


def test_the_best_way_of_filling_gaps_is_in_bold(joint: DensityRun, joint_page: str) -> None:
    (figure,) = figures_of(joint_page, "Filling gaps")
    _, *rows = table(joint_page, "Filling gaps")
    for k, row in enumerate(rows):
        errors = [bars["y"][k] for bars in figure["data"]]
        spread = joint.training_rows[joint.columns[k]].std(ddof=0)
        shown = [float(cell.rstrip("*")) for cell in row[1:]]
        np.testing.assert_allclose(shown, np.array(errors) * spread, rtol=1e-3)
        assert [cell.endswith("**") for cell in row[1:]] == [v == min(shown) for v in shown]


def test_the_best_density_is_in_bold(joint: DensityRun, joint_page: str) -> None:
    _, *rows = table(joint_page, "Beside three baselines")
    values = [entry["nll"] for entry in joint.figures["scores"].values()]
    assert [row[1].endswith("**") for row in rows] == [v == min(values) for v in values]
    assert not any(cell.endswith("**") for row in rows for cell in (row[0], row[2]))
    shown = [float(row[1].rstrip("*").split(" ")[0]) for row in rows]
    np.testing.assert_allclose(shown, values, atol=1e-3)


def test_the_cell_that_makes_a_row_odd_is_named(joint: DensityRun, joint_page: str) -> None:
    head, first, *_ = table(joint_page, "Unlikely rows")
    cells = dict(zip(head, first, strict=True))
    assert (cells["row"], cells["odd cells"], cells["c"]) == ("8", "c", "90**")
    assert not cells["a"].endswith("**")
    assert not cells["b"].endswith("**")


def test_gains_of_cells_of_a_gaussian() -> None:
    class Standard:
        def score_samples(self, X: np.ndarray) -> np.ndarray:
            return -0.5 * np.square(X).sum(1)

    data = np.random.default_rng(0).normal(size=(400, 2))
    rows = np.array([[5.0, 0.0], [5.0, -6.0], [0.0, 1.0]])
    gains, likeliest = gains_of_cells(Standard(), rows, data, most=400)
    # E exp(-v^2/2) of a standard normal v is 1 / sqrt(2).
    expected = np.log(1 / np.sqrt(2)) + 0.5 * rows**2
    np.testing.assert_allclose(gains, expected, atol=0.08)
    assert np.abs(likeliest).max() < 0.02
    assert odd_cells(Standard(), rows, data) == [[0], [1, 0], []]


def test_training_images_are_shown_with_a_label_in_each_column() -> None:
    labels = np.array([0] * 5 + [2] * 2)
    images = labels[:, None, None, None] / 10 * np.ones((7, 1, 2, 2))
    shown = in_columns(images, labels, 3, 3).reshape(3, 3, 4)[..., 0]
    np.testing.assert_allclose(shown, [[0, 0.5, 0.2], [0, 0.5, 0.2], [0, 0.5, 0.5]])
