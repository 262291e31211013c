"""The stage of a demo: home, pods, programs; all that it makes and must clean up."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from pyztun.netns import NetNs
from pyztun.tools.daemon import Daemon
from pyztun.tools.deathwatch import Deathwatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DIRECTORY = re.compile(r"pyztun-demo-(\d+)-\w+")
"""The name of a directory that a demo has made, and the pid of that demo."""


class Pod:
    """A pod as the demo makes it: a netns, whose end will be noticed.

    :param netns: taken over; the pod is what it is also when that is closed.
    :ivar reference: a path under which any process of ours finds it.
    :ivar nsid: under which its end will be reported.
    """

    def __init__(self, name: str, netns: NetNs, reference: str, deathwatch: Deathwatch) -> None:
        self.name, self.netns, self.reference = name, netns, reference
        self.cookie, self.inode = netns.cookie, netns.inode
        self.nsid = deathwatch.watch(netns)


class Stage:
    """Home, a watch over the ends of netns, a directory, and the programs.

    :ivar pods: those that are there.
    :ivar ztunnel: the last one that was started.
    :raises SyscallError: MissingCapability without the privilege for it.
    """

    pods: tuple[Pod, ...]
    ztunnel: Daemon

    def __init__(self) -> None:
        self._daemons: list[Daemon] = []
        with ExitStack() as undo:
            self.home = undo.enter_context(NetNs.current())
            self.deathwatch = undo.enter_context(closing(Deathwatch()))
            remove_remains()
            self.directory = tempfile.mkdtemp(prefix=f"pyztun-demo-{os.getpid()}-")
            undo.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self.undo = undo.pop_all()

    def start(self, words: Sequence[str], env: Mapping[str, str] | None = None) -> Daemon:
        """Starts a program that is ended with the stage. ProgramError."""
        notify_path = f"{self.directory}/notify-{len(self._daemons) + 1}"
        daemon = Daemon(words, notify_path, env or {})
        self._daemons.append(daemon)
        self.undo.callback(daemon.close)
        return daemon

    def check_programs(self) -> None:
        """ProgramError if one has ended that should run: the cause of what else failed."""
        for daemon in self._daemons:
            daemon.check_alive()

    def is_gone(self, pod: Pod, seconds: float = 0.0) -> bool:
        """Whether the kernel has reported the end of the pod's netns, in ``seconds`` at most."""
        return self.deathwatch.is_gone(pod.nsid, seconds)

    def is_listed(self, pod: Pod) -> bool:
        """Whether the kernel still knows the netns under the number that we had it given."""
        return pod.nsid in self.deathwatch.living()

    def close(self) -> None:
        """Ends the programs, lets go of the pods, removes the directory. Twice is once."""
        self.undo.close()


def remove_remains() -> None:
    """Deletes the directories that a killed demo of ours left; not those of a living one."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(tempfile.gettempdir()):
            made_by = DIRECTORY.fullmatch(entry.name)
            if made_by and not is_alive(made_by[1]) and _is_ours(entry):
                shutil.rmtree(entry.path, ignore_errors=True)


def _is_ours(entry: os.DirEntry[str]) -> bool:
    """The directory is everybody's: others may make what looks like a demo's."""
    return entry.stat(follow_symlinks=False).st_uid == os.geteuid()


def is_alive(pid: str) -> bool:
    """Whether a process has that pid."""
    return os.path.exists(f"/proc/{pid}")
