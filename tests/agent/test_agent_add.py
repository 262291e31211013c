"""`add` and `del` seen by a caller: what they return, and what they leave behind."""

import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyztun import NetNs
from pyztun.testing import AckingZtunnel, ScriptedZtunnel, ZdsRequest
from support.agent import Agent
from support.pods import Pod

pytestmark = pytest.mark.needs_named_netns


def test_add_returns_when_the_ztunnel_has_acknowledged(agent: Agent, pod: Pod) -> None:
    with AckingZtunnel(agent.zds) as ztunnel, NetNs.from_name(pod.name) as netns:
        agent.wait_for_ztunnels(1)
        added = agent.must_add(pod, uid="u")
        assert ztunnel.workloads == {"u": netns.cookie}
        assert (added["cookie"], added["inode"]) == (netns.cookie, netns.inode)
        assert (added["name"], added["namespace"]) == (pod.name, "default")
        assert added["ztunnels"] == [1]


def test_add_waits_for_the_acknowledgement(agent: Agent, pod: Pod) -> None:
    with ScriptedZtunnel(agent.zds) as ztunnel, ThreadPoolExecutor() as pool:
        ztunnel.request().ack()
        adding = pool.submit(agent.add, pod, uid="u")
        with ztunnel.request() as request:
            assert agent.workloads()["u"]["state"] == "pending"
            assert not adding.done()
            request.ack()
        assert adding.result(10).status == 200


def test_add_without_a_ztunnel_is_kept_and_heals(agent: Agent, pod: Pod) -> None:
    reply = agent.add(pod, uid="u")
    assert (reply.status, reply.error) == (503, "no-ztunnel")
    assert reply.body["workload"]["state"] == "pending"
    assert agent.workloads()["u"]["reason"] == "no ztunnel connected"
    with AckingZtunnel(agent.zds):
        agent.wait_for("u", "ready")


def test_refused_add_tells_why_and_is_offered_again(agent: Agent, pod: Pod) -> None:
    with ScriptedZtunnel(agent.zds) as ztunnel, ThreadPoolExecutor() as pool:
        ztunnel.request().ack()
        adding = pool.submit(agent.add, pod, uid="u")
        with ztunnel.request() as request:
            request.nack("the pod is on fire")
        reply = adding.result(10)
        assert (reply.status, reply.error) == (502, "refused")
        assert "the pod is on fire" in reply.reason
        state = agent.workloads()["u"]
        assert (state["state"], "on fire" in state["reason"]) == ("pending", True)
        with ztunnel.request(5) as again:  # with a backoff of its own
            again.ack()
        agent.wait_for("u", "ready")


def test_offers_of_a_refused_one_come_later_and_later(agent: Agent, pod: Pod) -> None:
    with ScriptedZtunnel(agent.zds, timeout=10) as ztunnel, ThreadPoolExecutor() as pool:
        ztunnel.request().ack()
        pool.submit(agent.add, pod, uid="u")
        for _ in range(3):
            with ztunnel.request() as request:
                request.nack("no")
        with pytest.raises(TimeoutError):  # 0.5 s, 1 s, then 2 s, each up to a fifth less
            ztunnel.request(1.5)
        ztunnel.request().close()


def test_answer_that_does_not_come_in_time_is_told(agent: Agent, pod: Pod) -> None:
    with AckingZtunnel(agent.zds) as ztunnel:
        agent.wait_for_ztunnels(1)
        ztunnel.hold()
        reply = agent.add(pod, uid="u", timeout=0.2)
        assert (reply.status, reply.error) == (504, "timeout")
        assert agent.workloads()["u"]["state"] == "pending"
        ztunnel.release()
        agent.wait_for("u", "ready")


def test_repeated_add_is_idempotent(agent: Agent, pod: Pod) -> None:
    requests: list[ZdsRequest] = []

    def note(request: ZdsRequest) -> None:
        requests.append(request)
        request.ack()

    with AckingZtunnel(agent.zds, answer=note):
        agent.wait_for_ztunnels(1)
        first = agent.must_add(pod)
        assert agent.must_add(pod) == first
        assert len(requests) == 2  # SnapshotSent, one Add


def test_repeated_add_does_not_wait_for_what_others_wait_for(
    agent: Agent, make_pod: Callable[[], Pod]
) -> None:
    """Nothing is to be said of it, whatever is under way."""
    known, other = make_pod(), make_pod()
    with AckingZtunnel(agent.zds) as ztunnel, ThreadPoolExecutor() as pool:
        agent.wait_for_ztunnels(1)
        agent.must_add(known, uid="known")
        ztunnel.hold()
        adding = pool.submit(agent.add, other, uid="other")
        agent.wait_until(lambda found: "other" in found)
        assert agent.add(known, uid="known", timeout=0.5).status == 200
        assert not adding.done()
        ztunnel.release()
        assert adding.result(10).status == 200


def test_other_names_for_the_same_uid_are_sent(agent: Agent, pod: Pod) -> None:
    with ScriptedZtunnel(agent.zds) as ztunnel, ThreadPoolExecutor() as pool:
        ztunnel.request().ack()
        for account in ("one", "two"):
            adding = pool.submit(agent.must_add, pod, uid="u", service_account=account)
            with ztunnel.request() as request:
                assert request.message.info.service_account == account  # type: ignore[union-attr]
                request.ack()
            assert adding.result(10)["service_account"] == account


