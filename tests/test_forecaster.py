"""Windows of series, the density of a stretch, and the estimator that forecasts."""

import numpy as np
import pytest
import scoringrules
import torch
from scipy import stats

from thalweg import EnergyForecaster
from thalweg.data.windows import Series, Windows, last_known, stretches_after
from thalweg.energies.densities import StretchDensity
from thalweg.estimators._series import check_series
from thalweg.evaluation.forecast_baselines import NaiveForecast
from thalweg.evaluation.forecasts import (
    check_intervals,
    check_skill,
    coverage_by_horizon,
    crps_of_draws,
    energy_score,
)
from thalweg.evaluation.verdict import FailedModelWarning

SMALL = {"hidden": (24,), "n_members": 2, "max_steps": 200, "n_threads": 1, "random_state": 0}


def autoregression(n: int, steps: int, seed: int, rho: float = 0.8) -> np.ndarray:
    """x_t = rho x_(t-1) + e_t of unit noise ``[n, steps, 1]``."""
    noise = np.random.RandomState(seed).normal(size=(n, steps))
    x = np.zeros((n, steps))
    for t in range(1, steps):
        x[:, t] = rho * x[:, t - 1] + noise[:, t]
    return x[..., None]


# -- windows ----------------------------------------------------------------------------------------------


def test_all_recent_lags_are_seen_fewer_old_ones_and_those_a_season_before():
    lags = Windows(1, 0, window=80, stretch=5).lags
    assert list(lags[:17]) == list(range(1, 18))
    assert lags[-1] < 80
    assert 35 < len(lags) < 60
    assert set(range(95, 100)) <= set(Windows(1, 0, window=10, stretch=5, season=100).lags)
    assert Windows(1, 0, window=1, stretch=5).reach == 1


def test_a_row_is_the_past_of_a_moment_and_the_stretch_after_it():
    values = np.arange(12.0)[:, None] ** 2
    rows = Windows(1, 0, window=3, stretch=2).rows([Series(values)], 100, np.random.RandomState(0))
    assert list(rows.moment) == list(range(10))
    at = 5
    # The last state, that it is known, how the two before differ, and that they are known.
    np.testing.assert_allclose(rows.x[at], [25, 1, 16 - 25, 9 - 25, 1, 1])
    np.testing.assert_allclose(rows.y[at], [36 - 25, 49 - 25])
    np.testing.assert_allclose(rows.x[0], [0, 1, 0, 0, 0, 0])


def test_gaps_are_seen_as_such_and_no_stretch_with_one_is_learned_from():
    values = np.arange(10.0)[:, None]
    values[4] = np.nan
    rows = Windows(1, 0, window=2, stretch=2).rows([Series(values)], 100, np.random.RandomState(0))
    assert list(rows.moment) == [0, 1, 4, 5, 6, 7]
    after = rows.x[list(rows.moment).index(4)]
    # The gap takes the value before it, 3, and is marked as not known.
    np.testing.assert_allclose(after, [3, 0, 0, 1])
    np.testing.assert_allclose(rows.y[2], [5 - 3, 6 - 3])


def test_inputs_known_ahead_and_uneven_steps_are_seen():
    values, known, times = np.arange(8.0)[:, None], 10.0 * np.arange(8)[:, None], np.arange(8.0) ** 2
    windows = Windows(1, 1, window=2, stretch=2, step=1.0)
    rows = windows.rows([Series(values, known, times)], 100, np.random.RandomState(0))
    x = rows.x[3]
    np.testing.assert_allclose(x[4:7], [30, 40, 50])
    np.testing.assert_allclose(np.exp(x[7:]), [9 - 4, 16 - 9, 25 - 16])


def test_gaps_take_the_value_before_them():
    states = np.array([[[np.nan], [1.0], [np.nan], [3.0]], [[np.nan]] * 4])
    np.testing.assert_array_equal(last_known(states)[..., 0], [[1, 1, 1, 3], [0, 0, 0, 0]])


