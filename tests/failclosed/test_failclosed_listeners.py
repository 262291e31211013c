"""Rows of ztunnel's listeners in a pod: lost, taken by somebody else."""

import time
from contextlib import ExitStack

import pytest

from support.failclosed_attacks import impostor
from support.failclosed_stage import (
    IN4,
    IN6,
    OUT4,
    OUT6,
    REFUSED,
    RELAYED,
    RESET,
    WAYS,
    Stage,
    echoes,
    every,
    until,
)
from support.relay_node import sockets

OUT, IN = (OUT4, OUT6), (IN4, IN6)


def destroy(stage: Stage, port: int) -> None:
    """As root of the pod may do it."""
    if f":{port}" not in stage.inside.run(f"ss -K -ltnH sport = :{port}"):
        pytest.skip("this kernel cannot destroy sockets (CONFIG_INET_DIAG_DESTROY)")


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_listener_lost(captured: Stage, port: int) -> None:
    """New ones are refused for a moment, until it is there again; all else goes on."""
    old = [captured.relayed(way) for way in WAYS]
    before = sockets(captured.node.ztunnel)
    began = time.monotonic()
    destroy(captured, port)
    captured.node.ztunnel.stderr.wait_for(
        lambda line: " listeners-mended " in line and f"[{port}]" in line
    )
    print(f"{port} mended {time.monotonic() - began:.3f} s after ss was started")
    assert captured.fates() == every(RELAYED)
    assert all(map(echoes, old))
    assert captured.workload["state"] == "ready"
    assert until(lambda: sockets(captured.node.ztunnel) == before)


def test_listeners_lost_again_and_again(captured: Stage) -> None:
    """As often as root in the pod likes: nobody gets past, and in the end they are there."""
    old = captured.relayed(IN4)
    before = captured.passed()
    for _ in range(10):
        destroy(captured, 15001)
        assert captured.fates(ways=IN) == every(RELAYED, IN)
        assert captured.fate(OUT4) in (RELAYED, REFUSED, RESET)
        assert until(lambda: captured.fates() == every(RELAYED))
    assert echoes(old)
    assert captured.passed() == before


def test_listeners_taken_while_ztunnel_was_down(captured: Stage) -> None:
    """By a process of the pod. It gets nothing from outside, and can pass nothing on."""
    node = captured.node
    node.kill_ztunnel()
    with ExitStack() as stack:
        taken = [stack.enter_context(impostor(captured, port)) for port in (15001, 15006)]
        assert captured.fates(ways=IN) == every(REFUSED, IN)
        assert set(captured.fates(ways=OUT).values()) == {RESET}  # by it: it is in the pod
        node.begin_ztunnel()
        captured.wait_for("pending", "refused by ztunnel")
        assert "1500" in captured.workload["reason"]
        assert captured.fates(ways=IN) == every(REFUSED, IN)
        assert [line.split()[0] for line in taken[0].end()] == [
            captured.inside.ipv4,
            captured.inside.ipv6,
        ]
        assert taken[1].end() == []
    began = time.monotonic()
    captured.wait_for("ready")
    print(f"ready {time.monotonic() - began:.3f} s after the ports were free")
    assert captured.fates() == every(RELAYED)
