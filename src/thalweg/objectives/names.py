"""The names of all objectives, without the objectives: what a command needs to know before PyTorch is loaded."""

from __future__ import annotations

# For a density of vectors, as in the catalogue.
DENSITY = ("nce", "cnce", "fce", "ml-is", "sm", "ssm", "ssm-vr", "dsm", "ed", "lsd", "cd", "pcd", "icd")
# For a density of targets given inputs.
CONDITIONAL = (
    "likelihood", "tilt-nce", "proposal-nce", "nce", "nce+", "ml-is", "kld-is", "ml-mcmc", "sm", "dsm",
)  # fmt: skip
# For a classifier; all but the first are for images.
CLASSIFYING = ("cross-entropy", "jem", "hdge", "dat")
# For answers that are gone through exactly: labels, sequences of labels, discrete variables.
ANSWERS = (
    "likelihood", "perceptron", "hinge", "log", "mce", "square-square", "square-exponential", "lvq2", "mee",
    "energy",
)  # fmt: skip
# For an order of the rows of a group.
RANKING = (
    "listwise", "lambda", "plackett-luce", "pairwise-log", "pairwise-hinge", "pairwise-square-exponential",
)  # fmt: skip
# For an energy of images.
IMAGES = ("matching", "chains", "improved-chains")
# For a generator: those that play against an energy, and variational autoencoders, alone and with an energy.
ADVERSARIAL = ("ebgan", "magan", "began", "gan", "vera", "gebm")
VARIATIONAL = ("vae", "vaebm")
GENERATIVE = ADVERSARIAL + VARIATIONAL
# Those of them that have an autoencoder.
RECONSTRUCTING = ("ebgan", "magan", "began", *VARIATIONAL)