# -- the density ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def density() -> tuple[StretchDensity, torch.Tensor]:
    """Of two numbers given one, with weights that are far from none."""
    rng = np.random.RandomState(0)
    x = rng.normal(size=(500, 1))
    y = np.stack([x[:, 0] + rng.normal(size=500), rng.normal(size=500) * (1 + x[:, 0] ** 2)], 1)
    torch.manual_seed(0)
    energy = StretchDensity(1, 2, n_links=2, n_members=3, hidden=(8,), n_tilts=2)
    energy.fit_linear_part(x, y, np.arange(500) % 4)
    with torch.no_grad():
        for parameter in energy.links.out.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape))
    return energy.eval(), torch.tensor([[0.5], [-1.5]])


def on_a_grid(energy: StretchDensity, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Places ``[m, 2]`` and the probability of their cells ``[rows, m]``."""
    axis = torch.linspace(-15, 15, 151)
    places = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        log_prob = -energy.head(energy.features(x), places.expand(len(x), -1, -1))
    return places, log_prob.exp() * (axis[1] - axis[0]) ** 2


@pytest.mark.parametrize("n_links", [2, 1])
def test_the_density_of_a_stretch_integrates_to_one_and_draws_follow_it(density, n_links):
    energy, x = density
    if n_links == 1:
        torch.manual_seed(1)
        other = StretchDensity(1, 2, n_links=1, n_members=2, hidden=(8,), n_tilts=2).eval()
        for name in ("input_mean", "input_scale", "regression", "mean", "directions", "spread"):
            getattr(other, name).copy_(getattr(energy, name))
        energy = other
    places, mass = on_a_grid(energy, x)
    np.testing.assert_allclose(mass.sum(1), 1.0, atol=1e-2)
    n = 10_000
    drawn = energy.given(x).sample((n,), torch.Generator().manual_seed(0))
    for row in range(2):
        mean = mass[row] @ places
        spread = (mass[row] @ (places - mean).square()).sqrt()
        assert ((drawn[:, row].mean(0) - mean).abs() < 5 * spread / n**0.5).all()
        assert ((drawn[:, row].std(0) / spread - 1).abs() < 0.05).all()
        product = mass[row] @ (places - mean).prod(1)
        own = (drawn[:, row] - mean).prod(1)
        assert abs(own.mean() - product) < 5 * own.std() / n**0.5


def test_members_mix_to_the_whole(density):
    energy, x = density
    y = torch.tensor([[0.3, -0.2], [1.0, 2.0]])
    alone = torch.stack([energy.alone(k)(x, y) for k in range(3)])
    torch.testing.assert_close((-alone).exp().mean(0).log(), -energy(x, y), rtol=1e-4, atol=1e-5)
    features = energy.features(x)
    assert energy.head(features, y[:, None].expand(-1, 4, -1)).shape == (2, 4)


def test_few_rows_and_columns_that_do_not_vary_are_no_trouble():
    rng = np.random.RandomState(0)
    x = np.c_[rng.normal(size=9), np.full(9, 7.0)]
    energy = StretchDensity(2, 12, n_links=3, n_members=2, hidden=(4,)).eval()
    energy.fit_linear_part(x, rng.normal(size=(9, 12)), np.arange(9) % 2)
    with torch.no_grad():
        assert torch.isfinite(energy(torch.tensor([[0.0, 7.0], [1.0, 99.0]]), torch.zeros(2, 12))).all()
        assert torch.isfinite(energy.given(torch.zeros(1, 2)).sample((3,))).all()


# -- the estimator ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted() -> EnergyForecaster:
    return EnergyForecaster(stretch=4, window=4, **SMALL).fit(autoregression(40, 60, seed=0))


def test_a_linear_gaussian_system_is_forecast_as_its_equations_say(fitted):
    """log p a step is that of the noise, and the forecast's mean and spread are rho^h x and the known variance."""
    test = autoregression(200, 61, seed=1)
    truth = -0.5 * np.log(2 * np.pi) - 0.5
    assert abs(fitted.score(test) - truth) < 0.05
    past = np.array([[0.5], [1.0], [1.5], [2.0]])
    drawn = fitted.sample(past, 8, 4000, random_state=0)[..., 0]
    steps = np.arange(1, 9)
    variance = (1 - 0.8 ** (2 * steps)) / (1 - 0.8**2)
    assert np.abs(drawn.mean(0) - 2 * 0.8**steps).max() < 0.25
    assert np.abs(drawn.std(0) / np.sqrt(variance) - 1).max() < 0.12
    # Steps of a path hang together: the correlation of the first two is known.
    between = 0.8 * variance[0] / np.sqrt(variance[0] * variance[1])
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1] - between) < 0.06
    assert fitted.held_out_["CRPS"] < fitted.held_out_["CRPS, naive"]
    assert fitted.verdict_.state == "passed"


