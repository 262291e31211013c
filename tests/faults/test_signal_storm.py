"""A signal every millisecond during every call that blocks: deadlines hold, nothing is lost.

Python runs the handler in the main thread, so each wait is made there. A service is another
process, which is stopped and goes on all the time: that makes epoll_wait() and poll() fail with
EINTR in every thread, without a handler (signal(7)).
"""

import errno
import gc
import os
import random
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType

import pytest

from pyztun import Channel, NetNs, OwnedFd, SyscallError, fds, native
from support import leaks, programs, wire, zt_daemon

pytestmark = pytest.mark.needs_netns
EVERY = 0.001
WAIT = 0.15
LATE = 2.0  # seconds, for a host that is busy
ROUNDS = 200
SIGNALS = 5
STOPS = 100
ADDRESSES = (("127.0.0.1", 15008), ("::1", 15006))


@contextmanager
def storm() -> Iterator[list[int]]:
    """SIGALRM every millisecond; the list grows by one for each run of the handler."""
    seen: list[int] = []
    previous = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, EVERY, EVERY)
    try:
        yield seen
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def expect_timeout(wait: Callable[[], object]) -> None:
    began = time.monotonic()
    with storm() as seen, pytest.raises(SyscallError) as caught:
        wait()
    took = time.monotonic() - began
    assert caught.value.errno == errno.ETIMEDOUT
    assert WAIT <= took < WAIT + LATE
    assert len(seen) >= SIGNALS


# ---- waits with a deadline ---------------------------------------------------------------------


def test_receiving_ends_in_time() -> None:
    left, right = socket.socketpair()
    with left, right:
        expect_timeout(lambda: native.receive(right.fileno(), 10, 1, timeout=WAIT))


def test_sending_ends_in_time() -> None:
    left, right = socket.socketpair()
    with left, right:
        expect_timeout(lambda: native.send(left.fileno(), bytes(1 << 24), timeout=WAIT))


def test_a_line_that_never_ends() -> None:
    left, right = socket.socketpair()
    with left, right, Channel(OwnedFd(os.dup(right.fileno())), "test") as channel:
        left.send(b"no newline")
        expect_timeout(lambda: channel.receive_line(100, WAIT))


def test_connecting_to_a_full_backlog_ends_in_time(directory: os.PathLike[str]) -> None:
    """A blocking connect() sleeps for a whole jiffy at least, longer than signals leave it."""
    path = os.path.join(directory, "full")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        expect_timeout(lambda: Channel.connect(path, timeout=WAIT))


def test_connecting_succeeds_when_there_is_room(directory: os.PathLike[str]) -> None:
    path = os.path.join(directory, "full")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)

        def accept_one() -> None:
            listener.accept()[0].close()

        with storm() as seen:
            accept = threading.Timer(WAIT, accept_one)
            accept.start()
            Channel.connect(path, timeout=30).close()
            accept.join()
        assert len(seen) >= SIGNALS


# ---- nothing is lost ---------------------------------------------------------------------------


def test_no_message_and_no_descriptor_is_lost() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right, NetNs.current() as home:

        def speak() -> None:
            for i in range(ROUNDS):
                native.send(left.fileno(), b"%d" % i, [home.fileno()], timeout=30)
                if i % 10 == 0:
                    left.recv(1)  # the other side waits for the next one from here on

        speaker = threading.Thread(target=speak)
        with storm():
            speaker.start()
            for i in range(ROUNDS):
                data, (fd,) = native.receive(right.fileno(), 100, 1, timeout=30)
                assert data == b"%d" % i
                assert os.path.samestat(os.fstat(fd.fileno()), os.fstat(home.fileno()))
                fd.close()
                if i % 10 == 0:
                    right.send(b"x")
            speaker.join()


def test_excursions_of_the_main_thread() -> None:
    """The main thread waits for its helper all the while."""
    here = leaks.netns_inode()
    with NetNs.create() as pod, storm() as seen:
        rounds = 0
        while rounds < ROUNDS or len(seen) < SIGNALS:
            rounds += 1
            made = pod.listen(*ADDRESSES)
            assert native.socket_cookie(made[1].fileno()) == pod.cookie
            for each in [*made, pod.socket(socket.AF_UNIX)]:
                each.close()
            NetNs.create().close()
        assert leaks.netns_inode() == here


# ---- a handler that raises ---------------------------------------------------------------------


class Interrupted(Exception):
    """Raised by the handler."""


