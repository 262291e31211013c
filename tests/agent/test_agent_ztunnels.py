"""The agent and several ztunnels, good ones and bad ones."""

import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from pyztun import PeerClosed
from pyztun.protocol import zds
from pyztun.testing import AckingZtunnel, ScriptedZtunnel
from support.agent import Agent
from support.pods import Pod
from support.programs import Daemon

pytestmark = pytest.mark.needs_named_netns


def snapshot(ztunnel: ScriptedZtunnel) -> list[zds.Request]:
    """Agrees to all of a snapshot; returns what was said before SnapshotSent."""
    said: list[zds.Request] = []
    while True:
        with ztunnel.request() as request:
            request.ack()
            if isinstance(request.message, zds.SnapshotSent):
                return said
            said.append(request.message)


def test_adds_go_to_the_newest_and_dels_to_all(agent: Agent, make_pod: Callable[[], Pod]) -> None:
    one, two = make_pod(), make_pod()
    with AckingZtunnel(agent.zds) as old:
        agent.wait_for_ztunnels(1)
        agent.must_add(one, uid="one")
        with AckingZtunnel(agent.zds) as new:
            agent.wait_for_ztunnels(2)
            assert list(new.workloads) == ["one"]
            assert agent.must_add(two, uid="two")["ztunnels"] == [2]
            assert (list(old.workloads), list(new.workloads)) == (["one"], ["one", "two"])
            assert agent.workloads()["one"]["ztunnels"] == [1, 2]
            assert agent.delete("one").status == 200
            assert (list(old.workloads), list(new.workloads)) == ([], ["two"])


def test_a_surviving_older_one_is_told_what_it_missed(
    agent: Agent, make_pod: Callable[[], Pod]
) -> None:
    pods = [make_pod() for _ in range(3)]
    with AckingZtunnel(agent.zds) as old:
        agent.wait_for_ztunnels(1)
        agent.must_add(pods[0], uid="0")
        with AckingZtunnel(agent.zds):
            agent.wait_for_ztunnels(2)
            agent.must_add(pods[1], uid="1")
            agent.must_add(pods[2], uid="2")
            agent.delete("1")
        old.wait_for(lambda workloads: set(workloads) == {"0", "2"})
        agent.wait_for("2", "ready", ztunnels=[1])


def test_one_that_has_not_said_hello_does_not_count(agent: Agent, pod: Pod) -> None:
    with AckingZtunnel(agent.zds), ScriptedZtunnel(agent.zds, hello=False):
        while len(agent.status()["ztunnels"]) < 2:
            os.sched_yield()
        assert agent.must_add(pod)["ztunnels"] == [1]
        assert [each["newest"] for each in agent.status()["ztunnels"]] == [True, False]


def test_snapshot_has_the_order_of_the_adds(agent: Agent, make_pod: Callable[[], Pod]) -> None:
    for uid in ("c", "a", "b"):
        agent.add(make_pod(), uid=uid)
    for _ in range(2):
        with ScriptedZtunnel(agent.zds) as ztunnel:
            assert [each.uid for each in snapshot(ztunnel)] == ["c", "a", "b"]  # type: ignore[union-attr]


def test_snapshot_leaves_out_what_is_gone(agent: Agent, make_pod: Callable[[], Pod]) -> None:
    here, gone = make_pod(), make_pod()
    agent.add(here, uid="here")
    agent.add(gone, uid="gone")
    gone.delete()
    agent.wait_for("gone", "degraded", "netns gone")
    with ScriptedZtunnel(agent.zds) as ztunnel:
        assert [each.uid for each in snapshot(ztunnel)] == ["here"]  # type: ignore[union-attr]


