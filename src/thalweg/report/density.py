"""The report of a density run."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from sklearn.linear_model import LinearRegression

from thalweg.estimators.density import EnergyDensity
from thalweg.report import charts, density_charts
from thalweg.report.odd_cells import ODD, odd_cells
from thalweg.report.page import Card, Tile, checks_of, footer_of, render_page
from thalweg.report.words import duration, gain_in_words
from thalweg.runs.base import MODEL_NAME
from thalweg.runs.density import DensityRun

_MAX_MARGINALS = 12
_MAX_PAIRED = 4
_MAX_CORRELATED = 30
_MAX_SHOWN = 8
_N_UNLIKELY = 10
_N_DRAWS = 3000


def report(run: DensityRun) -> str:
    """The report of a finished run as one HTML page."""
    figures = run.figures
    draws = run.model.sample(_N_DRAWS, random_state=0)
    data = run.training_rows[run.columns].to_numpy(np.float64)
    cards = [_data_card(run, data, draws)]
    if len(run.columns) == 2:
        cards.append(_plane_card(run, data))
    if len(run.columns) > 1:
        cards += [_pairs_card(run, data, draws), _correlations_card(run, data, draws)]
    cards += [_training_card(run), _outliers_card(run)]
    if len(run.columns) > 1:
        cards.append(_imputation_card(run))
    if figures["scores"]:
        cards.append(_scores_card(run))
    cards.append(_making_card(run))
    return render_page(
        f"The density of {figures['table']}",
        "The joint distribution of all columns, by an energy-based model",
        _tiles(run),
        cards,
        footer_of(run),
        checks_of(run),
    )


def _tiles(run: DensityRun) -> list[Tile]:
    figures = run.figures
    left_out = figures["rows"] - figures["training_rows"] - figures["test_rows"]
    gaps = f", {left_out:,} with gaps left out" if left_out else ""
    tiles = [
        Tile("rows", f"{figures['rows']:,}", f"of which {figures['test_rows']:,} for testing{gaps}"),
        Tile("columns", str(len(run.columns)), f"{len(figures['constant']) or 'none'} left out"),
    ]
    score = figures["scores"].get(MODEL_NAME)
    if score is not None and score["nll"] is not None:
        error = score["nll_error"]
        tiles.append(Tile("test NLL", f"{score['nll']:.3f}", f"± {error:.3f} nats" if error else "nats"))
    elif figures["validation_nll"] is not None:
        tiles.append(Tile("held-out NLL", f"{figures['validation_nll']:.3f}", "nats, on folds"))
    error = figures["log_normaliser_error"]
    tiles.append(
        Tile("normalised", f"± {error:.2g}", "nats: an error that all log p share")
        if error
        else Tile("normalised", "exactly", "the density integrates to one")
    )
    n = len(run.histories)
    many = f"{n} networks" if n > 1 else f"{len(run.model.history_.epochs)} epochs"
    tiles.append(Tile("training", duration(figures["seconds"]["training"]), many))
    return tiles


def _data_card(run: DensityRun, data: np.ndarray, draws: np.ndarray) -> Card:
    shown = run.columns[:_MAX_MARGINALS]
    resolution = run.model.resolution_
    picture = density_charts.marginals(
        data[:, : len(shown)], draws[:, : len(shown)], shown, resolution[: len(shown)].tolist()
    )
    text = (
        f"The distribution of each column in the training rows and in {_N_DRAWS:,} draws from the model. The "
        "outermost bars include all values beyond them."
    )
    if len(shown) < len(run.columns):
        text += f" The first {len(shown)} of {len(run.columns)} columns are shown."
    rows = []
    for k, name in enumerate(run.columns):
        rounded = f"to {resolution[k]:g}" if resolution[k] else "no"
        pair = [f"{m:.5g} / {d:.5g}" for m, d in zip(_moments(data[:, k]), _moments(draws[:, k]), strict=True)]
        rows.append([name, *pair, f"{data[:, k].min():.5g} to {data[:, k].max():.5g}", rounded])
    head = ["column", "mean: data / draws", "std: data / draws", "range of the data", "rounded"]
    return Card("The data and the draws", text, [picture], head, rows, folded=len(rows) > 12)


def _moments(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std())


def _plane_card(run: DensityRun, data: np.ndarray) -> Card:
    x, y, density = density_on_plane(run.model, data)
    chosen = np.random.RandomState(0).permutation(len(data))[:1200]
    points = (data[chosen, 0].tolist(), data[chosen, 1])
    picture = charts.density_map(x.tolist(), y, density, {}, points, (run.columns[0], run.columns[1]), "density")
    text = "The learned density as a map, with training rows on top. The stronger the colour, the likelier."
    return Card("A map of p(x)", text, [picture])


def density_on_plane(
    model: EnergyDensity, data: np.ndarray, n: int = 160
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two axes ``[n]`` and the density ``[n, n]`` (second column first), over the range of the data."""
    axes = []
    for k in range(2):
        low, high = charts.span(data[:, k])
        pad = 0.1 * (high - low)
        axes.append(np.linspace(low - pad, high + pad, n))
    grid = np.stack(np.meshgrid(axes[0], axes[1]), -1).reshape(-1, 2)
    names = getattr(model, "feature_names_in_", None)
    density = model.score_samples(grid if names is None else pd.DataFrame(grid, columns=names))
    return axes[0], axes[1], np.exp(density).reshape(n, n)


