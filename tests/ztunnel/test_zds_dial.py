"""How ztunnel comes to its agent, and how soon again after each end."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import cast

import pytest

from pyztun.service.log import Log
from pyztun.ztunnel import agent_link
from pyztun.ztunnel.agent_link import FIRST_DELAY, LAST_DELAY, NEVER, AgentLink
from support import zt_zds
from support.needs import STRANGER
from support.pods import Pod
from support.programs import Daemon
from support.zt_zds import HELLO, Agent, Node, Start, serves

NOW = 1000.0
JITTER = 0.2

# ---- the schedule, with a real socket and a clock that stands still ------------------------------


class Said:
    """What a link logs: level and name of each event."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def event(self, level: str, name: str, **_: object) -> None:
        self.events.append((level, name))


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch, sock_path: str, said: Said) -> Iterator[AgentLink]:
    """A link to sock_path for which it is always NOW."""
    monkeypatch.setattr(agent_link, "monotonic", lambda: NOW)
    made = AgentLink(sock_path, [os.geteuid()], cast("Log", said), os.close)
    yield made
    made.hang_up("the test is over")


def ideal_delays(count: int) -> list[float]:
    return [min(FIRST_DELAY * 2**turn, LAST_DELAY) for turn in range(count)]


def is_about(due: float, ideal: float) -> bool:
    low, high = (1 - JITTER) * ideal, min((1 + JITTER) * ideal, LAST_DELAY)
    return low - 1e-9 <= due - NOW <= high + 1e-9


def test_it_dials_at_once_at_the_start(link: AgentLink) -> None:
    assert link.dial_at < NOW
    assert link.sock == -1


def test_delays_double_from_20_ms_to_15_s_while_nobody_listens(link: AgentLink, said: Said) -> None:
    assert (FIRST_DELAY, LAST_DELAY) == (0.02, 15.0)
    for ideal in ideal_delays(14):
        assert not link.dial()
        assert is_about(link.dial_at, ideal)
    assert set(said.events) == {("peer", "cannot-connect")}


def test_an_agent_that_ends_each_connection_is_dialled_ever_slower(
    link: AgentLink, sock_path: str
) -> None:
    with Agent(sock_path) as agent:
        for ideal in ideal_delays(14):
            assert link.dial()
            assert link.dial_at == NEVER
            agent.accept().close()
            link.hang_up("the agent closed the connection")
            assert link.sock == -1
            assert is_about(link.dial_at, ideal)


def test_the_delay_begins_anew_once_a_snapshot_went_through(
    link: AgentLink, sock_path: str
) -> None:
    for _ in range(10):
        link.dial()
    with Agent(sock_path):
        assert link.dial()
        link.works()
        link.hang_up("why")
        assert is_about(link.dial_at, FIRST_DELAY)
        assert link.dial()
        link.hang_up("before its snapshot was complete")
        assert is_about(link.dial_at, 2 * FIRST_DELAY)


def test_each_end_is_told_once(link: AgentLink, sock_path: str, said: Said) -> None:
    ends: list[str] = []
    link.on_end = lambda: ends.append("end")
    link.hang_up("there is no connection")
    with Agent(sock_path):
        assert link.dial()
        link.hang_up("why")
        link.hang_up("again")
    assert ends == ["end"]
    assert said.events == [("info", "connected"), ("peer", "disconnected")]


def test_an_answer_that_finds_no_room_ends_the_connection(link: AgentLink, sock_path: str) -> None:
    """It is never waited for: whoever does not read his answers would stop everybody."""
    with Agent(sock_path) as agent:
        assert link.dial()
        agent.accept()
        for _ in range(100_000):
            link.answer(zt_zds.ACK)
            if link.sock == -1:
                break
        assert link.sock == -1
        link.answer(zt_zds.ACK)  # to nobody


# ---- the program ---------------------------------------------------------------------------------


def test_hello_is_the_first_message_and_the_only_one(start: Start, sock_path: str) -> None:
    with Agent(sock_path) as agent:
        daemon = start("--zds", sock_path)
        link = agent.accept_raw()
        assert link.receive() == HELLO
        link.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            link.receive()
        assert daemon.stop() == 0
        assert link.has_ended()


def test_inpod_uds_is_the_default(start: Start, sock_path: str, pod: Pod) -> None:
    with Agent(sock_path) as agent:
        start(env={"INPOD_UDS": sock_path})
        agent.accept().serve("u", pod)
        assert serves(pod)


