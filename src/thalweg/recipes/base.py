"""What a recipe is, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from thalweg.data.images import Images, digits, read_split


@dataclass(frozen=True)
class Figure:
    """One number that a recipe measures, for every seed, and the target it must reach.

    Attributes:
        name: what was measured, with its unit.
        values: one for each seed.
        target: the bound, None if the figure is only reported.
        at_most: whether the bound is an upper one.
    """

    name: str
    values: Sequence[float]
    target: float | None = None
    at_most: bool = True

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def reached(self) -> bool | None:
        """Whether the mean over all seeds reaches the target; None if there is none."""
        if self.target is None:
            return None
        return bool(self.mean <= self.target if self.at_most else self.mean >= self.target)


@dataclass
class Result:
    """What a recipe hands back.

    Attributes:
        figures: the numbers.
        pictures: Plotly figures by title.
        notes: sentences that a reader of the numbers needs.
        seconds: how long it took.
    """

    figures: list[Figure]
    pictures: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Settings:
    """How to run a recipe.

    Attributes:
        seeds: one run for each.
        data: a folder with real data, or a file of it, for the recipes that can use it.
        quick: a small run that only shows that the recipe works; its targets do not apply.
        paper_scale: the source's own numbers of samples, hours on two cores, or for a GPU.
        tell: called with a line of progress.
    """

    seeds: Sequence[int] = (0, 1, 2)
    data: Path | None = None
    quick: bool = False
    paper_scale: bool = False
    tell: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class Recipe:
    """A published system put together from the parts.

    Attributes:
        name: as given on the command line.
        title: one line that says what it shows.
        source: where it comes from.
        run: does it.
        minutes: about how long it takes on two cores, at full size.
        compare: does it by every method of training that the source compares, where it compares some.
    """

    name: str
    title: str
    source: str
    run: Callable[[Settings], Result]
    minutes: float
    compare: Callable[[Settings], Result] | None = None


def archive_in(data: Path) -> Path:
    """The ``.npz`` of images that was named, or the one of digits in a folder.

    Raises:
        ValueError: if there is none.
    """
    path = data if data.is_file() else data / "mnist_12k.npz"
    if not path.exists():
        raise ValueError(f"{data} holds no {path.name} (X_train, y_train, X_test, y_test): name another .npz")
    return path


def split_for(settings: Settings) -> tuple[Images, Images]:
    """Digits of 8 x 8, or those of the user's data: training and test images, few of them in a quick run.

    Raises:
        ValueError: if there are no labels from 0 to 9.
    """
    train, test = digits(seed=0) if settings.data is None else read_split(archive_in(settings.data))
    if train.labels is None or test.labels is None or set(train.labels) != set(range(10)):
        raise ValueError("these images have no labels from 0 to 9 (y_train, y_test)")
    return (train.rows(slice(0, 400)), test.rows(slice(0, 100))) if settings.quick else (train, test)
