"""The one training loop, its steps, its guard, checkpoints and saved models."""

from thalweg._lazy import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "averaging": ["Kept"],
        "class_machines": ["class_energies", "class_offsets", "machines_of_classes"],
        "feed": ["Feed", "Stages"],
        "guard": ["Diverged", "DivergenceError", "Guard"],
        "history": ["History"],
        "loop": ["Trainer"],
        "moments": ["MomentStep", "Moments", "binary_draws", "machine_plan"],
        "plan": ["Plan"],
        "pretraining": ["grow_belief_network", "pretrain", "up_down"],
        "progress": ["BarProgress", "Messages", "Progress", "SilentProgress"],
        "step": ["GradientStep", "PlayersStep", "Step"],
    },
)
