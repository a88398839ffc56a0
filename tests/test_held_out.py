"""Figures called held out: rows that judge a model neither taught it nor chose when it stopped."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm
from torch import nn

from thalweg import EnergyDensity, EnergyRegressor
from thalweg.energies import GaussianEnergy, GaussianMixtureEnergy, MixtureDensity
from thalweg.estimators._any_order import stacked
from thalweg.estimators._conditional import HeldOutFigure
from thalweg.estimators._held_out import NestedFigure
from thalweg.estimators._whole_rows import HeldOutLikelihood
from thalweg.objectives import Batch
from thalweg.objectives.likelihood import MaximumLikelihood
from thalweg.runs.tables import scored_rows


def table(kind: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Five inputs, and targets of five kinds."""
    rng = np.random.default_rng(seed)
    X, e = rng.normal(size=(n, 5)), rng.normal(size=n)
    y = (
        X[:, 0] + 0.3 * e,
        np.sin(2 * X[:, 0]) + 0.2 * e,
        X[:, 0] + 0.5 * np.exp(0.5 * X[:, 1]) * e,
        X[:, 0] * X[:, 1] + 0.3 * e,
        np.abs(X[:, 0]) + 0.3 * rng.standard_t(4, n),
    )[kind]
    return X, y


@pytest.mark.slow
def test_held_out_figures_are_those_of_fresh_rows():
    """Ten tables of 150 rows: the mean difference is within two standard errors of zero."""
    off = []
    for kind in range(5):
        for seed in range(2):
            model = EnergyRegressor(hidden=(64, 64), max_epochs=100, random_state=seed).fit(
                *table(kind, 150, seed)
            )
            X, y = table(kind, 3000, 1000 + seed)
            off.append(model.validation_nll_ + model.predict_distribution(X).log_prob(y).mean())
    off = np.array(off)
    assert abs(off.mean()) < 2 * off.std(ddof=1) / np.sqrt(len(off))


@pytest.mark.slow
def test_held_out_rows_of_a_density_are_like_fresh_ones():
    """Eight tables of 150 rows, and how many fresh rows score below the lowest twentieth of the training rows."""

    def rows(n, seed):
        rng = np.random.default_rng(seed)
        a = rng.normal(size=n)
        b = np.sin(a) + 0.4 * rng.normal(size=n)
        return np.c_[a, b, 0.5 * a * b + 0.5 * rng.standard_t(6, n)]

    off, low = [], []
    for seed in range(8):
        model = EnergyDensity(n_members=4, hidden=(48, 48), max_epochs=80, random_state=seed).fit(rows(150, seed))
        log_prob = model.score_samples(rows(3000, 100 + seed))
        off.append(model.validation_nll_ + log_prob.mean())
        low.append(np.mean(log_prob < np.quantile(model.held_out_log_prob_, 0.05)))
    off, low = np.array(off), np.array(low)
    assert abs(off.mean()) < 2.5 * off.std(ddof=1) / np.sqrt(len(off))
    assert abs(low.mean() - 0.05) < 2.5 * low.std(ddof=1) / np.sqrt(len(low))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["nce", "dsm"])
def test_held_out_figures_of_energies_of_whole_rows_are_those_of_fresh_rows(objective):
    """Ten tables of 150 rows, 50 of them held out: the mean difference is within two standard errors of zero."""
    off, low = [], []
    for seed in range(10):
        settings = {"hidden": (64, 64), "max_epochs": 100, "validation_fraction": 1 / 3, "random_state": seed}
        X, fresh = (np.column_stack(table(seed % 5, n, s))[:, 3:] for n, s in ((150, seed), (3000, 100 + seed)))
        model = EnergyDensity(objective, **settings).fit(X)
        log_prob = model.score_samples(fresh)
        off.append(model.validation_nll_ + log_prob.mean())
        low.append(np.mean(log_prob < np.nanquantile(model.held_out_log_prob_, 0.05, method="lower")))
    off, low = np.array(off), np.array(low)
    assert abs(off.mean()) < 2 * off.std(ddof=1) / np.sqrt(len(off))
    # The third lowest of 50 has the mean level 3 / 51.
    assert abs(low.mean() - 3 / 51) < 2.5 * low.std(ddof=1) / np.sqrt(len(low))


def test_the_share_of_a_mixture_is_judged_by_rows_that_did_not_choose_it():
    """Of two densities that fit alike the share is chosen by noise: what it then gains on fresh rows is what the
    nested figure says, and less than its gain on the rows that chose it."""
    rng = np.random.default_rng(0)
    nested, inner = [], []
    for seed in range(200):
        own, other = rng.normal(size=(2, 40, 1))
        shares, mixed = stacked(own, other, seed)
        fresh = rng.normal(size=(2, 4000))
        gain = np.logaddexp(np.log1p(-shares) + fresh[0], np.log(shares) + fresh[1]).mean()
        inner.append(np.logaddexp(np.log1p(-shares) + own, np.log(shares) + other).mean() - gain)
        nested.append(mixed.mean() - gain)
    error = np.std(nested) / np.sqrt(len(nested))
    assert abs(np.mean(nested)) < 4 * error
    assert np.mean(inner) > np.mean(nested)


