"""What ztunnel lacks: descriptors, capabilities, a listener. It says so, waits, never spins."""

import resource
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from support.programs import Daemon
from support.relay_access import all_of
from support.relay_node import Node, Pair, cpu_seconds
from support.relay_states import every_state
from support.relay_traffic import (
    PORT,
    SECONDS,
    accept,
    answering,
    carries,
    dial,
    echo,
    ends,
    fate,
    joined,
    listening,
    until,
    words,
)

SMALL_TABLE = 700
"""RLIMIT_NOFILE, most of which is kept for what a peer may send; some dozens of connections fit."""
TURNS = 4
REST = 0.5
SPUN = 0.1
"""Seconds, and what they may cost in CPU; a thread that spins takes all."""


def prlimit(number: int) -> list[str]:
    return ["prlimit", f"--nofile={number}:{number}"]


@contextmanager
def crowd(pair: Pair, address: str, count: int) -> Iterator[list[socket.socket]]:
    """So many clients that have said something, whether or not anybody relays it."""
    with ExitStack() as stack:
        clients = []
        for _ in range(count):
            clients.append(stack.enter_context(dial(pair.client.netns, address)))
            clients[-1].sendall(b"x")
        yield clients


def answered(clients: Sequence[socket.socket]) -> list[socket.socket]:
    """Those to whom somebody has said something."""
    found = []
    for client in clients:
        client.setblocking(False)
        try:
            if client.recv(1, socket.MSG_PEEK):
                found.append(client)
        except BlockingIOError:
            pass
        client.settimeout(SECONDS)
    return found


# ---- descriptors ---------------------------------------------------------------------------------


def test_more_connections_than_fit_wait_for_room(own_node: Node) -> None:
    """They wait in the kernel, nothing spins, and each comes to its turn; so does another pod."""
    daemon = own_node.begin("--access-log", "off", wrap=prlimit(SMALL_TABLE))
    with own_node.pair() as pair:
        there = pair.server.ipv4
        with (
            listening(pair.server.netns, there) as listener,
            answering(listener, echo),
            crowd(pair, there, 100) as clients,
        ):
            assert until(lambda: len(answered(clients)) > 3)
            cpu = cpu_seconds(daemon.pid)
            time.sleep(REST)
            assert cpu_seconds(daemon.pid) - cpu < SPUN
            served = answered(clients)
            assert len(served) < len(clients), "there was room for all: it proves nothing"
            # The other pod is the server's: what it calls is not refused, and comes to its turn.
            with (
                listening(pair.client.netns, pair.client.ipv4, 81) as another,
                answering(another, echo),
                dial(pair.server.netns, pair.client.ipv4, 81) as other,
            ):
                other.sendall(b"y")
                left = list(clients)
                while left:
                    assert until(lambda: bool(answered(left))), f"{len(left)} were never served"
                    for client in answered(left):
                        left.remove(client)
                        client.close()
                assert other.recv(1) == b"y"
        with joined(pair.client.netns, pair.server.netns, there, 82):
            pass


def test_one_pod_that_takes_all_it_can(own_node: Node) -> None:
    """Dozens of its clients wait; another pod finds places at once, also for many."""
    daemon = own_node.begin("--access-log", "off", wrap=prlimit(SMALL_TABLE))
    with own_node.pair((True, False)) as greedy, own_node.pair((True, False)) as other:
        address = greedy.server.ipv4
        with (
            listening(greedy.server.netns, address) as listener,
            answering(listener, echo),
            crowd(greedy, address, 60) as clients,
        ):
            line = daemon.stderr.wait_for(" accept-held-back ")
            assert f" netns={greedy.client.netns.cookie} " in line
            assert until(lambda: len(answered(clients)) > 3)
            assert len(answered(clients)) < len(clients)
            for _ in range(TURNS):
                with joined(other.client.netns, other.server.netns, address) as both:
                    assert carries(*both)


