"""Published systems, each put together from the parts in about a page."""

from thalweg.recipes.base import Figure, Recipe, Result, Settings

RECIPES: dict[str, Recipe] = {}

__all__ = ["RECIPES", "Figure", "Recipe", "Result", "Settings"]
