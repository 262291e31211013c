"""A stream through one relay or two: bytes, addresses, ends of one half and of the other."""

import shutil
import socket
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from pyztun.cni.capture import nfnetlink
from support import pods
from support.relay_node import BOTH, FAMILIES, INBOUND_ONLY, OUTBOUND_ONLY, Node, Pair
from support.relay_traffic import (
    PORT,
    SECONDS,
    Worker,
    accept,
    answering,
    carries,
    dial,
    echo,
    ends,
    is_reset,
    joined,
    listening,
    program,
    read_to_end,
    say_and_shut,
)

CAPTURED = pytest.mark.parametrize(
    "captured", [OUTBOUND_ONLY, INBOUND_ONLY, BOTH], ids=["outbound", "inbound", "both"]
)
LONG = bytes(range(256)) * 4096 * 3
"""3 MiB: more than the relay moves in one turn, so that it is spliced on the way."""


@FAMILIES
@CAPTURED
def test_bytes_go_both_ways_and_the_server_sees_the_client(
    node: Node, captured: tuple[bool, bool], family: int
) -> None:
    with node.pair(captured) as pair:
        here, there = pair.addresses(family)
        with (
            listening(pair.server.netns, there) as listener,
            dial(pair.client.netns, there) as client,
        ):
            server, seen = accept(listener)
            with server:
                assert seen == here
                assert client.getpeername()[:2] == server.getsockname()[:2] == (there, PORT)
                assert all(carries(client, server) for _ in range(100))
                client.close()
                assert ends(server) == "closed"


@CAPTURED
def test_an_ipv6_socket_to_a_mapped_address(node: Node, captured: tuple[bool, bool]) -> None:
    with node.pair(captured) as pair:
        here, there = pair.addresses(0)
        client = pair.client.netns.socket(socket.AF_INET6)
        with listening(pair.server.netns, there) as listener, client:
            client.settimeout(SECONDS)
            client.connect((f"::ffff:{there}", PORT))
            server, seen = accept(listener)
            with server:
                assert seen == here
                assert carries(client, server)


@pytest.mark.parametrize("captured", [INBOUND_ONLY, BOTH], ids=["inbound", "both"])
def test_a_dual_stack_server_sees_both_families(node: Node, captured: tuple[bool, bool]) -> None:
    with node.pair(captured) as pair:
        (listener,) = pair.server.netns.listen(("::", PORT), v6only=False)
        with listener:
            listener.settimeout(SECONDS)
            for family, prefix in ((0, "::ffff:"), (1, "")):
                here, there = pair.addresses(family)
                with dial(pair.client.netns, there) as client:
                    server, seen = accept(listener)
                    with server:
                        assert seen == prefix + here
                        assert carries(client, server)


def test_the_port_may_be_bound_by_the_client(pair: Pair) -> None:
    """To one that the kernel gives nobody by itself: here every relay's connection has its own."""
    _, there = pair.addresses(0)
    with listening(pair.server.netns, there) as listener:
        for port in range(20000, 20050):
            source = pair.client.ipv4, port
            with pair.client.netns.connect((there, PORT), SECONDS, source) as client:
                server, _ = accept(listener)
                with server:
                    assert carries(client, server)


@FAMILIES
@CAPTURED
def test_one_client_port_to_several_ports_at_once(
    node: Node, captured: tuple[bool, bool], family: int
) -> None:
    """Both are redirected to the same one of ours, so the kernel has to give them other sources."""
    kind = (socket.AF_INET, socket.AF_INET6)[family]
    with node.pair(captured) as pair, ExitStack() as stack:
        here, there = pair.addresses(family)
        for port in range(PORT, PORT + 5):
            listener = stack.enter_context(listening(pair.server.netns, there, port))
            client = stack.enter_context(pair.client.netns.socket(kind))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.settimeout(SECONDS)
            client.bind((here, 20000))
            client.connect((there, port))
            server, seen = accept(listener)
            stack.enter_context(server)
            assert seen == here
            assert carries(client, server)


