"""A progress bar on stderr while a census is taken, if a person looks at it."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyztun.tools.procwalk import Progress

EVERY = 32
"""How many steps lie between two words to the bar, each of which takes a lock."""


@contextmanager
def progress() -> Iterator[Progress]:
    """What Walk is to tell how far it is; a bar only on a terminal that can take it back."""
    if sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda _what, _done, _all: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("names    ", total=None)

        def tell(what: str, done: int, total: int) -> None:
            if done % EVERY == 0:
                bar.update(task, description=f"{what:<9}", completed=done, total=total)

        yield tell
