"""Workloads and ztunnels that end or change while connections are in every state."""

import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pyztun.testing import pod_pair
from support.relay_node import Node, Pair, capture, set_sysctl
from support.relay_states import every_state
from support.relay_traffic import (
    PORT,
    Worker,
    answering,
    carries,
    dial,
    ends,
    fate,
    is_reset,
    joined,
    listening,
    until,
    words,
)


def cannot_connect(pair: Pair) -> bool:
    """Nobody relays for the client, and nothing goes past its rules."""
    with listening(pair.server.netns, pair.server.ipv4, 90):
        return fate(pair.client.netns, pair.server.ipv4, 90)[0] == "refused"


def listeners(pair: Pair) -> int:
    """Of ztunnels, in the client's pod."""
    found = words(pair.client.netns, "ss -Htln").split()
    return sum(word.endswith((":15001", ":15006", ":15008")) for word in found)


def listens(pair: Pair) -> bool:
    """Whether a ztunnel does, in one of the pods."""
    return any(":15001" in words(pod.netns, "ss -Htln") for pod in pair)


# ---- workloads -----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1], ids=["client", "server"])
def test_a_workload_is_deleted(pair: Pair, which: int) -> None:
    """All that goes through it is reset at once; what does not, goes on."""
    with every_state(pair) as states:
        pair.node.delete(pair.uids[which])
        if which == 1:
            del states.clients["connecting"]  # to somebody else
        assert set(states.fates().values()) == {"reset"}, states.fates()
        if which == 1:
            assert fate(pair.client.netns, pair.server.ipv4)[0] == "reset"
            with joined(pair.server.netns, pair.server.netns, "127.0.0.1"):
                pass
        else:
            assert cannot_connect(pair)


def test_a_workload_comes_again(pair: Pair) -> None:
    uid = pair.uids[0]
    for _ in range(10):
        with joined(pair.client.netns, pair.server.netns, pair.server.ipv4) as (client, server):
            pair.node.delete(uid)
            assert is_reset(client)
            assert is_reset(server)
        assert cannot_connect(pair)
        pair.node.add(uid, pair.client.netns)


def test_a_workload_is_replaced(pair: Pair) -> None:
    """The same uid in another netns: there all is new, here all is cut."""
    uid = pair.uids[0]
    with pod_pair() as other:
        capture(other.left.netns)
        with every_state(pair) as states:
            pair.node.add(uid, other.left.netns)
            with joined(other.left.netns, other.right.netns, other.right.ipv4):
                assert set(states.fates().values()) == {"reset"}, states.fates()
            assert cannot_connect(pair)
        pair.node.add(uid, pair.client.netns)
        with joined(pair.client.netns, pair.server.netns, pair.server.ipv4):
            assert fate(other.left.netns, other.right.ipv4)[0] == "refused"


def test_a_workload_is_added_again_and_nothing_is_cut(pair: Pair) -> None:
    with joined(pair.client.netns, pair.server.netns, pair.server.ipv4) as (client, server):
        pair.node.add(pair.uids[0], pair.client.netns)
        assert carries(client, server)


def test_a_netns_is_given_to_another_uid(pair: Pair) -> None:
    with joined(pair.client.netns, pair.server.netns, pair.server.ipv4) as (client, server):
        pair.node.delete(pair.uids[0])
        pair.node.add(f"other-{pair.uids[0]}", pair.client.netns)
        assert is_reset(client)
        assert is_reset(server)
    with joined(pair.client.netns, pair.server.netns, pair.server.ipv4):
        pass
    pair.node.delete(f"other-{pair.uids[0]}")


# ---- ztunnel -------------------------------------------------------------------------------------


def test_sigterm_lets_open_connections_end(own_node: Node) -> None:
    """They have the time of --drain; new ones are refused at once; it is gone with the last one."""
    daemon = own_node.begin("--drain", "10")
    with own_node.pair() as pair:
        with joined(pair.client.netns, pair.server.netns, pair.server.ipv4) as (client, server):
            daemon.process.send_signal(signal.SIGTERM)
            daemon.wait_notification("STOPPING=1")
            assert until(lambda: not listens(pair))
            assert cannot_connect(pair)
            assert carries(client, server)
            client.close()
            assert ends(server) == "closed"
            assert daemon.process.poll() is None
        began = time.monotonic()
        assert daemon.wait() == 0
        assert time.monotonic() - began < 1
        assert not [line for line in daemon.stderr.all() if " cut " in line]
        assert cannot_connect(pair)


def test_sigterm_cuts_what_does_not_end(own_node: Node) -> None:
    daemon = own_node.begin("--drain", "0.3")
    with own_node.pair() as pair, every_state(pair) as states:
        began = time.monotonic()
        assert daemon.stop() == 0
        assert 0.3 < time.monotonic() - began < 2
        assert set(states.fates().values()) == {"reset"}, states.fates()
        daemon.stderr.wait_for(" cut connections=")
        own_node.begin()


