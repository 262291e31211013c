"""Lifecycle: what happens to a workload between `add` and `del`, and the state that it is in.

Three kinds of things happen: its reference means another netns, or none (watch.py, reconcile.py);
rules in its netns are put in place, or broken (capture.py); ztunnels come, go and answer
(ztunnels.py). All end here: the registry is brought up to date, every ztunnel is told what changed,
and the workload's state is judged anew.

    degraded: REASON    its reference has no netns, or cannot be checked now; its rules are broken
    pending: REASON     its rules are not in place; no ztunnel is connected, or the newest one
                        refused it or has not answered
    ready               the newest ztunnel has acknowledged exactly what is wanted
"""

from __future__ import annotations

import asyncio
from time import monotonic

from pyztun.cni.agent.capture import Capture, verdict
from pyztun.cni.agent.reconcile import Retries
from pyztun.cni.agent.watch import Another, Gone, Unknown, Watch, look
from pyztun.cni.agent.workload import DEGRADED, PENDING, READY
from pyztun.cni.agent.ztunnels import Ztunnels

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

    from pyztun.cni.agent.opening import Opened, Opener
    from pyztun.cni.agent.podside import Answer
    from pyztun.cni.agent.registry import Registry
    from pyztun.cni.agent.watch import Finding
    from pyztun.cni.agent.workload import Workload
    from pyztun.cni.agent.ztunnels import Ztunnel
    from pyztun.protocol.zds_agent import Answered
    from pyztun.service.log import Log

NO_ZTUNNEL = "no ztunnel connected"
REFUSED = "refused by ztunnel: "
GATHER, DISK_PATIENCE = 0.05, 1.0
"""Seconds before changes of states are written, and before a disk that failed is tried again."""


