"""Conditionals of every column given any others: integrals, gaps, draws, and truths known in closed form."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch

from parts import any_order_density, seeded
from thalweg import EnergyDensity
from thalweg.energies import AnyOrderDensity, Column, ConditionalBlock, GaussianMixtureEnergy, RowEncoding
from thalweg.energies.densities.any_order import mixture_conditional
from thalweg.estimators._any_order import HeldOutColumns, build, folds_of
from thalweg.objectives import Batch, MaskedLikelihood
from thalweg.objectives.masked_likelihood import given_columns

LEVELS = Column(n_levels=3)
SMOOTH = Column(edges=(-1.0, 0.0, 1.0))
GRID = torch.linspace(-12, 12, 4801)


def rows_of(*columns):
    return torch.stack([torch.as_tensor(c, dtype=torch.float32).expand(len(GRID)) for c in columns], 1)


@pytest.mark.parametrize(
    "column",
    [
        SMOOTH,
        Column(curved=True),
        Column(cell=0.5),
        Column(atoms=(0.5,)),
        Column(atoms=(0.5,), cell=0.2),
        Column(atoms=(0.5,), cell=0.2, curved=True),
        Column(atoms=(-0.5,), limits=(-0.5, None)),
    ],
    ids=["smooth", "curved", "rounded", "atom", "rounded atom", "curved and rounded atom", "lower limit"],
)
@torch.no_grad()
def test_each_conditional_integrates_to_one_beside_its_atoms(column):
    density = any_order_density([LEVELS, column])
    for level in range(3):
        x = rows_of(level, torch.sinh(GRID) if column.curved else GRID)
        p = density.conditional_log_prob(x, 1, torch.tensor([True, False])).exp().double()
        total = float(torch.trapezoid(p, x[:, 1].double()))
        if column.atoms and not column.cell:
            atom = torch.tensor([[float(level), column.atoms[0]]])
            total += float(density.conditional_log_prob(atom, 1, torch.tensor([True, False])).exp())
        assert total == pytest.approx(1, abs=6e-3)
        if column.limits[0] is not None:
            assert (p[GRID < -0.5 - 1e-3] == 0).all()


@torch.no_grad()
def test_the_joint_density_is_the_product_of_the_factors_and_sums_to_one():
    density = any_order_density([LEVELS, SMOOTH, Column(n_levels=2, log_unseen=math.log(0.1))])
    total = 0.0
    # -1 is a level that training did not show.
    for first, last in itertools.product(range(3), (0, 1, -1)):
        x = rows_of(first, GRID, last)
        joint = density.log_prob(x)
        torch.testing.assert_close(joint, density.column_log_prob(x).sum(1))
        total += float(torch.trapezoid(joint.exp().double(), GRID.double()))
    assert total == pytest.approx(1, abs=1e-4)
    unseen = density.column_log_prob(torch.tensor([[0.0, 0.0, -1.0]]))[0, 2]
    assert float(unseen) == pytest.approx(math.log(0.1))


@torch.no_grad()
def test_what_is_unknown_is_no_factor_and_nobody_is_given_it():
    density = any_order_density([SMOOTH, LEVELS, SMOOTH])
    whole = torch.tensor([[0.3, 2.0, -0.7]])
    gap = torch.tensor([[0.3, torch.nan, -0.7]])
    found = density.column_log_prob(gap)[0]
    assert found[1] == 0
    first_only = density.conditional_log_prob(whole, 2, torch.tensor([True, False, False]))
    torch.testing.assert_close(found[2:], first_only)
    assert float(density.log_prob(torch.full((1, 3), torch.nan))) == 0
    # A level that a column has spreads over its cell: a density in the column's units.
    cells = any_order_density([Column(n_levels=3, cell=0.5)])
    levels = torch.arange(3.0)[:, None]
    assert float(cells.log_prob(levels).exp().sum()) == pytest.approx(1 / 0.5, rel=1e-5)


@torch.no_grad()
def test_draws_follow_the_densities():
    """Levels as often as their masses say, numbers below a place as often as the integral: within 5 deviations."""
    density = any_order_density([LEVELS, SMOOTH, Column(atoms=(0.5,))])
    n = 20_000
    drawn = density.draw(n, seeded())
    masses = density.masses(torch.full((1, 3), torch.nan), 0, torch.zeros(3, dtype=torch.bool))[0]
    for level in range(3):
        share, mass = float((drawn[:, 0] == level).double().mean()), float(masses[level])
        assert abs(share - mass) < 5 * math.sqrt(mass * (1 - mass) / n)
    known = torch.tensor([[2.0, torch.nan, 0.5]]).repeat(n, 1)
    filled = density.complete(known, seeded(1))
    assert (filled[:, [0, 2]] == known[:, [0, 2]]).all()
    p = density.conditional_log_prob(rows_of(2.0, GRID, 0.5), 1, torch.tensor([True, False, True])).exp().double()
    below = torch.cumulative_trapezoid(p, GRID.double())
    for place in (-1.0, 0.0, 1.0):
        mass = float(below[int((place > GRID).sum()) - 1])
        share = float((filled[:, 1] < place).double().mean())
        assert abs(share - mass) < 5 * math.sqrt(max(mass * (1 - mass), 1e-3) / n) + 1e-3
    at = density.conditional_log_prob(torch.tensor([[2.0, 0.1, 0.5]]), 2, torch.tensor([True, True, False])).exp()
    filled = density.complete(torch.tensor([[2.0, 0.1, torch.nan]]).repeat(n, 1), seeded(2))
    assert abs(float((filled[:, 2] == 0.5).double().mean()) - float(at)) < 5 * math.sqrt(0.25 / n)


def test_conditionals_of_a_mixture_given_any_coordinates_are_those_of_its_gaussians():
    """One Gaussian: the regression on what is known; several, given those before: the mixture's own."""
    rng = np.random.default_rng(0)
    factor = np.tril(rng.normal(size=(4, 4))) + 2 * np.eye(4)
    mean, covariance = rng.normal(size=4), factor @ factor.T
    one = GaussianMixtureEnergy(torch.tensor(mean)[None], torch.tensor(factor)[None])
    x = torch.tensor(rng.normal(size=(6, 4)))
    known = torch.tensor(rng.uniform(size=(6, 4)) < 0.5)
    known[0], known[:, 2] = False, False
    _, means, stds = mixture_conditional(one, x, 2, known)
    for row, k in enumerate(known.numpy()):
        solved = np.linalg.solve(covariance[np.ix_(k, k)], covariance[k, 2]) if k.any() else np.zeros(0)
        assert float(means[row, 0]) == pytest.approx(mean[2] + solved @ (x[row].numpy() - mean)[k])
        assert float(stds[row, 0]) == pytest.approx(np.sqrt(covariance[2, 2] - covariance[2, k] @ solved))
    factors = torch.tensor(np.tril(rng.normal(size=(3, 4, 4))) + 2 * np.eye(4))
    several = GaussianMixtureEnergy(torch.tensor(rng.normal(size=(3, 4))), factors, torch.tensor([0.2, 0.3, 0.5]))
    before = torch.tensor([True, True, False, False]).expand(6, 4)
    log_weights, means, stds = mixture_conditional(several, x, 2, before)
    z = (x[:, 2, None] - means) / stds
    found = torch.logsumexp(log_weights - 0.5 * z.square() - stds.log(), 1) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(found, several.conditional_log_prob(x, 2), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_mixture_has_a_share_beside_atoms_and_none_at_them():
    """log p at an atom: the networks' share of its mass; spread over the cell, where the column is rounded."""
    share, given = 0.3, torch.zeros(1, dtype=torch.bool)
    x = torch.tensor([[0.5], [1.2]])
    other = torch.tensor([0.5, 1.2]).square().mul(-0.5).exp() / math.sqrt(2 * math.pi)
    for cell in (0.0, 0.1):
        alone = any_order_density([Column(atoms=(0.5,), cell=cell)])
        mixture = GaussianMixtureEnergy(torch.zeros(1, 1).double(), torch.ones(1, 1, 1).double())
        both = AnyOrderDensity(alone.columns, list(alone.blocks), [0], mixture, torch.tensor([[share]] * 3))
        found, own = (d.conditional_log_prob(x, 0, given).exp() for d in (both, alone))
        wanted = (1 - share) * own + share * other * torch.tensor([1.0 if cell else 0.0, 1.0])
        torch.testing.assert_close(found, wanted)


@torch.no_grad()
def test_the_conditional_of_a_cell_is_that_of_the_density():
    """As a conditional density of its own, with the Gaussian mixture's share, curved or not."""
    for curved in (False, True):
        alone = any_order_density([SMOOTH, Column(curved=curved), LEVELS])
        mixture = GaussianMixtureEnergy(
            torch.zeros(1, 2).double(), torch.tensor([[[1.0, 0.0], [0.5, 1.0]]]).double()
        )
        shares = torch.tensor([[0.0, 0.4, 0.0], [0.0, 0.7, 0.0], [0.0, 0.2, 0.0]])
        density = AnyOrderDensity(alone.columns, list(alone.blocks), [0, 1], mixture, shares)
        x, given = torch.tensor([[0.3, 0.8, 1.0], [-2.0, 0.1, torch.nan]]), torch.tensor([True, False, True])
        cell, inputs = density.cell(x, 1, given)
        y = torch.asinh(x[:, 1]) if curved else x[:, 1]
        slope = -0.5 * torch.log1p(x[:, 1].square()) if curved else 0.0
        found = -cell(inputs, y[:, None, None])[:, 0] + slope
        torch.testing.assert_close(found, density.conditional_log_prob(x, 1, given), rtol=1e-4, atol=1e-5)


# -- training ---------------------------------------------------------------------------------------------


def test_columns_are_given_those_before_them_or_some_at_random():
    columns = [SMOOTH, LEVELS, SMOOTH, SMOOTH]
    block = ConditionalBlock([0, 2, 3], columns, RowEncoding(columns), 2, (4,))
    given = given_columns(block, 4000, 0.5, seeded())
    for k, d in enumerate(block.which):
        assert (given[k, 2000:] == torch.tensor([float(e < d) for e in range(4)])).all()
    # Of random sizes: each column in half of the rows, and all together in a fifth (the sizes are uniform).
    at_random = given[0, :2000]
    assert (at_random.mean(0) - 0.5).abs().max() < 5 * math.sqrt(0.25 / 2000)
    assert abs(float(at_random.prod(1).mean()) - 0.2) < 5 * math.sqrt(0.16 / 2000)


def test_a_network_learns_from_no_row_of_its_own_fold_and_from_no_gap():
    columns = [SMOOTH, LEVELS, SMOOTH]
    block = ConditionalBlock([0, 2], columns, RowEncoding(columns), 2, (4,))
    x = torch.tensor([[0.1, 1.0, torch.nan, 0.0], [0.5, torch.nan, 0.3, 1.0]])
    loss = MaskedLikelihood()(block, Batch(None, x), seeded())
    per_row = MaskedLikelihood().per_row(block, Batch(None, x), seeded())
    # Columns 0 and 2, networks 0 and 1 of each; the first row is of fold 0 and lacks column 2.
    assert (per_row != 0).tolist() == [[False, True, False, False], [True, False, True, False]]
    loss.value.backward()
    gradient = block.out.bias.grad.abs().sum((1, 2))
    assert (gradient > 0).tolist() == [True, True, True, False]
    with pytest.raises(TypeError, match="ConditionalBlock"):
        MaskedLikelihood().check(torch.nn.Linear(1, 1), Batch(None, x))


def test_each_network_is_judged_on_its_own_fold_given_the_columns_before():
    columns = [SMOOTH, LEVELS, SMOOTH]
    density = build(columns, 3, (4,))
    x = torch.randn(30, 3, generator=seeded())
    x[:, 1] = torch.randint(3, (30,), generator=seeded()).float()
    x[::7, 2] = torch.nan
    fold = folds_of(30, 3, 0.1, 0)
    block = density.eval().blocks[0]
    assert block.which == [0, 2]
    validate = HeldOutColumns(block, x, fold, 0)
    with torch.no_grad():
        validate(block)
    before, _, _ = validate.held_out(block)
    for k, d in enumerate(block.which):
        given = torch.arange(3) < d
        for member in range(3):
            rows = x[torch.from_numpy(fold == member) & ~x[:, d].isnan()]
            features = density.encoding(rows) * given[density.encoding.owner]
            found = block.distribution.features(block.output_of(k, features)[0])
            log_prob = block.member_log_prob(found, rows[None, :, d, None], [columns[d]])[0, :, member]
            own = before[(fold == member) & ~x[:, d].isnan().numpy(), k]
            np.testing.assert_allclose(own, log_prob.detach(), rtol=1e-4)


@pytest.fixture(scope="module")
def small_table():
    """Two truth-valued columns and a text, whose 12 joint probabilities are known."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(12, 2.0)).reshape(2, 2, 3)
    cells = rng.choice(12, 4000, p=p.ravel())
    a, b, c = np.unravel_index(cells, p.shape)
    table = pd.DataFrame({"a": a.astype(bool), "b": b.astype(bool), "c": np.array(["x", "y", "z"])[c]})
    return p, table, EnergyDensity(n_members=2, hidden=(64, 64), max_epochs=60, random_state=0).fit(table)


def test_a_table_small_enough_to_enumerate_is_known_given_any_columns(small_table):
    """Each p(column | any set of the others) to within .1: of the rarest pairs there are a hundred rows."""
    p, _table, model = small_table
    rows = pd.DataFrame(
        [(bool(a), bool(b), c) for a, b, c in itertools.product((0, 1), (0, 1), "xyz")], columns=list("abc")
    )
    np.testing.assert_allclose(np.exp(model.score_samples(rows)).sum(), 1, atol=2 / 4000)
    np.testing.assert_allclose(np.exp(model.score_samples(rows)), p.ravel(), atol=0.02)
    for d, name in enumerate("abc"):
        others = [e for e in range(3) if e != d]
        for n in range(3):
            for known in itertools.combinations(others, n):
                away = tuple(e for e in others if e not in known)
                joint = p.sum(away, keepdims=True)
                truth = np.broadcast_to(joint / joint.sum(d, keepdims=True), p.shape)
                asked = rows.astype(object)
                asked.iloc[:, list(away)] = None
                found = model.predict(asked, name).to_numpy()
                np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
                wanted = np.moveaxis(truth, d, -1)
                place = [np.unravel_index(i, p.shape) for i in range(12)]
                expected = np.array([wanted[tuple(at[e] for e in others)] for at in place])
                assert np.abs(found - expected).max() < 0.1


def test_the_chain_rule_holds_in_both_orders_as_far_as_the_networks_have_learned(small_table):
    """log p(a) + log p(c|a) beside log p(c) + log p(a|c): the mean difference is below .1 nats."""
    _, table, model = small_table
    some = table.iloc[:500].astype(object)
    some["b"] = None
    logs = {}
    for first, second in (("a", "c"), ("c", "a")):
        nothing, one = some.copy(), some.copy()
        nothing[second] = None
        p_first = model.predict(nothing, first)
        p_second = model.predict(one, second)
        pick = lambda p, values: p.to_numpy()[np.arange(500), [list(p.columns).index(v) for v in values]]  # noqa: E731
        logs[first] = np.log(pick(p_first, some[first])) + np.log(pick(p_second, some[second]))
    assert np.abs(logs["a"] - logs["c"]).mean() < 0.1


@pytest.fixture(scope="module")
def gaussian_table():
    rng = np.random.default_rng(0)
    factor = np.array([[1.0, 0, 0], [0.8, 0.6, 0], [-0.5, 0.5, 0.7]])
    X = rng.normal(size=(1500, 3)) @ factor.T
    gaps = rng.uniform(size=X.shape) < 0.15
    table = np.where(gaps, np.nan, X)
    return factor @ factor.T, EnergyDensity(n_members=2, hidden=(32,), max_epochs=30, random_state=0).fit(table)


def test_numbers_with_gaps_are_known_given_any_columns(gaussian_table):
    """Of a Gaussian, learned with 15 % of the cells missing: means and deviations of p(x_d | any others).

    The mixture's part knows them to some hundredths, the two small networks' to a fifth.
    """
    covariance, model = gaussian_table
    rng = np.random.default_rng(1)
    X = rng.normal(size=(200, 3)) @ np.linalg.cholesky(covariance).T
    for d in range(3):
        others = [e for e in range(3) if e != d]
        for n in range(3):
            for known in itertools.combinations(others, n):
                k = list(known)
                solved = np.linalg.solve(covariance[np.ix_(k, k)], covariance[k, d]) if k else np.zeros(0)
                std = np.sqrt(covariance[d, d] - covariance[d, k] @ solved)
                asked = np.full(X.shape, np.nan)
                asked[:, k] = X[:, k]
                found = model.predict(asked, d)
                assert np.abs(found.mean() - X[:, k] @ solved).mean() < 0.15
                assert np.abs(found.std() / std - 1).mean() < 0.25


def test_all_orders_give_one_log_p_where_the_model_can_represent_the_data(gaussian_table):
    """Marginals of pairs by gaps: log p(x_1, x_3) beside the closed form, in the mean within .03 nats."""
    covariance, model = gaussian_table
    rng = np.random.default_rng(2)
    X = rng.normal(size=(1000, 3)) @ np.linalg.cholesky(covariance).T
    for known in ([0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]):
        asked = np.full(X.shape, np.nan)
        asked[:, known] = X[:, known]
        part = covariance[np.ix_(known, known)]
        z = np.linalg.solve(np.linalg.cholesky(part), X[:, known].T)
        truth = -0.5 * (z**2).sum(0) - 0.5 * np.linalg.slogdet(2 * np.pi * part)[1]
        assert abs((truth - model.score_samples(asked)).mean()) < 0.05
