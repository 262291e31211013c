"""The netns that this ztunnel holds, each with its listeners.

Key is the (dev, inode) of the netns: the listeners pin the namespace, so as long as a workload is
held its inode cannot be given to another one. The cookie is its name towards people, and after
its path is gone. No netns fd is kept. Only the handoff thread uses this.
"""

from __future__ import annotations

import os

from pyztun import native
from pyztun.errors import SyscallError
from pyztun.protocol import seed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

Key = tuple[int, int]


class Workload:
    """One netns and its listeners (owned)."""

    __slots__ = ("cookie", "key", "line", "listeners", "ready")

    def __init__(self, key: Key, cookie: int, listeners: list[int], addresses: str) -> None:
        self.key, self.cookie, self.listeners = key, cookie, listeners
        self.ready = seed.ready(addresses, cookie)
        self.line = seed.held(addresses, cookie)


class Workloads:
    """All that is held.

    :param plan: the listeners of each workload.
    :param responder: answers their connections.
    :param home_fd: netns of the handoff thread, proven, borrowed.
    """

    def __init__(self, plan: native.ListenPlan, responder: native.Responder, home_fd: int) -> None:
        self._plan, self._responder, self._home_fd = plan, responder, home_fd
        self._addresses = " ".join(map(str, plan.specs))
        self._held: dict[Key, Workload] = {}
        self._by_cookie: dict[int, Workload] = {}
        self._listing: bytes | None = None

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Workload]:
        return iter(self._held.values())

    def get(self, key: Key) -> Workload | None:
        """The workload that is held for a netns."""
        return self._held.get(key)

    def by_cookie(self, cookie: int) -> Workload | None:
        """The workload of that cookie."""
        return self._by_cookie.get(cookie)

    def add(self, fd: int, key: Key, cookie: int) -> Workload:
        """Makes the listeners in the netns ``fd`` (borrowed), all or none, and holds them.

        :param cookie: 0 where the kernel told none without a socket. SyscallError.
        """
        listeners = self._plan.open(fd, self._home_fd, "the pod")
        try:
            self._responder.watch(listeners)
            workload = Workload(
                key, cookie or _cookie_of(listeners[0], key), listeners, self._addresses
            )
        except BaseException:
            self._let_go(listeners)
            raise
        self._held[key] = self._by_cookie[workload.cookie] = workload
        self._listing = None
        return workload

    def find_cookie(self, fd: int) -> int:
        """The cookie of a netns that is not held; its inode where the kernel tells none."""
        try:
            return native.netns_cookie(fd, "the descriptor", self._home_fd)
        except SyscallError:
            return native.inspect(fd, "the descriptor")[1]

    def drop(self, workload: Workload) -> None:
        """Closes its listeners: nothing of ours is left in the pod."""
        del self._held[workload.key], self._by_cookie[workload.cookie]
        self._listing = None
        self._let_go(workload.listeners)

    def drop_all(self) -> None:
        """Closes every listener."""
        for workload in list(self._held.values()):
            self.drop(workload)

    def listing(self) -> bytes:
        """The whole answer to LIST, made once per change."""
        if self._listing is None:
            lines = [workload.line for workload in self._held.values()]
            self._listing = b"".join([*lines, seed.end()])
        return self._listing

    def _let_go(self, listeners: list[int]) -> None:
        self._responder.forget(listeners)
        for listener in listeners:
            os.close(listener)


def _cookie_of(listener: int, key: Key) -> int:
    """The cookie, or before Linux 5.14 the inode, which is unique among what is held."""
    try:
        return native.socket_cookie(listener)
    except SyscallError:
        return key[1]
