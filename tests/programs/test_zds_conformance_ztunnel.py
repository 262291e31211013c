"""`pyztun-ztunnel --zds` against an agent that was written from the description of ZDS alone.

The agent knows nothing of pyztun; that what was acknowledged is really served is asked in the pods.
"""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyztun import NetNs
from support import leaks
from support.pods import Canary, Pod
from support.programs import Daemon
from support.zds_peers import AgentPeer
from support.zt_zds import becomes

pytestmark = pytest.mark.needs_named_netns

PORTS = (15008, 15006, 15001)
ADD_WITHOUT_INFO = "0a030a0175"
HELLO = "0801"
SNAPSHOT_SENT = "1a00"
ADD_U = "0a0e0a017512090a016e12016d1a0173"

Start = Callable[..., Daemon]
MakePod = Callable[[], Pod]


@pytest.fixture
def agent(sock_path: str) -> Iterator[AgentPeer]:
    with AgentPeer(sock_path) as peer:
        yield peer


@pytest.fixture
def zds(agent: AgentPeer, start: Start, sock_path: str) -> Daemon:
    """`pyztun-ztunnel --zds`, connected, its snapshot not begun."""
    daemon = start("--zds", sock_path, ready=False)
    assert agent.ask("accept") == {"accepted": 0, "hello": 1}
    return daemon


def acked(said: dict[str, object]) -> bool:
    """Whether it is an ACK, and one that came well inside the 5 seconds."""
    seconds = said.pop("seconds", 0.0)
    assert isinstance(seconds, float)
    assert seconds < 2.5
    return said == {"ack": True, "error": ""}


def serves(pod: Pod) -> bool:
    """Whether all three ports are served, over IPv4 and IPv6; False if all refuse."""
    refused = {
        (port, host): pod.refuses(port, host) for port in PORTS for host in ("127.0.0.1", "::1")
    }
    assert len(set(refused.values())) == 1, refused
    is_served = not any(refused.values())
    assert not is_served or all(pod.resets(port, host) for port, host in refused)
    return is_served


def test_a_snapshot_then_adds_and_deletes(agent: AgentPeer, zds: Daemon, make_pod: MakePod) -> None:
    one, two = make_pod(), make_pod()
    assert acked(agent.ask(f"add one {one.path} n m s"))
    assert serves(one)  # it does not wait for the end of the snapshot
    assert acked(agent.ask("keep nobody"))
    assert acked(agent.ask("sent"))
    assert acked(agent.ask(f"add two {two.path}"))
    assert serves(two)
    assert acked(agent.ask(f"add two {two.path}"))
    assert acked(agent.ask("del one"))
    assert acked(agent.ask("del one"))
    assert acked(agent.ask("del unknown"))
    assert (serves(one), serves(two)) == (False, True)
    assert agent.ask("quiet 0.2") == {"quiet": True}
    assert zds.stop() == 0


def test_snapshot_decides_what_goes_on(agent: AgentPeer, zds: Daemon, make_pod: MakePod) -> None:
    """Across a connection that ends: nothing stops before the next SnapshotSent."""
    kept, named, gone, deleted = pods = [make_pod() for _ in range(4)]
    for pod in pods:
        assert acked(agent.ask(f"add {pod.name} {pod.path}"))
    assert acked(agent.ask("sent"))
    agent.ask("close")
    assert agent.ask("accept") == {"accepted": 1, "hello": 1}
    assert all(map(serves, pods))
    assert acked(agent.ask(f"keep {kept.name}"))
    assert acked(agent.ask(f"add {named.name} {named.path}"))
    assert acked(agent.ask(f"add {deleted.name} {deleted.path}"))
    assert acked(agent.ask(f"del {deleted.name}"))
    assert all(map(serves, pods))  # a Del in a snapshot waits for its end
    assert acked(agent.ask("sent"))
    assert list(map(serves, pods)) == [True, True, False, False]
    assert gone.name != deleted.name


