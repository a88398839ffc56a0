"""What notebooks show of distributions and runs, and the charts with matplotlib."""

import builtins
import re

import numpy as np
import pandas as pd
import pytest

from thalweg import EnergyRegressor
from thalweg.report.plots import plot_calibration, plot_density, plot_history
from thalweg.runs.base import fit_run
from thalweg.runs.settings.regression import RegressionSettings


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 1))
    return x, 3 * x[:, 0] + rng.normal(size=200)


@pytest.fixture(scope="module")
def model(data) -> EnergyRegressor:
    return EnergyRegressor(n_members=2, max_epochs=10, random_state=0).fit(*data)


@pytest.fixture
def matplotlib():
    found = pytest.importorskip("matplotlib")
    found.use("Agg")
    yield found
    found.pyplot.close("all")


def test_a_distribution_in_a_notebook(model: EnergyRegressor, data) -> None:
    distribution = model.predict_distribution(data[0])
    html = distribution._repr_html_()
    rows = re.findall(r"<tr><td.*?</tr>", html)
    assert len(rows) == 5 == html.count("<svg")
    assert "The first 5 of 200 rows" in html
    cells = re.findall(r"<td[^>]*>(.*?)</td>", rows[3])
    assert cells[1] == f"{distribution.mean()[3]:.5g}"
    assert cells[2] == f"{distribution.median()[3]:.5g}"
    assert cells[3] == "{:.5g} to {:.5g}".format(*distribution.interval(0.9)[3])
    # The line is highest at the mode.
    points = np.array([p.split(",") for p in re.search(r'polyline points="(.*?)"', cells[4])[1].split()], float)
    ends = np.array(re.search(r"from ([-+.e\d]+) to ([-+.e\d]+)<", html).groups(), float)
    place = ends[0] + (ends[1] - ends[0]) * points[points[:, 1].argmin(), 0] / 160
    assert place == pytest.approx(distribution.mode()[3], abs=0.02 * (ends[1] - ends[0]))
    assert "of 3 rows" not in distribution[:3]._repr_html_()


def test_a_run_in_a_notebook(tmp_path) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"x": rng.normal(size=60), "<b>y": rng.normal(size=60)})
    table.to_parquet(tmp_path / "table.parquet")
    chosen = RegressionSettings(data=str(tmp_path / "table.parquet"), targets=["<b>y"], epochs=2, members=2)
    run = fit_run(tmp_path / "run", chosen, verbose=False)
    html = run._repr_html_()
    assert "&lt;b&gt;y" in html
    assert "<b>y" not in html
    assert f"{run.figures['scores']['thalweg']['nll']:.4f}" in html


def test_plot_of_a_density(matplotlib, model: EnergyRegressor, data) -> None:
    distribution = model.predict_distribution(data[0])
    ax = plot_density(distribution, 4, truth=2.0)
    line = next(line for line in ax.get_lines() if line.get_label() == "density")
    y, density = line.get_data()
    assert np.trapezoid(density, y) == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(density[::50], np.exp(distribution[4].log_prob(y[None, ::50]))[0], rtol=1e-6)
    assert plot_density(distribution, ax=ax) is ax


def test_plot_of_a_density_with_an_atom(matplotlib, data) -> None:
    x, y = data
    y = np.where(np.arange(200) % 2, y, 0.0)
    model = EnergyRegressor(n_members=2, max_epochs=10, random_state=0).fit(x, y)
    ax = plot_density(model.predict_distribution(x), 0)
    (pin,) = (line for line in ax.get_lines() if line.get_label() == "P(0)")
    density = next(line for line in ax.get_lines() if line.get_label() == "density").get_ydata()
    mass = model.predict_distribution(x[:1]).atom_masses()[0, 0]
    assert pin.get_ydata()[1] == pytest.approx(np.nanmax(density) * mass)


def test_plot_of_calibration(matplotlib, model: EnergyRegressor, data) -> None:
    distribution = model.predict_distribution(data[0])
    ax = plot_calibration(data[1], distribution)
    x, covered = next(line for line in ax.get_lines() if line.get_label() == "observed").get_data()
    place = list(np.round(x, 6)).index(0.9)
    low, high = distribution.interval(0.9).T
    assert covered[place] == pytest.approx(np.mean((low <= data[1]) & (data[1] <= high)), abs=0.006)


def test_plot_of_a_history(matplotlib, model: EnergyRegressor) -> None:
    ax = plot_history(model.history_)
    by_label = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    np.testing.assert_allclose(by_label["training rows"], [e["loss"] for e in model.history_.epochs])
    np.testing.assert_allclose(by_label["held-out rows"], [e["validation"] for e in model.history_.epochs])


def test_without_matplotlib_the_error_says_what_to_install(model: EnergyRegressor, data, monkeypatch) -> None:
    real = builtins.__import__

    def refuse(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install thalweg\[plot\]"):
        plot_density(model.predict_distribution(data[0]))
