"""Five seconds for a request, from accept or the last answer; nothing between prolongs them."""

import contextlib
import select
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from support import pods, wire
from support.pods import Pod
from support.programs import Daemon, cni
from support.zt_daemon import connections, is_served, settled_fds, wait_until_fds_are

DEADLINE = 5.0
EARLY, LATE = DEADLINE - 0.1, DEADLINE + 1.5
Start = Callable[..., Daemon]


@pytest.mark.slow
def test_what_each_slow_peer_gets_and_when(ztunnel: Daemon, sock_path: str) -> None:
    before = settled_fds(ztunnel, sock_path)
    with ExitStack() as stack:
        names = ("idle", "half", "dripping", "deaf", "renewed")
        peers = {name: stack.enter_context(wire.Peer(sock_path, 30)) for name in names}
        began = time.monotonic()
        peers["half"].send(wire.RELEASE_COOKIE + b"12")
        peers["dripping"].send(wire.RELEASE_COOKIE)
        deaf = peers["deaf"].socket
        deaf.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                deaf.send(wire.LIST * 1000)
        ended: dict[str, float] = {}
        asked_again = False
        poll = select.poll()
        numbers = {peer.socket.fileno(): name for name, peer in peers.items() if name != "deaf"}
        for number in numbers:
            poll.register(number, select.POLLIN)
        poll.register(deaf, 0)  # POLLHUP alone: it is never read
        numbers[deaf.fileno()] = "deaf"
        while len(ended) < len(peers):
            ready = [numbers[fd] for fd, _ in poll.poll(300)]
            now = time.monotonic() - began
            assert now < 2 * LATE + DEADLINE, ended
            for name in ready:
                poll.unregister(peers[name].socket)
                ended[name] = now
            if "dripping" not in ended:
                with contextlib.suppress(BrokenPipeError):
                    peers["dripping"].send(b"0")
            if now > 3 and not asked_again:
                asked_again = True
                poll.unregister(peers["renewed"].socket)
                assert peers["renewed"].ask(wire.LIST) == "end"
                poll.register(peers["renewed"].socket, select.POLLIN)
            is_served(sock_path)
        for name in ("idle", "half", "dripping", "deaf"):
            assert EARLY < ended[name] < LATE, ended
        assert 3 + EARLY < ended["renewed"] < 3 + LATE + 0.5, ended
        late = "error the request did not come to an end in time"
        assert peers["half"].lines() == [late]
        assert peers["dripping"].line() == late
        assert peers["idle"].lines() == peers["renewed"].lines() == []
    wait_until_fds_are(ztunnel, before)


@pytest.mark.slow
def test_a_client_in_the_pod_has_as_long(pod: Pod, ztunnel: Daemon, sock_path: str) -> None:
    assert cni(sock_path, pod.path).returncode == 0
    before = settled_fds(ztunnel, sock_path)
    with pod.connect(15008) as client:
        client.settimeout(20)
        began = time.monotonic()
        assert client.recv(10) == b"ok\n"
        assert client.recv(10) == b""
        poll = select.poll()
        poll.register(client, select.POLLHUP | select.POLLERR)
        # After its time it is closed: what the client says then is answered by a reset.
        while time.monotonic() - began < LATE and len(ztunnel.fds()) > len(before):
            poll.poll(100)
        assert EARLY < time.monotonic() - began < LATE
    wait_until_fds_are(ztunnel, before)
    assert pod.ask(15008) == b"ok\n"


def test_when_full_the_longest_idle_goes_and_never_the_newcomer(
    start: Start, sock_path: str
) -> None:
    daemon = start(sock_path, "--max-peers", "4")
    before = settled_fds(daemon, sock_path)
    with ExitStack() as stack:
        peers = [stack.enter_context(wire.Peer(sock_path)) for _ in range(4)]
        for peer in peers:
            assert peer.ask(wire.LIST) == "end"
        assert peers[0].ask(wire.LIST) == "end"  # now the second is the longest silent one
        newcomer = stack.enter_context(wire.Peer(sock_path))
        assert newcomer.ask(wire.LIST) == "end"
        assert peers[1].at_end()
        for peer in (peers[0], peers[2], peers[3], newcomer):
            assert peer.ask(wire.LIST) == "end"
    wait_until_fds_are(daemon, before)


def test_half_a_request_is_no_shelter(start: Start, sock_path: str) -> None:
    """Bytes in the middle of a request do not make a peer younger."""
    start(sock_path, "--max-peers", "3")
    with ExitStack() as stack:
        slow = [stack.enter_context(wire.Peer(sock_path)) for _ in range(3)]
        for peer in slow:
            peer.send(wire.RELEASE_COOKIE)
        for peer in slow:
            peer.send(b"1")
        for _ in range(10):
            is_served(sock_path)
        assert slow[0].at_end()


def test_a_thousand_silent_peers_delay_nobody(ztunnel: Daemon, sock_path: str) -> None:
    before = settled_fds(ztunnel, sock_path)
    with connections(sock_path, 900):
        assert sum(is_served(sock_path) for _ in range(20)) < 2
    wait_until_fds_are(ztunnel, before)


@pytest.mark.needs_netns
def test_a_crowd_in_the_pod_delays_no_handoff(pod: Pod, ztunnel: Daemon, sock_path: str) -> None:
    assert cni(sock_path, pod.path).returncode == 0

    def connect() -> list[socket.socket]:
        return [socket.create_connection(("127.0.0.1", 15001), timeout=10) for _ in range(700)]

    clients = pods.in_netns(pod.path, connect)
    try:
        for _ in range(20):
            is_served(sock_path)
        assert pod.ask(15001) == b"ok\n"
    finally:
        for client in clients:
            client.close()
