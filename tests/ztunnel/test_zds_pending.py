"""What could not be served waits, with its netns open, and is served as soon as that works."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from pyztun import OwnedFd
from pyztun.protocol.zds import WorkloadInfo
from pyztun.ztunnel.pending import FIRST_RETRY, LAST_RETRY, NEVER, Pending, Waiting
from support import zt_zds
from support.pods import Canary, Pod
from support.zt_zds import Node, Start, blocker, ports, serves, until

MakePod = Callable[[], Pod]
MakeCanary = Callable[[Pod], Canary]


@pytest.fixture
def node(start: Start, sock_path: str) -> Iterator[Node]:
    with Node(start, sock_path) as node:
        yield node


def healed(pod: Pod) -> None:
    until(lambda: ports(pod) == zt_zds.PORTS, "healed")
    assert serves(pod)


def refused(node: Node, uid: str, pod: Pod) -> None:
    """An Add of a pod whose 15008 is taken: NACK, and nothing of ours in the pod."""
    reason = node.link.add(uid, pod)
    assert "15008" in reason
    assert "EADDRINUSE" in reason
    assert ports(pod) <= {15008}
    assert node.holds(pod)


# ---- a port that is taken ------------------------------------------------------------------------


def test_it_heals_once_the_port_is_free(node: Node, pod: Pod) -> None:
    with blocker(pod):
        refused(node, "u", pod)
    healed(pod)
    assert node.holds(pod) == 1
    node.daemon.stderr.wait_for("listeners-ready")


@pytest.mark.parametrize("port", sorted(zt_zds.PORTS))
def test_whichever_port_is_taken_none_is_made(node: Node, pod: Pod, port: int) -> None:
    with blocker(pod, port):
        assert f":{port}" in node.link.add("u", pod)
        assert ports(pod) == {port}
    healed(pod)


def test_others_are_served_meanwhile(node: Node, make_pod: MakePod) -> None:
    some = [make_pod() for _ in range(3)]
    with blocker(some[0]):
        refused(node, "0", some[0])
        for number in (1, 2):
            node.link.serve(str(number), some[number])
            assert serves(some[number])
        assert node.link.delete("1") == ""
        assert not serves(some[1])
    healed(some[0])


def test_an_add_again_is_tried_at_once(node: Node, pod: Pod) -> None:
    """Each Add is an attempt, and answered with how it went."""
    with blocker(pod):
        for _ in range(5):
            refused(node, "u", pod)
    node.link.serve("u", pod)
    assert serves(pod)
    assert node.holds(pod) == 1


def test_del_ends_it(node: Node, pod: Pod, make_canary: MakeCanary) -> None:
    canary = make_canary(pod)
    with blocker(pod):
        refused(node, "u", pod)
        assert node.link.delete("u") == ""
        assert not node.holds(pod)
    pod.delete()
    assert canary.died()


def test_an_add_with_another_netns_ends_it(node: Node, make_pod: MakePod) -> None:
    taken, free = make_pod(), make_pod()
    with blocker(taken):
        refused(node, "u", taken)
        node.link.serve("u", free)
        assert not node.holds(taken)
    assert serves(free)


def test_it_heals_after_its_name_is_gone(node: Node, pod: Pod, make_canary: MakeCanary) -> None:
    """What waits keeps the netns alive; Del lets it die."""
    canary = make_canary(pod)
    with blocker(pod):
        refused(node, "u", pod)
        pod.delete()
    node.daemon.stderr.wait_for("listeners-ready")
    assert canary.alive
    assert node.link.delete("u") == ""
    assert canary.died()


def test_many_wait_and_all_heal(node: Node, make_pod: MakePod) -> None:
    some = [make_pod() for _ in range(12)]
    with ExitStack() as stack:
        for pod in some:
            stack.enter_context(blocker(pod))
            refused(node, pod.name, pod)
    for pod in some:
        healed(pod)


def test_a_reason_is_logged_once_however_often_it_is_tried(
    node: Node, pod: Pod, make_pod: MakePod
) -> None:
    with blocker(pod):
        refused(node, "u", pod)
        refused(node, "u", pod)
        # Its backoff ends at 0.2 s and a fifth at most: somebody else's does after it.
        other = make_pod()
        with blocker(other):
            refused(node, "v", other)
        healed(other)
    healed(pod)
    node.end()
    assert " pending " not in "\n".join(node.daemon.stderr.all()), "the reason was in the NACK"


# ---- and the connection --------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["add", "keep"])
def test_it_survives_a_reconnect_that_names_it(node: Node, pod: Pod, named: str) -> None:
    with blocker(pod):
        refused(node, "u", pod)
        link = node.reconnect()
        if named == "add":
            refused(node, "u", pod)
        else:
            assert link.keep("u") == ""
        assert link.snapshot_sent() == ""
        assert node.holds(pod)
    healed(pod)


def test_it_heals_while_there_is_no_agent(node: Node, pod: Pod) -> None:
    with blocker(pod):
        refused(node, "u", pod)
        node.lose_agent()
        node.daemon.stderr.wait_for("cannot-connect")
    healed(pod)
    link = node.new_agent()
    assert link.keep("u") == ""
    assert link.snapshot_sent() == ""
    assert serves(pod)


def test_it_heals_during_the_snapshot_and_before_it(node: Node, pod: Pod) -> None:
    with blocker(pod):
        refused(node, "u", pod)
        node.reconnect()
    healed(pod)
    assert node.link.snapshot_sent() == "", "which leaves it out"
    assert not serves(pod)


def test_a_snapshot_without_it_ends_it(node: Node, pod: Pod, make_canary: MakeCanary) -> None:
    canary = make_canary(pod)
    with blocker(pod):
        refused(node, "u", pod)
        link = node.reconnect()
        assert node.holds(pod), "until SnapshotSent"
        assert link.snapshot_sent() == ""
        assert not node.holds(pod)
    pod.delete()
    assert canary.died()


def test_a_snapshot_is_acknowledged_with_something_pending(
    start: Start, sock_path: str, pod: Pod
) -> None:
    """Readiness does not hang on one workload, which is named."""
    with Node(start, sock_path, snapshot=False) as node, blocker(pod):
        refused(node, "u-that-waits", pod)
        assert node.link.snapshot_sent() == ""
        assert "pending=u-that-waits" in node.daemon.stderr.wait_for(" snapshot ")


# ---- a second uid for a netns --------------------------------------------------------------------


def test_a_second_uid_is_refused_by_the_name_of_the_first_and_takes_over(
    node: Node, pod: Pod
) -> None:
    node.link.serve("holder-1", pod)
    assert "holder-1" in node.link.add("second", pod)
    assert serves(pod)
    assert node.link.delete("holder-1") == ""
    healed(pod)
    assert node.link.delete("second") == ""
    assert not serves(pod)


def test_a_second_uid_is_let_go_by_its_own_del(node: Node, pod: Pod) -> None:
    node.link.serve("first", pod)
    assert node.link.add("second", pod) != ""
    assert node.link.delete("second") == ""
    assert node.holds(pod) == 1
    assert serves(pod)
    assert node.link.delete("first") == ""
    assert not serves(pod)


def test_three_uids_queue_for_one_netns(node: Node, pod: Pod) -> None:
    node.link.serve("1", pod)
    for uid in ("2", "3"):
        assert "uid 1" in node.link.add(uid, pod)
    assert node.link.delete("1") == ""
    healed(pod)
    first, last = ("2", "3") if "uid 2" in node.link.add("3", pod) else ("3", "2")
    assert node.link.delete(first) == ""
    healed(pod)
    assert node.link.add(last, pod) == ""


def test_the_holder_moves_to_another_netns(node: Node, make_pod: MakePod) -> None:
    pod, other = make_pod(), make_pod()
    node.link.serve("first", pod)
    assert "first" in node.link.add("second", pod)
    node.link.serve("first", other)
    healed(pod)
    assert serves(other)


def test_the_holder_is_left_out_of_the_snapshot(node: Node, pod: Pod) -> None:
    """The pod got a new uid while nobody was connected."""
    node.link.serve("before", pod)
    link = node.reconnect()
    assert "before" in link.add("after", pod)
    assert link.snapshot_sent() == ""
    healed(pod)
    assert link.add("after", pod) == ""
    assert link.delete("after") == ""
    assert not serves(pod)


def test_a_uid_that_runs_elsewhere_waits_for_a_netns_that_is_taken(
    node: Node, make_pod: MakePod
) -> None:
    mine, theirs = make_pod(), make_pod()
    node.link.serve("u", mine)
    node.link.serve("v", theirs)
    assert "uid v" in node.link.add("u", theirs)
    assert serves(mine)
    assert node.link.delete("v") == ""
    until(lambda: ports(mine) == set(), "moved")
    healed(theirs)


# ---- a netns that dies ---------------------------------------------------------------------------


def test_the_name_goes_before_the_switch(
    node: Node, make_pod: MakePod, make_canary: MakeCanary
) -> None:
    """The descriptor in the message keeps the netns alive, and then the listeners do."""
    for _ in range(5):
        pod = make_pod()
        canary = make_canary(pod)
        fd = pod.open()
        with OwnedFd(fd):
            pod.delete()
            node.link.send(zt_zds.add("u"), [fd])
        assert node.link.answer() == ""
        assert canary.alive
        assert node.link.delete("u") == ""
        assert canary.died()


@pytest.mark.needs_netns
def test_a_process_ends_with_its_netns_in_between(node: Node) -> None:
    """An agent opens /proc/PID/ns/net of a pod that is ending."""
    for _ in range(5):
        holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec sleep 100"], stdout=subprocess.PIPE
        )
        with holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            with open(f"/proc/{holder.pid}/ns/net") as netns:
                holder.kill()
                node.link.send(zt_zds.add("u"), [netns.fileno()])
        assert node.link.answer() == ""
        assert node.link.delete("u") == ""


# ---- the schedule, without a process -------------------------------------------------------------


def waiting(uid: str, inode: int = 1) -> Waiting:
    netns = OwnedFd(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
    return Waiting(uid, WorkloadInfo("n", "m", "s"), netns, inode, inode)


def test_delays_double_from_a_fifth_of_a_second_to_five(monkeypatch: pytest.MonkeyPatch) -> None:
    one = waiting("u")
    monkeypatch.setattr("pyztun.ztunnel.pending.monotonic", lambda: 1000.0)
    for ideal in (0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0):
        is_new = one.failed("taken")
        assert is_new == (ideal == FIRST_RETRY)
        assert 0.8 * ideal <= one.due - 1000.0 <= min(1.2 * ideal, LAST_RETRY)
    assert (FIRST_RETRY, LAST_RETRY) == (0.2, 5.0)
    one.netns.close()


def test_who_waits_for_a_netns_that_is_let_go_of_is_due() -> None:
    pending = Pending()
    for uid, inode in (("a", 1), ("b", 2), ("c", 1)):
        pending.put(waiting(uid, inode))
    assert pending.next_due() == NEVER
    pending.try_soon(1)
    assert [each.uid for each in pending.due()] == ["a", "c"]
    pending.keep_only({"b"})
    assert pending.uids == ["b"]
    pending.drop("b")
    assert len(pending) == 0
    assert pending.next_due() == NEVER
