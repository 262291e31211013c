"""A receiver of the seed form that answers what a test tells it, for trying the sender."""

import os
import socket
import threading
from collections.abc import Callable
from types import TracebackType

Script = Callable[[socket.socket, bytes], None]
"""What to do with one connection after its first message came."""


def say(answer: bytes) -> Script:
    """Answers every message with ANSWER until the sender closes."""

    def run(peer: socket.socket, _: bytes) -> None:
        peer.sendall(answer)
        while _read(peer):
            peer.sendall(answer)

    return run


def say_and_close(answer: bytes) -> Script:
    """Answers once and closes the connection."""

    def run(peer: socket.socket, _: bytes) -> None:
        if answer:
            peer.sendall(answer)

    return run


def say_nothing(peer: socket.socket, _: bytes) -> None:
    """Reads until the sender closes, as the walk-through's receiver does."""
    while _read(peer):
        pass


def _read(peer: socket.socket) -> bytes:
    data, fds, _, _ = socket.recv_fds(peer, 4096, 253)
    for fd in fds:
        os.close(fd)
    return data


class Receiver:
    """Listens on PATH and serves one connection after another by SCRIPT, in a thread.

    `requests` has the first message of each connection. Use as a with-block.
    """

    def __init__(self, path: str, script: Script | bytes, backlog: int = 16) -> None:
        self.requests: list[bytes] = []
        self._script = say(script) if isinstance(script, bytes) else script
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(backlog)
        self._thread = threading.Thread(target=self._serve, name="receiver", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:  # shut down
                return
            with peer:
                peer.settimeout(30)
                try:
                    first = _read(peer)
                    self.requests.append(first)
                    if first:
                        self._script(peer, first)
                except OSError:  # the sender went away
                    continue

    def close(self) -> None:
        """Stops after the connection that is being served; removes the file."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)
        self._listener.close()
        os.unlink(self._path)
        assert not self._thread.is_alive(), "the receiver's script hangs"

    def __enter__(self) -> "Receiver":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
