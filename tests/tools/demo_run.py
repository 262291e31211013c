"""`pyztun demo` as a process, in a home netns of its own, and what it left behind."""

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from support import pods
from support.programs import Daemon, program

STEPS = 9


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
        return alive + [f"process {pid}" for pid in self.processes()] + files

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
