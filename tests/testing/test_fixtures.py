"""The fixtures netns and pod_pair, used as any project uses them, and pod_pair without pytest."""

import asyncio
import os
import socket
import threading
from contextlib import ExitStack

import pytest

from pyztun import NetNs
from pyztun.testing import LeakCheck, PodPair, pod_pair, why_no_netns
from support import leaks, pods


def first_bytes(pair: PodPair, address: str) -> bytes:
    """What the right pod says to the left one over a connection made at once."""
    (listener,) = pair.right.netns.listen((address, 80))
    with listener, pair.left.netns.connect((address, 80), timeout=10) as client:
        peer, (source, *_) = listener.accept()
        with peer:
            assert source in pair.left.addresses
            peer.sendall(b"hello")
            return client.recv(100)


def first_datagram(pair: PodPair, source: str, target: str) -> bytes:
    """One datagram, which nobody sends again if the link drops it."""
    (receiver,) = pair.right.netns.listen((target, 53), type=socket.SOCK_DGRAM)
    (sender,) = pair.left.netns.listen((source, 0), type=socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.settimeout(10)
        sender.sendto(b"once", (target, 53))
        return receiver.recv(100)


def test_netns_is_fresh_with_loopback_up(netns: NetNs) -> None:
    home = leaks.netns_inode()
    assert netns.inode != home
    assert pods.in_netns(netns.fileno(), socket.if_nameindex) == [(1, "lo")]
    (listener,) = netns.listen(("127.0.0.1", 80))
    with listener, netns.connect(("127.0.0.1", 80), timeout=10):
        assert leaks.netns_inode() == home


def test_first_connection_passes_over_both_families(pod_pair: PodPair) -> None:
    for address in pod_pair.right.addresses:
        assert first_bytes(pod_pair, address) == b"hello"


@pytest.mark.parametrize("family", [0, 1])
def test_first_packet_passes(pod_pair: PodPair, family: int) -> None:
    left, right = pod_pair
    assert first_datagram(pod_pair, left.addresses[family], right.addresses[family]) == b"once"


def test_repr_tells_the_ends(pod_pair: PodPair) -> None:
    left, right = (pod.netns.inode for pod in pod_pair)
    assert repr(pod_pair) == (
        f"<PodPair left=<Pod eth0 192.0.2.1 2001:db8::1 in netns {left}> "
        f"right=<Pod eth0 192.0.2.2 2001:db8::2 in netns {right}>>"
    )


def test_pods_hold_one_link_and_the_loopback(pod_pair: PodPair) -> None:
    for pod in pod_pair:
        names = pods.in_netns(pod.netns.fileno(), socket.if_nameindex)
        assert [name for _, name in names] == ["lo", pod.interface]


@pytest.mark.needs_netns
def test_pairs_do_not_meet() -> None:
    with pod_pair() as one, pod_pair() as two:
        for pair in (one, two):
            assert first_bytes(pair, pair.right.ipv4) == b"hello"
        (listener,) = two.right.netns.listen((two.right.ipv4, 81))
        with listener, pytest.raises(ConnectionRefusedError):
            one.left.netns.connect((one.right.ipv4, 81), timeout=10)


@pytest.mark.needs_netns
def test_pair_in_a_running_event_loop() -> None:
    async def main() -> bytes:
        with pod_pair() as pair:
            return first_bytes(pair, pair.right.ipv6)

    assert asyncio.run(main()) == b"hello"


@pytest.mark.needs_netns
def test_pairs_of_several_threads_and_nothing_left_behind() -> None:
    home = leaks.netns_inode()
    said: list[bytes] = []

    def work() -> None:
        with pod_pair() as pair:
            said.append(first_bytes(pair, pair.right.ipv4))

    with LeakCheck(names=lambda _: False):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert said == [b"hello"] * 4
    assert leaks.netns_inode() == home


@pytest.mark.needs_netns
def test_pair_that_fails_half_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second end's name is taken by its loopback."""
    from pyztun.testing import pods as module

    monkeypatch.setattr(module, "INTERFACE", "lo")
    with LeakCheck(names=lambda _: False), pytest.raises(Exception, match="exists"), pod_pair():
        pytest.fail("made a second lo")


@pytest.mark.needs_netns
def test_pair_dies_with_its_block() -> None:
    """A veth goes with the netns of its other end: the left one, of which nothing is kept."""
    with ExitStack() as stack:
        with pod_pair() as pair:
            kept = stack.enter_context(NetNs.of(pair.right.netns))
            news = kept.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            stack.enter_context(news).bind((0, pods.RTMGRP_LINK))
        news.settimeout(20)
        while len(pods.in_netns(kept.fileno(), socket.if_nameindex)) > 1:
            news.recv(65536)


@pytest.mark.needs_netns
def test_reason_is_none_where_a_netns_can_be_made() -> None:
    assert why_no_netns() is None
    assert os.stat("/proc/thread-self/ns/net").st_ino == leaks.netns_inode()
