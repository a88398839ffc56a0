"""Factor graphs: message passing against all configurations written out, and what it says where it's not exact."""

import itertools

import pytest
import torch
from torch import nn

from parts import seeded
from thalweg.energies.factors.chain import LabelChain
from thalweg.energies.factors.graph import FactorEnergy, FactorGraph
from thalweg.inference import chains
from thalweg.inference.exhaustive import all_configurations, marginals_of
from thalweg.inference.message_passing import draw, max_product, sum_product

# Name: how many values each variable has, and the scopes of the factors.
FORESTS = {
    "one variable": ([3], [(0,)]),
    "star": ([2, 3, 4, 2], [(0, 1), (0, 2), (0, 3), (1,)]),
    "chain": ([3, 3, 3, 3], [(0, 1), (1, 2), (2, 3), (0,), (3,)]),
    "triples": ([2, 3, 2, 2, 3], [(0, 1, 2), (2, 3, 4), (4,)]),
    "two trees and a lone variable": ([2, 2, 3, 2, 2], [(1, 0), (3, 2), (2,)]),
}


def graph_of(name: str, n_rows: int | None = None, seed: int = 0, forbidden: bool = False) -> FactorGraph:
    n_values, scopes = FORESTS[name]
    generator = seeded(seed)
    factors = []
    for number, scope in enumerate(scopes):
        # Some tables are shared by all rows.
        rows = [] if n_rows is None or number == 1 else [n_rows]
        shape = [*rows, *(n_values[v] for v in scope)]
        table = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
        if forbidden and len(scope) > 1:
            table[..., 0, 0] = torch.inf
        factors.append((scope, table))
    return FactorGraph(n_values, factors)


@pytest.mark.parametrize("n_rows", [None, 3])
@pytest.mark.parametrize("forbidden", [False, True])
@pytest.mark.parametrize("name", FORESTS)
def test_message_passing_is_exact_without_cycles(name: str, forbidden: bool, n_rows: int | None):
    graph = graph_of(name, n_rows, forbidden=forbidden)
    assert graph.is_forest
    found = all_configurations(graph)
    beliefs, lowest = sum_product(graph), max_product(graph)
    assert beliefs.exact
    assert lowest.exact
    assert beliefs.converged
    torch.testing.assert_close(beliefs.free_energy, -torch.logsumexp(-found.energy, -1))
    torch.testing.assert_close(lowest.energy, found.energy.amin(-1))
    assert torch.equal(lowest.values, found.values[found.energy.argmin(-1)])
    p = torch.softmax(-found.energy, -1)
    for v, marginal in enumerate(marginals_of(graph, found)):
        torch.testing.assert_close(beliefs.marginals[:, v, : graph.n_values[v]], marginal)
        assert (beliefs.marginals[:, v, graph.n_values[v] :] == 0).all()
        for k in range(graph.n_values[v]):
            least = found.energy[:, found.values[:, v] == k].amin(-1)
            torch.testing.assert_close(lowest.lowest_given_each[:, v, k], least)
    for factor, joint in zip(graph.factors, beliefs.factor_marginals, strict=True):
        for values in itertools.product(*(range(graph.n_values[v]) for v in factor.scope)):
            has = (found.values[:, factor.scope] == torch.tensor(values)).all(-1)
            torch.testing.assert_close(joint[(slice(None), *values)], p[:, has].sum(-1))


@pytest.mark.parametrize("name", FORESTS)
def test_the_energy_is_the_sum_of_the_tables(name: str):
    graph = graph_of(name, 3)
    y = torch.stack([torch.randint(k, (3, 5), generator=seeded()) for k in graph.n_values], -1)
    for row, candidate in itertools.product(range(3), range(5)):
        values = y[row, candidate].tolist()
        total = 0.0
        for scope, table in graph.factors:
            own = table[row] if table.dim() > len(scope) else table
            total += float(own[tuple(values[v] for v in scope)])
        assert float(graph(y)[row, candidate]) == pytest.approx(total)


@pytest.mark.parametrize("name", ["star", "triples"])
def test_the_gradient_of_the_free_energy_is_the_factors_marginals(name: str):
    graph = graph_of(name)
    tables = [table.requires_grad_() for _, table in graph.factors]
    beliefs = sum_product(graph)
    gradients = torch.autograd.grad(beliefs.free_energy.sum(), tables)
    for gradient, joint in zip(gradients, beliefs.factor_marginals, strict=True):
        torch.testing.assert_close(gradient, joint[0])


