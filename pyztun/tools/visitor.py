"""Visitor: an HTTP client that is a socket of ours, made in a pod; no process is started for it."""

from __future__ import annotations

import os
from hashlib import sha256
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from pyztun.netns import NetNs
from pyztun.tools.evidence import PATIENCE

if TYPE_CHECKING:
    from types import TracebackType

HALF, REST = b"GET / HTTP/1.0\r\n", b"\r\n"
DIGITS = 12


class Visitor:
    """A connection on which half a request was sent: whoever takes part in it is there to be seen.

    :param netns: the path of the pod in which the client is.
    :ivar local, remote: as in evidence.Connection.
    :ivar fd: its descriptor, with us.
    :ivar socket: the inode number of its socket.
    :raises OSError: ConnectionRefusedError and whatever else the kernel says.
    """

    def __init__(self, netns: str, address: str, port: int) -> None:
        with NetNs.from_path(netns) as inside:
            self._socket = inside.connect((address, port), PATIENCE)
        try:
            self.local = _text(*self._socket.getsockname()[:2])
            self.remote = _text(address, port)
            self.fd = self._socket.fileno()
            self.socket = os.fstat(self.fd).st_ino
            self._socket.sendall(HALF)
        except BaseException:
            self._socket.close()
            raise

    def finish(self) -> bytes:
        """Sends the rest; returns the page. OSError, ConnectionResetError for one."""
        self._socket.sendall(REST)
        said = b"".join(iter(lambda: self._socket.recv(65536), b""))
        return said.partition(b"\r\n\r\n")[2]

    def end(self) -> str:
        """Sends the rest; returns how it ends: ``reset``, or a page, or what else."""
        try:
            return summary(self.finish())
        except ConnectionResetError:
            return "reset"
        except OSError as error:
            return f"failed: {error}"

    def __enter__(self) -> Visitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()


class Visit(NamedTuple):
    """A whole visit: what came of it, and after how many seconds."""

    said: str
    seconds: float


def visit(netns: str, address: str, port: int) -> Visit:
    """Asks for the page; ``refused`` or ``reset`` where it is not to be had."""
    began = monotonic()
    try:
        with Visitor(netns, address, port) as visitor:
            said = visitor.end()
    except ConnectionRefusedError:
        said = "refused"
    except ConnectionResetError:
        said = "reset"
    except OSError as error:
        said = f"failed: {error}"
    return Visit(said, monotonic() - began)


def summary(page: bytes) -> str:
    """Size and the begin of a hash."""
    return f"{len(page)} bytes, sha256 {sha256(page).hexdigest()[:DIGITS]}"


def _text(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
