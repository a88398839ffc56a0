"""The page of pictures."""

from thalweg.report.boltzmann import boltzmann_report, write_boltzmann_report
from thalweg.report.density import density_report, write_density_report
from thalweg.report.density_compare import write_comparison_page
from thalweg.report.images import image_report, write_image_report
from thalweg.report.page import Card, Tile, render_page
from thalweg.report.recipe import write_recipe_page
from thalweg.report.regression import regression_report, write_regression_report

__all__ = [
    "Card",
    "Tile",
    "boltzmann_report",
    "density_report",
    "image_report",
    "regression_report",
    "render_page",
    "write_boltzmann_report",
    "write_comparison_page",
    "write_density_report",
    "write_image_report",
    "write_recipe_page",
    "write_regression_report",
]
