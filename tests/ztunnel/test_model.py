"""Random sequences of (bytes, descriptors, close) against a model of the handoff.

The real waits.Handoff over a real listener; the model is a few lines that know the table of
docs/protocol.md. Each event is answered by a text that describes it, so that what a client reads
back tells which request was understood, and with which descriptor.
"""

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from pyztun import NetNs, waits
from support import leaks
from support.zt_daemon import netns

TAKE, RELEASE, RELEASE_COOKIE, LIST = 1, 2, 3, 4
NEWLINE = 10
MAX_MESSAGES = 8

STAYS, SHUTS_DOWN, CLOSES = "stays", "shuts down", "closes"


@dataclass(frozen=True)
class Message:
    """One sendmsg(): bytes, and how many descriptors of what on the first of them."""

    data: bytes
    fds: int
    of_netns: bool = True


@dataclass(frozen=True)
class Client:
    messages: tuple[Message, ...]
    then: str


# ---- the model -----------------------------------------------------------------------------------


def expected(client: Client) -> Iterator[str]:
    """What the receiver makes of the client's stream, as the answers that describe it."""
    kind, digits = 0, ""
    for number, message in enumerate(client.messages):
        for position, byte in enumerate(message.data):
            fds = message.fds if position == 0 else 0
            if kind == 0:
                wanted = 1 if byte in (TAKE, RELEASE) else 0
                if byte not in (TAKE, RELEASE, RELEASE_COOKIE, LIST):
                    yield f"malformed byte {byte}"
                    return
                if fds != wanted:
                    yield f"malformed fds {fds}"
                    return
                if byte == RELEASE_COOKIE:
                    kind, digits = byte, ""
                else:
                    what = number if message.of_netns else "no netns"
                    yield f"request {byte} with {what if wanted else None}"
            elif fds:
                yield f"malformed fds {fds}"
                return
            elif byte == NEWLINE and digits:
                yield f"cookie {int(digits)}"
                kind = 0
            else:
                digits += chr(byte)
                if not _may_be_cookie(digits):
                    yield "malformed cookie"
                    return
    if kind and client.then != STAYS:
        yield "malformed truncated"


def _may_be_cookie(digits: str) -> bool:
    decimal = all(digit in "0123456789" for digit in digits)
    return decimal and len(digits) <= 20 and int(digits) < 2**64


# ---- the real thing ------------------------------------------------------------------------------

WHY = {
    waits.WHY_BYTE: "byte",
    waits.WHY_FDS: "fds",
    waits.WHY_COOKIE: "cookie",
    waits.WHY_TRUNCATED: "truncated",
    waits.WHY_LATE: "late",
    waits.WHY_FD_TABLE: "fd table",
}


def describe(handoff: waits.Handoff, kind: int, inodes: list[int]) -> str:
    """The event in the words of the model. A netns says by its inode which message brought it."""
    request = handoff.request
    if kind == waits.MALFORMED:
        why = WHY[request.why]
        detail = {"byte": f" {request.byte}", "fds": f" {request.nfds}"}.get(why, "")
        return f"malformed {why}{detail}"
    if kind == waits.RELEASE_COOKIE:
        return f"cookie {request.cookie}"
    if kind == LIST:
        assert request.fd == -1
        return f"request {kind} with None"
    if request.not_netns:
        assert request.fd == -1
        return f"request {kind} with no netns"
    assert not os.get_inheritable(request.fd)
    assert os.fstat(request.fd).st_ino == request.inode
    os.close(request.fd)
    return f"request {kind} with {inodes.index(request.inode)}"


def serve(handoff: waits.Handoff, inodes: list[int]) -> None:
    """Until all that is queued is served."""
    handoff.drain(10)
    while (kind := handoff.next()) != waits.QUIET:
        text = describe(handoff, kind, inodes).encode() + b"\n"
        handoff.answer(text, close_after=kind == waits.MALFORMED)


def send(sock: socket.socket, client: Client, pods: list[NetNs], other: int) -> None:
    """The n-th message brings the n-th netns, or a file that is none."""
    for number, message in enumerate(client.messages):
        if message.data:
            fd = pods[number].fileno() if message.of_netns else other
            sent = socket.send_fds(sock, [message.data], [fd] * message.fds)
            assert sent == len(message.data)
    if client.then == SHUTS_DOWN:
        sock.shutdown(socket.SHUT_WR)


