"""The recipes of images run and hand back figures and pictures, and their parts do what they say."""

import json
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch

from thalweg.data.images import as_images, cifar10
from thalweg.energies.densities import UniformEnergy
from thalweg.objectives.base import Batch
from thalweg.objectives.classification import CrossEntropy
from thalweg.recipes import composition, concepts, continual, energy_matching, igebm
from thalweg.recipes.base import Settings
from thalweg.training.loop import DivergenceError


def test_quick_run():
    messages = []
    result = continual.RECIPE.run(Settings(seeds=(0, 1), quick=True, tell=messages.append))
    figures = {f.name: f for f in result.figures}
    assert len(figures) == len(result.figures)
    assert all(len(f.values) == 2 and np.isfinite(f.values).all() for f in result.figures)
    for name in ("accuracy, energy (share)", "accuracy, softmax (share)", "energy's over softmax's (ratio)"):
        assert name in figures
    assert max(map(len, figures)) <= 40  # the terminal's table is narrow
    for picture in result.pictures.values():
        assert json.loads(picture.to_json())["data"]
    assert result.pictures
    assert len(messages) == 2 * 5  # the network, and four protocols
    assert result.notes


def test_same_seed_same_figures():
    first, second = (continual.RECIPE.run(Settings(seeds=(3,), quick=True)) for _ in range(2))
    assert [f.values for f in first.figures] == [f.values for f in second.figures]


def test_kept_chains_go_on_under_the_labels_of_the_batch():
    uniform = UniformEnergy(torch.zeros(continual.SHAPE), torch.ones(continual.SHAPE))
    buffer = continual.RelabelledBuffer(uniform, size=6, n_chains=6, restart=0.0)
    images = torch.rand(6, *continual.SHAPE)
    first = buffer.draw(torch.tensor([0.0, 1, 0, 1, 0, 1]), images)
    buffer.store(first, images, torch.zeros(6))
    labels = torch.tensor([2.0, 3, 2, 3, 2, 3])
    second = buffer.draw(labels, torch.rand(6, *continual.SHAPE))
    assert torch.equal(second.x, labels)
    # The images come back, each from where it was put.
    assert torch.equal(second.position[second.places.argsort()], images[first.places.argsort()])


def test_classifier_is_cross_entropy_of_minus_the_energies():
    torch.manual_seed(0)
    energy, images = continual.network(), torch.rand(4, *continual.SHAPE)
    labels = torch.tensor([0.0, 3, 9, 3])
    rows = CrossEntropy().per_row(energy, Batch(images, labels), None)
    probability = torch.softmax(-energy.energies(images), -1)[torch.arange(4), labels.long()]
    torch.testing.assert_close(rows, -probability.log())


@pytest.mark.slow
def test_full_size_reaches_the_targets():
    result = continual.RECIPE.run(Settings(seeds=(0, 1)))
    assert all(f.reached is not False for f in result.figures)


def test_composition_quick_run():
    result = composition.RECIPE.run(Settings(seeds=(0,), quick=True))
    assert all(np.isfinite(f.values).all() for f in result.figures)
    assert any(f.name.startswith("four concepts, never seen") and f.target == 0.02 for f in result.figures)
    assert len(result.pictures) == 4


def test_combinations_are_told_apart_by_their_renderings():
    everything = concepts.combinations()
    assert len(everything.labels) == np.prod(list(concepts.CONCEPTS.values()))
    assert torch.equal(everything.nearest(everything.images), everything.labels)


def untrained_parts():
    torch.manual_seed(0)
    return concepts.SingleConcepts(
        concepts.NoisySprites(4), [concepts.ConceptEnergy(n, 4) for n in concepts.CONCEPTS.values()]
    )


def test_what_a_concept_adds_is_normalised_over_its_values():
    for n, energy in zip(concepts.CONCEPTS.values(), untrained_parts().concepts, strict=True):
        where = torch.stack([torch.arange(n), torch.full((n,), 0.5)], 1)
        image = torch.rand(concepts.SIZE**2).expand(n, -1)
        assert energy(where, image).neg().exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_joint_of_weight_one_is_the_sum_of_conditional_energies_less_what_they_share():
    parts, level = untrained_parts(), 0.7
    asked, images = concepts.combinations().labels[:5], torch.rand(5, concepts.SIZE**2)
    levels = torch.full((5, 1), level)
    alone = parts.images.given(levels)
    where = [torch.cat([asked[:, k : k + 1].float(), levels], 1) for k in range(4)]
    first, second, third, fourth = (alone + c.given(t) for c, t in zip(parts.concepts, where, strict=True))
    energy = first + second + third + fourth - 3.0 * alone
    torch.testing.assert_close(concepts.joint(parts, asked, level, 1.0)(images), energy(images))


def some_images(n, *shape, seed=0):
    """Random images of ten labels."""
    rng = np.random.RandomState(seed)
    return rng.randint(256, size=(n, *shape)).astype(np.uint8), np.arange(n) % 10


def check_igebm(result):
    figures = {f.name: f for f in result.figures}
    assert len(figures) == len(result.figures)
    assert all(np.isfinite(f.values).all() for f in result.figures)
    assert figures["updates that diverged"].values == [0.0]
    for picture in result.pictures.values():
        assert json.loads(picture.to_json())["data"]
    return figures


