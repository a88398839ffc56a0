"""EnergySequenceTagger: what it answers is that of its chains, in every form of sequence; bad input is refused."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from thalweg import EnergySequenceTagger
from thalweg.data.sequences import ElementEncoder, TokenFeatures, features_of, word_shape
from thalweg.estimators._sequences import HeldOutSequences, padded
from thalweg.objectives.names import ANSWERS
from thalweg.training.step import GradientStep

QUICK = {"max_epochs": 8, "hidden": (32,), "batch_size": 16, "learning_rate": 5e-3, "random_state": 0}
# Words of a little language: an article is followed by a noun, a noun by a verb; "play" is both.
WORDS = {"D": ["the", "a"], "N": ["dog", "cat", "play", "park"], "V": ["barks", "sleeps", "play", "runs"]}


def sentences(n: int, seed: int = 0) -> tuple[list[list[str]], list[list[str]]]:
    rng = np.random.RandomState(seed)
    X, y = [], []
    for _ in range(n):
        labels = ["D", "N", "V"] * int(rng.randint(1, 4))
        labels = labels[: len(labels) - int(rng.randint(2))] or ["D"]
        X.append([WORDS[label][rng.randint(len(WORDS[label]))] for label in labels])
        y.append(labels)
    return X, y


def numbers(n: int, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Two states that stay as they are for a while, and a noisy number that tells them apart."""
    rng = np.random.RandomState(seed)
    X, y = [], []
    for _ in range(n):
        length = int(rng.randint(3, 15))
        states = np.cumsum(rng.uniform(size=length) < 0.15) % 2
        X.append(np.stack([states + 0.8 * rng.standard_normal(length), rng.standard_normal(length)], 1))
        y.append(states)
    return X, y


@pytest.fixture(scope="module")
def words_model() -> EnergySequenceTagger:
    return EnergySequenceTagger(**QUICK).fit(*sentences(120))


def test_a_word_with_two_meanings_is_told_by_its_place(words_model: EnergySequenceTagger):
    found = words_model.predict([["the", "play", "runs"], ["a", "dog", "play"]])
    assert [own.tolist() for own in found] == [["D", "N", "V"], ["D", "N", "V"]]
    X, y = sentences(50, seed=1)
    assert words_model.score(X, y) == pytest.approx(1.0)


def test_states_that_last_are_found_better_than_element_by_element():
    X, y = numbers(200)
    model = EnergySequenceTagger(max_epochs=15, hidden=(32,), batch_size=16, random_state=0).fit(X, y)
    V, w = numbers(200, seed=1)
    alone = np.mean(np.concatenate([own[:, 0] > 0.5 for own in V]) == np.concatenate(w))
    assert model.score(V, w) > alone + 0.05
    p = np.concatenate(model.predict_marginals(V))[:, 1]
    truth = np.concatenate(w)
    # Elements that are said to be of state 1 with probability p are so in that share of cases.
    for low, high in itertools.pairwise([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]):
        inside = (p >= low) & (p < high)
        error = np.sqrt(0.25 / max(1, inside.sum()))
        assert abs(p[inside].mean() - truth[inside].mean()) < 4 * error + 0.05


def test_answers_agree_with_one_another(words_model: EnergySequenceTagger):
    X = [["the", "play", "play"], ["dog"]]
    best = words_model.predict_best(X, k=40)
    predicted, marginals = words_model.predict(X), words_model.predict_marginals(X)
    assert [len(found) for found in best] == [27, 3]
    for found, own, p in zip(best, predicted, marginals, strict=True):
        assert found[0].labels.tolist() == own.tolist()
        log_probs = np.array([tagged.log_prob for tagged in found])
        assert (np.diff(log_probs) <= 1e-6).all()
        weights = np.exp(log_probs)
        assert weights.sum() == pytest.approx(1.0, abs=1e-4)
        for t, k in itertools.product(range(len(own)), range(3)):
            has = [tagged.labels[t] == words_model.classes_[k] for tagged in found]
            assert p[t, k] == pytest.approx(weights[has].sum(), abs=1e-4)
    truth = [["D", "N", None], ["N"]]
    agreeing = sum(np.exp(tagged.log_prob) for tagged in best[0] if tagged.labels[:2].tolist() == ["D", "N"])
    found = words_model.log_prob(X, truth)
    assert np.exp(found[0]) == pytest.approx(agreeing, abs=1e-4)
    drawn = words_model.predict_samples(X, n_samples=2000, random_state=0)[0]
    assert drawn.shape == (2000, 3)
    share = np.mean((drawn == best[0][0].labels).all(1))
    p = float(np.exp(best[0][0].log_prob))
    assert share == pytest.approx(p, abs=5 * np.sqrt(p * (1 - p) / 2000) + 1e-3)


