"""native.send and native.receive: bytes with 0..250 descriptors over real Unix sockets."""

import errno
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

import pytest

from pyztun import SyscallError, native
from support import leaks

KINDS = [socket.SOCK_STREAM, socket.SOCK_SEQPACKET]
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=KINDS, ids=["stream", "seqpacket"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    left, right = socket.socketpair(socket.AF_UNIX, request.param)
    with left, right:
        yield left, right


@pytest.fixture
def stream() -> Iterator[Pair]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with left, right:
        yield left, right


@contextmanager
def files(count: int) -> Iterator[list[int]]:
    """COUNT descriptors that can be told apart: memfds of the sizes 0, 1, 2 ..."""
    made = [os.memfd_create(f"file-{size}") for size in range(count)]
    try:
        for size, fd in enumerate(made):
            os.ftruncate(fd, size)
        yield made
    finally:
        for fd in made:
            os.close(fd)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 16, 249, 250])
def test_descriptors_arrive_in_order_and_close_on_exec(pair: Pair, count: int) -> None:
    left, right = pair
    with files(count) as sent:
        native.send(left.fileno(), b"message", sent)
        data, fds = native.receive(right.fileno(), 100, native.MAX_FDS)
        with ExitStack() as stack:
            numbers = [stack.enter_context(fd).fileno() for fd in fds]
            assert data == b"message"
            assert [os.fstat(number).st_size for number in numbers] == list(range(count))
            assert not set(numbers) & set(sent)
            assert not any(map(os.get_inheritable, numbers))
        for fd in sent:
            os.fstat(fd)  # still the sender's


def test_251_descriptors_are_refused_before_the_kernel_sees_them(pair: Pair) -> None:
    left, right = pair
    with files(1) as one, pytest.raises(SyscallError) as caught:
        native.send(left.fileno(), b"x", one * 251)
    assert caught.value.errno == errno.E2BIG
    right.setblocking(False)
    with pytest.raises(BlockingIOError):
        right.recv(1)
    with pytest.raises(SyscallError, match="E2BIG"):
        native.receive(right.fileno(), 1, 251)


@pytest.mark.parametrize(("count", "room"), [(1, 0), (2, 1), (3, 2), (250, 1), (250, 249)])
def test_more_than_asked_for_is_an_error_and_all_are_closed(
    pair: Pair, count: int, room: int
) -> None:
    left, right = pair
    with files(count) as sent:
        native.send(left.fileno(), b"x", sent)
        before = leaks.open_fds()
        with pytest.raises(SyscallError) as caught:
            native.receive(right.fileno(), 10, room)
        assert caught.value.errno == errno.EPROTO
        assert leaks.open_fds() == before
    native.send(left.fileno(), b"next")
    assert native.receive(right.fileno(), 10) == (b"next", [])


def test_a_message_too_long_closes_its_descriptors() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right, files(3) as sent:
        native.send(left.fileno(), b"longer than that", sent)
        before = leaks.open_fds()
        with pytest.raises(SyscallError) as caught:
            native.receive(right.fileno(), 4, 3)
        assert caught.value.errno == errno.EMSGSIZE
        assert leaks.open_fds() == before


@pytest.mark.parametrize("room", [0, 1, 3])
def test_a_full_fd_table_is_told_and_what_did_arrive_is_closed(stream: Pair, room: int) -> None:
    left, right = stream
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with files(5) as sent:
        native.send(left.fileno(), b"x", sent)
        before = leaks.open_fds()
        free = next(number for number in range(soft) if number not in before)
        holes = [n for n in range(free, max(before)) if n not in before]
        with ExitStack() as stack:
            for _ in holes:
                stack.callback(os.close, os.dup(0))
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(before) + 1 + room, hard))
            stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            with pytest.raises(SyscallError) as caught:
                native.receive(right.fileno(), 10, 5)
        assert caught.value.errno == errno.EMFILE
        assert "RLIMIT_NOFILE" in str(caught.value)
        assert leaks.open_fds() == before


