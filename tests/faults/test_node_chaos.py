"""Both programs, a burst of adds and deletes, and SIGKILL for either of them in the middle of it.

Afterwards, each of fifty times: the listeners in every netns are those of the agent's registry,
what a caller was told is true, no descriptor and no netns is held beyond that, and no answer was
given to another request. For the last, some pods have their port 15008 taken: an Add of theirs is
always refused, and one of the others never; one answer out of step would mix them up.
"""

import contextlib
import http.client
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support import zt_zds
from support.agent import Agent
from support.pods import Pod
from support.programs import Daemon
from support.zt_zds import PORTS, blocker, ports

pytestmark = [pytest.mark.needs_named_netns, pytest.mark.slow]

ROUNDS, BURST, CALLERS = 50, 200, 4
PODS_A_CALLER = 5
"""The last of which has its port taken."""
UNKNOWN = None


class Caller:
    """Adds and deletes its own pods; knows what each must be, or that it cannot know."""

    def __init__(self, number: int, pods: list[Pod], agent: Agent) -> None:
        self.good, self.bad = pods[:-1], pods[-1]
        self.pods, self._agent = pods, agent
        self.dice = random.Random(number)
        self.known: dict[str, bool | None] = {pod.name: False for pod in pods}
        self.mistakes: list[str] = []

    def run(self, steps: int, done: Callable[[], None]) -> None:
        for _ in range(steps):
            pod = self.dice.choice(self.pods)
            wants = self.dice.random() < 0.6
            try:
                self._one(pod, wants)
            except (OSError, http.client.HTTPException, ValueError):
                self.known[pod.name] = UNKNOWN
            done()

    def _one(self, pod: Pod, wants: bool) -> None:
        if not wants:
            reply = self._agent.delete(pod.name)
            if reply.error not in ("", "no-such-workload"):
                self.known[pod.name] = UNKNOWN
                return
            self._note(pod, False, reply.error == "", reply)
            return
        reply = self._agent.add(pod, uid=pod.name, timeout=20)
        is_bad = pod is self.bad
        if (reply.error == "" and is_bad) or (reply.error == "refused" and not is_bad):
            self.mistakes.append(f"{pod.name} (bad: {is_bad}) had the answer {reply}")
        # Every refusal of these leaves the intent registered, but for an agent that is ending.
        kept = reply.error in ("", "refused", "no-ztunnel", "timeout")
        self.known[pod.name] = True if kept else UNKNOWN

    def _note(self, pod: Pod, after: bool, was_there: bool, reply: object) -> None:
        before = self.known[pod.name]
        if before is not UNKNOWN and before != was_there:
            self.mistakes.append(f"{pod.name} was {before}, and then {reply}")
        self.known[pod.name] = after


class Node:
    """Both programs on one machine."""

    def __init__(self, directory: Path, start: Callable[..., Daemon]) -> None:
        self._start = start
        self.agent = Agent(directory, start)
        self.agent.begin()
        self.ztunnel = start("--zds", self.agent.zds)
        self.agent.wait_for_ztunnels(1)

    def kill(self, who: str) -> None:
        if who == "agent":
            self.agent.daemon.process.send_signal(signal.SIGKILL)
            self.agent.daemon.wait()
            self.agent.begin()
        else:
            self.ztunnel.kill()
            self.ztunnel = self._start("--zds", self.agent.zds, ready=False)

    def wait_for_recovery(self, bad: set[str]) -> set[str]:
        """Waits until nothing is under way; the names of what is registered."""
        found = self.agent.wait_until(
            lambda rows: all(
                "refused" in row["reason"] if uid in bad else row["state"] == "ready"
                for uid, row in rows.items()
            ),
            60,
        )
        self.agent.wait_for_ztunnels(1, 60)
        return set(found)


@pytest.fixture
def callers(
    make_pod: Callable[[], Pod], directory: Path, start: Callable[..., Daemon]
) -> Iterator[tuple[Node, list[Caller]]]:
    with ExitStack() as stack:
        node = Node(directory, start)
        made = []
        for number in range(CALLERS):
            pods = [make_pod() for _ in range(PODS_A_CALLER)]
            stack.enter_context(blocker(pods[-1]))
            made.append(Caller(number, pods, node.agent))
        yield node, made


def burst(node: Node, callers: list[Caller], victim: str, moment: int) -> None:
    """All callers at once; the victim dies when MOMENT requests have ended."""
    reached, ended = threading.Event(), threading.Semaphore(0)
    lock, count = threading.Lock(), [0]

    def done() -> None:
        with lock:
            count[0] += 1
            if count[0] == moment:
                reached.set()

    def run(caller: Caller) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(ended.release)
            caller.run(BURST // CALLERS, done)

    threads = [threading.Thread(target=run, args=(each,)) for each in callers]
    for thread in threads:
        thread.start()
    assert reached.wait(60)
    node.kill(victim)
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def check_listeners(callers: list[Caller], registered: set[str]) -> None:
    for caller in callers:
        for pod in caller.pods:
            is_served = pod.name in registered and pod is not caller.bad
            wanted = PORTS if is_served else {15008} if pod is caller.bad else set()
            assert ports(pod) == wanted, (pod.name, registered)
            expected = caller.known[pod.name]
            assert expected in (UNKNOWN, pod.name in registered), (pod.name, expected)


def check_descriptors(node: Node, callers: list[Caller], registered: set[str]) -> None:
    """One netns a workload in the agent; in ztunnel one, and three listeners of what it serves."""
    bad = {caller.bad.name for caller in callers} & registered
    namespaces = [link for link in node.agent.settled_fds().values() if is_netns(link)]
    assert len(namespaces) == 1 + len(registered), namespaces  # and home

    def settled() -> bool:
        """A connection that we looked with may still be there for a moment."""
        links = list(node.ztunnel.fds().values())
        # Home twice, for handoff and relay, and one that is being closed.
        namespaces = sum(map(is_netns, links)) <= 2 + len(registered) + 1
        sockets = sum(link.startswith("socket:") for link in links)
        # The agent's connection, and one being closed.
        return namespaces and sockets <= 3 * len(registered - bad) + 2

    zt_zds.until(settled, f"few descriptors, for {registered}")


def is_netns(link: str) -> bool:
    return link.startswith(("net:", "/run/netns/")) or link == "/"


def test_either_side_is_killed_in_a_burst(callers: tuple[Node, list[Caller]]) -> None:
    node, all_callers = callers
    bad = {caller.bad.name for caller in all_callers}
    dice = random.Random(7)
    for number in range(ROUNDS):
        victim = ("agent", "ztunnel")[number % 2]
        burst(node, all_callers, victim, dice.randrange(1, BURST))
        registered = node.wait_for_recovery(bad)
        check_listeners(all_callers, registered)
        check_descriptors(node, all_callers, registered)
        assert [each for caller in all_callers for each in caller.mistakes] == []
    for caller in all_callers:
        for pod in caller.pods:
            node.agent.delete(pod.name)
            caller.known[pod.name] = False
    check_listeners(all_callers, set())
    check_descriptors(node, all_callers, set())
