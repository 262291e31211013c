"""NetNs: a network namespace held by an fd, and sockets in it.

There is no ``with netns:`` that moves the caller, on purpose: threads and executors born inside
such a block stay in the pod for ever. Sockets are made by one native call that goes there and
comes back.
"""

from __future__ import annotations

import errno
import os

from pyztun import native
from pyztun.errors import MissingCapability, NetnsGone, explain
from pyztun.fds import OwnedFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from types import TracebackType

NAMES = "/run/netns"
MAX_DIGITS = 10

# O_NONBLOCK and O_NOCTTY: a typo may name a FIFO or a terminal, and opening must do nothing to
# either.
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class NetNs:
    """Holds a network namespace open; ``open``, ``from_*``, ``current`` and ``create`` make one.

    The namespace lives at least as long as this object is open. Methods may be called from any
    thread; close() must not race with them.
    """

    __slots__ = ("_cookie", "_fd", "_pinned", "dev", "inode", "reference")

    def __init__(self, fd: OwnedFd, reference: str) -> None:
        """Takes ownership of ``fd`` (also when this raises). NotANetns if it is something else."""
        try:
            self.dev, self.inode, self._cookie = native.inspect(fd.fileno(), reference)
        except BaseException:
            fd.close()
            raise
        self._fd = fd
        self._pinned: str | None = None
        self.reference = reference

    @classmethod
    def open(cls, reference: str) -> NetNs:
        """Opens what a user wrote: a path, a bare name, ``pid:N`` or ``fd:N``.

        NetnsGone, NotANetns.
        """
        kind, colon, number = reference.partition(":")
        # Ten digits hold every pid and fd; a longer number names nothing, and int() has limits.
        is_number = number.isascii() and number.isdigit() and len(number) <= MAX_DIGITS
        if colon and kind in ("pid", "fd") and is_number:
            return cls.from_pid(int(number)) if kind == "pid" else cls.from_fd(int(number))
        if "/" in reference:
            return cls.from_path(reference)
        return cls.from_name(reference)

    @classmethod
    def from_path(cls, path: str, reference: str | None = None) -> NetNs:
        """Opens a namespace file such as ``/run/netns/ns2`` or ``/proc/7/ns/net``."""
        reference = path if reference is None else reference
        try:
            fd = OwnedFd(os.open(path, _OPEN))
        except ValueError as error:  # a NUL byte
            raise NetnsGone(errno.ENOENT, f"{reference!r}: no such netns") from error
        except OSError as error:
            raise _cannot_open(error.errno or errno.EIO, reference) from error
        return cls(fd, reference)

    @classmethod
    def from_name(cls, name: str) -> NetNs:
        """Opens ``/run/netns/NAME``, as ``ip netns`` names it."""
        if not _is_name(name):
            raise NetnsGone(errno.ENOENT, f"{name!r} is not a name of a netns")
        return cls.from_path(f"{NAMES}/{name}", name)

    @classmethod
    def from_pid(cls, pid: int) -> NetNs:
        """Opens the netns of a process' main thread; another user's needs CAP_SYS_PTRACE."""
        return cls.from_path(f"/proc/{pid}/ns/net", f"pid:{pid}")

    @classmethod
    def from_fd(cls, fd: int) -> NetNs:
        """Takes a duplicate of ``fd``, which stays the caller's."""
        try:
            own = OwnedFd(os.dup(fd))
        except OverflowError as error:
            raise _cannot_open(errno.EBADF, f"fd:{fd}") from error
        except OSError as error:
            raise _cannot_open(error.errno or errno.EIO, f"fd:{fd}") from error
        return cls(own, f"fd:{fd}")

    @classmethod
    def current(cls) -> NetNs:
        """The netns in which the calling thread is."""
        return cls(native.home(), "current")

    @classmethod
    def create(cls, name: str | None = None) -> NetNs:
        """Makes a fresh netns with loopback up; the calling thread does not move.

        :param name: also gives it a name under /run/netns, which outlives this object until
            remove().
        :raises MissingCapability: without CAP_SYS_ADMIN.
        """
        if name is not None and not _is_name(name):
            raise ValueError(f"{name!r} is not a name of a netns")
        fresh = cls(native.create_netns(), name or "fresh netns")
        if name is not None:
            path = f"{NAMES}/{name}"
            try:
                native.pin_netns(fresh.fileno(), NAMES, path)
            except BaseException:
                fresh.close()
                raise
            fresh._pinned = path
        return fresh

    def fileno(self) -> int:
        """The fd of the namespace, still owned by this object. ValueError once closed."""
        fd = self._fd.fileno()
        if fd < 0:
            raise ValueError(f"this NetNs ({self.reference}) is closed")
        return fd

    @property
    def cookie(self) -> int:
        """The netns cookie: never reused before the next boot.

        Before Linux 6.18 the kernel tells it only through a socket in the netns, which needs
        CAP_SYS_ADMIN the first time.
        """
        if self._cookie == 0:
            self._cookie = native.netns_cookie(self.fileno(), self.reference)
        return self._cookie

    @property
    def owner_uid(self) -> int:
        """uid of the owner of the user namespace that owns this netns.

        EPERM if that is outside ours.
        """
        return native.owner(self.fileno(), self.reference)

    def is_same(self, other: NetNs) -> bool:
        """Whether both hold the same namespace; both being open, no inode was reused."""
        return (self.dev, self.inode) == (other.dev, other.inode)

    def listen(
        self,
        *addresses: tuple[str, int],
        backlog: int = 128,
        reuse_address: bool = True,
        reuse_port: bool = False,
        transparent: bool = False,
        freebind: bool = False,
        v6only: bool = True,
        mark: int = 0,
    ) -> list[socket.socket]:
        """TCP listeners in this netns, all or none, made in one excursion.

        :param addresses: (IP literal, port) pairs, IPv4 or IPv6; at most 64. A host name is a
            ValueError, since it would have to be resolved in one netns or the other.
        :param backlog: for listen(2), capped by the pod's net.core.somaxconn.
        :param v6only: IPv6 listeners take no IPv4 connections.
        :param mark: SO_MARK of the listeners, 0 for none.
        :returns: blocking sockets that the caller owns, non-inheritable.
        :raises MissingCapability, AddressInUse, SyscallError: nothing is left open then.
        """
        import socket

        wanted = {
            native.REUSEADDR: reuse_address,
            native.REUSEPORT: reuse_port,
            native.TRANSPARENT: transparent,
            native.FREEBIND: freebind,
            native.V6ONLY: v6only,
        }
        flags = sum(flag for flag, on in wanted.items() if on)
        plan = native.ListenPlan(
            listener_spec(host, port, backlog=backlog, flags=flags, mark=mark)
            for host, port in addresses
        )
        fds = plan.open(self.fileno(), -1, f"netns {self.reference}")
        return [socket.socket(fileno=fd) for fd in fds]

    def remove(self) -> None:
        """Deletes the name that create(name) gave; the netns itself dies with its last holder."""
        if self._pinned is not None:
            path, self._pinned = self._pinned, None
            native.unpin_netns(path)
            os.unlink(path)

    def close(self) -> None:
        """Lets go of the namespace; does nothing the second time."""
        self._fd.close()

    def __enter__(self) -> NetNs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<NetNs {self.reference} inode {self.inode}>"


