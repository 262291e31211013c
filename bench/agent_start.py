"""Row `agent-start`: an agent that knew a thousand workloads is started again.

It opens each netns and compares it with its registry, then tells ztunnel, which serves all of them
already and dials again by itself. ztunnel's own log says when it was connected and when it had the
whole snapshot. How long its backoff has it wait before it dials is luck: `spawn to served` varies.
"""

from __future__ import annotations

import json
import statistics
from contextlib import ExitStack
from datetime import datetime
from time import monotonic, sleep, time

from bench import crowd, programs
from bench.agent import Node
from bench.progress import bar
from bench.statistics import Check, Row

NAME = "agent-start"
TITLE = f"a node agent that knows {crowd.SIZE} workloads starts again"
ROUNDS = 5
BUDGET_MS = 500
READY, SNAPSHOT, SERVED = "spawn to READY=1", "connected to served", "spawn to served"


def measure(shop: programs.Workshop, rounds: int) -> Row:
    """Runs the row. Skipped where the fd table is too small."""
    row = Row(NAME, TITLE, "ms", {READY: [], SNAPSHOT: [], SERVED: []})
    with ExitStack() as stack, bar(NAME, rounds) as step:
        pods = crowd.gather(stack)
        node = Node(stack, shop)
        node.start()
        with node.control() as control:
            for number, pod in enumerate(pods):
                control.add(f"held-{number}", pod)
        for _ in range(rounds):
            for name, took in _start_again(node).items():
                row.samples[name].append(took)
            with node.control() as control:
                control.prove_all_ready(crowd.SIZE)
            step("starts")
    took = statistics.median(row.samples[SNAPSHOT])
    row.checks.append(Check(f"{SNAPSHOT}, median", took, "ms", BUDGET_MS))
    return row


def _start_again(node: Node) -> dict[str, float]:
    """Milliseconds, by contender."""
    node.stop()
    seen = len(_events(node.ztunnel))
    spawned = time()
    node.start()
    ready = time()
    deadline = monotonic() + programs.PATIENCE
    while "snapshot" not in (new := dict(_events(node.ztunnel)[seen:])):
        if monotonic() > deadline:
            raise programs.BenchError("pyztun-ztunnel has no new snapshot")
        sleep(0.01)
    served = new["snapshot"]
    times = {READY: ready - spawned, SNAPSHOT: served - new["connected"], SERVED: served - spawned}
    return {name: seconds * 1000 for name, seconds in times.items()}


def _events(ztunnel: programs.Process) -> list[tuple[str, float]]:
    """What its log has of connections, oldest first: the event, and its second of the epoch."""
    lines = ztunnel.said().splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    found = [each for each in records if each["event"] in ("connected", "snapshot")]
    return [(each["event"], datetime.fromisoformat(each["time"]).timestamp()) for each in found]
