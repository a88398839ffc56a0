"""The rendered data say what they claim: geometry, boxes, and the distribution of the ages."""

import numpy as np
import pytest

from thalweg.data.rendered import (
    SHAPES,
    ShellAges,
    box_corners,
    box_iou,
    box_iou_3d,
    decode_box,
    decode_box_3d,
    encode_box,
    encode_box_3d,
    render_clouds,
    render_heads,
    render_scenes,
    rotation,
    shell_ages,
)
from thalweg.data.tanks import Series, lagged, load_tanks, simulate_tanks


def test_rotation_turns_the_way_it_says():
    nose, crown = np.array([0, 0, 1.0]), np.array([0, 1.0, 0])
    yaw, pitch, roll = rotation(np.array([30.0, 0, 0]), np.array([0, 30.0, 0]), np.array([0, 0, 30.0]))
    assert (yaw @ nose)[0] == pytest.approx(0.5)  # to the viewer's right
    assert (pitch @ nose)[1] == pytest.approx(0.5)  # up
    assert (roll @ crown)[0] == pytest.approx(-0.5)  # counter-clockwise
    turned = rotation(*np.random.default_rng(0).uniform(-90, 90, (3, 20)))
    np.testing.assert_allclose(
        turned @ turned.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (20, 3, 3)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(turned), 1)


def test_heads_are_reproducible_and_in_range():
    heads = render_heads(300, seed=3)
    assert heads.images.shape == (300, 1, 32, 32)
    assert heads.images.dtype == np.float32
    assert np.isfinite(heads.images).all()
    assert (np.abs(heads.pose) <= [75, 40, 30]).all()
    assert 0.15 < heads.backlit.mean() < 0.35
    np.testing.assert_array_equal(heads.images, render_heads(300, seed=3).images)
    assert not np.array_equal(heads.images, render_heads(300, seed=4).images)


def test_a_linear_map_already_reads_something_of_the_pose():
    heads = render_heads(3000, seed=0, backlit_share=0.0)
    x = np.c_[heads.images.reshape(3000, -1), np.ones(3000)]
    gram = x[:2000].T @ x[:2000] + 30 * np.eye(x.shape[1])
    pose = x[2000:] @ np.linalg.solve(gram, x[:2000].T @ heads.pose[:2000])
    for k in range(3):
        assert np.corrcoef(pose[:, k], heads.pose[2000:, k])[0, 1] > 0.3


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_the_box_is_tight_round_the_object(shape):
    scenes = render_scenes(60, seed=1)
    chosen = np.flatnonzero((scenes.shape == shape) & (scenes.post[:, 1] == 0))[:3]
    size = 200
    pictures = scenes.draw(np.tile([0.5, 0.5, 1, 1], (60, 1)), size)[chosen, 0]
    assert len(chosen)
    for i, picture in zip(chosen, pictures, strict=True):
        inside = np.abs(picture - scenes.brightness[i]) < np.abs(picture - 0.45)
        # Rows and columns that hold more of the object than the texture and the noise could pretend.
        x, y, w, h = scenes.boxes[i]
        grid = (np.arange(size) + 0.5) / size
        off_x = np.abs(grid - x) > w / 2 + 2 / size
        off_y = np.abs(grid - y) > h / 2 + 2 / size
        assert inside[off_y].mean() < 0.05
        assert inside[:, off_x].mean() < 0.05
        middle_row, middle_column = np.argmin(np.abs(grid - y)), np.argmin(np.abs(grid - x))
        # The 2 pixels of slack at either end are not the object's; a triangle is half as wide in the middle.
        assert inside[middle_row, ~off_x].mean() > (0.4 if SHAPES[shape] == "triangle" else 0.85)
        assert inside[~off_y, middle_column].mean() > 0.85


def test_box_codes_go_back_and_proposals_are_rough():
    scenes = render_scenes(500, seed=0)
    code = encode_box(scenes.boxes, scenes.proposals)
    np.testing.assert_allclose(decode_box(code, scenes.proposals), scenes.boxes)
    np.testing.assert_allclose(encode_box(scenes.boxes, scenes.boxes), 0)
    iou = box_iou(scenes.boxes, scenes.proposals)
    assert 0.5 < iou.mean() < 0.7
    assert ((iou >= 0) & (iou <= 1)).all()


def test_box_iou_by_hand():
    a = np.array([0.0, 0, 2, 2])
    assert box_iou(a, a) == pytest.approx(1)
    assert box_iou(a, np.array([1.0, 0, 2, 2])) == pytest.approx(1 / 3)
    assert box_iou(a, np.array([5.0, 0, 2, 2])) == 0


def test_box_iou_3d_by_hand():
    unit = np.array([[0, 0, 0, 1, 1, 1, 0.0]])

    def iou(**change):
        other = unit.copy()
        for k, v in change.items():
            other[0, int(k[1:])] = v
        return box_iou_3d(unit, other)[0]

    assert iou() == pytest.approx(1)
    assert iou(_0=0.5) == pytest.approx(1 / 3)
    assert iou(_2=0.5) == pytest.approx(1 / 3)
    assert iou(_6=np.pi / 2) == pytest.approx(1)
    octagon = 2 * (np.sqrt(2) - 1)  # the square and itself turned by 45 degrees have an octagon in common
    assert iou(_6=np.pi / 4) == pytest.approx(octagon / (2 - octagon))
    assert iou(_0=3.0) == 0


