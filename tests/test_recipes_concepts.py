"""The recipes of concepts run, and their parts hold against truths known in closed form."""

import copy
import json
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from parts import seeded
from thalweg.data.concept_worlds import (
    CONCEPTS,
    N_ENTITIES,
    TURNS,
    Beside,
    Between,
    Line,
    Nearest,
    Triangle,
    Worlds,
)
from thalweg.energies import GaussianEnergy, UniformEnergy
from thalweg.objectives import Batch, TetheredContrastiveDivergence
from thalweg.recipes import RECIPES, concept_learning, continual_concepts
from thalweg.recipes.base import Settings
from thalweg.recipes.noisy_sprites import LOWEST, SIZE, DenoisingAtLevels, draw_down_levels, with_level
from thalweg.sampling import FromData, Langevin, ReplayBuffer
from thalweg.training import Plan, Trainer

NAMES = [concept.name for concept in CONCEPTS]


@pytest.mark.parametrize("module", [concept_learning, continual_concepts])
def test_quick_run(module):
    messages = []
    result = module.RECIPE.run(Settings(seeds=(0,), quick=True, tell=messages.append))
    figures = {f.name: f for f in result.figures}
    assert len(figures) == len(result.figures)
    assert all(np.isfinite(f.values).all() and len(f.values) == 1 for f in result.figures)
    assert all(f.target is None for f in result.figures)  # a quick run is not judged
    assert max(map(len, figures)) <= 50
    for picture in result.pictures.values():
        assert json.loads(picture.to_json())["data"]
    assert result.pictures
    assert len(messages) == 1
    assert result.notes
    assert RECIPES[module.RECIPE.name] is module.RECIPE


# -- worlds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concept", CONCEPTS, ids=NAMES)
def test_a_demonstration_fulfils_its_concept_by_one_set_of_entities_alone(concept):
    rng = np.random.default_rng(0)
    for new in (False, True)[: 1 + concept.has_new]:
        variant = concept.variants(100, rng, new)
        assert variant.shape == (100, 2)
        worlds = concept.draw(variant, rng)
        assert concept.fulfilled(variant, worlds).all()
        assert np.abs(worlds.places).max() <= 1
        if concept.generates:
            assert ((concept.distances(variant, worlds.places) <= 1).sum(1) == 1).all()
        # One more entity, or none at all, is wrong, whatever their places.
        one_more = worlds.attention.copy()
        one_more[np.arange(100), one_more.argmin(1)] = True
        assert not concept.fulfilled(variant, worlds._replace(attention=one_more)).any()
        assert not concept.fulfilled(variant, worlds._replace(attention=np.zeros_like(one_more))).any()


@pytest.mark.parametrize("concept", [c for c in CONCEPTS if c.has_new], ids=lambda c: c.name)
def test_variants_that_are_kept_apart_are_none_of_the_others(concept):
    rng = np.random.default_rng(0)
    known, new = concept.variants(2000, rng), concept.variants(50, rng, new=True)
    gaps = np.abs(known[:, None] - new)
    # A line in the opposite direction is the same line.
    gaps = np.minimum(gaps.max(2), np.abs(known[:, None] + new).max(2)) if concept.name == "line" else gaps.max(2)
    assert (gaps.min(0) > 0).all()
    assert len(known) == 2000
    inside = {
        "region": lambda v: (v > 0.1).all(1),
        "line": lambda v: np.isclose(np.degrees(np.arctan2(v[:, 1], v[:, 0])) % 180, 65, atol=15.001, rtol=0),
        "triangle": lambda v: (v[:, 0] >= 0.85) & (v[:, 0] <= 1),
    }[concept.name]
    assert inside(new).all()
    assert not inside(known).any()


def test_distances_from_a_concept_that_are_known():
    one = np.ones((1, 2))
    points = np.array([[[0.0, 0.0], [0.3, 0.4], [0.6, 0.8]]])
    assert Line().distance(np.array([[0.6, 0.8]]), points, None)[0] == pytest.approx(0.5)  # of length 1
    across = Line().distance(np.array([[1.0, 0.0]]), points, None)[0]
    assert across == pytest.approx(0.8 / 0.25)
    corners = np.array([[[0, 0], [1, 0], [0.5, np.sqrt(0.75)]]])
    assert Triangle().distance(one, corners, None)[0] == pytest.approx(0, abs=1e-9)
    assert Triangle().distance(0.8 * one, corners, None)[0] == pytest.approx(1)
    ends = np.array([[[-0.5, 0], [0.5, 0], [0, 0.03]]])
    assert Between().distance(one, ends, None)[0] == pytest.approx(0.5)
    others = np.array([[[0.0, 0.1], [0.4, 0.0], [0.0, 0.8]]])  # the first is blue
    assert Nearest().distance(one, np.array([[[0.0, 0], [0.3, 0]]]), others)[0] == pytest.approx(0.75)


