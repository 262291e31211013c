"""The stage of the seed form: two pods without a name, one ztunnel, one handoff at a time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

from pyztun.netns import NetNs
from pyztun.tools import evidence, processes
from pyztun.tools.stage import Pod, Stage


class Cookies(NamedTuple):
    """The netns of the three parties at one moment, as the kernel numbers them."""

    pod: int
    home: int
    ztunnel: int


@dataclass(frozen=True)
class Handoff:
    """One run of pyztun-cni for a pod, and where everybody was meanwhile."""

    done: processes.Finished
    before: Cookies
    during: list[Cookies]
    after: Cookies


class SeedStage(Stage):
    """Made whole or not at all. Each pod is held by one fd of ours and by nothing else."""

    def __init__(self) -> None:
        super().__init__()
        try:
            self.pods = self.web, self.db = self._make("web"), self._make("db")
            self._cni, self._ztunnel = map(processes.find, ("pyztun-cni", "pyztun-ztunnel"))
        except BaseException:
            self.close()
            raise
        self.socket_path = f"{self.directory}/zt.sock"

    def _make(self, name: str) -> Pod:
        netns = self.undo.enter_context(NetNs.create())
        return Pod(name, netns, f"/proc/{os.getpid()}/fd/{netns.fileno()}", self.deathwatch)

    def start_ztunnel(self) -> None:
        """Starts the program, which is in ``self.ztunnel`` from then on. ProgramError."""
        self.ztunnel = self.start([self._ztunnel, "--log-format", "json", self.socket_path])

    def cni_words(self, *arguments: str) -> list[str]:
        """The command line of pyztun-cni for our ztunnel."""
        return [self._cni, self.socket_path, *arguments]

    def hand_over(self, words: list[str], pod: Pod) -> Handoff:
        """Runs pyztun-cni and reads all the time in which netns everybody is."""
        before, during = self.cookies(pod), list[Cookies]()
        done = processes.run(words, during=lambda: during.append(self.cookies(pod)))
        return Handoff(done, before, during, self.cookies(pod))

    def cookies(self, pod: Pod) -> Cookies:
        """Asks the kernel anew about each."""
        with NetNs.from_path(pod.reference) as the_pod, NetNs.current() as home:
            ztunnel = evidence.cookie_of_process(self.ztunnel.pid)
            return Cookies(the_pod.cookie, home.cookie, ztunnel)
