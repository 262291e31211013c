"""nfnetlink: the two requests to netfilter that are ours, by hand.

The generation id of nftables counts the commits of a netns: while it stays the same, no rule of
anybody has changed. It costs microseconds, a listing a millisecond. And the flush of conntrack.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final

from pyztun.cni.capture.rules import MASK
from pyztun.errors import SyscallError, explain

NETLINK_NETFILTER: Final = 12
NFTABLES_GROUP: Final = 1 << 6
"""NFNLGRP_NFTABLES, as bind() takes it."""

REQUEST, ACK = 0x1, 0x4  # NLM_F_REQUEST, NLM_F_ACK
ERROR: Final = 2  # NLMSG_ERROR
CT_DELETE: Final = 0x0102  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
GET_GENERATION, NEW_GENERATION = 0x0A10, 0x0A0F  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN, NEWGEN
GENERATION_ID: Final = 1  # NFTA_GEN_ID

ANY_FAMILY: Final = socket.AF_UNSPEC
SECONDS: Final = 5.0

_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_FAMILY: Final = struct.Struct(">BBH")  # struct nfgenmsg
_MARK, _MARK_MASK = 8, 21  # CTA_MARK, CTA_MARK_MASK
_UNMARKED: Final = b"".join(
    struct.pack("=HH", 8, attribute) + struct.pack(">I", value)
    for attribute, value in ((_MARK, 0), (_MARK_MASK, MASK))
)
"""Of CT_DELETE: what has no mark of ours."""


def generation() -> int:
    """The generation id of nftables in the netns of the calling thread. SyscallError."""
    kind, body = _ask(GET_GENERATION, 0, ANY_FAMILY, "netlink(NFT_MSG_GETGEN)")
    length, attribute = struct.unpack_from("=HH", body, _FAMILY.size)
    if kind != NEW_GENERATION or attribute != GENERATION_ID or length != 8:  # noqa: PLR2004
        raise explain(errno.EPROTO, "netlink(NFT_MSG_GETGEN)", "nftables")
    (number,) = struct.unpack_from(">I", body, _FAMILY.size + 4)
    return int(number)


def flush_conntrack(family: int = ANY_FAMILY) -> None:
    """Forgets the connections of the netns of the calling thread, or those of one family.

    Those with a mark of ours are spared: ztunnel carries them, and an entry that was made anew by
    a packet of theirs would not translate it. A stranger's with a mark there meets the guards.

    :raises SyscallError: EPERM: CAP_NET_ADMIN; ENOTSUP, EINVAL: no conntrack in this kernel.
    """
    _ask(CT_DELETE, ACK, family, "netlink(IPCTNL_MSG_CT_DELETE)", _UNMARKED)


def _ask(
    kind: int, flags: int, family: int, syscall: str, attributes: bytes = b""
) -> tuple[int, bytes]:
    """Sends one request and returns type and body of its answer; an error is raised."""
    # The family is heeded in version 1 alone: ctnetlink_del_conntrack().
    body = _FAMILY.pack(family, 0 if family == ANY_FAMILY else 1, 0) + attributes
    message = _HEADER.pack(_HEADER.size + len(body), kind, flags | REQUEST, 1, 0) + body
    try:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
        ) as sock:
            sock.settimeout(SECONDS)
            sock.sendto(message, (0, 0))
            answer = sock.recv(4096)
    except OSError as error:
        raise _explained(error, syscall) from error
    _length, kind, _flags, _number, _pid = _HEADER.unpack_from(answer)
    if kind == ERROR:
        (code,) = struct.unpack_from("=i", answer, _HEADER.size)
        if code:
            raise explain(-code, syscall, "pod", _hint(-code))
    return kind, answer[_HEADER.size :]


def _explained(error: OSError, syscall: str) -> SyscallError:
    return explain(error.errno or errno.ETIMEDOUT, syscall, "pod", _hint(error.errno or 0))


def _hint(number: int) -> str:
    if number in (errno.EPERM, errno.EACCES):
        return "needs CAP_NET_ADMIN over the pod"
    if number in (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
        return f"this kernel ({os.uname().release}) lacks nf_tables or nf_conntrack_netlink"
    return ""