def test_box_iou_3d_against_sampling():
    rng = np.random.default_rng(0)
    clouds = render_clouds(5, seed=2)
    a, b = clouds.boxes, clouds.proposals
    points = a[:, None, :3] + rng.uniform(-4, 4, (5, 200_000, 3))

    def inside(box):
        local = points - box[:, None, :3]
        c, s = np.cos(box[:, 6, None]), np.sin(box[:, 6, None])
        x, y = c * local[..., 0] + s * local[..., 1], -s * local[..., 0] + c * local[..., 1]
        half = box[:, None, 3:6] / 2
        return (np.abs(np.stack([x, y, local[..., 2]], -1)) <= half).all(-1)

    in_a, in_b = inside(a), inside(b)
    either = (in_a | in_b).sum(1)
    share = (in_a & in_b).sum(1) / either
    error = np.sqrt(share * (1 - share) / either)
    assert (np.abs(box_iou_3d(a, b) - share) < 4 * error).all()


def test_box_codes_3d_go_back_also_across_the_seam_of_the_yaw():
    clouds = render_clouds(1000, seed=0)
    code = encode_box_3d(clouds.boxes, clouds.proposals)
    assert np.abs(code[:, 6]).max() < np.pi / 2  # far from the seam, though the yaws themselves lie all round
    back = decode_box_3d(code, clouds.proposals)
    np.testing.assert_allclose(back[:, :6], clouds.boxes[:, :6], atol=1e-9)
    np.testing.assert_allclose(np.cos(back[:, 6] - clouds.boxes[:, 6]), 1)
    moved = clouds.boxes.copy()
    moved[:, 6] += 2 * np.pi
    np.testing.assert_allclose(encode_box_3d(moved, clouds.proposals), code, atol=1e-9)


def test_points_lie_on_the_car_and_on_the_sensors_side():
    clouds = render_clouds(200, seed=1)
    code = encode_box_3d(clouds.boxes, clouds.proposals)
    # From the proposal's frame into the car's.
    local = clouds.points - code[:, None, :3]
    c, s = np.cos(code[:, 6, None]), np.sin(code[:, 6, None])
    car = np.stack(
        [c * local[..., 0] + s * local[..., 1], -s * local[..., 0] + c * local[..., 1], local[..., 2]], -1
    )
    half = clouds.boxes[:, None, 3:6] / 2
    on_car = (np.abs(car) <= half + 0.15).all(-1)
    assert on_car.mean() > 0.85  # the rest is the ground round it
    # Nearer to the sensor than the centre on the whole.
    towards = -clouds.boxes[:, :2] / np.linalg.norm(clouds.boxes[:, :2], axis=1, keepdims=True)
    yaw = clouds.boxes[:, 6]
    in_car = np.stack(
        [
            np.cos(yaw) * towards[:, 0] + np.sin(yaw) * towards[:, 1],
            -np.sin(yaw) * towards[:, 0] + np.cos(yaw) * towards[:, 1],
        ],
        -1,
    )
    assert (np.einsum("nk,npk->np", in_car, car[..., :2]).mean(1) > 0).mean() > 0.97


def test_corners_are_counter_clockwise_and_span_the_area():
    boxes = render_clouds(20, seed=0).boxes
    x, y = np.moveaxis(box_corners(boxes), -1, 0)
    area = 0.5 * (x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)).sum(1)
    np.testing.assert_allclose(area, boxes[:, 3] * boxes[:, 4])


def test_the_distribution_of_the_ages_sums_to_one_and_fits_its_draws():
    ages = shell_ages(4000, seed=0)
    years = np.arange(1, 1500)
    some = np.arange(50)
    total = [
        np.exp(
            ShellAges(
                ages.table.iloc[np.full(len(years), i)],
                years,
                *(np.full(len(years), a[i]) for a in (ages.log_median, ages.log_std, ages.stunted)),
            ).log_mass(years)
        ).sum()
        for i in some
    ]
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert (ages.age >= 1).all()
    assert (ages.age == np.round(ages.age)).all()
    # Randomised probability integral transform: uniform if the draws follow the distribution.
    below = np.where(ages.age <= 1, 0.0, ages.cdf(ages.age - 0.5))
    u = below + (ages.cdf(ages.age + 0.5) - below) * np.random.default_rng(1).random(4000)
    counts = np.histogram(u, 10, (0, 1))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 27.9  # chi-squared, 9 degrees of freedom, 0.1 %


def test_no_constant_shift_beats_the_median():
    ages = shell_ages(5000, seed=2)
    best = np.abs(ages.age - ages.median()).mean()
    for shift in (-1, 1):
        assert np.abs(ages.age - ages.median() - shift).mean() > best


def test_simulated_tanks_overflow_and_stay_in_range():
    series = simulate_tanks(seed=0)
    assert series.u.shape == series.y.shape == (1024,)
    assert ((series.y > -0.2) & (series.y <= 10)).all()
    assert (series.y > 9.9).mean() > 0.02
    np.testing.assert_array_equal(series.y, simulate_tanks(seed=0).y)


def test_lagged_rows_are_the_past_latest_first():
    x, y = lagged(Series(10.0 + np.arange(6), np.arange(6.0)), 2)
    np.testing.assert_array_equal(x[0], [1, 0, 11, 10])
    np.testing.assert_array_equal(y, [2, 3, 4, 5])


def test_tanks_from_a_folder(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        load_tanks(tmp_path)
    arrays = {k: np.arange(8, dtype=np.float32) for k in ("X_train", "y_train", "X_test")}
    np.savez(tmp_path / "cascaded_tanks.npz", **arrays)
    with pytest.raises(ValueError, match="no array 'y_test'"):
        load_tanks(tmp_path)
    np.savez(tmp_path / "cascaded_tanks.npz", **arrays, y_test=np.zeros((8, 1)))
    train, test = load_tanks(tmp_path)
    assert train.u.dtype == np.float64
    assert test.y.shape == (8,)
