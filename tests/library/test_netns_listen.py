"""NetNs.listen: listeners in another netns, all or nothing, while the caller stays where it is."""

import errno
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from pyztun import AddressInUse, NetNs, SyscallError, native
from support import leaks, pods
from support.pods import Pod

pytestmark = pytest.mark.needs_netns

IP_FREEBIND, IP_TRANSPARENT = 15, 19
IPV6_TRANSPARENT, IPV6_FREEBIND = 75, 78
SO_MARK = 36
PORTS = (15008, 15006, 15001)
Open = Callable[..., list[socket.socket]]


@pytest.fixture
def listen(netns: NetNs) -> Iterator[Open]:
    """netns.listen() whose sockets are closed after the test."""
    with ExitStack() as stack:

        def begin(*addresses: tuple[str, int], **options: object) -> list[socket.socket]:
            made = netns.listen(*addresses, **options)  # type: ignore[arg-type]
            return [stack.enter_context(each) for each in made]

        yield begin


def talk(netns: NetNs, listener: socket.socket, host: str | None = None) -> bytes:
    """A client inside the netns connects to LISTENER, who says `hello`."""
    address = (host or listener.getsockname()[0], listener.getsockname()[1])
    client = pods.in_netns(netns.fileno(), lambda: socket.create_connection(address, timeout=10))
    with client:
        listener.settimeout(10)
        peer, _ = listener.accept()
        with peer:
            peer.send(b"hello")
        return client.recv(100)


def options_of(listener: socket.socket) -> dict[str, int]:
    six = listener.family == socket.AF_INET6
    level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
    get = listener.getsockopt
    return {
        "reuse_address": get(socket.SOL_SOCKET, socket.SO_REUSEADDR),
        "reuse_port": get(socket.SOL_SOCKET, socket.SO_REUSEPORT),
        "transparent": get(level, IPV6_TRANSPARENT if six else IP_TRANSPARENT),
        "freebind": get(level, IPV6_FREEBIND if six else IP_FREEBIND),
        "mark": get(socket.SOL_SOCKET, SO_MARK),
    }