def test_igebm_on_digits():
    figures = check_igebm(igebm.RECIPE.run(Settings(seeds=(0,), quick=True)))
    assert "AUROC, other images: heads" in figures


def test_energy_matching_stands_beside_chains_and_gaussians():
    result = energy_matching.RECIPE.run(Settings(seeds=(0,), quick=True))
    figures = {figure.name: figure.values for figure in result.figures}
    assert all(np.isfinite(values).all() for values in figures.values())
    for who in ("test images", "Gaussians", "matching", "chains"):
        assert len(figures[f"{who}: Frechet distance, features"]) == 1
    for figure in ("completion, squared error", "from one class to another", "AUROC, uniform noise"):
        assert f"matching: {figure}" in figures
        assert f"chains: {figure}" in figures
    assert "Where they start: draws from the Gaussians" in result.pictures


def test_energy_matching_at_paper_scale_trains_in_half_precision(monkeypatch):
    """On a few images in the place of CIFAR, with a network and a training that a CPU can do."""
    x, y = some_images(40, 32, 32, 3)
    tiny = {"max_steps": 2, "width": 2, "hidden": (8,), "n_paired": 40, "batch_size": 8, "device": "cpu"}
    monkeypatch.setattr(energy_matching, "QUICK", tiny)
    images = as_images(x, y)
    model = energy_matching._model(Settings(quick=True, paper_scale=True), images, "matching", 0)
    assert (model.precision, model.network) == ("bf16-mixed", "convolutional")
    model.fit(images.pixels, images.labels)
    assert all(weights.dtype == torch.float32 for weights in model.energy_.parameters())
    assert np.isfinite(model.score_samples(images.pixels)).all()
    assert energy_matching._throughput(model, 4.0)["images a second"] == 4.0


def test_what_energy_matching_must_reach_is_set_by_the_test_images():
    named = {
        "test images: Frechet distance, components": [2.0, 4.0],
        "test images: Frechet distance, features": [6.0, 6.0],
        "test images: right class": [0.9, 1.0],
        "matching: the same by class means": [0.05, 0.07],
    }
    bounds = energy_matching._targets(named, 1.5)
    assert bounds["matching: Frechet distance, components"] == (4.5, True)
    assert bounds["matching: Frechet distance, features"] == (9.0, True)
    assert bounds["matching: right class"] == (pytest.approx(0.9025), False)
    assert bounds["matching: completion, squared error"] == (pytest.approx(0.06), True)


def test_igebm_on_images_of_ones_own_in_colour(tmp_path):
    (x, y), (x_test, y_test) = some_images(100, 12, 12, 3), some_images(40, 12, 12, 3, seed=1)
    np.savez(tmp_path / "own.npz", X_train=x, y_train=y, X_test=x_test, y_test=y_test)
    result = igebm.RECIPE.run(Settings(seeds=(0,), quick=True, data=tmp_path / "own.npz"))
    assert "AUROC, textures: photographs" in check_igebm(result)
    assert "own.npz, 100 to train on" in result.notes[0]
    with pytest.raises(ValueError, match=r"holds no mnist_12k\.npz"):
        igebm.RECIPE.run(Settings(seeds=(0,), quick=True, data=tmp_path))
    np.savez(tmp_path / "bare.npz", X_train=x, X_test=x_test)
    with pytest.raises(ValueError, match="have no labels"):
        igebm.RECIPE.run(Settings(seeds=(0,), quick=True, data=tmp_path / "bare.npz"))


def test_igebm_at_paper_scale_takes_cifar_by_name_and_the_residual_network(monkeypatch):
    asked = {}

    def fetch(name, **options):
        asked.update(options, name=name)
        x, y = some_images(84, 3072)
        return SimpleNamespace(data=x.astype(float), target=y.astype(str))

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
    monkeypatch.setattr(igebm, "QUICK", igebm.QUICK | {"max_steps": 2, "n_steps": 2, "batch_size": 4, "width": 2})
    result = igebm.RECIPE.run(Settings(seeds=(0,), quick=True, paper_scale=True))
    check_igebm(result)
    assert asked == {"name": "CIFAR_10", "version": 1, "as_frame": False}
    assert "CIFAR-10, 70 to train on, 14 to test with" in result.notes[0]


def test_cifar_by_name_keeps_channels_and_labels_and_says_where_it_could_not_come_from(monkeypatch):
    x, y = some_images(60, 3072)
    monkeypatch.setattr(
        "sklearn.datasets.fetch_openml", lambda *a, **k: SimpleNamespace(data=x, target=y.astype(str))
    )
    train, test = cifar10()
    assert train.pixels.shape == (50, 3, 32, 32)
    np.testing.assert_allclose(test.pixels[0, 1, 2], x[50, 1024 + 64 : 1024 + 96] / 255, rtol=1e-6)
    np.testing.assert_array_equal(test.labels, y[50:])

    def offline(*args, **options):
        raise URLError("no network")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", offline)
    with pytest.raises(OSError, match=r"CIFAR-10 could not be downloaded from openml\.org.*no network"):
        cifar10()


def test_continual_hands_back_no_run_that_diverged(monkeypatch):
    monkeypatch.setattr(continual, "RATE", 1e20)
    with pytest.raises(DivergenceError, match="training diverged 6 times"):
        continual.RECIPE.run(Settings(seeds=(0,), quick=True))
