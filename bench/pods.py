"""Row `pods`: what a thousand pods cost one daemon, in memory and in the time of the next handoff.

The two daemons are asked in turn: within one burst the speed of a host moves by half, which would
be taken for the cost of the pods.
"""

from __future__ import annotations

import resource
from contextlib import ExitStack
from pathlib import Path

from bench import programs
from bench.progress import bar
from bench.rounds import interleave
from bench.seed import asking
from bench.statistics import Check, Row
from pyztun import Channel, NetNs, PyztunError
from pyztun.protocol import seed

NAME = "pods"
ROUNDS = 250
PODS = 1000
TITLE = f"seed form, a daemon that holds {PODS} pods beside one that holds none"
HANDOFF_BUDGET = 1.2
POD_BUDGET_KIB = 12
PROCESS_BUDGET_MB = 60
FDS_NEEDED = 5000
"""Three listeners a pod, and what pyztun-ztunnel keeps free for peers and their connections."""


def measure(shop: programs.Workshop, rounds: int) -> Row:
    """Runs the row. Skipped where the fd table is too small."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit != resource.RLIM_INFINITY and limit < FDS_NEEDED:
        raise programs.Skipped(f"the hard RLIMIT_NOFILE is {limit}, {PODS} pods need {FDS_NEEDED}")
    row = Row(NAME, TITLE, "us")
    empty, full = shop.socket_path(), shop.socket_path()
    with ExitStack() as stack:
        stack.enter_context(programs.ztunnel(empty, shop))
        daemon = stack.enter_context(programs.ztunnel(full, shop))
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
    before = _memory(pid)
    first = before
    with Channel.connect(path, timeout=programs.PATIENCE) as channel, bar(NAME, PODS) as step:
        for number in range(1, PODS + 1):
            # Not ours to hold: the listeners of the daemon keep the netns alive.
            with NetNs.create() as pod:
                _take(channel, pod)
            if number == 1:
                first = _memory(pid)
            step("pods")
    last = _memory(pid)
    each = (last["VmRSS"] - first["VmRSS"]) / (PODS - 1)
    row.checks += [
        Check("RSS a pod beyond the first", each, "KiB", POD_BUDGET_KIB),
        Check(f"RSS at {PODS} pods", last["VmRSS"] * 1024 / 1e6, "MB", PROCESS_BUDGET_MB),
        Check("RSS with none", before["VmRSS"] * 1024 / 1e6, "MB", None),
        Check(f"Pss at {PODS} pods", last["Pss"] * 1024 / 1e6, "MB", None),
    ]


def _take(channel: Channel, pod: NetNs) -> None:
    channel.send(seed.TAKE, [pod.fileno()], programs.PATIENCE)
    answer = seed.parse(channel.receive_line(seed.MAX_LINE, programs.PATIENCE))
    if answer.kind != seed.READY:
        raise PyztunError(f"pyztun-ztunnel refused a pod: {answer.reason}")


def _memory(pid: int) -> dict[str, int]:
    """VmRSS and Pss of a process in KiB."""
    found = {}
    for file in ("status", "smaps_rollup"):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("VmRSS", "Pss"):
                found[name] = int(value.split()[0])
    return found
