"""ScriptedAgent: the node agent's end of ZDS, which says exactly what a test tells it to.

For whoever tests a ztunnel, Istio's or another one, without a cluster.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pyztun import NetNs, ProtocolError
from pyztun.protocol import zds
from pyztun.testing.zds import SECONDS, Closing, Peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyztun import Descriptor, Reference

    Netns = Reference | Descriptor


class Answer(NamedTuple):
    """What a ztunnel said to a request.

    :ivar error: empty for an ACK, else why it refused.
    """

    request: zds.Request
    error: str

    @property
    def ok(self) -> bool:
        """Whether it is an ACK."""
        return not self.error


class ScriptedAgent(Closing):
    """Listens as a node agent does; each ztunnel that dials is accepted by the test.

    One thread at a time.

    :param path: of the socket. What a killed run left there is replaced, as Istio's agent does.
    :param timeout: seconds that any call waits unless it is told otherwise.
    :param mode: of the socket file.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, timeout: float = SECONDS, mode: int = 0o600
    ) -> None:
        self.path = os.fspath(path)
        self._timeout = timeout
        self._connections: list[AgentConnection] = []
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(self.path).st_mode):
                os.unlink(self.path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.bind(self.path)
            os.chmod(self.path, mode)
            self._socket.listen(128)
        except BaseException:
            self._socket.close()
            raise

    def accept(self, timeout: float | None = None, *, hello: bool = True) -> AgentConnection:
        """The next ztunnel, once it has said Hello.

        :param hello: False returns at once, to a ztunnel that has said nothing yet.
        :returns: the connection; it is closed with this agent at the latest.
        :raises TimeoutError: nobody came, or did not say Hello.
        :raises ProtocolError: what it said is no Hello; PeerClosed if it closed.
        """
        self._socket.settimeout(self._timeout if timeout is None else timeout)
        sock, _ = self._socket.accept()
        connection = AgentConnection(sock, self._timeout)
        self._connections.append(connection)
        if hello:
            connection.receive_hello(timeout)
        return connection

    def close(self) -> None:
        """Dies: all connections, the listener and its file are gone. Idempotent."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        if self._socket.fileno() >= 0:
            self._socket.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)


class AgentConnection(Peer):
    """One ztunnel. Each request comes in two forms: ``add()`` waits for the answer, ``send_add()``
    does not, and ``answer()`` returns the answers in the order of the requests.

    A ``netns`` may be whatever NetNs.of() takes, or any descriptor: also of a file that is no
    netns. It stays the caller's.

    :ivar hello: the version of the Hello, None as long as there was none.
    """

    hello: int | None = None

    def __init__(self, sock: socket.socket, timeout: float = SECONDS) -> None:
        """Takes ownership of ``sock``, a connected seqpacket socket."""
        super().__init__(sock, timeout)
        self.name = "ztunnel"
        self._due: deque[zds.Request] = deque()
        self._answers: deque[Answer] = deque()

    def receive_hello(self, timeout: float | None = None) -> int:
        """Waits for the Hello and returns its version. Errors as of ScriptedAgent.accept()."""
        data, _ = self._message(timeout)
        self.hello = zds.read_hello(data)
        return self.hello

    # ---- without waiting ---------------------------------------------------------------------

    def send(self, request: zds.Request, fds: Iterable[Descriptor] = ()) -> None:
        """Sends a request, with any number of descriptors; an answer to it is due then."""
        self.send_raw(zds.encode(request), fds)
        self._due.append(request)

    def send_add(
        self,
        uid: str,
        netns: Netns,
        *,
        name: str = "workload",
        namespace: str = "default",
        service_account: str = "default",
    ) -> None:
        """Says: serve this workload in this netns. NetnsGone and NotANetns of its reference."""
        request = zds.Add(uid, zds.WorkloadInfo(name, namespace, service_account))
        if isinstance(netns, str | os.PathLike):
            with NetNs.of(netns) as opened:
                self.send(request, [opened])
        else:
            self.send(request, [netns])

    def send_keep(self, uid: str) -> None:
        """Says, in a snapshot: it is to be served, but its netns cannot be opened now."""
        self.send(zds.Keep(uid))

    def send_delete(self, uid: str) -> None:
        """Says: no longer serve this workload."""
        self.send(zds.Del(uid))

    def send_snapshot_sent(self) -> None:
        """Says: what was added or kept so far is all that there is."""
        self.send(zds.SnapshotSent())

    @property
    def due(self) -> tuple[zds.Request, ...]:
        """The requests whose answers have not been received, oldest first."""
        return tuple(self._due)

    def answer(self, timeout: float | None = None) -> Answer:
        """The next answer, in the order of the requests.

        :raises TimeoutError: none came. Nothing is lost: it may be asked for again.
        :raises PeerClosed: ztunnel closed instead.
        :raises ProtocolError: what came is no answer.
        :raises LookupError: no request is without an answer.
        """
        if self._answers:
            return self._answers.popleft()
        return self._receive(timeout)

    def _receive(self, timeout: float | None) -> Answer:
        if not self._due:
            raise LookupError("every request has its answer")
        data, _ = self._message(timeout)
        return Answer(self._due.popleft(), zds.read_response(data))

    def _last_answer(self, timeout: float | None) -> Answer:
        """That of the request sent last; those before it are kept for answer()."""
        while len(self._due) > 1:
            self._answers.append(self._receive(timeout))
        return self._receive(timeout)

    # ---- and with ----------------------------------------------------------------------------

    def add(
        self,
        uid: str,
        netns: Netns,
        *,
        name: str = "workload",
        namespace: str = "default",
        service_account: str = "default",
        timeout: float | None = None,
    ) -> Answer:
        """send_add(), and its answer."""
        self.send_add(uid, netns, name=name, namespace=namespace, service_account=service_account)
        return self._last_answer(timeout)

    def keep(self, uid: str, timeout: float | None = None) -> Answer:
        """send_keep(), and its answer."""
        self.send_keep(uid)
        return self._last_answer(timeout)

    def delete(self, uid: str, timeout: float | None = None) -> Answer:
        """send_delete(), and its answer."""
        self.send_delete(uid)
        return self._last_answer(timeout)

    def snapshot_sent(self, timeout: float | None = None) -> Answer:
        """send_snapshot_sent(), and its answer."""
        self.send_snapshot_sent()
        return self._last_answer(timeout)

    def snapshot(
        self, workloads: Mapping[str, Netns | None], timeout: float | None = None
    ) -> dict[str, Answer]:
        """A whole snapshot, as an agent says it to whoever has connected.

        :param workloads: netns by uid; None for one that is to be kept.
        :param timeout: for each answer.
        :returns: the answers by uid. That of SnapshotSent must be an ACK.
        :raises ProtocolError: SnapshotSent was refused.
        """
        answers = {}
        for uid, netns in workloads.items():
            if netns is None:
                answers[uid] = self.keep(uid, timeout)
            else:
                answers[uid] = self.add(uid, netns, name=uid, timeout=timeout)
        done = self.snapshot_sent(timeout)
        if not done.ok:
            raise ProtocolError(f"SnapshotSent was refused: {done.error}")
        return answers
