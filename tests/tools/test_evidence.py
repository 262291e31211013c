"""What the demo calls evidence: it must see what is there, and notice what is not."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing

import pytest

from pyztun import NetNs
from pyztun.errors import SyscallError
from pyztun.tools import evidence, processes
from pyztun.tools.deathwatch import Deathwatch
from support import leaks, pods

pytestmark = pytest.mark.needs_netns


@pytest.fixture
def netns() -> Iterator[NetNs]:
    with NetNs.create() as fresh:
        yield fresh


@pytest.fixture
def watch() -> Iterator[Deathwatch]:
    """A watch in a home of its own: the numbers that it gives stay out of ours."""
    home = pods.nameless_netns()
    try:
        with closing(pods.in_netns(home, Deathwatch)) as watching:
            yield watching
    finally:
        os.close(home)


def path_of(netns: NetNs) -> str:
    return f"/proc/{os.getpid()}/fd/{netns.fileno()}"


def test_look_inside_sees_listeners_and_answers(netns: NetNs) -> None:
    assert evidence.look_inside(path_of(netns)).listeners == []
    (listener,) = netns.listen(("127.0.0.1", 15001))
    with listener:
        pods.in_netns(netns.fileno(), lambda: _answer_one(listener))
        view = evidence.look_inside(path_of(netns), [15002])
        assert view.cookie == netns.cookie
        assert [str(each) for each in view.listeners] == ["127.0.0.1:15001"]
        assert view.listeners[0].socket == os.fstat(listener.fileno()).st_ino
        assert view.answers == {15002: "refused"}


def _answer_one(listener: socket.socket) -> None:
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    server.close()
    assert client.recv(1) == b""
    client.close()


def test_look_inside_of_what_is_no_netns() -> None:
    with pytest.raises(processes.ProgramError, match="no process could look into /dev/null"):
        evidence.look_inside("/dev/null")


def test_silent_listener_is_no_answer(netns: NetNs) -> None:
    (listener,) = netns.listen(("127.0.0.1", 15001))
    with listener:
        assert evidence.look_inside(path_of(netns), [15001]).answers[15001].startswith("failed: ")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_addresses_as_the_kernel_lists_them(netns: NetNs, host: str) -> None:
    table = "/proc/thread-self/net/" + ("tcp6" if ":" in host else "tcp")
    (listener,) = netns.listen((host, 15006))
    with listener, pods.in_netns(netns.fileno(), lambda: open(table)) as listed:
        (found,) = evidence.listeners_of(listed.read())
    assert str(found) == (f"[{host}]:15006" if ":" in host else f"{host}:15006")


def test_listening_at_home_is_seen_there_only(netns: NetNs) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        inode = os.fstat(listener.fileno()).st_ino
        assert inode in {each.socket for each in evidence.listening_at_home()}
        assert evidence.sockets_of(os.getpid())[inode] == listener.fileno()
        assert evidence.look_inside(path_of(netns)).listeners == []
    assert inode not in evidence.sockets_of(os.getpid())


def test_thread_that_is_away_is_seen(netns: NetNs) -> None:
    home = evidence.cookie_of_process(os.getpid())
    assert set(evidence.cookies_of_threads(os.getpid()).values()) == {home}
    seen = pods.in_netns(netns.fileno(), lambda: evidence.cookies_of_threads(os.getpid()))
    assert set(seen.values()) == {home, netns.cookie}
    assert list(seen.values()).count(netns.cookie) == 1
    assert evidence.cookie_of_process(os.getpid()) == home


def test_process_in_a_netns_is_seen(netns: NetNs) -> None:
    assert evidence.processes_in(netns.inode) == []
    inside = pods.in_netns(netns.fileno(), lambda: subprocess.Popen(["cat"], stdin=subprocess.PIPE))
    assert evidence.processes_in(netns.inode) == [inside.pid]
    inside.communicate()
    assert evidence.processes_in(netns.inode) == []


def test_netns_that_is_held_is_seen(netns: NetNs) -> None:
    assert netns.inode in evidence.netns_held_by(os.getpid())
    inode = netns.inode
    netns.close()
    assert inode not in evidence.netns_held_by(os.getpid())


def test_deathwatch_waits_for_the_last_holder(watch: Deathwatch) -> None:
    netns = NetNs.create()
    other = NetNs.create()
    nsid, other_nsid = watch.watch(netns), watch.watch(other)
    assert nsid != other_nsid
    (listener,) = netns.listen(("127.0.0.1", 15001))
    netns.close()
    other.close()
    assert watch.is_gone(other_nsid, 10)
    assert not watch.is_gone(nsid, 0.1)
    assert watch.living() == [nsid]
    listener.close()
    assert watch.is_gone(nsid, 10)
    assert watch.living() == []
    assert watch.is_gone(nsid)


def test_deathwatch_sees_a_process_that_holds(watch: Deathwatch) -> None:
    netns = NetNs.create()
    nsid = watch.watch(netns)
    holder = pods.in_netns(netns.fileno(), lambda: subprocess.Popen(["cat"], stdin=subprocess.PIPE))
    netns.close()
    assert not watch.is_gone(nsid, 0.1)
    holder.communicate()
    assert watch.is_gone(nsid, 10)


def test_deathwatch_of_what_is_no_netns(watch: Deathwatch) -> None:
    with open("/dev/null") as nothing, pytest.raises(SyscallError, match="at home: EINVAL"):
        watch.watch(nothing)  # type: ignore[arg-type]


def test_command_that_is_missing() -> None:
    with pytest.raises(processes.ProgramError, match="pyztun-nonsense is neither beside"):
        processes.find("pyztun-nonsense")


def test_during_runs_while_the_program_does() -> None:
    inodes = []
    done = processes.run(["sleep", "0.05"], during=lambda: inodes.append(leaks.netns_inode()))
    assert done.status == 0
    assert len(inodes) > 3


def test_program_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 0.1)
    with pytest.raises(processes.ProgramError, match=r"sleep did not end in 0\.1 s"):
        processes.run(["sleep", "60"])
