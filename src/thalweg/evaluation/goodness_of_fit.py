"""Whether a model is right: tests by its score, and by a classifier between its samples and the data."""

from __future__ import annotations

import math
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from sklearn.ensemble import ExtraTreesClassifier
from torch import Tensor, nn
from torch.distributions import constraints

from thalweg._torch_state import seeded
from thalweg.energies.base import Energy
from thalweg.evaluation.generation import (
    Rows,
    SignificanceTest,
    as_pair,
    as_rows,
    blocks,
    median_distance,
    squared_distances,
)
from thalweg.objectives.stein import field_and_exact_trace

# The first block is only learned from; four fifths of the rows are predicted.
N_BLOCKS = 5
# Shares of the rows that the critic learns from and is chosen by; the rest are tested.
TRAIN_SHARE, VALIDATION_SHARE = 0.5, 0.1
# Steps of the critic between two looks at the validation rows.
CRITIC_ROUND = 20


class ClassifierTest(NamedTuple):
    """How well a classifier tells samples from data, and the probability of it if they are alike.

    Attributes:
        accuracy: share of the rows that the classifier gets right, 1/2 by chance.
        p_value: probability of an accuracy as high if samples and data have one distribution.
        auroc: area under the ROC curve, 1/2 by chance.
    """

    accuracy: float
    p_value: float
    auroc: float


def kernel_stein_discrepancy(samples: Rows, score: Rows | Energy) -> float:
    """Squared kernel Stein discrepancy of samples from a model known by its score, without its log Z.

    The U-statistic of the Stein kernel [Liu 2016, thm. 3.6] made from the inverse multiquadric kernel
    (c^2 + |x - y|^2)^(-1/2) [Gorham 2017, thm. 8], c the median distance of the samples. The estimate is about
    0, and may be negative, if the samples come from the model.

    It is nearly blind to the weights of modes that lie far apart: the score at a mode doesn't depend on its
    weight [Wenliang 2020]. A missing mode goes unnoticed alike. Compare samples with data for that, by
    :func:`thalweg.evaluation.generation.mmd_test`.

    Args:
        samples: ``[n, ...]``, n >= 2.
        score: grad log p = -grad E at the samples, of their shape; or the energy. The support must be
            unbounded, or p vanish at its border.

    Raises:
        ValueError: for NaN or infinities, too few rows, samples that are all equal, a score of another
            shape, or an energy whose support is bounded or discrete.
    """
    x, s = _samples_and_score(samples, score)
    return float(_stein_sums(x, s, np.ones((len(x), 1)))[0]) / (len(x) * (len(x) - 1))


def ksd_test(
    samples: Rows, score: Rows | Energy, n_bootstrap: int = 1000, random_state: int = 0
) -> SignificanceTest:
    """Do the samples come from the model? Tested by the kernel Stein discrepancy.

    The p-value comes from a wild bootstrap, with random signs, of the U-statistic, which is degenerate under
    the model [Chwialkowski 2016, sec. 3]. It holds for independent samples and many of them: correlated draws
    of a Markov chain are rejected too often, and should be thinned first. What
    :func:`kernel_stein_discrepancy` is blind to, this test is.

    Args:
        samples: ``[n, ...]``, n >= 2.
        score: as in :func:`kernel_stein_discrepancy`.
        n_bootstrap: the least p-value is 1 / (1 + n_bootstrap).
        random_state: seed of the signs.

    Raises:
        ValueError: as :func:`kernel_stein_discrepancy`, or for less than one draw of the bootstrap.
    """
    if n_bootstrap < 1:
        raise ValueError(f"n_bootstrap must be at least 1, got {n_bootstrap}")
    x, s = _samples_and_score(samples, score)
    signs = np.random.default_rng(random_state).choice([-1.0, 1.0], (len(x), n_bootstrap))
    sums = _stein_sums(x, s, np.concatenate([np.ones((len(x), 1)), signs], axis=1))
    p_value = (1 + int((sums[1:] >= sums[0]).sum())) / (1 + n_bootstrap)
    return SignificanceTest(float(sums[0]) / (len(x) * (len(x) - 1)), p_value)


