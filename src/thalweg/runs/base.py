"""A run of any task: read the data, begin, fit, measure, save; and load what came of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch.distributed as dist
from threadpoolctl import threadpool_limits

from thalweg.data.tables import read_table, write_table
from thalweg.estimators._html import html_table
from thalweg.evaluation.verdict import Check, FailedModelWarning, Verdict
from thalweg.runs import found, settings_of
from thalweg.runs.folder import (
    begin_run,
    check_files,
    check_run,
    check_unchanged,
    finish_run,
    process_rank,
    read_figures,
    read_run_settings,
    remove_run,
    task_of,
    versions,
    writing_alone,
)
from thalweg.runs.kinds import RunFigures
from thalweg.runs.settings import RunSettings, Settings, Verb
from thalweg.runs.tables import MODEL_NAME
from thalweg.training.history import History

_MAX_SAVED_ROWS = 5000

Tell = Callable[[str], None]


@dataclass
class TextTable:
    """A table of figures to print.

    Attributes:
        title: the title above it.
        head: a name for each column.
        rows: cells.
        best: whether the first row is in bold.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: bool = True


class Run:
    """A finished run of a task. A subclass says how it is made and what it can do.

    The class methods make a run, in this order: :meth:`read`, :meth:`build`, :meth:`train`, :meth:`measure`,
    :meth:`keep`. The verbs that the settings name (predict, sample, score, impute) are methods.

    Args:
        folder: the folder of the run.
        settings: how it was made.
        figures: what was measured.
        model: the fitted model.
    """

    settings_class: ClassVar[type[RunSettings]]
    # What its figures are: a run with others is damaged.
    figures_class: ClassVar[type] = RunFigures

    def __init__(self, folder: Path, settings: Any, figures: dict[str, Any], model: Any):
        self.folder, self.settings, self.figures, self.model = folder, settings, figures, model

    # -- making --------------------------------------------------------------------------------------

    @classmethod
    def read(cls, settings: Any) -> Any:
        """Read the data and split them; the result has a ``fingerprint``.

        Raises:
            ValueError: for data that can't be used.
        """
        raise NotImplementedError

    @classmethod
    def build(cls, settings: Any, data: Any, verbose: bool) -> Any:
        """The estimator, not fitted."""
        raise NotImplementedError

    @classmethod
    def train(cls, model: Any, data: Any, settings: Any, **how: Any) -> None:
        """Fit the estimator; ``how`` has run_dir, resume and checkpoint_seconds."""
        model.fit(data.training, **how)

    @classmethod
    def measure(cls, model: Any, data: Any, settings: Any, tell: Tell) -> dict[str, Any]:
        """The figures of the fitted model, ready for JSON."""
        raise NotImplementedError

    @classmethod
    def judge(cls, model: Any, data: Any, figures: dict[str, Any], settings: Any) -> list[Check]:
        """Checks of the data and of the held-out figures, beside those that the estimator makes itself."""
        return []

    @classmethod
    def keep(cls, folder: Path, model: Any, data: Any, figures: dict[str, Any], settings: Any) -> None:
        """Write the model, and what the report needs of the data."""
        model.save(folder / "model")

    @classmethod
    def load_model(cls, folder: Path, settings: Any) -> Any:
        """Read the model that :meth:`keep` wrote."""
        raise NotImplementedError

    # -- what is shown of it -------------------------------------------------------------------------

    def summary(self) -> dict[str, str]:
        """What ``thalweg info`` shows above the figures."""
        return {}

    def tables(self) -> list[TextTable]:
        """The tables of figures to print."""
        return []

    def _repr_html_(self) -> str:
        """What a notebook shows: what the run is, and its tables of figures."""
        title = f"A {self.settings.title} run in {self.folder}"
        parts = [html_table(title, [], list(self.summary().items()))]
        parts += [html_table(table.title, table.head, table.rows) for table in self.tables()]
        return "".join(parts)

    def remarks(self) -> list[str]:
        """What a user should know about how the data were read and how the training went."""
        return list(self.figures.get("remarks", []))

    @property
    def verdict(self) -> Verdict:
        """Whether the model can be trusted."""
        return Verdict.from_list(self.figures.get("verdict", []))

    @property
    def verbs(self) -> Mapping[str, Verb]:
        """What this run can do; a run may lack what most of its task can."""
        return self.settings.verbs

    @property
    def histories(self) -> dict[str, History]:
        """The history of each part of the training, by name."""
        history = self.model.history_
        return history.parts or {"training": history}

    def makes_images(self, verb: str) -> bool:
        """Whether a verb returns images, which must be written to a file."""
        return verb == "sample" and self.figures.get("shape") is not None

    # -- its data ------------------------------------------------------------------------------------

    @cached_property
    def data(self) -> Any:
        """The data that the run was made with, read again.

        Raises:
            ValueError: if the data are missing, or have changed.
        """
        data = self.read(self.settings)
        check_unchanged(self.folder, self.settings.data, data.fingerprint)
        return data

    @cached_property
    def training_rows(self) -> pd.DataFrame:
        """The training rows of a table; a sample of them if they are many."""
        check_files(self.folder, self.figures, "training_rows.parquet")
        return read_table(self.folder / "training_rows.parquet")

    @cached_property
    def test_rows(self) -> pd.DataFrame | None:
        """The held-out rows of a table; None if there are none."""
        check_files(self.folder, self.figures, "test_rows.parquet")
        path = self.folder / "test_rows.parquet"
        return read_table(path) if path.exists() else None

    @staticmethod
    def keep_model(folder: Path, model: Any, origin: dict[str, Any], settings: Settings) -> None:
        """Write the model with a note of its origin, so that it can be used apart from the run."""
        how = {"task": settings.task, "seed": settings.seed, "test_fraction": settings.test_fraction}
        model.save(folder / "model", extra={**origin, **how})

    @staticmethod
    def keep_rows(folder: Path, training: pd.DataFrame, test: pd.DataFrame, seed: int) -> None:
        """Write the rows that the report shows."""
        shown = np.sort(np.random.RandomState(seed).permutation(len(training))[:_MAX_SAVED_ROWS])
        write_table(training.iloc[shown], folder / "training_rows.parquet")
        if len(test):
            write_table(test, folder / "test_rows.parquet")


