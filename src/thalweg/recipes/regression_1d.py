"""The source's one-dimensional problems: every training method, measured against the known density."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import plotly.graph_objects as go
import torch
from torch import nn

from thalweg.data.synthetic import BRANCHES, FUNNEL, ToyProblem, mean_kl
from thalweg.energies.base import ConditionalEnergy
from thalweg.energies.densities.tilted import MixtureDensity
from thalweg.energies.networks import NetworkEnergy, mlp, source_network
from thalweg.estimators.regressor import EnergyRegressor
from thalweg.objectives.base import Batch, Objective
from thalweg.objectives.contrastive_divergence import LangevinML
from thalweg.objectives.importance_sampling import ImportanceSampling, KLDivergenceImportanceSampling
from thalweg.objectives.noise_contrastive import JointProposalNCE, RankingNCE
from thalweg.objectives.score_matching import DenoisingScoreMatching, ScoreMatching
from thalweg.recipes.base import Figure, Recipe, Result, Settings
from thalweg.training.loop import History, Plan, Trainer

N_ROWS, BATCH_SIZE = 2000, 32
N_SAMPLES, N_SAMPLES_PAPER = 256, 1024

# Label, objective for (problem, number of samples), targets on the two problems (None: reported).
Build = Callable[[ToyProblem, int], Objective]
METHODS: list[tuple[str, Build, tuple[float | None, float | None]]] = [
    ("NCE", lambda p, m: RankingNCE((0.1, 0.8), m), (0.13, 0.20)),
    ("NCE+", lambda p, m: RankingNCE((0.1, 0.8), m, label_noise=0.025), (0.13, 0.20)),
    ("ML-IS", lambda p, m: ImportanceSampling((0.2, 1.6), m), (0.13, 0.20)),
    ("KLD-IS", lambda p, m: KLDivergenceImportanceSampling(0.025, (0.2, 1.6), m), (0.13, 0.27)),
    ("DSM", lambda p, m: DenoisingScoreMatching(0.2 if p is BRANCHES else 0.075, m), (None, None)),
    ("SM", lambda p, m: ScoreMatching(), (None, None)),
    ("ML-MCMC-16", lambda p, m: LangevinML(0.05 if p is BRANCHES else 0.0125, 16, max(16, m // 4)), (None, None)),
    ("NCE, learned proposal", lambda p, m: _learned_proposal(m), (0.13, 0.20)),
]


def _learned_proposal(n_samples: int) -> JointProposalNCE:
    """A mixture on the energy's features; for the first 10 epochs it learns by its own likelihood."""
    proposal = MixtureDensity(nn.Identity(), 10, 1, n_components=4, hidden=(10, 10))
    return JointProposalNCE(proposal, n_samples, shares_features=True, warm_up=10 * (N_ROWS // BATCH_SIZE))


def run(settings: Settings) -> Result:
    started = time.monotonic()
    epochs, n_samples, n_grid = (75, N_SAMPLES, 2048) if not settings.quick else (1, 64, 256)
    if settings.paper_scale:
        n_samples = N_SAMPLES_PAPER
    figures, pictures = [], {}
    notes = ["KL(truth || model) on a grid of 2048 x 2048 points, averaged over x; all seeds, none left out."]
    divergences = dict.fromkeys(settings.seeds, 0)
    for number, problem in enumerate((BRANCHES, FUNNEL), start=1):
        densities: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {}
        for label, build, targets in METHODS:
            values, proposals = [], []
            for seed in settings.seeds:
                energy, objective, history = _train(problem, build, seed, epochs, n_samples)
                divergences[seed] += history.rollbacks
                notes += [f"data {number}, {label}, seed {seed}: {event}" for event in history.events]
                densities[label] = _log_density(energy)
                values.append(mean_kl(problem, densities[label], n_grid))
                if isinstance(objective, JointProposalNCE):
                    proposals.append(mean_kl(problem, _log_proposal(energy, objective), n_grid))
            figures.append(Figure(f"data {number}: KL, {label} (nats)", values, targets[number - 1]))
            settings.tell(f"{figures[-1].name}: {' '.join(f'{v:.3f}' for v in values)}")
            if proposals:
                figures.append(Figure(f"data {number}: KL, the proposal itself (nats)", proposals))
                gain = [p - v for p, v in zip(proposals, values, strict=True)]
                figures.append(Figure(f"data {number}: KL, proposal less energy (nats)", gain, 0.0, at_most=False))
        values = []
        for seed in settings.seeds:
            model = _train_default(problem, seed, settings.quick)
            densities["default of EnergyRegressor"] = _estimator_density(model)
            values.append(mean_kl(problem, densities["default of EnergyRegressor"], n_grid))
        figures.append(Figure(f"data {number}: KL, default of EnergyRegressor (nats)", values, 0.03))
        settings.tell(f"{figures[-1].name}: {' '.join(f'{v:.4f}' for v in values)}")
        pictures[f"Data {number}: {problem.name}"] = _picture(problem, densities)
    figures += _orderings(figures)
    figures.append(Figure("divergences, all methods", list(divergences.values())))
    return Result(figures, pictures, notes, time.monotonic() - started)


def _data(problem: ToyProblem, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return problem.sample(N_ROWS, np.random.RandomState(seed))


def _train(
    problem: ToyProblem, build: Build, seed: int, epochs: int, n_samples: int
) -> tuple[ConditionalEnergy, Objective, History]:
    """One network of the source, by one method, at the source's settings."""
    x, y = (torch.as_tensor(v, dtype=torch.float32)[:, None] for v in _data(problem, seed))
    torch.manual_seed(seed)
    objective = build(problem, n_samples)
    learned = isinstance(objective, JointProposalNCE)
    energy = _unbounded_network() if learned else source_network(1)
    plan = Plan(max_epochs=epochs, batch_size=BATCH_SIZE, learning_rate=1e-3, schedule="constant", seed=seed)
    history = Trainer(plan).fit(energy, objective, Batch(x, y))
    return energy, objective, history


def _unbounded_network() -> NetworkEnergy:
    """The network of the learned proposals: ReLU on y too.

    The other one is bounded in y, so exp(-E) has no integral over the whole line, and a proposal that learns to
    cover it widens without end.
    """
    trunk = mlp([1, 10, 10], nn.ReLU)
    return NetworkEnergy(trunk, 10, 1, y_hidden=(10, 10), hidden=10, n_residual=1, activation=nn.ReLU)


def _train_default(problem: ToyProblem, seed: int, quick: bool) -> EnergyRegressor:
    x, y = _data(problem, seed)
    model = EnergyRegressor(random_state=seed)
    if quick:
        model.set_params(n_members=2, hidden=(32,), max_epochs=2)
    return model.fit(x[:, None], y)


def _log_density(energy: ConditionalEnergy) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def log_density(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            given = energy.given(torch.as_tensor(x, dtype=torch.float32)[:, None])
            candidates = torch.as_tensor(y, dtype=torch.float32)[None, :, None]
            return -given(candidates.expand(len(x), -1, -1)).double().numpy()

    return log_density


def _log_proposal(
    energy: ConditionalEnergy, objective: JointProposalNCE
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def log_density(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            mixture = objective.proposal_features(energy, torch.as_tensor(x, dtype=torch.float32)[:, None])
            candidates = torch.as_tensor(y, dtype=torch.float32)[None, :, None]
            return objective.proposal.log_prob(mixture, candidates.expand(len(x), -1, -1)).double().numpy()

    return log_density


def _estimator_density(model: EnergyRegressor) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def log_density(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return model.predict_distribution(x[:, None]).log_prob(np.broadcast_to(y, (len(x), len(y))))

    return log_density


def _orderings(figures: list[Figure]) -> list[Figure]:
    """The source's ranking: contrast and importance sampling well before DSM, DSM before SM."""
    found = {f.name: f.mean for f in figures}
    out = []
    for number in (1, 2):

        def kl(method: str, number: int = number) -> float:
            return found[f"data {number}: KL, {method} (nats)"]

        worst_good = max(kl(m) for m in ("NCE", "NCE+", "ML-IS", "KLD-IS"))
        out.append(Figure(f"data {number}: KL of the worst of NCE, NCE+, ML-IS, KLD-IS over DSM's (ratio)",
                          [worst_good / kl("DSM")], 1.0))  # fmt: skip
        if number == 1:
            out.append(Figure("data 1: KL of DSM over SM's (ratio)", [kl("DSM") / kl("SM")], 1.0))
            others = max(kl(m) for m in ("NCE", "NCE+", "ML-IS", "KLD-IS", "DSM"))
            out.append(Figure("data 1: next to worst KL over ML-MCMC's (ratio)", [others / kl("ML-MCMC-16")], 1.0))
    return out


def _picture(
    problem: ToyProblem, densities: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]
) -> go.Figure:
    """The truth and every method's p(y|x), side by side."""
    from plotly.subplots import make_subplots

    x, y = np.linspace(-3, 3, 100), np.linspace(-3, 3, 150)
    panels: dict[str, np.ndarray] = {"truth": problem.density(x[:, None], y[None])}
    for label, log_density in densities.items():
        logits = log_density(x, y)
        log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True) - np.log(y[1] - y[0])
        panels[label] = np.exp(log_p)
    columns = 5
    rows = -(-len(panels) // columns)
    figure = make_subplots(rows, columns, subplot_titles=list(panels), shared_xaxes=True, shared_yaxes=True,
                           horizontal_spacing=0.02, vertical_spacing=0.08)  # fmt: skip
    top = float(np.quantile(panels["truth"], 0.995))
    for i, density in enumerate(panels.values()):
        # What is flat beside the truth would be a dark panel on its scale.
        own = min(top, float(np.quantile(density, 0.995)))
        heat = go.Heatmap(x=x, y=y, z=np.minimum(density, own).T, zmin=0, zmax=own, colorscale="Viridis",
                          showscale=False, hoverinfo="skip")  # fmt: skip
        figure.add_trace(heat, i // columns + 1, i % columns + 1)
    figure.update_layout(height=260 * rows, margin={"l": 40, "r": 10, "t": 40, "b": 30})
    return figure


RECIPE = Recipe(
    name="regression-1d",
    title="Eight ways to train a conditional energy, against two densities that are known",
    source="Gustafsson et al., How to Train Your Energy-Based Model for Regression (2020)",
    run=run,
    minutes=40,
)
