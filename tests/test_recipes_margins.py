"""The recipes of losses that order answers run, and what they draw and measure is what it should be."""

import json

import numpy as np
import pytest
import torch

from thalweg.data.rendered import box_iou
from thalweg.objectives.base import Batch
from thalweg.objectives.catalogue import ANSWER_LOSSES
from thalweg.objectives.margin import MarginLoss
from thalweg.recipes import RECIPES, faces, losses
from thalweg.recipes.base import Settings
from thalweg.recipes.faces import FACE, OTHER

# -- the ten losses -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_losses_quick_run():
    messages = []
    result = losses.RECIPE.run(Settings(seeds=(0, 1), quick=True, tell=messages.append))
    figures = {f.name: f for f in result.figures}
    assert len(figures) == len(result.figures)
    assert all(len(f.values) == 2 and np.isfinite(f.values).all() for f in result.figures)
    assert all(f.target is None for f in result.figures)  # a quick run is not judged
    assert set(losses._targets()) <= set(figures)
    assert max(map(len, figures)) <= 44  # the terminal's table is narrow
    table, planes = result.pictures.values()
    assert len(table.data[0].cells["values"][0]) == len(losses.LOSSES)
    assert len(json.loads(planes.to_json())["data"]) == 3 * len(losses.LOSSES)
    assert len(messages) == 2
    assert RECIPES["losses"] is losses.RECIPE


def test_the_recipe_has_the_ten_losses_of_the_table():
    assert set(losses.LOSSES) == set(ANSWER_LOSSES)
    for name, loss in losses.LOSSES.items():
        for build in loss.variants.values():
            assert type(build()) is type(ANSWER_LOSSES[name]())


def test_a_constant_reaches_the_objective():
    margins = [build().shape.margin for build in losses.LOSSES["hinge"].variants.values()]
    assert len(set(margins)) == len(margins)
    temperatures = {build().temperature for build in losses.LOSSES["likelihood"].variants.values()}
    assert len(temperatures) == len(losses.LOSSES["likelihood"].variants)


