"""The stage of a node: pods with names, the node agent, ztunnel.

The agent opens a pod by its path again after a restart, and sees by the same path that the pod was
replaced. So these pods have names under /run/netns, as those of a container runtime do, and the
demo itself holds none of them.
"""

from __future__ import annotations

import contextlib
import os
import re

from pyztun.errors import PyztunError
from pyztun.netns import NAMES, NetNs
from pyztun.tools import processes
from pyztun.tools.daemon import Daemon
from pyztun.tools.stage import Pod, Stage, is_alive

OURS = re.compile(r"demo-(?:web|db|cache)-(\d+)")
"""The name of a netns that a demo has made, and the pid of that demo."""
JSON_LOG = ("--log-format", "json")


class NodeStage(Stage):
    """Made whole or not at all.

    :param names: of the pods.
    :ivar agent: the last one that was started.
    :ivar env: where the commands find the agent, as a user would tell them.
    """

    agent: Daemon

    def __init__(self, *names: str) -> None:
        super().__init__()
        try:
            self._cni, self._ztunnel = map(processes.find, ("pyztun-cni", "pyztun-ztunnel"))
            remove_names()
            self._pods: dict[str, Pod] = {}
            self.undo.callback(self.remove_pods)
            for name in names:
                self._make(name)
        except BaseException:
            self.close()
            raise
        self.zds = f"{self.directory}/zds.sock"
        self.control = f"{self.directory}/agent.sock"
        self.env = {"PYZTUN_CONTROL": self.control}

    def _make(self, name: str) -> None:
        path_name = f"demo-{name}-{os.getpid()}"
        netns = NetNs.create(path_name)
        try:
            pod = Pod(name, netns, f"{NAMES}/{path_name}", self.deathwatch)
        except BaseException:
            netns.remove()
            raise
        finally:
            netns.close()
        self._pods[name] = pod
        self.pods = tuple(self._pods.values())

    def replace(self, name: str) -> Pod:
        """Gives a pod a new netns under the old name; returns the old one, which nobody names."""
        old = self._pods[name]
        old.netns.remove()
        self._make(name)
        return old

    def remove_pods(self) -> None:
        """Deletes the names of all pods; each netns lives on while something holds it."""
        for pod in self._pods.values():
            pod.netns.remove()

    def start_agent(self) -> None:
        """Starts the agent, always with the same state directory. ProgramError."""
        places = ("--zds", self.zds, "--state-dir", f"{self.directory}/state")
        self.agent = self.start([self._cni, "agent", *places, *JSON_LOG], self.env)

    def start_ztunnel(self, *options: str) -> None:
        """Starts a ztunnel, which dials the agent. ProgramError."""
        self.ztunnel = self.start([self._ztunnel, "--zds", self.zds, *options])

    def cni_words(self, *arguments: str) -> list[str]:
        """The command line of a command to the agent."""
        return [self._cni, *arguments]


def remove_names() -> None:
    """Deletes the names of pods that a killed demo left; those of a living one are not touched."""
    with contextlib.suppress(OSError):
        for name in os.listdir(NAMES):
            made_by = OURS.fullmatch(name)
            if made_by and not is_alive(made_by[1]):
                with contextlib.suppress(PyztunError), NetNs.from_name(name) as left:
                    left.remove()
