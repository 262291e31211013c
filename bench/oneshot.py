"""Row `oneshot`: the whole life of a `pyztun-cni` process, beside a python that does nothing.

The netns is held already, so the receiver only says so: what is measured is the sender. All three
are started in the same way and run by the same interpreter, which finds all byte code compiled, as
behind an installation: the warm-up writes it to a directory of ours, whatever this tree has.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from time import perf_counter_ns

from bench import programs
from bench.rounds import Turn, interleave
from bench.statistics import Row
from pyztun import NetNs

NAME = "oneshot"
TITLE = "one-shot sender, wall time of the process"
ROUNDS = 100
BUDGET = 2.0


def measure(shop: programs.Workshop, rounds: int) -> Row:
    """Runs the row."""
    row = Row(NAME, TITLE, "ms")
    path = shop.socket_path()
    with ExitStack() as stack:
        pod = stack.enter_context(NetNs.create())
        stack.enter_context(programs.ztunnel([path], shop))
        netns = f"/proc/{os.getpid()}/fd/{pod.fileno()}"
        env = environment(shop)
        turns = {
            "python -c pass": spawning([sys.executable, "-c", "pass"], env),
            "import pyztun._core": spawning([sys.executable, "-c", "import pyztun._core"], env),
            "pyztun-cni": spawning([programs.installed("pyztun-cni"), path, netns], env),
        }
        row.samples = interleave(NAME, turns, rounds)
    row.compare("pyztun-cni", "python -c pass", BUDGET)
    row.compare("import pyztun._core", "python -c pass")
    return row


def environment(shop: programs.Workshop) -> dict[str, str]:
    """Ours, with a directory for byte code that the warm-up fills."""
    found = {**os.environ, "PYTHONPYCACHEPREFIX": str(shop.directory / "pycache")}
    found.pop("PYTHONDONTWRITEBYTECODE", None)
    return found


def spawning(argv: list[str], env: Mapping[str, str]) -> Turn:
    """A turn of one spawn()."""
    return lambda: [spawn(argv, env)]


def spawn(argv: list[str], env: Mapping[str, str]) -> float:
    """Milliseconds from posix_spawn() to the end of the process."""
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    begin = perf_counter_ns()
    # In a process group of its own: an interrupt from the keyboard is for us alone.
    pid = os.posix_spawn(argv[0], argv, env, file_actions=quiet, setpgroup=0)
    try:
        _, status = os.waitpid(pid, 0)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    took = perf_counter_ns() - begin
    if status != 0:
        code = os.waitstatus_to_exitcode(status)
        raise programs.BenchError(f"{' '.join(argv)} ended with {code}")
    return took / 1e6
