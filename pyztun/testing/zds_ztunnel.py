"""ScriptedZtunnel: ztunnel's end of ZDS, which answers exactly what a test tells it to.

For whoever tests a node agent, Istio's or another one, without a cluster. AckingZtunnel is one that
agrees to everything by itself and remembers it.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable
from time import monotonic, sleep

from pyztun import NetNs, NotANetns, OwnedFd, ProtocolError, PyztunError
from pyztun.protocol import zds
from pyztun.testing.zds import SECONDS, Closing, Peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass

RETRY = 0.005  # seconds between two attempts to connect
FOR_EVER = 1e6  # seconds: hang_up() ends such a wait


class ZdsRequest(Closing):
    """A request that has come; it is answered by ack(), nack() or answer_twice(), or not at all.

    Answers are paired by their order alone: whoever answers a later one first says that the earlier
    one was done. Use it as a with-block, or close() it: the netns is closed then.

    :ivar message: what it says: zds.Add, Keep, Del or SnapshotSent.
    :ivar netns: the descriptor of an Add, as it came; detach() takes it over. Else None.
    :ivar before_ack: called by ack() before the answer goes out; does nothing.
    """

    def __init__(self, peer: Peer, message: zds.Request, netns: OwnedFd | None) -> None:
        self._peer = peer
        self.message = message
        self.netns = netns
        self.before_ack: Callable[[], object] = lambda: None

    @property
    def uid(self) -> str:
        """Whom it is about; empty for SnapshotSent."""
        return "" if isinstance(self.message, zds.SnapshotSent) else self.message.uid

    @property
    def cookie(self) -> int:
        """The cookie of the netns that came. NotANetns; ValueError where there is none."""
        if self.netns is None:
            raise ValueError(f"no netns came with {self.message}")
        with NetNs.from_fd(self.netns.fileno()) as opened:
            return opened.cookie

    def ack(self) -> None:
        """Agrees."""
        self.before_ack()
        self._peer.send_raw(zds.ack())

    def nack(self, why: str) -> None:
        """Refuses; a text that would not fit into a packet is clipped."""
        self._peer.send_raw(zds.nack(why))

    def answer_twice(self) -> None:
        """Agrees, and once more: the second answer belongs to no request."""
        self.ack()
        self._peer.send_raw(zds.ack())

    def close(self) -> None:
        """Closes the netns, unless it was taken over. Idempotent."""
        if self.netns is not None:
            self.netns.close()

    def __repr__(self) -> str:
        return f"<ZdsRequest {self.message}>"


class ScriptedZtunnel(Peer):
    """Dials as a ztunnel does; each request is answered by the test. One thread at a time.

    :param path: of the agent's socket. One that is not there yet is waited for.
    :param hello: False says nothing at first; then say_hello(), or not.
    :param timeout: seconds that any call waits unless it is told otherwise.
    :raises TimeoutError: no agent listens there.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, hello: bool = True, timeout: float = SECONDS
    ) -> None:
        super().__init__(_dial(os.fspath(path), timeout), timeout)
        self.name = "the agent"
        self._requests: list[ZdsRequest] = []
        if hello:
            try:
                self.say_hello()
            except BaseException:
                self.close()
                raise

    def say_hello(self) -> None:
        """Says Hello, version 1."""
        self.send_raw(zds.hello())

    def request(self, timeout: float | None = None) -> ZdsRequest:
        """The next request.

        :returns: it, unanswered. Its netns is closed with this ztunnel at the latest.
        :raises TimeoutError: none came.
        :raises PeerClosed: the agent closed.
        :raises ProtocolError: what came is no request, or with a wrong number of descriptors.
        """
        data, fds = self._message(timeout, max_fds=250)
        try:
            message = zds.decode(data, len(fds))
        except ProtocolError:
            for fd in fds:
                fd.close()
            raise
        request = ZdsRequest(self, message, fds[0] if fds else None)
        self._requests = [each for each in self._requests if _holds(each)]
        self._requests.append(request)
        return request

    def close(self) -> None:
        """Dies: the connection and every netns that came and was not taken over is closed."""
        for request in self._requests:
            request.close()
        self._requests.clear()
        super().close()


def _holds(request: ZdsRequest) -> bool:
    return request.netns is not None and request.netns.fileno() >= 0


