"""Capture: whose netns has our rules, whose is to have them, and what is in the way.

Podside puts rules in place and watches them; here is what that means for workloads. One that is to
be captured is not offered to any ztunnel before its rules were in place once in that very netns,
which is kept on disk (Workload.ruled). From then on it is offered whatever happens: with broken
rules and no ztunnel the pod would not be safer, only dead.

    pending: rules: REASON      they could not be put in place
    degraded: rules: REASON     they were, and are now broken, or cannot be looked at

Rules outlive ztunnel, agent and podside. `del` alone takes them away, and an `add` that wants none.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager

from pyztun.cni.agent.podside import Failed, Podside, Stale
from pyztun.cni.agent.reconcile import Retries
from pyztun.cni.agent.status import PodsideStatus
from pyztun.cni.agent.workload import DEGRADED, PENDING, one_line
from pyztun.cni.capture import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyztun.cni.agent.podside import Answer
    from pyztun.cni.agent.registry import Registry
    from pyztun.cni.agent.workload import Workload
    from pyztun.netns import NetNs
    from pyztun.service.log import Log

RULES = "rules: "
AT_ONCE = 4
"""Netns that are looked at again at a time, so that whoever asks for a new one need not wait."""


def verdict(workload: Workload) -> tuple[str, str] | None:
    """The state that its rules leave it in, and why; None where nothing is wrong with them."""
    trouble = workload.rules_trouble
    if workload.awaits_rules:
        return PENDING, RULES + (trouble or "not in place yet")
    return (DEGRADED, RULES + trouble) if trouble else None


class Capture:
    """See above. All of it runs in the loop.

    :param changed: told the uid when what is true of its rules is another thing.
    """

    def __init__(self, registry: Registry, changed: Callable[[str], None], log: Log) -> None:
        self._registry, self._changed, self._log = registry, changed, log
        self._loop = asyncio.get_running_loop()
        self._podside = Podside(self, log)
        self._retries = Retries(self.verify)
        self._due: dict[str, None] = {}  # used as an ordered set
        self._looking = 0
        self._watched: dict[str, int] = {}  # key by uid, of what podside holds
        self._uids: dict[int, str] = {}
        self._under_way: Counter[tuple[str, int]] = Counter()
        self._leaving: Counter[str] = Counter()
        self._reported: set[str] = set()  # with a trouble that podside has told, and will end
        self._repairs = 0

    def begin(self) -> None:
        """At the start: what was captured before is looked at again."""
        for uid in self._registry.workloads:
            self.verify(uid)

    def close(self) -> None:
        """Ends podside; what is in place stays."""
        self._retries.close()
        self._podside.close()

    def status(self) -> PodsideStatus:
        """How it is."""
        captured = sum(each.has_rules for each in self._registry.workloads.values())
        return PodsideStatus(self._podside.pid, self._podside.restarts, captured, self._repairs)

    # ---- in place ----------------------------------------------------------------------------

    def moved(self, uid: str) -> None:
        """To be called when what is held for a uid may be another netns, or none."""
        workload = self._registry.workloads.get(uid)
        captured = workload is not None and workload.is_captured
        inode = workload.inode if workload is not None and captured else None
        self._watch_only(uid, inode)
        if inode is None:
            self._retries.forget(uid)
            return
        assert workload is not None  # noqa: S101  for mypy
        is_under_way = self._under_way[uid, inode] or self._leaving[uid] or workload.rules_trouble
        if workload.awaits_rules and not is_under_way:
            self.put_in_place(workload)

    def put_in_place(self, workload: Workload) -> Answer:
        """Has the rules put into the netns that is held, or looked at where they are there.

        :returns: what was done; Failed, which is tried again by itself; Stale. By then the
            workload is brought up to date.
        """
        uid, key, known_as = workload.uid, workload.inode, workload.known_as
        assert key is not None  # noqa: S101  for mypy
        self._watch_only(uid, key)
        if self._uids.get(key, uid) != uid:
            self._unwatch(self._uids[key])
        self._watched[uid], self._uids[key] = key, uid

        def is_meant() -> bool:
            same = self._registry.workloads.get(uid) is workload and workload.known_as == known_as
            return same and workload.is_captured and workload.netns is not None

        def netns() -> NetNs | None:
            return workload.netns if is_meant() else None

        def answered(answer: Answer) -> None:
            self._under_way[uid, key] -= 1
            if not self._under_way[uid, key]:
                del self._under_way[uid, key]
            if not answer.cancelled() and is_meant():
                self._note(workload, answer)

        self._under_way[uid, key] += 1
        asked = self._podside.ask(wire.CAPTURE, key, netns)
        asked.add_done_callback(answered)
        return asked

    def _note(self, workload: Workload, answer: Answer) -> None:
        error = answer.exception()
        if error is None:
            self._found_in_place(workload, answer.result())
        elif isinstance(error, Failed):
            self._found_broken(workload, str(error))

    def _found_in_place(self, workload: Workload, done: wire.Done) -> None:
        self._retries.forget(workload.uid)
        trouble = workload.rules_trouble if workload.uid in self._reported else ""
        is_first, was_broken = workload.awaits_rules, workload.rules_trouble != trouble
        self._registry.ruled(workload, done.without, trouble)
        if is_first:
            without = {"without": ", ".join(done.without)} if done.without else {}
            self._log.event(
                "info", "rules-applied", **workload.shown(), reset=done.flushed, **without
            )
        elif done.written:
            self._found_repaired(workload, done.written)
        elif was_broken:
            self._log.event("info", "rules-intact", **workload.shown())
        if is_first or was_broken:
            self._changed(workload.uid)

    def _found_repaired(self, workload: Workload, what: tuple[str, ...]) -> None:
        self._repairs += 1
        workload.repairs += 1
        self._log.event("warning", "rules-repaired", **workload.shown(), what=", ".join(what))

    def _found_broken(self, workload: Workload, reason: str, again: bool = True) -> None:
        """:param again: it is for us to try again."""
        reason = one_line(reason)
        if reason != workload.rules_trouble:
            event = "rules-missing" if workload.awaits_rules else "rules-broken"
            self._log.event("warning", event, **workload.shown(), reason=reason)
            self._registry.broken(workload, reason)
            self._changed(workload.uid)
        if again:
            self._retries.refused(workload.uid)

    # ---- looked at again ---------------------------------------------------------------------

    def verify(self, uid: str) -> None:
        """Has the rules of a workload looked at, some time soon; for one without it is nothing."""
        workload = self._registry.workloads.get(uid)
        if workload is not None and workload.is_captured and workload.netns is not None:
            self._due[uid] = None
            self._look()

    def _look(self) -> None:
        while self._due and self._looking < AT_ONCE:
            uid = next(iter(self._due))
            del self._due[uid]
            workload = self._registry.workloads.get(uid)
            if workload is None or not workload.is_captured or workload.netns is None:
                continue
            if self._leaving[uid] or self._under_way[uid, workload.netns.inode]:
                continue
            self._looking += 1
            self.put_in_place(workload).add_done_callback(self._looked)

    def _looked(self, answer: Answer) -> None:
        self._looking -= 1
        if not answer.cancelled():
            self._look()

    def reported(self, report: wire.Repaired | wire.Trouble) -> None:
        """See Events: what podside has found by itself."""
        workload = self._registry.workloads.get(self._uids.get(report.key, ""))
        if workload is None or workload.inode != report.key or not workload.is_captured:
            return  # it was let go of meanwhile
        if isinstance(report, wire.Trouble):
            self._reported.add(workload.uid)
            self._found_broken(workload, report.trouble, again=False)
            return
        self._reported.discard(workload.uid)
        done = wire.Done(0, report.written, report.flushed, workload.without)
        self._found_in_place(workload, done)

    def died(self) -> None:
        """See Events: nobody watches them now. Answers that came before are taken in first."""
        self._reported.clear()
        self._loop.call_soon(self._look_at_all)

    def _look_at_all(self) -> None:
        for uid in self._watched:
            self._due[uid] = None
        self._look()

    def _watch_only(self, uid: str, key: int | None) -> None:
        """Has podside let go of any other netns of a uid: it would keep it alive."""
        watched = self._watched.get(uid)
        if watched is not None and watched != key:
            self._unwatch(uid)
            self._podside.forget(watched)

    def _unwatch(self, uid: str) -> None:
        del self._uids[self._watched.pop(uid)]
        self._reported.discard(uid)

    # ---- taken away --------------------------------------------------------------------------

    @contextmanager
    def leaving(self, uid: str) -> Iterator[None]:
        """As long as its rules are taken away, nobody but a new `add` puts them back.

        Where it is still to be captured at the end, because it could not be done, they are.
        """
        self._leaving[uid] += 1
        try:
            yield
        finally:
            self._leaving[uid] -= 1
            if not self._leaving[uid]:
                del self._leaving[uid]
            self.moved(uid)
            self.verify(uid)

    def take_away(self, uid: str, netns: NetNs) -> Answer:
        """Removes our rules from a netns, which must be held until it is answered.

        :returns: what was done; Failed; Stale where it was closed meanwhile.
        """
        if self._watched.get(uid) == netns.inode:
            self._unwatch(uid)
        return self._podside.ask(wire.RELEASE, netns.inode, lambda: None if netns.closed else netns)

    def clean_up(self, uid: str, netns: NetNs) -> None:
        """Removes them from a netns that the workload has left, if it can be. Closes it."""
        inode = netns.inode

        def answered(answer: Answer) -> None:
            netns.close()
            if answer.cancelled() or isinstance(answer.exception(), Stale):
                return
            reason = {} if answer.exception() is None else {"reason": str(answer.exception())}
            event, level = ("rules-left", "warning") if reason else ("rules-removed", "info")
            self._log.event(level, event, uid=uid, inode=inode, **reason)

        self.take_away(uid, netns).add_done_callback(answered)
