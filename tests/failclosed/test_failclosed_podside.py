"""Rows of podside, which writes the rules: killed, and killed at each step of a capture."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import REPOSITORY
from support.failclosed_dies import STEPS
from support.failclosed_node import Node
from support.failclosed_stage import RELAYED, WAYS, Stage, echoes, every

DIES = str(REPOSITORY / "tests" / "support" / "failclosed_dies.py")


@pytest.fixture(scope="module")
def step_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is in it has podside die."""
    return tmp_path_factory.mktemp("step") / "step"


@pytest.fixture(scope="module")
def mortal(step_file: Path, short_directory: Path) -> Iterator[Node]:
    """A node whose podside dies where it is told, again and again."""
    with Node(short_directory) as made:
        made.begin_agent(command=[sys.executable, DIES, str(step_file)])
        made.begin_ztunnel()
        yield made


@pytest.fixture
def node(mortal: Node) -> Node:
    return mortal


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step_of_a_capture(pair: Stage, step_file: Path, step: str) -> None:
    """`add` returns when the next one has done it all; nothing from before goes on."""
    old = {way: (pair.open(way), pair.open(way)) for way in WAYS}
    said = pair.node.agent.daemon.stderr
    deaths = sum(" podside-died " in line for line in said.all())
    step_file.write_text(step)
    pair.add()
    said.wait_for(" podside-died ", deaths + 1)
    for way, (one, two) in old.items():
        assert pair.is_cut(way, one)
        assert pair.is_cut_for_the_server(way, two)
    assert pair.fates() == every(RELAYED)


def test_killed(captured: Stage) -> None:
    """Traffic goes on. What is changed while there is none is repaired by the next one."""
    node = captured.node
    old = [captured.relayed(way) for way in WAYS]
    pid = node.kill_podside()
    node.agent.daemon.stderr.wait_for(f"podside-died pid={pid}")
    began = time.monotonic()
    captured.inside.nft("flush ruleset")
    node.said("rules-repaired", captured.uid)
    print(f"repaired {time.monotonic() - began:.3f} s after podside was killed")
    assert time.monotonic() - began < 3
    assert captured.fates() == every(RELAYED)
    assert all(map(echoes, old))
