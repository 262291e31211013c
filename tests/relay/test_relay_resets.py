"""What is cut looks cut: an RST from either end, at any moment, and nobody at the destination.

A stream that ends early must never look like one that is complete.
"""

import socket
from contextlib import suppress

import pytest

from support.nftables import run_nft
from support.relay_access import entries, entry
from support.relay_node import (
    FAMILIES,
    INBOUND_ONLY,
    OUTBOUND_ONLY,
    Node,
    Pair,
    small_buffers,
)
from support.relay_traffic import (
    PORT,
    Worker,
    accept,
    dial,
    ends,
    fate,
    fill,
    is_reset,
    joined,
    listening,
    port_of,
    reset,
    until,
    words,
)

ENDS = pytest.mark.parametrize("who", [0, 1], ids=["client", "server"])
BLOCK = bytes(range(256)) * 4096
ENOUGH = 256 * 1024


@pytest.fixture(scope="module")
def ztunnel_args() -> tuple[str, ...]:
    return ("--connect-timeout", "0.3")


# ---- RST -----------------------------------------------------------------------------------------


@FAMILIES
@ENDS
def test_an_rst_while_nothing_is_said(pair: Pair, who: int, family: int) -> None:
    _, there = pair.addresses(family)
    with joined(pair.client.netns, pair.server.netns, there) as both:
        port = port_of(both[0])
        reset(both[who])
        assert ends(both[1 - who]) == "reset"
    side = ("source", "destination")[who]
    found = entry(pair.node.daemon, "outbound", port, "error")
    assert found["error"] == f"connection reset by the {side}"


def test_an_rst_right_after_the_connection(pair: Pair) -> None:
    """The server sees a connection that ends, or none at all."""
    _, there = pair.addresses(0)
    with listening(pair.server.netns, there) as listener:
        for _ in range(20):
            reset(dial(pair.client.netns, there))
        with dial(pair.client.netns, there) as last:
            last.sendall(b"last")
            seen = set()
            while True:
                server, _ = accept(listener)
                with server:
                    try:
                        got = server.recv(4)
                    except ConnectionResetError:
                        got = b"reset"
                    if got == b"last":
                        break
                    seen.add(got)
    assert seen <= {b"reset"}


@FAMILIES
@ENDS
def test_an_rst_behind_what_was_said(pair: Pair, who: int, family: int) -> None:
    _, there = pair.addresses(family)
    with joined(pair.client.netns, pair.server.netns, there) as both:
        both[who].sendall(b"to be continued")
        assert both[1 - who].recv(100) == b"to be continued"
        reset(both[who])
        assert is_reset(both[1 - who])


@ENDS
def test_an_rst_in_the_middle_of_bulk(pair: Pair, who: int) -> None:
    """Both ends send as fast as they can, and read."""
    _, there = pair.addresses(0)
    with joined(pair.client.netns, pair.server.netns, there) as both:
        one, other = both[who], both[1 - who]
        moved = [0]

        def send() -> None:
            with suppress(ConnectionResetError, BrokenPipeError):
                while True:
                    other.sendall(BLOCK)

        def receive() -> bool:
            try:
                while got := other.recv(1 << 20):
                    moved[0] += len(got)
            except ConnectionResetError:
                return True
            return False

        sender, receiver = Worker(send), Worker(receive)
        while moved[0] < 8 << 20:
            one.sendall(BLOCK)
            one.recv(1 << 20)
        reset(one)
        # The first of the two calls that fails is told why, the other one sees the end.
        sender.join()
        receiver.join()


@ENDS
def test_an_rst_of_a_reader_that_lets_the_other_wait(pair: Pair, who: int) -> None:
    _, there = pair.addresses(0)
    small_buffers(pair)
    with joined(pair.client.netns, pair.server.netns, there) as both:
        one, other = both[who], both[1 - who]
        assert fill(other, BLOCK) > ENOUGH
        reset(one)
        assert is_reset(other)
        with pytest.raises(BrokenPipeError):
            other.send(b"more")


