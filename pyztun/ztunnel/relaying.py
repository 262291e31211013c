"""The ZDS form's answer to connections: each is relayed to its original destination."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyztun.ztunnel.access_log import AccessLog
from pyztun.ztunnel.inpod import MARK
from pyztun.ztunnel.relay import MAX_BATCHES, NO_MARK, Door, Relay, RelayOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyztun.service.log import Log
    from pyztun.ztunnel.limits import Budget
    from pyztun.ztunnel.settings import RelaySettings
    from pyztun.ztunnel.workloads import Workload


class Relaying:
    """See Answers."""

    def __init__(
        self,
        settings: RelaySettings,
        ports: tuple[int, ...],
        budget: Budget,
        log: Log,
        log_format: str,
        on_lost: Callable[[], None],
    ) -> None:
        """:param ports: of a workload's listeners, in their order.
        :param on_lost: is told in run() that a listener was destroyed. PyztunError.
        """
        self._ports, self._log, self._drain = ports, log, settings.drain
        self._doors: dict[int, Door] = {}
        self._said_no_mark = self._is_stopping = self._is_closing = False
        path = settings.access_log
        self._access_log = AccessLog(path) if path else None
        self._seen: dict[str, int] = {}
        self._on_lost = on_lost
        self._relay = Relay(
            RelayOptions(
                settings.threads,
                settings.connect_timeout,
                settings.idle_timeout,
                settings.half_close_timeout,
            ),
            max_flows=budget.max_connections,
            max_pipes=budget.max_pipes,
            mark=MARK,
            log=log_format if path else None,
        )

    def watch(self, workload: Workload) -> None:
        netns = workload.netns
        self._doors[workload.inode] = self._relay.take(
            -1 if netns is None else netns.fileno(),
            workload.listeners,
            self._ports,
            workload.cookie,
            workload.names,
        )

    def forget(self, workload: Workload) -> None:
        """Resets its connections; at the end of the process it lets them go on."""
        door = self._doors.pop(workload.inode, None)
        if door is not None and not self._is_closing:
            self._relay.drop(door)

    def mend(self, workload: Workload, index: int, listener: int) -> None:
        self._relay.mend(self._doors[workload.inode], index, listener)

    def rename(self, workload: Workload) -> None:
        self._relay.rename(self._doors[workload.inode], workload.names)

    def run(self) -> None:
        """Writes the access log until stop(), however much there is to write."""
        while not self._is_stopping:
            self._read(None)

    def _read(self, timeout: float | None) -> int:
        count = self._relay.next(timeout)
        if count and self._access_log is not None:
            self._access_log.write(self._relay.log())
            written = self._access_log
            self._tell("access-log-dropped", written.dropped, reason=written.reason)
        counted = self._relay.counters()
        self._tell_counters(counted)
        if self._growth("lost-listeners", counted["lost_listeners"]):
            self._on_lost()
        if counted["refused"] and not self._said_no_mark:
            self._look_for_no_mark(count)
        return count

    def _tell_counters(self, now: dict[str, int]) -> None:
        tell = self._tell
        tell("events-lost", now["lost_events"], reason="more ended than could be told")
        tell("own-source", now["own_source"], reason="clients' addresses could not be taken")
        tell("accept-paused", now["paused"], reason="no descriptors left")
        tell(
            "accept-held-back",
            now["held_back"],
            reason=f"netns {now['held_back_pod']} has its share of the connections that fit",
            netns=now["held_back_pod"],
        )

    def _tell(self, event: str, total: int, **fields: object) -> None:
        """Logs what has grown since it was told last."""
        if more := self._growth(event, total):
            self._log.event("peer", event, **fields, count=more)

    def _growth(self, what: str, total: int) -> int:
        """By how much it has grown since this was asked last."""
        more = total - self._seen.get(what, 0)
        self._seen[what] = total
        return more

    def _look_for_no_mark(self, count: int) -> None:
        events = self._relay.events
        if all(events[i].end != NO_MARK for i in range(count)):
            return
        self._said_no_mark = True
        self._log.event(
            "error",
            "cannot-relay",
            reason="SO_MARK and IP_TRANSPARENT need CAP_NET_ADMIN or CAP_NET_RAW",
            consequence="every connection is closed at once: unmarked it would come back",
        )

    def stop(self) -> None:
        self._is_stopping = True
        self._relay.wake()

    def accept_queued(self) -> None:
        self._relay.close_doors()
        self._is_closing = True

    def finish(self) -> int:
        cut = self._relay.finish(self._drain)
        for _ in range(2 * MAX_BATCHES):  # some may end meanwhile
            if not self._read(0):
                break
        return cut

    def close(self) -> None:
        self._relay.close()
        if self._access_log is not None:
            self._access_log.close()
