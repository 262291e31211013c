"""Our two programs against the two that a stranger writes from the walk-through, in Go and C."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support import leaks, wire
from support.pods import Canary, Pod
from support.programs import Daemon, cni, environment, program

LISTENERS = {"127.0.0.1:15008", "127.0.0.1:15006", "127.0.0.1:15001"}

Peers = dict[str, Path]
Start = Callable[..., Daemon]
MakePod = Callable[[], Pod]
MakeCanary = Callable[[Pod], Canary]


def send(peers: Peers, sock_path: str, pod: Pod) -> "subprocess.CompletedProcess[str]":
    """The stranger's sender, to its end."""
    argv = [str(peers["cni_emulator"]), sock_path, pod.path]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def receiver(start: Start, seed_peers: Peers, sock_path: str) -> Callable[..., Daemon]:
    """A function that starts the stranger's receiver on sock_path."""

    def begin(*flags: str) -> Daemon:
        command = [str(seed_peers["ztunnel_emulator"]), *flags]
        running = start(sock_path, command=command, ready=False)
        running.stdout.wait_for("listening")
        return running

    return begin


# ---- our sender, the stranger's receiver ---------------------------------------------------------


def check_served(pod: Pod, receiver: Daemon) -> None:
    receiver.stdout.wait_for("listeners ready")
    assert pod.listening() == LISTENERS
    for port in (15008, 15006, 15001):
        assert pod.ask(port) == b"ok\n"


def test_receiver_that_keeps_silent(
    pod: Pod, receiver: Callable[..., Daemon], sock_path: str
) -> None:
    running = receiver("-hold")
    began = time.monotonic()
    done = cni(sock_path, pod.path, "--timeout", "0.5")
    assert time.monotonic() - began >= 0.5
    assert done.returncode == 0
    assert done.stdout.startswith("sent, not confirmed"), done.stderr
    assert "listeners ready" not in done.stdout
    check_served(pod, running)


def test_receiver_that_keeps_silent_required_to_confirm(
    pod: Pod, receiver: Callable[..., Daemon], sock_path: str
) -> None:
    running = receiver("-hold")
    done = cni(sock_path, pod.path, "--timeout", "0.5", "--require-ready")
    assert done.returncode == 3
    assert "sent, not confirmed" in done.stdout + done.stderr
    assert "listeners ready" not in done.stdout
    check_served(pod, running)


def test_default_timeout_is_two_seconds(
    pod: Pod, receiver: Callable[..., Daemon], sock_path: str
) -> None:
    receiver("-hold")
    began = time.monotonic()
    assert cni(sock_path, pod.path).returncode == 0
    assert 2 <= time.monotonic() - began < 4


@pytest.mark.parametrize(("flags", "code"), [((), 0), (("--require-ready",), 3)])
def test_receiver_that_closes_is_told_at_once(
    pod: Pod, receiver: Callable[..., Daemon], sock_path: str, flags: tuple[str, ...], code: int
) -> None:
    running = receiver()
    began = time.monotonic()
    done = cni(sock_path, pod.path, "--timeout", "60", *flags)
    assert time.monotonic() - began < 20
    assert done.returncode == code
    assert "sent, not confirmed" in done.stdout + done.stderr
    check_served(pod, running)


def test_what_a_stranger_receives(pod: Pod, sock_path: str) -> None:
    """On the wire: the byte 0x01 with one descriptor, which is that netns."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.settimeout(20)
        listener.bind(sock_path)
        listener.listen(1)
        argv = [*program("pyztun-cni"), sock_path, pod.path]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment()) as sender:
            peer, _ = listener.accept()
            data, fds, flags, _ = socket.recv_fds(peer, 16, 8)
            inodes = [os.fstat(fd).st_ino for fd in fds]
            for fd in fds:
                os.close(fd)
            peer.close()
            out, _ = sender.communicate(timeout=20)
    assert (data, inodes, flags) == (wire.TAKE, [pod.inode], 0)
    assert sender.returncode == 0
    assert out.startswith(b"sent, not confirmed")


# ---- the stranger's sender, our receiver ---------------------------------------------------------


def test_sender_that_closes_without_reading(
    pod: Pod, seed_peers: Peers, ztunnel: Daemon, sock_path: str
) -> None:
    sent = send(seed_peers, sock_path, pod)
    assert (sent.returncode, sent.stdout) == (0, "listeners ready\n"), sent.stderr
    check_served(pod, ztunnel)
    assert wire.request(sock_path, wire.LIST).endswith(f"netns={pod.cookie}")
    assert ztunnel.stop() == 0
    assert ztunnel.complaints() == []


def test_what_was_queued_before_closing_is_served(
    make_pod: MakePod, seed_peers: Peers, ztunnel: Daemon, sock_path: str
) -> None:
    """Twenty senders come and go while the receiver is stopped: its backlog has them all."""
    pods = [make_pod() for _ in range(20)]
    ztunnel.process.send_signal(signal.SIGSTOP)
    os.waitpid(ztunnel.pid, os.WUNTRACED)
    for pod in pods:
        assert send(seed_peers, sock_path, pod).returncode == 0
    ztunnel.process.send_signal(signal.SIGCONT)
    ztunnel.stdout.wait_for("listeners ready", count=len(pods))
    for pod in pods:
        assert pod.listening() == LISTENERS
        assert pod.ask(15006) == b"ok\n"


def test_stranger_sends_and_we_release(
    pod: Pod, make_canary: MakeCanary, seed_peers: Peers, ztunnel: Daemon, sock_path: str
) -> None:
    canary = make_canary(pod)
    for count in (1, 2):
        assert send(seed_peers, sock_path, pod).returncode == 0
        ztunnel.stdout.wait_for("listeners ready", count=count)
        assert cni(sock_path, "--release", pod.path).returncode == 0
        assert pod.listening() == set()
    pod.delete()
    assert canary.died()
    assert wire.request(sock_path, wire.LIST) == "end"
    assert ztunnel.netns_inode() == leaks.netns_inode()


# ---- strangers among themselves ------------------------------------------------------------------


def test_the_peers_work_with_each_other(
    pod: Pod, receiver: Callable[..., Daemon], seed_peers: Peers, sock_path: str
) -> None:
    """Else the tests above would prove little."""
    running = receiver()
    assert send(seed_peers, sock_path, pod).stdout == "listeners ready\n"
    check_served(pod, running)


def test_the_loop_form_takes_and_releases(
    make_pod: MakePod, receiver: Callable[..., Daemon], seed_peers: Peers, sock_path: str
) -> None:
    if seed_peers["ztunnel_emulator"].parent.name != "go":
        pytest.skip("-loop exists in Go only")
    receiver("-loop")
    first, second = make_pod(), make_pod()
    with first.opened() as one, second.opened() as two, wire.Peer(sock_path) as peer:
        for _ in range(3):
            assert peer.ask(wire.TAKE, [one]) == "ready"
            assert peer.ask(wire.TAKE, [two]) == "ready"
            assert first.listening() == second.listening() == LISTENERS
            assert peer.ask(wire.RELEASE, [one]) == "released"
            assert (first.listening(), second.listening()) == (set(), LISTENERS)
            assert peer.ask(wire.RELEASE) == "released"
            assert second.listening() == set()
