"""A raw client of the seed form: bytes and descriptors on a Unix stream socket, nothing else."""

import os
import socket
from collections.abc import Sequence
from types import TracebackType

TAKE, RELEASE, RELEASE_COOKIE, LIST = b"\x01", b"\x02", b"\x03", b"\x04"


class Peer:
    """One connection to a receiver. Waits at most SECONDS for anything (TimeoutError)."""

    def __init__(self, path: str | os.PathLike[str], seconds: float = 10) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._unread = b""
        try:
            self.socket.settimeout(seconds)
            self.socket.connect(os.fspath(path))
        except OSError:
            self.socket.close()
            raise

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Sends DATA as one message with FDS, which stay the caller's."""
        if fds:
            sent = socket.send_fds(self.socket, [data], list(fds))
            data = data[sent:]
        if data:
            self.socket.sendall(data)

    def line(self) -> str:
        """The next answer without its newline; "" at the end of the stream."""
        while b"\n" not in self._unread:
            more = self.socket.recv(65536)
            if not more:
                return self._unread.decode()
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def lines(self) -> list[str]:
        """All answers until the other end closes."""
        return list(iter(self.line, ""))

    def ask(self, data: bytes, fds: Sequence[int] = ()) -> str:
        """Sends one request and returns its answer."""
        self.send(data, fds)
        return self.line()

    def at_end(self) -> bool:
        """Waits for what comes next: True if it is the end of the stream, or a reset."""
        try:
            return not self._unread and not self.socket.recv(1, socket.MSG_PEEK)
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def request(
    path: str | os.PathLike[str], data: bytes, fds: Sequence[int] = (), seconds: float = 10
) -> str:
    """One connection, one request, its answer line ("" if the other end closed without one)."""
    with Peer(path, seconds) as peer:
        return peer.ask(data, fds)
