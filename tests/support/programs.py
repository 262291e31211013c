"""The real commands as processes.

A Daemon is up once it has said READY=1 to NOTIFY_SOCKET; its death before that is noticed at once
(pidfd). Its output is collected by a thread per stream, so that a full pipe never stops it.
"""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import pytest

import pyztun
from support import REPOSITORY, leaks


def program(name: str) -> list[str]:
    """The command NAME as installed beside this interpreter, else the script of this tree."""
    installed = Path(sys.executable).with_name(name)
    if installed.exists():
        return [str(installed)]
    return [sys.executable, str(REPOSITORY / "bin" / name)]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child, which imports the same pyztun as the tests do."""
    env = dict(os.environ)
    if not Path(sys.executable).with_name("pyztun-ztunnel").exists():
        env["PYTHONPATH"] = str(Path(pyztun.__file__).resolve().parents[1])
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    env.pop("NOTIFY_SOCKET", None)
    env.update(extra or {})
    return env


def cni(
    *args: str | os.PathLike[str],
    wrap: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    seconds: float = 60,
) -> "subprocess.CompletedProcess[str]":
    """Runs `pyztun-cni ARGS...` to its end, behind the command prefix WRAP."""
    return run_program("pyztun-cni", *args, wrap=wrap, env=env, seconds=seconds)


def run_program(
    name: str,
    *args: str | os.PathLike[str],
    wrap: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    seconds: float = 60,
) -> "subprocess.CompletedProcess[str]":
    """Runs a command to its end; the caller looks at returncode, stdout and stderr."""
    return subprocess.run(
        [*wrap, *program(name), *(os.fspath(each) for each in args)],
        env=environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


class Lines:
    """The lines of a stream, collected by a thread until it ends."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._collect, name="lines", daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        for line in self._stream:
            with self._changed:
                self._lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def all(self) -> list[str]:
        """The lines so far."""
        with self._changed:
            return list(self._lines)

    def wait_for(
        self, wanted: str | Callable[[str], bool], count: int = 1, seconds: float = 10
    ) -> str:
        """Waits for the COUNT-th line that contains WANTED (or satisfies it) and returns it.

        AssertionError with all that came, if the stream ends or the time is over before.
        """

        def matches(line: str) -> bool:
            return wanted in line if isinstance(wanted, str) else wanted(line)

        def found() -> list[str]:
            return [line for line in self._lines if matches(line)]

        with self._changed:
            self._changed.wait_for(lambda: len(found()) >= count or self._ended, seconds)
            lines = found()
            assert len(lines) >= count, f"waited for {wanted!r}, came: {self._lines}"
            return lines[count - 1]

    def finish(self, seconds: float = 10) -> None:
        """After the process ended: waits for the end of the stream and closes it."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "another process holds the stream open"
        self._stream.close()


class Daemon:
    """`pyztun-ztunnel ARGS...` (or COMMAND ARGS...) as a running process.

    wrap    a command prefix that ends in exec, so that the pid stays (setpriv, prlimit, unshare)
    ready   wait for READY=1 before the constructor returns; else call wait_ready(), or not
    output  an fd for stdout and stderr instead of the collected lines (which are then empty)
    """

    def __init__(
        self,
        *args: str | os.PathLike[str],
        command: Sequence[str] | None = None,
        wrap: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        ready: bool = True,
        output: int = subprocess.PIPE,
    ) -> None:
        self.notifications: list[str] = []
        self._directory = tempfile.mkdtemp(prefix="pz-notify-")
        self._notify = self._listen_for_notifications()
        base = list(command) if command is not None else program("pyztun-ztunnel")
        self.process = subprocess.Popen(
            [*wrap, *base, *(os.fspath(each) for each in args)],
            env={**environment(env), "NOTIFY_SOCKET": f"{self._directory}/notify"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
            errors="replace",
        )
        self._pidfd = os.pidfd_open(self.process.pid)
        self.stdout = self._collect(self.process.stdout)
        self.stderr = self._collect(self.process.stderr)
        self._open = True
        if ready:
            try:
                self.wait_ready()
            except BaseException:
                self.kill()
                raise

    def _collect(self, stream: IO[str] | None) -> Lines:
        return Lines(stream if stream is not None else open(os.devnull))

    def _listen_for_notifications(self) -> socket.socket:
        """Any uid may notify: the daemon may run as another user than the tests."""
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = f"{self._directory}/notify"
        notify.bind(path)
        os.chmod(path, 0o666)
        os.chmod(self._directory, 0o755)
        return notify

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_ready(self, seconds: float = 30) -> None:
        self.wait_notification("READY=1", seconds)

    def wait_notification(self, wanted: str, seconds: float = 30) -> None:
        """Waits until the process has sent WANTED to NOTIFY_SOCKET; fails if it ends before."""
        deadline = time.monotonic() + seconds
        notify = self._notify.fileno()
        poll = select.poll()
        poll.register(notify, select.POLLIN)
        poll.register(self._pidfd, select.POLLIN)
        while wanted not in self.notifications:
            left = max(0.0, deadline - time.monotonic())
            readable = [fd for fd, _ in poll.poll(left * 1000)]
            if notify in readable:
                self.notifications += self._notify.recv(4096).decode().splitlines()
            elif readable:
                code = self.wait()
                pytest.fail(f"ended with {code} before {wanted}: {self.stderr.all()}")
            else:
                pytest.fail(f"no {wanted} in {seconds} s: {self.stderr.all()}")

    def wait(self, seconds: float = 20) -> int:
        """Waits for the end of the process and of its output; returns its exit code."""
        code = self.process.wait(seconds)
        self._release()
        return code

    def stop(self, number: int = signal.SIGTERM, seconds: float = 20) -> int:
        """Sends SIGTERM (or NUMBER) and waits for the end; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait(seconds)

    def kill(self) -> None:
        """SIGKILL if it still runs; every fixture ends with it. Safe to call twice."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)
        self._release()

    def _release(self) -> None:
        if not self._open:
            return
        self._open = False
        self.stdout.finish()
        self.stderr.finish()
        os.close(self._pidfd)
        self._notify.close()
        shutil.rmtree(self._directory)

    def complaints(self) -> list[str]:
        """The log lines that are no plain information: warnings, errors, a traceback.

        What became of a connection of a pod is none.
        """
        lines = [line for line in self.stderr.all() if "\taccess\t" not in line]
        return [line for line in lines if line.split()[1:2] != ["info"]]

    def fds(self) -> dict[int, str]:
        return leaks.open_fds(self.pid)

    def threads(self) -> set[int]:
        return leaks.threads(self.pid)

    def rss_kib(self) -> int:
        return leaks.rss_kib(self.pid)

    def netns_inode(self) -> int:
        return leaks.netns_inode(self.pid)

    def __enter__(self) -> "Daemon":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
