"""The settings of pyztun-ztunnel: one immutable object, parsed once from the command line."""

from __future__ import annotations

import argparse
import grp
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyztun import __version__, native
from pyztun.addresses import listener_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_PORTS = (15008, 15006, 15001)
"""HBONE inbound, plaintext inbound, outbound: what Istio's ztunnel listens on in every pod."""

MAX_WORKLOADS = 100_000
MAX_NUMBER_DIGITS = 10
MAX_ID = 2**32 - 2
"""Of uids and gids; 2**32 - 1 means nobody to the kernel."""
PERMISSION_BITS = 0o777
DEADLINE = 5.0
"""Seconds for a whole request, and for a connection of the responder."""

EPILOG = """\
The socket speaks the one-byte "seed form": a byte 0x01 with the fd of a netns makes the listeners
in it, 0x02 with an fd or 0x03 with a cookie lets go of it, 0x04 lists (docs/protocol.md). Needs
CAP_SYS_ADMIN in the user namespaces of the pods and of itself, and CAP_NET_BIND_SERVICE for ports
below 1024. Raises its soft RLIMIT_NOFILE to the hard limit. Prints `listeners ready` on stdout
for each new netns; the log goes to stderr.

SIGTERM, SIGINT and SIGHUP drain: requests and connections that are queued are answered, then it
exits with 0; a second signal ends it at once. READY=1 and STOPPING=1 go to NOTIFY_SOCKET.

examples:
  pyztun-ztunnel /tmp/zt.sock
  pyztun-ztunnel --listen 0.0.0.0:15006 --listen '[::]:15006' --mode 0660 --group zt /run/zt/zt.sock
  setpriv --reuid=zt --regid=zt --clear-groups --inh-caps=-all,+sys_admin \\
      --ambient-caps=-all,+sys_admin --bounding-set=-all,+sys_admin pyztun-ztunnel /run/zt/zt.sock
"""


@dataclass(frozen=True)
class Settings:
    """What one process of pyztun-ztunnel was asked to do.

    :ivar socket: path of the Unix socket.
    :ivar listeners: what is made in each pod.
    :ivar mode: permission bits of the socket file.
    :ivar group: gid of the socket file, or None for our own.
    :ivar uids: who may ask, beside root and ourselves.
    :ivar allow_home: take our own netns as a workload.
    :ivar max_peers: connections to the socket at a time.
    :ivar max_workloads: upper limit, beside the one that RLIMIT_NOFILE sets.
    """

    socket: str
    listeners: tuple[native.ListenerSpec, ...]
    mode: int
    group: int | None
    uids: tuple[int, ...]
    allow_home: bool
    max_peers: int
    max_workloads: int
    log_format: str


def parse(words: Sequence[str] | None = None) -> Settings:
    """Reads the command line; ends the process with status 2 when it makes no sense."""
    parser = _parser()
    asked = parser.parse_args(words)
    addresses = asked.listen or [("127.0.0.1", port) for port in DEFAULT_PORTS]
    if not asked.socket:
        parser.error("SOCKET is empty")
    if len(set(addresses)) < len(addresses):
        parser.error("the same --listen twice: the second could never be made")
    if len(addresses) > native.MAX_LISTENERS:
        parser.error(f"at most {native.MAX_LISTENERS} listeners a pod")
    flags = native.REUSEADDR | native.V6ONLY | native.NONBLOCK
    return Settings(
        socket=asked.socket,
        listeners=tuple(
            listener_spec(host, port, backlog=asked.backlog, flags=flags)
            for host, port in addresses
        ),
        mode=asked.mode,
        group=asked.group,
        uids=tuple(asked.allow_uid),
        allow_home=asked.allow_home,
        max_peers=asked.max_peers,
        max_workloads=asked.max_workloads,
        log_format=asked.log_format,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyztun-ztunnel",
        description="Takes netns fds over a Unix socket and makes listeners in each pod.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    many: dict[str, Any] = {"action": "append", "default": []}
    # fmt: off
    add("socket", metavar="SOCKET", help="path of the Unix socket to listen on")
    add("--listen", metavar="ADDR:PORT", type=address, **many,
        help="a listener in each pod; repeatable (default 127.0.0.1:15008, :15006, :15001)")
    add("--backlog", metavar="N", type=_Number(1, 2**31 - 1), default=4096,
        help="of each listener (default 4096)")
    add("--mode", metavar="OCTAL", type=_mode, default=0o600,
        help="permissions of the socket file (default 0600)")
    add("--group", metavar="GROUP", type=_group, help="of the socket file, by name or number")
    add("--allow-uid", metavar="UID", type=_Number(0, MAX_ID), **many,
        help="a uid that may ask beside root and our own; repeatable")
    add("--allow-home", action="store_true",
        help="accept our own netns, and the initial one, as a workload")
    add("--max-peers", metavar="N", type=_Number(1, 65536), default=1024,
        help="connections to the socket at a time (default 1024)")
    add("--max-workloads", metavar="N", type=_Number(1, MAX_WORKLOADS), default=MAX_WORKLOADS,
        help="netns held at a time (default: what RLIMIT_NOFILE allows)")
    add("--log-format", choices=("human", "json"), default="human",
        help="of the log on stderr (default human)")
    add("--version", action="version", version=f"pyztun-ztunnel {__version__}")
    # fmt: on
    return parser


def address(text: str) -> tuple[str, int]:
    """Reads ``ADDR:PORT`` or ``[ADDR6]:PORT``; argparse.ArgumentTypeError otherwise."""
    host, colon, digits = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not digits.isascii() or not digits.isdigit() or (":" in host) != bracketed:
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDR:PORT or [ADDR6]:PORT")
    host, port = host.strip("[]") if bracketed else host, int(digits)
    try:
        listener_spec(host, port, backlog=1, flags=0)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if port == 0:
        raise argparse.ArgumentTypeError("port 0 would be another port in each pod")
    return host, port


class _Number:
    """A type for argparse: a decimal number within bounds."""

    def __init__(self, low: int, high: int) -> None:
        self._low, self._high = low, high

    def __call__(self, text: str) -> int:
        # The length first: int() refuses thousands of digits with another error.
        short = text.isascii() and text.isdigit() and len(text) <= MAX_NUMBER_DIGITS
        if not (short and self._low <= int(text) <= self._high):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a number in {self._low}..{self._high}"
            )
        return int(text)


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if mode & ~PERMISSION_BITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not an octal mode such as 0660")
    return mode


def _group(text: str) -> int:
    if text.isascii() and text.isdigit():
        return _Number(0, MAX_ID)(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise argparse.ArgumentTypeError(f"there is no group {text!r}") from None
