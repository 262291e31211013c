"""ZDS, the agent's side: what to say next to one ztunnel, and what it has agreed to. Pure.

The agent has a list of workloads that are meant to be served. Each conversation holds what its
ztunnel has acknowledged, and what differs is what there is to say: so a connection that becomes the
newest when another dies is told what it missed, and nothing is queued twice.

    phase      ends with                 what is said in it
    HELLO      its Hello                 nothing
    SNAPSHOT   the ACK of SnapshotSent   each workload in order: Add, or Keep if its netns cannot be
                                         opened now; then SnapshotSent
    STEADY     the end                   Dels first; Adds if it is the newest; what it has agreed to
                                         once more, where asked for

One that is not the newest and serves a workload in a netns that was replaced gets a Del of it: the
Add goes to the newest, and nobody else would ever let go of that netns.

A message that comes when none is due is a violation: it can only be paired wrongly. So is a late
one, which is why its conversation has ended by then (Istio's agent keeps it and pairs it with the
next request, pkg/nodeagent/ztunnelserver.go).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeVar

from pyztun.errors import ProtocolError
from pyztun.protocol import zds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

HELLO, SNAPSHOT, STEADY = "hello", "snapshot", "steady"


class Offer(NamedTuple):
    """A workload that is meant to be served.

    :ivar netns: what identifies its netns (the cookie, in practice), None where it cannot be opened
        now.
    """

    uid: str
    netns: Hashable | None
    info: zds.WorkloadInfo


class Answered(NamedTuple):
    """An answer, and the request that it belongs to.

    :ivar offer: what an Add offered; else None.
    :ivar reason: empty for an ACK.
    """

    request: zds.Request
    offer: Offer | None
    reason: str


class Conversation:
    """One ztunnel, from its connection to its end.

    :param wanted: the agent's workloads by uid, in the order of a snapshot; read at each step, so
        after a change of one the caller says ``changed(uid)`` to every conversation.
    :ivar agreed: offers by uid that this ztunnel has acknowledged, and not lost since.
    :ivar refused: why the last offer of a uid was refused.
    """

    def __init__(self, wanted: Mapping[str, Offer]) -> None:
        self._wanted = wanted
        self._adds: dict[str, None] = {}  # used as ordered sets
        self._dels: dict[str, None] = {}
        self._again: dict[str, None] = {}
        self._due: tuple[zds.Request, Offer | None] | None = None
        self.phase = HELLO
        self.agreed: dict[str, Offer] = {}
        self.refused: dict[str, str] = {}

    @property
    def due(self) -> zds.Request | None:
        """The request whose answer is awaited."""
        return self._due and self._due[0]

    def again(self, uid: str) -> None:
        """What has been agreed to is offered once more. Any ztunnel takes an Add twice."""
        if self.knows(uid):
            self._again[uid] = None

    def changed(self, uid: str) -> None:
        """A wanted workload is new, another, or gone; or was refused and is to be offered again."""
        if uid in self._wanted:
            self._dels.pop(uid, None)
            self._adds[uid] = None
        else:
            self._adds.pop(uid, None)
            self._again.pop(uid, None)
            self.refused.pop(uid, None)
            self._dels[uid] = None

    def knows(self, uid: str) -> bool:
        """Whether it has acknowledged exactly what is wanted."""
        offer = self._wanted.get(uid)
        if offer is None or self.agreed.get(uid) != offer:
            return False
        return not self._is_about(uid) or self.offered() == offer

    def _is_about(self, uid: str) -> bool:
        """Whether an answer about this uid is awaited."""
        return self._due is not None and getattr(self._due[0], "uid", None) == uid

    def settled(self, uid: str) -> bool:
        """Whether nothing about this uid is to be said or awaited.

        It becomes so by an answer about it or by changed(), never by something else.
        """
        to_say = uid in self._dels or uid in self._again
        to_say = to_say or (uid in self._adds and not self.knows(uid))
        return not self._is_about(uid) and not to_say

    def received(self, message: bytes) -> Answered | None:
        """Takes in a message: a Hello (None is returned) or an answer.

        :raises ProtocolError: it is neither, or none was due; the conversation is over then.
        """
        if self.phase == HELLO:
            zds.read_hello(message)
            self.phase = SNAPSHOT
            self._adds = dict.fromkeys(self._wanted)
            self._again.clear()
            self._dels.clear()  # who was not named in a snapshot is stopped at its end
            return None
        if self._due is None:
            raise ProtocolError("a message that was not asked for")
        answer = Answered(*self._due, zds.read_response(message))
        self._due = None
        self._note(answer)
        return answer

    def _note(self, answer: Answered) -> None:
        request, offer, reason = answer
        if isinstance(request, zds.SnapshotSent):
            if reason:
                raise ProtocolError(f"SnapshotSent was refused: {reason}")
            self.phase = STEADY
        elif isinstance(request, zds.Del):
            self.agreed.pop(request.uid, None)
            self.refused.pop(request.uid, None)
        elif offer is not None:
            self._note_offer(offer, reason)

    def _note_offer(self, offer: Offer, reason: str) -> None:
        # A refused replacement: Istio's ztunnel has stopped the old one by then, ours has not.
        self.agreed.pop(offer.uid, None)
        self.refused.pop(offer.uid, None)
        if reason and offer.uid in self._wanted:
            self.refused[offer.uid] = reason
        elif not reason:
            self.agreed[offer.uid] = offer

    def next_request(self, newest: bool) -> zds.Request | None:
        """What to say now, None for nothing. Its answer is then due.

        :param newest: of all that have said Hello; only that one gets Adds beyond its snapshot.
        """
        if self._due is not None or self.phase == HELLO:
            return None
        if self.phase == SNAPSHOT:
            self._due = self._next_of(self._adds, in_snapshot=True) or (zds.SnapshotSent(), None)
        elif self._dels:
            uid = next(iter(self._dels))
            del self._dels[uid]
            self._due = zds.Del(uid), None
        elif newest:
            self._due = self._next_of(self._adds) or self._next_of(self._again, known=True)
        else:
            self._due = self._next_to_leave()
        return self.due

    def _next_to_leave(self) -> tuple[zds.Request, None] | None:
        """A Del of what is served in a netns that was replaced; what is to be added stays so."""
        self._again.clear()
        for uid in self._adds:
            agreed, offer = self.agreed.get(uid), self._wanted.get(uid)
            if agreed is not None and offer is not None and agreed.netns != offer.netns:
                return zds.Del(uid), None
        return None

    def _next_of(
        self, uids: dict[str, None], *, in_snapshot: bool = False, known: bool = False
    ) -> tuple[zds.Request, Offer | None] | None:
        """:param known: also what is agreed already."""
        while uids:
            uid = next(iter(uids))
            del uids[uid]
            offer = self._wanted.get(uid)
            if offer is None or (self.knows(uid) and not known):
                continue
            if offer.netns is not None:
                return zds.Add(uid, offer.info), offer
            if in_snapshot:  # afterwards a Keep would end Istio's ztunnel
                return zds.Keep(uid), None
        return None

    def offered(self) -> Offer | None:
        """The offer of the Add that is due: whose descriptor goes out with it."""
        return self._due and self._due[1]


class HasPhase(Protocol):
    """A conversation, or whoever has one."""

    @property
    def phase(self) -> str:
        """HELLO, SNAPSHOT or STEADY."""


T = TypeVar("T", bound=HasPhase)


def newest(connected: Iterable[T]) -> T | None:
    """The one that gets the Adds: the last in the order of connection that has said its Hello."""
    found = None
    for each in connected:
        if each.phase != HELLO:
            found = each
    return found
