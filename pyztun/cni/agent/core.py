"""Core: what callers can ask of the agent. control.py has it behind HTTP.

An add changes the registry first, on disk; then come the rules in the pod, and then ztunnels are
told. A del goes the other way about it: rules, registry, ztunnels. Whatever ends the process in
between, the next one goes on with what is on disk, and no rules are left that no row tells of. All
of it runs in the loop.
"""

from __future__ import annotations

import asyncio
import os
from time import time
from typing import NamedTuple

from pyztun import __version__
from pyztun.cni.agent import references, requests, uids
from pyztun.cni.agent.capture import RULES
from pyztun.cni.agent.freeing import Freeing
from pyztun.cni.agent.lifecycle import REFUSED
from pyztun.cni.agent.podside import Failed
from pyztun.cni.agent.requests import Refusal
from pyztun.cni.agent.status import DescriptorStatus, ReconcileStatus, Status, ZtunnelStatus
from pyztun.cni.agent.store import StoreError
from pyztun.cni.agent.workload import DEGRADED, PENDING, READY, Spec, Workload, printable
from pyztun.errors import SyscallError
from pyztun.netns import NetNs
from pyztun.protocol.zds import WorkloadInfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pyztun.cni.agent.lifecycle import Lifecycle
    from pyztun.cni.agent.opening import Opened, Opener
    from pyztun.cni.agent.podside import Answer
    from pyztun.cni.agent.reconcile import Reconcile
    from pyztun.cni.agent.registry import Registry
    from pyztun.cni.agent.requests import Wanted
    from pyztun.cni.agent.settings import Settings
    from pyztun.cni.agent.ztunnels import Ztunnel
    from pyztun.service.log import Log

MAX_WORKLOADS = 100_000
KEPT = "kept as"


class Added(NamedTuple):
    """A workload that the newest ztunnel has acknowledged.

    :ivar reset: connections of the pod from before were reset, when its rules were put in place.
    """

    workload: Workload
    reset: bool


class _Plan(NamedTuple):
    """What an add comes to; whoever has it owns the netns."""

    uid: str
    spec: Spec
    opened: Opened


class Deleted(NamedTuple):
    """A workload that is no more.

    :ivar unconfirmed: numbers of the ztunnels that had not confirmed in time. They learn it from
        their connection, or else from the next snapshot.
    """

    workload: Workload
    unconfirmed: tuple[int, ...]


