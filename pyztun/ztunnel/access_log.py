"""Where the access log goes: standard error, or a file that is appended to.

A full pipe would block whoever writes to it, and with it the reading of what becomes of
connections. So a pipe is given what it has room for at once (PIPE_BUF, which is also what it takes
as one piece), and where it has had no room for PATIENCE the lines are dropped and counted.
"""

from __future__ import annotations

import errno
import os
import select
import stat

from pyztun.errors import PyztunError

STDERR = 2
PATIENCE = 0.2
"""Seconds."""


class AccessLog:
    """One thread.

    :ivar dropped: lines that did not get out, and ``reason`` why the last ones did not.
    """

    def __init__(self, path: str) -> None:
        """:param path: ``-`` for standard error. PyztunError."""
        self.dropped = 0
        self.reason = ""
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
                self.reason = "nobody reads it"
                return False
            while piece:
                piece = piece[os.write(self._fd, piece) :]
        except OSError as error:  # a full disk, a pipe that nobody reads any more
            self.reason = os.strerror(error.errno or 0)
            return False
        return True

    def close(self) -> None:
        """Standard error stays open."""
        if self._fd != STDERR:
            os.close(self._fd)


def _open(path: str) -> int:
    # A named pipe without a reader would keep open() waiting: so it is ENXIO.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        return os.open(path, flags, 0o640)
    except OSError as error:
        nobody = error.errno == errno.ENXIO
        why = "a pipe that nobody reads" if nobody else error.strerror
        raise PyztunError(f"the access log {path}: {why}") from error


def _piece(lines: bytes) -> bytes:
    """As many whole lines as a pipe takes at once, and at least one."""
    end = lines.rfind(b"\n", 0, select.PIPE_BUF)
    if end < 0:
        end = lines.find(b"\n")
    return lines[: end + 1] if end >= 0 else lines
