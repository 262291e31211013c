"""Where it ran: a ratio holds on other hosts, a microsecond does not."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import pyztun
from bench import programs

ROOT = Path(__file__).resolve().parents[1]
CPUS = Path("/sys/devices/system/cpu")


def facts() -> dict[str, str]:
    """Kernel, CPU and tools, by name."""
    found = {
        "pyztun": f"{pyztun.__version__}{_commit()}",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} x {_cpu_model()}",
        "governor": _read(CPUS / "cpu0/cpufreq/scaling_governor") or "not readable",
        "mitigations": _mitigations(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in ("cffi", "pyroute2")),
        "cc": _first_line([programs.compiler(), "--version"]),
        "go": _first_line([programs.go() or "go", "version"]),
        "load": load(),
    }
    return {name: value for name, value in found.items() if value}


def load() -> str:
    """Other work lengthens what is longer by more than its share: 1.4 x was 1.8 x at load 5."""
    text = " ".join(f"{value:.2f}" for value in os.getloadavg())
    busy = os.getloadavg()[0] > len(os.sched_getaffinity(0))
    return f"{text}{' (busy: ratios between processes come out too high)' if busy else ''}"


def stay_on_one_cpu(stack: ExitStack) -> None:
    """Pins the calling thread, and with it the processes and threads that it starts."""
    before = os.sched_getaffinity(0)
    stack.callback(os.sched_setaffinity, 0, before)
    os.sched_setaffinity(0, {max(before)})


def _cpu_model() -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()


def _mitigations() -> str:
    """What the kernel does against faults of the CPU, most of it at each entry into the kernel."""
    found: dict[str, list[str]] = {"Mitigation": [], "Vulnerable": []}
    folder = CPUS / "vulnerabilities"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        for state, names in found.items():
            if _read(path).startswith(state):
                names.append(path.name)
    words = {"Mitigation": "against", "Vulnerable": "none against"}
    told = [f"{words[state]} {', '.join(names)}" for state, names in found.items() if names]
    return "; ".join(told) or "none told"


def _commit() -> str:
    """The commit of the tree, and whether it was changed since; empty where there is no git."""
    if not (ROOT / ".git").exists():
        return ""
    # The tree may be another user's: make bench runs as root, the clone belongs to who made it.
    git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT)]
    commit = _first_line([*git, "rev-parse", "--short", "HEAD"])
    if not commit:
        return ""
    changed = _first_line([*git, "status", "--porcelain", "--untracked-files=no"])
    return f" at {commit}{', changed' if changed else ''}"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _first_line(argv: list[str]) -> str:
    """The first line that a command prints; empty if it cannot run or prints none."""
    try:
        shown = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
    return shown.splitlines()[0] if shown else ""
