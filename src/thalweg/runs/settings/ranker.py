"""``thalweg fit ranker``: its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from thalweg.objectives.names import RANKING
from thalweg.runs.settings.base import MISSING_HELP, TEXT_HELP, RunSettings, Verb, option


@dataclass(frozen=True, kw_only=True)
class RankerSettings(RunSettings):
    """Fit an energy that orders the rows of a group: answers to a query, runners of a race.

    --group names the column that says which rows are compared, --target that of their relevance: whole numbers
    from 0, the higher the better. All other columns are inputs. Whole groups are held out, on which the model
    stands beside baselines. After Ctrl-C, `thalweg fit ranker --resume --out RUN` continues the run.
    """

    task = "ranker"
    title = "ranker of the rows of a group"
    help = "Fit a ranker of the rows of a group, such as the answers to a query."
    example = "thalweg fit ranker answers.csv --group query --target relevance --out runs/answers"
    run = "thalweg.runs.ranker:RankerRun"
    report = "thalweg.report.ranker"
    verbs: ClassVar = {"predict": Verb(("keep",), "{run} NEW_TABLE --out ranks.csv")}
    needs_test_rows = True

    target: list[str] = option([], "Column of the relevance.", flags=("--target", "-t"))
    group: list[str] = option([], "Column that names the group of each row.", flags=("--group", "-g"))
    drop: list[str] = option([], "Column to leave out; repeat the option for several.")
    text: list[str] = option([], TEXT_HELP)
    missing: list[str] = option([], MISSING_HELP, columns=False)
    objective: str = option("listwise", "How the energy learns.", choices=RANKING)
    epochs: int = option(200, "Largest number of passes over the data.", least=1)
    members: int = option(8, "Number of networks in the ensemble.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, what, value in (
            ("--target", "relevance", self.target),
            ("--group", "groups", self.group),
        ):
            if len(value) != 1:
                given = f"got {', '.join(value)}" if value else "it is missing"
                raise ValueError(f"name the column of the {what} with {flag} COLUMN, one column: {given}")
        if self.target == self.group:
            raise ValueError(f"--target and --group name the same column, {self.target[0]!r}")

    @property
    def default_folder(self) -> Path:
        return Path("runs") / f"{self.name}-{self.target[0]}"
