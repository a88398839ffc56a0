"""Figures in words, for every page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thalweg.runs.base import MODEL_NAME


def gain_in_words(subject: str, baseline: str, entry: Mapping[str, Any]) -> str:
    """How much more likely held-out data are under the model than under a baseline.

    Args:
        subject: what is more likely, with its verb.
        baseline: the name of the baseline.
        entry: the scores of the baseline, with ``nll_gain`` in nats and perhaps ``nll_gain_error``.
    """
    gain, error = entry["nll_gain"], entry.get("nll_gain_error")
    word = "more" if gain >= 0 else "less"
    sure = "" if error is None else f" ± {error:.3f}"
    return (
        f"On average over the rows, {subject} {abs(gain):.3f}{sure} nats {word} likely under {MODEL_NAME} than "
        f"under the baseline “{baseline}”."
    )


def duration(seconds: float) -> str:
    """In words: 4.2 s, 3 min 20 s, 1 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
