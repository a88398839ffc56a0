"""What happened in a training: one record an epoch, and every event worth reporting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class History:
    """What happened in a training, or in several that make one model.

    Attributes:
        epochs: one record for each epoch: "epoch" (from 1), "loss", with validation "validation" and "best", and
            the objective's own figures.
        events: every event worth reporting, such as a roll-back, in words.
        seconds: how long it took.
        stopped: why it ended.
        parts: one history a part, for a model that is trained in several parts (a chain of conditionals, the
            layers of a deep machine), the history of each by name, in order. ``epochs`` and ``events`` then join
            those of all parts.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    seconds: float = 0.0
    stopped: str = ""
    parts: dict[str, History] = field(default_factory=dict)

    @property
    def rollbacks(self) -> int:
        """How often training diverged and went back to its last good state."""
        return sum("roll-back" in event for event in self.events)

    @classmethod
    def joined(cls, parts: Mapping[str, History]) -> History:
        """One history of a model that was trained in parts, by name, in order."""
        return cls(
            [record for part in parts.values() for record in part.epochs],
            [f"{name}: {event}" for name, part in parts.items() for event in part.events],
            sum(part.seconds for part in parts.values()),
            [part.stopped for part in parts.values()][-1] if parts else "",
            dict(parts),
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything, fit for JSON; :meth:`from_dict` reads it back. What ``parts`` say is not kept twice."""
        kept = asdict(self)
        if self.parts:
            return {"parts": {name: part.to_dict() for name, part in self.parts.items()}}
        return {k: v for k, v in kept.items() if k != "parts"}

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> History:
        """The history that :meth:`to_dict` kept."""
        if "parts" in kept:
            return cls.joined({name: cls.from_dict(part) for name, part in kept["parts"].items()})
        return cls(**kept)
