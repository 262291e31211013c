"""A netns that changes under its reference, and what puts it right again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pyztun import NetNs
from pyztun.protocol import zds
from pyztun.testing import AckingZtunnel, ScriptedZtunnel
from support import REPOSITORY
from support.agent import Agent
from support.pods import Pod, unique_name
from support.programs import Daemon
from support.zt_daemon import frozen

pytestmark = pytest.mark.needs_named_netns

DIES = REPOSITORY / "tests" / "support" / "agent_dies.py"
SECOND = 1.0
"""In which a replacement is found."""


@contextmanager
def named(name: str) -> Iterator[NetNs]:
    """A netns of that name."""
    with NetNs.create(name) as netns:
        try:
            yield netns
        finally:
            netns.remove()


def path_of(netns: NetNs) -> str:
    return f"/run/netns/{netns.reference}"


@contextmanager
def process_in(netns: NetNs) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has entered it."""
    path = f"/proc/{os.getpid()}/fd/{netns.fileno()}"
    process = subprocess.Popen(["nsenter", f"--net={path}", "sleep", "600"])
    try:
        while os.stat(f"/proc/{process.pid}/ns/net").st_ino != netns.inode:
            os.sched_yield()
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def ztunnel(agent: Agent) -> Iterator[AckingZtunnel]:
    """One that agrees to everything."""
    with AckingZtunnel(agent.zds) as made:
        agent.wait_for_ztunnels(1)
        yield made


def test_replacement_is_found_within_a_second(agent: Agent, ztunnel: AckingZtunnel) -> None:
    name = unique_name()
    with named(name):
        agent.must_add(f"/run/netns/{name}", uid="u")
    with named(name) as second:
        began = time.monotonic()
        ztunnel.wait_for(lambda workloads: workloads == {"u": second.cookie}, SECOND)
        agent.wait_for("u", "ready", cookie=second.cookie)
        assert time.monotonic() - began < SECOND


def test_replacement_in_one_burst_is_one_replacement(
    agent: Agent, start: Callable[..., Daemon]
) -> None:
    """In between there is no netns; nobody is told of that."""
    name = unique_name()
    start("--zds", agent.zds)
    agent.wait_for_ztunnels(1)
    with ExitStack() as stack:
        with named(name):
            agent.must_add(f"/run/netns/{name}", uid="u")
            stack.enter_context(frozen(agent.daemon))
        second = stack.enter_context(named(name))
        agent.daemon.process.send_signal(signal.SIGCONT)
        agent.wait_for("u", "ready", cookie=second.cookie)
        agent.daemon.stderr.wait_for("netns-replaced")
        assert not [line for line in agent.daemon.stderr.all() if "netns-gone" in line]


def test_bind_mount_over_a_netns_is_a_replacement(agent: Agent, ztunnel: AckingZtunnel) -> None:
    name = unique_name()
    with named(name), NetNs.create() as over:
        path = f"/run/netns/{name}"
        agent.must_add(path, uid="u")
        subprocess.run(
            ["mount", "--bind", f"/proc/{os.getpid()}/fd/{over.fileno()}", path], check=True
        )
        try:
            ztunnel.wait_for(lambda workloads: workloads == {"u": over.cookie}, SECOND)
        finally:
            subprocess.run(["umount", "-l", path], check=True)  # the agent holds it


def test_vanished_netns_is_deleted_and_the_row_stays(agent: Agent, ztunnel: AckingZtunnel) -> None:
    name = unique_name()
    before = agent.settled_fds()
    with named(name):
        agent.must_add(f"/run/netns/{name}", uid="u")
    ztunnel.wait_for(lambda workloads: workloads == {}, SECOND)
    agent.wait_for("u", "degraded", "netns gone")
    agent.wait_for_fds(lambda fds: fds == before)
    with named(name) as second:
        ztunnel.wait_for(lambda workloads: workloads == {"u": second.cookie}, SECOND)
        agent.wait_for("u", "ready", cookie=second.cookie)


