"""Asks the sockets of processes in which netns they are, through a copy of each.

Every socket keeps its netns alive, whatever its family. Where a socket is says SO_NETNS_COOKIE on a
copy of it (pidfd_getfd), which needs no capability over the netns and opens nothing; only a cookie
that nobody has told of before leads to SIOCGSKNS, which opens the netns. A descriptor of
/dev/net/tun keeps the netns in which it was opened, and answers SIOCGSKNS too.
"""

from __future__ import annotations

import errno
import fcntl
import os
from functools import partial
from typing import TYPE_CHECKING

from pyztun import native
from pyztun.errors import MissingCapability, SyscallError
from pyztun.fds import own
from pyztun.netns import NetNs
from pyztun.tools import procfs
from pyztun.tools.unreadable import NEEDS_NET_ADMIN, NEEDS_PTRACE

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyztun.tools.census import Census, Netns
    from pyztun.tools.procwalk import Task

SIOCGSKNS = 0x894C
PIDFD_THREAD = os.O_EXCL  # Linux 6.9

SOCKETS = "sockets of a process: pidfd_getfd"
A_SOCKET = "netns of a socket: ioctl SIOCGSKNS"


class SocketWalk:
    """Made when processes and mounts are through: what is new now is held by sockets alone."""

    def __init__(self, census: Census) -> None:
        self._census = census
        self._note = census.unreadable.note
        self._found: dict[int, Netns] = {}
        self._knows_every_cookie = census.knows_every_cookie

    def ask(self, task: Task) -> None:
        """Finds the netns of those sockets of a process that none before has shared with it."""
        unknown = [each for each in task.sockets if each[1] not in self._found]
        if not unknown and not task.tuns:
            return
        try:
            pidfd = os.pidfd_open(task.tid, 0 if task.tid == task.pid else PIDFD_THREAD)
        except OSError as error:
            self._note(SOCKETS, f"pid {task.pid}", error, NEEDS_PTRACE)
            return
        try:
            asks = [(fd, partial(self._ask_socket, inode)) for fd, inode in unknown]
            asks += [(fd, partial(self._ask_tun, task, fd)) for fd in task.tuns]
            for fd, ask in asks:
                if not self._with_copy(pidfd, fd, task, ask):
                    return
        finally:
            os.close(pidfd)

    def pin(self, task: Task) -> None:
        """Tells what the sockets of a process keep alive elsewhere."""
        for fd, inode in task.sockets:
            netns = self._found.get(inode)
            if netns is not None and netns is not task.netns:
                netns.pin("socket", pid=task.pid, fd=fd)

    def _with_copy(self, pidfd: int, fd: int, task: Task, ask: Callable[[int], None]) -> bool:
        """Asks a copy of one descriptor; returns whether the process lets itself be asked."""
        try:
            copy = native.copy_descriptor(pidfd, fd, f"fd {fd}")
        except OSError as error:
            self._note(SOCKETS, f"pid {task.pid}", error, NEEDS_PTRACE)
            return not isinstance(error, PermissionError)
        try:
            with copy:
                ask(copy.fileno())
        except OSError as error:
            self._note(A_SOCKET, f"pid {task.pid} fd {fd}", error, NEEDS_NET_ADMIN)
        return True

    def _ask_socket(self, inode: int, copy: int) -> None:
        cookie = _cookie(copy)
        # It is a socket, so fstat() asks no other filesystem. The descriptor may be another's by
        # now.
        if os.fstat(copy).st_ino != inode:
            return
        found = self._census.known_by_cookie(cookie) or self._open(copy, cookie)
        if found is not None:
            self._found[inode] = found

    def _open(self, copy: int, cookie: int) -> Netns | None:
        try:
            return self._census.add(NetNs(native.socket_netns(copy, "a socket"), "of a socket"))
        except MissingCapability as error:
            self._note(A_SOCKET, f"netns {cookie}", error, NEEDS_NET_ADMIN)
            # One that is in the census without its cookie may be the same.
            is_new = cookie and self._knows_every_cookie
            return self._census.add_unopened(cookie=cookie) if is_new else None

    def _ask_tun(self, task: Task, fd: int, copy: int) -> None:
        if procfs.is_own_tun(copy):
            opened = own(fcntl.ioctl, copy, SIOCGSKNS)
            found = self._census.add(NetNs(opened, "of a tun descriptor"))
            if found is not task.netns:
                found.pin("tun", pid=task.pid, fd=fd)


def _cookie(sock: int) -> int:
    """The cookie of a socket's netns, 0 before Linux 5.14. SyscallError ENOTSOCK."""
    try:
        return native.socket_cookie(sock)
    except SyscallError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return 0
