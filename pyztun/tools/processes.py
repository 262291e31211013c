"""The real programs as processes: found, run, waited for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from pyztun.errors import PyztunError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PATIENCE = 5.0
"""Seconds that a program gets for whatever it is waited for."""
PACE = 0.0005
"""Seconds between two looks at what happens while a program runs."""


class ProgramError(PyztunError):
    """A program is missing, failed to start or did not end; the text says which and why."""


def find(name: str) -> str:
    """The path of a command that was installed together with this one, else from PATH."""
    started = sys.argv[0]
    for beside in (started, os.path.realpath(started), sys.executable):
        path = os.path.join(os.path.dirname(beside) or ".", name)
        if os.access(path, os.X_OK):
            return path
    found = shutil.which(name)
    if found is None:
        raise ProgramError(f"the command {name} is neither beside {started} nor on PATH")
    return found


def start(
    words: Sequence[str],
    *,
    stdout: int,
    stderr: int,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a program in a session of its own, so that Ctrl-C reaches us alone. ProgramError."""
    try:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=env,
            start_new_session=True,
        )
    except OSError as error:
        raise ProgramError(f"{words[0]}: {error.strerror}") from error


@dataclass(frozen=True)
class Finished:
    """A program that has ended."""

    pid: int
    status: int
    stdout: str
    stderr: str

    def summary(self) -> str:
        """Its exit status, and the last line of its stderr if it failed."""
        return last_words(self.status, self.stderr if self.status else "")


def run(
    words: Sequence[str],
    *,
    during: Callable[[], None] | None = None,
) -> Finished:
    """Runs a program to its end; calls ``during`` again and again while it runs. ProgramError."""
    deadline = monotonic() + PATIENCE
    pipe = subprocess.PIPE
    with start(words, stdout=pipe, stderr=pipe) as process:
        try:
            while True:
                if during is not None:
                    during()
                try:
                    out, err = process.communicate(timeout=PACE if during else PATIENCE)
                    break
                except subprocess.TimeoutExpired:
                    if monotonic() > deadline:
                        name = os.path.basename(words[0])
                        raise ProgramError(f"{name} did not end in {PATIENCE:g} s") from None
        except BaseException:
            process.kill()
            raise
    texts = (each.decode(errors="replace") for each in (out, err))
    return Finished(process.pid, process.returncode, *texts)


def last_words(status: int | None, stderr: str) -> str:
    """How a program ended (None: it has not), with the last line that it wrote."""
    line = (stderr.strip().splitlines() or [""])[-1]
    how = "still runs" if status is None else f"exit status {status}"
    return f"{how}, {line}" if line else how
