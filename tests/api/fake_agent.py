"""The control API over a core that a test writes, and a client of it by the standard library.

The server, its socket and its connections are the real ones; behind them is a Core that knows no
netns and no ztunnel, so that a test decides what becomes of a request, and when.
"""

import asyncio
import http.client
import io
import json
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from pyztun.cni.agent import requests
from pyztun.cni.agent.connection import Bounds
from pyztun.cni.agent.control import Control
from pyztun.cni.agent.requests import Refusal, Wanted
from pyztun.cni.agent.status import (
    DescriptorStatus,
    PodsideStatus,
    ReconcileStatus,
    Status,
    ZtunnelStatus,
)
from pyztun.cni.agent.workload import READY, Spec, Workload
from pyztun.protocol.zds import WorkloadInfo
from pyztun.service.log import Log
from pyztun.socketfile import SocketFile

T = TypeVar("T")
Json = dict[str, Any]
LIMIT = 20.0
"""Seconds that nothing here takes."""


NOBODY: frozenset[int] = frozenset()


class FakeAdded(NamedTuple):
    """See core.Added."""

    workload: Workload
    reset: bool


class FakeDeleted(NamedTuple):
    """See core.Deleted."""

    workload: Workload
    unconfirmed: tuple[int, ...]


class FakeCore:
    """Agrees to everything at once, unless a test says what to do with an add.

    :ivar before_ack: awaited by each add, behind the registration; may raise.
    :ivar asked: what came.
    :ivar added: counts adds that are registered.
    :ivar finished: the uids of those that were acknowledged; ``ended`` counts them.
    """

    def __init__(self) -> None:
        self.workloads: dict[str, Workload] = {}
        self.asked: list[tuple[Wanted, float]] = []
        self.added, self.ended = threading.Semaphore(0), threading.Semaphore(0)
        self.finished: list[str] = []
        self.before_ack: Callable[[Workload], Coroutine[Any, Any, None]] | None = None
        self.unconfirmed: tuple[int, ...] = ()
        self.ztunnels: tuple[ZtunnelStatus, ...] = ()
        self.reset = False

    async def add(self, wanted: Wanted, timeout: float) -> FakeAdded:
        requests.check(wanted)
        self.asked.append((wanted, timeout))
        uid = wanted.uid or f"of {wanted.netns}"
        info = WorkloadInfo(wanted.name or "n", wanted.namespace, wanted.service_account)
        workload = Workload(uid, Spec(wanted.netns, info, wanted.capture, wanted.labels))
        self.workloads[uid] = workload
        self.added.release()
        if self.before_ack is not None:
            await self.before_ack(workload)
        workload.set_state(READY, "")
        self.finished.append(uid)
        self.ended.release()
        return FakeAdded(workload, self.reset)

    async def delete(self, key: str, timeout: float) -> FakeDeleted:
        self.asked.append((Wanted(key), timeout))
        return FakeDeleted(self.workloads.pop(self.find(key).uid), self.unconfirmed)

    def find(self, key: str) -> Workload:
        found = [each for each in self.workloads.values() if key in (each.uid, each.reference)]
        if len(found) != 1:
            raise Refusal(
                requests.AMBIGUOUS if found else requests.NO_SUCH_WORKLOAD, f"no workload {key}"
            )
        return found[0]

    def known_by(self, uid: str) -> list[int]:
        return [1] if self.workloads[uid].state == READY else []

    def status(self) -> Status:
        return Status(
            "0.1.0",
            7,
            0.0,
            "boot",
            "/z",
            "/c",
            "/s",
            {"ready": len(self.workloads), "pending": 0, "degraded": 0},
            self.ztunnels,
            ReconcileStatus(30.0, 0, None, 0.0),
            DescriptorStatus(3, 100),
            PodsideStatus(8, 1, 2, 3),
        )


class Events(Log):
    """A log that is kept instead of written."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, object]]] = []

    def event(self, level: str, name: str, **fields: object) -> None:
        self.events.append((level, name, fields))

    @property
    def bugs(self) -> list[dict[str, object]]:
        """What must not be there."""
        return [fields for _, name, fields in self.events if name == "bug"]


class FakeAgent:
    """The API in a thread with a loop of its own; a with-block."""

    def __init__(
        self,
        directory: Path,
        bounds: Bounds,
        mode: int = 0o600,
        allow_uids: frozenset[int] = NOBODY,
    ) -> None:
        self.path = str(directory / "agent.sock")
        self.core, self.log = FakeCore(), Events()
        self._bounds, self._mode, self._allow_uids = bounds, mode, allow_uids
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="agent")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs it in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LIMIT)

    def close(self) -> None:
        """Ends the API; connections are refused from then on."""
        self.run(self.control.close())

    def __enter__(self) -> "FakeAgent":
        self._loop.set_exception_handler(self._bug)
        self._thread.start()
        try:
            file = SocketFile.listen(self.path, mode=self._mode)
            self.control = Control(self.core, file, self._allow_uids, self.log, self._bounds)
            self.run(self.control.start())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        self.run(_rest())
        self._end()
        if error is None:
            assert self.log.bugs == []

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT)
        self._loop.close()

    def _bug(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.log.event("error", "bug", **{key: str(value) for key, value in context.items()})

    # ---- a client ------------------------------------------------------------------------------

    def ask(self, method: str, path: str, body: Json | bytes | None = None) -> "Reply":
        """One request on a connection of its own, by http.client."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = UnixConnection(self.path)
        try:
            connection.request(method, path, data)
            return Reply.of(connection.getresponse())
        finally:
            connection.close()

    def add(self, netns: str = "/run/netns/a", **fields: object) -> "Reply":
        """POST /v1/workloads."""
        return self.ask("POST", "/v1/workloads", {"netns": netns, **fields})

    @contextmanager
    def connected(self) -> Iterator[socket.socket]:
        """A connection for bytes that http.client would not send."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(LIMIT)
            sock.connect(self.path)
            yield sock

    def raw(self, *parts: bytes) -> "Reply":
        """Sends bytes, shuts down, and expects one answer and the end of the connection."""
        with self.connected() as sock:
            for part in parts:
                sock.sendall(part)
            sock.shutdown(socket.SHUT_WR)
            whole = b""
            while chunk := sock.recv(65536):
                whole += chunk
        return Reply.parsed(whole)


async def _rest() -> None:
    """Lets what was cancelled come to its end."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for each in others:
        each.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.sleep(0)


class UnixConnection(http.client.HTTPConnection):
    """To a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("agent", timeout=LIMIT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Reply(NamedTuple):
    """An answer, which is JSON whatever happened."""

    status: int
    body: Any
    headers: http.client.HTTPMessage

    @classmethod
    def of(cls, response: http.client.HTTPResponse) -> "Reply":
        assert response.headers["Content-Type"].startswith("application/json")
        return cls(response.status, json.loads(response.read()), response.headers)

    @classmethod
    def parsed(cls, raw: bytes) -> "Reply":
        """One answer that is all of RAW."""
        head, _, body = raw.partition(b"\r\n\r\n")
        line, _, fields = head.partition(b"\r\n")
        headers = http.client.parse_headers(io.BytesIO(fields + b"\r\n\r\n"))
        assert int(headers["Content-Length"]) == len(body)
        return cls(int(line.split()[1]), json.loads(body), headers)

    @property
    def error(self) -> tuple[int, str]:
        """Status and code."""
        return self.status, self.body["error"]


def received(sock: socket.socket) -> Reply:
    """The next answer on a connection."""
    response = http.client.HTTPResponse(sock)
    response.begin()
    return Reply.of(response)
