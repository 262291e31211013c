"""Row `listen-main`: the same three listeners, asked for by the main thread, which stays at home.

The native call sends a helper thread, which goes to the pod, makes the sockets and ends there. The
floor does the same syscalls from its own main thread. What a helper costs beyond going in place is
the difference to the row `listen`.
"""

from __future__ import annotations

from contextlib import ExitStack

from bench import machine, programs
from bench.listen import PODS, PORTS, Floor, Lib
from bench.rounds import Turn, interleave
from bench.statistics import Row
from pyztun import NetNs

NAME = "listen-main"
TITLE = "three listeners in a pod, native call at lib, from the main thread"
ROUNDS = 150


def measure(shop: programs.Workshop, rounds: int) -> Row:
    """Runs the row, in the calling thread, which has to be the main one."""
    row = Row(NAME, TITLE, "us")
    with ExitStack() as stack:
        machine.stay_on_one_cpu(stack)
        pods = [stack.enter_context(NetNs.create()).fileno() for _ in range(PODS)]
        ours = Lib(PORTS)
        turns: dict[str, Turn] = {
            "floor, helper thread": Floor(stack, shop, "listen-main", pods).turn(
                "helper", len(PORTS)
            ),
            "lib, helper thread": lambda: ours.turn(pods, -1),
        }
        row.samples = interleave(NAME, turns, rounds)
    row.compare("lib, helper thread", "floor, helper thread")
    return row
