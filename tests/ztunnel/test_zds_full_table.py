"""A descriptor table that is full, and a limit of workloads: refused, told, and healed later."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from pyztun.ztunnel.limits import share_out
from pyztun.ztunnel.settings import ZdsSettings, parse
from pyztun.ztunnel.zds_form import ZdsForm
from support import pods, zt_zds
from support.pods import Pod
from support.zt_zds import Link, Node, Start, add, ports, serves

MakePod = Callable[[], Pod]
SMALL = 660
"""Of RLIMIT_NOFILE: most of it is kept for what a peer may send."""


@pytest.fixture
def node(start: Start, sock_path: str) -> Iterator[Node]:
    with Node(start, sock_path) as node:
        yield node


@contextmanager
def room_for(node: Node, more: int, connected: bool = True) -> Iterator[None]:
    """The daemon may open so many more descriptors (the soft limit; a free number below it)."""
    daemon = node.daemon
    if connected:  # behind its ACK an Add closes the netns: this answer comes after it
        assert node.link.delete("nobody") == ""
    numbers = daemon.fds()
    free = [number for number in range(len(numbers) + more + 1) if number not in numbers]
    before = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (free[more], before[1]))
    try:
        yield
    finally:
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, before)


@pytest.fixture
def chain() -> Iterator[Callable[[int], list[int]]]:
    """A function that makes so many nameless netns, as descriptors."""
    with ExitStack() as stack:

        def make(count: int) -> list[int]:
            made = [pods.nameless_netns() for _ in range(count)]
            for fd in made:
                stack.callback(os.close, fd)
            return made

        yield make


# ---- EMFILE --------------------------------------------------------------------------------------


def test_a_netns_that_does_not_arrive_is_refused_and_the_conversation_goes_on(
    node: Node, make_pod: MakePod
) -> None:
    """The kernel drops the descriptor and delivers the bytes; the next message is whole."""
    served, taken, other, *deleted = [make_pod() for _ in range(5)]
    for pod in (served, *deleted):
        node.link.serve(pod.name, pod)
    with zt_zds.blocker(taken):
        # What is pending keeps its descriptor, so that there is no gap below the listeners.
        assert "15008" in node.link.add("taken", taken)
        with room_for(node, 0):
            refused_then_served(node, served, other, deleted)
    assert serves(served)
    assert serves(other)
    assert not any(serves(pod) for pod in deleted)


def refused_then_served(node: Node, served: Pod, other: Pod, deleted: list[Pod]) -> None:
    for _ in range(3):
        assert "RLIMIT_NOFILE" in node.link.add("other", other)
    assert "RLIMIT_NOFILE" in node.link.add(served.name, served)
    assert ports(other) == set()
    for pod in deleted:  # which makes room for six
        assert node.link.delete(pod.name) == ""
    node.link.serve("other", other)
    assert ports(other) == zt_zds.PORTS


@pytest.mark.parametrize("more", [1, 2, 3])
def test_listeners_that_do_not_fit_are_pending_and_made_later(
    node: Node, pod: Pod, more: int
) -> None:
    """One for the netns, three for the listeners."""
    with room_for(node, more):
        reason = node.link.add("u", pod)
        assert "EMFILE" in reason
        assert ports(pod) == set(), "all or none"
        assert node.link.delete("nobody") == ""
    zt_zds.until(lambda: ports(pod) == zt_zds.PORTS, "healed without being asked")
    assert serves(pod)


def test_what_runs_goes_on_where_a_snapshot_finds_no_room(node: Node, make_pod: MakePod) -> None:
    """The uid was named, though its netns did not arrive."""
    served, gone = make_pod(), make_pod()
    node.link.serve("served", served)
    node.link.serve("gone", gone)
    link = node.reconnect()
    with room_for(node, 0):
        assert "RLIMIT_NOFILE" in link.add("served", served)
        assert link.snapshot_sent() == ""
    assert serves(served)
    assert not serves(gone)


def test_an_agent_is_dialled_again_once_there_is_room(node: Node, pod: Pod) -> None:
    node.link.serve("u", pod)
    with room_for(node, 0):
        node.link.close()
        node.daemon.stderr.wait_for("disconnected")
        with room_for(node, 0, connected=False):  # the number of the connection is free again
            node.daemon.stderr.wait_for("cannot-connect")
    node.link = first_that_says_hello(node)
    assert node.link.keep("u") == ""
    assert node.link.snapshot_sent() == ""
    assert serves(pod)


def first_that_says_hello(node: Node) -> Link:
    """A connection that was made and had no room for what follows is closed again."""
    while True:
        link = node.agent.accept_raw()
        if message := link.receive():
            assert message == zt_zds.HELLO
            return link


def test_clients_of_a_pod_are_served_once_there_is_room(node: Node, pod: Pod) -> None:
    node.link.serve("u", pod)
    with room_for(node, 0):
        client = pod.connect(15008)
        assert node.link.delete("nobody") == ""
    with client, pytest.raises(ConnectionResetError):
        client.recv(10)


# ---- the limit -----------------------------------------------------------------------------------


@pytest.mark.needs_netns
def test_as_many_as_the_table_has_room_for_and_not_one_more(
    start: Start, sock_path: str, chain: Callable[[int], list[int]]
) -> None:
    form = parse(["--zds", sock_path], {}).form
    assert isinstance(form, ZdsSettings)
    budget = share_out(SMALL, ZdsForm(form, "human").needs, 100_000)
    count = budget.max_workloads
    some = chain(count + 1)
    wrap = [f"--nofile={SMALL}:{SMALL}"]
    with Node(start, sock_path, wrap=["prlimit", *wrap]) as node:
        for number in range(count):
            assert node.link.add(str(number), some[number]) == ""
        assert f"limit of {count} workloads" in node.link.add("more", some[count])
        assert ports(some[count]) == set()
        # What needs no more room is done: a confirmation, a replacement, a Del.
        assert node.link.add("0", some[0]) == ""
        assert node.link.add("0", some[count]) == ""
        assert node.link.delete("0") == ""
        assert node.link.add("more", some[0]) == ""
        # Many descriptors at once find room, too.
        assert "descriptors" in node.link.ask(add("u"), [some[1]] * 253)
        assert node.link.has_ended()
        node.reconnect()


def test_max_workloads_counts_what_is_pending(
    start: Start, sock_path: str, make_pod: MakePod
) -> None:
    first, taken, third = make_pod(), make_pod(), make_pod()
    with Node(start, sock_path, "--max-workloads", "2") as node:
        node.link.serve("first", first)
        with zt_zds.blocker(taken):
            assert "15008" in node.link.add("taken", taken)
            assert "limit of 2 workloads" in node.link.add("third", third)
            assert node.link.delete("taken") == ""
            node.link.serve("third", third)
        assert not node.holds(taken)
        assert serves(third)
