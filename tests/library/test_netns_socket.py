"""NetNs.socket() and the UDP side of listen(): any family and type, and whose netns it is."""

import errno
import os
import socket
from collections.abc import Callable

import pytest

import pyztun
from pyztun import NetNs, SyscallError, UnsupportedFamily, native, socket_netns
from support import pods
from support.zt_child import NO_CAPABILITY, run_code

pytestmark = pytest.mark.needs_netns

KINDS = [
    (socket.AF_INET, socket.SOCK_STREAM, 0),
    (socket.AF_INET6, socket.SOCK_DGRAM, 0),
    (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    (socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE),
    (socket.AF_PACKET, socket.SOCK_DGRAM, 0),
    (socket.AF_UNIX, socket.SOCK_SEQPACKET, 0),
]
NOT_IN_PODS = 5  # AF_APPLETALK: the kernel has it in the initial netns alone, or not at all


def main_thread(work: Callable[[], None]) -> None:
    work()


each_thread = pytest.mark.parametrize("run", [main_thread, pods.in_thread])


@each_thread
@pytest.mark.parametrize(("family", "kind", "proto"), KINDS)
def test_any_family_and_type(
    netns: NetNs, run: Callable[[Callable[[], None]], None], family: int, kind: int, proto: int
) -> None:
    home = os.stat("/proc/self/ns/net").st_ino

    def work() -> None:
        with netns.socket(family, kind, proto) as made:
            assert (made.family, made.type) == (family, kind)
            assert made.proto in {proto, socket.IPPROTO_TCP, socket.IPPROTO_UDP}
            assert not made.get_inheritable()
            assert made.gettimeout() is None
            assert os.get_blocking(made.fileno())
            with socket_netns(made) as where:
                assert where.is_same(netns)
        assert os.stat("/proc/thread-self/ns/net").st_ino == home

    run(work)


def test_the_flags_of_the_type(netns: NetNs) -> None:
    with netns.socket(type=socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as made:
        assert made.type == socket.SOCK_DGRAM
        assert made.gettimeout() == 0
        assert not os.get_blocking(made.fileno())


def test_a_default_timeout_holds_as_for_any_new_socket(netns: NetNs) -> None:
    socket.setdefaulttimeout(7)
    try:
        with netns.socket() as made:
            assert made.gettimeout() == 7
    finally:
        socket.setdefaulttimeout(None)


AF_XDP = 44


def test_a_family_that_has_no_addresses(netns: NetNs) -> None:
    """getsockname() fails on it; python would ask that for the family."""
    try:
        made = netns.socket(AF_XDP, socket.SOCK_RAW)
    except UnsupportedFamily:
        pytest.skip("this kernel has no AF_XDP")
    with made:
        assert made.family == AF_XDP


def test_listeners_that_do_not_block(netns: NetNs) -> None:
    (made,) = netns.listen(("127.0.0.1", 0), type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with made:
        assert made.gettimeout() == 0
        with pytest.raises(BlockingIOError):
            made.accept()


def test_abstract_names_belong_to_the_netns(netns: NetNs) -> None:
    name = "\0pyztun-test"
    with netns.socket(socket.AF_UNIX) as there, socket.socket(socket.AF_UNIX) as here:
        there.bind(name)
        here.bind(name)


def test_an_unsupported_family_is_named(netns: NetNs) -> None:
    with pytest.raises(UnsupportedFamily) as caught:
        netns.socket(NOT_IN_PODS, socket.SOCK_DGRAM)
    assert caught.value.errno == errno.EAFNOSUPPORT
    assert f"AF_APPLETALK in netns {netns.reference}" in str(caught.value)
    with pytest.raises(UnsupportedFamily, match="family 4000 in"):
        netns.socket(4000)
    with pytest.raises(SyscallError, match="EPROTONOSUPPORT"):
        netns.socket(proto=socket.IPPROTO_UDP)


RAW_WITHOUT_CAPABILITY = """
import socket, sys
from pyztun import MissingCapability, NetNs
with NetNs.open(sys.argv[1]) as pod:
    try:
        pod.socket(socket.AF_PACKET, socket.SOCK_RAW)
    except MissingCapability as error:
        print(error.errno, error)
"""


@pytest.mark.needs_root
def test_a_raw_socket_needs_its_capability(pod: pods.Pod, only_sys_admin: list[str]) -> None:
    done = run_code(RAW_WITHOUT_CAPABILITY, pod.path, wrap=only_sys_admin)
    assert done.stdout == (
        f"1 socket AF_PACKET in netns {pod.path}: EPERM "
        "(needs CAP_NET_RAW over the netns, for a raw or packet socket)\n"
    )


def test_udp_is_bound_and_does_not_share_its_port(netns: NetNs) -> None:
    (one,) = netns.listen(("127.0.0.1", 0), type=socket.SOCK_DGRAM)
    with one:
        assert one.type == socket.SOCK_DGRAM
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
        with pytest.raises(pyztun.AddressInUse):
            netns.listen(one.getsockname(), type=socket.SOCK_DGRAM)
        with netns.socket(type=socket.SOCK_DGRAM) as client:
            client.sendto(b"hello", one.getsockname())
            assert one.recv(10) == b"hello"


def test_tcp_and_udp_in_both_families(netns: NetNs) -> None:
    made = netns.listen(("0.0.0.0", 53), ("::", 53), type=socket.SOCK_DGRAM, reuse_port=True)
    made += netns.listen(("0.0.0.0", 53), ("::", 53))
    for each in made:
        with each:
            assert each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == (
                each.type == socket.SOCK_STREAM
            )


@pytest.mark.parametrize("kind", [socket.SOCK_RAW, socket.SOCK_SEQPACKET, 77])
def test_listen_makes_tcp_and_udp_only(netns: NetNs, kind: int) -> None:
    with pytest.raises(ValueError, match="SOCK_STREAM or SOCK_DGRAM"):
        netns.listen(("127.0.0.1", 0), type=kind)


NOT_ADDRESSES = [
    (("localhost", 1), ValueError),
    (("127.1", 1), ValueError),
    (("127.0.0.1%1", 1), ValueError),
    (("fe80::1%eth0", 1), ValueError),
    (("127.0.0.1", 65536), ValueError),
    (("127.0.0.1", -1), ValueError),
    (("127.0.0.1", "80"), TypeError),
    ((b"127.0.0.1", 80), TypeError),
    (("127.0.0.1",), ValueError),
    (("", 80), ValueError),
    (("::1", 80, 0, 2**40), ValueError),
    (("::1", 80, 0, -1), ValueError),
    ("127.0.0.1", ValueError),
]


@pytest.mark.parametrize(("address", "kind"), NOT_ADDRESSES)
def test_what_is_no_address(netns: NetNs, address: object, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        netns.listen(address)  # type: ignore[arg-type]
    with pytest.raises((kind, socket.gaierror, SyscallError)):
        netns.connect(address, timeout=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("backlog", [-2, 2**31])
def test_a_backlog_has_31_bits(netns: NetNs, backlog: int) -> None:
    with pytest.raises(ValueError, match="backlog"):
        netns.listen(("127.0.0.1", 0), backlog=backlog)


@pytest.mark.parametrize("mark", [-1, 2**32])
def test_a_mark_has_32_bits(netns: NetNs, mark: int) -> None:
    with pytest.raises(ValueError, match="mark"):
        netns.listen(("127.0.0.1", 0), mark=mark)
    with pytest.raises(ValueError, match="mark"):
        netns.connect(("127.0.0.1", 1), mark=mark)


def test_an_address_of_getsockname_is_taken_back(netns: NetNs) -> None:
    (first,) = netns.listen(("::1", 0))
    with first:
        address = first.getsockname()
    (again,) = netns.listen(address)
    with again:
        assert again.getsockname() == address


# ---- socket_netns --------------------------------------------------------------------------------


def test_the_netns_of_a_socket_without_any_other_name() -> None:
    with NetNs.create() as lab:
        cookie, (listener,) = lab.cookie, lab.listen(("127.0.0.1", 0))
    with listener, socket_netns(listener) as found, socket_netns(listener.fileno()) as again:
        assert found.cookie == again.cookie == cookie
        assert not os.get_inheritable(found.fileno())
        with found.connect(listener.getsockname(), timeout=10):
            pass


def test_the_netns_of_what_is_no_socket() -> None:
    with open("/dev/null") as file, pytest.raises(SyscallError) as caught:
        socket_netns(file)
    assert caught.value.errno == errno.ENOTSOCK
    with pytest.raises(SyscallError) as caught:
        socket_netns(10**6)
    assert caught.value.errno == errno.EBADF


HOME_OF_A_SOCKET = """
import socket
from pyztun import MissingCapability, socket_netns
with socket.socket() as mine:
    try:
        socket_netns(mine)
    except MissingCapability as error:
        print(error)
"""


def test_socket_netns_says_what_it_needs(no_capability: list[str]) -> None:
    # Root of a user namespace keeps its uid, and so far its capabilities.
    done = run_code(HOME_OF_A_SOCKET, wrap=[*no_capability, *NO_CAPABILITY])
    assert done.stderr == ""
    assert "needs CAP_NET_ADMIN over the netns of the socket" in done.stdout


# ---- pidfd_getfd ---------------------------------------------------------------------------------


def test_a_descriptor_of_another_process(netns: NetNs) -> None:
    pidfd = os.pidfd_open(os.getpid())
    try:
        with native.copy_descriptor(pidfd, netns.fileno(), "mine") as copy:
            assert copy.fileno() != netns.fileno()
            assert os.path.samestat(os.fstat(copy.fileno()), os.fstat(netns.fileno()))
            assert not os.get_inheritable(copy.fileno())
        with pytest.raises(SyscallError) as caught:
            native.copy_descriptor(pidfd, 10**6, "mine")
        assert caught.value.errno == errno.EBADF
    finally:
        os.close(pidfd)
