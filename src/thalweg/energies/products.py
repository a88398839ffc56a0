"""Matrix products by the faster of the two libraries that a CPU build of PyTorch carries.

In single precision PyTorch multiplies by MKL, which leaves half of a processor's vector units idle if it is not
Intel's; oneDNN, which PyTorch itself uses when it compiles, does not. Small products go the ordinary way: oneDNN
takes longer to start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_ONEDNN: Any = None
if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _ONEDNN = torch.ops.mkldnn._linear_pointwise.default

_LEAST = 64 * 128 * 128


def product(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ matrix + bias without a graph: x ``[N, n]`` (``[*batch, n]`` without bias), matrix ``[n, m]``."""
    return multiplier(x.numel() // max(1, matrix.shape[0]), matrix, bias)(x)


def sum_of_outer(grads: Tensor, x: Tensor) -> Tensor:
    """sum_i grads_i x_i' ``[m, n]`` without a graph, a matrix's gradient: grads ``[N, m]``, x ``[N, n]``."""
    if x.shape[1] < 32:
        # Up to thirty times faster than the same product the other way round.
        return torch.mm(x.t(), grads).t()
    return product(grads.t(), x)


def multiply(x: Tensor, matrix: Tensor) -> Tensor:
    """x @ matrix ``[*batch, m]``; by :func:`product` where no graph is kept."""
    return torch.matmul(x, matrix) if torch.is_grad_enabled() else product(x, matrix)


def multiplier(n_rows: int, matrix: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """The product of this matrix with any x of so many rows: the way is chosen once for many."""
    n, m = matrix.shape
    pays = (
        n_rows * n * m >= _LEAST
        and min(n, m) >= 32
        and _ONEDNN is not None
        and matrix.dtype is torch.float32
        and matrix.device.type == "cpu"
    )
    if pays:
        weight = matrix.t()
        return lambda x: _ONEDNN(x, weight, bias, "none", [], "")
    if m < 16:
        # A narrow matrix is several times faster to multiply by when its columns are contiguous.
        matrix = matrix.t().contiguous().t()
    if bias is None:
        return lambda x: torch.matmul(x, matrix)
    return lambda x: torch.addmm(bias, x, matrix)
