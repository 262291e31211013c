"""The connection to the node agent: dialled again for ever, slower each time until one holds.

Istio's ztunnel dials at once after every end of a connection; an agent that ends each one would be
dialled in a tight loop. Here the delay begins anew only once a whole snapshot went through.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from pyztun import native
from pyztun.channel import Channel
from pyztun.errors import SyscallError
from pyztun.protocol import zds
from pyztun.service.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from pyztun.service.log import Log

FIRST_DELAY, LAST_DELAY = 0.02, 15.0
NEVER = float("inf")


class AgentLink:
    """At most one connection. One thread; nothing here blocks.

    :param agents: uids that the agent may have.
    :param close: takes ownership of a connection and ends it without blocking.
    :ivar sock: its descriptor for the native wait, -1 while there is none.
    :ivar dial_at: when to dial, on the clock of monotonic(); NEVER while connected.
    :ivar on_end: called at the end of each connection.
    """

    def __init__(
        self, path: str, agents: Collection[int], log: Log, close: Callable[[int], None]
    ) -> None:
        self._path, self._agents, self._log, self._close = path, agents, log, close
        self._channel: Channel | None = None
        self._backoff = Backoff(FIRST_DELAY, LAST_DELAY)
        self.sock = -1
        self.dial_at = 0.0
        self.agent: dict[str, int] = {}
        self.on_end: Callable[[], None] = _nothing

    def dial(self) -> bool:
        """Connects and says Hello. False: it did not work now, and dial_at is later."""
        channel = None
        try:
            channel = Channel.connect(self._path, native.SEQPACKET, 0)
            pid, uid, _gid = channel.peer_credentials()
            if uid not in self._agents:
                raise PermissionError(f"{self._path} belongs to uid {uid}, who may not command us")
            channel.send(zds.hello(), timeout=0)
        except OSError as error:
            if channel is not None:
                self._close(channel.detach())
            self.dial_at = monotonic() + self._backoff.next()
            self._log.event("peer", "cannot-connect", reason=str(error), then="dials again")
            return False
        self._channel, self.sock, self.dial_at = channel, channel.fileno(), NEVER
        self.agent = {"pid": pid, "uid": uid}
        self._log.event("info", "connected", socket=self._path, **self.agent)
        return True

    def answer(self, message: bytes) -> None:
        """Sends an answer. An agent that has no room for it reads none: the connection ends."""
        if self._channel is None:
            return
        try:
            self._channel.send(message, timeout=0)
        except SyscallError as error:
            self.hang_up(str(error))

    def works(self) -> None:
        """A whole snapshot went through: the next dial will come soon after the end."""
        self._backoff.reset()

    def hang_up(self, reason: str, level: str = "peer") -> None:
        """Ends the connection, if there is one."""
        if self._channel is None:
            return
        self._close(self._channel.detach())
        self._channel, self.sock = None, -1
        self.dial_at = monotonic() + self._backoff.next()
        self._log.event(level, "disconnected", reason=reason, **self.agent)
        self.on_end()


def _nothing() -> None:
    """Nobody wants to know."""
