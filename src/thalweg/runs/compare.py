"""Every way to train a density, on one table, under one budget of time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from thalweg.data.target import find_resolution
from thalweg.estimators.density import EnergyDensity
from thalweg.objectives.catalogue import METHODS
from thalweg.runs.density import baseline_scores, held_out_log_prob
from thalweg.runs.settings.compare import CompareSettings
from thalweg.runs.tables import Numbers, atoms_in_words, model_settings, read_numbers
from thalweg.training.loop import DivergenceError

_TRIAL_STEPS = 40
_MOST_STEPS = 100_000


@dataclass
class Contender:
    """What one objective reached.

    Attributes:
        name, title, needs: see :class:`~thalweg.objectives.catalogue.Method`.
        steps: number of updates of each fit (for "auto", of each column).
        nll: mean held-out NLL of each fit that ended, in nats.
        nll_error: standard error over the test rows, of the first fit.
        log_normaliser_errors: error of log Z of each fit that ended.
        log_normaliser_warning: why log Z of a fit may be further off than that, or None.
        cpu_seconds: CPU time of each fit.
        diverged: number of fits that diverged.
        model: the first fit that ended, None if there is none.
    """

    name: str
    title: str
    needs: str
    steps: int
    nll: list[float] = field(default_factory=list)
    nll_error: float = float("nan")
    log_normaliser_errors: list[float] = field(default_factory=list)
    log_normaliser_warning: str | None = None
    cpu_seconds: list[float] = field(default_factory=list)
    diverged: int = 0
    model: EnergyDensity | None = None

    @property
    def mean(self) -> float:
        return float(np.mean(self.nll)) if self.nll else float("inf")

    @property
    def spread(self) -> float:
        return float(np.std(self.nll, ddof=1)) if len(self.nll) > 1 else float("nan")

    def summary(self) -> dict[str, Any]:
        """Everything but the model, fit for JSON."""
        return {
            "objective": self.name,
            "title": self.title,
            "needs": self.needs,
            "steps": self.steps,
            "nll": self.nll,
            "nll_mean": self.mean if self.nll else None,
            "nll_spread": self.spread if len(self.nll) > 1 else None,
            "nll_error": self.nll_error if np.isfinite(self.nll_error) else None,
            "log_normaliser_errors": self.log_normaliser_errors,
            "log_normaliser_warning": self.log_normaliser_warning,
            "cpu_seconds": self.cpu_seconds,
            "diverged": self.diverged,
        }


@dataclass
class Comparison:
    """The contenders, best first, and the baselines' NLL by name."""

    settings: CompareSettings
    data: Numbers
    contenders: list[Contender]
    baselines: dict[str, float]
    seconds: float

    @property
    def remarks(self) -> list[str]:
        """What a user should know about the table and about the figures."""
        remarks = list(self.data.remarks)
        if told := atoms_in_words(self.data.training):
            remarks.append(
                f"Values of positive probability beside others: {told}. 'auto' scores them by a log mass, the "
                "others and the baselines by a density, which spikes can inflate: their NLLs do not compare."
            )
        for c in self.contenders:
            if warning := c.log_normaliser_warning:
                remarks.append(
                    f"log Z of {c.name!r}, and its NLL with it, may be off by more than its error: {warning}"
                )
        return remarks


def compare_densities(
    settings: CompareSettings,
    tell: Callable[[str], None] = lambda line: None,
    add: Callable[[Contender], None] = lambda contender: None,
) -> Comparison:
    """Fit every objective with every seed and score it on the rows held out.

    Args:
        tell: called with a line before each objective.
        add: called with each contender that is done.

    Raises:
        ValueError: for data or settings that can't be used.
    """
    with threadpool_limits(settings.threads):
        return _compared(settings, tell, add)


def _compared(
    settings: CompareSettings, tell: Callable[[str], None], add: Callable[[Contender], None]
) -> Comparison:
    begun = time.monotonic()
    data = read_numbers(settings)
    contenders = []
    for i, name in enumerate(settings.names):
        tell(f"{name} ({i + 1} of {len(settings.names)})")
        contenders.append(_contender(name, settings, data))
        add(contenders[-1])
    resolution = np.array([find_resolution(column) for column in data.training.to_numpy().T])
    baselines = {k: float(-v[0].mean()) for k, v in baseline_scores(data, resolution, 0).items()}
    contenders.sort(key=lambda c: c.mean)
    return Comparison(settings, data, contenders, baselines, time.monotonic() - begun)


def _contender(name: str, settings: CompareSettings, data: Numbers) -> Contender:
    steps = settings.steps or _steps_in(settings.seconds, name, settings, data)
    if name == "auto":
        contender = Contender(
            name, "exact likelihood of a chain of conditionals", "an order of the columns", steps
        )
    else:
        contender = Contender(name, METHODS[name].title, METHODS[name].needs, steps)
    for seed in range(settings.seed, settings.seed + settings.fits):
        start = time.process_time()
        try:
            model = _fit(name, steps, seed, settings, data)
            log_prob = held_out_log_prob(model, data.test.to_numpy(), model.resolution_, 0)
        except DivergenceError:
            model = None
        contender.cpu_seconds.append(time.process_time() - start)
        if model is None or not np.isfinite(log_prob).all():
            contender.diverged += 1
            continue
        contender.nll.append(float(-log_prob.mean()))
        contender.log_normaliser_errors.append(model.log_normaliser_error_)
        contender.log_normaliser_warning = contender.log_normaliser_warning or model.log_normaliser_warning_
        if contender.model is None:
            contender.model = model
            contender.nll_error = (
                float(log_prob.std(ddof=1) / np.sqrt(len(log_prob))) if len(log_prob) > 1 else 0.0
            )
    return contender


def _fit(name: str, steps: int, seed: int, settings: CompareSettings, data: Numbers) -> EnergyDensity:
    model = EnergyDensity(
        name,
        n_members=settings.members,
        max_epochs=steps,
        max_steps=steps,
        patience=None,
        **{**model_settings(settings), "random_state": seed},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(data.training.to_numpy())


def _steps_in(seconds: float, name: str, settings: CompareSettings, data: Numbers) -> int:
    """The number of updates that take so long, validation included, estimated from a short run."""
    try:
        trial = _fit(name, _TRIAL_STEPS, settings.seed, settings, data)
    except DivergenceError:
        return _TRIAL_STEPS
    took = trial.history_.seconds
    return int(np.clip(seconds / took * _TRIAL_STEPS, 1, _MOST_STEPS))
