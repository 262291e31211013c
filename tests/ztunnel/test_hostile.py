"""Hostile peers under a small fd table: each gets its answer, every descriptor that it sent is
closed, and others are served within a second meanwhile."""

import contextlib
import os
import re
import resource
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import wire
from support.programs import Daemon
from support.zt_daemon import (
    SMALL_TABLE,
    connections,
    frozen,
    is_served,
    netns,
    settled_fds,
    wait_until_fds_are,
)

Start = Callable[..., Daemon]


@pytest.fixture
def daemon(start: Start, sock_path: str) -> Daemon:
    """The daemon under `prlimit --nofile=1024:4096`."""
    return start(sock_path, wrap=SMALL_TABLE)


@pytest.fixture
def unharmed(daemon: Daemon, sock_path: str) -> Iterator[Daemon]:
    """The daemon, which after the test must be as it was before: descriptors, threads, calm."""
    before = settled_fds(daemon, sock_path)
    threads = daemon.threads()
    yield daemon
    is_served(sock_path)
    wait_until_fds_are(daemon, before)
    assert daemon.threads() == threads
    assert daemon.stop() == 0
    assert "Traceback" not in "\n".join(daemon.stderr.all())


# ---- one request that is wrong -------------------------------------------------------------------

FDS = "descriptors came where"
COOKIE = "a cookie is 1 to 20 digits"
WRONG = [
    (wire.TAKE, 0, f"0 {FDS} one"),
    (wire.TAKE, 2, f"2 {FDS} one"),
    (wire.TAKE, 3, f"3 {FDS} one"),
    (wire.TAKE, 250, f"250 {FDS} one"),
    (wire.TAKE, 253, f"253 {FDS} one"),
    (wire.RELEASE, 0, f"0 {FDS} one"),
    (wire.RELEASE, 2, f"2 {FDS} one"),
    (wire.RELEASE, 253, f"253 {FDS} one"),
    (wire.LIST, 1, f"1 {FDS} none"),
    (wire.LIST, 253, f"253 {FDS} none"),
    (wire.RELEASE_COOKIE + b"7\n", 1, f"1 {FDS} none"),
    (wire.RELEASE_COOKIE + b"7\n", 253, f"253 {FDS} none"),
    (b"\x00", 0, "unknown request byte 0x00"),
    (b"\x05", 0, "unknown request byte 0x05"),
    (b"\x05", 253, "unknown request byte 0x05"),
    (b"\xff", 1, "unknown request byte 0xff"),
    (b"GET / HTTP/1.1\r\n\r\n", 0, "unknown request byte 0x47"),
    (b"\n", 0, "unknown request byte 0x0a"),
    (wire.RELEASE_COOKIE + b"\n", 0, COOKIE),
    (wire.RELEASE_COOKIE + b"x\n", 0, COOKIE),
    (wire.RELEASE_COOKIE + b"-1\n", 0, COOKIE),
    (wire.RELEASE_COOKIE + b" 1\n", 0, COOKIE),
    (wire.RELEASE_COOKIE + b"1\r\n", 0, COOKIE),
    (wire.RELEASE_COOKIE + b"1\0\n", 0, COOKIE),
    (wire.RELEASE_COOKIE + b"18446744073709551616\n", 0, COOKIE),
    (wire.RELEASE_COOKIE + b"99999999999999999999\n", 0, COOKIE),
    (wire.RELEASE_COOKIE + b"000000000000000000001\n", 0, COOKIE),
    (wire.RELEASE_COOKIE + b"1" * 100_000, 0, COOKIE),
    (wire.TAKE + wire.TAKE, 0, f"0 {FDS} one"),
]


def test_each_malformed_request_is_answered_and_closed(unharmed: Daemon, sock_path: str) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    for data, count, reason in WRONG:
        with wire.Peer(sock_path) as peer:
            with contextlib.suppress(BrokenPipeError):  # closed before it took a long one
                peer.send(data, [null] * count)
            answer = peer.line()
            assert answer.startswith(f"error {reason}"), (data[:30], count, answer)
            assert peer.at_end(), (data[:30], count)
        is_served(sock_path)
    os.close(null)


