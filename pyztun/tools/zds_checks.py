"""What the demo of the ZDS form looks at: whether clients in the pods reach ztunnel, and when."""

from __future__ import annotations

from time import monotonic, sleep
from typing import TYPE_CHECKING

from pyztun.tools import evidence, processes
from pyztun.tools.checks import PORTS
from pyztun.tools.node_checks import NodeChecks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyztun.tools.stage import Pod

RESET = "reset"
"""What a client gets that ztunnel has accepted, and that nobody had redirected to it."""


class ZdsChecks(NodeChecks):
    """See NodeChecks."""

    def is_reset(self, view: evidence.View, port: int, pod: Pod) -> None:
        """ztunnel accepted a client in the pod there, and reset it."""
        said = view.answers[port]
        told = f"127.0.0.1:{port} in {pod.name}, accepted but not redirected"
        self._check(told, said == RESET, said if said == RESET else repr(said))

    def clients_are_accepted(self, pod: Pod, ports: Sequence[int] = PORTS) -> None:
        """By each of these ports."""
        view = evidence.look_inside(pod.reference, ports)
        for port in ports:
            self.is_reset(view, port, pod)

    def served_within(self, began: float, what: str, pods: Sequence[Pod]) -> None:
        """A client in each pod is accepted; how long after ``began``."""
        deadline = began + self.patience
        while True:
            said = {pod.name: evidence.ask(pod.reference, PORTS[0]) for pod in pods}
            accepted = set(said.values()) == {RESET}
            seen = f"{1000 * (monotonic() - began):.0f} ms after {what}"
            if accepted or monotonic() > deadline:
                break
            sleep(processes.PACE)
        names = " and ".join(pod.name for pod in pods)
        self._check(
            f"a client in {names} is accepted", accepted, seen if accepted else f"{said}, {seen}"
        )