def test_each_side_is_beside_in_its_own_direction_only():
    concept = Beside()
    sides = np.stack([np.cos(TURNS), np.sin(TURNS)], 1).round()
    for i, j in product(range(4), range(4)):
        points = np.stack([np.zeros(2), 0.5 * sides[j]])[None]
        assert (concept.distance(sides[i : i + 1], points, None)[0] <= 1) == (i == j)


# -- concept learning --------------------------------------------------------------------------------------------


def shown(name="region", n=40, seed=0):
    concept = CONCEPTS[NAMES.index(name)]
    rng = np.random.default_rng(seed)
    variant = concept.variants(n, rng)
    return concept, variant, concept_learning.episodes(concept, variant, rng)


def test_episodes_survive_a_row_and_only_attended_entities_are_moved():
    _, _, part = shown("between")
    for before, after in zip(part, concept_learning.Episodes.of_row(part.row()), strict=True):
        assert torch.equal(before, after)
    for places in (part.moved, part.thrown):
        assert torch.equal(places[part.attended == 0], part.world[part.attended == 0])
        assert (places[part.attended > 0] != part.world[part.attended > 0]).any(1).all()


def test_entities_without_attention_add_nothing_and_those_of_a_kind_may_change_places():
    torch.manual_seed(0)
    energy = concept_learning.RelationalEnergy()
    _, _, part = shown("line")
    code = torch.randn(40, concept_learning.CODE)
    x = concept_learning.entities(part.world)
    whole = energy(x, part.attended, code)
    torch.testing.assert_close(energy(*concept_learning.most_attended(x, part.attended), code), whole)
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(energy(x[:, order], part.attended[:, order], code), whole)
    elsewhere = concept_learning.entities(torch.where(part.attended[..., None] > 0, part.world, 0.3))
    torch.testing.assert_close(energy(elsewhere, part.attended, code), whole)
    assert (whole >= 0).all()


class WithinADisc(nn.Module):
    """The energy of a region: how far outside a disc attended entities are, whose centre the code tells."""

    scale = 0.1**0.5

    def off(self, x, code):
        return (x[..., :2] - self.scale * code[..., None, :2]).square().sum(-1) - 0.115

    def forward(self, x, attention, code):
        return (attention * self.off(x, code)).sum(-1)


def test_the_code_the_attention_and_the_places_of_a_region_are_those_known():
    """The code goes to the mean of the places shown, and attention to the lowest energy of all that there are."""
    concept, variant, part = shown(n=60)
    energy = WithinADisc()
    code = concept_learning.infer_code(energy, part)
    mean = (part.places * part.attention.unsqueeze(-1)).sum((1, 2)) / concept_learning.N_DEMONSTRATIONS
    # A step of 4 leaves 1 - 4 * 0.2 of the distance.
    left = 0.2**concept_learning.CODE_STEPS
    torch.testing.assert_close(energy.scale * code[:, :2], mean * (1 - left))
    every = torch.tensor(list(product((-1.0, 1.0), repeat=N_ENTITIES)))
    given = torch.cat([part.world.flatten(1), code], 1)
    energies = concept_learning.OfAttention(energy)(given, every.expand(60, -1, -1))
    lowest = every[energies.argmin(1)] > 0
    found = concept_learning.by_descent(energy, 0, part)
    decided = energy.off(part.world, code).abs().amin(1) > 0.02
    assert decided.sum() > 30
    assert torch.equal(found.attention[decided], lowest[decided])
    placed = concept.fulfilled(variant, Worlds(found.places.double().numpy(), part.attended.numpy() > 0))
    thrown = concept.fulfilled(variant, Worlds(part.thrown.double().numpy(), part.attended.numpy() > 0))
    assert placed.mean() > 0.9
    assert thrown.mean() < 0.3


def directional(function, weights, step=1e-6):
    """A random direction in the weights, and the change of a number along it by central differences."""
    generator = seeded(5)
    directions = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights]
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for w, d in zip(weights, directions, strict=True):
                w += sign * step * d
        values.append(function())
        with torch.no_grad():
            for w, d in zip(weights, directions, strict=True):
                w -= sign * step * d
    return directions, (values[0] - values[1]) / (2 * step)


