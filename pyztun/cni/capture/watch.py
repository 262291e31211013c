"""Watch: the kernel tells when a pod's rules or routes may have changed.

What it tells is not read, only that it did: the generation id and a look at the routes cost less
than the parsing of all messages of all pods, and know our own changes from those of others. So an
overflow (ENOBUFS) is no loss either, and the buffers can be small.
"""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from typing import Final

from pyztun.cni.capture.nfnetlink import NETLINK_NETFILTER, NFTABLES_GROUP
from pyztun.errors import explain

BUFFER: Final = 16384
"""Bytes that wait in the kernel for each socket; the kernel doubles it for its own structures."""
MOST: Final = 1024
"""Messages that one drain() throws away; what is left fires again."""

LINK, IPV4_ROUTE, IPV4_RULE, IPV6_ADDRESS, IPV6_ROUTE = 0x1, 0x40, 0x80, 0x100, 0x400
IPV6_RULE: Final = 1 << 18
ROUTE_GROUPS: Final = LINK | IPV4_ROUTE | IPV4_RULE | IPV6_ADDRESS | IPV6_ROUTE | IPV6_RULE
"""A link, since lo takes its routes with it; an address, since IPv6 comes to lo with ::1."""


class Watch:
    """Two netlink sockets in the netns where it is made, usable from anywhere. SyscallError."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        try:
            self._open(NETLINK_NETFILTER, NFTABLES_GROUP)
            self._open(socket.NETLINK_ROUTE, ROUTE_GROUPS)
        except OSError as error:
            self.close()
            number = error.errno or errno.EIO
            hint = "needs CAP_NET_ADMIN over the pod" if number == errno.EPERM else ""
            raise explain(number, "bind(AF_NETLINK)", "pod", hint) from error

    def _open(self, protocol: int, groups: int) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        sock = socket.socket(socket.AF_NETLINK, kind, protocol)
        self._sockets.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        sock.bind((0, groups))

    def filenos(self) -> tuple[int, ...]:
        """The descriptors: readable when something may have changed."""
        return tuple(sock.fileno() for sock in self._sockets)

    def drain(self) -> None:
        """Throws away what was told so far. To be called before looking, not after."""
        for sock in self._sockets:
            for _ in range(MOST):
                try:
                    sock.recv(1)
                except BlockingIOError:
                    break
                except OSError:  # ENOBUFS, once; then what is queued
                    continue

    def close(self) -> None:
        """Stops watching; does nothing the second time."""
        for sock in self._sockets:
            with suppress(OSError):
                sock.close()
        self._sockets.clear()
