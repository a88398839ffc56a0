"""How an energy learns: losses, one file a family; ``catalogue`` knows them by name."""

from thalweg._lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "amortised_sampling": ["VERA"],
        "base": ["Adversarial", "Batch", "Loss", "Objective", "Player"],
        "catalogue": ["ANSWER_LOSSES", "METHODS", "Method", "conditional_objective", "ranking_objective"],
        "classification": ["CrossEntropy"],
        "classifier_contrast": ["DualAdversarialTraining", "EnergyMargin", "QueueContrast"],
        "contrastive_divergence": [
            "BoltzmannLearning",
            "ContrastiveDivergence",
            "ImprovedContrastiveDivergence",
            "LangevinML",
        ],
        "energy_discrepancy": ["EnergyDiscrepancy"],
        "energy_loss": ["EnergyLoss"],
        "energy_matching": ["EnergyMatching"],
        "evidence_bound": ["EvidenceBound"],
        "generative_adversarial": ["BEGAN", "EBGAN", "GAN", "KALE", "MAGAN", "pulling_away_term"],
        "importance_sampling": ["ImportanceSampling", "KLDivergenceImportanceSampling"],
        "joint": ["JointGame", "JointLikelihood", "jem"],
        "latent_contrast": ["LatentContrastiveDivergence"],
        "likelihood": ["GridLikelihood", "MaximumLikelihood"],
        "margin": [
            "AnswerLikelihood",
            "Hinge",
            "LVQ2",
            "MarginLoss",
            "MinimumEmpiricalError",
            "SquareExponential",
            "SquareSquare",
            "logarithmic",
            "minimum_classification_error",
            "perceptron",
        ],
        "noise": ["TargetNoise"],
        "noise_contrastive": [
            "ConditionalNCE",
            "FlowContrastiveEstimation",
            "JointProposalNCE",
            "NoiseContrastiveEstimation",
            "RankingNCE",
            "TiltNCE",
        ],
        "pseudo_likelihood": ["PseudoLikelihood", "RatioMatching"],
        "ranking": ["LambdaRanking", "PairwiseRanking", "PlackettLuceRanking", "SoftmaxRanking", "ndcg_changes"],
        "score_matching": ["DenoisingScoreMatching", "ScoreMatching", "SlicedScoreMatching"],
        "stein": ["SteinDiscrepancy"],
    },
)
