"""Image energies, images in, and the estimator that generates, completes and denoises."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.utils import estimator_checks
from torch import nn

from thalweg.data.images import as_images, digits, outliers, read_images
from thalweg.data.shapes import SHAPES, draw_sprites, render_sprites
from thalweg.energies import ClassGaussians, Energy, WeightedSum
from thalweg.energies.conditioning import ClampedEnergy
from thalweg.energies.labelled import LabelledEnergy, LabelledEnsemble
from thalweg.energies.networks import ImageEnergy, MultiscaleEnergy, residual_network
from thalweg.energies.networks.image import UNIT_IMAGES
from thalweg.energies.networks.labelled_perceptron import LabelledPerceptron
from thalweg.estimators._image_walks import MatchedFlow
from thalweg.estimators.images import ImageEBM
from thalweg.evaluation.generation import nearest_neighbours
from thalweg.objectives import EnergyMatching
from thalweg.sampling.chain import run_chain
from thalweg.sampling.langevin import ColdLangevin


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LABELLED = {
    "perceptron": lambda: LabelledPerceptron((1, 8, 8), 3, (16, 12), "silu"),
    "perceptron with relu": lambda: LabelledPerceptron((1, 8, 8), 3, (16,)),
    "residual": lambda: LabelledEnergy(residual_network(1, 3, 4, 2), input_ndim=3, input_support=UNIT_IMAGES),
    "ensemble": lambda: LabelledEnsemble([LabelledPerceptron((1, 8, 8), 3, (16,), "silu") for _ in range(3)]),
}


@pytest.mark.parametrize("make", LABELLED.values(), ids=LABELLED)
def test_the_energy_of_a_label_is_that_labels_output_with_chains_or_without(make):
    energy = make().eval()
    images, labels = torch.rand(5, 2, 1, 8, 8, generator=seeded()), torch.tensor([0, 2, 1, 1, 0])
    every = energy.energies(images)
    assert every.shape == (5, 2, 3)
    wanted = every[torch.arange(5), :, labels]
    torch.testing.assert_close(energy.of_inputs().given(labels)(images), wanted)
    torch.testing.assert_close(energy.of_inputs().given(labels)(images[:, 0]), wanted[:, 0])
    torch.testing.assert_close(energy.lowest()(images), every.amin(-1))
    torch.testing.assert_close(energy.marginal(1e-4)(images), every.amin(-1), atol=1e-3, rtol=0)
    summed = torch.exp(-every / 0.5).sum(-1)
    torch.testing.assert_close(torch.exp(-energy.marginal(0.5)(images) / 0.5), summed)


@pytest.mark.parametrize("make", LABELLED.values(), ids=LABELLED)
def test_the_gradient_by_hand_is_autograds_and_leaves_none_on_the_weights(make):
    energy = make().double().eval()
    images = torch.rand(4, 3, 1, 8, 8, generator=seeded(), dtype=torch.float64)
    given = energy.of_inputs().given(torch.tensor([2, 0, 1, 1]))
    value, grad = given.value_and_gradient(images)
    x = images.clone().requires_grad_(True)
    wanted = given(x)
    torch.testing.assert_close(value, wanted.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(wanted.sum(), x)[0])
    assert not value.requires_grad
    assert not grad.requires_grad
    assert all(w.grad is None for w in energy.parameters())


def test_the_energy_of_an_ensemble_is_the_mean_of_its_members_also_along_a_chain():
    members = [LabelledPerceptron((1, 8, 8), 3, (16,)) for _ in range(3)]
    ensemble, images = LabelledEnsemble(members), torch.rand(5, 1, 8, 8, generator=seeded())
    labels = torch.tensor([0, 2, 1, 1, 0])
    mean = sum(member.energies(images) for member in members) / 3
    torch.testing.assert_close(ensemble.energies(images), mean)
    given = ensemble.of_inputs().given(labels)
    torch.testing.assert_close(given.fixed().gradient(images), given.value_and_gradient(images)[1])
    assert len(list(ensemble.parameters())) == 3 * len(list(members[0].parameters()))


def test_spectral_normalisation_bounds_every_weight_and_rests_while_sampling():
    network = residual_network(1, 1, width=4, n_blocks=2)
    energy = ImageEnergy(network)
    energy.train()
    for _ in range(100):
        energy(torch.rand(2, 1, 8, 8))
    energy.eval()
    before = {k: v.clone() for k, v in energy.state_dict().items()}
    run_chain(ColdLangevin(0.1, 0.01, 1.0, 0, 1), energy, torch.rand(2, 1, 8, 8), 3, seeded())
    for name, value in energy.state_dict().items():
        assert torch.equal(value, before[name]), name
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) > 4
    for layer in convolutions:
        assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) < 1.25


def test_a_multiscale_energy_adds_the_energies_of_the_averages():
    def brightness(k: int) -> ImageEnergy:
        return ImageEnergy(nn.Sequential(nn.Flatten(), nn.Linear(64 // 4**k, 1)))

    parts = [brightness(0), brightness(1)]
    x = torch.rand(3, 2, 1, 8, 8)
    small = x.reshape(3, 2, 1, 4, 2, 4, 2).mean((4, 6))
    torch.testing.assert_close(MultiscaleEnergy(parts)(x), parts[0](x) + parts[1](small))


def test_clamped_coordinates_come_back_bit_for_bit_and_the_others_follow_the_conditional():
    """A Gaussian with correlation 0.8: given x_0 = 1 the mean of x_1 is 0.8, its variance 0.36."""
    from thalweg.energies import GaussianMixtureEnergy
    from thalweg.sampling.hmc import HMC

    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    energy = GaussianMixtureEnergy(torch.zeros(1, 2), torch.linalg.cholesky(covariance)[None])
    n = 4000
    clamped = ClampedEnergy(energy, torch.tensor([1.0, 0.0]).expand(n, 2), torch.tensor([True, False]))
    x = run_chain(HMC(0.4, 5), clamped, torch.zeros(n, 2), 40, seeded()).position
    end = clamped.complete(x)
    assert (end[:, 0] == 1.0).all()
    assert abs(float(end[:, 1].mean()) - 0.8) < 4 * 0.6 / n**0.5
    assert abs(float(end[:, 1].var()) - 0.36) < 4 * 0.36 * (2 / n) ** 0.5
    value, grad = clamped.value_and_gradient(x)
    y = x.clone().requires_grad_(True)
    torch.testing.assert_close(clamped(y), value)
    torch.testing.assert_close(torch.autograd.grad(clamped(y).sum(), y)[0], grad)


# -- images in ----------------------------------------------------------------------------------------


def test_images_of_every_layout_become_the_same_array():
    grey = np.random.RandomState(0).randint(0, 256, (5, 6, 7)).astype(np.uint8)
    found = as_images(grey)
    assert found.pixels.shape == (5, 1, 6, 7)
    assert found.resolution == pytest.approx(1 / 255)
    colour = np.stack([grey] * 3, -1)
    np.testing.assert_array_equal(as_images(colour).pixels[:, 1], found.pixels[:, 0])
    np.testing.assert_array_equal(as_images(as_images(colour).pixels).pixels, as_images(colour).pixels)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((3, 4)), "images must be"),
        (np.zeros((3, 5, 4, 4)), "images must be"),
        (np.full((3, 4, 4), np.nan), "without NaN"),
        (np.full((3, 4, 4), 2.0), "numbers in"),
        (np.zeros((3, 4, 4)), "all pixels are the same"),
        (np.zeros((0, 4, 4)), "images must be"),
    ],
)
def test_images_that_are_none_are_refused(pixels, words):
    with pytest.raises(ValueError, match=words):
        as_images(pixels)


def test_a_folder_of_pictures_is_read_with_its_subfolders_as_labels(tmp_path):
    rng = np.random.RandomState(0)
    for label in ("cats", "dogs"):
        (tmp_path / label).mkdir()
        for i in range(2):
            Image.fromarray(rng.randint(0, 256, (8, 8)).astype(np.uint8)).save(tmp_path / label / f"{i}.png")
    found = read_images(tmp_path)
    assert found.pixels.shape == (4, 1, 8, 8)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 1, 1]
    (tmp_path / "cats" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bad\.png can't be read"):
        read_images(tmp_path)


def test_pictures_of_several_sizes_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no pictures"):
        read_images(tmp_path)
    for size in (8, 9):
        Image.fromarray(np.zeros((size, size), np.uint8)).save(tmp_path / f"{size}.png")
    with pytest.raises(ValueError, match="differ in size"):
        read_images(tmp_path)
    with pytest.raises(ValueError, match="no file or folder"):
        read_images(tmp_path / "nothing")


def test_an_npz_is_read_and_a_damaged_one_refused(tmp_path):
    path = tmp_path / "some.npz"
    np.savez(path, X_train=np.arange(32, dtype=np.uint8).reshape(2, 4, 4), y_train=np.array([1, 0]))
    found = read_images(path)
    assert found.labels is not None
    assert found.labels.tolist() == [1, 0]
    np.savez(path, other=np.zeros(3))
    with pytest.raises(ValueError, match="no array X_train"):
        read_images(path)
    path.write_bytes(b"not a zip file")
    with pytest.raises(ValueError, match=r"is no \.npz"):
        read_images(path)


def test_outliers_are_what_they_say():
    train, _ = digits()
    found = outliers(train.pixels, 20, np.random.RandomState(0))
    assert set(found) == {"uniform noise", "constant", "shuffled", "inverted", "interpolated"}
    for images in found.values():
        assert images.shape == (20, 1, 8, 8)
        assert images.min() >= 0
        assert images.max() <= 1
    assert (np.ptp(found["constant"].reshape(20, -1), axis=1) == 0).all()


def test_sprites_show_their_concepts():
    sprites = draw_sprites(50, np.random.RandomState(0))
    assert sprites.images.shape == (50, 16, 16)
    right, down = np.meshgrid((np.arange(16) + 0.5) / 16, (np.arange(16) + 0.5) / 16)
    mass = sprites.images.sum((1, 2))
    centre = np.stack([(sprites.images * m).sum((1, 2)) / mass for m in (right, down)], 1)
    assert np.abs(centre - sprites.place)[sprites.shape != SHAPES.index("triangle")].max() < 0.02
    big = render_sprites(sprites.shape, sprites.place, 1.1 * sprites.scale, sprites.rotation)
    assert (big.sum((1, 2)) > mass).all()


# -- the estimator ------------------------------------------------------------------------------------


SMALL = {
    "chains": {"hidden": (64,), "n_steps": 10, "max_steps": 200, "buffer_size": 200, "batch_size": 50},
    "matching": {"hidden": (128,), "max_steps": 150, "n_paired": 200, "batch_size": 50},
}
SMALL["improved-chains"] = SMALL["chains"]


@pytest.fixture(scope="module", params=["matching", "chains", "improved-chains"])
def small(request: pytest.FixtureRequest) -> tuple[ImageEBM, np.ndarray, np.ndarray]:
    train, _ = digits()
    images, labels = train.pixels[:400], train.labels[:400]
    model = ImageEBM(objective=request.param, **SMALL[request.param], random_state=0)
    return model.fit(images, labels, resolution=1 / 16), images, labels


def test_a_short_training_knows_digits_from_noise_and_repeats_itself(small):
    model, images, labels = small
    noise = np.random.RandomState(0).uniform(size=(100, 1, 8, 8)).astype(np.float32)
    assert model.score_samples(images[:100]).min() > np.median(model.score_samples(noise))
    again = ImageEBM(**model.get_params())
    again.fit(images, labels, resolution=1 / 16)
    np.testing.assert_array_equal(again.energies(images[:5]), model.energies(images[:5]))


def test_improved_chains_learn_from_their_last_step_as_well():
    """After one update the weights differ from those of plain chains by the added term alone."""
    train, _ = digits()
    images, labels = train.pixels[:50], train.labels[:50] % 2
    found = {
        objective: ImageEBM(objective=objective, hidden=(8,), max_steps=1, n_steps=2, random_state=0).fit(
            images, labels
        )
        for objective in ("chains", "improved-chains")
    }
    assert "entropy" in found["improved-chains"].history_.epochs[-1]
    assert "entropy" not in found["chains"].history_.epochs[-1]
    plain, improved = (model.energy_.state_dict() for model in found.values())
    assert any(not torch.allclose(plain[name], improved[name]) for name in plain)


def test_samples_lie_in_the_box_and_are_seeded(small):
    model, *_ = small
    a, b = (model.sample(6, n_steps=20, random_state=s) for s in (1, 1))
    np.testing.assert_array_equal(a, b)
    assert a.shape == (6, 1, 8, 8)
    assert a.min() >= 0
    assert a.max() <= 1


def test_a_passage_leads_from_the_starts_to_the_new_images(small):
    model, *_ = small
    frames = model.passage(5, n_frames=6, random_state=3)
    assert frames.shape == (6, 5, 1, 8, 8)
    np.testing.assert_allclose(frames[0], model.starts(5, random_state=3))
    if model.objective == "matching":
        # The same 25 steps, without clipping in between.
        np.testing.assert_allclose(frames[-1], model.sample(5, random_state=3), atol=1e-5)
    lows = [
        float(np.take_along_axis(model.energies(f), np.arange(5)[:, None] % model.n_labels_, 1).mean())
        for f in frames
    ]
    assert lows[-1] < lows[0]
    with pytest.raises(ValueError, match="n_frames"):
        model.passage(2, n_frames=1)


def test_known_pixels_are_completed_bit_for_bit(small):
    model, images, labels = small
    known = np.zeros((1, 8, 8), bool)
    known[:, :4] = True
    for given in (labels[:5], None):
        found = model.impute(images[:5], known=known, labels=given, n_draws=3, n_steps=10, random_state=0)
        assert found.shape == (3, 5, 1, 8, 8)
        assert (found[:, :, :, :4] == images[:5, :, :4]).all()
        assert not (found[:, :, :, 4:] == images[:5, :, 4:]).all()


def test_images_that_can_not_be_completed_are_refused_and_bytes_are_numbers(small):
    model, images, labels = small
    known, how = np.arange(8)[:, None] < 4, {"labels": labels[:2], "n_draws": 1, "n_steps": 5, "random_state": 0}
    pixels = np.rint(255 * images[:2]).astype(np.uint8)
    found = model.impute(pixels, known=known, **how)
    np.testing.assert_allclose(found, model.impute(pixels / 255, known=known, **how), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="known must broadcast"):
        model.impute(images[:2], known=known[:3], **how)
    with pytest.raises(ValueError, match="True or False"):
        model.impute(images[:2], known=known.astype(int), **how)
    with pytest.raises(ValueError, match="images with gaps must be"):
        model.impute(images[:2, :, :4], **how)


def test_denoising_moves_towards_the_data(small):
    model, images, labels = small
    noisy = (images[:50] + 0.3 * np.random.RandomState(0).randn(50, 1, 8, 8)).clip(0, 1).astype(np.float32)
    clean = model.denoise(noisy, labels=labels[:50], random_state=0)
    assert ((clean - images[:50]) ** 2).mean() < ((noisy - images[:50]) ** 2).mean()


class Mirrored(Energy):
    """Low where the left half of an image mirrors the right one."""

    event_ndim = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (x - x.flip(-1)).square().sum((-3, -2, -1))


def test_images_of_a_sum_of_energies_have_what_both_ask_for(small):
    """The mirror is easily met; labels are still told from each other as in images of the energy alone."""
    model, *_ = small
    labels = np.arange(60) % 10
    mirrored = WeightedSum([Mirrored()], [1.0 if model.objective == "matching" else 0.1])
    alone = model.sample(60, labels=labels, random_state=0)
    both = model.sample(60, labels=labels, random_state=0, composed_with=mirrored)

    def apart(images):
        return np.square(images - images[..., ::-1]).sum((1, 2, 3)).mean()

    assert apart(both) < 0.3 * apart(alone)
    right = [(model.energies(images).argmin(1) == labels).mean() for images in (alone, both)]
    assert right[1] > 0.6 * right[0]
    nothing = model.sample(60, labels=labels, random_state=0, composed_with=WeightedSum([Mirrored()], [0.0]))
    np.testing.assert_allclose(nothing, alone, atol=1e-4)


def test_a_counterfactual_is_the_label_asked_for_and_nearer_than_images_of_it(small):
    model, images, labels = small
    found, asked = images[:50], (model.energies(images[:50]).argmin(1) + 1) % 10
    moved = model.counterfactual(found, asked)
    reached = model.energies(moved).argmin(1) == asked
    assert reached.mean() > 0.7
    gaps = found[:, None] - images[None]
    of_label = np.where(asked[:, None] == labels[None], np.square(gaps).sum((2, 3, 4)), np.inf).min(1)
    assert np.median(np.square(moved - found).sum((1, 2, 3))[reached]) < np.median(of_label)
    assert 0 <= moved.min() <= moved.max() <= 1
    own = model.energies(images[:5]).argmin(1)
    np.testing.assert_array_equal(model.counterfactual(images[:5], own), images[:5].astype(np.float32))
    with pytest.raises(ValueError, match="from 0 to 9"):
        model.counterfactual(images[:5], 10)


def test_without_labels_there_is_no_counterfactual():
    model = ImageEBM(max_steps=1, n_threads=1, hidden=(8,)).fit(np.random.RandomState(0).uniform(size=(20, 8, 8)))
    with pytest.raises(ValueError, match="no labels"):
        model.counterfactual(np.zeros((1, 8, 8)), 0)


def test_a_saved_model_is_the_same_and_a_foreign_one_refused(small, tmp_path):
    model, images, _ = small
    model.save(tmp_path / "model", extra={"note": 1})
    loaded = ImageEBM.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.energies(images[:5]), model.energies(images[:5]))
    assert loaded.extra_ == {"note": 1}
    with pytest.raises(ValueError, match="holds no model"):
        ImageEBM.load(tmp_path)


def test_an_ensemble_averages_snapshots_of_which_the_last_is_the_energy_without_it(small, tmp_path):
    last, images, labels = small
    settings = last.get_params() | {"n_snapshots": 4}
    model = ImageEBM(**settings).fit(images, labels, resolution=1 / 16)
    members = model.energy_.members
    assert len(members) == 4
    first = [next(member.parameters()) for member in members]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(first))
    for own, other in zip(members[-1].parameters(), last.energy_.parameters(), strict=True):
        assert torch.equal(own, other)
    x = torch.from_numpy(images[:5])
    with torch.no_grad():
        mean = torch.stack([member.energies(x) for member in members]).mean(0)
    np.testing.assert_allclose(model.energies(images[:5]), mean.numpy(), rtol=1e-5, atol=1e-6)
    model.save(tmp_path)
    loaded = ImageEBM.load(tmp_path)
    for a, b in zip(used(model, images, labels), used(loaded, images, labels), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(model.sample(4, random_state=0), last.sample(4, random_state=0))


def used(model: ImageEBM, images: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """What a model says to each question."""
    known = np.arange(8)[:, None] < 4
    return [
        model.energies(images[:5]),
        model.score_samples(images[:5]),
        model.sample(5, n_steps=5, random_state=0),
        model.sample(5, labels=labels[:5], n_steps=5, start=images[5:10], random_state=0),
        model.impute(images[:3], known=known, n_draws=2, n_steps=5, random_state=0),
        model.denoise(images[:3], labels=labels[:3], n_chains=2, n_steps=3, random_state=0),
    ]


@pytest.mark.parametrize("n_snapshots", [1, 3])
def test_an_interrupted_run_of_chains_resumes_to_the_same_energy(tmp_path, n_snapshots):
    train, _ = digits()
    images, labels = train.pixels[:400], train.labels[:400]
    settings = {
        "objective": "chains",
        "hidden": (16,),
        "n_steps": 3,
        "max_steps": 24,
        "n_snapshots": n_snapshots,
        "buffer_size": 60,
        "batch_size": 50,
        "random_state": 1,
    }
    whole = ImageEBM(**settings).fit(images, labels, resolution=1 / 16)
    count = 0

    class Interrupting(ColdLangevin):
        def step(self, *args):
            nonlocal count
            count += 1
            if count == 68:
                raise KeyboardInterrupt
            return super().step(*args)

    broken = ImageEBM(**settings)
    broken._kernel = lambda: Interrupting(0.05, 0.03, 1.0, 0.0, 1.0)
    with pytest.raises(KeyboardInterrupt):
        broken.fit(images, labels, resolution=1 / 16, run_dir=tmp_path, checkpoint_seconds=0.0)
    resumed = ImageEBM(**settings).fit(
        images, labels, resolution=1 / 16, run_dir=tmp_path, resume=True, checkpoint_seconds=0.0
    )
    np.testing.assert_array_equal(resumed.energies(images[:5]), whole.energies(images[:5]))


def test_an_interrupted_matching_resumes_to_the_same_energy(tmp_path, monkeypatch):
    train, _ = digits()
    images, labels = train.pixels[:400], train.labels[:400]
    settings = {"hidden": (16,), "max_steps": 24, "n_paired": 100, "batch_size": 50, "random_state": 1}
    whole = ImageEBM(**settings).fit(images, labels, resolution=1 / 16)
    losses, calls = EnergyMatching._losses, itertools.count()

    def interrupting(*arguments):
        if next(calls) == 13:
            raise KeyboardInterrupt
        return losses(*arguments)

    broken = ImageEBM(**settings)
    with monkeypatch.context() as patch:
        patch.setattr(EnergyMatching, "_losses", interrupting)
        with pytest.raises(KeyboardInterrupt):
            broken.fit(images, labels, resolution=1 / 16, run_dir=tmp_path, checkpoint_seconds=0.0)
    resumed = ImageEBM(**settings).fit(
        images, labels, resolution=1 / 16, run_dir=tmp_path, resume=True, checkpoint_seconds=0.0
    )
    np.testing.assert_array_equal(resumed.energies(images[:5]), whole.energies(images[:5]))


def test_new_images_start_at_gaussians_of_their_labels_and_end_nearer_to_the_data():
    train, _ = digits()
    model = ImageEBM(hidden=(128,), max_steps=300, n_paired=400, batch_size=100, random_state=0)
    model.fit(train.pixels, train.labels, resolution=1 / 16)
    labels = np.arange(200) % 10
    starts = model.starts(200, labels=labels, random_state=0)
    means = np.stack([train.pixels[train.labels == k].mean(0) for k in range(10)])
    assert np.abs(starts - means[labels]).mean() < np.abs(starts - means[(labels + 1) % 10]).mean()
    new = model.sample(200, labels=labels, random_state=0)
    nearest = [nearest_neighbours(images, train.pixels).distance.mean() for images in (starts, new)]
    assert nearest[1] < 0.9 * nearest[0]
    # No time to flow leaves them where they start.
    walk = model._walk()
    assert walk.kept < 1
    onward = model.sample(200, labels=labels, start=train.pixels[:200], random_state=0)
    assert onward.shape == new.shape


class Springs(Energy):
    """(k / 2) of the squares by which the lower row of 2 x 1 pixels differs from the upper one."""

    event_ndim = 3

    def __init__(self, k: float):
        super().__init__()
        self.k = k

    def forward(self, x):
        return 0.5 * self.k * (x[..., 1, :] - x[..., 0, :]).square().sum((-2, -1))


def narrow(mean: float) -> MatchedFlow:
    """A flow from images of 2 x 1 pixels that are nearly all of this grey."""
    shape = (1, 1, 2, 1)
    return MatchedFlow(
        ClassGaussians(torch.full(shape, mean), torch.zeros(1, 1, 1, 2, 1), torch.full(shape, 1e-8))
    )


def test_known_pixels_come_along_the_line_from_the_noise_to_what_they_are():
    """An unknown pixel on a spring follows the known one from .2 to .8, by a recursion that can be written out."""
    images, labels = torch.full((3, 2, 1, 2, 1), 0.8), torch.zeros(3)
    known = torch.tensor([[True], [False]]).reshape(1, 1, 1, 2, 1)
    found = narrow(0.2).completed(Springs(10.0), labels, images, known, 25, seeded())
    assert (found[..., 0, :] == 0.8).all()
    unknown, shrink = 0.2, 1 - 2 * 10 / 25 + 0.5 * (2 * 10 / 25) ** 2
    for step in range(25):
        # Heun's step shrinks their difference and keeps their mean.
        here = 0.2 + 0.6 * step / 25
        unknown = 0.5 * (unknown + here + shrink * (unknown - here))
    torch.testing.assert_close(found[..., 1, :], torch.full_like(found[..., 1, :], unknown), atol=2e-3, rtol=0)


def test_a_crossing_starts_where_less_than_half_of_the_image_is_kept():
    """Without a slope it stays there: at .4 of the way from the noise, .2, to the image, .7."""
    images = torch.full((3, 1, 2, 1), 0.7)
    found = narrow(0.2).onward(Springs(0.0), torch.zeros(3), images, 5, seeded())
    torch.testing.assert_close(found, torch.full_like(found, 0.4), atol=2e-3, rtol=0)


def test_after_matching_an_image_has_the_lowest_energy_under_its_label():
    train, test = digits()
    model = ImageEBM(hidden=(128,), max_steps=300, n_paired=400, batch_size=100, random_state=0)
    model.fit(train.pixels, train.labels, resolution=1 / 16)
    assert (model.energies(test.pixels).argmin(1) == test.labels).mean() > 0.9


def test_convolutions_train_on_colour_images_without_labels():
    images = np.random.RandomState(0).randint(0, 256, (12, 16, 16, 3)).astype(np.uint8)
    model = ImageEBM(width=4, hidden=(8,), max_steps=3, batch_size=4, random_state=0).fit(images)
    assert model.image_shape_ == (3, 16, 16)
    assert any(isinstance(part, nn.Conv2d) for part in model.energy_.modules())
    assert model.sample(2, n_steps=2, random_state=0).shape == (2, 3, 16, 16)
    filled = model.impute(images[:2].transpose(0, 3, 1, 2) / 255, known=np.arange(16) < 8, n_steps=2)
    assert filled.shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y": np.array([0.5, 1.0])}, "whole numbers"),
        ({"y": np.array([0, 2])}, "label 1 has no image"),
        ({"y": np.array([0, 1, 1])}, "2 images and 3 labels"),
        ({"X": np.zeros((2, 3))}, "images must be"),
    ],
)
def test_bad_training_data_are_refused(change, words):
    data = {"X": np.random.RandomState(0).uniform(size=(2, 8, 8)), "y": np.array([0, 1])} | change
    with pytest.raises(ValueError, match=words):
        ImageEBM(max_steps=1).fit(**data)


def test_bad_use_is_refused(small):
    model, images, _ = small
    with pytest.raises(ValueError, match="labels must be"):
        model.sample(2, labels=np.array([0, 10]))
    with pytest.raises(ValueError, match="images must be"):
        model.energies(images[:, :, :4])
    with pytest.raises(ValueError, match="NaN"):
        model.energies(np.full((1, 1, 8, 8), np.nan))
    with pytest.raises(ValueError, match="network must be"):
        ImageEBM(network="huge").fit(images)
    with pytest.raises(ValueError, match="too small"):
        ImageEBM(network="residual", n_blocks=5).fit(images)
    with pytest.raises(ValueError, match="n_snapshots must be"):
        ImageEBM(n_snapshots=0).fit(images)
    with pytest.raises(ValueError, match="2 snapshots do not go into the last eighth of 15 steps"):
        ImageEBM(n_snapshots=2, max_steps=15, batch_size=len(images)).fit(images)
    with pytest.raises(ValueError, match="objective must be one of matching, chains, improved-chains; got 'flow'"):
        ImageEBM(objective="flow").fit(images)


def test_a_residual_network_trains_on_colour_images_without_labels():
    images = np.random.RandomState(0).randint(0, 256, (12, 16, 16, 3)).astype(np.uint8)
    model = ImageEBM(
        objective="chains",
        network="residual",
        width=4,
        n_steps=2,
        max_steps=3,
        batch_size=4,
        buffer_size=8,
        random_state=0,
    )
    model.fit(images)
    assert model.image_shape_ == (3, 16, 16)
    assert model.sample(2, n_steps=2, random_state=0).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("size", "given", "step_size", "kind"),
    [
        (8, None, 0.05, LabelledPerceptron),
        (8, 0.1, 0.1, LabelledPerceptron),
        (28, None, 3.0, LabelledPerceptron),
        (64, None, 3.0, LabelledEnergy),
    ],
)
def test_large_images_take_longer_steps_and_still_larger_ones_convolutions(size, given, step_size, kind):
    model = ImageEBM(
        objective="chains", width=4, n_steps=1, step_size=given, max_steps=1, buffer_size=4, random_state=0
    )
    model.fit(np.random.RandomState(0).uniform(size=(4, size, size)))
    assert model._kernel().step_size == step_size
    assert isinstance(model.energy_, kind)


@pytest.mark.parametrize(("step_size", "n_updates", "stuck"), [(None, 400, False), (1e-6, 20, True)])
def test_chains_that_are_stuck_are_told(step_size, n_updates, stuck):
    train, _ = digits()
    chains = {"objective": "chains", "hidden": (64, 64), "step_size": step_size}
    model = ImageEBM(**chains, max_steps=n_updates, random_state=0)
    verdict = model.fit(train.pixels, train.labels).verdict_
    chains = next(check for check in verdict if check.name == "chains")
    assert (chains.state != "passed") == stuck
    assert ("longer steps" in chains.text) == stuck


@pytest.mark.parametrize(
    "check",
    [
        "check_estimator_cloneable",
        "check_estimator_tags_renamed",
        "check_valid_tag_types",
        "check_estimator_repr",
        "check_no_attributes_set_in_init",
        "check_mixin_order",
        "check_do_not_raise_errors_in_init_or_set_params",
        "check_get_params_invariance",
        "check_set_params",
        "check_parameters_default_constructible",
    ],
)
def test_scikit_learn_checks(check):
    """Those that need no table: the others make one of two dimensions, which are no images."""
    getattr(estimator_checks, check)("ImageEBM", ImageEBM(max_steps=2, random_state=0))
