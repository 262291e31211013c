"""OwnedFd: a file descriptor with exactly one owner.

A closed holder stores -1 in the field itself, not a flag beside it: the number of a closed fd is
soon somebody else's, so it must not be kept where it could be used.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType


class OwnedFd:
    """Owns one file descriptor until it is closed or detached.

    Closing is idempotent. A holder that is forgotten closes its fd and says so with a
    ResourceWarning. Not safe for use by several threads at once without a lock, as with any file
    object.

    :param fd: the descriptor; ownership passes to the holder.
    """

    __slots__ = ("_fd",)

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
            os.close(self.detach())

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
        if self._fd >= 0:
            what = repr(self)
            self.close()
            _warn(f"unclosed {what}", self)

    def __repr__(self) -> str:
        return f"<OwnedFd {self._fd}>" if self._fd >= 0 else "<OwnedFd closed>"


def _warn(text: str, source: OwnedFd) -> None:
    try:
        import warnings
    except ImportError:  # the interpreter is ending, and every descriptor with it
        return
    warnings.warn(text, ResourceWarning, stacklevel=3, source=source)
