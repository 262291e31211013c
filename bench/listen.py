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

from bench import machine, programs
from bench.rounds import Turn, interleave
from bench.statistics import Row
from pyztun import NetNs, native
from pyztun._core import ffi, lib

NAME = "listen"
TITLE = "three listeners in a pod, native call at lib, from a worker thread"
ROUNDS = 250
BUDGET = 1.10
PODS = 16
PASSES = 5
HOST = "127.0.0.1"
PORTS = (15008, 15006, 15001)
BACKLOG = 4096


def measure(shop: programs.Workshop, rounds: int) -> Row:
    """Runs the row."""
    row = Row(NAME, TITLE, "us")
    with ExitStack() as stack:
        machine.stay_on_one_cpu(stack)
        pods = [stack.enter_context(NetNs.create()).fileno() for _ in range(PODS)]
        floor = Floor(stack, shop, "listen", pods)
        # Also the worker's home. It is closed last: the worker may be in a pod until it has ended.
        home = stack.enter_context(native.home())
        worker = stack.enter_context(ThreadPoolExecutor(1))
        ours = Lib(PORTS)
        turns: dict[str, Turn] = {
            "floor, home kept": floor.turn("kept", len(PORTS)),
            "lib, home kept": lambda: worker.submit(ours.turn, pods, home.fileno()).result(),
            "floor, home opened": floor.turn("opened", len(PORTS)),
            "lib, home opened": lambda: worker.submit(ours.turn, pods, -1).result(),
        }
        row.samples = interleave(NAME, turns, rounds)
    for how in ("kept", "opened"):
        row.compare(f"lib, home {how}", f"floor, home {how}", BUDGET)
    return row


class Floor:
    """The floor for listeners; ends with the stack.

    :param role: ``listen`` works in a thread, ``listen-main`` in the main thread.
    :param pods: descriptors of netns, borrowed.
    """

    def __init__(
        self, stack: ExitStack, shop: programs.Workshop, role: str, pods: Sequence[int]
    ) -> None:
        argv = [shop.floor, role, *map(str, pods)]
        process = programs.Process(argv, shop.directory, inherited=pods)
        self._process = stack.enter_context(process)

    def turn(self, how: str, listeners: int) -> Turn:
        """Microseconds a pod; see floor.c for the words."""
        command = f"{how} {listeners} {PASSES}"
        return lambda: [ns / 1000 for ns in self._process.ask(command)]


class Lib:
    """The same passes through cffi. Every array is made before the clock runs."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._wanted = ffi.new("struct pz_listener[]", len(ports))
        for one, port in zip(self._wanted, ports, strict=True):
            ffi.buffer(one.address)[0:4] = bytes(map(int, HOST.split(".")))
            one.family, one.port, one.backlog = 4, port, BACKLOG
            one.flags = lib.PZ_REUSEADDR | lib.PZ_NONBLOCK
        self._size = len(ports)
        self._fds = ffi.new("int[]", len(ports))
        self._failure = ffi.new("struct pz_failure *")

    def turn(self, pods: Sequence[int], home: int) -> list[float]:
        return [self._pass(pods, home) for _ in range(PASSES)]

    def _pass(self, pods: Sequence[int], home: int) -> float:
        """One pass over all pods; microseconds a pod."""
        listen, wanted, n = lib.pz_listen, self._wanted, self._size
        fds, failure = self._fds, self._failure
        made: list[int] = []
        begin = perf_counter_ns()
        for pod in pods:
            if listen(pod, home, wanted, n, fds, failure) < 0:
                break
            made += list(fds)
        took = perf_counter_ns() - begin
        for fd in made:
            os.close(fd)
        if len(made) < n * len(pods):
            step = ffi.string(lib.pz_step_name(failure.step)).decode()
            raise programs.BenchError(f"pz_listen failed at {step}")
        return took / len(pods) / 1000
