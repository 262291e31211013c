"""Row `agent`: what a node agent with a thousand workloads needs to answer.

A real `pyztun-ztunnel --zds` serves all of them. The client is raw: one connection of HTTP that
stays open, an answer read and not parsed. An add is a POST to its answer, which comes after the ACK
of ztunnel; the DELETE behind it is not timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from time import monotonic, perf_counter_ns, sleep

from bench import crowd, programs
from bench.control import Control
from bench.progress import bar
from bench.rounds import Turn, interleave
from bench.statistics import Check, Row
from bench.zds import fresh_pods

NAME = "agent"
TITLE = f"a node agent with {crowd.SIZE} workloads, from a request to its answer"
ROUNDS = 60
LIST, STATUS, ADD = "GET /v1/workloads", "GET /v1/status", "POST /v1/workloads"
LIST_BUDGET_MS = 50
PASS_BUDGET_MS = 100
RECONCILE, PASSES = 0.3, 5
"""Seconds between two passes, and how many of them are looked at."""
IN_A_ROW = 200


def measure(shop: programs.Workshop, rounds: int) -> Row:
    """Runs the row. Skipped where the fd table is too small."""
    row = Row(NAME, TITLE, "ms")
    with ExitStack() as stack:
        pods = crowd.gather(stack)
        node = Node(stack, shop)
        node.start()
        control = stack.enter_context(node.control())
        row.checks.append(_fill(control, pods))
        control.prove_all_ready(crowd.SIZE)
        turns: dict[str, Turn] = {
            LIST: _asking(control, "/v1/workloads"),
            STATUS: _asking(control, "/v1/status"),
            ADD: _Adding(control, fresh_pods(stack)).turn,
        }
        row.samples = interleave(NAME, turns, rounds)
        passes = _cost_of_passes(control)
    took = statistics.median(row.samples[LIST])
    row.checks += [
        Check(f"{LIST}, median", took, "ms", LIST_BUDGET_MS),
        Check("CPU of a reconcile pass, median", statistics.median(passes), "ms", PASS_BUDGET_MS),
    ]
    return row


class Node:
    """A `pyztun-ztunnel --zds` and the agent that it dials; ends with the stack."""

    def __init__(self, stack: ExitStack, shop: programs.Workshop) -> None:
        self._shop, self._stack = shop, stack
        self.zds, self.control_path = shop.socket_path(), shop.socket_path()
        self._agent = stack.enter_context(ExitStack())
        words = ["--zds", self.zds, "--log-format", "json"]
        self.ztunnel = stack.enter_context(programs.ztunnel(words, shop))

    def start(self) -> programs.Process:
        """Starts the agent, ready; the workloads are those that it had before."""
        where = ["--zds", self.zds, "--control", self.control_path]
        where += ["--state-dir", str(self._shop.directory / "state")]
        argv = [programs.installed("pyztun-cni"), "agent", *where, "--reconcile", str(RECONCILE)]
        return self._agent.enter_context(programs.notifying(argv, self._shop))

    def stop(self) -> None:
        """Ends the agent; ztunnel goes on."""
        self._agent.close()

    def control(self) -> Control:
        """A connection to the agent's control socket, when ztunnel has had its first snapshot."""
        control = Control(self.control_path)
        deadline = monotonic() + programs.PATIENCE
        while not any(each["phase"] == "steady" for each in control.status()["ztunnels"]):
            if monotonic() > deadline:
                raise programs.BenchError("pyztun-ztunnel does not find its agent")
            sleep(0.01)
        return control


def _fill(control: Control, pods: list[int]) -> Check:
    """Adds them all; says what the last ones took together."""
    times = []
    with bar(NAME, len(pods)) as step:
        for number, pod in enumerate(pods):
            times.append(_milliseconds(partial(control.add, f"held-{number}", pod)))
            step("workloads")
    return Check(f"the last {IN_A_ROW} adds, together", sum(times[-IN_A_ROW:]), "ms", None)


def _asking(control: Control, target: str) -> Turn:
    return lambda: [_milliseconds(lambda: control.ask("GET", target))]


class _Adding:
    """Adds a pod that the agent does not know, and deletes it again."""

    def __init__(self, control: Control, pods: Sequence[int]) -> None:
        self._control, self._pods, self._turns = control, pods, 0

    def turn(self) -> list[float]:
        self._turns += 1
        uid, pod = f"fresh-{self._turns}", self._pods[self._turns % len(self._pods)]
        took = _milliseconds(lambda: self._control.add(uid, pod))
        self._control.delete(uid)
        return [took]


def _milliseconds(work: Callable[[], object]) -> float:
    begin = perf_counter_ns()
    work()
    return (perf_counter_ns() - begin) / 1e6


def _cost_of_passes(control: Control) -> list[float]:
    """Milliseconds of CPU of a few passes that began after this call."""
    before = control.status()["reconcile"]["passes"] + 1  # that one may have begun
    found: dict[int, float] = {}
    deadline = monotonic() + programs.PATIENCE
    while len(found) < PASSES:
        now = control.status()["reconcile"]
        if now["passes"] > before:
            found[now["passes"]] = float(now["last_cpu"]) * 1000
        if monotonic() > deadline:
            raise programs.BenchError("the agent does not reconcile")
        sleep(RECONCILE / 10)
    return list(found.values())