# The energy loss has a test of its own; LVQ2 is for energies above 0, and refines what another loss has begun.
@pytest.mark.slow
@pytest.mark.parametrize("objective", [name for name in ANSWERS if name not in ("energy", "lvq2")])
def test_every_objective_learns(objective: str):
    X, y = sentences(100)
    model = EnergySequenceTagger(objective, **{**QUICK, "max_epochs": 12}).fit(X, y)
    assert model.score(X, y) > 0.95
    assert model.verdict_.state != "failed"


def test_a_model_that_is_worse_than_the_most_frequent_label_fails():
    X, y = sentences(60)
    model = EnergySequenceTagger(**QUICK).fit(X, y)
    rows, places = model.encoder_.transform(X), [np.array(["DNV".index(v) for v in own]) for own in y]
    x, targets = padded(rows, np.nan), padded(places, -1)
    judge = HeldOutSequences(x, targets, np.arange(60), torch.ones(60), by_errors=True)
    assert model._check_labels(targets, model._share_wrong(judge)).state == "passed"
    with torch.no_grad():
        for weight in (*model.energy_.network.out.parameters(), model.energy_.transitions, model.energy_.start):
            weight.neg_()
    found = model._check_labels(targets, model._share_wrong(judge))
    assert found.state == "failed"
    assert "most frequent label is right in" in found.text
    # Between the two lies a model that is level.
    everywhere = torch.zeros_like(model.energy_.network.out.bias)
    everywhere[np.bincount(np.concatenate(places)).argmax()] = -50.0
    with torch.no_grad():
        model.energy_.network.out.weight.zero_()
        model.energy_.network.out.bias.copy_(everywhere)
    assert model._check_labels(targets, model._share_wrong(judge)).state == "doubtful"


@pytest.mark.parametrize("by_errors", [True, False])
def test_the_held_out_figure_of_sequences_counts_their_weights(words_model: EnergySequenceTagger, by_errors: bool):
    """Per element whose label is known, those of a sequence of weight 3 three times over."""
    X, y = sentences(12, seed=2)
    places = [np.array(["DNV".index(v) for v in own]) for own in y]
    for own in places[:6]:
        own[0] = -1
    for own in places[3:9]:
        own[-1] = (own[-1] + 1) % 3 if own[-1] >= 0 else -1
    weight = torch.tensor([1.0, 3.0, 0.5] * 4)
    x, targets = padded(words_model.encoder_.transform(X), np.nan), padded(places, -1)
    figure = HeldOutSequences(x, targets, np.arange(12), weight, by_errors)
    with torch.no_grad():
        found = float(figure(words_model.energy_))
        each = [
            HeldOutSequences(x, targets, np.array([i]), torch.ones(12), by_errors)(words_model.energy_)
            for i in range(12)
        ]
    known = np.array([(own >= 0).sum() for own in places])
    shares = weight.numpy() * known
    assert found == pytest.approx(np.average([float(v) for v in each], weights=shares), rel=1e-5)
    assert found > 0.03


def held_out(model: EnergySequenceTagger, X: list, y: list) -> tuple[torch.Tensor, torch.Tensor]:
    return padded(model.encoder_.transform(X), np.nan), padded([np.asarray(own) for own in y], -1)


def test_a_temperature_mends_energies_that_are_too_far_apart():
    X, y = numbers(120)
    model = EnergySequenceTagger(**{**QUICK, "max_epochs": 12}).fit(X, y)
    x, targets = held_out(model, *numbers(300, seed=2))
    model._calibrate(x, targets, 0.1)
    plain = model.temperature_.value
    with torch.no_grad():
        chain = model.energy_
        for weight in (*chain.network.out.parameters(), chain.transitions, chain.start, chain.end):
            weight *= 5
    model._calibrate(x, targets, 0.1)
    # The temperatures that are tried are a fifth apart.
    assert model.temperature_.value == pytest.approx(5 * plain, rel=0.25)
    assert model.temperature_.applied
    assert model.temperature_.nll_after < model.temperature_.nll_before - 0.1


