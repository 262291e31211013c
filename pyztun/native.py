"""The only importer of the native module: ints and bytes in, exceptions and OwnedFds out.

The interface and its contracts are in ``csrc/pyztun.h``; here a negative result becomes an
exception that names the syscall and the object. Every call releases the GIL. A wait that a signal
interrupts comes back so that Python can run its handler, and goes on with the time that is left
(PEP 475).
"""

from __future__ import annotations

import errno
import os
from time import monotonic

try:
    from pyztun._core import ffi as ffi, lib as lib  # noqa: I001, PLC0414  for waits.py
except ModuleNotFoundError as missing:
    raise ImportError(
        f"{__file__} is in a source tree that is not built: pip install -e . there, "
        "or run python from another directory"
    ) from missing
from pyztun.errors import NotANetns, SyscallError, explain
from pyztun.fds import OwnedFd, own, take

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pyztun._core import FFI
    from pyztun._core import CData as CData  # noqa: PLC0414  for who has a handle
    from pyztun._relay import Lib as Relay

MAX_FDS: int = lib.PZ_MAX_FDS
MAX_LISTENERS: int = lib.PZ_MAX_LISTENERS
STREAM, SEQPACKET = 1, 5  # SOCK_STREAM and SOCK_SEQPACKET; importing socket would double our start

IPV4, IPV6 = 4, 6
_IPV4_BYTES, _IPV6_BYTES = 4, 16
MAX_PORT = 65535

REUSEADDR: int = lib.PZ_REUSEADDR
REUSEPORT: int = lib.PZ_REUSEPORT
TRANSPARENT: int = lib.PZ_TRANSPARENT
FREEBIND: int = lib.PZ_FREEBIND
V6ONLY: int = lib.PZ_V6ONLY
NONBLOCK: int = lib.PZ_NONBLOCK
DGRAM: int = lib.PZ_DGRAM


def load_relay() -> tuple[FFI, Relay]:
    """The second extension, ``_relay``: for services that relay, and not before they do."""
    from pyztun import _relay

    return _relay.ffi, _relay.lib


def check(rc: int, syscall: str, subject: str) -> int:
    """Returns a result >= 0; raises what a negative errno stands for."""
    if rc >= 0:
        return rc
    raise explain(-rc, syscall, subject)


def _because(syscall: str, subject: str) -> Callable[[int], SyscallError]:
    return lambda number: explain(number, syscall, subject)


def _at_step(failure: CData, subject: str) -> Callable[[int], SyscallError]:
    return lambda number: explain(number, _step(failure)[0], subject)


def _step(failure: CData) -> tuple[str, int]:
    return ffi.string(lib.pz_step_name(failure.step)).decode(), failure.index


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else monotonic() + timeout


def _left(deadline: float | None) -> int:
    """Milliseconds until a deadline for a native wait: rounded up, -1 for no deadline."""
    if deadline is None:
        return -1
    return int(min(max(0.0, deadline - monotonic()) * 1000 + 0.999, 0x7FFFFFFF))


def _wait(call: Callable[[int], int], deadline: float | None) -> int:
    """Calls with the milliseconds that are left until the result is not -EINTR."""
    while (rc := call(_left(deadline))) == -errno.EINTR:
        pass
    return rc


# ---- messages with descriptors -----------------------------------------------------------------


def send(
    sock: int,
    data: bytes | bytearray | memoryview,
    fds: Sequence[int] = (),
    timeout: float | None = None,
    subject: str = "Unix socket",
) -> None:
    """Sends all of ``data``, with ``fds`` (borrowed, at most MAX_FDS) on its first byte.

    Blocks up to ``timeout`` seconds for room. SyscallError: EPIPE, ECONNRESET, ETIMEDOUT, E2BIG ...
    """
    deadline = _deadline(timeout)
    message = ffi.from_buffer("uint8_t[]", data)
    size, sent = len(message), 0
    while True:
        rc = _wait(
            lambda ms: lib.pz_send(sock, message + sent, size - sent, fds, len(fds), ms),  # noqa: B023
            deadline,
        )
        sent += check(rc, "sendmsg", subject)
        if sent >= size:
            return
        fds = ()


