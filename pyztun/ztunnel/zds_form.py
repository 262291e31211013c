"""The ZDS form: we dial a node agent, and it commands what is served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyztun.ztunnel.agent_link import AgentLink
from pyztun.ztunnel.form import not_workloads
from pyztun.ztunnel.inpod import InPod
from pyztun.ztunnel.limits import MAX_FLOWS, PIPES, Needs
from pyztun.ztunnel.zds_receiver import ZdsReceiver
from pyztun.ztunnel.zds_wait import ZdsWait

if TYPE_CHECKING:
    from pyztun.netns import NetNs
    from pyztun.service.log import Log
    from pyztun.ztunnel.answers import Answers
    from pyztun.ztunnel.limits import Budget
    from pyztun.ztunnel.settings import ZdsSettings
    from pyztun.ztunnel.workloads import Workloads


class ZdsForm:
    """See Form."""

    def __init__(self, settings: ZdsSettings, log_format: str) -> None:
        self._settings, self._log_format = settings, log_format
        self.needs = Needs(
            a_workload=settings.inpod.count + 1,  # and its netns
            peers=1,
            connections=MAX_FLOWS,
            connections_share=2,
            a_connection=2,
            pipes=PIPES,
            threads=settings.relay.threads,
        )

    def open(self) -> None:
        """The socket file is the agent's."""
        self._wait = ZdsWait()

    def answers(self, budget: Budget, log: Log) -> Answers:
        """The relay, which is loaded only now."""
        from pyztun.ztunnel.relaying import Relaying

        wanted = self._settings
        ports = wanted.inpod.all_ports
        return Relaying(wanted.relay, ports, budget, log, self._log_format, self._wait.look)

    def prepare(self, workloads: Workloads, budget: Budget, home: NetNs, log: Log) -> None:
        wanted = self._settings
        inpod = InPod(wanted.inpod, home.fileno(), log)
        self._receiver = ZdsReceiver(
            self._wait,
            AgentLink(wanted.socket, wanted.agents, log, self._wait.hang_up),
            inpod,
            workloads,
            log,
            home_fd=home.fileno(),
            not_workloads=not_workloads(home),
            max_workloads=budget.max_workloads,
        )
        log.event(
            "info",
            "serving",
            agent=wanted.socket,
            listeners=inpod.addresses,
            max_workloads=budget.max_workloads,
        )

    def run(self) -> None:
        self._receiver.run()

    def leave(self) -> None:
        """The agent learns of our end by that of the connection."""

    def stop(self) -> None:
        self._wait.end()

    def close(self) -> None:
        self._wait.close()
