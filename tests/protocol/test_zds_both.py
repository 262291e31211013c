"""Both ends of ZDS against each other, with everything that may happen on the way.

What may happen is a rule each; in between, and whatever came before, what the agent believes
acknowledged is what that ztunnel serves. When nothing more happens the newest ztunnel serves all
that is wanted and can start, and nobody serves anything else.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyztun.protocol.zds import WorkloadInfo
from pyztun.protocol.zds_agent import Offer
from support.zds_world import Wire, World

ZTUNNELS = 3
UIDS = ["a", "b", "c", "d"]

uids = st.sampled_from(UIDS)
numbers = st.integers(0, ZTUNNELS - 1)
netns = st.integers(1, 6)
infos = st.sampled_from([WorkloadInfo("n", "m", "s"), WorkloadInfo("n2", "m", "s")])
some = st.integers(1, 6)


class Both(RuleBasedStateMachine):
    """Three ztunnels, four uids, six netns, which also pass from one uid to another.

    :ivar last_netns: of each uid; two that are wanted never have the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world = World(ZTUNNELS)
        self.last_netns: dict[str, int] = {}

    # ---- what the user of the agent does -----------------------------------------------------

    @rule(uid=uids, netns=netns, info=infos)
    def add(self, uid: str, netns: int, info: WorkloadInfo) -> None:
        """A new one, a replacement, new info, or the same again; never two in one netns."""
        others = {self.last_netns[each] for each in self.world.agent.wanted if each != uid}
        if netns not in others:
            self.last_netns[uid] = netns
            self.world.agent.want(Offer(uid, netns, info))

    @rule(uid=uids)
    def delete(self, uid: str) -> None:
        if uid in self.world.agent.wanted:
            self.world.agent.unwant(uid)

    @rule(uid=uids, other=uids)
    def swap(self, uid: str, other: str) -> None:
        """Both are deleted, and added again with the netns of the other."""
        agent = self.world.agent
        if uid == other or not {uid, other} <= agent.wanted.keys():
            return
        old = [agent.wanted[uid], agent.wanted[other]]
        if None in (old[0].netns, old[1].netns):  # who adds a workload has opened its netns
            return
        for offer in old:
            agent.unwant(offer.uid)
        last = self.last_netns
        last[uid], last[other] = last[other], last[uid]
        for offer, its in zip(old, reversed(old), strict=True):
            agent.want(offer._replace(netns=its.netns))

    @rule(uid=uids)
    def netns_cannot_be_opened(self, uid: str) -> None:
        """Such as with a full descriptor table, after a restart of the agent."""
        offer = self.world.agent.wanted.get(uid)
        if offer is not None:
            self.world.agent.want(offer._replace(netns=None))

    @rule(uid=uids)
    def netns_can_be_opened(self, uid: str) -> None:
        offer = self.world.agent.wanted.get(uid)
        if offer is not None:
            self.world.agent.want(offer._replace(netns=self.last_netns[uid]))

    @rule()
    def offers_again(self) -> None:
        self.world.agent.offer_again()

    # ---- what happens in the pods ------------------------------------------------------------

    @rule(netns=netns)
    def breaks(self, netns: int) -> None:
        """Nothing new starts in it: a port is taken."""
        self.world.broken.add(netns)

    @rule(netns=netns)
    def heals(self, netns: int) -> None:
        self.world.broken.discard(netns)

    @rule(number=numbers)
    def retries(self, number: int) -> None:
        self.world.nodes[number].retry()

    # ---- what happens on the way -------------------------------------------------------------

    @rule(number=numbers)
    def connects(self, number: int) -> None:
        self.world.connect(self.world.nodes[number])

    @rule()
    def agent_speaks(self) -> None:
        self.world.agent.speak()

    @rule(number=numbers, count=some)
    def ztunnel_reads(self, number: int, count: int) -> None:
        for _ in range(count):
            self.world.nodes[number].step()

    @precondition(lambda self: self.world.agent.links)
    @rule(data=st.data(), count=some)
    def agent_reads(self, data: st.DataObject, count: int) -> None:
        _, wire = data.draw(st.sampled_from(self.world.agent.links))
        for _ in range(count):
            self.world.agent.read(wire)

    @rule(number=numbers, count=some)
    def talk(self, number: int, count: int) -> None:
        """Some turns of an undisturbed conversation."""
        node = self.world.nodes[number]
        for _ in range(count):
            self.world.agent.speak()
            node.step()
            if node.wire is not None:
                self.world.agent.read(node.wire)

    @rule(number=numbers, count=some)
    def is_cut_in_its_snapshot(self, number: int, count: int) -> None:
        self.ztunnel_hangs_up(number)
        self.connects(number)
        self.talk(number, count)
        self.ztunnel_hangs_up(number)

    @rule(number=numbers)
    def ztunnel_hangs_up(self, number: int) -> None:
        self.world.nodes[number].hang_up()

    @precondition(lambda self: self.world.agent.links)
    @rule(data=st.data())
    def agent_hangs_up(self, data: st.DataObject) -> None:
        """As it does when an answer is overdue."""
        _, wire = data.draw(st.sampled_from(self.world.agent.links))
        self.world.agent.close(wire)

    @rule(number=numbers)
    def ztunnel_is_killed(self, number: int) -> None:
        self.world.nodes[number].hang_up()
        self.world.nodes[number].restart()

    @rule()
    def agent_is_killed(self) -> None:
        self.world.agent.restart()

    @rule(number=numbers)
    def a_request_comes_twice(self, number: int) -> None:
        wire = self._wire_of(number)
        if wire is not None and wire.to_ztunnel:
            wire.to_ztunnel.append(wire.to_ztunnel[-1])
            wire.surplus = True

    @rule(number=numbers)
    def an_answer_comes_twice(self, number: int) -> None:
        """Or the Hello."""
        wire = self._wire_of(number)
        if wire is not None and wire.to_agent:
            wire.to_agent.append(wire.to_agent[-1])
            wire.surplus = True

    def _wire_of(self, number: int) -> Wire | None:
        return self.world.nodes[number].wire

    # ---- what holds --------------------------------------------------------------------------

    @invariant()
    def beliefs_are_true(self) -> None:
        self.world.check_beliefs()

    @invariant()
    def tables_are_whole(self) -> None:
        self.world.check_tables()

    @rule()
    def settles(self) -> None:
        self.world.settle()
        self.world.check_settled()

    def teardown(self) -> None:
        self.settles()


TestBoth = Both.TestCase
TestBoth.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
