"""Tables as a network sees them, and the scale of a target, against what they are by hand."""

import numpy as np
import pandas as pd
import pytest
import torch

from thalweg.data.encoding import TableEncoder
from thalweg.data.rows import edges_of
from thalweg.data.target import TargetScale, find_atoms, location_and_scale, rounded
from thalweg.energies import Column, RowEncoding


def encoded(values, new) -> tuple[dict, np.ndarray]:
    """What an encoder learns of one column, and its encoding of new values."""
    encoder = TableEncoder().fit(pd.DataFrame({"a": values}))
    return encoder.columns[0], encoder.transform(pd.DataFrame({"a": new}))


def test_a_number_is_standardised_and_split_at_its_quantiles():
    """Each piece goes from -1 to 1 between two quantiles; the outermost ones go on to -5 and to 5."""
    values = np.random.default_rng(0).gamma(2.0, 3.0, 300)
    new = np.array([values.min() - 1e3, *np.quantile(values, [0.0, 0.1, 0.5, 0.77, 1.0]), values.max() + 1e3])
    _, found = encoded(values, new)
    edges = np.quantile(values, np.linspace(0, 1, 6))  # 300 rows are enough for five pieces of 60
    pieces = (new[:, None] - edges[:-1]) / np.diff(edges)
    low, high = np.array([-2.0, 0, 0, 0, 0]), np.array([1.0, 1, 1, 1, 3])
    standard = np.clip((new - values.mean()) / values.std(), -5, 5)
    expected = np.column_stack([standard, 2 * np.clip(pieces, low, high) - 1])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_gap_is_the_median_no_piece_and_an_indicator():
    values = np.random.default_rng(0).gamma(2.0, 3.0, 300)
    gappy = np.where(np.arange(300) % 10 == 0, np.nan, values)
    known = gappy[~np.isnan(gappy)]
    _, found = encoded(gappy, [np.nan, 4.0])
    assert found[0, 0] == pytest.approx((np.median(known) - known.mean()) / known.std(), abs=1e-5)
    assert found[0, 1:-1].tolist() == [0.0] * 5
    assert found[:, -1].tolist() == [1.0, 0.0]
    assert np.abs(found[1, 1:-1]).min() > 0


def test_times_of_one_day_are_different_values():
    times = pd.Timestamp("2024-05-31") + pd.to_timedelta(np.linspace(0, 0.9, 200), unit="D")
    _, found = encoded(times, [pd.Timestamp("2024-05-31 06:00"), pd.Timestamp("2024-05-31 18:00")])
    # Half a day apart, in standard deviations of the days.
    assert found[1, 0] - found[0, 0] == pytest.approx(0.5 / np.linspace(0, 0.9, 200).std(), rel=1e-4)


def test_the_most_frequent_categories_get_an_indicator():
    encoder = TableEncoder(max_categories=2).fit(pd.DataFrame({"a": ["x"] * 5 + ["y"] * 9 + ["z"] * 2 + ["u"]}))
    assert encoder.columns[0]["values"] == ["y", "x"]
    assert encoder.transform(pd.DataFrame({"a": ["x", "y", "z", "u"]})).tolist() == [
        [0, 1],
        [1, 0],
        [0, 0],
        [0, 0],
    ]


@pytest.mark.parametrize(("rows", "columns", "pieces"), [(100, 1, 3), (360, 1, 6), (5000, 1, 16), (1000, 512, 4)])
def test_short_and_wide_tables_have_fewer_pieces(rows, columns, pieces):
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(rows, columns)))
    encoder = TableEncoder().fit(table)
    assert {len(column["edges"]) - 1 for column in encoder.columns} == {pieces}


def test_the_encoding_of_rows_is_the_tables_far_beyond_the_values_seen_too():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.gamma(2.0, 3.0, 400), "c": rng.normal(size=400)})
    encoder = TableEncoder().fit(table)
    columns = [
        Column(mean=float(x.mean()), std=float(x.std(ddof=0)), edges=tuple(edges_of(x.to_numpy(), 6)))
        for _, x in table.items()
    ]
    new = pd.DataFrame({"a": [-1e3, -5.0, 0.1, 9.0, 80.0, 1e3], "c": [0.0, 9.0, -9.0, 3.1, -3.1, 1.0]})
    encoding = RowEncoding(columns)
    found = encoding(torch.tensor(new.to_numpy(), dtype=torch.float32))
    # The table's encoder goes column by column and has no indicators of what is known.
    order = [0, *range(2, 8), 1, *range(8, 14)]
    np.testing.assert_allclose(found[:, order].numpy(), encoder.transform(new), rtol=1e-4, atol=1e-4)
    assert (found[:, 14:] == 1).all()


