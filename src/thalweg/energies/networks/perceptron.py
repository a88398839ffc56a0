"""Multilayer perceptrons as energies of vectors and small images, with the derivatives in x written out.

Autograd pays for each of a chain's steps with a graph that is thrown away, and for score matching with
graphs of graphs. The derivatives of a perceptron are a few products, so they are written here as such:
sampling needs no graph at all, and score matching only an ordinary one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.energies.base import Energy
from thalweg.energies.products import multiplier, product, sum_of_outer

_ATEN = torch.ops.aten


class Activation(NamedTuple):
    """A function, itself with its first three derivatives, and how a gradient passes it.

    Attributes:
        value: the function.
        derivatives: (input, 2 or 3) -> the function and at least so many of its derivatives.
        backward: (gradient with respect to what comes out, what went in) -> gradient with respect to the latter.
        smooth: whether it has a second derivative to speak of.
    """

    value: Callable[[Tensor], Tensor]
    derivatives: Callable[[Tensor, int], list[Tensor]]
    backward: Callable[[Tensor, Tensor], Tensor]
    smooth: bool = True


# Named functions, so that an energy can be pickled.
def _silu(h: Tensor, order: int) -> list[Tensor]:
    s = torch.sigmoid(h)
    rest = 1 - s
    value = h * s
    first = torch.addcmul(s, value, rest)
    # 2 first - value, and so on: each derivative is a product of those before it.
    second = torch.lerp(value, first, 2.0).mul_(rest)
    if order < 3:
        return [value, first, second]
    return [value, first, second, torch.lerp(first, second, 2.0).mul_(rest).addcmul_(s, second, value=-1)]


def _softplus(h: Tensor, order: int) -> list[Tensor]:
    s = torch.sigmoid(h)
    spread = s * (1 - s)
    return [F.softplus(h), s, spread, spread * (1 - 2 * s)]


def _tanh(h: Tensor, order: int) -> list[Tensor]:
    t = torch.tanh(h)
    first = 1 - t * t
    return [t, first, -2 * t * first, first * (6 * t * t - 2)]


def _relu(h: Tensor, order: int) -> list[Tensor]:
    zero = torch.zeros_like(h)
    return [F.relu(h), (h > 0).to(h.dtype), zero, zero]


def _silu_backward(grad: Tensor, h: Tensor) -> Tensor:
    return _ATEN.silu_backward(grad, h)


def _softplus_backward(grad: Tensor, h: Tensor) -> Tensor:
    return grad * torch.sigmoid(h)


def _tanh_backward(grad: Tensor, h: Tensor) -> Tensor:
    return _ATEN.tanh_backward(grad, torch.tanh(h))


def _relu_backward(grad: Tensor, h: Tensor) -> Tensor:
    return grad * (h > 0)


ACTIVATIONS = {
    "silu": Activation(F.silu, _silu, _silu_backward),
    "softplus": Activation(F.softplus, _softplus, _softplus_backward),
    "relu": Activation(F.relu, _relu, _relu_backward, smooth=False),
    "tanh": Activation(torch.tanh, _tanh, _tanh_backward),
}


class PerceptronEnergy(Energy):
    """E(x) = w'a_L + c with a_l = activation(W_l a_{l-1} + b_l), a_0 = x: a network of vectors.

    Args:
        n_inputs: D, the dimension of x.
        hidden: widths of the layers.
        activation: "silu", "softplus" or "tanh", which are smooth, as score matching needs; or "relu".
    """

    def __init__(self, n_inputs: int, hidden: Sequence[int] = (128, 128), activation: str = "silu"):
        super().__init__()
        if not hidden:
            raise ValueError("a perceptron needs at least one hidden layer, got none")
        self.activation = activation_of(activation)
        self.layers: Any = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise([n_inputs, *hidden]))
        self.out = nn.Linear(hidden[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad or torch.is_autocast_enabled(x.device.type):
            for layer in self.layers:
                x = self.activation.value(layer(x))
            return self.out(x).squeeze(-1)
        return _Value.apply(self.activation, x, *self._weights())

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fixed().value_and_gradient(x)

    def fixed(self) -> FixedPerceptron:
        layers = ((layer.weight, layer.bias) for layer in self.layers)
        return FixedPerceptron(self.activation, layers, self.out.weight, self.out.bias)

    def score(self, x: Tensor) -> Tensor:
        return -self._derivatives(x, None)[0]

    def score_and_curvature(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """One pass forward, of the values and their derivatives along v, and one back.

        v'Hv is a sum over the layers: their activation's second derivative, times the square of what goes into
        it along v, times the derivative of the energy with respect to what comes out of it.

        Raises:
            ValueError: if the activation is "relu".
        """
        if not self.activation.smooth:
            raise ValueError(
                "relu has no second derivative to speak of: train by score matching with silu instead"
            )
        gradient, curvature = self._derivatives(x, v)
        return -gradient, -curvature

    def _derivatives(self, x: Tensor, v: Tensor | None) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return _Derivatives.apply(self.activation, x, v, *self._weights()[:-1])

    def _weights(self) -> list[Tensor]:
        """Weight and bias of every layer, the last one's too."""
        return [w for layer in [*self.layers, self.out] for w in (layer.weight, layer.bias)]


