"""Kernels, one step each, the chains that run them, replay buffers and annealing."""

from thalweg._lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "adaptation": ["Adapted", "TARGETS", "adapt_step_size"],
        "annealing": [
            "Bracket",
            "LogNormaliser",
            "annealed_importance_sampling",
            "bracket_log_normaliser",
            "reverse_annealed_importance_sampling",
            "step_sizes",
            "summarised",
        ],
        "block_gibbs": ["BlockGibbs"],
        "buffer": ["Chains", "FromData", "FromNoise", "ReplayBuffer", "Start"],
        "chain": [
            "Draws",
            "Kernel",
            "Place",
            "State",
            "accept",
            "check_space",
            "initial_state",
            "run_chain",
            "sample_chain",
        ],
        "diagnostics": ["Diagnostics", "diagnose", "pareto_k"],
        "flow": ["Heun"],
        "gibbs": ["GibbsWithGradients", "SingleSiteGibbs", "draw"],
        "hmc": ["HMC"],
        "langevin": ["ColdLangevin", "Langevin", "MALA"],
        "latent_space": ["LatentSampler"],
        "layered_annealing": ["anneal_machine", "bracket_machine"],
        "layered_tempering": ["TemperedChains", "TemperedMachine"],
        "random_walk": ["RandomWalk"],
        "tempering": ["ParallelTempering", "exchanged", "geometric_temperatures"],
    },
)
