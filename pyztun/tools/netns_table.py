"""The census as a table, for a person at a terminal: each cell is short, --json has the rest."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyztun.tools import netns_plain as plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyztun.tools.census import Census, Netns, Pin

COLUMNS = {"name": 2, "processes": 3, "listening": 4, "kept alive by": 4}
"""Title -> share of the width."""
LINES = 6
"""Lines of a cell; what is more is counted."""
COMMAND = 24
"""Characters of a command."""


def print_table(census: Census) -> None:
    """Prints it on stdout, in colour unless NO_COLOR is set."""
    console = Console(file=sys.stdout, highlight=False)
    every = census.netns
    table = Table(box=box.HORIZONTALS, show_lines=True, border_style="dim", expand=True)
    table.add_column("netns", no_wrap=True)
    for title, share in COLUMNS.items():
        table.add_column(title, overflow="fold", ratio=share)
    for one in every:
        table.add_row(*_cells(census, one))
    console.print(table)
    console.print(Text(_total(every)))
    for line in plain.unread(census):
        console.print(Text(line, "yellow"))


def _cells(census: Census, one: Netns) -> list[Text]:
    named = [plain.shown(name) for name in sorted(one.names)]
    named += [
        plain.shown(path) for path in sorted(one.paths) if os.path.basename(path) not in named
    ]
    style = "bold green" if one.is_home else "bold"
    label = [Text("(home)", style)] if one.is_home else []
    return [
        Text(plain.cookie_of(one), style),
        _cell([*label, *(Text(name, style) for name in named)]),
        _cell(Text(_who(census, pid)) for pid in _programs_first(census, one.processes)),
        _listening(census, one),
        _cell(_kept(census, one)),
    ]


def _listening(census: Census, one: Netns) -> Text:
    if one.listening is None:
        return Text("not read", "yellow")
    return _cell(
        Text.assemble(
            (plain.place_text(place), "cyan"),
            " ",
            ", ".join(_who(census, pid) for pid in pids) or plain.UNKNOWN,
        )
        for place, pids in census.listening(one)
    )


def _kept(census: Census, one: Netns) -> Iterable[Text]:
    """Like things together: all sockets that one process holds are one line."""
    style = "yellow" if one.is_hidden else ""
    groups: dict[tuple[str, int], list[Pin]] = {}
    mounts = []
    for pin in one.pinned_by:
        if pin.kind == "mount":
            mounts.append(pin)
        elif pin.kind != "process":
            groups.setdefault((pin.kind, pin.pid or 0), []).append(pin)
    if one.processes:
        yield Text(plain.processes(one))
    if mounts:
        yield Text(_mounts(census, mounts))
    for (kind, pid), pins in groups.items():
        yield Text(f"{_who(census, pid)}: {_numbers(kind, pins)}", style)


def _mounts(census: Census, pins: list[Pin]) -> str:
    far = [pin.pid for pin in pins if pin.pid is not None]
    where = f", {len(far)} not here but where {_who(census, far[0])} is" if far else ""
    return f"{plain.counted(len(pins), 'mount', 'mounts')}{where}"


def _numbers(kind: str, pins: list[Pin]) -> str:
    """``socket fd 4 5``, as many as there is room for."""
    numbers = [str(pin.tid if kind == "thread" else pin.fd) for pin in pins]
    more = ["..."] if len(numbers) > LINES else []
    title = kind if kind in ("thread", "fd") else f"{kind} fd"
    return " ".join([title, *numbers[:LINES], *more])


def _cell(lines: Iterable[Text]) -> Text:
    every = list(lines)
    if len(every) > LINES:
        every[LINES - 1 :] = [Text(f"... and {len(every) - LINES + 1} more", "dim")]
    return Text("\n").join(every)


def _who(census: Census, pid: int) -> str:
    return plain.who(census, pid, COMMAND)


def _programs_first(census: Census, pids: list[int]) -> list[int]:
    """Kernel threads behind everything else."""
    return sorted(pids, key=lambda pid: census.commands.get(pid, "").startswith("["))


def _total(every: list[Netns]) -> str:
    hidden = sum(one.is_hidden for one in every)
    return f"{len(every)} netns{f', {hidden} of them {plain.HIDDEN}' if hidden else ''}"
