"""`pyztun-cni status`: how the agent is, and which ztunnels are connected."""

from __future__ import annotations

import json

from pyztun.cni.commands import client, frame
from pyztun.cni.commands.text import RIGHT, Column, age, shown, table, terminal_width
from pyztun.cni.commands.words import OPTIONS
from pyztun.cni.output import tell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyztun.cni.commands.words import Given

HELP = f"""\
usage: pyztun-cni status [OPTIONS]

Shows how the agent is, how many workloads are in which state, and the ztunnels that are connected.
Podside is the process that puts rules into pods; repairs are rules that somebody else had changed.
NEWEST is the one that new workloads go to, KNOWS how many workloads it acknowledged as they are
wanted now, WAITS FOR the request whose answer is due.

options:
{OPTIONS}

exit status:
  0  done
  1  failed; one line on stderr says why
  2  usage

examples:
  pyztun-cni status
  pyztun-cni status --json | jq .workloads
"""

COLUMNS = (
    Column("ZTUNNEL"),
    Column("PID"),
    Column("UID"),
    Column("SINCE"),
    Column("PHASE", RIGHT, 8),
    Column("NEWEST"),
    Column("KNOWS"),
    Column("WAITS FOR", RIGHT, 9),
    Column("REFUSED"),
)
LABEL = 13
"""Columns of the screen for what stands before each value."""


def main(words: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return frame.run("status", HELP, words, lambda given: given.nothing_behind(), _status)


def _status(given: Given, control: str, timeout: float) -> int:
    said = client.ask(control, "GET", "/v1/status", timeout)
    if given.is_json:
        tell(json.dumps(said, indent=2))
        return frame.DONE
    try:
        lines = list(_lines(said))
    except (KeyError, TypeError, AttributeError, ValueError):
        return frame.fail(f"{control}: what answers there is not the agent")
    tell("\n".join(lines))
    return frame.DONE


def _lines(said: client.Json) -> Iterator[str]:
    since = age(said["started"])
    facts = {
        "agent": f"pid {said['pid']}, version {said['version']}, running for {since}",
        "zds": said["zds"],
        "control": said["control"],
        "state dir": said["state_dir"],
        "workloads": _counts(said["workloads"]),
        "descriptors": f"{said['descriptors']['held']} of {said['descriptors']['limit']}",
        "reconcile": _reconcile(said["reconcile"]),
        "podside": _podside(said["podside"]),
    }
    for label, value in facts.items():
        yield f"{label:{LABEL}}{shown(str(value))}"
    ztunnels = said["ztunnels"]
    yield f"{'ztunnels':{LABEL}}{len(ztunnels) or 'none is connected'}"
    if ztunnels:
        yield ""
        yield from table(COLUMNS, [_row(each) for each in ztunnels], terminal_width())


def _counts(workloads: dict[str, int]) -> str:
    parts = [f"{count} {state}" for state, count in workloads.items() if count]
    return f"{sum(workloads.values())}{': ' if parts else ''}{', '.join(parts)}"


def _reconcile(loop: client.Json) -> str:
    if loop["last_at"] is None:
        return f"every {loop['interval']:g} s, not yet"
    passes = f"{loop['passes']} pass{'' if loop['passes'] == 1 else 'es'}"
    cost = f"{loop['last_cpu'] * 1000:.1f} ms of CPU"
    return f"every {loop['interval']:g} s, {passes}, the last {age(loop['last_at'])} ago ({cost})"


def _podside(one: client.Json) -> str:
    if one["pid"] is None and not one["restarts"]:
        return "not needed yet"
    process = "not running" if one["pid"] is None else f"pid {one['pid']}"
    restarts = f", restarted {_times(one['restarts'])}" if one["restarts"] else ""
    captured = f"rules in {one['captured']} pod{'' if one['captured'] == 1 else 's'}"
    return f"{process}{restarts}; {captured}, repaired {_times(one['repaired'])}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:d} times"


def _row(one: client.Json) -> list[str]:
    refused = one["refused"]
    cells = (
        one["number"],
        one["pid"],
        one["uid"],
        age(one["since"]),
        one["phase"],
        "yes" if one["newest"] else "-",
        one["acknowledged"],
        one["awaiting"] or "-",
        "; ".join(f"{uid}: {reason}" for uid, reason in refused.items()) or "-",
    )
    return [shown(str(cell)) for cell in cells]