def receive(
    sock: int,
    size: int,
    max_fds: int = 0,
    timeout: float | None = None,
    subject: str = "Unix socket",
) -> tuple[bytes, list[OwnedFd]]:
    """Receives one message of up to ``size`` bytes and ``max_fds`` descriptors.

    :returns: the bytes (empty at the end of the stream) and the descriptors, which the caller owns.
    Blocks up to ``timeout`` seconds. SyscallError: EPROTO too many descriptors, EMSGSIZE message
    too long, EMFILE our fd table is full, ETIMEDOUT; every descriptor that came is then closed
    already.
    """
    buffer = ffi.new("uint8_t[]", size)
    fds = ffi.new("int[]", max(1, max_fds))
    nfds = ffi.new("size_t *")
    try:
        rc = _wait(
            lambda ms: lib.pz_recv(sock, buffer, size, fds, max_fds, nfds, ms), _deadline(timeout)
        )
        data = bytes(ffi.buffer(buffer, check(rc, "recvmsg", subject)))
        return data, take(fds, nfds[0])
    except BaseException:  # a signal handler may raise as soon as C is back
        _close_all(fds, nfds[0])
        raise


def _close_all(fds: CData, count: int) -> None:
    for i in range(count):
        if fds[i] >= 0:
            os.close(fds[i])
            fds[i] = -1


def is_listening(sock: int) -> bool:
    """Whether a listener is one still: root in its netns can destroy it (``ss -K``)."""
    return check(lib.pz_is_listening(sock), "getsockopt(SO_ACCEPTCONN)", f"fd {sock}") == 1


_CONNECT_HINTS = {
    errno.ETIMEDOUT: "its backlog stayed full",
    errno.ENOENT: "is the service running that makes it?",
    errno.ECONNREFUSED: "nobody listens there",
    errno.EPROTOTYPE: "what listens there is a socket of another kind",
}


def connect_unix(path: str, kind: int = STREAM, timeout: float | None = None) -> OwnedFd:
    """Connects a Unix socket; blocks up to ``timeout`` seconds while the backlog is full."""
    if "\0" in path:  # C would connect to what stands before it
        raise explain(errno.ENOENT, "connect", repr(path))
    encoded = path.encode("utf-8", "surrogateescape")
    deadline = _deadline(timeout)

    def failed(number: int) -> SyscallError:
        return explain(number, "connect", path, _CONNECT_HINTS.get(number, ""))

    while True:
        try:
            return own(lib.pz_unix_connect, encoded, kind, _left(deadline), failed=failed)
        except SyscallError as error:
            if error.errno != errno.EINTR:
                raise


# ---- network namespaces ------------------------------------------------------------------------

_nsfs: list[int] = []


def nsfs_device(subject: str = "") -> int:
    """st_dev of nsfs, one number for the whole life of a machine; read once."""
    if not _nsfs:
        dev = ffi.new("uint64_t *")
        what = "/proc/thread-self/ns/net" + (f", to recognise {subject}" if subject else "")
        check(lib.pz_nsfs_device(dev), "open", what)
        _nsfs.append(int(dev[0]))
    return _nsfs[0]


def inspect(fd: int, subject: str) -> tuple[int, int, int]:
    """(dev, inode, id) of a netns fd; id is its cookie, or 0 where the kernel (< 6.18) cannot tell.

    Never blocks on the file's filesystem. NotANetns for anything else than a network namespace.
    """
    info = ffi.new("struct pz_netns_info *")
    rc = lib.pz_netns_inspect(fd, nsfs_device(subject), info)
    if rc < 0:
        raise not_a_netns(-rc, subject)
    return info.dev, info.ino, info.id


def is_on_nsfs(probe: int, subject: str) -> bool:
    """Whether an O_PATH descriptor refers to a namespace of some kind; nothing is opened for it."""
    info = ffi.new("struct pz_netns_info *")
    rc = lib.pz_netns_inspect(probe, nsfs_device(subject), info)
    if rc not in (0, -errno.EINVAL, -errno.EBADF):
        raise explain(-rc, "statx", subject)
    # On nsfs it comes as far as the ioctl, which an O_PATH descriptor refuses.
    return rc != -errno.EINVAL


def not_a_netns(number: int, subject: str) -> SyscallError:
    """The error for what pz_netns_inspect() says of a descriptor."""
    if number in (errno.EINVAL, errno.ENOTTY):
        return NotANetns(errno.EINVAL, f"{subject}: not a network namespace")
    hint = "closed, or opened with O_PATH" if number == errno.EBADF else ""
    return explain(number, "ioctl(NS_GET_NSTYPE)", subject, hint)


