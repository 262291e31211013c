"""What somebody else changes in a captured pod is repaired within a second."""

import time

import pytest

from capture import kit
from capture.kit import ALL, Side, eventually, is_whole, routing, set_sysctl, words
from pyztun import NetNs
from pyztun.cni.capture import wire
from support.nftables import run_nft

WITHIN = 1.0
NFT = {
    "flush ruleset": ("rules",),
    "delete table inet pyztun": ("rules",),
    "flush chain inet pyztun guard_output": ("rules",),
    "delete chain inet pyztun settled": ("rules",),
    "chain inet pyztun nat_output { policy drop ; }": ("rules",),
    "insert rule inet pyztun nat_output accept": ("rules",),
    "add chain inet pyztun more": ("rules",),
    "table inet pyztun { flags dormant ; }": ("rules",),
}
IP = {
    "ip rule del pref 32764": ("ipv4 routes",),
    "ip -6 rule del pref 32764": ("ipv6 routes",),
    "ip rule flush": ("ipv4 routes",),
    "ip route flush table 100": ("ipv4 routes",),
    "ip -6 route flush table 100": ("ipv6 routes",),
    "ip route replace blackhole default table 100": ("ipv4 routes",),
}


def expect_repair(side: Side, netns: NetNs, written: tuple[str, ...], since: float) -> None:
    assert side.notice() == wire.Repaired(netns.inode, written, flushed=True)
    assert time.monotonic() - since < WITHIN
    assert is_whole(netns)


@pytest.mark.parametrize("damage", NFT)
def test_rules(netns: NetNs, side: Side, damage: str) -> None:
    side.done("capture", netns)
    whole = run_nft(netns, "list ruleset\n")
    since = time.monotonic()
    run_nft(netns, f"{damage}\n")
    expect_repair(side, netns, NFT[damage], since)
    assert run_nft(netns, "list ruleset\n") == whole
    side.done("forget", netns)


def test_one_deleted_rule(netns: NetNs, side: Side) -> None:
    side.done("capture", netns)
    listed = words(netns, "nft -a list chain inet pyztun guard_output")
    handle = listed.split("reject with tcp reset # handle ")[1].split()[0]
    since = time.monotonic()
    run_nft(netns, f"delete rule inet pyztun guard_output handle {handle}\n")
    expect_repair(side, netns, ("rules",), since)
    side.done("forget", netns)


@pytest.mark.parametrize("damage", IP)
def test_routes(netns: NetNs, side: Side, damage: str) -> None:
    side.done("capture", netns)
    before = routing(netns)
    since = time.monotonic()
    words(netns, damage)
    expect_repair(side, netns, IP[damage], since)
    if damage != "ip rule flush":  # takes `main` too, which is not ours
        assert routing(netns) == before
    side.done("forget", netns)


def test_lo_goes_down_and_up(netns: NetNs, side: Side) -> None:
    side.done("capture", netns)
    before = routing(netns)
    words(netns, "ip link set lo down")
    trouble = side.notice()
    assert isinstance(trouble, wire.Trouble)
    assert trouble.trouble.startswith("lo is down in the pod")
    since = time.monotonic()
    words(netns, "ip link set lo up")
    repaired = side.notice()
    assert isinstance(repaired, wire.Repaired)
    assert "ipv6 routes" in repaired.written
    assert time.monotonic() - since < WITHIN
    assert eventually(lambda: sorted(routing(netns)) == sorted(before))
    side.done("forget", netns)


def test_lo_goes_down_and_up_at_once(netns: NetNs, side: Side) -> None:
    side.done("capture", netns)
    since = time.monotonic()
    words(netns, "ip link set lo down")
    words(netns, "ip link set lo up")
    assert eventually(lambda: is_whole(netns), WITHIN)
    assert time.monotonic() - since < WITHIN
    side.done("forget", netns)


def test_lo_is_down_at_capture(netns: NetNs, side: Side) -> None:
    words(netns, "ip link set lo down")
    done = side.done("capture", netns)
    assert "rules" in done.written
    assert "ipv6 routes" in done.without
    assert isinstance(side.notice(), wire.Trouble)
    words(netns, "ip link set lo up")
    assert isinstance(side.notice(), wire.Repaired)
    assert is_whole(netns)
    side.done("forget", netns)


def test_ipv6_comes_later(netns: NetNs, side: Side) -> None:
    """The rules cover IPv6 from the beginning; its routes follow, and IPv4 stays as it is."""
    set_sysctl(netns, "net.ipv6.conf.lo.disable_ipv6", "1")
    done = side.done("capture", netns)
    assert done == wire.Done(side.asked, ("rules", "ipv4 routes"), flushed=True, without=ALL[2:])
    assert side.done("capture", netns).written == ()
    since = time.monotonic()
    set_sysctl(netns, "net.ipv6.conf.lo.disable_ipv6", "0")
    expect_repair(side, netns, ("ipv6 routes",), since)
    assert side.done("capture", netns).without == ()
    side.done("forget", netns)


def test_ipv6_goes_and_comes(netns: NetNs, side: Side) -> None:
    side.done("capture", netns)
    set_sysctl(netns, "net.ipv6.conf.all.disable_ipv6", "1")
    assert side.done("capture", netns).without == ALL[2:]
    since = time.monotonic()
    set_sysctl(netns, "net.ipv6.conf.all.disable_ipv6", "0")
    expect_repair(side, netns, ("ipv6 routes",), since)
    side.done("forget", netns)


def test_others_rules_are_no_repair_and_cost_few_looks(netns: NetNs, side: Side) -> None:
    """A pod that changes its own rules all the time: looks are few, and ours are still repaired."""
    side.done("capture", netns)
    used = kit.ticks(side)
    deadline = time.monotonic() + 1
    count = 0
    while time.monotonic() < deadline:
        run_nft(netns, "add table inet busy\nadd chain inet busy one\n")
        count += 1
    assert count > 20
    assert kit.ticks(side) - used < 50
    since = time.monotonic()
    run_nft(netns, "flush ruleset\n")
    expect_repair(side, netns, ("rules",), since)
    side.done("forget", netns)


def test_a_pod_that_is_forgotten_is_left_alone(netns: NetNs, side: Side) -> None:
    with NetNs.create() as other:
        side.done("capture", netns)
        side.done("capture", other)
        side.done("forget", netns)
        run_nft(netns, "flush ruleset\n")
        run_nft(other, "flush ruleset\n")
        assert side.notice() == wire.Repaired(other.inode, ("rules",), flushed=True)
        assert run_nft(netns, "list ruleset\n") == ""
        side.done("forget", other)


def test_an_overflow_of_the_watch_is_a_look(netns: NetNs, side: Side) -> None:
    """More is told than the buffer holds while podside is stopped."""
    side.done("capture", netns)
    with side.stopped():
        many = "".join(f"add chain inet many c{i}\n" for i in range(500))
        run_nft(netns, f"add table inet many\n{many}")
        run_nft(netns, "delete table inet pyztun\n")
    expect_repair(side, netns, ("rules",), time.monotonic())
    side.done("forget", netns)
