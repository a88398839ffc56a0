"""Conditional energies built on Gaussian mixtures: the mixture itself, one that is tilted, an ensemble."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.energies.base import ConditionalEnergy, Features, align, map_features
from thalweg.energies.densities.basic import ConditionalDensity
from thalweg.energies.networks import NetworkEnergy

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class MixtureDensity(ConditionalDensity):
    """A mixture density network: p(y|x) = sum_c w_c(x) N(y; mean_c(x), std_c(x)^2), log Z(x) = 0.

    It serves as a model of its own and as the proposal or noise of other objectives.

    Args:
        feature_network: maps x to ``[B, n_features]``.
        n_features: its output width.
        n_targets: K, the dimension of y; the components have diagonal covariances.
        n_components: C.
        hidden: widths of the layers of each of the three heads (weights, means, log variances).
        log_std_floor: no component gets narrower than exp of this.

    Source: [Bishop 1994].
    """

    def __init__(
        self,
        feature_network: nn.Module,
        n_features: int,
        n_targets: int = 1,
        n_components: int = 4,
        hidden: Sequence[int] = (),
        log_std_floor: float = -7.0,
    ):
        super().__init__()
        self.feature_network = feature_network
        self.n_targets = n_targets
        self.n_components = n_components
        self.log_std_floor = log_std_floor
        sizes = [n_features, *hidden]

        def head(n_out: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for a, b in itertools.pairwise(sizes):
                layers += [nn.Linear(a, b), nn.ReLU()]
            return nn.Sequential(*layers, nn.Linear(sizes[-1], n_out))

        self.logits = head(n_components)
        self.means = head(n_components * n_targets)
        self.log_stds = head(n_components * n_targets)
        with torch.no_grad():
            spread = torch.linspace(-1.0, 1.0, n_components) if n_components > 1 else torch.zeros(1)
            final = self.means[-1]
            assert isinstance(final, nn.Linear)
            final.bias.add_(spread.repeat_interleave(n_targets))

    def features(self, x: Tensor) -> Features:
        return self.mixture(self.feature_network(x))

    def mixture(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights ``[B, C]``, means ``[B, C, K]`` and log stds ``[B, C, K]`` from features ``[B, F]``."""
        shape = (h.shape[0], self.n_components, self.n_targets)
        return (
            F.log_softmax(self.logits(h), -1),
            self.means(h).reshape(shape),
            floored(self.log_stds(h).reshape(shape), self.log_std_floor),
        )

    def head(self, features: Features, y: Tensor) -> Tensor:
        return -self.log_prob(features, y)

    def log_prob(self, features: Features, y: Tensor) -> Tensor:
        """log q(y|x), normalised, ``[B, *candidates]``."""
        log_weights, means, log_stds = (align(f, y) for f in features)
        z = (y.unsqueeze(-2) - means) * torch.exp(-log_stds)
        log_normal = (-0.5 * z.square() - log_stds - _HALF_LOG_2PI).sum(-1)
        return torch.logsumexp(log_normal + log_weights, -1)

    def sample(self, features: Features, n_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """``[B, n_samples, K]`` draws; no gradient flows through them."""
        log_weights, means, log_stds = (f.detach() for f in features)
        n_rows = len(log_weights)
        which = torch.multinomial(log_weights.exp(), n_samples, replacement=True, generator=generator)
        index = which.unsqueeze(-1).expand(n_rows, n_samples, self.n_targets)
        noise = torch.randn(
            (n_rows, n_samples, self.n_targets), generator=generator, device=means.device, dtype=means.dtype
        )
        return means.gather(1, index) + log_stds.gather(1, index).exp() * noise

    def draws(self, features: Features, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.sample(features, n, generator)

    def landmarks(self, features: Features) -> tuple[Tensor, Tensor] | None:
        _, means, log_stds = features
        return means.squeeze(-1), log_stds.squeeze(-1).exp()


class TiltedEnergy(ConditionalEnergy):
    """E(x, y) = -log q(y|x) + r(x, y): a learned proposal, tilted by a network.

    The proposal carries location and scale, the residual r only what the mixture cannot say; with r = 0
    the energy is the proposal's. For y in R^K; the normaliser is estimated with q as the proposal.

    Args:
        proposal: the mixture q, which shares the feature network.
        residual: an energy on the same features (its ``feature_network`` may be ``nn.Identity()``).
    """

    def __init__(self, proposal: MixtureDensity, residual: NetworkEnergy):
        super().__init__()
        self.proposal = proposal
        self.residual = residual
        nn.init.zeros_(residual.out.weight)
        nn.init.zeros_(residual.out.bias)

    def features(self, x: Tensor) -> Features:
        h = self.proposal.feature_network(x)
        mixture = self.proposal.mixture(h)
        return (*mixture, self.residual.features(h))

    def head(self, features: Features, y: Tensor) -> Tensor:
        return self.tilt(features, y) - self.proposal.log_prob(features[:3], y)

    def tilt(self, features: Features, y: Tensor) -> Tensor:
        """r(x, y) ``[B, *candidates]``."""
        return self.residual.head(features[3], y)

    def landmarks(self, features: Features) -> tuple[Tensor, Tensor] | None:
        return self.proposal.landmarks(features[:3])


class TiltedMixtureEnsemble(ConditionalDensity):
    """An ensemble of tilted mixtures for one-dimensional y, each normalised exactly; the default model.

    Member k has a mixture q_k(y|x) and tilts it in the coordinate u = F_k(y|x), the mixture's own
    distribution function, which lies in [0, 1] for every row::

        p_k(y|x) = q_k(y|x) exp(-r_k(x, u)) / Z_k(x),   Z_k(x) = integral_0^1 exp(-r_k(x, u)) du,
        r_k(x, u) = sum_j a_kj(x) sqrt(2) cos(pi j u)

    so that the normaliser is one smooth integral over the unit interval, with the same quadrature nodes
    for all rows: maximum likelihood needs no samples. The ensemble is the mixture of its members,
    E(x, y) = -log mean_k p_k(y|x), with log Z(x) = 0. Members share no weights; they run as one batched
    product.

    Args:
        n_inputs: width of x.
        n_members: networks in the ensemble.
        hidden: widths of the hidden layers.
        n_components: Gaussians in each member's mixture.
        n_tilts: cosines in the tilt; 0 leaves the mixture as it is.
        dropout: probability of dropping a hidden unit in training.
        log_std_floor: no Gaussian gets narrower than exp of this.
        atoms: values that y takes with positive probability (a censored target's limit). Each becomes a
            Gaussian whose place is fixed and only its weight learned.
        atom_std: standard deviation of those Gaussians.
    """

    n_quadrature = 64

    def __init__(
        self,
        n_inputs: int,
        n_members: int = 8,
        hidden: Sequence[int] = (128, 128),
        n_components: int = 5,
        n_tilts: int = 8,
        dropout: float = 0.1,
        log_std_floor: float = -6.0,
        atoms: Sequence[float] = (),
        atom_std: float = 1e-3,
    ):
        super().__init__()
        self.n_members = n_members
        self.atoms = [float(a) for a in atoms]
        self.atom_std = atom_std
        self.n_components = n_components
        self.n_tilts = n_tilts
        self.dropout = dropout
        self.log_std_floor = log_std_floor
        sizes = [n_inputs, *hidden]
        self.hidden = nn.ModuleList(BatchedLinear(n_members, a, b, gain=1.4) for a, b in itertools.pairwise(sizes))
        n_out = 3 * n_components + len(self.atoms) + n_tilts
        self.out = BatchedLinear(n_members, sizes[-1], n_out, gain=0.1)
        with torch.no_grad():
            spread = torch.linspace(-1.0, 1.0, n_components) if n_components > 1 else torch.zeros(1)
            first = n_components + len(self.atoms)
            self.out.bias[:, :, first : first + n_components] = spread
        # exp(-r) is even and periodic in u, where midpoints with even weights beat Gauss's nodes: for tilts of
        # many nats the error of Z is 1e-8 where Gauss's 64 leave 1e-4.
        nodes = (torch.arange(self.n_quadrature) + 0.5) / self.n_quadrature
        self.register_buffer("nodes", nodes, persistent=False)

    nodes: Tensor

    def features(self, x: Tensor) -> Features:
        # x is [B, n_inputs], or [n_members, B, n_inputs] where every member has rows of its own.
        h = x if x.dim() == 3 else x.unsqueeze(0).expand(self.n_members, -1, -1)
        for layer in self.hidden:
            h = F.silu(layer(h))
            if self.training and self.dropout:
                # One mask for all members: an eighth of the random numbers, and they train as well.
                h = h * F.dropout(torch.ones_like(h[0]), self.dropout)
        c, a = self.n_components, len(self.atoms)
        out = self.out(h).transpose(0, 1)  # [B, n_members, n_out]
        logits, means, log_stds, tilts = out.split([c + a, c, c, self.n_tilts], -1)
        log_weights = F.log_softmax(logits, -1)
        log_stds = floored(log_stds, self.log_std_floor)
        if a:
            shape = (*means.shape[:-1], a)
            means = torch.cat([means, means.new_tensor(self.atoms).expand(shape)], -1)
            log_stds = torch.cat([log_stds, log_stds.new_tensor(math.log(self.atom_std)).expand(shape)], -1)
        if not self.n_tilts:
            return log_weights, means, log_stds, tilts, torch.zeros_like(tilts.sum(-1))
        exponent = -(tilts @ _cosines(self.nodes, self.n_tilts).T)
        log_normaliser = torch.logsumexp(exponent, -1) - math.log(self.n_quadrature)
        return log_weights, means, log_stds, tilts, log_normaliser

    def head(self, features: Features, y: Tensor) -> Tensor:
        return math.log(self.n_members) - torch.logsumexp(self.member_log_prob(features, y), -1)

    def member_log_prob(self, features: Features, y: Tensor) -> Tensor:
        """log p_k(y|x) of every member, ``[B, *candidates, n_members]``, for y ``[B, *candidates, 1]``.

        y may also be ``[B, *candidates, n_members]``, a value for each member.
        """
        log_weights, means, log_stds, tilts, log_normaliser = (align(f, y) for f in features)
        # Components lead from here on: sums over a leading dimension run several times faster.
        log_weights, means, log_stds = (f.movedim(-1, 0) for f in (log_weights, means, log_stds))
        z = (y - means) * torch.exp(-log_stds)
        log_prob = _log_sum_exp(log_weights - log_stds - _HALF_LOG_2PI - 0.5 * z.square())
        if not self.n_tilts:
            return log_prob
        u = (log_weights.exp() * (0.5 * torch.erfc(z * -math.sqrt(0.5)))).sum(0)
        return log_prob - _cosine_series(tilts.movedim(-1, 0), u) - log_normaliser

    def sample(self, features: Features, generator: torch.Generator | None = None) -> Tensor:
        """One draw of y for each row ``[B]``, with no graph.

        A member is chosen, then u from its tilt on a grid of 512 cells, then y where the mixture's
        distribution function is u, by bisection.
        """
        with torch.no_grad():
            log_weights, means, log_stds, tilts, _ = features
            n_rows, device, dtype = len(means), means.device, means.dtype
            member = torch.randint(self.n_members, (n_rows,), generator=generator, device=device)
            row = torch.arange(n_rows, device=device)
            weights, means, stds = log_weights[row, member].exp(), means[row, member], log_stds[row, member].exp()
            unit = torch.rand((n_rows,), generator=generator, device=device, dtype=dtype)
            if self.n_tilts:
                n_cells = 512
                cells = (torch.arange(n_cells, device=device, dtype=dtype) + 0.5) / n_cells
                density = torch.exp(-(tilts[row, member] @ _cosines(cells, self.n_tilts).T))
                cell = torch.multinomial(density, 1, generator=generator)[:, 0]
                unit = (cell + unit) / n_cells
            low = (means - 8 * stds).amin(1)
            high = (means + 8 * stds).amax(1)
            for _ in range(30):
                y = 0.5 * (low + high)
                z = (y.unsqueeze(1) - means) / stds
                below = (weights * 0.5 * torch.erfc(z * -math.sqrt(0.5))).sum(1) < unit
                low, high = torch.where(below, y, low), torch.where(below, high, y)
            return 0.5 * (low + high)

    def draws(self, features: Features, n: int, generator: torch.Generator | None = None) -> Tensor:
        repeated = map_features(features, lambda f: f.repeat_interleave(n, 0))
        return self.sample(repeated, generator).reshape(-1, n, 1)

    def roughness(self, features: Features) -> Tensor:
        """sum_j (j a_kj)^2 ``[B, n_members]``: how far the tilt is from none, fast wiggles counted more."""
        j = torch.arange(1, self.n_tilts + 1, device=features[3].device)
        return (features[3] * j).square().sum(-1)

    def landmarks(self, features: Features) -> tuple[Tensor, Tensor] | None:
        _log_weights, means, log_stds, *_ = features
        return means.flatten(1), log_stds.exp().flatten(1)


class BatchedLinear(nn.Module):
    """n_members linear layers as one batched product: ``[n_members, B, n_in]`` -> ``[..., n_out]``."""

    def __init__(self, n_members: int, n_in: int, n_out: int, gain: float):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_members, n_in, n_out) * gain / math.sqrt(n_in))
        self.bias = nn.Parameter(torch.zeros(n_members, 1, n_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


def floored(log_std: Tensor, floor: float) -> Tensor:
    """A smooth lower bound: the value itself far above the floor, the floor far below it."""
    return floor + F.softplus(log_std - floor)


def _log_sum_exp(x: Tensor) -> Tensor:
    """log of the sum of exp over the first dimension."""
    top = x.detach().amax(0)
    return top + (x - top).exp().sum(0).log()


def _cosine_series(coefficients: Tensor, u: Tensor) -> Tensor:
    """sum_j a_j sqrt(2) cos(pi j u), j = 1..n, for coefficients ``[n, ...]``: Clenshaw's recurrence."""
    twice = 2 * torch.cos(math.pi * u)
    b1, b2 = torch.zeros_like(u), torch.zeros_like(u)
    for a in reversed(coefficients.unbind(0)):
        b1, b2 = a + twice * b1 - b2, b1
    # b1 is b_1 and b2 is b_2 here: the series is cos(pi u) b_1 - b_2, its constant term being 0.
    return math.sqrt(2) * (0.5 * twice * b1 - b2)


def _cosines(u: Tensor, n: int) -> Tensor:
    """sqrt(2) cos(pi j u) for j = 1..n, ``[..., n]``: orthonormal on [0, 1], each with mean zero."""
    j = torch.arange(1, n + 1, device=u.device, dtype=u.dtype)
    return math.sqrt(2) * torch.cos(math.pi * u.unsqueeze(-1) * j)
