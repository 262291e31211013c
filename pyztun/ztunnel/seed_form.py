"""The seed form: we listen on a Unix socket, and whoever asks passes a netns with one byte."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyztun import native, waits
from pyztun.socketfile import SocketFile
from pyztun.ztunnel.answers import Responder
from pyztun.ztunnel.form import not_workloads
from pyztun.ztunnel.limits import MAX_CONNECTIONS, Needs
from pyztun.ztunnel.receiver import Receiver
from pyztun.ztunnel.settings import DEADLINE

if TYPE_CHECKING:
    from pyztun.netns import NetNs
    from pyztun.service.log import Log
    from pyztun.ztunnel.answers import Answers
    from pyztun.ztunnel.limits import Budget
    from pyztun.ztunnel.settings import SeedSettings
    from pyztun.ztunnel.workloads import Workloads

MAX_UNSENT = 16 * 1024 * 1024


class SeedForm:
    """See Form."""

    def __init__(self, settings: SeedSettings) -> None:
        self._settings = settings
        self.needs = Needs(
            a_workload=len(settings.listeners),
            peers=settings.max_peers,
            connections=MAX_CONNECTIONS,
            connections_share=8,
        )

    def open(self) -> None:
        wanted = self._settings
        self._file = SocketFile.listen(wanted.socket, mode=wanted.mode, group=wanted.group)

    def answers(self, budget: Budget, _log: Log) -> Answers:
        """`ok`, as ever."""
        return Responder(budget.max_connections, DEADLINE)

    def prepare(self, workloads: Workloads, budget: Budget, home: NetNs, log: Log) -> None:
        wanted, self._wake = self._settings, os.eventfd(0)
        self._handoff = waits.Handoff(
            self._file.socket.fileno(),
            self._wake,
            uids=wanted.uids,
            max_peers=budget.max_peers,
            deadline=DEADLINE,
            max_unsent=MAX_UNSENT,
        )
        plan = native.ListenPlan(wanted.listeners)
        self._receiver = Receiver(
            self._handoff,
            plan,
            workloads,
            log,
            home_fd=home.fileno(),
            wake=self._wake,
            max_workloads=budget.max_workloads,
            not_workloads=not_workloads(home, wanted.allow_home),
        )
        log.event(
            "info",
            "listening",
            socket=wanted.socket,
            listeners=" ".join(map(str, plan.specs)),
            max_workloads=budget.max_workloads,
            max_peers=budget.max_peers,
        )

    def run(self) -> None:
        self._receiver.run()

    def leave(self) -> None:
        """The file goes first: who connects from now on learns at once that nobody is here."""
        self._file.remove()

    def stop(self) -> None:
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Nobody reads requests any more: their senders need not wait for the pods' clients."""
        if self._wake >= 0:
            self._handoff.close()
            self._file.close()
            os.close(self._wake)
            self._wake = -1
