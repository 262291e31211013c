"""Row `fdpass`: one descriptor sent over a Unix socket pair, received and closed again.

A netns and one byte, as in the seed form. Sender and receiver are one thread, so that no wake-up is
measured, and all contenders work on the same CPU, each in a thread that is not the main one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from time import perf_counter_ns

import pyztun
from bench import machine, programs
from bench.rounds import Turn, interleave
from bench.statistics import Row
from pyztun import NetNs, native
from pyztun._core import ffi, lib

NAME = "fdpass"
TITLE = "send, receive and close one descriptor"
ROUNDS = 250
TRIPS = 100
BYTE = b"\x01"

Trip = Callable[[], int]
"""Sends the netns and returns the descriptor that came, which the caller owns."""


def measure(shop: programs.Workshop, rounds: int) -> Row:
    """Runs the row."""
    row = Row(NAME, TITLE, "us")
    with ExitStack() as stack:
        machine.stay_on_one_cpu(stack)
        pod = stack.enter_context(NetNs.create())
        argv = [shop.floor, "pass", str(pod.fileno())]
        floor = stack.enter_context(
            programs.Process(argv, shop.directory, inherited=[pod.fileno()])
        )
        ends = socket.socketpair()
        for end in ends:
            stack.enter_context(end)
        worker = stack.enter_context(ThreadPoolExecutor(1))
        turns: dict[str, Turn] = {"floor": lambda: [ns / 1000 for ns in floor.ask(str(TRIPS))]}
        for name, trip in _trips(pod.fileno(), *ends).items():
            _prove(row, name, trip, pod)
            turns[name] = _turn(worker, trip)
        row.samples = interleave(NAME, turns, rounds)
    for name in row.samples:
        if name != "floor":
            row.compare(name, "floor")
    return row


def _trips(pod: int, left: socket.socket, right: socket.socket) -> dict[str, Trip]:
    return {
        "lib": _by_lib(pod, left.fileno(), right.fileno()),
        "native.send, native.receive": _by_native(pod, left.fileno(), right.fileno()),
        "pyztun.send_fds, recv_fds": _by_library(pod, left, right),
        "socket.send_fds, recv_fds": _by_socket(pod, left, right),
    }


def _by_lib(pod: int, left: int, right: int) -> Trip:
    data, fds, nfds = ffi.new("uint8_t[]", 1), ffi.new("int[]", 1), ffi.new("size_t *")
    send, receive = lib.pz_send, lib.pz_recv

    def trip() -> int:
        if send(left, BYTE, 1, [pod], 1, -1) != 1 or receive(right, data, 1, fds, 1, nfds, -1) != 1:
            raise programs.BenchError("pz_send or pz_recv failed")
        return int(fds[0])

    return trip


def _by_native(pod: int, left: int, right: int) -> Trip:
    def trip() -> int:
        native.send(left, BYTE, [pod])
        _, fds = native.receive(right, 1, 1)
        return fds[0].detach()

    return trip


def _by_library(pod: int, left: socket.socket, right: socket.socket) -> Trip:
    send_fds, recv_fds = pyztun.send_fds, pyztun.recv_fds

    def trip() -> int:
        send_fds(left, BYTE, [pod])
        return recv_fds(right, 1, 1)[1][0].detach()

    return trip


def _by_socket(pod: int, left: socket.socket, right: socket.socket) -> Trip:
    def trip() -> int:
        socket.send_fds(left, [BYTE], [pod])
        return socket.recv_fds(right, 1, 1)[1][0]

    return trip


def _prove(row: Row, name: str, trip: Trip, pod: NetNs) -> None:
    """What comes must be the netns; what a program that this process starts would inherit is noted.

    recv_fds() passes no MSG_CMSG_CLOEXEC on, and to set it later leaves a gap to fork().
    """
    fd = trip()
    try:
        if os.fstat(fd).st_ino != pod.inode:
            raise programs.BenchError(f"{name}: another file came than was sent")
        if os.get_inheritable(fd):
            row.notes.append(f"{name}: the descriptor that comes is not close-on-exec")
    finally:
        os.close(fd)


def _turn(worker: ThreadPoolExecutor, trip: Trip) -> Turn:
    def work() -> list[float]:
        close = os.close
        begin = perf_counter_ns()
        for _ in range(TRIPS):
            close(trip())
        return [(perf_counter_ns() - begin) / TRIPS / 1000]

    return lambda: worker.submit(work).result()
