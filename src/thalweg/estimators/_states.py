"""What estimators of rows share: the columns that they were fitted on, and rows as states of visible units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from thalweg.data.columns import decide, read_as
from thalweg.data.states import StateEncoder
from thalweg.energies.machines.layered import LayeredMachine
from thalweg.energies.machines.units import Binary, Categorical, Gaussian, Mixed, Units
from thalweg.estimators._base import Estimator, check_count, check_names, generator_of

# exp of it is 0, and it is still a number in single precision.
IMPOSSIBLE = -1e4


# Numbers in a state between which persistent chains get several temperatures.
_FEW_STATES, _MANY_STATES = 16, 256


class StateRows(Estimator):
    """An estimator whose rows become states of visible units; it has a parameter ``visible``, their kind.

    Attributes:
        encoder_: how rows become visible states.
    """

    visible: str
    encoder_: StateEncoder

    def _learn_columns(self, X: Any, probabilities: bool = True, grouped: bool = True) -> np.ndarray:
        """Look at the columns: rows that are sound, and ``encoder_``.

        Args:
            probabilities: binary columns may hold numbers between 0 and 1.
            grouped: look for groups of one-hot columns.
        """
        encoder, categorical = StateEncoder(self.visible, probabilities, grouped), _categorical(X)
        X = self._validated(X, reset=True)
        self.encoder_ = encoder.fit(X, self._names(), categorical)
        return X

    def _validated(self, X: Any, reset: bool = False, gaps: bool = False) -> np.ndarray:
        if isinstance(X, pd.DataFrame):
            names = getattr(self, "feature_names_in_", [])
            X = _plain(X, {} if reset else dict(zip(names, self.encoder_.categories, strict=False)))
        if reset:
            numbers = self.visible in ("binary", "gaussian") or (
                self.visible in ("auto", "mixed") and not _holds_texts(X)
            )
        else:
            numbers = "categorical" not in self.encoder_.kinds
        if not numbers:
            if isinstance(X, pd.DataFrame):
                X = X.astype(object)
            elif not hasattr(X, "dtype"):
                # Numbers in a list beside texts would become texts.
                X = np.array(X, dtype=object)
            found = validate_data(self, X, reset=reset, dtype=None, ensure_all_finite=False)
            if not gaps and pd.isna(found).any():
                raise ValueError("the rows contain gaps (NaN): leave them out, or fill them first")
            return found
        _refuse_dates(X)
        finite = "allow-nan" if gaps else True
        return validate_data(self, X, reset=reset, dtype=np.float64, ensure_all_finite=finite)

    def _rows(self, X: Any) -> Tensor:
        """Rows of new data as states ``[rows, width]``."""
        check_is_fitted(self, "energy_")
        return self._states(self._validated(X))

    def _states(self, X: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.encoder_.encode(X, self._names())))

    def _decoded(self, states: Tensor, draws: bool = False) -> np.ndarray:
        return self.encoder_.decode(states.double().numpy(), draws)

    @property
    def _n_free_columns(self) -> int | None:
        """How many columns there are; None where they are bits all alike, as of pixels."""
        return None if self.encoder_.kind == "binary" else len(self.encoder_.kinds)

    def _names(self) -> Sequence[str] | None:
        return getattr(self, "feature_names_in_", None)

    def _log_volume(self) -> float:
        return float(np.log(self.encoder_.scale).sum())

    def _units(self) -> Units:
        encoder = self.encoder_
        n_bits, n_numbers = len(encoder.columns("binary")), len(encoder.columns("gaussian"))
        parts: list[Units] = [Binary(n_bits)] if n_bits else []
        parts += [Categorical(encoder.n_categorical, encoder.n_states)] if encoder.n_categorical else []
        parts += [Gaussian(n_numbers)] if n_numbers else []
        return parts[0] if len(parts) == 1 else Mixed(parts)

    def _suitable_levels(self) -> int:
        """Temperatures of persistent chains.

        Numbers make groups that lie far apart, and so do many bits or categories; of images there would have to be
        too many temperatures.
        """
        if len(self.encoder_.columns("gaussian")):
            return 5
        return 10 if _FEW_STATES < self.encoder_.width <= _MANY_STATES else 1

    def _base_bias(self, units: Units, states: Tensor) -> Tensor:
        """An energy of visible units alone, with the data's means."""
        bias = units.bias_of(states)
        bias[torch.from_numpy(self.encoder_.impossible())] = IMPOSSIBLE
        return bias

    def _filled(
        self,
        machine: LayeredMachine,
        base_bias: Tensor,
        X: Any,
        n_draws: int | None,
        n_chains: int,
        n_steps: int,
        random_state: Any,
    ) -> np.ndarray:
        """Gaps filled by block Gibbs with all known entries held fast."""
        original, generator = self._validated(X, gaps=True), generator_of(random_state)
        x = self._states(original).to(base_bias)
        n = n_chains if n_draws is None else n_draws
        if n_draws is not None:
            check_count("n_draws", n_draws)
        out = np.repeat(original[None], n if n_draws is not None else 1, 0)
        rows = np.flatnonzero(pd.isna(original).any(1))
        for piece in np.array_split(rows, max(1, len(rows) * n // 4096)):
            if not len(piece):
                continue
            mean, last = _clamped(machine, x[piece], base_bias, n, n_steps, generator)
            filled = self._decoded(mean[None]) if n_draws is None else self._decoded(last, draws=True)
            gaps = pd.isna(original[piece])
            out[:, piece] = np.where(gaps, filled, original[piece])
        return out[0] if n_draws is None else out


@torch.no_grad()
def _clamped(
    machine: LayeredMachine, x: Tensor, bias: Tensor, n_chains: int, n_steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Means ``[N, width]`` and last states ``[n_chains, N, width]`` of chains that keep what is known of x.

    Args:
        bias: bias of the visible units where the chains start.
    """
    known, fixed = ~torch.isnan(x), torch.nan_to_num(x)
    # Of a category of which it is known only what it is not.
    barred = torch.zeros_like(x)
    for units, place in machine.visible.parts:
        if isinstance(units, Categorical):
            barred[:, place] = IMPOSSIBLE * (known & (fixed == 0))[:, place]
    biases = [bias + barred, *machine.biases[1:]]
    layers: list[Tensor | None] = [
        unit.sample(b.expand(n_chains, len(x), -1), generator)
        for unit, b in zip(machine.units, biases, strict=True)
    ]
    layers[0] = torch.where(known, fixed, layers[0])  # type: ignore[arg-type]
    total, counted = torch.zeros_like(x), max(1, n_steps // 2)
    for step in range(n_steps):
        layers = machine.resample(layers, 1, generator)
        for number in machine.parity(0):
            field = machine.field(layers, number) + (barred if number == 0 else 0.0)
            if number == 0 and step >= n_steps - counted:
                total += machine.visible.mean(field).mean(0) / counted
            layers[number] = machine.units[number].sample(field, generator)
        layers[0] = torch.where(known, fixed, layers[0])  # type: ignore[arg-type]
    assert layers[0] is not None
    return total, layers[0]


def _plain(X: pd.DataFrame, categories: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """Columns of every type as numbers or texts; categorical ones as they are.

    Args:
        categories: of each column, as a machine that is fitted knows them.
    """
    check_names(X)
    plain = {}
    for name in X.columns:
        column, known = X[name], categories.get(name, ())
        if isinstance(column.dtype, pd.CategoricalDtype):
            plain[name] = column
        elif any(isinstance(v, str) for v in known):
            plain[name] = read_as(column, "text", known=[v for v in known if isinstance(v, str)]).astype(object)
        else:
            found = decide(column)
            if found.kind in ("date", "span"):
                _refuse_dates(X)
                raise ValueError(f"column {name!r} holds dates: turn them into numbers, or leave them out")
            texts = found.kind == "text"
            plain[name] = found.values.astype(object if texts else float)
    return pd.DataFrame(plain, index=X.index)


def _refuse_dates(X: Any) -> None:
    """As numbers they would be nanoseconds."""
    kinds = X.dtypes.items() if isinstance(X, pd.DataFrame) else [("", getattr(X, "dtype", None))]
    for name, kind in kinds:
        if getattr(kind, "kind", "") in ("M", "m"):
            where = f"column {name!r} holds" if isinstance(X, pd.DataFrame) else "the rows hold"
            raise ValueError(f"{where} dates or spans of time: turn them into numbers, or leave them out")


def _categorical(X: Any) -> list[int]:
    """Columns of a DataFrame that say so."""
    if not isinstance(X, pd.DataFrame):
        return []
    return [k for k, kind in enumerate(X.dtypes) if isinstance(kind, pd.CategoricalDtype)]


def _holds_texts(X: Any) -> bool:
    if isinstance(X, pd.DataFrame):
        return not all(pd.api.types.is_numeric_dtype(t) for t in X.dtypes)
    kind = getattr(X, "dtype", None)
    if kind is None:
        kind = np.asarray(X).dtype
    return kind.kind in "US" or (kind.kind == "O" and any(isinstance(v, str) for v in np.asarray(X).ravel()))
