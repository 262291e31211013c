"""How the daemon starts, drains and ends, also when it is killed."""

import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from pyztun import NetNs
from support import leaks, pods, programs, wire
from support.pods import Pod
from support.programs import Daemon, cni
from support.zt_daemon import LISTENERS, PORTS, frozen, is_served, netns, settled_fds

Start = Callable[..., Daemon]
MakePod = Callable[[], Pod]


def hand_over(sock_path: str, pod: Pod) -> None:
    done = cni(sock_path, pod.path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "listeners ready\n", "")


# ---- drain ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_idle_daemon_ends_with_0_and_removes_its_file(
    start: Start, sock_path: str, number: int
) -> None:
    daemon = start(sock_path)
    assert daemon.stop(number) == 0
    assert not os.path.lexists(sock_path)
    assert daemon.complaints() == []


def test_peers_are_let_go_while_clients_of_the_pod_are_waited_for(
    pod: Pod, start: Start, sock_path: str
) -> None:
    """Nobody reads their requests any more: they are told so at once, not after five seconds."""
    daemon = start(sock_path)
    hand_over(sock_path, pod)
    with wire.Peer(sock_path) as peer, pod.connect(15008) as client:
        assert client.recv(10) == b"ok\n"
        assert peer.ask(wire.LIST).startswith("held")
        began = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        assert peer.lines() == ["end"]
        assert time.monotonic() - began < 2
        assert daemon.process.poll() is None, "it waits for the client"
        client.close()
        assert daemon.wait() == 0


def test_what_is_queued_is_answered_at_the_end(
    make_pod: MakePod, start: Start, sock_path: str
) -> None:
    """SIGTERM finds requests on old and new connections, and clients of the pod, all waiting."""
    daemon = start(sock_path)
    held, late = make_pod(), make_pod()
    hand_over(sock_path, held)
    with ExitStack() as stack:
        old = stack.enter_context(wire.Peer(sock_path))
        assert old.ask(wire.LIST).startswith("held")
        fd, late_fd = stack.enter_context(held.opened()), stack.enter_context(late.opened())
        with frozen(daemon):
            new = [stack.enter_context(wire.Peer(sock_path)) for _ in range(50)]
            for peer in new:
                peer.send(wire.RELEASE_COOKIE + b"1\n")
            old.send(wire.TAKE, [fd])
            old.send(wire.RELEASE_COOKIE + b"2\n")
            taker = stack.enter_context(wire.Peer(sock_path))
            taker.send(wire.TAKE, [late_fd])
            clients = [stack.enter_context(held.connect(port)) for port in PORTS * 10]
            daemon.process.send_signal(signal.SIGTERM)
        for client in clients:
            assert pods.read_to_end(client) == b"ok\n"
            client.close()
        for peer in new:
            assert peer.lines() == ["released netns=1"]
        assert old.line() == "end"
        answers = old.lines()
        assert [answer.split()[0] for answer in answers] == ["ready", "released"]
        # A pod that comes while it ends may be taken and let go, or refused: never unanswered.
        (answer,) = taker.lines()
        assert answer == "error shutting down" or answer.startswith("ready ")
    assert daemon.wait() == 0
    assert not os.path.lexists(sock_path)
    assert held.listening() == late.listening() == set()
    assert "Traceback" not in "\n".join(daemon.stderr.all())


def test_the_file_is_gone_before_the_drain_ends(pod: Pod, start: Start, sock_path: str) -> None:
    daemon = start(sock_path)
    hand_over(sock_path, pod)
    with pod.connect(15008) as client:
        assert client.recv(10) == b"ok\n"
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_notification("STOPPING=1")
        while os.path.lexists(sock_path):
            os.sched_yield()
        assert daemon.process.poll() is None, "it waits for its client"
        client.close()
    assert daemon.wait(4) == 0


def test_a_second_signal_ends_at_once(pod: Pod, start: Start, sock_path: str) -> None:
    daemon = start(sock_path)
    hand_over(sock_path, pod)
    with pod.connect(15008) as client:
        assert client.recv(10) == b"ok\n"
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_notification("STOPPING=1")
        assert daemon.process.poll() is None
        began = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.wait() == 1
        assert time.monotonic() - began < 1.5
    assert not os.path.lexists(sock_path)
    assert pod.listening() == set()


@pytest.mark.slow
def test_a_client_that_stays_is_cut_at_its_deadline(pod: Pod, start: Start, sock_path: str) -> None:
    daemon = start(sock_path)
    hand_over(sock_path, pod)
    with pod.connect(15008) as client:
        assert client.recv(10) == b"ok\n"
        began = time.monotonic()
        assert daemon.stop() == 0
        assert 3 < time.monotonic() - began < 7


@pytest.mark.slow
def test_peers_that_go_on_asking_do_not_keep_it_from_ending(start: Start, sock_path: str) -> None:
    daemon = start(sock_path)
    over = threading.Event()
    all_ask = threading.Barrier(5)

    def ask() -> None:
        with wire.Peer(sock_path) as peer:
            peer.ask(wire.LIST)
            all_ask.wait(20)
            try:
                while not over.is_set():
                    peer.ask(wire.LIST)
            except ConnectionError:
                return

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    all_ask.wait(20)
    began = time.monotonic()
    try:
        assert daemon.stop() == 0
        assert time.monotonic() - began < 5
    finally:
        over.set()
        for asker in askers:
            asker.join()


