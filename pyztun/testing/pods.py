"""Two pods on one wire: fresh network namespaces joined by a veth pair, usable at once."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from pyztun.netns import NetNs

INTERFACE = "eth0"
# Documentation addresses (RFC 5737, RFC 3849): no real network has them.
IPV4 = ("192.0.2.1", "192.0.2.2")
IPV6 = ("2001:db8::1", "2001:db8::2")

IFA_F_NODAD = 0x02
RTMGRP_LINK = 1
CARRIER_SECONDS = 10.0


@dataclass(frozen=True)
class Pod:
    """One end of the wire. The netns belongs to whoever made the pod and is closed with it.

    ``interface`` is the veth's name in this netns; ``ipv4`` and ``ipv6`` are its addresses, which
    the other pod reaches (prefix lengths 24 and 64). Loopback is up too.
    """

    netns: NetNs
    interface: str
    ipv4: str
    ipv6: str

    @property
    def addresses(self) -> tuple[str, str]:
        """(ipv4, ipv6), for a test that does the same over both."""
        return self.ipv4, self.ipv6

    def __repr__(self) -> str:
        return f"<Pod {self.interface} {self.ipv4} {self.ipv6} in netns {self.netns.inode}>"


@dataclass(frozen=True)
class PodPair:
    """Two pods that reach each other and nobody else."""

    left: Pod
    right: Pod

    def __iter__(self) -> Iterator[Pod]:
        return iter((self.left, self.right))

    def __repr__(self) -> str:
        return f"<PodPair left={self.left} right={self.right}>"


@contextmanager
def pod_pair() -> Iterator[PodPair]:
    """Two fresh pods joined by a veth pair, for the length of a with-block.

    Both links are up, both stacks addressed, and packets pass at once: IPv6 addresses skip
    duplicate address detection, which would hold them back for a second, and the carrier of both
    ends has been seen. The first call in a process imports pyroute2 (some 0.2 s), later ones take
    about 10 ms. The calling thread does not move, and asyncio may be running in it.

    Both netns are closed at the end; a socket in one that is still open keeps it alive.

    :raises MissingCapability: CAP_SYS_ADMIN and CAP_NET_ADMIN are needed; why_no_netns() tells.
    """
    with ExitStack() as stack:
        netns = [stack.enter_context(NetNs.create()) for _ in range(2)]
        left, right = (
            Pod(each, INTERFACE, ipv4, ipv6)
            for each, ipv4, ipv6 in zip(netns, IPV4, IPV6, strict=True)
        )
        _in_a_thread(lambda: _join(left, right))
        yield PodPair(left, right)


def _in_a_thread(work: Callable[[], None]) -> None:
    """pyroute2 runs an event loop of its own, which a thread whose loop is running refuses."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="pyztun-pod-pair")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def _join(left: Pod, right: Pod) -> None:
    with _routes(left) as here, _routes(right) as there, _events(left) as news:
        peer = {"ifname": right.interface, "net_ns_fd": right.netns.fileno()}
        here.link("add", ifname=left.interface, kind="veth", peer=peer)
        numbers = [_bring_up(pod, routes) for pod, routes in ((left, here), (right, there))]
        _wait_for_carrier(news, [(here, numbers[0]), (there, numbers[1])])


def _routes(pod: Pod) -> Any:
    """A pyroute2 IPRoute on a socket made inside the netns, where it works from anywhere."""
    from pyroute2 import IPRoute  # type: ignore[import-untyped]

    # SOCK_DGRAM, which netlink does not tell from SOCK_RAW: asyncio insists on it.
    sock = pod.netns.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, socket.NETLINK_ROUTE)
    return IPRoute(fileno=sock.detach())


def _bring_up(pod: Pod, routes: Any) -> int:
    (number,) = routes.link_lookup(ifname=pod.interface)
    routes.addr("add", index=number, address=pod.ipv4, prefixlen=24)
    routes.addr("add", index=number, address=pod.ipv6, prefixlen=64, flags=IFA_F_NODAD)
    routes.link("set", index=number, state="up")
    return int(number)


def _events(pod: Pod) -> socket.socket:
    events = pod.netns.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    events.bind((0, RTMGRP_LINK))
    return events


def _wait_for_carrier(news: socket.socket, ends: list[tuple[Any, int]]) -> None:
    """Until both ends are UP: before, a link may still have the queue that drops every packet.

    The kernel gives it a real one where it hears of the carrier, in a work queue of its own
    (net/core/link_watch.c), and reports the link after that.
    """
    deadline = time.monotonic() + CARRIER_SECONDS
    poll = select.poll()
    poll.register(news, select.POLLIN)
    while not all(_is_up(routes, number) for routes, number in ends):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"the veth pair has no carrier after {CARRIER_SECONDS:.0f} s")
        if poll.poll(left * 1000):
            news.recv(65536)


def _is_up(routes: Any, number: int) -> bool:
    (link,) = routes.link("get", index=number)
    return bool(link.get("IFLA_OPERSTATE") == "UP")
