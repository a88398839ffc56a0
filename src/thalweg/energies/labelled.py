"""The one labelled energy, for tables and images: any network with an output for each label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from thalweg.energies.base import (
    ConditionalEnergy,
    Conditioned,
    Energy,
    Features,
    check_temperature,
    soft_minimum,
)
from thalweg.energies.composition import WeightedSum
from thalweg.energies.densities.basic import Density


class LabelledEnergy(ConditionalEnergy):
    """E(x, k) = -f(x)[k] for labels k = 0 .. C - 1, f any network with C outputs.

    As a conditional energy it is one of the label given the input: ``given(x)`` is the classifier p(k|x), the
    softmax of f, and a batch is ``Batch(x=inputs, y=labels)``. It gives three energies of the input as well:
    of one label (:meth:`given_label`), of all together (:meth:`marginal`) and of the lowest (:meth:`lowest`); and
    :meth:`of_inputs` is the conditional energy of inputs given labels, for ``Batch(x=labels, y=inputs)``.

    Args:
        network: maps inputs ``[N, *event]`` to ``[N, C]``.
        input_ndim: how many trailing dimensions make one input: 1 a vector, 3 an image.
        input_support: where the inputs live.

    Source: [LeCun 2006]; [Grathwohl 2020, sec. 3].
    """

    event_ndim = 0
    support = constraints.nonnegative_integer

    def __init__(
        self,
        network: nn.Module | None = None,
        *,
        input_ndim: int = 1,
        input_support: constraints.Constraint = constraints.real_vector,
    ):
        super().__init__()
        self.network = network
        self.input_ndim, self.input_support = input_ndim, input_support

    def energies(self, x: Tensor) -> Tensor:
        """E of every label ``[*batch, C]`` for inputs ``[*batch, *event]``."""
        assert self.network is not None
        event = x.shape[x.dim() - self.input_ndim :]
        values = -self.network(x.reshape(-1, *event))
        return values.reshape(*x.shape[: x.dim() - self.input_ndim], -1)

    def features(self, x: Tensor) -> Tensor:
        """E of every label ``[B, C]``."""
        return self.energies(x)

    def head(self, features: Features, y: Tensor) -> Tensor:
        assert isinstance(features, Tensor)
        return _of_labels(features.reshape(len(features), *([1] * (y.dim() - 1)), -1), y)

    def given(self, x: Tensor) -> LabelDistribution:
        """The classifier p(k|x) ``[B]``: a density over labels, and an energy of them."""
        return LabelDistribution(self, self.energies(x))

    def given_label(self, label: int) -> Energy:
        """The energy of inputs ``[*batch, *event]`` under one label."""
        device = next((p.device for p in self.parameters()), None)
        return self.of_inputs().given(torch.tensor([label], device=device))

    def marginal(self, temperature: float = 1.0) -> MarginalOverLabels:
        """E(x) = -T log sum_k exp(-E(x, k) / T)."""
        return MarginalOverLabels(self, temperature)

    def lowest(self) -> LowestOverLabels:
        """E(x) = min_k E(x, k)."""
        return LowestOverLabels(self)

    def of_inputs(self) -> InputsGivenLabels:
        """The conditional energy of inputs given labels ``[B]``."""
        return InputsGivenLabels(self)

    def fixed_inputs(self, labels: Tensor) -> Energy | None:
        """The energy of inputs given labels, laid out for the many gradients of a chain, or None."""
        return None

    def fixed_marginal(self, temperature: float) -> Energy | None:
        """The marginal energy of inputs, laid out for the many gradients of a chain, or None."""
        return None


class LabelDistribution(Density, Conditioned):
    """p(k|x) of the rows of a batch: the softmax of minus the energies.

    Args:
        parent: the labelled energy.
        energies: of every label ``[B, C]``.
    """

    def __init__(self, parent: LabelledEnergy, energies: Tensor):
        Conditioned.__init__(self, parent, energies)
        self.log_probs = torch.log_softmax(-energies, -1)

    log_probs: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(k|x) ``[B, *candidates]`` of labels of that shape."""
        return _of_labels(self.log_probs.reshape(len(self.log_probs), *([1] * (x.dim() - 1)), -1), x)

    def forward(self, x: Tensor) -> Tensor:
        return -self.log_prob(x)

    def fixed(self) -> Energy:
        return self

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Labels ``[n, B]``, n for each row."""
        return torch.multinomial(self.log_probs.exp(), n, replacement=True, generator=generator).T


class InputsGivenLabels(ConditionalEnergy):
    """E(k, x) = -f(x)[k] as a conditional energy of inputs x given labels ``[B]``.

    Args:
        labelled: whose energy it is.
    """

    def __init__(self, labelled: LabelledEnergy):
        super().__init__()
        self.labelled = labelled
        self.event_ndim, self.support = labelled.input_ndim, labelled.input_support

    def head(self, features: Features, y: Tensor) -> Tensor:
        assert isinstance(features, Tensor)
        energies = self.labelled.energies(y)
        labels = features.reshape(-1, *([1] * (energies.dim() - 2))) if energies.dim() > 1 else features[0]
        return _of_labels(energies, labels.expand(energies.shape[:-1]))

    def value_and_gradient(self, features: Features, y: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(features, Tensor)
        fixed = self.labelled.fixed_inputs(features)
        return super().value_and_gradient(features, y) if fixed is None else fixed.value_and_gradient(y)

    def fixed(self, features: Features) -> Energy:
        assert isinstance(features, Tensor)
        return self.labelled.fixed_inputs(features) or super().fixed(features)


class LabelledEnsemble(LabelledEnergy):
    """E(x, k) = mean over members of E_i(x, k): a product of experts, each to the power 1/n.

    Args:
        members: labelled energies of the same labels; of snapshots of one network's weights along its training,
            say. Everything costs as many times as much as there are members.

    Source: [Du 2019], "historical ensemble".
    """

    def __init__(self, members: Sequence[LabelledEnergy]):
        super().__init__(input_ndim=members[0].input_ndim, input_support=members[0].input_support)
        self.members: Any = nn.ModuleList(members)

    def energies(self, x: Tensor) -> Tensor:
        return torch.stack([member.energies(x) for member in self.members]).mean(0)

    def fixed_inputs(self, labels: Tensor) -> Energy:
        n = len(self.members)
        parts = [member.of_inputs().given(labels).fixed() for member in self.members]
        return WeightedSum(parts, [1 / n] * n)


class FactoredEnergy(LabelledEnergy):
    """E(x, k) = -log p(k|x) - log p(x): a classifier, and a density or an energy of the inputs beside it.

    Its marginal over labels is the energy of the inputs, normalised where that is; p(k|x) is the classifier's.

    Args:
        classifier: a labelled energy.
        inputs: the energy of x.
        views: what of x each of the two is given, where that is not all of it: columns of a vector.
        temperature: by which the classifier's energies are divided.
    """

    def __init__(
        self,
        classifier: LabelledEnergy,
        inputs: Energy,
        views: tuple[slice, slice] = (slice(None), slice(None)),
        temperature: float = 1.0,
    ):
        super().__init__(input_ndim=classifier.input_ndim, input_support=classifier.input_support)
        self.classifier, self.inputs, self.views, self.temperature = classifier, inputs, views, temperature

    def energies(self, x: Tensor) -> Tensor:
        whole = self.views == (slice(None), slice(None))
        shown, judged = (x, x) if whole else (x[..., view] for view in self.views)
        log_probs = torch.log_softmax(-self.classifier.energies(shown) / self.temperature, -1)
        return self.inputs(judged).unsqueeze(-1) - log_probs


class LowestOverLabels(Energy):
    """E(x) = min over labels of E(x, k): how far an input is from anything known.

    Args:
        labelled: whose energies they are.
    """

    def __init__(self, labelled: LabelledEnergy):
        super().__init__()
        self.labelled = labelled
        self.event_ndim, self.support = labelled.input_ndim, labelled.input_support

    def forward(self, x: Tensor) -> Tensor:
        return self.labelled.energies(x).amin(-1)


class MarginalOverLabels(Energy):
    """E(x) = -T log sum over labels of exp(-E(x, k) / T), so that exp(-E / T) is their sum.

    Args:
        labelled: whose energies they are.
        temperature: T, positive. As it falls to 0 the lowest energy over labels is left.

    Raises:
        ValueError: if the temperature is not positive.
    """

    def __init__(self, labelled: LabelledEnergy, temperature: float = 1.0):
        super().__init__()
        check_temperature(temperature)
        self.labelled, self.temperature = labelled, temperature
        self.event_ndim, self.support = labelled.input_ndim, labelled.input_support

    def forward(self, x: Tensor) -> Tensor:
        return soft_minimum(self.labelled.energies(x), self.temperature)

    def fixed(self) -> Energy:
        return self.labelled.fixed_marginal(self.temperature) or self


def _of_labels(values: Tensor, labels: Tensor) -> Tensor:
    """The entries of ``[*batch, C]`` that labels ``[*batch]`` name; both broadcast."""
    shape = torch.broadcast_shapes(values.shape[:-1], labels.shape)
    index = labels.long().expand(shape).unsqueeze(-1)
    return values.expand(*shape, values.shape[-1]).gather(-1, index).squeeze(-1)
