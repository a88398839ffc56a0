"""``thalweg fit sequence``: its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from thalweg.data.conll import is_conll
from thalweg.objectives.names import ANSWERS
from thalweg.runs.settings.base import MISSING_HELP, TEXT_HELP, RunSettings, Verb, option


@dataclass(frozen=True, kw_only=True)
class SequenceSettings(RunSettings):
    """Fit p(labels | sequence): a label for each row, given all rows of its sequence and one another.

    Each row of the table is an element, such as a word or a time step; --sequence names the column that says which
    sequence it belongs to, and rows of a sequence stand in its order. A CoNLL file (.conll, .bio, .iob, .conllu)
    has a sentence in each block of lines; its last column is the target. Rows without a label are left open.
    Whole sequences are held out. After Ctrl-C, `thalweg fit sequence --resume --out RUN` continues the run.
    """

    task = "sequence"
    title = "labels of the elements of sequences"
    help = "Fit the labels of sequences, such as tags of words or states in time."
    example = "thalweg fit sequence words.csv --sequence sentence --target tag --out runs/tags"
    data_help = "CSV, TSV or Parquet file with a row for each element, or a CoNLL file."
    run = "thalweg.runs.sequence:SequenceRun"
    report = "thalweg.report.sequence"
    verbs: ClassVar = {"predict": Verb(("keep",), "{run} NEW_TABLE --out predictions.csv")}
    needs_test_rows = True

    sequence: list[str] = option([], "Column that names the sequence of each row.", flags=("--sequence", "-s"))
    target: list[str] = option([], "Column of the labels.", flags=("--target", "-t"))
    drop: list[str] = option([], "Column to leave out; repeat the option for several.")
    text: list[str] = option([], TEXT_HELP)
    missing: list[str] = option([], MISSING_HELP, columns=False)
    objective: str = option("likelihood", "How the energy learns.", choices=ANSWERS)
    order: int = option(1, "1 for terms of two labels in a row, 2 for terms of three as well.", least=1)
    bio: bool = option(False, "Whether I-X may only follow B-X or I-X, in tags such as B-X, I-X and O.")
    epochs: int = option(100, "Largest number of passes over the data.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, names in (("--sequence", self.sequence), ("--target", self.target)):
            if len(names) > 1:
                raise ValueError(f"{flag} names one column, got {', '.join(names)}")
        if self.order > 2:
            raise ValueError(f"--order must be 1 or 2, got {self.order}")
        if self.is_conll:
            if self.sequence:
                raise ValueError(
                    f"--sequence names a column, and {self.name} has a sentence in each block: leave it out"
                )
        elif not self.sequence:
            raise ValueError("name the column that says which sequence a row belongs to with --sequence COLUMN")
        elif not self.target:
            raise ValueError("name the column of the labels with --target COLUMN")
        if self.sequence and self.sequence == self.target:
            raise ValueError(f"{self.target[0]!r} can't be both the sequence and the target")

    @property
    def is_conll(self) -> bool:
        """Whether the data are a CoNLL file rather than a table."""
        return is_conll(Path(self.data))

    @property
    def default_folder(self) -> Path:
        return Path("runs") / f"{self.name}-{'-'.join(self.target) or self.task}"
