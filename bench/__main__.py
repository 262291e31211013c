"""The command: `python -m bench [--only ROW] [--rounds N] [--json FILE] [--strict]`."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import listen, machine, oneshot, pods, programs, report, seed
from bench.rounds import progress
from bench.statistics import Row
from pyztun import PyztunError

Measure = Callable[[programs.Workshop, "int | None"], Row]

# The pods come last: the kernel takes its time to tear a thousand of them down.
ROWS: dict[str, Measure] = {
    listen.NAME: listen.measure,
    seed.NAME: seed.measure,
    oneshot.NAME: oneshot.measure,
    pods.NAME: pods.measure,
}


def main() -> int:
    asked = _parse()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="pz-bench-") as directory:
            return _run(asked, programs.Workshop(Path(directory)))
    except (programs.BenchError, PyztunError, OSError) as error:
        progress("")
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        progress("")
        print("bench: interrupted", file=sys.stderr)
        return 130


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures pyztun beside its floor, a C program that does only the syscalls.",
    )
    add = parser.add_argument
    add(
        "--only",
        metavar="ROW",
        action="append",
        choices=ROWS,
        help=f"measure only this row; repeatable ({', '.join(ROWS)})",
    )
    add("--rounds", metavar="N", type=_positive, help="rounds of each row (default: its own)")
    add("--json", metavar="FILE", type=Path, help="also write every sample to FILE")
    add("--strict", action="store_true", help="exit with 1 if anything is over its budget")
    return parser.parse_args()  # fmt: skip


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rounds")
    return int(text)


def _run(asked: argparse.Namespace, shop: programs.Workshop) -> int:
    if asked.json is not None:
        asked.json.touch()  # what cannot be written shall be known before the measurement
    facts = machine.facts()
    print(report.heading(facts), flush=True)
    rows = []
    for name, measure in ROWS.items():
        if asked.only and name not in asked.only:
            continue
        try:
            row = measure(shop, asked.rounds)
        except programs.Skipped as reason:
            row = Row(name, "skipped", notes=[str(reason)])
        rows.append(row)
        print(f"\n{report.table(row)}", flush=True)
    print(f"\n{report.ending(rows)}", flush=True)
    if asked.json is not None:
        report.write_json(asked.json, facts, rows)
    over = any(check.over for row in rows for check in row.checks)
    return 1 if asked.strict and over else 0


if __name__ == "__main__":
    sys.exit(main())
