"""The recipes of several right answers and of decisions run, and what they compute is what they say."""

import json

import numpy as np
import pytest
import torch

from thalweg.data.corridors import (
    LENGTH,
    OBSTACLE,
    ROBOT,
    STEP,
    TURN,
    UNDECIDED,
    Courses,
    crashed,
    demonstrate,
    expert_actions,
    make_courses,
    moved,
    view,
)
from thalweg.data.crossroads import render_crossings
from thalweg.energies import ConditionalEnergy
from thalweg.recipes import RECIPES, decisions, several_answers
from thalweg.recipes.base import Settings


@pytest.mark.slow
@pytest.mark.parametrize("module", [several_answers, decisions])
def test_quick_run(module):
    messages = []
    result = module.RECIPE.run(Settings(seeds=(0, 1), quick=True, tell=messages.append))
    figures = {f.name: f for f in result.figures}
    assert len(figures) == len(result.figures)
    assert all(len(f.values) == 2 and np.isfinite(f.values).all() for f in result.figures)
    assert all(f.target is None for f in result.figures)  # a quick run is not judged
    assert max(map(len, figures)) <= 50
    for picture in result.pictures.values():
        assert json.loads(picture.to_json())["data"]
    assert result.pictures
    assert len(messages) == 2
    assert result.notes
    assert RECIPES[module.RECIPE.name] is module.RECIPE
    again = module.RECIPE.run(Settings(seeds=(1,), quick=True))
    for a, b in zip(result.figures, again.figures, strict=True):
        assert a.name == b.name
        if not a.name.startswith("ms "):
            assert a.values[1] == pytest.approx(b.values[0])
    named = {name.split(": ")[1] for name in figures if ", latent: " in name}
    assert set(module.TARGETS) <= named | set(figures)


# -- several answers -------------------------------------------------------------------------------------------


def test_crossings_follow_their_answers_as_often_as_they_say():
    scenes = render_crossings(3000, 1)
    assert scenes.frames.shape == (3000, 2, 16, 16)
    rms = np.sqrt(((scenes.next_frame[:, None] - scenes.answers) ** 2).mean((2, 3, 4)))
    assert (rms.argmin(1) == scenes.way).all()
    assert rms.min(1).mean() == pytest.approx(0.02, abs=0.001)
    assert scenes.probabilities.min() >= 0.2
    np.testing.assert_allclose(scenes.probabilities.sum(1), 1)
    bright = scenes.probabilities[:, 0] > 0.4
    for part in (bright, ~bright):
        share = np.bincount(scenes.way[part], minlength=3) / part.sum()
        error = np.sqrt(share * (1 - share) / part.sum())
        assert (np.abs(share - scenes.probabilities[part].mean(0)) < 4.5 * error).all()


def test_left_and_right_of_a_crossing_are_the_balls_own():
    """A ball that comes from below, whose frames go up, turns left to the left of the picture."""
    scenes = render_crossings(200, 2, noise=0.0)
    columns, lines = np.arange(16) - 7.5, np.arange(16) - 7.5
    ball = scenes.frames[:, 0] - np.median(scenes.frames[:, 0], 0)
    from_below = (ball.clip(0) * lines[:, None]).sum((1, 2)) > 3 * np.abs((ball.clip(0) * columns).sum((1, 2)))
    assert from_below.sum() > 20
    empty = scenes.answers[:, 1, 0][from_below].min(0)
    for way, sign in ((0, -1), (2, 1)):
        moved_to = ((scenes.answers[from_below, way, 0] - empty) * columns).sum((1, 2))
        assert (np.sign(moved_to) == sign).all()


def test_figures_of_draws_from_the_truth_and_of_its_mean():
    problem = several_answers.branches(20, 0)
    generator = torch.Generator().manual_seed(0)
    n = 400
    which = torch.multinomial(problem.probabilities, n, replacement=True, generator=generator)
    drawn = problem.answers[torch.arange(len(problem.x))[:, None], which]
    drawn = drawn + several_answers.NOISE * torch.randn(drawn.shape, generator=generator)
    found = several_answers.measure(drawn, problem)
    assert found["on a right answer (share)"] == pytest.approx(0.9973, abs=0.002)
    assert found["all answers found (share)"] == 1
    # The mean of |error| of n draws is sqrt(2 p (1 - p) / (pi n)), about .018 here.
    assert found["frequency, mean error"] < 0.025
    assert found["frequency, worst fifth"] < 0.03
    mean = (problem.probabilities.unsqueeze(-1) * problem.answers).sum(1, keepdim=True)
    # Where x is least, the branches are near each other.
    assert several_answers.measure(mean, problem)["on a right answer (share)"] < 0.1
    one = several_answers.measure(problem.answers[:, :1].expand(-1, n, -1), problem)
    assert one["on a right answer (share)"] == 1
    assert one["all answers found (share)"] == 0


def test_the_mean_frame_is_on_no_right_one():
    problem = several_answers.frames(20, 0)
    mean = (problem.probabilities[:, :, None] * problem.answers).sum(1, keepdim=True)
    assert several_answers.measure(mean, problem)["on a right answer (share)"] == 0
    right = several_answers.measure(problem.answers[:, 2:], problem)
    assert right["on a right answer (share)"] == 1


