"""Ztunnels: the ZDS server. Any number of ztunnels dial; what to say is Conversation's to know.

Here are the sockets, the deadlines and the order: one request under way per connection, and an
answer that does not come in time ends its connection, so that it can never be taken for that of
the next request. All of it runs in the loop; nothing here blocks, since a socket with one request
under way always has room for it.
"""

from __future__ import annotations

import asyncio
import errno
import select
from time import time
from typing import Protocol

from pyztun.channel import Channel
from pyztun.cni.agent.acceptor import Acceptor
from pyztun.cni.agent.pace import Pace
from pyztun.errors import ProtocolError, SyscallError
from pyztun.fds import OwnedFd
from pyztun.protocol import zds
from pyztun.protocol.zds_agent import HELLO, SNAPSHOT, Conversation, newest

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Mapping

    from pyztun.netns import NetNs
    from pyztun.protocol.zds_agent import Answered, Offer
    from pyztun.service.log import Log

DEADLINE = 5.0
"""Seconds for a Hello and for each answer, as Istio's agent has it."""
ACCEPTS_A_SECOND, ACCEPT_BURST = 5.0, 5
MAX_ZTUNNELS = 64


class Events(Protocol):
    """Who wants to know. Called in the loop; may change what is offered."""

    def answered(self, ztunnel: Ztunnel, answer: Answered) -> None:
        """A request has its answer."""

    def connections_changed(self) -> None:
        """One has said Hello, or has ended: another may be the newest now, or none."""


class Ztunnel:
    """One connection.

    :ivar number: counts up, in the order of accept().
    :ivar since: when it was accepted, in seconds of the epoch.
    :ivar was_dropped: we have ended the connection; it may be there all the same.
    """

    def __init__(
        self, channel: Channel, number: int, pid: int, uid: int, offers: Mapping[str, Offer]
    ) -> None:
        self.channel, self.number, self.pid, self.uid = channel, number, pid, uid
        self.conversation = Conversation(offers)
        self.since = time()
        self.was_dropped = False
        self.timer: asyncio.TimerHandle | None = None
        self._poll = select.poll()
        self._poll.register(channel.fileno(), select.POLLIN)

    @property
    def phase(self) -> str:
        """Of its conversation."""
        return self.conversation.phase

    @property
    def has_begun(self) -> bool:
        """Whether it has said Hello: before that it is told nothing."""
        return self.phase != HELLO

    @property
    def awaiting(self) -> str:
        """What its next message is due for; empty for nothing."""
        if not self.has_begun:
            return "Hello"
        due = self.conversation.due
        return "" if due is None else type(due).__name__

    def shown(self) -> dict[str, object]:
        """The fields of a log line."""
        return {"ztunnel": self.number, "pid": self.pid}

    def has_said_something(self) -> bool:
        """Whether there is a message, or the end, that we have not read yet."""
        return bool(self._poll.poll(0))


