"""add, del, list and status with the real agent: exit codes, and what is served afterwards."""

import json
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyztun import NetNs
from pyztun.testing import AckingZtunnel, ScriptedZtunnel
from support import needs, programs
from support.agent import Agent
from support.pods import Pod
from support.programs import Daemon

pytestmark = pytest.mark.needs_named_netns
Done = subprocess.CompletedProcess[str]


@pytest.fixture
def agent(start: Callable[..., Daemon], directory: Path) -> Agent:
    """Ready, without any ztunnel."""
    made = Agent(directory, start)
    made.begin()
    return made


def cni(agent: Agent, *words: str) -> Done:
    """Runs a command; what is added is not captured unless a test asks for it."""
    if words[0] == "add" and not any(word.startswith("--capture") for word in words):
        words = (*words, "--capture", "none")
    return programs.cni(*words, env={"PYZTUN_CONTROL": agent.control})


def listed(agent: Agent) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(cni(agent, "list", "--json").stdout)
    return found


def test_the_life_of_a_workload(agent: Agent, pod: Pod) -> None:
    early = cni(agent, "add", pod.name)
    assert (early.returncode, early.stdout, early.stderr.count("\n")) == (1, "", 1)
    assert "no ztunnel is connected; kept as pending (uid " in early.stderr
    (kept,) = listed(agent)
    assert kept["state"] == "pending"
    with AckingZtunnel(agent.zds) as ztunnel:
        agent.wait_for_ztunnels(1)
        done = cni(agent, "add", pod.name)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"ready {pod.name} uid={kept['uid']} netns={kept['cookie']}\n"
        assert ztunnel.workloads == {kept["uid"]: kept["cookie"]}
        (ready,) = listed(agent)
        assert (ready["state"], ready["ztunnels"]) == ("ready", [1])
        assert f"{pod.name}  " in cni(agent, "list").stdout
        status = cni(agent, "status").stdout
        assert "1: 1 ready" in status
        assert "steady" in status
        gone = cni(agent, "del", pod.name)
        assert (gone.returncode, gone.stderr) == (0, "")
        assert ztunnel.workloads == {}
    again = cni(agent, "del", pod.name)
    assert (again.returncode, again.stderr) == (
        1,
        f"pyztun-cni: there is no workload with the uid or netns {pod.name}\n",
    )


@pytest.mark.needs_nft
def test_the_life_of_one_that_is_captured(agent: Agent, pod: Pod) -> None:
    early = programs.cni("add", pod.name, env={"PYZTUN_CONTROL": agent.control})
    assert (early.returncode, early.stdout, early.stderr.count("\n")) == (1, "", 1)
    assert "no ztunnel is connected; kept as pending" in early.stderr
    assert "; connections from before were reset, new ones are refused until it" in early.stderr
    (kept,) = listed(agent)
    assert kept["capture"] == "redirect"  # by default
    with AckingZtunnel(agent.zds):
        agent.wait_for_ztunnels(1)
        again = cni(agent, "add", pod.name, "--capture", "redirect")
        assert again.stdout == f"ready {pod.name} uid={kept['uid']} netns={kept['cookie']}\n"
        assert "rules in 1 pod, repaired 0 times" in cni(agent, "status").stdout
        assert " redirect " in cni(agent, "list").stdout
        assert cni(agent, "del", pod.name).returncode == 0
        assert "pyztun" not in pod.exec("nft", "list", "ruleset").stdout
        words = ("add", pod.name, "--capture=redirect", "--json")
        assert json.loads(cni(agent, *words).stdout)["connections_reset"] is True


def test_every_way_to_name_a_netns(agent: Agent, pod: Pod) -> None:
    with AckingZtunnel(agent.zds) as ztunnel:
        agent.wait_for_ztunnels(1)
        for netns in (pod.name, str(pod.path)):
            assert cni(agent, "add", netns).returncode == 0
        (one,) = listed(agent)
        for key in (pod.name, str(pod.path), one["uid"], f"cookie:{one['cookie']}"):
            assert cni(agent, "add", pod.name).returncode == 0
            assert cni(agent, "del", str(key)).returncode == 0
        assert ztunnel.workloads == {}


