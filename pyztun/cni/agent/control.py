"""The control API: HTTP and JSON over a Unix socket, for our commands and for other programs.

aiohttp's low-level server and a table of our own: every answer, also to a path that there is not,
is made in one place and is JSON. Whatever comes is bounded: connections, requests in work, the size
and the time of each part of a request (connection.py has the last). docs/api.md describes it.
"""

from __future__ import annotations

import asyncio
import json
import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast
from urllib.parse import unquote

from aiohttp import HttpVersion11, web

from pyztun.cni.agent import requests, views
from pyztun.cni.agent.acceptor import Acceptor
from pyztun.cni.agent.connection import BOUNDS, Bounds, Connection, Crowd, respond
from pyztun.cni.agent.requests import Refusal

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Mapping
    from typing import Any

    from pyztun.cni.agent.requests import Wanted
    from pyztun.cni.agent.status import Status
    from pyztun.cni.agent.workload import Workload
    from pyztun.service.log import Log
    from pyztun.socketfile import SocketFile

    Handler = Callable[["Asked"], Coroutine[Any, Any, views.Json]]

WORKLOADS, STATUS, OPENAPI = "/v1/workloads", "/v1/status", "/v1/openapi.json"
ONE_WORKLOAD = f"{WORKLOADS}/{{key}}"


class Deleted(Protocol):
    """What became of a delete: see Core."""

    @property
    def workload(self) -> Workload:
        """As it was."""

    @property
    def unconfirmed(self) -> tuple[int, ...]:
        """Numbers of the ztunnels that had not confirmed in time."""


class Added(Protocol):
    """What became of an add: see Core."""

    @property
    def workload(self) -> Workload:
        """As it is."""

    @property
    def reset(self) -> bool:
        """Whether connections of the pod from before were reset."""


class Core(Protocol):
    """What the API is for; all of it is called in the loop. core.py is the real one."""

    @property
    def workloads(self) -> Mapping[str, Workload]:
        """By uid, in order."""

    async def add(self, wanted: Wanted, timeout: float) -> Added:
        """Returns when the newest ztunnel has acknowledged it. Refusal."""

    async def delete(self, key: str, timeout: float) -> Deleted:
        """By uid, else by reference. Refusal."""

    def find(self, key: str) -> Workload:
        """By uid, else by reference. Refusal."""

    def known_by(self, uid: str) -> list[int]:
        """The numbers of the ztunnels that acknowledged exactly what is wanted."""

    def status(self) -> Status:
        """How everything is."""


class Asked(NamedTuple):
    """A request whose path and method there are.

    :ivar key: what stands for ``{key}``, decoded.
    """

    key: str
    parameters: dict[str, str]
    body: bytes
    peer_pid: int


