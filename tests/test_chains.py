"""Chains of labels: every answer against all sequences written out, on batches of unequal lengths."""

import itertools

import pytest
import torch

from parts import seeded
from thalweg.energies.factors.chain import LabelChain
from thalweg.inference import chains

N_ROWS, N_ELEMENTS, N_LABELS = 4, 5, 3
KINDS = ["plain", "ends", "second", "by place", "forbidden", "second, forbidden"]
MASKS = ["all", "lengths", "holes"]


def mask_of(which: str, kind: str) -> torch.Tensor | None:
    if which == "all":
        return None
    if which == "lengths" or kind == "by place":
        return torch.arange(N_ELEMENTS) < torch.tensor([3, 5, 1, 2])[:, None]
    return torch.tensor([[0, 1, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0], [1, 0, 0, 1, 1]]).bool()


def chain_of(kind: str, which: str = "all", dtype: torch.dtype = torch.float64) -> LabelChain:
    def drawn(*shape: int) -> torch.Tensor:
        return 2 * torch.randn(shape, generator=generator, dtype=dtype)

    generator = seeded(len(kind))
    k = N_LABELS
    transitions = drawn(N_ROWS, N_ELEMENTS - 1, k, k) if kind == "by place" else drawn(k, k)
    ends = (None, None) if kind == "plain" else (drawn(k), drawn(k))
    second = drawn(k, k, k) if "second" in kind else None
    if "forbidden" in kind:
        transitions[0, 1] = transitions[2, 2] = torch.inf
        ends[0][0] = torch.inf
    return LabelChain(drawn(N_ROWS, N_ELEMENTS, k), transitions, *ends, second, mask_of(which, kind))


