"""Channel: a connected Unix socket that carries messages with file descriptors.

A stream for the seed form; a seqpacket for ZDS keeps message boundaries. Nothing here imports
``socket``: the one-shot sender would pay for it with half of its time.
"""

from __future__ import annotations

import errno
import os
from time import monotonic

from pyztun import native
from pyztun.errors import PeerClosed, ProtocolError, SyscallError
from pyztun.fds import OwnedFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType


class Channel:
    """One connection. All waits take seconds and raise SyscallError with ETIMEDOUT when they pass.

    One thread at a time.

    :param fd: a connected Unix socket; ownership passes to the channel.
    :param name: the peer's path, for error texts.
    """

    __slots__ = ("_fd", "_unread", "name")

    def __init__(self, fd: OwnedFd, name: str) -> None:
        self._fd = fd
        self._unread = b""
        self.name = name

    @classmethod
    def connect(cls, path: str, kind: int = native.STREAM, timeout: float | None = None) -> Channel:
        """Connects to a Unix socket; waits while the listener's backlog is full."""
        return cls(native.connect_unix(path, kind, timeout), path)

    def fileno(self) -> int:
        """The socket's descriptor, still owned by the channel."""
        return self._fd.fileno()

    def send(self, data: bytes, fds: Sequence[int] = (), timeout: float | None = None) -> None:
        """Sends all of ``data`` with ``fds`` (borrowed) on its first byte."""
        native.send(self.fileno(), data, fds, timeout, self.name)

    def receive(
        self, size: int, max_fds: int = 0, timeout: float | None = None
    ) -> tuple[bytes, list[OwnedFd]]:
        """Receives one message; the caller owns the descriptors. Empty bytes: the peer closed."""
        return native.receive(self.fileno(), size, max_fds, timeout, self.name)

    def receive_line(self, limit: int, timeout: float | None = None) -> bytes:
        """Receives up to and including a newline, at most ``limit`` bytes, from a stream.

        :raises PeerClosed: the peer closed before a whole line had come.
        :raises ProtocolError: the line is longer than ``limit``.
        """
        deadline = None if timeout is None else monotonic() + timeout
        while b"\n" not in self._unread:
            if len(self._unread) >= limit:
                raise ProtocolError(f"{self.name}: a line of more than {limit} bytes")
            left = None if deadline is None else max(0.0, deadline - monotonic())
            data, _ = self._receive_more(left)
            if not data:
                raise PeerClosed(f"{self.name}: closed before it answered")
            self._unread += data
        line, newline, self._unread = self._unread.partition(b"\n")
        if len(line) >= limit:
            raise ProtocolError(f"{self.name}: a line of more than {limit} bytes")
        return line + newline

    def _receive_more(self, timeout: float | None) -> tuple[bytes, list[OwnedFd]]:
        try:
            return self.receive(4096, 0, timeout)
        except SyscallError as error:
            # A Unix socket whose peer closed with unread bytes reports ECONNRESET where EOF would
            # follow.
            if error.errno == errno.ECONNRESET:
                return b"", []
            raise

    def peer_credentials(self) -> tuple[int, int, int]:
        """(pid, uid, gid) of the peer as of its connect() or listen(): SO_PEERCRED, unix(7)."""
        import socket
        import struct

        with socket.socket(fileno=os.dup(self.fileno())) as duplicate:
            raw = duplicate.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII")
            )
        pid, uid, gid = struct.unpack("iII", raw)
        return pid, uid, gid

    def close(self) -> None:
        """Closes the connection; does nothing the second time."""
        self._fd.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
