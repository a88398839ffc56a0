"""How a density of mixed columns is trained: its networks, block by block, then a Gaussian mixture's share."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold
from torch import Tensor, nn

from thalweg._torch_state import seeded
from thalweg.data.rows import RowCoder, edges_of
from thalweg.energies.densities import GaussianMixtureEnergy, choose_gaussian_mixture, fit_gaussian_mixture
from thalweg.energies.densities.any_order import (
    AnyOrderDensity,
    Column,
    ConditionalBlock,
    RowEncoding,
    mixture_conditional,
)
from thalweg.estimators._held_out import NestedFigure, judging_rows
from thalweg.objectives.base import Batch
from thalweg.objectives.masked_likelihood import MaskedLikelihood, block_losses, given_columns
from thalweg.training.history import History
from thalweg.training.loop import Plan, Trainer
from thalweg.training.progress import Progress

# Columns whose networks train as one product, and the width of what all networks of a wide table see.
_COLUMNS_IN_BLOCK, _WIDTH = 8, 256
Parts = list[tuple[GaussianMixtureEnergy, np.ndarray]]
# Fewer rows than these say nothing of a Gaussian mixture's share; of what is given at random more take long.
_LEAST_JUDGES, _MOST_JUDGES = 20, 300


class Fitted(NamedTuple):
    """What a training leaves.

    Attributes:
        density: over standardised rows.
        held_out: log p of each cell given those before it ``[rows, columns]``, by networks and a mixture that did
            not learn from the row; 0 where unknown, NaN for a row that all networks have learned from.
        histories: of the blocks.
    """

    density: AnyOrderDensity
    held_out: np.ndarray
    histories: dict[str, History]


def columns_of(coder: RowCoder, z: np.ndarray) -> list[Column]:
    """What the density is told of each column of standardised rows ``[n, D]``."""
    n, n_columns = z.shape
    # With few rows in a piece its slope is noise.
    n_pieces = min(16, max(3, n // 60), max(0, _WIDTH // n_columns - 2))
    found = []
    for d, column in enumerate(coder.columns):
        log_unseen = -math.log(column["n_known"] + 2.0)
        if coder.n_levels(d):
            # A column that says everything by its kind has no level that was not seen.
            log_unseen = -math.inf if column["kind"] == "truth" else log_unseen
            found.append(Column(coder.n_levels(d), coder.cell(d), log_unseen=log_unseen))
            continue
        known = z[~np.isnan(z[:, d]), d]
        atoms = (np.asarray(column["atoms"]) - column["location"]) / column["scale"]
        atoms = np.arcsinh(atoms) if column["curved"] else atoms
        ends = [(end - column["location"]) / column["scale"] for end in column["range"]]
        ends = np.arcsinh(ends).tolist() if column["curved"] else ends
        least, most = (
            end if value in column["atoms"] else None for end, value in zip(ends, column["range"], strict=True)
        )
        found.append(
            Column(
                cell=coder.cell(d),
                curved=column["curved"],
                atoms=tuple(atoms.tolist()),
                limits=(least, most),
                edges=tuple(edges_of(known, n_pieces)),
                mean=float(known.mean()),
                std=max(float(known.std()), 1e-6),
            )
        )
    return found


def build(columns: Sequence[Column], n_members: int, hidden: Sequence[int]) -> AnyOrderDensity:
    """The density with first weights and no mixture."""
    encoding = RowEncoding(columns)
    blocks = [ConditionalBlock(which, columns, encoding, n_members, hidden) for which in _blocks(columns)]
    numbers = [d for d, c in enumerate(columns) if not c.n_levels]
    return AnyOrderDensity(columns, blocks, numbers)


def _blocks(columns: Sequence[Column]) -> list[list[int]]:
    """Columns that train together: numbers, numbers with atoms one by one, and levels by how many there are."""
    smooth = [d for d, c in enumerate(columns) if not c.n_levels and not c.atoms]
    levels = sorted((d for d, c in enumerate(columns) if c.n_levels), key=lambda d: columns[d].n_levels)
    found = [[d] for d, c in enumerate(columns) if c.atoms]
    for group in (smooth, levels):
        found += [group[i : i + _COLUMNS_IN_BLOCK] for i in range(0, len(group), _COLUMNS_IN_BLOCK)]
    return sorted(found)


class HeldOutColumns(NestedFigure):
    """The negative log-likelihood of each network of a block on the rows of its own fold.

    Each row judges twice: with the columns before it given, as the joint density asks, and with some at random.
    The later a column the more the first counts: what is before an early one says little of how others are used.

    Args:
        block: whose networks are judged.
        x: standardised rows ``[n, D]``, NaN where unknown.
        fold: of each row ``[n]``.
        seed: of the order of the rows, of what is given at random, and of the places of rounded numbers.

    Attributes:
        given: which columns each network is given of its rows, bool ``[K * members, rows, D]``.
    """

    def __init__(self, block: ConditionalBlock, x: Tensor, fold: np.ndarray, seed: int):
        self.x, self.fold, self.seed = x, fold, seed
        known = ~x[:, block.which].isnan().numpy()
        own = (fold[:, None] == np.arange(block.n_members))[:, None] & known[..., None]  # [n, K, members]
        # A column of which a fold has no value is judged where it has some.
        own = np.where(own.any(0), own, known[..., None]).reshape(len(x), -1)
        rows, weights = judging_rows(own, None, seed)
        place = torch.tensor(block.which).repeat_interleave(block.n_members) / max(1, x.shape[1] - 1)
        parts = torch.stack([place, 1 - place], 1) if x.shape[1] > 1 else torch.tensor([[1.0, 0.0]])
        self.rows = rows.repeat(1, 2)
        self.weights = torch.cat([weights * parts[:, :1], weights * parts[:, 1:]], 1)
        generator = torch.Generator().manual_seed(seed)
        twice = [given_columns(block, rows.shape[1] * block.n_members, part, generator) for part in (0.0, 1.0)]
        shape = (len(block.which) * block.n_members, rows.shape[1], -1)
        self.given = torch.cat([given.reshape(shape) for given in twice], 1).bool()

    def _of_rows(self, energy: nn.Module) -> tuple[Tensor, Tensor]:
        assert isinstance(energy, ConditionalBlock)
        generator, device = torch.Generator().manual_seed(self.seed), energy.others.device
        nets, found = (len(energy.which), energy.n_members), []
        for rows, given in zip(self.rows.split(512, 1), self.given.split(512, 1), strict=True):
            x = self.x[rows].to(device)
            features = energy.encoding(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            features = features * given.to(device)[..., energy.encoding.owner]
            x = x.unflatten(0, nets)
            values = torch.stack([x[k, ..., d] for k, d in enumerate(energy.which)]).transpose(1, 2)
            loss, _ = block_losses(energy, features.unflatten(0, nets), values, generator)
            found.append(loss.cpu().transpose(1, 2).flatten(0, 1).T)
        return torch.cat(found), self.weights.T

    def _order(self, n: int) -> Tensor:
        return torch.arange(n) % (self.rows.shape[1] // 2)

    def held_out(self, block: ConditionalBlock) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """log p of each cell of the block by the network that did not learn from the row; NaN if there is none.

        Returns:
            log p given the columns before ``[n, K]``, log p given some at random ``[n, K]``, and which columns
            these were, bool ``[n, K, D]``.
        """
        half = self.rows.shape[1] // 2
        shape = (len(self.fold), len(block.which))
        before, at_random = np.full(shape, np.nan), np.full(shape, np.nan)
        which = np.zeros((*shape, self.given.shape[2]), bool)
        for net, rows in enumerate(self.rows[:, :half].numpy()):
            k, member = divmod(net, block.n_members)
            own = self.fold[rows] == member
            before[rows[own], k] = -self.judged[:half, net].numpy()[own]
            at_random[rows[own], k] = -self.judged[half:, net].numpy()[own]
            which[rows[own], k] = self.given[net, half:].numpy()[own]
        return before, at_random, which


def fit_any_order(
    z: np.ndarray,
    coder: RowCoder,
    plan: Plan,
    *,
    n_members: int,
    hidden: Sequence[int],
    validation_fraction: float,
    seed: int,
    fabric: Fabric,
    folder: Path | None,
    resume: bool,
    progress: Any,
) -> Fitted:
    """Train the networks block by block, then find the mixture's shares.

    Args:
        z: standardised rows ``[n, D]``, NaN where unknown.
        plan: of the training of each block.
        progress: maps the columns of a block to a :class:`Progress`, or None for none.
    """
    columns = columns_of(coder, z)
    with seeded(seed):
        density = build(columns, n_members, hidden)
    x = torch.as_tensor(z, dtype=torch.float32)
    fold = folds_of(len(z), n_members, validation_fraction, seed)
    data = Batch(None, torch.cat([x, torch.from_numpy(fold).float()[:, None]], 1))
    own, other, histories = np.zeros(z.shape), np.zeros(z.shape), {}
    given = np.zeros((*z.shape, z.shape[1]), bool)
    for block in density.blocks:
        validate = HeldOutColumns(block, x, fold, seed)
        place = None if folder is None else folder / f"column-{block.which[0]}"
        shown: Progress | None = None if progress is None else progress(block.which)
        trainer = Trainer(plan, fabric, place, shown)
        name = f"column {', '.join(str(d + 1) for d in block.which)}"
        histories[name] = trainer.fit(block, MaskedLikelihood(), data, validate, resume=resume)
        block.cpu().eval()
        gain, which = _gain_of_all(block, x, fold), block.which
        own[:, which], other[:, which], given[:, which] = validate.held_out(block)
        own[:, which], other[:, which] = own[:, which] + gain, other[:, which] + gain
    own = np.where(np.isnan(z), 0.0, own)
    held_out = _with_mixture(density, x, own, other, given, seed)
    return Fitted(density, held_out, histories)


def folds_of(n: int, n_members: int, validation_fraction: float, seed: int) -> np.ndarray:
    """The fold of each row ``[n]``: one for each network, or for a single network 0 for the rows that judge it."""
    order = np.random.RandomState(seed).permutation(n)
    if n_members > 1:
        return order % n_members
    return (order >= max(1, round(validation_fraction * n))).astype(int)


def _gain_of_all(block: ConditionalBlock, x: Tensor, fold: np.ndarray) -> np.ndarray:
    """What a column's networks together gain over one alone ``[K]``, in nats, on rows that they have learned from.

    Those say it well enough: there they differ a little less than on new ones. The network that has not learned
    from a row is left out: beside the others it differs more than new rows make networks differ.
    """
    if block.n_members < 3:
        return np.zeros(len(block.which))
    total, count = torch.zeros(len(block.which)), torch.zeros(len(block.which))
    n_columns = block.encoding.n_columns
    before = (torch.arange(n_columns) < torch.tensor(block.which)[:, None]).float()[:, block.encoding.owner]
    with torch.no_grad():
        for some in torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:2000].split(500):
            rows, own = x[some], torch.from_numpy(fold)[some, None] == torch.arange(block.n_members)
            values = rows[:, block.which].T[..., None]
            features = block.encoding(rows) * before[:, None, None]
            loss, _ = block_losses(block, features, values, torch.Generator().manual_seed(0))
            n_others = block.n_members - 1
            together = torch.logsumexp((-loss).masked_fill(own, -torch.inf), -1) - math.log(n_others)
            gain = together + loss.masked_fill(own, 0.0).sum(-1) / n_others
            known = ~values[..., 0].isnan()
            total, count = total + torch.where(known, gain, 0.0).sum(1), count + known.sum(1)
    return (total / count.clamp(min=1)).numpy()


# -- the Gaussian mixture's share ---------------------------------------------------------------------------


def _with_mixture(
    density: AnyOrderDensity, x: Tensor, own: np.ndarray, at_random: np.ndarray, given: np.ndarray, seed: int
) -> np.ndarray:
    """Give the density a mixture of its numbers, in the shares that held-out rows like best; their log p then.

    Args:
        own: log p of each cell given those before it ``[n, D]``, by networks that did not learn from the row.
        at_random: the same given others, which are ``given`` ``[n, D, D]``.
    """
    numbers = density.numbers
    whole = ~x[:, numbers].isnan().any(1).numpy()
    judges = whole & ~np.isnan(own).any(1)
    if not numbers or judges.sum() < _LEAST_JUDGES:
        return own
    generator = torch.Generator().manual_seed(seed)
    filled = x if whole.all() else density.complete(x, generator)
    # Rounded columns must be spread over their cells: a narrow component is highest in the middle of a cell.
    cells = torch.tensor([density.columns[d].cell for d in numbers])
    spread = filled[:, numbers] + cells * (torch.rand((len(x), len(numbers)), generator=generator) - 0.5)
    mixture, parts = mixtures_of(spread, seed)
    before, beside = np.full((len(x), len(numbers)), -np.inf), np.full((len(x), len(numbers)), np.nan)
    for part, left in parts:
        z = spread[left].double()
        some = left[judges[left]][: _MOST_JUDGES // len(parts)]
        for k, d in enumerate(numbers):
            before[left, k] = part.conditional_log_prob(z, k)
            known = torch.from_numpy(given[np.ix_(some, [d], numbers)][:, 0])
            known[:, k] = False
            beside[some, k] = mixture_log_prob(part, spread[some].double(), k, known)
    # A Gaussian knows no limit and no mass on atoms.
    apart = np.array([bool(density.columns[d].atoms) for d in numbers])
    for others in (before, beside):
        others[:, apart] = -np.inf
    # The mixture's conditionals in the order of all columns are those in the order of the numbers.
    shares, mixed = stacked(np.where(judges[:, None], own[:, numbers], np.nan), before, seed)
    asked = at_random[:, numbers] + np.where(np.isnan(beside), np.nan, 0.0)
    levels = np.array([bool(c.n_levels) for c in density.columns])
    told = (given & levels & ~np.isnan(x.numpy())[:, None])[:, numbers].any(2)
    later: list[list[float]] = [[best_share(asked[r, k], beside[r, k]) if r.any() else 0.0
              for k, r in enumerate((np.isfinite(asked) & (told == known)).T)]
             for known in (False, True)]  # fmt: skip
    density.mixture = mixture
    density.shares[:, numbers] = torch.as_tensor(
        np.where(apart, 0.0, np.array([shares, *later])), dtype=torch.float32
    )
    found = own.copy()
    found[np.ix_(judges, numbers)] = mixed[judges]
    return found


def mixtures_of(z: Tensor, seed: int) -> tuple[GaussianMixtureEnergy, Parts]:
    """A Gaussian mixture of rows z ``[n, D]``, and for each fifth a mixture of the other rows with its rows."""
    z = z.double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        settings = choose_gaussian_mixture(z, seed)
        mixture = fit_gaussian_mixture(z, seed=seed, n_init=3, **settings)
        folds = KFold(5, shuffle=True, random_state=seed).split(z)
        return mixture, [(fit_gaussian_mixture(z[kept], seed=seed, **settings), left) for kept, left in folds]


def mixture_log_prob(mixture: GaussianMixtureEnergy, x: Tensor, d: int, known: Tensor) -> np.ndarray:
    """log p(x_d | the known ones of the others) of a mixture ``[n]`` (see :func:`mixture_conditional`)."""
    log_weights, means, stds = mixture_conditional(mixture, x, d, known)
    z = (x[:, d, None] - means) / stds
    log_prob = torch.logsumexp(log_weights - 0.5 * z.square() - stds.log(), 1)
    return (log_prob - 0.5 * math.log(2 * math.pi)).numpy()


def stacked(own: np.ndarray, other: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two densities of each column mixed in the shares that held-out rows like best.

    Args:
        own, other: log densities of each cell ``[n, D]``; NaN in ``own`` of rows that can't judge.

    Returns:
        The share of the other density in each column ``[D]``, and the log densities of the mixtures ``[n, D]``: of
        each fifth of the rows in the share that the rest likes best, so that no row chose what judges it.
    """
    judge = np.flatnonzero(~np.isnan(own).any(1))
    shares = np.array([best_share(own[judge, d], other[judge, d]) for d in range(own.shape[1])])
    mixed = np.full(own.shape, np.nan)
    n_parts = min(5, len(judge))
    part = np.random.RandomState(seed).permutation(len(judge)) % n_parts
    for k in range(n_parts):
        # A single row has no others to choose for it.
        kept, left = judge[(part != k) | (n_parts == 1)], judge[part == k]
        for d in range(own.shape[1]):
            share = best_share(own[kept, d], other[kept, d])
            mixed[left, d] = np.logaddexp(np.log1p(-share) + own[left, d], np.log(share) + other[left, d])
    return shares, mixed


def best_share(own: np.ndarray, other: np.ndarray, n_steps: int = 100) -> float:
    """The share of the other density in a mixture of the two that rows like best, by EM.

    Args:
        own, other: log densities of rows ``[n]``.
    """
    share = 0.5
    for _ in range(n_steps):
        share = float(expit(np.log(share) + other - np.log1p(-share) - own).mean())
        share = min(max(share, 1e-6), 1 - 1e-6)
    return share


def empty_mixture(n_components: int, d: int, full: bool = True) -> GaussianMixtureEnergy:
    """To be filled with tensors."""
    scales = torch.eye(d).repeat(n_components, 1, 1) if full else torch.ones(n_components, d)
    return GaussianMixtureEnergy(torch.zeros(n_components, d), scales)