class FixedPerceptron(Energy):
    """A perceptron with its weights as they were, laid out for the many gradients of a chain; without a graph.

    Args:
        activation: activation function of the layers.
        layers: (weight, bias) of each.
        out_weight: ``[1, H]``, or ``[B, H]`` where every row of x has an output of its own.
        out_bias: ``[1]`` or ``[B]``.
        event_ndim: of x, which is flattened.
    """

    def __init__(
        self,
        activation: Activation,
        layers: Iterable[tuple[Tensor, Tensor]],
        out_weight: Tensor,
        out_bias: Tensor,
        event_ndim: int = 1,
    ):
        super().__init__()
        self.activate, _, self.backward, _ = activation
        self.event_ndim = event_ndim
        self.layers = [(weight.detach().t(), bias.detach()) for weight, bias in layers]
        self.out_weight, self.out_bias = out_weight.detach(), out_bias.detach()
        self.n_inputs = len(self.layers[0][0])
        self.n_rows = -1

    def forward(self, x: Tensor) -> Tensor:
        return self._value(self._inputs(x)).reshape(x.shape[: x.dim() - self.event_ndim])

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self._inputs(x)
        value = self._value(inputs).reshape(x.shape[: x.dim() - self.event_ndim])
        return value, self._backward(inputs).reshape(x.shape)

    def gradient(self, x: Tensor) -> Tensor:
        grad = self._backward(self._inputs(x))
        return grad if x.dim() == 2 else grad.reshape(x.shape)

    def _prepare(self, n_rows: int) -> None:
        """Products and output weights for so many rows: they stay the same along a chain."""
        self.n_rows = n_rows
        self.up, *self.ups = (multiplier(n_rows, matrix, bias) for matrix, bias in self.layers)
        self.downs = [multiplier(n_rows, matrix.t()) for matrix, _ in reversed(self.layers)]
        self.outputs = self.out_weight.repeat_interleave(n_rows // len(self.out_weight), 0)

    def _inputs(self, x: Tensor) -> list[Tensor]:
        """What goes into each layer's activation, ``[N, H_l]``."""
        x = x if x.dim() == 2 else x.reshape(-1, self.n_inputs)
        if x.requires_grad:
            x = x.detach()
        if len(x) != self.n_rows:
            self._prepare(len(x))
        activate = self.activate
        h = self.up(x)
        inputs = [h]
        for up in self.ups:
            h = up(activate(h))
            inputs.append(h)
        return inputs

    def _value(self, inputs: list[Tensor]) -> Tensor:
        values = self.activate(inputs[-1])
        if len(self.out_weight) == 1:
            return torch.addmv(self.out_bias, values, self.out_weight[0])
        bias = self.out_bias.repeat_interleave(len(values) // len(self.out_weight))
        return (values * self.outputs).sum(-1) + bias

    def _backward(self, inputs: list[Tensor]) -> Tensor:
        grad, backward = self.outputs, self.backward
        for down in self.downs:
            grad = down(backward(grad, inputs.pop()))
        return grad


class _Value(torch.autograd.Function):
    """The energies of rows x that need no gradient: (activation, x, W_1, b_1, ..., w, c) -> ``[*batch]``."""

    @staticmethod
    def forward(ctx: Any, activation: Activation, x: Tensor, *weights: Tensor) -> Tensor:
        *layers, (out, constant) = zip(weights[::2], weights[1::2], strict=True)
        rows = x.reshape(-1, x.shape[-1])
        inputs, values = [], [rows]
        for weight, bias in layers:
            inputs.append(product(values[-1], weight.t(), bias))
            values.append(activation.value(inputs[-1]))
        ctx.activation, ctx.inputs, ctx.values = activation, inputs, values[1:]
        ctx.save_for_backward(rows, out, *(weight for weight, _ in layers))
        return torch.addmv(constant, values[-1], out[0]).reshape(x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _only_once()
        rows, out, *matrices = ctx.saved_tensors
        inputs, values = ctx.inputs, [rows, *ctx.values]
        grad = grad.reshape(-1)
        grads: list[Tensor] = [grad.sum().reshape(1), (grad @ values[-1]).unsqueeze(0)]
        back = grad.unsqueeze(1) * out
        for k in reversed(range(len(matrices))):
            back = ctx.activation.backward(back, inputs[k])
            grads += [back.sum(0), sum_of_outer(back, values[k])]
            if k:
                back = product(back, matrices[k])
        return None, None, *reversed(grads)


class _Derivatives(torch.autograd.Function):
    """Gradient and curvatures: (activation, x, directions, W_1, b_1, ..., w) -> ``[*batch, D]``, ``[*batch, P]``.

    Differentiable once, with respect to the weights and x. Names: s, c, d are an activation's first, second and
    third derivative; t what goes into it along the directions; alpha the energy's derivative with respect to
    what comes out of it, beta what goes in. A gradient with respect to any of these has "_bar".
    """

    @staticmethod
    def forward(
        ctx: Any, activation: Activation, x: Tensor, v: Tensor | None, *weights: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        layers = list(zip(weights[:-1:2], weights[1::2], strict=True))
        batch, n = x.shape[:-1], x.shape[-1]
        a = x.reshape(-1, n)
        u: Tensor | None = None
        if v is not None:
            # Directions that all rows share stay shared in the first layer.
            p = v.shape[-2]
            u = v.reshape(1, p, n) if v.dim() == 2 else v.expand(*batch, p, n).reshape(-1, p, n)
        steps: list[_Pass] = []
        for weight, bias in layers:
            jets = activation.derivatives(product(a, weight.t(), bias), 2 if v is None else 3)
            t = None if u is None else product(u, weight.t())
            steps.append(_Pass(a, u, t, jets))
            a = jets[0]
            if t is not None and len(steps) < len(layers):
                u = jets[1].unsqueeze(1) * t
        alpha = weights[-1].expand(len(a), -1)
        alphas, betas, curvature = [], [], None
        for (weight, _), (_, _, t, jets) in zip(reversed(layers), reversed(steps), strict=True):
            alphas.append(alpha)
            if t is not None:
                part = ((alpha * jets[2]).unsqueeze(1) * t.square()).sum(-1)
                curvature = part if curvature is None else curvature + part
            betas.append(alpha * jets[1])
            alpha = product(betas[-1], weight)
        ctx.steps, ctx.alphas, ctx.betas, ctx.shape = steps, alphas[::-1], betas[::-1], x.shape
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*(weight for weight, _ in layers))
        return alpha.reshape(x.shape), None if curvature is None else curvature.reshape(*batch, -1)

    @staticmethod
    def backward(ctx: Any, grad_bar: Tensor | None, curvature_bar: Tensor | None) -> tuple[Tensor | None, ...]:
        _only_once()
        steps, alphas, matrices = ctx.steps, ctx.alphas, ctx.saved_tensors
        n_rows, bend_bar = len(alphas[-1]), None
        if curvature_bar is not None:
            bend_bar = curvature_bar.reshape(n_rows, -1, 1)
        alpha_bar = matrices[0].new_zeros(n_rows, matrices[0].shape[1])
        if grad_bar is not None:
            alpha_bar = grad_bar.reshape(n_rows, -1)
        # The way back of the gradient, backwards: from the first layer to the last.
        weight_bars, s_bars, c_bars, t_bars = [], [], [], []
        for weight, (_, _, t, (_, s, c, *_)), alpha, beta in zip(matrices, steps, alphas, ctx.betas, strict=True):
            weight_bars.append(sum_of_outer(beta, alpha_bar))
            beta_bar = product(alpha_bar, weight.t())
            s_bars.append(beta_bar * alpha)
            alpha_bar = beta_bar * s
            if bend_bar is not None:
                pull = (bend_bar * t.square()).sum(1)
                c_bars.append(pull * alpha)
                alpha_bar = alpha_bar.addcmul_(pull, c)
                t_bars.append(2 * t * bend_bar * (alpha * c).unsqueeze(1))
        out_bar = alpha_bar.sum(0, keepdim=True)
        # The way forward of values and directions, backwards: from the last layer to the first.
        bias_bars: list[Tensor] = []
        a_bar: Tensor | None = None
        u_bar: Tensor | None = None
        for k in reversed(range(len(steps))):
            a, u, t, (_, s, c, *rest) = steps[k]
            weight, s_bar = matrices[k], s_bars[k]
            if bend_bar is not None:
                t_bar = t_bars[k]
                if u_bar is not None:
                    s_bar = s_bar + (u_bar * t).sum(1)
                    t_bar = t_bar.addcmul_(s.unsqueeze(1), u_bar)
                if len(u) < n_rows:
                    t_bar = t_bar.sum(0, keepdim=True)
                weight_bars[k] += sum_of_outer(t_bar.flatten(0, 1), u.flatten(0, 1))
                u_bar = product(t_bar, weight) if k else None
            h_bar = s_bar.mul_(c)
            if bend_bar is not None:
                h_bar.addcmul_(c_bars[k], rest[0])
            if a_bar is not None:
                h_bar.addcmul_(a_bar, s)
            weight_bars[k] += sum_of_outer(h_bar, a)
            bias_bars.append(h_bar.sum(0))
            a_bar = product(h_bar, weight) if k or ctx.needs_input_grad[1] else None
        x_bar = None if a_bar is None else a_bar.reshape(ctx.shape)
        pairs = zip(weight_bars, reversed(bias_bars), strict=True)
        return None, x_bar, None, *itertools.chain.from_iterable(pairs), out_bar


class _Pass(NamedTuple):
    """What a layer was given and made: values in, directions in and through, the activation's derivatives."""

    a: Tensor
    u: Tensor | None
    t: Tensor | None
    jets: list[Tensor]


def _only_once() -> None:
    """Refuse, within a backward pass, to be differentiated again: the result would be wrong without a word."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the derivatives of a perceptron are written out and can be differentiated once: for more, take "
            "torch.autograd.grad of the energy with respect to an x that requires a gradient"
        )


def activation_of(name: str) -> Activation:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]
