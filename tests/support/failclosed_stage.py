"""Two pods on a wire, one of which is captured, and what becomes of connections between them."""

from __future__ import annotations

import functools
import itertools
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from pyztun import NetNs
from support import pods
from support.agent import Json, Reply
from support.failclosed_node import Node
from support.failclosed_server import PORT, Server, next_port
from support.programs import cni

SECONDS = 10.0
"""That anything takes at most."""
SHORT = 0.3
"""Seconds after which a connection that says nothing is taken for one that never will."""

DIRECT, RELAYED, REFUSED, RESET, SILENT = "direct", "relayed", "refused", "reset", "silent"
"""What a connection gets. DIRECT: the server saw the client's very port."""

IPV4 = ("192.0.2.1", "192.0.2.2")
IPV6 = ("2001:db8::1", "2001:db8::2")
LINK_LOCAL = ("fe80::1", "fe80::2")
PROBES = ("169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff")

PLAIN = b"plain text"

_numbers = itertools.count(1)


class Way(NamedTuple):
    """From the captured pod or to it, and by which family: 4 or 6."""

    out: bool
    family: int

    def __str__(self) -> str:
        return f"{'out' if self.out else 'in'}-{self.family}"


WAYS = OUT4, OUT6, IN4, IN6 = tuple(Way(out, family) for out in (True, False) for family in (4, 6))


def every(fate: str, ways: Sequence[Way] = WAYS) -> dict[Way, str]:
    """The same on all ways."""
    return dict.fromkeys(ways, fate)


class Place:
    """One of the two pods, by name; `netns` is held open."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.path = name, f"/run/netns/{name}"
        self.ipv4, self.ipv6, self.link_local = IPV4[number], IPV6[number], LINK_LOCAL[number]
        self.netns = NetNs.open(name)

    def address(self, family: int) -> str:
        """Its address of that family."""
        return self.ipv4 if family == 4 else self.ipv6

    def run(self, line: str, prefix: Sequence[str] = ()) -> str:
        """A command in it, which succeeds; what it printed."""
        return self.program(*prefix, *line.split())

    def program(self, *argv: str) -> str:
        """The same of words."""

        def go() -> subprocess.CompletedProcess[str]:
            return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)

        done = pods.in_netns(self.netns.fileno(), go)
        assert done.returncode == 0, (argv, done.stdout, done.stderr)
        return done.stdout

    def begin(self, line: str) -> subprocess.Popen[bytes]:
        """The same, without waiting for its end."""
        return pods.in_netns(self.netns.fileno(), lambda: subprocess.Popen(line.split()))

    def nft(self, text: str) -> str:
        """A text for nft."""
        return self.program("nft", text)

    def sysctl(self, name: str, value: int) -> None:
        """Writes /proc/sys."""

        def write() -> None:
            with open(f"/proc/sys/{name.replace('.', '/')}", "w") as file:
                file.write(str(value))

        pods.in_netns(self.netns.fileno(), write)


class Stage:
    """A captured pod, `inside`, once add() was called, and `outside`, which is not.

    :ivar excused: ports of clients that may have passed around the proxy: all others may not have.
    """

    def __init__(self, node: Node, inside: Place, outside: Place) -> None:
        self.node, self.inside, self.outside = node, inside, outside
        self.uid = f"u{next(_numbers)}"
        self.excused: set[int] = set()
        self.clients: dict[int, socket.socket] = {}
        self._stack = ExitStack()
        self.servers = {out: self._serve(out) for out in (True, False)}

    def _serve(self, out: bool) -> Server:
        place = self.outside if out else self.inside
        server = Server(place.netns, (place.ipv4, place.ipv6))
        self._stack.callback(server.close)
        return server

    # ---- the workload ------------------------------------------------------------------------

    def ask_to_add(self, **fields: Any) -> Reply:
        """What the agent answers."""
        fields = {"uid": self.uid, "capture": "redirect", **fields}
        return self.node.agent.add(self.inside.path, **fields)

    def add(self) -> Json:
        """Captures `inside`: it is ready."""
        reply = self.ask_to_add()
        assert (reply.status, reply.body.get("state")) == (200, "ready"), reply
        return reply.body

    def add_by_hand(self) -> subprocess.CompletedProcess[str]:
        """`pyztun-cni add`."""
        agent = self.node.agent
        return cni("add", "--control", agent.control, "--uid", self.uid, self.inside.path)

    @property
    def workload(self) -> Json:
        """As the agent lists it."""
        return self.node.agent.workloads()[self.uid]

    def wait_for(self, state: str, reason: str = "", **fields: Any) -> Json:
        """Waits for a state; see Agent.wait_for()."""
        return self.node.agent.wait_for(self.uid, state, reason, **fields)

    # ---- connections -------------------------------------------------------------------------

    def ends(self, way: Way) -> tuple[Place, Place]:
        """Who calls, and who is called."""
        return (self.inside, self.outside) if way.out else (self.outside, self.inside)

    def fate(self, way: Way, seconds: float = SECONDS, excused: bool = False) -> str:
        """What a new connection gets.

        :param excused: it may pass around the proxy.
        """
        sock, fate = self.call(way, seconds, excused)
        if sock is not None:
            sock.close()
        return fate

    def fates(self, seconds: float = SECONDS, ways: Sequence[Way] = WAYS) -> dict[Way, str]:
        """What new connections get, on every way."""
        return {way: self.fate(way, seconds) for way in ways}

    def call(
        self, way: Way, seconds: float = SECONDS, excused: bool = False
    ) -> tuple[socket.socket | None, str]:
        """A new connection; None where there is none. It is closed with the stage."""
        client, server = self.ends(way)
        source = client.address(way.family), next_port()
        if excused:
            self.excused.add(source[1])
        target = server.address(way.family), PORT
        try:
            sock = client.netns.connect(target, seconds, source)
        except ConnectionRefusedError:
            return None, REFUSED
        except ConnectionResetError:  # it may come before connect() returns
            return None, RESET
        except TimeoutError:
            return None, SILENT
        self._stack.callback(sock.close)
        self.clients[source[1]] = sock
        return sock, fate_of(sock, source)

    def open(self, way: Way) -> socket.socket:
        """A connection from before, or of a time in which nothing holds it: it is direct."""
        sock, fate = self.call(way, excused=True)
        assert fate == DIRECT
        assert sock is not None
        return sock

    def relayed(self, way: Way) -> socket.socket:
        """A connection through ztunnel."""
        sock, fate = self.call(way)
        assert fate == RELAYED
        assert sock is not None
        return sock

    def is_cut(self, way: Way, sock: socket.socket) -> bool:
        """Whether a direct connection is reset once its client speaks, and the server hears it not.

        A reset that was there before counts too.
        """
        peer = sock.getsockname()[:2]
        sock.settimeout(SECONDS)
        try:
            sock.sendall(PLAIN)
            got = sock.recv(100)
        except (ConnectionResetError, BrokenPipeError):
            return PLAIN not in self.servers[way.out].heard[peer]
        assert not got, got
        return False

    def is_cut_for_the_server(self, way: Way, sock: socket.socket) -> bool:
        """The same of what the server says."""
        peer, server = sock.getsockname()[:2], self.servers[way.out]
        server.say(peer, PLAIN)
        return until(lambda: peer in server.cut) and not heard(sock)

    def passed(self) -> set[int]:
        """Ports of the clients that passed around the proxy and were not excused."""
        direct = set().union(*(server.direct() for server in self.servers.values()))
        return direct - self.excused

    def close(self) -> None:
        """Ends all connections and servers. Nothing may have passed around the proxy."""
        self._stack.close()
        assert self.passed() == set()


def fate_of(sock: socket.socket, source: tuple[str, int]) -> str:
    """What a connection gets that was made: who does the server see?"""
    try:
        line = b""
        while not line.endswith(b"\n"):
            more = sock.recv(100)
            if not more:
                return "closed"
            line += more
    except ConnectionResetError:
        return RESET
    except TimeoutError:
        return SILENT
    host, port = line.decode().split()
    assert host == source[0], line
    return DIRECT if int(port) == source[1] else RELAYED


def echoes(sock: socket.socket) -> bool:
    """Whether a connection carries bytes, there and back."""
    sock.settimeout(SECONDS)
    sock.sendall(b"x")
    return sock.recv(1) == b"x"


def heard(sock: socket.socket) -> bytes:
    """What has come by now; nothing of one that was reset."""
    sock.setblocking(False)
    try:
        return sock.recv(100)
    except (BlockingIOError, ConnectionResetError):
        return b""


def is_reset(sock: socket.socket) -> bool:
    """Whether a connection was reset by the other end, without a word."""
    sock.settimeout(SECONDS)
    try:
        sock.recv(1)
    except ConnectionResetError:
        return True
    return False


def until(holds: Callable[[], bool], seconds: float = SECONDS) -> bool:
    """Asks again and again until it holds; False if the time is over before."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        os.sched_yield()
    return True


