"""`pyztun netns ls`: what a person or a pipe gets, and how it ends when that goes wrong."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from netns_listing import ME

from pyztun.netns import NetNs
from support import needs, pods
from support.pods import Pod
from support.programs import environment, program, run_program

pytestmark = pytest.mark.needs_named_netns

LS = [*program("pyztun"), "netns", "ls"]
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
HEAVY = {"rich", "pyroute2", "psutil", "json", "pyztun.native", "pyztun.tools.census"}


def ls() -> list[str]:
    """The lines for a pipe."""
    done = run_program("pyztun", "netns", "ls")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def facts(lines: list[str], cookie: int) -> list[tuple[str, str, str]]:
    """(name, what, text) of each line of a netns."""
    rows = [line.split(maxsplit=3) for line in lines if line.split()[0] == str(cookie)]
    return [(row[1], row[2], row[3] if len(row) > 3 else "") for row in rows]


# ---- for a pipe --------------------------------------------------------------------------------


def test_one_fact_a_line(pod: Pod) -> None:
    netns = NetNs.from_name(pod.name)
    words = ["cat", "-", "x" * 200]
    inside = pods.in_netns(pod.path, lambda: subprocess.Popen(words, stdin=subprocess.PIPE))
    (listener,) = netns.listen(("127.0.0.1", 8080))
    with netns, listener:
        fd = listener.fileno()
        lines = ls()
    inside.communicate()
    found = facts(lines, pod.cookie)
    assert found[0] == (pod.name, "netns", f"inode {pod.inode}, 1 process")
    assert (pod.name, "mount", pod.path) in found
    assert (pod.name, "process", f"{inside.pid} cat - {'x' * 200}") in found
    (held,) = (text for _, what, text in found if what == "socket")
    assert held.startswith(f"fd {fd} of {ME} ")
    (place,) = (text for _, what, text in found if what == "listening")
    assert place.startswith(f"tcp 127.0.0.1:8080 by {ME} ")
    assert all(line.isprintable() for line in lines)


def test_netns_that_nobody_finds_says_so(pod: Pod) -> None:
    with pod.opened():
        pod.delete()
        (name, what, text), *_ = facts(ls(), pod.cookie)
    assert (name, what) == ("-", "netns")
    assert text.endswith("0 processes, without a process or a mount here")


def test_home_is_first() -> None:
    header, first, *_ = ls()
    assert header.split() == ["NETNS", "NAME", "WHAT"]
    with NetNs.current() as home:
        assert first.split()[:3] == [str(home.cookie), "(home)", "netns"]


def test_command_that_would_move_the_cursor(pod: Pod) -> None:
    words = ["cat", "-", "\x1b[2Jred\n\udcff"]
    inside = pods.in_netns(pod.path, lambda: subprocess.Popen(words, stdin=subprocess.PIPE))
    try:
        lines = ls()
    finally:
        inside.communicate()
    (text,) = (text for _, what, text in facts(lines, pod.cookie) if what == "process")
    assert text == f"{inside.pid} cat - \\x1b[2Jred\\n\\udcff"


def test_what_could_not_be_read_is_said(pod: Pod, no_capability: list[str]) -> None:
    needs.require("needs_root")
    done = run_program("pyztun", "netns", "ls", wrap=no_capability)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert (pod.name, "listening", "not read") in facts(lines, pod.cookie)
    unread = [line for line in lines if line.startswith("not read: ")]
    assert any("/proc/PID/ns/net: EACCES (needs CAP_SYS_PTRACE" in line for line in unread)
    assert lines[-len(unread) :] == unread


# ---- for a terminal ----------------------------------------------------------------------------


class Screen:
    """The command on a terminal: status, and all that came out and was not taken back."""

    def __init__(self, *words: str, columns: int = 120, **env: str) -> None:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        full = environment({"TERM": "xterm-256color", **env})
        for name in {"NO_COLOR", "COLUMNS", "FORCE_COLOR"} - env.keys():
            full.pop(name, None)
        process = subprocess.Popen([*LS, *words], stdin=slave, stdout=slave, stderr=slave, env=full)
        os.close(slave)
        self.raw = b"".join(self._chunks(master)).decode()
        self.status = process.wait(20)
        self.lines = [ESCAPE.sub("", line).rstrip() for line in self.raw.split("\r\n")]

    @staticmethod
    def _chunks(master: int) -> Iterator[bytes]:
        with os.fdopen(master, "rb", buffering=0) as screen:
            while True:
                try:
                    yield screen.read(65536)
                except OSError:  # EIO: the other side is closed
                    return


def test_table(pod: Pod) -> None:
    (listener,) = NetNs.from_name(pod.name).listen(("127.0.0.1", 8080))
    with listener:
        screen = Screen()
    assert screen.status == 0
    text = "\n".join(screen.lines)
    assert "kept alive by" in text
    assert "(home)" in text
    (row,) = (line for line in screen.lines if line.split()[:1] == [str(pod.cookie)])
    assert pod.name in row
    assert "tcp 127.0.0.1:8080" in row
    assert "1 mount" in row
    assert "\x1b[36m" in screen.raw
    assert max(map(len, screen.lines[-5:])) <= 120


def test_progress_bar_is_taken_back(pod: Pod) -> None:
    bar = "━━━━"
    screen = Screen()
    assert bar in screen.raw
    assert bar not in screen.raw[screen.raw.rindex("\x1b[2K") :]


def test_no_colour() -> None:
    screen = Screen(NO_COLOR="1")
    assert screen.status == 0
    assert "kept alive by" in "\n".join(screen.lines)
    colours = re.findall(r"\x1b\[([0-9;]*)m", screen.raw)
    assert {number for each in colours for number in each.split(";")} <= {"", "0", "1", "2"}


def test_dumb_terminal_gets_what_a_pipe_gets(pod: Pod) -> None:
    screen = Screen(TERM="dumb")
    assert "\x1b" not in screen.raw
    assert (pod.name, "mount", pod.path) in facts(list(filter(None, screen.lines)), pod.cookie)


def test_json_on_a_terminal_is_json() -> None:
    screen = Screen("--json")
    json.loads(screen.raw[screen.raw.index('{"netns"') :])


@pytest.mark.parametrize("columns", [40, 80])
def test_narrow_terminal(pod: Pod, columns: int) -> None:
    screen = Screen(columns=columns)
    assert screen.status == 0
    assert any(line.split()[:1] == [str(pod.cookie)] for line in screen.lines)


# ---- how it ends -------------------------------------------------------------------------------


@pytest.fixture
def much(pod: Pod) -> Iterator[None]:
    """More to list than a pipe of one page holds."""
    with NetNs.from_name(pod.name) as netns, ExitStack() as stack:
        for _ in range(2):
            ports = [("127.0.0.1", 0)] * 60
            for each in netns.listen(*ports):
                stack.enter_context(each)
        yield


@pytest.mark.usefixtures("much")
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_reader_that_has_gone(form: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*LS, *form], stdout=writer, stderr=subprocess.PIPE, env=environment(), check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.usefixtures("much")
def test_interrupted_while_writing() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    process = subprocess.Popen(LS, stdout=writer, stderr=subprocess.PIPE, env=environment())
    os.close(writer)
    assert select.select([reader], [], [], 20)[0], "nothing was written"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    os.close(reader)
    assert (process.returncode, errors) == (130, b"")


def test_interrupted_while_the_bar_shows() -> None:
    master, slave = pty.openpty()
    env = environment({"TERM": "xterm"})
    process = subprocess.Popen(LS, stdout=subprocess.DEVNULL, stderr=slave, env=env)
    os.close(slave)
    seen = b""
    with os.fdopen(master, "rb", buffering=0) as screen:
        while b"\xe2\x94\x81" not in seen:
            seen += screen.read(4096)
        process.send_signal(signal.SIGINT)
        while True:
            try:
                seen += screen.read(4096)
            except OSError:
                break
    assert process.wait(20) == 130
    assert b"Traceback" not in seen
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")  # the cursor is back


def test_full_disk() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(LS, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "pyztun netns ls: [Errno 28] No space left on device\n"


def test_closed_output() -> None:
    words = ["sh", "-c", '"$@" >&-', "sh", *LS]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), check=False)
    assert (done.returncode, done.stderr) == (1, "pyztun netns ls: stdout is closed\n")


def test_no_proc() -> None:
    script = 'mount -t tmpfs tmpfs /proc; exec "$@"'
    wrap = ["unshare", "--mount", "sh", "-ec", script, "sh"]
    done = run_program("pyztun", "netns", "ls", wrap=wrap)
    assert done.returncode == 1
    assert re.fullmatch(r"pyztun netns ls: .*/proc/.*\n", done.stderr)


def test_few_descriptors(pod: Pod) -> None:
    """It holds as many netns as it may, and goes on."""
    with ExitStack() as stack:
        made = [stack.enter_context(NetNs.create()) for _ in range(20)]
        done = run_program("pyztun", "netns", "ls", "--json", wrap=["prlimit", "--nofile=70"])
        assert done.returncode == 0, done.stderr
        cookies = {one["cookie"] for one in json.loads(done.stdout)["netns"]}
        assert {each.cookie for each in made} | {pod.cookie} <= cookies


def test_usage_and_help() -> None:
    for words, status in ((["netns"], 2), (["netns", "rm"], 2), (["netns", "ls", "x"], 2)):
        done = run_program("pyztun", *words)
        assert done.returncode == status
        assert done.stderr.startswith("usage: pyztun ")
    for words, wanted in ((["netns", "--help"], "pyztun netns ls"), (["netns", "ls", "-h"], "jq")):
        done = run_program("pyztun", *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert wanted in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize("words", [["--help"], ["netns", "ls", "--help"], ["netns"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    argv = [sys.executable, "-X", "importtime", program("pyztun")[-1], *words]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment(), check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    names = {line.rsplit("|", 1)[1].strip() for line in lines}
    assert "pyztun.tools.netns" in names
    assert names & HEAVY == set()
