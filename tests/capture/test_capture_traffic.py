"""Real TCP through the rules: what is captured, what passes, what is cut."""

import os
import socket
from contextlib import ExitStack

import pytest

from capture.kit import (
    SECONDS,
    Side,
    accept,
    carries,
    connect_as,
    is_cut,
    is_refused,
    joined,
    listening,
    original_destination,
    set_sysctl,
    words,
)
from pyztun import NetNs
from pyztun.cni.capture import wire
from pyztun.cni.capture.rules import HBONE, INBOUND, MARK, OUTBOUND, PROBE_IPV4, PROBE_IPV6
from pyztun.testing import Pod, PodPair
from support.nftables import run_nft

FAMILIES = pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
LOOPBACK, ANY = ("127.0.0.1", "::1"), ("0.0.0.0", "::")

ESTABLISHED = """
table inet owner {
	chain input {
		type filter hook input priority 0; policy accept;
		ct state established,related counter accept
	}
	chain output {
		type filter hook output priority 0; policy accept;
		ct state established,related counter accept
	}
}
"""


# ---- nobody on 15001 and 15006 -----------------------------------------------------------------


@FAMILIES
def test_connections_are_refused_at_once(captured: tuple[Pod, Pod], family: int) -> None:
    outside, inside = captured
    there, here = outside.addresses[family], inside.addresses[family]
    with ExitStack() as stack:
        for netns, address in ((outside.netns, there), (inside.netns, here)):
            stack.enter_context(listening(netns, address, 80))
        assert is_refused(outside.netns, here)
        assert is_refused(outside.netns, here, port=9)
        assert is_refused(inside.netns, there)
        assert is_refused(inside.netns, there, port=9)


@FAMILIES
def test_udp_passes(captured: tuple[Pod, Pod], family: int) -> None:
    for source, target in (captured, captured[::-1]):
        address = target.addresses[family]
        (receiver,) = target.netns.listen((address, 53), type=socket.SOCK_DGRAM)
        (sender,) = source.netns.listen((source.addresses[family], 0), type=socket.SOCK_DGRAM)
        with receiver, sender:
            receiver.settimeout(SECONDS)
            sender.sendto(b"once", (address, 53))
            assert receiver.recv(10) == b"once"


@FAMILIES
def test_a_pod_reaches_itself(captured: tuple[Pod, Pod], family: int) -> None:
    inside = captured[1]
    for address in (LOOPBACK[family], inside.addresses[family]):
        with joined(inside.netns, inside.netns, address):
            pass


@FAMILIES
def test_probes_pass_both_ways(captured: tuple[Pod, Pod], family: int) -> None:
    outside, inside = captured
    probe = (PROBE_IPV4, PROBE_IPV6)[family]
    here, bits = inside.addresses[family], (32, 128)[family]
    nodad = ("", "nodad")[family]
    words(outside.netns, f"ip addr add {probe}/{bits} dev {outside.interface} {nodad}")
    words(inside.netns, f"ip -{(4, 6)[family]} route add {probe} dev {inside.interface}")
    with joined(outside.netns, inside.netns, here, source=(probe, 0)):
        pass
    with joined(inside.netns, outside.netns, probe):
        pass


@FAMILIES
def test_hbone_comes_as_it_is(captured: tuple[Pod, Pod], family: int) -> None:
    outside, inside = captured
    here = inside.addresses[family]
    listener = listening(inside.netns, ANY[family], HBONE, mark=MARK)
    with listener, outside.netns.connect((here, HBONE), timeout=SECONDS) as client:
        peer, _, _ = accept(listener)
        with peer:
            assert carries(client, peer)


# ---- ztunnel is there --------------------------------------------------------------------------


@FAMILIES
def test_inbound_comes_to_15006_and_survives_a_second_capture(
    captured: tuple[Pod, Pod], side: Side, family: int
) -> None:
    outside, inside = captured
    here = inside.addresses[family]
    listener = listening(inside.netns, ANY[family], INBOUND, mark=MARK)
    with listener, outside.netns.connect((here, 80), timeout=SECONDS) as client:
        peer, _, _ = accept(listener)
        with peer:
            assert original_destination(peer) == (here, 80)
            assert carries(client, peer)
            assert side.done("capture", inside.netns).written == ()
            assert carries(client, peer)


TAGGED_ARE_DROPPED = """
table inet owner {
	chain output {
		type filter hook output priority 0; policy accept;
		ct mark & 0xfff == 0x111 drop
	}
}
"""


