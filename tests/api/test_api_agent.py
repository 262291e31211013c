"""The control API of the real agent, with a real ztunnel and real netns."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from schema import faults

from pyztun import NetNs
from pyztun.cni.agent.control import openapi
from pyztun.testing import AckingZtunnel
from support.agent import Agent
from support.pods import Pod
from support.programs import Daemon

pytestmark = pytest.mark.needs_named_netns


@pytest.fixture
def agent(start: Callable[..., Daemon], directory: Path) -> Agent:
    """Ready, without any ztunnel."""
    made = Agent(directory, start)
    made.begin()
    return made


def test_answers_are_as_described(agent: Agent, pod: Pod) -> None:
    document = openapi()
    schemas = document["components"]["schemas"]  # type: ignore[index]
    kept = agent.add(pod, uid="u")
    assert faults(kept.body, schemas["Error"], document) == []
    assert kept.body["workload"]["state"] == "pending"
    with AckingZtunnel(agent.zds):
        agent.wait_for("u", "ready")
        assert faults(agent.must_add(pod, uid="u"), schemas["Workload"], document) == []
        assert faults(agent.status(), schemas["Status"], document) == []
        assert faults(agent.delete("u").body, schemas["Deleted"], document) == []
    assert agent.ask("GET", "/v1/openapi.json").body == document


def test_the_descriptor_is_what_is_served(agent: Agent, pod: Pod) -> None:
    """The netns of the caller's descriptor, though the name it has is nowhere to be opened."""
    with AckingZtunnel(agent.zds) as ztunnel, NetNs.create() as nameless:
        agent.wait_for_ztunnels(1)
        descriptor = f"/proc/{os.getpid()}/fd/{nameless.fileno()}"
        reply = agent.add(f"fd:{nameless.fileno()}", descriptor=descriptor, uid="u")
        assert (reply.status, reply.body["cookie"]) == (200, nameless.cookie)
        assert ztunnel.workloads == {"u": nameless.cookie}
        other = agent.add(pod, descriptor=descriptor, uid="v")
        assert (other.status, other.error) == (400, "bad-request")


@pytest.mark.parametrize(
    ("netns", "error"),
    [
        ("/proc/self/ns/net", (400, "bad-request")),
        ("/dev/null", (422, "not-a-netns")),
        ("/nonexistent", (404, "no-such-netns")),
        ("pid:0", (404, "no-such-netns")),
        ("relative/path", (400, "bad-request")),
        ("fd:3", (400, "bad-request")),
    ],
)
def test_what_is_no_workload(agent: Agent, netns: str, error: tuple[int, str]) -> None:
    reply = agent.add(netns)
    assert (reply.status, reply.error) == error, reply
    assert agent.workloads() == {}


def test_texts_that_are_too_long_for_a_message(agent: Agent, pod: Pod) -> None:
    for field in ("uid", "name", "namespace", "service_account"):
        reply = agent.add(pod, **{field: "x" * 2000})
        assert (reply.status, reply.error) == (400, "bad-request")
    assert agent.workloads() == {}