class Lifecycle:
    """See above. All of it runs in the loop.

    :param listener: where ztunnels dial; borrowed.
    :param max_held: how many netns the fd table has room for.
    """

    def __init__(
        self,
        listener: socket.socket,
        ztunnel_uids: frozenset[int],
        registry: Registry,
        opener: Opener,
        max_held: int,
        log: Log,
    ) -> None:
        self._registry, self._opener, self._log = registry, opener, log
        self.max_held = max_held
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._unknown: dict[str, None] = {}
        self._blocked: dict[str, None] = {}
        self._looking: set[str] = set()
        self._writer: asyncio.TimerHandle | None = None
        self.retries = Retries(self._offer_again)
        self.watch = Watch(registry.workloads, self.check)
        self.ztunnels = Ztunnels(
            listener, ztunnel_uids, registry.offers, registry.netns_of, self, log
        )
        self.capture = Capture(registry, self._rules_changed, log)
        self._open_all()
        self.capture.begin()
        self.connections_changed()

    def close(self) -> None:
        """Ends every connection and wakes whoever waits. The registry is its owner's to close."""
        self.retries.close()
        self.watch.close()
        self.ztunnels.close()
        self.capture.close()
        if self._writer is not None:
            self._writer.cancel()
        self.wake_all()

    # ---- netns -------------------------------------------------------------------------------

    def _open_all(self) -> None:
        """At the start: opens what was kept on disk, and reports what is no longer the same."""
        began = monotonic()
        before = {uid: each.cookie for uid, each in self._registry.workloads.items()}
        for workload in list(self._registry.workloads.values()):
            self.watch.classify(workload)
            self._look(workload)
        found = [self._registry.workloads[uid] for uid in before]
        self._log.event(
            "info",
            "registry-loaded",
            workloads=len(before),
            same=sum(w.netns is not None and w.cookie == before[w.uid] for w in found),
            another=sum(w.netns is not None and w.cookie != before[w.uid] for w in found),
            gone=sum(w.netns is None and not w.is_kept for w in found),
            unknown=sum(w.is_kept for w in found),
            seconds=round(monotonic() - began, 3),
        )

    @property
    def has_room(self) -> bool:
        """Whether one netns more may be held."""
        return self._registry.held < self.max_held

    @property
    def unknown(self) -> list[str]:
        """uids of those whose reference could not be checked: nothing tells when it can be."""
        return list(self._unknown)

    def check(self, workload: Workload) -> None:
        """Compares its reference with what is held, and does what follows."""
        if self._look(workload):
            self._tell(workload.uid)
            if not self._looking:
                self._check_blocked()

    def _tell(self, uid: str) -> None:
        """What is held for it is another thing now, or nothing."""
        self.capture.moved(uid)
        self._rules_changed(uid)

    def _rules_changed(self, uid: str) -> None:
        """They are in place, or broken; or what is held for the uid is another thing now.

        While a netns has not had its rules, ztunnels hear nothing of it: who serves the one from
        before is to replace it, in one step. Only where they cannot be had is it told to stop.
        """
        workload = self._registry.workloads.get(uid)
        if workload is None or not workload.awaits_rules:
            self.ztunnels.changed(uid)
        elif workload.was_offered and workload.rules_trouble:
            self._registry.withdrawn(workload)
            self.ztunnels.changed(uid)
        self.judge(uid)

    def _check_blocked(self) -> None:
        """A netns was let go of, perhaps: whose is it that others were waiting for?"""
        for uid in list(self._blocked):
            workload = self._registry.workloads.get(uid)
            if workload is None:
                self._blocked.pop(uid, None)
            elif self._look(workload):
                self._tell(uid)

    def _look(self, workload: Workload) -> bool:
        """Whether anything is another than before."""
        self._looking.add(workload.uid)
        try:
            return self._found(workload, look(workload, self._opener, self.has_room))
        finally:
            self._looking.discard(workload.uid)

    def _found(self, workload: Workload, finding: Finding) -> bool:
        if isinstance(finding, Unknown):
            self._unknown[workload.uid] = None
            return self._found_unknown(workload, finding.reason)
        self._unknown.pop(workload.uid, None)
        self._blocked.pop(workload.uid, None)
        if isinstance(finding, Another):
            return self._found_another(workload, finding.opened)
        if isinstance(finding, Gone):
            return self._found_gone(workload, finding.reason)
        changed = bool(workload.trouble)
        self._registry.trust(workload)
        return changed

    def other_holder(self, opened: Opened, uid: str) -> Workload | None:
        """Which workload but this uid's has that netns, once it was looked at whether it still has.

        It may have been replaced just now, or be one of two that change places.
        """
        holder = self._registry.holder(opened)
        if holder is not None and holder.uid != uid and holder.uid not in self._looking:
            self.check(holder)
            holder = self._registry.holder(opened)
        return None if holder is None or holder.uid == uid else holder

    def _found_another(self, workload: Workload, opened: Opened) -> bool:
        holder = self.other_holder(opened, workload.uid)
        if holder is not None:
            opened.netns.close()
            self._blocked[workload.uid] = None
            return self._found_gone(workload, f"its netns is workload {holder.uid}")
        self.watch.classify(workload)
        is_same = opened.cookie is not None and opened.cookie == workload.cookie
        event = "netns-opened" if is_same else "netns-replaced"
        was = workload.cookie
        self._registry.adopt(workload, opened)
        self.retries.forget(workload.uid)
        self._log.event("info", event, **workload.shown(), was=was)
        self._write_soon()
        return True

    def _found_gone(self, workload: Workload, reason: str) -> bool:
        if workload.netns is None and not workload.is_kept and workload.trouble == reason:
            return False
        self._registry.lose(workload, reason)
        self.retries.forget(workload.uid)
        self._log.event("warning", "netns-gone", **workload.shown(), reason=reason)
        return True

    def _found_unknown(self, workload: Workload, reason: str) -> bool:
        if workload.trouble == reason:
            return False
        self._registry.doubt(workload, reason)
        self._log.event("warning", "netns-unknown", **workload.shown(), reason=reason)
        return True

    def repair(self, workload: Workload) -> None:
        """A step of the reconcile pass: its netns and rules, and whether the newest ztunnel has it.

        That one is asked, by an Add that changes nothing where all is well: its listeners may have
        been destroyed by root in the pod, and it may have stopped answering.
        """
        if self._registry.workloads.get(workload.uid) is not workload:
            return
        self.check(workload)
        self.capture.verify(workload.uid)
        self.ztunnels.again(workload.uid)
        self.judge(workload.uid)

    # ---- ztunnels ----------------------------------------------------------------------------

    def offer(self, uid: str) -> None:
        """A request made it new, another, or gone."""
        self.retries.forget(uid)
        self._unknown.pop(uid, None)
        self._blocked.pop(uid, None)
        self._tell(uid)
        self._check_blocked()
        self.ztunnels.again(uid)

    def _offer_again(self, uid: str) -> None:
        workload = self._registry.workloads.get(uid)
        if workload is not None and not workload.awaits_rules:
            self.ztunnels.changed(uid)

    def answered(self, ztunnel: Ztunnel, answer: Answered) -> None:
        """See Events."""
        uid = getattr(answer.request, "uid", None)
        if uid is None:
            return
        if answer.offer is not None and ztunnel is self.ztunnels.newest:
            if not answer.reason:
                self.retries.forget(uid)
            elif uid in self._registry.workloads:
                self.retries.refused(uid)
        self.judge(uid)

    def connections_changed(self) -> None:
        """See Events."""
        newest = self.ztunnels.newest
        for uid in newest.conversation.refused if newest is not None else ():
            self.retries.refused(uid)
        for uid in list(self._registry.workloads):
            self.judge(uid)
        self.wake_all()

    # ---- states ------------------------------------------------------------------------------

    def judge(self, uid: str) -> None:
        """To be called when anything about a uid has changed."""
        workload = self._registry.workloads.get(uid)
        if workload is not None and workload.set_state(*self._verdict(workload)):
            if workload.reason.startswith(REFUSED):
                self._log.event("warning", "workload-refused", uid=uid, reason=workload.reason)
            self._registry.moved(workload)
            self._write_soon()
        self._wake(uid)

    def _verdict(self, workload: Workload) -> tuple[str, str]:
        if workload.trouble:
            return DEGRADED, workload.trouble
        if (of_rules := verdict(workload)) is not None:
            return of_rules
        newest = self.ztunnels.newest
        if newest is None:
            return PENDING, NO_ZTUNNEL
        if newest.conversation.knows(workload.uid):
            return READY, ""
        refused = newest.conversation.refused.get(workload.uid)
        if refused is not None:
            return PENDING, REFUSED + refused
        return PENDING, f"ztunnel {newest.number} has not answered yet"

    async def change(self, uid: str, deadline: float, answer: Answer | None = None) -> bool:
        """Waits until anything about the uid may be another; False when the time is over.

        :param answer: of podside, for which it waits as well.
        """
        left = deadline - self._loop.time()
        if left <= 0:
            return False
        future = self._loop.create_future()
        self._waiting.setdefault(uid, set()).add(future)
        futures: set[asyncio.Future[Any]] = {future} if answer is None else {future, answer}
        try:
            await asyncio.wait(futures, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            future.cancel()
        return True

    def wake_all(self) -> None:
        """Has everybody who waits look again."""
        for uid in list(self._waiting):
            self._wake(uid)

    def _wake(self, uid: str) -> None:
        for future in self._waiting.pop(uid, ()):
            if not future.done():
                future.set_result(None)

    # ---- the disk ----------------------------------------------------------------------------

    def _write_soon(self, delay: float = GATHER) -> None:
        if self._writer is None:
            self._writer = self._loop.call_later(delay, self._write)

    def _write(self) -> None:
        self._writer = None
        self._registry.write()
        if not self._registry.is_written:
            self._write_soon(DISK_PATIENCE)
