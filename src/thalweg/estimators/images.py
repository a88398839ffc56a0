"""``ImageEBM``: an energy of images, with labels or without, that generates, completes and denoises."""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from thalweg._torch_state import seeded
from thalweg.data.images import as_images, pixels_like, pixels_with_gaps
from thalweg.energies.anchored import AnchoredEnergy
from thalweg.energies.base import Energy
from thalweg.energies.composition import WeightedSum
from thalweg.energies.densities import UniformEnergy
from thalweg.energies.densities.class_gaussians import ClassGaussians
from thalweg.energies.labelled import LabelledEnergy, LabelledEnsemble
from thalweg.energies.networks import residual_network
from thalweg.energies.networks.convolutional import smooth_network
from thalweg.energies.networks.image import UNIT_IMAGES
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
    which_known,
)
from thalweg.estimators._counterfactual import changed_images
from thalweg.estimators._image_walks import ColdChains, MatchedFlow, Walk
from thalweg.evaluation.row_checks import check_variety
from thalweg.evaluation.verdict import check_lost_chains, check_rows, check_training
from thalweg.objectives.base import Batch, Objective
from thalweg.objectives.contrastive_divergence import ContrastiveDivergence, ImprovedContrastiveDivergence
from thalweg.objectives.energy_matching import EnergyMatching
from thalweg.objectives.names import IMAGES as OBJECTIVES
from thalweg.sampling.buffer import ReplayBuffer
from thalweg.sampling.langevin import ColdLangevin
from thalweg.training.loop import Plan, Trainer
from thalweg.training.progress import BarProgress

NETWORKS = ("auto", "perceptron", "convolutional", "residual")
_NUMBERS_OF_A_PERCEPTRON = 1024
_NUMBERS_OF_A_SMALL_IMAGE = 256
_PIXELS_AT_ONCE = 2**21
# Weight of the Gaussians of the labels in a matched energy: a time of order one to fall to their means.
_ANCHOR = 0.1
# Weight of the likelihood of labels beside the matching, whose gradients leave two labels apart by any constant.
_LABEL_WEIGHT = 0.01
# Standard deviation of what is added to the Gaussians of labels where matching starts. With less the energy is not
# learned beyond them, and does not know outsiders.
_START_NOISE = 0.3
# Fresh chains that stand for those of a training without any.
_FEWEST_ENDS = 500