def answers(sock: socket.socket) -> list[str]:
    """What came, up to the end or to where the peer would have to wait."""
    sock.setblocking(False)
    parts = []
    with contextlib.suppress(BlockingIOError, ConnectionResetError):
        while part := sock.recv(65536):
            parts.append(part)
    return b"".join(parts).decode().splitlines()


def run(clients: list[Client], pods: list[NetNs]) -> None:
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="pz-"))
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(f"{directory}/s")
        listener.listen(64)
        wake = os.eventfd(0)
        stack.callback(os.close, wake)
        before = leaks.open_fds()
        handoff = waits.Handoff(
            listener.fileno(), wake, uids=(), max_peers=16, deadline=60, max_unsent=1 << 20
        )
        stack.callback(handoff.close)
        socks = []
        for client in clients:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(f"{directory}/s")
            send(sock, client, pods, wake)
            socks.append(sock)
            if client.then == CLOSES:
                sock.close()
        serve(handoff, [pod.inode for pod in pods])
        for client, sock in zip(clients, socks, strict=True):
            if client.then != CLOSES:
                assert answers(sock) == list(expected(client)), client
            sock.close()
        open_peers = handoff.counters()["peers"]
        assert open_peers == sum(_stays_open(client) for client in clients)
        handoff.close()
        wait_until_closed(before)


def wait_until_closed(before: dict[int, str], seconds: float = 10) -> None:
    """Descriptors of strangers are closed by a thread of their own, soon."""
    deadline = time.monotonic() + seconds
    while leaks.open_fds() != before:
        assert time.monotonic() < deadline, leaks.open_fds().items() ^ before.items()
        os.sched_yield()


def _stays_open(client: Client) -> bool:
    """One that neither left nor was hung up on."""
    return client.then == STAYS and not any(
        answer.startswith("malformed") for answer in expected(client)
    )


# ---- what is tried -------------------------------------------------------------------------------

requests = st.sampled_from(
    [
        Message(b"\x01", 1),
        Message(b"\x02", 1),
        Message(b"\x04", 0),
        Message(b"\x030\n", 0),
        Message(b"\x0318446744073709551615\n", 0),
        Message(b"\x04\x04\x037\n", 0),
        Message(b"\x01\x04", 1),
        Message(b"\x02\x037", 1),
    ]
)
nearly = st.sampled_from(
    [
        Message(b"\x03", 0),
        Message(b"\x0312", 0),
        Message(b"7", 0),
        Message(b"\n", 0),
        Message(b"0\n\x04", 0),
        Message(b"\x0318446744073709551616", 0),
        Message(b"\x03" + b"0" * 20, 0),
        Message(b"\x01", 0),
        Message(b"\x01", 2),
        Message(b"\x01", 1, of_netns=False),
        Message(b"\x02", 1, of_netns=False),
        Message(b"\x02", 253),
        Message(b"\x04", 1),
        Message(b"\x01\x01", 1),
        Message(b"\xff", 0),
    ]
)
noise = st.builds(Message, st.binary(max_size=6), st.integers(0, 3), st.booleans())
clients = st.builds(
    Client,
    st.lists(st.one_of(requests, requests, nearly, noise), max_size=MAX_MESSAGES).map(tuple),
    st.sampled_from([STAYS, SHUTS_DOWN, CLOSES]),
)


@pytest.mark.needs_netns
def test_the_handoff_does_what_the_model_says() -> None:
    with netns(MAX_MESSAGES) as pods:

        @settings(max_examples=400, deadline=None)
        @given(st.lists(clients, min_size=1, max_size=5))
        @example([Client((Message(b"\x031", 0), Message(b"2\n", 1)), STAYS)])
        @example([Client((Message(b"\x04", 0), Message(b"\x01", 1), Message(b"\x04", 0)), STAYS)])
        @example([Client((Message(b"\x03", 0),), CLOSES), Client((Message(b"\x01", 1),), STAYS)])
        def try_out(asked: list[Client]) -> None:
            for client in asked:
                for answer in expected(client):
                    event(" ".join(answer.split()[:2]))
            run(asked, pods)

        try_out()


def test_the_model_itself() -> None:
    """A model that accepts everything would prove nothing."""
    told = list(expected(Client((Message(b"\x01\x04\x0312\n\x03", 1),), SHUTS_DOWN)))
    assert told == ["request 1 with 0", "request 4 with None", "cookie 12", "malformed truncated"]
    assert list(expected(Client((Message(b"\x04\x01", 1),), STAYS))) == ["malformed fds 1"]
    assert list(expected(Client((Message(b"\x03" + b"9" * 20, 0),), STAYS))) == ["malformed cookie"]
