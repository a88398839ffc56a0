"""The command ``thalweg``."""

from thalweg.cli.main import main

__all__ = ["main"]