def test_the_largest_cookie_is_no_error(unharmed: Daemon, sock_path: str) -> None:
    for digits in (b"18446744073709551615", b"00000000000000000001", b"0"):
        answer = wire.request(sock_path, wire.RELEASE_COOKIE + digits + b"\n")
        assert answer == f"released netns={int(digits)}"


def test_half_a_request_and_the_end(unharmed: Daemon, sock_path: str) -> None:
    for half in (wire.RELEASE_COOKIE, wire.RELEASE_COOKIE + b"12"):
        with wire.Peer(sock_path) as peer:
            peer.send(half)
            peer.socket.shutdown(socket.SHUT_WR)
            assert peer.lines() == ["error the connection ended in the middle of a request"]


def test_a_descriptor_in_the_middle_of_a_cookie(unharmed: Daemon, sock_path: str) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    for count in (1, 2, 253):
        with wire.Peer(sock_path) as peer:
            peer.send(wire.RELEASE_COOKIE + b"12")
            peer.send(b"3\n", [null] * count)
            assert peer.line().startswith("error ")
            assert peer.at_end()
    os.close(null)


# ---- descriptors that are no netns of a pod ------------------------------------------------------


def tcp_socket() -> int:
    return socket.socket().detach()


KINDS: dict[str, Callable[[], int]] = {
    "regular file": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "directory": lambda: os.open("/", os.O_RDONLY),
    "device": lambda: os.open("/dev/zero", os.O_RDWR),
    "terminal": lambda: os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY),
    "pipe": lambda: os.dup(0),
    "eventfd": lambda: os.eventfd(0),
    "memfd": lambda: os.memfd_create("x"),
    "tcp socket": tcp_socket,
    "pidfd": lambda: os.pidfd_open(os.getpid()),
    "mount ns": lambda: os.open("/proc/self/ns/mnt", os.O_RDONLY),
    "user ns": lambda: os.open("/proc/self/ns/user", os.O_RDONLY),
    "pid ns": lambda: os.open("/proc/self/ns/pid", os.O_RDONLY),
    "uts ns": lambda: os.open("/proc/self/ns/uts", os.O_RDONLY),
    "path of a netns": lambda: os.open("/proc/self/ns/net", os.O_PATH),
    "path of a file": lambda: os.open("/etc/passwd", os.O_PATH),
    "home": lambda: os.open("/proc/self/ns/net", os.O_RDONLY),
}


def test_what_is_no_pod_is_refused_and_the_connection_stays(
    unharmed: Daemon, sock_path: str
) -> None:
    with wire.Peer(sock_path) as peer:
        for name, make in KINDS.items():
            fd = make()
            answer = peer.ask(wire.TAKE, [fd])
            os.close(fd)
            assert re.match("error .*(netns|namespace|EBADF)", answer), (name, answer)
            assert peer.ask(wire.LIST) == "end"


def test_release_of_what_is_no_netns_is_refused_and_the_connection_stays(
    unharmed: Daemon, sock_path: str
) -> None:
    with wire.Peer(sock_path) as peer:
        for name, make in KINDS.items():
            fd = make()
            answer = peer.ask(wire.RELEASE, [fd])
            os.close(fd)
            expected = "released" if name == "home" else "error"
            assert answer.startswith(f"{expected} "), (name, answer)
        assert peer.ask(wire.LIST) == "end"


