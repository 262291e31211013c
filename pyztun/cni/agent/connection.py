"""One connection to the control socket: who is there, and for how long it may be silent.

aiohttp has a time limit between two requests and none for the middle of one. Here every connection
for whose client we wait has a deadline, whatever it is that we wait for; one whose request is in
work has none, since the request has. Where there is no room, the one that has been silent longest
is closed, never the newcomer.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import traceback
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, cast

from aiohttp import web

from pyztun.cni.agent import requests, views

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyztun.service.log import Log

MAX_LINE, MAX_FIELD = 16384, 8190
"""Bytes: a path of 4096 has thrice as many when each is percent-encoded."""
CREDENTIALS = struct.Struct("iII")
SERVER = "pyztun"


class Bounds(NamedTuple):
    """What a client can have. Times in seconds.

    :ivar deadline: for the head of a request, from accept() or from its first byte; for a body.
    :ivar idle: for taking an answer and for silence behind it.
    :ivar linger: for which a body that nobody wants is read and dropped, so that its sender hears
        why.
    :ivar drain: for requests in work when the agent ends.
    :ivar flush: for the last answers to be taken.
    :ivar body: bytes.
    :ivar requests: in work at a time.
    :ivar connections: of those who may ask: more than requests, so that there is one to close.
    :ivar unsent: bytes of answers that nobody has taken yet; with more of them there is no list.
    :ivar strangers: connections of those who may not ask, and are told so.
    """

    deadline: float = 5.0
    idle: float = 15.0
    linger: float = 1.0
    drain: float = 2.0
    flush: float = 0.5
    body: int = 64 * 1024
    requests: int = 64
    connections: int = 128
    unsent: int = 32 * 1024 * 1024
    strangers: int = 8


BOUNDS = Bounds()


class Crowd:
    """The connections there are, a bounded number. Those we wait for are in order of silence."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.members: set[Connection] = set()
        self.silent: dict[Connection, None] = {}

    def enter(self, newcomer: Connection) -> None:
        """Makes room where there is none; every request in work leaves room, so there is one."""
        if len(self.members) >= self.limit and self.silent:
            longest = next(iter(self.silent))
            longest.abort()
            self.leave(longest)
        self.members.add(newcomer)

    def leave(self, gone: Connection) -> None:
        """Idempotent."""
        self.members.discard(gone)
        self.silent.pop(gone, None)

    def heard(self, one: Connection) -> None:
        """It is silent from now on."""
        self.silent.pop(one, None)
        if one in self.members:
            self.silent[one] = None


