"""Row `relay-idle`: what a connection that does nothing costs in memory.

Each connection has carried one byte both ways. Counted is what the resident memory of the proxy
grows by beyond the first of them, and what the slabs of the kernel do, which serve the whole
machine: sockets of both ends, conntrack, epoll. Memory that was used once is used again, so every
round is measured on a proxy of its own.
"""

from __future__ import annotations

import os
import statistics
from contextlib import ExitStack
from pathlib import Path

from bench import crowd, programs, relay_lanes
from bench.progress import bar
from bench.statistics import Check, Row

NAME = "relay-idle"
TITLE = "an idle connection out of a captured pod, memory of the proxy"
ROUNDS = 3
BUDGET_KIB = 1
CONNECTIONS = 2000
SLABS = Path("/proc/slabinfo")


def measure(shop: programs.Workshop, rounds: int) -> Row:
    """Runs the row."""
    row = Row(NAME, TITLE, "KiB")
    slabs: dict[str, list[float]] = {}
    with bar(NAME, rounds) as step:
        for _ in range(rounds):
            row.notes.clear()
            with ExitStack() as stack:
                for name, lane in relay_lanes.lanes(stack, shop, row).items():
                    own, kernel = _cost(lane)
                    row.samples.setdefault(name, []).append(own)
                    slabs.setdefault(name, []).append(kernel)
            step("rounds")
    del row.samples[relay_lanes.DIRECT]
    own = statistics.median(row.samples[relay_lanes.OURS])
    row.checks.append(Check(f"{relay_lanes.OURS}, median", own, "KiB", BUDGET_KIB))
    if not os.access(SLABS, os.R_OK):
        row.notes.append(f"without the slabs of the kernel: {SLABS} cannot be read")
        return row
    for name, values in slabs.items():
        median = statistics.median(values)
        row.checks.append(Check(f"slabs of the kernel, {name}, median", median, "KiB", None))
    return row


def _cost(lane: relay_lanes.Lane) -> tuple[float, float]:
    """KiB a connection, of the proxy and of the kernel."""
    lane.ask("hold 1")
    before = _resident(lane), _slabs()
    lane.ask(f"hold {CONNECTIONS}")
    after = _resident(lane), _slabs()
    lane.ask("drop")
    own, kernel = ((late - early) / CONNECTIONS for early, late in zip(before, after, strict=True))
    return own, kernel


def _resident(lane: relay_lanes.Lane) -> float:
    return crowd.memory(lane.proxy)["VmRSS"] if lane.proxy else 0.0


def _slabs() -> float:
    """KiB of all objects in use. Slabs that are half empty would count what was there before."""
    if not os.access(SLABS, os.R_OK):
        return 0.0
    rows = (line.split() for line in SLABS.read_text().splitlines()[2:])
    return sum(int(row[1]) * int(row[3]) for row in rows) / 1024
