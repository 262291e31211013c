"""Backoff: how long to wait before the next attempt. Pure but for the dice."""

from __future__ import annotations

import random

JITTER = 0.2
"""Each delay is up to so much shorter or longer, so that many do not come back at once."""


class Backoff:
    """Delays in seconds that double from ``first`` to ``limit``, until reset() begins anew."""

    __slots__ = ("_first", "_limit", "_next")

    def __init__(self, first: float, limit: float) -> None:
        self._first, self._limit = first, limit
        self._next = first

    def next(self) -> float:
        """The delay before the next attempt."""
        delay = self._next
        self._next = min(delay * 2, self._limit)
        return min(delay * random.uniform(1 - JITTER, 1 + JITTER), self._limit)  # noqa: S311

    def reset(self) -> None:
        """An attempt succeeded."""
        self._next = self._first
