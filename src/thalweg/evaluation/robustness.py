"""Adversarial robustness: attacks with gradients, without them and by transfer, and what is left of the accuracy.

A network here is anything that gives logits ``[B, C]`` for inputs ``[B, *event]``: a module, a LabelledEnergy,
whose logits are minus its energies, or any other function. Modules run in evaluation mode and are left as they
were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.energies.base import Energy, standard_normal
from thalweg.energies.labelled import LabelledEnergy
from thalweg.evaluation.calibration import binomial_error
from thalweg.evaluation.detection import as_network
from thalweg.objectives.base import evaluating, frozen
from thalweg.sampling.chain import Kernel, State, check_space, run_chain

Norm = Literal["inf", "2"]
Bounds = tuple[float, float] | None

# Share of the coordinates that a proposal of the square attack changes at first, and when it halves, in shares of
# the queries [Andriushchenko 2020, sec. 5].
SQUARE_SHARE = 0.8
SQUARE_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
# How many patches the square attack's first L2 perturbation of an image has along each side.
START_PATCHES = 5


def projected_gradient(
    network: Any,
    x: Tensor,
    labels: Tensor,
    radius: float,
    norm: Norm = "inf",
    *,
    n_steps: int = 40,
    step: float | None = None,
    n_restarts: int = 1,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Inputs near x that the network gets wrong, by steps up a gradient from random places [Madry 2018, sec. 2.1].

    The first half of the steps goes up the cross-entropy, without the factor by which it vanishes where the
    network is sure; the second up the largest other logit minus that of the label [Carlini 2017, sec. V], which
    has a single class in view. Of all places visited, x among them, the one where this is largest is returned.

    Args:
        network: see the module.
        x: ``[n, *event]`` inside the bounds.
        labels: ``[n]``.
        radius: of the ball, not negative.
        norm: "inf", the largest change of a coordinate, or "2", the Euclidean length of all changes.
        n_steps: gradient steps in each restart.
        step: length of a step in the norm; by default 2.5 radius / n_steps.
        n_restarts: how many random places to begin at.
        bounds: the lowest and the highest value of a coordinate, or None.
        generator: for the random places.

    Returns:
        ``[n, *event]``, inside ball and bounds; x itself where nothing was worse.

    Raises:
        ValueError: for NaN, inputs outside the bounds, labels out of range, shapes or settings that do not fit.
    """
    _check_inputs(x, labels, radius, norm, bounds)
    if n_steps < 1 or n_restarts < 1:
        raise ValueError(f"n_steps and n_restarts must be at least 1, got {n_steps} and {n_restarts}")
    step = 2.5 * radius / n_steps if step is None else step
    if not 0 <= step < math.inf:
        raise ValueError(f"step must be finite and not negative, got {step}")
    x = x.detach()
    with _attacked(network) as logits:
        best, highest = x, _margin(_first_logits(logits, x, labels), labels)
        for _ in range(n_restarts):
            place = _into_bounds(x + _random_in_ball(x, radius, norm, generator), bounds)
            # The last place is looked at too, though no step follows.
            for i in range(n_steps + 1):
                margin, grad = _ascent(logits, place, labels, by_all_classes=i < n_steps // 2)
                worse = margin > highest
                highest = torch.where(worse, margin, highest)
                best = torch.where(_wide(worse, x), place, best)
                moved = place + step * _direction(grad, norm)
                place = _into_bounds(x + _into_ball(moved - x, radius, norm), bounds)
    return best


def square_attack(
    network: Any,
    x: Tensor,
    labels: Tensor,
    radius: float,
    norm: Norm = "inf",
    *,
    n_queries: int = 1000,
    bounds: Bounds = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Inputs near x that the network gets wrong, by random search: gradients that mislead cannot stop it.

    In images a proposal changes a square in all channels, in other inputs a random set of coordinates. It is kept
    if the logit of the label does not rise against the largest other one. A row is done when it is wrong. In L2
    the changes are those of the paper but for the shape of the bumps.

    Args:
        network: see the module; it needs no gradient.
        x: ``[n, *event]`` inside the bounds; with three dimensions an event is an image [channels, height, width].
        labels: ``[n]``.
        radius: of the ball, not negative.
        norm: "inf" or "2", as in :func:`projected_gradient`.
        n_queries: evaluations of the network for each row.
        bounds: the lowest and the highest value of a coordinate, or None.
        generator: for the proposals.

    Returns:
        ``[n, *event]``, inside ball and bounds; x itself where nothing was worse.

    Raises:
        ValueError: as :func:`projected_gradient`.

    Source: [Andriushchenko 2020, alg. 1-3].
    """
    _check_inputs(x, labels, radius, norm, bounds)
    if n_queries < 1:
        raise ValueError(f"n_queries must be at least 1, got {n_queries}")
    x = x.detach()
    with torch.no_grad(), _attacked(network) as logits:
        best, highest = x.clone(), _margin(_first_logits(logits, x, labels), labels)
        place = x.clone()
        for query in range(n_queries):
            left = (highest <= 0).nonzero().squeeze(1)
            if len(left) == 0:
                break
            centre = x[left]
            if query == 0:
                delta = _first_perturbation(centre, radius, norm, generator)
            else:
                delta = _changed(place[left] - centre, radius, norm, _share(query / n_queries), generator)
            proposal = _into_bounds(centre + _into_ball(delta, radius, norm), bounds)
            margin = _margin(logits(proposal), labels[left])
            # A proposal that changes nothing is where the search goes on, for else it ends on a plateau.
            no_better, worse = margin >= highest[left], margin > highest[left]
            place[left[no_better]] = proposal[no_better]
            best[left[worse]], highest[left[worse]] = proposal[worse], margin[worse]
    return best


@dataclass(frozen=True)
class RobustAccuracy:
    """What :func:`robust_accuracy` found: shares of rows classified right, each judged by a call of its own.

    The raw accuracy under one attack may rise with the radius, which is the attack failing and not the network
    getting better; ``worst`` never does, since what is within a ball is within every larger one.

    Attributes:
        radii: increasing ``[R]``.
        n_rows: number of inputs.
        clean: accuracy without an attack.
        gradient: under :func:`projected_gradient`, for each radius ``[R]``.
        gradient_free: under :func:`square_attack` ``[R]``.
        transfer: under inputs made against the surrogate ``[R]``, or None without one.
        worst: share of the rows that stay right under all of them at this radius and all smaller ones ``[R]``.
    """

    radii: np.ndarray
    n_rows: int
    clean: float
    gradient: np.ndarray
    gradient_free: np.ndarray
    transfer: np.ndarray | None
    worst: np.ndarray

    def standard_error(self, accuracy: Any) -> Any:
        """Standard error of one of the accuracies, or of an array of them."""
        return binomial_error(accuracy, self.n_rows)

    def doubts(self) -> list[str]:
        """What speaks against these figures, in sentences; none if nothing does.

        Gradients are masked where an attack that does without them finds more [Athalye 2018, sec. 3.1], and an
        attack fails where it finds less at a larger radius; both beyond two standard errors.
        """
        attacks = {"gradient": self.gradient, "gradient-free": self.gradient_free}
        if self.transfer is not None:
            attacks["transfer"] = self.transfer
        found = []
        for name, accuracy in attacks.items():
            least = np.minimum.accumulate(accuracy)
            rise = accuracy - least
            if (rise > 2 * self.standard_error(least)).any():
                i = int(rise.argmax())
                found.append(
                    f"Under the {name} attack the accuracy rises to {accuracy[i]:.3f} at radius {self.radii[i]:g} "
                    f"from {least[i]:.3f} at a smaller one: the attack fails there."
                )
            gap = self.gradient - accuracy
            if (gap > 2 * self.standard_error(self.gradient)).any():
                i = int(gap.argmax())
                found.append(
                    f"The {name} attack leaves an accuracy of {accuracy[i]:.3f} at radius {self.radii[i]:g}, the "
                    f"gradient attack {self.gradient[i]:.3f}: the gradients are masked. A better attack may "
                    "leave far less than any of these figures."
                )
        return found


def robust_accuracy(
    network: Any,
    x: Tensor,
    labels: Tensor,
    radii: Sequence[float],
    norm: Norm = "inf",
    *,
    surrogate: Any = None,
    n_steps: int = 40,
    n_restarts: int = 1,
    n_queries: int = 1000,
    bounds: Bounds = (0.0, 1.0),
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> RobustAccuracy:
    """Accuracy of a network under three attacks at several radii: upper bounds of what it has under any.

    Args:
        network: see the module.
        x: ``[n, *event]`` inside the bounds.
        labels: ``[n]``.
        radii: positive and increasing.
        norm: "inf" or "2", as in :func:`projected_gradient`.
        surrogate: another network, for a transfer attack: its gradients make the inputs that this one is asked.
        n_steps: of :func:`projected_gradient`.
        n_restarts: of :func:`projected_gradient`.
        n_queries: of :func:`square_attack`.
        bounds: the lowest and the highest value of a coordinate, or None.
        batch_size: how many rows are attacked at a time.
        generator: for the attacks.

    Raises:
        ValueError: as :func:`projected_gradient`, or for radii that are not positive and increasing.
    """
    steps = np.asarray(radii, dtype=float)
    if steps.ndim != 1 or len(steps) == 0 or not (np.diff(steps, prepend=0.0) > 0).all():
        raise ValueError(f"radii must be positive and increasing, got {list(radii)}")
    _check_inputs(x, labels, steps[-1], norm, bounds)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    found = [
        _judge(
            network,
            surrogate,
            rows,
            targets,
            radii,
            _Settings(norm, bounds, generator),
            n_steps=n_steps,
            n_restarts=n_restarts,
            n_queries=n_queries,
        )
        for rows, targets in zip(x.split(batch_size), labels.split(batch_size), strict=True)
    ]
    # Whether each row is right: clean [n], and under each attack at each radius [attacks, R, n].
    clean = torch.cat([f[0] for f in found]).numpy()
    attacked = torch.cat([f[1] for f in found], -1).numpy()
    worst = np.logical_and.accumulate(attacked.all(0) & clean, axis=0)
    accuracy = attacked.mean(-1)
    return RobustAccuracy(
        radii=steps,
        n_rows=len(clean),
        clean=float(clean.mean()),
        gradient=accuracy[0],
        gradient_free=accuracy[1],
        transfer=accuracy[2] if len(accuracy) > 2 else None,
        worst=worst.mean(-1),
    )


class Refined(nn.Module):
    """A labelled energy as a classifier that lets each input walk down its energy before it looks at it.

    The logits are the mean over n_samples noisy copies of the input of those after n_steps of the kernel on
    E(x) = -logsumexp of the logits. Gradients flow through all of it, steps included, so that an attack goes
    through the refinement and not around it; the mean makes its gradient one of the expectation over the noise
    [Athalye 2018, sec. 4]. Two calls differ by their noise.

    Args:
        energy: of inputs and labels.
        kernel: one step; its walk may have any temperature.
        n_steps: of each copy.
        n_samples: copies of each input.
        noise_scale: standard deviation of what is added to the copies.
        generator: for the noise and the chain.

    Raises:
        ValueError: if the kernel does not suit the inputs, or numbers are negative or there is no copy.

    Source: the evaluation in the code of [Grathwohl 2020], which leaves the gradient of the steps out.
    """

    def __init__(
        self,
        energy: LabelledEnergy,
        kernel: Kernel,
        n_steps: int,
        n_samples: int = 5,
        *,
        noise_scale: float = 0.03,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if not isinstance(energy, LabelledEnergy):
            raise ValueError(f"Refined needs a LabelledEnergy, got {type(energy).__name__}")
        if n_steps < 0 or n_samples < 1 or not 0 <= noise_scale < math.inf:
            raise ValueError(
                f"n_steps and noise_scale must not be negative and n_samples at least 1, got {n_steps}, "
                f"{noise_scale} and {n_samples}"
            )
        check_space(kernel, energy.marginal())
        self.energy, self.kernel, self.generator = energy, kernel, generator
        self.n_steps, self.n_samples, self.noise_scale = n_steps, n_samples, noise_scale

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, C]`` of inputs ``[n, *event]``."""
        copies = x.repeat(self.n_samples, *[1] * (x.dim() - 1))
        copies = copies + self.noise_scale * standard_normal(copies.shape, copies, self.generator)
        logits = -self.energy.energies(self._walk(copies))
        return logits.reshape(self.n_samples, len(x), -1).mean(0)

    def _walk(self, position: Tensor) -> Tensor:
        marginal = self.energy.marginal()
        if not (torch.is_grad_enabled() and position.requires_grad):
            return run_chain(self.kernel, marginal, position, self.n_steps, self.generator, check=False).position
        # run_chain cuts its start off from what it depends on, which is what an attack needs.
        state, energy = State(position, position.new_ones(len(position))), _Differentiable(marginal)
        for _ in range(self.n_steps):
            state = self.kernel.step(energy, state, self.generator)
        return state.position


class _Differentiable(Energy):
    """The same energy, whose gradient in a kernel is a function of the position that can be differentiated."""

    def __init__(self, energy: Energy):
        super().__init__()
        self.energy = energy
        self.support, self.event_ndim = energy.support, energy.event_ndim

    def forward(self, x: Tensor) -> Tensor:
        return self.energy(x)

    def gradient(self, x: Tensor) -> Tensor:
        return -self.energy.score(x)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.energy(x), -self.energy.score(x)


class _Settings(NamedTuple):
    """What all attacks of one evaluation share."""

    norm: Norm
    bounds: Bounds
    generator: torch.Generator | None


def _judge(
    network: Any,
    surrogate: Any,
    x: Tensor,
    labels: Tensor,
    radii: Sequence[float],
    settings: _Settings,
    *,
    n_steps: int,
    n_restarts: int,
    n_queries: int,
) -> tuple[Tensor, Tensor]:
    """Whether each row is right: clean ``[n]``, and under each attack at each radius ``[attacks, R, n]``."""
    norm, bounds, generator = settings

    def by_gradient(attacked: Any, radius: float) -> Tensor:
        return projected_gradient(
            attacked,
            x,
            labels,
            radius,
            norm,
            n_steps=n_steps,
            n_restarts=n_restarts,
            bounds=bounds,
            generator=generator,
        )

    def by_search(radius: float) -> Tensor:
        return square_attack(
            network, x, labels, radius, norm, n_queries=n_queries, bounds=bounds, generator=generator
        )

    attacks: list[Callable[[float], Tensor]] = [lambda radius: by_gradient(network, radius), by_search]
    if surrogate is not None:
        attacks.append(lambda radius: by_gradient(surrogate, radius))
    right = [torch.stack([_right(network, attack(radius), labels) for radius in radii]) for attack in attacks]
    return _right(network, x, labels), torch.stack(right)


def _right(network: Any, x: Tensor, labels: Tensor) -> Tensor:
    """Whether each row is classified right, on the CPU; of two highest logits the first one counts."""
    with torch.no_grad(), _attacked(network) as logits:
        return (logits(x).argmax(1) == labels).cpu()


@contextmanager
def _attacked(network: Any) -> Iterator[Callable[[Tensor], Tensor]]:
    """The logits of a network in evaluation mode, of whose weights no gradient is computed."""
    if isinstance(network, nn.Module):
        with evaluating(network), frozen(network):
            yield as_network(network)
    else:
        yield network


def _first_logits(logits: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor) -> Tensor:
    """Logits of the inputs as they are, refused in words if they are none."""
    with torch.no_grad():
        found: Any = logits(x)
    if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(x) or found.shape[1] < 2:
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"the network must give logits [{len(x)}, C] with C of at least 2 classes, got {shape}")
    if not torch.isfinite(found).all():
        raise ValueError("the network gives NaN or infinity at the inputs")
    if int(labels.max()) >= found.shape[1]:
        raise ValueError(f"labels must be of 0 .. {found.shape[1] - 1}, got {int(labels.max())}")
    return found


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The largest other logit minus that of the label ``[n]``: positive where the network is wrong."""
    own, others = _parted(logits, labels)
    return others.amax(1) - own


def _parted(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The logit of the label ``[n]``, and all logits with minus infinity in its place."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    return own, logits.scatter(1, labels[:, None], -torch.inf)


def _ascent(
    logits: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor, by_all_classes: bool
) -> tuple[Tensor, Tensor]:
    """The margin ``[n]``, and the gradient with respect to x of what a step goes up; 0 where there is none.

    logsumexp of the other logits minus that of the label has the gradient of the cross-entropy over 1 - p(label).
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        own, others = _parted(logits(x), labels)
        margin = others.amax(1) - own
        loss = torch.logsumexp(others, 1) - own if by_all_classes else margin
        grad = torch.autograd.grad(loss.sum(), x, allow_unused=True)[0] if loss.requires_grad else None
    return margin.detach(), torch.zeros_like(x) if grad is None else grad.detach().nan_to_num(0.0)


def _direction(grad: Tensor, norm: Norm) -> Tensor:
    """The step of length 1 in this norm along which a linear function grows most; none where the gradient is 0."""
    return grad.sign() if norm == "inf" else _unit(grad)


def _unit(delta: Tensor) -> Tensor:
    """Rows ``[n, *event]`` of Euclidean length 1; a row of zeros stays one."""
    largest = _wide(delta.flatten(1).abs().amax(1), delta)
    # Squares of very small or large numbers leave the range of single precision.
    scaled = delta / torch.where(largest > 0, largest, 1.0)
    length = _lengths(scaled)
    return scaled / torch.where(length > 0, length, 1.0)


def _lengths(delta: Tensor) -> Tensor:
    """Euclidean length of each row, of a shape that broadcasts against them."""
    return _wide(delta.flatten(1).norm(dim=1), delta)


def _into_ball(delta: Tensor, radius: float, norm: Norm) -> Tensor:
    if norm == "inf":
        return delta.clamp(-radius, radius)
    length = _lengths(delta)
    return torch.where(length > radius, delta * (radius / length.clamp(min=torch.finfo(delta.dtype).tiny)), delta)


def _into_bounds(x: Tensor, bounds: Bounds) -> Tensor:
    return x if bounds is None else x.clamp(*bounds)


def _random_in_ball(x: Tensor, radius: float, norm: Norm, generator: torch.Generator | None) -> Tensor:
    """Uniform in the ball."""
    if norm == "inf":
        return radius * (2 * _uniform(x.shape, x, generator) - 1)
    shrink = _uniform((len(x),), x, generator) ** (1 / x[0].numel())
    return radius * _wide(shrink, x) * _unit(standard_normal(x.shape, x, generator))


def _first_perturbation(x: Tensor, radius: float, norm: Norm, generator: torch.Generator | None) -> Tensor:
    """Where the square attack begins: in L-inf vertical stripes on an image, in L2 patches, else random signs."""
    if x.dim() != 4:
        signs = _signs(x.shape, x, generator)
    elif norm == "inf":
        signs = _signs((len(x), x.shape[1], 1, x.shape[3]), x, generator).expand_as(x)
    else:
        patches = _signs((len(x), x.shape[1], START_PATCHES, START_PATCHES), x, generator)
        signs = nn.functional.interpolate(patches, size=x.shape[2:], mode="nearest")
    return radius * (signs if norm == "inf" else _unit(signs))


def _changed(delta: Tensor, radius: float, norm: Norm, share: float, generator: torch.Generator | None) -> Tensor:
    """A proposal of the square attack: the perturbation with a random part of it changed."""
    window = _window(delta, share, generator)
    signs = _window_signs(delta, generator)
    if norm == "inf":
        return torch.where(window, radius * signs, delta)
    # The length that a second window gives up, and what was not used, goes into the first.
    taken = window | _window(delta, share, generator)
    kept = torch.where(taken, 0.0, delta)
    free = (radius**2 - _lengths(kept).square()).clamp(min=0.0).sqrt()
    old = torch.where(window, delta, 0.0)
    return kept + free * _unit(torch.where(window, _unit(signs.expand_as(delta) * window), 0.0) + _unit(old))


def _window(delta: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """True at about this share of each row's coordinates: a square in an image, broadcast over channels."""
    n, *event = delta.shape
    if len(event) != 3:
        order = _uniform((n, delta[0].numel()), delta, generator).argsort(1).argsort(1)
        return (order < max(1, round(share * order.shape[1]))).reshape(delta.shape)
    sides = []
    width = max(1, round(math.sqrt(share * event[1] * event[2])))
    for size in event[1:]:
        length = min(width, size)
        start = (_uniform((n, 1), delta, generator) * (size - length + 1)).floor()
        place = torch.arange(size, device=delta.device)
        sides.append((place >= start) & (place < start + length))
    return sides[0][:, None, :, None] & sides[1][:, None, None, :]


def _window_signs(delta: Tensor, generator: torch.Generator | None) -> Tensor:
    """A random sign for each channel of an image, or for each coordinate of anything else."""
    return _signs((*delta.shape[:2], 1, 1) if delta.dim() == 4 else delta.shape, delta, generator)


def _share(progress: float) -> float:
    return SQUARE_SHARE / 2 ** sum(progress > halving for halving in SQUARE_HALVINGS)


def _uniform(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(tuple(shape), dtype=like.dtype, device=like.device, generator=generator)


def _signs(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.where(_uniform(shape, like, generator) < 0.5, -1.0, 1.0).to(like.dtype)


def _wide(per_row: Tensor, x: Tensor) -> Tensor:
    """Values ``[n]`` in a shape that broadcasts against ``[n, *event]``."""
    return per_row.reshape(-1, *[1] * (x.dim() - 1))


def _check_inputs(x: Tensor, labels: Tensor, radius: float, norm: str, bounds: Bounds) -> None:
    if not isinstance(x, Tensor) or not isinstance(labels, Tensor):
        raise ValueError("x and labels must be tensors")
    if x.dim() < 2 or len(x) == 0 or x[0].numel() == 0 or not x.is_floating_point():
        raise ValueError(f"x must be floating-point inputs [n, *event], got shape {list(x.shape)} of {x.dtype}")
    if not torch.isfinite(x).all():
        raise ValueError("x contains NaN or infinity")
    if labels.shape != x.shape[:1] or labels.dtype != torch.long:
        raise ValueError(
            f"labels must be integers (int64), one for each of {len(x)} rows, got shape {list(labels.shape)} of "
            f"{labels.dtype}"
        )
    if int(labels.min()) < 0:
        raise ValueError(f"labels must not be negative, got {int(labels.min())}")
    if norm not in ("inf", "2"):
        raise ValueError(f"norm must be 'inf' or '2', got {norm!r}")
    if not 0 <= radius < math.inf:
        raise ValueError(f"a radius must be finite and not negative, got {radius}")
    if bounds is not None:
        low, high = bounds
        if not low < high:
            raise ValueError(f"bounds must be a lower and a higher number, got {bounds}")
        if x.min() < low or x.max() > high:
            raise ValueError(
                f"x must be inside the bounds {low:g} to {high:g}, and reaches from {float(x.min()):g} to "
                f"{float(x.max()):g}: give the bounds of these inputs, or None"
            )
