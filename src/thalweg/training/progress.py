"""Progress of a run: a bar with the loss and the held-out figure, or silence."""

from __future__ import annotations

from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress(Protocol):
    """What a training reports to: epochs done, records, and messages."""

    def start(self, n_epochs: int, done: int) -> None: ...
    def update(self, record: dict[str, float]) -> None: ...
    def message(self, text: str) -> None: ...
    def stop(self) -> None: ...


class SilentProgress:
    """Reports nothing."""

    def start(self, n_epochs: int, done: int) -> None: ...

    def update(self, record: dict[str, float]) -> None: ...

    def message(self, text: str) -> None: ...

    def stop(self) -> None: ...


class Messages(SilentProgress):
    """Keeps the messages, and shows nothing."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


class BarProgress:
    """A bar on the console.

    Args:
        figure: name of the validation figure.
        offset: what to add to it, and to the loss, to have them in the user's units.
        n_members: number of members of an ensemble, whose loss is the sum of theirs.
        label: what is being done.
        with_best: show the best figure too, to which training goes back.
    """

    def __init__(
        self,
        figure: str = "held-out NLL",
        offset: float = 0.0,
        n_members: int = 1,
        console: Console | None = None,
        label: str = "fit",
        with_best: bool = True,
    ):
        self.figure = figure
        self.offset = offset
        self.n_members = n_members
        self.console = console or Console(stderr=True)
        self.label = label
        self.with_best = with_best
        self.bar: RichProgress | None = None

    def start(self, n_epochs: int, done: int) -> None:
        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
        )
        self.bar.start()
        self.task = self.bar.add_task(self.label, total=n_epochs, completed=done, figures="")

    def update(self, record: dict[str, float]) -> None:
        assert self.bar is not None
        # In a short epoch of players in turn it may have been another one's.
        figures = ""
        if "loss" in record:
            figures = f"loss {record['loss'] / self.n_members + self.offset:.3f}"
        if "best" in record:
            figures += f"  {self.figure} {record['validation'] + self.offset:.4f}"
            if self.with_best:
                figures += f" (best {record['best'] + self.offset:.4f})"
        self.bar.update(self.task, completed=record["epoch"], figures=figures)

    def message(self, text: str) -> None:
        self.console.print(f"[yellow]{text}[/yellow]")

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
