"""Rules half-applied: the agent is killed in the middle of an `add`, and podside ends with it."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support import REPOSITORY
from support.failclosed_node import Node
from support.failclosed_stage import OUT4, REFUSED, RELAYED, WAYS, Stage, echoes, every

DIES = str(REPOSITORY / "tests" / "support" / "agent_dies.py")
STEPS = ("stored", "asked", "ruled", "answered")


@pytest.fixture
def step(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def node(directory: Path, step: str) -> Iterator[Node]:
    """An agent that dies at a step."""
    with Node(directory) as made:
        made.begin_agent(command=[sys.executable, DIES, f"add:{step}"])
        made.begin_ztunnel()
        yield made


@pytest.mark.parametrize("step", STEPS, indirect=True)
def test_agent_killed_in_an_add(pair: Stage, step: str) -> None:
    """Before its rules the pod is as it was; behind them it is closed. The next agent goes on."""
    node = pair.node
    old = {way: (pair.open(way), pair.open(way)) for way in WAYS}
    with suppress(OSError):
        pair.ask_to_add()
    assert node.agent.daemon.wait() == -9
    if step == "stored":
        assert all(echoes(one) for one, _ in old.values())
    elif step != "asked":  # podside may have ended before, or behind its work
        assert pair.fate(OUT4) in (REFUSED, RELAYED)
        assert all(pair.is_cut(way, one) for way, (one, _) in old.items())
    node.begin_agent()
    pair.wait_for("ready")
    assert pair.fates() == every(RELAYED)
    assert all(pair.is_cut(way, one) for way, (one, _) in old.items() if step == "stored")
    assert all(pair.is_cut_for_the_server(way, two) for way, (_, two) in old.items())
