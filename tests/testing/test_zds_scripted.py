"""The scripted ends of ZDS against each other: what a test can say, and what it is told."""

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyztun import NetNs, PeerClosed, ProtocolError, SyscallError
from pyztun.protocol import zds
from pyztun.testing import (
    AckingZtunnel,
    AgentConnection,
    LeakCheck,
    ScriptedAgent,
    ScriptedZtunnel,
    ZdsRequest,
)

Both = tuple[AgentConnection, ScriptedZtunnel]


@pytest.fixture
def agent(sock_path: str) -> Iterator[ScriptedAgent]:
    with ScriptedAgent(sock_path) as made:
        yield made


@pytest.fixture
def both(agent: ScriptedAgent) -> Iterator[Both]:
    """The two ends of a connection, after the Hello."""
    with ScriptedZtunnel(agent.path) as ztunnel:
        yield agent.accept(), ztunnel


@pytest.fixture
def some_file() -> Iterator[int]:
    """A descriptor that is not of a netns."""
    fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def test_hello_and_who_is_there(both: Both) -> None:
    connection, ztunnel = both
    assert connection.hello == 1
    assert connection.pid == ztunnel.pid == os.getpid()


@pytest.mark.needs_netns
def test_requests_in_order_and_their_answers(both: Both, netns: NetNs) -> None:
    connection, ztunnel = both
    connection.send_add("u", netns, name="n", namespace="m", service_account="s")
    connection.send_keep("k")
    connection.send_snapshot_sent()
    connection.send_delete("u")
    with ztunnel.request() as add:
        assert add.message == zds.Add("u", zds.WorkloadInfo("n", "m", "s"))
        assert (add.uid, add.cookie) == ("u", netns.cookie)
        add.nack("why")
    for message in (zds.Keep("k"), zds.SnapshotSent(), zds.Del("u")):
        request = ztunnel.request()
        assert (request.message, request.netns) == (message, None)
        request.ack()
    assert [each.uid for each in (add, request)] == ["u", "u"]
    assert len(connection.due) == 4
    answers = [connection.answer() for _ in range(4)]
    assert [answer.error for answer in answers] == ["why", "", "", ""]
    assert [answer.ok for answer in answers] == [False, True, True, True]
    assert answers[0].request == add.message
    with pytest.raises(LookupError):
        connection.answer()


@pytest.mark.needs_netns
def test_a_netns_outlives_the_request_where_it_is_taken_over(both: Both, netns: NetNs) -> None:
    connection, ztunnel = both
    connection.send_add("u", f"/proc/{os.getpid()}/fd/{netns.fileno()}")
    with ztunnel.request() as request:
        assert request.netns is not None
        with NetNs.from_fd(request.netns.fileno()) as taken:
            assert taken.is_same(netns)
        fd = request.netns.detach()
    os.close(fd)  # it was left open


def test_a_request_without_a_netns_has_no_cookie(both: Both) -> None:
    connection, ztunnel = both
    connection.send_snapshot_sent()
    with pytest.raises(ValueError, match="no netns"):
        _ = ztunnel.request().cookie


def test_whatever_is_not_asked_for(both: Both, some_file: int) -> None:
    """Garbage, and any number of descriptors, in both directions."""
    connection, ztunnel = both
    for data, count, why in (
        (b"\xff\xff", 0, "not a WorkloadRequest"),
        (bytes.fromhex("0a0e0a01751209 0a016e12016d1a0173"), 0, "add with 0"),
        (bytes.fromhex("0a0e0a01751209 0a016e12016d1a0173"), 2, "add with 2"),
        (zds.encode(zds.Keep("u")), 1, "keep with 1"),
    ):
        connection.send_raw(data, [some_file] * count)
        with pytest.raises(ProtocolError, match=why):
            ztunnel.request()
    connection.send_snapshot_sent()
    ztunnel.send_raw(b"\xff")
    with pytest.raises(ProtocolError, match="not a WorkloadResponse"):
        connection.answer()
    connection.send_snapshot_sent()
    ztunnel.send_raw(zds.ack(), [some_file])
    with pytest.raises(SyscallError) as caught:
        connection.answer()
    assert caught.value.errno == errno.EPROTO


def test_an_answer_that_is_too_long_is_told(both: Both) -> None:
    connection, ztunnel = both
    connection.send_snapshot_sent()
    ztunnel.send_raw(b"\x0a\x83\x08\x0a\x80\x08" + b"x" * 1024)
    with pytest.raises(SyscallError) as caught:
        connection.answer()
    assert caught.value.errno == errno.EMSGSIZE


def test_answers_late_twice_and_never(both: Both) -> None:
    connection, ztunnel = both
    connection.send_keep("u")
    with pytest.raises(TimeoutError):
        connection.answer(0.01)
    ztunnel.request().answer_twice()
    assert connection.answer().ok
    connection.send_keep("v")
    assert connection.answer() == (zds.Keep("v"), "")  # paired wrongly, as it would be
    with pytest.raises(TimeoutError):
        connection.receive_raw(0, 0.01)


def test_who_waits_for_his_own_answer_loses_none_before_it(both: Both) -> None:
    connection, ztunnel = both
    for uid in "abc":
        connection.send_keep(uid)
    for why in ("first", "second", "third", "fourth"):
        ztunnel.send_raw(zds.nack(why))
    assert connection.delete("d") == (zds.Del("d"), "fourth")
    assert connection.due == ()
    answers = [(answer.request, answer.error) for answer in (connection.answer() for _ in "abc")]
    assert answers == [
        (zds.Keep("a"), "first"),
        (zds.Keep("b"), "second"),
        (zds.Keep("c"), "third"),
    ]


def test_requests_wait_only_so_long(both: Both) -> None:
    _, ztunnel = both
    with pytest.raises(TimeoutError):
        ztunnel.request(0.01)