@contextmanager
def lingering() -> Iterator[int]:
    """A TCP socket whose close() sleeps for minutes: unsent data and SO_LINGER (socket(7)).

    The other end never reads. The caller's descriptor must be closed first: the last close sleeps.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
        with peer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 120))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    client.send(bytes(65536))
            fd = client.detach()
            yield fd
            with contextlib.suppress(OSError):
                os.close(fd)


@pytest.mark.parametrize("before", [b"", b"\xff"], ids=["received", "never received"])
@pytest.mark.parametrize("byte", [wire.TAKE, wire.RELEASE, wire.LIST], ids=repr)
def test_a_descriptor_whose_close_sleeps_delays_nobody(
    unharmed: Daemon, sock_path: str, byte: bytes, before: bytes
) -> None:
    """Whoever closes the last descriptor of such a socket sleeps in the kernel.

    "never received": it waits in the connection behind a byte for which that is closed.
    """
    with lingering() as fd, wire.Peer(sock_path) as peer:
        with frozen(unharmed):
            if before:
                peer.send(before)
            peer.send(byte, [fd])
            os.close(fd)
        assert peer.line().startswith("error ")
        is_served(sock_path)
        is_served(sock_path)


@pytest.mark.parametrize("before", [b"", b"\xff"], ids=["received", "never received"])
def test_many_descriptors_whose_close_sleeps_delay_nobody(
    unharmed: Daemon, sock_path: str, before: bytes
) -> None:
    """More of them than any queue for slow closes should be trusted to hold."""
    with ExitStack() as stack:
        for _ in range(10):
            fd = stack.enter_context(lingering())
            with wire.Peer(sock_path) as peer, frozen(unharmed):
                if before:
                    peer.send(before)
                peer.send(wire.LIST, [fd])
                os.close(fd)
        null = stack.enter_context(open("/dev/null")).fileno()
        for _ in range(600):
            with wire.Peer(sock_path) as peer:
                peer.send(b"\xff")
                with contextlib.suppress(BrokenPipeError):
                    peer.send(wire.LIST, [null])
        fd = stack.enter_context(lingering())
        with wire.Peer(sock_path) as peer:
            with frozen(unharmed):
                peer.send(before or b"\xff")
                peer.send(wire.LIST, [fd])
                os.close(fd)
            assert peer.line().startswith("error ")
        is_served(sock_path)
        is_served(sock_path)


# ---- pairing -------------------------------------------------------------------------------------


@pytest.mark.needs_netns
def test_bytes_and_descriptors_are_never_mispaired(unharmed: Daemon, sock_path: str) -> None:
    """Requests in a row, all queued before the first is read; the fds ride on their own bytes."""
    with netns(2) as (first, second), wire.Peer(sock_path) as peer:
        one, two = first.cookie, second.cookie
        with frozen(unharmed):
            peer.send(wire.LIST)
            peer.send(wire.TAKE, [first.fileno()])
            peer.send(wire.RELEASE_COOKIE + b"1\n" + wire.LIST)
            peer.send(wire.TAKE, [second.fileno()])
            peer.send(wire.RELEASE, [first.fileno()])
            peer.send(wire.LIST)
            peer.send(wire.RELEASE_COOKIE + b"%d\n" % two)
            peer.socket.shutdown(socket.SHUT_WR)
        answers = [re.sub(" 127.*netns", " netns", line) for line in peer.lines()]
    assert answers == [
        "end",
        f"ready netns={one}",
        "released netns=1",
        f"held netns={one}",
        "end",
        f"ready netns={two}",
        f"released netns={one}",
        f"held netns={two}",
        "end",
        f"released netns={two}",
    ]


@pytest.mark.needs_netns
def test_a_descriptor_belongs_to_the_first_byte_of_its_message(
    unharmed: Daemon, sock_path: str
) -> None:
    with netns(1) as (pod,):
        with wire.Peer(sock_path) as peer:
            peer.send(wire.TAKE + wire.TAKE, [pod.fileno()])
            assert peer.line().startswith("ready ")
            assert peer.line() == f"error 0 {FDS} one belongs"
            assert peer.at_end()
        with wire.Peer(sock_path) as peer:
            peer.send(wire.LIST + wire.TAKE, [pod.fileno()])
            assert peer.line() == f"error 1 {FDS} none belongs"
            assert peer.at_end()
        wire.request(sock_path, wire.RELEASE, [pod.fileno()])


# ---- floods --------------------------------------------------------------------------------------


@pytest.mark.needs_netns
def test_disconnect_at_every_point(unharmed: Daemon, sock_path: str) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    with netns(1) as (pod,):
        requests: list[tuple[bytes, list[int]]] = [
            (wire.TAKE, [pod.fileno()]),
            (wire.TAKE, [null]),
            (wire.TAKE, [null] * 253),
            (wire.RELEASE, [pod.fileno()]),
            (wire.RELEASE_COOKIE + b"18446744073709551615\n", []),
            (wire.LIST * 50, []),
        ]
        for data, fds in requests:
            for length in range(len(data) + 1):
                for _ in range(3):
                    with wire.Peer(sock_path) as peer:
                        if length:
                            peer.send(data[:length], fds)
                with wire.Peer(sock_path) as peer, frozen(unharmed):
                    if length:
                        peer.send(data[:length], fds)
                    peer.close()
        is_served(sock_path)
        wire.request(sock_path, wire.RELEASE, [pod.fileno()])
    os.close(null)


def test_all_requests_that_were_queued_by_one_who_left_are_served(
    unharmed: Daemon, sock_path: str
) -> None:
    with netns(3) as pods:
        with frozen(unharmed), wire.Peer(sock_path) as peer:
            for pod in pods:
                peer.send(wire.TAKE, [pod.fileno()])
            peer.socket.shutdown(socket.SHUT_WR)
        unharmed.stdout.wait_for("listeners ready", count=1)
        for pod in pods:
            wire.request(sock_path, wire.RELEASE, [pod.fileno()])


@pytest.mark.slow
def test_ten_thousand_connections(unharmed: Daemon, sock_path: str) -> None:
    """The longest idle one is closed, never the newcomer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = min(10_000, hard - 500)
    held: deque[socket.socket] = deque()
    is_served(sock_path)
    memory = unharmed.rss_kib()
    try:
        for number in range(10_000):
            if len(held) == room:
                held.popleft().close()
            one = socket.socket(socket.AF_UNIX)
            held.append(one)
            one.settimeout(10)
            one.connect(sock_path)
            if number % 500 == 0:
                is_served(sock_path)
        is_served(sock_path)
        newest = held[-1]
        newest.send(wire.LIST)
        assert newest.recv(100) == b"end\n"
        assert held[0].recv(100) == b"", "the oldest was closed"
        assert len(unharmed.fds()) < 4096
    finally:
        for one in held:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert unharmed.rss_kib() < memory + 4096


