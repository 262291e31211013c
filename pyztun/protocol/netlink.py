"""The frame of netlink messages, netlink(7): what is the same whatever the family.

Numbers are in the byte order of the machine. Lengths come from the kernel; none is trusted beyond
the bytes that are there.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300  # NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP
ERROR, DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
LONGEST: Final = 65536
"""Bytes of a datagram that recv() asks for; the kernel makes none that is longer."""

_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct nlattr: length, type
_CODE: Final = struct.Struct("=i")  # struct nlmsgerr begins with it, and so does NLMSG_DONE


class Message(NamedTuple):
    """One of a datagram.

    :ivar start: where it begins there, header and all.
    """

    kind: int
    body: bytes
    start: int

    @property
    def error(self) -> int:
        """The errno that an ERROR or DONE brings; 0: none, it is an ACK or the end."""
        return -_CODE.unpack_from(self.body)[0] if len(self.body) >= _CODE.size else 0


def request(kind: int, flags: int, body: bytes) -> bytes:
    """A message to the kernel; REQUEST is set anyway."""
    return _HEADER.pack(_HEADER.size + len(body), kind, flags | REQUEST, 1, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """An attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def messages(datagram: bytes) -> Iterator[Message]:
    """The messages of a datagram."""
    start = 0
    while start + _HEADER.size <= len(datagram):
        length, kind, *_ = _HEADER.unpack_from(datagram, start)
        yield Message(kind, datagram[start + _HEADER.size : start + length], start)
        start += _padded(length, _HEADER)


def attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each attribute, from where they begin."""
    start = 0
    while start + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, start)
        yield kind, body[start + _ATTRIBUTE.size : start + length]
        start += _padded(length, _ATTRIBUTE)


def _padded(length: int, header: struct.Struct) -> int:
    """Never nothing, or a length of zero would be read for ever."""
    return max(header.size, (length + 3) & ~3)
