"""Verdicts: a short list of checks of a fitted model, each passed, doubtful or failed, with what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

STATES = ("passed", "doubtful", "failed")

_FEW_OF_A_CLASS = 5
_FEWEST_ROWS, _FEW_ROWS, _ROWS_PER_COLUMN = 20, 50, 5
# With fewer rows a standard error is too uncertain itself to fail a model by it.
FEWEST_COMPARED = 20


class FailedModelWarning(UserWarning):
    """A model that failed one of its checks was fitted or loaded."""


@dataclass(frozen=True)
class Check:
    """One question that was asked of a model.

    Attributes:
        name: what was asked about, in a word or two.
        state: "passed", "doubtful" or "failed".
        text: what was found, and what to do if it is not well.
    """

    name: str
    state: str
    text: str

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"the state of a check must be one of {', '.join(STATES)}, got {self.state!r}")


class Verdict:
    """The checks of a model, the worst first.

    Args:
        checks: in any order; those of one state keep theirs.
    """

    def __init__(self, checks: Iterable[Check] = ()):
        self.checks = sorted(checks, key=lambda check: -STATES.index(check.state))

    @property
    def state(self) -> str:
        """The worst state of all checks; "passed" if there is none."""
        return self.checks[0].state if self.checks else "passed"

    def of(self, state: str) -> list[Check]:
        """The checks in one state."""
        return [check for check in self.checks if check.state == state]

    def extended(self, others: Iterable[Check]) -> Verdict:
        """With further checks: of checks with one name the later one, which knows more."""
        return Verdict({check.name: check for check in (*self.checks, *others)}.values())

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)

    def __len__(self) -> int:
        return len(self.checks)

    def __str__(self) -> str:
        return "\n".join(f"{c.state:8}  {c.name}: {c.text}" for c in self.checks)

    __repr__ = __str__

    def failure(self) -> str:
        """The failed checks in one sentence; "" if none failed."""
        failed = self.of("failed")
        if not failed:
            return ""
        return "the model failed its checks: " + " ".join(f"{c.name}: {c.text}" for c in failed)

    def to_list(self) -> list[dict[str, str]]:
        """Everything, fit for JSON; :meth:`from_list` reads it back."""
        return [asdict(check) for check in self.checks]

    @classmethod
    def from_list(cls, kept: Iterable[Mapping[str, str]]) -> Verdict:
        """The verdict that :meth:`to_list` kept."""
        return cls(Check(**entry) for entry in kept)


# -- checks of the data ------------------------------------------------------------------------------


def check_rows(n_training: int, n_columns: int | None = None, what: str = "row") -> Check:
    """Whether there are enough rows to learn from.

    Args:
        n_columns: how many columns of a table they have; None where entries are many and alike, as pixels are.
        what: what one of them is called.
    """
    per_column = n_training / max(n_columns or 1, 1)
    of_columns = "" if n_columns is None else f" of {n_columns} column{'s' * (n_columns != 1)}"
    found = f"The model learned from {n_training} {what}s{of_columns}."
    if n_training < _FEWEST_ROWS:
        return Check("rows", "failed", f"{found} That is too few for any model: collect more.")
    if n_training < _FEW_ROWS or per_column < _ROWS_PER_COLUMN:
        advice = f"Collect more {what}s" + (
            "" if n_columns in (None, 1) else ", or leave out columns that matter little"
        )
        text = f"{found} That is few: other {what}s may give another model. {advice}."
        return Check("rows", "doubtful", text)
    return Check("rows", "passed", found)


def check_rows_used(n_used: int, n_rows: int, what_to_do: str) -> Check:
    """Whether most rows of the data were used.

    Args:
        what_to_do: a sentence for the case that many were not.
    """
    lost = n_rows - n_used
    if not lost:
        return Check("rows used", "passed", "All rows were used.")
    found = f"{lost} of {n_rows} rows ({100 * lost / n_rows:.0f} %) were left out because they have gaps."
    if lost <= 0.05 * n_rows:
        return Check("rows used", "passed", found)
    found += " The model describes the complete rows, which may be of another kind than the others."
    return Check("rows used", "failed" if lost > 0.5 * n_rows else "doubtful", f"{found} {what_to_do}")


def check_held_out(n_test: int, n_known: int = 0, what: str = "row") -> Check:
    """Whether enough rows were held out for figures that mean something.

    Args:
        n_known: how many of them equal a training row, where hardly any should.
        what: what one of them is called.
    """
    name = f"held-out {what}s"
    if not n_test:
        text = f"No {what}s were held out: nothing says how good the model is on new ones. Give --test-fraction."
        return Check(name, "doubtful", text)
    if n_test < FEWEST_COMPARED:
        text = f"All figures rest on {n_test} held-out {what}{'s' * (n_test != 1)}: they are very uncertain."
        return Check(name, "doubtful", f"{text} Hold out more (--test-fraction).")
    if 2 * n_known >= n_test:
        text = f"{n_known} of {n_test} held-out rows equal training rows: they do not show how new ones fare."
        return Check(name, "doubtful", f"{text} Leave out what occurs twice.")
    return Check(name, "passed", f"{n_test} {what}s were held out.")


def check_classes(names: Sequence[Any], counts: Sequence[int]) -> Check:
    """Whether every class has rows enough to be learned.

    Args:
        names: of the classes.
        counts: training rows of each.
    """
    few = [f"{name!r} ({n})" for name, n in zip(names, counts, strict=True) if n < _FEW_OF_A_CLASS]
    if few:
        more = f" and {len(few) - 5} more" if len(few) > 5 else ""
        text = f"Few training rows have the class {', '.join(few[:5])}{more}: what is said of it is a guess."
        return Check("classes", "doubtful", f"{text} Collect more of it, or put it together with another.")
    return Check("classes", "passed", f"Each of {len(counts)} classes has at least {min(counts)} training rows.")


def check_doubts(doubts: Sequence[str]) -> Check:
    """Whether the columns look as columns should: what was found otherwise, in sentences."""
    if not doubts:
        return Check("columns", "passed", "No column names the rows or has values far from all others.")
    return Check("columns", "doubtful", " ".join(doubts))


# -- checks of the fit -------------------------------------------------------------------------------


def check_baselines(
    gains: Mapping[str, tuple[float | None, float | None]], n_rows: int, what: str = "rows"
) -> Check:
    """Whether held-out rows are likelier under the model than under every baseline, beyond the error.

    Args:
        gains: by name of a baseline the mean gain in nats a row, and its standard error; None if not finite.
        n_rows: number of rows behind them; of few only what is four standard errors off counts.
        what: what the rows are called.
    """
    name = "baselines"
    lost = [baseline for baseline, (gain, _) in gains.items() if gain is None or not np.isfinite(gain)]
    if lost:
        text = f"The held-out likelihood is not finite beside {lost[0]!r}: the model can't be used as it is."
        return Check(name, "failed", text)
    if not gains:
        return Check(name, "doubtful", "The model was compared with no baseline.")
    known = {baseline: (float(gain or 0.0), float(error or 0.0)) for baseline, (gain, error) in gains.items()}
    rival = min(known, key=lambda baseline: known[baseline][0])
    gain, error = known[rival]
    shown = f"{abs(gain):.3f}" + (f" ± {error:.3f}" if error else "") + " nats"
    if n_rows < FEWEST_COMPARED and not (n_rows >= 5 and error and gain < -(4 * error + 0.1)):
        order = "better" if gain > 0 else "worse"
        text = f"On {n_rows} held-out {what} it is {shown} {order} than {rival!r}; so few say little."
        return Check(name, "doubtful", text)
    if gain > 2 * error:
        text = f"Held-out {what} are {shown} likelier than under the best baseline, {rival!r}."
        return Check(name, "passed", text)
    if gain < -(2 * error + 0.05):
        text = f"It is worse than the baseline {rival!r}, by {shown} a row: use that, or train longer."
        return Check(name, "failed", text)
    order = "better" if gain > 0 else "worse"
    text = f"It is level with the baseline {rival!r} ({shown} {order}): the simpler model does as well here."
    return Check(name, "doubtful", text)


def check_training(histories: Mapping[str, Any], by_held_out: bool = True) -> Check:
    """Whether the training went without roll-backs and had ended improving.

    Args:
        histories: the :class:`~thalweg.training.history.History` of each part, by name.
        by_held_out: whether the training was to end by its held-out figure, rather than after a planned number
            of epochs.
    """
    rollbacks = sum(history.rollbacks for history in histories.values())
    if rollbacks:
        times = "once" if rollbacks == 1 else f"{rollbacks} times"
        text = f"It diverged and was rolled back {times}: lower the learning rate."
        return Check("training", "doubtful", text)
    unfinished = [name for name, h in histories.items() if by_held_out and _still_improves(h.epochs)]
    if unfinished:
        where = f" in {len(unfinished)} of {len(histories)} parts" if len(histories) > 1 else ""
        text = f"The held-out figure was still improving when the epochs ended{where}: train for more epochs."
        return Check("training", "doubtful", text)
    end = "until the held-out figure improved no more" if by_held_out else "through all epochs"
    return Check("training", "passed", f"It ran {end}, without roll-backs.")


def _still_improves(epochs: Sequence[Mapping[str, float]]) -> bool:
    """Whether the last tenth of the epochs has brought more than a hundredth of a nat."""
    figures = [e["validation"] for e in epochs if "validation" in e]
    if len(figures) < 2:
        return False
    last = max(1, len(figures) // 10)
    return min(figures[:-last]) - min(figures[-last:]) > 0.01


def check_normaliser(error: float, warning: str | None) -> Check:
    """Whether log Z is known well enough for log densities to mean something."""
    name = "log Z"
    if warning is not None:
        return Check(name, "doubtful", f"log Z may be off by more than its error: {warning}")
    if not error:
        return Check(name, "passed", "The density is normalised exactly.")
    found = f"log Z is known to ± {error:.2g} nats, an error that all log densities share."
    if error > 1:
        return Check(name, "failed", f"{found} Log densities mean nothing: take an exact objective.")
    return Check(name, "doubtful" if error > 0.1 else "passed", found)


def check_coverage(covered: float, nominal: float, n_rows: int) -> Check:
    """Whether intervals cover as many held-out truths as they say."""
    error = float(np.sqrt(nominal * (1 - nominal) / max(n_rows, 1)))
    off = abs(covered - nominal)
    found = f"The {100 * nominal:.0f} % intervals cover {100 * covered:.1f} % of {n_rows} held-out truths"
    if off > 4 * error and off > 0.15:
        return Check("coverage", "failed", f"{found}: the stated uncertainty is wrong. Do not use it.")
    if off > 3 * error and off > 0.02:
        word = "too narrow" if covered < nominal else "too wide"
        return Check("coverage", "doubtful", f"{found}: they are {word}.")
    return Check("coverage", "passed", f"{found}.")


def check_swaps(share: float | None) -> Check:
    """Whether tempered chains swap places.

    Args:
        share: of the proposed swaps that are accepted, between the two levels that swap least; None where the
            chains have one level.
    """
    if share is None:
        return Check("chains", "passed", "The chains have one temperature.")
    found = f"Of the swaps between neighbouring temperatures at least {100 * share:.1f} % are accepted"
    if share < 0.01:
        text = f"{found}: the chains at different temperatures do not meet. Take more temperatures."
        return Check("chains", "doubtful", text)
    return Check("chains", "passed", f"{found}.")


def check_lost_chains(lost: float) -> Check:
    """Whether the chains of a training got down to where the data are.

    Args:
        lost: share of the chains that ended at higher energies than nearly all of the data.
    """
    found = f"{100 * lost:.0f} % of the chains ended at higher energies than nearly all of the data"
    if lost > 0.5:
        advice = "give them longer steps (step_size) or more of them (n_steps)"
        text = f"{found}: they do not get down from where they start; {advice}."
        return Check("chains", "failed" if lost > 0.9 else "doubtful", text)
    return Check("chains", "passed", f"{found}.")


def check_ranking(outsiders: Mapping[str, float], training: float) -> list[Check]:
    """Whether an energy ranks held-out images above images of other kinds, and as high as training images.

    Args:
        outsiders: by kind the area under the ROC curve of held-out images against images of that kind.
        training: that of training images against held-out ones; .5 where they are ranked alike.
    """
    kind = min(outsiders, key=lambda k: outsiders[k])
    least = outsiders[kind]
    found = f"An image held out has a lower energy than one of the kind {kind!r} in {100 * least:.0f} % of pairs"
    if least < 0.5:
        ranking = Check("ranking", "failed", f"{found}: it does not tell them apart. Train for more steps.")
    elif least < 0.75:
        ranking = Check("ranking", "doubtful", f"{found}: do not use it to find such images.")
    else:
        ranking = Check("ranking", "passed", f"{found}, the kind that it knows least.")
    found = f"A training image has a lower energy than one held out in {100 * training:.0f} % of pairs"
    if training > 0.75:
        state = "failed" if training > 0.95 else "doubtful"
        return [
            ranking,
            Check("memory", state, f"{found}: the model has learned its images by heart. Take more images."),
        ]
    return [ranking, Check("memory", "passed", f"{found}: it has not learned them by heart.")]
