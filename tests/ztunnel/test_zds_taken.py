"""Which Adds the native wait takes by itself, and that it knows of all that is served.

The receiver runs in a thread here, over a wait that writes down what it is told and what comes of
it: outside, an Add that was taken and one that went the long way look alike. That is also what a
false hit must come to, another uid's hash in the way of a new workload.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import count

import pytest
from receiver_site import ROOM, Receiver

from pyztun import waits
from support import zt_zds
from support.pods import Pod
from support.zt_zds import blocker, ports, until

MakePod = Callable[[], Pod]

CELL_BITS = 16


def cell(uid: str) -> int:
    """Where csrc/zds_known.c counts a uid: FNV-1a, then the upper bits of a product."""
    number = 0xCBF29CE484222325
    for byte in uid.encode():
        number = (number ^ byte) * 0x100000001B3 % 2**64
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        number = (number ^ number >> 33) * factor % 2**64
    return number >> 64 - CELL_BITS


def twin(uid: str) -> str:
    """Another uid in the same cell."""
    return next(other for other in map(str, count()) if cell(other) == cell(uid) and other != uid)


@pytest.fixture
def receiver(sock_path: str) -> Iterator[Receiver]:
    with contextlib.closing(Receiver(sock_path)) as receiver:
        yield receiver


def test_a_new_workload_is_taken_and_known(receiver: Receiver, make_pod: MakePod) -> None:
    one, two = make_pod(), make_pod()
    assert receiver.takes("u", one)
    assert receiver.knows(("u", one))
    assert receiver.takes("v", two)
    assert receiver.knows(("u", one), ("v", two))
    assert receiver.link.delete("u") == ""
    assert receiver.knows(("v", two))
    assert receiver.takes("u", one), "known no more"


def test_what_is_served_is_not_taken(receiver: Receiver, make_pod: MakePod) -> None:
    """Neither its netns nor its uid, in whatever combination; each goes the long way, rightly."""
    one, two = make_pod(), make_pod()
    assert receiver.takes("u", one)
    assert not receiver.takes("u", one), "again"
    assert receiver.knows(("u", one))
    event, answer = receiver.outcome("v", one)
    assert event == waits.ADD
    assert "uid u" in answer
    assert not receiver.takes("u", two), "a replacement"
    assert ports(one) == zt_zds.PORTS, "v was pending and is served now"
    assert receiver.knows(("u", two), ("v", one))


def test_a_false_hit_goes_the_long_way(receiver: Receiver, make_pod: MakePod) -> None:
    """Whoever has the hash of one that is served is new all the same."""
    one, two, three = make_pod(), make_pod(), make_pod()
    other = twin("u")
    assert receiver.takes("u", one)
    assert not receiver.takes(other, two)
    assert receiver.knows(("u", one), (other, two))
    assert receiver.takes("v", three), "a third one is none of theirs"
    assert receiver.link.delete("u") == ""
    assert receiver.knows((other, two), ("v", three))
    assert ports(one) == set()
    assert ports(two) == zt_zds.PORTS
    assert not receiver.takes("u", one), "now it is the other one's hash"
    assert receiver.link.delete(other) == ""
    assert receiver.link.delete("u") == ""
    assert receiver.takes(other, two), "alone"


def test_a_false_hit_that_fails_is_pending(receiver: Receiver, make_pod: MakePod) -> None:
    one, two = make_pod(), make_pod()
    other = twin("u")
    assert receiver.takes("u", one)
    with blocker(two):
        event, answer = receiver.outcome(other, two)
        assert event == waits.ADD
        assert "15008" in answer
        assert receiver.knows(("u", one))
    until(lambda: receiver.knows(("u", one), (other, two)), "healed")
    assert ports(two) == zt_zds.PORTS


def test_what_fails_natively_is_pending(receiver: Receiver, make_pod: MakePod) -> None:
    pod = make_pod()
    with blocker(pod):
        event, answer = receiver.outcome("u", pod)
        assert event == waits.ADD
        assert "[::]:15008" in answer
        assert "pending" in answer
        assert receiver.knows()
    until(lambda: receiver.knows(("u", pod)), "healed")


def test_a_snapshot_names_what_is_taken(receiver: Receiver, make_pod: MakePod) -> None:
    kept, gone, new = make_pod(), make_pod(), make_pod()
    assert receiver.takes("kept", kept)
    assert receiver.takes("gone", gone)
    receiver.reconnect()
    assert receiver.takes("new", new)
    assert not receiver.takes("kept", kept)
    assert receiver.link.snapshot_sent() == ""
    assert receiver.knows(("kept", kept), ("new", new))
    assert ports(gone) == set()
    assert ports(new) == zt_zds.PORTS


def test_without_room_nobody_is_taken(receiver: Receiver, make_pod: MakePod) -> None:
    """The pending ones count too; whoever has a place keeps it."""
    blocked, *served, late = (make_pod() for _ in range(ROOM + 1))
    with blocker(blocked):
        event, answer = receiver.outcome("blocked", blocked)
        assert event == waits.ADD
        assert "15008" in answer
        for pod in served:
            assert receiver.takes(pod.name, pod)
        event, answer = receiver.outcome("late", late)
        assert event == waits.ADD
        assert "limit" in answer
        assert ports(late) == set()
        assert receiver.link.delete(served[0].name) == ""
        assert receiver.takes("late", late)


def test_what_is_no_workload_is_known_for_ever(sock_path: str, make_pod: MakePod) -> None:
    home, pod = make_pod(), make_pod()
    with contextlib.closing(Receiver(sock_path, home)) as receiver:
        assert receiver.knows()
        for _ in range(2):
            assert receiver.outcome("u", home) == (waits.ADD, "home netns")
            assert ports(home) == set()
            assert receiver.takes("u", pod)
            assert receiver.link.delete("u") == ""
            assert receiver.knows()
