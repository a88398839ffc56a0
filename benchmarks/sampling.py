"""How fast chains run on a small network: ours, ebmkit's, torchebm's, and a plain loop over autograd.

    make bench-sampling

The network is 2-128-128-1 with SiLU, the weights are the same for all, and so are the start and the number of
steps. Times are CPU seconds on one thread; the competitors alternate, and medians of all rounds are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import ebm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchebm.core import BaseModel
from torchebm.samplers import HamiltonianMonteCarlo, LangevinDynamics

from thalweg.energies import PerceptronEnergy
from thalweg.sampling.chain import run_chain
from thalweg.sampling.hmc import HMC
from thalweg.sampling.langevin import MALA, Langevin

STEP, LEAPFROG = 0.01, 10
SIZES = ((64, 1000, 2.0), (1000, 500, 1.1))
"""Chains, steps, and how many times faster than the best rival ours should be."""

Sample = Callable[[Tensor, int], object]
"""(start, steps) -> whatever the library returns."""


class TorchEBMNetwork(BaseModel):
    """The energy of torchebm's examples."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.net = network

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)


def plain_langevin(network: nn.Module) -> Sample:
    def sample(x: Tensor, steps: int) -> Tensor:
        for _ in range(steps):
            x = x.detach().requires_grad_(True)
            (grad,) = torch.autograd.grad(network(x).sum(), x)
            x = x.detach() - STEP * grad + (2 * STEP) ** 0.5 * torch.randn_like(x)
        return x

    return sample


def competitors() -> dict[str, dict[str, Sample]]:
    """By sampler and library, all on the weights of one network."""
    torch.manual_seed(0)
    theirs = ebm.nets.MLPEnergy(2, (128, 128)).requires_grad_(False)
    ours = PerceptronEnergy(2).requires_grad_(False)
    linear = [layer for layer in theirs.net if isinstance(layer, nn.Linear)]
    for own, layer in zip([*ours.layers, ours.out], linear, strict=True):
        own.load_state_dict(layer.state_dict())
    wrapped = TorchEBMNetwork(theirs.net)
    langevin = LangevinDynamics(wrapped, step_size=STEP)
    hamiltonian = HamiltonianMonteCarlo(wrapped, step_size=0.1, n_leapfrog_steps=LEAPFROG)

    def thalweg(kernel: Langevin | MALA | HMC) -> Sample:
        return lambda x, steps: run_chain(kernel, ours, x, steps)

    def ebmkit(sampler: ebm.Sampler) -> Sample:
        return lambda x, steps: sampler.sample(theirs, x, steps=steps)

    return {
        "Langevin": {
            "thalweg": thalweg(Langevin(STEP)),
            "ebmkit": ebmkit(ebm.LangevinDynamics(step_size=STEP)),
            "torchebm": lambda x, steps: langevin.sample(x, n_steps=steps),
            "plain torch": plain_langevin(theirs),
        },
        "MALA": {
            "thalweg": thalweg(MALA(STEP)),
            "ebmkit": ebmkit(ebm.MALA(step_size=STEP)),
        },
        f"HMC, {LEAPFROG} leapfrog steps": {
            "thalweg": thalweg(HMC(0.1, LEAPFROG)),
            "ebmkit": ebmkit(ebm.HMC(step_size=0.1, leapfrog_steps=LEAPFROG)),
            "torchebm": lambda x, steps: hamiltonian.sample(x, n_steps=steps),
        },
    }


def measure(libraries: dict[str, Sample], n_chains: int, n_steps: int, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every round, the libraries one after the other in each."""
    start = torch.randn(n_chains, 2, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {library: [] for library in libraries}
    for sample in libraries.values():
        sample(start, 10)
    for _ in range(rounds):
        for library, sample in libraries.items():
            began = time.process_time()
            sample(start, n_steps)
            seconds[library].append(time.process_time() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write all figures here as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    table = Table("sampler", "chains x steps", "library", "CPU (s)", "chain steps a second", "rival / ours")
    targets = Table("target", "figure", "")
    everything: dict[str, dict[str, list[float]]] = {}
    for sampler, libraries in competitors().items():
        for n_chains, n_all, aim in SIZES:
            # A step of HMC is ten gradients: a tenth of the steps costs everyone the same.
            n_steps = n_all // LEAPFROG if sampler.startswith("HMC") else n_all
            seconds = measure(libraries, n_chains, n_steps, arguments.rounds)
            everything[f"{sampler}, {n_chains} x {n_steps}"] = seconds
            medians = {library: statistics.median(times) for library, times in seconds.items()}
            own = medians["thalweg"]
            best = min(median for library, median in medians.items() if library != "thalweg")
            heading = [sampler, f"{n_chains} x {n_steps}"]
            for library, median in medians.items():
                rate = f"{n_chains * n_steps / median:,.0f}"
                ratio = "" if library == "thalweg" else f"{median / own:.2f}"
                table.add_row(*heading, library, f"{median:.3f}", rate, ratio)
                heading = ["", ""]
            table.add_section()
            aimed = f"{sampler}, {n_chains} chains: {aim} times faster than the best rival"
            targets.add_row(aimed, f"{best / own:.2f}", "reached" if best / own >= aim else "missed")
    if arguments.out:
        arguments.out.write_text(json.dumps(everything, indent=1))
    console = Console(width=120)
    console.print(table)
    console.print(targets)


if __name__ == "__main__":
    main()
