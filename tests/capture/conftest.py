"""Fixtures of capture: podside, and pods that it has captured."""

from collections.abc import Iterator

import pytest

from capture.kit import Side
from pyztun.testing import Pod, PodPair
from support import needs
from support.nftables import require_nftables


@pytest.fixture(scope="module")
def _side() -> Iterator[Side]:
    needs.require("needs_netns")
    require_nftables()
    with Side() as made:
        yield made


@pytest.fixture
def side(_side: Side) -> Iterator[Side]:
    """A podside, one for all tests of a file. A test lets it forget its pods."""
    yield _side
    assert _side.process.poll() is None
    _side.notices.clear()


@pytest.fixture
def captured(pod_pair: PodPair, side: Side) -> Iterator[tuple[Pod, Pod]]:
    """Two joined pods: one outside, and one that is captured, with nobody on 15001 and 15006."""
    outside, inside = pod_pair
    side.done("capture", inside.netns)
    yield outside, inside
    side.done("forget", inside.netns)
