"""``thalweg fit density``: its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thalweg.objectives.names import DENSITY
from thalweg.runs.settings.base import MISSING_HELP, TEXT_HELP, RunSettings, Verb, option


@dataclass(frozen=True, kw_only=True)
class DensitySettings(RunSettings):
    """Fit the joint density of all columns and compare it with baselines on held-out rows.

    Columns may hold numbers, texts, truth values and dates, with gaps; by another objective than 'auto' they must
    hold numbers, and rows with gaps are left out. After Ctrl-C, `thalweg fit density --resume --out RUN` continues
    the run.
    """

    task = "density"
    title = "joint density of all columns"
    help = "Fit the joint density of all columns."
    example = "thalweg fit density penguins.csv --out runs/penguins"
    run = "thalweg.runs.density:DensityRun"
    report = "thalweg.report.density"
    verbs: ClassVar = {
        "sample": Verb(("n", "seed", "given", "where"), "{run} -n 1000 --out new.csv"),
        "score": Verb(("keep", "explain"), "{run} TABLE --explain"),
        "predict": Verb(("columns", "keep"), "{run} TABLE --columns COLUMN"),
        "impute": Verb(("draws", "seed", "candidates"), "{run} TABLE --out filled.csv"),
    }

    drop: list[str] = option([], "Column to leave out; repeat the option for several.")
    text: list[str] = option([], TEXT_HELP)
    missing: list[str] = option([], MISSING_HELP, columns=False)
    objective: str = option(
        "auto",
        "How the energy learns; 'auto' normalises exactly, and `thalweg compare density` compares them all.",
        choices=("auto", *DENSITY),
    )
    epochs: int = option(200, "Largest number of passes over the data.", least=1)
    members: int = option(8, "Number of networks in each ensemble.", least=1)
