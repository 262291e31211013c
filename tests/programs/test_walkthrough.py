"""What the walk-through shows, step by step, and that nothing of the pod is left at its end."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable

import pytest

from support import leaks, pods
from support.pods import Canary, Pod
from support.programs import Daemon, cni

PORTS = (15008, 15006, 15001)
LISTENERS = {f"127.0.0.1:{port}" for port in PORTS}

Start = Callable[..., Daemon]
MakePod = Callable[[], Pod]
MakeCanary = Callable[[Pod], Canary]


def ss_listeners(pod: Pod) -> dict[str, tuple[int, str]]:
    """`ip netns exec NAME ss -ntlp` as address -> (backlog, process column)."""
    shown = pod.exec("ss", "-ntlp")
    assert shown.returncode == 0, shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines()]
    listening = [row for row in rows if row[0] == "LISTEN"]
    return {row[3]: (int(row[2]), " ".join(row[5:])) for row in listening}


def nc(pod: Pod, *args: str) -> "subprocess.CompletedProcess[str]":
    """`nc ARGS...` with an empty stdin inside the pod; -N so that it ends with the connection."""
    return pod.exec("nc", "-N", "-w", "10", *args)


def held_cookies(sock_path: str) -> set[int]:
    listed = cni(sock_path, "--list")
    assert listed.returncode == 0, listed.stderr
    return {int(each) for each in re.findall(r"netns=(\d+)", listed.stdout)}


def netns_held_by(daemon: Daemon) -> set[int]:
    """The inodes of the netns of which the process has a descriptor."""
    return {int(each[5:-1]) for each in daemon.fds().values() if each.startswith("net:[")}


def hand_over(sock_path: str, pod: Pod) -> None:
    done = cni(sock_path, pod.path.replace("/run/", "/var/run/"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "listeners ready\n", "")


@pytest.mark.skipif(shutil.which("nc") is None, reason="nc is not installed (netcat-openbsd)")
def test_walkthrough(
    make_pod: MakePod, make_canary: MakeCanary, start: Start, sock_path: str
) -> None:
    pod = make_pod()
    loopback = subprocess.run(
        ["ip", "-n", pod.name, "link", "show", "lo"], capture_output=True, text=True, check=True
    )
    assert "LOOPBACK,UP" in loopback.stdout

    ztunnel = start(sock_path)
    home = leaks.netns_inode()
    home_listeners = pods.listening()
    assert ss_listeners(pod) == {}

    hand_over(sock_path, pod)
    ztunnel.stdout.wait_for("listeners ready")

    listeners = ss_listeners(pod)
    assert set(listeners) == LISTENERS
    for backlog, process in listeners.values():
        assert backlog == 4096
        assert f"pid={ztunnel.pid}," in process
    assert pods.listening() == home_listeners
    assert ztunnel.netns_inode() == home != pod.inode

    for port in PORTS:
        probe = nc(pod, "-v", "-z", "localhost", str(port))
        assert probe.returncode == 0, probe.stderr
        assert "succeeded" in probe.stderr
        answer = nc(pod, "localhost", str(port))
        assert (answer.returncode, answer.stdout) == (0, "ok\n"), answer.stderr
    refused = nc(pod, "-v", "-z", "localhost", "15002")
    assert refused.returncode == 1
    assert "Connection refused" in refused.stderr

    canary = make_canary(pod)
    released = cni(sock_path, "--release", pod.path)
    assert released.returncode == 0, released.stderr
    assert ss_listeners(pod) == {}
    assert all(pod.refuses(port) for port in PORTS)
    pod.delete()
    assert canary.died()

    assert ztunnel.stop() == 0
    assert ztunnel.complaints() == []
    assert not os.path.lexists(sock_path)


def test_ten_pods_at_a_time(make_pod: MakePod, ztunnel: Daemon, sock_path: str) -> None:
    all_pods = [make_pod() for _ in range(10)]
    done = cni(sock_path, *(pod.path for pod in all_pods))
    assert (done.returncode, done.stdout) == (0, "listeners ready\n" * 10), done.stderr
    for pod in all_pods:
        assert pod.listening() == LISTENERS
        assert pod.ask(15008) == b"ok\n"
    assert held_cookies(sock_path) == {pod.cookie for pod in all_pods}
    assert ztunnel.netns_inode() == leaks.netns_inode()


def test_deleted_first_then_released_by_cookie(
    pod: Pod, make_canary: MakeCanary, ztunnel: Daemon, sock_path: str
) -> None:
    canary = make_canary(pod)
    hand_over(sock_path, pod)
    pod.delete()
    assert not os.path.lexists(pod.path)

    # The listeners hold the namespace, to which nothing on the file system leads any more.
    assert canary.alive
    assert held_cookies(sock_path) == {pod.cookie}

    gone = cni(sock_path, "--release", pod.path)
    assert gone.returncode == 1
    assert pod.path in gone.stderr
    assert gone.stderr.count("\n") == 1

    released = cni(sock_path, "--release", f"cookie:{pod.cookie}")
    assert released.returncode == 0, released.stderr
    assert held_cookies(sock_path) == set()
    assert canary.died()
    assert netns_held_by(ztunnel) == {leaks.netns_inode()}


def test_released_first_then_deleted(
    pod: Pod, make_canary: MakeCanary, ztunnel: Daemon, sock_path: str
) -> None:
    canary = make_canary(pod)
    hand_over(sock_path, pod)
    released = cni(sock_path, "--release", pod.path)
    assert released.returncode == 0, released.stderr
    assert canary.alive
    pod.delete()
    assert canary.died()
    assert netns_held_by(ztunnel) == {leaks.netns_inode()}


def test_the_end_of_the_daemon_frees_a_deleted_pod(
    pod: Pod, make_canary: MakeCanary, start: Start, sock_path: str
) -> None:
    ztunnel = start(sock_path)
    canary = make_canary(pod)
    hand_over(sock_path, pod)
    pod.delete()
    assert canary.alive
    assert ztunnel.stop() == 0
    assert canary.died()


def test_release_of_what_is_not_held_is_no_failure(
    pod: Pod, ztunnel: Daemon, sock_path: str
) -> None:
    for reference in (pod.path, "cookie:1"):
        released = cni(sock_path, "--release", reference)
        assert released.returncode == 0, released.stderr
    assert held_cookies(sock_path) == set()
    assert ztunnel.process.poll() is None


def test_a_name_is_enough_and_twice_is_once(pod: Pod, ztunnel: Daemon, sock_path: str) -> None:
    for reference in (pod.name, pod.path):
        done = cni(sock_path, reference)
        assert (done.returncode, done.stdout) == (0, "listeners ready\n"), done.stderr
    assert pod.listening() == LISTENERS
    ztunnel.stdout.wait_for("listeners ready")
    assert ztunnel.stop() == 0
    assert ztunnel.stdout.all().count("listeners ready") == 1
