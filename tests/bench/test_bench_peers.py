"""What the row `peers` asks of every listener before it believes a number."""

import socket
from collections.abc import Callable, Iterator

import pytest

from bench import ways
from bench.listen import BACKLOG, HOST
from bench.peers import fault
from pyztun import NetNs

pytestmark = pytest.mark.needs_netns


@pytest.fixture
def pod_netns() -> Iterator[NetNs]:
    with NetNs.create() as pod:
        yield pod


Change = Callable[[NetNs], socket.socket]


def _elsewhere(pod: NetNs) -> socket.socket:
    with NetNs.create() as other:
        return ways.by_pyztun(other)


def _on_another_port(pod: NetNs) -> socket.socket:
    return pod.listen((HOST, ways.PORT + 1), backlog=BACKLOG)[0]


def _not_listening(pod: NetNs) -> socket.socket:
    sock = pod.socket()
    sock.bind((HOST, ways.PORT))
    return sock


def _without_reuse(pod: NetNs) -> socket.socket:
    return pod.listen((HOST, ways.PORT), backlog=BACKLOG, reuse_address=False)[0]


def _short_backlog(pod: NetNs) -> socket.socket:
    return pod.listen((HOST, ways.PORT), backlog=16)[0]


def test_no_fault_in_what_was_wanted(pod_netns: NetNs) -> None:
    with ways.by_pyztun(pod_netns) as listener:
        assert fault(pod_netns, listener) == ""


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_elsewhere, "another netns"),
        (_on_another_port, "bound to"),
        (_not_listening, "does not listen"),
        (_without_reuse, "SO_REUSEADDR is off"),
        (_short_backlog, "the backlog is 16"),
    ],
)
def test_fault_is_found(pod_netns: NetNs, make: Change, why: str) -> None:
    with make(pod_netns) as listener:
        assert why in fault(pod_netns, listener)
