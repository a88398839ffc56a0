"""What a density of mixed columns must beat: columns without one another, and classes within which they are so."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp
from sklearn.model_selection import KFold

# Of a class the spread of a number, and rows that every level counts more.
_LEAST_STD, _PRIOR = 1e-2, 1.0


class LatentClasses:
    """A mixture of classes in which columns are independent: a Gaussian for numbers, shares for levels.

    Gaps are no trouble: a row's class is inferred from what is known of it. One class is the product of the
    columns' own distributions. It is fitted by expectation maximisation, the best of three starts.

    Args:
        n_classes: how many; None chooses among 1, 2, 4, 8 and 16 by the likelihood of three folds.
        n_levels: of each column, which are coded 0, 1, ...; 0 is a column of numbers, standardised.
        log_unseen: log of the probability that is kept for a level that training did not show, of each column.

    Source: [Lazarsfeld 1968].
    """

    def __init__(self, n_levels: list[int], log_unseen: list[float], n_classes: int | None = None):
        self.n_levels, self.log_unseen, self.n_classes = n_levels, log_unseen, n_classes

    def fit(self, x: np.ndarray, seed: int = 0) -> LatentClasses:
        """Fit rows ``[n, D]``, NaN where unknown."""
        n = self.n_classes
        if n is None:
            folds = list(KFold(3, shuffle=True, random_state=seed).split(x)) if len(x) >= 30 else []
            figures = {}
            for k in [k for k in (1, 2, 4, 8, 16) if folds and len(x) >= 10 * k]:
                found = [self._of(k).fit(x[a], seed).log_prob(x[b]).mean() for a, b in folds]
                figures[k] = float(np.mean(found))
            n = max(figures, key=lambda k: figures[k]) if figures else 1
        starts = [self._once(x, n, seed + start) for start in range(3 if n > 1 else 1)]
        _, self.log_weights, self.tables = max(starts, key=lambda found: found[0])
        self.detail = f"{n} class{'es' if n > 1 else ''}"
        return self

    def _of(self, n_classes: int) -> LatentClasses:
        return LatentClasses(self.n_levels, self.log_unseen, n_classes)

    def _once(
        self, x: np.ndarray, n: int, seed: int, n_steps: int = 60
    ) -> tuple[float, np.ndarray, list[np.ndarray]]:
        belongs = np.random.RandomState(seed).dirichlet(np.full(n, 0.5), len(x))
        total = -np.inf
        for _ in range(n_steps):
            weights = belongs.sum(0) + 1e-3
            log_weights, tables = np.log(weights / weights.sum()), self._tables(x, belongs)
            joint = log_weights + self._log_prob(x, tables)
            of_rows = logsumexp(joint, axis=1)
            belongs = np.exp(joint - of_rows[:, None])
            if of_rows.mean() - total < 1e-5:
                break
            total = of_rows.mean()
        return float(total), log_weights, tables

    def _tables(self, x: np.ndarray, belongs: np.ndarray) -> list[np.ndarray]:
        """Of each column its log shares ``[classes, levels]``, or its means and deviations ``[2, classes]``."""
        found = []
        for d, n_levels in enumerate(self.n_levels):
            known = ~np.isnan(x[:, d])
            weights, values = belongs[known], x[known, d]
            if n_levels:
                shares = np.bincount(values.astype(int), minlength=n_levels)[:n_levels] / max(len(values), 1)
                counts = np.stack([weights[values == k].sum(0) for k in range(n_levels)], 1)
                counts = counts + _PRIOR * (shares + 1e-3)
                found.append(np.log(counts / counts.sum(1, keepdims=True)))
                continue
            # A class with hardly a row is pulled to all of them.
            mass, mean, var = weights.sum(0), values.mean(), values.var()
            centre = (weights.T @ values + mean) / (mass + 1)
            spread = (weights * np.square(values[:, None] - centre)).sum(0) + var
            found.append(np.stack([centre, np.maximum(np.sqrt(spread / (mass + 1)), _LEAST_STD)]))
        return found

    def _log_prob(self, x: np.ndarray, tables: list[np.ndarray]) -> np.ndarray:
        """log p of each row in each class ``[n, classes]``."""
        total = np.zeros((len(x), tables[0].shape[0 if self.n_levels[0] else 1]))
        for d, (n_levels, table) in enumerate(zip(self.n_levels, tables, strict=True)):
            known, value = ~np.isnan(x[:, d]), np.nan_to_num(x[:, d])
            if n_levels:
                seen = (value >= 0) & (value < n_levels)
                log_p = table.T[np.where(seen, value, 0).astype(int)] + np.log1p(-np.exp(self.log_unseen[d]))
                log_p = np.where(seen[:, None], log_p, self.log_unseen[d])
            else:
                z = (value[:, None] - table[0]) / table[1]
                log_p = -0.5 * z * z - np.log(table[1]) - 0.5 * np.log(2 * np.pi)
            total = total + np.where(known[:, None], log_p, 0.0)
        return total

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """log p of rows ``[n]``: a log mass of levels, a log density of numbers; of what is known."""
        return logsumexp(self.log_weights + self._log_prob(x, self.tables), axis=1)
