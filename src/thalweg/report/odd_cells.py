"""Which cells make a row unlikely."""

from __future__ import annotations

import numpy as np
import pandas as pd

from thalweg.estimators.density import EnergyDensity

# How many times as likely a row must be with other values in a cell for the cell to be called odd.
ODD = 20
_MOST_CELLS = 3


def odd_cells(model: EnergyDensity, rows: np.ndarray, data: np.ndarray) -> list[list[int]]:
    """The columns of each row's odd cells, the oddest first, up to three.

    When a cell is found, it gets the likeliest value of other rows before the next one is looked for: beside a
    wrong cell the right ones look odd too.

    Args:
        rows: ``[rows, columns]``.
        data: rows to take the values from.
    """
    rows = rows.copy()
    found: list[list[int]] = [[] for _ in rows]
    left = np.arange(len(rows))
    for _ in range(_MOST_CELLS):
        gains, best = gains_of_cells(model, rows[left], data)
        going_on = []
        for i, gain, values in zip(left, gains, best, strict=True):
            gain[found[i]] = -np.inf
            k = int(gain.argmax())
            if gain[k] >= np.log(ODD):
                found[i].append(k)
                rows[i, k] = values[k]
                going_on.append(i)
        left = np.array(going_on, int)
        if not len(left):
            break
    return found


def gains_of_cells(
    model: EnergyDensity, rows: np.ndarray, data: np.ndarray, work: int = 30_000, most: int = 60
) -> tuple[np.ndarray, np.ndarray]:
    """By how much log p of a row would rise if a cell had a value of other rows, in nats; and the likeliest value.

    It is the log of the mean of p(row with the value) / p(row) over values of the column, drawn from the data:
    high where the cell contradicts the rest of its row. log Z cancels, so it suits every model.

    Args:
        rows: ``[rows, columns]``.
        data: rows to take the values from.
        work: how many densities may be computed.
        most: the largest number of values for each cell.

    Returns:
        both ``[rows, columns]``.
    """
    n, d = rows.shape
    n_values = int(np.clip(work / (n * d), 8, min(most, len(data))))
    values = data[np.random.RandomState(0).permutation(len(data))[:n_values]]
    changed = np.broadcast_to(rows[:, None, None], (n, d, len(values), d)).copy()
    for k in range(d):
        changed[:, k, :, k] = values[:, k]
    names = getattr(model, "feature_names_in_", None)

    def log_prob(table: np.ndarray) -> np.ndarray:
        return model.score_samples(table if names is None else pd.DataFrame(table, columns=names))

    with np.errstate(invalid="ignore", divide="ignore"):
        replaced = log_prob(changed.reshape(-1, d)).reshape(n, d, -1)
        gains = np.logaddexp.reduce(replaced, axis=2) - np.log(len(values)) - log_prob(rows)[:, None]
    likeliest = np.nan_to_num(replaced, nan=-np.inf).argmax(2)
    return np.nan_to_num(gains, nan=0.0), values[likeliest, np.arange(d)]
