"""`pyztun-cni list`: the workloads, as a table that fits the terminal or as lines for a pipe."""

from __future__ import annotations

import json

from pyztun.cni.commands import client, frame
from pyztun.cni.commands.text import (
    GREEN,
    LEFT,
    RED,
    RIGHT,
    YELLOW,
    Column,
    age,
    painted,
    shown,
    table,
    terminal_width,
)
from pyztun.cni.commands.words import OPTIONS
from pyztun.cni.output import complain, tell
from pyztun.netns import NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyztun.cni.commands.words import Given

HELP = f"""\
usage: pyztun-cni list [OPTIONS]

Lists the workloads of the agent in the order in which they were added. STATE is `ready`, `pending`
or `degraded` with the reason, SINCE how long it has been so, COOKIE that of the netns, ZTUNNELS the
numbers of those that acknowledged the workload as it is wanted now (`pyztun-cni status` has them),
CAPTURE how its traffic is captured.
On a terminal NETNS is the bare name of a path under /run/netns, and long cells are cut to fit; in a
pipe all is whole, one line a workload.

options:
{OPTIONS}

exit status:
  0  done, also where there is no workload
  1  failed; one line on stderr says why
  2  usage

examples:
  pyztun-cni list
  pyztun-cni list --json | jq -r '.[] | select(.state != "ready") | .uid'
"""

COLUMNS = (
    Column("NAME", RIGHT, 8),
    Column("NAMESPACE", RIGHT, 9),
    Column("UID", RIGHT, 9),
    Column("NETNS", LEFT, 12),
    Column("COOKIE"),
    Column("SINCE"),
    Column("ZTUNNELS"),
    Column("CAPTURE"),
    Column("STATE"),
)
COLOURS = {"ready": GREEN, "pending": YELLOW, "degraded": RED}


def main(words: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return frame.run("list", HELP, words, lambda given: given.nothing_behind(), _list)


def _list(given: Given, control: str, timeout: float) -> int:
    said = client.ask(control, "GET", "/v1/workloads", timeout)
    workloads = said.get("workloads")
    if not isinstance(workloads, list) or not all(isinstance(each, dict) for each in workloads):
        return frame.fail(f"{control}: what answers there is not the agent")
    if given.is_json:
        tell("[" + ",\n ".join(map(json.dumps, workloads)) + "]")
        return frame.DONE
    if not workloads:
        complain("no workloads; `pyztun-cni add NETNS` makes one")
        return frame.DONE
    width = terminal_width()
    rows = [_row(each, width is not None) for each in workloads]
    tell("\n".join(table(COLUMNS, rows, width, _coloured)))
    return frame.DONE


def _row(workload: client.Json, short: bool) -> list[str]:
    """:param short: a netns that has a name is that name, as every command takes it."""
    netns = str(workload.get("netns"))
    if short and "/" not in (name := netns.removeprefix(f"{NAMES}/")):
        netns = name
    state, reason = str(workload.get("state")), str(workload.get("reason") or "")
    ztunnels = workload.get("ztunnels")
    numbers = ",".join(map(str, ztunnels)) if isinstance(ztunnels, list) else ""
    cookie = workload.get("cookie")
    cells = (
        workload.get("name"),
        workload.get("namespace"),
        workload.get("uid"),
        netns,
        "-" if cookie is None else cookie,
        age(workload.get("since")),
        numbers or "-",
        workload.get("capture"),
        f"{state}: {reason}" if reason else state,
    )
    return [shown(str(cell)) for cell in cells]


def _coloured(cell: str) -> str:
    state, colon, reason = cell.partition(":")
    return painted(state, COLOURS[state]) + colon + reason if state in COLOURS else cell
