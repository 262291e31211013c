"""The seed form's receiver: one complete request at a time, what to do with it, what to answer.

Runs in the handoff thread, which owns everything here. The answer goes out first; what need not
precede it (the log) follows. Every descriptor that a request brings is closed in the turn that
serves it.
"""

from __future__ import annotations

import os
from time import monotonic

from pyztun import native
from pyztun.errors import SyscallError
from pyztun.protocol import seed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyztun.ztunnel.log import Log
    from pyztun.ztunnel.workloads import Key, Workloads

DRAIN_TIME = 2.0
"""Seconds for the requests that are queued when the service is told to stop."""


class Receiver:
    """Serves the handoff until it is woken, then what is queued, then returns.

    :param wake: the eventfd that ends it, borrowed.
    :param not_workloads: netns that are refused, by what they are called.
    """

    def __init__(
        self,
        handoff: native.Handoff,
        workloads: Workloads,
        wake: int,
        log: Log,
        *,
        max_workloads: int,
        not_workloads: dict[Key, str],
    ) -> None:
        self._handoff, self._workloads = handoff, workloads
        self._wake, self._log = wake, log
        self._max_workloads, self._not_workloads = max_workloads, not_workloads
        self._request = handoff.request
        self._stop_at: float | None = None

    def run(self) -> None:
        """Blocks until a drain is complete."""
        serve = {
            native.TAKE: self._take,
            native.RELEASE: self._release,
            native.RELEASE_COOKIE: self._release_cookie,
            native.LIST: self._list,
            native.MALFORMED: self._malformed,
            native.DENIED: self._denied,
            native.WOKEN: self._woken,
        }
        while True:
            event = self._handoff.next()
            if event == native.QUIET:
                return
            serve[event]()
            if self._stop_at is not None and monotonic() > self._stop_at:
                return

    def _take(self) -> None:
        fd = self._request.fd
        try:
            self._take_fd(fd)
        except SyscallError as error:
            self._refuse(str(error))
        finally:
            os.close(fd)

    def _take_fd(self, fd: int) -> None:
        dev, inode, cookie = native.inspect(fd, "the descriptor")
        key = (dev, inode)
        workload = self._workloads.get(key)
        if workload is not None:
            self._handoff.answer(workload.ready)
            return
        if key in self._not_workloads:
            self._refuse(self._not_workloads[key])
        elif self._stop_at is not None:
            self._refuse("shutting down")
        elif len(self._workloads) >= self._max_workloads:
            self._refuse(f"the limit of {self._max_workloads} workloads is reached")
        else:
            workload = self._workloads.add(fd, key, cookie)
            self._handoff.answer(workload.ready)
            self._log.announce("listeners ready")
            self._log.event(
                "info", "listeners-ready", netns=workload.cookie, inode=inode, **self._peer()
            )

    def _release(self) -> None:
        fd = self._request.fd
        try:
            dev, inode, cookie = native.inspect(fd, "the descriptor")
            workload = self._workloads.get((dev, inode))
            cookie = workload.cookie if workload else cookie or self._workloads.find_cookie(fd)
        except SyscallError as error:
            self._refuse(str(error))
            return
        finally:
            # Before the answer: who reads it may rely on nothing of ours pinning the netns.
            os.close(fd)
        self._let_go(cookie)

    def _release_cookie(self) -> None:
        self._let_go(self._request.cookie)

    def _let_go(self, cookie: int) -> None:
        """Drops the workload, if it is held, and then answers."""
        workload = self._workloads.by_cookie(cookie)
        if workload is not None:
            self._workloads.drop(workload)
        self._handoff.answer(seed.released(cookie))
        if workload is not None:
            self._log.event("info", "released", netns=cookie, **self._peer())

    def _list(self) -> None:
        self._handoff.answer(self._workloads.listing())

    def _refuse(self, reason: str) -> None:
        self._handoff.answer(seed.error(reason))
        self._log.event("peer", "refused", reason=reason, **self._peer())

    def _malformed(self) -> None:
        reason = _complaint(self._request)
        self._handoff.answer(seed.error(reason), close_after=True)
        self._log.event("peer", "malformed", reason=reason, **self._peer())

    def _denied(self) -> None:
        reason = f"uid {self._request.uid} may not ask"
        self._handoff.answer(seed.error(reason), close_after=True)
        self._log.event("peer", "denied", reason=reason, **self._peer())

    def _woken(self) -> None:
        os.eventfd_read(self._wake)
        self._stop_at = monotonic() + DRAIN_TIME
        self._handoff.drain()

    def _peer(self) -> dict[str, int]:
        return {"pid": self._request.pid, "uid": self._request.uid}


_COMPLAINTS = {
    native.WHY_COOKIE: "a cookie is 1 to 20 digits that fit into 64 bits, and a newline",
    native.WHY_TRUNCATED: "the connection ended in the middle of a request",
    native.WHY_LATE: "the request did not come to an end in time",
    native.WHY_FD_TABLE: "the descriptors did not fit into our table",
}


def _complaint(request: Any) -> str:
    why: int = request.why
    if why == native.WHY_BYTE:
        return f"unknown request byte 0x{request.byte:02x}"
    if why == native.WHY_FDS:
        wanted = "one" if request.byte in (native.TAKE, native.RELEASE) else "none"
        return f"{request.nfds} descriptors came where {wanted} belongs"
    return _COMPLAINTS[why]


def forbidden(allow_home: bool, home: Key, initial: Key | None) -> dict[Key, str]:
    """Which netns are never a workload, and why."""
    if allow_home:
        return {}
    return {initial: "initial netns", home: "home netns"} if initial else {home: "home netns"}