def written_out(chain: LabelChain, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All labels of a row, -1 at elements that are left out, and the energies, term by term by the definition."""
    kept = chain.mask[row].nonzero()[:, 0].tolist()
    # The tables of the chain as they were given: elements that are kept stand first in it.
    unary = chain.unary[row]
    labels = torch.tensor(list(itertools.product(range(chain.n_labels), repeat=len(kept)))).reshape(-1, len(kept))
    energies = sum(unary[t, labels[:, t]] for t in range(len(kept)))
    if chain.start is not None:
        energies = energies + chain.start[labels[:, 0]] + chain.end[labels[:, -1]]
    for t in range(1, len(kept)):
        table = chain.transitions[row, t - 1] if chain.transitions.dim() == 4 else chain.transitions
        energies = energies + table[labels[:, t - 1], labels[:, t]]
    for t in range(2, len(kept)):
        if chain.second is not None:
            energies = energies + chain.second[labels[:, t - 2], labels[:, t - 1], labels[:, t]]
    sequences = torch.full((len(labels), chain.mask.shape[1]), -1)
    sequences[:, kept] = labels
    return sequences, energies


@pytest.mark.parametrize("which", MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_is_that_of_all_sequences(kind: str, which: str):
    chain = chain_of(kind, which)
    best, several = chains.viterbi(chain), chains.k_best(chain, 4)
    free, p = chains.free_energy(chain), chains.marginals(chain)
    each = chains.lowest_given_each(chain)
    others = chains.lowest_other(chain, best.labels)
    for row in range(N_ROWS):
        sequences, energies = written_out(chain, row)
        torch.testing.assert_close(free[row], -torch.logsumexp(-energies, 0))
        value, order = energies.sort(stable=True)
        torch.testing.assert_close(best.energy[row], value[0])
        assert best.labels[row].tolist() == sequences[order[0]].tolist()
        n = min(4, int(value.isfinite().sum()))
        torch.testing.assert_close(several.energy[row, :n], value[:n])
        assert several.energy[row, n:].isinf().all()
        assert several.labels[row, :n].tolist() == sequences[order[:n]].tolist()
        assert (several.labels[row, n:] == -1).all()
        weights = torch.softmax(-energies, 0)
        for t in range(N_ELEMENTS):
            for k in range(N_LABELS):
                has = sequences[:, t] == k
                torch.testing.assert_close(p[row, t, k], weights[has].sum())
                least = energies[has].min() if has.any() else torch.tensor(torch.inf, dtype=torch.float64)
                torch.testing.assert_close(each[row, t, k], least)
        if value[1].isfinite():
            torch.testing.assert_close(others.energy[row], value[1])
            assert others.labels[row].tolist() == sequences[order[1]].tolist()
        else:
            assert others.energy[row].isinf()


@pytest.mark.parametrize("which", MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_energy_of_labels_is_the_sum_of_their_terms(kind: str, which: str):
    chain = chain_of(kind, which)
    sequences = [written_out(chain, row) for row in range(N_ROWS)]
    n = min(len(found) for found, _ in sequences)
    y = torch.stack([found[:n] for found, _ in sequences])
    torch.testing.assert_close(chain(y), torch.stack([energies[:n] for _, energies in sequences]))
    torch.testing.assert_close(chain(y[:, 0]), torch.stack([energies[0] for _, energies in sequences]))
    # Of padding after the last element nothing is read.
    torch.testing.assert_close(chain(torch.nn.functional.pad(y[:, 0], (0, 3), value=-1)), chain(y[:, 0]))


@pytest.mark.parametrize("kind", KINDS)
def test_draws_come_as_often_as_they_should(kind: str):
    chain = chain_of(kind, "lengths")
    n = 20_000
    drawn = chains.draw(chain, n, seeded())
    for row in (0, 2, 3):
        sequences, energies = written_out(chain, row)
        p = torch.softmax(-energies, 0)
        counts = (drawn[:, row, None] == sequences).all(-1).sum(0)
        assert int(counts.sum()) == n
        error = (p * (1 - p) / n).sqrt()
        assert ((counts / n - p).abs() <= 5 * error + 5 / n).all()


@pytest.mark.parametrize("kind", ["ends", "second", "by place"])
def test_the_gradient_of_the_free_energy_is_the_marginals(kind: str):
    chain = chain_of(kind, "lengths")
    names = [n for n in ("unary", "transitions", "start", "end", "second") if getattr(chain, n) is not None]
    tables = [getattr(chain, name).clone().requires_grad_() for name in names]

    def free(*given: torch.Tensor) -> torch.Tensor:
        return chains.free_energy(LabelChain(**dict(zip(names, given, strict=True)), mask=chain.mask))

    assert torch.autograd.gradcheck(free, tables)
    (gradient,) = torch.autograd.grad(free(*tables).sum(), tables[0])
    torch.testing.assert_close(gradient, chains.marginals(chain))


def test_known_labels_are_kept_and_others_summed_over():
    chain = chain_of("ends", "holes")
    labels = torch.tensor([[0, 2, -1, 0, -1], [-1, 1, -1, -1, 0], [-1] * 5, [1, -1, -1, -1, 2]])
    forced = chain.restricted(labels)
    best, free, p = chains.viterbi(forced), chains.free_energy(forced), chains.marginals(forced)
    for row in range(N_ROWS):
        sequences, energies = written_out(chain, row)
        agrees = ((labels[row] == -1) | ~chain.mask[row] | (sequences == labels[row])).all(1)
        torch.testing.assert_close(free[row], -torch.logsumexp(-energies[agrees], 0))
        torch.testing.assert_close(best.energy[row], energies[agrees].min())
        known = (labels[row] != -1) & chain.mask[row]
        torch.testing.assert_close(p[row][known], torch.nn.functional.one_hot(labels[row][known], 3).double())


def test_a_cost_for_each_wrong_label_is_taken_off():
    chain = chain_of("ends", "lengths")
    truth = chains.viterbi(chain).labels
    other = chains.k_best(chain, 3).labels[:, 2]
    wrong = ((other != truth) & chain.mask).sum(1)
    torch.testing.assert_close(chain.augmented(truth, 0.7)(other), chain(other) - 0.7 * wrong)


def test_temperatures_lead_from_the_lowest_energy_to_the_uniform_distribution():
    chain = chain_of("second", "lengths")
    cold = chains.free_energy(chain.tempered(0.01)) * 0.01
    lowest = chains.viterbi(chain).energy
    # Between the two lies the log of the number of sequences, times the temperature.
    assert ((cold <= lowest + 1e-9) & (cold >= lowest - 0.01 * N_ELEMENTS * torch.tensor(3.0).log())).all()
    hot = chains.marginals(chain.tempered(1e9))
    torch.testing.assert_close(hot[chain.mask], torch.full_like(hot[chain.mask], 1 / 3), atol=1e-6, rtol=0)


def test_ties_give_one_of_the_lowest_and_all_of_them_among_the_best():
    chain = LabelChain(torch.zeros(2, 3, 2), torch.zeros(2, 2))
    best = chains.viterbi(chain)
    assert (best.energy == 0).all()
    several = chains.k_best(chain, 9)
    assert {tuple(labels) for labels in several.labels[0, :8].tolist()} == set(itertools.product([0, 1], repeat=3))
    assert several.energy[0, 8].isinf()


def test_far_apart_scores_do_not_underflow():
    # In single precision exp(-200) is nothing; the one way through costs that much at every element.
    unary = torch.zeros(1, 40, 2)
    unary[..., 1] = -300.0
    transitions = torch.tensor([[0.0, 200.0], [400.0, 500.0]])
    for dtype in (torch.float32, torch.float64):
        chain = LabelChain(unary.to(dtype), transitions.to(dtype))
        _, energies = _by_recursion(chain)
        torch.testing.assert_close(chains.free_energy(chain)[0], energies, rtol=1e-5, atol=1e-5)
        assert chains.marginals(chain).isfinite().all()
        table = chain.transitions.clone().requires_grad_()
        chains.free_energy(LabelChain(chain.unary, table)).sum().backward()
        torch.testing.assert_close(table.grad.sum(), torch.tensor(39.0, dtype=dtype), rtol=1e-4, atol=1e-3)


def _by_recursion(chain: LabelChain) -> tuple[None, torch.Tensor]:
    alpha = -chain.unary[0, 0]
    for t in range(1, chain.unary.shape[1]):
        alpha = torch.logsumexp(alpha[:, None] - chain.transitions, 0) - chain.unary[0, t]
    return None, -torch.logsumexp(alpha, 0)


def test_what_does_not_fit_is_refused():
    unary = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"transitions must be \[4, 4\]"):
        LabelChain(unary, torch.zeros(3, 3))
    with pytest.raises(ValueError, match="row 1 has no element"):
        LabelChain(unary, torch.zeros(4, 4), mask=torch.tensor([[1, 0, 0], [0, 0, 0]]).bool())
    with pytest.raises(ValueError, match="at its front"):
        LabelChain(unary, torch.zeros(2, 2, 4, 4), mask=torch.tensor([[1, 0, 1], [1, 1, 1]]).bool())
    impossible = LabelChain(unary, torch.full((4, 4), torch.inf))
    for ask in (chains.viterbi, chains.marginals, chains.draw):
        with pytest.raises(ValueError, match="row 0 has no labels that are allowed"):
            ask(impossible, *([1] if ask is chains.draw else []))
    assert (chains.free_energy(impossible) == torch.inf).all()
    with pytest.raises(ValueError, match="at least 1"):
        chains.k_best(impossible, 0)
