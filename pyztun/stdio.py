"""stdin, stdout and stderr of a program whose parent left them closed, or whose reader has gone."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO


def occupy() -> None:
    """Opens /dev/null for each of stdin, stdout and stderr that is closed from the start.

    Otherwise a socket of ours would get the number, and what is written to stderr would go there.
    For programs, before they open anything. sys.stdout and sys.stderr, None then, stay so.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def forget(stream: TextIO) -> None:
    """Turns a broken stream to /dev/null: python flushes it again at exit and would complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
