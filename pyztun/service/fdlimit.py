"""RLIMIT_NOFILE: every service raises its soft limit to the hard one at start."""

from __future__ import annotations

import resource
from pathlib import Path


def raise_fd_limit() -> int:
    """Raises the soft RLIMIT_NOFILE to the hard one if it may; returns what is in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = int(Path("/proc/sys/fs/nr_open").read_text())
    if soft == hard:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # a seccomp filter such as systemd's ~@resources
        return soft
    return hard