# ---- notification --------------------------------------------------------------------------------


def test_ready_and_stopping(start: Start, sock_path: str) -> None:
    daemon = start(sock_path)
    assert daemon.notifications == ["READY=1"]
    is_served(sock_path)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_notification("STOPPING=1")
    assert daemon.notifications == ["READY=1", "STOPPING=1"]
    assert daemon.wait() == 0


def run_until(env: dict[str, str], sock_path: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*programs.program("pyztun-ztunnel"), sock_path],
        env=programs.environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_abstract_notify_socket(sock_path: str) -> None:
    name = f"pyztun-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(f"\0{name}")
        notify.settimeout(20)
        with run_until({"NOTIFY_SOCKET": f"@{name}"}, sock_path) as daemon:
            assert notify.recv(100) == b"READY=1"
            daemon.terminate()
            assert notify.recv(100) == b"STOPPING=1"
            assert daemon.wait(20) == 0


@pytest.mark.parametrize("value", ["", "/nonexistent/notify", "relative", "@", "/" + "x" * 300])
def test_a_notify_socket_that_does_not_work_is_no_failure(sock_path: str, value: str) -> None:
    with run_until({"NOTIFY_SOCKET": value}, sock_path) as daemon:
        assert daemon.stderr is not None
        assert " listening " in daemon.stderr.readline()
        is_served(sock_path)
        daemon.terminate()
        assert daemon.wait(20) == 0
        assert "Traceback" not in daemon.stderr.read()


# ---- killed --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.needs_netns
def test_killed_at_any_moment_a_restart_works(start: Start, sock_path: str) -> None:
    """SIGKILL after a random number of answers, under four senders; then the same path."""
    chance = random.Random(0)  # repeatable
    with netns(4) as some:
        for _ in range(12):
            daemon = start(sock_path)
            _kill_under_load(daemon, sock_path, some, chance.randrange(60))
            for pod in some:
                assert pods.listening(pod.fileno()) == set()
        daemon = start(sock_path)
        for pod in some:
            assert wire.request(sock_path, wire.TAKE, [pod.fileno()]).startswith("ready ")
            assert pods.listening(pod.fileno()) == set(LISTENERS)
        assert daemon.stop() == 0


def _kill_under_load(daemon: Daemon, path: str, some: list[NetNs], after: int) -> None:
    answers = threading.Semaphore(0)

    def ask(pod: NetNs) -> None:
        try:
            with wire.Peer(path) as peer:
                while peer.ask(wire.TAKE, [pod.fileno()]) and peer.ask(
                    wire.RELEASE, [pod.fileno()]
                ):
                    answers.release()
        except OSError:  # killed
            return

    askers = [threading.Thread(target=ask, args=(pod,)) for pod in some]
    for asker in askers:
        asker.start()
    for _ in range(after):
        answers.acquire()
    daemon.kill()
    for asker in askers:
        asker.join()
    assert os.path.lexists(path), "SIGKILL leaves the file behind"


def test_killed_before_it_was_ready(start: Start, sock_path: str) -> None:
    """Killed as soon as the file appears, between bind() and READY=1."""
    for _ in range(3):
        daemon = start(sock_path, ready=False)
        while not os.path.lexists(sock_path) and daemon.process.poll() is None:
            os.sched_yield()
        daemon.kill()
        assert os.path.lexists(sock_path)
        daemon = start(sock_path)
        is_served(sock_path)
        assert daemon.stop() == 0


def test_a_second_daemon_on_the_same_path_is_refused(ztunnel: Daemon, sock_path: str) -> None:
    done = programs.run_program("pyztun-ztunnel", sock_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"pyztun-ztunnel: {sock_path} is in use: another process answers there\n"
    is_served(sock_path)


def test_where_its_threads_are(pod: Pod, ztunnel: Daemon, sock_path: str) -> None:
    """Between handoffs every thread is at home, and the main thread never left."""
    hand_over(sock_path, pod)
    for tid in ztunnel.threads():
        inode = os.stat(f"/proc/{ztunnel.pid}/task/{tid}/ns/net").st_ino
        assert inode == leaks.netns_inode()


def test_children_of_the_daemon_would_inherit_nothing(
    pod: Pod, ztunnel: Daemon, sock_path: str
) -> None:
    """Every descriptor beyond stdio is close-on-exec."""
    hand_over(sock_path, pod)
    settled = settled_fds(ztunnel, sock_path)
    assert len(settled) > 8
    for fd, target in settled.items():
        if fd > 2:
            with open(f"/proc/{ztunnel.pid}/fdinfo/{fd}") as info:
                flags = next(int(line.split()[1], 8) for line in info if line.startswith("flags"))
            assert flags & os.O_CLOEXEC, (fd, target)
