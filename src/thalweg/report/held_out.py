"""What a regression says of the test rows: calibrated or not, over all rows and by group; and the worst rows."""

from __future__ import annotations

import numpy as np
import pandas as pd

from thalweg.data.encoding import is_number
from thalweg.estimators.distribution import PredictiveDistribution
from thalweg.evaluation.regression import pit_values, score_rows
from thalweg.report import charts
from thalweg.report.grids import MAX_POINTS, in_words, plain_columns, row_names
from thalweg.report.page import Card
from thalweg.runs.base import MODEL_NAME
from thalweg.runs.regression import RegressionRun

_MAX_ROWS = 2 * MAX_POINTS
_N_BINS = 5
_MAX_CATEGORIES = 8
_N_WORST = 10
_LEVEL = 0.9


def held_out_cards(run: RegressionRun, ranked: list[str]) -> list[Card]:
    """The cards of a run with test rows.

    Args:
        ranked: the inputs, the one that matters most first.
    """
    assert run.test_rows is not None
    rows = run.test_rows.iloc[:_MAX_ROWS]
    distribution = run.model.predict_distribution(run.inputs(rows))
    assert isinstance(distribution, PredictiveDistribution)
    truth = np.asarray(run.truth(rows))
    return [
        _calibration_card(run),
        _groups_card(run, rows, distribution, truth, ranked),
        _truth_card(run, distribution, truth),
        _residuals_card(run, distribution, truth),
        _worst_card(run, rows, distribution, truth, ranked),
    ]


def _calibration_card(run: RegressionRun) -> Card:
    scores = run.figures["scores"]
    ours = scores[MODEL_NAME]
    text = (
        "Whether predicted probabilities match observed frequencies. The PIT histogram of a calibrated model is "
        "flat: nine bars in ten end in the grey band. A valley in the middle means overconfidence, a hill "
        "underconfidence. In the lower chart, central intervals should cover as many truths as their level says."
    )
    covered = {name: entry["covered"] for name, entry in scores.items()}
    pictures = [charts.pit_histogram(ours["pit_histogram"]), charts.coverage_curve(ours["nominal"], covered)]
    return Card("Calibration", text, pictures)


def _groups_card(
    run: RegressionRun,
    rows: pd.DataFrame,
    distribution: PredictiveDistribution,
    truth: np.ndarray,
    ranked: list[str],
) -> Card:
    # A truth in a rounding cell counts by the part of the cell that is inside.
    pit = pit_values(truth, distribution, run.model.resolution_)
    inside = np.abs(pit - 0.5) <= _LEVEL / 2 + 1e-12
    groups = mean_groups(distribution.mean())
    text = "The share of test rows inside the central 90 % interval, by the predicted mean"
    table = plain_columns(run.inputs(rows))
    if category := next((n for n in ranked if not is_number(table[n])), None):
        counts = table[category].value_counts()
        groups |= {
            f"{category}: {value}": (table[category] == value).to_numpy()
            for value in counts.index[:_MAX_CATEGORIES]
        }
        text += f", and by {category!r}, the input of categories that matters most"
    text += (
        ". The number of rows is in brackets. Of a calibrated model's groups, nine in ten lie inside their grey "
        "bars."
    )
    groups = {name: members for name, members in groups.items() if members.any()}
    shares = [float(inside[members].mean()) for members in groups.values()]
    sizes = [int(members.sum()) for members in groups.values()]
    return Card("Coverage by group", text, [charts.group_coverage(list(groups), shares, sizes, _LEVEL)])


def mean_groups(mean: np.ndarray) -> dict[str, np.ndarray]:
    """Rows in groups of equal size by their predicted mean: a name, and whether each row is in it ``[rows]``."""
    order = np.argsort(mean, kind="stable")
    groups = {}
    for part in np.array_split(order, min(_N_BINS, len(mean))):
        members = np.zeros(len(mean), bool)
        members[part] = True
        low, high = float(mean[part[0]]), float(mean[part[-1]])
        groups[f"{low:.4g} to {high:.4g}"] = members
    return groups


def _truth_card(run: RegressionRun, distribution: PredictiveDistribution, truth: np.ndarray) -> Card:
    text = (
        "The true values of the test rows over their predicted means. On the dotted line both are the same. The "
        "vertical lines are the central 90 % intervals of some rows."
    )
    picture = charts.scatter_truth(distribution.mean(), truth, run.targets[0], distribution.interval(_LEVEL))
    return Card("Truth and prediction", text, [picture])


def _residuals_card(run: RegressionRun, distribution: PredictiveDistribution, truth: np.ndarray) -> Card:
    text = "The truth minus the predicted mean, on the test rows. A good model leaves no pattern."
    return Card("Residuals", text, [charts.residuals(distribution.mean(), truth, run.targets[0])])


def _worst_card(
    run: RegressionRun,
    rows: pd.DataFrame,
    distribution: PredictiveDistribution,
    truth: np.ndarray,
    ranked: list[str],
) -> Card:
    log_score = score_rows(truth, distribution, run.model.resolution_)
    worst = np.argsort(log_score, kind="stable")[:_N_WORST]
    names = row_names(run)
    mean, interval = distribution.mean(), distribution.interval(_LEVEL)
    shown = ranked[:5]
    table = plain_columns(run.inputs(rows))
    lines = [
        [
            names[i].removeprefix("row "),
            f"{log_score[i]:.2f}",
            in_words(float(truth[i])),
            in_words(float(mean[i])),
            f"{interval[i, 0]:.5g} to {interval[i, 1]:.5g}",
            *(charts.shortened(in_words(table[name].iloc[i])) for name in shown),
        ]
        for i in worst
    ]
    text = (
        "The test rows whose truth the model found least likely: mistakes in the data, or cases that it does not "
        "understand. Rows are counted from 1 at the top of the table."
    )
    if len(shown) < len(ranked):
        text += f" The {len(shown)} inputs that matter most are shown."
    head = ["row", "log p of the truth", "truth", "predicted mean", "90 % interval", *shown]
    return Card("Least expected rows", text, head=head, rows=lines)
