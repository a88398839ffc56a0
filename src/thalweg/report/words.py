"""Figures in words, for every page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from thalweg.runs.base import MODEL_NAME


def gain_in_words(subject: str, baseline: str, entry: Mapping[str, Any]) -> str:
    """How much more likely held-out data are under the model than under a baseline.

    Args:
        subject: what is more likely, with its verb.
        baseline: the name of the baseline.
        entry: the scores of the baseline, with ``nll_gain`` in nats and perhaps ``nll_gain_error``.
    """
    gain, error = entry["nll_gain"], entry.get("nll_gain_error")
    if gain is None:
        return f"The gain over the baseline “{baseline}” is not finite."
    word = "more" if gain >= 0 else "less"
    sure = "" if error is None else f" ± {error:.3f}"
    return (
        f"On average over the rows, {subject} {abs(gain):.3f}{sure} nats {word} likely under {MODEL_NAME} than "
        f"under the baseline “{baseline}”."
    )


def figure(value: float | None, name: str, digits: str = ".4g") -> str:
    """A figure as text; of a coverage per cent, of an NLL four places.

    Args:
        value: None where it is not finite.
        name: "nll", "coverage", ...
        digits: how others are written.
    """
    if value is None:
        return "not finite"
    return f"{100 * value:.1f} %" if name == "coverage" else format(value, ".4f" if name == "nll" else digits)


def place_of_least(values: Sequence[float | None]) -> int:
    """Where the least of some figures stands; one that is not finite, None, is never the least of several."""
    return int(np.argmin([np.inf if v is None else v for v in values]))


def duration(seconds: float) -> str:
    """In words: 4.2 s, 3 min 20 s, 1 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
