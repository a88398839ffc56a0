"""What a column is: every way to write numbers, dates, truth values, gaps and texts, and every type of column."""

from __future__ import annotations

import datetime
import decimal
import fractions
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from thalweg import EnergyDensity, EnergyRegressor, RestrictedBoltzmannMachine
from thalweg.data.columns import as_text, decide, read_as, to_numbers
from thalweg.data.encoding import TableEncoder
from thalweg.data.tables import read_cells, read_table

MANY = [str(i) for i in range(20)]
DAY = pd.Series(pd.to_datetime(["2020-01-01 00:00", "2021-06-01 12:00", None]))


def column(values, **how) -> pd.Series:
    return pd.Series(values, name="c", **how)


# -- columns of texts, as of a CSV ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "2", "3"], [1, 2, 3]),
        ([" 1", "+2 ", "-3"], [1, 2, -3]),
        (["1.5", ".5", "2.", "1e3", "-1E-2"], [1.5, 0.5, 2.0, 1000.0, -0.01]),
        (["1", "", "3"], [1, np.nan, 3]),
        (["1", "NA", "nan", "NULL", "None", "#N/A"], [1] + [np.nan] * 5),
        (["1", "?", "-", ".", "missing"], [1] + [np.nan] * 4),
        (["1", "inf"], [1, np.inf]),
        (["0.1", "0.30000000000000004"], [0.1, 0.30000000000000004]),
        (["9007199254740993", "1"], [9007199254740993, 1]),
        ([f"{k}000000000000000000" for k in (46, 229)], [46e18, 229e18]),
        (["4,600", "12,300.5", "700"], [4600, 12300.5, 700]),
        (["1,5", "2,75", "3"], [1.5, 2.75, 3]),
        (["0", "00.5", "0.0"], [0, 0.5, 0]),
    ],
)
def test_ways_to_write_numbers(cells, values):
    found = decide(column(cells))
    assert found.kind == "number"
    np.testing.assert_array_equal(found.values.to_numpy(float), np.array(values, float))


@pytest.mark.parametrize(
    ("cells", "values", "told"),
    [
        (["4.290", "987", "12.345"], [4290, 987, 12345], True),
        (["1.234,5", "2,25", "-7"], [1234.5, 2.25, -7], True),
        (["2,34", "-1,5e2", "3"], [2.34, -150, 3], False),
        (["0.123", "4.5", "1"], [0.123, 4.5, 1], False),
        (["1.5e3", "2.5"], [1500, 2.5], False),
    ],
)
def test_numbers_of_a_file_with_decimal_commas(cells, values, told):
    """What could be meant otherwise is told."""
    found = decide(column(cells), decimal=",")
    np.testing.assert_array_equal(found.values.to_numpy(float), values)
    assert bool(found.remarks) == told


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["1", "2", "A"], "text", ["1", "2", "A"]),
        (["001", "002", "017"], "text", ["001", "002", "017"]),
        (["NA", "DE", ""], "text", ["NA", "DE", None]),
        (["TRUE", "false", "True"], "truth", [True, False, True]),
        (["TRUE", "NA"], "truth", [True, None]),
        (["TRUE", "FALSE", "UNKNOWN"], "text", ["TRUE", "FALSE", "UNKNOWN"]),
        (
            ["2024-05-31", "2024-06-01T10:00"],
            "date",
            [pd.Timestamp("2024-05-31"), pd.Timestamp("2024-06-01 10:00")],
        ),
        (["2024-05-31", ""], "date", [pd.Timestamp("2024-05-31"), None]),
        (["2024-05-31", "2024-13-01"], "text", ["2024-05-31", "2024-13-01"]),
        (["1_000", "2"], "text", ["1_000", "2"]),
        (["12 kg", "13 kg"], "text", ["12 kg", "13 kg"]),
    ],
)
def test_texts_dates_and_truth_values(cells, kind, values):
    found = decide(column(cells))
    assert found.kind == kind
    got = [None if pd.isna(v) else v for v in found.values.astype(object)]
    assert got == values


