"""Sockets in a netns for those who need one and have nothing else to do with the netns."""

from __future__ import annotations

from pyztun import native
from pyztun.netns import NetNs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket as Socket

    from typing_extensions import Unpack

    from pyztun.types import Address, Descriptor, ListenOptions, Reference


def listen(address: Address, *, netns: Reference, **options: Unpack[ListenOptions]) -> Socket:
    """One listener, or bound UDP socket, in a netns.

    :param address: (IP literal, port).
    :param netns: a NetNs, a path, a name, ``pid:N``, ``fd:N`` or an fd; borrowed. The socket alone
        keeps the netns alive afterwards.
    :param options: those of :meth:`NetNs.listen`, which also tells the errors.
    :returns: a plain blocking socket.socket that the caller owns: its fileno() is what uvicorn
        (``--fd``), gunicorn and others take.
    """
    with NetNs.of(netns) as pod:
        (made,) = pod.listen(address, **options)
    return made


def connect(
    address: Address,
    *,
    netns: Reference,
    timeout: float | None = None,
    source: Address | None = None,
    mark: int = 0,
) -> Socket:
    """A TCP connection out of a netns; see :meth:`NetNs.connect`. The reference is borrowed."""
    with NetNs.of(netns) as pod:
        return pod.connect(address, timeout, source, mark)


def socket_netns(sock: Descriptor) -> NetNs:
    """Opens the netns to which a socket belongs, also one that nothing else names any more.

    :param sock: a socket of any family, or its fd; borrowed.
    :raises MissingCapability: SIOCGSKNS (Linux 4.10) needs CAP_NET_ADMIN over that netns.
    :raises SyscallError: ENOTSOCK; nothing is asked of an fd that is no socket.
    """
    number = sock if isinstance(sock, int) else sock.fileno()
    reference = f"of socket fd {number}"
    return NetNs(native.socket_netns(number, reference), reference)
