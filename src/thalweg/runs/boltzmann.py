"""A run of a Boltzmann machine, restricted or deep, on a table or on images: read, split, train, measure, save."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm

from thalweg._torch_state import using_threads
from thalweg.data.images import Images, read_images
from thalweg.data.tables import Cells, read_cells
from thalweg.energies.machines import Gaussian
from thalweg.estimators._base import suitable_threads
from thalweg.estimators.belief import DeepBeliefNetwork
from thalweg.estimators.boltzmann import RestrictedBoltzmannMachine
from thalweg.estimators.deep import DeepBoltzmannMachine
from thalweg.evaluation.density_baselines import BernoulliMixture, GaussianBaseline
from thalweg.evaluation.row_checks import check_samples
from thalweg.evaluation.verdict import Check, check_baselines, check_normaliser
from thalweg.runs.base import MODEL_NAME, Run, Tell, TextTable
from thalweg.runs.kinds import BoltzmannFigures
from thalweg.runs.settings import Verb
from thalweg.runs.settings.boltzmann import BoltzmannSettings
from thalweg.runs.states import Rows, binary_rows, read_rows
from thalweg.runs.tables import (
    beside,
    checks_of_table,
    completed_tables,
    few_held_out,
    gains_of,
    model_settings,
    places_of,
    refuse_counter,
    rows_of,
    scored,
    scored_rows,
    thinned,
    with_error,
    without_infinities,
)
from thalweg.training.class_machines import class_energies, class_offsets, machines_of_classes
from thalweg.training.moments import machine_plan

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
    "deep": "Log-likelihoods of a deep machine are lower bounds, computed by mean field.",
    "belief": (
        "Log-likelihoods of a belief network are lower bounds, from 100 draws of its hidden units for each row."
    ),
}
INDEPENDENT, MIXTURE = "independent columns", "mixture of 30 Bernoullis"
_MOST_OF_MIXTURE = 5000
# Of machines of classes: rows of an update, and least number of updates of an epoch.
_CLASS_BATCH, _CLASS_EPOCH = 20, 50
_BATCH = 64


class BoltzmannRun(Run):
    """A machine on a table or on images, beside independent columns on rows held out."""

    settings_class = BoltzmannSettings
    figures_class = BoltzmannFigures

    @property
    def shape(self) -> list[int] | None:
        """(C, H, W) for images, None for a table."""
        return self.figures["shape"]

    @property
    def columns(self) -> list[str]:
        return list(self.figures["columns"])

    # -- making --------------------------------------------------------------------------------------

    @classmethod
    def read(cls, settings: BoltzmannSettings) -> Rows:
        return read_rows(settings)

    @classmethod
    def build(cls, settings: BoltzmannSettings, data: Rows, verbose: bool) -> Machine:
        n_batches = max(1, len(data.training) // _BATCH)
        n_epochs = settings.epochs or max(50, math.ceil(3000 / n_batches))
        common: dict[str, Any] = {
            "visible": data.kind,
            "learning_rate": settings.learning_rate,
            "batch_size": _BATCH,
            "max_epochs": n_epochs,
            "n_gibbs": settings.gibbs,
            "verbose": verbose,
            **model_settings(settings),
        }
        widths = _widths(settings, data)
        if settings.kind != "restricted":
            deep = DeepBoltzmannMachine if settings.kind == "deep" else DeepBeliefNetwork
            return deep(widths, max_epochs_pretraining=max(1, n_epochs // 2), **common)
        return RestrictedBoltzmannMachine(
            widths[0], persistent=settings.persistent, n_temperatures=settings.temperatures, **common
        )

    @classmethod
    def train(cls, model: Machine, data: Rows, settings: BoltzmannSettings, **how: Any) -> None:
        if settings.kind == "restricted":
            how["held_out"] = _asked_rows(data, settings)
        model.fit(data.training, **how)

    @classmethod
    def measure(cls, model: Machine, data: Rows, settings: BoltzmannSettings, tell: Tell) -> dict[str, Any]:
        tell("Measuring the machine: log Z and reconstructions.")
        start, test = time.monotonic(), _asked_rows(data, settings)
        bound = [_BOUND[settings.kind]] if settings.kind in _BOUND else []
        figures = {
            "data": Path(settings.data).name,
            "shape": data.shape,
            "columns": list(data.training.columns),
            "constant": data.constant,
            "kinds": data.kinds,
            "types": data.types,
            "visible": data.kind,
            "remarks": [*data.remarks, *bound, *few_held_out(len(test)), *model.history_.events],
            "rows": data.n_rows,
            "training_rows": len(data.training),
            "test_rows": len(data.test),
            "hidden": _widths(settings, data),
            "log_normaliser": model.log_normaliser_,
            "log_normaliser_error": model.log_normaliser_error_,
            "scores": _scores(model, data.training, test),
            "held_out_log_prob": thinned(model.score_samples(test)),
        }
        figures["seconds"] = {"measuring": time.monotonic() - start}
        if data.labels is not None and data.kind == "binary" and settings.kind == "restricted":
            tell("Training one machine for each class, to compare the energies of all classes under them.")
            figures["classes"] = _classes(data, test, settings)
        return figures

    @classmethod
    def judge(
        cls, model: Machine, data: Rows, figures: dict[str, Any], settings: BoltzmannSettings
    ) -> list[Check]:
        test = _asked_rows(data, settings)
        found = [
            *checks_of_table(data.n_rows, data.n_used or data.n_rows, len(test), data.doubts),
            check_normaliser(figures["log_normaliser_error"], model.log_normaliser_warning_),
        ]
        if len(test):
            found.append(check_baselines(gains_of(figures["scores"]), len(test)))
            draws = pd.DataFrame(model.sample(200, random_state=settings.seed), columns=data.training.columns)
            drawn, known, fresh = (model.encoder_.encode(rows.to_numpy()) for rows in (draws, data.training, test))
            found += check_samples(drawn, known, fresh)
        return found

    @classmethod
    def load_model(cls, folder: Path, settings: BoltzmannSettings) -> Machine:
        return MODELS[settings.kind].load(folder)

    # -- verbs ---------------------------------------------------------------------------------------

    def sample(self, n: int, seed: int = 0) -> pd.DataFrame | np.ndarray:
        """n rows drawn from the machine, with the training table's columns, each in its type; or n images."""
        draws = self.model.sample(n, random_state=seed)
        if self.shape is not None:
            return draws.reshape(n, *self.shape).clip(0, 1)
        table = pd.DataFrame(draws, columns=self.columns).infer_objects()
        for name, value in self.figures["constant"].items():
            table[name] = value
        return self._in_their_types(table)

    def score(self, path: Path, keep: Sequence[str] = ()) -> pd.DataFrame:
        """How likely each row or image of a file is (see :func:`scored_rows`); for deep machines a lower bound.

        Each is after its row and the columns to keep, or after its file.
        """
        if self.shape is None:
            cells = read_cells(path)
            kept, asked = rows_of(cells.table, keep), self._columns(cells)
        elif keep:
            raise ValueError(f"{self.folder} holds a run on images: --keep is for columns of tables")
        else:
            images = read_images(path)
            kept, asked = places_of(images), self._pixels(images)
        return beside(kept, scored_rows(self.model, asked, self.figures["held_out_log_prob"]))

    def impute(self, path: Path, draws: int = 1, seed: int = 0) -> pd.DataFrame:
        """The table of a file with the gaps in the model's columns filled by draws given the rest of the row.

        Several filled tables are stacked, and a column ``imputation`` counts them from 1.
        """
        if self.shape is not None:
            raise ValueError(f"{self.folder} holds a run on images: gaps are filled in tables")
        if isinstance(self.model, DeepBeliefNetwork):
            raise ValueError(
                f"{self.folder} holds a deep belief network, which can't fill gaps: there is no exact way to draw "
                "a row given a part of it. Fit with --kind deep or restricted"
            )
        cells = read_cells(path)
        refuse_counter(cells.table, draws)
        X = self._columns(cells)
        filled = self.model.impute(X, n_draws=draws, random_state=seed)
        return completed_tables(cells.table, X, filled, self.figures["constant"], self.figures["kinds"])

    def _in_their_types(self, table: pd.DataFrame) -> pd.DataFrame:
        """Columns without gaps as the training table had them: whole numbers as such, truth values too."""
        kinds: dict[str, type] = {}
        for name, kind in self.figures["types"].items():
            if kind not in ("whole", "truth") or name not in table.columns or table[name].isna().any():
                continue
            values = pd.to_numeric(table[name], errors="coerce")
            if kind == "truth" and values.isin((0, 1)).all():
                kinds[name] = bool
            elif kind == "whole" and (values == values.round()).all():
                kinds[name] = int
        return table.astype(kinds)

    def _pixels(self, images: Images) -> pd.DataFrame:
        pixels = images.pixels
        if list(pixels.shape[1:]) != self.shape:
            raise ValueError(
                f"the images are {' x '.join(map(str, pixels.shape[1:]))}, and the machine was trained on "
                f"{' x '.join(map(str, self.figures['shape']))}"
            )
        flat = pixels.reshape(len(pixels), -1).astype(np.float64)
        cut = self.figures["visible"] == "binary" and not self.settings.grey
        return pd.DataFrame((flat > 0.5).astype(np.float64) if cut else flat, columns=self.columns)

    def _columns(self, cells: Cells) -> pd.DataFrame:
        encoder = self.model.encoder_
        known = {c: texts for c, texts in zip(self.columns, encoder.categories, strict=True) if texts}
        found = cells.again(self.figures["kinds"], self.settings.missing, known)
        return pd.DataFrame(
            {
                c: found[c].astype(object).where(found[c].notna(), np.nan)
                if self.figures["kinds"][c] == "text"
                else found[c].to_numpy(np.float64, na_value=np.nan)
                for c in self.columns
            }
        )

    # -- what is shown of it -------------------------------------------------------------------------

    @property
    def verbs(self) -> Mapping[str, Verb]:
        lacks_impute = self.shape is not None or self.settings.kind == "belief"
        return {name: verb for name, verb in super().verbs.items() if name != "impute" or not lacks_impute}

    def summary(self) -> dict[str, str]:
        figures, off = self.figures, self.figures["log_normaliser_error"]
        shape = " x ".join(map(str, self.shape)) if self.shape else f"{len(self.columns)} columns"
        epochs = ", ".join(f"{len(h.epochs)} ({name})" for name, h in self.histories.items())
        return {
            "model": f"{NAMES[self.settings.kind]}, {figures['visible']} visible units ({shape}), "
            f"{' + '.join(map(str, figures['hidden']))} hidden",
            "data": f"{figures['data']}: {figures['training_rows']} training rows, "
            f"{figures['test_rows']} held out (seed {self.settings.seed})",
            "log Z": f"{figures['log_normaliser']:.4f} " + (f"± {off:.2g} nats" if off else "(exact)"),
            "training": f"{figures['seconds']['training']:.1f} s, epochs: {epochs}",
        }

    def tables(self) -> list[TextTable]:
        figures = self.figures
        what = "images" if self.shape else "rows"
        title = f"{figures['data']}: {figures['training_rows']} {what}, {figures['test_rows']} held out"
        rows = []
        for name, entry in figures["scores"].items():
            off, back = entry["log_normaliser_error"], entry["reconstruction"]
            likelihood = with_error(entry["log_likelihood"], entry["error"])
            shown = "" if back is None else f"{back:.4f}"
            rows.append([name, likelihood, f"± {off:.3f}" if off else "exact", shown])
        head = ["model", "log-likelihood, nats", "log Z", "reconstruction error"]
        return [TextTable(title, head, rows)]