def test_change_during_a_snapshot_follows_it(agent: Agent, make_pod: Callable[[], Pod]) -> None:
    one, two, three = make_pod(), make_pod(), make_pod()
    agent.add(one, uid="one")
    agent.add(two, uid="two")
    with ScriptedZtunnel(agent.zds) as ztunnel, ThreadPoolExecutor() as pool:
        with ztunnel.request() as first:
            adding = pool.submit(agent.add, three, uid="three")
            deleting = pool.submit(agent.delete, "two")
            agent.wait_until(lambda found: set(found) == {"one", "three"})
            first.ack()
        served = {"one"}
        while not (adding.done() and deleting.done()):
            with ztunnel.request() as request:
                if isinstance(request.message, zds.Add):
                    served.add(request.uid)
                elif isinstance(request.message, zds.Del):
                    served.discard(request.uid)
                request.ack()
            if served == {"one", "three"} and isinstance(request.message, zds.Del):
                break
        assert adding.result(10).status == deleting.result(10).status == 200
        assert served == {"one", "three"}


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["hello", "answer"])
def test_overdue_one_is_dropped(agent: Agent, phase: str) -> None:
    with ScriptedZtunnel(agent.zds, hello=phase == "answer") as ztunnel:
        began = time.monotonic()
        assert ztunnel.wait_closed(20)
        assert 4.5 < time.monotonic() - began < 10
    agent.daemon.stderr.wait_for("no answer to " + ("Hello" if phase == "hello" else "Snapshot"))
    assert agent.status()["ztunnels"] == []


@pytest.mark.slow
def test_late_answer_is_never_taken_for_the_next(agent: Agent, pod: Pod) -> None:
    with ScriptedZtunnel(agent.zds, timeout=10) as late:
        snapshot(late)
        reply = agent.add(pod, uid="u", timeout=30)  # nobody answers: the connection is dropped
        assert reply.error == "no-ztunnel"
        with late.request() as request, AckingZtunnel(agent.zds):
            agent.wait_for("u", "ready", ztunnels=[2])
            with pytest.raises(OSError, match="EPIPE"):
                request.nack("too late")
        assert agent.workloads()["u"]["ztunnels"] in ([2], [])


BAD = {
    "garbage": (b"\xff\xff", 0),
    "unasked": (zds.ack(), 0),
    "descriptor": (zds.ack(), 1),
    "oversize": (b"\n" * 1025, 0),
    "hello again": (zds.hello(), 0),
}


@pytest.mark.parametrize("what", BAD)
def test_what_breaks_the_protocol_ends_that_connection_alone(
    agent: Agent, pod: Pod, what: str
) -> None:
    with AckingZtunnel(agent.zds) as good, ScriptedZtunnel(agent.zds) as bad:
        snapshot(bad)
        agent.wait_for_ztunnels(2)
        before = agent.settled_fds()
        with open(os.devnull) as file:
            data, descriptors = BAD[what]
            bad.send_raw(data, [file] * descriptors)
            assert bad.wait_closed(10)
        agent.wait_for_ztunnels(1)
        assert agent.must_add(pod, uid="u")["ztunnels"] == [1]
        assert list(good.workloads) == ["u"]
        agent.delete("u")
        agent.wait_for_fds(lambda fds: len(fds) == len(before) - 1)


def test_second_answer_is_not_taken_for_that_of_the_next_request(
    agent: Agent, make_pod: Callable[[], Pod]
) -> None:
    one, two = make_pod(), make_pod()
    with ScriptedZtunnel(agent.zds) as ztunnel, ThreadPoolExecutor() as pool:
        snapshot(ztunnel)
        first = pool.submit(agent.add, one, uid="1")
        with ztunnel.request() as request:
            second = pool.submit(agent.add, two, uid="2")
            agent.wait_until(lambda found: "2" in found)
            request.answer_twice()
        assert first.result(10).error in ("", "no-ztunnel")
        assert second.result(10).error == "no-ztunnel"
        with pytest.raises(PeerClosed):
            ztunnel.request()


def test_older_one_lets_go_of_a_netns_that_was_replaced(
    agent: Agent, make_pod: Callable[[], Pod]
) -> None:
    one, two = make_pod(), make_pod()
    with AckingZtunnel(agent.zds) as old:
        agent.wait_for_ztunnels(1)
        agent.must_add(one, uid="u")
        with AckingZtunnel(agent.zds) as new:
            agent.wait_for_ztunnels(2)
            added = agent.must_add(two, uid="u")
            assert new.workloads == {"u": added["cookie"]}
            old.wait_for(lambda workloads: workloads == {})
        old.wait_for(lambda workloads: workloads == {"u": added["cookie"]})


