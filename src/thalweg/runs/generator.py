"""A run of a generator of images or of rows of numbers: read, hold some out, train, measure, save."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from thalweg.data.images import outliers, read_images
from thalweg.data.tables import Cells, read_cells
from thalweg.estimators.gan import EnergyGAN
from thalweg.estimators.vae import EnergyVAE
from thalweg.evaluation.generation import copying_ratio, frechet_distance, nearest_neighbours, pca_features
from thalweg.evaluation.row_checks import check_samples
from thalweg.evaluation.verdict import Check, check_held_out, check_ranking
from thalweg.objectives.names import VARIATIONAL
from thalweg.runs.base import Run, Tell, TextTable
from thalweg.runs.images import ImageRun, SplitImages, n_known
from thalweg.runs.kinds import GeneratorFigures
from thalweg.runs.settings.base import Verb
from thalweg.runs.settings.generator import GeneratorSettings
from thalweg.runs.tables import (
    Numbers,
    beside,
    checks_of_table,
    completed_tables,
    few_held_out,
    model_settings,
    outlier_scores,
    places_of,
    read_numbers,
    refuse_counter,
    rows_of,
    scored_rows,
    thinned,
)

NAMES = {
    "ebgan": "EBGAN: an autoencoder with a margin",
    "magan": "MAGAN: an autoencoder with a margin that falls",
    "began": "BEGAN: an autoencoder kept in balance",
    "gan": "GAN: a classifier",
    "vera": "VERA: a generator that follows the energy",
    "gebm": "GEBM: a generator that an energy corrects",
    "vae": "VAE: a variational autoencoder alone",
    "vaebm": "VAEBM: a variational autoencoder that an energy corrects",
}
# Of the updates of a "vaebm", those of the autoencoder.
_SHARE_OF_AUTOENCODER = 8 / 11
_MAX_MEASURED = 2000
_SHUFFLED, _MEMORY = "rows with shuffled columns", "training against held-out"


class GeneratorRun(Run):
    """A generator and its energy, measured by draws and by how the energy ranks held-out data and outsiders."""

    settings_class = GeneratorSettings
    figures_class = GeneratorFigures

    @property
    def shape(self) -> list[int] | None:
        """(C, H, W) for images, None for a table."""
        return self.figures["shape"]

    @property
    def columns(self) -> list[str]:
        return list(self.figures["columns"])

    @property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Training and held-out images ``[n, C, H, W]``, or rows ``[n, columns]``: of a large table some.

        Raises:
            ValueError: if the images are missing, or have changed.
        """
        if self.shape is not None:
            return self.data.training.pixels, self.data.test.pixels
        assert self.test_rows is not None
        training, test = (part[self.columns].to_numpy(np.float64) for part in (self.training_rows, self.test_rows))
        return training, test

    # -- making --------------------------------------------------------------------------------------

    @classmethod
    def read(cls, settings: GeneratorSettings) -> SplitImages | Numbers:
        path = Path(settings.data)
        if not (path.is_dir() or path.suffix.lower() == ".npz"):
            return read_numbers(settings)
        if settings.drop or settings.text or settings.missing:
            raise ValueError(f"{path} holds images: --drop, --text and --missing are for tables")
        return ImageRun.read(settings)

    @classmethod
    def build(cls, settings: GeneratorSettings, data: Any, verbose: bool) -> EnergyGAN | EnergyVAE:
        how: dict[str, Any] = {"verbose": verbose, **model_settings(settings)}
        if settings.kind not in VARIATIONAL:
            if settings.steps is not None:
                how["max_steps"] = settings.steps
            return EnergyGAN(settings.kind, **how)
        with_energy = settings.kind == "vaebm"
        if settings.steps is not None:
            share = _SHARE_OF_AUTOENCODER if with_energy else 1.0
            how["max_steps_pretraining"] = max(1, round(share * settings.steps))
            how["max_steps"] = max(1, settings.steps - how["max_steps_pretraining"])
        return EnergyVAE(**(how if with_energy else how | {"max_steps": 0}))

    @classmethod
    def train(cls, model: EnergyGAN | EnergyVAE, data: Any, settings: GeneratorSettings, **how: Any) -> None:
        model.fit(data.training.pixels if isinstance(data, SplitImages) else data.training, **how)

    @classmethod
    def measure(
        cls, model: EnergyGAN | EnergyVAE, data: Any, settings: GeneratorSettings, tell: Tell
    ) -> dict[str, Any]:
        tell("Measuring the model: its draws, and the energies of held-out and of other data.")
        training, test = _arrays(data)
        common = {
            "data": Path(settings.data).name,
            "training_rows": len(training),
            "test_rows": len(test),
            "scores": _measured(model, training, test, settings.seed),
            "held_out_scores": thinned(scores_of(model, test)),
        }
        if isinstance(data, SplitImages):
            of_images = {"shape": list(model.image_shape_ or ()), "columns": [], "constant": {}, "kinds": {}}
            rows = {"rows": len(training) + len(test), "remarks": model.history_.events}
            return {**common, **of_images, **rows}
        return {
            **common,
            "shape": None,
            "columns": list(data.training.columns),
            "constant": data.constant,
            "kinds": {name: data.kinds[name] for name in data.training.columns},
            "rows": data.n_rows,
            "remarks": [*data.remarks, *few_held_out(len(test)), *model.history_.events],
        }

    @classmethod
    def judge(
        cls, model: EnergyGAN | EnergyVAE, data: Any, figures: dict[str, Any], settings: GeneratorSettings
    ) -> list[Check]:
        training, test = _arrays(data)
        drawn = model.sample(max(200, min(len(test), 500)), random_state=settings.seed + 1)
        found = check_samples(drawn, training, test)
        if isinstance(data, SplitImages):
            return [check_held_out(len(test), n_known(data)), *_check_ranking(figures["scores"]), *found]
        n_used = len(training) + len(test)
        memory = _check_memory(figures["scores"], len(test))
        return [*checks_of_table(data.n_rows, n_used, len(test), data.doubts), *memory, *found]

    @classmethod
    def keep(
        cls, folder: Path, model: Any, data: Any, figures: dict[str, Any], settings: GeneratorSettings
    ) -> None:
        if isinstance(data, Numbers):
            cls.keep_rows(folder, data.training, data.test, settings.seed)
        origin = ("data", "columns", "constant", "training_rows", "test_rows", "scores")
        cls.keep_model(folder, model, {name: figures[name] for name in origin}, settings)

    @classmethod
    def load_model(cls, folder: Path, settings: GeneratorSettings) -> EnergyGAN | EnergyVAE:
        return (EnergyVAE if settings.kind in VARIATIONAL else EnergyGAN).load(folder)

    # -- verbs ---------------------------------------------------------------------------------------

    def sample(self, n: int, seed: int = 0) -> pd.DataFrame | np.ndarray:
        """n new images ``[n, C, H, W]``, or n new rows with the training table's columns."""
        drawn = self.model.sample(n, random_state=seed)
        if self.shape is not None:
            return drawn
        table = pd.DataFrame(drawn, columns=self.columns)
        for name, value in self.figures["constant"].items():
            table[name] = value
        return table

    def score(self, path: Path, keep: Sequence[str] = ()) -> pd.DataFrame:
        """``score`` (minus the energy; higher means more like the data) and ``outlier_score``, line by line.

        The score of a variational autoencoder is log p in nats.

        Each is after its row and the columns to keep, or after its file. Rows with gaps have neither, and ``note``
        says so.
        """
        if self.shape is not None:
            if keep:
                raise ValueError(f"{self.folder} holds a run on images: --keep is for columns of tables")
            images = read_images(path)
            scores = self.model.score_samples(images.pixels)
            odd = outlier_scores(scores, self.figures["held_out_scores"])
            return beside(places_of(images), pd.DataFrame({"score": scores, "outlier_score": odd}))
        cells = read_cells(path)
        scored = scored_rows(self.model, self._columns(cells), self.figures["held_out_scores"])
        return beside(rows_of(cells.table, keep), scored.rename(columns={"log_prob": "score"}))

    def impute(self, path: Path, draws: int = 1, seed: int = 0) -> pd.DataFrame:
        """The table of a file with the gaps in the model's columns filled by draws given the rest of the row.

        Several filled tables are stacked, and a column ``imputation`` counts them from 1.
        """
        if self.shape is not None:
            raise ValueError(f"{self.folder} holds a run on images: gaps are filled in tables")
        if not isinstance(self.model, EnergyVAE):
            raise ValueError(
                f"{self.folder} holds a generator of kind {self.settings.kind!r}, which can't fill gaps: fit with "
                f"--kind {' or '.join(VARIATIONAL)}, or fit a density"
            )
        cells = read_cells(path)
        refuse_counter(cells.table, draws)
        X = self._columns(cells)
        filled = self.model.impute(X, n_draws=draws, random_state=seed)
        return completed_tables(cells.table, X, filled, self.figures["constant"], self.figures["kinds"])

    def _columns(self, cells: Cells) -> pd.DataFrame:
        found = cells.again(self.figures["kinds"], self.settings.missing)
        return found.apply(lambda column: column.to_numpy(np.float64, na_value=np.nan))

    # -- what is shown of it -------------------------------------------------------------------------

    @property
    def verbs(self) -> Mapping[str, Verb]:
        lacks_impute = self.shape is not None or not self.settings.fills_gaps
        return {name: verb for name, verb in super().verbs.items() if name != "impute" or not lacks_impute}

    def summary(self) -> dict[str, str]:
        figures, what = self.figures, "images" if self.shape else "rows"
        return {
            "model": f"{NAMES[self.settings.kind]}, {self.model.n_weights_:,} weights",
            "data": f"{figures['data']}: {figures['training_rows']} training {what}, {figures['test_rows']} held "
            f"out (seed {self.settings.seed})",
            "training": f"{figures['seconds']['training']:.1f} s, {len(self.model.history_.epochs)} epochs",
        }

    def tables(self) -> list[TextTable]:
        figures, what = self.figures, "images" if self.shape else "rows"
        title = f"{figures['data']}: {figures['training_rows']} {what}, {figures['test_rows']} held out"
        rows = [[name, f"{value:.4g}"] for name, value in figures["scores"].items()]
        return [TextTable(title, ["figure", "value"], rows, best=False)]


