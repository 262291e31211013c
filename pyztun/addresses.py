"""Addresses as users write them: IP literals for a netns, names resolved before anyone goes there.

An interface name behind ``%`` would mean one interface here and another in the pod, so a scope is
always the number of the interface in the pod.
"""

from __future__ import annotations

import socket
import struct
from functools import lru_cache

from pyztun import native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pyztun.types import Address, Resolved

FAMILIES = (socket.AF_INET, socket.AF_INET6)
MAX_DIGITS = 10
MAX_MARK = MAX_SCOPE = 2**32 - 1
MAX_BACKLOG = 2**31 - 1


def listener_spec(
    host: str, port: int, *, backlog: int, flags: int, mark: int = 0, scope_id: int = 0
) -> native.ListenerSpec:
    """A ListenerSpec for an IP literal, IPv6 with an optional ``%ifindex``.

    ValueError otherwise.
    """
    literal = _parse(host)
    if literal is None:
        raise ValueError(
            f"{host!r} is not an IP address (a name is resolved by the caller, at home)"
        )
    _, packed, scope = literal
    return native.ListenerSpec(
        host, packed, port, backlog=backlog, flags=flags, mark=mark, scope_id=scope or scope_id
    )


def listen_plan(
    addresses: Iterable[Address], *, backlog: int, flags: int, mark: int
) -> native.ListenPlan:
    """What NetNs.listen() is asked for. ValueError for anything that is no (IP literal, port)."""
    if not -1 <= backlog <= MAX_BACKLOG:
        raise ValueError(f"backlog {backlog} is not in -1..{MAX_BACKLOG}")
    return _plan(tuple(map(checked, addresses)), backlog, flags, checked_mark(mark))


@lru_cache(maxsize=256)  # parsing costs more than the socket; a service asks for the same again
def _plan(addresses: tuple[Address, ...], backlog: int, flags: int, mark: int) -> native.ListenPlan:
    return native.ListenPlan(
        listener_spec(
            address[0],
            address[1],
            backlog=backlog,
            flags=flags,
            mark=mark,
            scope_id=_scope(address),
        )
        for address in addresses
    )


def checked(address: Address) -> Address:
    """The address, if it has the form of one."""
    if not isinstance(address, tuple) or len(address) not in (2, 4):
        raise ValueError(f"{address!r} is not a (host, port) pair, such as ('127.0.0.1', 80)")
    if not isinstance(address[0], str) or not isinstance(address[1], int):
        raise TypeError(f"{address!r}: host is a str, port an int")
    if not 0 <= address[1] <= native.MAX_PORT:
        raise ValueError(f"port {address[1]} is not in 0..{native.MAX_PORT}")
    if not 0 <= _scope(address) <= MAX_SCOPE:
        raise ValueError(f"scope {_scope(address)} is not the number of an interface")
    return address


def checked_mark(mark: int) -> int:
    """The mark, if it is one: 32 bits, 0 for none."""
    if not 0 <= mark <= MAX_MARK:
        raise ValueError(f"mark {mark} is not in 0..{MAX_MARK}")
    return mark


def packed_mark(mark: int) -> bytes:
    """The argument of SO_MARK; socket.setsockopt() takes no int beyond 31 bits."""
    return struct.pack("=I", checked_mark(mark))


def literal(address: Address) -> Resolved | None:
    """The family of an address whose host is an IP literal; None: it is a name."""
    parsed = _parse(checked(address)[0])
    if parsed is None:
        if "%" in address[0]:
            raise ValueError(f"{address[0]!r} is not an IP address ({_why_not(address[0])})")
        return None
    family, _, scope = parsed
    host = address[0].partition("%")[0]
    if family == socket.AF_INET:
        return family, (host, address[1])
    return family, (host, address[1], 0, scope or _scope(address))


def resolve(address: Address) -> list[Resolved]:
    """The TCP addresses of a host; a name is looked up here, in the netns of the caller.

    Blocks as getaddrinfo(3) does. socket.gaierror.
    """
    known = literal(address)
    if known is not None:
        return [known]
    host, port = address[0], address[1]
    return in_order(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))


def in_order(found: Sequence[tuple[int, int, int, str, tuple[object, ...]]]) -> list[Resolved]:
    """What getaddrinfo() found, each IP address once."""
    known: dict[Resolved, None] = {}  # a dict, since it keeps the order
    for family, _, _, _, address in found:
        if family in FAMILIES:
            known[family, address] = None  # type: ignore[index]  # its type depends on the family
    if not known:
        raise socket.gaierror(socket.EAI_NONAME, "no IPv4 or IPv6 address")
    return list(known)


def of_family(targets: list[Resolved], source: Resolved | None) -> list[Resolved]:
    """The targets that can be reached from the source address. ValueError if there is none."""
    if source is None:
        return targets
    fitting = [target for target in targets if target[0] == source[0]]
    if targets and not fitting:
        raise ValueError(f"{source[1][0]} and {targets[0][1][0]} are of different families")
    return fitting


def shown(address: Address) -> str:
    """``10.0.0.1:80`` or ``[fd00::1]:80``."""
    host = address[0]
    return f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"


def _why_not(host: str) -> str:
    if host == "":
        return "'0.0.0.0' and '::' are all interfaces"
    if "%" in host:
        return "behind % stands the number of an interface in the pod"
    return "a name is resolved by the caller, at home"


def _parse(host: str) -> tuple[int, bytes, int] | None:
    """Family, packed bytes and scope of an IP literal; None for anything else."""
    text, percent, scope = host.partition("%")
    for family in FAMILIES:
        try:
            packed = socket.inet_pton(family, text)
        except (OSError, ValueError):
            continue
        if not percent:
            return family, packed, 0
        if family == socket.AF_INET6 and _is_ifindex(scope):
            return family, packed, int(scope)
        return None
    return None


def _scope(address: Address) -> int:
    return address[3] if len(address) == 4 else 0  # noqa: PLR2004 (an IPv6 address of the socket API)


def _is_ifindex(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS and int(text) < 2**31