def backlog_of(listener: socket.socket) -> int:
    """tcp_info.tcpi_sacked of a listening socket (net/ipv4/tcp.c, tcp_get_info())."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int(struct.unpack_from("I", info, 28)[0])


def test_three_listeners_serve_in_the_pod_only(netns: NetNs, listen: Open) -> None:
    listeners = listen(*(("127.0.0.1", port) for port in PORTS), backlog=4096)
    for listener, port in zip(listeners, PORTS, strict=True):
        assert listener.getsockname() == ("127.0.0.1", port)
        assert native.socket_cookie(listener.fileno()) == pods.cookie_of(netns.fileno())
        assert not os.get_inheritable(listener.fileno())
        assert listener.getblocking()
        assert (listener.family, listener.type) == (socket.AF_INET, socket.SOCK_STREAM)
        assert talk(netns, listener) == b"hello"
    wanted = {f"127.0.0.1:{port}" for port in PORTS}
    assert pods.listening(netns.fileno()) == wanted
    assert not wanted & pods.listening()
    assert {backlog_of(each) for each in listeners} == {4096}


def test_ipv6_and_dual_stack(netns: NetNs, listen: Open) -> None:
    only, both = listen(("::1", 15006), v6only=True) + listen(("::", 15008), v6only=False)
    assert only.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
    assert both.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0
    assert talk(netns, only) == b"hello"
    assert talk(netns, both, "::1") == talk(netns, both, "127.0.0.1") == b"hello"


@pytest.mark.parametrize("value", ["0", "1"])
def test_v6only_does_not_depend_on_the_sysctl_of_the_pod(
    netns: NetNs, listen: Open, value: str
) -> None:
    def write() -> None:
        with open("/proc/sys/net/ipv6/bindv6only", "w") as knob:
            knob.write(value)

    try:
        pods.in_netns(netns.fileno(), write)
    except OSError as error:
        pytest.skip(f"/proc/sys/net is not writable here: {error.strerror}")
    both, only = listen(("::", 1), v6only=False) + listen(("::1", 2), v6only=True)
    assert both.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0
    assert only.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("name", ["reuse_address", "reuse_port", "transparent", "freebind", "mark"])
def test_each_option_sets_its_own_flag_and_no_other(listen: Open, host: str, name: str) -> None:
    off = {"reuse_address": False}
    value = 77 if name == "mark" else True
    (listener,) = listen((host, 15001), **{**off, name: value})
    expected = {"reuse_address": 0, "reuse_port": 0, "transparent": 0, "freebind": 0, "mark": 0}
    assert options_of(listener) == {**expected, name: int(value)}


def test_defaults(listen: Open) -> None:
    (listener,) = listen(("127.0.0.1", 0))
    assert options_of(listener)["reuse_address"] == 1
    assert options_of(listener)["reuse_port"] == 0
    assert backlog_of(listener) == 128
    assert listener.getsockname()[1] > 0


def test_reuse_port_lets_two_share_and_nothing_else_does(netns: NetNs, listen: Open) -> None:
    listen(("127.0.0.1", 15001), reuse_port=True)
    listen(("127.0.0.1", 15001), reuse_port=True)
    with pytest.raises(AddressInUse):
        netns.listen(("127.0.0.1", 15001))


def test_freebind_takes_an_address_that_is_not_there_yet(netns: NetNs, listen: Open) -> None:
    with pytest.raises(SyscallError) as caught:
        netns.listen(("10.9.8.7", 15001))
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert "no interface in the netns has this address" in str(caught.value)
    (listener,) = listen(("10.9.8.7", 15001), freebind=True)
    assert listener.getsockname() == ("10.9.8.7", 15001)


def test_all_or_nothing_and_the_retry_works(netns: NetNs, listen: Open) -> None:
    (occupant,) = listen(("127.0.0.1", 15001))
    before = leaks.open_fds()
    with pytest.raises(AddressInUse) as caught:
        netns.listen(*(("127.0.0.1", port) for port in PORTS))
    assert caught.value.errno == errno.EADDRINUSE
    assert "bind 127.0.0.1:15001" in str(caught.value)
    assert leaks.open_fds() == before
    assert pods.listening(netns.fileno()) == {"127.0.0.1:15001"}
    occupant.close()
    assert len(listen(*(("127.0.0.1", port) for port in PORTS))) == 3


def test_the_most_listeners_of_one_excursion(netns: NetNs, listen: Open) -> None:
    made = listen(*(("127.0.0.1", 20000 + n) for n in range(native.MAX_LISTENERS)))
    assert len({each.getsockname() for each in made}) == 64
    with pytest.raises(ValueError, match=r"1\.\.64 listeners at a time, not 65"):
        netns.listen(*(("127.0.0.1", 21000 + n) for n in range(65)))
    with pytest.raises(ValueError, match="not 0"):
        netns.listen()


NAMES = ["localhost", "example.com", "", "127.0.0.1 ", "127.1", "1.2.3.4.5", "127.0.0.1%1"]
NAMES += ["::1%lo", "::1%-1", "[::1]", "0x7f000001", "::1%\u0663", "\0", "\u00e9"]


@pytest.mark.parametrize("host", NAMES)
def test_a_host_name_is_a_value_error(netns: NetNs, host: str) -> None:
    """It would have to be resolved in one netns or the other, and neither is right."""
    made: list[socket.socket] = []
    try:
        with pytest.raises(ValueError, match="not an IP address"):
            made = netns.listen((host, 15001))
    finally:
        for each in made:
            each.close()


@pytest.mark.parametrize("index", [str(2**32), "9" * 30, "9" * 5000], ids=len)
def test_an_interface_index_that_no_kernel_has_is_a_value_error(netns: NetNs, index: str) -> None:
    with pytest.raises(ValueError, match=r"not an IP address|scope|interface"):
        netns.listen((f"fe80::1%{index}", 15001))


@pytest.mark.parametrize("port", [-1, 65536, 2**40])
def test_a_port_out_of_range_is_a_value_error(netns: NetNs, port: int) -> None:
    with pytest.raises(ValueError, match="port"):
        netns.listen(("127.0.0.1", port))


def test_link_local_needs_the_interface_of_the_pod(netns: NetNs, listen: Open) -> None:
    def index() -> int:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        subprocess.run(["ip", "addr", "add", "fe80::9/64", "dev", "lo", "nodad"], check=True)
        return socket.if_nametoindex("lo")

    number = pods.in_netns(netns.fileno(), index)
    (listener,) = listen((f"fe80::9%{number}", 15006))
    assert listener.getsockname()[1:] == (15006, 0, number)
    with pytest.raises(SyscallError, match="EINVAL"):
        netns.listen(("fe80::9", 15001))


# ---- where the caller is -------------------------------------------------------------------------


def test_a_thread_that_lives_in_another_netns_stays_there(make_pod: Callable[[], Pod]) -> None:
    """Home is where the calling thread was found, not where the process was started."""
    living, target = make_pod(), make_pod()

    def work() -> tuple[int, int, int]:
        with NetNs.open(target.name) as netns:
            (listener,) = netns.listen(("127.0.0.1", 15001))
            with listener, socket.socket() as own:
                here = os.stat("/proc/thread-self/ns/net").st_ino
                return (
                    here,
                    native.socket_cookie(listener.fileno()),
                    native.socket_cookie(own.fileno()),
                )

    assert pods.in_netns(living.path, work) == (living.inode, target.cookie, living.cookie)
    assert leaks.netns_inode() not in (living.inode, target.inode)


OBSERVER = """
import os, select, sys
path = f"/proc/{sys.argv[1]}/ns/net"
over = select.poll()
over.register(0, select.POLLIN | select.POLLHUP)
seen = {os.readlink(path)}
print("looking", flush=True)
while not over.poll(0):
    seen.update([os.readlink(path) for _ in range(200)])