class ImageEBM(Estimator):
    """An energy E(label, image) that generates, completes, denoises and knows outsiders.

    Without labels there is one label for all. It is trained in one of two ways. By "matching" its gradient carries
    draws from a Gaussian of each label to the images, in unit time
    (:class:`~thalweg.objectives.EnergyMatching`), and new images are where that flow ends. By "chains" it is
    contrastive divergence with short cold chains from a replay buffer, at a temperature far below 1; by
    "improved-chains" the energy also learns from how the last step of the chains depends on it. None makes
    exp(-E) a density of the images as it is: the energy ranks, and its likelihood at a temperature that suits is
    measured by :func:`~thalweg.evaluation.likelihood.annealed_likelihood`.

    Args:
        objective: "matching", "chains" or "improved-chains".
        network: "perceptron", "convolutional" (smooth), "residual" (convolutions, spectral norm), or "auto": a
            perceptron up to 256 numbers in an image, else convolutions; for chains a perceptron up to 1024.
        hidden: widths of the perceptron's layers; the last is that of the convolutional network's dense layer.
        width, n_blocks: channels of the first convolution, and number of blocks of the residual network; a width
            of None is 16, of the residual network 32.
        n_paired: for matching, images that are paired with noise at a time; ``batch_size`` of them are learned
            from.
        n_steps: steps of a chain in training.
        step_size, noise_scale, clip_grad: settings of the chains; see
            :class:`~thalweg.sampling.langevin.ColdLangevin`. Where one is None the size of the image chooses:
            0.05, 0.03, 1 up to 256 numbers; 3, 0.01, 0.03 above, where nearly all of the gradient is clipped, or
            chains would not get out of the noise that they start in. Infinity does not clip.
        energy_l2: weight of the squared energies.
        buffer_size, restart: size of the replay buffer, and the share of its chains that start anew.
        batch_size, learning_rate, max_steps: settings of the training; the rate falls to 5 % along a cosine.
        ema_decay: train on, but keep a moving average of the weights (None: not).
        n_snapshots: number of snapshots of the weights, evenly over the last eighth of the training up to its end;
            the energy is the mean of theirs. With 1 it is that of the last weights alone. Training costs as much,
            but the model is as many times as large, and all that is done with it takes as many times as long.
        device, devices, num_nodes, strategy, precision: see :class:`lightning_fabric.Fabric`; ``device`` is its
            accelerator. Several processes share every batch, each with a replay buffer of its own.
        n_threads: number of PyTorch threads; None chooses by the size of the work.
        verbose: whether to show progress.
        random_state: seed, or a ``RandomState``.

    Attributes:
        energy_: the :class:`~thalweg.energies.labelled.LabelledEnergy`; ``energy_.of_inputs()`` was trained, the
            conditional energy of images given labels. Of several snapshots it is a
            :class:`~thalweg.energies.labelled.LabelledEnsemble`.
        n_labels_: 1 without labels.
        image_shape_: (C, H, W).
        buffer_: the chains at the end of training ``[n, C, H, W]``, and their labels; after matching, new images.
        gaussians_: after matching, the :class:`~thalweg.energies.densities.ClassGaussians` where new images start.
        history_: :class:`~thalweg.training.loop.History`; with chains, "energy gap" should hover round 0.

    Source: matching [Balcerak 2025], from Gaussians of the labels, where chains start in [Yang 2021]; chains
    [Du 2019].
    """

    def __init__(
        self,
        *,
        objective: str = "matching",
        network: str = "auto",
        hidden: Sequence[int] = (512, 512),
        width: int | None = None,
        n_blocks: int = 3,
        n_paired: int = 1024,
        n_steps: int = 30,
        step_size: float | None = None,
        noise_scale: float | None = None,
        clip_grad: float | None = None,
        energy_l2: float = 0.1,
        buffer_size: int = 2000,
        restart: float = 0.1,
        batch_size: int = 100,
        learning_rate: float = 1e-3,
        max_steps: int = 3000,
        ema_decay: float | None = None,
        n_snapshots: int = 1,
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
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags

    def fit(
        self,
        X: np.ndarray,
        y: np.ndarray | None = None,
        *,
        resolution: float | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
        checkpoint_seconds: float = 5.0,
    ) -> ImageEBM:
        """Train on images.

        Args:
            X: images ``[n, H, W]``, ``[n, H, W, C]`` or ``[n, C, H, W]``, bytes or numbers in [0, 1].
            y: labels ``[n]``, whole numbers from 0; each must occur. None trains without labels.
            resolution: one grey level, by which images are dequantised in training; None finds it.
            run_dir: keep checkpoints here.
            resume: go on from the checkpoint in run_dir.
            checkpoint_seconds: least time between two checkpoints.

        Raises:
            ValueError: for data or settings that can't be used, in words.
            DivergenceError: if training can't be kept from diverging.
        """
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {self.objective!r}")
        if self.network not in NETWORKS:
            raise ValueError(f"network must be one of {', '.join(NETWORKS)}; got {self.network!r}")
        counts = ("n_snapshots", "n_blocks", "n_steps", "buffer_size", "batch_size", "max_steps", "n_paired")
        check_counts(self, *counts, *(() if self.width is None else ("width",)))
        check_widths(self.hidden)
        self._check_training()
        found = as_images(X, y)
        self.image_shape_ = tuple(int(v) for v in found.pixels.shape[1:])
        self.n_labels_ = _count_labels(y)
        level = found.resolution if resolution is None else resolution
        rng = check_random_state(self.random_state)
        seed = draw_seed(rng)
        images = torch.from_numpy(found.pixels)
        labels = torch.zeros(len(images)) if y is None else torch.as_tensor(found.labels, dtype=torch.float32)
        gaussians = None
        if self.objective == "matching":
            gaussians = ClassGaussians.fit(images, labels, least_std=_START_NOISE)
        with seeded(seed):
            self.energy_ = self._build(gaussians)
        objective, n_read = self._objective(len(images), level)
        per_epoch = max(1, len(images) // n_read)
        plan = Plan(
            max_epochs=max(1, math.ceil(self.max_steps / per_epoch)),
            batch_size=n_read,
            learning_rate=self.learning_rate,
            ema_decay=self.ema_decay,
            n_snapshots=self.n_snapshots if self.n_snapshots > 1 else 0,
            checkpoint_seconds=checkpoint_seconds,
            seed=seed,
        )
        with self._own_threads():
            trainer = Trainer(
                plan,
                self._make_fabric(),
                None if run_dir is None else Path(run_dir),
                BarProgress() if self.verbose else None,
            )
            self.history_ = trainer.fit(self.energy_.of_inputs(), objective, Batch(labels, images), resume=resume)
        self.energy_.eval()
        self.buffer_ = self._chains_of(objective, seed)
        lost = self._lost_chains(images[:2000], labels[:2000].long())
        if self.n_snapshots > 1:
            members = [copy.deepcopy(self.energy_) for _ in trainer.snapshots]
            for member, state in zip(members, trainer.snapshots, strict=True):
                member.of_inputs().load_state_dict(state)
            self.energy_ = LabelledEnsemble(members).eval()
        training = check_training({"training": self.history_}, by_held_out=False)
        variety = check_variety(self.buffer_[0].numpy(), found.pixels, "chains of the training")
        self._conclude([check_rows(len(images)), training, check_lost_chains(lost), variety])
        return self

    def _objective(self, n_images: int, level: float) -> tuple[Objective, int]:
        """The loss, and how many images are read for an update."""
        batch_size = min(self.batch_size, n_images)
        if self.objective == "matching":
            weight = _LABEL_WEIGHT if self.n_labels_ > 1 else 0.0
            matching = EnergyMatching(self.gaussians_, n_rows=batch_size, resolution=level, label_weight=weight)
            return matching, min(self.n_paired, n_images)
        noise = UniformEnergy(torch.zeros(self.image_shape_), torch.ones(self.image_shape_))
        buffer = ReplayBuffer(noise, max(self.buffer_size, batch_size), batch_size, self.restart, x_event=())
        improved = self.objective == "improved-chains"
        chains = (ImprovedContrastiveDivergence if improved else ContrastiveDivergence)(
            self._kernel(), self.n_steps, buffer, self.energy_l2, level, bounds=(0.0, 1.0)
        )
        return chains, batch_size

    def _chains_of(self, objective: Objective, seed: int) -> tuple[Tensor, Tensor]:
        """Chains at the end of training and their labels: those of the buffer, or fresh ones."""
        buffer = getattr(objective, "start", None)
        if isinstance(buffer, ReplayBuffer):
            assert buffer.xs is not None
            return buffer.positions[buffer.alive].cpu(), buffer.xs[buffer.alive].long().cpu()
        n = max(_FEWEST_ENDS, self.n_labels_)
        return torch.from_numpy(self.sample(n, random_state=seed)), self._labels(None, n)

    def _lost_chains(self, images: Tensor, labels: Tensor) -> float:
        """Share of chains that lie higher than nearly all of the data: no loss tells that they are stuck."""

        def own(images: Tensor, labels: Tensor) -> np.ndarray:
            return np.take_along_axis(self.energies(images.numpy()), labels.numpy()[:, None], 1)

        return float((own(*self.buffer_) > np.quantile(own(images, labels), 0.99)).mean())

    def _build(self, gaussians: ClassGaussians | None = None) -> LabelledEnergy:
        """The energy, for matching anchored at these Gaussians."""
        n_numbers, n_labels, hidden = math.prod(self.image_shape_), self.n_labels_, check_widths(self.hidden)
        matched, chosen = self.objective == "matching", self.network
        if chosen == "auto":
            most = _NUMBERS_OF_A_SMALL_IMAGE if matched else _NUMBERS_OF_A_PERCEPTRON
            chosen = "perceptron" if n_numbers <= most else "convolutional" if matched else "residual"
        if chosen == "perceptron":
            # The gradient of a matched energy must have a derivative everywhere.
            activation = "silu" if matched else "relu"
            energy: LabelledEnergy = LabelledPerceptron(self.image_shape_, n_labels, hidden, activation)
        else:
            energy = LabelledEnergy(self._network(chosen, hidden[-1]), input_ndim=3, input_support=UNIT_IMAGES)
        return energy if gaussians is None else AnchoredEnergy(energy, gaussians, _ANCHOR)

    def _network(self, chosen: str, hidden: int) -> nn.Module:
        channels, height, width = self.image_shape_
        if chosen == "convolutional":
            return smooth_network(self.image_shape_, self.n_labels_, self.width or 16, hidden)
        if min(height, width) < 2**self.n_blocks:
            raise ValueError(
                f"images of {height} x {width} are too small for {self.n_blocks} blocks that each halve them: "
                "lower n_blocks"
            )
        return residual_network(channels, self.n_labels_, self.width or 32, self.n_blocks)

    @property
    def gaussians_(self) -> ClassGaussians:
        energy = self.energy_.members[0] if isinstance(self.energy_, LabelledEnsemble) else self.energy_
        if not isinstance(energy, AnchoredEnergy):
            raise AttributeError("there are Gaussians after matching only: this energy was trained by chains")
        return energy.gaussians

    def _walk(self) -> Walk:
        if self.objective == "matching":
            return MatchedFlow(self.gaussians_)
        return ColdChains(self._kernel(), self.image_shape_)

    def _kernel(self) -> ColdLangevin:
        small = math.prod(self.image_shape_) <= _NUMBERS_OF_A_SMALL_IMAGE
        asked = self.step_size, self.noise_scale, self.clip_grad
        by_size = (0.05, 0.03, 1.0) if small else (3.0, 0.01, 0.03)
        step, noise, clip = (size if value is None else value for value, size in zip(asked, by_size, strict=True))
        return ColdLangevin(step, noise, clip, 0.0, 1.0)

    def _own_threads(self) -> contextlib.AbstractContextManager[None]:
        return self._threads(self.batch_size, count_weights(self.energy_))

    # -- use -----------------------------------------------------------------------------------------

    def sample(
        self,
        n_samples: int = 1,
        *,
        random_state: RandomState = None,
        labels: np.ndarray | int | None = None,
        n_steps: int | None = None,
        start: np.ndarray | None = None,
        composed_with: Energy | None = None,
    ) -> np.ndarray:
        """New images ``[n_samples, C, H, W]`` by fresh chains, or by the flow from noise.

        Args:
            random_state: seed, or a ``RandomState``.
            labels: one for each, one for all, or None: all labels in turn.
            n_steps: of each chain, or of the flow, which takes two gradients a step; None is 500, or 25.
            start: images ``[n_samples, C, H, W]`` to start from (of another label, say); None is noise.
            composed_with: an energy over images in [0, 1] that is added to this one: what they shall have in
                common, say, or another model's ``energy_.of_inputs().given(label)``. Chains are cold, so that a
                weight does more in them than in the flow.
        """
        check_is_fitted(self, "energy_")
        check_count("n_samples", n_samples)
        generator, walk = self._generator(random_state), self._walk()
        given, n = self._labels(labels, n_samples), self._at_once()
        position = walk.noise(given, (), generator) if start is None else self._pixels(start)
        n_steps, parts = walk.n_fresh if n_steps is None else n_steps, []
        with self._own_threads():
            for y, x in zip(given.split(n), position.split(n), strict=True):
                energy = self._given(y)
                if composed_with is not None:
                    energy = WeightedSum([energy, composed_with], [1.0, 1.0])
                if start is None:
                    parts.append(walk.part(energy, x, 1.0, n_steps, generator).clamp(0, 1))
                else:
                    parts.append(walk.onward(energy, y, x, n_steps, generator))
        return torch.cat(parts).cpu().numpy()

    def passage(
        self,
        n_samples: int = 1,
        *,
        n_frames: int = 6,
        random_state: RandomState = None,
        labels: np.ndarray | int | None = None,
    ) -> np.ndarray:
        """New images on their way, from where they start to where :meth:`sample` takes them.

        Args:
            n_frames: how many moments of the way, evenly spaced and with both ends; at least 2.
            random_state: seed, or a ``RandomState``.
            labels: as of :meth:`sample`.

        Returns:
            ``[n_frames, n_samples, C, H, W]``.
        """
        check_is_fitted(self, "energy_")
        check_count("n_samples", n_samples)
        check_count("n_frames", n_frames, least=2)
        generator, walk = self._generator(random_state), self._walk()
        given = self._labels(labels, n_samples)
        position, n_parts = walk.noise(given, (), generator), n_frames - 1
        frames = [position]
        with self._own_threads():
            for _ in range(n_parts):
                n_steps = max(1, walk.n_fresh // n_parts)
                position = walk.part(self._given(given), position, 1 / n_parts, n_steps, generator)
                frames.append(position)
        return torch.stack(frames).clamp(0, 1).cpu().numpy()

    def starts(
        self, n_samples: int = 1, *, random_state: RandomState = None, labels: np.ndarray | int | None = None
    ) -> np.ndarray:
        """Where new images start ``[n_samples, C, H, W]``: what they must be better than.

        Args:
            random_state: seed, or a ``RandomState``; :meth:`sample` with the same one starts there.
            labels: as of :meth:`sample`.
        """
        check_is_fitted(self, "energy_")
        check_count("n_samples", n_samples)
        given = self._labels(labels, n_samples)
        return self._walk().noise(given, (), self._generator(random_state)).clamp(0, 1).cpu().numpy()

    def energies(self, X: np.ndarray) -> np.ndarray:
        """E(label, image) of every label ``[n, n_labels]``."""
        check_is_fitted(self, "energy_")
        with torch.no_grad():
            parts = [self.energy_.energies(x) for x in self._pixels(X).split(self._at_once())]
        return torch.cat(parts).cpu().numpy()

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        """-min over labels of E ``[n]``: the higher, the more like the data. Not normalised, so no nats."""
        return -self.energies(X).min(1)

    def impute(
        self,
        X: np.ndarray,
        *,
        n_draws: int | None = None,
        random_state: RandomState = None,
        known: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        n_chains: int = 16,
        n_steps: int | None = None,
    ) -> np.ndarray:
        """Fill in what is not known of images; known pixels come back bit for bit.

        Args:
            X: images ``[n, C, H, W]``.
            n_draws: None gives the mean over chains; a number that many completions.
            random_state: seed, or a ``RandomState``.
            known: bool, broadcasting against the images; unknown pixels may then hold anything. None takes NaN as
                unknown.
            labels: ``[n]``; None takes for each image the label whose completions have the lowest energy.
            n_chains: chains of each image, over which the mean is taken.
            n_steps: steps of each chain, or of the flow; None is 200, or 25.

        Returns:
            ``[n, C, H, W]``, or ``[n_draws, n, C, H, W]``; in [0, 1] where X holds bytes.

        Raises:
            ValueError: for images that do not fit the model, ``known`` that does not fit them, or n_draws below 1.
        """
        check_is_fitted(self, "energy_")
        if n_draws is not None:
            check_count("n_draws", n_draws)
        generator = self._generator(random_state)
        n_steps = self._walk().n_filling if n_steps is None else n_steps
        original = pixels_with_gaps(X, self.image_shape_)
        is_known = which_known(original, known)
        mask = torch.from_numpy(is_known.copy()).to(self._device)
        x = self._pixels(np.where(is_known, original, 0.0))
        if labels is None and self.n_labels_ > 1:
            labels = self._likeliest_labels(x, mask, n_steps, generator)
        ends = self._fill(self._labels(labels, len(x)), x, mask, n_draws or n_chains, n_steps, generator)
        filled = ends.mean(1) if n_draws is None else ends.movedim(1, 0)
        return np.where(is_known, original, filled.cpu().numpy())

    def _likeliest_labels(self, x: Tensor, mask: Tensor, n_steps: int, generator: torch.Generator) -> np.ndarray:
        lowest = []
        for label in range(self.n_labels_):
            given = self._labels(label, len(x))
            ends = self._fill(given, x, mask, 2, n_steps, generator)
            with torch.no_grad():
                lowest.append(self._given(given)(ends).mean(1))
        return torch.stack(lowest, 1).argmin(1).cpu().numpy()

    def _fill(
        self, labels: Tensor, x: Tensor, mask: Tensor, n_chains: int, n_steps: int, generator: torch.Generator
    ) -> Tensor:
        """``[n, n_chains, C, H, W]``."""
        ends, walk = [], self._walk()
        for rows in torch.arange(len(x)).split(self._at_once(n_chains)):
            images = x[rows].unsqueeze(1).repeat_interleave(n_chains, 1)
            known, own = mask[rows].unsqueeze(1), labels[rows]
            with self._own_threads():
                ends.append(walk.completed(self._given(own), own, images, known, n_steps, generator))
        return torch.cat(ends)

    def denoise(
        self,
        X: np.ndarray,
        *,
        random_state: RandomState = None,
        labels: np.ndarray | None = None,
        n_chains: int = 16,
        n_steps: int | None = None,
    ) -> np.ndarray:
        """Images ``[n, C, H, W]`` moved towards the data by short chains from each, averaged over chains.

        Args:
            labels: ``[n]``; None takes the label of lowest energy.
            n_chains: chains of each image.
            n_steps: of each chain, or of the flow; None is 10.
        """
        check_is_fitted(self, "energy_")
        x = self._pixels(X)
        if labels is None:
            labels = self.energies(X).argmin(1)
        generator, walk = self._generator(random_state), self._walk()
        n_steps = walk.n_denoising if n_steps is None else n_steps
        given, means = self._labels(labels, len(x)), []
        for rows in torch.arange(len(x)).split(self._at_once(n_chains)):
            start = x[rows].unsqueeze(1).repeat_interleave(n_chains, 1)
            with self._own_threads():
                means.append(walk.cleaned(self._given(given[rows]), start, n_steps, generator).mean(1))
        return torch.cat(means).cpu().numpy()

    def counterfactual(self, X: np.ndarray, label: Any, *, n_steps: int = 100) -> np.ndarray:
        """For each image one nearby whose lowest energy is that of the label: down E(label, image) in short steps.

        How far that is shows what the energy takes the label to be; to turn an image into a likely one of the
        label, begin :meth:`sample` there with ``start`` instead.

        Args:
            X: images ``[n, C, H, W]``.
            label: from 0, one for all or ``[n]``.
            n_steps: most steps along the gradient.

        Returns:
            ``[n, C, H, W]`` in [0, 1]. Images that are of the label already come back as they are; those for which
            no way was found as far as they got: ask :meth:`energies`.

        Raises:
            ValueError: for images that do not fit the model, labels that it does not know, or a model of images
                without labels.
        """
        check_is_fitted(self, "energy_")
        check_count("n_steps", n_steps)
        if self.n_labels_ < 2:
            raise ValueError(
                "the images that the model was fitted to have no labels: there is no other to move to"
            )
        x = self._pixels(X)
        parts = zip(x.split(self._at_once()), self._labels(label, len(x)).split(self._at_once()), strict=True)
        with self._own_threads():
            moved = [changed_images(self.energy_, images, labels, n_steps) for images, labels in parts]
        return torch.cat(moved).cpu().numpy()

    def _at_once(self, n_chains: int = 1) -> int:
        """How many images have chains side by side; it bounds the memory."""
        return max(1, _PIXELS_AT_ONCE // (n_chains * math.prod(self.image_shape_)))

    def _given(self, labels: Tensor) -> Any:
        return self.energy_.of_inputs().given(labels.to(self._device))

    def _labels(self, labels: Any, n: int) -> Tensor:
        if labels is None:
            return torch.arange(n) % self.n_labels_
        found = torch.as_tensor(np.asarray(labels)).long().reshape(-1).expand(n) if np.ndim(labels) == 0 else (
            torch.as_tensor(np.asarray(labels)).long()
        )  # fmt: skip
        if len(found) != n:
            raise ValueError(f"there are {n} images and {len(found)} labels")
        if n and not (int(found.min()) >= 0 and int(found.max()) < self.n_labels_):
            raise ValueError(f"labels must be whole numbers from 0 to {self.n_labels_ - 1}")
        return found

    def _pixels(self, images: np.ndarray) -> Tensor:
        return torch.from_numpy(pixels_like(images, self.image_shape_)).to(self._device)

    def _generator(self, random_state: Any) -> torch.Generator:
        return generator_of(random_state, self._device)

    @property
    def _device(self) -> torch.device:
        return next(self.energy_.parameters()).device

    # -- saving --------------------------------------------------------------------------------------

    def _config(self) -> dict[str, Any]:
        known = {"image_shape": list(self.image_shape_), "n_labels": self.n_labels_}
        if self.objective == "matching":
            known["n_directions"] = self.gaussians_.directions.shape[1]
        return known

    def _tensors(self) -> dict[str, Tensor]:
        return {"buffer.images": self.buffer_[0], "buffer.labels": self.buffer_[1]}

    def _unfitted(self, n_directions: int | None) -> ClassGaussians | None:
        """Gaussians to load fitted ones into."""
        if n_directions is None:
            return None
        shape = self.n_labels_, *self.image_shape_
        directions = torch.zeros(self.n_labels_, n_directions, *self.image_shape_)
        return ClassGaussians(torch.zeros(shape), directions, torch.ones(shape))

    def _rebuild(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.image_shape_ = tuple(config["image_shape"])
        self.n_labels_ = config["n_labels"]
        n_directions = config.get("n_directions")
        if n_directions is None and self.objective == "matching":
            # Models saved before there was matching do not know it.
            self.set_params(objective="chains")
        members = [self._build(self._unfitted(n_directions)) for _ in range(self.n_snapshots)]
        self.energy_ = members[0] if len(members) == 1 else LabelledEnsemble(members)
        self.buffer_ = (tensors["buffer.images"], tensors["buffer.labels"])


def _count_labels(labels: np.ndarray | None) -> int:
    if labels is None:
        return 1
    found = np.asarray(labels)
    if found.ndim != 1 or found.dtype.kind not in "iu" or found.min(initial=0) < 0:
        raise ValueError("labels must be whole numbers from 0, one for each image")
    counts = np.bincount(found)
    if (counts == 0).any():
        raise ValueError(f"label {int(np.flatnonzero(counts == 0)[0])} has no image: number labels without gaps")
    return len(counts)
