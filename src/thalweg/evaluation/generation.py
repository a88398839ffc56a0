"""How good samples are: their distance from the data, fidelity and variety, copying, bits per dimension.

Most of these figures depend on how many rows they are given, so they compare two models only at equal
numbers of samples and of data. For images they say more in a space of features than in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

Rows = np.ndarray | Tensor

# One bandwidth sees differences at one scale only; these are multiples of the median distance.
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
# The median distance of this many rows is as good as that of all.
MEDIAN_ROWS = 2000
# How many entries of a matrix of distances are held at a time.
BLOCK_ENTRIES = 2**22


class SignificanceTest(NamedTuple):
    """A statistic and the probability of one as large if the hypothesis tested is true."""

    statistic: float
    p_value: float


class PrecisionRecall(NamedTuple):
    """Fidelity (precision, density) and variety (recall, coverage) of samples; higher is better."""

    precision: float
    recall: float
    density: float
    coverage: float


class Neighbours(NamedTuple):
    """For each sample the nearest row of the data ``[n]`` and the Euclidean distance to it ``[n]``."""

    row: np.ndarray
    distance: np.ndarray


def maximum_mean_discrepancy(samples: Rows, data: Rows, bandwidth: float | Sequence[float] | None = None) -> float:
    """Squared maximum mean discrepancy, the unbiased estimate [Gretton 2012, eq. 3].

    The kernel is the mean over several bandwidths b [Li 2015] of exp(-|x - y|^2 / (2 b^2)). The estimate is
    about 0, and as often negative as positive, if both sets have one distribution.

    Args:
        samples: ``[n, ...]``, n >= 2.
        data: ``[m, ...]``, m >= 2; as many numbers a row as the samples.
        bandwidth: b, or several; by default 1/4, 1/2, 1, 2 and 4 times the median distance between rows of
            both sets together. Figures are comparable only under the same bandwidths.

    Raises:
        ValueError: for NaN or infinities, too few rows, rows of different sizes, a bandwidth that isn't
            positive, or rows that are all equal without a bandwidth.
    """
    x, y = as_pair(samples, data, min_rows=2)
    pooled, first = np.concatenate([x, y]), _membership(len(x), len(y))
    return float(_mean_discrepancies(pooled, first[:, None], _bandwidths(bandwidth, pooled))[0])


def mmd_test(samples: Rows, data: Rows, n_permutations: int = 999, random_state: int = 0) -> SignificanceTest:
    """Do samples and data have one distribution? Tested by the maximum mean discrepancy.

    The p-value comes from permuting the rows between the two sets, which keeps the level exactly, at any
    number of rows, if all rows are independent. Draws of one Markov chain are not.

    Args:
        samples: ``[n, ...]``, n >= 2.
        data: ``[m, ...]``, m >= 2.
        n_permutations: the least p-value is 1 / (1 + n_permutations).
        random_state: seed of the permutations.

    Returns:
        :func:`maximum_mean_discrepancy` at its default bandwidths, and the p-value.

    Raises:
        ValueError: as :func:`maximum_mean_discrepancy`, or for less than one permutation.
    """
    if n_permutations < 1:
        raise ValueError(f"n_permutations must be at least 1, got {n_permutations}")
    x, y = as_pair(samples, data, min_rows=2)
    pooled, first = np.concatenate([x, y]), _membership(len(x), len(y))
    permuted = np.random.default_rng(random_state).permuted(np.tile(first, (n_permutations, 1)), axis=1)
    statistics = _mean_discrepancies(
        pooled, np.concatenate([first[:, None], permuted.T], axis=1), _bandwidths(None, pooled)
    )
    # What is equal but for rounding counts as equal; the kernel is at most 1.
    exceeding = int((statistics[1:] >= statistics[0] - 1e-12).sum())
    return SignificanceTest(float(statistics[0]), (1 + exceeding) / (1 + n_permutations))


def frechet_distance(samples: Rows, data: Rows, features: Callable[[Any], Rows] | None = None) -> float:
    """Squared Fréchet distance of two Gaussians that have the means and covariances of the two sets.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) [Dowson 1982; Heusel 2017, eq. 6]; of the features of an
    Inception network this is the FID. It is biased upward, the more so the fewer rows per feature there are.

    Args:
        samples: ``[n, ...]``, n >= 2.
        data: ``[m, ...]``, m >= 2.
        features: maps rows, as they were given, to features ``[rows, F]``: :func:`pca_features`, or a network
            in evaluation mode. Without it the rows themselves are compared.

    Raises:
        ValueError: for NaN or infinities, too few rows, or rows (of features) of different sizes.
    """
    if features is not None:
        as_pair(samples, data, min_rows=2)
        with torch.no_grad():
            samples, data = features(samples), features(data)
    x, y = as_pair(samples, data, min_rows=2)
    shift = x.mean(0) - y.mean(0)
    # With C = R'R the trace of (C1 C2)^(1/2) is the sum of the singular values of R1 R2'. No square root of
    # a matrix that may be singular is needed, and rounding can't make the figure complex.
    r1, r2 = _covariance_root(x), _covariance_root(y)
    overlap = np.linalg.svd(r1 @ r2.T, compute_uv=False).sum()
    distance = shift @ shift + np.square(r1).sum() + np.square(r2).sum() - 2 * overlap
    return max(0.0, float(distance))


def pca_features(data: Rows, n_components: int = 20) -> Callable[[Rows], np.ndarray]:
    """Features for :func:`frechet_distance`: the leading principal components of the data, not whitened.

    Args:
        data: ``[m, ...]``: fit on the training rows, and use one fit for all models that are compared.
        n_components: at most the numbers in a row, and at most m.

    Returns:
        a function from rows ``[n, ...]`` to components ``[n, n_components]``.

    Raises:
        ValueError: for NaN or infinities, or a number of components that the data doesn't have.
    """
    rows = as_rows(data, "data", min_rows=2)
    if not 1 <= n_components <= min(rows.shape):
        raise ValueError(f"n_components must be between 1 and {min(rows.shape)}, got {n_components}")
    pca = PCA(n_components, svd_solver="full").fit(rows)

    def features(rows: Rows) -> np.ndarray:
        rows = as_rows(rows, "the rows", min_rows=1)
        if rows.shape[1] != pca.n_features_in_:
            raise ValueError(
                f"the components were fitted on rows of {pca.n_features_in_} numbers, got {rows.shape[1]}"
            )
        return pca.transform(rows)

    return features


def precision_recall(samples: Rows, data: Rows, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall [Kynkäänniemi 2019, eq. 1-2], density and coverage [Naeem 2020, sec. 3].

    A ball round each row, that reaches to its k-th nearest neighbour in its own set, stands for the region
    that the set covers. Precision is the share of the samples inside the region of the data, recall the share
    of the data inside the region of the samples. One stray row widens these regions much; density, the
    number of data balls that a sample lies in, in units of k, and coverage, the share of data balls with a
    sample inside, don't suffer from it much. Under the true model density is 1 on average, and coverage
    1 - prod_(i=1..k) (m - i) / (n + m - i), whatever the distribution.

    Args:
        samples: ``[n, ...]``, n > k.
        data: ``[m, ...]``, m > k.
        k: which neighbour a ball reaches to. With m = n the true model's coverage is about 1 - 2^-k.

    Raises:
        ValueError: for NaN or infinities, rows of different sizes, k < 1, or no more than k rows.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    x, y = as_pair(samples, data, min_rows=k + 1)
    data_reach, sample_reach = _reach(y, k), _reach(x, k)
    balls_entered = np.zeros(len(x))
    recalled = np.zeros(len(y), bool)
    covered = np.zeros(len(y), bool)
    for block in blocks(len(x), len(y)):
        squared = squared_distances(x[block], y)
        in_data_ball = squared <= data_reach
        balls_entered[block] = in_data_ball.sum(1)
        covered |= in_data_ball.any(0)
        recalled |= (squared <= sample_reach[block, None]).any(0)
    return PrecisionRecall(
        precision=float(np.mean(balls_entered > 0)),
        recall=float(np.mean(recalled)),
        density=float(np.mean(balls_entered) / k),
        coverage=float(np.mean(covered)),
    )


def nearest_neighbours(samples: Rows, data: Rows) -> Neighbours:
    """For each sample the nearest row of the data, to be shown beside it.

    Args:
        samples: ``[n, ...]``.
        data: ``[m, ...]``.

    Raises:
        ValueError: for NaN or infinities, no rows, or rows of different sizes.
    """
    x, y = as_pair(samples, data, min_rows=1)
    row = np.concatenate([squared_distances(x[b], y).argmin(1) for b in blocks(len(x), len(y))])
    # Once more for the pairs found, without the cancellation of the expanded square.
    distance = np.concatenate([np.linalg.norm(x[b] - y[row[b]], axis=1) for b in blocks(len(x), x.shape[1])])
    return Neighbours(row, distance)


def copying_ratio(samples: Rows, train: Rows, held_out: Rows) -> float:
    """How near the samples lie to training rows, compared with rows that were never trained on.

    The median distance of samples to their nearest training rows, over that of held-out rows: near 1 for
    samples like fresh data, well below 1 for copies [Meehan 2020]. Samples crowded into the densest regions
    are below 1 too, and a ratio above 1 doesn't exclude that some samples are copies beside bad ones: look at
    :func:`nearest_neighbours` as well.

    Args:
        samples: ``[n, ...]``.
        train: the rows that the model was fitted to ``[m, ...]``.
        held_out: rows of the same source that it was not fitted to ``[h, ...]``.

    Raises:
        ValueError: for NaN or infinities, no rows, rows of different sizes, or if more than half of the
            held-out rows are training rows.
    """
    as_pair(samples, held_out, min_rows=1, names=("samples", "the held-out rows"))
    reference = float(np.median(nearest_neighbours(held_out, train).distance))
    if reference == 0:
        raise ValueError("at least half of the held-out rows are among the training rows: there is no scale")
    return float(np.median(nearest_neighbours(samples, train).distance)) / reference


def bits_per_dimension(log_prob: np.ndarray | Tensor | float, n_dimensions: int, n_levels: int = 256) -> Any:
    """Negative log-likelihood of grey values in bits per dimension [Theis 2016, sec. 3.1].

    The convention: a grey value v of 0, ..., n_levels - 1 became x = (v + u) / n_levels in [0, 1], u uniform
    in [0, 1), and the log density is that of x. Then one grey value is a cell of width 1 / n_levels, and

        bits = log2(n_levels) - log_prob / (n_dimensions log 2),

    on average over u an upper bound of the bits of the model's probability of v. A uniform density over
    [0, 1] takes log2(n_levels) bits. Data that were only divided (by n_levels or n_levels - 1), without the
    noise u, have no density: a model can put spikes on the grid, and this figure then means nothing.
    A density of data that were standardised needs the log of that scale added first.

    Args:
        log_prob: log density of x in nats, of any shape; an estimate of log Z in it counts as it is.
        n_dimensions: numbers in one x.
        n_levels: how many grey values there are.

    Returns:
        bits per dimension, of the shape of log_prob; lower is better. A density of 0 takes infinitely many.

    Raises:
        ValueError: for NaN, or if n_dimensions < 1 or n_levels < 2.
    """
    if n_dimensions < 1 or n_levels < 2:
        raise ValueError(
            f"n_dimensions must be at least 1 and n_levels at least 2, got {n_dimensions} and {n_levels}"
        )
    values = _to_numpy(log_prob)
    if np.isnan(values).any():
        raise ValueError(f"log_prob contains {int(np.isnan(values).sum())} NaN")
    return math.log2(n_levels) - values / (n_dimensions * math.log(2))


def as_rows(values: Rows, name: str, min_rows: int) -> np.ndarray:
    """Rows ``[n, ...]`` as float64 ``[n, D]``, or a ValueError in words."""
    rows = _to_numpy(values)
    if rows.ndim < 2 or 0 in rows.shape[1:]:
        raise ValueError(f"{name} must be rows of numbers [n, ...], got shape {rows.shape}")
    if len(rows) < min_rows:
        raise ValueError(f"{name} must have at least {min_rows} row(s), got {len(rows)}")
    rows = rows.reshape(len(rows), -1)
    # The squares of larger numbers overflow.
    bad = int((~(np.abs(rows) < 1e100)).any(1).sum())
    if bad:
        raise ValueError(f"{name} contain NaN, infinity or numbers beyond 1e100 in {bad} of {len(rows)} rows")
    return rows


def as_pair(
    samples: Rows, data: Rows, min_rows: int, names: tuple[str, str] = ("samples", "data")
) -> tuple[np.ndarray, np.ndarray]:
    """Two sets as float64 ``[n, D]`` and ``[m, D]``, shifted alike so that the data lie round 0."""
    x, y = as_rows(samples, names[0], min_rows), as_rows(data, names[1], min_rows)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{names[0]} and {names[1]} must have rows of one size, got {x.shape[1]} and {y.shape[1]} numbers"
        )
    # The median, not the mean: one far row would cost all the others their digits.
    centre = np.median(y, axis=0)
    return x - centre, y - centre


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances ``[n, m]`` of rows ``[n, D]`` and ``[m, D]`` that lie round 0."""
    size = np.square(x).sum(1)[:, None] + np.square(y).sum(1)
    squared = size - 2 * x @ y.T
    # Below the rounding of the expanded square two rows are the same row.
    squared[squared < 1e-13 * size] = 0.0
    return squared


