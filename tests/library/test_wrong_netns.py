"""A socket is in the netns that was asked for, always, and the main thread is never seen away."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support import programs

STORM = Path(__file__).with_name("storm.py")
ROUNDS, PODS, WORKERS = 200_000, 16, 8


@pytest.mark.slow
@pytest.mark.needs_netns
def test_two_hundred_thousand_listeners_in_a_storm() -> None:
    """In a process of its own: it forks from a process with threads, which pytest should not."""
    argv = [sys.executable, "-W", "ignore", str(STORM), *map(str, (ROUNDS, PODS, WORKERS))]
    done = subprocess.run(
        argv, env=programs.environment(), capture_output=True, text=True, check=False, timeout=110
    )
    assert (done.returncode, done.stderr) == (0, "")
    counts = json.loads(done.stdout)
    assert {name: count for name, count in counts.items() if "wrong" in name} == {}
    assert counts["rounds"] == ROUNDS
    assert counts["cookies"] == PODS
    for name in ("fork", "resolve", "look", "own_socket", "start_thread", "main"):
        assert counts[f"did {name}"] > 50, counts
