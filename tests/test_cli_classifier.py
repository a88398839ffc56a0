"""The command on classes, of tables and of images: fit, predict, score, sample, report, and what it refuses."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from command import thalweg
from pages import figures_of
from pages import table as table_of
from thalweg.data.tables import read_table
from thalweg.evaluation.calibration import reliability
from thalweg.evaluation.class_baselines import BASELINES
from thalweg.report.classifier import _calibration_card, _Shown
from thalweg.runs.base import fit_run, load_run
from thalweg.runs.settings.classifier import ClassifierSettings

SMALL = ("--epochs", 15, "--members", 2, "--threads", 1)


def colours(n=240, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    site = rng.choice(["north", "south"], n)
    kind = np.where(x + (site == "north") > 0.5, "oak", "elm")
    table = pd.DataFrame({"x": x.round(3), "site": site, "age": rng.integers(1, 90, n), "kind": kind})
    table.loc[rng.uniform(size=n) < 0.1, "x"] = np.nan
    return table


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    colours().to_csv(folder / "trees.csv", index=False)
    return folder, thalweg("fit", "classifier", folder / "trees.csv", "-t", "kind", "-o", folder / "run", *SMALL)


def test_a_table_is_fitted_and_told(run):
    folder, done = run
    assert "trees.csv: 24 held-out rows" in done.out
    assert "logistic regression" in done.out
    figures = json.loads((folder / "run/figures.json").read_text())
    assert figures["classes"] == ["elm", "oak"]
    assert figures["test_rows"] == 24
    ours = figures["scores"]["thalweg"]
    assert ours["accuracy"] > 0.75
    names = {check["name"] for check in figures["verdict"]}
    assert {"classes", "calibration", "baselines", "baselines on folds", "columns"} <= names
    assert "classes" in thalweg("info", folder / "run").out


def test_the_split_has_each_class_as_often_as_the_table(run):
    folder, _ = run
    made = load_run(folder / "run")
    share = (colours().kind == "oak").mean()
    assert (made.test_rows.kind == "oak").mean() == pytest.approx(share, abs=1.5 / 24)
    assert len(made.training_rows) == 216


def test_predictions_are_those_of_the_model(run, tmp_path):
    folder, _ = run
    fresh = colours(30, seed=1)
    fresh.to_csv(tmp_path / "new.csv", index=False)
    thalweg("predict", folder / "run", tmp_path / "new.csv", "--out", tmp_path / "p.parquet", "--keep", "age")
    found = read_table(tmp_path / "p.parquet")
    model = load_run(folder / "run").model
    probabilities = model.predict_proba(fresh.drop(columns="kind"))
    assert list(found.columns) == [
        "row", "age", "prediction", "p_elm", "p_oak", "log_prob", "outlier_score", "correct", "log_loss",
    ]  # fmt: skip
    np.testing.assert_allclose(found[["p_elm", "p_oak"]].to_numpy(), probabilities, rtol=1e-9)
    assert (found.prediction == np.array(["elm", "oak"])[probabilities.argmax(1)]).all()
    assert (found.correct.astype(bool) == (found.prediction == fresh.kind)).all()
    own = np.where(fresh.kind == "oak", probabilities[:, 1], probabilities[:, 0])
    np.testing.assert_allclose(found.log_loss, -np.log(own), rtol=1e-9)
    np.testing.assert_allclose(found.log_prob, model.score_samples(fresh.drop(columns="kind")), rtol=1e-9)
    fresh.drop(columns="kind").to_csv(tmp_path / "bare.csv", index=False)
    bare = thalweg("predict", folder / "run", tmp_path / "bare.csv").out
    assert "correct" not in bare
    assert "prediction" in bare


@pytest.mark.parametrize("written", [("3.0", "4.0"), ("TRUE", "FALSE")])
def test_labels_in_a_file_are_read_as_they_were_in_training(tmp_path, written):
    table = colours()
    table["kind"] = np.where(table.kind == "oak", *written)
    table.loc[::9, "kind"] = None
    table.to_csv(tmp_path / "t.csv", index=False)
    thalweg("fit", "classifier", tmp_path / "t.csv", "-t", "kind", "-o", tmp_path / "run", *SMALL, "--no-report")
    thalweg("predict", tmp_path / "run", tmp_path / "t.csv", "--out", tmp_path / "p.csv")
    found = read_table(tmp_path / "p.csv")
    assert (found.correct.isna() == (np.arange(240) % 9 == 0)).all()
    assert found.correct.dropna().astype(bool).mean() > 0.7
    assert (found.note.dropna() == "no label").all()


def test_a_label_that_is_no_class_is_noted(run, tmp_path):
    folder, _ = run
    table = colours(10, seed=3)
    table.loc[3, "kind"] = "ash"
    table.to_csv(tmp_path / "new.csv", index=False)
    thalweg("predict", folder / "run", tmp_path / "new.csv", "--out", tmp_path / "p.csv")
    found = read_table(tmp_path / "p.csv")
    assert found.note[3] == "no class is 'ash'"
    assert found.note.drop(index=3).isna().all()
    assert found.correct.isna().tolist() == [i == 3 for i in range(10)]


def test_scores_name_the_oddest_column(run, tmp_path):
    folder, _ = run
    odd = colours(20, seed=2).assign(age=5000)
    odd.to_csv(tmp_path / "odd.csv", index=False)
    done = thalweg("score", folder / "run", tmp_path / "odd.csv", "--out", tmp_path / "s.csv")
    assert "higher outlier_score is odder" in done.err
    found = read_table(tmp_path / "s.csv")
    assert (found.oddest_column == "age").all()
    assert (found.outlier_score == 1).all()
    made = load_run(folder / "run")
    typicality = np.sort(made.model.typicality(made.test_rows.drop(columns="kind")))
    np.testing.assert_allclose(made.figures["held_out_log_prob"], typicality, atol=1e-3)


def test_draws_are_of_the_class(run, tmp_path):
    folder, _ = run
    thalweg("sample", folder / "run", "-n", 30, "--label", "oak", "--out", tmp_path / "oaks.csv")
    drawn = read_table(tmp_path / "oaks.csv")
    assert list(drawn.columns) == ["x", "site", "age", "kind"]
    assert (drawn.kind == "oak").all()
    assert drawn.age.between(1, 89).all()
    both = thalweg("sample", folder / "run", "-n", 40).out
    assert "oak" in both
    assert "elm" in both
    assert "no class is 'ash'" in thalweg("sample", folder / "run", "--label", "ash", code=1).err


def test_the_page_shows_what_was_measured(run):
    folder, _ = run
    made = load_run(folder / "run")
    page = (folder / "run/report.html").read_text()
    for heading in ("Confusion matrix", "Calibration", "Inside and outside", "Least typical rows", "Mistakes"):
        assert f">{heading}<" in page, heading
    rows = made.test_rows
    best = made.model.predict(rows.drop(columns="kind"))
    counts = pd.crosstab(rows.kind, np.array(made.classes)[best]).reindex(index=made.classes, columns=made.classes)
    (matrix,) = figures_of(page, "Confusion matrix")
    np.testing.assert_array_equal(np.array(matrix["data"][0]["customdata"]), counts.fillna(0).to_numpy())
    assert matrix["data"][0]["y"] == made.classes


def test_the_baselines_are_scored_by_their_own_probabilities(run):
    folder, _ = run
    made = load_run(folder / "run")
    scores = made.figures["scores"]
    labels = [part.kind.map({"elm": 0, "oak": 1}).to_numpy() for part in (made.training_rows, made.test_rows)]
    inputs = [part.drop(columns="kind") for part in (made.training_rows, made.test_rows)]
    ours = np.log(made.model.predict_proba(inputs[1]))[np.arange(len(labels[1])), labels[1]]
    assert scores["thalweg"]["nll"] == pytest.approx(-ours.mean())
    for kind in BASELINES:
        log_probs = kind(0).fit(inputs[0], labels[0], 2).log_prob(inputs[1])
        theirs = log_probs[np.arange(len(labels[1])), labels[1]]
        entry = scores[kind.name]
        # The rows that were kept are those that it was fitted to.
        assert entry["nll"] == pytest.approx(-theirs.mean(), rel=1e-3)
        assert entry["nll_gain"] == pytest.approx(np.mean(ours - theirs), abs=1e-3)
        assert entry["accuracy"] == pytest.approx((log_probs.argmax(1) == labels[1]).mean())


def test_the_page_shows_the_probabilities_before_and_after_scaling(run):
    folder, _ = run
    made = load_run(folder / "run")
    raw = made.model.at_temperature(value=1.0)
    made.model, made.figures["temperature"] = raw.at_temperature(value=3.0), 3.0
    shown = _Shown(made)
    before, after = _calibration_card(shown).figures[0].data[1:]
    assert (before.name, after.name) == ("before scaling", "after scaling by 3")
    for trace, model in ((before, raw), (after, made.model)):
        wanted = reliability(model.predict_proba(shown.X), shown.truth)
        np.testing.assert_allclose(trace.x, wanted.confidence)
        np.testing.assert_allclose(trace.y, wanted.accuracy)


def test_the_page_ranks_rows_by_how_typical_they_are(run):
    folder, _ = run
    made = load_run(folder / "run")
    page = (folder / "run/report.html").read_text()
    rows = made.test_rows.drop(columns="kind")
    found = made.model.typicality(rows)
    places = np.array(made.figures["test_places"]) + 1
    worst = np.argsort(found, kind="stable")[:10]
    shown = table_of(page, "Least typical rows")
    assert [row[0] for row in shown[-10:]] == [str(n) for n in places[worst]]
    assert [row[1] for row in shown[-10:]] == [f"{v:.1f}" for v in found[worst]]
    original = colours()
    np.testing.assert_allclose(original.x.to_numpy()[places - 1], rows.x.to_numpy())
    (bars,) = figures_of(page, "Inside and outside")
    assert bars["layout"]["xaxis"]["title"]["text"].startswith("log p(x), nats")
    inside, outside = bars["data"]
    centres = np.array(inside["x"])
    assert np.sum(inside["y"]) == pytest.approx(1)
    mean = np.sum(centres * np.array(inside["y"]))
    step = float(centres[1] - centres[0])
    assert mean == pytest.approx(found.clip(centres[0] - step / 2, centres[-1] + step / 2).mean(), abs=step)
    assert mean > np.sum(centres * np.array(outside["y"]))
    wrong = made.model.predict(rows) != made.test_rows.kind.map({"elm": 0, "oak": 1})
    mistakes = table_of(page, "Mistakes")
    assert {row[0] for row in mistakes} >= {str(n) for n in places[wrong][:10]}


def test_an_interrupted_run_ends_the_same(run, tmp_path):
    folder, _ = run
    settings = ClassifierSettings(data=str(folder / "trees.csv"), target=["kind"], epochs=15, members=2, threads=1)
    whole = load_run(folder / "run")
    again = fit_run(tmp_path / "again", settings, verbose=False)
    np.testing.assert_allclose(
        again.model.predict_proba(again.test_rows.drop(columns="kind")),
        whole.model.predict_proba(whole.test_rows.drop(columns="kind")),
    )
    assert "finished already" in thalweg("fit", "classifier", "--resume", "-o", folder / "run").err


def test_rows_without_a_label_and_numbers_as_labels(tmp_path):
    table = colours()
    table["kind"] = np.where(np.arange(240) % 5 == 0, None, (table.kind == "oak").astype(int) + 3)
    table.to_csv(tmp_path / "some.csv", index=False)
    done = thalweg("fit", "classifier", tmp_path / "some.csv", "-t", "kind", "-o", tmp_path / "run", *SMALL)
    assert "48 of 240 rows have no label" in done.out
    figures = json.loads((tmp_path / "run/figures.json").read_text())
    assert figures["classes"] == ["3", "4"]
    assert figures["unlabelled_rows"] == 48


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name the column of the labels with --target"),
        (("-t", "price"), "has no column 'price'"),
        (("-t", "x"), "predict it with `thalweg fit regression`"),
        (("-t", "one"), "rows of one class only"),
        (("-t", "when"), "holds dates"),
        (("-t", "kind", "-t", "site"), "one target"),
        (("-t", "kind", "--objective", "jem"), "is for images"),
        (("-t", "kind", "--test-fraction", "0"), "test fraction"),
    ],
)
def test_what_is_refused(tmp_path, arguments, words):
    table = colours().assign(one="a", when="2024-01-05")
    table.to_csv(tmp_path / "t.csv", index=False)
    done = thalweg("fit", "classifier", tmp_path / "t.csv", "-o", tmp_path / "run", *arguments, code=1)
    assert words in done.err
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    raw = load_digits()
    for k, name in ((0, "nought"), (1, "one"), (7, "seven")):
        (folder / "digits" / name).mkdir(parents=True)
        for i in np.flatnonzero(raw.target == k)[:60]:
            picture = Image.fromarray((15.9 * raw.images[i]).astype(np.uint8))
            picture.save(folder / "digits" / name / f"{i}.png")
    done = thalweg("fit", "classifier", folder / "digits", "-o", folder / "run", *SMALL)
    return folder, done


def test_a_folder_of_pictures_is_fitted_attacked_and_shown(pictures):
    folder, done = pictures
    assert "Accuracy under attack" in done.out
    figures = json.loads((folder / "run/figures.json").read_text())
    assert figures["classes"] == ["nought", "one", "seven"]
    attacked = figures["robustness"]
    assert attacked["worst"][0] == pytest.approx(figures["scores"]["thalweg"]["accuracy"])
    assert attacked["worst"] == sorted(attacked["worst"], reverse=True)
    assert figures["detection"]["uniform noise"] > 0.95
    page = (folder / "run/report.html").read_text()
    for heading in ("Under attack", "Least typical images", "Samples"):
        assert f">{heading}<" in page, heading


def test_pictures_are_predicted_by_file_and_drawn(pictures, tmp_path):
    folder, _ = pictures
    thalweg("predict", folder / "run", folder / "digits", "--out", tmp_path / "p.csv")
    found = read_table(tmp_path / "p.csv")
    assert found.columns[0] == "file"
    right = found.prediction == found.file.str.split("/").str[0]
    assert right.mean() > 0.9
    thalweg("sample", folder / "run", "-n", 4, "--label", "seven", "--out", tmp_path / "sevens")
    assert len(list((tmp_path / "sevens").glob("*.png"))) == 4


def test_images_without_labels_or_with_a_target_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", X=load_digits().images[:40] / 16)
    assert "has no labels" in thalweg("fit", "classifier", tmp_path / "x.npz", "-o", tmp_path / "r", code=1).err
    refused = thalweg("fit", "classifier", tmp_path / "x.npz", "-t", "y", "-o", tmp_path / "r", code=1)
    assert "--target names a column" in refused.err