@pytest.mark.slow
def test_every_seat_taken_by_one_who_sends_descriptors(unharmed: Daemon, sock_path: str) -> None:
    """1000 peers with 253 descriptors each in flight: 60 times our table."""
    null = os.open("/dev/null", os.O_RDONLY)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    with connections(sock_path, min(900, limit - 200)) as peers:
        with frozen(unharmed):
            for peer in peers[: limit // 253]:
                with contextlib.suppress(OSError):  # ETOOMANYREFS: the kernel's own limit per user
                    socket.send_fds(peer, [wire.TAKE], [null] * 253)
        is_served(sock_path)
        for peer in peers:
            with contextlib.suppress(OSError):
                socket.send_fds(peer, [wire.RELEASE_COOKIE], [null] * 20)
        is_served(sock_path)
    os.close(null)


def test_peers_that_ask_and_never_read(unharmed: Daemon, sock_path: str) -> None:
    memory = unharmed.rss_kib()
    with connections(sock_path, 50) as peers:
        for peer in peers:
            peer.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    peer.send(wire.LIST * 1000)
        for _ in range(5):
            is_served(sock_path)
    assert unharmed.rss_kib() < memory + 20 * 1024


def test_a_peer_that_asks_all_the_time_delays_nobody(unharmed: Daemon, sock_path: str) -> None:
    """Forty peers keep the daemon busy with cookies and lists; each newcomer gets its turn."""
    with ExitStack() as stack:
        peers = [stack.enter_context(wire.Peer(sock_path)) for _ in range(40)]
        for peer in peers:
            peer.socket.setblocking(False)
        for _ in range(20):
            for number, peer in enumerate(peers):
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    peer.socket.send((wire.RELEASE_COOKIE + b"1\n", wire.LIST)[number % 2] * 300)
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    peer.socket.recv(1 << 20)
            is_served(sock_path)


bytes_and_fds = st.tuples(st.binary(max_size=30), st.integers(0, 3))
NOISE = st.lists(st.lists(bytes_and_fds, max_size=5), min_size=1, max_size=4)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(NOISE, st.booleans())
def test_noise(
    unharmed: Daemon, sock_path: str, noise: list[list[tuple[bytes, int]]], reset: bool
) -> None:
    """Whatever bytes and descriptors come, from several at a time: the daemon lives and serves."""
    null = os.open("/dev/null", os.O_RDONLY)
    with ExitStack() as stack:
        peers = [stack.enter_context(wire.Peer(sock_path)) for _ in noise]
        for peer, messages in zip(peers, noise, strict=True):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for data, count in messages:
                    if data:
                        peer.send(data, [null] * count)
                if not reset:
                    peer.socket.shutdown(socket.SHUT_WR)
                    peer.lines()
    os.close(null)
    is_served(sock_path)
