"""Row `listen`: three listeners in a pod, from Python through cffi, beside the same syscalls in C.

A turn is a few passes over the same pods, each with a netns of its own. The clock is read once
before a pass and once behind it, so that it weighs nothing; closing comes later, on both sides.
Both sides work in a thread that is not the main one, and we are charged for turning the descriptors
into ints. Only one side works at a time, so both are pinned to the same CPU: two CPUs of one host
differ by more than the two sides do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from time import perf_counter_ns

from bench import programs
from bench.rounds import Turn, interleave
from bench.statistics import Row, ratio
from pyztun import NetNs, native
from pyztun._core import ffi, lib

NAME = "listen"
ROUNDS = 250
BUDGET = 1.10
PODS = 16
PASSES = 5
PORTS = (15008, 15006, 15001)
BACKLOG = 4096


def measure(shop: programs.Workshop, rounds: int | None) -> Row:
    """Runs the row."""
    row = Row(NAME, "native listen x3 at lib, worker thread", "us")
    with ExitStack() as stack:
        _stay_on_one_cpu(stack)
        pods = [stack.enter_context(NetNs.create()).fileno() for _ in range(PODS)]
        argv = [shop.floor, "listen", *map(str, pods)]
        floor = stack.enter_context(programs.Process(argv, shop.directory, inherited=pods))
        # Also the worker's home. It is closed last: the worker may be in a pod until it has ended.
        home = stack.enter_context(native.home())
        worker = stack.enter_context(ThreadPoolExecutor(1))
        ours = _Ours(pods)
        turns: dict[str, Turn] = {
            "floor, home kept": lambda: _floor(floor, "kept"),
            "lib, home kept": lambda: worker.submit(ours.turn, home.fileno()).result(),
            "floor, home opened": lambda: _floor(floor, "opened"),
            "lib, home opened": lambda: worker.submit(ours.turn, -1).result(),
        }
        row.samples = interleave(NAME, turns, rounds or ROUNDS)
    for how in ("kept", "opened"):
        row.checks.append(ratio(row.samples, f"lib, home {how}", f"floor, home {how}", BUDGET))
    return row


def _stay_on_one_cpu(stack: ExitStack) -> None:
    """Pins the calling thread, and with it the processes and threads that it starts."""
    before = os.sched_getaffinity(0)
    stack.callback(os.sched_setaffinity, 0, before)
    os.sched_setaffinity(0, {max(before)})


def _floor(process: programs.Process, how: str) -> list[float]:
    return [ns / 1000 for ns in process.ask(f"{how} {PASSES}")]


class _Ours:
    """The same passes through cffi. Every array is made before the clock runs."""

    def __init__(self, pods: Sequence[int]) -> None:
        self._pods = pods
        self._wanted = ffi.new("struct pz_listener[]", len(PORTS))
        for one, port in zip(self._wanted, PORTS, strict=True):
            ffi.buffer(one.address)[0:4] = bytes((127, 0, 0, 1))
            one.family, one.port, one.backlog = 4, port, BACKLOG
            one.flags = lib.PZ_REUSEADDR | lib.PZ_NONBLOCK
        self._fds = ffi.new("int[]", len(PORTS))
        self._failure = ffi.new("struct pz_failure *")

    def turn(self, home: int) -> list[float]:
        return [self._pass(home) for _ in range(PASSES)]

    def _pass(self, home: int) -> float:
        """One pass over all pods; microseconds a pod."""
        listen, wanted, n = lib.pz_listen, self._wanted, len(PORTS)
        fds, failure = self._fds, self._failure
        made: list[int] = []
        begin = perf_counter_ns()
        for pod in self._pods:
            if listen(pod, home, wanted, n, fds, failure) < 0:
                break
            made += list(fds)
        took = perf_counter_ns() - begin
        for fd in made:
            os.close(fd)
        if len(made) < n * len(self._pods):
            step = ffi.string(lib.pz_step_name(failure.step)).decode()
            raise programs.BenchError(f"pz_listen failed at {step}")
        return took / len(self._pods) / 1000
