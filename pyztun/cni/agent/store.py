"""The registry on disk: what was asked for survives any end of the process.

sqlite in WAL mode with synchronous=NORMAL: what was committed is in the page cache, which outlives
SIGKILL. (After a power failure the last commits may be missing; then every netns is gone, too.)
One agent a state directory: the database is locked for as long as the process lives.

A file that sqlite cannot read is set aside, and what rows it still yields are carried over: an
empty registry would have every ztunnel stop everything.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import stat
from collections.abc import Iterator
from time import time

from pyztun.cni.agent.workload import DEGRADED, PENDING, READY, Spec, Workload
from pyztun.errors import PyztunError
from pyztun.protocol.zds import WorkloadInfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

FILE = "registry.db"
VERSION = 1
PARTS = ("", "-wal", "-shm", "-journal")

# Cookies have 64 bits and sqlite's integers a sign; paths are bytes.
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS workloads (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    uid TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    namespace TEXT NOT NULL,
    service_account TEXT NOT NULL,
    reference BLOB NOT NULL,
    capture TEXT NOT NULL,
    labels TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    cookie TEXT,
    process TEXT,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    since REAL NOT NULL
);
PRAGMA user_version = {VERSION};
"""
COLUMNS = (
    "uid, name, namespace, service_account, reference, capture, labels, boot_id, cookie, process, "
    "state, reason, since"
)
SELECT = f"SELECT {COLUMNS} FROM workloads ORDER BY place"  # noqa: S608  constants
PUT = f"""
INSERT INTO workloads ({COLUMNS}) VALUES ({", ".join("?" * len(COLUMNS.split(",")))})
ON CONFLICT (uid) DO UPDATE SET
    {", ".join(f"{name} = excluded.{name}" for name in COLUMNS.split(", ")[1:])}
"""  # noqa: S608
SET_STATE = "UPDATE workloads SET state = ?, reason = ?, since = ? WHERE uid = ?"

Row = tuple[object, ...]


class StoreError(PyztunError):
    """The registry cannot be read or written now; nothing was changed."""


class Store:
    """The table of workloads. Every call is a transaction of its own, or fails as a whole.

    May be made in one thread and used by another, one at a time. Writes go to the page cache, and
    at times to the disk: a call takes some 20 us, rarely as long as an fsync().
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
            self._db = _open(self.path)
            self._rows = list(self._db.execute(SELECT))
            self._workloads = [_workload(row) for row in self._rows]
        except (sqlite3.DatabaseError, ValueError) as error:
            if _is_busy(error):
                raise StoreError(f"{self.path}: another agent uses this state directory") from error
            if not _is_corrupt(error):
                raise StoreError(f"{self.path}: {error}") from error
            self._begin_anew()

    def _begin_anew(self) -> None:
        with contextlib.suppress(AttributeError, sqlite3.Error):
            self._db.close()
        self.set_aside = f"{self.path}.corrupt-{int(time())}-{os.getpid()}"
        self._workloads = list(_readable(self.path))
        self.salvaged = len(self._workloads)
        for part in PARTS:
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.path + part, self.set_aside + part)
        try:
            self._db = _open(self.path)
            self.put(self._workloads)
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: {error}") from error

    def load(self) -> list[Workload]:
        """The workloads in the order in which they were first put, without netns. Once."""
        loaded, self._workloads = self._workloads, []
        return loaded

    def put(self, workloads: Iterable[Workload]) -> None:
        """Inserts or overwrites; one that is there already keeps its place. StoreError."""
        self._write(PUT, [_row(each) for each in workloads])

    def put_states(self, workloads: Iterable[Workload]) -> None:
        """Overwrites state, reason and since of those that are there. StoreError."""
        rows: list[Row] = [(each.state, each.reason, each.since, each.uid) for each in workloads]
        self._write(SET_STATE, rows)

    def remove(self, uid: str) -> None:
        """StoreError."""
        self._write("DELETE FROM workloads WHERE uid = ?", [(uid,)])

    def _write(self, statement: str, rows: list[Row]) -> None:
        if not rows:
            return
        try:
            with self._db:
                self._db.executemany(statement, rows)
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


def _open(path: str) -> sqlite3.Connection:
    """A connection that has proven to be alone, with the schema in place. sqlite3.Error."""
    try:  # sqlite would follow a symbolic link, and make the file with our umask
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    db = sqlite3.connect(path, timeout=0, check_same_thread=False, isolation_level=None)
    try:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")  # no shared memory file, one process
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA temp_store = MEMORY")  # no file is opened later
        db.execute("BEGIN EXCLUSIVE")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        db.execute("COMMIT")
        _check_content(db, path, version)
        if version < VERSION:
            db.executescript(SCHEMA)
        db.isolation_level = "IMMEDIATE"
    except BaseException:
        db.close()
        raise
    return db


def _check_content(db: sqlite3.Connection, path: str, version: int) -> None:
    if version > VERSION:
        raise StoreError(
            f"{path} was written by a later version of pyztun ({version}, we know {VERSION}): "
            "use that one, or move the file away"
        )
    problem = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise sqlite3.DatabaseError(f"malformed: {problem}")


def _is_busy(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


def _is_corrupt(error: Exception) -> bool:
    """Whether the file is to blame; not the disk, its rights or its room."""
    if not isinstance(error, sqlite3.OperationalError):
        return True
    text = str(error)
    return any(word in text for word in ("malformed", "no such table", "no such column"))


def _readable(path: str) -> Iterator[Workload]:
    """What a broken file still yields, up to the first page that it does not."""
    seen = set()
    with contextlib.suppress(sqlite3.Error):
        db = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
        with contextlib.closing(db):
            for row in db.execute(SELECT.replace("ORDER BY place", "NOT INDEXED")):
                with contextlib.suppress(ValueError):
                    workload = _workload(row)
                    if workload.uid not in seen:
                        seen.add(workload.uid)
                        yield workload


def _row(workload: Workload) -> Row:
    info = workload.info
    return (
        workload.uid,
        info.name,
        info.namespace,
        info.service_account,
        os.fsencode(workload.reference),
        workload.capture,
        json.dumps(dict(workload.labels)),
        workload.boot_id,
        None if workload.cookie is None else str(workload.cookie),
        workload.process,
        workload.state,
        workload.reason,
        workload.since,
    )


def _workload(row: Row) -> Workload:
    """ValueError where a column is not what we have written."""
    uid, name, namespace, account, reference, capture, labels, boot_id, cookie, process = row[:10]
    state, reason, since = row[10:]
    texts = (uid, name, namespace, account, capture, labels, boot_id, state, reason)
    if not all(isinstance(each, str) for each in texts) or not isinstance(reference, bytes):
        raise ValueError("a column of another type")
    if not isinstance(since, float) or state not in (READY, PENDING, DEGRADED) or not uid:
        raise ValueError("a state that we do not know")
    mapping = json.loads(str(labels))
    if not isinstance(mapping, dict):
        raise ValueError("labels that are no object")  # noqa: TRY004  one error for all columns
    info = WorkloadInfo(str(name), str(namespace), str(account))
    spec = Spec(os.fsdecode(reference), info, str(capture), mapping)
    workload = Workload(str(uid), spec)
    workload.boot_id = str(boot_id)
    workload.cookie = None if cookie is None else int(str(cookie))
    workload.process = None if process is None else str(process)
    workload.state, workload.reason, workload.since = str(state), str(reason), since
    return workload