def test_first_message_that_is_no_hello(agent: Agent) -> None:
    with ScriptedZtunnel(agent.zds, hello=False) as ztunnel:
        ztunnel.send_raw(b"\xff")
        assert ztunnel.wait_closed(10)


def test_unknown_version_and_unknown_fields_are_accepted(agent: Agent, pod: Pod) -> None:
    with ScriptedZtunnel(agent.zds, hello=False) as ztunnel, ThreadPoolExecutor() as pool:
        ztunnel.send_raw(b"\x08\x07\x7a\x01x")
        snapshot(ztunnel)
        adding = pool.submit(agent.add, pod)
        ztunnel.request().close()
        ztunnel.send_raw(b"\x0a\x03\x7a\x01x\x7a\x01y")
        assert adding.result(10).status == 200


def test_refused_snapshot_ends_the_connection(agent: Agent) -> None:
    with ScriptedZtunnel(agent.zds) as ztunnel:
        ztunnel.request().nack("no")
        assert ztunnel.wait_closed(10)


def test_refused_add_in_a_snapshot_does_not_stop_it(
    agent: Agent, make_pod: Callable[[], Pod]
) -> None:
    agent.add(make_pod(), uid="bad")
    agent.add(make_pod(), uid="good")

    def answer(request: object) -> None:
        if getattr(request, "uid", "") == "bad":
            request.nack("no")  # type: ignore[attr-defined]
        else:
            request.ack()  # type: ignore[attr-defined]

    with AckingZtunnel(agent.zds, answer=answer):
        agent.wait_for("good", "ready")
        agent.wait_for("bad", "pending", "refused by ztunnel: no")


@pytest.mark.slow
def test_accepts_are_paced(agent: Agent) -> None:
    """Each costs a snapshot: five at once, then five a second."""
    with ExitStack() as stack:
        began = time.monotonic()
        made = [stack.enter_context(ScriptedZtunnel(agent.zds)) for _ in range(10)]
        for each in made:
            each.request(10).ack()
        assert 0.9 < time.monotonic() - began < 8


@pytest.mark.slow
def test_there_is_room_for_a_newcomer(agent: Agent) -> None:
    """Of more than 64 the oldest goes."""
    with ExitStack() as stack:
        first = stack.enter_context(AckingZtunnel(agent.zds))
        agent.wait_for_ztunnels(1)
        for _ in range(64):
            stack.enter_context(AckingZtunnel(agent.zds))
        while first.end is None:
            os.sched_yield()
        agent.wait_for_ztunnels(64, 30)


@pytest.mark.needs_root
def test_stranger_is_no_ztunnel(agent: Agent, stranger: list[str]) -> None:
    del stranger
    agent.daemon.kill()
    agent.begin("--mode", "0666")
    pid = os.fork()
    if pid == 0:
        os.setuid(4242)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(agent.zds)
            os._exit(len(sock.recv(10)))
    assert os.waitpid(pid, 0)[1] == 0
    agent.daemon.stderr.wait_for("uid 4242 may not be a ztunnel")


def test_both_real_programs(
    agent: Agent, make_pod: Callable[[], Pod], start: Callable[..., Daemon]
) -> None:
    pods = [make_pod() for _ in range(3)]
    first = start("--zds", agent.zds)
    agent.wait_for_ztunnels(1)
    for pod in pods:
        agent.must_add(pod)
        assert not pod.refuses(15008)
    second = start("--zds", agent.zds)  # an upgrade: both serve
    agent.wait_for_ztunnels(2)
    first.stop()
    for pod in pods:
        assert not pod.refuses(15006)
    assert agent.delete(pods[0].name).status == 200
    assert pods[0].refuses(15008)
    second.kill()
    agent.wait_until(lambda found: all(each["state"] == "pending" for each in found.values()))
    start("--zds", agent.zds)
    agent.wait_until(lambda found: all(each["state"] == "ready" for each in found.values()))
    assert not pods[1].refuses(15001)
    assert not pods[2].refuses(15001)
