"""Deep machines: bounds against enumeration, tied layers that change nothing, learning that helps, estimators."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch
from lightning_fabric import Fabric
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor

from thalweg import DeepBeliefClassifier, DeepBoltzmannMachine
from thalweg import DeepBeliefNetwork as DeepBeliefEstimator
from thalweg.energies.machines.belief import DeepBeliefNetwork
from thalweg.energies.machines.layered import DBMEnergy, RBMEnergy, binary_states
from thalweg.energies.machines.units import Binary, Gaussian
from thalweg.objectives.base import Batch
from thalweg.recipes import boltzmann
from thalweg.recipes.base import Settings
from thalweg.training.feed import Feed
from thalweg.training.loop import DivergenceError, Trainer
from thalweg.training.moments import MomentStep, machine_plan
from thalweg.training.pretraining import grow_belief_network, pretrain, up_down

FAST = machine_plan(max_epochs=200, batch_size=50, learning_rate=0.3)


def all_states(n: int) -> Tensor:
    return torch.cat(list(binary_states(n, torch.zeros(1))))


def random_weights(module: torch.nn.Module, scale: float = 1.0) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(scale * torch.randn(p.shape))


def stripes(n: int, seed: int = 0) -> Tensor:
    """Rows of a 4 x 3 picture with whole rows on or off, some pixels flipped."""
    rng = np.random.RandomState(seed)
    pictures = np.repeat(rng.uniform(size=(n, 4, 1)) < 0.5, 3, 2)
    return torch.tensor((pictures ^ (rng.uniform(size=pictures.shape) < 0.05)).reshape(n, 12)).float()


def exact(network: DeepBeliefNetwork | DBMEnergy | RBMEnergy, rows: Tensor) -> float:
    with torch.no_grad():
        if isinstance(network, DeepBeliefNetwork):
            return float(network.log_prob(rows).mean())
        inner = network.log_marginal(rows) if isinstance(network, DBMEnergy) else -network(rows)
        return float(inner.mean() - network.log_normaliser())


# -- deep belief networks: the density ----------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [[3], [3, 4], [3, 2, 4]])
def test_density_is_the_sum_over_all_layers_and_adds_up_to_one(hidden):
    network = DeepBeliefNetwork(5, hidden)
    random_weights(network)
    v = all_states(5)
    log_p = network.log_prob(v)
    torch.testing.assert_close(torch.logsumexp(log_p, 0), torch.tensor(0.0), atol=1e-5, rtol=0)
    # By hand: sum over every state of every hidden layer.
    below = [5, *hidden[:-1]]
    total = torch.zeros(len(v))
    top = network.top
    with torch.no_grad():
        for h in itertools.product(*(all_states(n) for n in below[1:])):
            chain = [v, *(x.expand(len(v), -1) for x in h)]
            p = torch.exp(-top(chain[-1]) - top.log_normaliser())
            for layer, x, y in zip(network.lower, chain, chain[1:], strict=False):
                mean = torch.sigmoid(y @ layer.weight.t() + layer.bias)
                p = p * (mean**x * (1 - mean) ** (1 - x)).prod(1)
            total += p
    torch.testing.assert_close(log_p, total.log(), atol=1e-4, rtol=0)


def test_density_of_real_rows_integrates_to_one():
    network = DeepBeliefNetwork(Gaussian(1), [3, 3])
    random_weights(network, 0.5)
    x = torch.linspace(-12, 12, 4001).unsqueeze(1)
    total = network.log_prob(x).exp().sum() * (x[1, 0] - x[0, 0])
    assert float(total) == pytest.approx(1.0, abs=1e-3)


def test_batch_dimensions_are_free_and_large_layers_are_refused():
    network = DeepBeliefNetwork(5, [3, 4])
    random_weights(network)
    v = all_states(5).reshape(4, 8, 5)
    torch.testing.assert_close(network.log_prob(v).reshape(-1), network.log_prob(v.reshape(-1, 5)))
    torch.testing.assert_close(network(v), -network.log_prob(v))
    with pytest.raises(ValueError, match="at most 18"):
        DeepBeliefNetwork(5, [19, 4]).log_prob(v)
    with pytest.raises(ValueError, match="at least one"):
        DeepBeliefNetwork(5, [])


def test_bounds_are_below_the_truth_and_the_weights_average_to_it():
    network = DeepBeliefNetwork(5, [3, 2, 4])
    random_weights(network, 0.7)
    network.untie()
    with torch.no_grad():
        for layer in network.lower:
            layer.up_weight.add_(0.3 * torch.randn_like(layer.up_weight))
    v = all_states(5)
    truth = network.log_marginal(v)
    generator = torch.Generator().manual_seed(1)
    n = 4000
    log_weights = torch.stack([network.log_weights(v, generator) for _ in range(n)])
    error = log_weights.std(0) / n**0.5
    assert (log_weights.mean(0) < truth + 4 * error).all()
    ratio = (log_weights - truth).exp()
    assert ((ratio.mean(0) - 1).abs() < 5 * ratio.std(0) / n**0.5).all()
    elbo, tight = (bound(v, 300, generator).mean() for bound in (network.evidence_bound, network.importance_bound))
    assert elbo < tight < truth.mean() + 0.02


def test_draws_have_the_density():
    network = DeepBeliefNetwork(4, [3, 3], n_sweeps=60)
    random_weights(network)
    n = 20_000
    drawn = network.sample(n, torch.Generator().manual_seed(0))
    codes = (drawn * 2 ** torch.arange(4)).sum(1).long()
    found = torch.bincount(codes, minlength=16) / n
    p = network.log_prob(all_states(4)).exp()
    assert ((found - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 1e-4).all()


# -- tied layers --------------------------------------------------------------------------------------------


def test_a_tied_layer_changes_nothing_and_its_bound_is_tight():
    network = DeepBeliefNetwork(6, [4])
    random_weights(network)
    network.double()
    v = all_states(6).double()
    before = network.log_prob(v)
    network.grow(6)
    torch.testing.assert_close(network.log_prob(v), before, atol=1e-9, rtol=0)
    network.grow(4)
    torch.testing.assert_close(network.log_prob(v), before, atol=1e-9, rtol=0)
    # One tied layer: the way up is the posterior itself, and every draw of it has the same weight.
    tied = DeepBeliefNetwork(6, [4, 6]).double()
    random_weights(tied)
    with torch.no_grad():
        tied.top.weights[0].copy_(tied.lower[0].weight.t())
        tied.top.biases[0].copy_(tied.lower[0].up_bias)
        tied.top.biases[1].copy_(tied.lower[0].bias)
    torch.testing.assert_close(tied.log_weights(v), tied.log_marginal(v), atol=1e-9, rtol=0)


def test_untying_changes_nothing_until_the_way_up_learns():
    network = DeepBeliefNetwork(5, [3, 5])
    random_weights(network)
    v = all_states(5)
    before = network.means_up(v)
    network.untie()
    for a, b in zip(before, network.means_up(v), strict=True):
        torch.testing.assert_close(a, b)
    assert network.lower[0].up_weight is not network.lower[0].weight


# -- greedy learning ----------------------------------------------------------------------------------------


def test_greedy_layers_raise_the_likelihood_and_up_down_does_no_harm():
    rows, others = stripes(600), stripes(400, 1)
    one, _ = grow_belief_network(12, [4], rows, FAST)
    two, histories = grow_belief_network(12, [4, 12], rows, FAST)
    assert len(histories) == 2
    assert exact(two, others) > exact(one, others) - 0.05
    base = DeepBeliefNetwork(12, [4])
    with torch.no_grad():
        base.top.weights[0].zero_()
        base.top.biases[0].copy_(Binary(12).bias_of(rows))
    assert exact(two, others) > exact(base, others) + 1
    before = exact(two, others)
    up_down(two, rows, machine_plan(max_epochs=20, batch_size=50, learning_rate=0.05))
    assert exact(two, others) > before - 0.1
    assert not torch.equal(two.lower[0].up_weight, two.lower[0].weight)


@pytest.mark.slow
def test_joint_training_raises_the_likelihood_of_a_pretrained_deep_machine():
    rows, others = stripes(600), stripes(400, 1)
    machine = DBMEnergy(12, [4, 3])
    with torch.no_grad():
        machine.biases[0].copy_(machine.visible.bias_of(rows))
    bare = exact(machine, others)
    assert len(pretrain(machine, rows, FAST)) == 2
    pretrained = exact(machine, others)
    assert pretrained > bare + 1
    Trainer(FAST).run(MomentStep(machine), Batch(None, rows))
    joint = exact(machine, others)
    assert joint > pretrained
    with torch.no_grad():
        bound = float(machine.evidence_bound(others).mean() - machine.log_normaliser())
    assert joint - 0.3 < bound <= joint + 1e-4


@pytest.mark.parametrize("hidden", [[3, 2], [3, 4, 2], [3, 4, 2, 3]])
def test_pretraining_counts_inputs_twice_where_stated(hidden, monkeypatch):
    seen = []

    def run(self, step, data, resume):
        seen.append((step.up, step.down))
        part = step.machine
        with torch.no_grad():
            part.weights[0].fill_(1.0)
            part.biases[0].fill_(2.0)
            part.biases[1].fill_(4.0)

    monkeypatch.setattr(Trainer, "run", run)
    machine = DBMEnergy(12, hidden)
    pretrain(machine, stripes(20), FAST)
    between = [(1.0, 1.0)] * (len(hidden) - 2)
    assert seen == [(2.0, 1.0), *between, (1.0, 2.0)]
    assert [float(w.detach().mean()) for w in machine.weights] == [1.0, *(0.5 for _ in between), 1.0]
    assert [float(b.detach().mean()) for b in machine.biases] == [2.0, *(3.0 for _ in hidden[1:]), 4.0]


def test_scaled_inputs_are_those_of_the_deep_machine():
    """With the layers as far apart as the greedy start takes them, the distributions are the deep machine's."""
    torch.manual_seed(1)
    part = RBMEnergy(12, 3)
    random_weights(part)
    rows = stripes(50)
    fabric, learning = Fabric(accelerator="cpu", devices=1), MomentStep(part, up=2.0)
    learning.begin(FAST, fabric, Feed(Batch(None, rows), FAST, fabric), torch.Generator())
    with torch.no_grad():
        expected = torch.sigmoid(2 * rows @ part.weights[0] + part.biases[1])
        torch.testing.assert_close(learning.positive(rows)[1], expected)
        down = learning.field([rows, expected], 0)
        torch.testing.assert_close(down, expected @ part.weights[0].t() + part.biases[0])
    with pytest.raises(ValueError, match="restricted"):
        MomentStep(DBMEnergy(12, [2, 2]), up=2.0)


