"""The lowest y and the normaliser over y: exact for labels, chains, trees; by ascent, quadrature, sampling."""

from thalweg._lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "answers": ["Answer", "OutsideBall", "free_energy", "lowest", "lowest_other", "lowest_outside"],
        "ascent": ["gradient_ascent"],
        "behind_draws": ["complete_draws"],
        "chains": ["Best", "k_best", "marginals", "viterbi"],
        "completion": ["Candidates", "Posterior", "complete", "denoise", "posterior"],
        "exhaustive": ["Configurations", "all_configurations"],
        "importance": ["WeightedSamples", "adaptive_importance_sample", "importance_sample", "log_normaliser"],
        "message_passing": ["Beliefs", "Lowest", "max_product", "sum_product"],
        "quadrature": ["PiecewiseDensity", "normalise"],
    },
)
