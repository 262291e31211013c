"""podside: capture, release and forget on real pods, and how it ends."""

import os
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from capture import kit
from capture.kit import ALL, Side, eventually, is_whole, routing, words
from pyztun import NetNs
from pyztun.cni.capture import wire
from support import leaks
from support.nftables import run_nft
from support.pods import Canary, Pod

OTHER = """
table inet other {
	chain input {
		type filter hook input priority 0; policy accept;
		tcp dport 9 counter accept
	}
	chain output {
		type nat hook output priority -100; policy accept;
		tcp dport 9 redirect to :10
	}
}
"""


def test_capture_and_release(netns: NetNs, side: Side) -> None:
    before = run_nft(netns, "list ruleset\n"), routing(netns)
    assert side.done("capture", netns) == wire.Done(side.asked, ALL, flushed=True, without=())
    assert is_whole(netns)
    released = side.done("release", netns)
    assert released == wire.Done(side.asked, ALL, flushed=True, without=())
    assert (run_nft(netns, "list ruleset\n"), routing(netns)) == before
    assert side.done("release", netns).written == ()


def test_second_capture_writes_nothing(netns: NetNs, side: Side) -> None:
    side.done("capture", netns)
    whole = run_nft(netns, "list ruleset\n")
    for _ in range(3):
        assert side.done("capture", netns) == wire.Done(side.asked, (), flushed=False, without=())
    side.done("forget", netns)
    assert side.done("capture", netns).written == ()
    with Side() as another:
        assert another.done("capture", netns).written == ()
    assert run_nft(netns, "list ruleset\n") == whole
    side.done("forget", netns)


def test_what_others_wrote_stays(netns: NetNs, side: Side) -> None:
    run_nft(netns, OTHER)
    words(netns, "ip rule add pref 100 fwmark 7 lookup 107")
    words(netns, "ip route add blackhole 203.0.113.0/24 table 100")
    words(netns, "ip route add blackhole 203.0.113.0/24 table 107")
    before = run_nft(netns, "list ruleset\n"), routing(netns)
    side.done("capture", netns)
    assert is_whole(netns)
    assert run_nft(netns, "list table inet other\n") in run_nft(netns, "list ruleset\n")
    side.done("release", netns)
    assert (run_nft(netns, "list ruleset\n"), routing(netns)) == before


def test_a_table_of_our_name_that_is_not_ours_is_replaced(netns: NetNs, side: Side) -> None:
    run_nft(netns, OTHER.replace("other", "pyztun"))
    assert side.done("capture", netns).written == ALL
    assert "dport 9" not in run_nft(netns, "list ruleset\n")
    assert is_whole(netns)
    side.done("forget", netns)


def test_lo_of_another_name(netns: NetNs, side: Side) -> None:
    """nft prints a name where the kernel has the number."""
    for line in ("ip link set lo down", "ip link set lo name loop", "ip link set loop up"):
        words(netns, line)
    side.done("capture", netns)
    side.done("forget", netns)
    assert side.done("capture", netns).written == ()
    side.done("forget", netns)


def test_own_netns_is_never_entered(side: Side) -> None:
    with NetNs.current() as home:
        assert side.failed("capture", home) == "that is the netns of the agent, and no pod"
        assert side.failed("release", home) == "that is the netns of the agent, and no pod"
    assert leaks.netns_inode(side.process.pid) == leaks.netns_inode()


def test_forget_of_an_unknown_key(netns: NetNs, side: Side) -> None:
    assert side.done("forget", netns) == wire.Done(side.asked, (), flushed=False, without=())


def test_a_key_that_comes_again_with_another_netns(netns: NetNs, side: Side) -> None:
    with NetNs.create() as other:
        side.done("capture", netns, key=7)
        assert side.done("capture", other, key=7).written == ALL
        run_nft(netns, "flush ruleset\n")
        run_nft(other, "flush ruleset\n")
        assert side.notice() == wire.Repaired(7, ("rules",), flushed=True)
        assert is_whole(other)
        assert run_nft(netns, "list ruleset\n") == ""
        side.done("forget", other, key=7)


def test_it_is_at_home_with_one_thread_and_holds_nothing_of_others(side: Side) -> None:
    def held() -> int:
        return len(leaks.open_fds(side.process.pid))

    threads = 1 + (os.environ.get("TSAN_OPTIONS") is not None)  # which has a thread of its own
    with NetNs.create() as first:
        side.done("capture", first)
        side.done("release", first)
    before = held()
    made = [NetNs.create() for _ in range(5)]
    for each in made:
        side.done("capture", each)
    assert eventually(lambda: held() == before + 3 * len(made))  # more while it looks
    for each in made:
        run_nft(each, "flush ruleset\n")
    for _ in made:
        assert isinstance(side.notice(), wire.Repaired)
    for each, do in zip(made, ("release", "forget", "release", "forget", "release"), strict=True):
        side.done(do, each)
        each.close()
    assert eventually(lambda: held() == before)
    assert len(leaks.threads(side.process.pid)) == threads
    assert leaks.netns_inode(side.process.pid) == leaks.netns_inode()


