"""The one-shot sender against receivers that answer, keep silent, close, or talk nonsense."""

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from support.programs import cni
from support.zt_answers import Receiver, Script, say, say_and_close, say_nothing
from support.zt_child import run_code

HERE = "/proc/self/ns/net"
READY = b"ready 127.0.0.1:15008 127.0.0.1:15006 127.0.0.1:15001 netns=7\n"
PROMPT = 1.5  # seconds in which a command ends that waits for nothing


def in_turn(*scripts: Script) -> Script:
    """The first connection goes by the first script, and so on."""
    left = list(scripts)

    def run(peer: socket.socket, first: bytes) -> None:
        left.pop(0)(peer, first)

    return run


# ---- confirmed, refused, failed ------------------------------------------------------------------


def test_confirmed(sock_path: str) -> None:
    with Receiver(sock_path, READY) as receiver:
        done = cni(sock_path, HERE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "listeners ready\n", "")
    assert receiver.requests == [b"\x01"]


def test_once_per_confirmed_netns(sock_path: str) -> None:
    with Receiver(sock_path, READY):
        done = cni(sock_path, HERE, HERE, HERE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "listeners ready\n" * 3, "")


def test_verbose_shows_the_answer_on_stderr(sock_path: str) -> None:
    with Receiver(sock_path, READY):
        done = cni(sock_path, HERE, "--verbose")
    assert (done.returncode, done.stdout) == (0, "listeners ready\n")
    answer = f"{HERE}: ready 127.0.0.1:15008 127.0.0.1:15006 127.0.0.1:15001 netns=7"
    assert any(line.endswith(answer) for line in done.stderr.splitlines())


def test_release_by_netns_and_by_cookie(sock_path: str) -> None:
    with Receiver(sock_path, b"released netns=7\n") as receiver:
        done = cni(sock_path, "--release", HERE)
        assert (done.returncode, done.stdout, done.stderr) == (0, "released netns=7\n", "")
        done = cni(sock_path, "--release", "cookie:7")
        assert (done.returncode, done.stdout, done.stderr) == (0, "released netns=7\n", "")
    assert receiver.requests == [b"\x02", b"\x037\n"]


def test_list(sock_path: str) -> None:
    with Receiver(sock_path, b"held a:1 b:2 netns=7\nheld a:1 b:2 netns=8\nend\n") as receiver:
        done = cni(sock_path, "--list")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "netns=7 a:1 b:2\nnetns=8 a:1 b:2\n"
    assert receiver.requests == [b"\x04"]


def test_refused_is_one_line_with_the_reason(sock_path: str) -> None:
    with Receiver(sock_path, b"error home netns\n"):
        done = cni(sock_path, HERE)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"pyztun-cni: {HERE}: refused: home netns\n"


def test_all_are_tried_and_one_failure_is_exit_1(sock_path: str) -> None:
    with Receiver(sock_path, READY):
        done = cni(sock_path, HERE, "no-such-netns", "/dev/null", "fd:99", HERE)
    assert (done.returncode, done.stdout) == (1, "listeners ready\n" * 2)
    first, second, third = done.stderr.splitlines()
    assert first == "pyztun-cni: no-such-netns: no such netns"
    assert second == "pyztun-cni: /dev/null: not a network namespace"
    assert third == "pyztun-cni: fd:99: not open"


def test_all_are_tried_where_the_receiver_closes_after_each_answer(sock_path: str) -> None:
    """The seed's protocol has one request per connection; a receiver may keep to that."""
    with Receiver(sock_path, say_and_close(READY)):
        done = cni(sock_path, HERE, HERE, HERE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "listeners ready\n" * 3, "")


