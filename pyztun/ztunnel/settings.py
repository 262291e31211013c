"""The settings of pyztun-ztunnel: one immutable object, parsed once from the command line."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyztun import __version__, native
from pyztun.addresses import listener_spec
from pyztun.service.options import MAX_ID, Number, group, mode
from pyztun.ztunnel import relay_env

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEFAULT_PORTS = (15008, 15006, 15001)
"""HBONE inbound, plaintext inbound, outbound: what Istio's ztunnel listens on in every pod."""

MAX_WORKLOADS = 100_000
SEED_BACKLOG, ZDS_BACKLOG = 4096, 128
DEFAULT_MODE, DEFAULT_PEERS = 0o600, 1024
DEADLINE = 5.0
"""Seconds for a whole request, and for a connection of the responder."""

EPILOG = """\
Seed form (SOCKET): we listen on a Unix socket. A byte 0x01 with the fd of a netns makes the
listeners in it, 0x02 with an fd or 0x03 with a cookie lets go of it, 0x04 lists.
ZDS form (--zds SOCKET): we dial a node agent, Istio's or `pyztun-cni agent`, again and again until
there is one; it names the workloads. What runs goes on while there is no agent. Without SOCKET and
--zds the environment's INPOD_UDS is taken for --zds; INPOD_PORT_REUSE=false and IPV6_ENABLED=false
mean what they mean to Istio's ztunnel. docs/protocol.md and docs/zds.md describe
the two protocols.

Needs CAP_SYS_ADMIN in the user namespaces of the pods and of itself, CAP_NET_BIND_SERVICE for ports
below 1024, and for the mark and IP_TRANSPARENT of the ZDS form CAP_NET_ADMIN or CAP_NET_RAW; these
two are left out where it lacks both. Raises its soft RLIMIT_NOFILE to the hard limit. Prints
`listeners ready` on stdout for each new netns; the log goes to stderr.

SIGTERM, SIGINT and SIGHUP drain: connections that are queued are answered, then it exits with 0; a
second signal ends it at once. READY=1 and STOPPING=1 go to NOTIFY_SOCKET.

exit status: 0 ended by a signal, 1 could not start or was ended at once, 2 usage

examples:
  pyztun-ztunnel /tmp/zt.sock
  pyztun-ztunnel --listen 0.0.0.0:15006 --listen '[::]:15006' --mode 0660 --group zt /run/zt/zt.sock
  pyztun-ztunnel --zds /var/run/ztunnel/ztunnel.sock
  setpriv --reuid=zt --regid=zt --clear-groups --inh-caps=-all,+sys_admin \\
      --ambient-caps=-all,+sys_admin --bounding-set=-all,+sys_admin pyztun-ztunnel /run/zt/zt.sock
"""


@dataclass(frozen=True)
class SeedSettings:
    """The seed form.

    :ivar socket: path of the Unix socket on which we listen.
    :ivar listeners: what is made in each pod.
    :ivar mode: permission bits of the socket file.
    :ivar group: gid of the socket file, or None for our own.
    :ivar uids: who may ask, beside root and ourselves.
    :ivar allow_home: take our own netns as a workload.
    :ivar max_peers: connections to the socket at a time.
    """

    socket: str
    listeners: tuple[native.ListenerSpec, ...]
    mode: int
    group: int | None
    uids: tuple[int, ...]
    allow_home: bool
    max_peers: int


@dataclass(frozen=True)
class InPodSettings:
    """The listeners of a workload in the ZDS form.

    :ivar loopback: on 127.0.0.1 instead of the wildcard address.
    :ivar ipv6: the wildcard address is [::], which takes IPv4 too.
    :ivar reuse_port: SO_REUSEPORT, so that two ztunnels can serve a pod at once.
    :ivar marked: with SO_MARK, where the process may.
    :ivar socks5: also 127.0.0.1:15080.
    """

    ports: tuple[int, ...] = DEFAULT_PORTS
    loopback: bool = False
    ipv6: bool = True
    reuse_port: bool = True
    marked: bool = True
    socks5: bool = False
    backlog: int = 128

    @property
    def all_ports(self) -> tuple[int, ...]:
        """In the order in which they are made."""
        return (*self.ports, SOCKS5_PORT) if self.socks5 else self.ports

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.all_ports)


