"""A census of the network namespaces: each once, with what is in it and what keeps it alive.

The kernel has no list of namespaces. A netns lives while something refers to it, so all that can
refer to one is looked through: mounts, processes and their threads, descriptors, sockets. Each is
identified by its inode, which nsfs gives to one living namespace at a time; the census keeps open
what it has found until it is done, so that no inode changes hands meanwhile.
"""

from __future__ import annotations

import contextlib
import resource
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pyztun import native
from pyztun.errors import SyscallError
from pyztun.netns import NetNs
from pyztun.tools import sockdiag
from pyztun.tools.unreadable import NEEDS_SYS_ADMIN, Unreadable

if TYPE_CHECKING:
    from pyztun.tools.sockdiag import Listening, Place

FDS_TO_SPARE = 64
KINDS = ("process", "thread", "mount", "fd", "socket", "tun")


class Pin(NamedTuple):
    """One thing that keeps a netns alive; docs/netns-ls.md has the kinds."""

    kind: str
    pid: int | None = None
    fd: int | None = None
    tid: int | None = None
    path: str | None = None


@dataclass
class Netns:
    """One network namespace.

    :ivar inode: None where only a socket's cookie is known of it.
    :ivar cookie: None where the kernel does not tell it.
    :ivar listening: None where it could not be asked.
    """

    inode: int | None
    cookie: int | None
    is_home: bool = False
    was_opened: bool = False
    names: set[str] = field(default_factory=set)
    paths: set[str] = field(default_factory=set)
    processes: list[int] = field(default_factory=list)
    listening: list[Listening] | None = None
    pins: dict[Pin, None] = field(default_factory=dict)

    def pin(self, kind: str, **what: Any) -> None:
        """Adds a Pin."""
        self.pins[Pin(kind, **what)] = None

    @property
    def pinned_by(self) -> list[Pin]:
        """The pins in the order of their kinds, processes and descriptors."""
        return sorted(
            self.pins,
            key=lambda pin: (KINDS.index(pin.kind), pin.pid or 0, pin.tid or 0, pin.fd or 0),
        )

    @property
    def is_hidden(self) -> bool:
        """Whether neither ``ip netns`` nor lsns(8) would find it: no mount here, no process."""
        return not any(
            pin.kind == "process" or (pin.kind == "mount" and pin.pid is None) for pin in self.pins
        )


class Census:
    """What has been found so far; Walk fills it. Close it when done."""

    def __init__(self) -> None:
        self.unreadable = Unreadable()
        self.commands: dict[int, str] = {}
        self.holders: dict[int, list[tuple[int, int]]] = {}
        """Inode of a socket -> (pid, fd) of each descriptor of it."""
        self._by_inode: dict[int, Netns] = {}
        self._by_cookie: dict[int, Netns] = {}
        self._held: list[NetNs] = []
        self._room = _raise_fd_limit() - FDS_TO_SPARE
        self.home = self._count(NetNs.current(), is_home=True)

    @property
    def netns(self) -> list[Netns]:
        """Home first, then by name, then those without a name by cookie."""
        every = {id(each): each for each in (*self._by_inode.values(), *self._by_cookie.values())}

        def place(one: Netns) -> tuple[bool, bool, bool, list[str], int, int]:
            label = sorted(one.names or one.paths)
            numbers = (one.cookie or 0, one.inode or 0)
            return (not one.is_home, not one.names, not label, label, *numbers)

        return sorted(every.values(), key=place)

    @property
    def knows_every_cookie(self) -> bool:
        """Whether a cookie that leads to no netns so far is one of a new netns."""
        return all(each.cookie for each in self._by_inode.values())

    def known(self, inode: int) -> Netns | None:
        """The netns of an inode, if it was opened before."""
        found = self._by_inode.get(inode)
        return found if found is not None and found.was_opened else None

    def known_by_cookie(self, cookie: int) -> Netns | None:
        """The netns of a cookie, if it was found before."""
        return self._by_cookie.get(cookie)

    def add(self, opened: NetNs) -> Netns:
        """Counts a netns, and takes it over."""
        known = self.known(opened.inode)
        if known is None:
            return self._count(opened)
        opened.close()
        return known

    def add_unopened(self, inode: int | None = None, cookie: int | None = None) -> Netns:
        """Counts a netns of which no more than one number is known."""
        found = Netns(inode, cookie)
        if inode is not None:
            return self._by_inode.setdefault(inode, found)
        return self._by_cookie.setdefault(cookie or 0, found)

    def listening(self, one: Netns) -> list[tuple[Place, list[int]]]:
        """Where something listens in a netns, and the processes that hold one of the sockets there.

        Several sockets can share a place (SO_REUSEPORT). No process: none whose descriptors could
        be read.
        """
        owners: dict[Place, set[int]] = {}
        for place, inode in one.listening or ():
            owners.setdefault(place, set()).update(pid for pid, _ in self.holders.get(inode, ()))
        return [(place, sorted(pids)) for place, pids in sorted(owners.items())]

    def _count(self, opened: NetNs, is_home: bool = False) -> Netns:
        found = self._by_inode.setdefault(opened.inode, Netns(opened.inode, None, is_home))
        found.was_opened = True
        diag = self._ask_listening(opened, found)
        found.cookie = self._cookie(opened, diag)
        if diag is not None:
            diag.close()
        if found.cookie is not None:
            self._by_cookie[found.cookie] = found
        if len(self._held) < self._room:
            self._held.append(opened)
        else:
            opened.close()
        return found

    def _ask_listening(self, opened: NetNs, found: Netns) -> socket.socket | None:
        what = "listening sockets of a netns"
        subject = f"inode {opened.inode}"
        try:
            # Nobody needs a capability for a socket at home.
            make = socket.socket if found.is_home else opened.socket
            diag = make(socket.AF_NETLINK, socket.SOCK_RAW, sockdiag.NETLINK_SOCK_DIAG)
        except OSError as error:
            self.unreadable.note(what, subject, error, NEEDS_SYS_ADMIN)
            return None
        try:
            found.listening = sockdiag.listening(diag)
        except OSError as error:
            self.unreadable.say(what, subject, str(error))
        return diag

    def _cookie(self, opened: NetNs, diag: socket.socket | None) -> int | None:
        """Before Linux 6.18 only a socket in the netns tells the cookie."""
        try:
            return native.socket_cookie(diag.fileno()) if diag else opened.cookie
        except SyscallError as error:
            self.unreadable.note(
                "cookie of a netns", f"inode {opened.inode}", error, NEEDS_SYS_ADMIN
            )
            return None

    def close(self) -> None:
        """Lets go of every netns."""
        for each in self._held:
            each.close()
        self._held.clear()


def _raise_fd_limit() -> int:
    """Every netns takes a descriptor; returns how many this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return soft if soft != resource.RLIM_INFINITY else 1 << 20