def test_a_pod_that_is_forgotten_can_die(
    make_pod: Callable[[], Pod], make_canary: Callable[[Pod], Canary], side: Side
) -> None:
    """A watch pins the netns; the agent takes it away when the pod is gone."""
    for do in ("forget", "release"):
        pod = make_pod()
        canary = make_canary(pod)
        with NetNs.from_name(pod.name) as netns:
            side.done("capture", netns)
            pod.delete()
            side.done(do, netns)
        assert canary.died()


def test_it_ends_with_the_agent_and_the_rules_stay(netns: NetNs, side: Side) -> None:
    with Side() as short:
        short.done("capture", netns)
        assert short.end() == (0, "")
    assert is_whole(netns)
    assert side.done("release", netns).written == ALL


@pytest.mark.parametrize(
    ("message", "descriptors"),
    [
        (b"nonsense", 0),
        (b'{"id":1,"do":"capture","key":1}', 0),
        (b'{"id":1,"do":"forget","key":1}', 1),
        (b'{"id":1,"do":"capture","key":1}', 2),
        (b'{"id":1,"do":"dance","key":1}', 1),
    ],
)
def test_it_ends_at_what_no_agent_says(netns: NetNs, message: bytes, descriptors: int) -> None:
    with Side() as short:
        short.channel.send(message, [netns.fileno()] * descriptors)
        assert short.channel.receive(10, 0, kit.SECONDS)[0] == b""
        code, said = short.end()
        assert code == 1
        assert said.startswith("podside: ")
        assert said.count("\n") == 1


def test_what_is_no_netns_is_refused(netns: NetNs, side: Side) -> None:
    request = wire.encode_request(wire.Request(1, "capture", 1))
    with open("/dev/null") as file:
        side.channel.send(request, [file.fileno()])
    reply = side.receive()
    assert isinstance(reply, wire.Failed)
    assert "not a network namespace" in reply.error


LOSES_ITS_WAY = """
import sys
from pyztun.cni.capture import podside
from pyztun import native
move = native.move
def lost(fd, subject):
    move(fd, subject) if subject != "home" else native.check(-1, "setns", subject)
native.move = lost
sys.exit(podside.main(sys.argv))
"""


def test_one_that_cannot_come_home_ends(netns: NetNs) -> None:
    with Side(code=LOSES_ITS_WAY) as lost:
        lost.send("capture", netns)
        assert lost.channel.receive(10, 0, kit.SECONDS)[0] == b""
        code, said = lost.end()
        assert code == 70
        assert said.startswith("podside: cannot come home (setns home: EPERM")
        assert said.count("\n") == 1


def test_requests_that_are_queued_are_answered_in_order(netns: NetNs, side: Side) -> None:
    numbers = [side.send(do, netns) for do in ("capture", "capture", "release", "forget") * 5]
    replies = [side.receive() for _ in numbers]
    assert all(isinstance(reply, wire.Done) for reply in replies)
    assert [reply.id for reply in replies if isinstance(reply, wire.Done)] == numbers


def test_an_agent_that_does_not_read_delays_no_repair(netns: NetNs) -> None:
    """The channel fills with answers; then podside takes no more requests and goes on watching."""
    with Side() as short, NetNs.create() as other:
        short.done("capture", other)
        sent = 0
        try:
            for sent in range(100_000):  # noqa: B007
                short.asked += 1
                request = wire.Request(short.asked, "forget", 1)
                short.channel.send(wire.encode_request(request), timeout=0.05)
        except TimeoutError:
            short.asked -= 1
        run_nft(other, "flush ruleset\n")
        assert eventually(lambda: is_whole(other))
        used = kit.ticks(short)
        time.sleep(0.3)  # what is not to happen has no event
        assert kit.ticks(short) - used < 10
        received = [short.receive() for _ in range(short.asked)]
        done = [each.id for each in received if isinstance(each, wire.Done)]
        assert done == sorted(done)
        assert sent > 0


def test_sigterm_and_the_terminal(netns: NetNs) -> None:
    """^C goes to the whole terminal, and the agent still needs podside to end in order."""
    with Side() as short:
        short.done("capture", netns)
        short.process.send_signal(2)
        short.process.send_signal(1)
        assert short.done("capture", netns).written == ()
        short.process.terminate()
        assert short.process.wait(kit.SECONDS) == -15


def test_no_descriptor_reaches_a_child(netns: NetNs) -> None:
    """What the agent inherits to podside stops there."""
    with Side() as short:
        short.done("capture", netns)
        pid = short.process.pid
        for fd in leaks.open_fds(pid):
            if fd > 2:
                # One that is closed meanwhile reaches nobody.
                with suppress(FileNotFoundError), open(f"/proc/{pid}/fdinfo/{fd}") as info:
                    flags = next(line for line in info if line.startswith("flags:"))
                    assert int(flags.split()[1], 8) & os.O_CLOEXEC
