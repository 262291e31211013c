"""Types what docs/walkthrough.md says about a node and a captured pod, each part in its order.

As test_document.py does, but the blocks `console node` and `console captured`, with daemons that
are jobs of the shell, killed and started again. What depends on them (a ztunnel that dials, a netns
that is replaced) comes a moment later, and a reader types slowly: a command that only looks is
typed again until it shows what is written.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from test_document import DOCUMENT, Shell, comparable, nc_is_openbsd, steps

from support import needs, pods
from support.programs import Daemon

SECONDS = 20.0
"""For what comes a moment later."""
LOOKS = ("pyztun-cni list", "pyztun-cni status", "ip netns exec", "grep", "tail", "wc")
JOB = re.compile(r"kill (-KILL )?%(\S+)")


def part_steps(text: str, part: str) -> list[tuple[str, list[str]]]:
    """(command, expected lines) of the blocks `console PART`."""
    blocks = re.findall(rf"^```console {part}\n.*?^```", text, re.MULTILINE | re.DOTALL)
    return steps("\n".join(blocks).replace(f"```console {part}", "```console"))


def without_age(lines: list[str], cookies: Mapping[str, int] | None = None) -> list[str]:
    """Lines of the table of `list` without SINCE; all others as they are.

    :param cookies: of each path, in place of the one that is written there.
    """
    row = re.compile(r"(\S+ +\S+ +\S+ +(/run/netns/\S+) +)(\d+) +\d+s ")

    def alike(found: re.Match[str]) -> str:
        return f"{found[1]}{(cookies or {}).get(found[2], found[3])} AGE "

    return [row.sub(alike, line) for line in lines]


class NodeShell(Shell):
    """Each daemon is a job by the name of its program."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        super().__init__(directory, stack, readable=[])
        self.jobs: dict[str, Daemon] = {}
        self.other = pods.unique_name()
        stack.callback(self._remove_other)

    def _remove_other(self) -> None:
        if self.other in pods.names():
            subprocess.run(["ip", "netns", "delete", self.other], check=True)

    def own(self, text: str) -> str:
        """See Shell; ns3 is the other netns."""
        return super().own(re.sub(r"\bns3\b", self.other, text))

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
        name = command.partition(" ")[0]
        if command.endswith("&") and not name.startswith("pyztun"):
            argv = ["sh", "-c", f"exec {self.own(command[:-1])}"]
            running = Daemon(command=argv, env=self.env, ready=False)
            self.jobs[name] = self.stack.enter_context(running)
            return []
        came = super().type(command)
        if command.endswith("&"):
            assert self.daemon is not None
            self.jobs[name] = self.daemon
        return came

    def type_and_compare(self, command: str, expected: list[str]) -> None:
        """AssertionError if something else comes than was expected."""
        written = [self.own(line) for line in expected]
        deadline = time.monotonic() + SECONDS
        while True:
            came = comparable(without_age(self.type(command)))
            cookies = {
                f"/run/netns/{name}": pods.cookie_of(f"/run/netns/{name}")
                for name in {self.name, self.other} & set(pods.names())
            }
            self.cookie = cookies.get(f"/run/netns/{self.name}", self.cookie)
            wanted = comparable(without_age(written, cookies))
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
    typed = part_steps(DOCUMENT, "node")
    assert len(typed) > 25
    cookies = set()
    for command, expected in typed:
        shell.type_and_compare(command, expected)
        cookies.add(shell.cookie)
    assert len(cookies - {0}) == 2
    assert shell.jobs == {}
    assert not os.path.lexists(shell.directory / "zt-node")


@pytest.mark.skipif(not nc_is_openbsd(), reason="nc is not netcat-openbsd")
def test_a_captured_pod_as_written(shell: NodeShell) -> None:
    if shutil.which("nft") is None:
        pytest.skip("nft is not installed (nftables)")
    typed = part_steps(DOCUMENT, "captured")
    assert len(typed) > 30
    for command, expected in typed:
        shell.type_and_compare(command, expected)
    assert shell.jobs == {}
    assert not {shell.name, shell.other} & set(pods.names())
    assert not os.path.lexists(shell.directory / "zt-node")


def test_only_what_differs_from_run_to_run_is_made_alike() -> None:
    row = "web   default    pod-1  /run/netns/ns2  4140    2s     1         none     ready"
    later = row.replace(" 2s ", "17s ")
    alike_rows = [comparable(without_age([each], {"/run/netns/ns2": 9})) for each in (row, later)]
    expected = ["web default pod-1 /run/netns/ns2 9 AGE 1 none ready"]
    assert alike_rows[0] == alike_rows[1] == expected
    assert without_age([row]) != without_age([row.replace("4140", "4141")])
    assert without_age([row]) != without_age([row.replace("ready", "pending")])