def test_a_process_names_its_netns(agent: Agent, pod: Pod) -> None:
    inside = ["ip", "netns", "exec", pod.name, "sh", "-c", "echo there; exec cat"]
    with (
        AckingZtunnel(agent.zds) as ztunnel,
        NetNs.from_name(pod.name) as netns,
        subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
    ):
        agent.wait_for_ztunnels(1)
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"there\n"
        done = cni(agent, "add", f"pid:{process.pid}", "--name", "p")
        assert (done.returncode, done.stderr) == (0, "")
        assert list(ztunnel.workloads.values()) == [netns.cookie]
        assert cni(agent, "del", f"pid:{process.pid}").returncode == 0
        process.stdin.close()


def test_an_inherited_descriptor(agent: Agent) -> None:
    with AckingZtunnel(agent.zds) as ztunnel, NetNs.create() as nameless:
        agent.wait_for_ztunnels(1)
        done = subprocess.run(
            [
                *programs.program("pyztun-cni"),
                "add",
                f"fd:{nameless.fileno()}",
                "--uid",
                "u",
                "--capture",
                "none",
            ],
            env=programs.environment({"PYZTUN_CONTROL": agent.control}),
            pass_fds=[nameless.fileno()],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert ztunnel.workloads == {"u": nameless.cookie}


def test_a_refusal_is_exit_1_with_the_reason(agent: Agent, pod: Pod) -> None:
    with ScriptedZtunnel(agent.zds) as ztunnel, ThreadPoolExecutor() as pool:
        ztunnel.request().ack()
        adding = pool.submit(cni, agent, "add", pod.name)
        with ztunnel.request() as request:
            request.nack("the pod is on fire")
        done = adding.result(20)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert "the pod is on fire; kept as pending" in done.stderr


def test_a_timeout_is_exit_1(agent: Agent, pod: Pod) -> None:
    with ScriptedZtunnel(agent.zds) as ztunnel, ThreadPoolExecutor() as pool:
        ztunnel.request().ack()
        adding = pool.submit(cni, agent, "add", pod.name, "--timeout", "0.3")
        with ztunnel.request():
            done = adding.result(20)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert "no answer in 0.3 s; kept as pending" in done.stderr


def test_an_unconfirmed_del_is_exit_3(agent: Agent, pod: Pod) -> None:
    with ScriptedZtunnel(agent.zds) as ztunnel, ThreadPoolExecutor() as pool:
        ztunnel.request().ack()
        adding = pool.submit(cni, agent, "add", pod.name)
        with ztunnel.request() as request:
            request.ack()
        assert adding.result(20).returncode == 0
        deleting = pool.submit(cni, agent, "del", pod.name, "--timeout", "0.3")
        with ztunnel.request():
            done = deleting.result(20)
        assert done.returncode == 3
        assert done.stdout.startswith(f"deleted {pod.name} uid=")
        assert "not confirmed by ztunnel 1" in done.stderr
        assert listed(agent) == []


def test_the_agents_own_netns_and_a_second_uid(agent: Agent, pod: Pod) -> None:
    home = cni(agent, "add", "/proc/self/ns/net")
    assert (home.returncode, home.stderr.count("\n")) == (1, 1)
    with AckingZtunnel(agent.zds):
        agent.wait_for_ztunnels(1)
        assert cni(agent, "add", pod.name, "--uid", "u").returncode == 0
        second = cni(agent, "add", pod.name, "--uid", "v")
        assert second.returncode == 1
        assert "is workload u " in second.stderr


def test_many_adds_in_a_row_and_at_once(agent: Agent, make_pod: Callable[[], Pod]) -> None:
    pods = [make_pod() for _ in range(20)]
    with AckingZtunnel(agent.zds) as ztunnel, ThreadPoolExecutor(4) as pool:
        agent.wait_for_ztunnels(1)
        done = [cni(agent, "add", each.name) for each in pods]
        done += pool.map(lambda each: cni(agent, "add", each.name), pods)
        assert [each.stderr for each in done if each.returncode != 0] == []
        assert len(ztunnel.workloads) == len(listed(agent)) == 20
        gone = list(pool.map(lambda each: cni(agent, "del", each.name), pods))
        assert {each.returncode for each in gone} == {0}
        assert ztunnel.workloads == {}


@pytest.mark.needs_root
def test_another_user_may_not(agent: Agent, no_capability: list[str]) -> None:
    os.chmod(agent.control, 0o666)
    done = programs.cni("list", "--control", agent.control, wrap=no_capability)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"pyztun-cni: uid {needs.STRANGER} may not ask\n"
