"""``EnergyDensity``: p(x) of the rows of a table, with scikit-learn's manners."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from thalweg.data.target import find_resolution, location_and_scale
from thalweg.energies.autoregressive import AutoregressiveEnergy, NumericEncoding
from thalweg.energies.base import Energy, check_energy
from thalweg.energies.conditioning import ClampedEnergy
from thalweg.energies.densities import Density, GaussianMixtureEnergy, fit_gaussian_mixture
from thalweg.energies.mixture import TiltedMixtureEnsemble
from thalweg.energies.perceptron import PerceptronEnergy
from thalweg.estimators.regressor import EnergyRegressor, suitable_threads, using_threads
from thalweg.inference.importance import log_normaliser
from thalweg.objectives.base import Batch
from thalweg.objectives.catalogue import METHODS
from thalweg.sampling.adaptation import adapt_step_size
from thalweg.sampling.chain import run_chain
from thalweg.sampling.hmc import HMC
from thalweg.training.loop import History, Plan, Trainer
from thalweg.training.progress import BarProgress
from thalweg.training.saving import load_model, save_model


class EnergyDensity(DensityMixin, BaseEstimator):
    """An energy-based model of p(x), x a row of numbers.

    By default the joint density is a chain of conditionals, p(x_1) p(x_2|x_1) ..., each an ensemble of tilted
    mixtures that is normalised exactly and trained by maximum likelihood: log Z is 0, draws are independent.
    With any other objective E(x) is a perceptron on top of a Gaussian with the data's moments, trained by that
    objective, and log Z is estimated by importance sampling, with its error.

    Args:
        objective: "auto" (see above), or a key of :data:`~thalweg.objectives.catalogue.METHODS`: "nce", "cnce",
            "fce", "ml-is", "sm", "ssm", "ssm-vr", "dsm", "ed", "lsd", "cd", "pcd", "icd".
        energy: an energy of one's own over standardised rows, for the other objectives. It is copied.
        n_members: networks in each ensemble.
        hidden: widths of the hidden layers.
        learning_rate: None is 2e-3 for "auto" and 3e-3 for the others.
        batch_size: rows in a step; "auto" grows with the rows.
        max_epochs, max_steps, patience: see :class:`~thalweg.training.loop.Plan`.
        validation_fraction: rows held out to stop early (by "auto" every member holds out a fold instead).
        resolution: spacing of the grid that columns are rounded to; "auto" finds it for each, 0 is none.
        device: for Lightning Fabric.
        n_threads: of PyTorch while fitting; None chooses by the size of the work.
        verbose: show progress.
        random_state: seed, or a ``RandomState``.

    Attributes:
        energy_: the energy of rows in their own units; ``energy_(x) + log_normaliser_`` is -log p(x).
        log_normaliser_: log Z, in nats; 0 where it is exact.
        log_normaliser_error_: its standard error; 0 where it is exact.
        resolution_: spacing found for each column ``[D]``, 0 where it is not rounded.
        history_: one :class:`~thalweg.training.loop.History` for each network trained.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X = load_iris().data
        >>> model = EnergyDensity(max_epochs=3, random_state=0).fit(X)
        >>> model.score_samples(X[:2]).shape, model.sample(5, random_state=0).shape
        ((2,), (5, 4))
    """

    def __init__(
        self,
        objective: str = "auto",
        *,
        energy: Energy | None = None,
        n_members: int = 8,
        hidden: Sequence[int] = (128, 128),
        learning_rate: float | None = None,
        batch_size: int | str = "auto",
        max_epochs: int = 200,
        max_steps: int | None = 3000,
        patience: int | None = 20,
        validation_fraction: float = 0.1,
        resolution: float | str = "auto",
        device: str = "cpu",
        n_threads: int | None = None,
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.objective = objective
        self.energy = energy
        self.n_members = n_members
        self.hidden = hidden
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.max_steps = max_steps
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.resolution = resolution
        self.device = device
        self.n_threads = n_threads
        self.verbose = verbose
        self.random_state = random_state

    # -- fitting -------------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: None = None,
        *,
        run_dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
        checkpoint_seconds: float = 5.0,
    ) -> EnergyDensity:
        """Fit the density of the rows of X.

        Args:
            X: numbers without gaps ``[rows, columns]``.
            y: ignored.
            run_dir: keep checkpoints here.
            resume: go on from the checkpoint in run_dir; the result is that of a run never interrupted.
            checkpoint_seconds: least time between two checkpoints.

        Raises:
            ValueError: for settings or data that can't be used, in words.
            DivergenceError: if training can't be kept from diverging.
        """
        if self.objective != "auto" and self.objective not in METHODS:
            known = ", ".join(["auto", *METHODS])
            raise ValueError(f"objective must be one of {known}; got {self.objective!r}")
        if self.energy is not None and self.objective == "auto":
            raise ValueError("an energy of your own needs an objective: 'nce' or 'cnce', for instance")
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        self._check_columns(X)
        rng = check_random_state(self.random_state)
        seed = int(rng.randint(2**31 - 1))
        self.resolution_ = np.array(
            [find_resolution(c) if self.resolution == "auto" else float(self.resolution) for c in X.T]
        )
        folder = None if run_dir is None else Path(run_dir)
        how = {"resume": resume, "checkpoint_seconds": checkpoint_seconds}
        if self.objective == "auto":
            self._fit_chain(X, seed, folder, **how)
        else:
            self._fit_network(X, seed, folder, **how)
        return self

    def _check_columns(self, X: np.ndarray) -> None:
        constant = np.flatnonzero(np.ptp(X, axis=0) == 0)
        if len(constant):
            k = int(constant[0])
            name = getattr(self, "feature_names_in_", range(X.shape[1]))[k]
            raise ValueError(
                f"column {name!r} is constant ({X[0, k]:g} in all rows): it has no density; leave it out"
            )

    def _fit_chain(self, X: np.ndarray, seed: int, folder: Path | None, **how: Any) -> None:
        """One conditional after the other, each from the columns before it."""
        self.conditionals_, self.history_ = [], []
        for d in range(X.shape[1]):
            model = EnergyRegressor(
                n_members=self.n_members,
                hidden=self.hidden,
                learning_rate=2e-3 if self.learning_rate is None else self.learning_rate,
                batch_size=self.batch_size,
                max_epochs=self.max_epochs,
                max_steps=self.max_steps,
                patience=self.patience,
                resolution=float(self.resolution_[d]),
                device=self.device,
                n_threads=self.n_threads,
                verbose=self.verbose,
                random_state=seed % (2**31 - 1) + d,
            )
            given = X[:, :d] if d else np.zeros((len(X), 1))
            model.fit(given, X[:, d], run_dir=None if folder is None else folder / f"column-{d}", **how)
            self.conditionals_.append(model)
            self.history_.append(model.history_)
        self.energy_: Energy = _chain(self.conditionals_)
        self.log_normaliser_, self.log_normaliser_error_ = 0.0, 0.0

    def _fit_network(self, X: np.ndarray, seed: int, folder: Path | None, **how: Any) -> None:
        location, scale = location_and_scale(X)
        rng = np.random.RandomState(seed)
        spread = self.resolution_ * (rng.uniform(size=X.shape) - 0.5)
        z = torch.as_tensor((X + spread - location) / scale, dtype=torch.float32)
        order = rng.permutation(len(z))
        n_held_out = max(1, round(self.validation_fraction * len(z)))
        held_out, training = z[order[:n_held_out]], z[order[n_held_out:]]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self._network(z, location, scale)
            objective = METHODS[self.objective].build(training)
        check_energy(network, z[:2])
        proposal = _proposal(training, seed)
        self.proposal_ = proposal
        size = self.batch_size
        plan = Plan(
            max_epochs=self.max_epochs,
            max_steps=self.max_steps,
            batch_size=min(512, max(32, len(z) // 10)) if size == "auto" else int(size),
            learning_rate=3e-3 if self.learning_rate is None else self.learning_rate,
            patience=self.patience,
            clip_norm=10.0,
            ema_decay=0.99,
            checkpoint_seconds=how["checkpoint_seconds"],
            seed=seed,
        )
        validate = _HeldOut(held_out, proposal, seed)
        with using_threads(self.n_threads or suitable_threads(plan.batch_size, network)):
            trainer = Trainer(
                plan,
                Fabric(accelerator=self.device, devices=1),
                folder,
                BarProgress(offset=float(np.log(scale).sum())) if self.verbose else None,
            )
            history = trainer.fit(network, objective, Batch(None, training), validate, resume=how["resume"])
        self.history_ = [history]
        self.network_ = network.eval()
        self.energy_ = Rescaled(network, location, scale)
        z_estimate = log_normaliser(network, proposal, 100_000, torch.Generator().manual_seed(seed))
        self.log_normaliser_ = z_estimate.estimate
        self.log_normaliser_error_ = z_estimate.standard_error
        self.effective_sample_size_ = z_estimate.effective_sample_size

    def _network(self, z: Tensor, location: np.ndarray, scale: np.ndarray) -> Energy:
        if self.energy is not None:
            return copy.deepcopy(self.energy)
        return PerceptronEnergy(z.shape[1], self.hidden) + GaussianMixtureEnergy.from_moments(z, 1.3)

    # -- use -----------------------------------------------------------------------------------------

    def _rows(self, X: Any) -> Tensor:
        check_is_fitted(self, "energy_")
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return torch.as_tensor(X, dtype=torch.float32)

    def score_samples(self, X: Any) -> np.ndarray:
        """log p of every row ``[rows]``, normalised, in nats; all off alike by ``log_normaliser_error_``.

        Where a column is rounded it is the density of the values spread over their rounding cells.
        """
        x = self._rows(X)
        with torch.no_grad():
            energy = torch.cat([self.energy_(piece) for piece in x.split(8192)])
        return -energy.double().numpy() - self.log_normaliser_

    def score(self, X: Any, y: None = None) -> float:
        """Total log-likelihood of the rows, as scikit-learn's ``KernelDensity`` has it."""
        return float(self.score_samples(X).sum())

    def sample(self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None) -> np.ndarray:
        """Draws ``[n_samples, columns]``: independent by "auto", else by importance resampling and HMC."""
        check_is_fitted(self, "energy_")
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, got {n_samples}")
        generator = self._generator(random_state)
        if isinstance(self.energy_, Density):
            return self.energy_.sample(n_samples, generator).double().numpy()
        assert isinstance(self.energy_, Rescaled)
        candidates = self.proposal_.sample(max(20_000, 10 * n_samples), generator)
        start = _resampled(self.network_, self.proposal_, candidates, n_samples, generator)
        adapted = adapt_step_size(HMC(0.1), self.network_, start, 50, generator=generator)
        end = run_chain(adapted.kernel, self.network_, adapted.state.position, 20, generator).position
        return self.energy_.back(end).double().numpy()

    def impute(
        self,
        X: Any,
        n_imputations: int = 1,
        random_state: int | np.random.RandomState | None = None,
    ) -> np.ndarray:
        """Fill gaps (NaN) with draws from p(missing | known) of each row.

        Args:
            X: ``[rows, columns]``; what is known is returned bit for bit.
            n_imputations: completions of each row.

        Returns:
            ``[rows, columns]`` for one imputation, else ``[n_imputations, rows, columns]``. Their mean over
            the imputations is the conditional mean, their spread its uncertainty.
        """
        check_is_fitted(self, "energy_")
        X = validate_data(self, X, reset=False, dtype=np.float64, ensure_all_finite="allow-nan")
        generator = self._generator(random_state)
        out = np.repeat(X[None], n_imputations, 0)
        rows = np.flatnonzero(np.isnan(X).any(1))
        for piece in np.array_split(rows, max(1, len(rows) // 256)):
            if len(piece):
                known = torch.as_tensor(X[piece], dtype=torch.float32)
                mask = ~torch.isnan(known)
                if isinstance(self.energy_, AutoregressiveEnergy):
                    filled = _complete_by_particles(self.energy_, known, mask, n_imputations, generator)
                else:
                    filled = self._complete_by_chains(known, mask, n_imputations, generator)
                out[:, piece] = np.where(mask.numpy(), X[piece], filled.double().numpy())
        return out[0] if n_imputations == 1 else out

    def _complete_by_chains(self, known: Tensor, mask: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """HMC on the missing coordinates, from the best of many guesses of the proposal: ``[n, rows, D]``."""
        assert isinstance(self.energy_, Rescaled)
        z = self.energy_.forth(torch.nan_to_num(known))
        guesses = self.proposal_.sample((200, len(z)), generator)
        clamped = ClampedEnergy(self.network_, z.expand(len(guesses), -1, -1), mask)
        with torch.no_grad():
            # The proposal's own density of the guess in full stands in for that of the missing part.
            completed = clamped.complete(guesses)
            log_weights = -self.network_(completed) + self.proposal_(guesses)
        chosen = torch.multinomial(torch.softmax(log_weights.T, 1), n, replacement=True, generator=generator)
        start = completed[chosen.T, torch.arange(len(z))]
        clamped = ClampedEnergy(self.network_, z.expand(n, -1, -1), mask)
        adapted = adapt_step_size(HMC(0.1), clamped, start, 100, generator=generator)
        end = run_chain(adapted.kernel, clamped, adapted.state.position, 50, generator).position
        return self.energy_.back(clamped.complete(end))

    def denoise(
        self,
        X: Any,
        noise_std: float | Sequence[float],
        n_chains: int = 16,
        random_state: int | np.random.RandomState | None = None,
    ) -> np.ndarray:
        """Posterior mean of rows that were seen with Gaussian noise: of x ~ exp(-E(x) - |x - seen|^2 / 2 std^2).

        Args:
            X: ``[rows, columns]``.
            noise_std: of the noise, one number or one for each column, in the columns' units.
            n_chains: HMC chains for each row, whose second halves are averaged.
        """
        seen = self._rows(X)
        std = torch.as_tensor(noise_std, dtype=torch.float32).expand(seen.shape[1])
        if not (std > 0).all():
            raise ValueError(f"noise_std must be positive, got {noise_std}")
        generator = self._generator(random_state)
        posterior = _Posterior(self.energy_, seen, std)
        start = seen.expand(n_chains, -1, -1)
        kernel = HMC(0.3 * std)
        adapted = adapt_step_size(kernel, posterior, start, 60, generator=generator)
        state, total = adapted.state, torch.zeros_like(seen)
        n_kept = 20
        for _ in range(n_kept):
            state = adapted.kernel.step(posterior, state, generator)
            total += state.position.mean(0)
        return (total / n_kept).double().numpy()

    def _generator(self, random_state: Any) -> torch.Generator:
        return torch.Generator().manual_seed(int(check_random_state(random_state).randint(2**31 - 1)))

    # -- saving --------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str], extra: dict[str, Any] | None = None) -> None:
        """Write the model as a folder of ``config.json`` and ``model.safetensors``.

        Args:
            extra: anything for JSON, kept beside the model and given back by :meth:`load`.

        Raises:
            ValueError: if the model has an energy of the user's own: save that with torch instead.
        """
        check_is_fitted(self, "energy_")
        if self.energy is not None:
            raise ValueError(
                "a model with an energy of your own can't be rebuilt from a file: save its state_dict"
            )
        params = {k: v for k, v in self.get_params().items() if k not in ("energy", "random_state")}
        params["hidden"] = list(self.hidden)
        config: dict[str, Any] = {
            "params": params,
            "n_features_in": self.n_features_in_,
            "feature_names_in": [str(c) for c in getattr(self, "feature_names_in_", [])],
            "resolution": self.resolution_.tolist(),
            "log_normaliser": self.log_normaliser_,
            "log_normaliser_error": self.log_normaliser_error_,
            "history": [
                {"epochs": h.epochs, "events": h.events, "seconds": h.seconds, "stopped": h.stopped}
                for h in self.history_
            ],
            "extra": extra or {},
        }
        tensors = {f"energy.{k}": v for k, v in self.energy_.state_dict().items()}
        if isinstance(self.energy_, AutoregressiveEnergy):
            config["conditionals"] = [
                {"encoder": m.encoder_.state(), "architecture": m.architecture_}  # type: ignore[union-attr]
                for m in self.conditionals_
            ]
        else:
            config["n_components"] = len(self.proposal_.means)
            tensors |= {f"proposal.{k}": v for k, v in self.proposal_.state_dict().items()}
        save_model(Path(folder), "EnergyDensity", config, tensors)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> EnergyDensity:
        """Read a saved model. Nothing in the folder is run; ``extra_`` holds what was kept beside it.

        Raises:
            ValueError: if the folder is missing, damaged, foreign, or of a newer version.
        """
        config, tensors = load_model(Path(folder), "EnergyDensity")
        try:
            model = cls(**config["params"])
            model.n_features_in_ = config["n_features_in"]
            if config["feature_names_in"]:
                model.feature_names_in_ = np.array(config["feature_names_in"], dtype=object)
            model.resolution_ = np.array(config["resolution"])
            model.log_normaliser_ = float(config["log_normaliser"])
            model.log_normaliser_error_ = float(config["log_normaliser_error"])
            model.history_ = [History(**h) for h in config["history"]]
            model.extra_ = config["extra"]
            d = model.n_features_in_
            parts = {k.removeprefix("energy."): v for k, v in tensors.items() if k.startswith("energy.")}
            if "conditionals" in config:
                model.energy_ = _chain_from(config["conditionals"], model)
            else:
                factors = torch.eye(d).expand(config["n_components"], -1, -1)
                model.proposal_ = GaussianMixtureEnergy(torch.zeros(config["n_components"], d), factors)
                model.proposal_ = _restored(
                    model.proposal_,
                    {k.removeprefix("proposal."): v for k, v in tensors.items() if k.startswith("proposal.")},
                )
                base = {k.removeprefix("inner.energies.1."): v for k, v in parts.items()}
                gaussian = _restored(GaussianMixtureEnergy(torch.zeros(1, d), torch.eye(d)[None]), base)
                model.network_ = PerceptronEnergy(d, model.hidden) + gaussian
                model.energy_ = Rescaled(model.network_, parts["location"], parts["scale"])
            model.energy_.load_state_dict(parts)
            model.energy_.eval()
        except (KeyError, TypeError, RuntimeError, ValueError, AttributeError) as error:
            raise ValueError(f"{folder} is damaged: its config and its tensors do not fit ({error})") from error
        return model


class Rescaled(Energy):
    """The energy of rows in their own units, from one over (x - location) / scale."""

    location: Tensor
    scale: Tensor

    def __init__(self, inner: Energy, location: Any, scale: Any):
        super().__init__()
        self.inner = inner
        self.register_buffer("location", torch.as_tensor(location, dtype=torch.float32))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float32))

    def forth(self, x: Tensor) -> Tensor:
        return (x - self.location) / self.scale

    def back(self, z: Tensor) -> Tensor:
        return self.location + self.scale * z

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.forth(x)) + self.scale.log().sum()


