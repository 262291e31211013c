"""How people get a listener in a pod today; what the row `peers` measures beside us.

Each takes the pod and returns the socket, which the caller owns. All ask for the same:
SO_REUSEADDR, bind, and listen with our backlog. They are written with as much care as their means
allow.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.listen import BACKLOG, HOST, PORTS
from bench.programs import BenchError
from pyztun import NetNs, native

PORT = PORTS[0]
CLONE_NEWNET = 0x40000000

Make = Callable[[NetNs], socket.socket]


def by_pyztun(pod: NetNs) -> socket.socket:
    return pod.listen((HOST, PORT), backlog=BACKLOG)[0]


def libc_setns() -> Callable[[int, int], None]:
    libc = ctypes.CDLL(None, use_errno=True)

    def setns(fd: int, kind: int) -> None:
        if libc.setns(fd, kind) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "setns")

    return setns


def by_setns(setns: Callable[[int, int], None]) -> Make:
    """There and back in the calling thread, with as much care as Python allows."""

    def make(pod: NetNs) -> socket.socket:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            setns(pod.fileno(), CLONE_NEWNET)
            try:
                made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            finally:
                setns(home, CLONE_NEWNET)
        finally:
            os.close(home)
        return _listening(made)

    return make


def _listening(made: socket.socket) -> socket.socket:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((HOST, PORT))
    made.listen(BACKLOG)
    return made


def by_pyroute2(pod: NetNs) -> socket.socket:
    """It forks; the child goes there and sends the socket back."""
    from pyroute2 import netns as pyroute2_netns  # type: ignore[import-untyped]

    path = f"/proc/self/fd/{pod.fileno()}"
    with _without_interrupts():
        try:
            made = pyroute2_netns.create_socket(path, flags=0)
        except RuntimeError as error:  # the child died
            raise BenchError(f"pyroute2 create_socket: {error}") from error
    return _listening(made)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A forked child is a copy of us with our handlers, and pyroute2 ends it with SIGTERM.

    A handler that raises would send the child down our own with-blocks, where it would remove what
    is ours. A blocked signal stays blocked in the child, which ends by itself.
    """
    waiting = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waiting)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# What runs in the pod; the socket comes back over descriptor 0, as nobody else can make one there.
_IN_THE_POD = f"""
import socket
made = socket.socket()
made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
made.bind(({HOST!r}, {PORT}))
made.listen({BACKLOG})
socket.send_fds(socket.socket(fileno=0), [b"x"], [made.fileno()])
"""


def by_ip(pod: NetNs) -> socket.socket:
    """A python is started in the pod, with as little as it needs."""
    python = [sys.executable, "-I", "-S", "-c", _IN_THE_POD]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        argv = ["ip", "netns", "exec", pod.reference, *python]
        done = subprocess.run(
            argv, stdin=theirs.fileno(), stderr=subprocess.PIPE, text=True, check=False
        )
        if done.returncode == 0:
            _, fds = native.receive(ours.fileno(), 1, 1, timeout=0)
            return socket.socket(fileno=fds[0].detach())
    said = done.stderr.strip().splitlines()
    raise BenchError(
        f"ip netns exec ended with {done.returncode}: {said[-1] if said else 'no reason given'}"
    )
