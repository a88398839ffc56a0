"""A task on a folder: read, begin, fit, measure, save, resume. ``TASKS`` names all tasks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thalweg.runs.settings import RunSettings

# Where the settings of each task are; these say where its run and its report are.
TASKS = {
    "regression": "thalweg.runs.settings.regression:RegressionSettings",
    "density": "thalweg.runs.settings.density:DensitySettings",
    "detector": "thalweg.runs.settings.detector:DetectorSettings",
    "classifier": "thalweg.runs.settings.classifier:ClassifierSettings",
    "sequence": "thalweg.runs.settings.sequence:SequenceSettings",
    "forecast": "thalweg.runs.settings.forecast:ForecastSettings",
    "ranker": "thalweg.runs.settings.ranker:RankerSettings",
    "images": "thalweg.runs.settings.images:ImageSettings",
    "generator": "thalweg.runs.settings.generator:GeneratorSettings",
    "boltzmann": "thalweg.runs.settings.boltzmann:BoltzmannSettings",
}


def settings_of(task: str) -> type[RunSettings]:
    """The settings of a task, by its name.

    Raises:
        ValueError: if there is no such task.
    """
    if task not in TASKS:
        raise ValueError(f"there is no task {task!r}; there are: {', '.join(TASKS)}")
    return found(TASKS[task])


def found(place: str) -> Any:
    """What a place "module:name", or "module", names."""
    module, _, name = place.partition(":")
    loaded = importlib.import_module(module)
    return getattr(loaded, name) if name else loaded