class Connection(web.RequestHandler):
    """See above.

    :ivar pid: of whoever called connect(), by SO_PEERCRED, in our pid namespace; 0 if not there.
    :ivar uid: likewise.
    :ivar has_ended: its end of the stream has come.
    """

    def __init__(
        self,
        server: web.Server,
        loop: asyncio.AbstractEventLoop,
        rooms: Mapping[bool, Crowd],
        allowed: frozenset[int],
        bounds: Bounds,
        log: Log,
    ) -> None:
        """:param rooms: where those with an allowed uid go, and where the others."""
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=bounds.idle,
            tcp_keepalive=False,
            access_log=None,  # type: ignore[arg-type]  # None is what the documents say
            max_line_size=MAX_LINE,
            max_field_size=MAX_FIELD,
            lingering_time=bounds.linger,
            auto_decompress=False,
        )
        self._rooms, self._allowed, self._bounds, self._events = rooms, allowed, bounds, log
        self._call_later = loop.call_later
        self._timer: asyncio.TimerHandle | None = None
        self._line: asyncio.Transport | None = None
        # Idle: no byte has come since the last answer, or since accept().
        self._is_in_head = self._is_idle = False
        self.pid = self.uid = -1
        self.has_ended = False

    @property
    def is_allowed(self) -> bool:
        """Whether whoever is there may ask for anything."""
        return self.uid in self._allowed

    @property
    def unsent(self) -> int:
        """Bytes of answers that are still here."""
        return 0 if self._line is None else self._line.get_write_buffer_size()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._line = cast("asyncio.Transport", transport)
        sock: socket.socket = transport.get_extra_info("socket")
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        self.pid, self.uid, _ = CREDENTIALS.unpack(raw)
        self._crowd = self._rooms[self.is_allowed]
        self._crowd.enter(self)
        super().connection_made(transport)
        self._wait(self._bounds.deadline)
        self._is_idle = True

    def data_received(self, data: bytes) -> None:
        if self._is_idle:
            self._is_idle, self._is_in_head = False, True
            self._wait(self._bounds.deadline)
        super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio asks for it
        """Who has no more to ask may still want his answer (`nc -N`): that is the last one then."""
        self.has_ended = True
        if self._is_in_head:  # whole, and its handler begins at once, or it never will be
            self._wait(min(self._bounds.deadline, self._bounds.linger))
        return not self._is_idle

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_timer()
        if self._line is not None:
            self._crowd.leave(self)
        super().connection_lost(exc)

    # ---- what the request's handler tells ------------------------------------------------------

    def begin_body(self) -> None:
        """The head is here; the handler reads the body, and has a deadline for it."""
        self._is_idle = self._is_in_head = False
        self._wait(self._bounds.deadline + self._bounds.linger)

    def begin_work(self) -> None:
        """All of the request is here. What follows on the connection is not read meanwhile."""
        self._stop_timer()
        self._crowd.silent.pop(self, None)
        if self._line is not None and not self._line.is_closing():
            self._line.pause_reading()

    def end_work(self) -> None:
        """The answer is known, and the next request may come."""
        self._is_in_head, self._is_idle = False, True
        self._wait(self._bounds.idle)
        if self._line is not None and not self._line.is_closing() and not self.has_ended:
            self._line.resume_reading()

    def close_if_idle(self) -> None:
        """Ends it unless something of a request has come."""
        if self._is_idle and self._line is not None:
            self._line.close()

    def abort(self) -> None:
        """Ends it now, whatever has not been taken yet."""
        self._stop_timer()
        if self._line is not None:
            self._line.abort()

    # ---- deadlines -----------------------------------------------------------------------------

    def _wait(self, seconds: float) -> None:
        self._stop_timer()
        if self._line is not None and not self._line.is_closing():
            self._timer = self._call_later(seconds, self._expire)
            self._crowd.heard(self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        if self._line is None or not self._is_in_head:
            self.abort()
            return
        self._is_in_head = False
        why = f"no whole request in {self._bounds.deadline:g} s"
        self._line.write(raw_error(views.REQUEST_TIMEOUT, why))
        self._line.close()
        self._timer = self._call_later(self._bounds.linger, self._line.abort)

    # ---- errors of HTTP itself -----------------------------------------------------------------

    def handle_error(
        self,
        request: web.BaseRequest,  # noqa: ARG002  aiohttp's signature
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no HTTP never reaches our handler; it gets its JSON here."""
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            self.log_exception("answer", exc_info=exc)
            return respond(status, views.error(views.INTERNAL, "a bug of ours: see the log"), True)
        first = (message or "").partition("\n")[0].rstrip(": ") or "the request is not HTTP"
        return respond(status, views.error(requests.BAD_REQUEST, first), True)

    def log_exception(self, *args: object, **kw: object) -> None:
        """A bug, of ours or of aiohttp's."""
        told = kw.get("exc_info")
        shown = traceback.format_exception(told) if isinstance(told, BaseException) else args
        self._events.event("error", "bug", where="control", traceback="".join(map(str, shown)))


def respond(status: int, shown: views.Json, last: bool = False) -> web.Response:
    """An answer.

    :param last: the connection ends behind it.
    """
    response = web.Response(
        status=status,
        body=views.encode(shown),
        content_type="application/json",
        headers={"Server": SERVER},
    )
    if last:
        response.force_close()
    return response


def raw_error(code: str, reason: str) -> bytes:
    """An answer for a connection on which there is no request to answer."""
    body, status = views.encode(views.error(code, reason)), HTTPStatus(views.STATUSES[code])
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Server: {SERVER}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
