"""``thalweg fit classifier``: its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from thalweg.objectives.names import CLASSIFYING
from thalweg.runs.settings.base import MISSING_HELP, TEXT_HELP, RunSettings, Verb, option


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings(RunSettings):
    """Fit p(label | all other columns), or p(label | image), and how typical an input is.

    Of a table, --target names the column of the labels; the subfolders of a folder of pictures are labels, and so
    are the numbers y in an .npz. The model stands beside two baselines on held-out rows. After Ctrl-C,
    `thalweg fit classifier --resume --out RUN` continues the run.
    """

    task = "classifier"
    title = "classifier that says how typical an input is"
    help = "Fit a classifier of the rows of a table, or of images."
    example = "thalweg fit classifier penguins.csv --target species --out runs/penguins"
    data_help = "CSV, TSV or Parquet file, folder of pictures, or an .npz."
    data_name = "DATA"
    run = "thalweg.runs.classifier:ClassifierRun"
    report = "thalweg.report.classifier"
    verbs: ClassVar = {
        "predict": Verb(("keep",), "{run} NEW_DATA --out predictions.csv"),
        "score": Verb(("keep",), "{run} NEW_DATA --out scores.csv"),
        "sample": Verb(("n", "seed", "label"), "{run} -n 100 --out new.csv"),
    }
    needs_test_rows = True

    target: list[str] = option([], "Column of the labels.", flags=("--target", "-t"))
    drop: list[str] = option([], "Column to leave out; repeat the option for several.")
    text: list[str] = option([], TEXT_HELP)
    missing: list[str] = option([], MISSING_HELP, columns=False)
    objective: str = option(
        "auto",
        "How the energy learns; 'auto' is cross-entropy with a density beside it. The others are for images.",
        choices=("auto", *CLASSIFYING),
    )
    epochs: int = option(200, "Largest number of passes over the data.", least=1)
    members: int = option(8, "Number of networks in the ensemble.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.target) > 1:
            raise ValueError(f"a classifier has one target, got {', '.join(self.target)}")
        if self.is_of_images:
            for flag, value in (("--target", self.target), ("--drop", self.drop), ("--text", self.text)):
                if value:
                    raise ValueError(f"{flag} names a column, and {self.name} holds images: leave it out")
        elif not self.target:
            raise ValueError("name the column of the labels with --target COLUMN")

    @property
    def is_of_images(self) -> bool:
        """Whether the data are images rather than a table."""
        return Path(self.data).is_dir() or Path(self.data).suffix.lower() == ".npz"

    @property
    def default_folder(self) -> Path:
        return Path("runs") / f"{self.name}-{'-'.join(self.target) or self.task}"