def test_an_inherited_descriptor(sock_path: str) -> None:
    fd = os.open(HERE, os.O_RDONLY)
    code = (
        "import os, sys\nfrom pyztun.cni.main import main\nos.fstat(int(sys.argv[2][3:]))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    try:
        with Receiver(sock_path, READY) as receiver:
            done = run_code(code, sock_path, f"fd:{fd}", pass_fds=[fd])
    finally:
        os.close(fd)
    assert (done.returncode, done.stdout, done.stderr) == (0, "listeners ready\n", "")
    assert receiver.requests == [b"\x01"]


NO_SOCKET: list[tuple[str, Callable[[str], object], str]] = [
    ("missing", os.path.exists, "ENOENT"),
    ("regular", lambda path: os.close(os.open(path, os.O_CREAT)), "ECONNREFUSED"),
    ("directory", os.mkdir, "ECONNREFUSED"),
    ("symlink to nothing", lambda path: os.symlink("nowhere", path), "ENOENT"),
]


@pytest.mark.parametrize(("name", "make", "number"), NO_SOCKET, ids=lambda value: str(value)[:12])
@pytest.mark.parametrize("words", [[HERE], ["--list"], ["--release", "cookie:7"]])
def test_no_receiver(
    sock_path: str, name: str, make: Callable[[str], object], number: str, words: list[str]
) -> None:
    make(sock_path)
    done = cni(sock_path, *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"pyztun-cni: connect {sock_path}: {number}")
    assert done.stderr.count("\n") == 1


def test_paths_too_long_and_empty() -> None:
    for path, status in (("x" * 5000, 1), ("", 2)):
        done = cni(path, HERE)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1)


# ---- no answer -----------------------------------------------------------------------------------


def test_silence_is_sent_not_confirmed_after_the_timeout(sock_path: str) -> None:
    with Receiver(sock_path, say_nothing):
        began = time.monotonic()
        done = cni(sock_path, HERE, "--timeout", "0.5")
        assert 0.5 <= time.monotonic() - began < 0.5 + PROMPT
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("sent, not confirmed")
    assert "listeners ready" not in done.stdout


@pytest.mark.parametrize("answer", [b"", b"ready 127.0.0.1:15008 netn"], ids=["none", "half"])
def test_closing_before_an_answer_says_so_at_once(sock_path: str, answer: bytes) -> None:
    with Receiver(sock_path, say_and_close(answer)):
        began = time.monotonic()
        done = cni(sock_path, HERE, "--timeout", "30")
        assert time.monotonic() - began < PROMPT
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("sent, not confirmed")


@pytest.mark.parametrize("script", [say_nothing, say_and_close(b"")], ids=["silent", "closing"])
def test_require_ready_is_exit_3(sock_path: str, script: Script) -> None:
    with Receiver(sock_path, script):
        done = cni(sock_path, HERE, "--timeout", "0.2", "--require-ready")
    assert (done.returncode, done.stdout) == (3, "")
    assert "sent, not confirmed" in done.stderr
    assert done.stderr.count("\n") == 1


def test_failed_outweighs_not_confirmed(sock_path: str) -> None:
    with Receiver(sock_path, say_nothing):
        done = cni(sock_path, HERE, "no-such", "--timeout", "0.2", "--require-ready")
    assert done.returncode == 1


def test_a_late_answer_is_never_taken_for_another_ones(sock_path: str) -> None:
    """The first answer does not come in time: the second NETNS goes over a new connection."""
    with Receiver(sock_path, in_turn(say_nothing, say(READY))) as receiver:
        done = cni(sock_path, HERE, HERE, "--timeout", "0.3")
    assert done.returncode == 0
    first, second = done.stdout.splitlines()
    assert first.startswith("sent, not confirmed")
    assert second == "listeners ready"
    assert receiver.requests == [b"\x01", b"\x01"]


