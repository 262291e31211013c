"""Where the access log goes: standard error, or a file that is appended to.

A full pipe would block whoever writes to it, and with it the reading of what becomes of
connections. So a pipe is given what it has room for at once (PIPE_BUF, which is also what it takes
as one piece), and where it has had no room for PATIENCE the lines are dropped and counted.
"""

from __future__ import annotations

import os
import select
import stat

from pyztun.errors import PyztunError

STDERR = 2
PATIENCE = 0.2
"""Seconds."""


class AccessLog:
    """One thread.

    :ivar dropped: lines that did not get out.
    """

    def __init__(self, path: str) -> None:
        """:param path: ``-`` for standard error. PyztunError."""
        self.dropped = 0
        self._fd = STDERR if path == "-" else _open(path)
        self._is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)

    def write(self, lines: bytes) -> None:
        """Writes whole lines. Blocks for PATIENCE at most."""
        while lines:
            piece = lines if self._is_file else _piece(lines)
            if not self._put(piece):
                self.dropped += lines.count(b"\n")
                return
            lines = lines[len(piece) :]

    def _put(self, piece: bytes) -> bool:
        try:
            if not self._is_file and not self._poll.poll(PATIENCE * 1000):
                return False
            while piece:
                piece = piece[os.write(self._fd, piece) :]
        except OSError:  # a full disk, a pipe that nobody reads any more
            return False
        return True

    def close(self) -> None:
        """Standard error stays open."""
        if self._fd != STDERR:
            os.close(self._fd)


def _open(path: str) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
    try:
        return os.open(path, flags, 0o640)
    except OSError as error:
        raise PyztunError(f"the access log {path}: {error.strerror}") from error


def _piece(lines: bytes) -> bytes:
    """As many whole lines as a pipe takes at once, and at least one."""
    end = lines.rfind(b"\n", 0, select.PIPE_BUF)
    if end < 0:
        end = lines.find(b"\n")
    return lines[: end + 1] if end >= 0 else lines
