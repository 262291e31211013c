"""The seed form's receiver: one complete request at a time, what to do with it, what to answer.

Runs in the handoff thread, which owns everything here. The answer goes out first; what need not
precede it (serving the listeners, the log) follows. Every descriptor that a request brings is
closed in the turn that serves it.

From a request to its answer python runs cold, so each line counts there: `_take` decides, and one
native call listens and answers.
"""

from __future__ import annotations

import os

from pyztun import native, waits
from pyztun.errors import SyscallError
from pyztun.protocol import seed
from pyztun.ztunnel.workloads import Workload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyztun.service.log import Log
    from pyztun.ztunnel.workloads import Workloads

DRAIN_TIME = 2.0
"""Seconds for the requests that are queued when the service is told to stop."""


class Receiver:
    """Serves the handoff until it is woken, then what is queued, then returns.

    :param plan: the listeners of each workload.
    :param home_fd: netns of the thread that calls run(), proven, borrowed.
    :param wake: the eventfd that ends it, borrowed.
    :param not_workloads: inodes of netns that are refused, and what they are called.
    """

    def __init__(
        self,
        handoff: waits.Handoff,
        plan: native.ListenPlan,
        workloads: Workloads,
        log: Log,
        *,
        home_fd: int,
        wake: int,
        max_workloads: int,
        not_workloads: dict[int, str],
    ) -> None:
        self._handoff, self._request = handoff, handoff.request
        self._plan, self._home_fd = plan, home_fd
        self._addresses = " ".join(map(str, plan.specs))
        self._workloads, self._log, self._wake = workloads, log, wake
        self._room, self._not_workloads = max_workloads, not_workloads
        self._held = workloads.by_inode
        self._listen_and_answer = handoff.taker(
            plan, home_fd, seed.ready_without_cookie(self._addresses)
        )
        self._draining = False
        self._listing, self._listed_at = b"", -1

    def run(self) -> None:
        """Blocks until a drain is complete."""
        serve = {
            waits.TAKE: self._take,
            waits.RELEASE: self._release,
            waits.RELEASE_COOKIE: self._release_cookie,
            waits.LIST: self._list,
            waits.MALFORMED: self._malformed,
            waits.DENIED: self._denied,
            waits.WOKEN: self._woken,
        }
        next_event, quiet = self._handoff.next, waits.QUIET
        while (event := next_event()) != quiet:
            serve[event]()

    def _take(self) -> None:
        request = self._request
        inode = request.inode
        try:
            if (
                inode in self._held
                or inode in self._not_workloads
                or request.not_netns
                or len(self._held) >= self._room
            ):
                self._take_otherwise(request, inode)
            elif (rc := self._listen_and_answer()) < 0:
                self._refuse(str(self._plan.failed(rc)))
            else:
                self._hold(inode, request.cookie, self._plan.made())
        finally:
            if request.fd >= 0:
                os.close(request.fd)

    def _take_otherwise(self, request: Any, inode: int) -> None:
        """Answers a TAKE that makes no listeners: the netns is held already, or refused."""
        if request.not_netns:
            self._refuse(self._not_a_netns())
        elif (held := self._held.get(inode)) is not None:
            self._take_again(held)
        elif inode in self._not_workloads:
            self._refuse(self._not_workloads[inode])
        elif self._draining:
            self._refuse("shutting down")
        else:
            self._refuse(f"the limit of {self._room} workloads is reached")

    def _take_again(self, held: Workload) -> None:
        """Answers for a netns that is held. Listeners that root in the pod destroyed are remade."""
        if not held.destroyed:
            self._handoff.answer(seed.ready(self._addresses, held.cookie))
            return
        self._workloads.drop(held)
        if (rc := self._listen_and_answer()) < 0:
            self._refuse(str(self._plan.failed(rc)))
        else:
            self._hold(held.inode, held.cookie, self._plan.made())

    def _hold(self, inode: int, cookie: int, listeners: list[int]) -> None:
        """What follows the answer."""
        try:
            self._workloads.add(Workload(inode, cookie, listeners))
        except SyscallError as error:
            # Closed listeners refuse, which is better than ones that hang.
            self._log.event("error", "lost", netns=cookie, reason=str(error))
            return
        self._log.announce("listeners ready")
        self._log.event(
            "info",
            "listeners-ready",
            netns=cookie,
            inode=inode,
            fd=self._request.fd,
            **self._peer(),
        )

    def _release(self) -> None:
        request = self._request
        if request.not_netns:
            self._refuse(self._not_a_netns())
            return
        try:
            held = self._held.get(request.inode)
            cookie = held.cookie if held else request.cookie or self._find_cookie()
        finally:
            # Before the answer: who reads it may rely on nothing of ours pinning the netns.
            os.close(request.fd)
        self._let_go(held, cookie)

    def _find_cookie(self) -> int:
        """The cookie of a netns that is not held; its inode where the kernel tells none."""
        try:
            return native.netns_cookie(self._request.fd, "the descriptor", self._home_fd)
        except SyscallError:
            return int(self._request.inode)

    def _release_cookie(self) -> None:
        cookie = self._request.cookie
        self._let_go(self._workloads.by_cookie(cookie), cookie)

    def _let_go(self, held: Workload | None, cookie: int) -> None:
        """Drops the workload, if it is held, and then answers."""
        if held is not None:
            self._workloads.drop(held)
        self._handoff.answer(seed.released(cookie))
        if held is not None:
            self._log.event("info", "released", netns=cookie, **self._peer())

    def _list(self) -> None:
        if self._listed_at != self._workloads.changes:
            lines = [seed.held(self._addresses, each) for each in self._workloads.cookies]
            self._listing = b"".join([*lines, seed.end()])
            self._listed_at = self._workloads.changes
        self._handoff.answer(self._listing)

    def _not_a_netns(self) -> str:
        return str(native.not_a_netns(-self._request.not_netns, "the descriptor"))

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
        self._draining = True
        self._room = 0  # so that a new netns is refused, and the way of an accepted one stays short
        self._handoff.drain(DRAIN_TIME)

    def _peer(self) -> dict[str, int]:
        return {"pid": self._request.pid, "uid": self._request.uid}


_COMPLAINTS = {
    waits.WHY_COOKIE: "a cookie is 1 to 20 digits that fit into 64 bits, and a newline",
    waits.WHY_TRUNCATED: "the connection ended in the middle of a request",
    waits.WHY_LATE: "the request did not come to an end in time",
    waits.WHY_FD_TABLE: "the descriptors did not fit into our table",
}


def _complaint(request: Any) -> str:
    why: int = request.why
    if why == waits.WHY_BYTE:
        return f"unknown request byte 0x{request.byte:02x}"
    if why == waits.WHY_FDS:
        wanted = "one" if request.byte in (waits.TAKE, waits.RELEASE) else "none"
        return f"{request.nfds} descriptors came where {wanted} belongs"
    return _COMPLAINTS[why]
