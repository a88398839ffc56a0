"""``thalweg fit detector``: its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thalweg.runs.settings.base import MISSING_HELP, TEXT_HELP, RunSettings, Verb, option

_ONE_PROCESS = {"device": "cpu", "precision": "32-true", "devices": 1, "nodes": 1, "strategy": "auto"}


@dataclass(frozen=True, kw_only=True)
class DetectorSettings(RunSettings):
    """Learn what rows are usual, and find the odd ones of this table and of others.

    Columns may hold numbers, texts, truth values and dates, with gaps. Every row gets a p-value: the share of rows
    like those of the table that are at least as odd.
    """

    task = "detector"
    title = "detector of odd rows"
    help = "Find odd rows, and the cells that make them so."
    example = "thalweg fit detector penguins.csv --out runs/penguins"
    run = "thalweg.runs.detector:DetectorRun"
    report = "thalweg.report.detector"
    verbs: ClassVar = {"score": Verb(("keep", "explain"), "{run} TABLE --explain")}

    drop: list[str] = option([], "Column to leave out; repeat the option for several.")
    text: list[str] = option([], TEXT_HELP)
    missing: list[str] = option([], MISSING_HELP, columns=False)
    alpha: float = option(0.05, "Rows are flagged whose p-value is at most this: the share of false alarms.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha < 1:
            raise ValueError(f"--alpha must be above 0 and below 1, got {self.alpha:g}")
        for name, value in _ONE_PROCESS.items():
            if getattr(self, name) != value:
                raise ValueError(f"--{name} does not apply: a detector learns on one CPU, in closed form")
