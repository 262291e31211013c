"""Keep, Del and SnapshotSent; what is reconciled, and what goes on without an agent."""

from collections.abc import Callable, Iterator

import pytest

from support import zt_zds
from support.pods import Canary, Pod
from support.zt_zds import Node, Start, serves

MakePod = Callable[[], Pod]
MakeCanary = Callable[[Pod], Canary]


@pytest.fixture
def node(start: Start, sock_path: str) -> Iterator[Node]:
    """Before its first SnapshotSent."""
    with Node(start, sock_path, snapshot=False) as node:
        yield node


# ---- one connection ------------------------------------------------------------------------------


def test_workloads_are_served_before_the_snapshot_is_complete(node: Node, pod: Pod) -> None:
    node.link.serve("u", pod)
    assert serves(pod)
    assert node.link.snapshot_sent() == ""
    assert serves(pod)


def test_adds_and_deletes_after_the_snapshot(
    node: Node, make_pod: MakePod, make_canary: MakeCanary
) -> None:
    first, second = make_pod(), make_pod()
    canary = make_canary(first)
    assert node.link.snapshot_sent() == ""
    node.link.serve("u", first)
    node.link.serve("v", second)
    assert node.link.delete("u") == ""
    assert not serves(first)
    assert serves(second)
    first.delete()
    assert canary.died()
    assert node.link.delete("u") == "", "a uid that nobody knows any more"


def test_del_before_the_snapshot_stops_at_its_end(node: Node, pod: Pod) -> None:
    node.link.serve("u", pod)
    assert node.link.delete("u") == ""
    assert serves(pod), "not before SnapshotSent"
    assert node.link.snapshot_sent() == ""
    assert not serves(pod)


def test_del_and_add_again_before_the_snapshot(node: Node, pod: Pod) -> None:
    node.link.serve("u", pod)
    assert node.link.delete("u") == ""
    node.link.serve("u", pod)
    assert node.link.snapshot_sent() == ""
    assert serves(pod)


def test_keep_of_an_unknown_uid_starts_nothing(node: Node, pod: Pod) -> None:
    assert node.link.keep("u") == ""
    assert node.link.snapshot_sent() == ""
    assert not serves(pod)


@pytest.mark.parametrize(
    ("request_bytes", "reason"),
    [(zt_zds.keep("u"), "keep after the snapshot"), (zt_zds.SNAPSHOT_SENT, "second snapshot-sent")],
    ids=["keep", "snapshot-sent"],
)
def test_a_violation_ends_the_connection_and_nothing_else(
    node: Node, pod: Pod, request_bytes: bytes, reason: str
) -> None:
    node.link.serve("u", pod)
    assert node.link.snapshot_sent() == ""
    assert reason in node.link.ask(request_bytes)
    assert node.link.has_ended()
    assert serves(pod)
    link = node.reconnect()
    assert link.keep("u") == ""
    assert link.snapshot_sent() == ""
    assert serves(pod)


# ---- the next connection -------------------------------------------------------------------------


def test_what_a_snapshot_leaves_out_stops(
    node: Node, make_pod: MakePod, make_canary: MakeCanary
) -> None:
    added, kept, left_out = make_pod(), make_pod(), make_pod()
    canary = make_canary(left_out)
    for uid, pod in (("added", added), ("kept", kept), ("left out", left_out)):
        node.link.serve(uid, pod)
    assert node.link.snapshot_sent() == ""
    link = node.reconnect()
    link.serve("added", added)
    assert link.keep("kept") == ""
    assert serves(left_out), "not before SnapshotSent"
    assert link.snapshot_sent() == ""
    assert not serves(left_out)
    assert serves(added)
    assert serves(kept)
    left_out.delete()
    assert canary.died()


