"""``thalweg fit forecast``: its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from thalweg.runs.settings.base import MISSING_HELP, RunSettings, Verb, option


@dataclass(frozen=True, kw_only=True)
class ForecastSettings(RunSettings):
    """Fit p(next stretch | past) of series of numbers, and compare its forecasts with two baselines.

    Each row of the table is a moment of a series: --time names the column of its numbers or dates, --target what
    is forecast, and --series the column that names the series where there are several. Rows of a series stand in
    the order of time. Even times are recognised (hours, working days, months, ...), and stamps that are missing
    are gaps. From 10 series on whole series are held out, else the last part of each. After Ctrl-C,
    `thalweg fit forecast --resume --out RUN` continues the run.
    """

    task = "forecast"
    title = "forecasts of series"
    help = "Fit forecasts of series of numbers, as draws of whole paths."
    example = "thalweg fit forecast sales.csv --time month --target sold --out runs/sales"
    run = "thalweg.runs.forecast:ForecastRun"
    report = "thalweg.report.forecast"
    verbs: ClassVar = {
        "predict": Verb(("horizon", "draws", "seed"), "{run} PAST --out forecast.csv"),
        "sample": Verb(("table", "n", "horizon", "seed"), "{run} PAST -n 100 --out paths.csv"),
        "score": Verb((), "{run} TABLE"),
    }
    needs_test_rows = True

    time: list[str] = option([], "Column of the times: numbers, or dates such as 2024-05-31, 2024-05 or 2024-Q2.")
    target: list[str] = option(
        [], "Column of numbers to forecast; repeat the option for several.", flags=("--target", "-t")
    )
    series: list[str] = option([], "Column that names the series of each row.", flags=("--series", "-s"))
    known: list[str] = option(
        [], "Column of numbers whose future is known, such as a plan; repeat the option for several."
    )
    missing: list[str] = option([], MISSING_HELP, columns=False)
    horizon: int | None = option(
        None,
        "Number of steps that are forecast at once. [default: a season; else 20, at most a quarter of the series]",
        least=1,
    )
    season: int | None = option(
        None, "Number of steps in a season, 0 for none. [default: by the times: a day, a week, a year]", least=0
    )
    window: int | None = option(None, "Number of steps that are seen back. [default: 4 horizons]", least=1)
    calendar: bool = option(
        True,
        "Whether dates give the hour of the day, the day of the week and of the year as inputs.",
        flags=("--calendar/--no-calendar",),
    )
    members: int = option(4, "Number of networks in the ensemble.", least=2)
    steps: int | None = option(None, "Largest number of updates. [default: 2000]", least=1)
    test_fraction: float = option(
        0.2, "Share of the series that are held out, or of the time of each where they are fewer than 10."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, names in (("--time", self.time), ("--series", self.series)):
            if len(names) > 1:
                raise ValueError(f"{flag} names one column, got {', '.join(names)}")
        if not self.time:
            raise ValueError("name the column of the times with --time COLUMN")
        if not self.target:
            raise ValueError("name the column to forecast with --target COLUMN")
        flags: dict[str, str] = {}
        for flag in ("time", "target", "series", "known"):
            for name in getattr(self, flag):
                if name in flags:
                    raise ValueError(f"{name!r} can't be both --{flags[name]} and --{flag}")
                flags[name] = flag
        if self.season == 1:
            raise ValueError("--season must be 0 for none, or at least 2, got 1")
        if self.devices * self.nodes > 1 or self.strategy != "auto" or self.precision != "32-true":
            raise ValueError(
                "forecasts are trained by one process in 32-true: leave out --devices, --nodes, --strategy and "
                "--precision"
            )

    @property
    def default_folder(self) -> Path:
        return Path("runs") / f"{self.name}-{'-'.join(self.target)}"