def test_one_odd_cell_among_numbers_is_a_doubt_that_the_user_decides():
    cells = [*MANY, "abc"]
    with pytest.raises(ValueError, match=r"'c' holds numbers but for 'abc' in row 21 \(1 of 21 cells\)"):
        decide(column(cells))
    gap = decide(column(cells), missing=["abc"])
    assert gap.kind == "number"
    assert gap.values.isna().sum() == 1
    assert as_text(column(cells)).kind == "text"
    assert decide(column(pd.Categorical(cells))).kind == "text"
    # Where few are numbers they are codes.
    assert decide(column(["1", "2", *"ABCDEFGHIJ"])).kind == "text"


def test_doubts_are_told_by_name_with_an_example():
    for cells, words in (
        (["NA", "DE", "NA"], "'NA' in 2 rows, which is read as a text"),
        (["05197", "80331"], "leading zeros, as in '05197'"),
        (["1", "2", "?", "?"], "'?' (2): read as gaps"),
        (["4,600", "5"], "'4,600' is read as 4600"),
    ):
        remarks = decide(column(cells)).remarks
        assert len(remarks) == 1
        assert words in remarks[0]
        assert "'c'" in remarks[0]
    assert decide(column(["1", "NA", ""])).remarks == ()


# -- columns in types of their own ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 2.5, np.nan],
        [decimal.Decimal("1.0"), decimal.Decimal("2.5"), None],
        [fractions.Fraction(1), fractions.Fraction(5, 2), None],
        pd.array([1.0, 2.5, None], dtype="Float64"),
        pd.array([1.0, 2.5, None], dtype=pd.ArrowDtype(pa.float32())),
        pd.array([decimal.Decimal("1.0"), decimal.Decimal("2.5"), None], dtype=pd.ArrowDtype(pa.decimal128(9, 2))),
        np.array([1.0, 2.5, np.nan], np.float16),
        pd.arrays.SparseArray([1.0, 2.5, np.nan]),
        ["1.0", "2.5", ""],
        pd.array(["1.0", "2.5", None], dtype="string"),
    ],
    ids=lambda v: str(getattr(v, "dtype", type(v[0]).__name__)),
)
def test_numbers_of_every_type(values):
    found = decide(column(values))
    assert found.kind == "number"
    np.testing.assert_array_equal(found.values.to_numpy(float), [1.0, 2.5, np.nan])


@pytest.mark.parametrize(
    "values",
    [
        DAY,
        DAY.dt.tz_localize("Europe/Paris"),
        DAY.astype(pd.ArrowDtype(pa.timestamp("us"))),
        pd.Series([None if pd.isna(v) else v.to_pydatetime() for v in DAY], dtype=object),
        DAY.dt.strftime("%Y-%m-%d %H:%M:%S"),
    ],
    ids=["datetime64", "zone", "Arrow", "datetime", "text"],
)
def test_dates_of_every_type(values):
    found = decide(column(values))
    assert found.kind == "date"
    expected = values.dt.tz_convert("UTC").dt.tz_localize(None) if getattr(values.dtype, "tz", None) else DAY
    assert (found.values.dropna() == expected.dropna().to_numpy()).all()
    assert found.values.isna().tolist() == [False, False, True]


def test_days_spans_and_periods():
    days = [datetime.date(2020, 1, 1), datetime.date(9999, 12, 31)]
    for values in (days, pd.array(days, dtype=pd.ArrowDtype(pa.date32()))):
        found = decide(column(values))
        assert found.kind == "date"
        assert found.values[1].year == 9999
    month = decide(column(pd.PeriodIndex(["2020-01", "2020-02"], freq="M")))
    assert (month.kind, month.values[1]) == ("date", pd.Timestamp("2020-02-01"))
    hours = pd.to_timedelta([1, 2], unit="h")
    for values in (hours, pd.array(hours, dtype=pd.ArrowDtype(pa.duration("us"))), list(hours.to_pytimedelta())):
        found = decide(column(values))
        assert (found.kind, found.values[1]) == ("span", 2 / 24)


def test_what_no_column_can_hold_is_refused():
    for values, words in (([[1], [2]], "a list"), ([1j, 2], "complex"), ([b"a", b"b"], "bytes")):
        with pytest.raises(ValueError, match=words):
            decide(column(values))


