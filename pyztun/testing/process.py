"""What a process holds, read from /proc: descriptors, threads, children."""

from __future__ import annotations

import os
from pathlib import Path


def open_fds(pid: int | str = "self") -> dict[int, str]:
    """fd -> what it refers to, as the link in /proc says it.

    The fd that reads the directory itself is left out.

    :raises FileNotFoundError: there is no such process.
    :raises PermissionError: it is another user's.
    """
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue
    return found


def threads(pid: int | str = "self") -> set[int]:
    """The thread ids of a process. A joined thread may still be there for a moment."""
    return {int(name) for name in os.listdir(f"/proc/{pid}/task")}


def thread_netns(tid: int, pid: int | str = "self") -> int:
    """The inode of the netns of one thread; 0 if it has just ended or may not be read."""
    try:
        return os.stat(f"/proc/{pid}/task/{tid}/ns/net").st_ino
    except OSError:
        return 0


def children(pid: int | str = "self") -> set[int]:
    """The pids of the children of all threads, zombies included.

    A kernel without CONFIG_PROC_CHILDREN has no such file; then the parents of all processes are
    asked.
    """
    found: set[int] = set()
    for tid in threads(pid):
        try:
            text = Path(f"/proc/{pid}/task/{tid}/children").read_text()
        except FileNotFoundError:
            if not os.path.exists(f"/proc/{pid}/task/{tid}"):
                continue
            return _children_by_parent(os.getpid() if pid == "self" else int(pid))
        except ProcessLookupError:
            continue
        found.update(map(int, text.split()))
    return found


def _children_by_parent(parent: int) -> set[int]:
    import psutil

    return {child.pid for child in psutil.process_iter(["ppid"]) if child.info["ppid"] == parent}


def thread_name(tid: int) -> str:
    """The name of a thread of this process: Python's, or the kernel's for a native thread."""
    import threading

    for thread in threading.enumerate():
        if thread.native_id == tid:
            return repr(thread.name)
    return f"{_read(f'/proc/self/task/{tid}/comm').strip()!r}, not of Python"


def command_of(pid: int) -> str:
    """The command line of a process, or what it is now if it has none any more."""
    command = _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
    if command:
        return command
    name = _read(f"/proc/{pid}/comm").strip()
    return f"{name}, ended, nobody waited for it"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
