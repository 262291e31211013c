"""The ZDS form's receiver: one message at a time, what to do with it, what to answer.

Runs in the handoff thread, which owns everything here. What a message means is decided by
protocol/zds_ztunnel.py; this file does it. Every message is answered exactly once and in its turn;
every descriptor is closed in the turn that brought it, or kept with what is pending.

From an Add to its ACK python would run cold, so the native wait takes the common case by itself, a
new workload in a netns that nobody has: `_taken` is told when listeners and ACK are behind it. The
wait knows the netns and the uid of all that is served, and of what is no workload, by hashes; a
hash that is in use, by whomever, and all else goes the long way. So that it holds, `_hold` and
`_stop` keep it in step with `states.Ztunnel`, whose NEW it decides.
"""

from __future__ import annotations

import contextlib
import errno
import os
from time import monotonic
from typing import TYPE_CHECKING

from pyztun import native, waits
from pyztun.errors import ProtocolError, SyscallError
from pyztun.fds import OwnedFd
from pyztun.protocol import zds
from pyztun.protocol import zds_ztunnel as states
from pyztun.protocol.seed import printable
from pyztun.service.backoff import Backoff
from pyztun.ztunnel.pending import NEVER, Pending, Waiting
from pyztun.ztunnel.workloads import Workload

if TYPE_CHECKING:
    from pyztun.service.log import Log
    from pyztun.ztunnel.agent_link import AgentLink
    from pyztun.ztunnel.inpod import InPod
    from pyztun.ztunnel.workloads import Workloads
    from pyztun.ztunnel.zds_wait import ZdsWait

DESTROYED = "its listeners were destroyed"
LOOK_PAUSE, LOOK_SHARE = 0.1, 8
"""Between two looks at all listeners, as root in a pod can destroy its own in a loop: seconds at
least, and as many times as long as a look takes."""
LAST_PAUSE = 5.0
"""Seconds that a look comes later at most while some cannot be made again."""