def test_same_uid_in_another_netns(agent: AgentPeer, zds: Daemon, make_pod: MakePod) -> None:
    old, new = make_pod(), make_pod()
    assert acked(agent.ask(f"add u {old.path}"))
    assert acked(agent.ask("sent"))
    assert acked(agent.ask(f"add u {new.path}"))
    assert (serves(old), serves(new)) == (False, True)
    assert acked(agent.ask(f"add u {old.path}"))
    assert (serves(old), serves(new)) == (True, False)


def test_a_pod_whose_port_is_taken(agent: AgentPeer, zds: Daemon, make_pod: MakePod) -> None:
    """Refused, with the address; it heals by itself when the port is free."""
    pod = make_pod()
    (taken,) = occupy(pod)
    with taken:
        said = agent.ask(f"add u {pod.path}")
        assert said["ack"] is False
        assert "15008" in said["error"]
        assert "EADDRINUSE" in said["error"]
        assert acked(agent.ask("sent"))  # readiness does not hang on it
        zds.wait_ready()
    zds.stdout.wait_for("listeners ready")
    assert serves(pod)
    assert agent.ask("quiet 0.2") == {"quiet": True}  # it has no way to say so


def occupy(pod: Pod) -> list[socket.socket]:
    with NetNs.from_path(pod.path) as opened:
        return opened.listen(("0.0.0.0", 15008))


def test_a_replacement_that_fails_costs_nothing(
    agent: AgentPeer, zds: Daemon, make_pod: MakePod
) -> None:
    """Better than Istio's, which has stopped the old one by then."""
    old, new = make_pod(), make_pod()
    assert acked(agent.ask(f"add u {old.path}"))
    assert acked(agent.ask("sent"))
    (taken,) = occupy(new)
    with taken:
        assert agent.ask(f"add u {new.path}")["ack"] is False
        assert serves(old)
        assert acked(agent.ask(f"add u {old.path}"))  # which cancels it
    assert serves(old)
    assert not serves(new)


def test_a_second_uid_for_a_netns_is_refused_by_name(
    agent: AgentPeer, zds: Daemon, make_pod: MakePod
) -> None:
    pod = make_pod()
    assert acked(agent.ask(f"add first {pod.path}"))
    assert acked(agent.ask("sent"))
    said = agent.ask(f"add second {pod.path}")
    assert said["ack"] is False
    assert "first" in said["error"]
    assert serves(pod)
    assert acked(agent.ask("del second"))
    assert serves(pod)


VIOLATIONS = [
    ("add without info", f"raw {ADD_WITHOUT_INFO} NETNS"),
    ("keep behind the snapshot", "keep u"),
    ("second SnapshotSent", "sent"),
    ("garbage", "raw ffff"),
    ("a Hello", f"raw {HELLO}"),
    ("an Add without descriptor", f"raw {ADD_U}"),
    ("an Add with two", f"raw {ADD_U} NETNS NETNS"),
    ("an Add with three", f"raw {ADD_U} NETNS NETNS NETNS"),
    ("a descriptor that is none of its", f"raw {SNAPSHOT_SENT} NETNS"),
    ("1025 bytes", "raw " + "1a00" * 512 + "1a NETNS"),
]


@pytest.mark.parametrize("command", [row[1] for row in VIOLATIONS], ids=[r[0] for r in VIOLATIONS])
def test_whatever_an_agent_says_nothing_stops(
    agent: AgentPeer, zds: Daemon, make_pod: MakePod, command: str
) -> None:
    """Refused with one answer, and a new connection: Istio's would have ended at three of them."""
    pod, other = make_pod(), make_pod()
    assert acked(agent.ask(f"add u {pod.path}"))
    assert acked(agent.ask("sent"))
    before = leaks.open_fds(zds.pid)
    said = agent.ask(command.replace("NETNS", other.path))
    assert said["ack"] is False
    assert 0 < len(said["error"].encode()) < 1000
    assert agent.ask("eof") == {"eof": True, "came": ""}
    agent.ask("close")
    assert agent.ask("accept") == {"accepted": 1, "hello": 1}
    assert serves(pod)
    assert not serves(other)
    assert acked(agent.ask(f"add u {pod.path}"))
    assert acked(agent.ask("sent"))
    # A stranger's descriptors are closed by a thread.
    assert becomes(lambda: len(leaks.open_fds(zds.pid)) == len(before), 10)
    assert zds.process.poll() is None


