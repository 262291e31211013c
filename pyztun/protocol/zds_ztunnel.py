"""ZDS, ztunnel's side: what a request means for what is served. Pure: no sockets, no time.

A connection begins with a snapshot: Adds and Keeps, then SnapshotSent, after which whatever was not
named goes. Then come Adds and Dels one by one. What runs goes on while there is no connection.

Two tables hold all of it. An Add depends on who is in that netns already:

    relation of (uid, netns)                                     what to do
    NEW    the uid is not served, nor is the netns               START
    SAME   this uid is served in this netns                      CONFIRM  the info may be new
    OTHER  this uid is served in another netns                   REPLACE  new up, old down
    LEFT   another one is, whose last Add named another netns    TAKE     old down, new up
    TAKEN  another uid is served in this netns                   REFUSE   and name it

Everything else depends on the phase:

    request        before SnapshotSent                           after it
    Keep           REMEMBER  it is part of the snapshot          VIOLATION
    Del            FORGET    SnapshotSent will stop it           STOP
    SnapshotSent   RECONCILE stop what was not named             VIOLATION

An Add that could not be done is pending: it is tried again until it holds, or a Del, an Add of what
already runs, or a snapshot without it ends that. A failed replacement leaves the old one running.

It differs from Istio's ztunnel (src/inpod/statemanager.rs) on purpose: a violation ends the
connection, never the process; pending workloads survive a reconnect; a replacement that fails costs
nothing; a second uid for one netns is refused; new info for a running workload is taken over.
"""

from __future__ import annotations

from collections.abc import Hashable

Netns = Hashable
"""Whatever identifies a netns as long as it is served or pending: its inode, in practice."""

SNAPSHOT, STEADY = "snapshot", "steady"
NEW, SAME, OTHER, LEFT, TAKEN = "new", "same", "other", "left", "taken"
ADD, KEEP, DEL, SNAPSHOT_SENT = "add", "keep", "del", "snapshot-sent"
START, CONFIRM, REPLACE, TAKE, REFUSE = "start", "confirm", "replace", "take", "refuse"
REMEMBER, FORGET, STOP, RECONCILE, VIOLATION = (
    "remember",
    "forget",
    "stop",
    "reconcile",
    "violation",
)

ADDS = {NEW: START, SAME: CONFIRM, OTHER: REPLACE, LEFT: TAKE, TAKEN: REFUSE}
OTHERS = {
    (KEEP, SNAPSHOT): REMEMBER,
    (KEEP, STEADY): VIOLATION,
    (DEL, SNAPSHOT): FORGET,
    (DEL, STEADY): STOP,
    (SNAPSHOT_SENT, SNAPSHOT): RECONCILE,
    (SNAPSHOT_SENT, STEADY): VIOLATION,
}


class Ztunnel:
    """What is served, what is pending, and where the conversation stands.

    Each request method returns what is to be done, and the caller then says how that went:
    ``served`` or ``failed`` after START, REPLACE, TAKE (of whose holder ``stopped`` is said first)
    and REFUSE; ``stopped`` for each uid to stop.

    :ivar served_in: netns by uid of what is served; to be read only.
    :ivar holders: the same the other way round.
    :ivar pending: netns by uid of what is to be tried again.
    """

    def __init__(self) -> None:
        self.served_in: dict[str, Netns] = {}
        self.holders: dict[Netns, str] = {}
        self.pending: dict[str, Netns] = {}
        self._named: set[str] = set()
        self.phase = SNAPSHOT

    @property
    def ready(self) -> bool:
        """Whether a snapshot is complete and acknowledged; what is pending does not count."""
        return self.phase == STEADY

    def connected(self) -> None:
        """A new connection begins with a snapshot, also after one that was cut."""
        self.phase = SNAPSHOT
        self._named.clear()

    def disconnected(self) -> None:
        """Nothing stops, nothing is forgotten; but we are not ready."""
        self.connected()

    def relation(self, uid: str, netns: Netns) -> str:
        """How an Add stands to what is served."""
        holder = self.holders.get(netns)
        if holder is None:
            return OTHER if uid in self.served_in else NEW
        if holder == uid:
            return SAME
        return LEFT if self.pending.get(holder, netns) != netns else TAKEN

    def named(self, uid: str) -> None:
        """The agent named it: if this is a snapshot, what runs under this uid goes on."""
        if self.phase == SNAPSHOT:
            self._named.add(uid)

    def add(self, uid: str, netns: Netns) -> str:
        """START, CONFIRM, REPLACE or REFUSE. CONFIRM ends a replacement that was pending."""
        self.named(uid)
        action = ADDS[self.relation(uid, netns)]
        if action == CONFIRM:
            self.pending.pop(uid, None)
        return action

    def served(self, uid: str, netns: Netns) -> None:
        """The listeners are there; those of an older netns of this uid are closed by the caller."""
        self.stopped(uid)
        self.pending.pop(uid, None)
        self.served_in[uid] = netns
        self.holders[netns] = uid

    def failed(self, uid: str, netns: Netns) -> None:
        """It could not be done now. The last netns of a uid wins."""
        self.pending[uid] = netns

    def stopped(self, uid: str) -> None:
        """Its listeners are closed, or it had none."""
        netns = self.served_in.pop(uid, None)
        if netns is not None:
            del self.holders[netns]

    def keep(self, uid: str) -> str:
        """REMEMBER or VIOLATION."""
        self.named(uid)
        return OTHERS[KEEP, self.phase]

    def delete(self, uid: str) -> str:
        """FORGET or STOP, also for a uid that nobody knows; nothing of it is pending any more."""
        self._named.discard(uid)
        self.pending.pop(uid, None)
        return OTHERS[DEL, self.phase]

    def snapshot_sent(self) -> tuple[str, list[str]]:
        """RECONCILE, with the uids that are to be stopped; or VIOLATION.

        What is pending and was not named is pending no more.
        """
        action = OTHERS[SNAPSHOT_SENT, self.phase]
        if action == VIOLATION:
            return action, []
        for uid in [uid for uid in self.pending if uid not in self._named]:
            del self.pending[uid]
        gone = [uid for uid in self.served_in if uid not in self._named]
        self.phase = STEADY
        self._named.clear()
        return action, gone
