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
from support.programs import Daemon

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
        said = [type(each.message).__name__ for each in requests]
        assert said == ["SnapshotSent", "Add", "Add"]  # is it so? nothing changes by it


def test_repeated_add_while_others_wait(agent: Agent, make_pod: Callable[[], Pod]) -> None:
    known, other = make_pod(), make_pod()
    with AckingZtunnel(agent.zds) as ztunnel, ThreadPoolExecutor() as pool:
        agent.wait_for_ztunnels(1)
        agent.must_add(known, uid="known")
        ztunnel.hold()
        adding = pool.submit(agent.add, other, uid="other")
        agent.wait_until(lambda found: "other" in found)
        again = pool.submit(agent.add, known, uid="known")
        assert agent.workloads()["known"]["state"] == "ready"
        ztunnel.release()
        assert (adding.result(10).status, again.result(10).status) == (200, 200)


def test_destroyed_listeners_are_made_again(
    agent: Agent, pod: Pod, start: Callable[..., Daemon]
) -> None:
    """Root in the pod may do that (`ss -K`)."""
    ztunnel = start("--zds", agent.zds)
    agent.wait_for_ztunnels(1)
    agent.must_add(pod, uid="u")
    done = pod.exec("ss", "-K", "-ltn", "sport = :15008")
    if ":15008" not in done.stdout:
        pytest.skip(f"this kernel cannot destroy sockets: {done.stderr.strip()}")
    ztunnel.stderr.wait_for("its listeners were destroyed")
    assert not pod.refuses(15008)


def test_two_adds_of_one_uid_at_once(agent: Agent, make_pod: Callable[[], Pod]) -> None:
    """The later one is what is served, and the earlier caller is told so."""
    one, two = make_pod(), make_pod()
    with AckingZtunnel(agent.zds) as ztunnel, ThreadPoolExecutor() as pool:
        agent.wait_for_ztunnels(1)
        ztunnel.hold()
        first = pool.submit(agent.add, one, uid="u")
        agent.wait_until(lambda found: "u" in found)
        second = pool.submit(agent.add, two, uid="u")
        agent.wait_until(lambda found: found["u"]["netns"].endswith(two.name))
        ztunnel.release()
        assert first.result(10).error == "superseded"
        assert second.result(10).status == 200


def test_state_while_a_del_is_under_way(agent: Agent, pod: Pod) -> None:
    with AckingZtunnel(agent.zds) as ztunnel, ThreadPoolExecutor() as pool:
        agent.wait_for_ztunnels(1)
        agent.must_add(pod, uid="u")
        ztunnel.hold()
        deleting = pool.submit(agent.delete, "u")
        agent.wait_until(lambda found: found == {})
        adding = pool.submit(agent.add, pod, uid="u")
        row = agent.wait_until(lambda found: "u" in found)["u"]
        assert (row["state"], row["ztunnels"]) == ("pending", [])
        ztunnel.release()
        assert deleting.result(10).status == adding.result(10).status == 200
        assert list(ztunnel.workloads) == ["u"]


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
        ("/proc/self/ns/net", "bad-request"),
        ("/proc//thread-self/fd/3", "bad-request"),
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


def test_delete_by_what_two_workloads_are_called(agent: Agent, make_pod: Callable[[], Pod]) -> None:
    one, two = make_pod(), make_pod()
    agent.add(one, uid=two.name)
    agent.add(two, uid="u")
    reply = agent.delete(two.name)
    assert (reply.status, reply.error) == (409, "ambiguous")
    assert len(agent.workloads()) == 2
    agent.delete(one.name)
    assert agent.delete(two.name).body["workload"]["uid"] == "u"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_key_that_no_path_can_be(agent: Agent, method: str) -> None:
    assert agent.ask(method, "/v1/workloads/%2Fa%00b").error == "no-such-workload"
    assert not [line for line in agent.daemon.stderr.all() if " bug " in line]


@pytest.mark.slow
def test_delete_names_a_ztunnel_that_was_dropped_for_its_silence(agent: Agent, pod: Pod) -> None:
    with AckingZtunnel(agent.zds) as ztunnel:
        agent.wait_for_ztunnels(1)
        agent.must_add(pod, uid="u")
        ztunnel.hold()
        reply = agent.delete("u", timeout=20)
        assert (reply.status, reply.body["unconfirmed"]) == (200, [1])


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
        agent.wait_for_fds(lambda fds: fds == before)


def test_many_callers_at_once(agent: Agent, make_pod: Callable[[], Pod]) -> None:
    pods = [make_pod() for _ in range(12)]
    with AckingZtunnel(agent.zds) as ztunnel, ThreadPoolExecutor(12) as pool:
        agent.wait_for_ztunnels(1)
        added = list(pool.map(agent.must_add, pods))
        assert {each["uid"]: each["cookie"] for each in added} == ztunnel.workloads
        assert all(reply.status == 200 for reply in pool.map(agent.delete, ztunnel.workloads))
        assert ztunnel.workloads == {}