def test_the_gradient_through_the_descent_over_codes_is_that_of_differences():
    torch.manual_seed(0)
    energy = concept_learning.RelationalEnergy().double()
    _, _, part = shown(n=3)
    part = concept_learning.Episodes(*(p.double() for p in part))
    target = torch.randn(3, concept_learning.CODE, generator=seeded(), dtype=torch.float64)
    weights = list(energy.parameters())
    code = concept_learning.infer_code(energy, part, with_graph=True)
    torch.testing.assert_close(code, concept_learning.infer_code(energy, part))
    (code * target).sum().backward()
    directions, expected = directional(
        lambda: float((concept_learning.infer_code(energy, part) * target).sum()), weights
    )
    found = sum(float((w.grad * d).sum()) for w, d in zip(weights, directions, strict=True) if w.grad is not None)
    assert abs(expected) > 1e-4
    assert found == pytest.approx(expected, rel=1e-4)


def test_an_energy_that_learns_only_to_identify_is_moved_by_its_episodes_and_not_by_where_entities_were_thrown():
    torch.manual_seed(0)
    energy = concept_learning.RelationalEnergy()
    _, _, part = shown("beside", 8)
    objective = concept_learning.LearnFromDemonstrations(True, False)
    first = objective(energy, Batch(None, part.row()), seeded()).value
    other = part._replace(moved=torch.rand_like(part.moved), thrown=torch.rand_like(part.thrown))
    second = objective(energy, Batch(None, other.row()), seeded()).value
    torch.testing.assert_close(first, second)
    assert torch.isfinite(first)
    first.backward()
    assert all(w.grad is not None and torch.isfinite(w.grad).all() for w in energy.parameters())


# -- chains that end near the data -------------------------------------------------------------------------------


