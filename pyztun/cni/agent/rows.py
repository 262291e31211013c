"""A workload as a row of the registry, and back.

Rows come from a disk: one that we have not written so is refused as a whole. What passes here could
have come from a caller (requests.check()), so it can be sent, shown and logged.
"""

from __future__ import annotations

import json
import os

from pyztun.cni.agent import requests
from pyztun.cni.agent.requests import Refusal, Wanted
from pyztun.cni.agent.workload import DEGRADED, PENDING, READY, Spec, Workload
from pyztun.protocol.zds import WorkloadInfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION = 2

# Cookies have 64 bits and sqlite's integers a sign; paths are bytes.
SCHEMA = """
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
    since REAL NOT NULL,
    ruled TEXT
)
"""
ADD_RULED = "ALTER TABLE workloads ADD COLUMN ruled TEXT"
"""From version 1, in which nothing was captured."""
SET_VERSION = f"PRAGMA user_version = {VERSION}"
COLUMNS = (
    "uid, name, namespace, service_account, reference, capture, labels, boot_id, cookie, process, "
    "state, reason, since, ruled"
)
SELECT = f"SELECT {COLUMNS} FROM workloads ORDER BY place"  # noqa: S608  constants
SELECT_1 = SELECT.replace("ruled", "NULL")
PUT = f"""
INSERT INTO workloads ({COLUMNS}) VALUES ({", ".join("?" * len(COLUMNS.split(",")))})
ON CONFLICT (uid) DO UPDATE SET
    {", ".join(f"{name} = excluded.{name}" for name in COLUMNS.split(", ")[1:])}
"""  # noqa: S608
SET_STATE = "UPDATE workloads SET state = ?, reason = ?, since = ? WHERE uid = ?"

Row = tuple[object, ...]
END_OF_TIME = 253402300800.0
"""In seconds of the epoch: the year 10000, which no date of ISO 8601 has."""


def row_of(workload: Workload) -> Row:
    """The columns, in their order."""
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
        None if workload.cookie is None or workload.ruled is None else str(workload.ruled),
    )


def workload_of(row: Sequence[object]) -> Workload:
    """The workload, without a netns.

    :param row: texts as bytes.
    :raises ValueError: a column is not what we write.
    """
    uid, name, namespace, account = map(_text, row[:4])
    reference, capture, labels = os.fsdecode(_bytes(row[4])), _text(row[5]), _labels(row[6])
    wanted = Wanted(
        reference,
        uid=uid,
        name=name,
        namespace=namespace,
        service_account=account,
        capture=capture,
        labels=labels,
    )
    info = WorkloadInfo(name, namespace, account)
    try:
        requests.check(wanted)
        requests.check_size(uid, info)
    except Refusal as refusal:
        raise ValueError(refusal.reason) from None
    workload = Workload(uid, Spec(reference, info, capture, labels))
    workload.boot_id = _text(row[7])
    workload.cookie = None if row[8] is None else int(_text(row[8]))
    workload.process = None if row[9] is None else _text(row[9])
    workload.state, workload.reason = _text(row[10]), _text(row[11])
    workload.since = _moment(row[12])
    workload.ruled = None if row[13] is None else int(_text(row[13]))
    if workload.state not in (READY, PENDING, DEGRADED):
        raise ValueError("a state that there is not")
    return workload


def _bytes(column: object) -> bytes:
    if not isinstance(column, bytes):
        raise ValueError("a column of another type")  # noqa: TRY004  one error for all
    return column


def _text(column: object) -> str:
    return _bytes(column).decode()


def _labels(column: object) -> dict[str, str]:
    try:
        labels = json.loads(_text(column))
    except RecursionError:
        raise ValueError("labels that are nested") from None
    if not isinstance(labels, dict) or not all(isinstance(each, str) for each in labels.values()):
        raise ValueError("labels that are no object of strings")
    return labels


def _moment(column: object) -> float:
    if not isinstance(column, float) or not 0 <= column < END_OF_TIME:
        raise ValueError("a moment that there is not")
    return column
