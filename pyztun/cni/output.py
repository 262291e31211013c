"""What the sender says, also to a stdout or stderr that is closed (python has None there then)."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO


def tell(line: str, to: TextIO | None = None) -> None:
    """Prints a line on stdout, or on ``to``, and sees it out. OSError where that fails."""
    stream = to or sys.stdout
    if stream is not None:
        stream.write(f"{line}\n")
        stream.flush()


def speak_any_locale() -> None:
    """Lets stdout and stderr show a name that their encoding lacks as an escape, not an error."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def complain(reason: str) -> None:
    """Prints the one line of an error on stderr; an error of that cannot be told to anyone."""
    if sys.stderr is not None:
        try:
            sys.stderr.write(f"pyztun-cni: {reason}\n")
            sys.stderr.flush()
        except OSError:
            forget(sys.stderr)


def forget(stream: TextIO) -> None:
    """Turns a broken stream to /dev/null: python flushes it again at exit and would complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