def test_either_end_may_die(agent: ScriptedAgent) -> None:
    with ScriptedZtunnel(agent.path) as ztunnel:
        connection = agent.accept()
        connection.send_keep("unread")
        connection.close()
        assert ztunnel.request().uid == "unread"
        with pytest.raises(PeerClosed):
            ztunnel.request()
    with ScriptedZtunnel(agent.path) as ztunnel:
        connection = agent.accept()
        connection.send_keep("u")
        assert not connection.wait_closed(0.01)
    assert connection.wait_closed()
    with pytest.raises(PeerClosed):
        connection.answer()
    with pytest.raises(BrokenPipeError):
        connection.send_keep("v")


def test_a_ztunnel_that_says_no_hello_or_something_else(agent: ScriptedAgent) -> None:
    with ScriptedZtunnel(agent.path, hello=False) as ztunnel:
        connection = agent.accept(hello=False)
        assert connection.hello is None
        with pytest.raises(TimeoutError):
            connection.receive_hello(0.01)
        ztunnel.say_hello()
        assert connection.receive_hello() == 1
    with ScriptedZtunnel(agent.path, hello=False) as ztunnel:
        ztunnel.send_raw(b"\xff")
        with pytest.raises(ProtocolError, match="not a Hello"):
            agent.accept()
    with pytest.raises(TimeoutError):
        agent.accept(0.01)


def test_a_socket_that_is_not_there_is_waited_for(sock_path: str) -> None:
    with pytest.raises(TimeoutError, match="no agent"):
        ScriptedZtunnel(sock_path, timeout=0.05)
    came: list[ScriptedZtunnel] = []
    dialer = threading.Thread(target=lambda: came.append(ScriptedZtunnel(sock_path)))
    dialer.start()
    with ScriptedAgent(sock_path) as agent:
        agent.accept()
        dialer.join()
    came[0].close()


def test_what_a_killed_agent_left_is_replaced_and_a_file_is_not(directory: Path) -> None:
    path = directory / "left.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        left.bind(os.fspath(path))
    with ScriptedAgent(path):
        assert path.is_socket()
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(OSError, match="in use"):
        ScriptedAgent(path)
    assert path.read_text() == "mine"


@pytest.mark.needs_netns
def test_nothing_is_left_open_whatever_was_left_unanswered(sock_path: str, netns: NetNs) -> None:
    with LeakCheck(), ScriptedAgent(sock_path) as agent, ScriptedZtunnel(sock_path) as ztunnel:
        connection = agent.accept()
        for uid in "abc":
            connection.send_add(uid, netns)
        ztunnel.request()
        ztunnel.request()


# ---- the one that agrees to everything -----------------------------------------------------------


@pytest.mark.needs_netns
def test_acking_ztunnel_remembers_who_is_where(agent: ScriptedAgent, netns: NetNs) -> None:
    with AckingZtunnel(agent.path) as ztunnel:
        connection = agent.accept()
        assert not ztunnel.has_snapshot
        answers = connection.snapshot({"u": netns, "k": None})
        assert {uid: answer.ok for uid, answer in answers.items()} == {"u": True, "k": True}
        assert ztunnel.has_snapshot
        assert ztunnel.workloads == {"u": netns.cookie}
        assert connection.add("v", netns).ok
        assert connection.delete("u").ok
        assert ztunnel.wait_for(lambda all_: "u" not in all_) == {"v": netns.cookie}
        with pytest.raises(TimeoutError, match="the snapshot is complete; connected"):
            ztunnel.wait_for(lambda all_: "w" in all_, 0.01)
        assert ztunnel.end is None
        connection.close()
        with pytest.raises(TimeoutError, match="the agent closed"):
            ztunnel.wait_for(lambda all_: "w" in all_)
        assert ztunnel.end == "the agent closed the connection"


def test_acking_ztunnel_refuses_what_is_no_netns(agent: ScriptedAgent, some_file: int) -> None:
    with AckingZtunnel(agent.path) as ztunnel:
        answer = agent.accept().add("u", some_file)
        assert "not a network namespace" in answer.error
        assert ztunnel.workloads == {}


def test_acking_ztunnel_holds_and_releases(agent: ScriptedAgent) -> None:
    with AckingZtunnel(agent.path) as ztunnel:
        connection = agent.accept()
        assert connection.snapshot({}) == {}
        ztunnel.hold()
        connection.send_delete("u")
        connection.send_delete("v")
        with pytest.raises(TimeoutError):
            connection.answer(0.01)
        ztunnel.release()
        assert [connection.answer().request for _ in "uv"] == [zds.Del("u"), zds.Del("v")]
        ztunnel.hold()
        connection.send_delete("u")  # and it ends while it holds
    assert connection.wait_closed()


def test_acking_ztunnel_answers_as_it_is_told(agent: ScriptedAgent) -> None:
    def answer(request: ZdsRequest) -> None:
        if request.uid == "silent":
            return
        request.nack("no") if request.uid == "bad" else request.ack()

    with AckingZtunnel(agent.path, answer=answer):
        connection = agent.accept()
        assert connection.keep("bad").error == "no"
        assert connection.keep("good").ok
        connection.send_keep("silent")
        with pytest.raises(TimeoutError):
            connection.answer(0.01)


def test_acking_ztunnel_ends_where_the_protocol_is_broken(agent: ScriptedAgent) -> None:
    with AckingZtunnel(agent.path) as ztunnel:
        connection = agent.accept()
        connection.send_raw(b"\xff")
        assert connection.wait_closed()
        with contextlib.suppress(TimeoutError):
            ztunnel.wait_for(lambda _: False)
        assert ztunnel.end is not None
        assert "not a WorkloadRequest" in ztunnel.end
