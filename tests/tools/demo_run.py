"""`pyztun demo` as a process, in a home netns of its own or on a terminal; what it left behind."""

import os
import re
import select
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pytest

from pyztun.tools.capture_stage import SBIN
from support import pods
from support.programs import Daemon, environment, program

STEPS = 9
"""Of each form."""


class DemoRun:
    """One run of `pyztun demo ARGS...`, started by the constructor.

    command   instead of the installed `pyztun`
    wrap      a command prefix, as for Daemon
    """

    def __init__(
        self,
        directory: Path,
        *args: str,
        command: Sequence[str] | None = None,
        wrap: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self._mark = f"PYZTUN_TEST_RUN={uuid.uuid4()}"
        name, _, value = self._mark.partition("=")
        self._home = pods.nameless_netns()
        self._started = time.monotonic()
        try:
            self.process = pods.in_netns(
                self._home,
                lambda: Daemon(
                    "demo",
                    *args,
                    command=command or program("pyztun"),
                    wrap=wrap,
                    env={"TMPDIR": str(directory), name: value, **(env or {})},
                    ready=False,
                ),
            )
        except BaseException:
            os.close(self._home)
            raise

    def finish(self) -> int:
        """Waits for its end; returns the exit status and sets ``seconds``, ``out`` and ``err``."""
        status = self.process.wait(30)
        self.seconds = time.monotonic() - self._started
        self.out, self.err = self.process.stdout.all(), self.process.stderr.all()
        return status

    def living_pods(self) -> list[str]:
        """The netns that the home of the demo has numbered and that still live (`ip netns`)."""
        words = ["ip", "netns", "list-id"]
        run = subprocess.run
        shown = pods.in_netns(
            self._home, lambda: run(words, capture_output=True, text=True, check=True)
        )
        return shown.stdout.splitlines()

    def left_behind(self, seconds: float = 10) -> list[str]:
        """Netns, processes and files of the run that are there after its end.

        The kernel ends a netns a moment after its last holder, so for that we wait a little.
        """
        deadline = time.monotonic() + seconds
        while (alive := self.living_pods()) and time.monotonic() < deadline:
            os.sched_yield()
        files = [str(path) for path in self.directory.rglob("*")]
        return alive + [f"process {pid}" for pid in self.processes()] + self.names() + files

    def names(self) -> list[str]:
        """The entries of /run/netns that have the pid of the demo in their name."""
        return [name for name in pods.names() if name.endswith(f"-{self.process.pid}")]

    def processes(self) -> list[int]:
        """The pids of the processes that have inherited the mark of this run."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is(pid)]

    def _is(self, pid: int) -> bool:
        try:
            return self._mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False

    def __enter__(self) -> "DemoRun":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends it with SIGTERM, so that it can clean up; SIGKILL for what is there even then."""
        try:
            self.process.stop()
        finally:
            for pid in self.processes():
                os.kill(pid, signal.SIGKILL)
            self.process.kill()
            os.close(self._home)


def require_nft() -> None:
    """Skips where the demo of capture cannot run; under PYZTUN_REQUIRE_ROOT=1 that is a failure."""
    if shutil.which("nft", path=f"{os.environ['PATH']}:{SBIN}") is None:
        skip = pytest.fail if os.environ.get("PYZTUN_REQUIRE_ROOT") == "1" else pytest.skip
        skip("needs nft (nftables)")


def steps(lines: list[str]) -> list[list[str]]:
    """The lines of each step; those before the first come first."""
    found: list[list[str]] = [[]]
    for line in lines:
        if re.match(r"\[\d/\d\] ", line):
            found.append([])
        found[-1].append(line)
    return found


def check_fits(lines: list[str]) -> None:
    """Plain output is good for a log and a narrow terminal."""
    for line in lines:
        assert line.isascii()
        assert line.isprintable()
        assert len(line) <= 100
        assert line == line.rstrip()
    titles = [each[0] for each in steps(lines)[1:]]
    assert [title[:5] for title in titles] == [f"[{n}/{STEPS}]" for n in range(1, STEPS + 1)]


def one(pattern: str, lines: list[str]) -> re.Match[str]:
    """The first line that matches."""
    found = next(filter(None, (re.search(pattern, line) for line in lines)), None)
    assert found, f"no line like {pattern!r} in:\n" + "\n".join(lines)
    return found


class OnTerminal:
    """`pyztun demo ARGS...` on a pseudo-terminal, which controls it: Ctrl-C is a signal."""

    def __init__(self, directory: Path, *args: str, env: dict[str, str] | None = None) -> None:
        self._master, terminal = os.openpty()
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *program("pyztun"), "demo", *args],
            stdin=terminal,
            stdout=terminal,
            stderr=subprocess.PIPE,
            env=environment(
                {"TERM": "xterm", "NO_COLOR": "", "TMPDIR": str(directory), **(env or {})}
            ),
        )
        os.close(terminal)
        self.text = b""

    def read_to(self, pattern: bytes) -> bytes:
        """Reads until the output since the last call matches; returns the first group."""
        unread = b""
        while not (found := re.search(pattern, unread)):
            data = self._read()
            assert data, f"ended before {pattern!r}: {self.text!r}"
            unread += data
        return found[1]

    def _read(self, seconds: float = 20) -> bytes:
        """What comes next; nothing at the end."""
        assert select.select([self._master], [], [], seconds)[0], f"silent after {self.text!r}"
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: nobody has the terminal open any more
            return b""
        self.text += data
        return data

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def finish(self) -> int:
        """Reads what is left and waits for the end."""
        while self._read():
            pass
        assert self.process.stderr is not None
        self.err = self.process.stderr.read().decode()
        return self.process.wait(20)

    def __enter__(self) -> "OnTerminal":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it with SIGTERM, so that it can clean up."""
        self.process.terminate()
        self.process.wait(20)
        assert self.process.stderr is not None
        self.process.stderr.close()
        os.close(self._master)
