"""The raw client of the agent's control socket: what it takes for an answer, and for a proof."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench import programs
from bench.agent import Node
from bench.control import Control
from bench.zds import fresh_pods

pytestmark = pytest.mark.needs_netns


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def node(directory: Path, stack: ExitStack) -> Node:
    """A ztunnel, and no agent yet."""
    return Node(stack, programs.Workshop(directory))


def test_what_was_added_is_ready_also_for_the_next_agent(node: Node, stack: ExitStack) -> None:
    node.start()
    pods = fresh_pods(stack)
    with node.control() as control:
        for number, pod in enumerate(pods):
            control.add(f"pod-{number}", pod)
        control.prove_all_ready(len(pods))
        control.delete("pod-0")
        control.prove_all_ready(len(pods) - 1)
    node.stop()
    node.start()
    with node.control() as control:
        control.prove_all_ready(len(pods) - 1)


def test_a_number_that_is_not_there_is_no_proof(node: Node) -> None:
    node.start()
    with (
        node.control() as control,
        pytest.raises(programs.BenchError, match="of 0 workloads 0 are ready, not 1"),
    ):
        control.prove_all_ready(1)


def test_a_refusal_is_told_with_its_reason(node: Node, stack: ExitStack) -> None:
    node.start()
    (pod, *_) = fresh_pods(stack)
    with node.control() as control:
        control.add("first", pod)
        with pytest.raises(programs.BenchError, match=r"POST /v1/workloads: 409 .*first"):
            control.add("second", pod)


def test_an_agent_that_is_gone_is_told(node: Node) -> None:
    node.start()
    with node.control() as control:
        node.stop()
        with pytest.raises(programs.BenchError, match="GET /v1/status: "):
            control.status()


def test_no_agent_is_told(directory: Path) -> None:
    with (
        Control(str(directory / "nobody.sock")) as control,
        pytest.raises(programs.BenchError, match="GET /v1/status: FileNotFoundError"),
    ):
        control.status()
