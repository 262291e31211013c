"""The wait of the ZDS form's handoff thread, and how other threads reach it there."""

from __future__ import annotations

import os
import threading

from pyztun import waits


class ZdsWait(waits.Zds):
    """waits.Zds with a wake fd of its own. Any thread may call look(), end() and close()."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_ending = False
        super().__init__(self._wake)

    def look(self) -> None:
        """Wakes it: root in a pod may have destroyed listeners."""
        self._ring(is_end=False)

    def end(self) -> None:
        """Wakes it for the last time."""
        self._ring(is_end=True)

    def _ring(self, *, is_end: bool) -> None:
        with self._lock:
            self._is_ending |= is_end
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def is_end(self) -> bool:
        """To be asked after ZDS_WOKEN, once. False: it was look()."""
        with self._lock:
            if not self._is_ending:
                os.eventfd_read(self._wake)
            return self._is_ending

    def close(self) -> None:
        """As that of waits.Zds, once; and look() reaches nobody any more."""
        with self._lock:
            if self._wake >= 0:
                super().close()
                os.close(self._wake)
                self._wake = -1
