"""``EnergyRanker``: what it learns from groups, how it ranks, what it refuses; lists and folds by group."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import ndcg_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from thalweg import EnergyRanker
from thalweg.energies import RankingMembers
from thalweg.estimators._groups import HeldOutNDCG, lists_of
from thalweg.estimators._labels import folds_by_label
from thalweg.evaluation import ndcg_of_groups, relevance_gains
from thalweg.evaluation.ranking_baselines import BASELINES
from thalweg.evaluation.ranking_checks import check_group_folds, check_groups, check_order
from thalweg.objectives.names import RANKING

SMALL = {"n_members": 2, "hidden": (16,), "max_epochs": 15, "random_state": 0}


class InGroups(EnergyRanker):
    """A ranker that makes up its groups, for checks that know of none."""

    def fit(self, X, y, groups=None):
        return super().fit(X, y, np.random.RandomState(0).permutation(len(X)) // 5)

    def score(self, X, y, groups=None):
        return super().score(X, y, np.zeros(len(y)))


@parametrize_with_checks([InGroups(n_members=1, hidden=(4,), max_epochs=2, random_state=0)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def answers(n_groups=60, seed=0):
    """A table with numbers, a category and gaps, whose rows stand in any order; relevance and groups by name."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), rng.integers(2, 20, n_groups))
    n = len(groups)
    level = rng.normal(size=n_groups)[groups]
    table = pd.DataFrame(
        {"x": rng.normal(size=n), "kind": rng.choice(["a", "b"], n), "level": level, "noise": 1.0}
    )
    utility = 2 * table["x"] + (table["kind"] == "a") - 3 * level + 0.3 * rng.normal(size=n)
    # Only the order within the group is told.
    relevance = np.clip(np.floor(utility + 3 * level + 1), 0, 4).astype(int)
    table.loc[rng.uniform(size=n) < 0.05, "x"] = np.nan
    shuffle = rng.permutation(n)
    return table.iloc[shuffle].reset_index(drop=True), relevance.to_numpy()[shuffle], groups[shuffle]


@pytest.fixture(scope="module")
def fitted():
    return EnergyRanker(n_members=4, hidden=(32,), max_epochs=40, random_state=0).fit(*answers())


def test_groups_that_were_never_seen_are_ordered(fitted):
    table, relevance, groups = answers(40, seed=1)
    found = fitted.score(table, relevance, groups)
    by_hand = [
        ndcg_score([relevance_gains(relevance[groups == g])], [fitted.predict(table[groups == g])], k=10)
        for g in range(40)
        if relevance[groups == g].any() and (groups == g).sum() > 1
    ]
    assert found == pytest.approx(np.mean(by_hand), abs=1e-9)
    assert found > 0.9
    chance = np.nanmean(ndcg_of_groups(relevance, np.zeros(len(groups)), groups, 10))
    assert found > chance + 0.1
    assert 0.85 < fitted.validation_ndcg_ < 1
    assert fitted.verdict_.state != "failed"


def test_the_score_is_minus_the_energy_and_ranks_follow_it(fitted):
    table, _, groups = answers(10, seed=2)
    scores = fitted.predict(table)
    np.testing.assert_array_equal(scores, -fitted.energies(table))
    ranks = fitted.rank(table, groups)
    for g in range(10):
        own = groups == g
        np.testing.assert_array_equal(ranks[own], 1 + (scores[own][:, None] < scores[own]).sum(1))


def test_equal_rows_have_equal_rank_and_the_next_one_is_left_out(fitted):
    table = pd.DataFrame({"x": [2.0, 0.0, 0.0, -2.0], "kind": "a", "level": 0.0, "noise": 1.0})
    assert fitted.rank(table, ["q"] * 4).tolist() == [1, 2, 2, 4]
    assert fitted.rank(table, ["q", "q", "r", ("a", "tuple")]).tolist() == [1, 2, 1, 1]
    many = pd.concat([table.iloc[[1]]] * 700, ignore_index=True)
    assert (fitted.rank(many, np.zeros(700)) == 1).all()


