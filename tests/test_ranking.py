"""Losses of lists against loops over their pairs, and figures of orders against scikit-learn's."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, ndcg_score
from torch import nn

from parts import perturbed, seeded
from thalweg.energies import ModuleEnergy, RankingMembers
from thalweg.evaluation import (
    average_precision_of_groups,
    mean_over_groups,
    ndcg_of_groups,
    reciprocal_rank_of_groups,
    relevance_gains,
)
from thalweg.objectives import (
    Batch,
    LambdaRanking,
    PairwiseRanking,
    PlackettLuceRanking,
    SoftmaxRanking,
    ndcg_changes,
)

OBJECTIVES = {
    "log": lambda: PairwiseRanking("log"),
    "hinge": lambda: PairwiseRanking("hinge"),
    "square-exponential": lambda: PairwiseRanking("square-exponential"),
    "lambda": LambdaRanking,
    "softmax": SoftmaxRanking,
    "Plackett-Luce": PlackettLuceRanking,
}
every_objective = pytest.mark.parametrize("name", OBJECTIVES)


class FirstColumn(nn.Module):
    """The energy of an item is its only number."""

    def forward(self, x):
        return x[..., 0]


def loss_of(name, energies, relevance):
    batch = Batch(energies[..., None], relevance)
    return OBJECTIVES[name]().per_row(ModuleEnergy(FirstColumn(), 1), batch, None)


def lists(seed=0):
    """Three lists of at most six items; of the last one all are equally relevant."""
    energies = torch.randn(3, 6, generator=seeded(seed), dtype=torch.float64)
    relevance = torch.tensor([[0, 2, 1, 0, 2, 3], [1, 0, 0, -1, -1, -1], [1, 1, -1, -1, -1, -1]]).double()
    return energies, relevance


def discount(rank):
    return 1 / math.log2(rank + 1)


def by_hand(name, energies, relevance):
    """The loss of one list without padding, by loops."""
    e, r = energies.tolist(), relevance.tolist()
    pairs = [(i, j) for i, j in itertools.permutations(range(len(r)), 2) if r[i] > r[j]]
    if not pairs:
        return 0.0
    if name in ("log", "hinge", "square-exponential"):
        shape = {
            "log": lambda a, b: math.log(1 + math.exp(a - b)),
            "hinge": lambda a, b: max(0.0, 1 + a - b),
            "square-exponential": lambda a, b: a**2 + math.exp(-b),
        }[name]
        return sum(shape(e[i], e[j]) for i, j in pairs) / len(pairs)
    if name == "lambda":
        return sum(change_by_swapping(e, r, i, j) * math.log(1 + math.exp(e[i] - e[j])) for i, j in pairs)
    if name == "softmax":
        gain = [2**v - 1 for v in r]
        z = sum(math.exp(-v) for v in e)
        return -sum(g / sum(gain) * math.log(math.exp(-v) / z) for g, v in zip(gain, e, strict=True))
    drawn = []
    for i in {i for i, _ in pairs}:
        left = [i, *(j for k, j in pairs if k == i)]
        drawn.append(-math.log(math.exp(-e[i]) / sum(math.exp(-e[j]) for j in left)))
    return sum(drawn) / len(drawn)


def change_by_swapping(energies, relevance, i, j):
    """|NDCG of the order less NDCG of that with two items swapped|, each by scikit-learn."""
    scores = -np.array(energies)
    swapped = scores.copy()
    swapped[[i, j]] = scores[[j, i]]
    truth = [2 ** np.array(relevance) - 1]
    return abs(ndcg_score(truth, [scores]) - ndcg_score(truth, [swapped]))


@every_objective
def test_a_loss_is_that_of_a_loop_over_its_pairs(name):
    energies, relevance = lists()
    found = loss_of(name, energies, relevance)
    for k, n in enumerate((6, 3, 2)):
        wanted = by_hand(name, energies[k, :n], relevance[k, :n])
        assert float(found[k]) == pytest.approx(wanted, rel=1e-9), k


@every_objective
def test_neither_the_order_of_the_items_nor_padding_changes_a_loss(name):
    energies, relevance = lists()
    found = loss_of(name, energies, relevance)
    shuffle = torch.randperm(6, generator=seeded(1))
    torch.testing.assert_close(loss_of(name, energies[:, shuffle], relevance[:, shuffle]), found)
    wide = (
        torch.cat([energies, torch.full((3, 4), 1e3)], 1),
        torch.cat([relevance, torch.full((3, 4), torch.nan)], 1),
    )
    torch.testing.assert_close(loss_of(name, *wide), found)


@every_objective
def test_better_items_are_pulled_down_and_worse_ones_pushed_up(name):
    """Of two items, wherever they lie; under the square-exponential where the energies are positive."""
    for gap in (-2.0, 0.1, 3.0):
        energies = torch.tensor([[2.5, 2.5 + gap]], dtype=torch.float64, requires_grad=True)
        (grad,) = torch.autograd.grad(loss_of(name, energies, torch.tensor([[1.0, 0.0]])).sum(), energies)
        if name == "hinge" and gap > 1:
            assert (grad == 0).all()
        else:
            assert grad[0, 0] > 0
            assert grad[0, 1] < 0


@every_objective
def test_equal_relevance_makes_no_pair(name):
    energies = torch.randn(2, 4, generator=seeded(3), requires_grad=True)
    loss = loss_of(name, energies, torch.tensor([[2.0, 2, 2, 2], [0, 0, -1, -1]]))
    assert (loss == 0).all()
    (grad,) = torch.autograd.grad(loss.sum(), energies)
    assert (grad == 0).all()
    if name != "softmax":
        # Two items of one relevance: as if each stood alone beside the worse one.
        both = loss_of(name, torch.tensor([[0.3, 0.3, 1.0]]), torch.tensor([[1.0, 1, 0]]))
        one = loss_of(name, torch.tensor([[0.3, 1.0]]), torch.tensor([[1.0, 0]]))
        if name != "lambda":
            torch.testing.assert_close(both, one)


def test_the_softmax_is_lowest_where_probabilities_are_the_gains():
    relevance = torch.tensor([[2.0, 1, 0]])
    energies = torch.tensor([[-math.log(3.0), 0.0, 30.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(loss_of("softmax", energies, relevance).sum(), energies)
    assert grad.abs().max() < 1e-6


def test_weights_are_the_changes_of_ndcg():
    energies, relevance = lists(4)
    found = ndcg_changes(energies[None], relevance.clamp_min(0), relevance >= 0)[0]
    for k, n in enumerate((6, 3)):
        for i, j in itertools.permutations(range(n), 2):
            wanted = change_by_swapping(energies[k, :n].tolist(), relevance[k, :n].tolist(), i, j)
            assert float(found[k, i, j]) == pytest.approx(wanted, abs=1e-12)


@every_objective
def test_members_learn_each_by_a_loss_of_its_own(name):
    members = perturbed(RankingMembers(4, 3, (5,)))
    x, (_, relevance) = torch.randn(3, 6, 4, generator=seeded(6)), lists()
    found = OBJECTIVES[name]().per_row(members, Batch(x, relevance.float()), None)
    assert found.shape == (3, 3)
    energies = members.member_energies(x.reshape(-1, 4)).reshape(3, 3, 6)
    for m in range(3):
        torch.testing.assert_close(found[:, m], loss_of(name, energies[m], relevance.float()))
    torch.testing.assert_close(members(x), energies.mean(0))


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3), r"x must be \[lists, items, D\]"),
        (torch.zeros(2, 3, 1), torch.zeros(2, 4), r"x must be \[lists, items, D\]"),
        (torch.zeros(2, 3, 1), torch.zeros(3, 3), "one for each row"),
        (torch.zeros(2, 3, 1), torch.ones(2, 3), "nothing to learn from"),
    ],
)
def test_lists_that_can_not_be_are_refused(x, y, words):
    with pytest.raises(ValueError, match=words):
        LambdaRanking().check(ModuleEnergy(FirstColumn(), 1), Batch(x, y))


def test_an_energy_that_is_not_of_items_is_refused():
    with pytest.raises(ValueError, match="one energy for each item"):
        LambdaRanking().check(ModuleEnergy(nn.Identity(), 1), Batch(torch.zeros(2, 2, 1), torch.eye(2)))
    with pytest.raises(ValueError, match="shape must be one of log, hinge"):
        PairwiseRanking("cube")


# -- figures ------------------------------------------------------------------------------------------------


def some_groups(n_values, n=400, n_groups=40, seed=0):
    """Groups whose rows stand in any order, with scores of few or many values."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, n_groups, n)
    return rng.integers(0, 5, n) * (rng.uniform(size=n) < 0.5), rng.integers(0, n_values, n) / 7, groups