class ZdsReceiver:
    """Serves the agent until its end; what it serves goes on meanwhile and afterwards.

    :param workloads: what is served, by inode of the netns.
    :param home_fd: netns of the thread that calls run(), proven, borrowed.
    :param not_workloads: inodes of netns that are refused, and what they are called.
    :param max_workloads: served and pending ones together.
    """

    def __init__(
        self,
        wait: ZdsWait,
        link: AgentLink,
        inpod: InPod,
        workloads: Workloads,
        log: Log,
        *,
        home_fd: int,
        not_workloads: dict[int, str],
        max_workloads: int,
    ) -> None:
        self._wait, self._request = wait, wait.request
        self._link, self._inpod = link, inpod
        self._workloads, self._served = workloads, workloads.by_inode
        self._log, self._not_workloads, self._room = log, not_workloads, max_workloads
        self._state = states.Ztunnel()
        self._infos: dict[str, zds.WorkloadInfo] = {}
        self._pending = Pending()
        self._look_at, self._next_look = NEVER, 0.0
        self._look_backoff = Backoff(LOOK_PAUSE, LAST_PAUSE)
        wait.serve(inpod.plan, home_fd)
        for inode in not_workloads:
            wait.know(inode)
        link.on_end = self._state.disconnected

    def run(self) -> None:
        """Blocks until the wait is told to end."""
        serve = {
            waits.TAKEN: self._taken,
            waits.ADD: self._add,
            waits.MESSAGE: self._message,
            waits.CLOSED: self._closed,
            waits.DUE: self._due,
            waits.ZDS_WOKEN: self._look_soon,
        }
        self._due()
        while (event := self._next()) != waits.ZDS_WOKEN or not self._wait.is_end():
            try:
                serve[event]()
            finally:
                if self._request.fd >= 0:
                    os.close(self._request.fd)
        self._link.hang_up("shutting down", "info")
        self._pending.keep_only(())

    def _next(self) -> int:
        return self._wait.next(self._link.sock, self._patience(), has_room=self._has_room())

    # ---- time --------------------------------------------------------------------------------

    def _patience(self) -> float | None:
        due = min(self._pending.next_due(), self._link.dial_at, self._look_at)
        return None if due == NEVER else max(0.0, due - monotonic())

    def _due(self) -> None:
        """Does what it is time for: dials, looks, tries what is pending."""
        if self._look_at <= monotonic():
            self._look()
        if self._link.dial_at <= monotonic() and self._link.dial():
            self._state.connected()
        for waiting in self._pending.due():
            self._try_again(waiting)

    def _look_soon(self) -> None:
        self._look_at = min(self._look_at, self._next_look)

    def _look(self) -> None:
        """Makes again what was destroyed, wherever that was; later what cannot be had now."""
        self._look_at, began = NEVER, monotonic()
        reasons = [self._mend(uid) for uid in self._state.served_in]
        now = monotonic()
        self._next_look = now + max(LOOK_PAUSE, LOOK_SHARE * (now - began))
        if any(reasons):
            self._look_at = max(self._next_look, now + self._look_backoff.next())
        else:
            self._look_backoff.reset()

    def _closed(self) -> None:
        lost = self._request.lost
        self._link.hang_up(os.strerror(-lost) if lost else "the agent closed the connection")

    # ---- messages ----------------------------------------------------------------------------

    def _taken(self) -> None:
        """A plain Add that C has served and acknowledged."""
        uid = self._wait.text(waits.UID)
        self._state.add(uid, self._request.inode)
        self._serve(uid, self._info(), self._inpod.plan.made())
        if self._request.unsent:
            self._link.hang_up(os.strerror(-self._request.unsent))

    def _add(self) -> None:
        """A plain Add, decoded by C."""
        self._take(self._wait.text(waits.UID), self._info(), self._request.failed)

    def _info(self) -> zds.WorkloadInfo:
        text = self._wait.text
        return zds.WorkloadInfo(
            text(waits.NAME), text(waits.NAMESPACE), text(waits.SERVICE_ACCOUNT)
        )

    def _message(self) -> None:
        """Any other message."""
        if self._request.lost:
            self._lost()
            return
        try:
            request = zds.decode(self._wait.message(), self._request.nfds)
        except ProtocolError as error:
            self._violation(str(error))
            return
        if isinstance(request, zds.Add):
            self._take(request.uid, request.info)
        elif isinstance(request, zds.Del):
            self._delete(request.uid)
        elif isinstance(request, zds.Keep):
            self._keep(request.uid)
        else:
            self._snapshot_sent()

    def _lost(self) -> None:
        """A part of the message did not arrive; the next one is not touched by that."""
        if self._request.lost != -errno.EMFILE:
            self._violation(f"a message of more than {zds.MAX_MESSAGE} bytes, or cut")
            return
        with contextlib.suppress(ProtocolError):
            asked = zds.decode(self._wait.message(), 1)
            if isinstance(asked, zds.Add):
                self._state.named(asked.uid)  # what runs under this uid goes on
        self._refuse("our fd table is full (RLIMIT_NOFILE): the netns did not arrive")

    def _violation(self, reason: str) -> None:
        """Answers, and ends the connection: what the agent means is not known any more."""
        self._refuse(reason)
        self._link.hang_up(f"protocol violation: {reason}")

    def _refuse(self, reason: str, **fields: object) -> None:
        self._log.event("peer", "refused", reason=printable(reason), **fields)
        self._link.answer(zds.nack(reason))

    def _agree(self) -> None:
        self._link.answer(zds.ack())

    def _keep(self, uid: str) -> None:
        if self._state.keep(uid) == states.VIOLATION:
            self._violation("keep after the snapshot")
        else:
            self._agree()

    def _delete(self, uid: str) -> None:
        if self._state.delete(uid) == states.STOP:
            self._stop(uid, "deleted")
        self._pending.drop(uid)
        self._agree()

    def _snapshot_sent(self) -> None:
        action, gone = self._state.snapshot_sent()
        if action == states.VIOLATION:
            self._violation("a second snapshot-sent")
            return
        self._pending.keep_only(self._state.pending)
        for uid in gone:
            self._stop(uid, "not in the snapshot")
        self._link.works()
        self._agree()
        self._log.event(
            "info",
            "snapshot",
            workloads=len(self._served),
            stopped=len(gone),
            pending=",".join(map(printable, self._pending.uids)),
        )

    # ---- an Add, the long way ----------------------------------------------------------------

    def _take(self, uid: str, info: zds.WorkloadInfo, failed: int = 0) -> None:
        """Does what an Add asks for, and answers.

        :param failed: the -errno with which the native call just failed to listen.
        """
        if self._request.fd < 0:
            self._state.named(uid)
            error = native.not_a_netns(-self._request.not_netns, "the descriptor")
            self._refuse(str(error), uid=printable(uid))
            return
        action = self._state.add(uid, self._request.inode)
        if refusal := self._not_workloads.get(self._request.inode):
            self._refuse(refusal, uid=printable(uid))
        elif action == states.CONFIRM:
            self._confirm(uid, info)
        elif self._is_full(uid):
            self._refuse(f"the limit of {self._room} workloads is reached", uid=printable(uid))
        else:
            self._try_first(action, uid, info, failed)

    def _is_full(self, uid: str) -> bool:
        """Whether there is no room for one more; one that is served or pending has its own."""
        return not (uid in self._infos or uid in self._pending or self._has_room())

    def _has_room(self) -> bool:
        return len(self._served) + len(self._pending) < self._room

    def _confirm(self, uid: str, info: zds.WorkloadInfo) -> None:
        """The workload is served there. Listeners that root in the pod destroyed are made again."""
        self._pending.drop(uid)
        self._infos[uid] = info
        self._workloads.rename(self._served[self._request.inode], _names(info))
        if reason := self._mend(uid):
            self._look_soon()
            self._refuse(f"{reason}; will be tried again", uid=printable(uid))
        else:
            self._agree()

    def _try_first(self, action: str, uid: str, info: zds.WorkloadInfo, failed: int = 0) -> None:
        waiting = self._asked_for(uid, info)
        reason = self._attempt(action, waiting, failed)
        self._settle(waiting, reason)
        if not reason:
            self._agree()
            return
        self._refuse(
            f"{reason}; pending, will be tried again", uid=printable(uid), netns=waiting.cookie
        )

    def _mend(self, uid: str) -> str:
        """Makes its listeners that were destroyed again, and nothing else. Why not, or nothing."""
        held: Workload = self._served[self._state.served_in[uid]]  # type: ignore[index]
        netns = held.netns
        if netns is None:  # of no workload of this form
            return ""
        ports, reason = [], ""
        for index in held.destroyed:
            port = self._inpod.ports[index]
            try:
                listener = self._inpod.open_one(netns.fileno(), port)
                self._workloads.mend(held, index, listener)
                ports.append(port)
            except SyscallError as error:
                reason = str(error)
        if ports:
            self._tell_mended(uid, held, "listeners-mended", f"{DESTROYED}: {uid} {ports}")
        if reason:
            self._tell_mended(uid, held, "listeners-missing", f"{reason}: {uid}")
        return reason

    def _tell_mended(self, uid: str, held: Workload, event: str, reason: str) -> None:
        """Root in the pod can have it told at will, so it is summed up: of each reason."""
        self._log.event(
            "peer", event, reason=printable(reason), uid=printable(uid), netns=held.cookie
        )

    def _asked_for(self, uid: str, info: zds.WorkloadInfo) -> Waiting:
        """The workload of this request, whose descriptor it takes over."""
        request = self._request
        waiting = Waiting(uid, info, OwnedFd(request.fd), request.inode, request.cookie)
        request.fd = -1
        return waiting

    def _settle(self, waiting: Waiting, reason: str) -> None:
        """After the first attempt: it is served, or pending for this reason."""
        if reason:
            self._state.failed(waiting.uid, waiting.inode)
            self._pending.put(waiting)
            waiting.failed(reason)
        else:
            self._pending.drop(waiting.uid)

    def _try_again(self, waiting: Waiting) -> None:
        action = states.ADDS[self._state.relation(waiting.uid, waiting.inode)]
        reason = self._attempt(action, waiting)
        if not reason:
            self._pending.drop(waiting.uid)
        elif waiting.failed(reason):
            self._log.event("warning", "pending", uid=printable(waiting.uid), reason=reason)

    def _attempt(self, action: str, waiting: Waiting, failed: int = 0) -> str:
        """Serves the workload in its netns, in place of an older one. Why not, or nothing.

        New listeners first, then the old ones go: a failure costs nothing.
        """
        if action == states.REFUSE:
            holder = self._state.holders[waiting.inode]
            return f"this netns is served for uid {printable(holder)}"
        if action == states.TAKE:
            self._stop(self._state.holders[waiting.inode], "its netns was given to another uid")
        try:
            listeners = self._inpod.open(waiting.netns.fileno(), failed)
        except SyscallError as error:
            return str(error)
        if waiting.cookie == 0:
            waiting.cookie = self._cookie_of(listeners[0], waiting.inode)
        return self._hold(waiting, listeners)

    def _cookie_of(self, listener: int, inode: int) -> int:
        try:
            return native.socket_cookie(listener)
        except SyscallError:  # before Linux 5.14
            return inode

    # ---- what is served ----------------------------------------------------------------------

    def _serve(self, uid: str, info: zds.WorkloadInfo, listeners: list[int]) -> None:
        """What follows the ACK of an Add that C has taken."""
        waiting = self._asked_for(uid, info)
        self._settle(waiting, self._hold(waiting, listeners))

    def _hold(self, waiting: Waiting, listeners: list[int]) -> str:
        """Has the listeners (owned from now on) answered. Why not, or nothing."""
        workload = Workload(waiting.inode, waiting.cookie, listeners)
        workload.netns, workload.names = waiting.netns, _names(waiting.info)
        try:
            self._workloads.add(workload)
        except SyscallError as error:
            return str(error)  # closed listeners refuse, which is better than ones that hang
        workload.netns = OwnedFd(waiting.netns.detach())
        self._stop(waiting.uid, "replaced")
        self._state.served(waiting.uid, waiting.inode)
        self._wait.know(waiting.inode, waiting.uid)
        self._infos[waiting.uid] = waiting.info
        self._log.announce("listeners ready")
        self._log.event(
            "info",
            "listeners-ready",
            uid=printable(waiting.uid),
            workload=printable(waiting.info.name),
            namespace=printable(waiting.info.namespace),
            netns=waiting.cookie,
        )
        return ""

    def _stop(self, uid: str, why: str) -> None:
        """Closes the listeners of a workload, if it is served: nothing of ours is left there."""
        inode = self._state.served_in.get(uid)
        if inode is None:
            return
        held: Workload = self._served[inode]  # type: ignore[index]
        self._state.stopped(uid)
        self._wait.forget(held.inode, uid)
        del self._infos[uid]
        self._workloads.drop(held)
        self._pending.try_soon(held.inode)
        self._log.event("info", "stopped", uid=printable(uid), netns=held.cookie, why=why)


def _names(info: zds.WorkloadInfo) -> tuple[str, str]:
    return info.name, info.namespace