def test_add_during_which_the_pod_dies(agent: Agent) -> None:
    """The netns lives as long as the agent holds it: whatever ztunnel says, a Del follows."""
    name = unique_name()
    with ScriptedZtunnel(agent.zds) as ztunnel:
        ztunnel.request().ack()
        with named(name):
            adding = subprocess.Popen(
                ["curl", "-sS", "--unix-socket", agent.control, "http://agent/v1/workloads",
                 "-d", f'{{"netns": "{name}", "uid": "u"}}'],
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            add = ztunnel.request()
        agent.wait_for("u", "degraded", "netns gone")
        add.nack("setns: no such netns")
        with ztunnel.request() as request:
            assert request.message == zds.Del("u")
            request.ack()
        assert '"no-such-netns"' in adding.communicate(timeout=20)[0]
        assert agent.workloads()["u"]["state"] == "degraded"


def test_symbolic_link_that_is_turned(
    agent: Agent, ztunnel: AckingZtunnel, directory: Path
) -> None:
    link = directory / "link"
    with named(unique_name()) as one, named(unique_name()) as two:
        link.symlink_to(path_of(one))
        agent.must_add(str(link), uid="u", name="n")
        new = directory / "new"
        new.symlink_to(path_of(two))
        new.rename(link)
        ztunnel.wait_for(lambda workloads: workloads == {"u": two.cookie}, SECOND + 1)


def test_process_that_ends(agent: Agent, ztunnel: AckingZtunnel) -> None:
    with NetNs.create() as netns, process_in(netns) as process:
        agent.must_add(f"pid:{process.pid}", uid="u")
        process.kill()
        process.wait()
        ztunnel.wait_for(lambda workloads: workloads == {}, SECOND + 1)
        agent.wait_for("u", "degraded", "netns gone")


def test_process_that_moves(agent: Agent, ztunnel: AckingZtunnel) -> None:
    """The same process is the same workload, wherever it is."""
    script = (
        "import ctypes, os, sys; setns = ctypes.CDLL(None).setns;"
        "[setns(os.open(sys.stdin.readline().strip(), 0), 0) for _ in range(2)];"
        "sys.stdin.readline()"
    )
    with NetNs.create() as one, NetNs.create() as two:
        process = subprocess.Popen(
            ["python3", "-c", script], stdin=subprocess.PIPE, text=True, bufsize=1
        )
        with process:
            assert process.stdin is not None
            process.stdin.write(f"/proc/{os.getpid()}/fd/{one.fileno()}\n")
            while os.stat(f"/proc/{process.pid}/ns/net").st_ino != one.inode:
                os.sched_yield()
            agent.must_add(f"pid:{process.pid}", uid="u")
            process.stdin.write(f"/proc/{os.getpid()}/fd/{two.fileno()}\n")
            ztunnel.wait_for(lambda workloads: workloads == {"u": two.cookie}, SECOND + 1)
            process.kill()


def test_path_that_comes_to_mean_the_netns_of_another_one(
    agent: Agent, ztunnel: AckingZtunnel, directory: Path
) -> None:
    link = directory / "link"
    with named(unique_name()) as one, named(unique_name()) as two:
        agent.must_add(one.reference, uid="one")
        link.symlink_to(path_of(two))
        agent.must_add(str(link), uid="two")
        link.unlink()
        link.symlink_to(path_of(one))
        agent.wait_for("two", "degraded", "its netns is workload one")
        ztunnel.wait_for(lambda workloads: workloads == {"one": one.cookie})


def test_two_that_change_places(agent: Agent, ztunnel: AckingZtunnel) -> None:
    """In one burst, so that each is found in the other's netns while that one is held there."""
    with named(unique_name()) as one, named(unique_name()) as two:
        for uid, netns in (("1", one), ("2", two)):
            agent.must_add(path_of(netns), uid=uid)
        swap = (
            f"umount -l {path_of(one)} {path_of(two)};"
            f"mount --bind /proc/{os.getpid()}/fd/{one.fileno()} {path_of(two)};"
            f"mount --bind /proc/{os.getpid()}/fd/{two.fileno()} {path_of(one)}"
        )
        subprocess.run(["sh", "-ec", swap], check=True)
        try:
            wanted = {"1": two.cookie, "2": one.cookie}
            ztunnel.wait_for(lambda workloads: workloads == wanted, SECOND)
            agent.wait_for("1", "ready", cookie=two.cookie)
            agent.wait_for("2", "ready", cookie=one.cookie)
        finally:
            for netns in (one, two):
                subprocess.run(["umount", "-l", path_of(netns)], check=True)
            for netns in (one, two):
                number = f"/proc/{os.getpid()}/fd/{netns.fileno()}"
                subprocess.run(["mount", "--bind", number, path_of(netns)], check=True)


def test_netns_that_another_one_lets_go_of(
    agent: Agent, ztunnel: AckingZtunnel, directory: Path
) -> None:
    link = directory / "link"
    with named(unique_name()) as one:
        agent.must_add(one.reference, uid="one")
        link.symlink_to(path_of(one))
        with named(unique_name()) as two:
            (directory / "other").symlink_to(path_of(two))
            agent.must_add(str(directory / "other"), uid="two")
            (directory / "other").unlink()
            link.rename(directory / "other")
            agent.wait_for("two", "degraded", "its netns is workload one")
            agent.delete("one")
            ztunnel.wait_for(lambda workloads: workloads == {"two": one.cookie})


def test_netns_replaced_while_the_agent_starts(agent: Agent, pod: Pod) -> None:
    """Mount events count from before the first look: this happens right behind it."""
    first = agent.add(pod, uid="u").body["workload"]["cookie"]
    agent.daemon.kill()
    replace = f"load:ip netns del {pod.name} && ip netns add {pod.name}"
    agent.begin(command=[sys.executable, str(DIES), replace])
    agent.wait_until(lambda found: found["u"]["cookie"] not in (None, first), SECOND)


def test_what_cannot_be_opened_now_is_kept(
    agent: Agent, directory: Path, own_userns: list[str]
) -> None:
    """After a restart, as a user who may no longer enter the directory of the netns."""
    del own_userns
    hidden = directory / "hidden"
    hidden.mkdir()
    with named(unique_name()) as netns:
        (hidden / "link").symlink_to(path_of(netns))
        agent.add(str(hidden / "link"), uid="u")
        agent.daemon.kill()
        hidden.chmod(0)
        drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
        try:
            agent.begin(wrap=drop)
            agent.wait_for("u", "degraded", "cannot be")
            with ScriptedZtunnel(agent.zds) as ztunnel:
                with ztunnel.request() as request:
                    assert request.message == zds.Keep("u")
                    request.ack()
                with ztunnel.request() as request:
                    assert request.message == zds.SnapshotSent()
                    request.ack()
                hidden.chmod(0o755)
                with ztunnel.request() as request:
                    assert isinstance(request.message, zds.Add)
                    assert request.cookie == netns.cookie
                    request.ack()
                agent.wait_for("u", "ready")
        finally:
            hidden.chmod(0o755)


def test_reconcile_offers_what_the_newest_does_not_have(
    agent: Agent, make_pod: Callable[[], Pod]
) -> None:
    agent.daemon.kill()
    agent.begin("--reconcile", "0.05")
    pods = [make_pod() for _ in range(3)]
    with AckingZtunnel(agent.zds) as ztunnel:
        agent.wait_for_ztunnels(1)
        for pod in pods:
            agent.must_add(pod)
        pods[0].delete()
        agent.wait_until(
            lambda found: [each["state"] for each in found.values()].count("ready") == 2
        )
        passes = agent.status()["reconcile"]["passes"]
        while agent.status()["reconcile"]["passes"] < passes + 3:
            os.sched_yield()
        assert len(ztunnel.workloads) == 2
        assert agent.status()["workloads"] == {"ready": 2, "pending": 0, "degraded": 1}
        assert agent.status()["reconcile"]["last_cpu"] > 0
