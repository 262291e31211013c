"""Workloads that are captured, with the real podside and real pods: what is in there, and when."""

import http.client
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from pyztun.protocol import zds
from pyztun.testing import AckingZtunnel, ScriptedZtunnel
from support import REPOSITORY
from support.agent import Agent, Json
from support.agent_podside import ScriptedPodside
from support.pods import Pod, in_netns
from support.programs import Daemon

pytestmark = [pytest.mark.needs_named_netns, pytest.mark.needs_nft]

DIES = REPOSITORY / "tests" / "support" / "agent_dies.py"


def must_capture(agent: Agent, pod: Pod, uid: str = "u", **more: object) -> Json:
    """Adds a pod with rules in it, and expects that it is ready."""
    return agent.must_add(pod, uid=uid, capture="redirect", **more)


def rules(pod: Pod) -> str:
    """What the pod has of nftables, `ip rule` and table 100."""
    commands = (
        ("nft", "list", "ruleset"),
        ("ip", "rule"),
        ("ip", "-6", "rule"),
        ("ip", "route", "show", "table", "all"),
        ("ip", "-6", "route", "show", "table", "all"),
    )
    return "".join(pod.exec(*command).stdout for command in commands)


def is_captured(pod: Pod) -> bool:
    """Whether all of it is there; AssertionError where it is a part."""
    found = rules(pod)
    there = parts(found)
    assert there in ([True] * 3, [False] * 3), found
    return there[0]


def parts(found: str) -> list[bool]:
    return ["redirect to :15001" in found, "lookup 100" in found, "table 100" in found]


def wait_until(holds: Callable[[], bool], what: object = "") -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, what
        os.sched_yield()


def has_ended(pid: int) -> bool:
    """Its next parent may take its time to reap it."""
    try:
        return " Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def podside_of(agent: Agent) -> int:
    pid = agent.status()["podside"]["pid"]
    assert isinstance(pid, int)
    return pid


@pytest.fixture
def ztunnel(agent: Agent) -> Iterator[AckingZtunnel]:
    """One that agrees to everything."""
    with AckingZtunnel(agent.zds) as made:
        agent.wait_for_ztunnels(1)
        yield made


def test_from_add_to_del(agent: Agent, ztunnel: AckingZtunnel, pod: Pod) -> None:
    before = rules(pod)
    added = must_capture(agent, pod)
    assert is_captured(pod)
    assert added["connections_reset"] is True
    assert added["rules"] == {"in_place": True, "trouble": "", "without": [], "repaired": 0}
    assert must_capture(agent, pod)["connections_reset"] is False
    assert ztunnel.workloads == {"u": pod.cookie}
    assert agent.delete("u").status == 200
    assert rules(pod) == before


def test_connection_from_before_is_reset_once(agent: Agent, make_pod: Callable[[], Pod]) -> None:
    one, two = make_pod(), make_pod()
    link(one, two)
    with connected(one, two) as (client, server):
        client.sendall(b"1")
        assert server.recv(1) == b"1"
        reply = agent.add(one, uid="u", capture="redirect")
        assert reply.error == "no-ztunnel"
        assert reply.body["workload"]["connections_reset"] is True
        client.sendall(b"2")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with pytest.raises(ConnectionRefusedError):  # closed, and not in plain text
        in_netns(one.path, lambda: socket.create_connection(("192.0.2.2", 80), timeout=10))


