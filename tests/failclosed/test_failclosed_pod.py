"""Rows of the pod itself: its IPv6, its lo, and what is never captured."""

import socket
import struct
import time

import pytest

from pyztun import NetNs
from support.failclosed_node import Node
from support.failclosed_server import PORT, Server, next_port
from support.failclosed_stage import (
    DIRECT,
    IN4,
    IN6,
    IPV6,
    OUT4,
    OUT6,
    PROBES,
    RELAYED,
    SECONDS,
    SHORT,
    WAYS,
    Stage,
    every,
    fate_of,
    until,
)

FAMILIES = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture
def node(shared: Node) -> Node:
    return shared


# ---- IPv6, lo ------------------------------------------------------------------------------------


def test_without_ipv6_then_with_it(pair: Stage) -> None:
    """The rules cover it from the beginning. Its routes come with it; before, nothing passes."""
    inside = pair.inside
    inside.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
    assert pair.add()["rules"]["without"] == ["ipv6 routes"]
    assert pair.fates(ways=(OUT4, IN4)) == every(RELAYED, (OUT4, IN4))
    began = time.monotonic()
    inside.sysctl("net.ipv6.conf.all.disable_ipv6", 0)
    inside.run(f"ip addr add {IPV6[0]}/64 dev eth0 nodad")
    assert until(lambda: pair.fate(OUT6, SHORT) == RELAYED)
    assert until(lambda: pair.fate(IN6, SHORT) == RELAYED)
    print(f"IPv6 works {time.monotonic() - began:.3f} s after it was switched on")
    assert time.monotonic() - began < 1
    assert "ipv6 routes" in pair.node.said("rules-repaired", pair.uid)
    pair.add()
    assert pair.workload["rules"]["without"] == []
    assert pair.fates() == every(RELAYED)


def test_lo_down_and_up(captured: Stage) -> None:
    """Nothing passes without lo; it is told. With lo its routes are back, and all is well."""
    inside = captured.inside
    inside.run("ip link set lo down")
    captured.wait_for("degraded", "rules: lo is down")
    captured.node.said("rules-broken", captured.uid)
    fates = captured.fates(SHORT)
    print(fates)
    assert not {DIRECT, RELAYED} & set(fates.values())
    began = time.monotonic()
    inside.run("ip link set lo up")
    assert until(lambda: captured.fates(SHORT) == every(RELAYED))
    print(f"works {time.monotonic() - began:.3f} s after lo was up")
    assert time.monotonic() - began < 2
    captured.wait_for("ready")
    captured.node.said("rules-repaired", captured.uid)


def test_lo_down_and_up_at_once(captured: Stage) -> None:
    """It takes table 100 along, and the kernel brings nothing back."""
    began = time.monotonic()
    captured.inside.run("ip link set lo down")
    captured.inside.run("ip link set lo up")
    assert until(lambda: captured.fates(SHORT) == every(RELAYED))
    assert time.monotonic() - began < 2


# ---- not captured --------------------------------------------------------------------------------


@FAMILIES
def test_probe_address(captured: Stage, family: int) -> None:
    """From it and to it nothing is redirected, by either family."""
    probe = PROBES[family == 6]
    captured.outside.run(f"ip addr add {probe}/{32 if family == 4 else 128} dev eth0 nodad")
    captured.inside.run(f"ip -{family} route add {probe} dev eth0")
    source = probe, next_port()
    captured.excused.add(source[1])
    target = captured.inside.address(family), PORT
    with captured.outside.netns.connect(target, SECONDS, source) as sock:
        assert fate_of(sock, source) == DIRECT
    prober = Server(captured.outside.netns, (probe,), 81)
    try:
        source = captured.inside.address(family), next_port()
        with captured.inside.netns.connect((probe, 81), SECONDS, source) as sock:
            assert fate_of(sock, source) == DIRECT
    finally:
        prober.close()
    assert captured.fates() == every(RELAYED)


@FAMILIES
@pytest.mark.parametrize("out", [True, False], ids=["out", "in"])
def test_udp(captured: Stage, family: int, out: bool) -> None:
    """It passes, and each end sees the other."""
    one, two = captured.inside, captured.outside
    if not out:
        one, two = two, one
    with (
        udp(one.netns, one.address(family)) as client,
        udp(two.netns, two.address(family)) as server,
    ):
        client.sendto(b"x", server.getsockname())
        data, peer = server.recvfrom(10)
        assert (data, peer) == (b"x", client.getsockname())
        server.sendto(b"y", peer)
        assert client.recv(10) == b"y"


def udp(netns: NetNs, address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = netns.socket(family, socket.SOCK_DGRAM)
    sock.settimeout(SECONDS)
    sock.bind((address, 0))
    return sock


@FAMILIES
@pytest.mark.parametrize("out", [True, False], ids=["out", "in"])
def test_ping(captured: Stage, family: int, out: bool) -> None:
    """ICMP passes."""
    one, two = captured.inside, captured.outside
    if not out:
        one, two = two, one
    kind, number = (socket.AF_INET, 8) if family == 4 else (socket.AF_INET6, 128)
    protocol = socket.IPPROTO_ICMP if family == 4 else socket.IPPROTO_ICMPV6
    with one.netns.socket(kind, socket.SOCK_RAW, protocol) as sock:
        sock.settimeout(SECONDS)
        echo = struct.pack(">BBHHH4s", number, 0, 0, 77, 1, b"ping")
        if family == 4:
            checksum = 0xFFFF ^ sum(struct.unpack(">6H", echo)) % 0xFFFF
            echo = echo[:2] + struct.pack(">H", checksum) + echo[4:]
        sock.sendto(echo, (two.address(family), 0))
        assert until(lambda: is_reply(sock.recv(200), family))


def is_reply(packet: bytes, family: int) -> bool:
    """An echo reply; a raw socket of IPv4 has the IP header too."""
    message = packet[20:] if family == 4 else packet
    return message[0] == (0 if family == 4 else 129) and message.endswith(b"ping")


def test_pod_that_is_not_captured(pair: Stage) -> None:
    """`--capture none`, and what is left behind a `del`: every connection is direct."""
    assert pair.ask_to_add(capture="none").status == 200
    assert [pair.fate(way, excused=True) for way in WAYS] == [DIRECT] * 4
    pair.add()
    assert pair.fates() == every(RELAYED)
    assert pair.node.agent.delete(pair.uid).status == 200
    assert [pair.fate(way, excused=True) for way in WAYS] == [DIRECT] * 4
