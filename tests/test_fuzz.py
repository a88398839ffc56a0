"""Whatever a table or an array of images holds: a finite answer, or a ValueError in plain words.

A few hundred examples run in the gate, the same ones each time. THALWEG_FUZZ=10000 tries that many of each
test, new ones in each run: ``THALWEG_FUZZ=10000 python -m pytest tests/test_fuzz.py``.
"""

import datetime
import io
import math
import os
import re
import tempfile
import warnings
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from thalweg import (
    EnergyClassifier,
    EnergyDensity,
    EnergyRanker,
    EnergyRegressor,
    EnergySequenceTagger,
    ImageEBM,
    RestrictedBoltzmannMachine,
)
from thalweg.data.columns import KINDS, decide, read_as
from thalweg.data.encoding import TableEncoder
from thalweg.data.images import as_images, read_images
from thalweg.data.states import StateEncoder
from thalweg.data.tables import read_table, write_table
from thalweg.evaluation.verdict import FailedModelWarning
from thalweg.runs.base import fit_run
from thalweg.runs.settings.boltzmann import BoltzmannSettings
from thalweg.runs.settings.classifier import ClassifierSettings
from thalweg.runs.settings.density import DensitySettings
from thalweg.runs.settings.images import ImageSettings
from thalweg.runs.settings.ranker import RankerSettings
from thalweg.runs.settings.regression import RegressionSettings
from thalweg.runs.settings.sequence import SequenceSettings
from thalweg.training.guard import DivergenceError

_N = int(os.environ.get("THALWEG_FUZZ", "0"))
# What NumPy, pandas and PyTorch say, and a user can do nothing with.
_RAW = re.compile(
    r"ufunc|torch\.|[Tt]ensor|broadcast|object at 0x|Traceback|out of bounds|NoneType|unhashable|KeyError"
)


def tried(n: int):
    """Settings of a test that tries n examples in the gate."""
    quiet = list(HealthCheck)
    return settings(
        max_examples=_N or n, derandomize=not _N, deadline=None, database=None, suppress_health_check=quiet
    )


def answered(ask):
    """The answer, or None where it was refused in words."""
    with warnings.catch_warnings():
        # What a sum of infinities makes of itself before it is refused is no answer.
        for harmless in (FailedModelWarning, FutureWarning, RuntimeWarning):
            warnings.simplefilter("ignore", harmless)
        try:
            return ask()
        except (ValueError, DivergenceError) as error:
            words = str(error)
    assert words.strip(), "an error without words"
    assert not _RAW.search(words), words
    return None


# -- tables -----------------------------------------------------------------------------------------------

WORDS = [
    *("", " ", "NA", "nan", "?", "-", "true", "False", "0", "1", "007", "1,5", "1.000,5", "1e400", "inf", "-inf"),
    *("2024-02-30", "2024-02-29", "größe", "日本", '"', "a,b", ";", "\t", "é\u0301", "1_000", "0x10", "١٢", "+3"),
]
MAGNITUDES = [0.0, -0.0, 1e-310, 5e-324, 1e-30, 1.0, 1e15, 2.0**53, 1e30, 1e200, 1.7e308]
numbers = st.one_of(
    st.floats(-1e6, 1e6, allow_nan=False), st.sampled_from(MAGNITUDES), st.sampled_from([math.inf, -math.inf])
)
VALUES = {
    "plain": st.floats(-100, 100, allow_nan=False),
    "magnitudes": numbers,
    "whole": st.integers(-5, 5),
    "huge": st.integers(-(2**70), 2**70),
    "bits": st.booleans(),
    "texts": st.sampled_from(WORDS),
    "labels": st.sampled_from(["a", "b", "c"]),
    "free": st.text(max_size=4).filter(lambda t: t.isprintable()),
    "dates": st.datetimes(datetime.datetime(1600, 1, 1), datetime.datetime(3000, 1, 1)),
    "days": st.dates(datetime.date(1, 1, 1), datetime.date(9999, 12, 31)),
    "decimals": st.decimals(-1000, 1000, places=2),
    "spans": st.timedeltas(datetime.timedelta(-1000), datetime.timedelta(1000)),
    "mixed": st.one_of(st.integers(-3, 3), st.floats(-1, 1), st.sampled_from(WORDS), st.booleans(), st.none()),
    "foreign": st.sampled_from([b"x", (1, 2), [1], {"a": 1}, 1j, Decimal("NaN")]),
}
NAMES = [
    "a",
    "b",
    "y",
    "",
    " ",
    "größe",
    "a,b",
    "row",
    "imputation",
    "1",
    "日本",
    '"',
    "x\ny",
    "mean",
    "unnamed: 0",
]


