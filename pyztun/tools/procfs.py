"""What /proc tells of namespaces, mounts and descriptors; no other filesystem is asked anything.

stat(2) or open(2) of /proc/PID/fd/N asks the filesystem of that file, and a dead NFS server or a
hostile FUSE server never answers. So a descriptor is judged by what the kernel itself knows: the
text of its link, and in /proc/PID/fdinfo/N the mount that it was opened through. Only where that
mount is unknown is the file looked up with O_PATH, which opens nothing, and asked by statx() with
AT_STATX_DONT_SYNC, which answers from the inode in memory.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from pyztun.netns import NetNs, open_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

NETNS_LINK, SOCKET_LINK = "net:[", "socket:["
CAP_SYS_PTRACE = 19
HIDING = re.compile(r"\bhidepid=(2|4|invisible|ptraceable)\b")
OCTAL = re.compile(r"\\([0-7]{3})")


def number_in(link: str) -> int:
    """The inode number of a link such as ``net:[4026531833]``."""
    return int(link[link.index("[") + 1 : -1])


def namespace(path: str) -> int:
    """The inode number of a namespace, by its link below /proc/PID/ns. OSError."""
    return number_in(os.readlink(path))


class NetnsMount(NamedTuple):
    """A netns that is mounted: its inode, and where."""

    inode: int
    path: str


@dataclass
class Mounts:
    """The mounts of one mount namespace, as one process in it sees them.

    :ivar netns: those of network namespaces.
    :ivar other: the mount ids of all others.
    :ivar hides_processes: /proc leaves out processes that the reader may not trace (hidepid).
    """

    netns: list[NetnsMount] = field(default_factory=list)
    other: set[int] = field(default_factory=set)
    hides_processes: bool = False


def mounts(pid: int | str) -> Mounts:
    """Reads /proc/PID/mountinfo; proc(5) has the format. OSError."""
    found = Mounts()
    with open(f"/proc/{pid}/mountinfo", errors="surrogateescape", newline="\n") as lines:
        for line in lines:
            number, _, _, root, path, rest = line.split(" ", 5)
            if root.startswith(NETNS_LINK) and " - nsfs " in rest:
                found.netns.append(NetnsMount(number_in(root), _unescape(path)))
                continue
            found.other.add(int(number))
            if path == "/proc":
                found.hides_processes = bool(HIDING.search(rest))
    return found


def _unescape(path: str) -> str:
    return OCTAL.sub(lambda match: chr(int(match[1], 8)), path) if "\\" in path else path


class Descriptor(NamedTuple):
    """A descriptor that can keep a netns alive.

    :ivar kind: ``socket``, ``netns``, ``tun``, or ``path``: a file that may be a netns.
    :ivar inode: of a ``socket`` or ``netns``, else 0.
    """

    fd: int
    kind: str
    inode: int


def descriptors(task: str, other_mounts: set[int]) -> Iterator[Descriptor]:
    """Those descriptors of a process or thread that can keep a netns alive. OSError.

    :param task: ``/proc/PID`` or ``/proc/PID/task/TID``.
    :param other_mounts: ids of mounts that are not of a netns; a file there is passed over.
    """
    directory = os.open(f"{task}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in os.listdir(directory):
            try:
                link = os.readlink(name, dir_fd=directory)
                if link.startswith(SOCKET_LINK):
                    yield Descriptor(int(name), "socket", number_in(link))
                elif link.startswith(NETNS_LINK):
                    yield Descriptor(int(name), "netns", number_in(link))
                elif link.startswith("/"):
                    # A netns that was opened by a path reads as that path, and as `/` once the
                    # mount is gone.
                    info = _fdinfo(f"{task}/fdinfo/{name}")
                    if is_tun(info):
                        yield Descriptor(int(name), "tun", 0)
                    elif mount_id(info) not in other_mounts:
                        yield Descriptor(int(name), "path", 0)
            except (FileNotFoundError, ProcessLookupError):
                continue  # closed meanwhile
    finally:
        os.close(directory)


def _fdinfo(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def mount_id(fdinfo: bytes) -> int:
    """The mount through which a descriptor was opened, by its fdinfo."""
    return int(fdinfo.partition(b"mnt_id:")[2].partition(b"\n")[0])


def is_tun(fdinfo: bytes) -> bool:
    """Whether it is /dev/net/tun, whose driver adds the name of its interface."""
    return b"\niff:" in fdinfo


def is_own_tun(fd: int) -> bool:
    """Whether a descriptor of ours is /dev/net/tun."""
    return is_tun(_fdinfo(f"/proc/self/fdinfo/{fd}"))


def open_descriptor(task: str, fd: int) -> NetNs:
    """Opens a descriptor of another process if it is a netns. NotANetns, OSError."""
    path = f"{task}/fd/{fd}"
    return NetNs(open_namespace(path, path), path)


def open_mount(path: str) -> NetNs:
    """Opens a mount point if it is one of a netns. NotANetns, OSError."""
    # Whoever may write there can have put a symbolic link in its place meanwhile.
    return NetNs(open_namespace(path, path, follow=False), path)


def may_trace_all() -> bool:
    """Whether this process has CAP_SYS_PTRACE in its user namespace."""
    with open("/proc/self/status") as lines:
        mask = next((line.split()[1] for line in lines if line.startswith("CapEff:")), "0")
    return bool(int(mask, 16) >> CAP_SYS_PTRACE & 1)
