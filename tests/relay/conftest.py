"""Fixtures of the relay: a ztunnel for all tests of a file, and captured pods."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import needs, relay_node
from support.nftables import require_nftables
from support.relay_node import Node, Pair


@pytest.fixture(scope="session", autouse=True)
def _needs_capture() -> None:
    needs.require("needs_netns")
    require_nftables()


@pytest.fixture(scope="module")
def ztunnel_args() -> tuple[str, ...]:
    """Of the file's ztunnel; a file may say others."""
    return ()


@pytest.fixture(scope="module")
def _node(ztunnel_args: tuple[str, ...]) -> Iterator[Node]:
    directory = tempfile.mkdtemp(prefix="pz-")
    with Node(Path(directory), *ztunnel_args) as node:
        node.begin()
        yield node
    shutil.rmtree(directory)


@pytest.fixture
def node(_node: Node) -> Iterator[Node]:
    """The file's ztunnel. A test leaves no socket, pipe or netns of its own in it."""
    before = relay_node.sockets(_node.daemon)
    yield _node
    assert _node.daemon.process.poll() is None, _node.daemon.stderr.all()
    # Less where that to NOTIFY_SOCKET was still open before.
    assert relay_node.sockets(_node.daemon) <= before


@pytest.fixture
def pair(node: Node) -> Iterator[Pair]:
    """Two joined pods, both captured."""
    with node.pair() as made:
        yield made


@pytest.fixture
def own_node(directory: Path) -> Iterator[Node]:
    """A node of the test's own, without a ztunnel yet."""
    with Node(directory) as node:
        yield node
