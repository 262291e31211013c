"""The registry's file: rows that we have not written so, and an end in the middle of a repair."""

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest

from pyztun.cni.agent import salvage
from pyztun.cni.agent.store import Store, StoreError
from pyztun.cni.agent.workload import Spec, Workload
from pyztun.protocol.zds import WorkloadInfo

UIDS = ["c", "a", "b"]


def workload(uid: str) -> Workload:
    info = WorkloadInfo("n", "m", "s")
    made = Workload(uid, Spec(f"/run/netns/{uid}\udcff", info, "none", {"k": "v"}))
    made.boot_id, made.cookie = "boot", 2**64 - 1
    return made


def uids(store: Store) -> list[str]:
    return [each.uid for each in store.load()]


@pytest.fixture
def path(directory: Path) -> Path:
    """A registry with three workloads, whose agent has ended."""
    with closing(Store(str(directory))) as store:
        store.put(map(workload, UIDS))
    return directory / "registry.db"


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute(statement)
        db.commit()


def test_what_was_put_is_loaded(path: Path) -> None:
    with closing(Store(str(path.parent))) as store:
        first, *_ = loaded = store.load()
    assert [each.uid for each in loaded] == UIDS
    assert (first.reference, first.info, first.labels) == (
        "/run/netns/c\udcff",
        WorkloadInfo("n", "m", "s"),
        {"k": "v"},
    )
    assert (first.boot_id, first.cookie) == ("boot", 2**64 - 1)
    assert store.set_aside is None


BAD = {
    "no UTF-8": "name = CAST(x'ff41' AS TEXT)",
    "a NUL in the path": "reference = x'2f610062'",
    "a control character": "name = 'a' || char(27)",
    "nested labels": "labels = '" + "[" * 100_000 + "'",
    "labels of numbers": """labels = '{"a": 1}'""",
    "another type": "labels = 7",
    "bytes": "process = x'ff'",
    "a moment beyond all dates": "since = 1e300",
    "no number": "since = 9e999",
    "a state that there is not": "state = 'great'",
    "a cookie that is no number": "cookie = 'x'",
    "rules in a netns that has none": "ruled = 'x'",
    "a way to capture that there is not": "capture = 'tproxy'",
    "a uid that fits into no message": "uid = printf('%.2000c', 'x')",
    "an empty uid": "uid = ''",
}


@pytest.mark.parametrize("what", BAD)
def test_bad_row_costs_itself_alone(path: Path, what: str) -> None:
    change(path, f"UPDATE workloads SET {BAD[what]} WHERE uid = 'a'")
    with closing(Store(str(path.parent))) as store:
        assert uids(store) == ["c", "b"]
        assert store.salvaged == 2
        assert store.set_aside is not None
        assert os.path.exists(store.set_aside)
    with closing(Store(str(path.parent))) as store:
        assert (uids(store), store.set_aside) == (["c", "b"], None)


def test_table_of_another_shape_is_refused_and_left_alone(path: Path) -> None:
    change(path, "ALTER TABLE workloads DROP COLUMN labels")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="no such column"):
        Store(str(path.parent))
    assert path.read_bytes() == before


VERSION_1 = """
CREATE TABLE workloads (
    place INTEGER PRIMARY KEY AUTOINCREMENT, uid TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
    namespace TEXT NOT NULL, service_account TEXT NOT NULL, reference BLOB NOT NULL,
    capture TEXT NOT NULL, labels TEXT NOT NULL, boot_id TEXT NOT NULL, cookie TEXT, process TEXT,
    state TEXT NOT NULL, reason TEXT NOT NULL, since REAL NOT NULL
);
PRAGMA user_version = 1;
INSERT INTO workloads VALUES
    (1, 'one', 'n', 'm', 's', x'2f61', 'none', '{}', 'boot', '7', NULL, 'ready', '', 1.5),
    (2, 'two', 'n', 'm', 's', x'2f62', 'none', '{}', 'boot', '8', NULL, 'ready', '', 1.5);
"""


def of_version_1(directory: Path) -> Path:
    """A registry as an agent has left it that knew no capture."""
    path = directory / "registry.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(VERSION_1)
    return path


def test_registry_of_version_1_is_brought_up_to_date(directory: Path) -> None:
    path = of_version_1(directory)
    for _ in range(2):
        with closing(Store(str(directory))) as store:
            loaded = store.load()
            assert [(each.uid, each.capture, each.ruled) for each in loaded] == [
                ("one", "none", None),
                ("two", "none", None),
            ]
            assert store.set_aside is None
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)
        assert db.execute("SELECT uid, ruled FROM workloads").fetchall() == [
            ("one", None),
            ("two", None),
        ]


def test_new_registry_whose_maker_was_killed(directory: Path) -> None:
    """One of version 1, between its table and its number."""
    path = of_version_1(directory)
    change(path, "PRAGMA user_version = 0")
    with closing(Store(str(directory))) as store:
        assert uids(store) == ["one", "two"]


def test_broken_registry_of_version_1_is_salvaged(directory: Path) -> None:
    path = of_version_1(directory)
    change(path, "UPDATE workloads SET since = 'x' WHERE uid = 'two'")
    assert [each.uid for each in salvage._readable(str(path))] == ["one"]
    with closing(Store(str(directory))) as store:
        assert (uids(store), store.salvaged) == (["one"], 1)


def test_where_rules_are_is_kept(directory: Path) -> None:
    """Only with a cookie: an inode means nothing once nobody holds it."""
    told, untold = workload("told"), workload("untold")
    told.ruled, untold.ruled, untold.cookie = told.cookie, 4026532177, None
    with closing(Store(str(directory))) as store:
        store.put([told, untold])
    with closing(Store(str(directory))) as store:
        assert [each.ruled for each in store.load()] == [2**64 - 1, None]


def test_last_changes_are_in_the_log(path: Path, directory: Path) -> None:
    """A killed agent leaves them there; a broken row must not cost them."""
    copy = directory / "copy"
    copy.mkdir()
    with closing(Store(str(path.parent))) as store:
        store.put([workload("last")])
        for part in ("", "-wal"):  # as the page cache has it when the process is killed
            (copy / f"registry.db{part}").write_bytes(Path(f"{path}{part}").read_bytes())
    assert (copy / "registry.db-wal").stat().st_size > 0
    found = salvage._readable(str(copy / "registry.db"))
    assert [each.uid for each in found] == [*UIDS, "last"]


@pytest.mark.parametrize("killed_at", range(1, 6))
def test_killed_in_the_middle_of_a_repair(
    path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    """At each rename; the next agent has what the broken registry still yielded."""
    change(path, "UPDATE workloads SET since = 'x' WHERE uid = 'a'")
    Path(f"{path}-wal").touch()
    count, real = 0, os.rename

    class Killed(BaseException):
        pass

    def rename(old: str, new: str) -> None:
        nonlocal count
        count += 1
        if count == killed_at:
            raise Killed
        real(old, new)

    monkeypatch.setattr(os, "rename", rename)
    with suppress(Killed):
        Store(str(path.parent)).close()
    monkeypatch.undo()
    with closing(Store(str(path.parent))) as store:
        assert uids(store) == ["c", "b"]
    left = {each.name for each in path.parent.iterdir()}
    assert not {"registry.db.salvaged"} & left
