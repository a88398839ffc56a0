"""``EnergySequenceTagger``: a label for each element of a sequence, with scikit-learn's interface."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from thalweg._torch_state import seeded
from thalweg.data.sequences import ElementEncoder, checked, in_batches
from thalweg.energies.base import check_temperature
from thalweg.energies.factors.chain import UNKNOWN, ChainEnergy, LabelChain
from thalweg.energies.networks.sequence import ElementFeatures, SequenceNetwork
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
from thalweg.estimators._sequences import (
    HeldOutSequences,
    classes_of,
    labels_of,
    nll,
    padded,
    places_of,
    start_from_counts,
)
from thalweg.evaluation.calibration import Temperature
from thalweg.evaluation.verdict import Check, check_rows, check_training
from thalweg.inference import chains
from thalweg.objectives.base import Batch
from thalweg.objectives.catalogue import ANSWER_LOSSES
from thalweg.objectives.names import ANSWERS
from thalweg.training.guard import Guard
from thalweg.training.loop import Plan, Trainer
from thalweg.training.progress import BarProgress

# Temperatures that are tried, a fifth apart, and the place of 1 among them.
_TEMPERATURES = np.exp(0.2 * np.arange(-15, 21))
_ONE = 15
# In training sequences longer than this many times the usual are cut, where padding would fill the memory.
_MOST_PADDING, _MOST_NUMBERS = 4, 50_000_000


class Tagged(NamedTuple):
    """One of the best labellings of a sequence.

    Attributes:
        labels: of its elements ``[T]``.
        log_prob: log p of all of them together, nats.
    """

    labels: np.ndarray
    log_prob: float


class EnergySequenceTagger(Estimator):
    """Labels of the elements of sequences, by a linear-chain energy: a conditional random field with a network.

    E(x, y) is a sum of a term for each label, from a network that sees the element and its neighbours, and a term
    for each pair of labels that follow one another. What is lowest, how probable each label is and how probable a
    whole sequence is are computed exactly.

    A sequence is an array ``[elements, numbers]``, a list of tokens (texts), or a frame whose rows are its
    elements. Tokens get features: the word, its beginning and end, its shape, its neighbours. Lengths may differ.

    Args:
        objective: "likelihood"; or one of the losses that need no normaliser: "perceptron", "hinge", "log",
            "mce" (minimum classification error), "mee", "square-square", "square-exponential", "lvq2", "energy".
        order: 1 for terms of pairs of labels, 2 for terms of three in a row as well.
        forbidden: transitions that must not occur: pairs (label, next label), None before the first label and
            after the last; or "bio" for tags as B-X, I-X and O, where I-X goes on a B-X or an I-X.
        calibrate: whether energies are divided by one temperature, where that lowers the held-out -log p.
        n_context: layers by which the network sees neighbours, one more on either side with each; 0 for none.
        hidden: widths of the layers on each element.
        dropout: probability of dropping a unit in training.
        learning_rate, weight_decay, batch_size, max_epochs, max_steps, patience: see
            :class:`~thalweg.training.loop.Plan`; rows are sequences.
        validation_fraction: share of the sequences that are not learned from and say when to stop.
        device, devices, num_nodes, strategy, precision: see :class:`lightning_fabric.Fabric`.
        n_threads: number of PyTorch threads while fitting; None chooses by the size of the work.
        verbose: whether to show progress.
        random_state: seed, or a ``RandomState``.

    Attributes:
        classes_: the labels, in order.
        energy_: the trained :class:`~thalweg.energies.factors.chain.ChainEnergy`.
        transitions_: energies of each label after each ``[K, K]``, infinite where forbidden.
        temperature_: :class:`~thalweg.evaluation.calibration.Temperature`.
        validation_loss_: held-out figure per element: -log p in nats for "likelihood" and "mee", else the share
            of wrong labels.
        history_: :class:`~thalweg.training.loop.History` of the fit.

    Example:
        >>> X = [["the", "dog", "barks"], ["a", "cat", "sleeps"]] * 10
        >>> y = [["D", "N", "V"], ["D", "N", "V"]] * 10
        >>> model = EnergySequenceTagger(max_epochs=20, random_state=0).fit(X, y)
        >>> model.predict([["the", "cat", "barks"]])[0].tolist()
        ['D', 'N', 'V']

    Source: [Lafferty 2001]; with a network [Peng 2009]; the losses [LeCun 2006, table 1].
    """

    forbidden: Any

    def __init__(
        self,
        objective: str = "likelihood",
        *,
        order: int = 1,
        forbidden: Sequence[tuple[Any, Any]] | str | None = None,
        calibrate: bool = True,
        n_context: int = 2,
        hidden: Sequence[int] = (128, 128),
        dropout: float = 0.5,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.01,
        batch_size: int | str = "auto",
        max_epochs: int = 100,
        max_steps: int | None = 6000,
        patience: int | None = 15,
        validation_fraction: float = 0.1,
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

    # -- fitting -------------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        sample_weight: Any = None,
        run_dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
        checkpoint_seconds: float = 5.0,
    ) -> EnergySequenceTagger:
        """Fit the energy of sequences and their labels.

        Args:
            X: list of sequences.
            y: list with the labels of each, texts or whole numbers; None or -1 where one is unknown.
            sample_weight: of each sequence, not negative; those of weight 0 are left out.
            run_dir: keep checkpoints here.
            resume: go on from the checkpoint in run_dir; the result is that of a run never interrupted.
            checkpoint_seconds: least time between two checkpoints.

        Raises:
            ValueError: for settings or data that can't be used, in words.
            DivergenceError: if training can't be kept from diverging.
        """
        self._check_settings()
        sequences = checked(X)
        labels = labels_of(y, [len(s) for s in sequences])
        weight = _checked_weight(sample_weight, len(sequences))
        kept = [i for i in range(len(sequences)) if weight[i] > 0]
        sequences, labels, weight = [sequences[i] for i in kept], [labels[i] for i in kept], weight[kept]
        if len(sequences) < 2:
            raise ValueError(f"there is {len(sequences)} sequence of positive weight: at least two are needed")
        self.classes_ = classes_of(labels)
        places = places_of(labels, self.classes_)
        forbidden = self._forbidden()
        rng = check_random_state(self.random_state)
        seed = draw_seed(rng)
        self.encoder_ = ElementEncoder().fit(sequences)
        rows = self.encoder_.transform(sequences)
        n_held_out = int(np.clip(round(self.validation_fraction * len(rows)), 1, len(rows) - 1))
        order = rng.permutation(len(rows))
        judging, learning = np.sort(order[:n_held_out]), np.sort(order[n_held_out:])
        _refuse_forbidden(places, forbidden, self.classes_)
        with seeded(seed):
            self.energy_ = self._build()
        start_from_counts(self.energy_, [places[i] for i in learning])
        x, targets, own_weight = self._training_set(rows, places, weight, learning)
        every_x, every_y = (
            padded([rows[i] for i in judging], np.nan),
            padded([places[i] for i in judging], UNKNOWN),
        )
        by_errors = self.objective not in ("likelihood", "mee")
        validate = HeldOutSequences(
            every_x, every_y, np.arange(len(judging)), torch.from_numpy(weight[judging]), by_errors, self.calibrate
        )
        plan = self._plan(len(x), seed, checkpoint_seconds)
        with self._threads(plan.batch_size * x.shape[1], count_weights(self.energy_)):
            trainer = Trainer(
                plan,
                self._make_fabric(),
                None if run_dir is None else Path(run_dir),
                BarProgress("held-out errors" if by_errors else "held-out NLL") if self.verbose else None,
            )
            data = Batch(x, targets, own_weight)
            objective = ANSWER_LOSSES[self.objective]()
            self.history_ = trainer.fit(self.energy_, objective, data, validate, resume=resume)
            self.energy_.eval()
            wrong = self._share_wrong(validate)
            self._calibrate(every_x, every_y, wrong)
        self.validation_loss_ = float(validate.nested().mean())
        self._conclude(self._checks(len(learning), every_y, wrong))
        return self

    def _check_settings(self) -> None:
        if self.objective not in ANSWERS:
            raise ValueError(f"objective must be one of {', '.join(ANSWERS)}; got {self.objective!r}")
        if self.order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {self.order!r}")
        check_counts(self, "max_epochs")
        check_count("n_context", self.n_context, 0)
        check_widths(self.hidden)
        self._check_training()
        if isinstance(self.dropout, str) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout!r}")
        if isinstance(self.batch_size, str) and self.batch_size != "auto":
            raise ValueError(f"batch_size must be 'auto' or a whole number, got {self.batch_size!r}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be between 0 and 1, got {self.validation_fraction!r}")
        if isinstance(self.forbidden, str) and self.forbidden != "bio":
            raise ValueError(f"forbidden must be pairs of labels or 'bio', got {self.forbidden!r}")

    def _forbidden(self) -> tuple[Tensor, Tensor, Tensor]:
        """Which transitions may not occur ``[K, K]``, which labels may not be first, and last."""
        k = len(self.classes_)
        names = {label: place for place, label in enumerate(self.classes_.tolist())}
        between, first, last = torch.zeros(k, k, dtype=torch.bool), torch.zeros(k).bool(), torch.zeros(k).bool()
        if isinstance(self.forbidden, str):
            for name, place in names.items():
                kind = str(name)[2:]
                if not str(name).startswith("I-"):
                    continue
                first[place] = True
                for other, before in names.items():
                    between[before, place] = str(other) not in (f"B-{kind}", f"I-{kind}")
            return between, first, last
        for pair in self.forbidden or ():
            if isinstance(pair, str) or len(pair) != 2:
                raise ValueError(f"forbidden must be pairs (label, next label), got {pair!r}")
            for label in pair:
                if label is not None and label not in names:
                    shown = ", ".join(map(str, self.classes_[:20]))
                    raise ValueError(f"forbidden names the label {label!r}, which does not occur ({shown})")
            before, after = pair
            if before is None and after is None:
                raise ValueError("forbidden has a pair of None and None: one of them must be a label")
            if before is None:
                first[names[after]] = True
            elif after is None:
                last[names[before]] = True
            else:
                between[names[before], names[after]] = True
        return between, first, last

    def _build(self) -> ChainEnergy:
        encoder, hidden, k = self.encoder_, check_widths(self.hidden), len(self.classes_)
        element = ElementFeatures(encoder.n_numbers, encoder.n_vocabulary, hidden, self.dropout)
        network = SequenceNetwork(element, hidden[-1], k, self.n_context, self.dropout)
        between, first, last = self._forbidden()
        return ChainEnergy(network, k, self.order, ~between, ~first, ~last)

    def _training_set(
        self, rows: list[np.ndarray], places: list[np.ndarray], weight: np.ndarray, learning: np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Padded sequences and labels that are learned from; very long ones in pieces where padding is much."""
        lengths = np.array([len(rows[i]) for i in learning])
        width, piece = rows[0].shape[1], int(lengths.max())
        padding = piece * len(lengths) / lengths.sum()
        if padding > _MOST_PADDING and piece * len(lengths) * width > _MOST_NUMBERS:
            piece = max(50, int(2 * np.quantile(lengths, 0.9)))
        parts = [(i, start) for i in learning for start in range(0, len(rows[i]), piece)]
        x = padded([rows[i][start : start + piece] for i, start in parts], np.nan)
        y = padded([places[i][start : start + piece] for i, start in parts], UNKNOWN)
        own = torch.tensor([weight[i] for i, _ in parts], dtype=torch.float32)
        return x, y, own / own.mean()

    def _plan(self, n: int, seed: int, checkpoint_seconds: float) -> Plan:
        size = self.batch_size
        return Plan(
            max_epochs=self.max_epochs,
            max_steps=self.max_steps,
            batch_size=int(min(64, max(8, n // 20))) if size == "auto" else int(size),
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            warmup_steps=50,
            patience=self.patience,
            clip_norm=5.0,
            checkpoint_seconds=checkpoint_seconds,
            seed=seed,
        )

    def _calibrate(self, x: Tensor, y: Tensor, wrong: float) -> None:
        """The temperature that lowers the held-out -log p of known labels most, if it helps.

        Whether it helps is judged as for a classifier: each half of the sequences at the temperature of the other.
        Where every label is predicted right no finite temperature is best, and none is applied.

        Args:
            wrong: share of the held-out labels that are predicted wrong.
        """
        self.temperature_ = Temperature(1.0, np.nan, np.nan, False)
        n_known = int((y >= 0).sum())
        if not self.calibrate or not n_known:
            return
        losses = torch.empty(len(x), len(_TEMPERATURES))
        with torch.no_grad():
            for part in in_batches((~x[..., 0].isnan()).sum(1).tolist()):
                rows = torch.from_numpy(part.copy())
                chain, own = self.energy_.given(x[rows].to(self._device)), y[rows].to(self._device)
                of_rows = [nll(chain.tempered(float(t)), own) for t in _TEMPERATURES]
                losses[rows] = torch.stack(of_rows, -1).cpu()
        before = float(losses[:, _ONE].sum()) / n_known
        halves = losses[::2], losses[1::2]
        judged = [float(b[:, a.sum(0).argmin()].sum()) for a, b in (halves, halves[::-1]) if len(a)]
        after = sum(judged) / n_known
        applied = len(x) > 1 and wrong > 0 and after < before
        value = float(_TEMPERATURES[losses.sum(0).argmin()]) if applied else 1.0
        self.temperature_ = Temperature(value, before, after, applied)

    def _share_wrong(self, validate: HeldOutSequences) -> float:
        """The share of held-out labels that are predicted wrong."""
        every = validate.rows[0].numpy()
        errors = HeldOutSequences(validate.x, validate.y, every, validate.weight, by_errors=True)
        with torch.no_grad():
            return float(errors(self.energy_).mean())

    def _checks(self, n_learning: int, held_out: Tensor, wrong: float) -> list[Check]:
        found = [check_rows(n_learning, what="sequence"), check_training({"training": self.history_})]
        found.append(self._check_labels(held_out, wrong))
        record = self.history_.epochs[-1] if self.history_.epochs else {}
        if "energy spread" in record:
            told = Guard.collapse(record) or f"the energies of the answers differ by {record['energy spread']:.2g}"
            state = "failed" if Guard.collapse(record) else "passed"
            found.append(Check("energies", state, f"{told[0].upper()}{told[1:]}."))
        return found

    def _check_labels(self, labels: Tensor, wrong: float) -> Check:
        """Whether held-out labels are predicted better than by naming the most frequent one.

        Args:
            labels: the held-out labels, negative where unknown.
            wrong: share of them that are predicted wrong.
        """
        y = labels[labels >= 0]
        if not len(y):
            return Check(
                "labels", "doubtful", "No held-out element has a label: nothing says how good the model is."
            )
        best = float(np.bincount(y.numpy()).max() / len(y))
        error = float(np.sqrt(best * (1 - best) / len(y)))
        told = f"Of the held-out labels {100 * (1 - wrong):.1f} % are right"
        frequent = f"the most frequent label is right in {100 * best:.1f} %"
        if 1 - wrong < best - 2 * error or 1 - wrong <= 1 / len(self.classes_):
            return Check("labels", "failed", f"{told}, and {frequent}: nothing was learned. Train longer.")
        if 1 - wrong < best + 2 * error:
            return Check("labels", "doubtful", f"{told}, and {frequent}: that is no better beyond its error.")
        return Check("labels", "passed", f"{told}, where {frequent}.")

    # -- answers -------------------------------------------------------------------------------------

    def predict(self, X: Any) -> list[np.ndarray]:
        """The labels of lowest energy of each sequence: a list of arrays ``[T]``."""
        found = self._of_sequences(X, lambda chain: chains.viterbi(chain).labels)
        return [self.classes_[labels] for labels in found]

    def predict_marginals(self, X: Any) -> list[np.ndarray]:
        """p(label of an element | the sequence), at the temperature: a list of arrays ``[T, K]``.

        The columns are in the order of ``classes_``.
        """
        return self._of_sequences(X, lambda chain: chains.marginals(self._tempered(chain)).double())

    def predict_best(self, X: Any, *, k: int = 5) -> list[list[Tagged]]:
        """The k most probable labellings of each sequence, the likeliest first; fewer where there are fewer.

        Raises:
            ValueError: if k is not positive.
        """
        check_count("k", k)

        def best(chain: LabelChain) -> list[list[Tagged]]:
            chain = self._tempered(chain)
            found, free = chains.k_best(chain, k), chains.free_energy(chain)
            lengths = chain.lengths.tolist()
            log_probs = (free[:, None] - found.energy).double().cpu().numpy()
            labels = found.labels.cpu().numpy()
            return [
                [
                    Tagged(self.classes_[labels[i, r, : lengths[i]]], float(log_probs[i, r]))
                    for r in range(k)
                    if np.isfinite(log_probs[i, r])
                ]
                for i in range(len(lengths))
            ]

        return self._of_sequences(X, best)

    def predict_samples(self, X: Any, *, n_samples: int = 1, random_state: RandomState = None) -> list[np.ndarray]:
        """Draws of the labels of each sequence, at the temperature: a list of arrays ``[n_samples, T]``."""
        check_count("n_samples", n_samples)
        generator = generator_of(random_state, self._device if hasattr(self, "energy_") else "cpu")

        def drawn(chain: LabelChain) -> Tensor:
            return chains.draw(self._tempered(chain), n_samples, generator).movedim(0, -1)

        return [self.classes_[labels.T] for labels in self._of_sequences(X, drawn)]

    def log_prob(self, X: Any, y: Any) -> np.ndarray:
        """log p of the labels of each sequence, of all that are known together, at the temperature ``[n]``, nats.

        Raises:
            ValueError: for labels that no training sequence had.
        """
        places = places_of(labels_of(y, [len(s) for s in X]), self._fitted().classes_)
        found = np.empty(len(places))

        def of_part(chain: LabelChain, numbers: np.ndarray) -> list[float]:
            own = padded([places[i] for i in numbers], UNKNOWN).to(self._device)
            return (-nll(self._tempered(chain), own)).double().tolist()

        found[:] = self._of_sequences(X, of_part, with_numbers=True)
        return found

    def at_temperature(self, *, value: float) -> EnergySequenceTagger:
        """The same model with another temperature, 1 for the energies as they were learned.

        Raises:
            ValueError: if the temperature is not positive.
        """
        self._fitted()
        check_temperature(value)
        other = copy.copy(self)
        other.temperature_ = Temperature(value, np.nan, np.nan, True)
        return other

    def score(self, X: Any, y: Any, *, sample_weight: Any = None) -> float:
        """Share of elements whose label is predicted, of those whose label is known; one that is new is wrong.

        Args:
            sample_weight: of each sequence.

        Raises:
            ValueError: if no label is known.
        """
        labels = places_of(labels_of(y, [len(s) for s in X]), self._fitted().classes_, refuse_new=False)
        weight = _checked_weight(sample_weight, len(labels))
        predicted = self._of_sequences(X, lambda chain: chains.viterbi(chain).labels)
        known = np.array([float((own != UNKNOWN).sum()) for own in labels])
        right = np.array([float((own == p).sum()) for own, p in zip(labels, predicted, strict=True)])
        total = float((weight * known).sum())
        if not total:
            raise ValueError("no element has a label: there is nothing to score")
        return float((weight * right).sum() / total)

    @property
    def transitions_(self) -> np.ndarray:
        chain = self._fitted().energy_
        return chain.transitions.masked_fill(chain.forbidden, torch.inf).detach().double().cpu().numpy()

    def _fitted(self) -> EnergySequenceTagger:
        check_is_fitted(self, "energy_")
        return self

    def _tempered(self, chain: LabelChain) -> LabelChain:
        return chain.tempered(self.temperature_.value) if self.temperature_.value != 1 else chain

    def _of_sequences(self, X: Any, ask: Any, with_numbers: bool = False) -> list[Any]:
        """What is asked of the chains of each sequence, in the order of X; tensors are cut to its length."""
        self._fitted()
        sequences = checked(X, self.encoder_)
        found: list[Any] = [None] * len(sequences)
        lengths = [len(s) for s in sequences]
        with torch.no_grad():
            for numbers in in_batches(lengths):
                rows = self.encoder_.transform([sequences[i] for i in numbers])
                chain = self.energy_.given(padded(rows, np.nan).to(self._device))
                answers = ask(chain, numbers) if with_numbers else ask(chain)
                for i, answer in zip(numbers, answers, strict=True):
                    whole = answer[: lengths[i]].cpu().numpy() if isinstance(answer, Tensor) else answer
                    found[i] = whole
        return found

    @property
    def _device(self) -> torch.device:
        return next(self.energy_.parameters()).device

    # -- saving --------------------------------------------------------------------------------------

    def _config(self) -> dict[str, Any]:
        none = [None if isinstance(v, float) and np.isnan(v) else v for v in self.temperature_]
        return {
            "classes": self.classes_.tolist(),
            "encoder": self.encoder_.state(),
            "temperature": none,
            "validation_loss": self.validation_loss_,
        }

    def _rebuild(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        classes = config["classes"]
        self.classes_ = np.array(classes, dtype=object if isinstance(classes[0], str) else None)
        self.encoder_ = ElementEncoder.from_state(config["encoder"])
        value, before, after, applied = (np.nan if v is None else v for v in config["temperature"])
        self.temperature_ = Temperature(value, before, after, bool(applied))
        self.validation_loss_ = config["validation_loss"]
        if isinstance(self.forbidden, list):
            # JSON has lists where pairs were.
            self.forbidden = [tuple(pair) for pair in self.forbidden]
        self.energy_ = self._build()


def _checked_weight(sample_weight: Any, n: int) -> np.ndarray:
    if sample_weight is None:
        return np.ones(n)
    weight = np.asarray(sample_weight, dtype=np.float64)
    if weight.shape != (n,):
        raise ValueError(f"sample_weight must have one number for each of {n} sequences, got {list(weight.shape)}")
    if not np.isfinite(weight).all() or (weight < 0).any():
        raise ValueError("sample_weight must be finite and not negative")
    return weight


def _refuse_forbidden(
    places: Sequence[np.ndarray], forbidden: tuple[Tensor, Tensor, Tensor], classes: np.ndarray
) -> None:
    """Refuse labels that follow one another where that is forbidden: the training would never end well."""
    between, first, last = (f.numpy() for f in forbidden)
    for i, own in enumerate(places):
        if own[0] != UNKNOWN and first[own[0]]:
            raise ValueError(f"sequence {i} begins with {classes[own[0]]!r}, which is forbidden")
        if own[-1] != UNKNOWN and last[own[-1]]:
            raise ValueError(f"sequence {i} ends with {classes[own[-1]]!r}, which is forbidden")
        before, after = own[:-1], own[1:]
        bad = (before != UNKNOWN) & (after != UNKNOWN) & between[before, after]
        if bad.any():
            t = int(np.flatnonzero(bad)[0])
            pair = f"{classes[before[t]]!r} is followed by {classes[after[t]]!r}"
            raise ValueError(f"in sequence {i}, {pair} at element {t + 1}, which is forbidden")
