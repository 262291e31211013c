"""The one-shot sender starts nearly as fast as bare python: these modules are never on its path."""

import subprocess
import sys

from support import programs, wire
from support.zt_answers import Receiver

FORBIDDEN = {
    "socket",
    "argparse",
    "enum",
    "re",
    "dataclasses",
    "typing",
    "logging",
    "pathlib",
    "importlib.metadata",
    "inspect",
    "json",
    "threading",
    "subprocess",
    "asyncio",
    "psutil",
}


def imported(stderr: str) -> set[str]:
    """The module names of `-X importtime`: the last column of each of its lines."""
    lines = [line for line in stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip() for line in lines}


def bare() -> set[str]:
    """What python imports before it runs anything: its `site` differs from host to host."""
    argv = [sys.executable, "-X", "importtime", "-c", "pass"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return imported(done.stderr)


def traced(*words: str) -> tuple[int, str, set[str]]:
    """Runs the installed `pyztun-cni` under -X importtime: exit code, stdout, its own imports."""
    command = programs.program("pyztun-cni")[-1]
    argv = [sys.executable, "-X", "importtime", command, *words]
    done = subprocess.run(
        argv, capture_output=True, text=True, env=programs.environment(), check=False, timeout=60
    )
    return done.returncode, done.stdout, imported(done.stderr) - bare()


def test_a_confirmed_handoff_imports_none_of_them(sock_path: str) -> None:
    with Receiver(sock_path, b"ready 127.0.0.1:15008 netns=7\n") as receiver:
        code, out, names = traced(sock_path, "/proc/self/ns/net")
    assert (code, out) == (0, "listeners ready\n")
    assert receiver.requests == [wire.TAKE]
    assert "pyztun._core" in names
    assert names & FORBIDDEN == set()


def test_release_list_and_refusal_import_none_of_them(sock_path: str) -> None:
    cases = [
        (["--release", "cookie:7"], b"released netns=7\n", 0),
        (["--list"], b"held 127.0.0.1:15008 netns=7\nend\n", 0),
        (["/proc/self/ns/net"], b"error home netns\n", 1),
    ]
    for words, answer, expected in cases:
        with Receiver(sock_path, answer):
            code, _, names = traced(sock_path, *words)
        assert code == expected
        assert names & FORBIDDEN == set()


def test_errors_before_the_handoff_import_none_of_them(sock_path: str) -> None:
    for words in ([sock_path, "/proc/self/ns/net"], ["--help"], ["--nonsense"], ["--version"]):
        _, _, names = traced(*words)
        assert names & FORBIDDEN == set()
