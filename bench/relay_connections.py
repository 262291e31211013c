"""Row `relay-connections`: short connections, eight at a time.

Each is connect, 64 bytes there and back, close; the client closes first. One whose SYN was lost
would take a second and shows in a note: such a row says nothing about speed.
"""

from __future__ import annotations

from contextlib import ExitStack

from bench import programs, relay_lanes
from bench.relay_lanes import DIRECT, HAPROXY, OURS, OURS_LOGGING
from bench.rounds import interleave
from bench.statistics import Row

NAME = "relay-connections"
TITLE = "short connections out of a captured pod, eight at a time"
ROUNDS = 25
BUDGET, AIM = 1.0, 1.2
BATCH, WIDTH = 2000, 8


def measure(shop: programs.Workshop, rounds: int) -> Row:
    """Runs the row."""
    row = Row(NAME, TITLE, "connections/s")
    with ExitStack() as stack:
        names = (DIRECT, HAPROXY, OURS, OURS_LOGGING)
        lanes = relay_lanes.lanes(stack, shop, row, names)
        dialling = {name: _Dialling(lane) for name, lane in lanes.items()}
        turns = {name: each.turn for name, each in dialling.items()}
        row.samples = interleave(NAME, turns, rounds)
    relay_lanes.compare(row, BUDGET, AIM, at_least=True)
    row.compare(OURS_LOGGING, OURS)
    for name, each in dialling.items():
        if each.stalled:
            row.notes.append(f"{name}: {each.stalled} connections took 0.9 s or more")
    return row


class _Dialling:
    """The connections of one lane, and how many of them stalled."""

    def __init__(self, lane: relay_lanes.Lane) -> None:
        self._lane = lane
        self.stalled = 0

    def turn(self) -> list[float]:
        """Connections a second of one batch."""
        ns, stalled = self._lane.ask(f"short {BATCH} {WIDTH}")
        self.stalled += int(stalled)
        return [BATCH / ns * 1e9]
