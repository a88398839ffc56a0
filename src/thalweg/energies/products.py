"""Matrix products by the faster of the two libraries that a CPU build of PyTorch carries.

In single precision PyTorch multiplies by MKL, which leaves half of a processor's vector units idle if it is not
Intel's; oneDNN, which PyTorch itself uses when it compiles, does not. Small products go the ordinary way: oneDNN
takes longer to start.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ONEDNN: Any = None
if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _ONEDNN = torch.ops.mkldnn._linear_pointwise.default

_LEAST = 96 * 128 * 128


def product(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ matrix + bias without a graph: x ``[N, n]`` (``[*batch, n]`` without bias), matrix ``[n, m]``."""
    n, m = matrix.shape
    pays = (
        x.numel() * m >= _LEAST
        and min(n, m) >= 32
        and _ONEDNN is not None
        and x.dtype is torch.float32
        and matrix.dtype is torch.float32
        and x.device.type == "cpu"
    )
    if pays:
        return _ONEDNN(x, matrix.t(), bias, "none", [], "")
    if m < 16:
        matrix = by_columns(matrix)
    return torch.matmul(x, matrix) if bias is None else torch.addmm(bias, x, matrix)


def by_columns(matrix: Tensor) -> Tensor:
    """The same matrix with contiguous columns: a narrow one is several times faster to multiply by."""
    return matrix.t().contiguous().t()
