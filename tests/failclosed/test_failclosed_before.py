"""A connection from before `add`: reset at both ends, whatever the pod's owner has set up."""

import pytest

from support.failclosed_node import Node
from support.failclosed_stage import RELAYED, WAYS, Stage, every

ESTABLISHED = """
table inet owner {
	chain output {
		type filter hook output priority -10; policy accept;
		ct state established,related accept
	}
	chain input {
		type filter hook input priority -10; policy accept;
		ct state established,related accept
	}
}
"""


@pytest.fixture
def node(shared: Node) -> Node:
    return shared


@pytest.mark.parametrize("loose", [1, 0], ids=["loose", "not-loose"])
@pytest.mark.parametrize("foreign", ["", ESTABLISHED], ids=["alone", "with-established-accept"])
def test_connection_from_before(pair: Stage, foreign: str, loose: int) -> None:
    """Out and in, IPv4 and IPv6, whichever end speaks first."""
    if foreign:
        pair.inside.nft(foreign)
    pair.inside.sysctl("net.netfilter.nf_conntrack_tcp_loose", loose)
    old = {way: (pair.open(way), pair.open(way)) for way in WAYS}
    assert pair.add()["connections_reset"] is True
    for way, (one, two) in old.items():
        assert pair.is_cut(way, one), way
        assert pair.is_cut_for_the_server(way, two), way
    assert pair.fates() == every(RELAYED)


def test_add_says_it(pair: Stage) -> None:
    """The one that puts the rules there; a second one resets nothing."""
    said = "connections from before were reset"
    assert said in pair.add_by_hand().stdout
    relayed = pair.relayed(WAYS[0])
    assert said not in pair.add_by_hand().stdout
    relayed.sendall(b"x")
    assert relayed.recv(1) == b"x"
