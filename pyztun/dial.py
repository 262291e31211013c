"""Connections out of a netns: what is done, at home, to a fresh socket of it; and the errors."""

from __future__ import annotations

import errno
import socket

from pyztun import addresses
from pyztun.errors import explain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyztun.errors import SyscallError
    from pyztun.types import Address, Resolved

_HINTS = {
    errno.ECONNREFUSED: "nobody listens there",
    errno.ENETUNREACH: "the netns has no route there",
    errno.EHOSTUNREACH: "the netns has no way there",
    errno.EADDRNOTAVAIL: "the netns has no address or no port to connect from",
    errno.ETIMEDOUT: "no answer in time",
}


class Dialer:
    """How sockets of one netns are connected: from which address, with which mark.

    :param make: makes a TCP socket of a family in the netns.
    :param where: the netns, for error texts: ``netns ns2``.
    :param source: (IP literal, port) to bind to; port 0 lets the kernel choose.
    :param mark: SO_MARK, 0 for none.
    """

    __slots__ = ("_make", "_mark", "_source", "_where")

    def __init__(
        self,
        make: Callable[[int], socket.socket],
        where: str,
        source: Address | None,
        mark: int,
    ) -> None:
        self._make, self._where = make, where
        self._mark = addresses.checked_mark(mark)
        self._source = None if source is None else addresses.literal(source)
        if source is not None and self._source is None:
            raise ValueError(f"source {source[0]!r} is not an IP address")

    def targets(self, found: list[Resolved]) -> list[Resolved]:
        """Those of the resolved addresses that the source address allows. ValueError: none."""
        return addresses.of_family(found, self._source)

    def prepare(self, family: int) -> socket.socket:
        """A socket of the pod with mark and source address, not yet connected; the caller owns it.

        MissingCapability, AddressInUse, UnsupportedFamily, SyscallError.
        """
        sock = self._make(family)
        try:
            self._set_mark(sock)
            self._bind(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def connect(self, target: Resolved, timeout: float | None) -> socket.socket:
        """Connects to one address; blocks up to ``timeout`` seconds, which stay on the socket."""
        family, address = target
        sock = self.prepare(family)
        try:
            sock.settimeout(timeout)
            sock.connect(address)
        except OSError as error:
            sock.close()
            raise self.failed("connect", address, error) from error
        except BaseException:
            sock.close()
            raise
        return sock

    def failed(self, syscall: str, address: Address, error: OSError) -> SyscallError:
        """The error in our words; python's own has no errno where its timeout passed."""
        number = errno.ETIMEDOUT if error.errno is None else error.errno
        subject = f"{addresses.shown(address)} in {self._where}"
        return explain(number, syscall, subject, _HINTS.get(number, ""))

    def _set_mark(self, sock: socket.socket) -> None:
        if self._mark == 0:
            return
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, addresses.packed_mark(self._mark))
        except OSError as error:
            raise explain(error.errno or 0, "setsockopt(SO_MARK)", self._where) from error

    def _bind(self, sock: socket.socket) -> None:
        if self._source is None:
            return
        _, address = self._source
        try:
            sock.bind(address)
        except OSError as error:
            subject = f"{addresses.shown(address)} in {self._where}"
            raise explain(error.errno or 0, "bind", subject) from error
