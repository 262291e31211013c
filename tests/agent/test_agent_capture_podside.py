"""The agent and a podside that dies, is late, or talks nonsense: one that the test plays."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from pyztun.cni.agent.podside import DEADLINE
from pyztun.testing import AckingZtunnel
from support.agent import Agent, Reply
from support.agent_podside import Add, Life, ScriptedPodside, captured
from support.pods import Pod
from support.programs import Daemon
from support.zt_daemon import frozen

pytestmark = pytest.mark.needs_named_netns


@pytest.fixture
def podside(directory: Path) -> Iterator[ScriptedPodside]:
    with ScriptedPodside(directory) as made:
        yield made


@pytest.fixture
def agent(start: Callable[..., Daemon], directory: Path, podside: ScriptedPodside) -> Agent:
    """Ready; its podside is the test's."""
    made = Agent(directory, start)
    made.begin("--reconcile", "86400", command=podside.command())
    return made


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


@pytest.fixture
def add(agent: Agent, pool: ThreadPoolExecutor) -> Callable[..., "Future[Reply]"]:
    """Asks for a workload that is captured, in a thread."""

    def asked(pod: Pod | str, uid: str = "u", **more: object) -> "Future[Reply]":
        return pool.submit(agent.add, pod, uid=uid, **{"capture": "redirect", **more})

    return asked


def test_nothing_is_started_for_what_is_not_captured(
    agent: Agent, pod: Pod, podside: ScriptedPodside
) -> None:
    with AckingZtunnel(agent.zds):
        agent.wait_for_ztunnels(1)
        agent.must_add(pod, uid="u")
        assert agent.workloads()["u"]["rules"] is None
        agent.delete("u")
    assert agent.status()["podside"] == {
        "pid": None,
        "restarts": 0,
        "captured": 0,
        "repaired": 0,
    }
    with pytest.raises(TimeoutError):
        podside.life(0.1)


def test_rules_come_before_the_offer_and_behind_the_row(
    agent: Agent, pod: Pod, podside: ScriptedPodside, add: Add
) -> None:
    with AckingZtunnel(agent.zds) as ztunnel:
        agent.wait_for_ztunnels(1)
        adding = add(pod)
        life = podside.life()
        asked = life.expect("capture")
        assert asked.inode == asked.key == pod.inode
        row = agent.workloads()["u"]
        assert (row["state"], row["reason"]) == ("pending", "rules: not in place yet")
        assert row["rules"]["in_place"] is False
        assert ztunnel.workloads == {}
        life.done(asked, "rules", "ipv4 routes", without=["ipv6 routes"])
        reply = adding.result(10)
        assert (reply.status, reply.body["connections_reset"]) == (200, True)
        assert reply.body["rules"] == {
            "in_place": True,
            "trouble": "",
            "without": ["ipv6 routes"],
            "repaired": 0,
        }
        assert ztunnel.workloads == {"u": pod.cookie}
        assert agent.status()["podside"]["captured"] == 1
        assert agent.status()["podside"]["pid"] == life.pid


def test_second_add_looks_again_and_tells_that_nothing_was_reset(
    agent: Agent, pod: Pod, podside: ScriptedPodside, add: Add
) -> None:
    with AckingZtunnel(agent.zds):
        agent.wait_for_ztunnels(1)
        life = captured(add, podside, pod)
        adding = add(pod)
        life.serve("capture")
        assert adding.result(10).body["connections_reset"] is False


def test_without_a_ztunnel_the_line_names_it_and_what_was_reset(
    agent: Agent, pod: Pod, podside: ScriptedPodside, add: Add
) -> None:
    adding = add(pod)
    podside.life().serve("capture", "rules")
    reply = adding.result(10)
    assert (reply.status, reply.error) == (503, "no-ztunnel")
    assert reply.body["workload"]["connections_reset"] is True
    assert agent.workloads()["u"]["reason"] == "no ztunnel connected"
    with AckingZtunnel(agent.zds):
        agent.wait_for("u", "ready")