def _arrays(data: SplitImages | Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out images, or rows."""
    if isinstance(data, SplitImages):
        return data.training.pixels, data.test.pixels
    return data.training.to_numpy(np.float64), data.test.to_numpy(np.float64)


def _check_ranking(scores: dict[str, float]) -> list[Check]:
    """As of any energy of images, but that the energy is beside the generator: what it misses fails no model."""
    found = {name.removeprefix("AUROC, "): value for name, value in scores.items() if name.startswith("AUROC, ")}
    ranking, memory = check_ranking(found, found.pop(_MEMORY))
    if ranking.state == "passed":
        return [ranking, memory]
    kind = min(found, key=lambda k: found[k])
    text = (
        f"An image held out has a lower energy than one of the kind {kind!r} in {100 * found[kind]:.0f} % of "
        "pairs: do not use the energy to find such images. Draws are judged by other checks."
    )
    return [Check("ranking", "doubtful", text), memory]


def _check_memory(scores: dict[str, float], n_test: int) -> list[Check]:
    """Whether the energy ranks rows that it did not learn from as it does those that it did.

    As with kinds of outsiders, an energy that does not fails no model, whose draws may be good.
    """
    share = scores[f"AUROC, {_MEMORY}"]
    # One half has this standard error with so many held-out rows against many others [Hanley 1982].
    if share < max(0.75, 0.5 + 2 / math.sqrt(12 * n_test)):
        return []
    text = (
        f"A training row has a lower energy than one held out in {100 * share:.0f} % of pairs: the energy knows "
        "its rows by heart, do not use it to find odd ones. Draws are judged by other checks."
    )
    return [Check("memory", "doubtful", text)]


def _measured(model: EnergyGAN | EnergyVAE, training: np.ndarray, test: np.ndarray, seed: int) -> dict[str, float]:
    rng = np.random.RandomState(seed)
    some = training[rng.permutation(len(training))[:_MAX_MEASURED]]
    drawn = model.sample(int(np.clip(len(some), 200, 1000)), random_state=seed)
    others = outliers(test, len(test), rng) if model.image_shape_ else _shuffled(test, rng)
    # Distances of rows are in standard deviations.
    scale = 1.0 if model.image_shape_ else some.std(0)
    own, fresh, held_out = some / scale, drawn / scale, test / scale
    features = pca_features(own, min(20, len(own) - 1, own[0].size))
    scores = {"Frechet distance, draws": frechet_distance(fresh, own, features)}
    if len(test) > 1:
        scores["Frechet distance, held out"] = frechet_distance(held_out, own, features)
    if np.median(nearest_neighbours(held_out, own).distance) > 0:
        name = "nearest training row, draws over held out (ratio of distances)"
        scores[name] = copying_ratio(fresh, own, held_out)
    inside = scores_of(model, test)
    if isinstance(model, EnergyVAE):
        scores["log p of held-out data, nats"] = model.score(_as_given(model, test))
        scores["log Z, give or take"] = model.log_normaliser_error_
    for kind, rows in others.items():
        scores[f"AUROC, {kind}"] = _auroc(inside, scores_of(model, rows))
    scores[f"AUROC, {_MEMORY}"] = _auroc(scores_of(model, some), inside)
    return scores


def scores_of(model: EnergyGAN | EnergyVAE, rows: np.ndarray) -> np.ndarray:
    """Scores of images, or of rows without the names of their columns ``[n]``."""
    return model.score_samples(_as_given(model, rows))


def _as_given(model: EnergyGAN | EnergyVAE, rows: np.ndarray) -> np.ndarray | pd.DataFrame:
    """Rows with the names of their columns, where the model knows these."""
    names = getattr(model, "feature_names_in_", None)
    return rows if names is None else pd.DataFrame(rows, columns=names)


def _shuffled(rows: np.ndarray, rng: np.random.RandomState) -> dict[str, np.ndarray]:
    """Rows whose columns come from different rows each."""
    if rows.shape[1] < 2 or len(rows) < 2:
        return {}
    return {_SHUFFLED: np.stack([column[rng.permutation(len(rows))] for column in rows.T], 1)}


def _auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    truth = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    return float(roc_auc_score(truth, np.r_[inside, outside]))
