"""Text from elsewhere on a terminal of ours: harmless, as wide as it looks, in columns.

The tables are made by hand: rich takes longer to import than the agent to answer.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

LEFT, RIGHT, NEVER = "left", "right", "never"
GAP = "  "
LAST, LEAST_LAST = 28, 12
"""Columns of the screen for the last column, which is wrapped: to begin with, and in any case."""
DEFAULT_WIDTH = 80
MINUTE, HOUR, DAY = 60, 3600, 86400
AGES = ((MINUTE, 1, "s"), (HOUR, MINUTE, "m"), (2 * DAY, HOUR, "h"))
GREEN, YELLOW, RED = "32", "33", "31"


class Column:
    """One column of a table.

    :ivar cut: the end at which its cells may lose characters where there is no room.
    :ivar least: columns of the screen that it keeps all the same.
    """

    __slots__ = ("cut", "least", "title")

    def __init__(self, title: str, cut: str = NEVER, least: int = 0) -> None:
        self.title, self.cut, self.least = title, cut, least


def shown(text: str) -> str:
    """The text with escapes for what would move the cursor or hide something: others chose it."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def width_of(text: str) -> int:
    """How many columns of a terminal it takes."""
    if text.isascii():
        return len(text)
    from unicodedata import category, east_asian_width

    return sum(
        0 if category(each) in ("Mn", "Me", "Cf") else 2 if east_asian_width(each) in "WF" else 1
        for each in text
    )


def age(moment: object) -> str:
    """How long ago a moment of the agent's was, like ``3m``; its form is that of docs/api.md."""
    from datetime import datetime, timezone

    try:
        then = datetime.fromisoformat(str(moment).removesuffix("Z")).replace(tzinfo=timezone.utc)
        seconds = int((datetime.now(timezone.utc) - then).total_seconds())
    except (ValueError, OverflowError):
        return "?"
    for most, unit, name in AGES:
        if seconds < most:
            return f"{max(seconds, 0) // unit}{name}"
    return f"{seconds // DAY}d"


def terminal_width() -> int | None:
    """The columns of the terminal that stdout is; None if it is none."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or DEFAULT_WIDTH
    except OSError:
        return DEFAULT_WIDTH


def painted(text: str, colour: str) -> str:
    """The text in a colour, on a terminal that wants some (NO_COLOR, TERM=dumb)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain or terminal_width() is None else f"\x1b[{colour}m{text}\x1b[0m"


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    width: int | None,
    paint: Callable[[str], str] = str,
) -> Iterator[str]:
    """The lines of a table. Cells are shown() already.

    :param width: of the terminal, into which it is made to fit: cells are cut, those of the last
        column wrapped. None: whole cells, one line a row.
    :param paint: gives the first line of a last cell its colour.
    """
    every = [[column.title for column in columns], *rows]
    widths = [max(map(width_of, cells)) for cells in zip(*every, strict=True)]
    if width is not None:
        _fit(columns, widths, width)
    for row in every:
        cells = [
            _padded(cell, room, column.cut)
            for cell, room, column in zip(row[:-1], widths, columns, strict=False)
        ]
        first, *more = [row[-1]] if width is None else _wrapped(row[-1], widths[-1])
        yield GAP.join([*cells, first if row is every[0] else paint(first)]).rstrip()
        indent = " " * sum(room + len(GAP) for room in widths[:-1])
        yield from (indent + line.rstrip() for line in more)


def _fit(columns: Sequence[Column], widths: list[int], width: int) -> None:
    room = width - len(GAP) * (len(columns) - 1)
    widths[-1] = min(widths[-1], max(LAST, room - sum(widths[:-1])))
    while sum(widths) > room:
        able = [
            place
            for place, column in enumerate(columns[:-1])
            if column.cut != NEVER and widths[place] > max(column.least, len(column.title))
        ]
        if not able:
            widths[-1] = max(min(widths[-1], LEAST_LAST), room - sum(widths[:-1]))
            break
        widest = max(able, key=widths.__getitem__)
        # Many cells may be as long as a path: not one column of the screen at a time.
        surplus = max(1, min((sum(widths) - room) // len(able), widths[widest] // 4))
        least = max(columns[widest].least, len(columns[widest].title))
        widths[widest] = max(least, widths[widest] - surplus)


def _padded(text: str, room: int, cut: str) -> str:
    taken = width_of(text)
    if taken > room:
        text = _clipped(text, room, cut)
        taken = width_of(text)
    return text + " " * (room - taken)


def _clipped(text: str, room: int, cut: str) -> str:
    mark = _mark()
    kept = text
    while kept and width_of(kept) > room - 1:
        surplus = max(1, (width_of(kept) - room) // 2)
        kept = kept[surplus:] if cut == LEFT else kept[:-surplus]
    return mark + kept if cut == LEFT else kept + mark


def _mark() -> str:
    """One character for what was cut, which stdout can show."""
    try:
        "…".encode(sys.stdout.encoding or "ascii")
    except (UnicodeError, LookupError, AttributeError):
        return "~"
    return "…"


def _wrapped(text: str, room: int) -> list[str]:
    lines, line = [], ""
    for word in text.rstrip().split(" "):
        longer = f"{line} {word}" if line else word
        if width_of(longer) <= room:
            line = longer
            continue
        if line:
            lines.append(line)
        line = word
        while width_of(line) > room:
            count = len(line) if room < 1 else _how_many(line, room)
            lines.append(line[:count])
            line = line[count:]
    return [*lines, line]


def _how_many(text: str, room: int) -> int:
    """How many characters of the text fit; at least one."""
    count = min(len(text), room)
    while count > 1 and width_of(text[:count]) > room:
        count -= 1
    return count