# ---- half-close ----------------------------------------------------------------------------------


@FAMILIES
@CAPTURED
def test_a_request_by_eof_and_then_a_long_answer(
    node: Node, captured: tuple[bool, bool], family: int
) -> None:
    with node.pair(captured) as pair:
        _, there = pair.addresses(family)
        with joined(pair.client.netns, pair.server.netns, there) as (client, server):
            client.sendall(b"request")
            client.shutdown(socket.SHUT_WR)
            assert read_to_end(server) == b"request"
            sender = Worker(lambda: say_and_shut(server, LONG))
            assert read_to_end(client) == LONG
            sender.join()


@FAMILIES
def test_the_server_ends_first_and_the_client_goes_on(pair: Pair, family: int) -> None:
    _, there = pair.addresses(family)
    with joined(pair.client.netns, pair.server.netns, there) as (client, server):
        server.sendall(b"bye")
        server.shutdown(socket.SHUT_WR)
        assert read_to_end(client) == b"bye"
        sender = Worker(lambda: say_and_shut(client, LONG))
        assert read_to_end(server) == LONG
        sender.join()


def test_a_server_that_closes_before_it_has_read_all_resets(pair: Pair) -> None:
    """As without a relay: close() with bytes unread, or that come later, is an RST."""
    _, there = pair.addresses(0)
    with joined(pair.client.netns, pair.server.netns, there) as (client, server):
        server.sendall(b"enough")
        server.close()
        assert client.recv(6) == b"enough"
        with suppress(ConnectionResetError, BrokenPipeError):
            while True:
                client.sendall(LONG)


def test_both_end_at_once(pair: Pair) -> None:
    _, there = pair.addresses(0)
    with joined(pair.client.netns, pair.server.netns, there) as (client, server):
        for end in (client, server):
            end.sendall(b"last words")
            end.shutdown(socket.SHUT_WR)
        assert read_to_end(client) == read_to_end(server) == b"last words"


def test_one_byte_at_a_time_and_urgent_ones(pair: Pair) -> None:
    """What is sent out of band arrives, in its place or not at all, and stops nothing."""
    _, there = pair.addresses(0)
    with joined(pair.client.netns, pair.server.netns, there) as (client, server):
        for byte in b"one by one":
            client.sendall(bytes([byte]))
        client.send(b"!", socket.MSG_OOB)
        client.sendall(b" and on")
        client.shutdown(socket.SHUT_WR)
        assert read_to_end(server) in (b"one by one and on", b"one by one! and on")


def test_a_listener_that_is_closed_resets_who_was_not_accepted(pair: Pair) -> None:
    _, there = pair.addresses(0)
    with listening(pair.server.netns, there) as listener, dial(pair.client.netns, there) as client:
        server, _ = accept(listener)
        server.close()
        assert ends(client) == "closed"
        with dial(pair.client.netns, there) as waiting:
            waiting.sendall(b"hello?")
            listener.close()
            assert is_reset(waiting)


# ---- programs ------------------------------------------------------------------------------------


def has_openbsd_nc() -> bool:
    path = shutil.which("nc")
    return (
        path is not None
        and b"-N" in subprocess.run([path, "-h"], capture_output=True, check=False).stderr
    )


@pytest.mark.skipif(not has_openbsd_nc(), reason="no nc that knows -N")
@pytest.mark.parametrize("who", ["client", "server"])
def test_nc_ends_one_half(pair: Pair, who: str, directory: Path) -> None:
    """nc -N shuts its half down at the end of its input, and prints what still comes."""
    _, there = pair.addresses(0)
    (directory / "input").write_bytes(LONG)
    with open(directory / "input", "rb") as file:
        if who == "client":
            with (
                listening(pair.server.netns, there) as listener,
                program(pair.client.netns, "nc", "-N", there, str(PORT), stdin=file) as nc,
            ):
                assert _converse(accept(listener)[0], nc) == LONG
        else:
            command = ("nc", "-N", "-l", there, str(PORT))
            with program(pair.server.netns, *command, stdin=file) as nc:
                assert _converse(_dial_when_there(pair, there), nc) == LONG


