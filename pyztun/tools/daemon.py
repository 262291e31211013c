"""A service of ours as a process that we started: ready, its log, its end."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
from time import monotonic
from typing import TYPE_CHECKING

from pyztun.tools.processes import PATIENCE, ProgramError, last_words, start

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


class Daemon:
    """One process of a service, started by the constructor; to be closed. ProgramError.

    It ends with us: should the demo be killed, the kernel sends it SIGTERM.

    :param words: its command line, with ``--log-format json`` where wait_for_event() is used.
    :param notify_path: a free path for the socket on which it reports.
    :param env: what it finds in its environment beside ours.
    """

    def __init__(self, words: Sequence[str], notify_path: str, env: Mapping[str, str]) -> None:
        self.words, self.name = words, os.path.basename(words[0])
        self._log, self._killed = b"", False
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._log_fd, log_end = os.pipe()
        try:
            self._notify.bind(notify_path)
            environment = {**os.environ, **env, "NOTIFY_SOCKET": notify_path}
            self._process = start(
                [*_ends_with_us(), *words],
                stdout=subprocess.DEVNULL,
                stderr=log_end,
                env=environment,
            )
        except BaseException as error:
            self._close_ours()
            if isinstance(error, OSError):  # no room, or TMPDIR makes the path too long
                raise ProgramError(f"{notify_path}: {error}") from error
            raise
        finally:
            os.close(log_end)
        self.pid = self._process.pid

    def wait_ready(self) -> str:
        """What it says first to NOTIFY_SOCKET. ProgramError if it ends or stays silent."""
        deadline = monotonic() + PATIENCE
        while self._notify.fileno() not in self._readable(deadline, self._notify.fileno()):
            self._read_log()
        return self._notify.recv(4096).decode()

    def wait_for_event(self, name: str, **fields: object) -> dict[str, Any]:
        """The first event of that name and with these fields in its log.

        ProgramError if none comes.
        """
        wanted = {"event": name, **fields}
        deadline = monotonic() + PATIENCE
        while True:
            for line in self._log.splitlines():
                with contextlib.suppress(ValueError, AttributeError):
                    event: dict[str, Any] = json.loads(line)
                    if event.items() >= wanted.items():
                        return event
            self._readable(deadline)
            self._read_log()

    def _readable(self, deadline: float, *others: int) -> list[int]:
        """Which of the log and ``others`` can be read. ProgramError when the time is over."""
        left = max(0.0, deadline - monotonic())
        ready, _, _ = select.select([self._log_fd, *others], [], [], left)
        if not ready:
            raise ProgramError(f"{self.name} stays silent: {self._last_words()}")
        return ready

    def _read_log(self) -> None:
        """Reads what there is. ProgramError at the end of the log: that of the process."""
        data = os.read(self._log_fd, 65536)
        self._log += data
        if not data:
            raise ProgramError(f"{self.name} ended: {self._last_words()}")

    def _last_words(self) -> str:
        status = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(0.1)
        return last_words(status, self._log.decode(errors="replace"))

    def check_alive(self) -> None:
        """ProgramError, with the last line of its log, if it has ended or is about to.

        Not if we have killed it. Of a process that ends, /proc shows nothing any more a moment
        before it can be waited for.
        """
        if self._killed:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)
            with contextlib.suppress(ProgramError):
                while self._readable(monotonic()):
                    self._read_log()
            raise ProgramError(f"{self.name} ended: {self._last_words()}")

    def stop(self) -> int:
        """SIGTERM, and SIGKILL if that does not help. Returns the exit status, also later on."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            return self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL, which no program can answer. Returns the exit status: -9, unless it was over."""
        self._killed = True
        self._process.kill()
        return self._process.wait()

    def close(self) -> None:
        """Ends it however it is."""
        self.stop()
        self._close_ours()

    def _close_ours(self) -> None:
        self._notify.close()
        os.close(self._log_fd)


def _ends_with_us() -> list[str]:
    """A command prefix, where setpriv(1) is there (util-linux): prctl(2) is not in Python."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
