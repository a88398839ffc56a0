"""Films that branch: balls keep to the physics of the bounce, and draws are judged by what is known of them."""

import json
import math

import numpy as np
import pytest
import torch

from parts import seeded
from thalweg.data.wedges import GREY, N_FUTURE, N_PAST, RADIUS, render_bounces
from thalweg.energies import MixtureDensity, ReconstructionEnergy, mlp
from thalweg.objectives import Batch, EnergyMatching
from thalweg.recipes import RECIPES, several_futures
from thalweg.recipes.base import Settings
from thalweg.sampling import Heun, run_chain
from thalweg.training import Plan, Trainer

# -- films -----------------------------------------------------------------------------------------------------


def test_a_ball_turns_by_a_right_angle_where_it_meets_the_wedge_and_keeps_its_speed():
    films = render_bounces(300, 1, one_sided=0.5)
    steps = np.diff(films.places, axis=2)
    speed = np.linalg.norm(steps[:, :, 0], axis=-1)
    ahead = steps[:, :, 0] / speed[..., None]
    assert speed.min() >= 0.11 - 1e-9
    assert speed.max() <= 0.14 + 1e-9
    # Before the bounce and after it the steps are equal; that in which it bounces has the speed along two legs.
    np.testing.assert_allclose(steps[:, :, 0], steps[:, :, 1], atol=1e-12)
    np.testing.assert_allclose(steps[:, :, -1], steps[:, :, -2], atol=1e-12)
    np.testing.assert_allclose(np.abs(steps[:, :, 2]).sum(-1), speed, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(steps[:, :, -1], axis=-1), speed, atol=1e-12)
    np.testing.assert_allclose((ahead * steps[:, :, -1]).sum(-1), 0, atol=1e-12)
    # Left and right are the ball's own: to its left lies (y, -x), since y points down.
    left = np.stack([ahead[:, 0, 1], -ahead[:, 0, 0]], 1)
    assert ((left * steps[:, 0, -1]).sum(1) > 0).all()
    assert ((left * steps[:, 1, -1]).sum(1) < 0).all()
    np.testing.assert_allclose(films.places[:, 0, :N_PAST], films.places[:, 1, :N_PAST])
    forked = films.places[films.probabilities.min(1) > 0]
    assert forked.min() > 0.05
    assert forked.max() < 0.95


def test_no_ball_runs_into_the_wedge_nor_turns_far_from_it():
    films = render_bounces(300, 6, one_sided=0.5, noise=0.0)
    axis = (np.arange(16) + 0.5) / 16
    inside = np.where(films.scene > GREY - 1e-3, 0.0, 9.0)  # pixels that lie in the wedge with their whole square
    for way in range(2):
        x, y = (films.places[:, way, :, k, None, None] for k in range(2))
        distance = (np.hypot(axis - x, axis[:, None] - y) + inside[:, None]).min((1, 2, 3))
        right = films.probabilities[:, way] > 0
        assert distance[right].min() >= RADIUS
        # As it turns the centre is sqrt(2) radii from the edge, and is seen within half a step of there; the edge
        # is up to a pixel and a half before the first that is all wedge.
        assert distance[right].max() < 2**0.5 * RADIUS + 0.07 + 1.5 / 16


def test_half_of_the_films_that_branch_go_left_and_the_others_to_their_side():
    films = render_bounces(1500, 2, one_sided=0.4)
    assert films.past.shape == films.future.shape == (1500, 3, 16, 16)
    forked = films.probabilities.min(1) > 0
    n = int(forked.sum())
    assert n / 1500 == pytest.approx(0.6, abs=4.5 * math.sqrt(0.24 / 1500))
    np.testing.assert_allclose(films.probabilities[forked], 0.5)
    assert (films.way[forked] == 0).mean() == pytest.approx(0.5, abs=4.5 * math.sqrt(0.25 / n))
    assert (films.probabilities[~forked, films.way[~forked]] == 1).all()
    off = np.sqrt(((films.future[:, None] - films.branches) ** 2).mean((2, 3, 4)))
    assert (off.argmin(1) == films.way).all()
    assert off.min(1).mean() == pytest.approx(0.01, abs=0.0005)  # the camera's noise alone


def test_the_brightest_spot_of_a_frame_is_where_the_ball_is():
    films = render_bounces(200, 3, one_sided=0.0, noise=0.0)
    axis = (np.arange(16) + 0.5) / 16
    for way in range(2):
        ball = np.clip(films.branches[:, way] - films.scene[:, None], 0, None)
        weight = ball.sum((2, 3))
        found = np.stack([(ball * axis).sum((2, 3)), (ball * axis[:, None]).sum((2, 3))], -1) / weight[..., None]
        off = np.linalg.norm(found - films.places[:, way, N_PAST:], axis=-1)
        assert off.max() < 1 / 16


# -- the energy ------------------------------------------------------------------------------------------------


def reconstruction(**settings):
    torch.manual_seed(0)
    return ReconstructionEnergy(mlp([3, 6]), 6, 4, hidden=8, **settings)


def test_a_reconstruction_that_stays_where_it_is_makes_a_cone_of_the_slope():
    energy = reconstruction(slope=3.0, radius=0.5).double()
    with torch.no_grad():
        energy.network.out.weight.zero_()
        energy.network.out.bias.copy_(torch.tensor([1.0, -1.0, 0.5, 2.0]))
    given = energy.given(torch.randn(2, 3, generator=seeded()).double())
    centre = energy.network.out.bias.detach().expand(2, 1, 4)
    value, gradient = given.value_and_gradient(centre)
    assert value.abs().max() < 1e-9
    assert gradient.abs().max() < 1e-9
    direction = torch.tensor([0.5, 0.5, -0.5, 0.5]).double()
    for distance in (0.1, 1.0, 200.0):
        value, gradient = given.value_and_gradient(centre + distance * direction)
        root = math.hypot(distance, 0.5)
        torch.testing.assert_close(value, torch.full_like(value, 3 * (root - 0.5)))
        expected = 3 * distance / root * direction
        torch.testing.assert_close(gradient, expected.expand_as(gradient))
    for wrong in ({"slope": 0.0}, {"radius": -1.0}):
        with pytest.raises(ValueError, match="positive"):
            reconstruction(**wrong)


