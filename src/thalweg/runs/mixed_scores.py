"""A density of mixed columns with gaps on held-out rows, beside classes of independent columns."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd

from thalweg.data.rows import RowCoder
from thalweg.data.target import TargetScale
from thalweg.estimators.density import EnergyDensity
from thalweg.evaluation.latent_classes import LatentClasses
from thalweg.runs.tables import MODEL_NAME, Numbers, scored, without_infinities

# Places in their cells at which rounded numbers are scored.
_N_SPREADS = 8


def mixed_scores(model: EnergyDensity, data: Numbers, seed: int) -> tuple[dict[str, Any], dict[str, float]]:
    """Mean held-out NLL of rows with levels or gaps, ours beside classes of independent columns."""
    start, coder = time.monotonic(), model.coder_
    rng, columns = np.random.RandomState(seed), model.energy_.inner.columns
    spread = [_spread(data.test, coder, rng) for _ in range(_N_SPREADS)] if _has_cells(coder) else [data.test]
    ours = np.mean([model.score_samples(rows) for rows in spread], axis=0)
    scores = {MODEL_NAME: without_infinities({**scored(ours), "detail": "log Z exact"})}
    seconds = {"scoring": time.monotonic() - start}
    levels = [coder.n_levels(d) for d in range(len(columns))]
    training = _curved_codes(_spread(data.training, coder, np.random.RandomState(seed)), coder)[0]
    for name, n_classes in (("independent columns", 1), ("latent classes", None)):
        start = time.monotonic()
        baseline = LatentClasses(levels, [max(c.log_unseen, -30.0) for c in columns], n_classes).fit(
            training, seed
        )
        found = []
        for rows in spread:
            codes, log_slope = _curved_codes(rows, coder)
            shares = np.where(np.isnan(codes), 0.0, coder.log_shares(rows)).sum(1)
            found.append(baseline.log_prob(codes) + log_slope + shares)
        log_prob = np.mean(found, axis=0)
        gain = scored(ours - log_prob)
        entry = {**scored(log_prob), "detail": baseline.detail, "nll_gain": -gain["nll"]}
        if gain["nll_error"] is not None:
            entry["nll_gain_error"] = gain["nll_error"]
        scores[name], seconds[name] = without_infinities(entry), time.monotonic() - start
    return scores, seconds


def _has_cells(coder: RowCoder) -> bool:
    """Whether a column of numbers is rounded."""
    return any(c["levels"] is None and c["resolution"] for c in coder.columns)


def _spread(table: pd.DataFrame, coder: RowCoder, rng: np.random.RandomState) -> pd.DataFrame:
    """The table with rounded numbers at random places of their cells; atoms stay where they are."""
    out = table.copy()
    for d, column in enumerate(coder.columns):
        noise = column["resolution"] * (rng.uniform(size=len(table)) - 0.5)
        if column["levels"] is None and column["resolution"] and column["kind"] in ("number", "span"):
            out.isetitem(d, table.iloc[:, d].astype(np.float64).to_numpy() + noise)
    return out


def _curved_codes(table: pd.DataFrame, coder: RowCoder) -> tuple[np.ndarray, np.ndarray]:
    """Codes with numbers standardised and curved as the model has them, and what log p gains by that ``[n]``."""
    codes = coder.codes(table)
    log_slope = np.zeros(codes.shape)
    for d, column in enumerate(coder.columns):
        known = ~np.isnan(codes[:, d])
        if column["levels"] is None:
            target = TargetScale(column["location"], column["scale"], column["curved"])
            log_slope[:, d] = np.where(known, target.log_slope(np.nan_to_num(codes[:, d])), 0.0)
            codes[:, d] = target.forth(codes[:, d])
        elif column["resolution"]:
            log_slope[:, d] = np.where(known, -np.log(column["resolution"]), 0.0)
    return codes, log_slope.sum(1)
