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
    Way,
    echoes,
    every,
    is_reset,
    until,
)
from support.relay_node import sockets

OUT, IN = (OUT4, OUT6), (IN4, IN6)


def destroy(stage: Stage, port: int) -> None:
    """As root of the pod may do it."""
    if f":{port}" not in stage.inside.run(f"ss -K -ltnH sport = :{port}"):
        pytest.skip("this kernel cannot destroy sockets (CONFIG_INET_DIAG_DESTROY)")


def test_listener_lost(captured: Stage) -> None:
    """Refused, all else goes on. `add` or a pass makes it again, and all of the pod's with it."""
    for port, lost in ((15001, OUT), (15006, IN)):
        check_lost(captured, port, lost)
        assert captured.fates() == every(RELAYED)
    node = captured.node
    node.kill_agent()
    node.begin_agent("--reconcile", "0.3")
    captured.wait_for("ready")
    began = time.monotonic()
    destroy(captured, 15001)
    assert until(lambda: captured.fate(OUT4) == RELAYED)
    assert time.monotonic() - began < 3
    assert captured.fates() == every(RELAYED)


def check_lost(stage: Stage, port: int, lost: tuple[Way, ...]) -> None:
    old = [stage.relayed(way) for way in WAYS]
    before = sockets(stage.node.ztunnel)
    destroy(stage, port)
    assert stage.fates() == {way: REFUSED if way in lost else RELAYED for way in WAYS}
    assert all(map(echoes, old))
    assert stage.workload["state"] == "ready"  # nothing tells of it
    stage.add()
    assert all(map(is_reset, old))
    assert until(lambda: sockets(stage.node.ztunnel) == before - 2 * len(old))


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