def test_neither_names_nor_places_of_groups_matter():
    table, relevance, groups = answers(20)
    words = np.array([f"query {g}" for g in groups], dtype=object)
    found = [
        EnergyRanker(**SMALL).fit(table, relevance, ids).predict(table) for ids in (groups, words, list(words))
    ]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize("objective", RANKING)
def test_every_objective_learns_an_order(objective):
    rng = np.random.default_rng(0)
    X, groups = rng.normal(size=(300, 2)), np.arange(300) % 30
    relevance = (X[:, 0] > 0.3).astype(int) + (X[:, 0] > 1)
    model = EnergyRanker(objective, **{**SMALL, "learning_rate": 0.02}).fit(X, relevance, groups)
    assert model.score(X, relevance, groups) > 0.93


def test_an_interrupted_fit_ends_as_one_that_was_not(tmp_path):
    (table, relevance, groups), how = answers(20), {**SMALL, "max_epochs": 5}
    whole = EnergyRanker(**how).fit(table, relevance, groups)
    stop_at_the_third_epoch(EnergyRanker(**how), (table, relevance, groups), tmp_path)
    resumed = EnergyRanker(**how).fit(
        table, relevance, groups, run_dir=tmp_path, resume=True, checkpoint_seconds=0.0
    )
    np.testing.assert_array_equal(resumed.predict(table), whole.predict(table))
    assert resumed.validation_ndcg_ == whole.validation_ndcg_


def stop_at_the_third_epoch(model, data, folder):
    asked = {"n": 0}
    original = HeldOutNDCG.__call__

    def stopping(self, energy):
        asked["n"] += 1
        if asked["n"] == 3:
            raise KeyboardInterrupt
        return original(self, energy)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeldOutNDCG, "__call__", stopping)
        with pytest.raises(KeyboardInterrupt):
            model.fit(*data, run_dir=folder, checkpoint_seconds=0.0)


BAD = [
    ({"groups": None}, "give the groups"),
    ({"groups": [1, 2, 3]}, "12 rows and 3 groups"),
    ({"groups": [None, *range(11)]}, "the group of row 1 is missing"),
    ({"groups": [*range(11), float("nan")]}, "the group of row 12 is missing"),
    ({"groups": [[1, 2]] * 12}, "another hashable value"),
    ({"groups": np.zeros((12, 2))}, "groups must be one column"),
    ({"groups": range(12)}, "each of 12 groups has a single row"),
    ({"groups": [0] * 12}, "fewer than two of 1 groups"),
    ({"y": [1] * 12}, "all rows have the relevance 1"),
    ({"y": [0, 1] * 5}, "X has 12 rows, y has 10"),
    ({"y": [-1, 1] * 6}, "relevance of row 1 is -1, which is negative"),
    ({"y": [0, 0.5] * 6}, "relevance of row 2 is 0.5, which is no whole number"),
    ({"y": [0, 31] * 6}, "above 30: gains are"),
    ({"y": [0, np.nan] * 6}, "relevance of row 2 is missing"),
    ({"y": [0, np.inf] * 6}, "infinity in row 2"),
    ({"y": ["good", "bad"] * 6}, "relevance must be numbers"),
    ({"y": np.array(["2020-01-01"] * 12, dtype="datetime64[D]")}, "not dates"),
    ({"y": [0, 0, 1] + [1] * 9}, "fewer than two of 4 groups"),
    ({"X": np.full((12, 1), np.inf)}, "infinity"),
]


@pytest.mark.parametrize(("changed", "words"), BAD, ids=lambda v: v if isinstance(v, str) else None)
def test_data_that_can_not_be_used_are_refused(changed, words):
    data = {"X": np.arange(12.0)[:, None], "y": [0, 1] * 6, "groups": np.arange(12) // 3} | changed
    with pytest.raises(ValueError, match=words):
        EnergyRanker(**SMALL).fit(data["X"], data["y"], data["groups"])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"objective": "magic"}, "objective must be one of listwise"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"batch_size": "large"}, "batch_size must be"),
        ({"n_members": 0}, "n_members must be"),
    ],
)
def test_settings_that_can_not_be_are_refused(setting, words):
    with pytest.raises(ValueError, match=words):
        EnergyRanker(**setting).fit(np.zeros((4, 1)), [0, 1, 0, 1], [0, 0, 1, 1])


