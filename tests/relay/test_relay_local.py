"""A pod that calls itself, pods that look the same, and what would be a loop."""

import socket
from contextlib import ExitStack

import pytest

from support.nftables import run_nft
from support.relay_access import all_of
from support.relay_node import FAMILIES, LOOPBACK, Node, Pair, set_sysctl
from support.relay_traffic import (
    PORT,
    SECONDS,
    accept,
    carries,
    dial,
    fate,
    joined,
    listening,
    read_to_end,
    until,
    words,
)

CAPTURE_PORTS = pytest.mark.parametrize("port", [15001, 15006, 15008])
NO_HBONE = "HBONE is not supported"
LOOP = "the destination is a port of the proxy itself"
DIRECT = "not redirected, but made to a port of the proxy"
VIP = "203.0.113.1"

SERVICE = f"""
table ip service {{
	chain prerouting {{
		type nat hook prerouting priority -100; policy accept;
		ip daddr {VIP} dnat to 192.0.2.1
	}}
	chain postrouting {{
		type nat hook postrouting priority 100; policy accept;
		masquerade
	}}
}}
"""


def refusals(pair: Pair, begun: int, count: int) -> list[str]:
    """Why so many connections were refused since; waits for them. More would be a loop."""

    def found() -> list[dict[str, str]]:
        lines = pair.node.daemon.stderr.all()[begun:]
        return [each for each in all_of(lines) if each["level"] == "warn"]

    assert until(lambda: len(found()) >= count), pair.node.daemon.stderr.all()[begun:]
    assert len(found()) == count
    return [each["error"] for each in found()]


# ---- itself --------------------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("loopback", [False, True], ids=["own-address", "loopback"])
def test_a_pod_that_calls_itself_is_left_alone(pair: Pair, family: int, loopback: bool) -> None:
    address = LOOPBACK[family] if loopback else pair.server.addresses[family]
    begun = len(pair.node.daemon.stderr.all())
    with (
        listening(pair.server.netns, address) as listener,
        dial(pair.server.netns, address) as client,
    ):
        server, seen = accept(listener)
        with server:
            assert seen == address
            assert carries(client, server)
    assert fate(pair.server.netns, address)[0] == "refused"
    assert not all_of(pair.node.daemon.stderr.all()[begun:])


def test_a_pod_that_calls_itself_by_way_of_a_service(pair: Pair) -> None:
    """The other pod, not captured any more, sends a service's address back to the client's pod."""
    pair.node.delete(pair.uids[1])
    words(pair.server.netns, "nft delete table inet pyztun")
    run_nft(pair.server.netns, SERVICE)
    set_sysctl(pair.server.netns, "net.ipv4.ip_forward", "1")
    set_sysctl(pair.server.netns, "net.ipv4.conf.eth0.send_redirects", "0")
    words(pair.client.netns, f"ip route add {VIP} via {pair.server.ipv4}")
    with (
        listening(pair.client.netns, pair.client.ipv4) as listener,
        dial(pair.client.netns, VIP) as client,
    ):
        server, seen = accept(listener)
        with server:
            assert seen == pair.server.ipv4
            assert carries(client, server)


# ---- the same addresses --------------------------------------------------------------------------


@FAMILIES
def test_pods_with_the_same_addresses_and_ports_do_not_mix(node: Node, family: int) -> None:
    """Four pods on one node, two and two of them on one wire: every number is there twice."""
    with ExitStack() as stack:
        pairs = [stack.enter_context(node.pair()) for _ in range(2)]
        here, there = pairs[0].addresses(family)
        assert (here, there) == pairs[1].addresses(family)
        ends = []
        listeners = [stack.enter_context(listening(pair.server.netns, there)) for pair in pairs]
        for port in range(20000, 20020):
            clients = [
                stack.enter_context(pair.client.netns.connect((there, PORT), SECONDS, (here, port)))
                for pair in pairs
            ]
            for number, client in enumerate(clients):
                server, seen = accept(listeners[number])
                stack.enter_context(server)
                assert seen == here
                ends.append((b"wire %d port %d" % (number, port), client, server))
        for text, client, _ in ends:
            client.sendall(text)
        for text, _, server in ends:
            assert server.recv(100) == text
            server.sendall(text * 2)
        for text, client, server in ends:
            server.shutdown(socket.SHUT_WR)
            assert read_to_end(client) == text * 2


# ---- loops ---------------------------------------------------------------------------------------


@FAMILIES
@CAPTURE_PORTS
@pytest.mark.parametrize("loopback", [False, True], ids=["own-address", "loopback"])
def test_a_capture_port_of_the_pod_itself(
    pair: Pair, port: int, loopback: bool, family: int
) -> None:
    address = LOOPBACK[family] if loopback else pair.client.addresses[family]
    begun = len(pair.node.daemon.stderr.all())
    for say in (b"", b"hello"):
        assert fate(pair.client.netns, address, port, say)[0] == "reset"
    why = NO_HBONE if port == 15008 else DIRECT
    assert set(refusals(pair, begun, 2)) <= {why, LOOP}


@FAMILIES
@pytest.mark.parametrize(("port", "why"), [(15001, LOOP), (15008, NO_HBONE)])
def test_a_capture_port_of_another_pod(pair: Pair, port: int, why: str, family: int) -> None:
    """Outbound it is any port of another machine; there it is refused."""
    begun = len(pair.node.daemon.stderr.all())
    assert fate(pair.client.netns, pair.server.addresses[family], port)[0] == "reset"
    assert refusals(pair, begun, 1) == [why]


@FAMILIES
def test_the_inbound_port_from_outside(node: Node, family: int) -> None:
    """A redirect from 15006 to 15006 changes nothing and is no dnat: the pod's rules refuse it."""
    with node.pair((False, True)) as pair:
        begun = len(node.daemon.stderr.all())
        assert fate(pair.client.netns, pair.server.addresses[family], 15006)[0] == "refused"
        assert not all_of(node.daemon.stderr.all()[begun:])


def test_capture_ports_of_a_machine_without_capture(node: Node) -> None:
    """They are ordinary ports there."""
    with node.pair((True, False)) as pair:
        for port in (15001, 15006, 15008):
            with joined(pair.client.netns, pair.server.netns, pair.server.ipv4, port):
                pass


def test_all_other_ports_beside_them_are_served(pair: Pair) -> None:
    for port in (1, 15000, 15002, 15007, 15009, 15053, 15080, 65535):
        with joined(pair.client.netns, pair.server.netns, pair.server.ipv4, port):
            pass


@pytest.mark.parametrize("what", ["ip daddr 203.0.113.1 dnat to 127.0.0.1", "redirect"])
def test_an_owner_whose_rules_send_all_to_15001(pair: Pair, what: str) -> None:
    """As those of an Istio sidecar do: they act on what ztunnel sends. Once round is enough."""
    own = f"""
table ip owner {{
	chain output {{
		type nat hook output priority -100; policy accept;
		ip protocol tcp {what} to :15001
	}}
}}
""".replace("127.0.0.1 to ", "127.0.0.1")
    run_nft(pair.client.netns, own)
    words(pair.client.netns, f"ip route add {VIP} via {pair.server.ipv4}")
    begun = len(pair.node.daemon.stderr.all())
    assert fate(pair.client.netns, VIP)[0] == "reset"
    assert until(lambda: len(all_of(pair.node.daemon.stderr.all()[begun:])) == 1)