def test_an_empty_snapshot_stops_all(node: Node, make_pod: MakePod) -> None:
    some = [make_pod() for _ in range(3)]
    for pod in some:
        node.link.serve(pod.name, pod)
    assert node.link.snapshot_sent() == ""
    assert node.reconnect().snapshot_sent() == ""
    assert not any(serves(pod) for pod in some)


def test_a_snapshot_that_is_cut_stops_nothing(node: Node, make_pod: MakePod) -> None:
    """Names of a cut snapshot do not count in the next one either."""
    first, second = make_pod(), make_pod()
    node.link.serve("first", first)
    node.link.serve("second", second)
    assert node.link.snapshot_sent() == ""
    assert node.reconnect().keep("first") == ""
    link = node.reconnect()
    assert serves(first)
    assert serves(second)
    assert link.keep("second") == ""
    assert link.snapshot_sent() == ""
    assert not serves(first)
    assert serves(second)


def test_everything_serves_while_there_is_no_agent(node: Node, make_pod: MakePod) -> None:
    some = [make_pod() for _ in range(3)]
    for pod in some:
        node.link.serve(pod.name, pod)
    assert node.link.snapshot_sent() == ""
    node.lose_agent()
    assert some[0].resets(15001)
    node.daemon.stderr.wait_for("cannot-connect")
    assert all(serves(pod) for pod in some)
    link = node.new_agent()
    assert all(serves(pod) for pod in some)
    for pod in some:
        assert link.keep(pod.name) == ""
    assert link.snapshot_sent() == ""
    assert all(serves(pod) for pod in some)


def test_the_pods_listeners_are_not_made_anew_by_a_snapshot(node: Node, pod: Pod) -> None:
    """A connection that is queued on them would be lost."""
    node.link.serve("u", pod)
    assert node.link.snapshot_sent() == ""
    before = zt_zds.listeners(node.daemon)
    link = node.reconnect()
    link.serve("u", pod)
    assert link.snapshot_sent() == ""
    link.serve("u", pod)
    assert zt_zds.listeners(node.daemon) == before


# ---- the same again ------------------------------------------------------------------------------


def test_an_add_again_is_confirmed_also_with_another_info(node: Node, pod: Pod) -> None:
    assert node.link.snapshot_sent() == ""
    node.link.serve("u", pod)
    before = zt_zds.listeners(node.daemon)
    for changed in (zt_zds.info(), zt_zds.info("other", "names", "here"), zt_zds.info(), b""):
        assert node.link.add("u", pod, changed) == ""
        assert zt_zds.listeners(node.daemon) == before
    assert serves(pod)
    assert node.link.delete("u") == ""
    assert not serves(pod)


def test_the_same_netns_by_another_path_is_the_same(node: Node, pod: Pod) -> None:
    """What counts is the namespace: here a bind mount, there /proc of a process in it."""
    node.link.serve("u", pod)
    before = zt_zds.listeners(node.daemon)
    with zt_zds.another_fd(pod) as fd:
        node.link.serve("u", fd)
    assert zt_zds.listeners(node.daemon) == before


@pytest.mark.parametrize("during_snapshot", [False, True])
def test_listeners_that_root_in_the_pod_destroyed_are_made_again(
    node: Node, pod: Pod, during_snapshot: bool
) -> None:
    """Alone, and if that were yet to come by an Add."""
    node.link.serve("u", pod)
    assert node.link.snapshot_sent() == ""
    if during_snapshot:
        node.reconnect()
    for _ in range(2):
        done = pod.exec("ss", "-K", "-ltnH", "sport = :15008")
        if ":15008" not in done.stdout:
            pytest.skip(f"this kernel cannot destroy sockets: {done.stderr.strip()}")
        node.daemon.stderr.wait_for("listeners-mended")  # the first time
    assert node.link.add("u", pod, zt_zds.info("renamed")) == ""
    assert serves(pod)
    if during_snapshot:
        assert node.link.snapshot_sent() == ""
    assert serves(pod)
    assert len(zt_zds.listeners(node.daemon)) == len(zt_zds.PORTS)