def test_both_branches_of_a_fork_are_drawn():
    """From 0 a path rises or falls, as a coin says, and goes on so."""
    rng = np.random.RandomState(0)
    way = rng.choice([-1.0, 1.0], size=(120, 1))
    paths = way * np.arange(12) + 0.1 * rng.normal(size=(120, 12))
    model = EnergyForecaster(stretch=3, window=3, **SMALL | {"max_steps": 500}).fit(paths[..., None])
    drawn = model.sample(np.zeros(1), 11, 1000, random_state=0)[..., 0]
    ends = drawn[:, -1]
    assert 0.4 < (ends > 0).mean() < 0.6
    assert (np.abs(np.abs(ends) - 11) < 2.5).mean() > 0.9


def test_forecasts_have_their_shapes_and_are_seeded(fitted):
    series = autoregression(3, 30, seed=2)
    assert fitted.sample(series[0], 3, 5, random_state=0).shape == (5, 3, 1)
    assert fitted.sample(list(series), 9, 5, random_state=0).shape == (3, 5, 9, 1)
    assert fitted.sample(series[0][:, 0], 3).shape == (1, 3, 1)
    assert fitted.predict(series[0], 6).shape == (6, 1)
    quantiles = fitted.predict_quantiles(list(series), 6, quantiles=(0.1, 0.9))
    assert quantiles.shape == (2, 3, 6, 1)
    assert (quantiles[0] < quantiles[1]).all()
    np.testing.assert_array_equal(
        fitted.sample(series[0], 7, 3, random_state=1), fitted.sample(series[0], 7, 3, random_state=1)
    )
    assert fitted.score_samples(list(series)).shape == (3,)
    assert np.isnan(fitted.score_samples([np.zeros(3)])).all()


def test_inputs_known_ahead_move_the_forecast():
    rng = np.random.RandomState(0)
    known = (rng.uniform(size=(30, 40, 1)) < 0.3).astype(float)
    values = 3 * known[..., 0] + 0.1 * rng.normal(size=(30, 40))
    model = EnergyForecaster(stretch=3, window=2, **SMALL).fit(list(values), known=list(known))
    with_plan = model.predict(values[0], 3, known=np.r_[known[0], [[0.0], [1.0], [0.0]]])[:, 0]
    assert with_plan[1] > 2 > 1 > max(with_plan[0], with_plan[2])
    with pytest.raises(ValueError, match="must have 43 steps, got 40"):
        model.predict(values[0], 3, known=known[0])
    with pytest.raises(ValueError, match="0 inputs known ahead, and the model was fitted with 1"):
        model.predict(values[0], 3)


def test_uneven_steps_say_how_far_a_state_may_be():
    """A random walk in continuous time: the longer the step, the wider the forecast."""
    rng = np.random.RandomState(0)
    times = np.cumsum(rng.choice([1.0, 16.0], size=(40, 40)), 1)
    noise = rng.normal(size=(40, 40)) * np.sqrt(np.diff(times, axis=1, prepend=0))
    values = noise.cumsum(1)
    model = EnergyForecaster(stretch=1, window=2, **SMALL).fit(list(values), times=list(times))
    short, long = (
        model.sample(np.zeros(2), 1, 2000, times=np.array([0.0, 1.0, 1.0 + gap]), random_state=0).std()
        for gap in (1.0, 16.0)
    )
    assert 2.5 < long / short < 6
    assert model.sample(np.zeros(2), 3, times=[0.0, 1.0]).shape == (1, 3, 1)
    with pytest.raises(ValueError, match="give those of the past"):
        model.sample(np.zeros(2), 1)


