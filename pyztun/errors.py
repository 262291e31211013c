"""The exceptions, and the one place where an errno becomes one of them.

Every error of a system call is an OSError with its errno, and its text names the syscall, the
object and what is missing: ``setns /run/netns/x: EPERM (needs CAP_SYS_ADMIN ...)``.
"""

from __future__ import annotations

import errno


class PyztunError(Exception):
    """Base of everything that this package raises on purpose."""


class ProtocolError(PyztunError):
    """A peer said something that the protocol does not allow."""


class PeerClosed(ProtocolError):
    """The peer closed the connection where an answer or the rest of a message was due."""


class SyscallError(PyztunError, OSError):
    """A system call failed. ``errno`` as usual; the text names the syscall and its object."""

    def __str__(self) -> str:
        return str(self.strerror)


class NetnsError(SyscallError):
    """Something about a network namespace failed."""


class NetnsGone(NetnsError, FileNotFoundError):
    """There is no network namespace of that name, path or process (any more)."""


class NotANetns(NetnsError):
    """The path or descriptor exists but is not a network namespace."""


class MissingCapability(NetnsError, PermissionError):
    """The kernel refused for want of a capability; the text names it and where it is needed."""


class AddressInUse(NetnsError):
    """Another socket in that netns has the address (EADDRINUSE)."""


class UnsupportedFamily(NetnsError):
    """That netns has no sockets of this address family (EAFNOSUPPORT)."""


class NetnsClosed(NetnsError, ValueError):
    """The NetNs was closed by its owner (EBADF)."""


# A reader of python catches these by their built-in names: ``except TimeoutError`` holds here too.


class TimedOut(SyscallError, TimeoutError):
    """ETIMEDOUT."""


class WouldBlock(SyscallError, BlockingIOError):
    """EAGAIN or EINPROGRESS: not now, and the caller asked not to wait."""


class Refused(SyscallError, ConnectionRefusedError):
    """ECONNREFUSED."""


class Reset(SyscallError, ConnectionResetError):
    """ECONNRESET."""


class Broken(SyscallError, BrokenPipeError):
    """EPIPE."""


class NotPermitted(SyscallError, PermissionError):
    """EACCES or EPERM for another reason than a missing capability that we know."""


class NotFound(SyscallError, FileNotFoundError):
    """ENOENT."""


class AlreadyThere(SyscallError, FileExistsError):
    """EEXIST."""


class Aborted(SyscallError, ConnectionAbortedError):
    """ECONNABORTED."""


class NoProcess(SyscallError, ProcessLookupError):
    """ESRCH."""


class NotADirectory(SyscallError, NotADirectoryError):
    """ENOTDIR."""


class IsADirectory(SyscallError, IsADirectoryError):
    """EISDIR."""


class Interrupted(SyscallError, InterruptedError):
    """EINTR."""


_KINDS = {
    errno.EADDRINUSE: AddressInUse,
    errno.EAFNOSUPPORT: UnsupportedFamily,
    errno.ETIMEDOUT: TimedOut,
    errno.EAGAIN: WouldBlock,
    errno.EINPROGRESS: WouldBlock,
    errno.EALREADY: WouldBlock,
    errno.ECONNREFUSED: Refused,
    errno.ECONNRESET: Reset,
    errno.ECONNABORTED: Aborted,
    errno.EPIPE: Broken,
    errno.ESHUTDOWN: Broken,
    errno.EACCES: NotPermitted,
    errno.EPERM: NotPermitted,
    errno.ENOENT: NotFound,
    errno.EEXIST: AlreadyThere,
    errno.ESRCH: NoProcess,
    errno.ENOTDIR: NotADirectory,
    errno.EISDIR: IsADirectory,
    errno.EINTR: Interrupted,
}

_BOTH_SIDES = "in the user namespace that owns the netns and in our own"
_NEEDS = {
    "setns": f"CAP_SYS_ADMIN {_BOTH_SIDES}",
    "setns(home)": "CAP_SYS_ADMIN over our own netns, for the way back from a pod: root has it",
    "unshare(CLONE_NEWNET)": "CAP_SYS_ADMIN",
    "ioctl(SIOCSIFFLAGS)": "CAP_NET_ADMIN over the new netns, to set its loopback up",
    "mount": "CAP_SYS_ADMIN",
    "umount": "CAP_SYS_ADMIN",
    "socket": "CAP_NET_RAW over the netns, for a raw or packet socket",
    "ioctl(SIOCGSKNS)": "CAP_NET_ADMIN over the netns of the socket",
    "pidfd_getfd": "CAP_SYS_PTRACE over the process",
    "bind": "CAP_NET_BIND_SERVICE over the netns for a port below its ip_unprivileged_port_start",
    "setsockopt(IP_TRANSPARENT)": "CAP_NET_ADMIN or CAP_NET_RAW over the netns",
    "setsockopt(SO_MARK)": "CAP_NET_ADMIN or CAP_NET_RAW over the netns",
}
_HINTS = {
    (errno.EAFNOSUPPORT, "socket"): "this address family is not available in the netns",
    (errno.EADDRNOTAVAIL, "bind"): "no interface in the netns has this address: "
    "is lo up there, and IPv6 on?",
    (errno.EEXIST, "open(O_CREAT)"): "a netns of this name is there already",
    (errno.EMFILE, None): "the fd limit of this process (RLIMIT_NOFILE) is reached",
    (errno.ENFILE, None): "the fd limit of this machine (fs.file-max) is reached",
    (errno.ENOSPC, "unshare(CLONE_NEWNET)"): "the limit user.max_net_namespaces is reached",
}


def name_of(number: int) -> str:
    """The symbolic name of an errno, for example ``EPERM``."""
    return errno.errorcode.get(number, f"errno {number}")


def explain(number: int, syscall: str, subject: str, hint: str = "") -> SyscallError:
    """Makes the exception for a failed system call.

    :param number: the errno, positive.
    :param syscall: what failed, as ``pz_step_name()`` says it.
    :param subject: what it failed on: a path, a reference, an address.
    :param hint: what the caller knows of this errno, in place of the general hint.
    :returns: the exception, not raised.
    """
    text = f"{syscall} {subject}: {name_of(number)}".replace(" :", ":")
    if number in (errno.EPERM, errno.EACCES) and syscall in _NEEDS:
        return MissingCapability(number, f"{text} (needs {_NEEDS[syscall]})")
    hint = hint or _HINTS.get((number, syscall)) or _HINTS.get((number, None)) or ""
    if hint:
        text = f"{text} ({hint})"
    return _KINDS.get(number, SyscallError)(number, text)