def _asked_rows(data: Rows, settings: BoltzmannSettings) -> pd.DataFrame:
    """The held-out rows; black and white are drawn where they are probabilities."""
    return binary_rows(data.test, settings.seed) if data.kind == "binary" else data.test


def _classes(rows: Rows, test: pd.DataFrame, settings: BoltzmannSettings) -> dict[str, Any] | None:
    """Mean energies of each class's held-out rows under every class's machine; the accuracy of the lowest one."""
    assert rows.labels is not None
    names, index = np.unique(np.concatenate(rows.labels), return_inverse=True)
    labels, test_labels = (torch.from_numpy(part) for part in np.split(index, [len(rows.training)]))
    smallest = int(np.bincount(labels.numpy(), minlength=len(names)).min())
    if not 2 <= len(names) <= 20 or smallest < 20 or len(np.unique(test_labels)) < len(names):
        return None
    data, held_out = (
        torch.from_numpy(t.to_numpy(np.float32)) for t in (binary_rows(rows.training, settings.seed), test)
    )
    # An epoch has some work of its own at its end: small classes go through it several times in each.
    updates = max(1, smallest // _CLASS_BATCH)
    repeats = -(-_CLASS_EPOCH // updates)
    n_epochs = max(10, 1600 // (updates * repeats))
    plan = machine_plan(max_epochs=n_epochs, batch_size=_CLASS_BATCH, learning_rate=0.1, seed=settings.seed)
    n_hidden = min(64, max(12, data.shape[1] // 8))
    with using_threads(settings.threads or suitable_threads(_CLASS_BATCH, data.shape[1] * n_hidden)):
        machines = machines_of_classes(data.repeat(repeats, 1), labels.repeat(repeats), n_hidden, plan)
    offset = class_offsets(class_energies(machines, data), labels)
    energies = class_energies(machines, held_out) + offset
    means = torch.stack([energies[test_labels == k].mean(0) for k in range(len(names))])
    return {
        "names": [str(name) for name in names],
        "energies": means.tolist(),
        "right": float((energies.argmin(1) == test_labels).float().mean()),
    }


def _widths(settings: BoltzmannSettings, rows: Rows) -> list[int]:
    """The number of hidden units of each layer."""
    n = int(np.clip(rows.training.shape[1], 16, 256))
    return settings.hidden or ([n] if settings.kind == "restricted" else [n, n // 2])


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
        INDEPENDENT: _score(alone, 0.0, float(np.square(means - states).mean()), log_prob),
    }
    if set(encoder.kinds) <= {"binary", "one-hot"} and not encoder.grey:
        mixture = BernoulliMixture().fit(training.to_numpy(np.float64)[:_MOST_OF_MIXTURE])
        found[MIXTURE] = _score(mixture.log_prob(test.to_numpy(np.float64)), 0.0, None, log_prob)
    if encoder.kind == "gaussian" and len(training) > training.shape[1]:
        gaussian = GaussianBaseline().fit(training.to_numpy()).log_prob(test.to_numpy())
        found[GaussianBaseline.name] = _score(gaussian, 0.0, None, log_prob)
    return found


def _score(
    log_prob: np.ndarray, off: float, reconstruction: float | None, ours: np.ndarray | None = None
) -> dict[str, Any]:
    """The figures of one model; those of a baseline have the machine's gain over it, of ``ours`` its log p."""
    entry = scored(log_prob)
    gain = {} if ours is None else scored(log_prob - ours)
    return without_infinities(
        {
            **({"nll_gain": gain["nll"], "nll_gain_error": gain["nll_error"]} if gain else {}),
            "log_likelihood": -entry["nll"],
            "error": entry["nll_error"],
            "log_normaliser_error": off,
            "reconstruction": reconstruction,
        }
    )
