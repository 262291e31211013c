"""Ctrl-C, SIGTERM and SIGHUP, taken only where nothing is half done.

An exception that a signal handler raises anywhere, say between a fork and the note of its pid,
would leave a process behind. Here a signal is noted, and raised as KeyboardInterrupt where the demo
asks for it or waits for a person; between two such places lie seconds at most.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Takes the signals over for the rest of the process."""

    def __init__(self) -> None:
        self._arrived = self._may_raise = False
        for number in SIGNALS:
            # What nohup(1) or a shell's background job has ignored stays ignored.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._arrived = True
        if self._may_raise:
            raise KeyboardInterrupt

    def check(self) -> None:
        """KeyboardInterrupt if a signal has arrived."""
        if self._arrived:
            raise KeyboardInterrupt

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """For the length of a with-block a signal raises KeyboardInterrupt at once."""
        self._may_raise = True
        try:
            self.check()
            yield
        finally:
            self._may_raise = False
