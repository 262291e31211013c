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
from pyztun.errors import (
    MissingCapability,
    NetnsClosed,
    NetnsGone,
    NotANetns,
    SyscallError,
    explain,
)
from pyztun.fds import OwnedFd, own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket as Socket
    from types import TracebackType
    from typing import NoReturn

    from pyztun.types import Address, Reference

NAMES = "/run/netns"

names_made: set[str] = set()
"""The names that create() has made in this process and nobody has removed through it."""

MAX_DIGITS = 10

# The values of socket(2); importing socket would double the start of the one-shot sender.
AF_INET, SOCK_STREAM, SOCK_DGRAM = 2, 1, 2
SOCK_NONBLOCK, SOCK_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC

# One for all: it is held while a descriptor is duplicated or closed. A signal handler may come in
# while this very thread holds it, and a child may be forked while another one does.
_lock = RLock()


def _after_fork_in_child() -> None:
    if not _lock._is_owned():  # type: ignore[attr-defined]
        _lock._at_fork_reinit()  # type: ignore[attr-defined]


os.register_at_fork(after_in_child=_after_fork_in_child)

# A path may be a typo for a FIFO, a terminal or any device: opening one of these does something.
# O_PATH does not open anything; what it shows to be a namespace is opened then.
_PROBE = os.O_PATH | os.O_CLOEXEC
_OPEN = os.O_RDONLY | os.O_CLOEXEC