def test_a_table_that_is_really_full(own_node: Node) -> None:
    """accept() itself fails. It goes on when there is room; what is open is not touched."""
    daemon = own_node.begin()
    with own_node.pair() as pair:
        there = pair.server.ipv4
        with (
            joined(pair.client.netns, pair.server.netns, there, 81) as both,
            listening(pair.server.netns, there) as listener,
            answering(listener, echo),
        ):
            limits = no_more_descriptors(daemon)
            with dial(pair.client.netns, there) as client:
                client.sendall(b"later")
                cpu = cpu_seconds(daemon.pid)
                time.sleep(REST)
                assert cpu_seconds(daemon.pid) - cpu < SPUN
                assert not answered([client])
                assert all(carries(*both) for _ in range(10))
                resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)
                assert client.recv(5) == b"later"
            assert carries(*both)


def no_more_descriptors(daemon: Daemon) -> tuple[int, int]:
    """Sets its soft limit to the lowest free number; returns the limits that it had."""
    numbers = daemon.fds()
    lowest = next(number for number in range(len(numbers) + 1) if number not in numbers)
    before = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (lowest, before[1]))
    return before


# ---- capabilities --------------------------------------------------------------------------------


def without(*names: str) -> list[str]:
    """A prefix: root without these capabilities."""
    dropped = ",".join(f"-{name}" for name in names)
    return ["setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}"]


@pytest.mark.needs_root
def test_without_the_right_to_mark_every_connection_is_closed(own_node: Node) -> None:
    """Unmarked it would come back to us. One line names the capabilities, one each connection."""
    daemon = own_node.begin(wrap=without("net_admin", "net_raw"))
    with own_node.pair() as pair, listening(pair.server.netns, pair.server.ipv4):
        for _ in range(10):
            assert fate(pair.client.netns, pair.server.ipv4, say=b"hello")[0] == "reset"
        lines = daemon.stderr.wait_for("cannot-relay")
        assert "CAP_NET_ADMIN or CAP_NET_RAW" in lines
        assert until(lambda: len(all_of(daemon.stderr.all())) == 10)
        assert sum("cannot-relay" in line for line in daemon.stderr.all()) == 1
        assert {each["error"].partition(" with")[0] for each in all_of(daemon.stderr.all())} == {
            "no SO_MARK or IP_TRANSPARENT"
        }
        # The pod itself is as it was.
        with joined(pair.server.netns, pair.server.netns, "127.0.0.1", 81):
            pass


@pytest.mark.needs_root
@pytest.mark.parametrize("dropped", ["net_admin", "net_raw"])
def test_one_of_the_two_is_enough(own_node: Node, dropped: str) -> None:
    own_node.begin(wrap=without(dropped))
    with own_node.pair() as pair:
        here, there = pair.addresses(0)
        with listening(pair.server.netns, there) as listener, dial(pair.client.netns, there) as one:
            other, seen = accept(listener)
            with other:
                assert seen == here
                assert carries(one, other)


# ---- a listener ----------------------------------------------------------------------------------


@pytest.mark.parametrize("port", [15001, 15006])
def test_a_listener_that_root_in_the_pod_destroys(pair: Pair, port: int) -> None:
    """It is made again, open connections go on, nothing spins."""
    daemon = pair.node.daemon
    pod, uid = (pair.client, pair.uids[0]) if port == 15001 else (pair.server, pair.uids[1])
    there = pair.server.ipv4
    with joined(pair.client.netns, pair.server.netns, there, 81) as both:
        if f":{port}" not in words(pod.netns, f"ss -K -ltnH sport = :{port}"):
            pytest.skip("this kernel cannot destroy sockets")
        daemon.stderr.wait_for(
            lambda line: f" uid={uid} " in line and "its listeners were destroyed" in line
        )
        with joined(pair.client.netns, pair.server.netns, there):
            pass
        cpu = cpu_seconds(daemon.pid)
        time.sleep(REST)
        assert cpu_seconds(daemon.pid) - cpu < SPUN
        assert carries(*both)


def test_connections_that_root_in_the_pod_destroys(pair: Pair) -> None:
    """Both ends see it, whichever of the sockets it was."""
    with every_state(pair) as states:
        words(pair.client.netns, "ss -K state connected dport = :1001")
        assert ends(states.servers["idle"]) == "reset"
    with joined(pair.client.netns, pair.server.netns, pair.server.ipv4, PORT):
        pass
