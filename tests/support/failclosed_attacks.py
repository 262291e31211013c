"""A process in a captured pod that has no capability: see failclosed_attacker.py."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from support import REPOSITORY, pods
from support.failclosed_stage import Stage

ATTACKER = str(REPOSITORY / "tests" / "support" / "failclosed_attacker.py")
WITHOUT = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all")
"""uid 0, and no capability."""

Trick = tuple[str, str, int, int]
"""Its name, address and port of the server, port of the client."""


def attempt(stage: Stage, *tricks: Trick) -> list[str]:
    """What comes of connections with a trick, one line each: the trick and what came."""
    words = [str(each) for trick in tricks for each in trick]
    argv = (*WITHOUT, sys.executable, "-I", ATTACKER, "connect", *words)
    lines = stage.inside.program(*argv).splitlines()
    assert len(lines) == len(tricks)
    return lines


class Impostor:
    """A process that listens where ztunnel should."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def end(self) -> list[str]:
        """Ends it; whom it has accepted, a line each: address and port."""
        return self._process.communicate(timeout=10)[0].splitlines()


@contextmanager
def impostor(stage: Stage, port: int, *words: str) -> Iterator[Impostor]:
    """One in the captured pod.

    :param words: ("share",): with SO_REUSEPORT.
    """
    argv = [*WITHOUT, sys.executable, "-I", ATTACKER, "listen", str(port), *words]

    def begin() -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True)

    with pods.in_netns(stage.inside.netns.fileno(), begin) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "listening\n"
            yield Impostor(process)
        finally:
            process.kill()
