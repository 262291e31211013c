"""The services' native waits: each blocks in C until there is one complete thing to do.

What stands behind them is in ``csrc/handoff.c``, ``csrc/zds.c`` and ``csrc/responder.c``; their
contracts are in ``csrc/pyztun.h``.
"""

from __future__ import annotations

from functools import partial

from pyztun.native import ListenPlan, check, ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TAKE: int = lib.PZ_EVENT_TAKE
RELEASE: int = lib.PZ_EVENT_RELEASE
RELEASE_COOKIE: int = lib.PZ_EVENT_RELEASE_COOKIE
LIST: int = lib.PZ_EVENT_LIST
MALFORMED: int = lib.PZ_EVENT_MALFORMED
DENIED: int = lib.PZ_EVENT_DENIED
WOKEN: int = lib.PZ_EVENT_WOKEN
QUIET: int = lib.PZ_EVENT_QUIET

WHY_BYTE: int = lib.PZ_WHY_BYTE
WHY_FDS: int = lib.PZ_WHY_FDS
WHY_COOKIE: int = lib.PZ_WHY_COOKIE
WHY_TRUNCATED: int = lib.PZ_WHY_TRUNCATED
WHY_LATE: int = lib.PZ_WHY_LATE
WHY_FD_TABLE: int = lib.PZ_WHY_FD_TABLE


class Handoff:
    """The seed form's receiver: blocks in C until one complete request is there.

    One thread owns it. ``request`` is the last event's struct pz_request.

    :param listener: a listening Unix stream socket, borrowed.
    :param wake: an eventfd, borrowed; readable means WOKEN.
    :param uids: who may ask, beside uid 0 and our own.
    :param max_unsent: bytes of answers not read yet, over all peers.
    """

    def __init__(
        self,
        listener: int,
        wake: int,
        *,
        uids: Sequence[int],
        max_peers: int,
        deadline: float,
        max_unsent: int,
    ) -> None:
        error = ffi.new("int *")
        limits = ffi.new("struct pz_handoff_limits *")
        limits.max_peers, limits.max_unsent = max_peers, max_unsent
        limits.deadline_ms = int(deadline * 1000)
        handle = lib.pz_handoff_new(listener, wake, limits, uids, len(uids), error)
        check(error[0], "epoll", "the handoff socket")
        self._handle = ffi.gc(handle, lib.pz_handoff_free)
        self.request = ffi.new("struct pz_request *")
        self.next: Callable[[], int] = partial(lib.pz_handoff_next, self._handle, self.request)
        """Blocks until the next event. The last one's peer is closed if it was not answered."""

    def answer(self, text: bytes, close_after: bool = False) -> None:
        """Answers the peer of the last event. Never blocks; a vanished peer is no error."""
        lib.pz_handoff_answer(self._handle, self.request.peer, text, len(text), close_after)

    def taker(self, plan: ListenPlan, home_fd: int, ready: bytes) -> Callable[[], int]:
        """A call that serves TAKE: listeners in the request's netns, and READY + cookie as answer.

        It returns 0, and then ``plan.made()`` are the listeners, owned by the caller, and
        ``request.cookie`` is the cookie; or -errno, and then nothing is answered and
        ``plan.failed()`` says why.
        """
        before = (self._handle, self.request, home_fd)
        return plan.taker(lib.pz_handoff_take, *before, after=(ready, len(ready)))

    def drain(self, timeout: float) -> None:
        """From now on next() serves what is queued, for ``timeout`` seconds at most; then QUIET."""
        lib.pz_handoff_drain(self._handle, int(timeout * 1000))

    def counters(self) -> dict[str, int]:
        """accepted, evicted, expired, accept_errors, and peers as of now."""
        out = ffi.new("struct pz_handoff_counters *")
        lib.pz_handoff_counters(self._handle, out)
        names = ("accepted", "evicted", "expired", "accept_errors", "peers")
        return {name: getattr(out, name) for name in names}

    def close(self) -> None:
        """Closes every peer; the listener and the wake fd stay the caller's."""
        ffi.release(self._handle)


class Responder:
    """Answers `ok` to every connection of the listeners that it watches.

    One thread calls run(); watch() and forget() may come from any other at any time.
    """

    def __init__(self, wake: int, *, max_connections: int, deadline: float) -> None:
        error = ffi.new("int *")
        handle = lib.pz_responder_new(wake, max_connections, int(deadline * 1000), error)
        check(error[0], "epoll", "the responder")
        self._handle = ffi.gc(handle, lib.pz_responder_free)

    def watch(self, listeners: Sequence[int]) -> None:
        """Starts to accept on non-blocking listeners (borrowed), all or none."""
        rc = lib.pz_responder_watch(self._handle, listeners, len(listeners))
        check(rc, "epoll_ctl", "listener")

    def forget(self, listeners: Sequence[int]) -> None:
        """Stops accepting on them; to be called before they are closed."""
        lib.pz_responder_forget(self._handle, listeners, len(listeners))

    def run(self) -> None:
        """Blocks until the wake fd is readable."""
        lib.pz_responder_run(self._handle)

    def accept_queued(self, timeout: float) -> None:
        """After run(): answers the connections that are queued on the listeners."""
        lib.pz_responder_accept_queued(self._handle, int(timeout * 1000))

    def finish(self, timeout: float) -> int:
        """Waits until the last connection is closed; returns how many were still open."""
        return lib.pz_responder_finish(self._handle, int(timeout * 1000))

    def close(self) -> None:
        """Closes every connection."""
        ffi.release(self._handle)


