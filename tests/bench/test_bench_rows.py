"""`python -m bench` as it is run: every row measures every contender, a failure is one line.

Two rounds say nothing about speed; they say that each contender did its work and was timed.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from support import REPOSITORY, pods

ROWS = {
    "listen": {"floor, home kept", "lib, home kept", "floor, home opened", "lib, home opened"},
    "listen-main": {"floor, helper thread", "lib, helper thread"},
    "fdpass": {
        "floor",
        "lib",
        "native.send, native.receive",
        "pyztun.send_fds, recv_fds",
        "socket.send_fds, recv_fds",
    },
    "peers": {"floor", "lib", "NetNs.listen", "ctypes setns", "pyroute2 create_socket"},
    "seed": {"floor", "pyztun-ztunnel"},
    "zds": {"floor", "pyztun-ztunnel"},
    "oneshot": {"python -c pass", "import pyztun._core", "pyztun-cni"},
    "relay-throughput": {"direct", "pyztun-ztunnel"},
    "relay-connections": {"direct", "pyztun-ztunnel", "pyztun-ztunnel, access log"},
    "relay-ping": {"direct", "pyztun-ztunnel"},
    "relay-idle": {"pyztun-ztunnel"},
    "agent-add": {"python -c pass", "pyztun-cni add"},
    "pods": {"none held", "1000 held"},
    "zds-pods": {"none held", "1000 held"},
    "zds-snapshot": {"floor", "pyztun-ztunnel"},
    "agent": {"GET /v1/workloads", "GET /v1/status", "POST /v1/workloads"},
    "agent-start": {"spawn to READY=1", "connected to served", "spawn to served"},
}
BUDGETED = {
    "listen": 2,
    "seed": 2,
    "zds": 1,
    "oneshot": 1,
    "relay-throughput": 1,
    "relay-connections": 1,
    "relay-ping": 1,
    "relay-idle": 1,
    "agent-add": 1,
    "pods": 3,
    "zds-pods": 3,
    "zds-snapshot": 1,
    "agent": 2,
    "agent-start": 1,
}
RELAYS = ("relay-throughput", "relay-connections", "relay-ping")
SLOW = (
    *("seed", *RELAYS, "relay-idle"),
    *("pods", "zds-pods", "zds-snapshot", "agent", "agent-start"),
)


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **extra}


def bench(*args: str, wrap: Sequence[str] = (), **env: str) -> "subprocess.CompletedProcess[str]":
    """Runs `python -m bench ARGS...` to its end."""
    return subprocess.run(
        [*wrap, sys.executable, "-m", "bench", *args],
        cwd=REPOSITORY,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def one_line(done: "subprocess.CompletedProcess[str]") -> str:
    """What a failed run said on stderr: a single line, and exit code 1."""
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("bench: ")
    return line


def optional(row: str) -> dict[str, bool]:
    """The contenders that this host may lack, and whether it has them."""
    from bench import programs, relay_haproxy

    if row.startswith("relay-"):
        try:
            here = bool(relay_haproxy.program())
        except programs.Skipped:
            here = False
        bulk = ["HAProxy for bulk"] if row == "relay-throughput" else []
        return {"HAProxy": here, **dict.fromkeys(bulk, here)}
    if row == "seed":
        return {"Go receiver": programs.go() is not None}
    if row == "peers":
        return {"os.setns": hasattr(os, "setns"), "ip netns exec": shutil.which("ip") is not None}
    return {}


def measured(row: Mapping[str, Any]) -> set[str]:
    """The names of the contenders, each with two real numbers."""
    for contender in row["contenders"]:
        samples = contender["samples"]
        assert len(samples) == 2
        assert 0 < contender["min"] == min(samples) <= contender["median"]
        assert contender["max"] == max(samples) < 60e6, "no piece of work takes a minute"
    return {contender["name"] for contender in row["contenders"]}


@pytest.mark.needs_named_netns
@pytest.mark.parametrize(
    "name", [pytest.param(row, marks=pytest.mark.slow if row in SLOW else ()) for row in ROWS]
)
def test_row_measures_every_contender(name: str, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    done = bench("--only", name, "--rounds", "2", "--json", str(file), "--strict")
    assert done.stderr == ""
    record = json.loads(file.read_text())
    (row,) = record["rows"]
    assert (row["name"], row["skipped"], row["rounds"]) == (name, None, 2)
    present = {each for each, here in optional(name).items() if here}
    assert measured(row) == ROWS[name] | present
    for absent in optional(name).keys() - present:
        assert any(note.startswith(f"without {absent}") for note in row["notes"])
    checks = row["checks"]
    assert all(check["value"] > 0 for check in checks if check["unit"] == "x")
    budgeted = [check for check in checks if check["budget"] is not None]
    expected = BUDGETED.get(name, 0) - (name == "seed" and "Go receiver" not in present)
    # An idle connection has a budget of its own; the other budgets of a relay are against HAProxy.
    expected -= name in RELAYS and "HAProxy" not in present
    assert len(budgeted) == expected
    # Two rounds decide nothing, but the exit code has to follow whatever they decided.
    over = any(check["verdict"] == "over" for check in budgeted)
    assert done.returncode == (1 if over else 0)
    assert ("over budget: " if over else "within budget: ") in done.stdout.splitlines()[-1]
    for contender in measured(row):
        assert f"\n  {contender}" in done.stdout


@pytest.mark.needs_netns
def test_several_rows_of_one_run_and_the_facts_of_the_machine(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    rows = ("--only", "fdpass", "--only", "listen-main")
    done = bench(*rows, "--rounds", "2", "--json", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(file.read_text())
    assert [row["name"] for row in record["rows"]] == ["listen-main", "fdpass"]
    facts = record["machine"]
    assert facts["kernel"].split()[1] == os.uname().release
    assert facts["python"].split()[1] == sys.version.split()[0]
    assert {"pyztun", "cpu", "governor", "mitigations", "packages", "cc", "load"} <= facts.keys()
    assert os.uname().nodename not in done.stdout.split(), "a table is to be published"


@pytest.mark.needs_netns
def test_contender_that_runs_out_of_descriptors_ends_with_one_line(tmp_path: Path) -> None:
    done = bench("--only", "listen", "--rounds", "2", wrap=["prlimit", "--nofile=64"])
    assert one_line(done).endswith("Too many open files")


@pytest.mark.needs_named_netns
def test_peer_that_fails_ends_with_one_line_and_leaves_no_netns(tmp_path: Path) -> None:
    """An `ip` that cannot do `netns exec`, as one built without it."""
    broken = tmp_path / "ip"
    broken.write_text("#!/bin/sh\necho 'Object \"netns\" is unknown' >&2\nexit 3\n")
    broken.chmod(0o755)
    before = pods.names()
    done = bench("--only", "peers", "--rounds", "2", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert one_line(done) == 'bench: ip netns exec ended with 3: Object "netns" is unknown'
    assert not {name for name in pods.names() - before if name.startswith("pz-bench-")}


@pytest.mark.needs_netns
def test_compiler_that_fails_ends_with_one_line() -> None:
    assert one_line(bench("--only", "fdpass", CC="false")).endswith("false failed with 1:")


@pytest.mark.needs_netns
def test_json_that_cannot_be_written_is_known_before_the_measurement(tmp_path: Path) -> None:
    file = tmp_path / "missing" / "bench.json"
    done = bench("--only", "fdpass", "--json", str(file))
    assert one_line(done) == f"bench: --json {file}: No such file or directory"
    assert done.stdout == ""


@pytest.mark.needs_netns
def test_without_rights_one_line_says_what_to_do() -> None:
    """uid 0 without a capability, the same as root and as root of a user namespace."""
    without = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    line = one_line(bench("--only", "fdpass", wrap=without))
    assert "needs CAP_SYS_ADMIN" in line
    assert "make bench" in line


@pytest.mark.needs_netns
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_says_so_and_leaves_nothing(number: int, directory: Path) -> None:
    argv = [sys.executable, "-m", "bench", "--only", "fdpass", "--rounds", "100000"]
    with subprocess.Popen(
        argv,
        cwd=REPOSITORY,
        env=environment({"TMPDIR": str(directory)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:  # the facts come before the first row, "load" is the last
            if line.startswith("load:"):
                break
        process.send_signal(number)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, said) == (130, "bench: interrupted\n")
    assert list(directory.iterdir()) == []


def test_list_names_every_row() -> None:
    done = bench("--list")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(ROWS)


@pytest.mark.parametrize("args", [("--only", "nothing"), ("--rounds", "0"), ("--rounds", "x")])
def test_wrong_arguments_are_named(args: tuple[str, str]) -> None:
    done = bench(*args)
    assert done.returncode == 2
    assert args[1] in done.stderr.splitlines()[-1]
