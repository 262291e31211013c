"""OwnedFd: a file descriptor with exactly one owner.

A closed holder stores -1 in the field itself, not a flag beside it: the number of a closed fd is
soon somebody else's, so it must not be kept where it could be used.
"""

from __future__ import annotations

import os
from itertools import starmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import NoReturn, Protocol

    class Array(Protocol):
        """An array of C, or a list."""

        def __getitem__(self, index: int, /) -> int: ...
        def __setitem__(self, index: int, value: int, /) -> None: ...


class OwnedFd:
    """Owns one file descriptor until it is closed or detached.

    Closing is idempotent. A holder that is forgotten closes its fd and says so with a
    ResourceWarning. Not safe for use by several threads at once without a lock, as with any file
    object.

    :param fd: the descriptor; ownership passes to the holder.
    """

    __slots__ = ("_fd",)

    _close = staticmethod(os.close)  # a finalizer may run when the names of the module are gone

    def __init__(self, fd: int) -> None:
        self._fd = -1
        if fd < 0:
            raise ValueError(f"not a file descriptor: {fd}")
        self._fd = fd

    def fileno(self) -> int:
        """The descriptor, still owned by the holder; -1 once closed or detached."""
        return self._fd

    def detach(self) -> int:
        """Hands the descriptor to the caller, who owns it from now on. ValueError once closed."""
        if self._fd < 0:
            raise ValueError("this file descriptor is closed")
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        """Closes the descriptor; does nothing the second time."""
        if self._fd >= 0:
            # No call in between: a signal handler could raise there, and the number be lost.
            fd, self._fd = self._fd, -1
            self._close(fd)

    def __enter__(self) -> OwnedFd:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            fd, self._fd = self._fd, -1
        except AttributeError:  # __init__ or take() was interrupted
            return
        if fd >= 0:
            self._close(fd)
            _warn(f"unclosed <OwnedFd {fd}>", self)

    def __reduce__(self) -> NoReturn:
        """A copy would close the same number a second time, when it may be a stranger's."""
        raise TypeError("an OwnedFd cannot be copied or pickled")

    def __repr__(self) -> str:
        return f"<OwnedFd {self._fd}>" if self._fd >= 0 else "<OwnedFd closed>"


def own(
    call: Callable[..., int],
    *arguments: object,
    failed: Callable[[int], Exception] | None = None,
) -> OwnedFd:
    """``OwnedFd(call(*arguments))``, and no signal handler can come between the two.

    Python runs the handler of a signal that came during a call right after it, before the result
    is stored anywhere: if the handler raises, the descriptor is lost. What starmap() yields is in
    the list by then.

    :param call: a function of C, not of python: it returns a descriptor, or a negative errno.
    :param failed: makes the exception of an errno, where ``call`` returns one.
    """
    made: list[int] = []
    try:
        made.extend(starmap(call, [arguments]))
        if made[0] >= 0 or failed is None:
            return take(made, 1)[0]
    except BaseException:
        for fd in made:
            if fd >= 0:
                os.close(fd)
        raise
    raise failed(-made[0])


def take(fds: Array, count: int) -> list[OwnedFd]:
    """Moves the first ``count`` descriptors out of an array into holders; -1 takes their place.

    A signal handler may raise at any call or backward jump. Each descriptor changes hands between
    two of these, and is in the array or in a holder, never in both: whoever closes the rest of the
    array afterwards loses nothing and closes nothing twice.
    """
    holders = [OwnedFd.__new__(OwnedFd) for _ in range(count)]
    for holder in holders:
        holder._fd = -1
    for i, holder in enumerate(holders):
        fds[i], holder._fd = -1, fds[i]
    return holders


def _warn(text: str, source: OwnedFd) -> None:
    try:
        import warnings
    except ImportError:  # the interpreter is ending, and every descriptor with it
        return
    warnings.warn(text, ResourceWarning, stacklevel=3, source=source)
