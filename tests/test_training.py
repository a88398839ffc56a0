"""The loop: exact resume, roll-back, averages, early stopping, precision, several processes."""

import contextlib
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
import zipfile
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from thalweg.energies import (
    Energy,
    GaussianMixtureEnergy,
    MixtureDensity,
    NetworkEnergy,
    PerceptronEnergy,
    TiltedMixtureEnsemble,
    mlp,
)
from thalweg.objectives.base import Batch, Objective
from thalweg.objectives.likelihood import MaximumLikelihood
from thalweg.objectives.noise_contrastive import JointProposalNCE, NoiseContrastiveEstimation, RankingNCE
from thalweg.objectives.score_matching import ScoreMatching
from thalweg.training.checkpoint import read_checkpoint, write_checkpoint
from thalweg.training.guard import Diverged, Guard
from thalweg.training.loop import DivergenceError, Plan, Trainer


def toy_data(n_rows: int = 96, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_rows, 2, generator=generator)
    y = x[:, :1] + 0.3 * torch.randn(n_rows, 1, generator=generator)
    return Batch(x, y)


def dropout_energy(seed: int = 0) -> tuple[NetworkEnergy, JointProposalNCE]:
    """An energy with dropout and batch normalisation, and an objective that owns a proposal and draws noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.SiLU(), nn.Dropout(0.3))
        energy = NetworkEnergy(network, 16, 1, hidden=16)
        proposal = MixtureDensity(mlp([2, 8]), 8, n_components=2)
    return energy, JointProposalNCE(proposal, n_samples=8)


def mixture(seed: int = 0, n_components: int = 2) -> MixtureDensity:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MixtureDensity(mlp([2, 16]), 16, n_components=n_components)


@torch.no_grad()
def held_out_loss(energy: nn.Module) -> torch.Tensor:
    """A figure with no randomness: the mean energy of held-out targets against that of shifted ones."""
    data = toy_data(seed=1)
    return (energy(data.x, data.y) - energy(data.x, data.y + 1)).mean()


@torch.no_grad()
def held_out_nll(energy: nn.Module) -> torch.Tensor:
    data = toy_data(seed=1)
    return energy(data.x, data.y).mean()


def all_tensors(*modules: nn.Module) -> list[torch.Tensor]:
    return [t.detach().clone() for m in modules for t in [*m.parameters(), *m.buffers()]]


def assert_same(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    for own, other in zip(a, b, strict=True):
        assert torch.equal(own, other)


RESUME_PLAN = Plan(
    max_epochs=12, batch_size=16, ema_decay=0.9, n_snapshots=5, clip_norm=1.0, checkpoint_seconds=0.0
)


def train_toy(run_dir: Path | None, resume: bool = False, plan: Plan = RESUME_PLAN) -> list[torch.Tensor]:
    energy, objective = dropout_energy()
    trainer = Trainer(plan, run_dir=run_dir)
    trainer.fit(energy, objective, toy_data(), held_out_loss, resume=resume)
    return all_tensors(energy, objective) + snapshots_of(trainer)


def snapshots_of(trainer: Trainer) -> list[torch.Tensor]:
    return [t for state in trainer.snapshots for t in state.values()]


# -- resume -----------------------------------------------------------------------------------------------


def test_a_run_killed_again_and_again_ends_with_the_weights_of_one_left_alone(tmp_path):
    """SIGKILL at random moments; dropout, batch statistics, an owned proposal and an average of the weights."""
    # As many threads as the children have: another number rounds differently.
    torch.set_num_threads(1)
    expected = train_toy(None)
    run_in_subprocess("killed", tmp_path)
    kills = int((tmp_path / "kills").read_text())
    assert kills >= 3
    assert_same(torch.load(tmp_path / "weights.pt"), expected)


def killed_again_and_again(folder: Path) -> None:
    """Body of the subprocess: children that fit, each but the last killed once it has got further."""
    torch.set_num_threads(1)
    chance = random.Random(3)
    checkpoint = folder / "run" / "checkpoint.pt"
    kills = 0
    for attempt in range(100):
        child = os.fork()
        if not child:
            weights = train_toy(folder / "run", resume=attempt > 0)
            torch.save(weights, folder / "weights.part")
            os.replace(folder / "weights.part", folder / "weights.pt")
            os._exit(0)
        # The life of a child: so many new checkpoints, and a moment more.
        checkpoints, seen = chance.randint(1, 10), stamp(checkpoint)
        while attempt < 8:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                assert status == 0, "the run failed by itself"
                break
            if stamp(checkpoint) != seen:
                checkpoints, seen = checkpoints - 1, stamp(checkpoint)
            if not checkpoints:
                time.sleep(chance.uniform(0.0, 0.03))
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                kills += not (folder / "weights.pt").exists()
                break
            time.sleep(0.0005)
        else:
            assert os.waitpid(child, 0)[1] == 0
        if (folder / "weights.pt").exists():
            break
    (folder / "kills").write_text(str(kills))


def stamp(path: Path) -> tuple[int, int] | None:
    try:
        return path.stat().st_ino, path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


@pytest.mark.parametrize("where", ["in a step", "in validation", "before the first checkpoint"])
def test_an_interrupted_run_resumes_to_the_same_weights_with_the_same_objects(tmp_path, where):
    expected = train_toy(None)
    energy, objective = dropout_energy()
    calls = {"step": 0, "validation": 0}
    per_row = objective.per_row

    def interrupted_step(*arguments):
        calls["step"] += 1
        loss = per_row(*arguments)
        if (where, calls["step"]) in {("in a step", 50), ("before the first checkpoint", 3)}:
            raise KeyboardInterrupt
        return loss

    def interrupted_validation(energy):
        calls["validation"] += 1
        if where == "in validation" and calls["validation"] == 7:
            raise KeyboardInterrupt
        return held_out_loss(energy)

    objective.per_row = interrupted_step
    plan = RESUME_PLAN
    if where == "before the first checkpoint":
        plan = Plan(**{**vars(plan), "checkpoint_seconds": 1e9})
    with pytest.raises(KeyboardInterrupt):
        Trainer(plan, run_dir=tmp_path).fit(energy, objective, toy_data(), interrupted_validation)
    trainer = Trainer(plan, run_dir=tmp_path)
    history = trainer.fit(energy, objective, toy_data(), interrupted_validation, resume=True)
    assert_same(all_tensors(energy, objective) + snapshots_of(trainer), expected)
    assert [e["epoch"] for e in history.epochs] == [float(i) for i in range(1, 13)]


def test_a_run_that_was_rolled_back_resumes_to_the_same_weights(tmp_path):
    """The roll-back goes to the start of the epoch also where the run was resumed in the middle of it."""

    class Accident(RankingNCE):
        """NaN on one batch of the first pass in the last epoch, known by the optimiser's own count of steps."""

        def __init__(self, interrupt: bool):
            super().__init__(n_samples=4)
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))
            self.interrupt = interrupt
            self.accidents = 0

        def per_row(self, energy, batch, generator):
            loss = super().per_row(energy, batch, generator)
            self.calls += 1
            if self.calls == 58 and self.interrupt:
                self.interrupt = False
                raise KeyboardInterrupt
            if self.calls == 59 and not self.accidents:
                self.accidents = 1
                return loss * torch.nan
            return loss

    # Of the 7 snapshots that after step 54 stays; those after steps 55 to 58 are thrown away and taken again.
    plan = Plan(max_epochs=10, batch_size=16, n_snapshots=7, checkpoint_seconds=0.0)
    alone, objective = mixture(), Accident(interrupt=False)
    left_alone = Trainer(plan)
    history = left_alone.fit(alone, objective, toy_data())
    assert len(history.events) == 1

    resumed, objective = mixture(), Accident(interrupt=True)
    trainer = Trainer(plan, run_dir=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(resumed, objective, toy_data())
    again = trainer.fit(resumed, objective, toy_data(), resume=True)
    assert again.events == history.events
    assert_same(all_tensors(resumed), all_tensors(alone))
    assert len(trainer.snapshots) == 7
    assert_same(snapshots_of(trainer), snapshots_of(left_alone))


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    first = train_toy(tmp_path, plan=Plan(max_epochs=2))
    assert_same(train_toy(tmp_path, resume=True, plan=Plan(max_epochs=2)), first)


def test_a_run_started_anew_is_never_resumed_from_the_run_before_it(tmp_path):
    train_toy(tmp_path, plan=Plan(max_epochs=2))
    energy, objective = dropout_energy()

    def interrupt(*_):
        raise KeyboardInterrupt

    objective.per_row = interrupt
    with pytest.raises(KeyboardInterrupt):
        Trainer(Plan(max_epochs=2), run_dir=tmp_path).fit(energy, objective, toy_data(), held_out_loss)
    assert read_checkpoint(tmp_path)["epoch"] == 0


def test_resume_with_other_settings_is_refused_in_words(tmp_path):
    plan = Plan(max_epochs=1)
    Trainer(plan, run_dir=tmp_path).fit(mixture(), MaximumLikelihood(), toy_data())
    other = Trainer(Plan(max_epochs=1, learning_rate=0.1), run_dir=tmp_path)
    with pytest.raises(ValueError, match="other settings \\(learning_rate\\)"):
        other.fit(mixture(), MaximumLikelihood(), toy_data(), resume=True)


@pytest.mark.parametrize(
    ("energy", "data", "words"),
    [(mixture(n_components=3), toy_data(), "another network"), (mixture(), toy_data(seed=9), "other data")],
)
def test_resume_with_another_network_or_other_data_is_refused_in_words(tmp_path, energy, data, words):
    trainer = Trainer(Plan(max_epochs=1), run_dir=tmp_path)
    trainer.fit(mixture(), MaximumLikelihood(), toy_data())
    with pytest.raises(ValueError, match=words):
        trainer.fit(energy, MaximumLikelihood(), data, resume=True)


# -- divergence -------------------------------------------------------------------------------------------


class Faulty(MaximumLikelihood):
    """Exact likelihood that is multiplied by a factor at certain calls."""

    def __init__(self, calls, factor: float):
        super().__init__()
        self.faulty, self.factor, self.calls = calls, factor, 0

    def per_row(self, energy, batch, generator):
        self.calls += 1
        loss = super().per_row(energy, batch, generator)
        return loss * self.factor if self.calls in self.faulty else loss


@pytest.mark.parametrize(
    ("calls", "factor", "words"),
    [
        ({10, 30}, math.nan, "not finite"),
        ({10, 30}, math.inf, "not finite"),
        ({*range(9, 13), *range(33, 37)}, 1e9, "ran away"),
        ({*range(9, 13), *range(33, 37)}, -1e9, "ran away"),
    ],
)
def test_a_diverged_step_is_undone_told_and_the_run_finishes(calls, factor, words):
    energy = mixture()
    before = float(held_out_nll(energy))
    plan = Plan(max_epochs=12, batch_size=16, learning_rate=1e-2, clip_norm=1.0)
    history = Trainer(plan).fit(energy, Faulty(calls, factor), toy_data())
    assert len(history.events) == 2
    assert all(words in event and "learning rate halved" in event for event in history.events)
    assert len(history.epochs) == 12
    assert float(held_out_nll(energy)) < before - 0.3


@pytest.mark.parametrize("factor", [math.nan, 1e9])
def test_a_run_that_always_diverges_raises_and_leaves_the_last_good_weights(factor):
    energy = mixture()
    before = all_tensors(energy)
    objective = Faulty(range(2, 10**6), factor)
    with pytest.raises(DivergenceError, match="diverged 3 times"):
        Trainer(Plan(max_rollbacks=2, batch_size=16)).fit(energy, objective, toy_data())
    assert_same(all_tensors(energy), before)
    assert all(w.grad is None for w in energy.parameters())


def test_a_validation_figure_that_is_not_finite_is_undone():
    figures = iter([1.0, math.nan, 0.5, 0.4])
    history = Trainer(Plan(max_epochs=3)).fit(
        mixture(), MaximumLikelihood(), toy_data(), lambda _: torch.tensor(next(figures))
    )
    assert [e["validation"] for e in history.epochs] == pytest.approx([1.0, 0.5, 0.4])
    assert "validation figure is not finite" in history.events[0]


def test_an_energy_gap_that_runs_away_is_noticed():
    """E(y) - E(y + 1) has no bound below: at a high rate it falls exponentially through a deep network."""

    class Gap(Objective):
        def per_row(self, energy, batch, generator):
            return (energy(batch.x, batch.y) - energy(batch.x, batch.y + 1)) ** 3

    energy = NetworkEnergy(mlp([2, 16]), 16, 1, hidden=32, n_residual=3)
    with pytest.raises(DivergenceError, match="ran away"):
        Trainer(Plan(max_epochs=200, learning_rate=1.0, max_rollbacks=0)).fit(energy, Gap(), toy_data())
    assert all(torch.isfinite(w).all() for w in energy.parameters())


@pytest.mark.parametrize("outlier", [0.0, 1e4])
@pytest.mark.parametrize("shift", [-50.0, 0.0, 50.0])
def test_ordinary_losses_raise_no_alarm(shift, outlier):
    """Losses that are negative or near zero, and a target so far out that its batch's loss is a million."""
    data = toy_data()
    data.y[5] += outlier

    class Shifted(MaximumLikelihood):
        def per_row(self, energy, batch, generator):
            return super().per_row(energy, batch, generator) + shift

    plan = Plan(max_epochs=20, batch_size=8, learning_rate=1e-2, clip_norm=1.0)
    history = Trainer(plan).fit(mixture(), Shifted(), data)
    assert history.events == []


@pytest.mark.parametrize(
    ("losses", "wrong"),
    [
        ([2.0] * 5 + [1.9e3] * 20, False),
        ([2.0] * 5 + [2.1e3] * 20, True),
        ([0.01] * 5 + [2e3] * 20, True),  # losses near zero are measured by 1
        ([2.0] * 5 + [-1.9e6] * 20, False),
        ([2.0] * 5 + [-2.1e6] * 20, True),
        ([2.0] * 20 + [1e9] * 7, False),  # the median of the last fifteen is what counts
        ([2.0] * 20 + [1e9] * 8, True),
    ],
)
def test_an_epoch_is_refused_if_it_ends_a_thousand_times_above_the_largest_loss_before_it(losses, wrong):
    guard = Guard(Plan())
    guard.first("energy", losses[0])
    guard.first("energy", 1e12)  # only the first one counts
    with pytest.raises(Diverged, match="ran away") if wrong else contextlib.nullcontext():
        guard.check({"energy": losses})


def test_each_return_halves_the_rate():
    guard = Guard(Plan(max_rollbacks=3))
    rates = []
    for _ in range(3):
        guard.roll_back("here")
        rates.append(guard.rate_scale)
    assert rates == [0.5, 0.25, 0.125]
    with pytest.raises(DivergenceError, match="diverged 4 times"):
        guard.roll_back("here")


@pytest.mark.parametrize(("clip_norm", "norms"), [(None, [0.5, 50.0]), (1.0, [0.5, 1.0]), (100.0, [0.5, 50.0])])
def test_a_gradient_longer_than_its_limit_is_shortened_to_it_and_no_other_is_touched(
    monkeypatch, clip_norm, norms
):
    """Losses whose gradient is (0.6, 0, 0.8) times a length that is known."""

    class Slope(Energy):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return x[..., 0] * (0.6 * self.a[0] + 0.8 * self.b[0])

    class Value(Objective):
        def per_row(self, energy, batch, generator):
            return energy(batch.y)

    seen = []
    step = torch.optim.AdamW.step

    def watched(self, *arguments):
        seen.append(torch.cat([w.grad.clone() for group in self.param_groups for w in group["params"]]))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    for length in (0.5, 50.0):
        data = Batch(None, torch.tensor([[length, 0.0]]))
        Trainer(Plan(max_steps=1, clip_norm=clip_norm)).fit(Slope(), Value(), data)
    for gradient, norm in zip(seen, norms, strict=True):
        torch.testing.assert_close(gradient, norm * torch.tensor([0.6, 0.0, 0.8]))


# -- what is kept -----------------------------------------------------------------------------------------


def test_the_weights_and_buffers_of_the_best_epoch_are_kept():
    figures = iter([3.0, 1.0, 2.0, 2.5])
    seen = []

    def validate(energy):
        seen.append(all_tensors(energy))
        return torch.tensor(next(figures))

    energy, objective = dropout_energy()
    Trainer(Plan(max_epochs=4, batch_size=16)).fit(energy, objective, toy_data(), validate)
    assert_same(all_tensors(energy), seen[1])


def test_the_record_holds_the_figure_of_each_validation_and_the_best_so_far():
    figures = [3.0, 2.0, 2.5, 1.0, 4.0]
    each = iter(figures)
    history = Trainer(Plan(max_epochs=10, validate_every=2)).fit(
        mixture(), MaximumLikelihood(), toy_data(), lambda _: torch.tensor(next(each))
    )
    validated = history.epochs[1::2]
    assert [e["validation"] for e in validated] == figures
    assert [e["best"] for e in validated] == [3.0, 2.0, 2.0, 1.0, 1.0]
    assert all("validation" not in e for e in history.epochs[::2])


def test_updates_are_made_in_training_mode_and_judged_in_evaluation_mode_without_a_graph():
    seen = []

    class Watching(MaximumLikelihood):
        def per_row(self, energy, batch, generator):
            seen.append(("update", energy.training, self.training, torch.is_grad_enabled()))
            return super().per_row(energy, batch, generator)

    objective = Watching()

    def validate(energy):
        seen.append(("validation", energy.training, objective.training, torch.is_grad_enabled()))
        return torch.tensor(1.0)

    energy = mixture()
    Trainer(Plan(max_epochs=2, batch_size=48)).fit(energy, objective, toy_data(), validate)
    update, validation = ("update", True, True, True), ("validation", False, False, False)
    assert seen == [update, update, validation] * 2
    assert not energy.training


def test_a_figure_is_better_only_by_more_than_min_delta():
    """Two figures that are hardly lower count as none, and patience runs out."""
    figures = iter([3.0, 2.95, 2.91, 1.0])
    plan = Plan(max_epochs=10, min_delta=0.1, patience=1)
    history = Trainer(plan).fit(mixture(), MaximumLikelihood(), toy_data(), lambda _: torch.tensor(next(figures)))
    assert [e["best"] for e in history.epochs] == [3.0, 3.0, 3.0]
    assert "no better figure for 1 epochs" in history.stopped


def test_each_member_of_an_ensemble_keeps_its_own_best_weights():
    figures = iter([[3.0, 1.0], [1.0, 2.0], [2.0, 3.0]])
    seen = []

    def validate(energy):
        seen.append([w.detach().clone() for w in energy.parameters()])
        return torch.tensor(next(figures))

    energy = TiltedMixtureEnsemble(2, n_members=2, hidden=(8,), n_components=2, n_tilts=2)
    Trainer(Plan(max_epochs=3, batch_size=16)).fit(energy, MaximumLikelihood(), toy_data(), validate)
    for weight, first, second in zip(energy.parameters(), seen[0], seen[1], strict=True):
        assert torch.equal(weight[0], second[0])
        assert torch.equal(weight[1], first[1])


def test_without_validation_the_last_weights_are_kept():
    a, b = mixture(), mixture()
    Trainer(Plan(max_epochs=3)).fit(a, MaximumLikelihood(), toy_data())
    history = Trainer(Plan(max_epochs=3)).fit(b, MaximumLikelihood(), toy_data(), held_out_nll)
    assert history.epochs[-1]["validation"] == min(e["validation"] for e in history.epochs)
    assert_same(all_tensors(a), all_tensors(b))


def test_training_stops_after_the_epochs_of_patience():
    figures = iter([3.0, 1.0, 1.0 - 5e-5, 2.0, 2.0, 2.0, 0.0])
    plan = Plan(max_epochs=50, patience=2)
    history = Trainer(plan).fit(mixture(), MaximumLikelihood(), toy_data(), lambda _: torch.tensor(next(figures)))
    assert len(history.epochs) == 5
    assert "no better figure for 2 epochs" in history.stopped


def test_the_average_is_the_exponential_moving_average_of_the_weights():
    """Recomputed in float64 from the weights after every step; kept weights within float32 rounding of it."""
    energy = mixture()
    objective = MaximumLikelihood()
    path = [[w.detach().double() for w in energy.parameters()]]
    per_row = objective.per_row

    def recording(energy, batch, generator):
        path.append([w.detach().double() for w in energy.parameters()])
        return per_row(energy, batch, generator)

    objective.per_row = recording
    plain = mixture()
    plan = Plan(max_epochs=2, batch_size=16, ema_decay=0.8, schedule="constant")
    Trainer(plan).fit(energy, objective, toy_data())
    Trainer(Plan(max_epochs=2, batch_size=16, schedule="constant")).fit(plain, MaximumLikelihood(), toy_data())
    path.append([w.detach().double() for w in plain.parameters()])
    average = path[0]
    for weights in path[2:]:
        average = [0.8 * a + 0.2 * w for a, w in zip(average, weights, strict=True)]
    for kept, expected in zip(energy.parameters(), average, strict=True):
        torch.testing.assert_close(kept.double(), expected, rtol=0, atol=1e-6)


def test_validation_sees_the_average_and_leaves_the_weights_as_they_were():
    energy, plain = mixture(), mixture()
    figures = []
    plan = Plan(max_epochs=3, batch_size=16, ema_decay=0.5)

    def validate(energy):
        figures.append(float(held_out_nll(energy)))
        return torch.tensor(figures[-1])

    Trainer(plan).fit(energy, MaximumLikelihood(), toy_data(), validate)
    assert float(held_out_nll(energy)) == min(figures)
    Trainer(plan).fit(plain, MaximumLikelihood(), toy_data())
    assert_same(all_tensors(energy), all_tensors(plain))


@pytest.mark.parametrize("ema_decay", [None, 0.8])
def test_snapshots_are_the_weights_or_their_average_evenly_over_the_last_eighth(ema_decay):
    """Four of 40 steps, 1.25 apart: after steps 36, 38 (37.5), 39 (38.75) and 40."""
    plan = {"batch_size": 16, "ema_decay": ema_decay, "schedule": "constant"}
    energy, trainer = mixture(), Trainer(Plan(max_epochs=8, n_snapshots=4, **plan))
    trainer.fit(energy, MaximumLikelihood(), toy_data(80))
    assert len(trainer.snapshots) == 4
    assert_same(list(trainer.snapshots[-1].values()), list(energy.state_dict().values()))
    shorter, seen = mixture(), []
    objective = MaximumLikelihood()
    path, per_row = [], objective.per_row

    def recording(energy, batch, generator):
        path.append([w.detach().clone() for w in energy.parameters()])
        return per_row(energy, batch, generator)

    objective.per_row = recording
    Trainer(Plan(max_epochs=8, **plan)).fit(shorter, objective, toy_data(80))
    if ema_decay:
        average = path[0]
        for weights in path[1:]:
            average = [torch.lerp(a, w, 1 - ema_decay) for a, w in zip(average, weights, strict=True)]
            seen.append(average)
    else:
        seen = path[1:]
    for state, step in zip(trainer.snapshots, (36, 38, 39), strict=False):
        for kept, expected in zip(state.values(), seen[step - 1], strict=True):
            torch.testing.assert_close(kept, expected, rtol=0, atol=1e-6)


def test_more_snapshots_than_half_of_the_steps_are_refused_in_words():
    with pytest.raises(ValueError, match="4 snapshots do not go into the last eighth of 30 steps"):
        Trainer(Plan(max_epochs=5, batch_size=16, n_snapshots=4)).fit(mixture(), MaximumLikelihood(), toy_data(96))


# -- the rest of the contract -----------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = train_toy(None)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    assert_same(train_toy(None), first)


def test_at_most_max_steps_updates_are_made():
    for max_steps, expected in [(4, 4), (6, 6), (17, 12)]:
        objective = Faulty((), 1.0)
        Trainer(Plan(max_steps=max_steps, batch_size=16)).fit(mixture(), objective, toy_data())
        assert objective.calls == expected


def test_the_cosine_schedule_falls_to_a_twentieth_after_a_linear_warm_up():
    plan = Plan(max_epochs=10, batch_size=16, warmup_steps=6)
    rates = [plan.rate(step, 60, step // 6) for step in range(60)]
    assert rates[:6] == pytest.approx([(step + 1) / 6 for step in range(6)], rel=0.03)
    assert rates[6:] == sorted(rates[6:], reverse=True)
    assert 0.05 < rates[-1] < 0.051


@pytest.mark.parametrize(
    ("schedule", "final_rate", "expected"),
    [
        ("linear", None, lambda step, epoch: 1 - step / 40),
        ("linear", 0.2, lambda step, epoch: 1 - 0.5 * step / 40),
        ("cosine", None, lambda step, epoch: 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / 40))),
        ("cosine", 0.2, lambda step, epoch: 0.5 + 0.5 * 0.5 * (1 + math.cos(math.pi * step / 40))),
        ("constant", None, lambda step, epoch: 1.0),
        ("exponential", None, lambda step, epoch: 0.9**epoch),
    ],
)
def test_each_schedule_is_its_formula_times_the_warm_up(schedule, final_rate, expected):
    """Four epochs of ten updates; the highest rate is 0.4, and the final one a part of it."""
    for warmup_steps in (0, 8):
        plan = Plan(
            schedule=schedule, final_rate=final_rate, learning_rate=0.4, decay=0.9, warmup_steps=warmup_steps
        )
        for step in range(40):
            warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
            assert plan.rate(step, 40, step // 10) == pytest.approx(warm * expected(step, step // 10))
    other = Plan(schedule="constant", decay=0.9)
    assert other.rate(3, 40, 2, "exponential") == pytest.approx(0.81)


def test_the_weights_of_the_objective_may_have_a_rate_of_their_own():
    """The first step of Adam moves a weight by its rate."""
    energy, data = (
        PerceptronEnergy(2, (8,)),
        Batch(None, torch.randn(16, 2, generator=torch.Generator().manual_seed(0))),
    )
    objective = NoiseContrastiveEstimation(GaussianMixtureEnergy(torch.zeros(1, 2), torch.ones(1, 2)))
    before = [w.detach().clone() for w in energy.parameters()]
    plan = Plan(max_steps=1, schedule="constant", learning_rate=1e-2, objective_learning_rate=0.1)
    Trainer(plan).fit(energy, objective, data)
    moved = max(float((w.detach() - b).abs().max()) for w, b in zip(energy.parameters(), before, strict=True))
    assert moved == pytest.approx(1e-2, rel=1e-3)
    assert abs(float(objective.log_normaliser.detach())) == pytest.approx(0.1, rel=1e-3)


def test_one_step_lowers_the_energy_gap_between_data_and_noise():
    """The sign: training by noise contrast lowers E on targets and raises it on shifted ones."""
    energy, _ = dropout_energy()
    before = float(held_out_loss(energy.eval()))
    Trainer(Plan(max_epochs=30, batch_size=32, learning_rate=5e-3)).fit(
        energy, RankingNCE(n_samples=16), toy_data()
    )
    assert float(held_out_loss(energy)) < before - 1.0


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "sine"},
        {"max_epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"max_steps": 0},
        {"objective_learning_rate": -1.0},
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Plan(**settings)


def test_no_rows_are_refused_in_words():
    with pytest.raises(ValueError, match="at least one row"):
        Trainer(Plan()).fit(mixture(), MaximumLikelihood(), Batch(torch.zeros(0, 2), torch.zeros(0, 1)))


def test_mixed_precision_trains_nearly_as_well_as_full_precision():
    """bfloat16 has 8 bits: the held-out likelihood may differ by what a relative 2^-8 does to log p."""
    figures = [float(held_out_nll(mixture()))]
    for precision in ("32-true", "bf16-mixed"):
        energy = mixture()
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
        plan = Plan(max_epochs=30, batch_size=16, learning_rate=5e-3)
        Trainer(plan, fabric).fit(energy, MaximumLikelihood(), toy_data(), held_out_nll)
        assert all(w.dtype == torch.float32 and torch.isfinite(w).all() for w in energy.parameters())
        figures.append(float(held_out_nll(energy)))
    untrained, full, mixed = figures
    assert abs(full - mixed) < 0.05
    assert mixed < untrained - 0.5


# -- several processes ------------------------------------------------------------------------------------


DDP_PLAN = Plan(max_epochs=4, batch_size=13, learning_rate=1e-2, checkpoint_seconds=0.0)


@pytest.mark.slow
def test_two_processes_train_the_same_weights_as_one_and_resume(tmp_path):
    """A batch of 13 goes in parts of 7 and 6. The sums are taken in another order, so equality is up to
    float32 rounding, grown through 28 steps of Adam."""
    energy = mixture()
    Trainer(DDP_PLAN).fit(energy, MaximumLikelihood(), toy_data(), held_out_nll)
    run_in_subprocess("distributed", tmp_path)
    results = [torch.load(tmp_path / f"first{rank}.pt") for rank in range(2)]
    assert_same(results[0]["weights"], results[1]["weights"])
    assert results[0]["figures"] == results[1]["figures"]
    for own, other in zip(results[0]["weights"], energy.parameters(), strict=True):
        torch.testing.assert_close(own, other.detach(), rtol=1e-3, atol=1e-4)
    # With dropout and noise, each process drawing its own: interrupted and resumed against left alone.
    for rank, result in enumerate(results):
        assert_same(torch.load(tmp_path / f"second{rank}.pt"), result["alone"])
    # A run of two processes is not one that a single process could go on with.
    with pytest.raises(ValueError, match="2 processes, not 1"):
        Trainer(DDP_PLAN, run_dir=tmp_path / "run").fit(*dropout_energy(), toy_data(), held_out_loss, resume=True)


def distributed(folder: Path) -> None:
    """Body of the subprocess: it forks into two ranks, twice; the second pair resumes what the first began."""
    torch.set_num_threads(1)
    for body in (first_rank_body, second_rank_body):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = []
        for rank in range(2):
            child = os.fork()
            if not child:
                os.environ.update(
                    MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", NODE_RANK="0",
                    LOCAL_RANK=str(rank), RANK=str(rank), LOCAL_WORLD_SIZE="2", GROUP_RANK="0",
                    TORCHELASTIC_RUN_ID="test",
                )  # fmt: skip
                code = 1
                try:
                    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
                    fabric.launch()
                    body(folder, fabric)
                    fabric.barrier()
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            ranks.append(child)
        codes = [os.waitpid(child, 0)[1] for child in ranks]
        assert codes == [0, 0], codes


def first_rank_body(folder: Path, fabric: Fabric) -> None:
    energy = mixture(seed=fabric.global_rank)  # rank 0's weights count
    history = Trainer(DDP_PLAN, fabric).fit(energy, MaximumLikelihood(), toy_data(), held_out_nll)
    alone = dropout_energy()
    Trainer(DDP_PLAN, fabric).fit(*alone, toy_data(), held_out_loss)
    torch.save(
        {
            "weights": all_tensors(energy),
            "figures": [e["validation"] for e in history.epochs],
            "alone": all_tensors(*alone),
        },
        folder / f"first{fabric.global_rank}.pt",
    )
    # An objective that leaves a parameter, the energy's constant, out of its loss.
    Trainer(DDP_PLAN, fabric).fit(dropout_energy()[0], ScoreMatching(), toy_data(), held_out_loss)

    energy, objective = dropout_energy()
    per_row, calls = objective.per_row, [0]

    def interrupted(*arguments):
        calls[0] += 1
        if calls[0] == 12:
            raise KeyboardInterrupt
        return per_row(*arguments)

    objective.per_row = interrupted
    with contextlib.suppress(KeyboardInterrupt):
        Trainer(DDP_PLAN, fabric, folder / "run").fit(energy, objective, toy_data(), held_out_loss)


def second_rank_body(folder: Path, fabric: Fabric) -> None:
    resumed = dropout_energy()
    Trainer(DDP_PLAN, fabric, folder / "run").fit(*resumed, toy_data(), held_out_loss, resume=True)
    torch.save(all_tensors(*resumed), folder / f"second{fabric.global_rank}.pt")


def run_in_subprocess(body: str, folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, __file__, body, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-6000:]


# -- checkpoints ------------------------------------------------------------------------------------------


def a_state(value: float = 1.0) -> dict:
    return {"weights": [torch.full((1000,), value)], "epoch": 1}


def test_a_full_disk_leaves_the_checkpoint_before_it_whole(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, a_state(1.0))

    def no_space(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="free some space"):
        write_checkpoint(tmp_path, a_state(2.0))
    monkeypatch.undo()
    assert read_checkpoint(tmp_path)["weights"][0][0] == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_device_that_takes_no_bytes_leaves_the_checkpoint_before_it_whole(tmp_path):
    """The real error of a full disk, as torch's writer meets it."""
    write_checkpoint(tmp_path, a_state(1.0))
    (tmp_path / "checkpoint.pt.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="free some space"):
        write_checkpoint(tmp_path, a_state(2.0))
    assert read_checkpoint(tmp_path)["weights"][0][0] == 1.0


def test_no_checkpoint_is_none(tmp_path):
    assert read_checkpoint(tmp_path) is None


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_bit(path: Path) -> None:
    """One bit of a weight, not of the archive's own tables."""
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((8,), 1.0).numpy().tobytes()) + 100] ^= 1
    path.write_bytes(data)


def damage_text(path: Path) -> None:
    path.write_text("not a checkpoint")


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_foreign_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")


def damage_foreign_tensor(path: Path) -> None:
    torch.save({"weights": torch.ones(3)}, path)


@pytest.mark.parametrize(
    "damage",
    [damage_truncate, damage_bit, damage_text, damage_empty, damage_foreign_archive, damage_foreign_tensor],
)
def test_a_damaged_or_foreign_checkpoint_is_refused_in_words(tmp_path, damage):
    write_checkpoint(tmp_path, a_state())
    damage(tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="checkpoint"):
        read_checkpoint(tmp_path)


def test_a_checkpoint_of_a_newer_version_is_refused_in_words(tmp_path):
    write_checkpoint(tmp_path, a_state())
    state = torch.load(tmp_path / "checkpoint.pt")
    torch.save({**state, "version": 99}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="upgrade"):
        read_checkpoint(tmp_path)


class Bomb:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_never_run(tmp_path, zipped):
    target = tmp_path / "exploded"
    torch.save({"weights": Bomb(target)}, tmp_path / "checkpoint.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="checkpoint"):
        read_checkpoint(tmp_path)
    assert not target.exists()


if __name__ == "__main__":
    {"killed": killed_again_and_again, "distributed": distributed}[sys.argv[1]](Path(sys.argv[2]))
