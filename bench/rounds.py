"""Whose turn it is: every contender once in every round, in an order that is drawn anew.

A fixed order would give each contender always the same predecessor, and with it the caches and the
queued work of the kernel that this one leaves behind. The draw is seeded, so that two runs differ
in nothing but the host.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence

WARM_UP = 2
"""Rounds that are thrown away: page faults, first imports, growing tables."""

Turn = Callable[[], Sequence[float]]
"""Does a short batch of the work; returns what each piece took."""


def interleave(row: str, turns: Mapping[str, Turn], rounds: int) -> dict[str, list[float]]:
    """Runs the rounds. Of each turn the median is kept, as one sample a round."""
    samples: dict[str, list[float]] = {name: [] for name in turns}
    draw = random.Random(row)
    order = list(turns)
    for number in range(-WARM_UP, rounds):
        draw.shuffle(order)
        for name in order:
            taken = statistics.median(turns[name]())
            if number >= 0:
                samples[name].append(taken)
        progress(f"{row}: round {number + 1} of {rounds}" if number >= 0 else f"{row}: warm-up")
    progress("")
    return samples


def progress(text: str) -> None:
    """Replaces the progress line; nothing where stderr is no terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