@st.composite
def tables(draw, kinds=tuple(VALUES), least=0, most=40):
    """A table of up to four columns, some constant, some with gaps, some categorical."""
    n, names = draw(st.integers(least, most)), draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4))
    columns = []
    for _ in names:
        kind = draw(st.sampled_from(kinds))
        # A few values over and again: what a table has is repeated, and an example stays small.
        pool = draw(st.lists(VALUES[kind], min_size=1, max_size=8))
        rng = np.random.RandomState(draw(st.integers(0, 1000)))
        values = [pool[i] for i in rng.randint(len(pool), size=n)]
        if kind == "plain" and draw(st.booleans()):
            values = (rng.normal(size=n) * draw(st.sampled_from([1e-30, 1.0, 1e30, 1e150])) + pool[0]).tolist()
        if draw(st.integers(0, 3)) == 0:
            values = [None if gap else v for v, gap in zip(values, rng.uniform(size=n) < 0.3, strict=True)]
        column = pd.Series(values, dtype=object)
        form = draw(st.sampled_from(["object", "inferred", "category"]))
        if form == "inferred":
            column = column.infer_objects()
        elif form == "category" and kind in ("whole", "bits", "texts", "labels", "plain"):
            column = column.astype("category")
        columns.append(column)
    table = pd.concat(columns, axis=1)
    table.columns = names
    return table


@tried(150)
@given(tables())
def test_a_column_is_decided_and_read_again(table):
    for i in range(table.shape[1]):
        column = table.iloc[:, i]
        found = answered(lambda column=column: decide(column))
        if found is None:
            continue
        assert found.kind in KINDS
        assert len(found.values) == len(column)
        again = answered(lambda column=column, found=found: read_as(column, found.kind))
        assert again is not None
        assert again.isna().tolist() == found.values.isna().tolist()
        for kind in KINDS:
            answered(lambda column=column, kind=kind: read_as(column, kind))


@tried(60)
@given(tables(), st.sampled_from([".csv", ".tsv", ".parquet", ".csv.gz"]))
def test_a_file_is_read(table, ending):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t{ending}"
        try:
            write_table(table, path)
        except Exception:  # what can't be written is no file
            return
        found = answered(lambda: read_table(path))
        assert found is None or len(found) <= len(table)


@tried(60)
@given(
    st.binary(max_size=200) | st.text(max_size=200).map(str.encode), st.sampled_from([".csv", ".tsv", ".parquet"])
)
def test_any_bytes_are_read_or_refused(data, ending):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"t{ending}"
        path.write_bytes(data)
        answered(lambda: read_table(path))


@tried(100)
@given(tables(least=1))
def test_rows_are_encoded(table):
    if table.columns.duplicated().any():
        return
    encoder = TableEncoder()
    found = answered(lambda: encoder.fit(table).transform(table))
    assert found is None or np.isfinite(np.asarray(found)).all()


@tried(100)
@given(tables(least=1), st.sampled_from(["auto", "binary", "categorical", "gaussian", "mixed"]))
def test_states_are_encoded_and_decoded(table, kind):
    complete = table.dropna()
    if not len(complete):
        return
    X = complete.infer_objects().to_numpy()
    encoder = answered(lambda: StateEncoder(kind).fit(X))
    if encoder is not None:
        states = encoder.encode(X)
        assert np.isfinite(states).all()
        assert encoder.decode(states).shape == X.shape


