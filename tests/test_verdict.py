"""Verdicts: what each check says of figures and samples whose state is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from thalweg import EnergyDensity, EnergyRegressor, RestrictedBoltzmannMachine
from thalweg.evaluation.calibration import expected_calibration_error
from thalweg.evaluation.row_checks import (
    _ridge_log_prob,
    check_calibration,
    check_folds,
    check_samples,
    check_units,
    check_variety,
)
from thalweg.evaluation.verdict import (
    Check,
    FailedModelWarning,
    Verdict,
    check_baselines,
    check_coverage,
    check_doubts,
    check_held_out,
    check_lost_chains,
    check_normaliser,
    check_ranking,
    check_rows,
    check_rows_used,
    check_swaps,
    check_training,
)
from thalweg.training.history import History


def test_a_verdict_puts_the_worst_first_and_keeps_the_later_of_two_checks():
    verdict = Verdict([Check("a", "passed", "x"), Check("b", "failed", "y"), Check("c", "doubtful", "z")])
    assert [c.name for c in verdict] == ["b", "c", "a"]
    assert verdict.state == "failed"
    assert verdict.failure() == "the model failed its checks: b: y"
    later = verdict.extended([Check("b", "passed", "now well")])
    assert later.state == "doubtful"
    assert [c.text for c in later if c.name == "b"] == ["now well"]
    assert not later.failure()
    assert Verdict.from_list(verdict.to_list()).to_list() == verdict.to_list()
    assert Verdict().state == "passed"
    with pytest.raises(ValueError, match="passed, doubtful, failed"):
        Check("a", "fine", "")


@pytest.mark.parametrize(
    ("n", "columns", "state"), [(9, 2, "failed"), (19, None, "failed"), (30, 2, "doubtful"), (100, 30, "doubtful"),
                                (100, 20, "passed"), (100, None, "passed")]
)  # fmt: skip
def test_few_rows_are_reported(n, columns, state):
    assert check_rows(n, columns).state == state


def test_rows_left_out_are_reported():
    assert check_rows_used(100, 100, "").state == "passed"
    assert check_rows_used(97, 100, "").state == "passed"
    assert check_rows_used(80, 100, "Drop it.").state == "doubtful"
    found = check_rows_used(10, 30, "Drop it.")
    assert found.state == "failed"
    assert "20 of 30 rows (67 %)" in found.text
    assert found.text.endswith("Drop it.")
    assert [check_held_out(n).state for n in (0, 3, 30)] == ["doubtful", "doubtful", "passed"]
    assert check_doubts([]).state == "passed"
    assert check_doubts(["Odd."]).state == "doubtful"


@pytest.mark.parametrize(
    ("gain", "error", "n", "state"),
    [(0.5, 0.1, 100, "passed"), (0.1, 0.1, 100, "doubtful"), (-0.1, 0.1, 100, "doubtful"),
     (-0.5, 0.1, 100, "failed"), (-0.04, 0.001, 100, "doubtful"), (-0.45, 0.1, 10, "doubtful"),
     (None, None, 100, "failed"),     (float("nan"), 0.1, 100, "failed")],
)  # fmt: skip
def test_the_model_is_compared_with_its_worst_rival(gain, error, n, state):
    found = check_baselines({"other": (9.0, 0.1), "rival": (gain, error)}, n)
    assert found.state == state
    assert "'rival'" in found.text


def test_a_model_beside_one_gaussian():
    rng = np.random.RandomState(0)
    rows = rng.standard_normal((400, 2)) * [1.0, 5.0] + [0.0, 100.0]
    truth = -0.5 * (((rows - [0.0, 100.0]) / [1.0, 5.0]) ** 2).sum(1) - np.log(2 * np.pi * 5.0)
    assert check_folds(truth, rows).state in ("passed", "doubtful")
    # Its gain is that of the true moments over estimated ones: five parameters over twice 320 rows.
    assert check_folds(truth - 1.0, rows).state == "failed"
    assert check_folds(truth + 1.0, rows).state == "passed"
    assert check_folds(np.full(400, np.nan), rows).state == "doubtful"


def test_a_regression_beside_a_ridge():
    rng = np.random.RandomState(0)
    X = rng.standard_normal((300, 5))
    y = (X @ [1.0, 2.0, 0.0, 0.0, 0.0] + 0.5 * rng.standard_normal(300))[:, None]
    truth = norm(X @ [1.0, 2.0, 0.0, 0.0, 0.0], 0.5).logpdf(y[:, 0])
    alone = norm(0, y.std()).logpdf(y[:, 0])
    assert check_folds(truth, y, X).state in ("passed", "doubtful")
    # What ignores the inputs is level with one Gaussian, and far worse than a ridge regression.
    assert check_folds(alone, y).state == "doubtful"
    found = check_folds(alone, y, X)
    assert found.state == "failed"
    assert "'ridge regression'" in found.text


def test_a_training_that_ended_while_it_improved():
    def history(figures, events=()):
        return History([{"epoch": i, "loss": 0.0, "validation": v} for i, v in enumerate(figures)], list(events))

    flat, falling = np.r_[np.linspace(2, 1, 50), np.ones(50)], np.linspace(2, 0, 100)
    assert check_training({"a": history(flat)}).state == "passed"
    found = check_training({"a": history(flat), "b": history(falling)})
    assert found.state == "doubtful"
    assert "in 1 of 2 parts" in found.text
    assert check_training({"b": history(falling)}, by_held_out=False).state == "passed"
    assert check_training({"a": history(flat, ["roll-back 1"])}).state == "doubtful"


def test_log_z_and_coverage():
    assert [check_normaliser(e, None).state for e in (0.0, 0.05, 0.5, 2.0)] == [
        "passed",
        "passed",
        "doubtful",
        "failed",
    ]
    assert check_normaliser(0.01, "chains do not mix").state == "doubtful"
    # At 100 rows the error of a coverage of 90 % is 3 %.
    states = [check_coverage(c, 0.9, 100).state for c in (0.9, 0.82, 0.80, 0.6, 1.0)]
    assert states == ["passed", "passed", "doubtful", "failed", "doubtful"]
    assert "too narrow" in check_coverage(0.80, 0.9, 100).text
    assert "too wide" in check_coverage(1.0, 0.9, 100).text


def test_hidden_units_that_are_all_alike():
    rng = np.random.RandomState(0)
    assert check_units(rng.standard_normal((20, 100))).state == "passed"
    one = rng.standard_normal(100)
    assert check_units(one + 0.05 * rng.standard_normal((20, 100))).state == "failed"
    assert check_units(np.outer([1, -1] * 10, one)).state == "failed"
    assert check_units(one[None]).state == "passed"


def test_chains_and_ranking():
    assert [check_swaps(x).state for x in (None, 0.5, 0.001)] == ["passed", "passed", "doubtful"]
    assert [check_lost_chains(x).state for x in (0.1, 0.6, 0.95)] == ["passed", "doubtful", "failed"]
    ranking, memory = check_ranking({"noise": 0.99, "grey": 0.3}, 0.5)
    assert ranking.state == "failed"
    assert "'grey'" in ranking.text
    assert memory.state == "passed"
    assert [c.state for c in check_ranking({"noise": 0.6}, 0.9)] == ["doubtful", "doubtful"]
    assert [c.state for c in check_ranking({"noise": 0.9}, 0.99)] == ["passed", "failed"]


def test_samples_alike_noise_and_copies():
    rng = np.random.RandomState(0)
    training, held_out, fresh = (rng.standard_normal((n, 4)) * [1, 10, 1, 1] for n in (400, 200, 300))
    states = {c.name: c.state for c in check_samples(fresh, training, held_out)}
    assert states == {"variety": "passed", "samples": "passed"}
    alike = fresh[:1] + 0.05 * fresh
    assert check_samples(alike, training, held_out)[0].state == "failed"
    copies = training[:300] + 0.001 * fresh
    assert check_samples(copies, training, held_out)[1].state == "failed"
    wide = np.where(rng.uniform(size=(300, 1)) < 0.2, 6 * fresh, fresh)
    assert check_samples(wide, training, held_out)[1].state == "failed"
    few = np.where(np.arange(300)[:, None] < 15, 6 * np.sign(fresh), fresh)
    assert check_samples(few, training, held_out)[1].state == "doubtful"
    assert check_samples(np.full((5, 4), np.nan), training, held_out)[0].state == "failed"
    assert check_samples(fresh, training, held_out[:5]) == []
    assert check_variety(3 * fresh, training).state == "failed"
    assert check_variety(1.6 * fresh, training).state == "doubtful"
    assert check_variety(0.6 * fresh, training).state == "doubtful"


def test_the_variety_of_equal_rows_is_no_error():
    rng = np.random.RandomState(0)
    rows, equal = rng.standard_normal((200, 3)), np.zeros((200, 3))
    assert check_variety(equal, rows).state == "failed"
    assert check_variety(rows, equal).state == check_variety(equal, equal).state == "doubtful"
    nearly = np.vstack([equal[:-1], np.ones((1, 3))])
    assert check_variety(equal, nearly).state == "passed"
    assert check_variety(equal, np.vstack([equal[:150], np.ones((50, 3))])).state == "failed"


def test_right_samples_pass_in_nearly_all_cases():
    """Of right samples of normal, heavy-tailed and binary rows none fails, few are doubtful."""
    rng = np.random.RandomState(1)
    draws = {
        "normal": lambda n: rng.standard_normal((n, 3)),
        "heavy": lambda n: rng.standard_t(2, (n, 3)),
        "Cauchy": lambda n: rng.standard_cauchy((n, 2)),
        "bits": lambda n: (rng.uniform(size=(n, 20)) < 0.3).astype(float),
    }
    states = [
        check.state
        for draw in draws.values()
        for _ in range(20)
        for check in check_samples(draw(200), draw(200), draw(50))
    ]
    assert "failed" not in states
    assert states.count("doubtful") <= 16


def test_estimators_judge_themselves_and_a_saved_model_says_that_it_failed(tmp_path):
    rng = np.random.RandomState(0)
    X = rng.standard_normal((12, 2))
    with pytest.warns(FailedModelWarning, match="too few for any model"):
        model = EnergyDensity(max_epochs=2, n_members=2, random_state=0).fit(X)
    assert model.verdict_.state == "failed"
    model.save(tmp_path / "model")
    with pytest.warns(FailedModelWarning, match="too few for any model"):
        again = EnergyDensity.load(tmp_path / "model")
    assert again.verdict_.to_list() == model.verdict_.to_list()


def test_a_sound_regression_passes():
    rng = np.random.RandomState(0)
    X = rng.uniform(-1, 1, (400, 1))
    y = np.sin(4 * X[:, 0]) + 0.1 * rng.standard_normal(400)
    model = EnergyRegressor(n_members=2, max_epochs=60, random_state=0).fit(X, y)
    states = {check.name: check.state for check in model.verdict_}
    assert states["rows"] == states["baselines on folds"] == "passed"
    assert model.verdict_.state != "failed"


def test_a_machine_whose_units_are_all_alike_fails():
    rng = np.random.RandomState(0)
    X = (rng.uniform(size=(200, 12)) < 0.5).astype(float)
    model = RestrictedBoltzmannMachine(8, max_epochs=2, random_state=0).fit(X)
    assert {c.name for c in model.verdict_} == {"rows", "training", "hidden units", "chains", "variety"}


def test_the_ridge_of_several_targets_is_the_sum_of_those_of_each():
    rng = np.random.RandomState(0)
    X, targets = rng.standard_normal((60, 3)), rng.standard_normal((60, 2)) * [1.0, 4.0]
    parts = [_ridge_log_prob(targets[:, [k]], X) for k in range(2)]
    np.testing.assert_allclose(_ridge_log_prob(targets, X), parts[0] + parts[1], rtol=1e-9)


def test_samples_with_heavy_tails_are_judged_wherever_they_lie():
    rng = np.random.RandomState(0)
    training, held_out = (rng.standard_cauchy((n, 2)) for n in (300, 100))
    alike = 0.001 * rng.standard_cauchy((200, 2))
    for shift in (0.0, 1e6):
        found = check_samples(alike + shift, training + shift, held_out + shift)
        assert found[0].state == "failed", shift


def test_probabilities_are_judged_beside_labels_drawn_from_them():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(400, 3))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    passed = 0
    for _ in range(40):
        labels = (p.cumsum(1) < rng.uniform(size=(400, 1))).sum(1)
        passed += check_calibration(p, labels).state == "passed"
    # 99 in 100 of them should: 36 or fewer of 40 has a chance of about 1 in 2000.
    assert passed >= 37
    sharp = np.exp(4 * logits) / np.exp(4 * logits).sum(1, keepdims=True)
    assert check_calibration(sharp, labels).state == "failed"
    usual = float(check_calibration(p, labels).text.split("below ")[1].split(" ")[0])
    # The mean of ten bins' gaps, weighted: of the order of sqrt(bins / n).
    assert 0.01 < usual < np.sqrt(10 / 400)


def test_the_usual_error_of_a_calibration_is_above_those_of_99_draws_of_100():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(100, 3))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    drawn = (p.cumsum(1) < rng.uniform(size=(1000, 100, 1))).sum(2)
    errors = [expected_calibration_error(p, labels, n_bins=10) for labels in drawn]
    usual = float(check_calibration(p, drawn[0], n_draws=2000).text.split("below ")[1].split(" ")[0])
    share = np.mean(np.array(errors) > usual)
    # Its own 2,000 draws and these 1,000 leave a standard error of 0.4 points.
    assert share == pytest.approx(0.01, abs=0.015)


def test_few_held_out_rows_fail_a_model_only_far_beyond_their_error():
    assert check_baselines({"line": (-0.5, 0.2)}, 10).state == "doubtful"
    assert check_baselines({"line": (-0.95, 0.2)}, 10).state == "failed"
    # Three rows say nothing, however far off.
    assert check_baselines({"line": (-5.0, 0.2)}, 3).state == "doubtful"
    # Nor does a gain make a model of few rows pass.
    assert check_baselines({"line": (5.0, 0.2)}, 10).state == "doubtful"


def test_a_pixel_that_is_nearly_always_black_does_not_make_images_noise():
    """A trace of grey in a border that one image of hundreds enters, which of a table would be many deviations."""
    rng = np.random.RandomState(0)
    images = np.zeros((600, 1, 6, 6))
    images[:, 0, 1:5, 1:5] = rng.uniform(size=(600, 4, 4))
    images[0, 0, 0, 0] = 0.05
    new, held_out = images[400:500].copy(), images[500:]
    new[:, :, 0] = 0.02
    states = [check.state for check in check_samples(new, images[:400], held_out)]
    assert states == ["passed", "passed"]
    noise = rng.uniform(size=(200, 1, 6, 6))
    assert check_samples(noise, images[:400], held_out)[1].state == "failed"
