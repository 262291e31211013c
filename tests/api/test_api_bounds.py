"""What a client of the control API can have, and for how long: nothing for ever."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from fake_agent import LIMIT, FakeAgent, Reply, UnixConnection, received

from pyztun.cni.agent.connection import BOUNDS, Bounds
from pyztun.cni.agent.workload import Workload
from support import needs
from support.pods import in_thread

QUICK = Bounds(deadline=0.4, idle=0.8, linger=0.2, drain=0.2, flush=0.2)
POST = b"POST /v1/workloads HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
PATIENT = Bounds(drain=0.2, flush=0.2)


@pytest.fixture
def quick(directory: Path) -> Iterator[FakeAgent]:
    with FakeAgent(directory, QUICK) as made:
        yield made


@pytest.fixture
def patient(directory: Path) -> Iterator[FakeAgent]:
    with FakeAgent(directory, PATIENT) as made:
        yield made


def end_of(sock: socket.socket) -> bytes:
    """All that comes until the connection ends, which it must."""
    whole = b""
    try:
        while chunk := sock.recv(65536):
            whole += chunk
    except ConnectionResetError:
        pass
    return whole


# ---- size ----------------------------------------------------------------------------------------


def test_a_body_of_64_kib_is_taken(patient: FakeAgent) -> None:
    start, end = b'{"netns":"/a"', b"}"
    room = BOUNDS.body - len(start) - len(end)
    assert patient.ask("POST", "/v1/workloads", start + b" " * room + end).status == 200
    more = patient.ask("POST", "/v1/workloads", start + b" " * (room + 1) + end)
    assert more.error == (413, "too-large")
    assert more.headers["Connection"] == "close"


def test_an_oversized_body_is_answered_though_it_is_still_being_sent(patient: FakeAgent) -> None:
    size = 8 * 1024 * 1024
    with patient.connected() as sock, ThreadPoolExecutor(1) as pool:
        sock.sendall(POST % size)
        sending = pool.submit(sock.sendall, b"x" * size)
        assert received(sock).error == (413, "too-large")
        sending.exception(LIMIT)


def test_an_oversized_body_without_a_length(patient: FakeAgent) -> None:
    head = b"POST /v1/workloads HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    with patient.connected() as sock:
        sock.sendall(head + 3 * chunk)
        assert received(sock).error == (413, "too-large")


def test_a_compressed_body_is_not_inflated(patient: FakeAgent) -> None:
    body = b"\x1f\x8b\x08" + bytes(100)
    head = (POST % len(body))[:-2] + b"Content-Encoding: gzip\r\n\r\n"
    with patient.connected() as sock:
        sock.sendall(head + body)
        assert received(sock).error == (400, "bad-request")


# ---- time ----------------------------------------------------------------------------------------


def drip(sock: socket.socket, data: bytes, every: float = 0.02) -> None:
    """Sends a byte now and then until the connection ends or the bytes do."""
    over = threading.Event()
    try:
        for byte in data:
            sock.sendall(bytes([byte]))
            over.wait(every)
    except OSError:
        pass


def test_a_slow_head_has_a_deadline(quick: FakeAgent) -> None:
    with quick.connected() as sock:
        began = time.monotonic()
        drip(sock, b"GET /v1/status HTTP/1.1\r\n" + b"X: y\r\n" * 1000)
        assert time.monotonic() - began < LIMIT / 2
        assert Reply.parsed(end_of(sock)).error == (408, "request-timeout")


def test_a_slow_head_has_a_deadline_on_an_old_connection_too(directory: Path) -> None:
    """Its first byte begins it, however long silence is allowed."""
    with FakeAgent(directory, QUICK._replace(idle=10 * LIMIT)) as agent, agent.connected() as sock:
        sock.sendall(b"GET /v1/workloads HTTP/1.1\r\nHost: a\r\n\r\n")
        assert received(sock).status == 200
        sock.sendall(b"GET /v1/")
        assert Reply.parsed(end_of(sock)).error == (408, "request-timeout")


def test_a_slow_body_has_a_deadline(quick: FakeAgent) -> None:
    with quick.connected() as sock:
        sock.sendall(POST % 60000)
        began = time.monotonic()
        drip(sock, b" " * 2000)
        assert time.monotonic() - began < LIMIT / 2
        assert Reply.parsed(end_of(sock)).error == (408, "request-timeout")


@pytest.mark.parametrize("start", [b"", b"G", POST % 10, POST % 10 + b"{"])
def test_silence_has_a_deadline(quick: FakeAgent, start: bytes) -> None:
    with quick.connected() as sock:
        sock.sendall(start)
        end_of(sock)


def test_keeping_a_connection_alive_has_a_deadline(quick: FakeAgent) -> None:
    with quick.connected() as sock:
        sock.sendall(b"GET /v1/workloads HTTP/1.1\r\nHost: a\r\n\r\n")
        assert received(sock).status == 200
        assert end_of(sock) == b""


def test_whoever_does_not_take_his_answer_is_left(quick: FakeAgent) -> None:
    for number in range(300):
        quick.add(f"/run/{'x' * 3000}/{number}", uid=str(number))
    with quick.connected() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(b"GET /v1/workloads HTTP/1.1\r\nHost: a\r\n\r\n")
        assert sock.recv(1) == b"H"
        quick.run(_gone(quick))
        assert len(end_of(sock)) < 900_000


async def _gone(agent: FakeAgent) -> None:
    """Until no connection is left, which the agent alone can bring about."""
    deadline = time.monotonic() + LIMIT
    while agent.control._connections():
        assert time.monotonic() < deadline
        await asyncio.sleep(0)


def test_a_request_in_work_has_all_its_time(quick: FakeAgent) -> None:
    async def wait(_: Workload) -> None:
        await asyncio.sleep(2 * QUICK.idle)

    quick.core.before_ack = wait
    assert quick.add().status == 200


@pytest.mark.slow
def test_the_real_deadline_of_a_head_is_5_seconds(patient: FakeAgent) -> None:
    with patient.connected() as sock:
        sock.sendall(b"GET ")
        began = time.monotonic()
        end_of(sock)
        assert 4.9 <= time.monotonic() - began < 5 + LIMIT / 2


# ---- number --------------------------------------------------------------------------------------


def test_requests_in_work_are_bounded(directory: Path) -> None:
    bounds = Bounds(requests=3, connections=6, drain=0.2, flush=0.2)
    with FakeAgent(directory, bounds) as agent, ThreadPoolExecutor() as pool:

        async def wait(_: Workload) -> None:
            await asyncio.sleep(LIMIT)

        agent.core.before_ack = wait
        adding = [pool.submit(agent.add, f"/run/{number}") for number in range(3)]
        for _ in adding:
            assert agent.core.added.acquire(timeout=LIMIT)
        reply = agent.ask("GET", "/v1/status")
        assert reply.error == (429, "busy")
        assert reply.headers["Retry-After"] == "1"
        agent.close()
        assert [each.result(LIMIT).error[1] for each in adding] == ["shutting-down"] * 3


def test_where_there_is_no_room_the_longest_silent_is_closed(directory: Path) -> None:
    bounds = PATIENT._replace(requests=2, connections=4)
    with FakeAgent(directory, bounds) as agent, ExitStack() as stack:
        held = [UnixConnection(agent.path) for _ in range(4)]
        for each in held:
            stack.callback(each.close)
            each.request("GET", "/v1/workloads")
            each.getresponse().read()
        held[0].request("GET", "/v1/workloads")  # now the second is the longest silent
        held[0].getresponse().read()
        for _ in range(3):
            assert agent.ask("GET", "/v1/workloads").status == 200
        assert held[1].sock.recv(1) == b""
        held[0].request("GET", "/v1/workloads")
        assert held[0].getresponse().status == 200


def test_a_crowd_of_the_silent_locks_nobody_out(patient: FakeAgent) -> None:
    with ExitStack() as stack:
        for _ in range(BOUNDS.connections + 50):
            stack.enter_context(patient.connected())
        assert patient.ask("GET", "/v1/status").status == 200


# ---- who may -------------------------------------------------------------------------------------


def test_the_socket_file_is_ours_alone(patient: FakeAgent) -> None:
    assert os.stat(patient.path).st_mode & 0o777 == 0o600


@pytest.fixture
def open_directory(directory: Path) -> Path:
    """Ours, and anyone may enter it."""
    directory.chmod(0o755)
    return directory


def as_stranger(agent: FakeAgent, method: str = "GET", path: str = "/v1/status") -> Reply:
    """Asks as another user, in a thread that has become that: the others stay what they are."""

    def ask() -> Reply:
        # setresuid() of the C library changes all threads; the bare system call only this one.
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        number = {"x86_64": 117, "aarch64": 147}[os.uname().machine]
        assert libc.syscall(number, needs.STRANGER, needs.STRANGER, needs.STRANGER) == 0
        return agent.ask(method, path)

    return in_thread(ask)


@pytest.mark.needs_root
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/status"), ("POST", "/v1/workloads"), ("GET", "/nonsense"), ("PUT", "/v1/status")],
)
def test_a_foreign_uid_may_not(open_directory: Path, method: str, path: str) -> None:
    with FakeAgent(open_directory, PATIENT, mode=0o666) as agent:
        reply = as_stranger(agent, method, path)
        assert reply.error == (403, "forbidden")
        assert reply.body["reason"] == f"uid {needs.STRANGER} may not ask"
        assert agent.core.asked == []
        told = [event for event in agent.log.events if event[1] == "control-refused"]
        assert [event[0] for event in told] == ["peer"]
        agent.log.events.clear()


@pytest.mark.needs_root
def test_an_allowed_uid_may(open_directory: Path) -> None:
    allowed = frozenset((needs.STRANGER,))
    with FakeAgent(open_directory, PATIENT, mode=0o666, allow_uids=allowed) as agent:
        assert as_stranger(agent).status == 200


@pytest.mark.needs_root
def test_strangers_take_no_room_from_the_others(open_directory: Path) -> None:
    with FakeAgent(open_directory, PATIENT, mode=0o666) as agent, ExitStack() as stack:

        def crowd() -> None:
            import ctypes

            number = {"x86_64": 117, "aarch64": 147}[os.uname().machine]
            assert ctypes.CDLL(None).syscall(number, *[needs.STRANGER] * 3) == 0
            for _ in range(BOUNDS.connections):
                stack.enter_context(agent.connected())

        with agent.connected() as early:
            in_thread(crowd)
            assert agent.ask("GET", "/v1/status").status == 200
            assert len(agent.control._connections()) <= BOUNDS.strangers + 2
            early.sendall(b"GET /v1/status HTTP/1.1\r\nHost: a\r\n\r\n")
            assert received(early).status == 200


# ---- nothing is left -----------------------------------------------------------------------------


def test_connections_leave_no_descriptor(quick: FakeAgent) -> None:
    quick.ask("GET", "/v1/status")
    quick.run(_gone(quick))
    before = len(os.listdir("/proc/self/fd"))
    for number in range(100):
        with quick.connected() as sock:
            sock.sendall([b"", b"G", POST % 10, b"nonsense\r\n\r\n"][number % 4])
    quick.ask("GET", "/v1/status")
    quick.run(_gone(quick))
    assert len(os.listdir("/proc/self/fd")) == before