class Bowl(GaussianEnergy):
    """x . x * stiffness / 2, so that a step of h takes x to (1 - h * stiffness) x."""

    def __init__(self, stiffness):
        super().__init__(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
        self.stiffness = nn.Parameter(torch.tensor(stiffness, dtype=torch.float64))

    def forward(self, x):
        return 0.5 * self.stiffness * x.square().sum(-1)

    def value_and_gradient(self, x):
        return self(x).detach(), (self.stiffness * x).detach()

    def gradient(self, x):
        return self.value_and_gradient(x)[1]

    def score(self, x):
        return -self.stiffness * x


def test_what_pulls_chains_to_the_data_and_its_gradient_are_those_of_a_bowl():
    """Chains from the data x end at r^n x with r = 1 - h k, off by (1 - r^n)^2 x^2, whose derivative in k is
    2 (1 - r^n) n r^(n-1) h x^2. The contrast is k (1 - r^2n) |x|^2 / 2; its derivative takes the ends as given."""
    stiffness, step, n, closeness = 0.7, 0.1, 4, 3.0
    x = torch.randn(6, 2, generator=seeded(), dtype=torch.float64)
    energy = Bowl(stiffness)
    objective = TetheredContrastiveDivergence(
        Langevin(step, 0.0), n, FromData(), differentiable_steps=n, closeness=closeness
    )
    loss = objective(energy, Batch(None, x), seeded()).value
    loss.backward()
    left, squares = (1 - step * stiffness) ** n, float(x.square().mean())
    contrast = 0.5 * (1 - left**2) * 2 * squares
    assert loss.item() == pytest.approx(stiffness * contrast + closeness * (1 - left) ** 2 * squares)
    slope = n * step * (1 - step * stiffness) ** (n - 1)
    expected = contrast + closeness * 2 * (1 - left) * slope * squares
    assert float(energy.stiffness.grad) == pytest.approx(expected)
    assert objective.metrics["distance from the data"] == pytest.approx((1 - left) * squares**0.5)


def test_chains_that_belong_to_no_row_and_steps_that_there_are_not_are_refused():
    noise = UniformEnergy(torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match="belong to no row"):
        TetheredContrastiveDivergence(Langevin(0.1), 3, ReplayBuffer(noise, 20, 6), differentiable_steps=2)
    with pytest.raises(ValueError, match=r"must be in 1\.\.3"):
        TetheredContrastiveDivergence(Langevin(0.1), 3, differentiable_steps=4)


# -- continual concepts ------------------------------------------------------------------------------------------


def in_turn(alone=False):
    """Three energies, the later ones no longer at their start."""
    torch.manual_seed(0)
    energy = continual_concepts.ConceptsInTurn(continual_concepts.Sketch(["place"], 4))
    for concept in ("shape", "size"):
        energy = energy.before_next(continual_concepts.Revision(concept, alone, 4))
    for revision in energy.revisions:
        nn.init.normal_(revision.out.weight, std=0.1)
    return energy


def some_rows(n=6):
    rng = np.random.RandomState(0)
    batch = continual_concepts.rows(n, rng, range(3), range(3), range(4))
    return batch._replace(x=with_level(batch.x, torch.full((n, 1), 0.5)))


def test_fixed_energies_keep_their_weights_bit_for_bit_while_the_next_one_learns():
    rng = np.random.RandomState(0)
    sets = continual_concepts.training_sets(70, rng)
    energy = continual_concepts.ConceptsInTurn(continual_concepts.Sketch(["place"], 4))
    for concept, batch in (("shape", sets.shape), ("size", sets.size)):
        energy = energy.before_next(continual_concepts.Revision(concept, width=4))
        before = copy.deepcopy(energy.state_dict())
        plan = Plan(max_epochs=3, batch_size=35, learning_rate=0.01, weight_decay=0.1, ema_decay=0.9)
        Trainer(plan).fit(energy, DenoisingAtLevels(), batch)
        last = f"revisions.{len(energy.revisions) - 1}."
        changed = {name for name, value in energy.state_dict().items() if not torch.equal(value, before[name])}
        assert changed
        assert all(name.startswith(last) for name in changed)


def test_an_energy_that_has_not_learned_yet_adds_nothing():
    torch.manual_seed(0)
    energy, batch = continual_concepts.ConceptsInTurn(continual_concepts.Sketch(["place"], 4)), some_rows()
    before = energy.given(batch.x)
    for alone in (False, True):
        after = energy.before_next(continual_concepts.Revision("shape", alone, 4)).given(batch.x)
        torch.testing.assert_close(after(batch.y), before(batch.y))
        torch.testing.assert_close(after.score(batch.y), before.score(batch.y))


def test_the_sum_of_the_energies_is_what_the_last_estimate_leaves_over():
    energy, batch = in_turn(), some_rows()
    level, *asked = energy.features(batch.x)
    found = energy.sketch(batch.y, level, asked[0])
    for revision, features in zip(energy.revisions, asked[1:], strict=True):
        found = found + revision(batch.y, level, features, found)
    expected = (batch.y - found).square().sum(1) / (2 * 0.5**2)
    torch.testing.assert_close(energy(batch.x, batch.y), expected)
    # Each energy depends on its own concept and those before it, and on none that follow.
    other = batch.x.clone()
    other[:, 3] = (other[:, 3] + 1) % 3
    for first, second in zip(
        energy.energies(energy.features(batch.x), batch.y)[:2],
        energy.energies(energy.features(other), batch.y)[:2],
        strict=True,
    ):
        assert torch.equal(first, second)


def test_energies_of_the_noisy_image_alone_do_not_know_the_other_concepts():
    energy, batch = in_turn(alone=True), some_rows()
    other = batch.x.clone()
    other[:, :2] = 1 - other[:, :2]
    first, second = (energy.energies(energy.features(x), batch.y) for x in (batch.x, other))
    assert not torch.allclose(first[0], second[0])
    for a, b in zip(first[1:], second[1:], strict=True):
        torch.testing.assert_close(a, b)


def test_sets_show_what_they_say():
    sets = continual_concepts.training_sets(100, np.random.RandomState(0))
    asked = continual_concepts.asked_for(20, np.random.RandomState(1))

    def seen(x):
        return ((x[:, 0] > 0.5) == (x[:, 1] > 0.5)).all()

    assert set(map(tuple, sets.place.x[:, 2:].tolist())) == {(0.0, 1.0)}
    assert seen(sets.shape.x)
    assert seen(sets.size.x)
    assert set(sets.shape.x[:, 3].tolist()) == {1.0}
    assert len(set(map(tuple, sets.size.x[:, 2:].tolist()))) == 9
    new = asked["never seen"].x
    assert not (new[:, 0] > 0.5).eq(new[:, 1] > 0.5).any()
    assert not (new[:, 2:] == torch.tensor([0.0, 1.0])).all(1).any()
    for batch in asked.values():
        assert len(batch.y) == 20
        found = continual_concepts.judge(batch.y, batch)
        assert found == {"squared error": 0.0, "shape right": 1.0, "size right": 1.0}


def test_images_drawn_down_the_levels_are_those_of_a_known_energy():
    """Of one image blurred by each level the last step goes to that image, whatever came before."""
    image = torch.rand(4, SIZE**2, generator=seeded())

    class Blurred(GaussianEnergy):
        def __init__(self, level):
            super().__init__(torch.zeros(SIZE**2), torch.ones(SIZE**2))
            self.level = level

        def forward(self, x):
            return (x - image.repeat(2, 1)).square().sum(-1) / (2 * self.level**2)

        def value_and_gradient(self, x):
            return self(x), (x - image.repeat(2, 1)) / self.level**2

        def gradient(self, x):
            return self.value_and_gradient(x)[1]

    levels = []

    def energy_at(level):
        levels.append(level)
        return Blurred(level)

    drawn = draw_down_levels(energy_at, 4, 2, seeded(), 5, 3)
    torch.testing.assert_close(drawn, image, atol=1e-4, rtol=0)
    assert levels == sorted(levels, reverse=True)
    assert levels[-1] == pytest.approx(LOWEST)