def test_end_of_the_stream_is_empty(pair: Pair) -> None:
    left, right = pair
    left.close()
    assert native.receive(right.fileno(), 10, 1) == (b"", [])


def test_nothing_is_not_a_message(pair: Pair) -> None:
    left, _ = pair
    with pytest.raises(SyscallError, match="EINVAL"):
        native.send(left.fileno(), b"")
    with pytest.raises(SyscallError, match="EINVAL"):
        native.receive(left.fileno(), 0)


def test_a_closed_peer_is_an_error_and_no_signal(pair: Pair) -> None:
    left, right = pair
    previous = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        right.close()
        with pytest.raises(SyscallError) as caught:
            native.send(left.fileno(), b"x")
    finally:
        signal.signal(signal.SIGPIPE, previous)
    assert caught.value.errno in (errno.EPIPE, errno.ECONNRESET)


def test_text_names_syscall_and_object(stream: Pair) -> None:
    left, right = stream
    right.close()
    with pytest.raises(SyscallError, match=r"^sendmsg /run/x: EPIPE$"):
        native.send(left.fileno(), b"x", subject="/run/x")
    with pytest.raises(SyscallError, match=r"^recvmsg /run/x: EBADF$"):
        native.receive(10**6, 1, subject="/run/x")


def test_a_long_message_goes_out_in_parts_with_its_descriptors_on_the_first(stream: Pair) -> None:
    left, right = stream
    text = os.urandom(4 * 1024 * 1024)
    with files(2) as sent:
        sender = threading.Thread(target=native.send, args=(left.fileno(), text, sent))
        sender.start()
        first, fds = native.receive(right.fileno(), 65536, 2)
        assert [os.fstat(fd.fileno()).st_size for fd in fds] == [0, 1]
        for fd in fds:
            fd.close()
        parts = [first]
        while sum(map(len, parts)) < len(text):
            data, more = native.receive(right.fileno(), 65536)
            assert not more
            parts.append(data)
        sender.join()
    assert b"".join(parts) == text


# ---- waiting -------------------------------------------------------------------------------------


def test_receive_waits_no_longer_than_asked(pair: Pair) -> None:
    began = time.monotonic()
    with pytest.raises(SyscallError) as caught:
        native.receive(pair[0].fileno(), 1, timeout=0.2)
    assert caught.value.errno == errno.ETIMEDOUT
    assert 0.2 <= time.monotonic() - began < 2


def test_send_waits_for_room_no_longer_than_asked(stream: Pair) -> None:
    left, _ = stream
    began = time.monotonic()
    with pytest.raises(SyscallError) as caught:
        native.send(left.fileno(), bytes(16 * 1024 * 1024), timeout=0.2)
    assert caught.value.errno == errno.ETIMEDOUT
    assert 0.2 <= time.monotonic() - began < 2


def test_a_timeout_of_zero_never_waits(pair: Pair) -> None:
    with pytest.raises(SyscallError, match="ETIMEDOUT"):
        native.receive(pair[0].fileno(), 1, timeout=0)


@contextmanager
def alarm(handler: object, first: float, interval: float = 0.0) -> Iterator[None]:
    """Runs HANDLER as the SIGALRM handler after FIRST seconds, then every INTERVAL."""
    previous = signal.signal(signal.SIGALRM, handler)  # type: ignore[arg-type]
    signal.setitimer(signal.ITIMER_REAL, first, interval)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_a_signal_handler_runs_during_a_wait_without_a_limit(pair: Pair) -> None:
    """The wait is in C: unless it comes back on EINTR the handler would never run (PEP 475)."""
    left, right = pair

    def answer(_number: int, _frame: FrameType | None) -> None:
        left.send(b"from the handler")

    with alarm(answer, 0.05):
        assert native.receive(right.fileno(), 100)[0] == b"from the handler"