def test_second_uid_for_a_netns_names_the_first(agent: Agent, pod: Pod) -> None:
    with AckingZtunnel(agent.zds) as ztunnel:
        agent.wait_for_ztunnels(1)
        agent.must_add(pod, uid="first")
        reply = agent.add(pod, uid="second")
        assert (reply.status, reply.error) == (409, "netns-taken")
        assert "first" in reply.reason
        assert list(ztunnel.workloads) == list(agent.workloads()) == ["first"]


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        ("pid:1", "initial-netns"),
        ("nosuch", "no-such-netns"),
        ("/proc/self/ns/uts", "not-a-netns"),
        ("/etc/passwd", "not-a-netns"),
        ("relative/path", "bad-request"),
        ("fd:7", "bad-request"),
    ],
)
def test_what_is_no_workload_is_refused(agent: Agent, reference: str, error: str) -> None:
    reply = agent.add(reference)
    # Process 1 may be in the agent's netns, or one that we may not look at.
    assert reply.error in (error, *(("home-netns", "not-permitted") * (reference == "pid:1"))), (
        reply
    )
    assert agent.workloads() == {}


def test_home_is_refused(agent: Agent) -> None:
    assert agent.add(f"pid:{agent.daemon.pid}").error == "home-netns"


def test_descriptor_of_another_netns_is_refused(agent: Agent, make_pod: Callable[[], Pod]) -> None:
    one, other = make_pod(), make_pod()
    with other.opened() as fd:
        reply = agent.add(one, descriptor=f"/proc/{os.getpid()}/fd/{fd}")
    assert (reply.status, reply.error) == (400, "bad-request")
    assert "another netns" in reply.reason


def test_descriptor_of_a_stranger_is_refused(agent: Agent, pod: Pod) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        reply = agent.add(pod, descriptor=f"/proc/{other.pid}/fd/0")
        other.kill()
    assert reply.error == "bad-request"


def test_uid_of_a_path_survives_a_replacement(agent: Agent, pod: Pod) -> None:
    first = agent.add(pod).body["workload"]
    name = pod.name
    pod.delete()
    with NetNs.create(name) as second:
        try:
            added = agent.add(pod).body["workload"]
        finally:
            second.remove()
    assert added["uid"] == first["uid"]
    assert added["cookie"] != first["cookie"]


@pytest.mark.parametrize("way", ["uid", "name", "path", "cookie", "pid"])
def test_delete_by(agent: Agent, pod: Pod, way: str) -> None:
    with AckingZtunnel(agent.zds) as ztunnel:
        agent.wait_for_ztunnels(1)
        added = agent.must_add(pod, uid="u")
        inside = subprocess.Popen(["ip", "netns", "exec", pod.name, "sleep", "60"])
        with inside:
            while os.stat(f"/proc/{inside.pid}/ns/net").st_ino != added["inode"]:
                os.sched_yield()
            key = {
                "uid": "u",
                "name": pod.name,
                "path": f"/run/netns/{pod.name}",
                "cookie": f"cookie:{added['cookie']}",
                "pid": f"pid:{inside.pid}",
            }[way]
            reply = agent.delete(key)
            inside.kill()
        assert (reply.status, reply.body["unconfirmed"]) == (200, [])
        assert ztunnel.workloads == {}
        assert agent.workloads() == {}
        assert agent.delete("u").status == 404


def test_delete_says_who_has_not_confirmed(agent: Agent, pod: Pod) -> None:
    with AckingZtunnel(agent.zds) as ztunnel:
        agent.wait_for_ztunnels(1)
        agent.must_add(pod, uid="u")
        ztunnel.hold()
        reply = agent.delete("u", timeout=0.2)
        assert (reply.status, reply.body["unconfirmed"]) == (200, [1])
        assert agent.workloads() == {}
        ztunnel.release()
        ztunnel.wait_for(lambda workloads: workloads == {})


def test_delete_ends_a_pending_one(agent: Agent, pod: Pod) -> None:
    with ScriptedZtunnel(agent.zds) as ztunnel, ThreadPoolExecutor() as pool:
        ztunnel.request().ack()
        adding = pool.submit(agent.add, pod, uid="u")
        with ztunnel.request() as request:
            request.nack("no")
        adding.result(10)
        deleting = pool.submit(agent.delete, "u")
        ztunnel.request().ack()  # the Del
        assert deleting.result(10).status == 200
        with pytest.raises(TimeoutError):
            ztunnel.request(1)  # and no offer any more


def test_nothing_is_left_of_a_deleted_one(
    agent: Agent, pod: Pod, make_canary: Callable[[Pod], object]
) -> None:
    canary = make_canary(pod)
    with AckingZtunnel(agent.zds):
        agent.wait_for_ztunnels(1)
        before = agent.settled_fds()
        agent.must_add(pod, uid="u")
        agent.delete("u")
        pod.delete()
        assert canary.died()  # type: ignore[attr-defined]
        assert agent.settled_fds() == before


def test_many_callers_at_once(agent: Agent, make_pod: Callable[[], Pod]) -> None:
    pods = [make_pod() for _ in range(12)]
    with AckingZtunnel(agent.zds) as ztunnel, ThreadPoolExecutor(12) as pool:
        agent.wait_for_ztunnels(1)
        added = list(pool.map(agent.must_add, pods))
        assert {each["uid"]: each["cookie"] for each in added} == ztunnel.workloads
        assert all(reply.status == 200 for reply in pool.map(agent.delete, ztunnel.workloads))
        assert ztunnel.workloads == {}
