"""What every demo of a node does: its programs start, are killed and end, pods are added."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from pyztun.tools import evidence
from pyztun.tools.node_checks import UIDS

if TYPE_CHECKING:
    from pyztun.tools.daemon import Daemon
    from pyztun.tools.node_checks import NodeChecks
    from pyztun.tools.node_stage import NodeStage
    from pyztun.tools.observations import Observations
    from pyztun.tools.stage import Pod
    from pyztun.tools.terminal import Terminal


class NodeStory:
    """Pieces of the steps of a story.

    :ivar _see: made by whoever inherits.
    """

    _stage: NodeStage
    _see: NodeChecks

    def __init__(self, stage: NodeStage, terminal: Terminal, observations: Observations) -> None:
        self._stage, self._terminal, self._observations = stage, terminal, observations
        self._check = observations.check

    def _add_command(self, pod: Pod, *options: str) -> None:
        name = os.path.basename(pod.reference)
        self._see.command("add", name, "--uid", UIDS[pod.name], "--name", pod.name, *options)

    def _start_agent(self) -> None:
        self._stage.start_agent()
        self._ready("the agent", self._stage.agent)

    def _start_ztunnel(self, *options: str) -> None:
        self._stage.start_ztunnel(*options)
        self._ready("ztunnel", self._stage.ztunnel)

    def _ready(self, name: str, program: Daemon) -> None:
        self._terminal.command(program.words)
        said = program.wait_ready()
        self._check(f"{name}, pid {program.pid}, reports", said == "READY=1", said)
        where = evidence.cookie_of_process(program.pid)
        seen = f"its netns has cookie {where}"
        self._check(f"{name} is at home", where == self._stage.home.cookie, seen)

    def _kill(self, name: str, program: Daemon) -> None:
        self._terminal.command(["kill", "-KILL", str(program.pid)])
        status = program.kill()
        self._check(f"{name} is dead", status == -signal.SIGKILL, f"exit status {status}")

    def _stop_both(self) -> None:
        stage = self._stage
        for name, program in (("ztunnel", stage.ztunnel), ("the agent", stage.agent)):
            status = program.stop()
            self._check(f"{name} ends on SIGTERM", status == 0, f"exit status {status}")
        left = [path for path in (stage.zds, stage.control) if os.path.lexists(path)]
        self._check("the agent removes both its socket files", not left, ", ".join(left))
