"""The listeners of a workload, asked on duplicates of them: what Istio's ztunnel makes."""

import functools
import socket
from collections.abc import Callable

import pytest

from support import needs, pods, privilege, zt_zds
from support.pods import Pod
from support.zt_zds import Listener, Node, Start

MakePod = Callable[[], Pod]
MARK, BACKLOG, SOCKS5 = 0x539, 128, 15080
HOSTS = ("127.0.0.1", "::1")
NO_NET_CAPABILITY = [
    "setpriv",
    "--inh-caps=-net_admin,-net_raw",
    "--bounding-set=-net_admin,-net_raw",
]


def only_workload(node: Node, pod: Pod) -> dict[int, Listener]:
    """Serves one pod; the listeners by port."""
    node.link.serve("u", pod)
    found = zt_zds.listeners(node.daemon)
    assert {each.cookie for each in found} == {pod.cookie}
    return {each.port: each for each in found}


def addresses(found: dict[int, Listener]) -> dict[int, str]:
    return {port: each.address for port, each in found.items()}


# ---- as they are ---------------------------------------------------------------------------------


def test_wildcard_with_reuse_port_and_mark(start: Start, sock_path: str, pod: Pod) -> None:
    needs.require("needs_root")
    with Node(start, sock_path) as node:
        found = only_workload(node, pod)
        assert addresses(found) == dict.fromkeys(zt_zds.PORTS, "::")
        for each in found.values():
            assert each.backlog == BACKLOG
            assert (each.reuse_port, each.reuse_addr) == (True, False)
            assert not each.v6only
            assert (each.mark, each.transparent) == (MARK, False)
        node.end()
    assert node.daemon.complaints() == []


def test_both_families_are_served(start: Start, sock_path: str, pod: Pod) -> None:
    with Node(start, sock_path) as node:
        node.link.serve("u", pod)
        for port in zt_zds.PORTS:
            assert all(pod.resets(port, host) for host in HOSTS)


def test_not_only_loopback_is_served(start: Start, sock_path: str, pod: Pod) -> None:
    """REDIRECT of what comes from outside goes to the address of the interface."""
    assert pod.exec("ip", "addr", "add", "192.0.2.7/32", "dev", "lo").returncode == 0
    with Node(start, sock_path) as node:
        node.link.serve("u", pod)
        assert pod.resets(15006, "192.0.2.7")


def test_a_pod_with_ipv6_switched_off(start: Start, sock_path: str, pod: Pod) -> None:
    for which in ("all", "default", "lo"):
        _switch_ipv6_off(pod, which)
    with Node(start, sock_path) as node:
        found = only_workload(node, pod)
        assert addresses(found) == dict.fromkeys(zt_zds.PORTS, "::")
        for port in zt_zds.PORTS:
            assert pod.resets(port)


def _switch_ipv6_off(pod: Pod, which: str) -> None:
    path = f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6"

    def write() -> None:
        with open(path, "w") as switch:
            switch.write("1")

    try:
        pods.in_netns(pod.path, write)
    except OSError as error:
        pytest.skip(f"{path}: {error}")


# ---- as one asks for them ------------------------------------------------------------------------


def test_bind_loopback(start: Start, sock_path: str, pod: Pod) -> None:
    with Node(start, sock_path, "--bind", "loopback") as node:
        found = only_workload(node, pod)
        assert addresses(found) == dict.fromkeys(zt_zds.PORTS, "127.0.0.1")
        assert all(each.reuse_port for each in found.values())
        assert pod.resets(15008)
        assert pod.refuses(15008, "::1")


@pytest.mark.parametrize("bind", ["wildcard", "loopback"])
def test_socks5_is_always_on_loopback(start: Start, sock_path: str, pod: Pod, bind: str) -> None:
    with Node(start, sock_path, "--socks5", "--bind", bind) as node:
        found = only_workload(node, pod)
        assert set(found) == {*zt_zds.PORTS, SOCKS5}
        assert (found[SOCKS5].address, found[SOCKS5].backlog) == ("127.0.0.1", BACKLOG)
        assert found[SOCKS5].reuse_port
        assert found[SOCKS5].mark == found[15008].mark
        assert pod.resets(SOCKS5)
        assert node.link.delete("u") == ""
        assert zt_zds.ports(pod) == set()


