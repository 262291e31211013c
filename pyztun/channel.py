"""Channel: a connected Unix socket that carries messages with file descriptors.

A stream for the seed form; a seqpacket for ZDS keeps message boundaries. Nothing here imports
``socket``: the one-shot sender would pay for it with half of its time. For those who have a socket
of their own there are send_fds() and recv_fds().
"""

from __future__ import annotations

import errno
import os
from time import monotonic

from pyztun import native
from pyztun.errors import PeerClosed, ProtocolError, SyscallError, explain
from pyztun.fds import OwnedFd, own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from pyztun.types import Descriptor

OF_THE_SOCKET = float("-inf")
"""A timeout that means: as long as the socket object itself would wait."""


class Channel:
    """One connection. All waits take seconds and raise SyscallError with ETIMEDOUT when they pass.

    One thread at a time.

    :param fd: a connected Unix socket; ownership passes to the channel.
    :param name: the peer's path, for error texts.
    """

    __slots__ = ("_fd", "_unread", "name")

    def __init__(self, fd: OwnedFd, name: str) -> None:
        self._fd = fd
        self._unread = b""
        self.name = name

    @classmethod
    def connect(cls, path: str, kind: int = native.STREAM, timeout: float | None = None) -> Channel:
        """Connects to a Unix socket; waits while the listener's backlog is full."""
        return cls(native.connect_unix(path, kind, timeout), path)

    def fileno(self) -> int:
        """The socket's descriptor, still owned by the channel."""
        return self._fd.fileno()

    def send(self, data: bytes, fds: Sequence[int] = (), timeout: float | None = None) -> None:
        """Sends all of ``data`` with ``fds`` (borrowed) on its first byte."""
        native.send(self.fileno(), data, fds, timeout, self.name)

    def receive(
        self, size: int, max_fds: int = 0, timeout: float | None = None
    ) -> tuple[bytes, list[OwnedFd]]:
        """Receives one message; the caller owns the descriptors. Empty bytes: the peer closed."""
        return native.receive(self.fileno(), size, max_fds, timeout, self.name)

    def receive_line(self, limit: int, timeout: float | None = None) -> bytes:
        """Receives up to and including a newline, at most ``limit`` bytes, from a stream.

        :raises PeerClosed: the peer closed before a whole line had come.
        :raises ProtocolError: the line is longer than ``limit``.
        """
        deadline = None if timeout is None else monotonic() + timeout
        while b"\n" not in self._unread:
            if len(self._unread) >= limit:
                raise ProtocolError(f"{self.name}: a line of more than {limit} bytes")
            left = None if deadline is None else max(0.0, deadline - monotonic())
            data, _ = self._receive_more(left)
            if not data:
                raise PeerClosed(f"{self.name}: closed before it answered")
            self._unread += data
        line, newline, self._unread = self._unread.partition(b"\n")
        if len(line) >= limit:
            raise ProtocolError(f"{self.name}: a line of more than {limit} bytes")
        return line + newline

    def _receive_more(self, timeout: float | None) -> tuple[bytes, list[OwnedFd]]:
        try:
            return self.receive(4096, 0, timeout)
        except SyscallError as error:
            # A Unix socket whose peer closed with unread bytes reports ECONNRESET where EOF would
            # follow.
            if error.errno == errno.ECONNRESET:
                return b"", []
            raise

    def peer_credentials(self) -> tuple[int, int, int]:
        """(pid, uid, gid) of the peer as of its connect() or listen(): SO_PEERCRED, unix(7)."""
        import socket
        import struct

        with socket.socket(fileno=os.dup(self.fileno())) as duplicate:
            raw = duplicate.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII")
            )
        pid, uid, gid = struct.unpack("iII", raw)
        return pid, uid, gid

    def detach(self) -> int:
        """Hands the socket's descriptor to the caller, who owns it from now on."""
        return self._fd.detach()

    def close(self) -> None:
        """Closes the connection; does nothing the second time."""
        self._fd.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def send_fds(
    sock: Descriptor,
    data: bytes | bytearray | memoryview,
    fds: Iterable[Descriptor] = (),
    timeout: float | None = OF_THE_SOCKET,
) -> None:
    """Sends all of ``data`` on a Unix socket, with the descriptors on its first byte.

    :param sock: a connected Unix socket, stream or seqpacket; borrowed.
    :param data: at least one byte: a message without one carries no descriptors.
    :param fds: 0..250 descriptors; borrowed, the peer gets duplicates. They may be closed while
        this waits.
    :param timeout: seconds to wait for room, for all of it; None waits for ever, 0 not at all. By
        default what sock.gettimeout() says, None where there is no such method.
    :raises SyscallError: EPIPE, ECONNRESET, ETIMEDOUT, EAGAIN (timeout 0), E2BIG, EBADF, EMSGSIZE,
        ETOOMANYREFS; each also of the built-in class of its errno. After a timeout a part of a
        stream may have been sent. One thread at a time, as for any writer of a stream.
    """
    if len(data) == 0:
        raise ValueError("a message that carries descriptors has at least one byte")
    if hasattr(fds, "fileno"):
        raise TypeError(f"fds is a list of descriptors: [{fds!r}]")
    limit = _timeout_of(sock, timeout)
    number = _number(sock)
    # Whoever owns an object may close it while we wait for room, and its number be reused.
    held: list[OwnedFd] = []
    try:
        for each in fds:
            held.append(_held(each))
        if held:
            _must_be_unix(sock, number)
        native.send(number, data, [fd.fileno() for fd in held], limit, f"socket fd {number}")
    except SyscallError as error:
        raise _not_now(error, limit, "sendmsg", number) from None
    finally:
        for fd in held:
            fd.close()


