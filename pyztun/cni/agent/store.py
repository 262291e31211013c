"""The registry on disk: what was asked for survives any end of the process.

sqlite in WAL mode with synchronous=NORMAL: what was committed is in the page cache, which outlives
SIGKILL. (After a power failure the last commits may be missing; then every netns is gone, too.)
One agent a state directory: the database is locked for as long as the process lives.

A file that sqlite cannot read, or a row that we have not written so, has the file set aside; the
rows that it still yields are carried over (salvage.py).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat

from pyztun.cni.agent import rows, salvage
from pyztun.errors import PyztunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pyztun.cni.agent.workload import Workload

FILE = "registry.db"


class StoreError(PyztunError):
    """The registry cannot be read or written now; nothing was changed."""


class Store:
    """The table of workloads. Every call is a transaction of its own, or fails as a whole.

    May be made in one thread and used by another, one at a time. Writes go to the page cache, and
    at times to the disk: a call rarely takes as long as an fsync().
    """

    def __init__(self, directory: str) -> None:
        """Opens or makes DIRECTORY/registry.db, mode 0600. PyztunError.

        :ivar set_aside: where a corrupt file went; None if there was none.
        :ivar salvaged: how many rows it still yielded.
        """
        _check_directory(directory)
        self.path = os.path.join(directory, FILE)
        self.set_aside: str | None = None
        self.salvaged = 0
        try:
            self.set_aside = salvage.finish(self.path)
            self._db, self._workloads = _read(self.path)
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from error
        except (sqlite3.DatabaseError, ValueError) as error:
            if _is_busy(error):
                raise StoreError(f"{self.path}: another agent uses this state directory") from error
            if not _is_corrupt(error):
                raise StoreError(f"{self.path}: {error}") from error
            self._begin_anew()
        self.salvaged = len(self._workloads) if self.set_aside else 0

    def _begin_anew(self) -> None:
        try:
            self._workloads, self.set_aside = salvage.replace(self.path, _make)
            self._db = _open(self.path)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.path}: {error}") from error

    def load(self) -> list[Workload]:
        """The workloads in the order in which they were first put, without netns. Once."""
        loaded, self._workloads = self._workloads, []
        return loaded

    def put(self, workloads: Iterable[Workload]) -> None:
        """Inserts or overwrites; one that is there already keeps its place. StoreError."""
        self._write(rows.PUT, [rows.row_of(each) for each in workloads])

    def put_states(self, workloads: Iterable[Workload]) -> None:
        """Overwrites state, reason and since of those that are there. StoreError."""
        self._write(
            rows.SET_STATE, [(each.state, each.reason, each.since, each.uid) for each in workloads]
        )

    def remove(self, uid: str) -> None:
        """StoreError."""
        self._write("DELETE FROM workloads WHERE uid = ?", [(uid,)])

    def _write(self, statement: str, values: Sequence[rows.Row]) -> None:
        if not values:
            return
        try:
            with self._db:
                self._db.executemany(statement, values)
        except sqlite3.Error as error:
            raise StoreError(f"the registry cannot be written: {self.path}: {error}") from error

    def close(self) -> None:
        """Idempotent."""
        with contextlib.suppress(sqlite3.Error):
            self._db.close()


def _check_directory(directory: str) -> None:
    """Who could write there could slip workloads into the registry."""
    try:
        found = os.stat(directory)
    except OSError as error:
        raise StoreError(f"{directory}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise StoreError(f"{directory}: not a directory")
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise StoreError(
            f"{directory} belongs to, or is writable for, others, who could change the registry: "
            "use a directory of your own"
        )


def _read(path: str) -> tuple[sqlite3.Connection, list[Workload]]:
    """An open registry, and what is in it. OSError, sqlite3.Error, ValueError."""
    db = _open(path)
    try:
        return db, [rows.workload_of(row) for row in db.execute(rows.SELECT)]
    except BaseException:
        db.close()
        raise


def _open(path: str) -> sqlite3.Connection:
    """A connection that has proven to be alone, with the schema in place. sqlite3.Error."""
    try:  # sqlite would follow a symbolic link, and make the file with our umask
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    db = sqlite3.connect(path, timeout=0, check_same_thread=False, isolation_level=None)
    db.text_factory = bytes  # what is no UTF-8 is one row's fault
    try:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")  # no shared memory file, one process
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA temp_store = MEMORY")  # no file is opened later
        db.execute("BEGIN EXCLUSIVE")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        db.execute("COMMIT")
        _check_content(db, path, version)
        if version < rows.VERSION:
            _bring_up_to_date(db)
        db.isolation_level = "IMMEDIATE"
    except BaseException:
        db.close()
        raise
    return db


def _bring_up_to_date(db: sqlite3.Connection) -> None:
    """A new file, one of version 1, or a new one whose maker was killed. All of it or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        db.execute(rows.SCHEMA)
        columns = [bytes(name) for _, name, *_ in db.execute("PRAGMA table_info(workloads)")]
        if b"ruled" not in columns:
            db.execute(rows.ADD_RULED)
        db.execute(rows.SET_VERSION)
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def _check_content(db: sqlite3.Connection, path: str, version: int) -> None:
    if version > rows.VERSION:
        raise StoreError(
            f"{path} was written by a later version of pyztun ({version}, we know {rows.VERSION}): "
            "use that one, or move the file away"
        )
    problem = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != b"ok":
        raise sqlite3.DatabaseError(f"malformed: {problem!r}")


def _is_busy(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


def _is_corrupt(error: Exception) -> bool:
    """Whether the file is to blame; not the disk, its rights or its room.

    A table of another shape is nothing that we have written: it is not replaced, since an empty
    registry would have every ztunnel stop everything.
    """
    return not isinstance(error, sqlite3.OperationalError) or "malformed" in str(error)


def _make(path: str, workloads: Iterable[Workload]) -> None:
    """A whole registry in one file."""
    with contextlib.closing(_open(path)) as db:
        with db:
            db.executemany(rows.PUT, [rows.row_of(each) for each in workloads])
        db.execute("PRAGMA journal_mode = DELETE")
