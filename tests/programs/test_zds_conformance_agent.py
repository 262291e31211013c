"""`pyztun-cni agent` against a ztunnel that was written from the description of ZDS alone.

That ztunnel is strict: it ends where Istio's ends, which would take the listeners of every pod
along; so at the end of each test those that were not killed still run.
"""

import json
import os
import random
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.pods import Pod
from support.programs import Daemon, cni, program
from support.zds_peers import ZtunnelPeer
from support.zt_zds import becomes

PORTS = (15008, 15006, 15001)

MakePod = Callable[[], Pod]
Connect = Callable[[], ZtunnelPeer]


def is_built() -> bool:
    return cni("agent", "--help").returncode == 0


pytestmark = [
    pytest.mark.needs_named_netns,
    pytest.mark.skipif(not is_built(), reason="pyztun-cni agent is not built yet"),
]


class Agent:
    """The agent under test, and the commands that talk to it."""

    def __init__(self, directory: Path, start: Callable[..., Daemon]) -> None:
        self.directory = directory
        self.zds = directory / "zds.sock"
        self._start = start
        self.start()

    def start(self) -> None:
        """Once it listens: READY=1."""
        self.daemon = self._start(
            "agent",
            *("--zds", self.zds),
            *("--control", self.directory / "control.sock"),
            *("--state-dir", self.directory),
            *("--reconcile", "1"),
            command=program("pyztun-cni"),
        )

    def run(self, command: str, *words: str) -> "subprocess.CompletedProcess[str]":
        return cni(command, *words, "--control", self.directory / "control.sock")

    def add(self, pod: Pod, uid: str, *words: str) -> "subprocess.CompletedProcess[str]":
        return self.run("add", pod.path, "--uid", uid, "--capture", "none", *words)

    def delete(self, uid: str) -> None:
        done = self.run("del", uid)
        assert done.returncode == 0, done.stderr

    def states(self) -> dict[str, str]:
        """What `list` says of each uid."""
        done = self.run("list", "--json")
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return {row["uid"]: row["state"] for row in rows}


@pytest.fixture
def agent(directory: Path, start: Callable[..., Daemon]) -> Agent:
    return Agent(directory, start)


@pytest.fixture
def connect(agent: Agent) -> Iterator[Connect]:
    """A function that starts a ztunnel, which has its snapshot then. All survive the test."""
    peers: list[ZtunnelPeer] = []

    def one_more() -> ZtunnelPeer:
        peer = ZtunnelPeer(agent.zds)
        peers.append(peer)
        peer.event("snapshot_sent")
        return peer

    yield one_more
    ends = [peer.process.poll() for peer in peers]
    said = [peer.lines.all() for peer in peers]
    for peer in peers:
        peer.close()
    assert set(ends) <= {None, -signal.SIGKILL}, said


@pytest.fixture
def ztunnel(connect: Connect) -> ZtunnelPeer:
    return connect()


def done(result: "subprocess.CompletedProcess[str]") -> bool:
    assert result.returncode == 0, result.stderr
    return True


def running(peer: ZtunnelPeer) -> dict[str, int]:
    """Inode by uid of what it serves."""
    found: dict[str, int] = peer.status()["running"]
    return found


def serves(pod: Pod) -> bool:
    answers = {b"" if pod.refuses(port) else pod.ask(port) for port in PORTS}
    assert len(answers) == 1
    return answers == {b"ok\n"}


def test_add_and_del(agent: Agent, ztunnel: ZtunnelPeer, make_pod: MakePod) -> None:
    one, two = make_pod(), make_pod()
    words = ("--name", "n", "--namespace", "m", "--service-account", "s")
    assert done(agent.add(one, "one", *words))
    assert ztunnel.event("add")["info"] == ["n", "m", "s"]
    assert done(agent.add(two, "two"))
    assert running(ztunnel) == {"one": one.inode, "two": two.inode}
    assert serves(one)
    assert agent.states() == {"one": "ready", "two": "ready"}
    agent.delete("one")
    assert running(ztunnel) == {"two": two.inode}
    assert not serves(one)
    assert done(agent.add(two, "two"))  # again is the same
    assert running(ztunnel) == {"two": two.inode}


