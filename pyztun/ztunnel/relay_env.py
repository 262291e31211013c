"""What the environment says about the relay, under the names that Istio's ztunnel knows.

Sources: ztunnel's src/config.rs (ZTUNNEL_WORKER_THREADS, CONNECTION_TERMINATION_DEADLINE and
TERMINATION_GRACE_PERIOD_SECONDS).
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

MAX_THREADS = 64
DEFAULT_DRAIN = 5.0
SHORT_GRACE = 10.0
"""Seconds, up to which a grace period leaves one second for the rest, instead of five."""
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def threads(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> int:
    """N or N% of the cores; without the variable as many as cores. Two at least, as there."""
    cores = len(os.sched_getaffinity(0))
    text = environ.get("ZTUNNEL_WORKER_THREADS")
    if text is None:
        return min(max(2, cores), MAX_THREADS)
    match = re.fullmatch(r"([0-9]{1,4})(%?)", text, re.ASCII)
    if match is None or int(match[1]) == 0:
        parser.error(f"ZTUNNEL_WORKER_THREADS={text} is neither a number nor N%")
    number = int(match[1])
    if match[2]:
        number = max(2, -(-cores * number // 100))
    return min(number, MAX_THREADS)


def drain(parser: argparse.ArgumentParser, environ: Mapping[str, str]) -> float:
    """Seconds that open connections have after SIGTERM."""
    text = environ.get("CONNECTION_TERMINATION_DEADLINE")
    if text is not None:
        return _duration(parser, "CONNECTION_TERMINATION_DEADLINE", text)
    text = environ.get("TERMINATION_GRACE_PERIOD_SECONDS")
    if text is None:
        return DEFAULT_DRAIN
    grace = _duration(parser, "TERMINATION_GRACE_PERIOD_SECONDS", text)
    return max(1.0, grace - (1.0 if grace <= SHORT_GRACE else 5.0))


def _duration(parser: argparse.ArgumentParser, name: str, text: str) -> float:
    """`10`, `10s`, `1m30s`, `500ms`."""
    if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        return float(text)
    parts = re.findall(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)", text, re.ASCII)
    if not parts or "".join(map("".join, parts)) != text:
        parser.error(f"{name}={text} is no duration such as 10s")
    return sum(float(number) * UNITS[unit] for number, unit in parts)
