"""What the relay rows measure: one lane a contender, each a pair of pods of its own.

A lane has a client in the left pod and a server in the right one, both `relay_load.c`. Only the
left pod is captured: its connections are redirected to port 15001 there, and whoever listens on it
connects to the server. The direct lane has no rules and no proxy, and so no conntrack either.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench import inpod, programs, relay_haproxy, relay_rules
from bench.statistics import Row
from bench.zds import Agent
from pyztun.testing import Pod, pod_pair

DIRECT, HAPROXY, OURS = "direct", "HAProxy", "pyztun-ztunnel"
HAPROXY_BULK = "HAProxy for bulk"
OURS_LOGGING = "pyztun-ztunnel, access log"
SERVER_PORT = 8000

# Each connection leaves its ports in TIME_WAIT, in the pod of who closes first: the client's. After
# a minute at full speed every port is; these let them be used again, a second later.
_SYSCTLS = {
    "net/ipv4/ip_local_port_range": "1024 65535",
    "net/ipv4/tcp_tw_reuse": "1",
    "net/netfilter/nf_conntrack_tcp_timeout_time_wait": "1",
}


class Lane:
    """One contender. All of it ends with the stack.

    :ivar proxy: pid of what relays, None for the direct lane.
    """

    def __init__(self, stack: ExitStack, shop: programs.Workshop) -> None:
        left, right = stack.enter_context(pod_pair())
        self.pod: Pod = left
        self.proxy: int | None = None
        inpod.set_sysctls(left, _SYSCTLS)
        here, there = left.netns.fileno(), right.netns.fileno()
        argv = [shop.relay_load, "server", str(there), str(SERVER_PORT)]
        self.server = stack.enter_context(programs.receiver(argv, shop, inherited=[there]))
        argv = [shop.relay_load, "client", str(here), right.ipv4, str(SERVER_PORT)]
        client = programs.Process(argv, shop.directory, inherited=[here])
        self.client = stack.enter_context(client)

    def ask(self, command: str) -> list[float]:
        """What the client answers to a line."""
        return self.client.ask(command)

    def capture(self, rules: str) -> None:
        """Applies rules in the client's pod."""
        inpod.run(self.pod, inpod.tool("nft"), "-f", "-", text=rules)

    def cpu(self) -> tuple[float, float]:
        """CPU seconds so far, of the proxy alone and of it, the client and the server together."""
        proxy = cpu_seconds(self.proxy) if self.proxy else 0.0
        return proxy, proxy + cpu_seconds(self.client.pid) + cpu_seconds(self.server.pid)


def direct(stack: ExitStack, shop: programs.Workshop) -> Lane:
    """Nothing between client and server."""
    return Lane(stack, shop)


def haproxy(
    stack: ExitStack, shop: programs.Workshop, options: str = relay_haproxy.ALL_KINDS
) -> Lane:
    """HAProxy in the client's pod. Skipped where it is missing."""
    relay_haproxy.program()
    lane = Lane(stack, shop)
    lane.proxy = relay_haproxy.start(stack, shop, lane.pod, options).pid
    lane.capture(relay_rules.HAPROXY)
    return lane


def ours(stack: ExitStack, shop: programs.Workshop, access_log: str = "off") -> Lane:
    """`pyztun-ztunnel --zds` at home, which was told of the client's pod.

    :param access_log: off, since HAProxy writes none; else a file, ``-`` for standard error.
    """
    lane = Lane(stack, shop)
    agent = Agent(stack, shop, held=[lane.pod.netns.fileno()])
    words = ["--zds", agent.path, "--access-log", access_log, "--drain", "0"]
    lane.proxy = stack.enter_context(programs.ztunnel(words, shop)).pid
    agent.snapshot()
    lane.capture(relay_rules.OURS)
    return lane


_MAKERS: dict[str, Callable[[ExitStack, programs.Workshop], Lane]] = {
    DIRECT: direct,
    HAPROXY: haproxy,
    HAPROXY_BULK: partial(haproxy, options=relay_haproxy.BULK),
    OURS: ours,
    OURS_LOGGING: partial(ours, access_log="-"),
}


def lanes(
    stack: ExitStack,
    shop: programs.Workshop,
    row: Row,
    names: Sequence[str] = (DIRECT, HAPROXY, OURS),
) -> dict[str, Lane]:
    """A lane for each contender that this host has; a note in the row for each that it lacks."""
    inpod.tool("nft")
    found = {}
    for name, make in [(name, _MAKERS[name]) for name in names]:
        try:
            found[name] = make(stack, shop)
        except programs.Skipped as reason:
            row.notes.append(f"without {name}: {reason}")
    return found


def compare(row: Row, budget: float, aim: float | None = None, *, at_least: bool = False) -> None:
    """The ratios of a relay row: ours to HAProxy under a budget, both to direct for information."""
    if OURS in row.samples and HAPROXY in row.samples:
        row.compare(OURS, HAPROXY, budget, aim, at_least=at_least)
    for name in (HAPROXY, OURS):
        if name in row.samples:
            row.compare(name, DIRECT)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all threads, to 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
