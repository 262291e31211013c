"""Row `relay-ping`: 64 bytes there and back on a connection that is open, all on one CPU.

Client, server and proxy of every contender share that CPU: where the kernel puts the three moves
a ping between 15 and 50 us otherwise. So this is the work of a round trip, with no waiting for
another CPU in it. The median of a round is its sample; the 99th percentiles stand below.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack

from bench import machine, programs, relay_lanes
from bench.rounds import interleave
from bench.statistics import Check, Row

NAME = "relay-ping"
TITLE = "64 bytes there and back out of a captured pod, all on one CPU"
ROUNDS = 50
BUDGET = 1.0
PINGS = 1000


def measure(shop: programs.Workshop, rounds: int) -> Row:
    """Runs the row."""
    row = Row(NAME, TITLE, "us")
    with ExitStack() as stack:
        machine.stay_on_one_cpu(stack)
        pinging = {
            name: _Pinging(lane) for name, lane in relay_lanes.lanes(stack, shop, row).items()
        }
        turns = {name: each.turn for name, each in pinging.items()}
        row.samples = interleave(NAME, turns, rounds)
    relay_lanes.compare(row, BUDGET)
    for name, each in pinging.items():
        late = statistics.median(each.late[-rounds:])
        row.checks.append(Check(f"{name}, 99th percentile, median", late, "us", None))
    return row


class _Pinging:
    """The pings of one lane."""

    def __init__(self, lane: relay_lanes.Lane) -> None:
        self._lane = lane
        self.late: list[float] = []

    def turn(self) -> list[float]:
        """Microseconds of each ping of a batch."""
        times = [ns / 1000 for ns in self._lane.ask(f"ping {PINGS}")]
        self.late.append(statistics.quantiles(times, n=100)[-1])
        return times
