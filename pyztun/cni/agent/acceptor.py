"""Acceptor: takes the connections of a listening socket, one a turn of the loop.

asyncio's own servers take a whole backlog in one turn, before anybody can say that there is no room
for it. Here whoever is given a connection has dealt with it before the next one comes.
"""

from __future__ import annotations

import asyncio
import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from pyztun.service.log import Log

NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
PAUSE = 1.0
"""Seconds without accepting after the fd table was found full."""


def _at_once() -> float:
    return 0.0


class Acceptor:
    """Accepts until it is closed. In the loop.

    :param listener: borrowed; non-blocking from now on.
    :param take: is given each connection, and owns it.
    :param wait: seconds until one more may be accepted; who dials meanwhile waits in the backlog.
    """

    def __init__(
        self,
        listener: socket.socket,
        take: Callable[[socket.socket], None],
        log: Log,
        wait: Callable[[], float] = _at_once,
    ) -> None:
        self._listener, self._take, self._log, self._wait = listener, take, log, wait
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        self._go_on()

    def close(self) -> None:
        """Accepts no more."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener.fileno())

    def _go_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _stop(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener.fileno())
        self._pause = self._loop.call_later(seconds, self._go_on)

    def _accept(self) -> None:
        wait = self._wait()
        if wait > 0:
            self._stop(wait)
            return
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in NO_ROOM:
                self._log.event("peer", "cannot-accept", reason=error.strerror)
                self._stop(PAUSE)
            return  # else it has gone again
        self._take(sock)
