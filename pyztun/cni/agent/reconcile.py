"""What is repeated: the pass over all workloads, and the offers that were refused.

A ztunnel that refused an Add tries again by itself, but ZDS has no way to tell that it succeeded:
only a new Add does. So a refused offer is made again, later and later.
"""

from __future__ import annotations

import asyncio
from time import thread_time, time

from pyztun.service.backoff import Backoff

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyztun.cni.agent.workload import Workload

FIRST, LIMIT = 0.5, 30.0
AT_ONCE = 50
"""Workloads of a pass between two turns of everybody else."""


class Retries:
    """A timer for each offer that was refused."""

    def __init__(self, offer_again: Callable[[str], None]) -> None:
        """:param offer_again: called in the loop with the uid."""
        self._offer_again = offer_again
        self._loop = asyncio.get_running_loop()
        self._backoffs: dict[str, Backoff] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def refused(self, uid: str) -> None:
        """Has it offered again, unless that is to happen anyway."""
        if uid in self._timers:
            return
        backoff = self._backoffs.setdefault(uid, Backoff(FIRST, LIMIT))
        self._timers[uid] = self._loop.call_later(backoff.next(), self._due, uid)

    def _due(self, uid: str) -> None:
        del self._timers[uid]
        self._offer_again(uid)

    def forget(self, uid: str) -> None:
        """It was agreed to, is another offer now, or is gone: the next refusal begins anew."""
        self._backoffs.pop(uid, None)
        timer = self._timers.pop(uid, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Cancels all."""
        for uid in list(self._timers):
            self.forget(uid)


class Reconcile:
    """The loop over all workloads.

    :param interval: seconds between two passes.
    :param workloads: those there are now.
    :param repair: looks at one and does what follows.
    :ivar passes: how many there were.
    :ivar last_at: when the last one ended, in seconds of the epoch; None before the first.
    :ivar last_cpu: what it cost, in seconds.
    """

    def __init__(
        self,
        interval: float,
        workloads: Callable[[], list[Workload]],
        repair: Callable[[Workload], None],
    ) -> None:
        self.interval = interval
        self._workloads, self._repair = workloads, repair
        self.passes = 0
        self.last_at: float | None = None
        self.last_cpu = 0.0

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(self.interval)
            await self.once()

    async def once(self) -> None:
        """One pass; others have their turn in between, so a workload may have gone meanwhile."""
        workloads, cpu = self._workloads(), 0.0
        for start in range(0, len(workloads), AT_ONCE):
            began = thread_time()
            for workload in workloads[start : start + AT_ONCE]:
                self._repair(workload)
            cpu += thread_time() - began
            await asyncio.sleep(0)
        self.passes += 1
        self.last_at, self.last_cpu = time(), cpu
