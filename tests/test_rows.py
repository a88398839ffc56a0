"""Rows of a table as codes, and back."""

import numpy as np
import pandas as pd
import pytest

from thalweg.data.rows import RowCoder

RNG = np.random.RandomState(0)


def mixed(n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "number": rng.normal(size=n),
            "whole": rng.integers(0, 200, n),
            "few": rng.integers(1, 4, n),
            "text": np.array(["red", "green", "blue"])[rng.integers(0, 3, n)],
            "truth": rng.uniform(size=n) < 0.3,
            "day": pd.Timestamp("2024-02-28") + pd.to_timedelta(rng.integers(0, 500, n), "D"),
        }
    )
    return table


def with_gaps(table: pd.DataFrame) -> pd.DataFrame:
    gaps = np.random.default_rng(1).uniform(size=table.shape) < 0.2
    return table.astype(object).mask(gaps).infer_objects()


def test_a_table_comes_back_as_it_was():
    table = mixed()
    coder = RowCoder().fit(table)
    codes = coder.codes(table)
    assert codes.dtype == np.float64
    assert [coder.n_levels(d) for d in range(6)] == [0, 0, 3, 3, 2, 0]
    back = coder.values(codes, RNG)
    pd.testing.assert_frame_equal(back, table, check_dtype=False)
    assert [str(t) for t in back.dtypes[["whole", "few", "truth"]]] == ["int64", "int64", "bool"]
    again = RowCoder.from_state(coder.state())
    np.testing.assert_array_equal(again.codes(table), codes)


def test_gaps_are_nan_and_come_back_as_gaps():
    table = with_gaps(mixed())
    coder = RowCoder().fit(table)
    codes = coder.codes(table)
    np.testing.assert_array_equal(np.isnan(codes), table.isna())
    back = coder.values(codes, RNG)
    np.testing.assert_array_equal(back.isna(), table.isna())
    for name in table:
        known = table[name].notna()
        assert (back.loc[known, name] == table.loc[known, name]).all()


def test_draws_of_dates_and_counts_lie_on_their_grids():
    coder = RowCoder().fit(mixed())
    codes = np.tile([0.1234, 17.3, 1, 2, 0, 19783.4], (2, 1))
    back = coder.values(codes, RNG)
    assert back["whole"].tolist() == [17, 17]
    assert back["day"].tolist() == [pd.Timestamp("2024-03-01")] * 2
    assert back["few"].tolist() == [2, 2]


def test_texts_beyond_the_hundred_most_frequent_share_a_level_by_their_counts():
    """Ten thousand categories: each rare one keeps the part that it has of what is rare."""
    common = [f"c{k}" for k in range(100) for _ in range(5)]
    rare = [f"r{k}" for k in range(9899)] + ["r0"]
    table = pd.DataFrame({"name": common + rare})
    coder = RowCoder().fit(table)
    assert coder.n_levels(0) == 101
    codes = coder.codes(table)[:, 0]
    assert (codes[500:] == 100).all()
    assert codes[:500].max() == 99
    shares = np.exp(coder.log_shares(table)[:, 0])
    assert (shares[:500] == 1).all()
    assert shares[500] == pytest.approx(2 / 9900)
    assert shares[501] == pytest.approx(1 / 9900)
    drawn = coder.values(np.full((200, 1), 100.0), RNG)["name"]
    assert drawn.str.startswith("r").all()
    assert drawn.nunique() > 190


def test_what_training_did_not_show_is_minus_one_and_warned_of():
    coder = RowCoder().fit(mixed())
    new = mixed().iloc[:2].copy()
    new["text"] = ["red", "violet"]
    with pytest.warns(UserWarning, match="'violet' in row 2"):
        codes = coder.codes(new)
    assert codes[1, 3] == -1
    assert codes[0, 3] >= 0
    new = mixed().iloc[:1].assign(few=7)
    with pytest.warns(UserWarning, match="column 'few' has"):
        assert coder.codes(new)[0, 2] == -1


def test_values_spread_over_a_cell_are_of_its_level():
    coder = RowCoder().fit(mixed())
    table = mixed().iloc[:3].assign(few=[0.6, 1.49, 2.9])
    assert coder.codes(table)[:, 2].tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ([None] * 20, "no value at all"),
        ([1.5, np.inf] * 10, "infinite"),
        ([float(k) * 1e-310 for k in range(30)], "rescale"),
    ],
)
def test_columns_that_can_not_be_used_are_refused_by_name(column, words):
    with pytest.raises(ValueError, match=words) as error:
        RowCoder().fit(pd.DataFrame({"odd": column}))
    assert "'odd'" in str(error.value)


def test_a_constant_column_is_one_level_and_another_kind_later_is_refused():
    coder = RowCoder().fit(pd.DataFrame({"a": [3.0] * 12, "b": ["x"] * 12}))
    assert [coder.n_levels(d) for d in range(2)] == [1, 1]
    with pytest.raises(ValueError, match="'a'"):
        coder.codes(pd.DataFrame({"a": ["three"], "b": ["x"]}))
    with pytest.raises(ValueError, match="2 columns"):
        coder.codes(pd.DataFrame({"a": [3.0]}))


def test_a_number_that_a_few_levels_do_not_show_is_the_odder_the_farther_off():
    """The shares of all grid points beside the levels add up to no more than 1."""
    coder = RowCoder().fit(mixed())
    found = coder.log_shares(mixed().iloc[:4].assign(few=[1, 2.3, 9, 1000]))[:, 2]
    assert found[0] == found[1] == 0
    assert found[3] < found[2] - 5 < -5
    away = np.r_[np.arange(-20_000, 1), np.arange(4, 20_000)]
    total = np.exp(coder.log_shares(pd.concat([mixed().iloc[:1]] * len(away)).assign(few=away))[:, 2]).sum()
    assert 0.2 < total <= 1
