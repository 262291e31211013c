"""Observations: what was told beside what was seen, and how many were not the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyztun.tools.terminal import Terminal


class NotAsTold(Exception):
    """A step had an observation that was not as told; what follows would build on it."""


class Observations:
    """Prints each observation and counts."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self.count = self.failed = 0

    def check(self, told: str, as_told: bool, seen: object) -> None:
        """Records one observation.

        :param told: what the story says, for example ``nothing listens in web``.
        :param as_told: whether it is so.
        :param seen: the evidence, whatever it is.
        """
        self.count += 1
        self.failed += not as_told
        self._terminal.observation(told, as_told, str(seen))

    def end_of_step(self) -> None:
        """NotAsTold if anything failed so far."""
        if self.failed:
            raise NotAsTold
