"""After ten thousand handoffs the daemon is as it was: descriptors, threads, memory, netns."""

import os
from collections.abc import Callable

import pytest

from support import wire
from support.pods import Canary, Pod
from support.programs import Daemon
from support.zt_daemon import settled_fds, wait_until_fds_are

CYCLES, WARM_UP = 10_000, 1_000
ROOM_KIB = 1024


@pytest.mark.slow
def test_ten_thousand_cycles_leave_nothing(
    make_pod: Callable[[], Pod],
    make_canary: Callable[[Pod], Canary],
    ztunnel: Daemon,
    sock_path: str,
) -> None:
    pods = [make_pod() for _ in range(4)]
    canaries = [make_canary(pod) for pod in pods]
    fds = [pod.open() for pod in pods]
    before = settled_fds(ztunnel, sock_path)
    threads = ztunnel.threads()
    memory = 0
    with wire.Peer(sock_path) as peer:
        for cycle in range(CYCLES):
            which = cycle % len(pods)
            assert peer.ask(wire.TAKE, [fds[which]]).startswith("ready ")
            if cycle % 500 == 0:
                assert pods[which].ask(15008) == b"ok\n"
            if cycle % 2:
                answer = peer.ask(wire.RELEASE, [fds[which]])
            else:
                answer = peer.ask(wire.RELEASE_COOKIE + b"%d\n" % pods[which].cookie)
            assert answer == f"released netns={pods[which].cookie}"
            if cycle == WARM_UP:
                memory = ztunnel.rss_kib()
    wait_until_fds_are(ztunnel, before)
    assert ztunnel.threads() == threads
    assert ztunnel.rss_kib() - memory < ROOM_KIB
    for fd, pod in zip(fds, pods, strict=True):
        os.close(fd)
        pod.delete()
    assert all(canary.died() for canary in canaries)


@pytest.mark.slow
def test_ten_thousand_refusals_leave_nothing(ztunnel: Daemon, sock_path: str) -> None:
    before = settled_fds(ztunnel, sock_path)
    memory = 0
    with open("/proc/self/ns/net") as home, open("/dev/null") as null:
        for cycle in range(CYCLES // 2):
            with wire.Peer(sock_path) as peer:
                assert peer.ask(wire.TAKE, [home.fileno()]) == "error home netns"
                assert peer.ask(wire.TAKE, [null.fileno()] * 3).startswith("error 3 desc")
            if cycle == WARM_UP:
                memory = ztunnel.rss_kib()
    wait_until_fds_are(ztunnel, before)
    assert ztunnel.rss_kib() - memory < ROOM_KIB
