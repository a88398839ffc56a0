"""``EnergyClassifier``: p(label|x) and how typical x is, from a table or images, with scikit-learn's interface."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted
from torch import Tensor, nn

from thalweg._torch_state import seeded
from thalweg.data.encoding import TableEncoder
from thalweg.data.images import as_images, pixels_like
from thalweg.data.plain_rows import PlainRows
from thalweg.energies.base import check_temperature
from thalweg.energies.densities import KernelDensity, ShapedDensity, UniformEnergy, gaussian_of_classes
from thalweg.energies.labelled import FactoredEnergy, LabelledEnergy
from thalweg.energies.networks import convnet
from thalweg.energies.networks.image import UNIT_IMAGES
from thalweg.energies.networks.labelled_members import LabelledMembers
from thalweg.energies.networks.labelled_perceptron import LabelledPerceptron
from thalweg.estimators._base import (
    Estimator,
    RandomState,
    check_count,
    check_counts,
    check_widths,
    count_weights,
    draw_seed,
    generator_of,
)
from thalweg.estimators._counterfactual import changed_images, changed_rows
from thalweg.estimators._labels import HeldOutLogLoss, folds_by_label, numbered
from thalweg.estimators._tables import TableInputs
from thalweg.evaluation.calibration import Temperature, fit_temperature
from thalweg.evaluation.row_checks import check_label_folds
from thalweg.evaluation.verdict import Check, check_rows, check_training
from thalweg.objectives.base import Batch, Objective
from thalweg.objectives.classification import CrossEntropy
from thalweg.objectives.classifier_contrast import DualAdversarialTraining, QueueContrast
from thalweg.objectives.joint import jem
from thalweg.objectives.names import CLASSIFYING
from thalweg.sampling.chain import run_chain
from thalweg.sampling.langevin import ColdLangevin
from thalweg.training.loop import Plan, Trainer
from thalweg.training.progress import BarProgress

OBJECTIVES = ("auto", *CLASSIFYING)
# Images with more numbers get convolutions, where the objective runs no chains.
_PIXELS_OF_A_PERCEPTRON = 256
_ROWS_AT_ONCE = 1024
# Noise that is added to pixels in [0, 1] in training: the largest tried, and the best on validation rows.
_INPUT_NOISE = 0.2
# How far adversarial negatives go, for each pixel.
_NEGATIVE_RADIUS = 0.125
_MOST_PROPOSED = 20_000


class EnergyClassifier(ClassifierMixin, TableInputs, Estimator):
    """Classes of the rows of a table or of images, by an energy E(x, label) that also says how typical x is.

    By default p(label|x) comes from an ensemble of networks trained by cross-entropy, each without one fold of
    the rows and stopped where it is best on that fold; its probabilities are scaled by one temperature if that
    helps on held-out rows. Beside it stands a kernel density p(x), and E(x, label) = -log p(label|x) - log p(x):
    :meth:`score_samples` is normalised. For images there are three objectives under which one network is both,
    "jem", "hdge" and "dat"; their score is known up to a constant only.

    Columns of a table may be numbers, categories and dates, with gaps. Labels may be numbers or texts. Rows with
    the label -1 have none, as in scikit-learn; they tell how inputs are distributed.

    Args:
        objective: "auto" or "cross-entropy" (see above); for images also "jem" (cross-entropy and likelihood by
            Langevin chains), "hdge" (contrast with a queue of other images) or "dat" (adversarial negatives).
        calibrate: whether probabilities are scaled by a temperature, where that lowers the held-out loss.
        n_members: networks in the ensemble, and folds of the data.
        hidden: widths of the hidden layers.
        dropout: probability of dropping a hidden unit.
        learning_rate, weight_decay, batch_size, max_epochs, max_steps, patience: see
            :class:`~thalweg.training.loop.Plan`; batch_size "auto" grows with the rows.
        device, devices, num_nodes, strategy, precision: see :class:`lightning_fabric.Fabric`; ``device`` is its
            accelerator. Several processes share every batch.
        n_threads: number of PyTorch threads while fitting; None chooses by the size of the work.
        verbose: whether to show progress.
        random_state: seed, or a ``RandomState``.

    Attributes:
        classes_: the labels, in order.
        energy_: the trained :class:`~thalweg.energies.labelled.LabelledEnergy`; of one network that is both,
            p(label|x) is its softmax at the temperature.
        normalised_: whether ``score_samples`` is normalised.
        temperature_: :class:`~thalweg.evaluation.calibration.Temperature`: what scaling did to the held-out loss.
        validation_log_loss_: mean held-out log loss of single members, nats a row, each row judged by a network
            that did not learn from it, at the epoch best on other rows; without the temperature.
        history_: :class:`~thalweg.training.loop.History` of the fit.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Example:
        >>> from sklearn.datasets import load_wine
        >>> X, y = load_wine(return_X_y=True)
        >>> model = EnergyClassifier(max_epochs=5, random_state=0).fit(X, y)
        >>> model.predict_proba(X[:2]).shape
        (2, 3)

    Source: [Grathwohl 2020]; the contrast [Liu 2020b]; adversarial negatives [Yin 2025].
    """

    # The checks of tables ask for it: there is none of the user's own.
    energy = None

    def __init__(
        self,
        objective: str = "auto",
        *,
        calibrate: bool = True,
        n_members: int = 8,
        hidden: Sequence[int] = (128, 128),
        dropout: float = 0.1,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.1,
        batch_size: int | str = "auto",
        max_epochs: int = 200,
        max_steps: int | None = 3000,
        patience: int | None = 20,
        device: str = "cpu",
        devices: int = 1,
        num_nodes: int = 1,
        strategy: str = "auto",
        precision: str = "32-true",
        n_threads: int | None = None,
        verbose: bool = False,
        random_state: RandomState = None,
    ):
        self._keep(locals())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        tags.input_tags.three_d_array = True
        tags.non_deterministic = False
        return tags

    # -- fitting -------------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        sample_weight: np.ndarray | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
        checkpoint_seconds: float = 5.0,
    ) -> EnergyClassifier:
        """Fit the energy of inputs and labels.

        Args:
            X: table ``[rows, columns]`` (DataFrame or array), or images ``[n, H, W]``, ``[n, H, W, C]`` or
                ``[n, C, H, W]``, bytes or numbers in [0, 1].
            y: labels ``[n]``, numbers or texts; -1 where there is none.
            sample_weight: ``[n]``, not negative; rows of weight 0 are left out.
            run_dir: keep checkpoints here.
            resume: go on from the checkpoint in run_dir; the result is that of a run never interrupted.
            checkpoint_seconds: least time between two checkpoints.

        Raises:
            ValueError: for settings or data that can't be used, in words.
            DivergenceError: if training can't be kept from diverging.
        """
        if y is None:
            raise ValueError(
                f"This {type(self).__name__} estimator requires y to be passed, but the target y is None"
            )
        self._check_settings()
        self.image_shape_: tuple[int, ...] | None = None
        if _is_images(X):
            images = as_images(np.asarray(X))
            self.image_shape_ = tuple(int(v) for v in images.pixels.shape[1:])
            self.n_features_in_ = math.prod(self.image_shape_)
            X, n_rows = images.pixels, len(images.pixels)
        else:
            X = self._check_table(X, reset=True)
            n_rows = len(X)
        if self.objective_name != "cross-entropy" and self.image_shape_ is None:
            raise ValueError(f"objective {self.objective!r} is for images: take 'cross-entropy' for a table")
        self.classes_, labels = numbered(y, n_rows)
        weight = None
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, labels, ensure_non_negative=True)
            kept = weight > 0
            if len(np.unique(labels[kept & (labels >= 0)])) < 2:
                raise ValueError("the rows whose sample weight is not zero have fewer than two classes")
            X, labels, weight = X[kept], labels[kept], weight[kept]
            # Labels that are left without a row keep their place and get a probability near 0.
        rng = check_random_state(self.random_state)
        seed = draw_seed(rng)
        inputs = self._learn_encoding(X, labels, seed)
        known = labels >= 0
        self._n_unlabelled = int((~known).sum())
        learns_from_all = self.objective_name in ("jem", "dat", "hdge")
        chosen = np.ones(len(labels), bool) if learns_from_all else known
        x, y_kept = inputs[torch.from_numpy(chosen)], labels[chosen]
        weight = np.ones(len(y_kept)) if weight is None else weight[chosen]
        shares = (np.bincount(labels[known], minlength=len(self.classes_)) + 0.5).tolist()
        with seeded(seed):
            self._classifier = self._build(int(x.shape[1]), shares)
            objective = self._objective(x, y_kept)
        n_members = self._classifier.n_members if isinstance(self._classifier, LabelledMembers) else 1
        # Rows without a label can't judge.
        labelled, held_out = y_kept >= 0, np.zeros((len(y_kept), n_members), bool)
        held_out[labelled] = folds_by_label(y_kept[labelled], n_members, rng)
        mask = torch.from_numpy(~held_out).float() * torch.as_tensor(weight, dtype=torch.float32)[:, None]
        mask = mask / mask.mean(0)
        y_tensor = torch.from_numpy(y_kept.astype(np.float32))
        validate = HeldOutLogLoss(x, y_tensor, held_out, weight, seed)
        data = Batch(x, y_tensor, mask if mask.shape[1] > 1 else mask[:, 0])
        plan = self._plan(len(x), seed, checkpoint_seconds)
        with self._threads(plan.batch_size, count_weights(self._classifier)):
            trainer = Trainer(
                plan,
                self._make_fabric(),
                None if run_dir is None else Path(run_dir),
                BarProgress(n_members=n_members) if self.verbose else None,
            )
            self.history_ = trainer.fit(self._classifier, objective, data, validate, resume=resume)
            self._classifier.eval()
            with torch.no_grad():
                validate(self._classifier)
                scores = validate.scores(self._classifier)
            self._calibrate(scores, validate, weight, seed)
            with torch.no_grad():
                gain = validate.gain_of_all(self._classifier, self.temperature_.value)
        self.validation_log_loss_ = float(validate.nested().mean())
        self._assemble()
        self._conclude(self._checks(x, y_kept, gain - validate.nested_rows(len(x)).nanmean(1).numpy()))
        return self

    def _check_settings(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {self.objective!r}")
        check_counts(self, "n_members", "max_epochs")
        check_widths(self.hidden)
        self._check_training()
        if isinstance(self.dropout, str) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout!r}")
        if isinstance(self.batch_size, str) and self.batch_size != "auto":
            raise ValueError(f"batch_size must be 'auto' or a whole number, got {self.batch_size!r}")

    @property
    def objective_name(self) -> str:
        """The objective that "auto" stands for, or the one that was asked for."""
        return "cross-entropy" if self.objective == "auto" else self.objective

    def _learn_encoding(self, X: Any, labels: np.ndarray, seed: int) -> Tensor:
        """How inputs become numbers, and their density where it is one beside the classifier."""
        kinds = np.where(labels >= 0, labels, len(self.classes_))
        self.encoder_: TableEncoder | None = None
        self.rows_: PlainRows | None = None
        self.density_: KernelDensity | ShapedDensity | None = None
        if self.image_shape_ is not None:
            if self.objective_name == "cross-entropy":
                flat = X.reshape(len(X), -1).astype(np.float64)
                self.density_ = ShapedDensity(KernelDensity.of(flat, kinds, seed=seed), self.image_shape_)
            return torch.from_numpy(X)
        self.encoder_ = TableEncoder().fit(X)
        self.rows_ = PlainRows.of(X)
        self.density_ = KernelDensity.of(self.rows_.encode(X), kinds, self.rows_.n_values, seed=seed)
        return torch.from_numpy(self.encoder_.transform(X))

    def _build(self, n_inputs: int, shares: Sequence[float] | None) -> LabelledEnergy:
        """The network of labels given inputs."""
        n_labels, hidden = len(self.classes_), check_widths(self.hidden)
        if self.image_shape_ is None:
            self._n_inputs = n_inputs
            return LabelledMembers(n_inputs, n_labels, self.n_members, hidden, self.dropout, shares)
        n_pixels = math.prod(self.image_shape_)
        if self.objective_name != "cross-entropy":
            return LabelledPerceptron(self.image_shape_, n_labels, hidden, "silu")
        if n_pixels <= _PIXELS_OF_A_PERCEPTRON:
            return LabelledMembers(n_pixels, n_labels, self.n_members, hidden, self.dropout, shares, input_ndim=3)
        network = nn.Sequential(convnet(self.image_shape_[0], hidden[-1]), nn.Linear(hidden[-1], n_labels))
        return LabelledEnergy(network, input_ndim=3, input_support=UNIT_IMAGES)

    def _objective(self, x: Tensor, labels: np.ndarray) -> Objective:
        name = self.objective_name
        if name == "cross-entropy":
            return CrossEntropy(0.0 if self.image_shape_ is None else _INPUT_NOISE)
        if name == "hdge":
            return QueueContrast(len(self.classes_))
        if name == "jem":
            start = gaussian_of_classes(x, torch.from_numpy(labels))
            n = min(64, len(x))
            return jem(start, 0.5, n_steps=5, n_chains=n, buffer_size=2000, input_noise=0.1, bounds=(-0.25, 1.25))
        start = UniformEnergy(torch.zeros(x.shape[1:]), torch.ones(x.shape[1:]))
        radius = _NEGATIVE_RADIUS * math.sqrt(math.prod(x.shape[1:]))
        return DualAdversarialTraining(start, radius, 10, attack_radius=0.1, attack_steps=5, bounds=(0.0, 1.0))

    def _plan(self, n_rows: int, seed: int, checkpoint_seconds: float) -> Plan:
        size = self.batch_size
        return Plan(
            max_epochs=self.max_epochs,
            max_steps=self.max_steps,
            batch_size=int(min(512, max(32, n_rows // 10))) if size == "auto" else int(size),
            learning_rate=self.learning_rate if self.objective_name == "cross-entropy" else self.learning_rate / 2,
            weight_decay=self.weight_decay if self.objective_name == "cross-entropy" else 0.0,
            warmup_steps=50,
            patience=self.patience,
            clip_norm=5.0 * math.sqrt(self.n_members),
            checkpoint_seconds=checkpoint_seconds,
            seed=seed,
        )

    def _calibrate(self, scores: Tensor, validate: HeldOutLogLoss, weight: np.ndarray, seed: int) -> None:
        """The temperature of the held-out scores; each row has those of a network that did not learn from it."""
        counted = validate.weights.numpy().ravel() > 0
        logits = scores.double().numpy().reshape(-1, scores.shape[-1])[counted]
        rows = validate.rows.numpy().ravel()[counted]
        labels = validate.labels.numpy()[rows]
        if self.calibrate and len(np.unique(labels)) > 1:
            self.temperature_ = fit_temperature(logits, labels, weight[rows], random_state=seed % 2**31)
        else:
            self.temperature_ = Temperature(1.0, math.nan, math.nan, False)

    def _assemble(self) -> None:
        """The energy of inputs and labels, from its parts."""
        if isinstance(self._classifier, LabelledMembers):
            # Each member's own, before they are averaged.
            self._classifier.temperature.fill_(self.temperature_.value)
        if self.density_ is None:
            self.energy_ = self._classifier
        else:
            n = None if self.rows_ is None else self._n_inputs
            views = (slice(None), slice(None)) if n is None else (slice(0, n), slice(n, None))
            self.energy_ = FactoredEnergy(self._classifier, self.density_, views, self._scale)
        self.energy_.eval()

    @property
    def _scale(self) -> float:
        """The temperature of energies that have none of their own."""
        return 1.0 if isinstance(self._classifier, LabelledMembers) else float(self.temperature_.value)

    @property
    def n_networks_(self) -> int:
        """How many networks there are whose probabilities are averaged."""
        check_is_fitted(self, "energy_")
        return self._classifier.n_members if isinstance(self._classifier, LabelledMembers) else 1

    def at_temperature(self, *, value: float) -> EnergyClassifier:
        """A copy of the model whose probabilities have this temperature; at 1 as the networks learned them."""
        check_is_fitted(self, "energy_")
        check_temperature(value)
        other = copy.copy(self)
        other._classifier = copy.deepcopy(self._classifier)
        other.temperature_ = Temperature(float(value), math.nan, math.nan, value != 1)
        other._assemble()
        return other

    @property
    def normalised_(self) -> bool:
        """Whether :meth:`score_samples` is the log of a density that integrates and sums to one."""
        check_is_fitted(self, "energy_")
        return self.density_ is not None

    def _checks(self, x: Tensor, labels: np.ndarray, log_prob: np.ndarray) -> list[Check]:
        known = labels >= 0
        n_columns = None if self.image_shape_ is not None else self.n_features_in_
        found = []
        if self._n_unlabelled:
            text = f"{self._n_unlabelled} rows have the label -1 and count as rows without one."
            found.append(Check("labels", "doubtful", f"{text} If -1 is a class, write the labels as texts."))
        flat = x.flatten(1).double().numpy()[known]
        return [
            *found,
            check_rows(int(known.sum()), n_columns),
            check_training({"training": self.history_}),
            check_label_folds(log_prob[known], labels[known], flat),
        ]

    # -- prediction ----------------------------------------------------------------------------------

    def _inputs(self, X: Any) -> Tensor:
        """What the energy takes: images, or encoded rows and beside them plain ones."""
        check_is_fitted(self, "energy_")
        if self.image_shape_ is not None:
            return torch.from_numpy(pixels_like(X, self.image_shape_)).to(self._device)
        table = self._check_table(X, reset=False)
        return self._encoded(table).to(self._device)

    def _encoded(self, table: pd.DataFrame) -> Tensor:
        assert self.encoder_ is not None
        assert self.rows_ is not None
        both = np.concatenate([self.encoder_.transform(table), self.rows_.encode(table)], 1)
        return torch.from_numpy(both.astype(np.float32))

    def _log_probs(self, inputs: Tensor) -> Tensor:
        """log p(label|x) ``[n, C]``."""
        network, shown = self._classifier, inputs
        if self.rows_ is not None:
            # In double precision a row's answer does not depend on the rows beside it.
            network = copy.deepcopy(self._classifier).double().eval()
            shown = inputs[:, : self._n_inputs].double()
        with torch.no_grad():
            parts = [
                torch.log_softmax(-network.energies(part).double() / self._scale, -1)
                for part in shown.split(_ROWS_AT_ONCE)
            ]
        return torch.cat(parts).cpu() if parts else torch.zeros(0, len(self.classes_), dtype=torch.float64)

    def predict_proba(self, X: Any) -> np.ndarray:
        """p(label|x) ``[n, classes]``, in the order of ``classes_``."""
        found = self._log_probs(self._inputs(X)).exp().numpy()
        return found / found.sum(1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each row ``[n]``."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]

    def decision_function(self, X: Any) -> np.ndarray:
        """log p(label|x) ``[n, classes]``; of two classes the log odds of the second ``[n]``."""
        found = self._log_probs(self._inputs(X)).numpy()
        return found[:, 1] - found[:, 0] if len(self.classes_) == 2 else found

    def score_samples(self, X: Any) -> np.ndarray:
        """How typical each row is ``[n]``: log p(x) in nats, the higher the more typical.

        It is normalised where ``normalised_`` is true: a density per unit of the columns of numbers, and a
        probability of categories; missing cells are summed out. Rows with different gaps are then of different
        dimensions, and :meth:`typicality` is what compares them. Otherwise it is known up to a constant.
        """
        inputs = self._inputs(X)
        with torch.no_grad():
            parts = [self._typicality(part) for part in inputs.split(_ROWS_AT_ONCE)]
        found = torch.cat(parts).double().cpu().numpy() if parts else np.zeros(0)
        if self.rows_ is None:
            return found
        return found + self.rows_.log_scale(inputs[:, self._n_inputs :].double().cpu().numpy())

    def typicality(self, X: Any, *, n_draws: int = 8, random_state: RandomState = 0) -> np.ndarray:
        """How typical each row is ``[n]``, on one scale for rows with gaps and without.

        It is :meth:`score_samples`, but that missing cells are filled in by draws given the known ones, and the
        mean over draws is taken: a row is not more typical for having less known of it.
        """
        inputs = self._inputs(X)
        if self.rows_ is None or not inputs[:, self._n_inputs :].isnan().any():
            return self.score_samples(X)
        generator = generator_of(random_state, self._device)
        plain = inputs[:, self._n_inputs :]
        assert isinstance(self.density_, KernelDensity)
        total = np.zeros(len(plain))
        with torch.no_grad():
            for _ in range(n_draws):
                filled = self.density_.fill(plain, generator)
                found = self.density_.log_prob(filled).cpu().numpy()
                total += found + self.rows_.log_scale(filled.cpu().numpy())
        return total / n_draws

    def _typicality(self, inputs: Tensor) -> Tensor:
        if self.density_ is None:
            return -self._classifier.marginal()(inputs)
        return self.density_.log_prob(inputs if self.rows_ is None else inputs[:, self._n_inputs :])

    def explain_typicality(self, X: Any) -> pd.DataFrame:
        """What each cell of a table takes from the log p of its row: ``[n, columns]``, the lower the odder.

        It is log p(x) less log p of the row without the cell, the log probability of the cell given the others.
        Columns that never vary have 0.

        Raises:
            ValueError: for a model of images.
        """
        inputs = self._inputs(X)
        if self.rows_ is None or self.density_ is None:
            raise ValueError("the pixels of images are not explained one by one")
        plain = inputs[:, self._n_inputs :]
        names = [str(c["name"]) for c in self.rows_.columns]
        found = pd.DataFrame(0.0, index=range(len(plain)), columns=names)
        with torch.no_grad():
            whole = self.density_.log_prob(plain)
            for d, name in enumerate(self.rows_.names):
                without = plain.clone()
                without[:, d] = torch.nan
                found[name] = (whole - self.density_.log_prob(without)).double().cpu().numpy()
        return found

    def sample(
        self,
        n_samples: int = 1,
        *,
        label: Any = None,
        random_state: RandomState = None,
        n_steps: int = 200,
    ) -> Any:
        """New rows, as a table if the model is of one, or images ``[n_samples, C, H, W]``.

        A density beside the classifier is drawn from, and draws are kept by p(label|x): with a kernel density they
        lie near training rows. The other objectives draw by Langevin chains.

        Args:
            label: the class of the draws; None takes the classes as they come.
            random_state: seed, or a ``RandomState``.
            n_steps: steps of the chains.

        Raises:
            ValueError: for a label that is no class.
        """
        check_is_fitted(self, "energy_")
        check_count("n_samples", n_samples)
        place = None if label is None else self._place_of(label)
        generator = generator_of(random_state, self._device)
        if self.density_ is None:
            return self._sample_chains(n_samples, place, generator, n_steps)
        n_proposed = n_samples if place is None else min(max(20 * n_samples, 1000), _MOST_PROPOSED)
        drawn = self.density_.sample(n_proposed, generator)
        if self.image_shape_ is not None:
            drawn = drawn.clamp(0, 1).float()
            kept = self._chosen(self._log_probs(drawn), place, n_samples, generator)
            return drawn[kept].cpu().numpy()
        assert self.rows_ is not None
        table = self.rows_.decode(drawn.double().cpu().numpy())
        kept = self._chosen(self._log_probs(self._encoded(table).to(self._device)), place, n_samples, generator)
        table = table.iloc[kept.numpy()].reset_index(drop=True)
        return table if hasattr(self, "feature_names_in_") else _as_array(table)

    @staticmethod
    def _chosen(log_probs: Tensor, place: int | None, n: int, generator: torch.Generator) -> Tensor:
        """Numbers of the draws to keep, each with its probability of the label."""
        if place is None:
            return torch.arange(n)
        shares = log_probs[:, place].exp().clamp_min(1e-12).to(generator.device)
        return torch.multinomial(shares, n, replacement=len(log_probs) < n, generator=generator).cpu()

    def _sample_chains(self, n: int, place: int | None, generator: torch.Generator, n_steps: int) -> np.ndarray:
        assert self.image_shape_ is not None
        labels = torch.arange(n) % len(self.classes_) if place is None else torch.full((n,), place)
        x = torch.rand((n, *self.image_shape_), generator=generator, device=self._device)
        kernel = ColdLangevin(0.25, 0.005, low=0.0, high=1.0)
        given = self.energy_.of_inputs().given(labels.to(self._device))
        return run_chain(kernel, given, x, n_steps, generator).position.cpu().numpy()

    def counterfactual(self, X: Any, label: Any, *, max_changes: int = 5, n_steps: int = 100) -> Any:
        """For each row a nearby one that the model takes for the label: few cells changed, or pixels a little.

        The energy E(x, label) is descended: in a table by one cell at a time, to values that training rows have,
        whichever change lowers it most for the way it goes; in images along the gradient, in short steps.

        Args:
            X: rows or images.
            label: a class, or one for each row.
            max_changes: most cells of a row that are changed.
            n_steps: most steps along the gradient.

        Returns:
            of the form of X. Rows that are of the class already come back as they are; rows for which no way was
            found as far as they got: ask :meth:`predict`.

        Raises:
            ValueError: for a label that is no class.
        """
        check_is_fitted(self, "energy_")
        n = len(X)
        asked = [label] * n if np.ndim(label) == 0 else list(label)
        if len(asked) != n:
            raise ValueError(f"there are {n} rows and {len(asked)} labels")
        places = np.array([self._place_of(one) for one in asked], dtype=int)
        if self.image_shape_ is not None:
            return changed_images(self.energy_, self._inputs(X), torch.from_numpy(places), n_steps).cpu().numpy()
        table = self._check_table(X, reset=False)

        def energies(rows: pd.DataFrame) -> np.ndarray:
            inputs = self._encoded(rows).to(self._device)
            with torch.no_grad():
                parts = [self.energy_.energies(part) for part in inputs.split(_ROWS_AT_ONCE)]
            return torch.cat(parts).double().cpu().numpy()

        assert self.rows_ is not None
        assert isinstance(self.density_, KernelDensity)
        known = self.rows_.decode(self.density_.rows.double().cpu().numpy())
        found = changed_rows(table, places, energies, known, max_changes)
        return found if isinstance(X, pd.DataFrame) else _as_array(found)

    def _place_of(self, label: Any) -> int:
        place = np.flatnonzero(self.classes_ == label)
        if not len(place):
            raise ValueError(f"no class is {label!r}: they are {', '.join(map(str, self.classes_[:20]))}")
        return int(place[0])

    @property
    def _device(self) -> torch.device:
        return next(self._classifier.parameters()).device

    # -- saving --------------------------------------------------------------------------------------

    def _config(self) -> dict[str, Any]:
        return {
            "classes": self.classes_.tolist(),
            "classes_dtype": "object" if self.classes_.dtype == object else self.classes_.dtype.str,
            "image_shape": None if self.image_shape_ is None else list(self.image_shape_),
            "encoder": None if self.encoder_ is None else self.encoder_.state(),
            "rows": None if self.rows_ is None else self.rows_.state(),
            "n_inputs": None if self.image_shape_ is not None else self._n_inputs,
            "temperature": [None if isinstance(v, float) and math.isnan(v) else v for v in self.temperature_],
            "validation_log_loss": None if math.isnan(self.validation_log_loss_) else self.validation_log_loss_,
        }

    def _modules(self) -> dict[str, nn.Module]:
        return {"classifier": self._classifier}

    def _tensors(self) -> dict[str, Tensor]:
        density = self._kernels()
        return {} if density is None else {f"density.{k}": v for k, v in density.state_dict().items()}

    def _kernels(self) -> KernelDensity | None:
        density = self.density_.density if isinstance(self.density_, ShapedDensity) else self.density_
        assert density is None or isinstance(density, KernelDensity)
        return density

    def _rebuild(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.classes_ = np.array(config["classes"], dtype=np.dtype(config["classes_dtype"]))
        self.image_shape_ = None if config["image_shape"] is None else tuple(config["image_shape"])
        self.encoder_ = None if config["encoder"] is None else TableEncoder.from_state(config["encoder"])
        self.rows_ = None if config["rows"] is None else PlainRows(config["rows"])
        value, before, after, applied = (math.nan if v is None else v for v in config["temperature"])
        self.temperature_ = Temperature(value, before, after, bool(applied))
        loss = config["validation_log_loss"]
        self.validation_log_loss_ = math.nan if loss is None else loss
        self._classifier = self._build(config["n_inputs"] or 0, None)
        self.density_ = None
        parts = {k.removeprefix("density."): v for k, v in tensors.items() if k.startswith("density.")}
        if parts:
            n = math.prod(self.image_shape_) if self.image_shape_ is not None else 0
            n_values = [0] * n if self.rows_ is None else self.rows_.n_values
            kernels = KernelDensity(
                parts["rows"], parts["classes"], n_values, parts["factors"], parts["smoothing"]
            )
            self.density_ = kernels if self.image_shape_ is None else ShapedDensity(kernels, self.image_shape_)
        self._assemble()


def _is_images(X: Any) -> bool:
    n_dims = np.ndim(X) if isinstance(X, list | tuple) else getattr(X, "ndim", 2)
    return not isinstance(X, pd.DataFrame) and n_dims in (3, 4)


def _as_array(table: pd.DataFrame) -> np.ndarray:
    numeric = all(pd.api.types.is_numeric_dtype(t) or pd.api.types.is_bool_dtype(t) for t in table.dtypes)
    return table.to_numpy(np.float64) if numeric else table.to_numpy(object)