def owner(fd: int, subject: str) -> int:
    """uid of the owner of the user namespace that owns the netns.

    EPERM: it lies outside our own.
    """
    uid = ffi.new("uint32_t *")
    check(lib.pz_netns_owner(fd, uid), "ioctl(NS_GET_OWNER_UID)", subject)
    return int(uid[0])


def home() -> OwnedFd:
    """Opens the netns in which the calling thread is."""
    return own(lib.pz_netns_home, failed=_because("open", "/proc/thread-self/ns/net"))


def prove_home(fd: int) -> None:
    """Shows that the calling thread could come back to ``fd``, its own netns. MissingCapability."""
    check(lib.pz_netns_prove_home(fd), "setns(home)", "")


def move(fd: int, subject: str) -> None:
    """Moves the calling thread into a netns, for good. For podside alone. MissingCapability."""
    check(lib.pz_netns_move(fd), "setns", subject)


def netns_cookie(fd: int, subject: str, home_fd: int = -1) -> int:
    """The cookie of a netns. Before Linux 6.18 this needs what :func:`listen` needs."""
    cookie, failure = ffi.new("uint64_t *"), ffi.new("struct pz_failure *")
    rc = lib.pz_netns_cookie(fd, home_fd, cookie, failure)
    if rc < 0:
        raise _at_step(failure, subject)(-rc)
    return int(cookie[0])


def socket_cookie(sock: int) -> int:
    """The cookie of the netns to which a socket belongs (SO_NETNS_COOKIE, Linux 5.14)."""
    cookie = ffi.new("uint64_t *")
    check(lib.pz_socket_cookie(sock, cookie), "getsockopt(SO_NETNS_COOKIE)", f"fd {sock}")
    return int(cookie[0])


def socket_netns(sock: int, subject: str) -> OwnedFd:
    """Opens the netns of a socket of any family (SIOCGSKNS). Asks nothing of what is no socket.

    MissingCapability: it needs CAP_NET_ADMIN over that netns. SyscallError ENOTSOCK.
    """
    return own(lib.pz_socket_netns, sock, failed=_because("ioctl(SIOCGSKNS)", subject))


def copy_descriptor(pidfd: int, fd: int, subject: str) -> OwnedFd:
    """A duplicate of a descriptor of another process (pidfd_getfd, Linux 5.6).

    MissingCapability: it needs CAP_SYS_PTRACE over the process. SyscallError EBADF, ESRCH: gone.
    """
    return own(lib.pz_pidfd_getfd, pidfd, fd, failed=_because("pidfd_getfd", subject))


def make_socket(netns_fd: int, family: int, kind: int, protocol: int, subject: str) -> OwnedFd:
    """One socket of any kind in a netns; see pz_socket(). The calling thread stays at home.

    UnsupportedFamily, MissingCapability, SyscallError.
    """
    failure = ffi.new("struct pz_failure *")
    return own(
        lib.pz_socket,
        netns_fd,
        -1,
        family,
        kind,
        protocol,
        failure,
        failed=_at_step(failure, subject),
    )


class ListenerSpec:
    """One listener that is to be made.

    :param host: the address as written, for error texts.
    :param packed: 4 or 16 bytes, network order.
    :param port: 0..65535, 0 lets the kernel choose.
    :param backlog: for listen(2); the pod's net.core.somaxconn caps it.
    :param flags: REUSEADDR | REUSEPORT | TRANSPARENT | FREEBIND | V6ONLY | NONBLOCK | DGRAM.
    :param mark: SO_MARK, 0 for none.
    :param scope_id: interface index in the pod, for an IPv6 link-local address.
    """

    __slots__ = ("backlog", "flags", "host", "mark", "packed", "port", "scope_id")

    def __init__(
        self,
        host: str,
        packed: bytes,
        port: int,
        *,
        backlog: int,
        flags: int,
        mark: int = 0,
        scope_id: int = 0,
    ) -> None:
        if len(packed) not in (_IPV4_BYTES, _IPV6_BYTES):
            raise ValueError(f"an address has 4 or 16 bytes, not {len(packed)}")
        if not 0 <= port <= MAX_PORT:
            raise ValueError(f"port {port} is not in 0..{MAX_PORT}")
        self.host, self.packed, self.port = host, packed, port
        self.backlog, self.flags, self.mark, self.scope_id = backlog, flags, mark, scope_id

    def __str__(self) -> str:
        host = self.host if self.family == IPV4 else f"[{self.host}]"
        return f"{host}:{self.port}"

    @property
    def family(self) -> int:
        """IPV4 or IPV6, by the length of the address."""
        return IPV4 if len(self.packed) == _IPV4_BYTES else IPV6