def _converse(sock: socket.socket, nc: "subprocess.Popen[bytes]") -> bytes:
    """Reads what nc says to its end, then answers; nc prints all of it and ends well."""
    with sock:
        got = read_to_end(sock)
        sock.sendall(b"heard you")
    out, err = nc.communicate(timeout=SECONDS)
    assert (out, err, nc.returncode) == (b"heard you", b"", 0)
    return got


def _dial_when_there(pair: Pair, address: str) -> socket.socket:
    """A connection to a server that starts now: a connect() through the relay tells nothing."""
    while True:
        with suppress(ConnectionResetError), ExitStack() as stack:
            sock = stack.enter_context(dial(pair.client.netns, address))
            if sock.recv(1, socket.MSG_PEEK):
                stack.pop_all()
                return sock


def test_a_server_of_threads(pair: Pair) -> None:
    _, there = pair.addresses(0)
    with listening(pair.server.netns, there) as listener, answering(listener, echo):
        clients = [dial(pair.client.netns, there) for _ in range(50)]
        for number, client in enumerate(clients):
            client.sendall(b"%d" % number * 1000)
            client.shutdown(socket.SHUT_WR)
        for number, client in enumerate(clients):
            with client:
                assert read_to_end(client) == b"%d" % number * 1000


# ---- urgent data -------------------------------------------------------------------------------


def test_what_is_behind_urgent_data_arrives_at_once(pair: Pair) -> None:
    """recv() stops at the mark, with more behind it for which no other event comes."""
    with joined(pair.client.netns, pair.server.netns, pair.server.ipv4) as (client, server):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        client.send(b"abc")
        client.send(b"!", socket.MSG_OOB)
        client.send(b"def")
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        # A socket with a timeout does not block in the kernel: MSG_WAITALL would not wait.
        heard = b""
        while len(heard) < len(b"abcdef"):
            heard += server.recv(6)
        assert heard == b"abcdef"


def test_urgent_data_in_bulk_cuts_nothing(pair: Pair) -> None:
    """splice() says end of file at the mark."""
    with joined(pair.client.netns, pair.server.netns, pair.server.ipv4) as (client, server):

        def send() -> None:
            client.sendall(LONG)
            client.send(b"!", socket.MSG_OOB)
            client.sendall(LONG)
            client.shutdown(socket.SHUT_WR)

        sending = Worker(send)
        assert read_to_end(server) == LONG + LONG
        sending.join()


# ---- in the pod's kernel -----------------------------------------------------------------------


@FAMILIES
def test_a_flush_of_conntrack_spares_what_is_carried(pair: Pair, family: int) -> None:
    """Else whoever speaks first would make an entry that translates nothing: here the server."""
    _, there = pair.addresses(family)
    with joined(pair.client.netns, pair.server.netns, there) as (client, server):
        for pod in (pair.client, pair.server):
            pods.in_netns(pod.netns.fileno(), nfnetlink.flush_conntrack)
        assert carries(server, client)
        assert carries(client, server)


@FAMILIES
def test_what_the_application_accepts_has_no_mark(pair: Pair, family: int) -> None:
    """uid 0 of a pod may have it inherit that of the SYN; with it, it could pass around us."""
    _, there = pair.addresses(family)

    def inherit() -> None:
        Path("/proc/sys/net/ipv4/tcp_fwmark_accept").write_text("1")

    pods.in_netns(pair.server.netns.fileno(), inherit)
    with joined(pair.client.netns, pair.server.netns, there) as (_client, server):
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0