@FAMILIES
def test_outbound_comes_to_15001_and_goes_on(captured: tuple[Pod, Pod], family: int) -> None:
    """And it is not tagged by the answers of ztunnel, which have its mark and come over lo."""
    outside, inside = captured
    run_nft(inside.netns, TAGGED_ARE_DROPPED)
    there = outside.addresses[family]
    listener = listening(inside.netns, LOOPBACK[family], OUTBOUND, mark=MARK)
    with listener, inside.netns.connect((there, 80), timeout=SECONDS) as client:
        peer, _, _ = accept(listener)
        with peer, joined(inside.netns, outside.netns, there, mark=MARK):
            assert original_destination(peer) == (there, 80)
            assert carries(client, peer)


@FAMILIES
def test_the_application_sees_the_client_and_its_port(
    captured: tuple[Pod, Pod], family: int
) -> None:
    """ztunnel's connection has the tuple of the one that it relays; each has its own entry."""
    outside, inside = captured
    here, there = inside.addresses[family], outside.addresses[family]
    listener = listening(inside.netns, ANY[family], INBOUND, mark=MARK)
    application = listening(inside.netns, here, 80)
    with listener, application, outside.netns.connect((here, 80), timeout=SECONDS) as client:
        peer, source, port = accept(listener)
        with peer, connect_as(inside.netns, (source, port), (here, 80)) as onward:
            served, seen, seen_port = accept(application)
            with served:
                assert (seen, seen_port) == (there, port)
                assert carries(onward, served)
                assert carries(client, peer)


SEEN = """
table inet seen {
	set ports {
		type inet_service; flags dynamic; size 100;
	}
	chain prerouting {
		type filter hook prerouting priority -400; policy accept;
		tcp flags & (syn | ack) == (syn | ack) add @ports { tcp sport }
	}
}
"""


@FAMILIES
def test_what_is_tagged_never_leaves_the_pod(
    captured: tuple[Pod, Pod], side: Side, family: int
) -> None:
    """Without `ip rule` the answers to ztunnel would go to the client, in plain text."""
    outside, inside = captured
    here, there = inside.addresses[family], outside.addresses[family]
    run_nft(outside.netns, SEEN)
    with listening(inside.netns, here, 80) as application:
        with side.stopped():
            words(inside.netns, f"ip -{(4, 6)[family]} rule del pref 32764")
            with pytest.raises(TimeoutError):
                connect_as(inside.netns, (there, 4000), (here, 80), seconds=0.2)
            assert "elements" not in run_nft(outside.netns, "list set inet seen ports\n")
        assert isinstance(side.notice(), wire.Repaired)
        with connect_as(inside.netns, (there, 4001), (here, 80)) as onward:
            served, _, _ = accept(application)
            with served:
                assert carries(onward, served)


@FAMILIES
def test_the_application_is_reached_again_after_lo_was_down(
    captured: tuple[Pod, Pod], side: Side, family: int
) -> None:
    outside, inside = captured
    here, there = inside.addresses[family], outside.addresses[family]
    words(inside.netns, "ip link set lo down")
    assert isinstance(side.notice(), wire.Trouble)
    words(inside.netns, "ip link set lo up")
    # Each family may have its own say before that.
    assert any(isinstance(side.notice(), wire.Repaired) for _ in range(3))
    with (
        listening(inside.netns, here, 80) as application,
        connect_as(inside.netns, (there, 4000), (here, 80)) as onward,
    ):
        served, _, _ = accept(application)
        with served:
            assert carries(onward, served)


NOTRACK = """
table inet owner {
	chain prerouting {
		type filter hook prerouting priority -310; policy accept;
		tcp dport 80 notrack
	}
	chain output {
		type filter hook output priority -310; policy accept;
		tcp dport 80 notrack
	}
}
"""


@FAMILIES
def test_what_is_not_tracked_is_refused(captured: tuple[Pod, Pod], family: int) -> None:
    """An owner who takes connections out of conntrack takes them out of nat, and no further."""
    inside = captured[1]
    run_nft(inside.netns, NOTRACK)
    for source, target in (captured, captured[::-1]):
        address = target.addresses[family]
        with listening(target.netns, address, 80):
            assert is_refused(source.netns, address)


# ---- connections from before -------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("loose", ["0", "1"])
@pytest.mark.parametrize("foreign", ["", ESTABLISHED], ids=["alone", "with-established-accept"])
def test_connections_from_before_are_reset(
    pod_pair: PodPair, side: Side, family: int, loose: str, foreign: str
) -> None:
    """Out and in, from either end. What is said on them reaches nobody."""
    outside, inside = pod_pair
    there, here = outside.addresses[family], inside.addresses[family]
    if foreign:
        run_nft(inside.netns, foreign)
    with ExitStack() as stack:
        pairs = [
            stack.enter_context(joined(source, target, address, port))
            for source, target, address in (
                (inside.netns, outside.netns, there),
                (outside.netns, inside.netns, here),
            )
            for port in (80, 81)
        ]
        set_loose(inside.netns, loose)
        side.done("capture", inside.netns)
        for number, (client, server) in enumerate(pairs):
            sender, receiver = (client, server) if number % 2 else (server, client)
            assert is_cut(sender)
            assert heard(receiver) == b""
    side.done("forget", inside.netns)