# -- decisions -------------------------------------------------------------------------------------------------


def test_a_robot_moves_turns_and_crashes():
    pose = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.95, 0.0]])
    after = moved(pose, np.array([0.0, 1.0, -3.0]))
    np.testing.assert_allclose(after[0], [1 + STEP, 0, 0])
    np.testing.assert_allclose(after[1], [1 + STEP * np.cos(TURN), STEP * np.sin(TURN), TURN])
    np.testing.assert_allclose(after[2, 2], -TURN)  # no sharper turn than there is
    near = np.array([[[1.0 + OBSTACLE + ROBOT - 0.01, 0.0]], [[1.0, OBSTACLE + ROBOT + 0.01]], [[9.0, 0.0]]])
    assert crashed(pose, Courses(near, pose)).tolist() == [True, False, True]


def test_the_expert_may_pass_on_both_sides_just_where_it_heads_for_the_middle():
    y = np.linspace(-0.5, 0.5, 21)
    pose = np.stack([np.full(21, 5.0), y, np.zeros(21)], 1)
    courses = Courses(np.tile([[[6.0, 0.0]]], (21, 1, 1)), pose)
    right, first = expert_actions(pose, courses)
    both = np.abs(y) < UNDECIDED - 1e-9
    assert (first[both] == 0.5).all()
    assert (right[both, 0] > 0).all()
    assert (right[both, 1] < 0).all()
    assert np.ptp(right[np.abs(y) > UNDECIDED + 1e-9], axis=1).max() == 0
    far, _ = expert_actions(pose - [3.0, 0, 0], courses)
    assert (np.sign(far[:, 0]) == -np.sign(np.round(y, 9))).all()  # to the middle of the corridor


def test_a_robot_sees_walls_on_its_sides_and_the_obstacle_ahead():
    pose = np.array([[5.0, 0.0, 0.0], [5.0, 0.5, 0.0], [5.0, 0.0, np.pi / 2]])
    images = view(pose, Courses(np.tile([[[6.0, 0.0]]], (3, 1, 1)), pose))[:, 0]
    np.testing.assert_allclose(images[0], images[0][:, ::-1], atol=1e-6)
    seen = np.flatnonzero(images[0][:, 9] > 0.5)
    ahead = 1.8 * (1 - (seen + 0.5) / 20)
    assert ahead.min() == pytest.approx(1 - OBSTACLE, abs=0.1)
    assert ahead.max() == pytest.approx(1 + OBSTACLE, abs=0.1)
    assert images[1][:, 0].min() > images[1][:, -1].max()  # the wall on the left is near
    assert (images[2][:8] == 1).all()  # it faces the wall
    assert images[2][-2:, -1].max() == 1  # and has the obstacle on its right
    assert images[2][-2:, 0].max() == 0


def test_the_expert_arrives_and_the_mean_of_its_steerings_does_not():
    courses = make_courses(60, np.random.default_rng(0))
    track, arrived = decisions.drive_expert(courses, np.random.default_rng(1))
    assert arrived.mean() > 0.9
    assert (track[-1, arrived, 0] >= LENGTH).all()
    _, arrived = decisions._drive(lambda pose, here: expert_actions(pose, here)[0].mean(1), courses)
    assert arrived.mean() < 0.1
    shown = demonstrate(5, 0)
    off = np.abs(shown.right - shown.action[:, None]).min(1)
    assert off.mean() == pytest.approx(0.05 * np.sqrt(2 / np.pi), abs=0.02)


class Valleys(ConditionalEnergy):
    """Two valleys, of which the one of the row is the lower."""

    def head(self, features, y):
        place = features.reshape(-1, *([1] * (y.dim() - 2)))
        y = y.squeeze(-1)
        return (y.square() - 0.36).square() * 5 + (y.sign() != place.sign()) * 0.5


def test_searches_find_the_lowest_valley():
    given = Valleys().given(torch.tensor([[1.0], [-1.0]]))
    for n, tolerance in ((65, 1 / 64), (5, 1 / 4)):
        torch.testing.assert_close(
            decisions.exhaustive(given, n), torch.tensor([0.6, -0.6]), atol=tolerance + 1e-6, rtol=0
        )
    torch.testing.assert_close(decisions.descend(given), torch.tensor([0.6, -0.6]), atol=0.01, rtol=0)


def test_accuracy_counts_either_side():
    shown = demonstrate(20, 3)
    either = np.ptp(shown.right, axis=1) > 2 * decisions.TOLERANCE
    assert 0.01 < either.mean() < 0.2
    answers = iter(np.array_split(shown.right[:, 1], max(1, len(shown.right) // 500)))
    assert decisions.accuracy(lambda images: next(answers), shown) == {"right": 1.0, "right, either side": 1.0}
    middle = iter(np.array_split(shown.right.mean(1), max(1, len(shown.right) // 500)))
    found = decisions.accuracy(lambda images: next(middle), shown)
    assert found["right, either side"] == 0
    assert found["right"] == pytest.approx(1 - either.mean())