class Control:
    """The API and its socket. All of it runs in the loop.

    :param file: the socket, which close() takes away.
    :param allow_uids: who may ask, beside root and ourselves.
    """

    def __init__(
        self,
        core: Core,
        file: SocketFile,
        allow_uids: frozenset[int],
        log: Log,
        bounds: Bounds = BOUNDS,
    ) -> None:
        self._core, self._log, self._bounds = core, log, bounds
        self._allowed = allow_uids | {0, os.geteuid()}
        self._rooms = {True: Crowd(bounds.connections), False: Crowd(bounds.strangers)}
        self._file = file
        self._acceptor: Acceptor | None = None
        self._arriving: set[asyncio.Task[Any]] = set()
        self._working = 0
        self._is_closing = False
        self.routes: dict[str, dict[str, Handler]] = {
            WORKLOADS: {"GET": self._list, "POST": self._add},
            ONE_WORKLOAD: {"GET": self._show, "DELETE": self._delete},
            STATUS: {"GET": self._status},
            OPENAPI: {"GET": self._openapi},
        }

    # ---- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serves from now on."""
        loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = loop.create_future()
        self._idle = asyncio.Event()
        self._idle.set()
        self._web: web.Server = web.Server(self._answer)
        self._acceptor = Acceptor(self._file.socket, self._accepted, self._log)

    def _accepted(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.connect_accepted_socket(self._connection, sock))
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)

    def _connection(self) -> Connection:
        loop = asyncio.get_running_loop()
        return Connection(self._web, loop, self._rooms, self._allowed, self._bounds, self._log)

    async def close(self) -> None:
        """Lets requests in work end, for a time, and refuses new ones. Idempotent.

        The file goes first: who comes from now on learns at once that nobody is here.
        """
        if self._is_closing:
            return
        self._is_closing = True
        self._file.remove()
        if self._acceptor is None:
            self._file.close()
            return
        self._acceptor.close()
        for one in self._connections():
            one.close_if_idle()
        try:
            await asyncio.wait_for(self._idle.wait(), self._bounds.drain)
        except asyncio.TimeoutError:  # those that are left hear so
            self._over.set_result(None)
        await self._web.shutdown(self._bounds.flush)
        for one in self._connections():
            one.abort()
        self._file.close()

    def _connections(self) -> list[Connection]:
        return [one for room in self._rooms.values() for one in room.members]

    # ---- one request ---------------------------------------------------------------------------

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = cast("Connection", request.protocol)
        try:
            handler, asked = await self._read(request, connection)
            connection.begin_work()
            response = respond(
                200, await self._work(handler(asked)), last=self._is_last(connection)
            )
        except Refusal as refusal:
            response = self._refused(refusal, connection)
        except ConnectionError:  # of a client that went away while we read
            raise
        except Exception:
            self._log.event("error", "bug", where="control", traceback=traceback.format_exc())
            shown = views.error(views.INTERNAL, "a bug of ours: see the log of the agent")
            response = respond(500, shown, True)
        connection.end_work()
        return response

    def _refused(self, refusal: Refusal, connection: Connection) -> web.Response:
        reset = refusal.reset or None
        kept = None if refusal.workload is None else self._shown(refusal.workload, reset)
        status = views.STATUSES.get(refusal.code, 500)
        # What is left of a body that was not read whole must not be taken for a request.
        last = self._is_last(connection) or refusal.code in (
            views.FORBIDDEN,
            views.TOO_LARGE,
            views.REQUEST_TIMEOUT,
        )
        response = respond(status, views.error(refusal.code, str(refusal), kept), last)
        if isinstance(refusal, _MethodNotAllowed):
            response.headers["Allow"] = ", ".join(refusal.allowed)
        if refusal.code == requests.BUSY:
            response.headers["Retry-After"] = "1"
        return response

    def _is_last(self, connection: Connection) -> bool:
        return self._is_closing or connection.has_ended

    async def _read(
        self, request: web.BaseRequest, connection: Connection
    ) -> tuple[Handler, Asked]:
        """All of a request, before anything is done for it. Refusal."""
        connection.begin_body()
        if not connection.is_allowed:
            self._log.event("peer", "control-refused", reason=f"uid {connection.uid} may not ask")
            raise Refusal(views.FORBIDDEN, f"uid {connection.uid} may not ask")
        if self._is_closing:
            raise Refusal(requests.SHUTTING_DOWN, "the agent is ending")
        target = request.raw_path
        if not target.startswith("/"):  # http://localhost/v1/...: a server takes both forms
            target = "/" + target.partition("://")[2].partition("/")[2]
        path, _, query = target.partition("?")
        methods, key = self._route(path)
        handler = methods.get(request.method)
        if handler is None:
            raise _MethodNotAllowed(request.method, list(methods))
        body = await _body(request, self._bounds) if request.method == "POST" else b""
        if self._working >= self._bounds.requests:
            raise Refusal(requests.BUSY, f"{self._working} requests are in work")
        known = ("timeout",) if request.method == "DELETE" else ()
        asked = Asked(key, views.query(query, known), body, connection.pid)
        return handler, asked

    def _route(self, path: str) -> tuple[Mapping[str, Handler], str]:
        if path in self.routes and path != ONE_WORKLOAD:
            return self.routes[path], ""
        start, _, encoded = path.partition(f"{WORKLOADS}/")
        if start or not encoded:
            raise Refusal(views.NO_SUCH_PATH, f"there is no {path}; {OPENAPI} has what there is")
        # The bytes of a path need not be UTF-8.
        return self.routes[ONE_WORKLOAD], unquote(encoded, errors="surrogateescape")

    async def _work(self, work: Coroutine[Any, Any, views.Json]) -> views.Json:
        """Does it in a task of its own: whether the client is still there makes no difference."""
        task = asyncio.ensure_future(work)
        task.add_done_callback(_look_at)
        self._working += 1
        self._idle.clear()
        try:
            await asyncio.wait((task, self._over), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            task.cancel()
            raise Refusal(requests.SHUTTING_DOWN, "the agent ended before a ztunnel had answered")
        finally:
            self._working -= 1
            if not self._working:
                self._idle.set()

    # ---- what there is -------------------------------------------------------------------------

    async def _list(self, _: Asked) -> views.Json:
        if sum(one.unsent for one in self._connections()) > self._bounds.unsent:
            raise Refusal(requests.BUSY, "others have not taken their answers yet")
        return {"workloads": [self._shown(each) for each in self._core.workloads.values()]}

    async def _add(self, asked: Asked) -> views.Json:
        wanted, timeout = views.wanted(asked.body, asked.peer_pid)
        added = await self._core.add(wanted, timeout)
        return self._shown(added.workload, added.reset)

    async def _show(self, asked: Asked) -> views.Json:
        return self._shown(self._core.find(asked.key))

    async def _delete(self, asked: Asked) -> views.Json:
        timeout = views.query_timeout(asked.parameters)
        deleted = await self._core.delete(asked.key, timeout)
        return {
            "workload": views.workload(deleted.workload, ()),
            "unconfirmed": list(deleted.unconfirmed),
        }

    async def _status(self, _: Asked) -> views.Json:
        return views.status(self._core.status())

    async def _openapi(self, _: Asked) -> views.Json:
        return openapi()

    def _shown(self, workload: Workload, reset: bool | None = None) -> views.Json:
        return views.workload(workload, self._core.known_by(workload.uid), reset)


class _MethodNotAllowed(Refusal):
    def __init__(self, method: str, allowed: list[str]) -> None:
        super().__init__(views.METHOD_NOT_ALLOWED, f"{method} is none of {', '.join(allowed)}")
        self.allowed = allowed


def _look_at(task: asyncio.Future[views.Json]) -> None:
    """Nobody else may be there to hear of its error: asyncio would complain of that."""
    if not task.cancelled():
        task.exception()


async def _body(request: web.BaseRequest, bounds: Bounds) -> bytes:
    """Refusal, ConnectionError."""
    too_large = Refusal(views.TOO_LARGE, f"the body has more than {bounds.body} bytes")
    if (request.content_length or 0) > bounds.body:
        raise too_large
    expected = request.headers.get("Expect", "").lower()
    if expected == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        return await asyncio.wait_for(_read_up_to(request, bounds.body, too_large), bounds.deadline)
    except asyncio.TimeoutError:
        raise Refusal(views.REQUEST_TIMEOUT, f"no whole body in {bounds.deadline:g} s") from None
    except web.RequestPayloadError as error:
        raise Refusal(requests.BAD_REQUEST, f"the body is not HTTP: {error}") from None


async def _read_up_to(request: web.BaseRequest, limit: int, too_large: Refusal) -> bytes:
    body = b""
    while chunk := await request.content.readany():
        body += chunk
        if len(body) > limit:
            raise too_large
    return body


def openapi() -> views.Json:
    """The description of all this for machines."""
    shown: views.Json = json.loads(Path(__file__).with_name("openapi.json").read_text())
    return shown
