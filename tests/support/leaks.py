"""What a process holds: descriptors, threads, children, memory; and what a test left behind.

/proc/PID/ns/net shows the main thread only. A child made by any thread is a child of the process.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from support import pods


def open_fds(pid: int | str = "self") -> dict[int, str]:
    """fd -> what it refers to. The fd that reads the directory itself is left out."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue
    return found


def threads(pid: int | str = "self") -> set[int]:
    """The thread ids of a process."""
    return {int(name) for name in os.listdir(f"/proc/{pid}/task")}


def children(pid: int | str = "self") -> set[int]:
    """The pids of the children, zombies included."""
    found: set[int] = set()
    for tid in threads(pid):
        try:
            found.update(map(int, Path(f"/proc/{pid}/task/{tid}/children").read_text().split()))
        except FileNotFoundError:
            continue
    return found


def rss_kib(pid: int | str = "self") -> int:
    """Resident memory in KiB (VmRSS of /proc/PID/status)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def netns_inode(pid: int | str = "self") -> int:
    """The netns of a process's main thread."""
    return os.stat(f"/proc/{pid}/ns/net").st_ino


@dataclass(frozen=True)
class Snapshot:
    """What must be after a test as it was before it."""

    fds: dict[int, str]
    netns: int
    names: frozenset[str]
    children: frozenset[int]
    threads: int

    @classmethod
    def take(cls) -> "Snapshot":
        return cls(
            fds=open_fds(),
            netns=netns_inode(),
            names=frozenset(filter(_may_be_ours, pods.names())),
            children=frozenset(children()),
            threads=len(threads()),
        )

    def leaked(self, seconds: float = 2) -> list[str]:
        """One line for each thing that was not there before; waits a little for what is ending.

        A joined thread stays in /proc for a moment; what leaked is still there at the deadline.
        """
        deadline = time.monotonic() + seconds
        while lines := self._differences(Snapshot.take()):
            if time.monotonic() > deadline:
                return lines
            os.sched_yield()
        return []

    def _differences(self, now: "Snapshot") -> list[str]:
        lines = [
            f"fd {fd} -> {target}" for fd, target in sorted(now.fds.items() - self.fds.items())
        ]
        if now.netns != self.netns:
            lines.append(f"the main thread is in netns {now.netns}, was in {self.netns}")
        lines += [f"/run/netns/{name}" for name in sorted(now.names - self.names)]
        lines += [f"child process {pid}" for pid in sorted(now.children - self.children)]
        if now.threads > self.threads:
            lines.append(f"{now.threads} threads, were {self.threads}")
        return lines


def _may_be_ours(name: str) -> bool:
    """Other runs and other programs make namespaces at the same time; theirs are not our leak."""
    return name.startswith("pyztun") or pods.owner_of(name) == os.getpid()
