"""NetNs: a network namespace held by an fd, and sockets in it.

There is no ``with netns:`` that moves the caller, on purpose: threads and executors born inside
such a block stay in the pod for ever. Sockets are made by one native call that goes there and
comes back.
"""

from __future__ import annotations

import errno
import os
from _thread import RLock

from pyztun import native
from pyztun.errors import MissingCapability, NetnsClosed, NetnsGone, explain
from pyztun.fds import OwnedFd, own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket as Socket
    from types import TracebackType
    from typing import NoReturn, TypeAlias, TypedDict

    from pyztun.addresses import Address

    class ListenOptions(TypedDict, total=False):
        """The keyword arguments of NetNs.listen()."""

        type: int
        backlog: int
        reuse_address: bool | None
        reuse_port: bool
        transparent: bool
        freebind: bool
        v6only: bool
        mark: int

    Reference: TypeAlias = "NetNs | str | os.PathLike[str] | int"
    """What names a netns: a NetNs, a path, a name, ``pid:N``, ``fd:N``, or the number of an fd."""

NAMES = "/run/netns"
MAX_DIGITS = 10

# The values of socket(2); importing socket would double the start of the one-shot sender.
AF_INET, SOCK_STREAM, SOCK_DGRAM = 2, 1, 2
SOCK_NONBLOCK, SOCK_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC

# One for all: it is held for a few instructions. A signal handler or the garbage collector may come
# in while this very thread holds it; a child process may be forked while another one does.
_leases = RLock()
os.register_at_fork(after_in_child=_leases._at_fork_reinit)  # type: ignore[attr-defined]