def test_pretraining_of_real_rows_and_refusals():
    rows = torch.randn(100, 3)
    machine = DBMEnergy(Gaussian(3), [4, 3])
    pretrain(machine, rows, machine_plan(max_epochs=3, batch_size=50, learning_rate=0.01))
    assert all(torch.isfinite(p).all() for p in machine.parameters())
    network, _ = grow_belief_network(Gaussian(3), [4, 3], rows, machine_plan(max_epochs=3, learning_rate=0.01))
    up_down(network, rows, machine_plan(max_epochs=3, learning_rate=0.01))
    assert torch.isfinite(network.log_prob(rows)).all()
    with pytest.raises(ValueError, match="0 or 1"):
        pretrain(DBMEnergy(3, [2, 2]), rows, FAST)
    with pytest.raises(ValueError, match="0 or 1"):
        grow_belief_network(3, [2], rows, FAST)
    with pytest.raises(ValueError, match="0 or 1"):
        up_down(DeepBeliefNetwork(3, [2, 2]), rows, FAST)


def test_a_mean_field_is_near_the_marginals_of_a_weakly_coupled_machine():
    machine = DBMEnergy(6, [3, 3])
    random_weights(machine, 0.3)
    v = all_states(6)[:20]
    means = machine.mean_field(v, 100, 1e-7)
    h = all_states(6)
    with torch.no_grad():
        joint = machine.joint([v.unsqueeze(1), h[:, :3].unsqueeze(0), h[:, 3:].unsqueeze(0)])
        p = torch.softmax(-joint, 1)
    torch.testing.assert_close(means[1], p @ h[:, :3], atol=0.02, rtol=0)
    torch.testing.assert_close(means[2], p @ h[:, 3:], atol=0.02, rtol=0)


