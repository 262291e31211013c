"""Row `pods`: what a thousand pods cost one daemon, in memory and in the time of the next handoff.

The two daemons are asked in turn: within one burst the speed of a host moves by half, which would
be taken for the cost of the pods.
"""

from __future__ import annotations

from contextlib import ExitStack

from bench import crowd, programs
from bench.progress import bar
from bench.rounds import interleave
from bench.seed import asking
from bench.statistics import Row
from pyztun import Channel, NetNs, PyztunError
from pyztun.protocol import seed

NAME = "pods"
ROUNDS = 250
PODS = crowd.SIZE
TITLE = f"seed form, a daemon that holds {PODS} pods beside one that holds none"
HANDOFF_BUDGET = 1.2


def measure(shop: programs.Workshop, rounds: int) -> Row:
    """Runs the row. Skipped where the fd table is too small."""
    crowd.need_descriptors()
    row = Row(NAME, TITLE, "us")
    empty, full = shop.socket_path(), shop.socket_path()
    with ExitStack() as stack:
        stack.enter_context(programs.ztunnel([empty], shop))
        daemon = stack.enter_context(programs.ztunnel([full], shop))
        _fill(row, daemon.pid, full)
        holding, none = f"{PODS} held", "none held"
        turns = {
            none: asking(stack, shop, empty),
            holding: asking(stack, shop, full),
        }
        row.samples = interleave(NAME, turns, rounds)
    row.compare(holding, none, HANDOFF_BUDGET)
    return row


def _fill(row: Row, pid: int, path: str) -> None:
    """Hands over the pods, and notes what the daemon's memory says to it."""
    before = crowd.memory(pid)
    first = before
    with Channel.connect(path, timeout=programs.PATIENCE) as channel, bar(NAME, PODS) as step:
        for number in range(1, PODS + 1):
            # Not ours to hold: the listeners of the daemon keep the netns alive.
            with NetNs.create() as pod:
                _take(channel, pod)
            if number == 1:
                first = crowd.memory(pid)
            step("pods")
    row.checks += crowd.memory_checks(before, first, crowd.memory(pid))


def _take(channel: Channel, pod: NetNs) -> None:
    channel.send(seed.TAKE, [pod.fileno()], programs.PATIENCE)
    answer = seed.parse(channel.receive_line(seed.MAX_LINE, programs.PATIENCE))
    if answer.kind != seed.READY:
        raise PyztunError(f"pyztun-ztunnel refused a pod: {answer.reason}")
