"""What the access log of a ztunnel says, read by rules of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from support.programs import Daemon
from support.relay_traffic import until

Entry = dict[str, str]
"""Fields of a line, unquoted; of the rest `level`, `time` and `message`."""

_FIELD = re.compile(r'([a-z_.]+)=("(?:[^"\\]|\\.)*"|[^" ]+)(?: |$)')


def read_text(line: str) -> Entry:
    """A line of the text form, every character of it."""
    time, level, scope, message, rest = line.split("\t")
    assert scope == "access", line
    found = {"time": time, "level": level, "message": message}
    at = 0
    while at < len(rest):
        match = _FIELD.match(rest, at)
        assert match is not None, line
        assert match[1] not in found, line
        found[match[1]] = json.loads(match[2]) if match[2].startswith('"') else match[2]
        at = match.end()
    return found


def read_json(line: str) -> Entry:
    """A line of the JSON form; numbers as text, as in the other form."""
    pairs = json.loads(line, object_pairs_hook=list)
    found = {key: str(value) for key, value in pairs}
    assert len(found) == len(pairs), line
    assert found.pop("scope") == "access", line
    return found


def all_of(lines: Iterable[str]) -> list[Entry]:
    """The entries among the lines of a log."""
    return [read_text(line) for line in lines if "\taccess\t" in line]


def entry(daemon: Daemon, direction: str, port: int, level: str = "info") -> Entry:
    """Waits for the line of the connection that came from this port."""
    ending = f":{port} "
    line = daemon.stderr.wait_for(
        lambda line: (
            "\taccess\t" in line
            and f'direction="{direction}"' in line
            and ending in line.partition(" dst.addr=")[0].replace(" src.", "  src.") + " "
            and line.split("\t")[1] == level
        )
    )
    return read_text(line)


def entries(daemon: Daemon, direction: str, address: str, level: str = "info") -> list[Entry]:
    """The lines so far of connections to this address; waits for the first one."""

    def found() -> list[Entry]:
        return [
            each
            for each in all_of(daemon.stderr.all())
            if each["direction"] == direction
            and each["level"] == level
            and each["dst.addr"].rpartition(":")[0].strip("[]") == address
        ]

    assert until(lambda: bool(found())), daemon.stderr.all()
    return found()
