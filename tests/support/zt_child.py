"""A child python that runs a few lines with the same pyztun, behind any command prefix."""

import subprocess
import sys
from collections.abc import Sequence

from support import programs

NO_CAPABILITY = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]
"""A prefix that keeps the uid and drops every capability; needs none to be left behind."""


def run_code(
    code: str,
    *args: str,
    wrap: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
    seconds: float = 60,
) -> "subprocess.CompletedProcess[str]":
    """Runs CODE (sys.argv[1:] is ARGS) to its end."""
    return subprocess.run(
        [*wrap, sys.executable, "-c", code, *args],
        env=programs.environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        pass_fds=pass_fds,
        timeout=seconds,
        check=False,
    )