# -- models -----------------------------------------------------------------------------------------------

NUMERIC = ("plain", "magnitudes", "whole", "bits", "decimals", "huge", "mixed")


@tried(15)
@given(tables(least=2), tables(NUMERIC, least=2))
def test_a_regressor_fits_or_refuses(table, targets):
    n = min(len(table), len(targets))
    X, y = table.iloc[:n], targets.iloc[:n, 0]
    model = EnergyRegressor(max_epochs=1, n_members=1, hidden=(4,), random_state=0)
    found = answered(lambda: model.fit(X, y).predict(X))
    assert found is None or np.isfinite(found).all()


@tried(15)
@given(tables(NUMERIC, least=2))
def test_a_density_fits_or_refuses(table):
    model = EnergyDensity(max_epochs=1, n_members=1, hidden=(4,), random_state=0)
    found = answered(lambda: model.fit(table).score_samples(table))
    assert found is None or not np.isnan(found).any()


@tried(25)
@given(tables(least=2))
def test_a_machine_fits_or_refuses(table):
    model = RestrictedBoltzmannMachine(2, max_epochs=1, random_state=0)
    found = answered(lambda: model.fit(table).score_samples(table))
    assert found is None or not np.isnan(found).any()


@tried(15)
@given(tables(least=2), tables(least=2))
def test_a_classifier_fits_or_refuses(table, targets):
    n = min(len(table), len(targets))
    table, labels = table.iloc[:n], targets.iloc[:n, 0].to_numpy()
    model = EnergyClassifier(max_epochs=1, n_members=1, hidden=(4,), random_state=0)
    fitted = answered(lambda: model.fit(table, labels))
    if fitted is None:
        return
    probabilities = model.predict_proba(table)
    assert np.isfinite(probabilities).all()
    assert np.allclose(probabilities.sum(1), 1)
    assert np.isfinite(model.score_samples(table)).all()
    assert np.isfinite(model.typicality(table)).all()
    drawn = model.sample(3, label=model.classes_[0], random_state=0)
    assert np.isfinite(model.score_samples(drawn)).all()