def run_class(settings: type[RunSettings]) -> type[Run]:
    """The run of a task, by its settings."""
    return found(settings.run)


def fit_run(
    folder: Path,
    settings: RunSettings,
    *,
    resume: bool = False,
    overwrite: bool = False,
    verbose: bool = True,
    tell: Tell = lambda line: None,
) -> Any:
    """Fit a model, measure it on held-out data, and save everything.

    Args:
        folder: the folder of the run.
        settings: the settings of a task.
        resume: continue the run in the folder, which must have the same settings.
        overwrite: replace a run in the folder.
        verbose: show the progress of training.
        tell: called with a line of text at every stage.

    Returns:
        the finished :class:`Run`; None in all processes but the first, where several train together.

    Raises:
        ValueError: for data or settings that can't be used, or a folder that holds another run.
        DivergenceError: if training can't be kept from diverging.
    """
    with threadpool_limits(settings.threads), warnings.catch_warnings():
        # A failed model is reported at the end, with all that was measured.
        warnings.simplefilter("ignore", FailedModelWarning)
        return _fit_run(folder, settings, resume, overwrite, verbose, tell)


def _fit_run(folder: Path, settings: RunSettings, resume: bool, overwrite: bool, verbose: bool, tell: Tell) -> Any:
    cls, first = run_class(type(settings)), process_rank() == 0
    if (first or resume) and check_run(folder, settings, resume=resume, overwrite=overwrite):
        tell("This run is finished already.")
        return load_run(folder) if first else None
    data = cls.read(settings)
    model = cls.build(settings, data, verbose and first)
    if not first:
        _train(cls, model, data, folder, settings, resume)
        return None
    with writing_alone(folder):
        # Another process may have made a run in the folder meanwhile.
        if check_run(folder, settings, resume=resume, overwrite=overwrite):
            return load_run(folder)
        begin_run(folder, settings, data.fingerprint, resume=resume)
        try:
            _train(cls, model, data, folder, settings, resume)
        except ValueError:
            # What can't be used leaves no unfinished run behind.
            if not resume:
                remove_run(folder)
            raise
        tell("Measuring the model.")
        figures = cls.measure(model, data, settings, tell)
        figures["seconds"] = {"training": model.history_.seconds, **figures.get("seconds", {})}
        figures["made_with"] = versions()
        verdict = getattr(model, "verdict_", Verdict())
        model.verdict_ = verdict.extended(cls.judge(model, data, figures, settings))
        figures["verdict"] = model.verdict_.to_list()
        cls.keep(folder, model, data, figures, settings)
        finish_run(folder, figures)
    return load_run(folder)


def _train(cls: type[Run], model: Any, data: Any, folder: Path, settings: RunSettings, resume: bool) -> None:
    how = {"run_dir": folder / "training", "resume": resume, "checkpoint_seconds": settings.checkpoint_seconds}
    cls.train(model, data, settings, **how)
    if dist.is_available() and dist.is_initialized():
        # The other processes end here, while the first one measures: none may wait for them any more.
        dist.destroy_process_group()


def load_run(folder: Path, task: str | None = None) -> Any:
    """Read a finished run.

    Args:
        task: the task that it must be of; None for any.

    Raises:
        ValueError: if the folder holds no run, one of another task, an unfinished or a damaged one.

    Warns:
        FailedModelWarning: if the model failed a check.
    """
    settings = read_run_settings(folder, task)
    cls = run_class(type(settings))
    figures = read_figures(folder, settings.task, cls.figures_class)
    check_files(folder, figures, "model/config.json")
    return cls(folder, settings, figures, cls.load_model(folder / "model", settings))


__all__ = ["MODEL_NAME", "Run", "TextTable", "fit_run", "load_run", "run_class", "settings_of", "task_of"]
