"""Root in a pod destroys a listener (`ss -K`): nothing spins, and the next take makes it anew."""

import subprocess
import time

import pytest

from support import wire
from support.pods import Pod
from support.programs import Daemon
from support.zt_daemon import LISTENERS, is_served

SPUN = 0.25  # seconds of CPU in a second: a spinning thread takes all of it


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / 100


def test_a_destroyed_listener_costs_nothing_and_is_remade(
    pod: Pod, ztunnel: Daemon, sock_path: str
) -> None:
    with pod.opened() as fd, wire.Peer(sock_path) as peer:
        first = peer.ask(wire.TAKE, [fd])
        done = pod.exec("ss", "-K", "-ltn", "sport = :15008")
        if "127.0.0.1:15008" in pod.listening():
            pytest.skip(f"this kernel cannot destroy sockets: {done.stderr.strip()}")
        before, began = cpu_seconds(ztunnel.process.pid), time.monotonic()
        while time.monotonic() - began < 1:
            is_served(sock_path)
            subprocess.run(["true"], check=True)
        idle = cpu_seconds(ztunnel.process.pid) - before
        assert pod.ask(15006) == b"ok\n"
        assert peer.ask(wire.TAKE, [fd]) == first
        assert pod.listening() == set(LISTENERS)
        assert pod.ask(15008) == b"ok\n"
    assert idle < 1 - SPUN, "a thread spins"
