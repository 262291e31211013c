"""The test tools themselves: a check that cannot fail would prove nothing."""

import os
import socket
import subprocess
from collections.abc import Callable

import pytest

from support import leaks, needs, pods, programs


@pytest.mark.needs_named_netns
def test_remains_of_a_killed_run_are_removed_and_nothing_else() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    remains = pods.Pod(f"pz{ended.pid}-1")
    alive = pods.Pod()
    pods.remove_remains()
    assert (remains.exists, alive.exists) == (False, True)
    alive.delete()


@pytest.mark.needs_netns
def test_work_in_a_netns_leaves_the_main_thread_at_home() -> None:
    home = leaks.netns_inode()
    fd = pods.nameless_netns()
    seen = pods.in_netns(
        fd, lambda: (os.stat("/proc/thread-self/ns/net").st_ino, leaks.netns_inode())
    )
    assert seen == (os.fstat(fd).st_ino, home)
    os.close(fd)
    with pytest.raises(OSError, match="setns"):
        pods.in_netns("/dev/null", lambda: None)


def test_listening_is_seen_in_its_netns_only(pod: pods.Pod) -> None:
    with pods.in_netns(pod.path, socket.socket) as listener:
        listener.bind(("127.0.0.1", 15008))
        listener.listen()
        assert pod.listening() == {"127.0.0.1:15008"}
        assert "127.0.0.1:15008" not in pods.listening()
        assert not pod.refuses(15008)
    assert pod.refuses(15008)


def test_canary_lives_as_long_as_something_holds_the_netns(
    pod: pods.Pod, make_canary: Callable[[pods.Pod], pods.Canary]
) -> None:
    canary = make_canary(pod)
    holder = pods.in_netns(pod.path, socket.socket)
    pod.delete()
    assert canary.alive
    assert not canary.died(seconds=0.2)
    holder.close()
    assert canary.died()


def test_daemon_that_ends_before_it_is_ready_is_told_at_once() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"ended with 3 before READY=1: \['why'\]"):
        programs.Daemon(command=["sh", "-c", "echo why >&2; exit 3"])


def test_only_sys_admin_is_the_only_capability(only_sys_admin: list[str]) -> None:
    show = ["cat", "/proc/self/status"]
    with programs.Daemon(command=show, wrap=only_sys_admin, ready=False) as shown:
        assert shown.wait() == 0
    status = dict(line.split(":\t", 1) for line in shown.stdout.all() if ":\t" in line)
    assert status["Uid"].split() == [str(needs.STRANGER)] * 4
    assert [int(status[name], 16) for name in ("CapEff", "CapBnd", "CapAmb")] == [1 << 21] * 3


def test_no_capability_can_still_import_the_package(no_capability: list[str]) -> None:
    done = programs.run_program("pyztun-cni", "--help", wrap=no_capability)
    assert done.returncode == 0, done.stderr
