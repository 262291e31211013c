"""The settings of `pyztun-cni agent`: one immutable object, parsed once from the command line."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyztun import __version__
from pyztun.service.options import MAX_ID, Number, group, mode

if TYPE_CHECKING:
    from collections.abc import Sequence

ZDS = "/var/run/ztunnel/ztunnel.sock"
CONTROL = "/run/pyztun/agent.sock"
STATE_DIR = "/run/pyztun"
MIN_RECONCILE, MAX_RECONCILE = 0.05, 86400.0

DESCRIPTION = """\
The node agent: knows the workloads of this machine, and serves them over ZDS to every ztunnel that
dials, `pyztun-ztunnel --zds` or Istio's. `pyztun-cni add`, `del`, `list` and `status` talk to it.
"""

EPILOG = """\
What was added is kept in DIR/registry.db and survives every end of the agent: the next one opens
each netns again, compares its cookie, and gives every ztunnel the same workloads. A netns that is
replaced under its path is found by itself and sent again; one that is gone is taken from every
ztunnel, and its workload waits as `degraded` for the path to return. Every ztunnel keeps serving
while the agent is away.

Needs CAP_SYS_ADMIN and CAP_NET_ADMIN for workloads with --capture redirect, whose rules a child of
its own, podside, puts into the pod, watches and repairs; they stay when the agent ends. For others
it needs no capability beyond the right to open the netns (before Linux 6.18 it knows a netns'
cookie only with CAP_SYS_ADMIN over it). Raises its soft RLIMIT_NOFILE to the hard
limit: each workload holds one descriptor. Directories of the sockets that do not exist are made.
Prints `agent ready` on stdout; the log goes to stderr. docs/operations.md lists what it does when
something fails, docs/api.md describes the control socket.

SIGTERM, SIGINT and SIGHUP end it: requests under way are answered, then it exits with 0; a second
signal ends it at once. READY=1 and STOPPING=1 go to NOTIFY_SOCKET.

examples:
  pyztun-cni agent
  pyztun-cni agent --zds /tmp/zds.sock --control /tmp/agent.sock --state-dir ~/.pyztun
  pyztun-cni agent --allow-uid 1000 --mode 0660 --group pods
"""


@dataclass(frozen=True)
class Settings:
    """What one process of the agent was asked to do.

    :ivar zds: path of the socket that ztunnels dial.
    :ivar control: path of the socket of the control API.
    :ivar state_dir: where the registry is kept.
    :ivar reconcile: seconds between two passes over all workloads.
    :ivar allow_uids: who may use the control API, beside root and ourselves.
    :ivar ztunnel_uids: uids that a ztunnel may have, root and our own among them.
    :ivar mode: permission bits of both sockets.
    :ivar group: gid of both sockets, or None for our own.
    """

    zds: str = ZDS
    control: str = CONTROL
    state_dir: str = STATE_DIR
    reconcile: float = 30.0
    allow_uids: frozenset[int] = frozenset()
    ztunnel_uids: frozenset[int] = frozenset()
    mode: int = 0o600
    group: int | None = None
    log_format: str = "human"


def parse(words: Sequence[str] | None = None) -> Settings:
    """Reads the words behind `agent`; ends the process with status 2 when they make no sense."""
    parser = _parser()
    asked = parser.parse_args(words)
    for name in ("zds", "control", "state_dir"):
        if not getattr(asked, name):
            parser.error(f"--{name.replace('_', '-')} is empty")
    if os.path.abspath(asked.zds) == os.path.abspath(asked.control):
        parser.error("--zds and --control are the same path")
    return Settings(
        zds=asked.zds,
        control=asked.control,
        state_dir=asked.state_dir,
        reconcile=asked.reconcile,
        allow_uids=frozenset(asked.allow_uid),
        ztunnel_uids=frozenset((0, os.geteuid(), *asked.ztunnel_uid)),
        mode=asked.mode,
        group=asked.group,
        log_format=asked.log_format,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyztun-cni agent",
        description=DESCRIPTION,
        usage="pyztun-cni agent [OPTIONS]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    many: dict[str, Any] = {"action": "append", "default": []}
    # fmt: off
    add("--zds", metavar="SOCKET", default=ZDS,
        help=f"listen here for ztunnels (default {ZDS})")
    add("--control", metavar="SOCKET", default=os.environ.get("PYZTUN_CONTROL", CONTROL),
        help=f"listen here for commands (default PYZTUN_CONTROL, else {CONTROL})")
    add("--state-dir", metavar="DIR", default=STATE_DIR,
        help=f"keep the registry here (default {STATE_DIR})")
    add("--reconcile", metavar="SECONDS", type=_interval, default=30.0,
        help="check every workload so often (default 30)")
    add("--allow-uid", metavar="UID", type=Number(0, MAX_ID), **many,
        help="a uid that may use the control socket, beside root and our own; repeatable")
    add("--ztunnel-uid", metavar="UID", type=Number(0, MAX_ID), **many,
        help="a uid that a ztunnel may have, beside root and our own; repeatable")
    add("--mode", metavar="OCTAL", type=mode, default=0o600,
        help="permissions of both sockets (default 0600)")
    add("--group", metavar="GROUP", type=group, help="of both sockets, by name or number")
    add("--log-format", choices=("human", "json"), default="human",
        help="of the log on stderr (default human)")
    add("--version", action="version", version=f"pyztun-cni {__version__}")
    # fmt: on
    return parser


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not MIN_RECONCILE <= seconds <= MAX_RECONCILE:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not between {MIN_RECONCILE} and {MAX_RECONCILE:.0f} seconds"
        )
    return seconds
