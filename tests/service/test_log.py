"""The log never stops a handoff: bounded, repeats counted, and a full pipe is nobody's problem."""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from support import programs, wire
from support.programs import Daemon
from support.zt_daemon import is_served, netns

Start = Callable[..., Daemon]


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """(read end, write end) of a pipe into which not one byte more goes."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, bytes(4096))
    except BlockingIOError:
        pass
    os.set_blocking(write, True)
    yield read, write
    os.close(read)
    os.close(write)


def json_log(daemon: Daemon) -> list[dict[str, object]]:
    return [json.loads(line) for line in daemon.stderr.all()]


@pytest.mark.needs_netns
def test_a_full_pipe_on_both_outputs_stops_nothing(
    start: Start, sock_path: str, full_pipe: tuple[int, int]
) -> None:
    """Then thousands of lines, far beyond the queue; at the end a drain that ends in time."""
    daemon = start(sock_path, output=full_pipe[1])
    memory = daemon.rss_kib()
    with netns(1) as (pod,), wire.Peer(sock_path) as peer, open("/proc/self/ns/net") as home:
        for _ in range(1500):
            assert peer.ask(wire.TAKE, [pod.fileno()]).startswith("ready")
            assert peer.ask(wire.RELEASE, [pod.fileno()]).startswith("released")
            assert peer.ask(wire.TAKE, [home.fileno()]) == "error home netns"
        is_served(sock_path)
    assert daemon.rss_kib() < memory + 8 * 1024
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 4
    assert not os.path.lexists(sock_path)


@pytest.mark.needs_netns
def test_closed_outputs_stop_nothing(start: Start, sock_path: str) -> None:
    command = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *programs.program("pyztun-ztunnel")]
    daemon = start(sock_path, command=command)
    with netns(1) as (pod,), wire.Peer(sock_path) as peer:
        for _ in range(10):
            assert peer.ask(wire.TAKE, [pod.fileno()]).startswith("ready")
            assert peer.ask(wire.RELEASE, [pod.fileno()]).startswith("released")
    assert daemon.stop() == 0


def test_repeated_errors_are_counted_and_not_repeated(start: Start, sock_path: str) -> None:
    daemon = start(sock_path)
    with open("/proc/self/ns/net") as home:
        for _ in range(200):
            wire.request(sock_path, b"\xff")
            wire.request(sock_path, wire.TAKE, [home.fileno()])
    assert daemon.stop() == 0
    lines = daemon.stderr.all()
    assert len(lines) < 12, lines
    for name, reason in (("malformed", "unknown request byte 0xff"), ("refused", "home netns")):
        assert sum(f"warning {name} " in line for line in lines) == 1
        sums = [line for line in lines if "warning repeated " in line and reason in line]
        assert len(sums) == 1
        assert sums[0].endswith("count=199")


def test_json_lines_parse_and_have_the_same_fields(start: Start, sock_path: str) -> None:
    daemon = start(sock_path, "--log-format", "json")
    for _ in range(3):
        wire.request(sock_path, b"\xff")
    assert daemon.stop() == 0
    records = json_log(daemon)
    for record in records:
        assert list(record)[:4] == ["time", "level", "program", "event"]
        assert record["program"] == "pyztun-ztunnel"
        assert record["level"] in ("info", "warning", "error")
        assert str(record["time"]).endswith("+00:00")
    events = [record["event"] for record in records]
    assert events[0] == "listening"
    assert {"malformed", "draining", "stopped"} <= set(events)
    (repeated,) = [record for record in records if "count" in record]
    assert repeated["event"] == "repeated"
    assert repeated["count"] == 2


@pytest.mark.needs_netns
def test_a_handoff_in_the_log(start: Start, sock_path: str) -> None:
    daemon = start(sock_path, "--log-format", "json")
    with netns(1) as (pod,), wire.Peer(sock_path) as peer:
        peer.ask(wire.TAKE, [pod.fileno()])
        peer.ask(wire.RELEASE, [pod.fileno()])
        cookie, inode = pod.cookie, pod.inode
    assert daemon.stop() == 0
    records = {str(record["event"]): record for record in json_log(daemon)}
    ready, released = records["listeners-ready"], records["released"]
    assert (ready["netns"], ready["inode"]) == (cookie, inode)
    assert (ready["pid"], ready["uid"]) == (os.getpid(), os.geteuid())
    assert released["netns"] == cookie
    assert daemon.stdout.all() == ["listeners ready"]


CHILD = """
import json, os, sys, threading, time
from pyztun.service.log import MAX_QUEUED, Log
pipe = int(sys.argv[1])
os.dup2(pipe, 1)
os.dup2(pipe, 2)
log = Log("test", "json")
began = time.monotonic()
for number in range(20 * MAX_QUEUED):
    log.event("info", "event", number=number)
    log.announce("announced")
took = time.monotonic() - began
os.write(int(sys.argv[2]), json.dumps([took, threading.active_count()]).encode())
began = time.monotonic()
log.close(0.3)
os.write(int(sys.argv[2]), json.dumps([time.monotonic() - began]).encode())
"""


def test_the_queue_is_bounded_and_nobody_waits(full_pipe: tuple[int, int]) -> None:
    """Against a full pipe: 160,000 events are taken or dropped at once, and close() gives up."""
    tell, told = os.pipe()
    argv = [sys.executable, "-c", CHILD, str(full_pipe[1]), str(told)]
    fds = (full_pipe[1], told)
    with subprocess.Popen(argv, env=programs.environment(), pass_fds=fds) as child:
        os.close(told)
        took, threads = json.loads(os.read(tell, 1000))
        (closing,) = json.loads(os.read(tell, 1000))
        assert child.wait(20) == 0
    os.close(tell)
    assert took < 10
    assert threads == 2
    assert 0.2 < closing < 3


READ_LATER = """
import os, sys
from pyztun.service.log import MAX_QUEUED, Log
log = Log("test", "json")
for number in range(3 * MAX_QUEUED):
    log.event("info", "event", number=number, text='"\\n\\x1b' + chr(0xd800) + "\\u00e4")
print("all are in", flush=True)
sys.stdin.readline()
log.close(20)
"""


def test_what_was_dropped_is_counted() -> None:
    """The pipe is read only after all events are in: what was written and dropped adds up."""
    read, write = os.pipe()
    fcntl.fcntl(write, 1031, 4096)  # F_SETPIPE_SZ
    argv = [sys.executable, "-c", READ_LATER]
    with subprocess.Popen(
        argv,
        env=programs.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=write,
        text=True,
    ) as child:
        os.close(write)
        assert child.stdout is not None
        assert child.stdout.readline() == "all are in\n"
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.close()
        with os.fdopen(read, encoding="utf-8") as stream:
            records = [json.loads(line) for line in stream]
        assert child.wait(20) == 0
    written = [record for record in records if record["event"] == "event"]
    dropped = sum(record["count"] for record in records if record["event"] == "log-dropped")
    assert dropped > 0
    assert len(written) + dropped == 3 * 4096
    numbers = [record["number"] for record in written]
    assert numbers == sorted(numbers)
