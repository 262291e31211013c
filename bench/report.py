"""The table for people and the JSON file for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.statistics import Check, Row, summarize

NAME_WIDTH = 44


def heading(facts: Mapping[str, str]) -> str:
    return "\n".join(f"{name + ':':8}{value}" for name, value in facts.items())


def table(row: Row) -> str:
    """One row of the benchmark, as a few lines of text."""
    lines = [f"{row.name}: {row.title}"]
    if row.samples:
        rounds = len(next(iter(row.samples.values())))
        shown = f"  {f'{rounds} rounds, {row.unit}':{NAME_WIDTH}}{'min':>9}{'median':>9}{'max':>9}"
        lines.append(shown)
    for name, values in row.samples.items():
        found = summarize(values)
        numbers = "".join(
            f"{_number(value):>9}" for value in (found.minimum, found.median, found.maximum)
        )
        lines.append(f"  {name:{NAME_WIDTH}}{numbers}")
    lines += [_check(check) for check in row.checks]
    lines += [f"  note: {note}" for note in row.notes]
    return "\n".join(lines)


def _check(check: Check) -> str:
    value = f"{check.value:.3g}" if check.unit != "x" else f"{check.value:.2f}"
    text = f"  {check.name:{NAME_WIDTH}}{value:>9} {check.unit:4}"
    if check.middle is not None:
        low, high = check.middle
        text += f" ({low:.2f}..{high:.2f})"
    if check.budget is not None:
        aim = f", aim {check.aim:g}" if check.aim is not None else ""
        text += f"  budget {check.budget:g}{aim}: {check.verdict}"
    return text


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def ending(rows: Sequence[Row]) -> str:
    """The last line: whether anything was over its budget."""
    over = [f"{row.name} ({check.name})" for row in rows for check in row.checks if check.over]
    checks = sum(check.budget is not None for row in rows for check in row.checks)
    if over:
        return f"over budget: {len(over)} of {checks}: {', '.join(over)}"
    return f"within budget: {checks} of {checks}"


def write_json(path: Path, facts: Mapping[str, str], rows: Sequence[Row]) -> None:
    """Everything that was measured, with one number a round for each contender."""
    record = {"machine": dict(facts), "rows": [_record(row) for row in rows]}
    path.write_text(json.dumps(record, indent=1) + "\n")


def _record(row: Row) -> dict[str, object]:
    return {
        "name": row.name,
        "title": row.title,
        "unit": row.unit,
        "samples": row.samples,
        "notes": row.notes,
        "checks": [
            {
                "name": check.name,
                "value": check.value,
                "unit": check.unit,
                "budget": check.budget,
                "aim": check.aim,
                "middle_half": check.middle,
                "verdict": check.verdict,
            }
            for check in row.checks
        ],
    }
