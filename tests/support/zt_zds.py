"""A node agent made of bytes, for pyztun-ztunnel --zds; no code of the program is used here.

A Node is an agent's socket and a ztunnel that dialled it; `link` is their connection.
"""

import array
import ctypes
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from support import pods
from support.pods import Pod
from support.programs import Daemon

HELLO, ACK = bytes.fromhex("0801"), bytes.fromhex("0a00")
SNAPSHOT_SENT = bytes.fromhex("1a00")
PORTS = {15008, 15006, 15001}
MAX_MESSAGE = 1024
SIOCGSKNS = 0x894C
PIDFD_GETFD = 438
IP_TRANSPARENT = 19

_libc = ctypes.CDLL(None, use_errno=True)

Start = Callable[..., Daemon]
Netns = Pod | int
"""A pod, or an fd of a netns."""


# ---- bytes ---------------------------------------------------------------------------------------


def field(number: int, content: bytes | str) -> bytes:
    """A length-delimited field of protobuf."""
    data = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def info(name: str = "n", namespace: str = "m", service_account: str = "s") -> bytes:
    """WorkloadInfo."""
    return field(1, name) + field(2, namespace) + field(3, service_account)


def add(uid: str | bytes, workload_info: bytes | None = None) -> bytes:
    """WorkloadRequest.add"""
    return field(1, field(1, uid) + field(2, info() if workload_info is None else workload_info))


def keep(uid: str | bytes) -> bytes:
    """WorkloadRequest.keep"""
    return field(5, field(1, uid))


def delete(uid: str | bytes) -> bytes:
    """WorkloadRequest.del"""
    return field(2, field(2, uid))


def error_of(response: bytes) -> str:
    """Reads a WorkloadResponse strictly: "" for an ACK, else the text of the NACK."""
    assert 2 <= len(response) <= MAX_MESSAGE, response
    body = _only_field(response, "response")
    text = _only_field(body, "ack") if body else b""
    assert len(text) < 1000, text
    return text.decode()


def _only_field(data: bytes, what: str) -> bytes:
    assert data[0] == 0x0A, (what, data)
    size, at = data[1], 2
    if size >= 0x80:
        size, at = size & 0x7F | data[2] << 7, 3
    assert len(data) == at + size, (what, data)
    return data[at:]


# ---- connections ---------------------------------------------------------------------------------


