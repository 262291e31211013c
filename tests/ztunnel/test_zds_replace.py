"""The same uid in another netns: new listeners, then the old ones go, then the ACK."""

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from support import pods, zt_zds
from support.pods import Canary, Pod
from support.zt_zds import Node, Start, blocker, ports, serves, until

MakePod = Callable[[], Pod]
MakeCanary = Callable[[Pod], Canary]


@pytest.fixture
def node(start: Start, sock_path: str) -> Iterator[Node]:
    with Node(start, sock_path) as node:
        yield node


def test_after_the_ack_the_new_one_serves_and_the_old_one_is_gone(
    node: Node, make_pod: MakePod, make_canary: MakeCanary
) -> None:
    old, new = make_pod(), make_pod()
    canary = make_canary(old)
    node.link.serve("u", old)
    old.delete()
    assert canary.alive, "ztunnel serves it"
    node.link.serve("u", new)
    assert serves(new)
    assert canary.died()
    assert node.link.delete("u") == ""
    assert not serves(new)


def test_in_a_snapshot(node: Node, make_pod: MakePod) -> None:
    old, new = make_pod(), make_pod()
    node.link.serve("u", old)
    link = node.reconnect()
    link.serve("u", new)
    assert serves(new)
    assert not serves(old), "at once, not at SnapshotSent"
    assert link.snapshot_sent() == ""
    assert serves(new)


def test_back_and_forth(node: Node, make_pod: MakePod) -> None:
    some = make_pod(), make_pod()
    for turn in range(20):
        node.link.serve("u", some[turn % 2])
        assert ports(some[turn % 2]) == zt_zds.PORTS
        assert ports(some[1 - turn % 2]) == set()


def test_two_uids_swap_their_netns(node: Node, make_pod: MakePod) -> None:
    """The first is refused, since the other one is there yet; then both have been named."""
    one, two = make_pod(), make_pod()
    node.link.serve("u", one)
    node.link.serve("v", two)
    assert "uid v" in node.link.add("u", two)
    node.link.serve("v", one)
    until(lambda: serves(two), "u is served in its new netns")
    assert serves(one)
    assert node.link.delete("v") == ""
    assert not serves(one)
    assert serves(two)


@pytest.mark.needs_netns
def test_there_is_no_moment_without_listeners(node: Node) -> None:
    """A witness: whenever the old pod is found without listeners, the new one has them already."""
    with ExitStack() as stack:
        chain = [pods.nameless_netns() for _ in range(12)]
        for fd in chain:
            stack.callback(os.close, fd)
        node.link.serve("u", chain[0])
        for old, new in itertools.pairwise(chain):
            witness = Witness(old, new)
            node.link.serve("u", new)
            assert witness.saw_behind_the_old() == zt_zds.PORTS


class Witness:
    """A thread that looks at the old netns until its listeners are gone, then at the new one."""

    def __init__(self, old: int, new: int) -> None:
        self._old, self._new = old, new
        self._found: list[set[int]] = []
        self._looking = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        assert self._looking.wait(10)

    def _watch(self) -> None:
        while ports(self._old):
            self._looking.set()
        self._found.append(ports(self._new))

    def saw_behind_the_old(self) -> set[int]:
        self._thread.join(10)
        (found,) = self._found
        return found


# ---- that fails ----------------------------------------------------------------------------------


class Failed(NamedTuple):
    """A replacement of uid "u" that failed: 15006 is taken in the new pod, until `unblock()`."""

    old: Pod
    new: Pod
    unblock: Callable[[], None]


@pytest.fixture
def failed(node: Node, make_pod: MakePod) -> Iterator[Failed]:
    old, new = make_pod(), make_pod()
    node.link.serve("u", old)
    with blocker(new, 15006) as taken:
        reason = node.link.add("u", new)
        assert "15006" in reason
        assert "EADDRINUSE" in reason
        assert serves(old)
        assert ports(new) == {15006}, "all or none"
        yield Failed(old, new, taken.close)


def test_the_old_one_serves_and_the_new_one_takes_over_when_it_can(
    node: Node, failed: Failed
) -> None:
    old, new, _ = failed
    assert serves(old)
    failed.unblock()
    until(lambda: ports(new) == zt_zds.PORTS, "taken over")
    until(lambda: ports(old) == set(), "the old one is let go")
    assert node.holds(new) == 1
    assert node.link.delete("u") == ""
    assert ports(new) == set()


def test_an_add_of_the_old_netns_cancels_it(node: Node, failed: Failed) -> None:
    old, new, _ = failed
    assert node.holds(new)
    node.link.serve("u", old)
    assert not node.holds(new)
    failed.unblock()
    assert serves(old)


def test_a_del_cancels_it_and_stops_the_old_one(
    node: Node, failed: Failed, make_canary: MakeCanary
) -> None:
    old, new, _ = failed
    canary = make_canary(new)
    assert node.link.delete("u") == ""
    assert not serves(old)
    failed.unblock()
    new.delete()
    assert canary.died()


def test_a_third_netns_ends_it(node: Node, failed: Failed, make_pod: MakePod) -> None:
    old, new, _ = failed
    third = make_pod()
    node.link.serve("u", third)
    assert serves(third)
    assert not serves(old)
    assert not node.holds(new)


def test_the_last_of_two_that_failed_is_the_one_that_waits(
    node: Node, failed: Failed, make_pod: MakePod
) -> None:
    old, new, _ = failed
    third = make_pod()
    with blocker(third):
        assert "15008" in node.link.add("u", third)
        assert not node.holds(new)
        assert node.holds(third)
        assert serves(old)
    until(lambda: ports(third) == zt_zds.PORTS, "taken over")
    assert not serves(old)


def test_it_survives_a_reconnect_whose_snapshot_names_the_uid(node: Node, failed: Failed) -> None:
    old, new, _ = failed
    link = node.reconnect()
    assert link.keep("u") == ""
    assert link.snapshot_sent() == ""
    assert serves(old)
    failed.unblock()
    until(lambda: ports(new) == zt_zds.PORTS, "taken over")
    assert not serves(old)


def test_a_snapshot_without_the_uid_ends_both(node: Node, failed: Failed) -> None:
    old, new, _ = failed
    assert node.reconnect().snapshot_sent() == ""
    assert not serves(old)
    assert not node.holds(new)


def test_a_del_in_the_snapshot_ends_what_waits_and_the_old_one_later(
    node: Node, failed: Failed
) -> None:
    old, new, _ = failed
    link = node.reconnect()
    assert link.delete("u") == ""
    assert not node.holds(new)
    assert serves(old)
    assert link.snapshot_sent() == ""
    assert not serves(old)


def test_a_descriptor_that_is_no_netns_replaces_nothing(node: Node, pod: Pod) -> None:
    node.link.serve("u", pod)
    with open("/dev/null") as null:
        assert "not a network namespace" in node.link.add("u", null.fileno())
    assert serves(pod)
    link = node.reconnect()
    with open("/dev/null") as null:
        assert "not a network namespace" in link.add("u", null.fileno())
    assert link.snapshot_sent() == ""
    assert serves(pod), "the snapshot named its uid"
