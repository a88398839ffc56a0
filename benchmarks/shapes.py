"""What a free-form density sees that a Gaussian does not: grades of wine, and a censored house value.

    .venv/bin/python benchmarks/shapes.py --data FOLDER --out shapes.html

Wine is graded in whole numbers, three to eight; house values in California stop at 5.0 (100,000 dollars), where
one row in twenty stands. NGBoost (Gaussian) is the Gaussian.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table
from sklearn.model_selection import train_test_split

from regression import load_tables, ngboost, ours
from thalweg.data.target import find_resolution
from thalweg.evaluation.regression import score_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the .npz tables")
    parser.add_argument("--out", type=Path, default=Path("shapes.html"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    tables = load_tables(arguments.data)
    groups = {
        "wine": {"grade 4 or less": lambda y: y <= 4, "grades 5, 6": lambda y: (y == 5) | (y == 6),
                 "grade 7 or more": lambda y: y >= 7},
        "california": {"at the limit, 5.0": lambda y: y >= 5, "below it": lambda y: y < 5},
    }  # fmt: skip
    figure = make_subplots(2, 3, subplot_titles=[f"{name}: test row {i + 1}" for name in groups for i in range(3)])
    table = Table("test rows", "count", "NLL, thalweg", "NLL, Gaussian", "nats gained a row")
    for line, (name, parts) in enumerate(groups.items(), start=1):
        X, y = tables[name]
        resolution = find_resolution(y)
        X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.1, random_state=0)
        free = ours(X_train, y_train, 0, resolution)(X_test)
        gaussian = ngboost(X_train, y_train, 0, resolution)(X_test)
        scores = [score_rows(y_test, d, resolution) for d in (free, gaussian)]
        for part, pick in parts.items():
            own, other = (s[pick(y_test)] for s in scores)
            gain = own - other
            error = gain.std(ddof=1) / np.sqrt(len(gain))
            table.add_row(f"{name}, {part}", f"{len(own)}", f"{-own.mean():.2f}", f"{-other.mean():.2f}",
                          f"{gain.mean():.2f} ± {error:.2f}")  # fmt: skip
        if name == "california":
            edge = np.full(len(y_test), 5.0 - resolution)
            at_limit = y_test >= 5
            for label, d in (("thalweg", free), ("Gaussian", gaussian)):
                mass = 1 - d.cdf(edge)
                print(f"{label}: probability of the limit {mass[at_limit].mean():.2f} on rows that stand there, "
                      f"{mass[~at_limit].mean():.3f} on the others; share of rows there {at_limit.mean():.3f}; "
                      f"mass above it {np.mean(1 - d.cdf(edge + 0.02)):.3f}")  # fmt: skip
        order = np.argsort(scores[0] - scores[1])
        grid = np.linspace(y.min() - 1, y.max() + 1, 1200)
        for column, i in enumerate(order[[len(order) // 4, len(order) // 2, -len(order) // 20]], start=1):
            for label, d, colour in (("thalweg", free[int(i)], "#1f5f8b"), ("Gaussian", None, "#c0392b")):
                if d is None:
                    density = np.exp(gaussian.log_prob(np.broadcast_to(grid[:, None], (1200, len(y_test))).T)[i])
                else:
                    density = np.exp(d.log_prob(grid[None]))[0]
                figure.add_scatter(x=grid, y=np.minimum(density, 4), name=label, line={"color": colour},
                                   showlegend=line == column == 1, row=line, col=column)  # fmt: skip
            figure.add_vline(x=y_test[i], line_dash="dot", row=line, col=column)
    figure.update_layout(template="plotly_white", height=640, title="p(y|x) of test rows, the truth dotted")
    figure.write_html(arguments.out)
    Console(width=110).print(table)
    print(f"picture: {arguments.out}")


if __name__ == "__main__":
    main()