def test_the_plane_is_the_losses_formula():
    correct, incorrect = torch.tensor([0.2, 1.0, 3.0]), torch.tensor([1.0, 0.5, 2.5])
    gap = correct - incorrect
    expected = {
        "energy": correct,
        "perceptron": gap.clamp(min=0),
        "hinge": (1 + gap).clamp(min=0),
        "mce": torch.sigmoid(gap),
        "square-square": correct**2 + (1 - incorrect).clamp(min=0) ** 2,
        "likelihood": correct + torch.logaddexp(-correct, -incorrect),
        "mee": torch.sigmoid(gap),
    }
    for name, height in expected.items():
        found = losses.on_plane(ANSWER_LOSSES[name](), correct, incorrect)
        torch.testing.assert_close(found, height, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("squared", [False, True])
def test_squared_outputs_are_energies_from_zero(squared):
    energies = losses.labelled_energy(squared, 0).energies(torch.rand(50, 64))
    assert energies.shape == (50, 10)
    assert bool((energies >= 0).all()) == squared


def test_the_energy_loss_collapses_and_the_history_says_so():
    rows, _, _, test = losses._data(Settings(), 0)
    loss = losses.LOSSES["energy"]
    energy, history = losses.fit(Settings(), loss, loss.variants[""](), rows, 1e-2, 0)
    assert losses._spread(energy, test) < 1e-3
    assert losses._collapses(history) == 1
    assert losses.accuracy(energy, test) < 0.5


def test_lvq2_refines_what_the_likelihood_began():
    rows, _, _, test = losses._data(Settings(), 0)
    loss = losses.LOSSES["lvq2"]
    began = losses._warmed_up(Settings(), loss, rows, loss.warm_up, 0)
    refined, _ = losses.fit(Settings(), loss, next(iter(loss.variants.values()))(), rows, 3e-3, 0)
    assert losses.accuracy(refined, test) > losses.accuracy(began, test)
    assert losses.accuracy(refined, test) > 0.9


# -- faces ----------------------------------------------------------------------------------------------------


def _drawn_face(rng: np.random.RandomState, size: int = 25) -> np.ndarray:
    """A bright oval with two dark eyes and a mouth."""
    y, x = (np.indices((size, size)) + 0.5) / size * 2 - 1
    face = 0.3 + 0.5 * (x**2 / 0.6 + y**2 < 0.9)
    for at in (-0.35, 0.35):
        face = face - 0.5 * ((x - at) ** 2 + (y + 0.25) ** 2 < 0.03)
    face = face - 0.4 * ((np.abs(x) < 0.35) & (np.abs(y - 0.45) < 0.08))
    return 255 * np.clip(face + 0.03 * rng.normal(size=face.shape), 0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rng = np.random.RandomState(0)
    x = {FACE: np.stack([_drawn_face(rng) for _ in range(30)])}
    waves = np.sin(np.arange(25) * rng.uniform(0.1, 1, (30, 1)) + rng.uniform(0, 6, (30, 1)))
    x[OTHER] = 127 + 100 * np.repeat(waves[:, None], 25, 1) + rng.normal(size=(30, 25, 25))
    arrays = {}
    for part, rows in (("train", slice(0, 20)), ("test", slice(20, 30))):
        arrays[f"X_{part}"] = np.concatenate([x[FACE][rows], x[OTHER][rows]]).astype(np.uint8)
        arrays[f"y_{part}"] = np.repeat([FACE, OTHER], len(arrays[f"X_{part}"]) // 2)
    scene = 127 + 60 * np.sin(np.arange(160) / 9)[None] + rng.normal(size=(160, 160))
    scene[40:90, 70:120] = _drawn_face(rng, 50)
    path = tmp_path_factory.mktemp("faces")
    np.savez(path / faces.FILE, **arrays, scene=scene.astype(np.uint8), scene_box=(95.0, 65.0, 50.0, 50.0))
    return path


@pytest.mark.slow
def test_faces_quick_run(folder):
    messages = []
    result = faces.RECIPE.run(Settings(seeds=(0, 1), data=folder, quick=True, tell=messages.append))
    figures = {f.name: f for f in result.figures}
    assert all(len(f.values) == 2 and np.isfinite(f.values).all() for f in result.figures)
    assert all(f.target is None for f in result.figures)  # a quick run is not judged
    assert set(faces.TARGETS) <= set(figures)
    assert max(map(len, figures)) <= 44  # the terminal's table is narrow
    assert len(result.pictures) == len(faces.LOSSES)
    for picture in result.pictures.values():
        assert json.loads(picture.to_json())["data"]
    assert len(messages) == 2
    assert RECIPES["faces"] is faces.RECIPE


def test_missing_data_is_reported(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"holds no faces_25\.npz"):
        faces.read(tmp_path, 0)
    np.savez(tmp_path / faces.FILE, X_train=np.zeros((4, 25, 25)))
    with pytest.raises(ValueError, match="lacks X_test, scene, y_test, y_train"):
        faces.read(tmp_path, 0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="give --data FOLDER"):
        faces.read(None, 0)


def _face_energy() -> faces.FaceEnergy:
    gradients = faces.OrientedGradients()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return faces.FaceEnergy(torch.nn.Sequential(gradients, torch.nn.Linear(gradients.n_features, 4)))


def test_the_pose_is_minimised_out_exactly():
    energy, x = _face_energy(), torch.rand(5, 1, 25, 25, generator=torch.Generator().manual_seed(0))
    n = len(faces.POSES)
    every = torch.stack([energy.of_pose(x, torch.full((5,), z)) for z in range(n)], 1)
    torch.testing.assert_close(energy.of_face(x), every.amin(1))
    # The gradient of a minimum is that at the lowest pose.
    weight = energy.network[1].weight
    (found,) = torch.autograd.grad(energy.of_face(x).sum(), weight, retain_graph=True)
    (expected,) = torch.autograd.grad(every.amin(1).sum(), weight)
    torch.testing.assert_close(found, expected)


def test_a_mirrored_patch_and_one_of_other_contrast_have_the_same_energy():
    energy, x = _face_energy(), torch.rand(5, 1, 25, 25, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(energy.of_face(x.flip(3)), energy.of_face(x), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(energy.of_face(0.2 + 0.5 * x), energy.of_face(x), rtol=1e-3, atol=1e-4)


def test_the_losses_are_those_of_a_constant_energy_for_no_face():
    """The square-exponential loss is E^2 of a face and gamma exp(-E) of anything else, up to constants."""
    energy, x = _face_energy(), torch.rand(6, 1, 25, 25, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([FACE, OTHER] * 3)
    shape = faces.LOSSES["square-exponential"]
    e, t = energy.of_face(x), torch.tensor(energy.threshold)
    constant = torch.where(y == FACE, shape.gamma * torch.exp(-t), t**2)
    expected = constant + torch.where(y == FACE, e**2, shape.gamma * torch.exp(-e))
    torch.testing.assert_close(MarginLoss(shape).per_row(energy, Batch(x, y), None), expected)


def test_negatives_are_as_many_as_asked_for_and_pieces_are_the_same_pixels():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20, 1, 25, 25, generator=generator)
    assert faces.negatives(x, x, 50, generator).shape == (50, 1, 25, 25)
    pieces = faces._in_pieces(x, generator)
    torch.testing.assert_close(pieces.flatten(1).sort(1).values, x.flatten(1).sort(1).values)
    assert not torch.equal(pieces, x)


def test_a_scan_finds_what_has_the_lowest_energy(folder):
    """With the distance to the drawn face as the energy, the face is found."""
    data = faces.read(folder, 0)
    template = faces.standardised(data.train.x[data.train.y == FACE].mean(0, keepdim=True))

    class Distance(torch.nn.Module):
        def forward(self, x):
            return (x - template).flatten(1) / 25

    places, chart = faces.scan(faces.FaceEnergy(Distance()), data.scene, quick=True)
    assert box_iou(places.boxes[:1], data.box[None])[0] > 0.7
    assert (np.diff(places.energies) >= 0).all()
    row, column = np.unravel_index(chart.argmin(), chart.shape)
    assert abs(row / 64 * 160 - 65) < 15
    assert abs(column / 64 * 160 - 95) < 15


def test_a_window_in_its_lowest_pose_shows_what_the_energy_saw():
    energy = _face_energy()
    picture = torch.rand(1, 1, 200, 200, generator=torch.Generator().manual_seed(0))
    # Smooth enough that it matters little where it is interpolated.
    picture = torch.nn.functional.avg_pool2d(picture, 21, 1, 10)
    place = faces.PlaceEnergy(energy, picture)
    window = torch.tensor([[3.1, 4.2, 0.1], [2.5, 5.0, 0.0], [5.2, 2.4, -0.2]])
    shown = place.patches(window)
    posed = place.patches(place.posed(window))
    mirrored = energy.poses[energy.lowest_pose(shown)][:, 0, 0] < 0
    posed = torch.where(mirrored[:, None, None, None], posed.flip(3), posed)
    seen = faces.moved(shown, energy.poses[energy.lowest_pose(shown)])
    inner = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(posed[inner], seen[inner], rtol=0, atol=0.02)


def test_of_boxes_that_overlap_the_lowest_is_kept():
    boxes = np.array([[10.0, 10, 10, 10], [11, 10, 10, 10], [40, 40, 10, 10], [11, 11, 10, 10]])
    assert faces.kept(boxes, np.array([2.0, 1.0, 3.0, 1.5]), 4).tolist() == [1, 2]
    assert faces.kept(boxes, np.array([2.0, 1.0, 3.0, 1.5]), 1).tolist() == [1]


def test_the_lead_is_above_zero_where_the_face_is_lowest():
    places = faces.Places(np.zeros((3, 4)), np.array([0.1, 0.4, 0.9]))
    assert faces._lead(places, np.array([True, False, False])) == pytest.approx(0.3)
    assert faces._lead(places, np.array([False, True, False])) == pytest.approx(-0.3)
