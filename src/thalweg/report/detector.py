"""The report of a detector's run."""

from __future__ import annotations

import numpy as np
import pandas as pd

from thalweg.report import charts
from thalweg.report.page import Card, Tile, checks_of, footer_of, render_page
from thalweg.report.words import duration
from thalweg.runs.detector import ODD_CELL, DetectorRun, odd_cells

_N_ROWS = 20
_MOST_COLUMNS = 8
_THRESHOLDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)


def report(run: DetectorRun) -> str:
    """The report of a finished run as one HTML page."""
    figures = run.figures
    return render_page(
        f"Odd rows of {figures['table']}",
        "What is far from all other rows, and which cells make it so",
        _tiles(run),
        [_rows_card(run), _distribution_card(run), _thresholds_card(run), _making_card(run)],
        footer_of(run),
        checks_of(run),
    )


def _tiles(run: DetectorRun) -> list[Tile]:
    figures = run.figures
    tiles = [
        Tile("rows", f"{figures['rows']:,}", f"of which {figures['test_rows']:,} for testing"),
        Tile("columns", str(len(run.columns)), f"{len(figures['constant']) or 'none'} left out"),
        Tile("flagged", f"p ≤ {figures['alpha']:g}", "the share of false alarms"),
    ]
    p = np.array(figures["test_p_values"])
    if len(p):
        tiles.append(Tile("test rows flagged", f"{(p <= figures['alpha']).mean():.1%}", f"of {len(p):,}"))
    return tiles


def _rows_card(run: DetectorRun) -> Card:
    """The oddest rows, with their odd cells in bold."""
    found = run.figures["odd_rows"][:_N_ROWS]
    table = pd.DataFrame([entry["values"] for entry in found], columns=run.columns)
    for name, kind in run.figures["kinds"].items():
        if kind == "date" and name in table:
            table[name] = pd.to_datetime(table[name])
    cells = run.model.score_columns(table)
    scores = np.array([entry["score"] for entry in found])
    odd = (cells >= ODD_CELL) & (scores < 0)[:, None]
    shown = sorted(np.lexsort((-cells.max(0, initial=0.0), -odd.sum(0)))[:_MOST_COLUMNS].tolist())
    reasons = odd_cells(cells, scores, [charts.shortened(name) for name in run.columns])
    head = ["row", "p-value", "part", "odd cells", *(run.columns[k] for k in shown)]
    rows, best = [], set()
    for i, entry in enumerate(found):
        part = "training" if entry["training"] else "test"
        values = [_shown(entry["values"][k]) for k in shown]
        rows.append([str(entry["row"]), f"{entry['p_value']:.4f}", part, reasons[i] or "no cell alone", *values])
        best |= {(i, 4 + place) for place, k in enumerate(shown) if odd[i, k]}
    text = (
        "The rows farthest from all others: mistakes or rarities. Rows are counted from 1 at the top of the "
        "table. A cell is odd, and in bold, if the score of its row would rise by "
        f"{ODD_CELL:g} or more if the cell was not known; the number says by how much. Training rows are judged "
        "by models that did not learn from them."
    )
    if len(shown) < len(run.columns):
        text += f" The {len(shown)} of {len(run.columns)} columns with most odd cells are shown."
    return Card("The oddest rows", text, head=head, rows=rows, best=best)


def _distribution_card(run: DetectorRun) -> Card:
    values = {"training rows, held out": np.array(run.figures["training_p_values"])}
    test = np.array(run.figures["test_p_values"])
    if len(test):
        values["test rows"] = test
    text = (
        "The p-value of a row is the share of rows like those of the table that are at least as odd. Those of "
        "training rows are even by construction; those of test rows are even if they are rows of the same kind, "
        "and a peak at the left would be of rows that are odder."
    )
    return Card("The distribution of p-values", text, [charts.histogram(values, "p-value")])


def _thresholds_card(run: DetectorRun) -> Card:
    """What each threshold would flag."""
    parts = {
        "training rows": np.array(run.figures["training_p_values"]),
        "test rows": np.array(run.figures["test_p_values"]),
    }
    parts = {name: p for name, p in parts.items() if len(p)}
    rows = [[f"{t:g}", *(f"{(p <= t).mean():.1%}" for p in parts.values())] for t in _THRESHOLDS]
    least = 1 / (1 + len(run.model.energy_.rows))
    text = (
        "The share of rows whose p-value is at most the threshold. Of rows of the table's kind it is the "
        f"threshold itself, which is how many false alarms are to be expected. No p-value is below {least:.2g}."
    )
    return Card("What each threshold would flag", text, head=["threshold", *parts], rows=rows)


def _making_card(run: DetectorRun) -> Card:
    figures = run.figures
    rows = [[name, duration(seconds)] for name, seconds in figures["seconds"].items()]
    text = (
        f"Distances to the nearest of {len(run.model.energy_.rows):,} rows and to the nearest tenth of them, in "
        f"{len(run.model.energy_.sizes)} folds, seed {run.settings.seed}. The same command on the same machine "
        "gives the same model."
    )
    return Card("How it was made", text, head=["step", "time"], rows=rows, notes=figures["remarks"])


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else charts.shortened(str(value))
