"""podside is killed in the middle: afterwards there is all of the rules or nothing."""

import random
import threading
import time

import pytest

from capture.kit import ALL, Side, is_cut, is_whole, joined, routing
from pyztun import NetNs
from pyztun.cni.capture import wire
from pyztun.testing import PodPair
from support.nftables import run_nft

ROUNDS = 6
LONGEST = 0.012
"""Seconds in which a podside that is warm has captured a pod, here and with luck on others."""


@pytest.mark.parametrize("number", range(ROUNDS))
def test_killed_at_any_moment(pod_pair: PodPair, side: Side, number: int) -> None:
    """Also a connection from before is cut, whoever of the two wrote and whoever flushed."""
    outside, inside = pod_pair
    dice = random.Random(number)
    with NetNs.create() as first, joined(inside.netns, outside.netns, outside.ipv4) as (client, _):
        with Side() as killed:
            killed.done("capture", first)
            killer = threading.Timer(dice.uniform(0, LONGEST), killed.process.kill)
            killed.send("capture", inside.netns)
            killer.start()
            killed.process.wait()
            killer.join()
        listed = run_nft(inside.netns, "list ruleset\n")
        assert listed.count("hook ") in (0, 9)
        done = side.done("capture", inside.netns)
        assert done.without == ()
        assert is_whole(inside.netns)
        assert is_cut(client)
    side.done("forget", inside.netns)


def test_killed_before_the_flush(netns: NetNs, side: Side) -> None:
    """The rules are all there but for the end, which is written behind the flush."""
    side.done("capture", netns)
    side.done("forget", netns)
    run_nft(netns, "delete chain inet pyztun settled\n")
    done = side.done("capture", netns)
    assert done == wire.Done(side.asked, ("rules",), flushed=True, without=())
    side.done("forget", netns)


def test_killed_while_it_watches(netns: NetNs, side: Side) -> None:
    """What happens in the gap is found by the next capture, with a flush of conntrack."""
    with Side() as killed:
        assert killed.done("capture", netns).written == ALL
        killed.kill()
    assert is_whole(netns)
    run_nft(netns, "delete chain inet pyztun guard_forward\n")
    since = time.monotonic()
    assert side.done("capture", netns).flushed
    assert time.monotonic() - since < 1
    assert is_whole(netns)
    side.done("forget", netns)


def test_killed_in_the_middle_of_a_release(netns: NetNs, side: Side) -> None:
    for number in range(4):
        before = routing(netns)
        with Side() as killed:
            killed.done("capture", netns)
            killer = threading.Timer(number * 0.005, killed.process.kill)
            killed.send("release", netns)
            killer.start()
            killed.process.wait()
            killer.join()
        side.done("release", netns)
        assert (run_nft(netns, "list ruleset\n"), routing(netns)) == ("", before)
