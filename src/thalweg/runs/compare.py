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
from thalweg.evaluation.verdict import Check, Verdict, check_baselines, check_rows
from thalweg.objectives.catalogue import METHODS
from thalweg.runs.density import baseline_scores, held_out_log_prob
from thalweg.runs.settings.compare import CompareSettings
from thalweg.runs.tables import Numbers, atoms_in_words, checks_of_table, model_settings, read_numbers, scored
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
        log_prob: log p of the held-out rows under it.
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
    log_prob: np.ndarray | None = None

    @property
    def mean(self) -> float:
        return float(np.mean(self.nll)) if self.nll else float("inf")

    @property
    def spread(self) -> float:
        return float(np.std(self.nll, ddof=1)) if len(self.nll) > 1 else float("nan")

    def summary(self) -> dict[str, Any]:
        """Everything but the model and its rows, fit for JSON."""
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
    """The contenders, best first, and of each baseline log p of the held-out rows."""

    settings: CompareSettings
    data: Numbers
    contenders: list[Contender]
    baseline_log_prob: dict[str, np.ndarray]
    seconds: float

    @property
    def baselines(self) -> dict[str, float]:
        """The baselines' NLL by name."""
        return {name: float(-log_prob.mean()) for name, log_prob in self.baseline_log_prob.items()}

    @property
    def best(self) -> tuple[str, float]:
        """The name and the NLL of the best of all, baselines included."""
        figures = {c.name: c.mean for c in self.contenders} | self.baselines
        name = min(figures, key=lambda k: figures[k])
        return name, figures[name]

    @property
    def verdict(self) -> Verdict:
        """Whether the best method is better than the baselines, and whether the comparison was fair."""
        data, first = self.data, self.contenders[0]
        n_test = len(data.test)
        found = checks_of_table(data.n_rows, len(data.training) + n_test, n_test, data.doubts)
        found.append(check_rows(*data.training.shape))
        if first.log_prob is None:
            found.append(Check("baselines", "failed", "No fit ended: every method diverged."))
        else:
            gains = {}
            for name, log_prob in self.baseline_log_prob.items():
                gain = scored(first.log_prob - log_prob)
                gains[name] = (-gain["nll"], gain["nll_error"])
            found.append(check_baselines(gains, n_test))
        if not self.settings.steps:
            found.append(_check_budgets({c.name: float(np.mean(c.cpu_seconds)) for c in self.contenders}))
        return Verdict(found)

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
    baselines = {k: v[0] for k, v in baseline_scores(data, resolution, 0).items()}
    contenders.sort(key=lambda c: c.mean)
    return Comparison(settings, data, contenders, baselines, time.monotonic() - begun)


def _contender(name: str, settings: CompareSettings, data: Numbers) -> Contender:
    steps = settings.steps or _steps_in(settings.seconds, name, settings, data)
    if name == "auto":
        contender = Contender(
            name, "exact likelihood of conditionals of columns", "an order of the columns", steps
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
            contender.model, contender.log_prob = model, log_prob
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
    """The number of updates with which a fit takes so many CPU seconds, estimated from two short ones."""
    took = []
    for steps in (1, _TRIAL_STEPS):
        start = time.process_time()
        try:
            _fit(name, steps, settings.seed, settings, data)
        except DivergenceError:
            return _TRIAL_STEPS
        took.append(time.process_time() - start)
    # What comes before and after the updates, such as the estimate of log Z, takes as long whatever their number.
    fixed = min(took[0], seconds / 2)
    each = max(took[1] - took[0], 1e-4) / (_TRIAL_STEPS - 1)
    return int(np.clip((seconds - fixed) / each, 1, _MOST_STEPS))


def _check_budgets(cpu_seconds: dict[str, float]) -> Check:
    """Whether all methods had about the same time."""
    least, most = (pick(cpu_seconds, key=lambda name: cpu_seconds[name]) for pick in (min, max))
    ratio = cpu_seconds[most] / max(cpu_seconds[least], 1e-9)
    found = f"{most!r} took {ratio:.1f} times as many CPU seconds as {least!r}"
    if ratio <= 2:
        return Check("budgets", "passed", f"{found}.")
    advice = "Compare them by figures and times together, or give more --seconds."
    return Check("budgets", "doubtful", f"{found}: they had unequal budgets. {advice}")