def learned_stein_test(
    samples: Rows,
    score: Rows | Energy,
    critic: nn.Module | None = None,
    n_steps: int = 200,
    learning_rate: float = 1e-3,
    random_state: int = 0,
) -> SignificanceTest:
    """Do the samples come from the model? Tested by a Stein discrepancy whose critic is learned.

    For a field f the Stein value s'f + tr grad f has mean 0 under the model, s = grad log p. The critic f
    learns from half of the rows to make that mean large beside its Sobolev norm, sqrt(E[|f|^2 + |grad f|^2]);
    a tenth of the rows says when to stop; the others are tested by Student's t of their Stein values, which is
    large where the model is wrong. The critic finds what is wrong by itself, where a kernel is given, but it
    needs rows to learn from, and time.

    What holds exactly, for independent samples from the model: given the critic, the Stein values of the rows
    tested are independent of one another and have mean 0 (the model's density times the critic must vanish at
    infinity). The p-value holds asymptotically only: no test of a mean that has any power holds its level at a
    given number of rows whatever the distribution of the values [Bahadur 1956]. At few rows what matters is
    skewness: a critic that learned the noise of its rows has values a little above 0 nearly everywhere, and far
    below 0 in a region that few rows enter. Three things keep that small. The norm bounds the critic, where the
    deviation of the values, as in the source, rewards it for being skewed. The perceptron's field is bounded.
    And the least value of all rows, those learned from included, counts once more among those tested, as a
    pseudo-value does in [Chen 2008]: it stands for the region that no row has entered, makes the test
    conservative at few rows, and loses its weight at many. At fewer than a few hundred rows a p-value far below
    0.01 still says no more than that it is small.

    It is as blind as :func:`kernel_stein_discrepancy` to the weights of modes that lie far apart.

    Args:
        samples: ``[n, ...]``, n >= 50.
        score: as in :func:`kernel_stein_discrepancy`.
        critic: smooth, maps ``[B, D]``, the rows flattened and standardised, to a field ``[B, D]``; it is
            trained in place. None is a perceptron with two layers of 64. The level of another one depends on
            how skewed its values are.
        n_steps: updates of the critic at most, by all its rows each.
        learning_rate: of Adam.
        random_state: seed of the split, the critic and the directions of its trace.

    Returns:
        t of the rows tested, and its one-sided p-value.

    Raises:
        ValueError: as :func:`kernel_stein_discrepancy`, or for fewer than 50 rows or one step.

    Source: [Grathwohl 2020b, sec. 4.2], with another norm and reference distribution.
    """
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1, got {n_steps}")
    x, s = _samples_and_score(samples, score, min_rows=50)
    order = np.random.default_rng(random_state).permutation(len(x))
    ends = [round(TRAIN_SHARE * len(x)), round((TRAIN_SHARE + VALIDATION_SHARE) * len(x))]
    # The discrepancy is the same in any linear coordinates; in these a critic learns at one rate everywhere.
    x_train = x[order[: ends[0]]]
    deviation = x_train.std(0)
    if not deviation.any():
        raise ValueError("all rows are equal: a critic can't learn from them")
    deviation[deviation == 0] = deviation.max()
    z = torch.as_tensor((x - x_train.mean(0)) / deviation, dtype=torch.float32)[order]
    s_z = torch.as_tensor(s * deviation, dtype=torch.float32)[order]
    rows = list(zip(z.tensor_split(ends), s_z.tensor_split(ends), strict=True))
    with seeded(random_state):
        critic = critic or _critic(z.shape[1])
        _train_critic(critic, rows[0], rows[1], n_steps, learning_rate)
    values = _stein_values(critic, z, s_z)
    tested = np.append(values[ends[1] :], values.min())
    statistic = float(tested.mean() / stats.sem(tested))
    return SignificanceTest(statistic, float(stats.t.sf(statistic, len(tested) - 1)))


