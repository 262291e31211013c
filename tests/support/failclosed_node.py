"""An agent and a ztunnel, the real ones, of which a test may end whichever it likes."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from support.agent import Agent
from support.programs import Daemon

NEVER = ("--reconcile", "86400")
"""A pass over all workloads is a test's own to ask for: what heals without one is told apart."""


class Node:
    """See above; begin() starts both."""

    def __init__(self, directory: Path) -> None:
        self._stack = ExitStack()
        self.agent = Agent(directory, self._start)
        self.ztunnel: Daemon

    def begin(self) -> None:
        """Starts both."""
        self.begin_agent()
        self.begin_ztunnel()

    def begin_agent(self, *options: str, command: Sequence[str] | None = None) -> None:
        """Starts an agent where there is none."""
        self.agent.begin(*(options or NEVER), command=command)

    def begin_ztunnel(self, *options: str, **how: Any) -> None:
        """Starts a ztunnel, and waits until the agent has given it a snapshot."""
        self.start_ztunnel(*options, **how)
        self.agent.wait_for_ztunnels(1)

    def start_ztunnel(self, *options: str, **how: Any) -> None:
        """Starts a ztunnel, also beside another."""
        self.ztunnel = self._start("--zds", self.agent.zds, *options, **how)

    def kill_ztunnel(self) -> None:
        """SIGKILL, and the agent knows it."""
        self.ztunnel.kill()
        if self.agent.daemon.process.poll() is None:
            self.agent.wait_for_ztunnels(0)

    def kill_agent(self) -> None:
        """SIGKILL, and podside has ended too."""
        podside = self.podside_pid()
        self.agent.daemon.kill()
        if podside is not None:
            wait_for_the_end(podside)

    def podside_pid(self) -> int | None:
        """Of the process that enters pods; None: none runs."""
        pid = self.agent.status()["podside"]["pid"]
        return None if pid is None else int(pid)

    def kill_podside(self) -> int:
        """SIGKILL; returns which one it was."""
        pid = self.podside_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        return pid

    def said(self, event: str, uid: str) -> str:
        """Waits for a line of the agent about a workload."""
        return self.agent.daemon.stderr.wait_for(
            lambda line: f" {event} " in line and f"uid={uid}" in line
        )

    def _start(self, *args: str | os.PathLike[str], **how: Any) -> Daemon:
        return self._stack.enter_context(Daemon(*args, **how))

    def __enter__(self) -> Node:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


def wait_for_the_end(pid: int, seconds: float = 10) -> None:
    """Waits for the end of a process that is nobody's child here."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([process], [], [], seconds)[0], f"{pid} does not end"
    finally:
        os.close(process)
