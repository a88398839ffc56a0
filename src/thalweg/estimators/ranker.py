"""``EnergyRanker``: which rows of a group come first, by an energy of each, with scikit-learn's interface."""

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
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from thalweg._torch_state import seeded
from thalweg.data.encoding import TableEncoder
from thalweg.energies.networks.ranking_members import RankingMembers
from thalweg.estimators._base import (
    Estimator,
    RandomState,
    check_counts,
    check_widths,
    count_weights,
    draw_seed,
)
from thalweg.estimators._groups import (
    HeldOutNDCG,
    checked_relevance,
    lists_of,
    numbered_groups,
    teaching_groups,
)
from thalweg.estimators._labels import folds_by_label
from thalweg.estimators._tables import TableInputs
from thalweg.evaluation.ranking import CUTOFF, mean_over_groups, ndcg_of_groups
from thalweg.evaluation.ranking_checks import check_group_folds, check_groups
from thalweg.evaluation.verdict import check_rows, check_training
from thalweg.objectives.base import Batch
from thalweg.objectives.catalogue import ranking_objective
from thalweg.objectives.names import RANKING
from thalweg.training.loop import Plan, Trainer
from thalweg.training.progress import BarProgress

_ROWS_AT_ONCE = 4096
_ROWS_IN_A_BATCH = 512
# Scores that differ by less are equal: of equal rows the last bits depend on the rows beside them.
_DECIMALS = 9


