"""``thalweg fit boltzmann``: its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thalweg.runs.settings.base import MISSING_HELP, TEXT_HELP, RunSettings, Verb, option

KINDS = ("restricted", "deep", "belief")
VISIBLE = ("auto", "binary", "gaussian", "categorical", "mixed")


@dataclass(frozen=True, kw_only=True)
class BoltzmannSettings(RunSettings):
    """Fit a Boltzmann machine and compare it with independent columns on held-out rows.

    Columns of 0 and 1 get binary units, texts get categorical units and numbers get Gaussian units. Rows with
    gaps are left out (`thalweg impute` fills them afterwards). The pixels of images are rounded to black or white.
    The log-likelihood is exact if one layer has at most 20 units; else log Z is estimated by annealing, with
    its error. For deep machines it is a lower bound. After Ctrl-C, `thalweg fit boltzmann --resume --out RUN`
    continues the run.
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
        "score": Verb(("keep",), "{run} DATA"),
        "impute": Verb(("draws", "seed"), "{run} TABLE --out filled.csv"),
    }
    needs_test_rows = True

    drop: list[str] = option([], "Column of a table to leave out; repeat the option for several.")
    text: list[str] = option([], TEXT_HELP)
    missing: list[str] = option([], MISSING_HELP, columns=False)
    visible: str = option("auto", "Kind of the visible units.", choices=VISIBLE)
    kind: str = option(
        "restricted",
        "Kind of the machine: deep is a deep Boltzmann machine, belief a deep belief network.",
        choices=KINDS,
    )
    hidden: list[int] = option(
        [],
        "Number of hidden units; repeat the option for each layer, the lowest first. [default: as many as "
        "columns, from 16 to 256]",
        least=1,
    )
    epochs: int | None = option(
        None, "Number of passes over the data. [default: enough for 3000 updates, at least 50]", least=1
    )
    learning_rate: float | None = option(
        None,
        "Learning rate of the first epoch; it falls to 0. [default: 0.3, or 0.1 with Gaussian units; less for "
        "wide machines]",
    )
    gibbs: int = option(1, "Number of Gibbs sweeps of the chains before each update.", least=1)
    persistent: bool = option(
        True,
        "Whether the chains continue from update to update, or start at the rows each time.",
        flags=("--persistent/--from-data",),
    )
    temperatures: int | None = option(
        None,
        "Number of temperatures of the chains; 5 to 10 help if the data form groups far apart. [default: 5 with "
        "numbers, 10 with 17 to 256 bits, else 1]",
        least=1,
    )
    grey: bool = option(False, "Keep grey values of images as probabilities of white.", flags=("--grey",))

    def __post_init__(self) -> None:
        super().__post_init__()
        n_layers = len(self.hidden)
        if self.kind == "restricted" and n_layers > 1:
            raise ValueError("a restricted machine has one layer of hidden units: give --kind deep or belief")
        if self.kind == "deep" and n_layers == 1:
            raise ValueError("a deep machine has at least two layers: give --hidden twice")
        if self.kind != "restricted" and (self.grey or self.temperatures or not self.persistent):
            raise ValueError("--grey, --temperatures and --from-data are for restricted machines")
        if (self.temperatures or 1) > 1 and not self.persistent:
            raise ValueError("--temperatures is for persistent chains: leave out --from-data")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"--learning-rate must be positive, got {self.learning_rate:g}")
        if self.devices * self.nodes > 1:
            raise ValueError("Boltzmann machines are trained by one process: leave out --devices and --nodes")
