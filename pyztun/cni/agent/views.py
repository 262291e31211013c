"""What the control API shows and takes: objects of ours as JSON, and a body as a Wanted. Pure.

Bodies are validated by hand and strictly: a field that we do not know is an error that names it,
since a caller who misspells `namespace` would get a workload in another one. docs/api.md describes
all of it, openapi.json has it for machines, and a test compares the three.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from urllib.parse import parse_qsl

from pyztun.cni.agent import requests
from pyztun.cni.agent.requests import Refusal, Wanted
from pyztun.cni.agent.workload import one_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from pyztun.cni.agent.status import Status, ZtunnelStatus
    from pyztun.cni.agent.workload import Workload

    Json = dict[str, object]

FORBIDDEN: Final = "forbidden"
NO_SUCH_PATH: Final = "no-such-path"
METHOD_NOT_ALLOWED: Final = "method-not-allowed"
REQUEST_TIMEOUT: Final = "request-timeout"
TOO_LARGE: Final = "too-large"
INTERNAL: Final = "internal"

STATUSES = {
    requests.BAD_REQUEST: 400,
    FORBIDDEN: 403,
    requests.NOT_PERMITTED: 403,
    NO_SUCH_PATH: 404,
    requests.NO_SUCH_NETNS: 404,
    requests.NO_SUCH_WORKLOAD: 404,
    METHOD_NOT_ALLOWED: 405,
    REQUEST_TIMEOUT: 408,
    requests.AMBIGUOUS: 409,
    requests.NETNS_TAKEN: 409,
    requests.SUPERSEDED: 409,
    TOO_LARGE: 413,
    requests.HOME_NETNS: 422,
    requests.INITIAL_NETNS: 422,
    requests.NOT_A_NETNS: 422,
    requests.BUSY: 429,
    INTERNAL: 500,
    requests.REFUSED: 502,
    requests.LIMIT: 503,
    requests.NO_ZTUNNEL: 503,
    requests.RULES: 503,
    requests.SHUTTING_DOWN: 503,
    requests.TIMEOUT: 504,
    requests.STORAGE: 507,
}
"""HTTP's word for each code. The code says more, and is what a program should look at."""

DEFAULT_TIMEOUT, MAX_TIMEOUT = 10.0, 600.0
"""Seconds in which a ztunnel should have answered."""
MAX_REASON = 2000
MAX_PARAMETERS = 8
TEXTS = (
    "netns",
    "descriptor",
    "uid",
    "name",
    "namespace",
    "service_account",
    "capture",
)
FIELDS = (*TEXTS, "labels", "timeout")


# ---- what is taken -------------------------------------------------------------------------------


def wanted(body: bytes, peer_pid: int) -> tuple[Wanted, float]:
    """Takes the body of POST /v1/workloads apart: the workload, and a timeout in seconds.

    What the fields may contain is for requests.check() to say. Refusal.
    """
    given = _object(body)
    for field in given:
        if field not in FIELDS:
            raise _bad(f"unknown field {field!r}; known are {', '.join(FIELDS)}")
    for field in TEXTS:
        if not isinstance(given.get(field, ""), str):
            raise _bad(f"{field} is not a string")
    if "netns" not in given:
        raise _bad("netns is missing")
    labels = given.get("labels", {})
    if not isinstance(labels, dict):
        raise _bad("labels is not an object")
    if not all(isinstance(value, str) for value in labels.values()):
        raise _bad("labels has a value that is not a string")
    seconds = timeout(given.get("timeout", DEFAULT_TIMEOUT))
    texts = {field: given[field] for field in TEXTS if field in given}
    return Wanted(peer_pid=peer_pid, labels=labels, **texts), seconds  # type: ignore[arg-type]


def timeout(given: object) -> float:
    """Seconds. Refusal."""
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise _bad("timeout is not a number")
    if not 0 < given <= MAX_TIMEOUT:
        raise _bad(f"timeout is not above 0 and at most {MAX_TIMEOUT:.0f} seconds")
    return float(given)


def query(text: str, known: Sequence[str]) -> dict[str, str]:
    """Reads what is behind the `?` of a path. Refusal."""
    if not text:
        return {}
    try:
        pairs = parse_qsl(
            text, keep_blank_values=True, strict_parsing=True, max_num_fields=MAX_PARAMETERS
        )
    except ValueError:
        raise _bad("the query is not NAME=VALUE&...") from None
    for name, _ in pairs:
        if name not in known:
            raise _bad(f"unknown parameter {name!r}")
    if len({name for name, _ in pairs}) != len(pairs):
        raise _bad("a parameter is given twice")
    return dict(pairs)


