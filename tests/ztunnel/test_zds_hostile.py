"""Whatever an agent says, and however: one answer each, nothing stops, nothing is forgotten."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyztun import OwnedFd
from support import zt_zds
from support.pods import Pod
from support.zt_daemon import frozen
from support.zt_zds import SNAPSHOT_SENT, Node, Start, add, blocker, delete, field, keep, serves

MakePod = Callable[[], Pod]
MANY = 253
"""Descriptors that one message can carry."""


@pytest.fixture
def node(start: Start, sock_path: str) -> Iterator[Node]:
    with Node(start, sock_path) as node:
        yield node


@pytest.fixture
def null() -> Iterator[int]:
    fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


# ---- violations ----------------------------------------------------------------------------------

# name: bytes, descriptors, part of the answer
VIOLATIONS: dict[str, tuple[bytes, int, str]] = {
    "garbage": (b"\xff\xff", 0, "not a WorkloadRequest"),
    "garbage with a netns": (b"\xff\xff", 1, "not a WorkloadRequest"),
    "an Add that is cut": (add("u")[:-1], 1, "not a WorkloadRequest"),
    "a uid that is not UTF-8": (add(b"\xff"), 1, "not a WorkloadRequest"),
    "a Hello": (zt_zds.HELLO, 0, "without a payload"),
    "an ACK": (zt_zds.ACK, 0, "add with 0 descriptors"),
    "a request of tomorrow": (field(4, b""), 0, "without a payload"),
    "an unknown field alone": (field(99, b"new"), 1, "without a payload"),
    "an Add without info": (field(1, field(1, "u")), 1, "add without workload_info"),
    "an Add without a uid": (field(1, field(2, zt_zds.info())), 1, "add without a uid"),
    "an Add with an empty uid": (add(""), 1, "add without a uid"),
    "a Keep without a uid": (field(5, b""), 0, "keep without a uid"),
    "a Del without a uid": (field(2, b""), 0, "del without a uid"),
    "a Del with the field of the others": (field(2, field(1, "u")), 0, "del without a uid"),
    "an Add without a descriptor": (add("u"), 0, "add with 0 descriptors"),
    "an Add with two": (add("u"), 2, "add with 2 descriptors"),
    "an Add with three": (add("u"), 3, "add with 3 descriptors"),
    "an Add with all that fit": (add("u"), MANY, f"add with {MANY} descriptors"),
    "a Keep with one": (keep("u"), 1, "keep with 1 descriptors"),
    "a Del with one": (delete("u"), 1, "del with 1 descriptors"),
    "a SnapshotSent with one": (SNAPSHOT_SENT, 1, "snapshot_sent with 1 descriptors"),
    "1025 bytes": (SNAPSHOT_SENT + field(99, b"x" * 1019), 0, "1024 bytes"),
    "1025 bytes with a netns": (add("u", field(1, "n" * 1013)), 1, "1024 bytes"),
    "much more": (add("u", field(1, "n" * 60_000)), 1, "1024 bytes"),
}


@pytest.mark.slow
@pytest.mark.parametrize("snapshot", [False, True], ids=["before SnapshotSent", "after it"])
def test_a_violation_is_refused_and_ends_the_connection_and_nothing_else(
    node: Node, make_pod: MakePod, snapshot: bool
) -> None:
    served, taken, other = make_pod(), make_pod(), make_pod()
    node.link.serve("served", served)
    with blocker(taken), other.opened() as fd:
        assert "EADDRINUSE" in node.link.add("pending", taken)
        open_fds = len(node.daemon.fds())
        for what, (data, count, reason) in VIOLATIONS.items():
            begin_with_a_snapshot(node)  # so the next dial comes soon, too
            if not snapshot:
                node.reconnect()
            assert reason in node.link.ask(data, [fd] * count), what
            assert node.link.has_ended(), what
            node.reconnect()
            assert serves(served), what
            assert zt_zds.ports(other) == set(), what
            assert node.holds(taken), what
        begin_with_a_snapshot(node)
        zt_zds.until(lambda: len(node.daemon.fds()) <= open_fds, "nothing of theirs is open")
    zt_zds.until(lambda: zt_zds.ports(taken) == zt_zds.PORTS, "the pending one takes over")
    assert serves(served)


def begin_with_a_snapshot(node: Node) -> None:
    """A new connection, in whose snapshot both are named."""
    link = node.reconnect()
    assert [link.keep("served"), link.keep("pending"), link.snapshot_sent()] == ["", "", ""]


def test_1024_bytes_are_served(node: Node, pod: Pod) -> None:
    message = add("u", field(1, "n" * 1012))
    assert len(message) == zt_zds.MAX_MESSAGE
    with pod.opened() as fd:
        assert node.link.ask(message, [fd]) == ""
    assert serves(pod)


def test_fields_of_tomorrow_are_skipped(node: Node, pod: Pod) -> None:
    new = field(77, b"whatever")
    inner = new + field(1, "u") + field(2, new + zt_zds.info() + new) + new
    with pod.opened() as fd:
        assert node.link.ask(new + field(1, inner) + new, [fd]) == ""
    assert serves(pod)
    assert node.link.ask(field(2, new + field(2, "u"))) == ""
    assert not serves(pod)


def test_nothing_behind_a_violation_is_done_or_answered(node: Node, make_pod: MakePod) -> None:
    before, behind = make_pod(), make_pod()
    with before.opened() as first, behind.opened() as second:
        with frozen(node.daemon):
            node.link.send(add("before"), [first])
            node.link.send(keep("too late"))
            node.link.send(add("behind"), [second])
        assert node.link.answer() == ""
        assert "keep after the snapshot" in node.link.answer()
        assert node.link.has_ended()
    node.reconnect()
    assert serves(before)
    assert zt_zds.ports(behind) == set()


# ---- what is no netns ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/dev/null", "/", "/proc/self/ns/mnt", "/proc/self/ns/user", "/proc/self/status"],
)
def test_a_descriptor_that_is_no_netns_is_refused_for_good(node: Node, path: str) -> None:
    before = len(node.daemon.fds())
    with OwnedFd(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        assert "not a network namespace" in node.link.add("u", fd.fileno())
    zt_zds.until(lambda: len(node.daemon.fds()) <= before, "closed, and not pending")


def test_our_own_netns_is_refused(node: Node) -> None:
    with open(f"/proc/{node.daemon.pid}/ns/net") as home:
        assert node.link.add("u", home.fileno()) == "home netns"
        assert node.link.delete("u") == ""


def test_a_refusal_that_names_a_long_uid_fits(node: Node, pod: Pod) -> None:
    """A uid may be as long as a message; `error_of` checks each answer."""
    holder = "é" * 490
    node.link.serve(holder, pod)
    reason = node.link.add("u", pod)
    assert reason.startswith(f"this netns is served for uid {'é' * 100}")
    assert len(reason.encode()) > 900
    assert node.link.delete("u") == ""
    assert node.link.delete(holder) == ""


def test_a_uid_that_would_spoil_a_terminal_is_written_out(node: Node, pod: Pod) -> None:
    node.link.serve("a\x1b[2J\nb", pod)
    reason = node.link.add("u", pod)
    assert "\x1b" not in reason
    assert "\n" not in reason
    node.end()
    assert "\x1b" not in "".join(node.daemon.stderr.all())


# ---- many at once --------------------------------------------------------------------------------


def test_a_hundred_queued_requests_have_a_hundred_answers_in_their_order(
    node: Node, make_pod: MakePod, null: int
) -> None:
    some = [make_pod() for _ in range(4)]
    expected: list[str] = []
    with ExitStack() as stack, frozen(node.daemon):
        fds = [stack.enter_context(pod.opened()) for pod in some]
        for turn in range(100):
            which = turn // 5 % 4
            data, rights, answer = [
                (add(f"u{which}"), [fds[which]], ""),
                (add("second"), [fds[which]], f"uid u{which}"),
                (add("none"), [null], "not a network namespace"),
                (delete(f"u{which}"), [], ""),
                (delete("nobody"), [], ""),
            ][turn % 5]
            node.link.send(data, rights)
            expected.append(answer)
    for number, part in enumerate(expected):
        answer = node.link.answer()
        assert (part in answer, bool(part)) == (True, bool(answer)), (number, answer)
    assert node.link.delete("second") == ""
    assert not any(serves(pod) for pod in some)


def test_who_reads_no_answers_loses_his_connection_and_nothing_else(node: Node, pod: Pod) -> None:
    node.link.serve("u", pod)
    with suppress(ConnectionError):
        for _ in range(100_000):
            node.link.send(delete("nobody"))
    node.reconnect()
    assert serves(pod)
    assert node.link.keep("u") == ""
    assert node.link.snapshot_sent() == ""
    assert serves(pod)


# ---- noise ---------------------------------------------------------------------------------------

GOLDEN = [add("u"), keep("u"), delete("u"), SNAPSHOT_SENT, add("u", b""), field(99, b"")]
mutated = st.builds(
    lambda data, at, byte: data[:at] + bytes([byte]) + data[at + 1 :],
    st.sampled_from(GOLDEN),
    st.integers(0, 15),
    st.integers(0, 255),
)
packets = st.tuples(
    st.one_of(st.sampled_from(GOLDEN), mutated, st.binary(max_size=40)),
    st.lists(st.sampled_from(["netns", "null"]), max_size=3),
)


@pytest.mark.slow
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(noise=st.lists(packets, max_size=8))
def test_noise(
    node: Node, shared_pods: tuple[Pod, int], null: int, noise: list[tuple[bytes, list[str]]]
) -> None:
    """Each packet has one answer until the connection ends; the pod that runs goes on."""
    served, netns = shared_pods
    link = node.reconnect()
    link.serve("served", served)
    assert link.snapshot_sent() == ""
    sent = 0
    with suppress(ConnectionError):
        for data, kinds in noise:
            link.send(data, [netns if kind == "netns" else null for kind in kinds])
            sent += 1
            if not data:
                break  # the end
    answers = 0
    with suppress(ConnectionError):
        while answers < sent and (message := link.receive()):
            zt_zds.error_of(message)
            answers += 1
    assert answers <= sent
    node.reconnect()
    assert serves(served)


@pytest.fixture
def shared_pods(make_pod: MakePod) -> Iterator[tuple[Pod, int]]:
    """One to serve, and a descriptor of another one."""
    with make_pod().opened() as fd:
        yield make_pod(), fd
