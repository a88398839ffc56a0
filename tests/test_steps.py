"""What an update is: players in turn, stages of tasks, moments, a step of one's own; and the guard of each."""

import math

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from thalweg.energies import PerceptronEnergy, RBMEnergy
from thalweg.objectives.base import Adversarial, Batch, Objective, Player
from thalweg.training.checkpoint import read_checkpoint
from thalweg.training.feed import Feed, Stages
from thalweg.training.guard import Diverged, DivergenceError, Guard
from thalweg.training.loop import Plan, Trainer
from thalweg.training.moments import MomentStep, machine_plan
from thalweg.training.step import GradientStep, Step


def points(n: int = 64, seed: int = 0) -> Batch:
    return Batch(None, torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)))


def tensors(*modules: nn.Module) -> list[torch.Tensor]:
    return [t.detach().clone() for m in modules for t in [*m.parameters(), *m.buffers()]]


def assert_same(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    for own, other in zip(a, b, strict=True):
        assert torch.equal(own, other)


class Duel(Adversarial):
    """The energy is pulled to its own target, the adversary, one number, to another; it counts who has moved."""

    def __init__(self, **adversary):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.adversary = adversary
        self.moves: list[str] = []
        self.faulty: set[int] = set()
        self.interrupt_at = 0

    def players(self, energy):
        return [Player("critic", [self.weight], **self.adversary), Player("energy", list(energy.parameters()))]

    def player_loss(self, player, energy, batch, generator):
        self.moves.append(player)
        if len(self.moves) == self.interrupt_at:
            raise KeyboardInterrupt
        if player == "energy":
            return (energy(batch.y) - 1).square()
        loss = (self.weight - 3 - 0.01 * torch.randn(1, generator=generator)).square().expand(len(batch.y))
        return loss * math.nan if len(self.moves) in self.faulty else loss


def perceptron() -> PerceptronEnergy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PerceptronEnergy(2, (8,))


def test_players_take_turns_each_with_a_rate_of_its_own():
    """Adam's first step moves a weight by its rate."""
    energy, objective = perceptron(), Duel(n_steps=2, warm_up=1, learning_rate=0.25)
    before = tensors(energy)
    plan = Plan(max_steps=2, batch_size=32, schedule="constant", learning_rate=1e-3)
    history = Trainer(plan).fit(energy, objective, points())
    assert objective.moves == ["critic", "critic"]  # one to warm up, one of its two in the first round
    assert_same(tensors(energy), before)
    assert float(objective.weight.detach()) == pytest.approx(0.5, rel=0.02)
    assert set(history.epochs[0]) == {"epoch", "critic loss"}
    Trainer(Plan(max_steps=8, batch_size=16)).fit(energy, duel := Duel(n_steps=2), points())
    assert duel.moves == ["critic", "critic", "energy"] * 2 + ["critic", "critic"]


def test_a_players_gradient_is_clipped_and_its_schedule_its_own():
    rates = []

    class Watching(Duel):
        def player_loss(self, player, energy, batch, generator):
            rates.append(float(self.weight.detach()))
            return super().player_loss(player, energy, batch, generator)

    objective = Watching(schedule="constant", learning_rate=0.1, betas=(0.0, 0.999), clip_norm=1e-3)
    Trainer(Plan(max_steps=12, batch_size=16, max_epochs=99)).fit(perceptron(), objective, points())
    moved = [b - a for a, b in zip(rates[::2], rates[2::2], strict=False)]
    # A clipped gradient is always the same here, and so is a step of Adam at a constant rate.
    assert moved == pytest.approx([0.1] * len(moved), rel=0.01)


@pytest.mark.parametrize("at", [3, 9, 14])
def test_players_resume_where_they_were(tmp_path, at):
    plan = Plan(max_epochs=4, batch_size=16, checkpoint_seconds=0.0)
    whole, objective = perceptron(), Duel(n_steps=2)
    Trainer(plan).fit(whole, objective, points())
    resumed, broken = perceptron(), Duel(n_steps=2)
    broken.interrupt_at = at
    with pytest.raises(KeyboardInterrupt):
        Trainer(plan, run_dir=tmp_path).fit(resumed, broken, points())
    again, other = perceptron(), Duel(n_steps=2)
    Trainer(plan, run_dir=tmp_path).fit(again, other, points(), resume=True)
    assert_same(tensors(again, other), tensors(whole, objective))


def test_a_player_that_diverges_is_rolled_back_and_in_the_end_named():
    objective = Duel()
    objective.faulty = {7}
    history = Trainer(Plan(max_epochs=4, batch_size=16)).fit(perceptron(), objective, points())
    assert "not finite" in history.events[0]
    assert history.rollbacks == 1
    guard = Guard(Plan())
    guard.first("energy", 1.0)
    guard.first("critic", 1.0)
    guard.check({"energy": [1.0, 2.0], "critic": [100.0] * 20})
    with pytest.raises(Diverged, match="the critic's loss ran away"):
        guard.check({"energy": [1.0], "critic": [1e6] * 20})


def test_no_two_players_move_one_parameter():
    class Shared(Duel):
        def players(self, energy):
            weights = list(energy.parameters())
            return [Player("critic", weights[:1]), Player("energy", weights)]

    with pytest.raises(ValueError, match="same parameter"):
        Trainer(Plan()).fit(perceptron(), Shared(), points())


# -- sharpness-aware steps ----------------------------------------------------------------------------------


class Bowl(Objective):
    """(w'Hw) / 2 of the weights w of a linear layer, whatever the rows; it counts its passes in a buffer."""

    def __init__(self, curvature: torch.Tensor):
        super().__init__()
        self.curvature = curvature
        self.register_buffer("passes", torch.zeros(()))
        self.drawn: list[float] = []

    def check(self, energy, batch):
        pass

    def per_row(self, energy, batch, generator):
        self.passes += 1
        self.drawn.append(float(torch.rand((), generator=generator)))
        w = energy.weight[0]
        return (0.5 * w @ self.curvature @ w).expand(len(batch.y))


def test_a_sharpness_aware_gradient_is_that_a_step_uphill_and_leaves_no_other_trace():
    curvature = torch.tensor([[3.0, 1.0], [1.0, 0.5]])
    energy, objective = nn.Linear(2, 1, bias=False), Bowl(curvature)
    plan, fabric, generator = Plan(sharpness_radius=0.3), Fabric(accelerator="cpu", devices=1), torch.Generator()
    step = GradientStep(energy, objective)
    step.begin(plan, fabric, Feed(points(), plan, fabric), generator.manual_seed(0))
    before = energy.weight.detach().clone()
    value = step._differentiate(points(), 1.0, generator, step.weights)
    gradient = curvature @ before[0]
    expected = curvature @ (before[0] + 0.3 * gradient / gradient.norm())
    torch.testing.assert_close(energy.weight.grad[0], expected)
    assert value == pytest.approx(float(0.5 * before[0] @ curvature @ before[0]))
    assert torch.equal(energy.weight.detach(), before)
    # The first pass is taken back: its random numbers are drawn again, and what it stored is gone.
    assert objective.drawn[0] == objective.drawn[1]
    assert float(objective.passes) == 1.0


def test_at_a_minimum_there_is_no_uphill():
    energy = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        energy.weight.zero_()
    plan = Plan(sharpness_radius=0.3, max_epochs=2, batch_size=16)
    assert not Trainer(plan).fit(energy, Bowl(torch.eye(2)), points()).events
    assert torch.equal(energy.weight, torch.zeros(1, 2))


@pytest.mark.parametrize("at", [5, 11, 14])
def test_sharpness_aware_players_resume_where_they_were(tmp_path, at):
    plan = Plan(max_epochs=4, batch_size=16, checkpoint_seconds=0.0, sharpness_radius=0.1)
    whole, objective = perceptron(), Duel(n_steps=2)
    Trainer(plan).fit(whole, objective, points())
    broken = Duel(n_steps=2)
    broken.interrupt_at = 2 * at
    with pytest.raises(KeyboardInterrupt):
        Trainer(plan, run_dir=tmp_path).fit(perceptron(), broken, points())
    again, other = perceptron(), Duel(n_steps=2)
    Trainer(plan, run_dir=tmp_path).fit(again, other, points(), resume=True)
    assert_same(tensors(again, other), tensors(whole, objective))


def test_a_sharpness_radius_that_does_not_apply_is_refused():
    with pytest.raises(ValueError, match="sharpness_radius must not be negative"):
        Plan(sharpness_radius=-0.1)
    with pytest.raises(ValueError, match="MomentStep takes no gradient"):
        Trainer(machine_plan(sharpness_radius=0.1)).run(MomentStep(RBMEnergy(6, 3)), Batch(None, torch.ones(8, 6)))


# -- stages -----------------------------------------------------------------------------------------------


class Seen(Objective):
    """Remembers the means of the batches; its loss is the energy's distance from 1."""

    def __init__(self, interrupt_at: int = 0):
        super().__init__()
        self.means, self.interrupt_at = [], interrupt_at

    def per_row(self, energy, batch, generator):
        self.means.append(round(float(batch.y.mean())))
        if len(self.means) == self.interrupt_at:
            raise KeyboardInterrupt
        return (energy(batch.y) - 1).square()


TASKS = Stages([Batch(None, points(n).y + 10 * k) for k, n in enumerate((40, 64, 24))])
STAGED = Plan(max_epochs=50, max_steps=6, batch_size=16, schedule="constant", checkpoint_seconds=0.0)


def test_stages_follow_one_another_with_one_optimiser_and_are_measured():
    energy, objective = perceptron(), Seen()
    history = Trainer(STAGED).fit(
        energy, objective, TASKS, after_stage=lambda e: {"at": float(len(objective.means))}
    )
    assert objective.means == [0] * 6 + [10] * 4 + [20] * 6  # six updates are one whole pass of the second
    assert [e["at"] for e in history.epochs if "at" in e] == [6.0, 10.0, 16.0]
    # The optimiser has counted all updates.
    assert history.stopped == "all epochs done"


@pytest.mark.parametrize("at", [4, 8, 13])
def test_stages_resume_where_they_were(tmp_path, at):
    whole = perceptron()
    Trainer(STAGED).fit(whole, Seen(), TASKS)
    with pytest.raises(KeyboardInterrupt):
        Trainer(STAGED, run_dir=tmp_path).fit(perceptron(), Seen(at), TASKS)
    again = perceptron()
    Trainer(STAGED, run_dir=tmp_path).fit(again, Seen(), TASKS, resume=True)
    assert_same(tensors(again), tensors(whole))
    other = Stages([*TASKS[:2], Batch(None, torch.zeros(24, 2))])
    with pytest.raises(ValueError, match="other data"):
        Trainer(STAGED, run_dir=tmp_path).fit(perceptron(), Seen(), other, resume=True)


def test_a_large_set_of_rows_is_fed_in_the_same_order_as_a_small_one(monkeypatch):
    fabric, plan = Fabric(accelerator="cpu", devices=1), Plan(max_epochs=2, batch_size=10)
    batches = []
    for most in (1 << 30, 0):
        monkeypatch.setattr("thalweg.training.feed._MOST_BYTES_SHUFFLED", most)
        feed = Feed(points(35), plan, fabric)
        feed.generator.manual_seed(3)
        batches.append([feed.batch(k)[0].y for k in range(feed.begin_epoch(0))])
    assert len(batches[0]) == 3
    assert_same(batches[0], batches[1])


# -- moments, and a step of one's own ---------------------------------------------------------------------


@pytest.mark.parametrize("at", [2, 9, 17])
def test_a_machine_resumes_within_an_epoch(tmp_path, at):
    rows = (torch.rand(80, 6, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    plan = machine_plan(max_epochs=5, batch_size=16, checkpoint_seconds=0.0)

    def machine() -> RBMEnergy:
        torch.manual_seed(0)
        return RBMEnergy(6, 3)

    class Stopping(MomentStep):
        n = 0

        def learn(self, rows, rate):
            self.n += 1
            if self.n == at:
                raise KeyboardInterrupt
            super().learn(rows, rate)

    whole, resumed = machine(), machine()
    Trainer(plan).run(MomentStep(whole), Batch(None, rows))
    with pytest.raises(KeyboardInterrupt):
        Trainer(plan, run_dir=tmp_path).run(Stopping(machine()), Batch(None, rows))
    assert read_checkpoint(tmp_path)["feed"]["position"] == (at - 1) % 5
    Trainer(plan, run_dir=tmp_path).run(MomentStep(resumed), Batch(None, rows), resume=True)
    assert_same(tensors(resumed), tensors(whole))


class Nudge(Step):
    """Adds the rate to one number at every update."""

    def __init__(self):
        self.energy = self.module = nn.Linear(1, 1, bias=False)
        self.weights, self.buffers, self.n_energy_weights = [self.energy.weight], [], 1

    def update(self, batch, share, clock, generator):
        with torch.no_grad():
            self.energy.weight += clock.rate()
        return {}


def test_a_step_of_ones_own_is_a_dozen_lines_and_keeps_the_best_weights():
    step = Nudge()
    start = float(step.energy.weight.detach())
    plan = Plan(max_epochs=4, batch_size=32, schedule="constant")
    history = Trainer(plan).run(step, points(), lambda module: (module.weight - start - 4).abs().sum())
    assert [round(e["validation"], 5) for e in history.epochs] == [2.0, 0.0, 2.0, 4.0]
    assert float(step.energy.weight.detach()) == pytest.approx(start + 4)


def test_a_step_that_never_succeeds_is_given_up_with_the_weights_as_they_were():
    class Failing(Nudge):
        def end_epoch(self, batch, generator):
            raise Diverged("it is no good")

    step = Failing()
    before = tensors(step.energy)
    with pytest.raises(DivergenceError, match="it is no good"):
        Trainer(Plan(max_rollbacks=2)).run(step, points())
    assert_same(tensors(step.energy), before)