class _HeldOut:
    """Held-out negative log-likelihood, log Z by the same importance samples every time."""

    def __init__(self, rows: Tensor, proposal: Density, seed: int, n_samples: int = 4096):
        self.rows = rows[:4096]
        self.samples = proposal.sample(n_samples, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            self.log_proposal = proposal.log_prob(self.samples)

    def __call__(self, energy: nn.Module) -> Tensor:
        values = energy(torch.cat([self.rows, self.samples]))
        log_weights = -values[len(self.rows) :] - self.log_proposal
        log_z = torch.logsumexp(log_weights, 0) - math.log(len(self.samples))
        return values[: len(self.rows)].mean() + log_z


class _Posterior(Energy):
    """E(x) + |x - seen|^2 / (2 std^2)."""

    def __init__(self, energy: Energy, seen: Tensor, std: Tensor):
        super().__init__()
        object.__setattr__(self, "energy", energy)
        self.seen, self.std = seen, std

    energy: Energy

    def forward(self, x: Tensor) -> Tensor:
        return self.energy(x) + 0.5 * ((x - self.seen) / self.std).square().sum(-1)


def _proposal(data: Tensor, seed: int) -> GaussianMixtureEnergy:
    """Where importance samples come from: a mixture fitted to the data, and one wide Gaussian as a safety net."""
    n_components = max(1, min(10, len(data) // (10 * data.shape[1])))
    mixture = fit_gaussian_mixture(data, n_components, seed)
    wide = GaussianMixtureEnergy.from_moments(data, 1.5)
    weights = torch.cat([0.8 * mixture.log_weights.exp(), torch.tensor([0.2])])
    return GaussianMixtureEnergy(
        torch.cat([mixture.means, wide.means]), torch.cat([1.1 * mixture.scales, wide.scales]), weights
    )


def _resampled(
    energy: Energy, proposal: Density, candidates: Tensor, n: int, generator: torch.Generator
) -> Tensor:
    with torch.no_grad():
        log_weights = -energy(candidates) - proposal.log_prob(candidates)
    return candidates[torch.multinomial(torch.softmax(log_weights, 0), n, replacement=True, generator=generator)]


def _chain(models: Sequence[EnergyRegressor]) -> AutoregressiveEnergy:
    energy = AutoregressiveEnergy(
        [m.energy_ for m in models],  # type: ignore[misc]
        [NumericEncoding(m.encoder_.columns) for m in models],  # type: ignore[union-attr]
        torch.tensor([float(m.location_[0]) for m in models]),
        torch.tensor([float(m.scale_[0]) for m in models]),
    )
    return energy.eval()


def _chain_from(conditionals: Sequence[dict[str, Any]], model: EnergyDensity) -> AutoregressiveEnergy:
    """The chain's shape, to be filled with tensors."""
    defaults = EnergyRegressor()
    members = []
    for entry in conditionals:
        a = entry["architecture"]
        members.append(
            TiltedMixtureEnsemble(
                a["n_inputs"], model.n_members, model.hidden, defaults.n_components, defaults.n_tilts,
                a["dropout"], a["log_std_floor"], a["atoms"], a["atom_std"],
            )
        )  # fmt: skip
    encodings = [NumericEncoding(entry["encoder"]["columns"]) for entry in conditionals]
    return AutoregressiveEnergy(members, encodings, torch.zeros(len(members)), torch.ones(len(members)))


def _restored(energy: GaussianMixtureEnergy, tensors: dict[str, Tensor]) -> GaussianMixtureEnergy:
    return GaussianMixtureEnergy(tensors["means"], tensors["scales"], tensors["log_weights"].exp())


def _complete_by_particles(
    energy: AutoregressiveEnergy,
    known: Tensor,
    mask: Tensor,
    n: int,
    generator: torch.Generator,
    n_particles: int = 256,
) -> Tensor:
    """Sequential Monte Carlo along the chain: draw what is missing, weigh by what is known ``[n, rows, D]``.

    Source: the bootstrap filter [Gordon 1993].
    """
    rows, d = known.shape
    particles = torch.nan_to_num(known)[:, None].repeat(1, n_particles, 1)
    log_weights = torch.zeros(rows, n_particles)
    undecided = torch.zeros(rows, dtype=torch.bool)  # rows whose particles differ already
    with torch.no_grad():
        for k in range(d):
            missing = ~mask[:, k]
            if missing.any():
                flat = particles[missing].flatten(0, 1)
                drawn = energy.conditional_draw(flat, k, generator)
                particles[missing, :, k] = drawn.reshape(-1, n_particles)
                undecided |= missing
            weighed = mask[:, k] & undecided
            if weighed.any():
                flat = particles[weighed].flatten(0, 1)
                parts = [energy.conditional_log_prob(piece, k) for piece in flat.split(8192)]
                log_weights[weighed] += torch.cat(parts).reshape(-1, n_particles)
                weights = torch.softmax(log_weights, 1)
                poor = 1 / weights.square().sum(1) < n_particles / 2
                if poor.any():
                    chosen = torch.multinomial(weights[poor], n_particles, replacement=True, generator=generator)
                    index = chosen.unsqueeze(-1).expand(-1, -1, d)
                    particles[poor] = particles[poor].gather(1, index)
                    log_weights[poor] = 0
        weights = torch.softmax(log_weights, 1)
        chosen = torch.multinomial(weights, n, replacement=True, generator=generator)
    return particles.gather(1, chosen.unsqueeze(-1).expand(-1, -1, d)).movedim(1, 0)
