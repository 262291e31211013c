"""Whether the route of table 100 is there: a dump of this table alone, by hand.

pyroute2 asks the kernel for every route and picks: in a pod with thousands that is a fifth of a
second of each look. With NETLINK_GET_STRICT_CHK (Linux 4.20) the kernel picks; before that it
ignores the table in the request, and what comes is looked through here all the same.
"""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress
from typing import Final

from pyztun.cni.capture.rules import LO, ROUTE_TABLE
from pyztun.protocol import netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

LOCAL: Final = 2  # RTN_LOCAL

SOL_NETLINK, STRICT_CHECK = 270, 12  # NETLINK_GET_STRICT_CHK
GET_ROUTE, NEW_ROUTE = 26, 24
OIF, TABLE = 4, 15  # RTA_OIF, RTA_TABLE
SECONDS: Final = 5.0

_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # struct rtmsg


def is_there(family: int) -> bool:
    """Whether table 100 has `local default dev lo`, in the netns of the calling thread. OSError."""
    return any(map(_is_ours, _dump(family)))


def _is_ours(route: bytes) -> bool:
    _family, dst_len, _src_len, _tos, _table, _protocol, _scope, kind, _flags = _ROUTE.unpack_from(
        route
    )
    attributes = dict(netlink.attributes(route[_ROUTE.size :]))
    wanted = {OIF: struct.pack("=I", LO), TABLE: struct.pack("=I", ROUTE_TABLE)}
    return dst_len == 0 and kind == LOCAL and wanted.items() <= attributes.items()


def _dump(family: int) -> Iterator[bytes]:
    """The routes, each as struct rtmsg and attributes. Nothing where there is no such table."""
    wanted = _ROUTE.pack(family, 0, 0, 0, ROUTE_TABLE, 0, 0, 0, 0)
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE) as sock:
        with suppress(OSError):
            sock.setsockopt(SOL_NETLINK, STRICT_CHECK, 1)
        sock.settimeout(SECONDS)
        sock.sendto(netlink.request(GET_ROUTE, netlink.DUMP, wanted), (0, 0))
        while True:
            for message in netlink.messages(sock.recv(netlink.LONGEST)):
                if message.kind in (netlink.ERROR, netlink.DONE):
                    if message.error not in (0, errno.ENOENT):
                        raise OSError(message.error, "RTM_GETROUTE")
                    return
                if message.kind == NEW_ROUTE:
                    yield message.body