def test_a_few_sequences_without_a_mistake_do_not_make_a_model_sure_of_itself():
    """A colder temperature looks better wherever all is right by chance, and is surely wrong elsewhere."""
    X, y = sentences(60)
    model = EnergySequenceTagger(**{**QUICK, "max_epochs": 12}).fit(X, y)
    assert model.score(X, y) == 1.0
    assert model.temperature_.value == 1.0
    # Nor does one mistake in one half of them, by which the temperature of the other half is judged.
    x, targets = held_out(model, X[:8], [np.array(["DNV".index(v) for v in own]) for own in y[:8]])
    targets[0, 0] = (targets[0, 0] + 1) % 3
    model._calibrate(x, targets, 0.02)
    assert model.temperature_.value >= 1.0


@pytest.mark.parametrize("form", ["tokens", "numbers", "frames"])
def test_a_saved_model_gives_the_same_answers(form: str, tmp_path):
    X, y = numbers(60) if form == "numbers" else sentences(60)
    if form == "frames":
        X = [pd.DataFrame({"word": own, "length": [len(w) for w in own], "odd": "x"}) for own in X]
    model = EnergySequenceTagger(order=2, **QUICK).fit(X, y)
    model.save(tmp_path / "model")
    again = EnergySequenceTagger.load(tmp_path / "model")
    for ours, theirs in zip(model.predict_marginals(X), again.predict_marginals(X), strict=True):
        np.testing.assert_allclose(ours, theirs)
    assert [own.tolist() for own in again.predict(X)] == [own.tolist() for own in model.predict(X)]
    assert again.classes_.tolist() == model.classes_.tolist()
    assert again.temperature_.value == model.temperature_.value


def test_an_interrupted_training_ends_the_same(tmp_path, monkeypatch: pytest.MonkeyPatch):
    X, y = sentences(60)
    whole = EnergySequenceTagger(**QUICK).fit(X, y)
    calls = []

    def stop(*arguments: object) -> float:
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return step(*arguments)

    step = GradientStep.update
    with monkeypatch.context() as patch:
        patch.setattr(GradientStep, "update", stop)
        with pytest.raises(KeyboardInterrupt):
            EnergySequenceTagger(**QUICK).fit(X, y, run_dir=tmp_path, checkpoint_seconds=0.0)
    resumed = EnergySequenceTagger(**QUICK).fit(X, y, run_dir=tmp_path, resume=True, checkpoint_seconds=0.0)
    np.testing.assert_allclose(resumed.transitions_, whole.transitions_)
    assert len(resumed.history_.epochs) == len(whole.history_.epochs)


def test_a_frame_with_tokens_numbers_and_categories_is_learned():
    X, y = sentences(100)
    frames = [
        pd.DataFrame(
            {
                "word": [f"{w}{i % 40}" for i, w in enumerate(own)],
                "size": [float(len(w)) for w in own],
                "first": [t == 0 for t in range(len(own))],
            }
        )
        for own in X
    ]
    model = EnergySequenceTagger(**{**QUICK, "max_epochs": 15}).fit(frames, y)
    assert model.score(frames, y) > 0.9
    # Columns may come in another order.
    turned = [frame[["first", "size", "word"]] for frame in frames]
    assert [own.tolist() for own in model.predict(turned)] == [own.tolist() for own in model.predict(frames)]


def test_labels_that_are_unknown_are_left_open():
    X, y = sentences(100)
    rng = np.random.RandomState(0)
    partial = [[label if rng.uniform() < 0.4 else None for label in own] for own in y]
    settings = {**QUICK, "max_epochs": 12, "batch_size": 20, "learning_rate": 5e-3}
    model = EnergySequenceTagger(**settings).fit(X, partial)
    assert model.score(X, y) > 0.95
    assert model.score(X, partial) > 0.95
    numbered = [np.array([-1 if label is None else "DNV".index(label) for label in own]) for own in partial]
    same = EnergySequenceTagger(**settings).fit(X, numbered)
    assert same.classes_.tolist() == [0, 1, 2]
    expected = [["DNV".index(label) for label in own] for own in model.predict(X)]
    assert [own.tolist() for own in same.predict(X)] == expected


def test_forbidden_transitions_never_occur():
    X, y = sentences(120)
    rng = np.random.RandomState(1)
    nonsense = [[str(rng.choice(["the", "play", "barks"])) for _ in range(6)] for _ in range(50)]
    model = EnergySequenceTagger(forbidden=[("D", "V"), ("D", "D"), (None, "V"), ("N", None)], **QUICK)
    with pytest.raises(ValueError, match="ends with 'N', which is forbidden"):
        model.fit(X, y)
    model = clone(model).set_params(forbidden=[("D", "V"), ("D", "D"), (None, "V")]).fit(X, y)
    for own in [*model.predict(nonsense), *model.predict_samples(nonsense[:1], n_samples=200, random_state=0)[0]]:
        assert own[0] != "V"
        assert ("D", "V") not in set(itertools.pairwise(own.tolist()))
        assert ("D", "D") not in set(itertools.pairwise(own.tolist()))
    assert np.isinf(model.transitions_[0, 2])
    assert np.isinf(model.log_prob([["the", "play"]], [["D", "V"]])[0])


