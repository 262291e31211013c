"""The netns that this ztunnel holds, each with its listeners.

Key is the inode of the netns: the listeners pin the namespace, so as long as a workload is held its
inode cannot be given to another one, and nsfs is one file system. The cookie is its name towards
people, and after its path is gone. One thread at a time: the handoff thread, and behind its end
whoever ends the rest.
"""

from __future__ import annotations

import contextlib
import os

from pyztun import native
from pyztun.errors import SyscallError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyztun.fds import OwnedFd
    from pyztun.ztunnel.answers import Answers


class Workload:
    """One netns and its listeners (owned).

    :ivar netns: of its own (owned), where connections are made in it; else None.
    :ivar names: name and namespace, where it was told any.
    """

    __slots__ = ("cookie", "inode", "listeners", "names", "netns")

    def __init__(self, inode: int, cookie: int, listeners: list[int]) -> None:
        self.inode, self.cookie, self.listeners = inode, cookie, listeners
        self.netns: OwnedFd | None = None
        self.names = ("", "")

    @property
    def destroyed(self) -> list[int]:
        """Indices of the listeners that are none any more: root in the pod may do that (ss -K)."""
        return [i for i, fd in enumerate(self.listeners) if not native.is_listening(fd)]

    def close_listeners(self) -> None:
        """Each once, also where two threads do it: an end at once does not wait for the other."""
        with contextlib.suppress(IndexError):
            while True:
                os.close(self.listeners.pop())


class Workloads:
    """All that is held.

    :ivar by_inode: to be read only.
    :param answers: serves the connections.
    :ivar changes: counts what was added or dropped.
    """

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
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

    def add(self, workload: Workload) -> None:
        """Holds a new workload (owned from now on), and serves its connections.

        :raises SyscallError: nothing is held; the listeners are closed, its netns is not.
        """
        self.by_inode[workload.inode] = self._by_cookie[workload.cookie] = workload
        self.changes += 1
        try:
            self._answers.watch(workload)
        except SyscallError:
            workload.netns = None
            self.drop(workload)
            raise

    def mend(self, workload: Workload, index: int, listener: int) -> None:
        """Serves another listener (owned from now on) in place of one that was destroyed.

        :raises SyscallError: neither is served; the new one is closed.
        """
        try:
            self._answers.mend(workload, index, listener)
        except SyscallError:
            os.close(listener)
            raise
        destroyed, workload.listeners[index] = workload.listeners[index], listener
        os.close(destroyed)

    def rename(self, workload: Workload, names: tuple[str, str]) -> None:
        """It is called otherwise from now on."""
        if names != workload.names:
            workload.names = names
            self._answers.rename(workload)

    def drop(self, workload: Workload) -> None:
        """Closes its listeners: nothing of ours is left in the pod."""
        del self.by_inode[workload.inode], self._by_cookie[workload.cookie]
        self.changes += 1
        self._answers.forget(workload)
        workload.close_listeners()
        if workload.netns is not None:
            workload.netns.close()

    def drop_all(self) -> None:
        """Closes every listener."""
        for workload in list(self):
            self.drop(workload)