def nothing(path: str) -> ExitStack:
    """No file."""
    return ExitStack()


def a_file(path: str) -> ExitStack:
    Path(path).touch()
    stack = ExitStack()
    stack.callback(os.unlink, path)
    return stack


def nobody_listens(path: str) -> ExitStack:
    """A socket file whose owner has died."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        left.bind(path)
    stack = ExitStack()
    stack.callback(os.unlink, path)
    return stack


def a_stream(path: str) -> Agent:
    """A socket of another kind."""
    return Agent(path, socket.SOCK_STREAM)


def no_room(path: str) -> ExitStack:
    """An agent that accepts nobody, and whose backlog is full."""
    stack = ExitStack()
    agent = stack.enter_context(Agent(path, backlog=0))
    for _ in range(2):
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        waiting.setblocking(False)
        if waiting.connect_ex(agent.socket.getsockname()) != 0:
            return stack
    raise AssertionError("the backlog is not full")


@pytest.mark.parametrize("obstacle", [nothing, a_file, nobody_listens, a_stream, no_room])
def test_it_finds_an_agent_that_comes_later(
    start: Start, sock_path: str, pod: Pod, obstacle: Callable[[str], ExitStack | Agent]
) -> None:
    """READY=1 does not wait for an agent: a node's pods may be served before it is up."""
    with obstacle(sock_path):
        daemon = start("--zds", sock_path)
        daemon.stderr.wait_for("cannot-connect")
    with Agent(sock_path) as agent:
        link = agent.accept()
        link.serve("u", pod)
        assert serves(pod)
        assert daemon.stop() == 0
    zt_zds.no_bug(daemon)


def test_it_comes_back_after_each_kind_of_end(start: Start, sock_path: str, pod: Pod) -> None:
    with Node(start, sock_path) as node:
        node.link.serve("u", pod)
        for end in (close, shut_down, leave_unread, say_nothing_more):
            end(node)
            node.link = node.agent.accept()
            assert node.link.keep("u") == "", end.__name__
            assert node.link.snapshot_sent() == ""
            assert serves(pod)


def close(node: Node) -> None:
    node.link.close()


def shut_down(node: Node) -> None:
    """The descriptor stays open."""
    node.link.socket.shutdown(socket.SHUT_RDWR)


def leave_unread(node: Node) -> None:
    """ECONNRESET at the other end: an answer was not read."""
    node.link.send(zt_zds.delete("nobody"))
    node.link.socket.recv(1024, socket.MSG_PEEK)
    node.link.close()


def say_nothing_more(node: Node) -> None:
    """A packet without bytes cannot be told from the end."""
    node.link.socket.send(b"")
    assert node.link.has_ended()


# ---- who may command -----------------------------------------------------------------------------


@contextmanager
def agent_of(uid: int, path: str) -> Iterator[Agent]:
    """An agent that listens as that uid: SO_PEERCRED is taken at listen()."""
    os.seteuid(uid)
    try:
        agent = Agent(path)
    finally:
        os.seteuid(0)
    with agent:
        yield agent


@pytest.mark.needs_root
def test_an_agent_of_a_foreign_uid_is_left_without_a_word(
    start: Start, shared_directory: Path, pod: Pod
) -> None:
    path = f"{shared_directory}/zt.sock"
    with agent_of(STRANGER, path) as stranger:
        daemon = start("--zds", path)
        link = stranger.accept_raw()
        with pod.opened() as fd, suppress(ConnectionError):  # it may have closed already
            link.send(zt_zds.add("u"), [fd])
        assert link.has_ended(), "not even a Hello"
        assert f"uid {STRANGER}" in daemon.stderr.wait_for("cannot-connect")
        assert not serves(pod)
    with Agent(path) as agent:
        agent.accept().serve("u", pod)
        assert serves(pod)
    assert daemon.stop() == 0


@pytest.mark.needs_root
def test_an_agent_of_a_uid_that_is_allowed(start: Start, shared_directory: Path, pod: Pod) -> None:
    path = f"{shared_directory}/zt.sock"
    with agent_of(STRANGER, path) as agent:
        daemon: Daemon = start("--zds", path, "--allow-uid", str(STRANGER))
        agent.accept().serve("u", pod)
        assert serves(pod)
        assert daemon.stop() == 0