def recv_fds(
    sock: Descriptor,
    size: int,
    max_fds: int,
    timeout: float | None = OF_THE_SOCKET,
) -> tuple[bytes, list[OwnedFd]]:
    """Receives one message of up to ``size`` bytes and ``max_fds`` descriptors from a Unix socket.

    Unlike socket.recv_fds(): the descriptors are close-on-exec from birth, and a message with more
    of them than asked for is an error after which none is left open.

    :param sock: a connected Unix socket; borrowed.
    :param size: at least 1.
    :param max_fds: 0..250.
    :param timeout: as for :func:`send_fds`.
    :returns: the bytes, empty at the end of the stream, and holders that the caller owns; one that
        is forgotten closes its descriptor with a ResourceWarning.
    :raises SyscallError: EPROTO more descriptors than ``max_fds``, EMSGSIZE a longer message than
        ``size`` (seqpacket), EMFILE our fd table is full: the message is lost then, and all its
        descriptors are closed. ETIMEDOUT, EAGAIN (timeout 0): nothing was lost.
    """
    if size < 1:
        raise ValueError("size is at least 1")
    if max_fds < 0:
        raise ValueError(f"max_fds {max_fds} is not in 0..{native.MAX_FDS}")
    limit = _timeout_of(sock, timeout)
    number = _number(sock)
    try:
        return native.receive(number, size, max_fds, limit, f"socket fd {number}")
    except SyscallError as error:
        raise _not_now(error, limit, "recvmsg", number) from None


def _number(descriptor: Descriptor) -> int:
    if isinstance(descriptor, int):
        return descriptor
    if not hasattr(descriptor, "fileno"):
        raise TypeError(f"{descriptor!r} is neither a file descriptor nor has one")
    return descriptor.fileno()


def _must_be_unix(sock: Descriptor, number: int) -> None:
    """Every other family drops descriptors without a word."""
    import socket

    family = getattr(sock, "family", None)
    if family is None:
        with socket.socket(fileno=own(os.dup, number).detach()) as same:
            family = same.family
    if family != socket.AF_UNIX:
        hint = "only a Unix socket carries descriptors"
        raise explain(errno.EOPNOTSUPP, "sendmsg", f"socket fd {number}", hint)


def _held(descriptor: Descriptor) -> OwnedFd:
    """A duplicate, for as long as it is needed."""
    if hasattr(descriptor, "lease"):  # a NetNs, which may be closed by another thread even now
        lease: OwnedFd = descriptor.lease()
        return lease
    number = _number(descriptor)
    try:
        return own(os.dup, number)
    except OSError as error:
        raise explain(error.errno or errno.EBADF, "dup", f"fd {number}") from None


def _timeout_of(sock: Descriptor, timeout: float | None) -> float | None:
    if timeout == OF_THE_SOCKET:
        ask = getattr(sock, "gettimeout", None)
        return None if ask is None else ask()
    if timeout is not None and not timeout >= 0:  # nan as well
        raise ValueError(f"timeout {timeout} is negative")
    return timeout


def _not_now(error: SyscallError, limit: float | None, syscall: str, sock: int) -> SyscallError:
    """The error; EAGAIN where the caller did not want to wait at all."""
    if error.errno == errno.ETIMEDOUT and limit == 0:
        return explain(errno.EAGAIN, syscall, f"socket fd {sock}")
    return error