# ---- making them ---------------------------------------------------------------------------------


@contextmanager
def wired(inside: str, outside: str) -> Iterator[None]:
    """Joins two netns by a veth pair, whose link-local addresses are given too."""
    _batch(
        f"link add eth0 netns {inside} type veth peer name eth0 netns {outside}",
    )
    for number, name in enumerate((inside, outside)):
        _batch(
            "link set eth0 addrgenmode none",
            f"addr add {IPV4[number]}/24 dev eth0",
            f"addr add {IPV6[number]}/64 dev eth0 nodad",
            f"addr add {LINK_LOCAL[number]}/64 dev eth0 nodad",
            "link set eth0 up",
            netns=name,
        )
    for name in (inside, outside):
        assert until(functools.partial(_is_up, name))
    yield


def _batch(*lines: str, netns: str = "") -> None:
    words = ["ip", *(["-n", netns] if netns else []), "-batch", "-"]
    subprocess.run(words, input="\n".join(lines), text=True, check=True)


def _is_up(name: str) -> bool:
    words = ["ip", "-n", name, "link", "show", "eth0"]
    return "state UP" in subprocess.run(words, capture_output=True, text=True, check=True).stdout


@contextmanager
def stage(node: Node, make_pod: Callable[[], pods.Pod]) -> Iterator[Stage]:
    """Two pods of which none is captured yet. The agent forgets them in the end, if it can."""
    names = [make_pod().name for _ in range(2)]
    with wired(*names):
        places = [Place(name, number) for number, name in enumerate(names)]
        made = Stage(node, *places)
        try:
            yield made
        finally:
            try:
                made.close()
            finally:
                for place in places:
                    place.netns.close()
                if node.agent.daemon.process.poll() is None:
                    node.agent.delete(made.uid)
