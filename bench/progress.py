"""The progress bar, on a terminal only.

It is drawn between two turns and at no other time: a thread that redraws it, as rich makes one
unless told otherwise, would run in the middle of a measurement.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 0.1
"""Seconds between two drawings: to draw costs a millisecond and the caches of whoever is next."""


class Step(Protocol):
    def __call__(self, text: str = "") -> None:
        """One more is done. TEXT says what."""


@contextmanager
def bar(title: str, total: int, console: Console | None = None) -> Iterator[Step]:
    """A bar that the yielded function moves on; nothing where stderr is no terminal."""
    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    shown = Progress(
        *columns,
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not console.is_terminal,
    )
    drawn = monotonic()
    with shown:
        task = shown.add_task(title, total=total)

        def step(text: str = "") -> None:
            nonlocal drawn
            shown.update(task, advance=1, description=f"{title}: {text}" if text else title)
            if monotonic() - drawn >= EVERY:
                shown.refresh()
                drawn = monotonic()

        yield step