def test_the_figure_of_a_mixture_of_two_is_that_of_the_truth_in_the_right_shares():
    """Nine tenths of the rows from the first density: 2,000 of them, by the standard error of their log p."""
    rng = np.random.default_rng(0)
    x = np.where(rng.uniform(size=2000) < 0.9, rng.normal(size=2000), 4 + rng.normal(size=2000))[:, None]
    own, other = norm.logpdf(x), norm.logpdf(x, 4)
    shares, mixed = stacked(own, other, 0)
    truth = np.logaddexp(np.log(0.9) + own, np.log(0.1) + other)
    assert shares[0] == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / 2000))
    assert mixed.mean() == pytest.approx(truth.mean(), abs=0.01)


def test_log_p_of_rows_held_out_has_the_better_log_z():
    """By 16 importance samples log Z is off by tenths; told the right one, every row has its own log p."""
    generator = torch.Generator().manual_seed(0)
    rows, energy = torch.randn(40, 2, generator=generator), GaussianEnergy(torch.zeros(2), torch.ones(2))
    judge = HeldOutLikelihood(rows, np.arange(0, 40, 4), GaussianMixtureEnergy.from_moments(rows, 2.0), 0, 16)
    exact = float(np.log(2 * np.pi))
    figure = float(judge(energy))
    wanted = norm.logpdf(rows.numpy()).sum(1)
    assert abs(figure + wanted[::4].mean()) > 0.05
    found = judge.log_prob_of_rows(energy, exact, 40)
    np.testing.assert_allclose(found[::4], wanted[::4], atol=1e-4)
    assert np.isnan(np.delete(found, np.arange(0, 40, 4))).all()


def test_outlier_scores_of_fresh_rows_keep_their_level():
    """27 rows held out, and fresh rows from the same source: at most one in twenty scores above 0.95."""
    rng = np.random.default_rng(0)

    class Known:
        def score_samples(self, X):
            return X["log_prob"].to_numpy()

    above, repeats = [], 2000
    for _ in range(repeats):
        held_out, fresh = np.sort(rng.normal(size=27)), pd.DataFrame({"log_prob": rng.normal(size=50)})
        above.append(np.mean(scored_rows(Known(), fresh, held_out.tolist())["outlier_score"] > 0.95))
    # A fresh row is the least likely of 28 with probability 1/28.
    assert abs(np.mean(above) - 1 / 28) < 4 * np.std(above) / np.sqrt(repeats)


