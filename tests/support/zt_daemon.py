"""What several tests of the daemon ask: is it as before, and does it still serve others?"""

import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from pyztun import NetNs
from support import wire
from support.programs import Daemon

PORTS = (15008, 15006, 15001)
LISTENERS = [f"127.0.0.1:{port}" for port in PORTS]
ADDRESSES = " ".join(LISTENERS)
SMALL_TABLE = ["prlimit", "--nofile=1024:4096"]
"""A prefix: a soft limit that the daemon raises, to a hard one that a flood can reach."""


def settled_fds(daemon: Daemon, path: str) -> dict[int, str]:
    """The daemon's descriptors between requests.

    Just after READY=1 its notify socket, and just after an answer the connection, may be open yet;
    so two requests must have found the same.
    """
    before: dict[int, str] = {}
    for _ in range(1000):
        is_served(path)
        if daemon.fds() == before:
            return before
        before = daemon.fds()
    raise AssertionError(f"never settled: {before}")


def wait_until_fds_are(daemon: Daemon, before: dict[int, str], seconds: float = 10) -> None:
    """Waits until the daemon holds no descriptor that it did not hold before; fails with those.

    A socket's inode is its own, so one that was open then and is closed now hides nothing.
    """
    deadline = time.monotonic() + seconds
    while more := daemon.fds().items() - before.items():
        assert time.monotonic() < deadline, more
        os.sched_yield()


def is_served(path: str, seconds: float = 1) -> float:
    """Asks for the list over a fresh connection; returns how long it took. Fails after SECONDS."""
    began = time.monotonic()
    answer = wire.request(path, wire.LIST, seconds=seconds)
    took = time.monotonic() - began
    assert answer == "end" or answer.startswith("held "), answer
    assert took < seconds
    return took


def listing(path: str) -> list[str]:
    """The answer to LIST without its `end`."""
    with wire.Peer(path) as peer:
        peer.send(wire.LIST)
        return list(iter(peer.line, "end"))


@contextmanager
def netns(count: int) -> Iterator[list[NetNs]]:
    """COUNT fresh netns without names."""
    with ExitStack() as stack:
        yield [stack.enter_context(NetNs.create()) for _ in range(count)]


@contextmanager
def frozen(daemon: Daemon) -> Iterator[None]:
    """The daemon stands still (SIGSTOP): what is done meanwhile is queued and found all at once."""
    daemon.process.send_signal(signal.SIGSTOP)
    os.waitpid(daemon.pid, os.WUNTRACED)
    try:
        yield
    finally:
        daemon.process.send_signal(signal.SIGCONT)


@contextmanager
def connections(path: str, count: int) -> Iterator[Sequence[socket.socket]]:
    """COUNT connections that say nothing."""
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.connect(path)
            made.append(one)
        yield made
