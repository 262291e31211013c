"""Workloads that could not be served when they were asked for, each with its netns kept open.

They are tried again with a backoff of their own, whatever becomes of the connection to the agent.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from pyztun.service.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Container

    from pyztun.fds import OwnedFd
    from pyztun.protocol.zds import WorkloadInfo

FIRST_RETRY, LAST_RETRY = 0.2, 5.0
NEVER = float("inf")


class Waiting:
    """One of them.

    :ivar netns: its netns (owned), which therefore cannot die and give its inode away.
    :ivar reason: why the last attempt failed.
    :ivar due: when the next one comes, on the clock of monotonic().
    """

    __slots__ = ("backoff", "cookie", "due", "info", "inode", "netns", "reason", "uid")

    def __init__(
        self, uid: str, info: WorkloadInfo, netns: OwnedFd, inode: int, cookie: int
    ) -> None:
        self.uid, self.info, self.netns = uid, info, netns
        self.inode, self.cookie = inode, cookie
        self.reason = ""
        self.backoff = Backoff(FIRST_RETRY, LAST_RETRY)
        self.due = NEVER

    def failed(self, reason: str) -> bool:
        """Notes an attempt that failed. Returns whether the reason is a new one."""
        is_new, self.reason = reason != self.reason, reason
        self.due = monotonic() + self.backoff.next()
        return is_new


class Pending:
    """All of them, by uid. One thread."""

    def __init__(self) -> None:
        self._waiting: dict[str, Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, uid: str) -> bool:
        return uid in self._waiting

    @property
    def uids(self) -> list[str]:
        """The uids, longest waiting first."""
        return list(self._waiting)

    def put(self, waiting: Waiting) -> None:
        """Takes it over; what waited under its uid is dropped."""
        self.drop(waiting.uid)
        self._waiting[waiting.uid] = waiting

    def drop(self, uid: str) -> None:
        """Lets go of its netns, if it waits."""
        waiting = self._waiting.pop(uid, None)
        if waiting is not None:
            waiting.netns.close()

    def keep_only(self, uids: Container[str]) -> None:
        """Drops all others."""
        for uid in [uid for uid in self._waiting if uid not in uids]:
            self.drop(uid)

    def try_soon(self, inode: int) -> None:
        """This netns was let go of: who waits for it is due."""
        for waiting in self._waiting.values():
            if waiting.inode == inode:
                waiting.due = 0.0

    def due(self) -> list[Waiting]:
        """Those whose time has come."""
        now = monotonic()
        return [waiting for waiting in self._waiting.values() if waiting.due <= now]

    def next_due(self) -> float:
        """When the next one is due, NEVER where none waits."""
        return min((waiting.due for waiting in self._waiting.values()), default=NEVER)