def test_every_connection_begins_with_a_snapshot(
    agent: Agent, ztunnel: ZtunnelPeer, make_pod: MakePod
) -> None:
    pods = {f"u{number}": make_pod() for number in range(4)}
    for uid, pod in pods.items():
        assert done(agent.add(pod, uid))
        ztunnel.event("add")
    order = []
    for _ in range(2):
        ztunnel.ask("close", "disconnected")
        ztunnel.event("connected")
        names = []
        while (said := ztunnel.next())["event"] != "snapshot_sent":
            names.append(said["uid"])
        order.append(names)
        assert running(ztunnel) == {uid: pod.inode for uid, pod in pods.items()}
    assert sorted(order[0]) == sorted(pods)
    assert order[0] == order[1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_agent_ends_and_comes_back(
    agent: Agent, ztunnel: ZtunnelPeer, make_pod: MakePod, number: signal.Signals
) -> None:
    kept, gone = make_pod(), make_pod()
    assert done(agent.add(kept, "kept"))
    assert done(agent.add(gone, "gone"))
    agent.daemon.stop(number)
    ztunnel.event("disconnected")
    assert serves(kept)
    gone.delete()
    agent.start()
    ztunnel.event("snapshot_sent")
    assert running(ztunnel) == {"kept": kept.inode}
    assert becomes(lambda: agent.states() == {"kept": "ready", "gone": "degraded"})


def test_ztunnel_dies_and_another_comes(agent: Agent, connect: Connect, make_pod: MakePod) -> None:
    first, pod = connect(), make_pod()
    assert done(agent.add(pod, "u"))
    first.process.kill()
    first.wait()
    assert not serves(pod)
    second = connect()
    assert running(second) == {"u": pod.inode}
    assert serves(pod)
    assert agent.states() == {"u": "ready"}


def test_without_a_ztunnel_it_is_pending_until_one_comes(
    agent: Agent, connect: Connect, pod: Pod
) -> None:
    result = agent.add(pod, "u")
    assert result.returncode == 1
    assert "ztunnel" in result.stderr
    assert agent.states() == {"u": "pending"}
    ztunnel = connect()
    assert running(ztunnel) == {"u": pod.inode}
    assert becomes(lambda: agent.states() == {"u": "ready"})


def test_a_refusal_is_told_and_offered_again(agent: Agent, ztunnel: ZtunnelPeer, pod: Pod) -> None:
    ztunnel.ask("refuse u no room today", "refusing")
    result = agent.add(pod, "u")
    assert result.returncode == 1
    assert "no room today" in result.stderr
    assert becomes(lambda: agent.states() == {"u": "ready"})
    assert serves(pod)


@pytest.mark.slow
def test_an_overdue_answer_costs_the_connection_and_nothing_else(
    agent: Agent, ztunnel: ZtunnelPeer, make_pod: MakePod
) -> None:
    """Istio's agent keeps it, and pairs the late answer with the next request."""
    late, next_ = make_pod(), make_pod()
    ztunnel.ask("hold", "holding")
    result = agent.add(late, "late", "--timeout", "1")
    assert result.returncode == 1
    assert ztunnel.event("disconnected", 20)
    ztunnel.ask("release", "released")
    assert becomes(lambda: agent.states() == {"late": "ready"}, 30)
    assert done(agent.add(next_, "next"))
    assert running(ztunnel) == {"late": late.inode, "next": next_.inode}


@pytest.mark.parametrize("how", ["twice", "unasked ffff", "unasked 0a00"])
def test_an_answer_too_many_costs_the_connection(
    agent: Agent, ztunnel: ZtunnelPeer, make_pod: MakePod, how: str
) -> None:
    pod, other = make_pod(), make_pod()
    assert done(agent.add(pod, "u"))
    ztunnel.ask(how, how.partition(" ")[0])
    if how == "twice":
        agent.add(other, "v")
    ztunnel.event("disconnected")
    ztunnel.event("snapshot_sent")
    assert becomes(lambda: set(agent.states().values()) == {"ready"})
    assert running(ztunnel)["u"] == pod.inode


def test_adds_go_to_the_newest_and_deletes_to_all(
    agent: Agent, connect: Connect, make_pod: MakePod
) -> None:
    old, new = connect(), connect()
    one, two = make_pod(), make_pod()
    assert done(agent.add(one, "one"))
    assert (running(old), running(new)) == ({}, {"one": one.inode})
    new.process.kill()
    new.wait()
    assert becomes(lambda: running(old) == {"one": one.inode})  # what it had missed
    third = connect()
    assert done(agent.add(two, "two"))
    assert (set(running(old)), set(running(third))) == ({"one"}, {"one", "two"})
    agent.delete("one")
    assert becomes(lambda: (set(running(old)), set(running(third))) == (set(), {"two"}))


@pytest.mark.slow
def test_who_has_not_said_hello_does_not_count(
    agent: Agent, ztunnel: ZtunnelPeer, pod: Pod
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.connect(os.fspath(agent.zds))
        assert done(agent.add(pod, "u"))
        assert running(ztunnel) == {"u": pod.inode}
        silent.settimeout(10)
        assert silent.recv(1024) == b""  # and is sent away after 5 seconds


def test_a_netns_that_is_replaced_under_its_path(
    agent: Agent, ztunnel: ZtunnelPeer, pod: Pod
) -> None:
    assert done(agent.add(pod, "u"))
    subprocess.run(["sh", "-ec", f"ip netns del {pod.name}; ip netns add {pod.name}"], check=True)
    inode = os.stat(pod.path).st_ino
    assert becomes(lambda: running(ztunnel) == {"u": inode})
    assert becomes(lambda: agent.states() == {"u": "ready"})


def test_a_netns_that_vanishes_and_comes_back(agent: Agent, ztunnel: ZtunnelPeer, pod: Pod) -> None:
    assert done(agent.add(pod, "u"))
    pod.delete()
    assert becomes(lambda: running(ztunnel) == {})
    assert becomes(lambda: agent.states() == {"u": "degraded"})
    subprocess.run(["ip", "netns", "add", pod.name], check=True)
    inode = os.stat(pod.path).st_ino
    assert becomes(lambda: running(ztunnel) == {"u": inode})


@pytest.mark.slow
def test_a_burst_with_connections_that_are_cut(
    agent: Agent, ztunnel: ZtunnelPeer, make_pod: MakePod
) -> None:
    """What is served in the end is what the agent lists."""
    chance = random.Random(7)
    pods = {f"u{number}": make_pod() for number in range(6)}
    for _ in range(40):
        uid = chance.choice(list(pods))
        if chance.random() < 0.3 and uid in agent.states():
            agent.delete(uid)
        else:
            agent.add(pods[uid], uid)  # may be pending: a connection was cut
        if chance.random() < 0.2:
            ztunnel.tell("close")
    assert becomes(lambda: set(agent.states().values()) <= {"ready"})
    listed = agent.states()
    assert becomes(lambda: running(ztunnel) == {uid: pods[uid].inode for uid in listed})
    assert {uid for uid, pod in pods.items() if serves(pod)} == set(listed)