class Core:
    """See above.

    :param boot_id: of the machine: cookies mean nothing beyond it.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        opener: Opener,
        lifecycle: Lifecycle,
        reconcile: Reconcile,
        boot_id: str,
        log: Log,
    ) -> None:
        self._settings, self._registry, self._opener = settings, registry, opener
        self._life, self._reconcile, self._boot_id, self._log = lifecycle, reconcile, boot_id, log
        self._freeing = Freeing(registry, lifecycle, log)
        self._loop = asyncio.get_running_loop()
        self._started = time()
        self._is_closing = False

    @property
    def workloads(self) -> Mapping[str, Workload]:
        """By uid, in the order in which they were first added."""
        return self._registry.workloads

    def close(self) -> None:
        """From now on requests are refused, and those that wait are sent home."""
        self._is_closing = True
        self._freeing.close()
        self._life.wake_all()

    # ---- add ---------------------------------------------------------------------------------

    async def add(self, wanted: Wanted, timeout: float) -> Added:
        """Registers a workload; returns when the newest ztunnel has acknowledged it.

        :param timeout: seconds for all of it.
        :raises Refusal: with ``workload`` where it is registered all the same.
        """
        self._refuse_when_closing()
        requests.check(wanted)
        deadline = self._loop.time() + timeout
        plan = self._plan(wanted)
        try:
            workload = await self._register_as_planned(plan, wanted, deadline)
        except BaseException:
            plan.opened.netns.close()
            raise
        self._log.event("info", "workload-added", **workload.shown())
        answer = self._life.capture.put_in_place(workload) if workload.is_captured else None
        self._life.offer(workload.uid)
        reset = False
        try:
            if answer is not None:
                reset = await self._captured(workload, plan.spec, answer, deadline)
            while not self._is_acknowledged(workload, plan.spec):
                if not await self._life.change(workload.uid, deadline):
                    raise self._kept(requests.TIMEOUT, f"no answer in {timeout:g} s", workload)
        except Refusal as refusal:
            refusal.reset = reset
            raise
        return Added(workload, reset)

    async def _captured(
        self, workload: Workload, spec: Spec, answer: Answer, deadline: float
    ) -> bool:
        """Waits for the rules. Whether connections from before were reset."""
        while not answer.done():
            self._refuse_if_overtaken(workload, spec)
            if not await self._life.change(workload.uid, deadline, answer):
                raise self._kept(requests.TIMEOUT, f"{RULES}not in place in time", workload)
        error = answer.exception()
        if isinstance(error, Failed):
            raise self._kept(requests.RULES, f"{RULES}{error}", workload)
        return error is None and answer.result().flushed

    def _refuse_when_closing(self) -> None:
        if self._is_closing:
            raise Refusal(requests.SHUTTING_DOWN, "the agent is shutting down")

    def _plan(self, wanted: Wanted) -> _Plan:
        reference = references.normal(wanted.netns)
        if reference is None:
            raise Refusal(
                requests.BAD_REQUEST,
                f"{wanted.netns!r} is no absolute path, name, pid:N or fd:N, or it is one below "
                "/proc/self, which would be the agent",
            )
        opened = self._opener.open_wanted(wanted, reference)
        try:
            uid = wanted.uid or self._uid_of(reference, opened)
            if wanted.uid is None and uid not in self._registry.workloads:
                uid = self._uid_by_reference(reference) or uid
            name = wanted.name or printable(references.last_part(reference))
            info = WorkloadInfo(name, wanted.namespace, wanted.service_account)
            requests.check_size(uid, info)
        except BaseException:
            opened.netns.close()
            raise
        return _Plan(uid, Spec(reference, info, wanted.capture, dict(wanted.labels)), opened)

    async def _register_as_planned(self, plan: _Plan, wanted: Wanted, deadline: float) -> Workload:
        """Rules that are not wanted any more go before the row that tells of them does."""
        if plan.spec.capture == requests.REDIRECT:
            return self._register(plan, wanted)
        with self._life.capture.leaving(plan.uid):
            await self._freeing.of(plan.uid, plan.opened, deadline)
            return self._register(plan, wanted)

    def _register(self, plan: _Plan, wanted: Wanted) -> Workload:
        """Takes ownership of what was opened, unless this raises."""
        uid, spec, opened = plan
        self._refuse_another_uid(uid, opened, wanted)
        workload = self._registry.workloads.get(uid)
        if workload is None or workload.netns is None:
            self._refuse_without_room(workload is None)
        if workload is None:
            workload = Workload(uid, spec)
        left = self._left(workload, opened)
        try:
            self._registry.put(workload, spec, opened)
        except StoreError as error:
            if left is not None:
                left.close()
            raise Refusal(requests.STORAGE, str(error)) from error
        if left is not None:
            self._life.capture.clean_up(uid, left)
        self._life.watch.classify(workload)
        return workload

    @staticmethod
    def _left(workload: Workload, opened: Opened) -> NetNs | None:
        """The netns that it has and is captured in, where it is to be in another one now."""
        netns = workload.netns
        if netns is None or not workload.is_captured or netns.is_same(opened.netns):
            return None
        try:
            return NetNs(netns.lease(), netns.reference)
        except SyscallError as error:
            raise Refusal(requests.LIMIT, str(error), workload) from error

    def _uid_of(self, reference: str, opened: Opened) -> str:
        path = references.path_of(reference)
        if path is None or references.process_of(path) is not None:
            return uids.of_netns(self._boot_id, opened.cookie or opened.netns.inode)
        return uids.of_path(references.real_path(path))

    def _uid_by_reference(self, reference: str) -> str | None:
        """Of the workload that was added by it: a symbolic link may have been turned since."""
        for workload in self._registry.workloads.values():
            if workload.reference == reference:
                return workload.uid
        return None

    def _refuse_another_uid(self, uid: str, opened: Opened, wanted: Wanted) -> None:
        holder = self._life.other_holder(opened, uid)
        if holder is not None:
            raise Refusal(
                requests.NETNS_TAKEN,
                f"{wanted.netns}: that netns is workload {holder.uid} ({holder.info.name}) already",
                holder,
            )

    def _refuse_without_room(self, is_new: bool) -> None:
        if not self._life.has_room:
            limit = self._life.max_held
            raise Refusal(
                requests.LIMIT, f"{limit} netns are held, and RLIMIT_NOFILE leaves no room for more"
            )
        if is_new and len(self._registry.workloads) >= MAX_WORKLOADS:
            raise Refusal(requests.LIMIT, f"there are {MAX_WORKLOADS} workloads")

    def _is_acknowledged(self, workload: Workload, spec: Spec) -> bool:
        """False: not yet. Refusal: no, and it will not be soon."""
        uid = workload.uid
        self._refuse_if_overtaken(workload, spec)
        if workload.trouble:
            raise Refusal(requests.NO_SUCH_NETNS, workload.trouble, workload)
        if workload.awaits_rules:  # the netns was replaced just now
            if workload.rules_trouble:
                raise self._kept(requests.RULES, RULES + workload.rules_trouble, workload)
            return False
        newest = self._life.ztunnels.newest
        if newest is None:
            ended = self._life.ztunnels.last_end
            why = f" ({ended})" if ended else ""
            raise self._kept(requests.NO_ZTUNNEL, f"no ztunnel is connected{why}", workload)
        conversation = newest.conversation
        if not conversation.settled(uid):
            return False
        refused = conversation.refused.get(uid)
        if refused is not None:
            raise self._kept(requests.REFUSED, f"{REFUSED}{refused}", workload)
        return conversation.knows(uid)

    def _refuse_if_overtaken(self, workload: Workload, spec: Spec) -> None:
        uid = workload.uid
        if self._registry.workloads.get(uid) is not workload:
            raise Refusal(requests.NO_SUCH_WORKLOAD, f"{uid} was deleted meanwhile")
        if workload.spec != spec:
            raise Refusal(requests.SUPERSEDED, f"{uid} was added otherwise meanwhile", workload)
        if self._is_closing:
            raise self._kept(requests.SHUTTING_DOWN, "the agent is shutting down", workload)

    @staticmethod
    def _kept(code: str, why: str, workload: Workload) -> Refusal:
        return Refusal(code, f"{why}; {KEPT} {_unless_ready(workload)}", workload)

    # ---- del ---------------------------------------------------------------------------------

    async def delete(self, key: str, timeout: float) -> Deleted:
        """Forgets a workload and has every ztunnel stop it.

        :param key: its uid, or else what names its netns.
        :param timeout: seconds for the confirmations; it is deleted whether they come or not.
        :raises Refusal: there is none, or more than one.
        """
        self._refuse_when_closing()
        deadline = self._loop.time() + timeout
        workload = self.find(key)
        uid = workload.uid
        if workload.is_captured:
            with self._life.capture.leaving(uid):
                await self._freeing.all_of(workload, deadline)
                self._remove(workload)
        else:
            self._remove(workload)
        self._log.event("info", "workload-deleted", **workload.shown())
        self._life.watch.forget(uid)
        told = list(self._life.ztunnels)
        self._life.offer(uid)
        while any(each in self._life.ztunnels for each in self._unconfirmed(told, uid)):
            if self._is_closing or not await self._life.change(uid, deadline):
                break
        return Deleted(workload, tuple(each.number for each in self._unconfirmed(told, uid)))

    def _remove(self, workload: Workload) -> None:
        try:
            self._registry.remove(workload)
        except StoreError as error:
            raise Refusal(requests.STORAGE, str(error), workload) from error

    def _unconfirmed(self, told: list[Ztunnel], uid: str) -> list[Ztunnel]:
        """Those that may serve it yet. One that has ended by itself does not."""
        if uid in self._registry.workloads:  # added again meanwhile
            return []
        return [
            each
            for each in told
            if each.has_begun
            and not each.conversation.settled(uid)
            and (each.was_dropped or each in self._life.ztunnels)
        ]

    # ---- questions ---------------------------------------------------------------------------

    def find(self, key: str) -> Workload:
        """By uid; else by the reference, its real path, ``cookie:N``, or the netns that it means.

        :raises Refusal: there is none, or more than one.
        """
        exact = self._registry.workloads.get(key)
        for matches in self._ways_to_match(key):
            found = [each for each in self._registry.workloads.values() if matches(each)]
            if exact is not None and exact not in found:
                found.append(exact)
            if len(found) > 1:
                names = ", ".join(f"uid {each.uid} in {each.reference}" for each in found)
                raise Refusal(requests.AMBIGUOUS, f"{key} is several workloads: {names}")
            if found:
                return found[0]
        if exact is not None:
            return exact
        named = [each.uid for each in self._registry.workloads.values() if each.info.name == key]
        but = f"; that is the name of uid {', '.join(named)}" if named else ""
        raise Refusal(
            requests.NO_SUCH_WORKLOAD, f"there is no workload with the uid or netns {key}{but}"
        )

    @staticmethod
    def _ways_to_match(key: str) -> list[Callable[[Workload], bool]]:
        kind, _, number = key.partition(":")
        if kind == "cookie":
            return [lambda workload: str(workload.cookie) == number]
        reference = None if "\0" in key else references.normal(key)
        if reference is None:
            return []
        ways: list[Callable[[Workload], bool]] = [lambda w: w.reference == reference]
        path = references.path_of(reference)
        if path is None:
            return ways
        real = references.real_path(path)
        ways.append(lambda w: _real_path_of(w) == real)
        try:
            there = os.stat(path)
        except OSError:
            return ways
        identity = there.st_dev, there.st_ino
        ways.append(lambda w: w.netns is not None and (w.netns.dev, w.netns.inode) == identity)
        return ways

    def known_by(self, uid: str) -> list[int]:
        """Numbers of the ztunnels that have acknowledged exactly what is wanted, oldest first."""
        return [each.number for each in self._life.ztunnels if each.conversation.knows(uid)]

    def status(self) -> Status:
        """The agent at this moment."""
        counts = dict.fromkeys((READY, PENDING, DEGRADED), 0)
        for workload in self._registry.workloads.values():
            counts[workload.state] += 1
        newest = self._life.ztunnels.newest
        return Status(
            version=__version__,
            pid=os.getpid(),
            started=self._started,
            boot_id=self._boot_id,
            zds=self._settings.zds,
            control=self._settings.control,
            state_dir=self._settings.state_dir,
            workloads=counts,
            ztunnels=tuple(self._status_of(each, newest) for each in self._life.ztunnels),
            reconcile=ReconcileStatus(
                self._reconcile.interval,
                self._reconcile.passes,
                self._reconcile.last_at,
                self._reconcile.last_cpu,
            ),
            descriptors=DescriptorStatus(self._registry.held, self._life.max_held),
            podside=self._life.capture.status(),
        )

    @staticmethod
    def _status_of(ztunnel: Ztunnel, newest: Ztunnel | None) -> ZtunnelStatus:
        conversation = ztunnel.conversation
        return ZtunnelStatus(
            number=ztunnel.number,
            pid=ztunnel.pid,
            uid=ztunnel.uid,
            since=ztunnel.since,
            phase=conversation.phase,
            newest=ztunnel is newest,
            acknowledged=sum(map(conversation.knows, conversation.agreed)),
            awaiting=ztunnel.awaiting or None,
            refused=dict(conversation.refused),
        )


def _unless_ready(workload: Workload) -> str:
    """Its state: one that is ready is so as it was wanted before, or by an answer of before."""
    return PENDING if workload.state == READY else workload.state


def _real_path_of(workload: Workload) -> str | None:
    path = references.path_of(workload.reference)
    return None if path is None else references.real_path(path)