def test_a_single_series_is_held_out_in_blocks_of_time():
    model = EnergyForecaster(stretch=3, window=5, **SMALL | {"max_steps": 60}).fit(autoregression(1, 300, 0)[0])
    rows = model.windows_.rows([Series(autoregression(1, 300, 0)[0])], 10_000, np.random.RandomState(0))
    fold, near = model._folds(rows, [Series(autoregression(1, 300, 0)[0])])
    for k in range(2):
        learned = rows.moment[(fold != k) & ~near[:, k]]
        held = rows.moment[fold == k]
        assert len(learned) > 50
        assert np.abs(learned[:, None] - held[None]).min() >= 3


def test_a_saved_forecaster_is_the_same(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    loaded = EnergyForecaster.load(tmp_path / "model")
    past = autoregression(1, 30, seed=3)[0]
    np.testing.assert_array_equal(
        loaded.sample(past, 6, 4, random_state=0), fitted.sample(past, 6, 4, random_state=0)
    )
    assert loaded.held_out_ == fitted.held_out_
    assert loaded.windows_ == fitted.windows_


class Stop(Exception):
    pass


def test_an_interrupted_training_resumes_to_the_same_model(tmp_path, monkeypatch):
    data = autoregression(20, 40, seed=0)
    how = SMALL | {"max_steps": 120, "stretch": 3}
    whole = EnergyForecaster(**how).fit(data)
    before = StretchDensity.link_inputs
    calls = []

    def stopping(self, features, e):
        calls.append(0)
        if len(calls) == 90:
            raise Stop
        return before(self, features, e)

    monkeypatch.setattr(StretchDensity, "link_inputs", stopping)
    with pytest.raises(Stop):
        EnergyForecaster(**how).fit(data, run_dir=tmp_path, checkpoint_seconds=0.0)
    monkeypatch.setattr(StretchDensity, "link_inputs", before)
    resumed = EnergyForecaster(**how).fit(data, run_dir=tmp_path, resume=True, checkpoint_seconds=0.0)
    for name, value in whole.energy_.state_dict().items():
        np.testing.assert_array_equal(resumed.energy_.state_dict()[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"X": [np.array([1.0, np.inf])]}, "series 0 holds infinity"),
        ({"X": np.random.RandomState(0).normal(size=4)}, "only .* moments are followed by .* steps"),
        ({"X": np.zeros(100)}, "column 0 of the series never changes"),
        ({"X": [np.arange(9.0), np.full(9, np.nan)]}, "series 1 has no values"),
        ({"X": [np.zeros((9, 2)), np.zeros((9, 3))]}, "same number of columns"),
        ({"X": []}, "no values"),
        ({"X": ["a", "b"]}, "must hold numbers"),
        ({"X": np.zeros((2, 3, 4, 5))}, "must be"),
        ({"X": np.arange(50.0), "times": np.arange(50.0)[::-1]}, "not sorted"),
        ({"X": np.arange(50.0), "times": np.r_[0.0, np.arange(49.0)]}, "hold 0 twice"),
        ({"X": np.arange(50.0), "times": np.arange(49.0)}, r"must be \[50\]"),
        ({"X": np.arange(50.0), "times": np.r_[np.nan, np.arange(49.0)]}, "NaN"),
        ({"X": np.arange(50.0), "known": np.arange(49.0)}, "must have 50 steps"),
        ({"X": np.arange(50.0), "known": np.full(50, np.nan)}, "must be known at every step"),
        ({"X": [np.arange(50.0)] * 2, "known": [np.arange(50.0)]}, "2 series and known of 1"),
    ],
)
def test_bad_series_are_refused_in_words(given, words):
    with pytest.raises(ValueError, match=words):
        EnergyForecaster(**SMALL).fit(**given)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"stretch": 0}, "stretch must be"),
        ({"n_members": 1}, "n_members must be a whole number of at least 2"),
        ({"season": 1}, "season must be"),
        ({"hidden": ()}, "hidden must be"),
        ({"stretch": 70}, "only 0 moments"),
    ],
)
def test_bad_settings_are_refused_in_words(setting, words):
    with pytest.raises(ValueError, match=words):
        EnergyForecaster(**SMALL | setting).fit(autoregression(5, 60, 0))