class Link:
    """The agent's end of one connection. Waits ten seconds at most for anything (TimeoutError)."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.socket.settimeout(10)
        # poll() finds no room in a Unix socket that is a quarter full: 70 requests of the default.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Sends one message; the fds stay the caller's."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        sent = self.socket.sendmsg([data], [rights] if fds else [])
        assert sent == len(data)

    def receive(self) -> bytes:
        """The next message; b"" at the end."""
        try:
            return self.socket.recv(4096)
        except ConnectionResetError:  # said once, and first: it closed with requests unread
            return self.socket.recv(4096)

    def answer(self) -> str:
        """The next answer: "" for an ACK, else the text of the NACK."""
        return error_of(self.receive())

    def ask(self, data: bytes, fds: Sequence[int] = ()) -> str:
        """Sends one request and returns its answer."""
        self.send(data, fds)
        return self.answer()

    def add(self, uid: str, netns: Netns, workload_info: bytes | None = None) -> str:
        """Asks for a workload."""
        fd = netns if isinstance(netns, int) else netns.open()
        try:
            return self.ask(add(uid, workload_info), [fd])
        finally:
            if fd != netns:
                os.close(fd)

    def serve(self, uid: str, netns: Netns) -> None:
        """Asks for a workload and expects an ACK."""
        assert self.add(uid, netns) == ""

    def keep(self, uid: str) -> str:
        return self.ask(keep(uid))

    def delete(self, uid: str) -> str:
        return self.ask(delete(uid))

    def snapshot_sent(self) -> str:
        return self.ask(SNAPSHOT_SENT)

    def has_ended(self) -> bool:
        """Waits for what comes next: True if it is the end, False if it is a message."""
        return not self.receive()

    def close(self) -> None:
        self.socket.close()


class Agent:
    """The agent's socket file."""

    def __init__(self, path: str, kind: int = socket.SOCK_SEQPACKET, backlog: int = 128) -> None:
        self._path = path
        self.socket = socket.socket(socket.AF_UNIX, kind)
        self.socket.bind(path)
        self.socket.listen(backlog)
        self.links: list[Link] = []

    def accept_raw(self, seconds: float = 10) -> Link:
        """The next connection, before its Hello."""
        self.socket.settimeout(seconds)
        link = Link(self.socket.accept()[0])
        self.links.append(link)
        return link

    def accept(self, seconds: float = 10) -> Link:
        """The next connection, which says Hello first."""
        link = self.accept_raw(seconds)
        assert link.receive() == HELLO
        return link

    def close(self) -> None:
        """All connections, the listener and its file are gone."""
        for link in self.links:
            link.close()
        self.socket.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)

    def __enter__(self) -> "Agent":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Node:
    """An agent and a ztunnel that has dialled it. At the end of its block ztunnel must be well.

    snapshot   the first connection's snapshot, an empty one, is done
    args ...   of Daemon
    """

    def __init__(
        self,
        start: Start,
        path: str,
        *args: str,
        wrap: Sequence[str] = (),
        env: dict[str, str] | None = None,
        snapshot: bool = True,
    ) -> None:
        self._path = path
        self.agent = Agent(path)
        try:
            self.daemon = start("--zds", path, *args, wrap=wrap, env=env)
            self.link = self.agent.accept()
        except BaseException:
            self.agent.close()
            raise
        if snapshot:
            assert self.link.snapshot_sent() == ""

    def lose_agent(self) -> None:
        """The agent dies; nobody listens any more."""
        self.agent.close()

    def new_agent(self) -> Link:
        """Another agent is there, and ztunnel has dialled it."""
        self.agent.close()
        self.agent = Agent(self._path)
        self.link = self.agent.accept()
        return self.link

    def reconnect(self) -> Link:
        """The agent closes the connection alone; the next one."""
        self.link.close()
        self.link = self.agent.accept()
        return self.link

    def is_well(self) -> None:
        """Answers are paired with their requests, and nothing surprised it."""
        assert self.daemon.process.poll() is None, self.daemon.stderr.all()
        assert self.link.delete("nobody knows it") == ""
        self.link.socket.setblocking(False)
        with suppress(BlockingIOError):
            raise AssertionError(f"an answer too many: {self.link.receive()!r}")
        self.link.socket.settimeout(10)

    def holds(self, pod: Pod) -> int:
        """How many open descriptors of this netns ztunnel has; a socket of it is none.

        One while it is served or pending. It may let go of others behind its ACK, and has by the
        time of the next answer.
        """
        assert self.link.delete("nobody") == ""
        inodes = []
        for number in self.daemon.fds():
            with suppress(FileNotFoundError):
                inodes.append(os.stat(f"/proc/{self.daemon.pid}/fd/{number}").st_ino)
        return inodes.count(pod.inode)

    def end(self) -> None:
        """SIGTERM, exit 0, and no traceback before."""
        assert self.daemon.stop() == 0
        no_bug(self.daemon)

    def __enter__(self) -> "Node":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None and self.daemon.process.poll() is None:
                self.is_well()
                self.end()
        finally:
            self.agent.close()


def no_bug(daemon: Daemon) -> None:
    """Its log names no bug and holds no traceback; each line of it is one event."""
    lines = daemon.stderr.all()
    bad = [line for line in lines if "Traceback" in line or line.split()[1:2] == ["error"]]
    assert not bad, bad
    assert all(line[:2] == "20" for line in lines), lines  # each begins with its time


# ---- what a pod sees -----------------------------------------------------------------------------


def _listening_here() -> set[int]:
    found = set()
    for name in ("tcp", "tcp6"):
        with suppress(FileNotFoundError):
            for line in Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]:
                local, state = line.split()[1], line.split()[3]
                if state == pods.TCP_LISTEN:
                    found.add(int(local.rpartition(":")[2], 16))
    return found