# -- columns that come again ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "cells", "values"),
    [
        ("number", ["1", "NA", "2.5"], [1.0, None, 2.5]),
        ("number", [True, False], [1.0, 0.0]),
        ("number", [None, None], [None, None]),
        ("text", ["1", "", "002"], ["1", None, "002"]),
        ("text", [1.0, np.nan], ["1", None]),
        ("text", [1, 2], ["1", "2"]),
        ("text", pd.Categorical([0.0, 1.0, None]), ["0", "1", None]),
        ("truth", ["true", "0", "1"], [True, False, True]),
        ("truth", [1.0, 0.0], [True, False]),
        ("date", ["2024-05-31", ""], [pd.Timestamp("2024-05-31"), None]),
        ("span", ["1 days 12:00:00", ""], [1.5, None]),
    ],
)
def test_a_column_is_read_as_what_it_was(kind, cells, values):
    found = read_as(column(cells), kind)
    assert [None if pd.isna(v) else v for v in found.astype(object)] == values


@pytest.mark.parametrize(
    ("kind", "cells", "words"),
    [
        ("number", ["1", "many"], "held numbers in training, but has 'many' in row 2"),
        ("number", ["2024-05-31"], "held numbers in training, but has '2024-05-31'"),
        ("number", DAY, "held numbers in training, but now holds dates"),
        ("date", [1, 2], "held dates in training, but now holds numbers"),
        ("date", ["31.05.2024"], "held dates in training, but has '31.05.2024' in row 1: write it as 2024-05-31"),
        ("truth", ["yes"], "held truth values in training, but has 'yes'"),
        ("truth", [0, 2], "held truth values in training, but now holds numbers"),
    ],
)
def test_a_column_that_is_something_else_now_is_refused(kind, cells, words):
    with pytest.raises(ValueError, match=f"column 'c' {words}"):
        read_as(column(cells), kind)


def test_truth_values_that_were_texts_are_written_as_they_were():
    assert read_as(column([True, False]), "text", known=["TRUE", "FALSE", "UNKNOWN"]).tolist() == ["TRUE", "FALSE"]


def test_numbers_among_other_cells():
    np.testing.assert_array_equal(to_numbers(column(["1", "x", "2,5"]), decimal=","), [1, np.nan, 2.5])
    np.testing.assert_array_equal(to_numbers(column(["1", "-9999", ""]), ["-9999"]), [1, np.nan, np.nan])


@pytest.mark.parametrize(
    "values",
    [
        [1.5, -9999.0, 2.0],
        pd.array([1, -9999, 2], dtype="Int64"),
        [decimal.Decimal("1.5"), decimal.Decimal("-9999"), decimal.Decimal("2")],
        ["1.5", " -9999", "2"],
    ],
    ids=["float64", "Int64", "Decimal", "text"],
)
def test_a_word_for_a_gap_is_one_in_every_type(values):
    found = decide(column(values), missing=["-9999"])
    assert found.kind == "number"
    assert found.values.isna().tolist() == [False, True, False]
    assert read_as(column(values), "number", ["-9999"]).isna().tolist() == [False, True, False]
    assert np.isnan(to_numbers(column(values), ["-9999"])).tolist() == [False, True, False]


# -- files ------------------------------------------------------------------------------------------------


