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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

LOCAL: Final = 2  # RTN_LOCAL

SOL_NETLINK, STRICT_CHECK = 270, 12  # NETLINK_GET_STRICT_CHK
GET_ROUTE, NEW_ROUTE = 26, 24
REQUEST_DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
ERROR, DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
OIF, TABLE = 4, 15  # RTA_OIF, RTA_TABLE
LONGEST: Final = 65536
SECONDS: Final = 5.0

_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct rtattr


def is_there(family: int) -> bool:
    """Whether table 100 has `local default dev lo`, in the netns of the calling thread. OSError."""
    return any(_is_ours(message) for message in _dump(family))


def _is_ours(message: bytes) -> bool:
    _family, dst_len, _src_len, _tos, _table, _protocol, _scope, kind, _flags = _ROUTE.unpack_from(
        message
    )
    attributes = dict(_attributes(message[_ROUTE.size :]))
    wanted = {OIF: struct.pack("=I", LO), TABLE: struct.pack("=I", ROUTE_TABLE)}
    return dst_len == 0 and kind == LOCAL and wanted.items() <= attributes.items()


def _attributes(rest: bytes) -> Iterator[tuple[int, bytes]]:
    while len(rest) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(rest)
        yield kind, rest[_ATTRIBUTE.size : length]
        rest = rest[max(_ATTRIBUTE.size, (length + 3) & ~3) :]


def _dump(family: int) -> Iterator[bytes]:
    """The routes, each as struct rtmsg and attributes. Nothing where there is no such table."""
    request = _ROUTE.pack(family, 0, 0, 0, ROUTE_TABLE, 0, 0, 0, 0)
    header = _HEADER.pack(_HEADER.size + len(request), GET_ROUTE, REQUEST_DUMP, 1, 0)
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE) as sock:
        with suppress(OSError):
            sock.setsockopt(SOL_NETLINK, STRICT_CHECK, 1)
        sock.settimeout(SECONDS)
        sock.sendto(header + request, (0, 0))
        while True:
            for kind, body in _messages(sock.recv(LONGEST)):
                if kind in (ERROR, DONE):
                    _raise_unless_absent(body)
                    return
                if kind == NEW_ROUTE:
                    yield body


def _messages(rest: bytes) -> Iterator[tuple[int, bytes]]:
    while len(rest) >= _HEADER.size:
        length, kind, _flags, _number, _pid = _HEADER.unpack_from(rest)
        yield kind, rest[_HEADER.size : length]
        rest = rest[max(_HEADER.size, (length + 3) & ~3) :]


def _raise_unless_absent(body: bytes) -> None:
    (code,) = struct.unpack_from("=i", body) if len(body) >= 4 else (0,)  # noqa: PLR2004
    if code not in (0, -errno.ENOENT):
        raise OSError(-code, "RTM_GETROUTE")
