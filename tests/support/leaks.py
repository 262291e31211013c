"""What a process holds besides the fds, threads and children that pyztun.testing reads: memory.

/proc/PID/ns/net shows the main thread only. A child made by any thread is a child of the process.
"""

import os
from pathlib import Path

from pyztun.testing.process import children, open_fds, threads

__all__ = ["children", "netns_inode", "open_fds", "rss_kib", "threads"]


def rss_kib(pid: int | str = "self") -> int:
    """Resident memory in KiB (VmRSS of /proc/PID/status)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def netns_inode(pid: int | str = "self") -> int:
    """The netns of a process's main thread."""
    return os.stat(f"/proc/{pid}/ns/net").st_ino
