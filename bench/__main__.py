"""The command: `python -m bench [--only ROW] [--rounds N] [--json FILE] [--strict]`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

from rich.console import Console

from bench import (
    agent,
    agent_add,
    agent_start,
    fdpass,
    listen,
    listen_main,
    machine,
    oneshot,
    peers,
    pods,
    programs,
    relay_connections,
    relay_idle,
    relay_ping,
    relay_throughput,
    report,
    seed,
    zds,
    zds_pods,
    zds_snapshot,
)
from bench.statistics import Row
from pyztun import MissingCapability, NetNs, PyztunError


class Measurable(Protocol):
    """What a module of a row has."""

    NAME: str
    TITLE: str
    ROUNDS: int

    def measure(self, shop: programs.Workshop, rounds: int, /) -> Row: ...


# The pods come last: the kernel takes its time to tear a thousand of them down.
MODULES: tuple[Measurable, ...] = (
    *(listen, listen_main, fdpass, peers, seed, zds, oneshot),
    *(relay_throughput, relay_connections, relay_ping, relay_idle),
    *(agent_add, pods, zds_pods, zds_snapshot, agent, agent_start),
)
ROWS = {module.NAME: module for module in MODULES}


def main() -> int:
    asked = _parse()
    if asked.list:
        for row in MODULES:
            print(f"{row.NAME:18}{row.TITLE} ({row.ROUNDS} rounds)")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _prove_rights()
        with tempfile.TemporaryDirectory(prefix="pz-bench-") as directory:
            return _run(asked, programs.Workshop(Path(directory)))
    except (programs.BenchError, PyztunError, OSError) as error:
        print(f"bench: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
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
    add("--list", action="store_true", help="only say which rows there are")
    return parser.parse_args()  # fmt: skip


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 10**6):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rounds")
    return int(text)


def _prove_rights() -> None:
    try:
        NetNs.create().close()
    except MissingCapability as error:
        raise programs.BenchError(
            f"{error}: run it as root, or by `make bench`, which finds sudo or a user namespace"
        ) from error


def _prove_writable(path: Path) -> None:
    """What cannot be written shall be known before the measurement, not behind it."""
    try:
        path.touch()
    except OSError as error:
        raise programs.BenchError(f"--json {path}: {error.strerror}") from error


def _run(asked: argparse.Namespace, shop: programs.Workshop) -> int:
    if asked.json is not None:
        _prove_writable(asked.json)
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    out = Console()
    terminal = out if out.is_terminal else None
    facts = machine.facts()
    print(report.heading(facts), flush=True)
    rows = []
    for name, module in ROWS.items():
        if asked.only and name not in asked.only:
            continue
        load = os.getloadavg()[0]
        try:
            row = module.measure(shop, asked.rounds or module.ROUNDS)
        except programs.Skipped as reason:
            row = Row(name, module.TITLE, skipped=str(reason))
        row.load = load
        rows.append(row)
        print(f"\n{report.table(row, terminal)}", flush=True)
    print(f"\n{report.ending(rows)}", flush=True)
    if asked.json is not None:
        report.write_json(asked.json, started, facts, rows)
    over = any(check.over for row in rows for check in row.checks)
    return 1 if asked.strict and over else 0


if __name__ == "__main__":
    sys.exit(main())
