"""log Z as an estimator reports it: exact, or bracketed by annealing, with its error and a warning."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from thalweg.sampling.annealing import Bracket


class Normaliser(NamedTuple):
    """log Z.

    Attributes:
        estimate: in nats.
        error: how far it may be off; 0 where it is exact.
        warning: why it may be further off than that, or None.
    """

    estimate: float
    error: float = 0.0
    warning: str | None = None

    @classmethod
    def of(cls, found: Bracket) -> Normaliser:
        """From a bracket, whose warning is raised as a ``UserWarning``."""
        if found.warning is not None:
            warnings.warn(f"log Z may be off by more than its error: {found.warning}", UserWarning, stacklevel=2)
        return cls(found.estimate, found.error, found.warning)

    @classmethod
    def from_saved(cls, saved: Sequence[Any] | None) -> Normaliser | None:
        """From a file's ``[estimate, error, warning]``; older files hold no warning."""
        return None if saved is None else cls(*saved)


class Normalised:
    """An estimator that knows log Z, or finds it when it is first asked for.

    Attributes:
        log_normaliser_: log Z, in nats.
        log_normaliser_error_: how far it may be off.
        log_normaliser_warning_: why it may be further off than that, or None.
    """

    _log_z: Normaliser | None

    @property
    def log_normaliser_(self) -> float:
        """log Z, in nats: exact where it can be summed or integrated, else estimated."""
        return self._normaliser().estimate

    @property
    def log_normaliser_error_(self) -> float:
        """0 where log Z is exact, else how far it may be off.

        Of importance sampling that is two standard errors. Of annealing it is half the width of the bracket, and
        two standard errors beyond it or the spread between groups of chains (see
        :class:`~thalweg.sampling.annealing.Bracket`).
        """
        return self._normaliser().error

    @property
    def log_normaliser_warning_(self) -> str | None:
        """Why log Z may be further off than its error, or None; a ``UserWarning`` when log Z is found."""
        return self._normaliser().warning

    def _normaliser(self) -> Normaliser:
        raise NotImplementedError