@pytest.mark.parametrize("k", [None, 1, 3, 10])
@pytest.mark.parametrize("n_values", [4, 10**6])
def test_ndcg_is_that_of_scikit_learn(n_values, k):
    relevance, scores, groups = some_groups(n_values)
    found = ndcg_of_groups(relevance, scores, groups, k)
    for g in range(40):
        own = groups == g
        if relevance[own].any():
            wanted = ndcg_score([relevance_gains(relevance[own])], [scores[own]], k=k)
            assert found[g] == pytest.approx(wanted, abs=1e-12)
        else:
            assert np.isnan(found[g])


def test_precision_is_that_of_scikit_learn():
    relevance, scores, groups = some_groups(10**6)
    found = average_precision_of_groups(relevance, scores, groups)
    for g in range(40):
        own = groups == g
        if relevance[own].any():
            assert found[g] == pytest.approx(average_precision_score(relevance[own] > 0, scores[own]), abs=1e-12)
        else:
            assert np.isnan(found[g])


@pytest.mark.parametrize("figure", [ndcg_of_groups, average_precision_of_groups, reciprocal_rank_of_groups])
def test_ties_count_as_the_mean_over_their_orders(figure):
    relevance = np.array([0, 2, 0, 1, 0, 1])
    scores = np.array([3.0, 1, 1, 1, 1, 0])
    groups = np.zeros(6, int)
    found = figure(relevance, scores, groups)
    orders = []
    for order in itertools.permutations(range(4)):
        broken = scores.copy()
        broken[1:5] += 0.01 * np.array(order)
        orders.append(figure(relevance, broken, groups)[0])
    assert found[0] == pytest.approx(np.mean(orders), abs=1e-12)


def test_the_reciprocal_rank_is_that_of_the_first_relevant_row():
    relevance, scores, groups = some_groups(10**6, seed=2)
    found = reciprocal_rank_of_groups(relevance, scores, groups)
    for g in range(40):
        own = groups == g
        first = np.flatnonzero(relevance[own][np.argsort(-scores[own])] > 0)
        assert found[g] == (
            pytest.approx(1 / (first[0] + 1)) if len(first) else pytest.approx(np.nan, nan_ok=True)
        )


def test_means_leave_out_groups_without_a_relevant_row():
    relevance, scores, groups = np.array([1, 0, 0, 0, 0, 1]), np.arange(6.0), np.array([0, 0, 1, 1, 2, 2])
    ndcg = ndcg_of_groups(relevance, scores, groups)
    found = mean_over_groups(ndcg)
    assert np.isnan(ndcg[1])
    assert found.n_groups == 2
    assert found.value == pytest.approx((discount(2) + 1) / 2)
    assert found.standard_error == pytest.approx((1 - discount(2)) / 2)
    assert mean_over_groups(ndcg[1:2]).n_groups == 0