class Ztunnels:
    """See above.

    :param listener: a listening seqpacket socket; borrowed.
    :param uids: who may be a ztunnel.
    :param offers: what every ztunnel is to serve, by uid; read at each step.
    :param netns_of: the netns of an offer, borrowed until the message has gone out.
    """

    def __init__(
        self,
        listener: socket.socket,
        uids: frozenset[int],
        offers: Mapping[str, Offer],
        netns_of: Callable[[Offer], NetNs | None],
        events: Events,
        log: Log,
    ) -> None:
        self._uids, self._offers, self._netns_of = uids, offers, netns_of
        self._events, self._log = events, log
        self._loop = asyncio.get_running_loop()
        self._pace = Pace(ACCEPTS_A_SECOND, ACCEPT_BURST, self._loop.time())
        self._connections: dict[int, Ztunnel] = {}
        self._count = 0
        self._last_end = ""
        self._acceptor = Acceptor(listener, self._accepted, log, self._wait_for_pace)

    @property
    def last_end(self) -> str:
        """Which ztunnel was the last one to end, and why; empty if that was its own doing."""
        return self._last_end

    def __iter__(self) -> Iterator[Ztunnel]:
        """Oldest first."""
        return iter(list(self._connections.values()))

    @property
    def newest(self) -> Ztunnel | None:
        """The one that gets the Adds: the last that was accepted and has said Hello."""
        return newest(self._connections.values())

    def changed(self, uid: str) -> None:
        """What is offered of this uid is another thing now, or is to be offered again."""
        for ztunnel in self:
            ztunnel.conversation.changed(uid)
        self._say_what_is_due()

    def again(self, uid: str) -> None:
        """The newest is to be offered this uid once more, also if it has agreed to it."""
        if self.newest is not None:
            self.newest.conversation.again(uid)
            self._say_what_is_due()

    def close(self) -> None:
        """Ends every connection. Ztunnels go on with what they have."""
        self._acceptor.close()
        for ztunnel in self:
            self._take_out(ztunnel)

    # ---- connections -------------------------------------------------------------------------

    def _wait_for_pace(self) -> float:
        return self._pace.wait(self._loop.time())

    def _accepted(self, sock: socket.socket) -> None:
        channel = Channel(OwnedFd(sock.detach()), "ztunnel")
        try:
            pid, uid, _ = channel.peer_credentials()
        except OSError as error:
            self._log.event("peer", "cannot-accept", reason=str(error))
            channel.close()
            return
        if uid in self._uids:
            self._pace.take()  # a stranger costs no snapshot
            self._take_in(channel, pid, uid)
        else:
            self._log.event("peer", "ztunnel-refused", reason=f"uid {uid} may not be a ztunnel")
            channel.close()

    def _take_in(self, channel: Channel, pid: int, uid: int) -> None:
        if len(self._connections) >= MAX_ZTUNNELS:
            self._end(next(iter(self)), f"more than {MAX_ZTUNNELS} ztunnels")
        self._count += 1
        ztunnel = Ztunnel(channel, self._count, pid, uid, self._offers)
        self._connections[ztunnel.number] = ztunnel
        self._loop.add_reader(channel.fileno(), self._receive, ztunnel)
        self._await(ztunnel)

    def _await(self, ztunnel: Ztunnel) -> None:
        ztunnel.timer = self._loop.call_later(DEADLINE, self._overdue, ztunnel)

    def _overdue(self, ztunnel: Ztunnel) -> None:
        self._end(ztunnel, f"no answer to {ztunnel.awaiting} in {DEADLINE:g} s")

    def _take_out(self, ztunnel: Ztunnel) -> None:
        if ztunnel.timer is not None:
            ztunnel.timer.cancel()
        self._loop.remove_reader(ztunnel.channel.fileno())
        ztunnel.channel.close()
        del self._connections[ztunnel.number]

    def _end(self, ztunnel: Ztunnel, reason: str) -> None:
        """Ends a connection, for a reason of ours."""
        ztunnel.was_dropped = True
        self._gone(ztunnel, "peer", "ztunnel-dropped", reason=reason)

    def _gone(self, ztunnel: Ztunnel, level: str, event: str, **why: object) -> None:
        self._take_out(ztunnel)
        if not (ztunnel.has_begun or ztunnel.was_dropped):
            return  # nobody knew of it: somebody who looks whether there is an agent
        dropped = f"ztunnel {ztunnel.number} was dropped: {why.get('reason')}"
        self._last_end = dropped if ztunnel.was_dropped else ""
        self._log.event(level, event, **ztunnel.shown(), **why)
        self._events.connections_changed()
        self._say_what_is_due()  # who is the newest now may have missed something

    # ---- messages ----------------------------------------------------------------------------

    def _receive(self, ztunnel: Ztunnel) -> None:
        try:
            message, _ = ztunnel.channel.receive(zds.MAX_MESSAGE, 0, 0)
        except SyscallError as error:
            if error.errno == errno.ECONNRESET:  # it closed and left something of ours unread
                self._gone(ztunnel, "info", "ztunnel-gone")
            elif error.errno != errno.ETIMEDOUT:
                self._end(ztunnel, str(error))
            return
        if not message:
            self._gone(ztunnel, "info", "ztunnel-gone")
            return
        if ztunnel.timer is not None:
            ztunnel.timer.cancel()
            ztunnel.timer = None
        self._take_message(ztunnel, message)

    def _take_message(self, ztunnel: Ztunnel, message: bytes) -> None:
        phase = ztunnel.conversation.phase
        try:
            answer = ztunnel.conversation.received(message)
        except ProtocolError as error:
            self._end(ztunnel, str(error))
            return
        if answer is None:
            self._log.event("info", "ztunnel-connected", **ztunnel.shown())
            self._events.connections_changed()
        else:
            if phase == SNAPSHOT != ztunnel.conversation.phase:
                agreed = len(ztunnel.conversation.agreed)
                self._log.event("info", "snapshot-served", **ztunnel.shown(), workloads=agreed)
            self._events.answered(ztunnel, answer)
        self._say_what_is_due()

    def _say_what_is_due(self) -> None:
        for ztunnel in self:
            if ztunnel.number in self._connections:  # it may have ended for another's sake
                self._say(ztunnel)

    def _say(self, ztunnel: Ztunnel) -> None:
        # What has come without being asked for would be taken for the answer to what we say now;
        # once it is read it is known for what it is.
        if ztunnel.conversation.due is not None or ztunnel.has_said_something():
            return
        request = ztunnel.conversation.next_request(ztunnel is self.newest)
        if request is None:
            return
        offer = ztunnel.conversation.offered()
        netns = None if offer is None else self._netns_of(offer)
        fds = [] if netns is None else [netns.fileno()]
        try:
            ztunnel.channel.send(zds.encode(request), fds, 0)
        except (SyscallError, ValueError) as error:  # ValueError: longer than a message may be
            self._end(ztunnel, str(error))
            return
        self._await(ztunnel)
