"""Published systems, each put together from the parts in about a page."""

from thalweg.recipes import narx, regression_1d
from thalweg.recipes.base import Figure, Recipe, Result, Settings

RECIPES: dict[str, Recipe] = {module.RECIPE.name: module.RECIPE for module in (regression_1d, narx)}

__all__ = ["RECIPES", "Figure", "Recipe", "Result", "Settings"]