def test_another_backlog(start: Start, sock_path: str, pod: Pod) -> None:
    with Node(start, sock_path, "--backlog", "7") as node:
        assert {each.backlog for each in only_workload(node, pod).values()} == {7}


@pytest.mark.parametrize("value", ["false", "False"])
def test_without_reuse_port(start: Start, sock_path: str, pod: Pod, value: str) -> None:
    with Node(start, sock_path, env={"INPOD_PORT_REUSE": value}) as node:
        for each in only_workload(node, pod).values():
            assert (each.reuse_port, each.reuse_addr) == (False, True)


def test_without_ipv6(start: Start, sock_path: str, pod: Pod) -> None:
    with Node(start, sock_path, env={"IPV6_ENABLED": "false"}) as node:
        found = only_workload(node, pod)
        assert addresses(found) == dict.fromkeys(zt_zds.PORTS, "0.0.0.0")
        assert pod.resets(15008)
        assert pod.refuses(15008, "::1")


# ---- without the capability ----------------------------------------------------------------------


@pytest.mark.needs_root
def test_without_net_admin_and_net_raw(start: Start, sock_path: str, make_pod: MakePod) -> None:
    some = [make_pod() for _ in range(3)]
    with Node(start, sock_path, wrap=NO_NET_CAPABILITY) as node:
        for pod in some:
            node.link.serve(pod.name, pod)
        found = zt_zds.listeners(node.daemon)
        assert len(found) == 9
        assert not any(each.mark or each.transparent for each in found)
        assert all(each.reuse_port and each.backlog == BACKLOG for each in found)
        assert all(pod.resets(15006) for pod in some)
        assert "CAP_NET_ADMIN" in node.daemon.stderr.wait_for(" no-mark ")
        node.end()
    assert len(node.daemon.complaints()) == 1, "said once"


@pytest.mark.needs_root
@pytest.mark.parametrize("capability", ["net_admin", "net_raw"])
def test_either_capability_is_enough(
    start: Start, sock_path: str, pod: Pod, capability: str
) -> None:
    other = {"net_admin": "net_raw", "net_raw": "net_admin"}[capability]
    wrap = ["setpriv", f"--inh-caps=-{other}", f"--bounding-set=-{other}"]
    with Node(start, sock_path, wrap=wrap) as node:
        for each in only_workload(node, pod).values():
            assert (each.mark, each.transparent) == (MARK, False)
        node.end()
    assert node.daemon.complaints() == []


@pytest.mark.needs_root
def test_another_user_with_sys_admin_alone(start: Start, shared_directory: str, pod: Pod) -> None:
    """The agent is root, the ztunnel is not; root may command everybody."""
    path = f"{shared_directory}/zt.sock"
    with Node(start, path, wrap=_connectable(path)) as node:
        node.link.serve("u", pod)
        assert zt_zds.serves(pod)
        node.daemon.stderr.wait_for(" no-mark ")
        node.end()
    assert len(node.daemon.complaints()) == 1


def _connectable(path: str) -> list[str]:
    """A prefix: opens the socket file to all, then uid 4242 with CAP_SYS_ADMIN alone."""
    return ["sh", "-ec", f'chmod 0666 {path}; exec "$@"', "sh", *privilege.only_sys_admin()]


# ---- who else may have the port ------------------------------------------------------------------


def test_an_application_may_not_share_the_port_by_accident(
    start: Start, sock_path: str, pod: Pod
) -> None:
    """SO_REUSEPORT is for those who ask for it."""
    with Node(start, sock_path) as node:
        node.link.serve("u", pod)
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::")):
            other = pods.in_netns(pod.path, functools.partial(socket.socket, family))
            with other, pytest.raises(OSError, match="in use"):
                other.bind((host, 15001))
