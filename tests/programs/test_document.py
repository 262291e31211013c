"""Types what docs/walkthrough.md says in its console blocks and compares what comes.

Numbers that differ from run to run (pids, descriptors, cookies, dates), the order and the columns
of ss, and the names that stand for the test's own (ns2, /tmp/zt) are made alike on both sides.
"""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support import REPOSITORY, needs, pods, privilege
from support.programs import Daemon, environment, program

DOCUMENT = (REPOSITORY / "docs/walkthrough.md").read_text(encoding="utf-8")
WITHOUT_ROOT = DOCUMENT.index("## Without root")


def steps(text: str) -> list[tuple[str, list[str]]]:
    """(command, expected lines) of the console blocks, in order."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("# "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def alike(line: str) -> str:
    """A line without what may differ."""
    line = re.sub(r'users:\(\("[^"]*",pid=\d+,fd=\d+\)\)', "users:PROCESS", line)
    line = re.sub(r"\b(netns=|cookie:)\d+", r"\1N", line)
    line = re.sub(r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d", "DATE", line)
    return " ".join(line.split())


def comparable(lines: list[str]) -> list[str]:
    """Lines as a sorted list, without the header of ss and without the other localhost."""
    kept = (alike(line) for line in lines if not line.startswith("State") and "(::1)" not in line)
    return sorted(filter(None, kept))


class Shell:
    """Types the commands: one daemon at a time in the background, everything else to its end."""

    def __init__(self, directory: Path, stack: ExitStack, readable: list[str]) -> None:
        self.directory, self.stack, self.readable = directory, stack, readable
        self.name = pods.unique_name()
        self.daemon: Daemon | None = None
        self.cookie = 0
        stack.callback(self._remove_netns)
        self.env = environment()
        self.env |= {"PATH": f"{self._commands()}:{self.env['PATH']}", "LC_ALL": "C"}

    def _commands(self) -> Path:
        """A directory in which our commands have their plain names."""
        place = self.directory / "bin"
        place.mkdir()
        for name in ("pyztun-cni", "pyztun-ztunnel"):
            script = place / name
            script.write_text(f'#!/bin/sh\nexec {shlex.join(program(name))} "$@"\n')
            script.chmod(0o755)
        return place

    def _remove_netns(self) -> None:
        if self.name in pods.names():
            subprocess.run(["ip", "netns", "delete", self.name], check=True)

    def own(self, text: str) -> str:
        """Text with the document's names and numbers replaced by this run's."""
        text = re.sub(r"\bns2\b", self.name, text)
        text = text.replace("/tmp/zt", f"{self.directory}/zt")
        text = re.sub(r"cookie:\d+", f"cookie:{self.cookie}", text)
        return text.replace("$!", str(self.daemon.pid) if self.daemon else "$!")

    def type(self, command: str) -> list[str]:
        """Types one command and returns its lines, from stdout and stderr."""
        # Whoever has become another user may not be able to reach the interpreter.
        wrap = self.readable if command.startswith("setpriv") else []
        if command.endswith("&"):
            argv = ["sh", "-c", f"exec {self.own(command[:-1])}"]
            running = Daemon(command=argv, env=self.env, wrap=wrap)
            self.daemon = self.stack.enter_context(running)
            return []
        if command == "kill $!":
            assert self.daemon is not None
            assert self.daemon.stop() == 0
            return []
        done = subprocess.run(
            [*wrap, "bash", "-c", self.own(command)],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
            check=False,
        )
        if command.startswith("ip netns add"):
            self.cookie = pods.cookie_of(f"/run/netns/{self.name}")
        return done.stdout.splitlines()


@pytest.fixture
def shell(directory: Path) -> Iterator[Shell]:
    needs.require("needs_named_netns")
    directory.chmod(0o755)
    with ExitStack() as stack:
        readable = [] if needs.root() else privilege.readable()
        yield Shell(directory, stack, readable)


def type_all(shell: Shell, text: str) -> None:
    for command, expected in steps(text):
        came = comparable(shell.type(command))
        assert came == comparable([shell.own(line) for line in expected]), f"# {command}"


def nc_is_openbsd() -> bool:
    if shutil.which("nc") is None:
        return False
    shown = subprocess.run(["nc", "-h"], capture_output=True, text=True, check=False)
    return "OpenBSD" in shown.stdout + shown.stderr


@pytest.mark.skipif(not nc_is_openbsd(), reason="nc is not netcat-openbsd")
def test_the_walkthrough_as_written(shell: Shell) -> None:
    assert len(steps(DOCUMENT[:WITHOUT_ROOT])) > 25
    type_all(shell, DOCUMENT[:WITHOUT_ROOT])


@pytest.mark.needs_root
def test_without_root_as_written(shell: Shell) -> None:
    assert len(steps(DOCUMENT[WITHOUT_ROOT:])) > 5
    type_all(shell, DOCUMENT[WITHOUT_ROOT:])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_the_unit_is_accepted_by_systemd(directory: Path) -> None:
    match = re.search(r"^```ini\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert match is not None
    # Verified are also that the program and the user exist; every host has these.
    unit = match[1].replace("User=pyztun", "User=root")
    unit = re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", unit)
    path = directory / "pyztun-ztunnel.service"
    path.write_text(unit, encoding="utf-8")
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in verified.stderr.splitlines() if path.name in line]
    assert (verified.returncode, ours) == (0, [])