@pytest.mark.parametrize("how", ["killed", "second-signal"])
def test_sigkill_cuts_all_and_leaves_all_closed(own_node: Node, how: str) -> None:
    """Neither end takes what it has for the whole; a new ztunnel serves the pods again."""
    daemon = own_node.begin("--drain", "60")
    with own_node.pair() as pair:
        with every_state(pair) as states:
            if how == "killed":
                daemon.kill()
            else:
                daemon.process.send_signal(signal.SIGTERM)
                assert until(lambda: not listens(pair))
                assert daemon.stop() == 1
            assert set(states.fates().values()) == {"reset"}, states.fates()
        assert cannot_connect(pair)
        assert fate(pair.server.netns, pair.client.ipv4)[0] == "refused"
        own_node.begin()
        for client, server in ((pair.client, pair.server), (pair.server, pair.client)):
            with joined(client.netns, server.netns, server.ipv4):
                pass


def test_connections_go_on_without_an_agent(own_node: Node, directory: Path) -> None:
    """Open ones and new ones; another agent is told of nothing that was cut."""
    daemon = own_node.begin()
    with own_node.pair() as pair:
        address = pair.server.ipv4
        with joined(pair.client.netns, pair.server.netns, address) as (client, server):
            own_node.agent.close()
            daemon.stderr.wait_for("the agent closed the connection")
            assert carries(client, server)
            with joined(pair.client.netns, pair.server.netns, address, 81):
                pass
            own_node.new_agent()
            assert carries(client, server)


def test_an_upgrade_loses_nothing(own_node: Node) -> None:
    """Two serve the pods at once; the old one gets SIGTERM and finishes what it has begun."""
    old = own_node.begin("--drain", "30")
    with own_node.pair() as pair:
        for pod in pair:  # else the kernel resets what the old one's listener has not accepted yet
            set_sysctl(pod.netns, "net.ipv4.tcp_migrate_req", "1")
        address = pair.server.ipv4
        with (
            joined(pair.client.netns, pair.server.netns, address, 81) as (one, other),
            listening(pair.server.netns, address) as listener,
        ):
            listener.settimeout(30)
            new = own_node.begin()
            goes_on = [True]

            def call() -> int:
                count = 0
                while goes_on[0]:
                    with dial(pair.client.netns, address) as client, listener.accept()[0] as server:
                        assert carries(client, server)
                    count += 1
                return count

            caller = Worker(call)
            old.process.send_signal(signal.SIGTERM)
            old.wait_notification("STOPPING=1")
            assert until(lambda: listeners(pair) == 3)  # of two times three
            assert all(carries(one, other) for _ in range(10))
            one.close()
            assert ends(other) == "closed"
            other.close()
            assert old.wait() == 0
            goes_on[0] = False
            assert caller.join() > 0
        assert new.process.poll() is None


@pytest.mark.slow
def test_sigterm_in_the_middle_of_it_all(own_node: Node, directory: Path) -> None:
    """Traffic of every kind: whatever it is ends, ztunnel with 0 and in time."""
    daemon = own_node.begin("--drain", "0.5", "--access-log", str(directory / "log"))
    with own_node.pair() as pair, every_state(pair) as states:
        address = pair.server.ipv4
        block = bytes(1 << 20)

        def call() -> str:
            """Short connections until there are none any more."""
            while True:
                how, _ = fate(pair.client.netns, address, PORT, b"short")
                if how != "said b's'":
                    return how

        def answer(sock: socket.socket) -> None:
            sock.sendall(sock.recv(100))

        def send(sock: socket.socket) -> None:
            with suppress(ConnectionResetError, BrokenPipeError):
                while True:
                    sock.sendall(block)

        with (
            listening(pair.server.netns, address) as listener,
            answering(listener, answer),
            joined(pair.client.netns, pair.server.netns, address, 81) as (one, other),
            joined(pair.client.netns, pair.server.netns, address, 82) as (third, fourth),
        ):
            callers = [Worker(call) for _ in range(4)]
            senders = [Worker(lambda: send(one)), Worker(lambda: send(fourth))]
            readers = [Worker(lambda: is_reset(other)), Worker(lambda: is_reset(third))]
            assert until(lambda: len((directory / "log").read_bytes().splitlines()) > 200)
            began = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - began < 2.5
            assert {caller.join() for caller in callers} <= {"refused", "reset"}
            for sender in senders:
                sender.join()
            assert all(reader.join() for reader in readers)
        assert set(states.fates().values()) == {"reset"}, states.fates()
        assert not [line for line in daemon.complaints() if " cut " not in line]
