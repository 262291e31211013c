"""The real programs as processes: found, run, waited for."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING

from pyztun.errors import PyztunError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PATIENCE = 5.0
"""Seconds that a program gets for whatever it is waited for."""
PACE = 0.0005
"""Seconds between two looks at what happens while a program runs."""
ROWS = 24


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
    env: Mapping[str, str] | None = None,
    stdout: int = subprocess.PIPE,
) -> Finished:
    """Runs a program to its end. ProgramError.

    :param during: called again and again while it runs.
    :param stdout: a descriptor for it, else it is in what is returned.
    :param env: what it finds in its environment beside ours.
    """
    deadline = monotonic() + PATIENCE
    environment = {**os.environ, **(env or {})}
    with start(words, stdout=stdout, stderr=subprocess.PIPE, env=environment) as process:
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
    texts = ((each or b"").decode(errors="replace") for each in (out, err))
    return Finished(process.pid, process.returncode, *texts)


def run_on_terminal(words: Sequence[str], columns: int, env: Mapping[str, str]) -> Finished:
    """Runs a program whose stdout is a terminal that wants no colour. ProgramError.

    :param columns: how wide it is.
    """
    ours, its = os.openpty()
    with open(ours, "rb", buffering=0) as terminal, open(its, "wb", buffering=0) as end:
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        # The kernel would make CR LF of each line's end.
        modes = termios.tcgetattr(end)
        modes[1] &= ~termios.OPOST
        termios.tcsetattr(end, termios.TCSANOW, modes)
        shown = bytearray()

        def read() -> None:
            while select.select([terminal], [], [], 0)[0]:
                shown.extend(terminal.read(65536))

        environment = {**env, "NO_COLOR": "1", "PYTHONIOENCODING": "ascii"}
        done = run(words, during=read, env=environment, stdout=its)
        read()
    return replace(done, stdout=shown.decode(errors="replace"))


def last_words(status: int | None, stderr: str) -> str:
    """How a program ended (None: it has not), with the last line that it wrote."""
    line = (stderr.strip().splitlines() or [""])[-1]
    how = "still runs" if status is None else f"exit status {status}"
    return f"{how}, {line}" if line else how
