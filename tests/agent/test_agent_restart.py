"""What an agent finds that begins where another one ended, in whatever way."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pyztun import NetNs
from pyztun.testing import AckingZtunnel
from support import REPOSITORY
from support.agent import Agent
from support.pods import Pod
from support.programs import Daemon, run_program

pytestmark = pytest.mark.needs_named_netns

LABELS = {"app": "web", "ü": ""}


def rows(agent: Agent) -> sqlite3.Connection:
    """The registry of an agent that has ended."""
    return sqlite3.connect(agent.directory / "registry.db", isolation_level=None)


def loaded(agent: Agent) -> str:
    """The line in which an agent reports what it found."""
    return agent.daemon.stderr.wait_for("registry-loaded").partition(" registry-loaded ")[2]


@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM"])
def test_everything_is_there_again(agent: Agent, make_pod: Callable[[], Pod], end: str) -> None:
    with AckingZtunnel(agent.zds):
        agent.wait_for_ztunnels(1)
        agent.must_add(make_pod(), uid="one", name="n", namespace="m", service_account="s")
        agent.must_add(make_pod(), uid="two", labels=LABELS)
        before = agent.workloads()
    agent.wait_until(lambda found: all(each["state"] == "pending" for each in found.values()))
    if end == "SIGTERM":
        assert agent.daemon.stop() == 0
        assert not os.path.exists(agent.zds)
    agent.again()
    assert loaded(agent).startswith("workloads=2 same=2 another=0 gone=0 unknown=0")
    with AckingZtunnel(agent.zds) as ztunnel:
        after = agent.wait_until(
            lambda found: all(each["state"] == "ready" for each in found.values())
        )
        for each in (*before.values(), *after.values()):
            del each["since"]
        assert after == before
        assert ztunnel.workloads == {uid: each["cookie"] for uid, each in before.items()}


def test_what_disappeared_or_was_replaced_meanwhile_is_reported(
    agent: Agent, make_pod: Callable[[], Pod]
) -> None:
    same, replaced, gone = make_pod(), make_pod(), make_pod()
    for uid, pod in (("same", same), ("replaced", replaced), ("gone", gone)):
        agent.add(pod, uid=uid)
    agent.daemon.kill()
    gone.delete()
    replaced.delete()
    with NetNs.create(replaced.name) as second:
        try:
            agent.begin()
            assert loaded(agent).startswith("workloads=3 same=1 another=1 gone=1 unknown=0")
            with AckingZtunnel(agent.zds) as ztunnel:
                agent.wait_for("replaced", "ready", cookie=second.cookie)
                agent.wait_for("gone", "degraded", "netns gone")
                assert set(ztunnel.workloads) == {"same", "replaced"}
        finally:
            second.remove()


def test_reused_cookie_of_an_earlier_boot_is_another_netns(agent: Agent, pod: Pod) -> None:
    agent.add(pod, uid="u")
    agent.daemon.kill()
    with closing(rows(agent)) as db:
        db.execute("UPDATE workloads SET boot_id = 'an-earlier-boot'")
    agent.begin()
    assert loaded(agent).startswith("workloads=1 same=0 another=1")


def test_process_that_is_another_one_now_is_gone(agent: Agent, pod: Pod) -> None:
    """Its pid was reused: only the start time tells."""
    with subprocess.Popen(["ip", "netns", "exec", pod.name, "sleep", "60"]) as inside:
        inode = os.stat(f"/run/netns/{pod.name}").st_ino
        while os.stat(f"/proc/{inside.pid}/ns/net").st_ino != inode:
            os.sched_yield()
        agent.add(f"pid:{inside.pid}", uid="u")
        agent.again()
        assert agent.workloads()["u"]["state"] == "pending"
        agent.daemon.kill()
        with closing(rows(agent)) as db:
            db.execute("UPDATE workloads SET process = '1', cookie = '1'")
        agent.begin()
        agent.wait_for("u", "degraded", "another one's")
        inside.kill()


def test_descriptor_cannot_be_reopened_and_says_so(agent: Agent, pod: Pod) -> None:
    with pod.opened() as fd:
        agent.add(f"fd:{fd}", uid="u", descriptor=f"/proc/{os.getpid()}/fd/{fd}")
        assert agent.workloads()["u"]["state"] == "pending"
        agent.again()
        agent.wait_for("u", "degraded", "cannot be reopened")
        agent.add(pod, uid="u")
        agent.wait_for("u", "pending", netns=f"/run/netns/{pod.name}")


def test_deleted_one_does_not_come_back(agent: Agent, make_pod: Callable[[], Pod]) -> None:
    agent.add(make_pod(), uid="one")
    agent.add(make_pod(), uid="two")
    agent.delete("one")
    agent.again()
    assert list(agent.workloads()) == ["two"]


def test_corrupt_registry_is_set_aside_and_its_rows_are_kept(
    agent: Agent, make_pod: Callable[[], Pod]
) -> None:
    for _ in range(3):
        agent.add(make_pod())
    before = list(agent.workloads())
    agent.daemon.stop()
    with closing(rows(agent)) as db:
        (page,) = db.execute(
            "SELECT rootpage FROM sqlite_master WHERE name LIKE 'sqlite_autoindex%'"
        ).fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    with (agent.directory / "registry.db").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    agent.begin()
    assert "salvaged=3" in agent.daemon.stderr.wait_for("registry-corrupt")
    assert list(agent.workloads()) == before
    assert list(agent.directory.glob("registry.db.corrupt-*"))


def test_registry_that_is_no_database_is_set_aside(agent: Agent, pod: Pod) -> None:
    agent.daemon.kill()
    for file in agent.directory.glob("registry.db-*"):
        file.unlink()
    (agent.directory / "registry.db").write_bytes(b"no database\n" * 1000)
    agent.begin()
    agent.daemon.stderr.wait_for("registry-corrupt")
    agent.add(pod)
    agent.again()
    assert len(agent.workloads()) == 1


def test_registry_of_a_later_version_is_refused(agent: Agent) -> None:
    agent.daemon.kill()
    with closing(rows(agent)) as db:
        db.execute("PRAGMA user_version = 99")
    refused = _begin_elsewhere(agent.directory, agent.directory)
    assert "later version" in refused


def test_second_agent_of_a_state_directory_is_refused(agent: Agent, shared_directory: Path) -> None:
    assert "another agent uses this state directory" in _begin_elsewhere(
        shared_directory, agent.directory
    )
    assert agent.status()["pid"] == agent.daemon.pid


def test_second_agent_of_a_socket_is_refused(agent: Agent) -> None:
    other = agent.directory / "other"
    ended = run_program(
        "pyztun-cni", "agent", "--zds", agent.zds, "--control", other / "c", "--state-dir", other
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "is in use" in ended.stderr
    with AckingZtunnel(agent.zds):
        agent.wait_for_ztunnels(1)


def _begin_elsewhere(sockets: Path, state: Path) -> str:
    """What an agent says that cannot begin."""
    ended = run_program(
        "pyztun-cni", "agent", "--zds", sockets / "z", "--control", sockets / "c",
        "--state-dir", state,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    return ended.stderr


def test_directory_that_others_can_write_is_refused(shared_directory: Path) -> None:
    os.chmod(shared_directory, 0o777)
    ended = run_program(
        "pyztun-cni", "agent", "--state-dir", shared_directory,
        "--zds", shared_directory / "z", "--control", shared_directory / "c",
    )  # fmt: skip
    assert ended.returncode == 1
    assert "writable" in ended.stderr


def test_full_disk_refuses_an_add_and_loses_nothing(
    start: Callable[..., Daemon], directory: Path, make_pod: Callable[[], Pod]
) -> None:
    """In a mount namespace of its own, with a state directory of 64 KiB."""
    state = directory / "state"
    state.mkdir()
    mounting = f'mount -t tmpfs -o size=64k,mode=755 none {state} && exec "$@"'
    agent = Agent(directory, start)
    agent.begin(
        "--state-dir",
        str(state),
        wrap=["unshare", "-m", "--propagation=slave", "sh", "-c", mounting, "sh"],
    )
    reply = agent.add(make_pod(), uid="first")
    labels = {f"{number}-{'x' * 200}": "y" * 200 for number in range(64)}
    kept, pods = ["first"], [make_pod() for _ in range(6)]
    for number, pod in enumerate(pods):
        reply = agent.add(pod, uid=str(number), labels=labels)
        if reply.error == "storage":
            break
        kept.append(str(number))
    assert reply.error == "storage", reply
    assert "cannot be written" in reply.reason
    assert list(agent.workloads()) == kept
    agent.daemon.stderr.wait_for("workload-added")
    assert agent.status()["pid"] == agent.daemon.pid


STEPS = REPOSITORY / "tests" / "support" / "agent_dies.py"
DEL_STEPS = ("before-store", "stored", "offered", "sent", "answered", "acknowledged")
ADD_STEPS = ("opened", *DEL_STEPS)


def _dying_at(step: str) -> list[str]:
    return [sys.executable, str(STEPS), step]


@pytest.mark.parametrize("step", ADD_STEPS)
def test_killed_at_each_step_of_an_add(
    agent: Agent, pod: Pod, start: Callable[..., Daemon], step: str
) -> None:
    """What the caller was told is true afterwards, and a repeated add completes it."""
    ztunnel = start("--zds", agent.zds)
    agent.wait_for_ztunnels(1)
    agent.daemon.kill()
    agent.begin(command=_dying_at(f"add:{step}"))
    agent.wait_for_ztunnels(1, 20)
    with pytest.raises((ConnectionError, OSError)):
        agent.add(pod, uid="u")
    assert agent.daemon.wait() == -9
    agent.begin()
    agent.wait_for_ztunnels(1, 20)
    is_kept = step not in ("opened", "before-store")
    assert (list(agent.workloads()) == ["u"]) == is_kept
    if is_kept:
        agent.wait_for("u", "ready")
    assert (pod.refuses(15008)) == (not is_kept)
    agent.must_add(pod, uid="u")
    assert not pod.refuses(15008)
    assert ztunnel.process.poll() is None


@pytest.mark.parametrize("step", DEL_STEPS)
def test_killed_at_each_step_of_a_del(
    agent: Agent, pod: Pod, start: Callable[..., Daemon], step: str
) -> None:
    """As soon as it is off the disk it is ended, and the next snapshot says so to ztunnel."""
    start("--zds", agent.zds)
    agent.wait_for_ztunnels(1)
    agent.must_add(pod, uid="u")
    agent.daemon.kill()
    agent.begin(command=_dying_at(f"del:{step}"))
    agent.wait_for("u", "ready", seconds=20)
    with pytest.raises((ConnectionError, OSError)):
        agent.delete("u")
    assert agent.daemon.wait() == -9
    agent.begin()
    agent.wait_for_ztunnels(1, 20)
    if step == "before-store":
        assert not pod.refuses(15008)
        assert agent.delete("u").status == 200
    assert agent.workloads() == {}
    assert pod.refuses(15008)
