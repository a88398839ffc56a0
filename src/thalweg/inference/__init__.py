"""The lowest y and the normaliser over y: gradient ascent, quadrature, importance sampling, completion."""

from thalweg._lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "ascent": ["gradient_ascent"],
        "completion": ["Candidates", "Posterior", "complete", "denoise", "posterior"],
        "importance": ["WeightedSamples", "adaptive_importance_sample", "importance_sample", "log_normaliser"],
        "quadrature": ["PiecewiseDensity", "normalise"],
    },
)
