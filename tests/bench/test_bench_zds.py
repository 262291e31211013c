"""The agent that measures ztunnels and the floor of ZDS: that they do what the rows say they do."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest

from bench import programs
from bench.zds import Agent, fresh_pods
from bench.zds_snapshot import prove_served
from pyztun import NetNs
from pyztun.protocol import zds
from pyztun.testing import AckingZtunnel, ZdsRequest
from support.programs import Daemon
from support.zt_zds import Listener, listeners

pytestmark = pytest.mark.needs_netns


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> programs.Workshop:
    """Compiles the two programs once."""
    return programs.Workshop(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


class Process:
    """As much of a Daemon as listeners() asks for."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def fds(self) -> dict[int, str]:
        folder = Path(f"/proc/{self.pid}/fd")
        return {int(entry.name): os.readlink(entry) for entry in folder.iterdir()}


def listeners_of(process: programs.Process) -> list[Listener]:
    """What it holds, but for the netns and the socket: these differ by nature."""
    found = listeners(cast(Daemon, Process(process.pid)))
    return [each._replace(cookie=0, inode="") for each in found]


def cookie_of(pod: int) -> int:
    with NetNs.from_fd(pod) as netns:
        return netns.cookie


def test_the_floor_makes_the_listeners_of_ztunnel(
    shop: programs.Workshop, stack: ExitStack
) -> None:
    pods = fresh_pods(stack)
    theirs, ours = Agent(stack, shop, held=pods[:1]), Agent(stack, shop, held=pods[1:2])
    floor = stack.enter_context(programs.dialler([shop.floor, "zds", theirs.path], shop))
    ztunnel = stack.enter_context(programs.ztunnel(["--zds", ours.path], shop))
    assert theirs.snapshot() > 0
    assert ours.snapshot() > 0
    assert len(listeners_of(floor)) == 3
    assert listeners_of(floor) == listeners_of(ztunnel)


def test_the_floor_closes_what_a_cycle_made_and_keeps_what_is_held(
    shop: programs.Workshop, stack: ExitStack
) -> None:
    pods = fresh_pods(stack)
    agent = Agent(stack, shop, fresh=pods[2:], held=pods[:2])
    floor = stack.enter_context(programs.dialler([shop.floor, "zds", agent.path], shop))
    agent.snapshot()
    held = listeners(cast(Daemon, Process(floor.pid)))
    agent.cycles(7)
    assert listeners(cast(Daemon, Process(floor.pid))) == held
    assert len(held) == 6


def test_what_the_agent_says(shop: programs.Workshop, stack: ExitStack) -> None:
    """A ztunnel that reads by protobuf hears a snapshot of what is held, then Adds and Dels."""
    heard: list[tuple[zds.Request, int]] = []

    def answer(request: ZdsRequest) -> None:
        heard.append((request.message, request.cookie if request.netns is not None else 0))
        request.ack()

    pods = fresh_pods(stack)
    agent = Agent(stack, shop, fresh=pods[2:4], held=pods[:2])
    stack.enter_context(AckingZtunnel(agent.path, answer=answer))
    assert agent.snapshot() > 0
    times = agent.cycles(3)
    assert len(times) == 3
    assert all(took > 0 for took in times)
    kinds = [type(message) for message, _ in heard]
    assert kinds == [zds.Add, zds.Add, zds.SnapshotSent, *[zds.Add, zds.Del] * 3]
    cookies = [cookie_of(pod) for pod in pods]
    assert [cookie for _, cookie in heard if cookie] == [cookies[i] for i in (0, 1, 2, 3, 2)]
    adds = [message for message, _ in heard if isinstance(message, zds.Add)]
    assert len({add.uid for add in adds}) == 5
    assert {len(add.uid) for add in adds} == {36}
    assert {add.info for add in adds} == {zds.WorkloadInfo("workload", "default", "default")}
    assert [m.uid for m, _ in heard if isinstance(m, zds.Del)] == [add.uid for add in adds[2:]]


def test_only_an_ack_is_taken_for_one(shop: programs.Workshop, stack: ExitStack) -> None:
    agent = Agent(stack, shop, held=fresh_pods(stack))
    stack.enter_context(AckingZtunnel(agent.path, answer=lambda request: request.nack("no room")))
    with pytest.raises(
        programs.BenchError, match=r"client ended with 1: ztunnel refused: .*no room"
    ):
        agent.snapshot()


def test_ztunnel_that_dies_is_told(shop: programs.Workshop, stack: ExitStack) -> None:
    agent = Agent(stack, shop, fresh_pods(stack))
    with AckingZtunnel(agent.path):
        agent.snapshot()
    with pytest.raises(programs.BenchError, match=r"ztunnel closed the connection|Broken pipe"):
        agent.cycles(1)


def test_a_pod_that_nobody_serves_is_no_proof(stack: ExitStack) -> None:
    (pod, *_) = fresh_pods(stack)
    with pytest.raises(programs.BenchError, match=r"is not served: .*ECONNREFUSED"):
        prove_served(pod)


def test_a_pod_that_answers_something_else_is_no_proof(stack: ExitStack) -> None:
    (pod, *_) = fresh_pods(stack)
    with NetNs.from_fd(pod) as netns:
        listener = stack.enter_context(netns.listen(("127.0.0.1", 15008))[0])
    worker = stack.enter_context(ThreadPoolExecutor(1))

    def hang_up() -> None:
        listener.accept()[0].close()

    hung_up = worker.submit(hang_up)
    with pytest.raises(programs.BenchError, match="is not served"):
        prove_served(pod)
    hung_up.result()
