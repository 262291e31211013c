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

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyztun.netns import NetNs

# linux/rtnetlink.h, linux/net_namespace.h, linux/netlink.h
RTM_NEWNSID, RTM_DELNSID, RTM_GETNSID = 88, 89, 90
RTNLGRP_NSID = 28
NETNSA_NSID, NETNSA_FD = 1, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3

NEEDS = "needs CAP_NET_ADMIN over our own netns"

HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
FAMILY = bytes(4)  # struct rtgenmsg, padded
ATTRIBUTE = struct.Struct("=HHi")  # length, type, value; every one of ours is an int


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
        self._ask(RTM_NEWNSID, NLM_F_ACK, fd, (NETNSA_NSID, self._next))
        return self._ask(RTM_GETNSID, 0, fd)[0]

    def is_gone(self, nsid: int, seconds: float = 0.0) -> bool:
        """Whether the kernel has said that the netns is gone; waits up to ``seconds`` for it."""
        deadline = monotonic() + seconds
        while nsid not in self._gone:
            left = max(0.0, deadline - monotonic())
            if not select.select([self._news], [], [], left)[0]:
                return False
            message = self._news.recv(65536)
            self._gone.update(each for kind, each in _nsids(message) if kind == RTM_DELNSID)
        return True

    def living(self) -> list[int]:
        """Every nsid that the kernel lists at home now."""
        return self._ask(RTM_GETNSID, NLM_F_DUMP)

    def _ask(self, kind: int, flags: int, *attributes: tuple[int, int]) -> list[int]:
        body = FAMILY + b"".join(ATTRIBUTE.pack(ATTRIBUTE.size, *pair) for pair in attributes)
        header = HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, 0, 0)
        self._requests.send(header + body)
        found: list[int] = []
        while True:
            message = self._requests.recv(65536)
            found += [nsid for _, nsid in _nsids(message)]
            if flags != NLM_F_DUMP or any(each == NLMSG_DONE for each, _ in _messages(message)):
                return found

    def close(self) -> None:
        self._requests.close()
        self._news.close()


def _netlink(groups: int) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    sock.bind((0, groups))
    sock.settimeout(2.0)
    return sock


def _messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, body) of each message in a datagram."""
    while len(datagram) >= HEADER.size:
        length, kind, _, _, _ = HEADER.unpack_from(datagram)
        yield kind, datagram[HEADER.size : length]
        datagram = datagram[(length + 3) & ~3 :]


def _nsids(datagram: bytes) -> Iterator[tuple[int, int]]:
    """(type, nsid) of each message that names one. SyscallError for a refusal."""
    for kind, body in _messages(datagram):
        if kind == NLMSG_ERROR:
            number = -struct.unpack_from("=i", body)[0]
            if number not in (0, errno.EEXIST):
                needs = f" ({NEEDS})" if number == errno.EPERM else ""
                raise SyscallError(number, f"rtnetlink at home: {name_of(number)}{needs}")
        elif kind in (RTM_NEWNSID, RTM_DELNSID):
            attributes = body[len(FAMILY) :]
            while len(attributes) >= ATTRIBUTE.size:
                length, name, value = ATTRIBUTE.unpack_from(attributes)
                if name == NETNSA_NSID:
                    yield kind, value
                attributes = attributes[(length + 3) & ~3 :]
