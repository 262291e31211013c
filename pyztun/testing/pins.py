"""Which descriptors of this process hold which netns: nsfs files, and sockets in another netns."""

from __future__ import annotations

import gc
import socket
import warnings

import pyztun
from pyztun.netns import NetNs
from pyztun.testing.process import open_fds


class NetnsHeldWarning(UserWarning):
    """After a test something still holds the netns of the ``netns`` fixture, which lives on."""


def netns_of(fd: int, target: str) -> NetNs | None:
    """The netns that an fd of this process holds: it is one, or a socket in one; else None.

    None also where SIOCGSKNS is refused for want of CAP_NET_ADMIN over the netns of the socket.

    :param target: the link /proc/self/fd/N. It decides only whether to ask for a socket's netns:
        a netns opened through /run/netns/NAME reads as that path.
    :returns: the caller closes it.
    """
    try:
        return pyztun.socket_netns(fd) if target.startswith("socket:[") else NetNs.from_fd(fd)
    except OSError:
        return None


def describe(fd: int, target: str) -> str:
    """One phrase for a person who looks for the line that opened this fd."""
    notes = [_socket_note(fd)] if target.startswith("socket:[") else []
    held = netns_of(fd, target)
    if held is not None:
        with held, NetNs.current() as here:
            if target.startswith("net:["):
                notes.append("a netns")
            elif not target.startswith("socket:["):
                notes.append(f"netns {held.inode}")
            elif not held.is_same(here):
                notes.append(f"in netns {held.inode}")
    text = ", ".join(note for note in notes if note)
    return f"fd {fd} -> {target}" + (f" ({text})" if text else "")


def holders(netns: NetNs) -> list[str]:
    """The descriptors of this process that hold ``netns``, other than its own; described.

    Empty for a netns that is closed already: then nobody can tell.
    """
    found = []
    try:
        own = netns.fileno()
    except OSError:
        return []
    for fd, target in sorted(open_fds().items()):
        held = netns_of(fd, target) if fd != own else None
        if held is None:
            continue
        with held:
            if held.is_same(netns):
                found.append(describe(fd, target))
    return found


def warn_of_holders(*pods: NetNs) -> None:
    """A NetnsHeldWarning for each that will live on, after what only a cycle held is collected."""
    if any(map(holders, pods)):
        gc.collect()
    for netns in pods:
        if held := holders(netns):
            text = f"netns {netns.inode} lives on after the test, held by {'; '.join(held)}"
            warnings.warn(text, NetnsHeldWarning, stacklevel=2)


def _socket_note(fd: int) -> str:
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        return ""
    try:
        kind = getattr(sock.type, "name", str(sock.type))
        family = getattr(sock.family, "name", str(sock.family))
        return f"{family} {kind} {_address(sock)}".rstrip()
    finally:
        sock.detach()


def _address(sock: socket.socket) -> str:
    try:
        address = sock.getsockname()
    except OSError:
        return ""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        host, port = address[:2]
        return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"
    return repr(address) if address else ""
