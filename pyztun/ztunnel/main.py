"""The command `pyztun-ztunnel`."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status. ``argv`` without the program name."""
    from pyztun import stdio
    from pyztun.errors import PyztunError
    from pyztun.ztunnel import service, settings

    stdio.occupy()
    asked = settings.parse(argv)
    try:
        return service.run(asked)
    except (PyztunError, OSError, RuntimeError) as error:
        # RuntimeError: no thread can be started. What goes wrong later, in a thread, is logged.
        print(f"pyztun-ztunnel: {error}", file=sys.stderr)
        return 1
