"""The settings of every task: its options, defaults, help and bounds. Nothing here needs NumPy or PyTorch."""

from thalweg.runs.settings.base import RunSettings, Settings, Verb, option

__all__ = ["RunSettings", "Settings", "Verb", "option"]
