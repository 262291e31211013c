"""What a person sees: titles, paragraphs, drawings, observations; colour only on a terminal."""

from __future__ import annotations

import os
import re
import select
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TextIO

WIDTH = 96
INDENT = "  "
BOLD, DIM, RED, GREEN = "1", "2", "31;1", "32"
CONTINUED = " \\"
GLUE = "\N{NO-BREAK SPACE}"
ERASE_LINE_ABOVE = "\x1b[1A\x1b[2K"

SIGNAL_PATIENCE = 0.2  # seconds

# The pods wear the same colour wherever their name stands.
POD_STYLES = {"web": "36;1", "db": "35;1", "cache": "33;1"}
POD_NAMES = re.compile(rf"\b({'|'.join(POD_STYLES)})\b")


class Terminal:
    """Writes the story to a stream; plain: no colour and no cursor control, for logs."""

    def __init__(self, out: TextIO, *, plain: bool) -> None:
        self._out, self._plain = out, plain
        self._last = ""

    def heading(self, text: str) -> None:
        """The title of all, or of a step."""
        self._gap()
        self._print(self._paint(text, BOLD))

    def say(self, text: str) -> None:
        """A paragraph."""
        self._lines(_wrap(" ".join(text.split())))

    def points(self, texts: Iterable[str]) -> None:
        """A numbered list."""
        for number, text in enumerate(texts, 1):
            self._lines(_wrap(text, f"  {number}. "))

    def command(self, words: Sequence[str]) -> None:
        """A command line that is run now."""
        shown = " ".join([os.path.basename(words[0]), *words[1:]])
        first, *rest = _wrap(shown, "$ ", width=WIDTH - len(CONTINUED))
        lines = [first[len("$ ") :], *rest]
        for number, line in enumerate(lines):
            before = "" if number else "$ "
            behind = CONTINUED if number < len(lines) - 1 else ""
            self._print(f"{INDENT}{before}{self._paint(line + behind, BOLD)}")

    def output(self, text: str) -> None:
        """What a command said; only lines that are too long change."""
        for line in text.splitlines():
            too_long = len(line) > WIDTH
            self._lines(_wrap(line, "  ") if too_long else [f"  {line}"])

    def places(self, places: Sequence[str]) -> None:
        """The code that does it."""
        for line in _wrap("done by " + ", ".join(place.replace(" ", GLUE) for place in places)):
            self._print(f"{INDENT}{self._paint(line.replace(GLUE, ' '), DIM)}")

    def drawing(self, lines: Iterable[str]) -> None:
        """Lines that keep their form, with room around."""
        self._gap()
        self._lines(f"  {line}" for line in lines)
        self._gap()

    def observation(self, told: str, as_told: bool, seen: str) -> None:
        """What was told, and what was seen (nothing: the telling says it all)."""
        mark = self._paint("[ok]", GREEN) if as_told else self._paint("[FAILED]", RED)
        good = f"{told}: {seen}" if seen else told
        first, *rest = _wrap(good if as_told else f"told: {told}; seen: {seen}", " " * len("[ok] "))
        self._print(f"{INDENT}{mark} {self._name(first.lstrip())}")
        self._lines(rest)

    def moral(self, text: str) -> None:
        """What follows from a step, if anything."""
        if text:
            self._gap()
            self.say(text)

    def verdict(self, text: str, good: bool) -> None:
        """The last line."""
        self._gap()
        self._print(self._paint(text, GREEN if good else RED))

    def wait_for_enter(self, what: str) -> None:
        """Waits for Enter; the end of stdin counts as Enter."""
        self._gap()
        self._out.write(f"{INDENT}Press Enter: {what}")
        self._out.flush()
        is_terminal = sys.stdin.isatty()
        # Python runs the handler of a signal that comes just before read(2) only behind it.
        while is_terminal and not select.select([sys.stdin], [], [], SIGNAL_PATIENCE)[0]:
            pass
        echoed = sys.stdin.readline() and is_terminal
        if not echoed:
            self._print("")
        elif not self._plain:
            self._out.write(ERASE_LINE_ABOVE)

    def _gap(self) -> None:
        if self._last:
            self._print("")

    def _lines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._print(self._name(INDENT + line).rstrip())

    def _print(self, line: str) -> None:
        self._last = line
        self._out.write(line + "\n")
        self._out.flush()

    def _paint(self, text: str, style: str) -> str:
        return text if self._plain else f"\x1b[{style}m{text}\x1b[0m"

    def _name(self, line: str) -> str:
        return POD_NAMES.sub(lambda name: self._paint(name[0], POD_STYLES[name[0]]), line)


def _wrap(text: str, indent: str = "", width: int = WIDTH) -> list[str]:
    """Lines of the text; ``indent`` before the first, as much room before the others."""
    return textwrap.wrap(
        text,
        width - len(INDENT),
        initial_indent=indent,
        subsequent_indent=" " * len(indent),
        break_on_hyphens=False,
    )


def wants_plain(out: TextIO) -> bool:
    """Whether the stream is no terminal, or one that wants no colour (NO_COLOR, TERM=dumb)."""
    return not out.isatty() or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
