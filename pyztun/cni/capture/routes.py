"""The routes of a captured pod: `ip rule fwmark 0x111/0xfff lookup 100`, table 100 to lo.

What the application answers to ztunnel is addressed to the client, whose address ztunnel used. The
rules give it a mark, and here the mark takes it to lo, where ztunnel's transparent socket waits.

All functions work in the netns of the calling thread, which they never move.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from typing import Final, NamedTuple

from pyztun.cni.capture import routetable
from pyztun.cni.capture.rules import FLOW_MARK, LO, MASK, ROUTE_TABLE, RULE_PRIORITY
from pyztun.errors import explain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAMES: Final[dict[int, str]] = {socket.AF_INET: "ipv4 routes", socket.AF_INET6: "ipv6 routes"}
_DEFAULT: Final[dict[int, str]] = {socket.AF_INET: "0.0.0.0/0", socket.AF_INET6: "::/0"}

LO_DOWN: Final = "lo is down in the pod, and without it there is no way to the application"

GET_FLAGS, IFF_UP = 0x8913, 0x1  # SIOCGIFFLAGS
_FLAGS: Final = struct.Struct("16sH22x")  # struct ifreq

TO_TABLE: Final = 1  # FR_ACT_TO_TBL
HOST: Final = 254  # RT_SCOPE_HOST
UNIVERSE: Final = 0  # RT_SCOPE_UNIVERSE, the only one of IPv6

_RULE: Final = {
    "FRA_TABLE": ROUTE_TABLE,
    "FRA_PRIORITY": RULE_PRIORITY,
    "FRA_FWMARK": FLOW_MARK,
    "FRA_FWMASK": MASK,
    "FRA_SUPPRESS_PREFIXLEN": 0xFFFFFFFF,  # none
}
_OF_NO_CONCERN: Final = {"FRA_PROTOCOL"}

_NO_FAMILY: Final = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EPFNOSUPPORT)
"""A kernel without IPv6, or one that was started with ipv6.disable=1."""
_DISABLED: Final = errno.EACCES
"""IPv6 is off on lo: ip6_route_info_create() says EACCES, also to root."""


class Routes(NamedTuple):
    """What put() did.

    :ivar written: the families of which something was missing and is there now.
    :ivar without: the families that cannot be had now.
    :ivar trouble: why not, unless IPv6 is merely off in the pod; "" if all is well.
    """

    written: tuple[int, ...]
    without: tuple[int, ...]
    trouble: str


def put() -> Routes:
    """Puts rule and route of both families where they are missing. Raises nothing."""
    written, without, trouble = [], [], ""
    try:
        if not _lo_is_up():
            trouble = LO_DOWN
        with _routes() as ip:
            for family in NAMES:
                try:
                    if _put_family(ip, family):
                        written.append(family)
                except Exception as error:
                    without.append(family)
                    trouble = trouble or _trouble_with(family, error)
    except Exception as error:  # what pyroute2 comes up with where it cannot work at all
        without = [family for family in NAMES if family not in written]
        trouble = f"{type(error).__name__}: {error}"
    return Routes(tuple(written), tuple(without), trouble)


def _trouble_with(family: int, error: Exception) -> str:
    number = _errno_of(error)
    if family == socket.AF_INET6 and number in (*_NO_FAMILY, _DISABLED):
        return ""
    if number is None:
        return f"{NAMES[family]}: {type(error).__name__}: {error}"
    return str(explain(number, "netlink(RTM_NEWROUTE)", NAMES[family]))


def remove() -> tuple[int, ...]:
    """Removes rule and route of both families; returns those that had one. SyscallError."""
    removed = []
    with _routes() as ip:
        for family in NAMES:
            try:
                if _remove_family(ip, family):
                    removed.append(family)
            except Exception as error:
                number = _errno_of(error)
                if number is None:
                    raise
                if number not in _NO_FAMILY:
                    raise explain(number, "netlink(RTM_DELROUTE)", NAMES[family]) from error
    return tuple(removed)


def _routes() -> Any:
    """A pyroute2 IPRoute on a socket that is made here, whatever pyroute2 does with threads."""
    from pyroute2 import IPRoute  # type: ignore[import-untyped]

    # SOCK_DGRAM, which netlink does not tell from SOCK_RAW: asyncio insists on it.
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    sock = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
    try:
        routes = IPRoute(fileno=sock.fileno())
    except BaseException:
        sock.close()
        raise
    sock.detach()
    return routes


def _lo_is_up() -> bool:
    """The kernel takes the routes of lo away when it goes down, and brings none back."""
    name = socket.if_indextoname(LO).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        answer = fcntl.ioctl(sock, GET_FLAGS, _FLAGS.pack(name, 0))
    return bool(_FLAGS.unpack(answer)[1] & IFF_UP)


def _errno_of(error: Exception) -> int | None:
    """The errno of what Python or pyroute2 raised for the kernel; None: it is something else."""
    number = getattr(error, "code", None) or getattr(error, "errno", None)
    return number if isinstance(number, int) else None


def _put_family(ip: Any, family: int) -> bool:
    """Whether anything was missing. The route first: a rule that leads nowhere is of no use."""
    written = False
    if not routetable.is_there(family):
        ip.route("replace", **_route(family))
        written = True
    if not any(_is_our_rule(rule) for rule in ip.get_rules(family=family)):
        try:
            ip.rule("add", **_rule(family))
            written = True
        except Exception as error:
            if _errno_of(error) != errno.EEXIST:
                raise
    return written


def _remove_family(ip: Any, family: int) -> bool:
    removed = False
    for _ in [rule for rule in ip.get_rules(family=family) if _is_our_rule(rule)]:
        removed |= _delete(ip.rule, _rule(family))
    if routetable.is_there(family):
        removed |= _delete(ip.route, _route(family))
    return removed


def _delete(call: Any, what: dict[str, Any]) -> bool:
    try:
        call("del", **what)
    except Exception as error:
        if _errno_of(error) not in (errno.ENOENT, errno.ESRCH):
            raise
        return False
    return True


def _rule(family: int) -> dict[str, Any]:
    return {
        "family": family,
        "priority": RULE_PRIORITY,
        "fwmark": FLOW_MARK,
        "fwmask": MASK,
        "table": ROUTE_TABLE,
    }


def _route(family: int) -> dict[str, Any]:
    return {
        "family": family,
        "dst": _DEFAULT[family],
        "type": "local",
        "scope": HOST if family == socket.AF_INET else UNIVERSE,
        "oif": LO,
        "table": ROUTE_TABLE,
    }


def _is_our_rule(rule: Any) -> bool:
    """Whether a rule is ours; what else it may ask for is an attribute or a field more."""
    attributes = dict(rule["attrs"])
    for name in _OF_NO_CONCERN:
        attributes.pop(name, None)
    plain = not (rule["src_len"] or rule["dst_len"] or rule["tos"] or rule["flags"])
    return plain and rule["action"] == TO_TABLE and attributes == _RULE