def link(one: Pod, two: Pod) -> None:
    """A wire between two pods: 192.0.2.1 and 192.0.2.2."""
    ip = ["ip", "-n", one.name]
    subprocess.run(
        [*ip, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", two.name],
        check=True,
    )
    for number, pod in enumerate((one, two), start=1):
        for words in (
            ["addr", "add", f"192.0.2.{number}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
        ):
            subprocess.run(["ip", "-n", pod.name, *words], check=True)


@contextmanager
def connected(one: Pod, two: Pod) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection from one pod to another, both ends."""
    listener = in_netns(two.path, lambda: socket.create_server(("192.0.2.2", 80)))
    with listener:
        client = in_netns(one.path, lambda: socket.create_connection(("192.0.2.2", 80), timeout=10))
        server, _ = listener.accept()
        with client, server:
            server.settimeout(10)
            yield client, server


def test_none_by_a_new_add_takes_them_away(agent: Agent, ztunnel: AckingZtunnel, pod: Pod) -> None:
    before = rules(pod)
    must_capture(agent, pod)
    agent.must_add(pod, uid="u")
    assert rules(pod) == before
    assert ztunnel.workloads == {"u": pod.cookie}
    must_capture(agent, pod)
    assert is_captured(pod)


def test_same_uid_in_another_netns(
    agent: Agent, ztunnel: AckingZtunnel, make_pod: Callable[[], Pod]
) -> None:
    one, two = make_pod(), make_pod()
    before = rules(one)
    must_capture(agent, one)
    must_capture(agent, two)
    assert is_captured(two)
    agent.daemon.stderr.wait_for("rules-removed")
    assert rules(one) == before
    assert ztunnel.workloads == {"u": two.cookie}


def test_replaced_under_its_path(
    agent: Agent, ztunnel: AckingZtunnel, make_pod: Callable[[], Pod]
) -> None:
    pod = make_pod()
    must_capture(agent, pod)
    name = pod.name
    pod.delete()
    second = Pod(name)
    try:
        ztunnel.wait_for(lambda workloads: workloads == {"u": second.cookie})
        assert is_captured(second)
        agent.wait_for("u", "ready", cookie=second.cookie)
    finally:
        second.delete()
    agent.wait_for("u", "degraded", "netns gone")
    assert agent.delete("u").status == 200


def test_nothing_of_a_deleted_one_is_held(
    agent: Agent,
    ztunnel: AckingZtunnel,
    pod: Pod,
    make_canary: Callable[[Pod], object],
) -> None:
    canary = make_canary(pod)
    must_capture(agent, pod)
    agent.delete("u")
    pod.delete()
    assert canary.died()  # type: ignore[attr-defined]
    assert ztunnel.workloads == {}


def test_nothing_of_one_that_is_gone_is_held(
    agent: Agent, ztunnel: AckingZtunnel, pod: Pod, make_canary: Callable[[Pod], object]
) -> None:
    canary = make_canary(pod)
    must_capture(agent, pod)
    pod.delete()
    assert canary.died()  # type: ignore[attr-defined]
    assert ztunnel.workloads == {}


def test_somebody_else_flushes_everything(agent: Agent, ztunnel: AckingZtunnel, pod: Pod) -> None:
    del ztunnel
    must_capture(agent, pod)
    began = time.monotonic()
    assert pod.exec("nft", "flush", "ruleset").returncode == 0
    wait_until(lambda: "redirect to :15001" in pod.exec("nft", "list", "ruleset").stdout)
    assert time.monotonic() - began < 1
    assert "what=rules" in agent.daemon.stderr.wait_for("rules-repaired")
    assert agent.workloads()["u"]["rules"]["repaired"] == 1


def test_rules_where_the_netns_cannot_be_opened(
    agent: Agent, directory: Path, pod: Pod, own_userns: list[str]
) -> None:
    """They are there, and `del` could not remove them: it says so."""
    del own_userns
    hidden = directory / "hidden"
    hidden.mkdir()
    (hidden / "link").symlink_to(pod.path)
    agent.add(str(hidden / "link"), uid="u", capture="redirect")
    agent.daemon.kill()
    hidden.chmod(0)
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
    agent.begin(wrap=drop)
    agent.wait_for("u", "degraded", "cannot be opened")
    reply = agent.delete("u")
    assert (reply.error, "nothing was changed" in reply.reason) == ("rules", True)
    hidden.chmod(0o755)
    agent.wait_for("u", "pending", "no ztunnel")
    assert agent.delete("u").status == 200
    assert not is_captured(pod)


# ---- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
def test_rules_outlive_the_agent_and_podside_does_not(agent: Agent, pod: Pod, end: str) -> None:
    with AckingZtunnel(agent.zds):
        agent.wait_for_ztunnels(1)
        must_capture(agent, pod)
    pid = podside_of(agent)
    agent.daemon.process.send_signal(signal.Signals[end])
    agent.daemon.process.wait(20)
    assert is_captured(pod)
    wait_until(lambda: has_ended(pid))
    agent.begin()
    agent.wait_for("u", "pending", "no ztunnel")
    assert agent.delete("u").status == 200
    assert not is_captured(pod)


def test_after_a_restart_it_is_offered_at_once(
    agent: Agent, make_pod: Callable[[], Pod], directory: Path
) -> None:
    """A snapshot without it would have ztunnel stop it, however long podside takes to look."""
    one, two = make_pod(), make_pod()
    agent.add(one, uid="ruled", capture="redirect")
    agent.add(two, uid="never", capture="redirect", timeout=0.001)
    agent.daemon.kill()
    with closing(sqlite3.connect(agent.directory / "registry.db", isolation_level=None)) as db:
        db.execute("UPDATE workloads SET ruled = NULL WHERE uid = 'never'")
    with ScriptedPodside(directory) as podside:
        agent.begin(command=podside.command())
        life = podside.life()
        with ScriptedZtunnel(agent.zds) as ztunnel:
            with ztunnel.request() as request:
                assert (type(request.message), request.uid) == (zds.Add, "ruled")
                request.ack()
            with ztunnel.request() as request:
                assert request.message == zds.SnapshotSent()
                request.ack()
            agent.wait_for("ruled", "ready")
            agent.wait_for("never", "pending", "rules: not in place yet")
            for _ in range(2):
                life.serve("capture")
            with ztunnel.request() as request:
                assert (type(request.message), request.uid) == (zds.Add, "never")
                request.ack()
            agent.wait_for("never", "ready")
        agent.daemon.kill()
    agent.begin()


def test_rules_that_were_removed_while_the_agent_was_away(agent: Agent, pod: Pod) -> None:
    agent.add(pod, uid="u", capture="redirect")
    agent.daemon.kill()
    pod.exec("nft", "flush", "ruleset")
    agent.begin()
    agent.daemon.stderr.wait_for("rules-repaired")
    assert is_captured(pod)


def test_rules_of_an_earlier_boot_count_for_nothing(agent: Agent, pod: Pod) -> None:
    agent.add(pod, uid="u", capture="redirect")
    agent.daemon.kill()
    with closing(sqlite3.connect(agent.directory / "registry.db", isolation_level=None)) as db:
        db.execute("UPDATE workloads SET boot_id = 'an-earlier-boot'")
    pod.exec("nft", "flush", "ruleset")
    agent.begin()
    agent.daemon.stderr.wait_for("rules-applied")
    assert is_captured(pod)


ADD_STEPS = ("opened", "before-store", "stored", "asked", "ruled", "answered")
DEL_STEPS = ("freeing", "freed", "stored")


def _dying_at(step: str) -> list[str]:
    return [sys.executable, str(DIES), step]


@pytest.mark.parametrize("step", ADD_STEPS)
def test_killed_at_each_step_of_an_add(agent: Agent, pod: Pod, step: str) -> None:
    """Either there is no row and no rule, or the next agent completes both."""
    before = rules(pod)
    agent.daemon.kill()
    agent.begin(command=_dying_at(f"add:{step}"))
    with AckingZtunnel(agent.zds):
        agent.wait_for_ztunnels(1)
        with pytest.raises((ConnectionError, OSError)):
            agent.add(pod, uid="u", capture="redirect")
        assert agent.daemon.wait() == -9
    agent.begin()
    is_kept = step not in ("opened", "before-store")
    assert (list(agent.workloads()) == ["u"]) == is_kept
    with AckingZtunnel(agent.zds):
        agent.wait_for_ztunnels(1)
        if is_kept:
            agent.wait_for("u", "ready")
            assert is_captured(pod)
        else:
            assert rules(pod) == before
        must_capture(agent, pod)
        assert agent.delete("u").status == 200
    assert rules(pod) == before


@pytest.mark.parametrize("step", DEL_STEPS)
def test_killed_at_each_step_of_a_del(agent: Agent, pod: Pod, step: str) -> None:
    """As long as there is a row its rules come back; without one none is left."""
    before = rules(pod)
    agent.add(pod, uid="u", capture="redirect")
    agent.daemon.kill()
    agent.begin(command=_dying_at(f"del:{step}"))
    with AckingZtunnel(agent.zds):
        agent.wait_for("u", "ready")
        with pytest.raises((ConnectionError, OSError)):
            agent.delete("u")
        assert agent.daemon.wait() == -9
    agent.begin()
    if step in ("freeing", "freed"):
        wait_until(lambda: parts(rules(pod)) == [True] * 3)
        assert agent.delete("u").status == 200
    assert agent.workloads() == {}
    assert rules(pod) == before


def test_podside_killed_at_any_moment_of_adds_and_dels(
    agent: Agent, ztunnel: AckingZtunnel, pod: Pod
) -> None:
    """Whatever the caller is told is so; `add` returns with all of it, `del` with none."""
    before = rules(pod)
    must_capture(agent, pod)
    for turn in range(12):
        pid = agent.status()["podside"]["pid"]
        with subprocess.Popen(["sh", "-c", f"sleep {turn * 0.0005}; kill -9 {pid}"]):
            if turn % 2:
                must_capture(agent, pod)
                assert is_captured(pod)
                assert ztunnel.workloads == {"u": pod.cookie}
            else:
                assert agent.delete("u").status == 200
                assert rules(pod) == before
                assert ztunnel.workloads == {}


def test_rules_that_are_flushed_while_there_is_no_podside(
    agent: Agent, ztunnel: AckingZtunnel, pod: Pod
) -> None:
    del ztunnel
    must_capture(agent, pod)
    pid = podside_of(agent)
    os.kill(pid, signal.SIGSTOP)
    pod.exec("nft", "flush", "ruleset")
    os.kill(pid, signal.SIGKILL)
    agent.daemon.stderr.wait_for("rules-repaired")
    assert is_captured(pod)
    assert agent.status()["podside"]["restarts"] == 1


@pytest.mark.slow
def test_either_is_killed_in_a_burst(agent: Agent, make_pod: Callable[[], Pod]) -> None:
    """In the end a pod has rules exactly if there is a row that wants them."""
    pods = [make_pod() for _ in range(6)]
    before = rules(pods[0])
    dice = random.Random(11)

    def call(pods: list[Pod], seed: int) -> None:
        mine = random.Random(seed)
        for _ in range(10):
            pod = mine.choice(pods)
            capture = "redirect" if mine.random() < 0.7 else "none"
            with suppress(OSError, http.client.HTTPException, ValueError):
                if mine.random() < 0.4:
                    agent.delete(pod.name)
                else:
                    agent.add(pod, uid=pod.name, capture=capture)

    for number in range(6):
        with AckingZtunnel(agent.zds), ThreadPoolExecutor() as pool:
            calling = [pool.submit(call, pods[at::3], dice.randrange(1000)) for at in range(3)]
            time.sleep(dice.random() * 0.1)  # a moment, whichever
            victim = agent.daemon.pid if number % 2 else agent.status()["podside"]["pid"]
            if victim is not None:
                os.kill(victim, signal.SIGKILL)
            for each in calling:
                each.result(60)
            if number % 2:
                agent.daemon.wait()
                agent.begin()
        wanted = {each["name"] for each in agent.workloads().values() if each["rules"]}
        for pod in pods:
            expected = [pod.name in wanted] * 3
            wait_until(lambda: parts(rules(pod)) == expected, (pod.name, expected))  # noqa: B023
    for pod in pods:
        agent.delete(pod.name)
        assert rules(pod) == before
    assert not [line for line in agent.daemon.stderr.all() if " bug " in line]


# ---- without the capability ----------------------------------------------------------------------


@pytest.mark.parametrize("lacking", ["net_admin", "sys_admin"])
def test_agent_that_may_not(
    start: Callable[..., Daemon], directory: Path, pod: Pod, lacking: str
) -> None:
    """The reason says so; the row can be deleted, or be added without rules."""
    before = rules(pod)
    agent = Agent(directory, start)
    agent.begin(wrap=["setpriv", f"--bounding-set=-{lacking}", "--inh-caps=-all"])
    with AckingZtunnel(agent.zds) as ztunnel:
        agent.wait_for_ztunnels(1)
        reply = agent.add(pod, uid="u", capture="redirect")
        assert (reply.status, reply.error) == (503, "rules")
        assert "EPERM" in reply.reason
        assert agent.workloads()["u"]["state"] == "pending"
        assert ztunnel.workloads == {}
        assert agent.delete("u").status == 200
        agent.add(pod, uid="u", capture="redirect")
        agent.must_add(pod, uid="u")
    assert rules(pod) == before


def test_agent_that_may_no_more(agent: Agent, pod: Pod) -> None:
    """It goes on offering what has its rules, says that it cannot look, and refuses the del."""
    agent.add(pod, uid="u", capture="redirect")
    agent.daemon.kill()
    agent.begin(wrap=["setpriv", "--bounding-set=-net_admin", "--inh-caps=-all"])
    with AckingZtunnel(agent.zds) as ztunnel:
        agent.wait_for("u", "degraded", "EPERM")
        ztunnel.wait_for(lambda workloads: workloads == {"u": pod.cookie})
        reply = agent.delete("u")
        assert (reply.status, reply.error) == (503, "rules")
        assert "nothing was changed" in reply.reason
        assert agent.add(pod, uid="u").error == "rules"
    assert is_captured(pod)
    assert agent.workloads()["u"]["capture"] == "redirect"
