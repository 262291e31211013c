"""What both scripted ends of ZDS have in common: packets, and waits that end.

zds_agent.py and zds_ztunnel.py are the two ends; docs/testing.md shows them at work.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from time import monotonic
from typing import TypeVar

from pyztun import PeerClosed
from pyztun.channel import recv_fds, send_fds
from pyztun.protocol import zds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from pyztun import Descriptor, OwnedFd

SECONDS = 5.0
"""How long a call waits unless it is told otherwise: as long as Istio's agent does."""

_CREDENTIALS = struct.Struct("iII")

C = TypeVar("C", bound="Closing")


class Closing:
    """A with-block at whose end it is closed."""

    def close(self) -> None:
        """Lets go of everything. Idempotent."""
        raise NotImplementedError

    def __enter__(self: C) -> C:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Peer(Closing):
    """A connection, of which every packet may be right or wrong. One thread at a time.

    :param sock: a connected seqpacket socket; ownership passes to the peer.
    :param timeout: seconds that a call waits which is not given a timeout.
    """

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._socket = sock
        self._timeout = timeout
        self.name = "the other end"

    @property
    def pid(self) -> int:
        """The process at the other end, as of its connect() or listen()."""
        raw = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return int(_CREDENTIALS.unpack(raw)[0])

    def fileno(self) -> int:
        """The socket's descriptor, still owned by the peer; -1 once closed."""
        return self._socket.fileno()

    def send_raw(self, data: bytes, fds: Iterable[Descriptor] = ()) -> None:
        """Sends one packet of any bytes, with any descriptors (borrowed).

        :raises SyscallError: EPIPE or ECONNRESET where the other end has gone, ETIMEDOUT.
        """
        send_fds(self._socket, data, fds, self._timeout)

    def receive_raw(
        self, max_fds: int = 0, timeout: float | None = None
    ) -> tuple[bytes, list[OwnedFd]]:
        """The next packet and its descriptors, which the caller owns; no bytes at the end.

        :param max_fds: a packet with more of them is an error.
        :raises TimeoutError: nothing came in ``timeout`` seconds.
        :raises SyscallError: EMSGSIZE more than 1024 bytes, EPROTO too many descriptors.
        """
        try:
            return recv_fds(self._socket, zds.MAX_MESSAGE, max_fds, self._seconds(timeout))
        except ConnectionResetError:  # it closed and left something of ours unread
            return b"", []

    def wait_closed(self, timeout: float | None = None) -> bool:
        """Whether the other end closes within ``timeout`` seconds, whatever it says before."""
        deadline = monotonic() + self._seconds(timeout)
        with contextlib.suppress(TimeoutError):
            while True:
                data, fds = self.receive_raw(250, max(0.001, deadline - monotonic()))
                for fd in fds:
                    fd.close()
                if not data:
                    return True
        return False

    def _message(self, timeout: float | None, max_fds: int = 0) -> tuple[bytes, list[OwnedFd]]:
        data, fds = self.receive_raw(max_fds, timeout)
        if not data:
            raise PeerClosed(f"{self.name} closed the connection")
        return data, fds

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout

    def hang_up(self) -> None:
        """Ends the connection for both sides; from another thread it also ends a wait of this one.

        The descriptor stays until close(), so that its number is nobody else's meanwhile.
        """
        with contextlib.suppress(OSError):  # the other end was faster, or it is closed
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the connection, as a death does. Idempotent."""
        self._socket.close()
