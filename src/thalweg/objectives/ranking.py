"""Learning to rank: losses of lists of items, by pairs of them or as a whole."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.energies.networks.ranking_members import RankingMembers
from thalweg.objectives.base import AnyEnergy, Batch, Objective, check_rows, evaluating
from thalweg.objectives.margin import Hinge, Shape, SquareExponential, logarithmic

# Losses of the energy of the better of two items and that of the worse one.
_SHAPES: dict[str, Shape] = {
    "log": logarithmic,
    "hinge": Hinge(),
    "square-exponential": SquareExponential(),
}


class _RankingObjective(Objective):
    """A loss of lists of items that compete, such as the answers to one query.

    A batch's x ``[G, L, D]`` are G lists of at most L items, and its y ``[G, L]`` how relevant each is: the more,
    the better, not negative, and NaN or negative where a shorter list is padded. The energy is one of a single
    item ``[*batch, D]``, the lower the better. What is padded changes nothing, and neither does the order of the
    items. A list whose items are all equally relevant has a loss of 0. Each member of an ensemble
    (:class:`~thalweg.energies.RankingMembers`) learns by a loss of its own.
    """

    def check(self, energy: AnyEnergy, batch: Batch) -> None:
        """Refuse lists that are not of these shapes, that all teach nothing, or that the energy does not take."""
        check_rows(batch)
        if (
            batch.y.dim() != 2
            or not isinstance(batch.x, Tensor)
            or batch.x.dim() < 3
            or batch.x.shape[:2] != batch.y.shape
        ):
            found = list(batch.x.shape) if isinstance(batch.x, Tensor) else None
            raise ValueError(
                f"x must be [lists, items, D] and y [lists, items]; got x of shape {found} and y of shape "
                f"{list(batch.y.shape)}"
            )
        relevance, known = _known(batch.y)
        if not bool(_is_better(relevance, known).flatten(1).any()):
            raise ValueError("no list holds items of different relevance: there is nothing to learn from")
        with torch.no_grad(), evaluating(energy):
            shape = list(energy(batch.x[:2]).shape)
        if shape != list(batch.y[:2].shape):
            raise ValueError(
                f"{type(energy).__name__} must return one energy for each item, {list(batch.y[:2].shape)}, "
                f"got {shape}"
            )

    def per_row(self, energy: AnyEnergy, batch: Batch, generator: torch.Generator | None) -> Tensor:
        """Loss of each list ``[G]``, or ``[G, n_members]`` for an ensemble."""
        relevance, known = _known(batch.y)
        # Columns that are padded in every list of the batch cost no pairs, and padded items no evaluation.
        used = known.any(0)
        relevance, known = relevance[:, used], known[:, used]
        items = batch.x[:, used][known]
        found = energy.member_energies(items) if isinstance(energy, RankingMembers) else energy(items)[None]
        energies = found.new_zeros(len(found), *known.shape)
        energies[:, known] = found
        better = _is_better(relevance, known)
        loss = self._of_lists(energies, relevance, known, better)
        loss = torch.where(better.flatten(1).any(1), loss, torch.zeros_like(loss))
        return loss.T if isinstance(energy, RankingMembers) else loss[0]

    def _of_lists(self, energies: Tensor, relevance: Tensor, known: Tensor, better: Tensor) -> Tensor:
        """The loss of each list ``[M, G]``, finite also where a list is without a pair.

        Args:
            energies: ``[M, G, L]``, 0 where padded.
            relevance: ``[G, L]``, 0 where padded.
            known: False where padded ``[G, L]``.
            better: whether the first item is more relevant than the second ``[G, L, L]``.
        """
        raise NotImplementedError


class PairwiseRanking(_RankingObjective):
    """The mean over pairs of a list of a loss of E(better item) and E(worse item); equal relevance makes no pair.

    Args:
        shape: "log", log(1 + exp(E(better) - E(worse))) [Burges 2005]; "hinge", max(0, 1 + E(better) - E(worse))
            [Joachims 2002]; or "square-exponential", E(better)^2 + exp(-E(worse)) [LeCun 2006], under which
            energies have a zero, and those of the best items come near it.

    Raises:
        ValueError: for another shape.

    Source: [LeCun 2006, sec. 2.2.3], where these are losses of a right and a wrong answer.
    """

    def __init__(self, shape: str = "log"):
        super().__init__()
        if shape not in _SHAPES:
            raise ValueError(f"shape must be one of {', '.join(_SHAPES)}; got {shape!r}")
        self.shape = shape

    def _of_lists(self, energies: Tensor, relevance: Tensor, known: Tensor, better: Tensor) -> Tensor:
        losses = _SHAPES[self.shape](energies.unsqueeze(-1), energies.unsqueeze(-2))
        return torch.where(better, losses, 0.0).flatten(2).sum(-1) / better.flatten(1).sum(1).clamp_min(1)


class LambdaRanking(_RankingObjective):
    """The log loss of pairs, each weighted by how much NDCG would change if the two swapped their ranks.

    The ranks are those of the present energies, and no gradient goes through the weights: mistakes at the top of a
    list count most.

    Source: [Burges 2010]; which bound on NDCG it lowers is in [Wang 2018].
    """

    def _of_lists(self, energies: Tensor, relevance: Tensor, known: Tensor, better: Tensor) -> Tensor:
        with torch.no_grad():
            weights = torch.where(better, ndcg_changes(energies, relevance, known), 0.0)
        losses = logarithmic(energies.unsqueeze(-1), energies.unsqueeze(-2))
        return (weights * losses).flatten(2).sum(-1)


class SoftmaxRanking(_RankingObjective):
    """Minus the log likelihood of drawing an item by exp(-E), where items are drawn in proportion to their gains.

    The cross-entropy of two distributions of which item comes first: of the gains 2^relevance - 1, and of exp(-E)
    normalised over the list. The normaliser is a sum over items, so the energy is trained by its exact likelihood.

    Source: [Cao 2007], who take exp(relevance) for the gains; [Bruch 2019] for gains, a bound on NDCG.
    """

    def _of_lists(self, energies: Tensor, relevance: Tensor, known: Tensor, better: Tensor) -> Tensor:
        gain = torch.exp2(relevance) - 1
        shares = gain / gain.sum(1, keepdim=True).clamp_min(1e-12)
        normaliser = torch.logsumexp((-energies).masked_fill(~known, -torch.inf), -1)
        return (shares * energies).sum(-1) + normaliser


class PlackettLuceRanking(_RankingObjective):
    """Minus the log likelihood of the order by relevance, one item drawn after the other by exp(-E).

    Each item is drawn from itself and all those that are less relevant, so that items of equal relevance are not
    compared. The mean over the items that have a less relevant one.

    Source: ListMLE [Xia 2008].
    """

    def _of_lists(self, energies: Tensor, relevance: Tensor, known: Tensor, better: Tensor) -> Tensor:
        itself = torch.eye(better.shape[-1], dtype=torch.bool, device=better.device)
        left = (-energies).unsqueeze(-2).expand(*energies.shape, -1).masked_fill(~(better | itself), -torch.inf)
        losses = energies + torch.logsumexp(left, -1)
        has_worse = better.any(-1)
        return torch.where(has_worse, losses, 0.0).sum(-1) / has_worse.sum(-1).clamp_min(1)


def ndcg_changes(energies: Tensor, relevance: Tensor, known: Tensor) -> Tensor:
    """How much NDCG changes if two items swap their ranks, which are those of rising energy ``[M, G, L, L]``.

    Args:
        energies: ``[M, G, L]``.
        relevance: ``[G, L]``.
        known: False where a list is padded ``[G, L]``.
    """
    gain = torch.where(known, torch.exp2(relevance.to(energies.dtype)) - 1, 0.0)
    order = energies.masked_fill(~known, torch.inf).argsort(dim=-1, stable=True)
    discounts = 1 / torch.log2(torch.arange(2, gain.shape[-1] + 2, device=gain.device, dtype=gain.dtype))
    own = torch.empty_like(energies).scatter_(-1, order, discounts.expand_as(energies))
    ideal = (gain.sort(-1, descending=True).values * discounts).sum(-1).clamp_min(1e-12)
    of_gains = (gain.unsqueeze(-1) - gain.unsqueeze(-2)).abs() / ideal[:, None, None]
    return of_gains * (own.unsqueeze(-1) - own.unsqueeze(-2)).abs()


def _known(y: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance ``[G, L]``, 0 where padded; and where it is not padded."""
    known = y >= 0
    return torch.where(known, y, torch.zeros_like(y)), known


def _is_better(relevance: Tensor, known: Tensor) -> Tensor:
    """Whether the first item of a pair is more relevant than the second ``[G, L, L]``."""
    pairs = known.unsqueeze(-1) & known.unsqueeze(-2)
    return (relevance.unsqueeze(-1) > relevance.unsqueeze(-2)) & pairs
