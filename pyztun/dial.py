"""Connections out of a netns: what is done, at home, to a fresh socket of it; and the errors."""

from __future__ import annotations

import errno
import socket
from contextlib import contextmanager

from pyztun import addresses
from pyztun.errors import explain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pyztun.types import Address, Resolved

_HINTS = {
    errno.ECONNREFUSED: "nobody listens there",
    errno.ENETUNREACH: "the netns has no route there",
    errno.EHOSTUNREACH: "the netns has no way there",
    errno.EADDRNOTAVAIL: "the netns has no address or no port to connect from",
    errno.ETIMEDOUT: "no answer in time",
}
_NO_HINTS: Mapping[int, str] = {}


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

    def connect(self, target: Resolved, timeout: float | None) -> socket.socket:
        """Connects to one address; blocks up to ``timeout`` seconds, which stay on the socket."""
        with self.attempt(target) as sock:
            sock.settimeout(timeout)
            sock.connect(target[1])
            return sock

    @contextmanager
    def attempt(self, target: Resolved) -> Iterator[socket.socket]:
        """A socket of the pod with mark and source address, to be connected in the with-block.

        The caller owns it, unless the block raises: then it is closed, and an OSError of the
        connection becomes one of ours. MissingCapability, AddressInUse, UnsupportedFamily.
        """
        family, address = target
        sock = self._make(family)
        try:
            self._set_mark(sock)
            self._bind(sock)
            with _explained("connect", self._at(address), _HINTS):
                yield sock
        except BaseException:
            sock.close()
            raise

    def _set_mark(self, sock: socket.socket) -> None:
        if self._mark != 0:
            with _explained("setsockopt(SO_MARK)", self._where):
                sock.setsockopt(
                    socket.SOL_SOCKET, socket.SO_MARK, addresses.packed_mark(self._mark)
                )

    def _bind(self, sock: socket.socket) -> None:
        if self._source is not None:
            with _explained("bind", self._at(self._source[1])):
                sock.bind(self._source[1])

    def _at(self, address: Address) -> str:
        return f"{addresses.shown(address)} in {self._where}"


@contextmanager
def _explained(syscall: str, subject: str, hints: Mapping[int, str] = _NO_HINTS) -> Iterator[None]:
    """An OSError of the block in our words."""
    try:
        yield
    except OSError as error:
        # Python's own has no errno where its timeout passed.
        number = errno.ETIMEDOUT if error.errno is None else error.errno
        raise explain(number, syscall, subject, hints.get(number, "")) from error
