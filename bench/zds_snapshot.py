"""Row `zds-snapshot`: a ztunnel that has just started is told of a thousand workloads.

From its Hello to the ACK of SnapshotSent; each Add waits for the ACK of the one before it. An ACK
means that the listeners are there, so all are served then. The proof of that follows when the clock
stands still: a connection into each pod is answered. Each turn is another process of either
ztunnel, and its agent.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from contextlib import ExitStack

from bench import crowd, programs
from bench.rounds import Turn, interleave
from bench.statistics import Check, Row
from bench.zds import Agent
from pyztun import NetNs

NAME = "zds-snapshot"
TITLE = f"ZDS, a snapshot of {crowd.SIZE} workloads, from Hello to its end"
ROUNDS = 5
BUDGET_MS = 500
PORT = 15008
OURS = "pyztun-ztunnel"


def measure(shop: programs.Workshop, rounds: int) -> Row:
    """Runs the row. Skipped where the fd table is too small."""
    row = Row(NAME, TITLE, "ms")
    with ExitStack() as stack:
        pods = crowd.gather(stack)
        turns = {"floor": _floor(shop, pods), OURS: _ours(shop, pods)}
        row.samples = interleave(NAME, turns, rounds)
    row.compare(OURS, "floor")
    took = statistics.median(row.samples[OURS])
    row.checks.append(Check(f"{OURS}, median", took, "ms", BUDGET_MS))
    return row


def _floor(shop: programs.Workshop, pods: Sequence[int]) -> Turn:
    def turn() -> list[float]:
        with ExitStack() as stack:
            agent = Agent(stack, shop, held=pods)
            stack.enter_context(programs.dialler([shop.floor, "zds", agent.path], shop))
            return [agent.snapshot()]

    return turn


def _ours(shop: programs.Workshop, pods: Sequence[int]) -> Turn:
    def turn() -> list[float]:
        with ExitStack() as stack:
            agent = Agent(stack, shop, held=pods)
            stack.enter_context(programs.ztunnel(["--zds", agent.path], shop))
            took = agent.snapshot()
            for pod in pods:
                prove_served(pod)
            return [took]

    return turn


def prove_served(pod: int) -> None:
    """BenchError unless a connection into the pod is answered."""
    with NetNs.from_fd(pod) as netns:
        try:
            client = netns.connect(("127.0.0.1", PORT), timeout=programs.PATIENCE)
        except ConnectionResetError:  # as ztunnel ends what is not redirected to it
            return
        except OSError as error:
            raise programs.BenchError(
                f"a workload of the snapshot is not served: {error}"
            ) from error
    with client:
        client.settimeout(programs.PATIENCE)
        with contextlib.suppress(ConnectionResetError):
            client.recv(16)
            raise programs.BenchError("a workload of the snapshot is not served")