def listener_spec(
    host: str, port: int, *, backlog: int, flags: int, mark: int = 0
) -> native.ListenerSpec:
    """A ListenerSpec for an IP literal, IPv6 with an optional ``%ifindex``.

    ValueError otherwise.
    """
    import socket

    address, _, scope = host.partition("%")
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            packed = socket.inet_pton(family, address)
        except (OSError, ValueError):
            continue
        if scope and (family == socket.AF_INET or not _is_ifindex(scope)):
            break
        return native.ListenerSpec(
            host, packed, port, backlog=backlog, flags=flags, mark=mark, scope_id=int(scope or 0)
        )
    raise ValueError(f"{host!r} is not an IP address (a name is resolved by the caller, at home)")


def _is_name(text: str) -> bool:
    """Whether the text can be the name of a file below NAMES."""
    return text not in ("", ".", "..") and not set(text) & {"/", "\0"}


def _is_ifindex(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS and int(text) < 2**31


def _cannot_open(number: int, reference: str) -> Exception:
    if number in (errno.ENOENT, errno.ENOTDIR, errno.ESRCH, errno.EBADF, errno.ENAMETOOLONG):
        kind = reference.partition(":")[0]
        what = {"pid": "no such process, or /proc hides it", "fd": "not open"}
        return NetnsGone(number, f"{reference}: {what.get(kind, 'no such netns')}")
    if number == errno.EACCES and reference.startswith("pid:"):
        return MissingCapability(number, f"open {reference}: EACCES (needs CAP_SYS_PTRACE over it)")
    return explain(number, "open", reference)
