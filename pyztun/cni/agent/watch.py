"""Watch: does each reference still mean the netns that we hold?

As long as we hold a netns its inode cannot be reused, so (device, inode) of the path answers that
with one stat(). Only where it differs is anything opened.

A bind mount in our mount namespace is looked at after a mount event (mounts.py). Of all else no
event tells: processes, symbolic links, what is reached through another mount namespace, and what
could not be opened; that is looked at twice a second.
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import NamedTuple

from pyztun.cni.agent import references
from pyztun.cni.agent.mounts import Mounts
from pyztun.cni.agent.requests import Refusal
from pyztun.errors import NetnsGone, NotANetns, SyscallError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pyztun.cni.agent.opening import Opened, Opener
    from pyztun.cni.agent.workload import Workload

POLL = 0.5
NO_PATH = (errno.ENOENT, errno.ENOTDIR, errno.ESRCH, errno.ELOOP)
GONE = "netns gone"


class Same(NamedTuple):
    """It means what we hold."""


class Another(NamedTuple):
    """It means a netns that we do not hold; the reader owns it."""

    opened: Opened


class Gone(NamedTuple):
    """It means no netns, or none that may be served."""

    reason: str


class Unknown(NamedTuple):
    """It cannot be told now."""

    reason: str


Finding = Same | Another | Gone | Unknown
_SAME = Same()


def look(workload: Workload, opener: Opener, has_room: bool) -> Finding:
    """Compares a workload's reference with what is held for it.

    :param has_room: whether one descriptor more may be held.
    """
    path = references.path_of(workload.reference)
    if path is None:
        return _SAME if workload.netns is not None else Gone(_no_path(workload.reference))
    if workload.netns is not None:
        finding = _compare(path, workload)
        if finding is not None:
            return finding
    elif not has_room:
        return _without_opening(path)
    return _open(path, workload, opener)


def _no_path(reference: str) -> str:
    return (
        f"{GONE}: {reference} was a descriptor of the process that added it, and cannot be "
        "reopened after a restart of the agent: add it again, better by a path"
    )


def _compare(path: str, workload: Workload) -> Finding | None:
    """None: it is not the one that we hold."""
    netns = workload.netns
    assert netns is not None  # noqa: S101  for mypy
    try:
        found = os.stat(path)
    except OSError as error:
        if error.errno in NO_PATH or _is_another_process(path, workload):
            return Gone(GONE)
        return Unknown(f"its path cannot be checked: {error.strerror}")
    same = (found.st_dev, found.st_ino) == (netns.dev, netns.inode)
    return _SAME if same else None


def _without_opening(path: str) -> Finding:
    """No descriptor is left for it: but whether there is something to open can be told."""
    try:
        os.stat(path)
    except OSError as error:
        if error.errno in NO_PATH:
            return Gone(GONE)
    return Unknown("cannot be opened now: the limit of descriptors (RLIMIT_NOFILE) is reached")


def _open(path: str, workload: Workload, opener: Opener) -> Finding:
    try:
        opened = opener.open_again(workload.reference)
    except NetnsGone:
        return Gone(GONE)
    except NotANetns:
        return Gone(f"{GONE}: its path is no netns")
    except SyscallError as error:
        return Unknown(f"cannot be opened now: {error}")
    except Refusal as refusal:
        return Gone(f"{GONE}: {refusal.reason}")
    if references.process_of(path) is None or _is_same_process(workload, opened):
        return Another(opened)
    opened.netns.close()
    return Gone(f"{GONE}: the process has ended, and its pid is another one's")


def _is_another_process(path: str, workload: Workload) -> bool:
    """Whether the pid that a path names is another process now, also one that we may not look into.

    When a process started is for everybody to read.
    """
    pid = references.process_of(path)
    return pid is not None and references.start_of(pid) != workload.process


def _is_same_process(workload: Workload, opened: Opened) -> bool:
    """Pids are reused: the start time tells, else the cookie."""
    if workload.cookie is not None and workload.cookie == opened.cookie:
        return True
    return opened.process is not None and opened.process == workload.process


class Watch:
    """Looks at workloads when there is reason to, and tells what it finds.

    Mount events count from the constructor on: what is opened afterwards is not missed.

    :param workloads: by uid; read in the loop.
    :param check: looks at one and does what follows.
    """

    def __init__(
        self, workloads: Mapping[str, Workload], check: Callable[[Workload], None]
    ) -> None:
        self._workloads, self._check = workloads, check
        self._polled: dict[str, None] = {}
        self._mounts = Mounts(self.check_mounted)

    def classify(self, workload: Workload) -> None:
        """To be called for each workload that is new or has another reference."""
        path = references.path_of(workload.reference)
        if path is None or references.is_told_by_mounts(path):
            self._polled.pop(workload.uid, None)
        else:
            self._polled[workload.uid] = None

    def forget(self, uid: str) -> None:
        """Of a workload that was deleted."""
        self._polled.pop(uid, None)

    async def run(self, retried: Callable[[], Iterable[str]]) -> None:
        """Until it is cancelled.

        :param retried: uids of those that could not be opened.
        """
        while True:
            await asyncio.sleep(POLL)
            self._check_all([*self._polled, *retried()])

    def close(self) -> None:
        """No more mount events."""
        self._mounts.close()

    def check_mounted(self) -> None:
        """After a mount event."""
        self._check_all([uid for uid in self._workloads if uid not in self._polled])

    def _check_all(self, uids: Iterable[str]) -> None:
        for uid in uids:
            workload = self._workloads.get(uid)
            if workload is not None:
                self._check(workload)