@ENDS
def test_an_rst_of_a_writer_whom_nobody_reads(pair: Pair, who: int) -> None:
    """What was underway may arrive or not; then comes the RST, and never a FIN."""
    _, there = pair.addresses(0)
    small_buffers(pair)
    with joined(pair.client.netns, pair.server.netns, there) as both:
        assert fill(both[who], BLOCK) > ENOUGH
        reset(both[who])
        assert is_reset(both[1 - who])


@ENDS
def test_an_rst_behind_a_fin_of_the_other(pair: Pair, who: int) -> None:
    _, there = pair.addresses(0)
    with joined(pair.client.netns, pair.server.netns, there) as both:
        both[1 - who].shutdown(socket.SHUT_WR)
        assert ends(both[who]) == "closed"
        reset(both[who])
        assert is_reset(both[1 - who])


# ---- nobody there --------------------------------------------------------------------------------

REFUSED = "connection failed: Connection refused (os error 111)"
WALL = """
table inet wall {{
	chain input {{
		type filter hook input priority 0; policy accept;
		tcp dport {port} {verdict}
	}}
}}
"""


def failure(node: Node, port: int, direction: str = "outbound") -> str:
    """Why the connection from that port could not be made, as the log says it."""
    found = entry(node.daemon, direction, port, "error")
    assert (found["bytes_sent"], found["bytes_recv"]) == ("0", "0")
    return found["error"]


@FAMILIES
@pytest.mark.parametrize("say", [b"", b"to nobody"], ids=["silent", "talking"])
def test_a_closed_port_outside(node: Node, family: int, say: bytes) -> None:
    with node.pair(OUTBOUND_ONLY) as pair:
        how, port = fate(pair.client.netns, pair.addresses(family)[1], say=say)
        assert how == "reset"
        assert failure(node, port) == REFUSED


@FAMILIES
def test_a_closed_port_of_a_captured_pod(node: Node, family: int) -> None:
    with node.pair(INBOUND_ONLY) as pair:
        how, port = fate(pair.client.netns, pair.addresses(family)[1])
        assert how == "reset"
        assert failure(node, port, "inbound") == REFUSED


def test_a_closed_port_behind_two_relays(pair: Pair) -> None:
    """The first one's connection is made, by the second one, and then reset."""
    _, there = pair.addresses(0)
    how, port = fate(pair.client.netns, there, say=b"to nobody")
    assert how == "reset"
    assert entry(pair.node.daemon, "outbound", port, "error")["error"] in (
        "connection reset by the destination",
        "connection failed: Connection reset by peer (os error 104)",  # before we were told
    )
    assert entries(pair.node.daemon, "inbound", there, "error")[-1]["error"] == REFUSED


def test_no_way_there(node: Node) -> None:
    """IPv4 alone: here the answer waits for ARP. One that comes while connect() still holds the
    socket counts with the next SYN only, a second later (tcp_v4_err, sk_err_soft).
    """
    with node.pair(OUTBOUND_ONLY) as pair:
        wall = WALL.format(port=PORT, verdict="reject with icmpx type host-unreachable")
        run_nft(pair.server.netns, wall)
        how, port = fate(pair.client.netns, pair.server.ipv4, say=b"anybody?")
        assert how == "reset"
        assert failure(node, port) == "connection failed: No route to host (os error 113)"


@FAMILIES
def test_no_answer(node: Node, family: int) -> None:
    with node.pair(OUTBOUND_ONLY) as pair:
        run_nft(pair.server.netns, WALL.format(port=PORT, verdict="drop"))
        how, port = fate(pair.client.netns, pair.addresses(family)[1], say=b"anybody?")
        assert how == "reset"
        assert failure(node, port) == "connection timed out"


def test_the_client_leaves_while_nobody_answers(node: Node) -> None:
    """The relay's own connection ends at once, not after its time."""
    with node.pair(OUTBOUND_ONLY) as pair:
        words(pair.client.netns, "ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev eth0")
        with dial(pair.client.netns, "192.0.2.9") as client:
            assert until(lambda: "SYN-SENT" in words(pair.client.netns, "ss -Htan"))
            port = port_of(client)
            reset(client)
        assert until(lambda: "SYN-SENT" not in words(pair.client.netns, "ss -Htan"), 0.2)
        assert failure(node, port) == "connection reset by the source"
