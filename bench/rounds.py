"""Whose turn it is: every contender once in every round, in an order that is drawn anew.

A fixed order would give each contender always the same predecessor, and with it the caches and the
queued work of the kernel that this one leaves behind. The draw is seeded, so that two runs differ
in nothing but the host.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence

from bench.progress import bar

WARM_UP = 2
"""Rounds that are thrown away: page faults, first imports, growing tables."""

Turn = Callable[[], Sequence[float]]
"""Does a short batch of the work; returns what each piece took."""


def interleave(row: str, turns: Mapping[str, Turn], rounds: int) -> dict[str, list[float]]:
    """Runs the rounds. Of each turn the median is kept, as one sample a round."""
    samples: dict[str, list[float]] = {name: [] for name in turns}
    draw = random.Random(row)
    order = list(turns)
    with bar(row, WARM_UP + rounds) as step:
        for number in range(-WARM_UP, rounds):
            draw.shuffle(order)
            for name in order:
                taken = statistics.median(turns[name]())
                if number >= 0:
                    samples[name].append(taken)
            step("rounds" if number >= 0 else "warm-up")
    return samples