def test_matched_given_x_the_flow_finds_two_points_that_x_moves_half_of_the_time_each():
    generator = seeded(0)
    k, n = 8, 1000
    signs = torch.randint(2, (n, 1), generator=generator) * 2.0 - 1
    x = torch.rand(n, 1, generator=generator) + 0.5
    towards = torch.ones(k) / math.sqrt(k)
    batch = Batch(x, 3 * x * signs * towards + 0.02 * torch.randn(n, k, generator=generator))
    noise = MixtureDensity(mlp([1, 4]), 4, n_targets=k, n_components=1).requires_grad_(False)
    torch.manual_seed(1)
    energy = ReconstructionEnergy(mlp([1, 32]), 32, k, hidden=64, slope=3.0, radius=0.3)
    with torch.no_grad():
        for weight in noise.parameters():
            weight.zero_()
    Trainer(Plan(40, batch_size=100, learning_rate=5e-3, clip_norm=5.0)).fit(energy, EnergyMatching(noise), batch)
    asked = torch.tensor([[0.6], [1.0], [1.4]])
    start = noise.given(asked).sample(400, generator).movedim(1, 0)
    ends = run_chain(Heun(0.05), energy.eval().given(asked).detach(), start, 24, generator).position
    along = ends @ towards
    off = (along.abs() - 3 * asked).abs()
    assert off.mean() < 0.35
    assert (ends - along[..., None] * towards).square().mean().sqrt() < 0.25
    share = (along > 0).float().mean(1)
    assert (share - 0.5).abs().max() < 0.15
    assert off.median() < start.norm(dim=-1).mean() / 5


# -- the figures -----------------------------------------------------------------------------------------------


def test_figures_of_the_truth_of_one_branch_and_of_the_blur():
    films = render_bounces(300, 4, one_sided=0.3)
    branches = torch.from_numpy(films.branches).flatten(2)
    probabilities = torch.from_numpy(films.probabilities).float()
    mean = (probabilities[..., None] * branches).sum(1, keepdim=True)
    forked = probabilities.amin(1) > 0
    truth = torch.from_numpy(films.future).flatten(1)
    reference = float((mean[:, 0] - truth).square().mean(-1)[forked].mean())

    n = 16
    which = torch.multinomial(probabilities, n, replacement=True, generator=seeded(2))
    found = several_futures.measure(branches[torch.arange(300)[:, None], which], films, reference)
    assert found["on a branch (share)"] == pytest.approx(1)
    assert found["one way only, draws on it (share)"] == pytest.approx(1)
    assert found["sharpness"] == pytest.approx(1, abs=0.02)
    # Of 16 fair draws all are on one side in 2^-15 of cases, and the mean distance of a share from 1/2 is .098.
    assert found["both branches found (share)"] > 0.98
    assert found["share to the left, in a film off 1/2"] == pytest.approx(0.098, abs=0.02)
    assert found["share to the left, off 1/2"] < 4.5 * 0.5 / math.sqrt(n * float(forked.sum()))
    assert found["error of the best draw, relative"] < 0.02  # the camera's noise

    one = several_futures.measure(branches[:, :1].expand(-1, n, -1), films, reference)
    assert one["both branches found (share)"] == 0
    assert one["share to the left, off 1/2"] == pytest.approx(0.5)

    blur = several_futures.measure(mean, films, reference)
    assert blur["on a branch (share)"] == 0
    assert blur["error of the best draw, relative"] == pytest.approx(1)
    assert blur["sharpness"] < 0.7
    assert blur["one way only, draws on it (share)"] == pytest.approx(1)
    # The blur is half way from branch to branch, and no other answer has a lower mean squared error of both.
    apart = (branches[:, 0] - branches[:, 1]).square().mean(-1)[forked].mean().sqrt()
    assert blur["distance from the nearer branch"] == pytest.approx(float(apart) / 2, rel=1e-3)


def test_the_next_frames_follow_the_past_in_the_rows():
    films = render_bounces(20, 5)
    batch = several_futures.rows(films)
    assert batch.x.shape == (20, N_PAST, 16, 16)
    back = several_futures.SCALE * batch.y.reshape(20, N_FUTURE, 16, 16) + several_futures.MEAN
    np.testing.assert_allclose(back.numpy(), films.future, atol=1e-6)


# -- the recipe ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_quick_run():
    messages = []
    result = several_futures.RECIPE.run(Settings(seeds=(0,), quick=True, tell=messages.append))
    figures = {f.name: f for f in result.figures}
    assert len(figures) == len(result.figures)
    assert max(map(len, figures)) <= 50
    assert all(len(f.values) == 1 and np.isfinite(f.values).all() for f in result.figures)
    assert all(f.target is None for f in result.figures)  # a quick run is not judged
    assert all(json.loads(picture.to_json())["data"] for picture in result.pictures.values())
    assert result.pictures
    assert len(messages) == 1
    assert result.notes
    assert RECIPES["several-futures"] is several_futures.RECIPE
    for model in ("energy", "latent"):
        assert set(several_futures.TARGETS) <= {n.split(": ")[1] for n in figures if n.startswith(f"{model}: ")}
