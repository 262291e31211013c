"""Mount events: POLLPRI on /proc/self/mountinfo.

A netns gets its name by a bind mount. Inotify misses it: at IN_CREATE the file is not a netns yet,
and a mount over it is no event of the file. The kernel tells of every change of the mount table of
our mount namespace (fs/proc_namespace.c, mounts_poll()) as POLLPRI; asyncio knows POLLIN and
POLLOUT alone, but an epoll descriptor is readable as soon as one of its own events has come.

A del and an add come as one burst, in the middle of which there is no netns: so nobody is told
before the table has been quiet for a moment.
"""

from __future__ import annotations

import asyncio
import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

QUIET = 0.02
LONGEST = 0.2
"""Seconds after the first event of a burst that does not end."""


class Mounts:
    """Calls back some 20 ms after a change of the mount table. Two descriptors.

    :param changed: called in the loop, without arguments.
    :raises OSError: there is no procfs.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._latest = 0.0
        self._table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._epoll = select.epoll()
        except OSError:
            os.close(self._table)
            raise
        self._epoll.register(self._table, select.EPOLLPRI)
        self._loop.add_reader(self._epoll.fileno(), self._event)

    def _event(self) -> None:
        self._epoll.poll(0)  # takes the event; the next change is a new one
        now = self._loop.time()
        if self._timer is None:
            self._latest = now + LONGEST
        else:
            self._timer.cancel()
        self._timer = self._loop.call_at(min(now + QUIET, self._latest), self._tell)

    def _tell(self) -> None:
        self._timer = None
        self._changed()

    def close(self) -> None:
        """In the loop."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        os.close(self._table)