def _pairs_card(run: DensityRun, data: np.ndarray, draws: np.ndarray) -> Card:
    chosen = _related(data)
    names = [run.columns[k] for k in chosen]
    picture = density_charts.pairs(
        data[:, chosen], draws[:, chosen], names, run.model.resolution_[chosen].tolist()
    )
    text = (
        "Scatter plots of pairs of columns: the data above the diagonal, draws from the model below it. They "
        "should be mirror images."
    )
    if len(chosen) < len(run.columns):
        text += f" The {len(chosen)} most correlated of {len(run.columns)} columns are shown."
    return Card("Pairs", text, [picture])


def _related(data: np.ndarray) -> list[int]:
    """Up to four columns that are correlated, none a copy of another."""
    n = data.shape[1]
    if n <= _MAX_PAIRED:
        return list(range(n))
    rank = np.abs(np.nan_to_num(pd.DataFrame(data).corr("spearman").to_numpy()))
    order = np.argsort(-rank.sum(0), kind="stable")
    chosen = [int(order[0])]
    for most_alike in (0.97, 1.1):
        for k in order[1:]:
            if len(chosen) < _MAX_PAIRED and k not in chosen and rank[k, chosen].max() < most_alike:
                chosen.append(int(k))
    return sorted(chosen)


def _correlations_card(run: DensityRun, data: np.ndarray, draws: np.ndarray) -> Card:
    n = min(len(run.columns), _MAX_CORRELATED)
    picture = density_charts.correlations(data[:, :n], draws[:, :n], run.columns[:n])
    off = np.abs(np.corrcoef(data[:, :n].T) - np.corrcoef(draws[:, :n].T))[np.triu_indices(n, 1)]
    text = (
        f"Linear correlations between columns. Data and draws differ by {off.mean():.3f} on average and by "
        f"{off.max():.3f} at most."
    )
    if n < len(run.columns):
        text += f" The first {n} of {len(run.columns)} columns are shown."
    return Card("Correlations", text, [picture])


