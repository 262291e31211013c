"""A pod for the tests: a netns with a name, sockets in it, and the proof that it is gone."""

import ctypes
import itertools
import os
import re
import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")

NETNS_DIR = Path("/run/netns")
CLONE_NEWNET = 0x40000000
SO_NETNS_COOKIE = 71
RTMGRP_LINK = 1
TCP_LISTEN = "0A"

_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)


def unique_name() -> str:
    """A name for a netns that no other run uses; the leak check knows it by its form."""
    return f"pz{os.getpid()}-{next(_numbers)}"


def owner_of(name: str) -> int | None:
    """The pid of the test run that made this name, None if it was not made by unique_name()."""
    match = re.fullmatch(r"pz(\d+)-\w+", name)
    return int(match[1]) if match else None


def names() -> set[str]:
    """The entries of /run/netns."""
    try:
        return {entry.name for entry in NETNS_DIR.iterdir()}
    except FileNotFoundError:
        return set()


def remove_remains() -> None:
    """Deletes the netns that a killed run left; those of a living one are not touched."""
    for name in names():
        owner = owner_of(name)
        if owner is not None and not Path(f"/proc/{owner}").exists():
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


# ---- work inside a netns -----------------------------------------------------------------------


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def in_thread(work: Callable[[], T]) -> T:
    """Runs WORK in a thread made for it, which may lose its netns: the main thread never moves."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="in-netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def in_netns(netns: int | str | os.PathLike[str], work: Callable[[], T]) -> T:
    """Runs WORK in a fresh thread inside NETNS (a path, or an fd that stays the caller's).

    Sockets and child processes that WORK makes belong to that netns, and can be used from anywhere.
    """

    def moved() -> T:
        fd = netns if isinstance(netns, int) else os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _checked(_libc.setns(fd, CLONE_NEWNET), "setns")
        finally:
            if fd != netns:
                os.close(fd)
        return work()

    return in_thread(moved)


def nameless_netns() -> int:
    """A new netns with loopback up and no name; the caller closes the fd, and with it the netns."""

    def make() -> int:
        _checked(_libc.unshare(CLONE_NEWNET), "unshare")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return in_thread(make)


def cookie_of(netns: int | str | os.PathLike[str]) -> int:
    """The cookie of a netns, from a socket in it: a witness that shares no code with pyztun."""

    def ask() -> int:
        with socket.socket() as probe:
            raw = probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
        return int.from_bytes(raw, "little")

    return in_netns(netns, ask)


def _listening_here() -> set[str]:
    found = set()
    for line in Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state = line.split()[:4]
        if state == TCP_LISTEN:
            address, port = local.split(":")
            quad = socket.inet_ntoa(int(address, 16).to_bytes(4, "little"))
            found.add(f"{quad}:{int(port, 16)}")
    return found


def listening(netns: int | str | os.PathLike[str] | None = None) -> set[str]:
    """What listens on IPv4 TCP in NETNS (by default: where we are), as "127.0.0.1:15008"."""
    return _listening_here() if netns is None else in_netns(netns, _listening_here)


# ---- a pod -------------------------------------------------------------------------------------


class Pod:
    """A netns made by `ip netns add`, loopback up. Made by the fixtures, which also delete it."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name or unique_name()
        self.path = f"/run/netns/{self.name}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        subprocess.run(["ip", "-n", self.name, "link", "set", "lo", "up"], check=True)
        self.cookie = cookie_of(self.path)
        self.inode = os.stat(self.path).st_ino

    @property
    def exists(self) -> bool:
        return os.path.lexists(self.path)

    def delete(self) -> None:
        """`ip netns delete`. The namespace itself lives on while a socket or an fd holds it."""
        subprocess.run(["ip", "netns", "delete", self.name], check=True)

    def open(self) -> int:
        """An fd of the netns; the caller closes it."""
        return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    @contextmanager
    def opened(self) -> Iterator[int]:
        """An fd of the netns for the length of a with-block."""
        fd = self.open()
        try:
            yield fd
        finally:
            os.close(fd)

    def exec(self, *argv: str) -> "subprocess.CompletedProcess[str]":
        """`ip netns exec NAME ARGV...`; the caller checks the exit code."""
        command = ["ip", "netns", "exec", self.name, *argv]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    def listening(self) -> set[str]:
        return listening(self.path)

    def connect(self, port: int, host: str = "127.0.0.1") -> socket.socket:
        """A connection made by a client inside the pod; the caller closes it."""
        return in_netns(self.path, lambda: socket.create_connection((host, port), timeout=10))

    def ask(self, port: int, say: bytes = b"", host: str = "127.0.0.1") -> bytes:
        """Connects, says SAY, and returns all that comes until the other end closes."""
        with self.connect(port, host) as client:
            if say:
                client.sendall(say)
            return read_to_end(client)

    def refuses(self, port: int, host: str = "127.0.0.1") -> bool:
        """Whether a connection is refused; any other failure is raised.

        One that is reset was accepted: the RST may come before connect() returns.
        """
        try:
            self.connect(port, host).close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:
            return False
        return False

    def resets(self, port: int, host: str = "127.0.0.1") -> bool:
        """Whether a connection is accepted and then reset, without a byte.

        So ztunnel ends one that was not redirected to it. False if somebody says something or
        closes; ConnectionRefusedError where nobody listens.
        """
        try:
            with self.connect(port, host) as client:
                client.recv(1)
        except ConnectionResetError:
            return True
        return False


def read_to_end(client: socket.socket) -> bytes:
    """All bytes until the other end closes; ConnectionResetError if it reset the connection."""
    return b"".join(iter(lambda: client.recv(65536), b""))


class Canary:
    """Tells when the netns of a pod dies.

    The kernel destroys a veth pair with the netns of either end, and a netns dies when its last
    socket, fd, mount and process is gone. So one end goes into the pod, the other into a netns of
    our own, where the kernel reports its end (RTM_DELLINK). No fd of the pod is kept: it would pin.
    """

    def __init__(self, pod: Pod) -> None:
        self._watch = nameless_netns()
        make = ["ip", "link", "add", "canary", "type", "veth", "peer", "name", "canary"]
        in_netns(self._watch, lambda: subprocess.run([*make, "netns", pod.name], check=True))
        self._events = in_netns(self._watch, _link_events)

    @property
    def alive(self) -> bool:
        found = in_netns(self._watch, socket.if_nameindex)
        return any(name == "canary" for _, name in found)

    def died(self, seconds: float = 20) -> bool:
        """Waits until the pod's netns is dead; False if it still lives after so many seconds."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._events, select.POLLIN)
        while self.alive:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if poll.poll(left * 1000):
                self._events.recv(65536)
        return True

    def close(self) -> None:
        self._events.close()
        os.close(self._watch)

    def __enter__(self) -> "Canary":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _link_events() -> socket.socket:
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    events.bind((0, RTMGRP_LINK))
    return events