class NetNs:
    """A network namespace, held open by a descriptor of its own.

    of(), open(), from_path(), from_name(), from_pid(), from_fd(), current() and create() make one.
    The namespace lives at least as long as this object is open, or one of the sockets made in it.
    Any method may be called from any thread, close() too: a call that is running goes on with a
    duplicate of its own. A forgotten object closes quietly.
    """

    __slots__ = ("_cookie", "_fd", "_identity", "_name", "reference")

    def __init__(self, fd: OwnedFd, reference: str = "") -> None:
        """Takes ownership of ``fd`` (also when this raises). NotANetns if it is something else.

        :param reference: what the user called it; error texts contain it.
        """
        if not isinstance(fd, OwnedFd):
            raise TypeError("NetNs.open() and NetNs.of() take a name, a path, pid:N, fd:N")
        try:
            dev, inode, self._cookie = native.inspect(fd.fileno(), reference)
        except BaseException:
            fd.close()
            raise
        self._fd = fd
        self._identity = (dev, inode)
        self._name: str | None = None
        self.reference = reference or f"(unnamed, inode {inode})"

    # ---- making one --------------------------------------------------------------------------

    @classmethod
    def of(cls, netns: Reference) -> NetNs:
        """Opens whatever names a netns, as every ``netns=`` argument does.

        :param netns: a NetNs or the number of an fd (each is duplicated and stays the caller's), or
            what :meth:`open` takes.
        :raises NetnsGone, NotANetns, NetnsClosed:
        """
        if isinstance(netns, NetNs):
            return cls(netns.lease(), netns.reference)
        if isinstance(netns, str):
            return cls.open(netns)
        if isinstance(netns, os.PathLike):
            return cls.from_path(netns)
        if isinstance(netns, int) and not isinstance(netns, bool):
            return cls.from_fd(netns)
        hint = " (socket_netns() opens that of a socket)" if hasattr(netns, "getsockname") else ""
        raise TypeError(
            f"{netns!r} is not a NetNs, a path, a name, 'pid:N', 'fd:N' or the int of an fd{hint}"
        )

    @classmethod
    def open(cls, reference: str) -> NetNs:
        """Opens what a user wrote: a path, a bare name, ``pid:N`` or ``fd:N``.

        NetnsGone, NotANetns.
        """
        if not isinstance(reference, str):
            return cls.of(reference)
        if numbered := numbered_reference(reference):
            kind, number = numbered
            if kind == "pid":
                return cls.from_path(f"/proc/{number}/ns/net", reference)
            return cls(_duplicate(int(number), reference), reference)
        if "/" in reference:
            return cls.from_path(reference)
        return cls.from_name(reference)

    @classmethod
    def from_path(cls, path: str | os.PathLike[str], reference: str | None = None) -> NetNs:
        """Opens a namespace file such as ``/run/netns/ns2`` or ``/proc/7/ns/net``."""
        path = os.fsdecode(path)
        reference = path if reference is None else reference
        return cls(open_namespace(path, reference), reference)

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
        if name is not None and not isinstance(name, str):
            raise TypeError(f"{name!r} is not a name of a netns")
        if name is not None and not _is_name(name):
            raise ValueError(f"{name!r} is not a name of a netns")
        fresh = cls(native.create_netns(), name or "")
        if name is not None:
            try:
                native.pin_netns(fresh.fileno(), NAMES, f"{NAMES}/{name}")
            except BaseException:
                fresh.close()
                raise
            fresh._name = name
            names_made.add(name)
        return fresh

    @property
    def shown(self) -> str:
        """``netns ns2``: what error texts call it."""
        return f"netns {self.reference}"

    # ---- which one it is ---------------------------------------------------------------------

    def fileno(self) -> int:
        """The fd of the namespace, still owned by this object. NetnsClosed once closed."""
        fd = self._fd.fileno()
        if fd < 0:
            raise NetnsClosed(errno.EBADF, f"this NetNs is closed: {self.reference}")
        return fd

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
        if self._cookie == 0:
            with self.lease() as held:
                self._cookie = native.netns_cookie(held.fileno(), self.shown)
        self.fileno()
        return self._cookie

    @property
    def owner_uid(self) -> int:
        """uid of the owner of the user namespace that owns this netns.

        EPERM if that is outside ours.
        """
        with self.lease() as held:
            return native.owner(held.fileno(), self.shown)

    def is_same(self, other: NetNs) -> bool:
        """Whether both hold the same namespace; both being open, no inode was reused.

        ``==`` compares the objects.
        """
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
        :param type: SOCK_STREAM or SOCK_DGRAM, SOCK_NONBLOCK with it or not.
        :param backlog: for listen(2), capped by the pod's net.core.somaxconn.
        :param reuse_address: SO_REUSEADDR; by default for TCP alone, since it lets another socket
            take over the port of a UDP socket.
        :param v6only: IPv6 sockets take no IPv4 traffic.
        :param mark: SO_MARK of the sockets, 0 for none.
        :returns: sockets that the caller owns, non-inheritable; blocking, unless asked otherwise or
            socket.setdefaulttimeout() was called.
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
        with self.lease() as held:
            made = plan.open(held.fileno(), -1, self.shown)
        return _sockets(made, type)

    def socket(self, family: int = AF_INET, type: int = SOCK_STREAM, proto: int = 0) -> Socket:
        """One socket of any family and type in this netns, as socket.socket() makes it at home.

        :returns: a blocking socket that the caller owns, non-inheritable; with SOCK_NONBLOCK in
            ``type`` a non-blocking one.
        :raises UnsupportedFamily: this netns has no such family; many exist only in the initial
            netns.
        :raises MissingCapability: to enter the netns, or CAP_NET_RAW for a raw or packet socket.
        """
        kind, what = _plain_type(type), f"{_family_name(family)} in {self.shown}"
        with self.lease() as held:
            made = native.make_socket(held.fileno(), family, kind, proto, what)
        (sock,) = _sockets([made], type, family)
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
        :param timeout: seconds for each address; it stays on the socket. None waits for ever,
            whatever socket.setdefaulttimeout() says.
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
        is gone already, this does nothing.

        :raises MissingCapability: CAP_SYS_ADMIN.
        :raises SyscallError: EBUSY: the name means another netns by now, and is left alone.
        """
        if self._name is None:
            return
        path = f"{NAMES}/{self._name}"
        try:
            self._unpin(path)
            os.unlink(path)
        except FileNotFoundError:  # NetnsGone, or somebody was faster
            pass
        except OSError as error:
            if isinstance(error, SyscallError):
                raise
            raise explain(error.errno or errno.EIO, "unlink", path) from error
        names_made.discard(self._name)
        self._name = None

    def _unpin(self, path: str) -> None:
        """Takes the mount away. An empty file without one is left by a removal that did not end."""
        try:
            there = NetNs.from_path(path)
        except NotANetns:
            if os.lstat(path).st_size == 0:
                return
            raise
        with there:
            if not self._was(there):
                raise SyscallError(errno.EBUSY, f"{path}: is another netns by now")
            try:
                native.unpin_netns(path)
            except SyscallError as error:
                if error.errno != errno.EINVAL:  # not a mount any more, or a symbolic link to one
                    raise

    def _was(self, there: NetNs) -> bool:
        """Whether THERE is this netns, which may be closed: by the cookie where both are known."""
        cookies = {self._cookie, there._cookie} - {0}
        return self._identity == there._identity and len(cookies) <= 1

    def close(self) -> None:
        """Lets go of the namespace; does nothing the second time.

        A call that another thread has running is not disturbed.
        """
        with _lock:
            self._fd.close()

    def lease(self) -> OwnedFd:
        """A duplicate of the descriptor, which stays what it is when this is closed meanwhile.

        The caller owns it. NetnsClosed, SyscallError EMFILE.
        """
        with _lock:
            try:
                held = _duplicate(self.fileno(), self.reference)
            finally:
                self.fileno()  # a signal handler of this thread may have closed it in between
        return held

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._fd.fileno() < 0

    def __enter__(self) -> NetNs:
        self.fileno()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        fd = getattr(self, "_fd", None)  # __init__ may not have come that far
        if fd is not None:
            fd.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a NetNs cannot be copied or pickled: NetNs.of() duplicates one")

    def __repr__(self) -> str:
        if self.closed:
            return f"<NetNs {self.reference} closed>"
        inode = f"inode {self._identity[1]}"
        return f"<NetNs {self.reference}{'' if inode in self.reference else f' {inode}'}>"


def numbered_reference(reference: str) -> tuple[str, str] | None:
    """``pid`` or ``fd`` and the digits of a reference of that form; None for any other one."""
    kind, colon, number = reference.partition(":")
    # Ten digits hold every pid and fd; a longer number names nothing, and int() has limits.
    is_number = number.isascii() and number.isdigit() and len(number) <= MAX_DIGITS
    return (kind, number) if colon and kind in ("pid", "fd") and is_number else None


def open_namespace(path: str, reference: str, *, follow: bool = True) -> OwnedFd:
    """Opens a path if it is one of nsfs, and nothing else: no FIFO, no device, no FUSE file.

    :param follow: whether the path may end in a symbolic link.
    :raises NetnsGone, NotANetns, MissingCapability, SyscallError:
    """
    try:
        with own(os.open, path, _PROBE if follow else _PROBE | os.O_NOFOLLOW) as found:
            if native.is_on_nsfs(found.fileno(), reference):
                return own(os.open, f"/proc/self/fd/{found.fileno()}", _OPEN)
    except SyscallError:
        raise
    except ValueError as error:  # a NUL byte
        raise NetnsGone(errno.ENOENT, f"{reference!r}: no such netns") from error
    except OSError as error:
        raise _cannot_open(error.errno or errno.EIO, reference) from error
    raise NotANetns(errno.EINVAL, f"{reference}: not a network namespace")


def _sockets(fds: list[OwnedFd], type: int, family: int = 0) -> list[Socket]:
    """Socket objects in place of the descriptors; if one cannot be made, all are closed.

    :param type: as the user gave it: with SOCK_NONBLOCK they do not block.
    """
    import socket

    made: list[Socket] = []
    try:
        for fd in fds:
            # Detached first: an exception in between may lose one descriptor, never close two.
            number = fd.detach()
            try:
                sock = socket.socket(family or -1, _plain_type(type), -1, fileno=number)
            except OSError:
                os.close(number)
                raise
            made.append(sock)
            if type & SOCK_NONBLOCK:
                sock.setblocking(False)
    except BaseException:
        for sock in made:
            sock.close()
        for fd in fds:
            fd.close()
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
    return kind & ~(SOCK_NONBLOCK | SOCK_CLOEXEC)


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
        why = what.get(kind, "no such netns")
        if kind in what and not reference.partition(":")[2].isdigit():
            why = "not a number, and no netns has this name"
        return NetnsGone(number, f"{reference}: {why}")
    if number == errno.EACCES and reference.startswith(("pid:", "/proc/")):
        return MissingCapability(number, f"open {reference}: EACCES (needs CAP_SYS_PTRACE over it)")
    return explain(number, "open", reference)
