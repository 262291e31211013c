"""Types what docs/walkthrough.md says about a node: the blocks `console node`, in their order.

As test_document.py does, with two daemons that are jobs of the shell, killed and started again.
What depends on them (a ztunnel that dials, a netns that is replaced) comes a moment later, and a
reader types slowly: a command that only looks is typed again until it shows what is written.
"""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from test_document import DOCUMENT, Shell, comparable, nc_is_openbsd, steps

from support import needs, pods
from support.programs import Daemon

SECONDS = 20.0
"""For what comes a moment later."""
LOOKS = ("pyztun-cni list", "pyztun-cni status", "ip netns exec")
JOB = re.compile(r"kill (-KILL )?%(\S+)")


def node_steps(text: str) -> list[tuple[str, list[str]]]:
    """(command, expected lines) of the blocks `console node`."""
    blocks = re.findall(r"^```console node\n.*?^```", text, re.MULTILINE | re.DOTALL)
    return steps("\n".join(blocks).replace("```console node", "```console"))


def without_age(lines: list[str], cookie: int | None = None) -> list[str]:
    """Lines of the table of `list` without SINCE; all others as they are.

    :param cookie: in place of the one that is written there.
    """
    row = re.compile(r"(\S+ +\S+ +\S+ +/run/netns/\S+ +)(\d+) +\d+s ")
    return [row.sub(lambda found: f"{found[1]}{cookie or found[2]} AGE ", line) for line in lines]


class NodeShell(Shell):
    """Each daemon is a job by the name of its program."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        super().__init__(directory, stack, readable=[])
        self.jobs: dict[str, Daemon] = {}

    def type(self, command: str) -> list[str]:
        """See Shell."""
        if command.startswith("export "):
            name, _, value = self.own(command).removeprefix("export ").partition("=")
            self.env[name] = value
            return []
        if killed := JOB.fullmatch(command):
            job = self.jobs.pop(killed[2])
            number = signal.SIGKILL if killed[1] else signal.SIGTERM
            assert job.stop(number) == (-number if killed[1] else 0)
            return []
        came = super().type(command)
        if command.endswith("&"):
            assert self.daemon is not None
            self.jobs[command.partition(" ")[0]] = self.daemon
        return came

    def type_and_compare(self, command: str, expected: list[str]) -> None:
        """AssertionError if something else comes than was expected."""
        written = [self.own(line) for line in expected]
        deadline = time.monotonic() + SECONDS
        while True:
            came = comparable(without_age(self.type(command)))
            if self.name in pods.names():
                self.cookie = pods.cookie_of(f"/run/netns/{self.name}")
            wanted = comparable(without_age(written, self.cookie))
            late = time.monotonic() > deadline or not command.startswith(LOOKS)
            if came == wanted or late:
                break
        assert came == wanted, f"# {command}"


@pytest.fixture
def shell(directory: Path) -> Iterator[NodeShell]:
    needs.require("needs_named_netns")
    with ExitStack() as stack:
        yield NodeShell(directory, stack)


@pytest.mark.skipif(not nc_is_openbsd(), reason="nc is not netcat-openbsd")
def test_a_node_as_written(shell: NodeShell) -> None:
    typed = node_steps(DOCUMENT)
    assert len(typed) > 25
    cookies = set()
    for command, expected in typed:
        shell.type_and_compare(command, expected)
        cookies.add(shell.cookie)
    assert len(cookies - {0}) == 2
    assert shell.jobs == {}
    assert not os.path.lexists(shell.directory / "zt-node")


def test_only_what_differs_from_run_to_run_is_made_alike() -> None:
    row = "web   default    pod-1  /run/netns/ns2  4140    2s     1         ready"
    later = row.replace(" 2s ", "17s ")
    alike_rows = [comparable(without_age([each], 9)) for each in (row, later)]
    assert alike_rows[0] == alike_rows[1] == ["web default pod-1 /run/netns/ns2 9 AGE 1 ready"]
    assert without_age([row]) != without_age([row.replace("4140", "4141")])
    assert without_age([row]) != without_age([row.replace("ready", "pending")])
