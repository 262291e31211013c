"""Rows of ztunnel: dead, restarting, not there yet, its fd table full."""

import resource
import signal
import socket
import time

from support.failclosed_stage import (
    IN4,
    IN6,
    OUT4,
    OUT6,
    REFUSED,
    RELAYED,
    RESET,
    SECONDS,
    SHORT,
    SILENT,
    WAYS,
    Stage,
    echoes,
    every,
    is_reset,
    until,
)

SMALL_TABLE = ("prlimit", "--nofile=660:660")
"""Most of it is kept for what a peer may send; some 18 connections have room."""
THREADS = ("--threads", "2")


# ---- dead, restarting ----------------------------------------------------------------------------


def test_dead_and_back(captured: Stage) -> None:
    """Open connections are reset, new ones refused. Then it comes back, under load."""
    node = captured.node
    assert captured.fates() == every(RELAYED)
    old = [captured.relayed(way) for way in WAYS]
    node.kill_ztunnel()
    assert all(map(is_reset, old))
    assert captured.fates() == every(REFUSED)
    captured.wait_for("pending", "no ztunnel connected")
    began = time.monotonic()
    node.start_ztunnel(ready=False)
    seen = set()
    while (fate := captured.fate(OUT4)) != RELAYED:
        seen |= {fate, captured.fate(IN6)}
        assert time.monotonic() - began < 10
    print(f"from exec to the first connection: {time.monotonic() - began:.3f} s")
    assert seen <= {REFUSED, RESET, RELAYED}
    captured.wait_for("ready")
    assert captured.fates() == every(RELAYED)
    node.ztunnel.wait_ready()


def test_restarting_with_and_without_a_gap(captured: Stage) -> None:
    """SIGTERM drains: what is open goes on. With a new one beside it no connection is refused."""
    node = captured.node
    first, old = node.ztunnel, captured.relayed(OUT4)
    node.start_ztunnel()
    node.agent.wait_for_ztunnels(2)
    assert captured.fates() == every(RELAYED)
    first.process.send_signal(signal.SIGTERM)
    first.stderr.wait_for(" draining ")
    assert captured.fates() == every(RELAYED)
    assert echoes(old)
    old.close()
    assert first.wait() == 0
    second, old = node.ztunnel, captured.relayed(OUT4)
    second.process.send_signal(signal.SIGTERM)
    second.stderr.wait_for(" draining ")
    assert until(lambda: captured.fates() == every(REFUSED))
    assert echoes(old)
    old.close()
    assert second.wait() == 0


def test_add_without_a_ztunnel(pair: Stage) -> None:
    """Rules first, whatever comes then: the pod is closed, and open once there is a ztunnel."""
    pair.node.kill_ztunnel()
    old = {way: pair.open(way) for way in WAYS}
    done = pair.add_by_hand()
    assert done.returncode == 1
    assert "ztunnel" in done.stderr
    assert "connections from before were reset" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    pair.wait_for("pending", "no ztunnel connected")
    assert pair.fates() == every(REFUSED)
    assert all(pair.is_cut(way, sock) for way, sock in old.items())
    pair.node.begin_ztunnel()
    pair.wait_for("ready")
    assert pair.fates() == every(RELAYED)


# ---- its fd table --------------------------------------------------------------------------------


def test_no_room_for_more_connections(captured: Stage) -> None:
    """They wait in the kernel's queue, for ever if need be, and open ones do not notice."""
    node = captured.node
    node.kill_ztunnel()
    node.begin_ztunnel(*THREADS, wrap=SMALL_TABLE)
    captured.wait_for("ready")
    held: list[socket.socket] = []
    while (found := captured.call(OUT4, SHORT))[1] == RELAYED:
        assert found[0] is not None
        held.append(found[0])
        assert len(held) < 100
    waiting, fate = found
    assert fate == SILENT
    assert waiting is not None
    assert captured.fates(SHORT, (OUT6, IN4)) == every(SILENT, (OUT6, IN4))
    assert echoes(held[0])
    line = node.ztunnel.stderr.wait_for(" accept-held-back ")
    assert f" netns={captured.inside.netns.cookie} " in line
    began = time.monotonic()
    for each in held[:4]:
        each.close()
    waiting.settimeout(SECONDS)
    assert waiting.recv(100)  # the server is reached now
    print(f"accepted {time.monotonic() - began:.3f} s after there was room")
    assert time.monotonic() - began < 1
    assert captured.fate(IN6) == RELAYED
    for each in held:
        each.close()
    check_full_table(captured)


def check_full_table(stage: Stage) -> None:
    """EMFILE in accept(): the same."""
    pid = stage.node.ztunnel.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    assert stage.fates(SHORT, (OUT4, IN6)) == every(SILENT, (OUT4, IN6))
    stage.node.ztunnel.stderr.wait_for(" accept-paused ")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    began = time.monotonic()
    assert stage.fates() == every(RELAYED)
    assert time.monotonic() - began < 1