def test_inner_tags_follow_their_beginning():
    rng = np.random.RandomState(0)
    X, y = [], []
    for _ in range(80):
        X.append(["in", "New", "York", "and", "Rome"] if rng.uniform() < 0.5 else ["to", "Old", "Delhi", "go"])
        y.append(["O", "B-L", "I-L", "O", "B-L"] if len(X[-1]) == 5 else ["O", "B-L", "I-L", "O"])
    model = EnergySequenceTagger(forbidden="bio", **QUICK).fit(X, y)
    odd = [["York", "York", "in", "Delhi", "Delhi"]] * 3
    for own in [*model.predict(odd), *model.predict_samples(odd[:1], n_samples=300, random_state=0)[0]]:
        for before, after in itertools.pairwise(["O", *own]):
            assert after != "I-L" or before in ("B-L", "I-L")


def test_a_sequence_of_weight_zero_does_not_count():
    X, y = sentences(60)
    wrong = [["N", "D", "D", "D", "D", "D", "D", "D", "D"][: len(own)] for own in y]
    weight = np.r_[np.ones(60), np.zeros(60)]
    weighted = EnergySequenceTagger(**QUICK).fit(X + X, y + wrong, sample_weight=weight)
    plain = EnergySequenceTagger(**QUICK).fit(X, y)
    np.testing.assert_allclose(weighted.transitions_, plain.transitions_)


def test_a_grid_search_and_a_clone_work():
    X, y = sentences(40)
    model = EnergySequenceTagger(**{**QUICK, "max_epochs": 2})
    search = GridSearchCV(model, {"order": [1, 2]}, cv=2).fit(X, y)
    assert search.best_params_["order"] in (1, 2)
    assert clone(model).get_params() == model.get_params()


def test_the_features_of_a_token():
    assert word_shape("McGraw-2001") == "XxXxx-dd"
    assert word_shape("Élan") == "Xxx"
    rows = features_of(["The", "U.S.", "grew"])
    assert len({len(row) for row in rows}) == 1
    assert "w=the" in rows[0]
    assert "w-1=<before>" in rows[0]
    assert "shape=X.X." in rows[1]
    assert "s3=rew" in rows[2]
    assert "w+1=<after>" in rows[2]


def test_an_element_is_encoded_alone_as_among_others():
    X, _ = sentences(30)
    encoder = ElementEncoder().fit(X)
    together = encoder.transform(X)
    for own, rows in zip(X[:5], together[:5], strict=True):
        np.testing.assert_array_equal(encoder.transform([own])[0], rows)
    assert max(rows.max() for rows in together) == encoder.n_vocabulary
    new = encoder.transform([["zzz"]])[0]
    assert new.shape == (1, encoder.n_features)
    assert (new == 0).any()


def test_of_many_tokens_a_feature_is_kept_that_two_of_them_have():
    often = [["the"] * 20 for _ in range(110)]
    kept = TokenFeatures().fit([*often, ["uvwxyz", "uvwxyz"], ["ghijkl"]]).places
    assert "w=uvwxyz" in kept
    assert "w=ghijkl" not in kept
    # Of few all are.
    assert "w=ghijkl" in TokenFeatures().fit([*often[:10], ["ghijkl"]]).places


def test_two_columns_of_tokens_have_places_of_their_own_and_what_is_new_has_none():
    rng = np.random.RandomState(0)
    words = [f"{a}{b}" for a in "abcdefg" for b in "uvwxyz"]
    frames = [pd.DataFrame({c: rng.choice(words, 20) for c in ("one", "two")}) for _ in range(10)]
    encoder = ElementEncoder().fit(frames)
    assert list(encoder.tokens) == ["one", "two"]
    n, n_first = encoder.n_features // 2, len(encoder.tokens["one"].places)
    found = np.concatenate(encoder.transform(frames))
    assert (found[:, :n] > 0).all()
    assert found[:, :n].max() == n_first
    assert found[:, n:].min() == n_first + 1
    assert found.max() == encoder.n_vocabulary
    new = encoder.transform([pd.DataFrame({"one": ["QQQ999"], "two": ["QQQ999"]})])[0]
    # Alone and unknown, it has nothing in common with any but the ends of the sequence beside it.
    names = features_of(["QQQ999"])[0]
    for column, own in (("one", new[0, :n]), ("two", new[0, n:])):
        known = [name in encoder.tokens[column].places for name in names]
        np.testing.assert_array_equal(own > 0, known)
        assert 0 < sum(known) < n