def test_what_is_unknown_of_a_row_is_zero_in_its_encoding():
    columns = [Column(edges=(-1.0, 0.0, 1.0)), Column(n_levels=3), Column(n_levels=40)]
    encoding = RowEncoding(columns)
    row = torch.tensor([[0.5, 2.0, 39.0]]).repeat(8, 1)
    unknown = torch.tensor([[bool(k & 1 << d) for d in range(3)] for k in range(8)])
    found = encoding(row.masked_fill(unknown, torch.nan))
    owner = encoding.owner
    assert (found[unknown[:, owner]] == 0).all()
    np.testing.assert_array_equal(found[~unknown[:, owner]], encoding(row)[~unknown[:, owner]])
    # One indicator for its level, none for the fortieth of forty, and one that it is known.
    assert found[0, owner == 1].tolist() == [0, 0, 1, 1]
    assert found[0, owner == 2].sum() == 1


# -- the scale of a target --------------------------------------------------------------------------------


def test_a_far_value_leaves_location_and_scale_those_of_the_rest():
    """Of n normal numbers quartiles tell the deviation to a part 1.17 / sqrt(n), the median the mean to 1.25."""
    y = 5 + 2 * np.random.default_rng(0).normal(size=4000)
    plain = location_and_scale(y[:, None])
    np.testing.assert_allclose([plain[0][0], plain[1][0]], [y.mean(), y.std()])
    location, scale = location_and_scale(np.append(y, 1e6)[:, None])
    assert location[0] == pytest.approx(5, abs=2 * 5 * 1.25 / np.sqrt(4000))
    assert scale[0] == pytest.approx(2, rel=5 * 1.17 / np.sqrt(4000))


@pytest.mark.parametrize("curved", [False, True])
def test_the_slope_of_a_scale_is_its_derivative(curved):
    scale, y, h = TargetScale(3.0, 0.5, curved), np.array([-40.0, 2.0, 3.0, 3.4, 700.0]), 1e-5
    slope = (scale.forth(y + h) - scale.forth(y - h)) / (2 * h)
    np.testing.assert_allclose(np.exp(scale.log_slope(y)), slope, rtol=1e-6)
    np.testing.assert_allclose(scale.back(scale.forth(y)), y, rtol=1e-12)


def test_a_value_is_an_atom_if_it_recurs_ten_times_as_often_as_those_around_it():
    rng = np.random.default_rng(0)
    spread = np.repeat(np.arange(40.0), 10)
    assert find_atoms(np.append(spread, [0.0] * 89)) == []
    assert find_atoms(np.append(spread, [0.0] * 90)) == [0.0]
    two = np.concatenate([spread, np.full(150, 39.0), np.full(300, 0.0)])
    assert find_atoms(rng.permutation(two)) == [0.0, 39.0]
    # Of one row in a hundred at least.
    assert find_atoms(np.append(rng.normal(size=2000), [0.0] * 19)) == []
    assert find_atoms(np.append(rng.normal(size=2000), [0.0] * 21)) == [0.0]


def test_a_value_beside_atoms_is_compared_with_those_that_are_none():
    """The four lowest values recur, the lowest of them least; all others are there once."""
    values = np.concatenate([np.full(n, float(k)) for k, n in enumerate([40, 1000, 900, 800])])
    assert find_atoms(np.append(values, np.arange(4.0, 104.0))) == [1.0, 2.0, 3.0, 0.0]


def test_rounding_leads_to_the_grid_through_its_origin():
    assert rounded(np.array([0.0, 0.1, 0.13, 7.49]), 0.125, 0.25).tolist() == [0.125, 0.125, 0.125, 7.375]
    assert rounded(np.array([14.0, 13.0]), 4.0, 5.0).tolist() == [14.0, 14.0]
    assert rounded(np.array([0.1234]), 0.0, 0.0).tolist() == [0.1234]
