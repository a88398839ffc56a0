"""``thalweg fit boltzmann``: its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thalweg.runs.settings.base import RunSettings, Verb, option

KINDS = ("restricted", "deep", "belief")
VISIBLE = ("auto", "binary", "gaussian", "categorical", "mixed")


@dataclass(frozen=True, kw_only=True)
class BoltzmannSettings(RunSettings):
    """Fit a Boltzmann machine and score it on rows held out, beside independent columns.

    Columns of 0 and 1 get binary units, texts categorical ones, numbers Gaussian ones, side by side; rows with
    gaps are left out (`thalweg impute` fills them afterwards). Images are cut at the middle into black and white.
    The log-likelihood is exact with up to 20 units in one layer, else bracketed by annealing; of deep machines it
    is a lower bound. Ctrl-C leaves a run that `thalweg fit boltzmann --resume --out RUN` continues.
    """

    task = "boltzmann"
    title = "Boltzmann machine"
    help = "Fit a Boltzmann machine, restricted or deep, to a table or to images."
    example = "thalweg fit boltzmann pictures/ --kind deep --hidden 128 --hidden 64 --out runs/pictures"
    data_help = "CSV, TSV or Parquet file; or images: a folder of pictures or an .npz."
    data_name = "DATA"
    run = "thalweg.runs.boltzmann:BoltzmannRun"
    report = "thalweg.report.boltzmann"
    verbs: ClassVar = {
        "sample": Verb(("n", "seed"), "{run} -n 1000 --out new.csv"),
        "score": Verb((), "{run} DATA"),
        "impute": Verb(("draws", "seed"), "{run} TABLE --out filled.csv"),
    }
    needs_test_rows = True

    drop: list[str] = option([], "Column of a table to leave out; repeat it for several.")
    visible: str = option("auto", "What the visible units are.", choices=VISIBLE)
    kind: str = option(
        "restricted", "The machine; deep is a deep Boltzmann machine, belief a deep belief network.", choices=KINDS
    )
    hidden: list[int] = option(
        [],
        "Number of hidden units; else as many as columns, 16 to 256. Repeat it for layers, from below.",
        least=1,
    )
    epochs: int | None = option(None, "Passes over the data; else for 3000 updates, 50 at least.", least=1)
    learning_rate: float | None = option(
        None, "Learning rate of the first epoch, which falls to 0; else 0.3 (Gaussian units 0.1)."
    )
    gibbs: int = option(1, "Sweeps of the chains before each update.", least=1)
    persistent: bool = option(
        True, "Chains go on from update to update, or start at the rows.", flags=("--persistent/--from-data",)
    )
    temperatures: int | None = option(
        None, "Temperatures of the chains: 5 to 10 for groups far apart; else 5 with numbers, or 1.", least=1
    )
    grey: bool = option(False, "Keep grey values of images as probabilities of white.", flags=("--grey",))

    def __post_init__(self) -> None:
        super().__post_init__()
        n_layers = len(self.hidden)
        if self.kind == "restricted" and n_layers > 1:
            raise ValueError("a restricted machine has one layer of hidden units: take --kind deep or belief")
        if self.kind == "deep" and n_layers == 1:
            raise ValueError("a deep machine has two layers at least: give --hidden twice")
        if self.kind != "restricted" and (self.grey or self.temperatures or not self.persistent):
            raise ValueError("--grey, --temperatures and --from-data are for restricted machines")
        if (self.temperatures or 1) > 1 and not self.persistent:
            raise ValueError("--temperatures is for chains that go on: leave out --from-data")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"--learning-rate must be positive, got {self.learning_rate:g}")
        if self.devices * self.nodes > 1:
            raise ValueError("Boltzmann machines are trained by one process: leave out --devices and --nodes")