# -- runs that stop and go on -------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


class StopAfter:
    """Progress that ends the run after so many epochs."""

    def __init__(self, n: int):
        self.left = n

    def start(self, n_epochs, done): ...
    def message(self, text): ...
    def stop(self): ...

    def update(self, record):
        self.left -= 1
        if self.left == 0:
            raise Interrupted


def test_resumed_runs_end_with_the_same_weights(tmp_path):
    rows = stripes(200)
    plan = machine_plan(max_epochs=4, batch_size=50, checkpoint_seconds=0.0)

    def grow(folder, progress=None, resume=False):
        torch.manual_seed(0)
        how = {"progress": progress, "resume": resume}
        network, _ = grow_belief_network(12, [4, 12], rows, plan, run_dir=folder, **how)
        up_down(network, rows, plan, run_dir=folder / "up-down", **how)
        return network

    def deep(folder, progress=None, resume=False):
        torch.manual_seed(0)
        machine = DBMEnergy(12, [4, 3])
        pretrain(machine, rows, plan, run_dir=folder, progress=progress, resume=resume)
        return machine

    for make, stops in ((grow, (2, 6, 10)), (deep, (2, 6))):
        whole = make(tmp_path / make.__name__ / "whole")
        for stop in stops:
            folder = tmp_path / make.__name__ / str(stop)
            with pytest.raises(Interrupted):
                make(folder, StopAfter(stop))
            again = make(folder, resume=True)
            for a, b in zip(whole.parameters(), again.parameters(), strict=True):
                assert torch.equal(a, b)


