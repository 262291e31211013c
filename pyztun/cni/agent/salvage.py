"""What is left of a broken registry, and how it takes the place of it.

At no moment is there less than before: the new registry is complete before the broken one is set
aside, and a process that is killed in between is followed by one that finishes.

    registry.db.new        being written
    registry.db.salvaged   complete, to take the place of registry.db
    registry.db.corrupt-*  the broken one, for people
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from time import time

from pyztun.cni.agent import rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pyztun.cni.agent.workload import Workload

PARTS = ("-wal", "-shm", "-journal", "")


def replace(
    path: str, make: Callable[[str, Iterable[Workload]], None]
) -> tuple[list[Workload], str]:
    """Has a new registry, of what the one at PATH still yields, take its place.

    :param make: writes a registry into one file.
    :returns: what it yielded, and where the broken one is now.
    :raises OSError, sqlite3.Error:
    """
    found = list(_readable(path))
    new = f"{path}.new"
    _remove(new)
    make(new, found)
    os.rename(new, f"{path}.salvaged")
    aside = finish(path)
    assert aside is not None  # noqa: S101  for mypy
    return found, aside


def finish(path: str) -> str | None:
    """Sets the broken registry aside where a salvaged one is to take its place; where it went."""
    salvaged = f"{path}.salvaged"
    if not os.path.exists(salvaged):
        return None
    aside = f"{path}.corrupt-{int(time())}-{os.getpid()}"
    for part in PARTS:  # the log first: sqlite would take it for one of the new file
        with contextlib.suppress(FileNotFoundError):
            os.rename(path + part, aside + part)
    os.rename(salvaged, path)
    return aside


def _remove(path: str) -> None:
    for part in PARTS:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + part)


def _readable(path: str) -> Iterator[Workload]:
    """What a broken registry still yields, up to the first page that it does not.

    With its log, in which the last changes are; without it where that is broken, too.
    """
    found: dict[str, Workload] = {}
    for uri in (f"file:{path}", f"file:{path}?mode=ro&immutable=1"):
        with contextlib.suppress(sqlite3.Error):
            db = sqlite3.connect(uri, uri=True, timeout=0)
            db.text_factory = bytes
            with contextlib.closing(db):
                db.execute("PRAGMA locking_mode = EXCLUSIVE")
                for row in _rows(db):
                    with contextlib.suppress(ValueError):
                        workload = rows.workload_of(row)
                        found.setdefault(workload.uid, workload)
    return iter(found.values())


def _rows(db: sqlite3.Connection) -> Iterator[rows.Row]:
    """In whatever version they were written. sqlite3.Error."""
    try:
        selected = db.execute(rows.SELECT.replace("ORDER BY place", "NOT INDEXED"))
    except sqlite3.OperationalError:  # no such column
        selected = db.execute(rows.SELECT_1.replace("ORDER BY place", "NOT INDEXED"))
    yield from selected
