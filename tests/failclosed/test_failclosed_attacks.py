"""The attacker's row: a process of the pod that has no capability.

It may be root of the pod (uid 0), as in most containers. It has no CAP_NET_ADMIN and no
CAP_NET_RAW: with either SO_MARK is allowed, and the mark is all that tells ztunnel.
"""

import socket
from contextlib import suppress

import pytest

from support import pods
from support.failclosed_attacks import attempt, impostor
from support.failclosed_node import Node
from support.failclosed_server import PORT, Server, next_port
from support.failclosed_stage import (
    IN4,
    IN6,
    REFUSED,
    RELAYED,
    SECONDS,
    SHORT,
    Stage,
    every,
    is_reset,
)

FAMILIES = pytest.mark.parametrize("family", [4, 6])
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
ENDS = ("ConnectionResetError", "ConnectionRefusedError")

SEEN = """
table inet seen {
	chain prerouting {
		type filter hook prerouting priority -400; policy accept;
		meta l4proto tcp counter
	}
}
"""


@pytest.fixture
def node(shared: Node) -> Node:
    return shared


@FAMILIES
def test_connections_are_relayed(captured: Stage, family: int) -> None:
    """Whatever the source port, the protocol or the order of packets."""
    here, there = captured.inside.address(family), captured.outside.address(family)
    ports = [("port", there, PORT, source) for source in (15001, 15006, 15008)]
    lines = attempt(captured, *ports, ("mptcp", there, PORT, next_port()))
    for line, (_, _, _, source) in zip(lines, ports, strict=False):
        assert line.split()[1] == here, lines
        assert int(line.split()[2]) != source
    assert lines[3].split()[1] in (here, "OSError")  # a kernel without MPTCP
    captured.outside.sysctl("net.ipv4.tcp_fastopen", 3)
    captured.inside.sysctl("net.ipv4.tcp_fastopen", 1)
    (line,) = attempt(captured, ("fast-open", there, PORT, next_port()))
    assert line.split()[1] == here


@FAMILIES
def test_privileges_are_refused(captured: Stage, family: int) -> None:
    there = captured.outside.address(family)
    tricks = [(name, there, PORT, next_port()) for name in ("mark", "transparent")]
    lines = attempt(captured, *tricks)
    assert lines == ["mark PermissionError", "transparent PermissionError"]


@FAMILIES
def test_ports_of_ztunnel(captured: Stage, family: int) -> None:
    """Of the pod itself, by each of its addresses, and of another host: loops are refused."""
    own = (captured.inside.address(family), LOOPBACK[family])
    there = captured.outside.address(family)
    ports = (15001, 15006, 15008)
    lines = attempt(
        captured,
        *[("own", address, port, next_port()) for address in own for port in ports],
        *[("other's", there, port, next_port()) for port in ports],
    )
    assert all(line.split()[1] in ENDS for line in lines), lines


@FAMILIES
def test_source_of_loopback_and_of_the_probe(captured: Stage, family: int) -> None:
    """An address that is not the pod's, or not to be seen outside."""
    there = captured.outside.address(family)
    captured.outside.nft(SEEN)
    names = ("from-loopback", "from-the-probe")
    for line in attempt(captured, *[(name, there, PORT, next_port()) for name in names]):
        assert line.split()[1] in (
            *ENDS,
            "TimeoutError",
            "OSError",
            captured.inside.address(family),
        )


@FAMILIES
def test_to_the_pod_itself_is_local(captured: Stage, family: int) -> None:
    """Not captured, and it never leaves the pod."""
    source = next_port()
    captured.excused.add(source)
    here = captured.inside.address(family)
    assert attempt(captured, ("self", here, PORT, source)) == [f"self {here} {source}"]


@FAMILIES
def test_bound_to_a_device(captured: Stage, family: int) -> None:
    """Translated to lo, and routed out of the device all the same: nothing leaves the pod.

    Outside there is one that would take it.
    """
    outside = captured.outside
    captured.inside.run(f"ip route add default via {outside.ipv4}")
    captured.inside.run(f"ip -6 route add default via {outside.ipv6}")
    for name in ("all", "eth0"):
        outside.sysctl(f"net.ipv4.conf.{name}.route_localnet", 1)
    outside.nft(SEEN)
    accomplice = Server(outside.netns, ("127.0.0.1", "::1"), 15001)
    try:
        (line,) = attempt(captured, ("device", outside.address(family), PORT, next_port()))
        assert line == "device TimeoutError"
        assert "packets 0 " in outside.run("nft list ruleset")
        assert accomplice.heard == {}
    finally:
        accomplice.close()


def test_ipv6_link_local(captured: Stage) -> None:
    """Its scope binds a socket to a device: see above."""
    outside = captured.outside
    outside.nft(SEEN)
    (listener,) = outside.netns.listen(("::", 81))
    listener.settimeout(SHORT)
    with listener:
        (line,) = attempt(captured, ("link-local", outside.link_local, 81, 0))
        assert line.endswith("Error"), line
        assert "packets 0 " in outside.run("nft list ruleset")


def test_ipv6_link_local_from_outside(captured: Stage) -> None:
    """Redirected, and then nothing: the answer of the application would leave by eth0."""
    server = Server(captured.inside.netns, ("::",), 82)
    try:
        source = next_port()
        with captured.outside.netns.socket(socket.AF_INET6) as sock:
            sock.settimeout(SHORT)
            sock.bind(("::", source))
            scope = pods.in_netns(captured.outside.netns.fileno(), scope_of_eth0)
            with suppress(OSError):
                sock.connect((captured.inside.link_local, 82, 0, scope))
                sock.recv(100)
        assert server.direct() == set()
    finally:
        server.close()


def scope_of_eth0() -> int:
    return socket.if_nametoindex("eth0")


# ---- listeners -----------------------------------------------------------------------------------


def test_shares_the_port_of_ztunnel(captured: Stage) -> None:
    """Same uid and SO_REUSEPORT: its part of what comes from outside is reset."""
    with impostor(captured, 15006, "share") as taken:
        fates = {captured.fate(way) for way in (IN4, IN6) for _ in range(16)}
        assert fates == {RELAYED, REFUSED}
        assert taken.end() == []
    assert captured.fates() == every(RELAYED)


def test_shares_15008(captured: Stage) -> None:
    """Where nothing is redirected."""
    target = captured.inside.ipv4, 15008
    with impostor(captured, 15008, "share") as taken:
        for _ in range(16):
            source = (captured.outside.ipv4, next_port())
            with (
                pytest.raises((ConnectionResetError, ConnectionRefusedError)),
                captured.outside.netns.connect(target, SECONDS, source) as sock,
            ):
                sock.recv(1)
        assert taken.end() == []


def test_any_other_port(captured: Stage) -> None:
    """What it listens on is reached through ztunnel, or not at all."""
    with impostor(captured, 8080, "share") as taken:
        source = (captured.outside.ipv4, next_port())
        target = captured.inside.ipv4, 8080
        with (
            suppress(ConnectionResetError),
            captured.outside.netns.connect(target, SECONDS, source) as sock,
        ):
            assert is_reset(sock)
        (line,) = taken.end()
        host, port = line.split()
        assert host == captured.outside.ipv4
        assert int(port) != source[1]