# O_NONBLOCK and O_NOCTTY: a typo may name a FIFO or a terminal, and opening must do nothing to
# either.
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class NetNs:
    """A network namespace, held open; ``of``, ``open``, ``from_*``, ``current``, ``create``.

    The namespace lives at least as long as this object is open, or one of the sockets made in it.
    Any method may be called from any thread, close() too: the descriptor goes when the last running
    call is back. A forgotten object closes quietly.
    """

    __slots__ = (
        "__weakref__",
        "_calls",
        "_cookie",
        "_fd",
        "_identity",
        "_is_open",
        "_name",
        "reference",
    )

    def __init__(self, fd: OwnedFd, reference: str) -> None:
        """Takes ownership of ``fd`` (also when this raises). NotANetns if it is something else.

        :param reference: what the user called it; error texts contain it.
        """
        self._is_open = False
        try:
            dev, inode, self._cookie = native.inspect(fd.fileno(), reference)
        except BaseException:
            fd.close()
            raise
        self._fd = fd
        self._identity = (dev, inode)
        self._calls = 0
        self._name: str | None = None
        self.reference = reference
        self._is_open = True

    # ---- making one --------------------------------------------------------------------------

    @classmethod
    def of(cls, netns: Reference) -> NetNs:
        """Opens whatever names a netns, as every ``netns=`` argument does.

        :param netns: a NetNs or the number of an fd (each is duplicated and stays the caller's), or
            what :meth:`open` takes.
        :raises NetnsGone, NotANetns, NetnsClosed:
        """
        if isinstance(netns, NetNs):
            with netns._lease() as fd:
                return cls(_duplicate(fd, netns.reference), netns.reference)
        if isinstance(netns, bool):
            raise TypeError("a netns is a NetNs, a path, a name, 'pid:N', 'fd:N' or an fd")
        if isinstance(netns, int):
            return cls.from_fd(netns)
        return cls.open(os.fsdecode(netns))

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
    def from_path(cls, path: str | os.PathLike[str], reference: str | None = None) -> NetNs:
        """Opens a namespace file such as ``/run/netns/ns2`` or ``/proc/7/ns/net``."""
        path = os.fsdecode(path)
        reference = path if reference is None else reference
        try:
            fd = own(os.open, path, _OPEN)
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
        opened = cls.from_path(f"{NAMES}/{name}", name)
        opened._name = name
        return opened

    @classmethod
    def from_pid(cls, pid: int) -> NetNs:
        """Opens the netns of a process' main thread; another user's needs CAP_SYS_PTRACE."""
        return cls.from_path(f"/proc/{pid}/ns/net", f"pid:{pid}")

    @classmethod
    def from_fd(cls, fd: int) -> NetNs:
        """Takes a duplicate of ``fd``, which stays the caller's."""
        return cls(_duplicate(fd, f"fd:{fd}"), f"fd:{fd}")

    @classmethod
    def current(cls) -> NetNs:
        """The netns in which the calling thread is."""
        return cls(native.home(), "current")

    @classmethod
    def create(cls, name: str | None = None) -> NetNs:
        """Makes a fresh netns with loopback up; the calling thread does not move.

        :param name: also gives it a name under /run/netns, as `ip netns add` does, which outlives
            this object until remove(). Without one it is gone with its last holder.
        :raises MissingCapability: without CAP_SYS_ADMIN.
        :raises SyscallError: EEXIST, ENOSPC; then nothing is left.
        """
        if name is not None and not _is_name(name):
            raise ValueError(f"{name!r} is not a name of a netns")
        fresh = cls(native.create_netns(), name or "fresh netns")
        if name is not None:
            try:
                native.pin_netns(fresh.fileno(), NAMES, f"{NAMES}/{name}")
            except BaseException:
                fresh.close()
                raise
            fresh._name = name
        return fresh

    @property
    def shown(self) -> str:
        """``netns ns2``: what error texts call it."""
        return f"netns {self.reference}"

    # ---- which one it is ---------------------------------------------------------------------

    def fileno(self) -> int:
        """The fd of the namespace, still owned by this object. NetnsClosed once closed."""
        if not self._is_open:
            raise NetnsClosed(errno.EBADF, f"this NetNs ({self.reference}) is closed")
        return self._fd.fileno()

    @property
    def inode(self) -> int:
        """The inode on nsfs: unique among the living, reused after the netns is dead."""
        self.fileno()
        return self._identity[1]

    @property
    def dev(self) -> int:
        """st_dev of nsfs, the same for every namespace of a machine."""
        self.fileno()
        return self._identity[0]

    @property
    def cookie(self) -> int:
        """The netns cookie: never reused before the next boot.

        Before Linux 6.18 the kernel tells it only through a socket in the netns, which needs
        CAP_SYS_ADMIN the first time.
        """
        with self._lease() as fd:
            if self._cookie == 0:
                self._cookie = native.netns_cookie(fd, self.shown)
            return self._cookie

    @property
    def owner_uid(self) -> int:
        """uid of the owner of the user namespace that owns this netns.

        EPERM if that is outside ours.
        """
        with self._lease() as fd:
            return native.owner(fd, self.shown)

    def is_same(self, other: NetNs) -> bool:
        """Whether both hold the same namespace; both being open, no inode was reused."""
        return (self.dev, self.inode) == (other.dev, other.inode)

    # ---- sockets in it -----------------------------------------------------------------------

    def listen(
        self,
        *addresses: Address,
        type: int = SOCK_STREAM,
        backlog: int = 128,
        reuse_address: bool | None = None,
        reuse_port: bool = False,
        transparent: bool = False,
        freebind: bool = False,
        v6only: bool = True,
        mark: int = 0,
    ) -> list[Socket]:
        """TCP listeners or bound UDP sockets in this netns, all or none, made in one excursion.

        :param addresses: (IP literal, port) pairs, IPv4 or IPv6; at most 64. A host name is a
            ValueError, since it would have to be resolved in one netns or the other.
        :param type: SOCK_STREAM or SOCK_DGRAM.
        :param backlog: for listen(2), capped by the pod's net.core.somaxconn.
        :param reuse_address: SO_REUSEADDR; by default for TCP alone, since it lets another socket
            take over the port of a UDP socket.
        :param v6only: IPv6 sockets take no IPv4 traffic.
        :param mark: SO_MARK of the sockets, 0 for none.
        :returns: blocking sockets that the caller owns, non-inheritable.
        :raises MissingCapability, AddressInUse, UnsupportedFamily, SyscallError: nothing is left
            open then. socket(7), ip(7), ipv6(7) tell what the options do.
        """
        from pyztun.addresses import listen_plan

        kind = _plain_type(type)
        if kind not in (SOCK_STREAM, SOCK_DGRAM):
            raise ValueError("type is SOCK_STREAM or SOCK_DGRAM")
        if reuse_address is None:
            reuse_address = kind == SOCK_STREAM
        flags = (
            (native.DGRAM if kind == SOCK_DGRAM else 0)
            | (native.REUSEADDR if reuse_address else 0)
            | (native.REUSEPORT if reuse_port else 0)
            | (native.TRANSPARENT if transparent else 0)
            | (native.FREEBIND if freebind else 0)
            | (native.V6ONLY if v6only else 0)
        )
        plan = listen_plan(addresses, backlog=backlog, flags=flags, mark=mark)
        with self._lease() as fd:
            made = plan.open(fd, -1, self.shown)
        return _sockets(made)

    def socket(self, family: int = AF_INET, type: int = SOCK_STREAM, proto: int = 0) -> Socket:
        """One socket of any family and type in this netns, as socket.socket() makes it at home.

        :returns: a blocking socket that the caller owns, non-inheritable; with SOCK_NONBLOCK in
            ``type`` a non-blocking one.
        :raises UnsupportedFamily: this netns has no such family; many exist only in the initial
            netns.
        :raises MissingCapability: to enter the netns, or CAP_NET_RAW for a raw or packet socket.
        """
        what = f"{_family_name(family)} in {self.shown}"
        with self._lease() as fd:
            made = native.make_socket(fd, family, _plain_type(type), proto, what)
        (sock,) = _sockets([made.detach()])
        if type & SOCK_NONBLOCK:
            sock.setblocking(False)
        return sock

    def connect(
        self,
        address: Address,
        timeout: float | None = None,
        source: Address | None = None,
        mark: int = 0,
    ) -> Socket:
        """A TCP connection out of this netns, as socket.create_connection() makes one at home.

        :param address: (host, port). A name is resolved before the netns is entered, at home: the
            pod's own resolver is not asked. Its addresses are tried in turn.
        :param timeout: seconds for each address; it stays on the socket. None waits for ever.
        :param source: (IP literal, port) to connect from; port 0 lets the kernel choose.
        :param mark: SO_MARK, set before the connection; 0 for none.
        :returns: a socket that the caller owns, non-inheritable.
        :raises SyscallError: of the last address; it is also the built-in class of its errno, such
            as ConnectionRefusedError or TimeoutError. MissingCapability, AddressInUse,
            socket.gaierror for a name.
        """
        from pyztun.addresses import resolve
        from pyztun.dial import Dialer

        dialer = Dialer(self.socket, self.shown, source, mark)
        targets = dialer.targets(resolve(address))
        for target in targets[:-1]:
            try:
                return dialer.connect(target, timeout)
            except OSError:
                continue
        return dialer.connect(targets[-1], timeout)

    # ---- the end -----------------------------------------------------------------------------

    def remove(self) -> None:
        """Deletes the name by which this was created or opened, as `ip netns delete` does.

        Also after close(). The netns itself dies with its last holder. Without a name, or where it
        is gone already, this does nothing. NetnsGone: the name means another netns by now, and is
        left alone. MissingCapability: CAP_SYS_ADMIN.
        """
        if self._name is None:
            return
        path = f"{NAMES}/{self._name}"
        try:
            there = NetNs.from_path(path)
        except NetnsGone:
            self._name = None
            return
        with there:
            if not self._was(there):
                raise NetnsGone(errno.ENOENT, f"{path}: is another netns by now")
            native.unpin_netns(path)
            os.unlink(path)
        self._name = None

    def _was(self, there: NetNs) -> bool:
        """Whether THERE is this netns, which may be closed: by the cookie where both are known."""
        cookies = {self._cookie, there._cookie} - {0}
        return self._identity == there._identity and len(cookies) <= 1

    def close(self) -> None:
        """Lets go of the namespace; does nothing the second time.

        Does not wait: a call that another thread has running ends first, then the descriptor goes.
        """
        if not self._is_open:
            return
        with _leases:
            self._is_open = False
            if self._calls == 0:
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

    def __del__(self) -> None:
        if getattr(self, "_is_open", False):  # __init__ may not have come that far
            self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a NetNs cannot be copied or pickled: NetNs.of() duplicates one")

    def __repr__(self) -> str:
        state = f"inode {self._identity[1]}" if self._is_open else "closed"
        return f"<NetNs {self.reference} {state}>"

    def _lease(self) -> _Lease:
        return _Lease(self)


