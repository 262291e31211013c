"""The netns that this ztunnel holds, each with its listeners.

Key is the inode of the netns: the listeners pin the namespace, so as long as a workload is held its
inode cannot be given to another one, and nsfs is one file system. The cookie is its name towards
people, and after its path is gone. No netns fd is kept. One thread at a time: the handoff thread,
and behind its end whoever ends the rest.
"""

from __future__ import annotations

import os

from pyztun.errors import SyscallError
from pyztun.waits import Responder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Workload:
    """One netns and its listeners (owned)."""

    __slots__ = ("cookie", "inode", "listeners")

    def __init__(self, inode: int, cookie: int, listeners: list[int]) -> None:
        self.inode, self.cookie, self.listeners = inode, cookie, listeners


class Workloads:
    """All that is held.

    :ivar by_inode: to be read only.
    :param responder: answers the connections.
    :ivar changes: counts what was added or dropped.
    """

    def __init__(self, responder: Responder) -> None:
        self._responder = responder
        self.changes = 0
        self.by_inode: dict[int, Workload] = {}
        self._by_cookie: dict[int, Workload] = {}

    def __len__(self) -> int:
        return len(self.by_inode)

    def __iter__(self) -> Iterator[Workload]:
        return iter(self.by_inode.values())

    @property
    def cookies(self) -> list[int]:
        """Of all, in the order in which they were added."""
        return list(self._by_cookie)

    def by_cookie(self, cookie: int) -> Workload | None:
        """The workload of that cookie."""
        return self._by_cookie.get(cookie)

    def add(self, inode: int, cookie: int, listeners: list[int]) -> Workload:
        """Holds a new workload and its listeners (owned from now on), and answers connections.

        :raises SyscallError: nothing is held, the listeners are closed.
        """
        workload = Workload(inode, cookie, listeners)
        self.by_inode[inode] = self._by_cookie[cookie] = workload
        self.changes += 1
        try:
            self._responder.watch(listeners)
        except SyscallError:
            self.drop(workload)
            raise
        return workload

    def drop(self, workload: Workload) -> None:
        """Closes its listeners: nothing of ours is left in the pod."""
        del self.by_inode[workload.inode], self._by_cookie[workload.cookie]
        self.changes += 1
        self._responder.forget(workload.listeners)
        for listener in workload.listeners:
            os.close(listener)

    def drop_all(self) -> None:
        """Closes every listener."""
        for workload in list(self):
            self.drop(workload)