def query_timeout(parameters: dict[str, str]) -> float:
    """The parameter `timeout`, or its default. Refusal."""
    if "timeout" not in parameters:
        return DEFAULT_TIMEOUT
    try:
        return timeout(float(parameters["timeout"]))
    except ValueError:
        raise _bad("timeout is not a number") from None


def _object(body: bytes) -> Json:
    try:
        given = json.loads(
            body.decode(), object_pairs_hook=_without_twins, parse_constant=_no_constant
        )
    except UnicodeDecodeError:
        raise _bad("the body is not UTF-8") from None
    except RecursionError:
        raise _bad("the body is nested too deeply") from None
    except ValueError as error:
        raise _bad(f"the body is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise _bad("the body is not a JSON object")
    return given


def _without_twins(pairs: list[tuple[str, object]]) -> Json:
    """Of two fields of one name readers take one or the other: neither can be what was meant."""
    given = dict(pairs)
    if len(given) != len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twin!r} is there twice")
    return given


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is no number of JSON")


def _bad(reason: str) -> Refusal:
    return Refusal(requests.BAD_REQUEST, reason)


# ---- what is shown -------------------------------------------------------------------------------


def encode(shown: Json) -> bytes:
    """As JSON in ASCII. Bytes of a path that are no UTF-8 are lone surrogates (PEP 383)."""
    return json.dumps(shown, separators=(",", ":")).encode() + b"\n"


def error(code: str, reason: str, kept: Json | None = None) -> Json:
    """The body of every answer that is none of 2xx.

    :param kept: the workload that it is about, where there is one.
    """
    shown: Json = {"error": code, "reason": one_line(reason)[:MAX_REASON]}
    if kept is not None:
        shown["workload"] = kept
    return shown


def workload(one: Workload, known_by: Sequence[int], reset: bool | None = None) -> Json:
    """One workload.

    :param known_by: the numbers of the ztunnels that acknowledged it as it is wanted now.
    :param reset: for the answer to an add: whether connections of the pod were reset by it.
    """
    info = one.info
    shown: Json = {
        "uid": one.uid,
        "name": info.name,
        "namespace": info.namespace,
        "service_account": info.service_account,
        "netns": one.reference,
        "cookie": one.cookie,
        "inode": one.inode,
        "boot_id": one.boot_id,
        "state": one.state,
        "reason": one.reason,
        "since": moment(one.since),
        "capture": one.capture,
        "rules": _rules(one),
        "labels": dict(one.labels),
        "ztunnels": list(known_by),
    }
    if reset is not None:
        shown["connections_reset"] = reset
    return shown


def _rules(one: Workload) -> Json | None:
    if not one.is_captured:
        return None
    return {
        "in_place": one.has_rules,
        "trouble": one.rules_trouble,
        "without": list(one.without),
        "repaired": one.repairs,
    }


def status(now: Status) -> Json:
    """The agent and its ztunnels."""
    repair, table = now.reconcile, now.descriptors
    return {
        "version": now.version,
        "pid": now.pid,
        "started": moment(now.started),
        "boot_id": now.boot_id,
        "zds": now.zds,
        "control": now.control,
        "state_dir": now.state_dir,
        "workloads": dict(now.workloads),
        "ztunnels": [_ztunnel(each) for each in now.ztunnels],
        "reconcile": {
            "interval": repair.interval,
            "passes": repair.passes,
            "last_at": None if repair.last_at is None else moment(repair.last_at),
            "last_cpu": repair.last_cpu,
        },
        "descriptors": {"held": table.held, "limit": table.limit},
        "podside": now.podside._asdict(),
    }


def _ztunnel(one: ZtunnelStatus) -> Json:
    return {
        "number": one.number,
        "pid": one.pid,
        "uid": one.uid,
        "since": moment(one.since),
        "phase": one.phase,
        "newest": one.newest,
        "acknowledged": one.acknowledged,
        "awaiting": one.awaiting,
        "refused": dict(one.refused),
    }


def moment(seconds: float) -> str:
    """Seconds of the epoch as ISO 8601 in UTC, to the second: ``2026-01-31T09:30:00Z``."""
    return f"{datetime.fromtimestamp(int(seconds), timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
