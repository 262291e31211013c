"""What the service wants of a form: of the way in which workloads reach it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pyztun.errors import SyscallError
from pyztun.netns import NetNs

if TYPE_CHECKING:
    from pyztun.service.log import Log
    from pyztun.ztunnel.answers import Answers
    from pyztun.ztunnel.limits import Budget, Needs
    from pyztun.ztunnel.workloads import Workloads


class Form(Protocol):
    """The seed form or the ZDS form.

    :ivar needs: what it needs of the fd table.
    """

    needs: Needs

    def open(self) -> None:
        """What must come before any thread. PyztunError."""

    def answers(self, budget: Budget, log: Log, /) -> Answers:
        """Who serves the connections of the pods. PyztunError."""

    def prepare(self, workloads: Workloads, budget: Budget, home: NetNs, log: Log) -> None:
        """All else that must come before run(). Takes over workloads until run() has returned."""

    def run(self) -> None:
        """The body of the handoff thread: serves until stop()."""

    def leave(self) -> None:
        """From now on nobody new reaches us. Main thread; does nothing the second time."""

    def stop(self) -> None:
        """Has run() return soon. Main thread."""

    def close(self) -> None:
        """After run(): ends what is still connected, and lets go of everything."""


def not_workloads(home: NetNs, allow_home: bool = False) -> dict[int, str]:
    """Which netns are never a workload, by inode, and why: our own and that of process 1."""
    if allow_home:
        return {}
    initial = _initial_netns()
    named = {} if initial is None else {initial: "initial netns"}
    return {**named, home.inode: "home netns"}


def _initial_netns() -> int | None:
    """Inode of the netns of process 1 (in a container the container's); None: not readable."""
    try:
        with NetNs.from_pid(1) as initial:
            return initial.inode
    except SyscallError:
        return None
