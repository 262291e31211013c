"""References: what names a netns, and what has to be looked at to see that it still does.

/run/netns/ns2      a path; a bind mount there is told by mount events
ns2                 a name, kept as the path above
pid:N, /proc/N/...  a process; nothing tells when it ends or moves, and N is reused
fd:N                a descriptor of the caller; without him it names nothing
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from pyztun.netns import NAMES, numbered_reference

OURS = re.compile(r"/+proc/+(thread-)?self(/|$)")
"""What would mean ourselves, and meant the caller."""
START_TIME = 19
"""Of a process in clock ticks since the boot: field 22 of /proc/PID/stat, 20th behind the name."""


def normal(written: str) -> str | None:
    """The form in which a reference is kept; None if it is none, or means another thing here."""
    if numbered := numbered_reference(written):
        kind, number = numbered
        return f"{kind}:{int(number)}"
    if written.startswith("/"):
        return None if OURS.match(written) else written
    if "/" in written or written in ("", ".", ".."):
        return None
    return f"{NAMES}/{written}"


def path_of(reference: str) -> str | None:
    """The path to look at; None for a descriptor."""
    kind, _, number = reference.partition(":")
    if kind == "pid":
        return f"/proc/{number}/ns/net"
    return None if kind == "fd" else reference


def real_path(path: str) -> str:
    """The path without symbolic links, but for the last part of ``/proc/PID/ns/net``.

    That one reads as ``net:[INODE]``, which is no path.
    """
    real = os.path.realpath(path)
    if not _is_proc(real):
        return real
    return f"{os.path.realpath(os.path.dirname(path))}/{os.path.basename(path)}"


def _is_proc(real: str) -> bool:
    return real.startswith("/proc/")


def process_of(path: str) -> int | None:
    """The pid that a path of procfs belongs to; None for any other path."""
    real = path if path.startswith("/proc/") else os.path.realpath(path)
    parts = real.split("/")
    if len(parts) > 2 and parts[1] == "proc" and parts[2].isdigit():  # noqa: PLR2004
        return int(parts[2])
    return None


def start_of(pid: int) -> str | None:
    """When a process started: with its pid that names it for the whole boot. None: it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[START_TIME]  # the name may contain anything


def is_told_by_mounts(path: str) -> bool:
    """Whether whatever changes the meaning of a path is a mount event of ours.

    No event tells of a symbolic link on the way that is turned, nor of anything in procfs.
    """
    return not _is_proc(path) and os.path.realpath(path) == os.path.normpath(path)


def last_part(reference: str) -> str:
    """The name of a workload that was given none."""
    return os.path.basename(reference.rstrip("/")) or reference
