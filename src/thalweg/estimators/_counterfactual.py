"""Inputs nearby that a classifier takes for another class, found by descending its energy."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from thalweg.energies.labelled import LabelledEnergy

_MOST_VALUES = 9
# Of a category, in standard deviations of a number.
_STEP_OF_A_CATEGORY = 1.0


def changed_rows(
    table: pd.DataFrame,
    labels: np.ndarray,
    energies: Callable[[pd.DataFrame], np.ndarray],
    known: pd.DataFrame,
    max_changes: int,
) -> pd.DataFrame:
    """Rows with a few cells changed, one after the other, so that the lowest energy is that of a label.

    Each change is the one that lowers E(x, label) most for the way that it goes, in standard deviations; a change
    that turned out not to be needed is taken back.

    Args:
        table: rows.
        labels: places of the labels asked for ``[n]``.
        energies: E of every label ``[rows, C]``.
        known: training rows, whose values cells may take.
        max_changes: most cells changed in a row.
    """
    out = table.reset_index(drop=True).copy()
    out.columns = out.columns.map(str)
    values = {name: _values(known[name]) for name in known.columns}
    for i in range(len(out)):
        row, label = out.iloc[[i]], labels[i]
        now, changed = energies(row)[0], dict[str, Any]()
        while now.argmin() != label and len(changed) < max_changes:
            moved, names, ways = _candidates(row, values, changed)
            if not names:
                break
            found = energies(moved)
            # Once a single change reaches the label, the shortest such way is taken.
            there = found.argmin(1) == label
            worth = np.where(there, 1 / ways, -np.inf) if there.any() else (now[label] - found[:, label]) / ways
            best = int(worth.argmax())
            if worth[best] <= 0:
                break
            changed[names[best]] = row[names[best]].iloc[0]
            row, now = moved.iloc[[best]], found[best]
        if now.argmin() == label:
            for name, before in list(changed.items())[:-1]:
                back = _changed(row, name, before)
                row = back if energies(back)[0].argmin() == label else row
        for name in changed:
            out.loc[i, name] = row[name].iloc[0]
    return out.set_axis(table.columns, axis=1)


def _values(column: pd.Series) -> tuple[list, float]:
    """Values that a cell may take, and one standard deviation (0 for categories)."""
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        numbers = column.dropna().to_numpy(np.float64)
        levels = np.quantile(numbers, np.linspace(0.02, 0.98, _MOST_VALUES), method="nearest")
        return np.unique(levels).tolist(), max(float(numbers.std()), 1e-12)
    return column.dropna().value_counts().index[: 2 * _MOST_VALUES].tolist(), 0.0


def _candidates(
    row: pd.DataFrame, values: dict[str, tuple[list, float]], changed: Collection[str]
) -> tuple[pd.DataFrame, list[str], np.ndarray]:
    """The row with one cell changed: all such rows, the column changed in each, and how far it went."""
    rows, names, ways = [], [], []
    for name, (options, spread) in values.items():
        if name in changed or len(options) < 2:
            continue
        now = row[name].iloc[0]
        for option in options:
            if option == now:
                continue
            way = _STEP_OF_A_CATEGORY if not spread or pd.isna(now) else abs(option - float(now)) / spread
            rows.append(_changed(row, name, option))
            names.append(name)
            ways.append(max(way, 0.05))
    return (pd.concat(rows, ignore_index=True) if rows else row), names, np.array(ways)


def _changed(row: pd.DataFrame, name: str, value: Any) -> pd.DataFrame:
    out = row.copy()
    out[name] = [value]
    return out


def changed_images(
    energy: LabelledEnergy, x: Tensor, labels: Tensor, n_steps: int, step: float = 0.01, typical: float = 0.5
) -> Tensor:
    """Images ``[n, C, H, W]`` moved down E(x, label) until that is the lowest energy, within [0, 1].

    A step goes along the gradients of the energy's two parts, -log p(label|x) and E(x), each brought to length 1.
    Its length is ``step`` times the root of the number of pixels.

    Args:
        labels: ``[n]``.
        typical: weight of the gradient of E(x).
    """
    x, labels = x.clone(), labels.to(x.device)
    length = step * float(np.sqrt(x[0].numel()))
    for _ in range(n_steps):
        moved = x.detach().requires_grad_(True)
        values = energy.energies(moved)
        open_ones = values.argmin(1) != labels
        if not open_ones.any():
            break
        log_total = torch.logsumexp(-values, 1)
        own = values.gather(1, labels[:, None])[:, 0]
        (towards,) = torch.autograd.grad((own + log_total).sum(), moved, retain_graph=True)
        (down,) = torch.autograd.grad(-log_total.sum(), moved)
        direction = _unit(_unit(towards) + typical * _unit(down))
        x = torch.where(open_ones[:, None, None, None], (x - length * direction).clamp(0, 1), x).detach()
    return x


def _unit(gradient: Tensor) -> Tensor:
    """Each image's gradient brought to length 1."""
    length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
    return gradient / length.reshape(-1, *([1] * (gradient.dim() - 1)))