def test_divergence_below_the_top_is_noticed():
    rows = stripes(100)
    network, _ = grow_belief_network(12, [4, 4], rows, machine_plan(max_epochs=1, batch_size=50))
    with torch.no_grad():
        network.lower[0].bias.fill_(float("nan"))
    with pytest.raises(DivergenceError, match="not finite"):
        up_down(network, rows, machine_plan(max_epochs=2, batch_size=50))


# -- estimators ---------------------------------------------------------------------------------------------

SMALL = {"hidden": (6, 4), "max_epochs_pretraining": 3, "max_epochs": 3, "random_state": 0}
DENSITIES = pytest.mark.parametrize("kind", [DeepBoltzmannMachine, DeepBeliefEstimator])


@parametrize_with_checks(
    [
        DeepBoltzmannMachine(**SMALL),
        DeepBeliefEstimator(**SMALL),
        DeepBeliefClassifier((16,), max_epochs_pretraining=3, max_epochs=15, fine_rate=2e-2, random_state=0),
    ]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@DENSITIES
def test_scores_are_bounds_of_a_density_and_draws_follow_the_data(kind):
    rows, others = stripes(600).numpy(), stripes(300, 1)
    model = kind((4, 4), max_epochs_pretraining=100, max_epochs=100, batch_size=20, random_state=0).fit(rows)
    assert model.log_normaliser_error_ == 0
    exactly = float(model.energy_.log_marginal(others.double()).mean()) - model.log_normaliser_
    assert exactly - 0.5 < model.score_samples(others.numpy()).mean() < exactly + 0.05
    base = np.log(0.5) * 12
    assert model.score_samples(others.numpy()).mean() > base + 1.5
    drawn = model.sample(1000, random_state=0)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    assert np.abs(np.corrcoef(drawn.T) - np.corrcoef(rows.T)).max() < 0.25
    # Independent rows of pixels leave a belief network's top layer nothing to tell of the one below.
    least = 0.9 if kind is DeepBoltzmannMachine else 0.5
    assert ((model.reconstruct(rows) > 0.5) == rows).mean() > least
    assert model.transform(rows).shape == (600, 4)
    assert list(model.get_feature_names_out()) == [f"{kind.__name__.lower()}{i}" for i in range(4)]


def test_gaps_are_filled_with_the_conditional_of_the_deep_machine():
    rows = stripes(600).numpy()
    model = DeepBoltzmannMachine(
        (4, 4), max_epochs_pretraining=50, max_epochs=50, batch_size=20, random_state=0
    ).fit(rows)
    gaps = rows[:10].copy()
    gaps[:, :2] = np.nan
    drawn, mean = (
        model.impute(gaps, n_draws=2000, random_state=0),
        model.impute(gaps, n_chains=200, random_state=0),
    )
    np.testing.assert_array_equal(mean[:, 2:], rows[:10, 2:])
    np.testing.assert_array_equal(drawn[7, :, 2:], rows[:10, 2:])
    first = all_states(2).double()
    for k, row in enumerate(rows[:10]):
        candidates = torch.cat([first, torch.from_numpy(row[2:]).double().expand(4, -1)], 1)
        distribution = torch.softmax(model.energy_.log_marginal(candidates), 0)
        wanted = (distribution @ first).numpy()
        np.testing.assert_allclose(drawn[:, k, :2].mean(0), wanted, atol=4 * 0.5 / 2000**0.5 + 0.005)
        np.testing.assert_allclose(mean[k, :2], wanted, atol=0.03)


@DENSITIES
def test_deep_machines_take_tables_of_several_kinds(kind, tmp_path):
    rng = np.random.RandomState(0)
    first = rng.uniform(size=400) < 0.5
    table = pd.DataFrame({"job": np.where(first, "baker", rng.choice(["fool", "smith", "cook"], 400)),
                          "rich": first.astype(int), "age": np.where(first, 30, 60) + rng.randint(-5, 5, 400),
                          "home": rng.choice(["hut", "house"], 400)})  # fmt: skip
    model = kind((6, 4), max_epochs_pretraining=50, max_epochs=100, random_state=0).fit(table)
    assert model.encoder_.kinds == ["categorical", "binary", "gaussian", "categorical"]
    drawn = pd.DataFrame(model.sample(200, random_state=0), columns=table.columns).infer_objects()
    assert [t.kind for t in drawn.dtypes] == ["O", "i", "i", "O"]
    assert set(drawn["home"]) == {"hut", "house"}
    assert model.score(table) == pytest.approx(model.score_samples(table).sum())
    model.save(tmp_path / "model")
    again = kind.load(tmp_path / "model")
    np.testing.assert_array_equal(again.score_samples(table), model.score_samples(table))
    assert again.reconstruct(table, encoded=True).shape == (400, 4 + 4 + 2)
    assert model.components_.shape == (6, 10)
    with pytest.raises(ValueError, match="n_samples must be"):
        model.sample(0)


@DENSITIES
def test_log_z_of_wide_machines_is_annealed_and_its_error_told(kind):
    rows = stripes(200).numpy()
    model = kind((20, 19), visible="gaussian", max_epochs_pretraining=2, max_epochs=2, random_state=0).fit(rows)
    assert 0 < model.log_normaliser_error_ < 1
    assert np.isfinite(model.score_samples(rows)).all()


@pytest.mark.parametrize("columns", ["binary", "real"])
@pytest.mark.parametrize("kind", [DeepBoltzmannMachine, DeepBeliefEstimator, DeepBeliefClassifier])
def test_saved_models_come_back(kind, columns, tmp_path):
    X, y = load_iris(return_X_y=True)
    X = (X.mean(0) < X).astype(float) if columns == "binary" else X
    names = np.array(["setosa", "versicolor", "virginica"])
    model = kind(**SMALL).fit(X, names[y])
    model.save(tmp_path / "model", extra={"note": 1})
    again = kind.load(tmp_path / "model")
    assert again.extra_ == {"note": 1}
    if kind is DeepBeliefClassifier:
        np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
        np.testing.assert_array_equal(again.predict(X), model.predict(X))
    else:
        np.testing.assert_array_equal(again.score_samples(X), model.score_samples(X))
        np.testing.assert_array_equal(
            again.sample(3, n_steps=10, random_state=1), model.sample(3, n_steps=10, random_state=1)
        )
        np.testing.assert_array_equal(again.transform(X), model.transform(X))
    with pytest.raises(ValueError, match="holds a"):
        (DeepBeliefEstimator if kind is DeepBoltzmannMachine else DeepBoltzmannMachine).load(tmp_path / "model")


@pytest.mark.parametrize("kind", [DeepBoltzmannMachine, DeepBeliefEstimator, DeepBeliefClassifier])
def test_resumed_fits_are_those_never_interrupted(kind, tmp_path, monkeypatch):
    X, y = stripes(100).numpy(), np.arange(100) % 2
    whole = kind(**SMALL).fit(X, y, run_dir=tmp_path / "whole", checkpoint_seconds=0)
    monkeypatch.setattr("thalweg.estimators._deep.BarProgress", lambda label: StopAfter(2))
    with pytest.raises(Interrupted):
        kind(**SMALL, verbose=True).fit(X, y, run_dir=tmp_path / "cut", checkpoint_seconds=0)
    again = kind(**SMALL).fit(X, y, run_dir=tmp_path / "cut", resume=True, checkpoint_seconds=0)
    for name, module in whole._modules().items():
        for a, b in zip(module.parameters(), again._modules()[name].parameters(), strict=True):
            assert torch.equal(a, b)
    # A new run in a used folder starts anew.
    fresh = kind(**{**SMALL, "random_state": 1}).fit(X, y, run_dir=tmp_path / "cut")
    assert len(list(fresh.history_.parts.values())[-1].epochs) == 3


def test_pretraining_on_rows_without_labels_helps_a_classifier():
    rng = np.random.RandomState(0)
    X = stripes(600).numpy()
    y = X[:, :3].sum(1) >= 2
    few = rng.permutation(300)[:20]
    how = {"hidden": (8, 8), "max_epochs": 200, "batch_size": 20, "random_state": 0}
    model = DeepBeliefClassifier(max_epochs_pretraining=200, **how).fit(X[few], y[few], unlabelled=X[:300])
    assert model.score(X[300:], y[300:]) > 0.9
    assert model.predict(X[:3]).dtype == bool


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": ()}, "hidden"),
        ({"hidden": (3, 0)}, "hidden"),
        ({"hidden": 3}, "two hidden"),
        ({"max_epochs": 0}, "max_epochs"),
        ({"visible": "softmax"}, "visible"),
        ({"visible": "binary"}, "0 and 1"),
        ({"hidden": (3,)}, "two hidden"),
    ],
)
def test_bad_settings_are_refused_in_words(settings, message):
    with pytest.raises(ValueError, match=message):
        DeepBoltzmannMachine(**{**SMALL, **settings}).fit(load_iris().data)
    if settings == {"hidden": (3,)}:
        DeepBeliefEstimator(**{**SMALL, **settings}).fit(load_iris().data)


