"""Fixtures of the rows: an agent, a ztunnel, and two pods for each."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import needs
from support.failclosed_node import Node
from support.failclosed_stage import Stage, stage
from support.nftables import require_nftables
from support.pods import Pod


@pytest.fixture(scope="session", autouse=True)
def _needs_capture() -> None:
    needs.require("needs_netns")
    require_nftables()
    needs.require("needs_nft")


@pytest.fixture(scope="module")
def short_directory() -> Iterator[Path]:
    """One for all tests of a file; see directory."""
    path = tempfile.mkdtemp(prefix="pz-")
    yield Path(path)
    shutil.rmtree(path)


@pytest.fixture(scope="package")
def shared() -> Iterator[Node]:
    """An agent and a ztunnel that no test ends; a file takes it as its `node`."""
    path = tempfile.mkdtemp(prefix="pz-")
    with Node(Path(path)) as made:
        made.begin()
        yield made
    shutil.rmtree(path)


@pytest.fixture
def node(directory: Path) -> Iterator[Node]:
    """An agent and a ztunnel that run, which a test may end."""
    with Node(directory) as made:
        made.begin()
        yield made


@pytest.fixture
def pair(make_pod: Callable[[], Pod], node: Node) -> Iterator[Stage]:
    """Two pods on a wire, none of them captured yet."""
    with stage(node, make_pod) as made:
        yield made


@pytest.fixture
def captured(pair: Stage) -> Stage:
    """The same, one of them captured and ready."""
    pair.add()
    return pair
