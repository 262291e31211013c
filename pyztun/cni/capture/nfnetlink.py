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
from pyztun.protocol import netlink

NETLINK_NETFILTER: Final = 12
NFTABLES_GROUP: Final = 1 << 6
"""NFNLGRP_NFTABLES, as bind() takes it."""

CT_DELETE: Final = 0x0102  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
GET_GENERATION, NEW_GENERATION = 0x0A10, 0x0A0F  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN, NEWGEN
GENERATION_ID: Final = 1  # NFTA_GEN_ID

ANY_FAMILY: Final = socket.AF_UNSPEC
SECONDS: Final = 5.0

_FAMILY: Final = struct.Struct(">BBH")  # struct nfgenmsg
_MARK, _MARK_MASK = 8, 21  # CTA_MARK, CTA_MARK_MASK
_UNMARKED: Final = b"".join(
    netlink.attribute(kind, struct.pack(">I", value))
    for kind, value in ((_MARK, 0), (_MARK_MASK, MASK))
)
"""Of CT_DELETE: what has no mark of ours."""


def generation() -> int:
    """The generation id of nftables in the netns of the calling thread. SyscallError."""
    answer = _ask(GET_GENERATION, 0, ANY_FAMILY, "netlink(NFT_MSG_GETGEN)")
    found = dict(netlink.attributes(answer.body[_FAMILY.size :]))
    if answer.kind != NEW_GENERATION or GENERATION_ID not in found:
        raise explain(errno.EPROTO, "netlink(NFT_MSG_GETGEN)", "nftables")
    return int.from_bytes(found[GENERATION_ID], "big")


def flush_conntrack(family: int = ANY_FAMILY) -> None:
    """Forgets the connections of the netns of the calling thread, or those of one family.

    Those with a mark of ours are spared: ztunnel carries them, and an entry that was made anew by
    a packet of theirs would not translate it. A stranger's with a mark there meets the guards.

    :raises SyscallError: EPERM: CAP_NET_ADMIN; ENOTSUP, EINVAL: no conntrack in this kernel.
    """
    _ask(CT_DELETE, netlink.ACK, family, "netlink(IPCTNL_MSG_CT_DELETE)", _UNMARKED)


def _ask(
    kind: int, flags: int, family: int, syscall: str, attributes: bytes = b""
) -> netlink.Message:
    """Sends one request and returns type and body of its answer; an error is raised."""
    # The family is heeded in version 1 alone: ctnetlink_del_conntrack().
    body = _FAMILY.pack(family, 0 if family == ANY_FAMILY else 1, 0) + attributes
    try:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
        ) as sock:
            sock.settimeout(SECONDS)
            sock.sendto(netlink.request(kind, flags, body), (0, 0))
            (answer,) = netlink.messages(sock.recv(netlink.LONGEST))
    except OSError as error:
        raise _explained(error, syscall) from error
    if answer.kind == netlink.ERROR and answer.error:
        raise explain(answer.error, syscall, "pod", _hint(answer.error))
    return answer


def _explained(error: OSError, syscall: str) -> SyscallError:
    return explain(error.errno or errno.ETIMEDOUT, syscall, "pod", _hint(error.errno or 0))


def _hint(number: int) -> str:
    if number in (errno.EPERM, errno.EACCES):
        return "needs CAP_NET_ADMIN over the pod"
    if number in (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
        return f"this kernel ({os.uname().release}) lacks nf_tables or nf_conntrack_netlink"
    return ""