@pytest.mark.parametrize("kind", [DeepBoltzmannMachine, DeepBeliefEstimator])
def test_models_that_are_not_fitted_say_so(kind):
    for method in (kind().transform, kind().reconstruct, kind().score_samples):
        with pytest.raises(NotFittedError):
            method(np.zeros((2, 3)))


# -- the recipe ---------------------------------------------------------------------------------------------


def test_recipe_runs(tmp_path):
    messages = []
    result = boltzmann.RECIPE.run(Settings(seeds=(0,), quick=True, tell=messages.append))
    assert len(messages) == 1
    assert all(np.isfinite(f.values).all() and f.target is None for f in result.figures)
    assert max(len(f.name) for f in result.figures) <= 40
    assert {f.name for f in result.figures} >= {k for k in boltzmann.TARGETS if "RBM 64x16" not in k}
    assert all(json.loads(picture.to_json())["data"] for picture in result.pictures.values())
    assert len(result.pictures) == 8


@pytest.mark.slow
def test_recipe_on_larger_images(tmp_path):
    rng = np.random.RandomState(0)
    pixels, labels = (255 * (rng.uniform(size=(60, 28, 28)) < 0.3)).astype(np.uint8), np.zeros(60, int)
    np.savez(tmp_path / "mnist_12k.npz", X_train=pixels, y_train=labels, X_test=pixels[:20], y_test=labels[:20])
    result = boltzmann.RECIPE.run(Settings(seeds=(0,), quick=True, data=tmp_path))
    assert all(np.isfinite(f.values).all() for f in result.figures)
    with pytest.raises(ValueError, match=r"mnist_12k\.npz"):
        boltzmann.RECIPE.run(Settings(data=tmp_path / "elsewhere"))


def test_a_deep_classifier_refuses_labels_that_are_no_classes_in_words():
    X = np.random.default_rng(0).integers(2, size=(20, 4)).astype(float)
    for y, words in (([b"a", b"b"] * 10, "y holds bytes"), (["a", 1] * 10, "mixes texts and numbers")):
        with pytest.raises(ValueError, match=words):
            DeepBeliefClassifier((3,)).fit(X, np.array(y, dtype=object))


@pytest.mark.parametrize("machine", [DeepBoltzmannMachine, DeepBeliefEstimator])
@pytest.mark.filterwarnings("ignore:the model failed its checks")
def test_rows_that_are_all_equal_end_no_training(machine):
    model = machine((4, 3), max_epochs_pretraining=5, max_epochs=5, random_state=0).fit(np.ones((40, 3)))
    assert "doubtful" in {check.state for check in model.verdict_ if check.name == "variety"}
