"""Walks through mounts, processes, threads and descriptors and tells a Census of each.

Order matters. Our own mounts come first, since they name things. Then each process with its threads
and descriptors; the mounts of other mount namespaces are read with the first process that is in
one, but a netns that only such a mount holds is opened when all processes are through: by then few
are left to be looked up below /proc/PID/root, where a process decides what lies on the way. Sockets
come last (sockwalk.py): only what nothing else keeps has to be opened through one.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import psutil

from pyztun.errors import NotANetns
from pyztun.netns import NAMES, NetNs
from pyztun.tools import procfs
from pyztun.tools.sockwalk import SocketWalk
from pyztun.tools.unreadable import NEEDS_PTRACE, NEEDS_SEARCH

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from pyztun.tools.census import Census, Netns

    T = TypeVar("T")

    Progress = Callable[[str, int, int], None]
    """Told what is looked through, how many of them are done, and how many there are."""

PROCESS_NETNS = "netns of a process: /proc/PID/ns/net"
THREAD_NETNS = "netns of a thread: /proc/PID/task/TID/ns/net"
DESCRIPTORS = "descriptors of a process: /proc/PID/fd"
MOUNTS = "mounts that a process sees: /proc/PID/mountinfo"
A_MOUNT = "netns behind a mount point"
OTHERS = "processes that /proc hides"


class Mounted(NamedTuple):
    """A mount of a netns, and how to reach it.

    :ivar path: as it is to be opened.
    :ivar reader: whose /proc/PID/mountinfo has it.
    :ivar needs: the capability that opening the path can need.
    """

    mount: procfs.NetnsMount
    path: str
    reader: int | str
    needs: str


@dataclass
class Task:
    """A process, or one of its threads if the main thread has ended.

    :ivar netns: in which its main thread is, None where that could not be read.
    """

    pid: int
    tid: int
    netns: Netns | None = None
    sockets: list[tuple[int, int]] = field(default_factory=list)  # (fd, inode)
    tuns: list[int] = field(default_factory=list)

    @property
    def path(self) -> str:
        """Its directory below /proc."""
        return f"/proc/{self.pid}" if self.tid == self.pid else f"/proc/{self.pid}/task/{self.tid}"


class Walk:
    """One walk; run() does it all."""

    def __init__(self, census: Census, progress: Progress) -> None:
        self._census, self._progress = census, progress
        self._note = census.unreadable.note
        self._other_mounts: set[int] = set()
        self._mount_namespaces: set[int] = set()
        self._far_mounts: list[tuple[int, procfs.NetnsMount]] = []
        self._later: dict[int | str, set[procfs.NetnsMount]] = {}
        self._unreached: list[tuple[Mounted, OSError | None]] = []
        self._out_of_sight: set[procfs.NetnsMount] = set()
        self._tasks: list[Task] = []
        self._met: list[int] = []

    def run(self) -> None:
        """Fills the census. OSError only for what makes it worthless: no /proc."""
        self._own_mounts()
        self._each("processes", psutil.pids(), self._process)
        self._each("mounts", self._far_mounts, self._far_mount)
        sockets = SocketWalk(self._census)
        self._each("sockets", self._tasks, sockets.ask)
        for task in self._tasks:
            sockets.pin(task)
        self._say_unreached()
        self._each("commands", self._met, self._command)

    def _each(self, what: str, things: Sequence[T], look: Callable[[T], None]) -> None:
        for number, thing in enumerate(things):
            self._progress(what, number, len(things))
            look(thing)

    def _command(self, pid: int) -> None:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            # A kernel thread has no command line.
            words = process.cmdline() or [f"[{process.name()}]"]
            self._census.commands[pid] = " ".join(words).strip()

    # ---- mounts ------------------------------------------------------------------------------

    def _own_mounts(self) -> None:
        mounts = procfs.mounts("thread-self")
        self._other_mounts |= mounts.other
        self._mount_namespaces.add(procfs.namespace("/proc/thread-self/ns/mnt"))
        if mounts.hides_processes and not procfs.may_trace_all():
            why = "mounted with hidepid (needs CAP_SYS_PTRACE)"
            self._census.unreadable.say(OTHERS, "/proc", why)
        self._each("names", mounts.netns, self._own_mount)

    def _own_mount(self, mount: procfs.NetnsMount) -> None:
        netns = self._reach(Mounted(mount, mount.path, "thread-self", NEEDS_SEARCH))
        if netns is None:
            return
        if mount not in self._out_of_sight:
            directory, name = posixpath.split(mount.path)
            if directory == NAMES:
                netns.names.add(name)
            netns.paths.add(mount.path)
        netns.pin("mount", path=mount.path)

    def _reach(self, mounted: Mounted) -> Netns | None:
        """The netns of a mount, None if it is unmounted by now.

        It exists even where its mount point leads elsewhere.
        """
        why: OSError | None = None
        try:
            found = self._census.add(procfs.open_mount(mounted.path))
            if found.inode == mounted.mount.inode:
                return found
        except OSError as error:
            why = error
        if not self._is_mounted(mounted):
            return None
        self._unreached.append((mounted, why))
        if not isinstance(why, PermissionError):
            self._out_of_sight.add(mounted.mount)
        return self._census.add_unopened(mounted.mount.inode)

    def _is_mounted(self, mounted: Mounted) -> bool:
        """Whether it is still there; read once for all mounts of a mount namespace."""
        if mounted.reader not in self._later:
            with contextlib.suppress(OSError):
                self._later[mounted.reader] = set(procfs.mounts(mounted.reader).netns)
        return mounted.mount in self._later.get(mounted.reader, ())

    def _say_unreached(self) -> None:
        """Of what nothing else has led to."""
        for mounted, why in self._unreached:
            if self._census.known(mounted.mount.inode) is not None:
                continue
            if why is None or isinstance(why, (NotANetns, FileNotFoundError)):
                self._census.unreadable.say(A_MOUNT, mounted.path, "another mount hides it")
            else:
                self._note(A_MOUNT, mounted.path, why, mounted.needs)

    def _mounts_of(self, pid: int) -> None:
        """Reads the mounts of a mount namespace when its first process is met."""
        try:
            namespace = procfs.namespace(f"/proc/{pid}/ns/mnt")
            if namespace in self._mount_namespaces:
                return
            mounts = procfs.mounts(pid)
        except OSError as error:
            self._note(MOUNTS, f"pid {pid}", error, NEEDS_PTRACE)
            return
        self._mount_namespaces.add(namespace)
        self._other_mounts |= mounts.other
        self._far_mounts += [(pid, mount) for mount in mounts.netns]

    def _far_mount(self, seen: tuple[int, procfs.NetnsMount]) -> None:
        pid, mount = seen
        netns = self._census.known(mount.inode)
        if netns is None:
            path = f"/proc/{pid}/root{mount.path}"
            netns = self._reach(Mounted(mount, path, pid, NEEDS_PTRACE))
            if netns is None:
                return
            if netns.was_opened:
                netns.paths.add(path)
        netns.pin("mount", pid=pid, path=mount.path)

    # ---- processes, threads, descriptors -----------------------------------------------------

    def _process(self, pid: int) -> None:
        self._met.append(pid)
        task = Task(pid, pid)
        try:
            task.netns = self._at(f"/proc/{pid}/ns/net")
        except OSError as error:
            self._note(PROCESS_NETNS, f"pid {pid}", error, NEEDS_PTRACE)
        if task.netns is not None:
            task.netns.processes.append(pid)
            task.netns.pin("process", pid=pid)
        self._mounts_of(pid)
        # What this process does in a netns, it does to look at it. That goes for threads too: one
        # that pthread_join() has returned for is in its netns until exit_task_namespaces() in
        # do_exit(), a moment later.
        if pid != os.getpid():
            self._threads(task)
            self._descriptors(task)

    def _at(self, path: str) -> Netns | None:
        """The netns to which a link below /proc leads, None if it is gone. OSError."""
        found = self._census.known(procfs.namespace(path))
        return found if found is not None else self._census.add(NetNs.from_path(path))

    def _threads(self, task: Task) -> None:
        with contextlib.suppress(OSError):  # the process has ended
            for tid in map(int, os.listdir(f"/proc/{task.pid}/task")):
                if tid != task.pid:
                    self._thread(task, tid)

    def _thread(self, task: Task, tid: int) -> None:
        try:
            netns = self._at(f"/proc/{task.pid}/task/{tid}/ns/net")
        except OSError as error:
            self._note(THREAD_NETNS, f"pid {task.pid}", error, NEEDS_PTRACE)
            return
        if netns is not None and netns is not task.netns:
            netns.pin("thread", pid=task.pid, tid=tid)
            if task.netns is None:
                # The main thread has ended, and with it /proc/PID/fd.
                task.tid = tid

    def _descriptors(self, task: Task) -> None:
        self._tasks.append(task)
        try:
            for fd, kind, inode in procfs.descriptors(task.path, self._other_mounts):
                if kind == "socket":
                    task.sockets.append((fd, inode))
                    self._census.holders.setdefault(inode, []).append((task.pid, fd))
                elif kind == "tun":
                    task.tuns.append(fd)
                else:
                    self._netns_descriptor(task, fd, inode)
        except OSError as error:
            self._note(DESCRIPTORS, f"pid {task.pid}", error, NEEDS_PTRACE)

    def _netns_descriptor(self, task: Task, fd: int, inode: int) -> None:
        netns = self._census.known(inode)
        if netns is None:
            try:
                netns = self._census.add(procfs.open_descriptor(task.path, fd))
            except NotANetns:
                return
            except OSError as error:
                self._note(DESCRIPTORS, f"pid {task.pid}", error, NEEDS_PTRACE)
                return
        if netns is not task.netns:
            netns.pin("fd", pid=task.pid, fd=fd)
