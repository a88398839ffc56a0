"""The page of a comparison: every training method on one table."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from thalweg.report import density_charts
from thalweg.report.density import density_on_plane
from thalweg.report.page import Card, Tile, render_page, write_page
from thalweg.report.words import duration
from thalweg.runs.compare import Comparison, Contender

HEAD = ["objective", "NLL, nats", "spread over seeds", "diverged", "updates", "CPU seconds", "needs"]


def write_comparison_page(comparison: Comparison, path: Path) -> Path:
    """Write what each method reached, as a table, a chart, and, of two columns, maps."""
    settings, data = comparison.settings, comparison.data
    ended = [c for c in comparison.contenders if c.nll]
    budget = f"{settings.steps:,} updates" if settings.steps else f"{settings.seconds:g} CPU seconds"
    tiles = [
        Tile("rows", f"{len(data.training) + len(data.test):,}", f"of which {len(data.test):,} for testing"),
        Tile("columns", str(data.training.shape[1]), f"{len(data.constant) or 'none'} left out"),
        Tile("methods", str(len(comparison.contenders)), f"{settings.fits} fits each, of {budget}"),
        Tile("time", duration(comparison.seconds)),
    ]
    if ended:
        best, nll = comparison.best
        kind = "a baseline" if best in comparison.baselines else "a method"
        tiles.insert(2, Tile("best", best, f"{nll:.3f} nats; {kind}"))
    cards = [_ranking_card(comparison, ended)]
    if data.training.shape[1] == 2 and ended:
        cards.append(_maps_card(comparison, ended))
    cards.append(_table_card(comparison))
    name = Path(settings.data).name
    html = render_page(
        f"Ways to train a density, on {name}",
        "One table, one split, one budget for each fit",
        tiles,
        cards,
        "Made with thalweg.",
        comparison.verdict.to_list(),
    )
    return write_page(html, path)


def table_rows(comparison: Comparison) -> list[list[str]]:
    """One line for each method and each baseline under HEAD, the best first."""
    ranked = []
    for name, nll in comparison.baselines.items():
        ranked.append((nll, [f"{name} (baseline)", f"{nll:.3f}", "", "", "", "", "nothing"]))
    for c in comparison.contenders:
        error = max(c.log_normaliser_errors, default=0.0)
        # An error of log Z that shows in the figure's last digit is reported with it.
        figure = "none" if not c.nll else f"{c.mean:.3f}" + (f" (log Z ± {error:.2g})" if error >= 0.01 else "")
        spread = f"{c.spread:.3f}" if len(c.nll) > 1 else ""
        diverged = f"{c.diverged} of {c.diverged + len(c.nll)}" if c.diverged else "none"
        cpu = f"{np.mean(c.cpu_seconds):.1f}"
        ranked.append((c.mean, [c.name, figure, spread, diverged, f"{c.steps:,}", cpu, c.needs or "nothing"]))
    return [row for _, row in sorted(ranked, key=lambda entry: entry[0])]


def _ranking_card(comparison: Comparison, ended: list[Contender]) -> Card:
    text = (
        "The mean negative log-likelihood of the held-out rows: a dot for each fit, and a mark at their mean. "
        "Further left is better. The dotted line is the best of three plain baselines."
    )
    best = min(comparison.baselines, key=lambda name: comparison.baselines[name])
    notes = [f"{name}: {nll:.3f} nats." for name, nll in comparison.baselines.items()]
    figures = []
    if ended:
        names = [f"{c.name}: {c.title}" for c in ended]
        reference = (comparison.baselines[best], best)
        means, runs = [c.mean for c in ended], [c.nll for c in ended]
        figures = [density_charts.ranking(names, means, runs, "NLL, nats", reference)]
    return Card("Which method fits best", text, figures, notes=notes)


def _table_card(comparison: Comparison) -> Card:
    settings = comparison.settings
    text = (
        "All methods but “auto”, which is a chain of ensembles, train the same network with different "
        "objectives. CPU seconds are means over the fits and include the estimate of log Z."
    )
    notes = ["log Z is exact for “auto” and estimated for the others; its error is given where it matters."]
    if settings.steps:
        notes.append(f"Every fit made {settings.steps:,} updates (of “auto”, for each column).")
    else:
        notes.append(
            f"Each method makes as many updates as fit into {settings.seconds:g} CPU seconds on this machine, "
            "estimated from two short runs; --steps N fixes their number instead."
        )
    rows = table_rows(comparison)
    return Card("The figures", text, head=HEAD, rows=rows, best={(0, 1)}, notes=[*notes, *comparison.remarks])


def _maps_card(comparison: Comparison, ended: list[Contender]) -> Card:
    data = comparison.data.training
    rows = data.to_numpy(np.float64)
    maps = {}
    x = y = np.empty(0)
    for c in ended:
        assert c.model is not None
        x, y, maps[c.name] = density_on_plane(c.model, rows, 100)
    names = (str(data.columns[0]), str(data.columns[1]))
    text = (
        "The data, and the density learned by the first fit of each method, on one colour scale. The "
        "stronger the colour, the likelier."
    )
    return Card("Maps", text, [density_charts.maps(x, y, maps, rows, names)])
