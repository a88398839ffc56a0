"""Exhaustive search: all configurations of a factor graph, up to a number that can be written out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from thalweg.energies.factors.graph import FactorGraph

MOST_CONFIGURATIONS = 1 << 20


class Configurations(NamedTuple):
    """All values of all variables ``[N, V]``, and the energies ``[B, N]``, with a graph (B is 1 without rows)."""

    values: Tensor
    energy: Tensor


def all_configurations(graph: FactorGraph, most: int = MOST_CONFIGURATIONS) -> Configurations:
    """Write out all configurations of a graph, the last variable fastest.

    Raises:
        ValueError: if there are more than ``most``.
    """
    n = graph.n_configurations
    if n > most:
        found = f"{n:,}" if n < 10**12 else f"about 10^{len(str(n)) - 1}"
        instead = (
            "max_product and sum_product, which are exact here, for the graph has no cycle"
            if graph.is_forest
            else "max_product and sum_product (approximate: the graph has cycles)"
        )
        raise ValueError(
            f"a graph of {len(graph.n_values)} variables has {found} configurations, too many for exhaustive "
            f"search (at most {most:,}): use {instead}"
        )
    device = graph.factors[0].table.device if graph.factors else torch.device("cpu")
    grids = torch.meshgrid(*(torch.arange(k, device=device) for k in graph.n_values), indexing="ij")
    values = torch.stack([grid.reshape(-1) for grid in grids], -1)
    rows = graph.n_rows or 1
    return Configurations(values, graph(values.expand(rows, -1, -1)))


def marginals_of(graph: FactorGraph, found: Configurations) -> list[Tensor]:
    """p(value) of each variable ``[B, K_v]``."""
    p = torch.softmax(-found.energy, -1)
    return [
        torch.stack([p[:, found.values[:, v] == k].sum(-1) for k in range(n)], -1)
        for v, n in enumerate(graph.n_values)
    ]
