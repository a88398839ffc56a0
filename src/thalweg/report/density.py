"""The report of a density run."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeCV

from thalweg.data.encoding import TableEncoder
from thalweg.estimators.density import EnergyDensity
from thalweg.report import charts, density_charts
from thalweg.report.odd_cells import ODD, odd_cells
from thalweg.report.page import Card, Tile, checks_of, footer_of, render_page
from thalweg.report.words import duration, gain_in_words
from thalweg.runs.base import MODEL_NAME
from thalweg.runs.density import ODD_CELL, DensityRun, explained

_MAX_MARGINALS = 12
_MAX_PAIRED = 4
_MAX_CORRELATED = 30
_MAX_SHOWN = 8
_N_UNLIKELY = 10
_N_DRAWS = 3000
_MOST_HIDDEN = 400


def report(run: DensityRun) -> str:
    """The report of a finished run as one HTML page."""
    figures = run.figures
    drawn = pd.DataFrame(run.model.sample(_N_DRAWS, random_state=0)).set_axis(run.columns, axis=1)
    shown = run.training_rows[run.columns]
    numbers = [name for name in run.columns if figures["kinds"][name] in ("number", "span", "date")]
    data, draws = as_floats(shown[numbers]), as_floats(drawn[numbers])
    whole = ~np.isnan(data).any(1)
    plain = len(numbers) == len(run.columns) and bool(whole.all())
    cards = [_data_card(run, numbers, data, draws)] if numbers else []
    levels = [name for name in run.columns if name not in numbers]
    if levels:
        cards.append(_levels_card(levels, shown[levels], drawn[levels]))
    if plain and len(run.columns) == 2:
        cards.append(_plane_card(run, data))
    if len(numbers) > 1 and whole.sum() > 2:
        cards += [_pairs_card(run, numbers, data[whole], draws), _correlations_card(numbers, data[whole], draws)]
    cards += [_training_card(run), _outliers_card(run) if plain else _odd_rows_card(run)]
    if len(run.columns) > 1:
        cards.append(_imputation_card(run) if plain else _hidden_cells_card(run))
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


def as_floats(table: pd.DataFrame) -> np.ndarray:
    """Columns of numbers and dates as numbers ``[rows, columns]``, NaN for gaps; a date as a fraction of years."""
    found = np.empty(table.shape)
    for k, name in enumerate(table.columns):
        column = table[name]
        if pd.api.types.is_datetime64_any_dtype(column):
            found[:, k] = (1970 + (column - pd.Timestamp("1970-01-01")) / pd.Timedelta(days=365.2425)).to_numpy(
                float
            )
        else:
            found[:, k] = column.to_numpy(np.float64, na_value=np.nan)
    return found


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
    many = f"in {n} parts" if n > 1 else f"{len(run.model.history_.epochs)} epochs"
    tiles.append(Tile("training", duration(figures["seconds"]["training"]), many))
    return tiles


def _data_card(run: DensityRun, names: list[str], data: np.ndarray, draws: np.ndarray) -> Card:
    shown = names[:_MAX_MARGINALS]
    steps = [run.figures["resolution"][name] for name in names]
    picture = density_charts.marginals(data[:, : len(shown)], draws[:, : len(shown)], shown, steps[: len(shown)])
    text = (
        f"The distribution of each column in the training rows and in {_N_DRAWS:,} draws from the model. The "
        "outermost bars include all values beyond them."
    )
    if len(shown) < len(names):
        text += f" The first {len(shown)} of {len(names)} columns are shown."
    gaps = np.isnan(data).sum(0)
    rows = []
    for k, name in enumerate(names):
        rounded, known = f"to {steps[k]:g}" if steps[k] else "no", data[~np.isnan(data[:, k]), k]
        pair = [f"{m:.5g} / {d:.5g}" for m, d in zip(_moments(known), _moments(draws[:, k]), strict=True)]
        row = [name, *pair, f"{known.min():.5g} to {known.max():.5g}", rounded]
        rows.append([*row, f"{gaps[k]:,}"] if gaps.any() else row)
    head = ["column", "mean: data / draws", "std: data / draws", "range of the data", "rounded"]
    head += ["gaps"] if gaps.any() else []
    return Card("The data and the draws", text, [picture], head, rows, folded=len(rows) > 12)


def _levels_card(names: list[str], data: pd.DataFrame, draws: pd.DataFrame) -> Card:
    """Shares of texts and truth values, in the data and in draws."""
    shares = {}
    for name in names:
        known = data[name].dropna().astype(str)
        parts = [values.value_counts(normalize=True) for values in (known, draws[name].astype(str))]
        most = parts[0].index[:_MAX_SHOWN]
        shares[name] = [(level, *(float(part.get(level, 0.0)) for part in parts)) for level in most]
    picture = density_charts.level_shares(dict(list(shares.items())[:_MAX_MARGINALS]))
    rows = [
        [name, level, f"{real:.1%}", f"{drawn:.1%}", f"{int(data[name].isna().sum()):,}"]
        for name, found in shares.items()
        for level, real, drawn in found
    ]
    text = (
        f"How often each value occurs in the training rows, where it is known, and in {_N_DRAWS:,} draws; of each "
        f"column the {_MAX_SHOWN} most frequent values."
    )
    head = ["column", "value", "data", "draws", "gaps in the column"]
    return Card("Categories", text, [picture], head, rows, folded=len(rows) > 12)


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


def _pairs_card(run: DensityRun, columns: list[str], data: np.ndarray, draws: np.ndarray) -> Card:
    chosen = _related(data)
    names = [columns[k] for k in chosen]
    steps = [run.figures["resolution"][name] for name in names]
    picture = density_charts.pairs(data[:, chosen], draws[:, chosen], names, steps)
    text = (
        "Scatter plots of pairs of columns: the data above the diagonal, draws from the model below it. They "
        "should be mirror images."
    )
    if len(chosen) < len(columns):
        text += f" The {len(chosen)} most correlated of {len(columns)} columns are shown."
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


def _correlations_card(names: list[str], data: np.ndarray, draws: np.ndarray) -> Card:
    n = min(len(names), _MAX_CORRELATED)
    picture = density_charts.correlations(data[:, :n], draws[:, :n], names[:n])
    with np.errstate(invalid="ignore"):
        off = np.abs(np.corrcoef(data[:, :n].T) - np.corrcoef(draws[:, :n].T))[np.triu_indices(n, 1)]
    off = off[~np.isnan(off)] if not np.isnan(off).all() else np.zeros(1)
    text = (
        f"Linear correlations between columns. Data and draws differ by {off.mean():.3f} on average and by "
        f"{off.max():.3f} at most."
    )
    if n < len(names):
        text += f" The first {n} of {len(names)} columns are shown."
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


def _odd_rows_card(run: DensityRun) -> Card:
    """The least likely rows of a table with levels or gaps, and which cells make them so."""
    found = run.figures["outliers"][:_N_UNLIKELY]
    table = pd.DataFrame([entry["values"] for entry in found], columns=run.columns)
    for name, kind in run.figures["kinds"].items():
        if kind == "date" and name in table:
            table[name] = pd.to_datetime(table[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a level that was not seen is what is looked for
        beyond = run.model.score_columns(table) - run.model.column_nll_
    beyond[table.isna().to_numpy()] = 0.0
    often = (beyond >= ODD_CELL).sum(0)
    shown = sorted(np.lexsort((-beyond.max(0, initial=0.0), -often))[:_MAX_SHOWN].tolist())
    head = ["row", "log p", "part", "odd cells", *(run.columns[k] for k in shown)]
    rows, best = [], set()
    reasons = explained(beyond, [charts.shortened(name) for name in run.columns])
    for i, entry in enumerate(found):
        cells = [_shown(entry["values"][k]) for k in shown]
        best |= {(i, 4 + place) for place, k in enumerate(shown) if beyond[i, k] >= ODD_CELL}
        part = "training" if entry["training"] else "test"
        rows.append([str(entry["row"]), f"{entry['log_prob']:.2f}", part, reasons[i] or "no cell alone", *cells])
    text = (
        "The rows that the model finds least likely: mistakes or rarities. Rows are counted from 1 at the top of "
        f"the table. A cell is odd, and in bold, if it is {ODD_CELL:g} nats less likely, given the cells before "
        "it, than cells of its column are on average; the number says by how many. For a gap the average of its "
        "column is taken. log p of training rows is that of networks that did not learn from them."
    )
    if len(shown) < len(run.columns):
        text += f" The {len(shown)} of {len(run.columns)} columns with most odd cells are shown."
    return Card("Unlikely rows", text, head=head, rows=rows, best=best)


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else charts.shortened(str(value))


def _hidden_cells_card(run: DensityRun) -> Card:
    """Known cells of held-out rows hidden, and said from the others."""
    rows = run.training_rows if run.test_rows is None else run.test_rows
    which = "training" if run.test_rows is None else "test"
    rows, training = rows[run.columns].iloc[:_MOST_HIDDEN], run.training_rows[run.columns]
    names = [run.columns[k] for k in np.unique(np.linspace(0, len(run.columns) - 1, 2 * _MAX_SHOWN).astype(int))]
    errors: dict[str, list[float]] = {MODEL_NAME: [], "the other columns, linearly": []}
    table: list[list[str]] = []
    kept, best = [], set()
    for name in names:
        known = rows[rows[name].notna()]
        learned = training[training[name].notna()]
        if len(known) < 2 or len(learned) < 10 or run.figures["kinds"][name] == "date":
            continue
        ours, linear, nothing, unit = _errors_of(run, name, known, learned)
        kept.append(name)
        for values, error in zip(errors.values(), (ours, linear), strict=True):
            values.append(error / nothing if nothing else 1.0)
        best.add((len(table), 1 + int(np.argmin([ours, linear, nothing]))))
        table.append([name, *(f"{e:.4g}" for e in (ours, linear, nothing)), unit])
    text = (
        f"In {which} rows each column in turn is hidden where it is known and predicted from the others: by the "
        "model, by a linear or logistic regression, and by the column's mean or most frequent value. "
        "The picture has the error over that of the last."
    )
    picture = density_charts.errors_by_column(kept, errors, "error / that of knowing nothing")
    head = ["column", *errors, "the mean or most frequent", "error"]
    return Card("Filling gaps", text, [picture], head, table, best, folded=len(table) > 8)


def _errors_of(
    run: DensityRun, name: str, known: pd.DataFrame, learned: pd.DataFrame
) -> tuple[float, float, float, str]:
    """Errors of a hidden column: ours, a linear model's, that of knowing nothing; and their unit."""
    others = [c for c in run.columns if c != name]
    encoder = TableEncoder(1).fit(learned[others])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # levels that were not seen; a regression that has not converged
        inputs = [encoder.transform(part[others]) for part in (learned, known)]
        found = run.model.predict(known, name)
        if isinstance(found, pd.DataFrame) and run.figures["kinds"][name] in ("text", "truth"):
            truth = known[name].astype(str).to_numpy()
            said = found.columns.astype(str).to_numpy()[found.to_numpy().argmax(1)]
            target = learned[name].astype(str)
            line = target.iloc[:1].repeat(len(known)).to_numpy()
            if target.nunique() > 1:
                line = LogisticRegression(max_iter=300).fit(inputs[0], target).predict(inputs[1])
            wrong = [float((guess != truth).mean()) for guess in (said, line, target.mode().iloc[0])]
            return wrong[0], wrong[1], wrong[2], "share wrong"
        truth, target = (part[name].to_numpy(np.float64) for part in (known, learned))
        if isinstance(found, pd.DataFrame):
            said = found.to_numpy() @ found.columns.to_numpy(np.float64)
        else:
            said = found.mean()
        line = RidgeCV(np.logspace(-2, 3, 6)).fit(inputs[0], target).predict(inputs[1])
    ours, linear, nothing = (float(np.sqrt(np.square(g - truth).mean())) for g in (said, line, target.mean()))
    return ours, linear, nothing, "RMSE"


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
    n_models = {3: "Three", 4: "Four"}.get(len(scores), str(len(scores)))
    text = f"{n_models} models are scored on the same {run.figures['test_rows']} test rows. Lower is better."
    title = f"Beside {'three' if len(scores) == 4 else 'two'} baselines"
    return Card(
        title, text, head=["model", "NLL", "chosen"], rows=rows,
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