def test_rules_that_cannot_be_had(
    agent: Agent, pod: Pod, podside: ScriptedPodside, add: Add
) -> None:
    """The reason is told, the row is kept and not offered, and it heals by itself."""
    with AckingZtunnel(agent.zds) as ztunnel:
        agent.wait_for_ztunnels(1)
        adding = add(pod)
        life = podside.life()
        life.error(life.expect("capture"), "neither libnftables nor nft")
        reply = adding.result(10)
        assert (reply.status, reply.error) == (503, "rules")
        assert "neither libnftables nor nft; kept as pending" in reply.reason
        row = agent.workloads()["u"]
        assert (row["state"], row["reason"]) == ("pending", "rules: neither libnftables nor nft")
        assert row["rules"]["trouble"] == "neither libnftables nor nft"
        agent.daemon.stderr.wait_for("rules-missing")
        assert ztunnel.workloads == {}
        assert agent.delete("nosuch").status == 404
        life.serve("capture", "rules")  # with a backoff of its own
        agent.wait_for("u", "ready")


def test_what_never_had_rules_can_be_deleted_though_podside_cannot(
    agent: Agent, pod: Pod, podside: ScriptedPodside, add: Add, pool: ThreadPoolExecutor
) -> None:
    adding = add(pod)
    life = podside.life()
    life.error(life.expect("capture"), "EPERM")
    adding.result(10)
    deleting = pool.submit(agent.delete, "u")
    life.error(life.expect("release"), "EPERM")
    assert deleting.result(10).status == 200
    assert agent.workloads() == {}


def test_del_that_cannot_remove_the_rules_changes_nothing(
    agent: Agent, pod: Pod, podside: ScriptedPodside, add: Add, pool: ThreadPoolExecutor
) -> None:
    with AckingZtunnel(agent.zds) as ztunnel:
        agent.wait_for_ztunnels(1)
        life = captured(add, podside, pod)
        for ask in (agent.delete, lambda uid: agent.add(pod, uid=uid)):
            asking = pool.submit(ask, "u")
            life.error(life.expect("release"), "the pod is on fire")
            reply = asking.result(10)
            assert (reply.status, reply.error) == (503, "rules")
            assert "the pod is on fire; nothing was changed" in reply.reason
            life.serve("capture")  # in case that some of it is gone
            agent.wait_for("u", "ready", capture="redirect")
        assert ztunnel.workloads == {"u": pod.cookie}


def test_del_removes_rules_then_the_row_then_tells_ztunnel(
    agent: Agent, pod: Pod, podside: ScriptedPodside, add: Add, pool: ThreadPoolExecutor
) -> None:
    with AckingZtunnel(agent.zds) as ztunnel:
        agent.wait_for_ztunnels(1)
        life = captured(add, podside, pod)
        deleting = pool.submit(agent.delete, "u")
        asked = life.expect("release")
        assert asked.inode == pod.inode
        assert agent.workloads()["u"]["state"] == "ready"
        assert ztunnel.workloads == {"u": pod.cookie}
        life.done(asked, "rules")
        assert deleting.result(10).status == 200
        assert (agent.workloads(), ztunnel.workloads) == ({}, {})
        assert life.serve_until_quiet() == []


def test_del_that_podside_does_not_answer_in_time(
    agent: Agent, pod: Pod, podside: ScriptedPodside, add: Add, pool: ThreadPoolExecutor
) -> None:
    """It removes them in the end; but the workload is still there, and so they come back."""
    with AckingZtunnel(agent.zds):
        agent.wait_for_ztunnels(1)
        life = captured(add, podside, pod)
        reply = agent.delete("u", timeout=0.2)
        assert (reply.error, "in time" in reply.reason) == ("rules", True)
        life.serve("release", "rules")
        life.serve("capture", "rules")
        assert agent.workloads()["u"]["rules"]["in_place"] is True