BAD = {
    "labels of another length": (lambda X, y: (X, [y[0][:-1], *y[1:]]), "sequence 0 has . elements and . labels"),
    "labels for fewer sequences": (lambda X, y: (X, y[:-1]), "10 sequences and labels for 9"),
    "an empty sequence": (lambda X, y: ([*X[:3], []], [*y[:3], []]), "sequence 3 is empty"),
    "no sequences": (lambda X, y: ([], []), "holds no sequences"),
    "one label": (lambda X, y: (X, [["N"] * len(own) for own in y]), "all elements have the label 'N'"),
    "no label": (lambda X, y: (X, [[None] * len(own) for own in y]), "no element has a label"),
    "mixed labels": (lambda X, y: (X, [[1, *own[1:]] for own in y]), "mix texts and numbers"),
    "fractions": (lambda X, y: (X, [[0.5] * len(own) for own in y]), "texts or whole numbers"),
    "a text for a sequence": (lambda X, y: (["the dog"] * 10, y), "cut into tokens first"),
    "a mixture": (lambda X, y: ([*X[:-1], np.zeros((len(y[-1]), 2))], y), "sequence 9 is of rows of numbers"),
    "an odd token": (lambda X, y: ([[X[0][0], 5, *X[0][2:]], *X[1:]], y), "element 1 of sequence 0 is 5"),
    "a frame": (lambda X, y: (pd.DataFrame({"a": [1]}), y), "list of sequences"),
    "flat numbers": (lambda X, y: ([np.zeros(len(own)) for own in y], y), r"make it \[elements, 1\]"),
    "gaps": (lambda X, y: ([np.full((len(own), 1), np.nan) for own in y], y), "element 0 of sequence 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_words(name: str):
    make, words = BAD[name]
    X, y = sentences(10)
    X[0], y[0] = ["the", "dog", "barks"], ["D", "N", "V"]
    with pytest.raises(ValueError, match=words):
        EnergySequenceTagger(**QUICK).fit(*make(X, y))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "crf"}, "objective must be one of likelihood, perceptron"),
        ({"order": 3}, "order must be 1 or 2"),
        ({"forbidden": [("D", "X")]}, "names the label 'X', which does not occur"),
        ({"forbidden": "bilou"}, "pairs of labels or 'bio'"),
        ({"forbidden": [(None, None)]}, "None and None"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"validation_fraction": 0}, "validation_fraction must be"),
        ({"n_context": -1}, "n_context must be"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict, words: str):
    with pytest.raises(ValueError, match=words):
        EnergySequenceTagger(**{**QUICK, **settings}).fit(*sentences(10))


def test_what_the_training_had_not_is_refused_or_wrong(words_model: EnergySequenceTagger):
    with pytest.raises(ValueError, match="label 'X', which no training sequence had"):
        words_model.log_prob([["the"]], [["X"]])
    # In a score it is a mistake.
    assert words_model.score([["the", "dog"]], [["D", "X"]]) == 0.5
    with pytest.raises(ValueError, match="tokens are expected"):
        words_model.predict([np.zeros((3, 2))])
    with pytest.raises(ValueError, match="k must be"):
        words_model.predict_best([["the"]], k=0)
    model = EnergySequenceTagger(**{**QUICK, "max_epochs": 1}).fit(*numbers(20))
    with pytest.raises(ValueError, match=r"elements of shape \[3\], and \[2\] is expected"):
        model.predict([np.zeros((4, 3))])


def test_one_very_long_sequence_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("thalweg.estimators.sequence._MOST_NUMBERS", 1000)
    X, y = numbers(40)
    X.append(np.concatenate([X[0]] * 50))
    y.append(np.concatenate([y[0]] * 50))
    model = EnergySequenceTagger(**{**QUICK, "max_epochs": 2}).fit(X, y)
    rows = model.encoder_.transform(X)
    x, targets, _ = model._training_set(rows, [np.asarray(own) for own in y], np.ones(41), np.arange(41))
    assert x.shape[1] < 100
    assert int((targets >= 0).sum()) == sum(map(len, y))
    assert len(model.predict(X)[-1]) == len(y[-1])
