"""The stage of the demo: home, two pods, the daemon; all that it makes and must clean up."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import NamedTuple

from pyztun.netns import NetNs
from pyztun.tools import evidence, processes
from pyztun.tools.daemon import Ztunnel
from pyztun.tools.deathwatch import Deathwatch

POD_NAMES = ("web", "db")


class Pod:
    """A pod as the demo makes it: a netns, held by one fd of ours and by nothing else.

    :ivar nsid: under which its end will be reported.
    """

    def __init__(self, name: str, deathwatch: Deathwatch) -> None:
        self.name = name
        self.netns = NetNs.create()
        try:
            self.cookie, self.inode = self.netns.cookie, self.netns.inode
            self.nsid = deathwatch.watch(self.netns)
        except BaseException:
            self.netns.close()
            raise

    @property
    def reference(self) -> str:
        """A path under which our processes find the netns; other pods have /run/netns/NAME."""
        return f"/proc/{os.getpid()}/fd/{self.netns.fileno()}"


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


class Stage:
    """Made whole or not at all. SyscallError; MissingCapability without the privilege for it."""

    def __init__(self) -> None:
        with ExitStack() as undo:
            self.home = undo.enter_context(NetNs.current())
            self._deathwatch = undo.enter_context(closing(Deathwatch()))
            pods = []
            for name in POD_NAMES:
                pods.append(Pod(name, self._deathwatch))
                undo.callback(pods[-1].netns.close)
            self.pods = self.web, self.db = tuple(pods)
            self._cni = processes.find("pyztun-cni")
            self._directory = tempfile.mkdtemp(prefix="pyztun-")
            undo.callback(shutil.rmtree, self._directory, ignore_errors=True)
            self._undo = undo.pop_all()
        self._started = False

    def start_ztunnel(self) -> None:
        """Starts the daemon, which is in ``self.ztunnel`` from then on. ProgramError."""
        self.ztunnel = Ztunnel(self._directory)
        self._undo.callback(self.ztunnel.close)
        self._started = True

    def check_ztunnel(self) -> None:
        """ProgramError if the daemon was started and has ended: the cause of what else failed."""
        if self._started:
            self.ztunnel.check_alive()

    def cni_words(self, *arguments: str) -> list[str]:
        """The command line of pyztun-cni for our daemon."""
        return [self._cni, self.ztunnel.socket_path, *arguments]

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

    def is_gone(self, pod: Pod, seconds: float = 0.0) -> bool:
        """Whether the kernel has reported the end of the pod's netns, in ``seconds`` at most."""
        return self._deathwatch.is_gone(pod.nsid, seconds)

    def is_listed(self, pod: Pod) -> bool:
        """Whether the kernel still knows the netns under the number that we had it given."""
        return pod.nsid in self._deathwatch.living()

    def close(self) -> None:
        """Ends the daemon, lets go of the pods, removes the directory. Twice is once."""
        self._undo.close()
