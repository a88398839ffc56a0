"""``thalweg demo``: a real table from fit to report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thalweg.cli.fit import fit_and_show
from thalweg.cli.options import Quiet
from thalweg.runs.settings.regression import RegressionSettings

_NAMES = {"s1": "cholesterol", "s2": "ldl", "s3": "hdl", "s4": "cholesterol_hdl_ratio", "s5": "log_triglycerides",
          "s6": "glucose", "bp": "blood_pressure", "target": "progression"}  # fmt: skip


def demo(
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")] = Path("demo"),
    epochs: Annotated[int, typer.Option(min=1, help="Largest number of passes over the data.")] = 200,
    members: Annotated[int, typer.Option(min=1, help="Number of networks in the ensemble.")] = 8,
    quiet: Quiet = False,
) -> None:
    """Fit a regression on a real table (the progress of diabetes in 442 patients) and write its report."""
    from sklearn.datasets import load_diabetes

    from thalweg.data.tables import write_table
    from thalweg.runs.folder import read_run_settings

    table = load_diabetes(as_frame=True, scaled=False).frame.rename(columns=_NAMES)
    path = (out_folder / "diabetes.csv").resolve()
    if (out_folder / "fit.json").exists() and read_run_settings(out_folder).data != str(path):
        raise ValueError(f"{out_folder} holds a run of yours: choose another --out")
    write_table(table, path)
    settings = RegressionSettings(data=str(path), targets=["progression"], epochs=epochs, members=members)
    fit_and_show(out_folder, settings, overwrite=True, quiet=quiet)