def is_interrupted(call: Callable[[], object], seconds: float, everywhere: bool = True) -> bool:
    """Calls; whether Interrupted, raised after SECONDS, came before the end.

    No with-block, into whose entry it could come. Without EVERYWHERE it comes only while a
    function of native.py runs, or one of fds.py that takes a descriptor over.
    """
    armed = [True]

    def interrupt(_number: int, frame: FrameType | None) -> None:
        if armed and (everywhere or (frame and _makes_descriptors(frame.f_code))):
            raise Interrupted

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        call()
        armed.clear()
    except Interrupted:
        return True
    finally:
        armed.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    return False


def _makes_descriptors(code: CodeType) -> bool:
    return code.co_filename == native.__file__ or code in (fds.own.__code__, fds.take.__code__)


def test_the_exception_of_a_handler_ends_each_wait(directory: os.PathLike[str]) -> None:
    path = os.path.join(directory, "full")
    left, right = socket.socketpair()
    with left, right, socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as c:
        listener.bind(path)
        listener.listen(0)
        c.connect(path)
        for wait in (
            lambda: native.receive(right.fileno(), 10, 1),
            lambda: native.send(left.fileno(), bytes(1 << 24)),
            lambda: Channel.connect(path),
        ):
            before = leaks.open_fds()
            assert is_interrupted(wait, 0.02)
            assert leaks.open_fds() == before


@pytest.mark.parametrize(
    "call",
    [
        "receive",
        "listen",
        "create",
        "socket",
        "connect",
    ],
)
def test_an_exception_as_soon_as_c_is_back_loses_no_descriptor(
    call: str, directory: os.PathLike[str]
) -> None:
    """The moments are chosen at random within what the call takes.

    Beyond these nothing is promised: any Python program can lose what a function returns
    between its end and the assignment, and a finalizer that is interrupted is not run again.
    """
    path = os.path.join(directory, "s")
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    chance = random.Random(7)
    with left, right, NetNs.create() as pod, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(4096)

        def receive() -> object:
            native.send(left.fileno(), b"x", [pod.fileno()] * 3)
            return native.receive(right.fileno(), 10, 3, timeout=1)

        calls: dict[str, Callable[[], object]] = {
            "receive": receive,
            "listen": lambda: pod.listen(*ADDRESSES, reuse_port=True),
            "create": NetNs.create,
            "socket": pod.socket,
            "connect": lambda: Channel.connect(path, timeout=1),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            calls[call]()  # the first one imports
            began = time.monotonic()
            calls[call]()
            takes = time.monotonic() - began
            gc.collect()
            before = leaks.open_fds().keys()
            interrupted = rounds = 0
            while rounds < ROUNDS or (interrupted < SIGNALS and rounds < 10 * ROUNDS):
                rounds += 1
                moment = max(chance.random() * takes, 1e-6)
                interrupted += is_interrupted(calls[call], moment, everywhere=False)
            gc.collect()
            lost = leaks.open_fds().keys() - before
            for fd in lost:
                os.close(fd)
        assert interrupted >= SIGNALS
        assert not lost


# ---- the service -------------------------------------------------------------------------------


def test_the_receiver_under_a_storm(sock_path: str, ztunnel: programs.Daemon) -> None:
    """Each handoff is answered once, and nothing of it remains after its release."""
    before = zt_daemon.settled_fds(ztunnel, sock_path)
    over = threading.Event()
    sent = [0]

    def disturb() -> None:
        while not over.wait(EVERY):
            os.kill(ztunnel.pid, signal.SIGSTOP)
            os.kill(ztunnel.pid, signal.SIGCONT)
            sent[0] += 1

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        with zt_daemon.netns(4) as netns:
            cookies = [each.cookie for each in netns]
            i = 0
            while i < ROUNDS or sent[0] < STOPS:
                i += 1
                fd, cookie = netns[i % 4].fileno(), cookies[i % 4]
                with wire.Peer(sock_path) as peer:
                    assert peer.ask(wire.TAKE, [fd]).endswith(f" netns={cookie}")
                    assert peer.ask(wire.RELEASE, [fd]) == f"released netns={cookie}"
                    if i % 4 == 3:
                        assert peer.ask(wire.LIST) == "end"
            taken = [wire.request(sock_path, wire.TAKE, [each.fileno()]) for each in netns]
            assert len(set(taken)) == 4
            assert len(zt_daemon.listing(sock_path)) == 4
            for each in netns:
                wire.request(sock_path, wire.RELEASE, [each.fileno()])
    finally:
        over.set()
        disturber.join()
    zt_daemon.wait_until_fds_are(ztunnel, before)
    assert ztunnel.complaints() == []
    assert ztunnel.stop() == 0