class EnergyRanker(TableInputs, Estimator):
    """Learning to rank: an energy E(item | query) of rows, of which the lowest in a group is the best answer.

    Rows come in groups: the answers to a query, the runners of a race. Only the order within a group is learned,
    and only differences of energies within a group mean something, so that no normaliser is needed. What is known
    of the query stands in columns of its own, equal for all rows of the group.

    The energy is the mean of an ensemble of networks, trained by a loss of lists, each without one fold of the
    groups and stopped where NDCG at 10 is best on that fold. Groups of a single row, or with rows of one relevance
    only, teach nothing and are left out. Groups of more than 128 rows are dealt into lists at random for the
    training, each of which counts as a group; they are ranked and judged as a whole.

    Args:
        objective: "listwise" (likelihood of the gains by a softmax over the list), "lambda" (pairs, weighted by
            what swapping them changes in NDCG), "plackett-luce" (likelihood of the order), or all pairs alike by
            "pairwise-log", "pairwise-hinge" or "pairwise-square-exponential"; see
            :mod:`thalweg.objectives.ranking`.
        n_members: networks in the ensemble, and folds of the groups.
        hidden: widths of the hidden layers.
        dropout: probability of dropping a hidden unit.
        learning_rate, weight_decay, max_epochs, max_steps, patience: see :class:`~thalweg.training.loop.Plan`.
        batch_size: lists in an update; "auto" takes so many that they have about 512 rows.
        device, devices, num_nodes, strategy, precision: see :class:`lightning_fabric.Fabric`; ``device`` is its
            accelerator. Several processes share every batch.
        n_threads: number of PyTorch threads while fitting; None chooses by the size of the work.
        verbose: whether to show progress.
        random_state: seed, or a ``RandomState``.

    Attributes:
        energy_: the trained :class:`~thalweg.energies.RankingMembers`, of encoded rows.
        encoder_: the :class:`~thalweg.data.encoding.TableEncoder` of the rows.
        validation_ndcg_: mean NDCG at 10 of single members on held-out groups, each group judged by a network that
            did not learn from it, at the epoch best on other groups. The ensemble is better than its members.
        history_: :class:`~thalweg.training.history.History` of the fit; its validation is one minus NDCG at 10.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X, groups = rng.normal(size=(200, 3)), np.repeat(np.arange(20), 10)
        >>> relevance = (X[:, 0] > 0.5).astype(int)
        >>> model = EnergyRanker(max_epochs=5, random_state=0).fit(X, relevance, groups)
        >>> model.rank(X[:3], ["a", "a", "b"]).shape
        (3,)

    Source: energies that compare answers [LeCun 2006]; lists and pairs [Burges 2010], [Cao 2007].
    """

    # The checks of tables ask for it: there is none of the user's own.
    energy = None

    def __init__(
        self,
        objective: str = "listwise",
        *,
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
        tags.target_tags.required = True
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        tags.non_deterministic = False
        return tags

    # -- fitting -------------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: Any,
        groups: Any = None,
        *,
        run_dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
        checkpoint_seconds: float = 5.0,
    ) -> EnergyRanker:
        """Fit the energy of rows.

        Args:
            X: table ``[rows, columns]``: numbers, categories, dates, with gaps.
            y: relevance ``[rows]``, whole numbers from 0 to 30, the higher the better.
            groups: the group of each row ``[rows]``, texts, numbers or anything hashable; the rows of a group need
                not stand together.
            run_dir: keep checkpoints here.
            resume: go on from the checkpoint in run_dir; the result is that of a run never interrupted.
            checkpoint_seconds: least time between two checkpoints.

        Raises:
            ValueError: for settings or data that can't be used, in words.
            DivergenceError: if training can't be kept from diverging.
        """
        if y is None:
            raise ValueError("This EnergyRanker estimator requires y to be passed, but the target y is None")
        self._check_settings()
        table = self._check_table(X, reset=True)
        relevance = checked_relevance(y, len(table))
        all_numbers = numbered_groups(groups, len(table))
        teaching = teaching_groups(relevance, all_numbers)
        if teaching.sum() < 2:
            raise ValueError(_nothing_to_learn(relevance, all_numbers))
        rng = check_random_state(self.random_state)
        seed = draw_seed(rng)
        self.encoder_ = TableEncoder().fit(table)
        kept = teaching[all_numbers]
        x = torch.from_numpy(self.encoder_.transform(table)[kept])
        relevance, numbers = relevance[kept], (np.cumsum(teaching) - 1)[all_numbers[kept]]
        held_out = folds_by_label(np.zeros(int(teaching.sum()), int), self.n_members, rng)
        with seeded(seed):
            self.energy_ = self._build(int(x.shape[1]))
        data = self._lists(x, relevance, numbers, held_out, rng)
        plan = self._plan(len(data.y), len(x), seed, checkpoint_seconds)
        validate = HeldOutNDCG(x, relevance, numbers, held_out, seed)
        with self._threads(plan.batch_size * data.y.shape[1], count_weights(self.energy_)):
            trainer = Trainer(
                plan,
                self._make_fabric(),
                None if run_dir is None else Path(run_dir),
                BarProgress("held-out 1 - NDCG", n_members=self.n_members) if self.verbose else None,
            )
            objective = ranking_objective(self.objective)
            self.history_ = trainer.fit(self.energy_, objective, data, validate, resume=resume)
            self.energy_.eval()
        self.validation_ndcg_ = float(1 - validate.nested().mean())
        judged = 1 - validate.nested_rows(len(held_out)).nanmean(1).numpy()
        self._conclude(
            [
                check_rows(len(x), self.n_features_in_),
                check_groups(len(teaching), int((~teaching).sum())),
                check_training({"training": self.history_}),
                check_group_folds(judged, relevance, x.double().numpy(), numbers),
            ]
        )
        return self

    def _check_settings(self) -> None:
        if self.objective not in RANKING:
            raise ValueError(f"objective must be one of {', '.join(RANKING)}; got {self.objective!r}")
        check_counts(self, "n_members", "max_epochs")
        check_widths(self.hidden)
        self._check_training()
        if isinstance(self.dropout, str) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout!r}")
        if isinstance(self.batch_size, str) and self.batch_size != "auto":
            raise ValueError(f"batch_size must be 'auto' or a whole number, got {self.batch_size!r}")

    def _build(self, n_inputs: int) -> RankingMembers:
        self._n_inputs = n_inputs
        return RankingMembers(n_inputs, self.n_members, check_widths(self.hidden), self.dropout)

    @staticmethod
    def _lists(
        x: Tensor, relevance: np.ndarray, numbers: np.ndarray, held_out: np.ndarray, rng: np.random.RandomState
    ) -> Batch:
        """The lists to learn from; each member sees those of the groups that it does not hold out."""
        rows, group = lists_of(numbers, int(x.shape[1]), rng)
        y = np.where(rows >= 0, relevance[rows], -1.0).astype(np.float32)
        padded = x[torch.from_numpy(rows.clip(0))] * torch.from_numpy(rows >= 0)[..., None]
        weight = torch.from_numpy(~held_out[group]).float()
        weight = weight / weight.mean(0)
        return Batch(padded, torch.from_numpy(y), weight if weight.shape[1] > 1 else weight[:, 0])

    def _plan(self, n_lists: int, n_rows: int, seed: int, checkpoint_seconds: float) -> Plan:
        size = self.batch_size
        if size == "auto":
            # At least eight updates in an epoch.
            size = max(1, min(round(_ROWS_IN_A_BATCH * n_lists / n_rows), n_lists // 8))
        return Plan(
            max_epochs=self.max_epochs,
            max_steps=self.max_steps,
            batch_size=int(size),
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            warmup_steps=50,
            patience=self.patience,
            clip_norm=5.0 * math.sqrt(self.n_members),
            checkpoint_seconds=checkpoint_seconds,
            seed=seed,
        )

    # -- prediction ----------------------------------------------------------------------------------

    def energies(self, X: Any) -> np.ndarray:
        """The energy of each row ``[n]``, the lower the better; only differences within a group mean something."""
        check_is_fitted(self, "energy_")
        inputs = torch.from_numpy(self.encoder_.transform(self._check_table(X, reset=False)))
        # In double precision a row's answer does not depend on the rows beside it.
        energy = copy.deepcopy(self.energy_).double().eval()
        device = next(energy.parameters()).device
        with torch.no_grad():
            parts = [energy(part.double().to(device)).cpu() for part in inputs.split(_ROWS_AT_ONCE)]
        return torch.cat(parts).numpy().round(_DECIMALS)

    def predict(self, X: Any) -> np.ndarray:
        """The score of each row ``[n]``, minus its energy: the higher, the better among the rows of its group."""
        return -self.energies(X)

    def rank(self, X: Any, groups: Any) -> np.ndarray:
        """The rank of each row in its group ``[n]``; 1 is the best.

        Rows with equal scores have equal rank, the best that they share, and the next one is left out: 1, 2, 2, 4.

        Args:
            groups: the group of each row, which need not be one of the training.
        """
        scores = self.predict(X)
        return ranks_in_groups(scores, numbered_groups(groups, len(scores)))

    def score(self, X: Any, y: Any, groups: Any = None) -> float:
        """Mean NDCG at 10 of the groups, leaving out those without a relevant row.

        Raises:
            ValueError: if no group has a relevant row.
        """
        scores = self.predict(X)
        relevance, numbers = checked_relevance(y, len(scores)), numbered_groups(groups, len(scores))
        found = mean_over_groups(ndcg_of_groups(relevance, scores, numbers, CUTOFF))
        if not found.n_groups:
            raise ValueError("no group has a row whose relevance is above 0: NDCG is not defined")
        return found.value

    # -- saving --------------------------------------------------------------------------------------

    def _config(self) -> dict[str, Any]:
        return {
            "encoder": self.encoder_.state(),
            "n_inputs": self._n_inputs,
            "validation_ndcg": self.validation_ndcg_,
        }

    def _rebuild(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.encoder_ = TableEncoder.from_state(config["encoder"])
        self.validation_ndcg_ = float(config["validation_ndcg"])
        self.energy_ = self._build(config["n_inputs"])


def ranks_in_groups(scores: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The rank of each score in its group ``[n]``, 1 the highest; equal ones share the best rank among them."""
    return pd.Series(scores).groupby(numbers).rank(method="min", ascending=False).to_numpy().astype(np.int64)


def _nothing_to_learn(relevance: np.ndarray, numbers: np.ndarray) -> str:
    """Why fewer than two groups have an order."""
    if len(relevance) == 1:
        return "X has 1 sample: a ranker compares rows"
    if relevance.min() == relevance.max():
        return f"all rows have the relevance {relevance[0]:g}: there is no order to learn"
    if np.bincount(numbers).max() < 2:
        return f"each of {numbers.max() + 1} groups has a single row: there is nothing to rank"
    return (
        f"fewer than two of {numbers.max() + 1} groups hold rows of different relevance: there must be two at "
        "least, one of which is held out"
    )
