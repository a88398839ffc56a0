"""``thalweg compare density``: its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thalweg.objectives.names import DENSITY
from thalweg.runs.settings.base import MISSING_HELP, TEXT_HELP, Settings, option

OBJECTIVES = ("auto", *DENSITY)


@dataclass(frozen=True, kw_only=True)
class CompareSettings(Settings):
    """Fit the density of a table by every training method, with the same budget, and score each on held-out rows.

    The command writes report.html and comparison.json. It takes about methods x fits x seconds.
    """

    task = "compare"
    title = "comparison of the ways to train a density"
    help = "Fit a density by every training method and compare them."
    example = "thalweg compare density iris.csv --drop species --seconds 20 --out runs/iris-compare"
    needs_test_rows: ClassVar[bool] = True

    test_fraction: float = option(0.2, "Share of the rows that are held out for the figures.")
    drop: list[str] = option([], "Column to leave out; repeat the option for several.")
    text: list[str] = option([], TEXT_HELP)
    missing: list[str] = option([], MISSING_HELP, columns=False)
    objectives: str = option(
        ",".join(OBJECTIVES), "Names of the methods, separated by commas, such as auto,nce,dsm."
    )
    seconds: float = option(10.0, "Number of CPU seconds for each fit, all that belongs to it included.")
    steps: int | None = option(
        None,
        "Number of updates for each fit, instead of --seconds; it gives the same result on every machine.",
        least=1,
    )
    fits: int = option(
        3, "Number of fits of each method, each with a seed of its own.", flags=("--seeds",), least=1
    )
    members: int = option(8, "Number of networks in each ensemble of 'auto'.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [o for o in self.names if o not in OBJECTIVES]
        if unknown:
            raise ValueError(f"there is no objective {unknown[0]!r}; there are: {', '.join(OBJECTIVES)}")
        if len(set(self.names)) < len(self.names) or not self.names:
            raise ValueError("name each objective once")
        if not self.seconds > 0:
            raise ValueError(f"--seconds must be positive, got {self.seconds:g}")

    @property
    def names(self) -> list[str]:
        """The objectives to compare."""
        return [o.strip() for o in self.objectives.split(",") if o.strip()]