def test_a_silent_list_is_a_failure(sock_path: str) -> None:
    for script in (say_nothing, say_and_close(b"held a:1 netns=7\n")):
        with Receiver(sock_path, script):
            done = cni(sock_path, "--list", "--timeout", "0.2")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_a_full_backlog_ends_at_the_timeout(sock_path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        listener.bind(sock_path)
        listener.listen(0)
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
        waiting.connect(sock_path)
        began = time.monotonic()
        done = cni(sock_path, HERE, HERE, "--timeout", "0.5")
        assert 0.5 <= time.monotonic() - began < 0.5 + PROMPT
    assert (done.returncode, done.stdout) == (1, "")
    assert sock_path in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_timeout_includes_connecting(sock_path: str) -> None:
    """Room in the backlog after 1.5 of 2.5 s leaves 1 s for the answer, not 2.5 s."""
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        listener.bind(sock_path)
        listener.listen(0)
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
        waiting.connect(sock_path)
        accepted: list[socket.socket] = []
        timer = threading.Timer(1.5, lambda: accepted.append(listener.accept()[0]))
        began = time.monotonic()
        timer.start()
        done = cni(sock_path, HERE, "--timeout", "2.5")
        took = time.monotonic() - began
        timer.join()
        accepted[0].close()
    assert done.stdout.startswith("sent, not confirmed")
    assert 2.5 <= took < 3.7


# ---- nonsense ------------------------------------------------------------------------------------

GARBAGE = [
    b"\n",
    b"ok\n",
    b"HTTP/1.1 400 Bad Request\r\n",
    b"ready\n",
    b"ready netns=7\n",
    b"ready a:1 netns=x\n",
    b"ready a:1 netns=18446744073709551616\n",
    b"ready a:1 netns=" + b"1" * 5000 + b"\n",
    b"\x00\xff\xfe\n",
    b"released netns=7\n",
    b"held a:1 netns=7\n",
    b"end\n",
    "readÿ a:1 netns=7\n".encode(),
]


@pytest.mark.parametrize("answer", GARBAGE, ids=lambda text: repr(text[:25]))
@pytest.mark.parametrize("words", [[HERE], [HERE, HERE]], ids=["one", "two"])
def test_a_garbage_answer_is_one_line_each(sock_path: str, answer: bytes, words: list[str]) -> None:
    with Receiver(sock_path, answer):
        done = cni(sock_path, *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == len(words), done.stderr
    assert all(line.startswith(f"pyztun-cni: {HERE}: ") for line in done.stderr.splitlines())


@pytest.mark.parametrize("answer", [b"ok\n", b"held netns=7\n", b"released netns=7\n", b"error\n"])
def test_a_garbage_answer_to_list_is_one_line(sock_path: str, answer: bytes) -> None:
    with Receiver(sock_path, answer):
        done = cni(sock_path, "--list")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def endless(peer: socket.socket, _: bytes) -> None:
    while True:
        peer.sendall(b"ready " * 1000)


def dripping(peer: socket.socket, _: bytes) -> None:
    over = threading.Event()
    while not over.wait(0.02):
        peer.sendall(b"x")


def test_an_endless_line_is_given_up(sock_path: str) -> None:
    with Receiver(sock_path, endless):
        began = time.monotonic()
        done = cni(sock_path, HERE, "--timeout", "30")
        assert time.monotonic() - began < PROMPT
    assert (done.returncode, done.stdout) == (1, "")
    assert "more than 16384 bytes" in done.stderr
    assert len(done.stderr) < 300


def test_a_byte_now_and_then_does_not_prolong_the_wait(sock_path: str) -> None:
    with Receiver(sock_path, dripping):
        began = time.monotonic()
        done = cni(sock_path, HERE, "--timeout", "0.6")
        assert 0.6 <= time.monotonic() - began < 0.6 + PROMPT
    assert done.stdout.startswith("sent, not confirmed")


def test_an_answer_in_pieces_is_one_answer(sock_path: str) -> None:
    def pieces(peer: socket.socket, _: bytes) -> None:
        for number in range(len(READY)):
            peer.sendall(READY[number : number + 1])

    with Receiver(sock_path, pieces):
        done = cni(sock_path, HERE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "listeners ready\n", "")


def test_descriptors_in_an_answer_are_refused(sock_path: str) -> None:
    def push(peer: socket.socket, _: bytes) -> None:
        socket.send_fds(peer, [READY], [0, 0, 0])

    with Receiver(sock_path, push):
        done = cni(sock_path, HERE)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


EVIL = b"\x1b]0;title\x07\x1b[31mred \xc2\x9b31m \xe2\x80\xae \x08\x7f\r"
CONTROLS = [chr(number) for number in [*range(32), *range(127, 160), 0x202E] if number != 10]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ([HERE], b"error " + EVIL + b"\n"),
        ([HERE], b"nonsense " + EVIL + b"\n"),
        ([HERE, "--verbose"], b"ready " + EVIL.replace(b" ", b"") + b":1 netns=7\n"),
        (["--list"], b"held " + EVIL.replace(b" ", b"") + b":1 netns=7\nend\n"),
        (["--list"], b"error " + EVIL + b"\n"),
    ],
)
def test_control_characters_do_not_reach_the_terminal(
    sock_path: str, words: list[str], answer: bytes
) -> None:
    with Receiver(sock_path, answer):
        done = cni(sock_path, *words)
    told = done.stdout + done.stderr
    assert "title" in told
    assert [each for each in CONTROLS if each in told] == []