class _Lease:
    """The fd of a NetNs for the length of a with-block, in which close() only takes a note."""

    __slots__ = ("_netns",)

    def __init__(self, netns: NetNs) -> None:
        self._netns = netns

    def __enter__(self) -> int:
        with _leases:
            self._netns._calls += 1  # first: from here on a close() that comes in between waits
            try:
                return self._netns.fileno()
            except NetnsClosed:
                self._netns._calls -= 1
                raise

    def __exit__(self, *_: object) -> None:
        with _leases:
            self._netns._calls -= 1
            if self._netns._calls == 0 and not self._netns._is_open:
                self._netns._fd.close()


def _sockets(fds: list[int]) -> list[Socket]:
    """Socket objects in place of the descriptors; if one cannot be made, the others are closed."""
    import socket

    made: list[Socket] = []
    try:
        while fds:
            # Taken out first: an exception in between may lose one descriptor, never close two.
            made.append(socket.socket(fileno=fds.pop(0)))
    except BaseException:
        for sock in made:
            sock.close()
        for fd in fds:
            os.close(fd)
        raise
    return made


def _family_name(family: int) -> str:
    import socket

    try:
        return socket.AddressFamily(family).name
    except ValueError:
        return f"family {family}"


def _plain_type(kind: int) -> int:
    """The type without its flags. CLOEXEC is always set, blocking is python's affair."""
    return int(kind) & ~(SOCK_NONBLOCK | SOCK_CLOEXEC)


def _is_name(text: str) -> bool:
    """Whether the text can be the name of a file below NAMES."""
    return text not in ("", ".", "..") and not set(text) & {"/", "\0"}


def _duplicate(fd: int, reference: str) -> OwnedFd:
    try:
        return own(os.dup, fd)
    except OverflowError as error:
        raise _cannot_open(errno.EBADF, reference) from error
    except OSError as error:
        raise _cannot_open(error.errno or errno.EIO, reference) from error


def _cannot_open(number: int, reference: str) -> Exception:
    if number in (errno.ENOENT, errno.ENOTDIR, errno.ESRCH, errno.EBADF, errno.ENAMETOOLONG):
        kind = reference.partition(":")[0]
        what = {"pid": "no such process, or /proc hides it", "fd": "not open"}
        return NetnsGone(number, f"{reference}: {what.get(kind, 'no such netns')}")
    if number == errno.EACCES and reference.startswith("pid:"):
        return MissingCapability(number, f"open {reference}: EACCES (needs CAP_SYS_PTRACE over it)")
    return explain(number, "open", reference)
