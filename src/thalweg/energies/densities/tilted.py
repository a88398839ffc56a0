"""Conditional energies built on Gaussian mixtures: the mixture itself, one that is tilted, an ensemble."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.energies.base import ConditionalEnergy, Features, align, map_features
from thalweg.energies.densities.basic import ConditionalDensity
from thalweg.energies.networks import NetworkEnergy
from thalweg.energies.networks.batched import BatchedLinear
from thalweg.energies.networks.dropout import Dropout

# Standard deviations beyond a limit that a component's mean may lie.
_REACH = 3.0
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


class TiltedMixtures(ConditionalDensity):
    """The mixture of tilted mixtures for one-dimensional y whose parameters are given, each normalised exactly.

    Member k has a mixture q_k(y|x) and tilts it in the coordinate u = F_k(y|x), the mixture's own
    distribution function, which lies in [0, 1] for every row::

        p_k(y|x) = q_k(y|x) exp(-r_k(x, u)) / Z_k(x),   Z_k(x) = integral_0^1 exp(-r_k(x, u)) du,
        r_k(x, u) = sum_j a_kj(x) sqrt(2) cos(pi j u)

    so that the normaliser is one smooth integral over the unit interval, with the same quadrature nodes
    for all rows: maximum likelihood needs no samples. Of several members it is the mixture,
    E(x, y) = -log mean_k p_k(y|x), with log Z(x) = 0.

    Where y has atoms, values v_a that it takes with positive probability, a member is the point masses w_ka(x) at
    these and the tilted mixture with the rest of the probability. E is then -log of a density with respect to the
    counting measure on the atoms plus the length elsewhere: a log mass at an atom, a log density between them.

    What it is given is ``[B, n_members, n_parameters]``, the outputs of networks:
    :class:`TiltedMixtureEnsemble` has networks of its own.

    Args:
        n_members: members of the mixture.
        n_components: Gaussians in each member's mixture.
        n_tilts: cosines in the tilt; 0 leaves the mixture as it is.
        log_std_floor: no Gaussian gets narrower than exp of this.
        atoms: values that y takes with positive probability (a censored target's limit).
        limits: the least and the largest value of y, beyond which the mixture is cut off; None is no limit.
    """

    # exp(-r) is even and periodic in u, where midpoints with even weights beat Gauss's nodes: for 8 coefficients
    # of size 5 the error of log Z is below 1e-5 with 128 and below 1e-12 with 512.
    n_nodes = 128
    n_nodes_evaluating = 512

    def __init__(
        self,
        n_members: int,
        n_components: int = 5,
        n_tilts: int = 8,
        log_std_floor: float = -6.0,
        atoms: Sequence[float] = (),
        limits: Sequence[float | None] = (None, None),
    ):
        super().__init__()
        self.n_members = n_members
        self.limits = (limits[0], limits[1])
        self.n_components = n_components
        self.n_tilts = n_tilts
        self.log_std_floor = log_std_floor
        for name, n in (("nodes", self.n_nodes), ("nodes_evaluating", self.n_nodes_evaluating)):
            self.register_buffer(name, (torch.arange(n, dtype=torch.float64) + 0.5) / n, persistent=False)
        self.register_buffer("atoms", torch.tensor([float(a) for a in atoms]).double(), persistent=False)

    nodes: Tensor
    nodes_evaluating: Tensor
    atoms: Tensor

    @property
    def n_parameters(self) -> int:
        """Numbers that a member is given."""
        return 3 * self.n_components + len(self.atoms) + self.n_tilts

    def first_parameters(self) -> Tensor:
        """Where the training of networks begins ``[n_parameters]``: components beside one another."""
        spread = torch.linspace(-1.0, 1.0, self.n_components) if self.n_components > 1 else torch.zeros(1)
        first = self.n_components + len(self.atoms)
        return F.pad(spread, (first, self.n_parameters - first - self.n_components))

    def features(self, x: Tensor) -> Features:
        c, a = self.n_components, len(self.atoms)
        logits, means, log_stds, tilts = x.split([c + a, c, c, self.n_tilts], -1)
        log_weights = F.log_softmax(logits, -1)
        log_rest = torch.logsumexp(log_weights[..., :c], -1, keepdim=True)
        log_parts = torch.cat([log_weights[..., c:], log_rest], -1)
        log_weights = log_weights[..., :c] - log_rest
        log_stds = floored(log_stds, self.log_std_floor)
        if self._limited:
            means = self._within_reach(means, log_stds)
        below, log_within = self._within(log_weights, means, log_stds)
        if not self.n_tilts:
            return log_weights, means, log_stds, tilts, log_within, log_parts, below, log_within
        nodes = (self.nodes if self.training else self.nodes_evaluating).to(tilts.dtype)
        exponent = -(tilts @ _cosines(nodes, self.n_tilts).T)
        log_normaliser = torch.logsumexp(exponent, -1) - math.log(len(nodes)) + log_within
        return log_weights, means, log_stds, tilts, log_normaliser, log_parts, below, log_within

    def _within_reach(self, means: Tensor, log_stds: Tensor) -> Tensor:
        """Means at most about three standard deviations beyond the limits, ``[B, n_members, n_components]``.

        Further out, what is left within the limits is a tail whose shape no number tells any more: the mixture's
        distribution function there is a difference of rounding errors. A narrower component has the same tail.
        """
        std, (low, high) = log_stds.exp(), self.limits
        if low is not None:
            means = low + std * (F.softplus((means - low) / std + _REACH) - _REACH)
        if high is not None:
            means = high - std * (F.softplus((high - means) / std + _REACH) - _REACH)
        return means

    def _within(self, log_weights: Tensor, means: Tensor, log_stds: Tensor) -> tuple[Tensor, Tensor]:
        """The mixture's probability below the lower limit, and the log of that within both, ``[B, n_members]``."""
        low, high = self.limits
        below = torch.zeros_like(log_weights[..., 0])
        if low is None and high is None:
            return below, below
        scale = torch.exp(-log_stds)
        log_within = log_weights
        if low is not None:
            z = (low - means) * scale
            below = (log_weights.exp() * torch.special.ndtr(z)).sum(-1)
            log_within = log_weights + torch.special.log_ndtr(-z)
        if high is not None:
            z = (high - means) * scale
            log_below = torch.special.log_ndtr(z)
            if low is None:
                log_within = log_weights + log_below
            else:
                part = torch.special.log_ndtr((low - means) * scale) - log_below
                log_within = log_weights + log_below + torch.log1p(-part.exp().clamp(max=1 - 1e-6))
        return below, torch.logsumexp(log_within, -1)

    def head(self, features: Features, y: Tensor) -> Tensor:
        return math.log(self.n_members) - torch.logsumexp(self.member_log_prob(features, y), -1)

    def member_log_prob(self, features: Features, y: Tensor) -> Tensor:
        """log p_k(y|x) of every member, ``[B, *candidates, n_members]``, for y ``[B, *candidates, 1]``.

        y may also be ``[B, *candidates, n_members]``, a value for each member. At an atom it is a log mass.
        """
        log_prob = self.member_log_density(features, y)
        if not len(self.atoms):
            return log_prob
        at = self.at_atoms(y)
        return torch.where(at.any(-1), self.member_log_mass(features, y, at), log_prob)

    def at_atoms(self, y: Tensor) -> Tensor:
        """Which atom y ``[...]`` is, ``[..., n_atoms]``: within the rounding errors of single precision."""
        atoms = self.atoms.to(y.device)
        return (y.double().unsqueeze(-1) - atoms).abs() <= 5e-7 * atoms.abs().clamp(min=1.0)

    def member_log_mass(self, features: Features, y: Tensor, at: Tensor) -> Tensor:
        """log of each member's mass on the atoms ``at`` which y is; minus infinity where it is none."""
        log_masses = align(features[5], y)[..., :-1]
        return torch.logsumexp(log_masses.masked_fill(~at, -torch.inf), -1)

    def member_log_density(self, features: Features, y: Tensor) -> Tensor:
        """As :meth:`member_log_prob`, of the continuous part alone, whose integral is what the atoms leave."""
        log_weights, means, log_stds, tilts, log_normaliser, log_parts, below, log_within = (
            align(f, y) for f in features
        )
        # Components lead from here on: sums over a leading dimension run several times faster.
        log_weights, means, log_stds = (f.movedim(-1, 0) for f in (log_weights, means, log_stds))
        z = (y - means) * torch.exp(-log_stds)
        log_prob = _log_sum_exp(log_weights - log_stds - _HALF_LOG_2PI - 0.5 * z.square()) - log_normaliser
        if len(self.atoms):
            log_prob = log_prob + log_parts[..., -1]
        if self.n_tilts:
            u = (log_weights.exp() * (0.5 * torch.erfc(z * -math.sqrt(0.5)))).sum(0)
            if self._limited:
                u = ((u - below) * torch.exp(-log_within)).clamp(0.0, 1.0)
            log_prob = log_prob - _cosine_series(tilts.movedim(-1, 0), u)
        return log_prob.masked_fill(self._beyond(y), -torch.inf) if self._limited else log_prob

    @property
    def _limited(self) -> bool:
        return self.limits != (None, None)

    def _beyond(self, y: Tensor) -> Tensor:
        """Which y lie beyond the limits."""
        low, high = self.limits
        beyond = torch.zeros_like(y, dtype=torch.bool)
        if low is not None:
            beyond = beyond | (y < low)
        return beyond if high is None else beyond | (y > high)

    def log_density(self, features: Features, y: Tensor) -> Tensor:
        """log of the continuous part's density ``[B, *candidates]``, for y ``[B, *candidates, 1]``."""
        return torch.logsumexp(self.member_log_density(features, y), -1) - math.log(self.n_members)

    def log_cell(self, features: Features, low: Tensor, high: Tensor) -> Tensor:
        """log of the continuous part's probability between low and high, each ``[B, *candidates, 1]``.

        Its relative error is small however light the cell: the mixture's probability of the cell is a difference
        of tails, and within the cell the tilt is a smooth function of the mixture's distribution function, so no
        spike can fall between the nodes.
        """
        if self._limited:
            low, high = (y.clamp(*self.limits) for y in (low, high))
        log_weights, means, log_stds, tilts, log_normaliser, log_parts, outside, log_within = (
            align(f, low) for f in features
        )
        scale = torch.exp(-log_stds)
        a, b = ((y.unsqueeze(-1) - means) * scale for y in (low, high))
        # On the side of the mean where the tail is small nothing cancels.
        flip = a > 0
        a, b = torch.where(flip, -b, a), torch.where(flip, -a, b)
        ends = torch.special.log_ndtr(a), torch.special.log_ndtr(b)
        within = ends[1] + torch.log1p(-torch.exp(ends[0] - ends[1]))
        # A cell so narrow that its ends' logarithms agree to many digits; one of no width has no mass.
        narrow = (b - a).log() - 0.5 * (0.5 * (a + b)).square() - _HALF_LOG_2PI
        within = torch.where(b - a < 1e-6, narrow, within)
        log_share = torch.logsumexp(log_weights + within, -1)  # [B, *candidates, n_members]
        log_mass = log_share - log_normaliser - math.log(self.n_members) + log_parts[..., -1]
        if self.n_tilts:
            below = (log_weights.exp() * torch.special.ndtr((low.unsqueeze(-1) - means) * scale)).sum(-1)
            below, share = (below - outside) * torch.exp(-log_within), torch.exp(log_share - log_within)
            # Nine nodes for a small part of the unit interval, more where the tilt goes up and down within it.
            nodes, weights = np.polynomial.legendre.leggauss(9 if float(share.max()) < 0.05 else 64)
            u = below.unsqueeze(-1) + share.unsqueeze(-1) * torch.from_numpy((nodes + 1) / 2).to(below)
            exponent = -_cosine_series(tilts.movedim(-1, 0).unsqueeze(-1), u)
            tilt = torch.logsumexp(exponent + torch.from_numpy(weights / 2).to(below).log(), -1)
            log_mass = log_mass + tilt
        return torch.logsumexp(log_mass, -1).masked_fill((high <= low).squeeze(-1), -torch.inf)

    def log_mass(self, features: Features, y: Tensor, at: Tensor) -> Tensor:
        """log of the mass ``[B, *candidates]`` on the atoms ``at`` which y is (see :meth:`at_atoms`)."""
        return torch.logsumexp(self.member_log_mass(features, y, at), -1) - math.log(self.n_members)

    def masses(self, features: Features) -> Tensor:
        """The probability of each atom ``[B, n_atoms]``."""
        return features[5][..., :-1].exp().mean(1)

    def sample(self, features: Features, generator: torch.Generator | None = None) -> Tensor:
        """One draw of y for each row ``[B]``, with no graph.

        A member is chosen, then an atom or the continuous part; there u from its tilt on a grid of 512 cells,
        then y where the mixture's distribution function is u, by bisection.
        """
        with torch.no_grad():
            log_weights, means, log_stds, tilts, _, log_parts, below, log_within = features
            n_rows, device, dtype = len(means), means.device, means.dtype
            member = torch.randint(self.n_members, (n_rows,), generator=generator, device=device)
            row = torch.arange(n_rows, device=device)
            weights, means, stds = log_weights[row, member].exp(), means[row, member], log_stds[row, member].exp()
            unit = torch.rand((n_rows,), generator=generator, device=device, dtype=dtype)
            if self.n_tilts:
                n_cells = 512
                cells = (torch.arange(n_cells, device=device, dtype=dtype) + 0.5) / n_cells
                density = torch.exp(-(tilts[row, member] @ _cosines(cells, self.n_tilts).T))
                # By the inverse of the distribution function: multinomial takes five times as long.
                below_cell = torch.cumsum(density, 1)
                place = unit.unsqueeze(1) * below_cell[:, -1:]
                cell = torch.searchsorted(below_cell, place).clamp(max=n_cells - 1)
                within = 1 - (below_cell.gather(1, cell) - place) / density.gather(1, cell)
                unit = (cell + within.clamp(0, 1))[:, 0] / n_cells
            unit = below[row, member] + unit * log_within[row, member].exp()
            low, high = (means - 8 * stds).amin(1), (means + 8 * stds).amax(1)
            if self._limited:
                # A limit may leave no more than a component's tail.
                spread = 8 * stds.amax(1)
                low, high = low.clamp(*self.limits), high.clamp(*self.limits)
                low, high = torch.minimum(low, high - spread), torch.maximum(high, low + spread)
                low, high = low.clamp(*self.limits), high.clamp(*self.limits)
            for _ in range(30):
                y = 0.5 * (low + high)
                z = (y.unsqueeze(1) - means) / stds
                below = (weights * 0.5 * torch.erfc(z * -math.sqrt(0.5))).sum(1) < unit
                low, high = torch.where(below, y, low), torch.where(below, high, y)
            y = 0.5 * (low + high)
            if not len(self.atoms):
                return y
            part = torch.multinomial(log_parts[row, member].exp(), 1, generator=generator)[:, 0]
            return torch.where(part < len(self.atoms), self._padded_atoms(y)[part], y)

    def _padded_atoms(self, like: Tensor) -> Tensor:
        return torch.cat([self.atoms.to(like), like.new_zeros(1)])

    def draws(self, features: Features, n: int, generator: torch.Generator | None = None) -> Tensor:
        repeated = map_features(features, lambda f: f.repeat_interleave(n, 0))
        return self.sample(repeated, generator).reshape(-1, n, 1)

    def roughness(self, features: Features) -> Tensor:
        """sum_j (j a_kj)^2 ``[B, n_members]``: how far the tilt is from none, fast wiggles counted more."""
        j = torch.arange(1, self.n_tilts + 1, device=features[3].device)
        return (features[3] * j).square().sum(-1)

    def landmarks(self, features: Features) -> tuple[Tensor, Tensor] | None:
        _, means, log_stds, *_ = features
        return means.flatten(1), log_stds.exp().flatten(1)


class TiltedMixtureEnsemble(TiltedMixtures):
    """An ensemble of networks, each with a tilted mixture for one-dimensional y; the default model.

    The mixture of its members is :class:`TiltedMixtures`. Members share no weights; they run as one batched
    product.

    Args:
        n_inputs: width of x.
        n_members: networks in the ensemble.
        hidden: widths of the hidden layers.
        dropout: probability of dropping a hidden unit in training.
        n_components, n_tilts, log_std_floor, atoms, limits: see :class:`TiltedMixtures`.
    """

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
        limits: Sequence[float | None] = (None, None),
    ):
        super().__init__(n_members, n_components, n_tilts, log_std_floor, atoms, limits)
        self.dropout = Dropout(dropout)
        sizes = [n_inputs, *hidden]
        self.hidden: Any = nn.ModuleList(
            BatchedLinear(n_members, a, b, gain=1.4) for a, b in itertools.pairwise(sizes)
        )
        self.out = BatchedLinear(n_members, sizes[-1], self.n_parameters, gain=0.1)
        with torch.no_grad():
            self.out.bias.copy_(self.first_parameters().expand_as(self.out.bias))

    def features(self, x: Tensor) -> Features:
        # x is [B, n_inputs], or [n_members, B, n_inputs] where every member has rows of its own.
        h = x if x.dim() == 3 else x.unsqueeze(0).expand(self.n_members, -1, -1)
        for layer in self.hidden:
            h = F.silu(layer(h))
            if self.training and self.dropout.probability:
                # One mask for all members: an eighth of the random numbers, and they train as well.
                h = h * self.dropout(torch.ones_like(h[0]))
        return super().features(self.out(h).transpose(0, 1))

    def of_members(self, members: Iterable[int]) -> TiltedMixtureEnsemble:
        """A copy of some members as an ensemble of their own."""
        index = torch.tensor(list(members), device=self.out.weight.device)
        layers = [layer.weight for layer in self.hidden]
        # First weights, which are replaced, take none of the caller's random numbers.
        with torch.random.fork_rng(devices=[]):
            part = TiltedMixtureEnsemble(
                layers[0].shape[1],
                len(index),
                [weight.shape[2] for weight in layers],
                self.n_components,
                self.n_tilts,
                self.dropout.probability,
                self.log_std_floor,
                self.atoms.tolist(),
                self.limits,
            )
        part.to(index.device).train(self.training)
        part.load_state_dict({name: value[index] for name, value in self.state_dict().items()})
        return part


class ContinuousPart(ConditionalEnergy):
    """What an ensemble with atoms has beside them: E(x, y) = -log of its density, with Z(x) = 1 - their mass.

    Args:
        ensemble: whose part it is; not a copy.
    """

    def __init__(self, ensemble: TiltedMixtures):
        super().__init__()
        self.ensemble = ensemble
        self.limits = ensemble.limits

    def features(self, x: Tensor) -> Features:
        return self.ensemble.features(x)

    def head(self, features: Features, y: Tensor) -> Tensor:
        return -self.ensemble.log_density(features, y)

    def landmarks(self, features: Features) -> tuple[Tensor, Tensor] | None:
        return self.ensemble.landmarks(features)


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
