"""What listens in a netns, asked over NETLINK_SOCK_DIAG, as ss(8) does.

The kernel answers for the netns of the netlink socket, so a socket made there is asked from here
and nobody moves. Requests and answers are pyroute2's classes; its own DiagSocket, which brings an
event loop along, would make its socket at home. The state is filtered by the kernel.
"""

from __future__ import annotations

import errno
import functools
import socket
from typing import TYPE_CHECKING, NamedTuple

from pyztun.errors import SyscallError, name_of
from pyztun.protocol import netlink

if TYPE_CHECKING:
    from collections.abc import Iterator

NETLINK_SOCK_DIAG = 4
PATIENCE = 5.0  # seconds; the kernel answers within the call


class Place(NamedTuple):
    """Where a socket listens.

    :ivar interface: the index of the interface to which it is bound, 0 for none.
    """

    proto: str
    port: int
    address: str
    interface: int


class Listening(NamedTuple):
    """A TCP listener, or a UDP socket that is bound and not connected.

    :ivar inode: of the socket, as in its link ``socket:[INODE]``.
    """

    place: Place
    inode: int


def listening(diag: socket.socket) -> list[Listening]:
    """All of the netns to which ``diag``, a NETLINK_SOCK_DIAG socket, belongs. SyscallError."""
    diag.settimeout(PATIENCE)
    return [each for proto, request in _requests() for each in _ask(diag, proto, request)]


@functools.cache
def _requests() -> list[tuple[str, bytes]]:
    """(protocol, message) for TCP and UDP over IPv4 and IPv6; the same bytes for every netns."""
    from pyroute2.netlink import diag  # type: ignore[import-untyped]

    # An unconnected UDP socket is in the state CLOSE, a connected one in ESTABLISHED.
    wanted = {
        "tcp": (socket.IPPROTO_TCP, 1 << diag.SS_LISTEN),
        "udp": (socket.IPPROTO_UDP, 1 << diag.SS_CLOSE),
    }
    made = []
    for proto, (number, states) in wanted.items():
        for family in (socket.AF_INET, socket.AF_INET6):
            request = diag.inet_diag_req()
            request["sdiag_family"], request["sdiag_protocol"] = family, number
            request["idiag_states"] = states
            request["header"]["type"] = diag.SOCK_DIAG_BY_FAMILY
            request["header"]["flags"] = diag.NLM_F_REQUEST | diag.NLM_F_ROOT | diag.NLM_F_MATCH
            request.encode()
            made.append((proto, bytes(request.data)))
    return made


def _ask(diag: socket.socket, proto: str, request: bytes) -> Iterator[Listening]:
    try:
        diag.send(request)
        while True:
            datagram = diag.recv(netlink.LONGEST)
            for message in netlink.messages(datagram):
                if message.kind == netlink.DONE:
                    return
                if message.kind == netlink.ERROR:
                    raise _refused(message.error, proto)
                yield _decode(proto, datagram, message.start)
    except TimeoutError as error:
        raise SyscallError(errno.ETIMEDOUT, f"sock_diag {proto}: no answer") from error


def _refused(number: int, proto: str) -> SyscallError:
    # It is a module, which the kernel loads for root when it is asked for the first time.
    hint = f" (the kernel has no {proto}_diag)" if number == errno.ENOENT else ""
    return SyscallError(number, f"sock_diag {proto}: {name_of(number)}{hint}")


def _decode(proto: str, datagram: bytes, start: int) -> Listening:
    from pyroute2.netlink.diag import inet_diag_msg  # type: ignore[import-untyped]

    message = inet_diag_msg(datagram, start)
    message.decode()
    place = Place(proto, message["idiag_sport"], message["idiag_src"], message["idiag_if"])
    return Listening(place, message["idiag_inode"])
