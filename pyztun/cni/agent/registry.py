"""The registry: all workloads in memory, the same on disk, and what ztunnels are offered of them.

In the order in which they were first asked for, which is that of a snapshot and of a list. A
workload that is replaced keeps its place. Not safe for threads: all of it runs in the loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pyztun.cni.agent.store import StoreError
from pyztun.protocol.zds_agent import Offer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyztun.cni.agent.opening import Opened
    from pyztun.cni.agent.store import Store
    from pyztun.cni.agent.workload import Spec, Workload
    from pyztun.netns import NetNs
    from pyztun.service.log import Log


class Offers(Mapping[str, Offer]):
    """What is offered, by uid: a view of the workloads, less those whose netns is gone."""

    def __init__(self, workloads: Mapping[str, Workload]) -> None:
        self._workloads = workloads

    def __getitem__(self, uid: str) -> Offer:
        offer = self._workloads[uid].offer
        if offer is None:
            raise KeyError(uid)
        return offer

    def __contains__(self, uid: object) -> bool:
        workload = self._workloads.get(uid) if isinstance(uid, str) else None
        return workload is not None and workload.offer is not None

    def __iter__(self) -> Iterator[str]:
        return (uid for uid, each in self._workloads.items() if each.offer is not None)

    def __len__(self) -> int:
        return sum(each.offer is not None for each in self._workloads.values())


class Registry:
    """See above. It owns the netns of every workload.

    :ivar workloads: by uid.
    :ivar offers: see Offers.
    :ivar missing: uids of those without a netns.
    """

    def __init__(self, store: Store, boot_id: str, log: Log) -> None:
        self._store, self._boot_id, self._log = store, boot_id, log
        self.workloads: dict[str, Workload] = {}
        self.offers = Offers(self.workloads)
        self.missing: set[str] = set()
        self._holders: dict[int, str] = {}  # uid by inode, of what is held
        self._changed: dict[str, None] = {}  # rows to be written, whole
        self._moved: dict[str, None] = {}  # rows of which the state is to be written
        self._writable = True

    def load(self) -> None:
        """Takes over what is on disk, without any netns. Cookies of another boot are void."""
        for workload in self._store.load():
            if workload.boot_id != self._boot_id:
                workload.cookie = workload.process = workload.ruled = None
            self.workloads[workload.uid] = workload
            self.missing.add(workload.uid)

    @property
    def held(self) -> int:
        """How many descriptors of netns there are."""
        return len(self.workloads) - len(self.missing)

    def holder(self, opened: Opened) -> Workload | None:
        """Which workload is offered, or kept, in this netns."""
        uid = self._holders.get(opened.netns.inode)
        if uid is not None:
            return self.workloads[uid]
        missing = (self.workloads[uid] for uid in self.missing) if opened.cookie else ()
        return next((w for w in missing if w.is_kept and w.cookie == opened.cookie), None)

    def netns_of(self, offer: Offer) -> NetNs | None:
        """What is meant by an offer, still ours; None if it has changed since."""
        workload = self.workloads.get(offer.uid)
        return workload.netns if workload is not None and workload.offer == offer else None

    # ---- changes -----------------------------------------------------------------------------

    def put(self, workload: Workload, spec: Spec, opened: Opened) -> None:
        """A request: new, or other words or another netns for a uid. On disk when it returns.

        Takes ownership of what was opened, unless this raises: StoreError, and nothing has changed.
        """
        before = _Before(
            workload.spec, workload.boot_id, workload.cookie, workload.process, workload.ruled
        )
        workload.spec = spec
        workload.boot_id, workload.cookie = self._boot_id, opened.cookie
        workload.process = opened.process
        same = workload.netns is not None and workload.netns.is_same(opened.netns)
        if not workload.is_captured or (workload.netns is not None and not same):
            workload.ruled = None  # or will be: they are removed from a netns that is left
        try:
            self._store.put([workload])
        except StoreError:
            _restore(workload, before)
            raise
        self._changed.pop(workload.uid, None)
        self.workloads.setdefault(workload.uid, workload)
        if not (same and workload.is_captured):
            workload.rules_trouble = ""
        self._release(workload)
        self._hold(workload, opened)

    def adopt(self, workload: Workload, opened: Opened) -> None:
        """Another netns by the same reference, or one again. Takes ownership of it."""
        workload.boot_id, workload.cookie = self._boot_id, opened.cookie
        workload.process, workload.rules_trouble = opened.process, ""
        self._release(workload)
        self._hold(workload, opened)
        self._changed[workload.uid] = None

    def ruled(self, workload: Workload, without: tuple[str, ...], trouble: str = "") -> None:
        """Rules of ours are in place in the netns that is held: it may be offered.

        :param trouble: with what is known to be wrong all the same.

        On disk when this returns, unless the disk fails: then as soon as it does not. The next
        agent offers it at once therefore; a snapshot without it would have ztunnel stop it.
        """
        workload.rules_trouble, workload.without = trouble, without
        if workload.ruled == workload.known_as:
            return
        workload.ruled = workload.known_as
        workload.renew_offer()
        self._changed[workload.uid] = None
        self.write()

    def broken(self, workload: Workload, trouble: str) -> None:
        """Rules cannot be put in place, or back. Where they were, it goes on being offered."""
        workload.rules_trouble = trouble

    def withdrawn(self, workload: Workload) -> None:
        """Ztunnels are told to stop it."""
        workload.was_offered = False

    def lose(self, workload: Workload, trouble: str) -> None:
        """Its netns is gone, or nothing that may be served: no more offered, not held."""
        self._release(workload)
        workload.trouble, workload.is_kept, workload.rules_trouble = trouble, False, ""
        workload.renew_offer()

    def doubt(self, workload: Workload, trouble: str) -> None:
        """Its path is there and cannot be opened now: held if it was, else ztunnel keeps it."""
        workload.trouble, workload.is_kept = trouble, workload.netns is None
        workload.renew_offer()

    def trust(self, workload: Workload) -> None:
        """Its path can be checked again, and means what is held."""
        workload.trouble = ""

    def remove(self, workload: Workload) -> None:
        """On disk first; then it is gone. StoreError, and nothing has changed."""
        self._store.remove(workload.uid)
        self._release(workload)
        self.missing.discard(workload.uid)
        del self.workloads[workload.uid]
        self._changed.pop(workload.uid, None)
        self._moved.pop(workload.uid, None)

    def _hold(self, workload: Workload, opened: Opened) -> None:
        workload.netns = opened.netns
        workload.trouble, workload.is_kept = "", False
        self._holders[opened.netns.inode] = workload.uid
        self.missing.discard(workload.uid)
        workload.renew_offer()

    def _release(self, workload: Workload) -> None:
        if workload.netns is not None:
            del self._holders[workload.netns.inode]
            workload.netns.close()
            workload.netns = None
        self.missing.add(workload.uid)

    # ---- the disk ----------------------------------------------------------------------------

    def moved(self, workload: Workload) -> None:
        """Its state is another one; write() has it on disk."""
        self._moved[workload.uid] = None

    @property
    def is_written(self) -> bool:
        """Whether the disk has it all."""
        return not (self._changed or self._moved)

    def write(self) -> None:
        """Writes what has changed since. A disk that does not take it is logged, once."""
        changed = [self.workloads[uid] for uid in self._changed if uid in self.workloads]
        moved = [self.workloads[uid] for uid in self._moved if uid in self.workloads]
        try:
            self._store.put(changed)
            self._store.put_states(moved)
        except StoreError as error:
            if self._writable:
                self._log.event("error", "registry-not-written", reason=str(error))
            self._writable = False
            return
        self._writable = True
        self._changed.clear()
        self._moved.clear()

    def close(self) -> None:
        """Writes what is due, and lets go of every netns. Ztunnels go on with what they have."""
        self.write()
        self._store.close()
        for workload in self.workloads.values():
            if workload.netns is not None:
                workload.netns.close()


class _Before(NamedTuple):
    spec: Spec
    boot_id: str
    cookie: int | None
    process: str | None
    ruled: int | None


def _restore(workload: Workload, before: _Before) -> None:
    workload.spec, workload.boot_id, workload.cookie, workload.process, workload.ruled = before
