"""The two rows that have a window by nature: it is measured, and what was opened in it is cut."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from support.failclosed_node import Node
from support.failclosed_stage import (
    DIRECT,
    PLAIN,
    REFUSED,
    RELAYED,
    SECONDS,
    SHORT,
    SILENT,
    WAYS,
    Stage,
    Way,
    echoes,
    every,
    heard,
    stage,
)
from support.pods import Pod

WITHIN = 1.0
"""Seconds in which the issue wants a window closed."""

Opened = list[tuple[Way, socket.socket]]


@pytest.fixture
def node(shared: Node) -> Node:
    return shared


class Window:
    """What was called while somebody acted, on each way in turn, until all of it was relayed again.

    :ivar opened: what passed around the proxy.
    :ivar stalled: made at the very moment: what either end says is cut, or relayed a second later.
    """

    def __init__(self, pair: Stage, action: subprocess.Popen[bytes]) -> None:
        self._pair = pair
        self.opened: Opened = []
        self.stalled: Opened = []
        began = self._first = self._last = time.monotonic()
        relayed = 0
        with action:
            while relayed < 3 * len(WAYS) or action.poll() is None:
                for way in WAYS:
                    relayed = 0 if self._call(way) else relayed + 1
                assert time.monotonic() - began < SECONDS
        assert action.returncode == 0
        count = f"{len(self.opened)} connections"
        print(f"window: {1000 * (self._last - self._first):.1f} ms, {count}")
        assert self._last - self._first < WITHIN

    def _call(self, way: Way) -> bool:
        """Whether the window is open."""
        at = time.monotonic()
        sock, fate = self._pair.call(way, SHORT, excused=True)
        if sock is not None and fate == SILENT:
            self.stalled.append((way, sock))
        if sock is None or fate != DIRECT:
            return False
        self._first = self._first if self.opened else at
        self._last = time.monotonic()
        self.opened.append((way, sock))
        return True

    def check_cut(self) -> None:
        """No other end hears anything more of them."""
        check_cut(self._pair, self.opened)
        for way, sock in self.stalled:
            peer = sock.getsockname()[:2]
            with suppress(OSError):
                sock.sendall(PLAIN)
                sock.recv(100)
            assert PLAIN not in self._pair.servers[way.out].heard.get(peer, b"")


def check_cut(pair: Stage, opened: Opened) -> None:
    """Each is reset; the other end hears no more of it."""
    for number, (way, sock) in enumerate(opened):
        if number % 2:
            assert pair.is_cut_for_the_server(way, sock)
        else:
            assert pair.is_cut(way, sock)


@contextmanager
def podside_asleep(node: Node) -> Iterator[None]:
    """The window is as long as the with-block."""
    pid = node.podside_pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_owner_flushes_everything(captured: Stage) -> None:
    """`nft flush ruleset` in the pod."""
    old = [captured.relayed(way) for way in WAYS]
    window = Window(captured, captured.inside.begin("nft flush ruleset"))
    captured.node.said("rules-repaired", captured.uid)
    window.check_cut()
    assert captured.fates() == every(RELAYED)
    assert all(map(echoes, old))
    assert captured.workload["rules"]["repaired"] == 1
    assert captured.workload["state"] == "ready"


def test_what_was_opened_in_the_window_is_cut(captured: Stage) -> None:
    """However long it was: here podside is stopped meanwhile."""
    with podside_asleep(captured.node):
        captured.inside.nft("flush ruleset")
        opened = [(way, captured.open(way)) for way in WAYS for _ in range(2)]
        captured.inside.run("ip rule del pref 32764")
    captured.node.said("rules-repaired", captured.uid)
    check_cut(captured, opened)
    assert captured.fates() == every(RELAYED)


def test_netns_replaced(captured: Stage, make_pod: Callable[[], Pod]) -> None:
    """Another netns under the same path and uid, whose connections exist already."""
    with stage(captured.node, make_pod) as second:
        before = [(way, second.open(way)) for way in WAYS for _ in range(2)]
        subprocess.run(["umount", "-l", captured.inside.path], check=True)
        words = ["mount", "--bind", second.inside.path, captured.inside.path]
        window = Window(second, subprocess.Popen(words))
        captured.node.said("rules-applied", captured.uid)
        window.check_cut()
        check_cut(second, before)
        captured.wait_for("ready", cookie=second.inside.netns.cookie)
        assert second.fates() == every(RELAYED)
        assert captured.fates() == every(REFUSED)  # its rules are there, and no ztunnel
        assert heard(before[0][1]) == b""