def test_a_fitted_model_refuses_what_it_does_not_know(fitted):
    table, relevance, groups = answers(5)
    with pytest.raises(ValueError, match="feature names"):
        fitted.predict(table.rename(columns={"x": "z"}))
    with pytest.raises(ValueError, match="rows and 2 groups"):
        fitted.rank(table, [0, 1])
    with pytest.raises(ValueError, match="no group has a row whose relevance is above 0"):
        fitted.score(table, 0 * relevance, groups)


def test_groups_that_teach_nothing_are_left_out_and_told():
    table, relevance, groups = answers(30)
    more = pd.concat([table, table.head(40)], ignore_index=True)
    idle = np.r_[relevance, np.ones(40, int)], np.r_[groups, 1000 + np.arange(40) // 2]
    model = EnergyRanker(**SMALL).fit(more, *idle)
    (check,) = [c for c in model.verdict_ if c.name == "groups"]
    assert "2" in check.text
    assert "teach nothing" in check.text


# -- lists and folds ----------------------------------------------------------------------------------------


def test_lists_hold_every_row_once_and_rows_of_one_group():
    numbers = np.random.default_rng(0).permutation(np.repeat(np.arange(40), np.arange(1, 41)))
    rows, group = lists_of(numbers, 5, np.random.RandomState(0))
    np.testing.assert_array_equal(np.sort(rows[rows >= 0]), np.arange(len(numbers)))
    for line, own in zip(rows, group, strict=True):
        assert (numbers[line[line >= 0]] == own).all()
    assert rows.shape == (40, 40)


def test_a_huge_group_among_small_ones_is_dealt_into_lists():
    numbers = np.r_[np.zeros(5000, int), np.repeat(np.arange(1, 301), 8)]
    rows, group = lists_of(numbers, 10, np.random.RandomState(0))
    assert rows.shape[1] <= 128
    assert (np.bincount(group)[1:] == 1).all()
    lengths = (rows[group == 0] >= 0).sum(1)
    assert lengths.max() - lengths.min() <= 1
    wide, _ = lists_of(numbers, 2000, np.random.RandomState(0))
    # Padding takes at most four times the table.
    assert wide.size <= 4 * len(numbers)
    np.testing.assert_array_equal(np.sort(wide[wide >= 0]), np.arange(len(numbers)))


def test_a_huge_group_is_learned_from():
    rng = np.random.default_rng(0)
    groups = np.r_[np.zeros(3000, int), np.repeat(np.arange(1, 41), 5)]
    X = rng.normal(size=(len(groups), 2))
    model = EnergyRanker(**{**SMALL, "max_epochs": 3}).fit(X, (X[:, 0] > 1).astype(int), groups)
    assert model.rank(X, groups).max() == 3000
    assert model.score(X, (X[:, 0] > 1).astype(int), groups) > 0.9


def test_members_are_judged_by_whole_groups_that_they_did_not_learn_from():
    rng = np.random.default_rng(0)
    numbers = rng.permutation(np.repeat(np.arange(11), rng.integers(2, 9, 11)))
    relevance, x = rng.integers(0, 3, len(numbers)).astype(float), torch.randn(len(numbers), 3)
    held_out = folds_by_label(np.zeros(11, int), 3, np.random.RandomState(0))
    assert (held_out.sum(1) == 1).all()
    members = RankingMembers(3, 3, (5,)).eval()
    validate = HeldOutNDCG(x, relevance, numbers, held_out, 0)
    with torch.no_grad():
        relevance[numbers == 0] = np.arange((numbers == 0).sum())
        found = validate(members).numpy()
        scores = -members.member_energies(x).double().numpy()
    validate = HeldOutNDCG(x, relevance, numbers, held_out, 0)
    with torch.no_grad():
        found = validate(members).numpy()
    for m in range(3):
        own = np.isin(numbers, np.flatnonzero(held_out[:, m]))
        ndcg = ndcg_of_groups(relevance[own], scores[m][own], numbers[own], 10)
        assert found[m] == pytest.approx(1 - np.nanmean(ndcg), abs=1e-6)


def test_a_member_learns_from_all_groups_but_those_that_judge_it():
    rng = np.random.RandomState(0)
    numbers = rng.permutation(np.repeat(np.arange(11), rng.randint(2, 9, 11)))
    # What a row holds says of which group it is.
    x = torch.from_numpy(numbers[:, None] + 1.0).float()
    held_out = folds_by_label(np.zeros(11, int), 3, rng)
    data = EnergyRanker._lists(x, rng.randint(0, 3, len(numbers)), numbers, held_out, rng)
    group = data.x[:, 0, 0].long().numpy() - 1
    assert sorted(group) == list(range(11))
    np.testing.assert_array_equal(data.weight.numpy() == 0, held_out[group])
    torch.testing.assert_close(data.weight.mean(0), torch.ones(3))


def test_the_held_out_figure_of_noise_is_that_of_a_random_order():
    rng = np.random.default_rng(0)
    groups, x, relevance = np.repeat(np.arange(80), 5), rng.normal(size=(400, 6)), rng.integers(0, 2, 400)
    model = EnergyRanker(n_members=2, hidden=(32,), max_epochs=40, random_state=0).fit(x, relevance, groups)
    chance = ndcg_of_groups(relevance, np.zeros(400), groups, 10)
    spread = ndcg_of_groups(relevance, rng.normal(size=400), groups, 10)
    known = np.isfinite(spread)
    assert abs(model.validation_ndcg_ - chance[known].mean()) < 4 * spread[known].std() / np.sqrt(known.sum())


# -- baselines and checks -----------------------------------------------------------------------------------


def test_baselines_order_by_what_is_there():
    rng = np.random.default_rng(0)
    n, groups = 600, np.arange(600) // 20
    table = pd.DataFrame({"a": rng.normal(size=n), "b": rng.normal(size=n), "c": rng.choice(["u", "v"], n)})
    relevance = np.digitize(-table["a"] + 0.1 * table["b"], [0, 1, 2]).astype(float)
    found = {}
    for kind in BASELINES:
        scores = kind(0).fit(table[:400], relevance[:400], groups[:400]).predict(table[400:])
        found[kind.name] = np.nanmean(ndcg_of_groups(relevance[400:], scores, groups[400:] - 20, 10))
    assert found["best single column"] > 0.9
    assert found["ridge regression"] > 0.9
    assert found["gradient boosting"] > 0.9
    assert found["random order"] < 0.7


def test_checks_of_groups_and_of_their_order():
    assert check_groups(3, 0).state == "failed"
    assert check_groups(20, 1).state == "doubtful"
    assert "1 more teaches nothing" in check_groups(20, 1).text
    assert check_groups(100, 60).state == "doubtful"
    assert check_groups(100, 3).state == "passed"
    for gain, n_groups, state in (
        (0.1, 50, "passed"),
        (0.01, 50, "doubtful"),
        (-0.1, 50, "failed"),
        (0.1, 9, "doubtful"),
    ):
        check = check_order({"ridge": (gain, 0.02), "chance": (0.5, 0.01)}, n_groups)
        assert check.state == state
        assert "'ridge'" in check.text
    assert check_order({"ridge": (float("nan"), None)}, 50).state == "doubtful"


def test_groups_in_no_order_are_no_better_than_chance_and_said_so():
    rng = np.random.default_rng(0)
    groups, relevance, inputs = np.repeat(np.arange(50), 10), rng.integers(0, 3, 500), rng.normal(size=(500, 2))
    ndcg = ndcg_of_groups(relevance, inputs[:, 0], groups, 10)
    assert check_group_folds(ndcg, relevance, inputs, groups).state != "passed"
    best = ndcg_of_groups(relevance, relevance, groups, 10)
    assert check_group_folds(best, relevance, inputs, groups).state == "passed"
