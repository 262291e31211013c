"""Many connections: two thousand that say nothing, twenty thousand short ones on 200 ports."""

import select
import socket
import time
from contextlib import ExitStack

import pytest

from pyztun import NetNs
from support import pods, relay_node
from support.relay_node import BOTH, INBOUND_ONLY, OUTBOUND_ONLY, Node, Pair, set_sysctl
from support.relay_traffic import (
    PORT,
    SECONDS,
    Worker,
    carries,
    listening,
    read_to_end,
    several,
    words,
)

IDLE = 2000
OURS_KIB = 1.0
"""Of ztunnel's memory, for a connection of one relay."""
REST = 0.5
"""Seconds for which nothing happens."""
SHORT, PORTS = 20_000, 200
CALLERS = 4
STALL = 0.5


@pytest.mark.slow
def test_two_thousand_idle_connections(own_node: Node) -> None:
    """4,000 of the relay's. They cost memory and nothing else, and all of them are alive."""
    relay_node.wish_for_descriptors(2 * IDLE + 500)
    daemon = own_node.begin("--access-log", "off")
    with own_node.pair() as pair, ExitStack() as stack:
        there = pair.server.ipv4
        # What the first ones need, for all: the heap, a scratch buffer of each thread.
        with several(pair.client.netns, pair.server.netns, there, 50) as first:
            assert all(carries(*both) for both in first)
        heap = relay_node.heap_kib(daemon.pid)
        ends = stack.enter_context(several(pair.client.netns, pair.server.netns, there, IDLE))
        assert relay_node.sockets(daemon) > 4 * IDLE
        assert (relay_node.heap_kib(daemon.pid) - heap) / (2 * IDLE) < OURS_KIB
        cpu = relay_node.cpu_seconds(daemon.pid)
        time.sleep(REST)
        assert relay_node.cpu_seconds(daemon.pid) - cpu < 0.02
        assert all(carries(*both) for both in ends)
        assert (relay_node.heap_kib(daemon.pid) - heap) / (2 * IDLE) < OURS_KIB
        assert relay_node.pipes(daemon) == 0


# ---- short ones ----------------------------------------------------------------------------------


def serve_shortly(listener: socket.socket, count: int) -> None:
    """Answers each connection and ends it first, as a server of HTTP/1.0 does; in one thread.

    So TIME_WAIT is at its end, and at that of the relay which answers the client, and the client's
    ports are free at once. Of those in a TIME_WAIT of its own each could be used once a second.
    """
    listener.setblocking(False)
    open_ones: dict[int, socket.socket] = {}
    with select.epoll() as epoll:
        epoll.register(listener, select.EPOLLIN)
        while count:
            events = epoll.poll(SECONDS)
            assert events, f"nothing comes any more, {count} are missing"
            for fd, _ in events:
                if fd == listener.fileno():
                    sock, _ = listener.accept()
                    open_ones[sock.fileno()] = sock
                    epoll.register(sock, select.EPOLLIN)
                else:
                    with open_ones.pop(fd) as sock:
                        sock.send(sock.recv(16))
                    count -= 1


def call_shortly(address: str, count: int) -> float:
    """So many connections one after the other, of the pod where this thread stands.

    :returns: the longest time that one took.
    """
    longest = 0.0
    for number in range(count):
        began = time.monotonic()
        with socket.socket() as sock:
            sock.settimeout(SECONDS)
            sock.connect((address, PORT))
            sock.send(b"%d" % number)
            assert read_to_end(sock) == b"%d" % number
        longest = max(longest, time.monotonic() - began)
    return longest


def call_from(netns: NetNs, address: str, count: int) -> float:
    """The same from several threads in a pod."""

    def call() -> float:
        return pods.in_netns(netns.fileno(), lambda: call_shortly(address, count // CALLERS))

    callers = [Worker(call) for _ in range(CALLERS)]
    return max(caller.join() for caller in callers)


def repeated(pair: Pair) -> int:
    """SYNs, and the answers to them, that both pods had to send again."""
    total = 0
    for pod in pair:
        (line,) = words(pod.netns, "nstat -asz TcpExtTCPSynRetrans").splitlines()[1:]
        total += int(line.split()[1])
    return total


@pytest.mark.slow
@pytest.mark.parametrize(
    ("captured", "count"),
    [(BOTH, SHORT), (OUTBOUND_ONLY, 1000), (INBOUND_ONLY, 1000)],
    ids=["both", "outbound", "inbound"],
)
def test_short_connections_that_use_their_ports_again(
    own_node: Node, captured: tuple[bool, bool], count: int
) -> None:
    """No stall, no error, no SYN sent twice: with ports in TIME_WAIT, and the same ports wanted by
    the relay for its own connections.
    """
    own_node.begin("--access-log", "off")
    with own_node.pair(captured) as pair:
        set_sysctl(pair.client.netns, "net.ipv4.ip_local_port_range", f"40000 {39999 + PORTS}")
        set_sysctl(pair.client.netns, "net.ipv4.tcp_tw_reuse", "1")
        there = pair.server.ipv4
        with listening(pair.server.netns, there) as listener:
            server = Worker(lambda: serve_shortly(listener, count))
            longest = call_from(pair.client.netns, there, count)
            server.join()
        assert longest < STALL
        assert repeated(pair) == 0
