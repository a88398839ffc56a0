"""The command on groups: fit, predict, report, resume, and what it refuses."""

import json

import numpy as np
import pandas as pd
import pytest

from command import are_refused, thalweg
from pages import figures_of
from pages import table as table_of
from thalweg.data.tables import read_table
from thalweg.estimators._groups import HeldOutNDCG
from thalweg.evaluation import average_precision_of_groups, ndcg_of_groups, reciprocal_rank_of_groups
from thalweg.evaluation.ranking_baselines import BASELINES
from thalweg.runs.base import load_run

SMALL = ("--epochs", 8, "--members", 2, "--threads", 1)
NAMED = ("--group", "query", "--target", "clicks")


def stays(n_groups=80, seed=0):
    """Rows of any order; groups whose names are numbers with zeros before them."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), rng.integers(3, 12, n_groups))
    n = len(groups)
    price, kind = rng.lognormal(4, 0.5, n).round(2), rng.choice(["hotel", "flat"], n)
    utility = -2 * np.log(price) + (kind == "hotel") + 0.3 * rng.normal(size=n)
    table = pd.DataFrame({"query": [f"{g:04d}" for g in groups], "price": price, "kind": kind})
    table["stars"] = np.where(rng.uniform(size=n) < 0.2, np.nan, rng.integers(1, 6, n))
    table["clicks"] = np.digitize(utility, np.quantile(utility, [0.6, 0.9]))
    return table.iloc[rng.permutation(n)].reset_index(drop=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    stays().to_csv(folder / "stays.csv", index=False)
    return folder, thalweg("fit", "ranker", folder / "stays.csv", *NAMED, "-o", folder / "run", *SMALL)


def test_a_table_is_fitted_and_told(run):
    folder, done = run
    assert "stays.csv: 8 held-out groups" in done.out
    assert all(kind.name in done.out for kind in BASELINES)
    figures = json.loads((folder / "run/figures.json").read_text())
    assert (figures["groups"], figures["test_groups"]) == (80, 8)
    names = {check["name"] for check in figures["verdict"]}
    assert names == {
        "rows", "groups", "training", "baselines on folds", "held-out groups", "columns", "baselines"
    }  # fmt: skip
    told = thalweg("info", folder / "run").out
    assert "clicks in groups of query" in told
    assert "80, 8 of them held out" in told


def test_whole_groups_are_held_out(run):
    made = load_run(run[0] / "run")
    learned, held_out = set(made.training_rows["query"].astype(str)), set(made.test_rows["query"].astype(str))
    assert not learned & held_out
    assert (len(learned), len(held_out)) == (72, 8)
    whole = stays()
    places = made.figures["test_places"]
    assert set(whole["query"].iloc[places]) == held_out
    assert len(places) == whole["query"].isin(held_out).sum()


def test_figures_are_those_of_the_predictions(run):
    made = load_run(run[0] / "run")
    parts = [part.reset_index(drop=True) for part in (made.training_rows, made.test_rows)]
    numbers = [pd.factorize(part["query"].astype(str))[0] for part in parts]
    relevance = [part["clicks"].to_numpy(float) for part in parts]
    inputs = [part[made.figures["inputs"]] for part in parts]
    ours = made.model.predict(inputs[1])
    entry = made.figures["scores"]["thalweg"]
    ndcg = ndcg_of_groups(relevance[1], ours, numbers[1], 10)
    assert entry["ndcg"] == pytest.approx(np.nanmean(ndcg))
    assert entry["ndcg_by_cutoff"][0] == pytest.approx(
        np.nanmean(ndcg_of_groups(relevance[1], ours, numbers[1], 1))
    )
    assert entry["map"] == pytest.approx(np.nanmean(average_precision_of_groups(relevance[1], ours, numbers[1])))
    assert entry["mrr"] == pytest.approx(np.nanmean(reciprocal_rank_of_groups(relevance[1], ours, numbers[1])))
    for kind in BASELINES:
        scores = kind(0).fit(inputs[0], relevance[0], numbers[0]).predict(inputs[1])
        theirs = ndcg_of_groups(relevance[1], scores, numbers[1], 10)
        other = made.figures["scores"][kind.name]
        assert other["ndcg"] == pytest.approx(np.nanmean(theirs), abs=1e-3)
        assert other["ndcg_gain"] == pytest.approx(np.nanmean(ndcg - theirs), abs=1e-3)


def test_predictions_have_scores_ranks_and_ties(run, tmp_path):
    folder, _ = run
    fresh = stays(6, seed=1)
    fresh = pd.concat([fresh, fresh.iloc[[0]]], ignore_index=True)
    fresh.to_csv(tmp_path / "new.csv", index=False)
    thalweg("predict", folder / "run", tmp_path / "new.csv", "--out", tmp_path / "p.parquet", "--keep", "query")
    found = read_table(tmp_path / "p.parquet")
    assert list(found.columns) == ["row", "query", "score", "rank", "tied"]
    model = load_run(folder / "run").model
    inputs = fresh[["price", "kind", "stars"]]
    np.testing.assert_allclose(found["score"], model.predict(inputs), rtol=1e-9)
    np.testing.assert_array_equal(found["rank"], model.rank(inputs, fresh["query"]))
    assert found["rank"].iloc[0] == found["rank"].iloc[-1]
    assert found["tied"].iloc[0] == found["tied"].iloc[-1] == 2
    bare = thalweg(
        "predict", folder / "run", write(fresh.drop(columns=["query", "clicks"]), tmp_path / "b.csv")
    ).out
    assert bare.splitlines()[0] == "row,score"


def write(table, path):
    table.to_csv(path, index=False)
    return path


def test_the_page_shows_what_was_measured(run):
    folder, _ = run
    made = load_run(folder / "run")
    page = (folder / "run/report.html").read_text()
    (lines,) = figures_of(page, "NDCG by cut-off")
    scores = made.figures["scores"]
    assert [trace["name"] for trace in lines["data"]] == list(scores)
    for trace in lines["data"]:
        np.testing.assert_allclose(trace["y"], scores[trace["name"]]["ndcg_by_cutoff"], rtol=1e-5)
    rows = made.test_rows.reset_index(drop=True)
    names = rows["query"].astype(str)
    numbers, ids = pd.factorize(names)
    ours = made.model.predict(rows[made.figures["inputs"]])
    ndcg = pd.Series(ndcg_of_groups(rows["clicks"].to_numpy(), ours, numbers, 10), ids).dropna()
    worst = table_of(page, "Worst ordered groups")[1:]
    assert [line[1] for line in worst] == [f"{v:.3f}" for v in np.sort(ndcg.to_numpy())]
    assert worst[0][0] == ndcg.idxmin()
    places = np.array(made.figures["test_places"]) + 1
    for name, _, n, n_relevant, put_first, most in worst:
        own = np.flatnonzero(names == name)
        own = own[np.argsort(-ours[own], kind="stable")]
        clicks = rows["clicks"].to_numpy()[own]
        assert (n, n_relevant) == (str(len(own)), str(int((clicks > 0).sum())))
        top = int(clicks.argmax())
        assert put_first == f"row {places[own[0]]}: {clicks[0]:g}"
        assert most == f"row {places[own[top]]}: {clicks[top]:g}, ranked {1 + (ours[own] > ours[own[top]]).sum()}"
    (strips,) = figures_of(page, "Example groups")
    first = np.array(strips["data"][0]["z"], float).reshape(len(ndcg), -1)[0]
    best = rows[names == ndcg.idxmax()]
    listed = best["clicks"].to_numpy()[np.argsort(-ours[best.index], kind="stable")]
    np.testing.assert_array_equal(first[: len(listed)], listed)
    assert np.isnan(first[len(listed) :]).all()
    (boxes,) = figures_of(page, "Score by relevance")
    centred = pd.Series(ours) - pd.Series(ours).groupby(numbers).transform("mean")
    np.testing.assert_allclose(boxes["data"][0]["median"], centred.groupby(rows["clicks"]).median(), rtol=1e-4)


def test_what_can_not_be_used_is_refused_in_one_line(tmp_path):
    table = stays(12)
    path = write(table, tmp_path / "t.csv")
    fit = ("fit", "ranker")
    odd = {
        "gaps": (table.assign(query=table["query"].where(table.index != 4)), "the group of row 5 is missing"),
        "words": (table.assign(clicks="many"), "relevance is a number from 0"),
        "negative": (table.assign(clicks=table["clicks"] - 1), "which is negative"),
        "alone": (table.assign(query=[f"q{k}" for k in range(len(table))]), "single row"),
        "equal": (table.assign(clicks=1), "all rows have the relevance 1"),
        "few": (table.assign(query="one"), "at least two are needed"),
        "bare": (table[["query", "clicks"]], "no column left to rank by"),
    }
    files = {name: write(bad, tmp_path / f"{name}.csv") for name, (bad, _) in odd.items()}
    out = ("-o", tmp_path / "run", *SMALL)
    are_refused(
        [((*fit, files[name], *NAMED, *out), 1, words) for name, (_, words) in odd.items()]
        + [
            ((*fit, path, "--target", "clicks", *out), 1, "name the column of the groups with --group COLUMN"),
            ((*fit, path, "--group", "query", *out), 1, "name the column of the relevance with --target COLUMN"),
            ((*fit, path, "--group", "query", "--target", "query", *out), 1, "name the same column"),
            ((*fit, path, "--group", "colour", "--target", "clicks", *out), 1, "no column 'colour'"),
        ]
    )
    assert not (tmp_path / "run").exists()


def test_new_tables_must_have_the_inputs(run, tmp_path):
    path = write(stays(3).drop(columns="price"), tmp_path / "new.csv")
    assert "lacks 'price'" in thalweg("predict", run[0] / "run", path, code=1).err
    gaps = stays(3)
    gaps.loc[1, "query"] = None
    path = write(gaps, tmp_path / "gaps.csv")
    assert "the group of row 2 is missing" in thalweg("predict", run[0] / "run", path, code=1).err


def test_an_interrupted_run_ends_as_one_that_was_not(run, tmp_path, monkeypatch):
    folder, _ = run
    original, asked = HeldOutNDCG.__call__, []

    def stopping(self, energy):
        asked.append(energy)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return original(self, energy)

    monkeypatch.setattr(HeldOutNDCG, "__call__", stopping)
    fit = ("fit", "ranker", folder / "stays.csv", *NAMED, "-o", tmp_path / "run", *SMALL, "--no-report")
    done = thalweg(*fit, "--checkpoint-seconds", 0, code=130)
    assert "continue with `thalweg fit ranker --resume" in done.err
    thalweg("fit", "ranker", "--resume", "--out", tmp_path / "run", "--no-report")
    resumed, whole = load_run(tmp_path / "run"), load_run(folder / "run")
    inputs = whole.test_rows[whole.figures["inputs"]]
    np.testing.assert_allclose(resumed.model.predict(inputs), whole.model.predict(inputs), rtol=1e-5, atol=1e-6)
