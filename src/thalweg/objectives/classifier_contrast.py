"""Classifiers whose energy of the input is shaped by a contrast: with other rows, outliers, or moved images."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.energies.densities import Density
from thalweg.energies.labelled import LabelledEnergy
from thalweg.objectives.base import AnyEnergy, Batch, Objective, evaluating
from thalweg.objectives.joint import as_labelled, check_labelled, classification_loss

# Margins that are chosen are at least so far apart: those of an untrained network would leave it as it is.
_LEAST_GAP = 10.0


class QueueContrast(Objective):
    """Cross-entropy plus the contrast of each labelled row with a queue of rows seen before, under its own label.

    The contrast is -log of exp(f(x)[k] / T) over itself plus the sum of exp(f(x_q)[k] / T) over the rows x_q of
    the queue, which stands for the normaliser of p(x|k). Only the scores of earlier rows are kept, first in first
    out; a row enters after it was used, so that it is never contrasted with itself. Rows without a label (-1) have
    no term of their own and enter the queue as all others do.

    Args:
        n_labels: C, the outputs of the network.
        weight: weight of the contrast.
        queue_size: K, rows in the queue. It starts with standard normal scores.
        temperature: T.
        normalise: whether the scores of a row are divided by their Euclidean norm before they are compared, as in
            the published settings. Without it the scores outgrow those in the queue, and classification may fail.

    Source: [Liu 2020b] and its code, whose queue is of 65,536 rows.
    """

    queue: Tensor
    place: Tensor

    def __init__(
        self,
        n_labels: int,
        weight: float = 1.0,
        queue_size: int = 1024,
        temperature: float = 0.1,
        normalise: bool = True,
    ):
        super().__init__()
        if queue_size < 1 or not temperature > 0:
            raise ValueError(f"queue_size and temperature must be positive, got {queue_size} and {temperature}")
        self.weight = weight
        self.temperature = temperature
        self.normalise = normalise
        first = torch.randn(queue_size, n_labels, generator=torch.Generator().manual_seed(0))
        self.register_buffer("queue", self._compared(first))
        # Where the next row goes.
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def check(self, energy: AnyEnergy, batch: Batch) -> None:
        """Refuse rows of which none has a label, labels that do not fit, and an energy of other labels."""
        labelled = check_labelled(self, energy, batch)
        with torch.no_grad(), evaluating(energy):
            found = labelled.energies(batch.x[:1].to(self.queue.device)).shape[1]
        if found != self.queue.shape[1]:
            raise ValueError(f"the queue is of {self.queue.shape[1]} labels, and the energy has {found}")

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        energies = as_labelled(self, energy).energies(batch.x)
        loss, self.metrics = classification_loss(energies, batch.y)
        labels = batch.y.long()
        known = labels >= 0
        scores = self._compared(-energies)
        if bool(known.any()):
            own = scores[known].gather(1, labels[known].unsqueeze(1))
            others = self.queue.to(scores.dtype)[:, labels[known]].t()
            logits = torch.cat([own, others], 1) / self.temperature
            contrast = torch.logsumexp(logits, 1) - logits[:, 0]
            self.metrics["contrast"] = float(contrast.detach().mean())
            share = len(labels) / len(contrast)
            loss = loss.index_add(0, known.nonzero()[:, 0], self.weight * share * contrast)
        if self.training:
            self._enter(scores.detach())
        return loss

    def _compared(self, scores: Tensor) -> Tensor:
        return F.normalize(scores, dim=1) if self.normalise else scores

    def _enter(self, scores: Tensor) -> None:
        """Put scores ``[B, C]`` in the places of the oldest."""
        size = len(self.queue)
        last = scores[-size:]
        places = (self.place + len(scores) - len(last) + torch.arange(len(last), device=last.device)) % size
        self.queue[places] = last.to(self.queue.dtype)
        self.place.add_(len(scores)).remainder_(size)


class EnergyMargin(Objective):
    """Cross-entropy, with the energies of the data kept below a margin and those of outliers above another.

    To it a weight times mean (E(x) - m_in)_+^2 + mean (m_out - E(x_out))_+^2 is added, E the marginal over labels:
    a fine-tuning of a trained classifier, after which E tells data from outliers. Outliers of kinds that were not
    seen need not be told better than before.

    Args:
        outliers: other inputs ``[n, *event]``, of which some are drawn afresh at every step. They are data and no
            part of a checkpoint.
        inside_margin: m_in. None takes the lower quartile of the data's energies, when training begins.
        outside_margin: m_out. None takes the upper quartile of the outliers' energies, or more, so that it is at
            least 10 above m_in. (The published -23 and -5 suit one network.)
        weight: weight of the margins.
        n_outliers: outliers for each step; None takes twice as many as the batch has rows.

    Raises:
        ValueError: if there are no outliers, or the margins given are not in order.

    Source: [Liu 2020, eq. 8].
    """

    margins: Tensor

    def __init__(
        self,
        outliers: Tensor,
        inside_margin: float | None = None,
        outside_margin: float | None = None,
        weight: float = 0.1,
        n_outliers: int | None = None,
    ):
        super().__init__()
        if not len(outliers):
            raise ValueError("there are no outliers: give at least one")
        if inside_margin is not None and outside_margin is not None and inside_margin >= outside_margin:
            raise ValueError(
                f"data have low energies: inside_margin must be below outside_margin, got {inside_margin} and "
                f"{outside_margin}"
            )
        self.outliers = outliers
        self.weight = weight
        self.n_outliers = n_outliers
        given = [float("nan") if m is None else m for m in (inside_margin, outside_margin)]
        # A buffer, since margins that were chosen are part of what a run that resumes goes on with.
        self.register_buffer("margins", torch.tensor(given))

    def check(self, energy: AnyEnergy, batch: Batch) -> None:
        """Refuse what does not fit, the outliers included; and choose the margins that were not given."""
        labelled = check_labelled(self, energy, batch)
        if self.outliers.shape[1:] != batch.x.shape[1:]:
            raise ValueError(
                f"outliers must be inputs like the data, {list(batch.x.shape[1:])} each, got "
                f"{list(self.outliers.shape[1:])}"
            )
        device = next((p.device for p in labelled.parameters()), torch.device("cpu"))
        self._choose(labelled, batch.x[:1000].to(device), self.outliers[:1000].to(batch.x.dtype).to(device))

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        labelled = as_labelled(self, energy)
        n = 2 * len(batch.x) if self.n_outliers is None else self.n_outliers
        outliers = _rows_of(self.outliers, n, batch.x, generator)
        self._choose(labelled, batch.x, outliers)
        energies = labelled.energies(torch.cat([batch.x, outliers]))
        loss, self.metrics = classification_loss(energies[: len(batch.x)], batch.y)
        marginal = -torch.logsumexp(-energies, 1)
        inside, outside = marginal[: len(batch.x)], marginal[len(batch.x) :]
        self.metrics["energy of data"] = float(inside.detach().mean())
        self.metrics["energy gap"] = float((inside.mean() - outside.mean()).detach())
        hinge = F.relu(inside - self.margins[0]).square() + F.relu(self.margins[1] - outside).square().mean()
        return loss + self.weight * hinge

    def _choose(self, labelled: LabelledEnergy, inputs: Tensor, outliers: Tensor) -> None:
        if not bool(self.margins.isnan().any()):
            return
        with torch.no_grad(), evaluating(labelled):
            energy = labelled.marginal()
            low = float(energy(inputs).quantile(0.25)) if self.margins[0].isnan() else float(self.margins[0])
            high = float(self.margins[1])
            if self.margins[1].isnan():
                high = max(float(energy(outliers).quantile(0.75)), low + _LEAST_GAP)
            elif low >= high:
                low = high - _LEAST_GAP
        self.margins.copy_(torch.tensor([low, high]))


class DualAdversarialTraining(Objective):
    """Cross-entropy of inputs that an adversary moved, plus telling data from inputs moved downhill in energy.

    The second term is a logistic regression of data against negatives with log-odds b - E(x), E the marginal over
    labels and b learned. Negatives start at other images or in noise and go down the energy by projected gradient
    steps of a set length, within a ball round their start. No chain has to reach the model and every loss is
    bounded below, so this does not run away where Langevin dynamics does. It is no likelihood: E is then low where
    data are and says less on how dense they are.

    Args:
        starts: where negatives start: other inputs ``[n, *event]``, of which some are drawn for every step, or a
            density.
        radius: of the ball round its start, within which a negative stays; Euclidean.
        n_steps: steps of a negative, each of 2.5 / n_steps of the radius.
        weight: weight of the second term.
        attack_radius: how far the adversary of the classifier may move each coordinate; 0 trains without.
        attack_steps: its steps, each of 2.5 / attack_steps of its radius.
        bounds: (low, high) of the inputs, which all moves keep within; None has no bounds.

    Source: [Yin 2025]; negatives under a norm bound [Yin 2022]; the classifier's adversary [Madry 2018].
    """

    def __init__(
        self,
        starts: Tensor | Density,
        radius: float,
        n_steps: int = 20,
        weight: float = 1.0,
        attack_radius: float = 0.0,
        attack_steps: int = 10,
        bounds: tuple[float, float] | None = None,
    ):
        super().__init__()
        if not radius > 0 or attack_radius < 0 or n_steps < 1 or attack_steps < 1:
            raise ValueError(
                "radius, n_steps and attack_steps must be positive, attack_radius not negative, got "
                f"{radius}, {n_steps}, {attack_steps} and {attack_radius}"
            )
        # Other images are data, and no part of a checkpoint.
        self.starts = starts
        self.radius, self.n_steps = radius, n_steps
        self.attack_radius, self.attack_steps = attack_radius, attack_steps
        self.weight = weight
        self.bounds = bounds
        self.offset = nn.Parameter(torch.zeros(()))

    def check(self, energy: AnyEnergy, batch: Batch) -> None:
        """Refuse rows of which none has a label, labels that do not fit, and starts that are no such inputs."""
        check_labelled(self, energy, batch)
        starts = self.starts if isinstance(self.starts, Tensor) else self.starts.sample(1)
        if not len(starts) or starts.shape[1:] != batch.x.shape[1:]:
            raise ValueError(
                f"negatives must start at inputs like the data, {list(batch.x.shape[1:])} each, got "
                f"{list(starts.shape)}"
            )

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        labelled = as_labelled(self, energy)
        x, labels = batch.x, batch.y.long()
        if isinstance(self.starts, Tensor):
            start = _rows_of(self.starts, len(x), x, generator)
        else:
            start = self.starts.sample(len(x), generator).to(x.dtype)
        with evaluating(energy):
            negatives = descend(
                labelled.marginal(), start, self.radius, self.n_steps, "euclidean", bounds=self.bounds
            )
            attacked = self._attacked(labelled, x, labels, generator) if self.attack_radius else x
        energies = labelled.energies(torch.cat([attacked, x, negatives]))
        loss, self.metrics = classification_loss(energies[: len(x)], labels)
        marginal = -torch.logsumexp(-energies[len(x) :], 1)
        data, moved = marginal[: len(x)], marginal[len(x) :]
        self.metrics["energy of data"] = float(data.detach().mean())
        self.metrics["energy gap"] = float((data.mean() - moved.mean()).detach())
        told_apart = F.softplus(data - self.offset) + F.softplus(self.offset - moved).mean()
        return loss + self.weight * told_apart

    def _attacked(
        self, labelled: LabelledEnergy, x: Tensor, labels: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Inputs moved so as to be taken for another class; those without a label stay."""

        def log_prob(z: Tensor) -> Tensor:
            return -F.cross_entropy(-labelled.energies(z), labels, reduction="none", ignore_index=-1)

        unit = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        begin = x + self.attack_radius * (2 * unit - 1)
        moved = descend(log_prob, x, self.attack_radius, self.attack_steps, "maximum", begin, self.bounds)
        known = (labels >= 0).reshape(-1, *([1] * (x.dim() - 1)))
        return torch.where(known, moved, x)