class ListenPlan:
    """Listeners, laid out for C once and opened in any number of netns.

    open() may run in any number of threads; all else shares memory of the plan and belongs to one.
    """

    __slots__ = ("_failure", "_fds", "_size", "_wanted", "specs")

    def __init__(self, specs: Iterable[ListenerSpec]) -> None:
        self.specs = tuple(specs)
        self._size = len(self.specs)
        if not 0 < self._size <= MAX_LISTENERS:
            raise ValueError(f"1..{MAX_LISTENERS} listeners at a time, not {self._size}")
        self._wanted = ffi.new("struct pz_listener[]", self._size)
        self._fds = ffi.new("int[]", self._size)
        self._failure = ffi.new("struct pz_failure *")
        for native, spec in zip(self._wanted, self.specs, strict=True):
            ffi.buffer(native.address)[0 : len(spec.packed)] = spec.packed
            native.family = spec.family
            native.port, native.backlog, native.flags = spec.port, spec.backlog, spec.flags
            native.mark, native.scope_id = spec.mark, spec.scope_id

    def open(self, netns_fd: int, home_fd: int, subject: str) -> list[OwnedFd]:
        """Makes the listeners in the netns, all or none; the caller owns the descriptors.

        Neither blocks nor moves the calling thread as seen from outside this call; see
        pz_listen() for ``home_fd`` (-1 opens and proves it). MissingCapability, AddressInUse,
        SyscallError.
        """
        fds = ffi.new("int[]", [-1] * self._size)
        failure = ffi.new("struct pz_failure *")
        try:
            rc = lib.pz_listen(netns_fd, home_fd, self._wanted, self._size, fds, failure)
            if rc >= 0:
                return take(fds, self._size)
        except BaseException:  # a signal handler may raise as soon as C is back
            _close_all(fds, self._size)
            raise
        raise self._explain(-rc, failure, subject)

    def attempt(self, netns_fd: int, home_fd: int) -> int:
        """Makes the listeners, as open() does: made() are they then. -errno: failed() says why."""
        return lib.pz_listen(netns_fd, home_fd, self._wanted, self._size, self._fds, self._failure)

    def taker(
        self, call: Callable[..., int], *before: object, after: Sequence[object] = ()
    ) -> Callable[[], int]:
        """CALL with this plan's memory behind some arguments of its own and before others.

        A partial object: on the way to an answer python is cold, and each frame of it costs about a
        microsecond.
        """
        from functools import partial

        here = (self._wanted, self._size, self._fds)
        return partial(call, *before, *here, *after, self._failure)

    def made(self) -> list[int]:
        """The listeners that the last call made."""
        return list(self._fds)

    def failed(self, rc: int) -> SyscallError:
        """Why the last call failed."""
        return self._explain(-rc, self._failure, "the pod")

    def failed_at(self) -> tuple[str, int]:
        """Which syscall of the last call failed, and for which listener; -1: for no single one."""
        return _step(self._failure)

    def _explain(self, number: int, failure: CData, subject: str) -> SyscallError:
        syscall, index = _step(failure)
        where = f"{self.specs[index]} in {subject}" if index >= 0 else subject
        return explain(number, syscall, where)


def create_netns() -> OwnedFd:
    """A fresh netns with loopback up; the calling thread does not move. MissingCapability."""
    failure = ffi.new("struct pz_failure *")
    return own(lib.pz_netns_create, failure, failed=_at_step(failure, "new netns"))


def pin_netns(fd: int, directory: str, path: str) -> None:
    """Names a netns as ``ip netns add`` does. MissingCapability; SyscallError EEXIST."""
    failure = ffi.new("struct pz_failure *")
    rc = lib.pz_netns_pin(fd, os.fsencode(directory), os.fsencode(path), failure)
    if rc < 0:
        raise _at_step(failure, path)(-rc)


def unpin_netns(path: str) -> None:
    """Takes the mount away from a netns name; the empty file stays."""
    check(lib.pz_netns_unpin(os.fsencode(path)), "umount", path)