def test_add_during_a_del_wins(
    agent: Agent, pod: Pod, podside: ScriptedPodside, add: Add, pool: ThreadPoolExecutor
) -> None:
    with AckingZtunnel(agent.zds):
        agent.wait_for_ztunnels(1)
        life = captured(add, podside, pod)
        deleting = pool.submit(agent.delete, "u")
        release = life.expect("release")
        adding = add(pod)
        capture = life.expect("capture")
        life.done(release, "rules")
        assert deleting.result(10).error == "superseded"
        life.done(capture, "rules")
        assert adding.result(10).status == 200
        life.serve_until_quiet()
        agent.wait_for("u", "ready")


def test_two_dels_at_once(
    agent: Agent, pod: Pod, podside: ScriptedPodside, add: Add, pool: ThreadPoolExecutor
) -> None:
    with AckingZtunnel(agent.zds):
        agent.wait_for_ztunnels(1)
        life = captured(add, podside, pod)
        deleting = [pool.submit(agent.delete, "u") for _ in range(2)]
        for asked in [life.expect("release") for _ in range(2)]:
            life.done(asked)
        assert sorted(each.result(10).status for each in deleting) == [200, 404]


def test_redirect_then_none(
    agent: Agent, pod: Pod, podside: ScriptedPodside, add: Add, pool: ThreadPoolExecutor
) -> None:
    with AckingZtunnel(agent.zds):
        agent.wait_for_ztunnels(1)
        life = captured(add, podside, pod)
        adding = pool.submit(agent.add, pod, uid="u")
        asked = life.expect("release")
        assert agent.workloads()["u"]["capture"] == "redirect"
        life.done(asked, "rules")
        assert adding.result(10).status == 200
        assert agent.workloads()["u"]["rules"] is None
        again = add(pod)
        life.serve("capture", "rules")
        assert again.result(10).body["connections_reset"] is True


def test_the_same_uid_in_another_netns(
    agent: Agent, make_pod: Callable[[], Pod], podside: ScriptedPodside, add: Add
) -> None:
    """The old netns loses its rules where it can; ztunnel hears of the new one behind its rules."""
    one, two = make_pod(), make_pod()
    with AckingZtunnel(agent.zds) as ztunnel:
        agent.wait_for_ztunnels(1)
        life = captured(add, podside, one)
        adding = add(two)
        release, capture = life.expect("release"), life.expect("capture")
        assert (release.key, capture.key) == (one.inode, two.inode)
        assert ztunnel.workloads == {"u": one.cookie}
        life.error(release, "no")
        life.done(capture, "rules")
        assert adding.result(10).status == 200
        assert ztunnel.workloads == {"u": two.cookie}
        agent.daemon.stderr.wait_for("rules-left")


def test_back_in_a_netns_whose_rules_were_removed(
    agent: Agent, make_pod: Callable[[], Pod], podside: ScriptedPodside, add: Add
) -> None:
    """That it once had them there counts for nothing."""
    one, two = make_pod(), make_pod()
    with AckingZtunnel(agent.zds) as ztunnel:
        agent.wait_for_ztunnels(1)
        life = captured(add, podside, one)
        adding = add(two)
        life.serve("release", "rules")
        life.error(life.expect("capture"), "no")
        assert adding.result(10).error == "rules"
        ztunnel.wait_for(lambda workloads: workloads == {})
        adding = add(one)
        life.error(life.expect("release"), "no")
        asked = life.expect("capture")
        agent.wait_for("u", "pending", "rules: not in place yet")
        assert ztunnel.workloads == {}
        life.done(asked, "rules")
        assert adding.result(10).status == 200
        assert ztunnel.workloads == {"u": one.cookie}


