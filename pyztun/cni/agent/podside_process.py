"""The process that podside is: how it is started, what it says on stderr, how it has ended.

The agent has one at a time, and podside.py has the requests.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys

from pyztun.channel import Channel
from pyztun.fds import OwnedFd

COMMAND: tuple[str, ...] = (sys.executable, "-m", "pyztun.cni.capture.podside")
"""The number of its end of the socket pair follows."""
END = 1.0
"""Seconds for a process to be gone that was killed, or that has closed its end."""
MAX_SAID, MAX_REASON = 4096, 1000
"""Bytes of stderr that are kept; characters of its last line that are told."""


class Process:
    """One process, from its start. The constructor takes a millisecond: until it is executed.

    :ivar channel: our end; the process ends when it is closed. Owned by this, until end().
    :ivar pidfd: readable once it has ended. Likewise.
    :ivar why: it is being killed, for that reason; empty if not.
    """

    def __init__(self) -> None:
        """OSError: it cannot be started."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel = Channel(OwnedFd(ours.detach()), "podside")
        self.why, self._said = "", b""
        try:
            with theirs:
                # Where `-m` looks first is the working directory, which others may write to.
                self.process = subprocess.Popen(
                    [*COMMAND, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    cwd="/",
                )
        except BaseException:
            self.channel.close()
            raise
        os.set_blocking(self.stderr, False)
        try:
            self.pidfd = OwnedFd(os.pidfd_open(self.process.pid))
        except BaseException:
            self.process.kill()
            self.process.communicate()
            self.channel.close()
            raise

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.process.pid

    @property
    def stderr(self) -> int:
        """Where it says why it cannot go on."""
        assert self.process.stderr is not None  # noqa: S101  for mypy
        return self.process.stderr.fileno()

    def listen(self) -> bool:
        """Reads some of its stderr, of which the end is kept. False: there is no more."""
        try:
            said = os.read(self.stderr, MAX_SAID)
        except BlockingIOError:
            return False
        self._said = (self._said + said)[-MAX_SAID:]
        return bool(said)

    def end(self) -> str:
        """Of one that has ended, or was killed: reaps it; returns how it ended, or what it said."""
        poll = select.poll()
        poll.register(self.pidfd.fileno(), select.POLLIN)
        if poll.poll(END * 1000):
            self.process.wait()
        while self.listen():
            pass
        self.channel.close()
        self.pidfd.close()
        assert self.process.stderr is not None  # noqa: S101  for mypy
        self.process.stderr.close()
        lines = self._said.decode(errors="replace").split("\n")
        if last := next((line for line in reversed(lines) if line.strip()), ""):
            return last[:MAX_REASON].removeprefix("podside: ")
        code = self.process.returncode
        if code is not None and code < 0:
            return f"killed by {_signal_name(-code)}"
        return f"ended with {code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