def classifier_two_sample_test(samples: Rows, data: Rows, random_state: int = 0) -> ClassifierTest:
    """Can a classifier tell samples from data [Lopez-Paz 2017]?

    Extremely randomised trees predict the rows block by block, each from the blocks before it [Dawid 1984].
    In ordinary cross-validation every row is learned from as well as predicted, so that the hits of different
    folds are correlated and vary more than a binomial p-value takes into account. Going forward, the hits of a
    block are hypergeometric given the blocks before it, and the p-value is exact for any number of
    independent rows.

    Trees see any trace: grey values on a grid, or exact zeros, tell data from real-valued samples at once.
    Bring both onto one footing first (noise of one grey level on the data, or samples rounded likewise).

    Args:
        samples: ``[n, ...]``, n >= 10.
        data: ``[m, ...]``, m >= 10. The larger set is thinned at random to the size of the smaller.
        random_state: seed of the blocks and of the trees.

    Returns:
        accuracy, p-value and AUROC (the mean of the blocks'). The classifiers learned from 1/5 to 4/5 of the
        rows, so one that learns from all would tell them a little better.

    Raises:
        ValueError: for NaN or infinities, too few rows, or rows of different sizes.
    """
    x, y = as_pair(samples, data, min_rows=2 * N_BLOCKS)
    rng = np.random.default_rng(random_state)
    n = min(len(x), len(y))
    x, y = x[rng.permutation(len(x))[:n]], y[rng.permutation(len(y))[:n]]
    # Trees work in single precision; the centre of both sets together doesn't tell which row is whose.
    centre = np.median(np.concatenate([x, y]), axis=0)
    x, y = x - centre, y - centre
    found, hits, n_predicted, aurocs = 0, 0, 0, []
    # Distribution of the samples found among those called samples, in all blocks so far, by chance.
    chance = np.ones(1)
    for block in np.array_split(np.arange(n), N_BLOCKS)[1:]:
        start, size = block[0], len(block)
        label = np.repeat([1, 0], [size, size])
        classifier = _classifier(int(rng.integers(2**31)))
        classifier.fit(np.concatenate([x[:start], y[:start]]), np.repeat([1, 0], [start, start]))
        probability = classifier.predict_proba(np.concatenate([x[block], y[block]]))[:, 1]
        called = probability > 0.5
        chance = np.convolve(chance, stats.hypergeom.pmf(np.arange(size + 1), 2 * size, size, int(called.sum())))
        found += int(called[:size].sum())
        hits += int((called == label).sum())
        n_predicted += 2 * size
        # By its identity with the rank sum; the samples come first.
        rank_sum = stats.rankdata(probability)[:size].sum()
        aurocs.append((rank_sum - size * (size + 1) / 2) / size**2)
    # How many rows are called samples is given, so the hits rise with the samples found among them.
    p_value = min(1.0, float(chance[found:].sum()))
    return ClassifierTest(hits / n_predicted, p_value, float(np.mean(aurocs)))


def _classifier(seed: int) -> ExtraTreesClassifier:
    # Needs no scaling, is not upset by far rows, and found what a nearest-neighbour rule can't in many
    # dimensions; leaves of three rows give graded probabilities.
    return ExtraTreesClassifier(100, min_samples_leaf=3, random_state=seed)


def _critic(dimension: int) -> nn.Module:
    # A bounded field: that of an unbounded activation makes the values in the tails far more skewed.
    layers = nn.Linear(dimension, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, dimension)
    return nn.Sequential(*layers)


