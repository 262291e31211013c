"""The two peers of tests/peers/python as processes: they were written from ZDS's description alone.

What each can be told stands at the top of its source.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import TracebackType
from typing import Any, TypeVar

from support import REPOSITORY
from support.programs import Lines

SOURCES = REPOSITORY / "tests" / "peers" / "python"
Said = dict[str, Any]
P = TypeVar("P", bound="ZdsPeer")


class ZdsPeer:
    """A peer that runs. Every wait has an end (AssertionError with all that it said)."""

    script: str

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-B", str(SOURCES / self.script), os.fspath(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        assert self.process.stdout is not None
        self.lines = Lines(self.process.stdout)
        self._read = 0

    def tell(self, line: str) -> None:
        """Gives it a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def next(self, seconds: float = 20) -> Said:
        """The next thing that it says."""
        self._read += 1
        line = self.lines.wait_for("", self._read, seconds)
        said: Said = json.loads(line)
        return said

    def wait(self, seconds: float = 20) -> int:
        """Waits for its end; returns its exit code."""
        return self.process.wait(seconds)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.lines.finish()

    def __enter__(self: P) -> P:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AgentPeer(ZdsPeer):
    """Listens on the path once this returns."""

    script = "zds_agent_peer.py"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        try:
            assert self.next() == {"listening": os.fspath(path)}
        except BaseException:
            self.close()
            raise

    def ask(self, line: str) -> Said:
        """Gives it a command and returns what it says to it."""
        self.tell(line)
        return self.next()


class ZtunnelPeer(ZdsPeer):
    """Dials the path until somebody listens there."""

    script = "zds_ztunnel_peer.py"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        try:
            assert self.event("started")["pid"] == self.process.pid
        except BaseException:
            self.close()
            raise

    def event(self, name: str, seconds: float = 20) -> Said:
        """The next event of that name; those before it are skipped."""
        while True:
            said = self.next(seconds)
            if said.get("event") == name:
                return said

    def ask(self, line: str, event: str) -> Said:
        """Gives it a command and returns the event that answers it."""
        self.tell(line)
        return self.event(event)

    def status(self) -> Said:
        """What runs, what is pending, whether it is ready."""
        return self.ask("status", "status")