print(*seen)
"""


def test_the_main_thread_is_never_seen_away(netns: NetNs) -> None:
    """Another process reads /proc/PID/ns/net all the time, while the main thread makes listeners.

    64 in one excursion, so that one who went there itself would be away for long.
    """
    addresses = [("127.0.0.1", 0)] * native.MAX_LISTENERS
    argv = [sys.executable, "-c", OBSERVER, str(os.getpid())]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as observer:
        assert observer.stdout is not None
        assert observer.stdout.readline() == "looking\n"
        for _ in range(200):
            for listener in netns.listen(*addresses):
                listener.close()
        seen, _ = observer.communicate(timeout=20)
    assert seen.split() == [os.readlink("/proc/self/ns/net")]


def test_signals_keep_coming_to_python_during_excursions(netns: NetNs) -> None:
    seen: list[int] = []
    previous = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        while len(seen) < 20:
            for listener in netns.listen(("127.0.0.1", 0)):
                listener.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert leaks.netns_inode() == os.stat("/proc/thread-self/ns/net").st_ino


def test_a_kept_home_must_be_ones_own(netns: NetNs) -> None:
    spec = native.ListenerSpec("127.0.0.1", b"\x7f\0\0\1", 0, backlog=1, flags=0)
    plan = native.ListenPlan([spec])

    def work() -> list[int]:
        with native.home() as home:
            native.prove_home(home.fileno())
            made = [plan.open(netns.fileno(), home.fileno(), "x") for _ in range(3)]
            cookies = [native.socket_cookie(fd.fileno()) for fds in made for fd in fds]
            for fds in made:
                for fd in fds:
                    fd.close()
            return [*cookies, os.stat("/proc/thread-self/ns/net").st_ino]

    with NetNs.current() as here:
        *cookies, inode = pods.in_netns(here.fileno(), work)
    assert set(cookies) == {netns.cookie}
    assert inode == leaks.netns_inode()