def test_replaced_under_its_path(
    agent: Agent, make_pod: Callable[[], Pod], podside: ScriptedPodside, add: Add
) -> None:
    pod = make_pod()
    with AckingZtunnel(agent.zds) as ztunnel:
        agent.wait_for_ztunnels(1)
        life = captured(add, podside, pod)
        first = pod.inode
        pod.delete()
        subprocess.run(["ip", "netns", "add", pod.name], check=True)
        asked = [life.request(), life.request()]
        forget, capture = sorted(asked, key=lambda each: each.do, reverse=True)
        assert (forget.do, forget.key, capture.do) == ("forget", first, "capture")
        agent.daemon.stderr.wait_for("netns-replaced")
        assert ztunnel.workloads in ({"u": pod.cookie}, {})
        for each in asked:
            life.done(each, *(["rules"] if each is capture else []))
        found = agent.wait_for("u", "ready", inode=capture.inode)
        ztunnel.wait_for(lambda workloads: workloads == {"u": found["cookie"]})


def test_replaced_and_the_new_one_cannot_have_rules(
    agent: Agent, make_pod: Callable[[], Pod], podside: ScriptedPodside, add: Add
) -> None:
    """Ztunnel is told to stop the old one, once; the new one is not offered."""
    pod = make_pod()
    with AckingZtunnel(agent.zds) as ztunnel:
        agent.wait_for_ztunnels(1)
        life = captured(add, podside, pod)
        pod.delete()
        subprocess.run(["ip", "netns", "add", pod.name], check=True)
        while (asked := life.request()).do != "capture":
            life.done(asked)
        life.error(asked, "no")
        ztunnel.wait_for(lambda workloads: workloads == {})
        agent.wait_for("u", "pending", "rules: no")
        while (asked := life.request()).do != "capture":
            life.done(asked)
        life.done(asked, "rules")
        agent.wait_for("u", "ready")


def test_netns_that_is_gone_is_forgotten(
    agent: Agent, make_pod: Callable[[], Pod], podside: ScriptedPodside, add: Add
) -> None:
    pod = make_pod()
    with AckingZtunnel(agent.zds):
        agent.wait_for_ztunnels(1)
        life = captured(add, podside, pod)
        pod.delete()
        assert life.serve("forget").key == pod.inode
        agent.wait_for("u", "degraded", "netns gone")
        assert agent.delete("u").status == 200
        assert life.serve_until_quiet() == []


# ---- what podside finds by itself ----------------------------------------------------------------


def test_repairs_and_troubles_are_told(
    agent: Agent, pod: Pod, podside: ScriptedPodside, add: Add
) -> None:
    with AckingZtunnel(agent.zds) as ztunnel:
        agent.wait_for_ztunnels(1)
        life = captured(add, podside, pod)
        life.say({"key": pod.inode, "repaired": ["rules", "ipv4 routes"], "flushed": True})
        line = agent.daemon.stderr.wait_for("rules-repaired")
        assert '"rules, ipv4 routes"' in line
        assert agent.status()["podside"]["repaired"] == 1
        assert agent.workloads()["u"]["state"] == "ready"
        life.say({"key": pod.inode, "trouble": "lo is down"})
        agent.wait_for("u", "degraded", "rules: lo is down")
        agent.daemon.stderr.wait_for("rules-broken")
        assert ztunnel.workloads == {"u": pod.cookie}  # still offered
        assert agent.status()["podside"]["captured"] == 0
        adding = add(pod)
        life.serve("capture")  # which finds the same: podside does not say it again
        assert adding.result(10).body["state"] == "degraded"
        life.say({"key": pod.inode, "repaired": [], "flushed": False})
        agent.wait_for("u", "ready")
        life.say({"key": 1, "trouble": "of nobody"})
        life.say({"key": 1, "repaired": [], "flushed": False})
        assert agent.workloads()["u"]["rules"]["repaired"] == 1