def _train_critic(
    critic: nn.Module,
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    n_steps: int,
    learning_rate: float,
) -> None:
    """Leaves the critic, in evaluation mode, with the weights that are best on the validation rows."""
    z, s = train
    optimizer = torch.optim.AdamW(critic.parameters(), learning_rate, weight_decay=5e-4)
    best, best_discrepancy = {}, -math.inf
    for step in range(1, n_steps + 1):
        critic.train()
        loss = -_discrepancy(critic, z, s)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % CRITIC_ROUND == 0 or step == n_steps:
            critic.eval()
            discrepancy = float(_discrepancy(critic, *validation).detach())
            if discrepancy > best_discrepancy:
                best, best_discrepancy = {k: v.clone() for k, v in critic.state_dict().items()}, discrepancy
    critic.load_state_dict(best)


def _discrepancy(critic: nn.Module, z: Tensor, s: Tensor) -> Tensor:
    """Mean of s'f + tr grad f over the rows, beside the Sobolev norm of f, with a graph.

    The deviation of the values themselves in place of the norm is least for a critic that is constant on the
    rows and makes up for it where there are none. One random direction for each row gives both the trace and
    the size of grad f [Hutchinson 1990].
    """
    z = z.detach().requires_grad_(True)
    field = critic(z)
    v = torch.randn_like(z).sign()
    (product,) = torch.autograd.grad((field * v).sum(), z, create_graph=True)
    value = (s * field + product * v).sum(1)
    return value.mean() / (field.square() + product.square()).sum(1).mean().add(1e-12).sqrt()


def _stein_values(critic: nn.Module, z: Tensor, s: Tensor) -> np.ndarray:
    """s'f + tr grad f of each row ``[n]``."""
    field, trace = field_and_exact_trace(critic, z)
    return ((s * field).sum(1) + trace).double().numpy()


def _samples_and_score(samples: Rows, score: Rows | Energy, min_rows: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Samples, shifted to lie round 0, and the score at them, both ``[n, D]``."""
    x = as_rows(samples, "samples", min_rows=min_rows)
    at_samples = _score_of_energy(samples, score) if isinstance(score, Energy) else score
    if tuple(at_samples.shape) != tuple(samples.shape):
        raise ValueError(
            f"the score must have the shape of the samples, {tuple(samples.shape)}, got {tuple(at_samples.shape)}"
        )
    return x - np.median(x, axis=0), as_rows(at_samples, "the scores", min_rows=2)


def _score_of_energy(samples: Rows, energy: Energy) -> Tensor:
    base = getattr(energy.support, "base_constraint", energy.support)
    if not isinstance(base, type(constraints.real)):
        raise ValueError(
            f"{type(energy).__name__} has the support {energy.support}: the Stein discrepancy needs an unbounded "
            "one; compare samples with data instead, by mmd_test"
        )
    x = torch.as_tensor(samples)
    state = [t for t in chain(energy.parameters(), energy.buffers()) if t.is_floating_point()]
    return -energy.value_and_gradient(x.to(state[0]) if state else x)[1]


def _stein_sums(x: np.ndarray, s: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """sum_(i != j) w_i w_j u(x_i, x_j) ``[B]`` of the Stein kernel u, for weights ``[n, B]``."""
    n, dimension = x.shape
    c2 = median_distance(x) ** 2
    s_dot_x = (s * x).sum(1)
    total = np.zeros(weights.shape[1])
    for block in blocks(n, n):
        r2 = squared_distances(x[block], x)
        q = c2 + r2
        k = q**-0.5
        k3 = k / q
        # With d = x_i - x_j: the derivative of k in x_i is -k3 d, in x_j k3 d, in both (k3 - 3 k3 d d / q).
        s_dot_d = s_dot_x[block, None] - s[block] @ x.T - x[block] @ s.T + s_dot_x
        u = s[block] @ s.T * k + k3 * (s_dot_d + dimension - 3 * r2 / q)
        u[np.arange(len(u)), np.arange(block.start, block.stop)] = 0.0
        total += ((u @ weights) * weights[block]).sum(0)
    return total
