"""The census as lines, for pipes and files: one fact a line, none left out.

NETNS  NAME  WHAT  and the rest of the line; every netns begins with a line whose WHAT is ``netns``.
A process has its whole command in its own line; elsewhere the beginning of it has to do.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyztun import addresses

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyztun.tools.census import Census, Netns, Pin
    from pyztun.tools.sockdiag import Place

UNKNOWN = "?"
HIDDEN = "without a process or a mount here"
COMMAND = 40
"""Characters of a command where it is only to remind of the process."""


def lines(census: Census) -> Iterator[str]:
    """All lines, without their newlines."""
    rows = [("NETNS", "NAME", "WHAT", "")]
    for one in census.netns:
        rows += [(cookie_of(one), names_of(one), *fact) for fact in facts(census, one)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)]
        yield "  ".join([*cells, row[3]]).rstrip()
    yield from unread(census)


def cookie_of(one: Netns) -> str:
    """Its cookie, as far as it is known."""
    return UNKNOWN if one.cookie is None else str(one.cookie)


def names_of(one: Netns) -> str:
    """Its names with commas between them, and whether it is home."""
    home = ["(home)"] if one.is_home else []
    return (
        ",".join([*home, *(shown(name).replace(" ", "\\x20") for name in sorted(one.names))]) or "-"
    )


def facts(census: Census, one: Netns) -> Iterator[tuple[str, str]]:
    """(what, text) of each thing that is known of a netns."""
    yield "netns", summary(one)
    for pin in one.pinned_by:
        yield pin.kind, pin_text(census, pin)
    if one.listening is None:
        yield "listening", "not read"
    else:
        for place, pids in census.listening(one):
            yield "listening", f"{place_text(place)} by {owners_text(census, pids)}"


def summary(one: Netns) -> str:
    """How it is known, and whether it would be overlooked."""
    inode = UNKNOWN if one.inode is None else one.inode
    hidden = f", {HIDDEN}" if one.is_hidden else ""
    return f"inode {inode}, {processes(one)}{hidden}"


def processes(one: Netns) -> str:
    """How many live in it."""
    return counted(len(one.processes), "process", "processes")


def counted(count: int, one: str, more: str) -> str:
    """``1 mount`` or ``2 mounts``."""
    return f"{count} {one if count == 1 else more}"


def pin_text(census: Census, pin: Pin) -> str:
    """One thing that keeps a netns alive."""
    if pin.kind == "mount":
        where = "" if pin.pid is None else f" in the mount namespace of {who(census, pin.pid)}"
        return shown(pin.path or "") + where
    pid = pin.pid or 0
    if pin.kind == "process":
        return f"{pid} {shown(census.commands.get(pid, UNKNOWN))}"
    if pin.kind == "thread":
        return f"{pin.tid} of {who(census, pid)}"
    return f"fd {pin.fd} of {who(census, pid)}"


def place_text(place: Place) -> str:
    """``tcp 127.0.0.1:80``, or ``udp [fe80::1%2]:546`` for a socket bound to interface 2."""
    scope = f"%{place.interface}" if place.interface else ""
    return f"{place.proto} {addresses.shown((f'{place.address}{scope}', place.port))}"


def owners_text(census: Census, pids: list[int]) -> str:
    """The processes that hold a socket."""
    return ", ".join(who(census, pid) for pid in pids) or f"{UNKNOWN} (no process that we can read)"


def who(census: Census, pid: int, width: int = COMMAND) -> str:
    """A process: its pid and its command, which begins with the name of the program."""
    program, _, rest = census.commands.get(pid, UNKNOWN).partition(" ")
    name = program if program.startswith("[") else os.path.basename(program)
    text = shown(" ".join([name, *rest.split()]))
    return f"{pid} {text if len(text) <= width else text[: width - 3] + '...'}"


def unread(census: Census) -> Iterator[str]:
    """What could not be read."""
    for entry in census.unreadable.as_list():
        examples = ", ".join(map(shown, entry["examples"]))
        more = ", ..." if entry["count"] > len(entry["examples"]) else ""
        yield f"not read: {entry['what']}: {entry['why']}: {entry['count']} ({examples}{more})"


def shown(text: str) -> str:
    """The text with escapes for what would move the cursor or hide something: others chose it."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )
