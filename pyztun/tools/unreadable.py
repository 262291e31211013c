"""What a census could not read: counted by what it was and why, with some examples."""

from __future__ import annotations

import errno
import os
from typing import Any

from pyztun.errors import name_of

GONE = (errno.ENOENT, errno.ESRCH, errno.EBADF, errno.ENOTDIR, errno.ENOTSOCK)
REFUSED = (errno.EPERM, errno.EACCES)
EXAMPLES = 5

NEEDS_PTRACE = "CAP_SYS_PTRACE in the user namespace of the process"
NEEDS_SEARCH = "CAP_DAC_READ_SEARCH, or the right to pass through its directories"
NEEDS_NET_ADMIN = "CAP_NET_ADMIN in the user namespace that owns the netns"
NEEDS_SYS_ADMIN = "CAP_SYS_ADMIN in the user namespace that owns the netns and in our own"


class Unreadable:
    """Collects refusals. What has vanished meanwhile is none."""

    def __init__(self) -> None:
        self._subjects: dict[tuple[str, str], dict[str, None]] = {}

    def note(self, what: str, subject: str, error: OSError, needs: str = "") -> None:
        """Remembers an error, unless it says that the subject is gone.

        :param what: the kind of thing that was to be read.
        :param subject: which one.
        :param needs: the capability for want of which EPERM or EACCES was said.
        """
        number = error.errno or errno.EIO
        if number in GONE:
            return
        if number in REFUSED and needs:
            self.say(what, subject, f"{name_of(number)} (needs {needs})")
        else:
            self.say(what, subject, f"{name_of(number)} ({os.strerror(number)})")

    def say(self, what: str, subject: str, why: str) -> None:
        """Remembers a reason that is no errno."""
        self._subjects.setdefault((what, why), {})[subject] = None

    def as_list(self) -> list[dict[str, Any]]:
        """One entry for each pair of what and why; see docs/netns-ls.md."""
        return [
            {
                "what": what,
                "why": why,
                "count": len(subjects),
                "examples": list(subjects)[:EXAMPLES],
            }
            for (what, why), subjects in self._subjects.items()
        ]
