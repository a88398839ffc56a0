"""Published systems, each put together from the parts in about a page."""

from thalweg.recipes import (
    age,
    boltzmann,
    boxes_2d,
    boxes_3d,
    composition,
    consistency,
    continual,
    decisions,
    density_2d,
    energy_matching,
    energy_ood,
    faces,
    hdge,
    head_pose,
    igebm,
    jem,
    losses,
    narx,
    regression_1d,
    robustness,
    semi_supervised,
    several_answers,
    several_futures,
    tanks,
)
from thalweg.recipes.base import Figure, Recipe, Result, Settings

_MODULES = (
    regression_1d,
    narx,
    tanks,
    age,
    head_pose,
    boxes_2d,
    boxes_3d,
    density_2d,
    igebm,
    energy_matching,
    boltzmann,
    composition,
    consistency,
    continual,
    jem,
    hdge,
    semi_supervised,
    energy_ood,
    robustness,
    several_answers,
    several_futures,
    decisions,
    losses,
    faces,
)
RECIPES: dict[str, Recipe] = {module.RECIPE.name: module.RECIPE for module in _MODULES}

__all__ = ["RECIPES", "Figure", "Recipe", "Result", "Settings"]
