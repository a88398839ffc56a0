"""The guard: notices that training diverges, goes back to the last good state, and gives up in the end."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from thalweg.training.plan import Plan

# Energies of answers that differ by less than this decide nothing.
COLLAPSED = 1e-3


class DivergenceError(RuntimeError):
    """Training diverged again and again; no model is handed over."""


class Diverged(Exception):
    """An update or an epoch that is not sound; the message says in what way."""


class Guard:
    """What is remembered of the losses, of each player its own, and how often training went back.

    Attributes:
        good: the last good state of the run.
        rate_scale: factor of all learning rates; each return to the last good state halves it.
        rollbacks: returns to the last good state.
        largest: the largest loss of each player so far, that of the untrained energy included.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self.good: dict[str, Any] = {}
        self.rate_scale = 1.0
        self.rollbacks = 0
        self.largest: dict[str, float] = {}

    def first(self, player: str, loss: float) -> None:
        """Take a player's first loss as its measure."""
        self.largest.setdefault(player, abs(loss))

    def check(self, losses: Mapping[str, Sequence[float]]) -> None:
        """Refuse an epoch that ends with a loss out of all proportion to those before it.

        The median of the last updates is compared, so that one odd batch is no alarm, with the largest loss seen.
        Upwards a factor of 1000 is far. Downwards a score-matching loss may fall far by learning, and only an
        energy gap without bound falls by a million.

        Raises:
            Diverged: naming the player, where there are several.
        """
        for player, values in losses.items():
            loss, scale = statistics.median(values[-15:]), max(1.0, self.largest[player])
            if not -1e6 * scale < loss < 1e3 * scale:
                whose = f"the {player}'s loss" if len(losses) > 1 else "the loss"
                raise Diverged(f"{whose} ran away to {values[-1]:.3g}")
            self.largest[player] = max(self.largest[player], abs(loss))

    def roll_back(self, where: str) -> str:
        """Count a return to the last good state, which the caller has restored, and halve the rate.

        Returns:
            what to report.

        Raises:
            DivergenceError: after more returns than the plan allows.
        """
        self.rollbacks += 1
        if self.rollbacks > self.plan.max_rollbacks:
            raise DivergenceError(
                f"training diverged {self.rollbacks} times and was stopped; last: {where}. Lower the learning "
                "rate, or look for extreme values in the data."
            )
        self.rate_scale /= 2
        return f"{where}; back to the last good state, learning rate halved (roll-back {self.rollbacks})"

    @staticmethod
    def collapse(record: Mapping[str, float]) -> str | None:
        """What to report where the energy tells no answer from another; None where it does, or it is not known."""
        spread = record.get("energy spread")
        if spread is None or spread > COLLAPSED:
            return None
        return (
            f"the energies of all answers are equal (they differ by {spread:.2g}): the loss has collapsed, for it "
            "pushes no energy up; take one with a margin, or the likelihood"
        )

    def state(self) -> dict[str, Any]:
        return {"rate_scale": self.rate_scale, "rollbacks": self.rollbacks, "largest": dict(self.largest)}

    def restore(self, state: dict[str, Any]) -> None:
        self.rate_scale, self.rollbacks = state["rate_scale"], state["rollbacks"]
        self.largest = dict(state["largest"])
