"""``thalweg fit regression``: its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from thalweg.objectives.names import CONDITIONAL
from thalweg.runs.settings.base import MISSING_HELP, TEXT_HELP, RunSettings, Verb, option


@dataclass(frozen=True, kw_only=True)
class RegressionSettings(RunSettings):
    """Fit p(target | all other columns) and compare it with two baselines on held-out rows.

    Columns may hold numbers, categories and dates (2024-05-31), with gaps. After Ctrl-C,
    `thalweg fit regression --resume --out RUN` continues the run.
    """

    task = "regression"
    title = "density of a target, given all other columns"
    help = "Fit the density of a target, given all other columns."
    example = "thalweg fit regression wine.csv --target quality --out runs/wine"
    run = "thalweg.runs.regression:RegressionRun"
    report = "thalweg.report.regression"
    verbs: ClassVar = {
        "predict": Verb(
            ("quantiles", "coverage", "samples", "seed", "keep"), "{run} NEW_TABLE --out predictions.csv"
        ),
    }

    targets: list[str] = option([], "Column to predict; repeat the option for several.", flags=("--target", "-t"))
    drop: list[str] = option([], "Column to leave out; repeat the option for several.")
    text: list[str] = option([], TEXT_HELP)
    missing: list[str] = option([], MISSING_HELP, columns=False)
    objective: str = option(
        "auto",
        "How the energy learns; 'auto' chooses the best objective that suits the target.",
        choices=("auto", *CONDITIONAL),
    )
    epochs: int = option(200, "Largest number of passes over the data.", least=1)
    members: int = option(8, "Number of networks in the ensemble.", least=1)
    point: str = option("mean", "Point prediction of the model.", choices=("mean", "median", "mode"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.targets:
            raise ValueError("name the column to predict with --target COLUMN")

    @property
    def default_folder(self) -> Path:
        return Path("runs") / f"{self.name}-{'-'.join(self.targets)}"
