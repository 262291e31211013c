"""LeakCheck: descriptors, threads, child processes and network namespaces that were left behind."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from pyztun.netns import NAMES, names_made
from pyztun.testing import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

PAUSE = 0.005


class Leaked(AssertionError):
    """Something is there that was not there before; the text names each thing."""


class LeakCheck:
    """Remembers what this process holds when it is made, and tells what has come since.

    New are: a descriptor (also a netns, or a socket in another netns, which says so), a thread, a
    child process, a name in /run/netns, and a thread that stands in another netns than before. As a
    with-block it raises Leaked at the end, unless the block raised already: the traceback keeps the
    variables of the block alive, and with them what they hold.

    It sees the whole process, so no other thread may open and close things meanwhile. It changes
    nothing and may be used from any thread.

    :param names: which names in /run/netns are meant: other programs make some too, at any time.
        None: those that NetNs.create() makes in this process.
    :param patience: seconds that leaks() waits for what is ending: a joined thread stays in /proc
        for a moment, and a killed child until it is waited for.
    """

    def __init__(
        self, *, names: Callable[[str], bool] | None = None, patience: float = 2.0
    ) -> None:
        self._names = names or names_made.__contains__
        self._patience = patience
        self.restart()

    def restart(self) -> None:
        """From now on only what comes later counts."""
        self._before = _Holdings.take()

    def leaks(self, patience: float | None = None) -> list[str]:
        """One line for each thing that was not there before; empty if there is none.

        Returns at once when there is none, and blocks up to ``patience`` seconds otherwise. What
        only a reference cycle still holds is no leak: the garbage collector runs first.
        """
        if not self._new(_Holdings.take()):
            return []
        gc.collect()
        deadline = time.monotonic() + (self._patience if patience is None else patience)
        while lines := self._new(_Holdings.take()):
            if time.monotonic() >= deadline:
                return lines
            time.sleep(PAUSE)
        return []

    def _new(self, now: _Holdings) -> list[str]:
        from pyztun.testing.pins import describe

        before = self._before
        lines = [
            describe(fd, target)
            for fd, target in sorted(now.fds.items() - before.fds.items())
            if fd != now.helper_fd
        ]
        for tid, netns in sorted(now.threads.items()):
            if tid not in before.threads:
                lines.append(f"thread {process.thread_name(tid)} (tid {tid})")
            elif 0 != netns != (was := before.threads[tid]) != 0:
                name = process.thread_name(tid)
                lines.append(f"thread {name} is in netns {netns}, was in {was}")
        lines += [
            f"child process {pid} ({process.command_of(pid)})"
            for pid in sorted(now.children - before.children)
            if pid != now.helper_pid
        ]
        names = filter(self._names, sorted(now.names - before.names))
        return lines + [f"{NAMES}/{name}" for name in names]

    def __enter__(self) -> LeakCheck:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None and (lines := self.leaks()):
            raise Leaked("left behind: " + "; ".join(lines))


@dataclass(frozen=True)
class _Holdings:
    """What the process holds at one moment."""

    fds: dict[int, str]
    threads: dict[int, int]
    children: set[int]
    names: set[str]
    helper_fd: int | None
    helper_pid: int | None

    @classmethod
    def take(cls) -> _Holdings:
        helper_fd, helper_pid = _helper_of_multiprocessing()
        return cls(
            fds=process.open_fds(),
            threads={tid: process.thread_netns(tid) for tid in process.threads()},
            children=process.children(),
            names=_netns_names(),
            helper_fd=helper_fd,
            helper_pid=helper_pid,
        )


def _netns_names() -> set[str]:
    try:
        return set(os.listdir(NAMES))
    except FileNotFoundError:
        return set()


def _helper_of_multiprocessing() -> tuple[int | None, int | None]:
    """The fd and pid of its resource tracker, started on first use and kept until the end."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    tracker = getattr(module, "_resource_tracker", None)
    return getattr(tracker, "_fd", None), getattr(tracker, "_pid", None)