@dataclass(frozen=True)
class RelaySettings:
    """What is done with the connections of pods in the ZDS form.

    :ivar threads: of the relay.
    :ivar connect_timeout: seconds for a destination to answer.
    :ivar idle_timeout: seconds without a byte either way; 0: for ever.
    :ivar half_close_timeout: the same once one side said FIN.
    :ivar drain: seconds for open connections after SIGTERM.
    :ivar access_log: path, ``-`` for standard error; empty for none.
    """

    threads: int = 2
    connect_timeout: float = 10.0
    idle_timeout: float = 0.0
    half_close_timeout: float = 3600.0
    drain: float = 5.0
    access_log: str = "-"


@dataclass(frozen=True)
class ZdsSettings:
    """The ZDS form.

    :ivar socket: path of the agent's Unix socket, which we dial.
    :ivar agents: uids that the agent may have, beside root and our own.
    """

    socket: str
    agents: tuple[int, ...]
    inpod: InPodSettings
    relay: RelaySettings


@dataclass(frozen=True)
class Settings:
    """What one process of pyztun-ztunnel was asked to do.

    :ivar form: how workloads reach us.
    :ivar max_workloads: upper limit, beside the one that RLIMIT_NOFILE sets.
    """

    form: SeedSettings | ZdsSettings
    max_workloads: int
    log_format: str

    @property
    def drain(self) -> float:
        """Seconds that open connections have after SIGTERM."""
        return DEADLINE if isinstance(self.form, SeedSettings) else self.form.relay.drain


SOCKS5_PORT = 15080
MAX_SECONDS = 86400.0 * 365

SEED_ONLY = ("listen", "mode", "group", "allow_home", "max_peers")
ZDS_ONLY = (
    "bind",
    "socks5",
    "threads",
    "connect_timeout",
    "idle_timeout",
    "half_close_timeout",
    "drain",
    "access_log",
)


