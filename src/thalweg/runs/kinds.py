"""Whether what was read from JSON is what a type says: settings and figures of a run, checked by their types."""

from __future__ import annotations

import math
import types
from typing import Annotated, Any, Literal, TypedDict, Union, get_args, get_origin, get_type_hints

_MOST = 2**63


class Least:
    """Of ``Annotated[int, Least(0)]``: the least value of a number."""

    def __init__(self, value: float):
        self.value = value


Count = Annotated[int, Least(0)]
Seconds = Annotated[float, Least(0)]


def misfit(value: Any, kind: Any, name: str = "") -> str | None:
    """What is wrong with a value, in words; None if it is what the type says.

    Args:
        kind: a type of JSON's values: ``bool``, ``int``, ``float`` (finite), ``str``, ``None``, ``list[...]``,
            ``dict[str, ...]``, a union, a ``Literal``, a ``TypedDict``, ``Annotated[..., Least(...)]``, ``Any``.
        name: what the value is, for the words.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return None
    if origin is Annotated:
        wrong = misfit(value, arguments[0], name)
        least = arguments[1].value
        return wrong or (f"{name} is {value:g}, below {least:g}" if value < least else None)
    if origin is Literal:
        return None if value in arguments else _told(value, name)
    if origin in (Union, types.UnionType):
        return None if any(misfit(value, one, name) is None for one in arguments) else _told(value, name)
    if isinstance(kind, type) and issubclass(kind, dict) and hasattr(kind, "__required_keys__"):
        return _of_entries(value, kind, name)
    if origin is list:
        if not isinstance(value, list):
            return _told(value, name)
        return next(filter(None, (misfit(v, arguments[0], f"an entry of {name}") for v in value)), None)
    if origin is dict:
        if not isinstance(value, dict):
            return _told(value, name)
        return next(filter(None, (misfit(v, arguments[1], f"{name} of {k!r}") for k, v in value.items())), None)
    return None if _is_plain(value, kind) else _told(value, name)


def _of_entries(value: Any, kind: Any, name: str) -> str | None:
    if not isinstance(value, dict):
        return _told(value, name)
    lacking = sorted(kind.__required_keys__ - set(value))
    if lacking:
        return "it lacks " + ", ".join(map(repr, lacking))
    hints = get_type_hints(kind, include_extras=True)
    return next(filter(None, (misfit(value[k], hint, repr(k)) for k, hint in hints.items() if k in value)), None)


def _is_plain(value: Any, kind: Any) -> bool:
    if kind is None or kind is types.NoneType:
        return value is None
    if kind is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and abs(value) < _MOST**16 and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST
    return isinstance(value, kind)


def _told(value: Any, name: str) -> str:
    shown = repr(value)
    return f"{name} can't be {shown if len(shown) <= 40 else shown[:37] + '...'}"


class CheckEntry(TypedDict):
    name: str
    state: Literal["passed", "doubtful", "failed"]
    text: str


class _Optional(TypedDict, total=False):
    files: dict[str, str]
    verdict: list[CheckEntry]


class RunFigures(_Optional):
    """The figures that every run has; a task declares its own beside them.

    Attributes:
        seconds: how long each part took; one is "training".
        made_with: versions and machine.
        files: SHA-256 of files beside the figures, by their path in the folder.
    """

    seconds: dict[str, Seconds]
    made_with: dict[str, str]


class TableFigures(RunFigures):
    """The figures of a run on a table, beside which a task declares more."""

    kinds: dict[str, str]
    remarks: list[str]
    rows: Count
    training_rows: Count
    test_rows: Count
    scores: dict[str, dict[str, Any]]


class RegressionFigures(TableFigures):
    table: str
    inputs: list[str]
    ignored: list[str]
    resolution: dict[str, Annotated[float, Least(0)]]
    validation_nll: float | None


class Outlier(TypedDict):
    row: Count
    log_prob: float
    training: bool
    values: list[Any]


class DensityFigures(TableFigures):
    table: str
    columns: list[str]
    constant: dict[str, Any]
    resolution: dict[str, Annotated[float, Least(0)]]
    column_nll: dict[str, float]
    log_normaliser: float
    log_normaliser_error: Annotated[float, Least(0)]
    validation_nll: float | None
    outliers: list[Outlier]
    held_out_log_prob: list[float]


class OddRow(TypedDict):
    row: Count
    score: float
    p_value: Annotated[float, Least(0)]
    training: bool
    values: list[Any]


class DetectorFigures(TableFigures):
    table: str
    columns: list[str]
    constant: dict[str, Any]
    alpha: float
    odd_rows: list[OddRow]
    training_p_values: list[float]
    test_p_values: list[float]


class BoltzmannFigures(TableFigures):
    data: str
    shape: list[Count] | None
    columns: list[str]
    constant: dict[str, Any]
    types: dict[str, str]
    visible: str
    hidden: list[Count]
    log_normaliser: float
    log_normaliser_error: Annotated[float, Least(0)]
    held_out_log_prob: list[float]


class GeneratorFigures(RunFigures):
    data: str
    shape: list[Count] | None
    columns: list[str]
    constant: dict[str, Any]
    kinds: dict[str, str]
    remarks: list[str]
    rows: Count
    training_rows: Count
    test_rows: Count
    scores: dict[str, float]
    held_out_scores: list[float]


class ImageFigures(RunFigures):
    images: str
    shape: list[Count]
    training_images: Count
    test_images: Count
    labels: Count
    scores: dict[str, float]
    remarks: list[str]


class AttackFigures(TypedDict):
    radii: list[float]
    n_rows: Count
    gradient: list[float]
    gradient_free: list[float]
    transfer: list[float]
    worst: list[float]
    doubts: list[str]


class SequenceFigures(TableFigures):
    data: str
    inputs: list[str]
    target: str
    sequence: str
    target_kind: str
    sequences: Count
    training_sequences: Count
    test_sequences: Count
    unlabelled_rows: Count
    classes: list[str]
    class_counts: list[Count]
    temperature: float
    temperature_gain: float | None
    spans: bool


class ClassifierFigures(TableFigures):
    data: str
    shape: list[Count] | None
    inputs: list[str]
    target_kind: str
    test_places: list[Count]
    unlabelled_rows: Count
    classes: list[str]
    class_counts: list[Count]
    temperature: float
    temperature_gain: float | None
    normalised: bool
    held_out_log_prob: list[float]
    detection: dict[str, float]
    robustness: AttackFigures | None


class RankerFigures(TableFigures):
    table: str
    inputs: list[str]
    test_places: list[Count]
    groups: Count
    test_groups: Count
    group_rows: list[Count]


class GridEntry(TypedDict):
    kind: Literal["step", "months", "workdays", "uneven"]
    step: Annotated[float, Least(0)]
    dates: bool
    day: Annotated[int, Least(1)]


class ForecastFigures(TableFigures):
    table: str
    time: str
    targets: list[str]
    series: str | None
    known: list[str]
    style: Literal["number", "date", "month", "quarter"]
    grid: GridEntry
    cycles: list[Literal["hour of the day", "day of the week", "day of the year"]]
    horizon: Annotated[int, Least(1)]
    season: Count
    n_series: Count
    test_series: Count
    forecasts: Count
    apart: Count
    whole_series: bool
    scale: list[float]
