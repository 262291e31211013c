"""Row `agent-add`: the whole life of a `pyztun-cni add` process, beside a python that does nothing.

From spawn to end: it opens the netns, asks the agent, the agent writes the workload down and tells
a real `pyztun-ztunnel --zds`, which makes the listeners and says ACK. Each add is that of another
workload; the pods take turns, and the DELETE behind an add is not timed. As in the row `oneshot`
everything finds its byte code compiled.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from bench import programs
from bench.agent import Node
from bench.control import Control
from bench.oneshot import environment, spawn, spawning
from bench.rounds import interleave
from bench.statistics import Row
from bench.zds import fresh_pods

NAME = "agent-add"
TITLE = "pyztun-cni add, wall time of the process"
ROUNDS = 100
BUDGET = 4.0


def measure(shop: programs.Workshop, rounds: int) -> Row:
    """Runs the row."""
    row = Row(NAME, TITLE, "ms")
    env = environment(shop)
    with ExitStack() as stack:
        pods = fresh_pods(stack)
        node = Node(stack, shop)
        node.start()
        control = stack.enter_context(node.control())
        turns = {
            "python -c pass": spawning([sys.executable, "-c", "pass"], env),
            "pyztun-cni add": _Adding(control, node.control_path, pods, env).turn,
        }
        row.samples = interleave(NAME, turns, rounds)
    row.compare("pyztun-cni add", "python -c pass", BUDGET)
    return row


class _Adding:
    """Adds a workload by the command, and deletes it again over CONTROL."""

    def __init__(
        self, control: Control, path: str, pods: Sequence[int], env: Mapping[str, str]
    ) -> None:
        self._control, self._pods, self._env = control, pods, env
        self._command = [programs.installed("pyztun-cni"), "add", "--control", path]
        self._turns = 0

    def turn(self) -> list[float]:
        self._turns += 1
        uid, pod = f"added-{self._turns}", self._pods[self._turns % len(self._pods)]
        netns = f"/proc/{os.getpid()}/fd/{pod}"
        took = spawn([*self._command, "--uid", uid, netns], self._env)
        self._control.delete(uid)
        return [took]
