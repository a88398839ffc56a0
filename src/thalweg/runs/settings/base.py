"""What the settings of all tasks share, and how an option is declared: once, for Python and for the command."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from thalweg.runs.kinds import misfit

# Of tasks on tables.
TEXT_HELP = "Column to read as texts (categories), whatever it holds; repeat the option for several."
MISSING_HELP = "Word that stands for a gap, such as -9999; repeat the option for several."


def option(
    default: Any,
    help: str,
    *,
    flags: Sequence[str] = (),
    least: float | None = None,
    choices: Sequence[str] = (),
    hidden: bool = False,
    columns: bool = True,
) -> Any:
    """A field of :class:`Settings` that is an option of ``thalweg fit``.

    Args:
        default: its value if it is not given; an empty list for an option that may be repeated. A list of
            texts is a list of columns.
        help: what it means, in one sentence.
        flags: how it is written on the command line; ``--name`` by default.
        least: the least value that it takes.
        choices: the values that it takes.
        hidden: whether the help leaves it out.
        columns: whether a list of texts names columns.
    """
    metadata = {
        "help": help,
        "flags": tuple(flags),
        "least": least,
        "choices": tuple(choices),
        "hidden": hidden,
        "columns": columns,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Verb:
    """Something that a finished run can do, such as predict.

    Attributes:
        options: the options of the command that apply, by their names in Python.
        example: arguments that show its use; ``{run}`` is the folder of the run.
    """

    options: tuple[str, ...]
    example: str


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a result. A subclass declares its own options as further fields.

    Attributes:
        data: path of the table or of the images.

    Raises:
        ValueError: for a value that can't be used, naming the option.
    """

    task: ClassVar[str]
    title: ClassVar[str]
    help: ClassVar[str]
    example: ClassVar[str]
    data_help: ClassVar[str] = "CSV, TSV or Parquet file."
    data_name: ClassVar[str] = "TABLE"
    # Whether rows must be held out for the figures.
    needs_test_rows: ClassVar[bool] = False
    # What can be done with the result, by the name of the command.
    verbs: ClassVar[Mapping[str, Verb]] = {}

    data: str
    test_fraction: float = option(0.1, "Share of the rows that are held out to measure the model.")
    seed: int = option(0, "Seed of the split and of the training.", least=0)
    threads: int | None = option(None, "Number of threads, baselines included. [default: by the work]", least=1)
    device: str = option("cpu", "Device to train on: cpu, cuda, mps or auto.")
    precision: str = option("32-true", "Numerical precision of the training, such as bf16-mixed.")

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for entry in fields(self):
            if wrong := misfit(getattr(self, entry.name), hints[entry.name], entry.name):
                raise ValueError(wrong)
            if entry.metadata:
                self._check(entry.name, getattr(self, entry.name), entry.metadata)
        least = "above 0" if self.needs_test_rows else "at least 0"
        lowest_fits = self.test_fraction > 0 or (self.test_fraction == 0 and not self.needs_test_rows)
        if not (lowest_fits and self.test_fraction < 1):
            raise ValueError(f"the test fraction must be {least} and below 1, got {self.test_fraction}")

    def _check(self, name: str, value: Any, about: Mapping[str, Any]) -> None:
        flag, least, choices = flag_of(name, about), about["least"], about["choices"]
        values = value if isinstance(value, list) else [] if value is None else [value]
        if isinstance(value, list) and len(set(map(str, value))) < len(value) and not all(map(_is_number, value)):
            raise ValueError(f"a column is named twice: {', '.join(map(str, value))}")
        for one in values:
            if choices and one not in choices:
                raise ValueError(f"{flag} must be one of {', '.join(choices)}; got {one!r}")
            if _is_number(one) and (not math.isfinite(one) or (least is not None and one < least)):
                raise ValueError(f"{flag} must be at least {least:g}, got {one:g}")

    @property
    def fills_gaps(self) -> bool:
        """Whether the model can fill the gaps of a table."""
        return "impute" in self.verbs

    @property
    def default_folder(self) -> Path:
        """Where the run goes if no folder is named."""
        return Path("runs") / f"{self.name}-{self.task}"

    @property
    def named_columns(self) -> list[str]:
        """The columns that the options name."""
        named = [entry.name for entry in fields(self) if entry.metadata and entry.metadata["columns"]]
        lists = [getattr(self, name) for name in named]
        return [one for values in lists if isinstance(values, list) for one in values if isinstance(one, str)]

    @property
    def name(self) -> str:
        """The name of the data, without its ending."""
        return Path(self.data).name.split(".")[0]

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The default of every option by name."""
        return {
            entry.name: entry.default_factory() if callable(entry.default_factory) else entry.default
            for entry in fields(cls)
            if entry.metadata
        }


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """The settings of a task that makes a run in a folder.

    Attributes:
        run: where the class of the run is, as "module:class".
        report: the module that draws its page; it has ``report(run) -> html``.
    """

    run: ClassVar[str]
    report: ClassVar[str]

    devices: int = option(1, "Number of devices on each machine; on a CPU, of processes.", least=1)
    nodes: int = option(1, "Number of machines; torchrun or SLURM starts the command on each.", least=1)
    strategy: str = option("auto", "How Lightning Fabric distributes the work over the devices, such as ddp.")
    checkpoint_seconds: float = option(
        5.0, "Least number of seconds between two checkpoints.", least=0.0, hidden=True
    )


def flag_of(name: str, about: Mapping[str, Any]) -> str:
    """How an option is written on the command line."""
    return about["flags"][0] if about["flags"] else "--" + name.replace("_", "-")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
