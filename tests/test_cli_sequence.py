"""The command on labelled sequences: tables and CoNLL files; fit, predict, report, and what it refuses."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from command import are_refused, thalweg
from pages import figures_of
from pages import table as table_of
from thalweg.data.tables import read_table
from thalweg.evaluation.sequences import (
    ElementLogistic,
    LogisticWithTransitions,
    are_spans,
    mean_over_elements,
    span_f1,
    spans_of,
)
from thalweg.report.sequence import _lengths_card, _mistakes_card, _Shown, _transitions_card
from thalweg.runs.base import load_run
from thalweg.runs.sequence import in_order_of
from thalweg.runs.settings.sequence import SequenceSettings

SMALL = ("--epochs", 6, "--threads", 1)
NAMES = ["Rome", "Oslo", "Lima", "Cairo", "Bern", "Kiev"]


def sentences(n=60, seed=0):
    """Names of places after "in"; of people elsewhere; and a few that are wrong."""
    rng = np.random.RandomState(seed)
    rows = []
    for i in range(n):
        words, tags = ["In"], ["O"]
        if rng.uniform() < 0.5:
            words, tags = [*words, "New"], [*tags, "B-LOC"]
            words, tags = [*words, NAMES[rng.randint(6)]], [*tags, "I-LOC"]
        else:
            words, tags = [*words, NAMES[rng.randint(6)]], [*tags, "B-LOC"]
        words, tags = [*words, NAMES[rng.randint(6)], "sings"], [*tags, "B-PER", "O"]
        rows += [{"song": f"s{i}", "word": w, "size": len(w), "tag": t} for w, t in zip(words, tags, strict=True)]
    table = pd.DataFrame(rows)
    wrong = (rng.uniform(size=len(table)) < 0.1) & (table.tag == "B-PER")
    table.loc[wrong, "tag"] = "O"
    return table


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequences")
    sentences().to_csv(folder / "songs.csv", index=False)
    options = ("-s", "song", "-t", "tag", "--bio", "-o", folder / "run", *SMALL)
    return folder, thalweg("fit", "sequence", folder / "songs.csv", *options)


def test_a_table_is_fitted_and_told(run):
    folder, done = run
    assert "songs.csv: 6 held-out sequences" in done.out
    assert "spans" in done.out
    figures = json.loads((folder / "run/figures.json").read_text())
    assert figures["classes"] == ["B-LOC", "B-PER", "I-LOC", "O"]
    assert (figures["sequences"], figures["training_sequences"], figures["test_sequences"]) == (60, 54, 6)
    assert figures["training_rows"] + figures["test_rows"] == figures["rows"] == len(sentences())
    assert set(figures["scores"]) == {"thalweg", ElementLogistic.name, LogisticWithTransitions.name}
    assert {check["name"] for check in figures["verdict"]} >= {"labels", "baselines", "calibration", "classes"}
    assert "sequences" in thalweg("info", folder / "run").out


def test_the_figures_are_those_of_the_held_out_sequences(run):
    folder, _ = run
    made = load_run(folder / "run")
    test, training = made.test_rows, made.training_rows
    # Whole sequences are held out.
    assert not set(test.song) & set(training.song)
    frames = [own[["word", "size"]] for _, own in test.groupby("song", sort=False, observed=True)]
    truth = [own.tag.tolist() for _, own in test.groupby("song", sort=False, observed=True)]
    predicted = [own.tolist() for own in made.model.predict(frames)]
    right = [np.array(a) == np.array(b) for a, b in zip(predicted, truth, strict=True)]
    scores = made.figures["scores"]["thalweg"]
    assert scores["accuracy"] == pytest.approx(np.concatenate(right).mean())
    assert scores["sequence_accuracy"] == pytest.approx(np.mean([own.all() for own in right]))
    assert scores["span_f1"] == pytest.approx(span_f1(truth, predicted))
    p = np.concatenate(made.model.predict_marginals(frames))
    place = {label: k for k, label in enumerate(made.model.classes_)}
    own = p[np.arange(len(p)), [place[label] for label in np.concatenate(truth)]]
    assert scores["nll"] == pytest.approx(-np.log(own).mean(), rel=1e-5)


def test_predictions_are_those_of_the_model(run, tmp_path):
    folder, _ = run
    fresh = sentences(12, seed=5)
    # Rows of a sequence need not stand together.
    mixed = pd.concat([fresh.iloc[::2], fresh.iloc[1::2]])
    mixed.to_csv(tmp_path / "new.csv", index=False)
    thalweg("predict", folder / "run", tmp_path / "new.csv", "--out", tmp_path / "p.csv", "--keep", "word")
    found = read_table(tmp_path / "p.csv")
    model = load_run(folder / "run").model
    names = list(dict.fromkeys(mixed.song))
    frames = [mixed[mixed.song == name] for name in names]
    predicted, marginals = model.predict(frames), model.predict_marginals(frames)
    assert list(found.columns)[:4] == ["row", "word", "song", "prediction"]
    for name, own, p in zip(names, predicted, marginals, strict=True):
        rows = found[found.song == name]
        assert rows.prediction.tolist() == own.tolist()
        np.testing.assert_allclose(rows[[f"p_{c}" for c in model.classes_]].to_numpy(), p, rtol=1e-5, atol=1e-9)
    assert (found.correct.astype(bool) == (found.prediction.to_numpy() == mixed.tag.to_numpy())).all()
    mixed.drop(columns="tag").to_csv(tmp_path / "bare.csv", index=False)
    assert "correct" not in thalweg("predict", folder / "run", tmp_path / "bare.csv").out
    mixed.assign(tag="B-SHIP").to_csv(tmp_path / "odd.csv", index=False)
    thalweg("predict", folder / "run", tmp_path / "odd.csv", "--out", tmp_path / "o.csv")
    assert (read_table(tmp_path / "o.csv").note == "no class is 'B-SHIP'").all()


def test_truth_values_that_were_texts_are_read_so_again(tmp_path):
    table = sentences().assign(known=lambda t: np.where(t["size"] > 3, "TRUE", "FALSE"))
    table.to_csv(tmp_path / "t.csv", index=False)
    options = ("-s", "song", "-t", "tag", "--text", "known", "-o", tmp_path / "run", *SMALL, "--no-report")
    thalweg("fit", "sequence", tmp_path / "t.csv", *options)
    # A Parquet file holds truth values where the CSV had texts.
    table.assign(known=table.known == "TRUE").to_parquet(tmp_path / "t.parquet", index=False)
    for name in ("csv", "parquet"):
        thalweg("predict", tmp_path / "run", tmp_path / f"t.{name}", "--out", tmp_path / f"{name}.csv")
    found = [read_table(tmp_path / f"{name}.csv") for name in ("csv", "parquet")]
    np.testing.assert_allclose(found[0]["p_O"], found[1]["p_O"])


def test_the_page_shows_the_figures_of_the_model(run):
    folder, _ = run
    made = load_run(folder / "run")
    html = (folder / "run/report.html").read_text()
    shown = _Shown(made)
    (confusion,) = figures_of(html, "Confusion matrix")
    counts = np.array(confusion["data"][0]["customdata"])
    assert counts.sum() == len(shown.truth)
    assert np.trace(counts) == (shown.truth == shown.predicted).sum()
    transitions = made.model.transitions_
    picture = _transitions_card(made).figures[0]
    drawn = np.array(picture.data[0].z, dtype=float)
    np.testing.assert_allclose(drawn[np.isfinite(transitions)], transitions[np.isfinite(transitions)])
    assert np.isnan(drawn[np.isinf(transitions)]).all()
    head, *rows = table_of(html, "Figures")
    ours = made.figures["scores"]["thalweg"]
    cells = dict(zip(head, rows[0], strict=True))
    assert cells["labels right"].startswith(f"{100 * ours['accuracy']:.1f} %")
    assert cells["spans, F1"].startswith(f"{ours['span_f1']:.3f}")


def test_mistakes_stand_in_their_context(run):
    folder, _ = run
    made = load_run(folder / "run")
    shown = _Shown(made)
    # One label is made wrong: it must be the first of the mistakes.
    place = int(shown.lengths[0]) - 1
    wrong = (shown.truth[place] + 1) % len(made.classes)
    shown.truth[place] = wrong
    shown.probabilities[place, wrong] = 0.0
    row = _mistakes_card(shown).rows[0]
    assert row[0] == shown.names[0]
    assert row[1] == str(place + 1)
    assert row[2].endswith(f"[{shown.X[0].word.iloc[-1]}]")
    assert row[3] == made.classes[wrong]
    assert row[4] == made.classes[shown.predicted[place]]


def test_short_and_long_sequences_have_their_own_shares_of_right_labels():
    """Elements without a label do not count; the bars are one standard error of a share."""
    rng = np.random.RandomState(0)
    lengths = rng.randint(2, 30, 80)
    of_elements = np.repeat(lengths, lengths)
    truth = rng.randint(-1, 3, len(of_elements))
    right = rng.uniform(size=len(truth)) < 1 / (1 + 0.05 * of_elements)
    predicted = np.where(right, truth.clip(0), (truth.clip(0) + 1) % 3)
    (bars,) = _lengths_card(SimpleNamespace(truth=truth, predicted=predicted, lengths=lengths)).figures[0].data
    assert len(bars.x) == 6
    assert sum(bars.customdata) == 80
    for name, share, error, n in zip(bars.x, bars.y, bars.error_y.array, bars.customdata, strict=True):
        low, high = int(name.split(" to ")[0]), int(name.split(" to ")[-1])
        own = right[(of_elements >= low) & (of_elements <= high) & (truth >= 0)]
        assert n == ((lengths >= low) & (lengths <= high)).sum()
        assert share == pytest.approx(own.mean())
        assert error == pytest.approx(np.sqrt(own.mean() * (1 - own.mean()) / len(own)))


def conll(table, path, extra=""):
    blocks = []
    for _, own in table.groupby("song", sort=False, observed=True):
        blocks.append("\n".join(f"{w}{extra} {t}" for w, t in zip(own.word, own.tag, strict=True)))
    path.write_text("-DOCSTART- -X- O\n\n" + "\n\n\n".join(blocks) + "\n")


def test_a_conll_file_is_learned_and_predicted(tmp_path):
    conll(sentences(), tmp_path / "songs.conll")
    thalweg("fit", "sequence", tmp_path / "songs.conll", "-o", tmp_path / "run", *SMALL, "--no-report")
    made = load_run(tmp_path / "run")
    assert made.figures["target"] == "column2"
    assert made.figures["inputs"] == ["column1"]
    assert made.figures["sequences"] == 60
    conll(sentences(8, seed=2), tmp_path / "new.bio")
    thalweg("predict", tmp_path / "run", tmp_path / "new.bio", "--out", tmp_path / "p.csv")
    found = read_table(tmp_path / "p.csv")
    assert found.sequence.nunique() == 8
    assert found.correct.astype(bool).mean() > 0.9


def test_a_conllu_file_has_its_own_names_and_lines(tmp_path):
    lines = ["# text = We'll go", "1-2\tWe'll" + "\t_" * 8]
    words = [("We", "PRON"), ("will", "AUX"), ("go", "VERB")]
    lines += [f"{i}\t{w}\t{w.lower()}\t{tag}" + "\t_" * 6 for i, (w, tag) in enumerate(words, 1)]
    lines.insert(4, "1.1\tnow" + "\t_" * 8)
    (tmp_path / "a.conllu").write_text("\n\n".join(["\n".join(lines)] * 12) + "\n")
    table = read_table(tmp_path / "a.conllu", text=["sequence"])
    assert table.FORM.tolist()[:3] == ["We", "will", "go"]
    assert table.sequence.nunique() == 12
    dropped = [
        part for name in ("ID", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC") for part in ("--drop", name)
    ]
    thalweg(
        "fit", "sequence", tmp_path / "a.conllu", "-t", "UPOS", *dropped, "-o", tmp_path / "run", *SMALL,
        "--no-report",
    )  # fmt: skip
    assert load_run(tmp_path / "run").classes == ["AUX", "PRON", "VERB"]


def test_labels_that_are_missing_are_left_open(tmp_path):
    table = sentences()
    table.loc[::3, "tag"] = None
    table.to_csv(tmp_path / "t.csv", index=False)
    done = thalweg(
        "fit", "sequence", tmp_path / "t.csv", "-s", "song", "-t", "tag", "-o", tmp_path / "run", *SMALL
    )
    n = int(table.tag.isna().sum())
    assert load_run(tmp_path / "run").figures["unlabelled_rows"] == n
    assert f"{n} of {len(table)} elements have no label" in done.err + done.out


@pytest.mark.slow
def test_an_interrupted_run_ends_the_same(tmp_path, monkeypatch):
    from thalweg.training.step import GradientStep

    sentences().to_csv(tmp_path / "t.csv", index=False)
    options = ("fit", "sequence", tmp_path / "t.csv", "-s", "song", "-t", "tag", *SMALL, "--no-report")
    thalweg(*options, "-o", tmp_path / "whole")
    calls, step = [], GradientStep.update

    def stop(*arguments):
        calls.append(1)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(GradientStep, "update", stop)
        thalweg(*options, "-o", tmp_path / "cut", code=130)
    thalweg("fit", "sequence", "--resume", "--out", tmp_path / "cut")
    ours, theirs = (load_run(tmp_path / name).model for name in ("cut", "whole"))
    np.testing.assert_allclose(ours.transitions_, theirs.transitions_)


def test_what_cannot_be_learned_is_refused(tmp_path):
    table = sentences(20)
    table.to_csv(tmp_path / "t.csv", index=False)
    table.assign(tag="O").to_csv(tmp_path / "same.csv", index=False)
    table.assign(song="one").to_csv(tmp_path / "single.csv", index=False)
    table[["song", "tag"]].to_csv(tmp_path / "bare.csv", index=False)
    holes = table.copy()
    holes.loc[3, "song"] = None
    holes.to_csv(tmp_path / "holes.csv", index=False)
    loose = table.copy()
    loose.loc[1, "tag"] = "I-LOC"
    loose.to_csv(tmp_path / "loose.csv", index=False)
    (tmp_path / "odd.conll").write_text("a b\nc\n")
    (tmp_path / "thin.conll").write_text("a\n\nb\n")
    fit, both = ("fit", "sequence"), ("-s", "song", "-t", "tag", "-o", tmp_path / "run")
    are_refused(
        [
            ((*fit, tmp_path / "t.csv", "-t", "tag"), 1, "--sequence COLUMN"),
            ((*fit, tmp_path / "t.csv", "-s", "song"), 1, "--target COLUMN"),
            ((*fit, tmp_path / "t.csv", "-s", "tag", "-t", "tag"), 1, "both the sequence and the target"),
            ((*fit, tmp_path / "t.csv", "-s", "verse", "-t", "tag"), 1, "verse"),
            ((*fit, tmp_path / "same.csv", *both), 1, "all elements have the label 'O'"),
            ((*fit, tmp_path / "single.csv", *both), 1, "1 sequence: at least 5 are needed"),
            ((*fit, tmp_path / "bare.csv", *both), 1, "no column left to predict from"),
            ((*fit, tmp_path / "holes.csv", *both), 1, "row 4 of holes.csv belongs to no sequence"),
            ((*fit, tmp_path / "loose.csv", *both, "--bio"), 1, "row 2 of loose.csv has 'I-LOC' after 'O'"),
            ((*fit, tmp_path / "odd.conll", "-o", tmp_path / "run"), 1, "line 2 has 1 columns"),
            ((*fit, tmp_path / "thin.conll", "-o", tmp_path / "run"), 1, "a token and its label"),
            ((*fit, tmp_path / "odd.conll", "-s", "x"), 1, "leave it out"),
            ((*fit, tmp_path / "t.csv", *both, "--order", 3), 1, "--order must be 1 or 2"),
        ]
    )
    assert not (tmp_path / "run").exists()


# -- figures -------------------------------------------------------------------------------------------------


def test_spans_are_those_of_conll():
    assert spans_of(["B-A", "I-A", "O", "B-B", "B-B", "I-B"]) == {(0, 2, "A"), (3, 4, "B"), (4, 6, "B")}
    # An inner tag that goes on nothing, or another kind, begins a span.
    assert spans_of(["I-A", "I-B", "I-B", "O"]) == {(0, 1, "A"), (1, 3, "B")}
    assert spans_of(["O", "O"]) == set()
    assert are_spans(["O", "B-A", "I-A"])
    assert not are_spans(["O", "N"])
    truth, predicted = [["B-A", "I-A", "O", "B-B"]], [["B-A", "O", "O", "B-B"]]
    # One span of two is right on either side.
    assert span_f1(truth, predicted) == pytest.approx(0.5)
    assert span_f1(truth, [["O"] * 4]) == 0.0


def test_the_error_of_a_mean_over_elements_is_that_of_drawing_sequences_again():
    rng = np.random.RandomState(0)

    def drawn():
        # Sequences have a level of their own, so that their elements are not independent.
        return [rng.standard_normal() + rng.standard_normal(rng.randint(2, 9)) for _ in range(80)]

    found = [mean_over_elements(drawn()) for _ in range(400)]
    spread = np.std([mean.value for mean in found])
    said = np.sqrt(np.mean([mean.error**2 for mean in found]))
    assert said == pytest.approx(spread, rel=4 / np.sqrt(2 * 400) + 0.05)


@pytest.mark.parametrize(("lengths", "bars"), [([4, 4, 4], ["4"]), ([4, 5, 5], ["4", "5"]), ([1], ["1"])])
def test_few_lengths_have_a_bar_each(lengths, bars):
    truth = np.zeros(sum(lengths), int)
    shown = SimpleNamespace(truth=truth, predicted=truth, lengths=np.array(lengths))
    (drawn,) = _lengths_card(shown).figures[0].data
    assert list(drawn.x) == bars
    assert list(drawn.y) == [1.0] * len(bars)


@pytest.mark.parametrize("length", [1, 4])
def test_the_error_of_a_mean_over_few_sequences_of_one_length_is_that_of_their_means(length):
    values = np.random.RandomState(0).standard_normal((5, length))
    found = mean_over_elements(list(values))
    assert found.value == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.mean(1).std(ddof=1) / np.sqrt(5))


def test_the_second_baseline_uses_the_neighbours():
    rng = np.random.RandomState(0)

    def drawn(n):
        states = [np.cumsum(rng.uniform(size=30) < 0.1) % 2 for _ in range(n)]
        return [(own + rng.standard_normal(30))[:, None].astype(np.float32) for own in states], states

    (rows, labels), (new, truth) = drawn(60), drawn(60)
    found = []
    for kind in (ElementLogistic, LogisticWithTransitions):
        baseline = kind(1, 0).fit(rows, labels, 2)
        log_probs, predicted = baseline.log_prob(new), baseline.labels(new)
        np.testing.assert_allclose(np.exp(np.concatenate(log_probs)).sum(1), 1.0)
        found.append(np.mean(np.concatenate(predicted) == np.concatenate(truth)))
    assert found[1] > found[0] + 0.05


def test_probabilities_are_put_into_the_order_of_the_run(run):
    folder, _ = run
    model = load_run(folder / "run").model
    p = np.arange(8.0).reshape(2, 4)
    turned = ["O", "other", *[c for c in model.classes_ if c != "O"]]
    found = in_order_of(model, turned, p)
    assert (found[:, 0] == p[:, model.classes_.tolist().index("O")]).all()
    assert (found[:, 1] == 0).all()
    assert found.shape == (2, 5)


def test_the_settings_know_a_conll_file():
    assert SequenceSettings(data="a.conll").is_conll
    assert SequenceSettings(data="words.csv", sequence=["s"], target=["t"]).default_folder.name == "words-t"


def test_where_elements_have_no_texts_their_true_labels_are_the_context(tmp_path):
    table = sentences()[["song", "size", "tag"]]
    table.to_csv(tmp_path / "t.csv", index=False)
    options = ("-s", "song", "-t", "tag", "-o", tmp_path / "run", *SMALL, "--no-report")
    thalweg("fit", "sequence", tmp_path / "t.csv", *options)
    shown = _Shown(load_run(tmp_path / "run"))
    assert shown.context is None
    first = [shown.cell(0, t) for t in range(shown.lengths[0])]
    assert first == [shown.run.classes[k] for k in shown.truth[: shown.lengths[0]]]
    assert shown.cell(1, 0) == shown.run.classes[shown.truth[shown.lengths[0]]]
