"""Row `relay-throughput`: one connection, one direction, as fast as it goes.

The clock runs from connect() until the server has said how much it read up to the end, so what
a relay holds in between does not count as carried. Nothing is pinned: three processes share the
CPUs as the kernel likes, for all alike.

CPU seconds a GB are those of all rounds together. The kernel charges the work of its network stack
to whoever happens to run then, so the sum over client, server and proxy says more than the proxy's
own.
"""

from __future__ import annotations

from contextlib import ExitStack

from bench import programs, relay_lanes
from bench.relay_lanes import DIRECT, HAPROXY, HAPROXY_BULK, OURS
from bench.rounds import interleave
from bench.statistics import Check, Row

NAME = "relay-throughput"
TITLE = "one stream out of a captured pod"
ROUNDS = 20
BUDGET, AIM = 1.5, 2
STREAM_MS = 300


def measure(shop: programs.Workshop, rounds: int) -> Row:
    """Runs the row."""
    row = Row(NAME, TITLE, "Gb/s")
    with ExitStack() as stack:
        names = (DIRECT, HAPROXY, HAPROXY_BULK, OURS)
        lanes = relay_lanes.lanes(stack, shop, row, names)
        streams = {name: _Stream(lane) for name, lane in lanes.items()}
        turns = {name: stream.turn for name, stream in streams.items()}
        row.samples = interleave(NAME, turns, rounds)
    relay_lanes.compare(row, BUDGET, AIM, at_least=True)
    if {OURS, HAPROXY_BULK} <= row.samples.keys():
        row.compare(OURS, HAPROXY_BULK)
    for name, stream in streams.items():
        row.checks += stream.cpu_checks(name)
    return row


class _Stream:
    """The streams of one lane, and what they cost."""

    def __init__(self, lane: relay_lanes.Lane) -> None:
        self._lane = lane
        self._bytes = self._proxy = self._together = 0.0

    def turn(self) -> list[float]:
        """Gigabits a second of one stream."""
        before = self._lane.cpu()
        size, ns = self._lane.ask(f"stream {STREAM_MS}")
        after = self._lane.cpu()
        self._bytes += size
        self._proxy += after[0] - before[0]
        self._together += after[1] - before[1]
        return [size * 8 / ns]

    def cpu_checks(self, name: str) -> list[Check]:
        """CPU seconds a GB."""
        per_gb = 1e9 / self._bytes
        found = [Check(f"CPU of all, {name}", self._together * per_gb, "s/GB", None)]
        if self._lane.proxy:
            found.append(Check(f"CPU of the proxy, {name}", self._proxy * per_gb, "s/GB", None))
        return found