def figure(n_rows: int = 40) -> HeldOutFigure:
    data = Batch(torch.zeros(n_rows, 1), torch.zeros(n_rows, 1))
    held_out = np.zeros((n_rows, 1), dtype=bool)
    held_out[: n_rows // 2] = True
    return HeldOutFigure(MaximumLikelihood(), data, held_out, None, 0, (-1.0, 1.0))


def test_an_outlier_score_is_the_share_of_held_out_rows_that_are_likelier():
    """Of n rows held out those likelier, over n + 1; 1 where all are."""

    class Itself:
        def score_samples(self, X):
            return X["a"].to_numpy()

    held_out = [1.0, 2.0, 3.0, 4.0]
    found = scored_rows(Itself(), pd.DataFrame({"a": [2.5, 5.0, 0.5, 3.0, np.nan]}), held_out)
    assert found["outlier_score"].tolist()[:4] == pytest.approx([2 / 5, 0.0, 1.0, 1 / 5])
    assert found["log_prob"].tolist()[:4] == [2.5, 5.0, 0.5, 3.0]
    assert found[["log_prob", "outlier_score"]].iloc[4].isna().all()


def test_a_part_of_the_rows_is_judged_by_the_weights_best_on_the_others():
    """Ten rows in five parts. The second weights are worse on the first part and better on all others."""
    figure = NestedFigure()
    first, weights = torch.full((10, 1), 2.0), torch.full((10, 1), 0.1)
    second = torch.where(torch.arange(10)[:, None] % 5 == 0, 30.0, 1.0)
    third = torch.where(torch.arange(10)[:, None] % 5 == 0, 0.0, 1.5)
    for values in (first, second, third):
        figure._judge(values, weights)
    # On all but the first part the second weights are best, though they are worst on it; on all but any other
    # part, the first one among them, the third.
    assert figure.judged[:, 0].tolist() == [30.0, 1.5, 1.5, 1.5, 1.5] * 2
    assert float(figure.nested()) == pytest.approx(0.1 * (60 + 8 * 1.5))


def test_the_best_of_many_figures_does_not_flatter():
    """Epochs that differ by chance alone, each row's figure of mean 1: the least mean is far below 1, the nested
    figure is 1 within four standard errors."""
    generator = torch.Generator().manual_seed(0)
    n, repeats = 20, 200
    plain, nested = [], []
    for _ in range(repeats):
        judge, least = figure(), torch.inf
        for _ in range(30):
            values = 1 + torch.randn(n, 1, generator=generator, dtype=torch.float64)
            judge._judge(values, torch.full((n, 1), 1 / n, dtype=torch.float64))
            least = min(least, float(values.mean()))
        plain.append(least)
        nested.append(float(judge.nested()))
    error = np.std(nested) / np.sqrt(repeats)
    assert np.mean(plain) < 0.7
    assert abs(np.mean(nested) - 1) < 4 * error


def test_what_an_ensemble_gains_over_one_network_is_added(monkeypatch):
    """The gain is not negative, by Jensen's inequality; the held-out figures of all rows are better by it."""
    X, y = table(0, 80, 0)
    settings = {"n_members": 4, "hidden": (16,), "max_epochs": 10, "random_state": 0}
    model, gain = EnergyRegressor(**settings).fit(X, y), []
    plain = HeldOutFigure.gain_of_all
    monkeypatch.setattr(HeldOutFigure, "gain_of_all", lambda *a: gain.append(plain(*a)) or 0.0)
    alone = EnergyRegressor(**settings).fit(X, y)
    assert gain[0] > 0
    assert alone.validation_nll_ - model.validation_nll_ == pytest.approx(gain[0], abs=1e-5)
    np.testing.assert_allclose(model._held_out_log_prob - alone._held_out_log_prob, gain[0], atol=1e-5)
    # Every row is held out once, and folds are of one size.
    assert model.validation_nll_ == pytest.approx(-model._held_out_log_prob.mean(), abs=1e-5)


def test_the_held_out_figure_is_the_mean_by_the_weights_of_the_rows():
    """Of an exact density, worked out row by row; a row of no weight to speak of may be as absurd as it likes."""
    generator = torch.Generator().manual_seed(0)
    energy = MixtureDensity(nn.Identity(), 3, n_components=2)
    x, y = torch.randn(40, 3, generator=generator), torch.randn(40, 1, generator=generator)
    held_out, weight = np.zeros((40, 1), bool), 1.0 + np.arange(40.0)
    held_out[10:30] = True
    y[12], weight[12] = 1e3, 1e-12
    figure = HeldOutFigure(MaximumLikelihood(), Batch(x, y), held_out, weight, 0, (-5.0, 5.0))
    with torch.no_grad():
        found = figure(energy)
        nll = -energy.given(x).log_prob(y.unsqueeze(1)).squeeze(1).numpy()
    expected = np.average(nll[10:30], weights=weight[10:30])
    assert nll[12] > 1e3
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_weights_of_rows_count_when_a_regressor_is_judged():
    """One row in ten has a target eight deviations off and no weight: the figure is that of the noise."""
    rng = np.random.default_rng(0)
    X, y, weight = rng.normal(size=(300, 2)), rng.normal(size=300), np.ones(300)
    y[::10], weight[::10] = 8.0, 1e-9
    model = EnergyRegressor(n_members=2, max_epochs=15, random_state=0).fit(X, y, sample_weight=weight)
    # The entropy of N(0, 1) is 1.42 nats; counted alike, those rows alone would add some ten.
    assert model.validation_nll_ < 2.5


def test_its_state_goes_on_where_it_was():
    generator = torch.Generator().manual_seed(0)
    epochs = [torch.randn(20, 1, generator=generator, dtype=torch.float64) for _ in range(6)]
    weights = torch.full((20, 1), 0.05, dtype=torch.float64)
    whole, first, second = figure(), figure(), figure()
    for values in epochs:
        whole._judge(values, weights)
    for values in epochs[:3]:
        first._judge(values, weights)
    second.restore(first.state())
    for values in epochs[3:]:
        second._judge(values, weights)
    torch.testing.assert_close(second.nested(), whole.nested())
    rows = whole.nested_rows(40)
    assert int(torch.isnan(rows).sum()) == 20
    torch.testing.assert_close(rows.nanmean(0), whole.nested())


def test_rows_of_a_sorted_table_are_asked_from_all_of_it():
    """Where only some held-out rows are asked, they are not those at the top."""
    data = Batch(torch.arange(6000.0)[:, None], torch.arange(6000.0)[:, None])
    judge = HeldOutFigure(MaximumLikelihood(), data, np.ones((6000, 1), dtype=bool), None, 0, (-1.0, 1.0))
    asked = judge.y[0, : judge.max_rows, 0]
    # The mean of 1000 of 6000 numbers drawn without return: standard error below 6000 / sqrt(12 * 1000).
    assert abs(float(asked.mean()) - 2999.5) < 4 * 6000 / np.sqrt(12_000)
