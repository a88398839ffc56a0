"""Small energies and batches that several test files use."""

import torch
from torch import nn

from thalweg.energies import (
    AnyOrderDensity,
    Column,
    ConditionalBlock,
    GaussianEnergy,
    GaussianMixtureEnergy,
    MixtureDensity,
    NetworkEnergy,
    NoisyGenerator,
    RowEncoding,
    TiltedEnergy,
    TiltedMixtureEnsemble,
    mlp,
)
from thalweg.objectives.base import Batch


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perturbed(module: nn.Module, scale: float = 0.2, seed: int = 3) -> nn.Module:
    """The module with no parameter at zero, where a gradient or an error could hide; in evaluation mode."""
    generator = seeded(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(scale * torch.randn(weight.shape, generator=generator))
    return module.eval()


VECTORS = torch.linspace(-1, 1, 12).reshape(4, 3)


def targets(n_rows: int, n_candidates: int, k: int) -> torch.Tensor:
    return torch.randn(n_rows, n_candidates, k, generator=seeded(5))


class PairNetwork(nn.Module):
    def __init__(self, n_x: int, n_y: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(n_x + n_y, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x, y):
        return self.layers(torch.cat([x, y], -1)).squeeze(-1)


def gaussian(k: int = 2, seed: int = 0) -> GaussianEnergy:
    generator = seeded(seed)
    return GaussianEnergy(torch.randn(k, generator=generator), 0.5 + torch.rand(k, generator=generator))


def gaussian_mixture() -> GaussianMixtureEnergy:
    return GaussianMixtureEnergy(
        torch.tensor([[-1.0, 0.0], [2.0, 1.0]]), torch.tensor([[0.5, 1.0], [1.0, 0.3]]), torch.tensor([1.0, 3.0])
    )


def correlated_mixture() -> GaussianMixtureEnergy:
    factors = torch.tensor([[[0.8, 0.0], [0.5, 0.6]], [[0.4, 0.0], [-0.3, 1.1]]])
    return GaussianMixtureEnergy(torch.tensor([[-1.0, 0.0], [2.0, 1.0]]), factors, torch.tensor([2.0, 1.0]))


def network(k: int) -> NetworkEnergy:
    return perturbed(NetworkEnergy(mlp([3, 6]), 6, k, hidden=8))


def mixture(k: int) -> MixtureDensity:
    return perturbed(MixtureDensity(mlp([3, 6]), 6, n_targets=k, n_components=3))


def tilted(k: int) -> TiltedEnergy:
    residual = NetworkEnergy(nn.Identity(), 6, k, hidden=8)
    return perturbed(TiltedEnergy(MixtureDensity(mlp([3, 6]), 6, n_targets=k), residual))


def ensemble(k: int) -> TiltedMixtureEnsemble:
    return perturbed(TiltedMixtureEnsemble(3, n_members=2, hidden=(8,), n_components=2, n_tilts=2))


def batch(k: int, n_rows: int = 8) -> Batch:
    return Batch(torch.randn(n_rows, 3, generator=seeded(1)), torch.randn(n_rows, k, generator=seeded(2)))


def linear_generator(weight: torch.Tensor, bias: torch.Tensor, std: float) -> NoisyGenerator:
    """x = W z + b + std * noise, probabilistic PCA, whose density is N(b, W W' + std^2 I); in double precision."""
    network = nn.Linear(weight.shape[1], weight.shape[0])
    made = NoisyGenerator(network, weight.shape[1], std, least=1e-3, most=10.0).double()
    with torch.no_grad():
        network.weight.copy_(weight)
        network.bias.copy_(bias)
    return made


def marginal_of(generator: NoisyGenerator) -> torch.distributions.MultivariateNormal:
    """The density of a linear generator's draws, with a graph to its parameters."""
    weight, bias = generator.network.weight, generator.network.bias
    noise = (2 * generator.log_std).exp() * torch.eye(len(bias), dtype=bias.dtype)
    return torch.distributions.MultivariateNormal(bias, weight @ weight.T + noise)


def posterior_precision(generator: NoisyGenerator) -> torch.Tensor:
    """I + W'W / std^2, of z given x, of a linear generator."""
    weight = generator.network.weight.detach()
    variance = (2 * generator.log_std).exp().detach()
    return torch.eye(weight.shape[1], dtype=weight.dtype) + weight.T @ weight / variance


# Orthogonal columns, so that z given x has independent coordinates.
ORTHOGONAL = torch.tensor([[0.8, 0.5], [0.8, -0.5], [0.0, 0.5]], dtype=torch.float64)
SHIFT = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)


def any_order_density(
    columns: list[Column], n_members: int = 2, seed: int = 0, n_tilts: int = 3
) -> AnyOrderDensity:
    """Networks with random weights, one block for every column, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoding = RowEncoding(columns)
        blocks = [
            ConditionalBlock([d], columns, encoding, n_members, (6,), 0.0, n_components=2, n_tilts=n_tilts)
            for d in range(len(columns))
        ]
    numbers = [d for d, c in enumerate(columns) if not c.n_levels]
    return perturbed(AnyOrderDensity(columns, blocks, numbers))
