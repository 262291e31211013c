"""Captured pods, and the ztunnels that relay their connections.

The agent is scripted and the rules are put into the pods as text, so that a test costs what it
tests: a pair of pods is there in 40 ms, and one ztunnel serves the pods of all tests of a file.
"""

from __future__ import annotations

import itertools
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from pyztun import NetNs, PeerClosed
from pyztun.cni.capture import nft, routes, rules
from pyztun.testing import Pod, PodPair, pod_pair
from pyztun.testing.zds_agent import AgentConnection, ScriptedAgent
from support import pods
from support.programs import Daemon

FAMILIES = pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
LOOPBACK = ("127.0.0.1", "::1")
BOTH = (True, True)
OUTBOUND_ONLY, INBOUND_ONLY = (True, False), (False, True)
"""Which pods are captured: the client's, the server's."""

_numbers = itertools.count(1)


def capture(netns: NetNs) -> None:
    """Puts rules and routes into a fresh pod."""

    def put() -> None:
        nft.find().run(rules.CREATE + rules.SETTLE)
        routes.put()

    pods.in_netns(netns.fileno(), put)


def wish_for_descriptors(count: int) -> None:
    """Raises our own soft limit, or skips where the hard one is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        pytest.skip(f"needs {count} descriptors, RLIMIT_NOFILE is {hard}")
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


class Node:
    """An agent's socket, and the ztunnels that dial it. The one that dialled last is commanded."""

    def __init__(self, directory: Path, *args: str) -> None:
        """:param args: of each ztunnel."""
        self._path, self._args = str(directory / "zds.sock"), args
        self.agent = ScriptedAgent(self._path)
        self.workloads: dict[str, NetNs] = {}
        self._daemons: list[Daemon] = []
        self.daemon: Daemon
        self.connection: AgentConnection

    def begin(self, *args: str, wrap: Sequence[str] = (), **how: Any) -> Daemon:
        """Starts one and gives it all workloads."""
        self.daemon = Daemon("--zds", self._path, *self._args, *args, wrap=wrap, **how)
        self._daemons.append(self.daemon)
        self.connection = self.agent.accept()
        answers = self.connection.snapshot(self.workloads)
        assert all(answer.ok for answer in answers.values()), answers
        return self.daemon

    def new_agent(self) -> None:
        """Another agent, which the ztunnel has dialled and which knows the same workloads."""
        self.agent = ScriptedAgent(self._path)
        self.connection = self.agent.accept()
        answers = self.connection.snapshot(self.workloads)
        assert all(answer.ok for answer in answers.values()), answers

    def add(self, uid: str, netns: NetNs) -> None:
        """A workload, or another netns for it; its name is the uid, its namespace `default`."""
        answer = self.connection.add(uid, netns, name=uid)
        assert answer.ok, answer
        self.workloads[uid] = netns

    def delete(self, uid: str) -> None:
        """Ends one."""
        assert self.connection.delete(uid).ok
        self.workloads.pop(uid, None)

    def _let_go(self, uid: str) -> None:
        """Deletes it, unless the ztunnel is at its end and asks no more."""
        try:
            self.delete(uid)
        except (BrokenPipeError, ConnectionResetError, PeerClosed):
            del self.workloads[uid]

    @contextmanager
    def pair(self, captured: tuple[bool, bool] = BOTH) -> Iterator[Pair]:
        """Two joined pods, of which the left is the client's; by default both are captured."""
        with pod_pair() as made:
            pair = Pair(self, made)
            try:
                for uid, pod, is_captured in zip(pair.uids, made, captured, strict=True):
                    if is_captured:
                        capture(pod.netns)
                        self.add(uid, pod.netns)
                yield pair
            finally:
                for uid in pair.uids:
                    if uid in self.workloads:
                        self._let_go(uid)

    def close(self) -> None:
        """Ends all: with 0, and without a traceback before."""
        try:
            for daemon in self._daemons:
                if daemon.process.poll() is None:
                    assert daemon.stop() == 0, daemon.stderr.all()
                assert not [line for line in daemon.stderr.all() if "Traceback" in line]
        finally:
            for daemon in self._daemons:
                daemon.kill()
            self.agent.close()

    def __enter__(self) -> Node:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Pair:
    """Two joined pods of a node. Names of workloads: client-N and server-N."""

    def __init__(self, node: Node, pair: PodPair) -> None:
        number = next(_numbers)
        self.node, self.client, self.server = node, pair.left, pair.right
        self.uids = f"client-{number}", f"server-{number}"

    def addresses(self, family: int) -> tuple[str, str]:
        """The client's and the server's; family 0 is IPv4, 1 is IPv6."""
        return self.client.addresses[family], self.server.addresses[family]

    def __iter__(self) -> Iterator[Pod]:
        return iter((self.client, self.server))


def small_buffers(pair: Pair) -> None:
    """Connections from now on hold little in the kernel; many of them take no memory then."""
    for pod in pair:
        for name in ("tcp_rmem", "tcp_wmem"):
            set_sysctl(pod.netns, f"net.ipv4.{name}", "4096 32768 65536")


def set_sysctl(netns: NetNs, name: str, value: str) -> None:
    """Writes /proc/sys in a pod."""

    def write() -> None:
        Path(f"/proc/sys/{name.replace('.', '/')}").write_text(value)

    pods.in_netns(netns.fileno(), write)


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads that live, user and system."""
    total = 0
    for task in os.scandir(f"/proc/{pid}/task"):
        total += int(Path(task.path, "schedstat").read_text().split()[0])
    return total / 1e9


def heap_kib(pid: int) -> int:
    """What the process has of its own in memory, beside files: RssAnon."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise AssertionError("no RssAnon")


def pipes(daemon: Daemon) -> int:
    """Pipes that it has open, beside its standard streams."""
    found = [target for fd, target in daemon.fds().items() if fd > 2]
    return len({target for target in found if target.startswith("pipe:")})


def sockets(daemon: Daemon) -> int:
    """Sockets that it has open."""
    return sum(target.startswith("socket:") for target in daemon.fds().values())