def _training_card(run: DensityRun) -> Card:
    histories = [h for h in run.histories.values() if h.epochs]
    n_epochs = max((len(h.epochs) for h in histories), default=0)
    # Training works on standardised columns; a change of scale shifts a log density by a constant. Networks that
    # have stopped stay at their best.
    held_out, best_so_far = np.zeros(n_epochs), np.zeros(n_epochs)
    for h in histories:
        rest = [h.epochs[-1]["best"]] * (n_epochs - len(h.epochs))
        held_out += np.array([e["validation"] for e in h.epochs] + rest)
        best_so_far += np.array([e["best"] for e in h.epochs] + rest)
    best = sum(h.epochs[-1]["best"] for h in histories)
    shift = (run.model.validation_nll_ if np.isfinite(run.model.validation_nll_) else best) - best
    text = "The negative log-likelihood of held-out rows after each epoch; the weights of the best epoch are kept."
    rows: list[list[str]] = []
    head: list[str] = []
    if len(run.histories) > 1:
        text += (
            " The density is a chain of conditionals, one for each column; a few train together. The curve is "
            "their sum."
        )
        head = ["trained together", "epochs", "time", "end"]
        rows = [
            [_trained_together(run, name), str(len(h.epochs)), duration(h.seconds), h.stopped]
            for name, h in run.histories.items()
        ]
    lines = {
        "held-out rows": (held_out + shift).tolist(),
        "best so far, for each network separately": (best_so_far + shift).tolist(),
    }
    picture = charts.curves(list(range(1, n_epochs + 1)), lines, ("epoch", "NLL, nats"), None)
    return Card("Training", text, [picture], head, rows, notes=run.model.history_.events, folded=len(rows) > 8)


def _trained_together(run: DensityRun, part: str) -> str:
    """The names of the columns of a part of a training, which is "column 1, 2"."""
    return ", ".join(run.columns[int(k) - 1] for k in part.removeprefix("column ").split(", "))


def _outliers_card(run: DensityRun) -> Card:
    found = run.figures["outliers"][:_N_UNLIKELY]
    data = run.training_rows[run.columns].to_numpy(np.float64)
    values = np.array([entry["values"] for entry in found])
    several = len(run.columns) > 1
    odd = odd_cells(run.model, values, data) if several else [[] for _ in found]
    # If not all columns can be shown: those with odd cells, then those in which these rows are farthest out.
    far = (np.abs(values - np.median(data, 0)) / (data.std(0) + 1e-300)).mean(0)
    often = np.bincount([k for cells in odd for k in cells], minlength=len(far))
    shown = sorted(np.lexsort((-far, -often))[:_MAX_SHOWN].tolist())
    head = ["row", "log p", "part", *(["odd cells"] if several else [])]
    rows, best = [], set()
    for i, entry in enumerate(found):
        row = [str(entry["row"]), f"{entry['log_prob']:.2f}", "training" if entry["training"] else "test"]
        if several:
            row.append(", ".join(charts.shortened(run.columns[k]) for k in odd[i]) or "no cell alone")
        best |= {(i, len(head) + place) for place, k in enumerate(shown) if k in odd[i]}
        rows.append([*row, *(f"{values[i, k]:.5g}" for k in shown)])
    typical = ["the median row"] + [""] * (len(head) - 1) + [f"{np.median(data[:, k]):.5g}" for k in shown]
    text = (
        "The rows that the model finds least likely: mistakes or rarities. Rows are counted from 1 at the top "
        "of the table."
    )
    if several:
        text += (
            f" A cell is odd, and in bold, if its row would on average be at least {ODD} times as likely with the "
            "values that other rows have in its place, once an odder cell of the row is set right."
        )
    if len(run.histories) > 1 or run.settings.objective == "auto":
        text += " log p of training rows is that of networks that did not learn from them."
    if len(shown) < len(run.columns):
        text += f" The {len(shown)} of {len(run.columns)} columns are shown."
    head += [run.columns[k] for k in shown]
    return Card("Unlikely rows", text, head=head, rows=[*rows, typical], best=best)


def _imputation_card(run: DensityRun) -> Card:
    rows = run.training_rows if run.test_rows is None else run.test_rows
    which = "training" if run.test_rows is None else "test"
    names, errors, spreads = imputation_errors(run, rows)
    text = (
        f"Each column in turn is hidden in {which} rows and predicted from the others: by the model's conditional "
        "mean, by linear regression, and by the column's mean. The error is in standard deviations of the column."
    )
    if len(names) < len(run.columns):
        text += f" {len(names)} of {len(run.columns)} columns are shown."
    picture = density_charts.errors_by_column(names, errors)
    table = []
    best = set()
    for k, name in enumerate(names):
        values = [errors[m][k] for m in errors]
        best.add((k, 1 + int(np.argmin(values))))
        table.append([name, *(f"{v * spreads[k]:.4g}" for v in values)])
    note = "The RMSE in the table is in the column's units."
    return Card("Filling gaps", text, [picture], ["column", *errors], table, best, [note], folded=len(table) > 8)


