"""Row `peers`: one listener in a pod, made by us and by what people use today.

All do the same work: a TCP socket in the pod, SO_REUSEADDR, bind, listen, and come back if they
went. After each pass, when the clock stands still, every socket is asked for its netns, address and
backlog: who is quick and in the wrong netns ends the benchmark. What moves the thread that calls it
works in a worker, as it should in any program; what starts a process works from the main thread.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter_ns

from bench import machine, programs, ways
from bench.listen import BACKLOG, HOST, PASSES, Floor, Lib
from bench.rounds import Turn, interleave
from bench.statistics import Row
from pyztun import NetNs, PyztunError, native

NAME = "peers"
TITLE = "one listener in a pod, by us and by what people use today"
ROUNDS = 100
PODS = 8
SLOW_PODS = 2
OURS = "NetNs.listen"


def measure(shop: programs.Workshop, rounds: int) -> Row:
    """Runs the row."""
    row = Row(NAME, TITLE, "us")
    with ExitStack() as stack:
        machine.stay_on_one_cpu(stack)
        pods = [stack.enter_context(NetNs.create()) for _ in range(PODS)]
        fds = [pod.fileno() for pod in pods]
        worker = stack.enter_context(ThreadPoolExecutor(1))
        lib = Lib([ways.PORT])
        turns: dict[str, Turn] = {
            "floor": Floor(stack, shop, "listen", fds).turn("opened", 1),
            "lib": lambda: worker.submit(lib.turn, fds, -1).result(),
        }
        for name, make in _thread_movers(row).items():
            turns[name] = _Contender(row, name, make, pods, worker).turn
        turns["pyroute2 create_socket"] = _Contender(
            row, "pyroute2 create_socket", ways.by_pyroute2, pods[:SLOW_PODS]
        ).turn
        if (named := _named_pod(row, stack)) is not None:
            turns["ip netns exec"] = _Contender(row, "ip netns exec", ways.by_ip, [named]).turn
        row.samples = interleave(NAME, turns, rounds)
    for name in row.samples:
        if name != "floor":
            row.compare(name, "floor")
    for name in row.samples:
        if name not in ("floor", "lib", OURS):
            row.compare(name, OURS)
    return row


@dataclass
class _Contender:
    """One way to make the listener, and its pods."""

    row: Row
    name: str
    make: ways.Make
    pods: Sequence[NetNs]
    worker: ThreadPoolExecutor | None = None
    noted: bool = False

    def turn(self) -> list[float]:
        if self.worker is None:
            return [self._pass()]
        return self.worker.submit(self._passes).result()

    def _passes(self) -> list[float]:
        """As many as the floor makes: the first finds the caches as others left them."""
        return [self._pass() for _ in range(PASSES)]

    def _pass(self) -> float:
        """One pass over its pods; microseconds a pod."""
        home = os.stat("/proc/thread-self/ns/net").st_ino
        made = []
        begin = perf_counter_ns()
        try:
            for pod in self.pods:
                made.append(self.make(pod))
            took = perf_counter_ns() - begin
            self._prove(made, home)
        finally:
            for listener in made:
                listener.close()
        return took / len(self.pods) / 1000

    def _prove(self, made: Sequence[socket.socket], home: int) -> None:
        if os.stat("/proc/thread-self/ns/net").st_ino != home:
            raise programs.BenchError(f"{self.name} left its thread in a pod")
        for pod, listener in zip(self.pods, made, strict=True):
            why = fault(pod, listener)
            if why:
                raise programs.BenchError(f"{self.name}: {why}")
            if listener.get_inheritable() and not self.noted:
                self.noted = True
                self.row.notes.append(f"{self.name}: the socket that comes is not close-on-exec")


def fault(pod: NetNs, listener: socket.socket) -> str:
    """What is wrong with a listener; empty if it is what was wanted, in the pod."""
    if native.socket_cookie(listener.fileno()) != pod.cookie:
        return "the socket belongs to another netns"
    if listener.getsockname() != (HOST, ways.PORT):
        return f"the socket is bound to {listener.getsockname()}"
    if not native.is_listening(listener.fileno()):
        return "the socket does not listen"
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR):
        return "SO_REUSEADDR is off"
    # Of a listener TCP_INFO tells the backlog in tcpi_sacked (tcp_get_info(), net/ipv4/tcp.c).
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    backlog = struct.unpack_from("=I", info, 28)[0]
    return "" if backlog == BACKLOG else f"the backlog is {backlog}"


def _thread_movers(row: Row) -> dict[str, ways.Make]:
    """Those that go to the pod in the thread that calls them."""
    found: dict[str, ways.Make] = {
        OURS: ways.by_pyztun,
        "ctypes setns": ways.by_setns(ways.libc_setns()),
    }
    # Since Python 3.12. Not under one name for mypy, which checks for the oldest Python.
    own = getattr(os, "setns", None)
    if own is not None:
        found["os.setns"] = ways.by_setns(own)
    else:
        row.notes.append(f"without os.setns: Python {sys.version.split()[0]} has none (3.12 has)")
    return found


def _named_pod(row: Row, stack: ExitStack) -> NetNs | None:
    """`ip netns exec` knows a netns by its name alone."""
    if shutil.which("ip") is None:
        row.notes.append("without ip netns exec: ip is not on PATH")
        return None
    try:
        named = stack.enter_context(NetNs.create(f"pz-bench-{os.getpid()}"))
    except (PyztunError, OSError) as error:
        row.notes.append(f"without ip netns exec: {error}")
        return None
    stack.callback(named.remove)
    return named