def median_distance(rows: np.ndarray) -> float:
    """Median distance of two different rows of ``[n, D]``, the natural scale of a kernel."""
    thinned = rows[np.linspace(0, len(rows) - 1, min(len(rows), MEDIAN_ROWS)).astype(int)]
    squared = squared_distances(thinned, thinned)[np.triu_indices(len(thinned), 1)]
    # Equal rows, of which discrete data have many, say nothing of a scale.
    squared = squared[squared > 0]
    if len(squared) == 0:
        raise ValueError("all rows are equal: there is no distance to take a bandwidth from")
    return math.sqrt(float(np.median(squared)))


def blocks(n: int, width: int) -> Iterator[slice]:
    """Slices of n rows, such that a block of rows of this width fits into memory."""
    step = max(1, BLOCK_ENTRIES // max(1, width))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _to_numpy(values: np.ndarray | Tensor | float) -> np.ndarray:
    return np.asarray(values.detach().double().cpu() if isinstance(values, Tensor) else values, np.float64)


def _membership(n: int, m: int) -> np.ndarray:
    """1 for the n rows of the first set, 0 for the m of the second ``[n + m]``."""
    return np.repeat([1.0, 0.0], [n, m])


def _bandwidths(bandwidth: float | Sequence[float] | None, pooled: np.ndarray) -> np.ndarray:
    if bandwidth is None:
        return median_distance(pooled) * np.array(BANDWIDTHS)
    bandwidths = np.atleast_1d(np.asarray(bandwidth, np.float64))
    if bandwidths.ndim > 1 or len(bandwidths) == 0 or not (np.isfinite(bandwidths) & (bandwidths > 0)).all():
        raise ValueError(f"bandwidth must be one positive number or several, got {bandwidth}")
    return bandwidths


def _mean_discrepancies(pooled: np.ndarray, first: np.ndarray, bandwidths: np.ndarray) -> np.ndarray:
    """Unbiased squared discrepancies ``[P]`` for P ways ``[N, P]`` of saying which rows are in the first set.

    All come from one pass over the kernel matrix K: with s the indicator of the first set, s'Ks and the row
    sums of K give the three means.
    """
    n = first[:, 0].sum()
    m = len(first) - n
    within = np.zeros(first.shape[1])
    row_sums = np.zeros(len(pooled))
    for block in blocks(len(pooled), len(pooled)):
        squared = squared_distances(pooled[block], pooled)
        kernel = sum(np.exp(squared / (-2 * b**2)) for b in bandwidths) / len(bandwidths)
        kernel[np.arange(len(kernel)), np.arange(block.start, block.stop)] = 0.0
        row_sums[block] = kernel.sum(1)
        within += ((kernel @ first) * first[block]).sum(0)
    across = row_sums @ first - within
    rest = row_sums.sum() - within - 2 * across
    return within / (n * (n - 1)) + rest / (m * (m - 1)) - 2 * across / (n * m)


def _covariance_root(rows: np.ndarray) -> np.ndarray:
    """R with R'R the covariance of the rows."""
    return np.asarray(np.linalg.qr(rows - rows.mean(0), mode="r")) / math.sqrt(len(rows) - 1)


def _reach(rows: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each row to its k-th nearest other row ``[n]``."""
    reach = np.empty(len(rows))
    for block in blocks(len(rows), len(rows)):
        squared = squared_distances(rows[block], rows)
        squared[np.arange(len(squared)), np.arange(block.start, block.stop)] = np.inf
        reach[block] = np.partition(squared, k - 1, axis=1)[:, k - 1]
    # A row on the edge of a ball is inside, whichever way its distance was rounded.
    return reach * (1 + 1e-9)
