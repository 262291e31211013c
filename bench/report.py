"""The tables for people and the JSON file for programs.

Both are made of the same rows; docs/performance.md describes the keys of the file.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.statistics import Check, Row, summarize

SCHEMA = 1
"""Of the JSON file: another number when a key goes or changes its meaning."""

PLAIN_WIDTH = 120
"""Columns where stdout is no terminal: wider than any table, so that nothing is cut off."""

NUMBERS = ("min", "median", "max", "ratio", "middle half")
STYLES = {"PASS": "green", "over": "bold red"}


def heading(facts: Mapping[str, str]) -> str:
    width = max(map(len, facts)) + 2
    return "\n".join(f"{name + ':':{width}}{value}" for name, value in facts.items())


def table(row: Row, terminal: Console | None = None) -> str:
    """One row of the benchmark, as text.

    :param terminal: where it goes, for its width and colours; None: plain, with nothing cut off.
    """
    lines = [f"{row.name}: {row.title}"]
    if row.skipped:
        return f"{lines[0]}\n  skipped: {row.skipped}"
    lines.append(f"  {row.rounds} rounds, {row.unit}, load {row.load:.2f} at the start")
    lines += _rendered(_contenders(row), terminal)
    lines += [f"  note: {note}" for note in row.notes]
    return "\n".join(lines)


def _contenders(row: Row) -> Table:
    """A line for each contender with its first ratio, then one for each further check.

    Words wrap where a terminal is narrow, numbers do not.
    """
    shown = Table(box=None, pad_edge=False)
    shown.add_column(overflow="fold")
    for name in NUMBERS:
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("to", overflow="fold")
    shown.add_column("budget", overflow="fold")
    rest = list(row.checks)
    for name, values in row.samples.items():
        found = summarize(values)
        numbers = [_number(each) for each in (found.minimum, found.median, found.maximum)]
        own = next((check for check in rest if check.contender == name), None)
        if own is not None:
            rest.remove(own)
        shown.add_row(name, *numbers, *_verdict(own))
    for check in rest:
        if check.contender:
            shown.add_row(check.contender, "", "", "", *_verdict(check))
        else:
            value = f"{check.value:.3g} {check.unit}"
            shown.add_row(check.name, "", value, "", "", "", "", _budget(check))
    return shown


def _verdict(check: Check | None) -> tuple[str, str, str, Text]:
    """The cells of a ratio: itself, its spread, what it is to, the budget."""
    if check is None:
        return "", "", "", Text()
    low, high = check.middle or (check.value, check.value)
    spread = f"{_ratio(low)}..{_ratio(high)}"
    return _ratio(check.value), spread, check.base, _budget(check)


def _budget(check: Check) -> Text:
    if check.budget is None:
        return Text()
    aim = f", aim {check.aim:g}" if check.aim is not None else ""
    bound = ">= " if check.at_least else ""
    text = Text(f"{bound}{check.budget:g}{aim}: ")
    return text.append(check.verdict, STYLES.get(check.verdict, ""))


def _ratio(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _rendered(shown: Table, terminal: Console | None) -> list[str]:
    into = io.StringIO()
    if terminal is None:
        console = Console(file=into, width=PLAIN_WIDTH, color_system=None)
    else:
        console = Console(
            file=into,
            width=terminal.width - len("  "),
            force_terminal=True,
            no_color=terminal.no_color,
            legacy_windows=False,
        )
    console.print(shown)
    return [f"  {line.rstrip()}" for line in into.getvalue().splitlines()]


def ending(rows: Sequence[Row]) -> str:
    """The last line: whether anything was over its budget."""
    over = [f"{row.name} ({check.name})" for row in rows for check in row.checks if check.over]
    checks = sum(check.budget is not None for row in rows for check in row.checks)
    skipped = [row.name for row in rows if row.skipped]
    tail = f"; not measured: {', '.join(skipped)}" if skipped else ""
    if over:
        return f"over budget: {len(over)} of {checks}: {', '.join(over)}{tail}"
    return f"within budget: {checks} of {checks}{tail}"


def write_json(path: Path, started: str, facts: Mapping[str, str], rows: Sequence[Row]) -> None:
    """Everything that was measured, with one number a round for each contender."""
    record = {
        "schema": SCHEMA,
        "started": started,
        "machine": dict(facts),
        "rows": [_record(row) for row in rows],
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


def _record(row: Row) -> dict[str, object]:
    return {
        "name": row.name,
        "title": row.title,
        "skipped": row.skipped or None,
        "rounds": row.rounds,
        "unit": row.unit,
        "load": row.load,
        "contenders": [_contender(name, values) for name, values in row.samples.items()],
        "checks": [_check(check) for check in row.checks],
        "notes": row.notes,
    }


def _contender(name: str, values: Sequence[float]) -> dict[str, object]:
    found = summarize(values)
    return {
        "name": name,
        "min": found.minimum,
        "median": found.median,
        "max": found.maximum,
        "samples": list(values),
    }


def _check(check: Check) -> dict[str, object]:
    return {
        "name": check.name,
        "contender": check.contender or None,
        "base": check.base or None,
        "value": check.value,
        "unit": check.unit,
        "middle_half": check.middle,
        "budget": check.budget,
        "at_least": check.at_least,
        "aim": check.aim,
        "verdict": check.verdict if check.budget is not None else None,
    }