@tried(15)
@given(tables(least=4), tables(least=4), st.integers(1, 4))
def test_a_ranker_fits_or_refuses(table, others, n_groups):
    n = min(len(table), len(others))
    table, groups = table.iloc[:n], others.iloc[:n, 0].to_numpy()
    model = EnergyRanker(max_epochs=1, n_members=1, hidden=(4,), random_state=0)
    answered(lambda: model.fit(table, np.arange(n) % 3, groups))
    answered(lambda: model.fit(table, groups, np.arange(n) % n_groups))
    fitted = answered(lambda: model.fit(table, np.arange(n) % 3, np.arange(n) // 2 % n_groups))
    if fitted is not None:
        assert np.isfinite(model.predict(table)).all()
        assert model.rank(table, np.arange(n) % n_groups).min() == 1


words = st.sampled_from(WORDS) | st.text(max_size=4)
sequences = st.one_of(
    st.lists(words, max_size=5),
    st.lists(st.lists(numbers, min_size=2, max_size=2), max_size=5),
    tables(least=1),
    words,
    st.none(),
)
labels_of_elements = st.one_of(
    st.sampled_from(["a", "b", "", "B-x", "I-x", "O"]), st.integers(-2, 3), st.none(), numbers
)


@tried(25)
@given(st.lists(sequences, max_size=6), st.data())
def test_a_tagger_fits_or_refuses(X, data):
    kind = data.draw(st.sampled_from([list, pd.DataFrame]))
    # Half of the time all are of one kind and have as many labels as elements.
    if data.draw(st.booleans()):
        X = [x for x in X if isinstance(x, kind) and len(x)]
        label = data.draw(st.sampled_from([st.sampled_from("ab"), st.integers(-1, 2), labels_of_elements]))
        y = [data.draw(st.lists(label, min_size=len(x), max_size=len(x))) for x in X]
    else:
        y = data.draw(st.lists(st.lists(labels_of_elements, max_size=5), max_size=6))
    forbidden = data.draw(st.sampled_from([None, "bio", [("a", "b")], [(None, 0)]]))
    model = EnergySequenceTagger(max_epochs=1, hidden=(4,), forbidden=forbidden, random_state=0)
    if answered(lambda: model.fit(X, y)) is None:
        return
    for own, x in zip(model.predict_marginals(X), X, strict=True):
        assert own.shape == (len(x), len(model.classes_))
        assert np.allclose(own.sum(1), 1, atol=1e-5)
    assert [len(own) for own in model.predict(X)] == [len(x) for x in X]
    assert not np.isnan(model.log_prob(X, model.predict(X))).any()


@tried(8)
@given(
    tables(least=12), st.sampled_from(["regression", "density", "boltzmann", "classifier", "ranker", "sequence"])
)
def test_a_run_is_made_and_asked_or_refused(table, task):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        table.to_csv(path, index=False)
        how = {"data": str(path)}
        if task == "regression":
            ask = lambda: RegressionSettings(**how, targets=[str(table.columns[0])], epochs=1, members=1)  # noqa: E731
        elif task == "density":
            ask = lambda: DensitySettings(**how, epochs=1, members=1)  # noqa: E731
        elif task == "classifier":
            target = [str(table.columns[0])]
            ask = lambda: ClassifierSettings(**how, target=target, epochs=1, members=1)  # noqa: E731
        elif task == "sequence":
            named = {"sequence": [str(table.columns[-1])], "target": [str(table.columns[0])]}
            ask = lambda: SequenceSettings(**how, **named, epochs=1)  # noqa: E731
        elif task == "ranker":
            named = {"target": [str(table.columns[-1])], "group": [str(table.columns[0])]}
            ask = lambda: RankerSettings(**how, **named, epochs=1, members=1)  # noqa: E731
        else:
            ask = lambda: BoltzmannSettings(**how, epochs=1, hidden=[2])  # noqa: E731
        run = answered(lambda: fit_run(Path(folder) / "run", ask(), verbose=False))
        if run is None:
            # What is left of a training that diverged is for whoever looks for the reason.
            left = list((Path(folder) / "run").rglob("*"))
            assert not left or any("training" in path.parts for path in left)
            return
        for verb in run.verbs:
            answered(lambda verb=verb: getattr(run, verb)(5 if verb == "sample" else path))


# -- images -----------------------------------------------------------------------------------------------


@st.composite
def pixels(draw):
    shape = draw(st.lists(st.integers(0, 6), min_size=0, max_size=5))
    kind = draw(
        st.sampled_from(["float32", "float64", "uint8", "uint16", "int64", "bool", "complex64", "U2", "O"])
    )
    rng = np.random.RandomState(draw(st.integers(0, 1000)))
    scale = draw(st.sampled_from([0, 1, 16, 255, 65535, 1e30, -1]))
    values = rng.uniform(size=shape) * scale
    if draw(st.integers(0, 4)) == 0 and values.size:
        values.flat[0] = draw(st.sampled_from([math.nan, math.inf, -1e300]))
    with np.errstate(all="ignore"):
        return values.astype(kind)


@tried(60)
@given(pixels(), st.none() | st.lists(st.integers(-3, 3) | st.sampled_from(["a", "10"]), max_size=6))
def test_images_are_read_or_refused(array, labels):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", np.exceptions.ComplexWarning)
        found = answered(lambda: as_images(array))
    assert found is None or (np.isfinite(found.pixels).all() and found.pixels.max() <= 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npz"
        np.savez(path, X=array, **({} if labels is None else {"y": np.array(labels)}))
        answered(lambda: read_images(path))


@st.composite
def pictures(draw, least=0):
    """Pictures of a folder: name -> bytes. Some are of another size or mode, damaged, or no pictures."""
    modes = ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "F", "CMYK"]
    mode, ending = draw(st.sampled_from(modes)), draw(st.sampled_from(ENDINGS))
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    deep = draw(st.booleans())
    found = {}
    for place in draw(
        st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(STEMS)), min_size=least, max_size=6)
    ):
        odd = draw(st.sampled_from([*20 * [""], "mode", "size", "cut", "bytes", "pages"]))
        kind = draw(st.sampled_from(modes)) if odd == "mode" else mode
        size = (height + 1, width) if odd == "size" else (height, width)
        values = np.random.RandomState(draw(st.integers(0, 1000))).uniform(size=size)
        content = picture(values, kind, ending, deep, n_pages=2 if odd == "pages" else 1)
        if odd == "bytes":
            content = draw(st.binary(max_size=40))
        elif odd == "cut":
            content = content[: draw(st.integers(0, len(content)))]
        found["/".join(part for part in (*place[:1], place[1] + ending) if part)] = content
    return found


