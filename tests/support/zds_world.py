"""An agent, some ztunnels and the wires between them, all in memory: for tests of both ends.

Both ends are the real ones (pyztun.protocol.zds_agent and zds_ztunnel) with the least that their
programs do around them, and what passes between them are the real bytes. A test decides when a
message is delivered, and where a wire is cut.
"""

from __future__ import annotations

from collections import deque

from pyztun import ProtocolError
from pyztun.protocol import zds
from pyztun.protocol import zds_ztunnel as z
from pyztun.protocol.zds_agent import HELLO, Conversation, Offer, newest
from pyztun.protocol.zds_ztunnel import Ztunnel

Message = tuple[bytes, int | None]
"""The bytes of a request, and the netns of its descriptor."""


class Wire:
    """A connection. What was sent before one end closed can still be read at the other.

    :ivar surplus: a message went twice: from then on an answer may be paired with another request,
        which the protocol cannot tell until an answer is one too many.
    """

    def __init__(self) -> None:
        self.to_ztunnel: deque[Message] = deque()
        self.to_agent: deque[bytes] = deque()
        self.agent_open = self.ztunnel_open = True
        self.surplus = False


class Node:
    """A ztunnel process.

    :param broken: netns in which nothing starts at present; shared by all.
    :ivar infos: by uid of what is served.
    """

    def __init__(self, broken: set[int]) -> None:
        self._broken = broken
        self.restart()

    def restart(self) -> None:
        """As after SIGKILL."""
        self.side = Ztunnel()
        self.infos: dict[str, zds.WorkloadInfo] = {}
        self._named: dict[str, zds.WorkloadInfo] = {}  # of the last Add, also of one that waits
        self.wire: Wire | None = None

    def connect(self, wire: Wire) -> None:
        self.wire = wire
        self.side.connected()
        wire.to_agent.append(zds.hello())

    def hang_up(self) -> None:
        if self.wire is not None:
            self.wire.ztunnel_open = False
            self.wire = None
            self.side.disconnected()

    def step(self) -> bool:
        """Reads one message, or the end; False if there is nothing to read."""
        wire = self.wire
        if wire is None:
            return False
        if wire.to_ztunnel:
            self._serve(wire, *wire.to_ztunnel.popleft())
            return True
        if wire.agent_open:
            return False
        self.hang_up()
        return True

    def _serve(self, wire: Wire, message: bytes, netns: int | None) -> None:
        """One request, one answer."""
        try:
            request = zds.decode(message, int(netns is not None))
            refusal = self._do(request, netns)
        except ProtocolError as error:
            wire.to_agent.append(zds.nack(str(error)))
            self.hang_up()
            return
        wire.to_agent.append(zds.nack(refusal) if refusal else zds.ack())

    def _do(self, request: zds.Request, netns: int | None) -> str:
        """Why it was refused; empty if it was done. ProtocolError for a violation."""
        if isinstance(request, zds.Add):
            assert netns is not None
            return self._add(request, netns)
        if isinstance(request, zds.Keep):
            action = self.side.keep(request.uid)
        elif isinstance(request, zds.Del):
            action = self.side.delete(request.uid)
            if action == z.STOP:
                self.side.stopped(request.uid)
        else:
            action, gone = self.side.snapshot_sent()
            for uid in gone:
                self.side.stopped(uid)
        if action == z.VIOLATION:
            raise ProtocolError(f"{request} at the wrong time")
        return ""

    def _add(self, add: zds.Add, netns: int) -> str:
        action = self.side.add(add.uid, netns)
        self._named[add.uid] = add.info
        if action == z.CONFIRM:
            self.infos[add.uid] = add.info
            return ""
        if self._start(action, add.uid, netns):
            return ""
        self.side.failed(add.uid, netns)
        return f"{action} failed"

    def _start(self, action: str, uid: str, netns: int) -> bool:
        if action == z.TAKE:
            self.side.stopped(self.side.holders[netns])
        if action == z.REFUSE or netns in self._broken:
            return False
        self.side.served(uid, netns)
        self.infos[uid] = self._named[uid]
        return True

    def retry(self) -> None:
        """What was pending is tried again, once."""
        for uid, netns in list(self.side.pending.items()):
            assert isinstance(netns, int)
            self._start(z.ADDS[self.side.relation(uid, netns)], uid, netns)


