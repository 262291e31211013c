"""The routes of a captured pod, among those of others."""

import socket
import subprocess

import pytest

from capture.kit import set_sysctl, words
from pyztun import NetNs
from pyztun.cni.capture import routes, routetable
from support import pods

FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
ROUTES = 1500


def add_many(netns: NetNs, family: int, table: int) -> None:
    """So many that a dump has several messages."""
    four = family == socket.AF_INET
    prefixes = (
        f"10.{i // 256}.{i % 256}.0/24" if four else f"fd00:{i:x}::/32" for i in range(ROUTES)
    )
    text = "".join(f"route add blackhole {prefix} table {table}\n" for prefix in prefixes)

    def add() -> None:
        argv = ["ip", "-4" if four else "-6", "-b", "-"]
        subprocess.run(argv, input=text, text=True, check=True, timeout=30)

    pods.in_netns(netns.fileno(), add)


def is_there(netns: NetNs, family: int) -> bool:
    return pods.in_netns(netns.fileno(), lambda: routetable.is_there(family))


@FAMILIES
def test_among_many_others(netns: NetNs, family: int) -> None:
    assert not is_there(netns, family)
    for table in (254, 100):
        add_many(netns, family, table)
        assert not is_there(netns, family)
    assert pods.in_netns(netns.fileno(), routes.put).written == (*routes.NAMES,)
    assert is_there(netns, family)
    assert pods.in_netns(netns.fileno(), routes.put) == routes.Routes((), (), "")
    assert pods.in_netns(netns.fileno(), routes.remove) == (*routes.NAMES,)
    assert not is_there(netns, family)


@pytest.mark.parametrize(
    "other",
    [
        "blackhole default table 100",
        "local 127.0.0.0/8 dev lo table 100",
        "local default dev lo table 101",
        "local default dev other table 100",
        "unicast default dev lo table 100",
    ],
)
def test_what_is_not_ours(netns: NetNs, other: str) -> None:
    words(netns, "ip link add other type veth peer name rehto")
    words(netns, "ip link set other up")
    words(netns, f"ip route add {other}")
    assert not is_there(netns, socket.AF_INET)


def test_a_pod_without_ipv6(netns: NetNs) -> None:
    set_sysctl(netns, "net.ipv6.conf.all.disable_ipv6", "1")
    four, six = routes.NAMES
    expected = routes.Routes((four,), (six,), "")
    assert pods.in_netns(netns.fileno(), routes.put) == expected
    assert pods.in_netns(netns.fileno(), routes.remove) == (four,)


def test_what_pyroute2_cannot_do_is_told(netns: NetNs, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("no pyroute2")

    monkeypatch.setattr(routes, "_routes", broken)
    expected = routes.Routes((), (*routes.NAMES,), "ImportError: no pyroute2")
    assert pods.in_netns(netns.fileno(), routes.put) == expected
