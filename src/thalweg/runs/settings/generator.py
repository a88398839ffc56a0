"""``thalweg fit generator``: its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thalweg.objectives.names import GENERATIVE, VARIATIONAL
from thalweg.runs.settings.base import MISSING_HELP, TEXT_HELP, RunSettings, Verb, option


@dataclass(frozen=True, kw_only=True)
class GeneratorSettings(RunSettings):
    """Fit a generator of images or of rows of numbers with an energy, and measure both on held-out data.

    A draw is one pass of a network, so that thousands take a second; draws of gebm and vaebm are corrected by
    chains. The energy ranks and detects outliers; that of vae and vaebm is a density, in nats. Labels are not
    used. Columns must hold numbers; rows with gaps are left out, and with vae and vaebm `thalweg impute` fills
    them afterwards. After Ctrl-C, `thalweg fit generator --resume
    --out RUN` continues the run.
    """

    task = "generator"
    title = "generator and its energy"
    help = "Fit a generator of images or of rows of numbers, with an energy."
    example = "thalweg fit generator pictures/ --out runs/pictures"
    data_help = "Images: a folder of pictures or an .npz; or a CSV, TSV or Parquet file."
    data_name = "DATA"
    run = "thalweg.runs.generator:GeneratorRun"
    report = "thalweg.report.generator"
    verbs: ClassVar = {
        "sample": Verb(("n", "seed"), "{run} -n 100 --out NEW"),
        "score": Verb(("keep",), "{run} DATA --out scores.csv"),
        "impute": Verb(("draws", "seed"), "{run} TABLE --out filled.csv"),
    }
    needs_test_rows = True

    drop: list[str] = option([], "Column of a table to leave out; repeat the option for several.")
    text: list[str] = option([], TEXT_HELP)
    missing: list[str] = option([], MISSING_HELP, columns=False)
    kind: str = option(
        "ebgan",
        "What the generator plays against: an autoencoder with a margin (ebgan), with a margin that falls "
        "(magan), or kept in balance (began); a classifier (gan); an energy that corrects it (gebm) or that it "
        "follows (vera). Or a variational autoencoder (vae), and one that an energy corrects (vaebm).",
        choices=GENERATIVE,
    )
    steps: int | None = option(
        None,
        "Number of updates, of all networks together. [default: 12000; vaebm 5500, vae 4000]",
        least=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.devices * self.nodes > 1:
            raise ValueError("a generator is trained by one process: leave out --devices and --nodes")

    @property
    def fills_gaps(self) -> bool:
        """Autoencoders do; an energy beside a generator says nothing of a row given a part of it."""
        return self.kind in VARIATIONAL