def test_a_file_with_semicolons_and_dots_for_thousands(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("menge;preis;y\n4.290;2,34;45,28\n987;1,01;21,64\n12.345;1,37;30,78\n")
    cells = read_cells(path)
    assert cells.decimal == ","
    table = read_table(path)
    assert table["menge"].tolist() == [4290, 987, 12345]
    assert table["preis"].tolist() == [2.34, 1.01, 1.37]
    told = cells.decided()["menge"].remarks
    assert "'4.290' is read as 4290" in told[0]
    # Without a decimal comma to be seen a dot is a decimal point.
    path.write_text("menge;preis\n4.290;2\n987;1\n")
    assert read_table(path)["menge"].tolist() == [4.29, 987]


def test_cells_stay_as_they_stand(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("zip,n,word\n05197,9007199254740995,NA\n80331,,TRUE\n")
    table = read_cells(path).table
    assert table.iloc[0].tolist() == ["05197", "9007199254740995", "NA"]
    assert table.iloc[1].tolist() == ["80331", "", "TRUE"]


# -- what models make of it -------------------------------------------------------------------------------


def test_models_are_the_same_whatever_type_a_column_comes_in():
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 100, 200).round(2)
    y = x + 0.5 * rng.normal(size=200)
    settings = {"n_members": 2, "hidden": (16,), "max_epochs": 20, "random_state": 0}
    expected = EnergyRegressor(**settings).fit(pd.DataFrame({"x": x}), y).predict(pd.DataFrame({"x": x[:5]}))
    for values in ([decimal.Decimal(f"{v:.2f}") for v in x], [f"{v:.2f}" for v in x]):
        model = EnergyRegressor(**settings).fit(pd.DataFrame({"x": values}), y)
        np.testing.assert_allclose(model.predict(pd.DataFrame({"x": values[:5]})), expected, rtol=1e-6)
    density = EnergyDensity("nce", max_epochs=2, random_state=0).fit(pd.DataFrame({"x": x, "y": y}))
    as_decimals = pd.DataFrame({"x": [decimal.Decimal(f"{v:.2f}") for v in x], "y": y})
    np.testing.assert_allclose(
        density.score_samples(as_decimals), density.score_samples(pd.DataFrame({"x": x, "y": y}))
    )


def test_categories_of_numbers_beside_a_gap_are_the_same_categories():
    rng = np.random.default_rng(0)
    c = rng.integers(0, 3, 200)
    X = pd.DataFrame({"c": pd.Categorical(c)})
    model = EnergyRegressor(n_members=2, hidden=(16,), max_epochs=40, random_state=0)
    model.fit(X, 5.0 * c + 0.1 * rng.normal(size=200))
    whole = model.predict(pd.DataFrame({"c": pd.Categorical([0, 1, 2])}))
    beside = model.predict(pd.DataFrame({"c": pd.Series([0, 1, 2, None]).astype("category")}))
    np.testing.assert_allclose(beside[:3], whole, rtol=1e-6)
    assert (np.abs(whole - [0, 5, 10]) < 1.5).all()


def test_an_unknown_category_is_told_and_a_rare_one_is_not():
    values = [f"v{k}" for k in range(40) for _ in range(2 if k < 32 else 1)]
    encoder = TableEncoder().fit(pd.DataFrame({"c": values}))
    encoder.transform(pd.DataFrame({"c": ["v39", "v0"]}))
    with pytest.warns(UserWarning, match=r"'c' has 'new' in row 2, which no training row had"):
        encoder.transform(pd.DataFrame({"c": ["v0", "new"]}))


@pytest.mark.parametrize(
    "values", [DAY, pd.Series(pd.to_timedelta([1, 2, None], unit="h"))], ids=["dates", "spans"]
)
def test_a_target_of_dates_is_refused(values):
    with pytest.raises(ValueError, match="the target holds"):
        EnergyRegressor().fit(pd.DataFrame({"x": [1.0, 2, 3]}), values)


def test_a_machine_takes_columns_of_every_type_and_keeps_codes_as_texts():
    rng = np.random.default_rng(0)
    bit, number = rng.integers(0, 2, 60), rng.normal(size=60).round(2)
    plain = pd.DataFrame({"bit": bit, "number": number, "code": rng.choice(["1", "2", "A"], 60)})
    typed = plain.assign(bit=pd.array(bit, dtype="Int64"), number=[decimal.Decimal(f"{v:.2f}") for v in number])
    model = RestrictedBoltzmannMachine(4, max_epochs=2, random_state=0).fit(plain)
    assert model.encoder_.kinds == ["binary", "gaussian", "categorical"]
    np.testing.assert_allclose(model.score_samples(typed), model.score_samples(plain))
    # A file that lacks the texts has numbers where training had "1".
    codes = plain[plain["code"] != "A"]
    as_numbers = codes.assign(code=codes["code"].astype(float))
    np.testing.assert_allclose(model.score_samples(as_numbers), model.score_samples(codes))