def parse(words: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Reads the command line; ends the process with status 2 when it makes no sense."""
    parser = _parser()
    asked = parser.parse_args(words)
    zds = asked.zds
    if asked.socket is None and zds is None:
        zds = environ.get("INPOD_UDS")
        if zds is None:
            parser.error("SOCKET or --zds SOCKET is missing (and INPOD_UDS is not set)")
    elif asked.socket is not None and zds is not None:
        parser.error("SOCKET and --zds exclude each other")
    if "" in (asked.socket, zds):
        parser.error("SOCKET is empty")
    if not asked.access_log:
        parser.error("--access-log is empty: off is none")
    for name in SEED_ONLY if zds is not None else ZDS_ONLY:
        if getattr(asked, name) != parser.get_default(name):
            where = "SOCKET, not with --zds" if zds is not None else "--zds"
            parser.error(f"--{name.replace('_', '-')} goes with {where}")
    form: SeedSettings | ZdsSettings
    form = _seed(parser, asked) if zds is None else _zds(parser, asked, zds, environ)
    return Settings(form, asked.max_workloads, asked.log_format)


def _seed(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> SeedSettings:
    addresses = asked.listen or [("127.0.0.1", port) for port in DEFAULT_PORTS]
    if len(set(addresses)) < len(addresses):
        parser.error("the same --listen twice: the second could never be made")
    if len(addresses) > native.MAX_LISTENERS:
        parser.error(f"at most {native.MAX_LISTENERS} listeners a pod")
    flags = native.REUSEADDR | native.V6ONLY | native.NONBLOCK
    backlog = SEED_BACKLOG if asked.backlog is None else asked.backlog
    return SeedSettings(
        socket=asked.socket,
        listeners=tuple(
            listener_spec(host, port, backlog=backlog, flags=flags) for host, port in addresses
        ),
        mode=DEFAULT_MODE if asked.mode is None else asked.mode,
        group=asked.group,
        uids=tuple(asked.allow_uid),
        allow_home=asked.allow_home,
        max_peers=DEFAULT_PEERS if asked.max_peers is None else asked.max_peers,
    )


def _zds(
    parser: argparse.ArgumentParser,
    asked: argparse.Namespace,
    path: str,
    environ: Mapping[str, str],
) -> ZdsSettings:
    def is_on(name: str) -> bool:
        value = environ.get(name, "true").lower()
        if value not in ("true", "false"):
            parser.error(f"{name}={value} is neither true nor false")
        return value == "true"

    inpod = InPodSettings(
        loopback=asked.bind == "loopback",
        ipv6=is_on("IPV6_ENABLED"),
        reuse_port=is_on("INPOD_PORT_REUSE"),
        socks5=asked.socks5,
        backlog=ZDS_BACKLOG if asked.backlog is None else asked.backlog,
    )
    relay = RelaySettings(
        threads=asked.threads or relay_env.threads(parser, environ),
        connect_timeout=asked.connect_timeout,
        idle_timeout=asked.idle_timeout,
        half_close_timeout=asked.half_close_timeout,
        drain=relay_env.drain(parser, environ) if asked.drain is None else asked.drain,
        access_log="" if asked.access_log == "off" else asked.access_log,
    )
    return ZdsSettings(path, (0, os.geteuid(), *asked.allow_uid), inpod, relay)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyztun-ztunnel",
        description="Takes netns fds over a Unix socket and makes listeners in each pod.",
        usage="pyztun-ztunnel [OPTIONS] SOCKET\n       pyztun-ztunnel [OPTIONS] --zds SOCKET",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    many: dict[str, Any] = {"action": "append", "default": []}
    # fmt: off
    add("socket", metavar="SOCKET", nargs="?",
        help="seed form: path of the Unix socket to listen on")
    add("--zds", metavar="SOCKET", help="ZDS form: path of the node agent's Unix socket")
    add("--backlog", metavar="N", type=Number(1, 2**31 - 1),
        help=f"of each listener (default {SEED_BACKLOG}; {ZDS_BACKLOG} with --zds)")
    add("--allow-uid", metavar="UID", type=Number(0, MAX_ID), **many,
        help="a uid that may ask, or be the agent, beside root and our own; repeatable")
    add("--max-workloads", metavar="N", type=Number(1, MAX_WORKLOADS), default=MAX_WORKLOADS,
        help="netns held at a time (default: what RLIMIT_NOFILE allows)")
    seed, zds = parser.add_argument_group("seed form"), parser.add_argument_group("ZDS form")
    seed.add_argument("--listen", metavar="ADDR:PORT", type=address, **many,
        help="a listener in each pod; repeatable (default 127.0.0.1:15008, :15006, :15001)")
    seed.add_argument("--mode", metavar="OCTAL", type=mode,
        help="permissions of the socket file (default 0600)")
    seed.add_argument("--group", metavar="GROUP", type=group,
        help="of the socket file, by name or number")
    seed.add_argument("--allow-home", action="store_true",
        help="accept our own netns, and the initial one, as a workload")
    seed.add_argument("--max-peers", metavar="N", type=Number(1, 65536),
        help=f"connections to the socket at a time (default {DEFAULT_PEERS})")
    zds.add_argument("--bind", choices=("wildcard", "loopback"), default="wildcard",
        help="where 15008, 15006 and 15001 listen: [::], or 127.0.0.1 as in the seed form")
    zds.add_argument("--socks5", action="store_true", help="also listen on 127.0.0.1:15080")
    zds.add_argument("--threads", metavar="N", type=Number(1, relay_env.MAX_THREADS),
        help="that relay (default: as many as cores, at least 2)")
    zds.add_argument("--connect-timeout", metavar="SECONDS", type=seconds, default=10.0,
        help="for a destination to answer (default 10)")
    zds.add_argument("--idle-timeout", metavar="SECONDS", type=seconds, default=0.0,
        help="reset a connection without a byte either way for so long (default 0: never)")
    zds.add_argument("--half-close-timeout", metavar="SECONDS", type=seconds, default=3600.0,
        help="the same once one side has ended its half (default 3600; 0: never)")
    zds.add_argument("--drain", metavar="SECONDS", type=seconds,
        help="for open connections after SIGTERM (default 5)")
    zds.add_argument("--access-log", metavar="FILE", default="-",
        help="append a line for each connection; - is stderr, off is none (default -)")
    add("--log-format", choices=("human", "json"), default="human",
        help="of the log on stderr (default human)")
    add("--version", action="version", version=f"pyztun-ztunnel {__version__}")
    # fmt: on
    return parser


def seconds(text: str) -> float:
    """Reads a number of seconds; argparse.ArgumentTypeError otherwise."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


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
