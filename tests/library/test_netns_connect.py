"""NetNs.connect(): where the connection starts, how long it may take, and what failed."""

import errno
import os
import pickle
import socket
import struct
import subprocess
import time
from collections.abc import Iterator

import pytest

from pyztun import AddressInUse, NetNs, SyscallError, addresses, connect
from pyztun.testing import Pod, PodPair
from support import pods
from support.zt_child import run_code

pytestmark = pytest.mark.needs_netns

NOBODY = "192.0.2.99"


@pytest.fixture
def server(pod_pair: PodPair) -> Iterator[socket.socket]:
    """A listener in the right pod."""
    (listener,) = pod_pair.right.netns.listen((pod_pair.right.ipv4, 0))
    with listener:
        yield listener


def test_it_starts_in_the_pod_and_the_process_stays(
    pod_pair: PodPair, server: socket.socket
) -> None:
    home = os.stat("/proc/self/ns/net").st_ino
    with pod_pair.left.netns.connect(server.getsockname(), timeout=10) as client:
        accepted, peer = server.accept()
        with accepted:
            assert peer == client.getsockname()
            assert peer[0] == pod_pair.left.ipv4
        assert not client.get_inheritable()
        assert client.gettimeout() == 10
    assert os.stat("/proc/self/ns/net").st_ino == home


def test_without_a_timeout_it_blocks(pod_pair: PodPair, server: socket.socket) -> None:
    with pod_pair.left.netns.connect(server.getsockname()) as client:
        assert client.gettimeout() is None
        assert os.get_blocking(client.fileno())


def test_source_and_mark(pod_pair: PodPair, server: socket.socket) -> None:
    source, mark = (pod_pair.left.ipv4, 40000), 0xFFFF0539
    with pod_pair.left.netns.connect(server.getsockname(), 10, source, mark) as client:
        assert client.getsockname() == source
        raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_MARK, 4)
        assert struct.unpack("=I", raw) == (mark,)
        with pytest.raises(AddressInUse) as caught:
            pod_pair.left.netns.connect(server.getsockname(), 10, source)
        assert str(caught.value).startswith(f"bind {source[0]}:40000 in netns")


def test_ipv6(pod_pair: PodPair) -> None:
    (listener,) = pod_pair.right.netns.listen((pod_pair.right.ipv6, 0))
    with listener:
        source = (pod_pair.left.ipv6, 0)
        with pod_pair.left.netns.connect(listener.getsockname(), 10, source) as client:
            assert client.getsockname()[0] == pod_pair.left.ipv6
            assert client.getpeername() == listener.getsockname()


def test_a_link_local_scope_is_an_interface_of_the_pod(pod_pair: PodPair) -> None:
    here = _add_link_local(pod_pair.left, "fe80::1")
    there = _add_link_local(pod_pair.right, "fe80::2")
    (listener,) = pod_pair.right.netns.listen((f"fe80::2%{there}", 8080))
    with listener, pod_pair.left.netns.connect((f"fe80::2%{here}", 8080), timeout=10) as client:
        assert client.getpeername()[3] == here


def _add_link_local(end: Pod, address: str) -> int:
    """Gives it an address that needs no duplicate detection; the index of its interface."""
    command = ["ip", "address", "add", f"{address}/64", "dev", end.interface, "nodad"]

    def work() -> int:
        subprocess.run(command, check=True)
        return socket.if_nametoindex(end.interface)

    return pods.in_netns(end.netns.fileno(), work)


FAILURES = [
    ((NOBODY, 80), 0.2, TimeoutError, "ETIMEDOUT (no answer in time)"),
    (("192.0.2.2", 1), 10, ConnectionRefusedError, "ECONNREFUSED (nobody listens there)"),
    (("198.51.100.1", 1), 10, OSError, "ENETUNREACH (the netns has no route there)"),
    (("2001:db8::2", 1), 10, ConnectionRefusedError, "ECONNREFUSED"),
]


@pytest.mark.parametrize(("address", "timeout", "kind", "text"), FAILURES)
def test_what_failed(
    pod_pair: PodPair, address: tuple[str, int], timeout: float, kind: type[OSError], text: str
) -> None:
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        pod_pair.left.netns.connect(address, timeout)
    assert isinstance(caught.value, SyscallError)
    assert caught.value.errno is not None
    assert text in str(caught.value)
    assert f"connect {addresses.shown(address)} in netns (unnamed, inode " in str(caught.value)
    assert time.monotonic() - started < 8


def test_a_source_that_the_pod_does_not_have(pod_pair: PodPair, server: socket.socket) -> None:
    with pytest.raises(SyscallError) as caught:
        pod_pair.left.netns.connect(server.getsockname(), 10, ("192.0.2.77", 0))
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert "bind 192.0.2.77:0" in str(caught.value)


def test_source_and_target_are_of_one_family(pod_pair: PodPair, server: socket.socket) -> None:
    with pytest.raises(ValueError, match="different families"):
        pod_pair.left.netns.connect(server.getsockname(), 10, ("::1", 0))
    with pytest.raises(ValueError, match="is not an IP address"):
        pod_pair.left.netns.connect(server.getsockname(), 10, ("localhost", 0))


def test_a_name_is_resolved_at_home_and_its_addresses_are_tried_in_turn(
    netns: NetNs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """getaddrinfo() itself is asked; which netns its thread is in is looked at while it runs."""
    home = os.stat("/proc/self/ns/net").st_ino
    seen = []
    real = socket.getaddrinfo

    def watched(host: str, port: int, **options: int) -> object:
        seen.append((host, os.stat("/proc/thread-self/ns/net").st_ino))
        return [*real("127.0.0.2", port, **options), *real(host, port, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", watched)
    (listener,) = netns.listen(("127.0.0.1", 0))
    with listener:
        port = listener.getsockname()[1]
        with netns.connect(("localhost", port), timeout=10) as client:
            assert client.getpeername() == ("127.0.0.1", port)
    assert seen == [("localhost", home)]


def test_a_name_that_does_not_exist(netns: NetNs) -> None:
    with pytest.raises(socket.gaierror):
        netns.connect(("does-not-exist.invalid", 80), timeout=10)


def test_no_wait_at_all(pod_pair: PodPair) -> None:
    with pytest.raises(BlockingIOError):
        pod_pair.left.netns.connect((NOBODY, 80), timeout=0)


MARK_WITHOUT_CAPABILITY = """
import sys
from pyztun import MissingCapability, NetNs
with NetNs.open(sys.argv[1]) as pod:
    try:
        pod.connect(("127.0.0.1", 1), mark=5)
    except MissingCapability as error:
        print(error)
"""


@pytest.mark.needs_root
def test_a_mark_needs_its_capability(pod: pods.Pod, only_sys_admin: list[str]) -> None:
    done = run_code(MARK_WITHOUT_CAPABILITY, pod.path, wrap=only_sys_admin)
    assert done.stdout.startswith(
        f"setsockopt(SO_MARK) netns {pod.path}: EPERM (needs CAP_NET_ADMIN or"
    )


def test_the_short_form(pod_pair: PodPair, server: socket.socket) -> None:
    source = (pod_pair.left.ipv4, 0)
    address = server.getsockname()
    with connect(address, netns=pod_pair.left.netns, timeout=10, source=source) as client:
        assert client.getpeername() == address


def test_errors_survive_pickling(netns: NetNs) -> None:
    """A process pool sends them home."""
    with pytest.raises(ConnectionRefusedError) as caught:
        netns.connect(("127.0.0.1", 1))
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.errno) == (
        type(caught.value),
        str(caught.value),
        errno.ECONNREFUSED,
    )
