"""The parts that both forms of the demo share: each sees what is there, and shows it whole."""

import io
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pyztun import NetNs
from pyztun.tools import evidence, processes, stage
from pyztun.tools.daemon import Daemon
from pyztun.tools.deathwatch import Deathwatch
from pyztun.tools.terminal import Terminal
from support import pods
from support.programs import program


def path_of(netns: NetNs) -> str:
    return f"/proc/{os.getpid()}/fd/{netns.fileno()}"


# ---- evidence ----------------------------------------------------------------------------------


@pytest.mark.needs_netns
def test_listener_on_all_addresses_is_seen() -> None:
    with NetNs.create() as netns:
        (listener,) = netns.listen(("::", 15006), v6only=False)
        with listener:
            (found,) = evidence.look_inside(path_of(netns)).listeners
    assert str(found) == "[::]:15006"


@pytest.mark.needs_netns
def test_ask_without_a_process() -> None:
    with NetNs.create() as netns:
        assert evidence.ask(path_of(netns), 15001) == "refused"
        (listener,) = netns.listen(("127.0.0.1", 15001))
        with listener:
            answering = threading.Thread(target=answer_one, args=(listener,))
            answering.start()
            assert evidence.ask(path_of(netns), 15001) == "ok\n"
            answering.join()


def answer_one(listener: socket.socket) -> None:
    accepted, _ = listener.accept()
    with accepted:
        accepted.sendall(b"ok\n")


@pytest.mark.needs_named_netns
def test_netns_that_was_opened_by_its_name_is_held_too(pod: pods.Pod) -> None:
    assert pod.inode not in evidence.netns_held_by(os.getpid())
    with pod.opened():
        assert pod.inode in evidence.netns_held_by(os.getpid())


@pytest.mark.needs_netns
def test_deathwatch_never_gives_a_number_twice() -> None:
    home = pods.nameless_netns()
    try:
        with closing(pods.in_netns(home, Deathwatch)) as watch:
            numbers = []
            for _ in range(3):
                with NetNs.create() as netns:
                    numbers.append(watch.watch(netns))
                    assert not watch.is_gone(numbers[-1])
                assert watch.is_gone(numbers[-1], 10)
            assert len(set(numbers)) == 3
    finally:
        os.close(home)


# ---- programs ----------------------------------------------------------------------------------


def test_program_on_a_terminal() -> None:
    code = "import os; print(os.isatty(1), os.get_terminal_size().columns, 2 * 'x\\n', end='')"
    done = processes.run_on_terminal([sys.executable, "-c", code], 71, {})
    assert (done.status, done.stdout) == (0, "True 71 x\nx\n")


def test_much_output_on_a_terminal_and_its_errors() -> None:
    code = "import os, sys; print('y' * 99 + '\\n' * 499_999); sys.exit(os.environ['WHY'])"
    done = processes.run_on_terminal([sys.executable, "-c", code], 80, {"WHY": "because"})
    assert (done.status, done.stderr) == (1, "because\n")
    assert len(done.stdout) == 99 + 499_999 + 1


@pytest.fixture
def daemon(directory: Path) -> Iterator[Daemon]:
    words = [program("pyztun-cni")[-1], "agent", "--log-format", "json"]
    words += ["--zds", f"{directory}/zds.sock", "--state-dir", f"{directory}/state"]
    env = {"PYZTUN_CONTROL": f"{directory}/agent.sock"}
    with closing(Daemon(words, f"{directory}/notify", env)) as started:
        assert started.wait_ready() == "READY=1"
        yield started


def test_daemon_that_ended_by_itself_is_noticed(daemon: Daemon) -> None:
    daemon.check_alive()
    os.kill(daemon.pid, signal.SIGKILL)
    with pytest.raises(processes.ProgramError, match="pyztun-cni ended: exit status -9"):
        daemon.check_alive()


def test_daemon_that_we_killed_is_no_surprise(daemon: Daemon) -> None:
    assert daemon.wait_for_event("registry-loaded", workloads=0)["same"] == 0
    assert daemon.kill() == -signal.SIGKILL
    daemon.check_alive()
    assert daemon.stop() == -signal.SIGKILL


# ---- remains -----------------------------------------------------------------------------------


def test_directories_of_the_dead_alone_are_removed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(directory))
    dead = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(dead, 0)
    (directory / f"pyztun-demo-{dead}-abc" / "state").mkdir(parents=True)
    kept = [f"pyztun-demo-{os.getpid()}-abc", f"pyztun-{dead}-abc", "pyztun-demo-x-abc"]
    for name in kept:
        (directory / name).mkdir()
    stage.remove_remains()
    assert sorted(path.name for path in directory.iterdir()) == sorted(kept)


@pytest.mark.needs_root
def test_directories_of_others_are_left_alone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(directory))
    dead = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(dead, 0)
    theirs = directory / f"pyztun-demo-{dead}-abc"
    theirs.mkdir()
    os.chown(theirs, 4242, 4242)
    stage.remove_remains()
    assert theirs.exists()


# ---- what is shown -----------------------------------------------------------------------------


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def terminal(out: io.StringIO) -> Terminal:
    return Terminal(out, plain=True)


def test_long_command_goes_on_as_a_shell_reads_it(out: io.StringIO, terminal: Terminal) -> None:
    words = ["/usr/bin/pyztun-cni", "agent", *(f"--option-{n} value" for n in range(9))]
    terminal.command(words)
    lines = out.getvalue().splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 96
    assert all(line.endswith(" \\") for line in lines[:-1])
    joined = " ".join(line.removesuffix("\\").strip() for line in lines)
    assert joined == "$ " + " ".join(["pyztun-cni", *words[1:]])


def test_output_keeps_its_form_unless_it_is_too_long(out: io.StringIO, terminal: Terminal) -> None:
    terminal.output("A    B\n\n" + "word " * 30 + "\n")
    table, empty, *rest = out.getvalue().splitlines()
    assert (table, empty) == ("    A    B", "")
    assert len(rest) == 2
    assert max(map(len, rest)) <= 96


def test_places_are_broken_between_two_of_them(out: io.StringIO, terminal: Terminal) -> None:
    places = [f"pyztun/tools/a_file{'_' * n}.py: a_function()" for n in range(30)]
    terminal.places(places)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert " ".join(line.strip() for line in lines) == "done by " + ", ".join(places)
    assert not any(line.endswith(".py:") for line in lines)
