"""Who serves the connections of the pods: `ok` in the seed form, the relay in the ZDS form."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from pyztun import waits

if TYPE_CHECKING:
    from pyztun.ztunnel.workloads import Workload


class Answers(Protocol):
    """What the service wants of it. run() and what is behind it belong to one thread."""

    def watch(self, workload: Workload) -> None:
        """Serves its listeners from now on. Any thread. SyscallError: none of them."""

    def forget(self, workload: Workload) -> None:
        """Nothing of it is touched any more; to be called before its listeners are closed."""

    def mend(self, workload: Workload, index: int, listener: int) -> None:
        """Serves this listener in place of the one of that index, which it does not touch any more.

        SyscallError: neither.
        """

    def rename(self, workload: Workload) -> None:
        """It has other names."""

    def run(self) -> None:
        """Blocks until stop()."""

    def stop(self) -> None:
        """Has run() return soon. Main thread."""

    def accept_queued(self) -> None:
        """After run(): serves what is queued on the listeners, and then no one more."""

    def finish(self) -> int:
        """After forget() of all: waits for the open connections; how many it had to cut."""

    def close(self) -> None:
        """Ends it."""


class Responder:
    """Says `ok` to everybody and closes."""

    ACCEPT_QUEUED_TIME = 1.0

    def __init__(self, max_connections: int, deadline: float) -> None:
        """:param deadline: seconds for a connection, and for the last ones at the end."""
        self._wake, self._deadline = os.eventfd(0), deadline
        self._native = waits.Responder(
            self._wake, max_connections=max_connections, deadline=deadline
        )

    def watch(self, workload: Workload) -> None:
        self._native.watch(workload.listeners)

    def forget(self, workload: Workload) -> None:
        self._native.forget(workload.listeners)

    def mend(self, workload: Workload, index: int, listener: int) -> None:
        self._native.forget([workload.listeners[index]])
        self._native.watch([listener])

    def rename(self, workload: Workload) -> None:
        """Nobody is told their names."""

    def run(self) -> None:
        self._native.run()

    def stop(self) -> None:
        os.eventfd_write(self._wake, 1)

    def accept_queued(self) -> None:
        self._native.accept_queued(self.ACCEPT_QUEUED_TIME)

    def finish(self) -> int:
        return self._native.finish(self._deadline)

    def close(self) -> None:
        self._native.close()
        os.close(self._wake)