def test_reconcile_looks_again(agent: Agent, pod: Pod, podside: ScriptedPodside, add: Add) -> None:
    agent.daemon.kill()
    agent.begin("--reconcile", "0.1", command=podside.command())
    adding = add(pod)
    life = podside.life()
    life.serve("capture", "rules")
    adding.result(10)
    for _ in range(3):
        life.serve("capture")
    assert agent.status()["podside"]["repaired"] == 0
    life.serve("capture", "ipv4 routes")  # what no notification told
    agent.daemon.stderr.wait_for("rules-repaired")
    assert agent.workloads()["u"]["rules"]["repaired"] == 1


def test_a_pass_over_many_does_not_stand_in_the_way(
    agent: Agent, make_pod: Callable[[], Pod], podside: ScriptedPodside, add: Add
) -> None:
    pods = [make_pod() for _ in range(12)]
    life: Life | None = None
    for number, pod in enumerate(pods):
        adding = add(pod, uid=str(number))
        life = life or podside.life()
        life.serve("capture", "rules")
        adding.result(10)
    assert life is not None
    life.die()
    life = podside.life()
    first = [life.request() for _ in range(4)]
    adding = add(make_pod(), uid="new")
    asked = life.expect("capture")
    assert asked.key not in [pod.inode for pod in pods]
    for each in first:
        life.done(each)
    life.done(asked, "rules")
    assert adding.result(10).error == "no-ztunnel"
    served = [*first, *life.serve_until_quiet()]
    assert sorted(each.key for each in served) == sorted(pod.inode for pod in pods)


# ---- its ends ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["killed", "exit"])
def test_death_is_followed_by_another_that_watches_all(
    agent: Agent, make_pod: Callable[[], Pod], podside: ScriptedPodside, add: Add, how: str
) -> None:
    one, two = make_pod(), make_pod()
    with AckingZtunnel(agent.zds) as ztunnel:
        agent.wait_for_ztunnels(1)
        life = captured(add, podside, one)
        adding = add(two, uid="v")
        life.serve("capture", "rules")
        adding.result(10)
        if how == "killed":
            os.kill(life.pid, signal.SIGKILL)
        else:
            life.die(3)
        life.wait()
        line = agent.daemon.stderr.wait_for("podside-died")
        assert ("SIGKILL" if how == "killed" else "ended with 3") in line
        again = podside.life()
        keys = {again.serve("capture").key for _ in range(2)}
        assert keys == {one.inode, two.inode}
        assert again.serve_until_quiet() == []
        assert agent.status()["podside"]["restarts"] == 1
        assert set(ztunnel.workloads) == {"u", "v"}
        assert {each["state"] for each in agent.workloads().values()} == {"ready"}


def test_what_was_under_way_is_done_by_the_next(
    agent: Agent, pod: Pod, podside: ScriptedPodside, add: Add, pool: ThreadPoolExecutor
) -> None:
    with AckingZtunnel(agent.zds):
        agent.wait_for_ztunnels(1)
        adding = add(pod)
        life = podside.life()
        life.expect("capture")
        os.kill(life.pid, signal.SIGKILL)
        life = podside.life()
        life.serve("capture", "rules")
        assert adding.result(10).status == 200
        deleting = pool.submit(agent.delete, "u")
        life.expect("release")
        os.kill(life.pid, signal.SIGKILL)
        life = podside.life()
        life.serve("release", "rules")
        assert deleting.result(10).status == 200
        assert life.serve_until_quiet() == []


def test_what_was_answered_with_the_last_breath_is_watched_by_the_next(
    agent: Agent, pod: Pod, podside: ScriptedPodside, add: Add
) -> None:
    adding = add(pod)
    life = podside.life()
    asked = life.expect("capture")
    with frozen(agent.daemon):
        life.done(asked, "rules")
        life.die()
    assert adding.result(10).body["workload"]["connections_reset"] is True
    assert podside.life().serve("capture").key == pod.inode