@pytest.mark.parametrize("name", ["star", "triples"])
def test_draws_come_as_often_as_they_should(name: str):
    graph, n = graph_of(name), 4000
    found = all_configurations(graph)
    p = torch.softmax(-found.energy[0], -1)
    drawn = draw(graph, n, seeded())[:, 0]
    counts = (drawn[:, None] == found.values).all(-1).sum(0)
    assert ((counts / n - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 5 / n).all()


def test_ties_give_a_configuration_and_no_mixture():
    # Two variables must agree; both ways cost the same, and each alone would be a tie.
    apart = torch.tensor([[0.0, 5.0], [5.0, 0.0]])
    graph = FactorGraph([2, 2, 2], [((0, 1), apart), ((1, 2), apart)])
    lowest = max_product(graph)
    assert float(lowest.energy) == 0
    assert len(set(lowest.values[0].tolist())) == 1


def test_values_that_are_forced_stay():
    graph = graph_of("star", 2)
    values = torch.tensor([[1, -1, -1, 0], [-1, 2, -1, -1]])
    forced = graph.restricted(values)
    found = all_configurations(graph)
    agrees = ((values[:, None] == -1) | (found.values == values[:, None])).all(-1)
    energy = found.energy.masked_fill(~agrees, torch.inf)
    torch.testing.assert_close(sum_product(forced).free_energy, -torch.logsumexp(-energy, -1))
    torch.testing.assert_close(max_product(forced).energy, energy.amin(-1))


def test_a_chain_of_labels_is_a_factor_graph():
    generator, n, k = seeded(), 6, 3
    unary = torch.randn(2, n, k, generator=generator)
    table = torch.randn(k, k, generator=generator)
    chain = LabelChain(unary, table)
    graph = FactorGraph(
        [k] * n, [*(((t,), unary[:, t]) for t in range(n)), *(((t - 1, t), table) for t in range(1, n))]
    )
    torch.testing.assert_close(sum_product(graph).free_energy, chains.free_energy(chain))
    torch.testing.assert_close(sum_product(graph).marginals, chains.marginals(chain))
    assert torch.equal(max_product(graph).values, chains.viterbi(chain).labels)


def grid(strength: float, seed: int = 0) -> FactorGraph:
    """3 x 3 spins that like to agree, each with a field of its own."""
    generator = seeded(seed)
    pairs = [(3 * i + j, 3 * i + j + 1) for i in range(3) for j in range(2)]
    pairs += [(3 * i + j, 3 * i + j + 3) for i in range(2) for j in range(3)]
    agree = strength * torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    fields = [((v,), torch.randn(2, generator=generator)) for v in range(9)]
    return FactorGraph([2] * 9, [*((pair, agree) for pair in pairs), *fields])


def test_with_cycles_it_is_near_where_coupling_is_weak_and_says_that_it_is_not_exact():
    graph = grid(0.2)
    assert not graph.is_forest
    found = all_configurations(graph)
    beliefs, lowest = sum_product(graph), max_product(graph)
    assert not beliefs.exact
    assert not lowest.exact
    assert beliefs.converged
    exact = torch.stack(marginals_of(graph, found), 1)
    torch.testing.assert_close(beliefs.marginals, exact, atol=0.02, rtol=0)
    torch.testing.assert_close(beliefs.free_energy, -torch.logsumexp(-found.energy, -1), atol=0.02, rtol=0)
    assert float(lowest.energy) == pytest.approx(float(found.energy.min()))
    # Where variables in a cycle can't all have their way, it is far off, which is why it must say so.
    differ = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    frustrated = FactorGraph([2] * 3, [((0, 1), differ), ((1, 2), differ), ((2, 0), differ)])
    error = sum_product(frustrated).free_energy + torch.logsumexp(-all_configurations(frustrated).energy, -1)
    assert error.abs() > 0.1


def test_undamped_messages_may_never_rest():
    # An odd cycle of variables that must differ: undamped, messages swing to and fro.
    differ = torch.tensor([[6.0, -6.0], [-6.0, 6.0]])
    lean = torch.tensor([0.3, 0.0])
    graph = FactorGraph([2] * 3, [((0, 1), differ), ((1, 2), differ), ((2, 0), differ), ((0,), lean)])
    assert not sum_product(graph, damping=0.0, max_rounds=100).converged
    assert sum_product(graph, damping=0.5).converged


def test_tables_from_a_network_and_shared_tables_add_up():
    network = nn.Linear(2, 3 + 6)
    energy = FactorEnergy(network, [3, 2], [(0,), (0, 1)], shared=[(1,)])
    assert energy.n_outputs == 9
    with torch.no_grad():
        energy.tables[0].copy_(torch.tensor([0.5, -0.5]))
    x = torch.randn(4, 2, generator=seeded())
    out = network(x)
    y = torch.tensor([[0, 1], [2, 0], [1, 1], [0, 0]])
    expected = [out[b, i] + out[b, 3 + 2 * i + j] + energy.tables[0][j] for b, (i, j) in enumerate(y.tolist())]
    torch.testing.assert_close(energy(x, y), torch.stack(expected))
    beliefs = sum_product(energy.given(x))
    (energy(x, y) - beliefs.free_energy).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in energy.parameters())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="name one or more of the variables"):
        FactorGraph([2, 2], [((0, 2), torch.zeros(2, 2))])
    with pytest.raises(ValueError, match=r"needs a table \[2, 3\], or \[rows, 2, 3\]"):
        FactorGraph([2, 3], [((0, 1), torch.zeros(3, 2))])
    with pytest.raises(ValueError, match="3 and 4 rows"):
        FactorGraph([2, 2], [((0,), torch.zeros(3, 2)), ((1,), torch.zeros(4, 2))])
    many = FactorGraph([2] * 60, [((v, v + 1), torch.zeros(2, 2)) for v in range(59)])
    with pytest.raises(ValueError, match=r"too many for exhaustive search.*exact here"):
        all_configurations(many)
    with pytest.raises(ValueError, match="approximate: the graph has cycles"):
        all_configurations(grid(1.0), most=100)
    with pytest.raises(ValueError, match="only without cycles"):
        draw(grid(1.0), 1)
    impossible = FactorGraph([2], [((0,), torch.full((2,), torch.inf))])
    with pytest.raises(ValueError, match="no configuration is allowed"):
        max_product(impossible)
