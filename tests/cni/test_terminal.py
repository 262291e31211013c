"""Ctrl-C, closed and full outputs: at most one line, a documented exit code, no traceback."""

import os
import platform
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest

from support import programs
from support.zt_answers import Receiver, say

HERE = "/proc/self/ns/net"
READY = b"ready 127.0.0.1:15008 netns=7\n"
CONNECT = {"x86_64": "42", "aarch64": "203"}.get(platform.machine())


def begin(*words: str, stdout: int | IO[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*programs.program("pyztun-cni"), *words],
        env=programs.environment(),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=20)
    return process.returncode, out or "", err or ""


def test_interrupted_while_it_waits_for_the_answer(sock_path: str) -> None:
    asked = threading.Event()

    def keep_waiting(peer: socket.socket, _: bytes) -> None:
        asked.set()
        while peer.recv(100):
            pass

    words = [sock_path, HERE, HERE, "--timeout", "60"]
    with Receiver(sock_path, keep_waiting), begin(*words, stdout=subprocess.PIPE) as sender:
        assert asked.wait(20)
        sender.send_signal(signal.SIGINT)
        assert ended(sender) == (1, "", "pyztun-cni: interrupted\n")


@pytest.mark.skipif(CONNECT is None, reason="the number of connect() is not known here")
def test_interrupted_while_it_waits_for_room_in_the_backlog(sock_path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        listener.bind(sock_path)
        listener.listen(0)
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect(sock_path)
        with begin(sock_path, HERE, "--timeout", "60", stdout=subprocess.PIPE) as sender:
            wait_for_syscall(sender.pid, str(CONNECT))
            sender.send_signal(signal.SIGINT)
            assert ended(sender) == (1, "", "pyztun-cni: interrupted\n")


def wait_for_syscall(pid: int, number: str, seconds: float = 20) -> None:
    """Until the process sleeps in that system call."""
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}/syscall").read_text().split()[0] != number:
        assert time.monotonic() < deadline
        os.sched_yield()


def check_clean(code: int, err: str) -> None:
    assert code in (0, 1, 3), (code, err)
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    assert err.count("\n") <= 2, err


Words = list[str]
CASES: list[tuple[Words, bytes]] = [
    ([HERE], READY),
    ([HERE, HERE], READY),
    (["--release", "cookie:7"], b"released netns=7\n"),
    (["--list"], b"held 127.0.0.1:15008 netns=7\n" * 3000 + b"end\n"),
    (["--list"], b"held 127.0.0.1:15008 netns=7\nend\n"),
    ([HERE], b"error no\n"),
]


@pytest.mark.parametrize(("words", "answer"), CASES)
def test_nobody_reads_stdout(sock_path: str, words: Words, answer: bytes) -> None:
    read, write = os.pipe()
    os.close(read)
    with Receiver(sock_path, answer), begin(sock_path, *words, stdout=write) as sender:
        os.close(write)
        code, _, err = ended(sender)
    check_clean(code, err)


@pytest.mark.parametrize(("words", "answer"), CASES)
def test_the_disk_is_full(sock_path: str, words: Words, answer: bytes) -> None:
    with (
        open("/dev/full", "w") as full,
        Receiver(sock_path, answer),
        begin(sock_path, *words, stdout=full) as sender,
    ):
        code, _, err = ended(sender)
    check_clean(code, err)


def shell(redirection: str, *words: str) -> tuple[int, str, str]:
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *programs.program("pyztun-cni"), *words],
        env=programs.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("words", "answer"), CASES)
def test_stdout_is_closed(sock_path: str, words: Words, answer: bytes) -> None:
    """Python sets sys.stdout to None then; and the socket becomes fd 1, where no text may go."""
    with Receiver(sock_path, answer):
        code, _, err = shell(">&-", sock_path, *words)
    check_clean(code, err)


@pytest.mark.parametrize("word", ["--help", "--version"])
@pytest.mark.parametrize("redirection", [">&-", "> /dev/full", "2>&-"])
def test_help_to_an_output_that_takes_nothing(redirection: str, word: str) -> None:
    code, _, err = shell(redirection, word)
    check_clean(code, err)


@pytest.mark.parametrize("words", [["--nonsense"], ["/nonexistent", HERE], [HERE, "--list"]])
def test_stderr_is_closed(words: Words) -> None:
    """The exit code is all that is left to tell, and must be the right one."""
    code, out, _ = shell("2>&-", *words)
    assert (code, out) == (2 if words == ["--nonsense"] else 1, "")


def test_a_listing_that_is_cut_short_by_its_reader(sock_path: str) -> None:
    answer = b"held 127.0.0.1:15008 netns=7\n" * 3000 + b"end\n"
    with Receiver(sock_path, answer), begin(sock_path, "--list", stdout=subprocess.PIPE) as sender:
        assert sender.stdout is not None
        assert sender.stdout.readline() == "netns=7 127.0.0.1:15008\n"
        sender.stdout.close()
        assert sender.stderr is not None
        err = sender.stderr.read()
        check_clean(sender.wait(20), err)


ENCODINGS: list[tuple[str, Callable[[Path], str]]] = [
    ("ascii", lambda directory: str(directory / "netns-ä")),
    ("utf-8", lambda directory: os.fsdecode(os.fsencode(directory) + b"/netns-\xff")),
]


@pytest.mark.parametrize(("encoding", "reference"), ENCODINGS)
@pytest.mark.parametrize("answer", [b"", b"error \xc3\xa4\n", READY, b"ready \xc3\xa4:1 netns=7\n"])
def test_a_path_that_stdout_cannot_encode(
    directory: Path,
    sock_path: str,
    encoding: str,
    reference: Callable[[Path], str],
    answer: bytes,
) -> None:
    """A name of a file is bytes; what cannot be shown must not become a UnicodeEncodeError."""
    path = reference(directory)
    os.symlink(HERE, path)
    env = {"PYTHONIOENCODING": f"{encoding}:strict", "PYTHONUTF8": "0", "LC_ALL": "C.UTF-8"}
    # An empty answer is none: the receiver reads on and the sender's time runs out.
    with Receiver(sock_path, say(answer)):
        code, out, err = bytes_of(env, sock_path, path, "--timeout", "0.2", "--verbose")
    assert code == (1 if b"error" in answer else 0)
    assert b"Traceback" not in err
    assert out.startswith(b"" if code else b"sent, not confirmed" if not answer else b"listeners")


def test_a_listing_that_stdout_cannot_encode(sock_path: str) -> None:
    env = {"PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0"}
    with Receiver(sock_path, "held ä:1 netns=7\nend\n".encode()):
        code, out, err = bytes_of(env, sock_path, "--list")
    assert (code, err) == (0, b"")
    assert out.startswith(b"netns=7 ")


def bytes_of(env: dict[str, str], *words: str) -> tuple[int, bytes, bytes]:
    done = subprocess.run(
        [*programs.program("pyztun-cni"), *words],
        env=programs.environment(env),
        capture_output=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr
