"""Kernels without NS_GET_ID (before 6.18) and without SO_NETNS_COOKIE (before 5.14), by seccomp."""

from collections.abc import Callable

import pytest

from support import wire, zt_oldkernel
from support.pods import Canary, Pod
from support.programs import Daemon
from support.zt_child import run_code
from support.zt_daemon import ADDRESSES, LISTENERS, listing, settled_fds, wait_until_fds_are

pytestmark = pytest.mark.skipif(
    not zt_oldkernel.available(), reason="the numbers of the calls are not known here"
)
Start = Callable[..., Daemon]

SHOW = """
import socket
from pyztun import NetNs, SyscallError, native
with NetNs.current() as here, socket.socket() as sock:
    print(native.inspect(here.fileno(), "x")[2] != 0)
    try:
        print(native.socket_cookie(sock.fileno()) != 0)
    except SyscallError as error:
        print(error.errno)
"""


@pytest.mark.parametrize(
    ("what", "expected"), [(["id"], "False\nTrue\n"), (["id", "cookie"], "False\n92\n")]
)
def test_the_filter_does_what_it_says(what: list[str], expected: str) -> None:
    done = run_code(SHOW, wrap=zt_oldkernel.prefix(*what))
    assert (done.stdout, done.stderr) == (expected, "")


@pytest.mark.parametrize("what", [["id"], ["id", "cookie"]], ids=["before 6.18", "before 5.14"])
def test_idempotence_release_and_list(
    make_pod: Callable[[], Pod],
    make_canary: Callable[[Pod], Canary],
    start: Start,
    sock_path: str,
    what: list[str],
) -> None:
    """Without a cookie the inode names a netns: nobody else has it while the netns is held."""
    daemon = start(sock_path, wrap=zt_oldkernel.prefix(*what))
    before = settled_fds(daemon, sock_path)
    pods = [make_pod() for _ in range(3)]
    canaries = [make_canary(pod) for pod in pods]
    names = [pod.inode if "cookie" in what else pod.cookie for pod in pods]
    with wire.Peer(sock_path) as peer:
        for _ in range(2):
            for pod, name in zip(pods, names, strict=True):
                with pod.opened() as fd:
                    assert peer.ask(wire.TAKE, [fd]) == f"ready {ADDRESSES} netns={name}"
                assert pod.listening() == set(LISTENERS)
                assert pod.ask(15006) == b"ok\n"
        assert listing(sock_path) == [f"held {ADDRESSES} netns={name}" for name in names]
        with pods[0].opened() as fd:
            for _ in range(2):
                assert peer.ask(wire.RELEASE, [fd]) == f"released netns={names[0]}"
        by_cookie = wire.RELEASE_COOKIE + b"%d\n" % names[1]
        for _ in range(2):
            assert peer.ask(by_cookie) == f"released netns={names[1]}"
        assert listing(sock_path) == [f"held {ADDRESSES} netns={names[2]}"]
        assert pods[0].listening() == pods[1].listening() == set()
        pods[2].delete()
        assert peer.ask(wire.RELEASE_COOKIE + b"%d\n" % names[2]) == f"released netns={names[2]}"
        assert canaries[2].died()
        with open("/proc/self/ns/net") as home:
            assert peer.ask(wire.TAKE, [home.fileno()]) == "error home netns"
    wait_until_fds_are(daemon, before)
    assert daemon.stop() == 0
    assert [line for line in daemon.complaints() if "refused" not in line] == []