def descend(
    function: Callable[[Tensor], Tensor],
    centre: Tensor,
    radius: float,
    n_steps: int,
    norm: str,
    begin: Tensor | None = None,
    bounds: tuple[float, float] | None = None,
) -> Tensor:
    """Where projected gradient steps down a function of rows lead, within a ball round each row.

    Each step has the length 2.5 radius / n_steps in the norm of the ball, whatever the size of the gradient.

    Args:
        function: maps ``[B, *event]`` to ``[B]``.
        centre: ``[B, *event]``.
        radius: of the balls.
        n_steps: number of steps.
        norm: "euclidean" or "maximum".
        begin: where to begin, within the balls; None begins at the centres.
        bounds: (low, high) of every coordinate, or None.

    Returns:
        ``[B, *event]``, without a graph.
    """
    length = 2.5 * radius / n_steps
    x = centre.detach() if begin is None else begin.detach()
    for _ in range(n_steps):
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(function(x).sum(), x)
        with torch.no_grad():
            if norm == "maximum":
                offset = (x - length * gradient.sign() - centre).clamp(-radius, radius)
            else:
                offset = x - length * gradient / _norms(gradient).clamp_min(1e-12) - centre
                offset = offset * (radius / _norms(offset).clamp_min(1e-12)).clamp_max(1.0)
            x = centre + offset
            if bounds is not None:
                x = x.clamp(*bounds)
    return x.detach()


def _norms(x: Tensor) -> Tensor:
    """The Euclidean norm of every row, in a shape that broadcasts against them."""
    return x.flatten(1).norm(dim=1).reshape(-1, *([1] * (x.dim() - 1)))


def _rows_of(pool: Tensor, n: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """n rows of the pool, drawn with replacement, as the type and on the device of ``like``."""
    chosen = torch.randint(len(pool), (n,), generator=generator, device=like.device)
    return pool[chosen.to(pool.device)].to(like)