def test_bad_pasts_are_refused_in_words(fitted):
    with pytest.raises(ValueError, match="2 columns, the model's 1"):
        fitted.sample(np.zeros((5, 2)), 3)
    with pytest.raises(ValueError, match="horizon must be"):
        fitted.sample(np.zeros(5), 0)
    with pytest.raises(ValueError, match="with times"):
        fitted.sample(np.zeros(5), 3, times=np.arange(5.0))
    with pytest.raises(ValueError, match="between 0 and 1"):
        fitted.predict_quantiles(np.zeros(5), 3, quantiles=(0.5, 1.0))


def test_times_may_be_dates():
    days = np.array(["2024-01-01", "2024-01-02", "2024-01-05"], dtype="datetime64[D]")
    (one,) = check_series(np.zeros((3, 1)), None, days)
    np.testing.assert_allclose(np.diff(one.times), [86400, 3 * 86400])


# -- figures ----------------------------------------------------------------------------------------------


def test_scores_of_draws_are_those_of_their_definitions():
    rng = np.random.RandomState(0)
    truth = np.array([0.3, -1.0])
    draws = rng.normal(size=(2, 20_000))
    np.testing.assert_allclose(crps_of_draws(draws, truth), scoringrules.crps_normal(truth, 0, 1), atol=0.01)
    # Of few draws without bias, and in one dimension the energy score is the CRPS.
    few = rng.normal(size=(4000, 3))
    assert abs(crps_of_draws(few, np.zeros(4000)).mean() - scoringrules.crps_normal(0, 0, 1)) < 0.03
    small = draws[:, :50]
    np.testing.assert_allclose(
        energy_score(small[..., None, None], truth[:, None, None]), crps_of_draws(small, truth), rtol=1e-9
    )


def test_coverage_counts_truths_within_intervals_at_each_step():
    rng = np.random.RandomState(0)
    draws, truth = rng.normal(size=(2000, 400, 2, 1)), rng.normal(size=(2000, 2, 1))
    truth[:, 1] *= 1e6
    covered = coverage_by_horizon(draws, truth)
    assert abs(covered[0] - 0.9) < 4 * np.sqrt(0.09 / 2000) + 0.01
    assert covered[1] < 0.01
    normal = stats.norm.ppf(0.95)
    assert normal == pytest.approx(1.645, abs=1e-3)


def test_naive_forecasts_go_on_with_the_last_value_or_with_the_last_season():
    periodic = np.tile([1.0, 5.0, 2.0, 7.0], 6)[:, None]
    moments = np.array([7, 10])
    seasonal = NaiveForecast(6, season=4).fit([periodic])
    # Where a whole season lies before, what follows a periodic series is known exactly.
    np.testing.assert_array_equal(seasonal.middle(periodic, moments), stretches_after(periodic, moments, 6))
    last = NaiveForecast(6).fit([periodic])
    np.testing.assert_array_equal(last.middle(periodic, moments)[:, :, 0], [[7.0] * 6, [2.0] * 6])
    at_last = periodic[: len(periodic) - 6]
    np.testing.assert_array_equal(last.errors_ + at_last[:, None], stretches_after(periodic, np.arange(18), 6))
    drawn = last.draws(periodic, moments, 50, np.random.RandomState(0))
    assert drawn.shape == (2, 50, 6, 1)
    assert set(drawn[0, :, 0, 0] - 7) <= set(last.errors_[:, 0, 0])


@pytest.mark.parametrize(
    ("figures", "states"),
    [
        ({"CRPS": 0.5, "CRPS, naive": 1.0, "coverage": 0.9}, ["passed", "passed"]),
        ({"CRPS": 1.0, "CRPS, naive": 1.0, "coverage": 0.82}, ["doubtful", "doubtful"]),
        ({"CRPS": 1.2, "CRPS, naive": 1.0, "coverage": 0.6}, ["failed", "failed"]),
    ],
)
def test_a_forecast_that_is_no_better_than_the_naive_one_says_so(figures, states):
    checks = check_skill(figures["CRPS"], figures["CRPS, naive"]), check_intervals(figures["coverage"], 100)
    assert [check.state for check in checks] == states


def test_a_failed_forecaster_warns():
    with pytest.warns(FailedModelWarning, match="too few for any model"):
        EnergyForecaster(**SMALL | {"max_steps": 20}).fit(autoregression(1, 10, seed=0))
