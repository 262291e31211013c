"""Both ends of a connection through the relay, in one process: what they say and how they end."""

from __future__ import annotations

import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Generic, TypeVar

from pyztun import NetNs
from support import pods

T = TypeVar("T")

SECONDS = 10.0
"""That anything takes at most."""
PORT = 80
QUIET = 0.1
"""Seconds after which a socket that takes no more is taken for one that is blocked."""


# ---- connections ---------------------------------------------------------------------------------


def listening(netns: NetNs, address: str, port: int = PORT, backlog: int = 128) -> socket.socket:
    """A listener in a pod, on which nobody waits for ever."""
    (listener,) = netns.listen((address, port), backlog=backlog)
    listener.settimeout(SECONDS)
    return listener


def accept(listener: socket.socket) -> tuple[socket.socket, str]:
    """The next connection, and the address of its client."""
    sock, (host, *_) = listener.accept()
    sock.settimeout(SECONDS)
    return sock, host


def dial(netns: NetNs, address: str, port: int = PORT) -> socket.socket:
    """A client in a pod."""
    return netns.connect((address, port), SECONDS)


@contextmanager
def joined(
    client: NetNs, server: NetNs, address: str, port: int = PORT
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection, as its two ends, of which a byte has gone both ways."""
    with ExitStack() as stack:
        one, other = stack.enter_context(several(client, server, address, 1, port))[0]
        assert carries(one, other)
        yield one, other


@contextmanager
def several(
    client: NetNs, server: NetNs, address: str, count: int, port: int = PORT
) -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """So many connections, one after the other."""
    with ExitStack() as stack:
        listener = stack.enter_context(listening(server, address, port))
        made = []
        for _ in range(count):
            one = stack.enter_context(dial(client, address, port))
            other = stack.enter_context(accept(listener)[0])
            made.append((one, other))
        yield made


def carries(one: socket.socket, other: socket.socket) -> bool:
    """Whether a byte arrives in each direction."""
    one.sendall(b"a")
    other.sendall(b"b")
    return (other.recv(1), one.recv(1)) == (b"a", b"b")


def port_of(sock: socket.socket) -> int:
    """Its own port."""
    return int(sock.getsockname()[1])


# ---- ends ----------------------------------------------------------------------------------------


def reset(sock: socket.socket) -> None:
    """Closes it with an RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_to_end(sock: socket.socket) -> bytes:
    """All that comes until a FIN; ConnectionResetError for an RST."""
    return b"".join(iter(lambda: sock.recv(1 << 20), b""))


def is_reset(sock: socket.socket) -> bool:
    """Reads to the end: whether it is an RST. TimeoutError if there is none."""
    try:
        read_to_end(sock)
    except ConnectionResetError:
        return True
    return False


def ends(sock: socket.socket) -> str:
    """How a connection that is being made or is there ends, without a byte being said."""
    try:
        got = sock.recv(1)
    except ConnectionResetError:
        return "reset"
    return f"said {got!r}" if got else "closed"


def fate(netns: NetNs, address: str, port: int = PORT, say: bytes = b"") -> tuple[str, int]:
    """What comes of a connection: refused, reset, closed or said, and its port.

    An RST may be there before connect() returns.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with netns.socket(family) as sock:
        sock.settimeout(SECONDS)
        sock.bind(("", 0))
        own = port_of(sock)
        try:
            sock.connect((address, port))
            sock.sendall(say)
            return ends(sock), own
        except ConnectionRefusedError:
            return "refused", own
        except (ConnectionResetError, BrokenPipeError):
            return "reset", own


# ---- much ----------------------------------------------------------------------------------------


def say_and_shut(sock: socket.socket, data: bytes) -> None:
    """Says all of it, and ends its half."""
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def fill(sock: socket.socket, block: bytes) -> int:
    """Sends the block again and again until nothing is taken any more; how many bytes were."""
    return fill_all([sock], block)[sock.fileno()]


def fill_all(socks: Sequence[socket.socket], block: bytes) -> dict[int, int]:
    """The same with many at once; by descriptor."""
    poll, sent = select.poll(), {sock.fileno(): 0 for sock in socks}
    by_fd = {sock.fileno(): sock for sock in socks}
    for fd in by_fd:
        poll.register(fd, select.POLLOUT)
    while ready := poll.poll(QUIET * 1000):
        for fd, _ in ready:
            with suppress(BlockingIOError):
                rest = block[sent[fd] % len(block) :]
                sent[fd] += by_fd[fd].send(rest, socket.MSG_DONTWAIT)
    return sent


def is_block(data: bytes, block: bytes) -> bool:
    """Whether it is what fill() of that block sends."""
    whole, rest = divmod(len(data), len(block))
    return data == block * whole + block[:rest]


def until(holds: Callable[[], bool], seconds: float = SECONDS) -> bool:
    """Asks again and again until it holds; False if the time is over before."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


# ---- somebody else does it -----------------------------------------------------------------------


class Worker(Generic[T]):
    """A thread that does one thing; join() gives what it returned, or raises what it raised."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="worker")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:
            self._error = error

    def join(self, seconds: float = 60) -> T:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the worker does not end"
        if self._error is not None:
            raise self._error
        return self._results[0]


@contextmanager
def answering(listener: socket.socket, answer: Callable[[socket.socket], object]) -> Iterator[None]:
    """A server with a thread for each connection, for the length of a with-block.

    What a thread raises about its connection is the test's own business: the client sees it too.
    """
    threads: list[threading.Thread] = []
    listener.setblocking(True)

    def one(sock: socket.socket) -> None:
        with sock:
            sock.settimeout(SECONDS)
            with suppress(OSError):
                answer(sock)

    def run() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:  # shut down: the end
                return
            threads.append(threading.Thread(target=one, args=(sock,), name="answer"))
            threads[-1].start()

    acceptor = threading.Thread(target=run, name="acceptor")
    acceptor.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join()
        for thread in threads:
            thread.join()


def echo(sock: socket.socket) -> None:
    """Says what it hears, to the end."""
    while data := sock.recv(1 << 16):
        sock.sendall(data)


@contextmanager
def program(
    netns: NetNs, *argv: str, stdin: IO[bytes] | int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a pod, whose output is piped; killed at the end of the with-block."""
    pipe = subprocess.PIPE

    def begin() -> subprocess.Popen[bytes]:
        return subprocess.Popen(argv, stdin=stdin, stdout=pipe, stderr=pipe)

    with pods.in_netns(netns.fileno(), begin) as process:
        try:
            yield process
        finally:
            process.kill()


def words(netns: NetNs, line: str) -> str:
    """A command run in a pod, which succeeds; what it printed."""

    def go() -> str:
        done = subprocess.run(line.split(), capture_output=True, text=True, check=True, timeout=30)
        return done.stdout

    return pods.in_netns(netns.fileno(), go)
