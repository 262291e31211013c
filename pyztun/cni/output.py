"""What the sender says, also to a stdout or stderr that is closed (python has None there then)."""

from __future__ import annotations

import sys

from pyztun import stdio


def tell(line: str) -> None:
    """Prints a line on stdout and sees it out. OSError where that fails."""
    if sys.stdout is not None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


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
            stdio.forget(sys.stderr)