def _dial(path: str, timeout: float) -> socket.socket:
    """Connects; waits for the socket, for a listener and for room in its backlog."""
    deadline = monotonic() + timeout
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.setblocking(False)
        while not _connects(sock, path, deadline):
            sleep(RETRY)
    except BaseException:
        sock.close()
        raise
    return sock


def _connects(sock: socket.socket, path: str, deadline: float) -> bool:
    error = sock.connect_ex(path)
    if error == 0:
        return True
    if error not in (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN):
        raise OSError(error, os.strerror(error), path)
    if monotonic() >= deadline:
        raise TimeoutError(errno.ETIMEDOUT, "no agent listens", path)
    return False


class AckingZtunnel(Closing):
    """A ztunnel whose own thread agrees to everything, and remembers who is where.

    A descriptor that is no netns is refused; what breaks the protocol ends it. Its methods may be
    called from any thread.

    :param path: of the agent's socket, which is waited for.
    :param answer: what to do with a request instead of ``ack()``, in the thread. What it leaves
        without an answer has none.
    :param timeout: seconds that any call waits unless it is told otherwise.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        answer: Callable[[ZdsRequest], None] = ZdsRequest.ack,
        timeout: float = SECONDS,
    ) -> None:
        self._ztunnel = ScriptedZtunnel(path, timeout=timeout)
        self._timeout = timeout
        self._answer = answer
        self._changed = threading.Condition()
        self._released = threading.Event()
        self._released.set()
        self._workloads: dict[str, int] = {}
        self._has_snapshot = False
        self._end: str | None = None
        self._thread = threading.Thread(target=self._run, name="acking-ztunnel", daemon=True)
        self._thread.start()

    @property
    def workloads(self) -> dict[str, int]:
        """Cookie by uid of what was added and not deleted since: what a ztunnel would serve.

        An Add is in it before its ACK goes out.
        """
        with self._changed:
            return dict(self._workloads)

    @property
    def has_snapshot(self) -> bool:
        """Whether SnapshotSent has come."""
        with self._changed:
            return self._has_snapshot

    @property
    def end(self) -> str | None:
        """None as long as the connection is there, then why it ended."""
        with self._changed:
            return self._end

    def wait_for(
        self, wanted: Callable[[dict[str, int]], bool], timeout: float | None = None
    ) -> dict[str, int]:
        """Waits until the snapshot is complete and ``wanted(workloads)`` is true; returns them.

        :raises TimeoutError: it did not become true, or cannot any more; the text tells the state.
        """

        def holds() -> bool:
            return self._has_snapshot and wanted(dict(self._workloads))

        def decided() -> bool:
            return holds() or self._end is not None

        with self._changed:
            self._changed.wait_for(decided, self._timeout if timeout is None else timeout)
            if not holds():
                done = "complete" if self._has_snapshot else "not complete"
                state = "connected" if self._end is None else self._end
                raise TimeoutError(f"{self._workloads}; the snapshot is {done}; {state}")
            return dict(self._workloads)

    def hold(self) -> None:
        """From now on requests have no answer; the one that is being answered still may."""
        self._released.clear()

    def release(self) -> None:
        """Ends hold(): what has come is answered, in its order."""
        self._released.set()

    def close(self) -> None:
        """Dies, and waits for the thread. Idempotent; not to be called by ``answer``."""
        self._ztunnel.hang_up()
        self._released.set()
        self._thread.join()
        self._ztunnel.close()

    def _run(self) -> None:
        try:
            while True:
                with self._ztunnel.request(FOR_EVER) as request:
                    self._released.wait()
                    self._take(request)
        except (PyztunError, OSError) as error:
            end = str(error)
        except BaseException as error:  # of ``answer``: whoever waits is told, the thread says it
            end = repr(error)
            raise
        finally:
            self._ztunnel.hang_up()
            with self._changed:
                self._end = end
                self._changed.notify_all()

    def _take(self, request: ZdsRequest) -> None:
        request.before_ack = lambda: self._note(request)
        try:
            self._answer(request)
        except NotANetns as error:
            request.nack(str(error))

    def _note(self, request: ZdsRequest) -> None:
        cookie = request.cookie if isinstance(request.message, zds.Add) else 0
        with self._changed:
            if isinstance(request.message, zds.Add):
                self._workloads[request.uid] = cookie
            elif isinstance(request.message, zds.Del):
                self._workloads.pop(request.uid, None)
            elif isinstance(request.message, zds.SnapshotSent):
                self._has_snapshot = True
            self._changed.notify_all()
