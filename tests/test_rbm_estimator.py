"""RestrictedBoltzmannMachine: in BernoulliRBM's place, with likelihoods, draws and gaps filled."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import BernoulliRBM
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from thalweg import RestrictedBoltzmannMachine
from thalweg.data.states import StateEncoder
from thalweg.energies import Binary, Categorical, Gaussian, RBMEnergy
from thalweg.energies.machines.layered import binary_states
from thalweg.evaluation.density_baselines import BernoulliMixture

RAW = load_digits()
ORDER = np.random.RandomState(0).permutation(len(RAW.target))
ROWS, LABELS = (RAW.data[ORDER] > 7).astype(float), RAW.target[ORDER]
TRAIN, TEST = ROWS[:1400], ROWS[1400:]


@parametrize_with_checks(
    [
        RestrictedBoltzmannMachine(8, max_epochs=3, random_state=0),
        RestrictedBoltzmannMachine(8, visible="gaussian", max_epochs=3, persistent=False, random_state=0),
    ]
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def small() -> RestrictedBoltzmannMachine:
    return RestrictedBoltzmannMachine(16, n_temperatures=1, random_state=0).fit(TRAIN)


@pytest.fixture(scope="module")
def large() -> RestrictedBoltzmannMachine:
    return RestrictedBoltzmannMachine(64, n_temperatures=1, random_state=0).fit(TRAIN)


# -- likelihood -----------------------------------------------------------------------------------------


def test_the_likelihood_of_digits_is_exact_with_few_hidden_units(small):
    found = small.log_likelihood(TEST)
    assert found.mean > -18.9
    assert found.lower == found.mean == found.upper
    assert found.mean == pytest.approx(small.score_samples(TEST).mean())
    assert small.log_normaliser_error_ == 0
    assert small.score(TEST) == pytest.approx(found.mean * len(TEST))
    assert found.standard_error == pytest.approx(small.score_samples(TEST).std(ddof=1) / len(TEST) ** 0.5)


def test_with_many_it_is_between_bounds_and_higher(small, large):
    found = large.log_likelihood(TEST)
    assert found.lower < found.mean < found.upper < found.lower + 0.3
    assert found.lower > small.log_likelihood(TEST).mean + 0.3
    assert 0 < large.log_normaliser_error_ < 0.15


@pytest.mark.parametrize("kind", ["binary", "categorical"])
def test_probabilities_sum_to_one(kind):
    rng = np.random.RandomState(0)
    if kind == "binary":
        X = (rng.uniform(size=(200, 6)) < 0.3).astype(float)
        everything = next(binary_states(6, torch.zeros(()))).double().numpy()
    else:
        # Columns with different numbers of categories.
        X = np.stack([rng.randint(0, k, 200) for k in (2, 3, 4)], 1).astype(float)
        everything = np.stack(np.meshgrid(range(2), range(3), range(4)), -1).reshape(-1, 3).astype(float)
    model = RestrictedBoltzmannMachine(5, visible=kind, max_epochs=30, random_state=0).fit(X)
    assert np.exp(model.score_samples(everything)).sum() == pytest.approx(1.0)


def test_a_gaussian_density_integrates_to_one_in_the_columns_own_units():
    rng = np.random.RandomState(0)
    X = 100 + 20 * rng.randn(300, 1) * rng.choice([0.3, 1], (300, 1))
    model = RestrictedBoltzmannMachine(3, max_epochs=30, random_state=0).fit(X)
    grid = np.linspace(-200, 400, 20_001)[:, None]
    assert np.exp(model.score_samples(grid)).sum() * (grid[1, 0] - grid[0, 0]) == pytest.approx(1.0)


@pytest.mark.slow
def test_gaussian_units_recover_a_known_machine():
    torch.manual_seed(1)
    truth = RBMEnergy(Gaussian(6), 3)
    std = torch.tensor([0.5, 0.75, 1.0, 1.35, 1.65, 0.6])
    truth.visible.log_std.data = std.log()
    weight, bias = 1.5 * torch.randn(6, 3) * std.unsqueeze(1), torch.randn(6)
    truth.weights[0].data, truth.biases[0].data = weight, bias
    # All states of the hidden units about as likely as each other.
    change = ((bias.unsqueeze(1) + weight) ** 2 - bias.unsqueeze(1) ** 2) / std.unsqueeze(1) ** 2
    truth.biases[1].data = -0.5 * change.sum(0)
    hidden = next(binary_states(3, bias))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        distribution = torch.softmax(-truth.summed_out([None, hidden], 0), 0)
        h = hidden[torch.multinomial(distribution, 4000, True, generator=generator)]
        rows = truth.visible.sample(truth.field([None, h], 0), generator)
        wanted = float((-truth(rows[3000:])).mean() - truth.log_normaliser())
    X = rows.double().numpy()
    model = RestrictedBoltzmannMachine(3, learning_rate=0.2, max_epochs=400, random_state=0).fit(X[:1500])
    assert model.encoder_.kind == "gaussian"
    assert model.log_likelihood(X[3000:]).mean > wanted - 0.08
    learned = model.energy_.visible.std.detach().numpy() * model.encoder_.scale
    np.testing.assert_allclose(learned, std, rtol=0.12)


# -- in BernoulliRBM's place ----------------------------------------------------------------------------


def test_features_help_a_classifier_as_bernoulli_rbms_do():
    scores = []
    for model in (
        RestrictedBoltzmannMachine(64, n_temperatures=1, random_state=0),
        BernoulliRBM(64, learning_rate=0.06, n_iter=10, random_state=0),
    ):
        pipeline = make_pipeline(model, LogisticRegression(max_iter=500)).fit(TRAIN, LABELS[:1400])
        scores.append(pipeline.score(TEST, LABELS[1400:]))
    assert scores[0] > 0.9
    assert scores[0] > scores[1] - 0.02


def test_it_has_what_bernoulli_rbm_has(small):
    peer = BernoulliRBM(16, n_iter=1, random_state=0).fit(TRAIN)
    for name in ("components_", "intercept_visible_", "intercept_hidden_"):
        assert getattr(small, name).shape == getattr(peer, name).shape
    assert small.gibbs(TEST, random_state=0).shape == peer.gibbs(TEST).shape
    assert set(np.unique(small.gibbs(TEST))) == {0.0, 1.0}
    wanted = 1 / (1 + np.exp(-(TEST @ small.components_.T + small.intercept_hidden_)))
    np.testing.assert_allclose(small.transform(TEST), wanted, rtol=1e-5)
    assert small.transform(TEST.astype(np.float32)).dtype == np.float32
    assert list(small.get_feature_names_out())[:1] == ["restrictedboltzmannmachine0"]
    free = -TEST @ small.intercept_visible_ - np.logaddexp(
        0, TEST @ small.components_.T + small.intercept_hidden_
    ).sum(1)
    np.testing.assert_allclose(small.free_energy(TEST), free, rtol=1e-5)


def test_partial_fit_learns_on_from_call_to_call():
    model = RestrictedBoltzmannMachine(16, learning_rate=0.1, random_state=0)
    figures = []
    for epoch in range(20):
        for piece in np.array_split(TRAIN, 4):
            model.partial_fit(piece)
        if epoch in (0, 19):
            figures.append(model.log_likelihood(TEST).mean)
    assert figures[1] > figures[0] + 2
    assert len(model.history_.epochs) == 80
    # Over sixty seeds the figure is -22.6 on average, with a standard deviation of 0.35.
    assert figures[1] > -23.7
    with pytest.raises(ValueError, match="64 features"):
        model.partial_fit(TRAIN[:, :5])
    model.partial_fit(0.5 * TRAIN[:100])  # grey rows may come later


def test_grey_values_are_taken_as_probabilities():
    grey = RAW.data[ORDER] / 16
    model = RestrictedBoltzmannMachine(16, max_epochs=40, random_state=0).fit(grey[:1400])
    assert model.encoder_.kind == "binary"
    assert model.encoder_.grey
    rng = np.random.RandomState(0)
    drawn = np.mean(
        [model.score_samples((rng.uniform(size=grey[1400:].shape) < grey[1400:]) * 1.0).mean() for _ in range(20)]
    )
    # Jensen: the free energy at the mean bounds the mean.
    assert model.score_samples(grey[1400:]).mean() < drawn
    alone = grey[:1400].mean(0).clip(1e-3, 1 - 1e-3)
    independent = (grey[1400:] * np.log(alone) + (1 - grey[1400:]) * np.log(1 - alone)).sum(1).mean()
    assert drawn > independent + 2


def test_it_repeats_itself_and_can_be_cloned(small):
    again = clone(small).fit(TRAIN)
    np.testing.assert_array_equal(again.components_, small.components_)
    other = clone(small).set_params(random_state=1).fit(TRAIN)
    assert not np.array_equal(other.components_, small.components_)


def test_tempered_chains_go_on_from_call_to_call_and_from_file(tmp_path):
    table = pd.DataFrame({"a": np.repeat(["x", "y", "z"], 40), "b": np.repeat([1, 2, 3], 40)}).astype(object)
    model = RestrictedBoltzmannMachine(24, n_temperatures=4, max_epochs=5, random_state=0).fit(table)
    assert [x.shape for x in model.chains_] == [(4, 64, 4), (4, 64, 24)]
    assert 0 < model.history_.epochs[-1]["swaps"] < 1
    model.save(tmp_path / "model")
    loaded = RestrictedBoltzmannMachine.load(tmp_path / "model")
    for a, b in zip(loaded.chains_, model.chains_, strict=True):
        assert torch.equal(a, b)
    np.testing.assert_allclose(
        loaded.partial_fit(table).components_, model.partial_fit(table).components_, atol=1e-5
    )
    wide = RestrictedBoltzmannMachine(24, n_temperatures=4, max_epochs=2, random_state=0).fit(TRAIN)
    assert 0 < wide.log_normaliser_error_ < 1
    with pytest.raises(ValueError, match="n_temperatures must be"):
        RestrictedBoltzmannMachine(4, n_temperatures=0).fit(TRAIN)


# -- draws and gaps ---------------------------------------------------------------------------------------


def test_draws_have_the_distribution_of_the_machine():
    rng = np.random.RandomState(0)
    kind = rng.uniform(size=(2000, 1)) < 0.3
    X = (rng.uniform(size=(2000, 6)) < np.where(kind, 0.9, 0.1)).astype(float)
    model = RestrictedBoltzmannMachine(2, random_state=0).fit(X)
    states = next(binary_states(6, torch.zeros(()))).double().numpy()
    distribution = np.exp(model.score_samples(states))
    n = 5000
    drawn = model.sample(n, random_state=0)
    shares = (drawn[:, None] == states).all(-1).mean(0)
    # Draws that were resampled from one set of chains are a little correlated.
    assert (np.abs(shares - distribution) < 6 * np.sqrt(distribution / n) + 1e-3).all()
    np.testing.assert_array_equal(drawn, model.sample(n, random_state=0))


def test_gaps_are_filled_with_the_conditional():
    rng = np.random.RandomState(0)
    kind = rng.uniform(size=(2000, 1)) < 0.3
    X = (rng.uniform(size=(2000, 6)) < np.where(kind, 0.9, 0.1)).astype(float)
    model = RestrictedBoltzmannMachine(2, random_state=0).fit(X)
    states = next(binary_states(6, torch.zeros(()))).double().numpy()
    distribution = np.exp(model.score_samples(states))
    gaps = X[:40].copy()
    gaps[:, :2] = np.nan
    filled = model.impute(gaps, n_chains=200, random_state=0)
    np.testing.assert_array_equal(filled[:, 2:], X[:40, 2:])
    for row, found in zip(X[:40], filled, strict=True):
        fits = (states[:, 2:] == row[2:]).all(1)
        np.testing.assert_allclose(
            found[:2], distribution[fits] @ states[fits, :2] / distribution[fits].sum(), atol=0.03
        )
    drawn = model.impute(gaps, n_draws=400, random_state=0)
    assert drawn.shape == (400, 40, 6)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    np.testing.assert_allclose(drawn.mean(0)[:, :2], filled[:, :2], atol=4 * 0.5 / 20 + 0.03)


def test_hidden_pixels_are_filled_better_than_by_the_columns_means(large):
    gaps = TEST[:100].copy()
    hidden = np.random.RandomState(0).uniform(size=gaps.shape) < 0.3
    gaps[hidden] = np.nan
    filled = large.impute(gaps, n_chains=8, n_steps=60, random_state=0)
    means = np.broadcast_to(TRAIN.mean(0), gaps.shape)
    error = np.square(filled - TEST[:100])[hidden].mean()
    assert error < 0.75 * np.square(means - TEST[:100])[hidden].mean()
    known = np.square(large.reconstruct(TEST) - TEST).mean()
    assert known < 0.5 * np.square(TRAIN.mean(0) - TEST).mean()


@pytest.mark.slow
def test_numbers_and_categories_are_filled_and_drawn_in_their_own_units():
    rng = np.random.RandomState(0)
    x = rng.randn(800)
    numbers = np.stack([100 + 10 * x + rng.randn(800), 5 - x + 0.1 * rng.randn(800)], 1)
    model = RestrictedBoltzmannMachine(8, max_epochs=200, random_state=0).fit(numbers)
    gaps = numbers[:100].copy()
    gaps[:, 0] = np.nan
    filled = model.impute(gaps, random_state=0)
    assert np.abs(filled[:, 0] - numbers[:100, 0]).mean() < 0.6 * np.abs(numbers[:100, 0] - 100).mean()
    drawn = model.sample(2000, random_state=0)
    assert np.corrcoef(drawn.T)[0, 1] < -0.65
    assert drawn[:, 0].mean() == pytest.approx(numbers[:, 0].mean(), abs=1.5)

    colour = rng.choice(["red", "green", "blue"], 600)
    fruit = np.where(colour == "red", "cherry", np.where(colour == "green", "pear", "plum"))
    table = pd.DataFrame({"colour": colour, "fruit": fruit, "ripe": rng.choice(["yes", "no"], 600)})
    model = RestrictedBoltzmannMachine(8, random_state=0).fit(table)
    assert model.encoder_.kind == "categorical"
    drawn = pd.DataFrame(model.sample(500, random_state=0), columns=table.columns)
    assert set(drawn["ripe"]) == {"yes", "no"}
    pairs = set(zip(table["colour"], table["fruit"], strict=True))
    assert np.mean([p in pairs for p in zip(drawn["colour"], drawn["fruit"], strict=True)]) > 0.9
    gaps = table[:50].copy()
    gaps.loc[:, "fruit"] = np.nan
    assert (model.impute(gaps, random_state=0)[:, 1] == table["fruit"][:50]).mean() > 0.95
    with pytest.raises(ValueError, match="'black', a category that no training row had"):
        model.transform(table.replace("red", "black"))


# -- tables of several kinds ------------------------------------------------------------------------------


def people(n: int, seed: int = 0) -> pd.DataFrame:
    """Two kinds of people; given the kind all columns are independent."""
    rng = np.random.RandomState(seed)
    first = rng.uniform(size=n) < 0.4
    return pd.DataFrame(
        {
            "height": np.where(first, 150, 180) + 5.0 * rng.randn(n),
            "job": np.where(
                rng.uniform(size=n) < np.where(first, 0.9, 0.2), "baker", rng.choice(["smith", "fool"], n)
            ),
            "rich": (rng.uniform(size=n) < np.where(first, 0.8, 0.1)).astype(int),
            "children": rng.poisson(np.where(first, 6, 1)),
        }
    )


@pytest.fixture(scope="module")
def mixed() -> RestrictedBoltzmannMachine:
    return RestrictedBoltzmannMachine(6, n_temperatures=4, max_epochs=100, random_state=0).fit(people(1500))


def everyone() -> tuple[pd.DataFrame, float]:
    """All jobs and riches on a grid of heights and of numbers of children, and the size of its cells."""
    heights, children = np.arange(100, 240, 1.0), np.arange(-30, 40, 0.5)
    grid = pd.MultiIndex.from_product([heights, ["baker", "fool", "smith"], [0, 1], children])
    return grid.to_frame(index=False).set_axis(["height", "job", "rich", "children"], axis=1), 0.5


@pytest.mark.parametrize("others", [0.25, 1.0])
def test_draws_of_whole_numbers_are_whole_though_no_number_comes_twice(others):
    """Beside a column that is none of whole numbers, and beside another one."""
    whole = 3.0 * np.random.RandomState(0).permutation(500)
    table = np.c_[whole, others * np.arange(500) + (others < 1) * np.sqrt(2)]
    encoder = StateEncoder("gaussian").fit(table)
    states = np.random.RandomState(1).standard_normal((200, 2))
    drawn, means = encoder.decode(states, draws=True), encoder.decode(states)
    np.testing.assert_allclose(drawn[:, 0], np.round(means[:, 0]))
    np.testing.assert_allclose(drawn[:, 1], means[:, 1] if others < 1 else np.round(means[:, 1]))


def test_each_column_of_a_mixed_table_has_units_of_its_kind(mixed):
    assert mixed.encoder_.kind == "mixed"
    assert mixed.encoder_.kinds == ["gaussian", "categorical", "binary", "gaussian"]
    assert [type(unit) for unit, _ in mixed.energy_.visible.parts] == [Binary, Categorical, Gaussian]
    table, cell = everyone()
    assert np.exp(mixed.score_samples(table)).sum() * cell == pytest.approx(1.0, abs=1e-6)
    rows = people(1000, 1)
    numbers = rows[["height", "children"]]
    alone = sum(norm(numbers[c].mean(), numbers[c].std()).logpdf(numbers[c]).mean() for c in numbers)
    for c in ("job", "rich"):
        shares = rows[c].value_counts(normalize=True)
        alone += (shares * np.log(shares)).sum()
    assert mixed.log_likelihood(rows).mean > alone + 0.5


def test_a_mixed_table_is_drawn_and_filled_in_its_own_types(mixed):
    drawn = pd.DataFrame(mixed.sample(4000, random_state=0), columns=people(1).columns).infer_objects()
    assert [t.kind for t in drawn.dtypes] == ["f", "O", "i", "i"]
    table, cell = everyone()
    distribution = np.exp(mixed.score_samples(table)) * cell
    for column in ("job", "rich"):
        for value in table[column].unique():
            share = distribution[table[column] == value].sum()
            assert (drawn[column] == value).mean() == pytest.approx(share, abs=6 * (share / 4000) ** 0.5)
    for column in ("height", "children"):
        mean = distribution @ table[column]
        std = (distribution @ (table[column] - mean) ** 2) ** 0.5
        assert drawn[column].mean() == pytest.approx(mean, abs=6 * std / 4000**0.5)
    gaps = pd.DataFrame({"height": [150.0, 180, np.nan], "job": [None, "fool", "baker"],
                         "rich": [np.nan, np.nan, 0], "children": [5.0, np.nan, np.nan]})  # fmt: skip
    filled = mixed.impute(gaps, n_draws=3000, random_state=0)
    known = gaps.notna().to_numpy()
    assert (filled[:, known] == gaps.to_numpy(object)[known]).all()
    fits = (table["height"] == 150) & (table["children"] == 5)
    given = distribution[fits] / distribution[fits].sum()
    for job in ("baker", "smith"):
        wanted = given[(table["job"] == job)[fits]].sum()
        assert (filled[:, 0, 1] == job).mean() == pytest.approx(wanted, abs=4 * 0.5 / 3000**0.5 + 0.005)
    wanted = given[(table["rich"] == 1)[fits]].sum()
    assert filled[:, 0, 2].astype(float).mean() == pytest.approx(wanted, abs=4 * 0.5 / 3000**0.5 + 0.005)
    fits = (table["job"] == "baker") & (table["rich"] == 0)
    given = distribution[fits] / distribution[fits].sum()
    mean = mixed.impute(gaps, n_chains=200, n_steps=3000, random_state=0)
    assert mean[2, 0] == pytest.approx(given @ table["height"][fits], abs=1.5)
    assert 0 < mean[1, 2] < 1


def test_mixed_tables_are_told_apart_by_what_the_columns_hold(mixed, tmp_path):
    table = people(200)
    mixed.save(tmp_path / "model")
    again = RestrictedBoltzmannMachine.load(tmp_path / "model")
    np.testing.assert_array_equal(again.score_samples(table), mixed.score_samples(table))
    assert (again.sample(5, random_state=0) == mixed.sample(5, random_state=0)).all()
    quick = {"hidden": 3, "max_epochs": 1, "random_state": 0}
    rows = RestrictedBoltzmannMachine(**quick).fit(table.to_numpy().tolist())
    assert rows.encoder_.kinds == mixed.encoder_.kinds
    coded = table.assign(children=pd.Categorical(table["children"]), rich=table["rich"].astype(bool))
    kinds = RestrictedBoltzmannMachine(**quick).fit(coded).encoder_.kinds
    assert kinds == ["gaussian", "categorical", "binary", "categorical"]
    numbers = RestrictedBoltzmannMachine(**quick).fit(table[["rich", "height"]])
    assert numbers.encoder_.kind == "mixed"
    for X, words in (
        (table.assign(rich=0.5), "column 'rich' holds 0.5"),
        (table.assign(height="tall"), "column 'height' holds 'tall', which is no number"),
        (table.assign(height=np.inf), "column 'height' has an infinite value"),
        (table.assign(job="king"), "'king', a category that no training row had"),
        (table.assign(job=None), "gaps"),
    ):
        with pytest.raises(ValueError, match=words):
            mixed.score_samples(X)


def test_draws_of_rounded_numbers_are_rounded():
    rng = np.random.RandomState(0)
    X = np.stack([rng.randn(400).round(1), 5 * rng.poisson(20, 400), rng.randn(400)], 1)
    model = RestrictedBoltzmannMachine(4, max_epochs=5, random_state=0).fit(X)
    gaps = np.where(rng.uniform(size=X.shape) < 0.3, np.nan, X)
    for drawn in (model.sample(100, random_state=0), model.impute(gaps, n_draws=2, random_state=0).reshape(-1, 3)):
        assert (drawn[:, 0] == drawn[:, 0].round(1)).all()
        assert (drawn[:, 1] % 5 == 0).all()
        assert (drawn[:, 2] != drawn[:, 2].round(6)).any()


# -- saving, resuming, refusing ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["binary", "gaussian", "categorical"])
def test_a_saved_model_is_the_same(kind, tmp_path):
    rng = np.random.RandomState(0)
    X = {
        "binary": pd.DataFrame(TRAIN[:100, 20:26], columns=list("abcdef")),
        "gaussian": rng.randn(100, 3) + 4,
        "categorical": rng.choice(["a", "b", "c"], (100, 3)).astype(object),
    }[kind]
    model = RestrictedBoltzmannMachine(24 if kind == "gaussian" else 4, max_epochs=5, random_state=0).fit(X)
    model.log_likelihood(X)
    model.save(tmp_path / "model", extra={"note": 1})
    loaded = RestrictedBoltzmannMachine.load(tmp_path / "model")
    for a in (model, loaded):
        assert a.encoder_.kind == kind
    np.testing.assert_array_equal(loaded.score_samples(X), model.score_samples(X))
    np.testing.assert_array_equal(loaded.sample(5, random_state=0), model.sample(5, random_state=0))
    assert loaded.extra_ == {"note": 1}
    assert loaded.history_.epochs == model.history_.epochs
    if kind == "binary":
        assert list(loaded.feature_names_in_) == list("abcdef")
    # Where tensors lie in memory decides the last digit of their products.
    np.testing.assert_allclose(loaded.partial_fit(X).components_, model.partial_fit(X).components_, atol=1e-5)
    config = tmp_path / "model" / "config.json"
    broken = json.loads(config.read_text())
    broken["config"]["params"]["n_components"] = 3
    config.write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="damaged"):
        RestrictedBoltzmannMachine.load(tmp_path / "model")
    with pytest.raises(ValueError, match="holds no model"):
        RestrictedBoltzmannMachine.load(tmp_path)


def test_held_out_rows_are_told_and_nothing_is_learned_from_them(small):
    model = RestrictedBoltzmannMachine(8, max_epochs=10, random_state=0).fit(TRAIN, held_out=TEST)
    plain = RestrictedBoltzmannMachine(8, max_epochs=10, random_state=0).fit(TRAIN)
    np.testing.assert_array_equal(model.components_, plain.components_)
    assert model.history_.epochs[-1]["validation"] == pytest.approx(-model.log_likelihood(TEST).mean, abs=1e-4)
    annealed = RestrictedBoltzmannMachine(30, max_epochs=3, random_state=0).fit(TRAIN, held_out=TEST)
    wanted = annealed.log_likelihood(TEST).mean
    assert annealed.history_.epochs[-1]["validation"] == pytest.approx(-wanted, abs=0.3)


def test_an_interrupted_fit_resumes_to_the_same_model(tmp_path):
    settings = {"hidden": 8, "max_epochs": 6, "random_state": 0}
    whole = RestrictedBoltzmannMachine(**settings).fit(TRAIN, held_out=TEST)
    broken = RestrictedBoltzmannMachine(**settings)
    likelihood, calls = broken._likelihood_of, 0

    def interrupting(X):
        tell = likelihood(X)

        def validate(machine):
            nonlocal calls
            calls += 1
            if calls == 4:
                raise KeyboardInterrupt
            return tell(machine)

        return validate

    broken._likelihood_of = interrupting
    where = {"run_dir": tmp_path, "checkpoint_seconds": 0.0}
    with pytest.raises(KeyboardInterrupt):
        broken.fit(TRAIN, held_out=TEST, **where)
    resumed = RestrictedBoltzmannMachine(**settings).fit(TRAIN, held_out=TEST, resume=True, **where)
    np.testing.assert_array_equal(resumed.components_, whole.components_)
    assert resumed.history_.epochs == whole.history_.epochs


@pytest.mark.parametrize(
    ("settings", "X", "words"),
    [
        ({"visible": "binary"}, 2 * TRAIN, r"column \d+ holds 2"),
        ({"visible": "huge"}, TRAIN, "visible must be one of"),
        ({"hidden": 0}, TRAIN, "hidden must be"),
        ({"max_epochs": 0.5}, TRAIN, "max_epochs must be"),
        ({"learning_rate": -1.0}, TRAIN, "learning_rate must be positive"),
        ({}, np.full((5, 3), np.nan), "NaN"),
        ({}, np.zeros((0, 3)), "0 sample"),
        ({"visible": "categorical"}, np.array([["a", None], ["b", "c"]], object), "gaps"),
    ],
)
def test_bad_training_data_and_settings_are_refused(settings, X, words):
    with pytest.raises(ValueError, match=words):
        RestrictedBoltzmannMachine(**{"hidden": 4, "max_epochs": 1, **settings}).fit(X)


def test_bad_use_is_refused(small):
    with pytest.raises(ValueError, match="64 features"):
        small.transform(TEST[:, :5])
    with pytest.raises(ValueError, match="holds 7"):
        small.score_samples(7 * np.ones((1, 64)))
    with pytest.raises(ValueError, match="n_samples"):
        small.sample(0)


# -- odd columns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "visible", "message"),
    [
        (
            {"t": pd.cut(np.linspace(-1, 1, 40), 3), "x": np.arange(40.0)},
            "auto",
            "'t' holds Interval",
        ),
        ({"d": pd.date_range("2020", periods=40)}, "gaussian", "'d' holds dates"),
        ({"d": pd.date_range("2020", periods=40)}, "categorical", "'d' holds dates"),
    ],
)
def test_values_that_no_unit_takes_are_refused_by_name(table, visible, message):
    with pytest.raises(ValueError, match=message):
        RestrictedBoltzmannMachine(4, max_epochs=1, visible=visible).fit(pd.DataFrame(table))


def test_the_value_that_is_no_number_is_named():
    table = pd.DataFrame({"t": ["a", "b"] * 20, "x": np.arange(40.0)})
    model = RestrictedBoltzmannMachine(4, max_epochs=1, random_state=0).fit(table)
    with pytest.raises(ValueError, match="column 'x' holds 'abc'"):
        model.score_samples(pd.DataFrame({"t": ["a", "b"], "x": ["1.5", "abc"]}))


def test_numbers_beyond_the_integers_stay_numbers():
    table = pd.DataFrame({"t": ["a", "b"] * 20, "x": 1e20 * np.tile([1.0, 2, 3, 4], 10)})
    drawn = RestrictedBoltzmannMachine(4, max_epochs=3, random_state=0).fit(table).sample(50, random_state=0)
    assert (np.abs(drawn[:, 1].astype(float)) < 1e21).all()
    assert (drawn[:, 1].astype(float) > 0).any()


@pytest.mark.parametrize(
    ("width", "levels", "rate"),
    [(16, 1, 0.3), (17, 10, 0.3), (128, 10, 0.15), (256, 10, 0.075), (784, 1, 0.3 * 64 / 784)],
)
def test_wide_machines_learn_slowly_and_at_several_temperatures(width, levels, rate):
    rows = (np.random.RandomState(0).uniform(size=(30, width)) < 0.5).astype(float)
    model = RestrictedBoltzmannMachine(2, max_epochs=1, random_state=0).fit(rows)
    assert model._n_levels() == levels
    assert model._rate() == pytest.approx(rate)


@pytest.mark.slow
def test_the_defaults_learn_rows_of_one_hot_groups():
    """Twenty kinds of rows of 22 columns, nearly all alike within a kind, as one-hot bits."""
    rng = np.random.RandomState(0)
    tables = [rng.dirichlet(np.full(n, 0.05), size=20) for n in rng.randint(3, 8, size=22)]

    def rows(n):
        kinds = rng.randint(20, size=n)
        return np.hstack([np.array([rng.multinomial(1, t[k]) for k in kinds], float) for t in tables])

    training, fresh = rows(2000), rows(500)
    model = RestrictedBoltzmannMachine(100, max_epochs=100, random_state=0).fit(training)
    # A mixture of Bernoullis is of the right family, and knows nothing of the groups.
    mixture = BernoulliMixture(20).fit(training).log_prob(fresh).mean()
    assert model.score_samples(fresh).mean() > mixture - 3
    assert model.verdict_.state != "failed"


def one_hot_table(n, seed):
    """A category of four, k0 to k3, one of two, no and yes, a bit, and a number that tells the first."""
    rng = np.random.default_rng(seed)
    kind, answer = rng.choice(4, size=n, p=[0.4, 0.3, 0.2, 0.1]), rng.integers(2, size=n)
    table = pd.DataFrame(np.eye(4)[kind], columns=["k0", "k1", "k2", "k3"])
    table["no"], table["yes"] = 1 - answer, answer
    table["bit"] = rng.uniform(size=n) < np.where(kind == 3, 0.9, 0.2)
    return table.assign(size=kind + 0.1 * rng.normal(size=n)).astype(float)


@pytest.fixture(scope="module")
def grouped():
    return RestrictedBoltzmannMachine(8, max_epochs=300, random_state=0).fit(one_hot_table(400, 0))


def test_columns_of_one_category_are_one_unit(grouped):
    encoder = grouped.encoder_
    assert encoder.groups == [[0, 1, 2, 3], [4, 5]]
    assert encoder.kinds == ["one-hot"] * 6 + ["binary", "gaussian"]
    table = one_hot_table(50, 1).to_numpy()
    states = encoder.encode(table)
    assert states.shape == (50, 1 + 2 * 4 + 1) == (50, encoder.width)
    np.testing.assert_allclose(encoder.decode(states), table, atol=1e-12)
    # The group of two has two states that never are.
    assert encoder.impossible().tolist() == [False] * 7 + [True] * 2 + [False]
    again = type(encoder).from_state(encoder.state())
    np.testing.assert_array_equal(again.encode(table), states)


def test_draws_and_filled_gaps_have_one_1_in_each_group(grouped):
    draws = grouped.sample(2000, random_state=0)
    assert (draws[:, :4].sum(1) == 1).all()
    assert (draws[:, 4:6].sum(1) == 1).all()
    share = one_hot_table(100_000, 2).to_numpy()[:, :6].mean(0)
    assert draws[:, :6].mean(0) == pytest.approx(share, abs=0.1)
    gaps = one_hot_table(300, 3)
    truth = gaps.to_numpy()
    gaps[["k0", "k1", "k2", "k3"]] = np.nan
    # The number tells which of the four it is.
    filled = grouped.impute(gaps, n_draws=1, random_state=0)[0]
    assert (filled[:, :4].sum(1) == 1).all()
    assert (filled[:, :4] == truth[:, :4]).all(1).mean() > 0.6


def test_what_a_row_tells_of_a_group_is_used(grouped):
    rows = one_hot_table(3, 4)
    rows[["k0", "k1", "k2", "k3"]] = [[np.nan, 1, np.nan, np.nan], [0, 0, np.nan, 0], [np.nan, 0, 0, np.nan]]
    filled = grouped.impute(rows, n_draws=200, random_state=0)
    assert (filled[:, 0, :4] == [0, 1, 0, 0]).all()
    assert (filled[:, 1, :4] == [0, 0, 1, 0]).all()
    assert (filled[:, 2, 1:3] == 0).all()
    assert (filled[:, 2, :4].sum(-1) == 1).all()


@pytest.mark.parametrize("held", [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0.5, 0.5, 0]])
def test_rows_that_break_a_group_are_refused(grouped, held):
    rows = one_hot_table(3, 5)
    rows.loc[1, ["k0", "k1", "k2", "k3"]] = held
    with pytest.raises(ValueError, match="from column 'k0' to column 'k3', of which one was 1"):
        grouped.score_samples(rows)
    assert grouped.encoder_.breaks_groups(rows.to_numpy()).tolist() == [False, True, False]


def test_groups_are_not_looked_for_where_bits_are_asked_for_or_rows_are_few():
    table = one_hot_table(400, 0).drop(columns="size")
    few = {"max_epochs": 1, "random_state": 0}
    assert RestrictedBoltzmannMachine(4, visible="binary", **few).fit(table).encoder_.groups == []
    assert RestrictedBoltzmannMachine(4, **few).fit(table[:19]).encoder_.groups == []
    assert RestrictedBoltzmannMachine(4, **few).partial_fit(table).encoder_.groups == []
    # A column that comes before does not hide a group, nor does one that is never 1 belong to any.
    moved = table[["bit", "k0", "k1", "k2", "k3"]].assign(none=0.0)
    assert RestrictedBoltzmannMachine(4, **few).fit(moved).encoder_.groups == [[1, 2, 3, 4]]


def test_chains_at_several_temperatures_vary_as_the_rows_do():
    """Judged by those at the machine's own temperature, not by all of them side by side."""
    X = (np.random.default_rng(0).uniform(size=(300, 20)) < 0.4).astype(float)
    model = RestrictedBoltzmannMachine(8, max_epochs=20, random_state=0).fit(X)
    assert model.chains_[0].shape[0] == 10
    (check,) = (check for check in model.verdict_ if check.name == "variety")
    assert check.state == "passed"