def ports(netns: Netns) -> set[int]:
    """The ports on which something listens in a netns, of either family."""
    return pods.in_netns(netns if isinstance(netns, int) else netns.path, _listening_here)


def serves(pod: Pod) -> bool:
    """Whether all three ports are listened on and accepted from, or none is; a mixture fails."""
    found = ports(pod)
    assert found in (PORTS, set()), found
    assert all(map(pod.resets, found))
    return found == PORTS


def blocker(pod: Pod, port: int = 15008) -> socket.socket:
    """Somebody else's listener on the port, without SO_REUSEPORT; the caller closes it."""

    def listen() -> socket.socket:
        taken = socket.socket(socket.AF_INET6)
        taken.bind(("::", port))
        taken.listen()
        return taken

    return pods.in_netns(pod.path, listen)


def until(condition: Callable[[], bool], what: str, seconds: float = 15) -> None:
    """Asks until it is so; fails after so many seconds."""
    assert becomes(condition, seconds), f"not in {seconds} s: {what}"


def becomes(condition: Callable[[], bool], seconds: float = 15) -> bool:
    """Asks until it is so; whether it came true in so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        os.sched_yield()
    return True


@contextmanager
def another_fd(pod: Pod) -> Iterator[int]:
    """The netns of a pod, opened through a socket that belongs to it (SIOCGSKNS)."""
    with pods.in_netns(pod.path, socket.socket) as inside:
        fd = fcntl.ioctl(inside.fileno(), SIOCGSKNS)
    try:
        yield fd
    finally:
        os.close(fd)


# ---- what ztunnel holds --------------------------------------------------------------------------


class Listener(NamedTuple):
    """A listening socket of ztunnel, asked by a duplicate of it (pidfd_getfd)."""

    cookie: int
    """of its netns"""
    inode: str
    """of the socket"""
    address: str
    port: int
    backlog: int
    reuse_port: bool
    reuse_addr: bool
    v6only: bool
    mark: int
    transparent: bool


def listeners(daemon: Daemon) -> list[Listener]:
    """All TCP listeners that the daemon holds, by netns and port."""
    found = []
    with open(os.pidfd_open(daemon.pid)) as pidfd:
        for number, target in daemon.fds().items():
            if target.startswith("socket:"):
                with _duplicate(pidfd.fileno(), number) as sock:
                    if sock.family in (socket.AF_INET, socket.AF_INET6) and _option(
                        sock, socket.SOL_SOCKET, socket.SO_ACCEPTCONN
                    ):
                        found.append(_asked(sock, target))
    return sorted(found, key=lambda each: (each.cookie, each.port))


def _duplicate(pidfd: int, number: int) -> socket.socket:
    fd = _libc.syscall(PIDFD_GETFD, pidfd, number, 0)
    if fd == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), f"pidfd_getfd({number})")
    return socket.socket(fileno=fd)


def _asked(sock: socket.socket, inode: str) -> Listener:
    raw = sock.getsockopt(socket.SOL_SOCKET, pods.SO_NETNS_COOKIE, 8)
    tcp_info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    is_ipv6 = sock.family == socket.AF_INET6
    return Listener(
        cookie=int.from_bytes(raw, "little"),
        inode=inode,
        address=sock.getsockname()[0],
        port=sock.getsockname()[1],
        backlog=int.from_bytes(tcp_info[28:32], "little"),  # tcpi_sacked, of a listener
        reuse_port=_option(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT) != 0,
        reuse_addr=_option(sock, socket.SOL_SOCKET, socket.SO_REUSEADDR) != 0,
        v6only=is_ipv6 and _option(sock, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) != 0,
        mark=_option(sock, socket.SOL_SOCKET, socket.SO_MARK),
        transparent=_option(sock, socket.IPPROTO_IP, IP_TRANSPARENT) != 0,
    )


def _option(sock: socket.socket, level: int, name: int) -> int:
    return sock.getsockopt(level, name)
