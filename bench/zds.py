"""Row `zds`: from an Add to its ACK, with one agent for every ztunnel.

Both ztunnels have said Hello and have had an empty snapshot. The pod has no listeners of ours when
its Add comes; the Del behind it is not timed.

As in the row `seed` nothing is pinned to a CPU: on one CPU, where another process works too, the
answer of whoever goes on working behind it would often wait for that, which is the host's doing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from bench import programs
from bench.rounds import interleave
from bench.statistics import Row
from pyztun import NetNs

NAME = "zds"
TITLE = "ZDS, from an Add to its ACK"
ROUNDS = 400
BUDGET, AIM = 1.4, 1.2
PODS = 5
CYCLES = 15
PAUSE_US = 300


def measure(shop: programs.Workshop, rounds: int) -> Row:
    """Runs the row."""
    row = Row(NAME, TITLE, "us")
    with ExitStack() as stack:
        floor, ours = (Agent(stack, shop, fresh_pods(stack)) for _ in range(2))
        stack.enter_context(programs.dialler([shop.floor, "zds", floor.path], shop))
        floor.snapshot()
        stack.enter_context(programs.ztunnel(["--zds", ours.path], shop))
        ours.snapshot()
        turns = {"floor": floor.turn, "pyztun-ztunnel": ours.turn}
        row.samples = interleave(NAME, turns, rounds)
    row.compare("pyztun-ztunnel", "floor", BUDGET, AIM)
    return row


def fresh_pods(stack: ExitStack) -> list[int]:
    """Descriptors of netns for the cycles of an agent; closed with the stack."""
    return [stack.enter_context(NetNs.create()).fileno() for _ in range(PODS)]


class Agent:
    """The client as the node agent of the one ztunnel that dials it; ends with the stack.

    :param fresh: netns (borrowed) for the cycles of a turn.
    :param held: netns (borrowed) of the snapshot.
    :ivar path: of its socket.
    """

    def __init__(
        self,
        stack: ExitStack,
        shop: programs.Workshop,
        fresh: Sequence[int] = (),
        held: Sequence[int] = (),
    ) -> None:
        self.path = shop.socket_path()
        pods = [*held, *fresh]
        argv = [shop.client, "agent", self.path, str(len(held)), *map(str, pods)]
        self._process = stack.enter_context(programs.receiver(argv, shop, inherited=pods))

    def snapshot(self) -> float:
        """Waits for the ztunnel; milliseconds from its Hello to the ACK of SnapshotSent."""
        return float(self._process.line()) / 1e6

    def turn(self) -> list[float]:
        """Microseconds from an Add to its ACK, of each cycle."""
        return self.cycles(CYCLES)

    def cycles(self, number: int) -> list[float]:
        """The same for NUMBER cycles."""
        return [ns / 1000 for ns in self._process.ask(f"{number} {PAUSE_US}")]
