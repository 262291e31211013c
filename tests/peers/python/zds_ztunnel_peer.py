"""A ztunnel as ZDS describes Istio's, strict: judges a node agent.

    python zds_ztunnel_peer.py SOCKET

It dials, says Hello, serves what it is told to with real listeners (15008, 15006, 15001, which
answer `ok`), and prints a line of JSON for whatever happens. Like Istio's it ends, with status 1,
on an Add without info, a Keep behind the snapshot, a second SnapshotSent; it refuses what it cannot
read (more than 1024 bytes, another number of descriptors), and dials again. Commands, as lines on
stdin:

    status          what runs, what is pending, whether it is ready
    hold | release  answers are held back, in their order | are sent
    refuse UID WHY  its next Add is refused, as if it had failed to start
    twice           the next answer goes out twice
    unasked HEX     sends bytes that nobody asked for
    close           drops the connection and dials again
    quit
"""

import collections
import contextlib
import ctypes
import os
import selectors
import socket
import sys
import threading
import time
from typing import Any

import zds_wire as wire

PORTS = (15008, 15006, 15001)
CLONE_NEWNET = 0x40000000
IPV6_TRANSPARENT = 75
IP_TRANSPARENT = 19
RETRY_PENDING = 5.0
FIRST_WAIT, LONGEST_WAIT = 0.02, 15.0

libc = ctypes.CDLL(None, use_errno=True)


class Violation(Exception):
    """A protocol error: Istio's ztunnel ends here, and every pod of the node with it."""


# ---- listeners in a pod --------------------------------------------------------------------------


def enter(netns: int) -> None:
    if libc.setns(netns, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def listeners_in(netns: int) -> list[socket.socket]:
    """The three listeners; all or none. OSError."""
    made: list[socket.socket] = []
    errors: list[OSError] = []

    def work() -> None:
        try:
            enter(netns)
            for port in PORTS:
                made.append(listener(port))
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=work)  # it never comes home, and ends
    thread.start()
    thread.join()
    if errors:
        for sock in made:
            sock.close()
        raise errors[0]
    return made


def listener(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
        sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
        sock.bind(("::", port))
        sock.listen(1024)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"Bind([::]:{port}): {error.strerror}") from None
    return sock


class Proxy:
    """One workload: its netns, pinned, and its listeners."""

    def __init__(self, netns: int, loop: selectors.BaseSelector) -> None:
        self.netns = netns
        self.loop = loop
        self.sockets = listeners_in(netns)
        for sock in self.sockets:
            loop.register(sock, selectors.EVENT_READ, ok)

    def stop(self) -> None:
        for sock in self.sockets:
            self.loop.unregister(sock)
            sock.close()
        os.close(self.netns)