ADD: int = lib.PZ_ZDS_ADD
MESSAGE: int = lib.PZ_ZDS_MESSAGE
CLOSED: int = lib.PZ_ZDS_CLOSED
ZDS_WOKEN: int = lib.PZ_ZDS_WOKEN
DUE: int = lib.PZ_ZDS_DUE
TAKEN: int = lib.PZ_ZDS_TAKEN


class Zds:
    """Ztunnel's end of ZDS: blocks in C until there is one message, or something else to do.

    A plain Add of a netns and a uid that know() was not told of is served before next() returns.
    One thread owns all of it. ``request`` is the last event's struct pz_zds_request; its descriptor
    is the caller's.

    :param wake: an eventfd, borrowed; readable means ZDS_WOKEN.
    """

    def __init__(self, wake: int) -> None:
        self._plan: ListenPlan | None = None
        error = ffi.new("int *")
        handle = lib.pz_zds_new(wake, error)
        check(error[0], "pthread_create", "the ZDS client")
        self._handle = ffi.gc(handle, lib.pz_zds_free)
        self.request = ffi.new("struct pz_zds_request *")
        self._message = ffi.buffer(self.request.message)
        self._at, self._size = self.request.add.at, self.request.add.size

    def serve(self, plan: ListenPlan, home_fd: int) -> None:
        """From now on next() takes an Add that it may take, with the listeners of this plan.

        :param home_fd: netns of the thread that calls next(), proven, borrowed until close().
        """
        self._plan = plan  # its memory is C's until close()
        plan.taker(lib.pz_zds_serve, self._handle, home_fd)()

    def know(self, inode: int, uid: str = "") -> None:
        """An Add of this netns or this uid is not taken, until forget() of the same two."""
        name = uid.encode()
        lib.pz_zds_know(self._handle, inode, name, len(name))

    def forget(self, inode: int, uid: str = "") -> None:
        """Undoes one know()."""
        name = uid.encode()
        lib.pz_zds_forget(self._handle, inode, name, len(name))

    def next(self, sock: int, timeout: float | None, *, has_room: bool = False) -> int:
        """Blocks until the next event.

        TAKEN: ``made()`` of the plan are the listeners, owned by the caller, and
        ``request.unsent`` tells whether the ACK went out. ADD with ``request.failed``, an -errno:
        the listeners could not be made, nothing was sent, and ``failed()`` of the plan says why.

        :param sock: a connected seqpacket socket, borrowed; -1 for none.
        :param timeout: seconds until DUE, None for never.
        :param has_room: whether an Add may be taken.
        """
        ms = -1 if timeout is None else min(int(timeout * 1000 + 0.999), 0x7FFFFFFF)
        return lib.pz_zds_next(self._handle, sock, ms, has_room, self.request)

    def message(self) -> bytes:
        """The bytes of the last message."""
        return self._message[: self.request.size]

    def text(self, which: int) -> str:
        """A text of the last ADD or TAKEN: UID, NAME, NAMESPACE or SERVICE_ACCOUNT."""
        at = self._at[which]
        return self._message[at : at + self._size[which]].decode("ascii")

    def hang_up(self, sock: int) -> None:
        """Ends a connection, without blocking whatever is unread in it; takes ownership of it."""
        lib.pz_zds_hang_up(self._handle, sock)

    def close(self) -> None:
        """Ends its thread; the connection and the wake fd stay the caller's."""
        ffi.release(self._handle)


UID: int = lib.PZ_ADD_UID
NAME: int = lib.PZ_ADD_NAME
NAMESPACE: int = lib.PZ_ADD_NAMESPACE
SERVICE_ACCOUNT: int = lib.PZ_ADD_SERVICE_ACCOUNT
_TEXTS = range(lib.PZ_ADD_TEXTS)


def read_add(message: bytes) -> tuple[bytes, ...] | None:
    """The texts of a plain Add in the order UID, NAME, NAMESPACE, SERVICE_ACCOUNT; None otherwise.

    As the native reader sees it: to be compared with protobuf.
    """
    add = ffi.new("struct pz_add *")
    if lib.pz_add_read(message, len(message), add) == 0:
        return None
    return tuple(message[add.at[i] : add.at[i] + add.size[i]] for i in _TEXTS)
