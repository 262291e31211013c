"""Kernels that lack something: cookies (before 6.18 and 5.14), or IPv6. Made so by seccomp."""

import errno
import socket
import sys
from collections.abc import Callable

import pytest

from support import REPOSITORY, zt_oldkernel, zt_zds
from support.pods import Canary, Pod
from support.zt_child import run_code
from support.zt_zds import Node, Start, blocker, ports, serves

pytestmark = pytest.mark.skipif(
    not zt_oldkernel.available(), reason="the numbers of the calls are not known here"
)
MakePod = Callable[[], Pod]
MakeCanary = Callable[[Pod], Canary]

SOCKET_CALL = {"x86_64": 41, "aarch64": 198}
FIRST_ARGUMENT_AT = 16


def without_ipv6() -> list[str]:
    """A prefix: socket(AF_INET6) fails with EAFNOSUPPORT; it ends in exec."""
    call = SOCKET_CALL[zt_oldkernel.MACHINE]
    arguments = (call, FIRST_ARGUMENT_AT, int(socket.AF_INET6), int(errno.EAFNOSUPPORT))
    code = f"""
import os, sys
sys.path.insert(0, {str(REPOSITORY / "tests")!r})
from support import zt_oldkernel as kernel
refusal = kernel._fail(*{arguments})
kernel._program = lambda _: refusal + kernel._step(kernel.RETURN, 0, 0, kernel.ALLOW)
kernel.install([])
os.execvp(sys.argv[1], sys.argv[1:])
"""
    return [sys.executable, "-c", code]


@pytest.mark.parametrize("what", [["id"], ["id", "cookie"]], ids=["before 6.18", "before 5.14"])
def test_without_cookies_the_inode_names_a_netns(
    start: Start, sock_path: str, make_pod: MakePod, make_canary: MakeCanary, what: list[str]
) -> None:
    """Nobody else has it while the netns is served or pending."""
    pod, other, taken = make_pod(), make_pod(), make_pod()
    canary = make_canary(pod)
    with Node(start, sock_path, wrap=zt_oldkernel.prefix(*what)) as node:
        for _ in range(2):
            node.link.serve("u", pod)
        assert "uid u" in node.link.add("v", pod)
        assert node.link.delete("v") == ""
        assert serves(pod)
        name = pod.inode if "cookie" in what else pod.cookie
        node.daemon.stderr.wait_for(f"netns={name}")
        with blocker(taken):
            assert "15008" in node.link.add("taken", taken)
        zt_zds.until(lambda: ports(taken) == zt_zds.PORTS, "healed")
        node.link.serve("u", other)
        assert serves(other)
        pod.delete()
        assert canary.died()
        assert node.reconnect().snapshot_sent() == ""
        assert not serves(other)


def test_the_filter_against_ipv6_does_what_it_says() -> None:
    code = "import socket; socket.socket().close(); socket.socket(socket.AF_INET6)"
    done = run_code(code, wrap=without_ipv6())
    assert f"[Errno {int(errno.EAFNOSUPPORT)}]" in done.stderr


def test_where_there_is_no_ipv6_it_is_0_0_0_0(
    start: Start, sock_path: str, make_pod: MakePod
) -> None:
    some = [make_pod() for _ in range(2)]
    with Node(start, sock_path, wrap=without_ipv6()) as node:
        for pod in some:
            node.link.serve(pod.name, pod)
        found = zt_zds.listeners(node.daemon)
        assert [each.address for each in found] == ["0.0.0.0"] * 6
        assert all(each.reuse_port for each in found)
        assert {each.mark for each in found} in ({0x539}, {0})
        for pod in some:
            assert pod.resets(15006)
            assert node.link.delete(pod.name) == ""
        assert not any(serves(pod) for pod in some)
