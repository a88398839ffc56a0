"""Eight Gaussians by every method: what diverges is counted, reported and left out."""

import math

import numpy as np
import pytest

from thalweg.objectives.base import Objective
from thalweg.objectives.score_matching import ScoreMatching
from thalweg.recipes import density_2d
from thalweg.recipes.base import Settings


class NotFinite(Objective):
    def per_row(self, energy, batch, generator):
        return math.nan * energy(batch.y)


class OnceNotFinite(ScoreMatching):
    calls = 0

    def per_row(self, energy, batch, generator):
        self.calls += 1
        return super().per_row(energy, batch, generator) * (math.nan if self.calls == 5 else 1.0)


@pytest.mark.parametrize(
    ("objective", "n_divergences", "n_kept"), [(NotFinite, 1, 0), (OnceNotFinite, 1, 1), (ScoreMatching, 0, 1)]
)
def test_divergences_are_counted_and_told(objective, n_divergences, n_kept, monkeypatch):
    entry = density_2d.Entry(lambda data: objective(), 20, None)
    monkeypatch.setattr(density_2d, "METHODS", {"it": entry})
    result = density_2d.RECIPE.run(Settings(seeds=(0,), quick=True))
    figures = {f.name: f for f in result.figures}
    assert figures["divergences, all methods"].values == [n_divergences]
    assert np.isfinite(figures["it: KL (nats)"].values).sum() == n_kept
    assert sum("it, seed 0: " in note for note in result.notes) == n_divergences
