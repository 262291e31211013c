"""Freeing: what must be true of rules before the row that tells of them goes.

First the rules go, then the row: whatever ends the process in between, the next agent finds the
row and puts them back, and none is left that nobody knows of. Where they cannot be removed the
request is refused, and the row stays what it was.
"""

from __future__ import annotations

from pyztun.cni.agent import requests
from pyztun.cni.agent.capture import RULES
from pyztun.cni.agent.podside import Failed
from pyztun.cni.agent.requests import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyztun.cni.agent.lifecycle import Lifecycle
    from pyztun.cni.agent.opening import Opened
    from pyztun.cni.agent.registry import Registry
    from pyztun.cni.agent.workload import Spec, Workload
    from pyztun.netns import NetNs
    from pyztun.service.log import Log


class Freeing:
    """See above. In the loop; each call is to be made inside Capture.leaving().

    All deadlines are moments of the loop's clock.
    """

    def __init__(self, registry: Registry, lifecycle: Lifecycle, log: Log) -> None:
        self._registry, self._life, self._log = registry, lifecycle, log
        self._is_closing = False

    def close(self) -> None:
        """Whoever waits is sent home, once he is woken."""
        self._is_closing = True

    async def all_of(self, workload: Workload, deadline: float) -> None:
        """Removes the rules of a workload that is to be deleted. Refusal: nothing is changed."""
        spec, freed = workload.spec, None
        while workload.netns is not None and workload.known_as != freed:
            freed = workload.known_as  # it may be replaced meanwhile
            await self._take_away(workload, workload.netns, deadline)
            if self._registry.workloads.get(workload.uid) is not workload:
                raise Refusal(requests.NO_SUCH_WORKLOAD, f"{workload.uid} was deleted meanwhile")
            if workload.spec is not spec:
                raise Refusal(
                    requests.SUPERSEDED, f"{workload.uid} was added again meanwhile", workload
                )
        if workload.is_kept and workload.ruled is not None:
            raise self._not_removed(workload.trouble, workload)
        if workload.netns is None and workload.ruled is not None:
            # It has no name any more; whoever still lives there keeps the rules.
            self._log.event("warning", "rules-left", **workload.shown(), reason=workload.trouble)

    async def of(self, uid: str, opened: Opened, deadline: float) -> None:
        """Removes them from a netns in which the uid is to have none from now on. Refusal."""
        seen: Spec | None = None
        netns = opened.netns
        while (workload := self._registry.workloads.get(uid)) is not None:
            same = workload.netns is not None and workload.netns.is_same(netns)
            ruled = workload.ruled is not None and workload.ruled == opened.cookie
            if not workload.is_captured or not (same or ruled) or workload.spec is seen:
                return
            seen = workload.spec  # somebody may ask otherwise meanwhile
            await self._take_away(workload, netns, deadline)

    async def _take_away(self, workload: Workload, netns: NetNs, deadline: float) -> None:
        """Refusal: they are there, and it cannot be done."""
        known_as, uid = workload.known_as, workload.uid
        answer = self._life.capture.take_away(uid, netns)
        while not answer.done():
            if self._is_closing:
                raise Refusal(requests.SHUTTING_DOWN, "the agent is shutting down", workload)
            if not await self._life.change(uid, deadline, answer):
                reason = f"{RULES}podside did not answer in time, and may still remove them"
                raise Refusal(requests.RULES, f"{reason}; put back then, if so", workload)
        error = answer.exception()
        if isinstance(error, Failed):
            # Where none was ever put in place there is none: without the capability, say.
            if workload.ruled is not None and workload.ruled == known_as:
                raise self._not_removed(str(error), workload)
            self._log.event("warning", "rules-not-removed", uid=uid, reason=str(error))
        elif error is None and answer.result().written:
            self._log.event("info", "rules-removed", **workload.shown())

    @staticmethod
    def _not_removed(why: str, workload: Workload) -> Refusal:
        reason = f"{RULES}cannot be removed: {why}; nothing was changed"
        return Refusal(requests.RULES, reason, workload)