def test_an_exception_of_a_signal_handler_ends_the_wait(pair: Pair) -> None:
    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with alarm(give_up, 0.05), pytest.raises(KeyboardInterrupt):
        native.receive(pair[0].fileno(), 100)


def test_signals_do_not_prolong_a_wait(pair: Pair) -> None:
    seen: list[int] = []

    def count(number: int, _frame: FrameType | None) -> None:
        seen.append(number)

    began = time.monotonic()
    with alarm(count, 0.02, 0.02), pytest.raises(SyscallError, match="ETIMEDOUT"):
        native.receive(pair[0].fileno(), 100, timeout=0.4)
    assert 0.4 <= time.monotonic() - began < 2
    assert len(seen) >= 3


def test_a_wait_releases_the_interpreter(pair: Pair) -> None:
    """Another thread must be able to send what this one waits for."""
    left, right = pair
    timer = threading.Timer(0.05, left.send, [b"x"])
    timer.start()
    assert native.receive(right.fileno(), 1, timeout=10)[0] == b"x"
    timer.join()


# ---- connecting ----------------------------------------------------------------------------------


def _accept_one(listener: socket.socket) -> None:
    listener.accept()[0].close()


@pytest.mark.parametrize("kind", KINDS, ids=["stream", "seqpacket"])
def test_connect_waits_while_the_backlog_is_full(sock_path: str, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_UNIX, kind) as listener, ExitStack() as stack:
        listener.bind(sock_path)
        listener.listen(0)
        # A backlog of 0 has room for one.
        stack.enter_context(native.connect_unix(sock_path, kind, 1))
        began = time.monotonic()
        with pytest.raises(SyscallError) as caught:
            native.connect_unix(sock_path, kind, timeout=0.2)
        assert caught.value.errno == errno.ETIMEDOUT
        assert sock_path in str(caught.value)
        assert 0.2 <= time.monotonic() - began < 2
        accept = threading.Timer(0.05, _accept_one, [listener])
        accept.start()
        with native.connect_unix(sock_path, kind, timeout=10) as made:
            assert not os.get_inheritable(made.fileno())
        accept.join()


def test_a_signal_handler_runs_while_connect_waits(sock_path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        listener.bind(sock_path)
        listener.listen(0)
        stack.enter_context(native.connect_unix(sock_path, timeout=1))

        def accept(_number: int, _frame: FrameType | None) -> None:
            listener.accept()[0].close()

        with alarm(accept, 0.05):
            stack.enter_context(native.connect_unix(sock_path))


CANNOT_CONNECT = [
    ("nothing-there", errno.ENOENT),
    ("x" * 200, errno.ENAMETOOLONG),
    ("file", errno.ECONNREFUSED),
    ("stale", errno.ECONNREFUSED),
    ("seqpacket", errno.EPROTOTYPE),
]


@pytest.mark.parametrize(("name", "number"), CANNOT_CONNECT)
def test_what_cannot_be_connected_to(sock_path: str, name: str, number: int) -> None:
    path = os.path.join(os.path.dirname(sock_path), name)
    with ExitStack() as stack:
        if name == "file":
            stack.enter_context(open(path, "x"))
        if name in ("stale", "seqpacket"):
            kind = socket.SOCK_SEQPACKET if name == "seqpacket" else socket.SOCK_STREAM
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            listener.bind(path)
            listener.listen()
            if name == "stale":
                listener.close()
        with pytest.raises(SyscallError) as caught:
            native.connect_unix(path, timeout=5)
    assert caught.value.errno == number
    assert str(caught.value).startswith(f"connect {path}: {errno.errorcode[number]}")


def test_a_path_ends_at_its_end_and_not_at_a_nul_byte(sock_path: str) -> None:
    """C sees a string up to the first NUL: another socket than the one that was named."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sock_path)
        listener.listen()
        with pytest.raises((ValueError, SyscallError)):
            native.connect_unix(f"{sock_path}\0.other", timeout=1).close()
