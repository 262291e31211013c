"""SocketFile: a listening Unix socket in the file system that nobody can slip another one under.

What is at the path decides: a socket on which nobody answers is left over from a killed process
and is replaced; a live one, a symlink or any other file is refused by name. The directory must be
one in which others cannot replace the file: not writable for others, or sticky as /tmp is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from pathlib import Path
from time import monotonic, sleep

from pyztun.errors import PyztunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK_PATIENCE = 1.0  # seconds


class SocketFileError(PyztunError):
    """The path cannot be used for a socket; the text names it and says why."""


class SocketFile:
    """A listening socket and its file, made by ``listen`` and taken away by ``close``."""

    def __init__(self, path: str, sock: socket.socket) -> None:
        """Takes ownership of ``sock``, which is bound to ``path``."""
        self.path = path
        self.socket = sock
        self._identity = _identity(path)

    @classmethod
    def listen(
        cls,
        path: str,
        kind: socket.SocketKind = socket.SOCK_STREAM,
        *,
        mode: int = 0o600,
        group: int | None = None,
        backlog: int = 4096,
    ) -> SocketFile:
        """Makes the file with its mode and group from birth, and listens. SocketFileError.

        Changes the process' umask for a moment: call it before any thread is started.
        """
        directory = os.path.dirname(path) or "."
        _check_directory(directory)
        with _locked(directory):
            try:
                _clear_way(path, kind)
            except OSError as error:
                raise SocketFileError(f"{path}: {error.strerror or error}") from error
            sock = socket.socket(socket.AF_UNIX, kind)
            try:
                _bind(sock, path, mode, group)
                sock.listen(backlog)
                return cls(path, sock)
            except BaseException:
                sock.close()
                raise

    def remove(self) -> None:
        """Removes the file if it is still ours; connections that are queued stay."""
        if self._identity is not None and _identity(self.path) == self._identity:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self._identity = None

    def close(self) -> None:
        """Removes the file if it is still ours and closes the socket."""
        self.remove()
        self.socket.close()


def _identity(path: str) -> tuple[int, int] | None:
    """(dev, inode) of what is at the path; fstat() of a socket fd would tell of sockfs."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _trusted_owners() -> set[int]:
    """Who may own the directory: root, we, and in a user namespace whoever is not mapped.

    The overflow uid there is mostly the real root; it is no one who could act inside the namespace.
    """
    owners = {0, os.geteuid()}
    with contextlib.suppress(OSError, ValueError, IndexError):
        if int(Path("/proc/self/uid_map").read_text().split()[2]) != 2**32 - 1:
            owners.add(int(Path("/proc/sys/kernel/overflowuid").read_text()))
    return owners


def _check_directory(directory: str) -> None:
    try:
        found = os.stat(directory)
    except OSError as error:
        raise SocketFileError(f"{directory}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise SocketFileError(f"{directory}: not a directory")
    if found.st_uid not in _trusted_owners():
        raise SocketFileError(
            f"{directory} belongs to uid {found.st_uid}, who could replace the socket: "
            "use a directory of root or of your own"
        )
    if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
        raise SocketFileError(
            f"{directory} is writable for others, who could replace the socket: "
            f"chmod go-w {directory}, or use another directory"
        )


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Keeps two starting services from clearing the same path at once; leaves no lock file.

    The lock is a courtesy among the honest: in a shared directory anyone may hold it, so after a
    moment we go on without it.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # one may make a socket in a directory that one cannot read
        yield
        return
    try:
        give_up = monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if monotonic() < give_up:
                    sleep(0.01)
                    continue
            break
        yield
    finally:
        os.close(fd)


def _clear_way(path: str, kind: socket.SocketKind) -> None:
    """Removes a socket that nobody answers on; refuses whatever else is there."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketFileError(f"{path}: {error.strerror}") from error
    if not stat.S_ISSOCK(found.st_mode):
        what = "a symlink" if stat.S_ISLNK(found.st_mode) else "not a socket"
        raise SocketFileError(f"{path} exists and is {what}: remove it or use another path")
    _refuse_live_owner(path, kind)
    # Between the look and the removal the path may have become another's: what was moved is
    # compared.
    aside = f"{path}.stale.{os.getpid()}"
    os.rename(path, aside)
    if _identity(aside) != (found.st_dev, found.st_ino):
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
        os.unlink(aside)
        raise SocketFileError(f"{path} was taken by another process just now")
    os.unlink(aside)


def _refuse_live_owner(path: str, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        error = probe.connect_ex(path)
    # Only ECONNREFUSED proves that nobody listens: EAGAIN is a full backlog, EPROTOTYPE another
    # type.
    if error != errno.ECONNREFUSED:
        why = "" if error in (0, errno.EAGAIN) else f" ({os.strerror(error)})"
        raise SocketFileError(f"{path} is in use: another process answers there{why}")


def _bind(sock: socket.socket, path: str, mode: int, group: int | None) -> None:
    previous = os.umask(0o777 & ~mode if group is None else 0o177)
    try:
        sock.bind(path)
    except OSError as error:
        raise SocketFileError(f"{path}: {error.strerror or error}") from error
    finally:
        os.umask(previous)
    if group is not None:
        # Nobody connects before listen(), so the wider mode comes after the group that it is
        # meant for.
        try:
            os.chown(path, -1, group, follow_symlinks=False)
            os.chmod(path, mode)
        except OSError as error:
            os.unlink(path)
            raise SocketFileError(f"{path}: group {group}: {error.strerror}") from error
