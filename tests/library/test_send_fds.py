"""send_fds() and recv_fds(): what python's own pair does, without what it leaves to the caller."""

import array
import errno
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyztun import NetNs, OwnedFd, SyscallError, recv_fds, send_fds
from pyztun.channel import OF_THE_SOCKET
from pyztun.testing import LeakCheck

Pair = tuple[socket.socket, socket.socket]

KINDS = [socket.SOCK_STREAM, socket.SOCK_SEQPACKET]


@pytest.fixture(params=KINDS, ids=["stream", "seqpacket"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two connected Unix sockets."""
    left, right = socket.socketpair(socket.AF_UNIX, request.param)
    with left, right:
        yield left, right


def same(one: int, other: int) -> bool:
    return os.path.samestat(os.fstat(one), os.fstat(other))


def test_objects_and_numbers_go_and_holders_come(pair: Pair) -> None:
    left, right = pair
    with open("/dev/null") as file, OwnedFd(os.dup(0)) as owned, NetNs.current() as netns:
        send_fds(left, b"four", [file, owned, netns, 1])
        data, fds = recv_fds(right, 100, 10)
        assert data == b"four"
        assert [type(fd) for fd in fds] == [OwnedFd] * 4
        for got, sent in zip(fds, (file.fileno(), owned.fileno(), netns.fileno(), 1), strict=True):
            with got:
                assert same(got.fileno(), sent)
                assert not os.get_inheritable(got.fileno())


def test_none_and_as_many_as_the_kernel_carries(pair: Pair) -> None:
    left, right = pair
    send_fds(left, b"x")
    assert recv_fds(right, 1, 0) == (b"x", [])
    send_fds(left, b"x", [0] * 250)
    _, fds = recv_fds(right, 1, 250)
    assert len(fds) == 250
    for fd in fds:
        fd.close()
    with pytest.raises(SyscallError) as caught:
        send_fds(left, b"x", [0] * 251)
    assert caught.value.errno == errno.E2BIG
    with pytest.raises(SyscallError) as caught:
        recv_fds(right, 1, 251)
    assert caught.value.errno == errno.E2BIG


def test_more_than_asked_for_is_an_error_and_leaves_none(pair: Pair) -> None:
    left, right = pair
    before = LeakCheck()
    send_fds(left, b"x", [0, 0, 0])
    with pytest.raises(SyscallError) as caught:
        recv_fds(right, 10, 2)
    assert caught.value.errno == errno.EPROTO
    assert before.leaks() == []


def test_a_forgotten_one_closes_itself_and_says_so(pair: Pair) -> None:
    left, right = pair
    send_fds(left, b"x", [0])
    before = LeakCheck()
    with pytest.warns(ResourceWarning, match="unclosed <OwnedFd"):
        recv_fds(right, 1, 1)
    assert before.leaks() == []


def test_the_end_of_the_stream(pair: Pair) -> None:
    left, right = pair
    left.close()
    assert recv_fds(right, 10, 1) == (b"", [])
    with pytest.raises(BrokenPipeError) as caught:
        send_fds(right, b"x")
    assert isinstance(caught.value, SyscallError)


@pytest.mark.parametrize(
    ("own", "given", "kind"),
    [
        (0.05, OF_THE_SOCKET, TimeoutError),
        (None, 0.05, TimeoutError),
        (0.0, OF_THE_SOCKET, BlockingIOError),
        (None, 0, BlockingIOError),
        (9.0, 0, BlockingIOError),
    ],
)
def test_how_long_it_waits(
    pair: Pair, own: float | None, given: float, kind: type[OSError]
) -> None:
    """By default as long as the socket itself would."""
    left, right = pair
    right.settimeout(own)
    left.settimeout(own)
    with pytest.raises(kind) as caught:
        recv_fds(right, 10, 1, given)
    assert isinstance(caught.value, SyscallError)
    with pytest.raises(kind):
        _send_until_it_raises(left, given)


def _send_until_it_raises(sock: socket.socket, timeout: float) -> None:
    while True:
        send_fds(sock, b"x" * 60000, (), timeout)


def test_a_number_has_no_timeout_of_its_own(pair: Pair) -> None:
    left, right = pair
    right.setblocking(False)
    thread = threading.Timer(0.05, lambda: send_fds(left.fileno(), b"late"))
    thread.start()
    assert recv_fds(right.fileno(), 10, 0) == (b"late", [])
    thread.join()


def test_the_time_is_for_all_of_it() -> None:
    """A reader that takes a little now and then does not hold the sender for ever."""
    left, right = socket.socketpair()
    with left, right:
        done = threading.Event()

        def drip() -> None:
            while not done.wait(0.02):
                right.recv(20000)

        reader = threading.Thread(target=drip)
        reader.start()
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            send_fds(left, bytes(50_000_000), timeout=0.3)
        assert time.monotonic() - began < 5
        done.set()
        reader.join()


def test_a_long_message_takes_time_in_proportion() -> None:
    """32 MiB in pieces of the socket's buffer: copying the rest for each would take seconds."""
    left, right = socket.socketpair()
    data = bytearray(os.urandom(1 << 16) * 512)
    with left, right, ThreadPoolExecutor(1) as pool:
        received = pool.submit(_read_all, right, len(data))
        began = time.process_time()
        send_fds(left, memoryview(data), [0])
        assert time.process_time() - began < 2
        assert received.result() == data


def _read_all(sock: socket.socket, size: int) -> bytearray:
    got = bytearray()
    while len(got) < size:
        data, fds = recv_fds(sock, 1 << 20, 1)
        got += data
        for fd in fds:
            fd.close()
    return got


@pytest.mark.needs_netns
def test_what_is_sent_may_be_closed_while_it_waits(pair: Pair, netns: NetNs) -> None:
    """Its number is somebody else's by the time there is room."""
    left, right = pair
    left.setblocking(False)
    with pytest.raises(BlockingIOError):
        _send_until_it_raises(left, 0)
    sent = NetNs.of(netns)
    left.setblocking(True)
    thread = threading.Thread(target=send_fds, args=(left, b"netns", [sent]))
    thread.start()
    while not _waits_for_room(thread):
        os.sched_yield()
    number = sent.fileno()
    sent.close()
    with open("/dev/null") as other:
        assert other.fileno() == number
        fds: list[OwnedFd] = []
        while not fds:
            _, fds = recv_fds(right, 60000, 1)
        thread.join()
        with fds[0], NetNs.from_fd(fds[0].fileno()) as got:
            assert got.is_same(netns)


def _waits_for_room(thread: threading.Thread) -> bool:
    """Whether it sleeps in poll(2)."""
    with open(f"/proc/self/task/{thread.native_id}/wchan") as file:
        return "poll" in file.read()


def test_other_families_carry_no_descriptors() -> None:
    """TCP takes the bytes and drops the descriptors without a word."""
    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.create_connection(server.getsockname()) as client:
        for sock in (client, client.fileno()):
            with pytest.raises(SyscallError, match="only a Unix socket") as caught:
                send_fds(sock, b"x", [0])
            assert caught.value.errno == errno.EOPNOTSUPP
        send_fds(client, b"x")


def test_mistakes_are_told(pair: Pair) -> None:
    left, _ = pair
    with pytest.raises(ValueError, match="at least one byte"):
        send_fds(left, b"", [0])
    with OwnedFd(os.dup(0)) as owned, pytest.raises(TypeError, match="fds is a list"):
        send_fds(left, b"x", owned)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="neither a file descriptor"):
        send_fds(left, b"x", ["0"])  # type: ignore[list-item]
    with pytest.raises(SyscallError, match="dup fd 99999: EBADF"):
        send_fds(left, b"x", [99999])
    for timeout in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            recv_fds(left, 1, 1, timeout)
    with pytest.raises(ValueError, match="max_fds"):
        recv_fds(left, 1, -1)
    send_fds(left, b"x", timeout=float("inf"))


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_of_at_least_one(pair: Pair, size: int) -> None:
    with pytest.raises(ValueError, match="size"):
        recv_fds(pair[0], size, 1)


def test_python_and_we_understand_each_other(pair: Pair) -> None:
    left, right = pair
    socket.send_fds(left, [b"from python"], [0])
    data, (fd,) = recv_fds(right, 100, 1)
    with fd:
        assert (data, same(fd.fileno(), 0)) == (b"from python", True)
    send_fds(left, b"to python", [0])
    data, fds, _, _ = socket.recv_fds(right, 100, 1)
    assert (data, len(fds)) == (b"to python", 1)
    assert os.get_inheritable(fds[0]), "what python's own leaves to the caller"
    os.close(fds[0])


class Interrupted(Exception):
    """Raised by a signal handler."""


def test_a_handler_that_raises_loses_no_descriptor() -> None:
    """SIGALRM at three hundred different moments of receiving 100 descriptors."""
    left, right = socket.socketpair()
    raised = 0
    before = LeakCheck()

    armed = [False]

    def handler(*_: object) -> None:
        if armed[0]:
            raise Interrupted

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        with left, right, warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            for turn in range(300):
                send_fds(left, b"x", [0] * 100)
                fds: list[OwnedFd] = []
                armed[0] = True
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-6 + turn * 1e-6)
                    _, fds = recv_fds(right, 1, 100)
                except Interrupted:
                    raised += 1
                finally:
                    armed[0] = False
                for fd in fds:
                    fd.close()
                right.setblocking(False)
                _drop_unread(right)
                right.setblocking(True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert raised > 20
    assert before.leaks() == []


def _drop_unread(sock: socket.socket) -> None:
    room = array.array("i", [0] * 253)
    try:
        _, control, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(len(room) * room.itemsize))
    except BlockingIOError:
        return
    for _, _, raw in control:
        fds = array.array("i")
        fds.frombytes(raw)
        for fd in fds:
            os.close(fd)