def imputation_errors(
    run: DensityRun, rows: pd.DataFrame, work: float = 1.5e6
) -> tuple[list[str], dict[str, list[float]], list[float]]:
    """RMSE of hidden values, by column and by the way of filling them, in standard deviations of the column.

    Args:
        rows: with the truth.
        work: how many conditional densities may be computed; it bounds the columns and the rows.

    Returns:
        the columns, errors by the name of the way, and the standard deviations.
    """
    d, n_candidates = len(run.columns), 64
    which = np.unique(np.linspace(0, d - 1, min(d, _MAX_SHOWN)).round().astype(int))
    most = int(np.clip(work / (n_candidates * d * len(which)), 20, 300))
    X = rows[run.columns].to_numpy(np.float64)[:most]
    training = run.training_rows[run.columns].to_numpy(np.float64)
    errors: dict[str, list[float]] = {MODEL_NAME: [], "linear regression": [], "the mean": []}
    spreads = []
    for k in which:
        spread = float(training[:, k].std())
        others = np.arange(d) != k
        hidden = X.copy()
        hidden[:, k] = np.nan
        table = pd.DataFrame(hidden, columns=run.columns)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # few candidates do for a mean over many rows
            ours = run.model.impute(table, random_state=0, n_candidates=n_candidates)[:, k]
        line = LinearRegression().fit(training[:, others], training[:, k]).predict(X[:, others])
        for name, guess in zip(errors, (ours, line, training[:, k].mean()), strict=True):
            errors[name].append(float(np.sqrt(np.square(guess - X[:, k]).mean())) / spread)
        spreads.append(spread)
    return [run.columns[k] for k in which], errors, spreads


def _scores_card(run: DensityRun) -> Card:
    scores = run.figures["scores"]
    rows, notes = [], []
    for name, entry in scores.items():
        error = entry["nll_error"]
        value = "not finite" if entry["nll"] is None else f"{entry['nll']:.3f}"
        rows.append([name, value + (f" ± {error:.2g}" if error else ""), entry["detail"]])
        if entry.get("nll_gain") is not None:
            notes.append(gain_in_words("the test rows are", name, entry))
    values = [np.inf if e["nll"] is None else e["nll"] for e in scores.values()]
    notes.append(
        "± is one standard error over the test rows. The NLL is in nats, for rows in the columns' own units."
    )
    if run.model.resolution_.any():
        notes.append("Rounded values are spread over their rounding cells, in the same way for all models.")
    text = f"Four models are scored on the same {run.figures['test_rows']} test rows. Lower is better."
    return Card(
        "Beside three baselines", text, head=["model", "NLL", "chosen"], rows=rows,
        best={(int(np.argmin(values)), 1)}, notes=notes,
    )  # fmt: skip


def _making_card(run: DensityRun) -> Card:
    figures, settings = run.figures, run.settings
    n_weights = sum(p.numel() for p in run.model.energy_.parameters())
    names = {"training": "training the model", "scoring": "scoring it", "looking for outliers": "scoring all rows"}
    rows = [[names.get(k, f"fitting and scoring: {k}"), duration(v)] for k, v in figures["seconds"].items()]
    rows.append(["all", duration(sum(figures["seconds"].values()))])
    text = (
        f"Objective {settings.objective!r}, {type(run.model.energy_.inner).__name__} with {n_weights:,} weights, "
        f"seed {settings.seed}. The same command on the same machine gives the same model."
    )
    return Card("How it was made", text, head=["step", "time"], rows=rows, notes=figures["remarks"])