def test_a_descriptor_that_is_no_netns(agent: AgentPeer, zds: Daemon, make_pod: MakePod) -> None:
    pod = make_pod()
    said = agent.ask("add u /dev/null")
    assert said["ack"] is False
    assert acked(agent.ask(f"add u {pod.path}"))
    assert acked(agent.ask("sent"))
    assert serves(pod)


def test_answers_come_in_the_order_of_the_requests(
    agent: AgentPeer, zds: Daemon, make_pod: MakePod
) -> None:
    """Many at once, of which each third is refused."""
    pods = [make_pod() for _ in range(4)]
    for number in range(30):
        path = "/dev/null" if number % 3 == 2 else pods[number % 4].path
        assert agent.ask(f"!add u{number % 4 if number % 3 != 2 else 'bad'} {path}")
    answers = [agent.ask("read")["ack"] for _ in range(30)]
    assert answers == [number % 3 != 2 for number in range(30)]
    assert agent.ask("quiet 0.2") == {"quiet": True}


def test_unread_requests_of_an_agent_that_died_count(
    agent: AgentPeer, zds: Daemon, make_pod: MakePod, directory: Path
) -> None:
    pod = make_pod()
    zds.process.send_signal(signal.SIGSTOP)
    agent.ask(f"!add u {pod.path}")
    agent.ask("close")
    zds.process.send_signal(signal.SIGCONT)
    assert agent.ask("accept") == {"accepted": 1, "hello": 1}
    assert serves(pod)
    assert acked(agent.ask("sent"))
    assert not serves(pod)


def test_two_ztunnels_serve_the_same_pod(
    agent: AgentPeer, zds: Daemon, start: Start, sock_path: str, make_pod: MakePod
) -> None:
    """As in an upgrade: the new one comes up beside the old one, then that one goes."""
    pod = make_pod()
    assert acked(agent.ask(f"add u {pod.path}"))
    assert acked(agent.ask("sent"))
    new = start("--zds", sock_path, ready=False)
    assert agent.ask("accept") == {"accepted": 1, "hello": 1}
    assert acked(agent.ask(f"add u {pod.path}"))
    assert acked(agent.ask("sent"))
    new.wait_ready()
    assert zds.stop() == 0
    assert agent.ask("@0 eof") == {"eof": True, "came": ""}
    assert serves(pod)
    assert acked(agent.ask("del u"))
    assert not serves(pod)


def test_a_deleted_pod_dies(
    agent: AgentPeer,
    zds: Daemon,
    make_pod: MakePod,
    make_canary: Callable[[Pod], Canary],
) -> None:
    pod = make_pod()
    canary = make_canary(pod)
    assert acked(agent.ask(f"add u {pod.path}"))
    assert acked(agent.ask("sent"))
    pod.delete()
    assert canary.alive
    assert acked(agent.ask("del u"))
    assert canary.died()


def test_it_finds_an_agent_that_comes_later(
    start: Start, sock_path: str, make_pod: MakePod
) -> None:
    daemon = start("--zds", sock_path, ready=False)
    pod = make_pod()
    for _ in range(2):
        with AgentPeer(sock_path) as agent:
            assert agent.ask("accept") == {"accepted": 0, "hello": 1}
            assert acked(agent.ask(f"add u {pod.path}"))
            assert acked(agent.ask("sent"))
            daemon.wait_ready()
        os.unlink(sock_path)
        assert serves(pod)
