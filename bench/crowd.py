"""A thousand pods: their netns, the room in the fd table, and the memory of who serves them."""

from __future__ import annotations

import resource
from contextlib import ExitStack
from pathlib import Path

from bench import programs
from bench.statistics import Check
from pyztun import NetNs

SIZE = 1000
FDS_NEEDED = 5000
"""Three listeners a pod, and what pyztun-ztunnel keeps free for peers and their connections."""

POD_BUDGET_KIB = 12
PROCESS_BUDGET_MB = 60


def need_descriptors() -> None:
    """Skipped where the fd table cannot become large enough."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit != resource.RLIM_INFINITY and limit < FDS_NEEDED:
        raise programs.Skipped(f"the hard RLIMIT_NOFILE is {limit}, {SIZE} pods need {FDS_NEEDED}")


def gather(stack: ExitStack) -> list[int]:
    """Descriptors of as many netns as there are pods; closed, and the limit as before, at its end.

    The kernel tears the netns down afterwards, for seconds: rows that gather come last.
    """
    need_descriptors()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    return [stack.enter_context(NetNs.create()).fileno() for _ in range(SIZE)]


def memory(pid: int) -> dict[str, int]:
    """VmRSS and Pss of a process in KiB."""
    found = {}
    for file in ("status", "smaps_rollup"):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("VmRSS", "Pss"):
                found[name] = int(value.split()[0])
    return found


def memory_checks(
    none: dict[str, int], one: dict[str, int], all_of_them: dict[str, int], pods: int = SIZE
) -> list[Check]:
    """What the memory of a process says to no pod, to one and to PODS of them."""
    each = (all_of_them["VmRSS"] - one["VmRSS"]) / (pods - 1)
    return [
        Check("RSS a pod beyond the first", each, "KiB", POD_BUDGET_KIB),
        Check(f"RSS at {pods} pods", _mb(all_of_them["VmRSS"]), "MB", PROCESS_BUDGET_MB),
        Check("RSS with none", _mb(none["VmRSS"]), "MB", None),
        Check(f"Pss at {pods} pods", _mb(all_of_them["Pss"]), "MB", None),
    ]


def _mb(kib: int) -> float:
    return kib * 1024 / 1e6
