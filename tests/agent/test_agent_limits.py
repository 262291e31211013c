"""The agent whose fd table is full, or whose disk, log or callers are in the way."""

import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyztun import NetNs
from pyztun.testing import AckingZtunnel
from support.agent import Agent
from support.programs import Daemon

pytestmark = pytest.mark.needs_netns

RESERVED, ROOM = 264, 20
"""Netns for which the fd table below has room beside the RESERVED that the agent keeps back."""


@pytest.fixture
def small(start: Callable[..., Daemon], directory: Path) -> Agent:
    """An agent with a small fd table."""
    agent = Agent(directory, start)
    agent.begin(wrap=["prlimit", f"--nofile={RESERVED + ROOM}"])
    return agent


@pytest.fixture
def netns() -> Iterator[list[NetNs]]:
    """A few more netns than fit, each held by us."""
    with ExitStack() as stack:
        yield [stack.enter_context(NetNs.create()) for _ in range(ROOM + 2)]


def add(agent: Agent, netns: NetNs) -> str:
    """Adds a netns of ours; the word of the error, if any."""
    fd = f"/proc/{os.getpid()}/fd/{netns.fileno()}"
    return agent.add(fd, uid=str(netns.cookie), name="n").error


def test_full_table_refuses_adds_and_nothing_else(small: Agent, netns: list[NetNs]) -> None:
    with AckingZtunnel(small.zds) as first:
        small.wait_for_ztunnels(1)
        assert [add(small, each) for each in netns] == [""] * ROOM + ["limit"] * 2
        assert len(first.workloads) == ROOM
        assert small.status()["descriptors"] == {"held": ROOM, "limit": ROOM}
        with AckingZtunnel(small.zds) as second:
            assert len(second.wait_for(lambda workloads: len(workloads) == ROOM)) == ROOM
        small.wait_for_ztunnels(1)
        assert small.delete(str(netns[0].cookie)).status == 200
        assert add(small, netns[-1]) == ""


@pytest.mark.slow
def test_flood_of_connections_keeps_no_ztunnel_out(small: Agent, netns: list[NetNs]) -> None:
    with ExitStack() as stack:
        for _ in range(300):
            caller = stack.enter_context(socket.socket(socket.AF_UNIX))
            caller.connect(small.control)
        dumb = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(40)]
        for sock in dumb:
            stack.enter_context(sock)
            sock.connect(small.zds)
        with AckingZtunnel(small.zds, timeout=60) as ztunnel:
            ztunnel.wait_for(lambda workloads: workloads == {}, 60)
            assert add(small, netns[0]) == ""
    assert not [line for line in small.daemon.stderr.all() if "cannot-accept" in line]


def test_workloads_beyond_a_smaller_table_are_kept(small: Agent, netns: list[NetNs]) -> None:
    """A restart with less room: what cannot be opened is neither lost nor stopped."""
    for each in netns[:ROOM]:
        add(small, each)
    small.daemon.kill()
    small.begin(wrap=["prlimit", f"--nofile={RESERVED + ROOM - 5}"])
    states = [each["state"] for each in small.workloads().values()]
    assert (states.count("pending"), states.count("degraded")) == (ROOM - 5, 5)
    with AckingZtunnel(small.zds) as ztunnel:
        assert len(ztunnel.wait_for(lambda workloads: len(workloads) == ROOM - 5)) == ROOM - 5
        ready = [uid for uid, row in small.workloads().items() if row["state"] == "ready"]
        small.delete(ready[0])
        small.wait_until(
            lambda found: [each["state"] for each in found.values()].count("ready") == ROOM - 5
        )


def test_table_without_any_room_is_refused(directory: Path, start: Callable[..., Daemon]) -> None:
    agent = Agent(directory, start)
    daemon = agent.begin(wrap=["prlimit", f"--nofile={RESERVED}"], ready=False)
    assert daemon.wait() == 1
    assert f"RLIMIT_NOFILE {RESERVED} is too low" in daemon.stderr.all()[0]


def test_soft_limit_is_raised(directory: Path, start: Callable[..., Daemon]) -> None:
    agent = Agent(directory, start)
    agent.begin(wrap=["prlimit", "--nofile=300:1000"])
    assert agent.status()["descriptors"]["limit"] == 1000 - RESERVED
    assert resource.prlimit(agent.daemon.pid, resource.RLIMIT_NOFILE) == (1000, 1000)


def test_full_pipe_stops_nothing(
    directory: Path, start: Callable[..., Daemon], netns: list[NetNs]
) -> None:
    read, write = os.pipe()
    try:
        agent = Agent(directory, start)
        agent.begin(output=write)
        os.set_blocking(write, False)
        try:
            while True:
                os.write(write, b"x" * 4096)
        except BlockingIOError:
            pass
        with AckingZtunnel(agent.zds):
            agent.wait_for_ztunnels(1)
            for each in netns:
                assert add(agent, each) == ""
        assert agent.daemon.stop() == 0
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_it_cleanly(small: Agent, number: int) -> None:
    assert small.daemon.stop(number) == 0
    assert not os.path.exists(small.zds)
    assert not os.path.exists(small.control)
    assert "STOPPING=1" in small.daemon.notifications or small.daemon.stderr.wait_for("stopped")


def test_callers_that_wait_are_answered_at_the_end(small: Agent, netns: list[NetNs]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with AckingZtunnel(small.zds) as ztunnel, ThreadPoolExecutor() as pool:
        small.wait_for_ztunnels(1)
        ztunnel.hold()
        adding = pool.submit(add, small, netns[0])
        while not small.workloads():
            os.sched_yield()
        assert small.daemon.stop() == 0
        assert adding.result(20) == "shutting-down"