def set_loose(netns: NetNs, loose: str) -> None:
    """The sysctl exists in a netns without conntrack too."""
    set_sysctl(netns, "net.netfilter.nf_conntrack_tcp_loose", loose)


def heard(receiver: socket.socket) -> bytes:
    receiver.setblocking(False)
    try:
        return receiver.recv(100)
    except (BlockingIOError, ConnectionResetError):
        return b""


def test_a_connection_to_the_pod_itself_is_not_cut(pod_pair: PodPair, side: Side) -> None:
    inside = pod_pair.right
    with (
        joined(inside.netns, inside.netns, inside.ipv4) as (client, server),
        joined(inside.netns, inside.netns, "::1", 81) as (client6, server6),
    ):
        side.done("capture", inside.netns)
        assert carries(client, server)
        assert carries(client6, server6)
    side.done("forget", inside.netns)


DNAT = """
table inet owner {{
	chain output {{
		type nat hook output priority {priority}; policy accept;
		meta l4proto tcp ip daddr 203.0.113.1 dnat ip to {address}
	}}
}}
"""


def test_a_dnat_of_the_owner_is_no_way_around(pod_pair: PodPair, side: Side) -> None:
    """A connection from before it, one after it, and ztunnel's, on which it acts."""
    outside, inside = pod_pair
    far = "203.0.113.1"
    dnat = DNAT.format(address=outside.ipv4, priority=-100)
    words(inside.netns, f"ip route add {far} via {outside.ipv4}")
    run_nft(inside.netns, dnat)
    listener = listening(outside.netns, outside.ipv4, 80)
    with listener, inside.netns.connect((far, 80), timeout=SECONDS) as old:
        server, _, _ = accept(listener)
        with server:
            side.done("capture", inside.netns)
            assert is_cut(old)
            assert heard(server) == b""
        assert is_refused(inside.netns, far)
        for priority in (-150, -100):
            dnat = DNAT.format(address=outside.ipv4, priority=priority)
            run_nft(inside.netns, f"delete table inet owner\n{dnat}")
            assert is_refused(inside.netns, far)
        ztunnel = listening(inside.netns, "127.0.0.1", OUTBOUND, mark=MARK)
        with ztunnel, inside.netns.connect((far, 80), timeout=SECONDS):
            peer, _, _ = accept(ztunnel)
            with peer:
                assert original_destination(peer) == (far, 80)
        with inside.netns.connect((far, 80), timeout=SECONDS, mark=MARK) as onward:
            server, _, _ = accept(listener)
            with server:
                assert carries(onward, server)
    side.done("forget", inside.netns)


@pytest.mark.parametrize("loose", ["0", "1"])
def test_what_the_pod_forwards_is_cut(pod_pair: PodPair, side: Side, loose: str) -> None:
    """A pod with pods of its own behind it: theirs are no way around either."""
    outside, inside = pod_pair
    with NetNs.create() as behind:
        forward(inside, behind, outside)
        with joined(behind, outside.netns, outside.ipv4) as (client, server):
            set_loose(inside.netns, loose)
            side.done("capture", inside.netns)
            assert is_cut(client)
            assert heard(server) == b""
            assert is_refused(behind, outside.ipv4)
            assert is_refused(behind, outside.ipv4, port=HBONE)
    side.done("forget", inside.netns)


def forward(inside: Pod, behind: NetNs, outside: Pod) -> None:
    """Puts a netns behind the pod, which forwards for it."""
    here = f"/proc/{os.getpid()}/fd/{behind.fileno()}"
    words(inside.netns, f"ip link add far type veth peer name eth0 netns {here}")
    words(inside.netns, "ip addr add 198.51.100.1/24 dev far")
    words(inside.netns, "ip link set far up")
    words(behind, "ip addr add 198.51.100.2/24 dev eth0")
    words(behind, "ip link set eth0 up")
    words(behind, "ip route add default via 198.51.100.1")
    words(outside.netns, f"ip route add 198.51.100.0/24 via {inside.ipv4}")
    set_sysctl(inside.netns, "net.ipv4.ip_forward", "1")


@FAMILIES
def test_what_was_opened_while_the_rules_were_gone_is_cut(
    captured: tuple[Pod, Pod], side: Side, family: int
) -> None:
    outside, inside = captured
    with ExitStack() as stack:
        with side.stopped():
            run_nft(inside.netns, "flush ruleset\n")
            opened = joined(inside.netns, outside.netns, outside.addresses[family])
            client, server = stack.enter_context(opened)
        assert isinstance(side.notice(), wire.Repaired)
        assert is_cut(client)
        assert heard(server) == b""