class Agent:
    """An agent and its list."""

    def __init__(self) -> None:
        self.wanted: dict[str, Offer] = {}
        self.links: list[tuple[Conversation, Wire]] = []

    def accept(self, wire: Wire) -> None:
        self.links.append((Conversation(self.wanted), wire))

    def newest(self) -> Conversation | None:
        return newest(conversation for conversation, _ in self.links)

    def conversation_of(self, wire: Wire) -> Conversation | None:
        return next((each for each, its in self.links if its is wire), None)

    def close(self, wire: Wire) -> None:
        wire.agent_open = False
        self.links = [link for link in self.links if link[1] is not wire]

    def restart(self) -> None:
        """As after SIGKILL; the list is on disk."""
        for _, wire in self.links:
            wire.agent_open = False
        self.links = []

    def want(self, offer: Offer) -> None:
        self.wanted[offer.uid] = offer
        self.changed(offer.uid)

    def unwant(self, uid: str) -> None:
        del self.wanted[uid]
        self.changed(uid)

    def changed(self, uid: str) -> None:
        for conversation, _ in self.links:
            conversation.changed(uid)

    def offer_again(self) -> None:
        """What the newest refused, or has only kept."""
        conversation = self.newest()
        for uid in self.wanted:
            if conversation is not None and not conversation.knows(uid):
                conversation.changed(uid)

    def read(self, wire: Wire) -> bool:
        """Reads one message, or the end; False if there is nothing to read."""
        conversation = self.conversation_of(wire)
        if conversation is None:
            return False
        if not wire.to_agent:
            if wire.ztunnel_open:
                return False
            self.close(wire)
            return True
        try:
            conversation.received(wire.to_agent.popleft())
        except ProtocolError:
            self.close(wire)
        return True

    def speak(self) -> bool:
        """Sends what there is to say, on each connection; False if there is nothing."""
        spoke = False
        for conversation, wire in list(self.links):
            if conversation.due is not None:
                continue
            request = conversation.next_request(conversation is self.newest())
            if request is None:
                continue
            spoke = True
            offer = conversation.offered()
            if not wire.ztunnel_open:
                self.close(wire)  # EPIPE
                continue
            netns = None if offer is None else offer.netns
            assert netns is None or isinstance(netns, int)
            wire.to_ztunnel.append((zds.encode(request), netns))
        return spoke


class World:
    """One agent, some ztunnels."""

    def __init__(self, ztunnels: int) -> None:
        self.broken: set[int] = set()
        self.agent = Agent()
        self.nodes = [Node(self.broken) for _ in range(ztunnels)]

    def connect(self, node: Node) -> None:
        if node.wire is None:
            wire = Wire()
            self.agent.accept(wire)
            node.connect(wire)

    def deliver_all(self) -> None:
        """Until nothing is on its way and nobody has anything to say."""
        moved = True
        while moved:
            moved = self.agent.speak()
            for node in self.nodes:
                moved |= node.step()
            for _, wire in list(self.agent.links):
                moved |= self.agent.read(wire)

    def settle(self) -> None:
        """Everybody is connected, told everything, and what failed is tried again, some times."""
        for _ in range(8):
            for node in self.nodes:
                self.connect(node)
            self.deliver_all()
            self.agent.offer_again()
            for node in self.nodes:
                node.retry()
        self.deliver_all()

    # ---- what must hold ----------------------------------------------------------------------

    def check_beliefs(self) -> None:
        """What the agent believes acknowledged is what that ztunnel serves.

        Two kinds of connections make no claim: one that its ztunnel has left, and one on which a
        message went twice. A uid makes none while a request about it is on its way.
        """
        for node in self.nodes:
            if node.wire is None or node.wire.surplus:
                continue
            conversation = self.agent.conversation_of(node.wire)
            if conversation is None:
                continue
            for uid, offer in conversation.agreed.items():
                if getattr(conversation.due, "uid", None) != uid:
                    served = node.side.served_in.get(uid)
                    assert (served, node.infos.get(uid)) == (offer.netns, offer.info), uid

    def check_tables(self) -> None:
        """Who is served where, told both ways; pending is never what is served already."""
        for node in self.nodes:
            side = node.side
            assert side.holders == {netns: uid for uid, netns in side.served_in.items()}
            for uid, netns in side.pending.items():
                assert side.served_in.get(uid) != netns

    def check_settled(self) -> None:
        """The newest serves all that is wanted and can start, and nobody serves anything else."""
        leader = self.agent.newest()
        for node in self.nodes:
            assert node.wire is not None
            assert not node.wire.surplus, "an answer too many was not noticed"
            assert node.side.ready
            assert set(node.side.served_in) | set(node.side.pending) <= set(self.agent.wanted)
            conversation = self.agent.conversation_of(node.wire)
            assert conversation is not None
            assert conversation.phase != HELLO
            assert conversation.due is None
            if conversation is leader:
                self._check_newest(node, leader)

    def _check_newest(self, node: Node, leader: Conversation) -> None:
        for uid, offer in self.agent.wanted.items():
            if offer.netns is None:
                continue
            assert isinstance(offer.netns, int)
            can_start = offer.netns not in self.broken
            if can_start and not self.is_in_the_way(node, offer):
                assert node.side.served_in.get(uid) == offer.netns
                assert uid not in node.side.pending
                assert leader.knows(uid)
            else:
                assert not leader.knows(uid) or not can_start

    def is_in_the_way(self, node: Node, offer: Offer) -> bool:
        """Whether another uid holds its netns, which is wanted elsewhere and could not move there.

        Its new netns cannot be opened by the agent, which has not named it therefore.
        """
        holder = node.side.holders.get(offer.netns)
        if holder is None or holder == offer.uid:
            return False
        return self.agent.wanted[holder].netns is None
