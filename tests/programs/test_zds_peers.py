"""The two peers that judge our programs, against each other: a wrong judge is found here."""

import time
from collections.abc import Callable, Iterator

import pytest

from support.pods import Pod
from support.zds_peers import AgentPeer, ZtunnelPeer

pytestmark = pytest.mark.needs_named_netns

ADD_U_WITHOUT_INFO = "0a030a0175"
ACK = {"ack": True, "error": ""}


@pytest.fixture
def agent(sock_path: str) -> Iterator[AgentPeer]:
    with AgentPeer(sock_path) as peer:
        yield peer


@pytest.fixture
def ztunnel(agent: AgentPeer, sock_path: str) -> Iterator[ZtunnelPeer]:
    with ZtunnelPeer(sock_path) as peer:
        assert agent.ask("accept") == {"accepted": 0, "hello": 1}
        yield peer


def answer(agent: AgentPeer, command: str) -> dict[str, object]:
    """What a command brought, without the time that it took."""
    return {key: value for key, value in agent.ask(command).items() if key != "seconds"}


def test_snapshot_add_delete(agent: AgentPeer, ztunnel: ZtunnelPeer, pod: Pod) -> None:
    assert answer(agent, f"add u {pod.path} n m s") == ACK
    assert ztunnel.event("add") == {
        "event": "add",
        "uid": "u",
        "info": ["n", "m", "s"],
        "error": None,
    }
    assert pod.ask(15008) == pod.ask(15006, host="::1") == b"ok\n"
    assert answer(agent, "keep k") == ACK
    assert ztunnel.status()["ready"] is False
    assert answer(agent, "sent") == ACK
    status = ztunnel.status()
    assert (status["running"], status["pending"], status["ready"]) == ({"u": pod.inode}, [], True)
    assert answer(agent, "del u") == ACK
    assert pod.refuses(15008)


def test_a_replacement_and_a_reconnect(
    agent: AgentPeer, ztunnel: ZtunnelPeer, make_pod: Callable[[], Pod]
) -> None:
    old, new = make_pod(), make_pod()
    assert answer(agent, f"add u {old.path}") == ACK
    assert answer(agent, f"add u {new.path}") == ACK
    assert (old.refuses(15008), new.ask(15008)) == (True, b"ok\n")
    ztunnel.ask("close", "disconnected")
    assert agent.ask("accept") == {"accepted": 1, "hello": 1}
    assert new.ask(15008) == b"ok\n"
    assert answer(agent, "sent") == ACK
    assert new.refuses(15008)


@pytest.mark.parametrize(
    ("snapshot", "command"),
    [
        ("", f"raw {ADD_U_WITHOUT_INFO} NETNS"),
        ("sent", "keep u"),
        ("sent", "sent"),
    ],
)
def test_it_ends_where_istios_does(
    agent: AgentPeer, ztunnel: ZtunnelPeer, pod: Pod, snapshot: str, command: str
) -> None:
    if snapshot:
        assert answer(agent, snapshot) == ACK
    said = agent.ask(command.replace("NETNS", pod.path))
    assert said["error"].startswith("failure to process message")
    assert ztunnel.wait() == 1


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("raw 0a0e0a017512090a016e12016d1a0173", "No control message"),
        ("raw 0a0e0a017512090a016e12016d1a0173 NETNS NETNS", "Expected 1 FD, got 2"),
        ("raw 1a00 NETNS", "Unexpected control message"),
        ("raw 0a0e0a017512090a016e12016d1a0173 NETNS NETNS NETNS", "truncated control message"),
        ("raw " + "1a00" * 513, "truncated message"),
        ("raw ff", "a bad varint"),
    ],
)
def test_it_refuses_what_it_cannot_read(
    agent: AgentPeer, ztunnel: ZtunnelPeer, pod: Pod, command: str, why: str
) -> None:
    said = agent.ask(command.replace("NETNS", pod.path))
    assert said["error"] == f"failure to read message : {why}"
    assert agent.ask("eof") == {"eof": True, "came": ""}
    assert agent.ask("accept") == {"accepted": 1, "hello": 1}


def test_answers_late_twice_and_refused(agent: AgentPeer, ztunnel: ZtunnelPeer, pod: Pod) -> None:
    assert answer(agent, "sent") == ACK
    ztunnel.ask("hold", "holding")
    agent.ask(f"!add u {pod.path}")
    ztunnel.event("add")
    assert agent.ask("quiet 0.05") == {"quiet": True}
    ztunnel.ask("release", "released")
    assert answer(agent, "read") == ACK
    ztunnel.ask("refuse v no room", "refusing")
    assert answer(agent, f"add v {pod.path}") == {
        "ack": False,
        "error": "failure to start proxy : no room",
    }
    ztunnel.ask("twice", "twice")
    assert answer(agent, "del v") == ACK
    assert agent.ask("quiet 1") == {"quiet": False, "came": "0a00"}
    ztunnel.ask("unasked ffff", "unasked")
    assert agent.ask("quiet 1") == {"quiet": False, "came": "ffff"}


@pytest.mark.slow
def test_a_refused_one_is_tried_again_after_five_seconds(
    agent: AgentPeer, ztunnel: ZtunnelPeer, pod: Pod
) -> None:
    ztunnel.ask("refuse u not now", "refusing")
    started = time.monotonic()
    assert agent.ask(f"add u {pod.path}")["ack"] is False
    assert ztunnel.event("retried") == {"event": "retried", "uid": "u", "error": None}
    assert 4.5 < time.monotonic() - started < 15
    assert pod.ask(15008) == b"ok\n"
