"""Where it ran: a ratio holds on other hosts, a microsecond does not."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import cffi

from bench import programs


def facts() -> dict[str, str]:
    """Kernel, CPU and tools, by name."""
    found = {
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} x {_cpu_model()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "cffi": cffi.__version__,
        "cc": _first_line([programs.compiler(), "--version"]),
        "load": _load(),
    }
    if go := programs.go():
        found["go"] = _first_line([go, "version"])
    return found


def _load() -> str:
    """Other work lengthens what is longer by more than its share: 1.4 x was 1.8 x at load 5."""
    text = " ".join(f"{value:.2f}" for value in os.getloadavg())
    busy = os.getloadavg()[0] > len(os.sched_getaffinity(0))
    return f"{text}{' (busy: ratios between processes come out too high)' if busy else ''}"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()


def _first_line(argv: list[str]) -> str:
    shown = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    return shown.splitlines()[0] if shown else "unknown"
