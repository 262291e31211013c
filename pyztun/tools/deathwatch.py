"""Deathwatch: the kernel's own news that a netns is gone, without holding it.

An fd, a socket or a process in a netns keeps it alive, so whoever waits for its end must hold none
of them. A netns can give another one a small number, its nsid, which holds nothing: when the last
reference is gone, the kernel takes the number back and says RTM_DELNSID to group RTNLGRP_NSID.
Needs CAP_NET_ADMIN over the netns in which the watch is, that of the thread that makes it.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from time import monotonic
from typing import TYPE_CHECKING

from pyztun.errors import SyscallError, name_of
from pyztun.protocol import netlink

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pyztun.netns import NetNs

# linux/rtnetlink.h, linux/net_namespace.h
RTM_NEWNSID, RTM_DELNSID, RTM_GETNSID = 88, 89, 90
RTNLGRP_NSID = 28
NETNSA_NSID, NETNSA_FD = 1, 3

NEEDS = "needs CAP_NET_ADMIN over our own netns"

FAMILY = bytes(4)  # struct rtgenmsg, padded
INT = struct.Struct("=i")  # every attribute of ours is one


class Deathwatch:
    """Watches over any number of netns."""

    def __init__(self) -> None:
        self._requests = _netlink(0)
        self._news = _netlink(1 << (RTNLGRP_NSID - 1))
        self._gone: set[int] = set()
        self._next = -1

    def watch(self, netns: NetNs) -> int:
        """Starts to watch; returns the nsid. MissingCapability without CAP_NET_ADMIN at home."""
        fd = (NETNSA_FD, netns.fileno())
        # Left to itself the kernel gives a freed number again, and the news of one end would be
        # taken for the news of another.
        self._next = 1 + max([self._next, *self.living()])
        self._ask(RTM_NEWNSID, netlink.ACK, fd, (NETNSA_NSID, self._next))
        return self._ask(RTM_GETNSID, 0, fd)[0]

    def is_gone(self, nsid: int, seconds: float = 0.0) -> bool:
        """Whether the kernel has said that the netns is gone; waits up to ``seconds`` for it."""
        deadline = monotonic() + seconds
        while nsid not in self._gone:
            left = max(0.0, deadline - monotonic())
            if not select.select([self._news], [], [], left)[0]:
                return False
            news = netlink.messages(self._news.recv(netlink.LONGEST))
            self._gone.update(each for kind, each in _nsids(news) if kind == RTM_DELNSID)
        return True

    def living(self) -> list[int]:
        """Every nsid that the kernel lists at home now."""
        return self._ask(RTM_GETNSID, netlink.DUMP)

    def _ask(self, kind: int, flags: int, *attributes: tuple[int, int]) -> list[int]:
        packed = (netlink.attribute(name, INT.pack(value)) for name, value in attributes)
        self._requests.send(netlink.request(kind, flags, FAMILY + b"".join(packed)))
        found: list[int] = []
        while True:
            answer = list(netlink.messages(self._requests.recv(netlink.LONGEST)))
            found += [nsid for _, nsid in _nsids(answer)]
            if flags != netlink.DUMP or any(each.kind == netlink.DONE for each in answer):
                return found

    def close(self) -> None:
        self._requests.close()
        self._news.close()


def _netlink(groups: int) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    sock.bind((0, groups))
    sock.settimeout(2.0)
    return sock


def _nsids(messages: Iterable[netlink.Message]) -> Iterator[tuple[int, int]]:
    """(type, nsid) of each message that names one. SyscallError for a refusal."""
    for message in messages:
        if message.kind == netlink.ERROR:
            if message.error not in (0, errno.EEXIST):
                needs = f" ({NEEDS})" if message.error == errno.EPERM else ""
                what = f"rtnetlink at home: {name_of(message.error)}{needs}"
                raise SyscallError(message.error, what)
        elif message.kind in (RTM_NEWNSID, RTM_DELNSID):
            for name, value in netlink.attributes(message.body[len(FAMILY) :]):
                if name == NETNSA_NSID:
                    yield message.kind, INT.unpack(value)[0]