def ok(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the client may have gone already
        client, _ = sock.accept()
        with client:
            client.send(b"ok\n")
            client.shutdown(socket.SHUT_WR)


def identity(netns: int) -> tuple[int, int]:
    found = os.fstat(netns)
    return found.st_dev, found.st_ino


# ---- the state machine ---------------------------------------------------------------------------


class Ztunnel:
    def __init__(self, loop: selectors.BaseSelector) -> None:
        self.loop = loop
        self.running: dict[str, Proxy] = {}
        self.pending: dict[str, int] = {}
        self.refusals: dict[str, str] = {}
        self.retry_at: float | None = None
        self.reset()

    def reset(self) -> None:
        """A new connection: nothing stops."""
        self.snapshot = False
        self.named: set[str] = set()
        for netns in self.pending.values():
            os.close(netns)
        self.pending = {}
        self.retry_at = None

    def serve(self, kind: int, uid: str, info: list[str] | None, netns: int | None) -> str | None:
        """Why it was refused; None if it was done. Violation."""
        if kind == wire.ADD:
            assert netns is not None
            if info is None:
                os.close(netns)
                raise Violation("add without workload_info")
            return self.add(uid, netns)
        if kind == wire.KEEP:
            if self.snapshot:
                raise Violation("keep after the snapshot")
            self.named.add(uid)
        elif kind == wire.DEL:
            self.delete(uid)
        else:
            if self.snapshot:
                raise Violation("a second SnapshotSent")
            for each in [each for each in self.running if each not in self.named]:
                self.running.pop(each).stop()
            self.named = set()
            self.snapshot = True
        return None

    def add(self, uid: str, netns: int) -> str | None:
        if not self.snapshot:
            self.named.add(uid)
        old = self.running.get(uid)
        if old is not None:
            if identity(old.netns) == identity(netns):
                os.close(netns)
                return None
            self.running.pop(uid).stop()
        return self.start(uid, netns)

    def start(self, uid: str, netns: int) -> str | None:
        before = self.pending.pop(uid, None)
        if before is not None and before != netns:
            os.close(before)
        why = self.refusals.pop(uid, None)
        if why is None:
            try:
                self.running[uid] = Proxy(netns, self.loop)
            except OSError as error:
                why = error.strerror
        if why is None:
            return None
        self.pending[uid] = netns
        self.retry_at = self.retry_at or time.monotonic() + RETRY_PENDING
        return f"failure to start proxy : {why}"

    def delete(self, uid: str) -> None:
        self.named.discard(uid)
        if uid in self.pending:
            os.close(self.pending.pop(uid))
        if self.snapshot and uid in self.running:
            self.running.pop(uid).stop()

    def retry(self) -> None:
        self.retry_at = None
        for uid, netns in list(self.pending.items()):
            wire.say(event="retried", uid=uid, error=self.start(uid, netns))

    def status(self) -> dict[str, Any]:
        return {
            "running": {uid: os.fstat(each.netns).st_ino for uid, each in self.running.items()},
            "pending": sorted(self.pending),
            "ready": self.snapshot and not self.pending,
        }


# ---- the connection ------------------------------------------------------------------------------


class Program:
    def __init__(self, path: str) -> None:
        self.path = path
        self.loop = selectors.DefaultSelector()
        self.ztunnel = Ztunnel(self.loop)
        self.sock: socket.socket | None = None
        self.held: collections.deque[bytes] | None = None
        self.copies = 1
        self.wait = FIRST_WAIT
        self.dial_at = time.monotonic()
        self.input = b""
        os.set_blocking(0, False)
        self.loop.register(0, selectors.EVENT_READ, self.read_commands)

    def run(self) -> None:
        while True:
            now = time.monotonic()
            if self.sock is None and now >= self.dial_at:
                self.dial()
            if self.ztunnel.retry_at is not None and now >= self.ztunnel.retry_at:
                self.ztunnel.retry()
            due = [self.ztunnel.retry_at, None if self.sock else self.dial_at]
            times = [each for each in due if each is not None]
            timeout = max(0.0, min(times) - time.monotonic()) if times else None
            for key, _ in self.loop.select(timeout):
                if key.fd in self.loop.get_map():  # not closed by what came before it
                    key.data(key.fileobj)

    def dial(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        error = sock.connect_ex(self.path)
        if error:
            sock.close()
            self.dial_at = time.monotonic() + self.wait
            self.wait = min(self.wait * 2, LONGEST_WAIT)
            return
        self.wait = FIRST_WAIT
        self.sock = sock
        self.held = None if self.held is None else collections.deque()
        self.ztunnel.reset()
        self.loop.register(sock, selectors.EVENT_READ, self.read)
        wire.say(event="connected")
        self.send(wire.HELLO)

    def drop(self, why: str) -> None:
        if self.sock is not None:
            self.loop.unregister(self.sock)
            self.sock.close()
            self.sock = None
            self.dial_at = time.monotonic()
            wire.say(event="disconnected", why=why)

    def send(self, data: bytes) -> None:
        assert self.sock is not None
        try:
            self.sock.send(data)
        except OSError as error:
            self.drop(str(error.strerror))

    def answer(self, error: str | None) -> None:
        message = wire.nack(error) if error else wire.ACK
        for _ in range(self.copies):
            if self.held is None:
                if self.sock is not None:
                    self.send(message)
            else:
                self.held.append(message)
        self.copies = 1

    def read(self, sock: socket.socket) -> None:
        try:
            data, fds, flags = wire.receive(sock)
        except OSError as error:
            self.drop(str(error.strerror))
            return
        if not data and not fds:
            self.drop("EOF")
            return
        try:
            kind, uid, info = self.check(data, fds, flags)
        except wire.WireError as error:
            for fd in fds:
                os.close(fd)
            wire.say(event="unreadable", why=str(error), bytes=len(data), fds=len(fds))
            self.answer(f"failure to read message : {error}")
            self.drop("unreadable")
            return
        try:
            refusal = self.ztunnel.serve(kind, uid, info, fds[0] if fds else None)
        except Violation as violation:
            wire.say(event="violation", why=str(violation), uid=uid)
            self.answer(f"failure to process message : {violation}")
            sys.exit(1)
        wire.say(event=wire.NAMES[kind], uid=uid, info=info, error=refusal)
        self.answer(refusal)

    @staticmethod
    def check(data: bytes, fds: list[int], flags: int) -> wire.Request:
        if flags & socket.MSG_TRUNC:
            raise wire.WireError("truncated message")
        if flags & socket.MSG_CTRUNC:
            raise wire.WireError("truncated control message")
        request = wire.read_request(data)
        if request[0] == wire.ADD and not fds:
            raise wire.WireError("No control message")
        if request[0] == wire.ADD and len(fds) != 1:
            raise wire.WireError(f"Expected 1 FD, got {len(fds)}")
        if request[0] != wire.ADD and fds:
            raise wire.WireError("Unexpected control message")
        return request

    # ---- commands --------------------------------------------------------------------------------

    def read_commands(self, _: object) -> None:
        more = os.read(0, 65536)
        if not more:
            sys.exit(0)
        *lines, self.input = (self.input + more).split(b"\n")
        for line in lines:
            name, *rest = line.decode().split(" ", 2)
            getattr(self, f"do_{name}")(*rest)

    def do_status(self) -> None:
        wire.say(event="status", connected=self.sock is not None, **self.ztunnel.status())

    def do_hold(self) -> None:
        self.held = collections.deque()
        wire.say(event="holding")

    def do_release(self) -> None:
        held, self.held = list(self.held or ()), None
        for message in held:
            if self.sock is not None:
                self.send(message)
        wire.say(event="released", answers=len(held))

    def do_refuse(self, uid: str, why: str) -> None:
        self.ztunnel.refusals[uid] = why
        wire.say(event="refusing", uid=uid)

    def do_twice(self) -> None:
        self.copies = 2
        wire.say(event="twice")

    def do_unasked(self, data: str) -> None:
        self.send(bytes.fromhex(data))
        wire.say(event="unasked")

    def do_close(self) -> None:
        self.drop("asked")

    def do_quit(self) -> None:
        sys.exit(0)


if __name__ == "__main__":
    wire.say(event="started", pid=os.getpid())
    Program(sys.argv[1]).run()