def test_one_that_keeps_dying_is_told(
    agent: Agent, pod: Pod, podside: ScriptedPodside, add: Add
) -> None:
    adding = add(pod)
    for _ in range(3):
        life = podside.life()
        life.expect("capture")
        life.die(7)
    reply = adding.result(10)
    assert (reply.error, "podside ended with 7" in reply.reason) == ("rules", True)
    agent.wait_for("u", "pending", "rules: podside ended with 7")
    life = podside.life()
    life.serve("capture", "rules")
    agent.wait_for("u", "pending", "no ztunnel")


def test_bad_netns_is_not_in_the_way_of_others(
    agent: Agent, make_pod: Callable[[], Pod], podside: ScriptedPodside, add: Add
) -> None:
    """Every podside that looks at it dies."""
    bad, good = make_pod(), make_pod()
    adding = add(bad, uid="bad")
    life = podside.life()
    life.expect("capture")
    other = add(good, uid="good")
    life.expect("capture")
    life.die()
    life = podside.life()
    assert life.expect("capture").key == bad.inode
    life.die()
    life = podside.life()
    assert life.serve("capture", "rules").key == good.inode
    assert other.result(10).error == "no-ztunnel"
    assert life.expect("capture").key == bad.inode
    life.die()
    assert adding.result(10).error == "rules"


@pytest.mark.parametrize(
    "said",
    [
        b"no json",
        b"[]",
        b'{"id": 1}',
        b'{"id": 77, "done": {"written": [], "flushed": false, "without": []}}',
        b'{"id": "1", "error": "x"}',
        b"x" * 5000,
    ],
    ids=range(6),
)
def test_nonsense_ends_it(
    agent: Agent, pod: Pod, podside: ScriptedPodside, add: Add, said: bytes
) -> None:
    adding = add(pod)
    life = podside.life()
    life.expect("capture")
    life.say(said)
    life.wait()
    again = podside.life()
    again.serve("capture", "rules")
    assert adding.result(10).error == "no-ztunnel"
    assert len([line for line in agent.daemon.stderr.all() if "podside-died" in line]) == 1


def test_one_that_does_not_answer_is_killed(
    agent: Agent, pod: Pod, podside: ScriptedPodside, add: Add
) -> None:
    assert DEADLINE == 10.0
    agent.daemon.kill()
    agent.begin("--reconcile", "86400", command=podside.command(deadline=0.5))
    adding = add(pod)
    life = podside.life()
    life.expect("capture")
    assert agent.status()["podside"]["pid"] == life.pid  # the loop waits for nothing
    life.wait()
    assert "did not answer in 0.5 s" in agent.daemon.stderr.wait_for("podside-died")
    podside.life().serve("capture", "rules")
    assert adding.result(10).error == "no-ztunnel"


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_it_ends_with_the_agent(
    agent: Agent, pod: Pod, podside: ScriptedPodside, add: Add, end: str
) -> None:
    adding = add(pod)
    life = podside.life()
    life.serve("capture", "rules")
    adding.result(10)
    agent.daemon.process.send_signal(signal.SIGKILL if end == "kill" else signal.SIGTERM)
    with pytest.raises(EOFError):
        life.request()  # no release: rules outlive the agent
    if end == "kill":
        life.die()  # as the real one does then
    life.wait()


def test_add_that_waits_for_rules_is_answered_when_the_agent_ends(
    agent: Agent, pod: Pod, podside: ScriptedPodside, add: Add
) -> None:
    adding = add(pod)
    podside.life().expect("capture")
    assert agent.daemon.stop() == 0
    assert adding.result(20).error == "shutting-down"


def test_add_that_is_not_captured_in_time(
    agent: Agent, pod: Pod, podside: ScriptedPodside, add: Add
) -> None:
    adding = add(pod, timeout=0.2)
    life = podside.life()
    asked = life.expect("capture")
    reply = adding.result(10)
    assert (reply.status, reply.error) == (504, "timeout")
    assert "rules: not in place in time" in reply.reason
    life.done(asked, "rules")
    agent.wait_for("u", "pending", "no ztunnel")