ENDINGS = [".png", ".PNG", ".tif", ".bmp", ".gif", ".jpg", ".webp", ".txt"]
PLACES = ["", "", "a", "b", "10", "2", "größe", "日本", ".hidden", "a/b", "with blank"]
STEMS = ["0", "1", "x", ".x", "ö", "a.b", "0 (1)"]


def picture(values, mode, ending, deep, n_pages):
    """A picture of values in [0, 1] as a file of that kind holds it; empty where that kind can't hold the mode."""
    scales = {
        "I;16": (65535, np.uint16),
        "I": (65535 if deep else 200, np.int32),
        "F": (1 if deep else 9, np.float32),
    }
    scale, kind = scales.get(mode, (255 if deep else 1, np.uint8))
    made = Image.fromarray((values * scale).astype(kind))
    made = made if mode in scales else made.convert(mode)
    stream = io.BytesIO()
    try:
        form = Image.registered_extensions().get(ending.lower(), "PNG")
        made.save(
            stream, form, **({"save_all": True, "append_images": [made] * (n_pages - 1)} if n_pages > 1 else {})
        )
    except (OSError, ValueError, TypeError, KeyError):
        return b""
    return stream.getvalue()


@tried(60)
@given(pictures())
def test_a_folder_of_pictures_is_read_or_refused(files):
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        found = answered(lambda: read_images(Path(folder)))
        if found is None:
            return
        seen = [n for n in files if not n.endswith(".txt") and not any(p.startswith(".") for p in n.split("/"))]
        assert sorted(found.files) == sorted(seen)
        assert found.pixels.min() >= 0
        assert found.pixels.max() <= 1
        places = [name.rpartition("/")[0] for name in found.files]
        if len(set(places)) > 1:  # one label to a subfolder
            assert len(set(zip(places, found.labels.tolist(), strict=True))) == len(set(places))
        else:
            assert found.labels is None


@tried(12)
@given(pictures(least=4), st.sampled_from(["images", "boltzmann"]))
def test_a_run_on_pictures_is_made_and_asked_or_refused(files, task):
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "pictures"
        data.mkdir()
        for name, content in files.items():
            # Enough of them for a test set.
            for copy in range(4):
                path = (data / name).with_stem(f"{Path(name).stem}-{copy}")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        if task == "images":
            ask = lambda: ImageSettings(data=str(data), steps=1)  # noqa: E731
        else:
            ask = lambda: BoltzmannSettings(data=str(data), epochs=1, hidden=[2])  # noqa: E731
        run = answered(lambda: fit_run(Path(folder) / "run", ask(), verbose=False))
        if run is None:
            # What is left of a training that diverged is for whoever looks for the reason.
            left = list((Path(folder) / "run").rglob("*"))
            assert not left or any("training" in path.parts for path in left)
            return
        for verb in run.verbs:
            answered(lambda verb=verb: getattr(run, verb)(5 if verb == "sample" else data))


@tried(6)
@given(pixels())
def test_an_energy_of_images_fits_or_refuses(array):
    model = ImageEBM(hidden=(4,), max_steps=1, n_steps=1, buffer_size=10, batch_size=4, random_state=0)
    found = answered(lambda: model.fit(array).score_samples(array))
    assert found is None or np.isfinite(found).all()


if _N:
    pytestmark = pytest.mark.filterwarnings("ignore")
