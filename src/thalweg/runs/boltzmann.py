"""A run of a Boltzmann machine, restricted or deep, on a table or on images: read, split, train, measure, save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm

from thalweg.data.encoding import is_number
from thalweg.data.images import Images, read_images
from thalweg.data.states import KINDS, StateEncoder
from thalweg.data.tables import read_table
from thalweg.data.target import whole_numbers
from thalweg.energies.machines.units import Gaussian
from thalweg.estimators.boltzmann import RestrictedBoltzmannMachine
from thalweg.estimators.deep import DeepBeliefNetwork, DeepBoltzmannMachine
from thalweg.evaluation.density_baselines import GaussianBaseline
from thalweg.runs.density import (
    MODEL_NAME,
    as_numbers,
    columns_of,
    completed_tables,
    read_numbers,
    scored,
    thinned,
)
from thalweg.runs.folder import (
    begin_run,
    check_run,
    check_unchanged,
    fingerprint_of,
    finish_run,
    listed,
    read_figures,
    read_run_settings,
    split_rows,
    versions,
    without_infinities,
)
from thalweg.training.class_machines import class_energies, class_offsets, machines_of_classes
from thalweg.training.loop import History
from thalweg.training.moments import LearningPlan

TASK = "boltzmann"
Machine = RestrictedBoltzmannMachine | DeepBoltzmannMachine | DeepBeliefNetwork
MODELS: dict[str, type[Machine]] = {
    "restricted": RestrictedBoltzmannMachine,
    "deep": DeepBoltzmannMachine,
    "belief": DeepBeliefNetwork,
}
NAMES = {
    "restricted": "restricted Boltzmann machine",
    "deep": "deep Boltzmann machine",
    "belief": "deep belief network",
}
_BOUND = {
    "deep": "Log-likelihoods of a deep machine are lower bounds, by mean field.",
    "belief": "Log-likelihoods of a belief network are lower bounds, by 100 draws of its hidden units a row.",
}
INDEPENDENT = "independent columns"
_MOST_CATEGORIES = 50
_CLASS_BATCH = 20
_BATCH = 64
_FIGURES = {
    "data", "shape", "columns", "constant", "types", "visible", "remarks", "rows", "training_rows", "test_rows",
    "hidden", "log_normaliser", "log_normaliser_error", "scores", "training_log_prob", "seconds", "events",
    "made_with",
}  # fmt: skip


@dataclass(frozen=True)
class BoltzmannSettings:
    """What decides a run's result.

    Attributes:
        data: path of a table, of a folder of pictures, or of an ``.npz``.
        drop: columns of a table to leave out.
        visible: kind of the visible units: "auto", "binary", "gaussian", "categorical", "mixed".
        kind: "restricted", "deep" (a deep Boltzmann machine) or "belief" (a deep belief network).
        hidden: hidden units of each layer, from below; none is as many as there are columns, from 16 to 256, and
            half of them in a second layer, where there is one.
        epochs: passes over the data; None is as many as give 3000 updates, but at least 50. Deep machines make
            half as many before, for each layer.
        learning_rate, gibbs, persistent, temperatures: see :class:`RestrictedBoltzmannMachine`.
        grey: take grey values of images as probabilities, instead of cutting at the middle.
        test_fraction: part of the rows held out and never trained on, in (0, 1).
        seed: of the split and the training.
        threads: of PyTorch.
        checkpoint_seconds: least time between two checkpoints.
    """

    data: str
    drop: list[str] = field(default_factory=list)
    visible: str = "auto"
    kind: str = "restricted"
    hidden: list[int] = field(default_factory=list)
    epochs: int | None = None
    learning_rate: float | None = None
    gibbs: int = 1
    persistent: bool = True
    temperatures: int | None = None
    grey: bool = False
    test_fraction: float = 0.1
    seed: int = 0
    threads: int | None = None
    checkpoint_seconds: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"the test fraction must be above 0 and below 1, got {self.test_fraction}")
        if self.visible not in KINDS:
            raise ValueError(f"--visible must be one of {', '.join(KINDS)}; got {self.visible!r}")
        if self.kind not in MODELS:
            raise ValueError(f"--kind must be one of {', '.join(MODELS)}; got {self.kind!r}")
        n_layers = len(self.hidden)
        if self.kind == "restricted" and n_layers > 1:
            raise ValueError("a restricted machine has one layer of hidden units: take --kind deep or belief")
        if self.kind == "deep" and n_layers == 1:
            raise ValueError("a deep machine has two layers at least: give --hidden twice")
        if any(n < 1 for n in self.hidden):
            raise ValueError(f"--hidden must be at least 1, got {min(self.hidden)}")
        if self.kind != "restricted" and (self.grey or self.temperatures or not self.persistent):
            raise ValueError("--grey, --temperatures and --from-data are for restricted machines")
        if (self.temperatures or 1) > 1 and not self.persistent:
            raise ValueError("--temperatures is for chains that go on: leave out --from-data")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"--learning-rate must be positive, got {self.learning_rate:g}")


@dataclass
class Rows:
    """Rows ready for a machine.

    Attributes:
        training, test: complete rows.
        encoder: how rows become states of the visible units.
        types: of each column of a table, constant ones too: "text", "truth", "whole" or "number".
        shape: (C, H, W) of images, None of a table.
        constant: columns left out because they never change, with their values.
        remarks: what a user should know of how the data were taken.
        n_rows: of the data.
        fingerprint: of the data.
        labels: of the training and the test rows, numbers from 0, where images have them.
    """

    training: pd.DataFrame
    test: pd.DataFrame
    encoder: StateEncoder
    types: dict[str, str]
    shape: list[int] | None
    constant: dict[str, Any]
    remarks: list[str]
    n_rows: int
    fingerprint: str
    labels: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def kind(self) -> str:
        """Of the visible units."""
        return self.encoder.kind


@dataclass
class FinishedMachine:
    """A finished run: its settings, figures and model; the rows are read again where they are asked for."""

    folder: Path
    settings: BoltzmannSettings
    figures: dict[str, Any]
    model: Machine

    @property
    def histories(self) -> dict[str, History]:
        """Of each stage of the training."""
        if isinstance(self.model, RestrictedBoltzmannMachine):
            return {"training": self.model.history_}
        *layers, last = self.model.history_
        found = {f"layer {k + 1}": history for k, history in enumerate(layers)}
        return found | {"the whole" if layers else "layer 1": last}

    @property
    def shape(self) -> list[int] | None:
        """(C, H, W) of images, None of a table."""
        return self.figures["shape"]

    @property
    def columns(self) -> list[str]:
        return list(self.figures["columns"])

    def rows(self) -> Rows:
        """What it was made with.

        Raises:
            ValueError: if the data are gone, or others.
        """
        rows = read_rows(self.settings)
        check_unchanged(self.folder, self.settings.data, rows.fingerprint)
        return rows


# -- making a run ------------------------------------------------------------------------------------


def fit_boltzmann_run(
    folder: Path,
    settings: BoltzmannSettings,
    *,
    resume: bool = False,
    overwrite: bool = False,
    verbose: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> FinishedMachine:
    """Train a machine, measure it beside independent columns on rows held out, and save it all.

    Raises:
        ValueError: for data or settings that can't be used, or a folder that holds another run.
        DivergenceError: if training can't be kept from diverging.
    """
    if check_run(folder, TASK, settings, resume=resume, overwrite=overwrite):
        tell("This run is finished already.")
        return load_boltzmann_run(folder)
    rows = read_rows(settings)
    begin_run(folder, TASK, settings, settings.data, rows.fingerprint, resume=resume)
    model = _machine(settings, rows, verbose)
    test = _states(rows.test, settings.seed) if rows.kind == "binary" else rows.test
    how: dict[str, Any] = {"held_out": test} if settings.kind == "restricted" else {}
    model.fit(
        rows.training,
        run_dir=folder / "training",
        resume=resume,
        checkpoint_seconds=settings.checkpoint_seconds,
        **how,
    )
    histories = [model.history_] if isinstance(model.history_, History) else model.history_
    tell("Measuring the machine: log Z, reconstructions.")
    start = time.monotonic()
    figures = {
        "data": Path(settings.data).name,
        "shape": rows.shape,
        "columns": list(rows.training.columns),
        "constant": rows.constant,
        "types": rows.types,
        "visible": rows.kind,
        "remarks": [*rows.remarks, *([_BOUND[settings.kind]] if settings.kind in _BOUND else [])],
        "rows": rows.n_rows,
        "training_rows": len(rows.training),
        "test_rows": len(rows.test),
        "hidden": _widths(settings, rows),
        "log_normaliser": model.log_normaliser_,
        "log_normaliser_error": model.log_normaliser_error_,
        "scores": _scores(model, rows.training, test),
        "training_log_prob": thinned(model.score_samples(rows.training)),
        "seconds": {"training": sum(h.seconds for h in histories), "measuring": time.monotonic() - start},
        "events": [event for h in histories for event in h.events],
        "made_with": versions(),
    }
    if rows.labels is not None and rows.kind == "binary" and settings.kind == "restricted":
        tell("One machine for each class, and what it takes the others for.")
        figures["classes"] = _classes(rows, test, settings)
    model.save(folder / "model")
    finish_run(folder, figures)
    return FinishedMachine(folder, settings, figures, model)


def _classes(rows: Rows, test: pd.DataFrame, settings: BoltzmannSettings) -> dict[str, Any] | None:
    """Mean energies of each class's held-out rows under the machine of each, and the share told right by them."""
    assert rows.labels is not None
    names, index = np.unique(np.concatenate(rows.labels), return_inverse=True)
    labels, test_labels = (torch.from_numpy(part) for part in np.split(index, [len(rows.training)]))
    smallest = int(np.bincount(labels.numpy(), minlength=len(names)).min())
    if not 2 <= len(names) <= 20 or smallest < 20 or len(np.unique(test_labels)) < len(names):
        return None
    data, held_out = (
        torch.from_numpy(t.to_numpy(np.float32)) for t in (_states(rows.training, settings.seed), test)
    )
    updates = max(1, smallest // _CLASS_BATCH)
    plan = LearningPlan(max(10, 1600 // updates), _CLASS_BATCH, learning_rate=0.1, seed=settings.seed)
    with torch.random.fork_rng(devices=[]):
        machines = machines_of_classes(data, labels, min(64, max(12, data.shape[1] // 8)), plan)
    offset = class_offsets(class_energies(machines, data), labels)
    energies = class_energies(machines, held_out) + offset
    means = torch.stack([energies[test_labels == k].mean(0) for k in range(len(names))])
    return {
        "names": [str(name) for name in names],
        "energies": means.tolist(),
        "right": float((energies.argmin(1) == test_labels).float().mean()),
    }


def _widths(settings: BoltzmannSettings, rows: Rows) -> list[int]:
    """Hidden units of each layer."""
    n = int(np.clip(rows.training.shape[1], 16, 256))
    return settings.hidden or ([n] if settings.kind == "restricted" else [n, n // 2])


def _machine(settings: BoltzmannSettings, rows: Rows, verbose: bool) -> Machine:
    n_batches = max(1, len(rows.training) // _BATCH)
    n_epochs = settings.epochs or max(50, math.ceil(3000 / n_batches))
    common: dict[str, Any] = {
        "visible": rows.kind,
        "learning_rate": settings.learning_rate,
        "batch_size": _BATCH,
        "n_iter": n_epochs,
        "n_gibbs": settings.gibbs,
        "n_threads": settings.threads,
        "verbose": verbose,
        "random_state": settings.seed,
    }
    widths = _widths(settings, rows)
    if settings.kind != "restricted":
        deep = DeepBoltzmannMachine if settings.kind == "deep" else DeepBeliefNetwork
        return deep(widths, n_iter_pretraining=max(1, n_epochs // 2), **common)
    return RestrictedBoltzmannMachine(
        widths[0], persistent=settings.persistent, n_temperatures=settings.temperatures, **common
    )


def read_rows(settings: BoltzmannSettings) -> Rows:
    """Read what a run is made with, and split it.

    Raises:
        ValueError: for data that a machine can't take, in words.
    """
    path = Path(settings.data)
    images = path.is_dir() or path.suffix.lower() == ".npz"
    return _image_rows(settings, read_images(path)) if images else _table_rows(settings)


_TAKEN = {"binary": "binary (0 or 1)", "categorical": "categories", "gaussian": "numbers, as Gaussian units"}


def _table_rows(settings: BoltzmannSettings) -> Rows:
    if settings.grey:
        raise ValueError("--grey is for images")
    types: dict[str, str] = {}
    found = read_numbers(
        settings.data,
        settings.drop,
        settings.test_fraction,
        settings.seed,
        partial(_as_states, visible=settings.visible, types=types),
    )
    training, test = found.training, found.test
    # Numbers of a table are not taken for probabilities.
    visible = "mixed" if settings.visible == "auto" else settings.visible
    encoder = StateEncoder(visible).fit(training.to_numpy(), training.columns)
    remarks = []
    for kind, name in _TAKEN.items():
        columns = [str(training.columns[k]) for k in encoder.columns(kind)]
        remarks += [f"Taken as {name}: {listed(columns)}."] if columns else []
    remarks += found.remarks
    texts = [training.columns[k] for k in encoder.columns("categorical")]
    known = np.logical_and.reduce([np.ones(len(test), bool), *(test[c].isin(training[c].unique()) for c in texts)])
    if not known.all():
        n = int((~known).sum())
        remarks.append(f"{n} rows held out have categories that no training row has, and are not judged.")
    if len(test) and not known.any():
        most = max(texts, key=lambda c: training[c].nunique())
        raise ValueError(
            f"every row held out has a category that no training row has; column {most!r} has "
            f"{training[most].nunique()} of them in {len(training)} rows: leave it out (--drop)"
        )
    test = test[known]
    encoder.encode(test.to_numpy(), training.columns)
    return Rows(training, test, encoder, types, None, found.constant, remarks, found.n_rows, found.fingerprint)


def _image_rows(settings: BoltzmannSettings, images: Images) -> Rows:
    if settings.visible in ("categorical", "mixed"):
        raise ValueError("pixels are all of one kind: take --visible auto, binary or gaussian")
    if settings.drop:
        raise ValueError("--drop is for columns of tables")
    flat = images.pixels.reshape(len(images.pixels), -1).astype(np.float64)
    kind = "binary" if settings.visible == "auto" else settings.visible
    two = bool(((flat == 0) | (flat == 1)).all())
    remarks = []
    if kind == "gaussian":
        remarks.append("Grey values are taken as numbers, by Gaussian units.")
    elif settings.grey and not two:
        remarks.append(
            "Grey values are taken as probabilities: black and white are drawn from them anew in every update, "
            "and once for the figures."
        )
    elif not two:
        flat = (flat > 0.5).astype(np.float64)
        remarks.append("Pixels are cut at the middle into black and white (--grey keeps grey values).")
    table = pd.DataFrame(flat, columns=[f"pixel {i + 1}" for i in range(flat.shape[1])])
    training, test = split_rows(len(table), settings.test_fraction, settings.seed)
    return Rows(
        table.iloc[training],
        table.iloc[test],
        StateEncoder(kind).fit(table.iloc[training].to_numpy(), table.columns),
        {},
        list(images.pixels.shape[1:]),
        {},
        remarks,
        len(table),
        fingerprint_of(table),
        None if images.labels is None else (images.labels[training], images.labels[test]),
    )


def _as_states(table: pd.DataFrame, visible: str, types: dict[str, str]) -> pd.DataFrame:
    """Columns as numbers or as categories; what they are goes to ``types``."""
    types.update({c: _type_of(table[c]) for c in table.columns})
    constant = {c for c in table.columns if table[c].nunique() == 1}  # they say nothing of the others
    mixed = visible in ("auto", "mixed")
    return pd.DataFrame(
        {
            c: _as_categories(table[c])
            if visible == "categorical" or (types[c] == "text" and (mixed or c in constant))
            else as_numbers(table[c])
            for c in table.columns
        }
    )


def _type_of(column: pd.Series) -> str:
    if not is_number(column):
        return "text"
    known = column.dropna()
    if len(known) and known.map(lambda v: isinstance(v, bool | np.bool_)).all():
        return "truth"
    if not pd.api.types.is_numeric_dtype(column) and known.dtype != object:
        return "number"  # dates and spans, which are refused
    values = known.to_numpy(np.float64)
    return "whole" if len(values) and whole_numbers(values).all() else "number"


def _as_categories(column: pd.Series, known: Sequence[Any] = ()) -> pd.Series:
    """Texts, or numbers where all values are numbers; of rows to judge, as the known categories are."""
    n = column.nunique()
    if n > _MOST_CATEGORIES:
        numbers = pd.to_numeric(column, errors="coerce")
        odd = column[numbers.isna() & column.notna()]
        told = ""
        if 0 < len(odd) < len(column) / 2:
            example = f"{odd.iloc[0]!r} in row {int(odd.index[0]) + 1}"
            told = f"it holds numbers but for texts such as {example}: mend these, or "
        raise ValueError(
            f"column {column.name!r} has {n} different values, too many for categories (at most "
            f"{_MOST_CATEGORIES}): {told}leave it out (--drop)"
        )
    if any(isinstance(v, str) for v in known):
        # A file that lacks the texts of the training table has numbers where that had "1".
        kept = column.map(lambda v: _text(v, known), na_action="ignore")
    elif is_number(column):
        kept = column.astype(float)
    elif known:
        numbers = pd.to_numeric(column, errors="coerce")
        kept = numbers.astype(object).where(numbers.notna(), column)
    else:
        kept = column.map(str, na_action="ignore")
    return kept.astype(object).where(column.notna(), np.nan)


def _text(value: Any, known: Sequence[Any]) -> str:
    text = str(value)
    return str(int(value)) if text not in known and isinstance(value, float) and value.is_integer() else text


def _states(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Rows of 0 and 1, drawn from probabilities where there are any."""
    return (np.random.RandomState(seed).uniform(size=rows.shape) < rows).astype(np.float64)


def _scores(model: Machine, training: pd.DataFrame, test: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Log-likelihood and reconstruction error of the machine and of what it must beat."""
    encoder = model.encoder_
    states, log_prob, off = encoder.encode(test.to_numpy()), model.score_samples(test), model.log_normaliser_error_
    means, alone = encoder.encode(training.to_numpy()).mean(0), np.zeros(len(test))
    bias = model.base_bias_.double()
    for units, place in model.energy_.visible.parts:
        if not isinstance(units, Gaussian):
            with torch.no_grad():
                alone += states[:, place] @ bias[place].numpy() - float(units.log_partition(bias[place]))
                means[place] = units.mean(bias[place]).numpy()
    for k in encoder.columns("gaussian"):
        known = training.iloc[:, k].to_numpy(np.float64)
        alone += norm(known.mean(), known.std()).logpdf(test.iloc[:, k].to_numpy(np.float64))
    back = model.reconstruct(test, encoded=True)
    found = {
        MODEL_NAME: _score(log_prob, off, float(np.square(back - states).mean())),
        INDEPENDENT: _score(alone, 0.0, float(np.square(means - states).mean())),
    }
    if encoder.kind == "gaussian" and len(training) > training.shape[1]:
        gaussian = GaussianBaseline().fit(training.to_numpy()).log_prob(test.to_numpy())
        found[GaussianBaseline.name] = _score(gaussian, 0.0, None)
    return found


def _score(log_prob: np.ndarray, off: float, reconstruction: float | None) -> dict[str, Any]:
    entry = scored(log_prob)
    return without_infinities(
        {
            "log_likelihood": -entry["nll"],
            "error": entry["nll_error"],
            "log_normaliser_error": off,
            "reconstruction": reconstruction,
        }
    )


# -- using a run -------------------------------------------------------------------------------------


def read_boltzmann_settings(folder: Path) -> BoltzmannSettings:
    """The settings of a run.

    Raises:
        ValueError: if the folder holds no run, one of another kind, or a damaged one.
    """
    return read_run_settings(folder, TASK, BoltzmannSettings)


def load_boltzmann_run(folder: Path) -> FinishedMachine:
    """Read a finished run.

    Raises:
        ValueError: if the folder holds no run, one of another kind, an unfinished or a damaged one.
    """
    settings = read_boltzmann_settings(folder)
    figures = read_figures(folder, TASK, _FIGURES)
    return FinishedMachine(folder, settings, figures, MODELS[settings.kind].load(folder / "model"))


def sample_rows(run: FinishedMachine, n: int, seed: int = 0) -> pd.DataFrame:
    """n rows drawn from the machine, with the training table's columns, each in its type."""
    table = pd.DataFrame(run.model.sample(n, random_state=seed), columns=run.columns).infer_objects()
    for name, value in run.figures["constant"].items():
        table[name] = value
    return _in_their_types(run, table)


def _in_their_types(run: FinishedMachine, table: pd.DataFrame) -> pd.DataFrame:
    """Columns without gaps as the training table had them: whole numbers as such, truth values too."""
    kinds: dict[str, type] = {}
    for name, kind in run.figures["types"].items():
        if kind not in ("whole", "truth") or name not in table.columns or table[name].isna().any():
            continue
        values = pd.to_numeric(table[name], errors="coerce")
        if kind == "truth" and values.isin((0, 1)).all():
            kinds[name] = bool
        elif kind == "whole" and (values == values.round()).all():
            kinds[name] = int
    return table.astype(kinds)


def sample_images(run: FinishedMachine, n: int, seed: int = 0) -> np.ndarray:
    """n images ``[n, C, H, W]`` drawn from the machine."""
    assert run.shape is not None
    return run.model.sample(n, random_state=seed).reshape(n, *run.shape).clip(0, 1)


def score_rows(run: FinishedMachine, path: Path) -> pd.DataFrame:
    """How likely each row or image of a file is; empty for rows with gaps.

    ``log_prob`` is in nats, of deep machines a lower bound; ``outlier_score`` is the part of the training rows
    that are likelier.
    """
    X = _asked(run, path)
    known = X.notna().all(axis=1).to_numpy()
    log_prob, score = np.full(len(X), np.nan), np.full(len(X), np.nan)
    if known.any():
        log_prob[known] = run.model.score_samples(X[known])
        training = np.array(run.figures["training_log_prob"])
        score[known] = 1 - np.searchsorted(training, log_prob[known], side="right") / len(training)
    return pd.DataFrame({"log_prob": log_prob, "outlier_score": score})


def impute_rows(run: FinishedMachine, path: Path, n: int = 1, seed: int = 0) -> pd.DataFrame:
    """The table of a file with the gaps in the model's columns filled by draws given the rest of the row.

    With several imputations they are stacked, and a column ``imputation`` counts them from 1.
    """
    if run.shape is not None:
        raise ValueError(f"{run.folder} holds a run on images: gaps are filled in tables")
    if isinstance(run.model, DeepBeliefNetwork):
        raise ValueError(
            f"{run.folder} holds a deep belief network, which can't fill gaps: there is no exact way to draw a "
            "row given a part of it. Fit with --kind deep or restricted"
        )
    table = read_table(path)
    if n > 1 and "imputation" in table.columns:
        raise ValueError("the table has a column 'imputation' already: rename it, or ask for one imputation")
    X = _model_columns(run, table)
    filled = run.model.impute(X, n, random_state=seed)
    return _in_their_types(run, completed_tables(table, X, filled, run.figures["constant"]))


def _asked(run: FinishedMachine, path: Path) -> pd.DataFrame:
    if run.shape is None:
        return _model_columns(run, read_table(path))
    pixels = read_images(path).pixels
    if list(pixels.shape[1:]) != run.shape:
        raise ValueError(
            f"the images are {' x '.join(map(str, pixels.shape[1:]))}, and the machine was trained on "
            f"{' x '.join(map(str, run.shape))}"
        )
    flat = pixels.reshape(len(pixels), -1).astype(np.float64)
    cut = run.figures["visible"] == "binary" and not run.settings.grey
    return pd.DataFrame((flat > 0.5).astype(np.float64) if cut else flat, columns=run.columns)


def _model_columns(run: FinishedMachine, table: pd.DataFrame) -> pd.DataFrame:
    columns, encoder = columns_of(table, run.columns), run.model.encoder_
    empty = np.full(len(table), np.nan)
    return pd.DataFrame(
        {
            c: _as_categories(columns[c], known)
            if known
            else empty
            if columns[c].isna().all()
            else as_numbers(columns[c])
            for c, known in zip(run.columns, encoder.categories, strict=True)
        }
    )
